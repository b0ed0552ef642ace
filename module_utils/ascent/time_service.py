"""The time service of a host: which one there is, the site's servers in its settings, whether the clock follows them.

chrony is taken where it is installed, else systemd-timesyncd; a host with neither needs chrony's package. Another
daemon that sets the clock (ntpd, ntpsec, openntpd) is the site's own and stays as it is.
"""

from __future__ import annotations

__all__ = ["FILES", "OTHERS", "PACKAGE", "TIMESYNCD_FILE", "Service", "check", "find", "settings", "synchronised"]

import ctypes
import os
import re
from typing import Callable, Iterable, List, NamedTuple, Optional, Sequence

from .files import Tree, block, split_block

PACKAGE = "chrony"
TIMESYNCD_FILE = "/etc/systemd/timesyncd.conf.d/90-ascent.conf"
#: Services beside these two that set the clock.
OTHERS = ("ntp", "ntpd", "ntpsec", "openntpd")

#: Files with servers and the units that read them. Debian's family has other names for chrony's than the rest.
FILES = {
    "/etc/chrony/chrony.conf": "chrony",
    "/etc/chrony.conf": "chronyd",
    TIMESYNCD_FILE: "systemd-timesyncd",
}
_CHRONYD = ("/usr/sbin/chronyd", "/sbin/chronyd")
_TIMESYNCD = ("/usr/lib/systemd/systemd-timesyncd", "/lib/systemd/systemd-timesyncd")
_SERVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}\Z", re.ASCII)
# The kernel's answer for a clock that nothing steers.
_TIME_ERROR = 5
# Larger than struct timex of any kernel; all zeroes asks and changes nothing.
_TIMEX_BYTES = 1024


class Service(NamedTuple):
    """A time service: its systemd unit and the file that holds its servers."""

    unit: str
    file: str


def check(servers: Iterable[str]) -> List[str]:
    """Servers that are neither host names nor addresses."""
    return [server for server in servers if not _SERVER.match(server)]


def find(tree: Tree) -> Optional[Service]:
    """The service that is installed and not masked, chrony before timesyncd; None where there is neither."""
    for file, unit in FILES.items():
        program = _TIMESYNCD if file == TIMESYNCD_FILE else _CHRONYD
        # A masked unit is a link to /dev/null, which reads as nothing.
        masked = tree.read(f"/etc/systemd/system/{unit}.service") == ""
        there = file == TIMESYNCD_FILE or tree.exists(file)
        if there and not masked and any(tree.exists(path) for path in program):
            return Service(unit, file)
    return None


def settings(file: str, text: Optional[str], servers: Sequence[str], header: str) -> Optional[str]:
    """The text of one of `FILES` with exactly our ``servers``; None for a file that is then not needed.

    chrony's own file keeps what it has and gets a marked block: the site's servers are preferred to those of the
    distribution, which an offline site can't reach anyway.
    """
    if file == TIMESYNCD_FILE:
        return f"{header}[Time]\nNTP={' '.join(servers)}\n" if servers else None
    lines, ours = split_block(text or "")
    if not servers and not ours:
        return text
    if servers:
        lines += block(f"server {server} iburst prefer" for server in servers)
    return "\n".join(lines) + "\n"


def synchronised(ask: Optional[Callable[[], int]] = None) -> Optional[bool]:
    """Whether the kernel's clock is steered by a time service; None where the kernel does not tell."""
    state = _adjtimex() if ask is None else ask()
    return None if state < 0 else state != _TIME_ERROR


def _adjtimex() -> int:
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        return int(ctypes.CDLL(None, use_errno=True).adjtimex(buffer))
    except (AttributeError, OSError):
        return -os.EX_UNAVAILABLE
