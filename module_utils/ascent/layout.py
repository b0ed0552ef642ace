"""Which host runs what: pools with their defaults filled in, hosts dealt out to them, and a seat for every process.

A pool is a number of equal instances. An instance spans ``nodes`` hosts, or shares one host with its neighbours
(``instances_per_node``). Where there are at least as many data parallel ranks as nodes, every node runs an equal number
of them; with fewer, the one rank spans the nodes, joined by the engine's own executor (mp) or by Ray.
"""

from __future__ import annotations

__all__ = [
    "DEFAULT_PORTS",
    "DEFAULT_ROUTER_PORT",
    "EXECUTED",
    "ROLES",
    "UNSOUND",
    "Placement",
    "Seat",
    "place",
    "pools_of",
    "seats",
    "unsound",
]

from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import engines, references
from .mistakes import closest, mistake

ROLES = ("serve", "prefill", "decode", "offline")

#: Rules of `unsound` and `place`: nothing can be planned while one of them is broken, so none can be waived.
UNSOUND = frozenset(
    (
        "context-parallel-tiles",
        "devices-too-few",
        "discovery-missing",
        "dp-ranks-tile",
        "engine-runtime",
        "hardware-unknown",
        "host-address-missing",
        "host-arch-missing",
        "host-nic-missing",
        "host-pool-unknown",
        "hosts-too-few",
        "hosts-too-many",
        "instance-shares-nodes",
        "override-matches-nothing",
        "plan-reference-unknown",
        "pool-shares-nodes",
        "process-name-twice",
        "rank-spans-nodes",
        "router-fits-engine",
        "router-pool-unknown",
    )
)

#: Kinds whose processes hold devices of their own.
EXECUTED = ("head", "headless", "rank", "worker", "ray-head", "ray-worker")

#: Ports outside the kernel's usual ephemeral range (32768-60999), HCCL's 60000-60031 and the KV transport's window
#: (20000-36000 at most), so that a recipe without ports is sound as it stands. Ray's own workers stay in 10002-10999.
DEFAULT_PORTS = {
    "port": 8000,
    "rpc_port": 13389,
    "master_port": 29501,
    "ray_port": 6379,
    "side_channel_port": 5600,
    "kv_events_port": 5557,
    "system_port": 8081,
    "request_port": 9081,
}
DEFAULT_API_PORT = DEFAULT_PORTS["port"]
DEFAULT_RPC_PORT = DEFAULT_PORTS["rpc_port"]
DEFAULT_KV_PORT = {"serve": 61000, "prefill": 61000, "decode": 63000, "offline": 61000}
DEFAULT_ROUTER_PORT = 9000
DEFAULT_STORE_PORTS = (50088, 50089)

#: How far the default ports of pools on the same hosts lie apart.
SHARING_STRIDE = 100


class Placement(NamedTuple):
    """Result of `place`: hosts of every pool in order, names of hosts that no pool needs, and what is wrong."""

    hosts: Dict[str, List[str]]
    spare: List[str]
    mistakes: List[Dict[str, Any]]


class Seat(NamedTuple):
    """One engine process before it has words: where it sits and with which numbers.

    ``number`` is the instance's in its pool, ``start_rank`` and ``local`` are the process's data parallel ranks,
    ``node`` its number in the instance, ``slot`` the instance's place among those of its pool on the host and
    ``local_index`` among all of the host. ``ports`` holds the first port of every kind that this process has to be
    told, ``head`` the name of the instance's first host.
    """

    pool: Mapping[str, Any]
    instance: str
    number: int
    kind: str
    name: str
    host: str
    head: str
    node: int
    slot: int
    local_index: int
    devices: List[int]
    start_rank: int
    local: int
    ports: Dict[str, int]


