"""The fabric gate on two real nodes with emulated tools: one thing is broken, and it alone is named, with its place.

`ASCENT_FABRIC_DEVICES` names another inventory of the same shape, such as one with addresses that are free.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults.control import Control, find
from sandbox.faults.model import HCCN_TOOL
from sandbox.lib import engine, plan
from sandbox.lib.lifecycle import Cluster

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = Path(os.environ.get("ASCENT_FABRIC_DEVICES", ROOT / "tests" / "fabric" / "devices"))
CLUSTER = "fabric-devices"
LIMIT = 600


@dataclass
class Verified:
    """One run of the stage: how it ended, what it did and what it found."""

    ok: bool
    tasks: set[str]
    findings: list[dict[str, Any]]
    record: Path

    def told(self) -> set[tuple[str, str, str | None]]:
        """Id, severity and host of every finding but information, and but late packets: two cores serve all nodes."""
        counted = [one for one in self.findings if one["severity"] != "info" and not _late(one)]
        return {(one["id"], one["severity"], one["host"]) for one in counted}

    def summary(self, wanted: str) -> str:
        """The summary of the one finding with this id."""
        (one,) = [one for one in self.findings if one["id"] == wanted]
        return one["summary"]

    def read(self, name: str) -> Any:
        """A record of the run."""
        return json.loads((self.record / name).read_text())


def _late(one: dict[str, Any]) -> bool:
    return one["id"] == "G02" and not one["summary"].startswith("ports run slower")


class Site:
    """The nodes, how they are broken, and the stage."""

    def __init__(self, cluster: Cluster, runs: Path) -> None:
        self.cluster = cluster
        self.control = Control(cluster)
        self.nodes = [node.name for node in cluster.sandbox.nodes]
        self.runs = runs

    def verify(self, *arguments: str) -> Verified:
        """`deploy.yml --tags verify`, with further arguments."""
        environment = os.environ | {"ASCENT_RUNS_DIR": str(self.runs), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        program = str(Path(sys.executable).parent / "ansible-playbook")
        # Collectives have tests of their own.
        always = ("-l", CLUSTER, "--tags", "verify", "-e", "fabric_collectives=never")
        words = [program, "-i", str(INVENTORY), "deploy.yml", *always, *arguments]
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        record = (self.runs / "latest").resolve()
        assert (record / "verify.json").is_file(), done.stdout + done.stderr
        stage = json.loads((record / "verify.json").read_text())
        tasks = {task["name"] for task in json.loads((record / "run.json").read_text())["tasks"]}
        return Verified(done.returncode == 0, tasks, stage["findings"], record)

    def broken(self, *faults: tuple[str, str, list[str]], depth: str = "quick") -> Verified:
        """The stage while these faults, each `(node, id, arguments)`, are on the nodes; whole again after it."""
        try:
            for node, fault, words in faults:
                assert self.control.inject(node, find(fault), words)[1]
            return self.verify("-e", "verify=force", "-e", f"verify_depth={depth}", "-e", "verify_mesh=sample")
        finally:
            for node in self.nodes:
                self.control.heal(node)
            if any(fault == "C12" for _node, fault, _words in faults):
                self.settle()

    def settle(self) -> None:
        """Waits until the network has forgotten that an address was elsewhere, as switches do after a while."""
        ping = f"{HCCN_TOOL} -i 2 -ping -g address {self.cluster.sandbox.gateway} pkt 1"
        command = f"for turn in $(seq 60); do {ping} && exit 0; done; exit 1"
        for node in self.cluster.sandbox.nodes:
            subprocess.run(self.cluster.ssh(node, command), check=True, capture_output=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two bare nodes, fresh for these tests, and gone after them."""
    cluster = Cluster(plan.from_inventory(INVENTORY), ROOT, engine.Engine(), print)
    with engine.exclusive():
        cluster.down()
        cluster.up()
    yield Site(cluster, tmp_path_factory.mktemp("runs"))
    with engine.exclusive():
        cluster.down()


