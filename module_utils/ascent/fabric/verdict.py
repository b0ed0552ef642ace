"""The verdict on the fabric: all parts together, what is kept of it, and whether a kept one still holds."""

from __future__ import annotations

__all__ = ["DEPTHS", "MESHES", "compose", "due", "key", "matrix", "reusable", "table", "unexplained"]

import collections
import hashlib
import json
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..bench import percentile
from .common import Device, Findings, fabric_devices, found

#: From the shallowest to the deepest; a deeper verdict stands for a shallower one.
DEPTHS = ("quick", "standard", "deep")
#: As `DEPTHS`, of the mesh.
MESHES = ("sample", "planned", "full")
#: The mesh of a depth, where none is asked for.
MESH_OF = {"quick": "sample", "standard": "planned", "deep": "planned"}
#: What a part says that is said already by another one: a busy tool shows in each.
_SAID_ONCE = ("C07", "C25", "D31", "npu-tool-hangs", "fabric-not-measured")
_SLOW_FACTOR = 20
_SLOW_FLOOR_US = 1000.0
# A matrix of more devices than this is told by hosts alone: it would be megabytes of JSON, and mostly empty.
_MOST_DEVICES = 256

_Node = Optional[Mapping[str, Any]]
_Pair = Mapping[str, Any]


def key(plan: Mapping[str, Any], nodes: Mapping[str, _Node]) -> str:
    """What a verdict depends on, as a hash: the plan, and of each host its address, boot, driver and ``hccn.conf``."""
    parts: Dict[str, Any] = {"plan": plan.get("hash")}
    for name, host in plan["hosts"].items():
        node = nodes.get(name) or {}
        npu = node.get("npu") or {}
        parts[f"host {name}"] = {
            "node_ip": host["node_ip"],
            "devices": host["devices"],
            "boot_id": (node.get("system") or {}).get("boot_id"),
            "addresses": sorted(
                f"{one['nic']} {one['address']}/{one['prefix']}"
                for one in (node.get("network") or {}).get("addresses") or ()
                # Container networks come and go, and no device talks over them.
                if one["address"] == host["node_ip"] or one["nic"] == host.get("nic")
            ),
            "hccn": npu.get("hccn"),
            "versions": [(npu.get(package) or {}).get("version") for package in ("driver", "firmware")],
        }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def due(plan: Mapping[str, Any]) -> bool:
    """Whether there is anything to prove: devices with a network of their own, or more than one host."""
    return bool(fabric_devices(plan)) or len(plan["hosts"]) > 1


def reusable(
    verdict: Optional[Mapping[str, Any]],
    wanted_key: str,
    now: float,
    max_age_hours: float,
    depth: str = "standard",
    mesh: str = "planned",
    serving: bool = False,
) -> bool:
    """Whether a kept verdict still holds: good, of an unchanged cluster, not too old, and no shallower than wanted.

    One that left collectives out for the sake of a cluster that served stands while it is ``serving`` still.
    """
    if not verdict or not verdict.get("ok") or verdict.get("key") != wanted_key:
        return False
    if verdict.get("depth") not in DEPTHS or DEPTHS.index(verdict["depth"]) < DEPTHS.index(depth):
        return False
    if verdict.get("mesh") not in MESHES or MESHES.index(verdict["mesh"]) < MESHES.index(mesh):
        return False
    if verdict.get("left_out") and not serving and depth != "quick":
        return False
    age = now - float(verdict.get("measured") or 0)
    return 0 <= age <= max_age_hours * 3600


# -- what one part explains of another ---------------------------------------------------------------------------------


def _ends(pair: _Pair) -> Tuple[Device, Device]:
    return (pair["from"][0], pair["from"][1]), (pair["to"][0], pair["to"][1])


def _good(pair: _Pair) -> bool:
    return bool(pair["received"] == pair["sent"] > 0)


