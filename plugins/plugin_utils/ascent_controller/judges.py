"""The judges by name, for the action plugin ``judge``: each compares the plan with what the nodes told.

A judge takes ``(plan, facts, **options)`` and returns ``{"findings": […]}`` with, as it likes, ``metrics`` and
``record`` for the run record and further keys for the tasks that follow. ``facts`` maps every host of the plan to its
``ansible_facts``; a host that was not read has none of ours among them.
"""

from __future__ import annotations

__all__ = ["JUDGES", "told"]

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from ascent import fabric, memory, preflight, serving, status
from ascent.findings import failed, finding, message, sort_findings
from ascent_controller import loader, render
from ascent_controller.loader import ROOT

Plan = Mapping[str, Any]
Facts = Mapping[str, Mapping[str, Any]]


def told(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict as a task result: worst finding first, failed when one is an error, and all errors in the message."""
    findings = sort_findings(verdict["findings"])
    return {
        **verdict,
        "changed": False,
        "findings": findings,
        "failed": failed(findings),
        "msg": message(findings) or "nothing stands against it",
    }


def _nodes(facts: Facts) -> dict[str, Mapping[str, Any] | None]:
    return {host: values.get("ascent_node") for host, values in facts.items()}


def _fabric_gate(plan: Plan, facts: Facts, *, wanted: str, max_age_hours: int) -> dict[str, Any]:
    """``due`` says whether the fabric has to be measured; otherwise a finding tells which verdict holds."""
    spread = [host for host in plan["hosts"].values() if host["devices"] and host["fabric"]]
    if len(spread) < 2:
        return {"findings": [], "due": False}
    nodes = _nodes(facts)
    key, now = fabric.key(plan, nodes), time.time()
    kept = [((node or {}).get("state") or {}).get("fabric") for node in nodes.values()]
    if wanted == "force" or not all(fabric.reusable(verdict, key, now, max_age_hours) for verdict in kept):
        return {"findings": [], "due": True}
    measured = max(float(verdict["measured"]) for verdict in kept if verdict)
    holds = finding(
        "fabric-verdict-holds",
        "info",
        f"the fabric was proven {(now - measured) / 3600:.1f} hours ago and nothing it depends on has changed",
        stage="verify",
        evidence=f"{kept[0]['pairs'] if kept[0] else 0} pairs; key {key[:12]}",
        fix="Measure again with -e fabric_verify=force.",
    )
    return {"findings": [holds], "due": False}


def _fabric(plan: Plan, facts: Facts, *, hosts: Sequence[str]) -> dict[str, Any]:
    """Judges what ``hosts`` measured. ``verdict`` is None unless they are the whole plan."""
    part = {**plan, "hosts": {name: host for name, host in plan["hosts"].items() if name in hosts}}
    nodes = _nodes(facts)
    meshes = {host: facts[host].get("ascent_mesh") for host in part["hosts"]}
    previous = next((node["state"]["fabric"] for node in nodes.values() if node and node["state"]["fabric"]), None)
    ping = next(host["fabric"]["ping"] for host in part["hosts"].values() if host["fabric"])
    findings, metrics, verdict = fabric.judge(part, nodes, meshes, previous, ping)
    whole = set(part["hosts"]) == set(plan["hosts"])
    return {
        "findings": findings,
        "metrics": metrics,
        "record": {"fabric_mesh.json": meshes},
        "verdict": verdict if whole else None,
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


def _serving(plan: Plan, facts: Facts, *, endpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Says which instance on which node is the reason that an endpoint does not answer."""
    return {"findings": serving.judge(plan, _nodes(facts), endpoints)}


def _status(
    plan: Plan, facts: Facts, *, endpoints: Sequence[Mapping[str, Any]], digests: Mapping[str, str]
) -> dict[str, Any]:
    """Compares what runs with what the current generation wrote."""
    written = {
        host: {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        for host, texts in render.files(plan).items()
    }
    return status.judge(plan, _nodes(facts), endpoints, written, digests)


JUDGES: dict[str, Callable[..., Mapping[str, Any]]] = {
    "fabric": _fabric,
    "fabric_gate": _fabric_gate,
    "preflight": _preflight,
    "serving": _serving,
    "status": _status,
}
