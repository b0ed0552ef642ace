"""Checks of preflight that compare: node with table, node with node, node with plan. Good and bad input of each."""

from __future__ import annotations

import ast
import copy
import functools
from pathlib import Path

import pytest
import yaml

from ascent import memory, planner, preflight
from ascent.errors import InputError
from ascent_controller import loader, signatures
from tests.unit import planning_inputs as inputs
from tests.unit import ready_nodes

ROOT = Path(__file__).parents[2]
TABLE = yaml.safe_load((ROOT / "catalog/versions/vllm-ascend.yml").read_text())
GPU_TABLE = yaml.safe_load((ROOT / "catalog/versions/dynamo.yml").read_text())


@functools.cache
def _plan(recipe: str, count: int, arch: str = "aarch64", hardware: str | None = None):
    given = {"arch": arch, **({"hardware": hardware} if hardware else {})}
    hosts = [{**one, **given} for one in inputs.hosts(count)]
    return planner.plan(inputs.recipe(recipe), inputs.hardware(), hosts, cluster="c1")


@pytest.fixture
def plan():
    return copy.deepcopy(_plan(inputs.PD, 3))


@pytest.fixture
def nodes(plan):
    return {host: ready_nodes.node(plan, host) for host in plan["hosts"]}


def found(plan, nodes, **options):
    """Findings as ``(id, severity, host)``, and the first of them whole."""
    findings = preflight.judge(plan, nodes, options.pop("table", TABLE), **options)
    return [(one["id"], one["severity"], one["host"]) for one in findings], (findings or [None])[0]


# -- host --------------------------------------------------------------------------------------------------------------


def test_a_system_that_the_vendor_does_not_list_is_told_unless_the_site_vouches_for_it(plan, nodes):
    for one in nodes.values():
        one["system"].update(os={"id": "debian", "version": "12", "family": "debian"})
    told, first = found(plan, nodes)
    assert told == [("system-unlisted", "warning", host) for host in plan["hosts"]]
    assert "openeuler 22.03/24.03" in first["evidence"]
    assert found(plan, nodes, accepted_systems=["Debian 12"])[0] == []
    # 12 is no 1, and 22.03 no 22.0.
    for one in nodes.values():
        one["system"]["os"]["version"] = "10"
    assert found(plan, nodes)[0] == []
    for one in nodes.values():
        one["system"]["os"]["version"] = "101"
    assert {name for name, _, _ in found(plan, nodes)[0]} == {"system-unlisted"}


def test_a_kernel_is_compared_where_the_list_names_one(plan, nodes):
    for one in nodes.values():
        one["system"].update(os={"id": "bclinux", "version": "21.10U4", "family": "rhel"}, kernel="4.19.90-1")
    told, first = found(plan, nodes)
    assert told == [("kernel-unlisted", "warning", host) for host in plan["hosts"]]
    assert "5.10.0" in first["evidence"]
    for one in nodes.values():
        one["system"]["kernel"] = "5.10.0-200.0.0.131.30.aarch64"
    assert found(plan, nodes)[0] == []


def test_what_huge_pages_and_cgroups_keep_back_is_no_memory_for_engines(plan, nodes):
    nodes["n001"]["system"].update(memory_mb=16 * 1024, hugepages_mb=9 * 1024)
    told, first = found(plan, nodes)
    assert [one for one in told if one[0] == "D28"] == [("D28", "error", "n001")]
    assert "9216 MB of it in huge pages" in first["evidence"]
    nodes["n001"]["system"].update(memory_mb=2**20, hugepages_mb=0, cgroup={"memory_max_mb": 4096, "pids_max": None})
    told, first = found(plan, nodes)
    assert ("D28", "error", "n001") in told
    assert "limited to 4096 MB" in first["evidence"]


def test_a_container_of_somebody_else_under_a_name_of_the_plan_is_named(plan, nodes):
    process = next(one for one in plan["processes"] if one["host"] == "n001")
    nodes["n001"]["container_engine"]["others"] = ["registry", process["container"]["name"]]
    nodes["n002"]["container_engine"]["others"] = ["registry", process["container"]["name"]]
    told, first = found(plan, nodes)
    assert told == [("D32", "error", "n001")]
    assert process["container"]["name"] in first["summary"]