def pools_of(recipe: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The recipe's pools in order, every key present.

    Keys added: ``name``; sizes default to 1; ``world`` is the number of devices of one rank, ``devices`` that of one
    node's part of an instance, ``local`` the data parallel ranks of one node, ``spans`` whether a rank spans nodes,
    ``span`` the KV ports of one instance, ``nodes_needed`` the hosts that the pool uses and ``hosts_needed`` those that
    it takes for itself (none if it shares another's).
    """
    pools: List[Dict[str, Any]] = []
    shift: Dict[str, int] = {}
    for name, given in (recipe.get("pools") or {}).items():
        pool: Dict[str, Any] = {
            "role": "serve",
            "instances": 1,
            "instances_per_node": 1,
            "nodes": 1,
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "data_parallel": 1,
            "prefill_context_parallel": 1,
            "decode_context_parallel": 1,
            "data_parallel_mode": "internal",
            "share_nodes_with": None,
            "executor": None,
            "args": {},
            "env": {},
            "kv_transfer": {},
            "kv_events": recipe.get("kv_events"),
            "container": {},
            "overrides": [],
        }
        pool.update({key: value for key, value in (given or {}).items() if value is not None})
        pool["name"] = name
        pool["rpc_port_given"] = "rpc_port" in pool
        base = pool["share_nodes_with"] or name
        for key, port in DEFAULT_PORTS.items():
            pool.setdefault(key, port + shift.get(base, 0) * SHARING_STRIDE)
        shift[base] = shift.get(base, 0) + 1
        pool["hardware_given"] = "hardware" in pool
        pool.setdefault("kv_port", DEFAULT_KV_PORT.get(pool["role"], 61000))
        pool.setdefault("hardware", recipe.get("hardware"))
        ranks, nodes = pool["data_parallel"], pool["nodes"]
        pool["world"] = pool["tensor_parallel"] * pool["pipeline_parallel"] * pool["prefill_context_parallel"]
        pool["spans"] = ranks < nodes
        pool["local"] = ranks if pool["spans"] else ranks // nodes
        pool["devices"] = pool["world"] // nodes if pool["spans"] else pool["local"] * pool["world"]
        pool["span"] = ranks * pool["world"]
        pool["nodes_needed"] = -(-pool["instances"] // pool["instances_per_node"]) * nodes
        pool["hosts_needed"] = 0 if pool["share_nodes_with"] else pool["nodes_needed"]
        pools.append(pool)
    return pools


def place(pools: Sequence[Mapping[str, Any]], hosts: Sequence[Mapping[str, Any]]) -> Placement:
    """Deal ``hosts`` (in inventory order) out to ``pools`` (in recipe order).

    A host that names its pool goes there. Of the others, those that name a hardware profile go to pools that ask for
    just that one; the rest fill the pools in order. Within a pool, hosts keep inventory order, so its first host is the
    head of its first instance.
    """
    wrong: List[Dict[str, Any]] = []
    names = [pool["name"] for pool in pools]
    rank = {host["name"]: index for index, host in enumerate(hosts)}
    chosen: Dict[str, List[str]] = {name: [] for name in names}
    free = []
    based = {pool["name"]: pool["share_nodes_with"] or pool["name"] for pool in pools}
    for host in hosts:
        wanted = based.get(host.get("pool"), host.get("pool"))
        if wanted is None:
            free.append(host["name"])
        elif wanted in chosen:
            chosen[wanted].append(host["name"])
        elif pools:
            near = closest(str(wanted), names, 1)
            wrong.append(
                mistake(
                    "host-pool-unknown",
                    f"host {host['name']} names pool {wanted!r}, which the recipe doesn't have",
                    key=f"host:{host['name']}.pool",
                    value=wanted,
                    allowed=", ".join(names),
                    fix=f"write pool: {near[0] if near else names[0]}, or leave pool out to fill the pools in order",
                    host=host["name"],
                )
            )
    for pool in pools:
        here = chosen[pool["name"]]
        needed = pool["hosts_needed"]
        if len(here) > needed:
            wrong.append(
                mistake(
                    "hosts-too-many",
                    f"{len(here)} hosts name pool {pool['name']}, which takes {needed}",
                    key=f"recipe:pools.{pool['name']}.nodes",
                    value=pool["nodes"],
                    allowed=f"{needed} host(s): {', '.join(here[:needed])}",
                    fix=f"take pool: {pool['name']} off {', '.join(here[needed:])}, or raise nodes or instances",
                )
            )
            del here[needed:]
    kind = {host["name"]: host.get("hardware") for host in hosts}
    for picky in (True, False):
        for pool in pools:
            here = chosen[pool["name"]]
            lacks = pool["hosts_needed"] - len(here)
            if lacks <= 0 or (picky and not pool["hardware_given"]):
                continue
            fits = [name for name in free if not picky or kind[name] == pool["hardware"]][:lacks]
            here.extend(fits)
            taken = set(fits)
            free = [name for name in free if name not in taken]
            here.sort(key=rank.__getitem__)
    for pool in pools:
        other = chosen.get(pool["share_nodes_with"] or "")
        if other is not None:
            chosen[pool["name"]] = other[: pool["nodes_needed"]]
    short = [pool for pool in pools if len(chosen[pool["name"]]) < pool["hosts_needed"]]
    if short:
        need = sum(pool["hosts_needed"] for pool in pools)
        lacking = ", ".join(f"{p['name']} has {len(chosen[p['name']])} of {p['hosts_needed']}" for p in short)
        wrong.append(
            mistake(
                "hosts-too-few",
                f"the pools need {need} hosts and the cluster has {len(hosts)} ({lacking})",
                key=f"recipe:pools.{short[0]['name']}.nodes",
                value=short[0]["nodes"],
                allowed=f"a cluster of {need} hosts that may serve these pools",
                fix="add hosts to the cluster's group in the inventory, or take a recipe with fewer nodes",
            )
        )
    return Placement(chosen, free, wrong)


def seats(pools: Sequence[Mapping[str, Any]], placement: Placement, entry: str = "head") -> List[Seat]:
    """A seat for every engine process, in the order of pools, instances, nodes and ranks.

    With Ray, every node has a process that holds its devices, and the server that commands them is one more. ``entry``
    is the last part of the name of an instance's first process.
    """
    used: Dict[str, int] = {}
    instances_on: Dict[str, int] = {}
    result: List[Seat] = []
    for pool in pools:
        if pool["role"] == "offline":
            continue
        per_node, nodes = pool["instances_per_node"], pool["nodes"]
        external, ray = pool["data_parallel_mode"] == "external", pool["executor"] == "ray" and pool["spans"]
        stride = {
            "port": pool["local"] if external else 1,
            "kv_port": pool["span"],
            "kv_events_port": pool["data_parallel"],
            "side_channel_port": side_channels(pool),
        }
        for index in range(pool["instances"]):
            slot = index % per_node
            block = index // per_node * nodes
            names = placement.hosts[pool["name"]][block : block + nodes]
            instance = f"{pool['name']}-{index}"
            ports = {key: pool[key] + slot * stride.get(key, 1) for key in (*DEFAULT_PORTS, "kv_port")}
            for node, host in enumerate(names):
                first = used.get(host, 0)
                used[host] = first + pool["devices"]
                local_index = instances_on.get(host, 0)
                instances_on[host] = local_index + 1
                devices = list(range(first, first + pool["devices"]))
                start = 0 if pool["spans"] else node * pool["local"]
                name = f"{instance}-{entry}"
                base = Seat(
                    pool, instance, index, "head", name, host, names[0], node, slot, local_index, devices, start,
                    pool["local"], ports,
                )  # fmt: skip
                if external:
                    world = pool["world"]
                    result.extend(
                        base._replace(
                            kind="rank",
                            name=f"{instance}-rank-{start + rank}",
                            devices=devices[rank * world : (rank + 1) * world],
                            start_rank=start + rank,
                            local=1,
                            ports={**ports, "port": ports["port"] + rank},
                        )
                        for rank in range(pool["local"])
                    )
                elif ray:
                    if node == 0:
                        result.append(base._replace(devices=[]))
                    kind = "ray-worker" if node else "ray-head"
                    name = f"{instance}-{kind}-{node}" if node else f"{instance}-{kind}"
                    result.append(base._replace(kind=kind, name=name))
                elif node == 0:
                    result.append(base)
                else:
                    kind = "worker" if pool["spans"] else "headless"
                    result.append(base._replace(kind=kind, name=f"{instance}-{kind}-{node}"))
    return result


def side_channels(pool: Mapping[str, Any]) -> int:
    """Ports to keep for NIXL's handshakes of one instance: releases count by data parallel rank or by tensor rank."""
    return max(2 * int(pool["data_parallel"]), int(pool["tensor_parallel"]))


def unsound(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    pools: Sequence[Mapping[str, Any]],
) -> Iterator[Dict[str, Any]]:
    """Mistakes after which there is no layout at all, beside those of `place`: nothing can be planned from these."""
    yield from _hosts_addressed(recipe, hosts, pools)
    yield from _hardware_known(recipe, hardware, hosts, pools)
    yield from _ranks_tile(pools)
    yield from _pools_share(hardware, hosts, pools)
    yield from _overrides_match(pools)
    yield from _everything_placed(recipe, pools)
    yield from _router_fits_engine(recipe, pools)
    yield from _engine_runs(recipe)
    yield from _names_differ(recipe, pools)
    yield from _references_known(recipe)


def _hosts_addressed(
    recipe: Mapping[str, Any],
    hosts: Sequence[Mapping[str, Any]],
    pools: Sequence[Mapping[str, Any]],
) -> Iterator[Dict[str, Any]]:
    talks = bool(recipe.get("kv_transfer")) or any(pool["nodes"] > 1 for pool in pools)
    talks = talks or "nic" in references.names(recipe)
    jemalloc = recipe.get("jemalloc") or any(pool.get("jemalloc") for pool in pools)
    jemalloc = jemalloc or "arch" in references.names(recipe)
    needed = [("node_ip", "host-address-missing", "the address at which the other nodes reach this one")]
    if talks:
        needed.append(("nic", "host-nic-missing", "the network interface that carries node_ip"))
    if jemalloc:
        needed.append(("arch", "host-arch-missing", "aarch64 or x86_64: jemalloc's path in the image depends on it"))
    for host in hosts:
        for variable, rule, meaning in needed:
            if not host.get(variable):
                yield mistake(
                    rule,
                    f"{host['name']} has no {variable}, and it was not found out from the host",
                    key=f"host:{host['name']}.{variable}",
                    allowed=meaning,
                    fix=f"set {variable} for {host['name']} in the inventory, or run where hosts may be contacted",
                    host=host["name"],
                )


def _hardware_known(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    pools: Sequence[Mapping[str, Any]],
) -> Iterator[Dict[str, Any]]:
    given = [("recipe:hardware", recipe.get("hardware"), None)]
    given += [(f"recipe:pools.{pool['name']}.hardware", pool["hardware"], None) for pool in pools]
    given += [(f"host:{host['name']}.hardware", host.get("hardware"), host["name"]) for host in hosts]
    told = set()
    for key, name, host in given:
        if name is None or name in hardware or (name, host) in told:
            continue
        told.add((name, host))
        near = closest(str(name), hardware, 1)
        yield mistake(
            "hardware-unknown",
            f"there is no hardware profile {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            key=key,
            value=name,
            allowed=", ".join(sorted(hardware)),
            fix=f"write {near[0]}" if near else "take a known profile, or describe the server in catalog/hardware/",
            host=host,
        )


def _ranks_tile(pools: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, Any]]:
    for pool in pools:
        ranks, nodes = pool["data_parallel"], pool["nodes"]
        here = f"recipe:pools.{pool['name']}"
        if ranks > 1 and ranks % nodes:
            whole = [str(size) for size in range(nodes, ranks + nodes, nodes)][-2:]
            yield mistake(
                "dp-ranks-tile",
                f"{ranks} data parallel ranks of pool {pool['name']} don't spread evenly over {nodes} nodes",
                key=f"{here}.data_parallel",
                value=ranks,
                allowed=f"a multiple of nodes = {nodes}, such as {' or '.join(whole)}; or 1, for a rank over all nodes",
                fix="change data_parallel or nodes so that every node runs the same number of ranks",
            )
        elif pool["spans"] and pool["world"] % nodes:
            yield mistake(
                "rank-spans-nodes",
                f"the {pool['world']} devices of a rank of pool {pool['name']} don't spread evenly over {nodes} nodes",
                key=f"{here}.nodes",
                value=nodes,
                allowed=f"a number that divides {pool['world']} (tensor * pipeline * prefill context)",
                fix="change nodes, tensor_parallel or pipeline_parallel; or give every node a rank with data_parallel",
            )
        if pool["executor"] == "ray" and ranks > 1:
            yield mistake(
                "rank-spans-nodes",
                f"pool {pool['name']} has {ranks} data parallel ranks and the executor ray",
                key=f"{here}.executor",
                value="ray",
                allowed="mp, or data_parallel: 1",
                fix="use executor mp for data parallelism; Ray is for one rank over several nodes",
            )
        if pool["data_parallel_mode"] == "external" and pool["spans"]:
            yield mistake(
                "rank-spans-nodes",
                f"pool {pool['name']} has one server per rank and fewer ranks than nodes",
                key=f"{here}.data_parallel_mode",
                value="external",
                allowed="internal, or a data_parallel that is a multiple of nodes",
                fix="leave data_parallel_mode out, or raise data_parallel",
            )
        if pool["tensor_parallel"] % pool["decode_context_parallel"]:
            yield mistake(
                "context-parallel-tiles",
                f"decode_context_parallel of pool {pool['name']} doesn't divide tensor_parallel",
                key=f"{here}.decode_context_parallel",
                value=pool["decode_context_parallel"],
                allowed=f"a divisor of tensor_parallel = {pool['tensor_parallel']}",
                fix="change one of the two: decode context parallelism reuses the ranks of tensor parallelism",
            )
        if nodes > 1 and pool["instances_per_node"] > 1:
            yield mistake(
                "instance-shares-nodes",
                f"an instance of pool {pool['name']} spans {nodes} nodes and is to share them",
                key=f"{here}.instances_per_node",
                value=pool["instances_per_node"],
                allowed="1 where nodes is more than 1",
                fix="leave instances_per_node out, or set nodes: 1",
            )


def _pools_share(
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    pools: Sequence[Mapping[str, Any]],
) -> Iterator[Dict[str, Any]]:
    earlier: Dict[str, Mapping[str, Any]] = {}
    sharing: Dict[str, List[Mapping[str, Any]]] = {}
    for pool in pools:
        other = pool["share_nodes_with"]
        owner = earlier.get(other or "")
        if other is not None and (owner is None or owner["share_nodes_with"]):
            yield mistake(
                "pool-shares-nodes",
                f"pool {pool['name']} is to share the nodes of {other!r}",
                key=f"recipe:pools.{pool['name']}.share_nodes_with",
                value=other,
                allowed="an earlier pool with nodes of its own: "
                + (", ".join(name for name, one in earlier.items() if not one["share_nodes_with"]) or "there is none"),
                fix="name one of these, or move the pool behind the one it shares with",
            )
        elif owner is not None and pool["nodes_needed"] > owner["nodes_needed"]:
            yield mistake(
                "pool-shares-nodes",
                f"pool {pool['name']} needs {pool['nodes_needed']} nodes and {other} has {owner['nodes_needed']}",
                key=f"recipe:pools.{pool['name']}.instances",
                value=pool["instances"],
                allowed=f"instances on at most {owner['nodes_needed']} nodes",
                fix="raise instances_per_node, or lower instances",
            )
        elif owner is not None:
            sharing.setdefault(owner["name"], [owner]).append(pool)
        earlier[pool["name"]] = pool
    placed = place(pools, hosts).hosts
    by_name = {host["name"]: host for host in hosts}
    for name, members in sharing.items():
        asked = sum(pool["devices"] * pool["instances_per_node"] for pool in members)
        here = [by_name[host].get("hardware") for host in placed[name]] or [None]
        for kind in dict.fromkeys(kind or members[0]["hardware"] for kind in here):
            profile = hardware.get(kind or "")
            if profile is not None and asked > profile["devices"]:
                names = " and ".join(pool["name"] for pool in members)
                yield mistake(
                    "devices-too-few",
                    f"pools {names} need {asked} devices a node together, there are {profile['devices']}",
                    key=f"recipe:pools.{members[-1]['name']}.share_nodes_with",
                    value=name,
                    allowed=f"pools whose devices on one node are at most {profile['devices']} together",
                    fix="lower tensor_parallel, data_parallel or instances_per_node of one of them",
                )


def _overrides_match(pools: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, Any]]:
    for pool in pools:
        limits = {"instance": pool["instances"], "node": pool["nodes"], "rank": pool["data_parallel"]}
        for index, override in enumerate(pool["overrides"]):
            for key, limit in limits.items():
                given = numbers(override.get(key))
                for number in given or []:
                    if number >= limit or (key == "rank" and pool["data_parallel_mode"] != "external"):
                        yield mistake(
                            "override-matches-nothing",
                            f"pool {pool['name']} has no process for the override of {key} {number}",
                            key=f"recipe:pools.{pool['name']}.overrides.{index}.{key}",
                            value=number,
                            allowed=f"0 to {limit - 1}"
                            + (", with data_parallel_mode: external" if key == "rank" else ""),
                            fix="correct the number, or remove the override",
                        )


