#!/usr/bin/python
"""Thin module around ascent.collectives and ascent.mpi_job."""

from __future__ import annotations

DOCUMENTATION = r"""
module: collective_test
short_description: Try collectives out over growing groups of hosts and name the hosts that spoil them
description:
  - Runs on one node and starts the test programs on all of them by MPI, with the key of M(mpi_trust).
  - First every host alone, then pairs of hosts in rounds, then all together. What fails or is slow is brought down to
    the hosts that cause it; these are left out of what follows. Nothing is changed on any host.
options:
  directory: {description: The run's directory of M(mpi_trust)., type: path, required: true}
  user: {description: Who starts the MPI daemons., type: str, default: root}
  hosts:
    description: By name what M(mpi_trust) told (C(address), C(port), C(host_keys)) and the C(devices).
    type: dict
    required: true
  launcher: {description: Which MPI the nodes have., type: str, choices: [openmpi, mpich], required: true}
  path: {description: Directory of mpirun., type: path, required: true}
  shell:
    description: Words that start a shell in the image, where MPI and test programs are there; see M(mpi_trust).
    type: list
    elements: str
    default: []
  tests: {description: Directory of the test programs., type: path, required: true}
  tool: {description: Whose programs they are., type: str, choices: [hccl_test, nccl-tests], default: hccl_test}
  collectives: {description: What is run., type: list, elements: str, default: [all_reduce]}
  interfaces: {description: Network cards that MPI may use., type: list, elements: str, default: []}
  environment: {description: Scripts that are sourced first., type: list, elements: path, default: []}
  variables: {description: Environment of every rank., type: dict, default: {}}
  sizes:
    description: The smallest and the largest message in bytes.
    type: list
    elements: int
    default: [8192, 67108864]
  iterations: {description: Measured iterations of each size., type: int, default: 20}
  limit: {description: Seconds after which a run is ended., type: float, default: 60}
  ratio: {description: Share of the best group's bandwidth below which a group is slow., type: float, default: 0.5}
  cluster_ratio:
    description: The same between all hosts together and the best pair; V(0) does not judge.
    type: float
    default: 0
  pair_rounds: {description: Rounds of pairs; V(0) runs all., type: int, default: 2}
  burn_in: {description: Seconds for which all sound hosts are kept under load at the end., type: float, default: 0}
  groups:
    description:
      - Hosts that are tried and compared with each other, those of one kind of hardware, by name in C(hosts), and their
        C(floors), the least GB/s of the largest message by phase and collective. By default all hosts, without floors.
    type: list
    elements: dict
    default: []
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Try all_reduce over two hosts
  collective_test:
    directory: /var/lib/ascent/a3-cluster/collectives
    launcher: openmpi
    path: /usr/bin
    tests: /usr/local/Ascend/cann/tools/hccl_test/bin
    hosts:
      a3-01: {address: 192.0.2.11, port: 22, host_keys: [], devices: [0, 1]}
      a3-02: {address: 192.0.2.12, port: 22, host_keys: [ssh-ed25519 AAAA], devices: [0, 1]}
"""

RETURN = r"""
runs:
  description: Of every run C(phase), C(collective), C(hosts), C(devices), C(outcome), C(seconds), C(rows) and C(text).
  returned: always
  type: list
  elements: dict
culprits:
  description: Hosts that spoil a collective, with C(kind), C(collective), C(outcome) and C(text).
  returned: always
  type: list
  elements: dict
"""

import os
import time

from ansible.module_utils.ascent import hccl_test, mpi_job, mpi_trust, nccl_tests
from ansible.module_utils.ascent.collectives import Campaign
from ansible.module_utils.ascent.command import run
from ansible.module_utils.basic import AnsibleModule


def _environment(scripts: list, path: str) -> dict:
    """The environment of this process with ``scripts`` sourced and MPI first on the search path."""
    script = "for each; do if test -r $each; then . $each; fi; done >/dev/null 2>&1; exec env -0"
    code, out, _ = run(["bash", "-c", script, "bash", *scripts], 60)
    sourced = (
        dict(line.partition("=")[::2] for line in out.split("\0") if "=" in line) if not code else dict(os.environ)
    )
    return {**sourced, "PATH": f"{path}:{sourced.get('PATH', '')}", "LANG": "C", "LC_ALL": "C"}


def main() -> None:
    """Run the campaign."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "default": "root"},
            "hosts": {"type": "dict", "required": True},
            "launcher": {"type": "str", "choices": ["openmpi", "mpich"], "required": True},
            "path": {"type": "path", "required": True},
            "shell": {"type": "list", "elements": "str", "default": []},
            "tests": {"type": "path", "required": True},
            "tool": {"type": "str", "choices": ["hccl_test", "nccl-tests"], "default": "hccl_test"},
            "collectives": {"type": "list", "elements": "str", "default": ["all_reduce"]},
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "list", "elements": "path", "default": []},
            "variables": {"type": "dict", "default": {}},
            "sizes": {"type": "list", "elements": "int", "default": [8192, 67108864]},
            "iterations": {"type": "int", "default": 20},
            "limit": {"type": "float", "default": 60},
            "ratio": {"type": "float", "default": 0.5},
            "cluster_ratio": {"type": "float", "default": 0},
            "pair_rounds": {"type": "int", "default": 2},
            "burn_in": {"type": "float", "default": 0},
            "groups": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    programs = nccl_tests.PROGRAMS if given["tool"] == "nccl-tests" else hccl_test.PROGRAMS
    unknown = [name for name in given["collectives"] if name not in programs]
    if unknown or len(given["sizes"]) != 2:
        wanted = f"collectives out of {', '.join(programs)}, and a smallest and a largest size"
        module.fail_json(msg=f"wanted {wanted}; found {given['collectives']} and {given['sizes']}")
    if module.check_mode:
        module.exit_json(changed=False, runs=[], culprits=[], seconds=0.0)
    begun, directory = time.monotonic(), given["directory"]
    ports = {str(host["address"]): int(host["port"]) for host in given["hosts"].values()}
    agent = os.path.join(directory, "ssh")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for path, text in (
        (os.path.join(directory, "known_hosts"), mpi_trust.known_hosts(given["hosts"])),
        (agent, mpi_trust.ssh_wrapper(directory, ports, given["user"])),
    ):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "w", encoding="utf-8") as stream:
            stream.write(text)
    launcher = mpi_job.Launcher(
        given["hosts"],
        given["launcher"],
        given["tests"],
        tool=given["tool"],
        programs=programs,
        limit=given["limit"],
        job_environment=_environment(given["environment"], given["path"]),
        shell=given["shell"] or None,
        script=mpi_trust.sourced(given["environment"], given["path"]) if given["shell"] else "",
        agent=agent,
        interfaces=given["interfaces"],
        environment={name: str(value) for name, value in given["variables"].items()},
        sizes=given["sizes"],
        iterations=given["iterations"],
    )
    runs, culprits = [], []
    for group in given["groups"] or [{"hosts": list(given["hosts"])}]:
        campaign = Campaign(
            group["hosts"],
            launcher.measure,
            collectives=given["collectives"],
            ratio=given["ratio"],
            cluster_ratio=given["cluster_ratio"],
            pair_rounds=given["pair_rounds"],
            floors=group.get("floors"),
            burn_in=given["burn_in"],
        )
        campaign.run()
        runs += campaign.runs
        culprits += campaign.culprits
    seconds = round(time.monotonic() - begun, 3)
    module.exit_json(changed=False, runs=runs, culprits=culprits, seconds=seconds)


if __name__ == "__main__":
    main()