def test_space_is_what_images_and_weights_really_need(plan, nodes):
    one = nodes["n001"]
    one["weights"].update(complete=False, missing=["model-2.safetensors"], bytes=300 * 2**30)
    total = memory.weights_bytes(loader.model(plan["model"]["id"]))
    needed_mb = (total - 300 * 2**30) / 2**20
    one["disk"]["/m"]["free_mb"] = int(needed_mb) + 1
    assert found(plan, nodes, weights_bytes=total, repaired=["weights"])[0] == [("D17", "info", "n001")]
    one["disk"]["/m"]["free_mb"] = int(needed_mb) - 1
    told, first = found(plan, nodes, weights_bytes=total, repaired=["weights"])
    assert told == [("D16", "error", "n001"), ("D17", "info", "n001")]
    assert f"weights of {plan['model']['id']}" in first["evidence"]
    # One file system has to hold both.
    one["disk"]["/m"].update(device=1, free_mb=int(needed_mb) + 10 * 1024)
    one["disk"]["/var/lib/docker"].update(free_mb=int(needed_mb) + 10 * 1024)
    told, first = found(plan, nodes, weights_bytes=total, repaired=["weights"])
    assert told[0] == ("D16", "error", "n001")
    assert "/var/lib/docker and /m" in first["summary"]


def test_weights_of_a_model_are_as_large_as_its_figures_say():
    qwen = loader.model("Qwen/Qwen3-32B")
    assert memory.weights_bytes(qwen) == round(32.8e9) * 2
    quantized = loader.model("vllm-ascend/Qwen3-32B-W8A8")
    assert memory.weights_bytes(quantized) == round(32.8e9) - round(1.6e9) + 2 * round(1.6e9)
    assert memory.weights_bytes(None) is None
    assert loader.model("nobody/knows-this") is None


def test_the_size_of_an_image_is_taken_from_a_node_that_has_it(plan, nodes):
    (image,) = plan["engine"]["images"]
    nodes["n001"]["disk"]["/var/lib/docker"]["free_mb"] = 20 * 1024
    assert found(plan, nodes)[0] == [("D16", "error", "n001")]
    nodes["n002"]["container_engine"]["inspected"][image] = {"id": "sha256:1", "bytes": 18 * 2**30}
    assert found(plan, nodes)[0] == []
    nodes["n002"]["container_engine"]["inspected"][image]["bytes"] = 21 * 2**30
    told, first = found(plan, nodes)
    assert told == [("D16", "error", "n001")]
    assert "21.0 GiB as on another node" in first["evidence"]


def test_shared_memory_of_the_host_counts_where_containers_use_it(plan, nodes):
    for process in plan["processes"]:
        process["container"].update(ipc="host", shm_size=None)
    assert found(plan, nodes)[0] == []
    nodes["n001"]["system"]["shm_mb"] = 64
    told, first = found(plan, nodes)
    assert told == [("D13", "error", "n001")]
    assert "64 MB" in first["summary"]
    assert found(plan, nodes, repaired=["shared_memory"])[0] == [("D13", "info", "n001")]


def test_sizes_that_containers_may_fill_fit_the_host(plan, nodes):
    for process in plan["processes"]:
        process["container"]["shm_size"] = "512g"
    for one in nodes.values():
        one["system"]["memory_mb"] = 600 * 1024
    assert found(plan, nodes)[0] == []
    nodes["n001"]["system"]["memory_mb"] = 500 * 1024
    assert found(plan, nodes)[0] == [("D13", "warning", "n001")]


def test_limits_of_the_engine_count_only_where_a_container_has_none_of_its_own(plan, nodes):
    nodes["n001"]["system"]["limits"]["container_engine"]["nofile"] = 1024
    assert found(plan, nodes)[0] == [("D14", "warning", "n001")]
    for process in plan["processes"]:
        process["container"]["ulimits"] = {"nofile": "1048576"}
    assert found(plan, nodes)[0] == []
    nodes["n001"]["system"]["cgroup"]["pids_max"] = 500
    assert found(plan, nodes)[0] == [("D14", "warning", "n001")]


# -- network -----------------------------------------------------------------------------------------------------------


def api_port(plan, host):
    return next(
        port["first"]
        for process in plan["processes"]
        if process["host"] == host
        for port in process["ports"]
        if port["name"] == "api"
    )


def test_who_holds_a_port_is_named(plan, nodes):
    port = api_port(plan, "n001")
    nodes["n001"]["network"].update(listening=[22, port], owners={str(port): 4711})
    nodes["n001"]["processes"]["4711"] = {"command": "python3 -m http.server", "container": "somebody"}
    told, first = found(plan, nodes)
    assert told == [("D01", "error", "n001")]
    assert "held by pid 4711 (python3 -m http.server) in container somebody" in first["evidence"]


