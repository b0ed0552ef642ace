"""Action plugin ``host_reboot``: reboots a host, reads it again, and proves that the reboot did what it was for."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ascent.findings import failed, message
from ascent_controller import facts, npu_packages


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
        task = self._task.copy()
        task.args = {"reboot_timeout": given["timeout"], "msg": "Ascent: the new NPU driver or firmware needs a reboot"}
        reboot = self._shared_loader_obj.action_loader.get(
            "ansible.builtin.reboot",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        error, after = "", None
        try:
            done = reboot.run(task_vars=task_vars)
            result["elapsed"] = done.get("elapsed")
            error = str(done.get("msg") or "") if done.get("failed") else ""
            if self._task.check_mode:
                return {**result, "changed": True, "findings": [], "msg": "would be rebooted"}
            if not error:
                read = self._execute_module(module_name="node_info", module_args=given["read"], task_vars=task_vars)
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
