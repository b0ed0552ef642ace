"""Reader of ``/etc/hccn.conf``: the addresses of the devices' own network ports."""

from __future__ import annotations

__all__ = ["parse"]

import re
from typing import Dict

from .errors import ParseError
from .text import clean_lines

_ENTRY = re.compile(r"([A-Za-z][A-Za-z0-9_]*?)_([0-9]{1,6})\s*=\s*(.*)\Z")


def parse(text: str) -> Dict[str, Dict[str, str]]:
    """``{"0": {"address": ..., "netmask": ..., "netdetect": ...}}`` by device number; the last of equal keys wins.

    Keys without a device number are tuning values and left out; a line without ``=`` is a ParseError. Empty text is {}.
    """
    devices: Dict[str, Dict[str, str]] = {}
    for line_number, line in clean_lines(text):
        if line.startswith("#"):
            continue
        if "=" not in line:
            raise ParseError("hccn.conf", "expected key_<device>=value", line_number, line)
        match = _ENTRY.match(line)
        if match:
            devices.setdefault(str(int(match.group(2))), {})[match.group(1)] = match.group(3).strip()
    return devices
