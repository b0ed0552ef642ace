"""Which host runs what: pools with their defaults filled in, and hosts dealt out to them.

A pool is a number of equal instances. An instance spans ``nodes`` hosts, or shares one host with its neighbours
(``instances_per_node``). Each node of an instance runs one process with ``data_parallel / nodes`` of its ranks.
"""

from __future__ import annotations

__all__ = ["ROLES", "Placement", "place", "pools_of", "unsound"]

from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence

from .mistakes import closest, mistake

ROLES = ("serve", "prefill", "decode")

#: Ports outside the kernel's usual ephemeral range (32768-60999), HCCL's 60000-60031 and the KV transport's window
#: (20000-36000 at most), so that a recipe without ports is sound as it stands.
DEFAULT_API_PORT = 8000
DEFAULT_RPC_PORT = 13389
DEFAULT_KV_PORT = {"serve": 61000, "prefill": 61000, "decode": 63000}
DEFAULT_ROUTER_PORT = 9000


class Placement(NamedTuple):
    """Result of `place`: hosts of every pool in order, names of hosts that no pool needs, and what is wrong."""

    hosts: Dict[str, List[str]]
    spare: List[str]
    mistakes: List[Dict[str, Any]]


def pools_of(recipe: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The recipe's pools in order, every key present.

    Keys added: ``name``; sizes default to 1; ``devices`` is the number of devices of one process, ``local`` the data
    parallel ranks of one process, ``span`` the KV ports of one instance, ``hosts_needed`` the hosts of the pool.
    """
    pools = []
    for name, given in (recipe.get("pools") or {}).items():
        pool: Dict[str, Any] = {
            "role": "serve",
            "instances": 1,
            "instances_per_node": 1,
            "nodes": 1,
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "data_parallel": 1,
            "executor": None,
            "port": DEFAULT_API_PORT,
            "args": {},
            "env": {},
            "kv_transfer": {},
        }
        pool.update({key: value for key, value in given.items() if value is not None})
        pool["name"] = name
        pool["rpc_port_given"] = "rpc_port" in pool
        pool.setdefault("rpc_port", DEFAULT_RPC_PORT)
        pool.setdefault("kv_port", DEFAULT_KV_PORT[pool["role"]])
        pool.setdefault("hardware", recipe.get("hardware"))
        pool["local"] = pool["data_parallel"] // pool["nodes"]
        pool["devices"] = pool["local"] * pool["tensor_parallel"] * pool["pipeline_parallel"]
        pool["span"] = pool["data_parallel"] * pool["tensor_parallel"] * pool["pipeline_parallel"]
        pool["hosts_needed"] = -(-pool["instances"] // pool["instances_per_node"]) * pool["nodes"]
        pools.append(pool)
    return pools


def place(pools: Sequence[Mapping[str, Any]], hosts: Sequence[Mapping[str, Any]]) -> Placement:
    """Deal ``hosts`` (in inventory order) out to ``pools`` (in recipe order).

    A host that names its pool goes there; the others fill the pools in order. Within a pool, hosts keep inventory
    order, so its first host is the head of its first instance.
    """
    wrong: List[Dict[str, Any]] = []
    names = [pool["name"] for pool in pools]
    rank = {host["name"]: index for index, host in enumerate(hosts)}
    chosen: Dict[str, List[str]] = {name: [] for name in names}
    free = []
    for host in hosts:
        wanted = host.get("pool")
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
        take = min(needed - len(here), len(free))
        here.extend(free[:take])
        del free[:take]
        here.sort(key=rank.__getitem__)
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
    yield from _router_placed(recipe, pools)


def _hosts_addressed(
    recipe: Mapping[str, Any],
    hosts: Sequence[Mapping[str, Any]],
    pools: Sequence[Mapping[str, Any]],
) -> Iterator[Dict[str, Any]]:
    talks = bool(recipe.get("kv_transfer")) or any(pool["nodes"] > 1 for pool in pools)
    jemalloc = recipe.get("jemalloc") or any(pool.get("jemalloc") for pool in pools)
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
        if ranks % nodes:
            whole = [str(size) for size in range(nodes, ranks + nodes, nodes)][-2:]
            yield mistake(
                "dp-ranks-tile",
                f"{ranks} data parallel ranks of pool {pool['name']} don't spread evenly over {nodes} nodes",
                key=f"recipe:pools.{pool['name']}.data_parallel",
                value=ranks,
                allowed=f"a multiple of nodes = {nodes}, such as {' or '.join(whole)}",
                fix="change data_parallel or nodes so that every node runs the same number of ranks",
            )
        if nodes > 1 and pool["instances_per_node"] > 1:
            yield mistake(
                "instance-shares-nodes",
                f"an instance of pool {pool['name']} spans {nodes} nodes and is to share them",
                key=f"recipe:pools.{pool['name']}.instances_per_node",
                value=pool["instances_per_node"],
                allowed="1 where nodes is more than 1",
                fix="leave instances_per_node out, or set nodes: 1",
            )


def _router_placed(recipe: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> Iterator[Dict[str, Any]]:
    router = recipe.get("router") or {}
    names = [pool["name"] for pool in pools]
    if router.get("on") is not None and router["on"] not in names:
        near = closest(str(router["on"]), names, 1)
        yield mistake(
            "router-pool-unknown",
            f"the router is to run on pool {router['on']!r}, which the recipe doesn't have",
            key="recipe:router.on",
            value=router["on"],
            allowed=", ".join(names),
            fix=f"write on: {near[0] if near else (names or ['a pool'])[0]}",
        )
