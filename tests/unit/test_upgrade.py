"""What an upgrade tells beforehand and afterwards, and what the prober makes of answers and gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ascent import generations, outage, upgrade
from tests.openai_server import Behaviour, Server


def plan(image: str = "engine:1", **definitions: str) -> dict[str, Any]:
    named = definitions or {"head": "a", "headless": "b", "router": "r"}
    processes = [
        {"name": name, "kind": "head", "host": f"n{number}", "definition": value, "argv": [], "env": []}
        for number, (name, value) in enumerate(named.items(), 1)
    ]
    return {
        "cluster": "c",
        "engine": {"image": image},
        "model": {"served_name": "m"},
        "endpoint": {"url": "http://192.0.2.1:8000", "process": "router"},
        "instances": [{"name": "serve-0", "processes": ["head", "headless"]}],
        "processes": processes,
    }


def nodes(running: dict[str, str], good: dict[str, Any] | None = None) -> dict[str, Any]:
    containers = [
        {"state": "running", "labels": {"ascent.process": name, "ascent.definition": definition}}
        for name, definition in running.items()
    ]
    return {"n1": {"container_engine": {"containers": containers}, "state": {"good": good}}}


RUNNING = {"head": "a", "headless": "b", "router": "r"}


def decision(edited: tuple[str, ...] = (), **definitions: str) -> dict[str, Any]:
    """As the action plugin tells it of a cluster where RUNNING runs."""
    made = {"number": 4, "processes": {name: {"definition": value} for name, value in definitions.items()}}
    stop = generations.to_stop(plan(**definitions), made, nodes(RUNNING), edited)
    return {**made, "stop": stop, "edited": list(edited)}


@pytest.mark.parametrize(
    ("wanted", "restarting"),
    [
        (RUNNING, []),
        ({**RUNNING, "router": "x"}, ["router"]),
        ({**RUNNING, "headless": "x"}, ["head", "headless"]),
        ({"head": "a", "headless": "b"}, ["router"]),
    ],
)
def test_an_instance_restarts_as_a_whole_and_nothing_else_does(wanted: dict[str, str], restarting: list[str]) -> None:
    assert upgrade.restarts(plan(**wanted), decision(**wanted), nodes(RUNNING)) == restarting


@pytest.mark.parametrize(("edited", "restarting"), [("headless", ["head", "headless"]), ("router", ["router"])])
def test_a_unit_edited_by_hand_restarts_too(edited: str, restarting: list[str]) -> None:
    assert upgrade.restarts(plan(), decision((edited,), **RUNNING), nodes(RUNNING)) == restarting


def test_the_outage_is_told_from_the_last_launch() -> None:
    new = {**RUNNING, "headless": "x"}
    told = upgrade.announce(
        plan("engine:2", **new), plan(), decision(**new), nodes(RUNNING, {"generations": [], "launch_seconds": 41.6})
    )
    assert [one["id"] for one in told["findings"]] == ["upgrade-plan", "upgrade-outage-expected"]
    assert "engine:1 -> engine:2" in told["findings"][0]["evidence"]
    assert "about 42 s" in told["findings"][1]["summary"]
    assert (told["due"], told["expected_seconds"]) == (True, 41.6)
    assert told["targets"] == [{"url": "http://192.0.2.1:8000", "model": "m"}]


def test_nobody_knows_how_long_what_was_never_timed_takes() -> None:
    new = {**RUNNING, "router": "x"}
    told = upgrade.announce(plan(**new), plan(), decision(**new), nodes(RUNNING))
    assert told["expected_seconds"] is None
    assert "as long as a launch takes" in told["findings"][1]["summary"]


def test_what_is_the_same_is_not_due_and_what_never_ran_can_not_be_upgraded() -> None:
    assert upgrade.announce(plan(), plan(), decision(**RUNNING), nodes(RUNNING))["due"] is False
    told = upgrade.announce(plan(), None, decision(**RUNNING), nodes({}))
    assert [(one["id"], one["severity"]) for one in told["findings"]] == [("upgrade-nothing-serves", "error")]
    assert told["due"] is False


SEEN = {"asked": 9, "failed": 3, "outages": [{"start": 1.0, "seconds": 2.5, "over": True}], "seconds": 2.5}
SEEN |= {"errors": {"connection refused": 3}, "slowest_ms": 12.0}


def test_a_good_end_tells_the_outage_beside_what_was_expected() -> None:
    told = upgrade.outcome(4, None, 3.0, SEEN)
    assert [(one["id"], one["severity"]) for one in told["findings"]] == [("upgrade-outage", "info")]
    assert "2.5 s in 1 part(s), expected were 3 s" in told["findings"][0]["summary"]
    assert "3 x connection refused" in told["findings"][0]["evidence"]
    assert told["metrics"]["upgrade"]["rolled_back"] is False


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        ([{"id": "bench-drop", "severity": "error", "summary": "slow", "cause": "x"}], "slow [bench-drop]"),
        ([{"id": "D16", "severity": "error", "summary": "A disk is full", "cause": "x"}], "A disk is full [D16]"),
        ([], "a task failed"),
    ],
)
def test_a_rollback_says_why(reasons: list[dict[str, Any]], words: str) -> None:
    (found,) = upgrade.outcome(5, 3, None, None, reasons)["findings"]
    assert (found["id"], found["severity"]) == ("upgrade-rolled-back", "error")
    assert words in found["evidence"]
    assert ("upgrade_bench_drop" in found["fix"]) is ("bench-drop" in words)


def test_an_upgrade_that_could_not_be_undone_says_so() -> None:
    reasons = [{"id": "A05", "severity": "error", "summary": "no device", "cause": "x"}]
    told = upgrade.outcome(5, None, None, SEEN, reasons, stuck=True)
    found = told["findings"][-1]
    assert (found["id"], found["severity"]) == ("upgrade-not-undone", "error")
    assert "generation 5 is current" in found["summary"]
    assert found["evidence"] == "no device [A05]"
    assert told["metrics"]["upgrade"]["rolled_back"] is False


def test_a_service_that_stays_away_is_an_error() -> None:
    lasting = {**SEEN, "outages": [{"start": 1.0, "seconds": 2.5, "over": False}]}
    assert upgrade.outcome(4, None, 3.0, lasting)["findings"][0]["severity"] == "error"


def test_gaps_between_answers_are_outages() -> None:
    samples = [[0, 0.1, None], [1, 1.1, "refused"], [2, 2.1, "HTTP 503"], [3, 3.4, None], [4, 9, "refused"]]
    told = outage.summarize(samples)
    assert told["outages"] == [
        {"start": 1, "seconds": 2.0, "over": True},
        {"start": 4, "seconds": 5.0, "over": False},
    ]
    assert (told["asked"], told["failed"], told["seconds"], told["slowest_ms"]) == (5, 3, 7.0, 400.0)
    assert told["errors"] == {"refused": 2, "HTTP 503": 1}
    assert outage.summarize([[0, 1, None]])["outages"] == []


@pytest.mark.parametrize(
    ("behaviour", "wanted"),
    [
        ({}, None),
        ({"status": 503}, "HTTP 503"),
        ({"text": "", "usage": False}, "HTTP 200 without an answer"),
        ({"hang": False, "text": ""}, "HTTP 200 without an answer"),
    ],
)
def test_only_an_answer_counts(behaviour: dict[str, Any], wanted: str | None) -> None:
    with Server(Behaviour(**behaviour)) as server:
        assert outage.ask([{"url": server.url, "model": "m"}], 2) == wanted
        if wanted:
            with Server(Behaviour()) as other:
                both = [{"url": server.url, "model": "m"}, {"url": other.url, "model": "m"}]
                assert outage.ask(both, 2) is None


def test_the_prober_asks_until_it_is_stopped(tmp_path: Path) -> None:
    path, clock = tmp_path / "seen", [0.0]

    def pause(seconds: float) -> None:
        clock[0] += max(seconds, 0.01)
        if clock[0] > 1:
            (tmp_path / "seen.stop").touch()

    with Server(Behaviour()) as server:
        outage.run(
            str(path), [{"url": server.url, "model": "m"}],
            interval=0.25, timeout=2, most=100, now=lambda: clock[0], pause=pause,
        )  # fmt: skip
        asked = len(server.requests)
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples) == asked == 5
    assert {error for _, _, error in samples} == {None}
