"""Whether a plan can work on the nodes as they are: every reason why not, before anything is touched. Pure.

Ids are those of the fault catalogue where one fits. On a node where containers of the cluster run, their ports, their
HBM and their processes are what they should be, and nothing of it is a finding.
"""

from __future__ import annotations

__all__ = ["PROVIDERS", "clock_offsets", "judge"]

from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence

from ..findings import sort_findings
from . import cluster, devices, network, weights
from . import host as hosts
from . import versions as releases
from .cluster import clock_offsets
from .common import Findings, error

#: What later stages bring by themselves, with the ids that are no errors then.
PROVIDERS = {
    "driver": ("A01", "A05", "A07", "A08", "A10", "A20", "B09"),
    "weights": ("D17",),
    "container_engine": ("container-engine",),
    "tuning": ("ports-in-ephemeral-range",),
}


def _soften(found: Findings, provides: Collection[str]) -> Findings:
    """Findings that a later stage of this run mends are told, but stop nothing."""
    unknown = sorted(set(provides) - set(PROVIDERS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(PROVIDERS)}")
    mended = {fault: name for name in provides for fault in PROVIDERS[name]}
    return [
        {**item, "severity": "info", "fix": f"Nothing: a later stage brings the {mended[item['id']]}."}
        if item["id"] in mended
        else item
        for item in found
    ]


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    versions: Optional[Mapping[str, Any]] = None,
    *,
    offsets: Optional[Mapping[str, Mapping[str, float]]] = None,
    image_gb: float = 30,
    memory_gb: float = 8,
    clock_skew_seconds: float = 1.0,
    provides: Sequence[str] = (),
) -> List[Dict[str, Any]]:
    """All findings of the plan against its nodes, worst first.

    ``nodes`` maps each host of the plan to its ``ascent_node`` fact, None when it could not be read. ``versions`` is
    the content of ``catalog/versions/<engine>.yml``. ``offsets`` come from `clock_offsets`. ``image_gb`` is the free
    space in GiB that an image needs which no generation of the node had yet. ``provides`` names what a later stage
    brings (keys of `PROVIDERS`); what it mends is then ``info``. ValueError for an unknown name there.
    """
    found = hosts.of_plan(plan, nodes)
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
        found += hosts.check(plan, host, node, image_gb, memory_gb)
        found += network.check(plan, host, node)
        found += devices.check(plan, host, node)
        found += releases.check(plan, host, node, versions)
        found += weights.check(host, node)
    found += cluster.check(plan, nodes, offsets, clock_skew_seconds)
    return sort_findings(_soften(found, provides))
