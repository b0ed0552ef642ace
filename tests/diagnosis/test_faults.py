"""Every fault that is brought about ends the run at the stage that can see it first: named, with host and repair."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.diagnosis.cases import CASES, STALL, Case
from tests.diagnosis.conftest import Run, Site, moment

RECIPE = Path(__file__).with_name("recipe.yml")
STAMPED = re.compile(r"line \d+: (\d{4}-\d\d-\d\dT\S+Z)")


def changed(directory: Path, changes: dict[str, Any]) -> Path:
    """The suite's recipe with values under dotted keys changed."""
    recipe = copy.deepcopy(yaml.safe_load(RECIPE.read_text()))
    for dotted, value in changes.items():
        *way, last = dotted.split(".")
        at = recipe
        for step in way:
            at = at[step]
        at[last] = value
    path = directory / "changed.yml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def first_sign(run: Run, case: Case, error: dict[str, Any]) -> tuple[str, float]:
    """What the first sign of a fault was, and when, in seconds since 1970."""
    if case.stage in ("verify", "check", "provision"):
        return "start of the stage", run.stage(case.stage)["begun"]
    if case.stage != "launch":
        return "start of the run", run.started
    watched = run.stage("launch")["metrics"]["launch"]
    if case.options == STALL:
        return "last progress", watched["ended"] - watched["seconds"] + watched["progress_seconds"]
    stamped = STAMPED.search(error["evidence"])
    assert stamped, error
    return "log line", moment(stamped[1])


def told(run: Run, case: Case) -> float:
    """When the finding was there."""
    verdict = run.stage(case.stage)
    return float(verdict["metrics"]["launch"]["ended"]) if case.stage == "launch" else float(verdict["told"])


@pytest.mark.parametrize(
    "case",
    [pytest.param(one, id=one.name, marks=() if one.quick else pytest.mark.thorough) for one in CASES],
)
def test_a_fault_ends_in_its_finding(whole: Site, tmp_path: Path, case: Case) -> None:
    if case.stopped:
        whole.stop(*case.stopped, remove=case.removed)
    options = [*case.options]
    if case.recipe:
        options += ["-e", f"recipe={changed(tmp_path, case.recipe)}"]
    else:
        whole.break_(case.node, case.fault, *case.arguments)
    # What only a request shows has to be started first.
    tags = "launch,check" if case.stage == "check" else case.stage
    run = whole.deploy("--tags", tags, *options)
    assert run.code != 0, run.output
    assert run.stages()[-1] == case.stage, run.output
    errors = [one for one in run.stage(case.stage)["findings"] if one["severity"] == "error"]
    assert errors, run.output
    # What a launch ends in is one cause and its consequences; what is read from nodes is all that is wrong.
    named = errors[:1] if case.stage == "launch" else [one for one in errors if one["id"] == case.finding]
    assert [(one["id"], one["host"]) for one in named[:1]] == [(case.finding, case.host)], json.dumps(errors, indent=1)
    assert case.fix in named[0]["fix"], named[0]["fix"]
    assert named[0]["cause"] not in ("", "unknown")
    assert not {"task-failed", "host-unreachable"} & {one["id"] for one in errors}
    sign, since = first_sign(run, case, named[0])
    whole.keep(
        case.name,
        {
            "fault": case.fault,
            "stage": case.stage,
            "finding": case.finding,
            "host": case.host,
            "summary": named[0]["summary"],
            "sign": sign,
            "seconds": round(told(run, case) - since, 1),
        },
    )
