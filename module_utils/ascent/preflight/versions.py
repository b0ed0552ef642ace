"""Whether driver, firmware and the engine's release fit each other."""

from __future__ import annotations

__all__ = ["check"]

from typing import List, Optional, Tuple

from .. import versions as version_files
from ..errors import ParseError
from .common import Facts, Findings, error, has_npus, listed, part, warning


def _compare(left: str, right: str) -> Optional[int]:
    """`versions.compare`, None when one of the two is no version."""
    try:
        return version_files.compare(left, right)
    except ParseError:
        return None


def _wanted_drivers(engine: Facts, catalogue: Optional[Facts]) -> List[Tuple[str, str, str]]:
    """``(kind, driver version, source)`` that the engine's release asks for; kind is ``floor`` or ``recommended``."""
    row = ((catalogue or {}).get("releases") or {}).get(engine.get("version"))
    if not catalogue or not row or catalogue.get("engine") != engine.get("name"):
        return []
    oldest = min(row["cann"], key=version_files.sort_key)
    wanted = []
    for kind in ("floor", "recommended"):
        # A newer CANN asks for no less than an older one, so entries up to this release's CANN all hold.
        known = [one for one in catalogue["drivers"] if one.get(kind) and (_compare(one["cann"], oldest) or 0) <= 0]
        if known:
            newest = max(known, key=lambda one: version_files.sort_key(one[kind]))
            wanted.append((kind, str(newest[kind]), f"{newest['source']} (CANN {newest['cann']})"))
    return wanted


def check(plan: Facts, host: str, node: Facts, catalogue: Optional[Facts]) -> Findings:
    """The driver against the engine's release, the firmware against the driver, and an installation left half done."""
    npu = part(node, "npu")
    driver, firmware = npu.get("driver"), npu.get("firmware")
    if not plan["hosts"][host]["devices"] or not has_npus(plan["hosts"][host]):
        return []
    found = []
    if driver:
        for kind, wanted, source in _wanted_drivers(plan["engine"], catalogue):
            if _compare(driver["version"], wanted) == -1:
                say = error if kind == "floor" else warning
                found.append(
                    say(
                        "A08",
                        host,
                        f"driver {driver['version']} of {host} is older than {wanted},"
                        f" {'the oldest that works' if kind == 'floor' else 'which is recommended'}",
                        f"engine {plan['engine']['version']}; source: {source}",
                        "The image's CANN is newer than the host's driver.",
                        "Upgrade driver and firmware on all nodes, or use an image with an older CANN.",
                    )
                )
                break
    if driver and firmware and version_files.firmware_fits(driver, firmware) is False:
        bounds = driver.get("firmware_range") or ["?", "?"]
        found.append(
            error(
                "A07",
                host,
                f"firmware {firmware['version']} and driver {driver['version']} of {host} do not fit",
                f"driver takes firmware {bounds[0]} to {bounds[1]}; firmware takes drivers"
                f" {listed(firmware.get('driver_prefixes') or ['any'])}",
                "Only one of the two was upgraded.",
                "Install firmware and driver of one release, in the vendor's order, and reboot.",
            )
        )
    status = part(npu, "install").get("status")
    if status and status != "complete":
        found.append(
            error(
                "A20",
                host,
                f"the driver's installation on {host} was not finished",
                f"Driver_Install_Status={status}",
                "The installer was interrupted.",
                "Install the driver again.",
            )
        )
    return found
