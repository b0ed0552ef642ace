"""Whether the ranks and instances behind an endpoint share a load: what each counted while it ran."""

from __future__ import annotations

__all__ = ["judge", "read"]

import math
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from .client import ClientError, request
from .findings import finding

_STAGE = "check"
_SAMPLE = re.compile(r"(?P<name>vllm:\w+)\{(?P<labels>.*)\}\s+(?P<value>\S+)")
_ENGINE = re.compile(r'(?:^|,)engine="([^"]*)"')
_REQUESTS = "vllm:request_success_total"
_ITL = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
# A rank has too much, or too little, when chance gives that to any rank in one run of so many, and when it is off by so
# much of its share: with many requests chance allows for little, and a few percent do no harm. One in a hundred is the
# strictest round figure by which an instance of two that got all of 8 requests stands out (one run in 128 by chance).
# Real routers take turns or look for the least load, so they spread more evenly than chance does.
_RARE, _EXCESS = 0.01, 0.5
# A rank is slow when its tokens take so many times as long as the median rank's; with fewer tokens nothing is told.
_SLOW, _TOKENS = 1.4, 50

# Cause and fix.
_TOO_MUCH = (
    "The router's policy, or prompts that begin alike and follow their cache.",
    "Nothing for prompts that belong together; else another policy, or data_parallel_mode of the recipe.",
)
_TOO_LITTLE = (
    "The router holds it for down or busy at times, or it joined late.",
    "Compare the router's list of backends with the plan; then read that node's log.",
)

#: `{(engine, rank): {"requests", "seconds", "tokens"}}`: requests finished, seconds between tokens, how many such gaps.
Shares = Dict[Tuple[str, str], Dict[str, float]]


def _page(text: str) -> Dict[str, Dict[str, float]]:
    found: Dict[str, Dict[str, float]] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        rank = _ENGINE.search(match.group("labels")) if match else None
        if match is None or rank is None:
            continue
        name = match.group("name")
        key = "requests" if name == _REQUESTS else None
        for base in _ITL:
            key = {f"{base}_sum": "seconds", f"{base}_count": "tokens"}.get(name, key)
        if key is None:
            continue
        try:
            value = float(match.group("value"))
        except ValueError:
            continue
        known = found.setdefault(rank.group(1), {"requests": 0.0, "seconds": 0.0, "tokens": 0.0})
        known[key] += value
    return found


def read(engines: Sequence[Mapping[str, Any]], timeout: float = 10) -> Shares:
    """What each rank of ``engines`` (``{"name", "metrics_url"}``) has counted; those without a page are left out."""

    def one(engine: Mapping[str, Any]) -> Dict[str, Dict[str, float]]:
        try:
            answer = request("GET", engine["metrics_url"], timeout=timeout)
        except ClientError:
            return {}
        return _page(answer.text) if answer.status == 200 else {}

    if not engines:
        return {}
    with ThreadPoolExecutor(max_workers=min(32, len(engines))) as pool:
        pages = list(pool.map(one, engines))
    return {(str(engine["name"]), rank): page[rank] for engine, page in zip(engines, pages) for rank in page}


def judge(engines: Sequence[Mapping[str, Any]], before: Shares, after: Shares) -> Dict[str, Any]:
    """Findings on how a load was shared, and what each rank did: ``{"findings", "ranks"}``. Pure.

    ``ranks``: ``[{"engine", "rank", "requests", "itl_ms"}]``, ``itl_ms`` None with too few tokens. Ranks are compared
    with those of the same role. Few requests spread unevenly by chance, so only what chance does not do is told.
    """
    roles = {str(engine["name"]): str(engine["role"]) for engine in engines}
    hosts = {str(engine["name"]): list(engine.get("hosts") or []) for engine in engines}
    first = {str(engine["name"]): engine.get("host") for engine in engines}
    rows: List[Dict[str, Any]] = []
    for (engine, rank), now in sorted(after.items(), key=lambda item: (item[0][0], len(item[0][1]), item[0][1])):
        was = before.get((engine, rank), {})
        # A counter that fell belongs to an engine that started anew meanwhile, and counts from nought.
        grown = {key: value - was.get(key, 0.0) if value >= was.get(key, 0.0) else value for key, value in now.items()}
        itl = grown["seconds"] * 1000 / grown["tokens"] if grown["tokens"] >= _TOKENS else None
        rows.append(
            {
                "engine": engine,
                "rank": rank,
                "requests": int(grown["requests"]),
                "itl_ms": None if itl is None else round(itl, 3),
            }
        )
    found: List[Dict[str, Any]] = []
    for role in sorted(set(roles.values())):
        mine = [row for row in rows if roles[row["engine"]] == role]
        found += [_told(row, hosts, first, *words) for row, words in _uneven(mine) + _slow(mine)]
    return {"findings": found, "ranks": rows}


