"""The fabric gate over the sandbox's emulated tools, in this process: what each fault makes them print is judged.

Everything but the network is as on a sandbox node: state file, configuration file, tools, readers, mesh and judges.
Pings reach whoever has the address and a link that is up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import ipaddress
import json
import re
from pathlib import Path

import pytest

from ascent import command, mesh, node, npu
from ascent.fabric import devices, pairs, verdict
from sandbox.faults import agent
from sandbox.faults.control import find
from sandbox.faults.model import HCCN_CONF, HCCN_TOOL, STATE
from sandbox.faults.model import Node as FaultyNode
from sandbox.lib import node_files
from sandbox.lib.plan import Node, Sandbox, load_profile
from tests.unit.fabric_facts import Cluster

TOOLS = Path(__file__).resolve().parents[2] / "sandbox" / "node"
NUMBERS = [0, 1, 2, 3]


def emulated(name):
    """A tool's module; it takes `node_state` from the folder where a node has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        spec = importlib.util.spec_from_file_location(f"emulated_{name}", TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


MODULES = {"hccn_tool": emulated("hccn_tool"), "npu-smi": emulated("npu_smi")}


class Site:
    """Two servers of one profile, in folders."""

    def __init__(self, profile, folder, monkeypatch, *, kv_transfer):
        self.cluster = Cluster(profile, 2, len(NUMBERS), kv_transfer=kv_transfer)
        planned = [
            Node(name, 11 + index, f"198.18.0.{11 + index}", load_profile(profile))
            for index, name in enumerate(self.cluster.names)
        ]
        self.sandbox = Sandbox("t", ipaddress.IPv4Network("198.18.0.0/18"), "198.18.0.2", tuple(planned))
        self.roots = {one.name: folder / one.name for one in planned}
        self.lost = []
        self.patch = monkeypatch
        for one in planned:
            root = self.roots[one.name]
            state = node_files.state(self.sandbox, one)
            files = {STATE: json.dumps(state), HCCN_CONF: node_files.hccn_conf(state), HCCN_TOOL: ""}
            for path, text in {**files, "/usr/local/bin/npu-smi": ""}.items():
                (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                (root / path.lstrip("/")).write_text(text)
        monkeypatch.setattr(MODULES["hccn_tool"], "round_trips", self.round_trips)
        for module in (node, npu, mesh):
            monkeypatch.setattr(module.time, "sleep", lambda seconds: None)

    def state(self, name):
        return json.loads((self.roots[name] / STATE.lstrip("/")).read_text())

    def round_trips(self, device, state, source, target, count, size):
        """What the kernel would say: only addresses with a link that is up answer."""
        answering = {self.sandbox.gateway}
        for name in self.roots:
            for one in self.state(name)["devices"]:
                answering |= {
                    one[plane]["address"] for plane in ("roce", "vnic") if one[plane] and one[plane]["link"] == "UP"
                }
        good = target in answering and (source, target) not in self.lost
        return [2e-5 if good else None] * count

    def run(self, name, argv, timeout):
        """One call of a tool on a node."""
        program = Path(argv[0]).name
        if program not in MODULES or not Path(self.roots[name], argv[0].lstrip("/")).exists():
            return command.MISSING, "", f"{argv[0]}: not found"
        self.patch.setenv("ASCENT_SANDBOX_STATE", str(self.roots[name] / STATE.lstrip("/")))
        self.patch.setenv("ASCENT_SANDBOX_ROOT", str(self.roots[name]))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = MODULES[program].main(list(argv[1:]))
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def inject(self, name, fault, words):
        """The changes of a fault, done to the node's folder."""
        facts = {"state": self.state(name), "models": [], "docker": True}
        planned = next(one for one in self.sandbox.nodes if one.name == name)
        for change in find(fault).on(FaultyNode(planned, self.sandbox, facts), find(fault).arguments(words)).changes:
            path = self.roots[name] / str(change.get("path", change.get("file", STATE))).lstrip("/")
            if change["kind"] == "json":
                state = self.state(name)
                holder, key = agent.JsonValue(change).find(state)
                holder[key] = change["value"]
                path.write_text(json.dumps(state))
            elif change["kind"] == "rule":
                match = dict(zip(change["match"][::2], change["match"][1::2], strict=False))
                self.lost.append((match["-s"], match["-d"]))
            elif change.get("absent"):
                path.unlink()
            elif "sub" in change and path.exists():
                pattern, by = change["sub"]
                path.write_text(re.sub(pattern, by, path.read_text(), flags=re.M))

    def verify(self, grow=None):
        """Read, measure and judge, as the stage does; `grow(site)` happens between the two readings of the counters."""
        names = self.cluster.names
        access = {
            name: node.Node(str(self.roots[name]), lambda argv, timeout, name=name: self.run(name, argv, timeout))
            for name in names
        }
        npus = {name: npu.read(access[name], NUMBERS) for name in names}
        plan = self.cluster.plan
        plane = self.cluster.plane
        lists = mesh.peers(plan, lambda host, number: npu.address(npus[host], number, plane), "planned")
        ping = plan["hosts"][names[0]]["fabric"]["ping"]
        meshes = {
            name: mesh.measure(access[name], HCCN_TOOL, ping, name, lists[name], burst_packets=0) for name in names
        }
        if grow:
            grow(self)
        counters = {name: npu.read_counters(access[name], NUMBERS) for name in names}
        told = [pair for one in meshes.values() for pair in one["pairs"]]
        judged = devices.judge(plan, self.cluster.nodes, npus, counters=counters, pairs=told)
        parts = {"devices": judged, "mesh": pairs.judge(plan, verdict.unexplained(meshes, judged))}
        return verdict.compose(plan, self.cluster.nodes, npus, meshes, parts)


@pytest.fixture
def site(request, tmp_path, monkeypatch):
    profile, kv_transfer = request.param
    return Site(profile, tmp_path, monkeypatch, kv_transfer=kv_transfer)


A2, A3, A3_KV = ("a2", False), ("a3", False), ("a3", True)


@pytest.mark.parametrize("site", [A2, A3, A3_KV], indirect=True)
def test_healthy_servers_pass(site):
    result = site.verify()
    assert result["findings"] == []
    assert (result["verdict"]["pairs"], result["verdict"]["failed"]) == (2 * len(NUMBERS), 0)


# Site, fault on the second host with its arguments, and the findings: id, severity, words of the summary.
FAULTS = [
    (A2, "C12", ["device=2"], "C12", "error", "{h} device 2 has the address of {p} device 2"),
    (A3_KV, "C12", ["device=2"], "C12", "error", "{h} device 2 has the address of {p} device 2"),
    (A3, "C12", ["device=2"], "C12", "warning", "{h} device 2 has the address of {p} device 2"),
    (A2, "C12", ["device=2", "where=live"], "C12", "error", "{h} device 2 has the address of {p} device 2"),
    (A2, "C12", ["device=2", "where=conf"], "hccn-conf-differs", "error", "{h} device 2"),
    (A2, "C11", ["device=2"], "C11", "error", "{h} device 2"),
    (A2, "C11", ["device=2", "where=live"], "C11", "error", "{h} device 2"),
    (A3_KV, "C11", ["device=2"], "C11", "error", "{h} device 2"),
    (A2, "C11", ["device=2", "where=conf"], "hccn-conf-differs", "error", "{h} device 2"),
    (A2, "C13", ["device=2"], "C13", "error", "{h} device 2"),
    (A3_KV, "D30", [], "D30", "error", "/etc/hccn.conf of {h} is missing"),
    (A2, "D30", [], "D30", "warning", "/etc/hccn.conf of {h} is missing"),
    (A2, "C06", ["device=2"], "C06", "error", "on, unlike elsewhere: {h} device 2"),
    (A3, "C06", ["device=2"], "C06", "error", "on, unlike elsewhere: {h} device 2"),
    (A2, "C10", ["device=2"], "C10", "error", "the RoCE link is down: {h} device 2"),
    (A3_KV, "C10", ["device=2"], "C10", "error", "the RoCE link is down: {h} device 2"),
    (A3, "C10", ["device=2"], "C10", "warning", "the RoCE link is down: {h} device 2"),
    (A3, "G04", ["device=2"], "C10", "error", "the HCCS (vnic) link is down: {h} device 2"),
    (A2, "G04", ["device=2", "option=link"], "G04", "error", "without an exit code: {h} device 2 (link)"),
    (A2, "G04", ["device=2", "option=tls"], "G04", "warning", "without an exit code: {h} device 2 (tls)"),
    (A3_KV, "G05", [], "G05", "warning", "{h} devices 0-3"),
    (A2, "C09", ["device=2"], "C09", "error", "Receive timeout: {h} device 2"),
    (A2, "C09", ["device=2", "gateway=silent"], "gateway-unreachable", "error", "{h} device 2"),
    (A2, "C14", ["device=2", "other=3"], "C14", "warning", "{h} devices 2, 3"),
    (A3, "C22", ["device=2", "other=1"], "C22", "error", "{h} devices 1, 2"),
    (A2, "C25", ["holder=unknown"], "C25", "error", "hccn_tool on {h} is locked"),
    (A2, "D31", ["tool=hccn_tool"], "D31", "error", "hccn_tool is missing on {h}"),
    (A2, "D31", ["tool=npu-smi"], "D31", "error", "npu-smi is missing on {h}"),
    (A2, "A01", [], "A01", "error", "npu-smi can't reach the driver on {h}"),
    (A2, "A03", [], "A03", "error", "the devices of {h} are held"),
    (A2, "A07", ["version=7.1.0.3.220"], "B09", "error", "7.1.0.3.220 is older than elsewhere: {h} devices 0-3"),
    (A2, "A07", [], "A07", "error", "{h} devices 0-3"),
    (A2, "B09", [], "B09", "error", "driver"),
    (A2, "B09", ["version=25.6.0"], "A07", "error", "{h} devices 0-3"),
    (A2, "A10", ["device=2"], "A10", "error", "{h} device 2"),
    (A2, "G02", ["device=2"], "G02", "warning", "ports run slower than the others: {h} device 2"),
]  # fmt: skip


@pytest.mark.parametrize(("site", "fault", "words", "wanted", "severity", "says"), FAULTS, indirect=["site"])
def test_one_fault_is_named_with_its_place_and_nothing_else(site, fault, words, wanted, severity, says):
    peer, host = site.cluster.names
    site.inject(host, fault, words)
    result = site.verify()
    told = [(one["id"], one["severity"], one["summary"]) for one in result["findings"]]
    assert [one[:2] for one in told] == [(wanted, severity)], told
    assert says.format(h=host, p=peer) in told[0][2]
    if wanted != "B09" or fault == "A07":  # of two versions the newer one may be the one that is wanted
        assert result["findings"][0]["host"] == host


@pytest.mark.parametrize("site", [A2], indirect=True)
def test_growing_counters(site):
    _, host = site.cluster.names
    result = site.verify(grow=lambda site: site.inject(host, "C16", ["device=2"]))
    (one,) = result["findings"]
    assert (one["id"], one["host"]) == ("C16", host)
    assert "device 2: roce_new_pkt_rty_num +17" in one["evidence"]


TWO = [
    (A2, ("C06", ["device=1"]), ("C10", ["device=3"]), {"C06", "C10"}),
    (A2, ("C12", ["device=2"]), ("C06", ["device=2"]), {"C12", "C06"}),
    (A3_KV, ("C12", ["device=2"]), ("D30", []), {"C12", "D30"}),
    (A3, ("G05", []), ("C22", ["device=2", "other=1"]), {"G05", "C22"}),
    (A2, ("C13", ["device=0"]), ("A07", []), {"C13", "A07"}),
]


@pytest.mark.parametrize(("site", "first", "second", "ids"), TWO, indirect=["site"])
def test_two_faults_are_both_named(site, first, second, ids):
    for fault, words in (first, second):
        site.inject(site.cluster.names[1], fault, words)
    result = site.verify()
    assert {one["id"] for one in result["findings"]} == ids
    assert {one["host"] for one in result["findings"]} == {site.cluster.names[1]}


@pytest.mark.parametrize("site", [A2], indirect=True)
def test_faults_of_two_hosts_are_told_apart(site):
    one, other = site.cluster.names
    site.inject(one, "C25", ["holder=unknown"])
    site.inject(other, "C10", ["device=3"])
    assert {(each["id"], each["host"]) for each in site.verify()["findings"]} == {("C25", one), ("C10", other)}
