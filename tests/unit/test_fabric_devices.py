from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent.fabric import devices, hosts, switches
from ascent.fabric.common import majority, misfits, names
from ascent_controller import signatures
from tests.unit.fabric_facts import Cluster

CONTROLLER = "plugins/plugin_utils/ascent_controller"


def judge(cluster, counters=None, meshes=None):
    pairs = [pair for mesh in (meshes or cluster.meshes()).values() for pair in mesh["pairs"]]
    counters = counters if counters is not None else cluster.counters()
    return devices.judge(cluster.plan, cluster.nodes, cluster.npus, counters=counters, pairs=pairs)


def only(findings):
    assert len(findings) == 1, [(one["id"], one["summary"]) for one in findings]
    item = findings[0]
    assert item["stage"] == "verify"
    assert all(item[key] for key in ("evidence", "cause", "fix"))
    return item


@pytest.mark.parametrize("generation", ["a2", "a3"])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_a_healthy_cluster_has_no_findings(generation, hosts):
    result = judge(Cluster(generation, hosts))
    assert (result["findings"], result["explained"], result["mute"]) == ([], [], [])
    assert result["metrics"]["npu_seconds"] == 3.0


def set_(option, **values):
    """A fault: device 2 of the second host tells other values of one option."""

    def break_(cluster):
        entry = cluster.device(1, 2)
        if option in entry and isinstance(entry[option], dict):
            entry[option].update(values)
        else:
            entry.update(values)

    return break_


def both(*faults):
    def break_(cluster):
        for one in faults:
            one(cluster)

    return break_


def duplicate(cluster):
    """Live and in the file, as after copying hccn.conf."""
    address = cluster.device(0, 2)["ip"]["address"]
    cluster.device(1, 2)["ip"]["address"] = address
    cluster.conf(1, 2)["address"] = address


def duplicate_live(cluster):
    cluster.device(1, 2)["ip"]["address"] = cluster.device(0, 2)["ip"]["address"]


def duplicate_vnic(cluster):
    cluster.device(1, 2)["vnic"]["address"] = cluster.device(0, 2)["vnic"]["address"]


def conf(**values):
    return lambda cluster: cluster.conf(1, 2).update(values)


def gateway(address):
    return both(set_("gateway", gateway=address), conf(gateway=address))


def lost_address(cluster):
    cluster.device(1, 2)["ip"]["address"] = None
    cluster.device(1, 2)["gateway_ping"] = None


def subnet(cluster):
    cluster.device(1, 2)["ip"]["netmask"] = "255.255.255.252"
    cluster.conf(1, 2).update(netmask="255.255.255.252", gateway="")
    cluster.device(1, 2)["gateway"] = {"gateway": None, "interface": None}
    cluster.device(1, 2)["gateway_ping"] = None


def all_down(cluster):
    for number in cluster.numbers:
        down(cluster, number)


def down(cluster, number=2):
    entry = cluster.device(1, number)
    entry["link"] = {"link": "DOWN"}
    entry["net_health"] = {"status": "Fault", "ok": False}
    entry["gateway_ping"] = None


def no_gateway(cluster):
    cluster.device(1, 2)["gateway_ping"].update(received=0, ok=False, loss_percent=100.0)
    cluster.device(1, 2)["net_health"] = {"status": "Unreachable", "ok": False}


def swapped_cables(cluster):
    first, second = cluster.device(1, 2), cluster.device(1, 3)
    first["lldp"], second["lldp"] = second["lldp"], first["lldp"]


def other_switch(cluster):
    cluster.device(1, 2)["lldp"] = {"interfaces": ["400GE1/0/3:1"], "systems": ["leaf-2"]}


def old_firmware(cluster):
    for number in cluster.numbers:
        cluster.device(1, number)["firmware_version"] = "7.7.0.6.236"


def unfit_firmware(cluster):
    for number in cluster.numbers:
        cluster.device(1, number).update(firmware_version="6.4.12.1.241", compatibility="NOK")


def same_identity(cluster):
    cluster.device(1, 2)["super_pod"]["sdid"] = cluster.device(1, 1)["super_pod"]["sdid"]


