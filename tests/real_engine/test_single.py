"""The real engine on one server: the stages that serve NPUs serve it, and it passes the suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.deployment import Deployment
from tests.conformance.running import all_checks, holds
from tests.conformance.suite import Check
from tests.real_engine.driver import Road, reachable, sandbox

CLUSTER = "cpu-single"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """One bare server, fresh for this module, and gone after it."""
    sandbox("down", CLUSTER)
    sandbox("up", CLUSTER)
    yield Road(CLUSTER, tmp_path_factory.mktemp("runs"))
    sandbox("down", CLUSTER)


@pytest.fixture(scope="module")
def served(road: Road) -> Deployment:
    """The deployed service."""
    return road.deploy("tiny-single")


def test_every_stage_passes_on_a_server_without_accelerators(road: Road, served: Deployment) -> None:
    assert served.url
    for stage in ("plan", "preflight", "provision", "tune", "verify", "launch", "check"):
        verdict = road.stage(stage)
        assert verdict["ok"], verdict["findings"]
        assert not [finding for finding in verdict["findings"] if finding["severity"] == "error"], stage
    bench = road.stage("check")["metrics"]
    assert "simulated" not in str(bench), "figures of a real engine are not stamped simulated"


@all_checks
def test_conformance(check: Check, served: Deployment) -> None:
    holds(check, served)


def test_a_second_deploy_changes_nothing_and_stop_ends_it(road: Road, served: Deployment) -> None:
    again = road.deploy("tiny-single")
    assert again.url == served.url
    log = road.log(road.plan()["processes"][0])
    assert log.count("Started server process") == 1, "the container was restarted"
    road.play("playbooks/stop.yml", "-e", "recipe=tiny-single")
    assert not reachable(f"{served.url}/health")
