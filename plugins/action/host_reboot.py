"""Action plugin ``host_reboot``: reboots a host, reads it again, and proves that the reboot did what it was for."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ascent.findings import failed, message
from ascent_controller import actions, facts, npu_packages


class ActionModule(ActionBase):
    """``host_reboot: {timeout: 1800, devices: 16, read: {cluster: c}}``; sets the fact ``ascent_node`` anew."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Findings instead of a bare UNREACHABLE; a dry run only predicts."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _, given = self.validate_argument_spec(
            {
                "timeout": {"type": "int", "default": 1800},
                "devices": {"type": "int"},
                "read": {"type": "dict", "required": True},
            }
        )
        host = task_vars["inventory_hostname"]
        before = facts.node(task_vars, host) or {}
        arguments = {"reboot_timeout": given["timeout"], "msg": "Ascent: the new NPU driver or firmware needs a reboot"}
        error, after = "", None
        try:
            done = actions.run(self, "ansible.builtin.reboot", arguments, task_vars)
            result["elapsed"] = done.get("elapsed")
            error = str(done.get("msg") or "") if done.get("failed") else ""
            if self._task.check_mode:
                return {**result, "changed": True, "findings": [], "msg": "would be rebooted"}
            if not error:
                read = actions.run(self, "node_info", given["read"], task_vars)
                error = str(read.get("msg") or "") if read.get("failed") else ""
                after = (read.get("ansible_facts") or {}).get("ascent_node")
        except AnsibleConnectionFailure as failure:
            error = str(failure)
        findings = npu_packages.reboot_proof(before, after, host, error=error, devices=given["devices"])
        if after is not None:
            result["ansible_facts"] = {"ascent_node": after}
        result.update(changed=True, findings=findings, failed=failed(findings))
        result["msg"] = message(findings) or f"back after {result.get('elapsed')} s with another boot id"
        return result
