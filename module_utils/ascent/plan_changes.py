"""What a changed recipe changes on which node: two plans compared, process by process."""

from __future__ import annotations

__all__ = ["between", "lines"]

from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

#: Parts of a process that are compared as a whole.
_PARTS = ("kind", "host", "devices", "source", "unset", "files", "wait", "ports")


def between(old: Mapping[str, Any], new: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """One entry for each process or job that is new, gone or changed, in the order of the new plan; the gone ones last.

    ``{"host", "process", "change": "new" | "gone" | "changed", "details": [text, ...]}``. A process that moved to
    another host is gone there and new here.
    """
    before, after = _by_place(old), _by_place(new)
    result = []
    for place, process in after.items():
        if place not in before:
            result.append(_entry(place, "new"))
        elif process.get("definition") != before[place].get("definition"):
            result.append(_entry(place, "changed", list(_details(before[place], process))))
    result += [_entry(place, "gone") for place in before if place not in after]
    return result


def lines(changes: Sequence[Mapping[str, Any]]) -> List[str]:
    """The changes as text, one line each.

    >>> lines([{"host": "n1", "process": "router", "change": "changed", "details": ["--port 9000 -> 9001"]}])
    ['n1: router changed: --port 9000 -> 9001']
    """
    return [
        ": ".join(filter(None, (one["host"], f"{one['process']} {one['change']}", "; ".join(one["details"]))))
        for one in changes
    ]


def _by_place(plan: Mapping[str, Any]) -> Dict[Tuple[str, str], Mapping[str, Any]]:
    processes = [*plan.get("processes", []), *plan.get("jobs", [])]
    return {(process["host"], process["name"]): process for process in processes}


def _entry(place: Tuple[str, str], change: str, details: Optional[List[str]] = None) -> Dict[str, Any]:
    return {"host": place[0], "process": place[1], "change": change, "details": details or []}


def _details(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    yield from _differences(_words(old), _words(new))
    yield from _differences(_variables(old), _variables(new))
    for part in _PARTS:
        if old.get(part) != new.get(part):
            yield f"{part} changed"
    boxes = old.get("container") or {}, new.get("container") or {}
    for key in {**boxes[0], **boxes[1]}:
        if boxes[0].get(key) != boxes[1].get(key):
            yield f"container {key} changed"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for key in {**old, **new}:
        if key not in new:
            yield f"without {_shown(key, old[key])}"
        elif key not in old:
            yield f"with {_shown(key, new[key])}"
        elif old[key] != new[key]:
            yield f"{_shown(key, old[key])} -> {new[key] or 'on'}"


def _shown(key: str, value: str) -> str:
    return f"{key} {value}".rstrip() if key.startswith("-") else f"{key}={value}"


def _words(process: Mapping[str, Any]) -> Dict[str, str]:
    """Script lines of the command by their first word; a word that comes again is numbered."""
    result: Dict[str, str] = {}
    for number, words in enumerate(process.get("argv", [])):
        key = words[0] if words[0] not in result else f"{words[0]}#{number}"
        result[key] = " ".join(words[1:])
    return result


def _variables(process: Mapping[str, Any]) -> Dict[str, str]:
    return {
        item["name"]: item["value"] if "value" in item else f"{item['prepend']}:..." for item in process.get("env", [])
    }