def test_a_port_that_somebody_took_beside_what_runs_is_named(plan, nodes):
    port, one = api_port(plan, "n001"), nodes["n001"]
    one["container_engine"]["containers"] = [{"name": "ascent-c-head", "state": "running", "labels": {}}]
    one["network"].update(listening=[port], owners={str(port): 4711})
    one["processes"]["4711"] = {"command": "vllm serve", "container": "ascent-c-head"}
    assert found(plan, nodes)[0] == []
    one["processes"]["4711"] = {"command": "python3 -m http.server", "container": None}
    assert found(plan, nodes)[0] == [("D01", "error", "n001")]
    one["network"]["owners"] = {}
    assert found(plan, nodes)[0] == [], "nobody knows who holds it"


def test_a_port_that_a_container_of_ours_publishes_is_ours(plan, nodes):
    port, one = api_port(plan, "n001"), nodes["n001"]
    mine = {"name": "ascent-c-head", "state": "running", "labels": {}, "published": [port]}
    one["container_engine"]["containers"] = [mine]
    one["network"].update(listening=[port], owners={str(port): 4711})
    proxy = {"command": f"/usr/bin/docker-proxy -proto tcp -host-port {port}", "container": None}
    one["processes"]["4711"] = {**proxy, "unit": "docker.service"}
    assert found(plan, nodes)[0] == []
    mine["published"] = []
    assert found(plan, nodes)[0] == [("D01", "error", "n001")]


def test_an_interface_without_link_is_no_way_out(plan, nodes):
    nic = plan["hosts"]["n001"]["nic"]
    nodes["n001"]["network"]["nics"][nic]["state"] = "unknown"
    assert found(plan, nodes)[0] == []
    nodes["n001"]["network"]["nics"][nic]["state"] = "down"
    assert found(plan, nodes)[0] == [("C07", "error", "n001")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"n001": ["198.18.0.2"]}, []),
        ({}, []),
        # Nobody goes by names here: then nothing is missing.
        ({"n000": [], "n002": []}, []),
        ({"n000": [], "n002": ["198.18.0.3"]}, ["D10"]),
        ({"n001": [], "n000": ["198.18.0.1"]}, ["D10"]),
        ({"n000": None}, ["D10"]),
        ({"n001": ["127.0.1.1", "::1"]}, ["D08"]),
        ({"n000": ["198.18.0.1", "10.0.0.1"], "n002": ["10.0.0.3"]}, ["name-elsewhere"]),
    ],
)
def test_names_lead_to_the_planned_addresses_where_they_lead_anywhere(plan, nodes, names, expected):
    nodes["n001"]["system"]["names"] = {"n001": ["198.18.0.2"], **names}
    told, _ = found(plan, nodes)
    assert told == [(name, "warning", "n001") for name in expected]
    assert {severity for _, severity, _ in found(plan, nodes, repaired=["host_names"])[0]} <= {"info"}


def test_hosts_with_one_name_are_told(plan, nodes):
    for host in ("n000", "n002"):
        nodes[host]["system"]["hostname"] = "localhost"
        nodes[host]["system"]["names"]["localhost"] = ["192.0.2.1"]
    told, first = found(plan, nodes)
    assert told == [("D10", "warning", None)]
    assert "n000, n002 all call themselves localhost" in first["summary"]


# -- devices -----------------------------------------------------------------------------------------------------------


def test_leftover_processes_are_named_with_command_and_container(plan, nodes):
    one = nodes["n001"]
    one["npu"]["info"]["processes"] = [{"npu_id": 1, "chip_id": 1, "pid": 7, "name": "python", "memory_mb": 9}]
    one["processes"]["7"] = {"command": "vllm serve /models/old", "container": "old-run"}
    told, first = found(plan, nodes)
    assert told == [("A03", "error", "n001")]
    assert "device 3: pid 7 (vllm serve /models/old) in container old-run" in first["evidence"]
    one["npu"]["info"]["processes"] = []
    one["npu"]["info"]["devices"][3]["hbm_used_mb"] = 40_000
    told, first = found(plan, nodes)
    assert told == [("A11", "error", "n001")]
    assert "No process has them open" in first["fix"]
    one["npu"]["holders"] = {"3": [7]}
    told, first = found(plan, nodes)
    assert "device 3: 40000 MB, open in pid 7 (vllm serve /models/old) in container old-run" in first["evidence"]


