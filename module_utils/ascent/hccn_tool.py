"""Readers of what ``hccn_tool -i N -<object> -g`` prints.

The exit code of the tool is a truncated 16-bit number and says nothing: the text decides. `parse` returns plain data,
raises `ToolError` when the tool reported a failure, or `ParseError` when the text has no known shape.
"""

from __future__ import annotations

__all__ = ["BUSY", "OPTIONS", "UNSUPPORTED", "parse"]

import ipaddress
import re
from typing import Any, Callable, Dict, List, Optional, Tuple

from .errors import ParseError, ToolError
from .text import clean_lines, integer

_TOOL = "hccn_tool"

#: Text of a refusal that passes by itself: another call holds the tool's lock.
BUSY = re.compile(r"hccn_tool is busy|get lock failed|device is occupied|i2c is busy|try again (?:later)?", re.I)

#: Text of a refusal that holds for every device of the product or release.
UNSUPPORTED = re.compile(r"not supported on this product|get invalid major cmd|vm does not support this command", re.I)

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
_PROMPT = re.compile(r"(?:\[[^\]]*\]\s?|\S*)[#$]\s*(?:\S*hccn_tool\b.*)?\Z")
_NOW = re.compile(r"current time\s*:\s*(\S.*)\Z")
_FOOTER = re.compile(r"cmd executed successfully!?\Z", re.I)
_STATISTICS = re.compile(
    r"([0-9]{1,9}) packets transmitted, ([0-9]{1,9}) received, ([0-9]{1,3}(?:\.[0-9]{1,6})?)% packets? loss"
)
_PING_TIME = re.compile(r"time\s*=\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|us)")
_PING_FAILURE = re.compile(r"time out|send fail|recv msg fail|not start to send|message too long|unreachable", re.I)

_Lines = List[Tuple[int, str]]


class _CutOff(str):
    """A last line without its end: what stands there may be the beginning of something longer."""


def _lines(text: str) -> _Lines:
    """`clean_lines` without shell prompts; the last one is a `_CutOff` where the text does not end with a line end."""
    lines = [(line_number, line) for line_number, line in clean_lines(text) if not _PROMPT.match(line)]
    if lines and not text.endswith("\n"):
        lines[-1] = (lines[-1][0], _CutOff(lines[-1][1]))
    return lines


def _address(option: str, word: str, line_number: int, line: str) -> Optional[str]:
    """An IP address as text; None for an empty word or 0.0.0.0, with which the tool says "not set"."""
    word = word.strip()
    if not word or word == "0.0.0.0":  # noqa: S104 - a value that is read, not an address that is bound
        return None
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        raise ParseError(f"hccn_tool -{option}", f"expected an address, found {word!r}", line_number, line) from None


def _netmask(option: str, word: str, line_number: int, line: str) -> Optional[str]:
    """A netmask as text, None where none is set; ParseError for an address that is no netmask."""
    mask = _address(option, word, line_number, line)
    if mask is None or ":" in mask:
        return mask
    try:
        ipaddress.IPv4Network(f"0.0.0.0/{mask}")
        inverse = ~int(ipaddress.IPv4Address(mask)) & 0xFFFFFFFF
        if inverse & (inverse + 1):
            raise ValueError
    except ValueError:
        raise ParseError(f"hccn_tool -{option}", f"{mask} is no netmask", line_number, line) from None
    return mask


def _find(option: str, lines: _Lines, pattern: str, *, open_ended: bool = False) -> Tuple[re.Match[str], int, str]:
    """The line with the pattern; ParseError when there is none, or when two of them say different things.

    ``open_ended`` values, such as addresses, could go on: they are refused where the text breaks off right behind them.
    """
    found = [
        (match, line_number, line) for line_number, line in lines for match in [re.search(pattern, line, re.I)] if match
    ]
    if not found:
        wanted = re.sub(r"\(\?[:<!=][^()]*\)", "", pattern).split("(", 1)[0].replace("\\s*", " ").replace("\\b", "")
        where: Tuple[Optional[int], Optional[str]] = lines[0] if lines else (None, None)
        raise ParseError(f"hccn_tool -{option}", f"no line with {wanted.strip(' ?')!r}", where[0], where[1])
    first, line_number, line = found[0]
    for other, other_number, other_line in found[1:]:
        if other.groups() != first.groups():
            raise ParseError(f"hccn_tool -{option}", f"contradicts line {line_number}", other_number, other_line)
    if open_ended and isinstance(line, _CutOff) and first.end() == len(line):
        raise ParseError(f"hccn_tool -{option}", "the text breaks off here", line_number, line)
    return first, line_number, line


