"""The presets of seed 004's tuning tables, and recipes on other hardware than their own."""

from __future__ import annotations

import pytest

from ascent_controller import loader, planning, render
from tests.unit import planning_inputs as inputs
from tests.unit import seed_scripts as scripts

FULL_GRAPH = {"cudagraph_mode": "FULL_DECODE_ONLY"}

# Section 9.1, row by row: processes that serve, NPUs on a node, tensor parallel, data parallel on a node and in all,
# sequences, length, batched tokens, predicted tokens, prefix caching, optimizations.
ROWS = [
    ("qwen3.5-397b-a17b-w8a8-128k-a3", "serve-0-head", 16, 16, 1, 1, 128, 133000, 16384, 3, True,
     {"enable_flashcomm1": True, "enable_fused_mc2": 1, "enable_cpu_binding": True}, FULL_GRAPH),
    ("qwen3.5-397b-a17b-w8a8-dp2-a2", "serve-0-head", 8, 8, 1, 2, 16, 32768, 4096, 3, False,
     {"multistream_overlap_shared_expert": True, "enable_cpu_binding": True}, FULL_GRAPH),
    ("qwen3.5-397b-a17b-w8a8-dp2-a2", "serve-0-headless-1", 8, 8, 1, 2, 16, 32768, 4096, 3, False,
     {"multistream_overlap_shared_expert": True, "enable_cpu_binding": True}, FULL_GRAPH),
    ("qwen3.5-397b-a17b-w8a8-pd-1p1d-a3", "prefill-0-head", 16, 2, 8, 8, 64, 16384, 4096, 3, False,
     {"recompute_scheduler_enable": True, "enable_fused_mc2": 1, "enable_cpu_binding": True}, None),
    ("qwen3.5-397b-a17b-w8a8-pd-1p1d-a3", "decode-0-head", 16, 2, 8, 16, 32, 16384, 128, 3, False,
     {"recompute_scheduler_enable": True, "enable_fused_mc2": 1, "enable_cpu_binding": True}, FULL_GRAPH),
    ("qwen3.5-397b-a17b-w8a8-pd-1p1d-a3", "decode-0-headless-1", 16, 2, 8, 16, 32, 16384, 128, 3, False,
     {"recompute_scheduler_enable": True, "enable_fused_mc2": 1, "enable_cpu_binding": True}, FULL_GRAPH),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_a_recipe_on_a_preset_renders_the_tables_values(row):
    name, process, npus, tensor, local, data, sequences, length, tokens, predicted, prefixes, config, graph = row
    plan, found = planning.prepare(name, planning.stand_ins(inputs.hosts_needed(inputs.recipe(name))), cluster="c")
    assert plan is not None, found
    one = next(entry for entry in plan["processes"] if entry["name"] == process)
    assert len(one["devices"]) == npus
    assert (one["parallel"]["tensor"], one["parallel"]["data_local"], one["parallel"]["data"]) == (tensor, local, data)
    flags = scripts.read_script(render.files(plan)[one["host"]][f"{process}.sh"])["flags"]
    assert flags["--max-num-seqs"] == sequences
    assert flags["--max-model-len"] == length
    assert flags["--max-num-batched-tokens"] == tokens
    assert flags["--speculative-config"]["num_speculative_tokens"] == predicted
    assert ("--enable-prefix-caching" if prefixes else "--no-enable-prefix-caching") in flags
    assert flags["--additional-config"] == config
    assert flags.get("--compilation-config") == graph
    assert ("--enforce-eager" in flags) == (graph is None)


@pytest.mark.parametrize("preset", ["long-context", "high-throughput", "low-latency", "quick-bench"])
def test_a_preset_alone_is_refused_with_what_it_lacks(preset):
    plan, found = planning.prepare(str(loader.ROOT / "recipes" / "presets" / f"{preset}.yml"), [], cluster="c")
    assert plan is None
    missing = " ".join(item["summary"] for item in found if item["id"] == "recipe-schema")
    assert "model is missing" in missing
    assert "engine is missing" in missing
    by_name, found = planning.prepare(preset, [], cluster="c")
    assert by_name is None
    refused = next(item for item in found if item["id"] == "recipe-unknown")
    assert f"{preset} is a preset" in refused["summary"]
    assert f"extends: {preset}" in refused["fix"]


def test_an_a3_recipe_is_rendered_for_a2():
    """Seed 002: on A2 the deployment stays the same but for the image, the device files and how many there are."""
    there = {one["name"]: one for one in _plan("qwen3-32b-w8a8-a3", "atlas-800-a3")["processes"]}
    here = {one["name"]: one for one in _plan("qwen3-32b-w8a8-a3", "atlas-800-a2")["processes"]}
    assert there.keys() == here.keys()
    for name in there:
        assert here[name]["argv"] == there[name]["argv"]
        assert here[name]["env"] == there[name]["env"]
        assert there[name]["container"]["image"] == here[name]["container"]["image"] + "-a3"


def test_sizes_that_do_not_fit_the_other_hardware_are_named():
    hosts = [{**host, "hardware": "atlas-800-a2"} for host in planning.stand_ins(1)]
    plan, found = planning.prepare("qwen3.5-397b-a17b-w8a8-128k-a3", hosts, cluster="c")
    assert plan is None
    short = next(item for item in found if item["id"] == "devices-too-few")
    assert "16" in short["summary"]
    assert "8" in short["evidence"]


def _plan(recipe, hardware):
    hosts = [{**host, "hardware": hardware} for host in planning.stand_ins(1)]
    plan, found = planning.prepare(recipe, hosts, cluster="c")
    assert plan is not None, found
    return plan
