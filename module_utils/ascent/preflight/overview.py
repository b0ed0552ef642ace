"""The nodes in a table: what each of them is and has, and what was found."""

from __future__ import annotations

__all__ = ["COLUMNS", "table"]

from typing import Any, Dict, List, Mapping, Optional

from .common import Facts, part
from .devices import number_of

COLUMNS = ("host", "system", "kernel", "driver", "firmware", "devices", "HBM free", "memory", "disk", "clock", "found")
_MARKS = {"error": "error", "warning": "warning", "info": "note"}


def table(
    plan: Facts,
    nodes: Mapping[str, Optional[Facts]],
    findings: List[Dict[str, Any]],
    offsets: Optional[Mapping[str, Mapping[str, float]]],
) -> Dict[str, Any]:
    """``{"title", "columns", "rows"}`` with a row a host; what was not read shows as ``-``.

    The clock is told against the controller's, as closely as the reading allows. HBM is that of the planned devices
    together, memory and disk (where images lie) are what is free, all in GiB. What is about the cluster as a whole
    stands in no row.
    """
    rows = [_row(plan, host, nodes.get(host), findings, (offsets or {}).get(host)) for host in plan["hosts"]]
    return {"title": "Nodes before the run, free sizes in GiB", "columns": list(COLUMNS), "rows": rows}


def _row(
    plan: Facts, host: str, node: Optional[Facts], findings: List[Dict[str, Any]], offset: Optional[Mapping[str, float]]
) -> List[Any]:
    system, npu = part(node, "system"), part(node, "npu")
    os = part(system, "os")
    driver = part(npu, "driver").get("version") or part(node, "gpu").get("driver")
    root = part(node, "container_engine").get("data_root") or "/var/lib/docker"
    disk = part(node, "disk").get(root) or {}
    return [
        host,
        f"{os['id']} {os.get('version') or ''}".strip() if os.get("id") else None,
        system.get("kernel"),
        driver,
        part(npu, "firmware").get("version"),
        _devices(plan["hosts"][host], npu, part(node, "gpu")),
        _hbm(plan["hosts"][host], npu, part(node, "gpu")),
        _whole(system.get("memory_available_mb")),
        _whole(disk.get("free_mb")),
        f"{offset['offset']:+.1f} ±{offset['uncertainty']:.1f} s" if offset else None,
        _found(host, findings),
    ]


def _whole(size_in_mb: Optional[float]) -> Optional[int]:
    return None if size_in_mb is None else int(size_in_mb // 1024)


def _planned(planned: Facts, npu: Facts) -> List[Facts]:
    listed = part(npu, "info").get("devices") or ()
    return [one for position, one in enumerate(listed) if number_of(one, position) in planned["devices"]]


def _devices(planned: Facts, npu: Facts, gpu: Facts) -> Optional[str]:
    """Healthy devices of those that the plan uses."""
    wanted = len(planned["devices"])
    if not wanted:
        return None
    if gpu.get("devices"):
        return f"{len({one['index'] for one in gpu['devices']} & set(planned['devices']))}/{wanted}"
    if planned["vendor"] != "ascend":
        return None
    return f"{sum(one['health'] == 'OK' for one in _planned(planned, npu))}/{wanted}"


def _hbm(planned: Facts, npu: Facts, gpu: Facts) -> Optional[int]:
    if gpu.get("devices"):
        mine = [one for one in gpu["devices"] if one["index"] in planned["devices"]]
        free = [(one["memory_total_mb"] or 0) - (one["memory_used_mb"] or 0) for one in mine]
    else:
        free = [(one["hbm_total_mb"] or 0) - (one["hbm_used_mb"] or 0) for one in _planned(planned, npu)]
    return _whole(sum(free)) if free else None


def _found(host: str, findings: List[Dict[str, Any]]) -> str:
    """Errors by their ids, the rest by number."""
    mine = [one for one in findings if one["host"] == host]
    words = []
    for severity, word in _MARKS.items():
        some = [one for one in mine if one["severity"] == severity]
        if some and severity == "error":
            words.append(", ".join(dict.fromkeys(one["id"] for one in some)))
        elif some:
            words.append(f"{len(some)} {word}{'s' if len(some) > 1 else ''}")
    return "; ".join(words) or "ready"
