#!/usr/bin/python
"""Documentation of the action plugin ``search_logs``; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: search_logs
short_description: Search the logs of a plan's processes on all nodes for faults that are known
description:
  - For a service that runs and does badly. Reads the logs of all containers and units of the plan once, over Ansible's
    own connections, and compares them with the catalogue of faults. The first cause in time comes first, by clocks that
    have been compared with each other.
  - Runs once for all hosts, changes nothing, and does not fail for what it finds.
options:
  look_back:
    description: >-
      Seconds before this run read the nodes from which on a log counts. What was started later is read from its start,
      unless its restart policy started it.
    type: float
    default: 900
  stage:
    description: The stage that the findings belong to.
    type: str
    required: true
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Search all logs for the reason
  search_logs:
    stage: check
  run_once: true
"""

RETURN = r"""
findings:
  description: What the logs tell, the first cause first, and nodes that could not be read.
  returned: always
  type: list
  elements: dict
logs:
  description: The last lines of each process.
  returned: always
  type: dict
"""
