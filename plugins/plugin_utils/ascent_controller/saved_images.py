"""Archives of ``docker save`` as the image layout that everything else reads (`ascent_controller.image_archive`).

Such an archive has an image's configuration and its layers, and not the manifest of its registry. A manifest is made of
them that is the same wherever it is made: so all hosts get one digest, and a generation can lock it. It is another
digest than the registry's. What the archive says of itself is checked first: the configuration is what it is called,
and each layer is the one that the configuration names.
"""

from __future__ import annotations

__all__ = ["layout_of"]

import fcntl
import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ascent.errors import AscentError
from ascent.image_store import DigestError, Store
from ascent_controller import image_archive
from ascent_controller.progress import Progress

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_MANIFEST = "manifest.json"
_BLOCK = 1 << 20
_KIND = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
#: What a layer begins with, by what it is then called. Layers are saved as they are in an engine's store.
_PACKED = ((b"\x1f\x8b", f"{_LAYER}.gzip"), (b"\x28\xb5\x2f\xfd", "application/vnd.oci.image.layer.v1.tar+zstd"))

Say = Callable[[str], None]


def layout_of(archive: str | Path, say: Say = print, cache: Path | None = None) -> Path:
    """The image layout of an archive: itself if it is one, else one that its ``docker save`` files were made into.

    ``archive`` is such a file, or a directory of them. The layout lies below ``cache``, by default
    ``~/.cache/ascent/images``, takes the images' size there, and is made once as long as the files stay the same.
    AscentError for what is neither, DigestError for a file whose content is not what it says.
    """
    place = Path(archive).expanduser().resolve()
    files = _files(place)
    if not files:
        return place
    own = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascent" / "images"
    made = own / hashlib.sha256(str(place).encode()).hexdigest()[:16]
    made.mkdir(parents=True, exist_ok=True)
    with (made / "lock").open("w") as lock:
        # Every host of a play has a process of its own here.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _bring(files, made, say)
    return made


def _files(place: Path) -> list[Path]:
    """The saved files of an archive; none for an image layout, and for what is not there."""
    if place.is_file():
        return [place]
    if (place / "oci-layout").exists() or not place.is_dir():
        return []
    return sorted(file for file in place.iterdir() if file.name.endswith(_ENDINGS) and file.is_file())


def _bring(files: list[Path], made: Path, say: Say) -> None:
    """Take in what is new, and leave out what is gone."""
    record = made / "sources.json"
    try:
        known = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        known = {}
    marks = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    if {name: one["mark"] for name, one in known.items()} == marks:
        return
    entries: dict[str, Any] = {}
    for file in files:
        name = str(file)
        if known.get(name, {}).get("mark") != marks[name]:
            known[name] = {"mark": marks[name], "images": _convert(file, Store(str(made)), say)}
        entries[name] = known[name]
    (made / "index.json").unlink(missing_ok=True)
    for name, entry in entries.items():
        for reference, digest in entry["images"].items():
            manifest = Store(str(made)).read(digest)
            image_archive.name_image(made, reference, digest, manifest)
        if not entry["images"]:
            raise AscentError(f"{name}: its images have no names; save them by name, not by id")
    record.write_text(json.dumps(entries), encoding="utf-8")


def _convert(file: Path, store: Store, say: Say) -> dict[str, str]:
    """Bring the images of one file into the store; digest by reference."""
    say(f"reading {file}")
    try:
        with tarfile.open(file) as opened:
            listed = _list(file, opened)
            digests: dict[str, str] = {}
            total = sum(_member(file, opened, path).size for one in listed for path in one["Layers"])
            progress = Progress(f"images: {file.name}", total, say)
            for one in listed:
                manifest = _image(file, opened, one, store, progress)
                digests.update(dict.fromkeys(one.get("RepoTags") or (), manifest))
            return digests
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise AscentError(f"{file} is damaged, or no archive of `docker save` ({error}): write it again") from error


def _list(file: Path, opened: tarfile.TarFile) -> list[dict[str, Any]]:
    try:
        listed = json.loads(_read(opened, _member(file, opened, _MANIFEST)))
        assert all(isinstance(one["Config"], str) and isinstance(one["Layers"], list) for one in listed)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise AscentError(f"{file}: its {_MANIFEST} is not as `docker save` writes it") from None
    return list(listed)


def _image(file: Path, opened: tarfile.TarFile, one: Mapping[str, Any], store: Store, progress: Progress) -> str:
    """One image; the digest of the manifest that was made of it."""
    config = _read(opened, _member(file, opened, one["Config"]))
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    named = one["Config"].rpartition("/")[2].removesuffix(".json")
    if digest != f"sha256:{named}":
        raise DigestError(f"{file}: the image's configuration: wanted sha256:{named}, found {digest}")
    try:
        wanted = json.loads(config)["rootfs"]["diff_ids"]
    except (KeyError, TypeError, ValueError):
        raise AscentError(f"{file}: the configuration of {one.get('RepoTags')} names no layers") from None
    if len(wanted) != len(one["Layers"]):
        raise DigestError(f"{file}: wanted {len(wanted)} layers, found {len(one['Layers'])}: the content is cut short")
    layers = [
        _layer(file, opened, path, plain, store, progress) for path, plain in zip(one["Layers"], wanted, strict=True)
    ]
    store.add(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _KIND,
        "config": {"mediaType": _CONFIG, "size": len(config), "digest": digest},
        "layers": layers,
    }
    return store.add(json.dumps(manifest, separators=(",", ":")).encode())


def _layer(
    file: Path, opened: tarfile.TarFile, path: str, plain: str, store: Store, progress: Progress
) -> dict[str, Any]:
    """Take one layer in; ``plain`` is the digest of its content unpacked."""
    member = _member(file, opened, path)
    source = opened.extractfile(member)
    if source is None:
        raise AscentError(f"{file}: {path} is no file")
    with source:
        kind = next((name for magic, name in _PACKED if source.read(4).startswith(magic)), _LAYER)
        source.seek(0)
        there = store.partial(plain)
        os.makedirs(os.path.dirname(there), exist_ok=True)
        with open(there, "wb") as stream:
            raw = _copy(source, stream, progress)
    unpacked = raw
    if kind.endswith("gzip"):
        with gzip.open(there) as stream_in:
            unpacked = _hash(stream_in)
    # What zstd packed, Python can't unpack: the engine compares it with the configuration when it pulls.
    if unpacked != plain and not kind.endswith("zstd"):
        os.unlink(there)
        raise DigestError(f"{file}: {path}: wanted {plain}, found {unpacked}")
    os.replace(there, store.path(raw))
    return {"mediaType": kind, "size": member.size, "digest": raw}


def _copy(source: IO[bytes], stream: IO[bytes], progress: Progress) -> str:
    sha = hashlib.sha256()
    while block := source.read(_BLOCK):
        sha.update(block)
        stream.write(block)
        progress.add(len(block))
    return f"sha256:{sha.hexdigest()}"


def _hash(source: Any) -> str:
    sha = hashlib.sha256()
    while block := source.read(_BLOCK):
        sha.update(block)
    return f"sha256:{sha.hexdigest()}"


def _member(file: Path, opened: tarfile.TarFile, path: str) -> tarfile.TarInfo:
    try:
        member = opened.getmember(path)
        # Layers that images share are saved once; the others are links to them.
        return opened.getmember(_target(member)) if member.issym() else member
    except KeyError:
        raise AscentError(f"{file} has no {path}: it is no archive of `docker save`, or it is cut short") from None


def _target(member: tarfile.TarInfo) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))


def _read(opened: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = opened.extractfile(member)
    return source.read() if source is not None else b""
