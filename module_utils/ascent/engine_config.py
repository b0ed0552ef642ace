"""The Docker engine's ``daemon.json`` and service: merge what is wanted into what is there, and take it back.

A site's own settings stay: mappings are merged, lists get what they lack, and a single value is replaced. What we
changed is remembered, so a setting that is no longer wanted returns to what it was; what others changed later stays.

>>> merged, undo = merge({"insecure-registries": ["a"]}, {"insecure-registries": ["b"], "live-restore": True})
>>> merged
{'insecure-registries': ['a', 'b'], 'live-restore': True}
>>> unmerge(merged, undo)
{'insecure-registries': ['a']}
"""

from __future__ import annotations

__all__ = ["RELOADABLE", "invalid", "merge", "parse", "parse_service", "plan", "render", "unmerge", "wanted"]

import copy
import json
from typing import Any, Dict, List, Optional, Tuple

from .errors import ParseError, ToolError
from .findings import finding

#: Settings that dockerd takes over on SIGHUP, without stopping anything (dockerd reference, configuration reload).
RELOADABLE = frozenset(
    {
        "authorization-plugins",
        "debug",
        "default-runtime",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)


def parse(text: Optional[str], source: str) -> Dict[str, Any]:
    """The settings of a daemon.json; none for a missing or empty file. ParseError names the line that is no JSON."""
    if text is None or not text.strip():
        return {}
    try:
        settings = json.loads(text)
    except ValueError as error:
        number = getattr(error, "lineno", None)
        lines = text.splitlines()
        line = lines[number - 1] if number is not None and number <= len(lines) else None
        reason = f"not JSON ({getattr(error, 'msg', error)}); the engine can't start with it, so correct it by hand"
        raise ParseError(source, reason, number, line) from None
    if not isinstance(settings, dict):
        raise ParseError(source, f"wanted an object with settings, found {type(settings).__name__}")
    return settings


def render(settings: Dict[str, Any]) -> str:
    """daemon.json as text, in stable order. JSON has no comments, so the file can't carry our header."""
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def wanted(daemon: Dict[str, Any], mirrors: List[str], insecure: List[str]) -> Dict[str, Any]:
    """The settings to merge. The engine takes log options as text only, so ``max-file: 5`` becomes ``"5"``."""
    settings = copy.deepcopy(daemon)
    for key, values in (("registry-mirrors", mirrors), ("insecure-registries", insecure)):
        if values:
            settings[key] = list(dict.fromkeys([*settings.get(key, []), *values]))
    if isinstance(settings.get("log-opts"), dict):
        settings["log-opts"] = {key: str(value) for key, value in settings["log-opts"].items()}
    return settings


def merge(current: Dict[str, Any], settings: Dict[str, Any]) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """``current`` with ``settings`` merged in, and what `unmerge` needs to take them out again."""
    merged = copy.deepcopy(current)
    undo: List[Dict[str, Any]] = []
    _merge(merged, settings, [], undo)
    return merged, undo


def unmerge(current: Dict[str, Any], undo: List[Dict[str, Any]]) -> Dict[str, Any]:
    """``current`` without our changes. A value that somebody changed after us stays as it is."""
    settings = copy.deepcopy(current)
    for step in reversed(undo):
        place: Any = settings
        for key in step["path"][:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        key = step["path"][-1]
        if not isinstance(place, dict) or key not in place:
            continue
        if "items" in step:
            if isinstance(place[key], list):
                place[key] = [item for item in place[key] if item not in step["items"]]
                if not place[key] and not step["had"]:
                    del place[key]
        elif place[key] == step["to"]:
            if step["had"]:
                place[key] = step["from"]
            else:
                del place[key]
    return settings


def parse_service(text: str) -> Dict[str, str]:
    """``systemctl show`` output as ``{"loaded", "active", "enabled", "since"}``; texts are systemd's own words."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {
        "loaded": values.get("LoadState", "not-found"),
        "active": values.get("ActiveState", "inactive"),
        "enabled": values.get("UnitFileState", "") or "disabled",
        "since": values.get("ActiveEnterTimestampMonotonic", "0"),
    }


def plan(settings: Dict[str, Any], observed: Dict[str, Any], restart_ok: bool = False) -> Dict[str, Any]:
    """What has to happen for the engine to run with ``settings``.

    ``observed``: ``{"text": daemon.json or None, "source": its path, "service": parse_service result, "containers":
    number running, "saved": {"undo", "pending"}}``. Returns ``{"text": new daemon.json, None for none, "write": bool,
    "keys": [changed settings], "steps": [systemctl verbs], "findings", "saved", "restart_required": bool}``.

    A restart that would stop containers is not among the steps unless ``restart_ok``; it stays pending, and is told on
    every run, until the engine has been restarted. Raises ParseError for a daemon.json that is not one.
    """
    current = parse(observed["text"], observed["source"])
    merged, undo = merge(unmerge(current, observed["saved"]["undo"]), settings)
    keys = sorted(key for key in {*current, *merged} if current.get(key) != merged.get(key))
    text = render(merged) if merged or observed["text"] is not None else None
    if not merged and observed["saved"]["undo"]:
        text = None
    service = observed["service"]
    # Started since the setting changed: the engine has read it.
    pending = observed["saved"]["pending"] == service["since"]
    steps: List[str] = []
    findings: List[Dict[str, Any]] = []
    restart_required = False
    if service["enabled"] not in ("enabled", "static", "alias", "indirect"):
        steps.append("enable")
    if service["active"] != "active":
        steps.append("start")
    elif pending or not RELOADABLE.issuperset(keys):
        if observed["containers"] == 0 or restart_ok:
            steps.append("restart")
        else:
            restart_required = True
            steps += ["reload"] if keys else []
            findings.append(_restart_finding(keys, observed))
    elif keys:
        steps.append("reload")
    return {
        "text": text,
        "write": bool(keys),
        "keys": keys,
        "steps": steps,
        "findings": findings,
        "restart_required": restart_required,
        "saved": {"schema": 1, "undo": undo, "pending": service["since"] if restart_required else ""},
    }


def invalid(error: Exception, path: str) -> Optional[Dict[str, Any]]:
    """B17 when an error says that the engine can't start with its daemon.json; None for any other."""
    put_back = isinstance(error, ToolError) and f"{path} was put back" in str(error)
    if not put_back and not isinstance(error, ParseError):
        return None
    return finding(
        "B17",
        "error",
        f"the container engine can't start with {'these settings' if put_back else path}",
        stage="provision",
        evidence=str(error),
        cause="a setting of the role that this engine does not know" if put_back else "the file on the host is no JSON",
        fix="correct the variables container_engine_*, then deploy again"
        if put_back
        else f"correct {path} by hand, then deploy again",
    )


def _merge(place: Dict[str, Any], settings: Dict[str, Any], path: List[str], undo: List[Dict[str, Any]]) -> None:
    for key, value in settings.items():
        here = [*path, key]
        had = key in place
        if isinstance(value, dict) and isinstance(place.get(key, {}), dict):
            if not had:
                place[key] = {}
                undo.append({"path": here, "to": {}, "had": False, "from": None})
            _merge(place[key], value, here, undo)
        elif isinstance(value, list) and isinstance(place.get(key, []), list):
            items = [item for item in value if item not in place.get(key, [])]
            if items or not had:
                place[key] = [*place.get(key, []), *items]
                undo.append({"path": here, "items": items, "had": had})
        elif not had or place[key] != value:
            undo.append({"path": here, "to": copy.deepcopy(value), "had": had, "from": place.get(key)})
            place[key] = copy.deepcopy(value)


def _restart_finding(keys: List[str], observed: Dict[str, Any]) -> Dict[str, Any]:
    what = ", ".join(key for key in keys if key not in RELOADABLE) or "an earlier change"
    return finding(
        "container-engine-restart-required",
        "warning",
        f"the container engine has to be restarted before {what} takes effect",
        stage="provision",
        evidence=f"{observed['containers']} containers are running",
        cause=f"{observed['source']} changed in settings that the engine reads only when it starts",
        fix="stop the service, then deploy again; or set container_engine_restart_ok: true to restart it right away",
    )
