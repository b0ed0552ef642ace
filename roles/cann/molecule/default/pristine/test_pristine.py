"""There is no CANN on the host, and no package."""

from __future__ import annotations


def test_there_is_no_cann(host) -> None:
    for path in ("ascend-toolkit", "cann", "cann-8.5.0", "nnal"):
        assert not host.file(f"/usr/local/Ascend/{path}").exists
    assert not host.file("/var/lib/ascent/packages").exists
    assert not host.file("/var/lib/ascent/npu_package.json").exists
