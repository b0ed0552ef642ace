"""Follows what runs on one node for a few seconds and says what happened; a long poll over an ordinary connection.

`ascent_controller.watch` sends this file's text to the node's Python by stdin, followed by a call of `main`, again and
again while engines start. It stands alone on purpose: standard library, Python 3.9, no import from beside it. It starts
``docker logs --follow`` and ``docker events`` for containers and ``journalctl --follow`` for units of systemd, polls
health addresses past any proxy, changes nothing, and ends all that it started before it answers.

Request::

    {"containers": [{"name", "since": stamp of the last line that is known, or null}],
     "units": the same for units of systemd,
     "health": [{"name": the asker's, "url", "known": bool | null, "models": url | null}],   known: what is believed
     "fatal": [regex, ...],                                              lines worth an answer at once
     "begun": seconds since 1970 by the node's clock | null,             what restarted ones said before is history
     "back": seconds since 1970 by the node's clock | null,              logs are read from here, or from the last start
     "last": bool,                                                       only what is there by now, and at once
     "clock": bool, "doing": bool,                                       whether to tell the time and what processes do
     "wait": seconds, "settle": seconds that a line may wait for others, "fresh": seconds, "tail": lines}

A container that runs for longer than ``fresh`` has its log read from now on; what it said long ago is no news. With
``back`` it is: whoever looks for the reason of something wants what led to it.

Answer::

    {"reason": "exit" | "fatal" | "health" | "lines" | "wait" | "last" | "gone", "error": null | text,
     "containers": {name: {"state", "id", "exit_code", "restarts", "oom", "ended"}},   units too; "missing" without one
     "lines": {name: ["<stamp> <text>", ...]},                                 new ones only, oldest first
     "health": {name: {"ok", "detail", "says": the body, when it is an object of JSON, "models": [id, ...] | null}},
     "clock": {"system", "docker"} | null,                                     the node's time, and of docker
     "doing": {name: [{"pid", "title", "state", "waits", "cpu", "read"}]} | null}     cpu in seconds, read in bytes

``ended`` and the clocks are seconds since 1970 of the clock that stamps the lines. ``doing`` has the processes of what
runs: ``waits`` is the kernel function that one sleeps in, ``read`` what it has read from storage so far.
"""

from __future__ import annotations

__all__ = ["MARK", "follow", "main", "padded"]

import calendar
import http.client
import json
import os
import re
import select
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Dict, List, Optional, Tuple

#: Begins the answer's line, so that a login banner or a notice of sudo can stand before it.
MARK = "ascent-follower:"

_HEALTH_PERIOD = 0.5
_HEALTH_TIMEOUT = 2.0
# After a bad sign the lines behind it still come in: a traceback ends with the reason.
_LINGER = 0.5
_LINE_CHARACTERS = 2000
_BODY_BYTES = 65536
_PROC = "/proc"
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


