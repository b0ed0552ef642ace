"""Family A: devices, driver, firmware."""

from __future__ import annotations

import json
from typing import Literal

from sandbox.faults import programs
from sandbox.faults.model import (
    DRIVER_INFO,
    FIRMWARE_INFO,
    HCCN_TOOL,
    INSTALL_INFO,
    Change,
    Injection,
    Look,
    Node,
    fault,
    file_change,
    process,
)

LIBRARY = "/usr/local/Ascend/driver/lib64/driver/libascend_hal.so"
LEASES = "/usr/local/dcmi/leases"
# A driver package that lies on the node says what its installer would meet, and changes nothing.
CHECK_PACKAGE = "sh $(ls /root/*npu-driver*.run | head -n 1) --check --quiet"


@fault("A01", "driver-not-loaded")
def driver_not_loaded(node: Node) -> Injection:
    """The driver is not loaded: npu-smi fails with -8005."""
    changes = [node.set_node("faults", "npu_smi_ret", to=-8005)]
    return Injection(changes, Look("npu-smi info", r"dcmi module initialize failed\. ret is -8005"))


@fault("A03", "device-in-use")
def device_in_use(node: Node) -> Injection:
    """Another process or container owns the devices: npu-smi fails with -8020."""
    changes = [node.set_node("faults", "npu_smi_ret", to=-8020)]
    return Injection(changes, Look("npu-smi info", r"ret is -8020"))


@fault("A04", "not-in-group")
def not_in_group(node: Node) -> Injection:
    """Only root can use the devices: npu-smi fails with -8005 for everyone else."""
    del node
    return Injection(
        [file_change("/usr/local/dcmi", mode=0o750)],
        Look(
            "npu-smi info >/dev/null && echo root: fine; runuser -u nobody npu-smi info", r"root: fine\n.*ret is -8005"
        ),
    )


@fault("A05", "device-nodes-missing")
def device_nodes_missing(node: Node, device: int = 3) -> Injection:
    """A device file is missing that container definitions name."""
    node.device(device)
    path = f"/dev/davinci{device}"
    return Injection([file_change(path, absent=True)], Look(f"ls -l {path}", r"No such file or directory"))


@fault("A06", "driver-libs-not-mounted")
def driver_libs_missing(node: Node) -> Injection:
    """The driver's library directory lacks libascend_hal.so, so engines can't load it."""
    del node
    return Injection([file_change(LIBRARY, absent=True)], Look(f"ls -l {LIBRARY}", r"No such file or directory"))


@fault("A07", "firmware-mismatch")
def firmware_mismatch(node: Node, version: str = "6.4.12.1.241") -> Injection:
    """The firmware is one that the driver is not made for."""
    changes = [
        node.set_node("firmware", "version", to=version),
        _on_disk(FIRMWARE_INFO, version),
    ]
    npu = node.device(0)["npu_id"]
    return Injection(changes, Look(f"npu-smi info -t board -i {npu}", r"Compatibility\s+: NOK"))


@fault("A08", "driver-too-old-for-cann")
def driver_too_old(node: Node, version: str = "24.1.rc1") -> Injection:
    """The driver is older than the engine image's CANN needs."""
    return _driver(node, version, Look(f"cat {DRIVER_INFO}", rf"(?m)^Version={version}$"))


@fault("A02", "reboot-pending")
def reboot_pending(node: Node, version: str = "25.5.9") -> Injection:
    """The driver on the disk is not the one that is live: a reboot makes it so."""
    command = f"npu-smi info | grep -o 'Version: [^ ]*'; grep ^Version= {DRIVER_INFO}"
    live = node.state["driver"]["version"]
    return Injection([_on_disk(DRIVER_INFO, version)], Look(command, rf"Version: {live}\nVersion={version}\n"))


@fault("B09", "node-drift")
def node_drift(node: Node, version: str = "25.5.9") -> Injection:
    """The driver has another version than on the other nodes."""
    return _driver(node, version, Look("npu-smi info", rf"Version: {version} "))


def _driver(node: Node, version: str, look: Look) -> Injection:
    return Injection([node.set_node("driver", "version", to=version), _on_disk(DRIVER_INFO, version)], look)


def _on_disk(path: str, version: str) -> Change:
    return file_change(path, sub=[r"^((?:package_)?[Vv]ersion)=.*", rf"\g<1>={version}"])


@fault("A09", "card-unhealthy")
def card_unhealthy(
    node: Node, device: int = 0, health: Literal["Warning", "Alarm", "Critical"] = "Critical", code: str = "80E01801"
) -> Injection:
    """A device is not healthy and reports an error code."""
    changes = [
        node.set(device, "health", to=health),
        node.set(device, "error_codes", to=[{"code": code, "text": "node type=HBM, sensor type=ECC, multi bit error"}]),
        node.set(device, "ecc_double_bit", to=2),
    ]
    look = Look(f"npu-smi info -t health {node.chip(device)}", rf"Health Status\s+: {health}\n\s*Error Code\s+: {code}")
    return Injection(changes, look)


