"""The run record: what `Recorder` keeps, and what the callback plugin makes of real runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ascent.errors import AscentError
from ascent.findings import finding
from ascent_controller import rescues, runs
from tests.unit.playbook_runs import play, settings

START = 1_790_000_000.0


def recorder(tmp_path, **options):
    record = runs.Recorder(tmp_path / "runs", START, playbook="deploy.yml", **options)
    record.cluster = "a3-cluster"
    return record


def ran(record, name, host, outcome="ok", result=None, at=START + 2, **options):
    record.begin(name, name, at - 1)
    record.end(name, host, outcome, result or {}, at, **options)


def load(directory: Path, name: str):
    return json.loads((directory / name).read_text())


def test_a_run_without_stages_leaves_nothing(tmp_path):
    record = recorder(tmp_path)
    record.enter(None, START)
    ran(record, "t", "a3-01")
    record.enter("verify", START + 3)
    assert record.finish(START + 4) is None
    assert not (tmp_path / "runs").exists()


def test_stage_file_has_the_keys_of_the_contract(tmp_path):
    record = recorder(tmp_path)
    record.enter("verify", START + 1)
    ran(
        record,
        "look",
        "a3-01",
        result={"findings": [finding("G05", "warning", "down", host="a3-01")], "metrics": {"n": {"a3-01": 1}}},
    )
    ran(
        record,
        "look",
        "a3-02",
        result={"results": [{"findings": [finding("X", "info", "x")]}, {"metrics": {"n": {"a3-02": 2}}}]},
    )
    directory = record.finish(START + 5.5)
    verify = load(directory, "verify.json")
    assert set(verify) == {"ok", "cluster", "stage", "started", "seconds", "findings", "metrics"}
    assert verify["ok"] is True
    assert verify["seconds"] == 4.5
    assert [(item["id"], item["stage"]) for item in verify["findings"]] == [("G05", "verify"), ("X", "verify")]
    assert verify["metrics"] == {"n": {"a3-01": 1, "a3-02": 2}}
    assert directory.name == "20260921T141320Z-a3-cluster"
    assert (tmp_path / "runs" / "latest").resolve() == directory.resolve()


def test_plays_of_one_stage_add_up(tmp_path):
    record = recorder(tmp_path)
    for start, stage in ((0, "provision"), (2, "provision"), (5, "tune"), (6, "provision"), (9, None)):
        record.enter(stage, START + start)
        if stage:
            ran(record, f"t{start}", "a3-01", at=START + start + 1)
    run = load(record.finish(START + 10), "run.json")
    assert [(stage["stage"], stage["seconds"]) for stage in run["stages"]] == [("provision", 8.0), ("tune", 1.0)]


def test_rounds_count_tasks_that_ran_on_a_cluster_host(tmp_path):
    record = recorder(tmp_path)
    record.enter("tune", START)
    ran(record, "both", "a3-01")
    ran(record, "both", "a3-02", "changed")
    ran(record, "one", "a3-01", "skipped")
    ran(record, "one", "a3-02", "failed", {"msg": "no"})
    ran(record, "none", "a3-01", "skipped")
    ran(record, "controller", "a3-01", on_controller=True)
    run = load(record.finish(START + 4), "run.json")
    assert run["rounds"] == run["stages"][0]["rounds"] == 2
    assert run["changed"] == 1
    assert run["hosts"]["a3-02"] == {
        "ok": 1,
        "changed": 1,
        "failed": 1,
        "skipped": 0,
        "unreachable": 0,
        "ignored": 0,
        "rescued": 0,
    }


def test_errors_fail_the_stage_and_causes_stay_first(tmp_path):
    record = recorder(tmp_path)
    record.enter("launch", START)
    told = [finding("C01", "error", "cause", host="a3-03"), finding("D03", "error", "echo", host="a3-01")]
    ran(record, "watch", "a3-01", "failed", {"msg": "the launch failed", "findings": told})
    ran(record, "say so", "a3-01", "failed", {"msg": "2 findings"}, action="ansible.builtin.fail")
    directory = record.finish(START + 4)
    launch = load(directory, "launch.json")
    assert launch["ok"] is False
    assert [item["id"] for item in launch["findings"]] == ["C01", "D03"]
    assert load(directory, "run.json")["ok"] is False


@pytest.mark.parametrize(("outcome", "wanted"), [("failed", "task-failed"), ("unreachable", "host-unreachable")])
def test_a_plain_failure_becomes_a_finding(tmp_path, outcome, wanted):
    record = recorder(tmp_path)
    record.enter("provision", START)
    ran(record, "Install", "a3-02", outcome, {"msg": "dpkg is locked", "stderr": "E: lock"})
    found = load(record.finish(START + 4), "provision.json")["findings"]
    assert [(item["id"], item["host"]) for item in found] == [(wanted, "a3-02")]
    assert found[0]["evidence"] == "dpkg is locked\nE: lock"


def test_a_plain_failure_whose_words_are_known_gets_their_cause(tmp_path):
    record = recorder(tmp_path)
    record.enter("launch", START)
    said = 'Error starting container: error gathering device information while adding custom device "/dev/davinci9"'
    item = {"msg": f"{said}: no such file or directory", "failed": True, "_ansible_item_label": "decode-0-head"}
    ran(record, "Run the processes", "a3-02", "failed", {"msg": "One or more items failed", "results": [item]})
    (found,) = load(record.finish(START + 4), "launch.json")["findings"]
    assert (found["id"], found["host"], found["stage"]) == ("A05", "a3-02", "launch")
    assert "Run the processes" in found["evidence"]
    assert "decode-0-head: Error starting container" in found["evidence"]
    assert "ls /dev/davinci*" in found["fix"]


def test_a_rescue_knows_what_it_was_for():
    told = finding("C01", "error", "cause", host="a3-03")
    known = {"findings": [told, finding("x", "info", "aside")], "msg": "the launch failed"}
    hostvars = {
        "a3-01": {"ansible_failed_result": known, "ansible_failed_task": {"name": "Watch"}},
        "a3-02": {"ansible_failed_result": known, "ansible_failed_task": {"name": "Watch"}},
        "a3-03": {"ansible_failed_result": {"msg": "dpkg is locked"}, "ansible_failed_task": {"name": "Install"}},
        "a3-04": {},
    }
    found = rescues.reasons(hostvars, list(hostvars), "launch")
    assert found[0] == told
    assert [(one["id"], one["host"], one["summary"]) for one in found[1:]] == [
        ("task-failed", "a3-03", "Task failed: Install")
    ]


@pytest.mark.parametrize("outcome", ["ignored", "rescued", "skipped"])
def test_forgiven_failures_fail_nothing(tmp_path, outcome):
    record = recorder(tmp_path)
    record.enter("provision", START)
    ran(record, "t", "a3-02", outcome, {"msg": "no matter"})
    assert load(record.finish(START + 4), "provision.json")["ok"] is True


def test_records_logs_and_the_plan(tmp_path):
    record = recorder(tmp_path)
    record.enter("plan", START)
    plan = {"cluster": "b-cluster", "recipe": "tiny", "processes": []}
    ran(
        record,
        "t",
        "a3-01",
        result={"record": {"plan.json": plan, "smoke_bench": {"simulated": True}}, "logs": {"decode-0": "line\n"}},
    )
    directory = record.finish(START + 4)
    assert runs.read_plan(directory) == plan
    assert load(directory, "plan.json")["ok"] is True, "the verdict of a stage keeps its name"
    assert load(directory, "smoke_bench.json") == {"simulated": True}
    assert (directory / "logs" / "decode-0.log").read_text() == "line\n"
    run = load(directory, "run.json")
    assert (run["cluster"], run["recipe"], run["simulated"]) == ("b-cluster", "tiny", True)
    assert "simulated" in (directory / "report.html").read_text()


@pytest.mark.parametrize("name", ["../x", "run.json", "report.html", "", "a/b"])
def test_a_record_can_not_leave_its_folder_or_replace_ours(tmp_path, name):
    record = recorder(tmp_path)
    record.enter("plan", START)
    with pytest.raises(AscentError, match="can't be a file"):
        ran(record, "t", "a3-01", result={"record": {name: 1}})


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path):
    names = []
    for _ in range(2):
        record = recorder(tmp_path)
        record.enter("plan", START)
        ran(record, "t", "a3-01")
        names.append(record.finish(START + 4).name)
    assert names == ["20260921T141320Z-a3-cluster", "20260921T141320Z-a3-cluster-2"]


def test_what_is_no_finding_is_told(tmp_path):
    record = recorder(tmp_path)
    record.enter("plan", START)
    ran(record, "t", "a3-01", result={"findings": ["text", {"id": "x", "severity": "fatal"}]})
    found = load(record.finish(START + 4), "plan.json")["findings"]
    assert [item["id"] for item in found] == ["finding-malformed"] * 2


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("api_key=abc recipe=x", "api_key=*** recipe=x"),
        ('{"vault_password": "a b", "n": 1}', '{"vault_password": ***, "n": 1}'),
        ("hf_token='a b' x=y", "hf_token=*** x=y"),
        ("recipe=recipes/x.yml", "recipe=recipes/x.yml"),
    ],
)
def test_secrets_of_the_command_line_are_masked(argument, wanted):
    assert runs.masked([argument]) == [wanted]


def test_find_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("ASCENT_RUNS_DIR", str(tmp_path))
    with pytest.raises(AscentError, match="latest"):
        runs.find()


STAGED = """
- name: Verify
  hosts: clusters
  vars: {ascent_stage: verify}
  tasks:
    - name: Look
      tell:
        say:
          changed: "{{ inventory_hostname == 'n2' }}"
          findings: [{id: G05, severity: warning, host: "{{ inventory_hostname }}", summary: down}]
    - name: Secret
      tell: {say: {findings: [{id: hunter2, severity: error, summary: hunter2}]}}
      no_log: true
    - name: Loop
      tell: {say: {findings: [{id: "L{{ item }}", severity: info, summary: item}]}}
      loop: [1, 2]
      run_once: true
    - block:
        - name: Rescued
          tell: {fails: no luck}
      rescue:
        - name: Rescue
          tell:
    - name: Controller
      tell:
      delegate_to: localhost
      run_once: true
