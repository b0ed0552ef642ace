"""The host as it was before the role, and as remove leaves it."""

from __future__ import annotations

import pytest

from tests.roles.helpers import changed


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("/proc/sys/vm/swappiness", "60"),
        ("/proc/sys/kernel/numa_balancing", "1"),
        ("/proc/sys/net/ipv4/ip_local_reserved_ports", ""),
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
    ],
)
def test_knobs_have_the_values_of_a_fresh_server(host, knob, value) -> None:
    assert host.file(knob).content_string.strip() == value


@pytest.mark.parametrize(
    "path",
    [
        "/etc/sysctl.d/90-ascent.conf",
        "/etc/security/limits.d/90-ascent.conf",
        "/etc/systemd/system/ascent-host-tuning.service",
        "/etc/systemd/system/multi-user.target.wants/ascent-host-tuning.service",
        "/var/lib/ascent/host_tuning.json",
    ],
)
def test_no_file_of_ours_is_there(host, path) -> None:
    assert not host.file(path).exists


def test_removing_again_changes_nothing() -> None:
    assert set(changed("cleanup.yml").values()) == {0}
