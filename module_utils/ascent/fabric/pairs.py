"""Judges the pings of all nodes together: who is at fault, rather than every pair that failed."""

from __future__ import annotations

__all__ = ["judge"]

import collections
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .. import hccn_tool
from ..bench import percentile
from ..findings import finding

_STAGE = "verify"
_SLOW_FACTOR = 20
# Below this a factor says nothing: one late wake-up of the tool's process costs as much.
_SLOW_FLOOR_US = 1000.0
_SHOWN = 8

_Pair = Mapping[str, Any]
_Device = Tuple[str, int]


def _name(device: _Device) -> str:
    return f"{device[0]} device {device[1]}"


def _ends(pair: _Pair) -> Tuple[_Device, _Device]:
    return (pair["from"][0], pair["from"][1]), (pair["to"][0], pair["to"][1])


def _ok(pair: _Pair) -> bool:
    return bool(pair["received"] == pair["sent"] > 0)


def _culprits(pairs: Sequence[_Pair], bad: Sequence[_Pair]) -> List[Tuple[str, Optional[str], List[_Pair]]]:
    """Who explains the bad pairs: ``(text, host or None, the pairs explained)``, hosts before devices before pairs.

    A host or device is at fault when every pair it took part in is bad while the others it was paired with work
    elsewhere. Where two explain the same pairs, both are named, since the pings alone can't tell them apart.
    """
    found: List[Tuple[str, Optional[str], List[_Pair]]] = []
    left = list(bad)

    def ends(pair: _Pair, level: str) -> List[Tuple[Any, ...]]:
        source, target = _ends(pair)
        return [(source[0],), (target[0],)] if level == "host" else [source, target]

    def explain(level: str, sides: Sequence[int], word: str) -> None:
        while left:
            total = collections.Counter(end for pair in pairs for end in {ends(pair, level)[side] for side in sides})
            lost = collections.Counter(end for pair in bad for end in {ends(pair, level)[side] for side in sides})
            open_ = collections.Counter(end for pair in left for end in {ends(pair, level)[side] for side in sides})
            least = 2 if len(sides) == 1 else 1
            whole = [end for end in open_ if lost[end] == total[end] >= least]
            if not whole:
                return
            most = max(open_[end] for end in whole)
            chosen = sorted(end for end in whole if open_[end] == most)
            first = [pair for pair in left if any(ends(pair, level)[side] == chosen[0] for side in sides)]
            # Those that explain the very same pairs can't be told apart.
            alike = [
                end for end in chosen if all(any(ends(pair, level)[side] == end for side in sides) for pair in first)
            ]
            if level == "host" and len(chosen) == len(total) > 2:
                # That is no fault of one of them.
                found.append(("every host from every other", None, list(left)))
                left.clear()
                return
            names = [str(end[0]) if level == "host" else _name((str(end[0]), int(end[1]))) for end in alike]
            host = str(alike[0][0]) if len({end[0] for end in alike}) == 1 else None
            found.append((f"{word}{' or '.join(names)}", host, first))
            explained = {id(pair) for pair in first}
            left[:] = [pair for pair in left if id(pair) not in explained]

    explain("host", (0, 1), "")
    explain("device", (0, 1), "")
    explain("device", (0,), "sending from ")
    explain("device", (1,), "sending to ")
    if left:
        text = ", ".join(f"{_name(source)} to {_name(target)}" for source, target in map(_ends, left[:_SHOWN]))
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        found.append((text + more, None, left))
    return found


def _arrow(pair: _Pair) -> str:
    (source, own), (target, theirs) = _ends(pair)
    return f"{source}/{own} -> {target}/{theirs}"


def _evidence(pairs: Sequence[_Pair]) -> str:
    def one(pair: _Pair) -> str:
        what = pair["error"] or f"{pair['received']} of {pair['sent']} packets back"
        return f"{_arrow(pair)} ({pair['address']}): {what}"

    return "; ".join(one(pair) for pair in pairs[:3]) + (f"; {len(pairs)} pairs in all" if len(pairs) > 3 else "")


