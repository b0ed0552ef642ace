"""A collective by torch.distributed in the engine's own image and environment, for each instance over several hosts.

Each of an instance's processes becomes a trial: the same script with the recipe's variables, mounts and devices, which
runs ``roles/fabric/files/torch_collective.py`` in place of the engine.
"""

from __future__ import annotations

__all__ = ["LAST_SIZE", "trials"]

from collections.abc import Mapping
from typing import Any

from ascent_controller import render
from ascent_controller.loader import ROOT

PROGRAM = ROOT / "roles" / "fabric" / "files" / "torch_collective.py"
#: Bytes of the largest message.
LAST_SIZE = 1 << 26
_INSIDE = "/tmp/ascent/torch_collective.py"  # noqa: S108 -- in a container of its own
_BACKENDS = {"ascend": "hccl", "nvidia": "nccl", "cpu": "gloo"}


def trials(plan: Mapping[str, Any], port: int, seconds: float) -> list[dict[str, Any]]:
    """``[{"name", "instance", "host", "container", "files": {name: text}}]`` in the order of the plan's processes.

    ``port`` is where the ranks meet, on the first host of each instance; instances get one after the other.
    """
    result: list[dict[str, Any]] = []
    for number, instance in enumerate(one for one in plan["instances"] if len(one["hosts"]) > 1):
        members = [one for one in plan["processes"] if one["instance"] == instance["name"] and one["devices"]]
        world, first = sum(len(one["devices"]) for one in members), 0
        for process in members:
            local = len(process["devices"])
            trial = {
                **process,
                "name": f"{process['name']}-fabric",
                "files": [{"path": _INSIDE, "text": PROGRAM.read_text(encoding="utf-8")}],
                "wait": None,
                "argv": [
                    ["python3", _INSIDE],
                    ["--backend", _BACKENDS[plan["hosts"][process["host"]]["vendor"]]],
                    ["--address", plan["hosts"][members[0]["host"]]["node_ip"], "--port", str(port + number)],
                    ["--world", str(world), "--first", str(first), "--local", str(local)],
                    ["--sizes", "8192", str(1 << 20), str(LAST_SIZE)],
                    ["--seconds", f"{seconds:g}"],
                ],
                "container": {**process["container"], "name": f"{process['container']['name']}-fabric"},
            }
            files = render.files({**plan, "processes": [trial], "jobs": []}, process["host"])[process["host"]]
            result.append(
                {
                    "name": trial["name"],
                    "instance": instance["name"],
                    "host": process["host"],
                    "container": trial["container"]["name"],
                    "image": trial["container"]["image"],
                    "files": files,
                }
            )
            first += local
    return result
