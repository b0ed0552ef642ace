#!/usr/bin/env python3
"""Breaks a sandbox node, or heals it: changes what its emulated tools tell. Runs on the node, by the module `script`.

``state.py set KEY JSON [KEY JSON ...]``, with keys such as ``devices.3.roce.link``, and ``state.py heal``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

STATE = Path("/usr/local/dcmi/state.json")
GOOD = Path("/root/state.json.good")
BOOT = "/usr/local/lib/sandbox/boot"


def change(state: dict, key: str, value: object) -> None:
    """Give a value that is there already another one. Raises KeyError or IndexError where there is none."""
    *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
    for part in path:
        state = state[part]
    state[last]
    state[last] = value


def main(verb: str, *pairs: str) -> None:
    if verb == "heal":
        if GOOD.exists():
            shutil.move(GOOD, STATE)
    else:
        if not GOOD.exists():
            shutil.copy2(STATE, GOOD)
        state = json.loads(STATE.read_text())
        while pairs:
            key, value, *pairs = pairs
            change(state, key, json.loads(value))
        STATE.write_text(json.dumps(state, indent=1) + "\n")
    # Addresses of devices follow the state, so that peers can't reach a port that is down.
    subprocess.run([BOOT, "addresses"], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
