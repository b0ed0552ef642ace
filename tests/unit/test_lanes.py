"""tools/lanes.py: what runs side by side, and that the end of the output tells what failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import lanes

MAKEFILE = """
good: ; @echo built
bad: ; @echo the reason; exit 3
long: ; @for n in $$(seq 300); do echo line $$n; done; false
"""


@pytest.fixture
def makefile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("makefile")
def test_all_targets_run_and_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert lanes.main(["good", "good"]) == 0
    assert capsys.readouterr().out.count("good | built\n") == 2


@pytest.mark.usefixtures("makefile")
def test_what_failed_stands_at_the_end_and_the_others_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert lanes.main(["bad", "good"]) == 1
    end = capsys.readouterr().out.split("== the end of ")[1]
    assert end.startswith("bad, which failed\nthe reason\n")
    assert end.splitlines()[-2].startswith("bad  | failed after")
    assert end.splitlines()[-1].startswith("good | passed after")


@pytest.mark.usefixtures("makefile")
def test_of_a_long_output_the_last_lines_are_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert lanes.main(["long"]) == 1
    end = capsys.readouterr().out.split("== the end of ")[1]
    assert "\nline 300\n" in end
    assert "\nline 100\n" not in end
