#!/usr/bin/env python3
"""Write docs/reference/rules.md from the catalogue of rules.

python tools/rules_reference.py            write it
python tools/rules_reference.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

import reference_page

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference" / "rules.md"

INTRODUCTION = """\
# Rules

What can't work is refused before a host is touched: recipe, hardware profile, hosts and catalogue decide it. All broken
rules are reported together, each with file and line, key, value, what is allowed, and the fix. An `error` ends the run;
a `warning` doesn't. A rule whose facts aren't known (the model isn't in `catalog/models/`, the image's tag names no
version) is silent.

A recipe may break a rule on purpose and say why. The finding then becomes information, and the reason shows in the
report:

```yaml
waive:
  kv-port-in-transport-window: the image's Mooncake 0.3.9 draws from 20000-21600, which stays clear of it
```

Rules marked "not waivable" leave no plan at all, or one that can't start.

This page is generated: `python tools/rules_reference.py`. `seed:` ids are rows of the acceptance list.
"""

MEMORY = """\
## The memory estimate

`memory-weights` and `memory-kv-cache` show their arithmetic in the finding. For one device, from public figures alone:

- weights: parameters * bytes of their precision / (tensor * pipeline) ranks; routed experts are spread over all data
  parallel copies too; embeddings of W8A8 weights stay at two bytes;
- buffers: two of `HCCL_BUFFSIZE` (200 MB unless set) for each kind of group with more than one member;
- hidden states of one step: max-num-batched-tokens * hidden size * 2 bytes, in and out;
- KV cache of a token: 2 * layers that keep it / pipeline * heads of one rank * head size * bytes of `kv-cache-dtype`;
- room for KV cache: device memory * gpu-memory-utilization, less all of the above.

Captured graphs, other activations and the runtime's own memory have no public formula and are left out, so every
figure is a lower bound: "doesn't fit" is certain, "fits" is not.
"""


def document() -> str:
    """The page, as it should be."""
    sys.path[:0] = [str(ROOT / "module_utils")]
    from ascent import rules
    from ascent.rules import live

    parts = [INTRODUCTION]
    rows: dict[str, list[str]] = {}
    for title, checks in rules.GROUPS:
        lines = [f"## {title}", "", "| Rule | Asks for | Why | Binds | Source |", "| --- | --- | --- | --- | --- |"]
        for rule in (rule for one in checks for rule in one.rules):
            name = f"`{rule.id}`<br>{rule.severity}" + ("" if rule.id in rules.WAIVABLE else ", not waivable")
            source = rule.source + "".join(f"<br>`seed:{row}`" for row in rule.rows)
            lines.append(_row(name, rule.demand, rule.reason, rule.scope, source))
            for row in rule.rows:
                rows.setdefault(row, []).append(f"`{rule.id}`")
        parts.append("\n".join(lines) + "\n")
    parts.append(MEMORY)
    lines = [
        "## What only live hosts can tell",
        "",
        "| Stage | Asks for | Source |",
        "| --- | --- | --- |",
    ]
    for item in live.LIVE:
        lines.append(_row(item.stage, item.demand, item.source + "".join(f"<br>`seed:{row}`" for row in item.rows)))
        for row in item.rows:
            rows.setdefault(row, []).append(f"stage {item.stage}")
    parts.append("\n".join(lines) + "\n")
    for title, word, entries in (
        ("What the plan makes true by itself", "by construction", live.BY_CONSTRUCTION),
        ("Advice that no figure decides", "advice", live.UNDECIDED),
    ):
        lines = [f"## {title}", ""]
        for text, named in entries:
            lines.append(f"- {text} ({', '.join(f'`seed:{row}`' for row in named)})")
            for row in named:
                rows.setdefault(row, []).append(word)
        parts.append("\n".join(lines) + "\n")
    lines = ["## Rows of the acceptance list", "", "| Row | Decided by |", "| --- | --- |"]
    lines += [_row(f"`seed:{row}`", ", ".join(dict.fromkeys(rows[row]))) for row in sorted(rows, key=_natural)]
    parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _natural(row: str) -> tuple[str, int]:
    letters = row.rstrip("0123456789")
    return letters, int(row[len(letters) :] or 0)


def main() -> int:
    """Write or check the page."""
    return reference_page.keep(TARGET, document(), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
