"""The host_tuning module: check mode, diff, the unit, and its errors. tests/unit/test_tuning.py tests its thinking."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule

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

    def call(self: AnsibleModule, argv: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        calls.append(argv[1:])
        if argv[1] == "enable":
            link.parent.mkdir(parents=True, exist_ok=True)
            link.touch()
        return 0, "", ""

    monkeypatch.setattr(AnsibleModule, "run_command", call)
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda self, name, required=False: f"/usr/bin/{name}")
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
    assert (host / "proc/sys/vm/swappiness").read_text() == "60\n"
