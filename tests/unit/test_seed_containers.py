"""Rows A1 to A25 and B6 to B18 of the acceptance list: what containers and scripts of all shipped recipes have."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml

from ascent import layout, planner
from ascent_controller import loader, render
from ascent_controller.loader import ROOT
from tests.unit import planning_inputs as inputs
from tests.unit import seed_scripts as scripts

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yml") if "engine" in yaml.safe_load(path.read_text()))
MANAGERS = ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"]
DRIVER = [
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/Ascend/driver/lib64/",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
]


@functools.cache
def plan_of(name: str, hardware: str | None = None, mirror: str = "") -> dict[str, Any]:
    recipe = inputs.recipe(name)
    count = sum(pool["hosts_needed"] for pool in layout.pools_of(recipe))
    hosts = [{**one, **({"hardware": hardware} if hardware else {})} for one in inputs.hosts(count)]
    return planner.plan(recipe, inputs.hardware(), hosts, cluster="c1", mirror=mirror)


def engines(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The processes that hold NPUs."""
    return [one for one in plan["processes"] if one["devices"] and plan["hosts"][one["host"]]["vendor"] == "ascend"]


ON_NPUS = [name for name in RECIPES if engines(plan_of(name))]


def test_the_image_follows_the_machine_and_the_site():
    """A1 to A3: the same tag, with -a3 on A3, from a mirror, on openEuler."""
    reference = "quay.io/ascend/vllm-ascend:v0.11.0rc2"
    by_hardware = {
        hardware: engines(plan_of("qwen3-235b-a22b-dp2", hardware))[0]["container"]["image"]
        for hardware in ("atlas-800-a2", "atlas-800-a3")
    }
    assert by_hardware == {"atlas-800-a2": reference, "atlas-800-a3": reference + "-a3"}
    mirrored = engines(plan_of("qwen3-235b-a22b-dp2", "atlas-800-a3", "m.daocloud.io"))
    assert {one["container"]["image"] for one in mirrored} == {f"m.daocloud.io/{reference}-a3"}
    openeuler = engines(plan_of("qwen3-32b-agg-base-910b4"))
    assert {one["container"]["image"] for one in openeuler} == {"quay.io/ascend/vllm-ascend:v0.18.0-openeuler"}


@pytest.mark.parametrize("name", ON_NPUS)
def test_every_container_of_an_engine_has_devices_driver_and_weights(name):
    """A5 to A11 and B14."""
    plan = plan_of(name)
    several = len({one["host"] for one in engines(plan)}) > 1
    for process in engines(plan):
        container = process["container"]
        numbers = [device for device in container["devices"] if device not in MANAGERS]
        profile = inputs.hardware()[plan["hosts"][process["host"]]["hardware"]]
        assert container["devices"][-3:] == MANAGERS
        assert {f"/dev/davinci{number}" for number in process["devices"]} <= set(numbers)
        assert len(numbers) in (len(process["devices"]), profile["devices"])
        mounts = {one["source"]: one["target"] for one in container["mounts"]}
        assert {path: path for path in DRIVER}.items() <= mounts.items()
        if several:
            assert "/usr/local/Ascend/driver/tools/hccn_tool" in mounts
        directory = plan["model"]["directory"]
        assert any(directory.startswith(source) for source in mounts)
        parallel = process["parallel"]
        if process["kind"] in ("head", "headless", "rank") and parallel["nodes"] == 1:
            each = parallel["tensor"] * parallel["pipeline"] * parallel["prefill_context"]
            assert len(process["devices"]) == each * parallel["data_local"]


@pytest.mark.parametrize(
    ("name", "hardware", "count"),
    [("qwen3-235b-a22b-dp2", "atlas-800-a2", 8), ("qwen3.5-397b-a17b-w8a8-128k-a3", "atlas-800-a3", 16)],
)
def test_all_devices_of_a_node_are_eight_on_a2_and_sixteen_on_a3(name, hardware, count):
    """A5."""
    for process in engines(plan_of(name, hardware)):
        names = [device for device in process["container"]["devices"] if device not in MANAGERS]
        assert names == [f"/dev/davinci{number}" for number in range(count)]


