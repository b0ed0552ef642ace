#!/usr/bin/env python3
"""Emulated nvidia-smi: prints in the real tool's shapes what the node's state file says. It never changes anything.

Knows the table, `-L`, `--query-gpu=FIELDS` and `--query-compute-apps=FIELDS` with `--format=csv[,noheader][,nounits]`,
and `-i` with indices, bus ids or UUIDs.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, NoReturn

sys.path.append("/usr/local/dcmi")

try:
    import node_state
except ImportError:  # as in a container without the driver's libraries
    print("Failed to initialize NVML: Driver/library version mismatch")
    sys.exit(18)

State = dict[str, Any]
Device = dict[str, Any]
Value = tuple[str, str]  # as printed without its unit, and the unit

RULE = "+" + "-" * 89 + "+"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)


def fail(text: str, code: int) -> NoReturn:
    """Ends with the tool's words, which it prints on stdout."""
    print(text)
    sys.exit(code)


def used_mb(device: Device, held: list[dict[str, Any]]) -> int:
    """MB in use on a device."""
    return node_state.hbm_used_mb(device, held)


def power(device: Device) -> float:
    """Watts drawn; 0 where the state has none."""
    return float(device["power_w"] or 0)


def fields(state: State, held: list[dict[str, Any]]) -> dict[str, Callable[[Device], Value]]:
    """What `--query-gpu` knows: from a field's name to its value for a device."""
    known: dict[str, Callable[[Device], Value]] = {
        "index": lambda device: (str(device["phy_id"]), ""),
        "name": lambda device: (device["name"], ""),
        "uuid": lambda device: (device["uuid"], ""),
        "serial": lambda device: (device["serial"], ""),
        "count": lambda _: (str(len(state["devices"])), ""),
        "driver_version": lambda _: (state["driver"]["version"], ""),
        "timestamp": lambda _: (time.strftime("%Y/%m/%d %H:%M:%S.000"), ""),
        "pci.bus_id": lambda device: (f"0000{device['bus_id']}", ""),
        "pstate": lambda device: ("P0" if device["aicore_percent"] else "P8", ""),
        "persistence_mode": lambda _: ("Enabled", ""),
        "mig.mode.current": lambda _: ("Disabled", ""),
        "compute_mode": lambda _: ("Default", ""),
        "compute_cap": lambda _: ("9.0", ""),
        "fan.speed": lambda _: ("[N/A]", ""),
        "temperature.gpu": lambda device: (str(device["temperature_c"]), ""),
        "power.draw": lambda device: (f"{power(device):.2f}", "W"),
        "power.limit": lambda device: (f"{device['power_limit_w']:.2f}", "W"),
        "utilization.gpu": lambda device: (str(device["aicore_percent"]), "%"),
        "utilization.memory": lambda device: (str(100 * used_mb(device, held) // device["hbm_total_mb"]), "%"),
        "memory.total": lambda device: (str(device["hbm_total_mb"]), "MiB"),
        "memory.used": lambda device: (str(used_mb(device, held)), "MiB"),
        "memory.free": lambda device: (str(device["hbm_total_mb"] - used_mb(device, held)), "MiB"),
        "ecc.mode.current": lambda _: ("Enabled", ""),
        "ecc.errors.uncorrected.volatile.total": lambda device: (str(device["ecc_double_bit"]), ""),
    }
    also = {"gpu_name": "name", "gpu_uuid": "uuid", "gpu_serial": "serial", "gpu_bus_id": "pci.bus_id"}
    return {**known, **{name: known[target] for name, target in also.items()}}


PROCESS_FIELDS: dict[str, Callable[[Device, dict[str, Any]], Value]] = {
    "gpu_name": lambda device, _: (device["name"], ""),
    "gpu_uuid": lambda device, _: (device["uuid"], ""),
    "gpu_bus_id": lambda device, _: (f"0000{device['bus_id']}", ""),
    "gpu_serial": lambda device, _: (device["serial"], ""),
    "pid": lambda _, process: (str(process["pid"]), ""),
    "process_name": lambda _, process: (process["name"] or "[Not Found]", ""),
    "name": lambda _, process: (process["name"] or "[Not Found]", ""),
    "used_gpu_memory": lambda _, process: (str(process["memory_mb"]), "MiB"),
    "used_memory": lambda _, process: (str(process["memory_mb"]), "MiB"),
}


def csv(names: list[str], rows: list[list[Value]], form: list[str]) -> list[str]:
    """Rows as `--format` asks for them; the header names the units that the rows have."""
    if form[:1] != ["csv"] or set(form[1:]) - {"noheader", "nounits"}:
        fail('"--format=" switch is missing or wrong. Please use --format=csv[,noheader][,nounits].', 2)
    units = {"utilization.": "%", "power.": "W", "memory.": "MiB", "used_": "MiB"}
    lines = []
    if "noheader" not in form:
        titles = []
        for name in names:
            unit = next((unit for start, unit in units.items() if name.startswith(start)), "")
            titles.append(f"{name} [{unit}]" if unit else name)
        lines.append(", ".join(titles))
    bare = "nounits" in form
    return lines + [", ".join(text if bare or not unit else f"{text} {unit}" for text, unit in row) for row in rows]


def check_names(names: list[str], known: dict[str, Any]) -> None:
    """Ends the tool on a field that it does not know."""
    for name in names:
        if name not in known:
            fail(f'Field "{name}" is not a valid field to query.', 2)


def listing(devices: list[Device]) -> list[str]:
    """`-L`."""
    return [f"GPU {device['phy_id']}: {device['name']} (UUID: {device['uuid']})" for device in devices]


def boxed(*cells: str) -> str:
    """A table row of one cell, or of the three of a device."""
    widths = {1: (89,), 3: (41, 24, 22)}[len(cells)]
    return "|" + "|".join(f"{cell:<{width}}" for cell, width in zip(cells, widths)) + "|"


def table(state: State, devices: list[Device], held: list[dict[str, Any]]) -> list[str]:
    """The table: devices, then processes."""
    version, cuda = state["driver"]["version"], state["gpu"]["cuda_version"]
    between = "+" + "+".join("-" * width for width in (41, 24, 22)) + "+"
    lines = [
        time.strftime("%a %b %e %H:%M:%S %Y"),
        RULE,
        boxed(f" NVIDIA-SMI {state['tool_version']:<22} Driver Version: {version:<14} CUDA Version: {cuda}"),
        between,
        boxed(" GPU  Name                 Persistence-M ", " Bus-Id          Disp.A", " Volatile Uncorr. ECC"),
        boxed(" Fan  Temp   Perf          Pwr:Usage/Cap ", "           Memory-Usage", " GPU-Util  Compute M."),
        boxed("", "", f"{'MIG M.':>21}"),
        "|" + "+".join("=" * width for width in (41, 24, 22)) + "|",
    ]
    for device in devices:
        watts = f"{power(device):.0f}W / {device['power_limit_w']:>4.0f}W"
        memory = f"{used_mb(device, held)}MiB / {device['hbm_total_mb']}MiB"
        state_of = "P0" if device["aicore_percent"] else "P8"
        lines += [
            boxed(
                f" {device['phy_id']:>3}  {device['name'][:24]:<24}     On ",
                f"   0000{device['bus_id']} Off ",
                f"{device['ecc_double_bit']:>21}",
            ),
            boxed(
                f" N/A  {device['temperature_c']:>3}C    {state_of}    {watts:>21}",
                f"{memory:>23}",
                f"{device['aicore_percent']:>7}%      Default",
            ),
            boxed("", "", f"{'Disabled':>21}"),
            between,
        ]
    lines += [
        "",
        RULE,
        boxed(" Processes:"),
        boxed("  GPU   GI   CI              PID   Type   Process name                        GPU Memory"),
        boxed("        ID   ID                                                               Usage"),
        "|" + "=" * 89 + "|",
    ]
    rows = [
        boxed(
            f"  {device['phy_id']:>3}   N/A  N/A {process['pid']:>15}      C   "
            f"{(process['name'] or '[Not Found]')[:32]:<32} {process['memory_mb']:>9}MiB "
        )
        for device in devices
        for process in node_state.processes_of(device, state, held)
    ]
    return [*lines, *(rows or [boxed("  No running processes found")]), RULE]


def chosen(state: State, wanted: str | None) -> list[Device]:
    """The devices of `-i`; ends the tool where there is no such one."""
    if wanted is None:
        return state["devices"]
    found = []
    for word in wanted.split(","):
        for device in state["devices"]:
            if word in (str(device["phy_id"]), device["uuid"], device["bus_id"], f"0000{device['bus_id']}"):
                found.append(device)
                break
        else:
            fail("No devices were found", 6)
    return found


def options(arguments: list[str]) -> dict[str, str]:
    """The command line as `{option: value}`; ends the tool on an option it does not know."""
    known = {"-i": "id", "--id": "id", "-L": "list", "--list-gpus": "list", "--format": "format"}
    known |= {"--query-gpu": "gpu", "--query-compute-apps": "apps"}
    found, words = {}, list(arguments)
    while words:
        word, equals, value = words.pop(0).partition("=")
        if word not in known:
            fail(f"Invalid combination of input arguments. Option {word} is not known to the sandbox.", 2)
        if known[word] == "list":
            found["list"] = ""
        elif equals or words:
            found[known[word]] = value if equals else words.pop(0)
        else:
            fail(f"Option {word} takes a value.", 2)
    return found


def main(arguments: list[str]) -> int:
    """Runs one command line and returns the exit code."""
    try:
        state = node_state.read()
    except node_state.StateError:
        fail(NO_DRIVER, 9)
    node_state.answer_for("nvidia-smi", arguments, state)
    if state["accelerator"] != "nvidia" or state["driver"] is None:
        fail(NO_DRIVER, 9)
    if not state["devices"]:
        fail("No devices were found", 6)
    given = options(arguments)
    held = node_state.leases()
    devices = chosen(state, given.get("id"))
    form = given.get("format", "").split(",")
    if "list" in given:
        lines = listing(devices)
    elif "gpu" in given:
        known = fields(state, held)
        names = given["gpu"].split(",")
        check_names(names, known)
        lines = csv(names, [[known[name](device) for name in names] for device in devices], form)
    elif "apps" in given:
        names = given["apps"].split(",")
        check_names(names, PROCESS_FIELDS)
        rows = [
            [PROCESS_FIELDS[name](device, process) for name in names]
            for device in devices
            for process in node_state.processes_of(device, state, held)
        ]
        lines = csv(names, rows, form)
    else:
        lines = table(state, devices, held)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
