"""Every rule of the catalogue: at least one input that breaks it, at its place, and a neighbour that doesn't."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ascent import layout, planner, rules
from ascent.errors import InputError
from ascent.rules import live
from ascent_controller import loader
from tests.unit import planning_inputs as inputs

PD = inputs.PD
SINGLE = "qwen3.5-397b-a17b-w8a8-128k-a3"
DP2 = "qwen3-235b-a22b-dp2"

#: A dense model on one server, cache-aware routing over two instances with a store, and NVIDIA workers with NIXL.
DENSE: dict[str, Any] = {
    "name": "dense",
    "model": {"id": "Qwen/Qwen3-32B", "source": "huggingface", "served_name": "Qwen/Qwen3-32B"},
    "engine": {"name": "vllm-ascend", "image": "quay.io/ascend/vllm-ascend:v0.18.0"},
    "hardware": "atlas-800-a2",
    "env": {"PYTHONHASHSEED": 0},
    "args": {"max-model-len": 40960, "max-num-batched-tokens": 40960, "block-size": 128},
    "pools": {"serve": {"tensor_parallel": 4}},
}
STORE = {
    **DENSE,
    "name": "store",
    "args": {**DENSE["args"], "enable-prefix-caching": True},
    "pools": {"serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 4, "kv_events": True}},
    "kv_transfer": {"connector": "AscendStoreConnector"},
    "kv_store": {
        "kind": "mooncake",
        "args": {"default_kv_lease_ttl": 11000},
        "config": {"global_segment_size": "40GB"},
    },
    "router": {"kind": "vllm-router", "policy": "kv-aware", "args": {"kv-event-block-size": 128}},
}
NIXL = {
    **DENSE,
    "name": "nixl",
    "engine": {"name": "dynamo", "image": "registry.example.org/dynamo/vllm-runtime:1.3.1"},
    "hardware": "h200",
    "args": {"max-model-len": 40960, "block-size": 64},
    "pools": {
        "prefill": {"role": "prefill", "tensor_parallel": 2},
        "decode": {"role": "decode", "tensor_parallel": 2, "args": {"enable-prefix-caching": False}},
    },
    "kv_transfer": {"connector": "NixlConnector"},
    "router": {"kind": "dynamo", "args": {"router-reset-states": True}},
    "services": {"etcd": {"kind": "discovery", "command": ["etcd"], "ports": {"client": 2379}}},
}
OWN = {"dense": DENSE, "store": STORE, "nixl": NIXL}

FLASH = {"enable_flashcomm1": True}
YARN = {"rope_type": "yarn", "rope_theta": 1000000, "factor": 4, "original_max_position_embeddings": 32768}

LOAD = {"load": {"source": "a page", "job": "load", "conditions": {"requests": 1}, "figures": {"ttft_ms": 1}}}


class Case(NamedTuple):
    """``broken`` and ``sound`` are changes to a recipe, by key path; ``...`` takes a key away.

    ``model`` changes the catalogue's facts in both. ``hosts`` is applied to the hosts, ``plan`` to the plan, of the
    broken input only.
    """

    rule: str
    recipe: str
    broken: dict[str, Any]
    sound: dict[str, Any]
    evidence: str
    severity: str = "error"
    model: dict[str, Any] = {}  # noqa: RUF012 - never written
    hosts: Callable[[list[dict[str, Any]]], Any] | None = None
    plan: Callable[[dict[str, Any]], Any] | None = None


def first(plan: dict[str, Any], part: str) -> dict[str, Any]:
    return next(process for process in plan["processes"] if part in process["name"])


def setting(name: str, value: str, part: str = "decode") -> Callable[[dict[str, Any]], None]:
    def alter(plan: dict[str, Any]) -> None:
        next(entry for entry in first(plan, part)["env"] if entry["name"] == name)["value"] = value

    return alter


def kv_config(part: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    def alter(plan: dict[str, Any]) -> None:
        for process in plan["processes"]:
            for line in process["argv"]:
                if line[0] == "--kv-transfer-config" and part in process["name"]:
                    line[1] = json.dumps({**json.loads(line[1]), **values})

    return alter


CASES = [
    # secrets and open doors
    Case("secret-in-recipe", SINGLE, {"args/api-key": "k"}, {"args/max-model-len": 4096}, 'args.api-key = "***"'),
    Case(
        "secret-in-recipe", PD, {"router/env": {"OPENAI_API_KEY": "k"}}, {"router/env": {"A": "k"}}, "router.env.OPEN"
    ),
    Case("secret-in-recipe", PD, {"env/HF_TOKEN": "k"}, {"env/HF_TOKEN": None}, "env.HF_TOKEN"),
    Case(
        "secret-in-recipe",
        PD,
        {"pools/decode/overrides": [{"node": 0, "env": {"HF_TOKEN": "k"}}]},
        {"env/VLLM_MAX_TOKENS": 1},
        "pools.decode.overrides.0.env.HF_TOKEN",
    ),
    Case("engine-open", PD, {"args/host": "0.0.0.0"}, {}, 'args.host = "0.0.0.0"', "warning"),
    Case("engine-open", PD, {"security": {"bind": "any"}}, {"security": {"bind": "node"}}, "security.bind", "warning"),
    Case(
        "bind-contradicts",
        PD,
        {"args/host": "0.0.0.0", "security": {"bind": "node"}},
        {"args/host": "0.0.0.0", "security": {"bind": "any"}},
        'args.host = "0.0.0.0"',
    ),
    # hosts, devices, ranks
    Case("host-twice", DP2, {}, {}, "n000 = ", hosts=lambda hosts: hosts[1].update(hosts[0])),
    Case("host-address-twice", DP2, {}, {}, "n001.node_ip", hosts=lambda h: h[1].update(node_ip=h[0]["node_ip"])),
    Case("host-address-missing", SINGLE, {}, {}, "n000.node_ip = not set", hosts=lambda h: h[0].update(node_ip=None)),
    Case("host-address-local", DP2, {}, {}, "n000.node_ip", hosts=lambda h: h[0].update(node_ip="127.0.0.1")),
    Case("host-nic-missing", DP2, {}, {}, "n000.nic = not set", hosts=lambda h: h[0].update(nic=None)),
    Case("host-arch-missing", SINGLE, {}, {}, "n000.arch = not set", hosts=lambda h: h[0].update(arch=None)),
    Case("host-pool-unknown", PD, {}, {}, 'n002.pool = "decod"', hosts=lambda h: h[2].update(pool="decod")),
    Case("hosts-too-few", PD, {}, {}, "pools.decode.nodes = 2", hosts=lambda h: h.pop()),
    Case(
        "hosts-too-many", PD, {}, {}, "pools.prefill.nodes = 1", hosts=lambda h: [x.update(pool="prefill") for x in h]
    ),
    Case(
        "host-spare",
        SINGLE,
        {},
        {},
        "extra",
        "warning",
        hosts=lambda h: h.append({"name": "extra", "node_ip": "198.18.9.9", "nic": "eth0", "arch": "aarch64"}),
    ),
    Case("hardware-unknown", DP2, {"hardware": "atlas-800-a4"}, {"hardware": "atlas-800-a2"}, "hardware ="),
    Case(
        "dp-ranks-tile",
        PD,
        {"pools/decode/data_parallel": 15},
        {"pools/decode/data_parallel": 14},
        "data_parallel = 15",
    ),
    Case(
        "instance-shares-nodes",
        DP2,
        {"pools/serve/instances_per_node": 2},
        {"pools/serve/instances_per_node": 1},
        "instances_per_node = 2",
    ),
    Case("router-pool-unknown", PD, {"router/on": "prefil"}, {"router/on": "prefill"}, 'router.on = "prefil"'),
    Case(
        "devices-too-few", PD, {"pools/prefill/data_parallel": 9}, {"pools/prefill/data_parallel": 4}, "pools.prefill"
    ),
    Case("devices-too-few", SINGLE, {"hardware": "atlas-800-a2"}, {"hardware": "atlas-800-a3"}, "pools.serve"),
    Case("model-devices", SINGLE, {"pools/serve/tensor_parallel": 8}, {}, "pools.serve = 8", "warning"),
    Case(
        "model-devices", "dense", {"pools/serve/tensor_parallel": 2}, {}, "4 or more devices of atlas-800-a2", "warning"
    ),
    # One A3 NPU has two dies: what is recommended as one NPU may be one die of it.
    Case(
        "model-devices",
        "dense",
        {"model/id": "Qwen/Qwen3-32B", "hardware": "atlas-800-a3", "pools/serve/tensor_parallel": 2},
        {"model/id": "Qwen/Qwen3-8B", "hardware": "atlas-800-a3", "pools/serve/tensor_parallel": 1},
        "pools.serve = 2",
        "warning",
    ),
    Case(
        "model-devices",
        "dense",
        {"hardware": "atlas-800-a2-910b4-1", "pools/serve/tensor_parallel": 2},
        {"hardware": "atlas-800-a2-910b4-1"},
        "4 or more devices of atlas-800-a2-910b4-1",
        "warning",
    ),
    Case(
        "heads-divide",
        "dense",
        {"pools/serve/tensor_parallel": 4},
        {"pools/serve/tensor_parallel": 2},
        "tensor_parallel = 4; allowed: 1, 2, 3, 6",
        model={"figures": {"attention_heads": 24, "kv_heads": 6}},
    ),
    Case(
        "context-parallel-heads",
        "dense",
        {"pools/serve": {"tensor_parallel": 8, "decode_context_parallel": 2}},
        {"pools/serve": {"tensor_parallel": 16, "nodes": 2, "decode_context_parallel": 2}},
        "decode_context_parallel = 2; allowed: 1",
    ),
    Case(
        "context-parallel-interleave",
        "store",
        {"pools/serve/prefill_context_parallel": 2, "pools/serve/instances_per_node": 1},
        {
            "pools/serve/prefill_context_parallel": 2,
            "pools/serve/instances_per_node": 1,
            "args/cp-kv-cache-interleave-size": 128,
        },
        "args = 1; allowed: 128",
    ),
    Case(
        "dense-external-ranks",
        "dense",
        {
            "engine/image": "q.io/v:v0.21.0",
            "pools/serve": {"tensor_parallel": 4, "data_parallel": 2, "data_parallel_mode": "external"},
        },
        {
            "engine/image": "q.io/v:v0.21.0",
            "pools/serve": {"tensor_parallel": 4, "instances": 2, "instances_per_node": 2},
        },
        'data_parallel_mode = "external"; allowed: data_parallel: 1',
    ),
    Case("heads-divide", "dense", {"pools/serve/tensor_parallel": 3}, {}, "tensor_parallel = 3"),
    Case(
        "context-and-pipeline",
        PD,
        {"pools/prefill/prefill_context_parallel": 2, "pools/prefill/pipeline_parallel": 2},
        {"pools/prefill/prefill_context_parallel": 2},
        "pools.prefill.prefill_context_parallel = 2",
    ),
    Case(
        "context-parallel-tiles",
        DP2,
        {"pools/serve/decode_context_parallel": 3},
        {"pools/serve/decode_context_parallel": 4},
        "decode_context_parallel = 3",
    ),
    Case(
        "rank-spans-nodes",
        DP2,
        {"pools/serve/executor": "ray"},
        {"pools/serve/executor": "ray", "pools/serve/data_parallel": 1},
        'pools.serve.executor = "ray"',
    ),
    Case(
        "pool-shares-nodes",
        PD,
        {"pools/decode/share_nodes_with": "serve"},
        {
            "pools/prefill/data_parallel": 4,
            "pools/decode/nodes": 1,
            "pools/decode/data_parallel": 4,
            "pools/decode/share_nodes_with": "prefill",
        },
        'share_nodes_with = "serve"',
    ),
    Case(
        "override-matches-nothing",
        PD,
        {"pools/decode/overrides": [{"node": 2, "env": {"A": "b"}}]},
        {"pools/decode/overrides": [{"node": 1, "env": {"A": "b"}}]},
        "overrides.0.node = 2",
    ),
    Case("router-fits-engine", "nixl", {"router/kind": "vllm-router"}, {}, 'router.kind = "vllm-router"'),
    Case("router-fits-engine", "store", {"router/policy": "least-loaded"}, {}, 'router.policy = "least-loaded"'),
    Case(
        "engine-runtime",
        "dense",
        {"engine/runtime": "environment", "engine/environment": {"packages": ["vllm>=0.18", "vllm-ascend==0.18.0"]}},
        {"engine/runtime": "environment", "engine/environment": {"packages": ["vllm==0.18.0", "vllm-ascend==0.18.0"]}},
        "vllm==VERSION",
    ),
    Case("engine-runtime", "dense", {"engine/image": ...}, {}, "engine.image = not set"),
    Case("engine-runtime", "nixl", {"engine/runtime": "environment"}, {}, 'engine.runtime = "environment"'),
    Case("discovery-missing", "nixl", {"services": ...}, {}, "services = not set"),
    Case(
        "process-name-twice",
        "nixl",
        {"services/prefill-probe": {"kind": "service", "command": ["true"]}},
        {"services/probe": {"kind": "service", "command": ["true"]}},
        "services.prefill-probe",
    ),
    Case(
        "plan-reference-unknown",
        DP2,
        {"env/HEAD": "{{ plan.head_addr }}"},
        {"env/HEAD": "{{ plan.head_ip }}"},
        "env.HEAD",
    ),
    Case(
        "npu-shared",
        "dense",
        {"hardware": "atlas-800-a3", "pools/serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 1}},
        {"hardware": "atlas-800-a3", "pools/serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 2}},
        "pools.serve.tensor_parallel = 1",
        "warning",
    ),
    Case("derived-value-typed", DP2, {"args/headless": True}, {"args/data-parallel-size": 2}, "args.headless = true"),
    Case(
        "derived-value-typed",
        PD,
        {"kv_transfer/extra": {"decode": {"dp_size": 8}}},
        {"kv_transfer/extra": {"decode": {"dp_size": 16, "tp_size": 2}}},
        "kv_transfer.extra.decode.dp_size = 8",
    ),
    Case("plan-ranks", DP2, {}, {}, "pools.serve", plan=lambda p: p["processes"][1]["parallel"].update(start_rank=2)),
    Case("plan-ranks", PD, {}, {}, "pools.decode", plan=lambda p: first(p, "less-1")["parallel"].update(rpc_port=1)),
    Case("plan-devices", PD, {}, {}, "pools.prefill", plan=setting("ASCEND_RT_VISIBLE_DEVICES", "0,1", "prefill")),
    Case("plan-addresses", PD, {}, {}, "node_ip = ", plan=setting("HCCL_IF_IP", "192.0.2.1")),
    Case("plan-addresses", PD, {}, {}, "nic = ", plan=setting("GLOO_SOCKET_IFNAME", "eth9")),
    # ports
    Case("port-clash", PD, {"router/port": 30060}, {"router/port": 8010}, "pools.prefill.port = 30060"),
    Case("port-clash", PD, {"pools/decode/kv_port": 60010}, {"pools/decode/kv_port": 61000}, "decode.kv_port = 60010"),
    Case(
        "kv-ports-overlap",
        PD,
        {},
        {"pools/prefill/instances": 2, "pools/prefill/instances_per_node": 2, "pools/prefill/data_parallel": 4},
        "kv_port",
        plan=lambda p: first(p, "prefill")["ports"].append({"name": "kv", "first": 23020, "count": 2}),
    ),
    Case("port-range", DP2, {"pools/serve/port": 80}, {"pools/serve/port": 8080}, "pools.serve.port = 80"),
    Case("port-range", PD, {"pools/decode/kv_port": 65530}, {}, "pools.decode.kv_port = 655"),
    Case("port-ephemeral", DP2, {}, {}, "rpc_port", plan=lambda p: first(p, "head")["ports"][1].update(first=40000)),
    Case("port-in-store-range", "store", {"pools/serve/port": 13000}, {"pools/serve/port": 8000}, "= 13000", "warning"),
    Case(
        "kv-port-in-transport-window",
        PD,
        {"waive": ..., "pools/prefill/kv_port": 21000},
        {"waive": ..., "pools/prefill/kv_port": 36001, "pools/decode/kv_port": 36100},
        "pools.prefill.kv_port = 21000",
    ),
    Case(
        "kv-port-in-transport-window",
        PD,
        {"waive": ..., "engine/version": "v0.11.0rc2"},
        {"waive": ..., "kv_transfer/connector": "AscendStoreConnector"},
        "pools.prefill.kv_port = 23010",
    ),
    Case("dense-ranks-share-kv-ports", PD, {"model/id": "Qwen/Qwen3-8B"}, {}, "pools.prefill.data_parallel = 8"),
    Case(
        "lookup-port-shared",
        "store",
        {"kv_transfer/extra": {"lookup_rpc_port": "1"}},
        {"kv_transfer/extra": {"lookup_rpc_port": "1"}, "pools/serve/instances_per_node": 1},
        'lookup_rpc_port = "1"',
    ),
    Case(
        "bridge-network-ports", DP2, {"container/network": "bridge"}, {"container/network": "host"}, "container.network"
    ),
    # KV cache between engines
    Case("pd-incomplete", PD, {"kv_transfer": ...}, {}, "kv_transfer = not set"),
    Case("pd-incomplete", PD, {"pools/decode": ...}, {}, 'pools = ["prefill"]'),
    Case(
        "pd-sizes-differ",
        PD,
        {"pools/more": {"role": "prefill", "tensor_parallel": 4, "data_parallel": 4}},
        {"pools/more": {"role": "prefill", "tensor_parallel": 2, "data_parallel": 8}},
        "pools.more.tensor_parallel = 4",
    ),
    Case(
        "pd-tensor-parallel-ratio",
        PD,
        {"pools/decode/tensor_parallel": 4},
        {"pools/decode/tensor_parallel": 1},
        "decode.tensor_parallel = 4",
        model={"attention": "full"},
    ),
    Case(
        "pd-tensor-parallel-ratio",
        PD,
        {"pools/decode/tensor_parallel": 1},
        {"pools/decode/tensor_parallel": 2},
        "decode.tensor_parallel = 1",
    ),
    # NIXL maps sizes itself.
    Case(
        "pd-tensor-parallel-ratio",
        PD,
        {"pools/prefill/tensor_parallel": 1},
        {"pools/prefill/tensor_parallel": 1, "kv_transfer": {"connector": "NixlConnector"}},
        "decode.tensor_parallel = 2",
    ),
    Case("pd-decode-pipeline", PD, {"pools/decode/pipeline_parallel": 2}, {}, "decode.pipeline_parallel = 2"),
    Case("pd-decode-pipeline", PD, {"pools/decode/prefill_context_parallel": 2}, {}, "prefill_context_parallel = 2"),
    Case(
        "kv-role-fits",
        PD,
        {"pools/prefill/kv_transfer": {"kv_role": "kv_consumer"}},
        {"pools/prefill/kv_transfer": {"kv_role": "kv_producer"}},
        'kv_role = "kv_consumer"',
    ),
    Case("engine-id-unique", PD, {"kv_transfer/engine_id": "0"}, {}, 'engine_id = "0"'),
    Case("engine-id-unique", PD, {}, {}, "9, not set", plan=kv_config("headless", engine_id="9")),
    Case(
        "connector-fits-engine",
        PD,
        {"kv_transfer/connector": "NixlConnector"},
        {"kv_transfer/connector": "MooncakeConnectorV1", "router/kind": "pd"},
        'connector = "NixlConnector"',
    ),
    Case("connector-fits-engine", "nixl", {"kv_transfer/connector": "MooncakeLayerwiseConnector"}, {}, "Layerwise"),
    Case(
        "connector-fits-engine",
        PD,
        {"kv_transfer/connector": "LLMDataDistCMgrConnector"},
        {"kv_transfer/connector": "LLMDataDistCMgrConnector", "engine/version": "v0.11.0"},
        "LLMDataDist",
    ),
    Case("prefix-caching-in-pd", PD, {"args/enable-prefix-caching": True}, {}, "enable-prefix-caching = true"),
    Case("prefix-caching-in-pd", PD, {"args/enable-prefix-caching": ...}, {}, "args = not set"),
    # Dynamo's prefill workers use prefix caching, and a store is there to be found again.
    Case(
        "prefix-caching-in-pd",
        PD,
        {"args/enable-prefix-caching": True},
        {
            "args/enable-prefix-caching": True,
            "kv_transfer": {"connector": "MultiConnector", "connectors": [{"connector": "AscendStoreConnector"}]},
        },
        "enable-prefix-caching = true",
    ),
    Case(
        "recompute-scheduler",
        SINGLE,
        {"args/additional-config": {"recompute_scheduler_enable": True}},
        {"args/additional-config": {"recompute_scheduler_enable": False}},
        "additional-config.recompute_scheduler_enable = true",
    ),
    Case("recompute-scheduler", PD, {"engine/version": "v0.23.0"}, {}, "recompute_scheduler_enable", "warning"),
    Case(
        "finegrained-tensor-parallel",
        PD,
        {"args/additional-config": {"finegrained_tp_config": {"oproj_tensor_parallel_size": 8}}},
        {
            "pools/decode/args/additional-config": {
                "finegrained_tp_config": {"oproj_tensor_parallel_size": 8},
                "recompute_scheduler_enable": True,
            }
        },
        "finegrained_tp_config.oproj_tensor_parallel_size = 8",
    ),
    Case(
        "finegrained-tensor-parallel",
        PD,
        {"args/additional-config": {"finegrained_tp_config": {"mlp_tensor_parallel_size": 3}}},
        {"args/additional-config": {"finegrained_tp_config": {"mlp_tensor_parallel_size": 8}}},
        "finegrained_tp_config.mlp_tensor_parallel_size = 3; allowed: a divisor of data_parallel = 8",
    ),
    Case(
        "recompute-scheduler",
        PD,
        {"engine/version": "v0.25.1rc1", "pools/decode/kv_transfer": {"kv_role": "kv_both"}},
        {
            "engine/version": "v0.25.1rc1",
            "args/additional-config": {},
            "pools/decode/args/additional-config": {"scheduler_config": {"recompute_scheduler_enable": True}},
        },
        "additional-config.recompute_scheduler_enable = true; allowed: only with kv_role kv_consumer",
    ),
    Case(
        "recompute-scheduler",
        SINGLE,
        {"args/additional-config": {"scheduler_config": {"recompute_scheduler_enable": True}}},
        {"args/additional-config": {"scheduler_config": {"enable_balance_scheduling": True}}},
        "additional-config.scheduler_config.recompute_scheduler_enable = true",
    ),
    Case(
        "pd-connectors-differ",
        PD,
        {"pools/decode/kv_transfer": {"connector": "MooncakeConnectorV1"}},
        {
            "kv_transfer": {"connector": "MooncakeConnectorV1"},
            "pools/prefill/kv_transfer": {
                "connector": "MultiConnector",
                "connectors": [{"connector": "MooncakeConnectorV1"}, {"connector": "AscendStoreConnector"}],
            },
        },
        'pools.decode.kv_transfer.connector = ["MooncakeConnectorV1"]; allowed: MooncakeLayerwiseConnector',
    ),
    Case(
        "connector-fits-engine",
        "store",
        {"engine/version": "v0.11.0"},
        {"engine/version": "v0.11.0", "kv_transfer/connector": "MooncakeConnectorStoreV1"},
        'kv_transfer.connector = "AscendStoreConnector"',
    ),
    Case("hybrid-kv-cache-manager", PD, {"args/disable-hybrid-kv-cache-manager": ...}, {}, "args = not set"),
    Case(
        "pd-speculative-tokens",
        PD,
        {"pools/decode/args/speculative-config": {"method": "qwen3_5_mtp", "num_speculative_tokens": 1}},
        {},
        "speculative-config = 1",
    ),
    Case(
        "pd-batched-tokens",
        PD,
        {"pools/decode/args/max-num-batched-tokens": 4096},
        {},
        "pools.decode.args.max-num-batched-tokens = 4096",
        "warning",
    ),
    Case("pd-graphs", PD, {"pools/prefill/args/enforce-eager": ...}, {}, "args = null", "warning"),
    Case("pd-graphs", PD, {"pools/decode/args/enforce-eager": True}, {}, "decode.args.enforce-eager = true", "warning"),
    Case("hash-seed", "store", {"env/PYTHONHASHSEED": "random"}, {"env": {}}, 'env.PYTHONHASHSEED = "random"'),
    Case("hash-seed", "store", {"env": {}}, {"env": {}}, "= not set", plan=lambda p: first(p, "0-head")["env"].clear()),
    Case(
        "hash-seed",
        "store",
        {"pools/more": {"tensor_parallel": 4, "env": {"PYTHONHASHSEED": 1}, "kv_events": True}},
        {"pools/more": {"tensor_parallel": 4, "kv_events": True}},
        'env.PYTHONHASHSEED = "1"',
    ),
    # Decode workers of a split are not looked up, so their hashes are their own.
    Case(
        "hash-seed",
        "nixl",
        {"router": {"kind": "dynamo", "policy": "kv-aware"}, "kv_events": True, "env/PYTHONHASHSEED": "x"},
        {
            "router": {"kind": "dynamo", "policy": "kv-aware"},
            "pools/prefill/kv_events": True,
            "env": {},
            "pools/decode/env": {"PYTHONHASHSEED": "7"},
        },
        'PYTHONHASHSEED = "x"',
    ),
    Case(
        "multi-connector-order",
        PD,
        {
            "kv_transfer": {
                "connector": "MultiConnector",
                "connectors": [{"connector": "AscendStoreConnector"}, {"connector": "MooncakeConnectorV1"}],
            }
        },
        {
            "kv_transfer": {
                "connector": "MultiConnector",
                "connectors": [{"connector": "MooncakeConnectorV1"}, {"connector": "AscendStoreConnector"}],
            }
        },
        "kv_transfer.connectors",
    ),
    Case(
        "kv-load-failure-policy",
        PD,
        {"kv_transfer/kv_load_failure_policy": "recompute"},
        {"kv_transfer/kv_load_failure_policy": "fail"},
        'kv_load_failure_policy = "recompute"',
    ),
    Case(
        "store-lease",
        "store",
        {"env/ASCEND_TRANSFER_TIMEOUT": 20000},
        {"env/ASCEND_TRANSFER_TIMEOUT": 10000},
        "default_kv_lease_ttl = 11000",
    ),
    Case(
        "store-segment-size",
        "store",
        {"kv_store/config/global_segment_size": 1500000000},
        {"kv_store/config/global_segment_size": 42949672960},
        "global_segment_size = 1500000000",
    ),
    Case(
        "store-image-differs",
        "store",
        {"kv_store/image": "quay.io/ascend/vllm-ascend:v0.21.0rc1"},
        {"kv_store/image": "quay.io/ascend/vllm-ascend:v0.18.0"},
        "kv_store.image",
        "warning",
    ),
    Case(
        "finegrained-tensor-parallel",
        PD,
        {"pools/decode/args/additional-config": {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 16}}},
        {
            "pools/decode/args/additional-config": {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 16}},
            "pools/decode/tensor_parallel": 1,
        },
        "lmhead_tensor_parallel_size = 16",
        "warning",
    ),
    # routers
    Case("router-missing", PD, {"router": ...}, {}, "router = not set"),
    Case("router-without-sides", DP2, {"router": {"kind": "pd"}}, {}, 'router.kind = "pd"'),
    Case("router-matches-connector", PD, {"router/kind": "pd"}, {}, 'router.kind = "pd"'),
    Case(
        "router-matches-connector",
        PD,
        {"kv_transfer/connector": "MooncakeConnectorV1"},
        {"kv_transfer/connector": "MooncakeConnectorV1", "router/kind": "pd"},
        'router.kind = "pd-layerwise"',
    ),
    Case("router-on-prefill", PD, {"router/on": "decode"}, {}, 'router.on = "decode"', "warning"),
    Case(
        "router-backends",
        PD,
        {},
        {},
        "router.args",
        plan=lambda p: [line.append("30050") for line in first(p, "router")["argv"] if line[0] == "--decoder-ports"],
    ),
    Case("router-host-concrete", PD, {"router/args": {"host": "0.0.0.0"}}, {}, "router.args.host"),
    Case("served-name-tokenizer", "store", {"model/served_name": "qwen3"}, {}, 'served_name = "qwen3"'),
    Case("block-size-equal", "store", {"args/block-size": 64}, {}, "router.args.kv-event-block-size = 128"),
    Case("block-size-equal", "nixl", {"pools/decode/args/block-size": 16}, {}, "decode.args.block-size = 16"),
    Case("kv-events-published", "store", {"pools/serve/kv_events": False}, {}, "pools.serve.kv_events = false"),
    Case("kv-events-published", "store", {"args/enable-prefix-caching": False}, {}, "enable-prefix-caching = false"),
    Case(
        "kv-events-endpoint",
        "store",
        {"pools/serve/kv_events": {"endpoint": "tcp://127.0.0.1:5557"}},
        {"pools/serve/kv_events": {"endpoint": "tcp://*:5557"}},
        "kv_events.endpoint",
    ),
    Case(
        "trace-block-size",
        "nixl",
        {
            "jobs": {
                "load": {
                    "tool": "aiperf",
                    "args": {"custom-dataset-type": "mooncake_trace", "prompt-input-tokens-block-size": 96},
                }
            }
        },
        {"jobs": {"load": {"tool": "aiperf", "args": {"custom-dataset-type": "mooncake_trace"}}}},
        "jobs.load.args = 96",
        "warning",
    ),
    Case(
        "hash-algorithm-equal",
        "store",
        {
            "pools/more": {
                "tensor_parallel": 4,
                "kv_events": True,
                "args": {"prefix-caching-hash-algo": "sha256_cbor"},
            }
        },
        {"args/prefix-caching-hash-algo": "sha256_cbor"},
        "prefix-caching-hash-algo",
    ),
    Case("router-option-removed", "nixl", {"engine/version": "1.6.1"}, {}, "router.args.router-reset-states = true"),
    # graphs and switches
    Case(
        "capture-sizes-tensor-parallel",
        SINGLE,
        {"args/compilation-config": {"cudagraph_capture_sizes": [1, 8]}},
        {"args/compilation-config": {"cudagraph_capture_sizes": [16, 32]}},
        "cudagraph_capture_sizes = [1, 8]",
    ),
    Case(
        "capture-sizes-tensor-parallel",
        "dense",
        {
            "env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 1,
            "args/compilation-config": {"cudagraph_capture_sizes": [1, 8, 24]},
        },
        {"args/compilation-config": {"cudagraph_capture_sizes": [1, 8, 24]}},
        "multiples of 4, such as [8, 24]",
        "warning",
    ),
    Case(
        "capture-sizes-speculative",
        SINGLE,
        {"args/compilation-config": {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [4, 6]}},
        {"args/compilation-config": {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [4, 8]}},
        "multiples of 4",
        "warning",
    ),
    Case(
        "capture-sizes-concurrency",
        "dense",
        {
            "args/compilation-config": {"cudagraph_capture_sizes": [8, 24]},
            "checks": {"smoke_bench": {"concurrency": 16}},
        },
        {
            "args/compilation-config": {"cudagraph_capture_sizes": [8, 24]},
            "checks": {"smoke_bench": {"concurrency": 8}},
        },
        "a list with 16",
        "warning",
    ),
    Case(
        "graph-mode", SINGLE, {"args/compilation-config": {"cudagraph_mode": "DECODE"}}, {}, 'cudagraph_mode = "DECODE"'
    ),
    Case("graph-mode", SINGLE, {"args/compilation-config": {"cudagraph_mode": "FULL"}}, {}, '"FULL"', "warning"),
    Case("flashcomm1-sizes", SINGLE, {"args/enable-expert-parallel": ...}, {}, "enable_flashcomm1 = true"),
    Case(
        "flashcomm1-sizes",
        "dense",
        {"env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 1, "pools/serve/tensor_parallel": 1},
        {"env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 1},
        "env.VLLM_ASCEND_ENABLE_FLASHCOMM1",
    ),
    Case(
        "switch-given-twice",
        SINGLE,
        {"env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 0},
        {"env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 0, "args/additional-config": {}},
        "env.VLLM_ASCEND_ENABLE_FLASHCOMM1",
        "warning",
    ),
    Case("fused-mc2-hardware", SINGLE, {"hardware": "atlas-800-a2"}, {}, "enable_fused_mc2 = 1"),
    Case("fused-mc2-hardware", SINGLE, {"model/id": "Qwen/Qwen3.5-397B-A17B"}, {}, "enable_fused_mc2 = 1"),
    Case(
        "fused-mc2-value",
        SINGLE,
        {"args/additional-config": {"enable_fused_mc2": 3}},
        {"args/additional-config": {"enable_fused_mc2": 2}},
        "enable_fused_mc2 = 3; allowed: 0, 1 or 2",
    ),
    Case(
        "fused-mc2-value",
        SINGLE,
        {"args/additional-config": {"enable_fused_mc2": 2}, "engine/version": "v0.24.0rc1"},
        {"args/additional-config": {"enable_fused_mc2": 1}, "engine/version": "v0.24.0rc1"},
        "enable_fused_mc2 = 2; allowed: 0 or 1",
    ),
    Case(
        "fused-mc2-hierarchy",
        SINGLE,
        {"args/additional-config": {"enable_fused_mc2": 1, "enable_mc2_hierarchy_comm": True}},
        {"args/additional-config": {"enable_fused_mc2": 0, "enable_mc2_hierarchy_comm": True}},
        "enable_fused_mc2 = 1",
    ),
    Case(
        "flashcomm1-release",
        SINGLE,
        {"args/additional-config": FLASH, "engine/version": "v0.27.1"},
        {"args/additional-config": FLASH},
        "enable_flashcomm1 = true; allowed: left out",
        "warning",
    ),
    Case(
        "flashcomm1-idle",
        "dense",
        {"env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 1, "args/max-num-batched-tokens": 1000},
        {"env/VLLM_ASCEND_ENABLE_FLASHCOMM1": 1, "args/max-num-batched-tokens": 4096},
        "env.VLLM_ASCEND_ENABLE_FLASHCOMM1 = true",
        "warning",
    ),
    Case(
        "fused-mc2-value",
        DP2,
        {"env/VLLM_ASCEND_ENABLE_FUSED_MC2": 2, "engine/version": "v0.25.1rc1"},
        {"env/VLLM_ASCEND_ENABLE_FUSED_MC2": 2},
        "VLLM_ASCEND_ENABLE_FUSED_MC2 = 2",
    ),
    Case(
        "fused-mc2-experts",
        PD,
        {"pools/decode/nodes": 4, "pools/decode/data_parallel": 32},
        {},
        "enable_fused_mc2 = 1",
        "warning",
    ),
    Case(
        "fused-mc2-shared-expert",
        SINGLE,
        {"args/additional-config": {"enable_fused_mc2": 1, "multistream_overlap_shared_expert": True}},
        {"args/additional-config": {"enable_fused_mc2": 0, "multistream_overlap_shared_expert": True}},
        "enable_fused_mc2 = 1",
        "warning",
    ),
    Case("expert-parallel-model", "dense", {"args/enable-expert-parallel": True}, {}, "enable-expert-parallel = true"),
    Case(
        "expert-parallel-mixed",
        DP2,
        {"args/additional-config": {"expert_tensor_parallel_size": 2}},
        {"args/additional-config": {"expert_tensor_parallel_size": 1}},
        "expert_tensor_parallel_size = 2",
    ),
    Case(
        "prefill-mc2-tokens",
        DP2,
        {"args/additional-config": {"enable_prefill_mc2": True}, "args/max-num-batched-tokens": 8192},
        {"args/additional-config": {"enable_prefill_mc2": True}},
        "max-num-batched-tokens = 8192",
        "warning",
    ),
    # workload
    Case(
        "sequences-concurrency",
        DP2,
        {"checks": {"smoke_bench": {"concurrency": 33}}},
        {"checks": {"smoke_bench": {"concurrency": 32}}},
        "checks.smoke_bench = 33",
        "warning",
    ),
    Case(
        "sequences-concurrency",
        DP2,
        {"jobs": {"load": {"tool": "vllm-bench", "args": {"max-concurrency": 160}}}},
        {"jobs": {"load": {"tool": "vllm-bench", "args": {"max-concurrency": 16}}}},
        "jobs.load.args = 160",
        "warning",
    ),
    # Decode holds a request for most of its life: 16 ranks of 32.
    Case(
        "sequences-concurrency",
        PD,
        {"checks": {"smoke_bench": {"concurrency": 513}}},
        {"checks": {"smoke_bench": {"concurrency": 512}}, "pools/prefill/args/max-num-seqs": 1},
        "checks.smoke_bench = 513",
        "warning",
    ),
    Case(
        "scenario-length",
        "dense",
        {"jobs": {"long": {"tool": "vllm-bench", "args": {"random-input-len": 40000, "random-output-len": 1000}}}},
        {"jobs": {"long": {"tool": "vllm-bench", "args": {"random-input-len": 3584, "random-output-len": 1536}}}},
        "jobs.long.args = 41000",
    ),
    Case("scenario-length", DP2, {"checks": {"prompts": [{"prompt": "x", "max_tokens": 32768}]}}, {}, "max_tokens"),
    Case(
        "reference-job",
        DP2,
        {"reference": LOAD},
        {"jobs": {"load": {"tool": "vllm-bench"}}, "reference": LOAD},
        'reference.load.job = "load"',
    ),
    Case(
        "client-model-name",
        DP2,
        {"jobs": {"load": {"tool": "vllm-bench", "args": {"model": "vllm-ascend/Qwen3-235B-A22B"}}}},
        {"jobs": {"load": {"tool": "vllm-bench", "args": {"model": "x/y", "served-model-name": "qwen3"}}}},
        'jobs.load.args = "vllm-ascend/Qwen3-235B-A22B"',
    ),
    Case(
        "prefix-caching-workload",
        SINGLE,
        {"jobs": {"load": {"tool": "vllm-bench", "args": {"dataset-name": "random"}}}, "reference": LOAD},
        {
            "jobs": {"load": {"tool": "vllm-bench", "args": {"dataset-name": "random", "random-prefix-len": 512}}},
            "reference": LOAD,
        },
        "enable-prefix-caching = true",
        "warning",
    ),
    Case("batched-tokens-sequences", PD, {"pools/decode/args/max-num-seqs": 33}, {}, "= 128", "warning"),
    Case("batched-tokens-sequences", DP2, {"args/max-num-batched-tokens": 8}, {}, "max-num-batched-tokens = 8"),
    Case(
        "batched-tokens-unchunked",
        DP2,
        {"args/enable-chunked-prefill": False},
        {"args/enable-chunked-prefill": False, "args/max-num-batched-tokens": 32768},
        "max-num-batched-tokens = 4096",
    ),
    Case("memory-utilization", DP2, {"args/gpu-memory-utilization": 90}, {}, "gpu-memory-utilization = 90"),
    Case("memory-utilization", DP2, {"args/gpu-memory-utilization": 0.98}, {}, "= 0.98", "warning"),
    Case(
        "speculative-weights",
        DP2,
        {"args/speculative-config": {"method": "deepseek_mtp", "num_speculative_tokens": 1}},
        {"args/speculative-config": {"method": "eagle3", "num_speculative_tokens": 1}},
        'speculative-config.method = "deepseek_mtp"',
    ),
    Case(
        "speculative-tokens",
        SINGLE,
        {"args/speculative-config": {"method": "qwen3_5_mtp", "num_speculative_tokens": 4}},
        {},
        "num_speculative_tokens = 4",
        "warning",
    ),
    # variables
    Case(
        "variable-retired", "dense", {"env/VLLM_ASCEND_ENABLE_PREFETCH_MLP": 1}, {}, "env.VLLM_ASCEND_ENABLE_PREFETCH"
    ),
    Case(
        "variable-retired",
        "dense",
        {"env/VLLM_DP_SIZE": 2},
        {"env/VLLM_DP_SIZE": 2, "engine/version": "v0.9.1"},
        "env.VLLM_DP_SIZE",
    ),
    Case(
        "timeout-range",
        PD,
        {"env/VLLM_ENGINE_READY_TIMEOUT_S": 3600000},
        {"env/VLLM_ENGINE_READY_TIMEOUT_S": 1200},
        "VLLM_ENGINE_READY_TIMEOUT_S",
    ),
    Case("timeout-range", DP2, {"env/HCCL_CONNECT_TIMEOUT": 60}, {"env/HCCL_CONNECT_TIMEOUT": 1200}, "120 to 7200"),
    Case("timeout-range", PD, {"env/HCCL_EXEC_TIMEOUT": 3600}, {"env/HCCL_EXEC_TIMEOUT": 1000}, "to 1091", "warning"),
    Case("timeout-range", DP2, {"env/VLLM_RPC_TIMEOUT": "1h"}, {"env/VLLM_RPC_TIMEOUT": 3600000}, "whole number of ms"),
    Case(
        "allocator-setting",
        DP2,
        {"env/PYTORCH_NPU_ALLOC_CONF": "expandable_segment:True"},
        {"env/PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:512"},
        "PYTORCH_NPU_ALLOC_CONF",
    ),
    Case("buffer-size", DP2, {"env/HCCL_BUFFSIZE": "1024MB"}, {}, 'HCCL_BUFFSIZE = "1024MB"'),
    Case("name-misspelt", DP2, {"env/HCCL_BUFSIZE": 512}, {"env/HCCL_OTHER": 512}, "allowed: HCCL_BUFFSIZE", "warning"),
    Case(
        "name-misspelt",
        "store",
        {"kv_transfer/extra": {"lookup_rpc_prt": "0"}},
        {"kv_transfer/extra": {"something": "0"}},
        "kv_transfer.extra.lookup_rpc_prt",
        "warning",
    ),
    Case("proxy-variables", DP2, {"env/https_proxy": "http://192.0.2.1:3128"}, {}, "env.https_proxy"),
    Case(
        "proxy-variables", PD, {"router/env": {"HTTP_PROXY": "x"}}, {"router/env": {"A": "x"}}, "router.env.HTTP_PROXY"
    ),
    # model, image, release
    Case("image-matches-hardware", SINGLE, {"engine/image": "q.io/v:v0.21.0rc1-310p"}, {}, "engine.image"),
    Case("image-matches-hardware", DP2, {"hardware": "atlas-800-a2", "engine/image": "q.io/v:v0.21.0-a3"}, {}, "-a3"),
    Case(
        "engine-fits-hardware",
        "dense",
        {
            "engine": {"name": "vllm", "image": "q.io/v:v0.21.0"},
            "hardware": "cpu",
            "pools/serve": {"nodes": 2, "tensor_parallel": 4, "executor": "ray"},
        },
        {
            "engine": {"name": "vllm", "image": "q.io/v:v0.21.0"},
            "hardware": "cpu",
            "pools/serve": {"nodes": 2, "tensor_parallel": 4},
        },
        'pools.serve.executor = "ray"; allowed: mp',
    ),
    Case("engine-fits-hardware", "nixl", {"hardware": "atlas-800-a2"}, {}, 'engine.name = "dynamo"'),
    Case(
        "engine-fits-hardware", DP2, {"hardware": "h200"}, {"hardware": "atlas-800-a2"}, 'engine.name = "vllm-ascend"'
    ),
    Case(
        "engine-version-unknown",
        DP2,
        {"engine/image": "q.io/v:nightly-main"},
        {"engine/image": "q.io/v:nightly-main", "engine/version": "v0.24.0rc1"},
        "engine.version = not set",
        "warning",
    ),
    Case(
        "model-engine-version",
        SINGLE,
        {"engine/image": "q.io/v:v0.16.0"},
        {"engine/image": "q.io/v:v0.17.0rc1"},
        "image",
    ),
    Case("quantization-matches-weights", SINGLE, {"args/quantization": ...}, {}, "args = not set"),
    Case("quantization-matches-weights", DP2, {"args/quantization": "ascend"}, {}, 'quantization = "ascend"'),
    Case("positions-exceeded", DP2, {"args/max-model-len": 133000}, {"args/max-model-len": 40960}, "= 133000"),
    Case(
        "positions-exceeded",
        DP2,
        {"args/max-model-len": 262144, "args/rope-scaling": YARN},
        {"args/max-model-len": 133000, "args/rope-scaling": YARN},
        "a factor of 8",
    ),
    Case(
        "positions-exceeded",
        DP2,
        {"args/max-model-len": 133000},
        {"args/max-model-len": 133000, "model/id": "Qwen/Qwen3-235B-A22B-Instruct-2507"},
        "= 133000",
    ),
    Case(
        "rope-spelling",
        DP2,
        {"args/max-model-len": 133000, "args/hf-overrides": {"rope_parameters": YARN}},
        {"args/max-model-len": 133000, "args/rope_scaling": YARN},
        "hf-overrides.rope_parameters",
    ),
    Case(
        "rope-spelling",
        DP2,
        {"args/max-model-len": 133000, "args/rope_scaling": YARN, "engine/version": "v0.15.0rc1"},
        {"args/max-model-len": 133000, "args/hf-overrides": {"rope_parameters": YARN}, "engine/version": "v0.15.0rc1"},
        "args.rope_scaling",
    ),
    Case("rope-unneeded", DP2, {"args/rope_scaling": YARN}, {}, "args.rope_scaling", "warning"),
    # options of the engine
    Case("engine-option-unknown", SINGLE, {"args/max-num-seq": 3}, {"args/max_num_seqs": 3}, "args.max-num-seq = 3"),
    Case(
        "engine-option-unknown",
        SINGLE,
        {"pools/serve/overrides": [{"node": 0, "args": {"tp": 16}}]},
        {"pools/serve/overrides": [{"node": 0, "args": {"tensor-parallel-size": 16}}]},
        "pools.serve.overrides.0.args.tp = 16; allowed: --tensor-parallel-size",
    ),
    Case("engine-option-value", SINGLE, {"args/dtype": "bfloat"}, {"args/dtype": "bfloat16"}, 'args.dtype = "bfloat"'),
    Case(
        "engine-option-value",
        SINGLE,
        {"args/compilation-config": {"use_inductor_graph_partition": "yes"}},
        {"args/compilation-config": {"use_inductor_graph_partition": True}},
        "compilation-config.use_inductor_graph_partition",
    ),
    Case(
        "engine-option-key",
        SINGLE,
        {"args/compilation-config": {"cudagraph_capture_size": [16]}},
        {"args/compilation-config": {"cudagraph_capture_sizes": [16]}},
        "compilation-config.cudagraph_capture_size = [16]; allowed: cudagraph_capture_sizes",
    ),
    Case(
        "engine-option-key",
        PD,
        {"kv_transfer/kv_bufer_device": "npu"},
        {"kv_transfer/kv_buffer_device": "npu"},
        "kv_transfer.kv_bufer_device",
    ),
    Case(
        "additional-config-key",
        SINGLE,
        {"args/additional-config": {"enable_flashcom1": True}},
        {"args/additional-config": {"enable_flashcomm1": True}},
        "additional-config.enable_flashcom1 = true; allowed: enable_flashcomm1",
    ),
    Case(
        "additional-config-key",
        DP2,
        {"args/additional-config": {"enable_flashcomm1": True}},
        {"args/additional-config": {"enable_shared_expert_dp": True}},
        "allowed: VLLM_ASCEND_ENABLE_FLASHCOMM1 in env",
        "warning",
    ),
    Case("memory-weights", SINGLE, {"pools/serve/tensor_parallel": 4}, {}, "tensor_parallel = 4"),
    Case(
        "memory-weights",
        "dense",
        {"hardware": "atlas-800-a2-32g", "pools/serve/tensor_parallel": 2},
        {"hardware": "atlas-800-a2-32g"},
        "tensor_parallel = 2",
    ),
    Case(
        "memory-kv-cache",
        "dense",
        {"hardware": "atlas-800-a2-32g", "args/max-model-len": 400000},
        {"hardware": "atlas-800-a2-32g"},
        "max-model-len = 400000",
        "warning",
    ),
]


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    recipe = json.loads(json.dumps(OWN[name])) if name in OWN else inputs.recipe(name)
    for path, value in changes.items():
        *way, last = path.split("/")
        here = recipe
        for part in way:
            here = here.setdefault(part, {})
        if value is ...:
            here.pop(last, None)
        else:
            here[last] = value
    return recipe


def check(case: Case, changes: dict[str, Any], *, broken: bool) -> list[dict[str, Any]]:
    recipe = changed(case.recipe, changes)
    hosts = inputs.hosts(inputs.hosts_needed(recipe))
    if broken and case.hosts:
        case.hosts(hosts)
    model, wrong = loader._model_facts(recipe, loader.ROOT)
    assert wrong == []
    if model is not None:
        model.update(case.model)
    plan = None
    with contextlib.suppress(InputError):
        plan = planner.plan(recipe, inputs.hardware(), hosts)
    if broken and case.plan:
        assert plan is not None
        case.plan(plan)
    options = loader.option_table(recipe["engine"])
    return rules.check(recipe, inputs.hardware(), hosts, plan, model=model, options=options)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in found]


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.rule}" for number, case in enumerate(CASES)])
def test_broken_and_sound(case):
    found = [item for item in check(case, case.broken, broken=True) if item["id"] == case.rule]
    assert found, "not found where it is broken"
    mine = [item for item in found if case.evidence in item["evidence"]]
    assert mine, found
    assert {item["severity"] for item in mine} == {case.severity}
    assert "; allowed: " in mine[0]["evidence"]
    assert mine[0]["fix"]
    assert mine[0]["cause"]
    assert case.rule not in ids(check(case, case.sound, broken=False)), "found where it is sound"


def test_every_rule_has_a_case():
    assert set(rules.CATALOGUE) - {case.rule for case in CASES} == set()


@pytest.mark.parametrize("name", [PD, SINGLE, DP2, *OWN])
def test_sound_recipes_break_no_rule(name):
    found = check(Case("", name, {}, {}, ""), {}, broken=False)
    assert [item for item in found if item["severity"] == "error"] == []


@pytest.mark.parametrize("rule", rules.CATALOGUE.values(), ids=lambda rule: rule.id)
def test_rules_say_what_they_are(rule):
    assert rule.severity in ("error", "warning")
    assert rule.demand
    assert rule.reason
    assert rule.source
    assert not rule.demand.endswith(".")
    assert rule.id == rule.id.lower()
    assert max(case.severity == rule.severity for case in CASES if case.rule == rule.id), "the worst it reports"


#: Section J of the acceptance list.
_PREDICATES = """
CG1 CG2 CG3 CG4 QU1 EP1 FC1 FC2 MC1 MC2 MC3 ROPE SEQ1 SEQ2 TOK1 TOK2 DP1 DP2 DP3 DP4 DP5 DP6 DEV1 NET1 NET2 NET3 KV1 KV2
KV3 KV4 KV5 PC1 PC2 PC3 PX1 PX2 PX3 PX4 MT1 OOM1 OOM2 OOM3 LEN1 RT1 DEP1 VER1 VER2 MODEL1 MODEL2 AB1
"""


def test_every_predicate_of_the_acceptance_list_has_its_place():
    named = [row for rule in rules.CATALOGUE.values() for row in rule.rows]
    named += [row for item in live.LIVE for row in item.rows]
    named += [row for _, rows in (*live.BY_CONSTRUCTION, *live.UNDECIDED) for row in rows]
    assert {row for row in named if row.startswith("P-")} == {f"P-{name}" for name in _PREDICATES.split()}
    assert {row for row in named if row.startswith("J")} == {f"J{number}" for number in range(1, 14)}


def test_live_rules_name_a_stage_of_deploy():
    stages = set(re.findall(r"playbooks/(\w+)\.yml", (loader.ROOT / "deploy.yml").read_text()))
    assert {item.stage for item in live.LIVE} <= stages


def test_what_layout_refuses_is_in_the_catalogue_and_can_not_be_waived():
    assert set(rules.CATALOGUE) >= layout.UNSOUND
    assert not rules.WAIVABLE & layout.UNSOUND
    assert {rule.id for rule in rules.CATALOGUE.values() if not rule.waivable} & rules.WAIVABLE == set()


def test_checks_report_only_what_they_declare():
    for one in rules.CHECKS:
        name = one.run.__module__.rpartition(".")[2]
        assert one in getattr(rules, name).CHECKS
        declared = {rule.id for rule in one.rules}
        for case in (case for case in CASES if case.rule in declared):
            recipe = changed(case.recipe, case.broken)
            hosts = inputs.hosts(inputs.hosts_needed(recipe))
            context = rules.Context.of(recipe, inputs.hardware(), hosts, None, None, None)
            assert {item["rule"] for item in one.run(context)} <= declared


def test_reference_page_is_current():
    result = subprocess.run(
        [sys.executable, str(loader.ROOT / "tools" / "rules_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_reference_page_tells_of_every_rule():
    page = (loader.ROOT / "docs" / "reference" / "rules.md").read_text()
    assert [rule for rule in rules.CATALOGUE if f"| `{rule}`<br>" not in page] == []
