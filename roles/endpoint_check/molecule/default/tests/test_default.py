"""The figures of the first check are kept; idempotence has shown that further checks do not measure again."""

from __future__ import annotations

import json

import pytest

from tests.roles.helpers import Entry, changed, tree


@pytest.fixture(scope="module")
def kept(host) -> dict[str, Entry]:
    """What stages keep of this cluster on the node; the lock's file is no stage's."""
    return {name: entry for name, entry in tree(host, "/var/lib/ascent/molecule").items() if name != "lock.json"}


def test_the_figures_lie_where_the_endpoint_is(host, kept) -> None:
    if host.check_output("hostname") == "role-02":
        assert kept == {}
        return
    assert set(kept) == {"smoke_bench.json", "good.json"}
    assert {(entry.user, entry.mode) for entry in kept.values()} == {("root", 0o640)}
    assert host.file("/var/lib/ascent/molecule").mode == 0o750


def test_the_figures_are_of_the_current_plan_and_marked_simulated(host, kept) -> None:
    plan = json.loads(host.file("/etc/ascent/molecule/current/plan.json").content_string)
    if "good.json" in kept:
        passed = json.loads(kept["good.json"].text)["generations"]
        assert passed[-1]["plan_hash"] == plan["hash"]
    for entry in (entry for name, entry in kept.items() if name == "smoke_bench.json"):
        measured = json.loads(entry.text)
        assert measured["plan_hash"] == plan["hash"]
        result = measured["result"]
        assert result["simulated"] is True
        assert (result["completed"], result["errors"]) == (plan["checks"]["smoke_bench"]["requests"], 0)
        assert 0 < result["ttft_ms"]["p50"] <= result["ttft_ms"]["p99"] <= result["e2e_ms"]["p99"]


def test_measuring_can_be_asked_for() -> None:
    assert changed("converge.yml", "--extra-vars", "endpoint_check_bench=always") == {"role-01": 1, "role-02": 0}


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
