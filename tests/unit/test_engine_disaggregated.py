"""Prefill and decode apart: instances that come and go, and what clients see when one of them fails."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine_harness import (
    ROOT,
    Process,
    events,
    free_ports,
    get,
    make_machine,
    metric,
    post,
    put,
    serve,
    starting,
)

Start = Callable[..., Process]
PLAIN, LAYERWISE = "MooncakeConnectorV1", "MooncakeLayerwiseConnector"
SCRIPTS = {PLAIN: "load_balance_proxy_server_example.py", LAYERWISE: "load_balance_proxy_layerwise_server_example.py"}
PROMPT = {"model": "tiny", "prompt": "The future of AI is", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_machine(tmp_path / "machine", devices=8)


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    """Start processes; whatever is left of them is stopped at the end."""
    with starting(root, tmp_path) as run:
        yield run


class Cluster:
    """Engines of one device each and a proxy, on ports in a row."""

    def __init__(self, start: Start, connector: str) -> None:
        self.start, self.connector, self.first = start, connector, free_ports(30)
        self.engines: dict[str, Process] = {}
        self.url = f"http://127.0.0.1:{self.first}"

    def engine(self, name: str, place: int, **env: str) -> Process:
        """An engine on device and port `place`; its name says its role."""
        role = "kv_producer" if name.startswith("prefill") else "kv_consumer"
        sizes = {side: {"dp_size": 1, "tp_size": 1} for side in ("prefill", "decode")}
        config = {"kv_connector": self.connector, "kv_role": role, "kv_port": str(self.first + 10 + place),
                  "engine_id": name, "kv_connector_extra_config": sizes}  # fmt: skip
        limits = ["--max-num-seqs", "64", "--max-num-batched-tokens", "128", "--no-enable-prefix-caching"]
        argv = serve(self.first + place, *limits, "--kv-transfer-config", json.dumps(config))
        self.engines[name] = self.start(name, argv, **{"ASCEND_RT_VISIBLE_DEVICES": str(place)} | env)
        return self.engines[name]

    def proxy(self, prefill: list[int], decode: list[int], *more: str) -> Process:
        """The connector's proxy in front of engines at these places."""

        def side(name: str, places: list[int]) -> list[str]:
            return [f"--{name}-hosts", *["127.0.0.1"] * len(places), f"--{name}-ports",
                    *[str(self.first + place) for place in places]]  # fmt: skip

        argv = [sys.executable, f"sandbox/engine/proxies/{SCRIPTS[self.connector]}", "--host", "127.0.0.1",
                "--port", str(self.first), *side("prefiller", prefill), *side("decoder", decode), *more]  # fmt: skip
        process = self.start("proxy", argv, PYTHONPATH=str(ROOT))
        for one in (*self.engines.values(), process):
            one.wait_for("Application startup complete")
        return process

    def at(self, place: int) -> str:
        return f"http://127.0.0.1:{self.first + place}"

    def count(self, place: int, name: str, **labels: str) -> float:
        return metric(get(f"{self.at(place)}/metrics")[1], f"vllm:{name}", **labels)

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def kill(process: Process) -> None:
    process.process.kill()
    process.process.wait()


