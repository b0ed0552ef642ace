"""The run record: collects what the stages of one playbook run report, and writes it under ``runs/``.

`Recorder` knows nothing of Ansible, so that the callback plugin stays a thin shell and the collecting can be tested.
The files and their keys are those of docs/architecture.md, section 6; ``run.json`` has::

    {"schema": 1, "cluster", "recipe", "playbook", "arguments": [str], "started": ISO 8601 UTC, "seconds",
     "ok", "interrupted", "check_mode", "simulated",
     "stages": [{"stage", "ok", "started", "seconds", "rounds", "changed", "findings": {severity: count}}],
     "hosts": {NAME: {"ok", "changed", "failed", "unreachable", "skipped", "rescued", "ignored"}},
     "rounds",                                tasks that ran on at least one cluster host: what a run's time is made of
     "changed",                               changes over all tasks and hosts
     "tasks": [{"stage", "name", "seconds", "hosts", "changed"}], "versions": {name: version}}
"""

from __future__ import annotations

__all__ = [
    "DEFAULT_ROOT",
    "OUTCOMES",
    "Recorder",
    "find",
    "first_answer",
    "is_rescued",
    "masked",
    "normal_finding",
    "root",
    "simulated",
    "with_failed_items",
]

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ascent import diagnosis
from ascent.errors import AscentError
from ascent.findings import SEVERITIES, failed, finding
from ascent.secrets import mask
from ascent_controller import signatures

#: ``runs/`` of the checkout.
DEFAULT_ROOT = Path(__file__).resolve().parents[3] / "runs"

#: How a task can end on a host.
OUTCOMES = ("ok", "changed", "skipped", "failed", "unreachable", "ignored", "rescued")

_OWN_FILES = {"run.json", "report.html"}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Tasks that only pass on what findings already say.
_SPEAKERS = {"ansible.builtin.fail", "ansible.builtin.assert", "fail", "assert"}


def root() -> Path:
    """Where run folders go: ``ASCENT_RUNS_DIR`` of the environment, else ``runs/`` of the checkout."""
    return Path(os.environ.get("ASCENT_RUNS_DIR") or DEFAULT_ROOT)


def find(name: str | None = None) -> Path:
    """The folder of a run: a path, a folder name under `root`, or the latest when ``name`` is empty.

    Raises AscentError when there is no such run.
    """
    candidates = [Path(name), root() / name] if name else [root() / "latest"]
    for candidate in candidates:
        if (candidate / "run.json").is_file():
            return candidate.resolve()
    raise AscentError(f"no run record at {' or '.join(map(str, candidates))}: give -e run=runs/<time>-<cluster>")


