"""ascend_docker_runtime with an installer of our own that asks, records and edits as Huawei's does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from library import ascend_docker_runtime

INSTALLER = """#!/bin/sh
# --install|--upgrade --install-path=P --config-file-path=F; asks for the licence first.
read -r answer
[ "$answer" = Y ] || { echo 'Do you accept the EULA?'; exit 1; }
path=${2#--install-path=}
settings=${3#--config-file-path=}
[ -w "$settings" ] || { echo "[ERROR] $settings is invalid"; exit 1; }
echo '{"default-runtime": "ascend"}' >"$settings"
[ -z "$BROKEN" ] || { echo '[ERROR] install failed'; exit 1; }
mkdir -p "$path"
echo "$1" >>"$path/calls"
printf 'version=v%s\\narch=aarch64\\n' "$(basename "$0" | cut -d_ -f2)" >"$path/ascend_docker_runtime_install.info"
"""


@pytest.fixture
def wish(tmp_path: Path) -> dict[str, Any]:
    package = tmp_path / "Ascend-docker-runtime_7.1.RC1_linux-aarch64.run"
    package.write_text(INSTALLER)
    return {"package": str(package), "accept_licence": True, "install_path": str(tmp_path / "runtime")}


def test_check_then_install_then_nothing_then_upgrade(wish: dict[str, Any], tmp_path: Path, run_module: Any) -> None:
    predicted = run_module(ascend_docker_runtime, wish, check=True)
    assert (predicted["changed"], predicted["diff"]["after"]) == (True, "7.1.RC1\n")
    assert not (tmp_path / "runtime").exists()

    done = run_module(ascend_docker_runtime, wish)
    assert (done["changed"], done["version"]) == (True, "7.1.RC1")
    assert run_module(ascend_docker_runtime, wish)["changed"] is False

    newer = tmp_path / "Ascend-docker-runtime_7.2.0_linux-aarch64.run"
    newer.write_text(INSTALLER)
    assert run_module(ascend_docker_runtime, {**wish, "package": str(newer)})["version"] == "7.2.0"
    assert (tmp_path / "runtime/calls").read_text().split() == ["--install", "--upgrade"]


def test_the_licence_is_the_operators_to_accept(wish: dict[str, Any], tmp_path: Path, run_module: Any) -> None:
    told = run_module(ascend_docker_runtime, {**wish, "accept_licence": False})
    assert "container_engine_ascend_runtime_licence: true" in told["msg"]
    assert not (tmp_path / "runtime").exists()


def test_a_failed_installation_says_what_the_installer_said(
    wish: dict[str, Any], run_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    told = run_module(ascend_docker_runtime, wish)
    assert "ended with 1, and nothing is installed: [ERROR] install failed" in told["msg"]


def test_another_package_is_refused(tmp_path: Path, run_module: Any) -> None:
    told = run_module(ascend_docker_runtime, {"package": str(tmp_path / "driver.run")})
    assert "wanted Ascend-docker-runtime_" in told["msg"]
    assert told["version"] == ""
