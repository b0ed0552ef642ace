"""Whether a host's network is as planned: interface and address, free ports, no proxy in the way."""

from __future__ import annotations

__all__ = ["check"]

import ipaddress
import re
from typing import Dict, Iterable, List, Set, Tuple

from .common import SHOWN, Facts, Findings, error, listed, part, running, warning


def check(plan: Facts, host: str, node: Facts) -> Findings:
    """What stands against the network of one host."""
    return _interfaces(plan, host, node) + _ports(plan, host, node) + _proxies(plan, host, node)


def _interfaces(plan: Facts, host: str, node: Facts) -> Findings:
    """The planned address has to be on the planned interface."""
    addresses = part(node, "network").get("addresses")
    planned = plan["hosts"][host]
    if not addresses or not planned.get("node_ip"):
        return []
    owners = [one["nic"] for one in addresses if one["address"] == planned["node_ip"]]
    if owners and planned.get("nic") in (None, *owners):
        return []
    names = sorted({one["nic"] for one in addresses})
    told = f"{planned['node_ip']} is on {listed(owners)}" if owners else f"no interface has {planned['node_ip']}"
    return [
        error(
            "C07",
            host,
            f"{planned['nic'] or 'no interface'} of {host} does not carry {planned['node_ip']}",
            f"{told}; interfaces: {listed(names)}",
            "The interface's name or the address was copied from another server.",
            f"Correct nic and node_ip of {host} in the inventory, or leave them out to have them found.",
        )
    ]


def _planned_ports(plan: Facts, host: str) -> Dict[int, Tuple[str, str]]:
    """``{port: (process, name of the port)}`` of what this plan listens on."""
    ports = {}
    for process in plan["processes"]:
        if process["host"] == host:
            for port in process["ports"]:
                for number in range(int(port["first"]), int(port["first"]) + int(port["count"])):
                    ports[number] = (process["name"], str(port["name"]))
    return ports


def _ranges(text: Iterable[str]) -> List[Tuple[int, int]]:
    """Port ranges out of ``23010-23025`` and ``6884``."""
    found = re.findall(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ",".join(text))
    return [(int(first), int(last or first)) for first, last in found]


def _ports(plan: Facts, host: str, node: Facts) -> Findings:
    """Ports that somebody else listens on, and ports that the kernel may hand out to anybody."""
    found: Findings = []
    network = part(node, "network")
    planned = _planned_ports(plan, host)
    if not running(node):
        taken = sorted(set(planned) & set(network.get("listening", ())))
        by_fault: Dict[str, List[int]] = {}
        for port in taken:
            kind = planned[port][1]
            by_fault.setdefault({"dp-rpc": "D02", "kv": "E01"}.get(kind, "D01"), []).append(port)
        found += [
            error(
                fault,
                host,
                f"somebody already listens on {'ports' if len(ports) > 1 else 'port'} {listed(ports)} of {host}",
                "; ".join(f"{port} is {planned[port][1]} of {planned[port][0]}" for port in ports[:SHOWN]),
                "An instance from before, or another service on this host.",
                f"ss -ltnp on {host} names the owner; stop it, or give the pool another port in the recipe.",
            )
            for fault, ports in sorted(by_fault.items())
        ]
    ephemeral = network.get("ephemeral")
    if ephemeral:
        reserved = _ranges([network.get("reserved") or ""])
        wanted = [(port, port) for port in planned] + _ranges(plan["hosts"][host].get("reserved_ports", ()))
        loose: Set[int] = set()
        for first, last in wanted:
            inside = range(max(first, ephemeral[0]), min(last, ephemeral[1]) + 1)
            loose |= {port for port in inside if not any(low <= port <= high for low, high in reserved)}
        if loose:
            found.append(
                warning(
                    "ports-in-ephemeral-range",
                    host,
                    f"{len(loose)} ports of the plan on {host} may be handed out by the kernel before they are bound",
                    f"{listed(sorted(loose))}; ip_local_port_range {ephemeral[0]}-{ephemeral[1]}",
                    "The ports lie in the ephemeral range and are not reserved.",
                    "Run the tune stage, which adds them to net.ipv4.ip_local_reserved_ports.",
                )
            )
    return found


def _covered(address: str, no_proxy: str) -> bool:
    """Whether a ``no_proxy`` value keeps an address from the proxy, going by the forms that most clients know."""
    for word in re.split(r"[,\s]+", no_proxy.strip()):
        if word in ("*", address):
            return True
        try:
            if "/" in word and ipaddress.ip_address(address) in ipaddress.ip_network(word, strict=False):
                return True
        except ValueError:
            continue
    return False


def _proxies(plan: Facts, host: str, node: Facts) -> Findings:
    """Proxy variables that would catch requests to the cluster's own addresses."""
    proxies = part(node, "system", "proxies")
    used = sorted(name for name in proxies if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
    no_proxy = ",".join(value for name, value in proxies.items() if name.lower() == "no_proxy")
    addresses = [one["node_ip"] for one in plan["hosts"].values() if one.get("node_ip")]
    caught = [address for address in addresses if not _covered(address, no_proxy)]
    if not used or not caught:
        return []
    return [
        warning(
            "D11",
            host,
            f"{listed(used)} of {host} catches requests to the cluster's own addresses",
            f"{used[0]}={proxies[used[0]]}; not in no_proxy: {listed(caught)}",
            "The site's proxy is set for logins or for all containers, without an exception for the cluster.",
            f"Add {','.join(caught)} to no_proxy and NO_PROXY on {host}.",
        )
    ]