def read_plan(directory: Path) -> dict[str, Any] | None:
    """The launch plan that a run recorded, None when it has none."""
    for name in ("plan.record.json", "plan.json"):
        try:
            plan = json.loads((directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(plan, dict) and "processes" in plan:
            return plan
    return None


def masked(arguments: Iterable[str]) -> list[str]:
    """Command line arguments with the values of secrets replaced.

    >>> masked(["-e", "api_key=abc recipe=x"])
    ['-e', 'api_key=*** recipe=x']
    """
    return [mask(argument) for argument in arguments]


def simulated(value: Any) -> bool:
    """True when a metric or record says that its figures come from a simulator, at any depth."""
    if isinstance(value, Mapping):
        return value.get("simulated") is True or any(simulated(item) for item in value.values())
    return isinstance(value, list) and any(simulated(item) for item in value)


def is_rescued(task: Any, hosts: int) -> bool:
    """True when a block around an Ansible task has a rescue section that its failure goes to.

    With ``run_once`` on several hosts Ansible rescues only the one that ran it and drops the others: no rescue.
    """
    if getattr(task, "run_once", False) and hosts > 1:
        return False
    child, parent = task, getattr(task, "_parent", None)
    while parent is not None:
        if getattr(parent, "rescue", None) and any(child._uuid == item._uuid for item in parent.block):
            return True
        child, parent = parent, getattr(parent, "_parent", None)
    return False


def first_answer(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """``{"prompt", "text"}`` of a result's ``answer``, or the first of its ``answers`` with text; None without."""
    answers = [result.get("answer"), *_list(result.get("answers"))]
    for answer in answers:
        if isinstance(answer, Mapping) and (text := answer.get("streamed_text") or answer.get("text")):
            return {"prompt": str(answer.get("prompt") or ""), "text": str(text)}
    return None


def normal_finding(item: Any, stage: str | None = None) -> dict[str, Any]:
    """A finding with all keys of the contract. What is no finding becomes a warning about itself: nothing gets lost."""
    if not isinstance(item, Mapping) or not item.get("id") or item.get("severity") not in SEVERITIES:
        return finding(
            "finding-malformed",
            "warning",
            "A task reported a finding that is none",
            stage=stage,
            evidence=json.dumps(item, default=str)[:400],
            fix="Correct the module or plugin: a finding has id, severity and summary.",
        )
    known = finding(
        str(item["id"]),
        item["severity"],
        str(item.get("summary", "")),
        host=item.get("host"),
        stage=item.get("stage") or stage,
    )
    return {**known, **{key: str(item.get(key) or "") for key in ("evidence", "cause", "fix")}}


@dataclass
class _Stage:
    name: str
    started: float
    seconds: float = 0.0
    ok: bool = True
    findings: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    hosts: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        return sum(counts["changed"] for counts in self.hosts.values())


@dataclass
class _Task:
    stage: str | None
    name: str
    started: float
    seconds: float = 0.0
    hosts: int = 0
    changed: int = 0
    is_round: bool = False


class Recorder:
    """Collects one run and writes its folder. Times are seconds since the epoch, given by the caller.

    A run without any task in a stage writes nothing. Each stage's file is written when the stage ends, so that a killed
    run leaves what it had.
    """

    def __init__(
        self,
        folder: Path,
        started: float,
        *,
        playbook: str = "",
        arguments: Iterable[str] = (),
        check_mode: bool = False,
        recipe: str | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.started = started
        self.playbook = playbook
        self.arguments = masked(arguments)
        self.check_mode = check_mode
        self.recipe = recipe
        self.versions = dict(versions or {})
        #: Name of the cluster; the plan's own name replaces a guess from the inventory.
        self.cluster: str | None = None
        self.stages: dict[str, _Stage] = {}
        self.tasks: dict[str, _Task] = {}
        self.simulated = False
        self._current: str | None = None
        self._entered = started
        self._directory: Path | None = None

    @property
    def directory(self) -> Path | None:
        """The folder of the run, None as long as nothing was written."""
        return self._directory

    @property
    def stage(self) -> str | None:
        """The stage that plays run in now."""
        return self._current

    def enter(self, stage: str | None, now: float) -> None:
        """A play begins: it belongs to ``stage``, or to none. Plays of one stage may follow each other."""
        if stage != self._current:
            self.leave(now)
            self._current, self._entered = stage, now

    def leave(self, now: float) -> None:
        """The stage that runs ends; its file is written when any task ran in it."""
        stage = self.stages.get(self._current or "")
        if stage is not None:
            stage.seconds += now - self._entered
            self._write_json(f"{stage.name}.json", self._verdict(stage))
        self._current = None

    def begin(self, uuid: str, name: str, now: float) -> None:
        """A task begins, on all hosts together or (free strategies) on the first."""
        self.tasks.setdefault(uuid, _Task(self._current, name, now))
        if self._current is not None:
            self.stages.setdefault(self._current, _Stage(self._current, self._entered))

    def end(
        self,
        uuid: str,
        host: str,
        outcome: str,
        result: Mapping[str, Any],
        now: float,
        *,
        action: str = "",
        on_controller: bool = False,
    ) -> None:
        """A task ended on a host with one of `OUTCOMES`; a ``result`` that is secret is censored already."""
        task = self.tasks[uuid]
        stage = self.stages.get(task.stage or "")
        task.seconds = now - task.started
        if outcome != "skipped":
            task.hosts += 1
            task.changed += outcome == "changed"
            if not task.is_round and not on_controller:
                task.is_round = True
                if stage is not None:
                    stage.rounds += 1
        if stage is None:
            return
        stage.hosts.setdefault(host, Counter())[outcome] += 1
        parts = [result, *(item for item in result.get("results") or [] if isinstance(item, Mapping))]
        found = [normal_finding(item, stage.name) for part in parts for item in _list(part.get("findings"))]
        stage.findings += [item for item in found if item not in stage.findings]
        for part in parts:
            if isinstance(part.get("metrics"), Mapping):
                _merge(stage.metrics, part["metrics"])
                self.simulated = self.simulated or simulated(part["metrics"])
            self._keep(part)
        if outcome in ("failed", "unreachable"):
            stage.ok = False
            told = failed(found) or (action in _SPEAKERS and failed(stage.findings))
            if not told:
                stage.findings.append(failure(stage.name, host, task.name, outcome, result))

    def finish(
        self, now: float, hosts: Mapping[str, Mapping[str, int]] | None = None, *, interrupted: bool = False
    ) -> Path | None:
        """End the run, write ``run.json`` and the report, point ``latest`` at the folder; None when no stage ran.

        ``hosts`` are Ansible's own statistics; without them (an interrupted run) those of the stages are used.
        """
        from ascent_controller import report

        stage = self.stages.get(self._current or "")
        if interrupted and stage is not None:
            stage.ok = False
            stage.findings.append(
                finding(
                    "run-interrupted",
                    "error",
                    f"The run was interrupted during {stage.name}",
                    stage=stage.name,
                    fix="Run the same command again: stages continue from what is there.",
                )
            )
        self.leave(now)
        if not self.stages:
            return None
        counts = hosts or self._stage_counts()
        self._write_json("run.json", self._summary(now, counts, interrupted))
        directory = self._folder()
        report.write(directory)
        _point(self.folder / "latest", directory)
        return directory

    def _stage_counts(self) -> dict[str, dict[str, int]]:
        merged: dict[str, Counter[str]] = {}
        for stage in self.stages.values():
            for host, counter in stage.hosts.items():
                merged.setdefault(host, Counter()).update(counter)
        # Ansible counts what changed as ok, too.
        return {
            host: {**{key: counter[key] for key in OUTCOMES}, "ok": counter["ok"] + counter["changed"]}
            for host, counter in sorted(merged.items())
        }

    def _verdict(self, stage: _Stage) -> dict[str, Any]:
        return {
            "ok": stage.ok and not failed(stage.findings),
            "cluster": self.cluster,
            "stage": stage.name,
            "started": _iso(stage.started),
            "seconds": round(stage.seconds, 3),
            # Worst first, and otherwise as they were told: a diagnosis puts the cause before its echoes.
            "findings": sorted(stage.findings, key=lambda item: SEVERITIES.index(item["severity"])),
            "metrics": stage.metrics,
        }

    def _summary(self, now: float, hosts: Mapping[str, Mapping[str, int]], interrupted: bool) -> dict[str, Any]:
        verdicts = {name: self._verdict(stage) for name, stage in self.stages.items()}
        broken = any(counts.get("failed") or counts.get("unreachable") for counts in hosts.values())
        return {
            "schema": 1,
            "cluster": self.cluster,
            "recipe": self.recipe,
            "playbook": self.playbook,
            "arguments": self.arguments,
            "started": _iso(self.started),
            "seconds": round(now - self.started, 3),
            "ok": not interrupted and not broken and all(verdict["ok"] for verdict in verdicts.values()),
            "interrupted": interrupted,
            "check_mode": self.check_mode,
            "simulated": self.simulated,
            "stages": [
                {
                    **{key: verdicts[stage.name][key] for key in ("stage", "ok", "started", "seconds")},
                    "rounds": stage.rounds,
                    "changed": stage.changed,
                    "findings": dict(Counter(item["severity"] for item in stage.findings)),
                }
                for stage in self.stages.values()
            ],
            "hosts": {name: dict(counts) for name, counts in hosts.items()},
            "rounds": sum(task.is_round for task in self.tasks.values()),
            "changed": sum(counts.get("changed", 0) for counts in hosts.values()),
            "tasks": [
                {
                    "stage": task.stage,
                    "name": task.name,
                    "seconds": round(task.seconds, 3),
                    "hosts": task.hosts,
                    "changed": task.changed,
                }
                for task in self.tasks.values()
                if task.hosts
            ],
            "versions": self.versions,
        }

    def _keep(self, result: Mapping[str, Any]) -> None:
        """Write the files of a result: ``record`` (name to JSON value), ``logs`` (process to text), ``answer``."""
        record = result.get("record")
        if isinstance(record, Mapping):
            if isinstance(plan := record.get("plan.json"), Mapping):
                self.cluster = str(plan.get("cluster") or self.cluster)
                self.recipe = str(plan.get("recipe") or self.recipe)
            for name, value in record.items():
                self.simulated = self.simulated or simulated(value)
                self._write_json(self._record_name(name), value)
        if (answer := first_answer(result)) is not None:
            self._write_json("answer.json", answer)
        logs = result.get("logs")
        if isinstance(logs, Mapping):
            for process, text in logs.items():
                _write(self._folder() / "logs" / _file_name(f"{process}.log", ".log"), str(text))

    def _record_name(self, name: str) -> str:
        """``plan.json`` becomes ``plan.record.json`` where the run has a stage plan, whose verdict has that name."""
        file = _file_name(name, ".json")
        stage = file.removesuffix(".json")
        return f"{stage}.record.json" if stage in self.stages or stage == self._current else file

    def _folder(self) -> Path:
        if self._directory is None:
            stamp = datetime.fromtimestamp(self.started, UTC).strftime("%Y%m%dT%H%M%SZ")
            name = f"{stamp}-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.cluster or 'cluster')}"
            for suffix in ("", *(f"-{number}" for number in range(2, 100))):
                directory = self.folder / (name + suffix)
                try:
                    directory.mkdir(parents=True)
                except FileExistsError:
                    continue
                self._directory = directory
                break
            else:
                raise AscentError(f"{self.folder / name} and 98 like it exist already: clear the folder of run records")
        return self._directory

    def _write_json(self, name: str, value: Any) -> None:
        _write(self._folder() / name, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def failure(stage: str, host: str, task: str, outcome: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What to tell of a task that failed without a finding of its own; ``outcome`` is ``failed`` or ``unreachable``."""
    items = [item for item in result.get("results") or [] if isinstance(item, Mapping) and item.get("failed")]
    # What Ansible says of a loop is only that something in it failed.
    texts = [
        f"{prefix}{str(part[key]).strip()}"
        for prefix, part in [(f"{_label(item)}: ", item) for item in items] or [("", result)]
        for key in ("msg", "stderr")
        if part.get(key)
    ]
    if result.get("censored"):
        texts = ["the output is hidden by no_log"]
    evidence = "\n".join(dict.fromkeys(texts))
    if outcome == "unreachable":
        return finding(
            "host-unreachable",
            "error",
            f"{host} could not be reached during: {task}",
            host=host,
            stage=stage,
            evidence=evidence,
            fix=f"Try: ansible {host} -m ansible.builtin.ping",
        )
    evidence = evidence[-4000:]
    # A container engine or a package manager may say what the catalogue knows.
    known = next((one for one in diagnosis.diagnose(evidence, signatures.load(), host=host) if failed([one])), None)
    if known:
        return {**known, "stage": stage, "evidence": f"task {task}: {evidence}"}
    return finding("task-failed", "error", f"Task failed: {task}", host=host, stage=stage, evidence=evidence)


def with_failed_items(result: Mapping[str, Any], failed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task's result in which the items of its loop that failed say so.

    Ansible tells of each failed item by an event of its own, and leaves the mark out of the task's result.
    """
    if not failed or not isinstance(result.get("results"), list):
        return dict(result)
    marked = [{**item, "failed": True} if item in failed else item for item in result["results"]]
    return {**result, "results": marked}


def _label(item: Mapping[str, Any]) -> str:
    return str(item.get("_ansible_item_label", item.get("item", "item")))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Merge ``new`` into ``into``: dicts at every depth, since each host reports a part; the rest is replaced."""
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            _merge(old, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _file_name(name: str, suffix: str) -> str:
    if not _FILE_NAME.fullmatch(name) or name in _OWN_FILES:
        raise AscentError(f"{name!r} can't be a file of a run record: letters, digits, dot, dash and underscore only")
    return name if name.endswith(suffix) else name + suffix


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, link)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
