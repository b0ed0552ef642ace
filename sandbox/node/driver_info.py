"""The files that say what driver and firmware are on a node's disk: `version.info` and `/etc/ascend_install.info`.

Written by the sandbox and by its `.run` installers, read by the first program of a node. Standard library only,
Python 3.9. A package is the `$defs/package` of state.schema.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

INSTALL_INFO = "/etc/ascend_install.info"
DEFAULT_PATH = "/usr/local/Ascend"
# Parts of the driver whose versions nobody reads, but which the real file has.
_PARTS = (
    "aicpu_version=1.0\ntdt_version=1.0\nlog_version=1.0\nprof_version=2.0\ndvppkernels_version=1.1\ntsfw_version=1.0\n"
)


def values(text: str) -> dict[str, str]:
    """The `key=value` lines of a text; the last of equal keys wins."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def driver_text(driver: Mapping[str, Any]) -> str:
    """`driver/version.info` of a driver package."""
    return (
        f"Version={driver['version']}\n"
        f"ascendhal_version={driver['ascendhal_version']}\n"
        f"{_PARTS}Innerversion={driver['innerversion']}\n"
        f"compatible_version={','.join(f'[{each}]' for each in driver['compatible_version'])}\n"
        f"compatible_version_fw=[{','.join(driver['compatible_firmware'])}]\n"
        f"package_version={driver['version']}\n"
    )


def driver_package(text: str) -> dict[str, Any]:
    """The driver package that a `driver/version.info` tells of. Raises ValueError where it names no version."""
    found = values(text)
    version = found.get("package_version") or found.get("Version")
    if not version:
        raise ValueError("driver/version.info names no Version")
    package: dict[str, Any] = {"version": version}
    for key, name in (("innerversion", "Innerversion"), ("ascendhal_version", "ascendhal_version")):
        if found.get(name):
            package[key] = found[name]
    if "compatible_version" in found:
        package["compatible_version"] = re.findall(r"\[([^\]]+)\]", found["compatible_version"])
    bounds = [bound.strip() for bound in found.get("compatible_version_fw", "").strip("[]").split(",")]
    if len(bounds) == 2:
        package["compatible_firmware"] = bounds
    return package


def firmware_text(firmware: Mapping[str, Any]) -> str:
    """`firmware/version.info` of a firmware package."""
    prefixes = ",".join(f"[{each},{each}.]" for each in firmware["compatible_drivers"])
    return (
        f"Version={firmware['version']}\nfirmware_version=1.0\npackage_version={firmware['version']}\n"
        f"compatible_version_drv={prefixes}\n"
    )


def firmware_package(text: str) -> dict[str, Any]:
    """The firmware package that a `firmware/version.info` tells of. Raises ValueError where it names no version."""
    found = values(text)
    if not found.get("Version"):
        raise ValueError("firmware/version.info names no Version")
    package: dict[str, Any] = {"version": found["Version"]}
    if "compatible_version_drv" in found:
        package["compatible_drivers"] = re.findall(r"\[([^,\]]+),", found["compatible_version_drv"])
    return package


def install_text(changes: Mapping[str, str], before: str = "") -> str:
    """`/etc/ascend_install.info` with some keys set; those that are there keep their places, an empty value removes."""
    found = {**values(before), **changes}
    return "".join(f"{key}={value}\n" for key, value in found.items() if value)
