"""The engine runs with our settings and the site's."""

from __future__ import annotations

import json

from tests.roles.helpers import changed


def test_the_service_runs_and_is_enabled(host) -> None:
    service = host.service("docker")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u docker --no-pager -n 50")


def test_the_running_engine_took_the_settings(host) -> None:
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert info["LiveRestoreEnabled"] is True
    assert info["LoggingDriver"] == "json-file"
    assert info["RegistryConfig"]["IndexConfigs"]["198.19.0.2:5000"]["Secure"] is False


def test_the_sites_own_settings_are_kept(host) -> None:
    settings = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert settings["log-opts"] == {"max-size": "100m", "max-file": "5"}
    if host.check_output("hostname") == "role-02":
        assert settings["max-concurrent-downloads"] == 6
        assert settings["insecure-registries"] == ["198.51.100.7:5000", "198.19.0.2:5000"]
    else:
        assert settings["insecure-registries"] == ["198.19.0.2:5000"]


def test_ansibles_docker_modules_can_run(host) -> None:
    assert host.run("/usr/bin/python3 -c 'import requests'").rc == 0


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
