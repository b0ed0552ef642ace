"""Quantities as options spell them."""

from __future__ import annotations

__all__ = ["whole_number"]

import re
from typing import Any, Optional

_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)\Z")
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def whole_number(value: Any) -> Optional[int]:
    """An option's value as a whole number, with vLLM's suffixes (k is 1000, K is 1024); None if it isn't one.

    >>> whole_number("128K"), whole_number(5500), whole_number("auto"), whole_number("0.5")
    (131072, 5500, None, None)
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    match = _HUMAN.match(str(value))
    if match is None:
        return None
    number = float(match.group(1)) * _SCALE[match.group(2)]
    return int(number) if number == int(number) else None
