"""Action plugin ``credentials``: what each process of a host has to keep secret, out of inventory and vault.

The texts go from here to the module, which hides them (``no_log``); no variable, fact or record ever has them.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ascent import access
from ascent_controller import access_settings, facts


class ActionModule(ActionBase):
    """See library/credentials.py for options and results."""

    TRANSFERS_FILES = False
    _requires_connection = True
    _VALID_ARGS = frozenset(("root",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module with the secrets of this host's processes."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        plan = facts.plan(variables)
        host = variables["inventory_hostname"]
        settings = access_settings.read(self._templar, variables)
        mine = [one for one in [*plan["processes"], *plan["jobs"]] if one["host"] == host and one.get("secrets")]
        files = {name for one in mine for name in one["secrets"]["files"]}
        wants_key = bool(files - {"tls.crt", "tls.key"})
        if wants_key and not (settings.engine_key and settings.client_keys):
            raise AnsibleActionFail(
                "this generation asks clients for an API key, and the inventory has none: set ascent_api_key, "
                "or launch the recipe anew without one"
            )
        certificate, private_key, made = "", "", False
        try:
            if "tls.key" in files:
                certificate, private_key, made = access_settings.material(
                    settings, plan, self._loader, time.time(), write=not self._task.check_mode
                )
        except (OSError, ValueError) as error:
            raise AnsibleActionFail(f"the endpoint's certificate can't be had: {error}") from None
        gateway = next((one for one in mine if one["kind"] == "gateway"), None)
        result.update(
            self._execute_module(
                module_name="credentials",
                module_args={
                    "root": self._task.args["root"],
                    "secrets": {
                        one["name"]: access.secret_files(
                            one,
                            client_keys=settings.client_keys,
                            engine_key=settings.engine_key,
                            certificate=certificate,
                            private_key=private_key,
                        )
                        for one in mine
                    },
                    "gateway": {"process": gateway["name"], "container": gateway["container"]["name"]}
                    if gateway
                    else None,
                },
                task_vars=variables,
            )
        )
        result["changed"] = bool(result.get("changed")) or made
        return result
