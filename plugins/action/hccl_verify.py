"""Action plugin ``hccl_verify``: fills in whom this host pings, which the controller knows, and runs the module."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ascent import mesh
from ascent_controller import facts


class ActionModule(ActionBase):
    """``tool``, ``devices`` and ``peers`` come from the plan unless the task gives them.

    The module's result becomes the fact ``ascent_mesh``. ``mesh`` is one of `mesh.MODES`.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on this host with its own rotated list of peers."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        mode = arguments.pop("mesh", "same-index")
        if "peers" not in arguments:
            plan, host = facts.plan(task_vars), task_vars["inventory_hostname"]
            fabric = plan["hosts"][host]["fabric"]
            arguments["tool"] = fabric["ping"]
            arguments["devices"] = plan["hosts"][host]["devices"]
            arguments["peers"] = mesh.peers(plan, facts.nodes(task_vars), fabric["address"], mode)[host]
        result.update(self._execute_module(module_name="hccl_verify", module_args=arguments, task_vars=task_vars))
        if not result.get("failed"):
            result["ansible_facts"] = {"ascent_mesh": {key: result.pop(key) for key in ("results", "devices")}}
        return result
