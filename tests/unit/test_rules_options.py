"""Options of the engine against the tables of its releases: names, values, JSON keys, and which table is taken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent import rules
from ascent.spelling import engine_option
from ascent_controller import loader
from sandbox.engine.sim.options import make_parser
from tests.unit import planning_inputs as inputs

SINGLE = "qwen3.5-397b-a17b-w8a8-128k-a3"
OPTIONS = {"engine-option-unknown", "engine-option-value", "engine-option-key", "additional-config-key"}
TABLE = loader.option_table({"name": "vllm-ascend", "image": "x", "version": "v0.21.0rc1"})


def told(args, version="v0.21.0rc1", table=TABLE, **sections):
    """Option findings of a recipe with these args."""
    recipe = {**inputs.recipe(SINGLE), "args": args, **sections}
    recipe["engine"]["version"] = version
    found = rules.check(recipe, inputs.hardware(), inputs.hosts(1), None, options=table)
    return [item for item in found if item["id"] in OPTIONS]


@pytest.mark.parametrize(
    ("option", "near"), [("max-num-seq", "max-num-seqs"), ("max_model_lenn", "max-model-len"), ("qqqq", None)]
)
def test_unknown_options_get_the_nearest_one(option, near):
    found = told({"max_model_len": 50000, "no-enable-prefix-caching": True, option: 3})
    assert [item["id"] for item in found] == ["engine-option-unknown"]
    assert f"args.{option} = 3" in found[0]["evidence"]
    assert found[0]["fix"] == (f"write {near}" if near else "remove it, or take a release that has it")


@pytest.mark.parametrize(
    ("option", "wrong", "right", "allowed"),
    [
        ("enable-expert-parallel", "true", True, "true or false"),
        ("headless", 1, None, "true or false"),
        ("max-num-seqs", "many", "32", "a whole number"),
        ("max-num-seqs", True, 32, "a whole number"),
        ("gpu-memory-utilization", "90%", "0.9", "a number"),
        ("max-model-len", "32kb", "32k", "a whole number, also as 32k"),
        ("max-model-len", "1.5K", "1.5k", "a whole number, also as 32k"),
        ("max-num-batched-tokens", "auto", 4096, "a whole number, also as 32k"),
        ("load-format", ["a"], "auto", "one text"),
        ("dtype", "bf16", "bfloat16", "auto, bfloat16"),
        ("quantization", "asend", "ascend", "ascend"),
        ("cudagraph-capture-sizes", ["a"], [1, 8], "a list, one or more: a whole number each"),
        ("compilation-config", "PIECEWISE", '{"cudagraph_mode":"PIECEWISE"}', "a mapping"),
        ("hf-overrides", [1], {"a": 1}, "a mapping, or one text"),
        ("limit-mm-per-prompt", "image=1", {"image": 1}, "a mapping or a list"),
        ("compilation-config", {"mode": "FAST"}, {"mode": 3}, "NONE, STOCK_TORCH_COMPILE"),
        ("compilation-config", {"cudagraph_capture_sizes": 8}, {"cudagraph_capture_sizes": [8]}, "array"),
        ("speculative-config", {"method": "qwen3_mtp"}, {"method": "qwen3_5_mtp"}, "qwen3_5_mtp"),
        ("speculative-config", {"num_speculative_tokens": "three"}, {"num_speculative_tokens": "3"}, "integer"),
    ],
)
def test_values_are_of_the_options_type_and_among_its_choices(option, wrong, right, allowed):
    found = told({option: wrong})
    assert [(item["id"], item["severity"]) for item in found] == [("engine-option-value", "error")]
    assert allowed in found[0]["evidence"].partition("; allowed: ")[2]
    assert f"args.{option}" in found[0]["evidence"]
    assert told({option: right}) == []


@pytest.mark.parametrize(
    ("option", "key", "near"),
    [
        ("speculative-config", "num_speculative_token", "num_speculative_tokens"),
        ("compilation-config", "cudagraph_modes", "cudagraph_mode"),
        ("kv-events-config", "enable_kv_cache_event", "enable_kv_cache_events"),
        ("additional-config", "enable_fused_mc", "enable_fused_mc2"),
    ],
)
def test_misspelt_keys_inside_json_get_the_nearest_one(option, key, near):
    for value in ({key: 1}, json.dumps({key: 1})):
        found = told({option: value})
        assert [item["severity"] for item in found] == ["error"]
        assert f"{option}.{key} = 1; allowed: {near}" in found[0]["evidence"]


def test_keys_of_sections_of_additional_config_are_looked_at_too():
    found = told({"additional-config": {"finegrained_tp_config": {"lmhead_tensor_paralel_size": 16, "other": 1}}})
    assert [item["fix"] for item in found] == ["write lmhead_tensor_parallel_size"]


def test_the_plans_own_sections_are_held_against_the_engines_classes():
    inner = {"connector": "MooncakeConnectorV1", "kv_parallel_sise": 1}
    sections = {
        "kv_transfer": {"connector": "MultiConnector", "engine_id": "a", "connectors": [inner], "extra": {"any": 1}},
        "kv_events": {"topic": 5, "buffer_step": 1},
    }
    evidence = [item["evidence"].partition(";")[0] for item in told({}, **sections)]
    assert sorted(evidence) == [
        "recipe: kv_events.buffer_step = 1",
        "recipe: kv_events.topic = 5",
        "recipe: kv_transfer.connectors.0.kv_parallel_sise = 1",
    ]


def test_references_are_left_to_the_plan():
    assert (
        told({"max-num-seqs": "{{ plan.rank }}", "kv-events-config": {"endpoint": "tcp://{{ plan.node_ip }}:1"}}) == []
    )


def test_a_table_of_an_older_release_only_warns():
    args = {"max-num-seq": 3, "dtype": "bf16", "compilation-config": {"mod": 3}}
    assert [item["severity"] for item in told(args)] == ["error"] * 3
    newer = told(args, version="v0.22.1rc1")
    assert [item["severity"] for item in newer] == ["warning"] * 3
    assert all("0.21.0" in item["summary"] for item in newer if "dtype" not in item["summary"])


def test_keys_of_other_releases_and_of_none():
    old = loader.option_table({"name": "vllm-ascend", "version": "v0.11.0rc2", "image": "x"})
    found = told({"additional-config": {"enable_fused_mc2": 1}}, version="v0.11.0rc2", table=old)
    assert [(item["severity"], item["fix"]) for item in found] == [
        ("warning", "set env.VLLM_ASCEND_ENABLE_FUSED_MC2 instead")
    ]
    found = told({"additional-config": {"of_my_own": 1}})
    assert [(item["severity"], item["id"]) for item in found] == [("warning", "additional-config-key")]


def table_of(tmp_path, engine, **versions):
    """What is found among tables of these releases, whose first option is the release's name."""
    folder = tmp_path / "catalog" / "engine_options"
    folder.mkdir(parents=True, exist_ok=True)
    for name in versions:
        minor = name.removeprefix("v").replace("_", ".")
        (folder / f"vllm-{minor}.json").write_text(json.dumps({"version": f"{minor}.0", "options": []}))
    return loader.option_table(engine, tmp_path)


