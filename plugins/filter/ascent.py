"""Filters that turn plan values into what Ansible's modules take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ascent import generations
from ascent_controller import checking, provisioning

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


def ascent_published(container: Mapping[str, Any]) -> list[str]:
    """The ports that a container on a bridge network publishes, under their own numbers.

    >>> ascent_published({"publish": [8113]})
    ['8113:8113']
    """
    return [f"{port}:{port}" for port in container["publish"]]


def ascent_ulimits(container: Mapping[str, Any]) -> list[str]:
    """The plan's limits as ``NAME:SOFT`` or ``NAME:SOFT:HARD``.

    >>> ascent_ulimits({"ulimits": {"memlock": "-1"}})
    ['memlock:-1']
    """
    return [f"{name}:{limit}" for name, limit in container["ulimits"].items()]


def ascent_locked_image(reference: str, facts: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """The image by the digest that the cluster has locked for it: ``{"reference", "digest", "name"}``.

    ``facts`` has every host's ``ansible_facts``. Without a lock the digest is None and the name is the reference.
    """
    states = [(host.get("ascent_node") or {}).get("state") for host in facts]
    digest = generations.locked_digest(reference, states)
    name = provisioning.at_digest(reference, digest) if digest else reference
    return {"reference": reference, "digest": digest, "name": name}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "ascent_bench_due": checking.bench_due,
            "ascent_endpoint_host": checking.endpoint_host,
            "ascent_health_endpoints": checking.health_endpoints,
            "ascent_locked_image": ascent_locked_image,
            "ascent_mounts": ascent_mounts,
            "ascent_published": ascent_published,
            "ascent_ulimits": ascent_ulimits,
            "ascent_version_urls": checking.version_urls,
        }
