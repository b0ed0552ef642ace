#!/usr/bin/python
"""Ansible module ``engine_units``: the systemd units of one cluster's engines on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_units
short_description: Run engines of a cluster as units of systemd
description:
  - Writes the units, enables and starts them, and removes those of the cluster that are no longer wanted.
  - A unit that is as wanted and runs is left alone; one whose text changed is stopped, written and started.
options:
  cluster:
    description: Name of the cluster, by which its units are known.
    type: str
    required: true
  units:
    description: Units to have, each with C(name) and C(text).
    type: list
    elements: dict
    default: []
  ending:
    description: Units that have to end before any of their instance starts.
    type: list
    elements: str
    default: []
  only:
    description: Names of the units that are written and started now; the others have their turn later. All by default.
    type: list
    elements: str
  only_end:
    description: Only removes and stops. All hosts do this before any of them starts a unit.
    type: bool
    default: false
author:
  - Ascent developers (@ascent)
attributes:
  check_mode:
    description: Says what would change and touches nothing.
    support: full
  diff_mode:
    description: Shows each unit's text before and after.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Remove the engines of a cluster
  engine_units:
    cluster: a3-cluster
"""

RETURN = r"""
steps:
  description: What was done, or in check mode would be, in order; each with C(do) and C(unit).
  returned: always
  type: list
"""

import os
import tempfile

from ansible.module_utils.ascent import units
from ansible.module_utils.basic import AnsibleModule


def observe(module, cluster):
    """The cluster's units on this host: text, state and whether they start at boot."""
    found = {}
    for name in sorted(os.listdir(units.DIRECTORY)):
        path = os.path.join(units.DIRECTORY, name)
        if not (name.startswith("ascent-") and name.endswith(".service") and os.path.isfile(path)):
            continue
        with open(path, encoding="utf-8", errors="replace") as stream:
            content = stream.read()
        if units.labels_of(content).get("ascent.cluster") == cluster:
            found[name] = {"text": content}
    if not found:
        return found
    properties = "--property=" + ",".join((*units.PROPERTIES, "UnitFileState"))
    shown = units.parse_show(run(module, "show", properties, *found))
    for name, entry in found.items():
        show = shown.get(name) or {}
        entry["state"] = units.state_of(show)["state"]
        entry["enabled"] = show.get("UnitFileState") == "enabled"
    return found


def run(module, *arguments):
    """Ask systemd; its refusal ends the module."""
    code, out, err = module.run_command(["systemctl", *arguments])
    if code:
        said = (err or out).strip()
        module.fail_json(msg="systemctl {} failed: {}".format(" ".join(arguments), said), steps=[])
    return out


def write(name, text):
    """Replace a unit's file in one step."""
    handle, temporary = tempfile.mkstemp(dir=units.DIRECTORY, prefix=".ascent-")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, os.path.join(units.DIRECTORY, name))


def apply(module, steps, texts):
    """Do the steps; systemd reads its files again before the first start, after all that is written."""
    read = all(step["do"] == "stop" for step in steps)
    for step in steps:
        name = step["unit"]
        if step["do"] == "remove":
            run(module, "disable", "--now", name)
            os.unlink(os.path.join(units.DIRECTORY, name))
            read = False
        elif step["do"] == "write":
            write(name, texts[name])
            read = False
        else:
            # An interrupted run may have left a file that systemd has not read yet.
            if step["do"] != "stop" and not read:
                run(module, "daemon-reload")
                read = True
            if step["do"] == "start":
                # One that failed too often would refuse.
                module.run_command(["systemctl", "reset-failed", name])
            run(module, step["do"], name)
    if not read:
        run(module, "daemon-reload")


def main():
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "dict", "default": []},
            "ending": {"type": "list", "elements": "str", "default": []},
            "only": {"type": "list", "elements": "str"},
            "only_end": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    texts = {one["name"]: one["text"] for one in module.params["units"]}
    there = observe(module, module.params["cluster"])
    steps = units.plan(module.params["units"], there, module.params["ending"])
    if module.params["only"] is not None:
        steps = [step for step in steps if step["do"] == "remove" or step["unit"] in module.params["only"]]
    if module.params["only_end"]:
        steps = [step for step in steps if step["do"] in ("remove", "stop")]
    diff = [
        {
            "before_header": step["unit"],
            "after_header": step["unit"],
            "before": (there.get(step["unit"]) or {}).get("text", ""),
            "after": texts.get(step["unit"], ""),
        }
        for step in steps
        if step["do"] in ("remove", "write")
    ]
    diff += [{"prepared": "{do} {unit}".format(**step)} for step in steps if step["do"] not in ("remove", "write")]
    if steps and not module.check_mode:
        apply(module, steps, texts)
    module.exit_json(changed=bool(steps), steps=steps, diff=diff)


if __name__ == "__main__":
    main()
