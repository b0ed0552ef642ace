#!/usr/bin/env python3
"""Wheels of the engine simulator, named as the engine's: for nodes whose engine runs outside containers.

    python sandbox/engine/wheels.py DIRECTORY [--release v0.18.0] [--python 3.11]

``vllm`` has the command and the simulator, ``vllm_ascend`` stands for the plugin. With ``--python`` pip adds what the
simulator needs, and itself, for that Python on this machine's architecture.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import platform
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "sandbox/engine"
NEEDS = ("aiohttp", "prometheus-client")
COMMAND = "[console_scripts]\nvllm = sandbox.engine.sim.cli:main\n"


def build(directory: Path, release: str = "v0.18.0") -> list[Path]:
    """Write both wheels; the same input gives the same bytes."""
    plugin = release.removeprefix("v")
    engine = plugin.partition("rc")[0]
    simulator = {str(file.relative_to(ROOT)): file for file in _files(ENGINE / "sim")}
    tables = {str(file.relative_to(ROOT)): file for file in _files(ROOT / "catalog/engine_options")}
    own = {f"vllm/{file.name}": file for file in _files(ENGINE / "packages/vllm")}
    stub = {f"vllm_ascend/{file.name}": file for file in _files(ENGINE / "packages/vllm_ascend")}
    return [
        _wheel(directory, "vllm", engine, {**own, **simulator, **tables}, needs=NEEDS, entry_points=COMMAND),
        _wheel(directory, "vllm_ascend", plugin, stub),
    ]


def add_needs(directory: Path, python: str) -> None:
    """Let pip download what the wheels need, for this Python."""
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in (34, 28, 17)] + [f"manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", directory]
    command += ["--only-binary=:all:", "--python-version", python]
    command += [word for name in platforms for word in ("--platform", name)]
    subprocess.run([*command, "pip", *NEEDS], check=True)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in (".py", ".json"))


def _wheel(
    directory: Path,
    name: str,
    version: str,
    files: Mapping[str, Path],
    *,
    needs: Sequence[str] = (),
    entry_points: str = "",
) -> Path:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    content = {path: file.read_bytes() for path, file in files.items()}
    content[f"{info}/METADATA"] = (metadata + "".join(f"Requires-Dist: {one}\n" for one in needs)).encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: ascent\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if entry_points:
        content[f"{info}/entry_points.txt"] = entry_points.encode()
    rows = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in content.items():
            wheel.writestr(zipfile.ZipInfo(path), data)
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--release", default="v0.18.0")
    parser.add_argument("--python")
    given = parser.parse_args()
    build(given.directory, given.release)
    if given.python:
        add_needs(given.directory, given.python)


if __name__ == "__main__":
    main()
