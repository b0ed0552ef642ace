"""A host's files behind one small object, so that what reads and writes them can be tested on a tree of its own."""

from __future__ import annotations

__all__ = ["BLOCK_BEGIN", "BLOCK_END", "Tree", "block", "split_block"]

import contextlib
import errno
import glob
import os
from typing import Iterable, List, Optional, Tuple

#: Where we keep what we know of a host.
OWN = "/var/lib/ascent"

#: What stands around lines of ours in a file that is not ours alone.
BLOCK_BEGIN = "# ascent:host_tuning begin. Ansible managed: edits between these lines are lost"
BLOCK_END = "# ascent:host_tuning end"


def block(lines: Iterable[str]) -> List[str]:
    """Lines of ours, marked."""
    return [BLOCK_BEGIN, *lines, BLOCK_END]


def split_block(text: str) -> Tuple[List[str], List[str]]:
    """Lines outside our block, and those inside it. A block whose end somebody removed ends with the file."""
    outside: List[str] = []
    inside: List[str] = []
    within = False
    for line in text.splitlines():
        if line in (BLOCK_BEGIN, BLOCK_END):
            within = line == BLOCK_BEGIN
        else:
            (inside if within else outside).append(line)
    return outside, inside


class Tree:
    """The file tree of a host; ``root`` is "/" but for tests."""

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def path(self, path: str) -> str:
        """The real place of an absolute ``path``."""
        return os.path.join(self.root, path.lstrip("/"))

    def read(self, path: str) -> Optional[str]:
        """The text of a file; None when it is not there or may not be read."""
        try:
            with open(self.path(path), encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except OSError:
            return None

    def glob(self, pattern: str) -> List[str]:
        """Absolute paths that match, in order."""
        found = glob.glob(self.path(pattern))
        return sorted("/" + os.path.relpath(path, self.root) for path in found)

    def exists(self, path: str) -> bool:
        """True for anything of that name, a dangling link too."""
        return os.path.lexists(self.path(path))

    def write_knob(self, path: str, value: str) -> None:
        """Write in place, since a kernel file can't be replaced. A newline alone empties the reserved ports."""
        with open(self.path(path), "w", encoding="utf-8") as stream:
            stream.write(value + "\n")

    def write_file(self, path: str, text: str) -> None:
        """Replace a file at once, so that a reader or a power cut never finds half of it."""
        place = self.path(path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        temporary = place + ".ascent-new"
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # What we keep for ourselves is for root and its group; files of the system are for all programs to read.
        os.chmod(temporary, 0o640 if path.startswith(OWN + "/") else 0o644)
        try:
            os.replace(temporary, place)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # A file that is itself a mount, as container engines make /etc/hosts, can only be written in place.
            os.unlink(temporary)
            with open(place, "w", encoding="utf-8") as stream:
                stream.write(text)

    def size_mb(self, path: str) -> Optional[int]:
        """MB that the file system of a path can hold; None when there is none."""
        try:
            stat = os.statvfs(self.path(path))
        except OSError:
            return None
        return stat.f_blocks * stat.f_frsize // (1024 * 1024)

    def remove(self, path: str) -> None:
        """Remove a file if it is there, and its directory if that was one for drop-ins and is empty now."""
        if self.exists(path):
            os.unlink(self.path(path))
        folder = os.path.dirname(path)
        if folder.endswith((".service.d", ".conf.d")):
            with contextlib.suppress(OSError):
                os.rmdir(self.path(folder))
