#!/usr/bin/python
"""Thin module around ascent.mpi_trust."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mpi_trust
short_description: Let one node start MPI daemons on this one for the time of one run
description:
  - C(key) makes a key on the node that starts the tests; it never leaves that node.
  - C(present) takes the key in C(authorized_keys), from one address and for MPI daemons only, and tells what this node
    has of MPI and of test programs. A node that lacks them is told of, and nothing is changed there.
  - C(absent) takes back what the two others did.
options:
  state: {description: What is wanted., type: str, choices: [key, present, absent], required: true}
  cluster: {description: Name of the cluster; marks the line in C(authorized_keys)., type: str, required: true}
  directory: {description: Where the run's key and programs lie on each node., type: path, required: true}
  user: {description: Who starts the MPI daemons., type: str, default: root}
  key: {description: The public key, type: str}
  source: {description: Address of the node that has the key., type: str}
  address: {description: This node's own address, which the others use., type: str}
  port: {description: Port of this node's ssh server., type: int, default: 22}
  environment:
    description: Scripts that are sourced before an MPI daemon starts; those that are not there are passed over.
    type: list
    elements: path
    default: [/usr/local/Ascend/ascend-toolkit/set_env.sh, /usr/local/Ascend/cann/set_env.sh]
  launchers:
    description: Directories where mpirun is looked for, after the search path.
    type: list
    elements: path
    default: [/usr/local/openmpi/bin, /usr/local/mpich/bin, /usr/lib64/openmpi/bin, /usr/lib64/mpich/bin]
  tests:
    description: Directories where the test programs are looked for; the first that has one counts.
    type: list
    elements: path
    default:
      - /usr/local/Ascend/cann/tools/hccl_test/bin
      - /usr/local/Ascend/ascend-toolkit/latest/tools/hccl_test/bin
  programs: {description: Names of the test programs., type: list, elements: str, default: []}
  image:
    description: Where this node lacks MPI or the test programs, they are looked for in this image. It is not pulled.
    type: str
  options:
    description: What a container of the image is started with, as for the engine.
    type: list
    elements: str
    default: []
  container_program: {description: Command line client of the container engine., type: str, default: docker}
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Let the first node in
  mpi_trust:
    state: present
    cluster: a3-cluster
    directory: /var/lib/ascent/a3-cluster/collectives
    key: ssh-ed25519 AAAA
    source: 192.0.2.11
    address: 192.0.2.12
"""

RETURN = r"""
public_key: {description: The key that was made., returned: state is key, type: str}
mpi:
  description:
    - C(address), C(port), C(host_keys), C(launcher) (C(openmpi), C(mpich) or null), C(version), C(path) of the
      directory of mpirun or null, C(tests) (directory or null), C(programs) (names that are there), C(missing),
      C(where) (C(host) or C(image)) and C(shell), the words that start a shell there.
  returned: state is present
  type: dict
"""

import contextlib
import os
import pwd
import shutil
import sys

from ansible.module_utils.ascent import hccl_test, mpi_image, mpi_trust
from ansible.module_utils.ascent.command import run
from ansible.module_utils.ascent.npu import CONF
from ansible.module_utils.basic import AnsibleModule

_HOST_KEYS = ("ssh_host_ed25519_key.pub", "ssh_host_ecdsa_key.pub", "ssh_host_rsa_key.pub")


def _write(path: str, text: str, mode: int, owner: pwd.struct_passwd) -> None:
    """Replaces a file as a whole, so that nobody ever reads half of it."""
    new = f"{path}.ascent"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(new, mode)
    os.chown(new, owner.pw_uid, owner.pw_gid)
    os.replace(new, path)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def _found(given: dict) -> dict:
    """What this node has of MPI and test programs."""
    path = shutil.which("mpirun")
    path = path or next((f"{each}/mpirun" for each in given["launchers"] if os.path.exists(f"{each}/mpirun")), None)
    code, out, err = run([path, "--version"], 30) if path else (1, "", "")
    tests = next((each for each in given["tests"] if os.path.isdir(each) and os.listdir(each)), None)
    programs = [name for name in given["programs"] if tests and os.access(f"{tests}/{name}", os.X_OK)]
    keys = [_text(f"/etc/ssh/{name}").split()[:2] for name in _HOST_KEYS]
    return {
        "address": given["address"],
        "port": given["port"],
        "host_keys": [" ".join(key) for key in keys if key],
        "launcher": hccl_test.launcher(out + err) if not code else None,
        "version": (out + err).strip().split("\n")[0],
        "path": os.path.dirname(path) if path else None,
        "tests": tests,
        "programs": programs,
        "missing": [*([] if path else ["mpirun"]), *([] if programs else ["the test programs"])],
        "where": "host",
        "shell": ["/bin/bash"],
    }


