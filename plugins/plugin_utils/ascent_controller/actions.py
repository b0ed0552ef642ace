"""Ansible's own action plugins, run by one of ours on the same host."""

from __future__ import annotations

__all__ = ["run"]

from typing import Any

from ansible.plugins.action import ActionBase


def run(action: ActionBase, name: str, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
    """The result of the action plugin ``name`` with ``arguments``, over the connection that ``action`` has."""
    task = action._task.copy()
    task.action, task.args = name, arguments
    other = action._shared_loader_obj.action_loader.get(
        name,
        task=task,
        connection=action._connection,
        play_context=action._play_context,
        loader=action._loader,
        templar=action._templar,
        shared_loader_obj=action._shared_loader_obj,
    )
    done: dict[str, Any] = other.run(task_vars=task_vars)
    return done
