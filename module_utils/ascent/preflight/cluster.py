"""What only shows between nodes: versions that differ, clocks that are apart."""

from __future__ import annotations

__all__ = ["check", "clock_offsets"]

from typing import Dict, List, Mapping, Optional

from .common import SHOWN, Facts, Findings, error, listed, part, warning


def check(
    plan: Facts,
    nodes: Mapping[str, Optional[Facts]],
    offsets: Optional[Mapping[str, Mapping[str, float]]],
    clock_skew_seconds: float,
) -> Findings:
    """What stands against the nodes as a whole."""
    return _drift(plan, nodes) + _clocks(offsets, clock_skew_seconds)


def _drift(plan: Facts, nodes: Mapping[str, Optional[Facts]]) -> Findings:
    """Versions that differ between the nodes with devices; the rarer ones are named as those to change."""
    found = []
    for kind in ("driver", "firmware"):
        hosts: Dict[str, List[str]] = {}
        for name, host in plan["hosts"].items():
            version = part(nodes.get(name) or {}, "npu", kind).get("version")
            if version and host["devices"]:
                hosts.setdefault(version, []).append(name)
        if len(hosts) > 1:
            # The commonest version is kept; of equally common ones the newest, as far as they compare.
            common = max(sorted(hosts), key=lambda version: (len(hosts[version]), version))
            others = [name for version, names in sorted(hosts.items()) if version != common for name in names]
            found.append(
                error(
                    "B09",
                    others[0] if len(others) == 1 else None,
                    f"{kind} versions differ between nodes: {listed(others)} not at {common}",
                    "; ".join(f"{version}: {listed(names)}" for version, names in sorted(hosts.items())),
                    "An upgrade reached a part of the nodes only.",
                    f"Bring {listed(others)} to {kind} {common}.",
                )
            )
    return found


def clock_offsets(samples: Mapping[str, Mapping[str, float]]) -> Dict[str, Dict[str, float]]:
    """``{host: {"offset", "uncertainty"}}`` in seconds from ``{host: {"before", "after", "time"}}``.

    ``before`` and ``after`` are the controller's clock around the reading of ``time`` on the host.
    """
    return {
        host: {
            "offset": one["time"] - (one["before"] + one["after"]) / 2,
            "uncertainty": (one["after"] - one["before"]) / 2,
        }
        for host, one in samples.items()
    }


def _clocks(offsets: Optional[Mapping[str, Mapping[str, float]]], limit: float) -> Findings:
    """The two clocks furthest apart, if they are so for sure."""
    if not offsets or len(offsets) < 2:
        return []
    # What a slow connection adds must not look like a wrong clock: an offset counts from its near end.
    late = max(offsets, key=lambda host: offsets[host]["offset"] - offsets[host]["uncertainty"])
    early = min(offsets, key=lambda host: offsets[host]["offset"] + offsets[host]["uncertainty"])
    low = offsets[early]["offset"] + offsets[early]["uncertainty"]
    skew = offsets[late]["offset"] - offsets[late]["uncertainty"] - low
    if skew <= limit:
        return []
    return [
        warning(
            "D24",
            None,
            f"clocks of {late} and {early} are at least {skew:.1f} s apart",
            "; ".join(f"{host}: {one['offset']:+.2f} s" for host, one in sorted(offsets.items())[:SHOWN]),
            "No time service runs on one of them.",
            "Enable chrony on all nodes with the same server: logs, certificates and tokens go by the clock.",
        )
    ]
