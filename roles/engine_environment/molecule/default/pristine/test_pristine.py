"""The host as it was before the role, and as remove leaves it."""

from __future__ import annotations

from tests.roles.helpers import changed, tree


def test_no_environment_is_left(host) -> None:
    assert tree(host, "/opt/ascent/environments") == {}


def test_removing_again_changes_nothing() -> None:
    assert set(changed("cleanup.yml").values()) == {0}
