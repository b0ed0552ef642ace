#!/usr/bin/env python3
"""How planning grows with the cluster: the planner, the rules and the scripts, from 10 to 10,000 nodes.

    python bench/planner.py [--most NODES] [--repeat N]

Prints one row a size and layout: seconds of the best run, microseconds a node, and how that compares with the size
before; 1.0 means linear. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "module_utils"), str(ROOT / "plugins" / "plugin_utils")]

from ascent import planner, rules  # noqa: E402
from ascent_controller import loader, planning, render  # noqa: E402

SIZES = (10, 100, 1000, 10_000)


def layouts(nodes: int) -> dict[str, dict[str, Any]]:
    """Recipes that fill so many nodes."""
    serve = loader.load("qwen3-235b-a22b-dp2").recipe
    split = loader.load("qwen3.5-397b-a17b-w8a8-pd-1p1d-a3").recipe
    assert serve is not None
    assert split is not None
    pools = split["pools"]
    half = nodes // 2
    return {
        "replicas of two nodes": {**serve, "pools": {"serve": {**serve["pools"]["serve"], "instances": half}}},
        "one rank a server": {
            **serve,
            "pools": {
                "serve": {
                    "nodes": nodes,
                    "tensor_parallel": 4,
                    "data_parallel": 4 * nodes,
                    "data_parallel_mode": "external",
                }
            },
        },
        "prefill and decode": {
            **split,
            "pools": {
                "prefill": {**pools["prefill"], "instances": nodes - half // 2 * 2},
                "decode": {**pools["decode"], "instances": half // 2},
            },
        },
    }


def best(work: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Seconds of the fastest run, and what it gave."""
    fastest, result = float("inf"), None
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest, result


def main() -> int:
    arguments = argparse.ArgumentParser(description="Time of planning by cluster size")
    arguments.add_argument("--most", type=int, default=SIZES[-1], help="largest number of nodes")
    arguments.add_argument("--repeat", type=int, default=3, help="runs of each size; the fastest counts")
    given = arguments.parse_args()
    hardware = loader.load("qwen3-235b-a22b-dp2").hardware
    before: dict[tuple[str, str], float] = {}
    print(f"{'nodes':>6}  {'layout':<22} {'work':<8} {'seconds':>9} {'us a node':>10} {'growth':>7}")
    for nodes in (size for size in SIZES if size <= given.most):
        hosts = planning.stand_ins(nodes)
        for title, recipe in layouts(nodes).items():
            seconds, plan = best(partial(planner.plan, recipe, hardware, hosts), given.repeat)
            rows = {"plan": seconds}
            rows["rules"], _ = best(partial(rules.check, recipe, hardware, hosts, plan), given.repeat)
            rows["scripts"], _ = best(partial(render.files, plan), 1)
            for work, seconds in rows.items():
                each = seconds / nodes * 1e6
                growth = f"{each / before[title, work]:.2f}" if (title, work) in before else ""
                before[title, work] = each
                print(f"{nodes:>6}  {title:<22} {work:<8} {seconds:>9.3f} {each:>10.0f} {growth:>7}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
