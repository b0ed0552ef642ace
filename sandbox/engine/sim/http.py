"""Answers in the form of the originals' HTTP server: compact JSON without a charset, errors with a detail."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web


def dump(value: Any) -> bytes:
    """JSON as the originals write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(body=dump(value), status=status, content_type="application/json", headers=headers)


def error_headers(error: web.HTTPException) -> dict[str, str]:
    """What a refusal of the HTTP layer says beside its body: the methods that would do."""
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
