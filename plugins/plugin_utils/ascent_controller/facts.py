"""The facts that Ascent's own modules set, as action plugins read them."""

from __future__ import annotations

__all__ = ["interpreter", "keeper", "node", "nodes", "of_plan", "plan", "readings"]

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail

_PYTHON = "/usr/bin/python3"


def interpreter(hostvars: Mapping[str, Any]) -> str:
    """A host's Python: the configured one, else the one that Ansible found, else the usual one."""
    configured = str(hostvars.get("ansible_python_interpreter") or "auto")
    if not configured.startswith("auto"):
        return configured
    known = hostvars.get("ansible_facts") or {}
    return str(known.get("discovered_interpreter_python") or _PYTHON)


def keeper(task_vars: Mapping[str, Any]) -> str:
    """The host that keeps the facts of the whole cluster: the play's first."""
    hosts = task_vars.get("ansible_play_hosts_all") or [task_vars["inventory_hostname"]]
    return str(hosts[0])


def plan(task_vars: Mapping[str, Any]) -> dict[str, Any]:
    """The launch plan; AnsibleActionFail where nothing was planned before."""
    found = _of(task_vars, keeper(task_vars)).get("ascent_plan")
    if not found:
        raise AnsibleActionFail("there is no launch plan: run this through deploy.yml, which plans first")
    return dict(found)


def node(task_vars: Mapping[str, Any], host: str) -> dict[str, Any] | None:
    """What `node_info` read of a host in this run; None when it was not read."""
    return _of(task_vars, host).get("ascent_node")


def nodes(task_vars: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """`node` of every host of the plan."""
    return {name: node(task_vars, name) for name in plan(task_vars)["hosts"]}


def of_plan(task_vars: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All facts of every host of the plan."""
    return {name: _of(task_vars, name) for name in plan(task_vars)["hosts"]}


def readings(hostvars: Mapping[str, Any]) -> dict[str, float]:
    """When this run last read each node, by the node's own clock. Hosts of other clusters were not read."""
    read = {host: (hostvars[host].get("ansible_facts") or {}).get("ascent_node") or {} for host in hostvars}
    clocks = {host: node.get("clock") or {} for host, node in read.items()}
    return {host: clock["last"] for host, clock in clocks.items() if clock.get("last") is not None}


def _of(task_vars: Mapping[str, Any], host: str) -> Mapping[str, Any]:
    return task_vars["hostvars"][host].get("ansible_facts") or {}
