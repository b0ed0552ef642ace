"""Two sandbox nodes on which faults are brought about, looked at and healed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sandbox.faults.control import Control
from sandbox.faults.model import Look, Node
from sandbox.lib import engine, packages, plan
from sandbox.lib.lifecycle import Cluster
from sandbox.lib.plan import Node as PlannedNode

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = Path(__file__).parent / "inventory"
IMAGE = "quay.io/ascend/vllm-ascend:v0.21.0rc1-a3"
PORT = 9100

# All of a node that a fault may touch. The journal, locks and the clock's files are the faults' and the tools' own.
SNAPSHOT = """
import hashlib, json, os, subprocess, sys
def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
state = {}
places = ["/etc", "/dev", "/usr/local", "/root", "/proc/sys/vm", "/var/lib/sandbox"]
for top in places:
    for folder, names, files in os.walk(top):
        for name in [".", *files]:
            path = os.path.normpath(os.path.join(folder, name))
            found = os.lstat(path)
            about = [oct(found.st_mode), found.st_uid, found.st_gid, found.st_rdev]
            if os.path.isfile(path) and not path.endswith(".lock"):
                try:
                    about.append(hashlib.sha256(open(path, "rb").read()).hexdigest())
                except OSError:
                    pass
            if not path.endswith(".lock") and not path.startswith(("/dev/pts", "/etc/docker")):
                state[path] = about
