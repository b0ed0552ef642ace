#!/usr/bin/python
"""Ansible module ``credentials``; the action plugin of the same name computes its arguments on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: credentials
short_description: Keep the secret files of a cluster's processes on a node
description:
  - Writes keys and certificates, each process's in a directory of its own that only root can enter. Those of processes
    that are gone are removed.
  - A gateway whose files changed is told to read them again; no connection is cut. All other processes read their key
    when they start, and the launch starts them anew.
  - The action plugin of the same name fills O(secrets) and O(gateway) from plan and inventory. No output has a secret.
options:
  root:
    description: Directory of the secrets, such as C(/etc/ascent/a3-cluster/secrets).
    type: path
    required: true
  secrets:
    description: Texts by process and file name.
    type: dict
  gateway:
    description: The container that is told to read its files again, and its process.
    type: dict
author:
  - Ascent developers (@ascent)
attributes:
  check_mode:
    description: Says what would change and touches nothing.
    support: full
  diff_mode:
    description: Names the files, never what is in them.
    support: partial
  idempotent:
    description: A second call with the same arguments changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Hand out keys and certificates
  credentials:
    root: /etc/ascent/a3-cluster/secrets
"""

RETURN = r"""
written:
  description: Files that were, or in check mode would be, written or removed.
  returned: always
  type: list
  elements: str
reloaded:
  description: Whether a gateway was, or would be, told to read its files again.
  returned: always
  type: bool
"""

import hashlib
import json
import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

#: What a gateway has read last, beside the directories of the processes.
LOADED = ".loaded"


def observe(root):
    """Texts by ``process/file`` of all that lies there, and the paths of entries with other modes or owners."""
    texts, loose = {}, []
    if not os.path.isdir(root):
        return texts, loose
    if _modes(root) != (0o700, 0):
        loose.append("")
    for process in sorted(os.listdir(root)):
        folder = os.path.join(root, process)
        if not os.path.isdir(folder):
            continue
        if _modes(folder) != (0o700, 0):
            loose.append(process)
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8", errors="replace") as stream:
                texts[f"{process}/{name}"] = stream.read()
            if _modes(path) != (0o600, 0):
                loose.append(f"{process}/{name}")
    return texts, loose


def _modes(path):
    status = os.stat(path)
    return status.st_mode & 0o7777, 0 if status.st_uid == os.geteuid() else 1


def write(path, text):
    """Replace one file in one step; at no time can anyone but root read it."""
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o600)
    os.replace(temporary, path)


def folder(path):
    """A directory that only its owner can enter."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    os.chmod(path, 0o700)


def mark_of(wanted, process):
    """What tells whether a gateway has read these files."""
    mine = {name: text for name, text in wanted.items() if name.startswith(process + "/")}
    return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()


def loaded(root):
    """The mark of what a gateway read last; empty where there is none."""
    try:
        with open(os.path.join(root, LOADED), encoding="utf-8") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def runs(module, container):
    """Whether a container runs; a host without a container engine runs none."""
    docker = module.get_bin_path("docker")
    if docker is None:
        return False
    code, out, _ = module.run_command([docker, "inspect", "--format", "{{.State.Running}}", container])
    return code == 0 and out.strip() == "true"


def reload(module, container):
    """Have a gateway read its files again. What it can't use ends the module; the old files are served on."""
    docker = module.get_bin_path("docker", required=True)
    code, out, err = module.run_command([docker, "exec", container, "nginx", "-t", "-c", "/etc/ascent/gateway.conf"])
    if code:
        module.fail_json(
            msg=f"the gateway {container} refuses its new files and goes on with the old: {(err or out).strip()[-500:]}"
        )
    code, out, err = module.run_command([docker, "kill", "--signal", "HUP", container])
    if code:
        module.fail_json(msg=f"docker kill --signal HUP {container} failed: {(err or out).strip()}")


def apply(root, wanted, there, written):
    """Make ``root`` hold exactly ``wanted``."""
    parent = os.path.dirname(root)
    if not os.path.isdir(parent):
        os.makedirs(parent)
        os.chmod(parent, 0o750)  # noqa: S103 - root and its group, nobody else
    folder(root)
    for name in sorted(wanted):
        folder(os.path.join(root, name.partition("/")[0]))
    for name in written:
        path = os.path.join(root, name)
        if name in wanted:
            write(path, wanted[name])
        else:
            os.unlink(path)
    processes = {name.partition("/")[0] for name in wanted}
    for process in {name.partition("/")[0] for name in there} - processes:
        shutil.rmtree(os.path.join(root, process))


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "secrets": {"type": "dict", "no_log": True},
            "gateway": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    root, secrets, gateway = (module.params[name] for name in ("root", "secrets", "gateway"))
    if secrets is None:
        module.fail_json(msg="there are no secrets to write: call it through its action plugin, with ascent_plan set")
    wanted = {f"{process}/{name}": text for process, texts in secrets.items() for name, text in texts.items()}
    there, loose = observe(root)
    written = sorted(name for name in set(there) | set(wanted) if there.get(name) != wanted.get(name))
    written += [name for name in loose if name in wanted and name not in written]
    again = False
    if gateway:
        mark = mark_of(wanted, gateway["process"])
        again = loaded(root) != mark and runs(module, gateway["container"])
    elif os.path.exists(os.path.join(root, LOADED)) and not module.check_mode:
        os.unlink(os.path.join(root, LOADED))
    changed = bool(written or loose or again)
    if not module.check_mode:
        if written or loose:
            if wanted:
                apply(root, wanted, there, written)
            else:
                shutil.rmtree(root)
        if again:
            reload(module, gateway["container"])
        if gateway and loaded(root) != mark:
            write(os.path.join(root, LOADED), mark + "\n")
    diff = [
        {
            "before_header": f"{root}/{name}",
            "after_header": f"{root}/{name}",
            "before": "(a secret)\n" if name in there else "",
            "after": ("(another secret)\n" if name in there else "(a secret)\n") if name in wanted else "",
        }
        for name in written
    ]
    if again:
        diff.append({"prepared": f"{gateway['container']}: reads its files again\n"})
    module.exit_json(changed=changed, written=written, reloaded=again, diff=diff)


if __name__ == "__main__":
    main()