@fault("G06", "health-ok-but-alarm")
def health_ok_but_alarm(node: Node, device: int = 0) -> Injection:
    """The table says Alarm while the detail form says OK."""
    chip = node.chip(device)
    command = f"npu-smi info | grep -c Alarm; npu-smi info -t health {chip}"
    return Injection([node.set(device, "health", to="Alarm")], Look(command, r"^1\n\s*Health Status\s+: OK"))


@fault("A10", "card-lost")
def card_lost(node: Node, device: int = 5) -> Injection:
    """A device is off the bus: the tools no longer show it, its device file is still there."""
    node.device(device)
    left = [each for each in node.state["devices"] if each["phy_id"] != device]
    command = f"ls /dev/davinci{device}; {HCCN_TOOL} -i {device} -mac -g"
    look = Look(command, rf"/dev/davinci{device}\nThe device is not exist!")
    return Injection([node.set_node("devices", to=left)], look)


@fault("A11", "hbm-leftover")
def hbm_leftover(node: Node, device: int = 0, mb: int = 30000, owner: Literal["gone", "process"] = "gone") -> Injection:
    """Device memory is in use: by nobody the tools can name, or by a live process with owner=process."""
    total = node.device(device)["hbm_total_mb"]
    idle = node.device(device)["hbm_used_mb"]
    look = Look("npu-smi info", rf"\b{idle + mb}\s*/ {total}")
    if owner == "gone":
        return Injection([node.set(device, "hbm_used_mb", to=idle + mb)], look)
    name = "VLLMWorker_TP0"
    lease = json.dumps({"pid": 1, "name": name, "devices": {str(device): mb}})
    place = f"{LEASES}/leftover-{device}.json"
    return Injection([process(f"leftover-hbm-{device}", programs.HOLD_MEMORY, name, place, lease)], look)


@fault("A14", "nodes-busy-at-install")
def devices_held(node: Node, device: int = 0) -> Injection:
    """A process keeps a device open, so the driver's installer refuses."""
    node.device(device)
    path = f"/dev/davinci{device}"
    look = Look("ls -l /proc/[0-9]*/fd 2>/dev/null", rf"-> {path}\n")
    return Injection([process(f"leftover-device-{device}", programs.HOLD_DEVICE, "python_leftover", path)], look)


@fault("A15", "kernel-headers")
def kernel_headers(node: Node) -> Injection:
    """The installer can't build the driver: the kernel's headers are not there."""
    text = "driver build fail, /lib/modules/5.10.0-216.0.0.115/build: No such file or directory"
    changes = [node.set_node("faults", "installer", to={"code": None, "text": text})]
    return Injection(changes, Look(CHECK_PACKAGE, r"driver build fail.*/lib/modules/.*/build: No such file"))


@fault("A16", "installer-lock")
def installer_lock(node: Node) -> Injection:
    """Another installer is running and does not end."""
    del node
    changes = [process("stuck-installer", programs.HOLD_LOCK, "install.sh", "/run/ascend_install.lock")]
    return Injection(changes, Look(CHECK_PACKAGE, r"ERR_NO:0x0094"))


@fault("A17", "user-missing")
def user_missing(node: Node) -> Injection:
    """The installer does not find the driver's service user."""
    text = "HwHiAiUser not exists! Please add HwHiAiUser"
    changes = [node.set_node("faults", "installer", to={"code": "0x0091", "text": text})]
    return Injection(changes, Look(CHECK_PACKAGE, r"ERR_NO:0x0091.*HwHiAiUser not exists"))


@fault("A18", "secure-boot")
def secure_boot(node: Node) -> Injection:
    """The kernel refuses the installer's modules, as they are not signed."""
    text = "insmod drv_pcie_host.ko failed: Key was rejected by service"
    changes = [node.set_node("faults", "installer", to={"code": None, "text": text})]
    return Injection(changes, Look(CHECK_PACKAGE, r"Key was rejected by service"))


@fault("A20", "partial-install-warning")
def partial_install(node: Node) -> Injection:
    """The driver's last installation did not end; npu-smi warns."""
    del node
    change = file_change(INSTALL_INFO, sub=[r"^Driver_Install_Status=.*\n", ""])
    return Injection([change], Look("npu-smi info", r"driver package may not be completely installed"))


@fault("A19", "install-info-missing")
def install_info_missing(node: Node) -> Injection:
    """/etc/ascend_install.info is gone."""
    del node
    return Injection([file_change(INSTALL_INFO, absent=True)], Look(f"cat {INSTALL_INFO}", "No such file or directory"))
