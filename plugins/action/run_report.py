"""Action plugin ``run_report``: writes the report of a recorded run again."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ascent.errors import AscentError
from ascent_controller import report, runs


class ActionModule(ActionBase):
    """Option ``run``: a folder, or its name under ``runs/``; the latest by default. Returns ``path``."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"run"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write it when it differs from what is there."""
        result = super().run(tmp, task_vars)
        try:
            directory = runs.find(self._task.args.get("run") or None)
            wanted = report.html(directory)
        except AscentError as error:
            raise AnsibleActionFail(str(error)) from error
        path = directory / "report.html"
        result["changed"] = not path.is_file() or path.read_text(encoding="utf-8") != wanted
        result["path"] = str(path)
        if result["changed"] and not self._task.check_mode:
            path.write_text(wanted, encoding="utf-8")
        result["msg"] = f"report: {path}"
        return result
