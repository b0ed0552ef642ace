"""Reading of the version tables of ``catalog/versions``: rows, families of hardware, and names of packages."""

from __future__ import annotations

__all__ = ["cann_of", "compare", "family_name", "family_of", "hdk_for", "package", "row_of", "sources"]

from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from .. import versions
from ..errors import ParseError
from .common import Facts

#: The vendor spells the machine with a dash in host packages, and as ``uname -m`` does in CANN's.
_MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


def compare(left: Any, right: Any) -> Optional[int]:
    """`versions.compare`, None when one of the two is no version."""
    try:
        return versions.compare(str(left), str(right))
    except ParseError:
        return None


def family_name(table: Optional[Facts], hardware: str) -> Optional[str]:
    """The family of a hardware profile; None where the table knows none."""
    families = (table or {}).get("families") or {}
    return next((str(name) for name, one in families.items() if hardware in one["hardware"]), None)


def family_of(table: Optional[Facts], hardware: str) -> Optional[Dict[str, Any]]:
    """What the table says of a hardware profile's family."""
    name = family_name(table, hardware)
    return None if table is None or name is None else dict(table["families"][name])


def row_of(table: Optional[Facts], engine: Facts) -> Optional[Dict[str, Any]]:
    """The row of the plan's engine; None where table or release are unknown."""
    if table is None or table.get("engine") != engine.get("name"):
        return None
    # Packages have the bare number, tags and the table a v before it.
    version = str(engine.get("version") or "")
    row = table["releases"].get(version) or table["releases"].get(f"v{version}")
    return None if row is None else dict(row)


def cann_of(row: Mapping[str, Any], family: Optional[str]) -> List[str]:
    """CANN releases that an engine's release was published with for a family."""
    return [str(one) for one in (row.get("cann_by_family") or {}).get(family, row["cann"])]


def hdk_for(table: Facts, family: Optional[str], cann: str) -> Tuple[Optional[str], Optional[str]]:
    """Driver and firmware to install for a CANN release: the newest that the vendor lists, final releases first.

    The firmware is None where no published pair says which one belongs to that driver.
    """
    pairs = {one["driver"]: one["firmware"] for one in table["pairs"] if family in one["families"]}
    names = [
        one
        for entry in table["drivers"]
        if (compare(entry["cann"], cann) or 0) <= 0
        for one in entry["listed"]
        # A page that says 25.5 means the line, and no package is called that.
        if one.count(".") > 1
    ]
    if not names:
        return None, None
    best = max(names, key=lambda one: ("rc" not in one.lower(), one in pairs, versions.sort_key(one)))
    return best, pairs.get(best)


def package(table: Facts, family: Optional[str], component: str, version: Optional[str], machine: str) -> Optional[str]:
    """The vendor's file name of a package (driver, firmware, toolkit, operators, nnal); None where it is not known.

    >>> table = {"packages": {"nnal": "Ascend-cann-nnal_{version}_linux-{machine}.run"}, "families": {}}
    >>> package(table, None, "nnal", "9.0.0", "x86_64")
    'Ascend-cann-nnal_9.0.0_linux-x86_64.run'
    """
    own = (table["families"].get(family) or {}).get("packages") or {}
    pattern = own.get(component) if component in own else table["packages"].get(component)
    if component == "operators" and pattern:
        since = max((one for one in pattern if (compare(one, version) or 0) <= 0), key=versions.sort_key, default=None)
        pattern = pattern.get(since)
    if not pattern or not version:
        return None
    machine = _MACHINES.get(machine, machine)
    spelled = machine.replace("_", "-") if component in ("driver", "firmware") else machine
    return str(pattern).format(version=version, machine=spelled)


def sources(table: Facts, keys: Iterable[str]) -> str:
    """Sources in words."""
    return "; ".join(str(table["sources"].get(key, key)) for key in keys)
