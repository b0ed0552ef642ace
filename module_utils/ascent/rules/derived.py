"""Values that follow from the plan: not contradicted in the recipe, and consistent in the plan itself."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Dict, Iterator, List, Mapping, Set, Tuple

from .. import planner
from ..mistakes import mistake
from .registry import Context, Mistake, Rule, check

_DP = "vLLM documentation, Data Parallel Deployment"
_TUTORIAL = "vLLM-Ascend tutorial Qwen3.5-397B-A17B"


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
        rows=("P-DP1", "P-DP2", "P-DP3", "P-DP4", "J8", "J11", "J12"),
        waivable=False,
    ),
    Rule(
        "plan-devices",
        "error",
        "every worker has a device of its own, and the list of visible devices holds exactly them",
        "two workers on one device run out of memory",
        _TUTORIAL,
        rows=("P-DEV1", "P-DP6", "J10"),
        waivable=False,
    ),
    Rule(
        "plan-addresses",
        "error",
        "HCCL_IF_IP and VLLM_HOST_IP are the host's node_ip, and all *_SOCKET_IFNAME its nic",
        "peers that are told another address wait for each other until they time out",
        "HCCL documentation; vLLM-Ascend tutorials, multi-node",
        rows=("P-NET2", "J2", "J7"),
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


CHECKS = (derived_untyped, plan_consistent)
