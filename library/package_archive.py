#!/usr/bin/python
"""Thin module around ascent.package_archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_archive
short_description: Install packages of the distribution from a directory on the host, without any repository
description:
  - Installs the named packages and what they need. With dnf, all packages of the directory.
  - The host's own repositories are not asked, and stay as they are.
options:
  directory:
    description: Directory with the packages.
    type: path
    required: true
  packages:
    description: Names of packages that are wanted.
    type: list
    elements: str
    required: true
  manager:
    description: The host's package manager.
    type: str
    choices: [apt, dnf]
    required: true
  lock_timeout:
    description: Seconds to wait for another package manager to end.
    type: int
    default: 120
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Install the container engine
  package_archive:
    directory: /var/lib/ascent/packages
    packages: [docker.io, python3-requests]
    manager: apt
"""

RETURN = r"""
output:
  description: What the package manager printed.
  returned: always
  type: str
"""

import os
import shutil

from ansible.module_utils.ascent import package_archive
from ansible.module_utils.ascent.errors import AscentError
from ansible.module_utils.basic import AnsibleModule


def missing(module: AnsibleModule, manager: str, packages: list) -> list:
    """Those packages that are not installed."""
    if manager == "apt":
        asked = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}"]
        return [name for name in packages if module.run_command([*asked, name])[1] != "installed"]
    return [name for name in packages if module.run_command(["rpm", "--query", "--whatprovides", name])[0]]


def prepare(module: AnsibleModule, directory: str) -> None:
    """Make the directory a repository that apt reads."""
    text = package_archive.index(
        directory, lambda path: module.run_command(["dpkg-deb", "--field", path], check_rc=True)[1]
    )
    os.makedirs(f"{directory}/apt/lists/partial", exist_ok=True)
    os.makedirs(f"{directory}/apt/cache/archives/partial", exist_ok=True)
    with open(f"{directory}/Packages", "w", encoding="utf-8") as stream:
        stream.write(text)
    with open(f"{directory}/sources.list", "w", encoding="utf-8") as stream:
        stream.write(f"deb [trusted=yes] file:{directory} ./\n")


def main() -> None:
    """Look, then install."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
            "manager": {"type": "str", "choices": ["apt", "dnf"], "required": True},
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given = module.params
    result = {"changed": False, "output": ""}
    try:
        wanted = missing(module, given["manager"], given["packages"])
        result["changed"] = bool(wanted)
        if not wanted or module.check_mode:
            module.exit_json(**result)
        if given["manager"] == "apt":
            prepare(module, given["directory"])
        environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        for command in package_archive.commands(given["manager"], given["directory"], wanted, given["lock_timeout"]):
            code, out, err = module.run_command(command, environ_update=environment)
            result["output"] += out
            if code:
                module.fail_json(msg=f"{' '.join(command[:1])} ended with {code}: {(err or out).strip()}", **result)
    except (AscentError, OSError) as error:
        module.fail_json(msg=f"package archive: {error}", **result)
    finally:
        shutil.rmtree(f"{given['directory']}/apt", ignore_errors=True)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
