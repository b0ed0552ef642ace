#!/usr/bin/python
"""Documentation of the action plugin ``keep_logs``; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: keep_logs
short_description: Put what M(node_logs) collected on all nodes into one archive on the controller
description:
  - Writes one tar.gz with a folder for each node, readable for its owner alone. Use it with C(run_once).
options:
  collected:
    description: The results of M(node_logs) by host.
    type: dict
    required: true
  dest:
    description: The archive to write; what is there is replaced at once.
    type: path
    required: true
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: none}
"""

EXAMPLES = r"""
- name: Keep the logs of all nodes
  keep_logs:
    collected: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, '__logs'))) }}"
    dest: logs-a3-cluster.tar.gz
  run_once: true
"""

RETURN = r"""
dest:
  description: The archive that was written.
  returned: always
  type: str
"""
