"""Log lines in the engine's shape, and the one exception that ends a start."""

from __future__ import annotations

import os
import sys
import time

KILLED = 128  # exit statuses above it are 128 and a signal's number


class EngineError(Exception):
    """A failure the real engine would end with.

    `kind` is the exception name the engine shows, `who` the part that raises it (`APIServer`, `EngineCore_DP3`, …),
    `lines` are log lines that come before the traceback. `status` is the exit status; one above 128 is that of a
    process killed by a signal, which leaves no traceback.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "ValueError",
        who: str = "APIServer",
        lines: tuple[str, ...] = (),
        status: int = 1,
    ) -> None:
        super().__init__(message)
        self.message, self.kind, self.who, self.lines, self.status = message, kind, who, lines, status


def line(who: str, text: str, *, level: str = "INFO", source: str = "") -> None:
    """One line of the engine's logger: `(EngineCore_DP0 pid=12) INFO 01-31 12:00:00 [core.py:1] text`."""
    stamp = time.strftime("%m-%d %H:%M:%S")
    place = f" [{source}]" if source else ""
    for part in text.splitlines() or [""]:
        print(f"({who} pid={os.getpid()}) {level} {stamp}{place} {part}", flush=True)


def server_line(who: str, text: str) -> None:
    """One line of the HTTP server's own logger, which has another shape."""
    print(f"({who} pid={os.getpid()}) INFO:     {text}", flush=True)


def failure(error: EngineError) -> None:
    """The error as the engine's processes report it: reason, traceback with the cause last, then the echoes."""
    prefix = f"({error.who} pid={os.getpid()})"
    if error.status > KILLED:
        for text in error.lines:
            print(text, flush=True)
        return
    for text in error.lines:
        line(error.who, text, level="ERROR")
    if error.who.startswith("Worker"):
        line(error.who, "WorkerProc failed to start.", level="ERROR", source="multiproc_executor.py:872")
    if error.who.startswith("EngineCore"):
        line(error.who, "EngineCore failed to start.", level="ERROR", source="core.py:1108")
    print(f"{prefix} Traceback (most recent call last):", flush=True)
    for part in f"{error.kind}: {error.message}".splitlines():
        print(f"{prefix} {part}", flush=True)
    if error.who.startswith(("EngineCore", "Worker")):
        api = f"(APIServer pid={os.getpid()})"
        print(f"{api} RuntimeError: Engine core initialization failed. See root cause above. "
              f"Failed core proc(s): {{'{error.who}': 1}}", flush=True)  # fmt: skip
    sys.stdout.flush()