def numbers(value: Any) -> Optional[List[int]]:
    """A selector's numbers as a list; None if it selects everything."""
    if value is None:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _everything_placed(recipe: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, Any]]:
    names = [pool["name"] for pool in pools]
    places: List[Tuple[str, Mapping[str, Any]]] = [
        ("router", recipe.get("router") or {}),
        ("kv_store", recipe.get("kv_store") or {}),
    ]
    for section in ("services", "jobs"):
        places += [(f"{section}.{name}", one or {}) for name, one in (recipe.get(section) or {}).items()]
    for place_of, given in places:
        if given.get("on") is not None and given["on"] not in names:
            near = closest(str(given["on"]), names, 1)
            yield mistake(
                "router-pool-unknown",
                f"{place_of} is to run on pool {given['on']!r}, which the recipe doesn't have",
                key=f"recipe:{place_of}.on",
                value=given["on"],
                allowed=", ".join(names),
                fix=f"write on: {near[0] if near else (names or ['a pool'])[0]}",
            )


def _engine_runs(recipe: Mapping[str, Any]) -> Iterator[Dict[str, Any]]:
    """Containers need an image; an environment needs its engine by exact versions, so that all hosts get the same."""
    engine = recipe.get("engine") or {}
    name = str(engine.get("name"))
    environment = engines.environment(engine)
    if environment is None:
        if not engine.get("image"):
            yield mistake(
                "engine-runtime",
                "engine.image is missing",
                key="recipe:engine.image",
                allowed="an image, or runtime: environment with packages",
                fix="add engine.image",
            )
        return
    wanted = [one.replace("_", "-") for one in engines.IMPORTS.get(name, ())]
    loose = [one for one in wanted if engines.pinned(environment["packages"], one) is None]
    if not wanted:
        yield mistake(
            "engine-runtime",
            f"{name} runs in containers only",
            key="recipe:engine.runtime",
            value="environment",
            allowed="container",
            fix="remove engine.runtime, or take the engine vllm or vllm-ascend",
        )
    elif loose:
        yield mistake(
            "engine-runtime",
            f"the environment doesn't say which version of {' and '.join(loose)}",
            key="recipe:engine.environment.packages",
            value=environment["packages"],
            allowed=", ".join(f"{one}==VERSION" for one in loose),
            fix="name the packages with exact versions, so that every host gets the same",
        )
    router = recipe.get("router") or {}
    program = (engines.ROUTERS.get(str(router.get("kind"))) or {}).get("program") or []
    if any(engines.in_image(word) for word in program) and not router.get("image"):
        yield mistake(
            "engine-runtime",
            f"the router {router['kind']} is a file of the engine's image, and this engine has none",
            key="recipe:router.image",
            allowed="an image that has it, or another router",
            fix="add router.image: an image of vllm-ascend, or take router.kind: vllm-router with its package",
        )


