from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import bench
from tests.openai_server import Behaviour, Server


def test_percentile_interpolates():
    assert bench.percentile([], 50) is None
    assert bench.percentile([7.0], 99) == 7.0
    assert bench.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert bench.percentile(list(map(float, range(101))), 90) == 90.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_inside(values):
    shares = [bench.percentile(values, share) for share in (0, 50, 90, 99, 100)]
    assert shares[0] == min(values)
    assert shares[-1] == max(values)
    assert shares[1] == pytest.approx(statistics.median(values))
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(shares))


def record(start, arrivals, tokens, ok=True):
    return {
        "ok": ok,
        "error": None if ok else "refused",
        "start": start,
        "arrivals": arrivals,
        "prompt_tokens": 10,
        "completion_tokens": tokens,
    }


def test_figures_of_known_times():
    records = [record(0.0, [0.1, 0.2, 0.3], 3), record(0.0, [0.3, 0.4, 0.5], 3), record(0.0, [], 0, ok=False)]
    figures = bench.summarize(records, 2.0, {"ttft_ms": 200})
    assert (figures["completed"], figures["errors"], figures["error_samples"]) == (2, 1, ["refused"])
    assert figures["ttft_ms"]["mean"] == pytest.approx(200)
    assert figures["tpot_ms"]["mean"] == pytest.approx(100)
    assert figures["itl_ms"]["p50"] == pytest.approx(100)
    assert figures["e2e_ms"]["p50"] == pytest.approx(400)
    assert (figures["output_throughput"], figures["total_throughput"]) == (3.0, 13.0)
    assert (figures["request_throughput"], figures["goodput"]) == (1.0, 0.5)


def test_tokens_are_counted_by_usage_not_by_chunks():
    """Three chunks of four tokens: eleven tokens come after the first, and the time is shared among them."""
    figures = bench.summarize([record(0.0, [0.1, 0.3, 1.2], 12)], 1.0)
    assert figures["tpot_ms"]["mean"] == pytest.approx(100)
    assert figures["itl_ms"]["mean"] == pytest.approx(550)
    assert figures["completion_tokens"] == 12


def test_nothing_completed_has_no_figures_and_no_crash():
    figures = bench.summarize([record(0.0, [], 0, ok=False)], 0.0)
    assert (figures["completed"], figures["ttft_ms"]["mean"], figures["output_throughput"]) == (0, None, 0.0)
    assert bench.table({**figures, "simulated": False})[1][1] == "-"


def test_prompts_are_repeatable_and_different():
    assert bench.prompts(3, 5, seed=1) == bench.prompts(3, 5, seed=1)
    assert bench.prompts(3, 5, seed=1) != bench.prompts(3, 5, seed=2)
    assert len(set(bench.prompts(20, 50))) == 20
    assert all(len(prompt.split()) == 50 for prompt in bench.prompts(3, 50))


def test_runs_ask_for_the_same_words_in_an_order_of_their_own():
    one, other = (bench.prompts(20, 128, seed=1, nonce=nonce) for nonce in ("a", "b"))
    assert one == bench.prompts(20, 128, seed=1, nonce="a")
    assert [sorted(prompt.split()) for prompt in one] == [sorted(prompt.split()) for prompt in other]
    assert [prompt.split()[0] for prompt in one] == [prompt.split()[0] for prompt in other]
    # Blocks of 16 tokens are the smallest that engines cache by default; not one of an earlier run's is of any use.
    begins = [" ".join(prompt.split()[:16]) for prompt in one + other]
    assert len(set(begins)) == len(begins)


def test_no_run_repeats_the_prompts_of_an_earlier_one():
    """The engine that serves before an upgrade has answered the benchmark of its own launch."""
    with Server(Behaviour()) as server:
        runs = [bench.run(server.url, "m", concurrency=2, requests=4, output_tokens=4, seed=7) for _ in range(2)]
        again = bench.run(server.url, "m", concurrency=2, requests=4, output_tokens=4, seed=7, nonce="n")
        twice = bench.run(server.url, "m", concurrency=2, requests=4, output_tokens=4, seed=7, nonce="n")
    asked = [sorted(body["prompt"] for body in server.requests[start : start + 6]) for start in (0, 6, 12, 18)]
    begins = {prompt[:60] for run in asked[:2] for prompt in run}
    assert len(begins) == 12
    assert asked[2] == asked[3]
    assert len({run["prompt_tokens"] for run in (*runs, again, twice)}) == 1
    assert runs[0]["conditions"]["nonce"] != runs[1]["conditions"]["nonce"]


