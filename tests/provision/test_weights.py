"""Weights come to three nodes: from the site's hub once, resumed by a later controller, on a share, on a small disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.lib import engine, plan, site_files
from sandbox.lib.lifecycle import Cluster
from tests import controllers
from tests.e2e.driver import ROOT

INVENTORY = Path(__file__).parent / "weights" / "inventory"
PLAYBOOK = Path(__file__).parent / "weights" / "site.yml"
NODES = ("w-01", "w-02", "w-03")
MODEL = "Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp"
DIRECTORY = "/root/.cache/modelscope/hub/models/Eco-Tech/Qwen3___5-397B-A17B-w8a8-mtp"


class Site:
    """The booted nodes, the hub's log, and the playbook."""

    def __init__(self, cluster: Cluster, work: Path) -> None:
        self.cluster, self.work = cluster, work
        self.hub = f"http://{cluster.sandbox.services}"
        (model,) = cluster.sandbox.hub_models
        prefix = f"{site_files.HUB}/{MODEL}/main/"
        self.files = {file.path.removeprefix(prefix): file.content for file in site_files.hub_files(model)}
        self.size = sum(map(len, self.files.values()))

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.hub + path, data, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return json.load(answer)

    def heal(self) -> None:
        self.ask("/_site/faults", "DELETE")
        self.ask("/_site/requests", "DELETE")

    def asked(self) -> list[dict[str, Any]]:
        """What was asked of the hub for files of models, not for lists of them."""
        return [line for line in self.ask("/_site/requests") if "FilePath=" in line["path"]]

    def sent(self) -> int:
        return sum(line["bytes"] for line in self.asked())

    def run(self, node: str, command: str) -> str:
        argv = self.cluster.ssh(self.cluster.node(node), command)
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout

    def remove(self, *nodes: str) -> None:
        for node in nodes:
            self.run(node, f"rm -rf {DIRECTORY} {DIRECTORY.replace('___', '.')} {Path(DIRECTORY).parent}/.Qwen*")

    def command(self, *arguments: str) -> list[str]:
        return [f"{Path(sys.executable).parent}/ansible-playbook", "-i", str(INVENTORY), str(PLAYBOOK), *arguments]

    def environment(self) -> dict[str, str]:
        fixed = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ASCENT_RUNS_DIR": str(self.work),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **fixed}

    def play(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )

    def record(self, name: str) -> dict[str, Any]:
        """A file of the latest run's record."""
        return json.loads((self.work / "latest" / f"{name}.json").read_text())

    def whole(self, *nodes: str, directory: str = DIRECTORY) -> None:
        """Every file is the hub's, and nothing of the copy is left."""
        for node in nodes:
            said = self.run(node, f"cd {directory} && sha256sum {' '.join(self.files)}; ls -A {Path(directory).parent}")
            for name, content in self.files.items():
                assert f"{sha256(content)}  {name}" in said, (node, name)
            assert "ascent" not in said.split("sha256")[-1].splitlines()[-1], said
            assert self.run(node, "ls /run/ascent | grep -v lock || true") == ""
            assert self.run(node, "pgrep -fc '[e]xec.sys.stdin' || true").strip() == "0"


def sha256(content: bytes) -> str:

    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    cluster = Cluster(plan.from_inventory(INVENTORY), ROOT, engine.Engine(), print)
    cluster.down()
    cluster.up()
    yield Site(cluster, tmp_path_factory.mktemp("weights"))
    cluster.down()


@pytest.fixture
def site(booted: Site) -> Site:
    booted.heal()
    return booted


def test_a_dry_run_says_what_would_come_and_touches_nothing(site: Site) -> None:
    done = site.play("--check", "--diff")
    assert done.returncode == 0, done.stdout
    size = f"{site.size / 1e6:.1f} MB"
    assert f"{len(site.files)} files, {size} from modelscope {MODEL}" in done.stdout
    assert all(node in done.stdout for node in NODES)
    assert site.asked() == []
    for node in NODES:
        assert site.run(node, "ls /root/.cache 2>/dev/null || true") == ""


def test_the_hub_sends_one_copy_and_all_nodes_have_it(site: Site) -> None:
    done = site.play()
    assert done.returncode == 0, done.stdout
    site.whole(*NODES)
    assert site.sent() == site.size
    assert len({line["client"] for line in site.asked()}) == 1
    hosts = site.record("provision")["metrics"]["weights"]["hosts"]
    assert [hosts[node]["fetched"] for node in NODES] == [site.size] * 3
    assert [hosts[node]["from"] for node in NODES[1:]] == ["peers", "peers"]


def test_a_second_run_asks_nobody_and_changes_nothing(site: Site) -> None:
    done = site.play()
    assert done.returncode == 0, done.stdout
    assert "changed    nothing" in done.stdout
    assert site.ask("/_site/requests") == []
    assert site.play("--check").returncode == 0