def _mesh_findings(pairs: Sequence[_Pair], plane: str) -> List[Dict[str, Any]]:
    """Findings on the pings: busy tools, unreachable devices, lost packets, slow pairs."""
    busy: Dict[str, List[_Pair]] = collections.defaultdict(list)
    known: List[_Pair] = []
    for pair in pairs:
        (busy[pair["from"][0]] if hccn_tool.BUSY.search(pair["error"] or "") else known).append(pair)
    findings = [
        finding(
            "C25",
            "error",
            f"hccn_tool stayed busy on {host}",
            host=host,
            stage=_STAGE,
            evidence=_evidence(mine),
            cause="Another process keeps the tool's lock: a monitoring agent, or a call that hangs.",
            fix="Find it with `fuser -v /etc/hccn.conf` and `pgrep -a hccn_tool` on that host, then verify again.",
        )
        for host, mine in sorted(busy.items())
    ]
    dead = [pair for pair in known if not _ok(pair) and not pair["received"]]
    lossy = [pair for pair in known if not _ok(pair) and pair["received"]]
    for text, host, mine in _culprits(known, dead):
        findings.append(
            finding(
                "C01",
                "error",
                f"unreachable over the device network: {text}",
                host=host,
                stage=_STAGE,
                evidence=_evidence(mine),
                cause="A link is down, an address is wrong or taken twice, or the devices' networks are not routed.",
                fix=f"There: hccn_tool -i DEVICE -link -g and {'-vnic' if plane == 'vnic' else '-ip'} -g; then"
                " the cabling and the switch port.",
            )
        )
    for text, host, mine in _culprits(known, lossy):
        findings.append(
            finding(
                "fabric-packet-loss",
                "error",
                f"packets are lost on the device network: {text}",
                host=host,
                stage=_STAGE,
                evidence=_evidence(mine),
                cause="A dirty or loose optical link, or a congested switch port.",
                fix="hccn_tool -i DEVICE -stat -g (bad packets), -optical -g and -link_stat -g; reseat or replace.",
            )
        )
    times = [float(pair["min_us"]) for pair in known if _ok(pair) and pair["min_us"] is not None]
    limit = max(_SLOW_FACTOR * (percentile(times, 50) or 0.0), _SLOW_FLOOR_US)
    slow = [pair for pair in known if _ok(pair) and (pair["min_us"] or 0) > limit]
    if slow:
        slow.sort(key=lambda pair: -float(pair["min_us"]))
        findings.append(
            finding(
                "G02",
                "warning",
                f"{len(slow)} device pairs answer more than {_SLOW_FACTOR} times slower than the median",
                stage=_STAGE,
                evidence="; ".join(f"{_arrow(pair)}: {pair['min_us']:g} us" for pair in slow[:_SHOWN])
                + f"; median {percentile(times, 50):g} us",
                cause="A link that runs at a lower rate, a detour, or a node that is busy.",
                fix="Verify again with the node idle; if it stays, compare -speed and -link_stat of the devices.",
            )
        )
    return findings


def judge(
    plan: Mapping[str, Any], meshes: Mapping[str, Any], limits: Optional[Mapping[str, Any]] = None
) -> Dict[str, Any]:
    """``{"findings", "metrics"}`` over what every node measured; ``meshes`` maps a host to its ``ascent_mesh`` or None.

    Pairs whose target has no address are left out: that is a finding about the device.
    """
    del limits
    hosts = [name for name, host in plan["hosts"].items() if host["devices"] and host.get("fabric")]
    findings = [
        finding(
            "fabric-not-measured",
            "error",
            f"{host} measured nothing",
            host=host,
            stage=_STAGE,
            evidence="no result of hccl_verify",
            cause="The host could not be reached, or it has no hccn_tool.",
            fix="Read the host's own error above; preflight checks for both.",
        )
        for host in hosts
        if not meshes.get(host) and len(hosts) > 1
    ]
    pairs = [pair for host in hosts for pair in (meshes.get(host) or {}).get("pairs", ())]
    plane = next((mesh["plane"] for mesh in meshes.values() if mesh), "ip")
    addressed = [pair for pair in pairs if pair["address"] and "no ip was preset" not in (pair["error"] or "")]
    findings += _mesh_findings(addressed, plane)
    times = [float(pair["avg_us"]) for pair in addressed if _ok(pair) and pair["avg_us"] is not None]
    rtt = {"median": percentile(times, 50), "p99": percentile(times, 99), "max": max(times, default=None)}
    failed = sum(1 for pair in pairs if not _ok(pair))
    return {
        "findings": findings,
        "metrics": {"fabric_pairs": len(pairs), "fabric_failed_pairs": failed, "fabric_rtt_us": rtt},
    }
