"""The engine's own counters, from its ``/metrics`` page (Prometheus's text format, version 0.0.4)."""

from __future__ import annotations

__all__ = ["COUNTERS", "totals"]

import re
from typing import Dict, Iterable

#: What a vLLM server counts since its start, by the names that it has for them.
COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "requests": "vllm:request_success_total",
}

_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{.*\})?\s+(?P<value>[^\s]+)(?:\s+-?\d+)?\s*\Z")


def totals(text: str, names: Iterable[str]) -> Dict[str, float]:
    r"""The sum over all labels of each sample called one of ``names``; those that the page lacks are left out.

    >>> totals('# HELP x y\nx{rank="0"} 2\nx{rank="1"} 3.5 1395066363000\nz 1', ["x", "y"])
    {'x': 5.5}
    """
    wanted = set(names)
    found: Dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match.group("name") not in wanted:
            continue
        try:
            value = float(match.group("value"))
        except ValueError:
            continue
        # "NaN" and infinities are what a counter shows that was never set.
        if value == value and abs(value) != float("inf"):
            found[match.group("name")] = found.get(match.group("name"), 0.0) + value
    return found
