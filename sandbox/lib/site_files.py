"""The files the site's services start with: the models of its hub. Pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from sandbox.lib.node_files import File, model_contents
from sandbox.lib.plan import Sandbox

HUB = "/srv/hub"
BRANCH = "main"


def hub_files(model: Mapping[str, Any]) -> list[File]:
    """A model at each of its revisions, as `sandbox/images/services/hub.py` wants it.

    Every revision has weights of its own, the same ones each time. No two places of a file hold the same data, so that
    a download that goes wrong in the middle shows in the checksum.
    """
    hidden_size = max(1, math.isqrt(model["shard_bytes"] // 2))
    files = []
    for revision in (BRANCH, *model["tags"]):
        source = random.Random(f"{model['id']}@{revision}")  # noqa: S311 -- reproducible, not secret
        contents = model_contents(model, model["shards"], hidden_size, lambda size: _weights(source, size))  # noqa: B023
        contents["README.md"] = f"# {model['id']}\n\nTiny weights for the sandbox, revision {revision}.\n".encode()
        files += [File(f"{HUB}/{model['id']}/{revision}/{name}", content) for name, content in contents.items()]
    return files


def _weights(source: random.Random, size: int) -> bytes:
    data = bytearray(source.randbytes(size))
    # The upper byte of a BF16 number has the sign and most of the exponent: this one makes all of them small.
    data[1::2] = b"\x3c" * (size // 2)
    return bytes(data)


def site_files(sandbox: Sandbox) -> list[File]:
    """All files of the site's services."""
    return [file for model in sandbox.hub_models for file in hub_files(model)]
