"""What a changed recipe changes on which node."""

from __future__ import annotations

import pytest

from ascent import plan_changes, planner
from ascent_controller import planning
from tests.unit import planning_inputs as inputs


def plan_of(recipe):
    return planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)))


def test_nothing_changes_between_equal_plans():
    recipe = inputs.recipe(inputs.PD)
    assert plan_changes.between(plan_of(recipe), plan_of(recipe)) == []


def test_every_change_is_told_with_its_node():
    recipe = inputs.recipe(inputs.PD)
    before = plan_of(recipe)
    recipe["pools"]["prefill"]["args"].update({"enforce-eager": None, "max-num-seqs": 65})
    recipe["pools"]["prefill"]["env"] = {"HCCL_BUFFSIZE": 1, "MORE": "x"}
    recipe["container"] = {"shm_size": "2g"}
    recipe["jobs"]["measure"] = {"tool": "aiperf"}
    recipe["router"]["on"] = "decode"
    changes = plan_changes.between(before, plan_of(recipe))
    first = changes[0]
    assert (first["host"], first["process"], first["change"]) == ("n000", "prefill-0-head", "changed")
    assert first["details"] == [
        "--max-num-seqs 64 -> 65",
        "without --enforce-eager",
        "HCCL_BUFFSIZE=1536 -> 1",
        "with MORE=x",
        "container shm_size changed",
    ]
    rest = [(one["host"], one["process"], one["change"]) for one in changes[1:]]
    assert ("n001", "router", "new") in rest
    assert ("n000", "measure", "new") in rest
    assert rest[-1] == ("n000", "router", "gone")
    assert plan_changes.lines(changes)[0].startswith("n000: prefill-0-head changed: --max-num-seqs 64 -> 65; ")


def test_stand_ins_have_addresses_of_their_own_that_nobody_has():
    hosts = planning.stand_ins(1000)
    assert len({host["node_ip"] for host in hosts}) == len({host["name"] for host in hosts}) == 1000
    assert {host["node_ip"].rpartition(".")[0] for host in hosts[:762]} == {"192.0.2", "198.51.100", "203.0.113"}
    assert hosts[999]["node_ip"].startswith("198.18.")
    assert [host.get("hardware") for host in planning.stand_ins({"a": 1, "b": "2"})] == ["a", "b", "b"]


@pytest.mark.parametrize("wanted", ["x", 0, -1, True, {"a": "few"}, 100_001, None])
def test_other_numbers_of_stand_ins_are_refused(wanted):
    with pytest.raises(ValueError, match="hosts"):
        planning.stand_ins(wanted)
