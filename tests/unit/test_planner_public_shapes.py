"""Layouts of public launch pages that Ascent has no recipe for: a recipe alone describes each of them.

Sizes, hardware and connectors are those of vLLM-Ascend's model pages (v0.23.0); the rest is left out.
"""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from ascent_controller import planning
from tests.unit import planning_inputs as inputs

PREFILL = {"role": "prefill", "args": {"enforce-eager": True}}
DECODE = {"role": "decode", "args": {"compilation-config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}}
EXTERNAL = {"data_parallel_mode": "external"}
V1 = {"connector": "MooncakeConnectorV1"}

SHAPES = {
    # DeepSeek-V3.2, 4 x A3: prefill DP2 TP16 over two nodes, decode DP8 TP4 over two, one server a rank.
    "deepseek-v3.2": (
        "atlas-800-a3",
        {
            "prefill": {**PREFILL, **EXTERNAL, "nodes": 2, "tensor_parallel": 16, "data_parallel": 2},
            "decode": {**DECODE, **EXTERNAL, "nodes": 2, "tensor_parallel": 4, "data_parallel": 8},
        },
        {"kv_transfer": V1},
        4,
        {"rank": 10, "router": 1},
    ),
    # DeepSeek-V4-Flash, 8 x A2: four prefill instances DP8 TP1, one decode instance DP32 TP1.
    "deepseek-v4-flash": (
        "atlas-800-a2",
        {
            "prefill": {**PREFILL, **EXTERNAL, "instances": 4, "data_parallel": 8},
            "decode": {**DECODE, **EXTERNAL, "nodes": 4, "data_parallel": 32},
        },
        {"kv_transfer": {"connector": "MooncakeHybridConnector"}},
        8,
        {"rank": 64, "router": 1},
    ),
    # GLM-4.7, 4 x A3: 2P1D, prefill DP2 TP8 on one node each, decode DP8 TP4 over two.
    "glm-4.7": (
        "atlas-800-a3",
        {
            "prefill": {**PREFILL, **EXTERNAL, "instances": 2, "tensor_parallel": 8, "data_parallel": 2},
            "decode": {**DECODE, **EXTERNAL, "nodes": 2, "tensor_parallel": 4, "data_parallel": 8},
        },
        {"kv_transfer": V1},
        4,
        {"rank": 12, "router": 1},
    ),
    # GLM-5.2, 8 x A2: prefill and decode over four nodes each, transfer and pool together.
    "glm-5.2": (
        "atlas-800-a2",
        {
            "prefill": {**PREFILL, **EXTERNAL, "nodes": 4, "tensor_parallel": 8, "data_parallel": 4},
            "decode": {**DECODE, **EXTERNAL, "nodes": 4, "tensor_parallel": 4, "data_parallel": 8},
        },
        {
            "kv_transfer": {
                "connector": "MultiConnector",
                "connectors": [V1, {"connector": "AscendStoreConnector", "extra": {"backend": "mooncake"}}],
            },
            "kv_store": {"kind": "mooncake", "args": {"default_kv_lease_ttl": 11000}},
        },
        8,
        {"kv-store": 1, "rank": 12, "router": 1},
    ),
    # GLM-5.2 with a context of one million tokens on one A3 node: decode context parallel over all tensor ranks.
    "glm-5.2-1m": (
        "atlas-800-a3",
        {"serve": {"tensor_parallel": 16, "decode_context_parallel": 16}},
        {},
        1,
        {"head": 1},
    ),
    # The long-sequence page: one rank with prefill context parallelism over two nodes.
    "context-parallel": (
        "atlas-800-a3",
        {"serve": {"nodes": 2, "tensor_parallel": 16, "prefill_context_parallel": 2}},
        {},
        2,
        {"head": 1, "worker": 1},
    ),
    # The Ray page: TP8 PP2 over two A2 nodes.
    "ray": (
        "atlas-800-a2",
        {"serve": {"nodes": 2, "tensor_parallel": 8, "pipeline_parallel": 2, "executor": "ray"}},
        {},
        2,
        {"ray-head": 1, "ray-worker": 1, "head": 1},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_never_seen_before_takes_a_recipe_alone(tmp_path, name):
    hardware, pools, more, nodes, kinds = SHAPES[name]
    recipe = {
        "name": name,
        "model": {"id": f"org/{name}"},
        "engine": {"name": "vllm-ascend", "image": "example.org/vllm-ascend:v0.23.0"},
        "hardware": hardware,
        "args": {"trust-remote-code": True, **({"enable-prefix-caching": False} if "kv_transfer" in more else {})},
        "pools": pools,
        **more,
        **({"router": {"kind": "pd"}} if "kv_transfer" in more else {}),
    }
    file = tmp_path / f"{name}.yml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    plan, found = planning.prepare(str(file), inputs.hosts(nodes), cluster="c")
    assert [item for item in found if item["severity"] == "error"] == []
    assert Counter(one["kind"] for one in plan["processes"]) == kinds
    assert {len(host["devices"]) for host in plan["hosts"].values()} == {inputs.hardware()[hardware]["devices"]}
