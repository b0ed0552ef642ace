"""What every emulated tool of a sandbox node reads: the state file and the HBM leases beside it.

Both lie in `/usr/local/dcmi`, which engine containers mount, so the tools tell the same story inside and outside.
This module is installed there too, for the same reason. Standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE_VARIABLE = "ASCENT_SANDBOX_STATE"
DEFAULT_STATE = "/usr/local/dcmi/state.json"
ROOT_VARIABLE = "ASCENT_SANDBOX_ROOT"
# How the tools write that no address to detect is set.
UNSET = "0.0.0.0"  # noqa: S104 -- a value, not bound


class StateError(Exception):
    """The state file is absent or is not JSON."""


def state_path() -> Path:
    """Where the state file is: `ASCENT_SANDBOX_STATE`, or the place it has on a node."""
    return Path(os.environ.get(STATE_VARIABLE, DEFAULT_STATE))


def on_node(path: str) -> Path:
    """A file of the node's own, such as `etc/hccn.conf`; below `ASCENT_SANDBOX_ROOT` where that is set, for tests."""
    return Path(os.environ.get(ROOT_VARIABLE, "/")) / path


def read() -> dict[str, Any]:
    """The node's state. Raises StateError when it can't be read."""
    path = state_path()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: {error}") from error


@contextlib.contextmanager
def changed() -> Iterator[dict[str, Any]]:
    """The state, to be changed by one writer at a time; readers see the old or the new one, never half of it.

    Nothing is written when the body raises or leaves the state as it was. Raises StateError as `read` does.
    """
    path = state_path()
    with (path.parent / "state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = read()
        before = json.dumps(state)
        yield state
        if json.dumps(state) != before:
            new = path.with_suffix(".new")
            new.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            new.replace(path)


def answer_for(tool: str, arguments: list[str], state: dict[str, Any]) -> None:
    """Ends the program with the reply that the state has for this call, if it has one."""
    for reply in state["faults"]["replies"]:
        wanted = reply["arguments"]
        if reply["tool"] == tool and arguments[: len(wanted)] == wanted:
            time.sleep(reply.get("seconds", 0))
            sys.stdout.write(reply.get("stdout", ""))
            sys.stderr.write(reply.get("stderr", ""))
            sys.exit(reply.get("exit", 0))


def configuration() -> dict[str, str]:
    """The lines of /etc/hccn.conf; the last of equal keys wins."""
    path = on_node("etc/hccn.conf")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return dict(re.findall(r"^\s*(\w+)\s*=[ \t]*(\S*)", text, re.M))


def configure(device: dict[str, Any], configured: dict[str, str]) -> bool:
    """Gives one port its configured addresses; False, and no change, where they are not addresses."""
    port, number = device["roce"], device["phy_id"]
    wanted = {key: configured.get(f"{key}_{number}", "") for key in ("address", "netmask", "gateway", "netdetect")}
    try:
        if wanted["address"]:
            ipaddress.IPv4Interface(f"{wanted['address']}/{wanted['netmask']}")
        for key in ("gateway", "netdetect"):
            if wanted[key]:
                ipaddress.IPv4Address(wanted[key])
    except ValueError:
        return False
    port.update(address=wanted["address"], gateway=wanted["gateway"])
    port["netmask"] = wanted["netmask"] or port["netmask"]
    port["netdetect"] = wanted["netdetect"] or UNSET
    return True


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


def processes_of(device: dict[str, Any], state: dict[str, Any], held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The processes that hold memory of one device, `{pid, name, memory_mb}`: the state's rows, then live leases."""
    rows = [process for process in state["processes"] if process["phy_id"] == device["phy_id"]]
    for lease in held:
        megabytes = lease["devices"].get(device["phy_id"])
        if megabytes:
            rows.append({"pid": lease["pid"], "name": lease["name"], "memory_mb": megabytes})
    return rows
