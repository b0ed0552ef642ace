"""The memory estimate: its arithmetic on known models, what it leaves out, and how it grows and shrinks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import memory
from ascent_controller import loader
from tests.unit import planning_inputs as inputs

GIB = 2**30


def model(name: str) -> dict[str, Any]:
    found, wrong = loader._model_facts({"model": {"id": name}}, loader.ROOT)
    assert found is not None
    assert wrong == []
    return found


def estimate(
    name: str = "Qwen/Qwen3-32B",
    hardware: str = "atlas-800-a2",
    args: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    **sizes: int,
) -> dict[str, Any]:
    return memory.estimate(sizes, args or {}, env or {}, inputs.hardware()[hardware], model(name))


def test_dense_weights_are_shared_by_the_ranks_of_one_copy():
    assert estimate(tensor_parallel=4)["weights_bytes"] == 32.8e9 * 2 / 4
    assert estimate(tensor_parallel=4, data_parallel=2)["weights_bytes"] == 32.8e9 * 2 / 4
    assert estimate(tensor_parallel=2, pipeline_parallel=4)["weights_bytes"] == 32.8e9 * 2 / 8


def test_quantized_weights_keep_their_embeddings():
    found = estimate("vllm-ascend/Qwen3-32B-W8A8", tensor_parallel=4)
    assert found["weights_bytes"] == (31.2e9 * 1 + 1.6e9 * 2) / 4


def test_experts_are_spread_over_all_copies():
    found = estimate("Qwen/Qwen3-235B-A22B", tensor_parallel=8, data_parallel=2)
    assert found["weights_bytes"] == pytest.approx(7.9e9 * 2 / 8 + 227.1e9 * 2 / 16, rel=1e-6)


def test_unknown_expert_figures_give_the_smallest_share():
    known = model("Qwen/Qwen3-235B-A22B")
    unknown = {**known, "figures": {**known["figures"], "expert_parameters": None}}
    sizes = {"tensor_parallel": 8, "data_parallel": 2}
    profile = inputs.hardware()["atlas-800-a2"]
    least = memory.estimate(sizes, {}, {}, profile, unknown)["weights_bytes"]
    assert least == 235e9 * 2 / 16
    assert least < memory.estimate(sizes, {}, {}, profile, known)["weights_bytes"]


@pytest.mark.parametrize(
    ("name", "sizes", "args", "size"),
    [
        # 2 * 64 layers * 8 heads / 4 * 128 * 2 B
        ("Qwen/Qwen3-32B", {"tensor_parallel": 4}, {}, 65536),
        ("Qwen/Qwen3-32B", {"tensor_parallel": 4, "pipeline_parallel": 2}, {}, 32768),
        ("Qwen/Qwen3-32B", {"tensor_parallel": 4}, {"kv-cache-dtype": "fp8"}, 32768),
        # Only every fourth layer of the hybrid model keeps KV cache, and a head can't be split.
        ("Qwen/Qwen3.5-397B-A17B", {"tensor_parallel": 16}, {}, 2 * 15 * 1 * 256 * 2),
        ("Qwen/Qwen3-235B-A22B", {"tensor_parallel": 8, "decode_context_parallel": 2}, {}, 2 * 94 * 128 * 2 // 2),
    ],
)
def test_kv_cache_of_a_token(name, sizes, args, size):
    assert estimate(name, args=args, **sizes)["token_bytes"] == size


def test_what_seed_000_runs_on_half_the_memory():
    args = {"max-model-len": 40960, "max-num-batched-tokens": 40960, "gpu-memory-utilization": 0.8, "max-num-seqs": 256}
    found = estimate("Qwen/Qwen3-32B", "atlas-800-a2-32g", args, tensor_parallel=4)
    assert found["budget_bytes"] == int(32 * GIB * 0.8)
    # One communication domain of two buffers, and the hidden states of one step.
    assert found["overhead_bytes"] == 2 * 200 * 10**6 + 40960 * 5120 * 4
    assert found["kv_bytes"] == found["budget_bytes"] - found["weights_bytes"] - found["overhead_bytes"]
    assert found["sequence_bytes"] == 40960 * 65536
    assert found["sequences"] == found["kv_bytes"] // found["sequence_bytes"] == 3
    assert found["full_bytes"] == 256 * found["sequence_bytes"]


def test_buffers_follow_the_variable_and_the_domains():
    small = estimate(tensor_parallel=4)["overhead_bytes"]
    assert small == 400 * 10**6
    assert estimate(tensor_parallel=4, data_parallel=2, env={"HCCL_BUFFSIZE": "1024"})["overhead_bytes"] == 4096 * 10**6
    assert estimate(tensor_parallel=1)["overhead_bytes"] == 0
    assert estimate(hardware="h200", tensor_parallel=4)["overhead_bytes"] == 0


def test_the_arithmetic_is_there_to_be_checked_by_hand():
    args = {"max-model-len": "40k", "max-num-seqs": 16, "gpu-memory-utilization": 0.9}
    text = estimate("Qwen/Qwen3-235B-A22B", args=args, tensor_parallel=8, data_parallel=2)["arithmetic"]
    assert text == (
        "weights 235e9 * 2 B (bf16) / 8 ranks (experts, 227.1e9, / 16) = 28.3 GiB a device; "
        "2 communication domain(s) * 2 * 200 MB; 64.0 GiB * 0.9 = 57.6 GiB usable, 28.6 GiB left for KV cache; "
        "KV cache 2 * 94 layers * 1 heads * 128 * 2 B = 48128 B a token; one request of 40000 tokens takes 1.8 GiB; "
        "16 of them would take 28.7 GiB"
    )


def test_without_figures_nothing_is_claimed():
    profile = inputs.hardware()["atlas-800-a2"]
    for facts in (None, {}, {"precision": "bf16"}, {"figures": {"parameters": None}}):
        assert memory.estimate({}, {}, {}, profile, facts) == {
            "known": False,
            "reason": "the catalogue has no figures of this model",
        }


def test_without_kv_figures_only_weights_are_judged():
    facts = {"precision": "bf16", "kind": "dense", "figures": {"parameters": 8.2, "layers": None, "kv_layers": None}}
    found = memory.estimate({}, {"max-model-len": 4096}, {}, inputs.hardware()["atlas-800-a2"], facts)
    assert found["known"]
    assert (found["token_bytes"], found["sequence_bytes"], found["sequences"]) == (None, None, None)


@given(
    st.sampled_from(["Qwen/Qwen3-32B", "Qwen/Qwen3-235B-A22B", "Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp"]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_more_devices_never_need_more_on_each(name, tensor, pipeline, data):
    small = estimate(name, tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=data)
    for wider in ({"tensor_parallel": 2 * tensor}, {"pipeline_parallel": pipeline + 1}, {"data_parallel": data + 1}):
        sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "data_parallel": data, **wider}
        found = estimate(name, **sizes)
        assert found["weights_bytes"] <= small["weights_bytes"]
        assert found["token_bytes"] <= small["token_bytes"]
    assert small["kv_bytes"] + small["weights_bytes"] + small["overhead_bytes"] == small["budget_bytes"]
