"""Layouts of engine processes beside the internal data-parallel group: nodes of one rank, and ports of a group."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.engine_harness import Process, free_ports, get, make_machine, post, serve, vllm

Start = Callable[..., Process]
PROMPT = {"model": "tiny", "prompt": "one two three", "max_tokens": 4}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_machine(tmp_path / "machine", devices=4)


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    running: list[Process] = []

    def begin(name: str, argv: list[str], **env: str) -> Process:
        running.append(Process(root, argv, tmp_path / f"{name}.log", env))
        return running[-1]

    yield begin
    for process in running:
        process.process.kill()
        process.process.wait()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_one_rank_over_two_nodes(start: Start):
    """The first node serves when the workers of the second are there, and neither lives without the other."""
    api = free_ports(2)
    common = ["-tp", "4", "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(api + 1)]
    first = start("first", serve(api, *common), ASCEND_RT_VISIBLE_DEVICES="0,1", SIM_TIMEOUT_SCALE="1")
    first.wait_for("Graph capturing finished")
    assert "Application startup complete" not in first.text()
    with pytest.raises(OSError, match=r"."):
        get(f"http://127.0.0.1:{api}/health")
    other = start("other", [*serve(api, *common, "--node-rank", "1"), "--headless"], ASCEND_RT_VISIBLE_DEVICES="2,3")
    other.wait_for("Workers of this node are ready")
    assert f"headless multiproc executor, with head node address 127.0.0.1:{api + 1}" in other.text()
    first.wait_for("Application startup complete")
    assert post(f"http://127.0.0.1:{api}/v1/completions", PROMPT)[0] == 200
    other.process.kill()
    assert first.exit() == 1
    assert "EngineDeadError" in first.text()
    assert "the workers of node 1 are gone" in first.text()


def test_nodes_that_differ_do_not_join(start: Start):
    api = free_ports(2)
    common = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(api + 1)]
    first = start("first", serve(api, "-tp", "4", *common), ASCEND_RT_VISIBLE_DEVICES="0,1", SIM_TIMEOUT_SCALE="0.001")
    other = start("other", [*serve(api, "-tp", "2", "-pp", "2", *common, "--node-rank", "1"), "--headless"],
                  ASCEND_RT_VISIBLE_DEVICES="2,3")  # fmt: skip
    assert other.exit() == 1
    assert "does not fit this group: tensor_parallel_size, pipeline_parallel_size" in other.text()
    assert first.exit() == 1
    assert "DistStoreError: Timed out after 1801 seconds waiting for clients. 2/4 clients joined." in first.text()
    taken = socket.create_server(("127.0.0.1", api + 1))
    with taken:
        again = start("again", serve(api, "-tp", "4", *common), ASCEND_RT_VISIBLE_DEVICES="0,1")
        assert again.exit() == 1
    assert "DistNetworkError: The server socket has failed to listen" in again.text()
    assert "EADDRINUSE" in again.text()


def test_a_group_binds_every_port_it_has(start: Start):
    """Events of each rank, and the coordinator's and the rendezvous port of the head; a taken one ends the start."""
    first = free_ports(8)
    events = json.dumps({"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{first + 4}"})
    group = ["-dp", "2", "-dpl", "1", "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port"]
    group += [str(first + 1), "--kv-events-config", events]
    head = start("head", serve(first, *group, "--api-server-count", "1"), ASCEND_RT_VISIBLE_DEVICES="0",
                 VLLM_DP_MASTER_PORT=str(first + 2))  # fmt: skip
    tail = start("tail", [*serve(first, *group, "--data-parallel-start-rank", "1"), "--headless"],
                 ASCEND_RT_VISIBLE_DEVICES="1")  # fmt: skip
    head.wait_for("Application startup complete")
    assert [listening(first + n) for n in range(7)] == [True, True, True, False, True, True, False]
    assert head.stop() == 0
    assert tail.exit() == 1
    with socket.create_server(("", first + 4)):
        refused = start("refused", serve(first, "--kv-events-config", events))
        assert refused.exit() == 1
    assert f"zmq.error.ZMQError: Address already in use (addr='tcp://*:{first + 4}')" in refused.text()


def test_the_release_of_the_image_is_the_one_that_is_simulated(start: Start):
    port = free_ports(1)
    old = start("old", serve(port, "--rope-scaling", "{}", "--guided-decoding-backend", "auto"), SIM_VERSION="0.11.0")
    old.wait_for("Application startup complete")
    assert "vLLM API server version 0.11.0" in old.text()
    assert "argument '--guided-decoding-backend' is deprecated" in old.text()
    assert get(f"http://127.0.0.1:{port}/version")[1]["version"] == "0.11.0"
    new = start("new", serve(port, "--rope-scaling", "{}"), SIM_VERSION="0.18.0")
    assert new.exit() == 2
    assert "unrecognized arguments: --rope-scaling" in new.text()
    assert start("version", vllm("--version"), SIM_VERSION="0.23.0").exit() == 0
