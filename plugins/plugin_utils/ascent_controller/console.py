"""Lines of plain text for the live view: headings, outcomes, findings, tables, the closing block.

Every function returns lines without line ends. Colour is the caller's: ``paint(text, role)`` gets each piece with a
role of `ROLES`; `plain` leaves it alone. Widths count characters, so a painted line stays aligned.
"""

from __future__ import annotations

__all__ = [
    "ROLES",
    "Paint",
    "as_table",
    "closing",
    "findings",
    "grouped",
    "heading",
    "outcome",
    "plain",
    "seconds",
    "table",
]

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ascent.findings import SEVERITIES

Paint = Callable[[str, str], str]

#: What a piece of text can mean.
ROLES = ("ok", "changed", "error", "warning", "info", "faint", "strong")

_MARKS = {
    "ok": ("✓", "ok", "ok"),
    "changed": ("~", "changed", "changed"),
    "skipped": ("-", "skipped", "faint"),
    "ignored": ("!", "failed, ignored", "warning"),
    "rescued": ("!", "failed, rescued", "warning"),
    "failed": ("✗", "failed", "error"),
    "unreachable": ("✗", "unreachable", "error"),
}
_LABELS = ("evidence", "cause", "fix")


def plain(text: str, role: str) -> str:
    """No colour at all."""
    assert role in ROLES, role
    return text


def seconds(value: float) -> str:
    """A duration for people.

    >>> [seconds(0.234), seconds(75), seconds(3700)]
    ['0.2 s', '1:15 min', '1:01 h']
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def heading(title: str, right: str = "", width: int = 100, paint: Paint = plain) -> list[str]:
    """A rule with a title at its start and ``right``, such as the time of day, at its end."""
    tail = f" {right}" if right else ""
    rule = "─" * max(3, width - len(title) - len(tail) - 4)
    return ["", f"{paint('──', 'faint')} {paint(title, 'strong')} {paint(rule + tail, 'faint')}"]


def outcome(name: str, counts: Mapping[str, int], took: float, width: int = 100, paint: Paint = plain) -> str:
    """One task in one line: its name, how many hosts ended how, and its time when that is half a second or more."""
    pieces = [(f"{_MARKS[key][0]} {counts[key]} {_MARKS[key][1]}", _MARKS[key][2]) for key in _MARKS if counts.get(key)]
    if took >= 0.5:
        pieces.append((seconds(took), "faint"))
    room = max(20, width - 2 - sum(len(text) + 2 for text, _ in pieces))
    label = name if len(name) <= room else name[: room - 1] + "…"
    dots = " " + "·" * max(0, min(60, room) - len(label) - 1) if len(label) < min(60, room) else ""
    return f"  {label}{paint(dots, 'faint')}  " + "  ".join(paint(text, role) for text, role in pieces)


def grouped(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings worst first, those that say the same of several hosts as one.

    A group is a finding with ``hosts`` (names, "cluster" for none) in place of ``host``; where their evidence differs,
    each piece of it is led by its host.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    keys = ("severity", "id", "stage", "summary", "cause", "fix")
    for item in items:
        groups.setdefault(tuple(item[key] for key in keys), []).append(item)
    merged = []
    for key, members in groups.items():
        texts = {item["evidence"]: None for item in members if item["evidence"]}
        if len(texts) > 1:
            texts = {f"{item['host'] or 'cluster'}: {item['evidence']}": None for item in members if item["evidence"]}
        hosts = list(dict.fromkeys(item["host"] or "cluster" for item in members))
        merged.append({**dict(zip(keys, key, strict=True)), "hosts": hosts, "evidence": "\n".join(texts)})
    return sorted(merged, key=lambda item: SEVERITIES.index(item["severity"]))


def findings(items: Sequence[Mapping[str, Any]], width: int = 100, paint: Paint = plain) -> list[str]:
    """Findings as a table (severity, hosts, id, summary); errors and warnings with evidence, cause and fix below.

    What is only good to know takes one line; its details are in the report.
    """
    groups = [{**item, "place": ", ".join(item["hosts"])} for item in grouped(items)]
    if not groups:
        return []
    for group in groups:
        if len(group["place"]) > 24:
            group["place"] = f"{len(group['hosts'])} hosts"
    hosts = max(len(item["place"]) for item in groups)
    ids = max(len(item["id"]) for item in groups)
    lines = []
    for item in groups:
        place = f"  {item['place']:<{hosts}}  {item['id']:<{ids}}  "
        indent = " " * (9 + len(place))
        for number, line in enumerate(_wrapped(item["summary"], width - len(indent)) or [""]):
            mark = "  " + paint(f"{item['severity'].upper():<7}", item["severity"]) + place
            lines.append((indent if number else mark) + paint(line, "strong"))
        for label in _LABELS if item["severity"] != "info" else ():
            for number, line in enumerate(_wrapped(item[label], width - 22)):
                lines.append(f"           {paint(f'{"" if number else label:<8}', 'faint')}  {line}")
    return lines


def as_table(value: Any) -> dict[str, Any] | None:
    """A result's ``table`` as ``{"title", "columns", "rows"}``; bare rows have their header first; else None."""
    if isinstance(value, Mapping) and value.get("columns"):
        return dict(value)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(row, list) for row in value):
        return {"title": "", "columns": value[0], "rows": value[1:]}
    return None


