"""Hosts and how pools lie on them: addresses, devices, ranks."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Dict, Iterator, List, Mapping, Set, Tuple

from .. import layout, planner
from ..mistakes import mistake
from .registry import Context, Mistake, Rule, check

_DP = "vLLM documentation, Data Parallel Deployment"
_TUTORIAL = "vLLM-Ascend tutorial Qwen3.5-397B-A17B"


@check(
    Rule(
        "host-twice",
        "error",
        "each host is in the cluster once",
        "two entries for one machine would get two sets of ranks",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "host-address-twice",
        "error",
        "no two hosts share node_ip or ansible_host",
        "one of the two nodes would never be reached",
        "Ascent",
        rows=("P-NET2",),
        waivable=False,
    ),
)
def hosts_unique(context: Context) -> Iterator[Mistake]:
    seen: Dict[Tuple[str, str], str] = {}
    names: Set[str] = set()
    for host in context.hosts:
        if host["name"] in names:
            yield mistake(
                "host-twice",
                f"host {host['name']} is in the cluster twice",
                key=f"host:{host['name']}",
                value=host["name"],
                allowed="each host once",
                fix="remove one of the two",
                host=host["name"],
            )
        names.add(host["name"])
        for variable in ("node_ip", "ansible_host"):
            address = host.get(variable)
            if not address:
                continue
            other = seen.setdefault((variable, str(address)), host["name"])
            if other != host["name"]:
                yield mistake(
                    "host-address-twice",
                    f"{other} and {host['name']} have the same {variable} {address}",
                    key=f"host:{host['name']}.{variable}",
                    value=address,
                    allowed=f"an address that no other host has ({other} has this one)",
                    fix=f"correct {variable} of {host['name']} or of {other}",
                    host=host["name"],
                )


@check(
    Rule(
        "host-address-missing",
        "error",
        "every host has node_ip",
        "ranks, routers and HCCL meet at that address",
        "HCCL documentation, HCCL_IF_IP",
        rows=("P-NET2",),
        waivable=False,
    ),
    Rule(
        "host-nic-missing",
        "error",
        "every host of a layout over nodes, or with KV transfer, has nic",
        "HCCL, Gloo and the tensor parallel group take the first interface they find unless told",
        "HCCL documentation, HCCL_SOCKET_IFNAME",
        rows=("P-NET2",),
        waivable=False,
    ),
    Rule(
        "host-arch-missing",
        "error",
        "hosts have arch where jemalloc is preloaded",
        "its path inside the image depends on the architecture",
        "vLLM-Ascend tutorial Qwen3-Dense",
        waivable=False,
    ),
    Rule(
        "hardware-unknown",
        "error",
        "the hardware profile exists",
        "devices, image suffix and mounts come from it",
        "catalog/hardware",
        waivable=False,
    ),
    Rule(
        "dp-ranks-tile",
        "error",
        "data_parallel is a multiple of nodes",
        "every node runs the same number of ranks, so that start ranks cover the whole without gap",
        _DP,
        rows=("P-DP1", "P-DP6"),
        waivable=False,
    ),
    Rule(
        "instance-shares-nodes",
        "error",
        "an instance over several nodes has them to itself",
        "two such instances on one host would need the same place in the order of nodes",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "rank-spans-nodes",
        "error",
        "a rank over several nodes has one rank's worth of devices on each, and its executor fits: Ray for one rank, "
        "one server per rank only where no rank spans nodes",
        "every node holds an equal part of its tensor and pipeline parallel workers",
        "vLLM documentation, Parallelism and Scaling; vLLM-Ascend, Ray guide",
        rows=("C8",),
        waivable=False,
    ),
    Rule(
        "context-parallel-tiles",
        "error",
        "decode_context_parallel divides tensor_parallel",
        "decode context parallelism reuses the devices of the tensor parallel group",
        "vLLM documentation, Context Parallel Deployment",
        waivable=False,
    ),
    Rule(
        "pool-shares-nodes",
        "error",
        "a pool shares the nodes of an earlier pool that has nodes of its own, and needs no more of them",
        "its instances lie on the devices after those of the other",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "override-matches-nothing",
        "error",
        "the instances, nodes and ranks that an override names exist",
        "an override without processes would be lost in silence",
        "Ascent",
        rows=("C21",),
        waivable=False,
    ),
    Rule(
        "router-pool-unknown",
        "error",
        "router, store, services and jobs run on a pool that exists",
        "they run on that pool's first host",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "router-fits-engine",
        "error",
        "Dynamo's workers stand behind Dynamo's frontend and no other engine does; the router knows its policy",
        "its workers have no API of their own",
        "Dynamo documentation, dynamo.vllm",
        rows=("D8", "D10"),
        waivable=False,
    ),
    Rule(
        "discovery-missing",
        "error",
        "Dynamo over several hosts has a discovery service",
        "files and memory are seen on one host only",
        "Dynamo documentation, discovery backends",
        scope="dynamo",
        waivable=False,
    ),
    Rule(
        "process-name-twice",
        "error",
        "services and jobs have names that no other process has",
        "each process has files of its name on its host",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "plan-reference-unknown",
        "error",
        "references to plan values are known where they stand",
        "an unknown one would reach the engine as text",
        "Ascent",
        waivable=False,
    ),
)
def layout_sound(context: Context) -> Iterator[Mistake]:
    yield from layout.unsound(context.recipe, context.hardware, context.hosts, context.pools)


@check(
    Rule(
        "host-pool-unknown",
        "error",
        "a host's pool is one of the recipe's",
        "the host would be dealt to no pool",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "hosts-too-few",
        "error",
        "the cluster has the hosts that the pools need",
        "instances without hosts can't start",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "hosts-too-many",
        "error",
        "no more hosts name a pool than it takes",
        "the rest would silently do nothing",
        "Ascent",
        waivable=False,
    ),
    Rule(
        "host-spare",
        "warning",
        "every host of the cluster is used",
        "hosts that no pool needs are prepared and checked, and run nothing",
        "Ascent",
    ),
)
def hosts_fill_pools(context: Context) -> Iterator[Mistake]:
    yield from context.placement.mistakes
    if context.pools and not any(item["rule"] == "hosts-too-few" for item in context.placement.mistakes):
        for name in context.placement.spare:
            yield mistake(
                "host-spare",
                f"no pool needs {name}: it is prepared and checked, and runs nothing",
                key=f"host:{name}",
                value=name,
                allowed="as many hosts as the pools need",
                fix="take it out of the cluster's group, or raise nodes or instances of a pool",
                severity="warning",
                host=name,
            )


@check(
    Rule(
        "devices-too-few",
        "error",
        "a node has the devices that its instances take",
        "tensor * pipeline * prefill context * local data parallel size is the number of workers, one a device",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B; vLLM ParallelConfig",
        rows=("P-DP6", "P-DEV1"),
        waivable=False,
    ),
)
def devices_suffice(context: Context) -> Iterator[Mistake]:
    for pool in context.pools:
        asked = pool["devices"] * pool["instances_per_node"]
        for profile in context.profiles(pool):
            if asked <= profile["devices"]:
                continue
            sizes = f"tensor {pool['tensor_parallel']} * data {pool['local']} a node"
            for word, key in (("pipeline", "pipeline_parallel"), ("prefill context", "prefill_context_parallel")):
                if (pool.get(key) or 1) > 1:
                    sizes += f" * {word} {pool[key]}"
            if pool["instances_per_node"] > 1:
                sizes += f" * {pool['instances_per_node']} instances"
            yield mistake(
                "devices-too-few",
                f"pool {pool['name']} needs {asked} devices a node ({sizes}), there are {profile['devices']}",
                key=f"recipe:pools.{pool['name']}.tensor_parallel",
                value=pool["tensor_parallel"],
                allowed=f"sizes whose product is at most {profile['devices']}",
                fix="lower tensor_parallel or data_parallel, or raise nodes",
            )


@check(
    Rule(
        "model-devices",
        "warning",
        "an instance has the devices that the model's guide recommends",
        "with fewer, weights or long contexts may not fit",
        "vLLM-Ascend tutorials, section Model Weight; catalog/models",
        rows=("P-OOM3", "A30", "A31", "A32", "A33", "A34", "A35", "A36", "A37", "A38", "A39", "A40", "A41"),
    ),
)
def model_fits(context: Context) -> Iterator[Mistake]:
    """Recommended numbers, so a warning. Whole NPUs are compared: an A3 NPU has two dies and is recommended as one."""
    needs: Mapping[str, int] = (context.model or {}).get("devices") or {}
    for pool in context.pools:
        for profile in context.profiles(pool):
            least = needs.get(profile["name"], needs.get(profile.get("same_sizing_as", "")))
            have = pool["devices"] * pool["nodes"]
            dies = profile.get("devices_per_npu") or 1
            if least and -(-have // dies) < -(-least // dies):
                yield mistake(
                    "model-devices",
                    f"an instance of pool {pool['name']} has {have} devices; the model is recommended {least} of this "
                    "kind",
                    key=f"recipe:pools.{pool['name']}",
                    value=have,
                    allowed=f"{least} or more devices of {profile['name']} for one instance",
                    fix="raise tensor_parallel, data_parallel or nodes, or take a quantized model",
                    severity="warning",
                )


@check(
    Rule(
        "heads-divide",
        "error",
        "tensor_parallel divides the model's attention heads",
        "heads are dealt out whole",
        "vLLM ModelConfig.verify_with_parallel_config",
        scope="models with known figures",
    ),
    Rule(
        "context-and-pipeline",
        "error",
        "prefill_context_parallel and pipeline_parallel aren't both above 1",
        "the connector numbers workers by one of them only",
        "vLLM-Ascend, kv_transfer, assertions of the Mooncake connectors",
        scope="vllm-ascend, Mooncake connectors between prefill and decode",
    ),
)
def sizes_divide(context: Context) -> Iterator[Mistake]:
    heads = context.figures.get("attention_heads")
    for pool in context.pools:
        tensor = pool["tensor_parallel"]
        if heads and heads % tensor:
            fitting = [str(size) for size in range(1, heads + 1) if heads % size == 0 and size <= 64]
            yield mistake(
                "heads-divide",
                f"the model's {heads} attention heads can't be dealt out to tensor_parallel {tensor}",
                key=f"recipe:pools.{pool['name']}.tensor_parallel",
                value=tensor,
                allowed=", ".join(fitting),
                fix="take a size that divides the number of heads",
            )
        prefill = pool.get("prefill_context_parallel") or 1
        if context.direct and prefill > 1 and pool["pipeline_parallel"] > 1:
            yield mistake(
                "context-and-pipeline",
                f"pool {pool['name']} has both prefill_context_parallel and pipeline_parallel above 1",
                key=f"recipe:pools.{pool['name']}.prefill_context_parallel",
                value=prefill,
                allowed="1 with pipeline_parallel above 1",
                fix="set one of the two to 1",
            )


@check(
    Rule(
        "npu-shared",
        "warning",
        "two processes don't share the dies of one NPU",
        "both dies of an A3 NPU are given out together; a reset or a fault takes both processes down",
        "MindCluster documentation, affinity of A3 servers",
        scope="hardware with several dies an NPU",
    ),
)
def npus_whole(context: Context) -> Iterator[Mistake]:
    owners: Dict[Tuple[str, int], Mapping[str, Any]] = {}
    told: Set[Tuple[str, str]] = set()
    for process in (context.plan or {}).get("processes", []):
        profile = context.hardware.get(((context.plan or {})["hosts"].get(process["host"]) or {}).get("hardware") or "")
        dies = (profile or {}).get("devices_per_npu") or 1
        if dies == 1:
            continue
        for device in process["devices"]:
            owner = owners.setdefault((process["host"], device // dies), process)
            pair = (str(owner.get("instance")), str(process.get("instance")))
            if pair[0] != pair[1] and pair not in told:
                told.add(pair)
                yield mistake(
                    "npu-shared",
                    f"{owner['name']} and {process['name']} share NPU {device // dies} of {process['host']}",
                    key=f"recipe:pools.{process['pool']}.tensor_parallel",
                    value=len(process["devices"]),
                    allowed=f"a multiple of {dies} devices a process",
                    fix=f"give each process a multiple of {dies} devices",
                    severity="warning",
                    host=process["host"],
                )


@check(
    Rule(
        "derived-value-typed",
        "error",
        "values that follow from the plan aren't set to others in args, env or kv_transfer",
        "ranks, addresses, sizes and device lists must agree on all nodes of both sides, so they are computed",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, parameters of PD deployment",
        rows=("P-DP2", "P-DP3", "P-DP4", "P-DEV1", "P-NET2", "P-KV2"),
        waivable=False,
    ),
)
def derived_untyped(context: Context) -> Iterator[Mistake]:
    """Derived values may be repeated in args, env and KV sizes, but never contradicted."""
    told: Set[Tuple[str, str]] = set()
    for item in _contradictions(context):
        mark = (item["key"], item["value"])
        if mark not in told:
            told.add(mark)
            yield item


def _contradictions(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        pool = variant.pool
        right: Dict[str, Any] = {
            "tensor-parallel-size": pool["tensor_parallel"],
            "pipeline-parallel-size": pool["pipeline_parallel"],
            "data-parallel-size": pool["data_parallel"],
            "data-parallel-size-local": pool["local"],
            "data-parallel-rpc-port": pool["rpc_port"],
            "port": pool["port"],
            "distributed-executor-backend": pool["executor"],
            "served-model-name": context.served_name,
            "decode-context-parallel-size": pool.get("decode_context_parallel") or 1,
            "prefill-context-parallel-size": pool.get("prefill_context_parallel") or 1,
        }
        for name, value in variant.args.items():
            if name in planner.DERIVED_ARGS and not (name in right and str(right[name]) == str(value)):
                wanted = right.get(name)
                yield mistake(
                    "derived-value-typed",
                    f"--{name} of pool {pool['name']} follows from the plan and can't be set to {value!r}",
                    key=variant.key(name),
                    value=value,
                    allowed=f"left out (the plan has {wanted})" if wanted is not None else "left out",
                    fix=f"remove {name}; change the pool's own keys (nodes, tensor_parallel, data_parallel, port, ...)",
                )
        for name, value in variant.env.items():
            if name in planner.DERIVED_ENV and not _planned(context, pool, name, value):
                yield mistake(
                    "derived-value-typed",
                    f"{name} follows from the host and can't be set for pool {pool['name']}",
                    key=variant.env_key(name),
                    value=value,
                    allowed="left out",
                    fix=f"remove {name}; set node_ip and nic of the hosts in the inventory instead",
                )
        yield from _transfer_contradictions(context, variant.transfer, variant.places)


def _transfer_contradictions(
    context: Context, transfer: Mapping[str, Any], places: Tuple[Tuple[str, Mapping[str, Any]], ...]
) -> Iterator[Mistake]:
    def place_of(key: str) -> str:
        return next((place for place, given in places if key in (given.get("kv_transfer") or {})), "")

    instead = {"kv_connector": "connector", "kv_connector_extra_config": "extra", "kv_port": "the pool's kv_port"}
    for key, better in instead.items():
        if key in transfer:
            yield mistake(
                "derived-value-typed",
                f"{key} is written by the plan",
                key=f"recipe:{place_of(key)}kv_transfer.{key}",
                value=transfer[key],
                allowed="left out",
                fix=f"use {better} instead",
            )
    extra = transfer.get("extra") or {}
    for side in context.pools:
        typed = extra.get(side["role"])
        if not isinstance(typed, Mapping):
            continue
        sizes = {
            "dp_size": side["data_parallel"],
            "tp_size": side["tensor_parallel"],
            "pp_size": side["pipeline_parallel"],
        }
        for key, size in sizes.items():
            if key in typed and typed[key] != size:
                yield mistake(
                    "derived-value-typed",
                    f"kv_transfer says {key} {typed[key]} for {side['role']}; pool {side['name']} has {size}",
                    key=f"recipe:{place_of('extra')}kv_transfer.extra.{side['role']}.{key}",
                    value=typed[key],
                    allowed=f"left out, or {size}",
                    fix="remove the sizes: the plan fills them in from the pools",
                )


def _planned(context: Context, pool: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether every process of the pool has exactly this value anyway."""
    mine = [one for one in (context.plan or {}).get("processes", []) if one["pool"] == pool["name"] and one["devices"]]
    return bool(mine) and all({"name": name, "value": str(value)} in one["env"] for one in mine)


