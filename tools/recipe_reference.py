#!/usr/bin/env python3
"""Write docs/reference/recipe.md from recipes/schema.json and tools/recipe_reference.md.

    python tools/recipe_reference.py            write it
    python tools/recipe_reference.py --check    exit 1 if it is out of date

The template holds the prose and the examples; a line `<!-- keys: NAME -->` is replaced by the table of that part of
the schema (`recipe` for the top level, else a name below `$defs`), `<!-- references -->` by the plan values that a
recipe may refer to.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import reference_page

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference" / "recipe.md"


def document() -> str:
    """The page, as it should be."""
    schema = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))
    template = (ROOT / "tools" / "recipe_reference.md").read_text(encoding="utf-8")
    return re.sub(r"<!-- (\w+)(?:: (\w+))? -->", lambda match: _part(schema, match.group(1), match.group(2)), template)


def _part(schema: dict[str, Any], what: str, name: str | None) -> str:
    if what == "keys":
        complete = schema["$defs"]["complete"]
        if name == "recipe":
            return _table(schema, schema, complete["required"])
        parts = complete["properties"]
        needs = parts.get(name) or parts.get(f"{name}s", {}).get("additionalProperties", {})
        return _table(schema, schema["$defs"][name], needs.get("required", []))
    sys.path[:0] = [str(ROOT / "module_utils")]
    from ascent import references

    rows = [f"| `{{{{ plan.{key} }}}}` | {meaning} | {where} |" for key, where, meaning in references.documented()]
    return "\n".join(["| Reference | Value | Where |", "| --- | --- | --- |", *rows])


def _table(schema: dict[str, Any], part: dict[str, Any], complete: list[str]) -> str:
    needed = {*part.get("required", []), *complete}
    rows = ["| Key | Values | Meaning | Default |", "| --- | --- | --- | --- |"]
    for key, given in part["properties"].items():
        base = schema["$defs"][given["$ref"].rpartition("/")[2]] if "$ref" in given else {}
        entry = {**base, **{name: value for name, value in given.items() if name != "$ref"}}
        default = f"`{_spelled(entry['default'])}`" if "default" in entry else "required" if key in needed else ""
        rows.append(f"| `{key}` | {_values(entry)} | {entry.get('description', '')} | {default} |")
    return "\n".join(rows)


def _values(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "oneOf" in entry:
        return " or ".join(_values(one) for one in entry["oneOf"])
    if entry.get("type") == "array":
        items = entry.get("items", {})
        return "list of " + ("mappings" if "$ref" in items or items.get("type") == "object" else f"{items['type']}s")
    words = {"string": "text", "object": "mapping", "boolean": "true, false", "integer": "number", "number": "number"}
    return words[entry["type"]]


def _spelled(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value or '""'


def main() -> int:
    """Write or check the page."""
    return reference_page.keep(TARGET, document(), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
