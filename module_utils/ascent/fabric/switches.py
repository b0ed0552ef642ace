"""Judges which switch port each device is plugged into, as the switches tell by LLDP."""

from __future__ import annotations

__all__ = ["judge"]

import collections
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .common import Device, Findings, found, majority, names

# Names of switch ports are lists of numbers (400GE1/0/7:1); no port has a number as large as this.
_BASE = 4096
_FEWEST_HOSTS = 3
_FEWEST_DEVICES = 4

_Port = Tuple[str, str]


def judge(neighbours: Mapping[Device, Optional[Mapping[str, Any]]]) -> Findings:
    """``neighbours`` maps a device to its ``lldp``. A port counts as wrong only where the others leave no doubt.

    Two signs are taken: cables of one host that were swapped, so that the row of its ports is broken and becomes whole
    by putting them back; and one host's device on another switch than the same device of all other hosts.
    """
    ports: Dict[Device, _Port] = {}
    for device, told in neighbours.items():
        if told and len(told["interfaces"]) == 1 and len(told["systems"]) <= 1:
            ports[device] = ((told["systems"] or [""])[0], told["interfaces"][0])
    wrong = {**_elsewhere(ports), **_swapped(ports)}
    findings: Findings = []
    for host in sorted({host for host, _number in wrong}):
        own = [device for device in wrong if device[0] == host]
        findings.append(
            found(
                "C14",
                "warning",
                f"cables in wrong switch ports: {names(own)}",
                host=host,
                evidence="; ".join(
                    f"device {one[1]} at {' '.join(ports[one]).strip()}, expected {wrong[one]}" for one in own
                ),
                cause="The cables of these devices were swapped or put into another switch: traffic of one rail "
                "takes two.",
                fix="hccn_tool -i DEVICE -lldp -g shows the port; move the cable, or plan the addresses as it is "
                "wired.",
            )
        )
    return findings


def _swapped(ports: Mapping[Device, _Port]) -> Dict[Device, str]:
    rows: Dict[Tuple[str, str, str], Dict[int, int]] = collections.defaultdict(dict)
    for (host, number), (system, port) in ports.items():
        value = 0
        for part in re.findall(r"[0-9]+", port):
            value = value * _BASE + int(part) % _BASE
        rows[host, system, re.sub(r"[0-9]+", "#", port)][number] = value
    wrong: Dict[Device, str] = {}
    for (host, _system, _shape), row in rows.items():
        places = sorted(row)
        # Ports in the order of the devices, up or down, as they would be without a swap.
        for expected in (dict(zip(places, sorted(row.values(), reverse=down))) for down in (False, True)):
            odd = [place for place in places if row[place] != expected[place]]
            if 2 * len(odd) <= len(places) and _regular(expected):
                owner = {value: number for number, value in row.items()}
                wrong.update({(host, number): ports[host, owner[expected[number]]][1] for number in odd})
                break
    return wrong


def _regular(row: Mapping[int, int]) -> bool:
    """Whether a row of at least four numbers goes up or down in one step."""
    places = sorted(row)
    steps = {(row[right] - row[left]) / (right - left) for left, right in zip(places, places[1:])}
    return len(places) >= _FEWEST_DEVICES and len(steps) == 1 and steps != {0.0}


def _elsewhere(ports: Mapping[Device, _Port]) -> Dict[Device, str]:
    by_number: Dict[int, List[Tuple[Device, str]]] = collections.defaultdict(list)
    for device, (system, _port) in ports.items():
        if system:
            by_number[device[1]].append((device, system))
    wrong: Dict[Device, str] = {}
    for seen in by_number.values():
        usual = majority(system for _device, system in seen)
        odd = [device for device, system in seen if system != usual]
        if usual is not None and len(seen) >= _FEWEST_HOSTS and len(odd) == 1:
            wrong[odd[0]] = f"switch {usual}"
    return wrong
