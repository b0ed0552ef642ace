"""The container engine over its own socket, with the standard library alone: what images need of it.

Paths carry no version, so every engine answers in its own; the calls used here are as old as Docker 1.12.
"""

from __future__ import annotations

__all__ = ["SOCKET", "Engine", "EngineError"]

import base64
import contextlib
import http.client
import json
import socket
import urllib.parse
from typing import Any, Dict, Iterator, Mapping, Optional

from .errors import AscentError

#: Where the engine listens.
SOCKET = "/var/run/docker.sock"


class EngineError(AscentError):
    """The engine refused, or was not there (``code`` 0)."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket of the file system."""

    def __init__(self, path: str, timeout: Optional[float]) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """Calls of the engine behind ``path``. Each raises EngineError with the engine's own words."""

    def __init__(self, path: str = SOCKET, timeout: float = 60) -> None:
        self.path = path
        self.timeout = timeout

    def information(self) -> Dict[str, Any]:
        """What ``docker info`` shows: registry settings, proxies, data directory."""
        return dict(self._value("GET", "/info"))

    def image(self, name: str) -> Optional[Dict[str, Any]]:
        """An image by any of its names; None where there is none."""
        try:
            return dict(self._value("GET", f"/images/{urllib.parse.quote(name)}/json"))
        except EngineError as error:
            if error.code == 404:
                return None
            raise

    def tag(self, name: str, repository: str, tag: str) -> None:
        """Give an image another name."""
        query = urllib.parse.urlencode({"repo": repository, "tag": tag})
        self._value("POST", f"/images/{urllib.parse.quote(name)}/tag?{query}")

    def pull(self, repository: str, digest: str, login: Optional[Mapping[str, str]] = None) -> Iterator[Dict[str, Any]]:
        """Pull by digest; yields what the engine tells meanwhile. There is no time limit while it tells anything."""
        query = urllib.parse.urlencode({"fromImage": repository, "tag": digest})
        headers = {}
        if login:
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(dict(login)).encode()).decode()
        # Extracting one large layer takes minutes, in which the engine may say nothing.
        connection, answer = self._answer("POST", f"/images/create?{query}", headers, 1800)
        try:
            for line in answer:
                if line.strip():
                    told = json.loads(line)
                    if "error" in told:
                        raise EngineError(str(told["error"]), 500)
                    yield told
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(f"the container engine broke off: {error}") from None
        finally:
            connection.close()

    def _value(self, method: str, path: str) -> Any:
        connection, answer = self._answer(method, path, {}, self.timeout)
        try:
            content = answer.read()
            return json.loads(content) if content.strip() else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(f"the container engine broke off: {error}") from None
        finally:
            connection.close()

    def _answer(self, method: str, path: str, headers: Mapping[str, str], timeout: float) -> Any:
        connection = _Connection(self.path, timeout)
        try:
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            if answer.status < 300:
                return connection, answer
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise EngineError(f"no container engine answers on {self.path}: {error}") from None
        connection.close()
        with contextlib.suppress(KeyError, TypeError, ValueError):
            text = str(json.loads(text)["message"])
        raise EngineError(text.strip() or f"the container engine answered {answer.status}", answer.status)
