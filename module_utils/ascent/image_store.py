"""Blobs of container images in a directory, as an OCI image layout keeps them: ``blobs/sha256/<digest>``.

A blob is there completely and right, or it is not there: what is still coming has another name, and gets the digest's
only when its content has it. What an interrupted download left is continued.
"""

from __future__ import annotations

__all__ = ["DigestError", "Store"]

import contextlib
import hashlib
import os
import shutil
from typing import Any, Callable, Dict, List, Optional

from . import registry
from .errors import AscentError

_CHUNK = 1 << 20


class DigestError(AscentError):
    """Content that is not what its digest says."""


class Store:
    """The blobs below ``directory``; nothing is made before the first one comes."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def path(self, digest: str) -> str:
        """Where a blob is, or would be. Raises AscentError for what is no digest, so that no name leads elsewhere."""
        if not registry.is_digest(digest):
            raise AscentError(f"wanted a digest of the form sha256:<64 hex digits>, found {digest!r}")
        return os.path.join(self.directory, "blobs", "sha256", digest.partition(":")[2])

    def partial(self, digest: str) -> str:
        """Where a blob grows."""
        return f"{self.path(digest)}.part"

    def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        return os.path.isfile(self.path(digest))

    def missing(self, digests: List[str]) -> List[str]:
        """Those that are not there."""
        return [digest for digest in digests if not self.has(digest)]

    def add(self, content: bytes) -> str:
        """Keep a small blob; its digest."""
        digest = registry.digest_of_bytes(content)
        if not self.has(digest):
            os.makedirs(os.path.dirname(self.path(digest)), exist_ok=True)
            temporary = f"{self.path(digest)}.{os.getpid()}"
            with open(temporary, "wb") as stream:
                stream.write(content)
            os.replace(temporary, self.path(digest))
        return digest

    def take(self, digest: str, path: str) -> None:
        """Take a file in as a blob, after its content was compared. DigestError, and it stays, when it differs."""
        with open(path, "rb") as stream:
            sha = hashlib.sha256()
            for chunk in iter(lambda: stream.read(_CHUNK), b""):
                sha.update(chunk)
        if f"sha256:{sha.hexdigest()}" != digest:
            raise DigestError(f"{path}: wanted {digest}, found sha256:{sha.hexdigest()}")
        os.makedirs(os.path.dirname(self.path(digest)), exist_ok=True)
        # Into the store's own file system first: only there a new name is given at once.
        shutil.move(path, self.partial(digest))
        os.replace(self.partial(digest), self.path(digest))

    def read(self, digest: str) -> bytes:
        """A small blob's content, checked. DigestError when the file was changed, OSError when it is not there."""
        with open(self.path(digest), "rb") as stream:
            content = stream.read(registry.SMALL)
        if registry.digest_of_bytes(content) != digest:
            raise DigestError(f"{self.path(digest)}: the content is not {digest}")
        return content

    def receive(
        self, digest: str, open_at: Callable[[int], Any], progress: Optional[Callable[[int], None]] = None
    ) -> None:
        """Fetch a blob, from where an earlier attempt ended.

        ``open_at`` gives an open answer whose bytes start at the number it gets (``status`` 206), or at 0. ``progress``
        is told how many bytes lie in `partial` by now. DigestError, and nothing is left, when the content is not the
        digest's; OSError when it broke off, and what came is kept.
        """
        os.makedirs(os.path.dirname(self.path(digest)), exist_ok=True)
        with open(self.partial(digest), "ab+") as stream:
            stream.seek(0)
            sha, size = hashlib.sha256(), 0
            for chunk in iter(lambda: stream.read(_CHUNK), b""):
                sha.update(chunk)
                size += len(chunk)
            with contextlib.closing(open_at(size)) as answer:
                if size and answer.status != 206:
                    stream.truncate(0)
                    sha, size = hashlib.sha256(), 0
                length = answer.headers.get("Content-Length")
                expected = size + int(length) if length else None
                for chunk in iter(lambda: answer.read(_CHUNK), b""):
                    stream.write(chunk)
                    stream.flush()
                    sha.update(chunk)
                    size += len(chunk)
                    if progress:
                        progress(size)
            if expected is not None and size < expected:
                raise ConnectionError(f"{digest}: {size} of {expected} bytes came before the connection ended")
            if f"sha256:{sha.hexdigest()}" != digest:
                os.unlink(self.partial(digest))
                raise DigestError(f"wanted {digest}, found sha256:{sha.hexdigest()} in {size} bytes")
        os.replace(self.partial(digest), self.path(digest))

    def sizes(self, digests: List[str]) -> Dict[str, int]:
        """Bytes of those blobs that are there."""
        return {digest: os.path.getsize(self.path(digest)) for digest in digests if self.has(digest)}
