#!/usr/bin/env python3
"""Write docs/reference/verify.md from the role's argument specification, the shared variables and a text.

python tools/verify_reference.py            write it
python tools/verify_reference.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import reference_page
import yaml

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference" / "verify.md"
TEMPLATE = ROOT / "tools" / "verify_reference.md"
SHARED = ROOT / "group_vars" / "all" / "ascent.yml"
ROLE = ROOT / "roles" / "fabric" / "meta" / "argument_specs.yml"
HARDWARE = ROOT / "catalog" / "hardware"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """An argument specification's words without Ansible's markup."""
    return re.sub(r"[A-Z]\(([^)]*)\)", r"`\1`", text)


def _value(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`" if value not in ("", [], {}) else "none"


def shared() -> list[str]:
    """Rows of the variables that begin with ``verify``: the comment above each is its meaning."""
    rows, comment = [], []
    for line in SHARED.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(": ")
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif re.fullmatch(r"verify(_\w+)?", name):
            rows.append(_row(f"`{name}`", f"`{value.strip('"')}`", " ".join(comment)))
        if not line.startswith("#"):
            comment = []
    return rows


def role() -> list[str]:
    """Rows of the role's own variables."""
    options = yaml.safe_load(ROLE.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
    rows = []
    for name, option in options.items():
        choices = f" One of {', '.join(f'`{one}`' for one in option['choices'])}." if "choices" in option else ""
        rows.append(_row(f"`{name}`", _value(option.get("default", "")), _plain(option["description"]) + choices))
    return rows


def floors() -> list[str]:
    """Rows of the least bandwidths, with where each comes from."""
    rows = []
    for path in sorted(HARDWARE.glob("*.yml")):
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows += [
            _row(f"`{profile['name']}`", one["phase"], one["collective"], f"{one['gbs']:g}", one["source"])
            for one in profile.get("collectives") or ()
        ]
    return rows


def document() -> str:
    """The page, as it should be."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for mark, rows in (("SHARED", shared()), ("ROLE", role()), ("FLOORS", floors())):
        text = text.replace(f"<!-- {mark} -->", "\n".join(rows))
    return text


def main() -> int:
    """Write or check the page."""
    return reference_page.keep(TARGET, document(), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
