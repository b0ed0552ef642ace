"""What a host has of what is wanted of it, or was changed earlier: its knobs, files, services and rules.

Nothing here changes anything. Everything is read through a `Tree`; programs are run only where rules have to be asked
of a firewall, or a time service why it does not run.
"""

from __future__ import annotations

__all__ = [
    "BOOT_FILE",
    "GOVERNOR_GLOB",
    "HUGEPAGES",
    "IRQBALANCE_FILE",
    "JEMALLOC",
    "LIMITS_FILE",
    "LIMITS_UNITS",
    "LIMIT_ROWS",
    "SHM",
    "STATE_FILE",
    "SYSCTL_FILE",
    "UNIT",
    "UNIT_FILE",
    "UNIT_LINK",
    "limits_unit",
    "observe",
    "observe_time",
]

import json
import os
import re
from typing import Any, Dict, List, Mapping, Optional, Set

from . import cpus, firewall, host_names, time_service, tuning_owners
from .errors import AscentError
from .files import Tree
from .tuning_wish import RESERVED_PORTS, format_ports, parse_ports, sysctl_path

SYSCTL_FILE = "/etc/sysctl.d/90-ascent.conf"
LIMITS_FILE = "/etc/security/limits.d/90-ascent.conf"
#: Units that start engines: the container engine's, and by their common prefix those of engines outside containers.
LIMITS_UNITS = ("docker.service", "containerd.service", "ascent-.service")
UNIT = "ascent-host-tuning.service"
UNIT_FILE = "/etc/systemd/system/" + UNIT
UNIT_LINK = "/etc/systemd/system/multi-user.target.wants/" + UNIT
BOOT_FILE = "/etc/default/grub.d/90-ascent.cfg"
IRQBALANCE_FILE = "/etc/systemd/system/irqbalance.service.d/90-ascent.conf"
STATE_FILE = "/var/lib/ascent/host_tuning.json"
GOVERNOR_GLOB = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
HUGEPAGES = "/sys/kernel/mm/transparent_hugepage/"
SHM = "/dev/shm"  # noqa: S108 - a mount whose size is set, not a place for files
# jemalloc, in the order of Debian's and of RPM's places.
JEMALLOC = ("/usr/lib/*-linux-gnu/libjemalloc.so.2", "/usr/lib64/libjemalloc.so.2", "/usr/lib/libjemalloc.so.2")
# Item of limits.conf(5) -> row of /proc/PID/limits, directive of systemd.exec(5), bytes of one unit in limits.conf.
LIMIT_ROWS = {
    "core": ("Max core file size", "CORE", 1024),
    "memlock": ("Max locked memory", "MEMLOCK", 1024),
    "nofile": ("Max open files", "NOFILE", 1),
    "nproc": ("Max processes", "NPROC", 1),
    "stack": ("Max stack size", "STACK", 1024),
}

_PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_SHM = "50%"
_SYS_RESOURCE = 24  # CAP_SYS_RESOURCE, which raising a hard limit takes

Runner = firewall.Runner


