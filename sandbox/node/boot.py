#!/usr/bin/env python3
"""First program of a sandbox node: makes a container look like a freshly started server, then becomes systemd.

It runs before anything else in the node can, so nothing may write a knob that belongs to the machine below:
the trees of /proc/sys and /sys that the kernel shares between containers are covered by private copies, with the
values of a freshly started server. When one can't be covered the node does not start, and says why.
`boot.py addresses` makes the node's addresses follow the state file, at start and after a test has changed it.
`boot.py clock [SECONDS]` shows or sets how far the node's clock is ahead.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Beside this program on a node and in the repository alike.
sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append("/usr/local/dcmi")

import driver_info
import node_state

PRIVATE = Path("/run/sandbox")
HOSTS = Path("/etc/hosts")
CLOCK = Path("/etc/sandbox/clock")
DISKS = Path("/etc/sandbox/disks.json")
DISK_FILES = Path("/.sandbox-disks")
SYSTEMD = "/sbin/init"
# Device ports are no interfaces of a server: on the loopback interface they answer the network as any address of the
# node does, and programs that look for a way to their peers on eth0 find one address there.
NIC = "lo"
LABEL = f"{NIC}:npu"

# What a freshly started server has. Knobs not named here start with the values of the machine below.
FRESH = {
    "vm": {
        "swappiness": "60",
        "zone_reclaim_mode": "0",
        "nr_hugepages": "0",
        "overcommit_memory": "0",
        "max_map_count": "65530",
        "dirty_ratio": "20",
        "dirty_background_ratio": "10",
        "min_free_kbytes": "67584",
    },
    "fs": {"file-max": "9223372036854775807", "nr_open": "1048576", "aio-max-nr": "65536"},
    "kernel": {"numa_balancing": "1", "pid_max": "32768", "threads-max": "2061206", "core_pattern": "core"},
    "net/core": {
        "rmem_default": "212992",
        "rmem_max": "212992",
        "wmem_default": "212992",
        "wmem_max": "212992",
        "netdev_max_backlog": "1000",
        "netdev_budget": "300",
        "default_qdisc": "fq_codel",
        "busy_poll": "0",
        "busy_read": "0",
    },
}
# Read by programs as they change, or private to each container already: these stay the kernel's own.
LIVE = {
    "fs": {"mqueue", "file-nr", "inode-nr", "inode-state", "dentry-state", "aio-nr"},
    "kernel": {"hostname", "domainname", "ns_last_pid", "random", "pty", "osrelease", "ostype", "version"},
}
DEBUG_KNOBS = {"sched/migration_cost_ns": "500000", "sched/latency_ns": "24000000"}
GOVERNORS = "conservative ondemand userspace powersave performance schedutil"
CPUFREQ = {
    "scaling_governor": "powersave",
    "scaling_available_governors": GOVERNORS,
    "scaling_driver": "cppc_cpufreq",
    "scaling_min_freq": "400000",
    "scaling_max_freq": "2600000",
    "scaling_cur_freq": "400000",
    "cpuinfo_min_freq": "400000",
    "cpuinfo_max_freq": "2600000",
}
# Opening one of these reaches the null device: real enough for `docker run --device`, harmless on any machine.
NULL_DEVICE = os.makedev(1, 3)
ASCEND_DEVICES = ("davinci_manager", "devmm_svm", "hisi_hdc")
NVIDIA_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


class BootError(Exception):
    """The node may not start: something of the machine below can't be covered."""


