"""Filters of the provisioning roles; ascent_controller.provisioning holds the functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascent_controller import provisioning

DOCUMENTATION = r"""
name: ascent_driver_findings
short_description: Decisions of the provisioning roles
"""


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "ascent_driver_findings": provisioning.driver_findings,
            "ascent_image_copies": provisioning.image_copies,
            "ascent_image_digests": provisioning.image_digests,
            "ascent_image_locks": provisioning.image_locks,
            "ascent_image_names": provisioning.image_names,
            "ascent_image_pulls": provisioning.image_pulls,
            "ascent_image_resolvers": provisioning.image_resolvers,
            "ascent_images_due": provisioning.due,
            "ascent_images_missing": provisioning.images_missing,
            "ascent_package_finding": provisioning.package_finding,
            "ascent_node_addresses": provisioning.node_addresses,
        }
