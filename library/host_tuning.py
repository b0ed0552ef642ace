#!/usr/bin/python
"""Thin module around ascent.tuning."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_tuning
short_description: Tune a host for NPU inference, live and over reboots
description:
  - Sets the cpufreq governor, sysctls, transparent hugepages, reserved ports, limits, the size of C(/dev/shm), names of
    the cluster's nodes, time servers, firewall openings, interrupts and isolated CPUs in one call, live and
    persistently.
  - Persistent means C(/etc/sysctl.d/90-ascent.conf), C(/etc/security/limits.d/90-ascent.conf), drop-ins named
    C(90-ascent*) for systemd, a marked block in C(/etc/hosts), and the unit C(ascent-host-tuning.service) for what no
    such file can hold (governor, hugepages, debugfs, C(/dev/shm), interrupts).
  - The values from before are kept in C(/var/lib/ascent/host_tuning.json). A setting that is no longer asked for goes
    back to its old value; O(state=absent) undoes everything.
  - A knob that the kernel lacks is reported as a finding and is no failure; so is a service or file that sets the same.
options:
  state:
    description: Whether the host is tuned, or as it was before.
    type: str
    choices: [present, absent]
    default: present
  only:
    description:
      - With C(firewall) only O(firewall) is looked at, and everything else stays as it is. For stages before the tuning
        in which nodes already talk to each other.
    type: str
    choices: ["", firewall]
    default: ""
  governor:
    description: cpufreq governor of every CPU. Empty leaves it alone.
    type: str
    default: ""
  sysctl:
    description: Parameters of C(/proc/sys). Values are integers or strings, never booleans; null leaves one alone.
    type: dict
    default: {}
  debugfs:
    description: For a sysctl that newer kernels have moved, the file below C(/sys/kernel/debug) to write instead.
    type: dict
    default: {}
  hugepages:
    description: Words for the files C(enabled) and C(defrag) of transparent hugepages; null leaves one alone.
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
    description:
      - Hard and soft limits, by their names in C(limits.conf), such as C(nofile), each a number or C(unlimited).
      - They hold for login sessions, and for the units C(docker), C(containerd) and C(ascent-*).
    type: dict
    default: {}
  shm_mb:
    description: MB that C(/dev/shm) must hold. It is made larger where it is smaller, and never smaller. 0 leaves it.
    type: int
    default: 0
  hosts:
    description: Nodes of the cluster, each with C(address) and C(names), for a block in C(/etc/hosts).
    type: list
    elements: dict
    default: []
  firewall:
    description:
      - What ufw or firewalld, where one of them filters, lets through to this host over TCP. C(sources) (addresses or
        networks of the cluster) reach C(ports) and the kernel's ephemeral ports, C(clients) reach C(client_ports).
        C(nic) names the interface whose firewalld zone is meant.
      - Empty opens nothing, and closes what an earlier run has opened.
    type: dict
    default: {}
  ntp_servers:
    description: Time servers for chrony or systemd-timesyncd, whichever is installed. Empty leaves both alone.
    type: list
    elements: str
    default: []
  ntp_wait:
    description: Seconds to wait for a clock that follows its servers, after the time service was started.
    type: float
    default: 15
  isolate_cpus:
    description: CPUs that the kernel keeps free of other work from the next boot on, such as C(8-31).
    type: str
    default: ""
  irq_devices:
    description: PCI bus ids of devices whose interrupts go to the CPUs of their own NUMA node.
    type: list
    elements: str
    default: []
  jemalloc:
    description: Whether engines outside containers want jemalloc, so that its absence is worth a finding.
    type: bool
    default: false
  installed:
    description: Packages that were installed for us after an earlier call asked for them, noted for the undo.
    type: list
    elements: str
    default: []
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
    hugepages:
      enabled: madvise
    reserved_ports: ["23010-23025", "6884"]
    hosts:
      - {address: 192.0.2.11, names: [a3-01]}

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
commands:
  description: Commands that were run to change something, or would be in check mode.
  returned: always
  type: list
  elements: str
packages:
  description: Packages that this host lacks, or with O(state=absent) those that were installed for us.
  returned: always
  type: list
  elements: str
reserved:
  description: All reserved ports after the change, in the kernel's list form.
  returned: always
  type: str
jemalloc:
  description: Where the host has jemalloc; null where it has not.
  returned: always
  type: str
reboot_needed:
  description: Whether the kernel has to be booted again for what was asked.
  returned: always
  type: bool
"""