def unread(kind, text, *, option="link", numbers=(2,), rest=0, tool="hccn_tool"):
    """A call that gave nothing, and `rest` that were not made after it."""

    def break_(cluster):
        facts = cluster.npus[cluster.names[1]]
        for number in numbers:
            call = f"hccn_tool -i {number} -{option} -g" if number is not None else tool
            facts["unread"].append(
                {
                    "device": number,
                    "what": call,
                    "option": option if number is not None else None,
                    "kind": kind,
                    "text": text,
                }
            )
            if number is not None:
                facts["devices"][str(number)][option] = None
        for number in cluster.numbers if rest else ():
            for name in (
                "ip",
                "vnic",
                "link",
                "tls",
                "net_health",
                "gateway",
                "lldp",
                "optical",
                "stat",
                "mtu",
                "speed",
            ):
                facts["devices"][str(number)][name] = None
                facts["unread"].append(
                    {"device": number, "what": "x", "option": name, "kind": "not-asked", "text": f"after: {text}"}
                )

    return break_


def busy(cluster):
    unread("busy", "hccn_tool: hccn_tool is busy, please try again. (exit 11)", option="ip", numbers=(0,), rest=1)(
        cluster
    )
    cluster.npus[cluster.names[1]]["holders"] = [{"pid": 4711, "command": "agent --watch", "file": "/etc/hccn.conf"}]


def no_tool(cluster):
    unread("missing", "hccn_tool is at none of /usr/bin/hccn_tool", numbers=(None,), rest=1)(cluster)


def gone_card(cluster):
    cluster.device(1, 2).update(npu_id=None, name=None, firmware_version=None, super_pod=None)
    refused = "hccn_tool: The device is not exist! (exit 4)"
    for option in ("ip", "link", "tls", "lldp"):
        unread("refused", refused, option=option)(cluster)


def weak_light(cluster):
    cluster.device(1, 2)["optical"]["items"]["Rx Power0"] = {"value": 0.05, "unit": "mW", "text": "0.05 mW"}


def light_alarm(cluster):
    item = {"value": -9.0, "unit": "dBm", "text": "-9.00 dBm", "status": "alarm"}
    cluster.device(1, 2)["optical"]["items"]["Rx Power0"] = item


def low_threshold(cluster):
    items = cluster.device(1, 2)["optical"]["items"]
    items["RxPower High Thres"] = {"value": 3.0, "unit": "mW", "text": "3.0 mW"}
    items["RxPower Low Thres"] = {"value": 0.95, "unit": "mW", "text": "0.95 mW"}


def loss_of_signal(cluster):
    cluster.device(1, 2)["optical"]["items"]["Rx Los Flag"] = {"value": None, "unit": None, "text": "0x4"}


def flapping(cluster):
    days = [f"Fri Nov 20 {hour:02}:00:00 2026" for hour in range(20, 14, -1)]
    records = [[day, "UP" if index % 2 else "DOWN"] for index, day in enumerate(days)]
    cluster.device(1, 2)["link_stat"] = {"up_count": 3, "now": "Sat Nov 21 03:00:00 2026", "records": records}


def wrong_plane(cluster):
    cluster.npus[cluster.names[1]]["unsupported"] = ["vnic"]
    for number in cluster.numbers:
        cluster.device(1, number)["vnic"] = None


def topology(cluster):
    cluster.npus[cluster.names[1]]["topology"] = {"links": {"0-1": "PHB"}, "cpu_affinity": {}}


def container(devices=None, error="cat: /etc/hccn.conf: No such file or directory"):
    def break_(cluster):
        seen = {"name": "engine-1", "how": "exec", "present": devices is not None, "devices": devices, "error": error}
        cluster.npus[cluster.names[1]]["containers"] = [seen]

    return break_


def stale_in_container(cluster):
    seen = copy.deepcopy(cluster.npus[cluster.names[1]]["conf"]["devices"])
    seen["2"]["address"] = "203.0.113.99"
    container(seen, None)(cluster)


def no_file(cluster):
    cluster.npus[cluster.names[1]]["conf"] = {"present": False, "devices": None, "error": None}


def spoiled_file(cluster):
    error = "hccn.conf, line 3: expected key_<device>=value: 'oops'"
    cluster.npus[cluster.names[1]]["conf"] = {"present": True, "devices": None, "error": error}


