"""What an upgrade changes, what it costs clients, and how it ended: findings for the operator. Pure."""

from __future__ import annotations

__all__ = ["announce", "outcome", "restarts", "targets"]

from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import generations, plan_changes
from .findings import finding, in_a_line

_STAGE = "upgrade"
# So many changes are told one by one.
_TOLD = 12


def restarts(
    plan: Mapping[str, Any], decision: Mapping[str, Any], nodes: Mapping[str, Optional[Mapping[str, Any]]]
) -> List[str]:
    """Processes that start anew or for the first time when ``decision`` is launched; those that end for good as well.

    ``decision`` is that of `generations.decide` with ``stop``, the processes that end before any starts again, and
    ``edited``, those whose unit or container is made again. ``nodes`` are ``ascent_node`` facts by host.
    """
    right, running = set(), set()
    for node in nodes.values():
        for container in generations.running_of(node):
            name = str(container["labels"].get("ascent.process"))
            running.add(name)
            wanted = decision["processes"].get(name, {}).get("definition")
            if container["state"] == "running" and container["labels"].get("ascent.definition") == wanted:
                right.add(name)
    planned = [process["name"] for process in plan["processes"]]
    changed = {*decision["stop"], *decision["edited"], *(name for name in planned if name not in right)}
    return [name for name in planned if name in changed] + sorted(running - set(planned))


def targets(*plans: Optional[Mapping[str, Any]]) -> List[Dict[str, str]]:
    """Where clients of these plans ask, each place once: ``[{"url", "model"}]``."""
    found: List[Dict[str, str]] = []
    for plan in plans:
        if plan and plan.get("endpoint"):
            target = {"url": plan["endpoint"]["url"], "model": plan["model"]["served_name"]}
            if target not in found:
                found.append(target)
    return found


def announce(
    plan: Mapping[str, Any],
    serving: Optional[Mapping[str, Any]],
    decision: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
) -> Dict[str, Any]:
    """What is going to happen: ``{"findings", "due", "restarts", "expected_seconds", "targets"}``.

    ``serving`` is the plan of the generation that was current before, None where there was none: then there is nothing
    to upgrade, which is an error. ``due`` is false when nothing would restart. ``expected_seconds`` is what the last
    launch took, None where nobody knows.
    """
    if serving is None:
        what = finding(
            "upgrade-nothing-serves",
            "error",
            "this cluster has no generation that could be upgraded",
            stage=_STAGE,
            evidence=f"no current generation of {plan['cluster']} on its nodes",
            cause="It was never launched.",
            fix=f"ansible-playbook deploy.yml -l {plan['cluster']}",
        )
        return {"findings": [what], "due": False, "restarts": [], "expected_seconds": None, "targets": []}
    names = restarts(plan, decision, nodes)
    lines = plan_changes.lines(plan_changes.between(serving, plan))
    old, new = serving["engine"]["image"], plan["engine"]["image"]
    if old != new:
        lines.insert(0, f"image {old} -> {new}")
    more = [f"and {len(lines) - _TOLD} more"] if len(lines) > _TOLD else []
    kept = [((node or {}).get("state") or {}).get("good") or {} for node in nodes.values()]
    seconds = [float(one["launch_seconds"]) for one in kept if one.get("launch_seconds")]
    expected = max(seconds, default=None)
    found = [
        finding(
            "upgrade-plan",
            "info",
            f"generation {decision['number']} restarts {len(names)} of {len(plan['processes'])} processes"
            if names
            else "nothing changes: what runs is what is wanted",
            stage=_STAGE,
            evidence="; ".join([*lines[:_TOLD], *more]) or "no process differs",
        )
    ]
    if names:
        found.append(
            finding(
                "upgrade-outage-expected",
                "info",
                "the service will not answer for "
                + (f"about {expected:.0f} s" if expected else "as long as a launch takes")
                + ", and while processes are stopped",
                stage=_STAGE,
                evidence=f"from start to readiness the last launch took {expected:.0f} s"
                if expected
                else "no launch of this cluster was timed",
                cause=f"These start anew: {', '.join(names[:_TOLD])}{' ...' if len(names) > _TOLD else ''}.",
            )
        )
    return {
        "findings": found,
        "due": bool(names),
        "restarts": names,
        "expected_seconds": expected,
        "targets": targets(serving, plan),
    }


def outcome(
    number: int,
    kept: Optional[int],
    expected: Optional[float],
    outage: Optional[Mapping[str, Any]],
    reasons: Sequence[Mapping[str, Any]] = (),
    *,
    stuck: bool = False,
) -> Dict[str, Any]:
    """How it ended: ``{"findings", "metrics"}``.

    ``number`` is the generation that runs now; ``kept`` the one that it repeats after a rollback, else None.
    ``reasons`` are the errors that made it go back. ``stuck`` says that it was to go back and could not: then ``kept``
    is None.
    """
    found = []
    if outage is not None:
        lasts = [one for one in outage["outages"] if not one["over"]]
        told = f"{outage['seconds']:g} s in {len(outage['outages'])} part(s)" if outage["outages"] else "0 s"
        seen = "; ".join(f"{count} x {text}" for text, count in outage["errors"].items())
        found.append(
            finding(
                "upgrade-outage",
                "error" if lasts else "info",
                f"clients had no answer for {told}"
                + (f", expected were {expected:.0f} s" if expected else "")
                + (": the service still does not answer" if lasts else ""),
                stage=_STAGE,
                evidence=f"{outage['failed']} of {outage['asked']} questions failed"
                + (f": {seen}" if seen else "")
                + f"; the slowest answer took {outage['slowest_ms']:g} ms",
                fix="Run --tags check for the cause." if lasts else "",
            )
        )
    if stuck or kept is not None:
        name, summary, fix = (
            (
                "upgrade-not-undone",
                f"the upgrade failed, and no earlier generation could be brought back; generation {number} is current",
                "Look with playbooks/status.yml; correct what the findings name and run upgrade.yml again, or"
                " choose a kept generation: playbooks/rollback.yml -e rollback_to=NUMBER.",
            )
            if stuck
            else (
                "upgrade-rolled-back",
                f"the upgrade was undone; generation {kept} serves again, as generation {number}",
                "Correct the recipe or the node, then run upgrade.yml again."
                + (" -e upgrade_bench_drop=SHARE accepts a slower service." if _slower(reasons) else ""),
            )
        )
        found.append(
            finding(
                name,
                "error",
                summary,
                stage=_STAGE,
                evidence=in_a_line(reasons) or "a task failed, see above",
                cause=reasons[0]["cause"] if reasons else "",
                fix=fix,
            )
        )
    measured = {"expected_seconds": expected, "generation": number, "rolled_back": kept is not None}
    return {"findings": found, "metrics": {"upgrade": {**measured, "outage": outage}}}


def _slower(errors: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["id"] == "bench-drop" for one in errors)
