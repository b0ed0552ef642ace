"""Judges the hosts' own network as the engines will use it: the planned NIC, and what environment variables name."""

from __future__ import annotations

__all__ = ["judge", "matches"]

import ipaddress
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from .common import Findings, found

#: Variables that name network interfaces, and whether a name is the beginning of others (HCCL, NCCL) or exact.
_NAMES = {
    "HCCL_SOCKET_IFNAME": True,
    "NCCL_SOCKET_IFNAME": True,
    "GLOO_SOCKET_IFNAME": False,
    "TP_SOCKET_IFNAME": False,
}
#: Variables that name RDMA devices: ``mlx5_0:1``, for NCCL with the same prefix rules, for UCX exact.
_ADAPTERS = {"NCCL_IB_HCA": True, "UCX_NET_DEVICES": False}
_ADDRESSES = ("HCCL_IF_IP", "VLLM_HOST_IP")
_ACTIVE = "ACTIVE"

_Node = Optional[Mapping[str, Any]]


def matches(value: str, names: Sequence[str], prefix: bool) -> List[str]:
    """The names that a variable's value takes.

    With ``prefix`` a word takes all names that begin with it, ``=`` before them makes them exact, ``^`` excludes them.

    >>> matches("eth1", ["eth1", "eth10", "lo"], True), matches("=eth1", ["eth1", "eth10"], True)
    (['eth1', 'eth10'], ['eth1'])
    >>> matches("^lo,docker", ["eth1", "docker0", "lo"], True), matches("eth", ["eth1"], False)
    (['eth1'], [])
    """
    exclude = prefix and value.startswith("^")
    rest = value[1:] if exclude else value
    exact = not prefix or rest.startswith("=")
    words = [
        word.strip() for word in (rest[1:] if prefix and rest.startswith("=") else rest).split(",") if word.strip()
    ]
    taken = [name for name in names if any(name == word if exact else name.startswith(word) for word in words)]
    return [name for name in names if name not in taken] if exclude else taken


def judge(plan: Mapping[str, Any], nodes: Mapping[str, _Node]) -> Findings:
    """Findings on the hosts that were read; ``nodes`` maps a host to its ``ascent_node`` or None."""
    findings: Findings = []
    for host, planned in plan["hosts"].items():
        network = (nodes.get(host) or {}).get("network")
        if not network or network.get("error"):
            continue
        wrong = _planned_nic(host, planned, network)
        findings += wrong
        if not wrong:
            findings += _environment(plan, host, planned, network)
    return findings + _one_network(plan, nodes)


def _planned_nic(host: str, planned: Mapping[str, Any], network: Mapping[str, Any]) -> Findings:
    owners = [one["nic"] for one in network["addresses"] if one["address"] == planned["node_ip"]]
    if not planned.get("nic") or planned["nic"] in owners:
        return []
    nics = sorted({one["nic"] for one in network["addresses"]})
    return [
        found(
            "C07",
            "error",
            f"{planned['nic']} of {host} does not carry {planned['node_ip']}",
            host=host,
            evidence=(
                f"{planned['node_ip']} is on {', '.join(owners)}" if owners else f"nothing has {planned['node_ip']}"
            )
            + f"; interfaces: {', '.join(nics)}",
            cause="The interface's name or the address was copied from another server. *_SOCKET_IFNAME are made "
            "from it.",
            fix=f"Correct nic and node_ip of {host} in the inventory, or leave them out to have them found.",
        )
    ]


def _settings(plan: Mapping[str, Any], host: str) -> Dict[Tuple[str, str], List[str]]:
    """``{(variable, value): processes}`` of what engines on this host are given."""
    wanted = {*_NAMES, *_ADAPTERS, *_ADDRESSES}
    given: Dict[Tuple[str, str], List[str]] = {}
    for process in plan.get("processes", ()):
        if process["host"] != host:
            continue
        for one in process.get("env", ()):
            if one["name"] in wanted and one.get("value") not in (None, ""):
                given.setdefault((one["name"], str(one["value"])), []).append(process["name"])
    return given


def _environment(
    plan: Mapping[str, Any], host: str, planned: Mapping[str, Any], network: Mapping[str, Any]
) -> Findings:
    owned: Dict[str, Set[str]] = {}
    for one in network["addresses"]:
        owned.setdefault(one["nic"], set()).add(one["address"])
    given = _settings(plan, host)
    bound = {value for name, value in given if name == "HCCL_IF_IP"}
    findings: Findings = []
    for (name, value), processes in sorted(given.items()):
        if name in _ADDRESSES:
            # On a container network of its own an engine has another address than the host.
            if not any(value in addresses for addresses in owned.values()):
                findings.append(_unfit(host, name, value, processes, f"no interface of {host} has it"))
        elif name in _ADAPTERS:
            findings += _adapters(host, name, value, processes, network)
        else:
            taken = matches(value, sorted(owned), _NAMES[name])
            if not taken:
                findings.append(
                    found(
                        "C07",
                        "error",
                        f"{name}={value} fits no interface of {host}",
                        host=host,
                        evidence=f"interfaces: {', '.join(sorted(owned))}; processes {', '.join(processes)}",
                        cause="The name was copied from another server.",
                        fix=f"Leave {name} out of the recipe, so that it is made from the host's NIC, or give the "
                        "host its own nic.",
                    )
                )
            # HCCL_IF_IP outranks the name.
            elif not any(planned["node_ip"] in owned[nic] for nic in taken) and not (name.startswith("HCCL") and bound):
                findings.append(
                    _unfit(
                        host,
                        name,
                        value,
                        processes,
                        f"it takes {', '.join(taken)}, and {planned['node_ip']} is elsewhere",
                    )
                )
    return findings


