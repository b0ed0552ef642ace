#!/usr/bin/python
"""Thin module around ascent.node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Read everything that Ascent needs to know about a node
description:
  - Reads system, network, disk, accelerators, container engine, weights and the state of earlier runs in one call.
  - Nothing is changed. What can't be read, such as a tool that isn't there, is null with an error text, and no failure.
options:
  cluster:
    description: Name of the cluster, by which containers are labelled and state directories are named.
    type: str
    required: true
  gather:
    description:
      - What to read. C(health) (every device's health in detail) costs one call of the vendor's tool for each device.
    type: list
    elements: str
    choices: [system, network, disk, npu, health, container_engine, units, weights, state]
    default: [system, network, disk, npu, container_engine, units, weights, state]
  weights_directory:
    description: Directory of the model's weights. Without it weights are not looked at.
    type: str
  images:
    description: References of images to look for in the container engine's store.
    type: list
    elements: str
    default: []
  peers:
    description: Names of the cluster's hosts, to be resolved here together with the host's own. Without any, none is.
    type: list
    elements: str
    default: []
  paths:
    description: Paths to look for; those that are not there are told.
    type: list
    elements: str
    default: []
  disk_paths:
    description:
      - Paths whose file systems are measured, beside those of images and weights. A path that does not exist yet counts
        as its nearest parent.
    type: list
    elements: str
    default: ["/"]
  sysctls:
    description: Kernel parameters to read.
    type: list
    elements: str
    default:
      - vm.swappiness
      - kernel.numa_balancing
      - net.ipv4.ip_local_port_range
      - net.ipv4.ip_local_reserved_ports
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
- name: Read the node
  node_info:
    cluster: a3-cluster
    weights_directory: /root/.cache/modelscope/hub/models/Eco-Tech/Qwen3___5

- name: Read the health of every device in detail
  node_info:
    cluster: a3-cluster
    gather: [npu, health]
"""

RETURN = r"""
ansible_facts:
  description: The fact C(ascent_node), in the shape of docs/architecture.md, section 4. Parts not asked for are null.
  returned: always
  type: dict
"""

from ansible.module_utils.ascent import node
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Gather and return."""
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "str", "required": True},
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": list(node.SUBSETS),
                "default": list(node.DEFAULT_SUBSETS),
            },
            "weights_directory": {"type": "str"},
            "images": {"type": "list", "elements": "str", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
            "paths": {"type": "list", "elements": "str", "default": []},
            "disk_paths": {"type": "list", "elements": "str", "default": ["/"]},
            "sysctls": {"type": "list", "elements": "str", "default": list(node.SYSCTLS)},
            "npu_smi": {
                "type": "list",
                "elements": "str",
                "default": ["/usr/local/bin/npu-smi", "/usr/local/sbin/npu-smi"],
            },
            "hccn_tool": {
                "type": "list",
                "elements": "str",
                "default": ["/usr/local/Ascend/driver/tools/hccn_tool", "/usr/bin/hccn_tool"],
            },
            "container_program": {"type": "str", "default": "docker"},
            "timeout": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    facts = node.gather(
        node.Node(timeout=given["timeout"]),
        given["cluster"],
        given["gather"],
        weights_directory=given["weights_directory"],
        images=given["images"],
        peers=given["peers"],
        paths=given["paths"],
        disk_paths=given["disk_paths"],
        sysctls=given["sysctls"],
        npu_smi_paths=given["npu_smi"],
        hccn_tool_paths=given["hccn_tool"],
        container_program=given["container_program"],
    )
    module.exit_json(changed=False, ansible_facts={"ascent_node": facts})


if __name__ == "__main__":
    main()
