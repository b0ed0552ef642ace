"""From a recipe's name and a list of hosts to a plan and all findings: loader, rules and planner in one call."""

from __future__ import annotations

__all__ = ["complete_host", "prepare"]

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ascent import planner, rules
from ascent.errors import InputError
from ascent.findings import failed, sort_findings
from ascent_controller import loader

#: Findings that hold whatever the recipe is.
_OF_HOSTS = frozenset(("host-address-twice", "host-twice"))


def prepare(
    recipe: str,
    hosts: Sequence[Mapping[str, Any]],
    *,
    cluster: str,
    mirror: str = "",
    cache: str = planner.CACHE,
    sources: Iterable[str] = (),
    root: Path = loader.ROOT,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Plan and findings.

    ``recipe`` is a name or a path, ``hosts`` as `planner.plan` takes them, ``sources`` the inventory's files, in which
    findings about hosts are located. The plan is None as soon as any finding is an error.
    """
    positions, findings = loader.read_inventory(sources, [host["name"] for host in hosts], recipe, root)
    inputs = loader.load(recipe, root, positions)
    findings += inputs.findings
    plan = None
    # Without a recipe the hosts can still be wrong, and the operator wants to hear of it now.
    given = inputs.recipe if inputs.recipe is not None else {}

    def judge(candidate: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        found = rules.check(
            given,
            inputs.hardware,
            hosts,
            candidate,
            model=inputs.model,
            options=inputs.options,
            positions=inputs.positions,
        )
        if inputs.guessed is None:
            return found
        # The recipe's own conditions are noise while another one may be meant; what hosts and pools lack is not.
        return [
            {**item, "cause": f"if recipe {inputs.guessed} is meant"} if item["id"] not in _OF_HOSTS else item
            for item in found
            if item["severity"] == "error"
        ]

    broken = judge(None)
    if inputs.recipe is not None and not failed(findings):
        # Rules on ports need a plan, so it is made even if others are broken; a layout that can't be is among those.
        with contextlib.suppress(InputError):
            plan = planner.plan(inputs.recipe, inputs.hardware, hosts, cluster=cluster, mirror=mirror, cache=cache)
            broken = judge(plan)
    findings = sort_findings([{**item, "stage": "plan"} for item in findings + broken])
    return (None if failed(findings) else plan), findings


def complete_host(host: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """A host with ``node_ip``, ``nic`` and ``arch`` filled in from what the node told (``ascent_node``), where missing.

    Values of the inventory are never replaced. The address is ``ansible_host`` if that is one of the node's addresses,
    else the node's only address that is not its loopback; if neither is clear it stays out.
    """
    result = dict(host)
    network = (facts or {}).get("network") or {}
    addresses = {
        entry["address"]: entry["nic"] for entry in network.get("addresses", []) if _reachable(entry["address"])
    }
    if not result.get("node_ip"):
        if result.get("ansible_host") in addresses:
            result["node_ip"] = result["ansible_host"]
        elif len(addresses) == 1:
            result["node_ip"] = next(iter(addresses))
    if not result.get("nic") and result.get("node_ip") in addresses:
        result["nic"] = addresses[result["node_ip"]]
    if not result.get("arch"):
        machine = ((facts or {}).get("system") or {}).get("machine")
        if machine:
            result["arch"] = machine
    return result


def _reachable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local)
