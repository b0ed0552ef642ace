"""What is wanted of a host, checked before anything is read or written.

The names of a wish are those of the module ``host_tuning``; `NOTHING` is the wish that undoes everything.
"""

from __future__ import annotations

__all__ = [
    "NOTHING",
    "RESERVED_PORTS",
    "format_ports",
    "mistake",
    "one_line",
    "parse_ports",
    "sysctl_path",
    "wanted",
]

import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from . import cpus, firewall, host_names, time_service
from .errors import InputError, ParseError
from .findings import finding

RESERVED_PORTS = "net.ipv4.ip_local_reserved_ports"

# What may stand in a knob: it ends up in sysctl.d and in a shell line of the unit, so no quotes, dollars or newlines.
_VALUE = re.compile(r"[\w.,:+\- ]*\Z", re.ASCII)
_NAME = re.compile(r"[\w.\-/]+\Z", re.ASCII)
_LIMIT = re.compile(r"(\d+|unlimited)\Z", re.ASCII)


def parse_ports(text: str) -> Set[int]:
    """The ports of the kernel's list form, such as ``6884,23010-23025``.

    Raises InputError for anything but ports 1 to 65535 and rising ranges.

    >>> sorted(parse_ports("6884,23010-23012"))
    [6884, 23010, 23011, 23012]
    """
    ports: Set[int] = set()
    for part in text.replace("\n", ",").split(","):
        parsed = _ports(part.strip()) if part.strip() else set()
        if parsed is None:
            raise InputError([_bad_port(part.strip())])
        ports |= parsed
    return ports


def format_ports(ports: Iterable[int]) -> str:
    """The kernel's list form, sorted, with neighbours joined.

    >>> format_ports({6884, 23012, 23010, 23011})
    '6884,23010-23012'
    """
    return cpus.format_cpus(ports)


def sysctl_path(name: str) -> str:
    """The file of a sysctl. As in sysctl(8), the first separator tells which of ``.`` and ``/`` separates.

    >>> sysctl_path("vm.swappiness"), sysctl_path("net/ipv4/conf/eth0.100/rp_filter")
    ('/proc/sys/vm/swappiness', '/proc/sys/net/ipv4/conf/eth0.100/rp_filter')
    """
    separators = [character for character in name if character in "./"]
    if separators[:1] == ["."]:
        name = name.translate(str.maketrans("./", "/."))
    return "/proc/sys/" + name


def one_line(value: Any) -> str:
    """A knob's value as one line with single spaces, as sysctl(8) prints it."""
    return " ".join(str("" if value is None else value).split())


def mistake(summary: str) -> Dict[str, Any]:
    return finding("tuning-input", "error", summary, stage="tune", fix="correct the host_tuning_* variable")