def test_a_stranger_on_a_device_is_named_while_the_cluster_runs(plan, nodes):
    one = nodes["n001"]
    one["container_engine"]["containers"] = [{"name": "ascent-c-head", "state": "running", "labels": {}}]
    one["units"] = {"units": [{"name": "ascent-c-rank.service", "state": "running", "labels": {}}]}
    users = [{"npu_id": 1, "chip_id": 1, "pid": pid, "name": "python", "memory_mb": 9} for pid in (7, 8, 9)]
    one["npu"]["info"]["processes"] = users
    one["processes"]["7"] = {"command": "vllm", "container": "ascent-c-head", "unit": None}
    one["processes"]["8"] = {"command": "vllm", "container": None, "unit": "ascent-c-rank.service"}
    assert found(plan, nodes)[0] == [], "9 is hidden from us, and the cluster runs"
    one["container_engine"]["containers"][0]["state"] = "restarting"
    one["units"]["units"] = []
    del one["processes"]["8"]
    assert found(plan, nodes)[0] == [], "8 ended while the node was read: an engine that starts again and again"
    one["processes"]["9"] = {"command": "jupyter", "container": None, "unit": "jupyter.service"}
    told, first = found(plan, nodes)
    assert told == [("A03", "error", "n001")]
    assert first["evidence"] == "device 3: pid 9 (jupyter) in unit jupyter.service"


def test_a_launch_by_itself_is_told_what_would_fail_half_way(plan, nodes):
    assert preflight.before_launch(plan, nodes, provisioned=False) == []
    nodes["n000"]["container_engine"].update(installed=False, running=False, error="docker: not found")
    nodes["n001"]["container_engine"]["missing_python"] = ["requests"]
    nodes["n002"]["npu"]["info"]["processes"] = [{"npu_id": 0, "chip_id": 0, "pid": 7, "name": "x", "memory_mb": 9}]
    told = preflight.before_launch(plan, nodes, provisioned=False)
    assert [(one["id"], one["host"]) for one in told] == [
        ("container-engine", "n000"),
        ("container-engine", "n001"),
        ("A03", "n002"),
    ]
    assert {(one["stage"], one["severity"]) for one in told} == {("launch", "error")}
    assert all("--tags provision,launch" in one["fix"] for one in told[:2])
    assert "lack the Python module requests" in told[1]["summary"]
    (last,) = preflight.before_launch(plan, {**nodes, "n000": None}, provisioned=True)
    assert last["id"] == "A03"


def test_a_lost_chip_is_told_with_what_the_bus_shows(plan, nodes):
    nodes["n001"]["npu"]["info"]["devices"].pop()
    nodes["n001"]["npu"]["pci"] = {"d803": 15}
    told, first = found(plan, nodes)
    assert told == [("A10", "error", "n001")]
    assert "on the bus: 15 of 19e5:d803" in first["evidence"]


def test_what_containers_mount_has_to_be_there(plan, nodes):
    plan["hosts"]["n001"]["files"] = [*plan["hosts"]["n001"]["files"], "/mnt/share/qwen"]
    nodes["n001"]["absent"] = ["/mnt/share/qwen"]
    assert found(plan, nodes)[0] == [("mount-absent", "error", "n001")]
    # Another host's file, and what other checks tell.
    nodes["n001"]["absent"] = []
    nodes["n000"]["absent"] = ["/mnt/share/qwen", "/dev/davinci0", "/etc/hccn.conf"]
    assert found(plan, nodes)[0] == []
    # Without a driver all of its files are missing; that is one finding.
    nodes["n002"]["absent"] = ["/usr/local/dcmi", "/etc/ascend_install.info"]
    nodes["n002"]["npu"].update(info=None, driver=None, firmware=None, error="no npu-smi")
    assert found(plan, nodes)[0] == [("A01", "error", "n002")]


def test_a_component_number_is_no_driver_that_waits_for_a_reboot(plan, nodes):
    for one in nodes.values():
        one["npu"]["live"] = {"driver": "25.5.2"}
    assert found(plan, nodes)[0] == []
    nodes["n001"]["npu"]["live"] = {"driver": "25.5.3"}
    assert found(plan, nodes)[0] == [("A02", "warning", "n001")]
    assert found(plan, nodes, repaired=["driver"])[0] == [("A02", "info", "n001")]


# -- versions ----------------------------------------------------------------------------------------------------------


