"""Brings a model's weights to the hosts of a cluster: from their source once, and from host to host.

One host asks the source (or the controller gives it the files of a local directory); the others copy from it and from
each other along a tree of bounded fan-out, file by file, so that all copy at the same time. Hosts that see the same
file system are told by markers, and only one of them writes. `ascent.weights_job` is what runs on the nodes.
"""

from __future__ import annotations

__all__ = ["Settings", "Spread", "ancestors", "choose", "due", "program", "shared_groups"]

import concurrent.futures
import functools
import importlib
import inspect
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascent import hubs, weights_job
from ascent.downloads import sha256_of
from ascent.errors import AscentError
from ascent.findings import finding
from ascent.hubs import SourceError
from ascent.weights_job import amount
from ascent_controller import console, provisioning
from ascent_controller.connections import Execute

_STAGE = "provision"
#: What a node's job consists of, each after those it imports.
_MODULES = ("errors", "hubs", "downloads", "weights", "weights_store", "weights_job")
#: Reads a program of so many bytes from stdin and runs it; what follows is left for the program.
BOOT = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"

_LOADER = """
import json, sys, types
package = sys.modules["ascent"] = types.ModuleType("ascent")
package.__path__ = []
for name, text in json.loads({sources!r}):
    module = types.ModuleType("ascent." + name)
    module.__package__ = "ascent"
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(text, "<ascent." + name + ">", "exec"), module.__dict__)
sys.modules["ascent.weights_job"].main({request!r}, sys.stdin.buffer)
"""

_CHUNK = 16 << 20
# A network file system tells what others wrote after this long at most, unless it was tuned otherwise.
_SEEN_BY_ALL = 90.0
_RATE_WINDOW = 15.0
_SHOWN_HOSTS = 4
# A host that only gives files is looked at this often; it ends when nobody looks.
_SERVING_LOOK = 5.0
_ATTEMPTS = 5
_RUNNING = ("list", "check", "fetch", "publish")


@dataclass(frozen=True)
class Settings:
    """How to bring weights; the role's variables of the same names (roles/weights/defaults/main.yml)."""

    fetch: bool = True
    endpoint: str = ""
    mirror: str = ""
    archive: str = ""
    exclude: Sequence[str] = ("original/*",)
    parallel: int = 4
    fanout: int = 2
    spread: bool = True
    port: int = 0
    proxy: str = ""
    ca_file: str = ""
    timeout: float = 60
    attempts: int = 5
    patience: float = 90
    token: str = field(default="", repr=False)


def program(request: Mapping[str, Any], data: bytes = b"") -> bytes:
    """What a Python that runs `BOOT` has to read to answer ``request``; see `ascent.weights_job`."""
    text = _LOADER.format(sources=_sources(), request=json.dumps(request)).encode()
    return b"%d\n%s%s" % (len(text), text, data)


@functools.cache
def _sources() -> str:
    """The modules of a node's job as JSON."""
    return json.dumps([(name, inspect.getsource(importlib.import_module(f"ascent.{name}"))) for name in _MODULES])


