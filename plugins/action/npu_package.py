"""Action plugin ``npu_package``: brings packages to the host, runs the module, and names a failure's cause.

The packages of ``source`` and the catalogue of findings are the controller's; a host knows what its installer said.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ascent.findings import failed, finding, message
from ascent_controller import actions, npu_packages


class ActionModule(ActionBase):
    """``files`` names what to bring from ``source``; on success the files leave the host again."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The module's result, with findings of this host. A dry run brings nothing."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        source, files = str(arguments.pop("source", "") or ""), list(arguments.pop("files", None) or [])
        bring = bool(source) and bool(files) and not self._task.check_mode
        if bring:
            problem = self._bring(source, files, str(arguments["directory"]), task_vars)
            if problem:
                return {**result, "changed": True, **self._told(problem, "", task_vars)}
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        said = result.get("installer") or {}
        findings = result.get("findings") or []
        if findings:
            result.update(self._told(findings, f"{said.get('output', '')}\n{said.get('log', '')}", task_vars))
        if bring and not result.get("failed"):
            self._file({"path": arguments["directory"], "state": "absent"}, task_vars)
        return result

    def _told(self, findings: list[dict[str, Any]], text: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        told = npu_packages.explained([{**one, "host": task_vars["inventory_hostname"]} for one in findings], text)
        return {"findings": told, "failed": failed(told), "msg": message(told)}

    def _bring(
        self, source: str, files: list[str], directory: str, task_vars: dict[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Copies or downloads; findings of the file that could not be had."""
        made = self._file({"path": directory, "state": "directory", "mode": "0700"}, task_vars)
        for name in [None, *files]:
            if name is None:
                done = made
            elif npu_packages.url(source):
                # The module compares the checksum; a file left from a broken download has to give way.
                fetch = {"url": f"{source.rstrip('/')}/{name}", "dest": f"{directory}/{name}", "force": True}
                done = self._execute_module(
                    module_name="ansible.builtin.get_url",
                    module_args={**fetch, "mode": "0600", "timeout": 60},
                    task_vars=task_vars,
                )
            else:
                copied = {"src": f"{source.rstrip('/')}/{name}", "dest": f"{directory}/{name}", "mode": "0600"}
                done = actions.run(self, "ansible.builtin.copy", copied, task_vars)
            if done.get("failed"):
                words = str(done.get("msg") or done.get("module_stderr") or "no reason given")
                what = name or directory
                problem = finding(
                    "A24",
                    "error",
                    f"{what} could not be brought to the host",
                    stage="provision",
                    evidence=f"from {source}: {words}",
                    cause="The source does not have the file, or the host can't reach the source or has no space.",
                    fix="Correct that, then deploy again. Nothing was installed.",
                )
                return npu_packages.explained([problem], words)
        return None

    def _file(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        done: dict[str, Any] = self._execute_module(
            module_name="ansible.builtin.file", module_args=arguments, task_vars=task_vars
        )
        return done
