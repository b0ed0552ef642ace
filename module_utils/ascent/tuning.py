"""Host tuning: what a host's knobs are, what has to change, and how to change it back.

The flow is `wanted` (validate) -> `observe` (read) -> `plan` (decide) -> `apply` (write); the first three change
nothing. Knobs are the kernel's own files: sysctls in ``/proc/sys``, cpufreq governors and transparent hugepages in
``/sys``, interrupts in ``/proc/irq``, and the debugfs files that newer kernels have instead of a sysctl
(``kernel.sched_migration_cost_ns`` moved there in Linux 5.13). Beside knobs there are files of services (limits, hosts
file, time service, boot loader) and rules of the firewall, each with a module of its own.

What was there before the first change is kept in `STATE_FILE`, so a knob that is no longer wanted goes back to its old
value, and an empty wish undoes everything. Ports reserved by others stay so: only our own are added and taken back.
"""

from __future__ import annotations

__all__ = [
    "BOOT_FILE",
    "IRQBALANCE_FILE",
    "LIMITS_FILE",
    "LIMITS_UNITS",
    "NOTHING",
    "RESERVED_PORTS",
    "STATE_FILE",
    "SYSCTL_FILE",
    "UNIT",
    "UNIT_FILE",
    "UNIT_LINK",
    "apply",
    "changes",
    "clock_findings",
    "diff",
    "format_ports",
    "interrupts_refused",
    "observe",
    "parse_ports",
    "plan",
    "sysctl_path",
    "wanted",
]

import json
import os
import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from . import cpus, firewall, host_names, time_service, tuning_owners
from .errors import AscentError, InputError, ParseError
from .files import Tree
from .findings import finding

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
RESERVED_PORTS = "net.ipv4.ip_local_reserved_ports"
GOVERNOR_GLOB = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
HUGEPAGES = "/sys/kernel/mm/transparent_hugepage/"
SHM = "/dev/shm"  # noqa: S108 - a mount whose size is set, not a place for files
HEADER = "# Ansible managed\n# ascent:host_tuning\n"

_PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_SHM = "50%"
# jemalloc, in the order of Debian's and of RPM's places.
_JEMALLOC = ("/usr/lib/*-linux-gnu/libjemalloc.so.2", "/usr/lib64/libjemalloc.so.2", "/usr/lib/libjemalloc.so.2")
_JEMALLOC_PACKAGE = {"debian": "libjemalloc2", "rhel": "jemalloc"}
# Item of limits.conf(5) -> row of /proc/PID/limits, directive of systemd.exec(5), bytes of one unit in limits.conf.
_LIMIT_ROWS = {
    "core": ("Max core file size", "CORE", 1024),
    "memlock": ("Max locked memory", "MEMLOCK", 1024),
    "nofile": ("Max open files", "NOFILE", 1),
    "nproc": ("Max processes", "NPROC", 1),
    "stack": ("Max stack size", "STACK", 1024),
}
_SYS_RESOURCE = 24  # CAP_SYS_RESOURCE, which raising a hard limit takes

# What may stand in a knob: it ends up in sysctl.d and in a shell line of the unit, so no quotes, dollars or newlines.
_VALUE = re.compile(r"[\w.,:+\- ]*\Z", re.ASCII)
_NAME = re.compile(r"[\w.\-/]+\Z", re.ASCII)
_LIMIT = re.compile(r"(\d+|unlimited)\Z", re.ASCII)

Runner = firewall.Runner


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


# -- the wish ----------------------------------------------------------------------------------------------------------


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
            mistakes.append(_mistake(f"sysctl name {name!r} is not a path below /proc/sys, such as vm.swappiness"))
        elif isinstance(value, bool) or not isinstance(value, (int, str)) or not _VALUE.match(_text(value)):
            mistakes.append(
                _mistake(f"sysctl {name}: {value!r} is no number or plain text; write 0 or 1, not no or yes")
            )
        elif name == RESERVED_PORTS:
            mistakes.append(
                _mistake(f"sysctl {name} is merged with what is reserved already; give reserved_ports instead")
            )
        else:
            settings[str(name)] = _text(value)
    if not re.match(r"\w*\Z", governor, re.ASCII):
        mistakes.append(_mistake(f"governor {governor!r} is not a word such as performance"))
    for name, path in (debugfs or {}).items():
        if not str(path).startswith("/sys/kernel/debug/") or not _NAME.match(str(path)) or ".." in str(path):
            mistakes.append(_mistake(f"debugfs file of {name}: {path!r} does not lie below /sys/kernel/debug/"))
    items = {str(item): value for item, value in (limits or {}).items() if value is not None}
    for item, value in items.items():
        if not re.match(r"[a-z]+\Z", item, re.ASCII) or isinstance(value, bool) or not _LIMIT.match(str(value)):
            mistakes.append(_mistake(f"limit {item}: {value!r} is not a number or unlimited, as in nofile: 1048576"))
    words = {str(name): value for name, value in (hugepages or {}).items() if value is not None}
    for name, value in words.items():
        if name not in ("enabled", "defrag") or not re.match(r"[a-z+]+\Z", str(value), re.ASCII):
            mistakes.append(
                _mistake(f"hugepages {name}: {value!r}; there are enabled and defrag, with words such as madvise")
            )
    if isinstance(shm_mb, bool) or not isinstance(shm_mb, int) or shm_mb < 0:
        mistakes.append(_mistake(f"size of {SHM}: {shm_mb!r} is not a number of MB; 0 leaves it alone"))
    names = [dict(entry) for entry in hosts]
    mistakes += [_mistake(f"hosts: {problem}") for problem in host_names.check(names)]
    servers = [str(server) for server in ntp_servers]
    for server in time_service.check(servers):
        mistakes.append(_mistake(f"time server {server!r} is neither a host name nor an address"))
    isolated, problem = _cpu_list(isolate_cpus)
    if problem:
        mistakes.append(_mistake(f"CPUs to isolate: {problem}"))
    buses = [(str(text), cpus.bus_id(str(text))) for text in irq_devices]
    mistakes += [_mistake(f"{text!r} is no PCI bus id such as 0000:c1:00.0") for text, bus in buses if bus is None]
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
        mistakes += [_mistake(f"firewall {who}: {problem}") for problem in wrong]
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


