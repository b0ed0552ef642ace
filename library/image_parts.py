#!/usr/bin/python
"""Thin module around ascent.image_store: the parts of images that wait on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_parts
short_description: Take parts of images into this host's store
description:
  - Moves files into the store under their digests, each after its content was compared with it. Used by the action
    plugin C(image_archive), which copies them to the host.
options:
  store:
    description: Directory of the store.
    type: path
    required: true
  parts:
    description: Digests that are wanted there.
    type: list
    elements: str
    default: []
  add:
    description: Files to take in, as path by digest.
    type: dict
    default: {}
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: See what is missing
  image_parts:
    store: /var/lib/ascent/images
    parts: ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]
"""

RETURN = r"""
missing:
  description: Those of O(parts) that are not in the store.
  returned: always
  type: list
  elements: str
free_mb:
  description: Free space where the store lies, or would lie.
  returned: always
  type: int
"""

import os
import shutil

from ansible.module_utils.ascent.errors import AscentError
from ansible.module_utils.ascent.image_store import Store
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Take in, then look."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "parts": {"type": "list", "elements": "str", "default": []},
            "add": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    store = Store(given["store"])
    result = {"changed": False, "missing": [], "free_mb": 0}
    try:
        for digest, path in given["add"].items():
            result["changed"] = True
            if not module.check_mode:
                store.take(digest, path)
        result["missing"] = store.missing(given["parts"])
        place = given["store"]
        while not os.path.exists(place):
            place = os.path.dirname(place)
        result["free_mb"] = shutil.disk_usage(place).free >> 20
    except (AscentError, OSError) as error:
        module.fail_json(msg=f"image parts: {error}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
