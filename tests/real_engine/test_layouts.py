"""The real engine over two servers: two data parallel ranks; prefill and decode with NIXL. Part of `make test-all`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.deployment import Deployment
from tests.conformance.running import holds
from tests.conformance.suite import CHECKS, layouts
from tests.real_engine.driver import Road, reachable, sandbox

CLUSTER = "cpu-pair"
#: The source of vllm-ascend's load_balance_proxy_server_example.py, which can't be had from a package registry.
PROXY_VARIABLE = "ASCENT_VLLM_ASCEND_PROXY"
#: A Python with fastapi, httpx and uvicorn for it, where this one lacks them.
PYTHON_VARIABLE = "ASCENT_VLLM_ASCEND_PROXY_PYTHON"
CONTROLLER = "127.0.0.1"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """Two bare servers, fresh for this module, and gone after it."""
    sandbox("down", CLUSTER)
    sandbox("up", CLUSTER)
    yield Road(CLUSTER, tmp_path_factory.mktemp("runs"))
    sandbox("down", CLUSTER)


def test_two_ranks(road: Road) -> None:
    served = road.deploy("tiny-dp2", ranks=2)
    for check in [*CHECKS, *layouts(served)]:
        holds(check, served)
    road.play("playbooks/stop.yml", "-e", "recipe=tiny-dp2")


def test_a_collective_of_the_engines_own_torch(road: Road) -> None:
    """Gloo over both servers in the image that `test_two_ranks` has brought, as the fabric gate runs it."""
    wanted = {"recipe": "tiny-dp2", "verify": "force", "fabric_torch": "force"}
    road.play("deploy.yml", "--tags", "verify", *(word for key in wanted for word in ("-e", f"{key}={wanted[key]}")))
    verdict = road.stage("verify")
    assert not [one for one in verdict["findings"] if one["severity"] == "error" or one["id"] == "torch-skipped"]
    assert set(verdict["metrics"]["torch_collective"]) == {"serve-0"}
    trials = road.stage("fabric_facts")["torch"]
    assert {host: [one["outcome"] for one in told.values()] for host, told in trials.items()} == {
        "cpu-11": ["ok"],
        "cpu-12": ["ok"],
    }


def test_prefill_and_decode(road: Road) -> None:
    served = road.deploy("tiny-pd")
    for check in layouts(served):
        holds(check, served)
    # The router's own answers are not the engine's: decode serves by itself what is sent to it.
    for check in CHECKS:
        holds(check, replace(served, url=served.engines["decode"]))
    if PROXY_VARIABLE in os.environ:
        behind_the_proxy_of_vllm_ascend(served, Path(os.environ[PROXY_VARIABLE]))
    road.play("playbooks/stop.yml", "-e", "recipe=tiny-pd")


def behind_the_proxy_of_vllm_ascend(served: Deployment, source: Path) -> None:
    """The same two engines, asked through the real proxy, which runs on this machine with the packages it needs."""
    hosts = {role: url.removeprefix("http://").split(":") for role, url in served.engines.items()}
    with socket.create_server((CONTROLLER, 0)) as probe:
        port = probe.getsockname()[1]
    command = [os.environ.get(PYTHON_VARIABLE, sys.executable), str(source), "--host", CONTROLLER, "--port", str(port)]
    for side, role in (("prefiller", "prefill"), ("decoder", "decode")):
        command += [f"--{side}-hosts", hosts[role][0], f"--{side}-ports", hosts[role][1]]
    with subprocess.Popen(command) as proxy:
        try:
            deadline = time.monotonic() + 60
            while not reachable(f"http://{CONTROLLER}:{port}/healthcheck"):
                assert proxy.poll() is None, f"{source} ended with {proxy.returncode}"
                assert time.monotonic() < deadline, f"{source} does not answer"
                time.sleep(0.5)
            through = replace(served, url=f"http://{CONTROLLER}:{port}")
            for check in layouts(through):
                check(through)
        finally:
            proxy.terminate()
