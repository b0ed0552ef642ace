"""Names of a cluster's nodes in ``/etc/hosts``: a marked block, equal on every node, and taken back to the letter.

A multi-node engine asks for its own name and hands the answer to its peers. Installers of Debian and Ubuntu map the own
name to 127.0.1.1, and every peer then connects to itself (fault D08). So names of the cluster are taken out of loopback
lines; the line as it was stays in the file as a comment, from which `restored` brings it back.
"""

from __future__ import annotations

__all__ = ["HOSTS_FILE", "check", "clashes", "duplicates", "named", "restored"]

import ipaddress
import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from . import files

HOSTS_FILE = "/etc/hosts"
OFF = "# ascent:host_tuning off: "

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})\Z", re.ASCII)
_LOCAL = ("localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")

Entry = Mapping[str, Any]


def check(entries: Iterable[Entry]) -> List[str]:
    """What is wrong with entries of the form ``{"address", "names": [...]}``, in words."""
    wrong = []
    for entry in entries:
        if _address(str(entry.get("address", ""))) is None:
            wrong.append(f"{entry.get('address')!r} is no address")
        names = entry.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) and _NAME.match(name) for name in names):
            wrong.append(f"{names!r} are no host names")
    return wrong


def duplicates(entries: Sequence[Entry]) -> Dict[str, List[str]]:
    """Names that stand for more than one address, with the addresses: hosts made from one disk image."""
    owners: Dict[str, List[str]] = {}
    for entry in entries:
        for name in entry["names"]:
            if entry["address"] not in owners.setdefault(name, []):
                owners[name].append(entry["address"])
    return {name: addresses for name, addresses in sorted(owners.items()) if len(addresses) > 1}


def named(text: str, entries: Sequence[Entry]) -> str:
    """The hosts file with a block for ``entries``, whatever block ``text`` had; without entries as `restored`.

    Names of `duplicates`, and names of loopback such as ``localhost``, are left out.
    """
    text = restored(text)
    shared = duplicates(entries)
    mapped = []
    for entry in entries:
        names = [name for name in dict.fromkeys(entry["names"]) if name not in shared and name not in _LOCAL]
        if names:
            mapped.append(f"{entry['address']} {' '.join(names)}")
    if not mapped:
        return text
    taken = {name for line in mapped for name in line.split()[1:]}
    lines: List[str] = []
    for line in text.splitlines():
        reduced = _reduced(line, taken)
        lines += [line] if reduced is None else [OFF + line, *reduced]
    return "\n".join([*lines, *files.block(mapped)]) + "\n"


def restored(text: str) -> str:
    """The hosts file as it was before `named`, with what others have changed since."""
    if files.BLOCK_BEGIN not in text and OFF not in text:
        return text
    lines, block = files.split_block(text)
    taken = {name for line in block for name in line.split()[1:]}
    kept: List[str] = []
    skip: List[str] = []
    for line in lines:
        if skip and line == skip[0]:
            skip = []
            continue
        skip = []
        if line.startswith(OFF):
            line = line[len(OFF) :]
            skip = _reduced(line, taken) or []
        kept.append(line)
    return "\n".join(kept) + "\n" if kept else ""


def clashes(text: str, entries: Sequence[Entry]) -> List[Tuple[str, str, str]]:
    """``(line, name, address wanted)`` for lines of others that give a name another address; the first line wins."""
    wanted = {name: entry["address"] for entry in entries for name in entry["names"]}
    found = []
    for line in restored(text).splitlines():
        address, names = _parsed(line)
        if address is None or address.is_loopback:
            continue
        for name in names:
            target = _address(wanted.get(name, ""))
            if target is not None and target.version == address.version and target != address:
                found.append((line.strip(), name, wanted[name]))
    return found


def _address(text: str) -> Any:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _parsed(line: str) -> Tuple[Any, List[str]]:
    """Address and names of a line; ``(None, [])`` for one that has none."""
    words = line.partition("#")[0].split()
    address = _address(words[0]) if words else None
    return (address, words[1:]) if address is not None else (None, [])


def _reduced(line: str, taken: Set[str]) -> Optional[List[str]]:
    """What stays of a loopback line without the names of the cluster; None when nothing has to change."""
    address, names = _parsed(line)
    if address is None or not address.is_loopback:
        return None
    # A name with its domain names the same host.
    left = [name for name in names if name not in taken and name.partition(".")[0] not in taken]
    if left == names:
        return None
    return [f"{address} {' '.join(left)}"] if left else []
