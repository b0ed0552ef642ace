"""Judges the devices' addresses: each its own, in the right network, the same live, in the file and in containers."""

from __future__ import annotations

__all__ = ["judge", "roce_matters"]

import collections
import ipaddress
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..npu import CONF
from .common import Device, Findings, fabric_devices, found, majority, misfits, names

_CONF_KEYS = (
    ("address", "ip", "address"),
    ("netmask", "ip", "netmask"),
    ("gateway", "gateway", "gateway"),
    ("netdetect", "netdetect", "address"),
)
_SHOWN = 6

_Plan = Mapping[str, Any]
_Npus = Mapping[str, Optional[Mapping[str, Any]]]


def roce_matters(plan: _Plan, npus: _Npus) -> bool:
    """Whether traffic of this plan takes the RoCE ports.

    On A2 all of it does. On A3 it does where containers read the RoCE addresses (KV transfer), or where the hosts
    belong to more than one super pod.
    """
    planes = {host["fabric"]["address"] for host in plan["hosts"].values() if host.get("fabric")}
    if "ip" in planes or conf_readers(plan):
        return True
    pods = {
        (device.get("super_pod") or {}).get("id")
        for facts in npus.values()
        if facts
        for device in facts["devices"].values()
    }
    return len(pods - {None}) > 1


def conf_readers(plan: _Plan) -> Set[str]:
    """Hosts of processes whose containers read the configuration file."""
    return {
        str(process["host"])
        for process in plan.get("processes", ())
        if any(mount["target"] == CONF for mount in (process.get("container") or {}).get("mounts", ()))
    }


def _plane(plan: _Plan, device: Device) -> str:
    return str(plan["hosts"][device[0]]["fabric"]["address"])


def _value(npus: _Npus, device: Device, option: str, key: str) -> Optional[str]:
    entry = ((npus.get(device[0]) or {}).get("devices") or {}).get(str(device[1])) or {}
    value: Optional[str] = (entry.get(option) or {}).get(key)
    return value


def _read(npus: _Npus, device: Device, option: str) -> bool:
    """Whether the option of the device was read at all; an answer that there is none counts as read."""
    entry = ((npus.get(device[0]) or {}).get("devices") or {}).get(str(device[1])) or {}
    return entry.get(option) is not None


def _conf(npus: _Npus, device: Device) -> Optional[Mapping[str, str]]:
    devices = ((npus.get(device[0]) or {}).get("conf") or {}).get("devices")
    return None if devices is None else devices.get(str(device[1]), {})


def judge(plan: _Plan, npus: _Npus) -> Tuple[Findings, Set[Device], Set[Device]]:
    """Findings; the devices whose failed pings they explain; and those whose RoCE port can't work for their sake."""
    devices = [device for device in fabric_devices(plan) if npus.get(device[0])]
    matters = "error" if roce_matters(plan, npus) else "warning"
    findings: Findings = []
    missing, lost = _missing(plan, npus, devices, matters)
    doubled, owning, taken = _doubled(plan, npus, devices, matters)
    networks, outside = _networks(npus, devices, matters)
    # What stands against a RoCE port says nothing of a device that is reached over HCCS.
    explained = {device for device in lost if not _value(npus, device, _plane(plan, device), "address")} | taken
    explained |= {device for device in outside if _plane(plan, device) == "ip"}
    findings += missing + doubled + networks
    findings += _differing(npus, [one for one in devices if one not in lost | owning], matters)
    findings += _files(plan, npus, devices, matters)
    return findings, explained, lost | owning | outside


# -- missing and doubled -----------------------------------------------------------------------------------------------


