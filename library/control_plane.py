#!/usr/bin/python
"""Thin module around ascent.control_plane."""

from __future__ import annotations

DOCUMENTATION = r"""
module: control_plane
short_description: Try out the hosts' network as the engines will use it
description:
  - C(listening) raises a listener on every port of the plan that nothing holds, in a process that ends by itself.
  - C(probed) connects to the listeners of the other hosts, also over the network cards that the plan names, and
    sends packets of full size.
  - C(stopped) ends the listeners.
options:
  state: {description: Which phase., type: str, choices: [listening, probed, stopped], required: true}
  host: {description: This node's name in the inventory., type: str, required: true}
  address: {description: This node's address., type: str}
  nonce: {description: A word of this run by which listeners are known., type: str, default: ""}
  pid_file: {description: Where the listeners' process is noted., type: path, required: true}
  seconds: {description: How long listeners live at most., type: float, default: 300}
  ports: {description: Ports to listen on., type: list, elements: int, default: []}
  nics: {description: Network cards with the variables that name them., type: dict, default: {}}
  names: {description: Names to look up., type: list, elements: str, default: []}
  targets: {description: What to connect to., type: list, elements: dict, default: []}
  rendezvous:
    description: What to connect to from a network card's own address.
    type: list
    elements: dict
    default: []
  peers: {description: Addresses by host that packets of full size are sent to., type: dict, default: {}}
  mtu: {description: The largest packet of this host's card., type: int}
  timeout: {description: Seconds to wait for an answer., type: float, default: 3}
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Raise listeners
  control_plane: {state: listening, host: a3-01, address: 192.0.2.11, ports: [13389], pid_file: /run/ascent-listeners}
"""

RETURN = r"""
result:
  description: What `ascent.control_plane.listen` or `ascent.control_plane.probe` tell.
  returned: state is listening or probed
  type: dict
"""

from ansible.module_utils.ascent import control_plane
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """One phase."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["listening", "probed", "stopped"], "required": True},
            "host": {"type": "str", "required": True},
            "address": {"type": "str"},
            "nonce": {"type": "str", "default": ""},
            "pid_file": {"type": "path", "required": True},
            "seconds": {"type": "float", "default": 300},
            "ports": {"type": "list", "elements": "int", "default": []},
            "nics": {"type": "dict", "default": {}},
            "names": {"type": "list", "elements": "str", "default": []},
            "targets": {"type": "list", "elements": "dict", "default": []},
            "rendezvous": {"type": "list", "elements": "dict", "default": []},
            "peers": {"type": "dict", "default": {}},
            "mtu": {"type": "int"},
            "timeout": {"type": "float", "default": 3},
        },
        required_if=[("state", "listening", ["address"]), ("state", "probed", ["address"])],
        supports_check_mode=True,
    )
    given = module.params
    if given["state"] == "stopped":
        control_plane.stop(given["pid_file"])
        module.exit_json(changed=False)
    if given["state"] == "listening":
        told = control_plane.listen(
            given["host"],
            given["address"],
            given["nonce"],
            given["ports"],
            given["nics"],
            given["names"],
            given["pid_file"],
            given["seconds"],
        )
    else:
        told = control_plane.probe(
            given["host"],
            given["address"],
            given["nonce"],
            given["targets"],
            given["rendezvous"],
            given["peers"],
            given["mtu"],
            given["timeout"],
        )
    module.exit_json(changed=False, result=told)


if __name__ == "__main__":
    main()