def unexplained(
    meshes: Mapping[str, Optional[Mapping[str, Any]]], devices: Mapping[str, Any]
) -> Dict[str, Optional[Dict[str, Any]]]:
    """The measured meshes without the failed pairs that the findings on devices explain.

    ``devices`` is what `devices.judge` returned: a pair fails for no reason of its own when one of its ends has a link
    that is down or no address of its own, and a host whose tool gives no answer measures nothing.
    """
    explained = {(host, number) for host, number in devices["explained"]}
    mute = set(devices["mute"])
    left: Dict[str, Optional[Dict[str, Any]]] = {}
    for host, mesh in meshes.items():
        if host in mute:
            left[host] = {"plane": "ip", "packets": 0, "seconds": 0.0, **(mesh or {}), "pairs": []}
        elif mesh is None:
            left[host] = None
        else:
            left[host] = {
                **mesh,
                "pairs": [
                    pair
                    for pair in mesh["pairs"]
                    if _good(pair)
                    or not (explained & set(_ends(pair)) or (pair["to"][0] in mute and not pair["address"]))
                ],
            }
    return left


# -- matrix and table --------------------------------------------------------------------------------------------------


def matrix(pairs: Sequence[_Pair], plane: Optional[str]) -> Dict[str, Any]:
    """Latency and loss from every sender (rows) to every receiver; null where nothing was measured.

    By hosts always, each cell the worst of its devices; by devices too while there are no more than 256.
    """
    measured = [pair for pair in pairs if not pair.get("witness")]
    devices = sorted({end for pair in measured for end in _ends(pair)})
    hosts = sorted({host for host, _number in devices})
    result: Dict[str, Any] = {"plane": plane, "hosts": hosts}
    by_host: Dict[Any, List[_Pair]] = collections.defaultdict(list)
    by_device: Dict[Any, List[_Pair]] = collections.defaultdict(list)
    for pair in measured:
        source, target = _ends(pair)
        by_host[source[0], target[0]].append(pair)
        by_device[source, target].append(pair)
    result["host_avg_us"] = [[_worst(by_host.get((row, column), ())) for column in hosts] for row in hosts]
    result["host_lost_percent"] = [[_lost(by_host.get((row, column), ())) for column in hosts] for row in hosts]
    few = devices if len(devices) <= _MOST_DEVICES else []
    result["devices"] = [list(device) for device in few]
    result["avg_us"] = [[_worst(by_device.get((row, column), ())) for column in few] for row in few]
    result["lost_percent"] = [[_lost(by_device.get((row, column), ())) for column in few] for row in few]
    return result


def _worst(pairs: Sequence[_Pair]) -> Optional[float]:
    return max((float(pair["avg_us"]) for pair in pairs if pair["avg_us"] is not None), default=None)


def _lost(pairs: Sequence[_Pair]) -> Optional[float]:
    """The worst share of lost packets in percent; a pair that could not be measured at all counts as lost."""
    shares = [100.0 * (1 - pair["received"] / pair["sent"]) if pair["sent"] else 100.0 for pair in pairs]
    return round(max(shares), 2) if shares else None


def table(
    plan: Mapping[str, Any],
    npus: Mapping[str, _Node],
    pairs: Sequence[_Pair],
    findings: Findings,
) -> Dict[str, Any]:
    """One row a node: what it has, how it answers, and what stands against it."""
    columns = [
        "node", "verdict", "devices", "up", "addresses", "TLS", "firmware", "pairs", "lost", "median us", "worst us",
        "errors",
    ]  # fmt: skip
    by_host: Dict[str, List[_Pair]] = collections.defaultdict(list)
    for pair in pairs:
        if not pair.get("witness"):
            for host in {pair["from"][0], pair["to"][0]}:
                by_host[host].append(pair)
    rows = []
    for host, planned in plan["hosts"].items():
        entries = [
            ((npus.get(host) or {}).get("devices") or {}).get(str(number)) or {} for number in planned["devices"]
        ]
        plane = (planned.get("fabric") or {}).get("address", "ip")
        mine = by_host[host]
        times = [float(pair["avg_us"]) for pair in mine if pair["avg_us"] is not None]
        against = [one for one in findings if one["host"] == host or (one["host"] is None and _names_host(one, host))]
        errors = sorted({one["id"] for one in against if one["severity"] == "error"})
        warnings = sorted({one["id"] for one in against if one["severity"] == "warning"})
        switches = {entry["tls"]["enabled"] for entry in entries if entry.get("tls")}
        firmware = sorted({str(entry["firmware_version"]) for entry in entries if entry.get("firmware_version")})
        median = percentile(times, 50)
        rows.append(
            [
                host,
                "bad" if errors else "warned" if warnings else "good",
                len(planned["devices"]),
                _count(entries, lambda entry: (entry.get("link") or {}).get("link") == "UP"),
                _count(entries, lambda entry, plane=plane: bool((entry.get(plane) or {}).get("address"))),
                "mixed" if len(switches) > 1 else "on" if True in switches else "off" if switches else "-",
                ", ".join(firmware) or "-",
                len(mine),
                sum(1 for pair in mine if not _good(pair)),
                _round(median),
                _round(max(times, default=None)),
                ", ".join(errors) or "-",
            ]
        )
    return {"title": "Fabric", "columns": columns, "rows": rows}


