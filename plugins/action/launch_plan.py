"""Action plugin ``launch_plan``: one plan for the whole cluster, made on the controller before any host is touched."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ascent import generations, plan_changes
from ascent.findings import failed, finding, message, sort_findings
from ascent_controller import access_settings, clusters, facts, loader, planning, render, role_arguments

_ABSENT = ("ansible_host", "node_ip", "nic", "arch", "hardware", "pool")


class ActionModule(ActionBase):
    """Reads inventory, recipe and catalogue; sets facts and writes files if asked to.

    The play's first host does the work and keeps the facts ``ascent_plan``, ``ascent_hosts`` and ``ascent_node_query``
    for all; the others return at once. It takes no ``run_once``: ansible-core 2.21 gives all hosts one and the same
    dict when the first fact of a run comes from a ``run_once`` task, and every later fact of one host then shows on
    all of them (ansible/ansible issue 87415).
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("cluster", "discover", "recipe", "render_to", "stand_ins"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Plan; fail with every mistake in one message."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        keeper = facts.keeper(task_vars)
        if task_vars["inventory_hostname"] != keeper:
            return {**result, "changed": False, "ansible_facts": {"ascent_plan_keeper": keeper}}
        _, arguments = self.validate_argument_spec(
            {
                "cluster": {"type": "str"},
                "recipe": {"type": "str"},
                "render_to": {"type": "path"},
                "stand_ins": {"type": "raw"},
                "discover": {"type": "str", "choices": ["allowed", "refused"], "default": "refused"},
            }
        )
        result.update({"changed": False, "findings": [], "needs_facts": False, "changes": [], "change_lines": []})
        if arguments["stand_ins"] is not None:
            return self._without_inventory(arguments, task_vars, result)
        cluster, names, findings = clusters.of_play(task_vars, arguments["cluster"])
        hostvars = task_vars["hostvars"]
        recipe = arguments["recipe"] or self._one_value("recipe", names, hostvars, cluster, findings)
        mistakes = role_arguments.check(
            role_arguments.load(loader.ROOT / "roles"), {name: hostvars[name] for name in names}
        )
        if recipe is None or findings:
            return self._ended(result, findings + mistakes, None, names)
        hosts = [self._host(name, hostvars) for name in names]
        discover = arguments["discover"] == "allowed"
        if discover and any(_incomplete(host) and not facts.node(task_vars, name) for name, host in hosts):
            # Mistakes that need no answer from a host are told now; the rest after the nodes were asked.
            draft, found = planning.prepare(
                recipe, [_filled(host) for _, host in hosts], **self._settings(cluster, task_vars)
            )
            found += mistakes
            result["needs_facts"] = not failed(found)
            return self._ended(result, found if failed(found) else [], None, names, draft)
        complete = [planning.complete_host(host, facts.node(task_vars, name)) for name, host in hosts]
        plan, findings = planning.prepare(recipe, complete, **self._settings(cluster, task_vars))
        findings += access_settings.judge(self._access, plan, self._loader, time.time())
        plan = None if failed(findings) else plan
        if plan is not None and arguments["render_to"]:
            self._write(Path(arguments["render_to"]), plan, result)
        memory = planning.memory(recipe, complete) if plan is not None else {}
        return self._ended(result, findings + mistakes, plan, names, memory=memory)

    def _without_inventory(
        self, arguments: Mapping[str, Any], task_vars: Mapping[str, Any], result: dict[str, Any]
    ) -> dict[str, Any]:
        """Plan for hosts that nobody has; the variables recipe, hardware, arch and nic count as from an inventory."""
        recipe = arguments["recipe"] or task_vars.get("recipe")
        given = {key: str(task_vars[key]) for key in ("arch", "nic") if task_vars.get(key)}
        findings: list[dict[str, Any]] = []
        hosts: list[dict[str, Any]] = []
        try:
            hosts = planning.stand_ins(arguments["stand_ins"], **given)
        except ValueError as error:
            findings.append(
                finding(
                    "stand-ins-unclear",
                    "error",
                    str(error),
                    evidence=f"render_hosts = {arguments['stand_ins']}; allowed: 3, or {{atlas-800-a2: 1, ...}}",
                    fix="pass -e render_hosts=NUMBER, or a mapping of hardware profiles to numbers as JSON",
                )
            )
        if not recipe:
            findings.append(
                finding(
                    "recipe-unset",
                    "error",
                    "no recipe was named",
                    evidence="recipe = not set; allowed: a name of recipes/, or the path of a file",
                    fix="pass -e recipe=NAME_OR_PATH",
                )
            )
        if findings:
            return self._ended(result, findings, None, [])
        if task_vars.get("hardware"):
            hosts = [{"hardware": str(task_vars["hardware"]), **host} for host in hosts]
        settings = self._settings(arguments["cluster"] or "stand-in", task_vars)
        plan, findings = planning.prepare(str(recipe), hosts, **{**settings, "sources": []})
        if plan is not None and arguments["render_to"]:
            self._write(Path(arguments["render_to"]), plan, result)
        memory = planning.memory(str(recipe), hosts) if plan is not None else {}
        return self._ended(result, findings, plan, [host["name"] for host in hosts], memory=memory)

    # -- inputs --------------------------------------------------------------------------------------------------------

    def _settings(self, cluster: str, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "cluster": cluster,
            "mirror": self._text(task_vars.get("ascent_registry_mirror", "")),
            "sources": [str(source) for source in task_vars.get("ansible_inventory_sources") or []],
        }
        cache = self._text(task_vars.get("ascent_cache_directory", ""))
        if cache:
            settings["cache"] = cache
        self._access = access_settings.read(self._templar, task_vars)
        return {**settings, "guard": self._access.guard()}

    def _text(self, value: Any) -> str:
        return str(self._templar.template(value)) if value else ""

    def _one_value(
        self, key: str, names: Iterable[str], hostvars: Any, cluster: str, findings: list[dict[str, Any]]
    ) -> str | None:
        values = {name: hostvars[name].get(key) for name in names}
        distinct = sorted({str(value) for value in values.values() if value is not None})
        if len(distinct) == 1 and None not in values.values():
            return distinct[0]
        if cluster and values:
            findings.append(
                finding(
                    "recipe-unset" if not distinct else "recipe-differs",
                    "error",
                    f"cluster {cluster} has no {key}" if not distinct else f"hosts of {cluster} differ in {key}",
                    evidence=f"inventory: {key} = {', '.join(distinct) or 'not set'}; allowed: one value",
                    fix=f"set {key} in the vars of group {cluster}, or pass -e {key}=NAME_OR_PATH",
                )
            )
        return None

    @staticmethod
    def _host(name: str, hostvars: Any) -> tuple[str, dict[str, Any]]:
        given = {key: hostvars[name].get(key) for key in _ABSENT}
        return name, {"name": name, **{key: str(value) for key, value in given.items() if value is not None}}

    # -- outputs -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _ended(
        result: dict[str, Any],
        findings: list[dict[str, Any]],
        plan: dict[str, Any] | None,
        names: list[str],
        draft: dict[str, Any] | None = None,
        memory: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """The task's result. ``draft`` is a plan with stand-ins, good for what to ask the nodes and nothing else."""
        findings = sort_findings([{**item, "stage": item["stage"] or "plan"} for item in findings])
        result["findings"] = findings
        if failed(findings):
            result["failed"] = True
            result["msg"] = _message(findings)
            return result
        result["ansible_facts"] = {
            "ascent_plan": plan,
            "ascent_hosts": names,
            "ascent_node_query": _query(plan or draft),
        }
        if plan is not None:
            result["record"] = {"plan.json": plan}
            result["metrics"] = {"memory": dict(memory or {})}
            result["summary"] = [*_summary(plan), *planning.memory_lines(memory or {})]
        return result

    def _write(self, folder: Path, plan: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Bring ``folder`` to what the plan says; scripts of ours that the plan no longer has go away."""
        wanted = render.tree(plan)
        before = _read_plan(folder / "plan.json")
        result["changes"] = plan_changes.between(before, plan) if before else []
        result["change_lines"] = plan_changes.lines(result["changes"])
        diffs = []
        changed = False
        for path, text in sorted(wanted.items()):
            file = folder / path
            old = file.read_text(encoding="utf-8") if file.is_file() else None
            if old == text:
                continue
            if file.suffix != ".svg":  # a picture's text is nothing to read; plan.json shows the same change
                header = {"before_header": str(file), "after_header": str(file)}
                diffs.append({"before": old or "", "after": text, **header})
            changed = True
            if not self._task.check_mode:
                _replace(file, text, 0o755 if file.suffix == ".sh" else 0o644)
        for file in sorted(folder.glob("*/*.sh")):
            if str(file.relative_to(folder)) in wanted:
                continue
            old = file.read_text(encoding="utf-8", errors="replace")
            if render.FINGERPRINT in old.splitlines():
                diffs.append({"before": old, "after": "", "before_header": str(file), "after_header": "/dev/null"})
                changed = True
                if not self._task.check_mode:
                    file.unlink()
        result["changed"] = changed
        result["rendered"] = sorted(wanted)
        if self._task.diff:
            result["diff"] = diffs


def _read_plan(file: Path) -> dict[str, Any] | None:
    """The plan that a folder was rendered from; None where there is none that can be read."""
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _query(plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `node_info` has to be asked about a cluster with this plan."""
    if not plan:
        return {}
    return {
        "cluster": plan["cluster"],
        "weights_directory": plan["model"]["directory"],
        "images": generations.images_of(plan),
        "peers": list(plan["hosts"]),
        "paths": sorted({path for host in plan["hosts"].values() for path in host["files"]}),
    }


def _incomplete(host: Mapping[str, Any]) -> bool:
    return any(not host.get(key) for key in ("node_ip", "nic", "arch"))


def _filled(host: Mapping[str, Any]) -> dict[str, Any]:
    """A host with stand-ins for what only the node can tell; the plan made with them is thrown away."""
    return {**dict.fromkeys(("node_ip", "nic", "arch"), f"unknown-{host['name']}"), **host}


def _message(findings: list[dict[str, Any]]) -> str:
    """Every finding that stops the run, one paragraph each: what, where, value and allowed, what to do."""
    errors = sum(item["severity"] == "error" for item in findings)
    return f"The inventory or the recipe can't work; no host was touched. {errors} to correct:\n{message(findings)}"


def _summary(plan: Mapping[str, Any]) -> list[str]:
    """The plan as a small table: one line a process, then the endpoint."""
    rows = [("HOST", "PROCESS", "DEVICES", "RANKS", "LISTENS ON")]
    for process in plan["processes"]:
        devices = process["devices"]
        parallel = process["parallel"]
        ranks = "-"
        if parallel:
            first, count = parallel["start_rank"], parallel["data_local"]
            span = f"{first}-{first + count - 1}" if count > 1 else str(first)
            ranks = f"{span} of {parallel['data']}, tp {parallel['tensor']}"
        ports = ", ".join(
            f"{port['name']} {port['first']}" + (f"-{port['first'] + port['count'] - 1}" if port["count"] > 1 else "")
            for port in process["ports"]
        )
        shown = f"{devices[0]}-{devices[-1]}" if devices else "-"
        rows.append((process["host"], process["name"], shown, ranks, ports))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    where = plan["endpoint"]["url"] if plan["endpoint"] else "nothing serves, see the jobs"
    jobs = [f"job {job['name']} on {job['host']}" for job in plan["jobs"]]
    return [f"{plan['recipe']} on {plan['cluster']}: {where}", *table, *jobs]


def _replace(file: Path, text: str, mode: int) -> None:
    """Write beside the file, then rename: a reader sees the old text or the new one, never half of either."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, mode)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
