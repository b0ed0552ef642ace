"""Finding a model's files and noticing what is missing, as the engine's loader does."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import rooted
from .log import EngineError

TRUE = ("1", "true", "yes")
MOST_HEADER = 100_000_000  # bytes; the safetensors format allows no longer header


@dataclass
class Model:
    """A model on disk. `size` is the bytes its index states, else the bytes of its files."""

    directory: Path
    config: dict[str, Any]
    shards: list[Path]
    size: int

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration about the language model."""
        return self.config.get("text_config", self.config)

    @property
    def is_moe(self) -> bool:
        """Whether the model has routed experts; a configuration that names none is dense."""
        keys = ("num_experts", "n_routed_experts", "num_local_experts")
        return any(int(self.text_config.get(key) or 0) > 1 for key in keys)

    @property
    def context(self) -> int | None:
        """Longest sequence the configuration allows, in tokens."""
        value = self.text_config.get("max_position_embeddings")
        return int(value) if value else None


def find(model: str) -> Path:
    """The folder of a model: a path, or an id in the cache of the hub that the environment chooses."""
    if Path(model).is_absolute():
        candidates = [rooted(model), Path(model)]
    elif os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in TRUE:
        cache = Path(os.environ.get("MODELSCOPE_CACHE", rooted("/root/.cache/modelscope/hub")))
        owner, _, name = model.partition("/")
        names = (name, name.replace(".", "___"))  # the hub's client writes a dot in a folder name as ___
        candidates = [cache / part / owner / n for n in names for part in ("models", "")]
    else:
        cache = Path(os.environ.get("HF_HOME", rooted("/root/.cache/huggingface"))) / "hub"
        snapshots = cache / f"models--{model.replace('/', '--')}" / "snapshots"
        candidates = [Path(model), *(sorted(snapshots.iterdir()) if snapshots.is_dir() else [])]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    raise EngineError(
        f"Can't load the configuration of '{model}'. If you were trying to load it from a model hub, make sure you "
        f"don't have a local directory with the same name. Otherwise, make sure '{model}' is the correct path to a "
        "directory containing a config.json file",
        kind="OSError",
    )


def read(model: str) -> Model:
    """Configuration and list of shards; shards are looked at by `load`."""
    directory = find(model)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise EngineError(
            f"It looks like the config file at '{directory}/config.json' is not a valid JSON file.", kind="OSError"
        ) from None
    index = next(iter(sorted(directory.glob("*.safetensors.index.json"))), None)
    if index:
        table = json.loads(index.read_text(encoding="utf-8"))
        shards = [directory / name for name in sorted(set(table["weight_map"].values()))]
        size = int(table.get("metadata", {}).get("total_size", 0))
    else:
        shards, size = sorted(directory.glob("*.safetensors")), 0
    return Model(directory, config, shards, size or sum(s.stat().st_size for s in shards if s.exists()))


def load(shard: Path, who: str) -> None:
    """Open one shard: it has to exist, and a header it declares has to fit the file."""
    if not shard.is_file():
        raise EngineError(f"[Errno 2] No such file or directory: '{shard}'", kind="FileNotFoundError", who=who)
    size = shard.stat().st_size
    with open(shard, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
        if length is None or length > MOST_HEADER:
            reason = "HeaderTooSmall" if length is None else "HeaderTooLarge"
            raise _broken(reason, who)
        if length == 0:
            return  # a sparse stand-in of zeros, as the sandbox may use for large models
        if size < 8 + length:
            raise _broken("InvalidHeaderLength", who)
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise _broken("InvalidHeaderDeserialization", who) from None
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if size < 8 + length + max(ends, default=0):
        raise _broken("MetadataIncompleteBuffer", who)


def _broken(reason: str, who: str) -> EngineError:
    return EngineError(f"Error while deserializing header: {reason}", kind="safetensors_rust.SafetensorError", who=who)
