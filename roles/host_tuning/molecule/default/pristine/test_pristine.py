"""The host as it was before the role, and as remove leaves it."""

from __future__ import annotations

import re

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


def test_hugepages_are_for_those_who_ask(host) -> None:
    # The kernel offers its words and brackets one; a sandbox node that has been set keeps the bare word.
    assert re.search(r"\[madvise\]|^madvise$", host.file("/sys/kernel/mm/transparent_hugepage/enabled").content_string)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/sysctl.d/90-ascent.conf",
        "/etc/security/limits.d/90-ascent.conf",
        "/etc/systemd/system/docker.service.d/90-ascent-limits.conf",
        "/etc/systemd/system/ascent-.service.d/90-ascent-limits.conf",
        "/etc/systemd/system/ascent-host-tuning.service",
        "/etc/systemd/system/multi-user.target.wants/ascent-host-tuning.service",
        "/var/lib/ascent/host_tuning.json",
    ],
)
def test_no_file_of_ours_is_there(host, path) -> None:
    assert not host.file(path).exists


def test_the_boot_loader_boots_what_it_did(host) -> None:
    if host.file("/boot/grub/grub.cfg").exists:
        assert host.file("/boot/grub/grub.cfg").content_string == "linux /vmlinuz root=/dev/vda ro quiet\n"
    assert not host.file("/etc/default/grub.d/90-ascent.cfg").exists


def test_the_hosts_file_is_as_it_was(host) -> None:
    lines = host.file("/etc/hosts").content_string.splitlines()
    name = host.check_output("hostname")
    assert f"127.0.1.1 {name}.site {name}" in lines
    assert not [line for line in lines if "ascent" in line]


def test_the_firewall_lets_in_what_it_did(host) -> None:
    if host.exists("ufw"):
        assert host.check_output("ufw show added").splitlines()[1:] == ["ufw allow 22/tcp"]
    else:
        for options in ("", "--permanent"):
            assert not host.check_output(f"firewall-cmd {options} --list-rich-rules")


def test_the_time_service_that_came_for_us_is_gone(host) -> None:
    assert not host.package("chrony").is_installed


def test_removing_again_changes_nothing() -> None:
    assert set(changed("cleanup.yml").values()) == {0}
