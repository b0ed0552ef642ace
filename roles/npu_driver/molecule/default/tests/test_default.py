"""Both hosts have the newer pair, in the vendor's order, and know that they wait for a reboot."""

from __future__ import annotations

import json

from tests.roles.helpers import changed

# What an upgrade and a first installation call their installers with, in their order.
UPGRADE = ["firmware --upgrade --quiet", "driver --upgrade --install-for-all --quiet"]
INSTALL = ["driver --full --install-for-all --quiet", "firmware --full --quiet"]


def test_driver_and_firmware_are_the_newer_ones(host) -> None:
    for kind, version in (("driver", "25.5.3"), ("firmware", "7.8.0.7.100")):
        info = host.file(f"/usr/local/Ascend/{kind}/version.info")
        assert f"package_version={version}" in info.content_string
    assert "Driver_Install_Status=complete" in host.file("/etc/ascend_install.info").content_string
    assert host.user("HwHiAiUser").group == "HwHiAiUser"


def test_the_installers_ran_once_in_the_vendor_s_order(host) -> None:
    lines = host.file("/var/log/ascend_seclog/operation.log").content_string.splitlines()
    calls = [line for line in lines if "--check" not in line]
    found = [
        f"{'driver' if '-driver_' in line else 'firmware'} {line.split('cmdlist=')[1].rstrip('.')}" for line in calls
    ]
    assert found == (INSTALL if host.backend.get_hostname() == "role-02" else UPGRADE)
    assert all(" success " in line for line in lines)


def test_nothing_is_left_behind_but_the_record(host) -> None:
    assert not host.file("/var/lib/ascent/packages").exists
    record = json.loads(host.file("/var/lib/ascent/npu_package.json").content_string)
    assert record["unfinished"] is None
    assert record["reboot"]["boot_id"] == host.file("/proc/sys/kernel/random/boot_id").content_string.strip()


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