def _count(entries: Sequence[Mapping[str, Any]], holds: Any) -> Any:
    return sum(1 for entry in entries if holds(entry)) if any(entries) else "-"


def _round(value: Optional[float]) -> Any:
    if value is None:
        return "-"
    return round(value, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else 0


def _names_host(one: Mapping[str, Any], host: str) -> bool:
    """Whether a finding over several hosts is about this one too."""
    words = f"{one['summary']} ".replace(";", " ").replace(",", " ").replace(":", " ")
    return f" {host} " in f" {words}"


# -- all parts ---------------------------------------------------------------------------------------------------------


def compose(
    plan: Mapping[str, Any],
    nodes: Mapping[str, _Node],
    npus: Mapping[str, _Node],
    meshes: Mapping[str, Optional[Mapping[str, Any]]],
    parts: Mapping[str, Mapping[str, Any]],
    *,
    depth: str = "standard",
    mesh: str = "planned",
    left_out: Sequence[str] = (),
    previous: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    """``{"findings", "metrics", "verdict", "table", "matrix", "parts"}``.

    ``parts`` maps a part's name to ``{"findings", "metrics"}`` of its judge, ``left_out`` are those that were not
    measured because the cluster serves. ``verdict`` is what is kept on the nodes; ``previous`` is the one that was kept
    there, against which a fabric that became much slower is a warning.
    """
    findings: Findings = []
    said: Set[Tuple[str, Optional[str]]] = set()
    for part in parts.values():
        new = [one for one in part["findings"] if one["id"] not in _SAID_ONCE or (one["id"], one["host"]) not in said]
        said.update((one["id"], one["host"]) for one in new)
        findings += new
    metrics: Dict[str, Any] = {}
    for part in parts.values():
        metrics.update(part.get("metrics") or {})
    pairs = [pair for one in meshes.values() if one for pair in one["pairs"]]
    counted = [pair for pair in pairs if not pair.get("witness")]
    times = [float(pair["avg_us"]) for pair in counted if _good(pair) and pair["avg_us"] is not None]
    rtt = {"median": percentile(times, 50), "p99": percentile(times, 99), "max": max(times, default=None)}
    failed = sum(1 for pair in counted if not _good(pair))
    metrics.update(fabric_pairs=len(counted), fabric_failed_pairs=failed, fabric_rtt_us=rtt, fabric_depth=depth)
    findings += _slower(rtt["median"], ((previous or {}).get("rtt_us") or {}).get("median"))
    plane = next((one["plane"] for one in meshes.values() if one), None)
    clocks = [((node or {}).get("system") or {}).get("time") for node in nodes.values()]
    clocks += [(one or {}).get("at") for one in npus.values()]
    good = {name: not any(one["severity"] == "error" for one in part["findings"]) for name, part in parts.items()}
    verdict = {
        "ok": not any(one["severity"] == "error" for one in findings),
        "key": key(plan, nodes),
        "measured": max((float(clock) for clock in clocks if clock), default=None),
        "depth": depth,
        "mesh": mesh,
        "left_out": list(left_out),
        "parts": good,
        "pairs": len(counted),
        "failed": failed,
        "rtt_us": rtt,
    }
    return {
        "findings": findings,
        "metrics": metrics,
        "verdict": verdict,
        "table": table(plan, npus, pairs, findings),
        "matrix": matrix(pairs, plane),
        "parts": good,
    }


def _slower(now: Optional[float], before: Optional[float]) -> Findings:
    if not before or not now or now <= max(_SLOW_FACTOR * before, _SLOW_FLOOR_US):
        return []
    return [
        found(
            "G02",
            "warning",
            f"the device network is {now / before:.0f} times slower than when it was last verified",
            evidence=f"median round trip {now:g} us, before {before:g} us",
            cause="Load on the nodes, or traffic that takes another path than before.",
            fix="Verify again with the nodes idle; compare the switches' routes.",
        )
    ]
