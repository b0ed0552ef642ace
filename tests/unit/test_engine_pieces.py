"""Parts of the engine simulator by themselves: weights, HBM leases, and what a start refuses."""

from __future__ import annotations

import json

import pytest

from sandbox.engine.sim import config as configuration
from sandbox.engine.sim import environment, proxy, weights
from sandbox.engine.sim.log import EngineError
from sandbox.engine.sim.options import load_table, make_parser
from tests.unit.engine_harness import MODEL, make_machine, put


@pytest.fixture
def machine(tmp_path, monkeypatch):
    root = make_machine(tmp_path / "machine", devices=16)
    monkeypatch.setenv("SIM_ROOT", str(root))
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "true")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(root / "cann"))
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "SIM_FAIL", "GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "HCCL_IF_IP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIM_SPEED", "1000")
    return root


TABLE = load_table()
PARSER = make_parser(TABLE, "0.21.0")


def settings(*arguments: str) -> configuration.Settings:
    return configuration.settings(PARSER.parse_args(["serve", MODEL, *arguments]), TABLE)


def refused(*arguments: str) -> str:
    with pytest.raises(EngineError) as raised:
        settings(*arguments)
    return raised.value.message


def kv(role: str = "kv_producer", name: str = "MooncakeConnectorV1", **more: object) -> str:
    sizes = {"prefill": {"dp_size": 2, "tp_size": 4}, "decode": {"dp_size": 4, "tp_size": 2}}
    base = {"kv_connector": name, "kv_role": role, "kv_port": "23010", "kv_connector_extra_config": sizes}
    return json.dumps(base | more)


@pytest.mark.parametrize("release", ["0.11.0", "0.13.0", "0.15.0", "0.17.0", "0.18.0", "0.23.0", "0.27.1", "0.32.0"])
def test_every_release_gives_the_same_engine(machine, release):
    """Options that a release lacks are read as what it does without them; those it has mean the same."""
    table = load_table(release)
    assert table["version"].rpartition(".")[0] == release.rpartition(".")[0]
    given = [
        "-tp",
        "2",
        "-dp",
        "4",
        "-dpl",
        "2",
        "--max-model-len",
        "2048",
        "--served-model-name",
        "m",
        "--enforce-eager",
    ]
    given += ["--gpu-memory-utilization", "0.9", "--api-server-count", "2"]  # their defaults differ
    parsed = make_parser(table, release).parse_args(["serve", MODEL, *given])
    assert configuration.settings(parsed, table) == settings(*given)


@pytest.mark.parametrize("release", ["0.11.0", "0.21.0"])
def test_a_headless_node_needs_no_number_of_api_servers(machine, release):
    table = load_table(release)
    given = ["serve", MODEL, "-dp", "2", "-dpl", "1", "--data-parallel-start-rank", "1", "--headless"]
    assert configuration.settings(make_parser(table, release).parse_args(given), table).api_servers == 0
    with pytest.raises(EngineError, match="cannot be used with --headless"):
        configuration.settings(make_parser(table, release).parse_args([*given, "--api-server-count", "2"]), table)


def test_nodes_share_a_rank_or_hold_ranks_of_their_own(machine):
    first = settings("--nnodes", "2", "-tp", "8", "-pp", "2", "--master-addr", "192.0.2.1", "--master-port", "6000")
    assert (first.nodes, first.node, first.world, first.local_world) == (2, 0, 16, 8)
    assert first.master == ("192.0.2.1", 6000)
    other = settings("--nnodes", "2", "--node-rank", "1", "-tp", "8", "-pp", "2", "--headless")
    assert (other.nodes, other.node, other.is_head, other.data) == (2, 1, False, 1)
    assert other.worker(0, 8) == "Worker_TP8"
    second = settings("--nnodes", "2", "--node-rank", "1", "-tp", "8", "-dp", "2", "--headless")
    assert (second.nodes, second.start_rank, second.data_local, second.local_world) == (1, 1, 1, 8)
    external = settings("--nnodes", "2", "--node-rank", "1", "-tp", "8", "-dp", "2", "--data-parallel-external-lb")
    assert (external.mode, external.ranks) == ("external", range(1, 2))


def test_where_kv_events_go(machine):
    def port(**given: object) -> int | None:
        return settings("--kv-events-config", json.dumps(given)).events_port

    assert port(enable_kv_cache_events=True) == 5557
    assert port(enable_kv_cache_events=True, publisher="zmq", endpoint="tcp://*:7000") == 7000
    assert port(enable_kv_cache_events=False, endpoint="tcp://*:7000") is None
    assert port(enable_kv_cache_events=True, publisher="null") is None
    assert port(enable_kv_cache_events=True, endpoint="ipc:///tmp/events") is None
    assert settings().events_port is None


def test_keys_of_the_speculative_configuration(machine):
    good = {"method": "mtp", "num_speculative_tokens": 2}
    assert settings("--speculative-config", json.dumps(good)).draft_tokens == 2
    told = refused("--speculative-config", json.dumps(good | {"num_speculative_token": 2}))
    assert told.startswith("1 validation error for SpeculativeConfig\nnum_speculative_token\n  Unexpected keyword")


