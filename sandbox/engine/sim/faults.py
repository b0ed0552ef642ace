"""Failures on demand, by the variable SIM_FAIL.

    SIM_FAIL = ORDER[;ORDER…]        ORDER = PHASE[@RANK]:KIND

PHASE is one of the start's phases (timing.PHASES), `ready` (just after the start) or `request` (each generation). With
@RANK only the process that holds that global rank obeys. KIND is, in every phase,

- the name of a signature (`signatures.py`; the catalogue's id of the finding works too, such as C01), which ends the
  engine with the lines and the status of that fault;
- `hang`: nothing goes on; for `request`, no answer comes;
- any other text, which then is the error itself;

up to `ready` also `delay=SECONDS` (slow readiness); at `ready` also `slow=FACTOR` (the steps of the rank take so
many times as long) and `leak=MB` or `leak=MB/MOST` (host memory that the process takes each second, up to MOST MB,
1024 where it is not given); for `request` also those of ANSWER_FAULTS and WRITER_FAULTS, which the engine lives with.
`request:KIND%N` strikes every Nth request only; with one of WRITER_FAULTS, `request@RANK` is what that rank writes.

The node may give orders as well, by /usr/local/dcmi/engine-faults.json: {"PROCESS": "ORDER"}. PROCESS is the name of
the start script that is mounted in /etc/ascent, or * for all. SIM_FAIL comes first. A running engine sees a new order
of its node at the next request.

`parse` and the functions on what it gives have no side effects; `check` acts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import timing
from .api import ANSWER_FAULTS
from .config import Settings
from .environment import rooted
from .log import EngineError, line
from .scheduler import WRITER_FAULTS
from .signatures import ALIASES, SIGNATURES, Signature

PHASES = (*timing.PHASES, "ready", "request")
LEAK_MOST = 1024
#: Bad answers of an engine that goes on.
LIVED_WITH = (*ANSWER_FAULTS, *WRITER_FAULTS)
MEGABYTE = 2**20
# Ids of the catalogue, for those who think in them.
IDS = {
    "A03": "device-in-use", "A06": "driver-libs-not-mounted", "A08": "driver-too-old-for-cann", "A11": "hbm-leftover",
    "A12": "set-device-bad-id", "B01": "cann-env-not-sourced", "B02": "atb-missing", "B03": "abi-mismatch",
    "B04": "torch-npu-cann", "B05": "vllm-plugin-mismatch", "B06": "opp-mismatch", "B08": "image-a2-a3",
    "B09": "node-drift", "B12": "ray-version-drift", "B13": "fabric-mem-floor", "B14": "glibc-or-py",
    "C01": "link-timeout", "C02": "notify-timeout", "C03": "ranks-missing", "C04": "host-port-bound",
    "C05": "device-port-bound", "C06": "tls-mismatch", "C07": "wrong-socket-ifname", "C08": "bad-env-value",
    "C16": "roce-retry", "C17": "sdma-error", "C18": "args-inconsistent", "C19": "buffsize-small",
    "C20": "buffsize-big", "C21": "rank-table", "D01": "api-port-in-use", "D02": "rendezvous-port",
    "D05": "start-timeout", "D06": "hang", "D07": "engine-dies-api-lives", "D08": "gloo-loopback",
    "D10": "hostname-unresolved", "D13": "shm-small", "D14": "memlock-nofile", "D15": "hugepages", "D16": "disk-full",
    "D17": "weights-missing", "D18": "weights-pointer", "D19": "weights-truncated", "D20": "config-model-mismatch",
    "D21": "kv-does-not-fit", "D22": "oom-own", "D25": "nonroot-passwd", "D26": "privileged-missing",
    "D27": "aicore-timeout", "D28": "host-oom-kill", "D29": "cpu-binding", "D30": "hccn-conf-not-mounted",
    "D31": "npu-tools-not-mounted", "E01": "kv-port-reserved-range", "E04": "kv-connect-timeout",
    "E05": "kv-connect-failed", "E06": "mooncake-client-init", "E07": "mooncake-lib", "E08": "config-path-unset",
    "E09": "parallel-mismatch", "E11": "batch-put-failed", "F01": "no-npu-resource", "F02": "ray-node-ip",
    "F03": "ray-visible-devices", "F04": "ray-placement-stuck", "F05": "ray-head-unreachable",
    "F07": "ray-stale-session",
}  # fmt: skip
_NEXT = re.compile(rf";(?=(?:{'|'.join(PHASES)})(?:@\d+)?:)")
_ORDER = re.compile(r"(?P<phase>[a-z]+)(?:@(?P<rank>\d+))?:(?P<kind>.+)", re.DOTALL)
_AMOUNT = re.compile(r"(?P<kind>delay|slow|leak)=(?P<amount>\d+(?:\.\d+)?)(?:/(?P<most>\d+))?")
_EVERY = re.compile(r"(?P<kind>.+)%(?P<every>[1-9]\d*)", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """One order. `amount` is of delay (seconds), slow (factor) and leak (MB a second, at most `most` MB)."""

    phase: str
    kind: str
    rank: int | None = None
    amount: float = 0.0
    most: int = LEAK_MOST
    every: int = 1

    @property
    def signature(self) -> Signature | None:
        """How the engine dies of it; None for faults that it lives with."""
        if self.kind in ("delay", "slow", "leak") or (self.phase == "request" and self.kind in LIVED_WITH):
            return None
        return None if self.kind == "hang" else SIGNATURES.get(self.kind, Signature(self.kind, part="core"))


def parse(text: str) -> tuple[Fault, ...]:
    """The orders in the value of SIM_FAIL. ValueError names the one that says nothing and what it may say."""
    return tuple(_order(one) for one in _NEXT.split(text) if one)


def _order(text: str) -> Fault:
    match = _ORDER.fullmatch(text)
    if match is None or match["phase"] not in PHASES:
        raise ValueError(f"SIM_FAIL has {text!r}, wanted PHASE[@RANK]:KIND with a phase of {', '.join(PHASES)}")
    phase, rank = match["phase"], None if match["rank"] is None else int(match["rank"])
    kind, every = match["kind"], 1
    if phase == "request" and (repeated := _EVERY.fullmatch(kind)):
        kind, every = repeated["kind"], int(repeated["every"])
    if amount := _AMOUNT.fullmatch(kind):
        kind = amount["kind"]
        if phase == "request" or (kind != "delay" and phase != "ready"):
            where = "a phase of the start" if kind == "delay" else "ready"
            raise ValueError(f"SIM_FAIL has {text!r}, but {kind} belongs to {where}")
        return Fault(phase, kind, rank, float(amount["amount"]), int(amount["most"] or LEAK_MOST))
    if kind in LIVED_WITH and kind != "hang" and phase != "request":
        raise ValueError(f"SIM_FAIL has {text!r}, but {kind} belongs to the phase request")
    return Fault(phase, IDS.get(kind, ALIASES.get(kind, kind)), rank, every=every)


def asked_by_node() -> str:
    """What the node's file asks of this process; empty for nothing."""
    try:
        asked = json.loads(rooted("/usr/local/dcmi/engine-faults.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    names = [script.stem for script in rooted("/etc/ascent").glob("*.sh")]
    return next((asked[name] for name in (*names, "*") if name in asked), "")


def orders() -> tuple[Fault, ...]:
    """The orders of the environment, else of the node; EngineError when they say nothing."""
    try:
        return parse(os.environ.get("SIM_FAIL") or asked_by_node())
    except ValueError as error:
        raise EngineError(str(error)) from None


def of(faults: Iterable[Fault], phase: str, ranks: Iterable[int]) -> list[Fault]:
    """Those of a phase that a process with these global ranks has to obey."""
    here = set(ranks)
    return [fault for fault in faults if fault.phase == phase and (fault.rank is None or fault.rank in here)]


def slowness(faults: Iterable[Fault], rank: int) -> float:
    """Factor by which the steps of this rank take longer than they should."""
    return max((fault.amount for fault in of(faults, "ready", [rank]) if fault.kind == "slow"), default=1.0)


def for_request(faults: Iterable[Fault], ranks: Iterable[int], number: int) -> Fault | None:
    """The fault of the `number`th request (from 1), if it has one; those of what one rank writes are `for_writer`'s."""
    found = (fault for fault in of(faults, "request", ranks) if fault.rank is None or fault.kind not in WRITER_FAULTS)
    return next((fault for fault in found if number % fault.every == 0), None)


def for_writer(faults: Iterable[Fault], rank: int) -> str:
    """What this rank in particular writes badly; empty for nothing."""
    found = (fault.kind for fault in of(faults, "request", [rank]) if fault.rank == rank)
    return next((kind for kind in found if kind in WRITER_FAULTS), "")


def error(config: Settings, fault: Fault) -> EngineError:
    """The failure as the engine reports it."""
    signature = fault.signature
    if signature is None:
        raise ValueError(f"the engine does not die of {fault.kind}")
    rank = config.start_rank if fault.rank is None else fault.rank
    who = {"api": "APIServer", "worker": config.worker(rank)}.get(signature.part, config.core(rank))
    return EngineError(signature.message, kind=signature.kind, who=who, lines=signature.lines, status=signature.status)


async def check(config: Settings, phase: str) -> None:
    """Wait, hang or fail here when SIM_FAIL says so. Faults that go on after the start are left to the engine."""
    for fault in of(orders(), phase, config.ranks):
        if fault.kind == "delay":
            await asyncio.sleep(fault.amount)
        elif fault.kind == "hang":
            await _hang(config)
        elif fault.kind not in ("slow", "leak"):
            raise error(config, fault)


async def _hang(config: Settings) -> None:
    while True:
        line(config.core(config.start_rank), "No available shared memory broadcast block found in 60 seconds. "
             "This typically happens when some processes are hanging or doing some time-consuming work "
             "(e.g. compilation, weight/kv cache quantization).", source="shm_broadcast.py:542")  # fmt: skip
        await asyncio.sleep(60)


async def leak(fault: Fault) -> None:
    """Take host memory second by second, as far as the fault may go, and keep it."""
    held: list[bytearray] = []
    while len(held) * fault.amount < fault.most:
        held.append(bytearray(os.urandom(1)) * int(fault.amount * MEGABYTE))  # written, so that it counts as resident
        await asyncio.sleep(1)
    await asyncio.get_running_loop().create_future()
