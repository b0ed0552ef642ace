"""Action plugin ``image_pull``: runs the module, and meanwhile says how far the host's pull is."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ascent import image_pulls
from ascent_controller import connections
from ascent_controller.progress import Progress

#: Of more hosts than this, only the first ones are told of: they stand for the others, which get the same from them.
_SHOWN_HOSTS = 4
#: Seconds between two looks.
_LOOK = 5.0
#: The program that reads the file; there is none before and after a pull.
_READ = f"""
try:
    print(open({image_pulls.STATE!r}).read())
except OSError:
    print("null")
"""


class ActionModule(ActionBase):
    """The module's own arguments and results."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; a look at the host now and then tells the operator how far it is."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(task_vars, ended), daemon=True)
        if self._told(task_vars):
            watcher.start()
        try:
            return {**result, **self._execute_module(module_name="image_pull", task_vars=task_vars)}
        finally:
            ended.set()
            if watcher.ident is not None:
                watcher.join()

    def _told(self, task_vars: Mapping[str, Any]) -> bool:
        """Whether this host's pull is one to tell of."""
        if self._task.check_mode or self._task.args.get("state") == "absent":
            return False
        hosts = list(task_vars.get("ansible_play_hosts_all") or [])
        return task_vars["inventory_hostname"] in hosts[:_SHOWN_HOSTS]

    def _watch(self, task_vars: Mapping[str, Any], ended: threading.Event) -> None:
        host = str(task_vars["inventory_hostname"])
        told: dict[str, Progress] = {}
        ask = None
        while not ended.wait(_LOOK):
            try:
                ask = ask or connections.execute(self._task, self._play_context, task_vars, "-")
                code, out, _ = ask(_READ.encode())
                state = json.loads(out) if code == 0 else None
            except (AnsibleError, OSError, ValueError) as error:
                # It is not the pull that failed.
                Display().vvv(f"{host}: no look at the pull: {error}")
                return
            if state:
                self._tell(host, state, told)

    @staticmethod
    def _tell(host: str, state: Mapping[str, Any], told: dict[str, Progress]) -> None:
        name = str(state["reference"])
        if state["phase"] != "fetch":
            _say(f"{host}: {name}: all of it came, unpacking")
            return
        if name not in told:
            told[name] = Progress(f"{host}: {name}", int(state["bytes"]), _say, every=0)
        told[name].add(int(state["bytes_done"]) - told[name].done)


def _say(line: str) -> None:
    Display().display(f"    {line}")
