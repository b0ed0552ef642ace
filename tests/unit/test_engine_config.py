"""ascent.engine_config: merging daemon.json, taking it back, and what happens to the service."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import engine_config
from ascent.errors import ParseError

RUNNING = {"loaded": "loaded", "active": "active", "enabled": "enabled", "since": "100"}
FRESH = {"schema": 1, "undo": [], "pending": ""}


def seen(settings: dict | None, *, containers: int = 0, saved: dict | None = None, **service: str) -> dict:
    return {
        "text": None if settings is None else json.dumps(settings),
        "source": "/etc/docker/daemon.json",
        "service": {**RUNNING, **service},
        "containers": containers,
        "saved": saved or FRESH,
    }


def test_a_sites_own_settings_stay() -> None:
    theirs = {"data-root": "/data/docker", "insecure-registries": ["a:5000"], "log-opts": {"tag": "x"}}
    wish = engine_config.wanted({"log-opts": {"max-file": 5}}, ["http://m"], ["b:5000", "a:5000"])
    merged, _ = engine_config.merge(theirs, wish)
    assert merged == {
        "data-root": "/data/docker",
        "insecure-registries": ["a:5000", "b:5000"],
        "registry-mirrors": ["http://m"],
        "log-opts": {"tag": "x", "max-file": "5"},
    }
    assert theirs["insecure-registries"] == ["a:5000"], "the input is not changed"


JSON = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3) | st.lists(st.text(max_size=2), unique=True, max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=1), inner, max_size=3),
    max_leaves=8,
)
SETTINGS = st.dictionaries(st.text("abcd", min_size=1, max_size=1), JSON, max_size=4)


@given(SETTINGS, SETTINGS)
def test_undo_is_exact_and_a_second_merge_adds_nothing(theirs: dict, wish: dict) -> None:
    merged, undo = engine_config.merge(theirs, wish)
    assert engine_config.unmerge(merged, json.loads(json.dumps(undo))) == theirs
    assert engine_config.merge(merged, wish) == (merged, [])


def test_a_value_changed_by_others_after_us_is_left_alone() -> None:
    merged, undo = engine_config.merge({}, {"log-driver": "json-file", "insecure-registries": ["a"]})
    merged["log-driver"] = "journald"
    merged["insecure-registries"].append("theirs")
    assert engine_config.unmerge(merged, undo) == {"log-driver": "journald", "insecure-registries": ["theirs"]}


def test_the_second_run_plans_nothing_and_a_dropped_setting_is_taken_back() -> None:
    first = engine_config.plan({"live-restore": True, "insecure-registries": ["a"]}, seen({"debug": False}))
    assert first["keys"] == ["insecure-registries", "live-restore"]
    now = json.loads(first["text"])
    again = engine_config.plan({"live-restore": True, "insecure-registries": ["a"]}, seen(now, saved=first["saved"]))
    assert (again["write"], again["steps"], again["saved"]) == (False, [], first["saved"])
    dropped = engine_config.plan({"live-restore": True}, seen(now, saved=first["saved"]))
    assert json.loads(dropped["text"]) == {"debug": False, "live-restore": True}
    gone = engine_config.plan(
        {}, seen({"live-restore": True}, saved=engine_config.plan({"live-restore": True}, seen(None))["saved"])
    )
    assert (gone["write"], gone["text"]) == (True, None)


@pytest.mark.parametrize(
    ("wish", "observed", "steps"),
    [
        ({"insecure-registries": ["a"]}, seen({}, containers=3), ["reload"]),
        ({"log-driver": "local"}, seen({}), ["restart"]),
        ({"log-driver": "local"}, seen({}, active="inactive", enabled="disabled"), ["enable", "start"]),
        ({"log-driver": "local"}, seen({"log-driver": "local"}), []),
        ({}, seen({}, active="failed"), ["start"]),
    ],
)
def test_the_service_is_touched_no_more_than_needed(wish: dict, observed: dict, steps: list[str]) -> None:
    assert engine_config.plan(wish, observed)["steps"] == steps


def test_a_restart_never_stops_containers_unasked_and_is_not_forgotten() -> None:
    wish = {"log-driver": "local", "debug": True}
    busy = engine_config.plan(wish, seen({}, containers=2))
    assert busy["steps"] == ["reload"]
    assert busy["restart_required"]
    assert "log-driver" in busy["findings"][0]["summary"]
    now = json.loads(busy["text"])

    later = engine_config.plan(wish, seen(now, containers=2, saved=busy["saved"]))
    assert later["restart_required"]
    assert (later["write"], later["steps"], len(later["findings"])) == (False, [], 1)
    idle = engine_config.plan(wish, seen(now, containers=0, saved=busy["saved"]))
    assert (idle["steps"], idle["restart_required"]) == (["restart"], False)
    restarted_by_others = engine_config.plan(wish, seen(now, containers=2, saved=busy["saved"], since="200"))
    assert (restarted_by_others["steps"], restarted_by_others["findings"]) == ([], [])
    assert engine_config.plan(wish, seen({}, containers=2), restart_ok=True)["steps"] == ["restart"]


def test_a_file_that_is_no_json_is_named_with_its_line() -> None:
    with pytest.raises(ParseError, match=r"/etc/docker/daemon\.json, line 2: not JSON .*: '  \"debug\" true'"):
        engine_config.parse('{\n  "debug" true\n}', "/etc/docker/daemon.json")
    with pytest.raises(ParseError, match="wanted an object"):
        engine_config.parse("[]", "/etc/docker/daemon.json")
    assert engine_config.parse(" \n", "x") == {}


def test_a_missing_unit_reads_as_not_found() -> None:
    text = "LoadState=not-found\nActiveState=inactive\nUnitFileState=\nActiveEnterTimestampMonotonic=0\n"
    assert engine_config.parse_service(text) == {
        "loaded": "not-found",
        "active": "inactive",
        "enabled": "disabled",
        "since": "0",
    }
