"""Writes the index of a flat package repository: one stanza for each .deb of a directory."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path


def stanza(package: Path) -> str:
    """The control fields of a package, and where the file is."""
    control = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True).stdout.rstrip()
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return f"{control}\nFilename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"


def main() -> None:
    """Indexes the directory named on the command line."""
    directory = Path(sys.argv[1])
    packages = sorted(directory.glob("*.deb"))
    if not packages:
        sys.exit(f"no package in {directory}")
    text = "\n".join(stanza(package) for package in packages)
    (directory / "Packages").write_text(text)
    (directory / "Packages.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
