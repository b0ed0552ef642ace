"""Readers of what ``npu-smi`` prints: pure functions of its text.

Every function returns plain data, raises `ParseError` naming the line that fits no known row, or `ToolError` when the
tool itself said that it failed. Nothing else is ever raised, and a row that is cut off is an error, not a shorter list.
Rows are split at their bars and never by column position, because each release pads differently.
"""

from __future__ import annotations

__all__ = [
    "parse_board",
    "parse_health",
    "parse_info",
    "parse_list",
    "parse_mapping",
    "parse_super_pod",
    "parse_topology",
    "parse_usages",
]

import re
from typing import Any, Dict, List, Optional, Set, Tuple

from .errors import ParseError, ToolError
from .text import clean_lines, integer, key_values, number

_TOOL = "npu-smi"

# Failures that the tool prints as text, often with exit code 0. `module initialize` and `model initialized` both occur.
_FAILURES = (
    re.compile(r"dcmi mod(?:ule|el) initiali[sz]ed? failed.*?(?:ret is (?P<ret>-?[0-9]{1,9}))?\.?\s*\Z", re.I),
    re.compile(r"npu get board type failed.*?(?:ret is (?P<ret>-?[0-9]{1,9}))?\.?\s*\Z", re.I),
    re.compile(r"failed to execute npu-smi.*?(?:ret is (?P<ret>-?[0-9]{1,9}))?\.?\s*\Z", re.I),
    re.compile(r"command or option is not found", re.I),
    re.compile(r"this device does not support", re.I),
    re.compile(r"error while loading shared libraries", re.I),
    re.compile(r"npu-smi: (?:command )?not found", re.I),
    re.compile(r"cannot execute binary file|exec format error", re.I),
)
_VERSIONS = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S*)")
_PAIR = re.compile(r"(\S+?)\s*/\s*(\S+)")
_BUS_ID = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]\Z")
_NO_PROCESS = re.compile(r"No running process(?:es)? found in NPU\s+([0-9]{1,9})", re.I)
_TOPOLOGY_LINKS = frozenset({"X", "HCCS", "SIO", "HCCS_SW", "PIX", "PXB", "PHB", "SYS", "NA", "UB"})


#: Words of the health column and of the health form.
_HEALTH = frozenset({"OK", "Warning", "Alarm", "Critical", "UNKNOWN", "Unknown"})


def _key_values(source: str, text: str) -> List[Tuple[int, str, str, str]]:
    """`key_values`; ParseError where the last line is cut off, since its value may go on."""
    pairs = key_values(text)
    if pairs and not text.endswith("\n") and pairs[-1][0] == clean_lines(text)[-1][0]:
        raise ParseError(source, "the text breaks off here", pairs[-1][0], pairs[-1][3])
    return pairs


def _refuse_failure(lines: List[Tuple[int, str]]) -> None:
    """Raise ToolError when a line is the tool's own report of failure."""
    for _number, line in lines:
        if line.startswith("|"):
            continue
        for pattern in _FAILURES:
            match = pattern.search(line)
            if match:
                ret = match.groupdict().get("ret")
                raise ToolError(_TOOL, line, None if ret is None else int(ret))


def _cells(line_number: int, line: str) -> Optional[List[str]]:
    """The cells of a table row, None for a line that is no row; ParseError for a row that is cut off."""
    if not line.startswith("|"):
        # One bar is a shell pipe in a pasted prompt; more are a row that lost its beginning.
        if line.count("|") > 1:
            raise ParseError("npu-smi info", "table row without its first bar", line_number, line)
        return None
    if not line.endswith("|") or len(line) < 2:
        raise ParseError("npu-smi info", "table row without its last bar", line_number, line)
    return [cell.strip() for cell in line[1:-1].split("|")]


def _pairs(text: str, line_number: int, line: str) -> List[Tuple[Optional[int], Optional[int]]]:
    """``used / total`` pairs; the used figure may touch the slash, and nothing else may stand between them."""
    pairs = []
    rest = text
    while rest:
        match = _PAIR.match(rest)
        if not match:
            raise ParseError("npu-smi info", f"expected used / total, found {rest!r}", line_number, line)
        used = integer("npu-smi info", match.group(1), line_number, line)
        total = integer("npu-smi info", match.group(2), line_number, line)
        if used is not None and total is not None and used > total:
            raise ParseError("npu-smi info", f"{used} used of {total}", line_number, line)
        pairs.append((used, total))
        rest = rest[match.end() :].strip()
    return pairs