def test_the_missing_driver_is_named_as_the_vendor_names_it(plan, nodes):
    nodes["n001"]["npu"].update(info=None, driver=None, firmware=None, error="npu-smi is at none of /usr/local/bin")
    told, first = found(plan, nodes)
    assert told == [("A01", "error", "n001")]
    assert "Atlas-A3-hdk-npu-driver_25.5.2_linux-aarch64.run and the firmware of the same release" in first["fix"]
    a2 = copy.deepcopy(_plan("qwen3-235b-a22b-dp2", 2, "x86_64", "atlas-800-a2"))
    a2["engine"]["version"] = "v0.21.0rc1"
    faulty = {host: ready_nodes.node(a2, host) for host in a2["hosts"]}
    for one in faulty.values():
        one["npu"]["info"]["devices"] = [ready_nodes.device(number, phy_id=None) for number in range(8)]
        one["npu"]["hccn"] = {
            str(number): {"address": f"192.0.2.{id(one) % 100 + number}", "netmask": "255.255.255.0"}
            for number in range(8)
        }
        one["system"]["machine"] = "x86_64"
    faulty["n001"]["npu"].update(info=None, driver=None, firmware=None, hccn={}, error="no npu-smi")
    first = next(one for one in preflight.judge(a2, faulty, TABLE) if one["id"] == "A01")
    assert (
        "Ascend-hdk-910b-npu-driver_25.5.2_linux-x86-64.run and Ascend-hdk-910b-npu-firmware_7.8.0.7.220.run"
        in first["fix"]
    )


def test_a_release_that_the_table_does_not_know_is_said_once(plan, nodes):
    plan["engine"]["version"] = "v9.9.9"
    assert found(plan, nodes)[0] == [("release-unknown", "info", None)]
    assert found(plan, nodes, table=None)[0] == []


def test_hardware_without_an_image_of_the_release_is_told(plan, nodes):
    plan["engine"]["version"] = "v0.9.1"
    told, first = found(plan, nodes)
    assert ("image-unpublished", "warning", None) in told
    assert "published for a2" in first["evidence"]


def content(plan, **values):
    (image,) = plan["engine"]["images"]
    silent = {"id": "sha256:1234", "architecture": "arm64", "bytes": 1, "cann": None, "engine": None, "soc": None}
    return {image: {**silent, **values}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"cann": "9.0.0", "engine": "v0.21.0rc1", "soc": "ascend910_9391"}, []),
        ({"cann": "8.5.1"}, [("image-content", "warning", "n001")]),
        ({"engine": "v0.18.0"}, [("image-content", "warning", "n001")]),
        ({"soc": "ascend910b1"}, [("B08", "error", "n001")]),
    ],
)
def test_what_an_image_says_of_itself_is_compared_with_its_tag(plan, nodes, values, expected):
    nodes["n001"]["container_engine"]["inspected"] = content(plan, **values)
    assert found(plan, nodes)[0] == expected


def test_one_tag_that_is_two_images_names_the_odd_node(plan, nodes):
    for host in plan["hosts"]:
        nodes[host]["container_engine"]["inspected"] = content(plan, id="sha256:aaaaaaaaaaaaaaaa")
    assert found(plan, nodes)[0] == []
    nodes["n002"]["container_engine"]["inspected"] = content(plan, id="sha256:bbbbbbbbbbbbbbbb")
    told, first = found(plan, nodes)
    assert told == [("B09", "error", "n002")]
    assert "n000, n001" in first["evidence"]
    # The same tag for another architecture is another image by right.
    nodes["n002"]["container_engine"]["inspected"] = content(plan, id="sha256:bbbbbbbbbbbbbbbb", architecture="amd64")
    assert found(plan, nodes)[0] == []


DRIFT = {
    "driver": lambda one: one["npu"]["driver"].update(version="25.5.3"),
    "firmware": lambda one: one["npu"]["firmware"].update(version="7.8.0.7.220"),
    "CANN": lambda one: one["npu"].update(cann={"version": "9.0.1"}),
    "weights": lambda one: one["weights"].update(commit="f00"),
    "operating system": lambda one: one["system"]["os"].update(version="24.03"),
    "kernel": lambda one: one["system"].update(kernel="6.6.0-1"),
    "Python": lambda one: one["system"].update(python="3.11.2"),
    "container engine": lambda one: one["container_engine"].update(version="27.0.1"),
}


