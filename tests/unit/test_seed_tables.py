"""Seeds 000 and 001 give tables and components instead of scripts: all of them are in what is rendered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ascent_controller import planning, render
from tests.unit import planning_inputs as inputs
from tests.unit import seed_scripts as scripts


def rendered(recipe: str, nodes: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The plan, and every script read back by the process's name, with its host and container."""
    plan, found = planning.prepare(recipe, planning.stand_ins(nodes), cluster="seeds")
    assert plan is not None, found
    assert [item for item in found if item["severity"] != "info"] == []
    files = render.files(plan)
    return plan, {
        one["name"]: {
            **scripts.read_script(files[one["host"]][f"{one['name']}.sh"]),
            "host": one["host"],
            "kind": one["kind"],
            "container": one["container"],
            "health": one["health"],
        }
        for one in [*plan["processes"], *plan["jobs"]]
    }


# -- seed 000 ----------------------------------------------------------------------------------------------------------

INFERNEX = {
    "--served-model-name": "Qwen/Qwen3-32B",
    "--tensor-parallel-size": 4.0,
    "--max-model-len": 40960.0,
    "--max-num-batched-tokens": 40960.0,
    "--gpu-memory-utilization": 0.8,
    "--block-size": 128.0,
    "--enable-prefix-caching": None,
    "--enable-prompt-tokens-details": None,
    "--trust-remote-code": None,
}


@pytest.mark.parametrize("recipe", ["qwen3-32b-agg-base-910b4", "qwen3-32b-agg-mc-kv-910b4"])
def test_both_specs_run_the_same_engines_on_the_same_cards(recipe):
    plan, found = rendered(recipe, 1)
    engines = [found[name] for name in ("serve-0-head", "serve-1-head")]
    for engine in engines:
        assert {flag: engine["flags"][flag] for flag in INFERNEX} == INFERNEX
        assert engine["container"]["image"] == "quay.io/ascend/vllm-ascend:v0.18.0-openeuler"
        assert engine["container"]["shm_size"] == "24g"
        assert (engine["env"]["HF_HUB_OFFLINE"], engine["env"]["VLLM_USE_V1"]) == ("1", "1")
    assert [engine["env"]["ASCEND_RT_VISIBLE_DEVICES"] for engine in engines] == ["0,1,2,3", "4,5,6,7"]
    assert [engine["flags"]["--port"] for engine in engines] == [8000.0, 8001.0]
    assert len(plan["instances"]) == 2
    assert found["router"]["program"] == ["vllm-router"]
    assert found["router"]["flags"]["--worker-urls"] == ["http://192.0.2.1:8000", "http://192.0.2.1:8001"]


def test_the_base_spec_has_no_store_and_no_index():
    _, found = rendered("qwen3-32b-agg-base-910b4", 1)
    assert {one["kind"] for one in found.values()} == {"head", "router", "job"}
    assert found["router"]["flags"]["--policy"] == "random"
    for name in ("serve-0-head", "serve-1-head"):
        assert not {"--kv-transfer-config", "--kv-events-config"} & set(found[name]["flags"])


