"""Action plugin ``hccl_verify``: fills in whom this host pings, which the controller knows, and runs the module."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ascent import mesh, npu
from ascent_controller import facts


class ActionModule(ActionBase):
    """``tool``, ``host`` and ``peers`` come from the plan and from what `npu_info` read, unless the task gives them.

    The module's result becomes the fact ``ascent_mesh``. ``mesh`` is one of `mesh.MODES`.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on this host with its own rotated list of peers."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        mode = arguments.pop("mesh", "planned")
        if "peers" not in arguments:
            plan, host = facts.plan(task_vars), task_vars["inventory_hostname"]
            fabric, read = plan["hosts"][host]["fabric"], facts.of_plan(task_vars)

            def address_of(peer: str, device: int) -> str | None:
                return npu.address(read[peer].get("ascent_npus"), device, plan["hosts"][peer]["fabric"]["address"])

            arguments.update(tool=fabric["ping"], host=host, peers=mesh.peers(plan, address_of, mode).get(host, []))
            # Where npu_info found the tool; without one the module's own default says what is missing.
            tool = (read[host].get("ascent_npus") or {}).get("hccn_tool")
            arguments |= {"hccn_tool": tool} if tool else {}
        result.update(self._execute_module(module_name="hccl_verify", module_args=arguments, task_vars=task_vars))
        if not result.get("failed"):
            told = ("plane", "packets", "seconds", "pairs")
            result["ansible_facts"] = {"ascent_mesh": {key: result.pop(key) for key in told}}
        return result
