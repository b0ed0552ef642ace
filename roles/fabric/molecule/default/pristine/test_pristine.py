"""The host before anything was proven: a dry run leaves no verdict."""

from __future__ import annotations


def test_no_verdict_is_there(host) -> None:
    assert not host.file("/var/lib/ascent/molecule/fabric.json").exists
