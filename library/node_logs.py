#!/usr/bin/python
"""Thin module around ascent.log_archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_logs
short_description: Collect all that tells of a trouble on a node, without secrets
description:
  - Logs and settings of the cluster's containers and units, messages of the kernel and the container engine, the
    vendor's tool, versions, and the current generation. Reads only.
  - Values that look like secrets, and those of variables whose names say so, are replaced by three stars.
options:
  cluster:
    description: Name of the cluster whose containers and units count.
    type: str
    required: true
  lines:
    description: Log lines of each container and unit, from the end.
    type: int
    default: 2000
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Collect this node's logs
  node_logs:
    cluster: a3-cluster
"""

RETURN = r"""
archive:
  description: A tar.gz with one folder, named as the node, in base64.
  returned: always
  type: str
names:
  description: What is in it.
  returned: always
  type: list
  elements: str
"""

import base64
import socket
import time

from ansible.module_utils.ascent import command, log_archive
from ansible.module_utils.basic import AnsibleModule

_SECONDS = 60


def main() -> None:
    """Collect, pack, return."""
    module = AnsibleModule(
        argument_spec={"cluster": {"type": "str", "required": True}, "lines": {"type": "int", "default": 2000}},
        supports_check_mode=True,
    )
    texts = log_archive.collect(
        module.params["cluster"], lambda argv: command.run(argv, _SECONDS), lines=module.params["lines"]
    )
    data = log_archive.pack(texts, socket.gethostname(), time.time())
    module.exit_json(changed=False, archive=base64.b64encode(data).decode(), names=sorted(texts))


if __name__ == "__main__":
    main()
