"""A dry run has installed nothing and brought no file."""

from __future__ import annotations


def test_driver_and_firmware_are_as_they_were(host) -> None:
    bare = host.backend.get_hostname() == "role-02"
    for kind, version in (("driver", "25.5.2"), ("firmware", "7.8.0.6.201")):
        info = host.file(f"/usr/local/Ascend/{kind}/version.info")
        assert not info.exists if bare else f"package_version={version}" in info.content_string
    assert not host.file("/var/lib/ascent/packages").exists
    assert not host.file("/var/log/ascend_seclog/operation.log").exists
    assert not host.user("HwHiAiUser").exists
