from __future__ import annotations

import copy
from pathlib import Path

import pytest

from ascent import command, fabric, mesh
from ascent.node import Node

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts" / "hccn_tool"
HOSTS = ("a3-01", "a3-02", "a3-03")
DEVICES = range(4)


def cluster(hosts=HOSTS):
    """A plan and healthy nodes; device d of host h has the address 192.0.2.(16h + d)."""
    plan = {"hosts": {}}
    nodes = {}
    for number, host in enumerate(hosts):
        plan["hosts"][host] = {"node_ip": f"198.51.100.{number + 1}", "devices": list(DEVICES)}
        vnic = {str(d): {"address": f"192.0.2.{16 * number + d}", "link": "UP", "error": None} for d in DEVICES}
        live = {str(d): {"address": f"203.0.113.{16 * number + d}", "error": None} for d in DEVICES}
        nodes[host] = {
            "system": {"boot_id": f"boot-{number}", "time": 1000.0 + number},
            "npu": {"vnic": vnic, "hccn_live": live, "hccn": copy.deepcopy(live)},
        }
    return plan, nodes


def measured(plan, nodes, broken=lambda host, entry: {}):
    """What a healthy cluster measures, with `broken` overriding single pings."""
    results = {}
    for host, entries in mesh.peers(plan, nodes).items():
        pings = []
        for entry in entries:
            good = {"sent": 3, "received": 3, "loss_percent": 0.0, "rtt_ms": 0.02, "ok": True, "error": None}
            pings.append({**entry, **good, **broken(host, entry)})
        devices = {
            str(d): {
                "link": {"link": "UP"},
                "tls": {"enabled": False},
                "net_health": {"status": "Success", "ok": True},
                "errors": {},
            }
            for d in DEVICES
        }
        results[host] = {"results": pings, "devices": devices}
    return results


DEAD = {"received": 0, "loss_percent": 100.0, "rtt_ms": None, "ok": False}
LOSSY = {"received": 2, "loss_percent": 33.33, "ok": False}


def judge(broken=lambda host, entry: {}, hosts=HOSTS, change=None, previous=None, kind="hccs_ping"):
    plan, nodes = cluster(hosts)
    results = measured(plan, nodes, broken)
    if change:
        change(nodes, results)
    return fabric.judge(plan, nodes, results, previous, kind)


def touches(host, device=None):
    """Breaks all pings to and from a host, or one of its devices."""

    def broken(source, entry):
        ends = [(source, entry["device"]), (entry["peer_host"], entry["peer_device"])]
        return DEAD if any(end[0] == host and device in (None, end[1]) for end in ends) else {}

    return broken


def test_healthy_fabric_is_clean():
    findings, metrics, verdict = judge()
    assert findings == []
    assert metrics["fabric_pairs"] == 3 * 2 * 4
    assert metrics["fabric_rtt_ms"] == {"median": 0.02, "p99": 0.02, "max": 0.02}
    assert verdict["ok"] is True
    assert (verdict["failed"], verdict["measured"]) == (0, 1002.0)


def only(findings):
    assert len(findings) == 1, findings
    item = findings[0]
    assert item["evidence"]
    assert item["cause"]
    assert item["fix"]
    return item


def test_a_dead_device_is_named_alone():
    findings, metrics, verdict = judge(touches("a3-02", 3))
    item = only(findings)
    assert (item["id"], item["severity"], item["host"]) == ("C01", "error", "a3-02")
    assert item["summary"].endswith(": a3-02 device 3")
    assert (metrics["fabric_failed_pairs"], verdict["ok"]) == (4, False)


def test_a_dead_host_is_named_alone():
    item = only(judge(touches("a3-03"))[0])
    assert (item["host"], item["summary"]) == ("a3-03", "unreachable over the device network: a3-03")


def test_two_dead_devices_are_two_findings():
    findings = judge(lambda host, entry: touches("a3-01", 0)(host, entry) or touches("a3-03", 2)(host, entry))[0]
    assert [item["host"] for item in findings] == ["a3-01", "a3-03"]


def test_two_dead_hosts_of_four_are_two_findings():
    hosts = (*HOSTS, "a3-04")
    findings = judge(lambda host, entry: touches("a3-01")(host, entry) or touches("a3-04")(host, entry), hosts)[0]
    assert [item["host"] for item in findings] == ["a3-01", "a3-04"]