# -- the host ----------------------------------------------------------------------------------------------------------


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
    files += [_limits_unit(unit) for unit in LIMITS_UNITS]
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
        "time": _observe_time(wish, tree, run),
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
    for item, (row, _, _) in _LIMIT_ROWS.items():
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


def _observe_time(wish: Mapping[str, Any], tree: Tree, run: Runner) -> Dict[str, Any]:
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
    return next((path for pattern in _JEMALLOC for path in tree.glob(pattern)), None)


def _family(tree: Tree) -> str:
    return "debian" if tree.exists("/etc/debian_version") else "rhel"


# -- the decision ------------------------------------------------------------------------------------------------------


class _Draft:
    """A plan in the making; each part adds what it wants."""

    def __init__(self, saved: Mapping[str, Any]) -> None:
        self.findings: List[Dict[str, Any]] = []
        #: Kernel file -> value, and what to call it.
        self.targets: Dict[str, str] = {}
        self.names: Dict[str, str] = {}
        #: Knobs whose old value is not kept, since what they are for goes by another name after a boot.
        self.fleeting: Set[str] = set()
        #: Knobs that a kernel may refuse without harm.
        self.optional: Set[str] = set()
        self.sysctl: Dict[str, str] = {}
        #: Shell commands of the boot unit.
        self.boot: List[str] = []
        #: File -> text; None for a file that is not to be there.
        self.texts: Dict[str, Optional[str]] = {}
        #: Commands to run after files are written: ``{"argv", "before", "after"}``.
        self.steps: List[Dict[str, Any]] = []
        self.packages: List[str] = []
        self.keep: Dict[str, Any] = {}
        self.saved = saved

    def tell(self, id: str, severity: str, summary: str, evidence: str, cause: str, fix: str) -> None:
        self.findings.append(finding(id, severity, summary, stage="tune", evidence=evidence, cause=cause, fix=fix))

    def set(self, path: str, value: str, name: str) -> None:
        self.targets[path] = value
        self.names[path] = name

    def step(self, *argv: str, before: str = "", after: str = "") -> None:
        self.steps.append({"argv": list(argv), "before": before, "after": after})


def plan(
    wish: Mapping[str, Any], observed: Mapping[str, Any], *, installed: Sequence[str] = (), undo: bool = False
) -> Dict[str, Any]:
    """What has to change for ``wish`` to hold, now and after a reboot.

    ``{"writes": [{"knob", "path", "from", "to", "optional"}], "files": {path: text, or None to remove}, "first":
    [argv], "steps": [{"argv", "before", "after"}], "saved": new content of STATE_FILE, None to remove it, "findings",
    "reserved": the merged port list, "packages": those to be installed, or to be removed in an undo, "reboot": whether
    a boot is needed, "shm_mb": size to be reached, else 0}``. ``writes``, ``files``, ``first`` and ``steps`` hold
    differences only, so they are empty on a host that is right. A knob that is absent is an ``info`` finding.
    ``installed`` names packages that the caller has brought for us since the last call.
    """
    draft = _Draft(observed["saved"])
    _plan_sysctl(draft, wish, observed)
    governor = _plan_governor(draft, wish["governor"], observed)
    _plan_hugepages(draft, wish["hugepages"], observed)
    reserved, ours = _plan_ports(draft, wish["ports"], observed)
    _plan_limits(draft, wish["limits"], observed["limits"])
    shm_mb = _plan_shm(draft, wish["shm_mb"], observed["shm"])
    _plan_interrupts(draft, wish["irq_devices"], observed)
    reboot = _plan_isolation(draft, wish["isolate_cpus"], observed)
    _plan_hosts(draft, wish["hosts"], observed)
    _plan_time(draft, wish["ntp_servers"], observed)
    _plan_firewall(draft, wish["firewall"], observed["firewall"])
    if wish["jemalloc"] and observed["jemalloc"] is None:
        package = _JEMALLOC_PACKAGE[observed["family"]]
        draft.tell(
            "D23",
            "warning",
            "jemalloc is asked for and not on this host, so engines outside containers run without it",
            f"no file {', '.join(_JEMALLOC)}",
            f"The package {package} is not installed.",
            f"Install {package}, or leave jemalloc out of the recipe.",
        )
    _plan_owners(draft, wish, observed)

    writes, previous = _plan_writes(draft, observed)
    draft.texts[SYSCTL_FILE] = _sysctl_file(draft.sysctl)
    draft.texts[UNIT_FILE] = _unit_file(governor, draft.boot)
    files = {path: text for path, text in draft.texts.items() if observed["files"].get(path) != text}
    first, unit_steps = _plan_units(files, draft.texts[UNIT_FILE], observed)
    if draft.texts[UNIT_FILE] is None and observed["enabled"]:
        files[UNIT_LINK] = None
    brought = sorted({*observed["saved"]["packages"], *installed})
    keep: Dict[str, Any] = {
        "knobs": previous,
        "ports": format_ports(ours),
        "packages": [] if undo else brought,
        **draft.keep,
    }
    return {
        "writes": writes,
        "files": files,
        "first": first,
        "steps": unit_steps + draft.steps,
        "saved": {"schema": 1, **{key: value for key, value in keep.items() if value or key in ("knobs", "ports")}}
        if any(keep.values())
        else None,
        "findings": draft.findings,
        "reserved": reserved,
        "packages": brought if undo else draft.packages,
        "reboot": reboot,
        "shm_mb": shm_mb,
    }