def _ip(option: str, lines: _Lines) -> Dict[str, Any]:
    # Old drivers print nothing at all where newer ones say that no address was preset.
    if not lines and option == "ip":
        return {"address": None, "netmask": None}
    # A paste may hold both on one line: "ipaddr:... / netmask:...".
    address, line_number, line = _find(option, lines, r"ip ?addr\s*:\s*([^\s/]*)", open_ended=True)
    result: Dict[str, Any] = {"address": _address(option, address.group(1), line_number, line)}
    netmask, line_number, line = _find(option, lines, r"netmask\s*:\s*(\S*)", open_ended=True)
    result["netmask"] = _netmask(option, netmask.group(1), line_number, line)
    if option == "vnic":
        state, _line_number, _line = _find(option, lines, r"vnic link status\s*:\s*(UP|DOWN)\s*\Z")
        result["link"] = state.group(1).upper()
    return result


def _link(option: str, lines: _Lines) -> Dict[str, Any]:
    match, _line_number, _line = _find(option, lines, r"(?<!vnic )\blink status\s*:\s*(UP|DOWN)\s*\Z")
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
    match, line_number, line = _find(option, lines, r"netdetect addr(?:ess)?\s*:\s*(\S*)", open_ended=True)
    return {"address": _address(option, match.group(1), line_number, line)}


def _gateway(option: str, lines: _Lines) -> Dict[str, Any]:
    pattern = r"default gateway\s*:\s*([^\s,]*)(?:\s*,\s*Iface\s*:\s*(\S+))?"
    match, line_number, line = _find(option, lines, pattern, open_ended=True)
    if line[match.end() :].strip():
        raise ParseError("hccn_tool -gateway", "something unknown follows the gateway", line_number, line)
    return {"gateway": _address(option, match.group(1), line_number, line), "interface": match.group(2)}


def _tls(option: str, lines: _Lines) -> Dict[str, Any]:
    switch, _line_number, _line = _find(option, lines, r"tls switch\s*\[([01])\]")
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
    """Packets and round-trip times. ``ok`` needs every sent packet back and no line that reports a failure."""
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
    if len(times) > received:
        reason = f"{len(times)} replies are listed, {received} counted"
        raise ParseError(f"hccn_tool -{option}", reason, line_number, line)
    return {
        "target": target,
        "sent": sent,
        "received": received,
        "loss_percent": loss,
        "ok": sent > 0 and received == sent and not failed,
        "rtt_ms": round(sum(times) / len(times), 6) if times else None,
        "rtt_min_ms": round(min(times), 6) if times else None,
        "rtt_max_ms": round(max(times), 6) if times else None,
    }


def _stat(_option: str, lines: _Lines) -> Dict[str, Any]:
    counters: Dict[str, Optional[int]] = {}
    for line_number, line in lines:
        if re.match(r"packet statistics\s*:?\Z", line, re.I) or _FOOTER.match(line):
            continue
        match = re.match(r"([A-Za-z][A-Za-z0-9_]*)\s*:\s*(\S+)\Z", line)
        if not match or isinstance(line, _CutOff):
            raise ParseError("hccn_tool -stat", "expected name:count", line_number, line)
        count = integer("hccn_tool -stat", match.group(2), line_number, line)
        if counters.get(match.group(1), count) != count:
            raise ParseError("hccn_tool -stat", f"{match.group(1)} has two values", line_number, line)
        counters[match.group(1)] = count
    if not counters:
        raise ParseError("hccn_tool -stat", "no counter found")
    return {"counters": counters}


def _link_stat(option: str, lines: _Lines) -> Dict[str, Any]:
    count, _line_number, _line = _find(option, lines, r"link up count\s*:\s*([0-9]{1,12})\s*\Z", open_ended=True)
    records: List[List[str]] = []
    for line_number, line in lines:
        match = re.match(r"(?:\[dev(?:id|ice) [0-9]+\]\s*)?(\S.*?)\s+LINK (UP|DOWN)\Z", line)
        if match:
            records.append([match.group(1), match.group(2)])
        elif re.search(r"\bLINK\b", line):
            raise ParseError("hccn_tool -link_stat", "expected LINK UP or LINK DOWN", line_number, line)
    now = next((found.group(1) for _number, line in lines for found in [_NOW.search(line)] if found), None)
    return {"up_count": int(count.group(1)), "now": now, "records": records}


