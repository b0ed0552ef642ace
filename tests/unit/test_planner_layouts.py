"""Layouts in the words of the engines: what each has that the others have not."""

from __future__ import annotations

import ast
import json
import re

import pytest

from ascent import layout, planner, references
from ascent.errors import InputError
from tests.unit import planning_inputs as inputs

BASE = {
    "name": "example",
    "model": {"id": "org/model", "served_name": "m"},
    "engine": {"name": "vllm-ascend", "image": "example.org/vllm-ascend:v0.21.0rc1"},
    "hardware": "atlas-800-a3",
}
SPLIT = {
    "pools": {
        "prefill": {"role": "prefill", "tensor_parallel": 8},
        "decode": {"role": "decode", "tensor_parallel": 4, "data_parallel": 4},
    },
    "kv_transfer": {"connector": "MooncakeConnectorV1"},
    "router": {"kind": "pd"},
}


def plan_of(hosts=None, **recipe):
    recipe = {**BASE, **recipe}
    hosts = inputs.hosts(inputs.hosts_needed(recipe)) if hosts is None else hosts
    return planner.plan(recipe, inputs.hardware(), hosts, cluster="test")


def processes(plan):
    return {one["name"]: one for one in [*plan["processes"], *plan["jobs"]]}


def flags_of(process):
    return {words[0]: words[1:] for words in process["argv"]}


def env_of(process):
    return {item["name"]: item.get("value", item.get("prepend")) for item in process["env"]}


def config_of(process):
    return json.loads(flags_of(process)["--kv-transfer-config"][0])


def test_a_server_for_every_rank():
    plan = plan_of(
        pools={"serve": {"nodes": 2, "tensor_parallel": 4, "data_parallel": 4, "data_parallel_mode": "external"}},
        router={"kind": "replicas"},
    )
    found = processes(plan)
    assert list(found) == [*(f"serve-0-rank-{rank}" for rank in range(4)), "router"]
    for rank in range(4):
        one = found[f"serve-0-rank-{rank}"]
        flags = flags_of(one)
        assert (one["kind"], one["host"]) == ("rank", f"n00{rank // 2}")
        assert one["devices"] == list(range(rank % 2 * 4, rank % 2 * 4 + 4))
        assert env_of(one)["ASCEND_RT_VISIBLE_DEVICES"] == ",".join(map(str, one["devices"]))
        assert flags["--port"] == [str(8000 + rank % 2)]
        assert flags["--data-parallel-rank"] == [str(rank)]
        assert (flags["--data-parallel-size"], flags["--data-parallel-address"]) == (["4"], ["198.18.0.1"])
        assert not {"--data-parallel-size-local", "--data-parallel-start-rank", "--headless"} & set(flags)
        assert one["starts_after"] == ([] if rank == 0 else ["serve-0-rank-0"])
    flags = flags_of(found["router"])
    assert flags["--server-hosts"] == ["198.18.0.1", "198.18.0.1", "198.18.0.2", "198.18.0.2"]
    assert flags["--server-ports"] == ["8000", "8001", "8000", "8001"]
    assert len(plan["instances"][0]["endpoints"]) == 4
    assert plan["device_pairs"][0]["groups"] == [
        [{"host": name, "devices": list(range(8))} for name in ("n000", "n001")]
    ]


def test_a_rank_over_nodes_with_the_engines_own_executor():
    plan = plan_of(pools={"serve": {"nodes": 2, "tensor_parallel": 8, "pipeline_parallel": 2, "master_port": 5000}})
    head, worker = plan["processes"]
    assert (head["kind"], worker["kind"], worker["health"]) == ("head", "worker", None)
    for number, one in enumerate((head, worker)):
        flags = flags_of(one)
        assert flags["--distributed-executor-backend"] == ["mp"]
        assert (flags["--nnodes"], flags["--node-rank"]) == (["2"], [str(number)])
        assert (flags["--master-addr"], flags["--master-port"]) == (["198.18.0.1"], ["5000"])
        assert one["devices"] == list(range(8))
    assert "--headless" in flags_of(worker)
    assert not {"--headless", "--data-parallel-address"} & set(flags_of(head))


