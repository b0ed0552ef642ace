"""A calm view of a run: one line a task, findings as a table, and what the operator came for at the end."""

from __future__ import annotations

DOCUMENTATION = """
name: ascent_live
type: stdout
short_description: A calm live view
description:
  - Shows one line a task with its hosts counted, failures in full, findings with cause and fix, and at the end the
    answer, the smoke benchmark, times and changes. With C(-v) each host is shown as the default view does.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

import io
import sys
import time
from collections import Counter
from typing import Any

from ansible import constants as C  # noqa: N812 - the name that Ansible's own plugins use
from ansible import context
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as DefaultCallback
from ansible.utils.color import stringc

from ascent_controller import console, runs

_COLORS = {
    "ok": C.COLOR_OK,
    "changed": C.COLOR_CHANGED,
    "error": C.COLOR_ERROR,
    "warning": C.COLOR_WARN,
    "info": C.COLOR_VERBOSE,
    "faint": "dark gray",
    "strong": "normal",
}

# Actions that print while they run: their name has to stand above their lines.
_TALKERS = {"watch_launch"}
# More of a failed command than this is in the run record.
_OUTPUT_LINES = 25


def paint(text: str, role: str) -> str:
    """Colour for a role; Ansible itself leaves it out where the output is no terminal."""
    return stringc(text, _COLORS[role])


class CallbackModule(DefaultCallback):
    """The default view with condensed hosts; more verbosity falls back to it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "ascent_live"

    def __init__(self) -> None:
        super().__init__()
        # A live view through a pipe (tee, a CI log) has to arrive line by line, too.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
        self._stage: str | None = None
        self._stages: dict[str, list[Any]] = {}
        self._entered = 0.0
        self._open: dict[str, Any] | None = None
        self._shown: list[dict[str, Any]] = []
        self._answer: str | None = None
        self._tables: list[dict[str, Any]] = []
        self._endpoint: str | None = None
        self._simulated = False
        self._hosts: set[str] = set()
        self._failed_items: dict[tuple[str, str], list[Any]] = {}

    @property
    def _detailed(self) -> bool:
        return self._display.verbosity > 0

    @property
    def _width(self) -> int:
        # Ansible takes anything but a terminal for a narrow one.
        return max(60, min(140, self._display.columns)) if sys.stdout.isatty() else 100

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._display.display(line)

    # Plays and tasks

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Nothing to say yet, except to those who want to know all."""
        if self._display.verbosity > 1:
            super().v2_playbook_on_start(playbook)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A heading when the stage changes; a play outside of stages goes by its own name."""
        self._flush()
        self._play = play
        stage = play.get_vars().get("ascent_stage")
        if stage != self._stage or stage is None:
            self._leave()
            self._stage, self._entered = stage, time.time()
            self._heading = stage or play.get_name().strip()
        if self._detailed:
            super().v2_playbook_on_play_start(play)

    def _leave(self) -> None:
        if self._stage in self._stages:
            self._stages[self._stage][0] += time.time() - self._entered

    def _start_of_task(self, task: Any, handler: bool) -> None:
        self._flush()
        if self._heading:
            # Only now: with --tags most plays have no task at all.
            self._say(console.heading(self._heading, time.strftime("%H:%M:%S"), self._width, paint))
            self._heading = ""
        if self._stage is not None:
            self._stages.setdefault(self._stage, [0.0, True])
        self._open = {
            "task": task,
            "name": f"{'handler: ' if handler else ''}{task.get_name().strip()}",
            "started": time.time(),
            "counts": Counter(),
            "findings": [],
            "talker": task.action in _TALKERS and not self._detailed,
        }
        if self._open["talker"]:
            self._display.display(f"  {self._open['name']} …")

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Remember who takes part."""
        self._hosts.add(host.get_name())
        super().v2_runner_on_start(host, task)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Close the line of the task before."""
        self._start_of_task(task, handler=False)
        if self._detailed:
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """As for a task."""
        self._start_of_task(task, handler=True)
        if self._detailed:
            super().v2_playbook_on_handler_task_start(task)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Files are of interest to those who debug."""
        if self._detailed:
            super().v2_playbook_on_include(included_file)

    def _flush(self) -> None:
        """Print the line of the open task, then what it found."""
        task, self._open = self._open, None
        if task is None:
            return
        counts = task["counts"]
        ran = sum(number for outcome, number in counts.items() if outcome != "skipped")
        if ran and not self._detailed:
            self._display.display(
                console.outcome(task["name"], counts, time.time() - task["started"], self._width, paint)
            )
        self._say(console.findings(task["findings"], self._width, paint))

    # Results

    def _take(self, result: Any, outcome: str) -> None:
        """Count a host's outcome and collect what its result carries."""
        if isinstance(result.task, TaskInclude):
            return
        if self._open is None or self._open["task"]._uuid != result.task._uuid:
            self._start_of_task(result.task, handler=False)
        assert self._open is not None
        self._open["counts"][outcome] += 1
        content = result.result
        parts = [content, *(item for item in content.get("results") or [] if isinstance(item, dict))]
        found = []
        for part in parts:
            for item in part.get("findings") or [] if isinstance(part.get("findings"), list) else []:
                known = runs.normal_finding(item, self._stage)
                if known not in self._shown:
                    self._shown.append(known)
                    found.append(known)
            answer = runs.first_answer(part)
            if answer is not None and self._answer is None:
                self._answer = " ".join(text.strip() for text in (answer["prompt"], answer["text"]) if text)
            table = console.as_table(part.get("table"))
            if table is not None:
                self._tables.append(table)
            record = part.get("record")
            if isinstance(record, dict):
                plan = record.get("plan.json")
                if isinstance(plan, dict) and isinstance(plan.get("endpoint"), dict):
                    self._endpoint = plan["endpoint"].get("url")
            shown = [part.get("metrics"), part.get("result"), record]
            self._simulated = self._simulated or runs.simulated(shown)
        for part in parts:
            # Whole files and logs belong into the run record; with -v they would bury the rest.
            part.pop("record", None)
            part.pop("logs", None)
        self._open["findings"] += found
        if self._stage in self._stages and (
            outcome in ("failed", "unreachable") or any(item["severity"] == "error" for item in found)
        ):
            self._stages[self._stage][1] = False

    def v2_runner_on_ok(self, result: Any) -> None:
        """Counted."""
        self._take(result, "changed" if result.is_changed() else "ok")
        if self._detailed or result.task.action in C._ACTION_DEBUG:
            super().v2_runner_on_ok(result)
        else:
            self._handle_warnings_and_exception(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Counted."""
        self._take(result, "skipped")
        if self._detailed:
            super().v2_runner_on_skipped(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Shown at once and in full, unless it is ignored or rescued."""
        rescued = runs.is_rescued(result.task, len(self._hosts))
        items = self._failed_items.pop((result.task._uuid, result.host.get_name()), [])
        content = runs.with_failed_items(result.result, items)
        self._take(result, "ignored" if ignore_errors else "rescued" if rescued else "failed")
        if self._detailed:
            super().v2_runner_on_failed(result, ignore_errors)
        elif not ignore_errors and not rescued:
            self._handle_warnings(result.result)
            self._failure(result, content, "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Shown at once and in full."""
        self._take(result, "unreachable")
        if self._detailed:
            super().v2_runner_on_unreachable(result)
        else:
            self._failure(result, result.result, "unreachable")

    def _handle_exception(self, result: Any, use_stderr: bool = False) -> None:
        """Ansible censors a secret task's result, and not the error message that it prints before it."""
        if "censored" in result:
            result.pop("exception", None)
        super()._handle_exception(result, use_stderr)

    def _failure(self, result: Any, content: dict[str, Any], word: str) -> None:
        self._display.display(
            "  " + paint(f"✗ {self.host_label(result)}", "error") + f"  {word}: {result.task.get_name().strip()}"
        )
        told = [item["summary"] for item in self._open["findings"]] if self._open else []
        failing = [item for item in content.get("results") or [] if isinstance(item, dict) and item.get("failed")]
        for part in failing or [content]:
            if part.get("censored"):
                self._say(["      the output is hidden by no_log"])
                continue
            if failing:
                self._say([f"      item {self._get_item_label(part)}:"])
            if told and all(summary in str(part.get("msg")) for summary in told):
                # The findings follow, and say more than a message made of them.
                continue
            for key in ("msg", "stderr", "stdout"):
                lines = str(part.get(key) or "").strip().splitlines()
                if lines and not (key == "stdout" and part.get("stderr")):
                    cut = len(lines) - _OUTPUT_LINES
                    shown = [f"… {cut} lines more in the run record", *lines[-_OUTPUT_LINES:]] if cut > 0 else lines
                    self._say([f"      {line}" for line in shown])
        if result.task.get_path():
            self._display.display("      " + paint(result.task.get_path(), "faint"))

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Items are part of their task's line."""
        if self._detailed:
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Items are part of their task's line."""
        if self._detailed:
            super().v2_runner_item_on_skipped(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Items are part of their task's failure."""
        self._failed_items.setdefault((result.task._uuid, result.host.get_name()), []).append(result.result)
        if self._detailed:
            super().v2_runner_item_on_failed(result)

    def v2_runner_retry(self, result: Any) -> None:
        """Retries are part of the task."""
        if self._detailed:
            super().v2_runner_retry(result)

    def v2_on_file_diff(self, result: Any) -> None:
        """The diff under the name of its host, before the task's own line."""
        if self._detailed:
            super().v2_on_file_diff(result)
            return
        content = result.result
        parts = content["results"] if result.task.loop and "results" in content else [content]
        for part in parts:
            if part.get("diff") and part.get("changed"):
                text = self._get_diff(part["diff"]).rstrip()
                if text:
                    label = f"{result.task.get_name().strip()} on {self.host_label(result)}"
                    self._display.display("  " + paint(label, "strong"))
                    self._say([f"    {line}" for line in text.splitlines()])

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """A limit that matches nothing is a mistake to see."""
        self._display.display(paint("no hosts matched", "warning"))

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """The closing block says it."""

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The closing block; ascent_record adds the report's place below it."""
        self._flush()
        self._leave()
        if self._detailed:
            super().v2_playbook_on_stats(stats)
        hosts = {}
        for host in sorted(stats.processed):
            counts = stats.summarize(host)
            hosts[host] = {**counts, "failed": counts["failures"]}
        broken = any(counts["failed"] or counts["unreachable"] for counts in hosts.values())
        self._say(
            console.closing(
                ok=not broken and all(fine for _, fine in self._stages.values()),
                stages=[(name, took, fine) for name, (took, fine) in self._stages.items()],
                hosts=hosts,
                endpoint=self._endpoint,
                answer=self._answer,
                tables=self._tables,
                simulated=self._simulated,
                check_mode=bool(context.CLIARGS.get("check")),
                width=self._width,
                paint=paint,
            )
        )
