"""Whether a service answers while it is being changed: small questions, one after the other, and the gaps between."""

from __future__ import annotations

__all__ = ["ask", "run", "summarize"]

import json
import os
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from .client import ClientError, request

# Errors told apart in a summary.
_KINDS = 5


def ask(targets: Sequence[Mapping[str, str]], timeout: float) -> Optional[str]:
    """None when one of the ``targets`` (``{"url", "model"}``) answers with a token, else why the last one does not."""
    error: Optional[str] = "nobody was asked"
    for target in targets:
        body = {"model": target["model"], "prompt": "Count from 1 to 9:", "max_tokens": 1, "temperature": 0}
        try:
            answer = request("POST", f"{target['url'].rstrip('/')}/v1/completions", body, timeout=timeout)
            if answer.status != 200:
                error = f"HTTP {answer.status}"
                continue
            data = answer.json()
            tokens = (data.get("usage") or {}).get("completion_tokens")
            if data["choices"] and (tokens or data["choices"][0].get("text")):
                return None
            error = "HTTP 200 without an answer"
        except ClientError as wrong:
            error = "HTTP 200 without an answer" if wrong.status == 200 else str(wrong).partition(": ")[2]
        except (AttributeError, KeyError, TypeError):
            error = "HTTP 200 without an answer"
    return error


def run(
    path: str,
    targets: Sequence[Mapping[str, str]],
    *,
    interval: float,
    timeout: float,
    most: float,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Ask every ``interval`` seconds, and write each answer's ``[start, end, error]`` as a line of JSON into ``path``.

    Ends when the file ``path``.stop appears, or after ``most`` seconds.
    """
    stop, began = f"{path}.stop", now()
    with open(path, "w", encoding="utf-8") as stream:
        while not os.path.exists(stop) and now() - began < most:
            start = now()
            error = ask(targets, timeout)
            stream.write(json.dumps([start, now(), error]) + "\n")
            stream.flush()
            pause(max(0.0, interval - (now() - start)))


def summarize(samples: Sequence[Sequence[Any]]) -> Dict[str, Any]:
    """What clients saw, from ``[start, end, error]`` of each question in order.

    ``{"asked", "failed", "outages": [{"start", "seconds", "over"}], "seconds", "errors", "slowest_ms"}``: an outage
    lasts from the first question that failed to the next one that was answered; ``over`` is false for one that still
    lasts. ``seconds`` is the sum, ``errors`` how often each of the commonest occurred.
    """
    outages: List[Dict[str, Any]] = []
    errors: Dict[str, int] = {}
    since: Optional[float] = None
    slowest = 0.0
    for start, end, error in samples:
        if error is None:
            slowest = max(slowest, end - start)
            if since is not None:
                outages.append({"start": since, "seconds": round(start - since, 2), "over": True})
                since = None
            continue
        errors[error] = errors.get(error, 0) + 1
        since = start if since is None else since
    if since is not None:
        outages.append({"start": since, "seconds": round(samples[-1][1] - since, 2), "over": False})
    return {
        "asked": len(samples),
        "failed": sum(errors.values()),
        "outages": outages,
        "seconds": round(sum(one["seconds"] for one in outages), 2),
        "errors": dict(sorted(errors.items(), key=lambda item: -item[1])[:_KINDS]),
        "slowest_ms": round(slowest * 1000, 1),
    }
