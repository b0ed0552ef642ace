"""Whether a host with NVIDIA devices has a driver that is new enough for the image's CUDA, and its devices free."""

from __future__ import annotations

__all__ = ["check"]

from typing import List

from .common import Context, Facts, Findings, chips_are, error, listed, part, running, warning
from .table import compare, row_of, sources

#: A driver keeps some 500 MB of an idle device for itself.
_IDLE_MB = 2 * 1024


def check(context: Context, host: str, node: Facts) -> Findings:
    """What stands against the GPUs of one host."""
    planned = context.plan["hosts"][host]
    if not chips_are("nvidia", planned) or "gpu" not in node:
        return []
    gpu = node["gpu"]
    if gpu is None or not gpu.get("driver"):
        return [
            error(
                "gpu-driver",
                host,
                f"the NVIDIA driver of {host} is not there or not loaded",
                str(part(node, "gpu").get("error") or "no nvidia-smi, and nothing in /proc/driver/nvidia"),
                "Ascent looks after NPU drivers only; those of GPUs are the site's.",
                f"Install the driver from the distribution or from NVIDIA{_needs(context)}, and the container toolkit.",
            )
        ]
    found = _driver(context, host, gpu)
    numbers = {one["index"]: one for one in gpu["devices"]}
    lost = sorted(set(planned["devices"]) - set(numbers))
    if lost:
        found.append(
            error(
                "A10",
                host,
                f"{host} has {len(numbers)} GPUs, the plan uses {len(planned['devices'])}",
                f"missing in nvidia-smi: {listed(lost)}",
                "A device has dropped off the bus, or the hardware profile is another one.",
                "lspci -d 10de: counts those that the kernel sees; nvidia-smi -q, dmesg for Xid messages.",
            )
        )
    left = {
        number: numbers[number]["memory_used_mb"]
        for number in planned["devices"]
        if number in numbers and (numbers[number]["memory_used_mb"] or 0) > _IDLE_MB
    }
    if left and not running(node):
        found.append(
            error(
                "A11",
                host,
                f"memory of GPUs {listed(left)} on {host} is in use",
                "; ".join(f"GPU {number}: {used} MB" for number, used in left.items()),
                "A process or container that is not of this cluster, or a worker that was killed.",
                "nvidia-smi and fuser -v /dev/nvidia* name the owner; stop it.",
            )
        )
    return found


def _needs(context: Context) -> str:
    wanted = _wanted(context)
    return f", version {wanted[-1][1]} or newer" if wanted else ""


def _wanted(context: Context) -> List[List[str]]:
    """``[kind, driver, cuda, source]``, the floor first."""
    row = row_of(context.table, context.plan["engine"])
    if row is None or context.table is None or "cuda" not in row:
        return []
    entry = next((one for one in context.table["drivers"] if one["cuda"] == row["cuda"]), None)
    if entry is None:
        return []
    source = sources(context.table, entry["source"])
    return [[kind, entry[kind], row["cuda"], source] for kind in ("floor", "recommended") if entry[kind]]


def _driver(context: Context, host: str, gpu: Facts) -> Findings:
    engine = context.plan["engine"]
    for kind, wanted, cuda, source in _wanted(context):
        if compare(gpu["driver"], wanted) == -1:
            tell = error if kind == "floor" else warning
            return [
                tell(
                    "gpu-driver",
                    host,
                    f"driver {gpu['driver']} of {host} and CUDA {cuda} of {engine['name']} {engine['version']}"
                    f" do not fit: {wanted} is {'the oldest that works' if kind == 'floor' else 'recommended'}",
                    f"source: {source}",
                    "The image's CUDA is newer than the host's driver.",
                    f"Install driver {wanted} or newer on all nodes and reboot, or use an image with an older CUDA.",
                )
            ]
    return []
