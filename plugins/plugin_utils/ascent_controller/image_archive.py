"""Images in a directory on the controller, for a site whose hosts reach no registry (``images_archive``).

The directory is an OCI image layout, as skopeo, crane or ORAS write one, too: blobs by digest, and an ``index.json``
that gives each image the name by which recipes call it (``org.opencontainers.image.ref.name``). So an image keeps the
digest of its registry, and no byte of it goes unchecked. An index may come with the architectures of a site only.

>>> save("/srv/images", "quay.io/ascend/vllm-ascend:v0.21.0rc1-a3", ["arm64"])     # doctest: +SKIP
'sha256:…'
>>> images("/srv/images")                                                            # doctest: +SKIP
{'quay.io/ascend/vllm-ascend:v0.21.0rc1-a3': 'sha256:…'}
"""

from __future__ import annotations

__all__ = ["NAME", "DigestError", "blobs", "check", "find", "images", "name_image", "path", "platforms", "save"]

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ascent import registry
from ascent.errors import AscentError
from ascent.image_store import DigestError, Store

#: The annotation of ``index.json`` that holds an image's full reference.
NAME = "org.opencontainers.image.ref.name"

_LAYOUT = {"imageLayoutVersion": "1.0.0"}


def images(directory: str | Path) -> dict[str, str]:
    """The images of an archive: digest by reference. AscentError when the directory is no image layout."""
    return {
        str(entry["annotations"][NAME]): str(entry["digest"])
        for entry in _index(Path(directory))["manifests"]
        if (entry.get("annotations") or {}).get(NAME)
    }


def find(directory: str | Path, reference: str) -> str:
    """The digest of an image. A registry mirror in front of the name is passed over. AscentError names what is there.

    A reference by digest is looked for by that.
    """
    named = images(directory)
    digest = registry.split(reference).digest
    if digest in named.values():
        return digest
    for name in sorted(named, key=len, reverse=True):
        if not digest and (name == reference or reference.endswith(f"/{name}") or name.endswith(f"/{reference}")):
            return named[name]
    raise AscentError(f"{directory} has no image {reference}; it has {', '.join(sorted(named)) or 'none'}")


def save(
    directory: str | Path,
    reference: str,
    architectures: Iterable[str],
    *,
    client: registry.Client | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """Fetch an image from its registry into the archive, made where it is missing; its digest.

    Of an image of several platforms the index and the Linux images of ``architectures`` (``arm64``, ``amd64``) are
    kept. What is there is not fetched again, and a download that broke off is continued. ``progress`` is called with a
    blob's digest, the bytes that came of it, and its size. AscentError when an architecture is not offered.
    """
    parts = registry.split(reference)
    source = client or registry.Client(parts.host)
    store = Store(str(directory))
    top, digest = source.manifest(parts.repository, parts.digest or parts.tag)
    offered = registry.platforms(json.loads(top), digest, lambda blob: source.small_blob(parts.repository, blob))
    for architecture in architectures:
        wanted = _fitting(offered, architecture, reference)
        manifest = top if wanted == digest else source.manifest(parts.repository, wanted)[0]
        for blob in registry.children(json.loads(manifest)):
            if not store.has(blob["digest"]):
                _receive(store, source, parts.repository, blob, progress)
        store.add(manifest)
    store.add(top)
    name_image(Path(directory), reference, digest, top)
    return digest


def platforms(directory: str | Path, digest: str) -> list[dict[str, Any]]:
    """What an image of the archive is for: ``{"os", "architecture", "digest"}`` each (`registry.platforms`)."""
    store = Store(str(directory))
    return registry.platforms(_manifest(store, digest), digest, store.read)


def path(directory: str | Path, digest: str) -> str:
    """Where a blob of an archive lies."""
    return Store(str(directory)).path(digest)


def blobs(directory: str | Path, digest: str, architecture: str) -> dict[str, int]:
    """Size by digest of all that a host of this architecture needs of an image, its manifests included.

    AscentError says what the archive lacks: the architecture, or a blob; DigestError which file has the wrong size.
    """
    store = Store(str(directory))
    image = _fitting(platforms(directory, digest), architecture, digest)
    parts = {str(one["digest"]): int(one["size"]) for one in registry.children(_manifest(store, image))}
    needed = [*dict.fromkeys([digest, image]), *parts]
    if lacking := store.missing(needed):
        raise AscentError(f"{directory}: image {digest} lacks {len(lacking)} of its parts, such as {lacking[0]}")
    sizes = store.sizes(needed)
    for part, size in parts.items():
        if sizes[part] != size:
            raise DigestError(f"{store.path(part)}: wanted {size} bytes, found {sizes[part]}")
    return sizes


def check(directory: str | Path, digests: Iterable[str]) -> None:
    """Read blobs through and compare them with their digests. DigestError names the file that differs."""
    store = Store(str(directory))
    for digest in digests:
        with Path(store.path(digest)).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if f"sha256:{found}" != digest:
            raise DigestError(f"{store.path(digest)}: the content is sha256:{found}")


def _receive(
    store: Store,
    client: registry.Client,
    repository: str,
    blob: Mapping[str, Any],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    digest, size = str(blob["digest"]), int(blob["size"])

    def tell(came: int) -> None:
        if progress:
            progress(digest, came, size)

    try:
        store.receive(digest, lambda start: client.blob(repository, digest, start), tell)
    except OSError as error:
        raise AscentError(
            f"{client.host}/{repository}: {digest}: {error}; run it again, it goes on from there"
        ) from None


def _fitting(offered: list[dict[str, Any]], architecture: str, image: str) -> str:
    found = registry.fitting(offered, architecture)
    if found is None:
        names = sorted({f"{one['os']}/{one['architecture']}" for one in offered})
        raise AscentError(f"image {image} is for {', '.join(names) or 'no platform'}, wanted was linux/{architecture}")
    return found


def _manifest(store: Store, digest: str) -> dict[str, Any]:
    try:
        return dict(json.loads(store.read(digest)))
    except OSError:
        raise AscentError(f"{store.directory} lacks the manifest {digest}") from None


def _index(directory: Path) -> dict[str, Any]:
    try:
        layout = json.loads((directory / "oci-layout").read_text())
        index = dict(json.loads((directory / "index.json").read_text()))
    except (OSError, ValueError) as error:
        raise AscentError(
            f"{directory}: wanted an OCI image layout (oci-layout, index.json, blobs/), found: {error}"
        ) from None
    if str(layout.get("imageLayoutVersion", "")).split(".")[0] != "1" or not isinstance(index.get("manifests"), list):
        raise AscentError(f"{directory}: wanted version 1 of the OCI image layout, found {layout}")
    return index


def name_image(directory: Path, reference: str, digest: str, manifest: bytes) -> None:
    """Enter an image into the index under its name; the name's former image is no longer called so."""
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if (directory / "index.json").exists():
        index = _index(directory)
    kept = [one for one in index["manifests"] if (one.get("annotations") or {}).get(NAME) != reference]
    entry = {
        "mediaType": registry.media_type(json.loads(manifest)),
        "digest": digest,
        "size": len(manifest),
        "annotations": {NAME: reference},
    }
    index["manifests"] = sorted([*kept, entry], key=lambda one: str((one.get("annotations") or {}).get(NAME, "")))
    (directory / "oci-layout").write_text(json.dumps(_LAYOUT) + "\n")
    temporary = directory / "index.json.new"
    temporary.write_text(json.dumps(index, indent=1) + "\n")
    temporary.replace(directory / "index.json")
