"""Who works on a cluster: a lease in a file of one of its nodes, so that two controllers never deploy at once.

The holder renews the lease while it lives; what is not renewed for ``ttl`` seconds has lapsed, whoever wrote it. Time
is the node's own. A lease is::

    {"id": "…", "owner": {"user", "host", "pid", "doing"}, "taken": 1767225600.0, "renewed": 1767225615.0}

``doing`` is the holder's command line without secrets.
"""

from __future__ import annotations

__all__ = ["MARK", "VERBS", "change", "main"]

import fcntl
import json
import os
import sys
import time
from typing import Any, Dict, Optional

#: Begins the answer's line, so that a login banner or a notice of sudo can stand before it.
MARK = "ascent-lease:"

#: What can be done with a lease.
VERBS = ("take", "renew", "release")

# A clock that was set back must not make a lease live for ever.
_AHEAD = 5.0


def change(path: str, verb: str, wanted: Dict[str, Any], ttl: float, now: float, force: bool = False) -> Dict[str, Any]:
    """Take, renew or release the lease ``wanted`` = ``{"id", "owner"}`` in the file ``path``.

    Returns ``{"held", "by"}``: whether it is ours now, and where it is not, the lease that stands in the way.
    ``force`` takes it from whoever has it. OSError when the file can't be written.
    """
    os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        os.chmod(path, 0o640)
        # The file stays when a lease ends: whoever waits for the lock has the same one in hand.
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        there = _read(stream.read())
        mine = there is not None and there["id"] == wanted["id"]
        if verb == "release":
            if mine:
                stream.truncate(0)
            return {"held": False, "by": None}
        lives = there is not None and now - ttl < there["renewed"] < now + _AHEAD
        if not mine and (verb == "renew" or (lives and not force)):
            return {"held": False, "by": there}
        taken = there["taken"] if there is not None and mine else now
        stream.truncate(0)
        stream.write(json.dumps({**wanted, "taken": taken, "renewed": now}) + "\n")
        return {"held": True, "by": None}


def _read(text: str) -> Optional[Dict[str, Any]]:
    """The lease in the file; None for an empty one, or one that a power cut left half written."""
    try:
        found = json.loads(text)
        return {**found, "taken": float(found["taken"]), "renewed": float(found["renewed"]), "id": str(found["id"])}
    except (KeyError, TypeError, ValueError):
        return None


def main(request: str) -> None:
    """Answer a request, the arguments of `change` as JSON, on one line of standard output, behind `MARK`."""
    try:
        answer = {**change(**json.loads(request), now=time.time()), "error": None}
    except OSError as error:
        answer = {"held": False, "by": None, "error": str(error)}
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
