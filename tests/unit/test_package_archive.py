"""Packages without a repository, and what a package manager's failure means."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ascent import package_archive
from ascent.errors import AscentError


def test_a_directory_becomes_a_repository(tmp_path: Path) -> None:
    (tmp_path / "b.deb").write_bytes(b"content")
    (tmp_path / "a.deb").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("no package")
    text = package_archive.index(str(tmp_path), lambda path: f"Package: {Path(path).stem}\nVersion: 1\n")
    assert text.split("\n\n")[1].splitlines() == [
        "Package: b",
        "Version: 1",
        "Filename: ./b.deb",
        "Size: 7",
        f"SHA256: {hashlib.sha256(b'content').hexdigest()}",
    ]
    update, install = package_archive.commands("apt", str(tmp_path), ["docker.io"], 7)
    for command in (update, install):
        assert "Dir::Etc::SourceParts=/dev/null" in command
        assert "DPkg::Lock::Timeout=7" in command
    assert install[-2:] == ["install", "docker.io"]


def test_dnf_takes_the_directory_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "docker-engine.rpm").write_bytes(b"x")
    (command,) = package_archive.commands("dnf", str(tmp_path), ["docker-engine"], 7)
    assert "--disablerepo=*" in command
    assert command[-2:] == ["install", str(tmp_path / "docker-engine.rpm")]


def test_an_empty_directory_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(AscentError, match=r"wanted \.deb packages in .*, found none"):
        package_archive.index(str(tmp_path), lambda path: "")
    with pytest.raises(AscentError, match=r"wanted \.rpm packages in .*, found none"):
        package_archive.commands("dnf", str(tmp_path), ["x"], 7)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (apt-get)", "B16"),
        (
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
            "B16",
        ),
        ("Failed to lock apt for exclusive operation: Failed to lock directory /var/lib/apt/lists/", "B16"),
        ("yum lockfile is held by another process\nError: Failed to obtain the transaction lock", "B16"),
        ("No package matching 'docker.io' is available", "packages-not-installed"),
        ("dpkg: error processing package docker.io", "packages-not-installed"),
    ],
)
def test_a_failure_has_a_name(text: str, fault: str) -> None:
    told = package_archive.explain(text, ["docker.io"], "n1")
    assert (told["id"], told["severity"], told["host"]) == (fault, "error", "n1")
    assert text in told["evidence"]
    assert ("lack" in told["cause"]) == ("No package" in text)
