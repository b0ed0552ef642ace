"""CPUs of a host: lists of them, the NUMA nodes of devices and where their interrupts go, the kernel's command line.

Everything is read through a `Tree` and nothing is written here. Interrupt numbers change from boot to boot, so devices
are named by their PCI bus id, and their interrupts are looked up anew each time.
"""

from __future__ import annotations

__all__ = [
    "DEFAULT_AFFINITY",
    "ISOLATION",
    "affinity_line",
    "bus_id",
    "devices",
    "format_cpus",
    "interrupts",
    "isolation_arguments",
    "missing_arguments",
    "parse_cpus",
]

import re
from typing import Any, Dict, Iterable, List, Optional, Set

from .errors import ParseError
from .files import Tree

#: Options of the kernel's command line that keep the scheduler, its ticks and RCU's callbacks off the named CPUs.
ISOLATION = ("isolcpus", "nohz_full", "rcu_nocbs")
#: The mask that the kernel gives to interrupts nobody has placed.
DEFAULT_AFFINITY = "/proc/irq/default_smp_affinity"

_BUS_ID = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\Z")


def parse_cpus(text: str) -> Set[int]:
    """The CPUs of the kernel's list form. ParseError for anything else.

    >>> sorted(parse_cpus("0-2,8"))
    [0, 1, 2, 8]
    """
    cpus: Set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        match = re.match(r"([0-9]{1,6})(?:-([0-9]{1,6}))?\Z", part.strip())
        first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (1, 0)
        if first > last:
            raise ParseError("list of CPUs", f"{part.strip()!r} is no CPU or rising range, as in 0-23,48")
        cpus.update(range(first, last + 1))
    return cpus


def format_cpus(cpus: Iterable[int]) -> str:
    """The kernel's list form, sorted, with neighbours joined.

    >>> format_cpus({8, 0, 1, 2})
    '0-2,8'
    """
    ranges: List[List[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def bus_id(text: str) -> Optional[str]:
    """A PCI bus id as sysfs writes it; None for what is none.

    >>> bus_id("0000:C1:00.0"), bus_id("C1:00.0"), bus_id("00000000:19:00.0"), bus_id("NA")
    ('0000:c1:00.0', '0000:c1:00.0', '0000:19:00.0', None)
    """
    match = _BUS_ID.match(text.strip().lower())
    if match is None:
        return None
    domain = (match.group(1) or "0000").lstrip("0").rjust(4, "0")
    return f"{domain}:{match.group(2)}"


def interrupts(tree: Tree, bus: str) -> List[int]:
    """Numbers of a device's interrupts: those of MSI where it has any, else its line."""
    place = f"/sys/bus/pci/devices/{bus}"
    found = [path.rpartition("/")[2] for path in tree.glob(f"{place}/msi_irqs/*")] or [
        (tree.read(f"{place}/irq") or "")
    ]
    return sorted({int(number) for number in found if number.strip().isdigit() and int(number)})


def devices(tree: Tree, buses: Iterable[str]) -> List[Dict[str, Any]]:
    """Where each device hangs, ``{"bus", "node", "cpus", "interrupts": {number: CPU list it goes to now}}``.

    ``node`` is None where the device is absent or the firmware names no NUMA node (-1), ``cpus`` is then empty.
    """
    found = []
    for bus in buses:
        text = (tree.read(f"/sys/bus/pci/devices/{bus}/numa_node") or "").strip()
        node = int(text) if text.isdigit() else None
        cpus = "" if node is None else (tree.read(f"/sys/devices/system/node/node{node}/cpulist") or "").strip()
        lists = {number: tree.read(f"/proc/irq/{number}/smp_affinity_list") for number in interrupts(tree, bus)}
        found.append(
            {
                "bus": bus,
                "node": node,
                "cpus": cpus,
                "interrupts": {number: text.strip() for number, text in lists.items() if text is not None},
            }
        )
    return found


def affinity_line(bus: str, cpus: str) -> str:
    """The shell command that places a device's interrupts at boot, when their numbers are others.

    An interrupt that the kernel manages itself refuses; that must not end the loop.
    """
    place = f"/sys/bus/pci/devices/{bus}"
    return (
        f"for irq in $(ls {place}/msi_irqs 2>/dev/null || cat {place}/irq); do"
        f" echo {cpus} > /proc/irq/$irq/smp_affinity_list || true; done"
    )


def isolation_arguments(cpus: str) -> List[str]:
    """What the kernel has to be booted with for ``cpus`` to be left alone; nothing for no CPUs.

    >>> isolation_arguments("8-31")
    ['isolcpus=8-31', 'nohz_full=8-31', 'rcu_nocbs=8-31']
    """
    return [f"{option}={cpus}" for option in ISOLATION] if cpus else []


def missing_arguments(cmdline: str, arguments: Iterable[str]) -> List[str]:
    """Those of ``arguments`` that the running kernel was not booted with."""
    words = cmdline.split()
    return [argument for argument in arguments if argument not in words]
