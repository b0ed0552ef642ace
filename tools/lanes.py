#!/usr/bin/env python3
"""Run several targets of the Makefile side by side, and end with what went wrong.

    tools/lanes.py [--at-once N] TARGET...

Each line of a target's output appears as it is printed, with the target's name before it. When all have ended, the last
lines of each one that failed follow, and a line per target with its time: the end of a long log tells the reason.
Exits with 1 when a target failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

TAIL = 100
_print = threading.Lock()


@dataclass(frozen=True)
class Ended:
    """How one target ended: exit status, seconds, and its last lines."""

    target: str
    status: int
    seconds: float
    tail: tuple[str, ...]


def run(target: str, width: int) -> Ended:
    """Make ``target``, printing its lines behind its name, padded to ``width``."""
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL)
    process = subprocess.Popen(
        ["make", "--no-print-directory", target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:
        tail.append(line)
        with _print:
            print(f"{target:<{width}} | {line}", end="", flush=True)
    return Ended(target, process.wait(), time.monotonic() - started, tuple(tail))


def main(arguments: list[str]) -> int:
    """Run the targets that ``arguments`` name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="targets that run at the same time")
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    given = parser.parse_args(arguments)
    width = max(map(len, given.targets))
    with ThreadPoolExecutor(given.at_once) as pool:
        ended = list(pool.map(lambda target: run(target, width), given.targets))
    failed = [one for one in ended if one.status]
    for one in failed:
        print(f"\n== the end of {one.target}, which failed\n{''.join(one.tail)}", end="")
    print()
    for one in ended:
        print(f"{one.target:<{width}} | {'failed' if one.status else 'passed'} after {one.seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
