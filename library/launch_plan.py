"""Documentation of the action plugin ``launch_plan``, which does all its work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: launch_plan
short_description: Plan a launch from inventory, recipe and catalogue
description:
  - Makes the launch plan of one whole cluster, also when the play is limited to some of its hosts. Contacts no host.
  - Fails with all mistakes in inventory and recipe at once, each with file, line, key, value, what is allowed and fix.
  - Runs as an action plugin on the controller. The play's first host does the work and keeps the facts for all, so it
    takes no C(run_once).
author: Ascent maintainers
options:
  cluster:
    description: The cluster's group. Default is the one group under C(clusters) that the play's hosts belong to.
    type: str
  recipe:
    description: A name of C(recipes/) or the path of a recipe. Default is the hosts' variable C(recipe).
    type: str
  discover:
    description:
      - With C(allowed), hosts without C(node_ip), C(nic) or C(arch) whose facts (C(ascent_node)) aren't there yet are
        no mistake; the plan is then null, C(needs_facts) true, and a second call after C(node_info) makes it.
    type: str
    choices: [allowed, refused]
    default: refused
  render_to:
    description: Folder on the controller that gets all scripts, plan.json and plan.svg.
    type: path
  stand_ins:
    description:
      - A number of hosts, or a mapping of hardware profiles to numbers. The plan is then made for so many hosts that
        nobody has, with addresses set aside for documentation, and the inventory isn't looked at.
    type: raw
attributes:
  check_mode:
    support: full
    description: Writes nothing in check mode.
  diff_mode:
    support: full
    description: Shows what changes in the files of C(render_to).
  idempotent:
    support: full
    description: Files that are as planned are left alone.
"""

EXAMPLES = r"""
- name: Plan the launch from inventory and recipe
  launch_plan:
    discover: allowed

- name: Render every script without contacting a host
  launch_plan:
    recipe: qwen3.5-397b-a17b-w8a8-pd-1p1d-a3
    render_to: /tmp/rendered
"""

RETURN = r"""
ansible_facts:
  description:
    - C(ascent_plan), the plan (null if facts are needed first); C(ascent_hosts), all hosts of the cluster;
      C(ascent_node_query), what C(node_info) is to be asked.
  returned: success
  type: dict
findings:
  description: What is wrong or worth knowing, in the shape of docs/architecture.md.
  returned: always
  type: list
  elements: dict
changes:
  description:
    - What differs from the plan that C(render_to) held before. One entry for each process or job that is C(new),
      C(gone) or C(changed), with C(host), C(process), C(change) and C(details).
  returned: always
  type: list
  elements: dict
change_lines:
  description: C(changes) as text, one line each.
  returned: always
  type: list
  elements: str
metrics:
  description:
    - For the run record. C(memory) has for every pool what one device needs, in bytes, with its C(arithmetic) in words;
      C(known) is false, with a C(reason), where the catalogue has no figures of the model.
  returned: when there is a plan
  type: dict
needs_facts:
  description: Whether the nodes have to be read before a plan can be made.
  returned: always
  type: bool
record:
  description: Files for the run record; C(plan.json).
  returned: when there is a plan
  type: dict
rendered:
  description: Paths of all files below C(render_to).
  returned: when render_to is set
  type: list
  elements: str
summary:
  description: The plan as lines of a table for people, and the memory estimate of every pool.
  returned: when there is a plan
  type: list
  elements: str
"""