def _missing(plan: _Plan, npus: _Npus, devices: Sequence[Device], matters: str) -> Tuple[Findings, Set[Device]]:
    findings: Findings = []
    lost: Set[Device] = set()
    for host in sorted({host for host, _number in devices}):
        own = [device for device in devices if device[0] == host]
        plane = plan["hosts"][host]["fabric"]["address"]
        for option, severity in ((plane, "error"),) if plane == "ip" else ((plane, "error"), ("ip", matters)):
            known = [device for device in own if _read(npus, device, option)]
            without = [device for device in known if not _value(npus, device, option, "address")]
            # RoCE ports of an A3 that none of its devices uses need no addresses.
            if not without or (option != plane and len(without) == len(known)):
                continue
            lost |= set(without)
            files = [f"device {one[1]}: {(_conf(npus, one) or {}).get('address') or 'none'}" for one in without]
            findings.append(
                found(
                    "C11",
                    severity,
                    f"devices without an address on the device network: {names(without)}",
                    host=host,
                    evidence=f"hccn_tool -{option} -g has none for {len(without)} of {len(known)} devices; "
                    f"{CONF} has {'; '.join(files[:_SHOWN])}",
                    cause="Never configured, or lost when the device was reset.",
                    fix="Set it, live and in the file: hccn_tool -i DEVICE -ip -s address ADDRESS netmask NETMASK; "
                    "hccn_tool -a -cfg recovery takes what the file has."
                    if option == "ip"
                    else "hccn_tool -i DEVICE -vnic -g; the driver sets this address: reset the device or the node.",
                )
            )
    return findings, lost


def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))


def _misfits(npus: _Npus, owners: Sequence[Device], devices: Sequence[Device], option: str) -> List[Device]:
    """Those owners of an address whom it does not suit: they break the row in which their host's addresses go up."""
    odd = []
    for owner in owners:
        row = {
            number: _number(value)
            for host, number in devices
            for value in [_value(npus, (host, number), option, "address")]
            if host == owner[0] and value
        }
        if owner[1] in misfits(row):
            odd.append(owner)
    return odd


def _doubled(
    plan: _Plan, npus: _Npus, devices: Sequence[Device], matters: str
) -> Tuple[Findings, Set[Device], Set[Device]]:
    """Findings; all owners of a doubled RoCE address; and those of one on the plane that is pinged."""
    findings: Findings = []
    explained: Set[Device] = set()
    owning: Set[Device] = set()
    for option in ("vnic", "ip"):
        owners: Dict[str, List[Device]] = collections.defaultdict(list)
        for device in devices:
            value = _value(npus, device, option, "address")
            if value:
                owners[value].append(device)
        for value, taken in sorted(owners.items()):
            if len(taken) < 2:
                continue
            strangers = [one for one in taken if (_conf(npus, one) or {}).get("address") not in (None, value)]
            if option == "vnic" or not strangers or len(strangers) == len(taken):
                strangers = _misfits(npus, taken, devices, option)
            known = strangers if strangers and len(strangers) < len(taken) else []
            rightful = [one for one in taken if one not in known]
            plane = _plane(plan, taken[0])
            explained |= set(taken) if option == plane else set()
            # Replies to either owner go where the switches saw the address last.
            owning |= set(taken) if option == "ip" else set()
            tool = "-vnic -g" if option == "vnic" else "-ip -g"
            findings.append(
                found(
                    "C12",
                    "error" if option == plane else matters,
                    f"{names(known)} has the address of {names(rightful)}: {value}"
                    if known
                    else f"device address {value} is taken {len(taken)} times: {names(taken)}",
                    devices=known or taken,
                    evidence=f"hccn_tool {tool} gives {value} for {names(taken)}"
                    + "".join(
                        f"; {CONF} of {one[0]} has {text}" for one in taken for text in [_in_file(npus, one)] if text
                    ),
                    cause=f"{CONF} was copied from another node, or a replaced device kept its address.",
                    fix="Give the device an address of its own: hccn_tool -i DEVICE -ip -s address ADDRESS netmask "
                    "NETMASK.",
                )
            )
    return findings, owning, explained


def _in_file(npus: _Npus, device: Device) -> str:
    conf = _conf(npus, device)
    return f"address_{device[1]}={conf.get('address', '')}" if conf is not None else ""


# -- networks ----------------------------------------------------------------------------------------------------------


