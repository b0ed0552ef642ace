"""Sandbox nodes with MPI and collective test programs, on which the fabric gate is run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from sandbox.faults.control import Control, find
from sandbox.lib import engine, plan
from sandbox.lib.images import Builder
from sandbox.lib.lifecycle import Cluster

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = Path(__file__).parent / "inventory"
NODES = ("m-01", "m-02", "m-03")
#: Where the test programs lie on the nodes.
TESTS = {"bin": "/usr/local/Ascend/cann/tools/hccl_test/bin", "nccl": "/opt/nccl-tests/build"}


class Gate:
    """Runs the verify stage on the nodes of an inventory, whose only cluster is ``name``."""

    def __init__(self, cluster: Cluster, work: Path, source: Path, name: str) -> None:
        self.cluster = cluster
        self.source = source
        self.name = name
        self.control = Control(cluster)
        self.work = work
        self.count = 0

    def inventory(self, hosts: Mapping[str, Mapping[str, Any]]) -> Path:
        """The inventory with further variables of single hosts."""
        folder = self.work / f"inventory-{self.count}"
        (folder / "group_vars").mkdir(parents=True)
        document = yaml.safe_load((self.source / "hosts.yml").read_text())
        known = document["all"]["children"]["clusters"]["children"][self.name]["hosts"]
        for host, values in hosts.items():
            known[host].update(values)
        (folder / "hosts.yml").write_text(yaml.safe_dump(document))
        text = (self.source / "group_vars" / f"{self.name}.yml").read_text()
        (folder / "group_vars" / f"{self.name}.yml").write_text(text.replace("{{ inventory_dir }}/../../..", str(ROOT)))
        return folder

    def verify(self, *arguments: str, hosts: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """The stage's verdict, with ``facts``: what was read and measured. Always measures anew."""
        self.count += 1
        runs = self.work / f"runs-{self.count}"
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "deploy.yml",
            *("-i", str(self.inventory(hosts or {})), "-l", self.name, "--tags", "verify", "-e", "verify=force"),
            *arguments,
        ]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ASCENT_RUNS_DIR": str(runs),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        try:
            record = runs / "latest"
            verdict = json.loads((record / "verify.json").read_text())
            facts = record / "fabric_facts.json"
            verdict["facts"] = json.loads(facts.read_text()) if facts.is_file() else {}
        except FileNotFoundError:
            pytest.fail(done.stdout[-4000:] + done.stderr[-2000:])
        assert (done.returncode == 0) == verdict["ok"], done.stdout[-4000:]
        return verdict

    def broken(self, node: str, fault: str, *arguments: str) -> None:
        """Brings a fault about."""
        self.control.inject(node, find(fault), arguments)

    def shell(self, node: str, command: str) -> str:
        """What a command prints on a node."""
        words = self.cluster.ssh(self.cluster.node(node), "bash", "-s")
        return subprocess.run(words, input=command, capture_output=True, text=True, check=True, timeout=120).stdout


def installed(cluster: Cluster, folder: Literal["bin", "nccl"]) -> None:
    """Puts MPI and the test programs of one kind on all nodes."""
    with engine.exclusive():
        programs = Builder(cluster.engine, print).hccl_test(["bookworm"], folder)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in programs.items():
            entry = tarfile.TarInfo(Path(path).name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    place = TESTS[folder]
    install = f"mkdir -p {place} && tar x -C {place} && apt-get install -y -qq --no-install-recommends openmpi-bin"
    installing = []
    for node in cluster.sandbox.nodes:
        process = subprocess.Popen(cluster.ssh(node, install), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stdin
        process.stdin.write(buffer.getvalue())
        process.stdin.close()
        installing.append(process)
    assert [process.wait() for process in installing] == [0] * len(installing)


def booted(inventory: Path) -> Cluster:
    """The nodes of an inventory, fresh."""
    cluster = Cluster(plan.from_inventory(inventory), ROOT, engine.Engine(), print)
    with engine.exclusive():
        cluster.down()
        cluster.up()
    return cluster


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Three nodes, fresh for this session, and gone after it."""
    cluster = booted(INVENTORY)
    installed(cluster, "bin")
    yield Gate(cluster, tmp_path_factory.mktemp("gate"), INVENTORY, "mesh")
    with engine.exclusive():
        cluster.down()


@pytest.fixture
def gate(site: Gate) -> Iterator[Gate]:
    """The nodes, without faults after the test, whatever became of it."""
    yield site
    for node in NODES:
        site.control.heal(node)