@check(
    Rule(
        "plan-ranks",
        "error",
        "local sizes of an instance add up to its data parallel size, start ranks tile it, and all of its processes "
        "meet at the head's address and port; only the head serves an API",
        "a rank that is missing, doubled or sent to another master keeps all others waiting until they time out",
        _DP + "; " + _TUTORIAL,
        rows=("P-DP1", "P-DP2", "P-DP3", "P-DP4"),
        waivable=False,
    ),
    Rule(
        "plan-devices",
        "error",
        "every worker has a device of its own, and the list of visible devices holds exactly them",
        "two workers on one device run out of memory",
        _TUTORIAL,
        rows=("P-DEV1", "P-DP6"),
        waivable=False,
    ),
    Rule(
        "plan-addresses",
        "error",
        "HCCL_IF_IP and VLLM_HOST_IP are the host's node_ip, and all *_SOCKET_IFNAME its nic",
        "peers that are told another address wait for each other until they time out",
        "HCCL documentation; vLLM-Ascend tutorials, multi-node",
        rows=("P-NET2",),
        waivable=False,
    ),
)
def plan_consistent(context: Context) -> Iterator[Mistake]:
    """Asks the finished plan what the inputs can't be asked: overrides and host variables have their say by then."""
    plan = context.plan
    if plan is None:
        return
    by_name = {process["name"]: process for process in plan["processes"]}
    for instance in plan["instances"]:
        members = [by_name[name] for name in instance["processes"]]
        yield from _ranks_of(plan, instance, [one for one in members if one.get("parallel")])
    yield from _devices_of(context, plan)
    for process in plan["processes"]:
        host = plan["hosts"].get(process["host"]) or {}
        for entry in process["env"]:
            wanted = {
                "HCCL_IF_IP": host.get("node_ip"),
                "VLLM_HOST_IP": host.get("node_ip"),
                "GLOO_SOCKET_IFNAME": host.get("nic"),
                "TP_SOCKET_IFNAME": host.get("nic"),
                "HCCL_SOCKET_IFNAME": host.get("nic"),
            }.get(entry["name"])
            if wanted and entry.get("value") != wanted:
                yield mistake(
                    "plan-addresses",
                    f"{process['name']} on {process['host']} has {entry['name']} {entry.get('value')}",
                    key=f"host:{process['host']}.{'node_ip' if entry['name'].endswith('_IP') else 'nic'}",
                    value=entry.get("value"),
                    allowed=str(wanted),
                    fix=f"leave {entry['name']} to the plan",
                    host=process["host"],
                )


