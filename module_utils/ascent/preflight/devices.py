"""Whether a host's devices are there, healthy and free, and what the image was built for."""

from __future__ import annotations

__all__ = ["check", "number_of", "occupied"]

from typing import Any, Dict, List, Mapping

from ..engines import image_platform
from .common import (
    SHOWN,
    Context,
    Facts,
    Findings,
    chips_are,
    container,
    error,
    holder,
    is_ours,
    listed,
    part,
    running,
)
from .versions import install_advice

# An idle device keeps about 3 GB for itself; more than this is somebody's.
_IDLE_HBM_MB = 5 * 1024
#: What the driver brings and containers mount, by the finding for its absence.
_DRIVER_FILES = {
    "/etc/ascend_install.info": "A19",
    "/usr/local/Ascend/driver/lib64": "A06",
    "/usr/local/Ascend/driver/version.info": "A06",
    "/usr/local/dcmi": "A06",
    "/usr/local/bin/npu-smi": "D31",
    "/usr/local/Ascend/driver/tools/hccn_tool": "D31",
}
_HEALTH_ORDER = ("OK", "UNKNOWN", "Warning", "Alarm", "Critical")


def number_of(device: Facts, position: int) -> int:
    """The N of ``/dev/davinciN``: the Phy-ID where the table has one, else the position."""
    return int(position if device["phy_id"] is None else device["phy_id"])


def _table(npu: Facts) -> Dict[int, Facts]:
    """The rows of npu-smi's table by the number of their device."""
    return {number_of(one, position): one for position, one in enumerate(npu["info"]["devices"])}


def _tool_failure(context: Context, host: str, node: Facts, said: str) -> Dict[str, Any]:
    occupied = "-8020" in said
    if occupied:
        held = sorted({pid for pids in part(node, "npu", "holders").values() for pid in pids})
        said = "; ".join([said, *(holder(node, pid) for pid in held[:SHOWN])])
    advice = install_advice(context, host, node)
    install = f"Install {advice}" if advice else "Install driver and firmware"
    return error(
        "A03" if occupied else "A01",
        host,
        f"npu-smi of {host} {'finds the devices in use' if occupied else 'does not work'}",
        said,
        "Another container or process owns the devices." if occupied else "The driver is not installed or not loaded.",
        "Find the owner with `fuser -v /dev/davinci*` and stop it."
        if occupied
        else f"{install}; if they are there, `lsmod | grep drv_pcie_host`, build for the running kernel, and reboot.",
        None if occupied else "driver",
    )


def check(context: Context, host: str, node: Facts) -> Findings:
    """Missing, lost, unhealthy and occupied devices, and an image for another hardware."""
    plan = context.plan
    planned = plan["hosts"][host]["devices"]
    npu = node.get("npu")
    if npu is None or not chips_are("ascend", plan["hosts"][host]):
        return _absent(context, host, node)
    if npu.get("info") is None:
        return [_tool_failure(context, host, node, str(npu.get("error") or "npu-smi printed nothing"))]
    found = []
    table = _table(npu)
    files = set(npu.get("device_files", ()))
    wanted = {
        str(file["source"] if isinstance(file, Mapping) else file).split(":", 1)[0]
        for process in plan["processes"]
        if process["host"] == host
        for file in container(process).get("devices", ())
    }
    absent_files = sorted(wanted - files)
    if absent_files:
        found.append(
            error(
                "A05",
                host,
                f"{host} lacks device files of the plan: {listed(absent_files)}",
                f"there are {listed(sorted(files)) or 'none'}",
                "The hardware profile has more devices than this host, or a chip is lost.",
                "Compare `ls /dev/davinci*` and `npu-smi info -m` with the hardware profile of this host.",
            )
        )
    lost = sorted(set(planned) - set(table))
    if lost:
        found.append(
            error(
                "A10",
                host,
                f"{host} has {len(table)} devices, the plan uses {len(planned)}",
                f"missing in npu-smi info: {listed(lost)}" + _bus(npu),
                "A chip has dropped off the bus, or the hardware profile is another one.",
                "`lspci -d 19e5:` counts the chips the kernel sees; power cycle the host, or replace the card.",
            )
        )
    mine = {number: table[number] for number in planned if number in table}
    found += _unhealthy(host, npu, mine) + _occupied(host, node, mine)
    return found + _flavour(plan, host, list(table.values())) + _absent(context, host, node)


def _absent(context: Context, host: str, node: Facts) -> Findings:
    """Files and directories that containers mount and the host lacks: the engine would make directories of them.

    Device files and hccn.conf have findings of their own.
    """
    planned = context.plan["hosts"][host]
    wanted = {str(path) for path in planned.get("files", ())} & set(node.get("absent") or ())
    by_fault: Dict[str, List[str]] = {}
    for path in sorted(wanted):
        own = planned["vendor"] == "ascend" and (path.startswith("/dev/") or path == "/etc/hccn.conf")
        if not own:
            by_fault.setdefault(_DRIVER_FILES.get(path.rstrip("/"), "mount-absent"), []).append(path)
    return [
        error(
            fault,
            host,
            f"{host} lacks what containers of the plan mount: {listed(paths)}",
            "not there when the node was read",
            "The mount list is that of another server, or a share is not mounted."
            if fault == "mount-absent"
            else "The driver was installed in part, or elsewhere, or the file was removed.",
            "Correct the recipe's mounts, or mount it on the host."
            if fault == "mount-absent"
            else f"Install the driver again: {install_advice(context, host, node) or 'package of the same version'}.",
            None if fault == "mount-absent" else "driver",
        )
        for fault, paths in sorted(by_fault.items())
    ]


