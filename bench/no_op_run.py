"""What a run that changes nothing costs, beside the floor: ssh to every host at once, once and once a round.

Needs a cluster that is deployed already (`make deploy`), or `--boot`, which boots the sandbox of the inventory, brings
its hosts to the state that the stages of `--tags` want, and takes it down in the end. Prints figures; judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.manager import VariableManager
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


def ssh_commands(inventory: str, cluster: str) -> list[list[str]]:
    """One ``ssh HOST true`` for each host of the cluster, with the inventory's own connection settings."""
    loader = DataLoader()
    manager = InventoryManager(loader=loader, sources=[str(ROOT / inventory)])
    variables = VariableManager(loader=loader, inventory=manager)
    commands = []
    for host in manager.get_hosts(cluster):
        values = variables.get_vars(host=host)
        resolved = Templar(loader=loader, variables=values).template(
            {key: values[key] for key in values if key.startswith("ansible_") or key == "inventory_dir"}
        )
        commands.append(
            [
                "ssh",
                *("-o", "BatchMode=yes"),
                *str(resolved.get("ansible_ssh_common_args", "")).split(),
                *(
                    ("-i", resolved["ansible_ssh_private_key_file"])
                    if "ansible_ssh_private_key_file" in resolved
                    else ()
                ),
                f"{resolved.get('ansible_user', 'root')}@{resolved['ansible_host']}",
                "true",
            ]
        )
    return commands


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds and CPU-seconds of the children that ``run`` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def floor(commands: list[list[str]]) -> None:
    """Reach every host at once and wait for all of them."""
    for process in [subprocess.Popen(command) for command in commands]:
        if process.wait():
            sys.exit(f"ssh failed: {process.args}")


def deploy(inventory: str, cluster: str, tags: str, runs: Path, *, no_op: bool = True) -> dict[str, Any]:
    """One run of deploy.yml; its run record. Exits when the run failed, or changed something where it must not."""
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ansible-playbook")), "deploy.yml", "-i", inventory, "-l", cluster),
            *(("--tags", tags) if tags else ()),
        ],
        cwd=ROOT,
        env={**os.environ, "ASCENT_RUNS_DIR": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    record = json.loads((runs / "latest" / "run.json").read_text())
    if done.returncode or (no_op and record["changed"]):
        sys.exit(f"{done.stdout}\nthis is no no-op run: deploy the cluster first")
    return record


@contextlib.contextmanager
def sandbox(inventory: str) -> Iterator[None]:
    """The sandbox of an inventory, up for as long as the block runs."""
    cluster = [sys.executable, str(ROOT / "sandbox/cluster.py")]
    subprocess.run([*cluster, "up", "--inventory", inventory], cwd=ROOT, check=True)
    try:
        yield
    finally:
        subprocess.run([*cluster, "down", "--inventory", inventory], cwd=ROOT, check=True)


def measure(inventory: str, cluster: str, tags: str, repeat: int, runs: Path) -> None:
    """Measure floors and run in turn, and print medians and their ratios."""
    commands = ssh_commands(inventory, cluster)
    once, each_round, run, rounds = [], [], [], 0
    for _ in range(repeat):
        records: list[dict[str, Any]] = []
        run.append(measured(lambda: records.append(deploy(inventory, cluster, tags, runs))))  # noqa: B023 - runs at once
        rounds = records[0]["rounds"]
        once.append(measured(lambda: floor(commands)))
        each_round.append(measured(lambda: [floor(commands) for _ in range(rounds)]))  # noqa: B023 - runs at once

    title = f"No-op run of {tags.replace(',', ' and ') or 'all stages'}, {len(commands)} hosts"
    table = Table("", "task rounds", "seconds", "controller CPU-seconds", title=title)
    rows = (
        ("ssh, once", "-", once),
        ("ssh, once for each round", "-", each_round),
        ("deploy.yml", str(rounds), run),
    )
    for name, shown, samples in rows:
        seconds, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        table.add_row(name, shown, f"{seconds:.2f}", f"{cpu:.2f}")
    for name, _, base in rows[:2]:
        ratios = (
            statistics.median(one[axis] / two[axis] for one, two in zip(run, base, strict=True)) for axis in (0, 1)
        )
        table.add_row(f"ratio to {name}", "", *(f"{ratio:.1f}" for ratio in ratios))
    Console().print(table)


def main() -> None:
    """Boot what has to be booted, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", default="inventories/sandbox")
    parser.add_argument("--cluster", default="a3-cluster")
    parser.add_argument("--tags", default="", help="stages to run, such as provision,tune; all of them without it")
    parser.add_argument("--boot", action="store_true", help="boot the inventory's sandbox, and take it down afterwards")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory)
        with sandbox(options.inventory) if options.boot else contextlib.nullcontext():
            if options.boot:
                deploy(options.inventory, options.cluster, options.tags, runs, no_op=False)
            measure(options.inventory, options.cluster, options.tags, options.repeat, runs)


if __name__ == "__main__":
    main()
