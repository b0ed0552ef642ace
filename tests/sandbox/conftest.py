"""Two sandbox nodes on which faults are brought about, looked at and healed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.faults.control import Control
from sandbox.faults.model import Look
from sandbox.lib import engine, plan
from sandbox.lib.lifecycle import Cluster

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
state["rules"] = [line.split("[")[0] for line in run("iptables-save") if line[0] != "#" and "DOCKER" not in line]
state["addresses"] = sorted(line.strip() for line in run("ip", "-4", "-o", "address"))
state["mounts"] = [line for line in run("findmnt", "-rn", "-o", "TARGET,OPTIONS") if "/docker/" not in line]
state["units"] = run("systemctl", "list-units", "--plain", "--no-legend", "--state=running,failed", "--type=service")
state["listening"] = sorted(line.split()[3] for line in run("ss", "-Hltn"))
state["leases"] = sorted(os.listdir("/usr/local/dcmi/leases"))
json.dump(state, sys.stdout)
"""

# Runs the simulated engine until it ends, is stuck, or has answered a request, and shows its log.
ENGINE = f"""
source /usr/local/Ascend/ascend-toolkit/set_env.sh && source /usr/local/Ascend/nnal/atb/set_env.sh
export SIM_SPEED=50 VLLM_USE_MODELSCOPE=True
vllm serve Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp --port {PORT} --served-model-name tiny >/tmp/log 2>&1 &
until grep -q 'startup complete\\|shared memory broadcast block' /tmp/log || ! kill -0 $! 2>/dev/null
do sleep 0.1; done
grep -q 'startup complete' /tmp/log && curl -s -m 5 -H 'Content-Type: application/json' \\
  -d '{{"model": "tiny", "prompt": "Hello", "max_tokens": 4}}' http://127.0.0.1:{PORT}/v1/completions >/dev/null
kill $! 2>/dev/null
wait $!
cat /tmp/log
"""


class Site:
    """The booted sandbox and the ways to look at its nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.control = Control(cluster)
        self.engines: set[str] = set()

    def shell(self, name: str, command: str, check: bool = False) -> str:
        """What a shell command prints on a node, both streams, over ssh as an operator's would."""
        node = self.cluster.node(name)
        done = subprocess.run(
            self.cluster.ssh(node, "bash", "-s"),
            input=command,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def look(self, name: str, look: Look) -> str:
        """What the operator sees at the place a fault shows."""
        if look.on == "engine":
            return self.engine_log(name)
        return self.shell(self.control.node(name).peer.name if look.on == "peer" else name, look.command)

    def snapshot(self, name: str) -> dict[str, object]:
        """Everything of a node that a fault may have touched."""
        return json.loads(self.shell(name, f"python3 - <<'END'\n{SNAPSHOT}\nEND"))

    def need_docker(self, name: str) -> None:
        """The container engine of the site's repository, on one node."""
        registry = self.cluster.sandbox.registry
        self.shell(
            name,
            "command -v docker >/dev/null && exit\n"
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
        return self.shell(name, f"docker exec -i engine bash <<'END'\n{ENGINE}\nEND")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Two bare nodes, fresh for this session, and gone after it."""
    sandbox = plan.from_inventory(INVENTORY)
    cluster = Cluster(sandbox, ROOT, engine.Engine(), print)
    with engine.exclusive():
        cluster.down()
        cluster.up()
    yield Site(cluster)
    with engine.exclusive():
        cluster.down()


@pytest.fixture(scope="session")
def healthy_engine_log(site: Site) -> str:
    """What the engine's log says where nothing is wrong."""
    log = site.engine_log("a3-01")
    assert "Application startup complete" in log
    assert "200 OK" in log or "Traceback" not in log
    return log
