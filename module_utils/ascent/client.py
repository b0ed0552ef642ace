"""A small HTTP client for OpenAI-compatible endpoints: plain requests and server-sent events, on the standard library.

It never uses a proxy: the engines are on the cluster's own network, and a proxy variable that catches their addresses
is one of the commonest reasons for a health check that fails (fault D11).
"""

from __future__ import annotations

__all__ = ["OPTIONS", "ClientError", "Response", "certificate_end", "events", "request", "use"]

import http.client
import json
import socket
import ssl
import time
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from .access import key_of
from .errors import AscentError

#: The options by which modules take what `use` takes, for their ``argument_spec``.
OPTIONS = {
    "api_key": {"type": "str", "no_log": True},
    "keys": {"type": "dict", "default": {}, "no_log": True},
    "tls": {"type": "dict", "default": {}},
}

# An answer larger than this is no answer of an engine.
_MAX_BODY = 64 * 1024 * 1024


class _Ways:
    """How this process asks servers: the keys to show, and whom to trust. A module sets it once, before it asks."""

    keys: Mapping[str, str] = {}
    api_key: Optional[str] = None
    ca: Optional[str] = None
    name: Optional[str] = None


def use(
    keys: Optional[Mapping[str, str]] = None,
    tls: Optional[Mapping[str, Any]] = None,
    api_key: Optional[str] = None,
) -> None:
    """Show ``keys`` (by origin, `access.server_keys`) from now on, and verify certificates as ``tls`` says.

    ``api_key``: the one key for all servers, whatever ``keys`` has.
    ``tls``: ``{"ca": certificates in PEM that are trusted, "name": the name to look for}``. Without a ``ca`` the host's
    own store is trusted, without a ``name`` the one in the URL is looked for. Nothing turns the verification off.
    """
    _Ways.keys = dict(keys or {})
    _Ways.api_key = api_key
    _Ways.ca = (tls or {}).get("ca") or None
    _Ways.name = (tls or {}).get("name") or None


class _Verified(http.client.HTTPSConnection):
    """A connection whose server's certificate is verified, under the name that it is known by."""

    def __init__(self, host: str, port: Optional[int], timeout: float) -> None:
        self._trust = ssl.create_default_context(cadata=_Ways.ca)
        super().__init__(host, port, timeout=timeout, context=self._trust)

    def connect(self) -> None:
        """Connect to the address, and have the certificate be for the name."""
        plain = socket.create_connection((self.host, self.port), self.timeout)
        try:
            self.sock = self._trust.wrap_socket(plain, server_hostname=_Ways.name or self.host)
        except BaseException:
            plain.close()
            raise


def certificate_end(url: str, timeout: float = 10) -> float:
    """When the certificate that a server shows ends, in seconds since the epoch. ClientError when it isn't trusted."""
    parts = urlsplit(url)
    connection = _Verified(str(parts.hostname), parts.port, timeout)
    try:
        connection.connect()
        told: Mapping[str, Any] = connection.sock.getpeercert() or {}
        return float(ssl.cert_time_to_seconds(str(told["notAfter"])))
    except OSError as error:
        raise _told(error, url, timeout) from None
    finally:
        connection.close()


class ClientError(AscentError):
    """No usable answer: refused, timed out, cut off, or not HTTP. ``status`` is set when a status line came first."""

    def __init__(self, message: str, status: Optional[int] = None) -> None:
        self.status = status
        super().__init__(message)


class Response:
    """A whole answer: ``status``, ``headers`` (lower-case names), ``text``, ``seconds`` from connecting to the end."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str, seconds: float) -> None:
        self.status = status
        self.headers = dict(headers)
        self.text = text
        self.seconds = seconds

    def json(self) -> Any:
        """The body as JSON; ClientError when it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            raise ClientError(f"expected JSON, got {self.text[:200]!r}", self.status) from None


def _open(
    method: str,
    url: str,
    body: Optional[Mapping[str, Any]],
    timeout: float,
    api_key: Optional[str] = None,
    more: Optional[Mapping[str, str]] = None,
) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ClientError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError(f"{url!r} is not an http or https URL")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = _Verified(parts.hostname, port, timeout)
    else:
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
    key = next((one for one in (api_key, _Ways.api_key, key_of(url, _Ways.keys)) if one is not None), None)
    headers = {"Accept": "application/json, text/event-stream", "Connection": "close", **(more or {})}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, body=data, headers=headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _told(error: Exception, url: str, timeout: float) -> ClientError:
    """An error of the network in the words of an operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ClientError(f"{url}: the certificate is not accepted: {error.verify_message}")
    if isinstance(error, socket.timeout):
        return ClientError(f"{url}: no answer within {timeout:g} s")
    if isinstance(error, ConnectionRefusedError):
        return ClientError(f"{url}: connection refused: nothing listens there")
    text = str(error) or type(error).__name__
    return ClientError(f"{url}: {text}")


def request(
    method: str,
    url: str,
    body: Optional[Mapping[str, Any]] = None,
    *,
    timeout: float = 30,
    api_key: Optional[str] = None,
    headers: Optional[Mapping[str, str]] = None,
) -> Response:
    """One request and its whole answer, whatever its status. ``timeout`` in seconds bounds each wait for bytes.

    ``headers`` are sent besides the client's own. ``api_key`` is shown in place of what `use` was told; "" shows none.

    Raises ClientError when no whole answer came.
    """
    start = time.monotonic()
    try:
        connection, response = _open(method, url, body, timeout, api_key, headers)
        try:
            data = response.read(_MAX_BODY)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise _told(error, url, timeout) from None
    told = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, told, data.decode("utf-8", "replace"), time.monotonic() - start)


def events(
    url: str,
    body: Mapping[str, Any],
    *,
    timeout: float = 30,
    deadline: Optional[float] = None,
) -> Iterator[Tuple[float, Dict[str, Any]]]:
    """The events of a streamed answer as ``(monotonic time of arrival, data)``, ending at ``[DONE]``.

    ``timeout`` bounds each wait for bytes and ``deadline`` (monotonic time) the whole stream; both in seconds. Raises
    ClientError for a status other than 200, for an error event, and for a stream that ends without ``[DONE]``.
    """
    try:
        connection, response = _open("POST", url, body, timeout)
        try:
            if response.status != 200:
                text = response.read(2000).decode("utf-8", "replace")
                raise ClientError(f"{url}: HTTP {response.status}: {text[:500]}", response.status)
            while True:
                line = response.readline()
                now = time.monotonic()
                if deadline is not None and now > deadline:
                    raise ClientError(f"{url}: the answer was not complete in time", response.status)
                if not line:
                    raise ClientError(f"{url}: the stream ended without [DONE]", response.status)
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                try:
                    event = json.loads(data)
                except ValueError:
                    raise ClientError(f"{url}: event that is no JSON: {data[:200]!r}", response.status) from None
                if not isinstance(event, dict) or event.get("error"):
                    raise ClientError(f"{url}: error event: {data[:500].decode('utf-8', 'replace')}", response.status)
                yield now, event
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise _told(error, url, timeout) from None