def _found_in_image(given: dict, on_host: dict) -> dict:
    """What the image has where the host lacks something, else what the host has."""
    program = shutil.which(given["container_program"])
    if not on_host["missing"] or not given["image"] or not program:
        return on_host
    if run([program, "image", "inspect", "--format", "{{.Id}}", given["image"]], 60)[0]:
        return on_host
    paths = (given["environment"], given["launchers"], given["tests"], given["programs"])
    _, out, _ = run(mpi_image.probe(program, given["image"], *paths), 120)
    told = mpi_image.found(out, given["programs"])
    if told["missing"]:
        return {**on_host, "missing": [*on_host["missing"], *told["missing"]]}
    options = list(given["options"])
    if os.path.isfile(CONF) and not any(f":{CONF}" in word for word in options):
        options += ["-v", f"{CONF}:{CONF}:ro"]
    shell = mpi_image.wrapped(program, given["image"], given["cluster"], given["directory"], options)
    return {**on_host, **told, "where": "image", "shell": shell}


def _remove_containers(given: dict) -> None:
    """Those that outlived their test, as one does whose launcher was killed."""
    program = shutil.which(given["container_program"])
    if not program:
        return
    _, out, _ = run([program, "ps", "-aq", "--filter", f"label={mpi_image.label(given['cluster'])}"], 60)
    if out.split():
        run([program, "rm", "--force", *out.split()], 60)


def main() -> None:
    """Make the key, take it in, or take it back."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["key", "present", "absent"], "required": True},
            "cluster": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "default": "root"},
            "key": {"type": "str", "no_log": False},
            "source": {"type": "str"},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 22},
            "environment": {
                "type": "list",
                "elements": "path",
                "default": ["/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/cann/set_env.sh"],
            },
            "launchers": {
                "type": "list",
                "elements": "path",
                "default": [
                    "/usr/local/openmpi/bin",
                    "/usr/local/mpich/bin",
                    "/usr/lib64/openmpi/bin",
                    "/usr/lib64/mpich/bin",
                ],
            },
            "tests": {
                "type": "list",
                "elements": "path",
                "default": [
                    "/usr/local/Ascend/cann/tools/hccl_test/bin",
                    "/usr/local/Ascend/ascend-toolkit/latest/tools/hccl_test/bin",
                ],
            },
            "programs": {"type": "list", "elements": "str", "default": []},
            "image": {"type": "str"},
            "options": {"type": "list", "elements": "str", "default": []},
            "container_program": {"type": "str", "default": "docker"},
        },
        required_if=[("state", "present", ["key", "source", "address"])],
        supports_check_mode=True,
    )
    given = module.params
    owner = pwd.getpwnam(given["user"])
    directory, key = given["directory"], os.path.join(given["directory"], "key")
    folder = os.path.join(owner.pw_dir, ".ssh")
    keys = os.path.join(folder, "authorized_keys")
    text = _text(keys)

    if given["state"] == "absent":
        kept = mpi_trust.revoke(text, given["cluster"])
        changed = kept != text or os.path.isdir(directory)
        if changed and not module.check_mode:
            made = os.path.exists(os.path.join(directory, "made"))
            if kept != text:
                _write(keys, kept, os.stat(keys).st_mode & 0o7777, owner)
            if made and not kept:
                os.unlink(keys)
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            if os.path.isdir(directory):
                _remove_containers(given)
            shutil.rmtree(directory, ignore_errors=True)
        module.exit_json(changed=changed)

    if module.check_mode:
        module.exit_json(changed=False, public_key="", mpi=_found_in_image(given, _found(given)))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if given["state"] == "key":
        for name in (key, f"{key}.pub"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key]
        code, out, err = run(argv, 30)
        if code:
            module.fail_json(msg=f"{' '.join(argv)} ended with {code}: {(out + err).strip()}")
        module.exit_json(changed=True, public_key=" ".join(_text(f"{key}.pub").split()[:2]))

    found = _found_in_image(given, _found(given))
    if found["missing"]:
        module.exit_json(changed=False, mpi=found)
    program = os.path.join(directory, "agent")
    try:
        agent = mpi_trust.agent(sys.executable, given["environment"], found["path"], found["shell"])
        wanted = mpi_trust.authorize(text, given["cluster"], given["key"], given["source"], program)
    except ValueError as error:
        module.fail_json(msg=str(error))
    _write(program, agent, 0o755, owner)
    # Open MPI's daemons want the program there by which they could log in further; it is not called.
    _write(os.path.join(directory, "ssh"), "#!/bin/sh\nexit 1\n", 0o755, owner)
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    if not os.path.exists(keys):
        _write(os.path.join(directory, "made"), "", 0o600, owner)
    _write(keys, wanted, os.stat(keys).st_mode & 0o7777 if os.path.exists(keys) else 0o600, owner)
    module.exit_json(changed=wanted != text, mpi=found)


if __name__ == "__main__":
    main()
