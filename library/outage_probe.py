#!/usr/bin/python
"""Thin module around ascent.outage."""

from __future__ import annotations

DOCUMENTATION = r"""
module: outage_probe
short_description: Measure for how long a service does not answer while it is being changed
description:
  - V(started) leaves a process on the node that asks the service one token at a time, until it is stopped.
  - V(stopped) ends it and returns what it saw. Without one that runs, it returns nothing.
  - Proxy variables are never used. Nothing is asked in check mode.
options:
  state:
    description: What to do.
    type: str
    choices: [started, stopped]
    required: true
  path:
    description: File for what was seen; C(.stop) beside it ends the process.
    type: path
    required: true
  targets:
    description: Where to ask, C(url) and C(model) each. One that answers is enough.
    type: list
    elements: dict
    default: []
  interval: {description: Seconds between questions, type: float, default: 0.25}
  timeout: {description: Seconds for one answer, type: float, default: 5}
  most: {description: Seconds after which it ends by itself, type: float, default: 7200}
extends_documentation_fragment: [asking]
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: none, details: Each start begins a measurement of its own.}
"""

EXAMPLES = r"""
- name: Ask the service from now on
  outage_probe:
    state: started
    path: /run/ascent/outage-a3-cluster.jsonl
    targets:
      - {url: http://192.0.2.11:8010, model: qwen3.5}

- name: See what clients saw
  outage_probe:
    state: stopped
    path: /run/ascent/outage-a3-cluster.jsonl
"""

RETURN = r"""
outage:
  description:
    - With V(stopped), C(asked), C(failed), C(outages) (C(start), C(seconds), C(over)), C(seconds) of all of them,
      C(errors) and C(slowest_ms). Null where nothing was measured.
  returned: always
  type: dict
"""

import json
import os
import time

from ansible.module_utils.ascent import client, outage
from ansible.module_utils.basic import AnsibleModule

_PATIENCE = 15.0


def _start(given):
    """Leave a process behind that asks; it belongs to nobody and holds none of our files open."""
    path = given["path"]
    os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    for old in (path, f"{path}.stop", f"{path}.done"):
        if os.path.exists(old):
            os.unlink(old)
    if os.fork():
        os.wait()
        return
    # In the child: nothing may return from here into the module's own code.
    try:
        os.setsid()
        if os.fork() == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            outage.run(
                path,
                given["targets"],
                interval=given["interval"],
                timeout=given["timeout"],
                most=given["most"],
            )
            open(f"{path}.done", "w", encoding="utf-8").close()
    finally:
        os._exit(0)


def _stop(given):
    """What was seen, once the process has ended; None where there was none."""
    path = given["path"]
    if not os.path.exists(path):
        return None
    open(f"{path}.stop", "w", encoding="utf-8").close()
    late = time.monotonic() + given["timeout"] + _PATIENCE
    while not os.path.exists(f"{path}.done") and time.monotonic() < late:
        time.sleep(0.1)
    with open(path, encoding="utf-8") as stream:
        samples = [json.loads(line) for line in stream if line.endswith("\n")]
    for name in (path, f"{path}.stop", f"{path}.done"):
        if os.path.exists(name):
            os.unlink(name)
    return outage.summarize(samples) if samples else None


def main():
    """Start or stop."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "required": True},
            "path": {"type": "path", "required": True},
            "targets": {"type": "list", "elements": "dict", "default": []},
            "interval": {"type": "float", "default": 0.25},
            "timeout": {"type": "float", "default": 5},
            "most": {"type": "float", "default": 7200},
            **client.OPTIONS,
        },
        supports_check_mode=True,
    )
    given = module.params
    client.use(given["keys"], given["tls"], given["api_key"])
    if given["state"] == "started":
        bad = [one for one in given["targets"] if not one.get("url") or not one.get("model")]
        if bad or not given["targets"]:
            module.fail_json(msg=f"targets: wanted at least one with url and model, found {given['targets']}")
        if not module.check_mode:
            _start(given)
        module.exit_json(changed=False, outage=None)
    module.exit_json(changed=False, outage=None if module.check_mode else _stop(given))


if __name__ == "__main__":
    main()
