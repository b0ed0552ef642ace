"""Everything on a node that tells of a trouble, as texts by file name, without secrets."""

from __future__ import annotations

__all__ = ["Runner", "collect", "pack"]

import io
import json
import os
import re
import shlex
import tarfile
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from . import secrets, units

#: Runs a program; (return code, stdout, stderr), as `command.run` does.
Runner = Callable[[Sequence[str]], Tuple[int, str, str]]

_DRIVER = "/usr/local/Ascend/driver"
_FILES = (
    "/etc/os-release",
    "/etc/hccn.conf",
    "/etc/docker/daemon.json",
    "/etc/hosts",
    f"{_DRIVER}/version.info",
    "/usr/local/Ascend/firmware/version.info",
    "/etc/ascend_install.info",
    "/proc/meminfo",
)
# From a text that is too long the end is kept: the last lines tell most.
_CUT = "... {} characters before this were left out ...\n"
_SECRET_NAME = re.compile(r"(?i)(?:pass(?:word|wd|phrase)|token|secret|api_?key|credential)\w*\Z")


def collect(cluster: str, run: Runner, *, root: str = "/", lines: int = 2000, limit: int = 4_000_000) -> Dict[str, str]:
    """Texts by their place in the archive.

    Of each container and each unit of ``cluster`` its last ``lines`` log lines and its settings; the kernel's and the
    engine's last messages; the vendor's tool; versions; the current generation and what stages keep. ``limit`` bounds
    each text, in characters. A program that fails leaves its message in place of its output.
    """
    found: Dict[str, str] = {}
    known: Set[str] = set()
    code, out, _ = run(
        ["docker", "ps", "--all", "--filter", f"label=ascent.cluster={cluster}", "--format", "{{.Names}}"]
    )
    for name in out.split() if code == 0 else []:
        found[f"containers/{name}.log"] = _said(run, "docker", "logs", "--timestamps", "--tail", str(lines), name)
        _, text, _ = run(["docker", "inspect", name])
        known |= _secrets_of(text)
        found[f"containers/{name}.json"] = text
    # One by one: a rank that says much would push another's last words out of what all of them say.
    for unit in _units(root, cluster):
        place = f"units/{unit[: -len('.service')]}"
        journal = ("journalctl", f"--unit={unit}", f"--lines={lines}", "--output=short-iso", "--no-pager")
        found[f"{place}.log"] = _said(run, *journal)
        found[f"{place}.service"] = _said(run, "systemctl", "cat", "--no-pager", unit)
        found[f"{place}.txt"] = _said(run, "systemctl", "show", "--no-pager", unit)
        known |= _environment(found[f"{place}.service"]) | _environment(found[f"{place}.txt"])
    for name, argv in _commands(lines).items():
        found[name] = _said(run, *argv)
    config, state = f"/etc/ascent/{cluster}", f"/var/lib/ascent/{cluster}"
    for folder in _below(root, f"{config}/secrets"):
        # Never part of the archive; what is in them may have found its way into what is.
        for path in _below(root, folder):
            known |= _kept(root, path)
    for path in (*_FILES, *_below(root, f"{config}/current"), *_below(root, state)):
        content = _read(root, path)
        if content is not None:
            known |= _assigned(content)
            found[f"files{path}"] = content
    return {name: _cut(secrets.mask(text, known), limit) for name, text in found.items()}


#: Words of a file of secrets that can be one: keys, and lines of a private key.
_SECRET_WORD = re.compile(r"[A-Za-z0-9._~+/-]{12,}=*")


def _kept(root: str, path: str) -> Set[str]:
    """The secrets that a file of `access.secret_files` holds; certificates are none."""
    text = "" if path.endswith(".crt") else _read(root, path) or ""
    # Patterns of keys have their special characters escaped.
    return {word for word in _SECRET_WORD.findall(text.replace("\\", "")) if word not in _NO_SECRETS}


#: Words of those files that are no secrets.
_NO_SECRETS = frozenset(("proxy_set_header", "Authorization", "VLLM_API_KEY", "OPENAI_API_KEY"))


def pack(texts: Mapping[str, str], top: str, when: float) -> bytes:
    """The texts as a tar.gz, below one folder; readable for its owner alone. ``when``: seconds since the epoch."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in sorted(texts.items()):
            data = text.encode()
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(when)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _units(root: str, cluster: str) -> List[str]:
    """Units of systemd that carry this cluster's label; the name of one may begin as another cluster's do."""
    names = [os.path.basename(path) for path in _below(root, units.DIRECTORY)]
    return [
        name
        for name in names
        if name.startswith("ascent-")
        and name.endswith(".service")
        and units.labels_of(_read(root, f"{units.DIRECTORY}/{name}") or "").get("ascent.cluster") == cluster
    ]


def _commands(lines: int) -> Dict[str, List[str]]:
    return {
        "kernel.txt": ["dmesg", "--ctime"],
        "journal-docker.txt": ["journalctl", "--unit=docker", f"--lines={lines}", "--no-pager"],
        "containers.txt": ["docker", "ps", "--all", "--no-trunc"],
        "docker.txt": ["docker", "info"],
        "npu-smi.txt": ["npu-smi", "info"],
        "nvidia-smi.txt": ["nvidia-smi"],
        "uname.txt": ["uname", "-a"],
        "processes.txt": ["ps", "-eo", "pid,ppid,user,lstart,rss,args", "--cols", "400"],
        "network.txt": ["ip", "-brief", "address"],
        "sockets.txt": ["ss", "-tlnp"],
        "disks.txt": ["df", "-h"],
    }


def _said(run: Runner, *argv: str) -> str:
    """What a program printed on both its outputs; its code where it failed."""
    code, out, err = run(argv)
    text = out + (err if argv[:2] == ("docker", "logs") or code else "")
    return text if code == 0 else f"{text.rstrip()}\n{' '.join(argv)} ended with {code}\n"


def _below(root: str, folder: str) -> List[str]:
    try:
        names = sorted(os.listdir(os.path.join(root, folder.lstrip("/"))))
    except OSError:
        return []
    return [f"{folder}/{name}" for name in names if not name.startswith(".")]


def _read(root: str, path: str) -> Optional[str]:
    """A file's text, None where it can't be read."""
    try:
        with open(os.path.join(root, path.lstrip("/")), encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def _secrets_of(inspected: str) -> Set[str]:
    """Values of a container's environment whose names say that they are secret."""
    try:
        variables = [item for one in json.loads(inspected) for item in one["Config"].get("Env") or ()]
    except (KeyError, TypeError, ValueError):
        return set()
    return _secret_values(variables)


def _environment(unit: str) -> Set[str]:
    """The same of a unit, as ``systemctl cat`` or ``systemctl show`` prints it."""
    lines = re.findall(r"(?m)^Environment=(.*)$", unit)
    return _secret_values([word for line in lines for word in _words(line)])


def _words(line: str) -> List[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote without its end
        return line.split()


def _secret_values(variables: Sequence[object]) -> Set[str]:
    return {value for name, _, value in (str(item).partition("=") for item in variables) if _SECRET_NAME.search(name)}


def _assigned(text: str) -> Set[str]:
    """The same of a script's exported variables and options."""
    pairs = re.findall(r"(?m)^\s*(?:export\s+)?(\w+)=['\"]?([^'\"\s]+)", text)
    pairs += re.findall(r"(--[\w-]+)[ =]['\"]?([^'\"\s\\]+)", text)
    return {value for name, value in pairs if _SECRET_NAME.search(name.replace("-", "_"))}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else _CUT.format(len(text) - limit) + text[-limit:]
