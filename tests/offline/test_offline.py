"""A bundle is made, the network is cut, and the bundle alone makes a controller and a serving cluster.

Cut means: the site's services (registry, package repository, hubs) are stopped; the nodes' packet filters let through
the two nodes and the controller and nothing else, from boot on; the controller runs in a network namespace whose only
route is the nodes' network, with an environment of its own, in the suite that the bundle unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascent_controller import bundle_archive

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "tests/offline/inventory"
SOCKET = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ascent-sandbox/docker.sock"
NODES = {"off-01": "198.19.128.11", "off-02": "198.19.128.12"}
#: The controller's address on the nodes' network, and the part of its name that keeps it apart from other tests.
CONTROLLER = "198.19.191.250"
NAMESPACE = "ascent-offline"
MODEL = "ascent/offline-moe"
SEALED = "bundle-test"

#: Runs on a node at each boot, before anything of ours.
WALL = """\
[Unit]
DefaultDependencies=no
After=local-fs.target
Before=network.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'iptables -F OUTPUT; iptables -A OUTPUT -o lo -j ACCEPT; %s; iptables -A OUTPUT -j DROP'
[Install]
WantedBy=multi-user.target
"""


def run(*argv: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **more)
    assert not check or done.returncode == 0, done.stdout[-8000:]
    return done


def sandbox(*verb: str) -> str:
    return run(sys.executable, str(ROOT / "sandbox/cluster.py"), *verb, "--inventory", str(INVENTORY)).stdout


def on_node(node: str, command: str) -> str:
    return run(
        sys.executable, str(ROOT / "sandbox/cluster.py"), "shell", "--inventory", str(INVENTORY), node, command
    ).stdout


def docker(*argv: str) -> str:
    return run("docker", *argv, env={**os.environ, "DOCKER_HOST": f"unix://{SOCKET}"}).stdout.strip()


def model(place: Path) -> None:
    """A model of two shards, of a few kilobytes."""
    place.mkdir(parents=True)
    names = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        header = json.dumps({f"w{number}": {"dtype": "U8", "shape": [4096], "data_offsets": [0, 4096]}}).encode()
        (place / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes([number]) * 4096)
        names[f"w{number}"] = name
    index = {"metadata": {"total_size": 8192}, "weight_map": names}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "max_position_embeddings": 40960}
    (place / "config.json").write_text(json.dumps({**config, "num_experts": 128}))


class Site:
    """The bundle, and a controller that only this has made."""

    def __init__(self, work: Path) -> None:
        self.work = work
        #: The one file that is carried to the site, and the directory that it becomes there.
        self.made = work / "outside" / f"{SEALED}.tar"
        self.archive = work / "site" / f"{SEALED}.tar"
        self.bundle = work / "site" / SEALED
        self.suite = work / "suite"
        self.seal = ""

    def outside(self) -> dict[str, str]:
        return {**os.environ, "ASCENT_RUNS_DIR": str(self.work / "runs"), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}

    def make(self, *arguments: str) -> str:
        """Make the bundle, where there is a network."""
        systems = [{"id": "debian", "version": "12", "machine": os.uname().machine, "host": "off-01"}]
        variables = {
            "bundle": str(self.made),
            "bundle_systems": systems,
            "npu_driver_source": str(self.work / "packages"),
            "cann_source": str(self.work / "packages"),
            "bundle_weights": str(self.work / "weights"),
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        argv = [program, "-i", str(INVENTORY), "playbooks/bundle.yml", "-e", json.dumps(variables), *arguments]
        return run(*argv, cwd=ROOT, env=self.outside()).stdout

    def inside(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the controller that has no way out."""
        environment = {
            "PATH": f"{self.suite}/.venv/bin:{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.work / "home"),
            "LANG": "C.UTF-8",
            "ASCENT_RUNS_DIR": str(self.work / "runs"),
        }
        place = self.suite if self.suite.is_dir() else self.work
        return run("ip", "netns", "exec", NAMESPACE, *argv, cwd=place, env=environment, check=check)

    def deploy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = ["ansible-playbook", "-i", str(INVENTORY), "deploy.yml", "-e", f"bundle={self.archive}", *arguments]
        return self.inside(*argv, check=check)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes and a finished bundle, then no network."""
    made = Site(tmp_path_factory.mktemp("offline"))
    (made.work / "home").mkdir()
    model(made.work / "weights" / MODEL)
    sandbox("down")
    sandbox("up")
    try:
        sandbox("packages", str(made.work / "packages"))
        packages = made.work / "packages"
        files = sorted(packages.glob("*.run"))
        sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
        (packages / "SHA256SUMS").write_text(sums)
        made.made.parent.mkdir()
        made.make()
        made.seal = bundle_archive.seal_of(made.made)
        made.archive.parent.mkdir()
        shutil.copy(made.made, made.archive)
        cut()
        yield made
    finally:
        run("ip", "netns", "delete", NAMESPACE, check=False)
        sandbox("down")


def cut() -> None:
    """Stop the services, wall the nodes in, and give the controller a network of nothing but nodes."""
    services = docker("ps", "--quiet", "--filter", "name=services", "--filter", "network=ascent-offline")
    assert len(services.split()) == 1, services
    docker("stop", services)
    let = "; ".join(f"iptables -A OUTPUT -d {one} -j ACCEPT" for one in ("198.19.128.1", CONTROLLER))
    let += "; iptables -A OUTPUT -m iprange --dst-range 198.19.128.11-198.19.143.255 -j ACCEPT"
    for node in NODES:
        write = f"cat >/etc/systemd/system/wall.service <<'END'\n{WALL % let}END\n"
        on_node(node, f"{write}systemctl daemon-reload && systemctl enable --now wall.service")
    bridge = f"br-{docker('network', 'inspect', 'ascent-offline', '--format', '{{.Id}}')[:12]}"
    run("ip", "netns", "delete", NAMESPACE, check=False)
    run("ip", "netns", "add", NAMESPACE)
    run("ip", "link", "add", "asc-off0", "type", "veth", "peer", "name", "asc-off1", "netns", NAMESPACE)
    run("ip", "link", "set", "asc-off0", "master", bridge, "up")
    inside = ("ip", "netns", "exec", NAMESPACE, "ip")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "address", "add", f"{CONTROLLER}/18", "dev", "asc-off1")
    run(*inside, "link", "set", "asc-off1", "up")


def test_a_second_run_of_the_bundle_has_nothing_to_do(site: Site) -> None:
    """It needs no source either: what the bundle is made of is told by its own description."""
    assert "is as wanted" in site.make()


def test_nothing_is_reached_but_the_nodes(site: Site) -> None:
    for node in NODES:
        assert "refused" not in on_node(node, "ip route; true")
        for target in ("198.19.128.2/5000", "198.19.128.2/80", "192.0.2.1/443"):
            probe = f"timeout 3 bash -c '</dev/tcp/{target}' 2>/dev/null && echo reached || echo no"
            assert on_node(node, probe).strip() == "no"
    routes = site.inside("ip", "route").stdout.strip().splitlines()
    assert len(routes) == 1
    assert routes[0].startswith("198.19.128.0/18 dev asc-off1")
    probe = "import socket; socket.create_connection(('192.0.2.1', 443), 3)"
    failed = site.inside(sys.executable, "-c", probe, check=False)
    assert "Network is unreachable" in failed.stdout


def test_the_bundle_makes_a_controller(site: Site) -> None:
    """Out of the one file: nothing is unpacked by hand."""
    setup = 'tar -xOf "$1" bundle/setup | bash -s -- "$2" "$1"'
    site.inside("bash", "-o", "pipefail", "-c", setup, "setup", str(site.archive), str(site.suite))
    listed = site.inside(str(site.suite / ".venv/bin/ansible-galaxy"), "collection", "list", "community.docker").stdout
    assert "community.docker" in listed
    assert (site.suite / "deploy.yml").is_file()


def test_a_damaged_file_is_not_unpacked(site: Site) -> None:
    whole = site.archive.read_bytes()
    place = whole.index(b"sha256", whole.index(b"bundle/images/index.json"))
    site.archive.write_bytes(whole[:place] + b"sha255" + whole[place + 6 :])
    try:
        failed = site.deploy("--tags", "preflight", check=False)
    finally:
        site.archive.write_bytes(whole)
    assert failed.returncode != 0
    assert "bundle-changed" in failed.stdout, failed.stdout[-4000:]
    assert "images/index.json" in failed.stdout
    assert not site.bundle.exists()
    assert "Read the nodes" not in failed.stdout


def test_the_file_becomes_a_directory_once(site: Site) -> None:
    """No stage runs here: the plan alone unpacks it."""
    site.deploy("--tags", "none")
    assert (site.bundle / "SEAL").read_text().split()[0] == site.seal


@pytest.mark.parametrize("damage", ["changed", "missing", "surplus"])
def test_a_damaged_bundle_touches_nothing(site: Site, damage: str) -> None:
    place = site.bundle / "images/index.json"
    before = place.read_bytes()
    extra = site.bundle / "os/extra.deb"
    if damage == "changed":
        place.write_bytes(before.replace(b"sha256", b"sha255"))
    elif damage == "missing":
        place.unlink()
    else:
        extra.write_text("x")
    try:
        failed = site.deploy("--tags", "preflight", check=False)
    finally:
        place.write_bytes(before)
        extra.unlink(missing_ok=True)
    assert failed.returncode != 0
    assert f"bundle-{damage}" in failed.stdout
    assert ("extra.deb" if damage == "surplus" else "images/index.json") in failed.stdout
    assert "Read the nodes" not in failed.stdout


def test_a_source_outside_the_bundle_is_refused(site: Site) -> None:
    failed = site.deploy("--tags", "preflight", "-e", "npu_driver_source=http://198.19.128.2/packages", check=False)
    assert failed.returncode != 0
    assert "bundle-not-alone" in failed.stdout, failed.stdout[-4000:]


def test_the_cluster_is_deployed_from_the_bundle_alone(site: Site) -> None:
    done = site.deploy("-e", f"bundle_seal=sha256:{site.seal}")
    assert "verdict    ok" in done.stdout, done.stdout[-6000:]
    for node in NODES:
        for part, version in (("driver", "25.5.2"), ("firmware", "7.8.0.6.201")):
            assert version in on_node(node, f"cat /usr/local/Ascend/{part}/version.info")
        assert on_node(node, "ls -d /usr/local/Ascend/cann-*").strip()
        images = on_node(node, "docker images --digests --format '{{.Repository}} {{.Digest}}'")
        locked = json.loads((site.bundle / "bundle.json").read_text())["parts"]["images"]["images"][0]["digest"]
        assert locked in images
        weights = on_node(node, "ls /root/.cache/modelscope/hub/models/" + MODEL)
        assert "model-00002-of-00002.safetensors" in weights


def test_a_bare_node_got_its_driver_with_what_builds_it(site: Site) -> None:
    state = "dpkg-query -W -f '${db:Status-Status}\n' dkms gcc make pciutils linux-headers-$(uname -r)"
    assert set(on_node("off-01", state).split()) == {"installed"}
    assert "25.5.2" in on_node("off-01", "npu-smi info"), "it is live, not only on the disk"


def test_a_second_deploy_changes_nothing(site: Site) -> None:
    done = site.deploy()
    assert "changed    nothing" in done.stdout


def test_the_inventory_names_no_way_out_but_the_registry() -> None:
    variables = yaml.safe_load((INVENTORY / "group_vars/offline.yml").read_text())
    outside = [
        name for name, value in variables.items() if "198.19.128.2" in str(value) and not name.startswith("sandbox")
    ]
    assert outside == ["ascent_registry_mirror", "container_engine_insecure_registries"]
