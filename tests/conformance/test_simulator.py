"""The suite on the engine simulator: one server, one with a key, two ranks over two processes, prefill and decode."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.conformance.deployment import Deployment
from tests.conformance.running import all_checks, holds
from tests.conformance.suite import Check, check_log_phases, check_metric_ranks, layout_key, layouts
from tests.unit.engine_harness import ROOT, Process, free_ports, make_machine, serve, starting

LENGTH = 2048
COMMON = ("--max-model-len", str(LENGTH), "--enable-prompt-tokens-details", "--seed", "1024")
PROXY = "sandbox/engine/proxies/load_balance_proxy_server_example.py"
Start = Callable[..., Process]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts processes on one machine of files; all are stopped at the end."""
    root = make_machine(tmp_path_factory.mktemp("machine"), devices=6)
    logs = tmp_path_factory.mktemp("logs")
    with starting(root, logs) as run:
        yield run


def simulated(processes: Mapping[str, Process], port: int, **more: object) -> Deployment:
    """The deployment of processes that are ready."""
    url = f"http://127.0.0.1:{port}"
    values = {"engines": {"serve": url}, "max_model_len": LENGTH, "differences": "simulator"} | more
    return Deployment(url, "tiny", logs=lambda: {name: each.text() for name, each in processes.items()}, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def single(start: Start) -> Deployment:
    """One server."""
    port = free_ports(1)
    server = start("server", serve(port, *COMMON), ASCEND_RT_VISIBLE_DEVICES="0")
    server.wait_for("Application startup complete")
    return simulated({"server": server}, port)


@pytest.fixture(scope="module")
def pair(start: Start) -> Deployment:
    """A head and a headless process, one rank in each."""
    first = free_ports(2)
    group = [*COMMON, "-dp", "2", "-dpl", "1", "-dpa", "127.0.0.1", "-dpp", str(first + 1)]
    member = [*group, "--headless", "--data-parallel-start-rank", "1"]
    processes = {
        "head": start("head", serve(first, *group), ASCEND_RT_VISIBLE_DEVICES="2"),
        "headless": start("headless", serve(first, *member), ASCEND_RT_VISIBLE_DEVICES="3", VLLM_HOST_IP="127.0.0.2"),
    }
    processes["head"].wait_for("Application startup complete")
    return simulated(processes, first, ranks=2)


@pytest.fixture(scope="module")
def split(start: Start) -> Deployment:
    """Prefill and decode behind a proxy."""
    first = free_ports(5)
    ports = dict(zip(("prefill", "decode", "proxy"), range(first, first + 3), strict=True))
    processes = {}
    for number, (role, kind) in enumerate((("prefill", "kv_producer"), ("decode", "kv_consumer"))):
        sizes = {side: {"dp_size": 1, "tp_size": 1} for side in ("prefill", "decode")}
        transfer = {"kv_connector": "MooncakeConnectorV1", "kv_role": kind, "kv_port": str(first + 3 + number)}
        config = json.dumps(transfer | {"engine_id": role, "kv_connector_extra_config": sizes})
        argv = serve(ports[role], *COMMON, "--no-enable-prefix-caching", "--kv-transfer-config", config)
        processes[role] = start(role, argv, ASCEND_RT_VISIBLE_DEVICES=str(number + 4))
    for process in processes.values():
        process.wait_for("Application startup complete")
    engines = [f"--{side}-{what}" for side in ("prefiller", "decoder") for what in ("hosts", "ports")]
    values = ["127.0.0.1", str(ports["prefill"]), "127.0.0.1", str(ports["decode"])]
    argv = [sys.executable, PROXY, "--host", "127.0.0.1", "--port", str(ports["proxy"])]
    argv += [word for option in zip(engines, values, strict=True) for word in option]
    start("proxy", argv, PYTHONPATH=str(ROOT)).wait_for("startup complete")
    urls = {role: f"http://127.0.0.1:{ports[role]}" for role in ("prefill", "decode")}
    return simulated(processes, ports["proxy"], engines=urls)


@all_checks
def test_conformance(check: Check, single: Deployment) -> None:
    holds(check, single)


def test_key(start: Start) -> None:
    port = free_ports(1)
    server = start("locked", serve(port, *COMMON, "--api-key", "secret"), ASCEND_RT_VISIBLE_DEVICES="1")
    server.wait_for("Application startup complete")
    served = simulated({"locked": server}, port, api_key="secret")
    layout_key(served)
    server.stop()


def test_ranks(pair: Deployment) -> None:
    for check in (*layouts(pair), check_metric_ranks, check_log_phases):
        holds(check, pair)


def test_prefill_and_decode(split: Deployment) -> None:
    for check in layouts(split):
        holds(check, split)
