#!/usr/bin/env python3
"""Read the keys of --additional-config out of vLLM-Ascend source trees, without running any of them.

    python catalog/engine_options/additional_config.py 0.21=TREE 0.23=TREE ... > catalog/engine_options/vllm-ascend.json

TREE is a folder that holds `vllm_ascend/` and `docs/` of that release. The plugin takes any key and reads those it
knows, so an unknown one is lost in silence. `releases` lists for each release the keys that its code reads or its
guide names; `sections` lists the keys below those whose value is a mapping, of all releases together.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

READS = tuple(
    re.compile(pattern)
    for pattern in (
        r"additional_config\s*\.get\(\s*[\"'](\w+)",
        r"additional_config\[\s*[\"'](\w+)",
        r"[\"'](\w+)[\"']\s+(?:not )?in\s+[\w.]*additional_config",
        r"_get_config_value\(\s*(?:scheduler_config,\s*)?additional_config,\s*[\"'](\w+)",
    )
)
GUIDE = "docs/source/user_guide/configuration/additional_config.md"
ROW = re.compile(r"^\|\s*`([a-zA-Z]\w*)`\s*\|", re.MULTILINE)
SECTION = re.compile(
    r"^\*\*(?:[a-z_]+\.)?([a-z_]+)\*\*\s*\n(.*?)(?=^\*\*[\w.]+\*\*\s*$|^#|\Z)", re.MULTILINE | re.DOTALL
)


def keys_of(tree: Path) -> set[str]:
    """Keys that a release reads, or that its guide names in the table of options."""
    found: set[str] = set()
    for file in sorted((tree / "vllm_ascend").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "additional_config" in text:
            found.update(key for read in READS for key in read.findall(text))
    table = _guide(tree).partition("The details of each")[0].partition("### Configuration options")[2]
    return found | set(ROW.findall(table))


def sections_of(tree: Path) -> dict[str, set[str]]:
    """Keys inside the options that are mappings, as the guide lists them."""
    return {name: set(ROW.findall(body)) for name, body in SECTION.findall(_guide(tree)) if ROW.search(body)}


def _guide(tree: Path) -> str:
    path = tree / GUIDE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def table(trees: dict[str, Path]) -> dict[str, object]:
    """The whole table; releases in order of their numbers."""
    releases: dict[str, list[str]] = {}
    sections: dict[str, set[str]] = {}
    for release in sorted(trees, key=lambda text: [int(part) for part in text.split(".")]):
        releases[release] = sorted(keys_of(trees[release]))
        for name, keys in sections_of(trees[release]).items():
            sections.setdefault(name, set()).update(keys)
    return {
        "schema": 1,
        "engine": "vllm-ascend",
        "origin": "sources and configuration guides of the releases",
        "releases": releases,
        "sections": {name: sorted(keys) for name, keys in sorted(sections.items())},
    }


def main() -> None:
    """Write the table to standard output."""
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if not given or not all(given.values()):
        sys.exit("usage: additional_config.py RELEASE=TREE ...")
    print(json.dumps(table({release: Path(path) for release, path in given.items()}), indent=1))


if __name__ == "__main__":
    main()
