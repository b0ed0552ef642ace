"""The sandbox's own Docker daemon: one for all sandboxes of a user, with a cache that outlives them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandbox.lib.plan import NETWORKS, SandboxError

LABEL = "ascent.sandbox"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 30


def cache_directory() -> Path:
    """Where images, the registry's content and the daemon live: `$XDG_CACHE_HOME/ascent-sandbox`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ascent-sandbox"


def find_daemon() -> tuple[Path, Path]:
    """The daemon and the client that came with it. Raises SandboxError with the command that installs them."""
    daemon = shutil.which("dockerd", path="/usr/sbin:/usr/bin:/sbin:/usr/local/bin:" + os.environ.get("PATH", ""))
    if not daemon:
        raise SandboxError("dockerd is not installed. On Debian: sudo apt-get install docker.io debootstrap iptables")
    # Another, newer client may come first on PATH; the one beside the daemon speaks its version.
    for directory in (Path(daemon).parent, Path("/usr/bin"), Path("/usr/local/bin")):
        if (directory / "docker").exists():
            return Path(daemon), directory / "docker"
    raise SandboxError(f"no docker client beside {daemon}. On Debian: sudo apt-get install docker.io")


@contextlib.contextmanager
def exclusive(say: Any = print) -> Iterator[None]:
    """Holds the lock that keeps two `up` or `down` apart, whatever checkout they come from."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another sandbox command to end ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wreckage(prefix: str) -> set[int]:
    """The live processes with an argument that starts with `prefix`, such as a container's shim, and their children."""
    parents: dict[int, int] = {}
    chosen = set()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            arguments = (directory / "cmdline").read_bytes()
            # After the name, which is in brackets and may hold anything: state, parent.
            parents[int(directory.name)] = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if any(argument.startswith(prefix.encode()) for argument in arguments.split(b"\0")):
            chosen.add(int(directory.name))
    return chosen | {pid for pid, parent in parents.items() if parent in chosen}


def inotify_instances(proc: Path = Path("/proc")) -> tuple[int, int]:
    """How many inotify instances the processes of this machine hold, and how many one user may hold."""
    held = 0
    for descriptors in proc.glob("[0-9]*/fd"):
        # A process that ends meanwhile takes its descriptors along.
        with contextlib.suppress(OSError):
            held += sum(os.readlink(each.path) == "anon_inode:inotify" for each in os.scandir(descriptors))
    return held, int((proc / "sys/fs/inotify/max_user_instances").read_text())


