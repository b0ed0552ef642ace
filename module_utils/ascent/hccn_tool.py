"""Readers of what ``hccn_tool -i N -<object> -g`` prints.

The exit code of the tool is a truncated 16-bit number and says nothing: the text decides. `parse` returns plain data,
raises `ToolError` when the tool reported a failure, or `ParseError` when the text has no known shape.
"""

from __future__ import annotations

__all__ = ["BUSY", "OPTIONS", "parse"]

import ipaddress
import re
from typing import Any, Callable, Dict, List, Optional, Tuple

from .errors import ParseError, ToolError
from .text import clean_lines, integer, number

_TOOL = "hccn_tool"

#: Text of a refusal that passes by itself: another call holds the tool's lock.
BUSY = re.compile(r"hccn_tool is busy|get lock failed|device is occupied|i2c is busy|try again (?:later)?", re.I)

_FAILURES = re.compile(
    r"get invalid (?:device id|major cmd|parameters)"
    r"|total count of input parameters is wrong"
    r"|get unknown option"
    r"|(?:command|cmd) execute failed"
    r"|because no (?:ip|gateway) was preset"
    r"|the device is not exist"
    r"|get device health status failed"
    r"|hccn_tool is busy"
    r"|permission denied"
    r"|command is not supported on this product"
    r"|the device is occupied"
    r"|get lock failed"
    r"|i2c is busy"
    r"|optical module is not present"
    r"|control link unreachable"
    r"|execute failed:"
    r"|the vm does not support this command"
    r"|error while loading shared libraries"
    r"|hccn_tool: (?:command )?not found",
    re.I,
)
_HEALTH = (
    "Success",
    "Socket fail",
    "Socket failed",
    "Receive timeout",
    "Unreachable",
    "Time exceeded",
    "Fault",
    "Init",
    "Thread error",
    "Detect ip set",
    "Unknown",
)
_FOOTER = re.compile(r"cmd executed successfully!?\Z", re.I)
_STATISTICS = re.compile(
    r"([0-9]{1,9}) packets transmitted, ([0-9]{1,9}) received, ([0-9]{1,3}(?:\.[0-9]{1,6})?)% packets? loss"
)
_PING_TIME = re.compile(r"time\s*=\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|us)")
_PING_FAILURE = re.compile(r"time out|send fail|recv msg fail|not start to send|message too long|unreachable", re.I)

_Lines = List[Tuple[int, str]]


def _address(option: str, word: str, line_number: int, line: str) -> Optional[str]:
    """An IP address as text; None for an empty word or 0.0.0.0, with which the tool says "not set"."""
    word = word.strip()
    if not word or word == "0.0.0.0":  # noqa: S104 - a value that is read, not an address that is bound
        return None
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        raise ParseError(f"hccn_tool -{option}", f"expected an address, found {word!r}", line_number, line) from None


def _find(option: str, lines: _Lines, pattern: str) -> Tuple[re.Match[str], int, str]:
    """The first line with the pattern; ParseError when there is none."""
    for line_number, line in lines:
        match = re.search(pattern, line, re.I)
        if match:
            return match, line_number, line
    wanted = pattern.split("(", 1)[0].replace("\\s*", " ")
    where: Tuple[Optional[int], Optional[str]] = lines[0] if lines else (None, None)
    raise ParseError(f"hccn_tool -{option}", f"no line with {wanted.strip()!r}", where[0], where[1])


def _ip(option: str, lines: _Lines) -> Dict[str, Any]:
    # Old drivers print nothing at all where newer ones say that no address was preset.
    if not lines and option == "ip":
        return {"address": None, "netmask": None}
    # A paste may hold both on one line: "ipaddr:... / netmask:...".
    address, line_number, line = _find(option, lines, r"ip ?addr\s*:\s*([^\s/]*)")
    result: Dict[str, Any] = {"address": _address(option, address.group(1), line_number, line)}
    netmask, line_number, line = _find(option, lines, r"netmask\s*:\s*(\S*)")
    result["netmask"] = _address(option, netmask.group(1), line_number, line)
    if option == "vnic":
        state, _line_number, _line = _find(option, lines, r"vnic link status\s*:\s*(UP|DOWN)\b")
        result["link"] = state.group(1).upper()
    return result


def _link(option: str, lines: _Lines) -> Dict[str, Any]:
    match, _line_number, _line = _find(option, lines, r"link status\s*:\s*(UP|DOWN)\b")
    return {"link": match.group(1).upper()}


