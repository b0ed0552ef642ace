"""Small real playbook runs with this checkout's plugins: localhost only, a folder and an ansible.cfg of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

INVENTORY = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "%s"}
  children:
    clusters:
      children:
        test-cluster:
          hosts: {n1: {}, n2: {}, n3: {}}
"""

# A module that hands back what it is given, as the real ones return findings, metrics and records.
TELL = """
from ansible.module_utils.basic import AnsibleModule

def main():
    module = AnsibleModule({"say": {"type": "dict"}, "fails": {"type": "str"}}, supports_check_mode=True)
    if module.params["fails"]:
        module.fail_json(msg=module.params["fails"], **(module.params["say"] or {}))
    module.exit_json(**{"changed": False, **(module.params["say"] or {})})

main()
"""


@dataclass
class Outcome:
    rc: int
    output: str
    runs: Path

    @property
    def latest(self) -> Path:
        return self.runs / "latest"


def settings(directory: Path, extra: str = "") -> dict[str, str]:
    """Write what a run needs into ``directory`` and return its environment."""
    (directory / "library").mkdir(exist_ok=True)
    (directory / "library" / "tell.py").write_text(TELL)
    (directory / "hosts.yml").write_text(INVENTORY % sys.executable)
    (directory / "ansible.cfg").write_text(
        f"[defaults]\ninventory = hosts.yml\nlibrary = library\naction_plugins = {ROOT}/plugins/action\n"
        f"callback_plugins = {ROOT}/plugins/callback\nforce_valid_group_names = ignore\ngathering = explicit\n"
        f"stdout_callback = ascent_live\ncallbacks_enabled = ascent_record\nlocalhost_warning = false\n{extra}"
    )
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(directory),
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ASCENT_RUNS_DIR": str(directory / "runs"),
        "LANG": "C.UTF-8",
    }


def play(directory: Path, playbook: str, *arguments: str, environment: dict[str, str] | None = None) -> Outcome:
    """Run a playbook, given as text, with ansible-playbook."""
    variables = settings(directory) | (environment or {})
    (directory / "play.yml").write_text(playbook)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "play.yml", *arguments],
        cwd=directory,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, directory / "runs")