def _plan_sysctl(draft: _Draft, wish: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
    for name, value in sorted(wish["sysctl"].items()):
        path = sysctl_path(name)
        fallback = wish["debugfs"].get(name)
        if observed["knobs"].get(path) is not None:
            draft.sysctl[name] = value
            draft.set(path, value, name)
        elif fallback is not None and observed["knobs"].get(fallback) is not None:
            draft.boot.append(f"echo {value} > {fallback}")
            draft.set(fallback, value, f"{name} ({fallback})")
        else:
            draft.findings.append(_absent(name, value, path, fallback))


def _plan_governor(draft: _Draft, governor: str, observed: Mapping[str, Any]) -> str:
    """The governor that the boot unit sets; empty where no CPU takes it."""
    offered = observed["governors"]
    refused = [path for path, available in offered.items() if available and governor not in available]
    if governor and not offered:
        draft.tell(
            "tuning-governor-absent",
            "info",
            f"no CPU frequency control, so governor {governor} was not set",
            f"no file matches {GOVERNOR_GLOB}",
            "a virtual machine, or frequency scaling is left to the firmware",
            "set the power policy of the firmware to performance; nothing to do on a virtual machine",
        )
    elif governor and refused:
        draft.tell(
            "tuning-governor-refused",
            "warning",
            f"governor {governor} is not offered for {len(refused)} of {len(offered)} CPUs",
            f"{refused[0]}: available are {' '.join(offered[refused[0]])}",
            "the cpufreq driver or the kernel configuration lacks it",
            "load the governor's module, or name one of those offered in host_tuning_governor",
        )
    if governor:
        for path in offered:
            if path not in refused:
                draft.set(path, governor, f"governor of {path.split('/')[5]}")
    return governor if governor and len(refused) < len(offered) else ""


def _plan_hugepages(draft: _Draft, wish: Mapping[str, str], observed: Mapping[str, Any]) -> None:
    for name, value in sorted(wish.items()):
        path = HUGEPAGES + name
        text = observed["knobs"].get(path)
        if text is None:
            draft.findings.append(_absent(f"transparent hugepages ({name})", value, path, None))
            continue
        offered = text.replace("[", " ").replace("]", " ").split()
        if "[" in text and value not in offered:
            draft.tell(
                "tuning-hugepages-refused",
                "warning",
                f"transparent hugepages: {name} takes no {value}",
                f"{path}: {_text(text)}",
                "this kernel offers other words",
                f"name one of {', '.join(offered)} in host_tuning_hugepages",
            )
            continue
        draft.set(path, value, f"transparent hugepages, {name}")
        draft.boot.append(f"echo {value} > {path}")


def _plan_ports(draft: _Draft, wish: Sequence[int], observed: Mapping[str, Any]) -> Tuple[str, Set[int]]:
    """All reserved ports in the kernel's form, and those of them that are ours."""
    path = sysctl_path(RESERVED_PORTS)
    text = observed["knobs"].get(path)
    if text is None:
        if wish:
            draft.findings.append(_absent(RESERVED_PORTS, format_ports(wish), path, None))
        return "", set()
    others = parse_ports(text) - parse_ports(observed["saved"]["ports"])
    ours = set(wish) - others
    reserved = format_ports(others | ours)
    if wish:
        draft.sysctl[RESERVED_PORTS] = reserved
    if parse_ports(text) != others | ours:
        draft.set(path, reserved, RESERVED_PORTS)
        draft.fleeting.add(path)
    return reserved, ours


def _plan_limits(draft: _Draft, wish: Mapping[str, str], observed: Mapping[str, Any]) -> None:
    """limits.d for logins, drop-ins for the units that start engines."""
    hard = observed["hard"]
    above = {item: value for item, value in wish.items() if _limit(item, value) > hard.get(item, float("inf"))}
    if above and not observed["may_raise"]:
        draft.tell(
            "D14",
            "info",
            f"limits {', '.join(sorted(above))} were not written: this system's root may not raise them,"
            " and logins would fail",
            "CAP_SYS_RESOURCE is missing in CapEff of /proc/self/status",
            "the host is itself a container",
            "leave them out of host_tuning_limits here (~), or give the container that capability",
        )
        wish = {item: value for item, value in wish.items() if item not in above}
    draft.texts[LIMITS_FILE] = _limits_file(wish)
    directives = [
        f"Limit{_LIMIT_ROWS[item][1]}={_systemd_limit(item, value)}\n"
        for item, value in sorted(wish.items())
        if item in _LIMIT_ROWS
    ]
    for unit in LIMITS_UNITS:
        draft.texts[_limits_unit(unit)] = HEADER + "[Service]\n" + "".join(directives) if directives else None
    low = {
        f"{daemon}: {_LIMIT_ROWS[item][0].lower()} {limits[item]:g}"
        for daemon, limits in observed["engines"].items()
        for item, value in wish.items()
        if item in limits and limits[item] < _limit(item, value)
    }
    if low and observed["containers"]:
        draft.tell(
            "D14",
            "warning",
            "the container engine and its containers keep their lower limits until it is started again",
            "; ".join(sorted(low)),
            "Limits of a running service cannot be raised, and its containers carry traffic.",
            "systemctl restart containerd docker, when no container serves; a deploy after that.",
        )
    elif low:
        for daemon, unit in (("containerd", "containerd.service"), ("dockerd", "docker.service")):
            if daemon in observed["engines"]:
                draft.step("systemctl", "restart", unit, after=f"{unit} restarted: no container runs, limits change")


def _limit(item: str, value: str) -> float:
    """A limit in the unit of /proc/PID/limits."""
    return float("inf") if value == "unlimited" else float(value) * (_LIMIT_ROWS[item][2] if item in _LIMIT_ROWS else 1)


def _systemd_limit(item: str, value: str) -> str:
    return "infinity" if value == "unlimited" else str(int(_limit(item, value)))


def _limits_unit(unit: str) -> str:
    return f"/etc/systemd/system/{unit}.d/90-ascent-limits.conf"


def _plan_shm(draft: _Draft, wish: int, observed: Mapping[str, Any]) -> int:
    """The size in MB that /dev/shm has to reach; 0 where it may stay."""
    before = draft.saved["shm"]
    memory = observed["memory_mb"]
    if wish and observed["mb"] is None:
        draft.findings.append(_absent(SHM, f"{wish} MB", SHM, None))
    elif wish and memory is not None and wish > memory:
        draft.tell(
            "D13",
            "warning",
            f"{SHM} stays at {observed['mb']} MB: {wish} MB are asked for, and the host has {memory} MB of memory",
            f"MemTotal {memory} MB",
            "Shared memory is memory; more of it than there is ends processes instead of refusing them.",
            "Give fewer processes to the host, or a smaller container.shm_size.",
        )
    elif wish and (before or observed["mb"] < wish):
        draft.boot.append(f"mount -o remount,size={wish}M {SHM}")
        draft.keep["shm"] = before or observed["option"]
        if observed["mb"] < wish:
            draft.step(
                *("mount", "-o", f"remount,size={wish}M", SHM),
                before=f"{SHM} of {observed['mb']} MB",
                after=f"{SHM} of {wish} MB",
            )
        return wish
    if before and "shm" not in draft.keep:
        draft.step(
            *("mount", "-o", f"remount,size={before}", SHM),
            before=f"{SHM} of {observed['mb']} MB",
            after=f"{SHM} with size={before}",
        )
    return 0


def _plan_interrupts(draft: _Draft, wish: Sequence[str], observed: Mapping[str, Any]) -> None:
    """Interrupts of each device to the CPUs of its NUMA node; of devices no longer named, to the kernel's default."""
    refused = observed["saved"]["refused"]
    if refused.get("boot") != observed["boot_id"]:
        refused = {}
    unplaced = []
    stuck = set()
    default = observed["knobs"].get(cpus.DEFAULT_AFFINITY)
    for device in observed["devices"]:
        bus = device["bus"]
        if bus not in wish:
            for number in device["interrupts"] if default is not None else ():
                path = f"/proc/irq/{number}/smp_affinity"
                _interrupt(draft, path, _text(default), f"interrupt {number} of {bus} (default)")
        elif not device["cpus"] or not device["interrupts"]:
            unplaced.append(bus)
        else:
            draft.boot.append(cpus.affinity_line(bus, device["cpus"]))
            for number, current in device["interrupts"].items():
                path = f"/proc/irq/{number}/smp_affinity_list"
                if path in refused.get("paths", ()):
                    stuck.add(path)
                elif cpus.parse_cpus(current) != cpus.parse_cpus(device["cpus"]):
                    _interrupt(draft, path, device["cpus"], f"interrupt {number} of {bus}")
    if wish:
        draft.keep["irq"] = list(wish)
    if stuck:
        draft.keep["refused"] = {"boot": observed["boot_id"], "paths": sorted(stuck)}
        draft.findings.append(interrupts_refused(stuck))
    if unplaced:
        draft.tell(
            "tuning-interrupts-unplaced",
            "info",
            f"interrupts of {len(unplaced)} devices were left alone",
            f"no NUMA node or no interrupts below /sys/bus/pci/devices: {', '.join(unplaced)}",
            "The firmware names no NUMA node, the driver uses no interrupts, or this is a virtual machine.",
            "Nothing on a host with one NUMA node; else look into the firmware's NUMA settings.",
        )


def _interrupt(draft: _Draft, path: str, value: str, name: str) -> None:
    draft.set(path, value, name)
    draft.fleeting.add(path)
    draft.optional.add(path)


def interrupts_refused(paths: Iterable[str]) -> Dict[str, Any]:
    """The finding for interrupts whose place the kernel does not let us choose."""
    return finding(
        "tuning-interrupts-refused",
        "info",
        f"the kernel keeps {len(set(paths))} interrupts where they are",
        stage="tune",
        evidence=", ".join(sorted(paths)[:8]),
        cause="Their driver lets the kernel manage them, or /proc/irq is read-only here.",
        fix="Nothing: managed interrupts are spread over the CPUs of their queues already.",
    )


def _plan_isolation(draft: _Draft, wish: str, observed: Mapping[str, Any]) -> bool:
    """The boot loader's command line. Returns whether the running kernel was booted with another one."""
    boot, before = observed["boot"], draft.saved["kernel"]
    arguments = cpus.isolation_arguments(wish)
    if wish and boot["online"] is not None:
        online, isolated = cpus.parse_cpus(boot["online"]), cpus.parse_cpus(wish)
        if not isolated < online:
            raise InputError(
                [
                    _mistake(
                        f"CPUs to isolate: {wish} is no part of the CPUs of this host, {_text(boot['online'])};"
                        " some have to be left for everything else"
                    )
                ]
            )
    line = " ".join(arguments)
    if boot["grub"]:
        draft.texts[BOOT_FILE] = f'{HEADER}GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {line}"\n' if line else None
        if observed["files"][BOOT_FILE] != draft.texts[BOOT_FILE]:
            draft.step("update-grub")
    elif boot["grubby"] and before != line:
        if before:
            draft.step("grubby", "--update-kernel=ALL", f"--remove-args={before}", before=f"boot loader: {before}")
        if line:
            draft.step("grubby", "--update-kernel=ALL", f"--args={line}", after=f"boot loader: {line}")
    elif line and not boot["grubby"]:
        draft.tell(
            "tuning-boot-loader",
            "warning",
            f"CPUs {wish} were not isolated: no known boot loader",
            "neither update-grub with /etc/default/grub nor grubby",
            "The host is booted in another way.",
            f"Give the kernel these arguments by hand: {line}",
        )
    if boot["irqbalance"]:
        ban = f"{HEADER}[Service]\nEnvironment=IRQBALANCE_BANNED_CPULIST={wish}\n" if wish else None
        draft.texts[IRQBALANCE_FILE] = ban
        if observed["files"][IRQBALANCE_FILE] != ban:
            draft.step("systemctl", "daemon-reload")
            draft.step("systemctl", "try-restart", "irqbalance.service")
    if line:
        draft.keep["kernel"] = line
    missing = cpus.missing_arguments(boot["cmdline"], arguments)
    lingering = [] if line else [word for word in before.split() if word in boot["cmdline"].split()]
    if missing or lingering:
        draft.tell(
            "tuning-reboot-needed",
            "warning",
            "the CPUs are isolated after a reboot" if missing else "the CPUs stay isolated until a reboot",
            f"/proc/cmdline {'lacks ' + ' '.join(missing) if missing else 'has ' + ' '.join(lingering)}",
            "The kernel reads these arguments when it boots.",
            "Reboot this host when nothing serves on it.",
        )
    return bool(missing or lingering)


def _plan_hosts(draft: _Draft, wish: Sequence[Mapping[str, Any]], observed: Mapping[str, Any]) -> None:
    path = host_names.HOSTS_FILE
    text = observed["files"][path]
    if text is None and not wish:
        return
    draft.texts[path] = host_names.named(text or "", wish)
    for line, name, address in host_names.clashes(text or "", wish):
        draft.tell(
            "D10",
            "warning",
            f"{path} gives {name} another address than {address}",
            f"{path}: {line}",
            "The line stands before Ascent's block, and the first one counts.",
            f"Correct the line, or the host's node_ip in the inventory if {address} is wrong.",
        )
    shared = host_names.duplicates(wish).get(observed["hostname"])
    if shared:
        draft.tell(
            "D10",
            "warning",
            f"the host name {observed['hostname']} belongs to {len(shared)} nodes, so it is not mapped",
            ", ".join(shared),
            "The hosts were made from one disk image.",
            "hostnamectl set-hostname NAME, another one on each.",
        )
    if wish and observed["hostname"].partition(".")[0] == "localhost":
        draft.tell(
            "D08",
            "warning",
            "the host is named localhost, which is loopback everywhere",
            f"hostname: {observed['hostname']}",
            "It never got a name of its own; an engine that asks for its own address then gets 127.0.0.1.",
            "hostnamectl set-hostname NAME",
        )


def _plan_time(draft: _Draft, servers: Sequence[str], observed: Mapping[str, Any]) -> None:
    time, service = observed["time"], observed["time"]["service"]
    if servers and time["other"]:
        draft.tell(
            "tuning-conflict",
            "warning",
            f"{time['other']} keeps this host's time, so host_tuning_ntp_servers was not applied",
            f"{time['other']}.service has processes",
            "Two services must not steer one clock, and this one was set up by the site.",
            f"Give {time['other']} the servers, or disable it.",
        )
        servers = []
    elif servers and service is None:
        draft.packages.append(time_service.PACKAGE)
    for path, unit in time_service.FILES.items():
        text = observed["files"][path]
        mine = servers if service is not None and service.file == path else []
        if text is None and not mine:
            continue
        draft.texts[path] = time_service.settings(path, text, mine, HEADER)
        if draft.texts[path] != text:
            draft.step("systemctl", "restart" if mine else "try-restart", f"{unit}.service")
    if servers and service is not None:
        restarted = any(one["argv"][1:2] == ["restart"] for one in draft.steps)
        if not time["enabled"]:
            draft.step("systemctl", "enable", f"{service.unit}.service", after=f"{service.unit} starts at boot")
        if not time["runs"] and not time["held"] and not restarted:
            draft.step("systemctl", "restart", f"{service.unit}.service", after=f"{service.unit} runs")


def _plan_firewall(draft: _Draft, wish: Optional[Mapping[str, Any]], observed: Mapping[str, Any]) -> None:
    draft.steps += observed["steps"]
    if observed["note"]:
        draft.keep["firewall"] = observed["note"]
    if observed["apart"]:
        draft.tell(
            "D12",
            "warning",
            "incoming packets are filtered by rules that neither ufw nor firewalld manages; nothing was opened",
            observed["apart"],
            "Rules were loaded by hand or by a service of the site.",
            "Let the cluster's nodes reach each other on the plan's ports and on those of ip_local_port_range.",
        )
    if observed["manager"] and wish and wish["client_ports"] and not wish["clients"]:
        draft.tell(
            "D12",
            "info",
            f"{observed['manager']} lets only the cluster's own nodes reach the endpoint",
            f"port {format_ports(wish['client_ports'])}",
            "Who its clients are is for the site to say.",
            "Name their networks in host_tuning_firewall_clients, or open the port yourself.",
        )


def _plan_owners(draft: _Draft, wish: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
    tuned = [
        what
        for what, given in (
            ("governor", wish["governor"]),
            ("sysctl", wish["sysctl"]),
            ("numa", "kernel.numa_balancing" in wish["sysctl"]),
            ("hugepages", wish["hugepages"]),
            ("interrupts", wish["irq_devices"]),
        )
        if given
    ]
    later = [one for one in observed["later"] if one[1] in draft.sysctl and _text(one[2]) != draft.sysctl[one[1]]]
    draft.findings += tuning_owners.findings(observed["owners"], tuned, later, bool(wish["hosts"]))


def _plan_writes(draft: _Draft, observed: Mapping[str, Any]) -> Tuple[List[Dict[str, Any]], Dict[str, str]]:
    """The knobs that differ, and the values from before the first change, to which the unwanted go back."""
    previous = dict(observed["saved"]["knobs"])
    unwanted = [path for path in previous if path not in draft.targets]
    for path in unwanted:
        old = previous.pop(path)
        if observed["knobs"].get(path) is not None:
            draft.set(path, old, f"{path} (restored)")
    writes = []
    for path, value in sorted(draft.targets.items()):
        current = observed["knobs"].get(path)
        if path.endswith("_list"):
            number = int(path.split("/")[3])
            current = next(one["interrupts"][number] for one in observed["devices"] if number in one["interrupts"])
        if _same(path, current, value):
            continue
        write = {"knob": draft.names[path], "path": path, "from": _value(path, current), "to": value}
        writes.append({**write, "optional": path in draft.optional})
        if path not in draft.fleeting and path not in unwanted:
            previous.setdefault(path, _value(path, current))
    return writes, previous


def _plan_units(
    files: Mapping[str, Optional[str]], unit: Optional[str], observed: Mapping[str, Any]
) -> Tuple[List[List[str]], List[Dict[str, Any]]]:
    """Calls of systemctl for what is written: those before files are, and those after."""
    steps: List[Dict[str, Any]] = []
    first: List[List[str]] = []
    there = observed["files"][UNIT_FILE] is not None

    def step(*argv: str, after: str = "") -> None:
        steps.append({"argv": ["systemctl", *argv], "before": "", "after": after})

    if unit is None and there:
        first.append(["systemctl", "disable", "--now", UNIT])
    enable = unit is not None and (UNIT_FILE in files or not observed["enabled"])
    if UNIT_FILE in files or enable or any(_limits_unit(name) in files for name in LIMITS_UNITS):
        step("daemon-reload")
    if enable:
        # Started at once, so that a unit that can't work shows now.
        step("enable", UNIT, after=f"{UNIT} enabled")
        step("restart", UNIT)
    return first, steps


def changes(decided: Mapping[str, Any]) -> bool:
    """True when `apply` would change the host."""
    return bool(decided["writes"] or decided["files"] or decided["first"] or decided["steps"])


def diff(decided: Mapping[str, Any], observed: Mapping[str, Any]) -> List[Dict[str, str]]:
    """The plan as Ansible's diff: the live state first, CPUs with the same change as one line, then each file."""
    live: Dict[str, List[str]] = {"before": [], "after": []}
    same: Dict[Any, int] = {}
    for write in decided["writes"]:
        if write["path"] in observed["governors"]:
            pair = (write["from"], write["to"])
            same[pair] = same.get(pair, 0) + 1
        else:
            live["before"].append(f"{write['knob']} = {write['from']}\n")
            live["after"].append(f"{write['knob']} = {write['to']}\n")
    for (old, new), count in sorted(same.items()):
        live["before"].append(f"governor of {count} CPUs = {old}\n")
        live["after"].append(f"governor of {count} CPUs = {new}\n")
    for step in decided["steps"]:
        for side in ("before", "after"):
            live[side] += [f"{step[side]}\n"] if step[side] else []
    parts = []
    if live["before"] or live["after"]:
        parts.append({"header": "live", "before": "".join(live["before"]), "after": "".join(live["after"])})
    for path, text in sorted(decided["files"].items()):
        parts.append({"header": path, "before": observed["files"].get(path) or "", "after": text or ""})
    return [
        {
            "before_header": part["header"],
            "after_header": part["header"],
            "before": part["before"],
            "after": part["after"],
        }
        for part in parts
    ]


# -- the change --------------------------------------------------------------------------------------------------------


def apply(decided: Mapping[str, Any], observed: Mapping[str, Any], tree: Tree, run: Runner) -> List[str]:
    """Do what `plan` decided and read it back; returns the knobs that were refused without harm.

    The old values are saved first, so an interrupted run can still be undone. Raises AscentError naming the knob that
    refused its value or reads back another, or the command that failed.
    """
    saved = decided["saved"]
    if saved is not None:
        _save({**saved, "knobs": {**observed["saved"]["knobs"], **saved["knobs"]}}, tree)
    refused = [write["path"] for write in decided["writes"] if not _write(write, tree)]
    for argv in decided["first"]:
        _must(run, argv)
    for path, text in sorted(decided["files"].items()):
        if text is not None:
            tree.write_file(path, text)
        else:
            tree.remove(path)
    for step in decided["steps"]:
        _must(run, step["argv"])
    for write in decided["writes"]:
        read = tree.read(write["path"])
        if write["path"] not in refused and not _same(write["path"], read, write["to"]):
            raise AscentError(
                f"{write['knob']}: wrote {write['to']!r} but {write['path']} reads back"
                f" {_value(write['path'], read)!r}; the kernel clamps it, or another service on this host sets it too"
            )
    reached = tree.size_mb(SHM) if decided["shm_mb"] else None
    if reached is not None and reached < decided["shm_mb"]:
        raise AscentError(
            f"{SHM} has {reached} MB after it was mounted again with {decided['shm_mb']} MB:"
            f" look at `findmnt {SHM}` and at its line in /etc/fstab"
        )
    if saved is None:
        tree.remove(STATE_FILE)
    else:
        known = saved.get("refused", {}).get("paths", ())
        if refused:
            saved = {**saved, "refused": {"boot": observed["boot_id"], "paths": sorted({*known, *refused})}}
        _save(saved, tree)
    return refused


def _save(state: Mapping[str, Any], tree: Tree) -> None:
    text = json.dumps(state, indent=1, sort_keys=True) + "\n"
    if tree.read(STATE_FILE) != text:
        tree.write_file(STATE_FILE, text)


def _write(write: Mapping[str, Any], tree: Tree) -> bool:
    """Whether a knob took its value; AscentError where one that must take it refuses."""
    try:
        tree.write_knob(write["path"], write["to"])
    except OSError as error:
        if write["optional"]:
            return False
        raise AscentError(
            f"{write['knob']}: wanted {write['to']!r}, found {write['from']!r}, and {write['path']} refused it:"
            f" {error.strerror}. Leave the knob out of the tuning of this host, or allow the write"
        ) from None
    return True


def _must(run: Runner, argv: Sequence[str]) -> None:
    code, out, err = run(argv)
    if code:
        raise AscentError(f"`{' '.join(argv)}` ended with {code}: {(err or out).strip()}")


# -- the clock ---------------------------------------------------------------------------------------------------------


def clock_findings(
    wish: Mapping[str, Any], tree: Tree, run: Runner, synchronised: Optional[bool]
) -> List[Dict[str, Any]]:
    """Whether the clock follows a time service now: a warning where servers were asked for, else for information."""
    time = _observe_time(wish, tree, run)
    service, servers = time["service"], wish["ntp_servers"]
    if synchronised is not False or (servers and service is None and not time["other"]):
        return []
    if time["other"] or time["runs"]:
        cause = f"{time['other'] or service.unit} runs and has reached no server yet, or none that it trusts."
    elif service is None:
        cause = "No time service is installed."
    else:
        cause = f"{service.unit} does not run" + (f": {time['held']}." if time["held"] else ".")
    return [
        finding(
            "D24",
            "warning" if servers else "info",
            "no time service steers this host's clock",
            stage="tune",
            evidence="the kernel's clock is not synchronised (adjtimex)"
            + (f"; servers {', '.join(servers)}" if servers else ""),
            cause=cause,
            fix="timedatectl; chronyc sources"
            if servers
            else "Name the site's servers in host_tuning_ntp_servers; in a container the clock is the machine's.",
        )
    ]


# -- small things ------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """A knob's value as one line with single spaces, as sysctl(8) prints it."""
    return " ".join(str("" if value is None else value).split())


def _value(path: str, text: Any) -> str:
    """What a knob is set to: of several words that it offers, the one in brackets."""
    chosen = re.search(r"\[([^\]]+)\]", _text(text)) if path.startswith(HUGEPAGES) else None
    return chosen.group(1) if chosen else _text(text)


def _same(path: str, current: Any, value: str) -> bool:
    left, right = _value(path, current), _text(value)
    if path.endswith("/smp_affinity_list") and current is not None:
        return cpus.parse_cpus(left) == cpus.parse_cpus(right)
    if path.endswith("/smp_affinity"):
        return left.replace(",", "").lstrip("0") == right.replace(",", "").lstrip("0")
    return left == right


def _mistake(summary: str) -> Dict[str, Any]:
    return finding("tuning-input", "error", summary, stage="tune", fix="correct the host_tuning_* variable")


def _ports(part: str) -> Optional[Set[int]]:
    """One port or range; None when it is neither."""
    match = re.match(r"(\d+)(?:-(\d+))?\Z", part, re.ASCII)
    first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (0, 0)
    return set(range(first, last + 1)) if 1 <= first <= last <= 65535 else None


def _bad_port(part: str) -> Dict[str, Any]:
    return _mistake(f"port {part!r} is not a port or a rising range within 1-65535, such as 23010-23025")


def _absent(name: str, value: str, path: str, fallback: Optional[str]) -> Dict[str, Any]:
    tried = path if fallback is None else f"{path} and {fallback}"
    return finding(
        "tuning-knob-absent",
        "info",
        f"the kernel has no {name}, so {value} was not set",
        stage="tune",
        evidence=f"{tried}: no such file",
        cause="the kernel was built without the feature, renamed the knob, or debugfs is not mounted",
        fix="nothing if the kernel has no such feature; mount debugfs if the knob lives there",
    )


def _has_sys_resource(status: Optional[str]) -> bool:
    """True when CapEff of a /proc/PID/status has CAP_SYS_RESOURCE."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", status or "", re.MULTILINE)
    return match is not None and bool(int(match.group(1), 16) >> _SYS_RESOURCE & 1)


def _sysctl_file(settings: Mapping[str, str]) -> Optional[str]:
    if not settings:
        return None
    return HEADER + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))


def _limits_file(limits: Mapping[str, str]) -> Optional[str]:
    if not limits:
        return None
    # The wildcard does not cover root, see limits.conf(5).
    lines = [f"{who} - {item} {value}\n" for item, value in sorted(limits.items()) for who in ("*", "root")]
    return HEADER + "".join(lines)


def _unit_file(governor: str, boot: Iterable[str]) -> Optional[str]:
    """The unit that sets at boot what sysctl.d can't hold; None when there is nothing of the kind."""
    commands = []
    if governor:
        # One CPU that refuses must not keep the others from being set, but the unit shall still fail.
        commands.append(
            f'failed=0; for knob in {GOVERNOR_GLOB}; do echo {governor} > "$knob" || failed=1; done; exit $failed'
        )
    commands += boot
    if not commands:
        return None
    # systemd would take a single dollar for a variable of its own.
    lines = [f"ExecStart=/bin/sh -c '{command.replace('$', '$$')}'\n" for command in commands]
    return (
        HEADER
        + "[Unit]\n"
        + "Description=Ascent host tuning that sysctl.d cannot hold\n"
        + "After=systemd-sysctl.service sys-kernel-debug.mount\n"
        + "Before=docker.service\n\n"
        + "[Service]\n"
        + "Type=oneshot\n"
        + "RemainAfterExit=yes\n"
        + "".join(lines)
        + "\n[Install]\n"
        + "WantedBy=multi-user.target\n"
    )
