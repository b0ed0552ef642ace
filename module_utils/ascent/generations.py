"""Generations: numbered, complete renderings of a plan on the nodes, and which one a run works on.

A manifest is what one host knows of one generation::

    {"number": 3, "plan_hash": "…", "recipe": "…", "image": "…", "digest": "sha256:…",
     "images": {"…": "sha256:…"}, "created": "2026-01-31T12:00:00Z", "boot_id": "…",
     "processes": {"prefill-0-head": {"definition": "…", "since": 2}}}

``images`` has the digest of every image that the plan's processes run; ``image`` and ``digest`` are the engine's.

``boot_id`` is that of the host when the generation was written: another one now says that it was started again since.

``since`` is the generation in which the process last changed. Its container mounts that generation's script, so a new
generation leaves an unchanged process running.
"""

from __future__ import annotations

__all__ = [
    "beyond",
    "choose",
    "container_definition",
    "content_hash",
    "decide",
    "good",
    "images_of",
    "locked_digest",
    "log_command",
    "manifest",
    "passed",
    "running_of",
    "to_stop",
    "waves",
]

import hashlib
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from . import text
from .errors import AscentError

#: Digest by image reference; None where a dry run can't know it.
Digests = Mapping[str, Optional[str]]


def images_of(plan: Mapping[str, Any], host: Optional[str] = None) -> List[str]:
    """The images that processes of the plan, or of one ``host``, run, in alphabetical order.

    Jobs with devices of their own (offline inference) count; clients are nothing that a launch stands on.
    """
    running = [*plan["processes"], *(job for job in plan.get("jobs") or [] if job["devices"])]
    return sorted({one["container"]["image"] for one in running if one["container"] and host in (None, one["host"])})


