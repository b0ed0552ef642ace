"""Hands images from host to host: on each host of a cluster, a registry that passes on what the host above it gives.

The container engine of the host pulls from it over the loopback interface, by digest, and the hosts below over the
network. What is asked for is fetched once, from the registry or the hosts above, and goes on to all who wait for it
while it still comes. So only what some engine lacks moves at all, and it leaves the registry once.

It is read-only, knows no tags, and serves only the images and only the hosts that its configuration names::

    {"store": "/var/lib/ascent/images", "idle_s": 600, "port": 28950, "address": "192.0.2.11",
     "allow": ["192.0.2.12"],                        hosts below this one; empty: the loopback interface only
     "engine": "127.0.0.1",                          where the engine asks; may be left out
     "images": {"quay.io/ascend/vllm-ascend":        the name behind the loopback address
                  {"upstreams": ["192.0.2.10"],      hosts above this one, nearest first
                   "registry": {"host", "repository", "settings", "proxies", "config"} | null}}}

A blob's last byte is kept back until all of it is there and has its digest: nobody ever gets a whole wrong blob.
Runs as a service of its own, ``python3 -m ascent.image_server CONFIGURATION``, until it is stopped or nobody has asked
for anything for ``idle_s`` seconds; then its store goes, too.
"""

from __future__ import annotations

__all__ = ["Flight", "Server"]

import collections
import contextlib
import errno
import functools
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from . import registry
from .errors import AscentError
from .image_store import DigestError, Store

_PATH = re.compile(r"/v2/(?P<name>[a-z0-9._/-]+)/(?P<kind>manifests|blobs)/(?P<digest>sha256:[0-9a-f]{64})\Z")
_CHUNK = 1 << 20

#: From where the engine asks; it takes a registry there to need no TLS.
LOOPBACK = "127.0.0.1"

#: Seconds for which a host above that refuses connections is taken to be starting still.
PATIENCE = 30.0


class Upstream:
    """One place that may have an image: its name for people, and how an answer from byte ``start`` on is got there."""

    def __init__(self, name: str, ask: Callable[[str, int], Any]) -> None:
        self.name = name
        self.ask = ask


class Flight:
    """One blob on its way: a thread writes it, any number of readers follow. ``size`` is None until it is known."""

    def __init__(self) -> None:
        self.size: Optional[int] = None
        self.came = 0
        self.done = False
        self.error: Optional[str] = None
        self.changed = threading.Condition()

    def tell(self, **values: Any) -> None:
        """Change what readers see, and wake them."""
        with self.changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.changed.notify_all()

    def wait(self, position: int) -> int:
        """How many bytes may be read, once there are more than ``position``, or it has ended. -1: no size is known."""
        with self.changed:
            while not self.done and self.error is None and (self.size is None or self._open() <= position):
                self.changed.wait()
            return self._open()

    def _open(self) -> int:
        if self.size is None:
            return -1
        return self.size if self.done else min(self.came, self.size - 1)


