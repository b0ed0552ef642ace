#!/usr/bin/python
"""Documentation of the action plugin ``kept_plan``; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kept_plan
short_description: Take the plan of a generation from the nodes
description:
  - Without O(generation), names the hosts of the cluster for the readings that follow, as M(launch_plan) does, but
    needs no recipe.
  - With O(generation), reads the plan of that generation from the first host that has it, after M(node_info) has read
    them.
  - Call it on all hosts; the play's first keeps the facts C(ascent_plan), C(ascent_hosts), C(ascent_node_query) and
    C(ascent_kept).
options:
  generation:
    description:
      - V(current), V(good), V(undo), or a number. V(good) is the newest one that passed the check stage and is another
        plan, or has other images, than what is current; V(undo) is the same, unless the current one has passed, too.
    type: str
  root:
    description: Directory of all clusters' generations on the nodes.
    type: path
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Name the hosts
  kept_plan:

- name: Read the nodes
  node_info: "{{ ascent_node_query }}"

- name: Take up the last generation that passed its checks
  kept_plan:
    generation: good
    root: /etc/ascent
"""

RETURN = r"""
ansible_facts:
  description:
    - C(ascent_plan), null before a generation was taken up; C(ascent_hosts); C(ascent_node_query).
    - C(ascent_kept) with the generation's C(number) and the C(digests) of its images by reference.
  returned: success
  type: dict
findings:
  description: Why there is no such generation (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
"""