def test_with_two_hosts_both_ends_of_a_dead_link_are_named():
    item = only(judge(touches("a3-01", 1), HOSTS[:2])[0])
    assert item["host"] is None
    assert item["summary"].endswith("a3-01 device 1 or a3-02 device 1")


def test_nobody_reaches_anybody():
    item = only(judge(lambda host, entry: DEAD)[0])
    assert item["summary"].endswith("every host from every other")


def test_one_direction_is_told_apart():
    item = only(judge(lambda host, entry: LOSSY if (host, entry["device"]) == ("a3-01", 2) else {})[0])
    assert item["id"] == "fabric-packet-loss"
    assert item["summary"].endswith("sending from a3-01 device 2")
    assert "2 of 3 packets back" in item["evidence"]


def test_a_single_pair_is_named_as_a_pair():
    pair = ("a3-01", "a3-02", 0)
    item = only(judge(lambda host, entry: DEAD if (host, entry["peer_host"], entry["device"]) == pair else {})[0])
    assert item["summary"].endswith("a3-01 device 0 to a3-02 device 0")


def test_a_busy_tool_is_not_a_dead_link():
    busy = {**DEAD, "sent": 0, "error": "hccn_tool: hccn_tool is busy, please try again."}
    item = only(judge(lambda host, entry: busy if host == "a3-02" else {})[0])
    assert (item["id"], item["host"]) == ("C25", "a3-02")


def test_slow_pair_is_a_warning():
    slow = {"rtt_ms": 5.0}
    findings, _metrics, verdict = judge(
        lambda host, entry: slow if (host, entry["device"], entry["peer_host"]) == ("a3-01", 0, "a3-02") else {}
    )
    assert (only(findings)["id"], findings[0]["severity"], verdict["ok"]) == ("G02", "warning", True)


def test_much_slower_than_before_is_a_warning():
    assert judge(lambda host, entry: {"rtt_ms": 2.0}, previous={"rtt_ms": {"median": 1.9}})[0] == []
    item = only(judge(lambda host, entry: {"rtt_ms": 2.0}, previous={"rtt_ms": {"median": 0.02}})[0])
    assert "100 times slower" in item["summary"]


def test_double_and_missing_addresses():
    def doubled(nodes, _results):
        nodes["a3-02"]["npu"]["vnic"]["0"]["address"] = "192.0.2.0"

    item = only(judge(change=doubled)[0])
    assert (item["id"], item["evidence"]) == ("C12", "a3-01 device 0; a3-02 device 0")

    def missing(nodes, results):
        nodes["a3-02"]["npu"]["vnic"]["0"]["address"] = None
        for host, part in results.items():
            for ping in part["results"]:
                if (ping["peer_host"], ping["peer_device"]) == ("a3-02", 0):
                    ping.update(DEAD, address=None, error="the peer device has no address")
                if (host, ping["device"]) == ("a3-02", 0):
                    ping.update(DEAD, error="Get ipconf failed, because no ip was preset there!")

    item = only(judge(change=missing)[0])
    assert (item["id"], item["host"]) == ("C11", "a3-02")


@pytest.mark.parametrize(("kind", "severity"), [("hccs_ping", "warning"), ("ping", "error")])
def test_file_that_differs_from_the_devices(kind, severity):
    def edited(nodes, _results):
        nodes["a3-01"]["npu"]["hccn"]["2"]["address"] = "203.0.113.99"

    item = only(judge(change=edited, kind=kind)[0])
    assert (item["id"], item["severity"]) == ("hccn-conf-differs", severity)
    assert "device 2: file 203.0.113.99, live 203.0.113.2" in item["evidence"]


def test_a_device_that_lost_its_address_is_one_finding():
    def lost(nodes, _results):
        nodes["a3-01"]["npu"]["hccn_live"]["2"]["address"] = None

    ids = [item["id"] for item in judge(change=lost, kind="ping")[0]]
    assert "C11" in ids
    assert "hccn-conf-differs" not in ids


def test_tls_that_differs_names_the_few():
    def switched(_nodes, results):
        results["a3-03"]["devices"]["1"]["tls"]["enabled"] = True

    item = only(judge(change=switched)[0])
    assert (item["id"], item["summary"].rsplit(": ", 1)[1]) == ("C06", "a3-03 device 1")


def link_down(_nodes, results):
    for device in DEVICES:
        results["a3-01"]["devices"][str(device)]["link"]["link"] = "DOWN"