def _router_fits_engine(recipe: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, Any]]:
    """Dynamo's workers have no API of their own: only its frontend can stand before them, and before nothing else."""
    engine = (recipe.get("engine") or {}).get("name")
    kind = (recipe.get("router") or {}).get("kind")
    if engine is None or not any(pool["role"] != "offline" for pool in pools):
        return
    if (engine == "dynamo") != (kind == "dynamo"):
        yield mistake(
            "router-fits-engine",
            f"engine {engine} and a router of kind {kind} don't work together",
            key="recipe:router.kind",
            **({} if kind is None else {"value": kind}),
            allowed="dynamo" if engine == "dynamo" else ", ".join(name for name in engines.ROUTERS if name != "dynamo"),
            fix="set router.kind: dynamo" if engine == "dynamo" else "take another router, or engine.name: dynamo",
        )
    services = (recipe.get("services") or {}).values()
    meets = any(one.get("kind") == "discovery" and one.get("ports") for one in services)
    if engine == "dynamo" and not meets and sum(pool["hosts_needed"] for pool in pools) > 1:
        yield mistake(
            "discovery-missing",
            "Dynamo's processes on several hosts need a service where they find each other",
            key="recipe:services",
            allowed="a service of kind discovery with a port, such as etcd",
            fix="add services: {etcd: {kind: discovery, command: [...], ports: {client: 2379}}}",
        )
    policy = (recipe.get("router") or {}).get("policy")
    known = engines.ROUTERS.get(kind or "", {}).get("policies", {})
    if policy is not None and kind in engines.ROUTERS and policy not in known:
        yield mistake(
            "router-fits-engine",
            f"a router of kind {kind} has no policy {policy}",
            key="recipe:router.policy",
            value=policy,
            allowed=", ".join(known) or "left out",
            fix="take one of these, or another kind of router",
        )


