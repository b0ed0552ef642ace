#!/usr/bin/python
"""Thin module around ascent.mesh.measure."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hccl_verify
short_description: Ping a list of peer devices from this node's devices
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
  host:
    description: This node's name in the inventory, as it is to stand in the result.
    type: str
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
      burst: {description: Send O(burst_packets) over this pair as well, type: bool, default: false}
      witness: {description: It tells which end of another pair is at fault, type: bool, default: false}
  packets:
    description: Packets for each peer; all have to come back.
    type: int
    default: 3
  burst_packets:
    description: Packets over each pair that is marked, so that a small loss shows. V(0) sends none.
    type: int
    default: 100
  burst_seconds:
    description: What all bursts of this node may cost; there are fewer packets where the tool is slow.
    type: float
    default: 30
  hccn_tool:
    description: Path of the vendor's tool.
    type: path
    default: /usr/local/Ascend/driver/tools/hccn_tool
  timeout:
    description: Seconds after which a single call of the tool is given up.
    type: float
    default: 120
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
    host: a3-01
    peers:
      - {device: 0, peer_host: a3-02, peer_device: 0, address: 192.0.2.130, burst: true}
      - {device: 1, peer_host: a3-02, peer_device: 1, address: 192.0.2.131}
"""

RETURN = r"""
plane:
  description: The devices' network that was used, C(vnic) or C(ip).
  returned: always
  type: str
packets:
  description: Packets asked for each peer.
  returned: always
  type: int
seconds:
  description: What the measuring took.
  returned: always
  type: float
pairs:
  description:
    - Of each peer C(from) and C(to) (host and device), C(address), C(sent), C(received), C(min_us), C(avg_us),
      C(max_us), C(error), and C(witness) where it is one.
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.ascent import mesh
from ansible.module_utils.ascent.node import Node
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Measure and return."""
    module = AnsibleModule(
        argument_spec={
            "tool": {"type": "str", "choices": ["hccs_ping", "ping"], "required": True},
            "host": {"type": "str", "required": True},
            "peers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "device": {"type": "int", "required": True},
                    "peer_host": {"type": "str", "required": True},
                    "peer_device": {"type": "int", "required": True},
                    "address": {"type": "str"},
                    "burst": {"type": "bool", "default": False},
                    "witness": {"type": "bool", "default": False},
                },
            },
            "packets": {"type": "int", "default": 3},
            "burst_packets": {"type": "int", "default": 100},
            "burst_seconds": {"type": "float", "default": 30},
            "hccn_tool": {"type": "path", "default": "/usr/local/Ascend/driver/tools/hccn_tool"},
            "timeout": {"type": "float", "default": 120},
        },
        supports_check_mode=True,
    )
    given = module.params
    for name, least in (("packets", 1), ("burst_packets", 0)):
        if not least <= given[name] <= mesh.MOST_PACKETS:
            module.fail_json(msg=f"{name} is {given[name]}; wanted {least} to {mesh.MOST_PACKETS}")
    measured = mesh.measure(
        Node(timeout=given["timeout"]),
        given["hccn_tool"],
        given["tool"],
        given["host"],
        given["peers"],
        packets=given["packets"],
        burst_packets=given["burst_packets"],
        burst_seconds=given["burst_seconds"],
    )
    module.exit_json(changed=False, **measured)


if __name__ == "__main__":
    main()
