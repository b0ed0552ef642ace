"""Who pings whom: every device of every node from every other node, in an order that keeps the nodes apart.

The vendor's tool serves one call at a time on a node, so a node's list is worked off one by one while the nodes work in
parallel. Each list starts at the next host of the ring: at any step the nodes aim at different hosts.
"""

from __future__ import annotations

__all__ = ["MODES", "address_of", "assignments", "peers"]

from typing import Any, Dict, List, Mapping, Optional, Sequence

#: ``same-index``: a remote device is pinged by the local one of its position. ``full``: by every local device.
MODES = ("same-index", "full")


def assignments(
    hosts: Sequence[str], devices: Mapping[str, Sequence[int]], mode: str = "same-index"
) -> Dict[str, List[Dict[str, Any]]]:
    """``{host: [{"device", "peer_host", "peer_device"}, ...]}`` in the order in which each host works its list off.

    ``devices`` are the device numbers of each host. A host with fewer devices than its peer lets them take turns.
    ValueError for an unknown mode. The same input gives the same lists.

    >>> [(one["device"], one["peer_host"]) for one in assignments(["a", "b", "c"], dict.fromkeys("abc", [0]))["b"]]
    [(0, 'c'), (0, 'a')]
    """
    if mode not in MODES:
        raise ValueError(f"mesh mode {mode!r} is not one of {MODES}")
    lists: Dict[str, List[Dict[str, Any]]] = {}
    for position, host in enumerate(hosts):
        own = list(devices.get(host, ()))
        entries: List[Dict[str, Any]] = []
        for step in range(1, len(hosts)):
            peer = hosts[(position + step) % len(hosts)]
            targets = list(devices.get(peer, ()))
            # The full mesh takes its rounds apart as well: in a round, each device is a target once.
            for turn in range(len(own) if mode == "full" else min(1, len(own))):
                entries.extend(
                    {"device": own[(index + turn) % len(own)], "peer_host": peer, "peer_device": target}
                    for index, target in enumerate(targets)
                )
        lists[host] = entries
    return lists


def address_of(node: Optional[Mapping[str, Any]], device: int, plane: str) -> Optional[str]:
    """The address at which a device answers: ``plane`` is ``vnic`` (A3, HCCS) or ``ip`` (RoCE). None when not known.

    The live address counts; ``/etc/hccn.conf`` stands in for it where the live one was not read.
    """
    npu = (node or {}).get("npu") or {}
    live = npu.get("vnic" if plane == "vnic" else "hccn_live")
    if live is not None:
        return (live.get(str(device)) or {}).get("address")
    if plane == "vnic":
        return None
    address: Optional[str] = ((npu.get("hccn") or {}).get(str(device)) or {}).get("address")
    return address


def peers(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    plane: str = "vnic",
    mode: str = "same-index",
) -> Dict[str, List[Dict[str, Any]]]:
    """`assignments` over the plan's hosts and devices, each entry with the peer's ``address`` (None when it has none).

    Hosts that could not be read keep their place and have no addresses.
    """
    hosts = [name for name, host in plan["hosts"].items() if host["devices"]]
    lists = assignments(hosts, {name: plan["hosts"][name]["devices"] for name in hosts}, mode)
    for entries in lists.values():
        for entry in entries:
            entry["address"] = address_of(nodes.get(entry["peer_host"]), entry["peer_device"], plane)
    return lists
