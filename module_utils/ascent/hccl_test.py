"""CANN's collective test programs: their command line under an MPI launcher, and what they print.

data_size(Bytes): | aveg_time(us): | alg_bandwidth(GB/s): | check_result:
8192              | 41.20          | 0.19884              | success
"""

from __future__ import annotations

__all__ = ["PROGRAMS", "STEP", "launcher", "mpirun", "parse"]

import re
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .errors import ParseError
from .text import clean_lines

#: The programs by collective; not every release has all of them.
PROGRAMS = {
    "all_reduce": "all_reduce_test",
    "all_gather": "all_gather_test",
    "reduce_scatter": "reduce_scatter_test",
    "alltoall": "alltoall_test",
    "sendrecv": "sendrecv_test",
}
#: Each size is so many times the one before.
STEP = 8
_SOURCE = "hccl_test"
# What Open MPI's --tag-output and MPICH's -prepend-rank put before a line.
_TAG = re.compile(r"(?:\[[0-9]+,([0-9]+)\]<std(?:out|err)>:\s?|\[([0-9]+)\] )")
_HEADER = re.compile(r"data_size\s*\(Bytes\)\s*:?\s*\|", re.I)
_ROW = re.compile(
    r"([0-9]{1,15})\s*\|\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*\|\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*\|\s*(\w+)\Z"
)
_WRONG = re.compile(r"local rank_id ([0-9]{1,6}), check result failed\b", re.I)
_RETURN = re.compile(r"hccl interface return err\b.*\bretcode:\s*([0-9]{1,6})", re.I)
_STEP = re.compile(r"This is an error in (\S+?)\.?\Z")
#: Lines that say why there is no table, by what they mean.
_PROBLEMS = tuple(
    (kind, re.compile(pattern, re.I))
    for kind, pattern in (
        ("no-device", r"Error: The number of device is 0\b"),
        ("launcher", r"\b(?:orted|prted|hydra_pmi_proxy)\b.*not found|ORTE was unable to reliably start"),
        ("launcher", r"ORTE has lost communication|could not find (?:the )?executable|status 127"),
        ("launcher", r"lib(?:mpi|open-rte|pmix)\S*: cannot open shared object file"),
        ("name", r"gethostbyname failed|Could not resolve hostname"),
        ("login", r"Permission denied \(|Host key verification failed|No route to host"),
        ("login", r"Connection (?:refused|timed out|closed)"),
        ("data", r"check buf\[[0-9]+\] error|total err is [1-9]"),
    )
)


def parse(text: str) -> Dict[str, Any]:
    """What a run printed, of all ranks together.

    ``{"rows": [{"bytes", "us", "gbs", "check"}], "wrong": [ranks], "errors": [{"rank", "retcode", "step"}],
    "problems": [{"kind", "rank", "text"}]}``. ``check`` is ``success``, ``failed`` or ``NULL`` (not checked). Ranks are
    None where lines are not tagged. ParseError names a line of the table that does not fit.
    """
    rows: List[Dict[str, Any]] = []
    wrong: List[Optional[int]] = []
    errors: List[Dict[str, Any]] = []
    problems: List[Dict[str, Any]] = []
    in_table = False
    for line_number, raw in clean_lines(text):
        tag = _TAG.match(raw)
        rank = int(tag.group(1) or tag.group(2)) if tag else None
        line = raw[tag.end() :].strip() if tag else raw.strip()
        failed = _WRONG.match(line)
        returned = _RETURN.search(line)
        step = _STEP.search(line)
        row = _ROW.match(line)
        if _HEADER.match(line):
            in_table = True
        elif failed:
            wrong.append(int(failed.group(1)))
        elif returned:
            errors.append({"rank": rank, "retcode": int(returned.group(1)), "step": None})
        elif step:
            for error in errors:
                if error["rank"] == rank and error["step"] is None:
                    error["step"] = step.group(1)
        elif row and in_table:
            check = row.group(4)
            if check not in ("success", "failed", "NULL"):
                raise ParseError(_SOURCE, "check_result is none of success, failed, NULL", line_number, line)
            if check == "failed" and rank not in wrong:
                wrong.append(rank)
            rows.append(
                {"bytes": int(row.group(1)), "us": float(row.group(2)), "gbs": float(row.group(3)), "check": check}
            )
        elif in_table and re.match(r"[0-9]+\s*\|", line):
            raise ParseError(_SOURCE, "expected size, time, bandwidth and result", line_number, line)
        else:
            kind = next((kind for kind, pattern in _PROBLEMS if pattern.search(line)), None)
            if kind and not any(one["kind"] == kind and one["rank"] == rank for one in problems):
                problems.append({"kind": kind, "rank": rank, "text": line})
    if [row["bytes"] for row in rows] != sorted({row["bytes"] for row in rows}):
        raise ParseError(_SOURCE, "sizes of the table do not grow")
    return {"rows": rows, "wrong": wrong, "errors": errors, "problems": problems}


def launcher(version: str) -> Optional[str]:
    """``openmpi`` or ``mpich`` by what ``mpirun --version`` prints; None for anything else.

    >>> launcher("mpirun (Open MPI) 4.1.4"), launcher("HYDRA build details:"), launcher("?")
    ('openmpi', 'mpich', None)
    """
    if re.search(r"Open MPI|OpenRTE|PRRTE", version):
        return "openmpi"
    return "mpich" if re.search(r"HYDRA|MPICH", version, re.I) else None


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
    extra: Sequence[str] = (),
    contained: bool = False,
) -> List[str]:
    """The command line of one test over ``hosts`` (addresses), with ``devices`` ranks on each.

    ``agent`` is a program that is called as ssh is; Open MPI wants it on every host. ``interfaces`` are the hosts'
    network cards of the plan: nothing else may carry the launcher's traffic, whatever else they have.
    ``environment`` goes to every rank. ``sizes`` are the smallest and the largest in bytes, `STEP` apart each.
    ``contained``: the daemons run in containers, see `mpi_image`.
    """
    environment = environment or {}
    ranks = len(hosts) * devices
    if kind == "openmpi":
        argv = ["mpirun", "--allow-run-as-root", "--tag-output", "--bind-to", "none", "-np", str(ranks)]
        if contained:
            # A daemon that goes to the background ends its container; ranks there may not read each other's memory.
            argv += ["--leave-session-attached", "--mca", "btl_vader_single_copy_mechanism", "none"]
        argv += ["--host", ",".join(f"{host}:{devices}" for host in hosts)]
        # One login from here to each host: no host needs to get into any other.
        argv += ["--mca", "plm_rsh_agent", agent, "--mca", "plm_rsh_no_tree_spawn", "1", "--mca", "btl", "^openib"]
        for component in ("oob_tcp_if_include", "btl_tcp_if_include") if interfaces else ():
            argv += ["--mca", component, ",".join(interfaces)]
        for name, value in sorted(environment.items()):
            argv += ["-x", f"{name}={value}"]
    elif kind == "mpich":
        argv = ["mpirun", "-launcher", "ssh", "-launcher-exec", agent, "-prepend-rank"]
        argv += ["-hosts", ",".join(hosts), "-ppn", str(devices), "-n", str(ranks)]
        for name, value in sorted(environment.items()):
            argv += ["-genv", name, value]
    else:
        raise ValueError(f"no MPI launcher {kind!r}: openmpi or mpich")
    argv += [program, "-b", str(sizes[0]), "-e", str(sizes[1]), "-f", str(STEP)]
    return [*argv, "-n", str(iterations), "-w", str(warmups), "-c", "1", "-p", str(devices), *extra]
