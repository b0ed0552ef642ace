"""Hosts that hand images to each other: servers on addresses of the loopback interface, a registry in memory above."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ascent import image_server
from ascent.image_store import Store
from tests.unit.registry_server import Site, digest, serve

NAME = "quay.io/a/b"
LAYER = bytes(range(256)) * 12_000


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_server, "PATIENCE", 0.0)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    """Servers 1 to n, each with an address for the others and one for its engine."""

    def __init__(self, directory: Path, site: Site | None, ways: dict[int, list[int]]) -> None:
        self.directory, self.site, self.ways, self.port = directory, site, ways, free_port()
        self.servers: dict[int, image_server.Server] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        for number in self.ways:
            self.start(number)
        return self

    def __exit__(self, *what: object) -> None:
        self._stack.close()

    def start(self, number: int) -> None:
        root = not self.ways[number] and self.site is not None
        source = {
            "host": self.site.host if self.site else "",
            "repository": "a/b",
            "settings": {"InsecureRegistryCIDRs": ["127.0.0.0/8"]},
        }
        made = image_server.Server(
            {
                "store": str(self.directory / str(number)),
                "idle_s": 60,
                "port": self.port,
                "address": f"127.0.2.{number}",
                "engine": f"127.0.3.{number}",
                "allow": [f"127.0.2.{below}" for below, above in self.ways.items() if number in above],
                "images": {
                    NAME: {
                        "upstreams": [f"127.0.2.{above}" for above in self.ways[number]],
                        "registry": source if root else None,
                    }
                },
            }
        )
        self.servers[number] = made
        for listener in image_server.listeners(made):
            thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
            thread.start()
            self._stack.callback(listener.server_close)
            self._stack.callback(thread.join)
            self._stack.callback(listener.shutdown)

    @contextmanager
    def ask(self, number: int, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(f"127.0.3.{number}", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def get(self, number: int, what: str, kind: str = "blobs") -> bytes:
        """What the engine of a host gets; raises as http.client does when the answer ends early."""
        with self.ask(number, f"/v2/{NAME}/{kind}/{what}") as answer:
            content = answer.read()
            assert answer.status == 200, content
            return content


def test_an_image_leaves_the_registry_once(site: Site, tmp_path: Path) -> None:
    image = site.image("v1", [LAYER, b"small"])
    with Cluster(tmp_path, site, {1: [], 2: [1], 3: [1], 4: [2, 1], 5: [2, 1]}) as cluster:
        manifest = json.loads(cluster.get(5, image, "manifests"))
        blobs = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
        with ThreadPoolExecutor() as pool:
            asked = [(number, blob) for number in cluster.servers for blob in blobs]
            contents = list(pool.map(lambda one: cluster.get(*one), asked))
        assert [digest(content) for content in contents] == [blob for _, blob in asked]
        assert site.sent() == sum(len(site.blobs[blob]) for blob in blobs)
        assert set(cluster.servers[4].status()["received"]) == {"127.0.2.2"}
        assert set(cluster.servers[1].status()["sent"]) == {"engine", "127.0.2.2", "127.0.2.3"}


def test_only_what_is_asked_for_moves(site: Site, tmp_path: Path) -> None:
    """An engine that has a layer does not ask for it, and no host above fetches it in vain."""
    site.image("v1", [LAYER, b"new"])
    with Cluster(tmp_path, site, {1: [], 2: [1]}) as cluster:
        cluster.get(2, digest(b"new"))
        assert site.sent() == 3


def test_the_manifest_has_its_type(site: Site, tmp_path: Path) -> None:
    image = site.image("v1", [b"x"])
    with Cluster(tmp_path, site, {1: []}) as cluster, cluster.ask(1, f"/v2/{NAME}/manifests/{image}") as answer:
        assert answer.headers["Content-Type"] == "application/vnd.docker.distribution.manifest.v2+json"
        assert answer.headers["Docker-Content-Digest"] == image == digest(answer.read())


def test_an_engine_may_go_on_in_the_middle(site: Site, tmp_path: Path) -> None:
    site.image("v1", [LAYER])
    path = f"/v2/{NAME}/blobs/{digest(LAYER)}"
    with Cluster(tmp_path, site, {1: []}) as cluster, cluster.ask(1, path, Range="bytes=1000000-") as answer:
        assert (answer.status, answer.read()) == (206, LAYER[1_000_000:])


def test_a_registry_that_breaks_off_is_asked_for_the_rest(site: Site, tmp_path: Path) -> None:
    site.image("v1", [LAYER])
    site.breaks[digest(LAYER)] = 1_000_000
    with Cluster(tmp_path, site, {1: [], 2: [1]}) as cluster:
        with pytest.raises(http.client.IncompleteRead):
            cluster.get(2, digest(LAYER))
        assert cluster.get(2, digest(LAYER)) == LAYER
        assert site.sent() == len(LAYER)
        assert "came before the connection ended" in cluster.servers[1].status()["errors"][0]


def test_nobody_gets_a_whole_wrong_blob(site: Site, tmp_path: Path) -> None:
    site.image("v1", [LAYER])
    site.blobs[digest(LAYER)] = LAYER[:-1] + b"?"
    with Cluster(tmp_path, site, {1: [], 2: [1]}) as cluster:
        with pytest.raises(http.client.IncompleteRead):
            cluster.get(2, digest(LAYER))
        assert "wanted sha256:" in cluster.servers[1].status()["errors"][0]
        assert not Store(str(tmp_path / "1")).has(digest(LAYER))


def test_a_host_above_that_is_gone_is_passed_over(site: Site, tmp_path: Path) -> None:
    site.image("v1", [LAYER])
    ways = {1: [], 3: [2, 1]}
    with Cluster(tmp_path, site, ways) as cluster:
        assert cluster.get(3, digest(LAYER)) == LAYER
        assert set(cluster.servers[3].status()["received"]) == {"127.0.2.1"}


def test_without_any_host_above_it_says_so(tmp_path: Path) -> None:
    path = f"/v2/{NAME}/blobs/{digest(LAYER)}"
    with Cluster(tmp_path, None, {3: [2, 1]}) as cluster, cluster.ask(3, path) as answer:
        assert answer.status == 502
        assert b"no host of the cluster gives the image: 127.0.2.2: " in answer.read()


def test_an_archive_is_served_from_the_store_alone(tmp_path: Path) -> None:
    Store(str(tmp_path / "1")).add(LAYER)
    with Cluster(tmp_path, None, {1: [], 2: [1]}) as cluster:
        assert cluster.get(2, digest(LAYER)) == LAYER
        with cluster.ask(1, f"/v2/{NAME}/blobs/{digest(b'other')}") as answer:
            assert answer.status == 502
            assert b"is not in" in answer.read()


def test_a_full_disk_is_told(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.image("v1", [LAYER])

    def full(self: Store, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "receive", full)
    with Cluster(tmp_path, site, {1: []}) as cluster, cluster.ask(1, f"/v2/{NAME}/blobs/{digest(LAYER)}") as answer:
        assert answer.status == 502
        assert b"No space left on device" in answer.read()


def test_strangers_and_other_paths_are_refused(site: Site, tmp_path: Path) -> None:
    image = site.image("v1", [b"x"])
    with Cluster(tmp_path, site, {1: [], 2: [1]}) as cluster:
        stranger = http.client.HTTPConnection("127.0.2.1", cluster.port, timeout=10, source_address=("127.0.2.9", 0))
        stranger.request("GET", f"/v2/{NAME}/manifests/{image}")
        assert stranger.getresponse().status == 403
        stranger.close()
        for path in (f"/v2/{NAME}/manifests/v1", f"/v2/other/manifests/{image}", "/v2/../../etc/passwd", "/x"):
            with cluster.ask(1, path) as answer:
                assert answer.status == 404


def test_it_ends_when_nobody_asks(tmp_path: Path) -> None:
    now = [0.0]
    server = image_server.Server({"store": str(tmp_path), "idle_s": 600}, clock=lambda: now[0])
    with server.busy():
        now[0] = 10_000
        assert not server.idle()
    now[0] += 599
    assert not server.idle()
    now[0] += 2
    assert server.idle()


def test_what_is_counted_is_what_came(site: Site, tmp_path: Path) -> None:
    site.image("v1", [LAYER])
    part = Path(Store(str(tmp_path / "1")).partial(digest(LAYER)))
    part.parent.mkdir(parents=True)
    part.write_bytes(LAYER[:500])
    with Cluster(tmp_path, site, {1: []}) as cluster:
        assert hashlib.sha256(cluster.get(1, digest(LAYER))).digest() == hashlib.sha256(LAYER).digest()
        assert cluster.servers[1].status() == {
            "received": {site.host: len(LAYER) - 500},
            "sent": {"engine": len(LAYER)},
            "errors": [],
        }