def _first_row(cells: List[str], line_number: int, line: str) -> Dict[str, Any]:
    """NPU id, name, health, power and temperature: the upper row of a chip."""
    words = cells[0].split(None, 1)
    figures = cells[2].split(None, 2)
    if len(cells) != 3 or len(words) != 2 or len(figures) != 3:
        raise ParseError(
            "npu-smi info", "expected NPU and name | health | power, temperature, pages", line_number, line
        )
    npu_id = integer("npu-smi info", words[0], line_number, line)
    if npu_id is None or cells[1] not in _HEALTH:
        raise ParseError("npu-smi info", "expected an NPU number and a health word", line_number, line)
    if len(_pairs(figures[2], line_number, line)) != 1:
        raise ParseError("npu-smi info", "expected one used / total pair of huge pages", line_number, line)
    return {
        "npu_id": npu_id,
        "chip_id": None,
        "phy_id": None,
        "name": words[1].strip(),
        "health": cells[1],
        "bus_id": None,
        "power_w": number("npu-smi info", figures[0], line_number, line),
        "temperature_c": integer("npu-smi info", figures[1], line_number, line),
    }


def _second_row(cells: List[str], line_number: int, line: str) -> Dict[str, Any]:
    """Chip numbers, bus address and usage: the lower row of a chip."""
    ids = [integer("npu-smi info", word, line_number, line) for word in cells[0].split()]
    figures = cells[2].split(None, 1)
    if len(cells) != 3 or len(ids) > 2 or len(figures) != 2 or None in ids:
        raise ParseError("npu-smi info", "expected chip numbers | bus address | usage", line_number, line)
    bus_id: Optional[str] = cells[1]
    if cells[1] in ("", "-", "NA"):
        bus_id = None
    elif not _BUS_ID.match(cells[1]):
        raise ParseError("npu-smi info", f"expected a bus address, found {cells[1]!r}", line_number, line)
    aicore = integer("npu-smi info", figures[0], line_number, line)
    pairs = _pairs(figures[1], line_number, line)
    if len(pairs) not in (1, 2):
        raise ParseError("npu-smi info", "expected one or two used / total pairs", line_number, line)
    hbm = pairs[1] if len(pairs) == 2 else (None, None)
    return {
        "chip_id": ids[0] if ids else 0,
        "phy_id": ids[1] if len(ids) == 2 else None,
        "bus_id": bus_id,
        "aicore_percent": aicore,
        "memory_used_mb": pairs[0][0],
        "memory_total_mb": pairs[0][1],
        "hbm_used_mb": hbm[0],
        "hbm_total_mb": hbm[1],
    }


def _process_columns(cells: List[str]) -> Dict[str, int]:
    """Which cell of a process row holds what, from the header of the process table."""
    columns = {}
    for index, cell in enumerate(cells):
        words = cell.lower()
        if words.startswith("npu"):
            columns["ids"] = index
        elif "container" in words:
            columns["container_pid"] = index
        elif words.startswith("process id"):
            columns["pid"] = index
        elif words.startswith("process name"):
            columns["name"] = index
        elif words.startswith("process memory"):
            columns["memory"] = index
    return columns


def _process_row(cells: List[str], columns: Dict[str, int], line_number: int, line: str) -> Dict[str, Any]:
    width = len(columns)
    ids = cells[columns["ids"]].split()
    if len(cells) != width or len(ids) not in (1, 2):
        raise ParseError("npu-smi info", f"expected {width} cells of a process row", line_number, line)
    numbers = [integer("npu-smi info", word, line_number, line) for word in ids]
    pid = integer("npu-smi info", cells[columns["pid"]], line_number, line)
    if pid is None or None in numbers:
        raise ParseError("npu-smi info", "process row without NPU or process number", line_number, line)
    return {
        "npu_id": numbers[0],
        "chip_id": numbers[1] if len(numbers) == 2 else 0,
        "pid": pid,
        "name": cells[columns["name"]] or None,
        "memory_mb": integer("npu-smi info", cells[columns["memory"]], line_number, line),
    }


