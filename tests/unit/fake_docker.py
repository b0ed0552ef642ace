#!/usr/bin/env python3
"""Stands in for docker on PATH: containers are files under $FAKE_DOCKER, and logs grow while they are followed.

NAME.json is what inspect prints; NAME.log holds stamped lines; a container is over when its state is not "running".
Any call is written to calls, and `inspected` is there when an inspection has answered.
"""

import json
import os
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_DOCKER"])


def entry(name):
    try:
        return json.loads((HOME / f"{name}.json").read_text())
    except FileNotFoundError:
        return None


def inspect(names):
    found = [one for one in map(entry, names) if one]
    print(json.dumps(found), flush=True)
    (HOME / "inspected").touch()
    for name in names:
        if not entry(name):
            print(f"Error: No such container: {name}", file=sys.stderr)
    sys.exit(len(found) < len(names))


def logs(arguments):
    name = arguments[-1]
    since = arguments[arguments.index("--since") + 1] if "--since" in arguments else ""
    read = 0
    while True:
        running = entry(name)["State"]["Status"] == "running"
        text = (HOME / f"{name}.log").read_text()
        for line in text[read:].splitlines():
            if line.partition(" ")[0] >= since:
                print(line, flush=True)
        read = len(text)
        if "--follow" not in arguments or not running:
            return
        time.sleep(0.05)


def events():
    path, read = HOME / "events", 0
    while True:
        text = path.read_text() if path.exists() else ""
        sys.stdout.write(text[read:])
        sys.stdout.flush()
        read = len(text)
        time.sleep(0.05)


with (HOME / "calls").open("a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\n")
if sys.argv[1] == "inspect":
    inspect([name for name in sys.argv[2:] if name not in ("--type", "container")])
elif sys.argv[1] == "logs":
    logs(sys.argv[2:])
elif sys.argv[1] == "info":
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print((HOME / "clock").read_text() if (HOME / "clock").exists() else now)
else:
    events()