def container_definition(process: Mapping[str, Any], digest: Optional[str], secret: str = "") -> str:
    """What a container's identity is made of: the process as planned and the image's content. Hex, 64 digits.

    ``secret`` is the fingerprint of the key that it reads when it starts (`access.fingerprints`).
    """
    parts = [process["definition"], digest or "", *([secret] if secret else [])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def locked_digest(image: str, states: Iterable[Optional[Mapping[str, Any]]]) -> Optional[str]:
    """The digest that the newest generation on any host has locked for ``image``; None when none has.

    ``states`` has each host's ``state`` facts (``{"current", "generations"}``), or None where it was not read.
    """
    found: Optional[str] = None
    newest = 0
    for state in states:
        for entry in _generations(state):
            digest = (entry.get("images") or {}).get(image)
            if digest and entry["number"] >= newest:
                newest, found = entry["number"], digest
    return found


def decide(
    plan: Mapping[str, Any],
    digests: Digests,
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    secrets: Optional[Mapping[str, str]] = None,
) -> Dict[str, Any]:
    """The generation number for ``plan`` and each process's ``since``; ``nodes`` are ``ascent_node`` facts by host.

    The newest generation found on any host is taken up again when it renders this plan with these images: either it is
    what runs already, or an interrupted run left it half written. Otherwise the number after the newest is taken.
    Returns ``{"number", "new", "processes": {name: {"definition", "since"}}}``; ``new`` says that no host has it.
    ``secrets`` are fingerprints of keys by process: another key makes no new generation, and its processes start anew.
    """
    kept = [entry for node in nodes.values() for entry in _generations((node or {}).get("state"))]
    newest = max((entry["number"] for entry in kept), default=0)
    images = _locked(plan, digests)
    same = [
        entry
        for entry in kept
        if entry["number"] == newest and entry["plan_hash"] == plan["hash"] and entry.get("images") == images
    ]
    number = newest if same else newest + 1
    processes = {}
    for process in plan["processes"]:
        container = process["container"]
        # What a unit runs is named by its packages' versions, which are part of the process as planned.
        definition = container_definition(
            process, images[container["image"]] if container else None, (secrets or {}).get(process["name"], "")
        )
        since = _since(nodes.get(process["host"]), process["name"], definition, number)
        processes[process["name"]] = {"definition": definition, "since": since}
    return {"number": number, "new": not same, "processes": processes}


def manifest(
    plan: Mapping[str, Any],
    digests: Digests,
    decision: Mapping[str, Any],
    host: str,
    node: Optional[Mapping[str, Any]],
    now: str,
) -> Dict[str, Any]:
    """The manifest that ``host`` gets, whose ``ascent_node`` facts are ``node``. ``now`` is ISO 8601, UTC.

    One that is there keeps its ``created`` and its ``boot_id``.
    """
    number = decision["number"]
    there = next((one for one in _generations((node or {}).get("state")) if one["number"] == number), {})
    boot_id = ((node or {}).get("system") or {}).get("boot_id")
    mine = {process["name"] for process in plan["processes"] if process["host"] == host}
    return {
        "number": number,
        "plan_hash": plan["hash"],
        "recipe": plan["recipe"],
        "image": plan["engine"]["image"],
        "digest": digests.get(plan["engine"]["image"]),
        "images": _locked(plan, digests),
        "created": there.get("created", now),
        "boot_id": there.get("boot_id", boot_id),
        "processes": {name: entry for name, entry in decision["processes"].items() if name in mine},
    }


def content_hash(plan: Mapping[str, Any]) -> str:
    """The hash that a plan's content has, whatever the plan says of itself."""
    return text.digest({key: value for key, value in plan.items() if key != "hash"})


def log_command(process: Mapping[str, Any]) -> str:
    """What shows a planned process's log on its host."""
    unit = process.get("unit")
    return f"journalctl -u {unit['name']}" if unit else f"docker logs {process['container']['name']}"


def running_of(node: Optional[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """Containers and units of the cluster on a node, from its ``ascent_node`` facts; both have the same keys."""
    engine = (node or {}).get("container_engine") or {}
    units = (node or {}).get("units") or {}
    return [*(engine.get("containers") or ()), *(units.get("units") or ())]


def to_stop(
    plan: Mapping[str, Any],
    decision: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    edited: Collection[str] = (),
) -> List[str]:
    """Processes that run and have to end on all hosts before any of their instance starts.

    Those are all of an instance of which one doesn't run, or not as it should. The ranks of an instance know each other
    only from a common start: one that outlived its peers never gets well, and may join a new head just before it ends.
    The same holds for all engines when the store of their KV cache starts anew: what they know of it is gone.
    ``nodes`` maps hosts to their ``ascent_node`` facts. ``edited`` are processes whose unit or container somebody
    changed by hand: it is made again, and they start anew with it.
    """
    right, alive = _seen(decision, nodes, edited)
    stores = [process["name"] for process in plan["processes"] if process["kind"] == "kv-store"]
    all_of_them = not right.issuperset(stores)
    return [
        name
        for instance in plan["instances"]
        if all_of_them or not right.issuperset(instance["processes"])
        for name in instance["processes"]
        if name in alive
    ]


def waves(
    plan: Mapping[str, Any],
    decision: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    edited: Collection[str] = (),
) -> List[List[str]]:
    """Processes in the groups in which all hosts start them, each group before any of the next.

    First what engines look for (KV store, services), then Ray's heads, then all engines together, since a head is not
    ready before its ranks have joined, then late services and routers. A group in which nothing has to start goes along
    with the one before it: a launch that changes nothing has a single one. ``nodes`` and
    ``edited`` as for `to_stop`.
    """
    right, _alive = _seen(decision, nodes, edited)
    stopping = set(to_stop(plan, decision, nodes, edited))
    engines = [process for process in plan["processes"] if process["instance"]]
    needed = {name for process in engines for name in process["starts_after"]}
    groups: List[List[str]] = [[], [], [], []]
    for process in plan["processes"]:
        beside = process["instance"] is None
        if process["kind"] == "ray-head":
            place = 1
        elif beside:
            early = process["name"] in needed or (not engines and process["kind"] not in ("router", "frontend"))
            place = 0 if early else 3
        else:
            place = 2
        groups[place].append(process["name"])
    found: List[List[str]] = []
    for group in groups:
        if found and right.difference(stopping).issuperset(group):
            found[-1] += group
        elif group:
            found.append(group)
    return found


def beyond(
    plan: Mapping[str, Any],
    decision: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    inside: Collection[str],
    edited: Collection[str] = (),
) -> Dict[str, str]:
    """Hosts that are not ``inside`` the limit of a run and would have to change with it, and why; empty where none is.

    A generation is on all hosts or on none, and the ranks of an instance start together. ``nodes`` and ``edited`` as
    for `to_stop`.
    """
    outside = set(plan["hosts"]).difference(inside)
    if not outside:
        return {}
    right, alive = _seen(decision, nodes, edited)
    ending = set(to_stop(plan, decision, nodes, edited))
    hosts = {process["name"]: process["host"] for process in plan["processes"]}
    starting = {
        name
        for instance in plan["instances"]
        if any(hosts[name] not in outside for name in instance["processes"])
        for name in instance["processes"]
        if name not in right
    }
    found = {}
    for host in plan["hosts"]:
        if host not in outside:
            continue
        current = ((nodes.get(host) or {}).get("state") or {}).get("current")
        mine = [name for name in hosts if hosts[name] == host]
        restart = [name for name in mine if name in ending or name in starting or (name in alive and name not in right)]
        if current != decision["number"]:
            found[host] = f"has generation {current or 'none'}, not {decision['number']}"
        elif restart:
            found[host] = f"has to start {', '.join(restart)} anew"
    return found


def _seen(
    decision: Mapping[str, Any], nodes: Mapping[str, Optional[Mapping[str, Any]]], edited: Collection[str]
) -> Tuple[Set[Optional[str]], Set[Optional[str]]]:
    """Names of processes that run as they should, and of those that run at all."""
    right, alive = set(), set()
    for node in nodes.values():
        for container in running_of(node):
            labels = container["labels"]
            name = labels.get("ascent.process")
            wanted = decision["processes"].get(name, {}).get("definition")
            if container["state"] in ("running", "restarting"):
                alive.add(name)
            if container["state"] == "running" and labels.get("ascent.definition") == wanted and name not in edited:
                right.add(name)
    return right, alive


def good(states: Iterable[Optional[Mapping[str, Any]]]) -> List[Dict[str, Any]]:
    """The generations that passed the check stage, ``{"number", "plan_hash"}`` each, oldest first.

    Any host's memory counts (its ``state`` fact ``good``), as long as a generation of that number and plan is kept:
    after all have been removed, numbers start again.
    """
    seen = list(states)
    kept = {(entry["number"], entry["plan_hash"]) for state in seen for entry in _generations(state)}
    told = {
        (int(entry["number"]), str(entry["plan_hash"]))
        for state in seen
        for entry in ((state or {}).get("good") or {}).get("generations") or ()
    }
    return [{"number": number, "plan_hash": plan_hash} for number, plan_hash in sorted(told & kept)]


def passed(
    plan: Mapping[str, Any], states: Iterable[Optional[Mapping[str, Any]]], launched: Optional[int]
) -> Optional[List[Dict[str, Any]]]:
    """What `good` is to be once the running generation has passed, too; None when nothing is to be added.

    ``launched`` is the number that this run launched; None when it launched none, and then the current one counts if it
    is of this plan.
    """
    seen = list(states)
    number = launched
    if number is None:
        number = max(
            (
                entry["number"]
                for state in seen
                for entry in _generations(state)
                if entry["number"] == (state or {}).get("current") and entry["plan_hash"] == plan["hash"]
            ),
            default=None,
        )
    if number is None:
        return None
    known, now = good(seen), {"number": number, "plan_hash": plan["hash"]}
    return None if now in known else [*known, now]


def choose(wanted: str, states: Mapping[str, Optional[Mapping[str, Any]]]) -> int:
    """The number of an earlier generation: ``current``, ``good``, ``undo`` or a number.

    ``good`` is the newest that passed the check stage and is another plan, or has other images, than what is current.
    ``undo`` is the same for a generation that does not come up, unless that very one has passed before.
    Raises AscentError with what there is when there is none such.
    """
    kept = {entry["number"]: entry for state in states.values() for entry in _generations(state)}
    current = max((state["current"] for state in states.values() if state and state["current"]), default=None)
    proven = [entry["number"] for entry in good(states.values())]
    said = (
        f"current: {current or 'none'}; kept: {', '.join(map(str, sorted(kept))) or 'none'};"
        f" passed the checks: {', '.join(map(str, proven)) or 'none'}"
    )
    if wanted == "current":
        if current is None or current not in kept:
            raise AscentError(f"this cluster has no current generation ({said}). Launch it first: --tags launch")
        return int(current)
    if wanted == "undo" and current in proven:
        raise AscentError(
            f"generation {current} passed its checks before, so what fails now is not in it ({said})."
            " Correct what the findings name, or go back all the same with playbooks/rollback.yml"
        )
    if wanted in ("good", "undo"):
        now = _content(kept.get(current))
        numbers = [number for number in proven if _content(kept[number]) != now]
        if not numbers:
            raise AscentError(
                f"no other generation of this cluster has passed its checks ({said})."
                " Name one with -e rollback_to=NUMBER"
            )
        return int(numbers[-1])
    if not wanted.isdecimal() or int(wanted) not in kept:
        raise AscentError(f"there is no generation {wanted!r} ({said}); wanted: good, or the number of a kept one")
    return int(wanted)


def _content(entry: Optional[Mapping[str, Any]]) -> Any:
    """What a generation runs: equal for two that differ in their number only."""
    return (entry["plan_hash"], entry.get("images")) if entry else None


def _locked(plan: Mapping[str, Any], digests: Digests) -> Dict[str, Optional[str]]:
    """Digests of just the images that the plan's processes run."""
    return {image: digests.get(image) for image in images_of(plan)}


def _generations(state: Optional[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    return list(state["generations"]) if state else []


def _since(node: Optional[Mapping[str, Any]], name: str, definition: str, number: int) -> int:
    """The generation in which the process got this definition, of those up to ``number`` that the host keeps.

    What is there tells, since a generation may have been written and never run; without it the newest manifest does.
    """
    kept = [entry for entry in _generations((node or {}).get("state")) if entry["number"] <= number]
    for one in running_of(node):
        labels = one["labels"]
        if (labels.get("ascent.process"), labels.get("ascent.definition")) == (name, definition):
            made = [entry["number"] for entry in kept if str(entry["number"]) == labels.get("ascent.generation")]
            if made:
                return int(made[0])
    newest = max(kept, key=_number, default=None)
    known = newest["processes"].get(name) if newest else None
    return int(known["since"]) if known and known["definition"] == definition else number


def _number(entry: Mapping[str, Any]) -> int:
    return int(entry["number"])
