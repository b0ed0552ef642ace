"""Units of systemd for engines outside containers: their text, what one host has, and the steps between the two.

A unit tells whose it is by keys that systemd passes over (``X-…``): the same four that containers carry as labels.
"""

from __future__ import annotations

__all__ = [
    "DIRECTORY",
    "PROPERTIES",
    "edited",
    "edited_of",
    "labels_of",
    "parse_show",
    "plan",
    "rewritten",
    "state_of",
    "text",
]

import re
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

#: Where units that a site makes lie.
DIRECTORY = "/etc/systemd/system"

#: What `systemctl show` is asked.
PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestampMonotonic",
    "InvocationID",
    "NRestarts",
    "MainPID",
    "DropInPaths",
)

_LABELS = ("cluster", "process", "generation", "definition")
_KILLED = ("2", "3")  # CLD_KILLED and CLD_DUMPED of waitid(2)
_TIME_TO_STOP = re.compile(r"^TimeoutStopSec=(\d+)$", re.M)


def text(unit: Mapping[str, Any], script: str, labels: Mapping[str, Any], *, managed: str, stop_seconds: int) -> str:
    """The text of a process's unit. ``unit`` is the plan's, ``script`` what it runs.

    Type simple, since exec is younger than the systemd of distributions in use. The whole group of processes ends with
    the script: an engine's workers are its children.
    """
    lines = [
        f"# {managed}",
        "# ascent:engine",
        "[Unit]",
        f"Description=Ascent: {labels['process']} of {labels['cluster']}",
    ]
    lines += [f"X-Ascent-{name.capitalize()}={labels[name]}" for name in _LABELS]
    lines += ["After=network-online.target", "Wants=network-online.target", "StartLimitIntervalSec=0", ""]
    lines += ["[Service]", "Type=simple", f"ExecStart=/bin/bash {_escaped(script)}", "Environment=HOME=/root"]
    lines += ["WorkingDirectory=/root", f"Restart={unit['restart']}", "RestartSec=2", "KillMode=mixed"]
    lines += [f"TimeoutStopSec={stop_seconds}", "TasksMax=infinity", "OOMPolicy=stop"]
    lines += [f"Limit{name}={limit}" for name, limit in sorted(unit["limits"].items())]
    lines += _share(unit)
    lines += ["StandardOutput=journal", "StandardError=journal", "SyslogIdentifier=ascent", "LogRateLimitIntervalSec=0"]
    return "\n".join([*lines, "", "[Install]", "WantedBy=multi-user.target", ""])


def _share(unit: Mapping[str, Any]) -> List[str]:
    """The lines that bound what a unit takes of its host, as the options of a container would.

    Control groups of version 1 know neither AllowedCPUs nor AllowedMemoryNodes, and a systemd before 244 passes over
    both: there the affinity and the NUMA policy bind, which a process may change for itself. MemoryMax is for either
    version.

    >>> _share({"memory": "512g", "cpuset_cpus": "0-95"})
    ['MemoryMax=512G', 'CPUAffinity=0-95', 'AllowedCPUs=0-95']
    """
    lines = []
    if unit.get("memory"):
        lines.append(f"MemoryMax={unit['memory'].rstrip('b').upper()}")
    if unit.get("cpuset_cpus"):
        lines += [f"CPUAffinity={unit['cpuset_cpus']}", f"AllowedCPUs={unit['cpuset_cpus']}"]
    if unit.get("cpuset_mems"):
        nodes = unit["cpuset_mems"]
        lines += ["NUMAPolicy=bind", f"NUMAMask={nodes}", f"AllowedMemoryNodes={nodes}"]
    return lines


def _escaped(word: str) -> str:
    return word.replace("%", "%%").replace("$", "$$")


def edited(found: Mapping[str, Any], unit: Mapping[str, Any], script: str, *, managed: str) -> Optional[str]:
    """The file in which somebody changed a unit by hand; None where nobody did.

    ``found`` has ``name``, ``text``, ``labels`` and ``drop_ins`` of the unit as it is on the host, ``unit`` and
    ``script`` are what `text` took. How long it may take to stop is a setting of the site, not of the plan.
    """
    labels = {name: found["labels"].get(f"ascent.{name}", "") for name in _LABELS}
    stop = _TIME_TO_STOP.search(found["text"])
    if not stop or text(unit, script, labels, managed=managed, stop_seconds=int(stop.group(1))) != found["text"]:
        return f"{DIRECTORY}/{found['name']}"
    # One for all units of engines is the tuning's.
    own = [path for path in found["drop_ins"] if f"/{found['name']}.d/" in path]
    return own[0] if own else None


def edited_of(
    plan: Mapping[str, Any], nodes: Mapping[str, Optional[Mapping[str, Any]]], root: str, *, managed: str
) -> List[Tuple[str, str, str]]:
    """``(host, process, file)`` of every unit of the plan that somebody changed by hand; `edited` says how.

    ``nodes`` are ``ascent_node`` facts by host, ``root`` is the cluster's directory with its generations.
    """
    planned = {process["unit"]["name"]: process for process in plan["processes"] if process.get("unit")}
    found = []
    for host, node in nodes.items():
        for one in ((node or {}).get("units") or {}).get("units") or ():
            process = planned.get(one["name"])
            if process is None:
                continue
            script = f"{root}/generations/{one['labels'].get('ascent.generation')}/{process['name']}.sh"
            path = edited(one, process["unit"], script, managed=managed)
            if path:
                found.append((host, process["name"], path))
    return found


