"""The real engine over two servers: two data parallel ranks; prefill and decode with NIXL. Part of `make test-all`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.running import holds
from tests.conformance.suite import CHECKS, layouts
from tests.real_engine.driver import Road, sandbox

CLUSTER = "cpu-pair"
#: The source of vllm-ascend's load_balance_proxy_server_example.py, which can't be had from a package registry.
PROXY_VARIABLE = "ASCENT_VLLM_ASCEND_PROXY"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """Two bare servers, fresh for this module, and gone after it."""
    sandbox("down", CLUSTER)
    sandbox("up", CLUSTER)
    yield Road(CLUSTER, tmp_path_factory.mktemp("runs"))
    sandbox("down", CLUSTER)


def test_two_ranks(road: Road) -> None:
    served = road.deploy("tiny-dp2", ranks=2)
    for check in [*CHECKS, *layouts(served)]:
        holds(check, served)
    road.play("playbooks/stop.yml", "-e", "recipe=tiny-dp2")


def test_prefill_and_decode(road: Road) -> None:
    served = road.deploy("tiny-pd")
    for check in [*CHECKS, *layouts(served)]:
        holds(check, served)
    road.play("playbooks/stop.yml", "-e", "recipe=tiny-pd")
