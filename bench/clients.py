"""The smoke benchmark beside two public clients: `vllm bench serve` of the real engine's image, and AIPerf.

    python bench/clients.py [--repeat 5]                         on one engine of the simulator
    python bench/clients.py --url URL --model NAME --tokenizer DIR    on a service that runs

All three put the same load on the same server, in turn, several times in an order that changes: as many streamed
completions at a time, prompts of as many random tokens, answers of exactly as many. Prints the mean of each figure
over the repeats and the ratio of ours to theirs with the range of the repeats; judges nothing. The last rows are what
the server counted while each client was at work, warm-up included: a client that differs from them is wrong, and where
they differ, the clients put another load. Figures of the simulator say nothing about hardware; here they only have to
be the same for everyone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ascent import bench  # noqa: E402
from ascent.metrics import totals  # noqa: E402
from sandbox.lib.engine import Engine, exclusive  # noqa: E402
from tests.clients.conftest import environment  # noqa: E402
from tests.unit.engine_harness import Process, free_ports, make_machine, serve  # noqa: E402

FIGURES = {
    "TTFT (ms)": "ttft_ms",
    "ITL, between chunks (ms)": "itl_ms",
    "TPOT (ms)": "tpot_ms",
    "E2E (ms)": "e2e_ms",
    "output tokens/s": "output_throughput",
    "TTFT by the server (ms)": "server_ttft_ms",
    "E2E by the server (ms)": "server_e2e_ms",
}
#: What the server itself measured; clients that put their load otherwise differ in it as well.
SERVER = {
    "server_ttft_ms": "vllm:time_to_first_token_seconds",
    "server_e2e_ms": "vllm:e2e_request_latency_seconds",
}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@dataclass(frozen=True)
class Load:
    """What each client asks of the server; lengths in tokens."""

    url: str
    model: str
    tokenizer: Path
    concurrency: int
    requests: int
    prompt: int
    answer: int


Figures = dict[str, float | None]


def ascent(load: Load, turn: int) -> Figures:
    """Our own client, as the module smoke_bench runs it."""
    result = bench.run(
        load.url,
        load.model,
        concurrency=load.concurrency,
        requests=load.requests,
        input_tokens=load.prompt,
        output_tokens=load.answer,
        seed=1000 * turn,
    )
    if result["errors"]:
        sys.exit(f"ascent: {result['error_samples']}")
    told = {name: result.get(name) for name in FIGURES.values() if name not in SERVER}
    return {name: value["mean"] if isinstance(value, dict) else value for name, value in told.items()}


def vllm(load: Load, turn: int, image: str) -> Figures:
    """`vllm bench serve` in the real engine's image."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["--backend", "vllm", "--endpoint", "/v1/completions", "--base-url", load.url]
        arguments += ["--model", load.model, "--tokenizer", "/tokenizer", "--dataset-name", "random"]
        arguments += ["--num-prompts", str(load.requests), "--num-warmups", str(load.concurrency)]
        arguments += ["--random-input-len", str(load.prompt), "--random-output-len", str(load.answer)]
        arguments += ["--max-concurrency", str(load.concurrency), "--ignore-eos", "--temperature", "0"]
        arguments += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--seed", str(turn), "--save-result"]
        arguments += ["--result-dir", "/out", "--result-filename", "bench.json"]
        run = Engine().run(
            *("run", "--rm", "--network=host", f"--volume={load.tokenizer}:/tokenizer:ro"),
            *(f"--volume={directory}:/out", image, "vllm", "bench", "serve", *arguments),
            check=False,
            timeout=600,
        )
        if run.returncode:
            sys.exit(f"vllm bench serve: {run.stdout}{run.stderr}")
        told = json.loads((Path(directory) / "bench.json").read_text())
    if told["failed"]:
        sys.exit(f"vllm bench serve: {told['failed']} requests failed")
    names = {"ttft_ms": "mean_ttft_ms", "itl_ms": "mean_itl_ms", "tpot_ms": "mean_tpot_ms", "e2e_ms": "mean_e2el_ms"}
    return {**{ours: told[theirs] for ours, theirs in names.items()}, "output_throughput": told["output_throughput"]}


