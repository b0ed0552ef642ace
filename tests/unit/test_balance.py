"""How a load was shared: chance is not told, what chance does not do is."""

from __future__ import annotations

from typing import Any

import pytest

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
    ],
)
def test_what_chance_does_not_do_is_told(after: list[tuple[float, float]], wanted: list[tuple[str, str]]) -> None:
    told = balance.judge(ENGINES, {}, shares(*after))
    assert [(one["id"], one["host"]) for one in told["findings"]] == wanted
    assert [row["requests"] for row in told["ranks"]] == [requests for requests, _ in after]


def test_only_what_was_counted_meanwhile_counts() -> None:
    before = shares((1000, 20), (2, 20))
    after: dict[Any, Any] = shares((1008, 20), (10, 20))
    assert balance.judge(ENGINES, before, after)["findings"] == []
    assert [row["itl_ms"] for row in balance.judge(ENGINES, before, after)["ranks"]] == [None, None]


def test_an_engine_without_a_page_is_left_out() -> None:
    with Server(Behaviour(status=404)) as server:
        assert balance.read([{"name": "e", "metrics_url": f"{server.url}/metrics"}], timeout=2) == {}
