"""What one image costs a cluster: handed from host to host, against a pull by every host.

    python bench/image_spread.py [--nodes 8] [--megabytes 200] [--rate 50] [--fan-out 2]

Boots a sandbox of its own, publishes an image of random content, and brings it to all nodes both ways. The registry
stands behind a relay on this machine that counts what leaves it and lets through so many MB/s in all (0: no limit), as
the line of a site does. Prints figures; judges nothing. The sandbox is taken down again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
NAME = "image-spread"
NETWORK = "100.67.0"
REGISTRY = f"{NETWORK}.2:5000"
IMAGE = "bench/spread:v1"
PULL = "images : Pull the images by their digests"


class Relay:
    """Passes connections on to the registry; counts and paces the bytes that come back."""

    def __init__(self, address: str, target: tuple[str, int], rate: float) -> None:
        self.sent = 0
        self._target, self._rate = target, rate
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._listener = socket.create_server((address, 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                if counted:
                    time.sleep(self._wait(len(chunk)))
                sink.sendall(chunk)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _wait(self, size: int) -> float:
        """Seconds until so many bytes may go: all connections share one line."""
        with self._lock:
            self.sent += size
            if not self._rate:
                return 0.0
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            return self._free_at - now

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def inventory(nodes: int) -> dict[str, Any]:
    """A sandbox of so many servers without accelerators."""
    state = ROOT / ".sandbox" / NAME
    hosts = {f"node-{number:02}": {"ansible_host": f"{NETWORK}.{number + 10}"} for number in range(1, nodes + 1)}
    variables = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(state / "id_ed25519"),
        "ansible_ssh_common_args": "-o IdentitiesOnly=yes -o StrictHostKeyChecking=yes "
        f"-o UserKnownHostsFile={state / 'known_hosts'}",
        "sandbox_subnet": f"{NETWORK}.0/18",
        "sandbox_services": f"{NETWORK}.2",
        "sandbox_profile": "cpu",
    }
    return {"all": {"children": {"clusters": {"children": {NAME: {"vars": variables, "hosts": hosts}}}}}}


def playbook(hosts: dict[str, Any], registry: str, **variables: Any) -> list[dict[str, Any]]:
    """A play that brings the image with the role, after whatever an earlier way left is removed."""
    addresses = {name: host["ansible_host"] for name, host in hosts.items()}
    read = {"node_info": {"cluster": NAME, "gather": ["system", "container_engine"]}}
    return [
        {
            "name": "Bring the image",
            "hosts": NAME,
            "gather_facts": False,
            "any_errors_fatal": True,
            "vars": {
                "ascent_stage": "provision",
                "images_references": [f"{registry}/{IMAGE}"],
                "images_addresses": addresses,
                **variables,
            },
            "tasks": [
                {"ansible.builtin.command": {"argv": ["docker", "image", "prune", "--all", "--force"]}},
                read,
                {"ansible.builtin.import_role": {"name": "images"}},
            ],
        }
    ]


def prepare(registries: list[str], megabytes: int) -> list[dict[str, Any]]:
    """Plays that install the engine everywhere, and publish the image from the first host."""
    push = f"{REGISTRY}/{IMAGE}"
    commands = [
        ["dd", "if=/dev/urandom", "of=/root/content", "bs=1000000", f"count={megabytes}"],
        ["tar", "--create", "--file", "/root/content.tar", "--directory", "/root", "content"],
        ["docker", "import", "/root/content.tar", push],
        ["docker", "push", push],
        ["rm", "/root/content", "/root/content.tar"],
    ]
    return [
        {
            "name": "Install the engine",
            "hosts": NAME,
            "gather_facts": False,
            "tasks": [
                {"node_info": {"cluster": NAME, "gather": ["system", "container_engine"]}},
                {
                    "ansible.builtin.import_role": {"name": "container_engine"},
                    "vars": {"container_engine_insecure_registries": registries},
                },
            ],
        },
        {
            "name": "Publish the image",
            "hosts": "node-01",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.command": {"argv": command}} for command in commands],
        },
    ]


def play(directory: Path, plays: list[dict[str, Any]]) -> dict[str, Any]:
    """Run plays on the sandbox; the run record, empty where no play has a stage. Exits when it fails."""
    path = directory / "play.yml"
    path.write_text(yaml.safe_dump(plays, sort_keys=False))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(directory / "hosts.yml"), str(path)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ASCENT_RUNS_DIR": str(directory / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout)
    record = directory / "runs" / "latest" / "run.json"
    return dict(json.loads(record.read_text())) if record.exists() else {}


@contextlib.contextmanager
def sandbox(directory: Path) -> Iterator[None]:
    """The sandbox of the inventory in the directory, as long as the block lasts."""
    command = [sys.executable, str(ROOT / "sandbox/cluster.py")]
    try:
        subprocess.run([*command, "up", "--inventory", str(directory / "hosts.yml")], check=True)
        yield
    finally:
        subprocess.run([*command, "down", "--inventory", str(directory / "hosts.yml")], check=True)


def main() -> None:
    """Measure both ways, the direct one first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the image, which does not compress")
    parser.add_argument("--rate", type=float, default=50, help="MB/s that leave the registry in all; 0: no limit")
    parser.add_argument("--fan-out", type=int, default=2)
    options = parser.parse_args()

    rows: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = inventory(options.nodes)
        (directory / "hosts.yml").write_text(yaml.safe_dump(made))
        hosts = made["all"]["children"]["clusters"]["children"][NAME]["hosts"]
        with sandbox(directory):
            host, port = REGISTRY.split(":")
            relay = Relay(f"{NETWORK}.1", (host, int(port)), options.rate * 1e6)
            source = f"{NETWORK}.1:{relay.port}"
            play(directory, prepare([REGISTRY, source], options.megabytes))
            for way in ("direct", "tree"):
                before = relay.sent
                record = play(
                    directory, playbook(hosts, source, images_distribution=way, images_fan_out=options.fan_out)
                )
                seconds = next(task["seconds"] for task in record["tasks"] if task["name"] == PULL)
                rows[way] = ((relay.sent - before) / 1e6, seconds)
            relay.close()

    line = f"{options.rate:g} MB/s" if options.rate else "no limit"
    table = Table(
        "",
        "MB that left the registry",
        "copies",
        "seconds",
        title=f"An image of {options.megabytes} MB to {options.nodes} nodes, line: {line}, fan-out {options.fan_out}",
    )
    for way, text in (("direct", "every node pulls"), ("tree", "handed from node to node")):
        moved, seconds = rows[way]
        table.add_row(text, f"{moved:.0f}", f"{moved / options.megabytes:.2f}", f"{seconds:.1f}")
    ratios = [f"{rows['direct'][axis] / rows['tree'][axis]:.1f}" for axis in (0, 1)]
    table.add_row("ratio", ratios[0], "", ratios[1])
    Console().print(table)


if __name__ == "__main__":
    main()
