"""Action plugin ``search_logs``: reads the logs of a plan's processes on all nodes at once and names what it knows."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase

from ascent.findings import finding
from ascent_controller import connections, facts, signatures, watch


class ActionModule(ActionBase):
    """See library/search_logs.py for options and results."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"look_back", "stage"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask every node once, and tell the first cause first."""
        result = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            {"look_back": {"type": "float", "default": 900}, "stage": {"type": "str", "required": True}}
        )
        variables = task_vars or {}
        hostvars = variables["hostvars"]
        state = watch.Watch(facts.plan(variables), signatures.load(), time.monotonic(), begun=facts.readings(hostvars))
        executes = connections.executes(self._task, self._play_context, hostvars, state.hosts)
        unread = watch.search(state, executes, options["look_back"])
        result.update(changed=False, findings=state.told(options["stage"]), logs=state.logs())
        result["findings"] += [
            finding(
                "logs-unread",
                "warning",
                f"the logs of {host} could not be read",
                host=host,
                stage=options["stage"],
                evidence=error,
                cause="The connection, the Python interpreter or the container engine of the host fails.",
                fix=f"Try: ansible {host} -b -m ansible.builtin.command -a 'docker ps'",
            )
            for host, error in sorted(unread.items())
        ]
        return result
