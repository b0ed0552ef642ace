"""The files a node starts with: state, Ascend installation, identity, model weights. Pure functions."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.lib.plan import DEFAULT_SUITE, Node, Sandbox, roce_address, vnic_address
from sandbox.node import driver_info

NODE_TOOLS = Path(__file__).resolve().parent.parent / "node"
PCI_VENDORS = {"ascend": "19e5", "nvidia": "10de"}
HIDDEN_SIZE = 16
SHARDS = 2
COUNTERS = (
    "mac_tx_total_pkt_num",
    "mac_rx_total_pkt_num",
    "mac_tx_bad_pkt_num",
    "mac_rx_bad_pkt_num",
    "mac_rx_fcs_err_pkt_num",
    "mac_tx_pfc_pkt_num",
    "mac_rx_pfc_pkt_num",
    "roce_rx_rc_pkt_num",
    "roce_tx_rc_pkt_num",
    "roce_rx_err_pkt_num",
    "roce_tx_err_pkt_num",
    "roce_new_pkt_rty_num",
    "roce_out_of_order_num",
)
INSTALLED = {
    "UserName": "HwHiAiUser",
    "UserGroup": "HwHiAiUser",
    "Firmware_Install_Type": "full",
    "Firmware_Install_Path_Param": driver_info.DEFAULT_PATH,
    "Driver_Install_Type": "full",
    "Driver_Install_Path_Param": driver_info.DEFAULT_PATH,
    "Driver_Install_For_All": "no",
    "Driver_Install_Mode": "normal",
    "Driver_Install_Status": "complete",
}


@dataclass(frozen=True)
class File:
    """One file, or link, of a node: absolute path, content or link target, mode."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str = ""


def state(sandbox: Sandbox, node: Node) -> dict[str, Any]:
    """The state of a healthy node, as `sandbox/node/state.schema.json` describes it."""
    profile = node.profile
    return {
        "schema": 1,
        "node": node.name,
        "profile": profile["name"],
        "accelerator": profile["accelerator"],
        "layout": profile["layout"],
        "tool_version": profile["tool_version"],
        "board": {"product": profile["product"], "serial": f"SANDBOX{node.index:06d}"},
        "driver": profile["driver"] and dict(profile["driver"]),
        "firmware": profile["firmware"] and dict(profile["firmware"]),
        "installer": {"hot_reset": False},
        "gpu": {"cuda_version": profile["cuda_version"]} if profile["accelerator"] == "nvidia" else None,
        "super_pod": {"id": 0, "size": profile["super_pod_size"], "server_index": node.index}
        if profile["super_pod_size"]
        else None,
        "pci": [
            {"bus_id": _bus_id(phy_id), "vendor": PCI_VENDORS[profile["accelerator"]], "device": profile["pci_device"]}
            for phy_id in range(node.device_count)
        ],
        "devices": [_device(sandbox, node, phy_id) for phy_id in range(node.device_count)],
        "processes": [],
        "faults": {
            "npu_smi_ret": None,
            "hccn_busy": False,
            "ping_drop_nth": {},
            "ping_delay_us": {},
            "ping_max_bytes": None,
            "collective_delay_us": 0,
            "collective_hang": None,
            "installer": None,
            "old_modules": False,
            "replies": [],
        },
    }


def _bus_id(phy_id: int) -> str:
    return f"0000:{0x81 + 2 * phy_id:02X}:00.0"


def _device(sandbox: Sandbox, node: Node, phy_id: int) -> dict[str, Any]:
    profile = node.profile
    npu, chip = divmod(phy_id, profile["chips_per_npu"])
    netmask = str(sandbox.subnet.netmask)
    device = {
        "npu_id": npu * profile["npu_id_step"],
        "chip_id": chip,
        "logic_id": phy_id,
        "phy_id": phy_id,
        "name": profile["chip_name"],
        "serial": f"SANDBOX{node.index:03d}{npu:03d}",
        "health": "OK",
        "error_codes": [],
        "power_w": profile["power_w"] if chip == 0 else None,
        "temperature_c": profile["temperature_c"],
        "hugepages": [0, 0],
        "bus_id": _bus_id(phy_id),
        "aicore_percent": 0,
        "hbm_used_mb": profile["hbm_reserved_mb"],
        "hbm_total_mb": profile["hbm_total_mb"],
        "sdid": (node.index << 16) + phy_id if profile["super_pod_size"] else None,
        "ecc_double_bit": 0,
        "roce": _port(sandbox, node, phy_id) if profile["roce"] else None,
        "vnic": {"address": vnic_address(sandbox.subnet, node.index, phy_id), "netmask": netmask, "link": "UP"}
        if profile["vnic"]
        else None,
    }
    if profile["accelerator"] == "nvidia":
        device["uuid"] = f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{node.name}-{phy_id}')}"
        device["power_limit_w"] = profile["power_limit_w"]
    return device


