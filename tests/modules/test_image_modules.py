"""The image modules on a made-up host: an engine behind a socket, a registry in memory, no systemd."""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ascent import engine_api, image_pulls, image_service
from ansible.module_utils.ascent.image_store import Store

from library import image_lookup, image_parts, image_pull
from tests.unit.registry_server import Site, digest, serve


class Docker:
    """An engine: its images by digest, what it says of a pull, and the message with which its next one fails."""

    def __init__(self) -> None:
        self.images: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self.pulls: list[str] = []
        self.fails = ""
        #: What it says while it pulls.
        self.tells: list[dict[str, Any]] = []


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    engine = Docker()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def address_string(self) -> str:
            return "engine"

        def answer(self, code: int, *values: Any) -> None:
            content = "\n".join(map(json.dumps, values)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if self.path == "/info":
                self.answer(200, {"RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"]}})
                return
            name = urllib.parse.unquote(re.fullmatch(r"/images/(.*)/json", self.path).group(1))  # type: ignore[union-attr]
            names = next((names for names in engine.images.values() if name in names), None)
            self.answer(*((200, {"RepoDigests": names}) if names else (404, {"message": f"No such image: {name}"})))

        def do_POST(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            if parts.path == "/images/create":
                engine.pulls.append(f"{query['fromImage']}@{query['tag']}")
                if engine.fails:
                    self.answer(200, {"error": engine.fails})
                    return
                engine.images[query["tag"]] = [engine.pulls[-1]]
                self.answer(200, *engine.tells, {"status": "Pull complete"})
            else:
                engine.tags.append(f"{query['repo']}:{query['tag']}")
                self.answer(201, None)

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    path = str(tmp_path / "docker.sock")
    server = Server(path, Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(engine_api, "SOCKET", path)
    yield engine
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as made:
        yield made


def wish(site: Site, image: str, tag: str = "v1", **more: Any) -> dict[str, Any]:
    return {
        "images": [{"reference": f"{site.host}/a/b:{tag}", "digest": image}],
        "machine": "aarch64",
        "host": "n1",
        **more,
    }


def test_check_then_pull_then_nothing(docker: Docker, site: Site, run_module: Any) -> None:
    image = site.image("v1", [b"layer"])
    name = f"{site.host}/a/b"
    predicted = run_module(image_pull, wish(site, image), check=True, diff=True)
    assert (predicted["changed"], docker.pulls) == (True, [])
    assert image in predicted["diff"][0]["after"]

    done = run_module(image_pull, wish(site, image))
    assert (done["changed"], done["names"]) == (True, {f"{name}:v1": f"{name}@{image}"})
    assert (docker.pulls, docker.tags) == ([f"{name}@{image}"], [f"{name}:v1"])

    again = run_module(image_pull, wish(site, image))
    assert (again["changed"], again["names"], len(docker.pulls)) == (False, done["names"], 1)


def test_how_far_a_pull_is_lies_in_a_file_while_it_runs(
    docker: Docker, site: Site, run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [b"a" * 1000, b"b" * 3000]
    first, second = (digest(layer).partition(":")[2][:12] for layer in layers)
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(image_pulls.Progress, "_write", lambda self: states.append(self.state()))
    clock = iter(range(1, 100))
    monkeypatch.setattr(image_pulls.time, "monotonic", lambda: float(next(clock) * 2))
    docker.tells = [
        {"status": "Pulling from a/b", "id": "v1"},
        {"status": "Already exists", "id": first},
        {"status": "Downloading", "id": second, "progressDetail": {"current": 1500, "total": 3000}},
        {"status": "Download complete", "id": second},
    ]
    run_module(image_pull, wish(site, site.image("v1", layers)))
    assert [(one["bytes_done"], one["bytes"], one["phase"]) for one in states] == [
        (1000, 4000, "fetch"),
        (2500, 4000, "fetch"),
        (4000, 4000, "unpack"),
    ]


def test_the_file_is_gone_when_the_pull_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "run" / "images.json"
    progress = image_pulls.Progress("a:v1", {"sha256:" + "0" * 64: 10}, str(path))
    progress.heed({"status": "Downloading", "id": "0" * 12, "progressDetail": {"current": 4}})
    assert json.loads(path.read_text()) == {"reference": "a:v1", "bytes_done": 4, "bytes": 10, "phase": "fetch"}
    progress.end()
    assert list(path.parent.iterdir()) == []


def test_an_image_is_known_under_the_name_that_the_cluster_gave_it(docker: Docker, site: Site, run_module: Any) -> None:
    image = site.image("v1", [b"layer"])
    name = f"{image_pulls.local_name(f'{site.host}/a/b:v1', 28950)}@{image}"
    docker.images[image] = [name]
    done = run_module(image_pull, wish(site, image))
    assert (done["changed"], list(done["names"].values())) == (False, [name])


def test_another_architecture_is_refused_before_the_pull(docker: Docker, site: Site, run_module: Any) -> None:
    image = site.image("v1", [b"layer"], "amd64")
    failed = run_module(image_pull, wish(site, image))
    assert (failed["failed"], [one["id"] for one in failed["findings"]]) == (True, ["B07"])
    assert docker.pulls == []
    assert "B07" in failed["msg"]


def test_what_the_engine_says_becomes_a_finding(docker: Docker, site: Site, run_module: Any) -> None:
    docker.fails = "write /opt/x: no space left on device"
    failed = run_module(image_pull, wish(site, site.image("v1", [b"layer"])))
    assert [(one["id"], one["host"], one["evidence"]) for one in failed["findings"]] == [("D16", "n1", docker.fails)]


def test_a_dry_run_needs_no_engine_and_a_run_does(
    tmp_path: Path, site: Site, run_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_api, "SOCKET", str(tmp_path / "nowhere.sock"))
    assert run_module(image_pull, wish(site, digest(b"x")), check=True)["changed"] is True
    assert "no container engine answers" in run_module(image_pull, wish(site, digest(b"x")))["msg"]
    assert "no container engine answers" in run_module(image_lookup, {"references": ["a"]})["msg"]


def test_tags_are_looked_up(docker: Docker, site: Site, run_module: Any) -> None:
    image = site.image("v1", [b"layer"])
    names = [f"{site.host}/a/b:v1", f"{site.host}/a/b:v2"]
    told = run_module(image_lookup, {"references": names, "machine": "aarch64", "host": "n1"})
    assert (told["digests"], [one["id"] for one in told["findings"]], told["changed"]) == (
        {names[0]: image},
        ["B10"],
        False,
    )


def test_the_service_is_made_of_files_that_run_by_themselves(tmp_path: Path) -> None:
    """On a host they are copied out of Ansible's archive, and started by systemd with nothing else around."""
    import subprocess
    import sys

    calls: list[list[str]] = []

    def run(argv: list[str]) -> tuple[int, str, str]:
        calls.append(argv)
        return 0, "", ""

    store = tmp_path / "store"
    service = image_service.Service(run, str(store), 1, str(tmp_path / "run"))
    service._wait = lambda: None  # type: ignore[method-assign]
    service.start({"store": str(store), "idle_s": 0, "port": 0, "address": "127.0.0.1", "allow": [], "images": {}})
    start = next(argv for argv in calls if argv[0] == "systemd-run")
    path = next(word.partition("=")[2] for word in start if word.startswith("--setenv=PYTHONPATH"))
    store.mkdir()
    done = subprocess.run(
        [sys.executable, *start[start.index("-m") :]],
        env={"PYTHONPATH": path},
        capture_output=True,
        timeout=30,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not store.exists(), "nobody asked for anything, so it ended and took its store along"
    service.remove()
    assert calls[-2:] == [["systemctl", "stop", image_service.UNIT], ["systemctl", "reset-failed", image_service.UNIT]]
    assert not (tmp_path / "run").exists()


def test_parts_are_taken_in_by_their_digest(tmp_path: Path, run_module: Any) -> None:
    store, good, bad = tmp_path / "store", tmp_path / "good", tmp_path / "bad"
    good.write_bytes(b"good")
    bad.write_bytes(b"bad")
    wanted = [digest(b"good"), digest(b"other")]
    first = run_module(image_parts, {"store": str(store), "parts": wanted})
    assert (first["changed"], first["missing"]) == (False, wanted)
    done = run_module(image_parts, {"store": str(store), "parts": wanted, "add": {wanted[0]: str(good)}})
    assert (done["changed"], done["missing"]) == (True, wanted[1:])
    failed = run_module(image_parts, {"store": str(store), "add": {wanted[1]: str(bad)}})
    assert f"wanted {wanted[1]}" in failed["msg"]
    assert not Store(str(store)).has(wanted[1])
