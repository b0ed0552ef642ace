"""What every emulated Ascend tool of a sandbox node reads: the state file and the HBM leases beside it.

Both lie in `/usr/local/dcmi`, which engine containers mount, so the tools tell the same story inside and outside.
This module is installed there too, for the same reason. Standard library only, Python 3.9.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

STATE_VARIABLE = "ASCENT_SANDBOX_STATE"
DEFAULT_STATE = "/usr/local/dcmi/state.json"


class StateError(Exception):
    """The state file is absent or is not JSON."""


def state_path() -> Path:
    """Where the state file is: `ASCENT_SANDBOX_STATE`, or the place it has on a node."""
    return Path(os.environ.get(STATE_VARIABLE, DEFAULT_STATE))


def read() -> dict[str, Any]:
    """The node's state. Raises StateError when it can't be read."""
    path = state_path()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: {error}") from error


def _holder(inode: int, locks: str) -> int:
    """The pid, as this pid namespace sees it, that holds a flock on `inode`; 0 when it belongs to another namespace."""
    for line in locks.splitlines():
        found = re.match(r"\d+: FLOCK\s+\w+\s+\w+\s+(-?\d+)\s+[0-9a-f]+:[0-9a-f]+:(\d+)\s", line)
        if found and int(found.group(2)) == inode:
            return max(0, int(found.group(1)))
    return 0


def leases() -> list[dict[str, Any]]:
    """HBM held by live engine processes: `[{pid, name, devices: {phy_id: MB}}]`, ordered by file name.

    A lease is a file in `leases/` beside the state file, `{"pid", "name", "devices": {"<phy_id>": MB}}`, that its
    process keeps locked (flock) while it lives. One whose lock is free belongs to a process that is gone and is
    ignored; so is one that is still being written.
    """
    found = []
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        locks = ""
    for path in sorted(state_path().parent.glob("leases/*.json")):
        try:
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    continue
                except BlockingIOError:
                    lease = json.load(file)
                pid = _holder(os.fstat(file.fileno()).st_ino, locks) or int(lease["pid"])
            devices = {int(phy_id): int(megabytes) for phy_id, megabytes in lease["devices"].items()}
            found.append({"pid": pid, "name": str(lease["name"]), "devices": devices})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def hbm_used_mb(device: dict[str, Any], held: list[dict[str, Any]]) -> int:
    """MB of a device's HBM in use: its own figure and all leases on it, at most all there is."""
    leased = sum(lease["devices"].get(device["phy_id"], 0) for lease in held)
    return min(device["hbm_total_mb"], device["hbm_used_mb"] + leased)
