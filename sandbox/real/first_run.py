#!/usr/bin/env python3
"""Starts the server once on a tiny model, asks it one thing and ends it: `first_run.py MODEL_DIRECTORY`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

PORT = 18000
# A machine that builds other images meanwhile takes its time.
TIMEOUT_S = 400.0


def main() -> int:
    """Exit status 0 when the server answered."""
    import importlib

    # What only the layouts with several processes load.
    for name in ("nixl", "vllm_router.launch_router", "vllm.distributed.kv_transfer.kv_connector.v1.nixl"):
        importlib.import_module(name)
    command = ["vllm", "serve", sys.argv[1], "--host", "127.0.0.1", "--port", str(PORT), "--served-model-name", "tiny"]
    with subprocess.Popen(
        [*command, "--max-model-len", "512", "--enforce-eager", "--dtype", "float32"], start_new_session=True
    ) as server:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while server.poll() is None and time.monotonic() < deadline:
                try:
                    print(ask(), flush=True)
                    return 0
                except urllib.error.URLError:
                    time.sleep(1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
    print(f"the server did not answer within {TIMEOUT_S:.0f} s, or ended", file=sys.stderr)
    return 1


def ask() -> str:
    """The answer to one prompt. Raises URLError while the server does not listen yet."""
    body = json.dumps({"model": "tiny", "prompt": "Hello", "max_tokens": 4}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 -- our own server, by http
        return json.load(answer)["choices"][0]["text"]


if __name__ == "__main__":
    sys.exit(main())
