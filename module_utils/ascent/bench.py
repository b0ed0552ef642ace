"""A small load generator for an OpenAI-compatible endpoint: threads, streamed answers, and the usual figures.

Terms, all in milliseconds: **TTFT** from sending the request to the first token; **TPOT** the time of the tokens after
the first, divided by their count; **ITL** the gap between two chunks; **E2E** from sending to the last token. An
engine with speculative decoding puts several tokens into one chunk, so tokens are counted by the engine's ``usage`` and
never by chunks: then ITL is a property of the stream and TPOT is the speed.
"""

from __future__ import annotations

__all__ = [
    "SIZES",
    "against",
    "beside",
    "compare",
    "is_simulated",
    "judge",
    "keep",
    "percentile",
    "prompts",
    "run",
    "summarize",
    "table",
]

import queue
import random
import secrets
import threading
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from . import balance
from .client import ClientError, events, request
from .findings import finding

#: Share by which a figure may fall short of another run's before that is a warning.
TOLERANCE = 0.15
# Figures of which more is better.
_RATES = ("request_throughput", "output_throughput", "total_throughput", "goodput")
METRICS = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
#: Conditions that say how large a load is.
SIZES = ("concurrency", "requests", "input_tokens", "output_tokens")
_STAGE = "check"
# Common words that most tokenizers keep whole, so that N words are about N tokens. The engine's count is reported.
_WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company",
    "system", "program", "question", "work", "government", "number", "night", "point", "home", "water", "room",
    "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word",
    "business", "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game",
    "line", "end", "member", "law", "car", "city", "name", "team", "minute", "idea", "body", "back", "parent",
    "face", "level", "office", "door",
]  # fmt: skip


def prompts(count: int, tokens: int, seed: int = 0, nonce: str = "") -> List[str]:
    """``count`` different prompts of ``tokens`` words: ``seed`` says which words, ``nonce`` in which order.

    Two runs with one seed thus ask for as much work, token for token, and with different nonces share no beginning: of
    what an engine, or a store behind several, has cached of an earlier run, not a single block fits. Only the first
    word keeps its place: without a space before it, it may have other tokens than elsewhere.
    """
    source = random.Random(seed)  # noqa: S311 - load, not secrets
    order = random.Random(f"{seed} {nonce}")  # noqa: S311 - load, not secrets
    chosen = [[source.choice(_WORDS) for _ in range(max(1, tokens))] for _ in range(count)]
    return [" ".join(words[:1] + order.sample(words[1:], len(words) - 1)) for words in chosen]


def percentile(values: Sequence[float], share: float) -> Optional[float]:
    """The value below which ``share`` percent lie, with linear interpolation between neighbours; None without values.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.5
    """
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * share / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _one(url: str, body: Mapping[str, Any], timeout: float) -> Dict[str, Any]:
    """Times of one streamed request: ``{ok, error, start, end, arrivals, prompt_tokens, completion_tokens}``."""
    record: Dict[str, Any] = {"ok": False, "error": None, "prompt_tokens": 0, "completion_tokens": 0, "arrivals": []}
    words = False
    record["start"] = start = time.monotonic()
    try:
        for arrival, event in events(url, body, timeout=timeout, deadline=start + timeout):
            if event.get("choices"):
                # A token may have no text of its own (half a character, a word that could become a stop string).
                record["arrivals"].append(arrival)
                words = words or bool(event["choices"][0].get("text"))
            if event.get("usage"):
                record["prompt_tokens"] = int(event["usage"].get("prompt_tokens") or 0)
                record["completion_tokens"] = int(event["usage"].get("completion_tokens") or 0)
    except ClientError as error:
        record["error"] = str(error)
    except (AttributeError, TypeError, ValueError) as error:
        record["error"] = f"{url}: event of an unknown shape: {error}"
    record["end"] = time.monotonic()
    if record["error"] is None and not words:
        record["error"] = f"{url}: the stream had no words"
    elif record["error"] is None and not record["completion_tokens"]:
        record["error"] = f"{url}: the stream had no usage, so tokens can't be counted"
    record["ok"] = record["error"] is None
    return record


