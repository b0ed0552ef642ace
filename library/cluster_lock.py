#!/usr/bin/python
"""Documentation of the action plugin ``cluster_lock``; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_lock
short_description: Keep other controllers off a cluster for the rest of the run
description:
  - Takes a lease that lies in a file of the node the task runs on, or fails with who has it and since when.
  - A process on the controller renews the lease while the playbook lives, and gives it back when the playbook has
    ended, also when it was killed. If the controller itself is lost, the lease lapses after O(ttl).
  - Use it with C(run_once) and the same host in every run. A dry run takes no lease and heeds none.
options:
  path:
    description: The file of the lease.
    type: path
    required: true
  ttl:
    description: Seconds after which a lease that nobody renews is free.
    type: float
    default: 60
  force:
    description: Take the lease from whoever has it.
    type: bool
    default: false
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Keep other controllers off
  cluster_lock:
    path: /var/lib/ascent/a3-cluster/lock.json
  delegate_to: a3-01
  run_once: true
"""

RETURN = r"""
findings:
  description: Who holds the lease where it could not be had (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
"""