TLS_ON = set_("tls", enabled=True)
RAISED = "hccn_tool: Command execute failed!"

# (fault, generation, id, severity, what the summary says of the second host's device 2)
SINGLE = [
    (duplicate, "a2", "C12", "error", "{h} device 2 has the address of a2-01 device 2: 203.0.113.3"),
    (duplicate, "a3", "C12", "warning", "{h} device 2 has the address of a3-01 device 2: 203.0.113.3"),
    (duplicate_live, "a2", "C12", "error", "{h} device 2 has the address of a2-01 device 2"),
    (duplicate_vnic, "a3", "C12", "error", "{h} device 2 has the address of a3-01 device 2: 192.0.2.2"),
    (conf(address="203.0.113.99"), "a2", "hccn-conf-differs", "error", "{h} device 2"),
    (conf(address="203.0.113.99"), "a3", "hccn-conf-differs", "warning", "{h} device 2"),
    (conf(netmask="255.255.0.0"), "a2", "hccn-conf-differs", "error", "{h} device 2"),
    (conf(netdetect="203.0.113.9"), "a2", "hccn-conf-differs", "error", "{h} device 2"),
    (lost_address, "a2", "C11", "error", "{h} device 2"),
    (lost_address, "a3", "C11", "warning", "{h} device 2"),
    (set_("vnic", address=None), "a3", "C11", "error", "{h} device 2"),
    (subnet, "a2", "C13", "error", "{h} device 2"),
    (gateway("203.0.113.200"), "a2", "C13", "error", "{h} device 2"),
    (gateway("192.0.2.1"), "a2", "C13", "error", "{h} device 2"),
    (TLS_ON, "a2", "C06", "error", "TLS of the device network is on, unlike elsewhere: {h} device 2"),
    (TLS_ON, "a3", "C06", "error", "{h} device 2"),
    (down, "a2", "C10", "error", "the RoCE link is down: {h} device 2"),
    (down, "a3", "C10", "warning", "the RoCE link is down: {h} device 2"),
    (set_("vnic", link="DOWN"), "a3", "C10", "error", "the HCCS (vnic) link is down: {h} device 2"),
    (all_down, "a2", "C10", "error", "{h} devices 0-3"),
    (all_down, "a3", "G05", "warning", "{h} devices 0-3"),
    (no_gateway, "a2", "gateway-unreachable", "error", "{h} device 2"),
    (set_("net_health", status="Receive timeout", ok=False), "a2", "C09", "error", "Receive timeout: {h} device 2"),
    (set_("net_health", status="Init", ok=False), "a2", "C09", "warning", "Init: {h} device 2"),
    (set_("net_health", status="Time exceeded", ok=False), "a3", "C09", "warning", "{h} device 2"),
    (set_("mtu", mtu=1500), "a2", "C15", "error", "{h} device 2"),
    (set_("speed", mbps=100000), "a2", "G02", "warning", "{h} device 2"),
    (set_("fec", mode="no"), "a2", "fec-differs", "warning", "{h} device 2"),
    (swapped_cables, "a2", "C14", "warning", "{h} devices 2, 3"),
    (other_switch, "a2", "C14", "warning", "{h} device 2"),
    (old_firmware, "a2", "B09", "error", "firmware 7.7.0.6.236 is older than elsewhere: {h} devices 0-3"),
    (set_("", driver_version="25.6.0"), "a2", "B09", "error", "driver 25.6.0 is newer than elsewhere: {h} device 2"),
    (unfit_firmware, "a3", "A07", "error", "{h} devices 0-3"),
    (same_identity, "a3", "C22", "error", "{h} devices 1, 2"),
    (busy, "a3", "C25", "error", "hccn_tool on {h} is locked by process 4711 (agent --watch)"),
    (no_tool, "a3", "D31", "error", "hccn_tool is missing on {h}"),
    (unread("timeout", "no answer within 30 s"), "a2", "npu-tool-hangs", "error", "{h} device 2"),
    (unread("refused", f"{RAISED} (exit 0)"), "a2", "G04", "error", "fails without an exit code: {h} device 2 (link)"),
    (unread("refused", f"{RAISED} (exit 1)", option="fec"), "a2", "npu-tool-refused", "warning", "{h} device 2 (fec)"),
    (unread("unclear", "hccn_tool -tls: no line"), "a2", "npu-answer-unclear", "warning", "{h} device 2 (link)"),
    (gone_card, "a2", "A10", "error", "{h} device 2"),
    (weak_light, "a2", "optical-power", "warning", "{h} device 2"),
    (light_alarm, "a2", "optical-power", "error", "{h} device 2"),
    (low_threshold, "a2", "optical-power", "error", "{h} device 2"),
    (loss_of_signal, "a3", "optical-power", "warning", "{h} device 2"),
    (flapping, "a2", "link-flapping", "warning", "{h} device 2"),
    (wrong_plane, "a3", "E15", "error", "{h} is planned as an A3"),
    (topology, "a3", "npu-topology-differs", "warning", "inside {h}"),
    (container(), "a2", "D30", "error", "container engine-1 on {h} does not see /etc/hccn.conf"),
    (stale_in_container, "a2", "hccn-conf-stale", "error", "engine-1 on {h} sees an older /etc/hccn.conf: devices 2"),
    (no_file, "a2", "D30", "warning", "/etc/hccn.conf of {h} is missing"),
    (spoiled_file, "a2", "hccn-conf-unreadable", "error", "/etc/hccn.conf of {h}"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "generation", "id", "severity", "says"), SINGLE)