def wanted(
    governor: str = "",
    sysctl: Optional[Mapping[str, Any]] = None,
    debugfs: Optional[Mapping[str, str]] = None,
    reserved_ports: Iterable[Any] = (),
    limits: Optional[Mapping[str, Any]] = None,
    hugepages: Optional[Mapping[str, str]] = None,
    shm_mb: int = 0,
    hosts: Iterable[Mapping[str, Any]] = (),
    firewall: Optional[Mapping[str, Any]] = None,
    ntp_servers: Iterable[str] = (),
    isolate_cpus: str = "",
    irq_devices: Iterable[str] = (),
    jemalloc: bool = False,
) -> Dict[str, Any]:
    """The checked wish; the names are those of the module ``host_tuning``, which describes them.

    ``{"governor", "sysctl": {name: text}, "debugfs": {sysctl: path}, "ports": [port], "limits": {item: text},
    "hugepages": {knob: word}, "shm_mb", "hosts": [entry], "firewall": {"sources", "ports", "clients", "client_ports",
    "nic"} or None, "ntp_servers", "isolate_cpus", "irq_devices": [bus id], "jemalloc"}``. A sysctl, limit or hugepage
    knob without a value (None) is left alone. Raises InputError with every mistake at once.
    """
    mistakes: List[Dict[str, Any]] = []
    settings: Dict[str, str] = {}
    for name, value in (sysctl or {}).items():
        if value is None:
            continue
        if not _NAME.match(str(name)) or ".." in str(name):
            mistakes.append(mistake(f"sysctl name {name!r} is not a path below /proc/sys, such as vm.swappiness"))
        elif isinstance(value, bool) or not isinstance(value, (int, str)) or not _VALUE.match(one_line(value)):
            mistakes.append(
                mistake(f"sysctl {name}: {value!r} is no number or plain text; write 0 or 1, not no or yes")
            )
        elif name == RESERVED_PORTS:
            mistakes.append(
                mistake(f"sysctl {name} is merged with what is reserved already; give reserved_ports instead")
            )
        else:
            settings[str(name)] = one_line(value)
    if not re.match(r"\w*\Z", governor, re.ASCII):
        mistakes.append(mistake(f"governor {governor!r} is not a word such as performance"))
    for name, path in (debugfs or {}).items():
        if not str(path).startswith("/sys/kernel/debug/") or not _NAME.match(str(path)) or ".." in str(path):
            mistakes.append(mistake(f"debugfs file of {name}: {path!r} does not lie below /sys/kernel/debug/"))
    items = {str(item): value for item, value in (limits or {}).items() if value is not None}
    for item, value in items.items():
        if not re.match(r"[a-z]+\Z", item, re.ASCII) or isinstance(value, bool) or not _LIMIT.match(str(value)):
            mistakes.append(mistake(f"limit {item}: {value!r} is not a number or unlimited, as in nofile: 1048576"))
    words = {str(name): value for name, value in (hugepages or {}).items() if value is not None}
    for name, value in words.items():
        if name not in ("enabled", "defrag") or not re.match(r"[a-z+]+\Z", str(value), re.ASCII):
            mistakes.append(
                mistake(f"hugepages {name}: {value!r}; there are enabled and defrag, with words such as madvise")
            )
    if isinstance(shm_mb, bool) or not isinstance(shm_mb, int) or shm_mb < 0:
        mistakes.append(mistake(f"shm_mb: {shm_mb!r} is not a number of MB; 0 leaves it alone"))
    names = [dict(entry) for entry in hosts]
    mistakes += [mistake(f"hosts: {problem}") for problem in host_names.check(names)]
    servers = [str(server) for server in ntp_servers]
    for server in time_service.check(servers):
        mistakes.append(mistake(f"time server {server!r} is neither a host name nor an address"))
    isolated, problem = _cpu_list(isolate_cpus)
    if problem:
        mistakes.append(mistake(f"CPUs to isolate: {problem}"))
    buses = [(str(text), cpus.bus_id(str(text))) for text in irq_devices]
    mistakes += [mistake(f"{text!r} is no PCI bus id such as 0000:c1:00.0") for text, bus in buses if bus is None]
    ports = _all_ports(reserved_ports, mistakes)
    opened = _wanted_firewall(firewall, mistakes) if firewall else None
    if mistakes:
        raise InputError(mistakes)
    return {
        "governor": governor,
        "sysctl": settings,
        "debugfs": {str(name): str(path) for name, path in (debugfs or {}).items()},
        "ports": sorted(ports),
        "limits": {item: str(value) for item, value in items.items()},
        "hugepages": {name: str(value) for name, value in words.items()},
        "shm_mb": shm_mb,
        "hosts": names,
        "firewall": opened,
        "ntp_servers": servers,
        "isolate_cpus": isolated,
        "irq_devices": sorted({bus for _, bus in buses if bus is not None}),
        "jemalloc": bool(jemalloc),
    }


def _wanted_firewall(given: Mapping[str, Any], mistakes: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """The checked openings; None where nothing is to be opened."""
    checked: Dict[str, Any] = {"nic": str(given.get("nic") or "")}
    for who in ("sources", "clients"):
        networks = [str(network) for network in given.get(who) or ()]
        wrong = firewall.check(networks)
        mistakes += [mistake(f"firewall {who}: {problem}") for problem in wrong]
        checked[who] = [] if wrong else firewall.covering(networks)
    for what in ("ports", "client_ports"):
        checked[what] = sorted(_all_ports(given.get(what) or (), mistakes))
    return checked if checked["sources"] or checked["clients"] else None


def _all_ports(parts: Iterable[Any], mistakes: List[Dict[str, Any]]) -> Set[int]:
    ports: Set[int] = set()
    for part in parts:
        parsed = _ports(str(part))
        if parsed is None:
            mistakes.append(_bad_port(str(part)))
        else:
            ports |= parsed
    return ports


def _cpu_list(text: str) -> Tuple[str, str]:
    try:
        return cpus.format_cpus(cpus.parse_cpus(str(text))), ""
    except ParseError as error:
        return "", str(error)


#: The wish that undoes everything.
NOTHING: Dict[str, Any] = wanted()


def _ports(part: str) -> Optional[Set[int]]:
    """One port or range; None when it is neither."""
    match = re.match(r"(\d+)(?:-(\d+))?\Z", part, re.ASCII)
    first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (0, 0)
    return set(range(first, last + 1)) if 1 <= first <= last <= 65535 else None


def _bad_port(part: str) -> Dict[str, Any]:
    return mistake(f"port {part!r} is not a port or a rising range within 1-65535, such as 23010-23025")
