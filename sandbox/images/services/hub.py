#!/usr/bin/env python3
"""What a site serves to its servers over HTTP: package mirrors, and models as the public hubs serve them.

Below the root directory given with `--root`:

- `hub/ORGANISATION/NAME/REVISION/...`: the files of a model; the revision `main` has to be there, others are tags;
- anything else is served as it is, with a listing for each directory and a `SHA256SUMS` where a directory has none.

Models are found under the paths that three clients ask for: `huggingface_hub` (`/api/models/ID`, `/ID/resolve/...`),
`modelscope` (`/api/v1/models/ID/repo...`) and `openmind_hub` (`/api/v1/model/ID`, `/api/v1/file/ID`). The shapes of the
answers were taken from what those clients read. Content can be asked for in parts (Range).

`/_site/faults` holds rules that spoil answers, see `Fault`; `/_site/requests` tells what was asked and what was sent.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import email.utils
import fnmatch
import hashlib
import html
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BRANCH = "main"
#: What the hubs call the same branch.
BRANCHES = (BRANCH, "master")
#: Files that the hubs keep outside git, addressed by their SHA-256; all others are addressed by their git object id.
LARGE = (".safetensors", ".bin", ".gguf", ".pt")
LFS_POINTER_BYTES = 134
PIECE = 1 << 16
LISTING = "SHA256SUMS"
#: Names under which the site can be reached over TLS beside its address, for nodes whose hosts file points them here.
NAMES = ("huggingface.co", "modelscope.cn", "www.modelscope.cn", "modelers.cn")
IDENTIFIER = r"(?P<id>[\w.-]+/[\w.-]+)"
FAULTS = ("break", "checksum", "slow", "stall", "truncate", "unavailable")


class SiteError(Exception):
    """A request that can't be served: `status`, `reason` in words, `code` as Hugging Face names it."""

    def __init__(self, status: int, reason: str, code: str = "") -> None:
        """`code` is one of RepoNotFound, RevisionNotFound and EntryNotFound, or empty."""
        super().__init__(reason)
        self.status, self.reason, self.code = status, reason, code


@dataclass
class Fault:
    """One way to spoil answers.

    `match` is a pattern on `ORGANISATION/NAME/FILE` (`ORGANISATION/NAME` for questions about a model), or on the path
    of another file without its leading slash. `times`: how many answers it spoils; null for all. By `fault`:

    - `truncate`: the file ends after `bytes`, as if it were stored so; sizes and checksums told elsewhere stay true.
    - `checksum`: the byte at `bytes` is another one.
    - `break`: the connection ends after `bytes` of a body.
    - `slow`: bodies come at `rate` bytes a second. `stall`: after `bytes` nothing comes for `seconds`.
    - `unavailable`: `status` (503), and `Retry-After: seconds` where given, for every question.
    """

    fault: str
    match: str = "*"
    times: int | None = None
    bytes: int = 0
    rate: int = 65536
    seconds: float = 0
    status: int = 503

    def __post_init__(self) -> None:
        """Raises ValueError with what is wrong, for rules that come from outside."""
        if self.fault not in FAULTS:
            raise ValueError(f"fault is {self.fault!r}; it has to be one of {', '.join(FAULTS)}")
        for name in ("bytes", "rate", "seconds", "status"):
            if not isinstance(getattr(self, name), (int, float)) or getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it has to be a number from 0 on")
        if self.rate == 0:
            raise ValueError("rate is 0; use the fault stall for bodies that don't come")


