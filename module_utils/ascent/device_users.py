"""Who uses the NPUs of a host: processes and containers, by all ways in which that shows."""

from __future__ import annotations

__all__ = ["describe", "find"]

import json
import os
from typing import Any, Dict, Iterable, List, Mapping, Optional

from . import command, holders, npu_smi
from .errors import AscentError
from .node import Node


def find(node: Node, program: str = "docker", tool: Optional[str] = "/usr/local/bin/npu-smi") -> List[Dict[str, Any]]:
    """Everyone, as ``{"pid", "name", "container", "cluster", "process"}``; by container, then by pid.

    Found are processes that have a device file open or that ``npu-smi`` lists, and running containers that were given
    devices. ``cluster`` and ``process`` are the container's labels ``ascent.cluster`` and ``ascent.process``; what is
    not known is None.
    """
    containers = _containers(node, program)
    users: Dict[Any, Dict[str, Any]] = {}
    pids = {pid: _name(node, pid) for pid in holders.scan(node, ()).users}
    if tool and os.path.exists(node.path(tool)):
        pids.update({row["pid"]: row["name"] or _name(node, row["pid"]) for row in _listed(node, tool)})
    for pid, name in pids.items():
        container = containers.get(holders.container_of(node, pid) or "")
        users[pid] = {"pid": pid, "name": name, **_labels(container)}
    seen = {user["container"] for user in users.values()}
    for container in containers.values():
        labels = _labels(container)
        if _has_devices(container) and labels["container"] not in seen:
            users[labels["container"]] = {"pid": None, "name": None, **labels}
    return sorted(users.values(), key=lambda user: (str(user["container"] or ""), user["pid"] or 0))


def describe(users: Iterable[Mapping[str, Any]]) -> str:
    """Users in words: pid, name, container, and which process of which cluster it is.

    >>> describe([{"pid": 7, "name": "vllm", "container": "a", "cluster": "c1", "process": "decode-0-head"}])
    'pid 7 (vllm) in container a (decode-0-head of c1)'
    """
    words = []
    for user in users:
        parts = []
        if user["pid"] is not None:
            parts.append(f"pid {user['pid']}" + (f" ({user['name']})" if user["name"] else ""))
        if user["container"]:
            parts.append(f"container {user['container']}")
        text = " in ".join(parts)
        words.append(f"{text} ({user['process']} of {user['cluster']})" if user["process"] else text)
    return "; ".join(words)


def _listed(node: Node, tool: str) -> List[Dict[str, Any]]:
    """The process table of ``npu-smi info``; empty where the tool does not answer, which is no news about users."""
    _, out, _ = node.run(tool, "info")
    try:
        return list(npu_smi.parse_info(out)["processes"])
    except AscentError:
        return []


def _name(node: Node, pid: int) -> Optional[str]:
    return (node.text(f"/proc/{pid}/comm") or "").strip() or None


def _containers(node: Node, program: str) -> Dict[str, Dict[str, Any]]:
    """Running containers by id, as the engine describes them; none without an engine or while it does not run."""
    code, out, _ = node.run(program, "ps", "--quiet", "--no-trunc")
    ids = out.split() if code == 0 else []
    if not ids or code == command.MISSING:
        return {}
    _, out, _ = node.run(program, "inspect", *ids)
    try:
        return {str(one["Id"]): one for one in json.loads(out or "[]")}
    except (KeyError, TypeError, ValueError):
        return {}


def _labels(container: Optional[Mapping[str, Any]]) -> Dict[str, Optional[str]]:
    labels = ((container or {}).get("Config") or {}).get("Labels") or {}
    name = str((container or {}).get("Name") or "").lstrip("/")
    return {"container": name or None, "cluster": labels.get("ascent.cluster"), "process": labels.get("ascent.process")}


def _has_devices(container: Mapping[str, Any]) -> bool:
    devices = (container.get("HostConfig") or {}).get("Devices") or []
    return any(holders.is_device(str(device.get("PathOnHost"))) for device in devices)
