"""Runs a playbook and kills it while a host is in the middle of an image: kill.py ADDRESS COMMAND..."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

address, command = sys.argv[1], sys.argv[2:]
ssh = ["ssh", *shlex.split(os.environ["ANSIBLE_SSH_COMMON_ARGS"]), f"root@{address}"]
# Some of it has come, and not all.
coming = "find /var/lib/ascent/images -name '*.part' -size +2M | grep -q ."

run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
while subprocess.run([*ssh, coming], check=False, stderr=subprocess.DEVNULL).returncode:
    if run.poll() is not None:
        sys.exit(f"it ended before it could be killed:\n{run.communicate()[0]}")
    time.sleep(0.2)
os.killpg(run.pid, signal.SIGKILL)
