"""Why a block went to its rescue, from what Ansible remembers of it."""

from __future__ import annotations

__all__ = ["reasons"]

from collections.abc import Mapping, Sequence
from typing import Any

from ascent_controller import runs


def reasons(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], stage: str) -> list[dict[str, Any]]:
    """The errors that the failed task of each host told, each once; a task without findings gets one from its words."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for host in hosts:
        result = hostvars[host].get("ansible_failed_result")
        if not result:
            continue
        task = (hostvars[host].get("ansible_failed_task") or {}).get("name") or "a task"
        errors = [one for one in result.get("findings") or () if one["severity"] == "error"]
        for one in errors or [runs.failure(stage, host, task, "failed", result)]:
            found.setdefault((one["id"], one["summary"]), one)
    return list(found.values())
