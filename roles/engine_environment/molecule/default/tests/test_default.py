"""The environment is whole again after somebody changed it, and says what is in it."""

from __future__ import annotations

import json

from tests.roles.helpers import changed

PLACE = "/opt/ascent/environments/molecule"


def test_the_engine_is_installed_in_its_version(host) -> None:
    listed = host.check_output(f"{PLACE}/bin/python -c 'import vllm_ascend; print(vllm_ascend.__version__)'")
    assert listed == "0.18.0"


def test_it_says_what_is_in_it(host) -> None:
    told = json.loads(host.file(f"{PLACE}/ascent.json").content_string)
    assert told["packages"] == ["vllm-ascend==0.18.0"]
    assert told["installed"]["vllm-ascend"] == "0.18.0"
    assert host.check_output(f"{PLACE}/bin/python --version") == f"Python {told['python']}"


def test_the_wheels_are_gone(host) -> None:
    assert not host.file(f"{PLACE}.wheels").exists


def test_nothing_of_the_system_changed(host) -> None:
    assert host.run("python3 -c 'import vllm_ascend'").rc != 0


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
