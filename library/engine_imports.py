#!/usr/bin/python
"""Ansible module ``engine_imports``: imports the engine where a process runs and tells its versions."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_imports
short_description: Import the engine where it runs
description:
  - Runs the import check in the container or the environment of one process, and changes nothing.
options:
  process:
    description: The process as planned; in its container, or in its environment.
    type: dict
    required: true
  modules:
    description: Python modules to import.
    type: list
    elements: str
    required: true
author:
  - Ascent developers (@ascent)
attributes:
  check_mode:
    description: It only reads.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
  idempotent:
    description: Nothing changes.
    support: full
"""

EXAMPLES = r"""
- name: Import the engine
  engine_imports:
    process: "{{ ascent_plan.processes[0] }}"
    modules: [vllm, vllm_ascend]
"""

RETURN = r"""
versions:
  description: Version of each module, null when one can't be imported.
  returned: always
  type: dict
error:
  description: The last lines of what the import said.
  returned: always
  type: str
"""

from ansible.module_utils.ascent import engine_imports
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={
            "process": {"type": "dict", "required": True},
            "modules": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    argv = engine_imports.command(module.params["process"], module.params["modules"])
    code, out, err = module.run_command(argv)
    module.exit_json(changed=False, **engine_imports.parse(code, out, err))


if __name__ == "__main__":
    main()
