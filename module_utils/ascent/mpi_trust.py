"""Lets one node start MPI daemons on the others for the time of one run, and nothing else.

The key is made on the node that starts the tests, and never leaves it. On every other node one line of
``authorized_keys`` takes it from that node's address only, and whatever it asks for, `agent` decides: the MPI daemon is
started, anything else refused.
"""

from __future__ import annotations

__all__ = ["DAEMONS", "agent", "authorize", "known_hosts", "revoke", "sourced", "ssh_wrapper"]

import json
import re
from typing import List, Mapping, Optional, Sequence

#: What may be started through the key: the daemons of Open MPI (up to 4, from 5 on) and of MPICH.
DAEMONS = ("orted", "prted", "hydra_pmi_proxy")

_AGENT = '''#!%(python)s
"""Starts an MPI daemon for a collective test of Ascent; the key of that run may ask for nothing else."""
import os, shlex, sys

ALLOWED, PREFIX, SHELL = %(allowed)s, %(prefix)s, %(shell)s
# A launcher that was called by its path sets two search paths first, in statements of their own; ours are set here.
lexer = shlex.shlex(os.environ.get("SSH_ORIGINAL_COMMAND", ""), posix=True, punctuation_chars=";")
lexer.whitespace_split, lexer.commenters = True, ""
words = []
for word in lexer:
    words = [] if word == ";" else [*words, word]
while words and "=" in words[0] and not words[0].startswith("-"):
    words.pop(0)
if not words or os.path.basename(words[0]) not in ALLOWED:
    sys.exit("refused: this key starts MPI daemons only")
words[0] = os.path.basename(words[0])
os.execvp(SHELL[0], [*SHELL, "-c", PREFIX + 'exec "$@"', words[0], *words])
'''
_MARK = "ascent-collectives"


def sourced(environment: Sequence[str], path: Optional[str]) -> str:
    """Shell commands that come before the daemon: scripts that are there are sourced, and ``path`` leads the search."""
    lines = [f"if test -r {_plain(name)}; then . {name}; fi >/dev/null 2>&1; " for name in environment]
    if path:
        lines.append(f'export PATH={_plain(path)}:"$PATH"; ')
    return "".join(lines)


def agent(
    python: str, environment: Sequence[str] = (), path: Optional[str] = None, shell: Sequence[str] = ("/bin/bash",)
) -> str:
    """The program behind the key: ``environment`` are scripts to source, ``path`` is where the MPI daemon lies.

    ``shell`` is the shell that starts it, on the host or in a container (`mpi_image.wrapped`).
    """
    prefix = sourced(environment, path)
    words = {"allowed": json.dumps(DAEMONS), "prefix": json.dumps(prefix), "shell": json.dumps(list(shell))}
    return _AGENT % {"python": _plain(python), **words}


def _plain(path: str) -> str:
    if not re.match(r"/[A-Za-z0-9_./+-]*\Z", path):
        raise ValueError(f"{path!r} is no plain absolute path")
    return path


def authorize(text: str, cluster: str, key: str, source: str, program: str) -> str:
    """``authorized_keys`` with one line that lets ``key`` in from ``source`` to run ``program``; an older one goes.

    ValueError for a key, an address or a path that would break out of its place in the line.
    """
    if not re.match(r"ssh-ed25519 [A-Za-z0-9+/=]+\Z", key.strip()):
        raise ValueError("the key is no ssh-ed25519 public key without comment")
    if not re.match(r"[0-9A-Fa-f:.]+\Z", source):
        raise ValueError(f"{source!r} is no address")
    line = f'from="{source}",restrict,command="{_plain(program)}" {key.strip()} {_mark(cluster)}\n'
    kept = revoke(text, cluster)
    return kept + ("" if not kept or kept.endswith("\n") else "\n") + line


def _mark(cluster: str) -> str:
    return f"{_MARK}-{cluster}"


def revoke(text: str, cluster: str) -> str:
    """``authorized_keys`` without the line of a cluster's run; everything else stays as it is."""
    return "".join(line for line in text.splitlines(True) if line.rstrip().rpartition(" ")[2] != _mark(cluster))


def known_hosts(hosts: Mapping[str, Mapping[str, object]]) -> str:
    """Host keys by address, from ``{name: {"address", "port", "host_keys": [...]}}``."""
    lines: List[str] = []
    for host in hosts.values():
        place = str(host["address"]) if int(str(host["port"])) == 22 else f"[{host['address']}]:{host['port']}"
        lines += [f"{place} {key}\n" for key in host["host_keys"]]  # type: ignore[attr-defined]
    return "".join(lines)


def ssh_wrapper(directory: str, ports: Mapping[str, int], user: str) -> str:
    """A program that is called as ssh is, and uses the run's key and host keys and nobody's configuration.

    ``ports`` are those of addresses that have another one than 22.
    """
    cases = "".join(f"    {address}) port={port};;\n" for address, port in sorted(ports.items()) if port != 22)
    chosen = f'for word in "$@"; do\n  case $word in\n{cases}  esac\ndone\n' if cases else ""
    return (
        "#!/bin/sh\n"
        f"port=22\n{chosen}"
        f"exec ssh -F none -i {_plain(directory)}/key -p $port -l {user} -o IdentitiesOnly=yes -o BatchMode=yes"
        " -o ConnectTimeout=10 -o ServerAliveInterval=5 -o StrictHostKeyChecking=yes"
        f" -o UserKnownHostsFile={_plain(directory)}/known_hosts -o GlobalKnownHostsFile=/dev/null"
        ' -o LogLevel=ERROR "$@"\n'
    )
