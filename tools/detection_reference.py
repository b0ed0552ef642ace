#!/usr/bin/env python3
"""Write docs/reference/detection.md from the last measured run of tests/diagnosis.

python tools/detection_reference.py            write it
python tools/detection_reference.py --check    exit 1 if it is out of date, or lacks a case of the suite

To measure anew: ASCENT_MEASURED=tests/diagnosis/measured.json pytest tests/diagnosis
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import reference_page

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference" / "detection.md"
MEASURED = ROOT / "tests" / "diagnosis" / "measured.json"

INTRODUCTION = """\
# Faults, and how soon each is named

Each row is a fault of the catalogue, brought about on a cluster that serves, and one ordinary run of `deploy.yml`
that ends in the finding of that row: its id, the host at fault and the repair. None of them ends in a time-out of
Ansible or in a bare traceback. `tests/diagnosis` holds the rows and runs them.

Seconds count from the first sign to the finding:

- *log line*: the stamp of the line in the container's log on its node. What Ansible needs to start the other nodes'
  containers, before the watch begins, is part of it.
- *last progress*: where nothing is written any more, the limit (`engine_stall_seconds`, 15 in this row) is part of it.
- *start of the stage*, *start of the run*: the fault was there before anybody looked, so the seconds are those that an
  operator waits, with whatever the stages have to read and measure by then.

Measured on {cores} cores ({processor}), on which {nodes} nodes, their engines and the controller take turns, beside
other work: the last column is the load of the machine, of which {cores} is all that it can do at once. Engines and
devices are simulated.

`bench/launch.py` measures the watch alone, with faults that come when it has begun, as those of real engines do: these
take longer to start. With nothing else to do, the same machine told that a launch over three nodes was ready 0.1 to
0.3 seconds after it was (3 launches), and named a fatal line or a silent end after 0.8 to 1.2 seconds (6 faults;
2026-11-21).

This page is generated: `python tools/detection_reference.py`.
"""

STAGES = {
    "plan": "From the inventory and the recipe, before any node is touched",
    "preflight": "From one reading of every node",
    "provision": "While the nodes get what they lack",
    "verify": "Measured between the nodes",
    "launch": "While the engines start",
    "check": "With the first requests",
}


def document() -> str:
    """The page, as it should be."""
    from tests.diagnosis.cases import CASES

    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    missing = [case.name for case in CASES if case.name not in measured["cases"]]
    if missing:
        sys.exit(f"{MEASURED.relative_to(ROOT)} lacks {', '.join(missing)}: measure them, see --help")
    names = _names()
    rows = [(case, measured["cases"][case.name]) for case in CASES]
    text = INTRODUCTION.format(**measured["machine"])
    text += f"\n{len(rows)} rows. {_summary(rows)}\n"
    for stage, title in STAGES.items():
        mine = [(case, told) for case, told in rows if case.stage == stage]
        if not mine:
            continue
        text += f"\n## {title}\n\n| Fault | Brought about | Finding | Host | First sign | Seconds | Measured | Load |\n"
        text += "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        for case, told in mine:
            cells = [
                f"{case.fault} {names[case.fault]}",
                _how(case),
                f"`{told['finding']}`: {told['summary']}",
                told["host"] or "-",
                told["sign"],
                f"{told['seconds']:.1f}",
                told["date"],
                f"{told['load']:.0f}",
            ]
            text += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    return text


def _summary(rows: list[tuple[Any, dict[str, Any]]]) -> str:
    lines = [told["seconds"] for _, told in rows if told["sign"] == "log line"]
    return (
        f"From the fatal line to the finding: median {statistics.median(lines):.1f} s, "
        f"most {max(lines):.1f} s, over {len(lines)} rows."
    )


def _names() -> dict[str, str]:
    """Names of faults by id: the catalogue's, and those of the sandbox."""
    from ascent_controller import signatures
    from sandbox.faults.control import FAULTS

    known = {entry["id"]: entry["name"] for entry in signatures.load()["findings"]}
    return {**{fault.id: fault.name for fault in FAULTS.values()}, **known}


def _how(case: Any) -> str:
    if case.recipe:
        return "recipe: " + ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in case.recipe.items())
    return f"`sandbox/fault {' '.join([case.node, case.fault, *case.arguments])}`"


def main() -> int:
    """Write or check the page."""
    sys.path[:0] = [str(ROOT), str(ROOT / "module_utils"), str(ROOT / "plugins" / "plugin_utils")]
    return reference_page.keep(TARGET, document(), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
