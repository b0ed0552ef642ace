"""The node_info module: arguments, check mode, and its real readers on this machine."""

from __future__ import annotations

import pytest

from library import node_info


@pytest.mark.parametrize("check", [False, True])
def test_gathers_this_machine_and_changes_nothing(run_module, check):
    result = run_module(
        node_info,
        {"cluster": "c1", "npu_smi": ["/nowhere/npu-smi"], "hccn_tool": [], "container_program": "no-such-engine"},
        check=check,
    )
    facts = result["ansible_facts"]["ascent_node"]
    assert result["changed"] is False
    parts = "absent clock container_engine disk gpu network npu processes state system units weights"
    assert sorted(facts) == parts.split()
    assert facts["system"]["memory_mb"] > 0
    assert facts["npu"]["error"].startswith("npu-smi is at none of /nowhere/npu-smi")
    assert facts["container_engine"]["installed"] is False


def test_only_what_was_asked_for(run_module):
    facts = run_module(node_info, {"cluster": "c1", "gather": ["disk"], "disk_paths": ["/"]})["ansible_facts"]
    assert {name for name, value in facts["ascent_node"].items() if value is not None} == {"clock", "disk"}


@pytest.mark.parametrize("arguments", [{}, {"cluster": "c1", "gather": ["everything"]}])
def test_bad_arguments_fail(run_module, arguments):
    assert run_module(node_info, arguments)["failed"] is True
