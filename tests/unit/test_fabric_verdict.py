from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ascent.fabric import devices, pairs, verdict
from ascent.findings import finding
from ascent_controller import judges, signatures
from tests.unit.fabric_facts import Cluster

DEAD = {"received": 0, "min_us": None, "avg_us": None, "max_us": None}


def compose(cluster, meshes=None, *, previous=None, extra=()):
    meshes = meshes or cluster.meshes()
    measured = [pair for mesh in meshes.values() if mesh for pair in mesh["pairs"]]
    judged = devices.judge(cluster.plan, cluster.nodes, cluster.npus, counters=cluster.counters(), pairs=measured)
    parts = {
        "devices": judged,
        "mesh": pairs.judge(cluster.plan, verdict.unexplained(meshes, judged)),
        "control_plane": {"findings": list(extra)},
    }
    return verdict.compose(cluster.plan, cluster.nodes, cluster.npus, meshes, parts, previous=previous)


def test_a_good_verdict():
    cluster = Cluster("a3", 3)
    result = compose(cluster)
    assert result["findings"] == []
    kept = result["verdict"]
    assert (kept["ok"], kept["pairs"], kept["failed"]) == (True, 3 * 2 * 4, 0)
    assert kept["rtt_us"] == {"median": 20.0, "p99": 20.0, "max": 20.0}
    assert (kept["measured"], kept["depth"], kept["mesh"]) == (2000.0, "standard", "planned")
    assert kept["parts"] == {"devices": True, "mesh": True, "control_plane": True}
    assert result["metrics"]["fabric_pairs"] == 24
    assert verdict.reusable(kept, verdict.key(cluster.plan, cluster.nodes), 2100.0, 1)


def test_table_has_a_row_for_each_node():
    cluster = Cluster("a2", 2)
    cluster.device(1, 2)["link"] = {"link": "DOWN"}
    cluster.device(1, 3)["tls"]["enabled"] = True
    dead = lambda source, target: DEAD if ("a2-02", 2) in (source, target) else {}  # noqa: E731
    table = compose(cluster, cluster.meshes(dead))["table"]
    assert table["columns"][0] == "node"
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert rows["a2-01"]["verdict"] == "good"
    assert rows["a2-02"] == {
        "node": "a2-02", "devices": 4, "up": 3, "addresses": 4, "TLS": "mixed", "firmware": "7.8.0.6.201",
        "pairs": 8, "lost": 2, "median us": 20.0, "worst us": 20.0, "errors": "C06, C10", "verdict": "bad",
    }  # fmt: skip


def test_findings_over_several_hosts_count_for_each_of_them():
    both = finding("X1", "error", "ports clash: a3-01; a3-03", stage="verify")
    rows = compose(Cluster(), extra=[both])["table"]["rows"]
    assert [row[1] for row in rows] == ["bad", "good", "bad"]


@pytest.mark.parametrize("broken", ["link", "address"])
def test_a_failed_ping_that_a_finding_explains_is_no_finding(broken):
    cluster = Cluster("a2", 2)
    if broken == "link":
        cluster.device(1, 2)["link"] = {"link": "DOWN"}
    else:
        cluster.device(1, 2)["ip"]["address"] = None
    dead = lambda source, target: DEAD if ("a2-02", 2) in (source, target) else {}  # noqa: E731
    result = compose(cluster, cluster.meshes(dead))
    assert [one["id"] for one in result["findings"]] == [{"link": "C10", "address": "C11"}[broken]]
    assert result["verdict"]["failed"] == 2


def test_a_failed_ping_beside_an_explained_one_is_told():
    cluster = Cluster("a2", 3)
    cluster.device(1, 2)["link"] = {"link": "DOWN"}
    bad = {("a2-02", 2), ("a2-01", 0)}
    result = compose(cluster, cluster.meshes(lambda source, target: DEAD if bad & {source, target} else {}))
    assert [(one["id"], one["host"]) for one in result["findings"]] == [("C10", "a2-02"), ("C01", "a2-01")]


