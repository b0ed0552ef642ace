"""The container_engine module on a made-up host with a systemctl and an engine that can be told to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule

from library import container_engine

WISH = {"daemon": {"live-restore": True, "log-driver": "json-file"}, "insecure_registries": ["198.51.100.10:5000"]}


class Service:
    """What systemctl and docker would say, and what they were asked to do."""

    def __init__(self) -> None:
        self.loaded, self.active, self.enabled, self.since = "loaded", "active", "enabled", 1
        self.containers = 0
        self.refuses = ""
        self.calls: list[str] = []

    def run(self, module: AnsibleModule, argv: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        program, verb = Path(argv[0]).name, argv[1]
        if program == "docker":
            return 0, "id\n" * self.containers, ""
        if program == "journalctl":
            return 0, "unable to configure the Docker daemon\n", ""
        if verb == "show":
            state = {
                "LoadState": self.loaded,
                "ActiveState": self.active,
                "UnitFileState": self.enabled,
                "ActiveEnterTimestampMonotonic": self.since,
            }
            return 0, "".join(f"{key}={value}\n" for key, value in state.items()), ""
        if verb == self.refuses:
            self.refuses = ""
            return 1, "", "Job for docker.service failed."
        if verb in ("start", "restart"):
            self.active, self.since = "active", self.since + 1
        if verb == "enable":
            self.enabled = "enabled"
        if verb != "reset-failed":
            self.calls.append(verb)
        return 0, "", ""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Service:
    made = Service()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda self, argv, **how: made.run(self, argv, **how))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda self, name, required=False: f"/usr/bin/{name}")
    monkeypatch.setattr(container_engine, "ROOT", str(tmp_path))
    return made


@pytest.fixture
def daemon_file(tmp_path: Path) -> Path:
    path = tmp_path / "etc/docker/daemon.json"
    path.parent.mkdir(parents=True)
    return path


def test_check_then_apply_then_nothing_then_undo(service, daemon_file, run_module) -> None:
    daemon_file.write_text('{"data-root": "/data"}')
    predicted = run_module(container_engine, WISH, check=True, diff=True)
    assert predicted["changed"] is True
    assert "198.51.100.10:5000" in predicted["diff"][0]["after"]
    assert (daemon_file.read_text(), service.calls) == ('{"data-root": "/data"}', [])

    done = run_module(container_engine, WISH)
    assert done["steps"] == predicted["steps"] == service.calls == ["restart"]
    assert json.loads(daemon_file.read_text()) == {
        "data-root": "/data",
        "insecure-registries": ["198.51.100.10:5000"],
        "live-restore": True,
        "log-driver": "json-file",
    }
    again = run_module(container_engine, WISH)
    assert (again["changed"], again["diff"]) == (False, [])

    assert run_module(container_engine, {"state": "absent"})["changed"] is True
    assert json.loads(daemon_file.read_text()) == {"data-root": "/data"}
    assert run_module(container_engine, {"state": "absent"})["changed"] is False


def test_a_bare_host_is_predicted_in_check_mode_and_an_error_otherwise(service, daemon_file, run_module) -> None:
    service.loaded, service.active, service.enabled = "not-found", "inactive", ""
    predicted = run_module(container_engine, WISH, check=True)
    assert (predicted["changed"], predicted["steps"]) == (True, ["enable", "start"])
    refused = run_module(container_engine, WISH)
    assert "found no such unit" in refused["msg"]
    assert not daemon_file.exists()


def test_an_engine_that_does_not_come_up_gets_its_old_file_back(service, daemon_file, run_module) -> None:
    daemon_file.write_text('{"data-root": "/data"}')
    service.refuses = "restart"
    result = run_module(container_engine, {"daemon": {"log-driver": "no-such"}})
    assert result["failed"] is True
    assert "unable to configure" in result["msg"]
    assert "log-driver" in result["msg"]
    assert daemon_file.read_text() == '{"data-root": "/data"}'
    assert service.active == "active"


def test_a_daemon_json_that_is_no_json_is_left_alone_and_named(service, daemon_file, run_module) -> None:
    daemon_file.write_text('{"debug": true,}')
    result = run_module(container_engine, WISH)
    assert result["failed"] is True
    assert "/etc/docker/daemon.json, line 1: not JSON" in result["msg"]
    assert daemon_file.read_text() == '{"debug": true,}'


def test_containers_in_service_are_not_restarted_under(service, daemon_file, run_module) -> None:
    service.containers = 2
    result = run_module(container_engine, WISH)
    assert (result["restart_required"], service.calls) == (True, ["reload"])
    assert result["findings"][0]["id"] == "container-engine-restart-required"
    assert run_module(container_engine, {**WISH, "restart_ok": True})["steps"] == ["restart"]
