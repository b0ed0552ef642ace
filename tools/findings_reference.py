#!/usr/bin/env python3
"""Write docs/reference/findings.md from the catalogue of fault signatures.

python tools/findings_reference.py            write it
python tools/findings_reference.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import reference_page

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference" / "findings.md"

INTRODUCTION = """\
# Findings: faults that logs tell of, and what the fabric gate finds

While a launch is watched, every line of every process is held against these signatures; after a failure all logs are
searched and the first cause in time is named. In one log the kind decides: a missing library explains a timeout and
never the reverse (library, device, port, interface, memory, link, timeout, generic). Lines that only repeat that
something else failed are never a cause. A line that isn't fatal by itself ends no launch.

Ids and names are those of the fault catalogue. Stage: where a check can stop it first.

This page is generated from `catalog/findings/`: `python tools/findings_reference.py`.
"""

PREFLIGHT = """\
## What preflight tells

Before anything is touched, the stage preflight compares the plan with the nodes and tells all of this at once, with the
host it is about. Where a later stage of the same run puts it right, it is information and stops nothing. What a finding
says is what was seen; these are examples.
"""

FABRIC = """\
## What the fabric gate finds

The stage `verify` reads every device and measures between them. It tells one finding for a fault, with the host and
the devices at fault, and leaves out what follows from it. Where it says "error or warning", RoCE decides: on A3 it
counts as an error where containers read the RoCE addresses (KV transfer) or the hosts are of several super pods.
"""

CHECK = """\
## What checks and upgrades find

The stage `check` asks the service as its clients do, then every rank by itself, and reads the engines' own counters
before and after. An answer with HTTP 200 that is wrong or empty counts as a failure. `upgrade.yml` asks the same.
"""

FAMILIES = {
    "A": "Device access, driver, firmware",
    "B": "Versions, images, packages",
    "C": "HCCL and the network of the accelerators",
    "D": "Launch, ports, processes, memory",
    "E": "Prefill and decode apart, KV store",
    "F": "Ray",
}


def document() -> str:
    """The page, as it should be."""
    sys.path[:0] = [str(ROOT / "module_utils"), str(ROOT / "plugins" / "plugin_utils")]
    from ascent_controller import signatures

    catalogue = signatures.load(ROOT / "catalog" / "findings")
    lines = [INTRODUCTION]
    for letter, title in FAMILIES.items():
        lines += [
            f"## {title}\n",
            "| Id | What | Cause | Fix | Stage | Source |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        entries = [entry for entry in catalogue["findings"] if entry["id"].startswith(letter)]
        lines += [_row(entry) for entry in sorted(entries, key=lambda entry: str(entry["id"]))]
        lines.append("")
    lines += [
        PREFLIGHT,
        *_checks(signatures.checks(of="preflight")),
        "",
        FABRIC,
        *_checks(signatures.checks(of="fabric")),
        "",
        CHECK,
        *_checks(signatures.checks(of="check")),
        "",
    ]
    lines += ["## Lines that are never a cause\n", *(f"- `{pattern}`" for pattern in catalogue["wrappers"])]
    return "\n".join(lines) + "\n"


def _row(entry: dict[str, Any]) -> str:
    fatal = "" if entry.get("fatal", entry["severity"] == "error") else ", not fatal by itself"
    cells = [
        f"**{entry['id']}** {entry['name']}",
        f"{entry['summary']}<br>{entry['rank']}{fatal}",
        entry["cause"],
        entry["fix"],
        entry["stage"],
        entry["source"],
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _checks(entries: list[dict[str, Any]]) -> list[str]:
    """A table of what a stage tells; who puts it right is said where that is a later stage of the same run."""
    lines = ["| Id | Reads like | Worst | Cause | Fix | Source |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in entries:
        name = entry.get("name", entry["id"])
        what = f"{entry['summary']}<br>{entry['example']}" if "summary" in entry else entry["example"]
        fix = (
            f"{entry['fix']} In a full run the stage {entry['repair']} does it." if "repair" in entry else entry["fix"]
        )
        title = f"**{entry['id']}**" + (f" {name}" if name != entry["id"] else "")
        cells = [title, what, entry["severity"], entry["cause"], fix, entry["source"]]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return lines


def main() -> int:
    """Write or check the page."""
    return reference_page.keep(TARGET, document(), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
