#!/usr/bin/python
"""Ansible module ``generation``; the action plugin of the same name computes its arguments on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: generation
short_description: Keep one generation of a cluster's scripts on a node
description:
  - Writes the scripts and the manifest of one generation and points the C(current) link at it.
  - A generation that is new appears whole or not at all, because it is written beside its place and renamed.
  - In a generation that exists already, a file that was edited, lost or added by hand is put right, and so is one of
    another mode or owner.
  - The action plugin of the same name fills O(number), O(files) and O(manifest) from the plan.
options:
  root:
    description: Directory of the cluster, such as C(/etc/ascent/a3-cluster).
    type: path
    required: true
  digests:
    description: Digest of every image that this generation locks, by reference. Null while a dry run cannot know it.
    type: dict
  number:
    description: Number of the generation.
    type: int
  files:
    description: File names and their contents.
    type: dict
  directories:
    description: Directories that the containers of this host mount, made where they are missing.
    type: list
    elements: path
    default: []
  manifest:
    description: What the node remembers of the generation, see docs/architecture.md section 5.
    type: dict
author:
  - Ascent developers (@ascent)
attributes:
  check_mode:
    description: Says what would change and touches nothing.
    support: full
  diff_mode:
    description: Shows each file against the generation that is current.
    support: full
  idempotent:
    description: A second call with the same arguments changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Write the generation
  generation:
    root: /etc/ascent/a3-cluster
    digests:
      quay.io/ascend/vllm-ascend:v0.21.0rc1-a3: sha256:0f4e…
"""

RETURN = r"""
number:
  description: Number of the generation that is current now.
  returned: always
  type: int
written:
  description: Names of the files that were, or in check mode would be, written or removed, for their mode alone, too.
  returned: always
  type: list
made:
  description: Directories that were, or in check mode would be, made.
  returned: always
  type: list
"""

import json
import os
import shutil
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

MANIFEST = "manifest.json"
#: Root writes, its group reads, nobody else. Scripts are no different: what runs one is bash, with its path.
FILE_MODE = 0o640
FOLDER_MODE = 0o750


def observe(directory):
    """Texts of the files in ``directory`` by name; empty when it is not there."""
    if not os.path.isdir(directory):
        return {}
    found = {}
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as handle:
                found[name] = handle.read()
    return found


def access(path):
    """Type, mode and owner of what is at ``path``, in words; a link is told as what it is."""
    found = os.lstat(path)
    kind = "link" if stat.S_ISLNK(found.st_mode) else "folder" if stat.S_ISDIR(found.st_mode) else "file"
    return f"{kind}, mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}:{found.st_gid}\n"


def meant(kind, mode):
    """What `access` has to say of what this module writes."""
    return f"{kind}, mode {mode:04o}, owner {os.geteuid()}:{os.getegid()}\n"


def loose(directory, names):
    """Those of the files ``names`` in ``directory``, and of the folders around them, with another mode or owner.

    Each as ``(path, what it is, what it is meant to be)``.
    """
    wanted = [(os.path.join(directory, name), meant("file", FILE_MODE)) for name in names]
    wanted += [(folder, meant("folder", FOLDER_MODE)) for folder in (os.path.dirname(directory), directory)]
    seen = [(path, access(path), right) for path, right in wanted if os.path.lexists(path)]
    return [(path, is_now, right) for path, is_now, right in seen if is_now != right]


def close(folder):
    """Give a folder back to who runs this module, and to nobody else."""
    os.chown(folder, os.geteuid(), os.getegid())
    os.chmod(folder, FOLDER_MODE)


def write(directory, name, text):
    """Replace one file in one step; also whoever has the old one open, or a link to it, can't change it any more."""
    handle, temporary = tempfile.mkstemp(dir=directory, prefix="." + name)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, FILE_MODE)
    os.replace(temporary, os.path.join(directory, name))


def apply(directory, wanted, changed_names):
    """Make ``directory`` hold exactly ``wanted``."""
    if os.path.isdir(directory):
        for folder in (os.path.dirname(directory), directory):
            close(folder)
        for name in changed_names:
            if name in wanted:
                write(directory, name, wanted[name])
            else:
                os.unlink(os.path.join(directory, name))
        return
    parent = os.path.dirname(directory)
    os.makedirs(parent, exist_ok=True)
    close(parent)
    for half_written in os.listdir(parent):
        if half_written.startswith(".new-"):
            shutil.rmtree(os.path.join(parent, half_written))
    beside = tempfile.mkdtemp(dir=parent, prefix=".new-")
    for name, text in wanted.items():
        write(beside, name, text)
    close(beside)
    os.rename(beside, directory)


def point(link, target):
    """Move the ``current`` link in one step."""
    temporary = link + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, link)


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "digests": {"type": "dict"},
            "number": {"type": "int"},
            "files": {"type": "dict"},
            "directories": {"type": "list", "elements": "path", "default": []},
            "manifest": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    root, number = module.params["root"], module.params["number"]
    if number is None or module.params["files"] is None or module.params["manifest"] is None:
        module.fail_json(msg="generation has no plan to write: call it through its action plugin, with ascent_plan set")

    wanted = dict(module.params["files"])
    wanted[MANIFEST] = json.dumps(module.params["manifest"], indent=2, sort_keys=True) + "\n"
    directory = os.path.join(root, "generations", str(number))
    link, target = os.path.join(root, "current"), os.path.join("generations", str(number))

    there = observe(directory)
    open_to_others = loose(directory, [name for name in there if name in wanted])
    written = sorted(
        {name for name in set(there) | set(wanted) if there.get(name) != wanted.get(name)}
        | {os.path.basename(path) for path, _, _ in open_to_others if os.path.dirname(path) == directory}
    )
    current = os.readlink(link) if os.path.islink(link) else None
    before = there or observe(link)
    diff = [
        {
            "before_header": name,
            "after_header": f"generation {number}: {name}",
            "before": before.get(name, ""),
            "after": wanted.get(name, ""),
        }
        for name in written
        if before.get(name) != wanted.get(name)
    ]
    diff += [
        {"before_header": path, "after_header": path, "before": is_now, "after": right}
        for path, is_now, right in open_to_others
    ]
    missing = [path for path in module.params["directories"] if not os.path.isdir(path)]
    diff += [{"before": "", "after": f"directory {path}\n"} for path in missing]
    changed = bool(written or missing or open_to_others) or current != target
    if current != target:
        diff.append({"before": f"current -> {current}\n", "after": f"current -> {target}\n"})

    if changed and not module.check_mode:
        for path in missing:
            os.makedirs(path, exist_ok=True)
        apply(directory, wanted, written)
        if current != target:
            point(link, target)
    module.exit_json(changed=changed, number=number, written=written, made=missing, diff=diff)


if __name__ == "__main__":
    main()
