"""Whether a host is large and new enough: Python, memory, disk, container engine, architecture."""

from __future__ import annotations

__all__ = ["check", "of_plan"]

import json
import re
from typing import Any, Mapping, Optional

from ..findings import finding
from ..generations import images_of
from .common import ARCHITECTURES, SHOWN, STAGE, Facts, Findings, error, listed, part

_MIN_SHM_MB = 1024
_MIN_PYTHON = (3, 9)
_ENGINE_ROOT = "/var/lib/docker"


def check(plan: Facts, host: str, node: Facts, image_gb: float, memory_gb: float) -> Findings:
    """What stands against one host."""
    return _sizes(plan, host, node, image_gb, memory_gb) + _store_memory(plan, host, node)


def of_plan(plan: Facts, nodes: Mapping[str, Optional[Facts]]) -> Findings:
    """What stands against the plan's containers, and against what the inventory says of the hosts."""
    return _shared_memory(plan) + _architectures(plan, nodes)


def _sizes(plan: Facts, host: str, node: Facts, image_gb: float, memory_gb: float) -> Findings:
    """Architecture, Python, memory, disk and container engine."""
    found = []
    system = part(node, "system")
    python = system.get("python")
    if python and tuple(int(part) for part in re.findall(r"[0-9]+", python)[:2]) < _MIN_PYTHON:
        found.append(
            error(
                "python-too-old",
                host,
                f"{host} runs Ascent's modules on Python {python}",
                "wanted 3.9 or newer",
                "The interpreter is that of an old distribution.",
                "Install a newer Python beside it and name it in ansible_python_interpreter.",
            )
        )
    memory = system.get("memory_mb")
    if memory is not None and memory < memory_gb * 1024:
        found.append(
            error(
                "D28",
                host,
                f"{host} has {memory / 1024:.1f} GiB of memory, {memory_gb:g} GiB are wanted",
                f"MemTotal {memory} MB",
                "Weights and pinned buffers pass through the host's memory.",
                "Use a larger host, or lower the wanted memory if the model is small.",
            )
        )
    disk = part(node, "disk").get(_ENGINE_ROOT)
    seen = {image for one in part(node, "state").get("generations", ()) for image in one.get("images") or ()}
    if disk and set(images_of(plan, host)) - seen and disk["free_mb"] < image_gb * 1024:
        found.append(
            error(
                "D16",
                host,
                f"{host} has {disk['free_mb'] / 1024:.1f} GiB free for images, {image_gb:g} GiB are wanted",
                f"{_ENGINE_ROOT}: {disk['free_mb']} of {disk['total_mb']} MB free",
                "Old images, layers or logs fill the file system.",
                "docker system df, docker image prune; or move the engine's data directory.",
            )
        )
    engine = node.get("container_engine")
    if engine is not None and not engine.get("running"):
        state = "does not run" if engine.get("installed") else "is not installed"
        found.append(
            error(
                "container-engine",
                host,
                f"the container engine {state} on {host}",
                str(engine.get("error") or "docker version gave nothing"),
                "It was never installed or its service has failed.",
                "Run the provision stage, or: systemctl status docker",
            )
        )
    return found


def _architectures(plan: Facts, nodes: Mapping[str, Optional[Facts]]) -> Findings:
    """Hosts whose arch the inventory gives otherwise than they say. The inventory counts: it is given on purpose.

    An image that is really of another architecture than its host is refused by the stage that pulls it (B07).
    """
    differ = []
    for host, planned in plan["hosts"].items():
        machine = part(nodes.get(host) or {}, "system").get("machine")
        arch = planned.get("arch")
        if machine and arch and ARCHITECTURES.get(arch, arch) != ARCHITECTURES.get(machine, machine):
            differ.append(f"{host}: arch {arch}, uname -m {machine}")
    if not differ:
        return []
    return [
        finding(
            "arch-differs",
            "info",
            f"the inventory's arch counts for {len(differ)} hosts that say otherwise",
            stage=STAGE,
            evidence=listed(differ),
            cause="The inventory's arch is wrong, or it is meant to differ, as for a rehearsal on other machines.",
            fix="Leave arch out of the inventory to take what the hosts say.",
        )
    ]


def _shm_mb(text: Any) -> Optional[float]:
    """``--shm-size`` as the container engine takes it, in MB; None when it can't be read."""
    match = re.match(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([bkmgt]?)b?\Z", str(text).strip().lower())
    if not match:
        return None
    return (
        float(match.group(1)) * {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}[match.group(2)] / 2**20
    )


def _store_memory(plan: Facts, host: str, node: Facts) -> Findings:
    """Host memory against what clients of a KV store take of it: a segment and a buffer for every rank."""
    memory = part(node, "system").get("memory_mb")
    wanted, told = 0.0, []
    for process in plan["processes"]:
        texts = [one["text"] for one in process["files"] if one["path"].rpartition("/")[2] == "mooncake.json"]
        if process["host"] != host or not texts or not process["devices"]:
            continue
        config = json.loads(texts[0])
        each = sum(_shm_mb(config.get(key, 0)) or 0 for key in ("global_segment_size", "local_buffer_size"))
        wanted += each * len(process["devices"])
        told.append(f"{process['name']}: {len(process['devices'])} ranks of {each / 1024:g} GiB")
    if memory is None or wanted <= memory:
        return []
    return [
        error(
            "store-memory",
            host,
            f"the KV store takes {wanted / 1024:.1f} GiB of {host}, which has {memory / 1024:.1f} GiB of memory",
            "; ".join(told[:SHOWN]),
            "Every rank gives the store a segment of host memory, and keeps a buffer.",
            "Lower kv_store.config.global_segment_size in the recipe, or run fewer ranks on the host.",
        )
    ]


def _shared_memory(plan: Facts) -> Findings:
    """Containers whose shared memory is too small for the workers' messages."""
    small = [
        process["name"]
        for process in plan["processes"]
        if process["devices"] and (_shm_mb(process["container"].get("shm_size", "1g")) or _MIN_SHM_MB) < _MIN_SHM_MB
    ]
    if not small:
        return []
    return [
        error(
            "D13",
            None,
            f"less than 1 GiB of shared memory: {listed(small)}",
            "; ".join(
                f"{one['name']}: {one['container']['shm_size']}" for one in plan["processes"] if one["name"] in small
            ),
            "The workers of an engine exchange messages through /dev/shm; a small one ends them with a bus error.",
            "Set container.shm_size to 1g or more in the recipe.",
        )
    ]
