"""Judging the device mesh: which host, device or single pair explains what was lost or late. Pure."""

from __future__ import annotations

__all__ = ["LIMITS", "culprits", "judge"]

import collections
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .. import hccn_tool
from ..bench import percentile
from ..findings import finding

#: ``loss_percent``: more lost packets than this are a finding. ``rtt_us``: a slower pair is an error in any case.
#: ``factor``: a pair so many times slower than the median of all pairs is a warning, from ``floor_us`` on: below it
#: a factor says nothing, one late wake-up of the tool's process costs as much.
LIMITS = {"loss_percent": 0.5, "rtt_us": 10000.0, "factor": 20.0, "floor_us": 200.0}
_STAGE = "verify"
_SHOWN = 8
# Fewer packets than this say nothing about a loss of a few per cent.
_TELLING = 30

Device = Tuple[str, int]
_Pair = Mapping[str, Any]


class Culprit(NamedTuple):
    """Who explains bad pairs: ``level`` is ``all``, ``host``, ``device``, ``sender``, ``receiver`` or ``pairs``."""

    level: str
    names: Tuple[Tuple[Any, ...], ...]
    pairs: Tuple[_Pair, ...]

    def text(self) -> str:
        """``a3-02 device 3``, ``sending from a3-01 device 2``, ``a3-01 device 0 to a3-02 device 0``."""
        if self.level == "all":
            return "every host from every other"
        if self.level == "pairs":
            shown = ", ".join(f"{_name(_sender(one))} to {_name(_receiver(one))}" for one in self.pairs[:_SHOWN])
            return shown + (f" and {len(self.pairs) - _SHOWN} more" if len(self.pairs) > _SHOWN else "")
        word = {"sender": "sending from ", "receiver": "sending to "}.get(self.level, "")
        return word + " or ".join(str(name[0]) if len(name) == 1 else _name((name[0], name[1])) for name in self.names)

    def host(self) -> Optional[str]:
        """The one host at fault, None where there are several or it can't be told."""
        hosts = {name[0] for name in self.names}
        return str(next(iter(hosts))) if len(hosts) == 1 else None


def _sender(pair: _Pair) -> Device:
    return pair["from"][0], pair["from"][1]


def _receiver(pair: _Pair) -> Device:
    return pair["to"][0], pair["to"][1]


def _name(device: Device) -> str:
    return f"{device[0]} device {device[1]}"


def _ends(pair: _Pair, level: str) -> Tuple[Tuple[Any, ...], ...]:
    one, other = _sender(pair), _receiver(pair)
    if level == "host":
        return (one[0],), (other[0],)
    return {"device": (one, other), "sender": (one,), "receiver": (other,)}[level]


def culprits(pairs: Sequence[_Pair], bad: Sequence[_Pair], share: float = 1.0) -> List[Culprit]:
    """Who explains the bad pairs among ``pairs``: hosts before devices before directions before single pairs.

    A host or direction is at fault when every pair it took part in is bad, a device when at least ``share`` of its
    pairs are, and who explains most comes first. Ends that explain the very same pairs are named together, since the
    pairs can't tell them apart. Witnesses count, but nobody is blamed for theirs alone.
    """
    found: List[Culprit] = []
    left = list(bad)

    def explain(level: str, share: float) -> None:
        while any(not pair.get("witness") for pair in left):
            total = collections.Counter(end for pair in pairs for end in _ends(pair, level))
            lost = collections.Counter(end for pair in bad for end in _ends(pair, level))
            open_ = collections.Counter(end for pair in left for end in _ends(pair, level))
            planned = {end for pair in left if not pair.get("witness") for end in _ends(pair, level)}
            least = 2 if level in ("sender", "receiver") or share < 1 else 1
            whole = [end for end in planned if lost[end] >= max(least, share * total[end])]
            if not whole:
                return
            most = max(open_[end] for end in whole)
            chosen = sorted(end for end in whole if open_[end] == most)
            first = [pair for pair in left if chosen[0] in _ends(pair, level)]
            alike = tuple(end for end in chosen if all(end in _ends(pair, level) for pair in first))
            if level == "host" and len(chosen) == len(total) > 2:
                # That is no fault of one of them.
                found.append(Culprit("all", (), tuple(left)))
                left.clear()
                return
            found.append(Culprit(level, alike, tuple(pair for pair in first if not pair.get("witness"))))
            explained = {id(pair) for pair in first}
            left[:] = [pair for pair in left if id(pair) not in explained]

    explain("host", 1.0)
    explain("device", share)
    explain("sender", 1.0)
    explain("receiver", 1.0)
    rest = tuple(pair for pair in left if not pair.get("witness"))
    if rest:
        found.append(Culprit("pairs", tuple((host,) for one in rest for host in (one["from"][0], one["to"][0])), rest))
    return found


