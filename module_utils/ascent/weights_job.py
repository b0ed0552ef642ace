"""Brings a model's weights to one node, and gives them to other nodes while they come.

`ascent_controller.weights_spread` sends this file and those it stands on to a node's Python by stdin, with a request.
A job runs on behind the connection, writes its state to ``/run/ascent``, and ends when its controller has not looked
for a while. So nothing stays behind a controller that was killed but verified files and the beginning of others, and
the next run goes on from there.

Requests all have ``op`` and ``directory`` (where the plan wants the model), and ``root`` ("/" but for tests)::

    look    what is here; with a ``source`` that answers to HTTP, also what would come
    start   begin a job, in place of one that runs; see `Job`
    poll    the job's state, after up to ``wait`` seconds without news
    stop    end the job
    put     append ``data`` (after the request) to the file ``path`` that begins with ``offset`` bytes; answers its size
    mark    leave the marker ``name`` beside the directory; ``seen``: which of ``names`` are there; ``unmark``

Nodes give files by HTTP, on the address that the plan has for them, to whoever shows the run's own token: every node
has Python, and few have rsync or keys for each other; resuming and checking are the same code as for a hub. A file can
be had as soon as it is verified, so that all nodes of a tree copy at once.
"""

from __future__ import annotations

__all__ = ["MARK", "Job", "amount", "main"]

import contextlib
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Tuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from . import hubs
from .downloads import PART, Client, Digest, StoppedError, fetch, local, sha256_of
from .errors import AscentError
from .hubs import SourceError
from .weights_store import Store

#: Begins the answer's line, so that a login banner or a notice of sudo can stand before it.
MARK = "ascent-weights:"

_RUN = "run/ascent"
_WRITE_EVERY = 0.5
_TOO_EARLY = 425
_WAIT_FOR_PEER = 0.2
_BLOCK = 1 << 20
_ENDED = ("done", "failed", "stopped")


def amount(count: float) -> str:
    """Bytes for people.

    >>> [amount(5), amount(2500000), amount(402100000000)]
    ['5 B', '2.5 MB', '402.1 GB']
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


# -- where files come from ---------------------------------------------------------------------------------------------


class _Folder(Client):
    """A directory of this node, such as a mounted share, asked like a server."""

    def open(self, url: str, *, method: str = "GET", start: int = 0) -> Any:  # noqa: ARG002 -- as Client's
        """A file from byte ``start`` on."""
        return _Opened(url, start)

    def ask(self, url: str, method: str = "GET") -> Tuple[bytes, Mapping[str, str]]:
        """A file's content, or only its size."""
        try:
            if method == "HEAD":
                return b"", {"content-length": str(os.stat(url).st_size)}
            with open(url, "rb") as stream:
                return stream.read(), {}
        except OSError as error:
            raise SourceError("refused", f"{url}: {error.strerror}", "mount the share on this node") from None


class _Opened:
    """A file as an answer of HTTP."""

    def __init__(self, path: str, start: int) -> None:
        self.stream = open(path, "rb")  # noqa: SIM115 -- closed by __exit__
        self.stream.seek(start)
        self.status = 206 if start else 200
        left = max(0, os.fstat(self.stream.fileno()).st_size - start)
        self.headers = {"Content-Length": str(left), "Content-Range": f"bytes {start}-{start + left - 1}/*"}
        self.read = self.stream.read

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stream.close()


class _Peers(Client):
    """Other nodes that have the files or are getting them, nearest first; addresses given to it are paths."""

    def __init__(self, peers: List[str], token: str, timeout: float, pause: Callable[[float], Any]) -> None:
        super().__init__({"Authorization": f"Bearer {token}"}, proxy="none", timeout=timeout, pause=pause)
        self.peers = peers
        self.now = peers[0]

    def open(self, url: str, *, method: str = "GET", start: int = 0) -> Any:
        """What the nearest peer that works has, waiting until it has it."""
        while True:
            try:
                return super().open(self.now + url, method=method, start=start)
            except OSError as error:
                if getattr(error, "code", 0) != _TOO_EARLY:
                    raise
                error.close()  # type: ignore[attr-defined]
            self.pause(_WAIT_FOR_PEER)

    def patiently(self, url: str, once: Callable[[], Any], moved: Callable[[], int] = lambda: 0) -> Any:
        """As `Client.patiently` with one peer after the other."""
        problems = []
        for peer in [self.now, *(one for one in self.peers if one != self.now)]:
            self.now = peer
            try:
                return super().patiently(peer + url, once, moved)
            except SourceError as error:
                # A short file or a full disk of our own is not this peer's matter.
                if error.kind not in ("unreachable", "refused", "invalid"):
                    raise
                problems.append(str(error))
        raise SourceError("peer", "; ".join(problems))


