"""Packages of a distribution with all they depend on, downloaded by its own package manager for machines without one.

Nothing of the system that downloads is changed, and what it has installed is downloaded too: a bare machine of the same
release lacks it. Only what none of its sources offers is taken for installed, since a site whose mirror holds just a
few packages has the others on every machine.
"""

from __future__ import annotations

__all__ = ["APT", "DNF", "apt_available", "apt_download", "apt_index", "apt_status", "dnf_download", "system_name"]

import hashlib
import os
import re
from typing import Callable, List, Mapping, Sequence

APT, DNF = "apt", "dnf"


def _apt(program: str, scratch: str, options: Mapping[str, str]) -> List[str]:
    """A call of apt on the system's package lists, with the status file of ``scratch``."""
    own = {
        "Dir::State::status": os.path.join(scratch, "status"),
        "Dir::State::extended_states": os.path.join(scratch, "extended_states"),
        # The system's caches are made for the other status.
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Log": scratch,
    }
    return [program] + [word for pair in sorted({**own, **options}.items()) for word in ("-o", "=".join(pair))]


def apt_available(scratch: str) -> List[str]:
    """The call that prints the control fields of all packages that the sources offer."""
    return [*_apt("apt-cache", scratch, {}), "dumpavail"]


def apt_status(installed: str, available: str) -> str:
    """The entries of dpkg's status file for packages that none of the sources offers, of both texts."""
    offered = set(re.findall(r"^Package: (\S+)$", available, re.M))
    kept = []
    for entry in installed.split("\n\n"):
        name = re.search(r"^Package: (\S+)$", entry, re.M)
        if name and name.group(1) not in offered and re.search(r"^Status: \S+ ok installed$", entry, re.M):
            kept.append(entry.strip("\n") + "\n")
    return "\n".join(kept)


def apt_download(packages: Sequence[str], archives: str, scratch: str) -> List[str]:
    """The call that downloads Debian packages and their dependencies into ``archives``."""
    options = {
        "Dir::Cache::archives": archives,
        "APT::Install-Recommends": "false",
        # apt drops root to a user that can't write there.
        "APT::Sandbox::User": "root",
    }
    return [*_apt("apt-get", scratch, options), "--yes", "--quiet=2", "--download-only", "install", *packages]


def dnf_download(packages: Sequence[str], archives: str, scratch: str, release: str) -> List[str]:
    """The call that downloads RPM packages and their dependencies, as for a root directory that is empty."""
    return [
        "dnf",
        "--assumeyes",
        "--quiet",
        "--installroot=" + os.path.join(scratch, "root"),
        "--releasever=" + release,
        "--setopt=install_weak_deps=False",
        "--setopt=reposdir=/etc/yum.repos.d",
        "install",
        "--downloadonly",
        "--downloaddir=" + archives,
        *packages,
    ]


def apt_index(archives: str, names: Sequence[str], control: Callable[[str], str]) -> str:
    """The text of ``Packages`` for a folder of Debian packages, which apt takes as a repository of its own (``./``).

    ``control`` gives a package's control fields, as ``dpkg-deb --field`` prints them.
    """
    entries = []
    for name in sorted(names):
        path = os.path.join(archives, name)
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
        entries.append(
            "{}\nFilename: ./{}\nSize: {}\nSHA256: {}\n".format(
                control(path).rstrip("\n"), name, os.path.getsize(path), digest.hexdigest()
            )
        )
    return "\n".join(entries)


def system_name(os_release: str, machine: str) -> str:
    r"""A release and machine as one word, from the text of ``/etc/os-release``.

    >>> system_name('ID=debian\nVERSION_ID="12"\n', "x86_64")
    'debian-12-x86_64'
    """
    found = dict(re.findall(r"^(ID|VERSION_ID)=[\"']?([^\"'\n]*)", os_release, re.M))
    return "{}-{}-{}".format(found.get("ID", "unknown").lower(), found.get("VERSION_ID", ""), machine)
