"""Finds the causes of a failed start in the engines' logs.

The catalogue of signatures is data (``catalog/findings/*.yml``); callers on the controller read it and pass it in,
because managed nodes have no YAML. Its shape::

    {"findings": [{"id", "rank", "severity", "stage", "summary", "cause", "fix",
                   "signatures": [regex, ...],          searched in each line, case-insensitive
                   "fatal": bool,                       default true: the line alone means that the start failed
                   "below": number,                     with groups `part` and `total`: part / total is below
                   "exit_codes": [int, ...]}, ...],     codes of a container that point here when its log says nothing
     "wrappers": [regex, ...]}                          lines that only repeat that something else failed

Two rules pick the cause. In one log the rank of the finding decides, then the position: a missing library explains a
timeout and never the reverse. Over several logs time decides first: one rank that dies makes all others complain
later. Lines that are not fatal by themselves come after all that are. Hosts' clocks differ; ``ahead`` says by how much.

A failure that no entry knows still has lines that tell of it: `telling` picks them.
"""

from __future__ import annotations

__all__ = [
    "RANKS",
    "by_exit_code",
    "diagnose",
    "diagnose_all",
    "fatal_patterns",
    "is_fatal",
    "line_time",
    "progress_free",
    "telling",
    "timed",
    "unnumbered",
]

import calendar
import functools
import re
import time
from typing import Any, Dict, List, Mapping, Optional, Pattern, Sequence, Tuple

from .findings import finding

#: Which kind of finding explains which, most basic first.
RANKS = ("library", "device", "port", "interface", "memory", "link", "timeout", "generic")

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:Z|\+00:00)\s")
_EVIDENCE_CHARACTERS = 400


