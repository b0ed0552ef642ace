"""The import check of the engine: that its modules load where it runs, in which versions, and the same on all hosts."""

from __future__ import annotations

__all__ = ["command", "judge", "parse"]

import json
import shlex
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .engines import version_key
from .findings import finding

#: Stands before the answer: engines print warnings of their own while they load.
MARK = "ascent-imports:"

_CODE = (
    "import importlib, json; from importlib.metadata import version; names = {names!r}; "
    "print({mark!r} + json.dumps({{n: (importlib.import_module(n), version(n.replace('_', '-')))[1] for n in names}}))"
)
_TAIL = 6


def command(process: Mapping[str, Any], modules: Sequence[str]) -> List[str]:
    """The call that imports ``modules`` as a planned process would: in its container, or in its environment.

    The process's own scripts are sourced first. Images do that for interactive shells only.
    """
    lines = []
    for script in process["source"]:
        choices = [script] if isinstance(script, str) else script
        words = " ".join(shlex.quote(one) for one in choices)
        lines.append(f'for script in {words}; do if [ -r "$script" ]; then . "$script"; break; fi; done')
    unit = process.get("unit")
    python = f"{unit['environment']}/bin/python" if unit else "python3"
    code = _CODE.format(names=list(modules), mark=MARK)
    shell = "; ".join([*lines, f"exec {shlex.quote(python)} -c {shlex.quote(code)}"])
    argv = ["/bin/bash", "-c", shell]
    return argv if unit else ["docker", "exec", process["container"]["name"], *argv]


def parse(code: int, out: str, err: str) -> Dict[str, Any]:
    """``{"versions": {module: version} | None, "error"}`` of a call's result."""
    for line in reversed(out.splitlines()):
        if line.startswith(MARK):
            try:
                return {"versions": dict(json.loads(line[len(MARK) :])), "error": ""}
            except ValueError:
                break
    said = [line for line in (err or out).splitlines() if line.strip()]
    return {"versions": None, "error": "\n".join(said[-_TAIL:]) or f"it ended with {code} and said nothing"}


def judge(results: Mapping[str, Optional[Mapping[str, Any]]], engine: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Findings on the results by host (None where nothing was to be imported); ``engine`` is the plan's section."""
    told = [
        finding(
            "engine-import",
            "error",
            f"the engine can't be imported on {host}",
            host=host,
            stage="launch",
            evidence=str(result["error"]),
            cause="A package of it is missing or broken, or a library that it needs is not where it looks.",
            fix="Compare the image or the packages with the version table; the last line names what failed.",
        )
        for host, result in sorted(results.items())
        if result and not result["versions"]
    ]
    versions = {host: dict(result["versions"]) for host, result in results.items() if result and result["versions"]}
    told += odd_ones("engine-versions-differ", "the engine", versions)
    name = str(engine.get("name", "")).replace("-", "_")
    wanted = version_key(str(engine.get("version") or ""))
    for host, found in sorted(versions.items()):
        if wanted and name in found and version_key(found[name]) not in (None, wanted):
            told.append(
                finding(
                    "engine-version",
                    "error",
                    f"{host} has {name} {found[name]}, the recipe says {engine['version']}",
                    host=host,
                    stage="launch",
                    evidence=f"import {name}: {found[name]}",
                    cause="The image's tag or the installed package is not what its name says.",
                    fix="correct the image, the packages or engine.version in the recipe",
                )
            )
    return told


def odd_ones(id: str, what: str, versions: Mapping[str, Mapping[str, str]]) -> List[Dict[str, Any]]:
    """A finding for each host whose ``versions`` (by package) are not those of most hosts; of two, the second."""
    texts = {host: json.dumps(found, sort_keys=True) for host, found in versions.items()}
    if len(set(texts.values())) < 2:
        return []
    order = list(texts.values())
    usual = max(order, key=lambda text: (order.count(text), -order.index(text)))
    most = next(host for host, text in texts.items() if text == usual)
    told = []
    for host, text in texts.items():
        if text == usual:
            continue
        names = sorted(set(versions[host]) | set(versions[most]))
        differs = [
            f"{name} {versions[host].get(name, 'absent')} (others {versions[most].get(name, 'absent')})"
            for name in names
            if versions[host].get(name) != versions[most].get(name)
        ]
        told.append(
            finding(
                id,
                "error",
                f"{what} of {host} is not that of the other hosts",
                host=host,
                evidence=", ".join(differs[:8]) + (f" and {len(differs) - 8} more" if len(differs) > 8 else ""),
                cause="It was changed by hand, or made from another source.",
                fix=f"remove it on {host} and deploy again; or pin the packages in engine.environment.packages",
            )
        )
    return told