def test_a_clean_cluster_passes_and_is_not_measured_again(site: Site):
    first = site.verify("-e", "verify=force")
    assert first.ok
    assert first.told() == set()
    document = first.read("fabric.json")
    assert [row[1] for row in document["table"]["rows"]] == ["good", "good"]
    assert document["verdict"]["parts"]["devices"] is True
    assert {tuple(device) for device in document["matrix"]["devices"]} == {
        (node, number) for node in site.nodes for number in range(4)
    }
    facts = first.read("fabric_facts.json")["npus"]["d-01"]
    assert facts["unread"] == []
    assert facts["calls"] >= 4 * 13
    again = site.verify()
    assert again.ok
    assert "fabric : Read the devices" in first.tasks
    assert "fabric : Read the devices" not in again.tasks
    assert [one["id"] for one in again.findings] == ["fabric-verdict-holds"]
    # A shallower verdict does not stand for a deeper one.
    assert "fabric : Read the devices" in site.verify("-e", "verify_depth=deep").tasks
    assert "fabric : Read the devices" not in site.verify("-e", "verify_depth=quick").tasks


ROCE = "d-02 device 2"
#: Fault on d-02, its arguments, the finding, its severity, and what the summary says.
FAULTS = [
    ("C12", ["device=2", "peer=d-01"], "C12", "error", f"{ROCE} has the address of d-01 device 2"),
    ("C12", ["device=2", "peer=d-01", "where=live"], "C12", "error", f"{ROCE} has the address of d-01 device 2"),
    ("C12", ["device=2", "peer=d-01", "where=conf"], "hccn-conf-differs", "error", ROCE),
    ("C11", ["device=2"], "C11", "error", ROCE),
    ("C11", ["device=2", "where=conf"], "hccn-conf-differs", "error", ROCE),
    ("C13", ["device=2"], "C13", "error", ROCE),
    ("D30", [], "D30", "error", "/etc/hccn.conf of d-02 is missing"),
    ("C06", ["device=2"], "C06", "error", f"TLS of the device network is on, unlike elsewhere: {ROCE}"),
    ("C10", ["device=2"], "C10", "error", f"the RoCE link is down: {ROCE}"),
    ("G04", ["device=2"], "C10", "error", f"the HCCS (vnic) link is down: {ROCE}"),
    ("G04", ["device=2", "option=link"], "G04", "error", f"hccn_tool fails without an exit code: {ROCE} (link)"),
    ("G05", [], "G05", "warning", "d-02 devices 0-3"),
    ("C09", ["device=2", "status=Fault"], "C09", "warning", f"network health is Fault: {ROCE}"),
    (
        "C09",
        ["device=2", "status=Unreachable", "gateway=silent"],
        "gateway-unreachable",
        "error",
        f"the gateway does not answer: {ROCE}",
    ),
    ("C14", ["device=2", "other=3"], "C14", "warning", "d-02 devices 2, 3"),
    ("C16", ["device=2"], "C16", "warning", f"error counters are growing: {ROCE}"),
    ("C22", ["device=2", "other=1"], "C22", "error", "d-02 devices 1, 2"),
    ("C25", [], "C25", "error", "hccn_tool on d-02 is locked by process"),
    ("D31", ["tool=hccn_tool"], "D31", "error", "hccn_tool is missing on d-02"),
    ("A07", ["version=7.1.0.3.220"], "B09", "error", "firmware 7.1.0.3.220 is older than elsewhere: d-02 devices 0-3"),
    ("A07", [], "A07", "error", "firmware and driver do not fit: d-02 devices 0-3"),
    ("A10", ["device=2"], "A10", "error", ROCE),
    ("G02", ["device=2"], "G02", "warning", f"ports run slower than the others: {ROCE}"),
]  # fmt: skip
#: Those that a quick look does not see.
DEEPER = {"C14", "C16", "G02", ("C09", "device=2", "status=Unreachable", "gateway=silent")}
#: What `make test` has time for.
QUICK = {("C25", "")}


