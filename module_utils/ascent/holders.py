"""Which processes hold listening ports and device files, and in which container or unit each of them runs."""

from __future__ import annotations

__all__ = [
    "Scan",
    "container_names",
    "container_of",
    "describe",
    "everywhere",
    "is_device",
    "listening",
    "scan",
    "unit_of",
]

import os
import re
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set

if TYPE_CHECKING:
    from .node import Node

_TCP_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[([0-9]+)\]\Z")
_DEVICE = re.compile(r"/dev/davinci([0-9]+)\Z")
#: Whoever has one of these open uses the driver.
_DRIVER = re.compile(r"/dev/(?:davinci(?:[0-9]+|_manager)|devmm_svm|hisi_hdc)\Z")
_CONTAINER = re.compile(r"\b([0-9a-f]{64})\b")
_UNIT = re.compile(r"/([^/\n]+\.service)(?:/|$)", re.M)
#: Of a command line as many characters are kept.
_COMMAND = 120


class Scan(NamedTuple):
    """One walk over all processes."""

    #: Process by the inode of its listening socket.
    sockets: Dict[int, int]
    #: Processes by the number of the device (``/dev/davinciN``) that they have open.
    devices: Dict[int, List[int]]
    #: Processes that have a device or one of the driver's other files open, in order.
    users: List[int]
    #: One process for each program that was asked for.
    programs: Dict[str, int]


def is_device(path: str) -> bool:
    """Whether a path is a device of the NPU driver: a chip, or one of those through which it is managed."""
    return bool(_DRIVER.match(path))


def listening(*tables: Optional[str]) -> Dict[int, List[int]]:
    """Inodes of the sockets in state LISTEN, by port, in the texts of ``/proc/net/tcp`` and ``tcp6``."""
    found: Dict[int, List[int]] = {}
    for table in tables:
        for line in (table or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _TCP_LISTEN:
                inodes = found.setdefault(int(words[1].rsplit(":", 1)[1], 16), [])
                if len(words) > 9 and words[9].isdigit():
                    inodes.append(int(words[9]))
    return found


#: All addresses, as the kernel's tables of IPv4 and IPv6 write them.
_ALL = frozenset(("00000000", "0" * 32))


def everywhere(*tables: Optional[str]) -> List[int]:
    """Ports that are listened on at all addresses, in the same texts."""
    found = set()
    for table in tables:
        for line in (table or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _TCP_LISTEN:
                address, port = words[1].rsplit(":", 1)
                if address in _ALL:
                    found.add(int(port, 16))
    return sorted(found)


def scan(node: Node, inodes: Iterable[int], programs: Iterable[str] = ()) -> Scan:
    """Who holds these sockets and any device file; ``programs`` are names as in ``/proc/PID/comm``."""
    wanted, names = set(inodes), set(programs)
    result = Scan({}, {}, [], {})
    for pid in sorted(int(name) for name in node.names("/proc") if name.isdigit()):
        if names:
            comm = (node.text(f"/proc/{pid}/comm") or "").strip()
            if comm in names:
                result.programs.setdefault(comm, pid)
        devices: Set[int] = set()
        uses = False
        for descriptor in node.names(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(node.path(f"/proc/{pid}/fd/{descriptor}"))
            except OSError:  # closed meanwhile
                continue
            socket, device = _SOCKET.match(target), _DEVICE.match(target)
            if socket and int(socket.group(1)) in wanted:
                result.sockets.setdefault(int(socket.group(1)), pid)
            elif device:
                devices.add(int(device.group(1)))
            uses = uses or is_device(target)
        if uses:
            result.users.append(pid)
        for number in devices:
            result.devices.setdefault(number, []).append(pid)
    return result


def describe(node: Node, pids: Iterable[int]) -> Dict[str, Dict[str, Optional[str]]]:
    """``{pid: {"command", "container", "unit"}}``: the command line, the id of its container, its unit of systemd.

    ``container`` and ``unit`` are None for a process that is in none; the unit of a container's process is not told.
    """
    found = {}
    for pid in sorted(set(pids)):
        words = (node.text(f"/proc/{pid}/cmdline") or "").replace("\0", " ").strip()
        command = words or (node.text(f"/proc/{pid}/comm") or "").strip() or None
        found[str(pid)] = {
            "command": command[:_COMMAND] if command else None,
            "container": container_of(node, pid),
            "unit": unit_of(node, pid),
        }
    return found


def container_of(node: Node, pid: int) -> Optional[str]:
    """The id of a process's container; None for a process of the host."""
    match = _CONTAINER.search(node.text(f"/proc/{pid}/cgroup") or "")
    return match.group(1) if match else None


def unit_of(node: Node, pid: int) -> Optional[str]:
    """The service that systemd runs a process in; None for a process of a login or of a container."""
    text = node.text(f"/proc/{pid}/cgroup") or ""
    match = None if _CONTAINER.search(text) else _UNIT.search(text)
    return match.group(1) if match else None


def container_names(
    node: Node, program: str, processes: Mapping[str, Dict[str, Any]], known: Optional[Mapping[str, str]] = None
) -> None:
    """Put names for the ids of containers.

    ``known``: names by id. The container engine is asked only for others; the id of one that it does not know is cut.
    """
    names = dict(known or {})
    if {one["container"] for one in processes.values() if one["container"]} - set(names):
        code, out, _ = node.run(program, "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}")
        if code == 0:
            names.update(dict(line.split(None, 1) for line in out.splitlines() if len(line.split()) > 1))
    for one in processes.values():
        if one["container"]:
            one["container"] = names.get(one["container"], one["container"][:12])