def test_a_host_with_a_locked_tool_is_told_once():
    cluster = Cluster("a3", 2)
    facts = cluster.npus["a3-02"]
    text = "hccn_tool: hccn_tool is busy, please try again. (exit 11)"
    for number, entry in facts["devices"].items():
        entry.update(
            ip=None, vnic=None, link=None, tls=None, gateway=None, net_health=None, stat=None, gateway_ping=None
        )
        kind = "busy" if number == "0" else "not-asked"
        facts["unread"].append({"device": int(number), "what": "x", "option": "vnic", "kind": kind, "text": text})

    def bad(source, target):
        if source[0] == "a3-02":
            return {**DEAD, "sent": 0, "error": text}
        return {**DEAD, "sent": 0, "address": None, "error": "the peer device has no address"}

    result = compose(cluster, cluster.meshes(bad))
    assert [(one["id"], one["host"]) for one in result["findings"]] == [("C25", "a3-02")]


def test_much_slower_than_before_is_a_warning():
    slow = Cluster()
    meshes = slow.meshes(lambda source, target: {"avg_us": 2000.0})
    assert compose(slow, meshes, previous={"rtt_us": {"median": 1900.0}})["findings"] == []
    (item,) = compose(slow, meshes, previous={"rtt_us": {"median": 20.0}})["findings"]
    assert (item["id"], item["severity"]) == ("G02", "warning")
    assert "100 times slower" in item["summary"]


def test_matrix_shows_both_directions():
    cluster = Cluster("a3", 2, 2)
    one_way = lambda source, target: {"received": 1, "avg_us": 90.0} if source == ("a3-01", 1) else {}  # noqa: E731
    told = compose(cluster, cluster.meshes(one_way))["matrix"]
    assert (told["plane"], told["hosts"]) == ("vnic", ["a3-01", "a3-02"])
    assert told["devices"] == [["a3-01", 0], ["a3-01", 1], ["a3-02", 0], ["a3-02", 1]]
    assert told["avg_us"] == [
        [None, None, 20.0, None],
        [None, None, None, 90.0],
        [20.0, None, None, None],
        [None, 20.0, None, None],
    ]
    assert told["lost_percent"][1][3] == 66.67
    assert told["host_avg_us"] == [[None, 90.0], [20.0, None]]
    assert told["host_lost_percent"] == [[None, 66.67], [0.0, None]]


def test_witnesses_are_in_neither_matrix_nor_figures():
    cluster = Cluster("a3", 2, 2)
    meshes = cluster.meshes()
    meshes["a3-01"]["pairs"].append(
        {**meshes["a3-01"]["pairs"][0], "to": ["a3-02", 1], "avg_us": 900.0, "witness": True}
    )
    result = compose(cluster, meshes)
    assert result["verdict"]["pairs"] == 4
    assert result["matrix"]["avg_us"][0][3] is None


def test_a_large_matrix_is_told_by_hosts():
    cluster = Cluster("a3", 9, 32)
    told = verdict.matrix([pair for mesh in cluster.meshes().values() for pair in mesh["pairs"]], "vnic")
    assert (told["devices"], told["avg_us"]) == ([], [])
    assert len(told["host_avg_us"]) == 9