def _port(sandbox: Sandbox, node: Node, phy_id: int) -> dict[str, Any]:
    """The network port of a device."""
    return {
        "address": roce_address(sandbox.subnet, node.index, phy_id),
        "netmask": str(sandbox.subnet.netmask),
        "link": "UP",
        "mac": f"02:00:5e:00:{node.index:02x}:{phy_id:02x}",
        "gateway": sandbox.gateway,
        "netdetect": sandbox.gateway,
        "net_health": "Success",
        "tls": {"enabled": False, "preconfigured": True, "alarm_days": 60},
        "mtu": 4096,
        "speed_mbps": 200000,
        "duplex": "Full",
        "fec": "rs FEC mode",
        "optical": {
            "present": True,
            "vendor": "SANDBOX",
            "serial": f"SBX{node.index:04d}{phy_id:04d}",
            "temperature_c": 43,
            "voltage_mv": 3296.4,
            "tx_power_mw": [1.0461, 1.0312, 1.0627, 1.0194],
            "rx_power_mw": [0.9127, 0.9233, 0.8976, 0.9318],
            "tx_los": 0,
            "rx_los": 0,
        },
        "lldp": {"interface": f"400GE1/0/{phy_id + 1}:1", "system": "sandbox-leaf-1"},
        "counters": dict.fromkeys(COUNTERS, 0),
        "link_records": [],
    }


def hccn_conf(node_state: Mapping[str, Any]) -> str:
    """`/etc/hccn.conf`: the addresses of all devices, as the state has them."""
    lines = []
    for device in node_state["devices"]:
        number, port = device["phy_id"], device["roce"]
        if port:
            lines += [f"{key}_{number}={port[key]}" for key in ("address", "netmask", "netdetect", "gateway")]
            lines.append(f"send_arp_status_{number}=1")
    return "".join(f"{line}\n" for line in lines)


def driver_tree(driver: Mapping[str, Any]) -> list[File]:
    """What a driver package puts on the disk, in its default place: tools, libraries, version."""
    # The real directories hold the driver's libraries; here only their presence matters.
    library = b"sandbox placeholder, not a library\n"
    return [
        File("/usr/local/bin/npu-smi", (NODE_TOOLS / "npu_smi.py").read_bytes(), 0o755),
        File("/usr/local/Ascend/driver/tools/hccn_tool", (NODE_TOOLS / "hccn_tool.py").read_bytes(), 0o755),
        File("/usr/local/Ascend/driver/lib64/driver/libascend_hal.so", library, 0o444),
        File("/usr/local/Ascend/driver/lib64/common/libc_sec.so", library, 0o444),
        File("/usr/local/Ascend/driver/version.info", driver_info.driver_text(driver).encode(), 0o444),
    ]


def firmware_tree(firmware: Mapping[str, Any]) -> list[File]:
    """What a firmware package puts on the disk, in its default place."""
    text = driver_info.firmware_text(firmware)
    return [File("/usr/local/Ascend/firmware/version.info", text.encode(), 0o444)]


def accelerator_files(node_state: Mapping[str, Any]) -> list[File]:
    """The state, and the installation of the accelerator's driver as far as files go."""
    files = [File("/usr/local/dcmi/state.json", (json.dumps(node_state, indent=1) + "\n").encode())]
    if node_state["accelerator"] == "nvidia":
        return [*files, File("/usr/bin/nvidia-smi", (NODE_TOOLS / "nvidia_smi.py").read_bytes(), 0o755)]
    if conf := hccn_conf(node_state):
        files.append(File("/etc/hccn.conf", conf.encode()))
    installed = {}
    if node_state["driver"]:
        installed |= {key: value for key, value in INSTALLED.items() if key.startswith(("User", "Driver"))}
        files += driver_tree(node_state["driver"])
    if node_state["firmware"]:
        installed |= {key: value for key, value in INSTALLED.items() if key.startswith(("User", "Firmware"))}
        files += firmware_tree(node_state["firmware"])
    if installed:
        files.append(File(driver_info.INSTALL_INFO, driver_info.install_text(installed).encode()))
    return files


