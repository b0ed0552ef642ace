"""What the tests of all roles share."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INVENTORY = Path(__file__).parent / "inventory"

# One call for a whole tree: each call of a node costs a quarter of a second.
_TREE = """
import json, os, pwd, sys
found = {}
for folder, folders, files in os.walk(sys.argv[1]):
    for name in folders + files:
        path = os.path.join(folder, name)
        info = os.lstat(path)
        user = pwd.getpwuid(info.st_uid).pw_name
        link = os.readlink(path) if os.path.islink(path) else None
        text = open(path).read() if link is None and os.path.isfile(path) else None
        found[os.path.relpath(path, sys.argv[1])] = [info.st_mode & 0o7777, user, link, text]
print(json.dumps(found))
"""


@dataclass
class Entry:
    """A file, folder or link on a node; ``link`` is None for what is none, ``text`` for what is no file."""

    mode: int
    user: str
    link: str | None
    text: str | None


def tree(host: Any, path: str) -> dict[str, Entry]:
    """All that lies below a folder of a node, by its path from there; nothing where there is no such folder."""
    found = json.loads(host.check_output("python3 -c %s %s", _TREE, path))
    return {name: Entry(*values) for name, values in found.items()}


def changed(playbook: str, *arguments: str) -> dict[str, int]:
    """Run a playbook of the scenario; how many tasks changed each host. Fails the test when the play fails."""
    path = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / playbook
    done = subprocess.run(
        ["ansible-playbook", "--inventory", str(INVENTORY), *arguments, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)
    assert recap, done.stdout
    return {host: int(count) for host, count in recap}
