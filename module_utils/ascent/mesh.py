"""Who pings whom on the devices' network, in an order that keeps the nodes apart, and one node's part of it measured.

The vendor's tool serves one call at a time on a node, so a node's list is worked off one by one while the nodes work in
parallel. Each list starts at the next host of the ring: at any step the nodes aim at different hosts, and the devices
of a host that several nodes aim at take turns.
"""

from __future__ import annotations

__all__ = ["MODES", "measure", "peers", "schedule", "wanted"]

import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .node import Node, hccn_call

#: ``planned``: what the plan's communicators use. ``full``: every device with every device of every other host.
#: ``sample``: of the planned pairs one for each device, so that the cost of a node does not grow with the cluster.
MODES = ("planned", "full", "sample")
#: Packets of one call of the vendor's tool; a larger number would be taken for the size of each.
MOST_PACKETS = 1000
# A pair this much slower than the median of its node is asked again: one late wake-up is no slow link.
_ASK_AGAIN = 5.0
# Packets of the call that tells what a packet costs, beyond those of an ordinary one.
_PROBE = 10
# After so many devices of a host that don't answer, the others get one packet each.
_SILENT = 4
# Pairs without any answer that are asked again: a dead network is no late packet.
_MOST_AGAIN = 8

Device = Tuple[str, int]
Pair = Tuple[Device, Device]
#: ``(host, device)`` to the address at which it answers, None when it has none.
AddressOf = Callable[[str, int], Optional[str]]


# -- who pings whom ----------------------------------------------------------------------------------------------------


def _measurable(plan: Mapping[str, Any]) -> List[str]:
    """Hosts with devices that a tool can ping from, in the order of the plan."""
    return [name for name, host in plan["hosts"].items() if host["devices"] and host.get("fabric")]


