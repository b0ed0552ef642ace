"""Action plugin ``judge``: lets one of the pure judges compare the plan with what the nodes told. Contacts no host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

from ascent_controller import facts, judges


class ActionModule(ActionBase):
    """``judge: {by: preflight, with: {…}}``; fails with every error in one message."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The judge's findings, metrics, record and facts."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _, named = self.validate_argument_spec(
            {
                "by": {"type": "str", "required": True, "choices": sorted(judges.JUDGES)},
                "with": {"type": "dict", "default": {}},
            }
        )
        judge: Callable[..., Mapping[str, Any]] = judges.JUDGES[named["by"]]
        given = self.options(judge, named["with"])
        result.update(judges.told(judge(facts.plan(task_vars), facts.of_plan(task_vars), **given)))
        return result

    @staticmethod
    def options(judge: Callable[..., Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
        """The options as the judge wants them; an error says which one can't be."""
        checked = ArgumentSpecValidator(judges.options(judge)).validate(given)
        if checked.error_messages:
            raise AnsibleActionFail("; ".join(checked.error_messages))
        options: dict[str, Any] = checked.validated_parameters
        return options