def aiperf(load: Load, turn: int, hub: Path) -> Figures:
    """AIPerf in an environment of its own; ``hub`` is a cache with the tokenizer, since it wants an id of a hub."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        arguments = ["--model", load.model, "--url", load.url, "--endpoint-type", "completions", "--streaming"]
        arguments += ["--tokenizer", "bench/tokenizer", "--concurrency", str(load.concurrency)]
        arguments += ["--request-count", str(load.requests), "--warmup-request-count", str(load.concurrency)]
        arguments += ["--synthetic-input-tokens-mean", str(load.prompt), "--synthetic-input-tokens-stddev", "0"]
        arguments += ["--output-tokens-mean", str(load.answer), "--output-tokens-stddev", "0"]
        arguments += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"]
        arguments += ["--use-server-token-count", "--random-seed", str(turn), "--no-server-metrics"]
        arguments += ["--artifact-dir", str(out), "--ui", "none", "--max-workers", "1"]
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        quiet = {"HOME": directory, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "no_proxy": "*", "DO_NOT_TRACK": "1"}
        run = subprocess.run(
            [str(environment("aiperf") / "aiperf"), "profile", *arguments],
            env=keep | quiet,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if run.returncode:
            sys.exit(f"aiperf: {run.stdout}{run.stderr}")
        told = json.loads((out / "profile_export_aiperf.json").read_text())

    def mean(name: str) -> float | None:
        return float(told[name]["avg"]) if name in told else None

    return {
        "ttft_ms": mean("time_to_first_token"),
        "itl_ms": mean("inter_chunk_latency"),
        # What it calls inter token latency is the time after the first token by the number of tokens after it.
        "tpot_ms": mean("inter_token_latency"),
        "e2e_ms": mean("request_latency"),
        "output_throughput": mean("output_token_throughput"),
    }


@contextlib.contextmanager
def simulator(directory: Path) -> Iterator[str]:
    """The address of one engine of the simulator at its own pace, without a prefix cache."""
    port = free_ports(1)
    argv = serve(port, "-tp", "4", "--max-model-len", "4096", "--max-num-seqs", "64", "--no-enable-prefix-caching")
    process = Process(make_machine(directory / "machine"), argv, directory / "log", {"SIM_SPEED": "1"})
    try:
        process.wait_for("Application startup complete", 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.process.kill()
        process.process.wait()


def own_tokenizer(directory: Path) -> Path:
    """The simulator's tokenizer as clients load one."""
    directory.mkdir()
    shutil.copy(ROOT / "sandbox/engine/sim/tokenizer.json", directory)
    (directory / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 262144, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def hub_of(tokenizer: Path, directory: Path) -> Path:
    """A cache of Hugging Face's client that holds the tokenizer as `bench/tokenizer`."""
    folder = directory / "hub" / "models--bench--tokenizer"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tokenizer, folder / "snapshots" / ("0" * 40))
    return directory


@contextlib.contextmanager
def real_image() -> Iterator[str]:
    """The real engine's image, built where it is missing, and a daemon that runs it."""
    built = subprocess.run(
        [sys.executable, "sandbox/cluster.py", "build", "--real"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if built.returncode:
        sys.exit(built.stdout + built.stderr)
    (name,) = [line for line in built.stdout.splitlines() if line.startswith("ascent-sandbox/real:")]
    engine = Engine()
    with exclusive():
        started = engine.start()
    try:
        yield name
    finally:
        with exclusive():
            if started and not engine.sandboxes():
                engine.stop()


def counted(url: str) -> dict[str, tuple[float, float]]:
    """Sum in seconds and count of what the server measures of its requests."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    page = opener.open(f"{url}/metrics", timeout=10).read().decode()

    found = totals(page, [f"{metric}_{what}" for metric in SERVER.values() for what in ("sum", "count")])
    return {name: (found[f"{metric}_sum"], found[f"{metric}_count"]) for name, metric in SERVER.items()}


def beside(run: Callable[[int], Figures], url: str, turn: int) -> Figures:
    """A client's figures, and the server's of the same time."""
    before = counted(url)
    figures = run(turn)
    for name, (seconds, requests) in counted(url).items():
        more = requests - before[name][1]
        figures[name] = 1000 * (seconds - before[name][0]) / more if more else None
    return figures


def show(told: dict[str, list[Figures]], load: Load, simulated: bool) -> None:
    """The means, and our ratio to each other client in the same turn."""
    turns = len(told["ascent"])
    kind = "simulated figures" if simulated else "real figures"
    table = Table(
        "", *told, *(f"ours / {name}" for name in told if name != "ascent"),
        title=f"{load.requests} requests, {load.concurrency} at a time, {load.prompt} tokens in, {load.answer} out; "
        f"{turns} turns; {kind}",
    )  # fmt: skip
    for label, name in FIGURES.items():
        cells = []
        for client in told:
            values = [value for one in told[client] if (value := one[name]) is not None]
            cells.append(f"{statistics.mean(values):.2f}" if values else "-")
        for client in told:
            if client == "ascent":
                continue
            pairs = [(ours[name], theirs[name]) for ours, theirs in zip(told["ascent"], told[client], strict=True)]
            ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
            cells.append(f"{statistics.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "-")
        table.add_row(label, *cells)
    Console(width=160).print(table)


def main() -> None:
    """Run the clients in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a service that runs; by default one engine of the simulator is started")
    parser.add_argument("--model", default="tiny", help="its served name")
    parser.add_argument("--tokenizer", type=Path, help="directory with its tokenizer")
    parser.add_argument(
        "--image", help="an image with vllm in the sandbox's daemon, which runs; by default it is built"
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=48, help="tokens of an answer")
    given = parser.parse_args()
    if given.url and not given.tokenizer:
        parser.error("--url needs --tokenizer: the other clients count with it")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        tokenizer = given.tokenizer or own_tokenizer(directory / "tokenizer")
        url = given.url or stack.enter_context(simulator(directory))
        image = given.image or stack.enter_context(real_image())
        hub = hub_of(tokenizer, directory / "cache")
        load = Load(
            url.rstrip("/"), given.model, tokenizer.resolve(),
            given.concurrency, given.requests, given.prompt, given.answer,
        )  # fmt: skip
        clients: dict[str, Callable[[int], Figures]] = {
            "ascent": lambda turn: ascent(load, turn),
            "vllm bench": lambda turn: vllm(load, turn, image),
            "aiperf": lambda turn: aiperf(load, turn, hub),
        }
        told: dict[str, list[Figures]] = {client: [] for client in clients}
        for turn in range(given.repeat):
            order = list(clients)
            for client in order[turn % 3 :] + order[: turn % 3]:
                told[client].append(beside(clients[client], load.url, turn))
        show(told, load, simulated=bench.is_simulated([f"{load.url}/version"]))


if __name__ == "__main__":
    main()
