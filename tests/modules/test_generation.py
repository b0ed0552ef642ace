"""The generation module: whole or not at all, drift put right, check mode honest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from library import generation

MANIFEST = {"number": 1, "plan_hash": "h", "processes": {}}
Write = Callable[..., dict[str, Any]]


@pytest.fixture
def write(run_module: Callable[..., dict[str, Any]]) -> Write:
    """Call the module on a root with a small generation; keyword arguments replace its parts."""

    def call(root: Path, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        arguments = {
            "root": str(root),
            "digests": {"quay.io/x:v1": "sha256:1"},
            "number": 1,
            "files": {"head.sh": "#!/bin/bash\n", "plan.json": "{}\n"},
            "manifest": MANIFEST,
        }
        return run_module(generation, {**arguments, **changes}, check=check)

    return call


def test_a_new_generation_is_written_and_current(tmp_path: Path, write: Write) -> None:
    result = write(tmp_path / "c")
    assert result["changed"]
    assert result["written"] == ["head.sh", "manifest.json", "plan.json"]
    current = tmp_path / "c" / "current"
    assert current.is_symlink()
    for name in ("head.sh", "plan.json", "manifest.json"):
        assert (current / name).stat().st_mode & 0o7777 == 0o640
    for folder in (current, tmp_path / "c" / "generations"):
        assert folder.stat().st_mode & 0o7777 == 0o750
    assert json.loads((current / "manifest.json").read_text()) == MANIFEST


def test_the_second_call_changes_nothing(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    assert not write(tmp_path)["changed"]


def test_check_mode_predicts_and_touches_nothing(tmp_path: Path, write: Write) -> None:
    predicted = write(tmp_path / "c", check=True)
    assert predicted["changed"]
    assert not (tmp_path / "c").exists()
    assert predicted["diff"] == write(tmp_path / "c")["diff"]


def test_drift_is_put_right(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    directory = tmp_path / "generations" / "1"
    (directory / "head.sh").write_text("edited by hand\n")
    (directory / "stray").write_text("left behind\n")
    assert write(tmp_path)["written"] == ["head.sh", "stray"]
    assert (directory / "head.sh").read_text() == "#!/bin/bash\n"
    assert not (directory / "stray").exists()


@pytest.mark.parametrize("mode", [0o666, 0o750, 0o600, 0o4640])
def test_a_file_of_another_mode_is_put_right(tmp_path: Path, write: Write, mode: int) -> None:
    write(tmp_path)
    script = tmp_path / "generations" / "1" / "head.sh"
    script.chmod(mode)
    predicted = write(tmp_path, check=True)
    assert (predicted["changed"], predicted["written"]) == (True, ["head.sh"])
    assert script.stat().st_mode & 0o7777 == mode
    (told,) = predicted["diff"]
    assert told["before_header"] == str(script)
    assert f"mode {mode:04o}, " in told["before"]
    assert "mode 0640, " in told["after"]
    held = script.open()
    assert write(tmp_path)["diff"] == predicted["diff"]
    assert script.stat().st_mode & 0o7777 == 0o640
    assert script.read_text() == "#!/bin/bash\n"
    assert os.fstat(held.fileno()).st_ino != script.stat().st_ino, "who had it open can't change what is there now"
    held.close()
    assert not write(tmp_path)["changed"]


def test_a_link_in_place_of_a_script_is_put_right(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "c")
    script, elsewhere = tmp_path / "c" / "generations" / "1" / "head.sh", tmp_path / "mine.sh"
    elsewhere.write_text("#!/bin/bash\n")
    script.unlink()
    script.symlink_to(elsewhere)
    assert write(tmp_path / "c")["written"] == ["head.sh"]
    assert not script.is_symlink()
    assert elsewhere.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_is_put_right(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    plan = tmp_path / "generations" / "1" / "plan.json"
    os.chown(plan, 65534, 65534)
    result = write(tmp_path)
    assert result["written"] == ["plan.json"]
    assert "owner 65534:65534" in result["diff"][0]["before"]
    assert (plan.stat().st_uid, plan.stat().st_gid) == (0, os.getegid())
    assert not write(tmp_path)["changed"]


def test_folders_are_closed_again(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    folders = [tmp_path / "generations", tmp_path / "generations" / "1"]
    for folder in folders:
        folder.chmod(0o777)
    predicted = write(tmp_path, check=True)
    assert (predicted["changed"], predicted["written"]) == (True, [])
    assert [part["before_header"] for part in predicted["diff"]] == [str(folder) for folder in folders]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o777}
    assert write(tmp_path)["diff"] == predicted["diff"]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o750}
    assert not write(tmp_path)["changed"]


def test_the_diff_is_against_what_is_current(tmp_path: Path, write: Write) -> None:
    write(tmp_path)
    files = {"head.sh": "#!/bin/bash\nexec new\n", "plan.json": "{}\n"}
    result = write(tmp_path, number=2, files=files, manifest={**MANIFEST, "number": 2})
    headers = [part.get("before_header") for part in result["diff"]]
    assert headers == ["head.sh", "manifest.json", None]
    assert (tmp_path / "current").readlink() == Path("generations/2")
    assert (tmp_path / "generations" / "1" / "head.sh").read_text() == "#!/bin/bash\n"


def test_a_half_written_generation_is_swept_away(tmp_path: Path, write: Write) -> None:
    (tmp_path / "generations" / ".new-left").mkdir(parents=True)
    write(tmp_path)
    assert sorted(path.name for path in (tmp_path / "generations").iterdir()) == ["1"]


def test_without_a_plan_it_says_what_to_do(tmp_path: Path, write: Write) -> None:
    result = write(tmp_path, number=None)
    assert result["failed"]
    assert "action plugin" in result["msg"]


def test_directories_that_containers_mount_are_made_once(tmp_path: Path, write: Write) -> None:
    wanted = [str(tmp_path / "cache"), str(tmp_path)]
    predicted = write(tmp_path / "c", check=True, directories=wanted)
    assert (predicted["changed"], predicted["made"]) == (True, wanted[:1])
    assert not (tmp_path / "cache").exists()
    assert write(tmp_path / "c", directories=wanted)["made"] == wanted[:1]
    assert (tmp_path / "cache").is_dir()
    assert not write(tmp_path / "c", directories=wanted)["changed"]
