from __future__ import annotations

from ascent.fabric import pairs
from tests.unit.fabric_facts import Cluster

DEAD = {"received": 0, "min_us": None, "avg_us": None, "max_us": None}
LOSSY = {"received": 2}


def judge(bad=None, hosts=3, generation="a3"):
    cluster = Cluster(generation, hosts)
    return pairs.judge(cluster.plan, cluster.meshes(bad))


def touches(host, device=None):
    """Breaks all pings to and from a host, or one of its devices."""
    return lambda source, target: (
        DEAD if any(end[0] == host and device in (None, end[1]) for end in (source, target)) else {}
    )


def only(findings):
    assert len(findings) == 1, findings
    item = findings[0]
    assert all(item[key] for key in ("evidence", "cause", "fix"))
    return item


def test_healthy_fabric_is_clean():
    result = judge()
    assert result["findings"] == []
    assert result["metrics"]["fabric_pairs"] == 3 * 2 * 4


def test_a_dead_device_is_named_alone():
    item = only(judge(touches("a3-02", 3))["findings"])
    assert (item["id"], item["severity"], item["host"]) == ("C01", "error", "a3-02")
    assert item["summary"].endswith(": a3-02 device 3")


def test_dead_hosts():
    assert only(judge(touches("a3-03"))["findings"])["host"] == "a3-03"
    two = lambda source, target: touches("a3-01")(source, target) or touches("a3-04")(source, target)  # noqa: E731
    assert [item["host"] for item in judge(two, 4)["findings"]] == ["a3-01", "a3-04"]
    assert only(judge(lambda source, target: DEAD)["findings"])["summary"].endswith("every host from every other")


def test_with_two_hosts_both_ends_of_a_dead_link_are_named():
    item = only(judge(touches("a3-01", 1), 2)["findings"])
    assert item["host"] is None
    assert item["summary"].endswith("a3-01 device 1 or a3-02 device 1")


def test_one_direction_and_a_single_pair_are_told_apart():
    item = only(judge(lambda source, target: LOSSY if source == ("a3-01", 2) else {})["findings"])
    assert item["id"] == "fabric-packet-loss"
    assert item["summary"].endswith("sending from a3-01 device 2")
    item = only(
        judge(lambda source, target: DEAD if (source, target) == (("a3-01", 0), ("a3-02", 0)) else {})["findings"]
    )
    assert item["summary"].endswith("a3-01 device 0 to a3-02 device 0")


def test_a_busy_tool_is_not_a_dead_link():
    busy = {**DEAD, "sent": 0, "error": "hccn_tool: hccn_tool is busy, please try again."}
    item = only(judge(lambda source, target: busy if source[0] == "a3-02" else {})["findings"])
    assert (item["id"], item["host"]) == ("C25", "a3-02")


def test_slow_pair_is_a_warning():
    slow = {"min_us": 5000.0}
    item = only(
        judge(lambda source, target: slow if (source, target[0]) == (("a3-01", 0), "a3-02") else {})["findings"]
    )
    assert (item["id"], item["severity"]) == ("G02", "warning")


def test_a_host_that_measured_nothing_is_an_error():
    cluster = Cluster()
    meshes = {**cluster.meshes(), "a3-02": None}
    item = only(pairs.judge(cluster.plan, meshes)["findings"])
    assert (item["id"], item["host"]) == ("fabric-not-measured", "a3-02")
