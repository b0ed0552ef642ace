"""Action plugin ``collective_test``: hands the module what the controller knows of the hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from ansible.plugins.action import ActionBase

from ascent import hccl_test, nccl_tests
from ascent_controller import facts, loader


class ActionModule(ActionBase):
    """Takes ``mpi`` (by host what `mpi_trust` told), ``limits``, and options of the module.

    The result becomes the fact ``ascent_collectives`` of the host that ran them. Where a node lacks MPI or the test
    programs, nothing runs, and the fact says which.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on this host."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given = dict(self._task.args)
        mpi, limits = given.pop("mpi"), given.pop("limits")
        plan = facts.plan(task_vars)
        told: dict[str, Any] = {"ran": False, "why": "", "tool": given["tool"], "where": "host", "missing": {}}
        told.update(absent=[], seconds=0.0, runs=[], culprits=[])
        result["ansible_facts"] = {"ascent_collectives": told}
        told["where"] = mpi[task_vars["inventory_hostname"]]["where"]
        told["missing"] = {host: one["missing"] for host, one in mpi.items() if one["missing"]}
        launchers = {(one["launcher"], one["version"]) for one in mpi.values()}
        own = mpi[task_vars["inventory_hostname"]]
        common = set.intersection(*(set(one["programs"]) for one in mpi.values()))
        available = [name for name in given["collectives"] if self._program(given["tool"], name) in common]
        told["absent"] = [name for name in given["collectives"] if name not in available]
        if told["missing"]:
            told["why"] = "nodes lack MPI or the test programs"
        elif len({(one["where"], one["tests"]) for one in mpi.values()}) > 1:
            told["why"] = "nodes have MPI and the test programs in different places: " + ", ".join(
                f"{host}: {one['tests']} ({one['where']})" for host, one in sorted(mpi.items())
            )
        elif len(launchers) > 1 or own["launcher"] is None:
            told["why"] = (
                f"nodes have different MPI launchers: {', '.join(sorted({one['version'] for one in mpi.values()}))}"
            )
        elif not available:
            told["why"] = "none of the test programs is there"
        if told["why"]:
            return result
        given.update(
            collectives=available,
            hosts={
                host: {
                    **{key: one[key] for key in ("address", "port", "host_keys")},
                    "devices": plan["hosts"][host]["devices"],
                }
                for host, one in mpi.items()
            },
            launcher=own["launcher"],
            path=own["path"],
            shell=own["shell"] if own["where"] == "image" else [],
            tests=own["tests"],
            interfaces=sorted({plan["hosts"][host]["nic"] for host in mpi}),
            limit=limits["seconds"],
            ratio=limits["ratio"],
            cluster_ratio=limits["cluster_ratio"],
            iterations=limits["iterations"],
            floors=self._floors(plan, list(mpi)) if limits["floors"] is None else limits["floors"],
            variables={"HCCL_CONNECT_TIMEOUT": limits["connect_seconds"]} if given["tool"] == "hccl_test" else {},
        )
        done = self._execute_module(module_name="collective_test", module_args=given, task_vars=task_vars)
        result.update(done)
        if not done.get("failed"):
            told.update(ran=True, **{key: result.pop(key) for key in ("runs", "culprits", "seconds")})
            result["ansible_facts"] = {"ascent_collectives": told}
        return result

    @staticmethod
    def _floors(plan: Mapping[str, Any], hosts: list[str]) -> dict[str, Any]:
        """Those of the hosts' hardware profile; none where they have different ones."""
        kinds = {plan["hosts"][host]["hardware"] for host in hosts}
        if len(kinds) != 1:
            return {}
        path = loader.ROOT / "catalog" / "hardware" / f"{kinds.pop()}.yml"
        profile = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        floors: dict[str, dict[str, float]] = {}
        for row in profile.get("collectives") or ():
            floors.setdefault(row["phase"], {})[row["collective"]] = row["gbs"]
        return floors

    @staticmethod
    def _program(tool: str, collective: str) -> str:
        return (nccl_tests if tool == "nccl-tests" else hccl_test).PROGRAMS.get(collective, "")
