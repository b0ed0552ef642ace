"""The functional check against the engine simulator: silent on a sound service, and each bad habit by its id."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from library import functional_check
from tests.unit.engine_harness import ROOT, Process, free_ports, make_machine, put, serve

PROMPTS = [
    {"prompt": "The future of AI in our days is", "max_tokens": 40, "temperature": 0},
    {"kind": "chat", "prompt": "What is 7 + 5?", "max_tokens": 40, "temperature": 0, "expect": ["12"]},
]
Check = Callable[..., list[tuple[str, str, str | None]]]


class Service:
    """An endpoint, its engines, and the node's file that tells engines what to do badly."""

    def __init__(self, machine: Path, url: str, engines: list[dict[str, Any]]) -> None:
        self.machine, self.url, self.engines = machine, url, engines

    def spoil(self, order: str = "") -> None:
        put(self.machine / "usr/local/dcmi/engine-faults.json", json.dumps({"*": order} if order else {}).encode())


def engine(name: str, role: str, url: str, ranks: int = 1, **more: Any) -> dict[str, Any]:
    hosts = [f"n{rank + 1}" for rank in range(ranks)]
    known = {"name": name, "role": role, "host": "n1", "hosts": hosts, "metrics_url": f"{url}/metrics", "ranks": ranks}
    return {**known, "prefix_caching": True, "speculative": False, "max_model_len": 2048, **more}


def wait_for(processes: list[Process]) -> None:
    for process in processes:
        process.wait_for("Application startup complete")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two data parallel ranks behind one server, which also drafts tokens."""
    directory, port = tmp_path_factory.mktemp("ranks"), free_ports(4)
    argv = serve(port, "--data-parallel-size", "2", "--data-parallel-rpc-port", str(port + 1))
    argv += ["--max-model-len", "2048", "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}']
    process = Process(make_machine(directory / "machine"), argv, directory / "log", {"SIM_SPEED": "4"})
    try:
        wait_for([process])
        url = f"http://127.0.0.1:{port}"
        yield Service(directory / "machine", url, [engine("serve-0", "serve", url, 2, speculative=True)])
    finally:
        process.stop()


@pytest.fixture(scope="module", params=["MooncakeConnectorV1", "MooncakeLayerwiseConnector"])
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Prefill and decode apart, behind the connector's own proxy."""
    proxy = "layerwise_" if request.param == "MooncakeLayerwiseConnector" else ""
    directory, port = tmp_path_factory.mktemp("apart"), free_ports(30)
    machine = make_machine(directory / "machine", devices=8)
    sizes = {side: {"dp_size": 1, "tp_size": 1} for side in ("prefill", "decode")}
    started, engines = [], []
    try:
        for place, role, kind in ((1, "prefill", "kv_producer"), (2, "decode", "kv_consumer")):
            config = {"kv_connector": request.param, "kv_role": kind, "kv_port": str(port + 10 + place)}
            config |= {"engine_id": role, "kv_connector_extra_config": sizes}
            argv = serve(port + place, "--max-model-len", "2048", "--kv-transfer-config", json.dumps(config))
            env = {"ASCEND_RT_VISIBLE_DEVICES": str(place), "SIM_SPEED": "4"}
            started.append(Process(machine, argv, directory / f"{role}.log", env))
            engines.append(engine(f"{role}-0", role, f"http://127.0.0.1:{port + place}"))
        argv = [sys.executable, f"sandbox/engine/proxies/load_balance_proxy_{proxy}server_example.py"]
        argv += ["--host", "127.0.0.1"]
        argv += ["--port", str(port), "--prefiller-hosts", "127.0.0.1", "--prefiller-ports", str(port + 1)]
        argv += ["--decoder-hosts", "127.0.0.1", "--decoder-ports", str(port + 2)]
        started.append(Process(machine, argv, directory / "proxy.log", {"PYTHONPATH": str(ROOT)}))
        wait_for(started)
        yield Service(machine, f"http://127.0.0.1:{port}", engines)
    finally:
        for process in started:
            process.process.kill()
            process.process.wait()


@pytest.fixture
def check(run_module: Any) -> Check:
    def run(service: Service, order: str = "", **more: Any) -> list[tuple[str, str, str | None]]:
        service.spoil(order)
        given = {"url": service.url, "model": "tiny", "prompts": PROMPTS, "engines": service.engines, "timeout": 20}
        found = run_module(functional_check, {**given, **more})["findings"]
        assert all(one["evidence"] and one["cause"] and one["fix"] for one in found if one["severity"] != "info")
        return sorted({(one["id"], one["severity"], one["host"]) for one in found})

    return run


def test_a_sound_service_passes_more_than_once_and_soon(ranks: Service, apart: Service, check: Check):
    for service in (ranks, apart):
        began = time.monotonic()
        assert check(service, long_prompt=True) == []
        assert check(service, long_prompt=True) == []
        assert time.monotonic() - began < 60, "twice a few seconds"


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ("request:http-500", [("functional-no-answer", "error", None)]),
        ("request:empty", [("E13", "error", None)]),
        ("request:garbage", [("G01", "error", None)]),
        ("request:loop", [("G01", "error", None)]),
        ("request:foreign", [("G01", "error", None)]),
        ("request:unsteady", [("answer-not-repeatable", "error", None)]),
        ("request:lost-chunks", [("stream-differs", "error", None)]),
        ("request:other-name", [("served-name-wrong", "error", None)]),
        ("request:no-limit", [("max-tokens-ignored", "error", None)]),
        ("request:no-stop", [("stop-ignored", "error", None)]),
        ("request:no-template", [("chat-template-wrong", "error", None)]),
        ("request:long", [("long-prompt-fails", "error", None)]),
    ],
)
def test_each_bad_habit_of_an_engine_is_found(ranks: Service, check: Check, order: str, wanted: Any):
    assert check(ranks, order, long_prompt=True) == wanted


def test_a_name_that_is_not_served_is_told(ranks: Service, check: Check):
    assert check(ranks, model="other") == [("served-name-wrong", "error", None)]


def test_a_rank_that_writes_noise_is_named_with_its_host(apart: Service, ranks: Service, check: Check):
    # One of two: which of them is right, only the noise tells. Plain requests may reach either.
    found = check(ranks, "request@1:garbage")
    assert found
    assert {severity for _, severity, _ in found} == {"error"}


def test_a_kv_cache_that_stays_where_it_is_is_found(apart: Service, check: Check):
    found = check(apart, "request:recompute")
    assert ("kv-not-transferred", "error", "n1") in found
    # Where decode is asked first, nobody asks prefill then.
    assert {one for one, _, _ in found} <= {"kv-not-transferred", "instance-idle"}
