#!/usr/bin/python
"""Thin module around ascent.image_pulls.lookup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_lookup
short_description: Ask registries which digests image tags mean
description:
  - Asks as the container engine of this host would, with its insecure registries, mirrors, proxies, certificates and
    the logins of C(docker login). Pulls nothing and changes nothing.
  - An image that can't be had, or is not for this host, is a finding with severity error, and the module fails.
options:
  references:
    description: Image references by tag.
    type: list
    elements: str
    required: true
  machine:
    description: Machine that the images have to be for, as C(uname -m) prints it. Empty compares nothing.
    type: str
    default: ""
  config:
    description: Docker's file of logins.
    type: path
    default: ~/.docker/config.json
  host:
    description: Name of this host in findings.
    type: str
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Look the engine image up
  image_lookup:
    references: [quay.io/ascend/vllm-ascend:v0.21.0rc1-a3]
    machine: aarch64
"""

RETURN = r"""
digests:
  description: Digest by reference.
  returned: always
  type: dict
findings:
  description: Images that can't be had or used (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.ascent import engine_api, image_pulls
from ansible.module_utils.ascent.errors import AscentError
from ansible.module_utils.ascent.findings import message
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Ask and return."""
    module = AnsibleModule(
        argument_spec={
            "references": {"type": "list", "elements": "str", "required": True},
            "machine": {"type": "str", "default": ""},
            "config": {"type": "path", "default": "~/.docker/config.json"},
            "host": {"type": "str"},
        },
        supports_check_mode=True,
    )
    given = module.params
    result = {"changed": False, "digests": {}, "findings": []}
    try:
        information = engine_api.Engine(engine_api.SOCKET).information()
        result["digests"], result["findings"] = image_pulls.lookup(
            given["references"], given["machine"], information, given["config"], given["host"]
        )
    except (AscentError, OSError, ValueError) as error:
        module.fail_json(msg=f"image lookup: {error}", **result)
    if result["findings"]:
        module.fail_json(msg=message(result["findings"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
