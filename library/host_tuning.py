#!/usr/bin/python
"""Thin module around ascent.tuning."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_tuning
short_description: Tune a host's kernel for NPU inference, live and over reboots
description:
  - Sets the cpufreq governor, sysctls, reserved ports and login limits in one call, live and persistently.
  - Persistent means C(/etc/sysctl.d/90-ascent.conf), C(/etc/security/limits.d/90-ascent.conf), and the unit
    C(ascent-host-tuning.service) for what sysctl.d can't hold (governor, debugfs).
  - The values from before are kept in C(/var/lib/ascent/host_tuning.json). A setting that is no longer asked for goes
    back to its old value; O(state=absent) undoes everything.
  - A knob that the kernel lacks is reported as a finding and is no failure.
options:
  state:
    description: Whether the host is tuned, or as it was before.
    type: str
    choices: [present, absent]
    default: present
  governor:
    description: cpufreq governor of every CPU. Empty leaves it alone.
    type: str
    default: ""
  sysctl:
    description: Parameters of C(/proc/sys). Values are integers or strings, never booleans.
    type: dict
    default: {}
  debugfs:
    description: For a sysctl that newer kernels have moved, the file below C(/sys/kernel/debug) to write instead.
    type: dict
    default: {}
  reserved_ports:
    description:
      - Ports or ranges (C(23010-23025)) the kernel must not hand out as ephemeral ports. Merged with those
        reserved already.
    type: list
    elements: str
    default: []
  limits:
    description: Hard and soft limits of login sessions, such as C(nofile), a number or C(unlimited).
    type: dict
    default: {}
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Tune the host
  host_tuning:
    governor: performance
    sysctl:
      vm.swappiness: 0
    reserved_ports: ["23010-23025", "6884"]

- name: Put everything back
  host_tuning:
    state: absent
"""

RETURN = r"""
findings:
  description: Knobs that the kernel lacks, and other things worth telling (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
writes:
  description: Live knobs that were changed, or would be in check mode, each with C(knob), C(path), C(from) and C(to).
  returned: always
  type: list
  elements: dict
files:
  description: Files that were written or removed, or would be in check mode.
  returned: always
  type: list
  elements: str
reserved:
  description: All reserved ports after the change, in the kernel's list form.
  returned: always
  type: str
"""

from ansible.module_utils.ascent import tuning
from ansible.module_utils.ascent.errors import AscentError
from ansible.module_utils.ascent.files import Tree
from ansible.module_utils.basic import AnsibleModule

ROOT = "/"


def switch_unit(module: AnsibleModule, how: str, tree: Tree) -> None:
    """Enable and run the boot unit, so that a unit that can't work shows now; or disable and remove it."""
    systemctl = module.get_bin_path("systemctl", required=True)
    if how == "enable":
        steps = [["daemon-reload"], ["enable", tuning.UNIT], ["restart", tuning.UNIT]]
    else:
        if tree.read(tuning.UNIT_FILE) is not None:
            module.run_command([systemctl, "disable", "--now", tuning.UNIT], check_rc=True)
        tree.remove(tuning.UNIT_FILE)
        tree.remove(tuning.UNIT_LINK)
        steps = [["daemon-reload"]]
    for step in steps:
        module.run_command([systemctl, *step], check_rc=True)


def main() -> None:
    """Observe, plan, apply."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "governor": {"type": "str", "default": ""},
            "sysctl": {"type": "dict", "default": {}},
            "debugfs": {"type": "dict", "default": {}},
            "reserved_ports": {"type": "list", "elements": "str", "default": []},
            "limits": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    tree = Tree(ROOT)
    given = dict(module.params)
    result = {"changed": False, "findings": [], "writes": [], "files": [], "reserved": "", "diff": []}
    try:
        wish = tuning.NOTHING if given.pop("state") == "absent" else tuning.wanted(**given)
        observed = tuning.observe(wish, tree)
        decided = tuning.plan(wish, observed)
        result.update(
            changed=tuning.changes(decided),
            findings=decided["findings"],
            writes=decided["writes"],
            files=sorted(decided["files"]),
            reserved=decided["reserved"],
            diff=tuning.diff(decided, observed),
        )
        if not module.check_mode:
            tuning.apply(decided, observed, tree)
            if decided["unit"]:
                switch_unit(module, decided["unit"], tree)
    except (AscentError, OSError) as error:
        module.fail_json(msg=f"host tuning: {error}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