def test_one_fault_is_named_exactly_and_nothing_else(fault, generation, id, severity, says):
    cluster = Cluster(generation)
    fault(cluster)
    if id == "npu-answer-unclear":
        severity = "error"  # without the link's state nothing can be said of it
    item = only(judge(cluster)["findings"])
    host = cluster.names[1]
    assert (item["id"], item["severity"], item["host"]) == (id, severity, host)
    assert says.format(h=host) in item["summary"]


PAIRS = [
    (TLS_ON, down, "a2", {"C06", "C10"}),
    (duplicate, old_firmware, "a2", {"C12", "B09"}),
    (busy, TLS_ON, "a3", {"C25"}),
    (subnet, swapped_cables, "a2", {"C13", "C14"}),
    (conf(address="203.0.113.99"), weak_light, "a2", {"hccn-conf-differs", "optical-power"}),
    (gone_card, no_file, "a2", {"A10", "D30"}),
]


@pytest.mark.parametrize(("first", "second", "generation", "ids"), PAIRS)
def test_two_faults_at_once_are_both_named(first, second, generation, ids):
    cluster = Cluster(generation)
    second(cluster)
    first(cluster)
    assert {one["id"] for one in judge(cluster)["findings"]} == ids


def test_the_same_fault_on_two_hosts_is_told_for_both():
    cluster = Cluster("a2")
    cluster.device(0, 1)["link"] = {"link": "DOWN"}
    cluster.device(2, 3)["link"] = {"link": "DOWN"}
    assert [one["host"] for one in judge(cluster)["findings"]] == ["a2-01", "a2-03"]


def test_roce_counts_on_a3_where_containers_read_its_addresses():
    differs = conf(address="203.0.113.99")
    for fault, wanted in ((duplicate, "C12"), (differs, "hccn-conf-differs"), (down, "C10"), (no_file, "D30")):
        cluster = Cluster("a3", kv_transfer=True)
        fault(cluster)
        item = only(judge(cluster)["findings"])
        assert (item["id"], item["severity"]) == (wanted, "error")


def test_roce_counts_on_a3_between_super_pods():
    cluster = Cluster("a3")
    for number in cluster.numbers:
        cluster.device(1, number)["super_pod"]["id"] = 2
    duplicate(cluster)
    assert only(judge(cluster)["findings"])["severity"] == "error"


def test_a3_without_any_roce_address_is_fine():
    cluster = Cluster("a3")
    for host, facts in cluster.npus.items():
        facts["conf"] = {"present": False, "devices": None, "error": None}
        for entry in facts["devices"].values():
            entry.update(ip={"address": None, "netmask": None}, gateway={"gateway": None, "interface": None})
            entry.update(link={"link": "DOWN"}, net_health={"status": "Init", "ok": False}, gateway_ping=None)
        assert host
    assert {one["id"] for one in judge(cluster)["findings"]} == {"G05"}


