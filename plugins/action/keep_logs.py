"""Action plugin ``keep_logs``: one archive of all nodes' logs on the controller."""

from __future__ import annotations

import base64
import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """See library/keep_logs.py for options and results."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Merge the archives."""
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {"collected": {"type": "dict", "required": True}, "dest": {"type": "path", "required": True}}
        )
        dest = Path(given["dest"]).absolute()
        if not self._task.check_mode:
            dest.parent.mkdir(parents=True, exist_ok=True)
            # Made for its owner alone from the first byte on, and there as a whole or not at all.
            handle, name = tempfile.mkstemp(dir=dest.parent, prefix=f".{dest.name}.")
            try:
                with os.fdopen(handle, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as merged:
                    for host, collected in sorted(given["collected"].items()):
                        _add(merged, host, base64.b64decode(collected["archive"]))
                os.replace(name, dest)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        return {**result, "changed": not self._task.check_mode, "dest": str(dest), "msg": f"logs: {dest}"}


def _add(merged: tarfile.TarFile, host: str, data: bytes) -> None:
    """Put one node's archive below a folder that is named as the inventory names the node."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            entry.name = f"{host}/{entry.name.partition('/')[2]}"
            merged.addfile(entry, content)
