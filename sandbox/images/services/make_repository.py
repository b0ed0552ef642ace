"""Writes the index of a flat package repository: one stanza for each .deb of a directory.

Servers run the kernel of the machine below, which no distribution has packages for: an empty package stands in for its
headers, so that what asks for them by name gets an answer.
"""

import gzip
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path


def stanza(package: Path) -> str:
    """The control fields of a package, and where the file is."""
    control = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True).stdout.rstrip()
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return f"{control}\nFilename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"


def stand_in(directory: Path, kernel: str) -> None:
    """Writes the empty package of a kernel's headers."""
    name = f"linux-headers-{kernel}"
    with tempfile.TemporaryDirectory() as scratch:
        control = Path(scratch) / "DEBIAN" / "control"
        control.parent.mkdir(mode=0o755)
        control.write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nSection: kernel\nPriority: optional\n"
            "Maintainer: The sandbox <root@localhost>\nDescription: stands in for headers of the running kernel\n"
        )
        target = directory / f"{name}_1_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", scratch, target], check=True)


def main() -> None:
    """Indexes the directory named on the command line, for servers with the kernel that is named after it."""
    directory = Path(sys.argv[1])
    stand_in(directory, sys.argv[2])
    packages = sorted(directory.glob("*.deb"))
    if not packages:
        sys.exit(f"no package in {directory}")
    text = "\n".join(stanza(package) for package in packages)
    (directory / "Packages").write_text(text)
    (directory / "Packages.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