import os
import socket
import time
from collections.abc import Sequence

from ansible.module_utils.ascent import command, time_service, tuning, tuning_owners
from ansible.module_utils.ascent.errors import AscentError
from ansible.module_utils.ascent.files import Tree
from ansible.module_utils.basic import AnsibleModule

ROOT = "/"
# Long enough for a boot loader's configuration.
TIMEOUT = 120


def run(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run one program of the host, also where the login's PATH lacks the directories of administrators."""
    places = [*os.environ.get("PATH", "").split(":"), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    os.environ["PATH"] = ":".join(dict.fromkeys(place for place in places if place))
    return command.run(argv, TIMEOUT)


def synchronised(decided: dict, tree: Tree, wait: float) -> bool | None:
    """Whether the clock follows its servers; a time service that was just started, and runs, gets ``wait`` seconds."""
    restarted = [step["argv"][2].partition(".")[0] for step in decided["steps"] if step["argv"][1:2] == ["restart"]]
    units = [unit for unit in time_service.FILES.values() if unit in restarted and tuning_owners.runs(tree, unit)]
    deadline = time.monotonic() + (wait if units else 0)
    while (state := time_service.synchronised()) is False and time.monotonic() < deadline:
        time.sleep(0.5)
    return state


def main() -> None:
    """Observe, plan, apply."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "only": {"type": "str", "choices": ["", "firewall"], "default": ""},
            "governor": {"type": "str", "default": ""},
            "sysctl": {"type": "dict", "default": {}},
            "debugfs": {"type": "dict", "default": {}},
            "hugepages": {"type": "dict", "default": {}},
            "reserved_ports": {"type": "list", "elements": "str", "default": []},
            "limits": {"type": "dict", "default": {}},
            "shm_mb": {"type": "int", "default": 0},
            "hosts": {"type": "list", "elements": "dict", "default": []},
            "firewall": {"type": "dict", "default": {}},
            "ntp_servers": {"type": "list", "elements": "str", "default": []},
            "ntp_wait": {"type": "float", "default": 15},
            "isolate_cpus": {"type": "str", "default": ""},
            "irq_devices": {"type": "list", "elements": "str", "default": []},
            "jemalloc": {"type": "bool", "default": False},
            "installed": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    tree = Tree(ROOT)
    given = dict(module.params)
    undo, wait, installed = given.pop("state") == "absent", given.pop("ntp_wait"), given.pop("installed")
    if only := given.pop("only"):
        given = {only: given[only]}
    result = {"changed": False, "findings": [], "writes": [], "files": [], "commands": [], "packages": []}
    result.update(reserved="", jemalloc=None, reboot_needed=False, diff=[])
    try:
        wish = tuning.NOTHING if undo else tuning.wanted(**given)
        observed = tuning.observe(wish, tree, run, socket.gethostname())
        decided = (
            tuning.plan_firewall(observed) if only else tuning.plan(wish, observed, installed=installed, undo=undo)
        )
        refused = [] if module.check_mode else tuning.apply(decided, observed, tree, run)
        done = {**decided, "writes": [write for write in decided["writes"] if write["path"] not in refused]}
        findings = decided["findings"] + ([tuning.interrupts_refused(refused)] if refused else [])
        if not undo and not only:
            state = synchronised(done, tree, 0 if module.check_mode else wait)
            findings += tuning.clock_findings(wish, tree, run, state)
        result.update(
            changed=tuning.changes(done),
            findings=findings,
            writes=done["writes"],
            files=sorted(done["files"]),
            commands=[" ".join(argv) for argv in [*done["first"], *(step["argv"] for step in done["steps"])]],
            packages=done["packages"],
            reserved=done["reserved"],
            jemalloc=observed["jemalloc"],
            reboot_needed=done["reboot"],
            diff=tuning.diff(done, observed),
        )
    except (AscentError, OSError) as error:
        module.fail_json(msg=f"host tuning: {error}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
