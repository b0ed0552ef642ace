"""Measuring one node's part of the device mesh, and judging all parts together.

`measure` runs on a node and calls the vendor's tool, one call at a time. `judge` is pure: it gets what all nodes
measured and says what is wrong and who is at fault, rather than listing every pair that failed.
"""

from __future__ import annotations

__all__ = ["CHECKS", "judge", "key", "measure", "reusable"]

import collections
import hashlib
import json
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import hccn_tool
from .bench import percentile
from .findings import finding
from .mesh import address_of
from .node import Node, hccn_call

#: What `measure` reads of each device besides the pings.
CHECKS = ("link", "tls", "net_health")
_STAGE = "verify"
_SLOW_FACTOR = 20
# Below this a factor says nothing: one late wake-up of the tool's process costs as much.
_SLOW_FLOOR_MS = 1.0
_SHOWN = 8

_Node = Optional[Mapping[str, Any]]
_Pair = Mapping[str, Any]
_Device = Tuple[str, int]


# -- on a node ---------------------------------------------------------------------------------------------------------


def _ping(node: Node, tool: str, kind: str, peer: Mapping[str, Any], packets: int) -> Dict[str, Any]:
    """One entry of a peer list, measured."""
    result: Dict[str, Any] = {
        "device": peer["device"],
        "peer_host": peer["peer_host"],
        "peer_device": peer["peer_device"],
        "address": peer.get("address"),
        "sent": 0,
        "received": 0,
        "loss_percent": None,
        "rtt_ms": None,
        "ok": False,
        "error": None,
    }
    if not peer.get("address"):
        return {**result, "error": "the peer device has no address"}
    arguments = ("address", str(peer["address"]), "pkt", str(packets))
    value, error = hccn_call(node, tool, int(peer["device"]), kind, *arguments)
    if value is None:
        return {**result, "error": error}
    result.update({name: value[name] for name in ("sent", "received", "loss_percent", "rtt_ms")})
    # Exit codes and closing lines say nothing here: the packets have to be back, all that were asked for.
    result["ok"] = bool(value["ok"]) and value["sent"] >= packets
    return result


def measure(
    node: Node,
    tool: str,
    kind: str,
    devices: Iterable[int],
    peers: Sequence[Mapping[str, Any]],
    packets: int = 3,
    checks: Sequence[str] = CHECKS,
) -> Dict[str, Any]:
    """One node's part: ``{"results": [ping, ...], "devices": {"0": {"link", "tls", "net_health", "errors"}}}``.

    ``kind`` is ``hccs_ping`` (A3) or ``ping`` (A2). ``peers`` are entries of `mesh.peers` and are worked off in order.
    A check that could not be read is None, and its reason is in ``errors``.
    """
    read: Dict[str, Dict[str, Any]] = {}
    for device in devices:
        entry: Dict[str, Any] = {"errors": {}}
        for check in checks:
            entry[check], error = hccn_call(node, tool, int(device), check)
            if error:
                entry["errors"][check] = error
        read[str(device)] = entry
    return {"results": [_ping(node, tool, kind, peer, packets) for peer in peers], "devices": read}


# -- over all nodes ----------------------------------------------------------------------------------------------------


def key(plan: Mapping[str, Any], nodes: Mapping[str, _Node]) -> str:
    """What a verdict depends on, as a hash: hosts and their addresses and devices, boot ids, and hccn.conf."""
    parts = {}
    for name, host in plan["hosts"].items():
        node = nodes.get(name) or {}
        conf = (node.get("npu") or {}).get("hccn") or {}
        parts[name] = {
            "node_ip": host["node_ip"],
            "devices": host["devices"],
            "boot_id": (node.get("system") or {}).get("boot_id"),
            "hccn": {device: conf[device].get("address") for device in sorted(conf)},
        }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reusable(verdict: Optional[Mapping[str, Any]], wanted_key: str, now: float, max_age_hours: float) -> bool:
    """Whether a kept verdict still holds: it was good, nothing it depends on has changed, and it is not too old."""
    if not verdict or not verdict.get("ok") or verdict.get("key") != wanted_key:
        return False
    age = now - float(verdict.get("measured") or 0)
    return 0 <= age <= max_age_hours * 3600


