"""The report of a run: one self-contained HTML file with inline styles and drawings, for light and dark screens.

Reads what `ascent_controller.runs` wrote into a run's folder. Nothing in the file is fetched from anywhere. Every text
that comes from a run is escaped; only drawings of our own are inserted as they are.

The benchmark section reads ``smoke_bench.json`` and any other ``*_bench.json``. Flat figures become a table. Where the
record has ``requests``, a list of ``{"start_s", "ttft_ms", "itl_ms": [..], "end_s", "error"}``, the distributions of
TTFT and ITL and the time line of the requests are drawn.
"""

from __future__ import annotations

__all__ = ["html", "write"]

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ascent.errors import AscentError
from ascent_controller import console, fabric_picture, runs

_STYLE = Path(__file__).with_suffix(".css")
# Columns of the table of nodes that hold words.
_FABRIC_WORDS = ("node", "TLS", "firmware", "errors", "verdict")
_SHOWN_PAIRS = 40
_XML_HEAD = re.compile(r"\A\s*(?:<\?xml.*?\?>\s*)?(?:<!DOCTYPE.*?>\s*)?", re.DOTALL)


def write(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path."""
    path = run_dir / "report.html"
    path.write_text(html(run_dir), encoding="utf-8")
    return path


def html(run_dir: Path) -> str:
    """The report of the run in ``run_dir`` as one HTML document.

    Raises AscentError when the folder has no readable ``run.json``.
    """
    run = _read(run_dir / "run.json")
    if not isinstance(run, dict):
        raise AscentError(f"{run_dir} has no readable run.json, so it is no run record")
    verdicts = [v for item in run["stages"] if isinstance(v := _read(run_dir / f"{item['stage']}.json"), dict)]
    plan = runs.read_plan(run_dir)
    parts = [
        _header(run, plan),
        _stages(run),
        _findings(verdicts),
        _nodes(run_dir),
        _answer(run_dir),
        _fabric(run_dir),
        *(_bench(path) for path in sorted(run_dir.glob("*_bench.json"))),
        _plan(plan),
        _memory(verdicts),
        _hosts(run),
        _tasks(run),
        _logs(run_dir),
        _versions(run, plan, verdicts),
    ]
    title = escape(f"{run['cluster'] or 'cluster'}: {'ok' if run['ok'] else 'failed'} ({run['started'][:16]})")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = ()) -> str:
    """A table; cells are escaped. ``numeric`` are the columns to align right."""

    def cell(tag: str, index: int, value: Any) -> str:
        return f"<{tag}{' class=n' if index in numeric else ''}>{escape(_text(value))}</{tag}>"

    head = "".join(cell("th", index, column) for index, column in enumerate(columns))
    body = "".join("<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _header(run: Mapping[str, Any], plan: Mapping[str, Any] | None) -> str:
    verdict = "ok" if run["ok"] else "interrupted" if run["interrupted"] else "failed"
    stamp = '<span class="stamp">simulated</span>' if run["simulated"] else ""
    if run["check_mode"]:
        stamp += '<span class="stamp">dry run: nothing was touched</span>'
    facts = [
        f"{console.seconds(run['seconds'])}, {run['rounds']} task rounds, {run['changed']} "
        + ("would change" if run["check_mode"] else "changed")
    ]
    if plan and plan.get("summary"):
        facts.insert(0, str(plan["summary"]))
    endpoint = (plan or {}).get("endpoint") or {}
    if endpoint.get("url") and run["ok"] and not run["check_mode"]:
        facts.append(f"endpoint {endpoint['url']}")
    command = " ".join(run["arguments"]) or run["playbook"]
    lines = "".join(f"<div>{escape(fact)}</div>" for fact in facts)
    return (
        f'<header class="{"good" if run["ok"] else "bad"}"><h1>{escape(run["cluster"] or "cluster")}: '
        f'<span class="verdict">{verdict}</span>{stamp}</h1>'
        f"<div>{escape(run['recipe'] or 'no recipe in this run')}</div>{lines}"
        f'<div class="soft">{escape(run["started"])} &nbsp; <code>{escape(command)}</code></div></header>'
    )


def _stages(run: Mapping[str, Any]) -> str:
    """The stages on one time axis, which starts at the first."""
    stages = run["stages"]
    if not stages:
        return ""
    total = max(0.001, *(_offset(run, item) + item["seconds"] for item in stages))
    left, right, row = 110, 150, 30
    width = 1080
    scale = (width - left - right) / total
    height = row * len(stages) + 24
    marks = []
    for tick in _ticks(total):
        x = left + tick * scale
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}" stroke="var(--line)"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 4}" text-anchor="middle">{_clock(tick)}</text>'
        )
    for index, item in enumerate(stages):
        y = index * row + 4
        x = left + _offset(run, item) * scale
        length = max(2.0, item["seconds"] * scale)
        color = "var(--bar)" if item["ok"] else "var(--bad)"
        marks.append(
            f'<text x="0" y="{y + 16}">{"✓" if item["ok"] else "✗"} {escape(item["stage"])}</text>'
            f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{row - 8}" rx="3" fill="{color}"/>'
            f'<text x="{x + length + 7:.1f}" y="{y + 16}">{console.seconds(item["seconds"])}'
            f'<tspan class="soft" dx="8">{item["changed"]} changed</tspan></text>'
        )
    return _section("Stages", _svg(width, height, "stages over time", "".join(marks)))


def _svg(width: int, height: int, label: str, body: str) -> str:
    return f'<svg class="drawn" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _offset(run: Mapping[str, Any], stage: Mapping[str, Any]) -> float:
    from datetime import datetime

    first = min(item["started"] for item in run["stages"])
    return (datetime.fromisoformat(stage["started"]) - datetime.fromisoformat(first)).total_seconds()


def _ticks(total: float, count: int = 6) -> list[float]:
    """Round values from 0 to ``total``, about ``count`` of them."""
    if total <= 0:
        return [0.0]
    raw = total / count
    if raw > 30:
        step = next((s for s in (60, 120, 300, 600, 1200, 1800, 3600, 7200) if s >= raw), 3600 * math.ceil(raw / 3600))
    else:
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [step * index for index in range(int(total / step) + 1)]


def _clock(value: float) -> str:
    return f"{int(value // 60)}:{int(value % 60):02d}" if value >= 60 else f"{value:g} s"


def _findings(verdicts: Sequence[Mapping[str, Any]]) -> str:
    blocks = []
    for item in console.grouped(item for verdict in verdicts for item in verdict["findings"]):
        rows = [("evidence", f"<pre>{escape(item['evidence'])}</pre>")] if item["evidence"] else []
        rows += [(key, escape(item[key]).replace("\n", "<br>")) for key in ("cause", "fix") if item[key]]
        place = f"{item['id']} \N{MIDDLE DOT} {item['stage']} \N{MIDDLE DOT} {', '.join(item['hosts'])}"
        blocks.append(
            f'<div class="finding"><b class="{item["severity"]}">{item["severity"]}</b><b>{escape(item["summary"])}</b>'
            f'<div class="soft">{escape(place)}</div>'
            f"<dl>{''.join(f'<dt>{label}</dt><dd>{value}</dd>' for label, value in rows)}</dl></div>"
        )
    return _section("Findings", "".join(blocks) or "<div>None.</div>")


def _answer(run_dir: Path) -> str:
    record = _read(run_dir / "answer.json")
    if not isinstance(record, dict) or not record.get("text"):
        return ""
    prompt = f'<div class="soft">{escape(str(record["prompt"]))}</div>' if record.get("prompt") else ""
    return _section("An answer", f'{prompt}<p class="answer">{escape(str(record["text"]))}</p>')


def _fabric(run_dir: Path) -> str:
    """The table of nodes, the mesh as a heat map, and pairs that are good one way only (`ascent.fabric.verdict`)."""
    record = _read(run_dir / "fabric.json")
    if not isinstance(record, dict) or not isinstance(record.get("table"), dict):
        return ""
    table, matrix = record["table"], record.get("matrix") or {}
    numeric = [index for index, name in enumerate(table["columns"]) if name not in _FABRIC_WORDS]
    body = [_table(table["columns"], table["rows"], numeric=numeric), fabric_picture.heat_map(matrix)]
    uneven = fabric_picture.asymmetric(matrix)
    if uneven:
        shown = uneven[:_SHOWN_PAIRS]
        more = f" (the first {len(shown)} of {len(uneven)})" if len(uneven) > len(shown) else ""
        body.append(f"<h3>Pairs that differ by direction{more}</h3>")
        body.append(_table(["from", "to", "this way", "the other way"], shown))
    return _section("Fabric", "".join(body))


def _bench(path: Path) -> str:
    record = _read(path)
    if not isinstance(record, dict):
        return ""
    title = path.stem.replace("_", " ").capitalize()
    stamp = '<span class="stamp">simulated</span>' if record.get("simulated") else ""
    spread = {key: value for key, value in record.items() if isinstance(value, Mapping) and "p50" in value}
    columns = list(dict.fromkeys(name for value in spread.values() for name in value))
    rows = [(_label(key), *(value.get(name) for name in columns)) for key, value in spread.items()]
    body = [_table(["", *columns], rows, numeric=range(1, len(columns) + 1))] if rows else []
    rest = _figures({key: value for key, value in record.items() if key not in spread})
    pairs = [f"<div><span>{escape(k)}</span><span>{escape(_text(v))}</span></div>" for k, v in rest]
    body.append(f'<div class="figures">{"".join(pairs)}</div>')
    requests = [item for item in record.get("requests") or [] if isinstance(item, dict)]
    ttft = [float(item["ttft_ms"]) for item in requests if _number(item.get("ttft_ms"))]
    itl = [float(value) for item in requests for value in item.get("itl_ms") or [] if _number(value)]
    plots = [_histogram(ttft, "Time to first token (TTFT), ms"), _histogram(itl, "Time between tokens (ITL), ms")]
    body.append(f'<div class="plots">{"".join(plots)}</div>')
    body.append(_requests(requests))
    return f"<section><h2>{escape(title)}{stamp}</h2>{''.join(body)}</section>"


def _label(key: str) -> str:
    """``ttft_ms`` as "TTFT (ms)"."""
    name, _, unit = key.rpartition("_")
    return f"{name.upper()} ({unit})" if name else key


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _figures(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Numbers and short texts of a record as rows; nested dicts by dotted names, lists left out."""
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            rows += _figures(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and not (key == "simulated" and not prefix):
            rows.append((f"{prefix}{key}", value))
    return rows


def _histogram(values: Sequence[float], caption: str) -> str:
    """Counts over 24 equal bins, with median and 99th percentile marked; empty for fewer than two values."""
    if len(values) < 2:
        return ""
    ordered = sorted(values)
    low, high = ordered[0], max(ordered[-1], ordered[0] + 1e-6)
    bins = 24
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    width, height, base = 480, 190, 150
    step = width / bins
    bars = "".join(
        f'<rect x="{index * step + 0.5:.1f}" y="{base - count / max(counts) * 120:.1f}" width="{step - 1:.1f}" '
        f'height="{count / max(counts) * 120:.1f}" fill="var(--bar)"/>'
        for index, count in enumerate(counts)
    )
    lines = ""
    for name, quantile, y in (("median", 0.5, 12), ("p99", 0.99, 26)):
        value = ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)]
        x = (value - low) / (high - low) * width
        anchor, shift = ("end", -5) if x > width * 0.7 else ("start", 5)
        lines += (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8}" y2="{base}" stroke="var(--warn)" stroke-dasharray="4 3"/>'
            f'<text x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">{name} {value:,.1f}</text>'
        )
    axis = (
        f'<line x1="0" x2="{width}" y1="{base}" y2="{base}" stroke="var(--soft)"/>'
        f'<text class="soft" x="0" y="{base + 16}">{low:,.1f}</text>'
        f'<text class="soft" x="{width}" y="{base + 16}" text-anchor="end">{high:,.1f}</text>'
        f'<text class="soft" x="{width / 2}" y="{base + 32}" text-anchor="middle">{len(values)} values</text>'
    )
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f"{_svg(width, height, caption, bars + lines + axis)}</figure>"
    )


