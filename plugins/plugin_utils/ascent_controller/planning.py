"""From a recipe's name and a list of hosts to a plan and all findings: loader, rules and planner in one call."""

from __future__ import annotations

__all__ = ["STAND_IN_ARCH", "complete_host", "memory", "memory_lines", "prepare", "stand_ins"]

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
    guard: Mapping[str, Any] | None = None,
    root: Path = loader.ROOT,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Plan and findings.

    ``recipe`` is a name or a path, ``hosts`` as `planner.plan` takes them, ``sources`` the inventory's files, in which
    findings about hosts are located, ``guard`` how clients are let in (`planner.plan`). The plan is None as soon as any
    finding is an error.
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
            plan = planner.plan(
                inputs.recipe, inputs.hardware, hosts, cluster=cluster, mirror=mirror, cache=cache, guard=guard
            )
            broken = judge(plan)
    findings = sort_findings([{**item, "stage": "plan"} for item in findings + broken])
    return (None if failed(findings) else plan), findings


def memory(recipe: str, hosts: Sequence[Mapping[str, Any]], root: Path = loader.ROOT) -> dict[str, dict[str, Any]]:
    """The memory estimate of every pool of a recipe that can be planned (`rules.memory_metrics`)."""
    inputs = loader.load(recipe, root)
    return rules.memory_metrics(inputs.recipe or {}, inputs.hardware, hosts, inputs.model)


def memory_lines(estimates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The estimates as sentences, one a pool, each with its arithmetic.

    >>> memory_lines({"serve": {"known": False, "reason": "no device memory"}})
    ['memory of one device of pool serve: not estimated, no device memory']
    """
    return [
        f"memory of one device of pool {pool}: "
        + (str(one["arithmetic"]) if one["known"] else f"not estimated, {one['reason']}")
        for pool, one in estimates.items()
    ]


def complete_host(host: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """A host with ``node_ip``, ``nic`` and ``arch`` filled in from what the node told (``ascent_node``), where missing.

    Values of the inventory are never replaced, but ``arm64`` and ``amd64`` are spelled as the kernel does. The address
    is ``ansible_host`` if that is one of the node's addresses, else the node's only address that is not its loopback;
    if neither is clear it stays out.
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
    machine = result.get("arch") or ((facts or {}).get("system") or {}).get("machine")
    if machine:
        result["arch"] = MACHINES.get(machine, machine)
    return result


#: Names that container engines give to CPU architectures -> those of `uname -m`, by which libraries are laid out.
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


#: CPU architecture of stand-in hosts, unless told otherwise.
STAND_IN_ARCH = "aarch64"


def stand_ins(wanted: Any, *, arch: str = STAND_IN_ARCH, nic: str = "eth0") -> list[dict[str, Any]]:
    """Hosts that nobody has, to render a recipe without an inventory.

    ``wanted`` is a number, or a mapping of hardware profiles to numbers. Addresses are those set aside for
    documentation, then for test networks. Raises ValueError for anything else and for more than 100,000 hosts.

    >>> [host["node_ip"] for host in stand_ins({"atlas-800-a2": 1, "atlas-800-a3": 1})]
    ['192.0.2.1', '192.0.2.2']
    """
    counts: list[tuple[Any, Any]] = list(wanted.items()) if isinstance(wanted, Mapping) else [(None, wanted)]
    kinds: list[str | None] = []
    for kind, count in counts:
        text = str(count)
        if isinstance(count, bool) or not text.isdecimal() or not 1 <= int(text) <= 100_000:
            raise ValueError(f"{count!r} is no number of hosts; wanted: a number from 1, or hardware: number")
        kinds += [kind] * int(text)
    if len(kinds) > 100_000:
        raise ValueError(f"{len(kinds)} hosts are more than the 100000 there are addresses for")
    width = max(2, len(str(len(kinds))))
    return [
        {
            "name": f"node-{number:0{width}}",
            "node_ip": _address(number),
            "nic": nic,
            "arch": arch,
            **({"hardware": kind} if kind else {}),
        }
        for number, kind in enumerate(kinds, 1)
    ]


def _address(number: int) -> str:
    """The n-th address, from 1, of 192.0.2.0/24, 198.51.100.0/24 and 203.0.113.0/24 (RFC 5737), then 198.18.0.0/15."""
    for network in ("192.0.2.0", "198.51.100.0", "203.0.113.0"):
        if number <= 254:
            return str(ipaddress.IPv4Address(network) + number)
        number -= 254
    return str(ipaddress.IPv4Address("198.18.0.0") + number)


def _reachable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local)
