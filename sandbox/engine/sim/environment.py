"""What the engine needs around it: CANN and driver libraries, device files, free HBM.

Paths are taken below SIM_ROOT (default `/`), so that tests can bring a tree of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import uuid
from pathlib import Path
from typing import IO

from .log import EngineError

# One die of an Atlas 800 A3 or A2 has 64 GiB of HBM, where the node's state file says nothing else.
HBM_MB = 65536
# Of 64 GiB an engine sees 61.28: the rest is the driver's.
USABLE = 61.28 / 64
CANN_LIBRARIES = ("libhccl.so", "libascendcl.so", "libatb.so")
CONTROL_FILES = ("davinci_manager", "devmm_svm", "hisi_hdc")


def rooted(path: str) -> Path:
    """A path of the machine, below SIM_ROOT when that is set."""
    return Path(os.environ.get("SIM_ROOT", "/")) / path.lstrip("/")


def check_libraries() -> None:
    """Fail as `import torch_npu` does when the CANN environment was not sourced or the driver is not mounted."""
    folders = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    for library in CANN_LIBRARIES:
        if not any((folder / library).exists() for folder in folders):
            raise _missing(library)
    driver = rooted("/usr/local/Ascend/driver/lib64")
    if not any(driver.rglob("libascend_hal.so")):
        raise _missing("libascend_hal.so")
    if not rooted("/usr/local/dcmi").is_dir():
        raise _missing("libdcmi.so")


def _missing(library: str) -> EngineError:
    return EngineError(
        "Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` "
        "to turn on verbose logging to help debug the issue.",
        kind="RuntimeError",
        lines=(
            "Failed to load plugin ascend",
            f"ImportError: {library}: cannot open shared object file: No such file or directory",
        ),
    )


def visible_devices() -> list[int]:
    """Physical ids of the devices this process may use, in the order of its local ranks."""
    folder = rooted("/dev")
    for name in CONTROL_FILES:
        if not (folder / name).exists():
            raise EngineError(f"Can't get ascend_hal device count: cannot open /dev/{name}", kind="RuntimeError")
    names = (re.fullmatch(r"davinci(\d+)", entry.name) for entry in folder.iterdir())
    present = sorted(int(match.group(1)) for match in names if match)
    if not present:
        raise EngineError("Can't get ascend_hal device count: no /dev/davinci* in this container", kind="RuntimeError")
    wanted = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if wanted is None or not wanted.strip():
        return present
    try:
        chosen = [int(item) for item in wanted.split(",")]
        return [present[index] for index in chosen if index >= 0 or _bad_device(wanted, len(present))]
    except (ValueError, IndexError):
        raise _bad_device(wanted, len(present)) from None


def _bad_device(wanted: str, count: int) -> EngineError:
    return EngineError(
        f'Error setting ASCEND_RT_VISIBLE_DEVICES: local range: [0, {count}) base value: "{wanted}"',
        kind="Exception",
        lines=("EL0003: Set device failed, ret=107001 (invalid device id). Failed to open device.",),
    )


def check_interfaces(who: str) -> None:
    """Fail as the collectives do when the environment names an interface or an address this node does not have."""
    names = [name for _, name in socket.if_nameindex()]
    for variable in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        wanted = os.environ.get(variable)
        if wanted and wanted not in names:
            raise EngineError(f"Unable to find interface for: {wanted} ({variable})", kind="RuntimeError", who=who)
    if address := os.environ.get("HCCL_IF_IP"):
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                raise _hccl_environment(f"get host ip fail by HCCL_IF_IP[{address}]", who) from None
    elif rule := os.environ.get("HCCL_SOCKET_IFNAME"):
        inverted, exact = rule.startswith("^"), "=" in rule[:2]
        listed = rule.lstrip("^=").split(",")
        found = [n for n in names if any(n == one if exact else n.startswith(one) for one in listed) != inverted]
        if not found:
            raise _hccl_environment(f"get host ip fail by socket Ifname[{rule}]", who)


def _hccl_environment(reason: str, who: str) -> EngineError:
    return EngineError(f"EI0001: Environment variable error: {reason}", kind="RuntimeError", who=who)


def hbm(devices: list[int]) -> dict[int, tuple[int, int]]:
    """(total, used by others than engines) in MB of each physical device, as the node's state file has it."""
    try:
        state = json.loads(rooted("/usr/local/dcmi/state.json").read_text(encoding="utf-8"))
        known = {d["phy_id"]: (int(d["hbm_total_mb"]), int(d["hbm_used_mb"])) for d in state["devices"]}
    except (OSError, ValueError, KeyError):
        known = {}
    return {device: known.get(device, (HBM_MB, 0)) for device in devices}


class Lease:
    """HBM held by this engine: a JSON file under /usr/local/dcmi/leases, locked for as long as the process lives.

    The emulated `npu-smi` reads the same files. A file nobody holds a lock on is a leftover and counts for nothing.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.file: IO[str] | None = None

    def take(self, devices: list[int], megabytes: int, who: str) -> None:
        """Hold `megabytes` on each device, or fail with the engine's out-of-memory error."""
        folder = rooted("/usr/local/dcmi/leases")
        if not os.access(folder, os.W_OK):
            return
        memory = hbm(devices)
        with open(folder / ".lock", "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            used = _live_use(folder)
            for local, device in enumerate(devices):
                total, other = memory[device]
                taken = used.get(device, 0) + other
                if taken + megabytes > total:
                    raise _out_of_memory((local, device), megabytes, total, taken, who)
            self.path = folder / f"{uuid.uuid4().hex}.json"
            self.file = open(self.path, "w")  # noqa: SIM115 -- held open: closing it would give the lock up
            fcntl.flock(self.file, fcntl.LOCK_EX)
            lease = {"pid": os.getpid(), "name": "VLLMWorker_TP", "devices": {str(d): megabytes for d in devices}}
            json.dump(lease, self.file)
            self.file.flush()

    def release(self) -> None:
        """Give the memory back; a killed process gives it back through its lock."""
        if self.file and self.path:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = self.path = None


def _live_use(folder: Path) -> dict[int, int]:
    """MB in use on each physical device by leases whose holder lives."""
    used: dict[int, int] = {}
    for path in folder.glob("*.json"):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                for device, megabytes in json.load(file)["devices"].items():
                    used[int(device)] = used.get(int(device), 0) + int(megabytes)
    return used


def _out_of_memory(device: tuple[int, int], wanted: int, total: int, used: int, who: str) -> EngineError:
    local, physical = device
    return EngineError(
        f"NPU out of memory. Tried to allocate {wanted / 1024:.2f} GiB (NPU {local}; {total / 1024:.2f} GiB total "
        f"capacity; 0.00 GiB already allocated; {max(total - used, 0) / 1024:.2f} GiB free; "
        "0.00 GiB reserved in total by PyTorch)",
        kind="RuntimeError",
        who=who,
        lines=(f"Free memory on physical device {physical} is less than the desired memory utilization.",),
    )
