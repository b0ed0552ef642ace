"""The host_tuning module: check mode, diff, the unit, and its errors. tests/unit/test_tuning.py tests its thinking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from library import host_tuning


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, text in {
        "proc/sys/vm/swappiness": "60\n",
        "proc/sys/net/ipv4/ip_local_reserved_ports": "\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(host_tuning, "ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def systemctl(host: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The systemctl calls of the module; enabling makes the link that systemd would make."""
    calls: list[list[str]] = []
    link = host / host_tuning.tuning.UNIT_LINK.lstrip("/")

    def call(argv: Sequence[str]) -> tuple[int, str, str]:
        if argv[0] != "systemctl":
            return 127, "", "not found"
        calls.append(list(argv[1:]))
        if argv[1] == "enable":
            link.parent.mkdir(parents=True, exist_ok=True)
            link.touch()
        return 0, "", ""

    monkeypatch.setattr(host_tuning, "run", call)
    monkeypatch.setattr(host_tuning.time_service, "synchronised", lambda: True)
    return calls


WISH = {"governor": "performance", "sysctl": {"vm.swappiness": 0}, "reserved_ports": ["7000"]}


def test_check_mode_tells_the_change_and_makes_none(host, systemctl, run_module) -> None:
    before = {path: path.read_text() for path in host.rglob("*") if path.is_file()}
    result = run_module(host_tuning, WISH, check=True, diff=True)
    assert result["changed"] is True
    assert {write["to"] for write in result["writes"]} == {"performance", "0", "7000"}
    assert "vm.swappiness = 60\n" in result["diff"][0]["before"]
    assert "vm.swappiness = 0\n" in result["diff"][0]["after"]
    assert {path: path.read_text() for path in host.rglob("*") if path.is_file()} == before
    assert systemctl == []


def test_apply_then_nothing_then_undo(host, systemctl, run_module) -> None:
    assert run_module(host_tuning, WISH)["changed"] is True
    assert [call[0] for call in systemctl] == ["daemon-reload", "enable", "restart"]
    again = run_module(host_tuning, WISH)
    assert (again["changed"], again["diff"], again["files"]) == (False, [], [])
    assert run_module(host_tuning, WISH, check=True)["changed"] is False

    systemctl.clear()
    assert run_module(host_tuning, {"state": "absent"})["changed"] is True
    assert [call[0] for call in systemctl] == ["disable", "daemon-reload"]
    assert (host / "proc/sys/vm/swappiness").read_text() == "60\n"
    assert run_module(host_tuning, {"state": "absent"})["changed"] is False


def test_a_mistake_in_the_variables_is_an_error_with_the_same_keys(host, systemctl, run_module) -> None:
    result = run_module(host_tuning, {"sysctl": {"vm.swappiness": False}})
    assert result["failed"] is True
    assert "vm.swappiness" in result["msg"]
    assert result["findings"] == []
    assert result["packages"] == result["commands"] == []
    assert (host / "proc/sys/vm/swappiness").read_text() == "60\n"


def test_only_the_firewall_is_looked_at_where_that_is_asked(host, systemctl, run_module) -> None:
    result = run_module(host_tuning, {**WISH, "only": "firewall", "firewall": {"sources": ["192.0.2.1"]}})
    assert (result["changed"], result["findings"]) == (False, [])
    assert (host / "proc/sys/vm/swappiness").read_text() == "60\n"


def test_a_command_that_fails_is_named(host, systemctl, run_module, monkeypatch) -> None:
    monkeypatch.setattr(host_tuning, "run", lambda argv: (1, "", "Failed to connect to bus"))
    result = run_module(host_tuning, WISH)
    assert result["failed"] is True
    assert "`systemctl daemon-reload` ended with 1: Failed to connect to bus" in result["msg"]


def test_a_time_service_that_was_started_gets_time_and_is_then_judged(host, systemctl, run_module, monkeypatch) -> None:
    states = [False, False, True]
    monkeypatch.setattr(host_tuning.time_service, "synchronised", lambda: states.pop(0))
    monkeypatch.setattr(host_tuning.time, "sleep", lambda seconds: None)
    daemon = host / "usr/lib/systemd/systemd-timesyncd"
    daemon.parent.mkdir(parents=True)
    daemon.touch()
    group = host / "sys/fs/cgroup/system.slice/systemd-timesyncd.service/cgroup.procs"
    group.parent.mkdir(parents=True)
    group.write_text("77\n")
    result = run_module(host_tuning, {"ntp_servers": ["192.0.2.123"]})
    assert "systemctl restart systemd-timesyncd.service" in result["commands"]
    assert (states, result["findings"]) == ([], [])


def test_programs_of_administrators_are_found(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert host_tuning.run(["sh", "-c", "echo $PATH"])[1].strip() == "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
