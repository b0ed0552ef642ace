#!/usr/bin/python
"""Thin module around ascent.npu."""

from __future__ import annotations

DOCUMENTATION = r"""
module: npu_info
short_description: Read what the vendor's tools tell of every NPU of a node
description:
  - Reads identity, health, versions, addresses, links, network health, gateway, TLS switch, switch port, optical module
    and counters of every device, and C(/etc/hccn.conf) as the host and its containers see it.
  - The vendor's tool serves one call at a time on a node, so all calls are made one after the other. A busy one is
    asked again, and who holds its lock is told.
  - Nothing is changed. What can't be read is null and has an entry in C(unread); it is no failure.
options:
  devices:
    description: Numbers of the devices, as in C(/dev/davinciN).
    type: list
    elements: int
    required: true
  depth:
    description:
      - How much is read. C(quick) reads settings and state of the links, C(standard) adds speed, FEC, switch ports,
        optical modules, counters and a ping to the gateway, C(deep) adds the history of the links.
      - C(counters) reads the counters alone, as the second reading of them.
    type: str
    choices: [quick, standard, deep, counters]
    default: standard
  cluster:
    description: Name of the cluster, by which containers are labelled. Without it containers are not looked at.
    type: str
    default: ""
  image:
    description:
      - Image from which C(/etc/hccn.conf) is looked at while no container of the cluster runs. It is not pulled.
    type: str
  npu_smi:
    description: Where C(npu-smi) may be; the first that exists is used.
    type: list
    elements: str
    default: [/usr/local/bin/npu-smi, /usr/local/sbin/npu-smi]
  hccn_tool:
    description: Where C(hccn_tool) may be; the first that exists is used.
    type: list
    elements: str
    default: [/usr/local/Ascend/driver/tools/hccn_tool, /usr/bin/hccn_tool]
  container_program:
    description: Command line client of the container engine.
    type: str
    default: docker
  timeout:
    description: Seconds after which a single program call is given up.
    type: float
    default: 30
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Read the devices
  npu_info:
    devices: [0, 1, 2, 3, 4, 5, 6, 7]
    cluster: a3-cluster

- name: Read the counters again
  npu_info:
    devices: [0, 1, 2, 3, 4, 5, 6, 7]
    depth: counters
"""

RETURN = r"""
ansible_facts:
  description:
    - The fact C(ascent_npus), or C(ascent_npu_counters) for C(depth=counters), in the shape of docs/architecture.md,
      section 7.
  returned: always
  type: dict
"""

from ansible.module_utils.ascent import npu
from ansible.module_utils.ascent.node import Node
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Read and return."""
    module = AnsibleModule(
        argument_spec={
            "devices": {"type": "list", "elements": "int", "required": True},
            "depth": {"type": "str", "choices": [*npu.DEPTHS, "counters"], "default": "standard"},
            "cluster": {"type": "str", "default": ""},
            "image": {"type": "str"},
            "npu_smi": {"type": "list", "elements": "str", "default": list(npu.SMI_PATHS)},
            "hccn_tool": {"type": "list", "elements": "str", "default": list(npu.HCCN_PATHS)},
            "container_program": {"type": "str", "default": "docker"},
            "timeout": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    node = Node(timeout=given["timeout"])
    if given["depth"] == "counters":
        counters = npu.read_counters(node, given["devices"], hccn_tool_paths=given["hccn_tool"])
        module.exit_json(changed=False, ansible_facts={"ascent_npu_counters": counters})
    facts = npu.read(
        node,
        given["devices"],
        given["depth"],
        cluster=given["cluster"],
        image=given["image"],
        npu_smi_paths=given["npu_smi"],
        hccn_tool_paths=given["hccn_tool"],
        container_program=given["container_program"],
    )
    module.exit_json(changed=False, ansible_facts={"ascent_npus": facts})


if __name__ == "__main__":
    main()
