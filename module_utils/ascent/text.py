"""What every reader of tool output needs first: lines without terminal decoration, and numbers that cannot surprise.

And sizes as engines take them, and the fingerprint of what was read.
"""

from __future__ import annotations

__all__ = ["clean_lines", "digest", "integer", "key_values", "number", "size_mb"]

import hashlib
import json
import re
from typing import Any, List, Optional, Tuple

from .errors import ParseError

# CSI sequences (colour, cursor), character-set switches, and window titles.
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Za-z0-9]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_INTEGER = re.compile(r"-?[0-9]{1,18}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?\Z")
_KEY_VALUE = re.compile(r"([^:]*?)\s*:(?:\s+(.*))?\Z")
#: Words with which the tools say that a figure is not reported.
_ABSENT = frozenset({"", "-", "--", "NA", "N/A", "na", "not supported"})


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def size_mb(text: Any) -> Optional[float]:
    """A size as container engines and Mooncake take it (``16g``, ``40GB``, bytes), in MB; None when it can't be read.

    >>> size_mb("1g"), size_mb(2**20), size_mb("much")
    (1024.0, 1.0, None)
    """
    match = re.match(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([bkmgt]?)b?\Z", str(text).strip().lower())
    if not match:
        return None
    unit = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}[match.group(2)]
    return float(match.group(1)) * unit / 2**20


def clean_lines(text: str) -> List[Tuple[int, str]]:
    r"""Numbered lines (from 1) without colour, carriage returns and surrounding blanks; empty ones are kept out.

    >>> clean_lines("a\r\n\n \x1b[31mb\x1b[0m ")
    [(1, 'a'), (3, 'b')]
    """
    plain = _ANSI.sub("", text).replace("\r", "").replace("\x00", "")
    return [(number, line.strip()) for number, line in enumerate(plain.split("\n"), 1) if line.strip()]


def integer(source: str, word: str, line_number: int, line: str) -> Optional[int]:
    """A whole number, None for a word that means "not reported"; ParseError for anything else."""
    word = word.strip()
    if word in _ABSENT:
        return None
    if not _INTEGER.match(word):
        raise ParseError(source, f"expected a whole number, found {word!r}", line_number, line)
    return int(word)


def number(source: str, word: str, line_number: int, line: str) -> Optional[float]:
    """A decimal number, None for a word that means "not reported"; ParseError for anything else."""
    word = word.strip()
    if word in _ABSENT:
        return None
    if not _NUMBER.match(word):
        raise ParseError(source, f"expected a number, found {word!r}", line_number, line)
    return float(word)


def key_values(text: str) -> List[Tuple[int, str, str, str]]:
    """The ``key : value`` lines of a text as ``(line number, key, value, line)``; a continuation line has an empty key.

    Lines without a colon are left out: the callers know which keys they need and say so when one is missing.
    """
    pairs = []
    for line_number, line in clean_lines(text):
        match = _KEY_VALUE.match(line)
        if match:
            pairs.append((line_number, match.group(1).strip(), (match.group(2) or "").strip(), line))
    return pairs
