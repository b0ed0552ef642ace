"""What sources list, and what they may not; what a download shows to whom."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ascent import downloads, hubs

BASE = "http://hub.example.com"
HF = {"kind": "huggingface", "endpoint": BASE, "id": "a/b", "revision": "v1"}
COMMIT = "c" * 40


def answers(pages: dict[str, Any]) -> Any:
    def ask(url: str, method: str = "GET") -> tuple[bytes, dict[str, str]]:
        body, headers = pages[url] if isinstance(pages[url], tuple) else (pages[url], {})
        return (body if isinstance(body, bytes) else json.dumps(body).encode()), headers

    return ask


def row(path: str, size: int = 3) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": size, "oid": "1" * 40}


def test_a_long_list_of_hugging_face_comes_in_pages() -> None:
    first, more = f"{BASE}/api/models/a/b/tree/{COMMIT}?recursive=true", f"{BASE}/page2"
    large = {**row("model.safetensors", 130), "lfs": {"oid": "2" * 64, "size": 9000}}
    pages = {
        f"{BASE}/api/models/a/b/revision/v1": {"sha": COMMIT},
        first: ([row("config.json"), {**row("folder"), "type": "directory"}], {"link": f'<{more}>; rel="next"'}),
        more: [large, row(".gitattributes")],
    }
    found = hubs.listing(HF, answers(pages))
    assert found["commit"] == COMMIT
    assert [(one["path"], one["size"], one["sha256"]) for one in found["files"]] == [
        ("config.json", 3, None),
        ("model.safetensors", 9000, "2" * 64),
    ]
    assert hubs.file_url(HF, found, "x y.json") == f"{BASE}/a/b/resolve/{COMMIT}/x%20y.json"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "./x"])
def test_a_path_that_leaves_the_directory_is_refused(path: str) -> None:
    with pytest.raises(hubs.SourceError, match="lists"):
        hubs.finished([{"path": path, "size": 1, "sha256": None, "git_id": None}])


@pytest.mark.parametrize("source", [HF, {**HF, "kind": "modelscope"}, {**HF, "kind": "modelers"}])
@pytest.mark.parametrize("body", [b"<html>log in</html>", b"{}", b"[]", b"null"])
def test_a_page_that_is_no_list_is_named(source: dict, body: bytes) -> None:
    with pytest.raises(hubs.SourceError) as caught:
        hubs.listing(source, lambda url, method="GET": (body, {}))
    assert caught.value.kind == "invalid"
    assert BASE in str(caught.value)


def test_patterns_leave_files_out() -> None:
    found = {"files": [{"path": "original/a/b.pth"}, {"path": "config.json"}]}
    assert [one["path"] for one in hubs.wanted(found, ["original/*"])["files"]] == ["config.json"]


def test_a_wrong_line_of_checksums_is_named() -> None:
    with pytest.raises(hubs.SourceError, match="SUMS, line 2"):
        hubs.read_sums("0" * 64 + "  a\nnonsense\n", "SUMS")


CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append(dict(self.headers))
        if server.elsewhere:
            self.send_response(302)
            self.send_header("Location", f"{server.elsewhere}/storage")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[list[Any]]:
    made = []
    for _ in range(2):
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.seen, server.elsewhere = [], None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(server)
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def fetched(servers: list[Any], target: Path, **known: Any) -> str:
    client = downloads.Client({"Authorization": "Bearer x", "Cookie": "m_session_id=x"}, proxy="none")
    file = {"path": "f", "size": len(CONTENT), "sha256": None, "git_id": None, **known}
    address = f"http://127.0.0.1:{servers[0].server_address[1]}/f"
    return downloads.fetch(client, address, str(target), file, lambda count: None)


def test_a_redirect_to_another_server_gets_no_token(servers: list[Any], tmp_path: Path) -> None:
    servers[0].elsewhere = f"http://127.0.0.1:{servers[1].server_address[1]}"
    assert fetched(servers, tmp_path / "f") == hashlib.sha256(CONTENT).hexdigest()
    assert servers[0].seen[0]["Authorization"] == "Bearer x"
    assert not {"Authorization", "Cookie"} & set(servers[1].seen[0])


def test_a_server_without_parts_sends_all_again(servers: list[Any], tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:100])
    fetched(servers, tmp_path / "f")
    assert servers[0].seen[0]["Range"] == "bytes=100-"
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_small_file_is_compared_by_its_git_object_id(servers: list[Any], tmp_path: Path) -> None:
    right = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    fetched(servers, tmp_path / "f", git_id=right)
    with pytest.raises(hubs.SourceError, match="git object"):
        fetched(servers, tmp_path / "g", git_id="0" * 40)
    assert not (tmp_path / "g").exists()
    assert not (tmp_path / "g.part").exists()