def _unfit(host: str, name: str, value: str, processes: Sequence[str], why: str) -> Dict[str, Any]:
    return found(
        "D09",
        "error",
        f"{name}={value} does not fit the address of {host}",
        host=host,
        evidence=f"{why}; processes {', '.join(processes)}",
        cause="The variables that name interface and address were set apart from each other.",
        fix=f"Leave {name} out of the recipe: it is made from node_ip and nic of the host.",
    )


def _adapters(host: str, name: str, value: str, processes: Sequence[str], network: Mapping[str, Any]) -> Findings:
    """Names of RDMA devices, with an optional port (``mlx5_0:1``), and whether a port of each is up."""
    adapters = network.get("hcas")
    if adapters is None or value == "all":
        return []
    known = [one["name"] for one in adapters]
    bare = re.sub(r":[0-9]+(?=,|\Z)", "", value)
    nics = {one["nic"] for one in network["addresses"]}
    # UCX takes names of plain network interfaces too.
    words = [word for word in bare.lstrip("^=").split(",") if word not in nics]
    if not words:
        return []
    taken = matches(bare, known, _ADAPTERS[name])
    up = [one["name"] for one in adapters if any(port["state"] == _ACTIVE for port in one["ports"])]
    absent = [
        word for word in words if not any(one == word or (_ADAPTERS[name] and one.startswith(word)) for one in known)
    ]
    down = [one for one in taken if one not in up]
    if not bare.startswith("^") and absent:
        return [
            found(
                "nccl-hca-missing",
                "error",
                f"{name}={value} names RDMA devices that {host} does not have: {', '.join(absent)}",
                host=host,
                evidence=f"RDMA devices: {', '.join(known) or 'none'}; processes {', '.join(processes)}",
                cause="The names were copied from another server, or the RDMA driver is not loaded. NCCL then "
                "falls back to TCP.",
                fix=f"ibv_devinfo -l on {host}; give {name} as a variable of the host, or leave it out.",
            )
        ]
    if taken and down:
        return [
            found(
                "nccl-hca-down",
                "error" if len(down) == len(taken) else "warning",
                f"RDMA devices that {name} takes on {host} have no active port: {', '.join(down)}",
                host=host,
                evidence="; ".join(
                    f"{one['name']}: {', '.join(port['state'] or 'unknown' for port in one['ports']) or 'no port'}"
                    for one in adapters
                    if one["name"] in down
                ),
                cause="No cable, no subnet manager, or the port is off.",
                fix="ibstat; check the cable and, on InfiniBand, the subnet manager.",
            )
        ]
    return []


def _one_network(plan: Mapping[str, Any], nodes: Mapping[str, _Node]) -> Findings:
    """Hosts whose planned address is not in the network of the others, while another of their addresses is."""
    networks: Dict[str, Any] = {}
    others: Dict[str, List[Tuple[str, str, Any]]] = {}
    for host, planned in plan["hosts"].items():
        for one in ((nodes.get(host) or {}).get("network") or {}).get("addresses") or ():
            network = ipaddress.ip_interface(f"{one['address']}/{one['prefix']}").network
            if one["address"] == planned["node_ip"]:
                networks[host] = network
            elif not ipaddress.ip_address(one["address"]).is_loopback:
                others.setdefault(host, []).append((one["nic"], one["address"], network))
    findings: Findings = []
    for host, network in networks.items():
        rest = {other for name, other in networks.items() if name != host}
        if len(rest) != 1 or network in rest or network.num_addresses == 1:
            continue
        better = [(nic, address) for nic, address, other in others.get(host, ()) if other in rest]
        if better and len(networks) > 2:
            findings.append(
                found(
                    "node-network-differs",
                    "warning",
                    f"{host} is planned with an address of another network than the other hosts",
                    host=host,
                    evidence=f"{plan['hosts'][host]['node_ip']} is in {network}, the others in {rest.pop()}; "
                    + ", ".join(f"{nic} has {address}" for nic, address in better),
                    cause="The address of a management or storage network was put into the inventory.",
                    fix=f"Set node_ip of {host} to its address in the network of the others.",
                )
            )
    return findings
