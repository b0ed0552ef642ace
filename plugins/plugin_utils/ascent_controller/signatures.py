"""Reads the catalogue of fault signatures, ``catalog/findings/*.yml``, for `ascent.diagnosis`."""

from __future__ import annotations

__all__ = ["DIRECTORY", "checks", "load"]

import re
from pathlib import Path
from typing import Any

import yaml

from ascent.diagnosis import RANKS
from ascent.errors import InputError
from ascent.findings import SEVERITIES, finding

#: Where the catalogue lies in a checkout.
DIRECTORY = Path(__file__).resolve().parents[3] / "catalog" / "findings"

_REQUIRED = {"id", "name", "rank", "severity", "stage", "summary", "signatures", "cause", "fix", "source"}
_OPTIONAL = {"fatal", "below", "exit_codes"}
_STAGES = ("preflight", "provision", "tune", "verify", "launch", "check", "run")


def load(directory: Path = DIRECTORY) -> dict[str, list[Any]]:
    """The catalogue in the shape that `ascent.diagnosis` documents, all files merged in the order of their names.

    Raises InputError with one finding for each malformed entry, unknown rank or regex that does not compile.
    """
    catalogue: dict[str, list[Any]] = {"findings": [], "wrappers": []}
    mistakes: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for path in sorted(directory.glob("*.yml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for pattern in content.get("wrappers", []):
            mistakes += _bad_pattern(path.name, "wrappers", pattern)
            catalogue["wrappers"].append(pattern)
        for entry in content.get("findings", []):
            name = str(entry.get("id"))
            problems = _problems(entry)
            if name in seen:
                problems.append(f"the id is also in {seen[name]}")
            seen[name] = path.name
            mistakes += [_mistake(f"{path.name}: {name}: {problem}") for problem in problems]
            for pattern in entry.get("signatures", []):
                mistakes += _bad_pattern(path.name, name, pattern)
            catalogue["findings"].append(entry)
    if not catalogue["findings"]:
        mistakes.append(_mistake(f"{directory} holds no findings"))
    if mistakes:
        raise InputError(mistakes)
    return catalogue


def checks(directory: Path = DIRECTORY) -> list[dict[str, Any]]:
    """What stages find by looking at the nodes themselves: the ``checks`` of all files, in their order."""
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.yml"))]
    return [entry for content in contents for entry in content.get("checks", [])]


def _problems(entry: dict[str, Any]) -> list[str]:
    problems = []
    if missing := sorted(_REQUIRED - entry.keys()):
        problems.append(f"keys are missing: {', '.join(missing)}")
    if unknown := sorted(entry.keys() - _REQUIRED - _OPTIONAL):
        problems.append(f"unknown keys: {', '.join(unknown)}")
    for key, legal in (("rank", RANKS), ("severity", SEVERITIES), ("stage", _STAGES)):
        if key in entry and entry[key] not in legal:
            problems.append(f"{key} is {entry[key]!r}, not one of {', '.join(legal)}")
    return problems


def _bad_pattern(file: str, name: str, pattern: str) -> list[dict[str, Any]]:
    try:
        re.compile(pattern)
    except re.error as error:
        return [_mistake(f"{file}: {name}: {pattern!r} is no regex: {error}")]
    return []


def _mistake(summary: str) -> dict[str, Any]:
    return finding("catalogue-malformed", "error", summary, fix="Correct the file under catalog/findings.")
