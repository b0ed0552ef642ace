"""Action plugin ``node_info``: runs the module and notes the controller's clock around it."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Adds ``before`` and ``after`` to ``clock`` of the fact ``ascent_node``: the controller's seconds since the epoch.

    With ``first`` and ``last``, which the node read in between, the clocks of two nodes can be compared.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on this host."""
        result = super().run(tmp, task_vars)
        before = time.time()
        result.update(self._execute_module(task_vars=task_vars or {}))
        if not result.get("failed"):
            result["ansible_facts"]["ascent_node"]["clock"].update(before=before, after=time.time())
        return result
