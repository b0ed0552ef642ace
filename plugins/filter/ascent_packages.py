"""Filters of the roles npu_driver, cann, gpu_driver and reboot; ascent_controller.npu_packages holds the functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ascent_controller import npu_packages

DOCUMENTATION = r"""
name: ascent_package_decision
short_description: Decisions about packages and reboots
"""


def ascent_reboot_batches(
    plan: Mapping[str, Any],
    facts: Iterable[Mapping[str, Any]],
    hosts: Iterable[str],
    size: int | str,
    drain: bool = False,
) -> list[list[str]]:
    """The play's ``hosts`` that ask for a reboot, in batches; ``facts`` are their ``ansible_facts``, in that order."""
    asking = npu_packages.reboots(plan, dict(zip(hosts, facts, strict=True)), drain=drain)
    return npu_packages.reboot_batches(plan, asking, size) if asking else []


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "ascent_gpu_findings": npu_packages.gpu_findings,
            "ascent_package_chip": npu_packages.chip,
            "ascent_package_decision": npu_packages.decide,
            "ascent_package_mirror": npu_packages.url,
            "ascent_cann_verdict": npu_packages.cann_verdict,
            "ascent_driver_verdict": npu_packages.verdict,
            "ascent_prerequisite_findings": npu_packages.prerequisite_findings,
            "ascent_reboot_batches": ascent_reboot_batches,
        }