def _requests(requests: Sequence[Mapping[str, Any]]) -> str:
    """Each request as a bar over time: waiting for the first token, then streaming. The first 200 requests."""
    timed = [r for r in requests if _number(r.get("start_s")) and _number(r.get("end_s"))][:200]
    if not timed:
        return ""
    timed.sort(key=lambda item: item["start_s"])
    first = timed[0]["start_s"]
    total = max(0.001, max(item["end_s"] for item in timed) - first)
    width, row = 1080, max(4, min(14, 600 // len(timed)))
    height = row * len(timed) + 22
    scale = (width - 20) / total
    marks = [
        f'<line x1="{tick * scale:.1f}" x2="{tick * scale:.1f}" y1="0" y2="{height - 20}" stroke="var(--line)"/>'
        f'<text class="soft" x="{tick * scale + 2:.1f}" y="{height - 4}">{_clock(tick)}</text>'
        for tick in _ticks(total)
    ]
    for index, item in enumerate(timed):
        y = index * row
        start = (item["start_s"] - first) * scale
        end = (item["end_s"] - first) * scale
        wait = min(end, start + (item["ttft_ms"] / 1000 * scale if _number(item.get("ttft_ms")) else 0))
        color = "var(--bad)" if item.get("error") else "var(--bar)"
        marks.append(_bar(start, y, wait - start, row - 1, "var(--bar2)") + _bar(wait, y, end - wait, row - 1, color))
    cut = f" (the first {len(timed)} of {len(requests)})" if len(requests) > len(timed) else ""
    return (
        f"<figure><figcaption>Requests over time{cut}: until the first token, then streaming; failed ones in red"
        f"</figcaption>{_svg(width, height, 'requests over time', ''.join(marks))}</figure>"
    )


def _bar(x: float, y: int, width: float, height: int, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{max(0.5, width):.1f}" height="{height}" fill="{color}"/>'


def _plan(plan: Mapping[str, Any] | None) -> str:
    if plan is None:
        return ""
    # A report has to come out even for a plan that this version can't draw, such as one of an older run.
    try:
        from ascent_controller import plan_picture

        picture = f'<div class="wide">{_XML_HEAD.sub("", plan_picture.svg(dict(plan)))}</div>'
    except Exception as error:
        picture = (
            f'<div class="warning">The plan could not be drawn: {escape(f"{type(error).__name__}: {error}")}</div>'
        )
    rows = [
        (
            process["name"],
            process["host"],
            process["role"],
            _ranges(process.get("devices") or []),
            ", ".join(
                f"{port['name']} {port['first']}"
                + (f"-{port['first'] + port['count'] - 1}" if port["count"] > 1 else "")
                for port in process.get("ports") or []
            ),
        )
        for process in plan.get("processes") or []
    ]
    return _section("Plan", picture + _table(["process", "host", "role", "devices", "ports"], rows))


def _ports(port: Mapping[str, Any]) -> str:
    last = f"-{port['first'] + port['count'] - 1}" if port["count"] > 1 else ""
    return f"{port['name']} {port['first']}{last}"


def _ranges(numbers: Sequence[int]) -> str:
    if not numbers:
        return "-"
    ordered = sorted(numbers)
    whole = ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 2
    return f"{ordered[0]}-{ordered[-1]}" if whole else ", ".join(map(str, ordered))


def _hosts(run: Mapping[str, Any]) -> str:
    keys = ("ok", "changed", "failed", "unreachable", "skipped", "rescued", "ignored")
    rows = [[name, *(counts.get(key, 0) for key in keys)] for name, counts in run["hosts"].items()]
    return _section("Hosts", _table(["host", *keys], rows, numeric=range(1, 8))) if rows else ""


def _tasks(run: Mapping[str, Any]) -> str:
    slowest = sorted(run.get("tasks") or [], key=lambda item: -item["seconds"])[:12]
    rows = [(t["name"], t["stage"], t["hosts"], t["changed"], console.seconds(t["seconds"])) for t in slowest]
    if not rows:
        return ""
    return _section("Slowest tasks", _table(["task", "stage", "hosts", "changed", "time"], rows, numeric=[2, 3, 4]))


def _logs(run_dir: Path) -> str:
    """The end of each process's log, folded away."""
    blocks = []
    for path in sorted((run_dir / "logs").glob("*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-60:])
        blocks.append(
            f"<details><summary>{escape(path.stem)}: last {min(60, len(lines))} of {len(lines)} lines</summary>"
            f"<pre>{escape(tail)}</pre></details>"
        )
    return _section("Logs", "".join(blocks))


def _memory(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """What one device of every pool needs, in GiB, and how that was reckoned (`rules.memory_metrics`)."""
    found: dict[str, Mapping[str, Any]] = {}
    for verdict in verdicts:
        found |= verdict["metrics"].get("memory") or {}
    rows = []
    for pool, one in found.items():
        sizes = [one.get(f"{key}_bytes") for key in ("budget", "weights", "overhead", "kv", "sequence")]
        told = [None if size is None else size / 2**30 for size in sizes]
        rows.append((pool, *told, one.get("sequences"), one["arithmetic"] if one["known"] else one["reason"]))
    columns = [
        "pool",
        "usable",
        "weights",
        "buffers",
        "left for KV cache",
        "longest request",
        "of these fit",
        "reckoned",
    ]
    return _section("Memory of one device, GiB", _table(columns, rows, numeric=range(1, 7)) if rows else "")


def _nodes(run_dir: Path) -> str:
    """What preflight saw of each node (``nodes.json``): a table as `ascent.preflight.overview` makes it."""
    table = _read(run_dir / "nodes.json")
    if not isinstance(table, dict) or not table.get("rows"):
        return ""
    rows = [["-" if cell is None else cell for cell in row] for row in table["rows"]]
    return _section(str(table["title"]), _table(table["columns"], rows))


def _versions(run: Mapping[str, Any], plan: Mapping[str, Any] | None, verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = list((run.get("versions") or {}).items())
    if plan:
        engine = plan.get("engine") or {}
        rows += [(str(engine.get("name")), engine.get("version")), ("image", engine.get("image"))]
        rows += [("plan", str(plan.get("hash") or "-")[:12])]
    for verdict in verdicts:
        versions = verdict["metrics"].get("versions")
        if isinstance(versions, dict):
            rows += _figures(versions)
    return _section("Versions", _table(["what", "version"], rows))