def test_a_rank_over_nodes_with_ray():
    plan = plan_of(pools={"serve": {"nodes": 2, "tensor_parallel": 16, "executor": "ray"}})
    ray, worker, head = plan["processes"]
    assert [one["kind"] for one in plan["processes"]] == ["ray-head", "ray-worker", "head"]
    assert flags_of(ray)["--port"] == ["6379"]
    assert {"--head", "--block"} <= set(flags_of(ray))
    assert flags_of(worker)["--address"] == ["198.18.0.1:6379"]
    assert flags_of(worker)["--node-ip-address"] == ["198.18.0.2"]
    assert flags_of(worker)["--resources"] == ['{"NPU":8}']
    assert flags_of(head)["--distributed-executor-backend"] == ["ray"]
    assert "--nnodes" not in flags_of(head)
    assert head["devices"] == []
    assert head["starts_after"] == ["serve-0-ray-head", "serve-0-ray-worker-1"]
    assert head["wait"]["shows"] == "/16.0 NPU"
    assert head["wait"]["argv"] == ["ray", "status", "--address=198.18.0.1:6379"]
    for one in (ray, worker, head):
        assert env_of(one)["RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"] == "1"
    shared = [mount["source"] for mount in head["container"]["mounts"] if mount["target"] == "/tmp/ray"]
    assert shared == [mount["source"] for mount in ray["container"]["mounts"] if mount["target"] == "/tmp/ray"]
    assert plan["instances"][0]["processes"][0] == "serve-0-head"
    assert shared[0] in plan["hosts"]["n000"]["directories"]


def test_context_parallel_sizes_count_as_devices():
    plan = plan_of(pools={"serve": {"tensor_parallel": 4, "prefill_context_parallel": 2, "decode_context_parallel": 4}})
    head = plan["processes"][0]
    assert len(head["devices"]) == 8
    assert flags_of(head)["--prefill-context-parallel-size"] == ["2"]
    assert flags_of(head)["--decode-context-parallel-size"] == ["4"]


def test_pools_on_the_same_nodes_have_devices_and_ports_apart():
    plan = plan_of(
        pools={
            "prefill": {"role": "prefill", "instances": 4, "instances_per_node": 2, "tensor_parallel": 4},
            "decode": {"role": "decode", "instances": 2, "tensor_parallel": 4, "share_nodes_with": "prefill"},
        },
        kv_transfer={"connector": "MooncakeConnectorV1"},
        router={"kind": "pd"},
    )
    found = processes(plan)
    assert [found[f"decode-{n}-head"]["host"] for n in (0, 1)] == ["n000", "n001"]
    assert found["decode-1-head"]["devices"] == [8, 9, 10, 11]
    assert found["decode-1-head"]["ports"][0] == {"name": "api", "first": 8100, "count": 1}
    assert plan["hosts"]["n000"]["pool"] == "prefill"
    assert plan["hosts"]["n000"]["pools"] == ["prefill", "decode"]
    assert plan["hosts"]["n000"]["devices"] == list(range(12))


def test_prefill_and_decode_on_different_hardware():
    hosts = inputs.hosts(2)
    pools = {name: dict(pool) for name, pool in SPLIT["pools"].items()}
    pools["prefill"]["hardware"] = "atlas-800-a2"
    plan = plan_of(hosts, **{**SPLIT, "pools": pools})
    found = processes(plan)
    assert found["prefill-0-head"]["container"]["image"].endswith(":v0.21.0rc1")
    assert found["decode-0-head"]["container"]["image"].endswith(":v0.21.0rc1-a3")
    assert len(plan["engine"]["images"]) == 2
    assert plan["hosts"]["n000"]["hardware"] == "atlas-800-a2"
    # Hosts that say what they are find their pool in any order of the inventory.
    hosts[0]["hardware"], hosts[1]["hardware"] = "atlas-800-a3", "atlas-800-a2"
    turned = plan_of(hosts, **{**SPLIT, "pools": {**pools, "decode": {**pools["decode"], "hardware": "atlas-800-a3"}}})
    assert {name: host["pool"] for name, host in turned["hosts"].items()} == {"n000": "decode", "n001": "prefill"}