def _net_health(option: str, lines: _Lines) -> Dict[str, Any]:
    match, line_number, line = _find(option, lines, r"net health status\s*:\s*(.*)\Z")
    word = match.group(1).strip()
    known = {status.lower(): status for status in _HEALTH}
    if word.lower() not in known:
        raise ParseError("hccn_tool -net_health", f"unknown state {word!r}", line_number, line)
    status = known[word.lower()].replace("Socket failed", "Socket fail")
    return {"status": status, "ok": status == "Success"}


def _netdetect(option: str, lines: _Lines) -> Dict[str, Any]:
    match, line_number, line = _find(option, lines, r"netdetect addr(?:ess)?\s*:\s*(\S*)")
    return {"address": _address(option, match.group(1), line_number, line)}


def _gateway(option: str, lines: _Lines) -> Dict[str, Any]:
    match, line_number, line = _find(option, lines, r"default gateway\s*:\s*([^\s,]*)(?:,\s*Iface\s*:\s*(\S+))?")
    return {"gateway": _address(option, match.group(1), line_number, line), "interface": match.group(2)}


def _tls(option: str, lines: _Lines) -> Dict[str, Any]:
    switch, _line_number, _line = _find(option, lines, r"tls switch\[([01])\]")
    joined = " ".join(line for _line_number, line in lines)
    device = re.search(r"dev_id\s*:\s*([0-9]{1,6})", joined)
    preconfigured = re.search(r"tls preconfigured\[([01])\]", joined)
    alarm = re.search(r"threshold\[([0-9]{1,6})\]", joined)
    return {
        "device": int(device.group(1)) if device else None,
        "enabled": switch.group(1) == "1",
        "preconfigured": preconfigured.group(1) == "1" if preconfigured else None,
        "alarm_days": int(alarm.group(1)) if alarm else None,
    }


def _ping(option: str, lines: _Lines) -> Dict[str, Any]:
    """Packets and mean round-trip time. ``ok`` needs every sent packet back and no line that reports a failure."""
    statistics, line_number, line = _find(option, lines, _STATISTICS.pattern)
    sent, received, loss = int(statistics.group(1)), int(statistics.group(2)), float(statistics.group(3))
    if received > sent or abs(loss - (100.0 * (sent - received) / sent if sent else loss)) > 1:
        raise ParseError(f"hccn_tool -{option}", "packet figures contradict each other", line_number, line)
    target = None
    times = []
    failed = False
    for _line_number, text in lines:
        named = re.search(r"\bPING\s+(\S+)", text)
        target = named.group(1) if named and target is None else target
        failed = failed or bool(_PING_FAILURE.search(text))
        time = _PING_TIME.search(text)
        if time and re.match(r"recv seq", text):
            times.append(float(time.group(1)) / (1000 if time.group(2) == "us" else 1))
    return {
        "target": target,
        "sent": sent,
        "received": received,
        "loss_percent": loss,
        "ok": sent > 0 and received == sent and not failed,
        "rtt_ms": round(sum(times) / len(times), 6) if times else None,
    }


def _stat(_option: str, lines: _Lines) -> Dict[str, Any]:
    counters: Dict[str, Optional[int]] = {}
    for line_number, line in lines:
        if re.match(r"packet statistics\s*:?\Z", line, re.I) or _FOOTER.match(line):
            continue
        match = re.match(r"([A-Za-z][A-Za-z0-9_]*)\s*:\s*(\S+)\Z", line)
        if not match:
            raise ParseError("hccn_tool -stat", "expected name:count", line_number, line)
        counters[match.group(1)] = integer("hccn_tool -stat", match.group(2), line_number, line)
    if not counters:
        raise ParseError("hccn_tool -stat", "no counter found")
    return {"counters": counters}


def _link_stat(option: str, lines: _Lines) -> Dict[str, Any]:
    count, _line_number, _line = _find(option, lines, r"link up count\s*:\s*([0-9]{1,12})")
    records: List[List[str]] = []
    for _line_number, line in lines:
        match = re.match(r"(?:\[dev(?:id|ice) [0-9]+\]\s*)?(\S.*?)\s+LINK (UP|DOWN)\Z", line)
        if match:
            records.append([match.group(1), match.group(2)])
    return {"up_count": int(count.group(1)), "records": records}


