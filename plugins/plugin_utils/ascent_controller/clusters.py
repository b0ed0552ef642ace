"""Which cluster a run is about: the groups of the inventory below ``clusters``."""

from __future__ import annotations

__all__ = ["names", "of_play"]

from collections.abc import Iterable, Mapping
from typing import Any

from ascent.findings import finding


def names(groups: Mapping[str, Iterable[str]]) -> list[str]:
    """Groups that are clusters: those below ``clusters`` that no other group below it contains.

    >>> names({"all": ["a", "b"], "clusters": ["a", "b"], "site": ["a", "b"], "pool": ["a"]})
    ['site']
    """
    inside = set(groups.get("clusters", ()))
    below = {
        name: set(hosts)
        for name, hosts in groups.items()
        if name not in ("all", "ungrouped", "clusters") and hosts and set(hosts) <= inside
    }
    return [name for name, hosts in below.items() if not any(hosts < other for other in below.values())]


def of_play(task_vars: Mapping[str, Any], given: str | None = None) -> tuple[str, list[str], list[dict[str, Any]]]:
    """The one cluster of this play, all its hosts in inventory order, those outside the limit too, and what is wrong.

    ``given`` names a group in place of what the play's hosts tell.
    """
    groups = task_vars["groups"]
    if given is not None:
        if given in groups:
            return given, list(groups[given]), []
        unknown = finding(
            "cluster-unknown",
            "error",
            f"the inventory has no group {given!r}",
            evidence=f"cluster = {given}; allowed: {', '.join(names(groups))}",
            fix="name a group under clusters",
        )
        return given, [], [unknown]
    targets = task_vars.get("ansible_play_hosts_all") or [task_vars["inventory_hostname"]]
    found = [name for name in names(groups) if set(groups[name]) & set(targets)]
    if len(found) == 1:
        return found[0], list(groups[found[0]]), []
    ambiguous = finding(
        "cluster-ambiguous",
        "error",
        f"this run covers {len(found)} clusters ({', '.join(found) or 'none'}); one at a time is planned",
        evidence=f"limit; allowed: one of {', '.join(names(groups)) or 'no group under clusters'}",
        fix="add -l CLUSTER, with one of the groups under clusters in the inventory",
    )
    return "", [], [ambiguous]