@pytest.mark.parametrize("kind", DRIFT)
def test_a_node_that_differs_is_named_with_what_differs_and_the_majority(plan, nodes, kind):
    for one in nodes.values():
        one["npu"]["cann"] = {"version": "9.0.0"}
        one["weights"]["commit"] = "ba5"
    assert found(plan, nodes)[0] == []
    DRIFT[kind](nodes["n001"])
    told, first = found(plan, nodes)
    severity = "error" if kind in ("driver", "firmware", "weights") else "warning"
    assert told == [("B09", severity, "n001")]
    assert first["summary"].startswith(f"{kind} versions differ between nodes: n001 not at ")
    assert "n000, n002" in first["evidence"]


def test_cann_of_the_hosts_has_to_be_equal_where_engines_use_it(plan, nodes):
    plan["engine"]["environment"] = {"path": "/opt/ascent"}
    whole = {"arch": "aarch64", "path": "/c", "environment": "/c/set_env.sh", "kernels": "9.0.0", "nnal": {}}
    for one in nodes.values():
        one["npu"]["cann"] = {**whole, "version": "9.0.0", "nnal": {"version": "9.0.0"}}
    nodes["n001"]["npu"]["cann"]["version"] = "9.0.1"
    assert ("B09", "error", "n001") in found(plan, nodes)[0]


def test_nodes_of_other_hardware_are_no_peers(plan, nodes):
    plan["hosts"]["n001"]["hardware"] = "atlas-800-a3-of-next-year"
    DRIFT["driver"](nodes["n001"])
    assert found(plan, nodes)[0] == []


def test_features_ask_for_more_than_the_release_does(plan, nodes):
    for process in plan["processes"]:
        process["env"] = [*process["env"], {"name": "ASCEND_ENABLE_USE_FABRIC_MEM", "value": "1"}]
    told, first = found(plan, nodes)
    # Release v0.21.0rc1 has Mooncake 0.3.9: the way round by a newer one is closed.
    assert {name for name, _, _ in told} == {"B13"}
    assert "driver 26.0, n000 has 25.5.2" in first["summary"]
    plan["engine"]["version"] = "v0.23.0"
    assert found(plan, nodes)[0] == []
    for one in nodes.values():
        one["npu"]["driver"]["version"] = "25.5.0"
        one["npu"]["firmware"]["driver_prefixes"] = []
    assert {name for name, _, _ in found(plan, nodes)[0]} == {"A08"}


def test_a_graph_mode_that_wants_a_newer_driver_is_told(plan, nodes):
    for process in plan["processes"]:
        process["argv"] = [
            *(words for words in process["argv"] if words[0] != "--compilation-config"),
            ["--compilation-config", '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'],
        ]
    assert found(plan, nodes)[0] == []
    for one in nodes.values():
        one["npu"]["driver"]["version"] = "25.5.0"
        one["npu"]["firmware"]["driver_prefixes"] = []
    told, _ = found(plan, nodes)
    assert [one for one in told if one[0] == "feature-floor"] == [
        ("feature-floor", "warning", host) for host in plan["hosts"]
    ]


def test_cann_of_the_host_counts_where_engines_run_outside_containers(plan, nodes):
    good = {
        "version": "9.0.0",
        "arch": "aarch64",
        "path": "/usr/local/Ascend/cann-9.0.0",
        "environment": "/usr/local/Ascend/cann-9.0.0/set_env.sh",
        "kernels": "9.0.0",
        "nnal": {"version": "9.0.0"},
    }
    for one in nodes.values():
        one["npu"]["cann"] = None
    assert found(plan, nodes)[0] == []
    plan["engine"]["environment"] = {"path": "/opt/ascent/environments/1"}
    told, first = found(plan, nodes)
    assert told == [("host-cann", "error", host) for host in plan["hosts"]]
    for name in ("toolkit_9.0.0_linux-aarch64", "A3-ops_9.0.0_linux-aarch64", "nnal_9.0.0_linux-aarch64"):
        assert f"Ascend-cann-{name}.run" in first["fix"]
    assert {severity for _, severity, _ in found(plan, nodes, repaired=["cann"])[0]} == {"info"}
    for one in nodes.values():
        one["npu"]["cann"] = dict(good)
    assert found(plan, nodes)[0] == []
    for values in ({"version": "8.5.0"}, {"arch": "x86_64"}, {"kernels": None}, {"nnal": None}, {"environment": None}):
        for one in nodes.values():
            one["npu"]["cann"] = {**good, **values}
        assert {name for name, _, _ in found(plan, nodes)[0]} == {"host-cann"}, values