def table(content: Mapping[str, Any], width: int = 100, paint: Paint = plain) -> list[str]:
    """A table ``{"title", "columns": [str], "rows": [[value]]}``; columns of figures are aligned right."""
    columns = [str(column) for column in content.get("columns") or []]
    rows = [[_cell(value) for value in row] for row in content.get("rows") or []]
    lines = [f"  {paint(str(content['title']), 'strong')}"] if content.get("title") else []
    if not columns:
        return lines
    rows = [(row + [""] * len(columns))[: len(columns)] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    right = [
        all(_is_figure(row[i]) for row in content.get("rows") or [] if i < len(row)) and bool(rows)
        for i in range(len(columns))
    ]

    def line(cells: Sequence[str]) -> str:
        texts = [f"{cell:>{size}}" if flag else f"{cell:<{size}}" for cell, size, flag in zip(cells, widths, right)]  # noqa: B905
        return ("  " + "  ".join(texts)).rstrip()[:width]

    return [*lines, paint(line(columns), "faint"), *map(line, rows)]


def _is_figure(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value) and value.strip().replace(",", "").replace(".", "", 1).lstrip("+-").rstrip("% ").isdigit()
    return isinstance(value, (int, float)) or value is None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def closing(
    *,
    ok: bool,
    stages: Iterable[tuple[str, float, bool]],
    hosts: Mapping[str, Mapping[str, int]],
    endpoint: str | None = None,
    answer: str | None = None,
    tables: Iterable[Mapping[str, Any]] = (),
    simulated: bool = False,
    check_mode: bool = False,
    width: int = 100,
    paint: Paint = plain,
) -> list[str]:
    """What is left on the screen after a run: answer, benchmark, times by stage, hosts, endpoint and verdict.

    ``stages`` are (name, seconds, ok); ``hosts`` are counts by host with keys of the run record.
    """
    lines: list[str] = []
    if answer:
        lines += [
            f"answer     {line}" if n == 0 else f"           {line}"
            for n, line in enumerate(_wrapped(answer, width - 11))
        ]
    for content in tables:
        lines += ["", *table(content, width, paint), ""]
    times = [paint(f"{name} {seconds(took)}", "faint" if fine else "error") for name, took, fine in stages]
    if times:
        lines.append("stages     " + "  ".join(times))
    changed = {name: counts.get("changed", 0) for name, counts in hosts.items() if counts.get("changed")}
    word = "would change" if check_mode else "changed"
    counts = ", ".join(f"{name} {number}" for name, number in changed.items()) if changed else "nothing"
    lines.append(
        f"{'change' if check_mode else 'changed':<11}"
        + paint(f"{word} {counts}" if check_mode else counts, "changed" if changed else "ok")
    )
    bad = {
        name: sum(counts.get(key, 0) for key in ("failed", "unreachable"))
        for name, counts in hosts.items()
        if counts.get("failed") or counts.get("unreachable")
    }
    if bad:
        lines.append("failed on  " + paint(", ".join(bad), "error"))
    if endpoint and ok and not check_mode:
        lines.append("endpoint   " + paint(endpoint, "strong"))
    if simulated:
        lines.append("simulated  " + paint("figures come from the engine simulator, not from accelerators", "warning"))
    if check_mode:
        lines.append("dry run    nothing was touched")
    verdict = paint("ok", "ok") if ok else paint("failed", "error")
    return [*heading("result", "", width, paint), *lines, f"verdict    {verdict}"]


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in str(text).splitlines():
        lines += textwrap.wrap(part, max(30, width), break_on_hyphens=False, replace_whitespace=False) or [""]
    return lines