def test_false_down_of_a3_is_taken_back_by_failing_pings():
    cluster = Cluster("a3")
    all_down(cluster)
    dead = {"received": 0, "avg_us": None, "min_us": None, "max_us": None}
    meshes = cluster.meshes(lambda source, target: dead if "a3-02" in (source[0], target[0]) else None)
    item = only(judge(cluster, meshes=meshes)["findings"])
    assert (item["id"], item["host"]) == ("C10", "a3-02")


def test_no_light_at_a_port_that_is_down_is_told_with_the_link():
    cluster = Cluster("a2")
    down(cluster)
    cluster.device(1, 2)["optical"]["items"]["Rx Power0"] = {"value": 0.0, "unit": "mW", "text": "0.0000 mW"}
    item = only(judge(cluster)["findings"])
    assert item["id"] == "C10"
    assert "device 2 at switch port 400GE1/0/3:1; device 2: Rx Power0 0.0000 mW" in item["evidence"]


def test_with_two_hosts_the_owner_of_a_doubled_address_is_found_by_the_row():
    cluster = Cluster("a2", 2)
    duplicate(cluster)
    assert only(judge(cluster)["findings"])["host"] == "a2-02"


def test_a_doubled_address_without_any_sign_names_both():
    cluster = Cluster("a2", 2, 2)
    duplicate_at = cluster.device(0, 1)["ip"]["address"]
    cluster.device(1, 1)["ip"]["address"] = cluster.conf(1, 1)["address"] = duplicate_at
    item = only(judge(cluster)["findings"])
    assert item["host"] is None
    assert "taken 2 times: a2-01 device 1; a2-02 device 1" in item["summary"]


def test_hosts_in_different_networks_need_gateways():
    cluster = Cluster("a2", 2)
    for number in cluster.numbers:
        for value in (cluster.device(1, number)["ip"], cluster.conf(1, number)):
            value["address"] = f"192.0.2.{number + 1}"
        cluster.device(1, number).update(gateway={"gateway": None, "interface": None}, gateway_ping=None)
        cluster.conf(1, number)["gateway"] = ""
    item = only(judge(cluster)["findings"])
    assert (item["id"], item["host"]) == ("C13", "a2-02")


def test_a_gateway_that_answers_nobody_is_a_warning():
    cluster = Cluster("a2")
    for facts in cluster.npus.values():
        for entry in facts["devices"].values():
            entry["gateway_ping"].update(received=0, ok=False)
    assert {(one["id"], one["severity"]) for one in judge(cluster)["findings"]} == {("gateway-unreachable", "warning")}


def test_growing_error_counters_and_only_those():
    cluster = Cluster("a2")
    counters = cluster.counters()
    counters["a2-02"]["devices"]["2"]["roce_new_pkt_rty_num"] += 17
    item = only(judge(cluster, counters)["findings"])
    assert (item["id"], item["host"]) == ("C16", "a2-02")
    assert "device 2: roce_new_pkt_rty_num +17; within 30 s" in item["evidence"]
    # What cannot be compared is no growth.
    counters["a2-02"]["devices"]["2"] = {"roce_new_pkt_rty_num": None}
    assert judge(cluster, counters)["findings"] == []


def test_a_host_that_was_not_read_is_an_error():
    cluster = Cluster("a3")
    meshes = cluster.meshes()
    cluster.npus["a3-02"] = None
    item = only(judge(cluster, {}, meshes)["findings"])
    assert (item["id"], item["severity"], item["host"]) == ("fabric-not-read", "error", "a3-02")


def test_explained_and_mute():
    cluster = Cluster("a2")
    down(cluster)
    assert judge(cluster)["explained"] == [("a2-02", 2)]
    cluster = Cluster("a3")
    busy(cluster)
    assert judge(cluster)["mute"] == ["a3-02"]


OPTIONS = (
    "ip", "vnic", "link", "net_health", "netdetect", "gateway", "gateway_ping", "tls", "mtu", "speed", "fec", "lldp",
    "optical", "stat", "link_stat", "super_pod", "firmware_version", "driver_version", "compatibility", "npu_id",
)  # fmt: skip


