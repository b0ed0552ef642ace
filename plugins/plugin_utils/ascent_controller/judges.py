"""The judges by name, for the action plugin ``judge``: each compares the plan with what the nodes told.

A judge takes ``(plan, facts, **options)`` and returns ``{"findings": […]}`` with, as it likes, ``metrics`` and
``record`` for the run record and further keys for the tasks that follow. ``facts`` maps every host of the plan to its
``ansible_facts``; a host that was not read has none of ours among them.
"""

from __future__ import annotations

__all__ = ["JUDGES", "options", "told"]

import hashlib
import inspect
import json
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from ascent import diagnosis, memory, preflight, serving, status, units, upgrade
from ascent.fabric import collectives, control_plane, devices, pairs, verdict
from ascent.findings import failed, finding, message, sort_findings
from ascent_controller import loader, render, signatures
from ascent_controller.loader import ROOT

Plan = Mapping[str, Any]
Facts = Mapping[str, Mapping[str, Any]]

# Ansible's name for what a judge's signature asks for.
_TYPES = {str: "str", float: "float", int: "int", bool: "bool", Sequence: "list", Mapping: "dict"}


def options(judge: Callable[..., Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options of a judge as an argument spec, read off its signature.

    With it Ansible makes numbers and truths of what `-e name=value` gives as text.
    """
    hints = typing.get_type_hints(judge)
    spec: dict[str, dict[str, Any]] = {}
    for name, parameter in inspect.signature(judge).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        hint = hints[name]
        if isinstance(hint, types.UnionType):
            (hint,) = (one for one in hint.__args__ if one is not type(None))
        spec[name] = {"type": _TYPES[typing.get_origin(hint) or hint]}
        if parameter.default is parameter.empty:
            spec[name]["required"] = True
        else:
            spec[name]["default"] = parameter.default
    return spec


def told(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict as a task result: worst finding first, failed when one is an error, and all errors in the message."""
    findings = sort_findings(answer["findings"])
    return {
        **answer,
        "changed": False,
        "findings": findings,
        "failed": failed(findings),
        "msg": message(findings) or "nothing stands against it",
    }


def _nodes(facts: Facts) -> dict[str, Mapping[str, Any] | None]:
    return {host: values.get("ascent_node") for host, values in facts.items()}


def _fabric_gate(
    plan: Plan, facts: Facts, *, wanted: str, max_age_hours: float, depth: str, mesh: str
) -> dict[str, Any]:
    """``due`` says whether the fabric has to be measured; otherwise a finding tells which verdict holds.

    ``serving`` says whether processes of ours run on the nodes.
    """
    nodes = _nodes(facts)
    serving = bool(collectives.busy(nodes, plan["hosts"]))
    if not verdict.due(plan):
        return {"findings": [], "due": False, "serving": serving}
    key, now = verdict.key(plan, nodes), time.time()
    kept = [((node or {}).get("state") or {}).get("fabric") for node in nodes.values()]
    if wanted == "force" or not all(
        verdict.reusable(one, key, now, max_age_hours, depth, mesh, serving) for one in kept
    ):
        return {"findings": [], "due": True, "serving": serving}
    measured = max(float(one["measured"]) for one in kept if one)
    holds = finding(
        "fabric-verdict-holds",
        "info",
        f"the fabric was proven {(now - measured) / 3600:.1f} hours ago and nothing it depends on has changed",
        stage="verify",
        evidence=f"depth {kept[0]['depth']}, {kept[0]['pairs']} pairs; key {key[:12]}" if kept[0] else "",
        fix="Measure again with -e verify=force.",
    )
    return {"findings": [holds], "due": False, "serving": serving}


def _fabric(
    plan: Plan,
    facts: Facts,
    *,
    hosts: Sequence[str],
    depth: str,
    mesh: str,
    limits: Mapping[str, float] | None = None,
    wanted_collectives: str = "auto",
) -> dict[str, Any]:
    """Judges what ``hosts`` told and measured. ``verdict`` is None unless they are the whole plan."""
    part = {**plan, "hosts": {name: host for name, host in plan["hosts"].items() if name in hosts}}
    nodes = _nodes(facts)

    def told(fact: str) -> dict[str, Any]:
        return {host: facts[host].get(fact) for host in part["hosts"]}

    npus, meshes = told("ascent_npus"), told("ascent_mesh")
    pairs_of_all = [pair for one in meshes.values() if one for pair in one["pairs"]]
    judged = devices.judge(part, nodes, npus, counters=told("ascent_npu_counters"), pairs=pairs_of_all)
    ran = next((one for one in told("ascent_collectives").values() if one), None)
    parts = {
        "devices": judged,
        "mesh": pairs.judge(part, verdict.unexplained(meshes, judged), limits),
        "control_plane": control_plane.judge(part, nodes, told("ascent_control_plane"), limits),
        "collectives": collectives.judge(part, ran),
        "torch": collectives.torch(told("ascent_torch")),
    }
    previous = next((node["state"]["fabric"] for node in nodes.values() if node and node["state"]["fabric"]), None)
    whole = set(part["hosts"]) == set(plan["hosts"])
    skipped = collectives.gate(part, nodes, wanted_collectives, depth, hosts)
    left_out = ["collectives"] if skipped["busy"] and not skipped["due"] else []
    composed = verdict.compose(
        part, nodes, npus, meshes, parts, depth=depth, mesh=mesh, left_out=left_out, previous=previous
    )
    return {
        "findings": composed["findings"],
        "metrics": composed["metrics"],
        "table": composed["table"],
        "record": {
            "fabric.json": {key: composed[key] for key in ("table", "matrix", "parts", "verdict", "findings")},
            "fabric_facts.json": {
                "npus": npus,
                "counters": told("ascent_npu_counters"),
                "mesh": meshes,
                "control_plane": told("ascent_control_plane"),
                "collectives": ran,
                "torch": told("ascent_torch"),
            },
        },
        "verdict": composed["verdict"] if whole else None,
    }


def _preflight(
    plan: Plan,
    facts: Facts,
    *,
    image_gb: float,
    weights_gb: float,
    memory_gb: float,
    clock_skew_seconds: float,
    accepted_systems: Sequence[str],
    repaired: Sequence[str],
) -> dict[str, Any]:
    """Judges the nodes as they are before anything is changed; what later stages ``repaired`` stops nothing."""
    nodes = _nodes(facts)
    table = ROOT / "catalog" / "versions" / f"{plan['engine']['name']}.yml"
    offsets = preflight.clock_offsets(
        {host: node["clock"] for host, node in nodes.items() if node and "before" in (node.get("clock") or {})}
    )
    findings = preflight.judge(
        plan,
        nodes,
        yaml.safe_load(table.read_text(encoding="utf-8")) if table.is_file() else None,
        offsets=offsets,
        weights_bytes=round(weights_gb * 2**30) or memory.weights_bytes(loader.model(plan["model"]["id"])),
        image_gb=image_gb,
        memory_gb=memory_gb,
        clock_skew_seconds=clock_skew_seconds,
        accepted_systems=accepted_systems,
        repaired=repaired,
    )
    overview = preflight.overview(plan, nodes, findings, offsets)
    return {"findings": findings, "table": overview, "record": {"nodes.json": overview}}


def _before_launch(plan: Plan, facts: Facts, *, provisioned: bool) -> dict[str, Any]:
    """What would fail in the middle of a launch; ``provisioned``: this run changed the hosts since they were read."""
    return {"findings": preflight.before_launch(plan, _nodes(facts), provisioned=provisioned)}


def _serving(plan: Plan, facts: Facts, *, endpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Says which instance on which node is the reason that an endpoint does not answer."""
    return {"findings": serving.judge(plan, _nodes(facts), endpoints)}


def _status(
    plan: Plan, facts: Facts, *, endpoints: Sequence[Mapping[str, Any]], digests: Mapping[str, str], root: str
) -> dict[str, Any]:
    """Compares what runs with what the current generation wrote below ``root``."""
    written = {
        host: {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        for host, texts in render.files(plan).items()
    }
    nodes = _nodes(facts)
    edited: dict[str, list[str]] = {}
    for host, _, path in units.edited_of(plan, nodes, f"{root}/{plan['cluster']}", managed=render.MANAGED):
        edited.setdefault(host, []).append(path)
    return status.judge(plan, nodes, endpoints, written, digests, edited)


def _job_known(plan: Plan, facts: Facts, *, job: str) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    """Whether the plan has a job of this name that a container runs."""
    known = {one["name"]: one for one in plan["jobs"]}
    if job in known and known[job]["container"]:
        return {"findings": []}
    there = f"jobs of {plan['recipe']}: {', '.join(known) or 'none'}"
    what = f"no job {job!r}" if job else "no job was named"
    fix = "Name one with -e job=NAME; a job of the recipe is there after --tags launch."
    if job in known:
        what, fix = f"{job} runs outside containers", f"Run its script by hand on {known[job]['host']}."
    return {"findings": [finding("job-unknown", "error", what, stage="job", evidence=there, fix=fix)]}


def _job(plan: Plan, facts: Facts, *, job: str, result: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Why a job failed: what its output is known for, else its last lines."""
    host = next(one["host"] for one in plan["jobs"] if one["name"] == job)
    output = str(result.get("msg") or "")
    told = diagnosis.diagnose(output, signatures.load(), host=host, process=job)
    lines = [line for line in output.splitlines() if line.strip()]
    status = result.get("status")
    failed_so = f"the job {job} ended with status {status}" if status is not None else f"the job {job} could not be run"
    own = finding(
        "job-failed",
        "error",
        failed_so,
        host=host,
        stage="job",
        evidence="\n".join(lines[-6:]),
        cause="The findings beside this one tell more." if told else "Nothing in its output is known.",
        fix=f"docker logs ascent-{plan['cluster']}-{job} on {host} has all of it.",
    )
    return {"findings": [*({**one, "stage": "job"} for one in told), own], "logs": {job: output + "\n"}}


def _collectives_gate(
    plan: Plan, facts: Facts, *, wanted: str, depth: str, hosts: Sequence[str], tests: Sequence[str] = ()
) -> dict[str, Any]:
    """Whether collectives are run, which, and from which host."""
    return collectives.gate(plan, _nodes(facts), wanted, depth, hosts, tests)


def _upgrade(plan: Plan, facts: Facts, *, serving: str, decision: Mapping[str, Any]) -> dict[str, Any]:
    """Says what an upgrade is going to do; ``serving`` is the text of the plan that was current, empty without one."""
    return upgrade.announce(plan, json.loads(serving) if serving else None, decision, _nodes(facts))


JUDGES: dict[str, Callable[..., Mapping[str, Any]]] = {
    "before_launch": _before_launch,
    "collectives_gate": _collectives_gate,
    "fabric": _fabric,
    "fabric_gate": _fabric_gate,
    "job": _job,
    "job_known": _job_known,
    "preflight": _preflight,
    "serving": _serving,
    "status": _status,
    "upgrade": _upgrade,
}