def test_options_of_the_container_are_the_seeds_and_can_be_set():
    """A12."""

    def options(plan: dict[str, Any]) -> str:
        process = engines(plan)[0]
        return render.files(plan)[process["host"]][f"{process['name']}.docker.sh"]

    recipe = inputs.recipe("qwen3-235b-a22b-dp2")
    hosts = inputs.hosts(2)
    text = options(planner.plan(recipe, inputs.hardware(), hosts, cluster="c1"))
    assert all(word in text for word in ("--rm", "--net=host", "--shm-size=1g", "--name"))
    recipe["container"] = {"shm_size": "16g", "privileged": True}
    text = options(planner.plan(recipe, inputs.hardware(), hosts, cluster="c1"))
    assert all(word in text for word in ("--shm-size=16g", "--privileged"))


def test_stages_come_in_the_order_of_the_documents():
    """A4, A17, A23: images and weights are there before anything is launched, on all nodes of the cluster."""
    road = [one["ansible.builtin.import_playbook"] for one in yaml.safe_load((ROOT / "deploy.yml").read_text())]
    stages = ("plan", "preflight", "provision", "tune", "verify", "launch", "check")
    assert [path for path in road if path.removeprefix("playbooks/").removesuffix(".yml") in stages] == [
        f"playbooks/{stage}.yml" for stage in stages
    ]
    (play,) = yaml.safe_load((ROOT / "playbooks" / "provision.yml").read_text())
    assert play["hosts"] == "clusters"
    roles = [next(iter(one.values()))["name"] for one in map(role_of, play["tasks"]) if one]
    assert roles.index("container_engine") < roles.index("images") < roles.index("weights")


def role_of(task: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in task.items() if key.endswith(("import_role", "include_role"))}


@pytest.mark.parametrize("name", ON_NPUS)
def test_weights_have_one_path_on_all_nodes_and_a_source(name):
    """A18 to A20."""
    plan = plan_of(name)
    assert plan["model"]["directory"].startswith("/")
    assert len({process["argv"][0][2] for process in engines(plan) if process["argv"][0][:2] == ["vllm", "serve"]}) <= 1
    assert set(loader.model(plan["model"]["id"])["weights"]) <= {"modelers", "modelscope", "huggingface"}
    told = {one["value"] for process in engines(plan) for one in process["env"] if one["name"] == "VLLM_USE_MODELSCOPE"}
    assert {str(value).lower() for value in told} == ({"true"} if plan["model"]["source"] == "modelscope" else set())


@pytest.mark.parametrize("name", ON_NPUS)
def test_every_engine_is_told_its_own_address_and_interface(name):
    """B11, and A25 for where they come from."""
    plan = plan_of(name)
    if len(plan["hosts"]) == 1:
        return
    for process in engines(plan):
        planned = plan["hosts"][process["host"]]
        env = {one["name"]: str(one.get("value")) for one in process["env"]}
        assert env["HCCL_IF_IP"] == planned["node_ip"]
        assert {env[f"{name}_SOCKET_IFNAME"] for name in ("GLOO", "TP", "HCCL")} == {planned["nic"]}


def test_cpu_binding_is_said_where_the_document_says_it():
    """B17 and B18."""
    recipe = {
        "name": "any",
        "model": {"id": "org/any", "served_name": "any"},
        "engine": {"name": "vllm-ascend", "image": "example.org/ascend/vllm-ascend:v0.18.0"},
        "hardware": "atlas-800-a3",
        "args": {"additional-config": {"enable_cpu_binding": True}},
        "pools": {"serve": {"tensor_parallel": 16}},
    }
    plan = planner.plan(recipe, inputs.hardware(), inputs.hosts(1), cluster="c1")
    script = scripts.read_script(render.files(plan)["n000"]["serve-0-head.sh"])
    assert script["flags"]["--additional-config"] == scripts.normal({"enable_cpu_binding": True})
