#!/usr/bin/env python3
"""The half of fault injection that runs on a node: changes things there, remembers what they were, puts them back.

One call does one request, the JSON of the first argument, and prints one JSON answer. The program is sent over ssh with
every call, so nothing of it is installed. What was changed is in the journal on the node, written before anything is
touched: a call that was killed, or a controller that died, leaves a fault that can be healed.

Every thing that can be changed is a *cell*: a value in a JSON file, a file, a packet filter rule, a process, a mount, a
container. Faults lie on a cell in layers, in the order they came; a cell holds its original with all layers applied, so
faults can be healed in any order. A cell that somebody else has changed since (a repair, a reboot) is left as it is.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JOURNAL = Path("/var/lib/sandbox/faults.json")
STATE = Path("/usr/local/dcmi/state.json")
STATE_LOCK = STATE.parent / "state.lock"
BOOT = "/usr/local/lib/sandbox/boot"
SCRATCH = Path("/run/sandbox-faults")
LARGEST_FILE = 64 << 20
MODELS = "/root/.cache/modelscope/hub/models/*/*/model.safetensors.index.json"

Change = dict[str, Any]
ABSENT = {"type": "absent"}


class AgentError(Exception):
    """The request can't be done here; the message says why. Nothing was changed, or it was put back."""


