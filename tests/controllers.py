"""Ansible as a process of a test's own."""

from __future__ import annotations

__all__ = ["kill"]

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any


def kill(controller: subprocess.Popen[Any]) -> None:
    """End a controller and all that it has started, at once and without a word.

    Each of Ansible's workers has a session of its own, so a signal to the controller's group does not reach them.
    """
    found = [controller.pid]
    # Nothing that is found can start more.
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        found += _children(pid)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    controller.wait()


def _children(pid: int) -> list[int]:
    children = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, listed.read_text().split())
    return children
