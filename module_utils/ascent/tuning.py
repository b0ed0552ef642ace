"""Host tuning: what a host's knobs are, what has to change, and how to change it back.

The flow is `wanted` (validate) -> `observe` (read) -> `plan` (decide) -> `apply` (write); the first three change
nothing. Knobs are the kernel's own files: sysctls in ``/proc/sys``, cpufreq governors in ``/sys``, and the debugfs
files that newer kernels have instead of a sysctl (``kernel.sched_migration_cost_ns`` moved there in Linux 5.13).

What was there before the first change is kept in `STATE_FILE`, so a knob that is no longer wanted goes back to its old
value, and an empty wish undoes everything. Ports reserved by others stay so: only our own are added and taken back.
"""

from __future__ import annotations

__all__ = [
    "LIMITS_FILE",
    "NOTHING",
    "RESERVED_PORTS",
    "STATE_FILE",
    "SYSCTL_FILE",
    "UNIT",
    "UNIT_FILE",
    "UNIT_LINK",
    "apply",
    "changes",
    "diff",
    "format_ports",
    "observe",
    "parse_ports",
    "plan",
    "sysctl_path",
    "wanted",
]

import json
import os
import re
from typing import Any, Dict, Iterable, List, Optional, Set

from .errors import AscentError, InputError
from .files import Tree
from .findings import finding

SYSCTL_FILE = "/etc/sysctl.d/90-ascent.conf"
LIMITS_FILE = "/etc/security/limits.d/90-ascent.conf"
UNIT = "ascent-host-tuning.service"
UNIT_FILE = "/etc/systemd/system/" + UNIT
UNIT_LINK = "/etc/systemd/system/multi-user.target.wants/" + UNIT
STATE_FILE = "/var/lib/ascent/host_tuning.json"
RESERVED_PORTS = "net.ipv4.ip_local_reserved_ports"
GOVERNOR_GLOB = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
HEADER = "# Ansible managed\n# ascent:host_tuning\n"

# What may stand in a knob: it ends up in sysctl.d and in a shell line of the unit, so no quotes, dollars or newlines.
_VALUE = re.compile(r"[\w.,:+\- ]*\Z", re.ASCII)
_NAME = re.compile(r"[\w.\-/]+\Z", re.ASCII)
_LIMIT = re.compile(r"(\d+|unlimited)\Z", re.ASCII)


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
    ranges: List[List[int]] = []
    for port in sorted(set(ports)):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def sysctl_path(name: str) -> str:
    """The file of a sysctl. As in sysctl(8), the first separator tells which of ``.`` and ``/`` separates.

    >>> sysctl_path("vm.swappiness"), sysctl_path("net/ipv4/conf/eth0.100/rp_filter")
    ('/proc/sys/vm/swappiness', '/proc/sys/net/ipv4/conf/eth0.100/rp_filter')
    """
    separators = [character for character in name if character in "./"]
    if separators[:1] == ["."]:
        name = name.translate(str.maketrans("./", "/."))
    return "/proc/sys/" + name


