"""A bundle's files: found, hashed once, compared with the seal; and files brought into one, whole or not at all."""

from __future__ import annotations

__all__ = ["Kept", "copy", "fetch", "hashes", "listing", "remove_others", "seal", "verify", "write"]

import concurrent.futures
import hashlib
import json
import os
import shutil
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from ascent.errors import AscentError
from ascent_controller import bundle

#: Name of a file on its way; what is left of it is taken up again.
PARTIAL = ".partial"
_BLOCK = 1 << 20
_TIMEOUT = 60.0
_ATTEMPTS = 4

Say = Callable[[str], None]


class Kept:
    """Checksums of files that have not changed since they were read, kept outside the bundle.

    Hundreds of GB take minutes to read, and a run verifies them each time. A file counts as unchanged while its
    size, its two times, its number and its device are the same. ``trust=False`` reads everything again.
    """

    def __init__(self, path: Path, *, trust: bool = True) -> None:
        self.path = path
        self._known: dict[str, list[object]] = {}
        if trust:
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                self._known = known if isinstance(known, dict) else {}
            except (OSError, ValueError):
                self._known = {}

    @staticmethod
    def default(directory: Path) -> Path:
        """Where the checksums of one bundle are kept: below XDG_CACHE_HOME, else ``~/.cache``."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        return cache / "ascent" / "bundles" / f"{name}.json"

    def of(self, name: str, file: Path) -> str:
        """The checksum of a file, read only where it may have changed."""
        mark = _mark(file)
        known = self._known.get(name)
        if known and known[:-1] == mark:
            return str(known[-1])
        digest = sha256(file)
        # A file that changed while it was read is not remembered.
        if _mark(file) == mark:
            self._known[name] = [*mark, digest]
        return digest

    def remember(self, name: str, file: Path, digest: str) -> None:
        """Take note of a checksum that was computed while the file was written."""
        self._known[name] = [*_mark(file), digest]

    def save(self) -> None:
        """Write what is known; a cache that can't be written costs time, and nothing else."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, json.dumps(self._known))
        except OSError:
            return


def _mark(file: Path) -> list[object]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def sha256(file: Path) -> str:
    """The checksum of a file, 64 digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listing(directory: Path) -> dict[str, str | None]:
    """Every path below ``directory`` but folders: None for a plain file, else what it is. Nothing is followed."""
    found: dict[str, str | None] = {}
    for parent, folders, names in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*names, *links]:
            path = Path(parent) / name
            mode = path.lstat().st_mode
            kind = None if stat.S_ISREG(mode) else "a link" if stat.S_ISLNK(mode) else "not a plain file"
            found[str(path.relative_to(directory))] = kind
    return found


def hashes(directory: Path, names: Iterable[str], kept: Kept) -> dict[str, str]:
    """Checksums of files below ``directory``, several at a time; what can't be read is left out."""

    def one(name: str) -> str | None:
        try:
            return kept.of(name, directory / name)
        except OSError:
            return None

    wanted = sorted(names)
    # hashlib releases the interpreter: so many readers keep a fast disk busy without starving the run.
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(wanted, pool.map(one, wanted), strict=True))
    kept.save()
    return {name: digest for name, digest in found.items() if digest is not None}


def seal(directory: Path, kept: Kept) -> str:
    """Write the list of all files and the seal over it; returns the seal."""
    found = listing(directory)
    odd = sorted(f"{name} is {kind}" for name, kind in found.items() if kind)
    if odd:
        raise AscentError(f"{directory} holds what can't be sealed: {', '.join(odd)}; remove it and go on")
    names = set(found) - {bundle.SUMS, bundle.SEAL}
    text = bundle.sums_text(hashes(directory, names, kept))
    write(directory / bundle.SUMS, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write(directory / bundle.SEAL, bundle.sums_text({bundle.SUMS: digest}))
    return digest


def verify(directory: Path, kept: Kept, expected: str = "") -> list[dict[str, object]]:
    """Findings about a bundle's seal; none when every file is there as it was sealed, and no other."""
    sums, sealed = _text(directory / bundle.SUMS), _text(directory / bundle.SEAL)
    told = bundle.own_findings(str(directory), sums, sealed, expected)
    if told or sums is None:
        return told
    wanted = bundle.parse_sums(sums)
    found = listing(directory)
    plain = [name for name, kind in found.items() if kind is None and name in wanted]
    return bundle.seal_findings(str(directory), wanted, found, hashed=hashes(directory, plain, kept))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


# -- bringing files in -------------------------------------------------------------------------------------------------


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}{PARTIAL}")
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.chmod(mode)
    beside.replace(path)


def copy(source: Path, target: Path, digest: str | None = None) -> bool:
    """Copy a file; False when a copy of the same size and time is there. AscentError if its ``digest`` is another."""
    status = source.stat()
    if target.is_file() and not target.is_symlink():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}{PARTIAL}")
    shutil.copyfile(source, beside)
    if digest is not None and sha256(beside) != digest:
        found = sha256(beside)
        beside.unlink()
        raise AscentError(f"{source} has sha256 {found}, wanted {digest}: it is damaged; fetch it again")
    beside.chmod(0o644)
    # The same time as the source: how an interrupted copy of many files knows what it has.
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns))
    beside.replace(target)
    return True


def fetch(url: str, target: Path, digest: str, say: Say | None = None) -> bool:
    """Download a file of known checksum, going on where an earlier try broke; False when it is there already.

    Raises AscentError when it can't be had, or when what came is something else.
    """
    if target.is_file() and sha256(target) == digest:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}{PARTIAL}")
    last = ""
    for _ in range(_ATTEMPTS):
        try:
            _download(url, beside, say)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                # More was there than the file has: another file of that name.
                beside.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise AscentError(f"{url}: {error.code} {error.reason}") from error
            last = f"{error.code} {error.reason}"
            continue
        except (OSError, urllib.error.URLError) as error:
            last = str(getattr(error, "reason", None) or error)
            continue
        found = sha256(beside)
        if found == digest:
            beside.replace(target)
            return True
        beside.unlink()
        last = f"it has sha256 {found}, wanted {digest}"
    raise AscentError(f"{url} could not be fetched in {_ATTEMPTS} tries: {last}")


def _download(url: str, beside: Path, say: Say | None) -> None:
    have = beside.stat().st_size if beside.exists() else 0
    more = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=more)  # noqa: S310 - a URL that the operator gave
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
        done = have if resumed else 0
        shown = done
        with beside.open("ab" if resumed else "wb") as stream:
            while block := answer.read(_BLOCK):
                stream.write(block)
                done += len(block)
                if say and done - shown >= 512 * _BLOCK:
                    shown = done
                    say(f"{beside.name.removesuffix(PARTIAL)}: {done >> 20} of {total >> 20} MiB")
    if total and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def remove_others(directory: Path, keep: Iterable[str]) -> list[str]:
    """Remove every file below ``directory`` that is not named, and folders that are empty then; what went."""
    wanted = set(keep)
    gone = sorted(name for name in listing(directory) if name not in wanted) if directory.is_dir() else []
    for name in gone:
        (directory / name).unlink()
    for parent, _, _ in os.walk(directory, topdown=False):
        if Path(parent) != directory and not os.listdir(parent):
            os.rmdir(parent)
    return gone
