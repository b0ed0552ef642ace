"""What a run that changes nothing costs, beside the floor: one ssh round trip to every host at once.

Needs a cluster that is deployed already (`make deploy`). Prints figures; judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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


def no_op(inventory: str, cluster: str, runs: Path) -> dict[str, Any]:
    """One run of deploy.yml; its run record. Exits when the run failed or changed something."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "deploy.yml", "-i", inventory, "-l", cluster],
        cwd=ROOT,
        env={**os.environ, "ASCENT_RUNS_DIR": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    record = json.loads((runs / "latest" / "run.json").read_text())
    if done.returncode or record["changed"]:
        sys.exit(f"{done.stdout}\nthis is no no-op run: deploy the cluster first")
    return record


def main() -> None:
    """Measure floor and run in turn, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", default="inventories/sandbox")
    parser.add_argument("--cluster", default="a3-cluster")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    commands = ssh_commands(options.inventory, options.cluster)
    floors, runs, records = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(options.repeat):
            floors.append(measured(lambda: floor(commands)))
            runs.append(measured(lambda: records.append(no_op(options.inventory, options.cluster, Path(directory)))))

    table = Table("", "task rounds", "seconds", "controller CPU-seconds", title=f"No-op run, {len(commands)} hosts")
    for name, rounds, samples in (
        ("ssh to all hosts at once", "-", floors),
        ("ansible-playbook deploy.yml", str(records[-1]["rounds"]), runs),
    ):
        seconds, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        table.add_row(name, rounds, f"{seconds:.2f}", f"{cpu:.2f}")
    ratios = [
        f"{statistics.median(run[axis] / base[axis] for base, run in zip(floors, runs, strict=True)):.1f}"
        for axis in (0, 1)
    ]
    table.add_row("ratio, median of pairs", "", *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
