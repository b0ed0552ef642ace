"""Judging the hosts' own network: ports, names, packet sizes, and the network cards that the plan names. Pure."""

from __future__ import annotations

__all__ = ["judge"]

import collections
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from .. import preflight
from ..findings import finding

_STAGE = "verify"
_SHOWN = 6
#: What to do about a connection by how it ended.
_FIXES = {
    "timeout": "A packet filter drops it: nft list ruleset (or iptables -S) on {to}, and filters between the hosts.",
    "refused": "Something rejects it: nft list ruleset (or iptables -S) on {to}.",
    "unreachable": "There is no way from one to the other: ip route get {address}.",
    "stranger": "The address is another machine's as well: arping -D {address}, and translated addresses in between.",
    "failed": "Try by hand: nc -vz {address} {port}.",
}
#: Uses whose findings have an id of the catalogue.
_IDS = {"dp-rpc": "D03", "ray": "F05", "kv-store": "E06"}

_Told = Mapping[str, Optional[Mapping[str, Any]]]
_Findings = List[Dict[str, Any]]


def _error(
    id: str, summary: str, host: Optional[str], evidence: str, cause: str, fix: str, severity: str = "error"
) -> Dict[str, Any]:
    return finding(id, severity, summary, host=host, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def _cards(plan: Mapping[str, Any], told: _Told) -> Tuple[_Findings, Set[str]]:
    """Network cards that are not there, have no address, or one that the other hosts can't use; and their hosts."""
    findings: _Findings = []
    hosts: Set[str] = set()
    for host, one in told.items():
        for name, card in sorted(((one or {}).get("nics") or {}).items()):
            own = plan["hosts"][host]["node_ip"]
            if card["address"] == own:
                continue
            what = (
                "does not exist"
                if card["name"] is None
                else "has no IPv4 address"
                if card["address"] is None
                else f"has the address {card['address']}, not the host's {own}"
            )
            hosts.add(host)
            findings.append(
                _error(
                    "C07",
                    f"network card {name} {what} on {host}",
                    host,
                    f"{', '.join(card['for'])}={name}",
                    "The name was copied from another server, or the host has several networks.",
                    f"ip -br address on {host} shows the cards; correct nic: of the host in the inventory.",
                )
            )
    return findings, hosts


def _ports(told: _Told) -> Tuple[_Findings, Set[Tuple[str, str]]]:
    """Ports that are not reached, by host and port; hosts that reach nothing of another; and these pairs of hosts."""
    failures: Dict[str, List[Mapping[str, Any]]] = collections.defaultdict(list)
    cut: Set[Tuple[str, str]] = set()
    for source, one in told.items():
        lost = collections.Counter(entry["to"] for entry in (one or {}).get("tcp") or ())
        for entry in (one or {}).get("tcp") or ():
            failures[entry["to"]].append({**entry, "from": source})
        tried = (one or {}).get("tried") or {}
        cut |= {(source, to) for to, count in lost.items() if count == tried.get(to) and count > 1}
    findings: _Findings = []
    for to, entries in sorted(failures.items()):
        whole = sorted({source for source, target in cut if target == to})
        open_ = [entry for entry in entries if entry["from"] not in whole]
        if whole:
            first = next(entry for entry in entries if entry["from"] in whole)
            findings.append(
                _error(
                    "control-host-cut-off",
                    f"{to} is not reached on any port from {', '.join(whole)}",
                    to,
                    f"{first['from']} -> {first['address']}:{first['port']}: {first['text']}",
                    "A packet filter, a wrong address in the inventory, or no route between the hosts.",
                    _FIXES[first["outcome"]].format(**first),
                )
            )
        by_port: Dict[Tuple[int, str], List[Mapping[str, Any]]] = collections.defaultdict(list)
        for entry in open_:
            by_port[entry["port"], entry["use"]].append(entry)
        by_use: Dict[Tuple[str, Tuple[str, ...]], List[Tuple[int, Mapping[str, Any]]]] = collections.defaultdict(list)
        for (port, use), some in by_port.items():
            by_use[use, tuple(sorted(entry["from"] for entry in some))].append((port, some[0]))
        for (use, sources), found in sorted(by_use.items()):
            numbers = sorted(port for port, _ in found)
            first = found[0][1]
            shown = ", ".join(map(str, numbers[:_SHOWN])) + (" ..." if len(numbers) > _SHOWN else "")
            findings.append(
                _error(
                    _IDS.get(use, "control-port-blocked"),
                    f"port {shown} ({use}) of {to} is not reached from {', '.join(sources)}",
                    to,
                    f"{first['from']} -> {first['address']}:{first['port']}: {first['text']}",
                    "Processes of the engines meet at this port; with it blocked they wait until they give up.",
                    _FIXES[first["outcome"]].format(**first),
                )
            )
    return findings, cut


def _blamed(pairs: Sequence[Tuple[str, str]], bad: Sequence[Tuple[str, str]]) -> List[str]:
    """Who explains bad pairs of hosts: a host all of whose pairs are bad, else the pairs themselves."""
    left, named = list(bad), []
    while left:
        total = collections.Counter(host for pair in pairs for host in pair)
        lost = collections.Counter(host for pair in bad for host in pair)
        whole = [host for host in {host for pair in left for host in pair} if lost[host] == total[host]]
        if not whole or len(whole) == len(total):
            break
        worst = max(sorted(whole), key=lambda host: sum(host in pair for pair in left))
        alike = [host for host in sorted(whole) if all((host in pair) == (worst in pair) for pair in left)]
        named.append(" or ".join(alike))
        left = [pair for pair in left if worst not in pair]
    return named + sorted({" and ".join(sorted(pair)) for pair in left})


def _sizes(told: _Told, cut: Set[Tuple[str, str]]) -> _Findings:
    """Paths over which small packets pass and full ones don't."""
    entries = [
        (source, entry)
        for source, one in told.items()
        for entry in (one or {}).get("mtu") or ()
        if entry["small"] and (source, entry["to"]) not in cut
    ]
    bad = [(source, entry["to"]) for source, entry in entries if not entry["large"]]
    size = {(source, entry["to"]): entry["bytes"] for source, entry in entries}
    return [
        _error(
            "control-mtu-path",
            f"packets of full size do not pass between the hosts: {who}",
            who if who in told else None,
            "; ".join(f"{one} -> {other}: {size[one, other]} bytes lost, small ones pass" for one, other in bad[:3]),
            "Network cards or switch ports on the way have different sizes of the largest packet (MTU).",
            "ip link show on both hosts; give all cards and ports of this network one MTU.",
        )
        for who in _blamed(list(size), bad)
    ]


def _rendezvous(told: _Told, without: Set[str], cut: Set[Tuple[str, str]]) -> _Findings:
    """Connections between the named network cards that fail although both are as they should be."""
    entries = [
        (source, entry)
        for source, one in told.items()
        for entry in (one or {}).get("rendezvous") or ()
        if source not in without and entry["to"] not in without and (source, entry["to"]) not in cut
    ]
    bad = [(source, entry["to"]) for source, entry in entries if entry["outcome"] != "answered"]
    text = {(source, entry["to"]): f"{entry['address']} ({entry['nic']}): {entry['text']}" for source, entry in entries}
    return [
        _error(
            "control-rendezvous",
            f"ranks can not meet over the network cards of the plan: {who}",
            who if who in told else None,
            "; ".join(f"{one} -> {other}, {text[one, other]}" for one, other in bad[:3]),
            "Ranks take ports that the system picks (32768 and above); a packet filter lets only some through.",
            "Let the hosts of the cluster reach each other on all ports; nft list ruleset (or iptables -S) on each.",
        )
        for who in _blamed([(source, entry["to"]) for source, entry in entries], bad)
    ]


def _names(plan: Mapping[str, Any], told: _Told) -> _Findings:
    """Hosts whose own name is a loopback address, or names of the cluster that lead to different machines."""
    findings: _Findings = []
    for host, one in told.items():
        names = (one or {}).get("names") or {}
        own = next(iter(names), None)
        addresses = names.get(own, []) if own else []
        if own and (not addresses or all(address.startswith("127.") for address in addresses)):
            findings.append(
                _error(
                    "D08",
                    f"the own name of {host}, {own}, is {', '.join(addresses) or 'not known'} there",
                    host,
                    f"getent hosts {own}: {', '.join(addresses) or 'nothing'}",
                    "Ranks that are not told of a network card meet at the address of the host's name.",
                    f"Give {own} the address {plan['hosts'][host]['node_ip']} in /etc/hosts of {host}.",
                    "warning",
                )
            )
        for name, theirs in names.items():
            wanted = (plan["hosts"].get(name) or {}).get("node_ip")
            if name != own and wanted and theirs and wanted not in theirs:
                findings.append(
                    _error(
                        "control-name-differs",
                        f"{host} takes {name} for {', '.join(theirs)}, not {wanted}",
                        host,
                        f"getent hosts {name}",
                        "A stale entry in /etc/hosts or in the name service.",
                        f"Correct {name} in /etc/hosts of {host}.",
                        "warning",
                    )
                )
    return findings


def _clocks(offsets: Mapping[str, Mapping[str, float]], limit: float) -> _Findings:
    """Clocks that are apart for sure: an offset counts from its near end, since a slow connection adds to it."""
    if len(offsets) < 2:
        return []
    low = {host: one["offset"] - one["uncertainty"] for host, one in offsets.items()}
    high = {host: one["offset"] + one["uncertainty"] for host, one in offsets.items()}
    late, early = max(low, key=low.__getitem__), min(high, key=high.__getitem__)
    if low[late] - high[early] <= limit:
        return []
    middle = sorted(one["offset"] for one in offsets.values())[len(offsets) // 2]
    # Of more than two the one that is further from the others is wrong.
    apart = {host: abs(offsets[host]["offset"] - middle) for host in (late, early)}
    wrong = max(apart, key=apart.__getitem__) if len(offsets) > 2 else None
    return [
        _error(
            "D24",
            f"clocks of {late} and {early} are at least {low[late] - high[early]:.1f} s apart",
            wrong,
            "; ".join(f"{host}: {offsets[host]['offset']:+.2f} s against the controller" for host in (late, early)),
            "No time service runs there, or it has no source.",
            f"chronyc tracking (or timedatectl) on {wrong or late}; the tune stage sets time services up.",
        )
    ]


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    measured: _Told,
    limits: Optional[Mapping[str, float]] = None,
) -> Dict[str, Any]:
    """``{"findings", "metrics"}`` over ``{host: ascent_control_plane or None}``.

    ``nodes`` are ``ascent_node`` for the clocks; ``limits`` has ``clock_skew_seconds`` (1).
    """
    told = {host: measured.get(host) for host in plan["hosts"]}
    if sum(1 for one in told.values() if one) < 2 and len(plan["hosts"]) < 2:
        return {"findings": [], "metrics": {}}
    findings = [
        _error(
            "control-not-measured",
            f"{host} tried nothing of the hosts' network",
            host,
            "no result of control_plane",
            "The host could not be reached.",
            f"ansible {host} -m ping",
        )
        for host, one in told.items()
        if not one
    ]
    cards, without = _cards(plan, told)
    blocked, cut = _ports(told)
    findings += cards + blocked + _sizes(told, cut) + _rendezvous(told, without, cut) + _names(plan, told)
    findings += [
        _error(
            "control-port-unbound",
            f"no listener could be raised on port {port} of {host}",
            host,
            text,
            "The address is not the host's own, or the port is not allowed.",
            f"ip -br address on {host}; correct node_ip in the inventory.",
        )
        for host, one in told.items()
        for port, text in list(((one or {}).get("unbound") or {}).items())[:1]
    ]
    samples = {host: node["clock"] for host, node in nodes.items() if node and "before" in (node.get("clock") or {})}
    limit = float((limits or {}).get("clock_skew_seconds", 1.0))
    findings += _clocks(preflight.clock_offsets(samples), limit)
    metrics = {
        "control_plane_connections": sum(sum(((one or {}).get("tried") or {}).values()) for one in told.values()),
        "control_plane_blocked": sum(len((one or {}).get("tcp") or ()) for one in told.values()),
    }
    return {"findings": findings, "metrics": metrics}