class _Gauge:
    """How many requests are under way, and the most there ever were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.highest = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.highest = max(self.highest, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


def _load(url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int, timeout: float) -> Dict[str, Any]:
    """Send all requests, ``concurrency`` at a time: ``{"records", "seconds", "max_in_flight"}``."""
    waiting: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    for body in bodies:
        waiting.put(body)
    records: List[Dict[str, Any]] = []
    gauge = _Gauge()

    def work() -> None:
        while True:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                return
            with gauge:
                records.append(_one(url, body, timeout))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(bodies)))]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"records": records, "seconds": time.monotonic() - start, "max_in_flight": gauge.highest}


def _figures(record: Mapping[str, Any]) -> Dict[str, Optional[float]]:
    arrivals = record["arrivals"]
    later_tokens = record["completion_tokens"] - 1
    return {
        "ttft_ms": (arrivals[0] - record["start"]) * 1000,
        "e2e_ms": (arrivals[-1] - record["start"]) * 1000,
        "tpot_ms": (arrivals[-1] - arrivals[0]) * 1000 / later_tokens if later_tokens > 0 else None,
    }


def _distribution(values: Sequence[float]) -> Dict[str, Optional[float]]:
    def rounded(value: Optional[float]) -> Optional[float]:
        return None if value is None else round(value, 3)

    return {
        "mean": rounded(sum(values) / len(values)) if values else None,
        **{f"p{share}": rounded(percentile(values, share)) for share in (50, 90, 99)},
    }


def summarize(
    records: Sequence[Mapping[str, Any]], seconds: float, slo: Optional[Mapping[str, float]] = None
) -> Dict[str, Any]:
    """Figures over finished requests: distributions, tokens per second, and goodput against ``slo``.

    ``slo`` maps metric names (``ttft_ms``, ``tpot_ms``, ``e2e_ms``) to their limits; goodput is then the requests per
    second that kept all of them, else None. Failed requests count as errors and in nothing else.
    """
    good = [record for record in records if record["ok"]]
    figures = [_figures(record) for record in good]
    values: Dict[str, List[float]] = {
        name: [float(one[name] or 0) for one in figures if one[name] is not None]
        for name in ("ttft_ms", "tpot_ms", "e2e_ms")
    }
    values["itl_ms"] = [
        (after - before) * 1000 for record in good for before, after in zip(record["arrivals"], record["arrivals"][1:])
    ]
    prompt_tokens = sum(record["prompt_tokens"] for record in good)
    completion_tokens = sum(record["completion_tokens"] for record in good)
    kept = [one for one in figures if all((one.get(name) or 0.0) <= limit for name, limit in (slo or {}).items())]

    def per_second(amount: float) -> float:
        return round(amount / seconds, 3) if seconds > 0 else 0.0

    return {
        "completed": len(good),
        "errors": len(records) - len(good),
        "error_samples": sorted({record["error"] for record in records if not record["ok"]})[:5],
        "seconds": round(seconds, 3),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "request_throughput": per_second(len(good)),
        "output_throughput": per_second(completion_tokens),
        "total_throughput": per_second(prompt_tokens + completion_tokens),
        "goodput": per_second(len(kept)) if slo else None,
        "slo": dict(slo) if slo else None,
        **{name: _distribution(values[name]) for name in METRICS},
    }


def timelines(records: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """When each request ran: ``{"start_s", "end_s", "ttft_ms", "itl_ms": [..], "error"}``, in order of start.

    ``start_s`` counts from the first start; ``ttft_ms`` is None for a request without a word.
    """
    ordered = sorted(records, key=lambda record: float(record["start"]))
    return [
        {
            "start_s": round(record["start"] - ordered[0]["start"], 4),
            "end_s": round(record["end"] - ordered[0]["start"], 4),
            "ttft_ms": round((record["arrivals"][0] - record["start"]) * 1000, 3) if record["arrivals"] else None,
            "itl_ms": [
                round((after - before) * 1000, 3) for before, after in zip(record["arrivals"], record["arrivals"][1:])
            ],
            "error": record["error"],
        }
        for record in ordered
    ]


def is_simulated(urls: Sequence[str], timeout: float = 5) -> bool:
    """Whether any version page says that its engine is a simulator, in its answer or by ``X-Ascent-Simulated``."""
    return any(_simulated(url, timeout) for url in urls)


def _simulated(url: str, timeout: float) -> bool:
    try:
        answer = request("GET", url, timeout=timeout)
        if answer.headers.get("x-ascent-simulated"):
            return True
        value = answer.json()
    except ClientError:
        return False
    return isinstance(value, dict) and (
        bool(value.get("simulated")) or "simul" in str(value.get("version", "")).lower()
    )


def run(
    url: str,
    model: str,
    *,
    concurrency: int = 8,
    requests: int = 32,
    input_tokens: int = 128,
    output_tokens: int = 64,
    warmup: Optional[int] = None,
    seed: int = 0,
    nonce: Optional[str] = None,
    timeout: float = 600,
    slo: Optional[Mapping[str, float]] = None,
    simulated_urls: Sequence[str] = (),
    engines: Sequence[Mapping[str, Any]] = (),
    setting: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    """Load the endpoint's completions: ``{"conditions", "simulated", "max_in_flight"}``, what `summarize` gives,
    ``ranks`` and ``findings`` as `balance.judge` gives them for ``engines``, and ``requests`` as `timelines` does.

    ``warmup`` requests go first and are not counted (default: as many as run at a time): they compile graphs, open
    links, and tell how many tokens a word of the prompts has, so that those that count have ``input_tokens``. Answers
    are asked to have exactly ``output_tokens``; engines that do not know ``ignore_eos`` may give fewer, which the token
    counts show. ``seed`` and ``nonce`` are those of `prompts`; each run has a new nonce unless one is given, so that an
    engine that has answered this benchmark before is measured like one that has not. ``setting`` is what else belongs
    to the conditions: ``hardware`` and ``image``. ``timeout`` in seconds is for one request.
    """
    warmup = concurrency if warmup is None else warmup
    nonce = secrets.token_hex(8) if nonce is None else nonce

    def bodies(texts: Sequence[str]) -> List[Dict[str, Any]]:
        common = {"model": model, "max_tokens": output_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        return [{**common, "prompt": text, "stream_options": {"include_usage": True}} for text in texts]

    address = url.rstrip("/") + "/v1/completions"
    words = input_tokens
    if warmup:
        first = _load(address, bodies(prompts(warmup, input_tokens, seed, nonce)), concurrency, timeout)
        counted = [record["prompt_tokens"] for record in first["records"] if record["ok"] and record["prompt_tokens"]]
        words = max(1, round(input_tokens * input_tokens * len(counted) / sum(counted))) if counted else words
    # Another seed than the warm-up's: nothing of these is in a prefix cache yet.
    before = balance.read(engines)
    measured = _load(address, bodies(prompts(requests, words, seed + 1, nonce)), concurrency, timeout)
    shares = balance.judge(engines, before, balance.read(engines))
    return {
        "conditions": {
            "model": model,
            "endpoint": url,
            "concurrency": concurrency,
            "requests": requests,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "warmup": warmup,
            "seed": seed,
            "nonce": nonce,
            **(setting or {}),
        },
        "simulated": is_simulated(simulated_urls),
        "ranks": shares["ranks"],
        "findings": shares["findings"],
        "max_in_flight": measured["max_in_flight"],
        **summarize(measured["records"], measured["seconds"], slo),
        "requests": timelines(measured["records"]),
    }


def table(result: Mapping[str, Any]) -> List[List[str]]:
    """Rows for printing, header first; the simulator's figures say so in the first cell."""

    def cell(value: Optional[float]) -> str:
        return "-" if value is None else f"{value:.1f}"

    rows = [["simulated" if result.get("simulated") else "", "mean", "p50", "p90", "p99"]]
    for name in METRICS:
        label = f"{name.split('_')[0].upper()} (ms)"
        rows.append([label, *(cell(result[name][column]) for column in ("mean", "p50", "p90", "p99"))])
    rows.append(["output tokens/s", cell(result["output_throughput"]), "", "", ""])
    rows.append(["total tokens/s", cell(result["total_throughput"]), "", "", ""])
    if result.get("goodput") is not None:
        rows.append(["goodput (requests/s)", cell(result["goodput"]), "", "", ""])
    rows.append(["completed / errors", f"{result['completed']} / {result['errors']}", "", "", ""])
    return rows