def _networks(npus: _Npus, devices: Sequence[Device], matters: str) -> Tuple[Findings, Set[Device]]:
    """Netmasks and gateways that keep a device from its peers."""
    facts: Dict[Device, Tuple[str, str, Optional[str], bool]] = {}
    for device in devices:
        address, netmask = (_value(npus, device, "ip", key) for key in ("address", "netmask"))
        if address and netmask and ":" not in address:
            known = _read(npus, device, "gateway")
            facts[device] = (address, netmask, _value(npus, device, "gateway", "gateway"), known)
    if not facts:
        return [], set()
    networks = {
        device: ipaddress.IPv4Interface(f"{address}/{netmask}").network
        for device, (address, netmask, _gateway, _known) in facts.items()
    }
    mask = majority(one[1] for one in facts.values())
    gateways: Dict[Any, List[Optional[str]]] = collections.defaultdict(list)
    for address, netmask, gateway, known in facts.values():
        if known:
            # A device with an odd netmask is held against the network that the common one would give it.
            gateways[ipaddress.IPv4Interface(f"{address}/{mask or netmask}").network].append(gateway)
    usual = {network: majority(values) for network, values in gateways.items()}
    wrong: Dict[Device, List[str]] = {}
    for device, (address, netmask, gateway, known) in facts.items():
        reasons = []
        if mask and netmask != mask:
            reasons.append(f"netmask {netmask}, the others {mask}")
        wanted = usual.get(ipaddress.IPv4Interface(f"{address}/{mask or netmask}").network)
        if known and gateway and ipaddress.ip_address(gateway) not in networks[device]:
            reasons.append(f"gateway {gateway} is outside its network {networks[device]}")
        elif known and wanted and gateway != wanted:
            reasons.append(f"gateway {gateway or 'none'}, the others {wanted}")
        if reasons:
            wrong[device] = reasons
    odd = {device for device in wrong if len(wrong) * 2 < len(facts) or len(facts) < 3}
    findings: Findings = []
    for host in sorted({host for host, _number in wrong}):
        own = [device for device in wrong if device[0] == host]
        findings.append(
            found(
                "C13",
                matters,
                f"devices in another network than their peers: {names(own)}",
                host=host,
                evidence="; ".join(f"device {one[1]}: {', '.join(wrong[one])}" for one in own[:_SHOWN]),
                cause="Netmask or gateway were planned or typed differently for these devices.",
                fix="hccn_tool -i DEVICE -ip -s address ADDRESS netmask NETMASK, then hccn_tool -i DEVICE -gateway -s "
                "gateway GATEWAY.",
            )
        )
    apart = sorted(
        device
        for device, (_address, _netmask, gateway, known) in facts.items()
        if device not in wrong
        and known
        and not gateway
        and any(
            other[0] != device[0]
            and other[1] == device[1]
            and other not in wrong
            and networks[other] != networks[device]
            for other in facts
        )
    )
    if apart:
        shown = sorted({str(networks[device]) for device in apart})
        findings.append(
            found(
                "C13",
                matters,
                f"devices in different networks have no gateway to each other: {names(apart)}",
                devices=apart,
                evidence=f"networks {', '.join(shown[:_SHOWN])}",
                cause="The addresses were planned for one network, or the gateways were forgotten.",
                fix="hccn_tool -i DEVICE -gateway -s gateway GATEWAY, or addresses of one network for one rail.",
            )
        )
    return findings, odd


# -- the file ----------------------------------------------------------------------------------------------------------


