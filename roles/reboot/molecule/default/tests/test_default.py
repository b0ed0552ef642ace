"""The host that asked was rebooted once and has all it had; the other one was left alone."""

from __future__ import annotations

from tests.roles.helpers import changed


def boots(host) -> tuple[str, str]:
    now = host.check_output("cat /proc/sys/kernel/random/boot_id")
    return host.check_output("cat /root/boot_id"), now


def test_only_the_host_that_asked_was_rebooted(host) -> None:
    before, now = boots(host)
    assert (before != now) == (host.check_output("hostname") == "role-01")


def test_its_devices_are_back(host) -> None:
    assert host.check_output("ls /dev | grep -c '^davinci[0-9]'") == "8"


def test_a_dry_run_has_nothing_to_do(host) -> None:
    _, before = boots(host)
    assert set(changed("converge.yml", "--check").values()) == {0}
    assert boots(host)[1] == before
