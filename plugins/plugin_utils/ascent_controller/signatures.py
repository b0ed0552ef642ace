"""Reads the catalogue of faults, ``catalog/findings/*.yml``: signatures for `ascent.diagnosis`, and what checks say."""

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
_CHECK_REQUIRED = {"id", "about", "severity", "example", "cause", "fix", "source"}
_CHECK_OPTIONAL = {"repair", "name", "summary"}
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


def checks(directory: Path = DIRECTORY, of: str = "*") -> list[dict[str, Any]]:
    """What stages tell without a log to search, in the order of the files: the entries under ``checks``.

    ``of`` names one file, without its ending. Raises InputError with one finding for each malformed entry.
    """
    found: list[dict[str, Any]] = []
    mistakes: list[dict[str, Any]] = []
    for path in sorted(directory.glob(f"{of}.yml")):
        seen: set[Any] = set()
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")).get("checks", []):
            problems = _key_problems(entry, _CHECK_REQUIRED, _CHECK_OPTIONAL)
            # What it depends on decides between two of them.
            if set(str(entry.get("severity")).split(" or ")) - set(SEVERITIES):
                problems.append(f"severity is {entry.get('severity')!r}, not one of {', '.join(SEVERITIES)}")
            # One fault may show in several things that are looked at.
            place = (entry.get("id"), entry.get("about"))
            if place in seen:
                problems.append("the id is there twice")
            seen.add(place)
            mistakes += [_mistake(f"{path.name}: {entry.get('id')}: {problem}") for problem in problems]
            found.append(entry)
    if mistakes:
        raise InputError(mistakes)
    return found


def _key_problems(entry: dict[str, Any], required: set[str], optional: set[str]) -> list[str]:
    problems = []
    if missing := sorted(required - entry.keys()):
        problems.append(f"keys are missing: {', '.join(missing)}")
    if unknown := sorted(entry.keys() - required - optional):
        problems.append(f"unknown keys: {', '.join(unknown)}")
    return problems


def _problems(entry: dict[str, Any]) -> list[str]:
    problems = _key_problems(entry, _REQUIRED, _OPTIONAL)
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