class Faults:
    """The rules in force, the first that matches first."""

    def __init__(self) -> None:
        """No rules."""
        self._rules: list[Fault] = []
        self._lock = threading.Lock()

    def rules(self) -> list[dict[str, Any]]:
        """The rules as they are now, with what is left of `times`."""
        with self._lock:
            return [asdict(rule) for rule in self._rules]

    def set(self, rules: Any) -> None:
        """Replaces all rules. Raises ValueError naming what is wrong with them."""
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise ValueError("the body has to be a JSON list of objects, each with `fault` and what goes with it")
        known = Fault.__dataclass_fields__
        for rule in rules:
            if unknown := sorted(set(rule) - set(known)):
                raise ValueError(f"unknown key {unknown[0]}; there are {', '.join(known)}")
            if "fault" not in rule:
                raise ValueError("a rule has no key `fault`")
        made = [Fault(**rule) for rule in rules]
        with self._lock:
            self._rules = made

    def take(self, subject: str, *kinds: str) -> Fault | None:
        """The rule of one of `kinds` that spoils this answer, counted as used; None when none does."""
        with self._lock:
            for rule in self._rules:
                if rule.fault in kinds and rule.times != 0 and fnmatch.fnmatchcase(subject, rule.match):
                    if rule.times is not None:
                        rule.times -= 1
                    return rule
        return None


@dataclass(frozen=True)
class Entry:
    """One file of a model at one revision."""

    path: str
    file: Path
    size: int
    sha256: str
    git_id: str

    @property
    def large(self) -> bool:
        """Whether a hub keeps it outside git."""
        return self.path.endswith(LARGE)

    @property
    def etag(self) -> str:
        """What a hub addresses the content by."""
        return self.sha256 if self.large else self.git_id


