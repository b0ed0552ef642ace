"""Ansible's own connections to several hosts at once, for action plugins that run once for all of them."""

from __future__ import annotations

__all__ = ["Execute", "execute", "executes"]

import copy
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from ansible import constants as C  # noqa: N812 - the name that Ansible's own plugins use
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.loader import become_loader, connection_loader
from ansible.utils.display import Display

from ascent_controller import facts

#: Sends bytes to the Python of one host: (return code, stdout, stderr).
Execute = Callable[[bytes], tuple[int, bytes, bytes]]


def execute(task: Any, play_context: Any, hostvars: Any, *arguments: str) -> Execute:
    """A function that runs Python with ``arguments`` on a host, with that host's own connection and privileges.

    What it is given goes to Python's stdin; with the argument ``-`` it is the program itself.
    """
    # Threads use connections, and some outlive the task. One that is cut off while it hands a line of -vvv to the
    # controller's main process would keep that process's queue locked for good. So this worker says nothing of them.
    Display().verbosity = 0
    name = str(hostvars.get("ansible_connection") or task.connection or C.DEFAULT_TRANSPORT)
    context = copy.copy(play_context)
    context.remote_addr = str(hostvars.get("ansible_host") or hostvars["inventory_hostname"])
    connection = connection_loader.get(name, context, task_uuid=task._uuid)
    if connection is None:
        raise AnsibleActionFail(f"{hostvars['inventory_hostname']}: there is no connection plugin {name!r}")
    keywords = task.dump_attrs()
    # These two mean something else for a connection than for a task.
    keywords["timeout"] = play_context.timeout
    keywords.pop("retries", None)
    if play_context.password:
        keywords["password"] = play_context.password
    wanted = hostvars.get("ansible_become")
    if task.become if wanted is None else boolean(wanted):
        become = become_loader.get(str(hostvars.get("ansible_become_method") or task.become_method or "sudo"))
        secret = {"become_pass": play_context.become_pass} if play_context.become_pass else {}
        become.set_options(task_keys={**keywords, **secret}, var_options=_options("become", become, hostvars))
        connection.set_become_plugin(become)
    # The program comes by stdin, which leaves none for a terminal.
    options = {**_options("connection", connection, hostvars), "ansible_pipelining": True}
    connection.set_options(task_keys=keywords, var_options=options)
    connection._shell.set_options(var_options=_options("shell", connection._shell, hostvars))
    command = " ".join(shlex.quote(word) for word in (facts.interpreter(hostvars), *arguments))
    become = connection.become
    # As Ansible itself: who logs in as root needs no sudo, and may not have it.
    if become is not None and become.get_option("become_user") != _user(connection):
        command = become.build_become_command(command, connection._shell)

    def run(source: bytes) -> tuple[int, bytes, bytes]:
        code, out, err = connection.exec_command(command, in_data=source, sudoable=True)
        return code, out, err

    return run


def executes(task: Any, play_context: Any, hostvars: Any, hosts: Iterable[str]) -> dict[str, Execute]:
    """`execute` for each of a plan's hosts, to be given programs on stdin.

    Raises AnsibleActionFail for hosts that the inventory lacks.
    """
    unknown = [host for host in hosts if host not in hostvars]
    if unknown:
        raise AnsibleActionFail(f"the plan names hosts that the inventory lacks: {', '.join(unknown)}")
    return {host: execute(task, play_context, hostvars[host], "-") for host in hosts}


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