def _evidence(pairs: Sequence[_Pair], kind: str) -> str:
    def one(pair: _Pair) -> str:
        ends = f"{pair['from'][0]}/{pair['from'][1]} -> {pair['to'][0]}/{pair['to'][1]}"
        if kind == "time":
            return f"{ends}: {pair['min_us'] / 1e3:g} ms"
        what = pair["error"] or f"{pair['received']} of {pair['sent']} packets back"
        return f"{ends} ({pair['address']}): {what}"

    return "; ".join(one(pair) for pair in pairs[:3]) + (f"; {len(pairs)} pairs in all" if len(pairs) > 3 else "")


def _unmeasured(hosts: Iterable[str], meshes: Mapping[str, Any], pairs: Sequence[_Pair]) -> List[Dict[str, Any]]:
    """Hosts whose tool was busy, or that told nothing at all."""
    findings = []
    for host in hosts:
        mine = [pair for pair in pairs if pair["from"][0] == host]
        busy = [pair for pair in mine if hccn_tool.BUSY.search(pair["error"] or "")]
        if busy:
            findings.append(
                finding(
                    "C25",
                    "error",
                    f"hccn_tool stayed busy on {host}",
                    host=host,
                    stage=_STAGE,
                    evidence=_evidence(busy, "packets"),
                    cause="Another process keeps the tool's lock: a monitoring agent, or a call that hangs.",
                    fix="Find it with `fuser -v /etc/hccn.conf` and `pgrep -a hccn_tool` there, then verify again.",
                )
            )
        elif not meshes.get(host) or (mine and all(pair["error"] for pair in mine)):
            findings.append(
                finding(
                    "fabric-not-measured",
                    "error",
                    f"{host} measured nothing on the device network",
                    host=host,
                    stage=_STAGE,
                    evidence=mine[0]["error"] if mine else "no result of hccl_verify",
                    cause="The host could not be reached, or its hccn_tool is missing or broken.",
                    fix="Run it there by hand: hccn_tool -i 0 -link -g; provision installs it with the driver.",
                )
            )
    return findings


def _told(id: str, severity: str, summary: str, culprit: Culprit, what: str, cause: str, fix: str) -> Dict[str, Any]:
    return finding(
        id,
        severity,
        f"{summary}: {culprit.text()}",
        host=culprit.host(),
        stage=_STAGE,
        evidence=_evidence(culprit.pairs, what),
        cause=cause,
        fix=fix,
    )


def _one_way(culprit: Culprit, good: FrozenSet[Tuple[Device, Device]]) -> Tuple[List[_Pair], List[_Pair]]:
    """Pairs that work the other way round, and the rest."""
    ways = [pair for pair in culprit.pairs if (_receiver(pair), _sender(pair)) in good]
    return ways, [pair for pair in culprit.pairs if pair not in ways]


