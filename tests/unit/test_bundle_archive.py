"""A bundle as one file: made as a stream, and nothing of it used before it was compared with its seal."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ascent.errors import AscentError
from ascent_controller import bundle, bundle_archive, bundle_files
from ascent_controller.progress import Progress
from tests.unit import playbook_runs


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    directory = tmp_path / "made" / "bundle"
    files = {
        "bundle.json": "{}",
        "wheels/a.whl": "wheel" * 1000,
        "driver/b c.run": "driver",
        "weights/O/M/x": "w" * 5000,
    }
    for name, text in files.items():
        bundle_files.write(directory / name, text)
    bundle_files.write(directory / "setup", "#!/bin/sh\n", 0o755)
    bundle_files.seal(directory, kept(tmp_path))
    return directory


@pytest.fixture
def packed(sealed: Path, tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    bundle_archive.pack(sealed, tmp_path / "site" / "b.tar", print)
    return tmp_path / "site" / "b.tar"


def kept(tmp_path: Path) -> bundle_files.Kept:
    return bundle_files.Kept(tmp_path / "kept.json")


def unpack(archive: Path, tmp_path: Path, seal: str = "") -> list[Any]:
    return bundle_archive.unpack(archive, archive.with_suffix(""), kept(tmp_path), seal, print)


def test_a_file_holds_the_whole_bundle(packed: Path, sealed: Path, tmp_path: Path) -> None:
    assert unpack(packed, tmp_path) == []
    directory = packed.with_suffix("")
    assert bundle_files.verify(directory, kept(tmp_path)) == []
    assert {name: (directory / name).read_bytes() for name in bundle_files.listing(directory)} == {
        name: (sealed / name).read_bytes() for name in bundle_files.listing(sealed)
    }
    assert os.access(directory / "setup", os.X_OK)
    assert not os.access(directory / "bundle.json", os.X_OK)
    assert bundle_archive.seal_of(packed) == hashlib.sha256((sealed / bundle.SUMS).read_bytes()).hexdigest()


def test_its_own_checksum_lies_beside_it(packed: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "--check", "b.tar.sha256"], cwd=packed.parent, check=True)


def test_any_tar_unpacks_it(packed: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", packed], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "--quiet", "--strict", "--check", bundle.SUMS], cwd=tmp_path / "bundle", check=True)


def test_the_same_bundle_gives_the_same_bytes(packed: Path, sealed: Path, tmp_path: Path) -> None:
    os.utime(sealed / "bundle.json")
    again = tmp_path / "again.tar"
    bundle_archive.pack(sealed, again, print)
    assert again.read_bytes() == packed.read_bytes()


def test_what_is_not_as_it_was_sealed_is_not_packed(sealed: Path, tmp_path: Path) -> None:
    (sealed / "driver/b c.run").write_text("dr1ver")
    with pytest.raises(AscentError, match=r"b c\.run is not what was sealed"):
        bundle_archive.pack(sealed, tmp_path / "b.tar", print)
    assert not (tmp_path / "b.tar").exists()


def test_unpacked_once_it_is_not_written_again(packed: Path, tmp_path: Path) -> None:
    assert unpack(packed, tmp_path) == []
    directory = packed.with_suffix("")
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    assert unpack(packed, tmp_path) == []
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_what_was_hashed_on_the_way_is_not_read_again(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = bundle_files.sha256
    monkeypatch.setattr(bundle_files, "sha256", lambda file: read.append(file.name) or real(file))
    assert unpack(packed, tmp_path) == []
    assert bundle_files.verify(packed.with_suffix(""), kept(tmp_path)) == []
    assert read == []


def test_an_interrupted_unpacking_goes_on(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    place = whole.index(b"w" * 5000)
    packed.write_bytes(whole[: place + 600])
    with pytest.raises(AscentError, match="ends too early"):
        unpack(packed, tmp_path)
    assert not packed.with_suffix("").exists(), "nothing shows before all of it is there"
    partial = packed.parent / "b.partial"
    mark = (partial / "wheels/a.whl").stat().st_mtime_ns if (partial / "wheels/a.whl").exists() else None
    first = (partial / "driver/b c.run").stat().st_mtime_ns
    packed.write_bytes(whole)
    assert unpack(packed, tmp_path) == []
    assert (packed.with_suffix("") / "driver/b c.run").stat().st_mtime_ns == first
    assert mark is None or (packed.with_suffix("") / "wheels/a.whl").stat().st_mtime_ns == mark
    assert bundle_files.verify(packed.with_suffix(""), kept(tmp_path)) == []


def test_a_changed_byte_is_named_and_nothing_is_shown(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes().replace(b"driver" + b"\0" * 10, b"drIver" + b"\0" * 10))
    told = unpack(packed, tmp_path)
    assert [one["id"] for one in told] == ["bundle-changed"]
    assert "driver/b c.run" in told[0]["evidence"]
    assert not packed.with_suffix("").exists()


def rewritten(packed: Path, keep: Any, more: dict[str, bytes] | None = None) -> None:
    """The archive with some members only, and others behind them."""
    with tarfile.open(packed) as old:
        members = [(one, old.extractfile(one).read()) for one in old if keep(one.name)]  # type: ignore[union-attr]
    with tarfile.open(packed, "w") as new:
        for member, content in members:
            new.addfile(member, io.BytesIO(content))
        for name, content in (more or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))


def test_missing_and_surplus_files_are_named(packed: Path, tmp_path: Path) -> None:
    rewritten(packed, lambda name: not name.endswith("a.whl"), {"bundle/more.run": b"x", "bundle/../../out": b"x"})
    told = unpack(packed, tmp_path)
    assert sorted(one["id"] for one in told) == ["bundle-missing", "bundle-surplus"]
    assert "more.run" in str(told)
    assert "../../out" in str(told)
    assert not (tmp_path / "out").exists()
    assert not packed.with_suffix("").exists()


def test_a_list_that_leads_outside_is_not_followed(sealed: Path, tmp_path: Path) -> None:
    content = b"x"
    sums = f"{hashlib.sha256(content).hexdigest()}  ../../out\n".encode()
    seal = f"{hashlib.sha256(sums).hexdigest()}  {bundle.SUMS}\n".encode()
    archive = tmp_path / "site.tar"
    archive.touch()
    with tarfile.open(archive, "w") as new:
        members = {f"bundle/{bundle.SEAL}": seal, f"bundle/{bundle.SUMS}": sums, "bundle/../../out": content}
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            new.addfile(info, io.BytesIO(text))
    told = unpack(archive, tmp_path)
    assert [one["id"] for one in told] == ["bundle-changed"]
    assert not (tmp_path.parent / "out").exists()
    assert not (tmp_path / "out").exists()


def test_the_written_seal_counts(packed: Path, tmp_path: Path) -> None:
    assert [one["id"] for one in unpack(packed, tmp_path, "sha256:" + "0" * 64)] == ["bundle-seal"]
    assert not packed.with_suffix("").exists()
    assert unpack(packed, tmp_path, bundle_archive.seal_of(packed)) == []


def test_another_bundle_at_that_place_is_not_overwritten(packed: Path, tmp_path: Path) -> None:
    other = packed.with_suffix("")
    bundle_files.write(other / "bundle.json", "other")
    bundle_files.seal(other, kept(tmp_path))
    with pytest.raises(AscentError, match="has another seal"):
        unpack(packed, tmp_path)
    assert (other / "bundle.json").read_text() == "other"


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_something_else_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(AscentError, match=r"x\.tar"):
        unpack(tmp_path / "x.tar", tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5))
    with pytest.raises(AscentError, match="5 B are free"):
        unpack(packed, tmp_path)
    assert not packed.with_suffix("").exists()


PLAY = """
- hosts: clusters
  gather_facts: false
  tasks:
    - bundle: {state: verified, path: "%s", archive: "%s"}
      run_once: true
"""


def test_a_run_takes_the_file(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "play").mkdir()
    text = PLAY % (packed.with_suffix(""), packed)
    done = playbook_runs.play(tmp_path / "play", text)
    assert done.rc == 0, done.output
    assert (packed.with_suffix("") / bundle.SEAL).is_file()
    (packed.with_suffix("") / "wheels/a.whl").write_text("x")
    broken = playbook_runs.play(tmp_path / "play", text)
    assert broken.rc != 0
    assert "bundle-changed" in broken.output


def test_progress_tells_share_rate_and_time_left() -> None:
    now = [0.0]
    said: list[str] = []
    progress = Progress("x.tar", 10**9, said.append, clock=lambda: now[0])
    for _ in range(6):
        now[0] += 2
        progress.add(50_000_000)
    assert said == ["x.tar: 15 % of 1.0 GB, 25.0 MB/s, 34.0 s left", "x.tar: 30 % of 1.0 GB, 25.0 MB/s, 28.0 s left"]
