"""`vllm bench serve`, as the real engine's image has it, against the engine simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.lib.engine import Engine, exclusive
from tests.clients.conftest import TOKENIZER, Site
from tests.unit.engine_harness import ROOT

Command = list[str]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The real engine's image, built where it is missing, and a daemon that runs it."""
    built = subprocess.run(
        [sys.executable, "sandbox/cluster.py", "build", "--real"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (name,) = [line for line in built.stdout.splitlines() if line.startswith("ascent-sandbox/real:")]
    engine = Engine()
    with exclusive():
        started = engine.start()
    yield name
    with exclusive():
        if started and not engine.sandboxes():
            engine.stop()


@pytest.mark.parametrize(
    ("backend", "endpoint"), [("vllm", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllm_bench_measures(
    image: str, simulator: str, site: Site, tmp_path: Path, backend: str, endpoint: str
) -> None:
    tokenizer = site.plain.root / "hub" / TOKENIZER / "main"
    arguments = ["--backend", backend, "--endpoint", endpoint, "--base-url", simulator, "--model", "tiny"]
    arguments += ["--tokenizer", "/tokenizer", "--dataset-name", "random", "--num-prompts", "32"]
    arguments += ["--random-input-len", "128", "--random-output-len", "32", "--max-concurrency", "8", "--ignore-eos"]
    arguments += ["--temperature", "0", "--percentile-metrics", "ttft,tpot,itl,e2el", "--goodput", "ttft:60000"]
    arguments += ["--save-result", "--result-dir", "/out", "--result-filename", "bench.json"]
    run = Engine().run(
        *("run", "--rm", "--network=host", f"--volume={tokenizer}:/tokenizer:ro", f"--volume={tmp_path}:/out"),
        *(image, "vllm", "bench", "serve", *arguments),
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tokenizer mismatch" not in run.stdout, "the engine counts as its tokenizer does"
    result = json.loads((tmp_path / "bench.json").read_text())
    # It ends with 0 even when every request fails.
    assert (result["completed"], result["failed"]) == (32, 0), run.stdout
    assert result["total_output_tokens"] == 32 * 32
    assert result["total_input_tokens"] == pytest.approx(32 * 128, rel=0.1)
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert 0 < result["mean_itl_ms"] < result["mean_ttft_ms"] < result["mean_e2el_ms"]
