"""Packages of the distribution from a directory on the host, without any repository.

For apt the directory becomes a repository of its own for one call: only what is asked for and what that needs is
installed. dnf takes all packages of the directory, since a repository for it needs a program that hosts lack.
"""

from __future__ import annotations

__all__ = ["commands", "explain", "index"]

import hashlib
import os
import re
from typing import Any, Callable, Dict, List, Optional, Sequence

from .errors import AscentError
from .findings import finding

_LOCKED = re.compile(
    r"Could not get lock|Unable to acquire the dpkg frontend lock|Failed to lock|is locked by another process"
    r"|dnf is currently locked|transaction lock"
)
_UNKNOWN = re.compile(
    r"No package matching|Unable to locate package|no installation candidate|No match for arg|Unable to find a match"
)


def index(directory: str, fields: Callable[[str], str]) -> str:
    """The index that apt wants of a directory's ``.deb`` files; ``fields`` gives one's control fields."""
    stanzas = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if not name.endswith(".deb"):
            continue
        sha = hashlib.sha256()
        with open(path, "rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                sha.update(chunk)
        stanzas.append(
            f"{fields(path).strip()}\nFilename: ./{name}\nSize: {os.path.getsize(path)}\nSHA256: {sha.hexdigest()}\n"
        )
    if not stanzas:
        raise AscentError(f"wanted .deb packages in {directory}, found none")
    return "\n".join(stanzas)


def commands(manager: str, directory: str, packages: Sequence[str], lock_timeout: int) -> List[List[str]]:
    """What to run, in order. For apt ``directory`` has the index in ``Packages``, and apt's own files go below it."""
    if manager == "apt":
        own = {
            "Dir::Etc::SourceList": f"{directory}/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": f"{directory}/apt/lists",
            "Dir::Cache": f"{directory}/apt/cache",
            "DPkg::Lock::Timeout": str(lock_timeout),
        }
        options = [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
        return [
            ["apt-get", *options, "--quiet", "update"],
            ["apt-get", *options, "--quiet", "--yes", "--no-install-recommends", "install", *packages],
        ]
    files = sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".rpm"))
    if not files:
        raise AscentError(f"wanted .rpm packages in {directory}, found none")
    return [["dnf", "--quiet", "--assumeyes", "--disablerepo=*", "--setopt=install_weak_deps=False", "install", *files]]


def explain(text: str, packages: Sequence[str], host: Optional[str] = None) -> Dict[str, Any]:
    """The finding for an installation of packages that failed with this output of the package manager.

    >>> explain("E: Could not get lock /var/lib/dpkg/lock-frontend.", ["docker.io"])["id"]
    'B16'
    """
    names = ", ".join(packages)
    if _LOCKED.search(text):
        return finding(
            "B16",
            "error",
            f"{names} could not be installed: another package manager holds the lock",
            host=host,
            stage="provision",
            evidence=text,
            cause="unattended upgrades, or somebody's apt or dnf, were still running when the wait for them ended",
            fix="see who holds it (fuser -v /var/lib/dpkg/lock-frontend), let it end, and deploy again",
        )
    unknown = bool(_UNKNOWN.search(text))
    return finding(
        "packages-not-installed",
        "error",
        f"{names} could not be installed",
        host=host,
        stage="provision",
        evidence=text[-2000:],
        cause="the host's repositories, or the archive, lack a package" if unknown else "the package manager failed",
        fix="name a repository that has it, other packages (container_engine_packages), or container_engine_archive"
        if unknown
        else "correct what it says, on the host, and deploy again",
    )