def _name(device: _Device) -> str:
    return f"{device[0]} device {device[1]}"


def _names(devices: Iterable[_Device]) -> str:
    """Devices by host: ``a3-01 devices 0, 3; a3-02 device 1``."""
    by_host: Dict[str, List[int]] = collections.defaultdict(list)
    for host, number in sorted(set(devices)):
        by_host[host].append(number)
    return "; ".join(
        f"{host} device{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        for host, numbers in by_host.items()
    )


def _culprits(pairs: Sequence[_Pair], bad: Sequence[_Pair]) -> List[Tuple[str, Optional[str], List[_Pair]]]:
    """Who explains the bad pairs: ``(text, host or None, the pairs explained)``, hosts before devices before pairs.

    A host or device is at fault when every pair it took part in is bad while the others it was paired with work
    elsewhere. Where two explain the same pairs, both are named, since the pings alone can't tell them apart.
    """
    found: List[Tuple[str, Optional[str], List[_Pair]]] = []
    left = list(bad)

    def ends(pair: _Pair, level: str) -> List[Tuple[Any, ...]]:
        source, target = (pair["host"], pair["device"]), (pair["peer_host"], pair["peer_device"])
        return [(source[0],), (target[0],)] if level == "host" else [source, target]

    def explain(level: str, sides: Sequence[int], word: str) -> None:
        while left:
            total = collections.Counter(end for pair in pairs for end in {ends(pair, level)[side] for side in sides})
            lost = collections.Counter(end for pair in bad for end in {ends(pair, level)[side] for side in sides})
            open_ = collections.Counter(end for pair in left for end in {ends(pair, level)[side] for side in sides})
            least = 2 if len(sides) == 1 else 1
            whole = [end for end in open_ if lost[end] == total[end] >= least]
            if not whole:
                return
            most = max(open_[end] for end in whole)
            chosen = sorted(end for end in whole if open_[end] == most)
            first = [pair for pair in left if any(ends(pair, level)[side] == chosen[0] for side in sides)]
            # Those that explain the very same pairs can't be told apart.
            alike = [
                end for end in chosen if all(any(ends(pair, level)[side] == end for side in sides) for pair in first)
            ]
            if level == "host" and len(chosen) == len(total) > 2:
                # That is no fault of one of them.
                found.append(("every host from every other", None, list(left)))
                left.clear()
                return
            names = [str(end[0]) if level == "host" else _name((str(end[0]), int(end[1]))) for end in alike]
            host = str(alike[0][0]) if len({end[0] for end in alike}) == 1 else None
            found.append((f"{word}{' or '.join(names)}", host, first))
            explained = {id(pair) for pair in first}
            left[:] = [pair for pair in left if id(pair) not in explained]

    explain("host", (0, 1), "")
    explain("device", (0, 1), "")
    explain("device", (0,), "sending from ")
    explain("device", (1,), "sending to ")
    if left:
        text = ", ".join(
            f"{_name((pair['host'], pair['device']))} to {_name((pair['peer_host'], pair['peer_device']))}"
            for pair in left[:_SHOWN]
        )
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        found.append((text + more, None, left))
    return found


def _ends(pair: _Pair) -> str:
    return f"{pair['host']}/{pair['device']} -> {pair['peer_host']}/{pair['peer_device']}"


def _evidence(pairs: Sequence[_Pair]) -> str:
    def one(pair: _Pair) -> str:
        what = pair["error"] or f"{pair['received']} of {pair['sent']} packets back"
        return f"{_ends(pair)} ({pair['address']}): {what}"

    return "; ".join(one(pair) for pair in pairs[:3]) + (f"; {len(pairs)} pairs in all" if len(pairs) > 3 else "")


