"""How long the simulated engine takes. All figures are seconds of model time, divided by SIM_SPEED when slept."""

from __future__ import annotations

import asyncio
import math
import os

# Phases of a start, about 3.3 s together. Graph capture is left out with --enforce-eager.
PHASES = {"config": 0.2, "devices": 0.2, "hccl": 0.4, "weights": 1.2, "memory": 0.4, "kv": 0.1, "graph": 0.8}

STEP = 0.010  # one scheduler step with nothing in it
STEP_EAGER = 0.016  # the same without captured graphs
SEQUENCE = 0.0005  # each sequence that decodes in the step
PREFILL_TOKEN = 0.0001  # each prompt token computed in the step, on one device
DRAFT = 0.12  # share by which one drafted token lengthens the step
ACCEPT = 0.6  # chance that a drafted token is right, given that the one before it was


def speed() -> float:
    """SIM_SPEED: 2 is twice as fast."""
    return float(os.environ.get("SIM_SPEED", "1"))


def timeout(seconds: float) -> float:
    """A timeout of the engine, shortened for tests by SIM_TIMEOUT_SCALE (0.01 is a hundredth)."""
    return seconds * float(os.environ.get("SIM_TIMEOUT_SCALE", "1"))


async def pause(seconds: float) -> None:
    """Let model time pass."""
    await asyncio.sleep(seconds / speed())


def step_seconds(prefill_tokens: int, sequences: int, devices: int, draft_tokens: int, eager: bool) -> float:
    """One scheduler step of one rank: `sequences` decode while `prefill_tokens` prompt tokens are computed.

    Prefill is limited by arithmetic and shared by the rank's devices (not perfectly: square root);
    decode is limited by memory and grows only a little with the batch.
    """
    decode = SEQUENCE * sequences * (1 + DRAFT * draft_tokens)
    prefill = PREFILL_TOKEN * prefill_tokens / math.sqrt(devices)
    return (STEP_EAGER if eager else STEP) * (1 + DRAFT * draft_tokens * (sequences > 0)) + decode + prefill


def accepted(draft_tokens: int, seed: int, position: int) -> int:
    """How many drafted tokens are right at a position: the same for the same request every time."""
    count = 0
    while count < draft_tokens and (seed * 31 + (position + count) * 7919) % 1000 < ACCEPT * 1000:
        count += 1
    return count
