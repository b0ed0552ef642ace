"""Three nodes that serve, on which faults are brought about one after the other, and deploy.yml is run as ever."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults.control import Control, find
from sandbox.lib import engine, plan
from sandbox.lib.lifecycle import Cluster

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = Path(__file__).parent / "inventory"
CLUSTER = "diagnosis"


@dataclass
class Run:
    """One run of deploy.yml: its record, what it printed, and its times in seconds since 1970."""

    code: int
    output: str
    record: Path
    started: float

    def stage(self, name: str) -> dict[str, Any]:
        """A stage's verdict, with ``begun`` and ``told``: when it began, and when it had said what it found."""
        verdict = json.loads((self.record / f"{name}.json").read_text())
        begun = moment(verdict["started"])
        return {**verdict, "begun": begun, "told": begun + verdict["seconds"]}

    def stages(self) -> list[str]:
        """The stages that ran, in order."""
        return [one["stage"] for one in json.loads((self.record / "run.json").read_text())["stages"]]


def moment(stamp: str) -> float:
    """A stamp of the record, or of docker, in seconds since 1970."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) - time.timezone + float(f"0.{fraction or 0}")


class Site:
    """The nodes, what they suffer from, and runs of deploy.yml."""

    def __init__(self, cluster: Cluster, work: Path) -> None:
        self.cluster = cluster
        self.control = Control(cluster)
        self.work = work
        self.count = 0
        self.measured: dict[str, dict[str, Any]] = {}

    def deploy(self, *arguments: str) -> Run:
        """Run deploy.yml with further arguments. A run that takes ten minutes has met a time-out, and fails."""
        self.count += 1
        runs = self.work / f"runs-{self.count:02d}"
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("deploy.yml", "-i", str(INVENTORY), "-l", CLUSTER, *arguments),
        ]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ASCENT_RUNS_DIR": str(runs),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        started = time.time()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        output = done.stdout + done.stderr
        assert (runs / "latest").exists(), output[-4000:]
        return Run(done.returncode, output, (runs / "latest").resolve(), started)

    def shell(self, node: str, command: str) -> str:
        """What a shell command prints on a node."""
        words = self.cluster.ssh(self.cluster.node(node), "bash", "-s")
        return subprocess.run(words, input=command, capture_output=True, text=True, check=True, timeout=120).stdout

    def stop(self, *processes: str, remove: bool = False) -> None:
        """End containers of the cluster, so that the next launch starts them again, or remove them."""
        verb = "rm -f" if remove else "stop -t 0"
        for node in self.cluster.sandbox.nodes:
            asked = "; ".join(f"docker ps -aq --filter label=ascent.process={process}" for process in processes)
            self.shell(node.name, f"({asked}) | xargs -r docker {verb} >/dev/null")

    def break_(self, node: str, fault: str, *arguments: str) -> None:
        """Bring a fault of the catalogue about."""
        self.control.inject(node, find(fault), arguments)

    def heal(self) -> None:
        """All nodes without faults."""
        for node in self.cluster.sandbox.nodes:
            self.control.heal(node.name)

    def keep(self, case: str, figures: dict[str, Any]) -> None:
        """Remember what was measured of a case, with the load that the machine had."""
        self.measured[case] = {**figures, "load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d")}

    def write(self, path: Path) -> None:
        """Put what was measured into a file, beside what earlier sessions measured of other cases."""
        known = json.loads(path.read_text())["cases"] if path.exists() else {}
        cases = {**known, **self.measured}
        document = {"machine": machine(), "cases": {name: cases[name] for name in sorted(cases)}}
        path.write_text(json.dumps(document, indent=1) + "\n")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three nodes that serve; gone after the session. What was measured goes into the file ASCENT_MEASURED names."""
    cluster = Cluster(plan.from_inventory(INVENTORY), ROOT, engine.Engine(), print)
    with engine.exclusive():
        cluster.down()
        cluster.up()
    site = Site(cluster, tmp_path_factory.mktemp("diagnosis"))
    first = site.deploy()
    assert first.code == 0, first.output[-6000:]
    yield site
    if "ASCENT_MEASURED" in os.environ:
        site.write(Path(os.environ["ASCENT_MEASURED"]))
    with engine.exclusive():
        cluster.down()


@pytest.fixture
def whole(site: Site) -> Iterator[Site]:
    """The nodes, without faults after the test, whatever became of it."""
    yield site
    site.heal()


def machine() -> dict[str, Any]:
    """The machine that measures, as a reader of the figures has to know it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {"cores": os.cpu_count(), "processor": model, "nodes": 3}
