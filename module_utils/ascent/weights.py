"""Whether a directory holds a model's weights completely: every shard that the index names, at full size.

A shard is a safetensors file: 8 bytes with the length of a JSON header, the header, then the data. The header says
where the last tensor ends, so a copy that stopped early shows without reading the data.

Hugging Face's client keeps a model as ``models--ORG--NAME/snapshots/COMMIT``, where ``refs/main`` holds the commit.

Whoever has compared all files with their checksums leaves a record beside them, `RECORD`::

    {"schema": 1, "source", "revision", "commit", "files": {path: {"size", "mtime", "sha256", "revision"}}}

With it a later look needs no checksum and no network: a file of the same size and time (nanoseconds) is the same one.
"""

from __future__ import annotations

__all__ = ["RECORD", "content", "inspect", "layout", "read_record", "same", "shard_problem", "write_record"]

import json
import os
import re
from typing import Any, Dict, List, Mapping, Optional

INDEX = "model.safetensors.index.json"
#: What was verified, beside the files.
RECORD = ".ascent-weights.json"
# Real headers are a few MB; a larger "length" means that the file is something else.
_MAX_HEADER = 100 * 1024 * 1024


def shard_problem(path: str) -> Optional[str]:
    """``missing``, ``pointer`` (large-file placeholder), ``truncated`` or None for a shard that is whole."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            head = stream.read(8)
            if size < 1024 and head.startswith(b"version "):
                return "pointer"
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(size - 8, _MAX_HEADER):
                return "truncated"
            header = json.loads(stream.read(length))
    except OSError:
        return "missing"
    except ValueError:
        return "truncated"
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return "truncated" if 8 + length + max(ends, default=0) > size else None
    except (AttributeError, IndexError, KeyError, TypeError):
        return "truncated"


def _shards(directory: str, names: List[str]) -> List[str]:
    """Shards that the index names; without an index, the safetensors files that are there, or the standard name."""
    if INDEX in names:
        try:
            with open(os.path.join(directory, INDEX), encoding="utf-8") as stream:
                return sorted({str(name) for name in json.load(stream)["weight_map"].values()})
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            return []
    return [name for name in names if name.endswith(".safetensors")] or ["model.safetensors"]


def layout(directory: str) -> Dict[str, str]:
    """How a directory keeps a model: ``{"kind", "top", "commit"}``.

    ``kind`` is ``huggingface`` for a model of that client's cache, ``modelscope`` for that one's, else ``plain``;
    ``top`` is the model's own directory, and ``commit`` the one that ``directory`` itself names.

    >>> layout("/c/huggingface/hub/models--a--b/snapshots/" + "0" * 40)["top"]
    '/c/huggingface/hub/models--a--b'
    """
    cached = re.match(r"(.*/models--[^/]+)(?:/snapshots/([0-9a-f]{40}))?/?\Z", directory)
    if cached:
        return {"kind": "huggingface", "top": cached.group(1), "commit": cached.group(2) or ""}
    kind = "modelscope" if re.search(r"/modelscope/hub/models/[^/]+/[^/]+/?\Z", directory) else "plain"
    return {"kind": kind, "top": directory.rstrip("/"), "commit": ""}


def content(directory: str) -> str:
    """Where the files are: the directory itself, or in a Hugging Face cache the snapshot that the client would take."""
    snapshots = os.path.join(directory, "snapshots")
    if not os.path.isdir(snapshots):
        return directory
    try:
        with open(os.path.join(directory, "refs", "main"), encoding="utf-8") as stream:
            return os.path.join(snapshots, stream.read().strip())
    except OSError:
        # A model fetched by its commit alone has no refs.
        commits = sorted(os.listdir(snapshots))
        return os.path.join(snapshots, commits[0]) if len(commits) == 1 else snapshots


def read_record(directory: str) -> Optional[Dict[str, Any]]:
    """What was verified of the files in ``directory``; None where nothing was."""
    try:
        with open(os.path.join(directory, RECORD), encoding="utf-8") as stream:
            found = json.load(stream)
        # A record that lacks something is as good as none: files are compared again.
        good = all(isinstance(one["size"], int) and isinstance(one["mtime"], int) for one in found["files"].values())
        return found if good and found["schema"] == 1 else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def write_record(directory: str, record: Mapping[str, Any]) -> None:
    """Replace the record at once. Raises OSError."""
    place = os.path.join(directory, RECORD)
    with open(place + ".new", "w", encoding="utf-8") as stream:
        json.dump({"schema": 1, **record}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(place + ".new", place)


def same(path: str, known: Mapping[str, Any]) -> bool:
    """Whether a file still has the size and the time that a record has of it."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return bool(status.st_size == known["size"] and status.st_mtime_ns == known["mtime"])


def inspect(directory: str) -> Dict[str, Any]:
    """``{directory, present, complete, missing, pointers, truncated, altered, bytes, commit, revision}``.

    Lists hold file names. ``missing`` counts ``config.json`` and the index too; an unreadable index counts as missing.
    ``altered`` files are whole, as far as that shows, and not those that were verified; ``commit`` and ``revision`` say
    what was verified, and are None without a record.
    ``bytes`` is the size of the shards that are there. ``directory`` may be a model of a Hugging Face cache.
    """
    asked, directory = directory, content(directory)
    problems: Dict[str, List[str]] = {"missing": [], "pointer": [], "truncated": [], "altered": []}
    record = None
    total = 0
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        names = []
    present = bool(names)
    if present:
        if "config.json" not in names:
            problems["missing"].append("config.json")
        shards = _shards(directory, names)
        if not shards:
            problems["missing"].append(INDEX)
        for name in shards:
            path = os.path.join(directory, name)
            problem = shard_problem(path)
            if problem:
                problems[problem].append(name)
            if problem != "missing":
                total += os.path.getsize(path)
        record = read_record(directory)
        named = {name for names in problems.values() for name in names}
        for name, known in sorted((record or {"files": {}})["files"].items()):
            path = os.path.join(directory, name)
            if name not in named and not same(path, known):
                problems["altered" if os.path.isfile(path) else "missing"].append(name)
    return {
        "directory": asked,
        "present": present,
        "complete": present and not any(problems.values()),
        "missing": problems["missing"],
        "pointers": problems["pointer"],
        "truncated": problems["truncated"],
        "altered": problems["altered"],
        "bytes": total,
        "commit": record.get("commit") if record else None,
        "revision": record.get("revision") if record else None,
    }
