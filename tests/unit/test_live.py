"""The live view: its lines one by one, and what an operator sees of real runs."""

import json
import re

import pytest

from ascent.findings import finding
from ascent_controller import console
from tests.unit.playbook_runs import play


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (75, "1:15 min"), (3599.6, "1:00 h"), (7325, "2:02 h")]
)
def test_durations(value, text):
    assert console.seconds(value) == text


def test_a_task_is_one_line_with_its_hosts_counted():
    line = console.outcome("Install the driver", {"ok": 2, "changed": 1, "skipped": 0, "failed": 1}, 12.3, width=90)
    assert re.fullmatch(r"  Install the driver ·+  ✓ 2 ok  ~ 1 changed  ✗ 1 failed  12.3 s", line)
    assert len(line) <= 90


def test_a_long_name_is_cut_and_a_short_time_left_out():
    line = console.outcome("x" * 200, {"ok": 3}, 0.2, width=80)
    assert len(line) <= 80
    assert line.endswith("…  ✓ 3 ok")


def test_findings_are_worst_first_and_say_one_thing_once():
    items = [
        finding("G05", "warning", "link down", host="n1", stage="verify", evidence="port 1", fix="nothing"),
        finding("G05", "warning", "link down", host="n2", stage="verify", evidence="port 2", fix="nothing"),
        finding("C06", "error", "TLS differs", stage="verify", evidence="n1 on, n2 off", cause="mixed cards"),
    ]
    assert console.findings(items) == [
        "  ERROR    cluster  C06  TLS differs",
        "           evidence  n1 on, n2 off",
        "           cause     mixed cards",
        "  WARNING  n1, n2   G05  link down",
        "           evidence  n1: port 1",
        "                     n2: port 2",
        "           fix       nothing",
    ]
    assert console.findings([]) == []


def test_long_findings_stay_inside_the_width():
    item = finding("X", "error", "word " * 60, host="n1", evidence="e" * 30 + " " + "text " * 60)
    assert max(map(len, console.findings([item], width=90))) <= 90


def test_tables_align_figures_right():
    content = {"title": "Smoke", "columns": ["figure", "p99"], "rows": [["TTFT (ms)", "12.5"], ["ITL (ms)", "101.0"]]}
    assert console.table(content) == ["  Smoke", "  figure       p99", "  TTFT (ms)   12.5", "  ITL (ms)   101.0"]
    assert console.as_table([["", "p99"], ["TTFT", "1"]]) == {
        "title": "",
        "columns": ["", "p99"],
        "rows": [["TTFT", "1"]],
    }
    assert console.as_table([]) is None


PLAN = {"cluster": "test-cluster", "recipe": "tiny", "endpoint": {"url": "http://192.0.2.11:8010"}, "processes": []}
GOOD = f"""
- name: Plan
  hosts: clusters
  vars: {{ascent_stage: plan}}
  tasks:
    - name: Plan the launch
      tell: {{say: {{record: {{plan.json: {PLAN}}}}}}}
      run_once: true
    - name: Never needed
      tell:
      when: false
- name: Check
  hosts: clusters
  vars: {{ascent_stage: check}}
  tasks:
    - name: Write
      ansible.builtin.copy: {{content: "one\\n", dest: "{{{{ inventory_hostname }}}}.txt", mode: "0600"}}
    - name: Secret
      tell: {{say: {{token: hunter2, findings: [{{id: X, severity: warning, summary: hunter2}}]}}}}
      no_log: true
    - name: Ask
      tell:
        say:
          answers: [{{prompt: The future of AI is, text: bright and simulated, kind: completion}}]
          result: {{simulated: true}}
          table: [["", p99], [TTFT (ms), "12.5"]]
      run_once: true
"""