def test_transfer_and_store_together():
    plan = plan_of(
        **{
            **SPLIT,
            "kv_transfer": {
                "connector": "MultiConnector",
                "kv_load_failure_policy": "recompute",
                "connectors": [
                    {"connector": "MooncakeConnectorV1", "extra": {"use_ascend_direct": True}},
                    {"connector": "AscendStoreConnector", "extra": {"backend": "mooncake"}},
                ],
            },
            "kv_store": {
                "kind": "mooncake",
                "port": 5000,
                "metrics_port": 5001,
                "args": {"default_kv_lease_ttl": 11000, "enable_offload": False},
                "config": {"global_segment_size": "40GB", "local_hostname": "{{ plan.node_ip }}"},
            },
        }
    )
    found = processes(plan)
    assert next(iter(found)) == "kv-store"
    assert found["kv-store"]["argv"] == [
        ["mooncake_master"],
        ["--port", "5000"],
        ["--metrics_port", "5001"],
        ["--default_kv_lease_ttl", "11000"],
        ["--enable_offload", "false"],
    ]
    assert found["kv-store"]["health"] == "http://198.18.0.1:5001/health"
    decode = found["decode-0-head"]
    config = config_of(decode)
    assert (config["kv_connector"], config["kv_role"]) == ("MultiConnector", "kv_consumer")
    assert config["kv_load_failure_policy"] == "recompute"
    direct, store = config["kv_connector_extra_config"]["connectors"]
    assert direct["kv_port"] == "63000"
    assert direct["kv_connector_extra_config"] == {
        "use_ascend_direct": True,
        "prefill": {"dp_size": 1, "tp_size": 8},
        "decode": {"dp_size": 4, "tp_size": 4},
    }
    assert store["kv_connector_extra_config"] == {"backend": "mooncake", "lookup_rpc_port": "0"}
    written = json.loads(decode["files"][0]["text"])
    assert written["master_server_address"] == "198.18.0.1:5000"
    assert (written["local_hostname"], written["protocol"]) == ("198.18.0.2", "ascend")
    assert env_of(decode)["MOONCAKE_CONFIG_PATH"] == decode["files"][0]["path"]
    assert decode["starts_after"] == ["kv-store"]


def test_a_router_that_knows_what_is_cached_where():
    plan = plan_of(
        args={"block-size": 128},
        pools={"serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 4, "data_parallel": 2}},
        kv_events={"topic": "kv-events"},
        router={"kind": "vllm-router", "policy": "kv-aware", "args": {"kv-penalty-external": 0.6}},
    )
    words = processes(plan)["router"]["argv"]
    assert words == [
        ["vllm-router"],
        ["--worker-urls", "http://198.18.0.1:8000", "http://198.18.0.1:8001"],
        ["--kv-event-source", "http://198.18.0.1:8000=tcp://198.18.0.1:5557,tcp://198.18.0.1:5558"],
        ["--kv-event-source", "http://198.18.0.1:8001=tcp://198.18.0.1:5559,tcp://198.18.0.1:5560"],
        ["--kv-event-block-size", "128"],
        ["--kv-event-model", "org/model"],
        ["--policy", "kv_aware"],
        ["--host", "198.18.0.1"],
        ["--port", "9000"],
        ["--kv-penalty-external", "0.6"],
    ]
    assert json.loads(flags_of(processes(plan)["serve-1-head"])["--kv-events-config"][0]) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5559",
        "topic": "kv-events",
    }