def wanted(
    governor: str = "",
    sysctl: Optional[Dict[str, Any]] = None,
    debugfs: Optional[Dict[str, str]] = None,
    reserved_ports: Iterable[Any] = (),
    limits: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """The checked wish.

    ``{"governor", "sysctl": {name: text}, "debugfs": {sysctl: path}, "ports": [port], "limits": {item: text}}``.
    ``sysctl`` values are numbers or text; ``debugfs`` names the file to use when the kernel lacks that sysctl; an item
    of ``reserved_ports`` is a port or a range. Raises InputError with every mistake at once.
    """
    mistakes: List[Dict[str, Any]] = []
    settings: Dict[str, str] = {}
    for name, value in (sysctl or {}).items():
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
    for item, value in (limits or {}).items():
        if not re.match(r"[a-z]+\Z", str(item), re.ASCII) or isinstance(value, bool) or not _LIMIT.match(str(value)):
            mistakes.append(_mistake(f"limit {item}: {value!r} is not a number or unlimited, as in nofile: 1048576"))
    ports: Set[int] = set()
    for part in reserved_ports:
        parsed = _ports(str(part))
        if parsed is None:
            mistakes.append(_bad_port(str(part)))
        else:
            ports |= parsed
    if mistakes:
        raise InputError(mistakes)
    return {
        "governor": governor,
        "sysctl": settings,
        "debugfs": {str(name): str(path) for name, path in (debugfs or {}).items()},
        "ports": sorted(ports),
        "limits": {str(item): str(value) for item, value in (limits or {}).items()},
    }


#: The wish that undoes everything.
NOTHING: Dict[str, Any] = wanted()


def observe(wish: Dict[str, Any], tree: Tree) -> Dict[str, Any]:
    """What the host has of the knobs that are wanted, or were changed earlier.

    ``{"knobs": {path: text or None}, "governors": {path: [available]}, "files": {path: text or None}, "enabled": bool,
    "saved": what STATE_FILE holds, "may_raise_limits": bool}``. Raises AscentError when STATE_FILE is damaged: going
    on would lose the old values.
    """
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
    governors = {}
    for path in tree.glob(GOVERNOR_GLOB):
        available = tree.read(os.path.join(os.path.dirname(path), "scaling_available_governors"))
        governors[path] = (available or "").split()
    paths = {sysctl_path(name) for name in [*wish["sysctl"], RESERVED_PORTS]}
    paths.update(wish["debugfs"].values(), governors, saved["knobs"])
    return {
        "knobs": {path: tree.read(path) for path in sorted(paths)},
        "governors": governors,
        "files": {path: tree.read(path) for path in (SYSCTL_FILE, LIMITS_FILE, UNIT_FILE)},
        "enabled": tree.exists(UNIT_LINK),
        "saved": saved,
        "may_raise_limits": _has_sys_resource(tree.read("/proc/self/status")),
    }


def plan(wish: Dict[str, Any], observed: Dict[str, Any]) -> Dict[str, Any]:
    """What has to change for ``wish`` to hold, now and after a reboot.

    ``{"writes": [{"knob", "path", "from", "to"}], "files": {path: text, or None to remove}, "unit": "enable", "disable"
    or None, "saved": new content of STATE_FILE, None to remove it, "findings", "reserved": the merged port list}``.
    ``writes`` and ``files`` hold differences only, so both are empty on a host that is right. A knob that is absent is
    an ``info`` finding.
    """
    findings: List[Dict[str, Any]] = []
    targets: Dict[str, str] = {}
    names: Dict[str, str] = {}
    persistent: Dict[str, str] = {}
    boot: Dict[str, str] = {}

    for name, value in sorted(wish["sysctl"].items()):
        path = sysctl_path(name)
        fallback = wish["debugfs"].get(name)
        if observed["knobs"].get(path) is not None:
            persistent[name] = value
        elif fallback is not None and observed["knobs"].get(fallback) is not None:
            path = fallback
            boot[path] = value
        else:
            findings.append(_absent(name, value, path, fallback))
            continue
        targets[path] = value
        names[path] = name if path != fallback else f"{name} ({fallback})"

    governor = wish["governor"]
    refused = [path for path, available in observed["governors"].items() if available and governor not in available]
    if governor and not observed["governors"]:
        findings.append(
            finding(
                "tuning-governor-absent",
                "info",
                f"no CPU frequency control, so governor {governor} was not set",
                evidence=f"no file matches {GOVERNOR_GLOB}",
                cause="a virtual machine, or frequency scaling is left to the firmware",
                fix="set the power policy of the firmware to performance; nothing to do on a virtual machine",
            )
        )
    elif governor and refused:
        findings.append(
            finding(
                "tuning-governor-refused",
                "warning",
                f"governor {governor} is not offered for {len(refused)} of {len(observed['governors'])} CPUs",
                evidence=f"{refused[0]}: available are {' '.join(observed['governors'][refused[0]])}",
                cause="the cpufreq driver or the kernel configuration lacks it",
                fix="load the governor's module, or name one of those offered in host_tuning_governor",
            )
        )
    if governor:
        for path in observed["governors"]:
            if path not in refused:
                targets[path] = governor
                names[path] = f"governor of {path.split('/')[5]}"

    saved = observed["saved"]
    ports_path = sysctl_path(RESERVED_PORTS)
    reserved_text = observed["knobs"].get(ports_path)
    ours: Set[int] = set()
    reserved = ""
    if reserved_text is not None:
        others = parse_ports(reserved_text) - parse_ports(saved["ports"])
        ours = set(wish["ports"]) - others
        reserved = format_ports(others | ours)
        if wish["ports"]:
            persistent[RESERVED_PORTS] = reserved
        if parse_ports(reserved_text) != others | ours:
            targets[ports_path] = reserved
            names[ports_path] = RESERVED_PORTS
    elif wish["ports"]:
        findings.append(_absent(RESERVED_PORTS, format_ports(wish["ports"]), ports_path, None))

    # Values from before the first change; what is no longer wanted goes back to them.
    previous = dict(saved["knobs"])
    unwanted = [path for path in previous if path not in targets]
    for path in unwanted:
        old = previous.pop(path)
        if observed["knobs"].get(path) is not None:
            targets[path] = old
            names[path] = f"{path} (restored)"
    writes = []
    for path, value in sorted(targets.items()):
        current = observed["knobs"][path]
        if _same(current, value):
            continue
        writes.append({"knob": names[path], "path": path, "from": _text(current), "to": value})
        if path != ports_path and path not in unwanted:
            previous.setdefault(path, _text(current))

    limits = wish["limits"]
    if limits and not observed["may_raise_limits"]:
        findings.append(
            finding(
                "tuning-limits-refused",
                "warning",
                "limits were not written: this system's root may not raise them, and logins would fail",
                evidence="CAP_SYS_RESOURCE is missing in CapEff of /proc/self/status",
                cause="the host is itself a container",
                fix="leave host_tuning_limits empty here, or give the container that capability",
            )
        )
        limits = {}
    texts = {
        SYSCTL_FILE: _sysctl_file(persistent),
        LIMITS_FILE: _limits_file(limits),
        UNIT_FILE: _unit_file(governor if governor and len(refused) < len(observed["governors"]) else "", boot),
    }
    files = {path: text for path, text in texts.items() if observed["files"][path] != text}
    unit = None
    if texts[UNIT_FILE] is None:
        unit = "disable" if observed["enabled"] or observed["files"][UNIT_FILE] is not None else None
    elif UNIT_FILE in files or not observed["enabled"]:
        unit = "enable"
    keep: Optional[Dict[str, Any]] = {"schema": 1, "knobs": previous, "ports": format_ports(ours)}
    if not previous and not ours:
        keep = None
    return {"writes": writes, "files": files, "unit": unit, "saved": keep, "findings": findings, "reserved": reserved}


def changes(decided: Dict[str, Any]) -> bool:
    """True when `apply` would change the host."""
    return bool(decided["writes"] or decided["files"] or decided["unit"])


def diff(decided: Dict[str, Any], observed: Dict[str, Any]) -> List[Dict[str, str]]:
    """The plan as Ansible's diff: the live knobs first, CPUs with the same change as one line, then each file."""
    live: Dict[str, List[str]] = {"before": [], "after": []}
    cpus: Dict[Any, int] = {}
    for write in decided["writes"]:
        if write["path"] in observed["governors"]:
            pair = (write["from"], write["to"])
            cpus[pair] = cpus.get(pair, 0) + 1
        else:
            live["before"].append(f"{write['knob']} = {write['from']}\n")
            live["after"].append(f"{write['knob']} = {write['to']}\n")
    for (old, new), count in sorted(cpus.items()):
        live["before"].append(f"governor of {count} CPUs = {old}\n")
        live["after"].append(f"governor of {count} CPUs = {new}\n")
    parts = []
    if decided["writes"]:
        parts.append({"header": "live", "before": "".join(live["before"]), "after": "".join(live["after"])})
    for path, text in sorted(decided["files"].items()):
        parts.append({"header": path, "before": observed["files"][path] or "", "after": text or ""})
    return [
        {
            "before_header": part["header"],
            "after_header": part["header"],
            "before": part["before"],
            "after": part["after"],
        }
        for part in parts
    ]


def apply(decided: Dict[str, Any], observed: Dict[str, Any], tree: Tree) -> None:
    """Write what `plan` decided and read it back. Enabling the unit is left to the caller, who can run programs.

    The old values are saved first, so an interrupted run can still be undone. Raises AscentError naming the knob that
    refused its value or reads back another.
    """
    if decided["saved"] is not None and decided["saved"] != observed["saved"]:
        tree.write_file(STATE_FILE, json.dumps(decided["saved"], indent=1, sort_keys=True) + "\n")
    for write in decided["writes"]:
        _write(write, tree)
    for path, text in sorted(decided["files"].items()):
        if text is not None:
            tree.write_file(path, text)
        elif path != UNIT_FILE:
            tree.remove(path)
    for write in decided["writes"]:
        read = tree.read(write["path"])
        if not _same(read, write["to"]):
            raise AscentError(
                f"{write['knob']}: wrote {write['to']!r} but {write['path']} reads back {_text(read)!r};"
                " the kernel clamps it, or another service on this host sets it too"
            )
    if decided["saved"] is None:
        tree.remove(STATE_FILE)


def _write(write: Dict[str, str], tree: Tree) -> None:
    try:
        tree.write_knob(write["path"], write["to"])
    except OSError as error:
        raise AscentError(
            f"{write['knob']}: wanted {write['to']!r}, found {write['from']!r}, and {write['path']} refused it:"
            f" {error.strerror}. Leave the knob out of the tuning of this host, or allow the write"
        ) from None


def _text(value: Any) -> str:
    """A knob's value as one line with single spaces, as sysctl(8) prints it."""
    return " ".join(str("" if value is None else value).split())


def _same(current: Any, value: str) -> bool:
    return _text(current) == _text(value)


def _mistake(summary: str) -> Dict[str, Any]:
    return finding("tuning-input", "error", summary, stage="tune", fix="correct the host_tuning_* variable")


def _ports(part: str) -> Optional[Set[int]]:
    """One port or range; None when it is neither."""
    match = re.match(r"(\d+)(?:-(\d+))?\Z", part, re.ASCII)
    first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (0, 0)
    return set(range(first, last + 1)) if 1 <= first <= last <= 65535 else None


def _bad_port(part: str) -> Dict[str, Any]:
    return _mistake(f"reserved port {part!r} is not a port or a rising range within 1-65535, such as 23010-23025")


def _absent(name: str, value: str, path: str, fallback: Optional[str]) -> Dict[str, Any]:
    tried = path if fallback is None else f"{path} and {fallback}"
    return finding(
        "tuning-knob-absent",
        "info",
        f"the kernel has no {name}, so {value} was not set",
        evidence=f"{tried}: no such file",
        cause="the kernel was built without the feature, renamed the knob, or debugfs is not mounted",
        fix="nothing if the kernel has no such feature; mount debugfs if the knob lives there",
    )


def _has_sys_resource(status: Optional[str]) -> bool:
    """True when CapEff of a /proc/PID/status has CAP_SYS_RESOURCE (bit 24), which raising a hard limit takes."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", status or "", re.MULTILINE)
    return match is not None and bool(int(match.group(1), 16) >> 24 & 1)


def _sysctl_file(settings: Dict[str, str]) -> Optional[str]:
    if not settings:
        return None
    return HEADER + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))


def _limits_file(limits: Dict[str, str]) -> Optional[str]:
    if not limits:
        return None
    # The wildcard does not cover root, see limits.conf(5).
    lines = [f"{who} - {item} {value}\n" for item, value in sorted(limits.items()) for who in ("*", "root")]
    return HEADER + "".join(lines)


def _unit_file(governor: str, boot: Dict[str, str]) -> Optional[str]:
    """The unit that sets at boot what sysctl.d can't hold; None when there is nothing of the kind."""
    commands = []
    if governor:
        # One CPU that refuses must not keep the others from being set, but the unit shall still fail.
        loop = f'failed=0; for knob in {GOVERNOR_GLOB}; do echo {governor} > "$$knob" || failed=1; done; exit $$failed'
        commands.append(f"ExecStart=/bin/sh -c '{loop}'\n")
    commands += [f"ExecStart=/bin/sh -c 'echo {value} > {path}'\n" for path, value in sorted(boot.items())]
    if not commands:
        return None
    return (
        HEADER
        + "[Unit]\n"
        + "Description=Ascent host tuning that sysctl.d cannot hold\n"
        + "After=systemd-sysctl.service sys-kernel-debug.mount\n"
        + "Before=docker.service\n\n"
        + "[Service]\n"
        + "Type=oneshot\n"
        + "RemainAfterExit=yes\n"
        + "".join(commands)
        + "\n[Install]\n"
        + "WantedBy=multi-user.target\n"
    )