def _optical(_option: str, lines: _Lines) -> Dict[str, Any]:
    """``{present, items: {name: {value, unit, text}}}``; the newer table has its columns as further keys of an item.

    Values of an absent module are stale, so ``present`` False comes with no items.
    """
    present: Optional[bool] = None
    items: Dict[str, Dict[str, Any]] = {}
    columns: List[str] = []
    for _line_number, line in lines:
        if re.match(r"=+\Z|optical info\s*:?\Z", line, re.I) or _FOOTER.match(line):
            continue
        words = re.split(r"\s{2,}", line)
        if words[0] == "Items":
            columns = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower() for word in words[1:]]
            continue
        if columns and len(words) == len(columns) + 1 and ":" not in words[0]:
            row: Dict[str, Any] = dict(zip(columns, words[1:]))
            row.update(_quantity(words[1]))
            items[words[0]] = row
            continue
        match = re.match(r"([^:]+?)\s*:\s*(.*)\Z", line)
        if not match:
            continue
        key, value = match.group(1), match.group(2).strip()
        if key.lower() == "present":
            present = value.lower() == "present"
        else:
            items[key] = _quantity(value)
    if present is None and not items:
        where: Tuple[Optional[int], Optional[str]] = lines[0] if lines else (None, None)
        raise ParseError("hccn_tool -optical", "no optical value found", where[0], where[1])
    if present is None:
        present = True
    return {"present": present, "items": items if present else {}}


def _quantity(text: str) -> Dict[str, Any]:
    match = re.match(r"(-?[0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([A-Za-z%]*)\Z", text)
    if not match:
        return {"value": None, "unit": None, "text": text}
    return {"value": float(match.group(1)), "unit": match.group(2) or None, "text": text}


def _fec(option: str, lines: _Lines) -> Dict[str, Any]:
    match, _line_number, _line = _find(option, lines, r"fec mode\s*:\s*(\S+)(?: FEC mode)?\Z")
    return {"mode": match.group(1).lower()}


def _lldp(_option: str, lines: _Lines) -> Dict[str, Any]:
    """Neighbour ports and switch names; both empty where no switch announces itself."""
    interfaces, systems = [], []
    for index, (_line_number, line) in enumerate(lines):
        name = re.match(r"Ifname\s*:\s*(\S+)\Z", line)
        if name:
            interfaces.append(name.group(1))
        if line.startswith("System Name TLV") and index + 1 < len(lines):
            systems.append(lines[index + 1][1])
    return {"interfaces": interfaces, "systems": systems}


def _mtu(option: str, lines: _Lines) -> Dict[str, Any]:
    match, line_number, line = _find(option, lines, r"mtu\s*:\s*(\S+)")
    return {"mtu": integer("hccn_tool -mtu", match.group(1), line_number, line)}


def _mac(option: str, lines: _Lines) -> Dict[str, Any]:
    match, _line_number, _line = _find(option, lines, r"mac addr\s*:\s*((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\Z")
    return {"mac": match.group(1).lower()}


def _speed(option: str, lines: _Lines) -> Dict[str, Any]:
    match, line_number, line = _find(option, lines, r"speed\s*:\s*(Unknown|[0-9]{1,9})")
    word = match.group(1)
    return {"mbps": None if word.lower() == "unknown" else number("hccn_tool -speed", word, line_number, line)}


_PARSERS: Dict[str, Callable[[str, _Lines], Dict[str, Any]]] = {
    "ip": _ip,
    "vnic": _ip,
    "link": _link,
    "net_health": _net_health,
    "netdetect": _netdetect,
    "gateway": _gateway,
    "tls": _tls,
    "ping": _ping,
    "hccs_ping": _ping,
    "stat": _stat,
    "link_stat": _link_stat,
    "optical": _optical,
    "fec": _fec,
    "lldp": _lldp,
    "mtu": _mtu,
    "mac": _mac,
    "speed": _speed,
}

#: The options that `parse` knows.
OPTIONS = tuple(sorted(_PARSERS))


def parse(option: str, text: str) -> Dict[str, Any]:
    """What ``-<option> -g`` printed, as plain data; the shapes are those of DESIGN.md, section 5.

    "No address preset" and "no gateway preset" are answers (None), not failures. A ping that lost packets ends with the
    tool's generic failure line after its figures: the figures count.
    """
    option = option.lstrip("-")
    if option not in _PARSERS:
        raise ParseError("hccn_tool", f"no parser for option {option!r}; known: {', '.join(OPTIONS)}")
    lines = clean_lines(text)
    for _line_number, line in lines:
        if not _FAILURES.search(line):
            continue
        if re.search(r"because no ip was preset", line, re.I) and option == "ip":
            return {"address": None, "netmask": None}
        if re.search(r"because no gateway was preset", line, re.I) and option == "gateway":
            return {"gateway": None, "interface": None}
        if option in ("ping", "hccs_ping") and any(_STATISTICS.search(other) for _number, other in lines):
            continue
        if option == "optical" and re.search(r"optical module is not present", line, re.I):
            return {"present": False, "items": {}}
        raise ToolError(_TOOL, line)
    return _PARSERS[option](option, lines)