@given(
    st.sampled_from(["a2", "a3"]),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.sampled_from(OPTIONS)), max_size=40),
    st.booleans(),
)
def test_what_was_not_read_is_no_fault(generation, holes, without_conf):
    """Only a device that npu-smi does not show is one: whatever else is unknown is told by its entry in `unread`."""
    cluster = Cluster(generation, 2)
    for host, number, option in holes:
        cluster.device(host, number)[option] = None
    if without_conf:
        cluster.npus[cluster.names[0]]["conf"] = {"present": False, "devices": None, "error": None}
    assert {one["id"] for one in judge(cluster)["findings"]} <= {"A10", "D30"}


# -- hosts -------------------------------------------------------------------------------------------------------------


def wrong_nic(cluster):
    cluster.plan["hosts"]["a2-02"]["nic"] = "enp67s0f0"
    for one in cluster.plan["processes"][1]["env"][1:]:
        one["value"] = "enp67s0f0"


def environment(name, value):
    def break_(cluster):
        for one in cluster.plan["processes"][1]["env"]:
            if one["name"] == name:
                one["value"] = value

    return break_


def second_nic(fault):
    def break_(cluster):
        for index, node in enumerate(cluster.nodes.values()):
            node["network"]["addresses"].append({"nic": "eth1", "address": f"192.0.2.{index + 200}", "prefix": 24})
        fault(cluster)

    return break_


def other_network(cluster):
    cluster.plan["hosts"]["a2-02"].update(node_ip="192.0.2.201", nic="eth1")
    for one in cluster.plan["processes"][1]["env"]:
        one["value"] = "192.0.2.201" if one["name"] == "HCCL_IF_IP" else "eth1"


@pytest.mark.parametrize(
    ("fault", "id", "severity", "says"),
    [
        (wrong_nic, "C07", "error", "enp67s0f0 of a2-02 does not carry 198.51.100.12"),
        (environment("GLOO_SOCKET_IFNAME", "bond0"), "C07", "error", "GLOO_SOCKET_IFNAME=bond0 fits no interface"),
        (environment("GLOO_SOCKET_IFNAME", "eth"), "C07", "error", "GLOO_SOCKET_IFNAME=eth fits no interface"),
        (environment("HCCL_IF_IP", "198.51.100.99"), "D09", "error", "HCCL_IF_IP=198.51.100.99 does not fit"),
        (second_nic(environment("TP_SOCKET_IFNAME", "eth1")), "D09", "error", "TP_SOCKET_IFNAME=eth1 does not fit"),
        (second_nic(other_network), "node-network-differs", "warning", "a2-02 is planned with an address of another"),
    ],
)  # fmt: skip
def test_nic_and_environment(fault, id, severity, says):
    cluster = Cluster("a2")
    fault(cluster)
    item = only(judge(cluster)["findings"])
    assert (item["id"], item["severity"], item["host"]) == (id, severity, "a2-02")
    assert says in item["summary"]


def test_hccl_takes_names_as_prefixes_and_an_address_outranks_them():
    for value in ("eth", "=eth0", "^lo,docker", "eth0,eth1"):
        cluster = Cluster("a2")
        environment("HCCL_SOCKET_IFNAME", value)(cluster)
        assert judge(cluster)["findings"] == []
    cluster = Cluster("a2")
    second_nic(environment("HCCL_SOCKET_IFNAME", "eth1"))(cluster)
    assert judge(cluster)["findings"] == []
    cluster.plan["processes"][1]["env"] = [{"name": "HCCL_SOCKET_IFNAME", "value": "eth1"}]
    assert only(judge(cluster)["findings"])["id"] == "D09"


def gpu(env, hcas):
    address = "198.51.100.11"
    host = {"node_ip": address, "nic": "eth0", "vendor": "nvidia", "devices": [0, 1], "fabric": None}
    env = [{"name": name, "value": value} for name, value in env.items()]
    plan = {
        "hosts": {"g-01": host},
        "processes": [{"name": "p", "host": "g-01", "env": env, "container": {"mounts": []}}],
    }
    network = {"error": None, "hcas": hcas, "addresses": [{"nic": "eth0", "address": address, "prefix": 24}]}
    return devices.judge(plan, {"g-01": {"network": network}}, {"g-01": None})["findings"]


def hca(name, state="ACTIVE"):
    return {"name": name, "nics": [], "ports": [{"number": 1, "state": state, "link_layer": "InfiniBand"}]}


