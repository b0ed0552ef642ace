"""Reads what ``nvidia-smi --query-gpu`` prints as CSV without header and units."""

from __future__ import annotations

__all__ = ["FIELDS", "parse_query"]

from typing import Any, Dict, List, Optional

from .errors import ParseError
from .text import clean_lines

#: What is asked for, in this order.
FIELDS = ("index", "name", "uuid", "driver_version", "memory.total", "memory.used")
_SOURCE = "nvidia-smi --query-gpu"


def parse_query(text: str) -> Dict[str, Any]:
    """``{"driver", "devices": [{index, name, uuid, memory_total_mb, memory_used_mb}]}`` of an answer to `FIELDS`.

    Raises ParseError for a line that has another number of columns, and where no device is listed.
    """
    devices: List[Dict[str, Any]] = []
    driver: Optional[str] = None
    for number, line in clean_lines(text):
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(FIELDS) or not words[0].isdigit():
            raise ParseError(_SOURCE, f"expected {len(FIELDS)} columns that begin with an index", number, line)
        total, used = (int(word) if word.isdigit() else None for word in words[4:])
        driver = driver or words[3]
        devices.append(
            {
                "index": int(words[0]),
                "name": words[1],
                "uuid": words[2],
                "memory_total_mb": total,
                "memory_used_mb": used,
            }
        )
    if not devices:
        raise ParseError(_SOURCE, "no device is listed")
    return {"driver": driver, "devices": devices}