def safetensors(tensors: Mapping[str, tuple[int, ...]], fill: Callable[[int], bytes] = bytes) -> bytes:
    """A valid safetensors file of BF16 values: eight bytes of header length, a JSON header, the data.

    `fill` makes the data of a given length in bytes; zeros unless another is given.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + fill(offset)


def model_contents(
    model: Mapping[str, Any],
    shards: int = SHARDS,
    hidden_size: int = HIDDEN_SIZE,
    fill: Callable[[int], bytes] = bytes,
) -> dict[str, bytes]:
    """The files of a model by name: `shards` files of one layer each, their index, and the documents beside them."""
    layers = {
        f"model-{number:05d}-of-{shards:05d}.safetensors": {
            f"model.layers.{number - 1}.mlp.gate.weight": (hidden_size, hidden_size),
            f"model.layers.{number - 1}.input_layernorm.weight": (hidden_size,),
        }
        for number in range(1, shards + 1)
    }
    contents = {shard: safetensors(tensors, fill) for shard, tensors in layers.items()}
    weight_map = {tensor: shard for shard, tensors in layers.items() for tensor in tensors}
    index = {"metadata": {"total_size": sum(map(len, contents.values()))}, "weight_map": weight_map}
    config = {
        "model_type": "sandbox",
        "hidden_size": hidden_size,
        "num_hidden_layers": shards,
        "torch_dtype": "bfloat16",
    }
    documents = {
        "config.json": config | dict(model["config"]),
        "generation_config.json": {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
        "model.safetensors.index.json": index,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 262144},
        "tokenizer.json": {
            "version": "1.0",
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
        },
        "configuration.json": {"framework": "pytorch", "task": "text-generation"},
    }
    return contents | {document: json.dumps(value).encode() for document, value in documents.items()}


def model_files(model: Mapping[str, Any], root: str = "/root/.cache/modelscope/hub/models") -> list[File]:
    """A model in the place and form ModelScope's cache gives it, with tensors of a few hundred bytes.

    The cache writes a dot in a name as three underscores and links the plain name to it.
    """
    organisation, name = model["id"].split("/")
    masked = name.replace(".", "___")
    directory = f"{root}/{organisation}/{masked}"
    files = [File(f"{directory}/{each}", content) for each, content in model_contents(model).items()]
    if masked != name:
        files.append(File(f"{root}/{organisation}/{name}", link=masked))
    return files


def identity_files(
    sandbox: Sandbox, node: Node, authorized_key: str, host_key: bytes, host_key_public: bytes
) -> list[File]:
    """What makes the node reachable, and its only package source the site's; its clock and its file systems."""
    source = f"http://{sandbox.services}/{repository_directory(node.suite)}"
    return [
        File("/etc/ssh/ssh_host_ed25519_key", host_key, 0o600),
        File("/etc/ssh/ssh_host_ed25519_key.pub", host_key_public),
        File("/root/.ssh/authorized_keys", authorized_key.encode(), 0o600),
        File("/etc/apt/sources.list", f"deb [trusted=yes] {source} ./\n".encode()),
        # Package lists of the repository never go stale.
        File("/etc/apt/apt.conf.d/90sandbox", b'Acquire::Languages "none";\nAcquire::Retries "2";\n'),
        File("/etc/sandbox/clock", struct.pack("=q", round(node.clock_offset_s * 1e9))),
        File("/etc/sandbox/disks.json", json.dumps(dict(node.disks)).encode()),
    ]


def repository_directory(suite: str) -> str:
    """Where the site's web server has the packages of a release of Debian."""
    return "debian" if suite == DEFAULT_SUITE else f"debian-{suite}"


def archive(files: Iterable[File]) -> bytes:
    """The files as a tar archive to be unpacked at the root of a node, directories included."""
    buffer = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            parts = file.path.strip("/").split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(parts[:depth])
                # Directories of the image keep the modes they have there; only these are ours to make.
                if directory not in made and directory.startswith(("root/.cache", "usr/local/Ascend")):
                    made.add(directory)
                    entry = tarfile.TarInfo(directory)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
            entry = tarfile.TarInfo(file.path.strip("/"))
            entry.mode = file.mode
            if file.link:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.link
                tar.addfile(entry)
            else:
                entry.size = len(file.content)
                tar.addfile(entry, io.BytesIO(file.content))
    return buffer.getvalue()
