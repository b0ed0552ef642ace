"""Puts findings into the run's record, and fails the host when one is an error. Contacts no host."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ascent.findings import failed, message, sort_findings


class ActionModule(ActionBase):
    """``report_findings: {findings: [...], metrics: {...}}``; the result carries both for the run's record."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """All findings, worst first; the message names every error with its fix."""
        super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {
                "findings": {"type": "list", "elements": "dict", "required": True},
                "metrics": {"type": "dict", "default": {}},
            }
        )
        findings = sort_findings(given["findings"])
        text = message(findings) or "nothing stands against it"
        told = {"findings": findings, "metrics": given["metrics"], "msg": text}
        return {"changed": False, "failed": failed(findings), **told}