def checksums(file: Path) -> tuple[str, str]:
    """SHA-256 and git object id of a file."""
    sha256, git_id = hashlib.sha256(), hashlib.sha1(f"blob {file.stat().st_size}\0".encode())  # noqa: S324 -- git's own
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            sha256.update(piece)
            git_id.update(piece)
    return sha256.hexdigest(), git_id.hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A model at one revision."""

    id: str
    commit: str
    time: float
    entries: dict[str, Entry]

    def entry(self, path: str) -> Entry:
        """The file of a path. Raises SiteError when the revision has none."""
        if path not in self.entries:
            raise SiteError(404, f"{self.id} has no file {path}", "EntryNotFound")
        return self.entries[path]

    def below(self, folder: str, recursive: bool) -> tuple[list[str], list[Entry]]:
        """The folders and the files of a folder; of all that is below it when `recursive`."""
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        inside = [entry for path, entry in self.entries.items() if path.startswith(prefix)]
        if prefix and not inside:
            raise SiteError(404, f"{self.id} has no folder {folder}", "EntryNotFound")
        folders: set[str] = set()
        for entry in inside:
            parts = entry.path[len(prefix) :].split("/")[:-1]
            folders.update(prefix + "/".join(parts[: depth + 1]) for depth in range(len(parts)))
        if not recursive:
            folders = {each for each in folders if "/" not in each[len(prefix) :]}
            inside = [entry for entry in inside if "/" not in entry.path[len(prefix) :]]
        return sorted(folders), inside


class Models:
    """The models below a directory. Checksums are kept for as long as a file keeps its size and its time."""

    def __init__(self, root: Path) -> None:
        """`root` holds ORGANISATION/NAME/REVISION; it need not exist."""
        self.root = root
        self._known: dict[tuple[str, int, int], tuple[str, str]] = {}

    def ids(self) -> list[str]:
        """The models there are."""
        return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in self.root.glob(f"*/*/{BRANCH}"))

    def tags(self, model: str) -> list[str]:
        """The revisions of a model beside its branch. Raises SiteError when there is no such model."""
        if model not in self.ids():
            raise SiteError(
                404, f"there is no model {model}; there are {', '.join(self.ids()) or 'none'}", "RepoNotFound"
            )
        return sorted(path.name for path in (self.root / model).iterdir() if path.is_dir() and path.name != BRANCH)

    def snapshot(self, model: str, revision: str = BRANCH) -> Snapshot:
        """A model at a branch, a tag or a commit. Raises SiteError when there is no such model or revision."""
        tags = self.tags(model)
        if revision in BRANCHES or revision in tags:
            return self._read(model, BRANCH if revision in BRANCHES else revision)
        for name in (BRANCH, *tags):
            if (found := self._read(model, name)).commit == revision:
                return found
        raise SiteError(404, f"{model} has no revision {revision}", "RevisionNotFound")

    def _read(self, model: str, revision: str) -> Snapshot:
        directory = self.root / model / revision
        entries = {}
        latest = 0.0
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            status = file.stat()
            key = (str(file), status.st_size, status.st_mtime_ns)
            if key not in self._known:
                self._known[key] = checksums(file)
            path = file.relative_to(directory).as_posix()
            entries[path] = Entry(path, file, status.st_size, *self._known[key])
            latest = max(latest, status.st_mtime)
        text = "".join(f"{entry.sha256} {path}\n" for path, entry in entries.items())
        commit = hashlib.sha1(f"{model}\n{revision}\n{text}".encode()).hexdigest()  # noqa: S324 -- the length of a commit
        return Snapshot(model, commit, latest, entries)


def iso(seconds: float) -> str:
    """A time as the hubs write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def span(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte that a Range header asks for of `size` bytes; None to send all. Raises SiteError 416."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not asked or asked.groups() == ("", ""):
        return None  # several ranges, or another unit: a server may answer with everything
    first, last = asked.groups()
    if not first:
        start, end = max(size - int(last), 0), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
    if start >= size or start > end:
        raise SiteError(416, f"bytes */{size}")
    return start, end


class Site(ThreadingHTTPServer):
    """The server of one root directory; `log` keeps what was asked, newest last."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, address: str = "", port: int = 0, shared: Site | None = None) -> None:
        """Binds at once. With `shared`, models, faults and the log are those of another server (TLS beside plain)."""
        super().__init__((address, port), Handler)
        self.root = root
        self.models = shared.models if shared else Models(root / "hub")
        self.faults = shared.faults if shared else Faults()
        self.log: collections.deque[dict[str, Any]] = shared.log if shared else collections.deque(maxlen=10000)

    def use_tls(self, certificate: Path, key: Path) -> None:
        """Speaks TLS from now on. The handshake is left to each connection's thread."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no error of ours, and neither are those that don't trust the certificate."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection. Routes are tried in order; each gets the named groups of its pattern."""

    server: Site
    protocol_version = "HTTP/1.1"
    server_version = "ascent-sandbox-site"
    timeout = 120

    # -- a request from start to end ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        # A line of the log; `bytes` counts what was sent of a body.
        self.line: dict[str, Any] = {"time": time.time(), "client": self.client_address[0], "method": self.command}
        self.line |= {"path": self.path, "range": self.headers.get("Range"), "status": None, "bytes": 0}
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        if not address.path.startswith("/_site/"):
            self.server.log.append(self.line)
        try:
            self._route(urllib.parse.unquote(address.path))
        except SiteError as error:
            self._error(error)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 -- http.server's names

    def _route(self, path: str) -> None:
        for pattern, method in ROUTES:
            if found := pattern.fullmatch(path):
                method(self, **found.groupdict())
                return
        if self.command not in ("GET", "HEAD"):
            raise SiteError(405, f"{self.command} is not for {path}")
        self._file(path.strip("/"))

    def _error(self, error: SiteError) -> None:
        """Every client's own form of an error, all in one: each reads only its part."""
        headers = {"X-Error-Code": error.code, "X-Error-Message": error.reason} if error.code else {}
        if error.status == 416:
            headers["Content-Range"] = error.reason
        reply = {"error": error.reason, "Code": error.status, "Message": error.reason, "Success": False, "Data": None}
        self._json(reply | {"code": str(error.status), "msg": error.reason}, error.status, headers)

    def _head(self, status: int, length: int, kind: str, headers: dict[str, str]) -> None:
        self.line["status"] = status
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _bytes(self, content: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(content), kind, headers or {})
        if self.command != "HEAD":
            self.line["bytes"] = len(content)
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(value).encode(), "application/json", status, headers)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal: `/_site/requests` has it."""

    # -- content -------------------------------------------------------------------------------------------------------

    def _unavailable(self, subject: str) -> bool:
        """Answers as a service that is down, when a rule says so."""
        if not (rule := self.server.faults.take(subject, "unavailable")):
            return False
        headers = {"Retry-After": str(int(rule.seconds))} if rule.seconds else {}
        self._json({"error": "made to fail", "Code": rule.status, "Success": False}, rule.status, headers)
        return True

    def _content(self, file: Path, subject: str, etag: str, headers: dict[str, str]) -> None:
        """Sends a file or the part that was asked for, spoilt as the rules say."""
        if self._unavailable(subject):
            return
        status = file.stat()
        stored = self.server.faults.take(subject, "truncate") if self.command == "GET" else None
        size = min(status.st_size, stored.bytes) if stored else status.st_size
        modified = email.utils.formatdate(int(status.st_mtime), usegmt=True)
        headers = {"Accept-Ranges": "bytes", "Last-Modified": modified, "ETag": f'"{etag}"', **headers}
        if self.headers.get("If-Modified-Since") == modified and not self.headers.get("Range"):
            self._head(304, 0, "application/octet-stream", headers)
            return
        part = None
        if (asked := self.headers.get("Range")) and self.headers.get("If-Range", f'"{etag}"') in (
            f'"{etag}"',
            modified,
        ):
            part = span(asked, size)
        start, end = part or (0, size - 1)
        if part:
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self._head(206 if part else 200, end + 1 - start, "application/octet-stream", headers)
        if self.command != "HEAD":
            with file.open("rb") as content:
                self._send(content, start, end + 1, subject)

    def _send(self, content: Any, start: int, stop: int, subject: str) -> None:
        take = self.server.faults.take
        changed, ending = take(subject, "checksum"), take(subject, "break")
        slow, stall = take(subject, "slow"), take(subject, "stall")
        # Ten pieces a second at most, so that a slow body comes evenly.
        most = max(1, min(PIECE, slow.rate // 10)) if slow else PIECE
        limit = min(stop, start + ending.bytes) if ending else stop
        content.seek(start)
        position = start
        while position < limit:
            if stall and position - start >= stall.bytes:
                time.sleep(stall.seconds)
                stall = None
            until = min(limit, position + most, start + stall.bytes if stall else limit)
            piece = content.read(until - position)
            if not piece:
                self.close_connection = True  # the file became shorter meanwhile
                return
            if changed and position <= changed.bytes < position + len(piece):
                at = changed.bytes - position
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            # Counted first: who has the whole body may look at the log at once.
            self.line["bytes"] += len(piece)
            self.wfile.write(piece)
            position += len(piece)
            if slow:
                time.sleep(len(piece) / slow.rate)
        if limit < stop:
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _file(self, path: str) -> None:
        """A file as it is, the listing of a directory, or checksums made for it."""
        target = (self.server.root / path).resolve()
        inside = target.is_relative_to(self.server.root.resolve())
        if inside and target.is_file():
            status = target.stat()
            self._content(target, path, f"{status.st_mtime_ns:x}-{status.st_size:x}", {})
        elif inside and target.is_dir():
            self._listing(target, path)
        elif inside and target.name == LISTING and target.parent.is_dir():
            files = sorted(each for each in target.parent.rglob("*") if each.is_file())
            lines = [f"{checksums(each)[0]}  {each.relative_to(target.parent).as_posix()}\n" for each in files]
            self._bytes("".join(lines).encode(), "text/plain")
        else:
            raise SiteError(404, f"there is no {path}")

    def _listing(self, directory: Path, path: str) -> None:
        if path and not urllib.parse.urlsplit(self.path).path.endswith("/"):
            self._head(301, 0, "text/html", {"Location": f"/{urllib.parse.quote(path)}/"})
            return
        names = sorted(each.name + "/" * each.is_dir() for each in directory.iterdir())
        items = [f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a>\n' for name in names]
        title = html.escape(f"/{path}")
        body = f"<h1>{title}</h1><pre>\n{''.join(items)}</pre>"
        page = f"<html><head><title>{title}</title></head><body>{body}</body></html>\n"
        self._bytes(page.encode(), "text/html; charset=utf-8")

    def _model_file(self, snapshot: Snapshot, entry: Entry) -> None:
        headers = {"X-Repo-Commit": snapshot.commit}
        if entry.large:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        self._content(entry.file, f"{snapshot.id}/{entry.path}", entry.etag, headers)

    def _snapshot(self, model: str, revision: str | None) -> Snapshot | None:
        """What a question about a model is about; None when a rule has answered it already."""
        return None if self._unavailable(model) else self.server.models.snapshot(model, revision or BRANCH)

    # -- Hugging Face --------------------------------------------------------------------------------------------------

    def hf_info(self, id: str, revision: str | None = None) -> None:
        """A model and the names of its files; with `blobs`, also sizes and checksums."""
        if not (found := self._snapshot(id, revision)):
            return
        siblings = []
        for entry in found.entries.values():
            sibling: dict[str, Any] = {"rfilename": entry.path}
            if self.query.get("blobs", "").lower() in ("1", "true"):
                sibling |= {"size": entry.size, "blobId": entry.git_id}
                if entry.large:
                    sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": LFS_POINTER_BYTES}
            siblings.append(sibling)
        answer = {"_id": found.commit[:24], "id": id, "modelId": id, "author": id.split("/")[0], "sha": found.commit}
        answer |= {"lastModified": iso(found.time), "createdAt": iso(found.time), "private": False, "gated": False}
        answer |= {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        self._json(answer | {"usedStorage": sum(entry.size for entry in found.entries.values())})

    def hf_refs(self, id: str) -> None:
        """The branch and the tags of a model."""
        if not (found := self._snapshot(id, None)):
            return
        tags = [(tag, self.server.models.snapshot(id, tag).commit) for tag in self.server.models.tags(id)]
        branch = {"name": BRANCH, "ref": f"refs/heads/{BRANCH}", "targetCommit": found.commit}
        listed = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit} for tag, commit in tags]
        self._json({"branches": [branch], "tags": listed, "converts": []})

    @staticmethod
    def _hf_row(entry: Entry) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "oid": entry.git_id, "size": entry.size, "path": entry.path}
        if entry.large:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": LFS_POINTER_BYTES}
        return row

    def hf_tree(self, id: str, revision: str, folder: str | None = None) -> None:
        """The files and folders of a folder."""
        if found := self._snapshot(id, revision):
            folders, entries = found.below(folder or "", self.query.get("recursive", "").lower() in ("1", "true"))
            rows = [{"type": "directory", "oid": found.commit, "size": 0, "path": each} for each in folders]
            self._json(rows + [self._hf_row(entry) for entry in entries])

    def hf_paths(self, id: str, revision: str) -> None:
        """The files among the paths of the body; those that don't exist are left out."""
        if found := self._snapshot(id, revision):
            try:
                asked = json.loads(self.body)["paths"]
            except (ValueError, KeyError, TypeError):
                asked = urllib.parse.parse_qs(self.body.decode(errors="replace")).get("paths", [])
            wanted = [asked] if isinstance(asked, str) else asked
            self._json([self._hf_row(entry) for entry in found.entries.values() if entry.path in wanted])

    def hf_file(self, id: str, revision: str, path: str) -> None:
        """A file, by way of the store of large files where it is one of them."""
        if not (found := self._snapshot(id, revision)):
            return
        entry = found.entry(path)
        if not entry.large:
            self._model_file(found, entry)
            return
        location = f"/lfs/{id}/{found.commit}/{urllib.parse.quote(path)}"
        linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        self._head(302, 0, "text/plain", {"Location": location, "X-Repo-Commit": found.commit, **linked})

    def large_file(self, id: str, revision: str, path: str) -> None:
        """A file in the store of large files."""
        found = self.server.models.snapshot(id, revision)
        self._model_file(found, found.entry(path))

    # -- ModelScope ----------------------------------------------------------------------------------------------------

    def _ms(self, data: Any) -> None:
        self._json({"Code": 200, "Data": data, "Message": "success", "RequestId": "", "Success": True})

    def ms_info(self, id: str) -> None:
        """A model."""
        if found := self._snapshot(id, None):
            owner, name = id.split("/")
            answer = {
                "Id": int(found.commit[:8], 16),
                "Name": name,
                "Path": owner,
                "Revision": "master",
                "Visibility": 5,
            }
            answer |= {"CreatedTime": int(found.time), "LastUpdatedTime": int(found.time), "Downloads": 0, "Stars": 0}
            self._ms(answer | {"StorageSize": sum(entry.size for entry in found.entries.values())})

    def ms_revisions(self, id: str) -> None:
        """The branch and the tags of a model."""
        if found := self._snapshot(id, None):
            branch = {"Revision": "master", "CreatedAt": int(found.time)}
            tags = [{"Revision": tag, "CreatedAt": int(found.time)} for tag in self.server.models.tags(id)]
            self._ms({"RevisionMap": {"Branches": [branch], "Tags": tags}})

    def ms_files(self, id: str) -> None:
        """The files and folders of a folder, each with its checksum."""
        if found := self._snapshot(id, self.query.get("Revision")):
            recursive = self.query.get("Recursive", "").lower() == "true"
            folders, entries = found.below(self.query.get("Root", ""), recursive)
            common = {
                "CommitId": found.commit,
                "CommittedDate": int(found.time),
                "CommitMessage": "weights",
                "Mode": "33188",
            }
            rows = [
                {**common, "Name": each.rpartition("/")[2], "Path": each, "Type": "tree", "Size": 0, "Sha256": ""}
                for each in folders
            ]
            rows += [
                {
                    **common,
                    "Name": entry.path.rpartition("/")[2],
                    "Path": entry.path,
                    "Type": "blob",
                    "Size": entry.size,
                    "Sha256": entry.sha256,
                    "IsLFS": entry.large,
                    "Revision": found.commit,
                }
                for entry in entries
            ]
            self._ms({"Files": rows, "LatestCommitter": None})

    def ms_file(self, id: str) -> None:
        """A file."""
        found = self.server.models.snapshot(id, self.query.get("Revision") or BRANCH)
        self._model_file(found, found.entry(self.query.get("FilePath", "")))

    def ms_acceleration(self) -> None:
        """Where to ask for a faster way: nowhere."""
        self._ms({"InternalRegionQueryAddress": ""})

    # -- modelers.cn ---------------------------------------------------------------------------------------------------

    def _om(self, data: Any) -> None:
        self._json({"code": "", "msg": "", "data": data})

    @staticmethod
    def _om_row(found: Snapshot, entry: Entry) -> dict[str, Any]:
        row = {"name": entry.path.rpartition("/")[2], "path": entry.path, "type": "file", "size": entry.size}
        commit = {"commit_sha": found.commit, "message": "weights", "created": iso(found.time)}
        return row | {"etag": entry.etag, "is_lfs": entry.large, "commit": commit}

    def om_info(self, id: str) -> None:
        """A model."""
        if found := self._snapshot(id, self.query.get("ref")):
            owner, name = id.split("/")
            answer = {"id": found.commit[:8], "name": name, "owner": owner, "fullname": name, "visibility": "public"}
            self._om(answer | {"created_at": int(found.time), "updated_at": int(found.time), "download_count": 0})

    def om_tree(self, id: str) -> None:
        """The files and folders of a folder."""
        if found := self._snapshot(id, self.query.get("ref")):
            folders, entries = found.below(self.query.get("path", ""), recursive=False)
            rows = [{"name": each.rpartition("/")[2], "path": each, "type": "dir", "size": 0} for each in folders]
            commit = {"commit_sha": found.commit, "message": "weights", "created": iso(found.time)}
            self._om(
                {"tree": rows + [self._om_row(found, entry) for entry in entries], "last_commit": {"commit": commit}}
            )

    def om_file_info(self, id: str) -> None:
        """What is known of a file."""
        if found := self._snapshot(id, self.query.get("ref")):
            entry = found.entry(self.query.get("path", ""))
            self._om(self._om_row(found, entry) | {"branch_last_commit": found.commit})

    def om_file(self, id: str, revision: str, path: str) -> None:
        """A file."""
        found = self.server.models.snapshot(id, revision)
        self._model_file(found, found.entry(path))

    # -- the site itself -----------------------------------------------------------------------------------------------

    def faults(self) -> None:
        """GET shows the rules, PUT replaces them, DELETE removes them."""
        if self.command == "PUT":
            try:
                self.server.faults.set(json.loads(self.body))
            except (ValueError, TypeError) as error:
                raise SiteError(400, str(error)) from error
        elif self.command == "DELETE":
            self.server.faults.set([])
        elif self.command not in ("GET", "HEAD"):
            raise SiteError(405, "use GET, PUT or DELETE")
        self._json(self.server.faults.rules())

    def requests(self) -> None:
        """GET shows what was asked, oldest first; DELETE forgets it."""
        if self.command == "DELETE":
            self.server.log.clear()
        self._json(list(self.server.log))

    def models(self) -> None:
        """The models there are, as Hugging Face lists them."""
        self._json([{"id": model, "modelId": model, "private": False} for model in self.server.models.ids()])


ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    (re.compile(pattern), method)
    for pattern, method in (
        (r"/_site/faults", Handler.faults),
        (r"/_site/requests", Handler.requests),
        (rf"/api/v1/models/{IDENTIFIER}", Handler.ms_info),
        (rf"/api/v1/models/{IDENTIFIER}/revisions", Handler.ms_revisions),
        (rf"/api/v1/models/{IDENTIFIER}/repo/files", Handler.ms_files),
        (rf"/api/v1/models/{IDENTIFIER}/repo", Handler.ms_file),
        (r"/api/v1/repos/internalAccelerationInfo", Handler.ms_acceleration),
        (rf"/api/v1/model/{IDENTIFIER}", Handler.om_info),
        (rf"/api/v1/file/{IDENTIFIER}/info", Handler.om_file_info),
        (rf"/api/v1/file/{IDENTIFIER}/(?P<revision>[^/]+)/media/(?P<path>.+)", Handler.om_file),
        (rf"/api/v1/file/{IDENTIFIER}", Handler.om_tree),
        (r"/api/models/?", Handler.models),
        (rf"/api/models/{IDENTIFIER}(?:/revision/(?P<revision>[^/]+))?", Handler.hf_info),
        (rf"/api/models/{IDENTIFIER}/refs", Handler.hf_refs),
        (rf"/api/models/{IDENTIFIER}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.hf_tree),
        (rf"/api/models/{IDENTIFIER}/paths-info/(?P<revision>[^/]+)", Handler.hf_paths),
        (rf"/lfs/{IDENTIFIER}/(?P<revision>[^/]+)/(?P<path>.+)", Handler.large_file),
        (rf"/{IDENTIFIER}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.hf_file),
    )
]


def make_certificate(directory: Path, addresses: list[str]) -> tuple[Path, Path]:
    """A certificate that vouches for itself and its key, made where there is none. Needs openssl."""
    certificate, key = directory / "site.pem", directory / "site.key"
    if not (certificate.exists() and key.exists()):
        directory.mkdir(parents=True, exist_ok=True)
        names = [f"IP:{address}" for address in addresses] + [f"DNS:{name}" for name in NAMES]
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
        command += ["-days", "3650", "-subj", "/CN=sandbox site", "-keyout", str(key), "-out", str(certificate)]
        command += ["-addext", f"subjectAltName={','.join(names)}"]
        # It is its own authority, and strict clients look at what an authority may do.
        command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
        subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--tls-port", type=int, help="also over TLS; the certificate is published as /site.pem")
    parser.add_argument(
        "--tls-directory", type=Path, default=Path("/var/lib/site"), help="where the certificate is kept"
    )
    arguments = parser.parse_args()
    site = Site(arguments.root, port=arguments.port)
    if arguments.tls_port:
        addresses = sorted({entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)})
        certificate, key = make_certificate(arguments.tls_directory, [*addresses, "127.0.0.1"])
        shutil.copy(certificate, arguments.root / "site.pem")
        secure = Site(arguments.root, port=arguments.tls_port, shared=site)
        secure.use_tls(certificate, key)
        threading.Thread(target=secure.serve_forever, daemon=True).start()
    site.serve_forever()


if __name__ == "__main__":
    main()
