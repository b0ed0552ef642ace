"""Each node has three generations; the newest is current and is what the plan says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.roles.helpers import Entry, changed, tree

PROCESS = {"role-01": "serve-0-head", "role-02": "serve-0-headless-1"}
DIGEST = {1: "1" * 64, 2: "2" * 64, 3: "1" * 64}


@pytest.fixture(scope="module")
def own(host) -> str:
    """The process of the plan that this host runs."""
    return PROCESS[host.check_output("hostname")]


@pytest.fixture(scope="module")
def files(host) -> dict[str, Entry]:
    """What lies in the cluster's folder."""
    return tree(host, "/etc/ascent/molecule")


def document(files: dict[str, Entry], number: int, name: str) -> dict[str, Any]:
    return json.loads(files[f"generations/{number}/{name}"].text)


def test_current_is_the_newest(files) -> None:
    assert files["current"].link == "generations/3"


def test_generations_hold_this_hosts_files_and_no_others(files, own) -> None:
    # The recipe's job runs on the first host.
    scripts = [own, "quick"] if own.endswith("-head") else [own]
    names = [f"{one}{kind}" for one in scripts for kind in (".sh", ".docker.sh")] + ["plan.json", "manifest.json"]
    folders = {f"generations/{number}" for number in DIGEST}
    assert set(files) == {"current", "generations", *folders, *(f"{one}/{name}" for one in folders for name in names)}


def test_files_are_roots_alone(files) -> None:
    for name, entry in files.items():
        assert entry.user == "root"
        if entry.link is None:
            assert entry.mode == (0o750 if entry.text is None else 0o640), name


@pytest.mark.parametrize("number", DIGEST)
def test_edited_and_lost_scripts_were_put_right(files, own, number) -> None:
    for kind in ("sh", "docker.sh"):
        lines = files[f"generations/{number}/{own}.{kind}"].text.splitlines()
        assert lines[0] == "#!/bin/bash"
        assert lines[1].startswith("# Ansible managed")
        assert lines[2] == "# ascent:generation"
        assert not [line for line in lines if line.endswith("HCCL_BUFFSIZE=1")]


def test_scripts_are_valid_shell(host, own) -> None:
    host.check_output("cd /etc/ascent/molecule/current && bash -n %s.sh && bash -n %s.docker.sh", own, own)


@pytest.mark.parametrize("number", DIGEST)
def test_the_manifest_says_what_the_generation_is(files, own, number) -> None:
    manifest, plan = document(files, number, "manifest.json"), document(files, number, "plan.json")
    assert manifest["number"] == number
    assert manifest["digest"] == f"sha256:{DIGEST[number]}"
    assert manifest["images"] == {plan["engine"]["image"]: manifest["digest"]}
    assert manifest["plan_hash"] == plan["hash"]
    assert manifest["recipe"] == "qwen3-235b-a22b-dp2"
    assert manifest["image"] == plan["engine"]["image"] == "198.19.0.2:5000/quay.io/ascend/vllm-ascend:v0.11.0rc2"
    # Another image makes another container, also of the same script.
    assert [(name, one["since"]) for name, one in manifest["processes"].items()] == [(own, number)]


def test_a_process_is_known_by_its_script_and_image(files, own) -> None:
    first, second, third = (document(files, number, "manifest.json")["processes"][own] for number in DIGEST)
    assert first["definition"] == third["definition"] != second["definition"]


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