class Server:
    """The service: its configuration, the blobs on their way, and what was counted."""

    def __init__(self, configuration: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.configuration = configuration
        self.store = Store(configuration["store"])
        self.clock = clock
        self.last = clock()
        self.started = clock()
        self.active = 0
        self.received: Dict[str, int] = collections.Counter()
        self.sent: Dict[str, int] = collections.Counter()
        self.errors: List[str] = []
        #: Places not to ask again: for one digest, whose content was wrong there, or at all ("").
        self.shunned: Set[Tuple[str, str]] = set()
        self._flights: Dict[str, Flight] = {}
        self._clients: Dict[str, registry.Client] = {}
        self._lock = threading.Lock()

    def status(self) -> Dict[str, Any]:
        """Bytes by where they came from and who got them, and what went wrong."""
        with self._lock:
            return {"received": dict(self.received), "sent": dict(self.sent), "errors": list(self.errors)}

    def count(self, book: str, name: str, number: int) -> None:
        """Add to a counter."""
        with self._lock:
            getattr(self, book)[name] += number

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Mark a request as served, so that the service does not count as idle."""
        with self._lock:
            self.active += 1
        try:
            yield
        finally:
            with self._lock:
                self.active -= 1
                self.last = self.clock()

    def idle(self) -> bool:
        """Whether nobody has asked for anything for long."""
        with self._lock:
            return not self.active and self.clock() - self.last > float(self.configuration["idle_s"])

    def allowed(self, address: str) -> bool:
        """Whether somebody may ask: this host's engine, or a host below."""
        return address == LOOPBACK or address in self.configuration["allow"]

    def flight(self, name: str, kind: str, digest: str) -> Flight:
        """The blob's way here, started where nobody did yet."""
        with self._lock:
            known = self._flights.get(digest)
            if known is not None:
                return known
            flight = self._flights[digest] = Flight()
        if self.store.has(digest):
            self._arrived(digest, flight)
        else:
            threading.Thread(target=self._fetch, args=(name, kind, digest, flight), daemon=True).start()
        return flight

    def _arrived(self, digest: str, flight: Flight) -> None:
        size = os.path.getsize(self.store.path(digest))
        flight.tell(size=size, came=size, done=True)
        with self._lock:
            self._flights.pop(digest, None)

    def _fetch(self, name: str, kind: str, digest: str, flight: Flight) -> None:
        problems = []
        for upstream in self._upstreams(name, kind):
            if (upstream.name, digest) in self.shunned:
                problems.append(f"{upstream.name}: its content for {digest} was wrong")
                continue
            try:
                problem = self._from(upstream, digest, flight)
            except DigestError as error:
                # Those who read along have wrong bytes: they have to ask again, and this place is passed over then.
                self.shunned.add((upstream.name, digest))
                problems.append(f"{upstream.name}: {error}")
                break
            if problem is None:
                self._arrived(digest, flight)
                return
            problems.append(problem)
        told = "; ".join(problems) or f"{digest} is not in {self.store.directory}"
        if self.configuration["images"][name]["upstreams"]:
            told = f"no host of the cluster gives the image: {told}"
        with self._lock:
            if told not in self.errors:
                self.errors.append(told)
            # The next who asks starts anew.
            self._flights.pop(digest, None)
        flight.tell(error=told)

    def _from(self, upstream: Upstream, digest: str, flight: Flight) -> Optional[str]:
        """Fetch from one place; what went wrong there, or None."""

        def opened(start: int) -> Any:
            answer = upstream.ask(digest, start)
            length = answer.headers.get("Content-Length")
            if length is None:
                raise ConnectionError("the answer does not tell its length")
            first = start if answer.status == 206 else 0
            flight.tell(size=int(length) + first, came=first)
            return answer

        def came(number: int) -> None:
            self.count("received", upstream.name, number - flight.came)
            flight.tell(came=number)

        try:
            self.store.receive(digest, opened, came)
        except DigestError:
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return f"{self.store.directory}: No space left on device"
            return f"{upstream.name}: {error}"
        except (AscentError, http.client.HTTPException) as error:
            return f"{upstream.name}: {error}"
        return None

    def _upstreams(self, name: str, kind: str) -> Iterator[Upstream]:
        image = self.configuration["images"][name]
        for address in image["upstreams"]:
            if (address, "") in self.shunned:
                continue
            yield Upstream(address, functools.partial(self._peer, address, f"/v2/{name}/{kind}/"))
        source = image.get("registry")
        if source:
            client = self._client(source)
            ask = client.blob if kind == "blobs" else client.open_manifest
            yield Upstream(source["host"], functools.partial(ask, source["repository"]))

    def _client(self, source: Mapping[str, Any]) -> registry.Client:
        with self._lock:
            if source["host"] not in self._clients:
                self._clients[source["host"]] = client_of(source)
            return self._clients[source["host"]]

    def _peer(self, address: str, below: str, digest: str, start: int) -> Any:
        path = f"{below}{digest}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        connection = self._connect(address)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status not in (200, 206):
            told = answer.read(4096).decode(errors="replace").strip()
            connection.close()
            raise ConnectionError(f"{answer.status} {told}")
        return answer

    def _connect(self, address: str) -> http.client.HTTPConnection:
        """A connection to a host above. One that does not answer at all is not waited for a second time."""
        while True:
            connection = http.client.HTTPConnection(
                address, self.configuration["port"], timeout=10, source_address=(self.configuration["address"], 0)
            )
            try:
                connection.connect()
                # An answer begins only when the host above has one itself.
                connection.sock.settimeout(120)
                return connection
            except OSError as error:
                connection.close()
                if isinstance(error, ConnectionRefusedError) and self.clock() - self.started < PATIENCE:
                    time.sleep(0.5)
                    continue
                self.shunned.add((address, ""))
                raise


def login_of(source: Mapping[str, Any]) -> Optional[Tuple[str, str]]:
    """User and password for a registry; ``config`` is the path of Docker's file of logins."""
    if not source.get("config") or not os.path.exists(source["config"]):
        return None
    with open(source["config"], encoding="utf-8") as stream:
        return registry.credentials(source["host"], json.load(stream))


def client_of(source: Mapping[str, Any]) -> registry.Client:
    """A client for a registry as configurations describe one."""
    return registry.Client(
        source["host"],
        settings=source.get("settings") or {},
        login=login_of(source),
        proxies=source.get("proxies") or {},
    )


def handler_of(server: Server) -> type:
    """The class that answers requests for a server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are counted, not logged."""

        def do_HEAD(self) -> None:
            self._serve(body=False)

        def do_GET(self) -> None:
            self._serve(body=True)

        def _serve(self, body: bool) -> None:
            address = self.client_address[0]
            if not server.allowed(address):
                self._say(403, {"errors": [{"code": "DENIED", "message": f"{address} is no host below this one"}]})
                return
            with server.busy():
                local = address == LOOPBACK
                if self.path in ("/v2", "/v2/"):
                    self._say(200, {})
                elif self.path == "/status" and local:
                    self._say(200, server.status())
                else:
                    self._content("engine" if local else address, body)

        def _content(self, who: str, body: bool) -> None:
            asked = _PATH.match(self.path)
            if not asked or asked.group("name") not in server.configuration["images"]:
                self._say(404, {"errors": [{"code": "NAME_UNKNOWN", "message": f"{self.path} is not served here"}]})
                return
            digest = asked.group("digest")
            flight = server.flight(asked.group("name"), asked.group("kind"), digest)
            flight.wait(-1)
            if flight.size is None:
                self._say(502, {"errors": [{"code": "UNKNOWN", "message": flight.error}]})
                return
            if asked.group("kind") == "manifests":
                # An engine takes a manifest whole, with its type, which stands in itself.
                flight.wait(flight.size - 1)
                if not flight.done:
                    self._say(502, {"errors": [{"code": "UNKNOWN", "message": flight.error}]})
                    return
                content = server.store.read(digest)
                kind = registry.media_type(json.loads(content))
                self._head(200, len(content), kind, digest)
                if body:
                    self.wfile.write(content)
                return
            start = self._start(flight.size)
            self._head(
                206 if start else 200, flight.size - start, "application/octet-stream", digest, start, flight.size
            )
            if body:
                self._blob(who, digest, flight, start)

        def _start(self, size: int) -> int:
            found = re.match(r"bytes=(\d+)-\Z", self.headers.get("Range", ""))
            start = int(found.group(1)) if found else 0
            return start if start < size else 0

        def _blob(self, who: str, digest: str, flight: Flight, position: int) -> None:
            assert flight.size is not None
            path = server.store.path(digest) if flight.done else server.store.partial(digest)
            try:
                stream = open(path, "rb")  # noqa: SIM115 -- closed below; it may have got its final name meanwhile
            except FileNotFoundError:
                stream = open(server.store.path(digest), "rb")  # noqa: SIM115
            with stream:
                while position < flight.size:
                    limit = flight.wait(position)
                    if limit <= position:
                        # It ended too early: so does this answer, and whoever asked sees it.
                        self.close_connection = True
                        return
                    count = self.connection.sendfile(stream, position, min(limit - position, 16 * _CHUNK))
                    if not count:
                        self.close_connection = True
                        return
                    server.count("sent", who, count)
                    position += count

        def _head(self, code: int, length: int, kind: str, digest: str, start: int = 0, size: int = 0) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.send_header("Docker-Content-Digest", digest)
            self.send_header("Docker-Distribution-API-Version", "registry/2.0")
            self.send_header("Accept-Ranges", "bytes")
            if code == 206:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()

        def _say(self, code: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self._head(code, len(content), "application/json", "")
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


class _Listener(http.server.ThreadingHTTPServer):
    """A socket of the service. An address of version 6 has colons."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: Tuple[str, int], handler: type) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone; that is no error of ours."""


def listeners(server: Server) -> List[_Listener]:
    """The loopback interface for the engine, and the host's own address where there are hosts below."""
    configuration = server.configuration
    addresses = [configuration.get("engine", LOOPBACK), *([configuration["address"]] if configuration["allow"] else [])]
    handler = handler_of(server)
    return [_Listener((address, configuration["port"]), handler) for address in addresses]


def main(path: str) -> None:
    """Serve until nobody asks any more."""
    with open(path, encoding="utf-8") as stream:
        server = Server(json.load(stream))
    for listener in listeners(server):
        threading.Thread(target=listener.serve_forever, daemon=True).start()
    while not server.idle():
        time.sleep(min(5.0, float(server.configuration["idle_s"])))
    shutil.rmtree(server.store.directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