@functools.cache
def _compiled(pattern: str) -> Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def line_time(line: str) -> Optional[float]:
    """The UTC stamp before a line as ``docker logs --timestamps`` prints it, in seconds since 1970.

    >>> line_time("2026-08-22T10:00:00.5Z hello")
    1787392800.5
    """
    match = _STAMP.match(line)
    if match is None:
        return None
    return calendar.timegm(time.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S")) + float("0" + (match.group(2) or ""))


def fatal_patterns(catalogue: Mapping[str, Any]) -> List[str]:
    """Regexes of lines after which a start can't succeed any more, wrappers included."""
    patterns = [p for entry in catalogue["findings"] if is_fatal(entry) for p in entry["signatures"]]
    return patterns + list(catalogue["wrappers"])


def progress_free(line: str, catalogue: Mapping[str, Any]) -> bool:
    """True when a line is a known complaint, so that repeating it is no progress."""
    return any(_compiled(p).search(line) for entry in catalogue["findings"] for p in entry["signatures"])


def diagnose(
    text: str, catalogue: Mapping[str, Any], *, host: Optional[str] = None, process: Optional[str] = None
) -> List[Dict[str, Any]]:
    """Findings of one log, root cause first; each id once, with the first line that shows it."""
    return [_finding(hit) for hit in _hits(text, catalogue, host, process)]


def diagnose_all(
    logs: Mapping[str, str],
    catalogue: Mapping[str, Any],
    *,
    hosts: Optional[Mapping[str, str]] = None,
    ahead: Optional[Mapping[str, float]] = None,
) -> List[Dict[str, Any]]:
    """Findings over the logs of all processes, the first cause in time first.

    ``logs`` maps process names to text, ``hosts`` to the host for the findings, ``ahead`` to the seconds by which the
    clock that stamps the log is ahead of the others (0 where it is left out). Stamps are used when every hit has one
    (``docker logs --timestamps``); otherwise ranks decide alone. An id that several logs show is one finding of the
    first log.
    """
    return [item for _, item in timed(logs, catalogue, hosts=hosts, ahead=ahead)]


def timed(
    logs: Mapping[str, str],
    catalogue: Mapping[str, Any],
    *,
    hosts: Optional[Mapping[str, str]] = None,
    ahead: Optional[Mapping[str, float]] = None,
) -> List[Tuple[Optional[float], Dict[str, Any]]]:
    """`diagnose_all`, each finding with the time since which its log has it: seconds since 1970, None without stamps.

    Within one log the rank decides, so all fatal findings of a log have the time of its first fatal line.
    """
    hits: List[Dict[str, Any]] = []
    for process in sorted(logs):
        for hit in _hits(logs[process], catalogue, (hosts or {}).get(process), process):
            if hit["time"] is not None:
                hit["time"] -= (ahead or {}).get(process, 0.0)
            hits.append(hit)
    stamped = all(hit["time"] is not None for hit in hits)
    starts: Dict[str, float] = {}
    for hit in hits:
        if stamped and is_fatal(hit["entry"]):
            starts[hit["process"]] = min(hit["time"], starts.get(hit["process"], hit["time"]))

    def since(hit: Dict[str, Any]) -> Optional[float]:
        if not stamped:
            return None
        return starts[hit["process"]] if is_fatal(hit["entry"]) else float(hit["time"])

    def order(hit: Dict[str, Any]) -> Tuple[Any, ...]:
        rank = (RANKS.index(hit["entry"]["rank"]), hit["number"])
        if not stamped:
            return (not is_fatal(hit["entry"]), *rank, hit["process"])
        return (not is_fatal(hit["entry"]), since(hit), hit["process"], *rank)

    merged: Dict[str, Dict[str, Any]] = {}
    for hit in sorted(hits, key=order):
        first = merged.setdefault(hit["entry"]["id"], hit)
        if first is not hit:
            first.setdefault("also", []).append(hit["process"])
    return [(since(hit), _finding(hit)) for hit in merged.values()]


# What a line looks like that tells why something ended, most telling first.
_TELLING: Tuple[Pattern[str], ...] = tuple(
    re.compile(pattern, flags)
    for pattern, flags in (
        # The last line of a traceback, or the message of a panic.
        (r"(^|[\s)\]])[\w.]*(Error|Exception|Interrupt|Fault)\b(?!s)\s*(:|$)|\bpanic: |\bterminate called", 0),
        (r"\b(fatal|critical|abort(ed|ing)?|segmentation|core dumped|assert\w*|killed)\b", re.IGNORECASE),
        (r"\b(ERROR|ERR)\b|\[E\]|\bE\d{4} ", 0),
        (
            r"\b(fail(s|ed|ure)?|can ?not|can't|unable|refused|denied|not found|no such|invalid|timed? ?out)\b",
            re.IGNORECASE,
        ),
    )
)
_PLAIN = re.compile(r"\d+")


def unnumbered(line: str) -> str:
    """A line without its numbers: those that many ranks say alike have one and the same."""
    return _PLAIN.sub("", line)


def telling(text: str, catalogue: Mapping[str, Any], most: int = 6) -> List[str]:
    r"""The lines of a log that say most of a failure which no entry of the catalogue knows, in their order.

    A line that differs from an earlier one in numbers only is left out, and so are wrappers. A log without any such
    line gives its last ones.

    >>> telling("INFO all is well\nValueError: no such gear: 5\nINFO bye", {"wrappers": []})
    ['ValueError: no such gear: 5']
    """
    lines = [line.rstrip().rpartition("\r")[2] for line in text.splitlines() if line.strip()]
    wrappers: Sequence[str] = catalogue["wrappers"]
    seen = set()
    ranked: List[Tuple[int, int]] = []
    for number, line in enumerate(lines):
        rank = next((rank for rank, pattern in enumerate(_TELLING) if pattern.search(line)), None)
        if rank is None or any(_compiled(pattern).search(line) for pattern in wrappers):
            continue
        shape = unnumbered(line)
        if shape not in seen:
            seen.add(shape)
            ranked.append((rank, number))
    chosen = sorted(number for _, number in sorted(ranked)[:most])
    return [lines[number] for number in chosen] or lines[-most:]


def by_exit_code(
    code: int, catalogue: Mapping[str, Any], *, host: Optional[str] = None, process: Optional[str] = None
) -> Optional[Dict[str, Any]]:
    """The finding that a container's exit code points to, for a log that says nothing; None when no entry names it."""
    for entry in catalogue["findings"]:
        if code in entry.get("exit_codes", []):
            where = f"{process}: " if process else ""
            return _finding(
                {"entry": entry, "line": f"exit code {code}", "place": where, "host": host, "process": process}
            )
    return None


def is_fatal(entry: Mapping[str, Any]) -> bool:
    """True when one line of this entry of the catalogue means that the start failed."""
    return bool(entry.get("fatal", entry["severity"] == "error"))


def _hits(text: str, catalogue: Mapping[str, Any], host: Optional[str], process: Optional[str]) -> List[Dict[str, Any]]:
    """One hit for each id, best first. A line counts for one entry only: the one of the most basic rank."""
    entries = sorted(catalogue["findings"], key=lambda entry: RANKS.index(entry["rank"]))
    found: Dict[str, Dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = next((entry for entry in entries if _matches(entry, line)), None)
        if entry is not None and entry["id"] not in found:
            place = f"{process}, line {number}: " if process else f"line {number}: "
            found[entry["id"]] = {
                "entry": entry,
                "line": line.strip(),
                "number": number,
                "time": line_time(line),
                "place": place,
                "host": host,
                "process": process or "",
            }
    return sorted(
        found.values(), key=lambda hit: (not is_fatal(hit["entry"]), RANKS.index(hit["entry"]["rank"]), hit["number"])
    )


def _matches(entry: Mapping[str, Any], line: str) -> bool:
    for pattern in entry["signatures"]:
        match = _compiled(pattern).search(line)
        if match is None:
            continue
        if "below" not in entry:
            return True
        total = float(match.group("total"))
        if total > 0 and float(match.group("part")) / total < entry["below"]:
            return True
    return False


def _finding(hit: Mapping[str, Any]) -> Dict[str, Any]:
    entry = hit["entry"]
    line = hit["line"]
    if len(line) > _EVIDENCE_CHARACTERS:
        line = line[: _EVIDENCE_CHARACTERS - 1] + "…"
    also = f" (also in {', '.join(sorted(set(hit['also'])))})" if hit.get("also") else ""
    return finding(
        entry["id"],
        entry["severity"],
        entry["summary"],
        host=hit["host"],
        stage=entry["stage"],
        evidence=f"{hit['place']}{line}{also}",
        cause=entry["cause"],
        fix=entry["fix"],
    )
