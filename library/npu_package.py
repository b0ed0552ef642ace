#!/usr/bin/python
"""Thin module around ascent.package_run; the action plugin of the same name brings the files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: npu_package
short_description: Install or upgrade driver, firmware and CANN from the vendor's self-extracting packages
description:
  - Compares what lies on the host's disk with the packages that are wanted, and runs the installers of those that
    differ, in the vendor's order. On a host that has them all no program is started.
  - Before anything is changed, the SHA-256 of every file is compared, the package checks itself (C(--check)), and
    nobody may use a device.
  - An installation that breaks off is remembered on the host, named in the result and repeated by the next run.
  - In check mode the result and the diff say what would be installed where. Files need not be on the host for that.
options:
  packages:
    description: What is wanted.
    type: list
    elements: dict
    required: true
    suboptions:
      component:
        description: What the package holds.
        type: str
        choices: [driver, firmware, toolkit, kernels, nnal]
        required: true
      version:
        description: The version that its name carries.
        type: str
        required: true
      file:
        description: Name of the file below O(directory).
        type: str
        required: true
      sha256:
        description: What the file has to be.
        type: str
        required: true
      pinned:
        description: Whether a newer version on the disk has to give way.
        type: bool
        default: false
  source:
    description:
      - Directory of the controller, or URL of one, from which O(files) are brought to the host first. On success they
        leave it again. Without it the files have to be there.
    type: str
    default: ""
  files:
    description: Names of the files to bring.
    type: list
    elements: str
    default: []
  directory:
    description: Directory of the host that holds the files. It is removed on success if files were brought.
    type: path
    required: true
  cluster:
    description: Whose containers O(drain) may stop, by their label C(ascent.cluster).
    type: str
    default: ""
  drain:
    description: Stop the cluster's containers that use a device, instead of refusing.
    type: bool
    default: false
  container_program:
    description: Command line client of the container engine.
    type: str
    default: docker
  timeout:
    description: Seconds after which an installer that does not end is killed.
    type: float
    default: 3600
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Install driver and firmware
  npu_package:
    directory: /var/lib/ascent/packages
    packages:
      - component: driver
        version: 25.5.2
        file: Ascend-hdk-910b-npu-driver_25.5.2_linux-aarch64.run
        sha256: "{{ driver_sha256 }}"
"""

RETURN = r"""
steps:
  description:
    - What was installed, or would be in check mode, each with C(component), C(from), C(version), C(action), C(why) and
      C(file).
  returned: always
  type: list
  elements: dict
reboot_required:
  description: Whether an installer has asked for a reboot.
  returned: always
  type: bool
drained:
  description: Names of the containers that were stopped.
  returned: always
  type: list
  elements: str
findings:
  description: What stood against it (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
installer:
  description:
    - What an installer that failed said, C(output) and the new part of its C(log). The controller looks for the cause
      in it.
  returned: when an installer failed
  type: dict
"""

from ansible.module_utils.ascent import package_run
from ansible.module_utils.ascent.node import Node
from ansible.module_utils.basic import AnsibleModule

ROOT = "/"


def main() -> None:
    """Observe, plan, apply."""
    package = {
        "component": {
            "type": "str",
            "choices": ["driver", "firmware", "toolkit", "kernels", "nnal"],
            "required": True,
        },
        "version": {"type": "str", "required": True},
        "file": {"type": "str", "required": True},
        "sha256": {"type": "str", "required": True, "no_log": False},
        "pinned": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "dict", "required": True, "options": package},
            "directory": {"type": "path", "required": True},
            "cluster": {"type": "str", "default": ""},
            "drain": {"type": "bool", "default": False},
            "container_program": {"type": "str", "default": "docker"},
            "timeout": {"type": "float", "default": 3600},
        },
        supports_check_mode=True,
    )
    given = dict(module.params)
    run = package_run.Run(Node(ROOT, timeout=given.pop("timeout")), check=module.check_mode, **given)
    try:
        result = run.result()
    except OSError as error:
        module.fail_json(msg=f"NPU packages: {error}", **run.report())
    if result["failed"]:
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
