"""The guarded cluster of this folder's tests, the operator's variables, and what a client sees."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sandbox.lib.lifecycle import Cluster

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = Path(__file__).parent / "inventory"
CLUSTER = "guarded"
GATEWAY = "https://100.76.0.11:8000"

#: What is planted; none of these may show anywhere but in the files that are made for them.
FIRST, SECOND, THIRD = "first-client-4f2a9c7be1d0", "second-client-77aa01bb23", "third-client-5d5d5d5d5d"
ENGINE, OTHER_ENGINE = "engine-key-9d8c7b6a5f4e3d2c", "other-engine-0a1b2c3d4e5f"
HUB = "hub-token-1029384756abcdef"


@dataclass
class Run:
    """One playbook run: everything it said, and its record."""

    code: int
    output: str
    record: Path
    changed: dict[str, int]

    def findings(self) -> list[dict[str, Any]]:
        """The findings of all stages."""
        told: list[dict[str, Any]] = []
        for path in sorted(self.record.glob("*.json")):
            document = json.loads(path.read_text())
            if isinstance(document, dict) and "stage" in document:
                told += document.get("findings", [])
        return told


@dataclass
class Site:
    """The cluster, the operator's variables, and a client's view of the endpoint."""

    work: Path
    cluster: Cluster
    variables: dict[str, Any]
    outputs: list[str] = field(default_factory=list)

    @property
    def authority(self) -> Path:
        """Where the controller keeps the cluster's authority."""
        return self.work / "tls" / CLUSTER

    def play(self, playbook: str, *arguments: str, **changes: Any) -> Run:
        """Run a playbook as talkative as an operator may; ``changes`` go over the variables."""
        values = self.work / f"vars-{len(self.outputs)}.yml"
        values.write_text(yaml.safe_dump({**self.variables, **changes}))
        runs = self.work / "runs"
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *(playbook, "-i", str(INVENTORY), "-l", CLUSTER, "-e", f"@{values}", "-vvv", "--diff", *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ASCENT_RUNS_DIR": str(runs)},
            capture_output=True,
            text=True,
            check=False,
        )
        values.unlink()
        self.outputs.append(done.stdout + done.stderr)
        record = (runs / "latest").resolve()
        stats = json.loads((record / "run.json").read_text())["hosts"]
        changed = {host: counts["changed"] for host, counts in stats.items() if counts["changed"]}
        return Run(done.returncode, self.outputs[-1], record, changed)

    def node(self, name: str, *command: str) -> str:
        """What a command prints on a node."""
        done = subprocess.run(
            self.cluster.ssh(self.cluster.node(name), *command), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the container engines say of the cluster's containers, by their process."""
        found = {}
        for node in self.cluster.sandbox.nodes:
            names = self.node(node.name, "docker ps -q --filter label=ascent.cluster").split()
            for one in json.loads(self.node(node.name, f"docker inspect {' '.join(names)}")):
                found[one["Config"]["Labels"]["ascent.process"]] = one
        return found

    def complete(self, key: str | None) -> tuple[int, str]:
        """`ask` for a few tokens at the gateway."""
        return self.ask(f"{GATEWAY}/v1/completions", key, {"model": "qwen3", "prompt": "One", "max_tokens": 4})

    def ask(self, url: str, key: str | None = None, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of an answer, from a client that verifies the certificate against the cluster's authority."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
        trust = ssl.create_default_context(cafile=str(self.authority / "ca.pem"))
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