state["rules"] = [line for line in run("iptables-save") if line.startswith("-A") and "DOCKER" not in line]
state["addresses"] = sorted(line.partition(":")[2] for line in run("ip", "-4", "-o", "address"))
state["mounts"] = [line for line in run("findmnt", "-rn", "-o", "TARGET,OPTIONS") if "/docker/" not in line]
state["units"] = run("systemctl", "list-units", "--plain", "--no-legend", "--state=running,failed", "--type=service")
state["listening"] = sorted(line.split()[3] for line in run("ss", "-Hltn") if "127.0.0.11:" not in line)
state["leases"] = sorted(os.listdir("/usr/local/dcmi/leases"))
json.dump(state, sys.stdout)
"""

# Runs the simulated engine until it ends, is stuck, or has answered a request, and shows its log.
ENGINE = f"""
source /usr/local/Ascend/ascend-toolkit/set_env.sh && source /usr/local/Ascend/nnal/atb/set_env.sh
export SIM_SPEED=50 VLLM_USE_MODELSCOPE=True
rm -f /tmp/log && touch /tmp/log
vllm serve Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp --port {PORT} --served-model-name tiny >>/tmp/log 2>&1 &
until grep -q 'startup complete\\|shared memory broadcast block' /tmp/log || ! kill -0 $! 2>/dev/null
do sleep 0.1; done
answer=
if grep -q 'startup complete' /tmp/log
then answer=$(curl -s -m 5 -H 'Content-Type: application/json' \\
  -d '{{"model": "tiny", "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}}' \\
  http://127.0.0.1:{PORT}/v1/completions)
fi
kill $! 2>/dev/null
wait $!
echo "exit $?"
cat /tmp/log
echo "answer: $answer"
"""


class Shared(Cluster):
    """The same cluster over one ssh connection a node, which saves most of the time. A login is another thing."""

    def ssh(self, node: PlannedNode, *command: str, **options: Iterable[str]) -> list[str]:
        words = super().ssh(node, *command, **options)
        place = words.index("ControlPath=none")
        shared = [f"ControlPath={self.directory}/%h", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
        return [*words[:place], *shared, *words[place + 1 :]]


class Site:
    """The booted sandbox and the ways to look at its nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.shared = Shared(cluster.sandbox, cluster.checkout, cluster.engine, cluster.say)
        self.control = Control(self.shared)
        self.engines: set[str] = set()
        self.references: dict[str, tuple[object, Node]] = {}

    def shell(self, name: str, command: str, *, check: bool = False, login: bool = True) -> str:
        """What a shell command prints on a node, both streams; with a login of its own, as an operator's has."""
        cluster = self.cluster if login else self.shared
        words = cluster.ssh(cluster.node(name), "bash", "-s")
        done = subprocess.run(
            words, input=command, capture_output=True, text=True, errors="replace", check=False, timeout=300
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def look(self, node: Node, look: Look) -> str:
        """What the operator sees at the place a fault shows."""
        if look.on == "engine":
            return self.engine_log(node.planned.name)
        return self.shell(node.peer.name if look.on == "peer" else node.planned.name, look.command)

    def healthy(self, name: str) -> tuple[object, Node]:
        """A node as it is without faults: its snapshot, and what faults are written against. Read once."""
        if name not in self.references:
            self.references[name] = self.snapshot(name), self.control.node(name)
        return self.references[name]

    def snapshot(self, name: str) -> dict[str, object]:
        """Everything of a node that a fault may have touched."""
        return json.loads(self.shell(name, f"python3 - <<'END'\n{SNAPSHOT}\nEND", login=False))

    def need_package(self, name: str) -> None:
        """A driver package in root's home of one node."""
        if "npu-driver" in self.shell(name, "ls /root"):
            return
        profile = self.cluster.node(name).profile
        package = packages.driver(packages.CHIPS[profile["layout"]], "x86_64", profile["driver"], "25.5.2")
        with tempfile.TemporaryDirectory() as folder:
            (made,) = packages.write([package], Path(folder), print)
            content = made.read_bytes()
        command = self.cluster.ssh(self.cluster.node(name), f"cat >/root/{made.name}")
        subprocess.run(command, input=content, check=True, timeout=60)
        self.references.pop(name, None)

    def need_docker(self, name: str) -> None:
        """The container engine of the site's repository, on one node."""
        if self.control.node(name).facts["docker"]:
            return
        self.references.pop(name, None)
        registry = self.cluster.sandbox.registry
        self.shell(
            name,
            f"""mkdir -p /etc/docker && echo '{{"insecure-registries": ["{registry}"]}}' >/etc/docker/daemon.json\n"""
            "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq docker.io",
            check=True,
        )

    def engine_log(self, name: str) -> str:
        """The log of a simulated engine that is started in a container as a launch would, and asked one question."""
        if name not in self.engines:
            self.need_docker(name)
            devices = self.shell(name, "ls /dev/davinci* /dev/devmm_svm /dev/hisi_hdc", check=True).split()
            mounts = ("/usr/local/dcmi", "/usr/local/Ascend/driver/lib64", "/root/.cache", "/etc/hccn.conf")
            self.shell(
                name,
                "docker run --detach --name engine --network host --ipc host "
                + " ".join(f"--device {device}" for device in devices)
                + " ".join(f" --volume {mount}:{mount}" for mount in mounts)
                + f" {self.cluster.sandbox.registry}/{IMAGE} sleep infinity",
                check=True,
            )
            self.engines.add(name)
            self.references.pop(name, None)
        return self.shell(name, f"docker exec -i engine bash <<'END'\n{ENGINE}\nEND")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Two bare nodes, fresh for this session, and gone after it."""
    sandbox = plan.from_inventory(INVENTORY)
    cluster = Cluster(sandbox, ROOT, engine.Engine(), print)
    with engine.exclusive():
        cluster.down()
        cluster.up()
    site = Site(cluster)
    for node in sandbox.nodes:
        site.control.active(node.name)  # its journal's folder and locks stay
    yield site
    with engine.exclusive():
        cluster.down()


@pytest.fixture
def whole(site: Site) -> Iterator[Site]:
    """The site, without faults after the test, whatever became of it."""
    yield site
    for node in site.cluster.sandbox.nodes:
        site.control.heal(node.name)


@pytest.fixture(scope="session")
def healthy_engine_log(site: Site) -> str:
    """What the engine's log says where nothing is wrong."""
    log = site.engine_log("a3-01")
    assert "Application startup complete" in log
    assert "Paris" in log
    return log