def test_plain_instances_come_and_go(start: Start):
    cluster = Cluster(start, PLAIN)
    cluster.engine("prefill-1", 1)
    cluster.engine("decode-1", 3, SIM_SPEED="4")
    proxy = cluster.proxy([1], [3], "--waiting-retry-interval", "0.1", "--max-waiting-retries", "2")
    assert get(f"{cluster.url}/healthcheck")[1] == {
        "status": "ok", "prefill_instances": 1, "decode_instances": 1, "request_num": 0,
    }  # fmt: skip

    second = f"127.0.0.1:{cluster.first + 2}"
    asked = {"type": "prefill", "instances": [second]}
    message = post(f"{cluster.url}/instances/add", asked)[1]["message"]
    assert message == f"Instances ['{second}'] are waiting to be added."
    proxy.wait_for(f"Instance {second} was not added to the proxy.")
    cluster.engine("prefill-2", 2).wait_for("Application startup complete")
    post(f"{cluster.url}/instances/add", {"type": "prefill", "instances": second})
    cluster.wait(lambda: get(f"{cluster.url}/healthcheck")[1]["prefill_instances"] == 2)

    bodies = [PROMPT | {"prompt": f"Prompt {number}", "max_tokens": 40} for number in range(6)]
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda b=b: answers.append(post(f"{cluster.url}/v1/completions", b)))
               for b in bodies]  # fmt: skip
    for thread in threads:
        thread.start()
    cluster.wait(lambda: get(f"{cluster.url}/healthcheck")[1]["request_num"] > 3)
    first = f"127.0.0.1:{cluster.first + 1}"
    told = post(f"{cluster.url}/instances/remove", {"type": "prefill", "instances": [first]})[1]
    assert "isolated and waiting to be removed" in told["message"]
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 6
    assert all(answer["usage"]["completion_tokens"] == 40 for _, answer in answers)
    served = [cluster.count(place, "request_success_total", finished_reason="length") for place in (1, 2)]
    assert sum(served) == 6
    assert min(served) > 0, "the load was spread"
    cluster.wait(lambda: get(f"{cluster.url}/healthcheck")[1]["prefill_instances"] == 1)
    told = post(f"{cluster.url}/instances/remove", {"type": "decode", "instances": ["127.0.0.1:1"]})[1]
    assert told["current_prefill_instances"] == [second]
    assert "not supported" in post(f"{cluster.url}/instances/add", {"type": "router", "instances": []})[1]["error"]


def test_plain_failures(start: Start):
    cluster = Cluster(start, PLAIN)
    prefill, decode = cluster.engine("prefill", 1), cluster.engine("decode", 2)
    proxy = cluster.proxy([1], [2])
    status, answer = post(f"{cluster.url}/v1/completions", PROMPT | {"kv_transfer_params": {"do_remote_decode": True}})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 12)

    several = post(f"{cluster.url}/v1/completions", PROMPT | {"n": 3, "temperature": 1})[1]
    assert (len(several["choices"]), several["usage"]["completion_tokens"]) == (3, 36), "all from one prefill's KV"

    # What prefill refuses is the proxy's own failure: three attempts, then 500 in plain text.
    with pytest.raises(json.JSONDecodeError):
        post(f"{cluster.url}/v1/completions", PROMPT | {"model": "other"})
    assert proxy.text().count("Attempt") == 3
    assert "does not exist" in proxy.text()

    kill(decode)
    assert post(f"{cluster.url}/v1/completions", PROMPT) == (200, None), "an answer without anything in it"
    assert "Error during streaming from decoder" in proxy.text()
    assert cluster.count(1, "kv_cache_usage_perc") > 0, "nobody fetched the KV"

    kill(prefill)
    with pytest.raises(json.JSONDecodeError):
        post(f"{cluster.url}/v1/completions", PROMPT)


def test_kv_that_nobody_fetches_is_given_up(start: Start):
    cluster = Cluster(start, PLAIN)
    prefill = cluster.engine("prefill", 1, VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT="30")  # 0.6 s in this test's time
    decode = cluster.engine("decode", 2)
    for process in (prefill, decode):
        process.wait_for("Application startup complete")
    wanted = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}, "max_tokens": 1}
    params = post(f"{cluster.at(1)}/v1/completions", PROMPT | wanted)[1]["kv_transfer_params"]
    assert (params["do_remote_prefill"], params["remote_port"]) == (True, cluster.first + 11)
    assert params["num_prompt_blocks"] == len(params["remote_block_ids"][0]) == 1
    prefill.wait_for("Force freed expired request: cmpl-")
    assert cluster.count(1, "kv_cache_usage_perc") == 0
    late = post(f"{cluster.at(2)}/v1/completions", PROMPT | {"kv_transfer_params": params})
    assert late[0] == 500
    assert "is held here" in decode.text()
    nobody = params | {"remote_port": cluster.first + 29}
    assert post(f"{cluster.at(2)}/v1/completions", PROMPT | {"kv_transfer_params": nobody})[0] == 500
    assert f"Failed to connect to target 127.0.0.1:{cluster.first + 29}" in decode.text()
    assert cluster.count(2, "request_success_total", finished_reason="error") == 2