def _differing(npus: _Npus, devices: Sequence[Device], matters: str) -> Findings:
    """A file that says something else than the devices."""
    live = {_value(npus, device, "ip", "address"): device for device in devices}
    findings: Findings = []
    for host in sorted({host for host, _number in devices}):
        if not ((npus[host] or {}).get("conf") or {}).get("devices"):
            continue
        lines = {}
        for device in (one for one in devices if one[0] == host):
            conf = _conf(npus, device) or {}
            told = []
            for key, option, field in _CONF_KEYS:
                # 0.0.0.0 is how the file writes that there is none.
                file = conf.get(key, "").strip()
                file = "" if file == "0.0.0.0" else file  # noqa: S104 - read, not bound
                value = _value(npus, device, option, field) or ""
                # A gateway of the device alone is no difference: not every driver writes it down.
                if not _read(npus, device, option) or file == value or (key != "address" and not file):
                    continue
                owner = live.get(file)
                whose = f" (that of {names([owner])})" if key == "address" and file and owner else ""
                told.append(f"{key} in the file {file or 'none'}{whose}, live {value or 'none'}")
            if told:
                lines[device] = told
        if lines:
            findings.append(
                found(
                    "hccn-conf-differs",
                    matters,
                    f"{CONF} differs from the live settings: {names(lines)}",
                    host=host,
                    evidence="; ".join(
                        f"device {one[1]}: {', '.join(told)}" for one, told in list(lines.items())[:_SHOWN]
                    ),
                    cause="The file was edited or copied by hand: it takes effect at the next reset only. Or an "
                    "address "
                    "was set for the running driver alone. Containers that read the file use wrong addresses.",
                    fix="Write the right ones with hccn_tool -i DEVICE -ip -s address ADDRESS netmask NETMASK, "
                    "which keeps "
                    "both the same; hccn_tool -a -cfg recovery makes the devices take what the file has.",
                )
            )
    return findings


def _files(plan: _Plan, npus: _Npus, devices: Sequence[Device], matters: str) -> Findings:
    """A file that is missing or can't be read, on the host or in a container, and one that a container sees else."""
    findings: Findings = []
    readers = conf_readers(plan)
    for host in sorted({host for host, _number in devices}):
        facts = npus[host] or {}
        conf = facts.get("conf") or {}
        addressed = any(_value(npus, device, "ip", "address") for device in devices if device[0] == host)
        if conf.get("error"):
            findings.append(
                found(
                    "hccn-conf-unreadable",
                    matters,
                    f"{CONF} of {host} can't be understood",
                    host=host,
                    evidence=str(conf["error"]),
                    cause="A line without an equals sign: an editor's or a copy's leftover.",
                    fix=f"Correct the line in {CONF}; hccn_tool -i DEVICE -ip -s writes the lines of a device anew.",
                )
            )
        elif not conf.get("devices") and (addressed or host in readers):
            findings.append(
                found(
                    "D30",
                    "error" if host in readers else "warning",
                    f"{CONF} of {host} is {'empty' if conf.get('present') else 'missing'}",
                    host=host,
                    evidence="containers are to read it"
                    if host in readers
                    else "the devices have addresses all the same",
                    cause="Never written, or deleted. Addresses are lost at the next reset, and KV transfer, which "
                    "reads "
                    "them from this file in its container, does not start.",
                    fix="Set the addresses again with hccn_tool -i DEVICE -ip -s address ADDRESS netmask NETMASK, "
                    "which writes it.",
                )
            )
        for seen in facts.get("containers") or ():
            findings += _container(host, seen, conf)
    return findings


def _container(host: str, seen: Mapping[str, Any], conf: Mapping[str, Any]) -> Findings:
    if conf.get("devices") and not seen.get("devices"):
        return [
            found(
                "D30",
                "error",
                f"container {seen['name']} on {host} does not see {CONF}",
                host=host,
                evidence=str(seen.get("error") or f"{CONF} is empty there"),
                cause="The file is not mounted into the container, or it was missing when the container was made.",
                fix=f"Mount it read-only ({CONF}:{CONF}:ro) and make the container anew: run --tags launch.",
            )
        ]
    if not conf.get("devices") or seen.get("devices") == conf["devices"]:
        return []
    numbers = sorted(
        (
            number
            for number in {*conf["devices"], *seen["devices"]}
            if conf["devices"].get(number) != seen["devices"].get(number)
        ),
        key=int,
    )
    return [
        found(
            "hccn-conf-stale",
            "error",
            f"container {seen['name']} on {host} sees an older {CONF}: devices {', '.join(numbers[:_SHOWN])}",
            host=host,
            evidence=f"device {numbers[0]}: host {conf['devices'].get(numbers[0])}, container "
            f"{seen['devices'].get(numbers[0])}",
            cause="The file was replaced by another while the container ran; a mounted file stays the one it was.",
            fix=f"Restart the container: docker restart {seen['name']}.",
        )
    ]
