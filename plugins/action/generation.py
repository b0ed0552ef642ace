"""Action plugin ``generation``: decides the number, renders this host's files, and hands both to the module.

Deciding needs every host's manifests and rendering needs the plan; both are on the controller.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ascent import access, generations, units
from ascent_controller import access_settings, facts, render


class ActionModule(ActionBase):
    """Sets the host fact ``ascent_generation``: what `generations.decide` returns, with ``stop`` of `to_stop` and
    ``waves`` of `waves`, and ``edited`` of `units.rewritten`.
    """

    TRANSFERS_FILES = False
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module with the arguments it needs."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        plan = facts.plan(task_vars)
        host = task_vars["inventory_hostname"]
        digests = self._task.args.get("digests") or {}
        unlocked = [image for image in generations.images_of(plan) if not digests.get(image)]
        if unlocked and not self._task.check_mode:
            raise AnsibleActionFail(f"{', '.join(unlocked)}: not locked to a digest yet; run --tags provision,launch")
        nodes = facts.nodes(task_vars)
        states = {name: (node or {}).get("state") for name, node in nodes.items()}
        secrets = access.fingerprints(plan, access_settings.read(self._templar, task_vars).engine_key)
        decision = generations.decide(plan, digests, states, secrets)
        manifest = generations.manifest(
            plan, digests, decision, host, nodes[host], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        result.update(
            self._execute_module(
                module_name="generation",
                module_args={
                    "root": self._task.args["root"],
                    "digests": digests,
                    "number": decision["number"],
                    "files": {**render.files(plan, host=host)[host], "plan.json": render.plan_text(plan)},
                    "directories": plan["hosts"][host]["directories"],
                    "manifest": manifest,
                },
                task_vars=task_vars,
            )
        )
        edited = units.rewritten(plan, nodes, self._task.args["root"], managed=render.MANAGED)
        seen = (plan, decision, nodes, edited)
        steps = {"stop": generations.to_stop(*seen), "waves": generations.waves(*seen), "edited": edited}
        result["ansible_facts"] = {"ascent_generation": {**steps, **decision}}
        return result
