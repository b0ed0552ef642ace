"""The host as it was before the role, and as remove leaves it."""

from __future__ import annotations

import json

from tests.roles.helpers import changed


def test_no_engine_is_there(host) -> None:
    assert not host.package("docker.io").is_installed
    assert not host.file("/usr/bin/docker").exists


def test_daemon_json_is_the_sites_own(host) -> None:
    file = host.file("/etc/docker/daemon.json")
    if host.check_output("hostname") == "role-01":
        assert not file.exists
    else:
        assert json.loads(file.content_string) == {
            "insecure-registries": ["198.51.100.7:5000"],
            "max-concurrent-downloads": 6,
        }


def test_removing_again_changes_nothing() -> None:
    assert set(changed("cleanup.yml").values()) == {0}
