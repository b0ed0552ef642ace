"""The hubs' own clients against the site's server: whole downloads, revisions, breaks, and what each client notices."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import MODEL, SHARD_BYTES, Site, environment

SHARD = "model-00002-of-00002.safetensors"
Run = subprocess.CompletedProcess[str]

OLD_MODELSCOPE = """
import sys
from modelscope.hub.snapshot_download import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2]))
"""
# This client takes only names of its own hub; a hosts file would do the same.
OPENMIND = """
import socket, sys
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda name, *more, **named: resolve(
    "127.0.0.1" if name == "modelers.cn" else name, *more, **named)
from openmind_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2], cache_dir=sys.argv[3]))
"""


class Hub:
    """One client: how it is called, where its cache keeps the model, what it calls the branch."""

    def __init__(self, name: str, site: Site, settings: dict[str, str], folder: Path) -> None:
        secure = {"REQUESTS_CA_BUNDLE": str(site.certificate)}
        self.env = settings
        if name == "huggingface":
            self.env |= {"HF_ENDPOINT": site.url, "HF_HOME": str(folder)}
            self.argv = [str(environment("hubs") / "hf"), "download", MODEL, "--revision"]
        elif name == "modelscope":
            self.env |= {"MODELSCOPE_ENDPOINT": site.url, "MODELSCOPE_CACHE": str(folder)}
            self.argv = [str(environment("hubs") / "modelscope"), "download", "--model", MODEL, "--revision"]
        elif name == "modelscope-1.31":
            domain = f"127.0.0.1:{site.tls_port}"
            self.env |= {"MODELSCOPE_DOMAIN": domain, "MODELSCOPE_CACHE": str(folder), **secure}
            self.argv = [str(environment("modelscope-1.31") / "python"), "-c", OLD_MODELSCOPE, MODEL]
        else:
            self.env |= {"OPENMIND_HUB_ENDPOINT": f"https://modelers.cn:{site.tls_port}", **secure}
            self.argv = [str(environment("hubs") / "python"), "-c", OPENMIND, MODEL]
        self.more = [str(folder)] if name == "openmind" else []
        self.branch = "master" if name.startswith("modelscope") else "main"
        self.folder = folder

    def command(self, revision: str | None = None) -> list[str]:
        """The command line that downloads the model."""
        return [*self.argv, revision or self.branch, *self.more]

    def download(self, revision: str | None = None) -> Run:
        """Runs it to its end."""
        return subprocess.run(
            self.command(revision), env=self.env, capture_output=True, text=True, check=False, timeout=300
        )

    def content(self, name: str = SHARD) -> bytes:
        """A file of the model as the cache has it; only one place may have it."""
        found = {path.resolve() for path in self.folder.rglob(name) if path.is_file()}
        assert len(found) == 1, found
        return found.pop().read_bytes()


@pytest.fixture
def hub(request: pytest.FixtureRequest, site: Site, settings: dict[str, str], tmp_path: Path) -> Hub:
    return Hub(request.param, site, settings, tmp_path / "cache")


HUBS = ("huggingface", "modelscope", "modelscope-1.31", "openmind")
every_hub = pytest.mark.parametrize("hub", HUBS, indirect=True)


@every_hub
@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_model_arrives_whole(site: Site, hub: Hub, revision: str) -> None:
    run = hub.download(None if revision == "main" else revision)
    assert run.returncode == 0, run.stdout + run.stderr
    for name, content in site.files(revision).items():
        assert hub.content(name) == content, name
    site.spoil()
    again = hub.download(None if revision == "main" else revision)
    assert again.returncode == 0, again.stdout + again.stderr
    assert site.sent("00001-of-00002.safetensors") + site.sent(SHARD) == [], "what is there is not fetched again"


@every_hub
def test_a_broken_connection_is_resumed_where_it_broke(site: Site, hub: Hub) -> None:
    broken_at = 15 << 20
    site.spoil({"fault": "break", "match": f"*{SHARD}", "bytes": broken_at, "times": 1})
    run = hub.download()
    assert run.returncode == 0, run.stdout + run.stderr
    assert hub.content() == site.files()[SHARD]
    first, second = site.sent(SHARD)
    assert first[2] == broken_at
    assert second[1] == 206
    assert second[2] < SHARD_BYTES, "not all of it again"


def stop_when(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Kills a client, with what it started, as soon as the condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@every_hub
def test_a_killed_download_is_completed_by_the_next_one(site: Site, hub: Hub) -> None:
    stall = 15 << 20
    site.spoil({"fault": "stall", "match": f"*{SHARD}", "bytes": stall, "seconds": 20, "times": 1})
    with subprocess.Popen(
        hub.command(), env=hub.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        stop_when(lambda: any(sent[2] >= stall for sent in site.sent(SHARD)), process)
    site.spoil()
    run = hub.download()
    assert run.returncode == 0, run.stdout + run.stderr
    assert hub.content() == site.files()[SHARD]


@every_hub
def test_a_hub_that_is_down_for_a_moment_is_asked_again(site: Site, hub: Hub) -> None:
    site.spoil({"fault": "unavailable", "match": f"*{SHARD}", "times": 2})
    run = hub.download()
    assert run.returncode == 0, run.stdout + run.stderr
    assert hub.content() == site.files()[SHARD]


@pytest.mark.parametrize("hub", ["huggingface", "modelscope", "modelscope-1.31"], indirect=True)
def test_a_file_that_is_too_short_ends_in_an_error(site: Site, hub: Hub) -> None:
    site.spoil({"fault": "truncate", "match": f"*{SHARD}", "bytes": 1 << 20})
    run = hub.download()
    assert run.returncode != 0, run.stdout + run.stderr
    assert SHARD in run.stdout + run.stderr


@pytest.mark.parametrize("hub", ["modelscope", "modelscope-1.31"], indirect=True)
def test_modelscope_notices_a_wrong_checksum(site: Site, hub: Hub) -> None:
    site.spoil({"fault": "checksum", "match": f"*{SHARD}", "bytes": 1 << 20})
    run = hub.download()
    assert run.returncode != 0, run.stdout + run.stderr
    assert SHARD in run.stdout + run.stderr


@pytest.mark.parametrize("hub", ["huggingface"], indirect=True)
def test_hugging_face_s_client_does_not_look_at_checksums(site: Site, hub: Hub) -> None:
    """Why whoever downloads with it has to: the client is content with the right size."""
    site.spoil({"fault": "checksum", "match": f"*{SHARD}", "bytes": 1 << 20})
    run = hub.download()
    assert run.returncode == 0, run.stdout + run.stderr
    assert hub.content() != site.files()[SHARD]


@pytest.mark.parametrize("hub", HUBS[:3], indirect=True)
def test_a_revision_or_a_model_that_is_not_there_is_named(site: Site, hub: Hub) -> None:
    run = hub.download("v9")
    assert run.returncode != 0
    assert re.search(r"v9|Revision not found", run.stdout + run.stderr, re.IGNORECASE), run.stderr
    hub.argv = [word.replace(MODEL, "tiny-org/Missing") for word in hub.argv]
    run = hub.download()
    assert run.returncode != 0
    assert "tiny-org/Missing" in run.stdout + run.stderr
