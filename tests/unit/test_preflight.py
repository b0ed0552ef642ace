"""Preflight against the planned seed 004 cluster: clean when all is well, and each fault named once, on its host."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import yaml

from ascent import planner, preflight
from tests.unit import planning_inputs as inputs
from tests.unit.ready_nodes import node

ROOT = Path(__file__).parents[2]
TRANSCRIPTS = ROOT / "tests" / "transcripts"
CATALOGUE = yaml.safe_load((ROOT / "catalog/versions/vllm-ascend.yml").read_text())
FAULTY = "n001"


@functools.cache
def _plan():
    return planner.plan(inputs.recipe(inputs.PD), inputs.hardware(), inputs.hosts(3), cluster="a3-cluster")


@pytest.fixture
def plan():
    return copy.deepcopy(_plan())


@pytest.fixture
def nodes(plan):
    return {host: node(plan, host) for host in plan["hosts"]}


def test_segments_of_a_store_fit_the_hosts_memory():
    recipe = inputs.recipe(inputs.PD)
    recipe["kv_store"] = {"kind": "mooncake", "config": {"global_segment_size": "40GB", "local_buffer_size": 2**30}}
    recipe["kv_transfer"] = {
        "connector": "MultiConnector",
        "connectors": [{"connector": "MooncakeConnectorV1"}, {"connector": "AscendStoreConnector"}],
    }
    plan = planner.plan(recipe, inputs.hardware(), inputs.hosts(3), cluster="c")
    nodes = {host: node(plan, host) for host in plan["hosts"]}
    assert preflight.judge(plan, nodes, CATALOGUE, offsets={}) == []
    nodes["n001"]["system"]["memory_mb"] = 16 * 41 * 1024 - 1
    (item,) = preflight.judge(plan, nodes, CATALOGUE, offsets={})
    assert (item["id"], item["host"], item["severity"]) == ("store-memory", "n001", "error")
    assert "16 ranks of 41 GiB" in item["evidence"]


def test_a_host_without_npus_is_not_asked_for_them(plan, nodes):
    for name in plan["hosts"]:
        nodes[name]["npu"] = {**dict.fromkeys(nodes[name]["npu"]), "error": "npu-smi: not found", "device_files": []}
    assert {item["id"] for item in preflight.judge(plan, nodes, CATALOGUE, offsets={})} == {"A01"}
    for name in plan["hosts"]:
        plan["hosts"][name]["vendor"] = "cpu"
    assert preflight.judge(plan, nodes, CATALOGUE, offsets={}) == []


def test_ready_cluster_has_no_findings(plan, nodes):
    assert preflight.judge(plan, nodes, CATALOGUE, offsets={}) == []


def planned_port(name):
    port = next(
        port
        for process in _plan()["processes"]
        if process["host"] == FAULTY
        for port in process["ports"]
        if port["name"] == name
    )
    return port["first"]


def wrong_image(one, plan):
    """The table of an A2 server: no Phy-ID column."""
    for each in one["npu"]["info"]["devices"]:
        each["phy_id"] = None


FAULTS = {
    "python-too-old": lambda one, plan: one["system"].update(python="3.6.8"),
    "D28": lambda one, plan: one["system"].update(memory_mb=4096),
    "D16": lambda one, plan: one["disk"].update({"/var/lib/docker": {"free_mb": 5000, "total_mb": 10**6, "device": 1}}),
    "container-engine": lambda one, plan: one["container_engine"].update(running=False, error="refused"),
    "C07": lambda one, plan: one["network"]["addresses"][1].update(nic="eth9"),
    "D01": lambda one, plan: one["network"]["listening"].append(planned_port("api")),
    "D02": lambda one, plan: one["network"]["listening"].append(planned_port("dp-rpc")),
    "E01": lambda one, plan: one["network"]["listening"].append(planned_port("kv") + 3),
    "ports-in-ephemeral-range": lambda one, plan: one["network"].update(reserved=""),
    "D11": lambda one, plan: one["system"].update(
        proxies={"http_proxy": "http://192.0.2.1:3128", "no_proxy": "localhost"}
    ),
    "A01": lambda one, plan: one["npu"].update(info=None, error="npu-smi: dcmi module initialize failed. ret is -8005"),
    "A03": lambda one, plan: one["npu"]["info"]["processes"].append(
        {"npu_id": 1, "chip_id": 1, "pid": 7, "name": "python", "memory_mb": 9}
    ),
    "A05": lambda one, plan: one["npu"]["device_files"].remove("/dev/davinci7"),
    "A07": lambda one, plan: one["npu"]["driver"].update(firmware_range=["8.0.0", "8.9.9"]),
    "A09": lambda one, plan: one["npu"]["info"]["devices"][5].update(health="Alarm"),
    "A10": lambda one, plan: one["npu"]["info"]["devices"].pop(),
    "A11": lambda one, plan: one["npu"]["info"]["devices"][2].update(hbm_used_mb=30000),
    "A20": lambda one, plan: one["npu"]["install"].update(status="running"),
    "B08": wrong_image,
    "D17": lambda one, plan: one["weights"].update(missing=["model-3.safetensors"]),
    "D18": lambda one, plan: one["weights"].update(pointers=["model-3.safetensors"]),
    "D19": lambda one, plan: one["weights"].update(truncated=["model-3.safetensors"]),
    "D34": lambda one, plan: one["weights"].update(altered=["model-3.safetensors"]),
}
FAULTS |= {
    "A02": lambda one, plan: one["npu"].update(live={"driver": "25.3.rc1"}),
    "A06": lambda one, plan: one.update(absent=["/usr/local/dcmi", "/usr/local/Ascend/driver/lib64/"]),
    "A19": lambda one, plan: one.update(absent=["/etc/ascend_install.info"]),
    "D31": lambda one, plan: one.update(absent=["/usr/local/bin/npu-smi"]),
    "D15": lambda one, plan: one["system"].update(hugepages_mb=600_000),
    "D14": lambda one, plan: one["system"]["limits"]["container_engine"].update(nofile=1024),
    "D08": lambda one, plan: one["system"]["names"].update({FAULTY: ["127.0.1.1"]}),
    "name-elsewhere": lambda one, plan: one["system"]["names"].update(n002=["203.0.113.9"]),
    "D10": lambda one, plan: one["system"]["names"].update(n002=[]),
    "D12": lambda one, plan: one["system"].update(filters=["ufw"]),
    "selinux-enforcing": lambda one, plan: one["system"].update(selinux="enforcing"),
    "A17": lambda one, plan: one["npu"].update(user=None),
    "D30": lambda one, plan: one["npu"].update(hccn=None),
    "hccn-conf-devices": lambda one, plan: one["npu"].update(
        hccn={"20": {"address": "192.0.2.4", "netmask": "255.255.255.0"}}
    ),
    "C13": lambda one, plan: one["npu"].update(hccn={"3": {"address": "192.0.2.4", "netmask": "255.0.255.0"}}),
    "mtu-differs": lambda one, plan: one["network"]["nics"][plan["hosts"][FAULTY]["nic"]].update(mtu=9000),
    "user-ids-differ": lambda one, plan: one["npu"]["user"].update(uid=1001),
}
WARNINGS = {
    "A02",
    "D08",
    "D10",
    "D11",
    "D12",
    "D14",
    "D15",
    "hccn-conf-devices",
    "mtu-differs",
    "name-elsewhere",
    "ports-in-ephemeral-range",
    "selinux-enforcing",
    "user-ids-differ",
}
# What a node differs in from its peers is told beside what is wrong with it.
ALSO = {"python-too-old": [("B09", FAULTY)]}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_finding_on_its_host(plan, nodes, fault):
    FAULTS[fault](nodes[FAULTY], plan)
    findings = preflight.judge(plan, nodes, CATALOGUE)
    assert [(item["id"], item["host"]) for item in findings] == [(fault, FAULTY), *ALSO.get(fault, [])]
    assert findings[0]["severity"] == ("info" if fault == "A17" else "warning" if fault in WARNINGS else "error")
    assert all(findings[0][key] for key in ("summary", "evidence", "cause", "fix"))


def test_all_faults_come_at_once(plan, nodes):
    nodes["n000"] = None
    FAULTS["C07"](nodes["n001"], plan)
    FAULTS["D01"](nodes["n001"], plan)
    FAULTS["D19"](nodes["n002"], plan)
    findings = preflight.judge(plan, nodes)
    assert [(item["host"], item["id"]) for item in findings] == [
        ("n000", "host-unreadable"),
        ("n001", "C07"),
        ("n001", "D01"),
        ("n002", "D19"),
    ]


def test_the_inventorys_architecture_counts_and_is_told(plan, nodes):
    nodes[FAULTY]["system"].update(machine="x86_64")
    findings = preflight.judge(plan, nodes)
    assert [(item["id"], item["severity"]) for item in findings] == [("arch-differs", "info")]
    assert FAULTY in findings[0]["evidence"]


def test_occupied_tool_is_another_fault_than_a_missing_driver(plan, nodes):
    nodes[FAULTY]["npu"].update(info=None, error="npu-smi: dcmi model initialized failed, because ... ret is -8020")
    assert preflight.judge(plan, nodes)[0]["id"] == "A03"


def test_a_serving_node_is_not_blamed_for_itself(plan, nodes):
    one = nodes[FAULTY]
    FAULTS["D01"](one, plan)
    FAULTS["A03"](one, plan)
    FAULTS["A11"](one, plan)
    assert len(preflight.judge(plan, nodes)) == 3
    one["container_engine"]["containers"] = [{"state": "exited", "labels": {}}]
    assert len(preflight.judge(plan, nodes)) == 3
    one["container_engine"]["containers"] = [{"state": "running", "labels": {}}]
    assert preflight.judge(plan, nodes) == []


def test_worse_of_table_and_detail_counts(plan, nodes):
    npu = nodes[FAULTY]["npu"]
    npu["info"]["devices"][4]["health"] = "Alarm"
    npu["health"] = [{"npu_id": 2, "chip_id": 0, "health": "OK", "error_codes": [], "error": None}]
    assert "device 4: Alarm" in preflight.judge(plan, nodes)[0]["evidence"]
    npu["info"]["devices"][4]["health"] = "OK"
    npu["health"][0].update(health="Warning", error_codes=["80E01801"])
    assert preflight.judge(plan, nodes)[0]["evidence"] == "device 4: Warning, 80E01801"


def test_an_image_that_a_generation_had_needs_no_space(plan, nodes):
    FAULTS["D16"](nodes[FAULTY], plan)
    nodes[FAULTY]["state"]["generations"] = [{"number": 1, "images": {plan["engine"]["image"]: "sha256:1"}}]
    assert preflight.judge(plan, nodes) == []
    nodes[FAULTY]["state"]["generations"] = []
    assert preflight.judge(plan, nodes, image_gb=4) == []


def test_versions_that_differ_name_the_few(plan, nodes):
    nodes[FAULTY]["npu"]["driver"]["version"] = "25.5.3"
    (item,) = preflight.judge(plan, nodes, CATALOGUE)
    assert (item["id"], item["host"]) == ("B09", FAULTY)
    assert item["evidence"] == "25.5.2: n000, n002; 25.5.3: n001"


def test_driver_below_what_the_catalogue_recommends_is_a_warning_and_below_the_floor_an_error(plan, nodes):
    for one in nodes.values():
        one["npu"]["driver"]["version"] = "25.3.rc1"
        one["npu"]["firmware"]["driver_prefixes"] = []
    findings = preflight.judge(plan, nodes, CATALOGUE)
    assert {(item["id"], item["severity"]) for item in findings} == {("A08", "warning")}
    assert len(findings) == 3
    # The pair that does not fit, and what to install, as the vendor calls it.
    assert "driver 25.3.rc1 of n000 and CANN 9.0.0 of vllm-ascend v0.21.0rc1" in findings[0]["summary"]
    assert "Atlas-A3-hdk-npu-driver_25.5.2_linux-aarch64.run" in findings[0]["fix"]
    # Older than what the vendor's own table has as compatible with CANN 9.0.
    for one in nodes.values():
        one["npu"]["driver"]["version"] = "24.1.rc3"
    findings = preflight.judge(plan, nodes, CATALOGUE)
    assert {(item["id"], item["severity"]) for item in findings} == {("A08", "error")}
    assert "25.0.rc1 is the oldest that the vendor has as compatible" in findings[0]["summary"]
    plan["engine"]["version"] = "v0.11.0"
    assert preflight.judge(plan, nodes, CATALOGUE) == []


def test_what_provision_brings_stops_nothing(plan, nodes):
    nodes[FAULTY]["npu"].update(info=None, error="npu-smi is at none of /usr/local/bin/npu-smi")
    nodes[FAULTY]["container_engine"].update(installed=False, running=False)
    nodes[FAULTY]["weights"].update(present=False)
    assert {item["severity"] for item in preflight.judge(plan, nodes)} == {"error"}
    mended = preflight.judge(plan, nodes, repaired=list(preflight.REPAIRS))
    assert {item["severity"] for item in mended} == {"info"}
    told = {item["id"]: item["fix"] for item in mended}
    assert told["A01"] == "Nothing to do: the stage provision installs driver and firmware from npu_driver_source."
    assert next(item["summary"] for item in mended if item["id"] == "A01").endswith(
        "; the stage provision installs driver and firmware from npu_driver_source"
    )
    # A lost chip is nothing that a driver brings back.
    FAULTS["A10"](nodes["n002"], plan)
    worst = preflight.judge(plan, nodes, repaired=list(preflight.REPAIRS))[0]
    assert (worst["id"], worst["severity"]) == ("A10", "error")
    with pytest.raises(ValueError, match="magic"):
        preflight.judge(plan, nodes, repaired=["magic"])


@pytest.mark.parametrize(
    "no_proxy", ["*", "198.18.0.0/16", "localhost, 198.18.0.0/24", "198.18.0.1,198.18.0.2 198.18.0.3"]
)
def test_no_proxy_in_its_many_forms(plan, nodes, no_proxy):
    nodes[FAULTY]["system"]["proxies"] = {"HTTPS_PROXY": "http://192.0.2.1:1", "NO_PROXY": no_proxy}
    assert preflight.judge(plan, nodes) == []


def test_small_shared_memory_is_named(plan, nodes):
    plan["processes"][0]["container"]["shm_size"] = "64m"
    (item,) = preflight.judge(plan, nodes)
    assert (item["id"], plan["processes"][0]["name"] in item["summary"]) == ("D13", True)


def test_clocks_count_only_beyond_what_the_connection_adds(plan, nodes):
    samples = {
        "n000": {"before": 100.0, "after": 105.2, "first": 100.1, "last": 105.1},
        "n001": {"before": 100.0, "after": 100.2, "first": 103.6, "last": 103.6},
        "n002": {"before": 100.0, "after": 110.0, "first": 101.0, "last": 101.0},
    }
    offsets = preflight.clock_offsets(samples)
    assert offsets["n001"]["offset"] == pytest.approx(3.5)
    (item,) = preflight.judge(plan, nodes, offsets=offsets)
    assert (item["id"], item["severity"]) == ("D24", "warning")
    assert "n001 and n000 are at least 3.3 s apart" in item["summary"]
    assert preflight.judge(plan, nodes, offsets=offsets, clock_skew_seconds=4) == []
    del offsets["n001"]
    assert preflight.judge(plan, nodes, offsets=offsets) == []


def test_parts_that_were_not_read_are_not_judged(plan):
    assert preflight.judge(plan, {host: dict.fromkeys(node(plan, host)) for host in plan["hosts"]}) == []