def wanted(plan: Mapping[str, Any], mode: str = "planned") -> Set[Pair]:
    """Directed pairs ``(from, to)`` of devices on different hosts; each is there in both directions but in a sample.

    ``planned`` reads the plan's ``device_pairs``. ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mesh mode {mode!r} is not one of {MODES}")
    hosts = _measurable(plan)
    pairs: Set[Pair] = set()

    def both(one: Device, other: Device) -> None:
        if one[0] != other[0] and one[0] in hosts and other[0] in hosts:
            pairs.update(((one, other), (other, one)))

    if mode == "full":
        devices = [(host, device) for host in hosts for device in plan["hosts"][host]["devices"]]
        for one in devices:
            for other in devices:
                both(one, other)
        return pairs
    for entry in plan.get("device_pairs", ()):
        groups = [[(part["host"], list(part["devices"])) for part in group] for group in entry["groups"]]
        if entry["pattern"] == "across":
            sides = [[(host, device) for host, devices in group for device in devices] for group in groups]
            for one in sides[0]:
                for other in sides[1]:
                    both(one, other)
            continue
        for number, (host, own) in enumerate(groups[0]):
            for peer, theirs in groups[0][number + 1 :]:
                # A host with fewer devices than its peer lets them take turns.
                for index in range(max(len(own), len(theirs)) if own and theirs else 0):
                    both((host, own[index % len(own)]), (peer, theirs[index % len(theirs)]))
    return _sample(hosts, pairs) if mode == "sample" else pairs


def _sample(hosts: Sequence[str], pairs: Set[Pair]) -> Set[Pair]:
    """One pair for each device that sends, spread so that the receivers differ."""
    chosen: Set[Pair] = set()
    by_sender: Dict[Device, List[Device]] = {}
    for sender, receiver in sorted(pairs):
        by_sender.setdefault(sender, []).append(receiver)
    received: Dict[Device, int] = {}
    for number, (sender, receivers) in enumerate(sorted(by_sender.items())):
        ring = hosts.index(sender[0])

        def place(receiver: Device, ring: int = ring, number: int = number) -> Tuple[int, int, int]:
            distance = (hosts.index(receiver[0]) - ring - 1 - number) % len(hosts)
            return received.get(receiver, 0), distance, (receiver[1] - number) % 997

        best = min(receivers, key=place)
        received[best] = received.get(best, 0) + 1
        chosen.add((sender, best))
    return chosen


def schedule(hosts: Sequence[str], pairs: Iterable[Pair]) -> Dict[str, List[Pair]]:
    """Each host's pairs in the order in which it works them off; the same input gives the same lists.

    At any step the hosts aim at different hosts as long as their lists are equally long, and while several have to aim
    at one host they aim at different devices of it as far as there are some.

    >>> hosts = ["a", "b", "c"]
    >>> [pair[1][0] for pair in schedule(hosts, {((x, 0), (y, 0)) for x in hosts for y in hosts if x != y})["b"]]
    ['c', 'a']
    """
    ring = {host: number for number, host in enumerate(hosts)}
    lists: Dict[str, Dict[str, List[Pair]]] = {host: {} for host in hosts}
    for pair in sorted(pairs):
        lists[pair[0][0]].setdefault(pair[1][0], []).append(pair)
    result: Dict[str, List[Pair]] = {}
    for host in hosts:
        ordered: List[Pair] = []
        for peer in sorted(lists[host], key=lambda name: (ring[name] - ring[host]) % len(hosts)):
            entries = lists[host][peer]
            own = {device: number for number, device in enumerate(sorted({pair[0][1] for pair in entries}))}
            theirs = {device: number for number, device in enumerate(sorted({pair[1][1] for pair in entries}))}
            shift = ring[host]

            def turn(
                pair: Pair, own: Dict[int, int] = own, theirs: Dict[int, int] = theirs, shift: int = shift
            ) -> Tuple[int, int]:
                # In a turn each device of the peer is a target once; the senders start at different ones.
                target = theirs[pair[1][1]]
                return (target - own[pair[0][1]]) % len(theirs), (target - shift) % len(theirs)

            ordered += sorted(entries, key=turn)
        result[host] = ordered
    return result


def peers(plan: Mapping[str, Any], address_of: AddressOf, mode: str = "planned") -> Dict[str, List[Dict[str, Any]]]:
    """What each host measures: ``{host: [{"device", "peer_host", "peer_device", "address", "burst", "witness"}]}``.

    ``burst`` marks the pairs over which many packets are sent, two for each device where it has two peers, so that loss
    can be laid to one end. A device with a single peer gets a ``witness`` for that: another device of the same host.
    """
    hosts = _measurable(plan)
    lists = schedule(hosts, wanted(plan, mode))
    result: Dict[str, List[Dict[str, Any]]] = {}
    for host in hosts:
        by_device: Dict[int, List[Device]] = {}
        for sender, receiver in lists[host]:
            by_device.setdefault(sender[1], []).append(receiver)
        bursts: Set[Pair] = set()
        witnesses: List[Pair] = []
        for device, receivers in by_device.items():
            # The next host of the ring, and another device: of another host where there is one.
            first = receivers[0]
            second = next((one for one in receivers if one[0] != first[0]), None)
            second = second or next((one for one in receivers if one != first), None)
            bursts.add(((host, device), first))
            if second:
                bursts.add(((host, device), second))
                continue
            others = sorted(other for other in plan["hosts"][first[0]]["devices"] if other != first[1])
            if others:
                position = sorted(plan["hosts"][first[0]]["devices"]).index(first[1])
                witnesses.append(((host, device), (first[0], others[position % len(others)])))

        def entry(pair: Pair, burst: bool, witness: bool) -> Dict[str, Any]:
            return {
                "device": pair[0][1],
                "peer_host": pair[1][0],
                "peer_device": pair[1][1],
                "address": address_of(*pair[1]),
                "burst": burst,
                "witness": witness,
            }

        result[host] = [entry(pair, pair in bursts, False) for pair in lists[host]]
        result[host] += [entry(pair, True, True) for pair in witnesses]
    return result


# -- on a node ---------------------------------------------------------------------------------------------------------


def _merge(entry: Dict[str, Any], value: Mapping[str, Any]) -> None:
    """Adds one call's figures to a pair's."""
    before = entry["received"]
    entry["sent"] += value["sent"]
    entry["received"] += value["received"]
    entry["error"] = None
    if value.get("rtt_ms") is None:
        return
    low, mean, high = (
        1e3 * float(value[name] if value.get(name) is not None else value["rtt_ms"])
        for name in ("rtt_min_ms", "rtt_ms", "rtt_max_ms")
    )
    if entry["min_us"] is None:
        entry.update(min_us=round(low, 3), avg_us=round(mean, 3), max_us=round(high, 3))
        return
    total = max(1, before + value["received"])
    entry.update(
        min_us=round(min(entry["min_us"], low), 3),
        avg_us=round((entry["avg_us"] * before + mean * value["received"]) / total, 3),
        max_us=round(max(entry["max_us"], high), 3),
    )


def _median(values: Sequence[float]) -> Optional[float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def measure(
    node: Node,
    tool: str,
    kind: str,
    host: str,
    given: Sequence[Mapping[str, Any]],
    *,
    packets: int = 3,
    burst_packets: int = 100,
    burst_seconds: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Dict[str, Any]:
    """One node's part, the fact ``ascent_mesh`` (docs/architecture.md, section 7).

    ``kind`` is ``hccs_ping`` (A3) or ``ping`` (A2), ``given`` this host's entries of `peers`, worked off in order with
    ``packets`` each. A pair that fails, loses packets or is far slower than the node's median is asked once more, and
    the best time counts. Then ``burst_packets`` go over each pair marked so, or fewer where the tool takes so long over
    a packet that all of them would cost more than ``burst_seconds``.
    """
    started = clock()
    entries: List[Dict[str, Any]] = []

    def ask(entry: Dict[str, Any], count: int) -> Optional[float]:
        """Seconds of one call, None where it told nothing or had to wait for lost packets."""
        begun = clock()
        arguments = ("address", str(entry["address"]), "pkt", str(count))
        value, error = hccn_call(node, tool, entry["from"][1], kind, *arguments)
        if value is None:
            if not entry["sent"]:
                entry["error"] = error
            return None
        # A packet that never left is lost as well.
        _merge(entry, {**value, "sent": max(count, value["sent"])})
        return clock() - begun if value["received"] == count else None

    for one in given:
        entry: Dict[str, Any] = {
            "from": [host, int(one["device"])],
            "to": [one["peer_host"], int(one["peer_device"])],
            "address": one.get("address"),
            "sent": 0,
            "received": 0,
            "min_us": None,
            "avg_us": None,
            "max_us": None,
            "error": None,
        }
        if one.get("witness"):
            entry["witness"] = True
        if not entry["address"]:
            entry["error"] = "the peer device has no address"
        entries.append(entry)
    short: List[float] = []
    silent: Dict[str, int] = {}
    for entry in entries:
        if not entry["address"]:
            continue
        peer = entry["to"][0]
        # A host that lets no packet back costs a second for each; it is asked on, with fewer.
        seconds = ask(entry, packets if silent.get(peer, 0) < _SILENT else 1)
        silent[peer] = silent.get(peer, 0) + 1 if entry["sent"] and not entry["received"] else 0
        if seconds is not None:
            short.append(seconds)
    planned = [entry for entry in entries if entry["address"] and not entry.get("witness")]
    usual = _median([entry["min_us"] for entry in planned if entry["min_us"] is not None])
    again = 0
    for entry in planned:
        slow = usual is not None and entry["min_us"] is not None and entry["min_us"] > _ASK_AGAIN * usual
        if (entry["received"] < entry["sent"] or slow) and again < _MOST_AGAIN:
            again += not entry["received"]
            ask(entry, packets)
    bursts = [entry for one, entry in zip(given, entries) if one.get("burst") and entry["received"]]
    count = min(burst_packets, MOST_PACKETS)
    if bursts and short and count > packets:
        # What a call and what a packet costs differs by tool and release, so a longer call tells the two apart.
        probe = min(count, packets + _PROBE)
        seconds = ask(bursts[0], probe)
        call = _median(short) or 0.0
        packet = max(0.0, (seconds if seconds is not None else call) - call) / (probe - packets)
        if packet > 0:
            count = min(count, int(max(0.0, burst_seconds / len(bursts) - call) / packet))
        for entry in bursts if count > packets else ():
            ask(entry, count)
    plane = "vnic" if kind == "hccs_ping" else "ip"
    return {"plane": plane, "packets": packets, "seconds": round(clock() - started, 3), "pairs": entries}
