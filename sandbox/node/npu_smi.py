#!/usr/bin/env python3
"""Emulated npu-smi: prints in the real tool's shapes what the node's state file says. It never changes anything."""

from __future__ import annotations

import re
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
# The widths of the cells of a device row and of a process row, blanks included, by layout and by release of the tool.
WIDTHS = {
    "98": ([27, 15, 52], [27, 15, 26, 25]),
    "99": ([27, 15, 53], [27, 17, 26, 24]),
    "106": ([31, 17, 54], [31, 17, 28, 25]),
    "116": ([33, 21, 58], [22, 15, 25, 25, 23]),
}
USAGE = """Usage: npu-smi info [OPTION]...

Options:
  -h                 Shows this
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


def style(state: State) -> str:
    """Which of WIDTHS the tool of this release prints in this layout."""
    if state["layout"] in ("310p", "950"):
        return {"310p": "106", "950": "99"}[state["layout"]]
    major = int(re.match(r"[0-9]*", state["tool_version"]).group() or 0)
    return "116" if major >= 26 else "98" if major >= 24 else "99"


def rule(widths: list[int], mark: str = "=") -> str:
    """A line between rows, with a cross at each bar."""
    return "+" + "+".join(mark * width for width in widths) + "+"


def row(cells: list[str], widths: list[int]) -> str:
    """Cells between bars, each with a blank before it."""
    return "|" + "|".join(f" {cell:<{width - 1}}" for cell, width in zip(cells, widths)) + "|"


def device_rows(device: Device, state: State, used: int) -> tuple[list[str], list[str]]:
    """The cells of the two rows of one device, of whose memory `used` MB are taken."""
    layout = state["layout"]
    pages_used, pages = device["hugepages"]
    digits = 5 if style(state) in ("98", "116") else 6
    silent = "NA" if layout == "310p" else "-"
    power = silent if device["power_w"] is None else f"{device['power_w']:.1f}"
    temperature, aicore, total = device["temperature_c"], device["aicore_percent"], device["hbm_total_mb"]
    if layout == "310p":
        return (
            [
                f"{device['npu_id']:<7} {device['name']}",
                device["health"],
                f"{power:<12} {temperature:<17} {pages_used:<{digits}}/ {pages}",
            ],
            [f"{device['chip_id']:<7} {device['phy_id']}", device["bus_id"], f"{aicore:<12} {used:<5}/ {total}"],
        )
    place = {"a2": f"{device['chip_id']}", "a3": f"{device['chip_id']:<5} {device['phy_id']}", "950": ""}[layout]
    return (
        [
            f"{device['npu_id']:<5} {device['name']}",
            device["health"],
            f"{power:<11} {temperature:<17} {pages_used:<{digits}}/ {pages}",
        ],
        [place, device["bus_id"], f"{aicore:<11} {0:<5}/ {0:<10} {used:<{digits}}/ {total}"],
    )


HEADERS = {
    "a2": (["NPU   Name", "Health"], ["Chip", "Bus-Id", "AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)"]),
    "a3": (["NPU   Name", "Health"], ["Chip  Phy-ID", "Bus-Id", "AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)"]),
    "310p": (["NPU     Name", "Health"], ["Chip    Device", "Bus-Id", "AICore(%)    Memory-Usage(MB)"]),
    "950": (["NPU ID  Name", "Health"], ["", "Bus-Id", "NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)"]),
}


def info_table(state: State, held: list[dict[str, Any]]) -> list[str]:
    """The table of `npu-smi info`: devices, then processes."""
    widths, _ = WIDTHS[style(state)]
    whole = [sum(widths) + len(widths) - 1]
    upper, lower = HEADERS[state["layout"]]
    gap = " " if state["layout"] == "310p" else ""
    lines = [
        rule(whole, "-"),
        row([f"{'npu-smi ' + state['tool_version']:<32} Version: {state['driver']['version']}"], whole),
        rule(widths, "-"),
        row([*upper, f"Power(W)    {gap}Temp(C)           Hugepages-Usage(page)"], widths),
        row(lower, widths),
        rule(widths),
    ]
    devices = state["devices"]
    for index, device in enumerate(devices):
        lines += [row(cells, widths) for cells in device_rows(device, state, node_state.hbm_used_mb(device, held))]
        last_of_npu = index + 1 == len(devices) or devices[index + 1]["npu_id"] != device["npu_id"]
        lines.append(rule(widths) if last_of_npu or state["layout"] == "310p" else rule(widths, "-"))
    return lines + process_table(state, held) + installation_warning()


def process_table(state: State, held: list[dict[str, Any]]) -> list[str]:
    """The second table of `npu-smi info`: who holds memory on which chip."""
    device_widths, widths = WIDTHS[style(state)]
    five = len(widths) == 5
    outer = widths if five else device_widths
    ids = "NPU ID" if state["layout"] == "950" else "NPU     Chip"
    header = [ids, "Process id", "Process name", "Process memory(MB)"]
    if five:
        header.insert(2, "Process id in container")
    lines = [rule(outer, "-"), row(header, widths), rule(outer)]
    for npu_id in sorted({device["npu_id"] for device in state["devices"]}):
        rows = []
        for device in (each for each in state["devices"] if each["npu_id"] == npu_id):
            place = f"{npu_id}" if state["layout"] == "950" else f"{npu_id:<7} {device['chip_id']}"
            for process in node_state.processes_of(device, state, held):
                # The state knows one pid of a process; a container's own number is not among what it knows.
                cells = [place, str(process["pid"]), process["name"][:24], str(process["memory_mb"])]
                if five:
                    cells.insert(2, "NA")
                rows.append(row(cells, widths))
        lines += rows or [row([f"No running processes found in NPU {npu_id}"], [sum(widths) + len(widths) - 1])]
        lines.append(rule(outer))
    return lines


def installation_warning() -> list[str]:
    """The line after the table where the driver's installation did not come to its end; on the host only."""
    if not node_state.on_node("usr/local/lib/sandbox/boot").exists():
        return []
    try:
        complete = "Driver_Install_Status=complete" in node_state.on_node("etc/ascend_install.info").read_text()
    except OSError:
        complete = False
    warning = "[WARNING]The driver package may not be completely installed. Install the driver package again."
    return [] if complete else [warning]


