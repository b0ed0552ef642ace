"""Watches the start of a whole plan: all nodes at once, ended by the first fatal sign anywhere.

`Watch` is the state machine and has no thread and no clock of its own. `run` drives it with one thread a host; each
thread sends `program` to its node again and again (`ascent.follower` is what runs there) and feeds the answers back.
`search` asks all nodes once: for a service that runs and does badly.

Success: every process with a health address answers; the containers of an instance's other processes (headless ones,
workers, nodes of a Ray cluster) run while its head answers, which a head does only after all of them have joined; and
what has neither a health address nor an instance, such as a service that the recipe describes, runs. Failure: a
container that is missing, ended or was restarted by its policy; a fatal log line; a host that can't be followed; no
progress for ``stall`` seconds; or ``timeout`` seconds. Progress is a log line that says something new or bytes read
from storage, of a process that is not ready, and that one became ready. What a server says of who asks it is none,
since the watch itself asks. After the first bad sign every node is asked for what its logs hold by then, since the
first line to arrive may be an echo of another node's.

Times of different nodes are compared after each node's clock has been compared with the controller's.
"""

from __future__ import annotations

__all__ = ["Watch", "program", "run", "search"]

import inspect
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

from ascent import diagnosis, follower, generations
from ascent.errors import AscentError
from ascent.findings import finding
from ascent.launch_progress import Progress, source
from ascent.secrets import mask
from ascent_controller import console

#: Runs a Python program on one host: its source by stdin; (return code, stdout, stderr).
Execute = Callable[[bytes], tuple[int, bytes, bytes]]

#: Kinds that join another process of their instance instead of serving.
_JOINING = frozenset(("headless", "worker", "ray-head", "ray-worker"))

_WAIT = 10.0  # seconds a node waits for news
_SETTLE = 1.0  # seconds a log line waits for others
_FRESH = 900.0  # a container older than this is not part of this launch
_TAIL = 2000  # lines of one container in one answer
_KEPT_LINES = 4000
_SHOWN_LINES = 6
_END_LINES = 40
# After so long without news it is asked what the processes are doing; before that nobody wants to know.
_QUIET = 30.0
# Bytes read from storage that count as progress; less is what any process reads now and then.
_READ = 2**20
# Ends of processes this close together may have any order.
_TOGETHER = 0.5
# Clocks that differ by more than this many seconds are worth a word.
_SKEW = 1.0
_SHOWN_PROCESSES = 24
_RECENT = 100
# The engines' and routers' own time before a line.
_TIMES = re.compile(r"(\b\d\d-\d\d[ T])?(?<![\d:])\d\d:\d\d:\d\d([.,]\d+)?")
# What goes on without anything going on: a server's line for each request, such as for every look at its health, with
# another port of the client or, of vllm-router, another id each time; and an engine's figures of having done nothing.
_IDLE = re.compile(
    r'"(?:GET|HEAD|POST) \S* HTTP/\d(?:\.\d)?" \d{3}\b'
    r"|\b(?:started|finished) processing request\b|\brequest failed with \w+ error\b"
    r"|Avg prompt throughput: 0\.0 tokens/s, Avg generation throughput: 0\.0 tokens/s"
)
_STATES = {"R": "running", "S": "sleeping", "D": "waiting for storage or a device", "T": "stopped", "Z": "ended"}
_UNKNOWN = "Not known: no entry of the catalogue (docs/reference/findings.md) fits its log. The lines above say most."
# What a process says that ended because others of its group did.
_LOST_GROUP = "D07"
# So long are all nodes waited for after a bad sign; most answer within a second.
_GRACE = 4.0
_PATIENCE = 3
# Who was restarted before the first look gets so long to show that it serves.
_BENEFIT = 2.0
_LAST_WAIT = 3.0
# A node that has not handed in its logs by then is told of.
_SEARCH = 20.0
# Reaching a host again after this many failures in a row is hopeless.
_ATTEMPTS = 4
_PAUSE = 1.0