class _Stream:
    """Lines of a child process, read without blocking."""

    def __init__(self, name: str, command: List[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()
        os.set_blocking(self.fd, False)
        self.rest = b""
        self.ended = False

    def lines(self) -> List[str]:
        """Whole lines that have come in; the last one even without its end when the stream is over."""
        while not self.ended:
            try:
                piece = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            if not piece:
                self.ended = True
            self.rest += piece
        whole, _, self.rest = self.rest.rpartition(b"\n")
        if self.ended and self.rest:
            whole, self.rest = whole + b"\n" + self.rest, b""
        return [line.decode("utf-8", "replace") for line in whole.split(b"\n") if line.strip()]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class _Health(threading.Thread):
    """Asks one address until it is stopped; wakes the main loop when the answer is another than the asker believes."""

    def __init__(self, entry: Dict[str, Any], wake: int, tls: Dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.entry = entry
        self.tls = tls
        self.wake = wake
        self.state: Optional[Dict[str, Any]] = None
        self.stopped = threading.Event()

    @property
    def is_news(self) -> bool:
        return self.state is not None and self.state["ok"] != bool(self.entry["known"])

    def run(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Https(self.tls))
        while not self.stopped.is_set():
            first = self.state is None
            state = _ask(opener, self.entry["url"])
            if state["ok"] and self.entry["models"]:
                served = _ask(opener, self.entry["models"])["says"]
                state["models"] = (
                    [str(one.get("id")) for one in served["data"]] if served and "data" in served else None
                )
            self.state = state
            if first or self.is_news:
                os.write(self.wake, b"h")
            self.stopped.wait(_HEALTH_PERIOD if not self.state["ok"] else 4 * _HEALTH_PERIOD)


class _Https(urllib.request.HTTPSHandler):
    """Asks servers whose certificate is trusted by ``ca`` (PEM; the host's own store without) and is for ``name``."""

    def __init__(self, tls: Dict[str, Any]) -> None:
        super().__init__()
        self.tls = tls

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        trust = ssl.create_default_context(cadata=self.tls.get("ca") or None)
        name = self.tls.get("name")

        class Verified(http.client.HTTPSConnection):
            def connect(self) -> None:
                plain = socket.create_connection((self.host, self.port), self.timeout)
                self.sock = trust.wrap_socket(plain, server_hostname=name or self.host)

        return self.do_open(Verified, req)


def _ask(opener: urllib.request.OpenerDirector, url: str) -> Dict[str, Any]:
    said: Dict[str, Any] = {"ok": False, "detail": "", "says": None, "models": None}
    try:
        with opener.open(url, timeout=_HEALTH_TIMEOUT) as response:
            said.update(ok=200 <= response.status < 300, detail=f"HTTP {response.status}")
            says = json.loads(response.read(_BODY_BYTES) or b"null")
            said["says"] = says if isinstance(says, dict) else None
    except urllib.error.HTTPError as error:
        said["detail"] = f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        # A health address that answers with words, or with nothing, is as healthy as its status says.
        said["detail"] = said["detail"] or str(getattr(error, "reason", None) or error)
    except Exception as error:  # http.client has errors of its own for half a response
        said.update(ok=False, detail=f"{type(error).__name__}: {error}")
    return said


def _inspect(names: List[str]) -> Dict[str, Dict[str, Any]]:
    """State of each container by name. Docker answers for those that exist, and complains of the others."""
    done = subprocess.run(["docker", "inspect", "--type", "container", *names], capture_output=True, check=False)
    try:
        found = {entry["Name"].lstrip("/"): entry for entry in json.loads(done.stdout or b"[]")}
    except ValueError:
        raise OSError(done.stderr.decode("utf-8", "replace").strip() or "docker inspect printed no JSON") from None
    if not found and done.returncode and b"no such" not in done.stderr.lower():
        raise OSError(done.stderr.decode("utf-8", "replace").strip())
    states = {}
    for name in names:
        entry = found.get(name)
        state = entry["State"] if entry else {}
        states[name] = {
            "state": state.get("Status", "missing"),
            "id": entry["Id"] if entry else None,
            "exit_code": state.get("ExitCode"),
            "restarts": entry.get("RestartCount", 0) if entry else 0,
            "oom": bool(state.get("OOMKilled")),
            "ended": _moment(state.get("FinishedAt")),
            "pid": state.get("Pid"),
            "started": state.get("StartedAt"),
            "created": entry.get("Created") if entry else None,
        }
    return states


_SHOWN = "Id,LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,InvocationID,NRestarts,MainPID"
_MOMENTS = "ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic"


def _inspect_units(names: List[str]) -> Dict[str, Dict[str, Any]]:
    """State of each unit by name, in the words of docker. `ascent.units` has the same for modules."""
    command = ["systemctl", "show", "--property", _SHOWN + "," + _MOMENTS, *names]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode("utf-8", "replace").strip() or "systemctl show failed")
    states = {}
    for block in done.stdout.decode("utf-8", "replace").split("\n\n"):
        show = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if not show.get("Id"):
            continue
        state = "exited"
        if show.get("LoadState") == "not-found":
            state = "missing"
        elif show.get("SubState") == "auto-restart":
            state = "restarting"
        elif show.get("ActiveState") in ("active", "activating", "reloading"):
            state = "running"
        status = show.get("ExecMainStatus", "")
        code = int(status) if status.isdigit() else None
        if code is not None and show.get("ExecMainCode") in ("2", "3"):
            code += 128
        began, ended = (_ago(show.get(name, "")) for name in _MOMENTS.split(","))
        states[show["Id"]] = {
            "state": state,
            "id": show.get("InvocationID"),
            "exit_code": None if state == "running" else code,
            "restarts": int(show.get("NRestarts") or 0),
            "oom": show.get("Result") == "oom-kill",
            "ended": None if ended is None else time.time() - ended,
            "pid": int(show.get("MainPID") or 0),
            "age": began or 0.0,
        }
    return {name: states.get(name) or {"state": "missing", "restarts": 0, "age": 0.0} for name in names}


def _ago(moment: str) -> Optional[float]:
    """Seconds since a moment of systemd's, in microseconds since boot; None when it has not come."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) - int(moment) / 1e6 if moment.isdigit() and int(moment) else None


def _moment(stamp: Optional[str]) -> Optional[float]:
    """A stamp of docker in seconds since 1970; None for one that can't be read, or is its zero, of the year 1."""
    match = _STAMP.match(stamp or "")
    if match is None:
        return None
    moment = calendar.timegm(time.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S")) + float("0" + (match.group(2) or ""))
    if match.group(3) != "Z":
        # The daemon tells its own time in its own zone.
        hours, _, minutes = match.group(3)[1:].partition(":")
        moment -= (int(hours) * 3600 + int(minutes) * 60) * (-1 if match.group(3)[0] == "-" else 1)
    return moment if moment > 0 else None


def _age(stamp: Optional[str]) -> float:
    """Seconds since a stamp of docker; 0 for one that can't be read."""
    moment = _moment(stamp)
    return 0.0 if moment is None else time.time() - moment


def _clock(with_docker: bool) -> Dict[str, Optional[float]]:
    """The node's time by both clocks that stamp lines: its own, and that of the container engine."""
    told = None
    if with_docker:
        done = subprocess.run(["docker", "info", "--format", "{{.SystemTime}}"], capture_output=True, check=False)
        told = done.stdout.decode("utf-8", "replace").strip()
    return {"system": time.time(), "docker": _moment(told)}


def _doing(roots: Dict[str, int]) -> Dict[str, List[Dict[str, Any]]]:
    """What the processes below each root process are doing, by the root's name."""
    parents: Dict[int, int] = {}
    stats: Dict[int, List[str]] = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit():
            # The second field is a name in brackets, which may hold brackets and blanks.
            fields = _read(f"{_PROC}/{entry}/stat").rpartition(")")[2].split()
            if len(fields) > 12:
                stats[int(entry)] = fields
                parents[int(entry)] = int(fields[1])
    found: Dict[str, List[Dict[str, Any]]] = {name: [] for name in roots}
    owner = {pid: name for name, pid in roots.items() if pid}
    tick = os.sysconf("SC_CLK_TCK")
    for pid in sorted(stats):
        above: Optional[int] = pid
        while above and above not in owner:
            above = parents.get(above)
        if not above:
            continue
        io = dict(line.partition(": ")[::2] for line in _read(f"{_PROC}/{pid}/io").splitlines())
        # Arguments may hold secrets. Engines name their processes in the first word.
        title = _read(f"{_PROC}/{pid}/cmdline").partition("\0")[0].strip()
        found[owner[above]].append(
            {
                "pid": pid,
                "title": title if "::" in title else _read(f"{_PROC}/{pid}/comm").strip(),
                "state": stats[pid][0],
                "waits": _read(f"{_PROC}/{pid}/wchan").strip(),
                "cpu": (int(stats[pid][11]) + int(stats[pid][12])) / tick,
                "read": int(io.get("read_bytes", 0)),
            }
        )
    return found


def _read(path: str) -> str:
    """A file of a process, empty when it has ended meanwhile."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def padded(stamp: str) -> str:
    """Docker leaves out trailing zeros of a stamp; padded ones sort as text."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    return seconds + "." + fraction.ljust(9, "0")


def _reader_is_gone() -> bool:
    watcher = select.poll()
    watcher.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watcher.poll(0))


class _Follower:
    def __init__(self, request: Dict[str, Any]) -> None:
        self.request = request
        self.containers: List[str] = [entry["name"] for entry in request["containers"]]
        self.units: List[str] = [entry["name"] for entry in request["units"]]
        self.names = self.containers + self.units
        self.fatal = [re.compile(pattern, re.IGNORECASE) for pattern in request["fatal"]]
        self.since: Dict[str, Optional[str]] = {
            entry["name"]: entry["since"] for entry in request["containers"] + request["units"]
        }
        # Where the stream that is open begins: lines of one moment are all taken.
        self.after = dict(self.since)
        self.lines: Dict[str, List[str]] = {name: [] for name in self.names}
        self.oldest: Optional[float] = None
        self.is_fatal = False
        self.selector = selectors.DefaultSelector()
        self.streams: Dict[str, _Stream] = {}
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        self.health = [_Health(entry, self.wake_write, request.get("tls") or {}) for entry in request["health"]]

    def run(self) -> Dict[str, Any]:
        """Follow until something is worth telling, then answer."""
        deadline = time.monotonic() + self.request["wait"]
        for thread in self.health:
            thread.start()
        try:
            # Events first: what happens between the two calls is then in one of them.
            if self.containers and not self.request["last"]:
                self._open("", ["docker", "events", "--filter", "type=container", "--format", "{{json .}}"])
            self.states = self._look()
            reason = self._all_there(deadline) if self.request["last"] else self._at_first(deadline)
            while reason is None:
                reason = self._step(deadline)
            if reason in ("exit", "fatal"):
                end = time.monotonic() + _LINGER
                while time.monotonic() < end:
                    self._read(end - time.monotonic())
            self.states = self._look()
        finally:
            for thread in self.health:
                thread.stopped.set()
            for stream in self.streams.values():
                stream.close()
        return {
            "reason": reason,
            "error": None,
            "containers": self.states,
            "lines": {name: lines[-self.request["tail"] :] for name, lines in self.lines.items() if lines},
            "health": {thread.entry["name"]: thread.state for thread in self.health if thread.state is not None},
            "doing": _doing({name: state.get("pid") or 0 for name, state in self.states.items()})
            if self.request["doing"]
            else None,
            "clock": _clock(bool(self.containers)) if self.request["clock"] else None,
        }

    def _look(self) -> Dict[str, Dict[str, Any]]:
        """States of all, asking only those who have any."""
        states = _inspect(self.containers) if self.containers else {}
        return {**states, **(_inspect_units(self.units) if self.units else {})}

    def _open(self, name: str, command: List[str]) -> None:
        filters = [part for one in self.containers for part in ("--filter", "container=" + one)] if not name else []
        stream = _Stream(name, command + filters)
        self.streams[name] = stream
        self.selector.register(stream.fd, selectors.EVENT_READ, stream)

    def _open_journal(self, name: str) -> None:
        """A unit's lines since the last one known, else since its start, or its first start if there were several."""
        state, since, back = self.states[name], self.since[name], self.request.get("back")
        if since is not None:
            began = _seconds(since)
        elif back is not None:
            began = back if state["restarts"] else max(back, time.time() - state["age"] - 1)
        elif state["state"] == "running" and state["age"] > self.request["fresh"]:
            began = time.time()
        else:
            began = time.time() - (self.request["fresh"] if state["restarts"] else state["age"] + 1)
            if state["restarts"] and self.request["begun"] is not None:
                began = max(began, self.request["begun"])
        command = ["journalctl", "--unit", name, "--output=json", "--output-fields=MESSAGE,_PID", "--all"]
        command += ["--lines", str(self.request["tail"]), f"--since=@{began:.6f}"]
        self._open(name, command + (["--follow"] if self._goes_on(name) else []))

    def _first_start(self, state: Dict[str, Any]) -> Optional[str]:
        """When a container that was restarted may have been started: its log keeps what earlier launches ended in."""
        begun = self.request["begun"]
        if begun is None or (_moment(state["created"]) or 0.0) > begun:
            created: Optional[str] = state["created"]
            return created
        return _stamp(begun)

    def _open_log(self, name: str) -> None:
        self.after[name] = self.since[name]
        if name in self.units:
            self._open_journal(name)
            return
        state = self.states[name]
        since, back = self.since[name], self.request.get("back")
        if since is None and back is not None:
            began = back if state["restarts"] else max(back, _moment(state["started"]) or 0.0)
            since = _stamp(began)
        elif since is None:
            # A container that was restarted tells its first failure, which is the one to read.
            since = self._first_start(state) if state["restarts"] else state["started"]
            if state["state"] == "running" and _age(state["started"]) > self.request["fresh"]:
                since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        follow = ["--follow"] if self._goes_on(name) else []
        command = ["docker", "logs", "--timestamps", "--tail", str(self.request["tail"]), *follow]
        self._open(name, command + (["--since", since] if since else []) + [name])

    def _goes_on(self, name: str) -> bool:
        return self.states[name]["state"] == "running" and not self.request["last"]

    def _all_there(self, deadline: float) -> str:
        """Read every log to its present end."""
        for name in self.names:
            if self.states[name]["state"] != "missing":
                self._open_log(name)
        while self.streams and time.monotonic() < deadline:
            self._read(max(0.0, deadline - time.monotonic()))
        return "last"

    def _at_first(self, deadline: float) -> Optional[str]:
        """A dead container or a service that is up already need no following."""
        down = [name for name in self.names if self.states[name]["state"] != "running"]
        if down:
            for name in down:
                if self.states[name]["state"] != "missing":
                    self._open_log(name)
            return "exit"
        while any(thread.state is None for thread in self.health) and time.monotonic() < deadline:
            self._read(deadline - time.monotonic())
        if self.health and all(thread.state and thread.state["ok"] for thread in self.health) and self._health_news():
            return "health"
        for name in self.names:
            self._open_log(name)
        return None

    def _health_news(self) -> bool:
        return any(thread.is_news for thread in self.health)

    def _step(self, deadline: float) -> Optional[str]:
        now = time.monotonic()
        settled = None if self.oldest is None else self.oldest + self.request["settle"]
        until = min(deadline, settled) if settled is not None else deadline
        changed = self._read(min(max(0.0, until - now), 1.0))
        if changed:
            before, self.states = self.states, self._look()
            if any(
                state["state"] != "running" or state["restarts"] != before[name]["restarts"]
                for name, state in self.states.items()
            ):
                return "exit"
            for name in changed - {""}:
                self._open_log(name)
        if self.is_fatal:
            return "fatal"
        if self._health_news():
            return "health"
        now = time.monotonic()
        if self.oldest is not None and now >= self.oldest + self.request["settle"]:
            return "lines"
        if now >= deadline:
            return "wait"
        return "gone" if _reader_is_gone() else None

    def _read(self, timeout: float) -> set[str]:
        """Take in what came. Names of streams that ended; "" when docker told of a container's end or start."""
        told = set()
        for key, _ in self.selector.select(timeout):
            stream = key.data
            if stream is None:
                os.read(self.wake_read, 4096)
                continue
            lines = stream.lines()
            if stream.name in self.units:
                for entry in map(_journal_entry, lines):
                    if entry is None:
                        continue
                    stamp, pid, text = entry
                    if pid == "1":
                        # What systemd says of the unit: it started, ended or is started again.
                        told.add("")
                    else:
                        self._take(stream.name, stamp + " " + text)
            elif stream.name:
                for line in lines:
                    self._take(stream.name, line)
            elif any(_event(line) in ("die", "start", "restart", "oom", "destroy") for line in lines):
                told.add("")
            if stream.ended:
                self.selector.unregister(stream.fd)
                stream.close()
                del self.streams[stream.name]
                if stream.name:
                    told.add(stream.name)
        return told

    def _take(self, name: str, line: str) -> None:
        line = line[:_LINE_CHARACTERS]
        stamp = line.partition(" ")[0]
        after = self.after[name]
        if after is not None and padded(stamp) <= padded(after):
            return
        self.since[name] = stamp
        self.lines[name].append(line)
        if self.oldest is None:
            self.oldest = time.monotonic()
        self.is_fatal = self.is_fatal or any(pattern.search(line) for pattern in self.fatal)


def _journal_entry(line: str) -> Optional[Tuple[str, str, str]]:
    """Stamp, process number and text of one entry; None for what is none. Bytes that are no text come as numbers."""
    try:
        entry = json.loads(line)
        moment = int(entry["__REALTIME_TIMESTAMP"])
        text = entry.get("MESSAGE") or ""
        if isinstance(text, list):
            text = bytes(text).decode("utf-8", "replace")
    except (KeyError, TypeError, ValueError):
        return None
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 10**6))
    return f"{stamp}.{moment % 10**6:06d}Z", str(entry.get("_PID", "")), str(text)


def _stamp(moment: float) -> str:
    """Seconds since 1970 as a stamp."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f"{moment % 1:.9f}"[1:] + "Z"


def _seconds(stamp: str) -> float:
    """A stamp as seconds since 1970."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float("0." + (fraction or "0"))


def _event(line: str) -> str:
    try:
        event = json.loads(line)
    except ValueError:
        return ""
    return str(event.get("Action") or event.get("status") or "") if isinstance(event, dict) else ""


def follow(request: Dict[str, Any]) -> Dict[str, Any]:
    """Answer one request; trouble with docker or systemd is the answer's ``error``."""
    try:
        return _Follower(request).run()
    except OSError as error:
        asked = "docker" if request["containers"] else "systemd"
        return {"reason": "gone", "error": f"{asked}: {error}", "containers": {}, "lines": {}, "health": {}}


def main(request: str) -> None:
    """Answer a request given as JSON on one line of standard output, behind `MARK`."""
    sys.stdout.write(MARK + json.dumps(follow(json.loads(request))) + "\n")
    sys.stdout.flush()
    # Health threads may be in a request that nobody waits for any more.
    os._exit(0)
