"""The suite on a running service, from the command line.

    python -m tests.conformance URL --model NAME [--max-model-len N] [--ranks N]
        [--engine ROLE=URL ...] [--log FILE ...]

Exit status 0 when all checks hold.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.conformance.deployment import Deployment
from tests.conformance.suite import CHECKS, layouts


def main() -> int:
    """Runs all checks that fit and prints a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.splitlines()[0])
    parser.add_argument("url", help="where clients go, without /v1")
    parser.add_argument("--model", required=True, help="the served name")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--ranks", type=int, default=1, help="data parallel ranks")
    parser.add_argument("--engine", action="append", default=[], metavar="ROLE=URL", help="engines behind a router")
    parser.add_argument("--log", action="append", default=[], type=Path, help="log files of the engine's processes")
    given = parser.parse_args()
    served = Deployment(
        url=given.url.rstrip("/"),
        model=given.model,
        engines=dict(engine.split("=", 1) for engine in given.engine),
        ranks=given.ranks,
        max_model_len=given.max_model_len,
        api_key=os.environ.get("OPENAI_API_KEY"),
        logs=(lambda: {path.stem: path.read_text(errors="replace") for path in given.log}) if given.log else None,
    )
    failed = 0
    for check in [*CHECKS, *layouts(served)]:
        if check.__name__.startswith("check_log_") and served.logs is None:
            print(f"-      {check.__name__}: no --log given")
            continue
        try:
            check(served)
            print(f"ok     {check.__name__}")
        except Exception as error:  # a check that can't be made is one that does not hold
            failed += 1
            words = str(error).strip().splitlines()
            print(f"FAILED {check.__name__}: {words[0] if words else type(error).__name__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
