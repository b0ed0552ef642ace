"""The faults' register and the half that runs on a node, over files of this machine."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from sandbox.engine.sim import faults as engine_faults
from sandbox.engine.sim.faults import LIVED_WITH
from sandbox.engine.sim.signatures import SIGNATURES
from sandbox.faults import agent
from sandbox.faults.control import FAULTS
from sandbox.faults.model import STATE, FaultError, find
from sandbox.faults.model import Node as FaultyNode
from sandbox.lib import node_files
from sandbox.lib.plan import Node, Sandbox, load_profile
from tests.unit.engine_harness import put

ROOT = Path(__file__).parents[2]
ENGINE = [fault for fault in FAULTS.values() if "phase" in fault.parameters]


def findings() -> list[dict]:
    """The entries of the catalogue that diagnosis looks for."""
    paths = (ROOT / "catalog/findings").glob("*.yml")
    return [entry for path in paths for entry in yaml.safe_load(path.read_text()).get("findings", [])]


def test_names_are_the_catalogue_s():
    named = {entry["id"]: entry["name"] for entry in findings() if "name" in entry and entry["id"] in FAULTS}
    assert {each: FAULTS[each].name for each in named} == named
    assert len(FAULTS) >= 80


@pytest.mark.parametrize("fault", ENGINE, ids=lambda fault: fault.id)
def test_an_engine_fault_is_an_order_that_shows(fault):
    """The engine knows what it is told, and the words it then says are those that the fault promises."""
    injection = fault.on(None, fault.arguments([]))
    (order,) = engine_faults.parse(injection.changes[0]["value"])
    if order.kind in LIVED_WITH:
        return  # the engine does it, and says nothing
    signature = SIGNATURES[order.kind]
    words = [*signature.lines, f"{signature.kind}: {signature.message}", f"exit {signature.status}"]
    assert re.search(injection.look.shows, "\n".join(words), re.IGNORECASE)


@pytest.mark.parametrize("profile", ["a2", "a3", "910b4"])
def test_faults_make_states_that_can_be(profile):
    """Every change of a node's state leaves one that the schema allows, on every kind of server with devices."""
    planned = [
        Node("n-1", 11, "198.18.0.11", load_profile(profile)),
        Node("n-2", 12, "198.18.0.12", load_profile(profile)),
    ]
    sandbox = Sandbox("test", ipaddress.IPv4Network("198.18.0.0/18"), "198.18.0.2", tuple(planned))
    healthy = node_files.state(sandbox, planned[0])
    schema = json.loads((ROOT / "sandbox/node/state.schema.json").read_text())
    jsonschema.validate(healthy, schema)
    facts = {"state": healthy, "models": ["/models/one"], "docker": True}
    refused = set()
    for fault in FAULTS.values():
        state = json.loads(json.dumps(healthy))
        try:
            changes = fault.on(FaultyNode(planned[0], sandbox, facts), fault.arguments([])).changes
        except FaultError:
            refused.add(fault.id)
            continue
        for change in changes:
            if change["kind"] == "json" and change["file"] == STATE:
                holder, key = agent.JsonValue(change).find(state)
                holder[key] = change["value"]
        jsonschema.validate(state, schema)
    assert refused == ({"C22", "G04", "G05"} if profile != "a3" else set())


def test_names_and_arguments_are_checked():
    assert find("a11") is find("A11-hbm-leftover") is find("hbm-leftover")
    with pytest.raises(FaultError, match=r"no fault 'hbm-left'; the nearest are A11-hbm-leftover"):
        find("hbm-left")
    with pytest.raises(FaultError, match=r"no fault 'zzz'; sandbox/fault --list shows all"):
        find("zzz")
    leftover = find("A11")
    assert leftover.arguments(["device=3"]) == {"device": 3, "mb": 30000, "owner": "gone"}
    with pytest.raises(FaultError, match="device is a whole number, not 'x'"):
        leftover.arguments(["device=x"])
    with pytest.raises(FaultError, match="owner is one of gone, process, not 'me'"):
        leftover.arguments(["owner=me"])
    with pytest.raises(FaultError, match="does not take 'chip=3'; it takes device=0 mb=30000 owner=gone"):
        leftover.arguments(["chip=3"])


