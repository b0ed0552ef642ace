#!/usr/bin/python
"""Documentation of the action plugin ``watch_launch``; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: watch_launch
short_description: Follow all nodes of a launch until the service is up
description:
  - Follows container events, log lines and health addresses of every host of the plan at once, over Ansible's own
    connections, and prints progress. Ends with success when everything answers, and with failure within seconds of the
    first fatal sign on any node.
  - Runs once for all hosts, and changes nothing. In check mode there is nothing to watch.
options:
  plan:
    description: The launch plan; by default the host variable C(ascent_plan).
    type: dict
  timeout:
    description: Seconds until the start counts as failed.
    type: float
    default: 1800
  tls:
    description: Whom to trust where health is asked over TLS; C(ca) has certificates in PEM, C(name) is looked for.
    type: dict
    default: {}
  stall:
    description: Seconds without any sign of progress until the start counts as stalled.
    type: float
    default: 600
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Watch every node until the service is up
  watch_launch:
    timeout: 3600
  run_once: true
"""

RETURN = r"""
ready:
  description: Whether the service came up; true in check mode.
  returned: always
  type: bool
findings:
  description: What is wrong, the cause first (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
metrics:
  description: >-
    C(launch.ready_seconds), C(launch.ended) (when the watch ended, in seconds since 1970), and for each process its
    host, state, seconds until ready and by phase.
  returned: always
  type: dict
logs:
  description: The last lines of each process, as far as they were read.
  returned: always
  type: dict
"""
