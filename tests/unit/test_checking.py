"""What the check stage asks, taken from plans of several layouts."""

from __future__ import annotations

import pytest

from ascent import planner
from ascent.errors import AscentError
from ascent_controller import checking
from tests.unit import planning_inputs as inputs


def plan_of(**changes):
    recipe = {**inputs.recipe(inputs.PD), **changes}
    recipe = {key: value for key, value in recipe.items() if value is not None}
    return planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)))


def test_every_endpoint_is_asked_once_and_engines_for_their_models():
    plan = plan_of()
    asked = checking.health_endpoints(plan)
    assert [one["name"] for one in asked] == ["prefill-0", "decode-0", "router"]
    assert [one["url"] for one in asked] == [one["health"] for one in plan["processes"] if one["health"]]
    assert [one.get("models_url", "").rpartition(":")[2] for one in asked] == ["30060/v1/models", "30050/v1/models", ""]


def test_each_server_of_an_external_instance_is_asked_by_itself():
    pools = {
        "prefill": {"role": "prefill", "tensor_parallel": 8, "kv_port": 61000},
        "decode": {"role": "decode", "nodes": 2, "data_parallel": 4, "data_parallel_mode": "external", "port": 9100},
    }
    asked = checking.health_endpoints(plan_of(pools=pools))
    ranks = [one for one in asked if one["name"].startswith("decode")]
    assert [one["name"] for one in ranks] == [f"decode-0-rank-{rank}" for rank in range(4)]
    assert len({one["models_url"] for one in ranks}) == 4
    for one in ranks:
        assert one["models_url"] == one["url"].replace("/health", "/v1/models")
    assert len({one["name"] for one in asked}) == len(asked)


def test_workers_without_an_api_are_asked_for_their_health_only():
    plan = plan_of(
        engine={"name": "dynamo", "image": "example.org/dynamo:1.3.1"},
        hardware="h200",
        pools={"serve": {"tensor_parallel": 8}},
        router={"kind": "dynamo"},
        kv_transfer=None,
        jemalloc=None,
    )
    assert [one.get("models_url") for one in checking.health_endpoints(plan)] == [None, None]
    assert checking.version_urls(plan) == []


def test_checks_run_where_clients_talk_to_or_on_the_first_host_of_a_plan_that_serves_nothing():
    plan = plan_of()
    router = next(one for one in plan["processes"] if one["name"] == "router")
    assert checking.endpoint_host(plan) == router["host"]
    up = {"ansible_facts": {"ascent_node": {"state": {}}}}
    all_up = dict.fromkeys(plan["hosts"], up)
    assert checking.endpoint_host(plan, all_up) == router["host"]
    without = {**all_up, router["host"]: {}}
    others = [host for host in plan["hosts"] if host != router["host"]]
    assert checking.endpoint_host(plan, without) == others[0]
    none_up: dict[str, dict[str, object]] = {host: {} for host in plan["hosts"]}
    assert checking.endpoint_host(plan, none_up) == router["host"], "its own error tells the most"
    assert checking.unread(list(plan["hosts"]), all_up) == []
    (told,) = checking.unread(list(plan["hosts"]), without)
    assert (told["host"], told["severity"]) == (router["host"], "error")
    jobs = plan_of(
        pools={"offline": {"role": "offline", "tensor_parallel": 4, "executor": "mp"}},
        jobs={"offline": {"tool": "offline", "prompts": ["Hello"]}},
        router=None,
        kv_transfer=None,
        reference=None,
    )
    assert jobs["endpoint"] is None
    assert checking.endpoint_host(jobs) == "n000"


def test_the_benchmark_is_the_recipe_s_own_or_that_of_its_reference() -> None:
    sizes = {"requests": 2880, "concurrency": 576, "input_tokens": 3584, "output_tokens": 1536}
    row = {"source": "page", "figures": {"ttft_ms": 1}}
    rows = {"performance": {**row, "conditions": sizes}, "gsm8k": {**row, "conditions": {"dataset": "gsm8k"}}}
    plan = plan_of(reference=rows)
    assert checking.bench_load(plan) == {"concurrency": 8, "requests": 32, "input_tokens": 128, "output_tokens": 64}
    assert checking.bench_load(plan, "performance") == sizes
    for name, why in (("gsm8k", "its conditions are dataset"), ("fast", "there is none")):
        with pytest.raises(AscentError, match=f"{why}. Such rows: performance"):
            checking.bench_load(plan, name)


def test_a_measurement_that_was_asked_for_is_made_unless_none_is_to_be() -> None:
    same = {"plan_hash": "h"}
    assert [checking.bench_due(wanted, "h", same, True) for wanted in ("auto", "always", "never")] == [
        True,
        True,
        False,
    ]
    assert [checking.bench_due(wanted, "h", same) for wanted in ("auto", "always", "never")] == [False, True, False]


def test_conditions_name_hardware_and_image() -> None:
    plan = plan_of()
    assert checking.bench_setting(plan) == {"hardware": "atlas-800-a3", "image": plan["engine"]["image"]}
    plan["engine"]["image"] = None
    assert checking.bench_setting(plan) == {"hardware": "atlas-800-a3"}
