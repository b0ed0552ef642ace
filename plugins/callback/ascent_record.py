"""Writes the run record, ``runs/<utc-time>-<cluster>/``, from what tasks return (docs/architecture.md, section 6)."""

from __future__ import annotations

DOCUMENTATION = """
name: ascent_record
type: notification
short_description: Write the run record and its report
description:
  - Collects C(findings), C(metrics), C(record) and C(logs) of the task results in plays that set the variable
    C(ascent_stage), and writes them with times and counts under C(runs/), or under E(ASCENT_RUNS_DIR).
  - Does nothing for playbooks without such a play. Its own failures are warnings and never end a run.
"""

import atexit
import functools
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from ansible import context
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__ as ansible_version

from ascent_controller import runs


def _never_fatal[**P](method: Callable[P, None]) -> Callable[P, None]:
    """Turn an error of the record into a warning: the run is worth more than its record."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            plugin: Any = args[0]
            plugin._display.warning(f"the run record is incomplete: {type(error).__name__}: {error}")

    return guarded


class CallbackModule(CallbackBase):
    """A thin shell around `ascent_controller.runs.Recorder`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "ascent_record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.recorder: runs.Recorder | None = None
        self._process = os.getpid()
        self._hosts: set[str] = set()
        self._failed_items: dict[tuple[str, str], list[Any]] = {}
        # An interrupted run sends no statistics; its record is written on the way out.
        atexit.register(self._interrupted)

    @_never_fatal
    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Begin a record in memory."""
        options = context.CLIARGS
        self.recorder = runs.Recorder(
            runs.root(),
            time.time(),
            playbook=os.path.basename(playbook._file_name),
            arguments=sys.argv[1:],
            check_mode=bool(options.get("check")),
            versions={"ansible-core": ansible_version, "python": platform.python_version()},
        )

    @_never_fatal
    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Enter the play's stage, or leave the last one."""
        if self.recorder is not None:
            self.recorder.enter(play.get_vars().get("ascent_stage"), time.time())

    @_never_fatal
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Learn the cluster from the first host, since the record's folder is named after it."""
        if self.recorder is None:
            return
        self._hosts.add(host.get_name())
        if self.recorder.cluster is None:
            self.recorder.cluster = _cluster(host)
        self.recorder.begin(task._uuid, task.get_name().strip(), time.time())

    def _end(self, result: Any, outcome: str) -> None:
        if self.recorder is None or isinstance(result.task, TaskInclude):
            return
        # Loops may delegate each item elsewhere; those reach hosts.
        on_controller = result.task.delegate_to in ("localhost", "127.0.0.1", "::1")
        self.recorder.begin(result.task._uuid, result.task.get_name().strip(), time.time())
        self.recorder.end(
            result.task._uuid,
            result.host.get_name(),
            outcome,
            runs.with_failed_items(
                result.result, self._failed_items.pop((result.task._uuid, result.host.get_name()), [])
            ),
            time.time(),
            action=result.task.action,
            on_controller=on_controller,
        )

    @_never_fatal
    def v2_runner_on_ok(self, result: Any) -> None:
        """Ok or changed."""
        self._end(result, "changed" if result.is_changed() else "ok")

    @_never_fatal
    def v2_runner_on_skipped(self, result: Any) -> None:
        """Skipped."""
        self._end(result, "skipped")

    @_never_fatal
    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Failed, ignored, or handed to a rescue section."""
        rescued = runs.is_rescued(result.task, len(self._hosts))
        self._end(result, "ignored" if ignore_errors else "rescued" if rescued else "failed")

    @_never_fatal
    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Kept for the end of its task."""
        self._failed_items.setdefault((result.task._uuid, result.host.get_name()), []).append(result.result)

    @_never_fatal
    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Unreachable."""
        self._end(result, "ignored" if result.task.ignore_unreachable else "unreachable")

    @_never_fatal
    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the record and its report, and say where they are."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        hosts = {}
        for host in sorted(stats.processed):
            counts = stats.summarize(host)
            hosts[host] = {"failed" if key == "failures" else key: value for key, value in counts.items()}
        directory = recorder.finish(time.time(), hosts)
        if directory is not None:
            self._display.display(f"report     {_short(directory / 'report.html')}")

    def _interrupted(self) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is None or os.getpid() != self._process:
            return
        try:
            directory = recorder.finish(time.time(), interrupted=True)
        except Exception as error:
            sys.stderr.write(f"the run record is incomplete: {type(error).__name__}: {error}\n")
            return
        if directory is not None:
            sys.stderr.write(f"interrupted; what was recorded: {_short(directory / 'report.html')}\n")


def _cluster(host: Any) -> str | None:
    """The host's group below ``clusters``; in inventories without one, its first own group, or what was limited to."""
    groups = host.get_groups()
    clusters = [g.name for g in groups if any(parent.name == "clusters" for parent in g.parent_groups)]
    others = [g.name for g in groups if g.name not in ("all", "ungrouped", "clusters")]
    limit = context.CLIARGS.get("subset")
    wanted = [name for name in clusters or others if name == limit] or clusters or others
    return wanted[0] if wanted else limit


def _short(path: os.PathLike[str]) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
