"""The host as it was before the role, and as remove leaves it."""

from __future__ import annotations

from tests.roles.helpers import changed, tree


def test_no_container_is_left(host) -> None:
    # The container engine is gone again, too; its data directory would still have them.
    assert host.run("ls /var/lib/docker/containers").stdout == ""


def test_no_generation_is_left(host) -> None:
    assert tree(host, "/etc/ascent/molecule") == {}


def test_removing_again_changes_nothing() -> None:
    assert set(changed("cleanup.yml").values()) == {0}
