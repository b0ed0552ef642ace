#!/usr/bin/python
"""Thin module around ascent.fabric.measure."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hccl_verify
short_description: Ping a list of peer devices from this node's devices, and read the state of its own
description:
  - Works a list of peers off one by one, because the vendor's tool serves one call at a time on a node. A busy tool is
    asked again.
  - Nothing is judged here. A ping that fails is a result; the fabric role judges the results of all nodes together.
options:
  tool:
    description: Which ping the hardware has, C(hccs_ping) (A3) or C(ping) (A2).
    type: str
    choices: [hccs_ping, ping]
    required: true
  devices:
    description: This node's devices whose link, TLS switch and network health are read.
    type: list
    elements: int
    required: true
  peers:
    description: What to ping, in order. An entry without an address is a failed ping.
    type: list
    elements: dict
    required: true
    suboptions:
      device: {description: Device of this node that pings, type: int, required: true}
      peer_host: {description: Host of the device that is pinged, type: str, required: true}
      peer_device: {description: Number of the device that is pinged, type: int, required: true}
      address: {description: Address of the device that is pinged, type: str}
  packets:
    description: Packets for each peer; all have to come back.
    type: int
    default: 3
  checks:
    description: What to read of this node's devices.
    type: list
    elements: str
    choices: [link, tls, net_health]
    default: [link, tls, net_health]
  hccn_tool:
    description: Path of the vendor's tool.
    type: path
    default: /usr/local/Ascend/driver/tools/hccn_tool
  timeout:
    description: Seconds after which a single call of the tool is given up.
    type: float
    default: 30
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Ping the other nodes' devices
  hccl_verify:
    tool: hccs_ping
    devices: [0, 1]
    peers:
      - {device: 0, peer_host: a3-02, peer_device: 0, address: 192.0.2.130}
      - {device: 1, peer_host: a3-02, peer_device: 1, address: 192.0.2.131}
"""

RETURN = r"""
results:
  description:
    - Of each peer C(device), C(peer_host), C(peer_device), C(address), C(sent), C(received), C(loss_percent),
      C(rtt_ms), C(ok) and C(error).
  returned: always
  type: list
  elements: dict
devices:
  description: By device number C(link), C(tls), C(net_health) (null when unreadable) and C(errors).
  returned: always
  type: dict
"""

from ansible.module_utils.ascent import fabric
from ansible.module_utils.ascent.node import Node
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Measure and return."""
    module = AnsibleModule(
        argument_spec={
            "tool": {"type": "str", "choices": ["hccs_ping", "ping"], "required": True},
            "devices": {"type": "list", "elements": "int", "required": True},
            "peers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "device": {"type": "int", "required": True},
                    "peer_host": {"type": "str", "required": True},
                    "peer_device": {"type": "int", "required": True},
                    "address": {"type": "str"},
                },
            },
            "packets": {"type": "int", "default": 3},
            "checks": {
                "type": "list",
                "elements": "str",
                "choices": list(fabric.CHECKS),
                "default": list(fabric.CHECKS),
            },
            "hccn_tool": {"type": "path", "default": "/usr/local/Ascend/driver/tools/hccn_tool"},
            "timeout": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    if not 1 <= given["packets"] <= 1000:
        module.fail_json(msg=f"packets is {given['packets']}; wanted 1 to 1000")
    measured = fabric.measure(
        Node(timeout=given["timeout"]),
        given["hccn_tool"],
        given["tool"],
        given["devices"],
        given["peers"],
        given["packets"],
        given["checks"],
    )
    module.exit_json(changed=False, **measured)


if __name__ == "__main__":
    main()
