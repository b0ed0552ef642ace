"""Downloading packages of a distribution: what apt and dnf are asked, and what the archive holds."""

from __future__ import annotations

import doctest
import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from ascent import os_packages
from library import os_packages as module

INSTALLED = """\
Package: libc6
Status: install ok installed
Version: 2.36

Package: base-only
Status: install ok installed
Version: 1

Package: removed
Status: deinstall ok config-files
Version: 1
"""
OFFERED = "Package: docker.io\nVersion: 20\n\nPackage: libc6\nVersion: 2.36\n"


def test_the_examples_hold() -> None:
    assert doctest.testmod(os_packages).failed == 0


def test_only_what_no_source_offers_is_taken_for_installed() -> None:
    assert (
        os_packages.apt_status(INSTALLED, OFFERED) == "Package: base-only\nStatus: install ok installed\nVersion: 1\n"
    )
    assert os_packages.apt_status(INSTALLED, "") != ""
    assert os_packages.apt_status("", OFFERED) == ""


def test_neither_manager_touches_the_system() -> None:
    apt = os_packages.apt_download(["docker.io"], "/s/archives", "/s")
    assert "--download-only" in apt
    for option in ("Dir::State::status=/s/status", "Dir::Cache::archives=/s/archives", "Dir::Cache::pkgcache="):
        assert apt[apt.index(option) - 1] == "-o"
    dnf = os_packages.dnf_download(["docker"], "/s/archives", "/s", "24.03")
    assert {"--downloadonly", "--installroot=/s/root", "--downloaddir=/s/archives", "--releasever=24.03"} <= set(dnf)


class Apt:
    """Stands in for apt and dpkg-deb: downloads two packages, or fails as apt does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: str = "") -> None:
        self.calls: list[list[str]] = []
        self.status = ""
        self.error = error
        monkeypatch.setattr(AnsibleModule, "run_command", lambda _, argv, **more: self.run(argv))
        monkeypatch.setattr(module, "this_system", lambda: "debian-12-x86_64")
        real = open
        monkeypatch.setattr("builtins.open", lambda path, *a, **k: real(self.place(path), *a, **k))
        self.root = ""

    def place(self, path: Any) -> Any:
        return f"{self.root}/status" if path == "/var/lib/dpkg/status" else path

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        self.calls.append(argv)
        if argv[0] == "apt-cache":
            return 0, OFFERED, ""
        if argv[0] == "dpkg-deb":
            return 0, f"Package: {Path(argv[-1]).name.split('_')[0]}\nArchitecture: amd64\n", ""
        option = {word.partition("=")[0]: word.partition("=")[2] for word in argv if "::" in word}
        self.status = Path(option["Dir::State::status"]).read_text()
        archives = Path(option["Dir::Cache::archives"])
        (archives / "lock").write_text("")
        if self.error:
            return 100, "", self.error
        for name in ("docker.io_20_amd64.deb", "libc6_2.36_amd64.deb"):
            (archives / name).write_text(name)
        return 0, "", ""


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "status").write_text(INSTALLED)
    return {"packages": ["docker.io"], "manager": "apt", "dest": str(tmp_path / "out.tar")}


def test_the_archive_is_a_repository_of_its_own(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], tmp_path: Path
) -> None:
    apt = Apt(monkeypatch)
    apt.root = str(tmp_path)
    result = run_module(module, {**arguments, "expect": "debian-12-x86_64"})
    assert result["changed"] is True
    assert result["names"] == ["docker.io_20_amd64.deb", "libc6_2.36_amd64.deb"]
    assert "base-only" in apt.status
    assert "libc6" not in apt.status
    with tarfile.open(arguments["dest"]) as archive:
        assert archive.getnames() == ["Packages", *result["names"]]
        index = archive.extractfile("Packages").read().decode()  # type: ignore[union-attr]
    for name in result["names"]:
        assert f"Filename: ./{name}\nSize: {len(name)}\nSHA256: {hashlib.sha256(name.encode()).hexdigest()}\n" in index
    assert index.count("Package: ") == 2
    assert not list(tmp_path.glob("*.partial"))


def test_a_refusal_names_the_packages_and_leaves_nothing(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], tmp_path: Path
) -> None:
    apt = Apt(monkeypatch, error="E: Unable to locate package docker.io")
    apt.root = str(tmp_path)
    result = run_module(module, arguments)
    assert result["failed"] is True
    assert "Unable to locate package docker.io" in result["msg"]
    assert "apt-get update" in result["msg"]
    assert not os.path.exists(arguments["dest"])


def test_a_host_of_another_release_is_refused(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], tmp_path: Path
) -> None:
    apt = Apt(monkeypatch)
    apt.root = str(tmp_path)
    result = run_module(module, {**arguments, "expect": "openEuler-24.03-aarch64"})
    assert result["failed"] is True
    assert "debian-12-x86_64" in result["msg"]
    assert apt.calls == []


def test_a_dry_run_downloads_nothing(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], tmp_path: Path
) -> None:
    apt = Apt(monkeypatch)
    apt.root = str(tmp_path)
    assert run_module(module, arguments, check=True)["changed"] is True
    assert apt.calls == []
