"""The knobs are set after a reboot, by what the role left on the host."""

from __future__ import annotations

import pytest

from tests.roles.helpers import changed

WANTED = {
    "/proc/sys/vm/swappiness": "0",
    "/proc/sys/kernel/numa_balancing": "0",
    "/proc/sys/net/ipv4/ip_local_reserved_ports": "6884,23010-23025",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "/sys/kernel/debug/sched/migration_cost_ns": "50000",
}


def read(host, path: str) -> str:
    return host.file(path).content_string.strip()


@pytest.mark.parametrize("knob", WANTED)
def test_knobs_are_set(host, knob) -> None:
    assert read(host, knob) == WANTED[knob]


def test_every_cpu_has_the_governor(host) -> None:
    governors = host.check_output("cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor").split()
    assert set(governors) == {"performance"}


@pytest.mark.parametrize("path", ["/etc/sysctl.d/90-ascent.conf", "/etc/systemd/system/ascent-host-tuning.service"])
def test_our_files_say_whose_they_are(host, path) -> None:
    lines = host.file(path).content_string.splitlines()
    assert lines[:2] == ["# Ansible managed", "# ascent:host_tuning"]


def test_the_unit_ran_and_is_enabled(host) -> None:
    unit = host.service("ascent-host-tuning")
    assert unit.is_enabled
    assert unit.is_running, host.check_output("journalctl -u ascent-host-tuning --no-pager")


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
