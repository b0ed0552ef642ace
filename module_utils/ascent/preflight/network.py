"""Whether a host's network is as planned: interface and address, names, free ports, nothing in the way."""

from __future__ import annotations

__all__ = ["check"]

import ipaddress
import re
from typing import Dict, Iterable, List, Set, Tuple

from ..generations import running_of
from .common import SHOWN, Context, Facts, Findings, container, error, holder, is_ours, listed, part, warning


def check(context: Context, host: str, node: Facts) -> Findings:
    """What stands against the network of one host."""
    plan = context.plan
    return [
        *_interfaces(plan, host, node),
        *_names(plan, host, node),
        *_ports(plan, host, node),
        *_proxies(plan, host, node),
        *_filters(plan, host, node),
        *_selinux(plan, host, node),
    ]


def _interfaces(plan: Facts, host: str, node: Facts) -> Findings:
    """The planned address has to be on the planned interface."""
    addresses = part(node, "network").get("addresses")
    planned = plan["hosts"][host]
    if not addresses or not planned.get("node_ip"):
        return []
    owners = [one["nic"] for one in addresses if one["address"] == planned["node_ip"]]
    if owners and planned.get("nic") in (None, *owners):
        return _link(host, planned.get("nic") or owners[0], node)
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


def _link(host: str, nic: str, node: Facts) -> Findings:
    """The planned interface has to be up."""
    state = (part(node, "network", "nics").get(nic) or {}).get("state")
    if state not in ("down", "lowerlayerdown", "notpresent"):
        return []
    return [
        error(
            "C07",
            host,
            f"{nic} of {host} has the planned address, and no link",
            f"/sys/class/net/{nic}/operstate: {state}",
            "A cable or the switch's port is off, or another interface was meant.",
            f"ip link set {nic} up; ethtool {nic}; or correct nic of {host} in the inventory.",
        )
    ]


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _names(plan: Facts, host: str, node: Facts) -> Findings:
    """The host's own name must not lead to itself alone, and its peers' names, where known, to their addresses."""
    system = part(node, "system")
    names = system.get("names")
    if not names or len(plan["hosts"]) < 2:
        return []
    own = str(system.get("hostname"))
    found = []
    addresses = names.get(own)
    if addresses and any(_loopback(one) for one in addresses):
        found.append(
            warning(
                "D08",
                host,
                f"the name {own} of {host} leads to {listed(addresses)}",
                f"planned: {plan['hosts'][host].get('node_ip')}; /etc/hosts, or the name service",
                "Installers of some distributions write the host's name beside 127.0.1.1.",
                f"Map {own} to {plan['hosts'][host].get('node_ip')} in /etc/hosts of {host}.",
                "host_names",
            )
        )
    peers = {name: one for name, one in names.items() if name not in (own, host) and name in plan["hosts"]}
    elsewhere = {
        name: one
        for name, one in peers.items()
        if one and plan["hosts"][name].get("node_ip") and plan["hosts"][name]["node_ip"] not in one
    }
    if elsewhere:
        found.append(
            warning(
                "name-elsewhere",
                host,
                f"on {host}, names of nodes lead to other addresses than the plan's: {listed(elsewhere)}",
                "; ".join(
                    f"{name}: {listed(one)}, planned {plan['hosts'][name]['node_ip']}"
                    for name, one in list(elsewhere.items())[:SHOWN]
                ),
                "An old entry of /etc/hosts, or a name service that knows another network of the node.",
                "Correct the entries; tools that go by names (MPI, ssh, Ray's pages) would talk to somebody else.",
                "host_names",
            )
        )
    unknown = [name for name, one in {own: addresses, **peers}.items() if one == []]
    silent = [name for name, one in names.items() if one is None]
    if silent or own in unknown or (unknown and len(unknown) < len(peers)):
        found.append(
            warning(
                "D10",
                host,
                f"names do not resolve on {host}: {listed(silent or unknown)}",
                "no answer from the name service" if silent else "neither /etc/hosts nor a name service knows them",
                "The mapping of names was not written on every node, or the name service is down.",
                "Add all nodes to /etc/hosts, or mend /etc/resolv.conf.",
                "host_names",
            )
        )
    return found


