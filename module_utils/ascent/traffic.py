"""Whether every rank takes part in serving: requests at once, and what the engines' own counters say that they did.

One good answer proves one path. A rank that gets nothing, a prefill side that is passed by, a KV cache that is computed
twice: all of them answer HTTP 200. vLLM counts by rank (label ``engine``) what each has done, and the header
``X-data-parallel-rank`` sends a request to one rank, so each can be asked by itself.
"""

from __future__ import annotations

__all__ = ["ROUNDS", "check", "judge", "judge_ranks", "prompts", "scrape"]

import collections
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from . import answer_quality
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
_DRAFTED, _ACCEPTED = "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"
# Of these only what came from another engine counts.
_BY_SOURCE, _TRANSFERRED = "vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"'
_CACHE = "vllm:cache_config_info"
_NAMES = frozenset((_PROMPT, _GENERATION, _PREFIX, _EXTERNAL, _DRAFTED, _ACCEPTED, _BY_SOURCE))
# Engines publish their figures in rounds of their own.
_LATE_SECONDS, _LOOK_SECONDS = 2.0, 0.2
# So few drafted tokens may all be wrong by chance.
_DRAFTED_ENOUGH = 50
_RANK_HEADER = "X-data-parallel-rank"
_SAME_START = 12

#: What one engine has counted: sums by metric and rank.
Counts = Dict[str, Dict[str, float]]


def scrape(text: str) -> Counts:
    r"""The counters of a ``/metrics`` page by name and rank; ``vllm:cache_config_info`` is 1 where prefixes are cached.

    >>> scrape('vllm:prompt_tokens_total{engine="1",model_name="m"} 7.0\nother 1')
    {'vllm:prompt_tokens_total': {'1': 7.0}}
    """
    found: Counts = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        name = match.group("name") if match else None
        if match is None or (name not in _NAMES and name != _CACHE):
            continue
        if name == _BY_SOURCE and _TRANSFERRED not in line:
            continue
        if name == _CACHE:
            on = re.search(r'enable_prefix_caching="(\w+)"', line)
            if on:
                found.setdefault(_CACHE, {})[match.group("engine")] = float(on.group(1) == "True")
            continue
        ranks = found.setdefault(match.group("name"), {})
        try:
            ranks[match.group("engine")] = ranks.get(match.group("engine"), 0.0) + float(match.group("value"))
        except ValueError:
            continue
    return found


