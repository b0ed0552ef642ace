#!/usr/bin/python
"""Starts rendered trials of torch.distributed in containers of their own, and reads what became of them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: torch_trial
short_description: Run a collective by torch.distributed in the engine's image
description:
  - C(started) writes the rendered scripts and starts a container for each, without waiting.
  - C(finished) waits until all have ended, or ends them when their time is up, and tells what they printed.
  - C(absent) removes containers and scripts.
options:
  state: {description: Which phase., type: str, choices: [started, finished, absent], required: true}
  directory: {description: Where the scripts lie on the node., type: path, required: true}
  trials:
    description: C(name), C(container), C(image) and C(files) (name to text) of each trial of this node.
    type: list
    elements: dict
    required: true
  program: {description: The container engine's client., type: str, default: docker}
  limit: {description: Seconds after which a trial is ended., type: float, default: 180}
  last_size: {description: Bytes of the largest message., type: int, default: 67108864}
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Wait for the trials
  torch_trial: {state: finished, directory: /var/lib/ascent/a3-cluster/torch, trials: []}
"""

RETURN = r"""
trials:
  description: By name C(outcome), C(rows) and C(text); C(outcome) is C(absent) where the image is not on the node.
  returned: state is finished
  type: dict
"""

import os
import shutil
import subprocess
import time

from ansible.module_utils.ascent import mpi_job
from ansible.module_utils.ascent.command import TIMED_OUT, run
from ansible.module_utils.basic import AnsibleModule

#: The program's own word for an image without torch.
_NO_TORCH = 77


def _start(directory: str, trial: dict) -> None:
    """Leaves a trial to a session of its own; its output and its code go to files beside the script."""
    for name, text in trial["files"].items():
        path = os.path.join(directory, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "w", encoding="utf-8") as stream:
            stream.write(text)
    base = os.path.join(directory, trial["name"])
    script = 'bash "$1.docker.sh" >"$1.log" 2>&1; echo $? >"$1.code.new"; mv "$1.code.new" "$1.code"'
    subprocess.Popen(
        ["sh", "-c", script, "sh", base],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def _outcome(base: str, given: dict) -> dict:
    """What one trial came to."""
    code, text = _text(f"{base}.code").strip(), _text(f"{base}.log")
    if not os.path.exists(f"{base}.docker.sh"):
        return {"outcome": "absent", "rows": [], "text": "the image is not on the node"}
    if code == str(_NO_TORCH):
        return {"outcome": "absent", "rows": [], "text": text.strip()}
    first = any("data_size(Bytes)" in line for line in text.splitlines())
    # Only the host of rank 0 has a table; the others are right when they end well.
    told = mpi_job.outcome(int(code) if code else TIMED_OUT, text, given["last_size"] if first else 0, given["limit"])
    if not first and code == "0":
        told.update(outcome="ok", text="", problem=None)
    return {key: told[key] for key in ("outcome", "rows", "text")}


def main() -> None:
    """One phase."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "finished", "absent"], "required": True},
            "directory": {"type": "path", "required": True},
            "trials": {"type": "list", "elements": "dict", "required": True},
            "program": {"type": "str", "default": "docker"},
            "limit": {"type": "float", "default": 180},
            "last_size": {"type": "int", "default": 67108864},
        },
        supports_check_mode=True,
    )
    given = module.params
    directory, trials = given["directory"], given["trials"]
    if module.check_mode:
        module.exit_json(changed=False, trials={})
    if given["state"] == "started":
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for trial in trials:
            # An image that is not there would be fetched now, while the others wait.
            if not run([given["program"], "image", "inspect", trial["image"]], 30)[0]:
                _start(directory, trial)
        module.exit_json(changed=True)
    if given["state"] == "absent":
        for trial in trials:
            run([given["program"], "rm", "--force", trial["container"]], 60)
        shutil.rmtree(directory, ignore_errors=True)
        module.exit_json(changed=True)
    bases = {trial["name"]: os.path.join(directory, trial["name"]) for trial in trials}
    until = time.monotonic() + given["limit"]
    while time.monotonic() < until and any(
        os.path.exists(f"{base}.docker.sh") and not os.path.exists(f"{base}.code") for base in bases.values()
    ):
        time.sleep(0.5)
    module.exit_json(changed=False, trials={name: _outcome(base, given) for name, base in bases.items()})


if __name__ == "__main__":
    main()
