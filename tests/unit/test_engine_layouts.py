"""Layouts of engine processes beside the internal data-parallel group: nodes of one rank, and ports of a group."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.engine.sim import config as configuration
from sandbox.engine.sim.options import load_table, make_parser
from sandbox.engine.sim.ray_executor import NodeWorkers, Part, parts, twice_addressed
from tests.unit.engine_harness import MODEL, Process, free_ports, get, make_machine, post, put, serve, starting, vllm

Start = Callable[..., Process]
PROMPT = {"model": "tiny", "prompt": "one two three", "max_tokens": 4}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_machine(tmp_path / "machine", devices=4)


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    with starting(root, tmp_path) as run:
        yield run


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


def test_parts_of_a_placement_group():
    """Bundles come in any order; each node is one part, from its first bundle on."""
    assert parts({3: "b", 0: "a", 1: "a", 2: "b", 4: "b"}) == [Part("a", 0, 2), Part("b", 2, 3)]
    assert twice_addressed({"a": "192.0.2.1", "b": "192.0.2.2"}) is None
    told = twice_addressed({"a": "192.0.2.1", "b": "192.0.2.1"})
    assert told is not None
    assert "Got 2 nodes with node ids ['a', 'b'] and 1 unique IP addresses ['192.0.2.1']" in told


def test_workers_of_a_ray_node_take_memory_and_read_weights(root: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"SIM_ROOT": str(root), "VLLM_USE_MODELSCOPE": "true", "VLLM_HOST_IP": "192.0.2.9"}.items():
        monkeypatch.setenv(name, value)
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "HCCL_IF_IP"):
        monkeypatch.delenv(name, raising=False)
    table = load_table()
    arguments = ["serve", MODEL, "-tp", "4", "--distributed-executor-backend", "ray"]
    settings = configuration.settings(make_parser(table, "0.21.0").parse_args(arguments), table)
    assert settings.ray
    workers = NodeWorkers()
    assert workers.address() == "192.0.2.9"
    assert workers.load(settings, 4)["left"] > 0
    (lease,) = (root / "usr/local/dcmi/leases").glob("*.json")
    assert sorted(json.loads(lease.read_text())["devices"]) == ["0", "1", "2", "3"]
    second = NodeWorkers().load(settings, 4)
    assert second["error"]["message"].startswith("NPU out of memory")
    workers.lease.release()
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0")
    assert (
        "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES is not set"
        in (NodeWorkers().load(settings, 4)["error"]["message"])
    )
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES")
    next((root / "root").rglob("*00002.safetensors")).unlink()
    lost = NodeWorkers()
    assert lost.load(settings, 4)["error"]["kind"] == "FileNotFoundError"
    lost.lease.release()


def test_without_ray_in_the_image_the_executor_says_so(start: Start, tmp_path: Path):
    put(tmp_path / "without/ray.py", b"raise ModuleNotFoundError(\"No module named 'ray'\")\n")
    arguments = serve(free_ports(1), "-tp", "2", "--distributed-executor-backend", "ray")
    server = start("server", arguments, PYTHONPATH=str(tmp_path / "without"))
    assert server.exit() == 1
    assert "Failed to import Ray" in server.text()
