"""Failures on demand: SIM_FAIL="PHASE[@RANK]:SIGNATURE" ends the engine in a phase with a known log signature.

PHASE is one of the start's phases (timing.PHASES), `ready` (just after the start) or `request` (the first request).
With @RANK only the process that holds that global rank fails. SIGNATURE is a key of SIGNATURES, `hang`, or any other
text, which is then the error message itself.

The node may ask for a failure as well, by /usr/local/dcmi/engine-faults.json: {"PROCESS": "PHASE[@RANK]:SIGNATURE"}.
PROCESS is the name of the start script that is mounted in /etc/ascent, or * for all. SIM_FAIL comes first.
"""

from __future__ import annotations

import asyncio
import json
import os

from .config import Settings
from .environment import rooted
from .log import EngineError, line

SIGNATURES = {
    "EI0006": (
        "EI0006: Getting socket times out. Reason: 1. The remote does not initiate the connect request. "
        "wait socket establish timeout, hcclRet -> 9 [Communication_Error_Get_Socket]"
    ),
    "EI0002": "EI0002: The wait execution of the Notify register times out. notify wait, error code 107020",
    "EI0015": "EI0015: topo exchange server get socket timeout! connected rankNum 8, need connect rankNum 16",
    "EI0001": "EI0001: Environment variable error: get host ip fail by socket Ifname[enp67s0f0]",
    "oom": "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 61.28 GiB total capacity; 60.10 GiB already "
    "allocated; 0.41 GiB free; 60.30 GiB reserved in total by PyTorch)",
    "aicore": "aicore execute timeout, error code is 507014, EZ9999: Inner Error!",
    "kv-memory": "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
    "the engine.",
    "hccn-conf": "can't open conf /etc/hccn.conf",
}


def asked_by_node() -> str:
    """What the node's file asks of this process; empty for nothing."""
    try:
        asked = json.loads(rooted("/usr/local/dcmi/engine-faults.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    names = [script.stem for script in rooted("/etc/ascent").glob("*.sh")]
    return next((asked[name] for name in (*names, "*") if name in asked), "")


def wanted(config: Settings, phase: str) -> str | None:
    """The signature to fail with in this phase, or None."""
    given = os.environ.get("SIM_FAIL") or asked_by_node()
    where, _, signature = given.partition(":")
    name, _, rank = where.partition("@")
    if name != phase or not signature or (rank and int(rank) not in config.ranks):
        return None
    return signature


def error(config: Settings, signature: str) -> EngineError:
    """The failure as the engine reports it."""
    return EngineError(SIGNATURES.get(signature, signature), kind="RuntimeError", who=config.core(config.start_rank))


async def check(config: Settings, phase: str) -> None:
    """Fail or hang here when SIM_FAIL says so."""
    signature = wanted(config, phase)
    if signature == "hang":
        while True:
            line(config.core(config.start_rank), "No available shared memory broadcast block found in 60 seconds. "
                 "This typically happens when some processes are hanging or doing some time-consuming work "
                 "(e.g. compilation, weight/kv cache quantization).", source="shm_broadcast.py:542")  # fmt: skip
            await asyncio.sleep(60)
    if signature:
        raise error(config, signature)
