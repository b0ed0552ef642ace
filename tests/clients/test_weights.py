"""Weights as the role `weights` leaves them, read by the hubs' own clients: they find the model and fetch nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import MODEL, Site, environment
from tests.unit.weights_hosts import PLACE, Cluster

SNAPSHOT = "/root/.cache/huggingface/hub/models--tiny-org--Tiny-0.5B"
# As engines call it: with HF_HUB_OFFLINE they ask for local files only.
MODELSCOPE = """
import sys
from modelscope.hub.snapshot_download import snapshot_download
print(snapshot_download(sys.argv[1], local_files_only=sys.argv[2] == "offline"))
"""


@pytest.fixture
def root(site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    source, place = request.param
    hosts = Cluster(tmp_path / "hosts", 1, processes=False)
    fetched = hosts.fetch(place, source, endpoint=site.url)
    assert fetched.found == []
    assert shards(site), "what is fetched is seen"
    site.spoil()
    return Path(hosts.roots["n1"])


def shards(site: Site) -> list:
    return [sent for number in (1, 2) for sent in site.sent(f"model-0000{number}-of-00002.safetensors")]


@pytest.mark.parametrize("root", [("modelscope", PLACE)], indirect=True)
@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("client", ["modelscope-1.31", "hubs"])
def test_modelscope_takes_what_is_there(
    site: Site, settings: dict[str, str], root: Path, client: str, mode: str
) -> None:
    domain = f"127.0.0.1:{site.tls_port}"
    env = {**settings, "MODELSCOPE_DOMAIN": domain, "MODELSCOPE_ENDPOINT": site.url}
    env |= {"REQUESTS_CA_BUNDLE": str(site.certificate), "HOME": str(root / "root")}
    command = [str(environment(client) / "python"), "-c", MODELSCOPE, MODEL, mode]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert Path(run.stdout.split()[-1]).resolve() == Path(str(root) + PLACE)
    assert shards(site) == []


@pytest.mark.parametrize("root", [("huggingface", SNAPSHOT)], indirect=True)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_hugging_face_s_client_takes_what_is_there(site: Site, settings: dict[str, str], root: Path, mode: str) -> None:
    env = {**settings, "HF_ENDPOINT": site.url, "HF_HUB_CACHE": str(root / "root/.cache/huggingface/hub")}
    env |= {"HF_HUB_OFFLINE": "1"} if mode == "offline" else {}
    command = [str(environment("hubs") / "hf"), "download", MODEL]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert SNAPSHOT in run.stdout
    assert shards(site) == []
