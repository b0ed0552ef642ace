"""What the engines' counters have to show after requests were sent at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ascent import planner, traffic
from ascent_controller import checking
from tests.unit import planning_inputs as inputs
from tests.unit.engine_harness import Process, free_ports, make_machine, serve

PROMPT, GENERATION = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
PREFIX, EXTERNAL = "vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"


def engine(name: str, role: str, ranks: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "host": "n1",
        "role": role,
        "metrics_url": f"http://192.0.2.1/{name}",
        "ranks": ranks,
        "prefix_caching": False,
        "speculative": False,
        "max_model_len": None,
        **more,
    }


def counts(**values: list[float]) -> traffic.Counts:
    names = {"prompt": PROMPT, "generation": GENERATION, "prefix": PREFIX, "external": EXTERNAL, "drafted": DRAFTED}
    return {names[name]: {str(rank): value for rank, value in enumerate(ranks)} for name, ranks in values.items()}


PD = [engine("prefill-0", "prefill"), engine("decode-0", "decode", ranks=2)]
PD_ZERO = {"prefill-0": counts(prompt=[5], generation=[0]), "decode-0": counts(generation=[3, 3], external=[0, 0])}
PD_GOOD = {"prefill-0": counts(prompt=[99], generation=[8]), "decode-0": counts(generation=[64, 64], external=[9, 9])}


def ids(engines: list[dict[str, Any]], before: Any, after: Any, errors: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    found = traffic.judge(engines, before, after, errors, 8)["findings"]
    return [(one["id"], one["severity"]) for one in found]


def test_a_sound_service_has_no_findings() -> None:
    told = traffic.judge(PD, PD_ZERO, PD_GOOD, [], 8)
    assert told["findings"] == []
    assert told["traffic"]["decode-0"] == {EXTERNAL: 18, GENERATION: 122}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"prefill-0": counts(prompt=[5], generation=[0])}, ("instance-idle", "error")),
        ({"decode-0": counts(generation=[64, 3], external=[9, 0])}, ("rank-idle", "warning")),
        ({"decode-0": counts(generation=[64], external=[9])}, ("rank-idle", "warning")),
        ({"decode-0": counts(generation=[3, 3], external=[0, 0])}, ("instance-idle", "error")),
        ({"decode-0": counts(generation=[64, 64], external=[0, 0])}, ("kv-not-transferred", "error")),
        ({"decode-0": None}, ("counters-unreadable", "info")),
    ],
)
def test_who_takes_no_part_is_named(changed: Any, wanted: tuple[str, str]) -> None:
    assert ids(PD, PD_ZERO, {**PD_GOOD, **changed}) == [wanted]


@pytest.mark.parametrize(
    ("more", "grown", "wanted"),
    [
        ({"speculative": True}, counts(generation=[9], drafted=[0]), [("speculation-idle", "warning")]),
        ({"speculative": True}, counts(generation=[9], drafted=[4]), []),
        ({"prefix_caching": True}, counts(generation=[9], prefix=[0]), [("prefix-cache-idle", "warning")]),
        ({"prefix_caching": True}, counts(generation=[9], prefix=[4]), []),
    ],
)
def test_features_that_are_on_have_to_work(more: dict[str, Any], grown: Any, wanted: Any) -> None:
    one = engine("serve-0", "serve", **more)
    zero = {"serve-0": {name: {"0": 0.0} for name in grown}}
    assert ids([one], zero, {"serve-0": grown}) == wanted


def test_failed_requests_are_the_finding() -> None:
    assert ids(PD, PD_ZERO, PD_GOOD, ("HTTP 500: no",)) == [("requests-at-once-fail", "error")]


def test_prompts_keep_below_the_longest_sequence() -> None:
    assert len(set(traffic.prompts(8))) == 8
    assert len(traffic.prompts(1, 131072)[0].split()) > 400
    assert len(traffic.prompts(1, 512)[0].split()) * 5 < 512
    assert traffic.prompts(1, 64)[0].startswith("Now count")


def test_every_server_of_a_plan_is_asked_for_its_ranks() -> None:
    recipe = inputs.recipe(inputs.PD)
    plan = planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)))
    asked = checking.traffic_engines(plan)
    assert [one["name"] for one in asked] == [one["name"] for one in plan["instances"]]
    for one, instance in zip(asked, plan["instances"], strict=True):
        head = next(item for item in plan["processes"] if item["name"] == instance["processes"][0])
        assert (one["role"], one["ranks"], one["host"]) == (head["role"], head["parallel"]["data"], head["host"])
        assert one["metrics_url"] == f"{instance['endpoint']['url']}/metrics"


def test_servers_without_a_router_are_asked_by_themselves() -> None:
    recipe = inputs.recipe(inputs.PD)
    routed = planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)))
    assert {one["entry"] for one in checking.traffic_engines(routed)} == {routed["endpoint"]["url"]}
    first = routed["instances"][0]
    alone = {**routed, "endpoint": {"url": first["endpoint"]["url"], "process": first["processes"][0]}}
    asked = checking.traffic_engines(alone)
    assert [one["entry"] for one in asked] == [one["endpoint"]["url"] for one in routed["instances"]]


def test_both_ranks_of_a_server_answer(tmp_path: Any) -> None:
    port = free_ports(4)
    argv = serve(port, "--data-parallel-size", "2", "--data-parallel-rpc-port", str(port + 1))
    process = Process(make_machine(tmp_path / "machine"), argv, tmp_path / "serve.log")
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_for("Application startup complete")
        one = engine("serve-0", "serve", ranks=2, metrics_url=f"{url}/metrics", max_model_len=2048)
        told = traffic.check(url, "tiny", [one], timeout=60)
        more = traffic.check(url, "tiny", [{**one, "ranks": 3}], timeout=60)
    finally:
        process.stop()
    assert told["findings"] == [], json.dumps(told)
    assert told["traffic"]["serve-0"][GENERATION] > 0
    assert [item["id"] for item in more["findings"]] == ["rank-idle"]


def rank(number: int, text: str = "one two three", error: str = "", status: int | None = 200) -> dict[str, Any]:
    known = {"engine": "serve-0", "role": "serve", "rank": number, "host": f"n{number}"}
    return {**known, "text": text, "error": error, "status": status}


@pytest.mark.parametrize(
    ("odd", "wanted"),
    [
        (rank(3), []),
        (rank(3, "", "no answer within 5 s", None), [("rank-fails", "error", "n3")]),
        (rank(3, "", "HTTP 500: dead", 500), [("rank-fails", "error", "n3")]),
        (rank(3, "", "HTTP 400: no such rank", 400), []),
        (rank(0, "", "HTTP 404: no such model", 404), [("served-name-wrong", "error", "n0")]),
        (rank(3, "four five six"), [("rank-differs", "warning", "n3")]),
        (rank(3, "\ufffd\x01\x02 \ufffd"), [("rank-differs", "error", "n3")]),
        (rank(3, "one two three four"), []),
    ],
)
def test_a_rank_is_judged_by_itself(odd: dict[str, Any], wanted: Any) -> None:
    found = traffic.judge_ranks([rank(0), rank(1), rank(2), odd])
    assert [(one["id"], one["severity"], one["host"]) for one in found] == wanted


def test_of_two_ranks_nobody_knows_which_is_right() -> None:
    assert traffic.judge_ranks([rank(0), rank(1, "four five six")]) == []


def test_an_idle_rank_that_answers_by_itself_is_no_fault() -> None:
    after = {**PD_GOOD, "decode-0": counts(generation=[64, 3], external=[9, 0])}
    asked = [{"engine": "decode-0", "rank": 1, "error": ""}]
    (found,) = traffic.judge(PD, PD_ZERO, after, [], 8, asked)["findings"]
    assert (found["id"], found["severity"]) == ("rank-idle", "info")


def test_a_release_without_the_counter_proves_no_transfer() -> None:
    after = {**PD_GOOD, "decode-0": counts(generation=[64, 64])}
    before = {**PD_ZERO, "decode-0": counts(generation=[3, 3])}
    assert ids(PD, before, after) == [("kv-transfer-unproven", "info")]


def test_drafts_that_are_never_right_are_useless() -> None:
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    grown = {GENERATION: {"0": 90.0}, DRAFTED: {"0": 80.0}, accepted: {"0": 0.0}}
    zero = {"serve-0": {name: {"0": 0.0} for name in grown}}
    one = engine("serve-0", "serve", speculative=True)
    assert ids([one], zero, {"serve-0": grown}) == [("speculation-useless", "warning")]


def test_the_engine_s_word_on_its_prefix_cache_counts() -> None:
    page = 'vllm:cache_config_info{block_size="128",enable_prefix_caching="False",engine="0"} 1.0\n'
    page += 'vllm:generation_tokens_total{engine="0"} 9\nvllm:prefix_cache_hits_total{engine="0"} 0\n'
    one = engine("serve-0", "serve", prefix_caching=True)
    zero = {"serve-0": {GENERATION: {"0": 0.0}, PREFIX: {"0": 0.0}}}
    assert ids([one], zero, {"serve-0": traffic.scrape(page)}) == []
    on = traffic.scrape(page.replace("False", "True"))
    assert ids([one], zero, {"serve-0": on}) == [("prefix-cache-idle", "warning")]