def test_key_follows_what_a_verdict_depends_on():
    def key(change=lambda cluster: None):
        cluster = Cluster()
        change(cluster)
        return verdict.key(cluster.plan, cluster.nodes)

    def change_address(cluster):
        cluster.nodes["a3-01"]["network"]["addresses"][1]["prefix"] = 16

    def container_network(cluster):
        cluster.nodes["a3-01"]["network"]["addresses"].append({"nic": "docker0", "address": "172.17.0.1", "prefix": 16})

    assert key(container_network) == key()
    for change in (
        lambda cluster: cluster.plan["hosts"].pop("a3-03"),
        lambda cluster: cluster.plan.update(hash="plan-2"),
        lambda cluster: cluster.plan["hosts"]["a3-01"].update(node_ip="198.51.100.77"),
        lambda cluster: cluster.nodes["a3-01"]["system"].update(boot_id="other"),
        lambda cluster: cluster.nodes["a3-01"]["npu"].update(hccn={"0": {"address": "203.0.113.99"}}),
        lambda cluster: cluster.nodes["a3-01"]["npu"]["driver"].update(version="25.6"),
        lambda cluster: cluster.nodes.update({"a3-02": None}),
        change_address,
    ):
        assert key(change) != key()


def test_verdict_is_reused_only_while_it_holds():
    kept = {"ok": True, "key": "k", "measured": 1000.0, "depth": "standard", "mesh": "planned"}
    assert verdict.reusable(kept, "k", 1000.0 + 3600, 2)
    assert verdict.reusable(kept, "k", 1000.0, 2, "quick", "sample")
    assert not verdict.reusable(kept, "k", 1000.0 + 3 * 3600, 2)
    assert not verdict.reusable(kept, "k", 900.0, 2)
    assert not verdict.reusable(kept, "other", 1000.0, 2)
    assert not verdict.reusable({**kept, "ok": False}, "k", 1000.0, 2)
    assert not verdict.reusable(kept, "k", 1000.0, 2, "deep")
    assert not verdict.reusable(kept, "k", 1000.0, 2, "standard", "full")
    # Collectives were left out for a cluster that served: that holds while it does.
    without = {**kept, "left_out": ["collectives"]}
    assert verdict.reusable(without, "k", 1000.0, 2, serving=True)
    assert not verdict.reusable(without, "k", 1000.0, 2)
    assert verdict.reusable(without, "k", 1000.0, 2, "quick", "sample")
    assert not verdict.reusable(None, "k", 1000.0, 2)
    # As an earlier version kept it: without a depth.
    assert not verdict.reusable({"ok": True, "key": "k", "measured": 1000.0}, "k", 1000.0, 2)


@pytest.mark.parametrize(("age", "due"), [(1, True), (3, False)])
def test_a_verdict_is_reused_until_it_is_too_old(age, due):
    cluster = Cluster()
    kept = {"ok": True, "key": verdict.key(cluster.plan, cluster.nodes), "measured": time.time() - 7200}
    kept.update(depth="standard", mesh="planned", pairs=24)
    facts = {host: {"ascent_node": {**node, "state": {"fabric": kept}}} for host, node in cluster.nodes.items()}
    gate = judges.JUDGES["fabric_gate"]
    told = gate(cluster.plan, facts, wanted="auto", max_age_hours=age, depth="standard", mesh="planned")
    assert told["due"] is due


def test_one_server_without_npus_has_nothing_to_prove():
    host = {"devices": [], "fabric": None, "node_ip": "192.0.2.1"}
    assert not verdict.due({"hosts": {"a": host}})
    assert verdict.due({"hosts": {"a": host, "b": host}})
    assert verdict.due({"hosts": {"a": {**host, "devices": [0], "fabric": {"address": "ip"}}}})


def test_the_reference_page_is_current():
    tool = Path(__file__).parents[2] / "tools" / "verify_reference.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_runbook_names_findings_and_variables_that_there_are():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "runbooks" / "fabric-finding.md").read_text()
    ids = set(re.findall(r"`([A-G][0-9]{2}|(?:fabric|control|nccl|npu|collectives?)-[a-z-]+)`", text))
    known = {entry["id"] for entry in signatures.checks(of="fabric")}
    assert len(ids) > 15
    assert ids <= known
    reference = (root / "docs" / "reference" / "verify.md").read_text()
    variables = set(re.findall(r"\b((?:verify|fabric)_[a-z_]+)\b", text))
    assert {name for name in variables if name != "fabric_facts" and name not in reference} == set()
