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
  -link) cat {TRANSCRIPTS}/link-up.txt ;;
  -tls) cat {TRANSCRIPTS}/tls.txt ;;
  *) echo 'The command is not supported on this product.'; exit 13 ;;
esac
"""
    )
    path.chmod(0o755)
    return str(path)


PEER = {"device": 0, "peer_host": "a3-02", "peer_device": 0, "address": "192.0.2.9"}


@pytest.mark.parametrize("check", [False, True])
def test_pings_and_reads(run_module, tool, check):
    result = run_module(
        hccl_verify, {"tool": "hccs_ping", "devices": [0, 1], "peers": [PEER], "hccn_tool": tool}, check=check
    )
    assert result["changed"] is False
    assert [(ping["ok"], ping["received"], ping["peer_host"]) for ping in result["results"]] == [(True, 3, "a3-02")]
    assert result["devices"]["1"]["link"] == {"link": "UP"}
    assert result["devices"]["0"]["tls"]["enabled"] is True
    assert "not supported" in result["devices"]["0"]["errors"]["net_health"]


def test_hardware_without_the_ping_is_told_in_the_result(run_module, tool):
    result = run_module(hccl_verify, {"tool": "ping", "devices": [], "peers": [PEER], "hccn_tool": tool})
    assert (result["results"][0]["ok"], result["devices"]) == (False, {})
    assert "not supported" in result["results"][0]["error"]


@pytest.mark.parametrize(
    "bad", [{"tool": "telepathy"}, {"packets": 0}, {"peers": [{"device": 0}]}, {"peers": "none", "devices": ["x"]}]
)
def test_bad_arguments_fail(run_module, bad):
    assert run_module(hccl_verify, {"tool": "ping", "devices": [0], "peers": [PEER], **bad})["failed"] is True