def rewritten(
    plan: Mapping[str, Any], nodes: Mapping[str, Optional[Mapping[str, Any]]], root: str, *, managed: str
) -> List[str]:
    """Processes whose unit file was changed by hand, so that a launch writes it again and starts them anew.

    The arguments are those of `edited_of`. A drop-in is none of ours and stays.
    """
    names = {process["name"]: process["unit"]["name"] for process in plan["processes"] if process.get("unit")}
    found = edited_of(plan, nodes, root, managed=managed)
    return sorted(process for _, process, path in found if path == f"{DIRECTORY}/{names[process]}")


def labels_of(content: str) -> Dict[str, str]:
    r"""A unit file's labels, named as containers' are; empty where it is none of ours.

    >>> labels_of("X-Ascent-Cluster=a3\nX-Ascent-Process=decode-0-head\n")
    {'ascent.cluster': 'a3', 'ascent.process': 'decode-0-head'}
    """
    return {
        f"ascent.{name.lower()}": value.strip() for name, value in re.findall(r"^X-Ascent-(\w+)=(.*)$", content, re.M)
    }


def parse_show(output: str) -> Dict[str, Dict[str, str]]:
    """Properties of units by their ids, from what `systemctl show` prints for several."""
    found = {}
    for block in output.split("\n\n"):
        entry = dict(re.findall(r"^(\w+)=(.*)$", block, re.M))
        if entry.get("Id"):
            found[entry["Id"]] = entry
    return found


def state_of(show: Optional[Mapping[str, str]], clocks: Optional[Tuple[float, float]] = None) -> Dict[str, Any]:
    """A unit's state in the words of a container's.

    ``{"state", "exit_code", "oom_killed", "restarts", "id", "started_at"}``. ``clocks`` are the host's monotonic clock
    and its time of day, in seconds, when it was asked: systemd tells times of day in the host's own zone only.
    """
    show = show or {}
    active, sub = show.get("ActiveState"), show.get("SubState")
    if show.get("LoadState", "not-found") == "not-found":
        state = "missing"
    elif active == "active" and sub == "running":
        state = "running"
    elif active in ("activating", "reloading"):
        state = "restarting" if sub == "auto-restart" else "running"
    else:
        state = "exited"
    status = show.get("ExecMainStatus", "")
    code = int(status) if status.isdigit() else None
    if code is not None and show.get("ExecMainCode") in _KILLED:
        code += 128
    return {
        "state": state,
        "id": show.get("InvocationID") or None,
        "exit_code": None if state == "running" else code,
        "oom_killed": show.get("Result") == "oom-kill",
        "restarts": int(show.get("NRestarts") or 0),
        "started_at": _started_at(show.get("ExecMainStartTimestampMonotonic", ""), clocks),
    }


def _started_at(monotonic: str, clocks: Optional[Tuple[float, float]]) -> Optional[str]:
    """ISO 8601 in UTC of an instant in microseconds of the monotonic clock; None where it never started.

    >>> _started_at("5000000", (65.0, 1767225660.0))
    '2026-01-01T00:00:00Z'
    """
    if not monotonic.isdigit() or not int(monotonic) or clocks is None:
        return None
    now, time_of_day = clocks
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_of_day - now + int(monotonic) / 1e6))


def plan(
    wanted: Sequence[Mapping[str, Any]],
    there: Mapping[str, Mapping[str, Any]],
    ending: Sequence[str] = (),
) -> List[Dict[str, str]]:
    """The steps from the units that are ``there`` to those that are ``wanted``: ``{"do", "unit"}``, in order.

    ``wanted`` has ``name`` and ``text``; ``there`` has by name ``text``, ``state`` and ``enabled`` of the cluster's own
    units. ``ending`` are processes' units that end before any starts again. Steps: ``remove``, ``stop``, ``write``,
    ``enable``, ``start``. A unit whose text differs is stopped before it is written: what ran has to be what is named.
    Only the time that it may take to stop is written under a unit that goes on, as it is for a container.
    """
    names = {one["name"] for one in wanted}
    steps = [{"do": "remove", "unit": name} for name in sorted(there) if name not in names]
    later = []
    for one in wanted:
        name, found = one["name"], there.get(one["name"])
        differs = found is None or found["text"] != one["text"]
        alive = found is not None and found["state"] in ("running", "restarting")
        other = found is None or _TIME_TO_STOP.sub("", found["text"]) != _TIME_TO_STOP.sub("", one["text"])
        ends = alive and (other or name in ending)
        if ends:
            steps.append({"do": "stop", "unit": name})
        if differs:
            later.append({"do": "write", "unit": name})
        if found is None or not found["enabled"]:
            later.append({"do": "enable", "unit": name})
        if not alive or ends:
            later.append({"do": "start", "unit": name})
    return steps + later