def test_load_is_concurrent_warmed_up_and_counted():
    with Server(Behaviour(words_per_chunk=4, chunk_seconds=0.01)) as server:
        result = bench.run(
            server.url, "qwen3.5", concurrency=4, requests=12, input_tokens=7, output_tokens=15, warmup=3
        )
    assert (result["completed"], result["errors"], result["simulated"]) == (12, 0, False)
    assert result["max_in_flight"] == 4
    assert len(server.requests) == 15
    assert (result["prompt_tokens"], result["completion_tokens"]) == (12 * 7, 12 * 15)
    assert server.requests[0]["stream_options"] == {"include_usage": True}
    # Four chunks of 15 tokens: the same time is three gaps between chunks, and fourteen tokens after the first.
    assert result["itl_ms"]["mean"] / result["tpot_ms"]["mean"] == pytest.approx(14 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(status=503), "HTTP 503"),
        (Behaviour(usage=False), "no usage"),
        (Behaviour(cut_stream=True), r"without [DONE]"),
        (Behaviour(error_event=True), "kv transfer failed"),
        (Behaviour(text=""), "no words"),
    ],
)
def test_failed_requests_are_errors_with_their_text(behaviour, words):
    with Server(behaviour) as server:
        result = bench.run(server.url, "m", concurrency=2, requests=2, warmup=0)
    assert (result["completed"], result["errors"]) == (0, 2)
    assert words in result["error_samples"][0]
    (finding,) = bench.judge(result)
    assert finding["severity"] == "error"


def test_refused_connection_is_an_error_not_a_crash():
    with Server(Behaviour()) as server:
        url = server.url
    result = bench.run(url, "m", concurrency=1, requests=1, warmup=0)
    assert "connection refused" in result["error_samples"][0]


@pytest.mark.parametrize(
    "behaviour",
    [Behaviour(version={"version": "1", "simulated": True}), Behaviour(headers={"X-Ascent-Simulated": "1"})],
)
def test_a_simulator_is_stamped_and_never_compared(behaviour):
    with Server(behaviour) as server:
        result = bench.run(
            server.url, "m", concurrency=1, requests=1, warmup=0, simulated_urls=[server.url + "/version"]
        )
    assert result["simulated"] is True
    assert bench.table(result)[0][0] == "simulated"
    row = {"conditions": {"concurrency": 1}, "figures": {"ttft_ms": 1}}
    (told,) = bench.compare({"one": row}, result)
    assert (told["severity"], told["fix"]) == ("info", "")
    assert "not compared with the reference one, because: the engine is a simulator" in told["summary"]


def test_comparison_needs_the_same_conditions():
    result = {
        "simulated": False,
        "conditions": {"concurrency": 8, "input_tokens": 128},
        "ttft_ms": {"mean": 50.0},
        "output_throughput": 120.0,
    }
    row = {
        "source": "seed 004",
        "conditions": {"concurrency": 8, "input_tokens": 128},
        "figures": {"ttft_ms": 100, "output_throughput": 100, "unknown": 3},
    }
    findings = bench.compare({"one": row}, result)
    assert [item["summary"].split(",")[0] for item in findings] == ["output_throughput: 120", "ttft_ms: 50"]
    assert {item["severity"] for item in findings} == {"info"}
    assert bench.compare({"one": {**row, "conditions": {}}}, result) == []
    assert bench.compare({"one": {**row, "conditions": {"dataset": "gsm8k"}}}, result) == []
    assert bench.compare({}, result) == []


SIZES = {"requests": 2880, "concurrency": 576, "input_tokens": 3584, "output_tokens": 1536}


@pytest.mark.parametrize(
    ("conditions", "why", "fix"),
    [
        (SIZES, "requests 32 != 2880, concurrency 8 != 576, input_tokens 128 != 3584, output_tokens 64 != 1536", True),
        ({**SIZES, "cache": "cold"}, "cache unknown != cold", False),
        ({"concurrency": 9}, "concurrency 8 != 9", False),
    ],
)
def test_why_a_reference_is_not_compared_is_told(conditions: Any, why: str, fix: bool) -> None:
    (told,) = bench.compare({"performance": {"conditions": conditions, "figures": {"ttft_ms": 1}}}, figures(100.0))
    assert (told["id"], told["severity"]) == ("bench-reference", "info")
    assert "not compared with the reference performance, because: " in told["summary"]
    assert why in told["summary"]
    assert ("-e endpoint_check_bench_reference=performance" in told["fix"]) is fix


def test_time_lines_start_with_the_first_request():
    late = {"start": 12.0, "end": 13.0, "arrivals": [], "error": "refused"}
    early = {"start": 10.0, "end": 10.5, "arrivals": [10.2, 10.23, 10.3], "error": None}
    assert bench.timelines([late, early]) == [
        {"start_s": 0.0, "end_s": 0.5, "ttft_ms": 200.0, "itl_ms": [30.0, 70.0], "error": None},
        {"start_s": 2.0, "end_s": 3.0, "ttft_ms": None, "itl_ms": [], "error": "refused"},
    ]


def figures(throughput: float, ttft: float = 100.0, **more: Any) -> dict[str, Any]:
    sizes = {"concurrency": 8, "requests": 32, "input_tokens": 128, "output_tokens": 64}
    means = {name: {"mean": value} for name, value in (("ttft_ms", ttft), ("tpot_ms", 20.0), ("e2e_ms", 1400.0))}
    return {"conditions": sizes, "simulated": False, "output_throughput": throughput, **means, **more}


