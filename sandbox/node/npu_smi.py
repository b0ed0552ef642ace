#!/usr/bin/env python3
"""Emulated npu-smi: prints in the real tool's shapes what the node's state file says. It never changes anything."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

sys.path.append("/usr/local/dcmi")

try:
    import node_state
except ImportError:  # as the real tool in a container that lacks the library's directory
    print("dcmi module initialize failed. ret is -8005")
    sys.exit(-8005 & 0xFF)

State = dict[str, Any]
Device = dict[str, Any]

START_UP_FAILURES = {
    -8020: "dcmi model initialized failed, because the device is used. ret is -8020",
}
RULE = "+" + "-" * 96 + "+"
HEAVY_RULE = "+" + "=" * 27 + "+" + "=" * 15 + "+" + "=" * 52 + "+"
LIGHT_RULE = "+" + "-" * 27 + "+" + "-" * 15 + "+" + "-" * 52 + "+"
USAGE = """Usage: npu-smi info [OPTION]...

Options:
  -l                 Lists the NPU cards of this server
  -m                 Lists the mapping of NPUs, chips and logic ids
  -t TYPE [-i NPU [-c CHIP]]   TYPE: board, health, usages, ecc, topo, spod-info, proc-mem
  -v                 Shows the version
"""


def fail_start(ret: int) -> NoReturn:
    """Ends as the real tool does when its library does not start: a line on stdout and the code's low byte."""
    print(START_UP_FAILURES.get(ret, f"dcmi module initialize failed. ret is {ret}"))
    sys.exit(ret & 0xFF)


def not_found() -> NoReturn:
    """Ends as the real tool does on an option it does not know."""
    print("Command or option is not found.")
    print(USAGE)
    sys.exit(1)


def key_line(key: str, value: object, width: int = 30) -> str:
    """One `key : value` line; an empty key continues the line before."""
    return f"\t{key:<{width}} : {value}"


def info_table(state: State, held: list[dict[str, Any]]) -> list[str]:
    """The table of `npu-smi info`, 98 columns wide: devices, then processes."""
    a3 = state["layout"] == "a3"
    title = f"npu-smi {state['tool_version']}"
    second_header = "Chip  Phy-ID" if a3 else "Chip"
    lines = [
        RULE,
        f"| {title:<32} Version: {state['driver']['version']:<52} |",
        LIGHT_RULE,
        f"| {'NPU   Name':<25} | {'Health':<13} | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        f"| {second_header:<25} | {'Bus-Id':<13} | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
        HEAVY_RULE,
    ]
    devices = state["devices"]
    for index, device in enumerate(devices):
        power = "-" if device["power_w"] is None else f"{device['power_w']:.1f}"
        pages_used, pages = device["hugepages"]
        lines.append(
            f"| {device['npu_id']:<5} {device['name']:<20}| {device['health']:<13} "
            f"| {power:<11} {device['temperature_c']:<17} {pages_used:<5}/ {pages:<13} |"
        )
        place = f"{device['chip_id']:<5} {device['phy_id']:<20}" if a3 else f"{device['chip_id']:<26}"
        used = node_state.hbm_used_mb(device, held)
        lines.append(
            f"| {place}| {device['bus_id']:<13} "
            f"| {device['aicore_percent']:<11} {0:<5}/ {0:<10} {used:<5}/ {device['hbm_total_mb']:<13} |"
        )
        last_of_npu = index + 1 == len(devices) or devices[index + 1]["npu_id"] != device["npu_id"]
        lines.append(HEAVY_RULE if last_of_npu else RULE)
    return lines + process_table(state, held)


