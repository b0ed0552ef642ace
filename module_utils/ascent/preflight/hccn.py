"""Whether /etc/hccn.conf, which keeps the addresses of the devices' own network ports, says what the plan needs."""

from __future__ import annotations

__all__ = ["check", "duplicates"]

import ipaddress
from typing import Dict, List, Optional

from .common import SHOWN, Context, Facts, Findings, chips_are, error, listed, part, warning

_PATH = "/etc/hccn.conf"


def check(context: Context, host: str, node: Facts) -> Findings:
    """The file of one host: there where containers mount it, readable, and with good entries for its devices.

    Where devices of different nodes reach each other over their virtual NICs (A3 within a super pod), it may lack
    addresses; what it has must be right all the same.
    """
    planned = context.plan["hosts"][host]
    npu = node.get("npu")
    if npu is None or not chips_are("ascend", planned):
        return []
    if npu.get("hccn_error"):
        return [
            error(
                "D30",
                host,
                f"{_PATH} of {host} can't be read",
                str(npu["hccn_error"]),
                "The file was edited by hand, or cut off.",
                "Correct the line; hccn_tool -i N -ip -s address A netmask M writes the file itself.",
            )
        ]
    if npu.get("hccn") is None:
        return _absent(context, host, node)
    return _entries(context, host, npu)


def _absent(context: Context, host: str, node: Facts) -> Findings:
    if not part(node, "npu").get("info"):  # without a driver there are no addresses either; that is told already
        return []
    planned = context.plan["hosts"][host]
    if _PATH in planned.get("files", ()):
        return [
            error(
                "D30",
                host,
                f"{host} has no {_PATH}, and containers of the plan mount it",
                f"wanted by the plan: {listed(planned['files'])}",
                "The addresses of the device ports were never set, or not kept.",
                "Set them with hccn_tool -i N -ip -s; on A3 within one super pod an empty file will do.",
            )
        ]
    return _unkept(context, host, None)


def _unkept(context: Context, host: str, numbers: Optional[List[int]]) -> Findings:
    """Devices without an address of their own where nodes reach each other by it; None means all of them."""
    planned = context.plan["hosts"][host]
    fabric = planned.get("fabric") or {}
    others = [one for name, one in context.plan["hosts"].items() if name != host and one["devices"]]
    if fabric.get("address") != "ip" or not others:
        return []
    return [
        warning(
            "C11",
            host,
            f"{_PATH} of {host} has no address of {'any device' if numbers is None else f'devices {listed(numbers)}'}",
            "entries address_N; what the devices have now is checked by the stage verify",
            "Addresses were never set, or only until the next reset.",
            "hccn_tool -i N -ip -s address A netmask M sets and keeps them.",
        )
    ]


def _entries(context: Context, host: str, npu: Facts) -> Findings:
    entries: Dict[str, Facts] = npu["hccn"]
    planned = context.plan["hosts"][host]
    found = []
    numbers = {int(name.rpartition("davinci")[2]) for name in npu.get("device_files", ()) if name[-1].isdigit()}
    strange = sorted(int(number) for number in entries if numbers and int(number) not in numbers)
    if strange:
        found.append(
            warning(
                "hccn-conf-devices",
                host,
                f"{_PATH} of {host} has entries for devices that are not there: {listed(strange)}",
                f"devices of the host: {listed(sorted(numbers))}",
                "The file was copied from another server, or a chip is lost.",
                "Set the addresses again with hccn_tool, device by device.",
            )
        )
    wrong = [text for number, entry in entries.items() for text in _wrong(number, entry)]
    if wrong:
        found.append(
            error(
                "C13",
                host,
                f"{_PATH} of {host} has addresses that can't be",
                "; ".join(wrong[:SHOWN]),
                "The file was edited by hand.",
                "hccn_tool -i N -ip -s address A netmask M and -gateway -s gateway G refuse what does not fit.",
            )
        )
    without = [number for number in planned["devices"] if not (entries.get(str(number)) or {}).get("address")]
    return found + (_unkept(context, host, without) if without else [])


def _wrong(number: str, entry: Facts) -> List[str]:
    """What is wrong with one device's entry, in words."""
    address, mask = entry.get("address"), entry.get("netmask")
    if not address:
        return []
    try:
        own = ipaddress.ip_address(address)
    except ValueError:
        return [f"address_{number}={address} is no address"]
    if not mask:
        return [f"address_{number} without netmask_{number}"]
    try:
        network = ipaddress.ip_network(f"{address}/{mask}", strict=False)
    except ValueError:
        return [f"netmask_{number}={mask} is no netmask"]
    gateway = entry.get("gateway")
    try:
        outside = gateway and ipaddress.ip_address(gateway) not in network
    except ValueError:
        return [f"gateway_{number}={gateway} is no address"]
    return [f"gateway_{number}={gateway} is outside the network of {own}"] if outside else []


def duplicates(context: Context) -> Findings:
    """Addresses that two devices of the cluster have in their files."""
    owners: Dict[str, List[str]] = {}
    for host, node in context.nodes.items():
        for number, entry in (part(node, "npu").get("hccn") or {}).items():
            if entry.get("address") and chips_are("ascend", context.plan["hosts"][host]):
                owners.setdefault(entry["address"], []).append(f"{host} device {number}")
    twice = {address: some for address, some in owners.items() if len(some) > 1}
    if not twice:
        return []
    return [
        error(
            "C12",
            None,
            f"devices share addresses: {listed(twice)}",
            "; ".join(f"{address}: {listed(some)}" for address, some in list(twice.items())[:SHOWN]),
            "hccn.conf was copied from one server to another.",
            "Give every device an address of its own: hccn_tool -i N -ip -s address A netmask M.",
        )
    ]
