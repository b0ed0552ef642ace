"""What the fabric gate costs a node as a cluster grows: the same gate over 2, 4 and 8 of a sandbox's nodes.

    python bench/fabric.py [--nodes 2 4 8] [--inventory bench/inventory --cluster eight-hosts]

Boots the sandbox of the inventory and takes it down again. Every device pings its counterparts, so a node's part of the
mesh grows with the number of its peers and with nothing else: seconds for a peer stay as they are, and so do the calls
of the vendor's tools that read the devices. On a machine with fewer cores than nodes seconds grow all the same: nodes
share them. Prints figures; judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]

RECIPE = """---
name: fabric-bench
summary: One data parallel rank on each of {nodes} servers
model: {{id: vllm-ascend/Qwen3-235B-A22B, source: modelscope}}
engine: {{name: vllm-ascend, image: "quay.io/ascend/vllm-ascend:v0.11.0rc2"}}
hardware: atlas-800-a2
pools:
  serve: {{nodes: {nodes}, tensor_parallel: 8, data_parallel: {nodes}, port: 8000, rpc_port: 13389}}
"""


def gate(nodes: int, inventory: str, cluster: str, work: Path) -> dict[str, Any]:
    """One forced run of the stage over so many nodes: what it read and measured, and its seconds."""
    recipe, runs = work / f"recipe-{nodes}.yml", work / f"runs-{nodes}"
    recipe.write_text(RECIPE.format(nodes=nodes), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        *("deploy.yml", "-i", inventory, "-l", cluster, "--tags", "verify"),
        *("-e", f"recipe={recipe}", "-e", "verify=force", "-e", "fabric_collectives=never"),
    ]
    begun = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "ASCENT_RUNS_DIR": str(runs)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout[-4000:] + done.stderr)
    facts = json.loads((runs / "latest" / "fabric_facts.json").read_text(encoding="utf-8"))
    return {**facts, "seconds": time.perf_counter() - begun}


def row(nodes: int, told: dict[str, Any]) -> dict[str, float]:
    """Medians over the nodes that have a part in the plan."""
    part = [host for host, one in told["npus"].items() if one and one["devices"]]
    meshes, planes, npus = ([told[name][host] for host in part] for name in ("mesh", "control_plane", "npus"))
    return {
        "pairs": statistics.median(len(one["pairs"]) for one in meshes),
        "mesh": statistics.median(one["seconds"] for one in meshes),
        "peer": statistics.median(one["seconds"] for one in meshes) / (nodes - 1),
        "ports": statistics.median(one["seconds"] for one in planes),
        "calls": statistics.median(one["calls"] for one in npus),
        "devices": statistics.median(one["seconds"] for one in npus),
        "gate": told["seconds"],
    }


def main() -> None:
    """Boot, measure, take down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--inventory", default="bench/inventory")
    parser.add_argument("--cluster", default="eight-hosts")
    given = parser.parse_args()
    sandbox = [sys.executable, "sandbox/cluster.py"]
    which = ["--inventory", given.inventory, "--cluster", given.cluster]
    subprocess.run([*sandbox, "up", *which], cwd=ROOT, check=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = {
                nodes: row(nodes, gate(nodes, given.inventory, given.cluster, Path(folder))) for nodes in given.nodes
            }
    finally:
        subprocess.run([*sandbox, "down", *which], cwd=ROOT, check=True)
    table = Table(title="the fabric gate, a node's own seconds (median), and against the first row")
    names = {
        "pairs": "pairs",
        "mesh": "mesh",
        "peer": "mesh a peer",
        "ports": "ports",
        "calls": "calls",
        "devices": "devices",
        "gate": "gate",
    }
    for column in ("nodes", *names.values()):
        table.add_column(column, justify="right")
    first = next(iter(rows.values()))
    for nodes, figures in rows.items():
        cells = [f"{figures[name]:.3g} ({figures[name] / first[name]:.2f})" for name in names]
        table.add_row(str(nodes), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
