"""Hosts and how pools lie on them: addresses, devices, ranks."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Dict, Iterator, Mapping, Optional, Set, Tuple

from .. import layout
from ..mistakes import mistake
from .registry import Context, Mistake, Rule, check

_DP = "vLLM documentation, Data Parallel Deployment"


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
        "host-address-local",
        "error",
        "node_ip is an address that other nodes reach, where there are other nodes",
        "peers that are told 127.0.0.1 or 0.0.0.0 look for the head on themselves",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, common issues; HCCL documentation, HCCL_IF_IP",
        rows=("P-NET2", "J11"),
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
        "engine-runtime",
        "error",
        "containers have an image; an environment names its engine's packages by exact versions",
        "hosts that resolve a range on different days run different engines",
        "vLLM-Ascend installation page, from pip and from source",
        rows=("A16",),
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
    for host in context.hosts if len(context.hosts) > 1 else ():
        address = str(host.get("node_ip") or "")
        if address.startswith("127.") or address in ("0.0.0.0", "::", "::1", "localhost"):  # noqa: S104 - compared only
            yield mistake(
                "host-address-local",
                f"{host['name']} has node_ip {address}, which means itself on every other node",
                key=f"host:{host['name']}.node_ip",
                value=address,
                allowed="the address of the interface that the nodes share",
                fix=f"set node_ip of {host['name']} to that address, or leave it out: the node tells it",
                host=host["name"],
            )


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
    """The guides call their numbers recommended ones, so fewer are a warning."""
    for pool in context.pools:
        for profile in context.profiles(pool):
            least = _recommended(context, profile)
            have = pool["devices"] * pool["nodes"]
            if least and have < least:
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


def _recommended(context: Context, profile: Mapping[str, Any]) -> Optional[int]:
    """Devices that the model's guide recommends on such hardware; None if it says nothing of it.

    Guides count in whole cards and nodes: "one A3 card or one A2 card", where the A3 card has two devices of the same
    memory. What is enough in one wording is enough in the other, so the least number among equal devices counts.
    """
    needs: Mapping[str, int] = (context.model or {}).get("devices") or {}
    size = (profile["vendor"], profile.get("hbm_mb"))
    equal = {name for name, one in context.hardware.items() if (one["vendor"], one.get("hbm_mb")) == size}
    return min((count for name, count in needs.items() if name in equal), default=None)


@check(
    Rule(
        "heads-divide",
        "error",
        "tensor_parallel divides the model's attention heads, and one of it and the KV heads divides the other",
        "heads are dealt out whole",
        "vLLM ModelConfig.verify_with_parallel_config",
        scope="models with known figures",
    ),
    Rule(
        "context-parallel-heads",
        "error",
        "decode_context_parallel is at most tensor_parallel / KV heads, and divides the query heads of a KV head",
        "it splits KV cache over ranks that would hold copies of one KV head: with fewer there is nothing to split",
        "vLLM ModelConfig.verify_with_parallel_config",
        scope="models with known figures and KV heads (not MLA)",
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
        kv_heads = context.figures.get("kv_heads")
        if heads and kv_heads and not heads % tensor and kv_heads % tensor and tensor % kv_heads:
            yield mistake(
                "heads-divide",
                f"neither of the model's {kv_heads} KV heads and tensor_parallel {tensor} divides the other",
                key=f"recipe:pools.{pool['name']}.tensor_parallel",
                value=tensor,
                allowed=", ".join(
                    str(size) for size in range(1, 65) if not heads % size and not (kv_heads % size and size % kv_heads)
                ),
                fix="take a size that divides the number of KV heads, or that it divides",
            )
        decode = pool.get("decode_context_parallel") or 1
        if heads and kv_heads and decode > 1 and not context.hybrid:
            most = max(1, tensor // kv_heads)
            parts = [size for size in range(1, most + 1) if not (heads // kv_heads) % size and not tensor % size]
            if decode not in parts:
                yield mistake(
                    "context-parallel-heads",
                    f"decode_context_parallel {decode} of pool {pool['name']} doesn't fit tensor_parallel {tensor} and "
                    f"{kv_heads} KV heads",
                    key=f"recipe:pools.{pool['name']}.decode_context_parallel",
                    value=decode,
                    allowed=", ".join(str(size) for size in parts),
                    fix=f"raise tensor_parallel above {kv_heads}, or leave decode_context_parallel out",
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
        "context-parallel-interleave",
        "error",
        "with context parallelism and KV transfer or a store, cp-kv-cache-interleave-size equals block-size",
        "whole blocks are handed over, so a block must lie on one rank: the engine asserts it",
        "vLLM-Ascend sources, NPUPlatform of v0.13 and later; tutorial GLM5.2",
        scope="vllm-ascend, context parallelism with kv_transfer",
    ),
    Rule(
        "dense-external-ranks",
        "error",
        "a dense model has no data parallel ranks with servers of their own",
        "its ranks have nothing in common, so vLLM ends: launch independent instances instead",
        "vLLM EngineArgs.create_engine_config (v0.21); vLLM v1/engine/core.py",
        scope="dense models; a warning before vLLM 0.21",
    ),
)
def ranks_make_sense(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        pool = variant.pool
        parts = variant.size("prefill_context_parallel") * variant.size("decode_context_parallel")
        if context.ascend and variant.connectors and parts > 1:
            block = variant.number("block-size") or 128
            given = variant.number("cp-kv-cache-interleave-size") or 1
            if given != block:
                yield mistake(
                    "context-parallel-interleave",
                    f"pool {variant.name} splits contexts {parts} ways in pieces of {given} tokens, and its blocks "
                    f"have {block}",
                    key=variant.key("cp-kv-cache-interleave-size"),
                    value=given,
                    allowed=str(block),
                    fix=f"set args.cp-kv-cache-interleave-size: {block}",
                )
        external = pool["data_parallel_mode"] == "external" and pool["data_parallel"] > 1
        if external and (context.model or {}).get("kind") == "dense":
            yield mistake(
                "dense-external-ranks",
                f"pool {variant.name} has a server for each of {pool['data_parallel']} ranks of a dense model",
                key=f"recipe:pools.{variant.name}.data_parallel_mode",
                value="external",
                allowed="data_parallel: 1, and as many instances",
                fix="set data_parallel: 1 and raise instances and instances_per_node",
                severity="error" if context.vllm_at_least("0.21.0") else "warning",
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


CHECKS = (
    hosts_unique,
    layout_sound,
    hosts_fill_pools,
    devices_suffice,
    model_fits,
    sizes_divide,
    ranks_make_sense,
    npus_whole,
)
