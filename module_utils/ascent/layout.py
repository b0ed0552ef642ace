"""Which host runs what: pools with their defaults filled in, and hosts dealt out to them.

A pool is a number of equal instances. An instance spans ``nodes`` hosts, or shares one host with its neighbours
(``instances_per_node``). Each node of an instance runs one process with ``data_parallel / nodes`` of its ranks.
"""

from __future__ import annotations

__all__ = ["ROLES", "Placement", "place", "pools_of"]

from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

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