def on(throughput: float, **conditions: Any) -> dict[str, Any]:
    """Figures under other conditions than those of `figures`."""
    result = figures(throughput)
    return {**result, "conditions": {**result["conditions"], **conditions}}


@pytest.mark.parametrize(
    ("last", "drop", "wanted"),
    [
        (None, 0.2, []),
        (figures(100.0), 0.2, [("bench-last", "info")]),
        (figures(110.0), 0.2, [("bench-last", "info")]),
        (figures(121.0), 0.2, [("bench-last", "warning")]),
        (figures(130.0), 0.2, [("bench-drop", "error")]),
        (figures(130.0), None, [("bench-last", "warning")]),
        (figures(100.0, ttft=60.0), 0.2, [("bench-last", "warning")]),
        (figures(50.0, ttft=200.0), 0.2, [("bench-last", "info")]),
        (figures(900.0, simulated=True), 0.2, [("bench-last", "info")]),
        (figures(900.0, conditions={"concurrency": 9}), 0.2, [("bench-last", "info")]),
        (on(130.0, hardware="atlas-800-a2"), 0.2, [("bench-last", "info")]),
        (on(130.0, hardware="atlas-800-a3", image="old"), 0.2, [("bench-drop", "error")]),
    ],
)
def test_a_run_is_set_beside_the_last_good_one(last: Any, drop: float | None, wanted: Any) -> None:
    found = bench.against(last, on(100.0, hardware="atlas-800-a3", image="new"), drop=drop)
    assert [(one["id"], one["severity"]) for one in found] == wanted


def test_other_hardware_is_named_and_another_image_is_as_well() -> None:
    (other,) = bench.against(on(100.0, hardware="atlas-800-a2"), on(100.0, hardware="atlas-800-a3"))
    assert (other["summary"], other["evidence"]) == (
        "not comparable with the last good run",
        "hardware atlas-800-a2 -> atlas-800-a3",
    )
    (image,) = bench.against(on(100.0, image="engine:1"), on(99.0, image="engine:2"))
    assert "99% of the last good run" in image["summary"]
    assert "image engine:1 -> engine:2" in image["evidence"]


def test_runs_that_each_lose_a_little_are_told_of_all_the_same() -> None:
    """Three runs, each 14 % below the one before: the second is within the tolerance, the third is not."""
    kept: Any = None
    severities = []
    for throughput in (100.0, 86.0, 74.0, 74.0):
        result = figures(throughput)
        severities += [one["severity"] for one in bench.against(kept, result)]
        told = bench.keep(kept, {**result, "requests": [{"start_s": 0.0}]})
        assert told["latest"] == result
        kept = told["result"]
    assert severities == ["info", "warning", "warning"]
    assert kept == figures(100.0)


@pytest.mark.parametrize(
    ("last", "result", "more", "taken"),
    [
        (None, figures(100.0), {}, True),
        (figures(100.0), figures(50.0), {}, False),
        (figures(100.0), figures(50.0), {"accept": True}, True),
        (figures(100.0), figures(110.0), {}, False),
        (figures(100.0), figures(120.0), {}, True),
        (figures(100.0), figures(120.0, ttft=130.0), {}, False),
        (figures(100.0), on(50.0, concurrency=9), {}, True),
        (on(100.0, hardware="a2"), on(50.0, hardware="a3"), {}, True),
        (on(100.0, image="old"), on(90.0, image="new"), {}, False),
        (figures(100.0), figures(110.0), {"tolerance": 0.05}, True),
    ],
)
def test_which_run_later_ones_are_compared_with(last: Any, result: Any, more: Any, taken: bool) -> None:
    assert bench.keep(last, result, **more) == {"result": result if taken else last, "latest": result}


@pytest.mark.parametrize(
    ("last", "before", "wanted"),
    [
        (None, None, []),
        (130.0, None, [("bench-drop", "the last good run")]),
        (None, 130.0, [("bench-drop", "the service before")]),
        (100.0, 100.0, [("bench-last", "the service before")]),
        (120.0, 110.0, [("bench-last", "the last good run"), ("bench-last", "the service before")]),
        (130.0, 110.0, [("bench-last", "the last good run"), ("bench-last", "the service before")]),
    ],
)
def test_an_upgrade_is_set_beside_the_service_before_and_the_last_good_run(last: Any, before: Any, wanted: Any) -> None:
    told = bench.beside(last and figures(last), before and figures(before), figures(100.0), drop=0.2)
    assert [(one["id"], one["summary"].rpartition(" of ")[2].partition(";")[0]) for one in told] == wanted


def test_prompts_have_the_tokens_that_were_asked_for() -> None:
    """The server counts two tokens for each word; the warm-up tells."""
    with Server(Behaviour(tokens_per_word=2)) as server:
        result = bench.run(server.url, "m", concurrency=2, requests=4, input_tokens=60, output_tokens=8)
    assert result["prompt_tokens"] == 4 * 60
