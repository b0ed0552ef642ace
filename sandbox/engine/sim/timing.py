"""How long the simulated engine takes. All figures are seconds of model time, divided by SIM_SPEED when slept.

A step of one rank takes

    launch + bytes read / (devices * BANDWIDTH) + operations / (devices * COMPUTE)

`launch` is what the host needs to start a step's kernels: little where a captured graph holds the whole step, more
where it is put together from pieces. Bytes are the weights once and the KV of every decoding sequence; operations are
two for each activated parameter and prompt token, and attention. Nothing else is modelled: no network, no rank that
waits for another. The parameters are fitted, see docs/engine_simulator.md; they are no statement about hardware.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

from .scheduler import Batch

# Phases of a start, about 3.3 s together. Graph capture is left out with --enforce-eager.
PHASES = {"config": 0.2, "devices": 0.2, "hccl": 0.4, "weights": 1.2, "memory": 0.4, "kv": 0.1, "graph": 0.8}

# Seconds to launch a step by how it is run. `full`: decoding in one captured graph; `piecewise`: in captured parts, the
# attention between them; `eager`: kernel by kernel. Steps with prompt tokens never run in a full graph.
LAUNCH = {"full": 0.0162, "piecewise": 0.0373, "eager": 0.050}
BANDWIDTH = 0.8e12  # bytes a second that a device reads
COMPUTE = 1.43e14  # operations a second of a device on prompts
DRAFT = 0.12  # share by which one drafted token lengthens a decoding step


def speed() -> float:
    """SIM_SPEED: 2 is twice as fast."""
    return float(os.environ.get("SIM_SPEED", "1"))


def timeout(seconds: float) -> float:
    """A timeout of the engine, shortened for tests by SIM_TIMEOUT_SCALE (0.01 is a hundredth)."""
    return seconds * float(os.environ.get("SIM_TIMEOUT_SCALE", "1"))


async def pause(seconds: float) -> None:
    """Let model time pass."""
    await asyncio.sleep(seconds / speed())


@dataclass(frozen=True)
class Shape:
    """What of a model takes time. A model that is known by nothing but its name takes the time of the launches only."""

    weight_bytes: float = 0.0
    parameters: float = 0.0
    activated: float = 0.0  # parameters that one token uses; all of a dense model
    kv_bytes: float = 0.0  # of one token, all layers, not divided over devices
    attention: float = 0.0  # operations of one token with one token before it

    @classmethod
    def of(cls, config: dict[str, Any], weight_bytes: float) -> Shape:
        """The shape of a model by its `config.json`; what that does not say counts as nothing."""
        layers, hidden = _number(config, "num_hidden_layers"), _number(config, "hidden_size")
        heads = _number(config, "num_attention_heads")
        head = _number(config, "head_dim") or (hidden / heads if heads else 0)
        latent = _number(config, "kv_lora_rank")
        width = latent + _number(config, "qk_rope_head_dim") if latent else (
            2 * head * (_number(config, "num_key_value_heads") or heads)
        )  # fmt: skip
        experts = _number(config, "num_experts", "n_routed_experts", "num_local_experts")
        expert = 3 * hidden * _number(config, "moe_intermediate_size")
        inner = 3 * hidden * _number(config, "intermediate_size")
        other = layers * (2 * hidden * heads * head + hidden * width) + hidden * _number(config, "vocab_size")
        parameters = activated = other + layers * inner
        if experts and expert:
            parameters = other + layers * experts * expert
            activated = other + layers * _number(config, "num_experts_per_tok") * expert
        return cls(weight_bytes, parameters, activated, 2 * layers * width, 4 * layers * heads * head)

    @property
    def idle_share(self) -> float:
        """Share of the weights that a single token leaves alone: the experts it does not go to."""
        return 1 - self.activated / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Costs:
    """Step times of one rank: `devices` of its own, weights spread over `spread` devices."""

    shape: Shape
    devices: int = 1
    spread: int = 1
    graphs: str = "piecewise"

    def step(self, batch: Batch) -> float:
        """Seconds for one step."""
        shape, tokens = self.shape, batch.prompt_tokens + batch.sequences
        launch = LAUNCH["piecewise" if self.graphs == "full" and batch.prompt_tokens else self.graphs]
        weights = shape.weight_bytes * (1 - shape.idle_share**tokens) if shape.idle_share else shape.weight_bytes
        read = weights / self.spread + shape.kv_bytes * batch.context / self.devices
        decode = launch + read / BANDWIDTH
        drafted = batch.drafted / batch.sequences if batch.sequences else 0
        operations = 2 * shape.activated * batch.prompt_tokens + shape.attention * batch.pairs
        return decode * (1 + DRAFT * drafted) + operations / (self.devices * COMPUTE)


def _number(config: dict[str, Any], *names: str) -> float:
    """The first of some keys that holds a number above 0; else 0."""
    values = (config.get(name) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float) and value > 0), 0.0)
