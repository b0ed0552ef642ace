"""Version files of driver, firmware and CANN, and the one way in which versions are compared.

>>> sort_key("25.0.rc1.1") < sort_key("25.0") < sort_key("25.0.1")
True
"""

from __future__ import annotations

__all__ = [
    "compare",
    "firmware_fits",
    "parse_cann",
    "parse_driver",
    "parse_firmware",
    "parse_install_info",
    "sort_key",
]

import re
from typing import Any, Dict, List, Optional, Tuple

from .errors import ParseError
from .text import clean_lines

# Words that a version may carry, placed before (negative) or after (positive) the plain release.
_PHASES = {
    "dev": -5, "t": -4, "a": -4, "alpha": -4, "b": -3, "beta": -3, "c": -2, "rc": -2,
    "p": 1, "post": 1, "sp": 1, "spc": 1, "spec": 1, "h": 1, "hp": 1,
}  # fmt: skip
_RELEASE_MARK: Tuple[int, ...] = (0,)


def sort_key(version: str) -> Tuple[Tuple[int, ...], Tuple[Tuple[int, ...], ...]]:
    """A key that sorts versions: numbers as numbers, trailing zeros aside, release candidates before their release.

    Takes the spellings of this stack: ``v0.21.0rc1``, ``25.0.rc1.1``, ``8.3.RC2``, ``9.2.0-beta.2``, ``8.0.T6``,
    ``0.3.8.post1``. Local parts (``+git1``) do not count. ParseError for a text that is no version.
    """
    plain = version.strip().lower().split("+", 1)[0]
    plain = plain[1:] if re.match(r"v[0-9]", plain) else plain
    if not re.match(r"[0-9][0-9a-z]*(?:[._-][0-9a-z]+)*\.?\Z", plain) or re.search(r"[0-9]{19}", plain):
        raise ParseError("version", f"{version!r} is not a version")
    release: List[int] = []
    phases: List[List[int]] = []
    for word in re.findall(r"[0-9]+|[a-z]+", plain):
        if word.isdigit():
            (phases[-1] if phases else release).append(int(word))
        elif word in _PHASES:
            phases.append([_PHASES[word]])
        else:
            raise ParseError("version", f"{version!r} has an unknown part {word!r}")
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    return tuple(release), (*(tuple(phase) for phase in phases), _RELEASE_MARK)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1 as ``left`` is older than, equal to, or newer than ``right``."""
    a, b = sort_key(left), sort_key(right)
    return (a > b) - (a < b)


def _pairs(source: str, text: str) -> Dict[str, str]:
    """``key=value`` lines; the last of equal keys wins. ParseError for another line and for a text without any."""
    pairs: Dict[str, str] = {}
    for line_number, line in clean_lines(text):
        if line.startswith("#"):
            continue
        key, sign, value = line.partition("=")
        if not sign or not key.strip():
            raise ParseError(source, "expected key=value", line_number, line)
        pairs[key.strip()] = value.strip().strip('"')
    if not pairs:
        raise ParseError(source, "the file is empty")
    return pairs


def _version(source: str, pairs: Dict[str, str], key: str) -> str:
    value = pairs.get(key, "")
    if not value:
        raise ParseError(source, f"no {key} line")
    sort_key(value)
    return value


def _brackets(text: str) -> List[str]:
    """``[a],[b]`` or ``[a,b]`` as a list of texts."""
    return [word.strip() for group in re.findall(r"\[([^\[\]]*)\]", text) for word in group.split(",") if word.strip()]


def parse_driver(text: str) -> Dict[str, Any]:
    """``driver/version.info``: ``{version, component_version, hal_version, inner_version, firmware_range,
    compatible}``.

    ``version`` is the package version where the file has one, else `Version`, which may be a component's number.
    ``firmware_range`` is the inclusive pair of firmware versions that the driver takes, None when the file has none.
    """
    source = "driver version.info"
    pairs = _pairs(source, text)
    component = _version(source, pairs, "Version")
    if pairs.get("package_version"):
        _version(source, pairs, "package_version")
    bounds = _brackets(pairs.get("compatible_version_fw", ""))
    if bounds and len(bounds) != 2:
        raise ParseError(source, f"compatible_version_fw has {len(bounds)} bounds, expected 2")
    for bound in bounds:
        sort_key(bound)
    return {
        "version": pairs.get("package_version") or component,
        "component_version": component,
        "hal_version": pairs.get("ascendhal_version"),
        "inner_version": pairs.get("Innerversion"),
        "firmware_range": bounds or None,
        "compatible": _brackets(pairs.get("compatible_version", "")),
    }


def parse_firmware(text: str) -> Dict[str, Any]:
    """``firmware/version.info``: ``{version, package_version, driver_prefixes}``; prefixes without their final dot."""
    source = "firmware version.info"
    pairs = _pairs(source, text)
    prefixes = [prefix.rstrip(".") for prefix in _brackets(pairs.get("compatible_version_drv", ""))]
    return {
        "version": _version(source, pairs, "Version"),
        "package_version": pairs.get("package_version") or None,
        "driver_prefixes": list(dict.fromkeys(prefixes)),
    }


def firmware_fits(driver: Dict[str, Any], firmware: Dict[str, Any]) -> Optional[bool]:
    """Whether the two say that they work together; None when neither file states a range.

    The firmware has to lie in the driver's range, and the driver has to begin with one of the firmware's prefixes.
    """
    verdicts = []
    if driver.get("firmware_range"):
        low, high = driver["firmware_range"]
        verdicts.append(sort_key(low) <= sort_key(firmware["version"]) <= sort_key(high))
    if firmware.get("driver_prefixes"):
        version = str(driver["version"]).lower() + "."
        verdicts.append(any(version.startswith(prefix.lower() + ".") for prefix in firmware["driver_prefixes"]))
    return all(verdicts) if verdicts else None


def parse_install_info(text: str) -> Dict[str, Any]:
    """``ascend_install.info``: ``{user, group, install_type, path, status, firmware_type, firmware_path, fields}``.

    ``path`` is where the driver lies, None when the line is missing (sourcing the CANN environment then aborts).
    ``status`` is ``complete`` after a finished installation, None on older drivers, which do not write it.
    """
    pairs = _pairs("ascend_install.info", text)
    return {
        "user": pairs.get("UserName"),
        "group": pairs.get("UserGroup"),
        "install_type": pairs.get("Driver_Install_Type"),
        "path": pairs.get("Driver_Install_Path_Param") or None,
        "status": pairs.get("Driver_Install_Status"),
        "firmware_type": pairs.get("Firmware_Install_Type"),
        "firmware_path": pairs.get("Firmware_Install_Path_Param") or None,
        "fields": pairs,
    }


def parse_cann(text: str) -> Dict[str, Any]:
    """``ascend_toolkit_install.info``: ``{version, arch, os, path, package_name, inner_version}``."""
    source = "ascend_toolkit_install.info"
    pairs = _pairs(source, text)
    return {
        "version": _version(source, pairs, "version"),
        "arch": pairs.get("arch"),
        "os": pairs.get("os"),
        "path": pairs.get("path"),
        "package_name": pairs.get("package_name"),
        "inner_version": pairs.get("innerversion"),
    }
