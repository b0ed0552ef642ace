"""What a container was made with, as the container engine tells it, and how that differs from what was planned. Pure.

Compared is what the engine keeps as it was given. Limits of resources (``ulimits``), the size of /dev/shm, GPUs and the
log's settings are left out: the engine's own settings mix with them, or it spells them in ways that differ by version.
"""

from __future__ import annotations

__all__ = ["differences", "has_other_image", "made", "replaced"]

import posixpath
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set

from .text import size_mb


def made(data: Mapping[str, Any], image: Optional[Mapping[str, Any]] = None) -> Dict[str, Any]:
    """What one entry of ``docker inspect`` says of how its container was made; ``image`` is the entry of its image.

    ``{"command", "entrypoint", "env", "privileged", "network", "ipc", "restart_policy", "devices", "capabilities",
    "mounts", "memory", "cpuset_cpus", "cpuset_mems"}``. ``env`` has the names only of variables that the image does not
    set so, since values may be secret, and ``entrypoint`` is there where it is not the image's; both are None where the
    image is not known.
    """
    config, host = data.get("Config") or {}, data.get("HostConfig") or {}
    known = (image or {}).get("Config")
    env: Optional[List[str]] = None
    if known:
        more = set(config.get("Env") or ()) - set(known.get("Env") or ())
        env = sorted({str(entry).partition("=")[0] for entry in more})
    own = bool(known) and (config.get("Entrypoint") or []) != ((known or {}).get("Entrypoint") or [])
    return {
        "command": [str(word) for word in config.get("Cmd") or ()],
        "entrypoint": list(config.get("Entrypoint") or ()) if own else None,
        "env": env,
        "privileged": bool(host.get("Privileged")),
        "network": host.get("NetworkMode"),
        "ipc": host.get("IpcMode"),
        "restart_policy": (host.get("RestartPolicy") or {}).get("Name") or "no",
        "devices": sorted(str(one.get("PathOnHost")) for one in host.get("Devices") or ()),
        "capabilities": sorted(_capability(name) for name in host.get("CapAdd") or ()),
        # What the image itself keeps on volumes is none of what was asked for.
        "mounts": sorted(
            _mount(str(one.get("Source")), str(one.get("Destination")), read_only=not one.get("RW", True))
            for one in data.get("Mounts") or ()
            if one.get("Type", "bind") == "bind"
        ),
        "memory": int(host.get("Memory") or 0),
        "cpuset_cpus": host.get("CpusetCpus") or "",
        "cpuset_mems": host.get("CpusetMems") or "",
    }


def differences(planned: Mapping[str, Any], found: Mapping[str, Any], script: str) -> List[str]:
    """How a container that was `made` differs from its process's ``container`` in the plan, a few words each.

    ``script`` is where on the host the process's script is, which the container mounts beside what the plan says.

    >>> planned = {"command": ["sh"], "privileged": False, "network": "host", "ipc": None, "devices": [], "mounts": [],
    ...            "restart_policy": "always", "capabilities": [], "script": "/s", "memory": "1g"}
    >>> told = {"Config": {"Cmd": ["sh"]}, "HostConfig": {"NetworkMode": "host", "Memory": 2**31}}
    >>> differences(planned, made(told), "/x/s")
    ['restart policy no, not always', 'memory 2147483648, not 1073741824', 'mount /x/s:/s:ro missing']
    """
    told = []
    for what, wanted, there in (
        ("command", " ".join(planned["command"]), " ".join(found["command"])),
        ("network", _network(planned["network"]), _network(found["network"])),
        ("restart policy", planned["restart_policy"], found["restart_policy"]),
        ("memory", int((size_mb(planned.get("memory")) or 0) * 2**20), found["memory"]),
        ("cores", planned.get("cpuset_cpus") or "", found["cpuset_cpus"]),
        ("NUMA nodes", planned.get("cpuset_mems") or "", found["cpuset_mems"]),
    ):
        if wanted != there:
            told.append(f"{what} {there or 'unlimited'}, not {wanted or 'unlimited'}")
    if found["entrypoint"] is not None:
        told.append(f"an entrypoint of its own: {' '.join(found['entrypoint']) or 'none'}")
    if found["privileged"] != planned["privileged"]:
        told.append("privileged" if found["privileged"] else "not privileged")
    # What it is where nothing was asked for is a setting of the engine's.
    if found["ipc"] != planned["ipc"] and (planned["ipc"] or found["ipc"] == "host"):
        told.append(f"IPC {found['ipc']}, not {planned['ipc'] or 'its own'}")
    mounts = {_mount(one["source"], one["target"], read_only=one["read_only"]) for one in planned["mounts"]}
    mounts.add(_mount(script, planned["script"], read_only=True))
    told += _more_or_less("device", {one.partition(":")[0] for one in planned["devices"]}, found["devices"])
    told += _more_or_less("mount", mounts, found["mounts"])
    told += _more_or_less("capability", {_capability(one) for one in planned["capabilities"]}, found["capabilities"])
    return told + _more_or_less("variable", set(), found["env"] or ())


def has_other_image(container: Mapping[str, Any], digest: Optional[str]) -> bool:
    """Whether a container runs another image than the one of ``digest``; false where that is not known.

    An image is what its digest says, under whatever name the host has it.
    """
    return bool(digest) and not container["image"].endswith(f"@{digest}")


def replaced(
    plan: Mapping[str, Any],
    decision: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    digests: Mapping[str, Optional[str]],
) -> List[str]:
    """Processes whose container is not the one that a launch made, although it carries the labels of ``decision``.

    Told by its image, command, entrypoint and privileges: no launch makes those otherwise, and no engine spells them in
    ways of its own. ``decision`` is that of `generations.decide`, ``nodes`` are ``ascent_node`` facts by host,
    ``digests`` those of the images by reference.
    """
    planned = {process["name"]: process["container"] for process in plan["processes"] if process["container"]}
    found = set()
    for node in nodes.values():
        for one in ((node or {}).get("container_engine") or {}).get("containers") or ():
            name = one["labels"].get("ascent.process")
            wanted_definition = decision["processes"].get(name, {}).get("definition")
            if name not in planned or one["labels"].get("ascent.definition") != wanted_definition:
                continue
            wanted, there = planned[name], one.get("made")
            other = has_other_image(one, digests.get(wanted["image"]))
            if there:
                other |= there["command"] != wanted["command"] or there["entrypoint"] is not None
                other |= there["privileged"] != wanted["privileged"]
            if other:
                found.add(name)
    return sorted(found)


def _more_or_less(what: str, wanted: Set[str], there: Iterable[str]) -> List[str]:
    more, less = sorted(set(there) - wanted), sorted(wanted - set(there))
    return [f"{what} {one} added" for one in more] + [f"{what} {one} missing" for one in less]


def _mount(source: str, target: str, *, read_only: bool) -> str:
    """A bind mount in the words of ``-v``; the engine takes slashes off the ends of paths."""
    return f"{posixpath.normpath(source)}:{posixpath.normpath(target)}" + (":ro" if read_only else "")


def _capability(name: str) -> str:
    """Versions differ in whether they put CAP_ before it."""
    return str(name).upper().removeprefix("CAP_")


def _network(name: Optional[str]) -> str:
    return "bridge" if name in (None, "", "default") else str(name)
