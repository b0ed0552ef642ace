"""Action plugin ``kept_plan``: the cluster as its nodes know it, without inventory values or a recipe.

What a launch wrote is enough to look at a service, to stop it or to go back, also while the recipe is being changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase

from ascent import generations
from ascent.errors import AscentError
from ascent.findings import finding, message
from ascent_controller import clusters, connections, facts


class ActionModule(ActionBase):
    """See library/kept_plan.py for options and results.

    The play's first host does the work and keeps the facts for all, as with ``launch_plan``, for the same reason.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Name the cluster's hosts, or take up the plan of a generation."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        keeper = facts.keeper(variables)
        if variables["inventory_hostname"] != keeper:
            return {**result, "changed": False, "ansible_facts": {"ascent_plan_keeper": keeper}}
        _, given = self.validate_argument_spec({"generation": {"type": "str"}, "root": {"type": "path"}})
        cluster, names, findings = clusters.of_play(variables)
        result.update(changed=False, findings=findings)
        if not findings and given["generation"] is not None:
            try:
                return {**result, **self._take_up(cluster, names, given, variables)}
            except AscentError as error:
                result["findings"] = [_refused(str(error), cluster)]
        if result["findings"]:
            return {**result, "failed": True, "msg": message(result["findings"])}
        query = {"cluster": cluster, "weights_directory": None}
        known = {"ascent_plan": None, "ascent_hosts": names, "ascent_node_query": query}
        return {**result, "ansible_facts": known}

    def _take_up(
        self, cluster: str, names: list[str], given: Mapping[str, Any], variables: dict[str, Any]
    ) -> dict[str, Any]:
        nodes = {name: facts.node(variables, name) for name in names}
        states = {name: (node or {}).get("state") for name, node in nodes.items()}
        number = generations.choose(given["generation"], states)
        path = f"{given['root']}/{cluster}/generations/{number}/plan.json"
        # The play's first host may be down, and not every host has every generation.
        teller, entry = next(
            (name, one)
            for name, state in states.items()
            for one in (state or {}).get("generations") or ()
            if one["number"] == number
        )
        hostvars = variables["hostvars"]
        (read,) = connections.executes(self._task, self._play_context, hostvars, [teller]).values()
        code, out, err = read(f"import sys; sys.stdout.buffer.write(open({path!r}, 'rb').read())".encode())
        if code:
            said = err.decode(errors="replace").strip().splitlines()[-1:]
            raise AscentError(f"{teller} can't tell generation {number}: {' '.join(said)}. Name another generation")
        try:
            plan = json.loads(out)
        except ValueError as error:
            raise AscentError(f"{path} is not what was written there: {error}. Name another generation") from None
        if set(plan["hosts"]) != set(names):
            raise AscentError(
                f"generation {number} was for {', '.join(sorted(plan['hosts']))};"
                f" the cluster has {', '.join(sorted(names))} now. Deploy the recipe instead"
            )
        # What is current is looked at and stopped all the same; status tells of it.
        if given["generation"] != "current" and generations.content_hash(plan) != entry["plan_hash"]:
            raise AscentError(f"{path} on {teller} was edited by hand. Name another generation")
        return {
            "ansible_facts": {"ascent_plan": plan, "ascent_kept": {"number": number, "digests": entry["images"]}},
            "record": {"plan.json": plan},
            "msg": f"generation {number}: {plan['recipe']}, made {entry['created']}",
        }


def _refused(text: str, cluster: str) -> dict[str, Any]:
    what, _, fix = text.rpartition(". ")
    return finding("generation-unknown", "error", what or text, stage="plan", evidence=cluster, fix=fix)