def judge(result: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Findings of a run by itself: requests that failed."""
    if not result["errors"]:
        return []
    total = result["completed"] + result["errors"]
    return [
        finding(
            "bench-errors",
            "error",
            f"{result['errors']} of {total} benchmark requests failed",
            stage=_STAGE,
            evidence="; ".join(result["error_samples"]),
            cause="The endpoint drops or refuses requests under a load that the recipe says it takes.",
            fix="Read the router's and the engines' container logs of that minute.",
        )
    ]


def _figure(result: Mapping[str, Any], name: str) -> Optional[float]:
    """One figure of a result; of a distribution its mean."""
    value = result.get(name)
    found = value.get("mean") if isinstance(value, Mapping) else value
    return None if found is None else float(found)


def _short(name: str, value: float, expected: float) -> float:
    """The share by which a figure is worse than expected; negative when it is better."""
    return 1 - (value / expected if name in _RATES else expected / value) if value > 0 else 1.0


def _unlike(last: Mapping[str, Any], result: Mapping[str, Any]) -> List[str]:
    """Why two results can't be set beside each other.

    Sizes of the load and hardware have to be the same; a result from before hardware was noted fits any. The image does
    not count: whether a new one is slower is what is asked.
    """
    was, now = last["conditions"], result["conditions"]
    other = [f"{name} {was.get(name)} -> {now.get(name)}" for name in SIZES if was.get(name) != now.get(name)]
    hardware = was.get("hardware"), now.get("hardware")
    if all(hardware) and hardware[0] != hardware[1]:
        other.append(f"hardware {hardware[0]} -> {hardware[1]}")
    if bool(last.get("simulated")) != bool(result.get("simulated")):
        other.append("one of the two is simulated")
    return other


def _compared(last: Mapping[str, Any], result: Mapping[str, Any]) -> List[Tuple[str, float, float]]:
    """The figures that two results are compared by, with what they are and what they were."""
    found = []
    for name in ("output_throughput", "ttft_ms", "tpot_ms", "e2e_ms"):
        value, expected = _figure(result, name), _figure(last, name)
        if value is not None and expected:
            found.append((name, value, expected))
    return found


def against(
    last: Optional[Mapping[str, Any]],
    result: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
    drop: Optional[float] = None,
    when: str = "the last good run",
) -> List[Dict[str, Any]]:
    """Findings that set a result beside an earlier one, which ``when`` names. Pure.

    Compared are output throughput and the means of TTFT, TPOT and E2E. What is worse by more than the share
    ``tolerance`` is a warning. An output throughput that fell by more than the share ``drop`` is an error; None: never.
    Figures under other conditions, or of a simulator beside real ones, are not compared, and that is told.
    """
    if not last:
        return []
    other = _unlike(last, result)
    if other:
        return [
            finding(
                "bench-last",
                "info",
                f"not comparable with {when}",
                stage=_STAGE,
                evidence="; ".join(other),
            )
        ]
    figures = _compared(last, result)
    lines = [f"{name} {value:g}, was {expected:g}" for name, value, expected in figures]
    worst = max((_short(*one) for one in figures), default=0.0)
    images = last["conditions"].get("image"), result["conditions"].get("image")
    if all(images) and images[0] != images[1]:
        lines.append(f"image {images[0]} -> {images[1]}")
    value, expected = float(result["output_throughput"]), float(last["output_throughput"])
    ratio = value / expected if expected else 1.0
    fallen = drop is not None and 1 - ratio > drop
    slower = fallen or worst > tolerance
    return [
        finding(
            "bench-drop" if fallen else "bench-last",
            "error" if fallen else "warning" if slower else "info",
            f"{value:g} output tokens/s, {ratio:.0%} of {when}"
            + (f"; a fall by {drop:.0%} was allowed" if fallen and drop is not None else ""),
            stage=_STAGE,
            evidence="; ".join(lines),
            cause="Changed arguments, another image, or a slower node." if slower else "",
            fix="Compare both generations' arguments; repeat with -e endpoint_check_bench=always. To accept it:"
            " -e endpoint_check_bench_accept=true."
            if slower
            else "",
        )
    ]


def beside(
    last: Optional[Mapping[str, Any]],
    before: Optional[Mapping[str, Any]],
    result: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
    drop: Optional[float] = None,
) -> List[Dict[str, Any]]:
    """Findings beside the last good run, and beside the service ``before`` where there was one. Pure.

    ``drop`` holds against the service before, else against the last good run. Where there is both, the last good run is
    told of only when the result is slower: a row of upgrades that each cost a little ends far below it.
    """
    if not before:
        return against(last, result, tolerance=tolerance, drop=drop)
    slower = [one for one in against(last, result, tolerance=tolerance) if one["severity"] != "info"]
    return slower + against(before, result, tolerance=tolerance, drop=drop, when="the service before")


def keep(
    last: Optional[Mapping[str, Any]],
    result: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
    accept: bool = False,
) -> Dict[str, Any]:
    """What later runs are compared with: ``{"result": the last good run, "latest": this one}``. Pure.

    The good run stays the same until one gives more output tokens a second by more than ``tolerance`` and no other
    figure worse by as much, or was made under other conditions, or is to be accepted whatever it is (``accept``). So
    neither a row of runs that each lose a little moves it down, nor the luckiest of many runs up.
    """
    latest, good = ({key: value for key, value in one.items() if key != "requests"} for one in (result, last or {}))
    if accept or not good or _unlike(good, result):
        return {"result": latest, "latest": latest}
    short = {name: _short(name, value, expected) for name, value, expected in _compared(good, result)}
    faster = short.get("output_throughput", 0.0) < -tolerance and max(short.values()) <= tolerance
    return {"result": latest if faster else good, "latest": latest}


def compare(
    reference: Mapping[str, Any], result: Mapping[str, Any], tolerance: float = TOLERANCE
) -> List[Dict[str, Any]]:
    """Findings that set a result beside reference figures, where the conditions are the same.

    ``reference`` is the recipe's mapping of names to rows ``{"source", "conditions": {...}, "figures": {...}}``.
    Conditions are keys of the result's ``conditions`` and all have to be equal; figures are metric names
    (``ttft_ms`` compares means) or throughputs. A figure that is worse by more than the share ``tolerance`` is a
    warning, any other is information. A simulator's figures are never compared. Of a row that is about a load and not
    compared it is told why; one about a data set is none of a benchmark's.
    """
    findings = []
    for row_name, row in reference.items():
        wanted = row.get("conditions") or {}
        if not set(wanted) & set(SIZES):
            continue
        other = [
            f"{key} {result['conditions'].get(key, 'unknown')} != {value}"
            for key, value in wanted.items()
            if result["conditions"].get(key) != value
        ]
        if result.get("simulated") or other:
            findings.append(
                finding(
                    "bench-reference",
                    "info",
                    f"not compared with the reference {row_name}, because: "
                    + ("the engine is a simulator" if result.get("simulated") else ", ".join(other)),
                    stage=_STAGE,
                    evidence=f"reference: {row.get('source', 'recipe')}",
                    fix=f"-e endpoint_check_bench_reference={row_name} measures under its conditions."
                    if other and set(wanted) == set(SIZES)
                    else "",
                )
            )
            continue
        for name, expected in sorted((row.get("figures") or {}).items()):
            value = _figure(result, name)
            if value is None or not expected:
                continue
            worse = _short(name, value, float(expected)) > tolerance
            findings.append(
                finding(
                    "bench-reference",
                    "warning" if worse else "info",
                    f"{name}: {value:g}, {value / expected:.0%} of the reference {expected:g}",
                    stage=_STAGE,
                    evidence=f"reference: {row.get('source', 'recipe')}; same {', '.join(sorted(wanted))};"
                    f" worse by {tolerance:.0%} is a warning",
                    cause="Other clocks, drivers or tuning than those of the reference." if worse else "",
                    fix="Run --tags verify, and compare docs/tuning.md with the node." if worse else "",
                )
            )
    return findings
