"""playbooks/upgrade.yml on two nodes that serve one instance: a good upgrade, and those that are undone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.lib import plan
from tests.e2e.driver import ROOT, Road, Run, sandbox
from tests.e2e.host import machine

CLUSTER = "upgraded"
INVENTORY = ROOT / "tests" / "upgrade" / "inventory"
OLD, NEW = "quay.io/ascend/vllm-ascend:v0.18.0", "quay.io/ascend/vllm-ascend:v0.21.0rc1"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """Two nodes that serve, fresh for this module, and gone after it."""
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    sandbox("down", INVENTORY)
    sandbox("up", INVENTORY)
    work = tmp_path_factory.mktemp("upgrade")
    found = Road(work, machine(plan.from_inventory(INVENTORY)), INVENTORY, CLUSTER)
    run = found.play("deploy.yml", "--tags", "provision,launch,check", "-e", f"recipe={recipe(work, OLD)}")
    assert run.rc == 0, run.stdout
    yield found
    sandbox("down", INVENTORY)


def recipe(directory: Path, image: str, **env: str) -> Path:
    """The recipe with an image and with variables that the simulator obeys."""
    wanted = yaml.safe_load((ROOT / "recipes" / "qwen3-235b-a22b-dp2.yml").read_text())
    wanted["name"] = "upgraded"
    wanted["engine"]["image"] = image
    wanted["env"].update(env)
    wanted["checks"] = {"smoke_bench": {"concurrency": 4, "requests": 16, "input_tokens": 64, "output_tokens": 24}}
    path = directory / "upgraded.yml"
    path.write_text(yaml.safe_dump(wanted, sort_keys=False))
    return path


def upgrade(road: Road, path: Path, *more: str) -> Run:
    return road.play("playbooks/upgrade.yml", "-e", f"recipe={path}", *more)


def told(run: Run) -> dict[str, dict[str, Any]]:
    """The findings of the upgrade by id."""
    assert (run.record / "upgrade.json").exists(), run.stdout[-6000:]
    return {one["id"]: one for one in run.stage("upgrade")["findings"]}


def serving(road: Road) -> tuple[int, set[str]]:
    """Number of the current generation, and the image names of the containers that run."""
    manifest = json.loads(road.node("up-01").file(f"/etc/ascent/{CLUSTER}/current/manifest.json").content_string)
    images = {
        line.partition("@")[0]
        for node in road.nodes().values()
        for line in node.check_output("docker ps --no-trunc --format '{{.Image}}'").splitlines()
    }
    return manifest["number"], images


def started(road: Road) -> str:
    return "".join(
        node.check_output("docker inspect --format '{{.State.StartedAt}}' $(docker ps -q)")
        for node in road.nodes().values()
    )


def test_a_dry_run_says_what_would_change_and_changes_nothing(road: Road, tmp_path: Path) -> None:
    before = started(road)
    run = upgrade(road, recipe(tmp_path, NEW), "--check")
    assert run.rc == 0, run.stdout
    found = told(run)
    assert "restarts 2 of 2 processes" in found["upgrade-plan"]["summary"]
    assert "v0.18.0" in found["upgrade-plan"]["evidence"]
    assert "v0.21.0rc1" in found["upgrade-plan"]["evidence"]
    assert "about" in found["upgrade-outage-expected"]["summary"], "the first launch was timed"
    assert "upgrade-outage" not in found
    assert started(road) == before
    assert serving(road)[0] == 1


def test_a_new_image_is_prepared_first_and_the_outage_is_measured(road: Road, tmp_path: Path) -> None:
    run = upgrade(road, recipe(tmp_path, NEW))
    assert run.rc == 0, run.stdout
    found = told(run)
    assert not [one for one in found.values() if one["severity"] == "error"]
    measured = run.stage("upgrade")["metrics"]["upgrade"]
    assert measured["outage"]["failed"] > 0, "two processes made way"
    assert len(measured["outage"]["outages"]) == 1
    assert measured["outage"]["outages"][0]["over"]
    assert measured["expected_seconds"] > 0
    assert not measured["rolled_back"]
    assert "the service before" in found["bench-last"]["summary"]
    assert serving(road)[0] == 2
    written = run.rounds.index("Write this host's scripts")
    stopped = run.rounds.index("Stop a container whose instance starts anew")
    assert written < stopped, "every node has the new generation before anything stops"
    again = upgrade(road, recipe(tmp_path, NEW))
    assert again.rc == 0, again.stdout
    assert again.changed == {}
    assert "nothing changes" in told(again)["upgrade-plan"]["summary"]


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"SIM_FAIL": "request:garbage"}, "G01"),
        pytest.param({"SIM_SPEED": "0.4"}, "bench-drop", marks=pytest.mark.thorough),
        pytest.param({"SIM_FAIL": "weights@1:EI0006"}, "C01", marks=pytest.mark.thorough),
    ],
    ids=["a-check-fails", "the-benchmark-falls", "it-does-not-come-up"],
)
def test_what_is_worse_is_undone_by_itself(road: Road, tmp_path: Path, env: dict[str, str], reason: str) -> None:
    number, images = serving(road)
    run = upgrade(road, recipe(tmp_path, NEW, **env))
    assert run.rc != 0
    undone = told(run)["upgrade-rolled-back"]
    assert f"[{reason}]" in undone["evidence"], undone
    # Which one was last remembered as good depends on what was undone before; that it serves is looked at below.
    assert f"serves again, as generation {number + 2}" in undone["summary"]
    assert serving(road) == (number + 2, images)
    measured = run.stage("upgrade")["metrics"]["upgrade"]
    assert measured["rolled_back"]
    assert all(one["over"] for one in measured["outage"]["outages"]), "the old generation answers again"
    status = road.play("playbooks/status.yml")
    assert status.rc == 0, status.stdout
