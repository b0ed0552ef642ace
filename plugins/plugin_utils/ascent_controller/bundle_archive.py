"""A bundle as one file: written and read as a stream, every file compared with the seal before it is used.

The file is a plain tar with one folder, ``bundle``, in it. ``SEAL`` and ``SHA256SUMS`` come first, so that whoever
reads it knows of each byte that follows what it has to be. It is not compressed: images, packages and weights are.
Beside it lies ``FILE.sha256``, in the form of sha256sum(1).

>>> directory_of("/srv/bundle.tar")
'/srv/bundle'
"""

from __future__ import annotations

__all__ = ["FOLDER", "directory_of", "is_archive", "pack", "seal_of", "unpack"]

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ascent.errors import AscentError
from ascent.weights_job import amount
from ascent_controller import bundle, bundle_files
from ascent_controller.progress import Progress

#: The folder inside the archive.
FOLDER = "bundle"
_ENDING = ".tar"
_BLOCK = 1 << 20
#: A list of so many bytes is none of ours.
_LIST_LIMIT = 1 << 28


def is_archive(path: str | Path) -> bool:
    """Whether a path names a bundle's archive, by its ending."""
    return str(path).endswith(_ENDING)


def directory_of(path: str) -> str:
    """Where an archive is unpacked: the folder of its name beside it. A directory is its own."""
    return path.removesuffix(_ENDING) if is_archive(path) else path