@pytest.mark.parametrize(
    ("python", "packages", "expected"),
    [
        ("python3.11", ["vllm==0.18.0", "vllm-ascend==0.18.0"], None),
        ("python3", ["vllm==0.18.0", "vllm-ascend==0.18.0", "torch_npu==2.9.0.post1", "numpy==1.26.4"], None),
        ("python3.11", ["vllm==0.17.0", "vllm-ascend==0.18.0"], "vllm 0.17.0, the release has 0.18.0"),
        ("python3.11", ["vllm-ascend==0.18.0", "Torch.NPU==2.8.0"], "Torch.NPU 2.8.0, the release has 2.9.0.post1"),
        ("/usr/bin/python3.13", ["vllm==0.18.0"], "Python 3.13, the release runs on 3.10 to 3.11"),
    ],
)
def test_packages_outside_containers_are_of_one_row(plan, nodes, python, packages, expected):
    plan["engine"].update(version="0.18.0", environment={"path": "/opt/a", "python": python, "packages": packages})
    told = [one for one in preflight.judge(plan, nodes, TABLE) if one["id"] == "B05"]
    assert [(one["severity"], one["host"]) for one in told] == ([("error", None)] if expected else [])
    assert expected is None or expected in told[0]["summary"]


def test_an_engine_outside_containers_needs_no_container_engine(plan, nodes):
    plan["engine"].update(environment={"path": "/opt/ascent"}, image=None, images=[])
    for process in plan["processes"]:
        process["container"] = None
    for one in nodes.values():
        one["container_engine"].update(running=False, inspected={})
        one["system"]["limits"]["container_engine"]["nofile"] = 1024
        one["system"]["selinux"] = "enforcing"
    assert found(plan, nodes)[0] == []
    nodes["n001"]["system"]["shm_mb"] = 64
    assert found(plan, nodes)[0] == [("D13", "error", "n001")]


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    plan = copy.deepcopy(_plan("qwen3-32b-agg-8xtp2-h200", 2, "x86_64"))
    nodes = {host: ready_nodes.node(plan, host) for host in plan["hosts"]}
    for one in nodes.values():
        # As on a host that never saw an NPU.
        one["npu"] = {**dict.fromkeys(one["npu"]), "device_files": [], "error": "npu-smi: not found"}
        one["system"].update(machine="x86_64", os={"id": "ubuntu", "version": "24.04"})
        one["gpu"] = {
            "tool": "/usr/bin/nvidia-smi",
            "driver": "580.95.05",
            "error": None,
            "devices": [
                {"index": n, "name": "NVIDIA H200", "uuid": f"GPU-{n}", "memory_total_mb": 143771, "memory_used_mb": 4}
                for n in range(8)
            ],
        }
    return plan, nodes


def test_gpus_are_judged_by_their_own_driver_and_no_npu_is_missed(gpu):
    plan, nodes = gpu
    assert found(plan, nodes, table=GPU_TABLE)[0] == []
    nodes["n001"]["gpu"]["driver"] = "570.172.08"
    told, first = found(plan, nodes, table=GPU_TABLE)
    assert told == [("B09", "error", "n001"), ("gpu-driver", "error", "n001")]
    first = next(one for one in preflight.judge(plan, nodes, GPU_TABLE) if one["id"] == "gpu-driver")
    assert "driver 570.172.08 of n001 and CUDA 13.0 of dynamo 1.3.1 do not fit: 580" in first["summary"]
    nodes["n001"]["gpu"]["driver"] = "580.95.05"
    plan["engine"]["version"] = "1.1.1"
    for one in nodes.values():
        one["gpu"]["driver"] = "570.172.08"
    assert found(plan, nodes, table=GPU_TABLE)[0] == [("gpu-driver", "warning", host) for host in plan["hosts"]]


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda one: one.update(gpu=None), "gpu-driver"),
        (lambda one: one["gpu"].update(driver=None, devices=[], error="NVIDIA-SMI has failed"), "gpu-driver"),
        (lambda one: one["gpu"]["devices"].pop(), "A10"),
        (lambda one: one["gpu"]["devices"][0].update(memory_used_mb=90_000), "A11"),
    ],
)
def test_each_fault_of_a_gpu_host_is_one_finding(gpu, harm, expected):
    plan, nodes = gpu
    harm(nodes["n001"])
    assert found(plan, nodes, table=GPU_TABLE)[0] == [(expected, "error", "n001")]


# -- hccn.conf ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def a2():
    plan = copy.deepcopy(_plan("qwen3-235b-a22b-dp2", 2, hardware="atlas-800-a2"))
    nodes = {host: ready_nodes.node(plan, host) for host in plan["hosts"]}
    for index, one in enumerate(nodes.values()):
        one["npu"]["info"]["devices"] = [ready_nodes.device(number, phy_id=None) for number in range(8)]
        one["npu"]["hccn"] = {
            str(number): {"address": f"192.0.2.{8 * index + number + 1}", "netmask": "255.255.255.0"}
            for number in range(8)
        }
    return plan, nodes


