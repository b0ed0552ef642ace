"""The planner: what holds for every recipe, then what holds for the shipped ones."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from ascent import engines, layout, planner, rules
from ascent.errors import InputError
from tests.unit import planning_inputs as inputs

MANY = settings(max_examples=40)


def plan_of(recipe, hosts=None, **more):
    hosts = inputs.hosts(inputs.hosts_needed(recipe)) if hosts is None else hosts
    return planner.plan(recipe, inputs.hardware(), hosts, cluster="test", **more)


def by_instance(plan):
    return {
        one["name"]: [process for process in plan["processes"] if process["instance"] == one["name"]]
        for one in plan["instances"]
    }


def flags_of(process):
    return {words[0]: words[1:] for words in process["argv"]}


ENGINES = {"head", "headless", "rank", "worker", "ray-head", "ray-worker"}


@MANY
@given(inputs.recipes())
def test_ranks_tile_and_addresses_point_at_the_head(recipe):
    plan = plan_of(recipe)
    for name, members in by_instance(plan).items():
        pool = next(one for one in layout.pools_of(recipe) if one["name"] == members[0]["pool"])
        instance = next(one for one in plan["instances"] if one["name"] == name)
        head = plan["hosts"][instance["hosts"][0]]["node_ip"]
        assert {one["parallel"]["address"] for one in members} == {head}
        assert {one["parallel"]["rpc_port"] for one in members} == {members[0]["parallel"]["rpc_port"]}
        assert {one["host"] for one in members} == set(instance["hosts"])
        assert len(instance["hosts"]) == pool["nodes"]
        assert instance["processes"][0] in {one["name"] for one in members if one["health"]}
        with_devices = [one for one in members if one["devices"]]
        total = pool["tensor_parallel"] * pool["pipeline_parallel"] * pool["prefill_context_parallel"]
        assert sum(len(one["devices"]) for one in with_devices) == total * pool["data_parallel"]
        if pool["spans"]:
            assert sorted(one["parallel"]["node_rank"] for one in with_devices) == list(range(pool["nodes"]))
            assert len({len(one["devices"]) for one in with_devices}) == 1
        else:
            starts = [(one["parallel"]["start_rank"], one["parallel"]["data_local"]) for one in members]
            ranks = [rank for first, count in starts for rank in range(first, first + count)]
            assert sorted(ranks) == list(range(pool["data_parallel"]))
        for one in members:
            flags = flags_of(one)
            assert (one["kind"] in ("headless", "worker")) == ("--headless" in flags)
            assert (one["health"] is not None) == (one["kind"] in ("head", "rank"))
            assert one["kind"] == "head" or "--api-server-count" not in flags
            if "--node-rank" in flags:
                assert flags["--master-addr"] == [head]
            if one["kind"] == "rank" and pool["data_parallel"] > 1:
                assert flags["--data-parallel-rank"] == [str(one["parallel"]["start_rank"])]
            if one["kind"] == "ray-worker":
                assert flags["--address"][0].startswith(f"{head}:")


@MANY
@given(inputs.recipes())
def test_devices_and_ports_of_a_host_never_overlap(recipe):
    plan = plan_of(recipe)
    profiles = inputs.hardware()
    for name, host in plan["hosts"].items():
        mine = [one for one in plan["processes"] if one["host"] == name]
        devices = [device for one in mine for device in one["devices"]]
        assert len(devices) == len(set(devices))
        assert set(devices) <= set(range(profiles[host["hardware"]]["devices"]))
        assert sorted(devices) == host["devices"]
        ports = [
            number
            for one in mine
            for port in one["ports"]
            for number in range(port["first"], port["first"] + port["count"])
        ]
        assert len(ports) == len(set(ports))
        reserved = set()
        for text in host["reserved_ports"]:
            first, _, last = text.partition("-")
            reserved.update(range(int(first), int(last or first) + 1))
        assert set(ports) <= reserved
        sockets = [
            config["kv_connector_extra_config"]["lookup_rpc_port"]
            for one in mine
            for config in connectors_of(one)
            if config["kv_connector"] == "AscendStoreConnector"
        ]
        entries = [one for one in mine if "--kv-transfer-config" in flags_of(one)]
        instances = {one["instance"] for one in entries}
        assert len(set(sockets)) == (len(instances) if sockets else 0)


@MANY
@given(inputs.recipes())
def test_rules_that_look_at_the_finished_plan_find_nothing(recipe):
    """They reckon from the plan alone, by another way than the planner that made it."""
    hosts = inputs.hosts(inputs.hosts_needed(recipe))
    found = rules.check(recipe, inputs.hardware(), hosts, plan_of(recipe, hosts))
    wrong = {"plan-ranks", "plan-devices", "plan-addresses", "port-clash", "kv-ports-overlap", "router-backends"}
    assert [item for item in found if item["id"] in wrong or item["id"] in layout.UNSOUND] == []


@MANY
@given(inputs.recipes())
def test_each_host_gets_what_its_own_hardware_needs(recipe):
    plan = plan_of(recipe)
    profiles = inputs.hardware()
    for one in plan["processes"]:
        host = plan["hosts"][one["host"]]
        profile, container = profiles[host["hardware"]], one["container"]
        assert host["vendor"] == profile["vendor"]
        assert container["image"] == "example.org/team/engine:v0.21.0rc1" + profile["image_suffix"]
        davinci = [name for name in container["devices"] if name[len("/dev/davinci") :].isdigit()]
        seen = one["devices"] or (one["kind"] == "head")  # the server of a Ray cluster sees its node's
        assert bool(davinci) == bool(seen and profile["device_file"])
        assert bool(container["gpus"]) == bool(seen and profile.get("gpus"))
        names = {entry["name"] for entry in one["env"]}
        assert ("HCCL_IF_IP" in names) <= (profile["vendor"] == "ascend")
        assert (profile.get("visible_devices") in names) == bool(seen and profile.get("visible_devices"))


@MANY
@given(inputs.recipes())
def test_an_override_reaches_just_the_processes_it_names(recipe):
    plan = plan_of(recipe)
    for one in plan["processes"]:
        if not one["instance"] or one["kind"].startswith("ray-"):
            continue
        (override,) = recipe["pools"][one["pool"]]["overrides"] or [None]
        mine = {"instance": int(one["instance"].rpartition("-")[2]), "node": one["parallel"]["node_rank"]}
        mine["rank"] = one["parallel"]["start_rank"]
        meant = override is not None and all(override.get(key, value) == value for key, value in mine.items())
        assert flags_of(one).get(f"--{inputs.OVERRIDDEN}") == (["7"] if meant else None)


#: Layouts that the random recipes have to reach, each told by its pools and its recipe.
LAYOUTS = {
    "ray over nodes": lambda pools, _: any(one["executor"] == "ray" for one in pools),
    "mp over nodes": lambda pools, _: any(one["spans"] and one["executor"] != "ray" for one in pools),
    "pipeline stages": lambda pools, _: any(one["pipeline_parallel"] > 1 for one in pools),
    "ranks over nodes": lambda pools, _: any(one["nodes"] > 1 and one["local"] > 1 for one in pools),
    "a server for each rank over nodes": lambda pools, _: any(
        one["data_parallel_mode"] == "external" and one["nodes"] > 1 for one in pools
    ),
    "replicas on a node": lambda pools, _: any(one["instances"] > 1 < one["instances_per_node"] for one in pools),
    "pools on the same nodes": lambda pools, _: any(one["share_nodes_with"] for one in pools),
    "store beside prefill and decode": lambda pools, recipe: "kv_store" in recipe and "kv_transfer" in recipe,
    "prefill and decode on different hardware": lambda pools, recipe: (
        "kv_transfer" in recipe and len({one["hardware"] for one in pools}) > 1
    ),
    "several prefill instances, decode over nodes": lambda pools, recipe: (
        "kv_transfer" in recipe and pools[0]["instances"] > 1 and pools[-1]["nodes"] > 1
    ),
    "prefill context parallel": lambda pools, _: any(one["prefill_context_parallel"] > 1 for one in pools),
    "decode context parallel": lambda pools, _: any(one["decode_context_parallel"] > 1 for one in pools),
    "gpus": lambda pools, _: any(one["hardware"] == "h200" for one in pools),
    "no accelerators": lambda pools, _: any(one["hardware"] == "cpu" for one in pools),
    "an override": lambda pools, _: any(one["overrides"] for one in pools),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_random_recipes_reach_every_layout(name):
    settled = settings(max_examples=400, derandomize=True, database=None, phases=[Phase.generate])
    found = find(inputs.recipes(), lambda recipe: LAYOUTS[name](layout.pools_of(recipe), recipe), settings=settled)
    assert plan_of(found)["processes"]


def connectors_of(process):
    """Configurations of the connectors of a process, those inside a MultiConnector too."""
    given = flags_of(process).get("--kv-transfer-config")
    if given is None:
        return []
    config = json.loads(given[0])
    return [config, *config.get("kv_connector_extra_config", {}).get("connectors", [])]


@MANY
@given(inputs.recipes())
def test_what_starts_after_something_comes_after_it(recipe):
    plan = plan_of(recipe)
    place = {one["name"]: index for index, one in enumerate(plan["processes"])}
    for one in plan["processes"]:
        assert all(place[name] < place[one["name"]] for name in one["starts_after"])


@MANY
@given(inputs.recipes())
def test_the_plan_is_plain_json_and_its_hash_follows(recipe):
    plan = plan_of(recipe)
    assert json.loads(json.dumps(plan)) == plan
    assert plan["hash"] == planner.digest({key: value for key, value in plan.items() if key != "hash"})
    assert plan == plan_of(recipe)
    assert len({one["name"] for one in plan["processes"]}) == len(plan["processes"])
    for one in plan["processes"]:
        assert one["definition"] == planner.definition_of(one)


@MANY
@given(inputs.recipes(), st.randoms(use_true_random=False))
def test_order_of_hosts_matters_only_within_a_pool(recipe, chance):
    hosts = inputs.hosts(inputs.hosts_needed(recipe))
    first = plan_of(recipe, hosts)
    named = [{**host, "pool": first["hosts"][host["name"]]["pool"]} for host in hosts]
    # Any interleaving that keeps the order inside each pool: draw the next pool at random.
    queues = {}
    for host in named:
        queues.setdefault(host["pool"], []).append(host)
    mixed = []
    while any(queues.values()):
        mixed.append(queues[chance.choice([name for name, queue in queues.items() if queue])].pop(0))
    assert plan_of(recipe, mixed) == first


@MANY
@given(inputs.recipes())
def test_only_serving_endpoints_are_backends(recipe):
    plan = plan_of(recipe)
    router = [one for one in plan["processes"] if one["kind"] == "router"]
    assert bool(router) == ("router" in recipe)
    entries = [one for one in plan["processes"] if one["kind"] in ("head", "rank")]
    for one in router:
        flags = flags_of(one)
        words = {"--prefiller": "prefill", "--decoder": "decode"} if "kv_transfer" in recipe else {"--server": "serve"}
        for side, role in words.items():
            served = [end for item in plan["instances"] if item["role"] == role for end in item["endpoints"]]
            assert flags[f"{side}-hosts"] == [end["address"] for end in served]
            assert flags[f"{side}-ports"] == [str(end["port"]) for end in served]
        urls = {end["url"] + "/health" for item in plan["instances"] for end in item["endpoints"]}
        assert urls == {entry["health"] for entry in entries}
        assert {entry["name"] for entry in entries} <= set(one["starts_after"])
        assert plan["processes"][-1] is one


@MANY
@given(inputs.recipes())
def test_kv_sizes_and_ports_are_those_of_the_whole_instances(recipe):
    plan = plan_of(recipe)
    pools = {one["name"]: one for one in layout.pools_of(recipe)}
    last = {one["role"]: one for one in pools.values()}
    for one in plan["processes"]:
        for config in connectors_of(one):
            role = {"prefill": "kv_producer", "decode": "kv_consumer"}[one["role"]]
            assert config["kv_role"] == ("kv_both" if config["kv_connector"] == "NixlConnector" else role)
            if config["kv_connector"] != "MooncakeConnectorV1":
                assert "kv_port" not in config
                continue
            pool = last[one["role"]]
            sizes = {"dp_size": pool["data_parallel"], "tp_size": pool["tensor_parallel"]}
            if pool["pipeline_parallel"] > 1:
                sizes["pp_size"] = pool["pipeline_parallel"]
            assert config["kv_connector_extra_config"][one["role"]] == sizes
            base = int(config["kv_port"])
            spans = [
                range(port["first"], port["first"] + port["count"])
                for other in plan["processes"]
                if other["instance"] == one["instance"]
                for port in other["ports"]
                if port["name"] == "kv"
            ]
            # One port a worker, over all nodes of the instance, without a gap.
            workers = sorted(number for span in spans for number in span)
            assert workers == list(range(base, base + pools[one["pool"]]["span"]))


@MANY
@given(inputs.recipes())
def test_events_and_store_are_told_alike_everywhere(recipe):
    plan = plan_of(recipe)
    for one in plan["processes"]:
        events = [port for port in one["ports"] if port["name"] == "kv-events"]
        if one["kind"] in ENGINES and "--kv-events-config" in flags_of(one):
            config = json.loads(flags_of(one)["--kv-events-config"][0])
            base = int(config["endpoint"].rpartition(":")[2])
            ranks = one["parallel"]
            if one["kind"] != "worker":
                wanted = {"first": base + ranks["start_rank"], "count": ranks["data_local"]}
                assert events == [{"name": "kv-events", **wanted}]
            assert {"name": "PYTHONHASHSEED", "value": "0"} in one["env"]
        store = [item for item in plan["processes"] if item["kind"] == "kv-store"]
        for item in one["files"]:
            address = plan["hosts"][store[0]["host"]]["node_ip"]
            assert json.loads(item["text"])["master_server_address"] == f"{address}:{store[0]['ports'][0]['first']}"


def test_containers_get_their_devices_or_the_whole_node():
    recipe = inputs.recipe("qwen3.5-397b-a17b-w8a8-128k-a3")
    recipe["pools"] = {"serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 4}}
    first, second = plan_of(recipe)["processes"]
    names = [f"/dev/davinci{number}" for number in range(16)]
    managers = ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"]
    assert (first["devices"], first["container"]["devices"]) == ([0, 1, 2, 3], names[:4] + managers)
    # Seen alone, devices 4-7 would be numbered 0-3 inside the container.
    assert (second["devices"], second["container"]["devices"]) == ([4, 5, 6, 7], names + managers)
    assert {"name": "ASCEND_RT_VISIBLE_DEVICES", "value": "4,5,6,7"} in second["env"]
    assert [one["ports"][0]["first"] for one in (first, second)] == [8000, 8001]


def test_hosts_without_accelerators_run_the_engine_on_their_cores():
    recipe = {
        "name": "tiny",
        "model": {"id": "tiny", "source": "local", "path": "/models/tiny"},
        "engine": {"name": "vllm", "image": "example.org/vllm-cpu:v0.21.0"},
        "hardware": "cpu",
        "env": {"VLLM_CPU_KVCACHE_SPACE": 1},
        "pools": {
            "prefill": {"role": "prefill"},
            "decode": {"role": "decode", "data_parallel": 4, "nodes": 2},
        },
        "kv_transfer": {"connector": "NixlConnector", "kv_buffer_device": "cpu"},
        "kv_store": {"kind": "mooncake", "on": "prefill"},
        "router": {"kind": "vllm-router", "image": "example.org/router:v0.1.17"},
    }
    hosts = inputs.hosts(3)
    plan = plan_of(recipe, hosts)
    found = rules.check(recipe, inputs.hardware(), hosts, plan)
    assert [item for item in found if item["severity"] == "error"] == []
    engines_of = [one for one in plan["processes"] if one["instance"]]
    assert [one["devices"] for one in engines_of] == [[0], [0, 1], [0, 1]]
    for one in engines_of:
        container = one["container"]
        assert (container["devices"], container["gpus"], container["capabilities"]) == ([], None, ["SYS_NICE"])
        names = [item["name"] for item in one["env"]]
        assert not any("HCCL" in name or "VISIBLE" in name for name in names)
        assert {"GLOO_SOCKET_IFNAME", "VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST"} <= set(names)
        assert json.loads(one["files"][0]["text"])["protocol"] == "tcp"
    assert {host["vendor"] for host in plan["hosts"].values()} == {"cpu"}
    assert not any(text.startswith("60000") for host in plan["hosts"].values() for text in host["reserved_ports"])


def test_mirror_cache_and_hardware_shape_the_container():
    recipe = inputs.recipe("qwen3-235b-a22b-dp2")
    recipe["hardware"] = "atlas-800-a2"
    plan = plan_of(recipe, mirror="198.18.0.2:5000/", cache="/data/weights")
    head = plan["processes"][0]
    assert head["container"]["image"] == "198.18.0.2:5000/quay.io/ascend/vllm-ascend:v0.11.0rc2"
    assert len([name for name in head["container"]["devices"] if "davinci" in name]) == 9
    assert {"source": "/data/weights", "target": "/root/.cache", "read_only": False} in head["container"]["mounts"]
    assert plan["model"]["directory"] == "/data/weights/modelscope/hub/models/vllm-ascend/Qwen3-235B-A22B"


def test_weights_of_modelers_are_served_by_path_from_the_cache():
    recipe = inputs.recipe("qwen3-235b-a22b-dp2")
    recipe["model"] = {"id": "Modelers_Park/Qwen3-235B-A22B", "source": "modelers", "revision": "v1"}
    plan = plan_of(recipe, cache="/data/weights")
    head = plan["processes"][0]
    assert plan["model"]["directory"] == "/data/weights/modelers/Modelers_Park/Qwen3-235B-A22B"
    assert head["argv"][0] == ["vllm", "serve", "/root/.cache/modelers/Modelers_Park/Qwen3-235B-A22B"]
    assert not [line for line in head["argv"] if line[0] == "--revision"], "a directory has one revision"
    assert "VLLM_USE_MODELSCOPE" not in [item["name"] for item in head["env"]]


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_an_engine_that_loads_by_name_is_told_the_revision(source):
    recipe = inputs.recipe("qwen3-235b-a22b-dp2")
    recipe["model"] = {"id": "Qwen/Qwen3-235B-A22B", "source": source, "revision": "v1.0"}
    for process in plan_of(recipe)["processes"]:
        assert ["--revision", "v1.0"] in process["argv"]


def test_local_weights_are_served_by_path_and_mounted():
    recipe = inputs.recipe("qwen3.5-397b-a17b-w8a8-128k-a3")
    recipe["model"]["path"] = "/mnt/share/qwen"
    head = plan_of(recipe)["processes"][0]
    assert head["argv"][0] == ["vllm", "serve", "/mnt/share/qwen"]
    assert {"source": "/mnt/share/qwen", "target": "/mnt/share/qwen", "read_only": False} in head["container"]["mounts"]
    assert "VLLM_USE_MODELSCOPE" not in [item["name"] for item in head["env"]]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("enforce-eager", True, [["--enforce-eager"]]),
        ("enable-prefix-caching", False, [["--no-enable-prefix-caching"]]),
        ("disable-log-stats", False, []),
        ("max_num_seqs", 3, [["--max_num_seqs", "3"]]),
        ("compilation-config", {"a": [1, True]}, [["--compilation-config", '{"a":[1,true]}']]),
        ("cudagraph-capture-sizes", [1, 8], [["--cudagraph-capture-sizes", "1", "8"]]),
    ],
)
def test_options_are_spelled_as_the_engine_takes_them(key, value, expected):
    recipe = inputs.recipe("qwen3.5-397b-a17b-w8a8-128k-a3")
    recipe["args"] = {key: value}
    argv = plan_of(recipe)["processes"][0]["argv"]
    before = plan_of({**recipe, "args": {}})["processes"][0]["argv"]
    assert [words for words in argv if words not in before] == expected


def test_pool_options_override_in_place_and_null_takes_away():
    recipe = inputs.recipe("qwen3.5-397b-a17b-w8a8-128k-a3")
    recipe["args"] = {"seed": 1, "max_num_seqs": 2, "quantization": "ascend"}
    recipe["env"] = {"A": "1", "B": "2", "VLLM_USE_MODELSCOPE": "False"}
    recipe["pools"]["serve"].update(args={"max-num-seqs": 9, "quantization": None}, env={"A": None, "C": "/x:$C"})
    head = plan_of(recipe)["processes"][0]
    assert [words for words in head["argv"] if words[0] in ("--seed", "--max-num-seqs", "--quantization")] == [
        ["--seed", "1"],
        ["--max-num-seqs", "9"],
    ]
    assert not any("max_num" in words[0] for words in head["argv"])
    names = [item["name"] for item in head["env"]]
    assert names == ["ASCEND_RT_VISIBLE_DEVICES", "VLLM_USE_MODELSCOPE", "B", "C", "LD_PRELOAD"]
    assert {"name": "VLLM_USE_MODELSCOPE", "value": "False"} in head["env"]
    assert {"name": "C", "prepend": "/x"} in head["env"]


def test_definition_of_a_process_ignores_its_neighbours():
    recipe = inputs.recipe(inputs.PD)
    before = {one["name"]: one["definition"] for one in plan_of(recipe)["processes"]}
    recipe["pools"]["decode"]["args"]["max-num-seqs"] = 31
    after = {one["name"]: one["definition"] for one in plan_of(recipe)["processes"]}
    assert sorted(name for name in before if before[name] != after[name]) == ["decode-0-head", "decode-0-headless-1"]


def test_device_pairs_of_the_prefill_decode_recipe():
    pairs = plan_of(inputs.recipe(inputs.PD))["device_pairs"]
    assert [(pair["reason"], pair["pattern"]) for pair in pairs] == [
        ("collective", "same-position"),
        ("kv-transfer", "across"),
    ]
    assert [[one["host"] for one in group] for pair in pairs for group in pair["groups"]] == [
        ["n001", "n002"],
        ["n000"],
        ["n001", "n002"],
    ]


def test_pools_that_do_not_fit_the_hosts_raise_all_mistakes():
    hosts = inputs.hosts(2)
    hosts[1]["pool"] = "nowhere"
    with pytest.raises(InputError) as caught:
        plan_of(inputs.recipe(inputs.PD), hosts)
    assert {item["id"] for item in caught.value.findings} == {"host-pool-unknown", "hosts-too-few"}


def test_a_large_cluster_stays_one_entry_an_instance():
    recipe = inputs.recipe(inputs.PD)
    recipe["pools"]["prefill"]["instances"] = 100
    recipe["pools"]["decode"]["instances"] = 100
    hosts = inputs.hosts(300)
    random.Random(7).shuffle(hosts)
    plan = plan_of(recipe, hosts)
    assert len(plan["processes"]) == 301
    assert len(plan["device_pairs"]) == 101


@pytest.mark.parametrize(
    ("image", "suffix", "mirror", "expected"),
    [
        ("q.io/a/v:v0.21.0rc1", "-a3", "", "q.io/a/v:v0.21.0rc1-a3"),
        ("q.io/a/v:v0.18.0-openeuler", "-a3", "m.io", "m.io/q.io/a/v:v0.18.0-a3-openeuler"),
        ("q.io/a/v:v0.21.0rc1-a3", "-a3", "", "q.io/a/v:v0.21.0rc1-a3"),
        ("q.io:5000/a/v:nightly-main", "-a3", "", "q.io:5000/a/v:nightly-main"),
        ("q.io:5000/a/v", "-a3", "", "q.io:5000/a/v"),
        ("q.io/a/v:v0.21.0@sha256:00", "-a3", "", "q.io/a/v:v0.21.0@sha256:00"),
    ],
)
def test_image_references(image, suffix, mirror, expected):
    assert engines.image_for(image, suffix, mirror) == expected


def test_versions_order_as_releases_do():
    order = ["v0.8.4rc2", "v0.11.0rc1", "v0.11.0rc2", "0.11.0", "0.11.0.post1", "v0.17.0rc1-a3", "v0.21.0rc1"]
    keys = [engines.version_key(text) for text in order]
    assert None not in keys
    assert keys == sorted(keys)
    assert engines.version_key("nightly-main") is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [("v0.21.0rc1", "0.3.9"), ("v0.23.0", "0.3.11.post1"), ("v0.20.2rc1", "0.3.8.post1"), ("v0.11.0rc2", None)],
)
def test_mooncake_of_an_image(version, expected):
    assert engines.mooncake_version("vllm-ascend", version) == expected


def test_negative_forms_are_those_of_the_option_table():
    table = json.loads((inputs.ROOT / "catalog" / "engine_options" / "vllm-0.21.json").read_text())
    booleans = {option["name"].lstrip("-") for option in table["options"] if option["kind"] == "boolean"}
    assert booleans == engines.NEGATABLE


def test_options_of_several_words_are_those_of_the_option_table():
    table = json.loads((inputs.ROOT / "catalog" / "engine_options" / "vllm-0.21.json").read_text())
    several = {option["name"].lstrip("-") for option in table["options"] if option.get("nargs") in ("+", "*")}
    assert several == engines.SEVERAL_WORDS