def _mesh_findings(pairs: Sequence[_Pair], kind: str) -> List[Dict[str, Any]]:
    """Findings on the pings: busy tools, unreachable devices, lost packets, slow pairs."""
    busy: Dict[str, List[_Pair]] = collections.defaultdict(list)
    known: List[_Pair] = []
    for pair in pairs:
        (busy[pair["host"]] if hccn_tool.BUSY.search(pair["error"] or "") else known).append(pair)
    findings = [
        finding(
            "C25",
            "error",
            f"hccn_tool stayed busy on {host}",
            host=host,
            stage=_STAGE,
            evidence=_evidence(mine),
            cause="Another process keeps the tool's lock: a monitoring agent, or a call that hangs.",
            fix="Find it with `fuser -v /etc/hccn.conf` and `pgrep -a hccn_tool` on that host, then verify again.",
        )
        for host, mine in sorted(busy.items())
    ]
    dead = [pair for pair in known if not pair["ok"] and not pair["received"]]
    lossy = [pair for pair in known if not pair["ok"] and pair["received"]]
    for text, host, mine in _culprits(known, dead):
        findings.append(
            finding(
                "C01",
                "error",
                f"unreachable over the device network: {text}",
                host=host,
                stage=_STAGE,
                evidence=_evidence(mine),
                cause="A link is down, an address is wrong or taken twice, or the devices' networks are not routed.",
                fix=f"There: hccn_tool -i DEVICE -link -g and {'-vnic' if kind == 'hccs_ping' else '-ip'} -g; then"
                " the cabling and the switch port.",
            )
        )
    for text, host, mine in _culprits(known, lossy):
        findings.append(
            finding(
                "fabric-packet-loss",
                "error",
                f"packets are lost on the device network: {text}",
                host=host,
                stage=_STAGE,
                evidence=_evidence(mine),
                cause="A dirty or loose optical link, or a congested switch port.",
                fix="hccn_tool -i DEVICE -stat -g (bad packets), -optical -g and -link_stat -g; reseat or replace.",
            )
        )
    times = [float(pair["rtt_ms"]) for pair in known if pair["ok"] and pair["rtt_ms"] is not None]
    limit = max(_SLOW_FACTOR * (percentile(times, 50) or 0.0), _SLOW_FLOOR_MS)
    slow = [pair for pair in known if pair["ok"] and (pair["rtt_ms"] or 0) > limit]
    if slow:
        slow.sort(key=lambda pair: -float(pair["rtt_ms"]))
        findings.append(
            finding(
                "G02",
                "warning",
                f"{len(slow)} device pairs answer more than {_SLOW_FACTOR} times slower than the median",
                stage=_STAGE,
                evidence="; ".join(f"{_ends(pair)}: {pair['rtt_ms']:g} ms" for pair in slow[:_SHOWN])
                + f"; median {percentile(times, 50):g} ms",
                cause="A link that runs at a lower rate, a detour, or a node that is busy.",
                fix="Verify again with the node idle; if it stays, compare -speed and -link_stat of the devices.",
            )
        )
    return findings


def _address_findings(plan: Mapping[str, Any], nodes: Mapping[str, _Node], plane: str) -> List[Dict[str, Any]]:
    """Missing and doubled addresses, and a file that says something else than the devices."""
    findings = []
    owners: Dict[str, List[_Device]] = collections.defaultdict(list)
    for host, planned in plan["hosts"].items():
        node = nodes.get(host)
        if node is None or not planned["devices"]:
            continue
        npu = node.get("npu") or {}
        addresses = {device: address_of(node, device, plane) for device in planned["devices"]}
        for device, address in addresses.items():
            if address:
                owners[address].append((host, device))
        without = [device for device, address in addresses.items() if not address]
        if without:
            findings.append(
                finding(
                    "C11",
                    "error",
                    f"devices without an address on the device network: {_names((host, device) for device in without)}",
                    host=host,
                    stage=_STAGE,
                    evidence=f"hccn_tool -{plane} -g has none for {len(without)} of {len(addresses)} devices",
                    cause="Never configured, or lost when the device was reset.",
                    fix="Set the address with hccn_tool -i DEVICE -ip -s, which also writes /etc/hccn.conf.",
                )
            )
        conf, live = npu.get("hccn") or {}, npu.get("hccn_live") or {}
        differing = [
            (device, conf[str(device)].get("address"), live[str(device)].get("address"))
            for device in planned["devices"]
            # What has no address at all is told as C11 already.
            if device not in without
            and str(device) in conf
            and str(device) in live
            and not live[str(device)].get("error")
            and conf[str(device)].get("address") != live[str(device)].get("address")
        ]
        if differing:
            findings.append(
                finding(
                    "hccn-conf-differs",
                    "warning" if plane == "vnic" else "error",
                    f"/etc/hccn.conf differs from the live addresses: {_names((host, one[0]) for one in differing)}",
                    host=host,
                    stage=_STAGE,
                    evidence="; ".join(f"device {one[0]}: file {one[1]}, live {one[2]}" for one in differing[:_SHOWN]),
                    cause="The file was edited or copied by hand; it takes effect at the next reboot only.",
                    fix="Write the right addresses with hccn_tool -i DEVICE -ip -s, which keeps both the same.",
                )
            )
    findings.extend(
        finding(
            "C12",
            "error",
            f"device address {address} is taken {len(devices)} times",
            stage=_STAGE,
            evidence=_names(devices),
            cause="/etc/hccn.conf was copied from another node.",
            fix="Give each device an address of its own with hccn_tool -i DEVICE -ip -s.",
        )
        for address, devices in sorted(owners.items())
        if len(devices) > 1
    )
    return findings


