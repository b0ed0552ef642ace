"""The device mesh as a heat map: who sends to whom, how long it takes and what is lost. Pure, made for the report."""

from __future__ import annotations

__all__ = ["asymmetric", "heat_map"]

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# More cells than these, and a device is a dot: then one cell stands for a pair of hosts.
_MOST_DEVICES = 96
_WIDTH = 1080
_LARGEST_CELL = 34
# Colours tell latency up to this many times the median; it is the factor from which a pair is a finding.
_HOTTEST = 20.0
# One way of a pair is told as slower only from this factor and these microseconds on.
_FACTOR, _FLOOR_US = 3.0, 100.0

_Grid = Sequence[Sequence[float | None]]


def heat_map(matrix: Mapping[str, Any]) -> str:
    """An SVG drawing of `ascent.fabric.verdict.matrix`; empty where nothing was measured.

    Rows send, columns receive. The darker a cell, the longer the round trip, red where packets were lost.
    """
    by_device = 0 < len(matrix.get("devices") or ()) <= _MOST_DEVICES
    if by_device:
        labels = [f"{host}/{device}" for host, device in matrix["devices"]]
        groups = [str(host) for host, _device in matrix["devices"]]
        times, lost = matrix["avg_us"], matrix["lost_percent"]
    else:
        labels = groups = [str(host) for host in matrix.get("hosts") or ()]
        times, lost = matrix.get("host_avg_us") or [], matrix.get("host_lost_percent") or []
    known = sorted(value for row in times for value in row if value is not None)
    if not labels or not any(value is not None for row in lost for value in row):
        return ""
    median = known[len(known) // 2] if known else None
    left = 8 + 7 * max(len(group) for group in groups)
    top = 20
    cell = min(_LARGEST_CELL, (_WIDTH - left) // len(labels))
    marks = []
    for row, sender in enumerate(labels):
        for column, receiver in enumerate(labels):
            share, time = lost[row][column], times[row][column]
            if share is None:
                continue
            told = f"{sender} to {receiver}: " + (f"{time:,.1f} us" if time is not None else "no answer")
            told += f", {share:g} % lost" if share else ""
            colour, depth = ("var(--bad)", 0.45 + 0.55 * share / 100) if share else ("var(--bar)", _depth(time, median))
            marks.append(
                f'<rect x="{left + column * cell}" y="{top + row * cell}" width="{cell - 1}" height="{cell - 1}" '
                f'fill="{colour}" fill-opacity="{depth:.2f}"><title>{escape(told)}</title></rect>'
            )
    marks += _frame(groups, left, top, cell)
    side = len(labels) * cell
    height = top + side + 24
    legend = "darker: longer, relative to the median" + (f" of {median:,.1f} us" if median is not None else "")
    marks.append(
        f'<text class="soft" x="{left}" y="{height - 6}">rows send, columns receive; {escape(legend)}; '
        "red: packets lost</text>"
    )
    width = max(left + side, left + 560)
    return (
        f'<svg class="drawn" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="device mesh">{"".join(marks)}</svg>'
    )


def _depth(time: float | None, median: float | None) -> float:
    """Opacity of a cell: 0.12 at or below the median, 1 from twenty times of it on, by its logarithm."""
    if time is None or not median:
        return 0.12
    return 0.12 + 0.88 * min(1.0, max(0.0, math.log(max(time, median) / median) / math.log(_HOTTEST)))


def _frame(groups: Sequence[str], left: int, top: int, cell: int) -> list[str]:
    """Names of the hosts at both sides, and lines between them."""
    marks = []
    end = len(groups) * cell
    start = 0
    for index in range(1, len(groups) + 1):
        if index < len(groups) and groups[index] == groups[start]:
            continue
        name, middle = escape(groups[start]), (start + index) * cell / 2
        marks.append(f'<text class="soft" x="{left - 6}" y="{top + middle + 4:.0f}" text-anchor="end">{name}</text>')
        if (index - start) * cell >= 7 * len(groups[start]):
            marks.append(f'<text class="soft" x="{left + middle:.0f}" y="{top - 6}" text-anchor="middle">{name}</text>')
        for x, y, x2, y2 in (
            (left, top + index * cell, left + end, top + index * cell),
            (left + index * cell, top, left + index * cell, top + end),
        ):
            marks.append(f'<line x1="{x}" y1="{y}" x2="{x2}" y2="{y2}" stroke="var(--line)"/>')
        start = index
    return marks


def asymmetric(matrix: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Pairs that are good one way only: ``(from, to, that way, the other way)``, the worse way first.

    >>> times, lost = [[None, 20.0], [None, None]], [[None, 0.0], [100.0, None]]
    >>> asymmetric({"hosts": ["a", "b"], "host_avg_us": times, "host_lost_percent": lost})
    [('b', 'a', 'no answer, 100 % lost', '20.0 us')]
    """
    if matrix.get("devices"):
        names = [f"{host} device {device}" for host, device in matrix["devices"]]
        times, lost = matrix["avg_us"], matrix["lost_percent"]
    else:
        names = [str(host) for host in matrix.get("hosts") or ()]
        times, lost = matrix.get("host_avg_us") or [], matrix.get("host_lost_percent") or []
    found = []
    for row, sender in enumerate(names):
        for column, receiver in enumerate(names):
            ours, theirs = lost[row][column], lost[column][row]
            if ours is None or theirs is None:
                continue
            if ours > theirs or (ours == theirs and _slower(times, row, column)):
                that, other = _told(times, lost, row, column), _told(times, lost, column, row)
                found.append((sender, receiver, that, other))
    return found


def _slower(times: _Grid, row: int, column: int) -> bool:
    ours, theirs = times[row][column], times[column][row]
    return ours is not None and theirs is not None and ours > _FACTOR * theirs and ours > _FLOOR_US


def _told(times: _Grid, lost: _Grid, row: int, column: int) -> str:
    time, share = times[row][column], lost[row][column]
    return (f"{time:,.1f} us" if time is not None else "no answer") + (f", {share:g} % lost" if share else "")
