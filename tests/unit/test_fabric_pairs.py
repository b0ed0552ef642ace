from __future__ import annotations

from ascent import mesh
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


def asked(bad, hosts=2, devices=4):
    """Planned pairs and witnesses of two hosts, as `ascent.mesh` asks for them; `bad` says what becomes of one."""
    names = [f"a3-{number + 1:02}" for number in range(hosts)]
    cluster = Cluster("a3", hosts, devices)
    lists = mesh.peers(cluster.plan, lambda host, device: f"192.0.2.{device}")
    meshes = {}
    for host in names:
        entries = []
        for one in lists[host]:
            source, target = (host, one["device"]), (one["peer_host"], one["peer_device"])
            entry = {"from": list(source), "to": list(target), "address": one["address"], "error": None}
            entry.update(sent=116 if one["burst"] else 3, min_us=20.0, avg_us=21.0, max_us=30.0)
            entry["received"] = entry["sent"]
            if one["witness"]:
                entry["witness"] = True
            entry.update(bad(source, target, entry))
            entries.append(entry)
        meshes[host] = {"plane": "vnic", "packets": 3, "seconds": 1.0, "pairs": entries}
    return pairs.judge(cluster.plan, meshes)["findings"]


def at(device):
    return lambda source, target: device in (source, target)


def test_between_two_hosts_witnesses_name_the_end():
    hit = at(("a3-02", 1))
    item = only(asked(lambda source, target, entry: DEAD if hit(source, target) else {}))
    assert (item["id"], item["host"]) == ("C01", "a3-02")
    assert item["summary"].endswith(": a3-02 device 1")


def test_every_fiftieth_packet_is_laid_to_one_device():
    for hosts in (2, 3, 4):
        hit = at(("a3-02", 1))
        item = only(
            asked(
                lambda source, target, entry, hit=hit: (
                    {"received": entry["sent"] - entry["sent"] // 50} if hit(source, target) else {}
                ),
                hosts,
            )
        )
        assert (item["id"], item["host"]) == ("fabric-packet-loss", "a3-02")
        assert item["summary"].endswith(": a3-02 device 1")


def test_rails_that_are_kept_apart_are_no_fault():
    def rails(source, target, entry):
        return DEAD if source[1] != target[1] else {}

    assert asked(rails) == []
    hit = at(("a3-02", 1))
    item = only(asked(lambda source, target, entry: DEAD if hit(source, target) else rails(source, target, entry)))
    assert item["summary"].endswith("a3-01 device 1 or a3-02 device 1")


def test_a_pair_that_works_one_way():
    way = (("a3-01", 2), ("a3-02", 2))
    item = only(asked(lambda source, target, entry: DEAD if (source, target) == way else {}, 3))
    assert (item["id"], item["severity"]) == ("fabric-one-way", "error")
    assert item["summary"].endswith(": a3-01 device 2 to a3-02 device 2")


def test_25_times_the_median_is_told_under_the_limit_and_an_error_above():
    slow = (("a3-01", 2), ("a3-02", 2))
    for factor, severity in ((25, "warning"), (600, "error")):
        item = only(
            asked(lambda source, target, entry, f=factor: {"min_us": 20.0 * f} if (source, target) == slow else {}, 3)
        )
        assert (item["id"], item["severity"]) == ("G02", severity)
        assert item["summary"].endswith("a3-01 device 2 to a3-02 device 2")
    assert asked(lambda source, target, entry: {"min_us": 150.0} if (source, target) == slow else {}, 3) == []


def test_a_device_that_is_slow_to_all_is_named_alone():
    hit = at(("a3-02", 1))
    item = only(asked(lambda source, target, entry: {"min_us": 900.0} if hit(source, target) else {}))
    assert item["summary"].endswith(": a3-02 device 1")


def test_two_faults_of_different_kinds_are_both_named():
    dead, lossy = at(("a3-01", 0)), at(("a3-03", 3))

    def both(source, target, entry):
        if dead(source, target):
            return DEAD
        return {"received": entry["sent"] - 1 - entry["sent"] // 50} if lossy(source, target) else {}

    found = asked(both, 3)
    assert [(one["id"], one["host"]) for one in found] == [("C01", "a3-01"), ("fabric-packet-loss", "a3-03")]