def _flavour(plan: Facts, host: str, table: List[Facts]) -> Findings:
    """An A3 server with an A2 image, or the reverse, going by the table's columns."""
    engines = (container(one) for one in plan["processes"] if one["host"] == host and one["devices"])
    image = next((str(one["image"]) for one in engines if one), None)
    flavour = image_platform(image) if image else None
    with_hbm = [one for one in table if one["hbm_total_mb"]]
    is_a3 = any(one["phy_id"] is not None for one in with_hbm)
    if flavour not in ("", "-a3") or not with_hbm or is_a3 == (flavour == "-a3"):
        return []
    return [
        error(
            "B08",
            host,
            f"{host} is an {'A3' if is_a3 else 'A2'} server, the image is built for {'A3' if flavour else 'A2'}",
            f"image {image}; npu-smi prints {'a' if is_a3 else 'no'} Phy-ID column",
            "The hardware named for this host is not what it is.",
            "Correct hardware in the inventory; the image's suffix follows it.",
        )
    ]


def _bus(npu: Facts) -> str:
    """How many chips the kernel sees on the bus, whatever the driver says."""
    chips = npu.get("pci")
    if not chips:
        return ""
    return "; on the bus: " + ", ".join(f"{count} of 19e5:{name}" for name, count in chips.items())


def _unhealthy(host: str, npu: Facts, mine: Mapping[int, Facts]) -> Findings:
    """Devices whose table or detail form is not OK: the worse of the two counts, since the detail form may forget."""
    details = {(one["npu_id"], one["chip_id"]): one for one in npu.get("health") or ()}
    bad = {}
    for number, device in mine.items():
        detail = details.get((device["npu_id"], device["chip_id"])) or {}
        words = [device["health"], detail.get("health") or "OK"]
        worst = max(words, key=lambda word: _HEALTH_ORDER.index(word) if word in _HEALTH_ORDER else 1)
        if worst != "OK" or detail.get("error_codes"):
            codes = " ".join(detail.get("error_codes") or ()) or "no code"
            bad[number] = f"device {number}: {worst}, {codes}"
    if not bad:
        return []
    return [
        error(
            "A09",
            host,
            f"unhealthy devices on {host}: {listed(bad)}",
            "; ".join(list(bad.values())[:SHOWN]),
            "Memory errors, temperature, or a link.",
            "npu-smi info -t health -i NPU -c CHIP; look the code up, reset or replace the card.",
        )
    ]


def _who(node: Facts, pid: int, name: str) -> str:
    """A process that npu-smi lists; it cuts names, and has none of another pid namespace."""
    if str(pid) in part(node, "processes"):
        return holder(node, pid)
    return f"pid {pid} ({name or 'hidden name'})"


def occupied(plan: Facts, host: str, node: Facts) -> Findings:
    """Planned devices of a host that somebody else uses, or whose memory somebody left behind."""
    if not chips_are("ascend", plan["hosts"][host]) or not part(node, "npu", "info"):
        return []
    table = _table(node["npu"])
    return _occupied(
        host, node, {number: table[number] for number in plan["hosts"][host]["devices"] if number in table}
    )


def _occupied(host: str, node: Facts, mine: Mapping[int, Facts]) -> Findings:
    info = part(node, "npu", "info")
    owners: Dict[int, List[Facts]] = {}
    for number, device in mine.items():
        place = (device["npu_id"], device["chip_id"])
        users = [
            one
            for one in info["processes"]
            if (one["npu_id"], one["chip_id"]) == place and not is_ours(node, one["pid"])
        ]
        if users:
            owners[number] = users
    found = []
    if owners:
        found.append(
            error(
                "A03",
                host,
                f"devices of {host} are in use: {listed(owners)}",
                "; ".join(
                    f"device {number}: {listed(_who(node, one['pid'], one['name']) for one in users)}"
                    for number, users in list(owners.items())[:SHOWN]
                ),
                "A process or container that is not of this cluster runs there.",
                "Stop it; `docker ps` and `ps -fp PID` on the host name it.",
            )
        )
    # While the cluster runs here, what its own processes take can't be told from what others left.
    left = {
        number: device["hbm_used_mb"]
        for number, device in mine.items()
        if number not in owners and not running(node) and (device["hbm_used_mb"] or 0) > _IDLE_HBM_MB
    }
    if left:
        held = part(node, "npu", "holders")
        named = {number: held[str(number)] for number in left if held.get(str(number))}
        found.append(
            error(
                "A11",
                host,
                f"memory of devices {listed(left)} on {host} is in use, but npu-smi shows no process",
                "; ".join(
                    f"device {number}: {used} MB"
                    + (f", open in {listed(holder(node, pid) for pid in named[number])}" if number in named else "")
                    for number, used in list(left.items())[:SHOWN]
                ),
                "A worker that was killed, or a container whose processes are hidden here.",
                "Stop what holds the devices."
                if named
                else "No process has them open: reset the device (npu-smi set -t reset) as a last resort, or reboot.",
            )
        )
    return found