def test_the_store_spec_has_store_metadata_events_and_index():
    _, found = rendered("qwen3-32b-agg-mc-kv-910b4", 1)
    assert {one["kind"] for one in found.values()} == {"head", "router", "job", "kv-store", "metadata"}
    for number in (0, 1):
        engine = found[f"serve-{number}-head"]
        transfer = engine["flags"]["--kv-transfer-config"]
        assert (transfer["kv_connector"], transfer["kv_role"]) == ("AscendStoreConnector", "kv_both")
        # Engines that share a host must not share the name of their lookup socket.
        assert transfer["kv_connector_extra_config"] == {"backend": "mooncake", "lookup_rpc_port": str(number)}
        assert engine["flags"]["--prefix-caching-hash-algo"] == "sha256_cbor"
        assert engine["flags"]["--kv-events-config"] == {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "topic": "kv-events",
            "endpoint": f"tcp://*:{5557 + number}",
        }
        wanted = {
            "PYTHONHASHSEED": "0",
            "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "1",
            "HCCL_INTRA_ROCE_ENABLE": "1",
            "HCCL_IF_IP": "192.0.2.1",
            "HCCL_SOCKET_IFNAME": "eth0",
            "LD_LIBRARY_PATH": {"before": "/usr/local/lib"},
        }
        assert {name: engine["env"][name] for name in wanted} == wanted
        assert "/etc/hccn.conf" in [mount["target"] for mount in engine["container"]["mounts"]]
    master = found["kv-store"]
    assert master["program"] == ["mooncake_master"]
    assert master["flags"] == {
        "--port": 50051.0,
        "--metrics_port": 9003.0,
        "--eviction_high_watermark_ratio": 0.9,
        "--eviction_ratio": 0.1,
        "--default_kv_lease_ttl": 11000.0,
    }
    assert master["container"]["image"] == found["serve-0-head"]["container"]["image"]
    router = found["router"]["flags"]
    assert (router["--policy"], router["--kv-event-block-size"]) == ("kv_aware", 128.0)
    assert router["--kv-event-model"] == "Qwen/Qwen3-32B"
    assert router["--kv-event-source"] == [
        "http://192.0.2.1:8000=tcp://192.0.2.1:5557",
        "http://192.0.2.1:8001=tcp://192.0.2.1:5558",
    ]


def test_the_store_is_told_to_the_engines():
    plan, _ = rendered("qwen3-32b-agg-mc-kv-910b4", 1)
    head = next(one for one in plan["processes"] if one["name"] == "serve-0-head")
    settings = json.loads(head["files"][0]["text"])
    assert settings["master_server_address"] == "192.0.2.1:50051"
    assert settings["metadata_server"] == "redis://192.0.2.1:6379"
    assert (settings["protocol"], settings["device_name"]) == ("ascend", "")
    assert settings["global_segment_size"] == 40 * 1024**3


def test_twice_the_cards_take_twice_the_replicas(tmp_path):
    file = tmp_path / "wider.yml"
    file.write_text(
        "name: wider\nextends: qwen3-32b-agg-mc-kv-910b4\nsummary: four replicas on two servers\n"
        "pools: {serve: {instances: 4}}\n"
    )
    plan, found = planning.prepare(str(file), planning.stand_ins(2), cluster="seeds")
    assert plan is not None, found
    assert [one["hosts"] for one in plan["instances"]] == [["node-01"], ["node-01"], ["node-02"], ["node-02"]]


# -- seed 001 ----------------------------------------------------------------------------------------------------------

DYNAMO = {
    "--model": "Qwen/Qwen3-32B",
    "--tensor-parallel-size": 2.0,
    "--no-enable-log-requests": None,
    "--gpu-memory-utilization": 0.9,
    "--async-scheduling": None,
    "--block-size": 64.0,
    "--max-model-len": 131072.0,
    "--hf-overrides": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        "max_position_embeddings": 131072,
    },
}
IMAGE = "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1"
FRONTEND = ["python3", "-m", "dynamo.frontend"]
WORKER = ["python3", "-m", "dynamo.vllm"]


def workers(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in found.items() if one["program"] == WORKER}


@pytest.mark.parametrize("recipe", ["qwen3-32b-agg-8xtp2-h200", "qwen3-32b-disagg-6p2d-h200"])
def test_both_configurations_use_all_sixteen_devices(recipe):
    _, found = rendered(recipe, 2)
    used = []
    for one in workers(found).values():
        assert {flag: one["flags"][flag] for flag in DYNAMO} == DYNAMO
        assert one["container"]["image"] == IMAGE
        assert one["env"]["DYN_HEALTH_CHECK_ENABLED"] == "false"
        used += [(one["host"], device) for device in one["env"]["CUDA_VISIBLE_DEVICES"].split(",")]
    assert sorted(used) == sorted((f"node-0{node}", str(device)) for node in (1, 2) for device in range(8))
    assert found["frontend"]["program"] == FRONTEND
    assert "--router-reset-states" in found["frontend"]["flags"]
    trace = found["trace"]
    wanted = {
        "--model": "Qwen/Qwen3-32B",
        "--custom-dataset-type": "mooncake_trace",
        "--fixed-schedule": None,
        "--streaming": None,
        "--url": "http://192.0.2.1:8000",
        "--goodput": "time_to_first_token:2000 inter_token_latency:25",
    }
    assert trace["program"] == ["aiperf", "profile"]
    assert {flag: trace["flags"][flag] for flag in wanted} == wanted
    assert trace["flags"]["--input-file"].endswith("/conversation_trace.jsonl")
    assert trace["flags"]["--artifact-dir"].startswith("/perf-cache/artifacts/")


