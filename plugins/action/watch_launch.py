"""Action plugin ``watch_launch``: follows all nodes of the plan at once, over Ansible's own connections.

A module can't do this: it neither streams nor sees its peers, and one host's failure waits for the others' tasks.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ascent_controller import connections, facts, signatures, watch


class ActionModule(ActionBase):
    """See library/watch_launch.py for options and results."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"plan", "timeout", "tls", "stall"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Watch until all is ready or something failed."""
        result = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            {
                "plan": {"type": "dict"},
                "timeout": {"type": "float", "default": 1800},
                "stall": {"type": "float", "default": 600},
                "tls": {"type": "dict", "default": {}},
            }
        )
        result.update(changed=False, ready=True, findings=[], metrics={}, logs={})
        variables = task_vars or {}
        plan = options["plan"] or variables.get("ascent_plan")
        if not plan:
            raise AnsibleActionFail("there is no launch plan: run this through deploy.yml, which plans first")
        if self._task.check_mode:
            result["msg"] = "check mode: nothing was started, so there is nothing to watch"
            return result
        state = watch.Watch(
            plan,
            signatures.load(),
            time.monotonic(),
            timeout=options["timeout"],
            stall=options["stall"],
            begun=facts.readings(variables["hostvars"]),
            tls=options["tls"],
        )
        executes = connections.executes(self._task, self._play_context, variables["hostvars"], state.hosts)
        display = Display()
        verdict = watch.run(state, executes, lambda line: display.display(f"    {line}"))
        ended = time.time()
        result["findings"] = state.findings()
        result["metrics"] = {"launch": {**state.metrics(time.monotonic()), "ended": round(ended, 3)}}
        result["logs"] = state.logs()
        if verdict == "failed":
            result.update(failed=True, ready=False)
            result["msg"] = "; ".join(item["summary"] for item in result["findings"] if item["severity"] == "error")
        return result
