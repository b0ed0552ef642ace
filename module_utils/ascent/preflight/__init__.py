"""Whether a plan can work on the nodes as they are: every reason why not, before anything is touched. Pure.

Ids are those of the fault catalogue where one fits; catalog/findings explains each. On a node where containers of the
cluster run, their ports, their HBM and their processes are what they should be, and nothing of it is a finding.
"""

from __future__ import annotations

__all__ = ["REPAIRS", "before_launch", "clock_offsets", "judge", "overview", "repairs"]

from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..findings import sort_findings
from . import cluster, devices, gpu, hccn, network, weights
from . import host as hosts
from . import versions as releases
from .cluster import clock_offsets
from .common import Context, Findings, error
from .overview import table as overview

#: What later stages of a run put right by themselves, in words that stand behind a summary.
REPAIRS = {
    "driver": "the stage provision installs driver and firmware from npu_driver_source",
    "cann": "the stage provision installs CANN from cann_source",
    "container_engine": "the stage provision installs and starts the container engine",
    "images": "the stage provision pulls the image",
    "weights": "the stage provision fetches the weights",
    "reserved_ports": "the stage tune reserves them",
    "host_names": "the stage tune writes all nodes into /etc/hosts",
    "firewall": "the stage tune opens the filter for the cluster",
    "shared_memory": "the stage tune makes /dev/shm larger",
    "time_service": "the stage tune has the clock follow the site's time servers",
}


def repairs(settings: Mapping[str, Any]) -> List[str]:
    """The `REPAIRS` that a run with these settings brings, in their order: those whose setting is on.

    ``settings`` has a value for each repair: a switch, or what it takes its artifacts from. A switch may come as text
    from a command line. ValueError for an unknown name.

    >>> repairs({"driver": "/srv/ascend", "cann": "", "container_engine": True, "weights": "false", "time_service": []})
    ['driver', 'container_engine']
    """
    _known(settings)
    off = ("", "false", "no", "off", "none", "0")
    return [name for name in REPAIRS if settings.get(name) and str(settings[name]).strip().lower() not in off]


def _known(names: Any) -> None:
    unknown = sorted(set(names) - set(REPAIRS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(REPAIRS)}")


def _settle(found: Findings, repaired: Sequence[str]) -> Findings:
    """Findings that a later stage of this run repairs are told, but stop nothing."""
    _known(repaired)
    settled = []
    for item in found:
        repair = item["repair"]
        told = {key: value for key, value in item.items() if key != "repair"}
        if repair in repaired:
            told.update(
                severity="info",
                summary=f"{item['summary']}; {REPAIRS[repair]}",
                fix=f"Nothing to do: {REPAIRS[repair]}.",
            )
        settled.append(told)
    return settled


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    versions: Optional[Mapping[str, Any]] = None,
    *,
    offsets: Optional[Mapping[str, Mapping[str, float]]] = None,
    weights_bytes: Optional[int] = None,
    image_gb: float = 30,
    memory_gb: float = 8,
    clock_skew_seconds: float = 1.0,
    accepted_systems: Sequence[str] = (),
    repaired: Sequence[str] = (),
) -> List[Dict[str, Any]]:
    """All findings of the plan against its nodes, worst first.

    ``nodes`` maps each host of the plan to its ``ascent_node`` fact, None when it could not be read. ``versions`` is
    the content of ``catalog/versions/<engine>.yml``. ``offsets`` come from `clock_offsets`. ``weights_bytes`` is the
    size of all the model's weights, None where it is not known. ``image_gb`` is the free space in GiB that an image
    needs which no node has, ``memory_gb`` the memory that every host has to have. ``accepted_systems`` are operating
    systems that the site vouches for, as ``debian 12``. ``repaired`` names what later stages put right (keys of
    `REPAIRS`); that is then ``info``. ValueError for an unknown name there.
    """
    context = Context(
        plan,
        nodes,
        versions,
        offsets,
        weights_bytes,
        image_gb,
        memory_gb,
        clock_skew_seconds,
        accepted_systems,
    )
    found = hosts.of_plan(context) + releases.of_plan(context)
    for host in plan["hosts"]:
        node = nodes.get(host)
        if node is None:
            found.append(
                error(
                    "host-unreadable",
                    host,
                    f"{host} could not be read",
                    "no facts from node_info",
                    "The host is down, or its ssh access does not work.",
                    f"ansible {host} -m ping; a plan needs all of its hosts, also under -l.",
                )
            )
            continue
        for room in (hosts, network, devices, gpu, hccn, releases, weights):
            found += room.check(context, host, node)
    found += cluster.check(context)
    return sort_findings(_settle(found, repaired))


def before_launch(
    plan: Mapping[str, Any], nodes: Mapping[str, Optional[Mapping[str, Any]]], *, provisioned: bool
) -> List[Dict[str, Any]]:
    """What would fail in the middle of a launch, for runs that leave preflight out; worst first.

    Devices that somebody else holds, and hosts without a container engine that can be asked. ``nodes`` as for `judge`.
    With ``provisioned`` the facts on container engines are from before this run looked after them, and do not count.
    """
    found: Findings = []
    for host in plan["hosts"]:
        node = nodes.get(host)
        if node is not None:
            found += devices.occupied(plan, host, node)
            found += [] if provisioned else hosts.container_engine(plan, host, node)
    return sort_findings([{**item, "stage": "launch"} for item in _settle(found, ())])
