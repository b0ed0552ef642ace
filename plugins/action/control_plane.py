"""Action plugin ``control_plane``: tells each host what to listen on and what to reach, from the plan and its peers."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from ansible.plugins.action import ActionBase

from ascent import control_plane
from ascent_controller import facts


class ActionModule(ActionBase):
    """``state: listening`` notes what it told in ``ascent_listeners``; ``state: probed`` reads that of all hosts.

    The result of both becomes the fact ``ascent_control_plane`` of the host. Hosts that raised no listeners are left
    out by the others; that is a finding of its own.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on this host."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given, host = dict(self._task.args), task_vars["inventory_hostname"]
        plan, read = facts.plan(task_vars), facts.of_plan(task_vars)
        given.update(host=host, address=plan["hosts"][host]["node_ip"])
        # The same on all hosts, and another one in every run: listeners of an earlier one are strangers.
        first = (facts.node(task_vars, facts.keeper(task_vars)) or {}).get("system") or {}
        given["nonce"] = hashlib.sha256(f"{plan['hash']} {first.get('time')}".encode()).hexdigest()[:16]
        if given["state"] == "listening":
            given.update(ports=control_plane.ports(plan, host), nics=control_plane.wanted_nics(plan, host))
            given["names"] = sorted(plan["hosts"])
        if given["state"] == "probed":
            given.update(self._targets(plan, read, host))
        begun = time.monotonic()
        done = self._execute_module(module_name="control_plane", module_args=given, task_vars=task_vars)
        result.update(done)
        if done.get("failed") or given["state"] == "stopped":
            return result
        told = {**result.pop("result"), "host": host, "seconds": round(time.monotonic() - begun, 3)}
        if given["state"] == "listening":
            result["ansible_facts"] = {"ascent_listeners": told}
            return result
        listened = read[host].get("ascent_listeners") or {}
        own = {key: listened.get(key) for key in ("nics", "names", "held", "unbound")}
        told["seconds"] += listened.get("seconds", 0)
        result["ansible_facts"] = {"ascent_control_plane": {**own, **told}}
        return result

    @staticmethod
    def _targets(plan: dict[str, Any], read: dict[str, Any], host: str) -> dict[str, Any]:
        listening = {name: told for name, values in read.items() if (told := values.get("ascent_listeners"))}
        targets = [
            {
                "to": to,
                "address": plan["hosts"][to]["node_ip"],
                "port": port,
                "use": use,
                "ours": port not in listening[to]["held"],
            }
            for source, to, port, use in control_plane.uses(plan)
            if source == host and to in listening
        ]
        own = listening.get(host, {"nics": {}})["nics"]
        # Cards are matched by what they are for: hosts may name theirs differently.
        rendezvous = [
            {
                "to": to,
                "nic": name,
                "address": listening[to]["nics"][name]["address"],
                "port": port,
                "source": mine["address"],
            }
            for to in listening
            if to != host
            for name, port in listening[to]["rendezvous"].items()
            for mine in own.values()
            if mine["address"] and mine["for"] == listening[to]["nics"][name]["for"]
        ]
        mtus = [card["mtu"] for card in own.values() if card["address"] == plan["hosts"][host]["node_ip"]]
        peers = {to: plan["hosts"][to]["node_ip"] for to in listening if to != host}
        return {"targets": targets, "rendezvous": rendezvous, "peers": peers, "mtu": mtus[0] if mtus else None}