def test_the_list_names_all():
    done = subprocess.run(
        [sys.executable, "sandbox/fault", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split("-")[0] for line in done.stdout.splitlines()} == set(FAULTS)


def test_the_engine_reads_what_the_node_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("SIM_ROOT", str(tmp_path))
    monkeypatch.delenv("SIM_FAIL", raising=False)
    assert engine_faults.asked_by_node() == ""
    put(tmp_path / "usr/local/dcmi/engine-faults.json", json.dumps({"*": "kv:all", "decode-0": "kv:this"}).encode())
    assert engine_faults.asked_by_node() == "kv:all"
    put(tmp_path / "etc/ascent/decode-0.sh", b"")
    assert engine_faults.asked_by_node() == "kv:this"
    assert [order.kind for order in engine_faults.orders()] == ["this"]
    assert engine_faults.of(engine_faults.orders(), "hccl", [0]) == []
    monkeypatch.setenv("SIM_FAIL", "hccl:first")
    assert [(order.phase, order.kind) for order in engine_faults.orders()] == [("hccl", "first")]


class Folder:
    """A node whose files lie in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, **request: object) -> dict:
        return agent.answer(request)

    def inject(self, name: str, *changes: dict) -> bool:
        return self.do(do="inject", key=name, fault={"id": name.split()[0], "name": "n"}, changes=list(changes))[
            "changed"
        ]

    def heal(self, id: str | None = None) -> list[str]:
        return self.do(do="heal", id=id)["notes"]

    def file(self, name: str, **edit: object) -> dict:
        return {"kind": "file", "path": str(self.folder / name), **edit}

    def value(self, *at: object, **what: object) -> dict:
        return {"kind": "json", "file": str(self.folder / "dcmi/state.json"), "at": list(at), **what}

    @property
    def state(self) -> dict:
        return json.loads((self.folder / "dcmi/state.json").read_text())

    @property
    def journal(self) -> Path:
        return self.folder / "lib/faults.json"


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "JOURNAL", tmp_path / "lib/faults.json")
    monkeypatch.setattr(agent, "STATE_LOCK", tmp_path / "dcmi/state.lock")
    monkeypatch.setattr(agent, "STATE", tmp_path / "dcmi/state.json")
    monkeypatch.setattr(agent, "BOOT", str(tmp_path / "boot"))
    put(tmp_path / "dcmi/state.json", json.dumps({"a": 1, "devices": [{"id": 4, "b": 2}, {"id": 7, "b": 3}]}).encode())
    put(tmp_path / "text", b"one\ntwo\nthree\n")
    (tmp_path / "text").chmod(0o640)
    return Folder(tmp_path)


def test_values_come_back_in_any_order(node):
    before = node.state
    assert node.inject("F1", node.value("devices", {"id": 7}, "b", value=30), node.value("a", value="x"))
    assert node.inject("F2", node.value("devices", {"id": 7}, "b", value=300), node.value("new", value=[1]))
    assert node.state["devices"][1]["b"] == 300
    assert not node.inject("F1", node.value("devices", {"id": 7}, "b", value=30), node.value("a", value="x"))
    assert node.heal("F1") == []
    assert node.state == {**before, "devices": [before["devices"][0], {"id": 7, "b": 300}], "new": [1]}
    assert node.heal("F2") == []
    assert node.state == before
    assert not node.journal.exists()


def test_edits_of_one_file_are_folded(node):
    text = node.folder / "text"
    node.inject("F1", node.file("text", sub=["^two$", "2"]))
    node.inject("F2", node.file("text", append="four\n"), node.file("text", sub=["^one$", "1"]))
    assert text.read_text() == "1\n2\nthree\nfour\n"
    node.heal("F1")
    assert text.read_text() == "1\ntwo\nthree\nfour\n"
    node.inject("F3", node.file("text", absent=True))
    assert not text.exists()
    node.heal("F2")
    assert not text.exists()
    node.heal()
    assert (text.read_text(), text.stat().st_mode & 0o777) == ("one\ntwo\nthree\n", 0o640)


def test_a_fault_is_all_or_nothing(node):
    before = node.state
    with pytest.raises(agent.AgentError, match="has nothing that"):
        node.inject("F1", node.value("a", value=2), node.file("text", sub=["^five$", "5"]))
    assert (node.state, node.journal.exists()) == (before, False)
    # The second change can be planned and then fails: what was done before is undone.
    (node.folder / "folder").mkdir()
    bad = {"kind": "disk", "path": str(node.folder / "text"), "mb": 1}
    with pytest.raises(agent.AgentError, match="is no directory"):
        node.inject("F1", node.value("a", value=2), node.file("text", keep=0.5), bad)
    assert (node.state, node.journal.exists()) == (before, False)
    assert (node.folder / "text").read_text() == "one\ntwo\nthree\n"


def test_a_call_that_was_killed_can_be_healed(node, monkeypatch):
    """The journal is written before anything is touched, so it knows all of a fault of which half came about."""
    before = node.state

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agent.NodeFile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        node.inject("F1", node.value("a", value=2), node.file("text", keep=0.5))
    monkeypatch.undo()
    monkeypatch.setattr(agent, "JOURNAL", node.journal)
    monkeypatch.setattr(agent, "STATE_LOCK", node.folder / "dcmi/state.lock")
    assert node.state["a"] == 2
    assert node.heal() == []
    assert node.state == before
    assert (node.folder / "text").read_text() == "one\ntwo\nthree\n"


def test_a_repair_is_kept_and_told(node):
    node.inject("F1", node.value("a", value=2), node.file("text", keep=0.5))
    put(node.folder / "text", b"repaired\n")
    assert node.heal() == [f"{node.folder / 'text'} was changed by something else since: left as it is"]
    assert (node.folder / "text").read_text() == "repaired\n"
    assert node.state["a"] == 1


def test_a_repaired_fault_can_come_again(node):
    node.inject("F1", node.file("text", keep=0.5))
    put(node.folder / "text", b"one\ntwo\n")
    assert node.inject("F1", node.file("text", keep=0.5))
    assert (node.folder / "text").read_text() == "one\n"
    node.heal()
    assert (node.folder / "text").read_text() == "one\ntwo\n"


def test_a_part_of_what_another_fault_replaced_is_refused(node):
    node.inject("F1", node.value("devices", value=[]))
    with pytest.raises(agent.AgentError, match=r"F1 has changed \['devices'\] of .*; heal it first"):
        node.inject("F2", node.value("devices", {"id": 4}, "b", value=1))


def test_facts_are_without_the_fault_itself(node, monkeypatch):
    """So that a fault which adds to what is there comes out the same when it is brought about again."""
    node.inject("F1", node.value("a", value=2))
    node.inject("F2", node.value("a", value=3))
    monkeypatch.setattr(agent.SharedMemory, "read", lambda _: 64 << 20)
    assert node.do(do="facts", key="F1")["state"]["a"] == 3
    assert node.do(do="facts", key="F2")["state"]["a"] == 2
    assert node.do(do="facts", key="")["state"]["a"] == 3
