"""Action plugin ``torch_trial``: gives each host the trials that the plan makes for it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ascent_controller import facts, torch_trial


class ActionModule(ActionBase):
    """Takes ``state``, ``directory``, ``port`` and ``limit``; what they came to becomes the fact ``ascent_torch``."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on this host."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given, host = dict(self._task.args), task_vars["inventory_hostname"]
        # Ranks give up before the module does, and say what they waited for.
        every = torch_trial.trials(facts.plan(task_vars), int(given.pop("port")), float(given["limit"]) * 0.75)
        given.update(trials=[one for one in every if one["host"] == host], last_size=torch_trial.LAST_SIZE)
        done = self._execute_module(module_name="torch_trial", module_args=given, task_vars=task_vars)
        result.update(done)
        if given["state"] == "finished" and not done.get("failed"):
            instances = {one["name"]: one["instance"] for one in given["trials"]}
            told = {name: {**one, "instance": instances[name]} for name, one in result.pop("trials").items()}
            result["ansible_facts"] = {"ascent_torch": told}
        return result
