"""Facts of a host beside its hardware: names, users, limits, packet filter, network interfaces. Changes nothing."""

from __future__ import annotations

__all__ = [
    "booted",
    "cgroup",
    "filters",
    "hugepages_mb",
    "limits",
    "missing_python",
    "names",
    "nics",
    "selinux",
    "service_user",
]

import importlib.util
import os
import queue
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

if TYPE_CHECKING:
    from .node import Node

_MB = 1024 * 1024
#: Seconds that name services have for all names together; one that is down lets a single name wait longer.
_NAME_SECONDS = 5.0
_LIMITS = {"nofile": "Max open files", "memlock": "Max locked memory", "nproc": "Max processes"}
_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")

Resolver = Callable[[str], List[str]]


def _ask(name: str) -> List[str]:
    try:
        return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError:
        return []


def booted(node: Node, now: Callable[[], float] = time.time) -> Optional[float]:
    """When the host started, by its own clock in seconds since the epoch: the start of its first process.

    That is also right for a host that is itself a container. None where /proc does not say.
    """
    # The second word of stat is a name in parentheses, which may have blanks; the start is the 22nd, in ticks.
    words = (node.text("/proc/1/stat") or "").rpartition(")")[2].split()
    uptime = (node.text("/proc/uptime") or "").split()
    try:
        return now() - (float(uptime[0]) - int(words[19]) / os.sysconf("SC_CLK_TCK"))
    except (IndexError, ValueError):
        return None


def missing_python() -> List[str]:
    """What Ansible's Docker modules need of this interpreter and do not find."""
    return [] if importlib.util.find_spec("requests") else ["requests"]


def names(
    node: Node, wanted: Iterable[str], resolve: Resolver = _ask, seconds: float = _NAME_SECONDS
) -> Dict[str, Optional[List[str]]]:
    """Addresses by name: none where a name is unknown, None where no name service answered in time.

    ``/etc/hosts`` goes before name services, as nearly every ``nsswitch.conf`` has it.
    """
    listed: Dict[str, List[str]] = {}
    for line in (node.text("/etc/hosts") or "").splitlines():
        words = line.split("#", 1)[0].split()
        for name in words[1:]:
            listed.setdefault(name.lower(), []).append(words[0])
    found = {name: listed.get(name.lower()) for name in wanted}
    answers: queue.Queue[Tuple[str, List[str]]] = queue.Queue()

    def ask(name: str) -> None:
        answers.put((name, resolve(name)))

    unknown = [name for name in found if found[name] is None]
    for name in unknown:
        # A name service that never answers must not keep the module from ending.
        threading.Thread(target=ask, args=(name,), daemon=True).start()
    end = time.monotonic() + seconds
    for _ in unknown:
        try:
            name, addresses = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        found[name] = addresses
    return found


def nics(node: Node) -> Dict[str, Dict[str, Any]]:
    """Network interfaces: ``{name: {"mtu", "state", "speed"}}``; speed in Mb/s, None where the driver tells none."""
    found = {}
    for name in node.names("/sys/class/net"):
        mtu, speed = (node.text(f"/sys/class/net/{name}/{file}") or "" for file in ("mtu", "speed"))
        found[name] = {
            "mtu": _number(mtu),
            "state": (node.text(f"/sys/class/net/{name}/operstate") or "").strip() or None,
            "speed": _number(speed),
        }
    return found


def selinux(node: Node) -> Optional[str]:
    """``enforcing`` or ``permissive``; None where SELinux is off."""
    text = (node.text("/sys/fs/selinux/enforce") or "").strip()
    return {"1": "enforcing", "0": "permissive"}.get(text)


def filters(node: Node) -> List[str]:
    """Managers of the packet filter that are active: ``firewalld``, ``ufw``."""
    found = []
    if any((node.text(f"{root}/system.slice/firewalld.service/cgroup.procs") or "").strip() for root in _CGROUPS):
        found.append("firewalld")
    if re.search(r"^\s*ENABLED\s*=\s*[\"']?yes", node.text("/etc/ufw/ufw.conf") or "", re.M | re.I):
        found.append("ufw")
    return found


def service_user(node: Node, name: str) -> Optional[Dict[str, Any]]:
    """``{"name", "uid", "gid", "group_gid"}`` of a user; ``group_gid`` is that of the group of the same name.

    Only ``/etc/passwd`` and ``/etc/group`` count: the driver's installer writes there, and containers see no more.
    """
    user, group = (
        re.search(rf"^{re.escape(name)}:[^:]*:([0-9]+)(?::([0-9]+))?", node.text(path) or "", re.M)
        for path in ("/etc/passwd", "/etc/group")
    )
    if user is None and group is None:
        return None
    return {
        "name": name,
        "uid": int(user.group(1)) if user else None,
        "gid": int(user.group(2)) if user and user.group(2) else None,
        "group_gid": int(group.group(1)) if group else None,
    }


def limits(text: Optional[str]) -> Optional[Dict[str, Optional[int]]]:
    """Soft limits in the text of ``/proc/PID/limits``: ``{"nofile", "memlock", "nproc"}``; None for unlimited.

    ``memlock`` is in bytes. None as a whole where there is no text.
    """
    if not text:
        return None
    found: Dict[str, Optional[int]] = {}
    for name, title in _LIMITS.items():
        match = re.search(rf"^{title}\s+(\S+)", text, re.M)
        found[name] = int(match.group(1)) if match and match.group(1).isdigit() else None
    return found


def cgroup(node: Node) -> Dict[str, Optional[int]]:
    """What holds for all containers of the host together: ``{"memory_max_mb", "pids_max"}``, None for no limit."""
    memory, pids = [], []
    for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/system.slice"):
        memory.append(_number(node.text(f"{folder}/memory.max") or ""))
        pids.append(_number(node.text(f"{folder}/pids.max") or ""))
    bytes_ = min((one for one in memory if one is not None), default=None)
    return {
        "memory_max_mb": None if bytes_ is None else bytes_ // _MB,
        "pids_max": min((one for one in pids if one is not None), default=None),
    }


def hugepages_mb(meminfo: Mapping[str, int], text: Optional[str]) -> int:
    """Memory that huge pages keep from everybody else: those of the default size."""
    match = re.search(r"^HugePages_Total:\s+([0-9]{1,12})$", text or "", re.M)
    return (int(match.group(1)) if match else 0) * meminfo.get("Hugepagesize", 0) // 1024


def _number(text: str) -> Optional[int]:
    text = text.strip()
    return int(text) if re.match(r"[0-9]{1,18}\Z", text) else None
