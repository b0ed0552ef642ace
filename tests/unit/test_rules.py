"""Every rule: an input that breaks it, with the place and the fix, and the shipped recipes that don't."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent import planner, rules
from ascent.errors import InputError
from ascent.findings import failed
from ascent.rules import environment
from ascent_controller import loader
from tests.unit import planning_inputs as inputs

SINGLE = "qwen3.5-397b-a17b-w8a8-128k-a3"
DP2 = "qwen3-235b-a22b-dp2"
W8A8 = {
    "precision": "w8a8",
    "mtp": True,
    "minimum_engine": {"vllm-ascend": "v0.17.0rc1"},
    "devices": {"atlas-800-a3": 16},
}


def check(recipe, hosts=None, model=None, options=None, **more) -> list[dict[str, Any]]:
    """Findings as `planning.prepare` gets them: with the plan where there can be one."""
    hosts = inputs.hosts(inputs.hosts_needed(recipe)) if hosts is None else hosts
    try:
        plan = planner.plan(recipe, inputs.hardware(), hosts)
    except InputError:
        plan = None
    return rules.check(recipe, inputs.hardware(), hosts, plan, model=model, options=options, **more)


def changed(name: str, path: str, value: Any) -> dict[str, Any]:
    """A shipped recipe with one value set, or taken away if the value is ``...``."""
    recipe = inputs.recipe(name)
    here = recipe
    *way, last = path.split("/")
    for part in way:
        here = here.setdefault(part, {})
    if value is ...:
        here.pop(last, None)
    else:
        here[last] = value
    return recipe


@pytest.mark.parametrize("name", [inputs.PD, SINGLE, DP2])
def test_shipped_recipes_break_no_rule(name):
    assert [item["id"] for item in check(inputs.recipe(name)) if item["severity"] != "info"] == []


@pytest.mark.parametrize(
    ("waived", "rule", "severity"),
    [
        ("kv-port-in-transport-windows", "waive-unknown", "error"),
        ("port-clash", "waive-impossible", "error"),
        ("hosts-too-few", "waive-impossible", "error"),
        ("router-missing", "waive-unneeded", "warning"),
    ],
)
def test_waivers_are_judged(waived, rule, severity):
    found = [item for item in check(changed(inputs.PD, f"waive/{waived}", "some reason")) if item["id"] == rule]
    assert [item["severity"] for item in found] == [severity]
    assert f"waive.{waived}" in found[0]["evidence"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("args/data-parallel-size", 2),
        ("args/tensor_parallel_size", 8),
        ("args/data-parallel-rpc-port", 13389),
        ("args/served-model-name", "qwen3"),
        ("kv_transfer", None),
    ],
)
def test_derived_values_may_be_repeated(path, value):
    assert check(changed(DP2, path, value)) == []


def test_devices_of_a_mixed_cluster_are_those_of_the_host():
    hosts = inputs.hosts(1)
    hosts[0]["hardware"] = "atlas-800-a2"
    found = check(inputs.recipe(SINGLE), hosts)
    assert [item["id"] for item in found if item["severity"] == "error"] == ["devices-too-few", "fused-mc2-hardware"]


def test_kv_spans_of_two_instances_on_a_host():
    recipe = inputs.recipe(inputs.PD)
    recipe["pools"]["prefill"].update(instances=2, instances_per_node=2, data_parallel=4)
    assert "kv-ports-overlap" not in [item["id"] for item in check(recipe)]
    plan = planner.plan(recipe, inputs.hardware(), inputs.hosts(3))
    second = next(one for one in plan["processes"] if one["name"] == "prefill-1-head")
    port = next(port for port in second["ports"] if port["name"] == "kv")
    port["first"] -= 1
    found = rules.check(recipe, inputs.hardware(), inputs.hosts(3), plan)
    assert [item["id"] for item in found if item["severity"] == "error"] == ["kv-ports-overlap"]


def test_transport_window_follows_the_mooncake_of_the_image():
    recipe = changed(inputs.PD, "waive", ...)
    new = [item for item in check(recipe) if item["id"] == "kv-port-in-transport-window"]
    assert [item["severity"] for item in new] == ["warning"]  # 36010 of decode is above the window
    recipe["pools"]["decode"]["kv_port"] = 21590
    inside = [item for item in check(recipe) if item["severity"] == "error"]
    assert ["20000-21600" in item["evidence"] for item in inside] == [True]
    recipe["engine"]["version"] = "v0.11.0rc2"
    old = [item for item in check(recipe) if item["severity"] == "error"]
    assert [item["id"] for item in old] == ["kv-port-in-transport-window"] * 2
    recipe["pools"]["prefill"]["kv_port"], recipe["pools"]["decode"]["kv_port"] = 36001, 36100
    assert [item["id"] for item in check(recipe)] == []


def test_a_waived_rule_shows_with_its_reason():
    found = [item for item in check(inputs.recipe(inputs.PD)) if item["id"] == "kv-port-in-transport-window"]
    assert [item["severity"] for item in found] == ["info"]
    assert "Mooncake 0.3.9" in found[0]["cause"]


@pytest.mark.parametrize(
    ("change", "rule", "severity"),
    [
        ({}, None, None),
        ({"mtp": False}, "speculative-weights", "error"),
        ({"minimum_engine": {"vllm-ascend": "v0.22.0"}}, "model-engine-version", "error"),
        ({"devices": {"atlas-800-a3": 32}}, "model-devices", "warning"),
    ],
)
def test_facts_of_the_model_count(change, rule, severity):
    found = check(inputs.recipe(SINGLE), model={**W8A8, **change})
    assert [(item["id"], item["severity"]) for item in found] == ([(rule, severity)] if rule else [])


def test_quantized_weights_need_the_option():
    found = check(changed(SINGLE, "args/quantization", ...), model=W8A8)
    assert [item["id"] for item in found] == ["quantization-matches-weights"]


def test_hosts_have_addresses_of_their_own():
    hosts = inputs.hosts(3)
    hosts[2]["node_ip"] = hosts[0]["node_ip"]
    hosts[1]["ansible_host"] = hosts[0]["ansible_host"] = "192.0.2.1"
    found = [item for item in check(inputs.recipe(inputs.PD), hosts) if item["severity"] == "error"]
    assert [(item["id"], item["host"]) for item in found] == [
        ("host-address-twice", "n001"),
        ("host-address-twice", "n002"),
    ]


@pytest.mark.parametrize(
    ("key", "name", "rule"),
    [
        ("node_ip", SINGLE, "host-address-missing"),
        ("nic", DP2, "host-nic-missing"),
        ("arch", SINGLE, "host-arch-missing"),
        ("nic", SINGLE, None),
        ("arch", DP2, None),
    ],
)
def test_what_a_host_must_tell_depends_on_the_layout(key, name, rule):
    recipe = inputs.recipe(name)
    hosts = inputs.hosts(inputs.hosts_needed(recipe))
    hosts[0][key] = None
    found = rules.check(recipe, inputs.hardware(), hosts)
    assert [item["id"] for item in found] == ([rule] if rule else [])


def test_everything_wrong_is_told_at_once():
    recipe = inputs.recipe(inputs.PD)
    recipe["hardware"] = "atlas-800-a33"
    recipe["router"]["kind"] = "pd"
    hosts = inputs.hosts(2)
    hosts[1].update(pool="decod", node_ip=hosts[0]["node_ip"])
    found = [item["id"] for item in check(recipe, hosts) if item["severity"] == "error"]
    assert sorted(found) == [
        "hardware-unknown",
        "host-address-twice",
        "host-pool-unknown",
        "hosts-too-few",
        "router-matches-connector",
    ]


def test_named_hosts_beyond_a_pools_size_and_spare_hosts():
    hosts = inputs.hosts(4)
    assert [item["id"] for item in check(inputs.recipe(inputs.PD), hosts) if item["severity"] == "warning"] == [
        "host-spare"
    ]
    for host in hosts[:2]:
        host["pool"] = "prefill"
    found = check(inputs.recipe(inputs.PD), hosts)
    assert "hosts-too-many" in [item["id"] for item in found if item["severity"] == "error"]


def test_positions_lead_the_evidence():
    positions = {"recipe:router": "recipes/x.yml:70", "recipe:router.kind": "recipes/x.yml:71"}
    found = check(changed(inputs.PD, "router/kind", "pd"), positions=positions)
    assert failed(found)
    assert found[0]["evidence"].startswith('recipes/x.yml:71: router.kind = "pd"; allowed: pd-layerwise')


def test_a_finding_gives_the_rules_reason_as_its_cause():
    found = check(changed(inputs.PD, "args/enable-prefix-caching", True))
    assert {item["cause"] for item in found if item["id"] == "prefix-caching-in-pd"} == {
        rules.CATALOGUE["prefix-caching-in-pd"].reason
    }


def test_overrides_are_judged_too_and_at_their_own_place():
    recipe = inputs.recipe(inputs.PD)
    recipe["pools"]["decode"]["overrides"] = [
        {"instance": 0, "args": {"enable-prefix-caching": True}},
        {"node": 1, "env": {"HCCL_CONNECT_TIMEOUT": 9}, "kv_transfer": {"kv_role": "kv_producer"}},
    ]
    found = {item["id"]: item["evidence"] for item in check(recipe) if item["severity"] == "error"}
    assert sorted(found) == ["kv-role-fits", "prefix-caching-in-pd", "timeout-range"]
    assert "pools.decode.overrides.0.args.enable-prefix-caching = true" in found["prefix-caching-in-pd"]
    assert "pools.decode.overrides.1.env.HCCL_CONNECT_TIMEOUT" in found["timeout-range"]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_one_mistake_is_told_once_however_many_variants_share_it(size):
    recipe = changed(DP2, "args/tensor-parallel-size", 3)
    recipe["pools"]["serve"]["overrides"] = [{"node": 0, "env": {"A": str(size)}}, {"node": 1, "env": {"A": "0"}}]
    found = [item for item in check(recipe) if item["id"] == "derived-value-typed"]
    assert len(found) == 1


def test_pools_of_one_role_have_one_size():
    recipe = inputs.recipe(inputs.PD)
    recipe["pools"]["more"] = {**recipe["pools"]["prefill"], "tensor_parallel": 4, "data_parallel": 4}
    found = [item for item in check(recipe) if item["id"] == "pd-sizes-differ"]
    assert [item["evidence"].partition(";")[0] for item in found] == [
        "recipe: pools.more.tensor_parallel = 4",
        "recipe: pools.more.data_parallel = 4",
    ]


def test_hardware_is_what_the_hosts_say_they_are():
    hosts = inputs.hosts(1)
    hosts[0]["hardware"] = "atlas-800-a2"
    recipe = changed(SINGLE, "pools/serve/tensor_parallel", 8)
    found = {item["id"]: item["severity"] for item in check(recipe, hosts, model=W8A8)}
    # Devices of an A2 are as large as an A3's, so as many of them are asked for.
    assert found == {"fused-mc2-hardware": "error", "model-devices": "warning"}
    hosts[0]["hardware"] = "h200"
    found = {item["id"]: item["severity"] for item in check(recipe, hosts, model=W8A8)}
    assert "engine-fits-hardware" in found
    assert "model-devices" not in found


def test_memory_metrics_tell_what_is_known():
    given = inputs.recipe(inputs.PD)
    hosts = inputs.hosts(3)
    silent = rules.memory_metrics(given, inputs.hardware(), hosts)
    assert {name: one["known"] for name, one in silent.items()} == {"prefill": False, "decode": False}
    assert "figures" in silent["decode"]["reason"]
    model, _ = loader._model_facts(given, loader.ROOT)
    told = rules.memory_metrics(given, inputs.hardware(), hosts, model)
    assert told["decode"]["known"]
    assert told["decode"]["weights_bytes"] < told["decode"]["budget_bytes"]
    assert told["prefill"]["weights_bytes"] > told["decode"]["weights_bytes"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200000) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
#: What predicates look at, so that nonsense reaches them and not only the option table.
ARGS = (
    "additional-config",
    "block-size",
    "compilation-config",
    "cudagraph-capture-sizes",
    "enable-expert-parallel",
    "enable-prefix-caching",
    "gpu-memory-utilization",
    "hf-overrides",
    "kv-events-config",
    "max-model-len",
    "max-num-batched-tokens",
    "max-num-seqs",
    "quantization",
    "rope-scaling",
    "speculative-config",
)
CONFIGS = st.dictionaries(
    st.sampled_from(
        [
            "cudagraph_capture_sizes",
            "cudagraph_mode",
            "enable_flashcomm1",
            "enable_fused_mc2",
            "expert_tensor_parallel_size",
            "finegrained_tp_config",
            "method",
            "num_speculative_tokens",
            "recompute_scheduler_enable",
            "rope_parameters",
        ]
    ),
    VALUES,
    max_size=4,
)
ENV = (
    "HCCL_BUFFSIZE",
    "HCCL_CONNECT_TIMEOUT",
    "PYTHONHASHSEED",
    "PYTORCH_NPU_ALLOC_CONF",
    "VLLM_ASCEND_ENABLE_FUSED_MC2",
)


@settings(max_examples=60)
@given(
    st.sampled_from([inputs.PD, SINGLE, DP2]),
    st.dictionaries(st.sampled_from(ARGS), VALUES | CONFIGS, max_size=8),
    st.dictionaries(st.sampled_from(ENV), st.none() | st.integers() | st.text(max_size=8), max_size=4),
    VALUES,
)
def test_whatever_options_hold_the_rules_end_in_findings(name, args, env, bench):
    recipe = inputs.recipe(name)
    recipe["args"].update(args)
    recipe["env"].update(env)
    args = bench if isinstance(bench, dict) else {"num-prompts": bench}
    recipe["jobs"] = {"one": {"tool": "vllm-bench", "args": args}}
    model, _ = loader._model_facts(recipe, loader.ROOT)
    for item in check(recipe, model=model):
        assert item["id"] in rules.ALL_RULES | {"waive-unneeded"}
        assert item["fix"]
        assert item["summary"]


@pytest.mark.parametrize("known", [environment.KNOWN, environment.KNOWN_KEYS], ids=["variables", "keys"])
def test_known_names_are_told_apart(known):
    """Leaving a name out of the list must not turn it into a misspelling of another."""
    alike = {
        (one, two)
        for one in known
        for two in known
        if one < two and difflib.SequenceMatcher(None, one, two).ratio() > environment._ALIKE
    }
    assert alike == set()
