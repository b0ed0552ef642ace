"""A registry in memory for tests: images by tag and digest, tokens, redirects, broken answers, and a log of bytes."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Site:
    """What a registry has, and what it was asked."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.log: list[tuple[str, int]] = []
        #: Digest to the number of bytes after which its next answer breaks off.
        self.breaks: dict[str, int] = {}
        self.token = ""
        self.port = 0

    def add(self, content: bytes) -> str:
        self.blobs[digest(content)] = content
        return digest(content)

    def image(self, tag: str, layers: list[bytes], architecture: str = "arm64") -> str:
        config = json.dumps({"architecture": architecture, "os": "linux"}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": {"digest": self.add(config), "size": len(config)},
            "layers": [{"digest": self.add(layer), "size": len(layer)} for layer in layers],
        }
        return self._manifest(tag, manifest)

    def index(self, tag: str, members: dict[str, str]) -> str:
        entries = [
            {"digest": found, "platform": {"os": "linux", "architecture": name}} for name, found in members.items()
        ]
        entries.append({"digest": digest(b"attestation"), "platform": {"os": "unknown", "architecture": "unknown"}})
        return self._manifest(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})

    def _manifest(self, tag: str, manifest: dict[str, Any]) -> str:
        content = json.dumps(manifest).encode()
        self.manifests[digest(content)] = content
        self.tags[tag] = digest(content)
        return digest(content)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def sent(self, part: str = "/blobs/") -> int:
        """Bytes that left, of paths with this part."""
        return sum(size for path, size in self.log if part in path)


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """The registry on a port of the loopback interface, for as long as the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, code: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            wanted = re.search(r"sha256:\w+", self.path)
            stop = site.breaks.pop(wanted.group(), None) if wanted else None
            site.log.append((self.path, len(content if stop is None else content[:stop])))
            self.wfile.write(content if stop is None else content[:stop])
            if stop is not None:
                self.close_connection = True

        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                self.answer(200, json.dumps({"token": site.token}).encode())
                return
            if site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
                where = f'Bearer realm="http://{site.host}/token",service="tests",scope="repository:a/b:pull"'
                self.answer(401, b"{}", {"WWW-Authenticate": where})
                return
            kind, _, name = self.path.rpartition("/")
            if kind.endswith("/manifests"):
                content = site.manifests.get(site.tags.get(name, name))
            else:
                content = site.blobs.get(name)
            if content is None:
                told = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                self.answer(404, json.dumps(told).encode())
                return
            start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if start:
                first = int(start.group(1))
                self.answer(206, content[first:], {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"})
            else:
                self.answer(200, content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
