"""What the check stage asks, taken from the plan. Pure functions behind the filters of plugins/filter/ascent.py."""

from __future__ import annotations

__all__ = [
    "bench_due",
    "bench_load",
    "bench_setting",
    "endpoint_host",
    "health_endpoints",
    "read",
    "traffic_engines",
    "unread",
    "version_urls",
]

from collections.abc import Mapping, Sequence
from typing import Any

from ascent import bench
from ascent.errors import AscentError
from ascent.findings import finding


def endpoint_host(plan: Mapping[str, Any], hostvars: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The host whose process clients talk to; checks run from there, where the endpoint is reachable for sure.

    With ``hostvars``, the first host that was read when that one was not.
    For a plan of offline jobs, which has no endpoint, its first host: Ansible wants a host of a task that it skips too.
    """
    hosts = [str(name) for name in plan["hosts"]]
    endpoint = plan["endpoint"]
    if endpoint is not None:
        own = next(str(item["host"]) for item in plan["processes"] if item["name"] == endpoint["process"])
        hosts = [own, *hosts]
    return hosts[0] if hostvars is None else read(hosts, hostvars)[0]


def read(hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those of ``hosts`` that were read in this run; all where none was, so that the next task tells why."""
    return [host for host in hosts if (hostvars[host].get("ansible_facts") or {}).get("ascent_node")] or list(hosts)


def unread(hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A finding for each of ``hosts`` on which nothing was stopped because it was out of reach."""
    known = set(read(hosts, hostvars))
    return [
        finding(
            "host-unreadable",
            "error",
            f"{host} could not be reached, so nothing was stopped there",
            host=host,
            stage="stop",
            cause="The host is down, or its address or key is not what the inventory says.",
            fix="What it runs comes back with it. Then stop it, too: run this again.",
        )
        for host in hosts
        if host not in known
    ]


def health_endpoints(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every process that answers a health request, as the module `endpoint_health` takes them, engines before routers.

    A process is named by its instance, so that a finding says what the operator knows; where an instance has a server
    for each rank, and beside the engines, by itself. Each server is asked for its own list of models and its counters.
    """
    several = {instance["name"] for instance in plan["instances"] if len(instance["endpoints"]) > 1}
    served = {end["url"] for instance in plan["instances"] for end in instance["endpoints"]}
    found = []
    for process in plan["processes"]:
        if not process["health"]:
            continue
        instance = process["instance"]
        base = process["health"].removesuffix("/health")
        found.append(
            {
                "name": process["name"] if instance is None or instance in several else instance,
                "host": process["host"],
                "url": process["health"],
                **({"models_url": f"{base}/v1/models", "metrics_url": f"{base}/metrics"} if base in served else {}),
            }
        )
    return found


def traffic_engines(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every server of the plan with its ranks and what it is set up to do, as the module `functional_check` takes them.

    A server is named as in `health_endpoints`. One that serves a whole instance counts for all ranks of it, one of
    several for its own. Without a router clients go to each server by itself, and so does the check (``entry``).
    """
    routed = not any(plan["endpoint"]["process"] in instance["processes"] for instance in plan["instances"])
    by_name = {process["name"]: process for process in plan["processes"]}
    found = []
    for instance in plan["instances"]:
        servers = [by_name[name] for name in instance["processes"] if by_name[name]["health"]]
        for end in instance["endpoints"]:
            process = next((one for one in servers if one["health"] == f"{end['url']}/health"), None)
            parallel = (process or {}).get("parallel")
            if process is None or not parallel:
                continue
            words = [word for line in process["argv"] for word in line]
            several = len(instance["endpoints"]) > 1
            found.append(
                {
                    "name": process["name"] if several else instance["name"],
                    "host": process["host"],
                    "role": process["role"],
                    "metrics_url": f"{end['url']}/metrics",
                    "entry": plan["endpoint"]["url"] if routed else end["url"],
                    "ranks": parallel["data_local"] if several else parallel["data"],
                    "hosts": _rank_hosts([process] if several else [by_name[name] for name in instance["processes"]]),
                    "prefix_caching": "--no-enable-prefix-caching" not in words,
                    "speculative": "--speculative-config" in words,
                    "max_model_len": int(words[words.index("--max-model-len") + 1])
                    if "--max-model-len" in words
                    else None,
                }
            )
    return found


def _rank_hosts(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The host of each data parallel rank that these processes hold, in the order of the ranks."""
    held = sorted(
        (rank, str(process["host"]))
        for process in processes
        if process["parallel"] and process["kind"] not in ("ray-worker", "worker")
        for rank in range(
            process["parallel"]["start_rank"], process["parallel"]["start_rank"] + process["parallel"]["data_local"]
        )
    )
    return [host for _, host in held]


def version_urls(plan: Mapping[str, Any]) -> list[str]:
    """Version pages of the engines; one that calls itself simulated marks every figure of a benchmark."""
    return [f"{instance['endpoint']['url']}/version" for instance in plan["instances"] if instance["endpoint"]]


def bench_due(wanted: str, plan_hash: str, last: Mapping[str, Any] | None, asked: bool = False) -> bool:
    """Whether the benchmark runs: ``always``, ``never``, or ``auto`` for once per plan and when it is ``asked`` for.

    >>> bench_due("auto", "h1", {"plan_hash": "h1"}), bench_due("auto", "h1", None)
    (False, True)
    """
    if wanted == "auto":
        return asked or (last or {}).get("plan_hash") != plan_hash
    return wanted == "always"


def bench_load(plan: Mapping[str, Any], reference: str = "") -> dict[str, int]:
    """How large a load the smoke benchmark is, as `bench.SIZES`: the recipe's own, or that of a row of its reference.

    Raises AscentError when there is no such row, or when it was measured under more than a load's size.
    """
    if not reference:
        return {name: plan["checks"]["smoke_bench"][name] for name in bench.SIZES}
    rows = {name: row["conditions"] for name, row in (plan["reference"] or {}).items()}
    fit = sorted(name for name, conditions in rows.items() if set(conditions) == set(bench.SIZES))
    if reference not in fit:
        found = f"its conditions are {', '.join(sorted(rows[reference]))}" if reference in rows else "there is none"
        raise AscentError(
            f"endpoint_check_bench_reference is {reference}: wanted a row of the recipe's reference with "
            f"{', '.join(bench.SIZES)} and nothing else, {found}. Such rows: {', '.join(fit) or 'none'}"
        )
    return {name: int(rows[reference][name]) for name in bench.SIZES}


def bench_setting(plan: Mapping[str, Any]) -> dict[str, str]:
    """What serves, as it belongs to the conditions of a measurement: ``hardware``, and ``image`` where there is one."""
    found = {"hardware": ", ".join(sorted({str(host["hardware"]) for host in plan["hosts"].values()}))}
    return {**found, **({"image": plan["engine"]["image"]} if plan["engine"]["image"] else {})}