def judge(
    plan: Mapping[str, Any],
    meshes: Mapping[str, Any],
    limits: Optional[Mapping[str, float]] = None,
) -> Dict[str, Any]:
    """``{"findings", "metrics"}`` over ``{host: ascent_mesh or None}`` of the plan's hosts with fabric tools.

    ``limits`` are over `LIMITS`. Pairs that a finding on their devices explains are not among ``meshes``.
    """
    limit = {**LIMITS, **(limits or {})}
    hosts = [name for name, host in plan["hosts"].items() if host["devices"] and host.get("fabric")]
    every = [pair for host in hosts for pair in (meshes.get(host) or {}).get("pairs", ())]
    planned = [pair for pair in every if not pair.get("witness")]
    findings = _unmeasured(hosts, meshes, [pair for pair in planned if pair["address"]])
    # A device without an address can neither be reached nor send.
    mute = {_receiver(pair) for pair in every if not pair["address"]}
    told = [pair for pair in every if pair["sent"] and _sender(pair) not in mute and _receiver(pair) not in mute]
    lone = [pair for pair in told if pair.get("witness")]
    if 2 * sum(not pair["received"] for pair in lone) > len(lone):
        # Rails that are kept apart: devices of different numbers never reach each other there.
        told = [pair for pair in told if not pair.get("witness")]

    dead = [pair for pair in told if not pair["received"]]
    good = frozenset((_sender(pair), _receiver(pair)) for pair in told if pair["received"] == pair["sent"])
    verb = "-vnic" if any((meshes.get(host) or {}).get("plane") == "vnic" for host in hosts) else "-ip"
    for culprit in culprits(told, dead):
        ways, rest = _one_way(culprit, good) if culprit.level == "pairs" else ([], list(culprit.pairs))
        if ways:
            one = culprit._replace(pairs=tuple(ways))
            findings.append(
                _told(
                    "fabric-one-way",
                    "error",
                    "device pairs work one way only, no answer",
                    one,
                    "packets",
                    "A filter or a route of one direction, a stale neighbour entry, or a miswired port.",
                    "Compare hccn_tool -i DEVICE -arp -g and -route -g of both devices; check the switch's filters.",
                )
            )
        if rest:
            findings.append(
                _told(
                    "C01",
                    "error",
                    "unreachable over the device network",
                    culprit._replace(pairs=tuple(rest)),
                    "packets",
                    "A link is down, an address is wrong or taken twice, or the devices' networks are not routed.",
                    f"There: hccn_tool -i DEVICE -link -g and {verb} -g; then the cabling and the switch port.",
                )
            )
    alive = [pair for pair in told if pair["received"]]
    lossy = [pair for pair in alive if 100.0 * (pair["sent"] - pair["received"]) / pair["sent"] > limit["loss_percent"]]
    # Where bursts were sent, a few packets that all came back say nothing of the others.
    enough = min(_TELLING, max((pair["sent"] for pair in alive), default=0))
    bad = {id(pair) for pair in lossy}
    telling = [pair for pair in alive if pair["sent"] >= enough or id(pair) in bad]
    findings += [
        _told(
            "fabric-packet-loss",
            "error",
            "packets are lost on the device network",
            culprit,
            "packets",
            "A dirty or loose optical link, or a congested switch port.",
            "hccn_tool -i DEVICE -stat -g (bad packets), -optical -g and -link_stat -g; reseat or replace.",
        )
        for culprit in culprits(telling, lossy, share=0.75)
    ]
    timed = [pair for pair in alive if pair["min_us"] is not None]
    times = [float(pair["min_us"]) for pair in timed if not pair.get("witness")]
    median = percentile(times, 50) or 0.0
    bound = min(max(limit["factor"] * median, limit["floor_us"]), limit["rtt_us"])
    for culprit in culprits(timed, [pair for pair in timed if pair["min_us"] > bound]):
        worst = max(pair["min_us"] for pair in culprit.pairs)
        item = _told(
            "G02",
            "error" if worst > limit["rtt_us"] else "warning",
            f"slow on the device network, {worst / 1e3:.3g} ms where the median is {median / 1e3:.3g} ms",
            culprit,
            "time",
            "A stale or wrong address that takes a detour, a link that runs at a lower rate, or a node that is busy.",
            "Verify again with the nodes idle; if it stays, compare -speed, -link_stat, -arp, -route of the devices.",
        )
        findings.append(item)
    metrics = {
        "fabric_pairs": len(planned),
        "fabric_mesh_seconds": {host: (meshes.get(host) or {}).get("seconds") for host in hosts},
    }
    return {"findings": findings, "metrics": metrics}
