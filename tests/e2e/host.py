"""The machine below a sandbox: what it looks like, and where a sandbox still shows.

Other sandboxes may come and go meanwhile (the roles' tests run beside these) and share the daemon, so what is theirs
is left out of the comparison, and what is ours is looked for by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sandbox.lib.engine import Engine
from sandbox.lib.plan import Sandbox

#: Kernel figures that move by themselves; everything else under /proc/sys is a setting.
COUNTERS = (
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-",
    "fs/quota/",
    "kernel/ns_last_pid",
    "kernel/pty/nr",
    "kernel/random/",
    "net/netfilter/nf_conntrack_",
)
FILTERS = (
    ("iptables-legacy-save",),
    ("iptables-nft-save",),
    ("ip6tables-legacy-save",),
    ("ip6tables-nft-save",),
    ("nft", "--stateless", "list", "ruleset"),
)


def _lines(*command: str) -> list[str]:
    """The output of a program by line; nothing where the program or what it shows is missing."""
    if not shutil.which(command[0]):
        return []
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def machine(sandbox: Sandbox) -> set[str]:
    """What `sandbox` must leave as it found it, a line each: settings, mounts, filters, loops, network, processes."""
    root = str(Engine().root)
    state = set(_settings())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Number, parent, device, root, mount point, options; then fields of varying number; then type and source.
        fields, _, kind = line.partition(" - ")
        where = fields.split()[4]
        if not where.startswith(f"{root}/"):
            state.add(f"mount {where} of {fields.split()[3]} {kind.split()[0]}")
    for command in FILTERS:
        rules = (re.sub(r"\[\d+:\d+\]", "", line) for line in _lines(*command) if not line.startswith("#"))
        state.update(f"{command[0]}: {rule}" for rule in rules)
    for name, file, _ in _loops():
        # A file that is not here is a container's.
        if Path(file).exists():
            state.add(f"loop {name} of {file}")
    # Bridges and virtual cables of other sandboxes come and go; ours are found by address and by `traces`.
    for line in _lines("ip", "-brief", "link"):
        if not re.match(r"br-|veth", line):
            state.add(f"link {line.split()[0]}")
    subnet = sandbox.subnet
    state.update(f"address {line.split()[0]}" for line in _lines("ip", "-brief", "address") if _within(line, subnet))
    state.update(f"route {line}" for line in _lines("ip", "route") if _within(line, subnet))
    state.update(f"process {name}" for name in _processes_at(subnet))
    return state


def _within(text: str, subnet: IPv4Network) -> bool:
    """Whether a text names an address of this network."""
    found = re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text)
    return any(IPv4Address(address) in subnet for address in found)


def _settings() -> Iterator[str]:
    for path in Path("/proc/sys").rglob("*"):
        name = str(path.relative_to("/proc/sys"))
        # A network card's own settings come and go with it; whether the card is there is seen by its address.
        if name.startswith(COUNTERS) or re.match(r"net/ipv[46]/(conf|neigh)/(br-|veth)", name) or not path.is_file():
            continue
        try:
            yield f"{name} = {path.read_text().strip()}"
        except OSError:
            continue


def _processes_at(subnet: IPv4Network) -> Iterator[str]:
    """Names of processes, outside this one's network namespace, that have an address of this network."""
    ours = os.readlink("/proc/self/ns/net")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "ns" / "net") != ours and _within((path / "net" / "fib_trie").read_text(), subnet):
                yield (path / "comm").read_text().strip()
        except OSError:  # it ended meanwhile
            continue


def _loops() -> Iterator[tuple[str, str, str]]:
    """Every loop device in use: its name, its file as seen from here, and what tells the file from all others."""
    shown = "".join(_lines("losetup", "--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE"))
    for loop in json.loads(shown or '{"loopdevices": []}')["loopdevices"]:
        name = Path(loop["name"]).name
        yield name, loop["back-file"], f"{name} {loop['back-maj:min'].strip()} {loop['back-ino']}"


def _loops_in(pid: int) -> set[str]:
    """The loop devices that a process has mounted."""
    try:
        table = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return set()
    return set(re.findall(r"/dev/(loop\d+) ", table))


def marks(sandbox: Sandbox) -> set[str]:
    """By what a sandbox that is up can be told: ids of containers, volumes, layers and network; loop devices."""
    engine = Engine()
    found = set(engine.networks(sandbox.name))
    loops: set[str] = set()
    for container in engine.containers(sandbox.name):
        found.add(container["Id"])
        found.add(Path(container["GraphDriver"]["Data"]["UpperDir"]).parent.name)
        loops |= _loops_in(container["State"]["Pid"])
        # A volume with a name of its own is the registry's, which is meant to stay.
        found.update(
            mount["Name"] for mount in container["Mounts"] if re.fullmatch("[0-9a-f]{64}", mount.get("Name", ""))
        )
    return found | {mark for name, _, mark in _loops() if name in loops}


def traces(marks: Iterable[str]) -> dict[str, list[str]]:
    """Where the marks of a sandbox show, by kind: `mounts`, `cgroups`, `links`, `processes`, `loops`, kept `data`."""
    known = set(marks)
    bridges = {f"br-{mark[:12]}" for mark in known}

    def marked(text: str) -> bool:
        return any(word in known for word in re.findall("[0-9a-f]{64}", text))

    root = Engine().root
    found = {
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if marked(line)],
        "cgroups": [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if marked(folder)],
        "links": [line for line in _lines("ip", "-brief", "link") if line.split()[0] in bridges],
        "processes": [],
        "loops": [name for name, _, mark in _loops() if mark in known],
        "data": [str(path) for path in root.glob("data/*/*") if marked(path.name)],
    }
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text(errors="replace").replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
        if marked(command):
            found["processes"].append(command)
    return {kind: places for kind, places in found.items() if places}


def remains_of_the_daemon() -> list[str]:
    """What is left of the daemon itself, which ends with the last sandbox: process, socket, control group, mounts."""
    engine = Engine()
    found = [f"process {engine.pid()}"] if engine.pid() else []
    found += [str(path) for path in (engine.socket, engine.pidfile, engine.root / "exec") if path.exists()]
    found += [str(path) for pattern in ("", "*/") for path in Path("/sys/fs/cgroup").glob(pattern + engine.cgroup)]
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return found + [point for point in mounts if point.startswith(f"{engine.root}/")]
