#!/usr/bin/python
"""Documentation of the action plugin ``model_weights``; nodes run `ascent.weights_job`, the controller leads them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_weights
short_description: Make sure that the model's weights are complete on all hosts of the play
description:
  - Judges what M(node_info) read of the model's directory on every host of the play. Mostly that is all.
  - Otherwise one host fetches what is missing from the source, and the others copy from it and from each other, over
    HTTP on the plan's addresses, with a token of this run. A host of the play that has the model already takes the
    source's place. Hosts that see the same file system are told by markers, and one of them writes for all.
  - Files come into a directory of their own, are resumed after a break, and are compared with the source's SHA-256. The
    model appears under its name when all of it is right.
  - Runs once for all hosts. While it copies it prints share, rate and time left. What was copied stays when it is
    ended, and the next run goes on from there.
options:
  model:
    description: The model's name at its source, C(ORG/NAME).
    type: str
    required: true
  source:
    description:
      - V(modelscope), V(huggingface) or V(modelers); anything else is not fetched without O(mirror) or O(archive).
    type: str
    default: ""
  revision:
    description: Branch, tag or commit; empty for the hub's own branch.
    type: str
    default: ""
  addresses:
    description: Host to the address at which other hosts reach it. Without it, the inventory's C(node_ip).
    type: dict
  fetch:
    description: Whether to fetch at all. Without it, findings say what is wrong.
    type: bool
    default: true
  endpoint:
    description: The hub's base address; empty for the public one.
    type: str
    default: ""
  mirror:
    description:
      - A place with ORG/NAME trees to fetch from in place of the hub, C(SHA256SUMS) in each. An C(http) or C(https)
        address, an absolute path on the hosts, or what rsync takes (C(rsync://HOST/MODULE), C(HOST:/PATH)).
    type: str
    default: ""
  archive:
    description: Directory on the controller with ORG/NAME trees, in place of the hub, given over Ansible's connections.
    type: str
    default: ""
  exclude:
    description: Patterns of paths that are not fetched; C(*) matches slashes, too.
    type: list
    elements: str
    default: ["original/*"]
  parallel:
    description: Files that a host fetches at the same time.
    type: int
    default: 4
  spread:
    description: Whether hosts copy from each other. Otherwise each one asks the source.
    type: bool
    default: true
  fanout:
    description: How many hosts copy from one.
    type: int
    default: 2
  port:
    description: Port at which hosts give files to others; 0 for any that is free.
    type: int
    default: 0
  proxy:
    description: Proxy to the source; empty as the hosts' environment says, V(none) for none.
    type: str
    default: ""
  ca_file:
    description: File on the hosts with the certificates that the source's one is checked against.
    type: str
    default: ""
  timeout:
    description: Seconds without a byte from the source until it is asked again.
    type: float
    default: 60
  attempts:
    description: Failures in a row, without a byte in between, until the source counts as unreachable.
    type: int
    default: 5
notes:
  - The variable C(weights_token) gives the source's token. It is no option, so that no output of the task has it.
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Make sure that the weights are complete
  model_weights:
    model: Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp
    source: modelscope
    endpoint: http://hub.example.com
"""

RETURN = r"""
findings:
  description: What is wrong (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
metrics:
  description:
    - C(weights), after a fetch. Seconds in all, and for each host where it copied from, and the bytes that crossed the
      network, that were there before, and that were compared on it.
  returned: always
  type: dict
"""