def _by_chance(least: int, total: int, count: int) -> float:
    """How likely one of ``count`` ranks gets ``least`` or more of ``total`` requests, each going to any of them alike.

    The tail of the binomial distribution, summed exactly; the normal one is far off for so few requests.

    >>> round(_by_chance(8, 8, 2) * 2 ** 8, 6)
    1.0
    """
    if least <= 0 or count < 2:
        return 1.0
    mine, others = -math.log(count), math.log1p(-1 / count)
    ways = (
        math.lgamma(total + 1) - math.lgamma(each + 1) - math.lgamma(total - each + 1)
        for each in range(least, total + 1)
    )
    return math.fsum(math.exp(one + each * mine + (total - each) * others) for each, one in enumerate(ways, least))


def _uneven(rows: Sequence[Mapping[str, Any]]) -> List[Tuple[Mapping[str, Any], Tuple[str, ...]]]:
    """Ranks with too many requests, and of the rest those that have too few for what is left to them.

    What one rank has too much of all others lack, which is one fact and told once.
    """
    total, count = sum(row["requests"] for row in rows), len(rows)
    if count < 2 or total <= 0:
        return []
    share, rare = total / count, _RARE / count
    greedy = [
        row
        for row in rows
        if row["requests"] - share > _EXCESS * share and _by_chance(row["requests"], total, count) < rare
    ]
    rest = [row for row in rows if row not in greedy]
    left = sum(row["requests"] for row in rest)
    starved = [
        row
        for row in rest
        if left / len(rest) - row["requests"] > _EXCESS * left / len(rest)
        and 1 - _by_chance(row["requests"] + 1, left, len(rest)) < _RARE / len(rest)
    ]
    evidence = f"{count} ranks, {share:.1f} requests each: "
    evidence += ", ".join(f"{row['engine']}/{row['rank']} {row['requests']}" for row in rows[:16])
    return [
        (
            row,
            (
                "rank-imbalance",
                f"had {row['requests']} of {total} requests, {row['requests'] / share:.1f} times its share",
                evidence,
                *(_TOO_MUCH if row in greedy else _TOO_LITTLE),
            ),
        )
        for row in rows
        if row in greedy or row in starved
    ]


def _slow(rows: Sequence[Mapping[str, Any]]) -> List[Tuple[Mapping[str, Any], Tuple[str, ...]]]:
    known = [row for row in rows if row["itl_ms"] is not None]
    if len(known) < 2:
        return []
    # Of two, the other one is what a rank is compared with.
    return [
        (
            row,
            (
                "rank-slow",
                f"takes {row['itl_ms']:.1f} ms for a token where the others take {usual:.1f} ms",
                ", ".join(f"{one['engine']}/{one['rank']}: {one['itl_ms']:.1f} ms" for one in known[:16]),
                "Its device or host is slower: frequency, temperature, another process, a device that lost a link.",
                "npu-smi info on that node; then --tags verify -e verify=force.",
            ),
        )
        for row in known
        for usual in [statistics.median(one["itl_ms"] for one in known if one is not row)]
        if usual > 0 and row["itl_ms"] > _SLOW * usual
    ]


def _told(
    row: Mapping[str, Any], hosts: Mapping[str, Sequence[str]], first: Mapping[str, Any], id: str, what: str,
    evidence: str, cause: str, fix: str,
) -> Dict[str, Any]:  # fmt: skip
    known, rank = hosts[row["engine"]], row["rank"]
    host = known[int(rank)] if rank.isdecimal() and int(rank) < len(known) else first[row["engine"]]
    return finding(
        id, "warning", f"rank {rank} of {row['engine']} {what}",
        host=host, stage=_STAGE, evidence=evidence, cause=cause, fix=fix,
    )  # fmt: skip