def program(request: Mapping[str, Any]) -> bytes:
    """The Python program that answers ``request`` on a node; see `ascent.follower`."""
    return f"{inspect.getsource(follower)}\nmain({json.dumps(request)!r})\n".encode()


@dataclass
class _Process:
    name: str
    host: str
    runs_as: str
    is_unit: bool
    log: str
    instance: str | None
    kind: str
    url: str | None
    models: str | None
    progress: Progress
    state: str | None = None
    healthy: bool = False
    detail: str = ""
    says: dict[str, Any] | None = None
    served: list[str] | None = None
    ended: float | None = None
    said: dict[str, str] = field(default_factory=dict)
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=_RECENT))
    doing: list[dict[str, Any]] = field(default_factory=list)
    doing_at: float | None = None
    since: str | None = None
    restarts: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    ready_at: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    moved_at: float = 0.0
    shown: str = ""


class Watch:
    """State of one watched start. Times are seconds of one monotonic clock, given by the caller."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        catalogue: Mapping[str, Any],
        now: float,
        *,
        timeout: float = 1800,
        stall: float = 600,
        grace: float = _GRACE,
        begun: Mapping[str, float] | None = None,
        tls: Mapping[str, Any] | None = None,
    ) -> None:
        """``begun``: a moment before the launch, in seconds since 1970 by each host's clock."""
        self.begun = dict(begun or {})
        self.tls = dict(tls or {})
        self.catalogue = catalogue
        self.started = now
        self.timeout = timeout
        self.stall = stall
        self.grace = grace
        self.patterns = diagnosis.fatal_patterns(catalogue)
        self._fatal = [re.compile(pattern, re.IGNORECASE) for pattern in self.patterns]
        self.processes = {
            item["name"]: _Process(
                name=item["name"],
                host=item["host"],
                runs_as=(item.get("unit") or item["container"])["name"],
                is_unit=item.get("unit") is not None,
                log=generations.log_command(item),
                instance=item["instance"],
                kind=item["kind"],
                url=item["health"],
                # An engine that serves an API lists its models beside its health, to those who show its key.
                models=urljoin(item["health"], "/v1/models")
                if not (plan.get("access") or {}).get("api_key")
                and item["health"]
                and item["kind"] in ("head", "rank")
                and item["health"].endswith("/health")
                else None,
                progress=Progress((item.get("parallel") or {}).get("data") or 0),
                moved_at=now,
            )
            for item in plan["processes"]
        }
        self.hosts = sorted({process.host for process in self.processes.values()})
        self.failed_at: float | None = None
        self._troubles: dict[tuple[str, str | None], dict[str, Any]] = {}
        # Seconds by which each host's clocks, its own and its container engine's, are ahead of the controller's.
        self._ahead: dict[str, dict[str, float]] = {}
        self._lost: dict[str, int] = {}
        # Restarted before the first look: history of a service that answers, and a failure of one that does not.
        self._suspects: dict[str, float] = {}
        self._limit: str | None = None
        self._heard: set[str] = set()

    # What to ask and what came back

    def request(self, host: str, now: float, *, last: bool = False, back: float | None = None) -> dict[str, Any]:
        """What to ask a host next; ``last``: for what its logs hold by now, ``back``: from that moment of its clock."""
        mine = [process for process in self.processes.values() if process.host == host]
        quiet = min(_QUIET, self.stall / 3)
        return {
            "containers": [{"name": one.runs_as, "since": one.since} for one in mine if not one.is_unit],
            "units": [{"name": one.runs_as, "since": one.since} for one in mine if one.is_unit],
            "health": [
                {"name": process.name, "url": process.url, "known": process.healthy, "models": process.models}
                for process in mine
                if process.url
            ],
            "tls": self.tls,
            "fatal": self.patterns,
            # A first look at a host without an address to ask only tells whether its containers run.
            "wait": _LAST_WAIT
            if last
            else min(_WAIT, quiet)
            if any(process.state or process.url for process in mine)
            else 0.0,
            "last": last,
            "begun": self.begun.get(host),
            "back": back,
            "clock": host not in self._ahead,
            "doing": any(not self._is_ready(process) and now >= process.moved_at + quiet for process in mine),
            "settle": _SETTLE,
            "fresh": _FRESH,
            "tail": _TAIL,
        }

    def absorb(self, host: str, answer: Mapping[str, Any], now: float, wall: float | None = None) -> None:
        """Take in a host's answer; ``wall`` is the controller's time in seconds since 1970, when it came."""
        if answer["error"]:
            self.lost(host, str(answer["error"]), now)
            return
        self._lost.pop(host, None)
        if answer["reason"] == "last":
            self._heard.add(host)
        if answer.get("clock") and wall is not None:
            self._ahead[host] = {name: told - wall for name, told in answer["clock"].items() if told is not None}
        for process in self.processes.values():
            if process.host != host:
                continue
            health = answer["health"].get(process.name)
            if health is not None:
                process.healthy, process.detail = health["ok"], health["detail"]
                process.says, process.served = health.get("says"), health.get("models")
            known = follower.padded(process.since) if process.since is not None else ""
            for line in answer["lines"].get(process.runs_as, []):
                # Two questions to one node may be under way.
                if follower.padded(line.partition(" ")[0]) > known:
                    self._line(process, line, now)
            if answer.get("doing"):
                self._counters(process, answer["doing"].get(process.runs_as) or [], now)
            self._container(process, answer["containers"].get(process.runs_as) or {"state": "missing"}, now)
        for process in self.processes.values():
            if self._is_ready(process) and process.ready_at is None:
                process.ready_at = process.moved_at = now

    def lost(self, host: str, error: str, now: float) -> None:
        """A host did not answer; a few times in a row is a failure, once may be the network."""
        self._lost[host] = self._lost.get(host, 0) + 1
        if self._lost[host] >= _ATTEMPTS:
            self._fail(
                now,
                finding(
                    "host-not-followed",
                    "error",
                    f"{host} could not be followed any more",
                    host=host,
                    stage="launch",
                    evidence=error,
                    cause="The connection, the Python interpreter or the container engine of the host fails.",
                    fix=f"Try: ansible {host} -b -m ansible.builtin.command -a 'docker ps'",
                ),
            )

    def _counters(self, process: _Process, doing: list[dict[str, Any]], now: float) -> None:
        """Bytes read since the last look are progress; time of processors is not, since ranks that wait are busy."""
        before = {one["pid"]: one for one in process.doing}
        for one in doing:
            old = before.get(one["pid"])
            if old is None or process.doing_at is None:
                continue
            one["busy"] = (one["cpu"] - old["cpu"]) / max(now - process.doing_at, 0.1)
            if one["read"] - old["read"] >= _READ:
                process.moved_at = now
        process.doing, process.doing_at = doing, now

    def _line(self, process: _Process, line: str, now: float) -> None:
        # What an engine says of its settings ends up in findings, in the record and on the screen.
        line = mask(line)
        process.since = line.partition(" ")[0]
        process.lines.append(line)
        process.said[source(line) or process.name] = line
        said = _TIMES.sub("", _text(line))
        is_idle = _IDLE.search(said) is not None
        # What was said before, and known complaints, are no progress.
        is_new = not is_idle and said not in process.recent and not diagnosis.progress_free(line, self.catalogue)
        if not is_idle:
            process.recent.append(said)
        if process.progress.feed(line) or is_new:
            process.moved_at = now
        process.phases.setdefault(process.progress.phase, round(now - self.started, 1))
        if self.failed_at is None and any(pattern.search(line) for pattern in self._fatal):
            self.failed_at = now

    def _container(self, process: _Process, state: Mapping[str, Any], now: float) -> None:
        process.state = state["state"]
        process.ended = state.get("ended") if process.state != "running" else None
        restarts = state.get("restarts") or 0
        again = process.restarts is not None and restarts > process.restarts
        if process.restarts is None and restarts:
            self._suspects[process.name] = now
        process.restarts = restarts
        where = f"{process.name} on {process.host}"
        fix = f"Read {process.log} on {process.host}, then run --tags launch again."
        if process.state == "missing":
            what = "unit" if process.is_unit else "container"
            gone = "It could not be made, or somebody removed it."
            self._trouble(now, process, "process-missing", f"{where} has no {what}", "", fix, gone)
        elif process.state != "running":
            code = state.get("exit_code")
            word = f"ended with exit code {code}" if process.state in ("exited", "dead") else f"is {process.state}"
            if state.get("oom"):
                self._out_of_memory(now, process, word)
            hint = diagnosis.by_exit_code(code, self.catalogue) if code else None
            cause = f"Exit code {code} can mean: {hint['summary']}. {hint['cause']}" if hint else ""
            self._trouble(now, process, "process-exited", f"{where} {word}", "", fix, cause)
        elif again:
            self._restarted(now, process)

    def _restarted(self, now: float, process: _Process) -> None:
        self._suspects.pop(process.name, None)
        self._trouble(
            now,
            process,
            "process-restarted",
            f"{process.name} on {process.host} ended and was restarted (restart count {process.restarts})",
            "",
            f"The first start in its log is the one to read: {process.log} on {process.host}.",
        )

    def _out_of_memory(self, now: float, process: _Process, word: str) -> None:
        known = diagnosis.by_exit_code(137, self.catalogue, host=process.host, process=process.name)
        if known is not None:
            evidence = f"{process.name} {word}, and the kernel's out-of-memory killer ended it\n{self._tail(process)}"
            self._fail(now, {**known, "stage": "launch", "evidence": evidence}, process)

    def _trouble(
        self, now: float, process: _Process, id: str, summary: str, evidence: str, fix: str, cause: str = ""
    ) -> None:
        known = finding(
            id, "error", summary, host=process.host, stage="launch", evidence=evidence, cause=cause, fix=fix
        )
        self._fail(now, known, process)

    def _fail(self, now: float, trouble: dict[str, Any], process: _Process | None = None) -> None:
        if self.failed_at is None:
            self.failed_at = now
        name = process.name if process else None
        # A later answer knows more lines of the same trouble; what came first stays first.
        self._troubles[(trouble["id"], name)] = trouble

    # Where it stands

    def _is_ready(self, process: _Process) -> bool:
        if process.url:
            return process.healthy
        if process.instance is None:
            # A service without a health address: nobody can ask it more than whether it runs.
            return process.state == "running"
        heads = [p for p in self.processes.values() if p.instance == process.instance and p.url]
        joined = all(head.healthy for head in heads) if heads else process.progress.phase == "ready"
        return process.state == "running" and joined

    def _moved_at(self) -> float:
        """When anything last went on. What serves already may be busy, and brings nothing else any further."""
        # A plan of offline jobs starts nothing that could move.
        return max(
            (
                process.ready_at if process.ready_at is not None and self._is_ready(process) else process.moved_at
                for process in self.processes.values()
            ),
            default=self.started,
        )

    def verdict(self, now: float) -> str | None:
        """``ready``, ``failed``, or None as long as it goes on."""
        if self.failed_at is not None:
            # Without the log of a process that ended there is nothing to say of it, however busy its node is.
            blamed = {self.processes[name].host for _, name in self._troubles if name} - self._heard
            limit = self.grace * (_PATIENCE if blamed else 1)
            all_heard = self._heard >= set(self.hosts)
            return "failed" if all_heard or now >= self.failed_at + limit else None
        if all(process.state == "running" and self._is_ready(process) for process in self.processes.values()):
            return "ready"
        for name, seen in list(self._suspects.items()):
            if now >= seen + _BENEFIT and not self._is_ready(self.processes[name]):
                self._restarted(now, self.processes[name])
                return None
        if now >= self.started + self.timeout:
            self._limit, self.failed_at = "timeout", now - self.grace
        elif now >= self._moved_at() + self.stall:
            self._limit, self.failed_at = "stall", now - self.grace
        return "failed" if self.failed_at is not None else None

    def progress(self, now: float) -> str | None:
        """One line about the processes that moved since the last call, by instance; None when none did."""
        pieces: dict[str, list[str]] = {}
        for process in self.processes.values():
            text = self._describe(process)
            if text != process.shown:
                process.shown = text
                group = process.instance or process.name
                name = process.name.removeprefix(f"{process.instance}-") if process.instance else ""
                pieces.setdefault(group, []).append(f"{name} {text}".strip())
        if not pieces:
            return None
        told = "   ".join(f"{group}: {', '.join(parts)}" for group, parts in pieces.items())
        return f"{console.seconds(now - self.started):>9} of {console.seconds(self.timeout)}  {told}"

    def _describe(self, process: _Process) -> str:
        if process.state is None:
            return ""
        if process.state != "running":
            return process.state
        if not self._is_ready(process):
            # A router runs long before the engines do.
            return process.progress.text()
        if process.kind in _JOINING and not process.url:
            return "joined"
        seen = [
            f"{count} {name.removesuffix('_instances')}"
            for name, count in (process.says or {}).items()
            if name.endswith("_instances") and isinstance(count, int)
        ]
        return (
            "ready"
            + (f", serves {', '.join(process.served)}" if process.served else "")
            + (f", sees {' and '.join(seen)}" if seen else "")
        )

    def findings(self) -> list[dict[str, Any]]:
        """What is wrong, the cause first; after a success what is worth knowing."""
        told = self._timed()
        rest = [{**item, "stage": "launch"} for _, item in told if item["severity"] != "error"]
        if self.failed_at is None:
            return rest
        fatal = {entry["id"] for entry in self.catalogue["findings"] if diagnosis.is_fatal(entry)}
        causes = [(since, self._with_tail(item)) for since, item in told if item["id"] in fatal]
        explained = _blamed(causes)
        # What ends no launch by itself still explains a process that ended with it.
        causes += [(since, self._with_tail(item)) for since, item in told if self._is_last_word(item, explained)]
        explained = _blamed(causes)
        # What a diagnosed process did next is no finding of its own.
        troubles = [
            (self._ended(name), self._told(name, trouble))
            for (_, name), trouble in self._troubles.items()
            if name not in explained
        ]
        first = min((since for since, _ in causes if since is not None), default=None)
        # What ended before the first line that explains anything is no echo of it.
        earlier = [one for one in troubles if first is not None and one[0] is not None and one[0] < first - _TOGETHER]
        later = [one for one in troubles if one not in earlier]
        in_time = [item for _, item in sorted(earlier, key=_since)], [item for _, item in sorted(later, key=_since)]
        found = in_time[0] + [item for _, item in causes] + self._limits() + in_time[1]
        return self._after(found or self._unexplained()) + self._skews() + rest

    def told(self, stage: str) -> list[dict[str, Any]]:
        """What the logs tell that the catalogue knows, the first cause first, for a stage that looks back."""
        return [{**self._with_tail(item), "stage": stage} for _, item in self._timed()]

    def _timed(self) -> list[tuple[float | None, dict[str, Any]]]:
        logs = {process.name: "\n".join(process.lines) for process in self.processes.values()}
        hosts = {process.name: process.host for process in self.processes.values()}
        ahead = {process.name: self._clock(process) for process in self.processes.values()}
        return diagnosis.timed(logs, self.catalogue, hosts=hosts, ahead=ahead)

    def _is_last_word(self, item: dict[str, Any], explained: set[str]) -> bool:
        """Whether a finding is the last that a process tells which ended, if only for a moment, unexplained."""
        name, _, place = item["evidence"].partition(", line ")
        restarted = {process.name for process in self.processes.values() if process.restarts}
        ended = ({process for _, process in self._troubles} | restarted) - explained
        if item["severity"] != "error" or name not in ended or item["id"] == _LOST_GROUP:
            return False
        telling = self._telling(self.processes[name]).splitlines()
        said = diagnosis.unnumbered(_text(place.partition(": ")[2]))
        return bool(telling) and diagnosis.unnumbered(telling[-1]) == said

    def _clock(self, process: _Process) -> float:
        """Seconds by which the clock that stamps a process's lines is ahead of the controller's."""
        known = self._ahead.get(process.host, {})
        return known.get("system" if process.is_unit else "docker", 0.0)

    def _ended(self, name: str | None) -> float | None:
        """When a process ended, by the controller's clock."""
        process = self.processes.get(name or "")
        return None if process is None or process.ended is None else process.ended - self._clock(process)

    def _told(self, name: str | None, trouble: dict[str, Any]) -> dict[str, Any]:
        """A trouble that no entry explains, with the lines of its process that say most."""
        process = self.processes.get(name or "")
        if process is None or trouble["evidence"]:
            return trouble
        lines = self._telling(process)
        unknown = _UNKNOWN if lines else "Not known: it wrote nothing into its log."
        return {**trouble, "evidence": lines, "cause": trouble["cause"] or unknown}

    def _after(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The findings, where those of processes that only lost their group say so."""
        lost = {
            process.name
            for process in self.processes.values()
            if any(item["id"] == _LOST_GROUP for item in diagnosis.diagnose("\n".join(process.lines), self.catalogue))
        }
        names = {f"{name} on {process.host} " for name, process in self.processes.items() if name in lost}
        echo = "It lost the other processes of its group; the first finding says why."
        return found[:1] + [
            {**item, "cause": echo}
            if item["id"].startswith("process-") and any(item["summary"].startswith(name) for name in names)
            else item
            for item in found[1:]
        ]

    def _skews(self) -> list[dict[str, Any]]:
        """Hosts whose clock is off: their stamps mislead who compares logs by hand."""
        entry = next((entry for entry in self.catalogue["findings"] if entry["id"] == "D24"), None)
        if entry is None:
            return []
        found = []
        for host, clocks in sorted(self._ahead.items()):
            name, most = max(clocks.items(), key=lambda one: abs(one[1]), default=("", 0.0))
            if abs(most) >= _SKEW:
                what = "its container engine's clock" if name == "docker" else "its clock"
                way = "ahead of" if most > 0 else "behind"
                found.append(
                    finding(
                        "D24",
                        "warning",
                        f"{entry['summary']}; {host}: {abs(most):.0f} s {way} the controller",
                        host=host,
                        stage="launch",
                        evidence=f"{what} was compared with the controller's, and the order of findings follows that",
                        cause=entry["cause"],
                        fix=entry["fix"],
                    )
                )
        return found

    def _with_tail(self, item: dict[str, Any]) -> dict[str, Any]:
        """A diagnosed finding with the end of its process's log."""
        process = self.processes[item["evidence"].partition(",")[0]]
        return {**item, "stage": "launch", "evidence": f"{item['evidence']}\n{self._tail(process)}"}

    def _unexplained(self) -> list[dict[str, Any]]:
        """Only a wrapper line told that something failed, and nothing said what."""
        blamed = [p for p in self.processes.values() if any(f.search(line) for line in p.lines for f in self._fatal)]
        return [
            finding(
                "start-failed",
                "error",
                f"{process.name} on {process.host} says that its start failed",
                host=process.host,
                stage="launch",
                evidence=self._telling(process),
                cause=_UNKNOWN,
                fix=f"Read {process.log} on {process.host}.",
            )
            for process in blamed
        ]

    def _limits(self) -> list[dict[str, Any]]:
        if self._limit is None:
            return []
        known = {entry["id"]: entry for entry in self.catalogue["findings"]}
        entry = known["D05" if self._limit == "timeout" else "D06"]
        behind = [process for process in self.processes.values() if not self._is_ready(process)]
        silent = min(behind, key=lambda process: (process.progress.position, process.moved_at))
        evidence = "\n".join(line for process in behind for line in self._account(process))
        limit = self.timeout if self._limit == "timeout" else self.stall
        summary = f"{entry['summary']} ({console.seconds(limit)})"
        # What a process says at its end, not what it said on the way there.
        ends = {process.name: "\n".join(list(process.lines)[-_END_LINES:]) for process in behind}
        hosts = {process.name: process.host for process in behind}
        symptoms = diagnosis.diagnose_all(ends, self.catalogue, hosts=hosts)
        # What kept it from going on says more than that it did not.
        return [
            *(
                {**item, "stage": "launch"}
                for item in symptoms
                if item["severity"] == "error" and item["id"] not in ("D05", "D06")
            ),
            finding(
                entry["id"],
                "error",
                summary,
                host=silent.host,
                stage="launch",
                evidence=evidence,
                cause=entry["cause"],
                fix=entry["fix"],
            ),
        ]

    def _account(self, process: _Process) -> list[str]:
        """What a process that is not ready was doing, and each of its ranks: one line each."""
        where = f"{process.name} on {process.host}: {self._describe(process) or 'not seen'}"
        lines = [where + (f"; health {process.detail}" if process.detail else "")]
        if not process.said:
            lines[0] += "; no log line"
        # Ranks that said the same last are one line.
        alike: dict[str, list[str]] = {}
        for name, line in process.said.items():
            alike.setdefault(diagnosis.unnumbered(_text(line)), []).append(name)
        for names in alike.values():
            named = [name for name in names if name != process.name]
            who = f"{', '.join(named)}: " if named else ""
            lines.append(f"  {who}last line: {_text(process.said[names[-1]])}")
        busiest = sorted(process.doing, key=lambda one: -one.get("busy", 0.0))
        for one in busiest[:_SHOWN_PROCESSES]:
            busy = f"{100 * one['busy']:.0f} % of a processor" if "busy" in one else "seen once"
            waits = f", waits in {one['waits']}" if one["state"] in "SD" and one["waits"] not in ("", "0") else ""
            lines.append(
                f"  {one['title']} (pid {one['pid']}): {_STATES.get(one['state'], one['state'])}, {busy}{waits}"
            )
        return lines

    def _telling(self, process: _Process) -> str:
        """The lines of a process that say most of a failure nobody knows."""
        return "\n".join(_text(line) for line in diagnosis.telling("\n".join(process.lines), self.catalogue))

    def _tail(self, process: _Process) -> str:
        return "\n".join(_text(line) for line in list(process.lines)[-_SHOWN_LINES:])

    def metrics(self, now: float) -> dict[str, Any]:
        """Figures of the watch, in seconds since it began, and of each process.

        ``ready_seconds`` is None after a failure, ``progress_seconds`` is when anything last went on; a process has the
        time at which it reached each phase, and ``ended``, in seconds since 1970 by the controller's clock.
        """
        return {
            "seconds": round(now - self.started, 1),
            "ready_seconds": round(now - self.started, 1) if self.failed_at is None else None,
            "progress_seconds": round(self._moved_at() - self.started, 1),
            "processes": {
                process.name: {
                    "host": process.host,
                    "state": process.state,
                    "ready_seconds": None if process.ready_at is None else round(process.ready_at - self.started, 1),
                    "ended": self._ended(process.name),
                    "phases": process.phases,
                }
                for process in self.processes.values()
            },
        }

    def logs(self, lines: int = 500) -> dict[str, str]:
        """The end of each process's log, as far as it was read."""
        return {
            process.name: "\n".join(list(process.lines)[-lines:]) + "\n"
            for process in self.processes.values()
            if process.lines
        }


def _blamed(causes: Sequence[tuple[float | None, dict[str, Any]]]) -> set[str]:
    """The processes whose logs these findings were told by."""
    return {item["evidence"].partition(",")[0] for _, item in causes}


def _since(one: tuple[float | None, dict[str, Any]]) -> float:
    """A finding's time for sorting; without one it comes last."""
    return float("inf") if one[0] is None else one[0]


def _text(line: str) -> str:
    """A log line without docker's stamp, as its last redraw."""
    return line.partition(" ")[2].rstrip().rpartition("\r")[2]


def run(
    watch: Watch,
    executes: Mapping[str, Execute],
    show: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> str:
    """Follow all hosts until `Watch.verdict` has one, and return it.

    ``executes`` has one entry for each of ``watch.hosts``; ``show`` gets at most about one progress line a second.
    Threads that still wait for their node at the end are left behind: a follower ends by itself within seconds.
    """
    missing = sorted(set(watch.hosts) - set(executes))
    if missing:
        raise AscentError(f"no connection for {', '.join(missing)}: the plan names hosts that the inventory lacks")
    news = threading.Condition()
    over = threading.Event()

    def follow(host: str) -> None:
        while not over.is_set():
            with news:
                request = watch.request(host, clock())
            answer, error = _ask(executes[host], request)
            came = wall()
            with news:
                if answer is not None:
                    watch.absorb(host, answer, clock(), came)
                else:
                    watch.lost(host, error, clock())
                news.notify()
            if answer is None or answer["error"] or answer["reason"] in ("exit", "fatal"):
                over.wait(_PAUSE)

    def look_again(host: str) -> None:
        with news:
            request = watch.request(host, clock(), last=True)
        answer, _ = _ask(executes[host], request)
        if answer is not None and not answer["error"]:
            with news:
                watch.absorb(host, answer, clock(), wall())
                news.notify()

    for host in watch.hosts:
        threading.Thread(target=follow, args=(host,), daemon=True, name=f"follow-{host}").start()
    asked = False
    shown = -1.0
    with news:
        while True:
            verdict = watch.verdict(clock())
            if watch.failed_at is not None and verdict is None and not asked:
                asked = True
                for host in watch.hosts:
                    threading.Thread(target=look_again, args=(host,), daemon=True, name=f"last-{host}").start()
            if verdict is not None or clock() >= shown + 1:
                line = watch.progress(clock())
                if line is not None:
                    show(line)
                    shown = clock()
            if verdict is not None:
                over.set()
                return verdict
            news.wait(0.5)


def search(
    watch: Watch, executes: Mapping[str, Execute], seconds: float, wall: Callable[[], float] = time.time
) -> dict[str, str]:
    """Read the logs of all hosts once, as far back as ``seconds`` before ``watch.begun``; why not, by host.

    A container's log is read from its last start on where that was later, unless its policy has restarted it.
    """
    failed: dict[str, str] = {}
    lock = threading.Lock()

    def ask(host: str) -> None:
        begun = watch.begun.get(host)
        request = watch.request(host, time.monotonic(), last=True, back=None if begun is None else begun - seconds)
        answer, error = _ask(executes[host], request)
        came = wall()
        with lock:
            failed.pop(host)
            if answer is None or answer["error"]:
                failed[host] = str(answer["error"]) if answer else error
            else:
                watch.absorb(host, answer, time.monotonic(), came)

    failed.update(dict.fromkeys(watch.hosts, f"no answer within {_SEARCH:.0f} seconds"))
    threads = [threading.Thread(target=ask, args=(host,), daemon=True, name=f"search-{host}") for host in watch.hosts]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _SEARCH
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    with lock:
        return dict(failed)


def _ask(execute: Execute, request: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    try:
        code, out, err = execute(program(request))
    # A connection plugin may raise anything, and a thread that dies would be taken for a silent host.
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith(follower.MARK):
            try:
                answer: dict[str, Any] = json.loads(line[len(follower.MARK) :])
            except ValueError:
                continue
            return answer, ""
    return None, f"the follower gave no answer (exit code {code}): {err.decode('utf-8', 'replace').strip()[-500:]}"