def prompts(number: int, room: Optional[int] = None, mark: str = "") -> List[str]:
    """As many prompts as are sent at once: the same long beginning, so that a prefix cache can show, and ends apart.

    ``room`` is the longest sequence in tokens; the beginning stays well below it. ``mark`` comes first: no cache has
    anything yet of a beginning with a new one, so that a KV cache has to travel.
    """
    lines = _LINES if room is None else max(0, min(_LINES, (room - _REST) // _LINE_TOKENS))
    beginning = "".join(
        f"Line {count} of the record says that all is well and nothing is missing. " for count in range(lines)
    )
    return [f"{mark}{beginning}Now count from {start} to {start + 9}:" for start in range(number)]


def check(
    url: str,
    model: str,
    engines: Sequence[Mapping[str, Any]],
    timeout: float = 300,
    prompt: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    """Send loads, compare the engines' counters from before and after, and ask every rank: ``{"findings", "traffic"}``.

    ``engines``: ``{"name", "host", "role", "metrics_url", "ranks", "hosts", "prefix_caching", "speculative",
    "max_model_len"}`` each, ``role`` as in the plan, ``hosts`` of its ranks in their order; with ``entry`` where
    clients reach it by itself, not by ``url``: the loads go to all entries alike. ``prompt``: what ranks are asked by
    themselves, such as a prompt of the recipe. ``timeout`` in seconds for each request.
    """
    entries = list(dict.fromkeys(str(engine.get("entry") or url) for engine in engines))
    share = min(_MOST, max(_LEAST, 2 * sum(int(engine["ranks"]) for engine in engines) // len(entries)))
    room = min((int(engine["max_model_len"]) for engine in engines if engine["max_model_len"]), default=None)
    before = _counters(engines, timeout)
    errors: List[str] = []
    after = before
    for _round in range(ROUNDS):
        mark = f"Record {secrets.token_hex(4)}. "
        for entry in entries:
            errors += _load(entry, model, prompts(share, room, mark), timeout)
        after = _counters(engines, timeout)
        late = time.monotonic() + _LATE_SECONDS
        while not errors and _unproven(engines, before, after) and time.monotonic() < late:
            time.sleep(_LOOK_SECONDS)
            after = _counters(engines, timeout)
        if errors or not _unproven(engines, before, after):
            break
    asked = _ask_ranks(model, engines, prompt or {"prompt": "Count from 1 to 9:"}, timeout)
    told = judge(engines, before, after, errors, share * len(entries), asked)
    told["findings"] += judge_ranks(asked)
    return told


def _unproven(
    engines: Sequence[Mapping[str, Any]], before: Mapping[str, Optional[Counts]], after: Mapping[str, Optional[Counts]]
) -> bool:
    """Whether the counters would tell of something wrong, which another look or load may put right."""
    worst = judge(engines, before, after, [], 0)["findings"]
    return any(item["severity"] != "info" for item in worst)


def _load(url: str, model: str, texts: Sequence[str], timeout: float) -> List[str]:
    """What went wrong with requests sent all at once."""

    def one(text: str) -> Optional[str]:
        body = {"model": model, "prompt": text, "max_tokens": 16, "temperature": 0}
        answer = _one(f"{url.rstrip('/')}/v1/completions", body, timeout)
        return answer["error"] or None

    with ThreadPoolExecutor(max_workers=len(texts)) as pool:
        return [error for error in pool.map(one, texts) if error]


def _one(url: str, body: Mapping[str, Any], timeout: float, rank: Optional[int] = None) -> Dict[str, Any]:
    """``{"status", "text", "error"}`` of one completion; ``error`` is empty for one with words."""
    headers = {} if rank is None else {_RANK_HEADER: str(rank)}
    try:
        answer = request("POST", url, body, timeout=timeout, headers=headers)
        if answer.status != 200:
            return {"status": answer.status, "text": "", "error": f"HTTP {answer.status}: {answer.text[:300]}"}
        text = str(answer.json()["choices"][0]["text"])
        return {"status": 200, "text": text, "error": "" if text.strip() else "HTTP 200 without text"}
    except (ClientError, IndexError, KeyError, TypeError) as error:
        return {"status": getattr(error, "status", None), "text": "", "error": str(error)}


def _ask_ranks(
    model: str, engines: Sequence[Mapping[str, Any]], prompt: Mapping[str, Any], timeout: float
) -> List[Dict[str, Any]]:
    """Every rank asked by itself, all at once: ``[{"engine", "role", "rank", "host", "status", "text", "error"}]``."""
    places = [(engine, rank) for engine in engines for rank in range(int(engine["ranks"]))]

    def one(place: Tuple[Mapping[str, Any], int]) -> Dict[str, Any]:
        engine, rank = place
        # The prefill side computes prompts; it may be set up for nothing else.
        tokens = 1 if engine["role"] == "prefill" else int(prompt.get("max_tokens") or 16)
        body = {"model": model, "prompt": prompt["prompt"], "max_tokens": tokens, "temperature": 0}
        url = engine["metrics_url"].rpartition("/metrics")[0]
        hosts = engine.get("hosts") or []
        asked = _one(f"{url}/v1/completions", body, timeout, rank if int(engine["ranks"]) > 1 else None)
        return {
            "engine": engine["name"],
            "role": engine["role"],
            "rank": rank,
            "host": hosts[rank] if rank < len(hosts) else engine["host"],
            **asked,
        }

    if not places:
        return []
    with ThreadPoolExecutor(max_workers=min(_MOST, len(places))) as pool:
        return list(pool.map(one, places))


def judge_ranks(asked: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """Findings on what ranks said when each was asked the same by itself, at temperature 0. Pure.

    A refusal (status 4xx) of a rank proves nothing: releases that can't send a request to one rank refuse it. But 404
    says that the engine knows no such model.
    """
    found = []
    for one in asked:
        if one["status"] == 404 and one["rank"] == 0:
            found.append(
                finding(
                    "served-name-wrong",
                    "error",
                    f"{one['engine']} does not serve the model under the name that clients use",
                    host=one["host"],
                    stage=_STAGE,
                    evidence=one["error"],
                    cause="It was started with another --served-model-name, so its share of the requests fails.",
                    fix="Compare /v1/models of every engine with model.served_name of the recipe.",
                )
            )
        refused = one["status"] is not None and 400 <= one["status"] < 500
        if one["error"] and not refused:
            found.append(
                finding(
                    "rank-fails",
                    "error",
                    f"rank {one['rank']} of {one['engine']} does not answer when it is asked by itself",
                    host=one["host"],
                    stage=_STAGE,
                    evidence=one["error"],
                    cause="The rank hangs or has died while the others go on, so some requests fail and others do not.",
                    fix="Read that node's log; then start the instance anew.",
                )
            )
    for role in sorted({one["role"] for one in asked}):
        said = [one for one in asked if one["role"] == role and not one["error"]]
        starts = collections.Counter(one["text"][:_SAME_START] for one in said)
        usual, count = starts.most_common(1)[0] if starts else ("", 0)
        for one in said:
            noise = answer_quality.judge(one["text"])["reasons"]
            odd = one["text"][:_SAME_START] != usual and count > len(said) / 2
            if not odd:
                continue
            found.append(
                finding(
                    "rank-differs",
                    "error" if noise else "warning",
                    f"rank {one['rank']} of {one['engine']} answers otherwise than {count} of {len(said)} ranks",
                    host=one["host"],
                    stage=_STAGE,
                    evidence=f"usual {usual!r}, here {one['text'][:200]!r}" + "".join(f"; {each}" for each in noise),
                    cause="Its shard of the weights is damaged or another one, or its device computes wrongly.",
                    fix="Compare the weights' hashes of that node with the others; look at its devices' ECC counters.",
                )
            )
    return found


def _counters(engines: Sequence[Mapping[str, Any]], timeout: float) -> Dict[str, Optional[Counts]]:
    """`scrape` of each engine by name; None where there is no such page."""
    found: Dict[str, Optional[Counts]] = {}
    for engine in engines:
        found[engine["name"]] = _page(engine["metrics_url"], timeout)
    return found


def _page(url: str, timeout: float) -> Optional[Counts]:
    try:
        answer = request("GET", url, timeout=min(timeout, 30))
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
    asked: Sequence[Mapping[str, Any]] = (),
) -> Dict[str, Any]:
    """Findings on the counters, and what they were: ``{"findings", "traffic": {engine: {metric: growth}}}``. Pure.

    ``asked``: what ranks said when each was asked by itself.
    """
    sound = {(one["engine"], str(one["rank"])) for one in asked if not one["error"]}
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
        answering = all((engine["name"], rank) in sound for rank in ranks)
        found.append(_idle_finding(engine, ranks, whole, transferring, answering))
    traffic: Dict[str, Dict[str, float]] = {}
    for engine in engines:
        sums = {}
        for name in sorted(_NAMES):
            grown = _grown(before[engine["name"]], after[engine["name"]], name)
            if grown is not None:
                sums[name] = sum(grown.values())
        traffic[engine["name"]] = sums
        if not errors:
            cached = (after[engine["name"]] or {}).get(_CACHE)
            caching = any(cached.values()) if cached else bool(engine["prefix_caching"])
            found += _features(engine, sums, transferring, caching)
    return {"findings": found, "traffic": traffic}


def _idle_finding(
    engine: Mapping[str, Any], ranks: Sequence[str], whole: bool, transferring: bool, answering: bool
) -> Dict[str, Any]:
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
        if answering:
            cause = "Few requests spread unevenly: asked by themselves, they answer."
    return finding(
        "instance-idle" if whole else "rank-idle",
        "error" if whole else "info" if answering else "warning",
        summary,
        host=engine["host"],
        stage=_STAGE,
        evidence=f"ranks {', '.join(ranks)} in {engine['metrics_url']}",
        cause=cause,
        fix="Compare the router's list of backends with the plan; then the log of each rank's node.",
    )


def _features(
    engine: Mapping[str, Any], sums: Mapping[str, float], transferring: bool, caching: bool
) -> List[Dict[str, Any]]:
    """Features that are on and did nothing."""
    found = []
    evidence = ", ".join(f"{name} +{value:g}" for name, value in sorted(sums.items()))

    def idle(id: str, severity: str, summary: str, cause: str, fix: str) -> None:
        found.append(
            finding(id, severity, summary, host=engine["host"], stage=_STAGE, evidence=evidence, cause=cause, fix=fix)
        )

    worked = sums.get(_GENERATION, 0) > 0
    if engine["role"] == "decode" and transferring and worked:
        counted = [sums[name] for name in (_EXTERNAL, _BY_SOURCE) if name in sums]
        if not counted:
            idle(
                "kv-transfer-unproven",
                "info",
                f"{engine['name']} does not count what it takes from the prefill side",
                "Its release has no such counter.",
                "Look at the prefill side's log for finished transfers.",
            )
        elif sum(counted) <= 0:
            idle(
                "kv-not-transferred",
                "error",
                f"{engine['name']} took no KV cache from the prefill side and computed every prompt itself",
                "The transfer fails quietly, or the router sends prompts without what the connector needs.",
                "Look for the connector's errors in the logs of both sides; then -e verify=force.",
            )
    drafted = sums.get(_DRAFTED)
    # What prefill makes is one token a request, before anything could be drafted.
    drafts = engine["speculative"] and not (engine["role"] == "prefill" and transferring)
    if drafts and worked and drafted == 0:
        idle(
            "speculation-idle",
            "warning",
            f"speculative decoding is on and {engine['name']} drafted no token",
            "The draft model was not loaded, or the batch is larger than speculation is allowed for.",
            "Read --speculative-config and the start of its log.",
        )
    elif engine["speculative"] and (drafted or 0) >= _DRAFTED_ENOUGH and sums.get(_ACCEPTED) == 0:
        idle(
            "speculation-useless",
            "warning",
            f"{engine['name']} drafted {drafted:g} tokens and not one was right",
            "The draft weights are another model's or were not loaded: each step computes more and gains nothing.",
            "Compare the draft model with the model, or take --speculative-config away.",
        )
    if caching and engine["role"] != "decode" and worked and sums.get(_PREFIX) == 0:
        idle(
            "prefix-cache-idle",
            "warning",
            f"prefix caching is on and {engine['name']} reused nothing of prompts that begin alike",
            "Blocks are longer than the common part, or the cache is too small to keep them.",
            "Compare --block-size and the KV cache size in its log with the prompts' length.",
        )
    return found