def test_false_link_down_of_a3_is_a_warning_and_of_a2_an_error():
    item = only(judge(change=link_down)[0])
    assert (item["id"], item["severity"]) == ("G05", "warning")
    item = only(judge(change=link_down, kind="ping")[0])
    assert (item["id"], item["severity"], item["host"]) == ("C10", "error", "a3-01")


def test_link_down_with_dead_pings_is_an_error_on_a3_too():
    findings = judge(touches("a3-01"), change=link_down)[0]
    assert sorted(item["id"] for item in findings) == ["C01", "C10"]


def test_net_health_counts_on_a2_only_while_pings_pass():
    def unhealthy(_nodes, results):
        results["a3-02"]["devices"]["0"]["net_health"] = {"status": "Init", "ok": False}

    assert judge(change=unhealthy)[0] == []
    assert (only(judge(change=unhealthy, kind="ping")[0])["id"]) == "C09"


def test_host_that_measured_nothing_is_an_error():
    def gone(_nodes, results):
        results["a3-02"] = None

    item = only(judge(change=gone)[0])
    assert (item["id"], item["host"]) == ("fabric-not-measured", "a3-02")


def test_key_follows_what_a_verdict_depends_on():
    plan, nodes = cluster()
    key = fabric.key(plan, nodes)
    assert fabric.key(*cluster()) == key
    for change in (
        lambda plan, nodes: plan["hosts"].pop("a3-03"),
        lambda plan, nodes: plan["hosts"]["a3-01"].update(node_ip="198.51.100.77"),
        lambda plan, nodes: nodes["a3-01"]["system"].update(boot_id="other"),
        lambda plan, nodes: nodes["a3-01"]["npu"]["hccn"]["0"].update(address="203.0.113.99"),
    ):
        plan, nodes = cluster()
        change(plan, nodes)
        assert fabric.key(plan, nodes) != key
    assert fabric.key(plan, dict.fromkeys(nodes)) != key


def test_verdict_is_reused_only_while_it_holds():
    verdict = {"ok": True, "key": "k", "measured": 1000.0}
    assert fabric.reusable(verdict, "k", 1000.0 + 3600, 2) is True
    assert fabric.reusable(verdict, "k", 1000.0 + 3 * 3600, 2) is False
    assert fabric.reusable(verdict, "other", 1000.0, 2) is False
    assert fabric.reusable({**verdict, "ok": False}, "k", 1000.0, 2) is False
    assert fabric.reusable(None, "k", 1000.0, 2) is False


def test_measure_asks_again_when_busy_and_judges_by_packets(monkeypatch):
    monkeypatch.setattr("ascent.node.time.sleep", lambda seconds: None)
    text = {name: (TRANSCRIPTS / f"{name}.txt").read_text() for name in ("busy", "hccs_ping-ok", "hccs_ping-lost")}
    answers = [(11, text["busy"], ""), (0, text["hccs_ping-ok"], ""), (0, text["hccs_ping-lost"], "")]
    calls = []

    def runner(argv, timeout):
        calls.append(argv)
        return answers.pop(0)

    peers = [
        {"device": 0, "peer_host": "b", "peer_device": 0, "address": "192.0.2.9"},
        {"device": 1, "peer_host": "b", "peer_device": 1, "address": "192.0.2.10"},
        {"device": 2, "peer_host": "b", "peer_device": 2, "address": None},
    ]
    part = fabric.measure(Node(runner=runner), "hccn_tool", "hccs_ping", [], peers)
    first, second, third = part["results"]
    assert (first["ok"], first["rtt_ms"], first["error"]) == (True, 0.021045, None)
    assert (second["ok"], second["loss_percent"]) == (False, 100.0)
    assert third["error"] == "the peer device has no address"
    assert calls[0] == ("hccn_tool", "-i", "0", "-hccs_ping", "-g", "address", "192.0.2.9", "pkt", "3")
    answers[:] = [(0, text["hccs_ping-ok"], "")]
    assert fabric.measure(Node(runner=runner), "t", "hccs_ping", [], peers[:1], packets=5)["results"][0]["ok"] is False


def test_measure_without_the_tool_is_errors_not_a_crash():
    part = fabric.measure(
        Node(runner=lambda argv, timeout: (command.MISSING, "", "t: not found")), "t", "ping", [0], []
    )
    assert part["devices"]["0"]["link"] is None
    assert part["devices"]["0"]["errors"]["tls"] == "t: not found"
