"""What a judge is handed when its options come from the command line, as text."""

from __future__ import annotations

import importlib.util

import pytest
from ansible.errors import AnsibleActionFail

from ascent_controller import judges
from ascent_controller.loader import ROOT

_SPEC = importlib.util.spec_from_file_location("judge_action", ROOT / "plugins/action/judge.py")
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)


def options(by, **given):
    return _MODULE.ActionModule.options(judges.JUDGES[by], given)


def test_numbers_and_truths_given_as_text_are_numbers_and_truths():
    gate = {"wanted": "auto", "depth": "standard", "mesh": "planned"}
    assert options("fabric_gate", **gate, max_age_hours="1.5") == {**gate, "max_age_hours": 1.5}
    assert options("before_launch", provisioned="false") == {"provisioned": False}


def test_what_has_a_default_may_be_left_out():
    told = options("fabric", hosts=["a"], depth="quick", mesh="full")
    assert told == {"hosts": ["a"], "depth": "quick", "mesh": "full", "limits": None, "wanted_collectives": "auto"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"provisioned": "perhaps"}, "provisioned"),
        ({}, "provisioned"),
        ({"provisioned": True, "provisoned": True}, "provisoned"),
    ],
)
def test_what_can_not_be_is_named(given, words):
    with pytest.raises(AnsibleActionFail, match=words):
        options("before_launch", **given)


@pytest.mark.parametrize("by", judges.JUDGES)
def test_every_judge_has_options_that_ansible_knows(by):
    spec = judges.options(judges.JUDGES[by])
    assert spec
    assert {one["type"] for one in spec.values()} <= {"str", "int", "float", "bool", "list", "dict"}