class _Hashing(io.RawIOBase):
    """A file that is written once, from its begin, and knows the checksum of what went in."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._stream.write(data)


def pack(directory: Path, archive: Path, say: bundle_files.Say) -> str:
    """Write a sealed directory as one file; its checksum. The file appears when it is complete.

    The same bundle gives the same bytes. AscentError when a file is not what was sealed, or when there is no room.
    """
    sums = bundle.parse_sums((directory / bundle.SUMS).read_text(encoding="utf-8"))
    names = [bundle.SEAL, bundle.SUMS, *sorted(sums)]
    total = sum((directory / name).stat().st_size for name in names)
    beside = archive.with_name(f"{archive.name}{bundle_files.PARTIAL}")
    beside.unlink(missing_ok=True)
    _room(archive.parent, total, f"{archive}")
    progress = Progress(archive.name, total, say)
    with beside.open("wb") as stream:
        hashing = _Hashing(stream)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as packed:
            for name in names:
                member = tarfile.TarInfo(f"{FOLDER}/{name}")
                member.size = (directory / name).stat().st_size
                member.mode = 0o755 if os.access(directory / name, os.X_OK) else 0o644
                with (directory / name).open("rb") as source:
                    reader = _Reader(source, progress)
                    packed.addfile(member, reader)
                if name in sums and reader.digest.hexdigest() != sums[name]:
                    raise AscentError(f"{directory / name} is not what was sealed; run playbooks/bundle.yml again")
        stream.flush()
        os.fsync(stream.fileno())
    digest = hashing.digest.hexdigest()
    bundle_files.write(archive.with_name(f"{archive.name}.sha256"), bundle.sums_text({archive.name: digest}))
    beside.replace(archive)
    return digest


class _Reader(io.RawIOBase):
    """Reads a file for tar, counting and hashing what is read."""

    def __init__(self, stream: IO[bytes], progress: Progress) -> None:
        self._stream, self._progress = stream, progress
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        self._progress.add(len(data))
        return data


def seal_of(archive: Path) -> str:
    """The seal that an archive carries, read from its begin. AscentError when the file is no bundle."""
    with archive.open("rb") as stream:
        members = _members(archive, stream)
        seal, _ = _lists(archive, members)
    return bundle.parse_sums(seal).get(bundle.SUMS, "")


def unpack(archive: Path, directory: Path, kept: bundle_files.Kept, expected: str, say: bundle_files.Say) -> list[Any]:
    """Bring an archive's files to ``directory``, each compared with the seal as it is read; findings if it is not.

    A directory with this archive's seal is there already and stays: `bundle_files.verify` judges it. An interrupted run
    goes on with the files that were complete. ``expected`` is the seal that the operator has written down. The
    directory appears as a whole, or not at all.
    """
    with archive.open("rb") as stream:
        members = _members(archive, stream)
        seal, text = _lists(archive, members)
        if told := bundle.own_findings(str(archive), text, seal, expected):
            return told
        there = directory / bundle.SEAL
        if there.is_file() and there.read_text(encoding="utf-8") == seal:
            return []
        if directory.exists():
            raise AscentError(
                f"{directory} is there and has another seal than {archive}; move it away, or name another place with "
                "bundle_directory"
            )
        sums = bundle.parse_sums(text)
        beside = directory.with_name(f"{directory.name}{bundle_files.PARTIAL}")
        beside.mkdir(parents=True, exist_ok=True)
        have = sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
        _room(beside, max(0, archive.stat().st_size - have), str(directory))
        progress = Progress(f"unpacking {archive.name}", archive.stat().st_size, say)
        found: dict[str, str | None] = {}
        hashed: dict[str, str] = {}
        try:
            for name, member, source in members:
                found[name] = None if member.isfile() else "not a plain file"
                # Of what was not sealed nothing is written, and nothing outside the folder whatever the list says.
                if name not in sums or name in hashed or source is None or not _inside(name):
                    continue
                hashed[name] = _receive(source, beside / name, sums[name], member, progress)
                if hashed[name] != sums[name]:
                    break
        except (tarfile.TarError, EOFError) as error:
            raise AscentError(f"{archive} ends too early or is damaged ({error}): copy it again") from error
    wrong = [name for name, digest in hashed.items() if digest != sums[name]]
    if wrong:
        # Reading ended there: of what follows nothing is known.
        sums, found = {name: sums[name] for name in wrong}, dict.fromkeys(wrong)
    told = bundle.seal_findings(str(archive), sums, found, hashed=hashed)
    if told:
        return told
    bundle_files.remove_others(beside, sums)
    bundle_files.write(beside / bundle.SUMS, text)
    bundle_files.write(beside / bundle.SEAL, seal)
    for name, digest in hashed.items():
        kept.remember(name, beside / name, digest)
    beside.replace(directory)
    kept.save()
    return []


def _members(archive: Path, stream: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]:
    """Every member but folders, in order, by its path in the bundle, with what reads it."""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as opened:
            for member in opened:
                if not member.isdir():
                    yield member.name.removeprefix("./").removeprefix(f"{FOLDER}/"), member, opened.extractfile(member)
    except tarfile.ReadError as error:
        raise AscentError(f"{archive} is damaged or no bundle ({error}): copy it again") from error


def _lists(archive: Path, members: Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]) -> tuple[str, str]:
    """The texts of SEAL and SHA256SUMS, which come first."""
    texts = []
    for wanted in (bundle.SEAL, bundle.SUMS):
        name, member, source = next(members, ("nothing", None, None))
        if name != wanted or member is None or source is None or member.size > _LIST_LIMIT:
            raise AscentError(
                f"{archive}: wanted {FOLDER}/{wanted} at its begin, found {name}: it was not made by "
                "playbooks/bundle.yml. Unpack it, and name the directory"
            )
        texts.append(source.read().decode("utf-8", "replace"))
    return texts[0], texts[1]


def _inside(name: str) -> bool:
    """Whether a path stays below the folder that it is taken from."""
    return not name.startswith("/") and ".." not in Path(name).parts


def _receive(source: IO[bytes], target: Path, wanted: str, member: tarfile.TarInfo, progress: Progress) -> str:
    """One file's content to its place; the checksum of what came. What is there and right is not written again."""
    if target.is_file() and target.stat().st_size == member.size and bundle_files.sha256(target) == wanted:
        # tar passes over the content by itself.
        progress.add(member.size)
        return wanted
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}{bundle_files.PARTIAL}")
    digest = hashlib.sha256()
    with partial.open("wb") as stream:
        while block := source.read(_BLOCK):
            digest.update(block)
            stream.write(block)
            progress.add(len(block))
    if digest.hexdigest() == wanted:
        partial.chmod(0o755 if member.mode & 0o100 else 0o644)
        partial.replace(target)
    else:
        partial.unlink()
    return digest.hexdigest()


def _room(directory: Path, wanted: int, what: str) -> None:
    """AscentError when a file system has less than ``wanted`` bytes."""
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise AscentError(
            f"{what} takes {amount(wanted)}, {amount(free)} are free there: free space, or name a directory on a "
            "larger disk (bundle_directory)"
        )