def _device_findings(
    plan: Mapping[str, Any], measured: Mapping[str, Any], pairs: Sequence[_Pair], kind: str
) -> List[Dict[str, Any]]:
    """TLS switches, links and network health. Pings outrank what the tool says of a link."""
    findings = []
    working = {(pair["host"], pair["device"]) for pair in pairs if pair["ok"]}
    working |= {(pair["peer_host"], pair["peer_device"]) for pair in pairs if pair["ok"]}
    failing = {(pair["host"], pair["device"]) for pair in pairs if not pair["ok"]}
    failing |= {(pair["peer_host"], pair["peer_device"]) for pair in pairs if not pair["ok"]}
    switches: Dict[bool, List[_Device]] = collections.defaultdict(list)
    down: List[_Device] = []
    unhealthy: Dict[_Device, str] = {}
    for host, planned in plan["hosts"].items():
        for device in planned["devices"]:
            read = ((measured.get(host) or {}).get("devices") or {}).get(str(device)) or {}
            if read.get("tls"):
                switches[bool(read["tls"]["enabled"])].append((host, device))
            if (read.get("link") or {}).get("link") == "DOWN":
                down.append((host, device))
            if read.get("net_health") and not read["net_health"]["ok"]:
                unhealthy[host, device] = read["net_health"]["status"]
    if len(switches) > 1:
        rare = min(switches, key=lambda enabled: (len(switches[enabled]), enabled))
        findings.append(
            finding(
                "C06",
                "error",
                f"TLS of the device network is {'on' if rare else 'off'} on some devices: {_names(switches[rare])}",
                stage=_STAGE,
                evidence=f"on: {len(switches[True])} devices, off: {len(switches[False])} devices",
                cause="A card was replaced or a node was set up on its own. Collectives then time out.",
                fix="Set the same everywhere: hccn_tool -i DEVICE -tls -s enable 0 (or certificates on all).",
            )
        )
    on_hccs = kind == "hccs_ping"
    false_down = [device for device in down if device in working and device not in failing]
    really_down = [device for device in down if device not in false_down or not on_hccs]
    if really_down:
        findings.append(
            finding(
                "C10",
                "error",
                f"link down: {_names(really_down)}",
                host=really_down[0][0] if len({host for host, _device in really_down}) == 1 else None,
                stage=_STAGE,
                evidence="link status: DOWN",
                cause="Optical module, cable or switch port.",
                fix="hccn_tool -i DEVICE -optical -g and -lldp -g; replace or reseat; hccn_tool -i DEVICE -link -s up.",
            )
        )
    if on_hccs and false_down:
        findings.append(
            finding(
                "G05",
                "warning",
                f"the RoCE link is reported down although the devices answer over HCCS: {_names(false_down)}",
                stage=_STAGE,
                evidence="link status: DOWN; hccs_ping passes",
                cause="On A3 the tool reports links of unused RoCE ports as down.",
                fix="Nothing, unless traffic between super pods is wanted over RoCE.",
            )
        )
    if unhealthy:
        grave = [device for device in unhealthy if device in failing or device not in working]
        if grave or not on_hccs:
            findings.append(
                finding(
                    "C09",
                    "error" if grave and not on_hccs else "warning",
                    f"network health is not Success: {_names(unhealthy)}",
                    stage=_STAGE,
                    evidence=", ".join(sorted({f"net health status: {status}" for status in unhealthy.values()})),
                    cause="No detect address, a switch port or a VLAN. Init means that no detect address is set.",
                    fix="hccn_tool -i DEVICE -netdetect -s address GATEWAY; check the switch port by -lldp -g.",
                )
            )
    return findings


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, _Node],
    results: Mapping[str, Any],
    previous: Optional[Mapping[str, Any]] = None,
    kind: str = "hccs_ping",
) -> Tuple[List[Dict[str, Any]], Dict[str, Any], Dict[str, Any]]:
    """``(findings, metrics, verdict)`` over what every node measured.

    ``results`` maps a host to what `measure` returned there, or None. ``kind`` is the ping that was used. ``verdict``
    is kept on the nodes: ``{"ok", "key", "measured", "pairs", "failed", "rtt_ms"}``, with ``measured`` in seconds since
    the epoch. ``previous`` is the kept verdict of an earlier run; a fabric that became much slower is a warning.
    """
    plane = "vnic" if kind == "hccs_ping" else "ip"
    hosts = [name for name, host in plan["hosts"].items() if host["devices"]]
    findings = [
        finding(
            "fabric-not-measured",
            "error",
            f"{host} measured nothing",
            host=host,
            stage=_STAGE,
            evidence="no result of hccl_verify",
            cause="The host could not be reached, or it has no hccn_tool.",
            fix="Read the host's own error above; preflight checks for both.",
        )
        for host in hosts
        if not results.get(host)
    ]
    pairs = [{**ping, "host": host} for host in hosts for ping in (results.get(host) or {}).get("results", ())]
    findings += _address_findings(plan, nodes, plane)
    # A device without an address has its own finding; its pairs, either way, are left out of the search for culprits.
    mute = {
        (host, device)
        for host in hosts
        for device in plan["hosts"][host]["devices"]
        if nodes.get(host) is not None and not address_of(nodes[host], device, plane)
    }
    addressed = [pair for pair in pairs if pair["address"] and (pair["host"], pair["device"]) not in mute]
    findings += _mesh_findings(addressed, kind)
    findings += _device_findings(plan, results, addressed, kind)

    times = [float(pair["rtt_ms"]) for pair in addressed if pair["ok"] and pair["rtt_ms"] is not None]
    rtt = {"median": percentile(times, 50), "p99": percentile(times, 99), "max": max(times, default=None)}
    before = ((previous or {}).get("rtt_ms") or {}).get("median")
    if before and rtt["median"] and rtt["median"] > max(_SLOW_FACTOR * before, _SLOW_FLOOR_MS):
        findings.append(
            finding(
                "G02",
                "warning",
                f"the device network is {rtt['median'] / before:.0f} times slower than when it was last verified",
                stage=_STAGE,
                evidence=f"median round trip {rtt['median']:g} ms, before {before:g} ms",
                cause="Load on the nodes, or traffic that takes another path than before.",
                fix="Verify again with the nodes idle; compare the switches' routes.",
            )
        )
    failed_pairs = sum(1 for pair in pairs if not pair["ok"])
    metrics = {"fabric_pairs": len(pairs), "fabric_failed_pairs": failed_pairs, "fabric_rtt_ms": rtt}
    clocks = [((node or {}).get("system") or {}).get("time") for node in nodes.values()]
    verdict = {
        "ok": not any(item["severity"] == "error" for item in findings),
        "key": key(plan, nodes),
        "measured": max((float(clock) for clock in clocks if clock), default=None),
        "pairs": len(pairs),
        "failed": failed_pairs,
        "rtt_ms": rtt,
    }
    return findings, metrics, verdict
