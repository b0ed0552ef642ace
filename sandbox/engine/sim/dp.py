"""Data-parallel groups over several processes: the head's RPC port, the handshake, and work for remote ranks.

One TCP connection per remote process, JSON lines both ways:
HELLO (ranks, headless, what must agree) -> INIT -> READY -> START, then ADD and ABORT to the ranks and OUT back.
A connection that ends takes both ends down, as a dead peer of a collective does.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from .config import Settings
from .log import EngineError, line
from .scheduler import Event, Request
from .timing import timeout

HANDSHAKE_MINUTES = 5
POLL_SECONDS = 10.0
RETRY_SECONDS = 0.5


class Link:
    """JSON lines over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, status: str, **fields: Any) -> None:
        """Queue one message."""
        if not self.writer.is_closing():
            self.writer.write(json.dumps({"status": status, **fields}).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """The next message; ConnectionError at the end."""
        data = await self.reader.readline()
        if not data.endswith(b"\n"):
            raise ConnectionError("connection closed by peer")
        return json.loads(data)

    def close(self) -> None:
        """Close without waiting."""
        self.writer.close()


def dead_engine(who: str, why: str) -> EngineError:
    """The error both ends report when the other is gone."""
    return EngineError(
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        kind="vllm.v1.engine.exceptions.EngineDeadError",
        who=who,
        lines=(why, "AsyncLLM output_handler failed."),
    )


def ready_timeout() -> float:
    """Seconds the head waits for all ranks (VLLM_ENGINE_READY_TIMEOUT_S, default 600)."""
    return float(os.environ.get("VLLM_ENGINE_READY_TIMEOUT_S", "600"))


class Head:
    """Rank 0's process: takes in the other processes of the group and hands them work."""

    def __init__(self, config: Settings, failed: Callable[[EngineError], None]) -> None:
        self.config, self.failed = config, failed
        self.links: dict[int, Link] = {}
        self.states = {rank: "NEW" for rank in range(config.data) if rank not in config.ranks}
        self.local_pending = config.data_local
        self.changed = asyncio.Event()
        self.receive: Callable[[list[Event], dict[str, Any]], None] = lambda _events, _stats: None
        self.server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Bind the RPC port; a head whose ranks are all local does not need one."""
        if not self.states:
            return
        address, port = self.config.address, self.config.rpc_port
        try:
            self.server = await asyncio.start_server(self._serve, address, port, limit=2**24)
        except OSError as error:
            reason = "Address already in use" if "in use" in str(error) else os.strerror(error.errno or 0)
            raise EngineError(f"{reason} (addr='tcp://{address}:{port}')", kind="zmq.error.ZMQError") from error

    async def all_ready(self) -> None:
        """Wait for every rank, telling now and then who is missing; EngineError at the timeout."""
        deadline = asyncio.get_running_loop().time() + timeout(ready_timeout())
        self._report()
        while any(state != "READY" for state in self.states.values()) or self.local_pending:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise EngineError(
                    "Timed out waiting for engine core processes to start. This is often caused by slow weight "
                    f"loading for large models. Waited {ready_timeout():g}s (configured by "
                    "VLLM_ENGINE_READY_TIMEOUT_S). To increase the timeout, set the environment variable: "
                    "VLLM_ENGINE_READY_TIMEOUT_S=<seconds>",
                    kind="TimeoutError",
                )
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), min(left, timeout(POLL_SECONDS)))
            except TimeoutError:
                self._report()
        for link in set(self.links.values()):
            link.send("START")

    def local_ready(self) -> None:
        """The ranks of this process have loaded."""
        self.local_pending = 0
        self.changed.set()

    def _report(self) -> None:
        connecting = sum(state == "NEW" for state in self.states.values())
        starting = sum(state == "CONNECTED" for state in self.states.values())
        if connecting:
            line("APIServer", f"Waiting for 0 local, {connecting} remote core engine proc(s) to connect.",
                 source="utils.py:1172")  # fmt: skip
        if self.local_pending or starting or connecting:
            line("APIServer", f"Waiting for {self.local_pending} local, {starting + connecting} remote core engine "
                 "proc(s) to start.", source="utils.py:1177")  # fmt: skip

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        ranks: list[int] = []
        try:
            hello = await link.receive()
            if refusal := self._refusal(hello):
                link.send("REFUSED", message=refusal)
                await writer.drain()
                self.failed(EngineError(refusal, kind="RuntimeError"))
                return
            ranks = hello["ranks"]
            for rank in ranks:
                self.links[rank], self.states[rank] = link, "CONNECTED"
            link.send("INIT", data_parallel_master_ip=self.config.address)
            self.changed.set()
            self._report()
            while True:
                message = await link.receive()
                if message["status"] == "READY":
                    for rank in ranks:
                        self.states[rank] = "READY"
                    self.changed.set()
                elif message["status"] == "OUT":
                    self.receive([Event(**event) for event in message["events"]], message["stats"])
        except (ConnectionError, ValueError, KeyError) as error:
            if ranks:
                names = ", ".join(self.config.core(rank) for rank in ranks)
                self.failed(dead_engine("APIServer", f"Remote engine core(s) {names} died unexpectedly: {error}"))
        except asyncio.CancelledError:
            return  # the end of the process; asyncio would print the cancellation of a server's task as an error
        finally:
            link.close()

    def _refusal(self, hello: dict[str, Any]) -> str | None:
        """Why a process may not join, in the engine's words."""
        headless_wanted = self.config.mode == "internal"
        for rank in hello["ranks"]:
            if rank in self.config.ranks:
                return f"HELLO message from remote engine {rank}, expected it to be local"
            if rank not in self.states:
                return f"Message from engine with unexpected data parallel rank: {rank}"
            if self.states[rank] != "NEW":
                return f"Unexpected HELLO message for remote engine {rank} in {self.states[rank]} state."
            if hello["headless"] and not headless_wanted:
                return f"Remote engine {rank} must not use --headless in external or hybrid dp lb mode"
            if not hello["headless"] and headless_wanted:
                return f"Remote engine {rank} must use --headless unless in external or hybrid dp lb mode"
        mine = self.config.fingerprint()
        different = [
            f"{k}: {hello['config'].get(k)!r} != {v!r}" for k, v in mine.items() if hello["config"].get(k) != v
        ]
        if different:
            return (
                f"Configuration mismatch detected for engine {hello['ranks'][0]}. All DP workers must have identical "
                f"configurations for parameters that affect collective communication ({'; '.join(different)}). "
                "Please ensure all workers are started with the same command-line arguments."
            )
        return None

    def add(self, rank: int, request: Request) -> None:
        """Give a request to a remote rank."""
        self.links[rank].send("ADD", rank=rank, request=asdict(request))

    def abort(self, rank: int, request_id: str) -> None:
        """Take a request back from a remote rank."""
        self.links[rank].send("ABORT", rank=rank, id=request_id)

    def close(self) -> None:
        """Stop listening and let go of the members."""
        if self.server:
            self.server.close()
        for link in set(self.links.values()):
            link.close()


class Member:
    """A process of the group without rank 0: joins the head and takes its work."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.link: Link | None = None
        self.core = config.core(config.start_rank)

    async def join(self) -> None:
        """Connect, retrying while the head is not up, and be taken in; EngineError when that does not happen."""
        config = self.config
        try:
            async with asyncio.timeout(timeout(HANDSHAKE_MINUTES * 60)):
                self.link = await self._connect()
                self.link.send("HELLO", ranks=list(config.ranks), headless=config.headless, config=config.fingerprint())
                answer = await self.link.receive()
        except TimeoutError:
            raise EngineError(
                f"Did not receive response from front-end process within {HANDSHAKE_MINUTES} minutes "
                f"(tcp://{config.address}:{config.rpc_port})",
                kind="RuntimeError",
                who=self.core,
            ) from None
        except ConnectionError as error:
            raise dead_engine(self.core, f"Front-end closed the handshake: {error}") from None
        if answer["status"] == "REFUSED":
            raise EngineError(answer["message"], kind="RuntimeError", who=self.core)

    async def _connect(self) -> Link:
        said = False
        while True:
            try:
                return Link(*await asyncio.open_connection(self.config.address, self.config.rpc_port, limit=2**24))
            except OSError as error:
                if not said:
                    line(self.core, f"Waiting for init message from front-end: tcp://{self.config.address}:"
                         f"{self.config.rpc_port} ({error.strerror or error})")  # fmt: skip
                    said = True
            await asyncio.sleep(timeout(RETRY_SECONDS))

    async def start(self) -> None:
        """Report that the local ranks have loaded and wait for the rest of the group."""
        if self.link is None:
            raise ValueError("start comes after join")
        self.link.send("READY")
        try:
            await self.link.receive()
        except ConnectionError as error:
            raise self._lost(error) from None

    async def work(self, add: Callable[[int, Request], None], abort: Callable[[int, str], None]) -> None:
        """Take requests until the head goes away, which ends this process with EngineError."""
        if self.link is None:
            raise ValueError("work comes after join")
        try:
            while True:
                message = await self.link.receive()
                if message["status"] == "ADD":
                    add(message["rank"], Request(**message["request"]))
                elif message["status"] == "ABORT":
                    abort(message["rank"], message["id"])
        except ConnectionError as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> EngineError:
        return dead_engine(self.core, f"EngineCore encountered a fatal error: lost the front-end ({error}).")

    def out(self, events: list[Event], stats: dict[str, Any]) -> None:
        """Send what a local rank did to the head."""
        if self.link:
            self.link.send("OUT", events=[asdict(event) for event in events], stats=stats)

    def close(self) -> None:
        """Leave the group."""
        if self.link:
            self.link.close()
