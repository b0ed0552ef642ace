"""Who else sets what host tuning sets: services that change a knob after us, and files that win at the next boot."""

from __future__ import annotations

__all__ = ["findings", "later_settings", "observe", "runs"]

import fnmatch
import os
import re
from typing import Any, Callable, Collection, Dict, List, Mapping, Sequence, Tuple

from .files import Tree
from .findings import finding

# As sysctl.d(5) has it: a file hides those of its name in later directories; the rest are read by their names' order.
_SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")

#: Service, what it sets that we set too (keys of `findings`' ``tuned``), and how to end it.
_SERVICES: Tuple[Tuple[str, Tuple[str, ...], str], ...] = (
    ("tuned", ("governor", "sysctl", "hugepages"), "tuned-adm off && systemctl disable --now tuned"),
    ("power-profiles-daemon", ("governor",), "systemctl disable --now power-profiles-daemon"),
    ("auto-cpufreq", ("governor",), "systemctl disable --now auto-cpufreq"),
    ("numad", ("numa",), "systemctl disable --now numad"),
    ("irqbalance", ("interrupts",), "systemctl disable --now irqbalance"),
)
# Boot services that set the governor once.
_GOVERNOR_UNITS = ("cpupower.service", "cpufrequtils.service", "cpufreq.service")


def runs(tree: Tree, service: str) -> bool:
    """Whether a systemd service has processes, read from its control group (versions 1 and 2)."""
    return any((tree.read(f"{root}/system.slice/{service}.service/cgroup.procs") or "").strip() for root in _CGROUPS)


def observe(tree: Tree) -> Dict[str, Any]:
    """Who is there: ``{"running": [service], "profile", "enabled": [link], "cloud_init": "file: line"}``."""
    enabled = [f"/etc/systemd/system/multi-user.target.wants/{unit}" for unit in _GOVERNOR_UNITS]
    return {
        "running": [service for service, _, _ in _SERVICES if runs(tree, service)],
        "profile": (tree.read("/etc/tuned/active_profile") or "").strip(),
        "enabled": [path for path in enabled if tree.exists(path)],
        "cloud_init": _cloud_init(tree),
    }


def later_settings(
    tree: Tree, names: Collection[str], file: str, path_of: Callable[[str], str]
) -> List[Tuple[str, str, str]]:
    """``(file, name, value)`` of files that sysctl.d reads after ``file`` and that set one of ``names``.

    ``path_of`` maps the name of a sysctl to its file below /proc/sys.
    """
    places: Dict[str, str] = {}
    for folder in _SYSCTL_FOLDERS:
        for path in tree.glob(f"{folder}/*.conf"):
            places.setdefault(os.path.basename(path), path)
    paths = {path_of(name): name for name in names}
    found = []
    for name in sorted(name for name in places if name > os.path.basename(file)):
        for line in (tree.read(places[name]) or "").splitlines():
            match = re.match(r"\s*-?([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$", line)
            if match is not None:
                pattern = path_of(match.group(1))
                found += [
                    (places[name], ours, match.group(2))
                    for path, ours in paths.items()
                    if fnmatch.fnmatchcase(path, pattern)
                ]
    return found


def findings(
    observed: Mapping[str, Any], tuned: Collection[str], later: Sequence[Tuple[str, str, str]], hosts_file: bool
) -> List[Dict[str, Any]]:
    """A warning for each other owner.

    ``tuned`` names what we set: ``governor``, ``sysctl``, ``numa``, ``hugepages``, ``interrupts``; ``later`` holds what
    `later_settings` found with values other than ours; ``hosts_file``: whether we write /etc/hosts.
    """
    found = []
    for service, sets, command in _SERVICES:
        shared = [what for what in sets if what in tuned]
        if shared and service in observed["running"]:
            profile = observed["profile"] if service == "tuned" else ""
            found.append(
                _owner(
                    f"{service} runs and sets {', '.join(shared)} as well",
                    f"{service}.service has processes" + (f"; active profile {profile}" if profile else ""),
                    "It sets its own values when it starts or by the load, so after a boot either may have won.",
                    f"{command}; or set those knobs there, and leave them out of host_tuning_*",
                )
            )
    for path in observed["enabled"] if "governor" in tuned else ():
        unit = os.path.basename(path)
        found.append(
            _owner(
                f"{unit} is enabled and sets the governor at boot",
                path,
                "Two units set the same knob at boot, in no order.",
                f"systemctl disable {unit}, or host_tuning_governor: '' to leave the governor to it",
            )
        )
    if later:
        found.append(
            _owner(
                f"other files set {', '.join(sorted({name for _, name, _ in later}))} at boot, after ours",
                "; ".join(f"{path}: {name} = {value}" for path, name, value in later),
                "sysctl.d is read by the files' names, and the last one wins.",
                "Take the lines out of those files, or give the same values in host_tuning_sysctl.",
            )
        )
    if hosts_file and observed["cloud_init"]:
        found.append(
            _owner(
                "cloud-init writes /etc/hosts at boot",
                observed["cloud_init"],
                "It makes the file anew from its template, without the names of the cluster.",
                "Set manage_etc_hosts: false there, or run --tags tune after each boot.",
            )
        )
    return found


def _cloud_init(tree: Tree) -> str:
    for path in ["/etc/cloud/cloud.cfg", *tree.glob("/etc/cloud/cloud.cfg.d/*.cfg")]:
        match = re.search(r"^\s*manage_etc_hosts:\s*[\"']?(true|template|localhost)\b.*$", tree.read(path) or "", re.M)
        if match:
            return f"{path}: {match.group(0).strip()}"
    return ""


def _owner(summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    return finding("tuning-conflict", "warning", summary, stage="tune", evidence=evidence, cause=cause, fix=fix)
