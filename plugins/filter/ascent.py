"""Filters that turn plan values into what Ansible's modules take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: ascent_mounts
short_description: Bind mounts of a plan process in the form community.docker takes
"""


def ascent_mounts(mounts: Sequence[Mapping[str, Any]], *extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plan's mounts, then ``extra`` ones, as ``community.docker.docker_container`` wants them.

    >>> ascent_mounts([{"source": "/root/.cache", "target": "/root/.cache", "read_only": False}])
    [{'type': 'bind', 'source': '/root/.cache', 'target': '/root/.cache', 'read_only': False}]
    """
    return [
        {"type": "bind", "source": mount["source"], "target": mount["target"], "read_only": bool(mount["read_only"])}
        for mount in (*mounts, *extra)
    ]


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"ascent_mounts": ascent_mounts}