def test_data_parallel_shapes(machine):
    head = settings("-dp", "16", "-dpl", "8", "--data-parallel-start-rank", "0", "--api-server-count", "1")
    assert (head.mode, head.ranks, head.is_head, head.api_servers) == ("internal", range(8), True, 1)
    tail = settings("-dp", "16", "-dpl", "8", "--data-parallel-start-rank", "8", "--headless")
    assert (tail.mode, tail.ranks, tail.is_head, tail.api_servers) == ("internal", range(8, 16), False, 0)
    external = settings("-dp", "4", "--data-parallel-rank", "2")
    assert (external.mode, external.ranks, external.api_servers) == ("external", range(2, 3), 1)
    assert settings("-dp", "4").api_servers == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--headless", "--api-server-count", "1"], "--api-server-count=1 cannot be used with --headless"),
        (["-dp", "2", "-dpl", "4"], "data_parallel_size_local (4) must be <= data_parallel_size (2)"),
        (["-dp", "4", "-dpl", "2", "-dpr", "3"], "data_parallel_start_rank (3) + data_parallel_size_local (2)"),
        (["--quantization", "int3"], "Unknown quantization method: int3"),
        (["--max-model-len", "5000"], "User-specified max_model_len (5000) is greater than the derived"),
        (["--max-num-seqs", "64", "--max-num-batched-tokens", "32"], "must be greater than or equal to max_num_seqs"),
        (["--additional-config", '{"recompute_scheduler_enable": true}'], "recompute_scheduler_enable is only"),
        (["--additional-config", "oops"], "Input should be a valid dictionary"),
        (["-dp", "2", "-tp", "4", "--kv-transfer-config", kv(name="Nothing")], "Unsupported connector type: Nothing"),
        (["--kv-transfer-config", kv(name="NixlConnector")], "NIXL is not available"),
        (["-dp", "4", "-tp", "4", "--kv-transfer-config", kv()], "says prefill dp_size=2 tp_size=4"),
        (["-dp", "2", "-tp", "4", "--kv-transfer-config", kv("kv_consumer")], "says decode dp_size=4 tp_size=2"),
        (
            ["-dp", "1", "-tp", "1", "--kv-transfer-config",
             kv(kv_connector_extra_config={"prefill": {"dp_size": 1, "tp_size": 1},
                                           "decode": {"dp_size": 1, "tp_size": 2}})],
            "prefill_tp_size: 1 must be greater than or equal to the decode_tp_size: 2",
        ),
        (["-dp", "2", "-tp", "4", "--kv-transfer-config", kv(kv_connector_extra_config={})], "must hold `prefill`"),
        (["--grpc"], "has no --config and no --grpc"),
        (["--nnodes", "2", "--distributed-executor-backend", "ray"], "nnodes > 1 can only be set when"),
        (["--nnodes", "3", "-tp", "4"], "world_size=4 must be divisible by nnodes=3."),
        (["--nnodes", "2", "--node-rank", "2", "-tp", "4"], "node_rank=2 must be less than nnodes=2."),
        (["--nnodes", "2", "--node-rank", "1", "-tp", "4"], "has to be --headless"),
        (["--nnodes", "4", "-tp", "4", "-dp", "2"], "spans a rank over nodes only without data parallelism"),
        (["-tp", "4", "-dcp", "3"], "tp_size=4 must be divisible by dcp_size=3"),
    ],
)  # fmt: skip
def test_impossible_combinations(machine, arguments, message):
    assert message in refused(*arguments)


def test_rope_scaling_stretches_the_context(machine):
    rope = {"rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 4096}}
    assert settings("--max-model-len", "16000", "--hf-overrides", json.dumps(rope)).max_model_len == 16000


def test_connector_inside_a_multi_connector(machine):
    store = {"kv_connector": "AscendStoreConnector", "kv_role": "kv_producer"}
    multi = {"kv_connector": "MultiConnector", "kv_role": "kv_producer",
             "kv_connector_extra_config": {"connectors": [json.loads(kv()), store]}}  # fmt: skip
    found = settings("-dp", "2", "-tp", "4", "--kv-transfer-config", json.dumps(multi)).kv
    assert found
    assert (found.connector, found.side, found.port) == ("MooncakeConnectorV1", "prefill", 23010)


def test_devices(machine, monkeypatch):
    assert environment.visible_devices() == list(range(16))
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,5")
    assert environment.visible_devices() == [4, 5]
    config = settings("-dp", "2", "-tp", "2")
    with pytest.raises(EngineError, match=r"local range: \[2, 4\)"):
        configuration.check_devices(config, environment.visible_devices())
    with pytest.raises(EngineError, match=r"World size \(4\) is larger than the number of available NPUs \(2\)"):
        configuration.check_devices(settings("-tp", "4"), environment.visible_devices())
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "15,16")
    with pytest.raises(EngineError, match="Error setting ASCEND_RT_VISIBLE_DEVICES"):
        environment.visible_devices()
    (machine / "dev/devmm_svm").unlink()
    with pytest.raises(EngineError, match="cannot open /dev/devmm_svm"):
        environment.visible_devices()


