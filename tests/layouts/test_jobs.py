"""Offline inference: nothing serves, a job of the launched generation answers its prompts."""

from __future__ import annotations

import pytest

from tests.layouts.cluster import CLUSTER, Site

JOB = ("playbooks/job.yml", "-e", "job=offline")


@pytest.mark.thorough
def test_offline_inference_answers_once_and_leaves_nothing_running(site: Site) -> None:
    run = site.launch(site.recipe("offline"), tags="provision,launch,check")
    assert run.rc == 0, run.stdout
    assert site.running() == {}, "a job is written, not started"
    assert site.launch(site.recipe("offline"), tags="launch,check").changed == {}
    first = site.road.play(*JOB)
    assert first.rc == 0, first.stdout
    for prompt in ("Hello, my name is", "The future of AI is"):
        assert f"Prompt: '{prompt}', Generated text: '" in first.stdout
    node = site.road.node("lay-01")
    assert "No running processes" in node.check_output("npu-smi info"), "its devices are free again"
    assert site.road.play("playbooks/status.yml").rc == 0
    assert site.launch(site.recipe("offline"), tags="launch,check").changed == {}, "a finished job is no drift"


@pytest.mark.thorough
def test_a_changed_job_is_another_generation_and_a_rollback_the_one_before(site: Site) -> None:
    good = site.manifest("lay-01")
    changed = site.recipe("offline", {"jobs": {"offline": {"prompts": ["Once upon a time"]}}})
    assert site.launch(changed).rc == 0
    run = site.road.play(*JOB)
    assert "Once upon a time" in run.stdout
    back = site.road.play("playbooks/rollback.yml", "-e", f"rollback_to={good['number']}")
    assert back.rc == 0, back.stdout
    assert site.manifest("lay-01")["plan_hash"] == good["plan_hash"]
    assert "Hello, my name is" in site.road.play(*JOB).stdout


@pytest.mark.thorough
def test_a_job_that_fails_says_why(site: Site) -> None:
    bad = site.recipe("offline", {"env": {"SIM_FAIL": "weights:EI0006"}})
    assert site.launch(bad).rc == 0
    run = site.road.play(*JOB)
    assert run.rc != 0
    found = [(one["id"], one["host"]) for one in run.stage("job")["findings"] if one["severity"] == "error"]
    assert ("C01", "lay-01") in found
    assert ("job-failed", "lay-01") in found
    unknown = site.road.play("playbooks/job.yml", "-e", "job=nothing")
    assert unknown.rc != 0
    assert {one["id"] for one in unknown.findings() if one["severity"] == "error"} == {"job-unknown"}
    stopped = site.road.play("playbooks/stop.yml")
    assert stopped.rc == 0
    assert site.road.node("lay-01").check_output(f"docker ps -aq --filter label=ascent.cluster={CLUSTER}") == ""
