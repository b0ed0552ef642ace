"""What the judges of the fabric share: how devices are named, and who is in the minority."""

from __future__ import annotations

__all__ = ["STAGE", "Device", "Findings", "fabric_devices", "found", "majority", "misfits", "names", "only_host"]

import collections
from typing import Any, Dict, Hashable, Iterable, List, Mapping, Optional, Tuple

from ..findings import finding

STAGE = "verify"
#: A device of the cluster: its host and its number there.
Device = Tuple[str, int]
Findings = List[Dict[str, Any]]


def names(devices: Iterable[Device]) -> str:
    """Devices by host, in order, runs of three and more as ranges.

    >>> names([("a3-02", 1), ("a3-01", 0), ("a3-01", 1), ("a3-01", 2), ("a3-01", 5)])
    'a3-01 devices 0-2, 5; a3-02 device 1'
    """
    by_host: Dict[str, List[int]] = collections.defaultdict(list)
    for host, number in sorted(set(devices)):
        by_host[host].append(number)
    return "; ".join(
        f"{host} device{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}" for host, numbers in by_host.items()
    )


def _ranges(numbers: List[int]) -> str:
    runs: List[List[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def only_host(devices: Iterable[Device]) -> Optional[str]:
    """The host of all these devices, None when there are several."""
    hosts = {host for host, _number in devices}
    return next(iter(hosts)) if len(hosts) == 1 else None


def majority(values: Iterable[Hashable]) -> Any:
    """The value that more than half have; None where there is no such value.

    >>> majority([4096, 4096, 1500]), majority([1, 2])
    (4096, None)
    """
    counts = collections.Counter(values)
    value, count = counts.most_common(1)[0] if counts else (None, 0)
    return value if 2 * count > sum(counts.values()) else None


def misfits(row: Mapping[int, int]) -> Dict[int, int]:
    """Those places of a row of numbers that break the step in which it goes up, with what would stand there.

    Empty where the row is short, has no step, or half of it breaks it: then nothing can be said.

    >>> misfits({0: 10, 1: 11, 2: 12, 3: 77}), misfits({0: 5, 1: 9})
    ({3: 13}, {})
    """
    places = sorted(row)
    if len(places) < 3:
        return {}
    steps = [
        (row[right] - row[left]) // (right - left)
        for left, right in zip(places, places[1:])
        if (row[right] - row[left]) % (right - left) == 0
    ]
    if not steps:
        return {}
    step = collections.Counter(steps).most_common(1)[0][0]
    base = majority(value - step * place for place, value in row.items())
    if base is None:
        return {}
    return {place: base + step * place for place, value in row.items() if value != base + step * place}


def fabric_devices(plan: Mapping[str, Any]) -> List[Device]:
    """The plan's devices on hosts that have fabric tools."""
    return [(name, number) for name, host in plan["hosts"].items() if host.get("fabric") for number in host["devices"]]


def found(
    id: str,
    severity: str,
    summary: str,
    *,
    devices: Iterable[Device] = (),
    host: Optional[str] = None,
    evidence: str = "",
    cause: str = "",
    fix: str = "",
) -> Dict[str, Any]:
    """A finding of this stage; its host is that of ``devices`` where they have one and none is given."""
    place = host if host is not None else only_host(devices)
    return finding(id, severity, summary, host=place, stage=STAGE, evidence=evidence, cause=cause, fix=fix)
