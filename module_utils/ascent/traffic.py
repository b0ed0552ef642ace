"""Whether every rank takes part in serving: requests at once, and what the engines' own counters say that they did.

One good answer proves one path. A rank that gets nothing, a prefill side that is passed by, a KV cache that is computed
twice: all of them answer HTTP 200. vLLM counts by rank (label ``engine``) what each has done.
"""

from __future__ import annotations

__all__ = ["ROUNDS", "check", "judge", "prompts", "scrape"]

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .client import ClientError, request
from .findings import finding

#: Loads are sent this many times at most, until every rank has had a request.
ROUNDS = 3

_STAGE = "check"
_LEAST, _MOST = 4, 64
# A line of the prompts' beginning is 15 words; a tokenizer that knows no words may need 5 tokens for each.
_LINES, _LINE_TOKENS, _REST = 30, 75, 128
_SAMPLE = re.compile(r'(?P<name>vllm:\w+)\{(?:.*,)?engine="(?P<engine>[^"]*)".*\}\s+(?P<value>\S+)')
_PROMPT, _GENERATION = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
_PREFIX, _EXTERNAL = "vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_NAMES = frozenset((_PROMPT, _GENERATION, _PREFIX, _EXTERNAL, _DRAFTED))

#: What one engine has counted: sums by metric and rank.
Counts = Dict[str, Dict[str, float]]


def scrape(text: str) -> Counts:
    r"""The counters of a ``/metrics`` page by name and rank.

    >>> scrape('vllm:prompt_tokens_total{engine="1",model_name="m"} 7.0\nother 1')
    {'vllm:prompt_tokens_total': {'1': 7.0}}
    """
    found: Counts = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match.group("name") not in _NAMES:
            continue
        ranks = found.setdefault(match.group("name"), {})
        try:
            ranks[match.group("engine")] = ranks.get(match.group("engine"), 0.0) + float(match.group("value"))
        except ValueError:
            continue
    return found


