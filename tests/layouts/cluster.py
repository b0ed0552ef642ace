"""One cluster that takes every layout in turn, and what runs on its nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sandbox.lib import packages, plan
from tests.e2e.driver import ROOT, Road, Run

HERE = ROOT / "tests" / "layouts"
INVENTORY = HERE / "inventory"
CLUSTER = "layouts"
NODES = {"lay-01": "100.70.0.11", "lay-02": "100.70.0.12", "lay-03": "100.70.0.13"}

# One line for each container and unit of the cluster: process, what tells this start from all others, state.
_RUNNING = """
docker ps --all --quiet --filter label=ascent.cluster=layouts | xargs --no-run-if-empty docker inspect --format \
    '{{index .Config.Labels "ascent.process"}} {{.Id}}/{{.State.StartedAt}} {{.State.Status}}'
for unit in /etc/systemd/system/ascent-layouts-*.service; do
    [ -e "$unit" ] || continue
    name=${unit##*/}
    echo "$(sed -n 's/^X-Ascent-Process=//p' "$unit")" \
        "$(systemctl show --property=InvocationID --value "$name")" "$(systemctl is-active "$name")"
done
"""


@dataclass(frozen=True)
class Layout:
    """One layout: its recipe, where its processes run, and a change with what has to start anew for it.

    ``change`` is merged into the recipe; ``restarts`` are places (`HOST PROCESS`); ``shows`` is what the script of the
    first of them holds with the change; ``units``: engines run outside containers; ``limits``: what docker says of each
    container's settings; ``told``: findings of a healthy status, by id and host.
    """

    recipe: str
    processes: Mapping[str, tuple[str, ...]]
    change: Mapping[str, Any]
    restarts: frozenset[str]
    shows: str
    units: bool = False
    limits: Mapping[str, Any] = field(default_factory=lambda: {"Privileged": False, "Memory": 0})
    told: frozenset[tuple[str, str]] = frozenset()

    @property
    def places(self) -> set[str]:
        """Where something runs, as `HOST PROCESS`."""
        return {f"{host} {name}" for host, names in self.processes.items() for name in names}


class Site:
    """The cluster, and what a test asks of it."""

    def __init__(self, road: Road) -> None:
        self.road = road

    def recipe(self, name: str, change: Mapping[str, Any] | None = None) -> Path:
        """The path of a layout's recipe, or of one that stands on it and changes it."""
        base = HERE / "recipes" / f"{name}.yml"
        if not change:
            return base
        path = self.road.work / f"{name}-changed.yml"
        path.write_text(yaml.safe_dump({"extends": str(base), "name": path.stem, **change}, sort_keys=False))
        return path

    def launch(self, recipe: Path, tags: str = "launch", limit: str | None = None, **variables: Any) -> Run:
        """Run stages of deploy.yml with a recipe, on the cluster or with another limit."""
        given = self.road.work / "variables.json"
        given.write_text(json.dumps({"recipe": str(recipe), **variables}))
        return self.road.play("deploy.yml", "--tags", tags, "-e", f"@{given}", limit=limit)

    def packages(self) -> dict[str, str]:
        """What hosts need whose engines run outside containers, as variables: CANN, and the engine's wheels."""
        wheels, source = self.road.work / "wheels", self.road.work / "cann"
        if not wheels.exists():
            made = packages.for_profiles([plan.load_profile("a3")], drivers=[], firmwares=[], canns=["8.5.1"])
            packages.write(made, source, print)
            command = [sys.executable, "sandbox/engine/wheels.py", str(wheels), "--release", "v0.18.0"]
            subprocess.run([*command, "--python", "3.11"], cwd=ROOT, check=True, timeout=300)
        return {"cann_source": str(source), "engine_environment_wheels": str(wheels)}

    def running(self) -> dict[str, str]:
        """By `HOST PROCESS` of what runs, what tells its start from every other."""
        found = {}
        for name, node in self.road.nodes().items():
            for line in node.check_output(_RUNNING).splitlines():
                process, start, state = line.split()
                assert state in ("running", "active"), f"{name}: {line}"
                found[f"{name} {process}"] = start
        return found

    def manifest(self, host: str) -> dict[str, Any]:
        """What a host knows of its current generation."""
        return json.loads(self.road.node(host).file(f"/etc/ascent/{CLUSTER}/current/manifest.json").content_string)

    def status(self) -> tuple[Run, set[tuple[str, str]]]:
        """A run of status.yml, and its findings by id and host."""
        run = self.road.play("playbooks/status.yml")
        return run, {(one["id"], one["host"]) for one in run.stage("status")["findings"]}


def until(holds: Callable[[], bool], seconds: float) -> None:
    """Ask once a second until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(1)