@pytest.mark.parametrize(
    ("missing", "library"),
    [
        ("cann/libhccl.so", "libhccl.so"),
        ("cann/libatb.so", "libatb.so"),
        ("usr/local/Ascend/driver/lib64/driver", "libascend_hal.so"),
        ("usr/local/dcmi", "libdcmi.so"),
    ],
)
def test_missing_libraries(machine, missing, library):
    environment.check_libraries()
    (machine / missing).rename(machine / "away")
    with pytest.raises(EngineError, match="Failed to infer device type") as raised:
        environment.check_libraries()
    assert f"ImportError: {library}: cannot open shared object file" in raised.value.lines[1]


def test_hbm_leases(machine):
    folder = machine / "usr/local/dcmi/leases"
    put(folder / "left-behind.json", json.dumps({"pid": 1, "name": "x", "devices": {"0": 60000}}).encode())
    first, second = environment.Lease(), environment.Lease()
    first.take([0, 1], 50_000, "EngineCore")
    (lease,) = [path for path in folder.glob("*.json") if path.name != "left-behind.json"]
    assert json.loads(lease.read_text())["devices"] == {"0": 50_000, "1": 50_000}
    with pytest.raises(EngineError, match="NPU out of memory") as raised:
        second.take([1, 2], 50_000, "EngineCore_DP0")
    assert "(NPU 0; 64.00 GiB total capacity" in raised.value.message
    first.release()
    second.take([1, 2], 50_000, "EngineCore_DP0")
    second.release()


def test_hbm_that_others_use(machine):
    devices = [{"phy_id": 0, "hbm_total_mb": 65536, "hbm_used_mb": 30000}]
    put(machine / "usr/local/dcmi/state.json", json.dumps({"devices": devices}).encode())
    with pytest.raises(EngineError, match="NPU out of memory"):
        environment.Lease().take([0], 56_000, "EngineCore")


def test_weights_that_do_not_fit(machine, tmp_path):
    root = make_machine(tmp_path / "big", total_size=400 * 2**30)
    (machine / "root").rename(machine / "old")
    (root / "root").rename(machine / "root")
    assert configuration.check_memory(settings("-tp", "16"), 65536)[1] > 0
    with pytest.raises(EngineError, match="No available memory for the cache blocks") as raised:
        configuration.check_memory(settings("-tp", "4"), 65536)
    assert raised.value.lines[0].startswith("Available KV cache memory: -")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(b"version https://git-lfs.example/spec/v1\n"), "HeaderTooLarge"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "MetadataIncompleteBuffer"),
        (lambda path: path.write_bytes(b"abc"), "HeaderTooSmall"),
    ],
)
def test_damaged_weights(machine, damage, message):
    model = weights.read(MODEL)
    for shard in model.shards:
        weights.load(shard, "EngineCore")
    damage(model.shards[1])
    with pytest.raises(EngineError, match=message):
        weights.load(model.shards[1], "EngineCore")


def test_model_that_is_not_there(machine, monkeypatch):
    with pytest.raises(EngineError, match="Can't load the configuration of 'no/model'"):
        weights.read("no/model")
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "False")
    with pytest.raises(EngineError, match="Can't load the configuration"):
        weights.read(MODEL)
    assert weights.read(f"/root/.cache/modelscope/hub/models/{MODEL}").is_moe


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GLOO_SOCKET_IFNAME", "eth99", "Unable to find interface for: eth99"),
        ("HCCL_SOCKET_IFNAME", "eth99", "EI0001.*get host ip fail by socket Ifname"),
        ("HCCL_IF_IP", "192.0.2.77", "EI0001.*HCCL_IF_IP"),
        ("HCCL_SOCKET_IFNAME", "=l", "EI0001"),
        ("HCCL_SOCKET_IFNAME", "l", None),
        ("GLOO_SOCKET_IFNAME", "lo", None),
        ("HCCL_IF_IP", "127.0.0.1", None),
    ],
)
def test_interfaces(machine, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    if message is None:
        environment.check_interfaces("EngineCore")
    else:
        with pytest.raises(EngineError, match=message):
            environment.check_interfaces("EngineCore")


def test_proxy_arguments():
    args = proxy.parse(
        ["--prefiller-hosts", "192.0.2.1", "--prefiller-port", "30060", "--decoder-hosts", "192.0.2.2", "192.0.2.3",
         "--decoder-ports", "1", "2", "--host", "192.0.2.1"], layerwise=True,
    )  # fmt: skip
    assert (args.prefiller_ports, args.decoder_ports) == ([30060], [1, 2])
    with pytest.raises(ValueError, match="must match number of decoder ports"):
        proxy.parse(["--decoder-hosts", "a", "b", "--decoder-ports", "1"], layerwise=False)
    with pytest.raises(ValueError, match=r"Wildcard Address 0\.0\.0\.0 is not allowed"):
        proxy.parse(["--host", "0.0.0.0"], layerwise=True)
