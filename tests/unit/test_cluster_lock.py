"""The lock on a cluster, held by real playbook runs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from ascent import lease
from tests import controllers
from tests.unit.playbook_runs import play, settings

LOCKED = """
- hosts: clusters
  gather_facts: false
  vars: {{ascent_stage: plan}}
  tasks:
    - cluster_lock: {{path: "{lock}", force: "{{{{ ascent_break_lock | default(false) }}}}"}}
      run_once: true
      delegate_to: n1
{rest}
"""
WAIT = """
    - ansible.builtin.file: {{path: "{gate}.near", state: touch}}
      run_once: true
    - ansible.builtin.wait_for: {{path: "{gate}", timeout: 60}}
      run_once: true
"""


def until(condition: object, seconds: float = 60) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


def held(lock: Path) -> bool:
    return lock.exists() and bool(lock.read_text())


def start(directory: Path, lock: Path, gate: Path) -> subprocess.Popen[str]:
    """A run that holds the lock until the file ``gate`` is there, and has come as far as to wait for it."""
    directory.mkdir()
    environment = settings(directory)
    (directory / "play.yml").write_text(LOCKED.format(lock=lock, rest=WAIT.format(gate=gate)))
    run = subprocess.Popen(
        [str(Path(sys.executable).with_name("ansible-playbook")), "play.yml", "-e", "api_key=hidden"],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert until(gate.with_name(f"{gate.name}.near").exists), run.communicate(timeout=20)
    assert held(lock)
    return run


def test_the_second_controller_is_told_who_is_at_work(tmp_path: Path) -> None:
    lock, gate = tmp_path / "state" / "lock.json", tmp_path / "gate"
    with start(tmp_path / "first", lock, gate) as first:
        (tmp_path / "second").mkdir()
        refused = play(tmp_path / "second", LOCKED.format(lock=lock, rest=""))
        assert refused.rc != 0
        assert "is at work on this cluster" in refused.output
        assert f"process {first.pid}" in refused.output
        assert "hidden" not in refused.output
        assert "hidden" not in lock.read_text()
        dry = play(tmp_path / "second", LOCKED.format(lock=lock, rest=""), "--check")
        assert dry.rc == 0, dry.output
        gate.touch()
        assert first.wait(timeout=60) == 0
    assert until(lambda: not held(lock)), "a run that has ended gives its lock back"


def test_a_killed_controller_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "lock.json"
    with start(tmp_path / "first", lock, tmp_path / "never") as first:
        controllers.kill(first)
        assert until(lambda: not held(lock))
    (tmp_path / "second").mkdir()
    assert play(tmp_path / "second", LOCKED.format(lock=lock, rest="")).rc == 0


def test_it_can_be_taken_over(tmp_path: Path) -> None:
    lock, gate = tmp_path / "state" / "lock.json", tmp_path / "gate"
    with start(tmp_path / "first", lock, gate) as first:
        (tmp_path / "second").mkdir()
        assert play(tmp_path / "second", LOCKED.format(lock=lock, rest=""), "-e", "ascent_break_lock=true").rc == 0
        gate.touch()
        assert first.wait(timeout=60) == 0


def test_what_a_run_of_this_machine_left_is_taken_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "lock.json"
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    lease.change(
        str(lock),
        "take",
        {"id": f"{socket.gethostname()} {ended.pid} 12", "owner": {"user": "a", "host": "b", "pid": 1, "doing": "c"}},
        60,
        time.time(),
    )
    assert play(tmp_path, LOCKED.format(lock=lock, rest="")).rc == 0
