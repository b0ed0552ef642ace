"""NVIDIA's collective test programs (nccl-tests) under MPI: their command line, and what they print."""

from __future__ import annotations

__all__ = ["PROGRAMS", "mpirun", "parse"]

import re
from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import hccl_test
from .errors import ParseError
from .text import clean_lines

PROGRAMS = {
    "all_reduce": "all_reduce_perf",
    "all_gather": "all_gather_perf",
    "reduce_scatter": "reduce_scatter_perf",
    "alltoall": "alltoall_perf",
    "sendrecv": "sendrecv_perf",
}
_SOURCE = "nccl-tests"
_TAG = re.compile(r"(?:\[[0-9]+,([0-9]+)\]<std(?:out|err)>:\s?|\[([0-9]+)\] )")
# NCCL's last error may go on in the next line, and its closing quote with it.
_FAILURE = re.compile(r"Test (?:NCCL|CUDA) failure\b[^']*'(.*?)(?:'\s*|\s/\s*)?\Z|\bNCCL WARN (.*)")
# Blocks of one way to hand over buffers: time, algorithm and bus bandwidth, wrong elements.
_FIGURE = r"[0-9]{1,15}(?:\.[0-9]{1,9})?(?:e[+-]?[0-9]{1,3})?"
_BLOCK = rf"({_FIGURE})\s+({_FIGURE})\s+({_FIGURE})\s+([0-9]{{1,12}}|N/A|{_FIGURE})"
_ROW = re.compile(
    rf"([0-9]{{1,15}})\s+([0-9]{{1,15}})\s+([a-z]\w*)\s+(?:(?:([a-z]\w*)\s+)?(-?[0-9]{{1,6}})\s+)?{_BLOCK}(?:\s+{_BLOCK})?\Z"
)


def parse(text: str) -> Dict[str, Any]:
    """Like `hccl_test.parse`: the table's out-of-place figures, the slower ones where both are there."""
    rows: List[Dict[str, Any]] = []
    wrong: List[Optional[int]] = []
    problems: List[Dict[str, Any]] = []
    for line_number, raw in clean_lines(text):
        tag = _TAG.match(raw)
        rank = int(tag.group(1) or tag.group(2)) if tag else None
        line = raw[tag.end() :].strip() if tag else raw.strip()
        if line.startswith("#"):
            continue
        failure = _FAILURE.search(line)
        if failure:
            problems.append({"kind": "nccl", "rank": rank, "text": next(part for part in failure.groups() if part)})
            continue
        match = _ROW.match(line)
        if match is None:
            if re.match(r"[0-9]+\s+[0-9]+\s+[a-z]\w*\s", line):
                raise ParseError(_SOURCE, "expected size, count, type, time and bandwidths", line_number, line)
            continue
        blocks = [block for block in (match.groups()[5:9], match.groups()[9:13]) if block[0] is not None]
        times = [(float(block[0]), float(block[1])) for block in blocks]
        counts = [block[3] for block in blocks]
        bad = any(count not in ("N/A",) and float(count) > 0 for count in counts)
        us, gbs = max(times)
        check = "failed" if bad else "NULL" if all(count == "N/A" for count in counts) else "success"
        if bad:
            wrong.append(rank)
        rows.append({"bytes": int(match.group(1)), "us": us, "gbs": gbs, "check": check})
    # The launcher's own complaints are the same.
    problems += hccl_test.parse(text)["problems"]
    return {"rows": rows, "wrong": wrong, "errors": [], "problems": problems}


def mpirun(
    kind: str,
    program: str,
    hosts: Sequence[str],
    devices: int,
    *,
    agent: str,
    interfaces: Sequence[str] = (),
    environment: Optional[Mapping[str, str]] = None,
    sizes: Sequence[int] = (8192, 64 << 20),
    iterations: int = 20,
    warmups: int = 5,
    contained: bool = False,
) -> List[str]:
    """The command line of one test: a rank for each GPU, see `hccl_test.mpirun`."""
    argv = hccl_test.mpirun(
        kind, program, hosts, devices, agent=agent, interfaces=interfaces, environment=environment, sizes=sizes,
        iterations=iterations, warmups=warmups, contained=contained,
    )  # fmt: skip
    start = argv.index(program) + 1
    own = [
        "-b",
        str(sizes[0]),
        "-e",
        str(sizes[1]),
        "-f",
        str(hccl_test.STEP),
        "-n",
        str(iterations),
        "-w",
        str(warmups),
        "-c",
        "1",
        "-g",
        "1",
    ]
    return [*argv[:start], *own]
