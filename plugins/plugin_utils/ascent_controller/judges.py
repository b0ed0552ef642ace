"""The judges by name, for the action plugin ``judge``: each compares the plan with what the nodes told.

A judge takes ``(plan, nodes, **options)`` and returns ``{"findings": […]}`` with, as it likes, ``metrics`` and
``record`` for the run record and further keys for the tasks that follow. ``nodes`` maps every host of the plan to its
``ascent_node`` fact, or to None when it was not read.
"""

from __future__ import annotations

__all__ = ["JUDGES", "told"]

from collections.abc import Callable, Mapping
from typing import Any

from ascent.findings import failed, message, sort_findings

JUDGES: dict[str, Callable[..., Mapping[str, Any]]] = {}


def told(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict as a task result: worst finding first, failed when one is an error, and all errors in the message."""
    findings = sort_findings(verdict["findings"])
    return {
        **verdict,
        "changed": False,
        "findings": findings,
        "failed": failed(findings),
        "msg": message(findings) if failed(findings) else "nothing stands against it",
    }