def hccn(**entry):
    return lambda one: one["npu"]["hccn"]["3"].update(entry)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda one: None, []),
        (lambda one: one["npu"].update(hccn=None), [("C11", "warning", "n001")]),
        (lambda one: one["npu"]["hccn"].pop("3"), [("C11", "warning", "n001")]),
        (lambda one: one["npu"].update(hccn=None, hccn_error="hccn.conf: line 3"), [("D30", "error", "n001")]),
        (hccn(address="192.0.2.1"), [("C12", "error", None)]),
        (hccn(address="somewhere"), [("C13", "error", "n001")]),
        (hccn(netmask=""), [("C13", "error", "n001")]),
        (hccn(gateway="198.51.100.1"), [("C13", "error", "n001")]),
        (hccn(gateway="192.0.2.254"), []),
        (hccn(gateway="nowhere"), [("C13", "error", "n001")]),
    ],
)
def test_addresses_of_the_device_ports(a2, harm, expected):
    plan, nodes = a2
    plan["engine"]["version"] = None
    harm(nodes["n001"])
    assert [one for one in found(plan, nodes)[0] if one[0] != "release-unknown"] == expected


# -- catalogue of findings --------------------------------------------------------------------------------------------


def told_by_code() -> dict[str, set[str]]:
    """Ids that the checks' code can tell, with what it calls to tell them."""
    ids: dict[str, set[str]] = {}
    for path in (ROOT / "module_utils" / "ascent" / "preflight").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                call = node.func.id
                for part in ast.walk(node.args[0]) if call in ("error", "warning", "info", "tell") else ():
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        ids.setdefault(part.value, set()).add(call)
    return ids


def test_every_finding_is_explained_with_an_example_and_a_source():
    entries = {entry["id"]: entry for entry in signatures.checks(of="preflight")}
    told = told_by_code()
    # Ports and files choose their id by what they are for, features by their row in the version table.
    by_value = {"A06", "A19", "D01", "D02", "D31", "E01", "mount-absent"}
    by_value |= {one["finding"] for one in TABLE["features"].values() if "finding" in one}
    told.pop("finding")
    assert set(entries) == set(told) | by_value
    for name, calls in told.items():
        if "error" in calls:
            assert entries[name]["severity"] == "error", name
        elif "tell" not in calls:
            assert entries[name]["severity"] != "error", name


def test_a_malformed_entry_is_refused(tmp_path):
    (tmp_path / "x.yml").write_text("checks: [{id: a, severity: bad, colour: red}, {id: a}]\n")
    with pytest.raises(InputError) as caught:
        signatures.checks(tmp_path)
    text = str(caught.value)
    assert "colour" in text
    assert "severity is 'bad'" in text
    assert "twice" in text


# -- repairs, table ----------------------------------------------------------------------------------------------------


def test_repairs_are_those_whose_setting_is_on():
    assert preflight.repairs({}) == []
    given = {"images": True, "driver": "/srv/ascend", "cann": " ", "weights": "no", "firewall": None}
    assert preflight.repairs(given) == ["driver", "images"]
    with pytest.raises(ValueError, match="magic"):
        preflight.repairs({"magic": True})


def test_the_table_has_a_row_for_every_host(plan, nodes):
    nodes["n001"]["npu"]["info"]["devices"][5].update(health="Alarm", hbm_used_mb=65536)
    nodes["n002"] = None
    findings = preflight.judge(plan, nodes, TABLE)
    offsets = {"n000": {"offset": 0.04, "uncertainty": 0.1}}
    table = preflight.overview(plan, nodes, findings, offsets)
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert rows["n000"]["found"] == "ready"
    assert (rows["n000"]["system"], rows["n000"]["driver"], rows["n000"]["clock"]) == (
        "openEuler 22.03",
        "25.5.2",
        "+0.0 ±0.1 s",
    )
    assert (rows["n001"]["devices"], rows["n001"]["found"]) == ("15/16", "A09, A11")
    assert rows["n000"]["HBM free"] - rows["n001"]["HBM free"] == pytest.approx((65536 - 3100) / 1024, abs=1)
    assert rows["n002"]["found"] == "host-unreadable"
    assert rows["n002"]["system"] is None
