"""How a load was shared: chance is not told, what chance does not do is."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import balance
from tests.openai_server import Behaviour, Server

ENGINES = [{"name": "serve-0", "host": "n1", "hosts": ["n1", "n1", "n2", "n2"], "role": "serve", "metrics_url": "x"}]
PAGE = """# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 3.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 2.0
vllm:request_success_total{engine="1",finished_reason="length",model_name="m"} 4.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 1.5
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 60.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.1",model_name="m"} 60.0
other_total{engine="0"} 7
vllm:request_success_total{engine="1"} nonsense
"""


def shares(*ranks: tuple[float, float]) -> balance.Shares:
    """(requests, milliseconds a token) of each rank."""
    return {
        ("serve-0", str(rank)): {"requests": requests, "seconds": itl / 10, "tokens": 100.0}
        for rank, (requests, itl) in enumerate(ranks)
    }


def test_a_page_is_read_by_rank() -> None:
    assert balance._page(PAGE) == {
        "0": {"requests": 5.0, "seconds": 1.5, "tokens": 60.0},
        "1": {"requests": 4.0, "seconds": 0.0, "tokens": 0.0},
    }


@pytest.mark.parametrize(
    ("after", "wanted"),
    [
        ([(8, 20), (8, 21), (8, 20), (8, 19)], []),
        ([(10, 20), (6, 21), (9, 20), (7, 19)], []),
        ([(29, 20), (1, 21), (1, 20), (1, 19)], [("rank-imbalance", "n1")]),
        ([(8, 20), (8, 21), (8, 20), (8, 61)], [("rank-slow", "n2")]),
        ([(0, 0), (0, 0), (0, 0), (0, 0)], []),
        ([(8, 20), (0, 20)], [("rank-imbalance", "n1")]),
        ([(0, 20), (16, 20)], [("rank-imbalance", "n1")]),
        ([(4, 20), (0, 20)], []),
        ([(11, 20), (11, 20), (10, 20), (0, 20)], [("rank-imbalance", "n2")]),
        ([(16, 20), (16, 20), (0, 20), (0, 20)], [("rank-imbalance", "n1"), ("rank-imbalance", "n1")]),
        ([(30, 20), (10, 20), (10, 20), (0, 20)], [("rank-imbalance", "n1"), ("rank-imbalance", "n2")]),
        ([(800, 20), (1000, 20), (1200, 20), (1000, 20)], []),
    ],
)
def test_what_chance_does_not_do_is_told(after: list[tuple[float, float]], wanted: list[tuple[str, str]]) -> None:
    told = balance.judge(ENGINES, {}, shares(*after))
    assert [(one["id"], one["host"]) for one in told["findings"]] == wanted
    assert [row["requests"] for row in told["ranks"]] == [requests for requests, _ in after]


@given(st.integers(1, 300), st.integers(2, 40), st.data())
def test_the_tail_is_the_exact_one(total: int, count: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(0, total))
    ways = sum(math.comb(total, each) * (count - 1) ** (total - each) for each in range(least, total + 1))
    assert balance._by_chance(least, total, count) == pytest.approx(float(Fraction(ways, count**total)), abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("total", [2, 8, 16, 32, 100, 500])
def test_chance_alone_is_hardly_ever_told(total: int, count: int) -> None:
    """Of routers that choose at random in one run of fifty at most: one in a hundred for either side."""
    source = random.Random(f"{total} {count}")
    runs, told = 300, 0
    for _ in range(runs):
        spread = Counter(source.choices(range(count), k=total))
        rows = [{"engine": "e", "rank": str(rank), "requests": spread[rank]} for rank in range(count)]
        told += bool(balance._uneven(rows))
    # 6 of 300 are expected at most; four standard deviations more are no chance.
    assert told <= 16


@given(st.integers(1, 3000), st.integers(1, 64))
def test_turns_are_never_told(total: int, count: int) -> None:
    rows = [{"engine": "e", "rank": str(rank), "requests": len(range(rank, total, count))} for rank in range(count)]
    assert balance._uneven(rows) == []


def test_only_what_was_counted_meanwhile_counts() -> None:
    before = shares((1000, 20), (2, 20))
    after: dict[Any, Any] = shares((1008, 20), (10, 20))
    assert balance.judge(ENGINES, before, after)["findings"] == []
    assert [row["itl_ms"] for row in balance.judge(ENGINES, before, after)["ranks"]] == [None, None]


def test_an_engine_that_started_anew_counts_from_nought() -> None:
    told = balance.judge(ENGINES, shares((1000, 20), (1000, 20)), shares((8, 20), (1008, 20)))
    assert [row["requests"] for row in told["ranks"]] == [8, 8]
    assert told["findings"] == []


def test_an_engine_without_a_page_is_left_out() -> None:
    with Server(Behaviour(status=404)) as server:
        assert balance.read([{"name": "e", "metrics_url": f"{server.url}/metrics"}], timeout=2) == {}
