"""Leases on a cluster: one holder at a time, and none that outlives its controller for long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ascent import lease

MINE = {"id": "one", "owner": {"user": "ana", "host": "jump", "pid": 7, "doing": "deploy.yml"}}
YOURS = {"id": "two", "owner": {"user": "ben", "host": "desk", "pid": 9, "doing": "stop.yml"}}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "lock.json")


def change(path: str, verb: str, wanted: dict[str, Any], now: float, force: bool = False) -> dict[str, Any]:
    return lease.change(path, verb, wanted, 60, now, force)


def test_the_second_is_told_who_holds_it(path: str) -> None:
    assert change(path, "take", MINE, 1000)["held"]
    answer = change(path, "take", YOURS, 1010)
    assert not answer["held"]
    assert answer["by"]["owner"] == MINE["owner"]
    assert answer["by"]["taken"] == 1000


def test_a_holder_may_take_it_again_and_keeps_the_time(path: str) -> None:
    change(path, "take", MINE, 1000)
    assert change(path, "take", MINE, 1030)["held"]
    assert change(path, "take", YOURS, 1070)["by"]["taken"] == 1000


def test_what_is_not_renewed_lapses(path: str) -> None:
    change(path, "take", MINE, 1000)
    change(path, "renew", MINE, 1050)
    assert not change(path, "take", YOURS, 1100)["held"]
    assert change(path, "take", YOURS, 1111)["held"]
    assert not change(path, "renew", MINE, 1112)["held"], "the first is told that it lost it"


def test_a_released_one_is_free(path: str) -> None:
    change(path, "take", MINE, 1000)
    change(path, "release", MINE, 1001)
    assert change(path, "take", YOURS, 1002)["held"]


def test_nobody_releases_or_renews_what_is_not_theirs(path: str) -> None:
    change(path, "take", MINE, 1000)
    change(path, "release", YOURS, 1001)
    assert not change(path, "renew", YOURS, 1002)["held"]
    assert not change(path, "take", YOURS, 1003)["held"]


def test_force_takes_it_over(path: str) -> None:
    change(path, "take", MINE, 1000)
    assert change(path, "take", YOURS, 1001, force=True)["held"]
    assert not change(path, "renew", MINE, 1002)["held"]


def test_a_clock_that_was_set_back_frees_it(path: str) -> None:
    change(path, "take", MINE, 100_000)
    assert change(path, "take", YOURS, 1000)["held"]


@pytest.mark.parametrize("text", ["", '{"id": "on', "[]", '{"id": "one", "taken": "x", "renewed": 1}'])
def test_half_a_file_is_no_lease(path: str, text: str) -> None:
    Path(path).parent.mkdir()
    Path(path).write_text(text)
    assert change(path, "take", YOURS, 1000)["held"]


def test_it_is_for_root_to_read(path: str) -> None:
    change(path, "take", MINE, 1000)
    assert Path(path).stat().st_mode & 0o777 == 0o640


def test_a_request_is_answered_on_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    lease.main(json.dumps({"path": path, "verb": "take", "wanted": MINE, "ttl": 60}))
    out = capsys.readouterr().out
    assert out.startswith(lease.MARK)
    assert json.loads(out.removeprefix(lease.MARK)) == {"held": True, "by": None, "error": None}


def test_trouble_with_the_file_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    lease.main(json.dumps({"path": str(tmp_path / "state" / "lock.json"), "verb": "take", "wanted": MINE, "ttl": 60}))
    assert json.loads(capsys.readouterr().out.removeprefix(lease.MARK))["error"]