def test_a_good_run_ends_with_what_the_operator_came_for(tmp_path):
    outcome = play(tmp_path, GOOD, "--diff")
    output = outcome.output
    assert outcome.rc == 0, output
    assert "\x1b" not in output, "no colours where there is no terminal"
    assert re.search(r"── plan ─+ \d\d:\d\d:\d\d", output)
    assert re.search(r"Write ·+  ~ 3 changed", output)
    assert "    +one" in output
    assert "Never needed" not in output
    assert "hunter2" not in output
    assert "answer     The future of AI is bright and simulated" in output
    assert "TTFT (ms)  12.5" in output
    assert re.search(r"stages     plan \S+ s  check \S+ s", output)
    assert "changed    n1 1, n2 1, n3 1" in output
    assert "endpoint   http://192.0.2.11:8010" in output
    assert "simulated  " in output
    assert output.rstrip().splitlines()[-2:] == [
        "verdict    ok",
        f"report     {outcome.latest.resolve().relative_to(tmp_path)}/report.html",
    ]


def test_a_dry_run_says_that_nothing_was_touched(tmp_path):
    outcome = play(tmp_path, GOOD, "--check")
    assert outcome.rc == 0, outcome.output
    assert "dry run    nothing was touched" in outcome.output
    assert "would change n1 1, n2 1, n3 1" in outcome.output
    assert "endpoint" not in outcome.output
    assert not list(tmp_path.glob("n*.txt"))


BAD = """
- name: Verify
  hosts: clusters
  vars: {ascent_stage: verify}
  tasks:
    - name: Judge
      tell:
        fails: "{{ 'the fabric is broken' if inventory_hostname == 'n2' else '' }}"
        say: {findings: [{id: C10, severity: error, host: n2, summary: "link is [down]", fix: "replace"}]}
    - name: Secret fails
      tell: {fails: hunter2}
      no_log: true
    - name: Later
      tell:
"""


def test_failures_are_shown_in_full(tmp_path):
    outcome = play(tmp_path, BAD)
    output = outcome.output
    assert outcome.rc == 2, output
    assert re.search(r"✗ n2  failed: Judge\n      the fabric is broken\n", output)
    assert "  ERROR    n2  C10  link is [down]" in output
    assert "           fix       replace" in output
    assert output.count("C10") == 1, "a finding is shown once, whoever repeats it"
    assert "the output is hidden by no_log" in output
    assert "hunter2" not in output
    assert "failed on  n1, n2, n3" in output
    assert "Later" not in output
    assert "verdict    failed" in output


def test_more_verbose_shows_hosts_as_the_default_view_does(tmp_path):
    outcome = play(tmp_path, BAD, "-v")
    assert "TASK [Judge]" in outcome.output
    assert "fatal: [n2]: FAILED!" in outcome.output
    assert "PLAY RECAP" in outcome.output
    assert "hunter2" not in outcome.output
    assert "verdict    failed" in outcome.output


def test_colours_where_they_are_wanted(tmp_path):
    outcome = play(tmp_path, BAD, environment={"ANSIBLE_FORCE_COLOR": "1"})
    assert re.search("\x1b\\[0;31m✗ n2", outcome.output)


LOOP = """
- name: Provision
  hosts: clusters
  vars: {ascent_stage: provision}
  tasks:
    - name: Loop
      tell: {fails: "{{ item }}", say: {stderr: "detail of {{ item }}"}}
      loop: ["", "the disk is full", "the tag is unknown"]
      when: inventory_hostname == 'n2'
"""


def test_a_failed_loop_shows_what_its_items_said(tmp_path):
    outcome = play(tmp_path, LOOP)
    assert outcome.rc == 2, outcome.output
    assert re.search(r"item the disk is full:\n +the disk is full\n +detail of the disk is full\n", outcome.output)
    assert "the tag is unknown" in outcome.output
    assert "One or more items failed" not in outcome.output
    (found,) = json.loads((outcome.latest / "provision.json").read_text())["findings"]
    assert (found["id"], found["host"]) == ("task-failed", "n2")
    assert found["evidence"].splitlines() == [
        "the disk is full: the disk is full",
        "the disk is full: detail of the disk is full",
        "the tag is unknown: the tag is unknown",
        "the tag is unknown: detail of the tag is unknown",
    ]
