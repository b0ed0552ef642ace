"""A page under docs/reference that is made from data: written, or with `--check` compared with what it should be."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def keep(target: Path, text: str, arguments: list[str]) -> int:
    """Write ``text`` to ``target``, or with ``--check`` in ``arguments`` return 1 where it is out of date."""
    if "--check" not in arguments:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return 0
    made_by = Path(sys.argv[0]).name
    print(f"{target.relative_to(ROOT)} is out of date; run python tools/{made_by}", file=sys.stderr)
    return 1
