"""The module that installs an engine into a virtual environment, with a real Python and wheels of our own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from library import engine_environment as module
from sandbox.engine import wheels

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the plugin, which needs nothing else."""
    directory = tmp_path_factory.mktemp("wheels")
    wheels.build(directory)
    return directory


def test_an_environment_is_made_once_and_mended(run_module: Run, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "environments" / "abc"
    wanted = {
        "path": str(path),
        "python": sys.executable,
        "packages": ["vllm-ascend==0.18.0"],
        "wheels": str(site),
    }
    assert run_module(module, {**wanted, "install": False}) | {"invocation": None} == {
        "changed": False,
        "present": False,
        "invocation": None,
    }
    dry = run_module(module, wanted, check=True, diff=True)
    assert (dry["changed"], dry["present"]) == (True, False)
    assert not path.exists()

    made = run_module(module, wanted, diff=True)
    assert (made["changed"], made["present"]) == (True, True)
    assert made["installed"]["vllm-ascend"] == "0.18.0"
    assert "vllm-ascend==0.18.0\n" in made["diff"]["after"]
    assert run_module(module, wanted)["changed"] is False
    assert run_module(module, {**wanted, "install": False})["installed"] == made["installed"]

    # Somebody installs another version by hand: it is no longer what was proven.
    (info,) = path.glob("lib/python*/site-packages/vllm_ascend-0.18.0.dist-info")
    metadata = info / "METADATA"
    metadata.write_text(metadata.read_text().replace("0.18.0", "0.17.0"))
    assert run_module(module, {**wanted, "install": False})["present"] is False
    mended = run_module(module, wanted)
    assert (mended["changed"], mended["installed"]["vllm-ascend"]) == (True, "0.18.0")

    # An interrupted run leaves no mark; a damaged mark is none.
    (path / module.MARK).write_text("{")
    assert run_module(module, {**wanted, "install": False})["present"] is False


def test_what_cant_be_installed_leaves_nothing(run_module: Run, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "environments" / "abc"
    wanted = {"path": str(path), "python": sys.executable, "packages": ["vllm-ascend==9.9"], "wheels": str(site)}
    result = run_module(module, wanted)
    assert result["failed"] is True
    assert "vllm-ascend==9.9" in result["msg"]
    assert str(site) in result["msg"]
    assert not path.exists()


def test_an_interpreter_that_is_not_there_is_named(run_module: Run, tmp_path: Path) -> None:
    wanted = {"path": str(tmp_path / "abc"), "python": "/nowhere/python3.99", "packages": ["vllm==1"]}
    result = run_module(module, wanted)
    assert result["failed"] is True
    assert "/nowhere/python3.99" in result["msg"]


def test_the_wheels_say_what_they_are(site: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in site.iterdir())
    assert names == ["vllm-0.18.0-py3-none-any.whl", "vllm_ascend-0.18.0-py3-none-any.whl"]
    before = {path.name: path.read_bytes() for path in site.iterdir()}
    wheels.build(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert json.dumps(names)
    shutil.rmtree(tmp_path)
