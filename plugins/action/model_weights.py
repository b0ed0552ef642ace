"""Action plugin ``model_weights``: one look at what the nodes told of their weights, and a fetch where some lack them.

A module can't do this: nodes copy from each other, so somebody has to see all of them, and a long copy shows how far it
is.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ascent.findings import failed, finding, message
from ascent.hubs import SourceError, describe
from ascent.weights_job import amount
from ascent_controller import connections, weights_spread

_OPTIONS: dict[str, Any] = {
    "model": {"type": "str", "required": True},
    "source": {"type": "str", "default": ""},
    "revision": {"type": "str", "default": ""},
    "addresses": {"type": "dict"},
    "fetch": {"type": "bool", "default": True},
    "endpoint": {"type": "str", "default": ""},
    "mirror": {"type": "str", "default": ""},
    "archive": {"type": "str", "default": ""},
    "exclude": {"type": "list", "elements": "str", "default": ["original/*"]},
    "parallel": {"type": "int", "default": 4},
    "spread": {"type": "bool", "default": True},
    "fanout": {"type": "int", "default": 2},
    "port": {"type": "int", "default": 0},
    "proxy": {"type": "str", "default": ""},
    "ca_file": {"type": "str", "default": ""},
    "timeout": {"type": "float", "default": 60},
    "attempts": {"type": "int", "default": 5},
}


class ActionModule(ActionBase):
    """See library/model_weights.py for options and results."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    _VALID_ARGS = frozenset(_OPTIONS)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Judge, and fetch where that is wanted."""
        result = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(_OPTIONS)
        variables = task_vars or {}
        result.update(changed=False, findings=[], metrics={})
        hosts = list(variables["ansible_play_hosts"])
        facts = {host: _weights(variables["hostvars"][host]) for host in hosts}
        directory = next((one["directory"] for one in facts.values() if one), None)
        # Mixed up, they would end in one place.
        if len({one["directory"] for one in facts.values() if one}) > 1:
            raise AnsibleActionFail("the hosts were asked about different directories: run node_info for all of them")
        model = {
            "id": options["model"],
            "source": options["source"],
            "revision": options["revision"] or None,
            "directory": directory,
        }
        due = weights_spread.due(model, facts)
        if due:
            self._repair(result, options, variables, model, facts)
        else:
            result["msg"] = "the weights are complete" if directory else "the plan names no directory"
        if failed(result["findings"]):
            result["failed"] = True
            result["msg"] = message(result["findings"])
        return result

    def _repair(
        self, result: dict[str, Any], options: dict[str, Any], variables: dict[str, Any], model: Any, facts: Any
    ) -> None:
        settings = self._settings(options)
        try:
            source = weights_spread.choose(model, settings) if options["fetch"] else None
        except SourceError as error:
            told = {"kind": error.kind, "text": str(error), "fix": error.fix}
            result["findings"] = [weights_spread.told("the controller", model, str(model["directory"]), told)]
            result["findings"][0]["host"] = None
            return
        if source is None:
            result["findings"] = weights_spread.judged(model, facts, fetch=False)
            return
        display = Display()
        hosts = [host for host in facts if facts[host]]
        spread = weights_spread.Spread(
            model,
            settings,
            facts,
            self._addresses(options, variables, hosts),
            {
                host: connections.execute(
                    self._task, self._play_context, variables["hostvars"][host], "-c", weights_spread.BOOT
                )
                for host in hosts
            },
            lambda line: display.display(f"    {line}"),
        )
        if self._task.check_mode:
            self._predict(result, spread, source)
            return
        spread.run(source)
        result["changed"] = any(facts[host] != spread.facts[host] for host in facts)
        result["findings"] = spread.found or weights_spread.judged(model, spread.facts, fetch=True)
        result["metrics"] = {"weights": spread.metrics()}
        result["msg"] = f"{describe(source)}: {len(spread.due)} hosts"

    def _predict(self, result: dict[str, Any], spread: Any, source: Any) -> None:
        would = spread.predict(source)
        if would is None:
            result["findings"] = spread.found
            return
        what = f"{would['files']} files, " if would["files"] is not None else ""
        size = amount(would["bytes"]) if would["bytes"] is not None else "all of it"
        text = f"{what}{size} from {would['source']} to {', '.join(would['hosts'])}"
        result["changed"] = True
        result["msg"] = f"would fetch {text}"
        result["diff"] = [
            {
                "before_header": spread.directory,
                "after_header": spread.directory,
                "before": "",
                "after": f"weights of {spread.model['id']}: {text}\n",
            }
        ]
        result["findings"] = [
            finding("weights-to-fetch", "info", f"the weights of {spread.model['id']} would be fetched: {text}")
        ]

    def _settings(self, options: dict[str, Any]) -> weights_spread.Settings:
        names = ("fetch", "endpoint", "mirror", "exclude", "parallel", "spread", "fanout", "port", "proxy", "ca_file")
        archive = os.path.expanduser(options["archive"])
        return weights_spread.Settings(
            **{name: options[name] for name in (*names, "timeout", "attempts")},
            archive=os.path.abspath(archive) if archive else "",
            # Not an option of the task: what a task is called with may be shown.
            token=str(self._templar.template("{{ weights_token | default('', true) }}")),
        )

    def _addresses(self, options: dict[str, Any], variables: dict[str, Any], hosts: list[str]) -> dict[str, str]:
        """Where hosts give files to others: the plan's addresses, else those that the inventory has."""
        given = options["addresses"] or {}
        found = {}
        for host in hosts:
            own = variables["hostvars"][host]
            address = given.get(host) or own.get("node_ip")
            if address:
                found[host] = str(address)
        return found


def _weights(hostvars: Any) -> dict[str, Any] | None:
    """What `node_info` read of the model's directory on a host."""
    facts = (hostvars.get("ansible_facts") or {}).get("ascent_node")
    if facts is None:
        raise AnsibleActionFail(f"{hostvars['inventory_hostname']} was not read: run node_info before")
    found = facts.get("weights")
    return dict(found) if found else None