def test_the_control_is_eight_equal_workers_in_turn():
    _, found = rendered("qwen3-32b-agg-8xtp2-h200", 2)
    assert len(workers(found)) == 8
    for one in workers(found).values():
        assert not {"--disaggregation-mode", "--kv-transfer-config", "--kv-events-config"} & set(one["flags"])
    assert found["frontend"]["flags"]["--router-mode"] == "round-robin"


def test_the_split_is_three_of_prefill_and_one_of_decode_on_each_node():
    _, found = rendered("qwen3-32b-disagg-6p2d-h200", 2)
    roles = sorted((one["host"], one["flags"]["--disaggregation-mode"]) for one in workers(found).values())
    assert roles == sorted([(f"node-0{node}", role) for node in (1, 2) for role in ["prefill"] * 3 + ["decode"]])
    assert found["frontend"]["flags"]["--router-mode"] == "kv"
    for one in workers(found).values():
        assert one["flags"]["--kv-transfer-config"] == {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        prefill = one["flags"]["--disaggregation-mode"] == "prefill"
        assert ("--kv-events-config" in one["flags"]) == prefill
        assert ("--no-enable-prefix-caching" in one["flags"]) != prefill
    events = [
        (one["host"], one["flags"]["--kv-events-config"]["endpoint"])
        for one in workers(found).values()
        if "--kv-events-config" in one["flags"]
    ]
    assert sorted(events) == [(f"node-0{node}", f"tcp://*:{port}") for node in (1, 2) for port in (20080, 20081, 20082)]


# -- reference figures -------------------------------------------------------------------------------------------------

FIGURES = {
    "qwen3-32b-agg-base-910b4": {
        "system-prompts": {"ttft_ms": 1328, "itl_ms": 71.4, "e2e_ms": 10391, "total_throughput": 3120},
        "multi-turn": {"ttft_ms": 4612, "itl_ms": 95.9, "e2e_ms": 16791, "total_throughput": 4270},
    },
    "qwen3-32b-agg-mc-kv-910b4": {
        "system-prompts": {"ttft_ms": 445, "itl_ms": 68.7, "e2e_ms": 9165, "total_throughput": 3558},
        "multi-turn": {"ttft_ms": 1663, "itl_ms": 77.3, "e2e_ms": 11481, "total_throughput": 6498},
        "multi-turn-cold": {"ttft_ms": 3500},
        "multi-turn-warm": {"ttft_ms": 760, "e2e_ms": 9900},
    },
    "qwen3-235b-a22b-w8a8-perf-a3": {
        "performance": {"ttft_ms": 4717.45, "tpot_ms": 48.69, "output_throughput": 2761.72},
        "ceval": {"accuracy": 91.16},
    },
    "qwen3-235b-a22b-w8a8-pd-1p1d-a3": {
        "performance": {"ttft_ms": 3735.98, "tpot_ms": 52.07, "output_throughput": 8593.44},
    },
    "qwen3-32b-w8a8-a3": {
        "gsm8k": {"accuracy": 96.44},
        "math500": {"accuracy": 97.60},
        "aime": {"accuracy": 76.67},
    },
    **{
        f"qwen3.5-397b-a17b-w8a8-{layout}": {"gsm8k": {"accuracy": 96.74}}
        for layout in ("128k-a3", "dp2-a2", "pd-1p1d-a3")
    },
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_seeds_figures_are_with_the_recipe_that_yields_them(name):
    recipe = inputs.recipe(name)
    assert {key: row["figures"] for key, row in recipe["reference"].items()} == FIGURES[name]
    assert {row["job"] for row in recipe["reference"].values()} <= set(recipe["jobs"])
