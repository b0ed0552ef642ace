"""Hosts for tests of weights: directories of this machine, asked as the controller asks nodes."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ascent import hubs, weights, weights_job
from ascent_controller import weights_spread

MODEL = "tiny-org/Tiny-0.5B"
PLACE = "/root/.cache/modelscope/hub/models/tiny-org/Tiny-0___5B"


class Here:
    """A host inside the test: requests go to `weights_job` itself, and its jobs are threads."""

    def __init__(self) -> None:
        self.job: weights_job.Job | None = None

    def __call__(self, data: bytes) -> tuple[int, bytes, bytes]:
        head, _, rest = data.partition(b"\n")
        text = rest[: int(head)].decode()
        request = json.loads(ast.literal_eval(text[text.index(".main(") + 6 : text.rindex(", sys.stdin.buffer)")]))
        try:
            answer = self.answer(request, rest[int(head) :])
        except hubs.SourceError as error:
            answer = {"error": {"kind": error.kind, "text": str(error), "fix": error.fix}}
        return 0, (weights_job.MARK + json.dumps(answer)).encode(), b""

    def answer(self, request: dict, data: bytes) -> dict:
        operation = request["op"]
        if operation == "start":
            listener = socket.create_server(("127.0.0.1", 0)) if request["serve"] else None
            self.job = weights_job.Job(request, listener)
            self.thread = threading.Thread(target=self.job.run, daemon=True)
            self.thread.start()
            return {"port": self.job.state["port"]}
        if operation in ("poll", "stop"):
            assert self.job is not None
            if operation == "stop":
                self.job.stop.set()
            self.thread.join(5 if operation == "stop" else 0.02)
            return {"state": dict(self.job.state), "running": self.thread.is_alive()}
        if operation == "put":
            assert self.job is not None
            (Path(request["root"]) / "run/ascent").mkdir(parents=True, exist_ok=True)
            weights_job._write_state(request, self.job.state)
            return weights_job.put(request, data)
        return weights_job._OPERATIONS[operation](request)


def process(data: bytes) -> tuple[int, bytes, bytes]:
    """A host's Python, as the controller starts it on a node."""
    command = [sys.executable, "-I", "-c", weights_spread.BOOT]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


class Cluster:
    """Hosts that are directories; with `processes`, each request is a Python of its own."""

    def __init__(self, folder: Path, count: int, processes: bool) -> None:
        self.folder = folder
        self.hosts = [f"n{number}" for number in range(1, count + 1)]
        self.roots = {host: str(folder / host) for host in self.hosts}
        self.executes = {host: process if processes else Here() for host in self.hosts}
        self.lines: list[str] = []
        for root in self.roots.values():
            Path(root).mkdir(parents=True)

    def path(self, host: str, place: str = PLACE) -> Path:
        return Path(self.roots[host] + place)

    def facts(self, place: str = PLACE) -> dict[str, Any]:
        return {host: {**weights.inspect(str(self.path(host, place))), "directory": place} for host in self.hosts}

    def spread(
        self, place: str = PLACE, source: str = "modelscope", revision: str | None = None, **settings: Any
    ) -> Any:
        model = {"id": MODEL, "source": source, "revision": revision, "directory": place}
        given = weights_spread.Settings(**{"timeout": 5, "attempts": 3, "proxy": "none", **settings})
        made = weights_spread.Spread(
            model,
            given,
            self.facts(place),
            dict.fromkeys(self.hosts, "127.0.0.1"),
            self.executes,
            self.lines.append,
            roots=self.roots,
            wait=0.2,
        )
        made.source = weights_spread.choose(model, given)
        return made

    def fetch(self, place: str = PLACE, source: str = "modelscope", **more: Any) -> Any:
        made = self.spread(place, source, **more)
        made.run(made.source)
        return made
