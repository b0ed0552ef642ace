"""Clients of guarded servers: certificates are verified, keys are shown to their servers, and what is open is found."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ascent import access_check, client, endpoint, follower, functional, serving
from ascent_controller import certificates

KEY = "client-one-4f2a9c7be1d0"
DAY = 86400


class Server(ThreadingHTTPServer):
    """An API behind TLS that asks for a key, unless it is told not to."""

    guarded = True
    asked: list[str | None]

    def handle_error(self, *_: Any) -> None:
        """A client that turns away is no error here."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.headers.get("Authorization"))
        refused = server.guarded and self.path.startswith("/v1") and server.asked[-1] != f"Bearer {KEY}"
        body = b'{"error":"Unauthorized"}' if refused else b'{"data": [{"id": "m"}]}'
        self.send_response(401 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


Serve = Callable[..., tuple[Server, str, dict[str, str]]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server with a certificate for ``names`` that was made ``ago`` seconds before now."""
    servers: list[Server] = []

    def start(*names: str, ago: float = 0) -> tuple[Server, str, dict[str, str]]:
        place = tmp_path / str(len(servers))
        certificates.ensure(place, "c", names, time.time() - ago)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place / "tls.crt", place / "tls.key")
        server = Server(("127.0.0.1", 0), Handler)
        server.asked = []
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"https://127.0.0.1:{server.server_port}", {"ca": (place / "ca.pem").read_text()}

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    client.use()


def test_the_authority_that_is_told_is_trusted_and_no_other(serve: Serve) -> None:
    _, url, tls = serve("127.0.0.1")
    client.use(tls=tls)
    assert client.request("GET", f"{url}/health").status == 200
    client.use()
    with pytest.raises(client.ClientError, match="certificate is not accepted"):
        client.request("GET", f"{url}/health")


def test_the_certificate_is_for_the_name_that_is_told(serve: Serve) -> None:
    _, url, tls = serve("llm.example.org")
    client.use(tls={**tls, "name": "llm.example.org"})
    assert client.request("GET", f"{url}/health").status == 200
    for name in (None, "other.example.org"):
        client.use(tls={**tls, "name": name})
        with pytest.raises(client.ClientError, match="certificate is not accepted"):
            client.request("GET", f"{url}/health")


def test_each_key_goes_to_its_server_alone(serve: Serve) -> None:
    server, url, tls = serve("127.0.0.1")
    client.use({url: KEY}, tls)
    assert client.request("GET", f"{url}/v1/models").status == 200
    client.use({"https://127.0.0.1:1": KEY}, tls)
    assert client.request("GET", f"{url}/v1/models").status == 401
    assert server.asked == [f"Bearer {KEY}", None]


def test_the_end_of_the_certificate_is_part_of_an_endpoints_health(serve: Serve) -> None:
    _, url, tls = serve("127.0.0.1", ago=(certificates.DAYS - 20) * DAY)
    client.use({url: KEY}, tls)
    (told,) = endpoint.check_all([{"name": "gateway", "host": "n1", "url": f"{url}/health"}])
    assert told["ok"]
    (found,) = access_check.certificates([told], time.time())
    assert (found["id"], found["severity"], found["host"]) == ("certificate-expires", "warning", "n1")
    assert "ends in 19 days" in found["summary"]
    assert access_check.certificates([told], time.time() - 20 * DAY) == []


@pytest.mark.parametrize(
    ("ago", "identity"), [((certificates.DAYS + 1) * DAY, "certificate-expired"), (0, "certificate-refused")]
)
def test_a_certificate_that_clients_do_not_accept_is_told(serve: Serve, ago: float, identity: str) -> None:
    _, url, tls = serve("127.0.0.1" if ago else "192.0.2.1", ago=ago)
    client.use({url: KEY}, tls)
    results = endpoint.check_all([{"name": "gateway", "url": f"{url}/health"}])
    assert [(item["id"], item["severity"]) for item in access_check.certificates(results, time.time())] == [
        (identity, "error")
    ]


def test_a_server_that_answers_without_its_key_is_found(serve: Serve) -> None:
    server, url, tls = serve("127.0.0.1")
    client.use({url: KEY}, tls)
    assert access_check.unguarded({url: KEY}, url, 10) == []
    assert KEY not in str(server.asked)
    server.guarded = False
    (found,) = access_check.unguarded({url: KEY}, url, 10)
    assert (found["id"], found["severity"]) == ("api-key-not-asked", "error")
    assert "without a key" in found["summary"]
    server.shutdown()
    server.server_close()
    assert access_check.unguarded({"http://127.0.0.1:9": KEY}, url, 10) == [], "silence is for other checks to tell"


def test_a_refused_key_is_a_finding_of_its_own(serve: Serve) -> None:
    _, url, tls = serve("127.0.0.1")
    client.use({url: "another-key-of-some-length"}, tls)
    prompts = [{"prompt": "x", "max_tokens": 1}]
    told = functional.check(url, "m", prompts, 10)["findings"]
    assert [item["id"] for item in told] == ["api-key-refused"]
    entry = {"name": "serve-0", "host": "n1", "url": f"{url}/health", "models_url": f"{url}/v1/models"}
    results = endpoint.check_all([entry])
    plan: dict[str, Any] = {"cluster": "c", "hosts": {}, "processes": [], "instances": []}
    (found,) = serving.judge(plan, {}, results)
    assert (found["id"], found["host"]) == ("api-key-refused", "n1")
    assert "another-key" not in str(found)


def test_the_follower_verifies_as_the_client_does(serve: Serve) -> None:
    _, url, tls = serve("llm.example.org")

    def asked(**settings: Any) -> dict[str, Any]:
        opener = follower.urllib.request.build_opener(follower._Https(settings))
        return follower._ask(opener, f"{url}/health")

    assert asked(ca=tls["ca"], name="llm.example.org")["ok"]
    for settings in ({"ca": tls["ca"]}, {"name": "llm.example.org"}, {}):
        told = asked(**settings)
        assert not told["ok"]
        assert "certificate" in told["detail"]
