"""Collective tests inside the engine's image, for nodes that have no MPI or no test programs themselves.

The MPI launcher and the daemons that it starts each run in a container of their own on the host's network, with the
devices and mounts that the engine gets.
"""

from __future__ import annotations

__all__ = ["found", "label", "probe", "wrapped"]

import re
from typing import Any, Dict, List, Optional, Sequence

from . import hccl_test

_MARK = "ascent-collectives"
# Prints what there is, a line each; the sourced scripts print what they like before it.
_PROBE = (
    'tests="$1"; launchers="$2"; programs="$3"; shift 3; '
    'for each; do if test -r "$each"; then . "$each" >/dev/null 2>&1; fi; done; '
    "path=$(command -v mpirun); for each in $launchers; do "
    'if test -z "$path" && test -x "$each/mpirun"; then path=$each/mpirun; fi; done; '
    'echo; echo "ascent path $path"; '
    'if test -n "$path"; then echo "ascent version $($path --version 2>&1 | head -n 1)"; fi; '
    'echo "ascent ssh $(command -v ssh)"; '
    "for each in $tests; do for name in $programs; do "
    'if test -x "$each/$name"; then echo "ascent program $each $name"; fi; done; done'
)
_LINE = re.compile(r"ascent (path|version|ssh|program) (.*)\Z")


def label(cluster: str) -> str:
    """What the containers of a cluster's tests are marked with."""
    return f"{_MARK}={cluster}"


def probe(
    program: str,
    image: str,
    environment: Sequence[str],
    launchers: Sequence[str],
    tests: Sequence[str],
    programs: Sequence[str],
) -> List[str]:
    """The command that looks into an image; `found` reads what it prints. Paths hold no blanks."""
    words = [" ".join(tests), " ".join(launchers), " ".join(programs), *environment]
    head = [program, "run", "--rm", "--network", "none", "--entrypoint", "/bin/bash", image]
    return [*head, "-c", _PROBE, "bash", *words]


def found(text: str, programs: Sequence[str]) -> Dict[str, Any]:
    """``{"launcher", "version", "path", "tests", "programs", "missing"}`` of what `probe` printed."""
    told: Dict[str, List[str]] = {"path": [], "version": [], "ssh": [], "program": []}
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match and match.group(2).strip():
            told[match.group(1)].append(match.group(2).strip())
    path: Optional[str] = told["path"][0].rpartition("/")[0] if told["path"] else None
    version = told["version"][0] if told["version"] else ""
    places = [line.rpartition(" ")[::2] for line in told["program"]]
    tests = places[0][0] if places else None
    there = [name for name in programs if (tests, name) in places]
    needed = (("mpirun", path), ("ssh", told["ssh"]), ("the test programs", there))
    return {
        "launcher": hccl_test.launcher(version) if path else None,
        "version": version,
        "path": path,
        "tests": tests,
        "programs": there,
        "missing": [f"{name} (in the image)" for name, there_ in needed if not there_],
    }


def wrapped(program: str, image: str, cluster: str, directory: str, options: Sequence[str]) -> List[str]:
    """What comes before ``-c SCRIPT`` to run a script of bash in the image on this host's network.

    ``directory`` is that of the run, with its key; ``options`` are those of the engine's container.
    """
    return [
        program, "run", "--rm", "--label", label(cluster), *options,
        "-v", f"{directory}:{directory}:ro", "--entrypoint", "/bin/bash", image,
    ]  # fmt: skip