def test_a_request_can_be_computed_again_where_its_kv_was_lost(start: Start, tmp_path: Path):
    port = free_ports(4)
    sizes = {side: {"dp_size": 1, "tp_size": 1} for side in ("prefill", "decode")}
    config = {"kv_connector": PLAIN, "kv_role": "kv_consumer", "kv_port": str(port + 1),
              "kv_load_failure_policy": "recompute", "kv_connector_extra_config": sizes}  # fmt: skip
    start("decode", serve(port, "--kv-transfer-config", json.dumps(config))).wait_for("Application startup complete")
    params = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": port + 3, "remote_request_id": "x"}
    status, answer = post(f"http://127.0.0.1:{port}/v1/completions", PROMPT | {"kv_transfer_params": params})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 12)


def test_layerwise_failures(start: Start):
    cluster = Cluster(start, LAYERWISE)
    prefill = cluster.engine("prefill", 1)
    decode = cluster.engine("decode", 2, VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT="20")  # 0.4 s in this test's time
    proxy = cluster.proxy([1], [2])
    streamed = events(post(f"{cluster.url}/v1/completions", PROMPT | {"stream": True})[1])
    assert sum(len(chunk["choices"][0]["text"]) > 0 for chunk in streamed) >= 11
    assert cluster.count(2, "prompt_tokens_by_source_total", source="external_kv_transfer") == 5

    kill(prefill)
    assert post(f"{cluster.url}/v1/completions", PROMPT) == (200, None)
    assert "Post metaserver failed with" in proxy.text()
    assert "no answer in time" in decode.text()
    direct = {"do_remote_prefill": True, "metaserver": f"{cluster.at(9)}/v1/metaserver"}
    assert post(f"{cluster.at(2)}/v1/completions", PROMPT | {"kv_transfer_params": direct})[0] == 500
    assert decode.text().count("Failed to connect to metaserver.") == 3


def test_tls_switches_that_differ(start: Start, root: Path, tmp_path: Path):
    """Two nodes whose devices differ in their TLS switch: the first transfer fails, and works after the repair."""
    cluster, other = Cluster(start, PLAIN), tmp_path / "other"
    shutil.copytree(root, other)

    def switch(machine: Path, enabled: bool) -> None:
        devices = [{"phy_id": d, "hbm_total_mb": 65536, "hbm_used_mb": 0, "roce": {"tls": {"enabled": enabled}}}
                   for d in range(8)]  # fmt: skip
        put(machine / "usr/local/dcmi/state.json", json.dumps({"devices": devices}).encode())

    switch(root, False)
    switch(other, True)
    cluster.engine("prefill", 1, machine=root)
    decode = cluster.engine("decode", 2, machine=other)
    cluster.proxy([1], [2])
    assert post(f"{cluster.url}/v1/completions", PROMPT) == (200, None)
    assert "103900" in decode.text()
    switch(other, False)
    assert post(f"{cluster.url}/v1/completions", PROMPT)[1]["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("connector", [PLAIN, LAYERWISE])
def test_an_engine_that_dies_in_the_middle(start: Start, connector: str):
    """Decode dies while it streams: the stream ends early. Prefill dies while it computes: nothing comes."""
    cluster = Cluster(start, connector)
    slow = {"SIM_SPEED": "2", "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "20"}
    prefill, decode = cluster.engine("prefill", 1, **slow), cluster.engine("decode", 2, **slow)
    proxy = cluster.proxy([1], [2])
    answers: list[Any] = []

    def ask(**more: object) -> threading.Thread:
        def run() -> None:
            try:
                answers.append(post(f"{cluster.url}/v1/completions", PROMPT | more))
            except json.JSONDecodeError:
                answers.append("no JSON")

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    streaming = ask(stream=True, max_tokens=2000)
    cluster.wait(lambda: cluster.count(2, "generation_tokens_total") > 3)
    kill(decode)
    streaming.join()
    status, text = answers.pop()
    assert status == 200
    assert text.count("data: {") > 3
    assert "[DONE]" not in text

    cluster.engine("decode", 2, **slow).wait_for("Application startup complete")
    waiting = ask(prompt="word " * 3900)
    cluster.wait(lambda: cluster.count(1, "num_requests_running") > 0)
    kill(prefill)
    waiting.join()
    assert answers == (["no JSON"] if connector == PLAIN else [(200, None)])
    assert "failed" in proxy.text()
