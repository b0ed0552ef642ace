"""What became of a launch: each process as it is now, and where a node no longer is what the launch made it. Pure."""

from __future__ import annotations

__all__ = ["judge"]

import calendar
import time
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from . import containers, generations, serving
from .findings import finding, sort_findings

_ROUTERS = ("router", "frontend", "gateway")
_COLUMNS = ("process", "host", "since", "state", "health", "up", "restarts", "requests", "tokens out")


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    endpoints: Sequence[Mapping[str, Any]],
    files: Mapping[str, Mapping[str, str]],
    digests: Mapping[str, str],
    edited: Optional[Mapping[str, Sequence[str]]] = None,
) -> Dict[str, Any]:
    """``{"findings", "table", "record", "metrics"}`` of a cluster, from the plan of its current generation.

    ``nodes`` are the ``ascent_node`` facts by host, ``endpoints`` the results of `endpoint.check`. ``files`` has the
    SHA-256 of what the generation wrote by host and file name, ``digests`` those of its images; ``edited`` names the
    files of units that somebody changed, by host. What serves badly is an error; what was changed by hand is a warning:
    it goes when the generation is launched again.
    """
    found = list(serving.judge(plan, nodes, endpoints))
    for host in plan["hosts"]:
        node = nodes.get(host)
        if node is not None:
            found += _drift(plan, host, node, files.get(host, {}), digests)
            found += [_edited_unit(plan, host, path) for path in (edited or {}).get(host, ())]
            found += _open_ports(plan, host, node)
            found += _started_again(plan, host, node)
    rows = [_row(plan, process, nodes.get(process["host"]), endpoints) for process in plan["processes"]]
    running = sum(row[3] == "running" for row in rows)
    drift = sum(one["id"].startswith("drift-") for one in found)
    return {
        "findings": sort_findings([{**one, "stage": "status"} for one in found]),
        "table": {"title": plan["recipe"], "columns": list(_COLUMNS), "rows": rows},
        "record": {"processes.json": [dict(zip(_COLUMNS, row)) for row in rows]},
        "metrics": {"status": {"processes": len(rows), "running": running, "drift": drift}},
    }