def parse_info(text: str) -> Dict[str, Any]:
    """Devices and processes of one ``npu-smi info`` table, in the order of the table.

    Works for the A2, A3, 310P and 950 layouts. ``phy_id`` is the number of the A3 `Phy-ID` column (310P: `Device`):
    it is the N of ``/dev/davinciN``; A2 and 950 print none, there the position in the list is that number.
    ``memory_*`` is DDR (0 of 0 where the board reports none), ``hbm_*`` is None on boards without HBM.
    A process whose name the tool hides (other pid namespace) has ``name`` None. ``complete`` is False where the process
    part is absent or leaves an NPU out: the table may have been cut off, and there may be more devices.
    """
    lines = clean_lines(text)
    _refuse_failure(lines)
    result: Dict[str, Any] = {"tool_version": None, "driver_version": None, "devices": [], "processes": []}
    upper: Optional[Tuple[Dict[str, Any], int, str]] = None
    columns: Optional[Dict[str, int]] = None
    answered: Set[int] = set()
    for line_number, line in lines:
        cells = _cells(line_number, line)
        if cells is None:
            continue
        versions = _VERSIONS.search(line)
        if versions:
            result["tool_version"] = versions.group(1)
            result["driver_version"] = None if versions.group(2) in ("", "NA", "|") else versions.group(2)
        elif any(cell.startswith("Process id") for cell in cells):
            columns = _process_columns(cells)
            if len(columns) != len(cells) or not {"ids", "pid", "name", "memory"} <= set(columns):
                raise ParseError("npu-smi info", "process table with unknown columns", line_number, line)
        elif len(cells) == 1 and _NO_PROCESS.match(cells[0]):
            answered.update(int(npu) for npu in _NO_PROCESS.findall(cells[0]))
        elif columns is not None:
            if len(cells) < len(columns):
                raise ParseError("npu-smi info", f"expected {len(columns)} cells of a process row", line_number, line)
            result["processes"].append(_process_row(cells, columns, line_number, line))
        elif re.match(r"(?:NPU|Chip)\b", cells[0]) or "Bus-Id" in cells:
            continue
        elif len(cells) != 3:
            raise ParseError("npu-smi info", f"expected 3 cells of a device row, found {len(cells)}", line_number, line)
        elif upper is None:
            upper = (_first_row(cells, line_number, line), line_number, line)
        else:
            device = dict(upper[0], **_second_row(cells, line_number, line))
            if any(
                all(device[key] == one[key] for key in ("npu_id", "chip_id", "phy_id")) for one in result["devices"]
            ):
                raise ParseError("npu-smi info", "the same chip stands twice", line_number, line)
            result["devices"].append(device)
            upper = None
    if upper is not None:
        raise ParseError("npu-smi info", "device without its second row", upper[1], upper[2])
    if not result["devices"]:
        raise ParseError("npu-smi info", "no device row found")
    answered.update(process["npu_id"] for process in result["processes"])
    result["complete"] = columns is not None and {device["npu_id"] for device in result["devices"]} <= answered
    return result


def parse_mapping(text: str) -> List[Dict[str, Any]]:
    """Rows of ``npu-smi info -m``: ``{npu_id, chip_id, logic_id, phy_id, slot_id, name}``, without the management chip.

    ``phy_id`` and ``slot_id`` are None where the tool has no such column.
    """
    source = "npu-smi info -m"
    lines = clean_lines(text)
    _refuse_failure(lines)
    columns: List[str] = []
    rows: List[Dict[str, Any]] = []
    titles = (
        ("npu_id", "NPU ID"),
        ("chip_id", "Chip ID"),
        ("logic_id", "Chip Logic ID"),
        ("phy_id", "Chip Phy-ID"),
        ("slot_id", "Slot ID"),
        ("name", "Chip Name"),
    )
    for line_number, line in lines:
        if "NPU ID" in line and "Chip Name" in line:
            names = {title: key for key, title in titles}
            cells = re.split(r"\s{2,}", line)
            if not set(cells) <= set(names) or len(set(cells)) != len(cells):
                raise ParseError(source, "header with unknown columns", line_number, line)
            columns = [names[cell] for cell in cells]
            if columns[-1] != "name":
                raise ParseError(source, "the name is not the last column", line_number, line)
            continue
        if not re.match(r"[0-9]+\s", line):
            continue
        if not columns:
            raise ParseError(source, "row before its header", line_number, line)
        words = line.split(None, len(columns) - 1)
        if len(words) != len(columns) or (line_number == lines[-1][0] and not text.endswith("\n")):
            raise ParseError(source, f"expected {len(columns)} whole columns", line_number, line)
        row: Dict[str, Any] = {key: None for key, _title in titles}
        row.update(zip(columns, words))
        if row["name"].lower() == "mcu":
            continue
        for key in columns:
            if key != "name":
                row[key] = integer(source, row[key], line_number, line)
        if row["npu_id"] is None or row["chip_id"] is None:
            raise ParseError(source, "row without NPU or chip number", line_number, line)
        rows.append(row)
    if not columns:
        raise ParseError(source, "no header with NPU ID and Chip Name found")
    return rows


