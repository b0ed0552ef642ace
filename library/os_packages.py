#!/usr/bin/python
"""Ansible module ``os_packages``: downloads packages of this system's release with all they depend on."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: os_packages
short_description: Download packages of a distribution, with all they depend on, into one archive
description:
  - Runs the package manager of the host with a status of its own, in which nothing is installed that can be had.
  - The system is not changed.
  - Packages come from the sources that the host is set up for, checked as the package manager checks them.
  - For Debian and its like the archive also has C(Packages), so that apt takes the folder as a repository.
options:
  packages:
    description:
      - Names as the package manager knows them.
      - C({kernel}) in one stands for the release of the kernel that the host runs.
    type: list
    elements: str
    required: true
  dest:
    description: Archive (tar) to write on this host. Its folder has to be there.
    type: path
    required: true
  manager:
    description: Package manager.
    type: str
    choices: [apt, dnf]
    required: true
  release:
    description: Version of the distribution, which C(dnf) has to be told.
    type: str
    default: ""
  expect:
    description: Release that the host has to be, C(ID-VERSION-MACHINE) as in C(debian-12-x86_64).
    type: str
    default: ""
author:
  - Ascent developers (@ascent)
attributes:
  check_mode:
    description: Downloads nothing.
    support: full
  diff_mode:
    description: Nothing of the system changes.
    support: none
  idempotent:
    description: Writes the archive anew each time.
    support: none
"""

EXAMPLES = r"""
- name: Download the container engine
  os_packages:
    packages: [docker.io, python3-requests]
    manager: apt
    dest: /tmp/packages.tar
"""

RETURN = r"""
names:
  description: File names of the packages.
  returned: always
  type: list
"""

import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.ascent import os_packages
from ansible.module_utils.basic import AnsibleModule


def this_system():
    """Release and machine of the host as one word."""
    try:
        with open("/etc/os-release", encoding="utf-8") as stream:
            text = stream.read()
    except OSError:
        text = ""
    return os_packages.system_name(text, os.uname().machine)


def download(module, scratch):
    """Fill ``scratch``/archives; returns the names of the packages."""
    archives = os.path.join(scratch, "archives")
    packages = [name.replace("{kernel}", os.uname().release) for name in module.params["packages"]]
    os.makedirs(os.path.join(archives, "partial"))
    if module.params["manager"] == os_packages.APT:
        status = os.path.join(scratch, "status")
        with open(status, "w", encoding="utf-8"):
            pass
        available = module.run_command(os_packages.apt_available(scratch), check_rc=True)[1]
        with open("/var/lib/dpkg/status", encoding="utf-8", errors="replace") as stream:
            installed = stream.read()
        with open(status, "w", encoding="utf-8") as stream:
            stream.write(os_packages.apt_status(installed, available))
        argv = os_packages.apt_download(packages, archives, scratch)
        fix = "check the package sources of this host and run apt-get update"
    else:
        argv = os_packages.dnf_download(packages, archives, scratch, module.params["release"])
        fix = "check the repositories of this host"
    code, out, err = module.run_command(argv, environ_update={"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
    names = sorted(name for name in os.listdir(archives) if name.endswith((".deb", ".rpm")))
    if code or not names:
        module.fail_json(
            msg="can't download {}: {}; {}".format(", ".join(packages), (err or out).strip()[-2000:], fix), names=names
        )
    shutil.rmtree(os.path.join(archives, "partial"), ignore_errors=True)
    for name in sorted(set(os.listdir(archives)) - set(names)):
        os.unlink(os.path.join(archives, name))
    if module.params["manager"] == os_packages.APT:

        def control(path):
            return module.run_command(["dpkg-deb", "--field", path], check_rc=True)[1]

        with open(os.path.join(archives, "Packages"), "w", encoding="utf-8") as stream:
            stream.write(os_packages.apt_index(archives, names, control))
    return names


def main():
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "manager": {"type": "str", "choices": [os_packages.APT, os_packages.DNF], "required": True},
            "release": {"type": "str", "default": ""},
            "expect": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    found = this_system()
    if module.params["expect"] not in ("", found):
        module.fail_json(
            msg="wanted a host of {}, this one is {}: name another host in bundle_systems".format(
                module.params["expect"], found
            ),
            names=[],
        )
    if module.check_mode:
        module.exit_json(changed=True, names=[])
    scratch = tempfile.mkdtemp(prefix="ascent-packages-")
    try:
        names = download(module, scratch)
        beside = module.params["dest"] + ".partial"
        with tarfile.open(beside, "w") as archive:
            for name in sorted(os.listdir(os.path.join(scratch, "archives"))):
                archive.add(os.path.join(scratch, "archives", name), arcname=name)
        os.replace(beside, module.params["dest"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    module.exit_json(changed=True, names=names)


if __name__ == "__main__":
    main()