@pytest.mark.parametrize(
    ("engine", "version"),
    [
        ({"name": "vllm-ascend", "image": "q.io/v:v0.21.0rc1"}, "0.21.0"),
        ({"name": "vllm-ascend", "image": "q.io/v:v0.22.1rc1-openeuler"}, "0.21.0"),
        ({"name": "vllm", "image": "q.io/v:latest", "version": "0.100.2"}, "0.23.0"),
        ({"name": "vllm", "image": "q.io/v:v0.11.0"}, "0.9.0"),
        ({"name": "vllm", "image": "q.io/v:v0.8.4"}, None),
        ({"name": "vllm", "image": "q.io/v:latest"}, None),
        ({"name": "dynamo", "image": "q.io/v:1.3.1"}, None),
    ],
)
def test_the_table_is_the_nearest_at_or_below_the_release(tmp_path, engine, version):
    found = table_of(tmp_path, engine, v0_9=1, v0_21=1, v0_23=1)
    assert (found and found["version"]) == version


def test_no_table_at_all_silences_the_rules():
    assert loader.option_table({"name": "dynamo", "image": "q.io/v:1.3.1"}) is None
    assert told({"max-num-seq": 3}, table=None) == []


VALUES = st.one_of(
    st.booleans(),
    st.integers(-2, 70000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "auto", "1k", "2K", "1.5M", "x", "bfloat16", "{", "{}", '{"a": 1}', "-1", "1e3", "None"]),
    st.lists(st.sampled_from([1, "a", "8"]), max_size=2),
    st.dictionaries(st.sampled_from(["a", "mode", "topic"]), st.sampled_from([1, "x", None, True]), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TABLE["options"]), VALUES)
def test_what_the_rules_let_pass_the_engines_parser_takes(option, value):
    """Held against the parser that the sandbox's engine makes of the same table."""
    name = option["name"].lstrip("-")
    if name in ("config", "middleware") or told({name: value}):
        return
    words = [word for line in engine_option(name, value) for word in line]
    if option["kind"] == "boolean" and value is False:
        words = [f"--no-{name}"]
    if any(word.startswith("-") for word in words[1:]):
        words = [f"{words[0]}={words[1]}"]  # a negative number is no option
    quantization = name == "quantization"
    make_parser(TABLE, "0.21.0").parse_args(["serve", "model", *([] if quantization else words)])


def test_keys_of_additional_config_are_read_from_sources(tmp_path):
    (tmp_path / "vllm_ascend").mkdir()
    (tmp_path / "vllm_ascend" / "a.py").write_text(
        'x = additional_config.get("one", 1)\ny = additional_config[\n    "two"]\n'
        'if "three" in cfg.additional_config: pass\n'
        'z = self._get_config_value(\n    additional_config,\n    "four", "VAR", 1)\nq = other.get("five")\n'
    )
    guide = tmp_path / "docs/source/user_guide/configuration/additional_config.md"
    guide.parent.mkdir(parents=True)
    guide.write_text(
        "| `MIGRATED` | `x` |\n### Configuration options\n| `six` | dict |\nThe details of each:\n"
        "**outer.six**\n\n| Name |\n| `seven` | int |\n\n**eight**\n\n| `nine` | int |\n### Example\n| `ten` | x |\n"
    )
    script = loader.ROOT / "catalog" / "engine_options" / "additional_config.py"
    made = subprocess.run(
        [sys.executable, script, f"1.2={tmp_path}"], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(made)["releases"] == {"1.2": ["four", "one", "six", "three", "two"]}
    assert json.loads(made)["sections"] == {"six": ["seven"], "eight": ["nine"]}