def ancestors(hosts: Sequence[str], fanout: int) -> dict[str, list[str]]:
    """From whom each host copies, nearest first, in a tree whose root is the first one.

    >>> ancestors(["a", "b", "c", "d"], 2)
    {'a': [], 'b': ['a'], 'c': ['a'], 'd': ['b', 'a']}
    """
    chains: dict[str, list[str]] = {}
    for number, host in enumerate(hosts):
        parent = hosts[(number - 1) // max(1, fanout)] if number else None
        chains[host] = [parent, *chains[parent]] if parent else []
    return chains


def shared_groups(hosts: Sequence[str], seen: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Hosts that see each other's markers, in the order of ``hosts``; the first of a group writes for it."""
    groups: list[list[str]] = []
    for host in hosts:
        for group in groups:
            if any(other in seen[host] or host in seen[other] for other in group):
                group.append(host)
                break
        else:
            groups.append([host])
    return groups


def due(model: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Hosts whose directory lacks something, or has another revision than the plan names."""
    wanted = model.get("revision")
    found = []
    for host, one in facts.items():
        if not one:
            continue
        known = {one.get("commit"), one.get("revision")} - {None, ""}
        if not one["complete"] or (wanted and known and wanted not in known):
            found.append(host)
    return found


def choose(model: Mapping[str, Any], settings: Settings) -> dict[str, Any] | None:
    """The source that the settings and the plan give (`ascent.hubs`); None where there is none to fetch from.

    Raises SourceError when the directory on the controller lacks the model.
    """
    name = str(model["id"])
    revision = str(model.get("revision") or "")
    if settings.archive:
        files = archive_files(Path(settings.archive) / name)
        return {"kind": "handed", "endpoint": settings.archive, "id": name, "revision": revision, "files": files}
    place = settings.mirror
    if place:
        kind = "http" if re.match("https?://", place) else "directory" if place.startswith("/") else "rsync"
        return {"kind": kind, "endpoint": place, "id": name, "revision": revision}
    if model.get("source") in hubs.ENDPOINTS:
        return {"kind": model["source"], "endpoint": settings.endpoint, "id": name, "revision": revision}
    return None


def archive_files(folder: Path) -> list[dict[str, Any]]:
    """The files of a model in a directory on the controller, with their checksums. Raises SourceError."""
    if not folder.is_dir():
        raise SourceError("refused", f"{folder} is not there", "put the model's files there, or clear weights_archive")
    sums = folder / hubs.LISTING
    if sums.is_file():
        digests = hubs.read_sums(sums.read_text(encoding="utf-8"), str(sums))
    else:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        digests = {name: sha256_of(str(folder / name)) for name in names if not name.startswith(".")}
    absent = [name for name in digests if not (folder / name).is_file()]
    if absent:
        raise SourceError("refused", f"{folder} lacks {', '.join(absent[:8])}", f"complete it, or correct {sums}")
    return [
        {"path": name, "size": (folder / name).stat().st_size, "sha256": digest, "git_id": None, "revision": ""}
        for name, digest in digests.items()
    ]


class NodeError(AscentError):
    """A node could not answer: its connection or its Python failed."""


class Spread:
    """One fetch for the hosts that need it. ``addresses``: host to the address that the plan has for it."""

    def __init__(
        self,
        model: Mapping[str, Any],
        settings: Settings,
        facts: Mapping[str, Mapping[str, Any] | None],
        addresses: Mapping[str, str],
        executes: Mapping[str, Execute],
        show: Callable[[str], Any],
        *,
        roots: Mapping[str, str] | None = None,
        wait: float | None = None,
    ) -> None:
        """``facts``: host to its fact ``ascent_node.weights``. ``roots`` and ``wait`` are for tests."""
        self.model, self.settings, self.show = model, settings, show
        self.facts = dict(facts)
        self.addresses, self.executes, self.roots = addresses, executes, roots or {}
        self.due = due(model, facts)
        self.directory = str(model["directory"])
        self.wait = (2.0 if len(self.due) <= 8 else 5.0) if wait is None else wait
        self.states: dict[str, dict[str, Any]] = {}
        self.ports: dict[str, int] = {}
        self._told: list[tuple[str, dict[str, Any]]] = []
        self._ended: set[str] = set()
        self.token = secrets.token_urlsafe(32)
        self.started = time.monotonic()
        self._took: dict[str, float] = {}
        self._past: dict[str, list[tuple[float, int]]] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._news = threading.Condition()

    # -- one question to one node --------------------------------------------------------------------------------------

    def ask(self, host: str, op: str, data: bytes = b"", **more: Any) -> dict[str, Any]:
        """A node's answer. Raises NodeError, or SourceError with what the node told."""
        request = {"op": op, "directory": self.directory, "root": self.roots.get(host, "/"), **more}
        try:
            code, out, err = self.executes[host](program(request, data))
        # A connection plugin may raise anything.
        except Exception as error:
            raise NodeError(f"{type(error).__name__}: {error}") from error
        for line in out.decode("utf-8", "replace").splitlines():
            if line.startswith(weights_job.MARK):
                answer: dict[str, Any] = json.loads(line[len(weights_job.MARK) :])
                if answer.get("error"):
                    told = answer["error"]
                    raise SourceError(told["kind"], told["text"], told["fix"])
                return answer
        raise NodeError(f"no answer (exit code {code}): {err.decode('utf-8', 'replace').strip()[-500:]}")

    def _all(self, hosts: Iterable[str], op: str, **more: Any) -> dict[str, dict[str, Any]]:
        """The answers of several nodes; a node that gives none becomes a finding."""
        listed = list(hosts)
        answers = {}
        with concurrent.futures.ThreadPoolExecutor(max(1, len(listed))) as pool:
            asked = {host: pool.submit(self.ask, host, op, **{**more, **_own(more, host)}) for host in listed}
            for host, one in asked.items():
                try:
                    answers[host] = one.result()
                except AscentError as error:
                    self._failed(host, error)
        return answers

    def _failed(self, host: str, error: AscentError) -> None:
        if isinstance(error, SourceError):
            self._tell(host, {"kind": error.kind, "text": str(error), "fix": error.fix})
        else:
            self._tell(host, {"kind": "lost", "text": str(error), "fix": ""})

    def _tell(self, host: str, error: Mapping[str, Any]) -> None:
        entry = (str(error["kind"]), told(host, self.model, self.directory, error))
        with self._lock:
            if entry not in self._told:
                self._told.append(entry)

    @property
    def found(self) -> list[dict[str, Any]]:
        """What went wrong, as findings."""
        return [item for _, item in self._told]

    # -- check mode ----------------------------------------------------------------------------------------------------

    def predict(self, source: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a run would fetch: ``{"files", "bytes", "total", "source", "hosts"}``; None when it would fail."""
        complete = [host for host in self.facts if host not in self.due and self.facts[host]]
        if complete and self.settings.spread:
            one = self.facts[complete[0]] or {}
            size = int(one["bytes"])
            return {"files": None, "bytes": size, "total": size, "source": complete[0], "hosts": self.due}
        first = self.due[0]
        if source["kind"] == "handed":
            files = source["files"]
            total = sum(one["size"] for one in files)
            place = hubs.describe(source)
            return {"files": len(files), "bytes": total, "total": total, "source": place, "hosts": self.due}
        answer = self._all([first], "look", source=dict(source), **self._asking()).get(first)
        would = (answer or {}).get("would")
        if answer and source["kind"] == "rsync":
            return {"files": None, "bytes": None, "total": None, "source": hubs.describe(source), "hosts": self.due}
        return {**would, "hosts": self.due} if would else None

    def _asking(self) -> dict[str, Any]:
        """How a node asks the source. The token goes to the node's stdin only."""
        given = self.settings
        return {
            "token": given.token,
            "proxy": given.proxy,
            "ca_file": given.ca_file,
            "timeout": given.timeout,
            "attempts": given.attempts,
            "exclude": list(given.exclude),
        }

    # -- the real thing ------------------------------------------------------------------------------------------------

    def run(self, source: Mapping[str, Any] | None) -> None:
        """Fetch and spread; ``found`` then has what went wrong, ``facts`` what is on the hosts."""
        self.started = time.monotonic()
        groups = self._groups()
        writers = [group[0] for group in groups]
        complete = [host for host in self.facts if host not in self.due and self.facts[host]]
        if self.found:
            return
        spread = self.settings.spread and (len(writers) > 1 or bool(complete)) and all(map(self.addresses.get, writers))
        givers = [host for host in complete if self.addresses.get(host)][:1] if spread else []
        members = [*givers, *writers]
        self.show(self._opening(members, source, [host for group in groups for host in group[1:]], bool(givers)))
        try:
            self._start(members, source, spread)
            self._follow(members, source)
        finally:
            self._over.set()
            self._stop(members)
        broken = {item["host"] for item in self.found}
        self._look_again([group for group in groups if group[0] not in broken])

    def _opening(self, members: Sequence[str], source: Any, shared: Sequence[str], giver: bool) -> str:
        place = members[0] if giver else hubs.describe(source)
        text = f"weights of {self.model['id']} from {place}"
        others = len(members) - 1
        if giver:
            text += f" to {others} host{'s' * (others != 1)}"
        elif others:
            text += f" to {members[0]}" + (
                f" and from there to {others} more" if self.settings.spread else f" and {others} more"
            )
        else:
            text += f" to {members[0]}"
        return text + (f"; {', '.join(shared)} see{'s' * (len(shared) == 1)} the same file system" if shared else "")

    def _groups(self) -> list[list[str]]:
        """Who writes for whom."""
        if len(self.due) < 2:
            return [[host] for host in self.due]
        run = secrets.token_hex(8)
        names = {host: f"{run}-{number}" for number, host in enumerate(self.due)}
        try:
            self._all(self.due, "mark", name=names)
            if self.found:
                return []
            answers = self._all(self.due, "seen", names=list(names.values()))
        finally:
            self._all(self.due, "unmark", name=names)
        hosts = {name: host for host, name in names.items()}
        seen = {host: [hosts[name] for name in answer["names"]] for host, answer in answers.items()}
        return shared_groups([host for host in self.due if host in seen], seen)

    def _start(self, members: Sequence[str], source: Any, spread: bool) -> None:
        """Begin all jobs, each after those it copies from: their ports are known then."""
        chains = ancestors(members, self.settings.fanout) if spread else {host: [] for host in members}
        level: dict[int, list[str]] = {}
        for host, chain in chains.items():
            level.setdefault(len(chain), []).append(host)
        for _, hosts in sorted(level.items()):
            peers = {
                host: [
                    f"http://{_bracketed(self.addresses[one])}:{self.ports[one]}"
                    for one in chains[host]
                    if one in self.ports
                ]
                for host in hosts
            }
            serve = {
                host: {"address": self.addresses[host], "port": self.settings.port, "token": self.token}
                if spread
                else None
                for host in hosts
            }
            answers = self._all(
                # Without anybody to copy from there is nothing to begin: the reason is told already.
                [host for host in hosts if peers[host] or not chains[host]],
                "start",
                source=dict(source) if source else None,
                model=self.model["id"],
                parallel=self.settings.parallel,
                patience=self.settings.patience,
                peers=peers,
                serve=serve,
                **self._asking(),
            )
            self.ports.update({host: answer["port"] for host, answer in answers.items() if answer["port"]})
            self.states.update({host: {"phase": "list"} for host in answers})

    def _follow(self, members: Sequence[str], source: Any) -> None:
        """Until every job has ended or given up, one thread a host; a line of progress about once a second."""
        watched = [host for host in members if host in self.states]
        threads = [threading.Thread(target=self._watch, args=(host,), daemon=True) for host in watched]
        if source and source["kind"] == "handed" and members[0] in watched and members[0] in self.due:
            threads.append(threading.Thread(target=self._hand, args=(members[0], source), daemon=True))
        for thread in threads:
            thread.start()
        shown = time.monotonic()
        while True:
            with self._news:
                if not set(watched) - self._ended:
                    break
                self._news.wait(0.5)
            if time.monotonic() >= shown + 1:
                shown = time.monotonic()
                line = self.progress(shown)
                if line:
                    self.show(line)
        # Who copied from a host that failed has nothing to add.
        if any(kind != "peer" for kind, _ in self._told):
            self._told = [(kind, item) for kind, item in self._told if kind != "peer"]

    def _watch(self, host: str) -> None:
        """Follow a host's job; one that has ended its own copy is looked at further, as it serves others."""
        lost = 0
        while not self._over.is_set():
            try:
                answer = self.ask(host, "poll", wait=self.wait)
            except AscentError as error:
                lost += 1
                if lost >= _ATTEMPTS:
                    self._failed(host, error)
                    self._end(host)
                    return
                self._over.wait(1)
                continue
            lost = 0
            self._absorb(host, answer)
            self._over.wait(_SERVING_LOOK if host in self._ended else 0.2)

    def _absorb(self, host: str, answer: Mapping[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            state = self.states[host] = answer["state"] or self.states[host]
            self._past.setdefault(host, []).append((now, int(state.get("bytes_done") or 0)))
        if host in self._ended:
            return
        if state["phase"] == "failed":
            self._tell(host, state["error"])
        elif state["phase"] in ("serve", "done"):
            self._took[host] = now - self.started
        elif answer["running"]:
            return
        else:
            self._tell(host, {"kind": "lost", "text": f"the copy on {host} ended by itself", "fix": ""})
        self._end(host)

    def _end(self, host: str) -> None:
        with self._news:
            self._ended.add(host)
            self._news.notify()

    def _hand(self, host: str, source: Mapping[str, Any]) -> None:
        """Give a host the files of a directory on the controller, over Ansible's own connection."""
        folder = Path(source["endpoint"]) / source["id"]
        try:
            while self.states[host]["phase"] in ("list", "check"):
                if self._over.wait(0.2):
                    return
            for one in source["files"]:
                there = self.ask(host, "put", path=one["path"], offset=-1)["size"]
                with (folder / one["path"]).open("rb") as stream:
                    first = True
                    while first or there < one["size"]:
                        if self._over.is_set() or self.states[host]["phase"] not in _RUNNING:
                            return
                        stream.seek(there)
                        there = self.ask(host, "put", stream.read(_CHUNK), path=one["path"], offset=there)["size"]
                        first = False
        except (AscentError, OSError) as error:
            self._failed(host, error if isinstance(error, AscentError) else SourceError("refused", str(error)))
            # What waits for these files would wait for ever.
            self._all([host], "stop")

    def _stop(self, members: Sequence[str]) -> None:
        """Nothing of ours goes on running on any node."""
        for host, answer in self._all([host for host in members if host in self.states], "stop").items():
            self.states[host] = answer.get("state") or self.states[host]

    def _look_again(self, groups: Sequence[Sequence[str]]) -> None:
        """What is on the hosts now; those that only share a file system may see it a moment later."""
        deadline = time.monotonic() + _SEEN_BY_ALL
        readers = {host for group in groups for host in group[1:]}
        waiting = [host for group in groups for host in group]
        while waiting:
            answers = self._all(waiting, "look")
            self.facts.update({host: answer["weights"] for host, answer in answers.items()})
            waiting = [host for host in answers if host in readers and not answers[host]["weights"]["complete"]]
            if time.monotonic() > deadline:
                break
            if waiting:
                time.sleep(1)

    # -- what there is to tell -----------------------------------------------------------------------------------------

    def progress(self, now: float) -> str | None:
        """One line: how far each host is, how fast, and how long it will take; None as long as nothing is known."""
        with self._lock:
            states = {host: state for host, state in self.states.items() if state.get("bytes")}
            rates = {host: self._rate(host, now) for host in states}
        moving = {host: state for host, state in states.items() if state["phase"] in _RUNNING}
        if not moving:
            return None
        first = list(moving)[: 1 if len(moving) > _SHOWN_HOSTS else None]
        pieces = [f"{host} {_how_far(moving[host], rates[host])}" for host in first]
        rest = list(moving)[len(pieces) :]
        if rest:
            shares = sorted(_share(moving[host]) for host in rest)
            pieces.append(f"{len(rest)} more at {shares[0]}-{shares[-1]} %")
        return f"{console.seconds(now - self.started):>9}  {'   '.join(pieces)}"

    def _rate(self, host: str, now: float) -> float:
        past = self._past[host] = [one for one in self._past.get(host, []) if one[0] >= now - _RATE_WINDOW]
        if len(past) < 2 or past[-1][0] <= past[0][0]:
            return 0.0
        return max(0.0, (past[-1][1] - past[0][1]) / (past[-1][0] - past[0][0]))

    def metrics(self) -> dict[str, Any]:
        """Seconds in all, and for each host where its bytes came from and how many crossed the network."""
        return {
            "seconds": round(time.monotonic() - self.started, 1),
            "hosts": {
                host: {
                    "from": state.get("source", ""),
                    **{key: int(state.get(key) or 0) for key in ("bytes", "fetched", "resumed", "checked")},
                    "seconds": round(self._took[host], 1) if host in self._took else None,
                }
                for host, state in self.states.items()
            },
        }


def _own(values: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Those of a request's values that differ from host to host."""
    return {key: values[key][host] for key in ("name", "peers", "serve") if key in values}


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _share(state: Mapping[str, Any]) -> int:
    return int(100 * state["bytes_done"] / state["bytes"]) if state["bytes"] else 100


def _how_far(state: Mapping[str, Any], rate: float) -> str:
    text = f"{_share(state)} % of {amount(state['bytes'])}"
    if state["phase"] != "fetch":
        return f"{text}, {state['phase']}"
    if rate:
        text += f", {amount(rate)}/s, {console.seconds((state['bytes'] - state['bytes_done']) / rate)} left"
    return text


#: Finding, summary, cause and what to do, by the kind of `ascent.hubs.SourceError`; "lost" is a node without an answer.
_KINDS: dict[str, tuple[str, str, str, str]] = {
    "space": ("D16", "there is no room for {model} on {host}", "", "free space, or name another directory"),
    "checksum": (
        "D34",
        "a file of {model} came with a wrong checksum on {host}",
        "the source, or a cache on the way to it, has a damaged file; it was not kept",
        "take another source (weights_endpoint, weights_mirror), or tell the source's owner",
    ),
    "short": (
        "D19",
        "the source of {model} ends a file too early on {host}",
        "the source, or a cache on the way to it, has a file that is cut short; nothing of it is shown",
        "take another source (weights_endpoint, weights_mirror), or deploy again later: the rest is resumed",
    ),
    "unreachable": (
        "D35",
        "the source of {model} does not answer {host}",
        "no route, a proxy, a name that does not resolve, or the service is down",
        "try the address from the host with curl; set weights_endpoint, weights_mirror, weights_proxy or "
        "weights_archive; what has come is kept, and the next run goes on from there",
    ),
    "refused": (
        "D36",
        "the source does not give {model} to {host}",
        "another name or revision, or a model that asks for a token",
        "correct model.id, model.revision or the source, or give a token (weights_token)",
    ),
    "invalid": ("D36", "the source of {model} makes no sense to {host}", "", "look at the source's address"),
    "tool": ("D36", "{host} can't ask the source of {model}", "", "install what is missing"),
    "write": (
        "D37",
        "{host} could not write {model}",
        "a read-only or failing file system, or a directory that is none",
        "look at the file system and the kernel's log on the host",
    ),
    "peer": (
        "D37",
        "{host} could not copy {model} from other hosts",
        "a firewall between the nodes' addresses, or the hosts that were to give it failed",
        "open the port (weights_port) between the nodes, or set weights_spread to false",
    ),
    "lost": (
        "D37",
        "the copy of {model} on {host} could not be followed to its end",
        "the connection or the process ended",
        "deploy again: it goes on from what is there",
    ),
}


def told(host: str, model: Mapping[str, Any], directory: str, error: Mapping[str, Any]) -> dict[str, Any]:
    """The finding for what a job told."""
    known, summary, cause, fix = _KINDS[error["kind"]]
    return finding(
        known,
        "error",
        summary.format(model=model["id"], host=host),
        host=host,
        stage=_STAGE,
        evidence=f"{error['text']} ({directory})",
        cause=cause,
        fix=str(error["fix"] or fix),
    )


def judged(
    model: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any] | None], *, fetch: bool
) -> list[dict[str, Any]]:
    """What is wrong with the directories as they are (`provisioning.weights_findings`)."""
    return [
        item
        for host, one in facts.items()
        for item in provisioning.weights_findings(
            one, host, model=str(model["id"]), source=str(model.get("source") or ""), fetch=fetch
        )
    ]
