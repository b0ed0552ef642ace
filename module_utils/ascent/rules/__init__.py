"""What can't work, decided from recipe, hardware, hosts and catalogue alone: all mistakes at once, with their places.

A rule has an id, a reason and a source (`CATALOGUE`, printed in docs/reference/rules.md); predicates in the modules of
this package report which are broken, where, and what to do. A recipe may waive a rule by its id with a reason; what it
says is then reported as information, so that the waiver shows.
"""

from __future__ import annotations

__all__ = ["ALL_RULES", "CATALOGUE", "CHECKS", "GROUPS", "WAIVABLE", "check", "memory_metrics"]

from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .. import layout
from ..findings import sort_findings
from ..mistakes import as_finding, closest, mistake
from . import (
    derived,
    environment,
    graphs,
    hosts,
    model,
    ports,
    routing,
    security,
    stores,
    transfer,
    workload,
)
from . import (
    options as engine_options,
)
from .model import memory_of as _memory_of
from .registry import Check, Context, Mistake, Rule

#: Groups of checks in reading order, under the headings of the reference page.
GROUPS: Tuple[Tuple[str, Tuple[Check, ...]], ...] = (
    ("Hosts, devices and ranks", hosts.CHECKS),
    ("Values that follow from the plan", derived.CHECKS),
    ("Ports", ports.CHECKS),
    ("KV cache between engines", transfer.CHECKS),
    ("KV cache stores", stores.CHECKS),
    ("Routers and cache-aware routing", routing.CHECKS),
    ("Secrets and open doors", security.CHECKS),
    ("Graphs and switches of the NPU engine", graphs.CHECKS),
    ("Workload", workload.CHECKS),
    ("Variables", environment.CHECKS),
    ("Model, image and release", model.CHECKS),
    ("Options of the engine", engine_options.CHECKS),
)

#: Every check, in reading order.
CHECKS: Tuple[Check, ...] = tuple(one for _, checks in GROUPS for one in checks)

#: Every rule by its id.
CATALOGUE: Dict[str, Rule] = {rule.id: rule for one in CHECKS for rule in one.rules}

#: Rules without which there is no plan at all; a waiver can't help there.
_NOT_WAIVABLE: FrozenSet[str] = frozenset(
    {rule.id for rule in CATALOGUE.values() if not rule.waivable} | layout.UNSOUND
)

#: The ids that can be reported.
ALL_RULES: FrozenSet[str] = frozenset(CATALOGUE) | _NOT_WAIVABLE

#: The ids that a recipe can waive.
WAIVABLE: FrozenSet[str] = ALL_RULES - _NOT_WAIVABLE


def check(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    plan: Optional[Mapping[str, Any]] = None,
    *,
    model: Optional[Mapping[str, Any]] = None,
    options: Optional[Mapping[str, Any]] = None,
    positions: Optional[Mapping[str, str]] = None,
) -> List[Dict[str, Any]]:
    """All broken rules as findings, worst first.

    ``plan`` is the plan of these inputs if there is one: the rules that compare ports on hosts need it. ``model`` is
    the catalogue's entry of the recipe's model, ``options`` the tables of the engine's release
    (`ascent_controller.loader.option_table`); rules that need what is None are silent. ``positions`` maps key paths to
    ``file:line``. A finding's cause is the rule's reason, unless the mistake knows better.
    """
    context = Context.of(recipe, hardware, hosts, plan, model, options)
    waived: Mapping[str, str] = recipe.get("waive") or {}
    findings: List[Dict[str, Any]] = []
    fired: Set[str] = set()
    # A pool and its overrides share what they were given: the same mistake in all of them is one.
    told: Set[Tuple[str, str, str, str]] = set()
    for one in CHECKS:
        for item in one.run(context):
            mark = (item["rule"], item["key"], item["value"], item["summary"])
            if mark in told:
                continue
            told.add(mark)
            fired.add(item["rule"])
            findings.append(as_finding(_judged(item, waived), positions))
    findings.extend(as_finding(item, positions) for item in _waivers(waived, fired, plan is not None))
    return sort_findings(findings)


def memory_metrics(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    model: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Dict[str, Any]]:
    """The memory estimate of every pool for a stage's metrics, whether or not a rule is broken.

    A model without figures is said so (``known`` is false, with the ``reason``). A pool's own options count; its
    overrides and a second kind of hardware don't get entries of their own.
    """
    result: Dict[str, Dict[str, Any]] = {}
    for variant, found in _memory_of(Context.of(recipe, hardware, hosts, None, model, None)):
        result.setdefault(variant.name, found)
    return result


def _judged(item: Mistake, waived: Mapping[str, str]) -> Mistake:
    rule = CATALOGUE.get(item["rule"])
    reason = waived.get(item["rule"])
    if reason and item["rule"] not in _NOT_WAIVABLE:
        return {**item, "severity": "info", "cause": f"waived by the recipe: {reason}"}
    return {**item, "cause": item["cause"] or (rule.reason if rule else "")}


def _waivers(waived: Mapping[str, str], fired: Set[str], complete: bool) -> Iterator[Mistake]:
    for name in waived:
        if name not in ALL_RULES:
            near = closest(name, ALL_RULES, 1)
            yield mistake(
                "waive-unknown",
                f"the recipe waives {name!r}, which is not a rule" + (f"; did you mean {near[0]}?" if near else ""),
                key=f"recipe:waive.{name}",
                value=name,
                allowed=", ".join(sorted(WAIVABLE)),
                fix=f"write {near[0]}" if near else "remove the waiver",
            )
        elif name in _NOT_WAIVABLE:
            yield mistake(
                "waive-impossible",
                f"{name} can't be waived: nothing would start",
                key=f"recipe:waive.{name}",
                value=name,
                allowed=", ".join(sorted(WAIVABLE)),
                fix="remove the waiver and correct what the rule says",
            )
        elif complete and name not in fired:
            yield mistake(
                "waive-unneeded",
                f"the recipe waives {name}, which it doesn't break",
                key=f"recipe:waive.{name}",
                value=name,
                allowed="only rules that the recipe breaks",
                fix="remove the waiver",
                severity="warning",
            )
