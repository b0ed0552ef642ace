"""Documentation of the action plugin of the same name, plugins/action/host_reboot.py, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_reboot
short_description: Reboot a host, read it again, and prove that the reboot did what it was for
description:
  - The host has to come back with another boot id, with all its devices, and with the driver and firmware of its disk
    live. What is not so is a finding, also a host that does not come back.
  - Sets the fact C(ascent_node) anew, as M(node_info) does.
options:
  timeout:
    description: Seconds in which the host has to be back.
    type: int
    default: 1800
  devices:
    description: How many devices the host has to have; at least as many as before.
    type: int
  read:
    description: Arguments of M(node_info).
    type: dict
    required: true
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: none}
"""

EXAMPLES = r"""
- name: Reboot and prove
  host_reboot:
    read: {cluster: a3-cluster}
    devices: 16
"""

RETURN = r"""
findings:
  description: What the reboot did not bring (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
elapsed:
  description: Seconds until the host was back.
  returned: when it was rebooted
  type: int
"""
