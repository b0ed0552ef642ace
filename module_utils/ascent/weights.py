"""Whether a directory holds a model's weights completely: every shard that the index names, at full size.

A shard is a safetensors file: 8 bytes with the length of a JSON header, the header, then the data. The header says
where the last tensor ends, so a copy that stopped early shows without reading the data.

Hugging Face's client keeps a model as ``models--ORG--NAME/snapshots/COMMIT``, where ``refs/main`` holds the commit.
"""

from __future__ import annotations

__all__ = ["inspect", "shard_problem"]

import json
import os
from typing import Any, Dict, List, Optional

INDEX = "model.safetensors.index.json"
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


def _content(directory: str) -> str:
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


def inspect(directory: str) -> Dict[str, Any]:
    """``{directory, present, complete, missing, pointers, truncated, bytes}``; the lists hold file names.

    ``missing`` counts ``config.json`` and the index too; an unreadable index counts as missing.
    ``bytes`` is the size of the shards that are there. ``directory`` may be a model of a Hugging Face cache.
    """
    asked, directory = directory, _content(directory)
    problems: Dict[str, List[str]] = {"missing": [], "pointer": [], "truncated": []}
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
    return {
        "directory": asked,
        "present": present,
        "complete": present and not any(problems.values()),
        "missing": problems["missing"],
        "pointers": problems["pointer"],
        "truncated": problems["truncated"],
        "bytes": total,
    }
