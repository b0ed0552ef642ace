"""The engine image with Ray. Its packages are installed on this machine, for the image's Python, and copied in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sandbox.lib.engine import Engine
from sandbox.lib.images import REPOSITORY, digest_files
from sandbox.lib.plan import SandboxError
from sandbox.real.image import sources, target, uv

HERE = Path(__file__).resolve().parent
SOURCES = ("Dockerfile", "requirements.txt", "image.py")
PROGRAM = """#!/usr/bin/python3
import sys

from ray.scripts.scripts import main

if __name__ == "__main__":
    sys.exit(main())
"""


def build(engine: Engine, say: Callable[[str], None], image: str) -> str:
    """The name of the engine image `image` with Ray; it is built where its tag is missing."""
    tag = f"{REPOSITORY}/engine-ray:{digest_files([HERE / name for name in SOURCES], image)}"
    if engine.run("image", "inspect", tag, check=False).returncode == 0:
        return tag
    say("building the engine image with Ray (230 MB)")
    with tempfile.TemporaryDirectory(dir=engine.root, prefix="build-") as directory:
        context = Path(directory)
        uv(
            *("pip", "install", "--target", str(context / "packages"), *target(), *sources()),
            *("--only-binary", ":all:", "--link-mode", "copy", "--requirement", str(HERE / "requirements.txt")),
        )
        shutil.rmtree(context / "packages/bin", ignore_errors=True)
        (context / "programs").mkdir()
        program = context / "programs/ray"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        shutil.copy(HERE / "Dockerfile", context)
        done = engine.run(
            *("build", "--network=host", "--force-rm", "--tag", tag, "--build-arg", f"ENGINE={image}", str(context)),
            check=False,
        )
        log = engine.root / "build-engine-ray.log"
        log.write_text(done.stdout + done.stderr)
        if done.returncode:
            tail = (done.stdout + done.stderr).strip().splitlines()[-15:]
            raise SandboxError(f"building the engine image with Ray failed (all: {log}):\n  " + "\n  ".join(tail))
    return tag
