"""Action plugin ``generation``: decides the number, renders this host's files, and hands both to the module.

Deciding needs every host's manifests and rendering needs the plan; both are on the controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ascent import access, containers, generations, units
from ascent.findings import finding, message
from ascent_controller import access_settings, facts, render


class ActionModule(ActionBase):
    """Sets the host fact ``ascent_generation``: what `generations.decide` returns, with ``stop`` of `to_stop` and
    ``waves`` of `waves`, and ``edited`` of `units.rewritten` and `containers.replaced`.
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
        secrets = access.fingerprints(plan, access_settings.read(self._templar, task_vars).engine_key)
        decision = generations.decide(plan, digests, nodes, secrets)
        edited = [
            *units.rewritten(plan, nodes, self._task.args["root"], managed=render.MANAGED),
            *containers.replaced(plan, decision, nodes, digests),
        ]
        seen = (plan, decision, nodes)
        beyond = generations.beyond(*seen, task_vars["ansible_play_hosts_all"], edited)
        if beyond:
            return {**result, **_too_narrow(beyond, task_vars["ansible_play_hosts_all"], plan["cluster"])}
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
        steps = {
            "stop": generations.to_stop(*seen, edited),
            "waves": generations.waves(*seen, edited),
            "edited": edited,
        }
        result["ansible_facts"] = {"ascent_generation": {**steps, **decision}}
        return result


def _too_narrow(beyond: Mapping[str, str], inside: Sequence[str], cluster: str) -> dict[str, Any]:
    what = finding(
        "limit-too-narrow",
        "error",
        f"hosts outside the limit would have to change with those inside: {', '.join(beyond)}",
        stage="launch",
        evidence=f"limit: {', '.join(inside)}; " + "; ".join(f"{host} {why}" for host, why in beyond.items()),
        cause="A generation is on all hosts of a cluster, and the ranks of an instance start together.",
        fix=f"Run it for the whole cluster: -l {cluster}",
    )
    return {"failed": True, "findings": [what], "msg": message([what])}
