#!/usr/bin/env python3
"""The engine simulator's timing model beside the seeds' reference figures: docs/engine_simulator.md has the table.

    python bench/engine_timing.py [--fit] [--quick]

Runs each reference workload through the simulator's schedulers in model time and prints one row for it, as Markdown.
The same call always prints the same rows. `--fit` finds the parameters of sandbox/engine/sim/timing.py anew, from the
rows marked as fitted, and prints them instead. `--quick` uses a quarter of the requests. Every figure that is
not a reference is simulated and says nothing about hardware.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sandbox.engine.sim import timing  # noqa: E402
from sandbox.engine.sim.scheduler import Limits  # noqa: E402
from sandbox.engine.sim.timing import Costs, Shape  # noqa: E402
from sandbox.engine.sim.virtual import Deployment, Instance, Job, Result  # noqa: E402

BYTES = {"bf16": 2, "w8a8": 1}
ROUNDS = 4  # of the fit: the parameters depend on each other a little


@dataclass(frozen=True)
class Row:
    """One reference row: its figures, and how to run its workload."""

    name: str
    fitted: str
    ttft_ms: float
    tpot_ms: float
    throughput: float  # tokens a second: of the output, of input and output where `both`
    both: bool
    requests: int
    concurrency: int
    prompt: int
    answer: int
    rate: float  # requests a second that the client starts at most
    build: Callable[[], dict[str, Any]]  # arguments of Deployment


def shape(family: str, variant: str) -> Shape:
    """A model of the catalogue."""
    data = yaml.safe_load((ROOT / "catalog" / "models" / f"{family}.yml").read_text(encoding="utf-8"))
    entry = next(one for one in data["variants"] if one["id"] == variant)
    figures = data.get("figures", {}) | entry.get("figures", {})
    parameters = figures["parameters"] * 1e9
    layers, head = figures["kv_layers"], figures["head_dim"]
    return Shape(
        weight_bytes=parameters * BYTES[entry["precision"]],
        parameters=parameters,
        activated=figures.get("activated_parameters", figures["parameters"]) * 1e9,
        kv_bytes=2 * 2 * layers * figures["kv_heads"] * head,
        attention=4 * layers * figures["attention_heads"] * head,
    )


def single_a3() -> dict[str, Any]:
    """Seed 003, one A3 node: TP 4, DP 4, experts over all 16 devices, decoding in full graphs."""
    costs = Costs(shape("qwen3-235b-a22b", "vllm-ascend/Qwen3-235B-A22B-w8a8"), 4, 16, "full")
    return {"engines": [Instance(4, Limits(128, 16384), costs, blocks=6000)]}


def split_a3() -> dict[str, Any]:
    """Seed 003, three A3 nodes: prefill DP 2 x TP 8 without graphs, decode DP 8 x TP 4 on two nodes."""
    model = shape("qwen3-235b-a22b", "vllm-ascend/Qwen3-235B-A22B-w8a8")
    return {
        "engines": [Instance(2, Limits(64, 16384), Costs(model, 8, 16, "eager"), blocks=10_000)],
        "decode": [Instance(8, Limits(128, 256), Costs(model, 4, 32, "full"), blocks=10_000)],
    }


def replicas() -> dict[str, Any]:
    """Seed 000, agg-base: two instances of TP 4 on 910B4, requests given out at random, nothing found in the cache."""
    costs = Costs(shape("qwen3-dense", "Qwen/Qwen3-32B"), 4, 4, "piecewise")
    rng = random.Random(0)  # noqa: S311 -- a repeatable workload
    one = Instance(1, Limits(256, 40960), costs, blocks=1000)
    return {"engines": [one, one], "route": lambda _number: rng.randrange(2)}


ROWS = {
    "H3": Row("single A3, TP 4 x DP 4", "TPOT", 4717.45, 48.69, 2761.72, False, 720, 144, 3584, 1536, 24, single_a3),
    "H5": Row("2 x TP 4, 8k prompts", "TTFT, ITL", 1328, 71.4, 3120, True, 240, 4, 8192, 128, 1e9, replicas),
    "H7": Row("2 x TP 4, 17.5k prompts", "", 4612, 95.9, 4270, True, 240, 4, 17500, 128, 1e9, replicas),
    "H4": Row("PD on three A3", "", 3735.98, 52.07, 8593.44, False, 2880, 576, 3584, 1536, 8, split_a3),
}


def simulate(row: Row) -> tuple[float, float, float]:
    """(mean TTFT ms, mean TPOT ms, tokens a second), simulated."""
    prompt = [0] * row.prompt
    jobs = [Job(prompt, row.answer, number / row.rate) for number in range(row.requests)]
    results: list[Result] = Deployment(**row.build()).run(jobs, row.concurrency)
    tokens = sum(r.tokens for r in results) + (row.prompt * row.requests if row.both else 0)
    count = len(results)
    return (
        1000 * sum(r.ttft for r in results) / count,
        1000 * sum(r.tpot for r in results) / count,
        tokens / max(r.last for r in results),
    )


def fit(rows: dict[str, Row]) -> None:
    """Move each parameter until its figure is met. Each figure grows or falls steadily with its parameter."""
    for _ in range(ROUNDS):
        ttft, tpot, _rate = simulate(rows["H5"])
        timing.COMPUTE *= ttft / rows["H5"].ttft_ms
        timing.LAUNCH["piecewise"] += (rows["H5"].tpot_ms - tpot) / 1000
        timing.LAUNCH["full"] += (rows["H3"].tpot_ms - simulate(rows["H3"])[1]) / 1000
        print(f"COMPUTE {timing.COMPUTE:.3g}  LAUNCH {timing.LAUNCH}", flush=True)


def main() -> None:
    """Print the table, or the fitted parameters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fit", action="store_true", help="find the parameters and print them")
    parser.add_argument("--quick", action="store_true", help="a quarter of the requests")
    args = parser.parse_args()
    rows = {
        key: replace(row, requests=max(row.requests // 4, row.concurrency)) if args.quick else row
        for key, row in ROWS.items()
    }
    if args.fit:
        fit(rows)
        return
    print("| Row | Workload | Fitted | TTFT ms: reference, simulated | TPOT ms: reference, simulated "
          "| tok/s: reference, simulated |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- |")
    for key, row in rows.items():
        pairs = zip((row.ttft_ms, row.tpot_ms, row.throughput), simulate(row), strict=True)
        cells = " | ".join(f"{wanted:,.5g}, {got:,.5g} simulated ({got / wanted:.2f} x)" for wanted, got in pairs)
        print(f"| {key} | {row.name} | {row.fitted or '-'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
