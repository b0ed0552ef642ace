"""Action plugin ``judge``: lets one of the pure judges compare the plan with what the nodes told. Contacts no host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
        _, given = self.validate_argument_spec(
            {
                "by": {"type": "str", "required": True, "choices": sorted(judges.JUDGES)},
                "with": {"type": "dict", "default": {}},
            }
        )
        judge: Callable[..., Mapping[str, Any]] = judges.JUDGES[given["by"]]
        result.update(judges.told(judge(facts.plan(task_vars), facts.of_plan(task_vars), **given["with"])))
        return result