def case(fault: str, arguments: list[str], *wanted: str) -> object:
    quick = (fault, " ".join(arguments)) in QUICK
    marks = [] if quick else [pytest.mark.thorough]
    return pytest.param(fault, arguments, *wanted, id="-".join([fault, *arguments]), marks=marks)


@pytest.mark.parametrize(("fault", "arguments", "id", "severity", "says"), [case(*one) for one in FAULTS])
def test_one_fault_is_named_with_its_place_and_nothing_else(
    site: Site, fault: str, arguments: list[str], id: str, severity: str, says: str
):
    depth = "standard" if (fault, *arguments) in DEEPER or fault in DEEPER else "quick"
    seen = site.broken(("d-02", fault, arguments), depth=depth)
    assert seen.told() == {(id, severity, "d-02")}
    assert says in seen.summary(id)
    assert seen.ok is (severity != "error")
    told = next(one for one in seen.findings if one["id"] == id)
    assert told["cause"]
    assert told["fix"]


def test_two_faults_at_once_are_both_named(site: Site):
    seen = site.broken(("d-01", "C06", ["device=1"]), ("d-02", "C10", ["device=3"]))
    assert seen.told() == {("C06", "error", "d-01"), ("C10", "error", "d-02")}
    assert "d-01 device 1" in seen.summary("C06")
    assert "d-02 device 3" in seen.summary("C10")
    rows = {row[0]: row for row in seen.read("fabric.json")["table"]["rows"]}
    assert [rows[node][-1] for node in site.nodes] == ["C06", "C10"]


@pytest.mark.thorough
def test_two_faults_on_one_device_are_both_named(site: Site):
    seen = site.broken(("d-02", "C12", ["device=2", "peer=d-01"]), ("d-02", "C06", ["device=2"]))
    assert seen.told() == {("C12", "error", "d-02"), ("C06", "error", "d-02")}


@pytest.mark.thorough
def test_a_wrong_nic_name_in_the_inventory_is_named(site: Site, tmp_path: Path):
    overlay = tmp_path / "hosts.yml"
    overlay.write_text("all: {hosts: {d-02: {nic: enp67s0f0}}}\n")
    seen = site.verify("-i", str(overlay), "-e", "verify=force", "-e", "verify_depth=quick")
    assert seen.told() == {("C07", "error", "d-02")}
    assert seen.summary("C07").startswith("enp67s0f0 of d-02 does not carry ")
    assert seen.ok is False


@pytest.mark.thorough
def test_a_failed_verdict_is_not_reused(site: Site):
    assert site.broken(("d-02", "C06", ["device=2"])).ok is False
    healed = site.verify("-e", "verify_depth=quick")
    assert healed.ok
    assert "fabric : Read the devices" in healed.tasks


@pytest.mark.thorough
def test_a_verdict_holds_as_long_as_it_may_and_while_its_ground_is_the_same(site: Site):
    def measured(*arguments: str) -> Verified | None:
        seen = site.verify("-e", "verify_depth=quick", *arguments)
        return seen if "fabric : Read the devices" in seen.tasks else None

    assert measured("-e", "verify=force")
    assert not measured()
    # Two hours later, as one of the nodes has it.
    path = f"/var/lib/ascent/{CLUSTER}/fabric.json"
    older = f"""
import json, pathlib
path = pathlib.Path("{path}")
kept = json.loads(path.read_text())
path.write_text(json.dumps({{**kept, "measured": kept["measured"] - 7200}}))
"""
    words = site.cluster.ssh(site.cluster.node("d-02"), "python3", "-")
    subprocess.run(words, input=older, text=True, check=True, capture_output=True, timeout=LIMIT)
    assert not measured()
    assert measured("-e", "verify_max_age_hours=1")
    assert not measured("-e", "verify_max_age_hours=1")
    try:
        assert site.control.inject("d-02", find("C12"), ["device=2", "peer=d-01", "where=conf"])[1]
        changed = measured()
    finally:
        site.control.heal("d-02")
    assert changed
    assert changed.told() == {("hccn-conf-differs", "error", "d-02")}
