"""Brings faults about on the nodes of a sandbox and heals them, over ssh."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Each family registers its faults.
from sandbox.faults import device, engine, fabric, launch, versions  # noqa: F401
from sandbox.faults.model import FAULTS, Fault, FaultError, Injection, Node, as_request, find, key
from sandbox.lib.lifecycle import Cluster

__all__ = ["FAULTS", "Control", "FaultError", "find"]

AGENT = Path(__file__).with_name("agent.py").read_bytes()


class Control:
    """The faults of one sandbox's nodes."""

    def __init__(self, cluster: Cluster) -> None:
        """Connects to nothing yet."""
        self.cluster = cluster

    def ask(self, name: str, request: str) -> Any:
        """One request to the agent on a node. Raises FaultError with its words, or ssh's."""
        node = self.cluster.node(name)
        # The program comes over stdin, so nothing is installed on the node.
        command = self.cluster.ssh(node, "/usr/bin/python3", "-", shlex.quote(request))
        done = subprocess.run(command, input=AGENT, capture_output=True, check=False)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise FaultError(f"{name} does not take the request ({done.returncode}): {words}")
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise FaultError(f"{name}: {answer['error']}")
        return answer["ok"]

    def node(self, name: str, fault: str = "") -> Node:
        """A node with what its faults are written against: as it is without `fault`, one of its names there."""
        planned = self.cluster.node(name)
        return Node(planned, self.cluster.sandbox, self.ask(name, json.dumps({"do": "facts", "key": fault})))

    def inject(self, name: str, fault: Fault, given: Iterable[str] = ()) -> tuple[str, bool, Injection]:
        """Brings a fault about: its name there, whether anything changed, and where it shows."""
        arguments = fault.arguments(given)
        injection = fault.on(self.node(name, key(fault, arguments)), arguments)
        answer = self.ask(name, as_request(fault, arguments, injection))
        return key(fault, arguments), answer["changed"], injection

    def heal(self, name: str, fault: Fault | None = None) -> tuple[list[str], list[str]]:
        """Heals a fault, with whatever arguments it was brought about, or all: what was healed, and notes."""
        answer = self.ask(name, json.dumps({"do": "heal", "id": fault.id if fault else None}))
        return answer["healed"], answer["notes"]

    def active(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """The faults on a node: name there to `{id, name, arguments, since}`."""
        return self.ask(name, json.dumps({"do": "active"}))["faults"]
