"""Answers in the form of the originals' HTTP server: compact JSON without a charset, errors with a detail."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

_STATUSES = frozenset(HTTPStatus)


def dump(value: Any) -> bytes:
    """JSON as the originals write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(body=dump(value), status=status, content_type="application/json", headers=headers)


def access_line(request: web.Request, status: int) -> str:
    """What the originals' server logs of a request: its client's address with the port, and the status in words."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    words = HTTPStatus(status).phrase if status in _STATUSES else ""
    # The client of a request that is over may be gone.
    client = f"{peer[0]}:{peer[1]}" if peer else ""
    return f'{client} - "{request.method} {request.path_qs} HTTP/1.1" {status} {words}'.rstrip()


def error_headers(error: web.HTTPException) -> dict[str, str]:
    """What a refusal of the HTTP layer says beside its body: the methods that would do."""
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