def prompts(number: int, room: Optional[int] = None) -> List[str]:
    """As many prompts as are sent at once: the same long beginning, so that a prefix cache can show, and ends apart.

    ``room`` is the longest sequence in tokens; the beginning stays well below it.
    """
    lines = _LINES if room is None else max(0, min(_LINES, (room - _REST) // _LINE_TOKENS))
    beginning = "".join(
        f"Line {count} of the record says that all is well and nothing is missing. " for count in range(lines)
    )
    return [f"{beginning}Now count from {start} to {start + 9}:" for start in range(number)]


def check(
    url: str, model: str, engines: Sequence[Mapping[str, Any]], timeout: float = 300, api_key: Optional[str] = None
) -> Dict[str, Any]:
    """Send loads and compare the engines' counters from before and after: ``{"findings", "traffic"}``.

    ``engines``: ``{"name", "host", "role", "metrics_url", "ranks", "prefix_caching", "speculative", "max_model_len"}``
    each, ``role`` as in the plan; with ``entry`` where clients reach it by itself, not by ``url``: the loads go to all
    entries alike. ``timeout`` in seconds for each request.
    """
    entries = list(dict.fromkeys(str(engine.get("entry") or url) for engine in engines))
    share = min(_MOST, max(_LEAST, 2 * sum(int(engine["ranks"]) for engine in engines) // len(entries)))
    room = min((int(engine["max_model_len"]) for engine in engines if engine["max_model_len"]), default=None)
    before = _counters(engines, timeout, api_key)
    errors: List[str] = []
    after = before
    for _round in range(ROUNDS):
        for entry in entries:
            errors += _load(entry, model, prompts(share, room), timeout, api_key)
        after = _counters(engines, timeout, api_key)
        if errors or not _idle(engines, before, after):
            break
    return judge(engines, before, after, errors, share * len(entries))


def _load(url: str, model: str, texts: Sequence[str], timeout: float, api_key: Optional[str]) -> List[str]:
    """What went wrong with requests sent all at once."""

    def one(text: str) -> Optional[str]:
        body = {"model": model, "prompt": text, "max_tokens": 16, "temperature": 0}
        try:
            answer = request("POST", f"{url.rstrip('/')}/v1/completions", body, timeout=timeout, api_key=api_key)
            if answer.status != 200:
                return f"HTTP {answer.status}: {answer.text[:300]}"
            answered = str(answer.json()["choices"][0]["text"]).strip()
            return None if answered else "HTTP 200 without text"
        except (ClientError, IndexError, KeyError, TypeError) as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=len(texts)) as pool:
        return [error for error in pool.map(one, texts) if error]


def _counters(
    engines: Sequence[Mapping[str, Any]], timeout: float, api_key: Optional[str]
) -> Dict[str, Optional[Counts]]:
    """`scrape` of each engine by name; None where there is no such page."""
    found: Dict[str, Optional[Counts]] = {}
    for engine in engines:
        found[engine["name"]] = _page(engine["metrics_url"], timeout, api_key)
    return found


def _page(url: str, timeout: float, api_key: Optional[str]) -> Optional[Counts]:
    try:
        answer = request("GET", url, timeout=min(timeout, 30), api_key=api_key)
    except ClientError:
        return None
    return scrape(answer.text) if answer.status == 200 else None


def _grown(before: Optional[Counts], after: Optional[Counts], name: str) -> Optional[Dict[str, float]]:
    """By how much a counter has grown on each rank; None when it can't be told."""
    if before is None or after is None or name not in after:
        return None
    return {rank: value - before.get(name, {}).get(rank, 0.0) for rank, value in after[name].items()}


def _idle(
    engines: Sequence[Mapping[str, Any]], before: Mapping[str, Optional[Counts]], after: Mapping[str, Optional[Counts]]
) -> List[Tuple[Mapping[str, Any], List[str]]]:
    """Engines with the ranks that took no part."""
    found = []
    for engine in engines:
        name = _PROMPT if engine["role"] == "prefill" else _GENERATION
        grown = _grown(before[engine["name"]], after[engine["name"]], name)
        if grown is not None:
            idle = sorted((rank for rank, count in grown.items() if count <= 0), key=lambda rank: (len(rank), rank))
            missing = max(0, int(engine["ranks"]) - len(grown))
            if idle or missing:
                found.append((engine, idle + ["?"] * missing))
    return found


def judge(
    engines: Sequence[Mapping[str, Any]],
    before: Mapping[str, Optional[Counts]],
    after: Mapping[str, Optional[Counts]],
    errors: Sequence[str],
    at_once: int,
) -> Dict[str, Any]:
    """Findings on the counters, and what they were: ``{"findings", "traffic": {engine: {metric: growth}}}``. Pure."""
    found: List[Dict[str, Any]] = []
    if errors:
        found.append(
            finding(
                "requests-at-once-fail",
                "error",
                f"{len(errors)} of {at_once} requests sent at once fail, although one by itself is answered",
                stage=_STAGE,
                evidence=errors[0],
                cause="An instance or rank that a single request did not reach is broken.",
                fix="Ask each instance by itself: curl its /health and /v1/completions, then read its log.",
            )
        )
    found += [
        finding(
            "counters-unreadable",
            "info",
            f"{engine['name']} has no counters that could be read, so its part in serving is not proven",
            host=engine["host"],
            stage=_STAGE,
            evidence=engine["metrics_url"],
        )
        for engine in engines
        if after[engine["name"]] is None or before[engine["name"]] is None
    ]
    sides = {engine["role"] for engine in engines}
    transferring = {"prefill", "decode"} <= sides
    for engine, ranks in _idle(engines, before, after):
        whole = len(ranks) >= int(engine["ranks"])
        found.append(_idle_finding(engine, ranks, whole, transferring))
    traffic: Dict[str, Dict[str, float]] = {}
    for engine in engines:
        sums = {}
        for name in sorted(_NAMES):
            grown = _grown(before[engine["name"]], after[engine["name"]], name)
            if grown is not None:
                sums[name] = sum(grown.values())
        traffic[engine["name"]] = sums
        if not errors:
            found += _features(engine, sums, transferring)
    return {"findings": found, "traffic": traffic}


def _idle_finding(engine: Mapping[str, Any], ranks: Sequence[str], whole: bool, transferring: bool) -> Dict[str, Any]:
    name = engine["name"]
    if whole and engine["role"] == "prefill" and transferring:
        summary = f"{name} prefilled nothing: requests pass it by"
        cause = "The router does not know it, or the decode side computes prompts itself."
    elif whole:
        summary = f"{name} generated nothing: requests pass it by"
        cause = "The router does not know it, or holds it for down."
    else:
        summary = f"{len(ranks)} of {engine['ranks']} ranks of {name} had no request"
        cause = "Few requests spread unevenly; or a rank that hangs, or never joined, gets none."
    return finding(
        "instance-idle" if whole else "rank-idle",
        "error" if whole else "warning",
        summary,
        host=engine["host"],
        stage=_STAGE,
        evidence=f"ranks {', '.join(ranks)} in {engine['metrics_url']}",
        cause=cause,
        fix="Compare the router's list of backends with the plan; then the log of each rank's node.",
    )


def _features(engine: Mapping[str, Any], sums: Mapping[str, float], transferring: bool) -> List[Dict[str, Any]]:
    """Features that are on and did nothing."""
    found = []
    evidence = ", ".join(f"{name} +{value:g}" for name, value in sorted(sums.items()))

    def idle(id: str, summary: str, cause: str, fix: str) -> None:
        found.append(
            finding(id, "warning", summary, host=engine["host"], stage=_STAGE, evidence=evidence, cause=cause, fix=fix)
        )

    worked = sums.get(_GENERATION, 0) > 0
    if engine["role"] == "decode" and transferring and worked and sums.get(_EXTERNAL) == 0:
        idle(
            "kv-not-transferred",
            f"{engine['name']} took no KV cache from the prefill side and computed every prompt itself",
            "The transfer fails quietly, or the router sends prompts without what the connector needs.",
            "Look for the connector's errors in the logs of both sides; then -e verify=force.",
        )
    # What prefill makes is one token a request, before anything could be drafted.
    drafts = engine["speculative"] and not (engine["role"] == "prefill" and transferring)
    if drafts and worked and sums.get(_DRAFTED) == 0:
        idle(
            "speculation-idle",
            f"speculative decoding is on and {engine['name']} drafted no token",
            "The draft model was not loaded, or the batch is larger than speculation is allowed for.",
            "Read --speculative-config and the start of its log.",
        )
    if engine["prefix_caching"] and engine["role"] != "decode" and worked and sums.get(_PREFIX) == 0:
        idle(
            "prefix-cache-idle",
            f"prefix caching is on and {engine['name']} reused nothing of prompts that begin alike",
            "Blocks are longer than the common part, or the cache is too small to keep them.",
            "Compare --block-size and the KV cache size in its log with the prompts' length.",
        )
    return found
