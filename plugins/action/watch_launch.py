"""Action plugin ``watch_launch``: follows all nodes of the plan at once, over Ansible's own connections.

A module can't do this: it neither streams nor sees its peers, and one host's failure waits for the others' tasks.
"""

from __future__ import annotations

import copy
import shlex
import time
from typing import Any

from ansible import constants as C  # noqa: N812 - the name that Ansible's own plugins use
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import become_loader, connection_loader
from ansible.utils.display import Display

from ascent_controller import facts, signatures, watch


class ActionModule(ActionBase):
    """See library/watch_launch.py for options and results."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"fails", "plan", "timeout", "stall"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Watch until all is ready or something failed."""
        result = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            {
                "plan": {"type": "dict"},
                "timeout": {"type": "float", "default": 1800},
                "stall": {"type": "float", "default": 600},
                "fails": {"type": "bool", "default": True},
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
            plan, signatures.load(), time.monotonic(), timeout=options["timeout"], stall=options["stall"]
        )
        unknown = [host for host in state.hosts if host not in variables["hostvars"]]
        if unknown:
            raise AnsibleActionFail(f"the plan names hosts that the inventory lacks: {', '.join(unknown)}")
        executes = {host: self._execute(variables["hostvars"][host]) for host in state.hosts}
        display = Display()
        verdict = watch.run(state, executes, lambda line: display.display(f"    {line}"))
        result["findings"] = state.findings()
        result["metrics"] = {"launch": state.metrics(time.monotonic())}
        result["logs"] = state.logs()
        if verdict == "failed":
            result.update(failed=options["fails"], ready=False)
            result["msg"] = "; ".join(item["summary"] for item in result["findings"] if item["severity"] == "error")
        return result

    def _execute(self, hostvars: Any) -> watch.Execute:
        """A function that runs a Python program on a host, with that host's own connection and privileges."""
        name = str(hostvars.get("ansible_connection") or self._task.connection or C.DEFAULT_TRANSPORT)
        context = copy.copy(self._play_context)
        context.remote_addr = str(hostvars.get("ansible_host") or hostvars["inventory_hostname"])
        connection = connection_loader.get(name, context, task_uuid=self._task._uuid)
        if connection is None:
            raise AnsibleActionFail(f"{hostvars['inventory_hostname']}: there is no connection plugin {name!r}")
        keywords = self._task.dump_attrs()
        # These two mean something else for a connection than for a task.
        keywords["timeout"] = self._play_context.timeout
        keywords.pop("retries", None)
        if self._play_context.password:
            keywords["password"] = self._play_context.password
        wanted = hostvars.get("ansible_become")
        if self._task.become if wanted is None else boolean(wanted):
            become = become_loader.get(str(hostvars.get("ansible_become_method") or self._task.become_method or "sudo"))
            secret = {"become_pass": self._play_context.become_pass} if self._play_context.become_pass else {}
            become.set_options(task_keys={**keywords, **secret}, var_options=_options("become", become, hostvars))
            connection.set_become_plugin(become)
        # The program comes by stdin, which leaves none for a terminal.
        options = {**_options("connection", connection, hostvars), "ansible_pipelining": True}
        connection.set_options(task_keys=keywords, var_options=options)
        connection._shell.set_options(var_options=_options("shell", connection._shell, hostvars))
        command = f"{shlex.quote(facts.interpreter(hostvars))} -"
        become = connection.become
        # As Ansible itself: who logs in as root needs no sudo, and may not have it.
        if become is not None and become.get_option("become_user") != _user(connection):
            command = become.build_become_command(command, connection._shell)

        def execute(source: bytes) -> tuple[int, bytes, bytes]:
            code, out, err = connection.exec_command(command, in_data=source, sudoable=True)
            return code, out, err

        return execute


def _user(connection: Any) -> str | None:
    """Who logs in, for a connection that knows of users."""
    try:
        return str(connection.get_option("remote_user"))
    except KeyError:
        return None


def _options(kind: str, plugin: Any, hostvars: Any) -> dict[str, Any]:
    """Those of a host's variables that a plugin takes its options from."""
    names = C.config.get_plugin_vars(kind, plugin._load_name)
    return {name: hostvars[name] for name in [*names, "inventory_hostname"] if name in hostvars}
