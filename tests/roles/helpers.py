"""What the tests of all roles share."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

INVENTORY = Path(__file__).parent / "inventory"


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