def test_gpu_nodes_have_their_adapters_checked_and_no_npus():
    both = [hca("mlx5_0"), hca("mlx5_1", "DOWN")]
    assert gpu({"NCCL_SOCKET_IFNAME": "eth0"}, []) == []
    assert gpu({"NCCL_IB_HCA": "mlx5_0:1", "UCX_NET_DEVICES": "mlx5_0:1,eth0"}, both) == []
    assert gpu({"NCCL_IB_HCA": "^mlx5_1"}, both) == []
    assert only(gpu({"NCCL_IB_HCA": "mlx5_7"}, both))["id"] == "nccl-hca-missing"
    assert only(gpu({"UCX_NET_DEVICES": "mlx5_:1"}, both))["id"] == "nccl-hca-missing"
    item = only(gpu({"NCCL_IB_HCA": "mlx5_0,mlx5_1"}, both))
    assert (item["id"], item["severity"]) == ("nccl-hca-down", "warning")
    assert only(gpu({"NCCL_IB_HCA": "=mlx5_1"}, both))["severity"] == "error"
    assert only(gpu({"NCCL_SOCKET_IFNAME": "ib0"}, both))["id"] == "C07"


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_the_catalogue_has_every_finding_of_the_gate_and_no_other():
    root = Path(__file__).parents[2]
    used = set()
    own = [f"module_utils/ascent/fabric/{name}.py" for name in ("addresses", "devices", "hosts", "switches", "verdict")]
    for path in [*(root / name for name in own), root / CONTROLLER / "judges.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("found", "finding", "_unequal"):
                position = 3 if node.func.id == "_unequal" else 0
                words = [one for one in ast.walk(node.args[position]) if isinstance(one, ast.Constant)]
                used |= {one.value for one in words if isinstance(one.value, str)}
    # Jobs are judged in the same module, in a stage of their own.
    used -= {"job-failed", "job-unknown"}
    listed = signatures.checks(of="fabric")
    assert {entry["id"] for entry in listed if entry["about"] in ("devices", "verdict")} == used
    keys = {"id", "name", "about", "severity", "summary", "cause", "fix", "source", "example"}
    assert all(set(entry) == keys and all(entry.values()) for entry in listed)
    assert len({entry["id"] for entry in listed}) == len(listed)


@pytest.mark.parametrize(
    "entry", [one for one in signatures.checks(of="fabric") if one["id"] in {row[2] for row in SINGLE}]
)
def test_examples_of_the_catalogue_read_like_the_findings(entry):
    """Names and numbers aside, the example is what the judge says."""

    def shape(text):
        return re.sub(r"\(.*\)|: .*|[a-z]+[a-z0-9]*-[0-9]+|[0-9.]+", "", text).split()[:1]

    said = set()
    for fault, generation, id_, _severity, _says in SINGLE:
        if id_ == entry["id"]:
            cluster = Cluster(generation)
            fault(cluster)
            said |= {tuple(shape(one["summary"])) for one in judge(cluster)["findings"]}
    assert tuple(shape(entry["example"])) in said


# -- the helpers -------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc")))
def test_majority_is_more_than_half(values):
    winner = majority(values)
    if winner is None:
        assert all(2 * values.count(value) <= len(values) for value in values)
    else:
        assert 2 * values.count(winner) > len(values)


@given(st.integers(-5, 5), st.integers(0, 1000), st.sets(st.integers(0, 30), min_size=3), st.data())
def test_one_that_breaks_a_row_is_found_alone(step, base, places, data):
    row = {place: base + step * place for place in places}
    assert misfits(row) == {}
    if len(places) >= 5:
        odd = data.draw(st.sampled_from(sorted(places)))
        row[odd] += 977
        assert misfits(row) in ({}, {odd: base + step * odd})


def test_names():
    assert names([("b", 3), ("b", 1), ("b", 2), ("a", 0), ("a", 1)]) == "a devices 0, 1; b devices 1-3"


def test_ports_of_unknown_kinds_say_nothing():
    mac = {"interfaces": [], "systems": ["leaf-1"]}
    two = {"interfaces": ["1", "2"], "systems": ["leaf-1"]}
    assert switches.judge({("a", 0): mac, ("a", 1): two, ("a", 2): None}) == []
    assert hosts.matches("", ["eth0"], True) == []
