"""outage_probe with a real process that asks a real server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from library import outage_probe
from tests.openai_server import Behaviour, Server


def test_what_clients_saw_while_a_server_was_away(run_module: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "seen.jsonl"
    with Server(Behaviour()) as server:
        given = {"state": "started", "path": str(path), "interval": 0.02, "timeout": 20, "most": 60}
        started = run_module(outage_probe, {**given, "targets": [{"url": server.url, "model": "m"}]})
        assert (started["changed"], started["outage"]) == (False, None)
        wait(lambda: len(server.requests) >= 2)
        server.behaviour.status = 503
        wait(lambda: "HTTP 503" in path.read_text())
        server.behaviour.status = 200
        asked = len(server.requests)
        wait(lambda: len(server.requests) >= asked + 2)
        seen = run_module(outage_probe, {"state": "stopped", "path": str(path)})["outage"]
        asked = len(server.requests)
        time.sleep(0.1)
        assert len(server.requests) == asked, "the process has ended"
    assert [one["over"] for one in seen["outages"]] == [True]
    assert seen["failed"] == seen["errors"]["HTTP 503"] > 0
    assert list(path.parent.iterdir()) == [], "nothing is left on the node"


def wait(what: Any) -> None:
    late = time.monotonic() + 20
    while not what():
        assert time.monotonic() < late
        time.sleep(0.01)


def test_nothing_runs_in_check_mode_and_stopping_nothing_is_no_fault(run_module: Any, tmp_path: Path) -> None:
    targets = [{"url": "http://127.0.0.1:9", "model": "m"}]
    given = {"state": "started", "path": str(tmp_path / "seen"), "targets": targets}
    run_module(outage_probe, given, check=True)
    assert list(tmp_path.iterdir()) == []
    assert run_module(outage_probe, {"state": "stopped", "path": str(tmp_path / "seen")})["outage"] is None


@pytest.mark.parametrize("targets", [[], [{"url": "http://192.0.2.1"}]])
def test_a_target_has_a_place_and_a_name(run_module: Any, tmp_path: Path, targets: Any) -> None:
    told = run_module(outage_probe, {"state": "started", "path": str(tmp_path / "seen"), "targets": targets})
    assert told["failed"]
    assert "url and model" in told["msg"]
