"""Action plugin ``cluster_lock``: one controller at a time works on a cluster.

The lease (`ascent.lease`) lies on a node. A process of its own renews it while the playbook lives and gives it back
when the playbook has ended, in whatever way: a run that was killed stands in nobody's way.
"""

from __future__ import annotations

import getpass
import inspect
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ascent import lease
from ascent.findings import finding, message
from ascent_controller import facts, runs

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 4.0


class ActionModule(ActionBase):
    """See library/cluster_lock.py for options and results."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the lease, or say who has it."""
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {
                "path": {"type": "path", "required": True},
                "ttl": {"type": "float", "default": 60.0},
                "force": {"type": "bool", "default": False},
            }
        )
        result.update(changed=False, findings=[])
        if self._task.check_mode:
            return result
        variables = task_vars or {}
        playbook = os.getppid()  # this is a worker of it
        self._command = f"{shlex.quote(facts.interpreter(self._host_variables(variables)))} -"
        self._request = {
            "path": given["path"],
            "ttl": given["ttl"],
            "wanted": {
                "id": f"{socket.gethostname()} {playbook} {_started(playbook)}",
                "owner": {
                    "user": getpass.getuser(),
                    "host": socket.gethostname(),
                    "pid": playbook,
                    "doing": " ".join(runs.masked([Path(sys.argv[0]).name, *sys.argv[1:]])),
                },
            },
        }
        answer = self._ask("take", given["force"])
        patience = time.monotonic() + _PATIENCE_SECONDS
        while not answer["held"] and time.monotonic() < patience:
            # A run that has just ended may still be giving it back.
            time.sleep(_LOOK_SECONDS)
            answer = self._ask("take", _has_ended(answer["by"]))
        if not answer["held"]:
            told = [_told(answer["by"], str(variables["inventory_hostname"]))]
            return {**result, "failed": True, "findings": told, "msg": message(told)}
        self._leave_a_keeper(playbook, given["ttl"])
        return result

    def _host_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of the host that the task runs on, which another may have delegated to it."""
        found: Mapping[str, Any] = variables["hostvars"][self._task.delegate_to or variables["inventory_hostname"]]
        return found

    def _ask(self, verb: str, force: bool = False) -> dict[str, Any]:
        """Have a Python of the node change the lease. AnsibleActionFail when it can't."""
        request = json.dumps({**self._request, "verb": verb, "force": force})
        program = f"{inspect.getsource(lease)}\nmain({request!r})\n".encode()
        done = self._low_level_execute_command(self._command, in_data=program)
        line = next((line for line in str(done["stdout"]).splitlines() if line.startswith(lease.MARK)), None)
        answer = json.loads(line.removeprefix(lease.MARK)) if line else {"error": str(done["stderr"]).strip()}
        if line is None or answer["error"]:
            raise AnsibleActionFail(f"the cluster's lock {self._request['path']} can't be kept: {answer['error']}")
        return dict(answer)

    def _leave_a_keeper(self, playbook: int, ttl: float) -> None:
        """A process that outlives this worker and the playbook, by just enough to give the lease back."""
        started = _started(playbook)
        if os.fork():
            os.wait()
            return
        # In the child: nothing may return from here into the worker's own code.
        try:
            os.setsid()
            if os.fork() == 0:
                _let_go()
                self._keep(playbook, started, ttl)
        finally:
            os._exit(0)

    def _keep(self, playbook: int, started: str, ttl: float) -> None:
        due = time.monotonic() + ttl / 4
        while _started(playbook) == started:
            if time.monotonic() >= due:
                due = time.monotonic() + ttl / 4
                try:
                    if not self._ask("renew")["held"]:
                        return
                except Exception:  # noqa: S112 - the network may be back for the next one
                    continue
            time.sleep(_LOOK_SECONDS)
        self._ask("release")


def _let_go() -> None:
    """Leave the worker's pipes: who reads them waits until all have been closed."""
    Display()._final_q = None
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)


def _started(pid: int) -> str:
    """What tells a living process from all others of its number; empty when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        # A system without /proc: the number alone has to do.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        return "running"
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _has_ended(by: Mapping[str, Any]) -> bool:
    """Whether the lease is one of a run on this very machine that is no more."""
    host, _, identity = str(by["id"]).partition(" ")
    pid, _, started = identity.partition(" ")
    return host == socket.gethostname() and pid.isdecimal() and _started(int(pid)) != started


def _told(by: Mapping[str, Any], node: str) -> dict[str, Any]:
    owner = by["owner"]
    since = datetime.fromtimestamp(by["taken"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return finding(
        "cluster-locked",
        "error",
        f"{owner['user']} on {owner['host']} is at work on this cluster since {since}",
        host=node,
        stage="plan",
        evidence=f"{owner['doing']} (process {owner['pid']} of {owner['host']})",
        cause="Two controllers at once would undo each other's work.",
        fix="Wait until it has ended. If it hangs, end that process: its lock goes with it."
        " -e ascent_break_lock=true takes the cluster over.",
    )
