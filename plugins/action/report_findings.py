"""Puts findings into the run's record, and fails the host when one is an error. Contacts no host."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ascent.findings import failed, message, sort_findings


class ActionModule(ActionBase):
    """``report_findings: {findings: [...]}``; the result carries them for the callback that writes the record."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """All findings, worst first; the message names every error with its fix."""
        super().run(tmp, task_vars)
        _, given = self.validate_argument_spec({"findings": {"type": "list", "elements": "dict", "required": True}})
        findings = sort_findings(given["findings"])
        text = message(findings) or "nothing stands against it"
        return {"changed": False, "failed": failed(findings), "findings": findings, "msg": text}
