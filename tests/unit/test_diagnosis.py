"""Which cause is named for which log."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ascent import diagnosis
from ascent.errors import InputError
from ascent_controller import signatures

CATALOGUE = signatures.load()
EXAMPLES = yaml.safe_load((Path(__file__).parent / "findings_examples.yml").read_text())
NEAR_MISSES = yaml.safe_load((Path(__file__).parent / "findings_near_misses.yml").read_text())


def ids(findings):
    return [item["id"] for item in findings]


@pytest.mark.parametrize(("line", "wanted"), [(line, key) for key in EXAMPLES for line in EXAMPLES[key]])
def test_known_lines(line, wanted):
    expected = [] if wanted == "none" else [wanted]
    assert ids(diagnosis.diagnose(f"INFO loading\n{line}\n", CATALOGUE)) == expected


@pytest.mark.parametrize(("line", "id"), [(line, key) for key in NEAR_MISSES for line in NEAR_MISSES[key]])
def test_lines_that_are_close_are_no_finding(line, id):
    assert id not in ids(diagnosis.diagnose(line, CATALOGUE))


def test_every_entry_has_an_example_and_a_near_miss():
    assert {entry["id"] for entry in CATALOGUE["findings"]} == set(EXAMPLES) - {"none"} == set(NEAR_MISSES)
    assert len(CATALOGUE["findings"]) >= 80


def test_healthy_lines_end_no_watch():
    for line in EXAMPLES["none"]:
        assert not [p for p in diagnosis.fatal_patterns(CATALOGUE) if re.search(p, line, re.IGNORECASE)], line


def test_memory_held_by_others_is_told_from_our_own():
    line = "NPU out of memory. (NPU 0; 60.96 GiB total capacity; {0} GiB allocated; {0} GiB reserved)"
    assert ids(diagnosis.diagnose(line.format("9.50"), CATALOGUE)) == ["A11"]
    assert ids(diagnosis.diagnose(line.format("58.10"), CATALOGUE)) == ["D22"]


def test_root_cause_comes_before_its_echo_in_one_log():
    text = (
        "EI0006 timeout\nRuntimeError: Engine core initialization failed\nlibatb.so: cannot open shared object file\n"
    )
    found = diagnosis.diagnose(text, CATALOGUE, host="a3-02", process="decode-0")
    assert ids(found) == ["B02", "C01"]
    assert found[0]["host"] == "a3-02"
    assert found[0]["evidence"].startswith("decode-0, line 3: ")


@pytest.mark.parametrize(
    "line", ["EngineCore failed to start.", "ERR99999 UNKNOWN application exception", "EZ9999: Inner Error"]
)
def test_wrappers_are_fatal_but_never_a_cause(line):
    assert diagnosis.diagnose(line, CATALOGUE) == []
    assert any(re.search(p, line, re.IGNORECASE) for p in diagnosis.fatal_patterns(CATALOGUE))


def test_first_in_time_over_ranks():
    logs = {
        "a": "2026-08-22T10:02:00.5Z [EI0006] wait socket establish timeout\n",
        "b": "2026-08-22T10:00:09Z loading\n2026-08-22T10:00:10Z ZMQError: Address already in use\n",
        "c": "2026-08-22T10:02:00.1Z [EI0006] wait socket establish timeout\n2026-08-22T10:03:00Z DistNetworkError\n",
    }
    found = diagnosis.diagnose_all(logs, CATALOGUE, hosts={"b": "a3-02"})
    assert ids(found) == ["E01", "D02", "C01"]
    assert found[0]["host"] == "a3-02"
    assert "also in a" in found[2]["evidence"]


def test_clocks_that_differ_are_set_right():
    logs = {
        "late": "2026-08-22T10:00:20Z [EI0006] wait socket establish timeout\n",
        "early": "2026-08-22T10:01:30Z ZMQError: Address already in use\n",
    }
    assert ids(diagnosis.diagnose_all(logs, CATALOGUE)) == ["C01", "E01"]
    found = diagnosis.timed(logs, CATALOGUE, ahead={"early": 90.0})
    assert [(since, item["id"]) for since, item in found] == [(1787392800.0, "E01"), (1787392820.0, "C01")]


def test_an_unknown_failure_still_has_lines_that_tell_of_it():
    noise = [f"(APIServer pid=1) INFO step {number}" for number in range(50)]
    lines = [
        *noise,
        "(Worker_TP0 pid=7) ERROR 08-22 10:00:00 [gear.py:3] the gear box is empty",
        "(Worker_TP0 pid=7) Traceback (most recent call last):",
        '(Worker_TP0 pid=7)   File "/x/gear.py", line 3, in shift',
        "(Worker_TP0 pid=7) GearError: no gear 5",
        "(Worker_TP1 pid=8) GearError: no gear 6",
        "(EngineCore_DP0 pid=6) ERROR EngineCore failed to start.",
        *noise,
    ]
    told = diagnosis.telling("\n".join(lines), CATALOGUE)
    assert told == [lines[50], lines[53]]
    assert diagnosis.telling("\n".join(noise), CATALOGUE, most=2) == noise[-2:], "nothing tells: the end does"
    many = "\n".join(f"OddError: {letter}" for letter in "abcdefghij")
    assert diagnosis.telling(many, CATALOGUE, most=3) == ["OddError: a", "OddError: b", "OddError: c"]


def test_a_waiting_head_is_no_cause_when_something_died():
    logs = {
        "head": "2026-08-22T10:00:00Z Waiting for 0 local, 8 remote core engine proc(s) to connect.\n",
        "worker": "2026-08-22T10:00:30Z libatb.so: cannot open shared object file\n",
    }
    assert ids(diagnosis.diagnose_all(logs, CATALOGUE)) == ["B02", "D03"]


def test_ranks_decide_where_stamps_are_missing():
    logs = {"a": "EI0006\n", "b": "ZMQError: Address already in use\n"}
    assert ids(diagnosis.diagnose_all(logs, CATALOGUE)) == ["E01", "C01"]


def test_exit_code_speaks_when_the_log_does_not():
    assert diagnosis.by_exit_code(137, CATALOGUE, host="a3-01", process="p")["id"] == "D28"
    assert diagnosis.by_exit_code(1, CATALOGUE) is None


def test_bad_catalogue_is_refused_with_every_mistake(tmp_path):
    (tmp_path / "x.yml").write_text("findings: [{id: X1, rank: odd, signatures: ['(']}]\nwrappers: ['[']\n")
    with pytest.raises(InputError) as caught:
        signatures.load(tmp_path)
    text = str(caught.value)
    assert len(caught.value.findings) == 4
    assert "rank is 'odd'" in text
    assert "cause, fix" in text


def test_reference_page_is_current():
    tool = Path(__file__).parents[2] / "tools" / "findings_reference.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_page_of_detection_times_is_current():
    tool = Path(__file__).parents[2] / "tools" / "detection_reference.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
