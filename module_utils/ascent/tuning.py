"""Host tuning: what has to change on a host, and how to change it back.

The flow is `wanted` (validate) -> `observe` (read) -> `plan` (decide) -> `apply` (write); the first three change
nothing. Knobs are the kernel's own files: sysctls in ``/proc/sys``, cpufreq governors and transparent hugepages in
``/sys``, interrupts in ``/proc/irq``, and the debugfs files that newer kernels have instead of a sysctl
(``kernel.sched_migration_cost_ns`` moved there in Linux 5.13). Beside knobs there are files of services (limits, hosts
file, time service, boot loader) and rules of the firewall.

What was there before the first change is kept in `STATE_FILE`, so a knob that is no longer wanted goes back to its old
value, and an empty wish undoes everything. Ports reserved by others stay so: only our own are added and taken back.
"""

from __future__ import annotations

__all__ = [
    "IRQBALANCE_FILE",
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
    "plan_firewall",
    "sysctl_path",
    "wanted",
]

import json
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import cpus, firewall
from .errors import AscentError
from .files import Tree
from .findings import finding
from .tuning_host import (
    GOVERNOR_GLOB,
    IRQBALANCE_FILE,
    LIMITS_UNITS,
    SHM,
    STATE_FILE,
    SYSCTL_FILE,
    UNIT,
    UNIT_FILE,
    UNIT_LINK,
    limits_unit,
    observe,
    observe_time,
)
from .tuning_parts import HEADER, Draft, interrupts_refused, plan_parts, value_of
from .tuning_wish import NOTHING, RESERVED_PORTS, format_ports, one_line, parse_ports, sysctl_path, wanted

Runner = firewall.Runner


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
    draft = Draft(observed["saved"])
    made = plan_parts(draft, wish, observed)
    writes, previous = _plan_writes(draft, observed)
    draft.texts[SYSCTL_FILE] = _sysctl_file(draft.sysctl)
    draft.texts[UNIT_FILE] = _unit_file(made["governor"], draft.boot)
    files = {path: text for path, text in draft.texts.items() if observed["files"].get(path) != text}
    first, unit_steps = _plan_units(files, draft.texts[UNIT_FILE], observed)
    if draft.texts[UNIT_FILE] is None and observed["enabled"]:
        files[UNIT_LINK] = None
    brought = sorted({*observed["saved"]["packages"], *installed})
    keep: Dict[str, Any] = {
        "knobs": previous,
        "ports": format_ports(made["ours"]),
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
        "reserved": made["reserved"],
        "packages": brought if undo else draft.packages,
        "reboot": made["reboot"],
        "shm_mb": made["shm_mb"],
    }


def plan_firewall(observed: Mapping[str, Any]) -> Dict[str, Any]:
    """As `plan`, of the firewall alone: every other setting stays as it is, and so does what is kept of it."""
    saved = {key: value for key, value in observed["saved"].items() if value or key in ("schema", "knobs", "ports")}
    note = observed["firewall"]["note"]
    saved = {**saved, "firewall": note} if note else {key: saved[key] for key in saved if key != "firewall"}
    return {
        "writes": [],
        "files": {},
        "first": [],
        "steps": observed["firewall"]["steps"],
        "saved": saved if any(value for key, value in saved.items() if key != "schema") else None,
        "findings": [],
        "reserved": one_line(observed["knobs"][sysctl_path(RESERVED_PORTS)]),
        "packages": [],
        "reboot": False,
        "shm_mb": 0,
    }


def _plan_writes(draft: Draft, observed: Mapping[str, Any]) -> Tuple[List[Dict[str, Any]], Dict[str, str]]:
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
        write = {"knob": draft.names[path], "path": path, "from": value_of(path, current), "to": value}
        writes.append({**write, "optional": path in draft.optional})
        if path not in draft.fleeting and path not in unwanted:
            previous.setdefault(path, value_of(path, current))
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
    if UNIT_FILE in files or enable or any(limits_unit(name) in files for name in LIMITS_UNITS):
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
                f" {value_of(write['path'], read)!r}; the kernel clamps it, or another service on this host sets it too"
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
    time = observe_time(wish, tree, run)
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


def _same(path: str, current: Any, value: str) -> bool:
    left, right = value_of(path, current), one_line(value)
    if path.endswith("/smp_affinity_list") and current is not None:
        return cpus.parse_cpus(left) == cpus.parse_cpus(right)
    if path.endswith("/smp_affinity"):
        return left.replace(",", "").lstrip("0") == right.replace(",", "").lstrip("0")
    return left == right


def _sysctl_file(settings: Mapping[str, str]) -> Optional[str]:
    if not settings:
        return None
    return HEADER + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))


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
        + "After=systemd-sysctl.service systemd-modules-load.service sys-kernel-debug.mount\n"
        + "Before=docker.service\n\n"
        + "[Service]\n"
        + "Type=oneshot\n"
        + "RemainAfterExit=yes\n"
        + "".join(lines)
        + "\n[Install]\n"
        + "WantedBy=multi-user.target\n"
    )