def _ranks_of(
    plan: Mapping[str, Any], instance: Mapping[str, Any], members: List[Mapping[str, Any]]
) -> Iterator[Mistake]:
    """Nodes of one rank (pipeline or tensor parallel over nodes) repeat its start rank; others must tile."""
    if not members:
        return
    size = members[0]["parallel"]["data"]
    spans = sorted(
        {(int(one["parallel"]["start_rank"]), int(one["parallel"]["data_local"])) for one in members if one["devices"]}
    )
    reached = 0
    for start, local in spans:
        if start != reached:
            break
        reached += local
    wrong = []
    if spans and reached != size:
        wrong.append(f"start ranks and local sizes {spans} don't tile 0-{size - 1}")
    meeting = {(one["parallel"].get("address"), one["parallel"].get("rpc_port")) for one in members}
    if size > 1 and len(meeting) > 1:
        wrong.append(f"its processes meet at different places: {sorted(meeting, key=str)}")
    head = (plan["hosts"].get(members[0]["host"]) or {}).get("node_ip")
    if size > 1 and members[0]["parallel"].get("address") not in (None, head):
        wrong.append(f"its address is {members[0]['parallel']['address']}, and its head is {head}")
    headless = [one["name"] for one in members if ["--headless"] in one["argv"]]
    served = [one["name"] for one in members if any(port["name"] == "api" for port in one["ports"])]
    both = sorted(set(headless) & set(served))
    if both:
        wrong.append(f"{', '.join(both)} is headless and has an API port")
    for text in wrong:
        yield mistake(
            "plan-ranks",
            f"instance {instance['name']}: {text}",
            key=f"recipe:pools.{instance['pool']}",
            value=instance["name"],
            allowed="ranks that tile, one meeting point at the head, one API",
            fix="remove overrides of ranks and addresses; report a fault of the planner if there are none",
        )


