"""The parts of a tuning plan: what each wants set, written, run and told.

Every part takes a `Draft` and adds to it; none of them changes a host. `ascent.tuning` puts the draft together.
"""

from __future__ import annotations

__all__ = [
    "HEADER",
    "Draft",
    "interrupts_refused",
    "plan_parts",
    "value_of",
]

import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from . import cpus, host_names, time_service, tuning_owners
from .errors import InputError
from .findings import finding
from .tuning_host import (
    BOOT_FILE,
    GOVERNOR_GLOB,
    HUGEPAGES,
    IRQBALANCE_FILE,
    JEMALLOC,
    LIMIT_ROWS,
    LIMITS_FILE,
    LIMITS_UNITS,
    SHM,
    limits_unit,
)
from .tuning_wish import RESERVED_PORTS, format_ports, mistake, one_line, parse_ports, sysctl_path

HEADER = "# Ansible managed\n# ascent:host_tuning\n"

_JEMALLOC_PACKAGE = {"debian": "libjemalloc2", "rhel": "jemalloc"}


class Draft:
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


def plan_parts(draft: Draft, wish: Mapping[str, Any], observed: Mapping[str, Any]) -> Dict[str, Any]:
    """Let every part add to the draft.

    Returns what they found out on the way: ``{"governor": the one that the boot unit sets, "reserved": all reserved
    ports, "ours": those of them that are ours, "shm_mb", "reboot"}``.
    """
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
    if wish["jemalloc"]:
        _plan_jemalloc(draft, observed)
    _plan_owners(draft, wish, observed)
    return {"governor": governor, "reserved": reserved, "ours": ours, "shm_mb": shm_mb, "reboot": reboot}


def _plan_sysctl(draft: Draft, wish: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
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


def _plan_governor(draft: Draft, governor: str, observed: Mapping[str, Any]) -> str:
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


def _plan_hugepages(draft: Draft, wish: Mapping[str, str], observed: Mapping[str, Any]) -> None:
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
                f"{path}: {one_line(text)}",
                "this kernel offers other words",
                f"name one of {', '.join(offered)} in host_tuning_hugepages",
            )
            continue
        draft.set(path, value, f"transparent hugepages, {name}")
        draft.boot.append(f"echo {value} > {path}")


def _plan_ports(draft: Draft, wish: Sequence[int], observed: Mapping[str, Any]) -> Tuple[str, Set[int]]:
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


def _plan_limits(draft: Draft, wish: Mapping[str, str], observed: Mapping[str, Any]) -> None:
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
        f"Limit{LIMIT_ROWS[item][1]}={_systemd_limit(item, value)}\n"
        for item, value in sorted(wish.items())
        if item in LIMIT_ROWS
    ]
    for unit in LIMITS_UNITS:
        draft.texts[limits_unit(unit)] = HEADER + "[Service]\n" + "".join(directives) if directives else None
    low = {
        f"{daemon}: {LIMIT_ROWS[item][0].lower()} {limits[item]:g}"
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
    return float("inf") if value == "unlimited" else float(value) * (LIMIT_ROWS[item][2] if item in LIMIT_ROWS else 1)


def _systemd_limit(item: str, value: str) -> str:
    return "infinity" if value == "unlimited" else str(int(_limit(item, value)))


def _plan_shm(draft: Draft, wish: int, observed: Mapping[str, Any]) -> int:
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


def _plan_interrupts(draft: Draft, wish: Sequence[str], observed: Mapping[str, Any]) -> None:
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
                _interrupt(draft, path, one_line(default), f"interrupt {number} of {bus} (default)")
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


def _interrupt(draft: Draft, path: str, value: str, name: str) -> None:
    draft.set(path, value, name)
    draft.fleeting.add(path)
    draft.optional.add(path)


def _plan_isolation(draft: Draft, wish: str, observed: Mapping[str, Any]) -> bool:
    """The boot loader's command line. Returns whether the running kernel was booted with another one."""
    boot, before = observed["boot"], draft.saved["kernel"]
    arguments = cpus.isolation_arguments(wish)
    if wish and boot["online"] is not None:
        online, isolated = cpus.parse_cpus(boot["online"]), cpus.parse_cpus(wish)
        if not isolated < online:
            raise InputError(
                [
                    mistake(
                        f"CPUs to isolate: {wish} is no part of the CPUs of this host, {one_line(boot['online'])};"
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


def _plan_hosts(draft: Draft, wish: Sequence[Mapping[str, Any]], observed: Mapping[str, Any]) -> None:
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


def _plan_time(draft: Draft, servers: Sequence[str], observed: Mapping[str, Any]) -> None:
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


def _plan_firewall(draft: Draft, wish: Optional[Mapping[str, Any]], observed: Mapping[str, Any]) -> None:
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


def _plan_jemalloc(draft: Draft, observed: Mapping[str, Any]) -> None:
    if observed["jemalloc"] is None:
        package = _JEMALLOC_PACKAGE[observed["family"]]
        draft.tell(
            "D23",
            "warning",
            "jemalloc is asked for and not on this host, so engines outside containers run without it",
            f"no file {', '.join(JEMALLOC)}",
            f"The package {package} is not installed.",
            f"Install {package}, or leave jemalloc out of the recipe.",
        )


def _plan_owners(draft: Draft, wish: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
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
    later = [one for one in observed["later"] if one[1] in draft.sysctl and one_line(one[2]) != draft.sysctl[one[1]]]
    draft.findings += tuning_owners.findings(observed["owners"], tuned, later, bool(wish["hosts"]))


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


def value_of(path: str, text: Any) -> str:
    """What a knob is set to: of several words that it offers, the one in brackets."""
    chosen = re.search(r"\[([^\]]+)\]", one_line(text)) if path.startswith(HUGEPAGES) else None
    return chosen.group(1) if chosen else one_line(text)


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


def _limits_file(limits: Mapping[str, str]) -> Optional[str]:
    if not limits:
        return None
    # The wildcard does not cover root, see limits.conf(5).
    lines = [f"{who} - {item} {value}\n" for item, value in sorted(limits.items()) for who in ("*", "root")]
    return HEADER + "".join(lines)
