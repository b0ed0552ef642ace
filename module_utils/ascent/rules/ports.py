"""Ports: no two on one host, none where something else draws its own."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Dict, Iterator, List, Mapping, Set, Tuple

from .. import engines, planner
from ..mistakes import mistake
from .registry import ASCEND_DIRECT, Context, Mistake, Rule, check

#: Linux's usual net.ipv4.ip_local_port_range.
EPHEMERAL = (32768, 60999)
#: Ports that clients of the Mooncake store draw from (MC_STORE_CLIENT_MIN_PORT and _MAX_PORT).
STORE_CLIENTS = (12300, 14300)

#: The recipe's key of a port, by the port's name in the plan.
_KEYS = {
    "api": "port",
    "dp-rpc": "rpc_port",
    "ray-node": "ray_port",
    "ray-workers": "ray_port",
}


def port_key(process: Mapping[str, Any], name: str) -> str:
    """The key path of a planned port."""
    if process["kind"] in ("router", "frontend", "gateway"):
        return "recipe:router.port"
    if process.get("pool"):
        return f"recipe:pools.{process['pool']}.{_KEYS.get(name, name.replace('-', '_') + '_port')}"
    if process["kind"] == "kv-store":
        return "recipe:kv_store.metrics_port" if name == "metrics" else "recipe:kv_store.port"
    return f"recipe:services.{process['name']}.ports.{name}"


@check(
    Rule(
        "port-clash",
        "error",
        "every port on a host has one owner: API, RPC, KV, side channel, events, metrics, router, and HCCL's 32",
        "the second to bind fails with: Address already in use",
        "HCCL documentation, HCCL_IF_BASE_PORT; vLLM documentation",
        rows=("P-DP2", "P-KV4"),
        waivable=False,
    ),
    Rule(
        "kv-ports-overlap",
        "error",
        "KV port spans of instances on one host don't overlap",
        "a worker binds kv_port + global rank * tensor * pipeline size + its own number",
        "vLLM-Ascend, kv_transfer, handshake port",
        rows=("P-KV4",),
        waivable=False,
    ),
)
def ports_apart(context: Context) -> Iterator[Mistake]:
    if context.plan is None:
        return
    by_host: Dict[str, List[Tuple[int, int, str, Mapping[str, Any]]]] = {}
    for process in context.plan["processes"]:
        for port in process["ports"]:
            by_host.setdefault(process["host"], []).append((port["first"], port["count"], port["name"], process))
    told: Set[Tuple[str, str, str]] = set()
    for host, entries in by_host.items():
        listed = list(entries)
        pool = next((one for one in context.pools if one["name"] == context.plan["hosts"][host]["pool"]), None)
        if pool is not None and context.ascend:
            listed.append((*planner.hccl_ports(context.recipe, pool), "HCCL", {}))
        for index, (first, count, name, process) in enumerate(entries):
            for other_first, other_count, other_name, other in listed[index + 1 :]:
                if first + count <= other_first or other_first + other_count <= first:
                    continue
                both = name == other_name == "kv"
                low = max(first, other_first)
                owner = f"{other['name']} ({other_name})" if other else f"HCCL (from {other_first})"
                mark = (process["name"], name, owner)
                if mark in told:
                    continue
                told.add(mark)
                key = port_key(process, name)
                yield mistake(
                    "kv-ports-overlap" if both else "port-clash",
                    f"{process['name']} ({name}) and {owner} both want port {low} on {host}",
                    key=key,
                    value=first,
                    allowed=f"a port that leaves {other_first}-{other_first + other_count - 1} free"
                    if other_count > 1
                    else f"any port but {other_first}",
                    fix=f"move one of the two: {key.partition(':')[2]}"
                    + (f" or {port_key(other, other_name).partition(':')[2]}" if other else ""),
                    host=host,
                )


@check(
    Rule(
        "port-range",
        "error",
        "all ports, spans included, lie between 1024 and 65535",
        "a span that starts high runs out of numbers",
        "TCP",
        waivable=False,
    ),
    Rule(
        "port-ephemeral",
        "error",
        "ports in the kernel's ephemeral range (32768-60999) are among those the plan reserves",
        "the kernel may hand an unreserved one to any outgoing connection just before the engine binds it",
        "Linux documentation, ip_local_reserved_ports",
    ),
    Rule(
        "port-in-store-range",
        "warning",
        "no planned port of a pool lies where clients of the Mooncake store draw theirs (12300-14300)",
        "a client may hold it before the engine binds it",
        "Mooncake documentation, MC_STORE_CLIENT_MIN_PORT",
        scope="with a KV store",
    ),
)
def ports_in_range(context: Context) -> Iterator[Mistake]:
    if context.plan is None:
        return
    told: Set[str] = set()
    for process in context.plan["processes"]:
        reserved = [_span(text) for text in context.plan["hosts"][process["host"]].get("reserved_ports", [])]
        for port in process["ports"]:
            first, last = port["first"], port["first"] + port["count"] - 1
            key = port_key(process, port["name"])
            if first < 1024 or last > 65535:
                yield mistake(
                    "port-range",
                    f"{process['name']} ({port['name']}) would listen on {first}-{last}",
                    key=key,
                    value=first,
                    allowed=f"1024-{65536 - port['count']}",
                    fix="choose a lower port" if last > 65535 else "choose a port from 1024 on",
                    host=process["host"],
                )
            elif (
                first <= EPHEMERAL[1]
                and last >= EPHEMERAL[0]
                and not any(a <= first and last <= b for a, b in reserved)
            ):
                yield mistake(
                    "port-ephemeral",
                    f"{process['name']} ({port['name']}) listens on {first}-{last}, not reserved on {process['host']}",
                    key=key,
                    value=first,
                    allowed=f"a reserved port, or one outside {EPHEMERAL[0]}-{EPHEMERAL[1]}",
                    fix="choose a port outside that range",
                    host=process["host"],
                )
            window = STORE_CLIENTS
            if context.stored and process["devices"] and first <= window[1] and last >= window[0] and key not in told:
                told.add(key)
                yield mistake(
                    "port-in-store-range",
                    f"{process['name']} ({port['name']}) listens on {first}, where store clients may be first",
                    key=key,
                    value=first,
                    allowed=f"a port outside {window[0]}-{window[1]}",
                    fix="choose another port",
                    severity="warning",
                    host=process["host"],
                )


def _span(text: str) -> Tuple[int, int]:
    first, _, last = str(text).partition("-")
    return int(first), int(last or first)


@check(
    Rule(
        "kv-port-in-transport-window",
        "error",
        "KV ports lie above the window from which Mooncake's direct transport draws its own at random",
        "a drawn port that is taken ends in: ZMQError: Address already in use",
        "vLLM-Ascend, PD disaggregation guide; Mooncake AscendDirectTransport (1000 ports a device, 100 from 0.3.8 on)",
        rows=("P-KV4",),
        scope="vllm-ascend, Mooncake connectors between prefill and decode; the window follows the image's Mooncake",
    ),
)
def kv_clear_of_transport(context: Context) -> Iterator[Mistake]:
    if not context.direct:
        return
    mooncake = engines.mooncake_version("vllm-ascend", context.version)
    key = engines.version_key(mooncake) if mooncake else None
    narrow = key is not None and key >= (engines.version_key("0.3.8rc0") or ())
    for pool in context.pools:
        profiles = context.profiles(pool)
        if not profiles or pool["role"] not in ("prefill", "decode"):
            continue
        devices = max(profile["devices"] for profile in profiles)
        base = int(context.env_of(pool["name"]).get("ASCEND_BASE_PORT") or 20000)
        first, last = pool["kv_port"], pool["kv_port"] + pool["span"] * pool["instances_per_node"] - 1
        actual = base + devices * (100 if narrow else 1000)
        published = base + devices * 1000
        if last < base or first > published:
            continue
        inside = first <= actual
        carries = f"Mooncake {mooncake}" if mooncake else "a Mooncake of unknown version"
        yield mistake(
            "kv-port-in-transport-window",
            f"KV ports {first}-{last} of pool {pool['name']} lie in the window from which the transport draws its own"
            if inside
            else f"KV ports {first}-{last} of pool {pool['name']} lie in the window that older transports draw from",
            key=f"recipe:pools.{pool['name']}.kv_port",
            value=first,
            allowed=f"{published + 1} or more (the image carries {carries}, which draws from {base}-{actual})",
            fix=f"set kv_port to {published + 1} or more, outside HCCL's 60000-60031, or waive the rule and say why",
            severity="error" if inside else "warning",
        )


@check(
    Rule(
        "dense-ranks-share-kv-ports",
        "error",
        "a dense model between prefill and decode has data_parallel 1",
        "vLLM resets the ranks of dense models to 0, so that all ranks of a host compute the same KV ports",
        "vLLM v1/engine/core.py; vLLM-Ascend, kv_transfer, handshake port",
        scope="vllm-ascend, Mooncake connectors, dense models",
    ),
)
def dense_ranks_apart(context: Context) -> Iterator[Mistake]:
    if (context.model or {}).get("kind") != "dense" or not context.ascend:
        return
    for variant in context.variants:
        pool = variant.pool
        if ASCEND_DIRECT & set(variant.connector_names) and pool["data_parallel"] > 1:
            yield mistake(
                "dense-ranks-share-kv-ports",
                f"the {pool['data_parallel']} ranks of pool {pool['name']} would all take the KV ports of rank 0",
                key=f"recipe:pools.{pool['name']}.data_parallel",
                value=pool["data_parallel"],
                allowed="1 (several instances instead: their ports are kept apart)",
                fix="set data_parallel: 1 and raise instances and instances_per_node",
            )
            return


@check(
    Rule(
        "lookup-port-shared",
        "error",
        "engines on one host have lookup_rpc_port values of their own",
        "the value names a socket file; a second engine on it answers with the first one's blocks",
        "vLLM-Ascend, KV pool guide; AscendStoreConnector",
        rows=("E4",),
        scope="vllm-ascend, AscendStoreConnector",
    ),
)
def lookup_ports_apart(context: Context) -> Iterator[Mistake]:
    given = [
        (variant, str(one["extra"]["lookup_rpc_port"]))
        for variant in context.variants
        for one in variant.connectors
        if isinstance(one.get("extra"), Mapping) and "lookup_rpc_port" in one["extra"]
    ]
    for variant, value in given:
        others = [one.name for one, other in given if one.name != variant.name and other == value]
        shared = variant.pool["instances_per_node"] > 1 or variant.pool.get("share_nodes_with") in others
        if shared:
            yield mistake(
                "lookup-port-shared",
                f"all engines of pool {variant.name} on one host would use lookup_rpc_port {value}",
                key="recipe:kv_transfer.extra.lookup_rpc_port",
                value=value,
                allowed="left out: the plan numbers them",
                fix="remove lookup_rpc_port",
            )
            return


@check(
    Rule(
        "bridge-network-ports",
        "error",
        "processes that talk to other nodes, or to each other across containers, use the host network",
        "HCCL, ranks and KV transfer open ports that a bridge doesn't publish",
        "vLLM-Ascend tutorial Qwen3-235B-A22B, container note",
        rows=("P-NET1", "A14"),
    ),
)
def bridge_alone(context: Context) -> Iterator[Mistake]:
    everywhere = context.recipe.get("container") or {}
    for pool in context.pools:
        own = pool.get("container") or {}
        network = own.get("network", everywhere.get("network", "host"))
        talks = pool["nodes"] > 1 or bool(context.recipe.get("kv_transfer")) or bool(context.recipe.get("kv_store"))
        if network == "bridge" and talks:
            place = f"pools.{pool['name']}.container" if "network" in own else "container"
            yield mistake(
                "bridge-network-ports",
                f"pool {pool['name']} talks to other engines and is on a bridge network",
                key=f"recipe:{place}.network",
                value="bridge",
                allowed="host",
                fix="remove network: bridge",
            )


CHECKS = (
    ports_apart,
    ports_in_range,
    kv_clear_of_transport,
    dense_ranks_apart,
    lookup_ports_apart,
    bridge_alone,
)