def _manifest(node: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
    """What a node knows of its current generation."""
    state = node.get("state") or {}
    return next((one for one in state.get("generations") or () if one["number"] == state.get("current")), None)


def _drift(
    plan: Mapping[str, Any],
    host: str,
    node: Mapping[str, Any],
    files: Mapping[str, str],
    digests: Mapping[str, str],
) -> Iterator[Dict[str, Any]]:
    """What somebody changed on a host since the launch."""
    state = node.get("state") or {}
    current = state.get("current")
    definitions = (_manifest(node) or {}).get("processes") or {}
    again = f"ansible-playbook deploy.yml -l {plan['cluster']} --tags launch"
    # A process that did not change mounts the script of an earlier generation: the same text at another place.
    wanted = {f"{current}/{name}": digest for name, digest in files.items()}
    wanted.update({f"{entry['since']}/{name}.sh": files.get(f"{name}.sh", "") for name, entry in definitions.items()})
    there = {place: digest for place, digest in (state.get("files") or {}).items() if place.endswith(".sh")}
    for name in sorted({*there, *wanted}):
        if there.get(name) == wanted.get(name):
            continue
        how = "is gone" if not there.get(name) else "is none of ours" if name not in wanted else "was edited by hand"
        yield finding(
            "drift-file",
            "warning",
            f"{name.partition('/')[2]} on {host} {how}",
            host=host,
            evidence=f"/etc/ascent/{plan['cluster']}/generations/{name}",
            cause="Its container took it in when it started; the next start takes in what is there now.",
            fix=f"{again} puts it right. What was meant to change belongs into the recipe.",
        )
    yield from _altered(plan["cluster"], host, state, (_manifest(node) or {}).get("plan_hash"), again)
    by_name = {process["name"]: process for process in plan["processes"] if process["host"] == host}
    jobs = {job["name"] for job in plan.get("jobs") or ()}
    for container in generations.running_of(node):
        if container["labels"].get("ascent.job") in jobs:
            continue
        process = by_name.get(container["labels"].get("ascent.process"))
        if process is None:
            yield finding(
                "drift-container",
                "warning",
                f"container {container['name']} on {host} belongs to no process of this generation",
                host=host,
                evidence=f"process {container['labels'].get('ascent.process')}, state {container['state']}",
                cause="It was left over, or copied by hand with our labels.",
                fix=f"{again} removes it.",
            )
            continue
        digest = digests[process["container"]["image"]] if process["container"] else None
        if containers.has_other_image(container, digest):
            yield finding(
                "drift-image",
                "warning",
                f"{process['name']} on {host} runs another image than its generation",
                host=host,
                evidence=f"{container['image']}; the generation has {digest}",
                cause="Somebody replaced the container.",
                fix=again,
            )
        elif container["labels"].get("ascent.definition") != definitions.get(process["name"], {}).get("definition"):
            yield finding(
                "drift-container",
                "warning",
                f"{process['name']} on {host} does not run what its generation says",
                host=host,
                evidence=f"container {container['name']} of generation {container['labels'].get('ascent.generation')}",
                cause="A launch was interrupted, or somebody replaced the container.",
                fix=again,
            )
        elif process["container"] and container.get("made"):
            # Labels can be copied, and some settings changed in place.
            since = container["labels"].get("ascent.generation")
            script = f"/etc/ascent/{plan['cluster']}/generations/{since}/{process['name']}.sh"
            told = containers.differences(process["container"], container["made"], script)
            if told:
                yield finding(
                    "drift-container",
                    "warning",
                    f"{process['name']} on {host} was not made as its generation says",
                    host=host,
                    evidence=f"container {container['name']}: {'; '.join(told)}",
                    cause="Somebody changed the container (docker update), or replaced it by one with its labels.",
                    fix=f"docker rm --force {container['name']} on {host}, then {again}",
                )


def _altered(
    cluster: str, host: str, state: Mapping[str, Any], plan_hash: Optional[str], again: str
) -> Iterator[Dict[str, Any]]:
    """Files of a host's generation that are not, or may not stay, what was written, whatever their scripts say."""
    place = f"/etc/ascent/{cluster}/generations"
    if plan_hash and "plan_hash" in state and state["plan_hash"] != plan_hash:
        there = (state.get("files") or {}).get(f"{state.get('current')}/plan.json")
        yield finding(
            "drift-file",
            "warning",
            f"plan.json on {host} {'was edited by hand' if there else 'is gone'}",
            host=host,
            evidence=f"{place}/{state.get('current')}/plan.json",
            cause="Status, stop and rollback go by it.",
            fix=f"{again} puts it right. What was meant to change belongs into the recipe.",
        )
    if state.get("loose"):
        yield finding(
            "drift-file",
            "warning",
            f"others than root may write {len(state['loose'])} of the generation's files on {host}",
            host=host,
            evidence=", ".join(f"{place}/{name}" for name in state["loose"]),
            cause="Somebody changed their mode or owner; containers run the scripts as root.",
            fix=f"{again} puts those of the current generation right; those of earlier ones: chmod go-w, chown root.",
        )


def _started_again(plan: Mapping[str, Any], host: str, node: Mapping[str, Any]) -> Iterator[Dict[str, Any]]:
    """Whether the host lost its power, or was rebooted, since its generation was written."""
    system = node.get("system") or {}
    before, now = (_manifest(node) or {}).get("boot_id"), system.get("boot_id")
    if not before or not now or before == now:
        return
    mine = {process["name"] for process in plan["processes"] if process["host"] == host}
    there = generations.running_of(node)
    back = mine & {one["labels"].get("ascent.process") for one in there if one["state"] == "running"}
    ago = f"it started {_span(system['time'] - system['booted'])} ago, " if system.get("booted") else ""
    yield finding(
        "host-started-again",
        "info",
        f"{host} was rebooted, or lost its power, since it was launched;"
        f" {len(back)} of its {len(mine)} processes came back by themselves",
        host=host,
        evidence=f"{ago}boot {now[:8]}; generation {(node.get('state') or {}).get('current')} was written in boot"
        f" {before[:8]}",
        cause="Containers and units of a cluster start with their host.",
        fix="Nothing to do."
        if back == mine
        else f"ansible-playbook deploy.yml -l {plan['cluster']} --tags launch,check starts the others.",
    )


def _edited_unit(plan: Mapping[str, Any], host: str, path: str) -> Dict[str, Any]:
    return finding(
        "drift-file",
        "warning",
        f"{path.rpartition('/')[2]} on {host} was edited by hand",
        host=host,
        evidence=path,
        cause="systemd takes it in at its next reload, and the unit when it starts.",
        fix=f"ansible-playbook deploy.yml -l {plan['cluster']} --tags launch writes the unit again; what lies in a"
        " directory of its own (systemctl edit) goes with systemctl revert.",
    )


def _open_ports(plan: Mapping[str, Any], host: str, node: Mapping[str, Any]) -> Iterator[Dict[str, Any]]:
    """The plan's ports that a host lets everyone reach: bound at all addresses, and no packet filter before them."""
    everywhere = set((node.get("network") or {}).get("everywhere") or ())
    if (node.get("system") or {}).get("filters"):
        return
    endpoint = (plan.get("endpoint") or {}).get("process")
    routed = any(process["kind"] in _ROUTERS for process in plan["processes"])
    told, past = [], False
    for process in plan["processes"]:
        if process["host"] != host:
            continue
        for port in process["ports"]:
            span = range(port["first"], port["first"] + port["count"])
            mine = sorted(everywhere.intersection(span))
            # What clients ask is meant to be reached.
            if not mine or (port["name"] == "api" and (process["name"] == endpoint or not routed)):
                continue
            past = past or port["name"] == "api"
            numbers = str(mine[0]) if len(mine) == 1 else f"{mine[0]}-{mine[-1]}"
            told.append(f"{numbers} ({port['name']} of {process['name']})")
    if told:
        yield finding(
            "ports-open",
            "warning" if past else "info",
            f"{host} lets everyone who reaches it connect to {len(told)} of the plan's ports",
            host=host,
            evidence=", ".join(told),
            cause="They listen at all addresses of the host, and neither ufw nor firewalld filters."
            + (" An engine can be asked past its router." if past else ""),
            fix="Let a firewall run: --tags tune opens it for cluster and clients only. Engines: security.bind.",
        )


def _row(
    plan: Mapping[str, Any],
    process: Mapping[str, Any],
    node: Optional[Mapping[str, Any]],
    endpoints: Sequence[Mapping[str, Any]],
) -> List[Any]:
    mine = next(
        (one for one in generations.running_of(node) if one["labels"].get("ascent.process") == process["name"]), None
    )
    heads = {one["processes"][0]: one["name"] for one in plan["instances"] if one.get("processes")}
    names = {process["name"], heads.get(process["name"])}
    asked = next((one for one in endpoints if one.get("name") in names), None)
    counters = (asked or {}).get("counters") or {}
    state = "unknown" if node is None else str(mine["state"]) if mine else "missing"
    running = mine is not None and mine["state"] == "running"
    return [
        process["name"],
        process["host"],
        f"generation {mine['labels'].get('ascent.generation')}" if mine else "-",
        state,
        "-" if asked is None else "ok" if asked["ok"] else str(asked["status"] or "no answer"),
        _uptime(mine["started_at"], (node or {}).get("system")) if running and mine else "-",
        (mine.get("restarts") or 0) if mine else "-",
        counters.get("requests", "-"),
        counters.get("generation_tokens", "-"),
    ]


def _uptime(started: Any, system: Optional[Mapping[str, Any]]) -> str:
    """How long a container or unit has run by its node's own clock, in the two largest units."""
    try:
        begun = calendar.timegm(time.strptime(str(started)[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return "-"
    now = (system or {}).get("time")
    return "-" if now is None else _span(float(now) - begun)


def _span(seconds: float) -> str:
    """Seconds in the two largest units."""
    seconds = max(0, int(seconds))
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {small}"
    return f"{seconds} s"
