"""Mistakes in inventory, recipe or catalogue, before they become findings with a file and a line.

A mistake knows the key path of the value at fault; `as_finding` adds the position that the loader recorded for it.
"""

from __future__ import annotations

__all__ = ["as_finding", "closest", "mistake", "position_of"]

import difflib
import json
from typing import Any, Dict, Iterable, List, Mapping, Optional

from .findings import finding

_MISSING = object()


def mistake(
    rule: str,
    summary: str,
    *,
    key: str,
    value: Any = _MISSING,
    allowed: str,
    fix: str,
    severity: str = "error",
    host: Optional[str] = None,
    cause: str = "",
) -> Dict[str, Any]:
    """One mistake. ``key`` is a path such as ``recipe:pools.decode.nodes`` or ``host:a3-01.node_ip``.

    ``allowed`` says in words or values what would be right. ``value`` left out means that the key is not there.
    """
    shown = "not set" if value is _MISSING else json.dumps(value, ensure_ascii=False, default=str)
    return {
        "rule": rule,
        "summary": summary,
        "key": key,
        "value": shown,
        "allowed": allowed,
        "fix": fix,
        "severity": severity,
        "host": host,
        "cause": cause,
    }


def position_of(key: str, positions: Mapping[str, str]) -> str:
    """``file:line`` of a key path, or of the nearest enclosing key that the loader saw; empty if it saw none.

    >>> position_of("recipe:pools.decode.nodes", {"recipe:pools.decode": "recipes/x.yml:9"})
    'recipes/x.yml:9'
    """
    kind, _, path = key.partition(":")
    parts = path.split(".") if path else []
    # A key may itself contain dots (LD_LIBRARY_PATH never does, but host names do), so try the longest prefix first.
    for length in range(len(parts), -1, -1):
        found = positions.get(kind + ":" + ".".join(parts[:length]))
        if found:
            return found
    return ""


def as_finding(item: Mapping[str, Any], positions: Optional[Mapping[str, str]] = None) -> Dict[str, Any]:
    """The finding of one mistake: position, key, value and what is allowed go into ``evidence``."""
    place = position_of(item["key"], positions or {})
    kind, _, path = item["key"].partition(":")
    key = path or kind
    evidence = f"{place or kind}: {key} = {item['value']}; allowed: {item['allowed']}"
    return finding(
        item["rule"],
        item["severity"],
        item["summary"],
        host=item["host"],
        evidence=evidence,
        cause=item["cause"],
        fix=item["fix"],
    )


def closest(name: str, known: Iterable[str], count: int = 3, alike: float = 0.6) -> List[str]:
    """The known names that look most like ``name``, best first; empty when none is ``alike`` (0 to 1) enough."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=alike)
