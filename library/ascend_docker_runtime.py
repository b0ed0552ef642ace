#!/usr/bin/python
"""Thin module around the installer of Huawei's Ascend Docker Runtime."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ascend_docker_runtime
short_description: Install Huawei's Ascend Docker Runtime from its package
description:
  - Runs C(Ascend-docker-runtime_<version>_linux-<machine>.run) where another version, or none, is installed.
  - The installer gets a settings file of its own to edit, so that C(daemon.json) stays with the module
    M(container_engine), which registers the runtime.
options:
  package:
    description: The package, on this host.
    type: path
    required: true
  accept_licence:
    description: Whether the operator has accepted the licence that the installer asks about.
    type: bool
    default: false
  install_path:
    description: Where it is installed.
    type: path
    default: /usr/local/Ascend/Ascend-Docker-Runtime
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Install the runtime
  ascend_docker_runtime:
    package: /root/Ascend-docker-runtime_7.1.RC1_linux-aarch64.run
    accept_licence: true
"""

RETURN = r"""
version:
  description: The installed version afterwards; empty where there is none.
  returned: always
  type: str
"""

import os
import re
import tempfile

from ansible.module_utils.basic import AnsibleModule

#: The installer's own record of what it did, below the installation path.
RECORD = "ascend_docker_runtime_install.info"
NAME = re.compile(r"Ascend-docker-runtime_(?P<version>.+)_linux-(?P<machine>\w+)\.run\Z")


def installed(path: str) -> str:
    """The version that is installed; empty for none."""
    try:
        with open(os.path.join(path, RECORD), encoding="utf-8") as stream:
            found = re.search(r"^version=v?(.+)$", stream.read(), re.M)
    except OSError:
        return ""
    return found.group(1).strip() if found else ""


def main() -> None:
    """Compare, then install."""
    module = AnsibleModule(
        argument_spec={
            "package": {"type": "path", "required": True},
            "accept_licence": {"type": "bool", "default": False},
            "install_path": {"type": "path", "default": "/usr/local/Ascend/Ascend-Docker-Runtime"},
        },
        supports_check_mode=True,
    )
    given = module.params
    name = NAME.search(os.path.basename(given["package"]))
    before = installed(given["install_path"])
    result = {"changed": False, "version": before, "diff": {"before": f"{before}\n", "after": f"{before}\n"}}
    if name is None:
        module.fail_json(
            msg=f"wanted Ascend-docker-runtime_<version>_linux-<machine>.run, found {given['package']}", **result
        )
    wanted = name.group("version")
    if before == wanted:
        module.exit_json(**result)
    result.update(changed=True, diff={"before": f"{before}\n", "after": f"{wanted}\n"})
    if module.check_mode:
        module.exit_json(**result)
    if not given["accept_licence"]:
        module.fail_json(
            msg="Ascend Docker Runtime wants its licence accepted: read it (PACKAGE --noexec --target DIR unpacks it), "
            "then set container_engine_ascend_runtime_licence: true",
            **result,
        )
    with tempfile.TemporaryDirectory() as directory:
        settings = os.path.join(directory, "daemon.json")
        with open(settings, "w", encoding="utf-8") as stream:
            stream.write("{}\n")
        os.chmod(settings, 0o600)
        verb = "--upgrade" if before else "--install"
        command = ["sh", given["package"], verb, f"--install-path={given['install_path']}"]
        # It asks on standard input; newer versions only.
        code, out, err = module.run_command([*command, f"--config-file-path={settings}"], data="Y\n", cwd=directory)
    result["version"] = installed(given["install_path"])
    if code or result["version"] != wanted:
        module.fail_json(
            msg=f"the installer of Ascend Docker Runtime {wanted} ended with {code}, and "
            f"{result['version'] or 'nothing'} is installed: {(err or out).strip()[-1500:]}",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