class Engine:
    """The private daemon and its command line."""

    def __init__(self) -> None:
        """Looks for the programs; starts nothing."""
        self.daemon, self.client = find_daemon()
        self.root = cache_directory()
        self.socket = self.root / "docker.sock"
        self.pidfile = self.root / "docker.pid"
        # Another user's daemon has another cache, so that neither takes the other's control groups for its own.
        self.cgroup = "ascent-sandbox-" + hashlib.sha256(str(self.root).encode()).hexdigest()[:8]

    def pid(self) -> int | None:
        """The daemon's process id while it runs."""
        try:
            pid = int(self.pidfile.read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.root / "data").encode() in arguments else None

    def used(self) -> bool:
        """Whether the daemon ever ran, so that it may have something to remove."""
        return (self.root / "data").is_dir()

    def start(self) -> bool:
        """Starts the daemon unless it runs; True when it had to be started."""
        if self.pid():
            return False
        if os.geteuid() != 0:
            raise SandboxError("the sandbox runs a Docker daemon of its own, which takes root: run this with sudo")
        self.root.mkdir(parents=True, exist_ok=True)
        self._clear_wreck()
        command = [
            str(self.daemon),
            f"--host=unix://{self.socket}",
            "--data-root",
            str(self.root / "data"),
            "--exec-root",
            str(self.root / "exec"),
            "--pidfile",
            str(self.pidfile),
            # Nothing of the machine's network set-up is touched: no bridge, no packet filter, no forwarding.
            "--bridge=none",
            "--iptables=false",
            "--ip-forward=false",
            "--ip-masq=false",
            f"--cgroup-parent=/{self.cgroup}",
            *(f"--insecure-registry={network}" for network in NETWORKS),
        ]
        with (self.root / "docker.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if self.socket.exists() and self.run("version", check=False).returncode == 0:
                return True
            time.sleep(0.1)
        if process.poll() is None:
            process.terminate()
        tail = (self.root / "docker.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise SandboxError("the sandbox's dockerd did not start; its log ends with:\n  " + "\n  ".join(tail))

    def stop(self) -> None:
        """Stops the daemon and removes what it leaves outside its data: control groups and mounts."""
        pid = self.pid()
        if pid:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self.pid() and time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                time.sleep(0.05)
            if self.pid():
                raise SandboxError(f"dockerd (pid {pid}) does not stop; see {self.root / 'docker.log'}")
        self._clear_wreck()
        for pattern in (self.cgroup, f"*/{self.cgroup}"):
            for top in Path("/sys/fs/cgroup").glob(pattern):
                # Below it only a crash leaves anything.
                for group in [*sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True), top]:
                    with contextlib.suppress(OSError):
                        group.rmdir()

    def _clear_wreck(self) -> None:
        """Removes what a daemon that did not end in order left running or mounted; nothing after an orderly end."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while wreck := wreckage(f"{self.root}/exec/"):
            for pid in wreck:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise SandboxError(f"processes of an earlier sandbox daemon do not end: {sorted(wreck)}")
            time.sleep(0.05)
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((point for point in points if point.startswith(f"{self.root}/")), reverse=True):
            subprocess.run(["umount", point], check=False, capture_output=True)
        shutil.rmtree(self.root / "exec", ignore_errors=True)
        self.socket.unlink(missing_ok=True)
        self.pidfile.unlink(missing_ok=True)

    def command(self, *arguments: str) -> list[str]:
        """The command line of one call of the client."""
        return [str(self.client), "-H", f"unix://{self.socket}", *arguments]

    def run(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """One call of the client with its output as text. Raises SandboxError with the client's own words."""
        options.setdefault("text", True)
        done = subprocess.run(self.command(*arguments), capture_output=True, check=False, **options)
        if check and done.returncode:
            output = done.stderr or done.stdout
            text = output.decode(errors="replace") if isinstance(output, bytes) else output
            raise SandboxError(f"docker {' '.join(arguments[:3])}: {text.strip()}")
        return done

    def inspect(self, kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """What the daemon knows about objects; those that don't exist are left out."""
        if not names:
            return []
        return json.loads(self.run(kind, "inspect", *names, check=False).stdout or "[]")

    def containers(self, sandbox: str | None = None) -> list[dict[str, Any]]:
        """The containers of a sandbox, or of all, running or not."""
        chosen = f"label={LABEL}" + (f"={sandbox}" if sandbox else "")
        ids = self.run("ps", "--all", "--quiet", "--no-trunc", "--filter", chosen).stdout.split()
        return self.inspect("container", ids)

    def networks(self, sandbox: str | None = None) -> list[str]:
        """The ids of the networks of a sandbox, or of all."""
        chosen = f"label={LABEL}" + (f"={sandbox}" if sandbox else "")
        return self.run("network", "ls", "--quiet", "--no-trunc", "--filter", chosen).stdout.split()

    def remove(self, sandbox: str | None = None) -> int:
        """Removes the containers, their volumes, shares and the network of a sandbox or of all; how many there were."""
        ids = [container["Id"] for container in self.containers(sandbox)]
        if ids:
            self.run("rm", "--force", "--volumes", *ids)
        for network in self.networks(sandbox):
            self.run("network", "rm", network)
        chosen = f"label={LABEL}" + (f"={sandbox}" if sandbox else "")
        if shares := self.run("volume", "ls", "--quiet", "--filter", chosen).stdout.split():
            self.run("volume", "rm", *shares)
        return len(ids)

    def sandboxes(self) -> set[str]:
        """The names of all sandboxes that have containers."""
        return {container["Config"]["Labels"][LABEL] for container in self.containers()}