def observe(wish: Mapping[str, Any], tree: Tree, run: Runner, hostname: str = "") -> Dict[str, Any]:
    """What the host has of what is wanted, or was changed earlier. Changes nothing; programs are asked only for rules.

    ``knobs`` holds the texts of kernel files (None: absent), ``files`` those of ordinary ones, ``saved`` what
    STATE_FILE holds; the other keys belong to one part of `plan` each. Raises AscentError when STATE_FILE is damaged:
    going on would lose the old values.
    """
    saved = _saved(tree)
    governors = {}
    for path in tree.glob(GOVERNOR_GLOB):
        available = tree.read(os.path.join(os.path.dirname(path), "scaling_available_governors"))
        governors[path] = (available or "").split()
    paths = {sysctl_path(name) for name in [*wish["sysctl"], RESERVED_PORTS]}
    paths.update(HUGEPAGES + name for name in wish["hugepages"])
    paths.update(wish["debugfs"].values(), governors, saved["knobs"])
    devices = cpus.devices(tree, sorted({*wish["irq_devices"], *saved["irq"]}))
    masks = {f"/proc/irq/{number}/smp_affinity" for one in devices for number in one["interrupts"]}
    files = [SYSCTL_FILE, LIMITS_FILE, UNIT_FILE, BOOT_FILE, IRQBALANCE_FILE, host_names.HOSTS_FILE]
    files += [limits_unit(unit) for unit in LIMITS_UNITS]
    files += list(time_service.FILES)
    names = [*wish["sysctl"], *([RESERVED_PORTS] if wish["ports"] else [])]
    return {
        "knobs": {path: tree.read(path) for path in sorted(paths | masks | {cpus.DEFAULT_AFFINITY})},
        "governors": governors,
        "files": {path: tree.read(path) for path in files},
        "enabled": tree.exists(UNIT_LINK),
        "saved": saved,
        "boot_id": (tree.read("/proc/sys/kernel/random/boot_id") or "").strip(),
        "hostname": hostname,
        "limits": _observe_limits(tree),
        "shm": {"mb": tree.size_mb(SHM), "option": _shm_option(tree), "memory_mb": _memory_mb(tree)},
        "devices": devices,
        "boot": {
            "cmdline": tree.read("/proc/cmdline") or "",
            "online": tree.read("/sys/devices/system/cpu/online"),
            "grub": tree.exists("/etc/default/grub") and tree.exists("/usr/sbin/update-grub"),
            "grubby": any(tree.exists(f"{folder}/grubby") for folder in ("/usr/sbin", "/sbin", "/usr/bin")),
            "irqbalance": any(
                tree.exists(f"{folder}/systemd/system/irqbalance.service") for folder in ("/usr/lib", "/lib")
            ),
        },
        "time": observe_time(wish, tree, run),
        "firewall": _observe_firewall(wish, saved, tree, run),
        "jemalloc": _jemalloc(tree),
        "owners": tuning_owners.observe(tree),
        "later": tuning_owners.later_settings(tree, names, SYSCTL_FILE, sysctl_path),
        "family": _family(tree),
    }


def _saved(tree: Tree) -> Dict[str, Any]:
    saved: Dict[str, Any] = {"schema": 1, "knobs": {}, "ports": ""}
    text = tree.read(STATE_FILE)
    if text is not None:
        try:
            saved = json.loads(text)
            parse_ports(saved["ports"])
            saved["knobs"].items()
        except (ValueError, KeyError, TypeError, AttributeError, AscentError) as error:
            raise AscentError(
                f"{STATE_FILE} holds the values from before the tuning but does not parse ({error});"
                " repair it, or remove it if the old values no longer matter"
            ) from None
    # Keys that files of earlier releases lack.
    later = {"shm": "", "irq": [], "refused": {}, "kernel": "", "firewall": {}, "packages": []}
    return {**later, **saved}


def _observe_limits(tree: Tree) -> Dict[str, Any]:
    """Hard limits that services start with, those of the container engine's daemons, and whether containers run."""
    engines: Dict[str, Dict[str, float]] = {}
    containers = False
    for path in tree.glob("/proc/[0-9]*/comm"):
        name = (tree.read(path) or "").strip()
        containers = containers or name.startswith("containerd-shim")
        if name in ("dockerd", "containerd"):
            engines[name] = _hard_limits(tree.read(os.path.dirname(path) + "/limits"))
    return {
        "may_raise": _has_sys_resource(tree.read("/proc/self/status")),
        "hard": _hard_limits(tree.read("/proc/1/limits")),
        "engines": engines,
        "containers": containers,
    }


def _hard_limits(text: Optional[str]) -> Dict[str, float]:
    """Hard limits of a /proc/PID/limits by their item in limits.conf, in bytes or counts; unlimited is infinity."""
    found = {}
    for item, (row, _, _) in LIMIT_ROWS.items():
        match = re.search(rf"^{row}\s+\S+\s+(\d+|unlimited)\b", text or "", re.M)
        if match:
            found[item] = float("inf") if match.group(1) == "unlimited" else float(match.group(1))
    return found


