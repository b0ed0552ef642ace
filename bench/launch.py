"""How soon a launch is over once there is something to know: ready, or dead.

    python bench/launch.py [--inventory inventories/sandbox --cluster a3-cluster] [--boot] [--repeat 3]

Needs a sandbox cluster that is deployed already (`make deploy`), or `--boot`, which boots the sandbox of the inventory,
deploys it, and takes it down in the end. Every sample ends all containers and runs `deploy.yml --tags launch`:

- *ready*: from the moment at which every health address of the plan has answered to an observer beside the playbook,
  which asks all of them ten times a second, to the end of the watch. Less than nothing: the observer came later.
- *fatal line*, once for each engine of the plan: from the stamp of the line in the log of its container.
- *silent end*, once for each engine: from the end of its container, which was killed and left no line.

The nodes are containers of this machine and have its clock. Prints figures; judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ascent import diagnosis  # noqa: E402
from sandbox.faults.control import Control, find  # noqa: E402
from sandbox.lib import engine, plan  # noqa: E402
from sandbox.lib.lifecycle import Cluster  # noqa: E402

#: What the stage promises, in seconds.
PROMISED = {"ready": 3.0, "fatal line": 5.0, "silent end": 5.0}


class Bench:
    """One cluster, and the launches that are measured on it."""

    def __init__(self, inventory: str, cluster: str, work: Path) -> None:
        self.inventory, self.name, self.work = inventory, cluster, work
        self.cluster = Cluster(plan.from_inventory(ROOT / inventory, cluster), ROOT, engine.Engine(), print)
        self.control = Control(self.cluster)

    def deploy(self, *arguments: str) -> tuple[int, Path]:
        """Run deploy.yml: its exit code and its record."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "deploy.yml", "-i", self.inventory]
        done = subprocess.run(
            [*command, "-l", self.name, *arguments],
            cwd=ROOT,
            env={**os.environ, "ASCENT_RUNS_DIR": str(self.work)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        record = (self.work / "latest").resolve()
        if not (record / "launch.json").exists():
            sys.exit(f"{done.stdout}\nno launch was tried: deploy the cluster first")
        return done.returncode, record

    def shell(self, node: str, command: str) -> str:
        """What a shell command prints on a node."""
        words = self.cluster.ssh(self.cluster.node(node), "bash", "-s")
        return subprocess.run(words, input=command, capture_output=True, text=True, check=True).stdout

    def end_all(self) -> None:
        """End every container of the cluster, without a word."""
        ours = f"docker ps -q --filter label=ascent.cluster={self.name} | xargs -r docker stop -t 0 >/dev/null"
        for node in self.cluster.sandbox.nodes:
            self.shell(node.name, ours)

    def plan(self) -> dict[str, Any]:
        """The plan that the cluster runs."""
        node = self.cluster.sandbox.nodes[0].name
        found: dict[str, Any] = json.loads(self.shell(node, f"cat /etc/ascent/{self.name}/current/plan.json"))
        return found

    def ready(self, urls: Sequence[str]) -> float:
        """Seconds from readiness to the end of the watch."""
        self.end_all()
        with watched(urls) as seen:
            code, record = self.deploy("--tags", "launch")
        if code:
            sys.exit(f"the launch failed: {record / 'report.html'}")
        return float(metrics(record)["ended"]) - max(seen.values())

    def broken(self, process: dict[str, Any], fault: str, sign: Callable[[Path, dict[str, Any]], float]) -> float:
        """Seconds from the sign of a fault of one process to the end of the watch."""
        self.end_all()
        # Late in the start, so that the watch has begun: before that, Ansible starts the other nodes' containers.
        self.control.inject(process["host"], find(fault), [f"process={process['name']}", "phase=kv"])
        try:
            code, record = self.deploy("--tags", "launch")
        finally:
            self.control.heal(process["host"])
        if not code:
            sys.exit(f"{fault} did not end the launch: {record / 'report.html'}")
        return float(metrics(record)["ended"]) - sign(record, process)

    def line(self, record: Path, process: dict[str, Any]) -> float:
        """When the line was written that the first finding shows."""
        first = json.loads((record / "launch.json").read_text(encoding="utf-8"))["findings"][0]
        since = diagnosis.line_time(first["evidence"].partition(": ")[2])
        if since is None or first["host"] != process["host"]:
            sys.exit(f"the launch ended with another finding than that of {process['name']}: {first}")
        return since

    def end(self, record: Path, process: dict[str, Any]) -> float:
        """When the process's container ended for the first time."""
        del record
        name = process["container"]["name"]
        ask = f"docker events --since 30m --until $(date +%s) --filter container={name} --filter event=die"
        told = self.shell(process["host"], ask + " --format '{{.TimeNano}} {{.Actor.Attributes.exitCode}}'")
        killed = [line.split()[0] for line in told.splitlines() if line.endswith(" 137")]
        return int(self._first_after_start(killed)) / 1e9

    def _first_after_start(self, moments: Sequence[str]) -> str:
        begun = json.loads((self.work / "latest" / "launch.json").read_text(encoding="utf-8"))["started"]
        stamp = diagnosis.line_time(f"{begun} ") or 0.0
        return next(moment for moment in moments if int(moment) / 1e9 > stamp)


def metrics(record: Path) -> dict[str, Any]:
    """What the watch measured."""
    found: dict[str, Any] = json.loads((record / "launch.json").read_text(encoding="utf-8"))["metrics"]["launch"]
    return found


@contextlib.contextmanager
def watched(urls: Sequence[str]) -> Iterator[dict[str, float]]:
    """Asks every address until it answers, and tells when that was; all of them have answered after the block."""
    seen: dict[str, float] = {}

    def ask(url: str) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            with contextlib.suppress(OSError), opener.open(url, timeout=2) as answer:
                if answer.status == 200:
                    seen[url] = time.time()
                    return
            time.sleep(0.1)

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    yield seen
    for thread in threads:
        thread.join(30)
    if len(seen) < len(urls):
        sys.exit(f"ready, and these do not answer from here: {', '.join(sorted(set(urls) - set(seen)))}")


def measure(bench: Bench, repeat: int) -> dict[str, list[float]]:
    """All samples by what they measure."""
    wanted = bench.plan()
    engines = [one for one in wanted["processes"] if one["instance"] and one["devices"]]
    urls = [one["health"] for one in wanted["processes"] if one["health"]]
    samples = {"ready": [bench.ready(urls) for _ in range(repeat)]}
    samples["fatal line"] = [bench.broken(one, "C03", bench.line) for one in engines]
    samples["silent end"] = [bench.broken(one, "D28", bench.end) for one in engines]
    bench.end_all()
    bench.deploy("--tags", "launch")
    return samples


def main() -> None:
    """Boot what has to be booted, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", default="inventories/sandbox")
    parser.add_argument("--cluster", default="a3-cluster")
    parser.add_argument("--boot", action="store_true", help="boot the inventory's sandbox, and take it down afterwards")
    parser.add_argument("--repeat", type=int, default=3, help="launches that are to become ready")
    given = parser.parse_args()
    tool = [sys.executable, "sandbox/cluster.py"]
    which = ["--inventory", given.inventory, "--cluster", given.cluster]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.inventory, given.cluster, Path(folder))
        try:
            if given.boot:
                subprocess.run([*tool, "up", *which], cwd=ROOT, check=True)
                bench.deploy()
            samples = measure(bench, given.repeat)
        finally:
            if given.boot:
                subprocess.run([*tool, "down", *which], cwd=ROOT, check=True)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    table = Table(
        "", "samples", "least", "most", "promised", title=f"Seconds from the truth to its being told (load {load})"
    )
    for name, seconds in samples.items():
        table.add_row(name, str(len(seconds)), f"{min(seconds):.2f}", f"{max(seconds):.2f}", f"{PROMISED[name]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
