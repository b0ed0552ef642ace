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
            interfaces=self._nics(plan, list(mpi)),
            limit=limits["seconds"],
            ratio=limits["ratio"],
            cluster_ratio=limits["cluster_ratio"],
            iterations=limits["iterations"],
            groups=self._groups(plan, list(mpi), limits["floors"]),
            variables=self._variables(plan, list(mpi), given["tool"], limits["connect_seconds"]),
        )
        done = self._execute_module(module_name="collective_test", module_args=given, task_vars=task_vars)
        result.update(done)
        if not done.get("failed"):
            told.update(ran=True, **{key: result.pop(key) for key in ("runs", "culprits", "seconds")})
            result["ansible_facts"] = {"ascent_collectives": told}
        return result

    @staticmethod
    def _nics(plan: Mapping[str, Any], hosts: list[str]) -> list[str]:
        """The network cards of the plan; a host that names none leaves the choice to MPI."""
        return sorted({plan["hosts"][host]["nic"] for host in hosts if plan["hosts"][host]["nic"]})

    @classmethod
    def _variables(cls, plan: Mapping[str, Any], hosts: list[str], tool: str, connect_seconds: int) -> dict[str, Any]:
        """Environment of the ranks: the cards that the engines get, and for GPUs their RDMA devices."""
        nics = cls._nics(plan, hosts)
        exact = f"={','.join(nics)}"
        if tool == "hccl_test":
            return {"HCCL_CONNECT_TIMEOUT": connect_seconds} | ({"HCCL_SOCKET_IFNAME": exact} if nics else {})
        given: dict[str, set[str]] = {}
        for process in plan["processes"]:
            for one in process["env"] if process["host"] in hosts and process["devices"] else ():
                if one["name"].startswith("NCCL_") and one.get("value"):
                    given.setdefault(one["name"], set()).add(str(one["value"]))
        # A value of a single host is none for all ranks.
        common = {name: values.pop() for name, values in given.items() if len(values) == 1}
        return ({"NCCL_SOCKET_IFNAME": exact} if nics else {}) | common

    @classmethod
    def _groups(
        cls, plan: Mapping[str, Any], hosts: list[str], floors: Mapping[str, Any] | None
    ) -> list[dict[str, Any]]:
        """Hosts by hardware: others are no measure for them. ``floors`` None takes those of the hardware's profile."""
        kinds: dict[str, list[str]] = {}
        for host in hosts:
            kinds.setdefault(plan["hosts"][host]["hardware"], []).append(host)
        return [
            {"hosts": members, "floors": cls._floors(kind) if floors is None else dict(floors)}
            for kind, members in kinds.items()
        ]

    @staticmethod
    def _floors(hardware: str) -> dict[str, dict[str, float]]:
        """The least GB/s by phase and collective, of a hardware profile."""
        path = loader.ROOT / "catalog" / "hardware" / f"{hardware}.yml"
        profile = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        floors: dict[str, dict[str, float]] = {}
        for row in profile.get("collectives") or ():
            floors.setdefault(row["phase"], {})[row["collective"]] = row["gbs"]
        return floors

    @staticmethod
    def _program(tool: str, collective: str) -> str:
        return (nccl_tests if tool == "nccl-tests" else hccl_test).PROGRAMS.get(collective, "")