# -- the job -----------------------------------------------------------------------------------------------------------


class Job:
    """One node's part of bringing a model to a cluster. The request, beside ``directory`` and ``root``::

        {"source": `hubs` source, or null when the files come from peers only,
         "token", "proxy", "ca_file", "timeout", "attempts",                     how to ask it
         "exclude": [pattern, ...], "parallel": files at once,
         "peers": [base address, ...], "serve": {"address", "port", "token"} | null,
         "patience": seconds without a look of the controller}

    Its state::

        {"phase": "list" | "check" | "fetch" | "publish" | "serve" | "done" | "failed" | "stopped", "pid", "port",
         "source": in words, "staging", "files", "files_done", "bytes", "bytes_done",
         "fetched": bytes over the network, "checked": bytes compared on this node, "resumed": bytes that were here,
         "error": {"kind", "text", "fix"} | null}
    """

    def __init__(self, request: Mapping[str, Any], listener: Optional[socket.socket] = None) -> None:
        self.request = request
        self.store = Store(_inside(request["root"], request["directory"]))
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.listing: Optional[Dict[str, Any]] = None
        self.shared: Dict[str, Dict[str, Any]] = {}
        self.listener = listener
        self.state: Dict[str, Any] = {
            "phase": "list",
            "pid": os.getpid(),
            "port": listener.getsockname()[1] if listener else None,
            "source": "",
            "staging": self.store.staging,
            "files": 0,
            "files_done": 0,
            "bytes": 0,
            "bytes_done": 0,
            "fetched": 0,
            "checked": 0,
            "resumed": 0,
            "error": None,
        }

    # -- its life --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it; the state says how it ended."""
        if self.listener is not None:
            _serve(self, self.listener, str(self.request["serve"]["token"]))
        try:
            self._bring()
            self._set(phase="serve" if self.listener is not None else "done")
            if self.listener is not None:
                self.stop.wait()
                self._set(phase="done")
        except StoppedError:
            self._set(phase="stopped")
        except SourceError as error:
            self._fail(error.kind, str(error), error.fix)
        except OSError as error:
            told = local(error, str(error.filename or self.store.top))
            self._fail(told.kind, str(told))
        except Exception as error:  # whatever it was, the operator has to read it: a job without an end is waited for
            self._fail("invalid", f"{type(error).__name__}: {error}")

    def _fail(self, kind: str, text: str, fix: str = "") -> None:
        self._set(phase="failed", error={"kind": kind, "text": text, "fix": fix})
        if self.listener is not None:
            # Those who wait for this node are told.
            self.stop.wait()

    def _set(self, **changes: Any) -> None:
        with self.lock:
            self.state.update(changes)

    def _told(self, count: int) -> None:
        with self.lock:
            self.state["bytes_done"] += count
            self.state["fetched"] += max(0, count)

    def _check(self) -> None:
        if self.stop.is_set():
            raise StoppedError("asked to stop")

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise StoppedError("asked to stop")

    # -- its work --------------------------------------------------------------------------------------------------

    def _bring(self) -> None:
        source = self.request["source"]
        revision = str((source or {}).get("revision") or "")
        self.store.heal(self._check)
        if self.store.has(revision):
            self._show_own()
            return
        client, found = self._ask()
        found = hubs.wanted(found, self.request["exclude"])
        self.shared = {one["path"]: one for one in found["files"]}
        self.store.prepare(found)
        self._set(
            files=len(found["files"]), bytes=sum(one["size"] for one in found["files"]), staging=self.store.staging
        )
        self.listing = found
        self._compare(found)
        # What is here only counts when the rest of it comes, too: the disk is asked before the network is.
        _, fetch = self.store.missing(found)
        self._room(fetch)
        self._set(phase="fetch")
        self._each(fetch, lambda one: self._fetch(client, source, found, one))
        self._set(phase="publish")
        self.store.publish(found, str(found.get("source") or self.state["source"]), str(self.request["model"]))
        judged = self.store.inspect()
        if not judged["complete"]:
            raise SourceError("write", f"{self.store.directory} is not complete although all of it was written")

    def _show_own(self) -> None:
        """The model is here: only its checksums have to be known, for those who copy it."""
        self._set(source="this node", phase="check")

        def digest(path: str, size: int) -> str:
            told = sha256_of(path, self._check)
            with self.lock:
                self.state["checked"] += size
            return told

        self.listing = self.store.listing(digest)
        self.shared = {one["path"]: one for one in self.listing["files"]}
        total = sum(one["size"] for one in self.listing["files"])
        count = len(self.listing["files"])
        self._set(files=count, files_done=count, bytes=total, bytes_done=total)

    def _ask(self) -> Tuple[Client, Dict[str, Any]]:
        """Who to ask for files, and which there are."""
        source = self.request["source"]
        if self.request["peers"]:
            token = str(self.request["serve"]["token"])
            peers = _Peers(list(self.request["peers"]), token, self.request["timeout"], self._pause)
            self._set(source="peers")
            body, _ = peers.ask("/manifest")
            found = json.loads(body)
            return peers, {
                **hubs.finished(found["files"], found["commit"], found["revision"]),
                "source": found["source"],
            }
        self._set(source=hubs.describe(source))
        client = client_for(source, self.request, self._pause)
        if source["kind"] == "handed":
            return client, hubs.finished(source["files"], "", str(source.get("revision") or ""))
        if source["kind"] == "rsync":
            return client, _rsync_listing(source, self.request)
        return client, hubs.listing({**source, "kind": "http"} if source["kind"] == "directory" else source, client.ask)

    def _compare(self, found: Mapping[str, Any]) -> None:
        """Compare what is here and was not compared yet."""
        check, fetch = self.store.missing(found)
        ready = sum(one["size"] for one in found["files"]) - sum(one["size"] for one in [*check, *fetch])
        begun = sum(self.store.have(one) for one in fetch)
        done = len(found["files"]) - len(check) - len(fetch)
        self._set(phase="check", bytes_done=ready + begun, resumed=ready + begun, files_done=done)

        def compare(one: Dict[str, Any]) -> None:
            right = self.store.compare(one, self._check)
            with self.lock:
                self.state["checked"] += one["size"]
                self.state["bytes_done"] += one["size"] * right
                self.state["resumed"] += one["size"] * right
                self.state["files_done"] += int(right)

        self._each(check, compare)

    def _room(self, fetch: List[Dict[str, Any]]) -> None:
        need = sum(one["size"] - self.store.have(one) for one in fetch)
        free, kept, place = self.store.space()
        if need > free - kept:
            raise SourceError(
                "space",
                f"{amount(need)} are still to come, {amount(free)} are free on {place} ({amount(kept)} stay free)",
                f"free {amount(need - free + kept)} on {place}, or let ascent_cache_directory name a larger one",
            )

    def _each(self, files: List[Dict[str, Any]], work: Callable[[Dict[str, Any]], Any]) -> None:
        """Work on all files, a few at once; the first error ends it."""
        todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        over: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for one in files:
            todo.put(one)
        failed = threading.Event()

        def worker() -> None:
            while not failed.is_set():
                try:
                    one = todo.get_nowait()
                except queue.Empty:
                    break
                try:
                    work(one)
                # Handed to whoever waits, as it is.
                except BaseException as error:
                    over.put(error)
                    return
            over.put(None)

        count = max(1, min(int(self.request["parallel"]), len(files)))
        for number in range(count):
            threading.Thread(target=worker, daemon=True, name=f"weights-{number}").start()
        for _ in range(count):
            while True:
                try:
                    error = over.get(timeout=_WAIT_FOR_PEER)
                    break
                except queue.Empty:
                    self._check()
            if error is not None:
                failed.set()
                raise error

    def _fetch(self, client: Client, source: Any, found: Mapping[str, Any], one: Dict[str, Any]) -> None:
        target = self.store.target(one["path"])
        if isinstance(client, _Peers):
            sha256 = fetch(client, f"/file?path={quote(one['path'], safe='')}", target, one, self._told, self.stop)
        elif source["kind"] == "handed":
            sha256 = _await(target, one, self._told, self._pause, str(source["endpoint"]))
        elif source["kind"] == "rsync":
            sha256 = self._rsync(source, one, target)
        else:
            sha256 = fetch(client, hubs.file_url(source, found, one["path"]), target, one, self._told, self.stop)
        with self.lock:
            self.store.note(one, sha256)
            self.state["files_done"] += 1

    def _rsync(self, source: Mapping[str, Any], one: Dict[str, Any], target: str) -> str:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        place = f"{hubs.endpoint(source)}/{source['id']}/{one['path']}"
        command = ["rsync", "--times", "--copy-links", "--inplace", "--append", place, target + PART]
        process = subprocess.Popen(
            command, env=_rsync_environment(self.request), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while process.poll() is None:
                before = self.store.have(one)
                self._pause(_WAIT_FOR_PEER)
                self._told(self.store.have(one) - before)
        finally:
            if process.poll() is None:
                process.terminate()
        _, errors = process.communicate()
        if process.returncode:
            raise _rsync_error(process.returncode, errors.decode("utf-8", "replace"), place)
        digest = Digest(one)
        digest.read(target + PART, self._check)
        wrong = digest.wrong(one)
        if wrong:
            os.unlink(target + PART)
            raise SourceError("checksum", f"{one['path']} comes with {wrong}")
        os.replace(target + PART, target)
        return digest.sha256.hexdigest()

    # -- for others ------------------------------------------------------------------------------------------------

    def manifest(self) -> Optional[bytes]:
        """The listing for other nodes; None as long as it isn't known."""
        with self.lock:
            if self.listing is None:
                return None
            source = self.listing.get("source") or self.state["source"]
            return json.dumps({**self.listing, "source": source}).encode()

    def ready(self, path: str) -> Optional[str]:
        """Where a verified file of the listing is; None when it isn't here yet. KeyError for one that never comes."""
        known = self.shared[path]
        own = self.state["source"] == "this node"
        if not own and path not in self.store.record["files"]:
            return None
        return self.store.path(known["path"])


def client_for(source: Mapping[str, Any], request: Mapping[str, Any], pause: Callable[[float], Any]) -> Client:
    """Who asks a source."""
    kind = _Folder if source["kind"] == "directory" else Client
    return kind(
        hubs.headers(source, str(request.get("token") or "")),
        proxy=str(request.get("proxy") or ""),
        ca_file=str(request.get("ca_file") or ""),
        timeout=float(request.get("timeout") or 60),
        attempts=int(request.get("attempts") or 5),
        pause=pause,
    )


def _await(
    target: str, file: Mapping[str, Any], told: Callable[[int], Any], pause: Callable[[float], Any], giver: str
) -> str:
    """Wait for a file that ``put`` writes; compare it as it grows."""
    part, digest = target + PART, Digest(file)
    while True:
        if os.path.exists(part):
            with open(part, "rb") as stream:
                stream.seek(digest.count)
                known = digest.count
                while True:
                    piece = stream.read(_BLOCK)
                    if not piece:
                        break
                    digest.update(piece)
                if digest.count > known:
                    told(digest.count - known)
        if digest.count >= file["size"] and os.path.exists(part):
            break
        pause(_WAIT_FOR_PEER)
    wrong = digest.wrong(file)
    if wrong:
        os.unlink(part)
        raise SourceError("checksum", f"{file['path']} comes from {giver} with {wrong}")
    os.replace(part, target)
    return digest.sha256.hexdigest()


def _rsync_environment(request: Mapping[str, Any]) -> Dict[str, str]:
    """A password reaches rsync by its environment, which no process list shows."""
    secret = {"RSYNC_PASSWORD": str(request["token"])} if request.get("token") else {}
    return {**os.environ, **secret, "LC_ALL": "C"}


def _rsync_error(code: int, text: str, place: str) -> SourceError:
    line = (text.strip().splitlines() or [""])[0][:300]
    if "No space left" in text:
        return SourceError("space", line)
    if "No such file" in text or "Unknown module" in text:
        return SourceError("refused", f"{place}: {line}", "look at the model's name and at weights_mirror")
    return SourceError("unreachable", f"rsync of {place} ended with {code}: {line}")


def _rsync_listing(source: Mapping[str, Any], request: Mapping[str, Any]) -> Dict[str, Any]:
    """Sizes as rsync lists them, checksums from the tree's own file."""
    if shutil.which("rsync") is None:
        raise SourceError(
            "tool", "rsync is not installed", "install rsync on this node, or serve the directory by HTTP"
        )
    base = f"{hubs.endpoint(source)}/{source['id']}"
    environment = _rsync_environment(request)

    def run(*arguments: str) -> str:
        done = subprocess.run(["rsync", *arguments], env=environment, capture_output=True, check=False)
        if done.returncode:
            raise _rsync_error(done.returncode, done.stderr.decode("utf-8", "replace"), base)
        return done.stdout.decode("utf-8", "replace")

    rows = re.findall(r"^-\S+\s+([\d,.]+)\s+\S+\s+\S+\s+(.+)$", run("--list-only", "-r", "-L", base + "/"), re.M)
    sizes = {path: int(re.sub(r"[,.]", "", size)) for size, path in rows}
    if hubs.LISTING not in sizes:
        raise SourceError("refused", f"{base} has no {hubs.LISTING}", "write one with sha256sum beside the files")
    place = f"/dev/shm/ascent-{os.getpid()}-{hubs.LISTING}"  # noqa: S108 -- ours alone: named by this process
    try:
        run("-L", f"{base}/{hubs.LISTING}", place)
        with open(place, encoding="utf-8") as stream:
            sums = hubs.read_sums(stream.read(), f"{base}/{hubs.LISTING}")
    finally:
        if os.path.exists(place):
            os.unlink(place)
    absent = sorted(set(sums) - set(sizes))
    if absent:
        raise SourceError("refused", f"{base} lacks {', '.join(absent[:5])}")
    return hubs.finished(
        [
            {"path": path, "size": sizes[path], "sha256": digest, "git_id": None, "revision": ""}
            for path, digest in sums.items()
        ]
    )


# -- for other nodes ---------------------------------------------------------------------------------------------------


def _serve(job: Job, listener: socket.socket, token: str) -> None:
    """Give the job's files to those who show ``token``; lives as long as the job's process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def _error(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            """A file, or the listing."""
            try:
                self._answer()
            except OSError:
                # Who asked has gone away.
                self.close_connection = True

        def _answer(self) -> None:
            shown = str(self.headers.get("Authorization") or "")
            if not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
                self._error(403)
                return
            parts = urlsplit(self.path)
            if job.state["phase"] in ("failed", "stopped"):
                self._error(410)
                return
            if parts.path == "/manifest":
                text = job.manifest()
                if text is None:
                    self._error(_TOO_EARLY)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                return
            try:
                path = job.ready(unquote(parse_qs(parts.query)["path"][0]))
            except KeyError:
                self._error(404)
                return
            if path is None:
                self._error(_TOO_EARLY)
                return
            self._send(path)

        def _send(self, path: str) -> None:
            with open(path, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(asked.group(1)) if asked else 0
                if start >= size > 0:
                    self._error(416)
                    return
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(size - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                self.end_headers()
                self.wfile.flush()
                self.connection.sendfile(stream, start, size - start) if size > start else None

        def log_message(self, *_: Any) -> None:
            """Nowhere to write to."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that go away are no error of ours."""

    server = Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, daemon=True, name="weights-serve").start()