def process_table(state: State, held: list[dict[str, Any]]) -> list[str]:
    """The second table of `npu-smi info`: who holds HBM on which chip."""
    lines = [
        LIGHT_RULE,
        f"| {'NPU     Chip':<25} | {'Process id':<13} | {'Process name':<24} | {'Process memory(MB)':<23} |",
        HEAVY_RULE,
    ]
    for npu_id in sorted({device["npu_id"] for device in state["devices"]}):
        rows = [
            f"| {npu_id:<7} {device['chip_id']:<18}| {process['pid']:<13} "
            f"| {process['name'][:24]:<24} | {process['memory_mb']:<23} |"
            for device in state["devices"]
            if device["npu_id"] == npu_id
            for process in processes_of(device, state, held)
        ]
        lines += rows or [f"| {f'No running processes found in NPU {npu_id}':<94} |"]
        lines.append(HEAVY_RULE)
    return lines


def processes_of(device: Device, state: State, held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The processes that hold HBM of one device: the state's own rows, then live leases."""
    rows = [process for process in state["processes"] if process["phy_id"] == device["phy_id"]]
    for lease in held:
        megabytes = lease["devices"].get(device["phy_id"])
        if megabytes:
            rows.append({"pid": lease["pid"], "name": lease["name"], "memory_mb": megabytes})
    return rows


def mapping(state: State) -> list[str]:
    """`npu-smi info -m`."""
    a3 = state["layout"] == "a3"
    keys = ["npu_id", "chip_id", "logic_id"] + (["phy_id"] if a3 else []) + ["name"]
    titles = ["NPU ID", "Chip ID", "Chip Logic ID"] + (["Chip Phy-ID"] if a3 else []) + ["Chip Name"]
    rows = [titles] + [[str(device[key]) for key in keys] for device in state["devices"]]
    return ["\t" + " ".join(f"{cell:<30}" for cell in row).rstrip() for row in rows]


def card_list(state: State) -> list[str]:
    """`npu-smi info -l`."""
    npu_ids = sorted({device["npu_id"] for device in state["devices"]})
    if not npu_ids:
        return ["\tThere is no NPU card on this server."]
    lines = [key_line("Total Count", len(npu_ids)), ""]
    for npu_id in npu_ids:
        count = sum(1 for device in state["devices"] if device["npu_id"] == npu_id)
        lines += [key_line("NPU ID", npu_id), key_line("Chip Count", count), ""]
    return lines


def version_key(text: str) -> list[int]:
    """A dotted version as numbers, for ordering. Words such as `rc1` count as their digits."""
    return [int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")]


def compatibility(state: State) -> str:
    """Whether driver and firmware go together: `OK`, `NOK`, or `UNKNOWN` when a package does not say."""
    drivers = state["firmware"].get("compatible_drivers")
    firmware_range = state["driver"].get("compatible_firmware")
    if not drivers or not firmware_range:
        return "UNKNOWN"
    low, high = (version_key(bound) for bound in firmware_range)
    in_range = low <= version_key(state["firmware"]["version"])[:3] <= high
    named = any(state["driver"]["version"].startswith(prefix) for prefix in drivers)
    return "OK" if in_range and named else "NOK"


def board(state: State, devices: list[Device], chip: int | None) -> list[str]:
    """`npu-smi info -t board`."""
    first = devices[0]
    domain, bus, slot = first["bus_id"].split(":")
    pci = [
        key_line("PCI Vendor ID", "0x19E5"),
        key_line("PCI Device ID", "0xD803" if state["layout"] == "a3" else "0xD802"),
        key_line("PCIe Bus Info", f"{domain}:{bus}:{slot}"),
    ]
    if chip is not None:
        return [
            key_line("NPU ID", first["npu_id"]),
            key_line("Chip ID", chip),
            key_line("Chip Type", "Ascend"),
            key_line("Chip Name", first["name"]),
            key_line("Slot ID", first["npu_id"]),
            *pci,
        ]
    return [
        key_line("NPU ID", first["npu_id"]),
        key_line("Product Name", state["board"]["product"]),
        key_line("Serial Number", first["serial"]),
        key_line("Software Version", state["driver"]["version"]),
        key_line("Firmware Version", state["firmware"]["version"]),
        key_line("Compatibility", compatibility(state)),
        *pci,
        key_line("Chip Count", len(devices)),
    ]


def health(device: Device) -> list[str]:
    """`npu-smi info -t health` of one chip. A bad state without a readable code answers OK, as the real tool does."""
    errors = device["error_codes"]
    status = device["health"] if errors or device["health"] in ("OK", "UNKNOWN") else "OK"
    lines = [
        key_line("Health Status", status),
        key_line("Error Code", " ".join(error["code"] for error in errors) or "NA"),
    ]
    for index, text in enumerate([error["text"] for error in errors] or ["NA"]):
        lines.append(key_line("" if index else "Error Information", text))
    return lines


def usages(device: Device, held: list[dict[str, Any]]) -> list[str]:
    """`npu-smi info -t usages` of one chip."""
    used = node_state.hbm_used_mb(device, held)
    pages_used, pages = device["hugepages"]
    return [
        key_line("NPU ID", device["npu_id"]),
        key_line("Chip ID", device["chip_id"]),
        key_line("DDR Capacity(MB)", 0),
        key_line("DDR Usage Rate(%)", 0),
        key_line("DDR Hugepages Total(page)", pages),
        key_line("DDR Hugepages Usage Rate(%)", 100 * pages_used // pages if pages else 0),
        key_line("HBM Capacity(MB)", device["hbm_total_mb"]),
        key_line("HBM Usage Rate(%)", 100 * used // device["hbm_total_mb"]),
        key_line("Aicore Usage Rate(%)", device["aicore_percent"]),
        key_line("Aicpu Usage Rate(%)", 0),
        key_line("Ctrlcpu Usage Rate(%)", 0),
        key_line("HBM Bandwidth Usage Rate(%)", 0),
    ]


def ecc(device: Device) -> list[str]:
    """`npu-smi info -t ecc` of one chip: thirteen counters, of which the sandbox moves one."""
    counters = {}
    for memory in ("DDR", "HBM"):
        for kind in ("Single Bit Error Count", "Double Bit Error Count", "Single Bit Aggregate Total Err Cnt"):
            counters[f"{memory} {kind}"] = 0
        for kind in ("Double Bit Aggregate Total Err Cnt", "Single Bit Isolated Pages Count"):
            counters[f"{memory} {kind}"] = 0
        counters[f"{memory} Double Bit Isolated Pages Count"] = 0
    counters["HBM Double Bit Error Count"] = device["ecc_double_bit"]
    counters["HBM Double Bit Aggregate Total Err Cnt"] = device["ecc_double_bit"]
    counters["HBM Multi Bit Isolated Pages Count"] = device["ecc_double_bit"]
    head = [key_line("NPU ID", device["npu_id"], 40), key_line("Chip ID", device["chip_id"], 40)]
    return head + [key_line(key, value, 40) for key, value in counters.items()]


def topology(state: State) -> list[str]:
    """`npu-smi info -t topo`: on A3 the two dies of a module are joined by SIO, on both all else by HCCS."""
    a3 = state["layout"] == "a3"
    devices = state["devices"]
    names = [f"Phy-ID{device['phy_id']}" if a3 else f"NPU{device['npu_id']}" for device in devices]
    lines = ["\t" + "".join(f"{cell:<11}" for cell in ["", *names, "CPU Affinity"]).rstrip()]
    for name, row in zip(names, devices):
        cells = []
        for column in devices:
            if row is column:
                cells.append("X")
            elif row["npu_id"] == column["npu_id"]:
                cells.append("SIO")
            else:
                cells.append("HCCS_SW" if a3 else "HCCS")
        affinity = row["phy_id"] * 8 // max(1, len(devices)) * 24
        lines.append("\t" + "".join(f"{cell:<11}" for cell in [name, *cells, f"{affinity}-{affinity + 23}"]).rstrip())
    return [
        *lines,
        "",
        "Legend:",
        "",
        "  X    = Self",
        "  SYS  = Path traversing PCIe and NUMA nodes",
        "  PHB  = Path traversing PCIe and the PCIe host bridge of a CPU",
        "  PIX  = Path traversing a single PCIe switch",
        "  PXB  = Path traversing multiple PCIe switches",
        "  HCCS = Connection traversing HCCS",
        "  SIO  = Path traversing the chip-to-chip link of one module",
        "  NA   = Unknown relationship",
    ]


def super_pod(state: State, device: Device) -> list[str]:
    """`npu-smi info -t spod-info` of one chip, on machines that belong to a super pod."""
    pod = state["super_pod"]
    if pod is None:
        print("This device does not support querying spod-info.")
        sys.exit(-8255 & 0xFF)
    return [
        key_line("SDID", device["sdid"]),
        key_line("Super Pod Size", pod["size"]),
        key_line("Super Pod ID", pod["id"]),
        key_line("Server Index", pod["server_index"]),
    ]


def process_memory(state: State, device: Device, held: list[dict[str, Any]]) -> list[str]:
    """`npu-smi info -t proc-mem` of one chip."""
    return [
        f"\tProcess id:{process['pid']} Process name:{process['name']} Process memory(MB):{process['memory_mb']}"
        for process in processes_of(device, state, held)
    ] or [f"\tNo process in device {device['phy_id']}."]


def options(arguments: list[str]) -> dict[str, str]:
    """`-x value` pairs; ends the tool on anything else."""
    if len(arguments) % 2 or any(flag not in ("-t", "-i", "-c") for flag in arguments[::2]):
        not_found()
    return dict(zip(arguments[::2], arguments[1::2]))


def number(text: str | None) -> int | None:
    """An id given on the command line, or None; ends the tool on anything but digits."""
    if text is not None and not text.isdigit():
        not_found()
    return None if text is None else int(text)


def typed(state: State, chosen: dict[str, str], held: list[dict[str, Any]]) -> list[str]:
    """`npu-smi info -t TYPE [-i NPU] [-c CHIP]`."""
    kind, npu, chip = chosen.get("-t"), number(chosen.get("-i")), number(chosen.get("-c"))
    if kind == "topo":
        return topology(state)
    if kind not in ("board", "health", "usages", "ecc", "spod-info", "proc-mem") or npu is None:
        not_found()
    devices = [each for each in state["devices"] if each["npu_id"] == npu and chip in (None, each["chip_id"])]
    if not devices:
        print(f"Failed to execute npu-smi info. ret is {-8008}.")
        sys.exit(-8008 & 0xFF)
    if kind == "board":
        return board(state, devices, chip)
    lines: list[str] = []
    for device in devices:
        if kind == "health":
            lines += health(device)
        elif kind == "usages":
            lines += usages(device, held)
        elif kind == "ecc":
            lines += ecc(device)
        elif kind == "spod-info":
            lines += super_pod(state, device)
        else:
            lines += process_memory(state, device, held)
    return lines


def main(arguments: list[str]) -> int:
    """Runs one command line and returns the exit code."""
    try:
        state = node_state.read()
    except node_state.StateError:
        fail_start(-8005)
    if state["faults"]["npu_smi_ret"] is not None:
        fail_start(state["faults"]["npu_smi_ret"])
    if arguments in (["-v"], ["info", "-v"]):
        print(f"npu-smi version: {state['tool_version']}")
        return 0
    if not arguments or arguments[0] != "info":
        not_found()
    held = node_state.leases()
    rest = arguments[1:]
    if not rest:
        lines = info_table(state, held)
    elif rest == ["-l"]:
        lines = card_list(state)
    elif rest == ["-m"]:
        lines = mapping(state)
    else:
        lines = typed(state, options(rest), held)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
