"""A machine of files and engine processes on loopback, for the tests of the engine simulator."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = "Eco-Tech/Tiny-MoE-w8a8"
QUICK = {"SIM_SPEED": "20", "SIM_TIMEOUT_SCALE": "0.02"}


def make_machine(root: Path, devices: int = 4, model: str = MODEL, total_size: int = 4096) -> Path:
    """Device files, CANN and driver folders and one model, below `root`."""
    for name in [f"davinci{i}" for i in range(devices)] + ["davinci_manager", "devmm_svm", "hisi_hdc"]:
        put(root / "dev" / name, b"")
    for name in ("libhccl.so", "libascendcl.so", "libatb.so"):
        put(root / "cann" / name, b"")
    put(root / "usr/local/Ascend/driver/lib64/driver/libascend_hal.so", b"")
    (root / "usr/local/dcmi/leases").mkdir(parents=True)
    folder = root / "root/.cache/modelscope/hub/models" / model
    config = {"text_config": {"num_experts": 8, "max_position_embeddings": 4096}}
    put(folder / "config.json", json.dumps(config).encode())
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {"total_size": total_size}, "weight_map": {f"w{i}": s for i, s in enumerate(shards)}}
    put(folder / "model.safetensors.index.json", json.dumps(index).encode())
    for shard in shards:
        put(folder / shard, safetensors())
    return root


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def free_ports(count: int, address: str = "127.0.0.1") -> int:
    """First of `count` ports in a row that are free now."""
    for first in range(10000 + os.getpid() * 389 % 20000, 60000, count):  # apart from those of other test workers
        held = []
        try:
            held.extend(socket.create_server((address, port)) for port in range(first, first + count))
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
        return first
    raise OSError("no free ports")


class Process:
    """One engine or proxy process and its log."""

    def __init__(self, root: Path, argv: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "SIM_", "ASCEND_"))}
        environment |= QUICK | {
            "SIM_ROOT": str(root),
            "LD_LIBRARY_PATH": str(root / "cann"),
            "VLLM_USE_MODELSCOPE": "True",
            "VLLM_HOST_IP": "127.0.0.1",
        }
        environment |= env or {}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 20) -> str:
        """Wait until the log matches; the exit of the process ends the wait too."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text()):
            assert self.process.poll() is None, f"exit {self.process.returncode} before {pattern!r}:\n{self.text()}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s:\n{self.text()}"
            time.sleep(0.02)
        return self.text()

    def exit(self, seconds: float = 20) -> int:
        """Exit status, waiting for it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.text()}") from None

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.exit(5)


@contextlib.contextmanager
def starting(root: Path, logs: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes, by default on the machine ``root``; whatever is left of them at the end is killed."""
    started: list[Process] = []

    def run(name: str, argv: list[str], machine: Path = root, **env: str) -> Process:
        started.append(Process(machine, argv, logs / f"{name}.log", env))
        return started[-1]

    try:
        yield run
    finally:
        for process in started:
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()


def vllm(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sandbox.engine.sim.cli", *arguments]


def serve(port: int, *arguments: str, host: str = "127.0.0.1") -> list[str]:
    return vllm("serve", MODEL, "--host", host, "--port", str(port), "--served-model-name", "tiny", *arguments)


def get(url: str) -> tuple[int, Any]:
    return call(urllib.request.Request(url))


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, Any]:
    data = json.dumps(body).encode()
    return call(urllib.request.Request(url, data, {"Content-Type": "application/json"} | (headers or {})))


def call(request: urllib.request.Request) -> tuple[int, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            text = answer.read().decode()
            is_json = "json" in answer.headers.get("Content-Type", "")
            return answer.status, json.loads(text or "null") if is_json else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def events(stream: str) -> list[Any]:
    """The JSON of each server-sent event; the last one has to be [DONE]."""
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def metric(page: str, name: str, **labels: str) -> float:
    """Sum of the samples of one metric that carry these labels."""
    total = 0.0
    for line in page.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total
