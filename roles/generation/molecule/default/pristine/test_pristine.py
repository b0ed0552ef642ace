"""The host as it was before the role, and as remove leaves it."""

from __future__ import annotations

from tests.roles.helpers import changed


def test_nothing_of_the_cluster_is_there(host) -> None:
    assert not host.file("/etc/ascent/molecule").exists


def test_removing_again_changes_nothing() -> None:
    assert set(changed("cleanup.yml").values()) == {0}
