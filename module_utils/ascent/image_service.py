"""Runs `ascent.image_server` on a host, as a service of systemd that outlives the call, and takes it away again."""

from __future__ import annotations

__all__ = ["UNIT", "Service"]

import http.client
import inspect
import json
import os
import shutil
import sys
import time
from typing import Any, Callable, Dict, List, Mapping

from . import errors, image_server, image_store, registry
from .errors import AscentError, ToolError
from .image_server import LOOPBACK

#: The service's name for systemd.
UNIT = "ascent-images.service"

#: Where its program and configuration lie: gone with the next boot, like the service.
DIRECTORY = "/run/ascent-images"

_PROGRAM = (errors, registry, image_store, image_server)


class Service:
    """The service of one host. ``run`` is a module's run_command."""

    def __init__(self, run: Callable[..., Any], store: str, port: int, directory: str = DIRECTORY) -> None:
        self._run = run
        self.store = store
        self.port = port
        self.directory = directory

    def exists(self) -> bool:
        """Whether anything of it is on the host: program, store, or the running service."""
        return any(os.path.exists(path) for path in (self.directory, self.store))

    def start(self, configuration: Mapping[str, Any]) -> None:
        """Start it, in place of one that an earlier run left. ToolError when it does not answer."""
        self._stop()
        package = os.path.join(self.directory, "ascent")
        os.makedirs(package, mode=0o700, exist_ok=True)
        for module in _PROGRAM:
            name = module.__name__.rpartition(".")[2]
            _write(os.path.join(package, f"{name}.py"), inspect.getsource(module))
        _write(os.path.join(package, "__init__.py"), "")
        path = os.path.join(self.directory, "configuration.json")
        _write(path, json.dumps(configuration))
        command = ["systemd-run", "--quiet", f"--unit={UNIT}", f"--setenv=PYTHONPATH={self.directory}"]
        code, _, err = self._run([*command, sys.executable, "-m", "ascent.image_server", path])
        if code:
            raise ToolError("systemd-run", f"the service that hands images on does not start: {err.strip()}", code)
        self._wait()

    def remove(self, keep_store: bool = False) -> None:
        """End it and remove what it had; its store may stay for the next attempt."""
        self._stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        if not keep_store:
            shutil.rmtree(self.store, ignore_errors=True)

    def status(self) -> Dict[str, Any]:
        """What it counted and what went wrong, see `image_server.Server.status`."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=10)
        try:
            connection.request("GET", "/status")
            return dict(json.loads(connection.getresponse().read()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AscentError(f"the service that hands images on ended: {error}; see journalctl -u {UNIT}") from None
        finally:
            connection.close()

    def errors(self) -> List[str]:
        """What went wrong in it, in order."""
        return list(self.status()["errors"])

    def _stop(self) -> None:
        # Also one that has failed, since its name is taken until it is reset. There may be none: that is fine, too.
        self._run(["systemctl", "stop", UNIT])
        self._run(["systemctl", "reset-failed", UNIT])

    def _wait(self, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not self._answers():
            if time.monotonic() > end:
                _, journal, _ = self._run(["journalctl", "--unit", UNIT, "--lines", "5", "--output", "cat"])
                raise ToolError(UNIT, f"it does not answer on port {self.port}. Journal: {journal.strip()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            self.status()
        except AscentError:
            return False
        return True


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(path, 0o600)