def _names_differ(recipe: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, Any]]:
    """Every process has a file of its name; those of engines end in words that begin with their pool's."""
    taken = {"router": "the router", "frontend": "the router", "gateway": "the gateway", "kv-store": "the KV store"}
    for section in ("services", "jobs"):
        for name in recipe.get(section) or {}:
            clash = taken.get(name) or next(
                (f"pool {pool['name']}" for pool in pools if name.startswith(f"{pool['name']}-")), None
            )
            if clash:
                yield mistake(
                    "process-name-twice",
                    f"{section}.{name} has a name that belongs to {clash}",
                    key=f"recipe:{section}.{name}",
                    value=name,
                    allowed="a name that no other process has, and that doesn't begin with a pool's name and a dash",
                    fix="rename it",
                )
            taken[name] = f"{section}.{name}"


#: Parts of a recipe whose texts may hold references, and whether those of engine processes are among them.
_REFERRING = (
    ("args", True),
    ("env", True),
    ("kv_transfer", True),
    ("kv_store", False),
    ("services", False),
    ("router", False),
    ("jobs", False),
)


def _references_known(recipe: Mapping[str, Any]) -> Iterator[Dict[str, Any]]:
    services = [name for name, one in (recipe.get("services") or {}).items() if (one or {}).get("ports")]
    given = {"kv_store": recipe.get("kv_store"), "kv_event_sources": recipe.get("kv_events")}
    parts: List[Tuple[str, Any, bool]] = [(key, recipe.get(key), engine) for key, engine in _REFERRING]
    for name, pool in (recipe.get("pools") or {}).items():
        parts += [
            (f"pools.{name}.{key}", (pool or {}).get(key), True) for key in ("args", "env", "kv_transfer", "overrides")
        ]
    for place_of, value, engine in parts:
        known = references.known(engine=engine, services=services)
        if not given["kv_store"]:
            known = [name for name in known if not name.startswith("kv_store_")]
        for key, name in _named(place_of, value):
            if name in known:
                continue
            near = closest(name, known, 1)
            yield mistake(
                "plan-reference-unknown",
                f"there is no plan.{name} to refer to here" + (f"; did you mean plan.{near[0]}?" if near else ""),
                key=f"recipe:{key}",
                value="{{ plan." + name + " }}",
                allowed=", ".join(known),
                fix=f"write plan.{near[0]}" if near else "take one of the values, or write the text itself",
            )


def _named(key: str, value: Any) -> Iterator[Tuple[str, str]]:
    """Key path and name of every reference below ``value``."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _named(f"{key}.{name}", one)
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _named(f"{key}.{index}", one)
    else:
        for name in references.names(value):
            yield key, name
