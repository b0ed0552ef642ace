"""What the launch plan asks of its hosts, and the profiles that the role has for them."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ascent import tuning
from ascent_controller import planning, render
from ascent_controller import tuning as needs

ROLE = Path(__file__).parents[2] / "roles/host_tuning"
SEED = {"vm.swappiness": 0, "kernel.numa_balancing": 0, "kernel.sched_migration_cost_ns": 50000}


@pytest.fixture(scope="module")
def pd_plan() -> dict:
    recipe = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3"
    return planning.prepare(recipe, planning.stand_ins("3"), cluster="a3", mirror="", sources=[])[0]


def test_names_are_those_of_inventory_and_host(pd_plan: dict) -> None:
    hostnames = ["node-01", "kunpeng-7.site", None]
    facts = [{"ascent_node": {"system": {"hostname": name}}} if name else {} for name in hostnames]
    assert needs.host_names(pd_plan, list(pd_plan["hosts"]), facts) == [
        {"address": "192.0.2.1", "names": ["node-01"]},
        {"address": "192.0.2.2", "names": ["node-02", "kunpeng-7.site", "kunpeng-7"]},
        {"address": "192.0.2.3", "names": ["node-03"]},
    ]


def test_a_host_needs_what_its_processes_use(pd_plan: dict) -> None:
    node = {"npu": {"info": {"devices": [{"bus_id": "0000:C1:00.0"}, {"bus_id": "0000:C1:00.0"}, {"bus_id": None}]}}}
    found = needs.needs(pd_plan, "node-01", node)
    assert found == {
        "reserved_ports": pd_plan["hosts"]["node-01"]["reserved_ports"],
        "shm_mb": 0,
        "hosts": [],
        "addresses": ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
        "endpoint_ports": ["8010"],
        "nic": "eth0",
        "npu_buses": ["0000:C1:00.0"],
        "jemalloc": False,
    }
    assert needs.needs(pd_plan, "node-02", None)["endpoint_ports"] == []


def test_processes_that_share_the_hosts_memory_want_as_much_as_a_container_has(pd_plan: dict) -> None:
    plan = copy.deepcopy(pd_plan)
    mine = [process for process in plan["processes"] if process["host"] == "node-01"]
    mine[0]["container"]["ipc"] = "host"
    assert [process["role"] for process in mine] == ["prefill", "router"]
    assert needs.needs(plan, "node-01", None)["shm_mb"] == 1024
    mine[0]["container"] = None
    mine[0]["env"].append({"name": "LD_PRELOAD", "prepend": "/usr/lib64/libjemalloc.so.2"})
    found = needs.needs(plan, "node-01", None)
    assert (found["shm_mb"], found["jemalloc"]) == (1024, True)


@pytest.mark.parametrize(
    ("tag", "arch", "path"),
    [
        ("v0.21.0rc1", "aarch64", "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2"),
        ("v0.21.0rc1", "x86_64", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
        ("v0.21.0rc1", "arm64", "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2"),
        ("v0.21.0rc1-openeuler", "aarch64", "/usr/lib64/libjemalloc.so.2"),
        ("v0.21.0rc1-openeuler", "x86_64", "/usr/lib64/libjemalloc.so.2"),
    ],
)
def test_jemalloc_is_preloaded_from_where_the_image_has_it(tmp_path: Path, tag: str, arch: str, path: str) -> None:
    """Debian's families keep it by architecture, openEuler does not; vLLM-Ascend's Dockerfiles install it in both."""
    recipe = tmp_path / "any.yml"
    image = f"quay.io/ascend/vllm-ascend:{tag}"
    recipe.write_text(f"extends: qwen3.5-397b-a17b-w8a8-128k-a3\nname: any\nengine: {{image: '{image}'}}\n")
    hosts = [planning.complete_host(host, None) for host in planning.stand_ins("1", arch=arch)]
    plan, findings = planning.prepare(str(recipe), hosts, cluster="a3", mirror="", sources=[])
    assert plan is not None, findings
    script = next(iter(render.files(plan)["node-01"].values()))
    assert set(re.findall(r"/[\w/-]*libjemalloc\.so\.2", script)) == {path}
    assert f"if [ -e {path} ]" in script
    assert f'export LD_PRELOAD={path}"${{LD_PRELOAD:+:${{LD_PRELOAD}}}}"' in script


def test_without_a_router_every_instance_is_an_endpoint() -> None:
    plan, _ = planning.prepare("qwen3-235b-a22b-dp2", planning.stand_ins("2"), cluster="a3", mirror="", sources=[])
    ports = [needs.needs(plan, host, None)["endpoint_ports"] for host in plan["hosts"]]
    assert ports == [["8000"], []]


def arguments(**given: object) -> dict:
    """The module's arguments, as Ansible makes them of the role's variables."""
    variables: dict = {}
    for part in ("defaults", "vars"):
        variables.update(yaml.safe_load((ROLE / part / "main.yml").read_text()))
    templar = Templar(DataLoader(), {name: _trusted(value) for name, value in {**variables, **given}.items()})
    found: dict = templar.template(_trusted(variables["_host_tuning_arguments"]))
    return found


def _trusted(value: object) -> object:
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trusted(one) for key, one in value.items()}
    return [_trusted(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("profile", ["throughput", "latency"])
def test_profiles_hold_the_seeds_values_and_are_valid(profile: str) -> None:
    found = arguments(host_tuning_profile=profile)
    assert found["governor"] == "performance"
    assert {name: found["sysctl"].get(name) for name in SEED} == SEED
    assert found["limits"] == {"nofile": 1048576, "memlock": "unlimited"}
    for only_here in ("ntp_wait",):
        found.pop(only_here)
    assert tuning.wanted(**found)["hugepages"] == found["hugepages"]


def test_the_profile_none_touches_no_knob() -> None:
    found = arguments(host_tuning_profile="none", host_tuning_plan={"reserved_ports": ["8000"]})
    assert (found["governor"], found["sysctl"], found["hugepages"], found["limits"]) == ("", {}, {}, {})
    assert found["reserved_ports"] == ["8000"]


def test_a_profile_is_overridden_knob_by_knob() -> None:
    found = arguments(
        host_tuning_governor="",
        host_tuning_sysctl={"vm.swappiness": 10, "kernel.numa_balancing": None, "vm.max_map_count": 262144},
        host_tuning_hugepages={"enabled": "never"},
        host_tuning_limits={"nofile": None},
    )
    found.pop("ntp_wait")
    wish = tuning.wanted(**found)
    assert wish["governor"] == ""
    assert wish["sysctl"] == {
        "vm.swappiness": "10",
        "kernel.sched_migration_cost_ns": "50000",
        "vm.max_map_count": "262144",
    }
    assert wish["hugepages"] == {"enabled": "never", "defrag": "madvise"}
    assert wish["limits"] == {"memlock": "unlimited"}


def test_the_plan_and_the_site_are_put_together() -> None:
    plan = {
        "reserved_ports": ["8000"],
        "shm_mb": 1024,
        "hosts": [{"address": "192.0.2.1", "names": ["a3-01"]}],
        "addresses": ["192.0.2.1"],
        "endpoint_ports": ["8000"],
        "nic": "eth0",
        "npu_buses": ["0000:c1:00.0"],
        "jemalloc": False,
    }
    site = {"host_tuning_reserved_ports": ["9100"], "host_tuning_shm_mb": 4096, "host_tuning_irq_affinity": True}
    found = arguments(host_tuning_plan=plan, **site)
    assert found["reserved_ports"] == ["9100", "8000"]
    assert found["shm_mb"] == 4096
    assert found["irq_devices"] == ["0000:c1:00.0"]
    assert found["firewall"]["sources"] == ["192.0.2.1"]
    off = arguments(host_tuning_plan=plan, host_tuning_firewall=False, host_tuning_hosts_file=False)
    assert (off["firewall"], off["hosts"], off["irq_devices"]) == ({}, [], [])