def parse_list(text: str) -> Dict[str, Any]:
    """``npu-smi info -l``: ``{total, npus: [{npu_id, chip_count, product_name, serial_number}]}``."""
    source = "npu-smi info -l"
    _refuse_failure(clean_lines(text))
    if re.search(r"there is no NPU card", text, re.I):
        return {"total": 0, "npus": []}
    total: Optional[int] = None
    npus: List[Dict[str, Any]] = []
    for line_number, key, value, line in _key_values(source, text):
        if key in ("Total Count", "Card Count"):
            total = integer(source, value, line_number, line)
        elif key == "NPU ID":
            npu_id = integer(source, value, line_number, line)
            npus.append({"npu_id": npu_id, "chip_count": None, "product_name": None, "serial_number": None})
        elif key in ("Product Name", "Serial Number", "Chip Count"):
            if not npus:
                raise ParseError(source, f"{key} before any NPU ID", line_number, line)
            field = key.lower().replace(" ", "_")
            npus[-1][field] = integer(source, value, line_number, line) if key == "Chip Count" else value or None
    if total is None:
        raise ParseError(source, "no Total Count found")
    if total != len(npus):
        raise ParseError(source, f"Total Count is {total} but {len(npus)} NPUs are listed")
    return {"total": total, "npus": npus}


def parse_board(text: str) -> Dict[str, Any]:
    """``npu-smi info -t board``: the usual fields by name, and ``fields`` with every key as printed.

    ``compatibility`` is OK, NOK or UNKNOWN (driver against firmware); None in the chip form, which does not print it.
    """
    source = "npu-smi info -t board"
    _refuse_failure(clean_lines(text))
    fields: Dict[str, str] = {}
    counts: Dict[str, Optional[int]] = {"NPU ID": None, "Chip Count": None}
    for line_number, key, value, line in _key_values(source, text):
        if not key:
            continue
        fields[key] = value
        if key in counts:
            counts[key] = integer(source, value, line_number, line)
    if not {"Software Version", "Chip Name", "Chip Count", "Product Name"} & set(fields):
        raise ParseError(source, "none of Software Version, Chip Name, Chip Count, Product Name found")

    def word(key: str) -> Optional[str]:
        value = fields.get(key, "")
        return None if value in ("", "NA", "-") else value

    return {
        "npu_id": counts["NPU ID"],
        "chip_count": counts["Chip Count"],
        "product_name": word("Product Name"),
        "serial_number": word("Serial Number"),
        "software_version": word("Software Version"),
        "firmware_version": word("Firmware Version"),
        "compatibility": word("Compatibility"),
        "chip_name": word("Chip Name"),
        "fields": fields,
    }


def parse_health(text: str) -> Dict[str, Any]:
    """``npu-smi info -t health``: ``{health, error_codes: [hex text], error_information: [text]}``.

    This form says OK when no code can be read although the table says Alarm: callers take the worse of the two.
    """
    source = "npu-smi info -t health"
    _refuse_failure(clean_lines(text))
    health: Optional[str] = None
    codes: List[str] = []
    information: List[str] = []
    previous = ""
    for line_number, key, value, line in _key_values(source, text):
        key = key or previous
        previous = key
        if key.startswith("Health"):
            if value not in _HEALTH:
                raise ParseError(source, f"expected a health word, found {value!r}", line_number, line)
            health = value
        elif key == "Error Code":
            for code in value.split():
                if code in ("NA", "-"):
                    continue
                if not re.match(r"(?:0[xX])?[0-9A-Fa-f]{8}\Z", code):
                    raise ParseError(
                        source, f"expected a code of eight hexadecimal digits, found {code!r}", line_number, line
                    )
                codes.append(code)
        elif key == "Error Information" and value not in ("", "NA"):
            information.append(value)
    if health is None:
        raise ParseError(source, "no Health line found")
    return {"health": health, "error_codes": codes, "error_information": information}


