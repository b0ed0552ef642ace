"""Whether what was launched still serves: what runs, endpoints and the router, each failure with its owner. Pure."""

from __future__ import annotations

__all__ = ["judge"]

from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import access_check, generations
from .findings import finding, sort_findings

_STAGE = "check"
_STOPPED = "Somebody stopped it, and a stopped container stays stopped until the next launch."
_EXITS = {
    0: _STOPPED,
    135: "A bus error: its shared memory is too small (D13).",
    137: "It was killed, most often for want of host memory (D28).",
    139: "A segmentation fault; the last lines of its log say in which library.",
    143: _STOPPED,
}
_RESTARTS = 3


def _running(node: Mapping[str, Any], process: Mapping[str, Any]) -> Optional[Dict[str, Mapping[str, Any]]]:
    """The cluster's containers, or units, by the process they run; None when the container engine can't be asked.

    Which of the two is looked at depends on what ``process`` is to be.
    """
    engine = node.get("container_engine")
    if process["container"] and not (engine and engine.get("running")):
        return None
    found = (node.get("units") or {}).get("units", ()) if process.get("unit") else (engine or {}).get("containers", ())
    return {str(one["labels"].get("ascent.process")): one for one in found}


def _container_finding(
    cluster: str, process: Mapping[str, Any], containers: Optional[Mapping[str, Mapping[str, Any]]]
) -> Optional[Dict[str, Any]]:
    what = "unit" if process.get("unit") else "container"
    host, name = process["host"], process["name"]
    owner = f"instance {process['instance']}" if process.get("instance") else name
    launch = f"ansible-playbook deploy.yml -l {cluster} --tags launch"
    logs = f"{generations.log_command(process)} on {host}"
    if containers is None:
        return finding(
            "container-engine",
            "error",
            f"the container engine of {host} does not answer, so {name} can't serve",
            host=host,
            stage=_STAGE,
            evidence="docker version failed",
            cause="Its service is down.",
            fix=f"systemctl status docker on {host}; then: {launch}",
        )
    container = containers.get(name)
    if container is None:
        return finding(
            "process-missing",
            "error",
            f"{owner}: {name} has no {what} on {host}",
            host=host,
            stage=_STAGE,
            evidence=f"{what}s of the cluster there: {', '.join(sorted(containers)) or 'none'}",
            cause="It was never launched, or somebody removed it.",
            fix=launch,
        )
    if container["state"] != "running":
        code = container.get("exit_code")
        unknown = "The first fatal line of its log says why."
        return finding(
            "process-exited",
            "error",
            f"{owner}: {name} on {host} is {container['state']} with exit code {code}",
            host=host,
            stage=_STAGE,
            evidence=f"{what} {container['name']}, {container.get('restarts') or 0} restarts",
            cause=unknown if code is None else _EXITS.get(code, unknown),
            fix=f"{logs}; then: {launch}",
        )
    if (container.get("restarts") or 0) >= _RESTARTS:
        return finding(
            "D33",
            "warning",
            f"{owner}: {name} on {host} has been restarted {container['restarts']} times",
            host=host,
            stage=_STAGE,
            evidence=f"{what} {container['name']}, started {container.get('started_at')}",
            cause="It fails again and again, and the restart policy hides it.",
            fix=f"{logs}: the first fatal line counts, not the last.",
        )
    return None


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    endpoints: Sequence[Mapping[str, Any]],
) -> List[Dict[str, Any]]:
    """Findings on a launched plan, worst first.

    ``nodes`` are the ``ascent_node`` facts by host (None: not readable), ``endpoints`` the results of `endpoint.check`,
    whose ``name`` is that of a process, of an instance, or any other; each is matched to the plan by it.
    """
    found: List[Dict[str, Any]] = []
    cluster = plan["cluster"]
    stopped = set()
    for host in plan["hosts"]:
        mine = [process for process in plan["processes"] if process["host"] == host]
        node = nodes.get(host)
        if node is None:
            stopped |= {process["name"] for process in mine}
            found.append(
                finding(
                    "host-unreadable",
                    "error",
                    f"{host} could not be read; it runs {', '.join(process['name'] for process in mine) or 'nothing'}",
                    host=host,
                    stage=_STAGE,
                    evidence="no facts from node_info",
                    cause="The host is down or unreachable.",
                    fix=f"ansible {host} -m ping; bring it back, then: ansible-playbook deploy.yml -l {cluster}",
                )
            )
            continue
        told = [(process, _container_finding(cluster, process, _running(node, process))) for process in mine]
        stopped |= {process["name"] for process, item in told if item and item["severity"] == "error"}
        # An engine that does not answer is one fault, not one for each process.
        silent = [item for _, item in told if item and item["id"] == "container-engine"]
        found += silent[:1] + [item for _, item in told if item and item["id"] != "container-engine"]
    by_name = {process["name"]: process for process in plan["processes"]}
    heads = {one["name"]: one["processes"][0] for one in plan["instances"] if one.get("processes")}
    for endpoint in endpoints:
        if endpoint["ok"]:
            continue
        name = str(endpoint.get("name"))
        process = by_name.get(name) or by_name.get(heads.get(name, ""))
        if process and process["name"] in stopped:
            continue
        refused = access_check.refusal(
            endpoint.get("status"),
            name,
            endpoint.get("host") or (process["host"] if process else None),
            f"{endpoint['url']}: {endpoint['error']}",
        )
        if refused:
            found.append(refused)
            continue
        router = bool(process and process["kind"] == "router")
        found.append(
            finding(
                "E12" if router else "D07",
                "error",
                f"{'the router' if router else 'endpoint'} {name} does not answer",
                host=endpoint.get("host") or (process["host"] if process else None),
                stage=_STAGE,
                evidence=f"{endpoint['url']}: {endpoint['error']}",
                cause="It runs, but the program refuses or is stuck."
                if process
                else "Nothing of the plan is known by this name.",
                fix=f"Read its log; then: ansible-playbook deploy.yml -l {cluster} --tags launch",
            )
        )
    return sort_findings(found)