def run(*argv: str, text: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs a program and returns what it did, whatever its status."""
    try:
        return subprocess.run(argv, input=text, capture_output=True, check=False)
    except FileNotFoundError:
        raise AgentError(f"{argv[0]} is not installed on this node") from None


def must(*argv: str, text: bytes | None = None) -> None:
    """Runs a program that has to succeed. Raises AgentError with its words."""
    done = run(*argv, text=text)
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise AgentError(f"{' '.join(argv)[:200]} ended with {done.returncode}: {words}")


def replace(path: Path, data: bytes, mode: int) -> None:
    """Writes a file in one step; in place where that can't be: knobs, mounts, the clock that all map."""
    if not str(path).startswith(("/proc/", "/sys/", "/etc/sandbox/")):
        new = path.with_name(f".{path.name}.fault")
        new.write_bytes(data)
        new.chmod(mode)
        try:
            new.replace(path)
            return
        except OSError:  # a mount
            new.unlink()
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()


class JsonValue:
    """A value in a JSON file; `at` is a list of keys, indexes and `{key: value}`, the list's element that has it.

    What is read is `[value]`, or `[]` where there is none.
    """

    def __init__(self, change: Change) -> None:
        self.path, self.at = Path(change["file"]), change["at"]
        self.moving = bool(change.get("moving"))

    def find(self, document: Any) -> tuple[Any, Any]:
        """The container that holds the value, and the value's key in it."""
        for index, step in enumerate(self.at):
            if isinstance(step, dict):
                ((name, wanted),) = step.items()
                places = [place for place, each in enumerate(document) if each.get(name) == wanted]
                if not places:
                    raise AgentError(f"{self.path} has nothing with {name} {wanted}; another fault may have removed it")
                step = places[0]
            if index == len(self.at) - 1:
                return document, step
            try:
                document = document[step]
            except (KeyError, IndexError, TypeError):
                raise AgentError(f"{self.path} has no {self.at}: this node's kind does not know it") from None
        raise AgentError("a JSON change needs a place")

    def document(self) -> Any:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def read(self) -> Any:
        holder, key = self.find(self.document())
        if isinstance(holder, list):
            return [holder[key]]
        return [holder[key]] if key in holder else []

    def write(self, value: Any) -> None:
        document = self.document()
        holder, key = self.find(document)
        if value:
            holder[key] = value[0]
        else:
            holder.pop(key, None)
        if not document:
            self.path.unlink()
            return
        mode = stat.S_IMODE(self.path.stat().st_mode) if self.path.exists() else 0o644
        replace(self.path, (json.dumps(document, indent=1) + "\n").encode(), mode)

    @staticmethod
    def edited(value: Any, change: Change) -> Any:
        del value
        return [change["value"]] if "value" in change else []


class NodeFile:
    """A file, directory, link or device file: everything about it but its times."""

    moving = False

    def __init__(self, change: Change) -> None:
        self.path = Path(change["path"])

    def read(self) -> Any:
        try:
            found = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT
        value: dict[str, Any] = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
        if stat.S_ISLNK(found.st_mode):
            return {"type": "link", "target": os.readlink(self.path)}
        if stat.S_ISCHR(found.st_mode):
            return {"type": "device", "number": found.st_rdev, **value}
        if stat.S_ISDIR(found.st_mode):
            return {"type": "directory", **value}
        if found.st_size > LARGEST_FILE:
            raise AgentError(f"{self.path} has {found.st_size} bytes; at most {LARGEST_FILE} are remembered")
        return {"type": "file", "content": base64.b64encode(self.path.read_bytes()).decode(), **value}

    def write(self, value: Any) -> None:
        if value["type"] == "absent":
            self.path.unlink()
            return
        if value["type"] == "directory":
            self.path.chmod(value["mode"])
            return
        if value["type"] == "link":
            self.path.symlink_to(value["target"])
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if value["type"] == "device":
            os.mknod(self.path, stat.S_IFCHR | value["mode"], value["number"])
        else:
            replace(self.path, base64.b64decode(value["content"]), value["mode"])
        self.path.chmod(value["mode"])
        os.chown(self.path, value["uid"], value["gid"])

    def edited(self, value: Any, change: Change) -> Any:
        """The value after one edit: absent, text, bytes, append, sub [regex, by], keep a share, flip a byte, mode."""
        if change.get("absent"):
            if value["type"] == "directory":
                raise AgentError(f"{self.path} is a directory; only a file can be taken away")
            if value["type"] == "absent":
                raise AgentError(f"{self.path} does not exist on this node")
            return ABSENT
        if value["type"] == "absent":
            if "text" not in change and "append" not in change:
                raise AgentError(f"{self.path} does not exist on this node")
            value = {"type": "file", "mode": 0o644, "uid": 0, "gid": 0, "content": ""}
        if "mode" in change:
            return {**value, "mode": change["mode"]}
        data = base64.b64decode(value["content"])
        if "text" in change:
            data = change["text"].encode()
        elif "bytes" in change:
            data = base64.b64decode(change["bytes"])
        elif "append" in change:
            data += change["append"].encode()
        elif "sub" in change:
            pattern, by = change["sub"]
            new = re.sub(pattern, by, data.decode(), flags=re.M).encode()
            if new == data:
                raise AgentError(f"{self.path} has nothing that {pattern} matches")
            data = new
        elif "keep" in change:
            data = data[: int(len(data) * change["keep"])]
        elif "flip" in change:
            place = change["flip"] % len(data)
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        return {**value, "content": base64.b64encode(data).decode()}


class Switch:
    """A cell that is there (True) or not; what it is stands in the change."""

    moving = False

    def __init__(self, change: Change) -> None:
        self.change = change

    @staticmethod
    def edited(value: Any, change: Change) -> Any:
        del value, change
        return True

    def write(self, value: Any) -> None:
        if value:
            self.on()
        else:
            self.off()

    def on(self) -> None:
        raise NotImplementedError

    def off(self) -> None:
        raise NotImplementedError


class Rule(Switch):
    """A packet filter rule of the node's own network, put before all others of its chain."""

    def call(self, verb: str) -> list[str]:
        return ["iptables", "-w", verb, self.change["chain"], *self.change["match"]]

    def read(self) -> Any:
        return run(*self.call("-C")).returncode == 0

    def on(self) -> None:
        must(*self.call("-I"))

    def off(self) -> None:
        must(*self.call("-D"))


class Process(Switch):
    """A process that lives as a unit of its own until it is stopped or the node reboots.

    `ports`, where given, are those it binds; the change is done when they are bound.
    """

    def read(self) -> Any:
        return run("systemctl", "is-active", "--quiet", self.change["unit"]).returncode == 0

    def on(self) -> None:
        unit = self.change["unit"]
        must("systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=Type=notify",
             "--property=NotifyAccess=all", "--property=TimeoutStartSec=20", *self.change["argv"])  # fmt: skip

    def off(self) -> None:
        must("systemctl", "stop", self.change["unit"])


class SharedMemory:
    """The size of a file system in memory, in bytes."""

    moving = False

    def __init__(self, change: Change) -> None:
        self.path = change["path"]

    def read(self) -> Any:
        found = os.statvfs(self.path)
        return found.f_blocks * found.f_frsize

    def write(self, value: Any) -> None:
        must("mount", "-o", f"remount,size={value}", self.path)

    @staticmethod
    def edited(value: Any, change: Change) -> Any:
        del value
        return change["mb"] << 20


class SmallDisk(Switch):
    """A directory that keeps its content and takes only a few MB more; what is written meanwhile is gone afterwards."""

    def __init__(self, change: Change) -> None:
        super().__init__(change)
        self.path = change["path"]
        self.scratch = SCRATCH / self.path.strip("/").replace("/", "-")

    def read(self) -> Any:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8")
        return f"overlay {self.path} overlay " in mounts and f"upperdir={self.scratch}/" in mounts

    def on(self) -> None:
        if not os.path.isdir(self.path):
            raise AgentError(f"{self.path} is no directory on this node")
        self.scratch.mkdir(parents=True, exist_ok=True)
        must("mount", "-t", "tmpfs", "-o", f"size={self.change['mb']}m", "tmpfs", str(self.scratch))
        upper, work = self.scratch / "upper", self.scratch / "work"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir={self.path},upperdir={upper},workdir={work}"
        try:
            must("mount", "-t", "overlay", "overlay", "-o", layers, self.path)
        except AgentError:
            must("umount", str(self.scratch))
            raise

    def off(self) -> None:
        # Lazily: a process may have its working directory there.
        must("umount", "-l", self.path)
        must("umount", "-l", str(self.scratch))
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            SCRATCH.rmdir()


class Container(Switch):
    """A container of a tiny image made of the node's own shell, so that no registry is needed."""

    IMAGE = "localhost/leftover:1"
    PARTS = ("/bin/sh", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")

    def read(self) -> Any:
        return run("docker", "inspect", "--type=container", self.change["name"]).returncode == 0

    def on(self) -> None:
        if run("docker", "image", "inspect", self.IMAGE).returncode:
            libraries = re.findall(r"=> (/\S+)", run("ldd", "/bin/sh").stdout.decode())
            parts = [path for path in (*self.PARTS, *libraries) if os.path.exists(path)]
            archive = run("tar", "--create", "--dereference", "--absolute-names", *parts).stdout
            must("docker", "import", "-", self.IMAGE, text=archive)
        must("docker", *self.change["how"], f"--name={self.change['name']}", self.IMAGE, "/bin/sh", "-c",
             self.change["script"])  # fmt: skip

    def off(self) -> None:
        must("docker", "rm", "--force", self.change["name"])
        if not run("docker", "ps", "--all", "--quiet", f"--filter=ancestor={self.IMAGE}").stdout.strip():
            must("docker", "rmi", self.IMAGE)


KINDS: dict[str, Any] = {
    "json": JsonValue,
    "file": NodeFile,
    "rule": Rule,
    "process": Process,
    "shm": SharedMemory,
    "disk": SmallDisk,
    "container": Container,
}
# What names a cell; the rest of a change says what becomes of it.
IDENTITY = {
    "json": ("file", "at"),
    "file": ("path",),
    "rule": ("chain", "match"),
    "process": ("unit",),
    "shm": ("path",),
    "disk": ("path",),
    "container": ("name",),
}


def key_of(change: Change) -> str:
    """The name of the cell that a change is of."""
    return json.dumps([change["kind"], *(change[part] for part in IDENTITY[change["kind"]])], sort_keys=True)


class Journal:
    """The faults that are on this node, and the cells they lie on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"faults": {}, "cells": {}}
        # {"C10 device=3": {"id", "name", "arguments", "since"}}
        self.faults: dict[str, dict[str, Any]] = document["faults"]
        # {key: {"change": the first one, "original", "ours": what was last written, "layers": [[fault, change], ...]}}
        self.cells: dict[str, dict[str, Any]] = document["cells"]

    def save(self) -> None:
        """Writes the journal, or removes it when no fault is left."""
        if not self.faults:
            self.path.unlink(missing_ok=True)
            return
        new = self.path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({"faults": self.faults, "cells": self.cells}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def refuse_overlaps(self, key: str, change: Change) -> None:
        """A value inside one that another fault has replaced can't be put back on its own."""
        if change["kind"] != "json":
            return
        for other, cell in self.cells.items():
            theirs, ours = cell["change"].get("at"), change["at"]
            if other == key or theirs is None or cell["change"]["file"] != change["file"]:
                continue
            shorter = min(len(theirs), len(ours))
            if theirs[:shorter] == ours[:shorter]:
                raise AgentError(f"{cell['layers'][-1][0]} has changed {theirs} of {change['file']}; heal it first")

    def layer(self, fault: str, change: Change) -> str:
        """Lays one change on its cell, in the journal alone, and returns the cell's key."""
        key = key_of(change)
        self.refuse_overlaps(key, change)
        kind = KINDS[change["kind"]](change)
        cell = self.cells.get(key)
        current = kind.read()
        if cell is None or (current != cell["ours"] and not kind.moving and not self.has(cell, fault)):
            cell = self.cells[key] = {"change": change, "original": current, "ours": current, "layers": []}
        # Over the layers below, so that an edit that finds nothing to change is refused.
        cell["ours"] = kind.edited(cell["ours"], change)
        cell["layers"].append([fault, change])
        return key

    @staticmethod
    def has(cell: dict[str, Any], fault: str) -> bool:
        """Whether a fault has a layer on this cell."""
        return any(name == fault for name, _ in cell["layers"])

    def lift(self, fault: str) -> list[str]:
        """Takes a fault off all its cells; notes on those that somebody else has changed since."""
        notes = []
        # Backwards, so that a process ends before what it works on is put back.
        for key in reversed([key for key, cell in self.cells.items() if self.has(cell, fault)]):
            cell = self.cells[key]
            kind = KINDS[cell["change"]["kind"]](cell["change"])
            remaining = [layer for layer in cell["layers"] if layer[0] != fault]
            try:
                current = kind.read()
            except AgentError:  # what held it is gone
                current = None
            wanted = folded(cell["original"], remaining)
            if current not in (cell["ours"], wanted) and not (kind.moving and current is not None):
                notes.append(f"{describe(cell['change'])} was changed by something else since: left as it is")
                del self.cells[key]
                continue
            if wanted != current:
                kind.write(wanted)
            cell.update(layers=remaining, ours=wanted)
            if not remaining:
                del self.cells[key]
        self.faults.pop(fault, None)
        self.save()
        return notes


def folded(value: Any, layers: list[list[Any]]) -> Any:
    """A cell's original with layers applied. One whose text is gone, with a layer below it, is passed over."""
    for _, change in layers:
        with contextlib.suppress(AgentError):
            value = KINDS[change["kind"]](change).edited(value, change)
    return value


def intact(cell: dict[str, Any]) -> bool:
    """Whether a cell still holds what was written to it."""
    kind = KINDS[cell["change"]["kind"]](cell["change"])
    return kind.moving or kind.read() == cell["ours"]


def describe(change: Change) -> str:
    """A cell in words."""
    return " ".join(str(change[part]) for part in IDENTITY[change["kind"]])


def settle(changes: list[Change]) -> None:
    """What has to follow a change of the state: the addresses on the node's network interface."""
    touched = any(change["kind"] == "json" and change["file"] == str(STATE) for change in changes)
    if touched and os.path.exists(BOOT):
        must(BOOT, "addresses")


def inject(journal: Journal, request: dict[str, Any]) -> dict[str, Any]:
    """Brings a fault about, all of it or nothing. One that is there already and whole is left alone."""
    name, changes = request["key"], request["changes"]
    if name in journal.faults:
        cells = [journal.cells.get(key_of(change)) for change in changes]
        if all(cell and journal.has(cell, name) and intact(cell) for cell in cells):
            return {"changed": False, "notes": []}
        journal.lift(name)
    touched = dict.fromkeys(journal.layer(name, change) for change in changes)
    journal.faults[name] = {**request["fault"], "since": int(time.time())}
    journal.save()
    try:
        for key in touched:
            cell = journal.cells[key]
            kind = KINDS[cell["change"]["kind"]](cell["change"])
            if kind.read() != cell["ours"]:
                kind.write(cell["ours"])
        settle(changes)
    except (AgentError, OSError):
        journal.lift(name)
        settle(changes)
        raise
    return {"changed": True, "notes": []}


def heal(journal: Journal, request: dict[str, Any]) -> dict[str, Any]:
    """Takes off the faults of an id, or all of them, the newest first."""
    wanted = request.get("id")
    chosen = [name for name, fault in reversed(journal.faults.items()) if wanted in (None, fault["id"])]
    notes: list[str] = []
    for name in chosen:
        changes = [change for cell in journal.cells.values() for layer, change in cell["layers"] if layer == name]
        notes += journal.lift(name)
        settle(changes)
    return {"healed": chosen, "notes": notes}


def facts(journal: Journal, fault: str) -> dict[str, Any]:
    """What the faults' definitions are written against; as if `fault` were not there, so that it comes out the same."""
    state = json.loads(STATE.read_text(encoding="utf-8"))
    for cell in journal.cells.values():
        change = cell["change"]
        if change["kind"] == "json" and change["file"] == str(STATE) and journal.has(cell, fault):
            holder, key = JsonValue(change).find(state)
            holder[key] = folded(cell["original"], [layer for layer in cell["layers"] if layer[0] != fault])[0]
    return {
        "state": state,
        "models": sorted(
            str(path.parent) for path in Path("/").glob(MODELS.lstrip("/")) if not path.parent.is_symlink()
        ),
        "shm_mb": SharedMemory({"path": "/dev/shm"}).read() >> 20,  # noqa: S108 -- measured, not written to
        "docker": shutil.which("docker") is not None,
    }


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One agent at a time, and no other writer of the state meanwhile."""
    JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for path in (JOURNAL.with_suffix(".lock"), STATE_LOCK):
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One request: `facts`, `inject`, `heal` or `active`."""
    with alone():
        journal = Journal(JOURNAL)
        if request["do"] == "facts":
            return facts(journal, request["key"])
        if request["do"] == "inject":
            return inject(journal, request)
        if request["do"] == "heal":
            return heal(journal, request)
        return {"faults": journal.faults}


def main(arguments: list[str]) -> int:
    """Prints `{"ok": answer}` or `{"error": words}`."""
    try:
        result = {"ok": answer(json.loads(arguments[0]))}
    except (AgentError, OSError, ValueError) as error:
        result = {"error": str(error)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
