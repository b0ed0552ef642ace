"""Whether endpoints answer: one concurrent look at all of them."""

from __future__ import annotations

__all__ = ["check", "check_all"]

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterable, List, Mapping, Optional

from . import metrics
from .client import ClientError, certificate_end, request

_MAX_THREADS = 64


def _origin(headers: Mapping[str, str]) -> str:
    """Who answered, when that was not the engine itself: a proxy names itself in its headers."""
    named = [
        f"{name}: {headers[name]}" for name in ("via", "x-cache", "proxy-agent", "x-squid-error") if name in headers
    ]
    return f" (answered by a proxy: {'; '.join(named)})" if named else ""


def check(endpoint: Mapping[str, Any], timeout: float = 10) -> Dict[str, Any]:
    """Look at one endpoint ``{name, host, url[, models_url][, version_url][, metrics_url]}``.

    Returns ``{name, host, url, ok, status, seconds, error, models, version, counters, certificate_end}``. ``ok`` wants
    status 200 of ``url`` and, if ``models_url`` is given, a list of at least one model there. ``version``, ``counters``
    (those of `metrics.COUNTERS` that the page has, by their short names) and ``certificate_end`` (seconds since the
    epoch) are information only.
    """
    result: Dict[str, Any] = {
        "name": endpoint.get("name"),
        "host": endpoint.get("host"),
        "url": endpoint["url"],
        "ok": False,
        "status": None,
        "seconds": None,
        "error": None,
        "models": None,
        "version": None,
        "counters": None,
        "certificate_end": None,
    }
    try:
        if str(endpoint["url"]).startswith("https:"):
            result["certificate_end"] = certificate_end(endpoint["url"], timeout)
        answer = request("GET", endpoint["url"], timeout=timeout)
        result.update(status=answer.status, seconds=round(answer.seconds, 4))
        if answer.status != 200:
            result["error"] = f"HTTP {answer.status}{_origin(answer.headers)}: {answer.text[:200]}".rstrip(": ")
            return result
        if endpoint.get("models_url"):
            result["models"] = _models(endpoint["models_url"], timeout)
        if endpoint.get("version_url"):
            result["version"] = _version(endpoint["version_url"], timeout)
        if endpoint.get("metrics_url"):
            result["counters"] = _counters(endpoint["metrics_url"], timeout)
        result["ok"] = True
    except ClientError as error:
        result["error"] = str(error)
        # Health needs no key, the list of models does: its refusal is what the endpoint says.
        result["status"] = error.status or result["status"]
    return result


def _models(url: str, timeout: float) -> List[str]:
    answer = request("GET", url, timeout=timeout)
    if answer.status != 200:
        raise ClientError(f"{url}: HTTP {answer.status}{_origin(answer.headers)}", answer.status)
    try:
        names = [str(model["id"]) for model in answer.json()["data"]]
    except (KeyError, TypeError):
        raise ClientError(f"{url}: expected a list of models, got {answer.text[:200]!r}", answer.status) from None
    if not names:
        raise ClientError(f"{url}: serves no model", answer.status)
    return names


def _version(url: str, timeout: float) -> Optional[str]:
    """The version an engine names, None when it has no such page: old engines and routers lack it."""
    try:
        value = request("GET", url, timeout=timeout).json()
    except ClientError:
        return None
    return str(value["version"]) if isinstance(value, dict) and "version" in value else None


def _counters(url: str, timeout: float) -> Optional[Dict[str, int]]:
    """What the engine has counted since its start; None when it has no such page."""
    try:
        answer = request("GET", url, timeout=timeout)
    except ClientError:
        return None
    if answer.status != 200:
        return None
    found = metrics.totals(answer.text, metrics.COUNTERS.values())
    return {short: int(found[name]) for short, name in metrics.COUNTERS.items() if name in found}


def check_all(endpoints: Iterable[Mapping[str, Any]], timeout: float = 10) -> List[Dict[str, Any]]:
    """`check` of all endpoints at once, results in their order."""
    wanted = list(endpoints)
    if not wanted:
        return []
    with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, len(wanted))) as pool:
        return list(pool.map(lambda endpoint: check(endpoint, timeout), wanted))
