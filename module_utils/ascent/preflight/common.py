"""What the checks of preflight share: what they look at, findings of their stage, and parts of a node's facts."""

from __future__ import annotations

__all__ = [
    "ARCHITECTURES",
    "SHOWN",
    "Context",
    "Facts",
    "Findings",
    "chips_are",
    "container",
    "error",
    "gib",
    "holder",
    "images_of_engine",
    "info",
    "is_ours",
    "listed",
    "part",
    "running",
    "warning",
]

from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from ..findings import finding
from ..generations import running_of

_STAGE = "preflight"
#: CPU architectures by other names to what ``uname -m`` prints.
ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}
#: Of a long list as many entries are told.
SHOWN = 8

Facts = Mapping[str, Any]
Findings = List[Dict[str, Any]]


class Context(NamedTuple):
    """What every check may look at beside one node; `ascent.preflight.judge` says what the fields mean."""

    plan: Facts
    nodes: Mapping[str, Optional[Facts]]
    table: Optional[Facts]
    offsets: Optional[Mapping[str, Mapping[str, float]]]
    weights_bytes: Optional[int]
    image_gb: float
    memory_gb: float
    clock_skew_seconds: float
    accepted_systems: Sequence[str]


def error(
    id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str, repair: Optional[str] = None
) -> Dict[str, Any]:
    """A finding that stops the run, unless a later stage repairs it (a key of `ascent.preflight.REPAIRS`)."""
    return _finding(id, "error", host, summary, evidence, cause, fix, repair)


def warning(
    id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str, repair: Optional[str] = None
) -> Dict[str, Any]:
    """A finding that is told and stops nothing."""
    return _finding(id, "warning", host, summary, evidence, cause, fix, repair)


def info(id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    """A finding that is worth knowing, and nothing to repair."""
    return _finding(id, "info", host, summary, evidence, cause, fix, None)


def _finding(
    id: str,
    severity: str,
    host: Optional[str],
    summary: str,
    evidence: str,
    cause: str,
    fix: str,
    repair: Optional[str],
) -> Dict[str, Any]:
    found = finding(id, severity, summary, host=host, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)
    return {**found, "repair": repair}


def listed(values: Iterable[Any]) -> str:
    """The first of the values, and how many more there are."""
    words = [str(value) for value in values]
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def part(node: Optional[Facts], *keys: str) -> Dict[str, Any]:
    """A part of the facts, empty where it was not read."""
    found: Any = node
    for key in keys:
        found = (found or {}).get(key)
    return found or {}


def running(node: Facts) -> bool:
    """Whether containers or units of this cluster run on the node, those between two starts of theirs included."""
    return any(one.get("state") in ("running", "restarting") for one in running_of(node))


def is_ours(node: Facts, pid: Any) -> bool:
    """Whether a process is one of this cluster's; true where the cluster runs and nobody knows whose it is.

    One that ended while the node was read is nobody's: an engine that starts again and again leaves such.
    """
    owner = part(node, "processes").get(str(pid))
    if owner is None:
        return running(node)
    return bool({one.get("name") for one in running_of(node)} & {owner.get("container"), owner.get("unit")})


def chips_are(vendor: str, host: Facts) -> bool:
    """Whether a host of the plan lends devices of this vendor (``ascend``, ``nvidia``) to it."""
    return bool(host["devices"]) and host["vendor"] == vendor


def container(process: Facts) -> Mapping[str, Any]:
    """The options of a process's container; empty for a process that runs on the host itself."""
    return process.get("container") or {}


def images_of_engine(plan: Facts) -> List[str]:
    """The engine's images, one for each hardware; none where it runs outside containers."""
    engine = plan["engine"]
    return [str(one) for one in engine.get("images") or [engine.get("image")] if one]


def holder(node: Facts, pid: Any) -> str:
    """A process in words: its pid, its command, and the container or the unit it runs in."""
    known = part(node, "processes").get(str(pid)) or {}
    command = f" ({known['command']})" if known.get("command") else ""
    where = next((f" in {kind} {known[kind]}" for kind in ("container", "unit") if known.get(kind)), "")
    return f"pid {pid}{command}{where}"


def gib(size_in_mb: float) -> str:
    """MB in words."""
    return f"{size_in_mb / 1024:.1f} GiB"