def parse_super_pod(text: str) -> Dict[str, int]:
    """``npu-smi info -t spod-info`` of an A3 chip: ``{sdid, size, id, server_index}``. An SDID is unique in its pod."""
    source = "npu-smi info -t spod-info"
    _refuse_failure(clean_lines(text))
    keys = {"SDID": "sdid", "Super Pod Size": "size", "Super Pod ID": "id", "Server Index": "server_index"}
    found: Dict[str, int] = {}
    for line_number, key, value, line in _key_values(source, text):
        if key in keys:
            figure = integer(source, value, line_number, line)
            if figure is None or figure < 0:
                raise ParseError(source, f"expected a number, found {value!r}", line_number, line)
            found[keys[key]] = figure
    missing = sorted(set(keys.values()) - set(found))
    if missing:
        raise ParseError(source, f"no line for {', '.join(missing)}")
    return found


def parse_usages(text: str) -> Dict[str, Optional[int]]:
    """``npu-smi info -t usages`` as ``{"hbm_capacity_mb": 65536, "hbm_usage_rate_percent": 5}``; None: not reported."""
    source = "npu-smi info -t usages"
    _refuse_failure(clean_lines(text))
    usages: Dict[str, Optional[int]] = {}
    for line_number, key, value, line in _key_values(source, text):
        name = re.sub(r"[^a-z0-9]+", "_", key.replace("%", "percent").lower()).strip("_")
        if name:
            usages[name] = integer(source, value, line_number, line)
    if not any("usage" in name or "capacity" in name for name in usages):
        raise ParseError(source, "no usage line found")
    return usages


def parse_topology(text: str) -> Dict[str, Any]:
    """``npu-smi info -t topo``: ``{"links": {"0-1": "HCCS", ...}, "cpu_affinity": {"0": "0-23", ...}}``.

    A pair stands once, lower number first. ``cpu_affinity`` is empty where the tool prints no such column.
    """
    source = "npu-smi info -t topo"
    lines = clean_lines(text)
    _refuse_failure(lines)
    labels: List[str] = []
    cells: Dict[Tuple[int, int], str] = {}
    affinity: Dict[str, str] = {}
    rows: List[int] = []
    for line_number, line in lines:
        if line.startswith("Legend"):
            break
        words = line.split()
        named = [re.match(r"(?:NPU|Phy-ID)([0-9]{1,6})\Z", word) for word in words]
        if not labels:
            labels = [match.group(1) for match in named if match]
            if labels and (not named[0] or len(set(labels)) != len(labels)):
                raise ParseError(source, "header with doubled or unknown columns", line_number, line)
            continue
        if not named[0]:
            if words[0] in _TOPOLOGY_LINKS:
                raise ParseError(source, "row without its label", line_number, line)
            continue
        row = named[0].group(1)
        links = words[1 : 1 + len(labels)]
        if row not in labels or len(links) != len(labels) or not set(links) <= _TOPOLOGY_LINKS:
            raise ParseError(source, f"expected {len(labels)} known link names", line_number, line)
        rows.append(int(row))
        for column, link in zip(labels, links):
            if (column == row) != (link == "X"):
                raise ParseError(source, "X must stand on the diagonal only", line_number, line)
            cells[int(row), int(column)] = link
        rest = "".join(words[1 + len(labels) :])
        if line_number == lines[-1][0] and not text.endswith("\n"):
            raise ParseError(source, "the text breaks off here", line_number, line)
        if rest:
            affinity[row] = rest
    if not labels or sorted(rows) != sorted(int(label) for label in labels):
        raise ParseError(source, f"expected one row for each of {len(labels)} columns, found {len(rows)}")
    links_out = {}
    for (row_id, column_id), link in sorted(cells.items()):
        if row_id < column_id:
            if cells[column_id, row_id] != link:
                raise ParseError(
                    source, f"{row_id}-{column_id} is {link} one way, {cells[column_id, row_id]} the other"
                )
            links_out[f"{row_id}-{column_id}"] = link
    return {"links": links_out, "cpu_affinity": affinity}