def _optical(_option: str, lines: _Lines) -> Dict[str, Any]:
    """``{present, items: {name: {value, unit, text}}}``; the newer table has its columns as further keys of an item.

    Values of an absent module are stale, so ``present`` False comes with no items.
    """
    source = "hccn_tool -optical"
    present: Optional[bool] = None
    items: Dict[str, Dict[str, Any]] = {}
    columns: List[str] = []
    for line_number, line in lines:
        if re.match(r"=+\Z|-+\Z|optical info\s*:?\Z", line, re.I) or _FOOTER.match(line):
            continue
        words = re.split(r"\s{2,}", line)
        if words[0] == "Items":
            columns = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower() for word in words[1:]]
            if "value" not in columns or len(set(columns)) != len(columns):
                raise ParseError(source, "table without a column Value", line_number, line)
            continue
        if isinstance(line, _CutOff):
            raise ParseError(source, "the text breaks off here", line_number, line)
        name, item = _optical_item(source, line_number, line, words, columns)
        if name.lower() == "present":
            if item["text"].lower() not in ("present", "not present"):
                raise ParseError(source, "expected present or not present", line_number, line)
            present = item["text"].lower() == "present"
        elif name in items:
            raise ParseError(source, f"{name} has two lines", line_number, line)
        else:
            items[name] = item
    if present is None and not items:
        where: Tuple[Optional[int], Optional[str]] = lines[0] if lines else (None, None)
        raise ParseError(source, "no optical value found", where[0], where[1])
    if present is None:
        present = True
    return {"present": present, "items": items if present else {}}


def _optical_item(
    source: str, line_number: int, line: str, words: List[str], columns: List[str]
) -> Tuple[str, Dict[str, Any]]:
    """Name and figures of one line: a row of the table below its header, ``key : value`` without one."""
    if columns and ":" not in words[0]:
        if len(words) != len(columns) + 1:
            raise ParseError(source, f"expected {len(columns) + 1} columns", line_number, line)
        row: Dict[str, Any] = dict(zip(columns, words[1:]))
        row.update(_quantity(row["value"]))
        return words[0], row
    match = re.match(r"([^:]+?)\s*:\s*(.*)\Z", line)
    if not match:
        raise ParseError(source, "expected name : value", line_number, line)
    return match.group(1), _quantity(match.group(2).strip())


def _quantity(text: str) -> Dict[str, Any]:
    match = re.match(r"(-?[0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([A-Za-z%]*)\Z", text)
    if not match:
        return {"value": None, "unit": None, "text": text}
    return {"value": float(match.group(1)), "unit": match.group(2) or None, "text": text}


def _fec(option: str, lines: _Lines) -> Dict[str, Any]:
    pattern = r"fec mode\s*:\s*(rs|no|auto|base|base-r|baser|llrs|fc|none)(?: FEC(?: mode)?)?\s*\Z"
    match, _line_number, _line = _find(option, lines, pattern)
    return {"mode": match.group(1).lower()}


def _lldp(_option: str, lines: _Lines) -> Dict[str, Any]:
    """Neighbour ports and switch names; both empty where no switch announces itself.

    A port that the switch names by something else than its interface is not among ``interfaces``.
    """
    interfaces, systems = [], []
    for index, (line_number, line) in enumerate(lines):
        name = re.match(r"Ifname\s*:\s*(\S.*)\Z", line)
        # A TLV for the time to live has to follow, so a port's name is never the last thing said.
        if name and index + 1 == len(lines):
            raise ParseError("hccn_tool -lldp", "the text breaks off here", line_number, line)
        if name:
            interfaces.append(name.group(1))
        if re.match(r"System Name TLV\b", line):
            if index + 1 == len(lines) or isinstance(lines[index + 1][1], _CutOff):
                raise ParseError("hccn_tool -lldp", "the text breaks off here", line_number, line)
            systems.append(lines[index + 1][1])
    if lines and not any(re.search(r"\bTLV\b", line) for _line_number, line in lines):
        raise ParseError("hccn_tool -lldp", "no TLV found", lines[0][0], lines[0][1])
    return {"interfaces": interfaces, "systems": systems}


def _mtu(option: str, lines: _Lines) -> Dict[str, Any]:
    match, line_number, line = _find(option, lines, r"(?<![_a-z])mtu\s*:\s*(\S+)\s*\Z", open_ended=True)
    size = integer("hccn_tool -mtu", match.group(1), line_number, line)
    if size is not None and not 68 <= size <= 65535:
        raise ParseError("hccn_tool -mtu", f"{size} is no MTU", line_number, line)
    return {"mtu": size}


def _mac(option: str, lines: _Lines) -> Dict[str, Any]:
    match, _line_number, _line = _find(option, lines, r"mac addr\s*:\s*((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\Z")
    return {"mac": match.group(1).lower()}


def _speed(option: str, lines: _Lines) -> Dict[str, Any]:
    pattern = r"(?<![_a-z])speed\s*:\s*(?:(Unknown)!?|([0-9]{1,9})\s*([MG])b/s)\s*\Z"
    match, _line_number, _line = _find(option, lines, pattern)
    if match.group(1):
        return {"mbps": None}
    return {"mbps": int(match.group(2)) * (1000 if match.group(3).upper() == "G" else 1)}


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
    lines = _lines(text)
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
