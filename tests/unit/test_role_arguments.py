"""Role variables that no role would take are found before any host is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascent_controller import role_arguments

ROLES = {
    "engine": {"engine_ready_timeout": {"type": "int"}},
    "host_tuning": {"host_tuning_sysctl": {"type": "dict"}, "host_tuning_state": {"choices": ["present", "absent"]}},
}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"engine_ready_timeout": "soon"}, ["engine_ready_timeout", "int"]),
        ({"host_tuning_state": "gone"}, ["present", "absent"]),
        ({"host_tuning_sysctls": {}}, ["did you mean host_tuning_sysctl?"]),
    ],
)
def test_a_mistake_is_one_finding(variables: dict, words: list[str]) -> None:
    findings = role_arguments.check(ROLES, {"a3-01": variables, "a3-02": variables})
    assert len(findings) == 1
    assert findings[0]["severity"] == "error"
    assert "a3-01, a3-02" in findings[0]["evidence"]
    assert all(word in findings[0]["summary"] + findings[0]["fix"] for word in words)


def test_good_values_and_foreign_names_pass() -> None:
    variables = {"engine_ready_timeout": 60, "host_tuning_sysctl": {"vm.swappiness": 0}, "my_own": 1, "node_ip": "x"}
    assert role_arguments.check(ROLES, {"a3-01": variables}) == []


def test_every_role_of_the_project_declares_its_arguments() -> None:
    roots = Path(__file__).resolve().parents[2] / "roles"
    known = role_arguments.load(roots)
    for role in sorted(path.name for path in roots.iterdir() if path.is_dir()):
        defaults = roots / role / "defaults" / "main.yml"
        names = {line.split(":")[0] for line in defaults.read_text().splitlines() if line[:1].isalpha()}
        assert names == set(known[role]), f"roles/{role}: defaults and argument_specs differ"
