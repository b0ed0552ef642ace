"""A sandbox of servers without accelerators, and the real engine deployed on it by the ordinary stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascent_controller import runs
from tests.conformance.deployment import Deployment

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "tests" / "real_engine" / "inventory"
# The first time, the image is built and packed for the registry.
SANDBOX_TIMEOUT_S = 1800
DEPLOY_TIMEOUT_S = 900


def sandbox(verb: str, cluster: str, *arguments: str) -> str:
    """One call of the sandbox tool; its output. A failure shows it."""
    command = [sys.executable, "sandbox/cluster.py", verb, "--inventory", str(INVENTORY), "--cluster", cluster]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, check=False, capture_output=True, text=True, timeout=SANDBOX_TIMEOUT_S
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@dataclass
class Road:
    """Deploys recipes on one cluster of the inventory; `runs` is where run records go."""

    cluster: str
    runs: Path

    def play(self, playbook: str, *arguments: str) -> str:
        """The output of a playbook that has to pass."""
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ASCENT_RUNS_DIR": str(self.runs),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = ["ansible-playbook", "-i", str(INVENTORY), "-l", self.cluster, playbook, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment, timeout=DEPLOY_TIMEOUT_S
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        return done.stdout

    def stage(self, name: str) -> dict[str, Any]:
        """The verdict of a stage of the last run."""
        return json.loads((self.runs / "latest" / f"{name}.json").read_text(encoding="utf-8"))

    def plan(self) -> dict[str, Any]:
        """The launch plan of the last run."""
        plan = runs.read_plan(self.runs / "latest")
        assert plan, f"the run in {self.runs / 'latest'} has no plan"
        return plan

    def deploy(self, recipe: str, ranks: int = 1) -> Deployment:
        """Every stage, and what the suite has to know of what they left."""
        self.play("deploy.yml", "-e", f"recipe={recipe}")
        return self.served(ranks)

    def served(self, ranks: int = 1) -> Deployment:
        """The deployment that the last run left."""
        plan = self.plan()
        return Deployment(
            url=plan["endpoint"]["url"],
            model="tiny",
            differences="vllm",
            engines={each["role"]: each["endpoint"]["url"] for each in plan["instances"]},
            ranks=ranks,
            logs=lambda: {process["name"]: self.log(process) for process in plan["processes"] if process["instance"]},
        )

    def log(self, process: dict[str, Any]) -> str:
        """What a process's container has written."""
        return sandbox("shell", self.cluster, process["host"], "docker", "logs", process["container"]["name"], "2>&1")


def reachable(url: str) -> bool:
    """Whether something answers at an address."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