def test_a_node_that_lost_its_weights_gets_them_from_another(site: Site) -> None:
    site.remove("w-02")
    done = site.play("-e", "weights_endpoint=http://198.18.192.254")
    assert done.returncode == 0, done.stdout
    site.whole("w-02")
    assert site.ask("/_site/requests") == []


def test_a_killed_controller_is_followed_by_one_that_goes_on(site: Site, tmp_path: Path) -> None:
    site.remove(*NODES)
    site.ask("/_site/faults", "PUT", [{"fault": "slow", "match": "*.safetensors", "rate": 1 << 20}])
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            site.command(), cwd=ROOT, env=site.environment(), stdout=out, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 200
    while not re.search(r"w-01 \d+ % of [\d.]+ MB, [\d.]+ MB/s, .* left", log.read_text()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    controllers.kill(process)
    before = site.sent()
    assert before < site.size
    for node in NODES:
        assert site.run(node, f"ls -d {DIRECTORY} 2>/dev/null || true") == ""
    site.ask("/_site/faults", "DELETE")
    done = site.play()
    assert done.returncode == 0, done.stdout
    site.whole(*NODES)
    # What was on its way when the first job ended may come again: a few blocks, of a hundred.
    assert site.size <= site.sent() < site.size * 1.1


def test_a_small_disk_is_told_with_figures_before_anything_comes(site: Site) -> None:
    done = site.play("-e", "ascent_cache_directory=/small")
    assert done.returncode != 0
    (found,) = [one for one in site.record("provision")["findings"] if one["severity"] == "error"]
    assert (found["id"], found["host"]) == ("D16", "w-03")
    assert f"{site.size / 1e6:.1f} MB are still to come" in found["evidence"]
    assert "free on /small" in found["evidence"]
    assert site.run("w-03", "find /small -name '*.safetensors*'") == ""
    model = DIRECTORY.replace("/root/.cache", "/small")
    site.whole("w-01", "w-02", directory=model)


def test_a_share_is_written_once(site: Site) -> None:
    done = site.play("-e", "ascent_cache_directory=/share")
    assert done.returncode == 0, done.stdout
    assert "w-02, w-03 see the same file system" in done.stdout
    assert site.sent() == site.size
    assert set(site.record("provision")["metrics"]["weights"]["hosts"]) == {"w-01"}
    site.whole(*NODES, directory=DIRECTORY.replace("/root/.cache", "/share"))
    again = site.play("-e", "ascent_cache_directory=/share")
    assert again.returncode == 0
    assert "changed    nothing" in again.stdout


def test_a_directory_on_the_controller_is_enough(site: Site, tmp_path: Path) -> None:
    site.remove(*NODES)
    folder = tmp_path / MODEL
    folder.mkdir(parents=True)
    for name, content in site.files.items():
        (folder / name).write_bytes(content)
    sums = "".join(f"{sha256(content)}  {name}\n" for name, content in site.files.items())
    (folder / "SHA256SUMS").write_text(sums)
    done = site.play("-e", f"weights_archive={tmp_path}")
    assert done.returncode == 0, done.stdout
    site.whole(*NODES)
    assert site.ask("/_site/requests") == []


def test_a_real_rsync_daemon_is_a_source(site: Site) -> None:
    """w-03 serves the tree, and asks for a password; w-01 has no rsync at first, and says so."""
    install = "DEBIAN_FRONTEND=noninteractive apt-get -qq update && apt-get -qq install -y rsync >/dev/null"
    tree = f"/srv/models/{MODEL}"
    settings = "[models]\\npath = /srv/models\\nuid = root\\nauth users = ascent\\nsecrets file = /srv/secret\\n"
    site.run(
        "w-03",
        f"{install} && mkdir -p {tree} && cp {DIRECTORY}/* {tree}/ && cd {tree} && sha256sum * >/srv/sums"
        f" && mv /srv/sums SHA256SUMS && umask 077 && echo ascent:letmein >/srv/secret"
        f" && printf '{settings}' >/srv/rsyncd.conf"
        " && systemd-run --quiet --unit models rsync --daemon --no-detach --config=/srv/rsyncd.conf",
    )
    site.remove(*NODES)
    mirror = ("-e", "weights_mirror=rsync://ascent@198.18.192.13/models", "-e", "weights_token=letmein")
    done = site.play(*mirror)
    assert done.returncode != 0
    (found,) = [one for one in site.record("provision")["findings"] if one["severity"] == "error"]
    assert found["host"] == "w-01"
    assert "rsync is not installed" in str(found)
    assert "letmein" not in done.stdout
    site.run("w-01", install)
    done = site.play(*mirror)
    assert done.returncode == 0, done.stdout
    site.whole(*NODES)
    assert site.asked() == []
    site.run("w-03", "systemctl stop models")
