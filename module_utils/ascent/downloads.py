"""Downloads of large files over HTTP: resumed after a break, compared with their checksum, never half there.

A file grows as ``NAME.part`` and gets its name when size and checksum are right. What a broken connection, a killed
program or a full disk left is continued by Range, even by a later run.
"""

from __future__ import annotations

__all__ = ["PART", "Client", "Digest", "StoppedError", "fetch", "git_id", "local", "sha256_of", "verify"]

import errno
import hashlib
import http.client
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from .errors import AscentError
from .hubs import SourceError

#: Ends the name of a file that is not whole yet.
PART = ".part"
_BLOCK = 1 << 20
# Failures in a row without a byte in between; a pause doubles each time.
_ATTEMPTS = 5
_PAUSE = 0.5
_MAX_PAUSE = 30.0
_MAX_ANSWER = 256 << 20


class StoppedError(AscentError):
    """Asked to stop; what is there stays for the next run."""


def local(error: OSError, path: str) -> SourceError:
    """What this host's own disk said, as the error to raise: ``space`` or ``write``."""
    kind = "space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "write"
    return SourceError(kind, f"{path}: {error.strerror or error}")


class _Writer:
    """A file that grows; errors of the disk are told from those of the connection."""

    def __init__(self, path: str, start: int) -> None:
        self.path = path
        try:
            self.stream = open(path, "r+b" if start else "wb")  # noqa: SIM115 -- closed by __exit__
            self.stream.seek(start)
        except OSError as error:
            raise local(error, path) from None

    def write(self, piece: bytes) -> None:
        """Append."""
        try:
            self.stream.write(piece)
        except OSError as error:
            raise local(error, self.path) from None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.stream.close()
        except OSError as error:
            raise local(error, self.path) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows, and shows secrets to nobody but the server they are meant for: hubs send to storage of others."""

    def redirect_request(self, req: Any, *more: Any) -> Any:
        following = super().redirect_request(req, *more)
        if following is not None:
            before, after = urlsplit(req.full_url), urlsplit(following.full_url)
            if (before.scheme, before.netloc) != (after.scheme, after.netloc):
                for name in ("Authorization", "Cookie"):
                    following.remove_header(name)
            if req.get_method() == "HEAD":
                following.method = "HEAD"
        return following


class Client:
    """Asks one source. ``proxy``: "" as the environment says, "none" for none, else the proxy's address.

    ``pause(seconds)`` waits between attempts and raises `StoppedError` when it is to end.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        proxy: str = "",
        ca_file: str = "",
        timeout: float = 60,
        attempts: int = _ATTEMPTS,
        pause: Callable[[float], Any] = time.sleep,
    ) -> None:
        handlers: List[Any] = [_Redirects()]
        if proxy:
            handlers.append(urllib.request.ProxyHandler({} if proxy == "none" else {"http": proxy, "https": proxy}))
        if ca_file:
            try:
                context = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise SourceError("invalid", f"{ca_file} holds no certificates: {error}") from None
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)
        self.headers = {"Accept-Encoding": "identity", "User-Agent": "ascent", **headers}
        self.timeout = timeout
        self.attempts = attempts
        self.pause = pause

    def open(self, url: str, *, method: str = "GET", start: int = 0) -> Any:
        """The answer to one request, from byte ``start`` on. Raises SourceError, or OSError for a broken connection."""
        request = urllib.request.Request(url, headers=dict(self.headers), method=method)  # noqa: S310 -- checked below
        if request.type not in ("http", "https"):
            raise SourceError("invalid", f"{url} is no http or https address")
        if start:
            request.add_header("Range", f"bytes={start}-")
        return self._opener.open(request, timeout=self.timeout)

    def ask(self, url: str, method: str = "GET") -> Tuple[bytes, Mapping[str, str]]:
        """A whole small answer, asked for again after failures that may pass. Raises SourceError."""

        def once() -> Tuple[bytes, Mapping[str, str]]:
            with self.open(url, method=method) as answer:
                return answer.read(_MAX_ANSWER), {name.lower(): value for name, value in answer.headers.items()}

        answer: Tuple[bytes, Mapping[str, str]] = self.patiently(url, once)
        return answer

    def patiently(self, url: str, once: Callable[[], Any], moved: Callable[[], int] = lambda: 0) -> Any:
        """What ``once`` returns, called again after failures that may pass; ``moved`` grows as long as they help."""
        failures, before = 0, moved()
        while True:
            try:
                return once()
            except (OSError, http.client.HTTPException) as error:  # noqa: PERF203 -- each attempt fails by itself
                if moved() > before:
                    failures, before = 0, moved()
                failures += 1
                later = judged(error, url)
                if failures >= self.attempts or not later.again:
                    raise later.error from None
                self.pause(min(_MAX_PAUSE, later.after or _PAUSE * 2 ** (failures - 1)))


class _Verdict:
    """What a failed request means: the error to raise, whether it may pass, and after how many seconds."""

    def __init__(self, error: SourceError, again: bool, after: float = 0) -> None:
        self.error, self.again, self.after = error, again, after


def judged(error: Exception, url: str) -> _Verdict:
    """What a failed request means."""
    place = re.sub(r"//[^/@]*@", "//", url)
    if isinstance(error, urllib.error.HTTPError):
        code = error.code
        try:
            after = float(error.headers.get("Retry-After") or 0)
        except ValueError:
            after = 0.0
        text = f"{place} answers {code} {error.reason}"
        error.close()
        if code in (401, 403):
            return _Verdict(SourceError("refused", text, "give a token that may read the model: weights_token"), False)
        if code in (404, 410):
            return _Verdict(
                SourceError("refused", text, "look at the model's name, its revision and the source"), False
            )
        if code in (408, 425, 429) or code >= 500:
            return _Verdict(SourceError("unreachable", text), True, after)
        return _Verdict(SourceError("invalid", text), False)
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        fix = "name the certificate of the site's authority on the node: weights_ca_file"
        return _Verdict(SourceError("unreachable", f"{place}: {reason}", fix), False)
    return _Verdict(SourceError("unreachable", f"{place}: {str(reason) or type(reason).__name__}"), True)