def _shm_option(tree: Tree) -> str:
    """The size that /dev/shm is mounted with; half of the memory where it has none."""
    match = re.search(rf"^\S+ {SHM} tmpfs \S*?\bsize=(\w+%?)", tree.read("/proc/mounts") or "", re.M)
    return match.group(1) if match else _DEFAULT_SHM


def _memory_mb(tree: Tree) -> Optional[int]:
    match = re.search(r"^MemTotal:\s+(\d+) kB", tree.read("/proc/meminfo") or "", re.M)
    return int(match.group(1)) // 1024 if match else None


def observe_time(wish: Mapping[str, Any], tree: Tree, run: Runner) -> Dict[str, Any]:
    service = time_service.find(tree)
    unit = service.unit if service else ""
    runs = bool(unit) and tuning_owners.runs(tree, unit)
    conditions = ""
    if wish["ntp_servers"] and unit and not runs:
        # Tried and held back by a condition of its unit, such as a container without CAP_SYS_TIME, or never started?
        _, out, _ = run(["systemctl", "show", "-p", "ConditionResult,ConditionTimestampMonotonic", f"{unit}.service"])
        held = "ConditionResult=no" in out and "ConditionTimestampMonotonic=0\n" not in out + "\n"
        conditions = "a condition of its unit is not met" if held else ""
    return {
        "service": service,
        "runs": runs,
        "enabled": bool(tree.glob(f"/etc/systemd/system/*.wants/{unit}.service")) if unit else False,
        "held": conditions,
        "other": next((name for name in time_service.OTHERS if tuning_owners.runs(tree, name)), None),
    }


def _observe_firewall(wish: Mapping[str, Any], saved: Mapping[str, Any], tree: Tree, run: Runner) -> Dict[str, Any]:
    """``{"manager", "steps", "note", "opened", "apart"}``: rules are asked of their manager, so this runs programs."""
    which = firewall.manager(tree, lambda service: tuning_owners.runs(tree, service))
    noted = saved["firewall"]
    steps: List[Dict[str, Any]] = []
    note: Dict[str, Any] = {}
    opened: List[str] = []
    if noted and noted.get("manager") != which:
        steps, _, _ = firewall.steps(noted["manager"], set(), noted, "", run)
        noted = {}
    given = wish["firewall"]
    if which and (given or noted):
        rules: Set[firewall.Opening] = set()
        if given:
            ephemeral = (tree.read(_PORT_RANGE) or "").split()
            # Gloo, ZeroMQ and Ray's workers listen on ports that the kernel picks from this range.
            picked = set(range(int(ephemeral[0]), int(ephemeral[1]) + 1)) if len(ephemeral) == 2 else set()
            between = format_ports({*given["ports"], *picked}).split(",")
            rules = firewall.openings(given["sources"], between)
            rules |= firewall.openings(given["clients"], filter(None, format_ports(given["client_ports"]).split(",")))
        more, note, new = firewall.steps(which, rules, noted, given["nic"] if given else "", run)
        steps += more
        opened = sorted(firewall.text(opening) for opening in new)
    filtered = firewall.apart(run) if given and not which else None
    return {"manager": which, "steps": steps, "note": note, "opened": opened, "apart": filtered}


def _jemalloc(tree: Tree) -> Optional[str]:
    return next((path for pattern in JEMALLOC for path in tree.glob(pattern)), None)


def _family(tree: Tree) -> str:
    return "debian" if tree.exists("/etc/debian_version") else "rhel"


def _has_sys_resource(status: Optional[str]) -> bool:
    """True when CapEff of a /proc/PID/status has CAP_SYS_RESOURCE."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", status or "", re.MULTILINE)
    return match is not None and bool(int(match.group(1), 16) >> _SYS_RESOURCE & 1)


def limits_unit(unit: str) -> str:
    return f"/etc/systemd/system/{unit}.d/90-ascent-limits.conf"
