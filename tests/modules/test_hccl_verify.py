"""The hccl_verify module with a tool of its own on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from library import hccl_verify

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts" / "hccn_tool"


@pytest.fixture
def tool(tmp_path):
    """A shell script that answers from the transcripts by the option it gets."""
    path = tmp_path / "hccn_tool"
    path.write_text(
        f"""#!/bin/sh
case "$3" in
  -hccs_ping) cat {TRANSCRIPTS}/hccs_ping-ok.txt ;;
  *) echo 'The command is not supported on this product.'; exit 13 ;;
esac
"""
    )
    path.chmod(0o755)
    return str(path)


PEER = {"device": 0, "peer_host": "a3-02", "peer_device": 0, "address": "192.0.2.9"}


@pytest.mark.parametrize("check", [False, True])
def test_pings(run_module, tool, check):
    arguments = {"tool": "hccs_ping", "host": "a3-01", "peers": [PEER], "hccn_tool": tool}
    result = run_module(hccl_verify, arguments, check=check)
    assert (result["changed"], result["plane"]) == (False, "vnic")
    (pair,) = result["pairs"]
    assert (pair["from"], pair["to"], pair["sent"], pair["received"]) == (["a3-01", 0], ["a3-02", 0], 3, 3)
    assert (pair["avg_us"], pair["error"]) == (21.045, None)


def test_hardware_without_the_ping_is_told_in_the_result(run_module, tool):
    result = run_module(hccl_verify, {"tool": "ping", "host": "a2-01", "peers": [PEER], "hccn_tool": tool})
    assert (result["pairs"][0]["sent"], result["plane"]) == (0, "ip")
    assert "not supported" in result["pairs"][0]["error"]


@pytest.mark.parametrize("bad", [{"tool": "telepathy"}, {"packets": 0}, {"peers": [{"device": 0}]}, {"peers": "none"}])
def test_bad_arguments_fail(run_module, bad):
    assert run_module(hccl_verify, {"tool": "ping", "host": "a2-01", "peers": [PEER], **bad})["failed"] is True