def _devices_of(context: Context, plan: Mapping[str, Any]) -> Iterator[Mistake]:
    owners: Dict[Tuple[str, int], str] = {}
    for process in plan["processes"]:
        wrong = []
        for device in process["devices"]:
            other = owners.setdefault((process["host"], device), process["name"])
            if other != process["name"]:
                wrong.append(f"device {device} of {process['host']} belongs to {other} too")
        profile = context.hardware.get((plan["hosts"].get(process["host"]) or {}).get("hardware") or "") or {}
        listed = next((e.get("value") for e in process["env"] if e["name"] == profile.get("visible_devices")), None)
        here = ",".join(str(device) for device in process["devices"])
        if process["devices"] and listed is not None and listed != here:
            wrong.append(f"{profile['visible_devices']} is {listed}")
        for text in wrong:
            yield mistake(
                "plan-devices",
                f"{process['name']}: {text}",
                key=f"recipe:pools.{process['pool']}",
                value=here,
                allowed="devices of its own, all of them visible",
                fix="leave devices to the plan",
                host=process["host"],
            )


CHECKS = (
    hosts_unique,
    layout_sound,
    hosts_fill_pools,
    devices_suffice,
    model_fits,
    sizes_divide,
    npus_whole,
    derived_untyped,
    plan_consistent,
)
