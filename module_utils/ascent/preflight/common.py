"""What the checks of preflight share: findings of their stage, and parts of a node's facts."""

from __future__ import annotations

__all__ = [
    "ARCHITECTURES",
    "SHOWN",
    "STAGE",
    "Facts",
    "Findings",
    "error",
    "has_npus",
    "listed",
    "part",
    "running",
    "warning",
]

from typing import Any, Dict, Iterable, List, Mapping, Optional

from ..findings import finding

STAGE = "preflight"
#: CPU architectures by other names to what ``uname -m`` prints.
ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}
#: Of a long list as many entries are told.
SHOWN = 8

Facts = Mapping[str, Any]
Findings = List[Dict[str, Any]]


def error(id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    """A finding that stops the run."""
    return finding(id, "error", summary, host=host, stage=STAGE, evidence=evidence, cause=cause, fix=fix)


def warning(id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    """A finding that is told and stops nothing."""
    return finding(id, "warning", summary, host=host, stage=STAGE, evidence=evidence, cause=cause, fix=fix)


def listed(values: Iterable[Any]) -> str:
    """The first of the values, and how many more there are."""
    words = [str(value) for value in values]
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def part(node: Facts, *keys: str) -> Dict[str, Any]:
    """A part of the facts, empty where it was not read."""
    found: Any = node
    for key in keys:
        found = (found or {}).get(key)
    return found or {}


def running(node: Facts) -> bool:
    """Whether containers of this cluster run on the node."""
    return any(one.get("state") == "running" for one in part(node, "container_engine").get("containers", ()))


def has_npus(host: Facts) -> bool:
    """Whether the devices of a host of the plan are NPUs, which npu-smi lists and a driver of their own runs."""
    return bool(host["vendor"] == "ascend")
