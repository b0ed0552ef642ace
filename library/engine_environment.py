#!/usr/bin/python
"""Ansible module ``engine_environment``: the virtual environment of an engine outside containers."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_environment
short_description: Install an engine into a virtual environment of its own
description:
  - An environment is whole or not there. It says itself, in C(ascent.json), what was installed; one that an interrupted
    run left, or whose packages were changed since, is made anew.
options:
  path:
    description: Directory of the environment, which follows from what is in it.
    type: path
    required: true
  python:
    description: Interpreter, by name or path.
    type: str
    default: python3
  packages:
    description: Requirements as pip takes them.
    type: list
    elements: str
    required: true
  wheels:
    description: Directory on this host with wheels, which are then the only source. Empty asks an index.
    type: path
  index:
    description: URL of a package index in place of the one that pip is set up for.
    type: str
    default: ""
  install:
    description: Whether to install what is missing; without, the module only looks.
    type: bool
    default: true
author:
  - Ascent developers (@ascent)
attributes:
  check_mode:
    description: Says whether it would install and touches nothing.
    support: full
  diff_mode:
    description: Shows the packages' versions.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Install the engine
  engine_environment:
    path: /opt/ascent/environments/0123456789ab
    packages: [vllm==0.21.0, vllm-ascend==0.21.0rc1]
"""

RETURN = r"""
present:
  description: Whether the environment is whole.
  returned: always
  type: bool
python:
  description: Version of its interpreter.
  returned: when present
  type: str
installed:
  description: Version of every distribution in it, by name.
  returned: when present
  type: dict
"""

import glob
import json
import os
import shutil

from ansible.module_utils.basic import AnsibleModule

MARK = "ascent.json"
# Runs inside the environment: every distribution that its interpreter sees there.
LIST = (
    "import importlib.metadata as m, json, platform, re, sys\n"
    "found = {re.sub(r'[-_.]+', '-', d.metadata['Name']).lower(): d.version"
    " for d in m.distributions(path=[p for p in sys.path if p.startswith(sys.prefix)])}\n"
    "print(json.dumps({'python': platform.python_version(), 'installed': found}))\n"
)


def observe(module, path):
    """What the environment holds, and what it says it holds; None for each that can't be had."""
    try:
        with open(os.path.join(path, MARK), encoding="utf-8") as stream:
            told = json.load(stream)
    except (OSError, ValueError):
        return None, None
    code, out, _ = module.run_command([os.path.join(path, "bin", "python"), "-I", "-c", LIST])
    try:
        return told, json.loads(out) if code == 0 else None
    except ValueError:
        return told, None


def pip_of(module, path, python, wheels):
    """Make the environment; returns the start of a pip call in it."""
    if shutil.which(python) is None:
        module.fail_json(msg=f"{python} is not there: name another interpreter in engine.environment.python")
    code, _, _ = module.run_command([python, "-c", "import ensurepip, venv"])
    if code == 0:
        module.run_command([python, "-m", "venv", "--clear", path], check_rc=True)
        return [os.path.join(path, "bin", "python"), "-m", "pip"]
    # Debian keeps ensurepip in a package of its own; a wheel of pip is as good.
    own = sorted(glob.glob(os.path.join(wheels, "pip-*.whl"))) if wheels else []
    code, out, err = module.run_command([python, "-m", "venv", "--clear", "--without-pip", path])
    if code or not own:
        module.fail_json(
            msg="{} can't make virtual environments with pip: {}; install its venv package (on Debian "
            "python3-venv)".format(python, (err or out).strip() or "ensurepip is missing")
        )
    return [os.path.join(path, "bin", "python"), os.path.join(own[-1], "pip")]


def install(module, path):
    """Make the environment anew. What fails half-way has no mark, and counts as absent."""
    packages, wheels = module.params["packages"], module.params["wheels"]
    if os.path.isdir(path):
        shutil.rmtree(path)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    argv = pip_of(module, path, module.params["python"], wheels)
    argv += ["install", "--quiet", "--no-input", "--disable-pip-version-check"]
    if wheels:
        argv += ["--no-index", "--find-links", wheels]
    elif module.params["index"]:
        argv += ["--index-url", module.params["index"]]
    code, out, err = module.run_command([*argv, *packages])
    if code:
        shutil.rmtree(path, ignore_errors=True)
        source = wheels or module.params["index"] or "the index that pip is set up for"
        module.fail_json(
            msg="can't install {} from {}: {}".format(", ".join(packages), source, (err or out).strip()[-2000:]),
            present=False,
        )
    code, out, err = module.run_command([os.path.join(path, "bin", "python"), "-I", "-c", LIST])
    if code:
        module.fail_json(msg=f"the new environment can't list its packages: {err.strip()[-2000:]}")
    found = json.loads(out)
    temporary = os.path.join(path, MARK + ".new")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump({"packages": packages, **found}, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, os.path.join(path, MARK))
    return found


def listing(found):
    """Versions as lines, for a diff."""
    return "".join("{}=={}\n".format(*one) for one in sorted((found or {}).get("installed", {}).items()))


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "python": {"type": "str", "default": "python3"},
            "packages": {"type": "list", "elements": "str", "required": True},
            "wheels": {"type": "path"},
            "index": {"type": "str", "default": ""},
            "install": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    told, found = observe(module, path)
    present = bool(told and found) and {key: told.get(key) for key in found} == found
    if present or not module.params["install"]:
        module.exit_json(changed=False, present=present, **(found if present else {}))
    diff = {"before": listing(found), "before_header": path, "after_header": path}
    if module.check_mode:
        after = "".join(one + "\n" for one in module.params["packages"])
        module.exit_json(changed=True, present=False, diff={**diff, "after": after})
    found = install(module, path)
    module.exit_json(changed=True, present=True, diff={**diff, "after": listing(found)}, **found)


if __name__ == "__main__":
    main()
