"""A sandbox cluster of its own, playbooks through ansible-runner, nodes through testinfra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible_runner
import testinfra

from sandbox.lib import plan

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "tests" / "e2e" / "inventory"
CLUSTER = "a3-cluster"
NODES = {"a3-01": "198.18.128.11", "a3-02": "198.18.128.12", "a3-03": "198.18.128.13"}


@dataclass
class Run:
    """What one playbook run did, from ansible-runner's events and the run record."""

    rc: int
    stats: dict[str, dict[str, int]]
    rounds: list[str]
    stdout: str
    record: Path

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks by host, hosts without any left out."""
        return {host: count for host, count in self.stats.get("changed", {}).items() if count}

    def stage(self, name: str) -> dict[str, Any]:
        """The verdict of one stage."""
        return json.loads((self.record / f"{name}.json").read_text())

    def findings(self) -> list[dict[str, Any]]:
        """The findings of every stage that ran."""
        return [finding for path in self.record.glob("*.json") for finding in _findings(json.loads(path.read_text()))]


def _findings(document: Any) -> list[dict[str, Any]]:
    return document.get("findings", []) if isinstance(document, dict) and "stage" in document else []


class Road:
    """Runs playbooks against the cluster and opens its nodes."""

    def __init__(self, work: Path, before: set[str], inventory: Path = INVENTORY, cluster: str = CLUSTER) -> None:
        self.work = work
        self.before = before
        self.inventory = inventory
        self.cluster = cluster
        found = plan.from_inventory(inventory)
        self.keys = ROOT / ".sandbox" / found.name
        self.addresses = {node.name: node.address for node in found.nodes}
        self.runs = work / "runs"
        self.count = 0

    def environment(self) -> dict[str, str]:
        """What every run needs: the project's settings, and run records beside the test's own files."""
        return {
            # A test that follows a run's output must see each line when it is written.
            "PYTHONUNBUFFERED": "1",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            # ansible-runner adds its own folder to this variable, which replaces the one of ansible.cfg.
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "plugins" / "callback"),
            "ASCENT_RUNS_DIR": str(self.runs),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def play(
        self, playbook: str = "deploy.yml", *arguments: str, inventory: Path | None = None, limit: str | None = None
    ) -> Run:
        """Run ``playbook`` on the cluster, or with another limit, with further command line arguments."""
        self.count += 1
        # A folder for each run: ansible-runner keeps the command line there and would use it again.
        folder = self.work / "runner" / f"{self.count:02d}"
        folder.mkdir(parents=True)
        result = ansible_runner.run(
            private_data_dir=str(folder),
            project_dir=str(ROOT),
            playbook=playbook,
            inventory=str(inventory or self.inventory),
            limit=limit or self.cluster,
            cmdline=" ".join(arguments) or None,
            envvars=self.environment(),
            quiet=True,
        )
        rounds: dict[str, str] = {}
        for event in result.events:
            if event["event"] in {"runner_on_ok", "runner_on_failed", "runner_on_unreachable"}:
                rounds.setdefault(event["event_data"]["task_uuid"], event["event_data"]["task"])
        return Run(
            rc=result.rc,
            stats=result.stats or {},
            rounds=list(rounds.values()),
            stdout=Path(result.stdout.name).read_text(),
            record=(self.runs / "latest").resolve(),
        )

    def node(self, name: str) -> Any:
        """A testinfra host, over ssh with the sandbox's host keys checked."""
        config = self.work / "ssh_config"
        if not config.exists():
            config.write_text(
                f"Host *\n  User root\n  IdentityFile {self.keys}/id_ed25519\n  IdentitiesOnly yes\n"
                f"  UserKnownHostsFile {self.keys}/known_hosts\n  StrictHostKeyChecking yes\n"
            )
        return testinfra.get_host(f"ssh://{self.addresses[name]}", ssh_config=str(config))

    def nodes(self) -> dict[str, Any]:
        """All nodes of the cluster by name."""
        return {name: self.node(name) for name in self.addresses}


def sandbox(verb: str, inventory: Path = INVENTORY) -> None:
    """Call the sandbox tool; its output is shown when the test fails."""
    subprocess.run(
        [sys.executable, "sandbox/cluster.py", verb, "--inventory", str(inventory)], cwd=ROOT, check=True, timeout=900
    )