def mount(source: Path, target: Path, flags: int) -> None:
    """Mounts without a file system type. Raises BootError with both paths."""
    if _LIBC.mount(os.fsencode(source), os.fsencode(target), None, flags, None):
        raise BootError(f"can't mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def bind(source: Path, target: Path) -> None:
    """Shows `source` at `target`."""
    mount(source, target, _MS_BIND)


def remount_writable(target: Path) -> None:
    """Makes one mount, and no other of the same file system, writable."""
    mount(target, target, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def write(path: Path, text: str) -> None:
    """Writes a private knob."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def knob_value(path: Path) -> bytes:
    """What a knob reads as; nothing for one that can only be written."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def copy_tree(source: Path, target: Path, live: set[str]) -> list[str]:
    """Copies a tree of knobs as plain files and returns which of its entries named in `live` need a bind mount.

    Entries below the top are copied whole. Links are copied as links.
    """
    target.mkdir(parents=True, exist_ok=True)
    found = []
    for entry in os.scandir(source):
        path, copy = Path(entry.path), target / entry.name
        if entry.is_symlink():
            copy.symlink_to(os.readlink(path))
        elif entry.name in live:
            copy.mkdir() if entry.is_dir() else copy.touch()
            found.append(entry.name)
        elif entry.is_dir():
            copy_tree(path, copy, set())
        else:
            copy.write_bytes(knob_value(path))
            copy.chmod(stat.S_IMODE(entry.stat().st_mode))
    return found


def cover(area: str, live: set[str], fresh: dict[str, str]) -> Path:
    """Covers the knobs of /proc/sys/`area` by a private copy and returns the copy's directory."""
    real, private = Path("/proc/sys") / area, PRIVATE / "sys" / area
    kept = copy_tree(real, private, live)
    for name in kept:
        bind(real / name, private / name)
    for name, value in fresh.items():
        knob = private / name
        write(knob, value)
        knob.chmod(0o644)
    # A recursive bind: the live entries bound into the copy have to show through.
    mount(private, real, _MS_BIND | 16384)
    return private


def cover_sysctls() -> None:
    """Private copies of all knobs that containers share; those of the node's own network stay real and writable."""
    net = Path("/proc/sys/net")
    bind(net, net)
    remount_writable(net)
    core = {entry.name for entry in os.scandir(net / "core") if os.access(entry.path, os.W_OK)}
    cover("net/core", core - set(FRESH["net/core"]), FRESH["net/core"])
    cover("vm", set(), FRESH["vm"])
    cover("fs", LIVE["fs"], FRESH["fs"])
    cover("kernel", LIVE["kernel"], FRESH["kernel"])
    boot_id = PRIVATE / "boot_id"
    write(boot_id, str(uuid.uuid4()))
    boot_id.chmod(0o444)
    bind(boot_id, Path("/proc/sys/kernel/random/boot_id"))


def cover_sysfs() -> None:
    """Private processor frequency governors, transparent huge pages and scheduler knobs."""
    memory = Path("/sys/kernel/mm")
    if memory.is_dir():
        copy_tree(memory, PRIVATE / "mm", set())
        bind(PRIVATE / "mm", memory)
    debug = Path("/sys/kernel/debug")
    if debug.is_dir():
        for name, value in DEBUG_KNOBS.items():
            write(PRIVATE / "debug" / name, value)
        bind(PRIVATE / "debug", debug)
    cover_processors(Path("/sys/devices/system/cpu"))


def cover_processors(real: Path) -> None:
    """Shows the machine's processors by links, each with a frequency policy of the node's own."""
    origin, private = PRIVATE / "cpu-of-the-machine", PRIVATE / "cpu"
    origin.mkdir(parents=True)
    private.mkdir()
    bind(real, origin)
    for entry in os.scandir(real):
        if entry.name == "cpufreq":
            continue
        copy = private / entry.name
        if entry.name.startswith("cpu") and entry.name[3:].isdigit():
            copy.mkdir()
            for part in os.scandir(entry.path):
                if part.name != "cpufreq":
                    (copy / part.name).symlink_to(origin / entry.name / part.name)
            policy = private / "cpufreq" / f"policy{entry.name[3:]}"
            for name, value in {**CPUFREQ, "affected_cpus": entry.name[3:]}.items():
                write(policy / name, value)
            (copy / "cpufreq").symlink_to(f"../cpufreq/{policy.name}")
        elif entry.is_dir():
            copy.symlink_to(origin / entry.name)
        else:
            copy.write_bytes(knob_value(Path(entry.path)))
    bind(private, real)


def assert_covered() -> None:
    """Proves that no knob of the machine below can be written. Raises BootError naming the first that can."""
    private = os.stat(PRIVATE).st_dev
    suspects: Iterable[Path] = [*Path("/proc/sys").iterdir(), *Path("/sys/kernel").iterdir(), Path("/sys/devices")]
    for path in (each for each in suspects if each.name != "net"):
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        if not read_only and os.stat(path).st_dev != private:
            raise BootError(f"{path} belongs to the machine below and can be written")
    for knob in ("vm/swappiness", "kernel/numa_balancing", "kernel/random/boot_id", "net/core/rmem_max"):
        if os.stat(Path("/proc/sys") / knob).st_dev != private:
            raise BootError(f"/proc/sys/{knob} is not private to this node")


def own_control_groups() -> None:
    """Makes the node's own part of the control groups writable, for systemd and the container engine."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, kind = line.split(), line.split(" - ")[1].split()[0]
        if kind in ("cgroup", "cgroup2"):
            remount_writable(Path(fields[4]))


def load_driver(state: dict[str, Any]) -> None:
    """What a start does to an Ascend node: versions on the disk become live, addresses are those of /etc/hccn.conf."""
    if state["accelerator"] != "ascend" or (state["faults"]["old_modules"] and state["driver"]):
        return
    installed = driver_info.values(_text(driver_info.INSTALL_INFO))
    for kind, read in (("driver", driver_info.driver_package), ("firmware", driver_info.firmware_package)):
        base = installed.get(f"{kind.capitalize()}_Install_Path_Param", driver_info.DEFAULT_PATH)
        text = _text(f"{base}/{kind}/version.info")
        if text or kind == "driver":
            # Firmware lives in the devices: without its files it is still the last one.
            state[kind] = read(text) if text else None
    if state["driver"] is None:
        return
    state["tool_version"] = state["driver"]["version"]
    configured = node_state.configuration()
    for device in state["devices"]:
        if device["roce"]:
            node_state.configure(device, configured)


def _text(path: str) -> str:
    """The text of a file of the node, empty where there is none."""
    found = node_state.on_node(path.lstrip("/"))
    return found.read_text(encoding="utf-8") if found.is_file() else ""


def device_names(state: dict[str, Any]) -> list[str]:
    """The names below /dev of the devices of a state, and of their driver."""
    if state["driver"] is None or not state["devices"]:
        return []
    if state["accelerator"] == "nvidia":
        return [*(f"nvidia{device['phy_id']}" for device in state["devices"]), *NVIDIA_DEVICES]
    return [*(f"davinci{device['phy_id']}" for device in state["devices"]), *ASCEND_DEVICES]


def make_devices(state: dict[str, Any]) -> None:
    """Device files of every device of the state, and of the driver; none while no driver is loaded."""
    for name in device_names(state):
        path = Path("/dev") / name
        if not path.exists():
            os.mknod(path, 0o660 | stat.S_IFCHR, NULL_DEVICE)


def wanted_addresses(state: dict[str, Any]) -> set[str]:
    """The device addresses, `address/32`, that answer: those that are preset and whose link is up."""
    wanted = set()
    for device in state["devices"] if state["driver"] else ():
        for port in (device["roce"], device["vnic"]):
            if port and port["address"] and port["link"] == "UP":
                wanted.add(f"{ipaddress.IPv4Address(port['address'])}/32")
    return wanted


def apply_addresses(state: dict[str, Any]) -> None:
    """Gives the node exactly the device addresses of the state."""
    shown = subprocess.run(
        ["ip", "-json", "-4", "address", "show", "dev", NIC], check=True, stdout=subprocess.PIPE
    ).stdout
    infos = json.loads(shown)[0]["addr_info"]
    present = {f"{info['local']}/{info['prefixlen']}" for info in infos if info.get("label") == LABEL}
    wanted = wanted_addresses(state)
    commands = [f"address del {address} dev {NIC}" for address in sorted(present - wanted)]
    commands += [f"address add {address} dev {NIC} label {LABEL}" for address in sorted(wanted - present)]
    subprocess.run(["ip", "-batch", "-"], check=True, input="\n".join(commands).encode())


def mount_disks(sizes: dict[str, int]) -> None:
    """Makes directories file systems of a given size, in MB, that stay over a reboot. What was in them moves along.

    The kernel frees the loop device with the last mount of it, however the node ends.
    """
    if sizes and not Path("/dev/loop-control").exists():
        os.mknod("/dev/loop-control", 0o660 | stat.S_IFCHR, os.makedev(10, 237))
    DISK_FILES.mkdir(mode=0o700, exist_ok=True)
    for path, megabytes in sorted(sizes.items()):
        directory, file = Path(path), DISK_FILES / (path.strip("/").replace("/", "-") + ".ext4")
        directory.mkdir(parents=True, exist_ok=True)
        fresh = not file.exists()
        if fresh:
            with file.open("wb") as disk:
                disk.truncate(megabytes << 20)
            # All of it is for use: no journal's worth of overhead, nothing kept back for root.
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(file)], check=True)
        for _ in range(16):
            found = subprocess.run(["losetup", "--find"], check=True, stdout=subprocess.PIPE, text=True).stdout
            # Newer ones say behind it that the device file is missing.
            device = found.split()[0]
            if not Path(device).exists():
                os.mknod(device, 0o660 | stat.S_IFBLK, os.makedev(7, int(device[len("/dev/loop") :])))
            # Another node may take the same free device first; then there is a next one.
            if subprocess.run(["losetup", device, str(file)], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
        else:
            raise BootError(f"no free loop device for {path}")
        target = DISK_FILES / "new" if fresh else directory
        target.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "ext4", device, str(target)], check=True)
        if fresh:
            subprocess.run(["cp", "-a", f"{directory}/.", str(target)], check=True)
            subprocess.run(["mount", "--move", str(target), path], check=True)
            target.rmdir()
        # From now on the mount alone holds the device.
        subprocess.run(["losetup", "--detach", device], check=True)


def own_hosts_file() -> None:
    """Takes the mount of the container engine off /etc/hosts: it would be made anew at each start, a server's stays."""
    if os.path.ismount(HOSTS):
        given = HOSTS.read_text(encoding="utf-8")
        if _LIBC.umount2(os.fsencode(HOSTS), 0):
            raise BootError(f"can't unmount {HOSTS}: {os.strerror(ctypes.get_errno())}")
        if not HOSTS.read_text(encoding="utf-8"):
            HOSTS.write_text(given, encoding="utf-8")
            HOSTS.chmod(0o644)


def start() -> None:
    """Everything between an empty container and systemd."""
    with node_state.changed() as state:
        load_driver(state)
    shutil.rmtree(PRIVATE, ignore_errors=True)
    PRIVATE.mkdir(mode=0o755)
    mount_disks(json.loads(DISKS.read_text(encoding="utf-8")))
    own_control_groups()
    own_hosts_file()
    cover_sysctls()
    cover_sysfs()
    assert_covered()
    make_devices(state)
    apply_addresses(state)


def load() -> None:
    """Loads the driver that is on the disk, as a start does, and gives the node its devices and their addresses."""
    with node_state.changed() as state:
        load_driver(state)
    make_devices(state)
    apply_addresses(state)


def clock(arguments: list[str]) -> None:
    """Sets how many seconds the node's clock is ahead, where that is given, and prints how many it is.

    Eight bytes, nanoseconds as a signed number, that the library in /etc/ld.so.preload maps into every process.
    """
    if arguments:
        ahead = round(float(arguments[0]) * 1e9)
        # In place: running processes have this very file mapped.
        with CLOCK.open("r+b") as file:
            file.write(struct.pack("=q", ahead))
    print(struct.unpack("=q", CLOCK.read_bytes())[0] / 1e9)


def main(arguments: list[str]) -> int:
    """Runs `start` and becomes systemd, or one of the parts a test may ask for."""
    parts = {"addresses": lambda: apply_addresses(node_state.read()), "load": load}
    try:
        if arguments[:1] == ["clock"] and len(arguments) <= 2:
            clock(arguments[1:])
            return 0
        if arguments:
            parts[arguments[0]]()
            return 0
        start()
    except (BootError, OSError, ValueError, KeyError, node_state.StateError, subprocess.CalledProcessError) as error:
        print(f"sandbox node: not started: {error}", file=sys.stderr, flush=True)
        return 1
    # With arguments of its own where systemd has to be told about the machine below.
    return os.execv(SYSTEMD, [SYSTEMD, *system_arguments()])  # noqa: S606 -- a fixed path, as the first program of a host


def system_arguments() -> list[str]:
    """What systemd reads as the kernel's command line: releases from 256 on refuse the older control groups untold."""
    return [] if Path("/sys/fs/cgroup/cgroup.controllers").exists() else ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