def mapping(state: State) -> list[str]:
    """`npu-smi info -m`."""
    titles = {"npu_id": "NPU ID", "chip_id": "Chip ID", "logic_id": "Chip Logic ID"}
    titles |= {"a3": {"phy_id": "Chip Phy-ID"}, "950": {"npu_id_again": "Slot ID"}}.get(state["layout"], {})
    titles["name"] = "Chip Name"
    rows = [list(titles.values())]
    devices = state["devices"]
    for index, device in enumerate(devices):
        known = {**device, "npu_id_again": device["npu_id"]}
        rows.append([str(known[key]) for key in titles])
        # A card with a management chip of its own shows it after its devices.
        if state["layout"] == "310p" and (
            index + 1 == len(devices) or devices[index + 1]["npu_id"] != device["npu_id"]
        ):
            rows.append([str(device["npu_id"]), str(device["chip_id"] + 1), "-", "Mcu"])
    return ["\t" + " ".join(f"{cell:<30}" for cell in cells).rstrip() for cells in rows]


def card_list(state: State) -> list[str]:
    """`npu-smi info -l`."""
    npu_ids = sorted({device["npu_id"] for device in state["devices"]})
    if not npu_ids:
        return ["\tThere is no NPU card on this server."]
    cards = state["layout"] == "310p"
    lines = [key_line("Card Count" if cards else "Total Count", len(npu_ids)), ""]
    for npu_id in npu_ids:
        chips = [device for device in state["devices"] if device["npu_id"] == npu_id]
        lines.append(key_line("NPU ID", npu_id))
        if cards:
            lines.append(key_line("Product Name", state["board"]["product"]))
            lines.append(key_line("Serial Number", chips[0]["serial"]))
        lines += [key_line("Chip Count", len(chips)), ""]
    return lines


def version_key(text: str) -> list[int]:
    """A dotted version as numbers, for ordering. Words such as `rc1` count as their digits."""
    return [int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")]


def compatibility(state: State) -> str:
    """Whether driver and firmware go together: `OK`, `NOK`, or `UNKNOWN` when a package does not say."""
    if not state["firmware"]:
        return "UNKNOWN"
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
    card = next(card for card in state["pci"] if card["bus_id"] == first["bus_id"])
    pci = [
        key_line("PCI Vendor ID", "0x19E5"),
        key_line("PCI Device ID", f"0x{card['device'].upper()}"),
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
        key_line("Firmware Version", state["firmware"]["version"] if state["firmware"] else "NA"),
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


def usages(state: State, device: Device, held: list[dict[str, Any]]) -> list[str]:
    """`npu-smi info -t usages` of one chip; boards without HBM have one memory."""
    used = node_state.hbm_used_mb(device, held)
    rate = 100 * used // device["hbm_total_mb"]
    if state["layout"] == "310p":
        return [
            key_line("NPU ID", device["npu_id"]),
            key_line("Chip ID", device["chip_id"]),
            key_line("Memory Capacity(MB)", device["hbm_total_mb"]),
            key_line("Memory Usage Rate(%)", rate),
            key_line("Aicore Usage Rate(%)", device["aicore_percent"]),
            key_line("Aicpu Usage Rate(%)", 0),
            key_line("Ctrlcpu Usage Rate(%)", 0),
            key_line("Memory Bandwidth Usage Rate(%)", 0),
        ]
    pages_used, pages = device["hugepages"]
    return [
        key_line("NPU ID", device["npu_id"]),
        key_line("Chip ID", device["chip_id"]),
        key_line("DDR Capacity(MB)", 0),
        key_line("DDR Usage Rate(%)", 0),
        key_line("DDR Hugepages Total(page)", pages),
        key_line("DDR Hugepages Usage Rate(%)", 100 * pages_used // pages if pages else 0),
        key_line("HBM Capacity(MB)", device["hbm_total_mb"]),
        key_line("HBM Usage Rate(%)", rate),
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
    if state["layout"] == "310p":
        return ["This device does not support querying topo."]
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
        for process in node_state.processes_of(device, state, held)
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
            lines += usages(state, device, held)
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
    node_state.answer_for("npu-smi", arguments, state)
    if state["faults"]["npu_smi_ret"] is not None:
        fail_start(state["faults"]["npu_smi_ret"])
    if state["accelerator"] != "ascend" or state["driver"] is None:
        fail_start(-8005)
    if arguments in (["-v"], ["info", "-v"]):
        print(f"npu-smi version: {state['tool_version']}")
        return 0
    if arguments in (["-h"], ["--help"], ["info", "-h"]):
        print(USAGE)
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