- name: Launch
  hosts: clusters
  vars: {ascent_stage: launch}
  any_errors_fatal: true
  tasks:
    - name: Break
      tell: {fails: "{{ 'n3 is broken' if inventory_hostname == 'n3' else '' }}"}
- name: Check
  hosts: clusters
  vars: {ascent_stage: check}
  tasks:
    - name: Never
      tell:
"""


def test_a_failing_run_is_recorded(tmp_path):
    outcome = play(tmp_path, STAGED, "-e", "api_key=abc")
    assert outcome.rc == 2, outcome.output
    run = load(outcome.latest, "run.json")
    assert [(stage["stage"], stage["ok"], stage["rounds"]) for stage in run["stages"]] == [
        ("verify", True, 5),
        ("launch", False, 1),
    ]
    assert (run["cluster"], run["changed"], run["ok"]) == ("test-cluster", 1, False)
    assert run["arguments"] == ["play.yml", "-e", "api_key=***"]
    assert {item["id"] for item in load(outcome.latest, "verify.json")["findings"]} == {"G05", "L1", "L2"}
    launch = load(outcome.latest, "launch.json")["findings"]
    assert [(item["host"], item["evidence"]) for item in launch] == [("n3", "n3 is broken")]
    assert not (outcome.latest / "check.json").exists()
    assert "hunter2" not in "".join(path.read_text() for path in outcome.latest.iterdir())
    assert "n3 is broken" in (outcome.latest / "report.html").read_text()
    assert "report.html" in outcome.output


def test_a_broken_record_warns_and_the_run_goes_on(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    playbook = (
        "- {name: P, hosts: n1, vars: {ascent_stage: plan}, tasks: [{name: T, tell: {say: {record: {a.json: 1}}}}]}"
    )
    outcome = play(tmp_path, f"[{playbook[2:]}]", environment={"ASCENT_RUNS_DIR": str(blocked)})
    assert outcome.rc == 0, outcome.output
    assert "run record is incomplete" in outcome.output


def test_an_interrupted_run_leaves_what_it_had(tmp_path):
    (tmp_path / "play.yml").write_text(
        "- {name: A, hosts: n1, vars: {ascent_stage: tune}, tasks: [{name: T, tell: }]}\n"
        "- {name: B, hosts: n1, vars: {ascent_stage: launch}, tasks: [{name: W, shell: echo up > $PWD/up; sleep 9}]}\n"
    )
    environment = settings(tmp_path)
    os.mkfifo(tmp_path / "up")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "play.yml"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert (tmp_path / "up").read_text() == "up\n", "the task runs"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout is not None
        rest = process.stdout.read()
    assert process.returncode != 0, rest
    run = load(tmp_path / "runs" / "latest", "run.json")
    assert (run["interrupted"], run["ok"]) == (True, False)
    assert [(stage["stage"], stage["ok"]) for stage in run["stages"]] == [("tune", True), ("launch", False)]


def test_a_record_never_takes_the_place_of_an_earlier_stage_s_verdict(tmp_path):
    record = recorder(tmp_path)
    record.enter("plan", START)
    ran(record, "t", "a3-01", result={"record": {"plan.json": {"recipe": "one", "processes": []}}})
    record.enter("launch", START + 1)
    ran(record, "u", "a3-01", result={"record": {"plan.json": {"recipe": "two", "processes": []}}})
    directory = record.finish(START + 4)
    assert load(directory, "plan.json")["findings"] == []
    assert load(directory, "plan.record.json")["recipe"] == "two"
    assert (directory.parent / "latest").resolve() == directory.resolve()