# -- requests ----------------------------------------------------------------------------------------------------------


def _inside(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _place(request: Mapping[str, Any], suffix: str) -> str:
    """A file of this directory's job below /run."""
    name = hashlib.sha256(str(request["directory"]).encode()).hexdigest()[:16]
    return os.path.join(request["root"], _RUN, f"weights-{name}{suffix}")


def _write_state(request: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    place = _place(request, ".json")
    with open(place + ".new", "w", encoding="utf-8") as stream:
        json.dump(state, stream)
    os.replace(place + ".new", place)


def _read_state(request: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    try:
        with open(_place(request, ".json"), encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lock(request: Mapping[str, Any], kind: int = fcntl.LOCK_EX) -> Optional[int]:
    """The right to run this directory's job, held by an open file; None while another process has it."""
    os.makedirs(_inside(request["root"], _RUN), exist_ok=True)
    held = os.open(_place(request, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _running(request: Mapping[str, Any]) -> bool:
    """Whether a job has the lock. A shared one is enough to know, and is in nobody's way."""
    held = _lock(request, fcntl.LOCK_SH)
    if held is not None:
        os.close(held)
    return held is None


def _born(pid: int) -> str:
    """When a process started, in the kernel's own count; tells a process from a later one with its number."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _owner(request: Mapping[str, Any]) -> int:
    """The process that runs the job; 0 when that can't be told for certain."""
    try:
        with open(_place(request, ".lock"), encoding="utf-8") as stream:
            pid, born = stream.read().split()
    except (OSError, ValueError):
        return 0
    return int(pid) if born and _born(int(pid)) == born else 0


def _end(request: Mapping[str, Any], seconds: float = 20) -> int:
    """End the job that runs, and return its lock. Raises AscentError when it does not end."""
    deadline = time.monotonic() + seconds
    while True:
        held = _lock(request)
        if held is not None:
            return held
        owner = _owner(request)
        if owner:
            # Asked first; who doesn't listen is ended. Its files are as good as after a power cut, which they bear.
            hard = time.monotonic() > deadline - seconds / 2
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner, signal.SIGKILL if hard else signal.SIGTERM)
        if time.monotonic() > deadline:
            raise AscentError(f"another copy of {request['directory']} runs (process {owner}) and does not end")
        time.sleep(0.1)


def start(request: Mapping[str, Any]) -> Dict[str, Any]:
    """Begin a job behind this connection, in place of one that an earlier run left."""
    held = _end(request)
    listener = None
    if request["serve"]:
        address, port = request["serve"]["address"], int(request["serve"].get("port") or 0)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise SourceError(
                "peer",
                f"{address} port {port or 'any'}: {error.strerror}",
                "look at node_ip of this host and at weights_port",
            ) from None
        listener.listen(128)
    os.umask(0o022)
    for suffix in (".beat", ".json"):
        with open(_place(request, suffix), "w", encoding="utf-8"):
            pass
    sys.stdout.flush()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _run(request, held, listener)
        os._exit(0)
    os.wait()
    return {"port": listener.getsockname()[1] if listener else None}


def _run(request: Mapping[str, Any], held: int, listener: Optional[socket.socket]) -> None:
    """The job's own process."""
    empty = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(empty, number)
    os.chdir("/")
    os.truncate(held, 0)
    os.pwrite(held, f"{os.getpid()} {_born(os.getpid())}".encode(), 0)
    job = Job(request, listener)
    signal.signal(signal.SIGTERM, lambda *_: job.stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    work = threading.Thread(target=job.run, daemon=True)
    work.start()
    beat, seen, since = _place(request, ".beat"), 0, time.monotonic()
    while work.is_alive():
        with job.lock:
            state = dict(job.state)
        _write_state(request, state)
        work.join(_WRITE_EVERY)
        try:
            now = os.stat(beat).st_mtime_ns
        except OSError:
            now = -1
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > float(request["patience"]):
            job.stop.set()
        if job.stop.is_set() and work.is_alive():
            work.join(2)
            if job.state["phase"] not in _ENDED:
                job.state["phase"] = "stopped"
            break
    _write_state(request, job.state)
    os._exit(0)


def poll(request: Mapping[str, Any]) -> Dict[str, Any]:
    """The job's state when it has changed, or after ``wait`` seconds; ``running`` tells whether its process lives."""
    beat = _place(request, ".beat")
    deadline = time.monotonic() + float(request["wait"])
    while True:
        if os.path.exists(beat):
            os.utime(beat)
        running = _running(request)
        state = _read_state(request) or {}
        if not running or state.get("phase") in (*_ENDED, "serve") or time.monotonic() >= deadline:
            return {"state": state, "running": running}
        time.sleep(0.2)


def stop(request: Mapping[str, Any]) -> Dict[str, Any]:
    """End the job, and leave nothing of it below /run."""
    held = _end(request)
    state = _read_state(request)
    for suffix in (".json", ".beat"):
        if os.path.exists(_place(request, suffix)):
            os.unlink(_place(request, suffix))
    # The lock stays: a file that goes would let two jobs hold two of it.
    os.truncate(held, 0)
    os.close(held)
    return {"state": state}


def look(request: Mapping[str, Any]) -> Dict[str, Any]:
    """What is here and what would come; asks the source, writes nothing."""
    store = Store(_inside(request["root"], request["directory"]))
    answer: Dict[str, Any] = {"weights": {**store.inspect(), "directory": request["directory"]}, "would": None}
    source = request.get("source")
    if source and source["kind"] not in ("handed", "rsync"):
        client = client_for(source, request, time.sleep)
        asked = {**source, "kind": "http"} if source["kind"] == "directory" else source
        found = hubs.wanted(hubs.listing(asked, client.ask), request["exclude"])
        files = found["files"]
        there = [one for one in files if _there(store, one) == one["size"]]
        begun = sum(_there(store, one) for one in files)
        total = sum(one["size"] for one in files)
        free = shutil.disk_usage(_existing(store.top)).free
        answer["would"] = {
            "files": len(files) - len(there),
            "bytes": total - begun,
            "total": total,
            "free": free,
            "source": hubs.describe(source),
        }
    return answer


def _there(store: Store, file: Mapping[str, Any]) -> int:
    """Bytes of a file that a fetch would find, whole or begun."""
    places = [store.target(file["path"]), store.target(file["path"]) + PART]
    places.append(os.path.join(store.top, file["path"]))
    return max((min(os.path.getsize(path), file["size"]) for path in places if os.path.isfile(path)), default=0)


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def put(request: Mapping[str, Any], data: bytes) -> Dict[str, Any]:
    """Append to a file that a job of the kind ``handed`` waits for, when it is as long as the sender believes."""
    staging = str((_read_state(request) or {})["staging"])
    path = str(request["path"])
    if ".." in path.split("/") or path.startswith("/"):
        raise AscentError(f"{path} leaves the directory")
    target = os.path.join(staging, path)
    if os.path.exists(target):
        return {"size": os.path.getsize(target)}
    part = target + PART
    try:
        os.makedirs(os.path.dirname(part), exist_ok=True)
        with open(part, "ab") as stream:
            if stream.tell() == request["offset"]:
                stream.write(data)
            return {"size": stream.tell()}
    except OSError as error:
        raise local(error, part) from None


def mark(request: Mapping[str, Any]) -> Dict[str, Any]:
    """Leave a marker where other hosts of the same file system see it."""
    with open(_marker(request, request["name"]), "w", encoding="utf-8"):
        return {}


def seen(request: Mapping[str, Any]) -> Dict[str, Any]:
    """Which markers are here. Asked by name: a listing may come from a network file system's cache."""
    return {"names": [name for name in request["names"] if os.path.exists(_marker(request, name))]}


def unmark(request: Mapping[str, Any]) -> Dict[str, Any]:
    """Remove a marker."""
    if os.path.exists(_marker(request, request["name"])):
        os.unlink(_marker(request, request["name"]))
    return {}


def _marker(request: Mapping[str, Any], name: str) -> str:
    parent = os.path.dirname(Store(_inside(request["root"], request["directory"])).top)
    try:
        os.makedirs(parent, exist_ok=True)
    except OSError as error:
        raise local(error, parent) from None
    return os.path.join(parent, f".ascent-seen-{name}")


_OPERATIONS: Dict[str, Callable[[Mapping[str, Any]], Dict[str, Any]]] = {
    "look": look,
    "start": start,
    "poll": poll,
    "stop": stop,
    "mark": mark,
    "seen": seen,
    "unmark": unmark,
}


def main(text: str, data: BinaryIO) -> None:
    """Answer one request with one line; ``data`` holds what follows it."""
    request = json.loads(text)
    try:
        answer = put(request, data.read()) if request["op"] == "put" else _OPERATIONS[request["op"]](request)
    except SourceError as error:
        answer = {"error": {"kind": error.kind, "text": str(error), "fix": error.fix}}
    except (OSError, AscentError, http.client.HTTPException) as error:
        answer = {"error": {"kind": "write", "text": f"{type(error).__name__}: {error}", "fix": ""}}
    print(MARK + json.dumps(answer), flush=True)
