"""Whether a host's devices are there, healthy and free, and what the image was built for."""

from __future__ import annotations

__all__ = ["check"]

from typing import Any, Dict, List, Mapping

from ..engines import image_platform
from .common import SHOWN, Facts, Findings, error, has_npus, listed, running

# An idle device keeps about 3 GB for itself; more than this is somebody's.
_IDLE_HBM_MB = 5 * 1024
_HEALTH_ORDER = ("OK", "UNKNOWN", "Warning", "Alarm", "Critical")


def _device_number(device: Facts, position: int) -> int:
    """The N of ``/dev/davinciN``: the Phy-ID where the table has one, else the position."""
    return int(position if device["phy_id"] is None else device["phy_id"])


def _tool_failure(host: str, said: str) -> Dict[str, Any]:
    occupied = "-8020" in said
    return error(
        "A03" if occupied else "A01",
        host,
        f"npu-smi of {host} {'finds the devices in use' if occupied else 'does not work'}",
        said,
        "Another container or process owns the devices." if occupied else "The driver is not installed or not loaded.",
        "Find the owner with `fuser -v /dev/davinci*` and stop it."
        if occupied
        else "Run the provision stage; if the driver is installed, `lsmod | grep drv_pcie_host`, and reboot.",
    )


def check(plan: Facts, host: str, node: Facts) -> Findings:
    """Missing, lost, unhealthy and occupied devices, and an image for another hardware."""
    planned = plan["hosts"][host]["devices"]
    npu = node.get("npu")
    if not planned or npu is None or not has_npus(plan["hosts"][host]):
        return []
    if npu.get("info") is None:
        return [_tool_failure(host, str(npu.get("error") or "npu-smi printed nothing"))]
    found = []
    table = {_device_number(one, position): one for position, one in enumerate(npu["info"]["devices"])}
    files = set(npu.get("device_files", ()))
    wanted = {
        str(file["source"] if isinstance(file, Mapping) else file).split(":", 1)[0]
        for process in plan["processes"]
        if process["host"] == host
        for file in process["container"].get("devices", ())
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
                f"missing in npu-smi info: {listed(lost)}",
                "A chip has dropped off the bus, or the hardware profile is another one.",
                "`lspci -d 19e5:` counts the chips the kernel sees; power cycle the host, or replace the card.",
            )
        )
    mine = {number: table[number] for number in planned if number in table}
    found += _unhealthy(host, npu, mine)
    if not running(node):
        found += _occupied(host, npu["info"], mine)
    flavour = image_platform(plan["engine"]["image"])
    is_a3 = any(one["phy_id"] is not None and one["hbm_total_mb"] for one in table.values())
    if flavour in ("", "-a3") and any(one["hbm_total_mb"] for one in table.values()) and is_a3 != (flavour == "-a3"):
        found.append(
            error(
                "B08",
                host,
                f"{host} is an {'A3' if is_a3 else 'A2'} server, the image is built for {'A3' if flavour else 'A2'}",
                f"image {plan['engine']['image']}; npu-smi prints {'a' if is_a3 else 'no'} Phy-ID column",
                "The hardware named for this host is not what it is.",
                "Correct hardware in the inventory; the image's suffix follows it.",
            )
        )
    return found


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


def _occupied(host: str, info: Facts, mine: Mapping[int, Facts]) -> Findings:
    """Devices of an idle node that somebody else uses, or whose memory somebody left behind."""
    owners: Dict[int, List[Facts]] = {}
    for number, device in mine.items():
        place = (device["npu_id"], device["chip_id"])
        users = [one for one in info["processes"] if (one["npu_id"], one["chip_id"]) == place]
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
                    f"device {number}: pid {listed(one['pid'] for one in users)} ({users[0]['name'] or 'hidden name'})"
                    for number, users in list(owners.items())[:SHOWN]
                ),
                "A process or container that is not of this cluster runs there.",
                "Stop it; `docker ps` and `ps -fp PID` on the host name it.",
            )
        )
    left = {
        number: device["hbm_used_mb"]
        for number, device in mine.items()
        if number not in owners and (device["hbm_used_mb"] or 0) > _IDLE_HBM_MB
    }
    if left:
        found.append(
            error(
                "A11",
                host,
                f"memory of devices {listed(left)} on {host} is in use, but no process shows",
                "; ".join(f"device {number}: {used} MB" for number, used in list(left.items())[:SHOWN]),
                "A worker that was killed, or a container whose processes are hidden here.",
                "`fuser -v /dev/davinci*` on the host; stop what it finds; reset the device as a last resort.",
            )
        )
    return found
