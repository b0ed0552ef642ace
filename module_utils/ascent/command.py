"""Runs one program with a time limit and a fixed language. The only place of the library that starts processes."""

from __future__ import annotations

__all__ = ["MISSING", "NO_PERMISSION", "TIMED_OUT", "job", "run"]

import contextlib
import os
import signal
import subprocess
from typing import Mapping, Sequence, Tuple

#: Return codes of `run` itself, chosen as shells and timeout(1) choose them.
MISSING, NO_PERMISSION, TIMED_OUT = 127, 126, 124


def run(argv: Sequence[str], timeout: float) -> Tuple[int, str, str]:
    """``(code, stdout, stderr)`` of a program, decoded with replacement; never raises for what the program does.

    ``timeout`` is in seconds. A program that exceeds it is killed with everything it started, since a vendor tool that
    hangs in the driver must not hold the run. `MISSING`, `NO_PERMISSION` and `TIMED_OUT` come with a text in stderr.
    """
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError:
        return MISSING, "", f"{argv[0]}: not found"
    except OSError as error:
        return NO_PERMISSION, "", f"{argv[0]}: {error.strerror}"
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            # A process stuck in the driver can't be killed; its pipes are then left alone.
            process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        return TIMED_OUT, "", f"{' '.join(argv)}: no answer within {timeout:g} s"
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def job(argv: Sequence[str], timeout: float, environment: Mapping[str, str], grace: float = 10) -> Tuple[int, str]:
    """``(code, output of both streams)`` of a program that has processes elsewhere to end when its time is up.

    After ``timeout`` seconds it is asked to end (SIGTERM), and killed ``grace`` seconds later; what it had printed by
    then is returned with `TIMED_OUT`. ``environment`` is the whole of it.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    except FileNotFoundError:
        return MISSING, f"{argv[0]}: not found"
    except OSError as error:
        return NO_PERMISSION, f"{argv[0]}: {error.strerror}"
    code = None
    for limit, signal_after in ((timeout, signal.SIGTERM), (grace, signal.SIGKILL), (2.0, None)):
        try:
            out, _ = process.communicate(timeout=limit)
            break
        except subprocess.TimeoutExpired as expired:
            out, code = expired.output or b"", TIMED_OUT
            if signal_after is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_after)
    else:
        if process.stdout:
            process.stdout.close()
    return code if code is not None else process.returncode, out.decode("utf-8", "replace")