class Digest:
    """The checksum of a file's bytes as they come: what is known of ``file`` decides which, SHA-256 by default."""

    def __init__(self, file: Mapping[str, Any]) -> None:
        self.sha256 = hashlib.sha256()
        # Git's own name of a content; nothing is protected by it but what the hub itself names so.
        self.git = None if file.get("sha256") else hashlib.sha1(f"blob {file['size']}\0".encode())  # noqa: S324
        self.count = 0

    def update(self, piece: bytes) -> None:
        """More bytes."""
        self.sha256.update(piece)
        if self.git:
            self.git.update(piece)
        self.count += len(piece)

    def read(self, path: str, check: Callable[[], Any] = lambda: None) -> None:
        """All bytes of a file; ``check`` is called between pieces."""
        with open(path, "rb", buffering=0) as stream:
            while True:
                check()
                piece = stream.read(_BLOCK)
                if not piece:
                    return
                self.update(piece)

    def wrong(self, file: Mapping[str, Any]) -> str:
        """What differs from what is known of ``file``; empty when nothing does."""
        if self.count != file["size"]:
            return f"{self.count} bytes, {file['size']} are right"
        if file.get("sha256"):
            found = self.sha256.hexdigest()
            return "" if found == file["sha256"] else f"SHA-256 {found}, {file['sha256']} is right"
        if file.get("git_id") and self.git:
            found = self.git.hexdigest()
            return "" if found == file["git_id"] else f"git object {found}, {file['git_id']} is right"
        return ""


def verify(path: str, file: Mapping[str, Any], check: Callable[[], Any] = lambda: None) -> Tuple[str, str]:
    """(what is wrong with a file on this host, its SHA-256); the first is empty when it is as it should be."""
    digest = Digest(file)
    try:
        digest.read(path, check)
    except OSError as error:
        return str(error), ""
    return digest.wrong(file), digest.sha256.hexdigest()


def sha256_of(path: str, check: Callable[[], Any] = lambda: None) -> str:
    """The SHA-256 of a file."""
    digest = Digest({"sha256": "any", "size": 0})
    digest.read(path, check)
    return digest.sha256.hexdigest()


def git_id(path: str) -> str:
    """The git object id of a file."""
    digest = Digest({"size": os.path.getsize(path)})
    digest.read(path)
    assert digest.git is not None
    return digest.git.hexdigest()


def fetch(
    client: Client,
    url: str,
    target: str,
    file: Mapping[str, Any],
    told: Callable[[int], Any],
    stop: Optional[threading.Event] = None,
) -> str:
    """Bring one file to ``target`` and return its SHA-256; ``told`` hears of every change of bytes, also backwards.

    A wrong checksum is asked for once more from the start, since a cache on the way may have been the reason.
    Raises SourceError or StoppedError; ``target`` exists only after a success.
    """

    def check() -> None:
        if stop is not None and stop.is_set():
            raise StoppedError("asked to stop")

    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    part = target + PART
    for last in (False, True):
        state: Dict[str, Any] = {"digest": Digest(file)}
        present = os.path.getsize(part) if os.path.exists(part) else 0
        if present > file["size"]:
            os.truncate(part, 0)
        elif present:
            state["digest"].read(part, check)
        _receive(client, url, part, file, state, told, check)
        wrong = state["digest"].wrong(file)
        if not wrong:
            with open(part, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, target)
            return str(state["digest"].sha256.hexdigest())
        os.unlink(part)
        told(-state["digest"].count)
        if last:
            break
    raise SourceError("checksum", f"{file['path']} comes with {wrong}; it was fetched twice")


def _receive(
    client: Client,
    url: str,
    part: str,
    file: Mapping[str, Any],
    state: Dict[str, Any],
    told: Callable[[int], Any],
    check: Callable[[], Any],
) -> None:
    """Append to ``part`` until the file's size is there. ``state["digest"]`` has seen what ``part`` holds."""
    size, name = file["size"], file["path"]

    def once() -> None:
        check()
        start = state["digest"].count
        if start >= size:
            # An empty file needs no question; it has to be there all the same.
            with _Writer(part, start):
                return
        try:
            answer = client.open(url, start=start)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                error.close()
                raise SourceError("short", f"{name} ends after {start} of {size} bytes at the source") from None
            raise
        with answer:
            if start and answer.status != 206:
                # The server doesn't know of parts, or the file is another one: from the start.
                told(-start)
                state["digest"], start = Digest(file), 0
            elif start:
                ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
                if not ranged or int(ranged.group(1)) != start:
                    raise SourceError("invalid", f"{name}: the server sends another part than it was asked for")
            promised = answer.headers.get("Content-Length")
            with _Writer(part, start) as stream:
                while state["digest"].count < size:
                    check()
                    piece = answer.read(min(_BLOCK, size - state["digest"].count))
                    if not piece:
                        break
                    stream.write(piece)
                    state["digest"].update(piece)
                    told(len(piece))
            if state["digest"].count >= size:
                return
            if promised is not None and state["digest"].count - start == int(promised):
                raise SourceError("short", f"{name} ends after {state['digest'].count} of {size} bytes at the source")
            raise OSError(errno.ECONNRESET, f"the connection broke after {state['digest'].count} bytes")

    client.patiently(url, once, moved=lambda: int(state["digest"].count))