def _planned_ports(plan: Facts, host: str) -> Dict[int, Tuple[str, str]]:
    """``{port: (process, name of the port)}`` of what this plan listens on."""
    ports = {}
    for process in plan["processes"]:
        if process["host"] == host:
            for port in process["ports"]:
                for number in range(int(port["first"]), int(port["first"]) + int(port["count"])):
                    ports[number] = (process["name"], str(port["name"]))
    return ports


def _held(node: Facts, port: int) -> str:
    """Who listens on a port, as far as it was found."""
    pid = part(node, "network", "owners").get(str(port))
    return "" if pid is None else f", held by {holder(node, pid)}"


def _is_ours(node: Facts, port: int) -> bool:
    """Whether this cluster runs here and holds a port itself; true where it runs and nobody knows who does."""
    # What a container publishes, the container engine listens on for it.
    published = {one for mine in running_of(node) if mine["state"] == "running" for one in mine.get("published") or ()}
    return port in published or is_ours(node, part(node, "network", "owners").get(str(port)))


def _ranges(text: Iterable[str]) -> List[Tuple[int, int]]:
    """Port ranges out of ``23010-23025`` and ``6884``."""
    found = re.findall(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ",".join(text))
    return [(int(first), int(last or first)) for first, last in found]


def _ports(plan: Facts, host: str, node: Facts) -> Findings:
    """Ports that somebody else listens on, and ports that the kernel may hand out to anybody."""
    found: Findings = []
    network = part(node, "network")
    planned = _planned_ports(plan, host)
    taken = sorted(one for one in set(planned) & set(network.get("listening", ())) if not _is_ours(node, one))
    by_fault: Dict[str, List[int]] = {}
    for port in taken:
        kind = planned[port][1]
        by_fault.setdefault({"dp-rpc": "D02", "kv": "E01"}.get(kind, "D01"), []).append(port)
    found += [
        error(
            fault,
            host,
            f"somebody already listens on {'ports' if len(ports) > 1 else 'port'} {listed(ports)} of {host}",
            "; ".join(
                f"{port} is {planned[port][1]} of {planned[port][0]}" + _held(node, port) for port in ports[:SHOWN]
            ),
            "An instance from before, or another service on this host.",
            f"Stop it on {host} (ss -ltnp), or give the pool another port in the recipe.",
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
                    "reserved_ports",
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


def _filters(plan: Facts, host: str, node: Facts) -> Findings:
    """A packet filter that may stand between the nodes."""
    filters = part(node, "system").get("filters")
    if not filters or len(plan["hosts"]) < 2:
        return []
    return [
        warning(
            "D12",
            host,
            f"{listed(filters)} of {host} filters packets",
            "firewalld.service has processes" if "firewalld" in filters else "/etc/ufw/ufw.conf: ENABLED=yes",
            "Its default rules let nodes reach each other for ssh alone; pings still pass.",
            f"Open {listed(plan['hosts'][host].get('reserved_ports', ()))} and the ephemeral ports to the other nodes.",
            "firewall",
        )
    ]


def _selinux(plan: Facts, host: str, node: Facts) -> Findings:
    """SELinux against containers that see the host's directories without being privileged."""
    mine = [
        one["name"]
        for one in plan["processes"]
        if one["host"] == host and container(one).get("mounts") and not container(one).get("privileged")
    ]
    if part(node, "system").get("selinux") != "enforcing" or not mine:
        return []
    return [
        warning(
            "selinux-enforcing",
            host,
            f"SELinux of {host} may refuse containers the host's files and devices",
            f"/sys/fs/selinux/enforce is 1; not privileged: {listed(mine)}",
            "Mounted directories keep their labels, which the policy for containers does not know.",
            "setenforce 0 and SELINUX=permissive in /etc/selinux/config; or labels and a policy of the site's own.",
        )
    ]
