"""Runs collective tests under MPI from one node of the cluster, and says what became of each.

The node that runs this logs in to the others with a key of its own, made for the run (`ascent.mpi_trust`).
"""

from __future__ import annotations

__all__ = ["Launcher", "outcome"]

import concurrent.futures
import os
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from . import command, hccl_test, nccl_tests
from .collectives import Group
from .errors import ParseError

#: Runs a job: argv, seconds, environment; its code and output.
Job = Callable[[Sequence[str], float, Mapping[str, str]], Tuple[int, str]]

_KEPT_LINES = 12
#: A run of a burn-in fills this share of its time limit, so that its start-up is the smaller part of it.
_LOADED = 0.3
_MOST_ITERATIONS = 100000
_READERS = {"hccl_test": hccl_test.parse, "nccl-tests": nccl_tests.parse}


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_KEPT_LINES:])


def outcome(code: int, text: str, largest: int, limit: float, tool: str = "hccl_test") -> Dict[str, Any]:
    """One run as ``ascent_collectives`` has it: ``{"outcome", "rows", "retcode", "rank", "problem", "text"}``.

    ``largest`` is the last size in bytes that has to be there, ``limit`` the seconds that the run had. Text decides:
    a run is ok when the table is complete and every row right, whatever else was printed, and the code is 0.
    """
    try:
        found = _READERS[tool](text)
    except ParseError as error:
        return {"outcome": "failed", "rows": [], "retcode": None, "rank": None, "problem": "output", "text": str(error)}
    told: Dict[str, Any] = {"rows": found["rows"], "retcode": None, "rank": None, "problem": None, "text": ""}
    # Sizes are cut to what all ranks can share; each is several times the one before, so half of it tells the last one.
    complete = bool(found["rows"]) and 2 * found["rows"][-1]["bytes"] > largest
    if found["errors"]:
        first = found["errors"][0]
        step = f" in {first['step']}" if first["step"] else ""
        return {**told, "outcome": "failed", **first, "text": f"retcode {first['retcode']}{step}"}
    if found["wrong"]:
        ranks = ", ".join(str(rank) for rank in found["wrong"][:8])
        return {**told, "outcome": "wrong", "rank": found["wrong"][0], "text": f"wrong result on rank {ranks}"}
    if code == command.TIMED_OUT:
        done = f"; {found['rows'][-1]['bytes']} bytes were done by then" if found["rows"] else ""
        return {**told, "outcome": "timeout", "text": f"the collective test did not end within {limit:g} s{done}"}
    if found["problems"]:
        first = found["problems"][0]
        return {**told, "outcome": "failed", "problem": first["kind"], "rank": first["rank"], "text": first["text"]}
    if code or not complete:
        why = f"ended with {code}" if code else "its table is not complete"
        return {**told, "outcome": "failed", "problem": "output", "text": f"{why}: {_last_lines(text)}"}
    return {**told, "outcome": "ok"}


class Launcher:
    """Starts one MPI job for each group of hosts; groups that share no host run at once.

    ``hosts`` maps names to ``{"address", "devices": [numbers]}``. ``job_environment`` is the launcher's own. ``shell``
    starts a shell in the image where the test programs are there (`mpi_image`), ``script`` is what it does first; the
    ``options`` go to `hccl_test.mpirun`.
    """

    def __init__(
        self,
        hosts: Mapping[str, Mapping[str, Any]],
        kind: str,
        directory: str,
        *,
        tool: str = "hccl_test",
        programs: Mapping[str, str] = hccl_test.PROGRAMS,
        limit: float = 60.0,
        at_once: int = 16,
        job_environment: Optional[Mapping[str, str]] = None,
        shell: Optional[Sequence[str]] = None,
        script: str = "",
        job: Job = command.job,
        **options: Any,
    ) -> None:
        self.hosts = hosts
        self.kind = kind
        self.directory = directory
        self.tool = tool
        self.programs = programs
        self.limit = limit
        self.at_once = at_once
        self.environment = dict(os.environ if job_environment is None else job_environment)
        self.shell = shell
        self.script = script
        self.job = job
        self.options = {**options, "contained": True} if shell else options
        self._times: Dict[str, float] = {}

    def _loaded(self, collective: str) -> Dict[str, Any]:
        """Options of a burn-in's run: the largest size alone, as often as the slowest run so far lets it."""
        options = dict(self.options)
        options["sizes"] = (self._largest(), self._largest())
        known = self._times.get(collective)
        if known:
            fitting = int(self.limit * _LOADED * 1e6 / known)
            options["iterations"] = min(_MOST_ITERATIONS, max(int(options.get("iterations", 1)), fitting))
        return options

    def _largest(self) -> int:
        smallest, largest = self.options.get("sizes", (1, 1))
        while smallest * hccl_test.STEP <= largest:
            smallest *= hccl_test.STEP
        return int(smallest)

    def run(self, collective: str, group: Group, loaded: bool = False) -> Dict[str, Any]:
        """One group's run; ``loaded`` keeps the hosts at work for a good part of the time limit."""
        options = self._loaded(collective) if loaded else self.options
        numbers = [list(self.hosts[host]["devices"]) for host in group]
        devices = min(len(each) for each in numbers)
        given = dict(self.options.get("environment") or {})
        if self.tool == "hccl_test" and any(each[:devices] != list(range(devices)) for each in numbers):
            given["HCCL_TEST_USE_DEVS"] = ",".join(map(str, numbers[0][:devices]))
        build = nccl_tests.mpirun if self.tool == "nccl-tests" else hccl_test.mpirun
        argv = build(
            self.kind,
            os.path.join(self.directory, self.programs[collective]),
            [str(self.hosts[host]["address"]) for host in group],
            devices,
            **{**options, "environment": given},
        )
        name = f"ascent-collectives-{os.getpid()}-{'-'.join(group)}"
        if self.shell:
            # The words of the container engine's client: program, run, options.
            start = [*self.shell[:2], "--name", name, *self.shell[2:]]
            argv = [*start, "-c", f'{self.script}exec "$@"', "mpirun", *argv]
        begun = time.monotonic()
        code, text = self.job(argv, self.limit, self.environment)
        if self.shell and code == command.TIMED_OUT:
            # Its client may be gone and the container still there, with the devices.
            command.run([self.shell[0], "rm", "--force", name], 60)
        told = outcome(code, text, self._largest(), self.limit, self.tool)
        if told["outcome"] == "ok":
            self._times[collective] = max(told["rows"][-1]["us"], self._times.get(collective, 0.0))
        if told["rank"] is not None:
            host = group[min(told["rank"] // devices, len(group) - 1)]
            told["at"] = [host, numbers[group.index(host)][told["rank"] % devices]]
        return {**told, "devices": devices, "seconds": round(time.monotonic() - begun, 3)}

    def measure(self, phase: str, collective: str, groups: Sequence[Group]) -> List[Dict[str, Any]]:
        """All groups at once, in the order given; the callback of `collectives.Campaign`."""
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, min(self.at_once, len(groups)))) as pool:
            return list(pool.map(lambda group: self.run(collective, group, phase == "burn-in"), groups))
