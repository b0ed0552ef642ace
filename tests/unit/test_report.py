"""The report: one file, everything escaped, nothing fetched."""

import json
import re
from html.parser import HTMLParser

import pytest

from ascent.errors import AscentError
from ascent.findings import finding
from ascent_controller import report, runs
from tests.unit.playbook_runs import ROOT, play

EVIL = "<script>alert('&')</script>"
VOID = {"meta", "rect", "line", "path", "circle", "polygon", "br", "use", "stop", "ellipse"}


class Checker(HTMLParser):
    """Collects tags, and complains of tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


MEMORY = {
    "decode": {
        "known": True,
        "budget_bytes": 60 * 2**30,
        "weights_bytes": 30 * 2**30,
        "overhead_bytes": 2**29,
        "kv_bytes": 2**30,
        "sequence_bytes": None,
        "sequences": None,
        "arithmetic": "weights 397e9 * 1 B",
    },
    "other": {"known": False, "reason": EVIL},
}


def recorded(tmp_path, *, bad=False, check_mode=False):
    record = runs.Recorder(
        tmp_path / "runs", 1_790_000_000.0, playbook="deploy.yml", arguments=[EVIL], check_mode=check_mode
    )
    record.cluster = "a3-cluster"
    plan = {
        "cluster": "a3-cluster",
        "recipe": EVIL,
        "summary": "Three nodes",
        "endpoint": {"url": "http://192.0.2.11:8010"},
    }
    plan["processes"] = [
        {
            "name": "p",
            "host": "n1",
            "role": "serve",
            "devices": [0, 1, 2],
            "ports": [{"name": "api", "first": 80, "count": 1}],
        }
    ]
    requests = [
        {"start_s": n / 4, "end_s": n / 4 + 2, "ttft_ms": 100.0 + n, "itl_ms": [20.0 + n, 30.0], "error": None}
        for n in range(8)
    ]
    figures = {"mean": 1.5, "p50": 1.25, "p99": 3.0}
    bench = {"simulated": True, "completed": 8, "conditions": {"model": EVIL}, "ttft_ms": figures, "requests": requests}
    result = {
        "findings": [finding("X1", "error" if bad else "warning", EVIL, host="n1", evidence=EVIL, cause="c", fix="f")],
        "record": {"plan.json": plan, "smoke_bench.json": bench},
        "answer": {"prompt": "2+2?", "text": EVIL},
        "logs": {"p": f"line\n{EVIL}\n"},
        "metrics": {"versions": {"driver": "25.5.0"}, "memory": MEMORY},
    }
    record.enter("check", 1_790_000_000.0)
    record.begin("t", EVIL, 1_790_000_001.0)
    record.end("t", "n1", "changed", result, 1_790_000_003.0)
    return record.finish(1_790_000_004.0)


def parsed(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def test_the_table_of_nodes_is_in_the_report(tmp_path):
    folder = recorded(tmp_path)
    assert "Nodes before the run" not in report.html(folder)
    table = {
        "title": "Nodes before the run",
        "columns": ["host", "driver"],
        "rows": [["a3-01", None], [EVIL, "25.5.2"]],
    }
    (folder / "nodes.json").write_text(json.dumps(table))
    text = report.html(folder)
    assert "Nodes before the run" in text
    assert "a3-01" in text
    assert EVIL not in text


def test_the_report_is_whole_escaped_and_fetches_nothing(tmp_path):
    text = report.html(recorded(tmp_path))
    tags = parsed(text).tags
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "img", "object")]
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "prefers-color-scheme" in text


def test_every_part_is_there(tmp_path):
    text = report.html(recorded(tmp_path))
    for words in (
        *("a3-cluster", "Three nodes", "http://192.0.2.11:8010", "simulated", "stages over time", "X1", "2+2?"),
        *("TTFT (ms)", "1.25", "Time to first token", "8 values", "16 values", "Requests over time", "api 80", "0-2"),
        *("Hosts", "Slowest tasks", "last 2 of 2 lines", "25.5.0"),
    ):
        assert words in text, words


def test_the_verdict_leads(tmp_path):
    assert '<span class="verdict">failed</span>' in report.html(recorded(tmp_path, bad=True))
    good = report.html(recorded(tmp_path))
    assert '<span class="verdict">ok</span><span class="stamp">simulated</span>' in good
    dry = report.html(recorded(tmp_path, check_mode=True))
    assert "nothing was touched" in dry
    assert "endpoint http" not in dry


def test_a_plan_that_can_not_be_drawn_is_said(tmp_path):
    assert "could not be drawn" in report.html(recorded(tmp_path)), "this plan lacks what a picture needs"


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(AscentError, match=r"run\.json"):
        report.html(tmp_path)


@pytest.mark.parametrize(
    ("total", "last"), [(0.004, 0.004), (1.0, 1.0), (7, 6), (59, 50), (220, 180), (3700, 3600), (90_000, 90_000)]
)
def test_ticks_are_round_and_few(total, last):
    ticks = report._ticks(total)
    assert 3 <= len(ticks) <= 8
    assert ticks[-1] == pytest.approx(last)


def test_the_playbook_writes_a_report_again(tmp_path):
    directory = recorded(tmp_path)
    (directory / "report.html").unlink()
    playbook = (ROOT / "playbooks" / "report.yml").read_text()
    outcome = play(tmp_path, playbook)
    assert outcome.rc == 0, outcome.output
    assert (directory / "report.html").read_text() == report.html(directory)
    again = play(tmp_path, playbook, "-e", f"run={directory.name}")
    assert "~ 1 changed" not in again.output
    assert json.loads((outcome.latest / "run.json").read_text())["playbook"] == "deploy.yml", "no record of its own"
    missing = play(tmp_path, playbook, "-e", "run=nowhere")
    assert missing.rc == 2
    assert "no run record at nowhere" in missing.output
