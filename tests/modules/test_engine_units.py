"""The module that runs engines as units: what it asks of systemd, in which order, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from ascent import units
from library import engine_units as module

Run = Callable[..., dict[str, Any]]


class Systemd:
    """A directory of units and a systemctl that keeps their states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory = directory
        self.states: dict[str, str] = {}
        self.enabled: set[str] = set()
        self.calls: list[list[str]] = []
        self.refuses = ""
        # The module has its own import of the library, as on a node.
        monkeypatch.setattr(module.units, "DIRECTORY", str(directory))
        monkeypatch.setattr(AnsibleModule, "run_command", lambda _, argv, **more: self.run(argv))

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        verb, names = argv[1], [word for word in argv[2:] if not word.startswith("-")]
        if verb == "show":
            return 0, "\n".join(self.show(name) for name in names), ""
        self.calls.append(argv[1:])
        if verb == self.refuses:
            return 1, "", "Job failed"
        for name in names:
            if verb in ("start", "stop"):
                self.states[name] = verb
            if verb == "enable":
                self.enabled.add(name)
        return 0, "", ""

    def show(self, name: str) -> str:
        running = self.states.get(name) == "start"
        active = "ActiveState=active\nSubState=running" if running else "ActiveState=inactive\nSubState=dead"
        enabled = "enabled" if name in self.enabled else "disabled"
        return f"Id={name}\nLoadState=loaded\n{active}\nUnitFileState={enabled}\n"


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemd:
    (tmp_path / "ssh.service").write_text("[Unit]\n")
    (tmp_path / "ascent-other-serve-0-head.service").write_text("X-Ascent-Cluster=other\n")
    return Systemd(monkeypatch, tmp_path)


def unit(name: str, definition: str = "1") -> dict[str, str]:
    labels = {"cluster": "a3", "process": name, "generation": 1, "definition": definition}
    plan = {"limits": {}, "restart": "always"}
    text = units.text(plan, f"/etc/ascent/{name}.sh", labels, managed="by Ascent", stop_seconds=30)
    return {"name": f"ascent-a3-{name}.service", "text": text}


def test_units_are_made_once(run_module: Run, systemd: Systemd) -> None:
    wanted = {"cluster": "a3", "units": [unit("head"), unit("router")]}
    before = run_module(module, wanted, check=True)
    assert before["changed"] is True
    assert systemd.calls == []
    assert run_module(module, wanted)["changed"] is True
    assert {call[0] for call in systemd.calls} == {"daemon-reload", "enable", "start", "reset-failed"}
    assert (systemd.directory / "ascent-a3-head.service").stat().st_mode & 0o777 == 0o644
    systemd.calls.clear()
    assert run_module(module, wanted) == run_module(module, wanted, check=True)
    assert run_module(module, wanted)["steps"] == []
    assert systemd.calls == []


def test_a_changed_unit_alone_is_started_again(run_module: Run, systemd: Systemd) -> None:
    run_module(module, {"cluster": "a3", "units": [unit("head"), unit("router")]})
    systemd.calls.clear()
    result = run_module(module, {"cluster": "a3", "units": [unit("head", "2"), unit("router")]}, diff=True)
    assert [step["do"] for step in result["steps"]] == ["stop", "write", "start"]
    assert {step["unit"] for step in result["steps"]} == {"ascent-a3-head.service"}
    assert [call[0] for call in systemd.calls] == ["stop", "daemon-reload", "reset-failed", "start"]
    assert "Definition=1" in result["diff"][0]["before"]
    assert "Definition=2" in result["diff"][0]["after"]


def test_ending_comes_alone_where_asked(run_module: Run, systemd: Systemd) -> None:
    run_module(module, {"cluster": "a3", "units": [unit("head"), unit("old")]})
    systemd.calls.clear()
    wanted = {"cluster": "a3", "units": [unit("head")], "ending": ["ascent-a3-head.service"]}
    result = run_module(module, {**wanted, "only_end": True})
    assert [step["do"] for step in result["steps"]] == ["remove", "stop"]
    assert not (systemd.directory / "ascent-a3-old.service").exists()
    assert ["disable", "--now", "ascent-a3-old.service"] in systemd.calls
    result = run_module(module, {"cluster": "a3", "units": [unit("head")]})
    assert [step["do"] for step in result["steps"]] == ["start"]


def test_removing_leaves_what_is_not_ours(run_module: Run, systemd: Systemd) -> None:
    run_module(module, {"cluster": "a3", "units": [unit("head")]})
    assert run_module(module, {"cluster": "a3"})["changed"] is True
    assert sorted(path.name for path in systemd.directory.iterdir()) == [
        "ascent-other-serve-0-head.service",
        "ssh.service",
    ]
    assert run_module(module, {"cluster": "a3"})["changed"] is False


def test_what_systemd_refuses_is_told(run_module: Run, systemd: Systemd) -> None:
    systemd.refuses = "start"
    result = run_module(module, {"cluster": "a3", "units": [unit("head")]})
    assert result["failed"] is True
    assert result["msg"] == "systemctl start ascent-a3-head.service failed: Job failed"
