"""Following units of systemd on a node: their states and journal, with systemctl and journalctl of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascent import follower
from ascent_controller import watch

NAME = "ascent-a3-serve-0-head.service"

#: Shows what the file `state` says.
SYSTEMCTL = '#!/bin/sh\ncat "$FAKE/state"\n'
#: Prints the journal and follows it, keeping the call.
JOURNALCTL = (
    '#!/bin/sh\necho "$*" >>"$FAKE/calls"\ncase "$*" in\n'
    '*--follow*) exec tail -n +1 -s 0.05 -f "$FAKE/journal" ;;\n*) cat "$FAKE/journal" ;;\nesac\n'
)


class Node:
    """A node with one unit and no docker."""

    def __init__(self, directory: Path) -> None:
        self.home = directory
        for name, text in {"systemctl": SYSTEMCTL, "journalctl": JOURNALCTL}.items():
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)
        (directory / "journal").touch()
        self.state("active", "running")

    def state(self, active: str, sub: str, **more: Any) -> None:
        show = {
            "Id": NAME,
            "LoadState": "loaded",
            "ActiveState": active,
            "SubState": sub,
            "Result": "success",
            "ExecMainCode": 0,
            "ExecMainStatus": 0,
            "InvocationID": "i",
            "NRestarts": 0,
            "ExecMainStartTimestampMonotonic": int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6),
            **more,
        }
        text = "".join(f"{key}={value}\n" for key, value in show.items())
        (self.home / "state.new").write_text(text)
        (self.home / "state.new").replace(self.home / "state")

    def say(self, message: Any, *, moment: int, pid: int = 77) -> None:
        entry = {"MESSAGE": message, "__REALTIME_TIMESTAMP": str(moment), "_PID": str(pid)}
        with (self.home / "journal").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def ask(self, *, wait: float = 10.0, since: str | None = None) -> dict[str, Any]:
        request = {
            "containers": [],
            "units": [{"name": NAME, "since": since}],
            "health": [],
            "fatal": ["libatb"],
            "wait": wait,
            "settle": 0.2,
            "fresh": 900,
            "tail": 100,
            "last": False,
            "begun": None,
            "clock": True,
            "doing": False,
        }
        done = subprocess.run(
            [sys.executable, "-"],
            input=watch.program(request),
            capture_output=True,
            env={"FAKE": str(self.home), "PATH": f"{self.home}:/usr/bin:/bin"},
            timeout=60,
            check=True,
        )
        line = next(one for one in done.stdout.decode().splitlines() if one.startswith(follower.MARK))
        return dict(json.loads(line.removeprefix(follower.MARK)))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


MOMENT = 1_700_000_000_000_000


def later(seconds: float, act: Callable[[], None]) -> None:
    threading.Timer(seconds, act).start()


def test_lines_come_with_stamps_that_sort(node: Node) -> None:
    node.say("Loading weights", moment=MOMENT)
    node.say("Grüße".encode("latin-1").hex(), moment=MOMENT + 5)
    node.say([103, 117, 116, 255], moment=MOMENT + 10)
    answer = node.ask()
    assert answer["error"] is None
    assert answer["reason"] == "lines"
    assert answer["containers"][NAME]["state"] == "running"
    stamps = [line.partition(" ")[0] for line in answer["lines"][NAME]]
    assert stamps == sorted(stamps)
    assert stamps[0] == "2023-11-14T22:13:20.000000Z"
    assert answer["lines"][NAME][2].endswith("gut\ufffd")


def test_what_is_known_is_not_told_again(node: Node) -> None:
    node.say("old", moment=MOMENT)
    node.say("new", moment=MOMENT + 1_500_000)
    answer = node.ask(since="2023-11-14T22:13:20.000000Z")
    assert [line.partition(" ")[2] for line in answer["lines"][NAME]] == ["new"]
    assert "--since=@1700000000.000000" in (node.home / "calls").read_text()


def test_a_fatal_line_answers_at_once(node: Node) -> None:
    later(0.5, lambda: node.say("ImportError: libatb.so", moment=MOMENT))
    assert node.ask()["reason"] == "fatal"


def test_systemds_own_words_make_it_look_again(node: Node) -> None:
    def end() -> None:
        node.state("failed", "failed", ExecMainCode=2, ExecMainStatus=9, Result="oom-kill")
        node.say("Main process exited", moment=MOMENT, pid=1)

    later(0.5, end)
    answer = node.ask()
    assert answer["reason"] == "exit"
    state = answer["containers"][NAME]
    assert (state["state"], state["exit_code"], state["oom"]) == ("exited", 137, True)
    assert answer["lines"] == {}


def test_a_unit_that_restarts_is_bad_news_with_its_first_lines(node: Node) -> None:
    node.state("activating", "auto-restart", NRestarts=3, ExecMainCode=1, ExecMainStatus=1)
    node.say("Traceback of the first start", moment=MOMENT)
    answer = node.ask()
    assert answer["reason"] == "exit"
    assert answer["containers"][NAME]["restarts"] == 3
    assert answer["lines"][NAME][0].endswith("Traceback of the first start")


def test_a_unit_that_is_not_there_is_missing(node: Node) -> None:
    node.state("inactive", "dead", LoadState="not-found")
    assert node.ask()["containers"][NAME]["state"] == "missing"


def test_a_node_without_systemd_says_so(node: Node) -> None:
    (node.home / "systemctl").write_text("#!/bin/sh\necho 'no bus' >&2\nexit 1\n")
    answer = node.ask()
    assert answer["error"] == "systemd: no bus"
    assert os.listdir(node.home)