def dynamo(**more):
    return {
        "engine": {"name": "dynamo", "image": "example.org/vllm-runtime:1.3.1"},
        "hardware": "h200",
        "model": {"id": "Qwen/Qwen3-32B", "source": "huggingface"},
        "pools": {
            "prefill": {"role": "prefill", "instances": 6, "instances_per_node": 3, "tensor_parallel": 2},
            "decode": {
                "role": "decode",
                "instances": 2,
                "tensor_parallel": 2,
                "share_nodes_with": "prefill",
                "kv_events": False,
                "args": {"enable-prefix-caching": False},
            },
        },
        "kv_transfer": {"connector": "NixlConnector"},
        "kv_events": {"topic": "kv-events"},
        "services": {"etcd": {"kind": "discovery", "command": ["etcd"], "ports": {"client": 2379}}},
        "router": {"kind": "dynamo", "port": 8000, "policy": "kv-aware", "args": {"router-reset-states": True}},
        **more,
    }


def test_dynamo_workers_behind_its_frontend():
    plan = plan_of(**dynamo())
    found = processes(plan)
    assert [one["kind"] for one in plan["processes"]] == ["discovery", *["worker"] * 8, "frontend"]
    one = found["prefill-1-worker"]
    assert one["argv"][:3] == [
        ["python3", "-m", "dynamo.vllm"],
        ["--model", "Qwen/Qwen3-32B"],
        ["--disaggregation-mode", "prefill"],
    ]
    assert config_of(one) == {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    # Inside a container devices are numbered from 0, and the variable holds the host's numbers.
    first = found["prefill-0-worker"]
    assert (env_of(first)["CUDA_VISIBLE_DEVICES"], first["container"]["gpus"]) == ("0,1", "device=0,1")
    env = env_of(one)
    assert env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert env["ETCD_ENDPOINTS"] == "http://198.18.0.1:2379"
    assert (env["DYN_SYSTEM_PORT"], env["DYN_TCP_RPC_PORT"]) == ("8082", "9082")
    assert (env["VLLM_NIXL_SIDE_CHANNEL_HOST"], env["VLLM_NIXL_SIDE_CHANNEL_PORT"]) == ("198.18.0.1", "5602")
    assert not [name for name in env if "HCCL" in name]
    assert one["health"] == "http://198.18.0.1:8082/health"
    assert (one["source"], one["container"]["gpus"], one["container"]["ipc"]) == ([], "all", "host")
    assert "/dev/infiniband" in one["container"]["devices"]
    assert not {"--host", "--port"} & set(flags_of(one))
    decode = found["decode-1-worker"]
    assert "--kv-events-config" not in flags_of(decode)
    assert "--no-enable-prefix-caching" in flags_of(decode)
    assert env_of(decode)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert found["frontend"]["argv"] == [
        ["python3", "-m", "dynamo.frontend"],
        ["--router-mode", "kv"],
        ["--http-host", "198.18.0.1"],
        ["--http-port", "8000"],
        ["--router-reset-states"],
    ]
    assert plan["endpoint"] == {"url": "http://198.18.0.1:8000", "process": "frontend"}
    assert plan["instances"][0]["endpoint"] is None


def test_dynamo_on_one_host_meets_in_a_directory():
    pools = {"serve": {"instances": 4, "instances_per_node": 4, "tensor_parallel": 2}}
    given = dynamo(pools=pools, router={"kind": "dynamo"}, services={}, kv_events=None, kv_transfer=None)
    found = processes(plan_of(**given))
    for name in ("serve-3-worker", "frontend"):
        env = env_of(found[name])
        assert env["DYN_DISCOVERY_BACKEND"] == "file"
        assert env["DYN_FILE_KV"] in [mount["target"] for mount in found[name]["container"]["mounts"]]


def test_vllm_on_gpus_has_nothing_of_npus():
    plan = plan_of(
        engine={"name": "vllm", "image": "example.org/vllm:v0.21.0"},
        hardware="h200",
        pools={"serve": {"nodes": 2, "tensor_parallel": 8, "data_parallel": 2}},
    )
    head = plan["processes"][0]
    assert head["source"] == []
    assert env_of(head)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert not [name for name in env_of(head) if "HCCL" in name or "ASCEND" in name]
    assert head["container"]["gpus"] == "all"
    assert not [path for path in head["container"]["devices"] if "davinci" in path]
    assert not any("60000" in text for text in plan["hosts"]["n000"]["reserved_ports"])


def test_a_container_on_the_bridge_network_publishes_its_ports():
    plan = plan_of(
        pools={"serve": {"tensor_parallel": 4, "port": 8113}},
        container={"network": "bridge", "privileged": True, "mounts": ["/data:/data:ro"]},
    )
    head = plan["processes"][0]
    assert flags_of(head)["--host"] == ["0.0.0.0"]
    assert (head["container"]["network"], head["container"]["publish"]) == ("bridge", [8113])
    assert {"source": "/data", "target": "/data", "read_only": True} in head["container"]["mounts"]
    assert head["health"] == "http://198.18.0.1:8113/health"


def test_overrides_reach_only_what_they_name():
    plan = plan_of(
        args={"seed": 1, "max-num-seqs": 2},
        pools={
            "serve": {
                "instances": 2,
                "nodes": 2,
                "data_parallel": 2,
                "overrides": [
                    {"instance": 1, "args": {"max_num_seqs": 9, "seed": None}},
                    {"instance": [0, 1], "node": 1, "env": {"X": "{{ plan.host_index }}"}},
                    {"instance": 1, "node": 0, "env": {"Y": "1"}},
                ],
            }
        },
    )
    found = processes(plan)
    assert {name: flags_of(one).get("--seed") for name, one in found.items()} == {
        "serve-0-head": ["1"],
        "serve-0-headless-1": ["1"],
        "serve-1-head": None,
        "serve-1-headless-1": None,
    }
    assert flags_of(found["serve-1-head"])["--max_num_seqs"] == ["9"]
    assert {name: (env_of(one).get("X"), env_of(one).get("Y")) for name, one in found.items()} == {
        "serve-0-head": (None, None),
        "serve-0-headless-1": ("1", None),
        "serve-1-head": (None, "1"),
        "serve-1-headless-1": ("3", None),
    }


def test_services_and_references():
    plan = plan_of(
        pools={"serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 2}},
        kv_events=True,
        kv_store={"kind": "mooncake"},
        services={
            "redis": {"kind": "metadata", "command": ["redis-server"], "image": "r:1", "ports": {"main": 6379}},
            "index": {
                "kind": "indexer",
                "command": ["indexer", "{{ plan.kv_event_sources }}"],
                "args": {"store": "{{ plan.kv_store_address }}", "all": "{{ plan.api_urls }}"},
                "files": {"/etc/i.yml": "at: {{ plan.service.redis }}\n"},
                "ports": {"http": 8090},
                "health": "/health",
                "starts": "after",
            },
        },
        router={"kind": "replicas", "args": {"index": "http://{{ plan.service.index }}"}},
    )
    assert [one["name"] for one in plan["processes"]] == [
        "kv-store", "redis", "serve-0-head", "serve-1-head", "index", "router",
    ]  # fmt: skip
    found = processes(plan)
    assert found["index"]["argv"] == [
        [
            "indexer",
            "http://198.18.0.1:8000=tcp://198.18.0.1:5557",
            "http://198.18.0.1:8001=tcp://198.18.0.1:5558",
        ],
        ["--store", "198.18.0.1:50088"],
        ["--all", "http://198.18.0.1:8000,http://198.18.0.1:8001"],
    ]
    assert found["index"]["files"] == [{"path": "/etc/i.yml", "text": "at: 198.18.0.1:6379\n"}]
    assert found["index"]["health"] == "http://198.18.0.1:8090/health"
    assert flags_of(found["router"])["--index"] == ["http://198.18.0.1:8090"]
    assert found["redis"]["container"]["image"] == "r:1"
    assert found["serve-0-head"]["starts_after"] == ["kv-store", "redis"]


def test_jobs_are_told_model_and_endpoint():
    plan = plan_of(
        pools={"serve": {"tensor_parallel": 4, "port": 8113, "args": {"max-model-len": 5500}}},
        jobs={
            "bench": {"tool": "vllm-bench", "args": {"model": "m", "num-prompts": 200, "ignore-eos": True}},
            "trace": {"tool": "aiperf", "args": {"extra-inputs": ["ignore_eos:true", "min_tokens:128"]}},
            "quality": {"tool": "lm-eval", "args": {"model_args": {"tokenizer": "t"}, "tasks": "gsm8k"}},
            "accuracy": {"tool": "ais-bench", "args": {"mode": "all"}},
            "hello": {"tool": "command", "command": ["curl", "{{ plan.endpoint_url }}/v1/models"], "image": "c:1"},
        },
    )
    assert [one["name"] for one in plan["processes"]] == ["serve-0-head"]
    found = processes(plan)
    assert found["bench"]["argv"] == [
        ["vllm", "bench", "serve"],
        ["--model", "m"],
        ["--served-model-name", "m"],
        ["--host", "198.18.0.1"],
        ["--port", "8113"],
        ["--num-prompts", "200"],
        ["--ignore-eos"],
    ]
    assert found["trace"]["argv"] == [
        ["aiperf", "profile"],
        ["--model", "m"],
        ["--url", "http://198.18.0.1:8113"],
        ["--extra-inputs", "ignore_eos:true", "min_tokens:128"],
    ]
    assert flags_of(found["quality"])["--model_args"] == [
        "model=m,base_url=http://198.18.0.1:8113/v1/completions,tokenizer=t"
    ]
    assert found["accuracy"]["argv"] == [["ais_bench"], ["--mode", "all"]]
    assert found["hello"]["argv"] == [["curl", "http://198.18.0.1:8113/v1/models"]]
    assert found["hello"]["container"]["restart_policy"] == "no"
    assert all(one["kind"] == "job" and one["devices"] == [] for one in plan["jobs"])


def test_offline_inference_needs_no_server():
    plan = plan_of(
        model={"id": "org/model", "path": "/model/M"},
        args={"trust-remote-code": True, "quantization": "ascend"},
        pools={"offline": {"role": "offline", "tensor_parallel": 4, "executor": "mp", "args": {"max-model-len": 5500}}},
        jobs={"hello": {"tool": "offline", "prompts": ["it's"], "sampling": {"top_k": 40}, "args": {"seed": None}}},
    )
    assert plan["processes"] == []
    assert plan["endpoint"] is None
    job = plan["jobs"][0]
    assert job["devices"] == [0, 1, 2, 3]
    assert plan["hosts"]["n000"]["devices"] == [0, 1, 2, 3]
    assert env_of(job)["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3"
    assert job["argv"] == [["python3", "/etc/ascent/hello.py"]]
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(job["files"][0]["text"]).body
        if isinstance(node, ast.Assign)
    }
    assert values == {
        "PROMPTS": ["it's"],
        "SAMPLING": {"top_k": 40},
        "ENGINE": {
            "model": "/model/M",
            "tensor_parallel_size": 4,
            "distributed_executor_backend": "mp",
            "trust_remote_code": True,
            "quantization": "ascend",
            "max_model_len": 5500,
        },
    }


@pytest.mark.parametrize(
    ("recipe", "rule", "key"),
    [
        ({"pools": {"a": {"nodes": 2, "tensor_parallel": 3}}}, "rank-spans-nodes", "pools.a.nodes"),
        (
            {"pools": {"a": {"nodes": 2, "data_parallel": 2, "executor": "ray"}}},
            "rank-spans-nodes",
            "pools.a.executor",
        ),
        (
            {"pools": {"a": {"nodes": 2, "tensor_parallel": 2, "data_parallel_mode": "external"}}},
            "rank-spans-nodes",
            "pools.a.data_parallel_mode",
        ),
        (
            {"pools": {"a": {"tensor_parallel": 4, "decode_context_parallel": 3}}},
            "context-parallel-tiles",
            "pools.a.decode_context_parallel",
        ),
        ({"pools": {"a": {}, "b": {"share_nodes_with": "c"}}}, "pool-shares-nodes", "pools.b.share_nodes_with"),
        (
            {"pools": {"a": {}, "b": {"share_nodes_with": "a", "instances": 2}}},
            "pool-shares-nodes",
            "pools.b.instances",
        ),
        (
            {"pools": {"a": {"tensor_parallel": 16}, "b": {"share_nodes_with": "a"}}},
            "devices-too-few",
            "pools.b.share_nodes_with",
        ),
        (
            {"pools": {"a": {"overrides": [{"instance": 1, "args": {}}]}}},
            "override-matches-nothing",
            "pools.a.overrides.0.instance",
        ),
        ({"pools": {"a": {}}, "jobs": {"j": {"tool": "aiperf", "on": "b"}}}, "router-pool-unknown", "jobs.j.on"),
        ({"pools": {"a": {}}, "router": {"kind": "dynamo"}}, "router-fits-engine", "router.kind"),
        (
            {"pools": {"a": {}}, "router": {"kind": "replicas", "policy": "random"}},
            "router-fits-engine",
            "router.policy",
        ),
        (
            {"pools": {"a": {}}, "jobs": {"router": {"tool": "aiperf"}}},
            "process-name-twice",
            "jobs.router",
        ),
        ({"pools": {"a": {}}, "jobs": {"a-0-head": {"tool": "aiperf"}}}, "process-name-twice", "jobs.a-0-head"),
        ({"pools": {"a": {}}, "env": {"X": "{{ plan.nod_ip }}"}}, "plan-reference-unknown", "env.X"),
        (
            {"pools": {"a": {}}, "router": {"kind": "replicas", "args": {"x": "{{ plan.rank }}"}}},
            "plan-reference-unknown",
            "router.args.x",
        ),
        ({**dynamo(services={})}, "discovery-missing", "services"),
    ],
)
def test_what_has_no_layout_is_refused_with_its_key(recipe, rule, key):
    with pytest.raises(InputError) as caught:
        plan_of(**recipe)
    hits = [item for item in caught.value.findings if item["id"] == rule]
    assert hits, caught.value.findings
    assert f": {key} = " in hits[0]["evidence"]
    assert hits[0]["fix"]
    assert rule in layout.UNSOUND


def test_every_reference_that_is_documented_has_a_value():
    names = [name.replace("NAME", "redis") for name, _, _ in references.documented()]
    plan = plan_of(
        pools={
            "first": {"role": "prefill", "env": {f"V{i}": "{{ plan." + name + " }}" for i, name in enumerate(names)}},
            "last": {"role": "decode"},
        },
        kv_transfer={"connector": "MooncakeConnectorV1"},
        kv_events=True,
        kv_store={"kind": "mooncake"},
        services={"redis": {"kind": "metadata", "command": ["redis-server"], "ports": {"main": 6379}}},
        router={"kind": "pd"},
    )
    env = env_of(processes(plan)["first-0-head"])
    values = {name: env[f"V{i}"] for i, name in enumerate(names)}
    assert all(value and "{{" not in value for value in values.values())
    assert values["endpoint_url"] == "http://198.18.0.1:9000"
    assert (values["head_ip"], values["instance"], values["kv_port"]) == ("198.18.0.1", "first-0", "61000")
    assert re.fullmatch(r"http://198\.18\.0\.1:8000,http://198\.18\.0\.2:8000", values["api_urls"])


@pytest.mark.parametrize(("version", "stated"), [("v0.21.0rc1", True), ("v0.22.0", False), ("v0.32.0", False)])
def test_newer_engines_take_a_start_rank_of_the_head_for_another_kind_of_balancing(version, stated):
    plan = plan_of(
        engine={**BASE["engine"], "image": f"quay.io/ascend/vllm-ascend:{version}"},
        pools={"serve": {"nodes": 2, "tensor_parallel": 8, "data_parallel": 2}},
    )
    head, headless = (flags_of(one) for one in plan["processes"])
    assert ("--data-parallel-start-rank" in head) == stated
    assert headless["--data-parallel-start-rank"] == ["1"]
