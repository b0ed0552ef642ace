"""Offline inference: `LLM` as a program uses it, around a server of its own on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_START_SECONDS = 600


class SamplingParams:
    """Sampling parameters of a request; what they may be is the server's business."""

    def __init__(self, **values: Any) -> None:
        self.values = values


@dataclass
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    text: str
    finish_reason: str | None


@dataclass
class RequestOutput:
    """A prompt and its answers."""

    prompt: str
    outputs: list[CompletionOutput]


class LLM:
    """An engine that lives as long as this object."""

    def __init__(self, model: str, **options: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        argv = [sys.executable, "-m", "sandbox.engine.sim.cli", "serve", model, "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--served-model-name", "offline"]
        for name, value in options.items():
            argv += _option(name, value)
        self._url = f"http://127.0.0.1:{port}"
        self._ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._server: subprocess.Popen[bytes] | None = subprocess.Popen(argv)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._server is not None and (status := self._server.poll()) is not None:
                raise RuntimeError(f"Engine core initialization failed. The engine ended with status {status}.")
            with contextlib.suppress(OSError), self._ask(f"{self._url}/health", timeout=5):
                return
            time.sleep(0.2)
        raise RuntimeError(f"Engine core initialization failed. It was not ready within {_START_SECONDS} seconds.")

    def generate(self, prompts: Sequence[str], sampling_params: SamplingParams | None = None) -> list[RequestOutput]:
        """The answers, in the order of the prompts."""
        body = {"model": "offline", "prompt": list(prompts), **(sampling_params.values if sampling_params else {})}
        request = urllib.request.Request(  # noqa: S310 - its own server
            f"{self._url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._ask(request, timeout=_START_SECONDS) as answer:
                choices = json.load(answer)["choices"]
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode("utf-8", "replace")) from error
        each = len(choices) // len(prompts)
        return [
            RequestOutput(
                prompt,
                [
                    CompletionOutput(index, one["text"], one["finish_reason"])
                    for index, one in enumerate(choices[number * each : (number + 1) * each])
                ],
            )
            for number, prompt in enumerate(prompts)
        ]

    def close(self) -> None:
        """End the engine, which gives its memory back."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None

    def __del__(self) -> None:
        if getattr(self, "_server", None) is not None:
            self.close()


def _option(name: str, value: Any) -> list[str]:
    """A keyword argument as the server's option."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else [f"--no-{flag[2:]}"]
    return [flag, json.dumps(value) if isinstance(value, dict | list) else str(value)]
