"""Filters of the provisioning roles; ascent_controller.provisioning holds the functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascent_controller import provisioning

DOCUMENTATION = r"""
name: ascent_at_digest
short_description: Decisions of the provisioning roles
"""


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "ascent_at_digest": provisioning.at_digest,
            "ascent_digest_of": provisioning.digest_of,
            "ascent_driver_findings": provisioning.driver_findings,
            "ascent_image_findings": provisioning.image_findings,
            "ascent_resolved_digest": provisioning.resolved_digest,
            "ascent_weights_findings": provisioning.weights_findings,
        }
