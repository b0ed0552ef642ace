"""What a launch plan asks of the hosts beneath it, for the role host_tuning."""

from __future__ import annotations

__all__ = ["host_names", "needs"]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What a container gets of its own where the recipe names no size; a process that shares the host's wants as much.
_SHM_MB = 1024


def host_names(
    plan: Mapping[str, Any], names: Sequence[str], facts: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """``[{"address", "names"}]`` for every host of the plan: its name in the inventory and its own, if it has another.

    ``names`` are inventory names and ``facts`` the ``ansible_facts`` of each, in the same order.
    """
    own = {
        name: ((fact.get("ascent_node") or {}).get("system") or {}).get("hostname")
        for name, fact in zip(names, facts, strict=True)
    }
    return [
        {"address": host["node_ip"], "names": _distinct(name, own.get(name))}
        for name, host in plan["hosts"].items()
        if host["node_ip"]
    ]


def _distinct(name: str, hostname: str | None) -> list[str]:
    full = hostname or ""
    candidates = [name, full, full.partition(".")[0]]
    return [one for one in dict.fromkeys(candidates) if one and not one.replace(".", "").isdigit()]


def needs(
    plan: Mapping[str, Any], host: str, node: Mapping[str, Any] | None, hosts: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The role's ``host_tuning_plan`` for one host: what the plan's processes on it ask for.

    ``node`` is the host's ``ascent_node`` fact, ``hosts`` what `host_names` gave.
    """
    planned = plan["hosts"][host]
    mine = [process for process in plan["processes"] if process["host"] == host]
    shared = [process for process in mine if process["devices"] and _shares_memory(process.get("container"))]
    npus = (((node or {}).get("npu") or {}).get("info") or {}).get("devices") or []
    return {
        "reserved_ports": list(planned["reserved_ports"]),
        "shm_mb": _SHM_MB * len(shared),
        "hosts": list(hosts),
        "addresses": [one["node_ip"] for one in plan["hosts"].values() if one["node_ip"]],
        "endpoint_ports": sorted(_endpoint_ports(plan, host)),
        "nic": planned["nic"] or "",
        "npu_buses": sorted({device["bus_id"] for device in npus if device.get("bus_id")}),
        "jemalloc": any(
            not process.get("container") and any(one["name"] == "LD_PRELOAD" for one in process["env"])
            for process in mine
        ),
    }


def _shares_memory(container: Mapping[str, Any] | None) -> bool:
    """Whether a process uses the host's own /dev/shm: with the host's IPC, or outside any container."""
    return not container or container.get("ipc") == "host"


def _endpoint_ports(plan: Mapping[str, Any], host: str) -> set[str]:
    """Ports on this host that clients ask: the plan's endpoint, or those of all instances where there is no router."""
    address = plan["hosts"][host]["node_ip"]
    if plan["endpoint"] is None:
        return set()
    process = next(one for one in plan["processes"] if one["name"] == plan["endpoint"]["process"])
    routed = process["role"] == "router"
    urls = [plan["endpoint"]["url"]]
    if not routed:
        urls += [one["url"] for instance in plan["instances"] for one in instance["endpoints"]]
    found = {tuple(url.split("//", 1)[1].split("/", 1)[0].rsplit(":", 1)) for url in urls}
    return {port for where, port in found if where == address}
