"""One engine process from start to end: phases, ports, group, API server, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any

from aiohttp import web

from . import faults, serving, timing, tls, weights
from .api import Api
from .config import Settings, check_devices, check_memory
from .dp import Head, Member
from .environment import Lease, check_interfaces, hbm, visible_devices
from .frontend import FrontEnd
from .kv import KvNode
from .log import EngineError, failure, line, server_line
from .metrics import Metrics
from .nodes import FirstNode, OtherNode
from .ports import Ports
from .rank import Rank
from .ray_executor import RayExecutor
from .scheduler import Event, Request

SHUTDOWN_SECONDS = 1.0


class Engine:
    """A head, a headless process or a single server, after its configuration has been checked."""

    def __init__(self, config: Settings, version: str) -> None:
        self.config, self.version = config, version
        self.lease = Lease()
        self.kv = KvNode(config) if config.kv else None
        self.head = Head(config, self.fail) if config.is_head else None
        self.member = None if config.is_head or config.node else Member(config)
        self.first = FirstNode(config, self.fail) if config.nodes > 1 and not config.node else None
        self.other = OtherNode(config) if config.node else None
        self.executor = RayExecutor(config, self.fail) if config.ray else None
        self.ports = Ports(config)
        self.front: FrontEnd | None = None
        self.ranks: dict[int, Rank] = {}
        self.blocks = 0  # of each rank's KV cache
        self.requests = 0  # generations asked for so far
        self.tasks: set[asyncio.Task[Any]] = set()
        self.runner: web.AppRunner | None = None
        self.fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: EngineError) -> None:
        """End the process with this error; the first one counts."""
        if not self.fatal.done():
            self.fatal.set_exception(error)

    async def run(self) -> int:
        """Start, serve until SIGTERM or SIGINT, and clean up. Returns the exit status; a failure is logged here."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        stopped = asyncio.ensure_future(stop.wait())
        started = self._spawn(self._start())
        try:
            await asyncio.wait({self.fatal, stopped, started}, return_when=asyncio.FIRST_COMPLETED)
            if started.done() and not self.fatal.done():
                started.result()
                await asyncio.wait({self.fatal, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self.fatal.done():
                self.fatal.result()
        except EngineError as error:
            failure(error)
            return error.status
        finally:
            self.fatal.cancel()
            stopped.cancel()
            await self._close()
        return 0

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        """A task whose EngineError ends the engine."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self.fail(error if isinstance(error, EngineError) else EngineError(repr(error), kind="RuntimeError"))

        task.add_done_callback(done)
        return task

    async def _start(self) -> None:
        config = self.config
        await self._phase("config")
        api_socket = self._bind_api()
        if self.other:
            await self._run_workers(self.other)
            return
        for part in (self.head, self.first):
            if part:
                await part.listen()
        self.ports.open_coordinator()
        joining = self._spawn(self.member.join()) if self.member else None
        if config.headless:
            line("APIServer", f"Launching {config.data_local} data parallel engine(s) in headless mode, with head node "
                 f"address tcp://{config.address}:{config.rpc_port}.", source="serve.py:178")  # fmt: skip
        await self._load()
        if self.first:
            await self.first.all_ready()
        if self.head:
            self.head.local_ready()
            await self.head.all_ready()
        if self.member and joining:
            await joining
            await self.member.start()
        await faults.check(config, "ready")
        for fault in faults.of(faults.orders(), "ready", config.ranks):
            if fault.kind == "leak":
                self._spawn(faults.leak(fault))
        self._serve_ranks()
        if api_socket:
            await self._serve_api(api_socket)
        if self.member:
            self._spawn(self.member.work(self._add, lambda rank, name: self.ranks[rank].abort(name)))
            line(config.core(config.start_rank), "Engine core(s) ready.", source="core.py:1011")

    async def _run_workers(self, node: OtherNode) -> None:
        """What a node does that does not serve, after its configuration."""
        line("APIServer", f"Launching vLLM (v{self.version}) headless multiproc executor, with head node address "
             f"{node.config.master[0]}:{node.config.master[1]} for torch.distributed process group.",
             source="serve.py:186")  # fmt: skip
        await node.join()
        await self._load()
        await faults.check(self.config, "ready")
        line(node.who, "Workers of this node are ready.", source="multiproc_executor.py:760")
        self._spawn(node.work())

    async def _phase(self, name: str) -> None:
        await timing.pause(timing.PHASES[name])
        await faults.check(self.config, name)

    def _bind_api(self) -> socket.socket | None:
        """Bind the API port before anything is loaded, as the engine does; it answers only when all is ready."""
        if self.config.headless:
            return None
        family = socket.AF_INET6 if ":" in (self.config.host or "") else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((self.config.host or "", self.config.port))
        except OSError as error:
            opened.close()
            raise EngineError(f"[Errno {error.errno}] {error.strerror}", kind="OSError") from error
        return opened

    async def _load(self) -> None:
        """Devices, collectives, weights, memory, KV ports and graphs of the local ranks."""
        config = self.config
        first = config.core(config.start_rank)
        devices: list[int] = []
        if self.executor:
            await asyncio.to_thread(self.executor.connect)
        else:
            devices = check_devices(config, visible_devices())
        await self._phase("devices")
        for rank in config.ranks:
            local = devices[(rank - config.start_rank) * config.local_world :][: config.local_world]
            line(config.core(rank), f"Initializing a V1 LLM engine (v{self.version}) with model={config.model_id!r}, "
                 f"tensor_parallel_size={config.tensor}, data_parallel_rank={rank}, devices={local}",
                 source="core.py:109")  # fmt: skip
        check_interfaces(first)
        await self._phase("hccl")
        if self.executor:
            left = await self.executor.load(await self.executor.place())
        else:
            total = min(total for total, _ in hbm(devices).values())
            budget, left = check_memory(config, total)
            self.lease.take(devices, budget, first)
        await self._load_weights(first)
        await self._phase("memory")
        for rank in config.ranks:
            line(config.core(rank), f"Available KV cache memory: {left / 1024:.2f} GiB", source="worker.py:312")
        self.blocks = serving.kv_blocks(config, left)
        for text in serving.capacity_lines(config, self.blocks):
            line(first, text, source="kv_cache_utils.py:1316")
        await self._phase("kv")
        if self.kv:
            await self.kv.listen()
        self.ports.open_ranks()
        if not config.eager:
            line(first, "Capturing CUDA graphs (decode, FULL):   0%|          | 0/8", source="model_runner_v1.py:2711")
            await self._phase("graph")
            line(first, "Graph capturing finished in 1 secs, took 0.32 GiB", source="model_runner_v1.py:2733")

    async def _load_weights(self, who: str) -> None:
        shards = self.config.model.shards
        if not shards:
            raise EngineError(
                f"Cannot find any model weights with `{self.config.model_id}`", kind="RuntimeError", who=who
            )
        step = max(len(shards) // 4, 1)
        for index, shard in enumerate(shards, 1):
            weights.load(shard, who)
            if index % step == 0 or index == len(shards):
                await timing.pause(timing.PHASES["weights"] * step / len(shards))
                percent = 100 * index // len(shards)
                line(who, f"Loading safetensors checkpoint shards: {percent:3d}% Completed | {index}/{len(shards)}")
        await faults.check(self.config, "weights")
        seconds = timing.PHASES["weights"] / timing.speed()
        line(who, f"Loading weights took {seconds:.2f} seconds", source="default_loader.py:291")

    def _serve_ranks(self) -> None:
        """Start the schedulers and give their events a way: to the front end here, or to the head."""
        config = self.config
        if not config.headless:
            whole = config.mode == "internal"
            self.front = FrontEnd(config, range(config.data) if whole else config.ranks, Metrics(config), self.blocks)
            if self.head and whole:
                self.front.head = self.head
                self.head.receive = self.front.receive
        for number in config.ranks:
            slow = faults.slowness(faults.orders(), number)
            writes = partial(self._writes, number)
            self.ranks[number] = Rank(config, number, self.blocks, self.kv, self._emit, slow, writes)
            self._spawn(self.ranks[number].run())
        if self.kv:
            self.kv.moved = lambda rank: self._emit([], self.ranks[rank].stats())
        if self.front:
            self.front.local = self.ranks

    def _emit(self, events: list[Event], stats: dict[str, Any]) -> None:
        if self.front:
            self.front.receive(events, stats)
        elif self.member:
            self.member.out(events, stats)

    async def _serve_api(self, opened: socket.socket) -> None:
        if self.front is None:
            raise ValueError("the API server comes after the front end")
        config = self.config
        api = Api(config, self.front, self.version, self._on_request)
        self.runner = web.AppRunner(api.app, access_log=None)
        await self.runner.setup()
        trust = tls.Terminator(config.serving) if config.serving.certificate else None
        await web.SockSite(self.runner, opened, ssl_context=trust and trust.context).start()
        if trust and config.serving.refresh_certificate:
            self._spawn(trust.refresh())
        names = ["APIServer"] if config.api_servers == 1 else [f"ApiServer_{i}" for i in range(config.api_servers)]
        scheme = "https" if trust else "http"
        line(names[0], f"Starting vLLM server on {scheme}://{config.host or '0.0.0.0'}:{config.port}",  # noqa: S104
             source="api_server.py:580")  # fmt: skip
        for name in names:
            server_line(name, f"Started server process [{os.getpid()}]")
            server_line(name, "Waiting for application startup.")
            server_line(name, "Application startup complete.")

    def _add(self, rank: int, request: Request) -> None:
        """A request that the head gives to a rank of this process; what its answer has to show, the head has said."""
        fault = self._fault_of_request([rank])
        if fault is None or (fault.kind != "hang" and not fault.signature):
            self.ranks[rank].add(request)

    def _writes(self, rank: int) -> str:
        """What this rank writes badly just now."""
        try:
            return faults.for_writer(faults.orders(), rank)
        except EngineError as error:
            self.fail(error)
            return ""

    def _on_request(self) -> str | None:
        """What a request has to show: nothing, one of the faults of answers, or the end of the engine."""
        fault = self._fault_of_request(self.config.ranks)
        return fault.kind if fault and not fault.signature else None

    def _fault_of_request(self, ranks: Iterable[int]) -> faults.Fault | None:
        """The fault of the next request, if it has one; one that the engine dies of ends it here."""
        self.requests += 1
        try:
            fault = faults.for_request(faults.orders(), ranks, self.requests)
        except EngineError as error:
            self.fail(error)
            return None
        if fault and fault.signature:
            self.fail(faults.error(self.config, fault))
        return fault

    async def _close(self) -> None:
        """Stop within two seconds, whatever is still open."""
        if not self.config.headless:
            server_line("APIServer", "Shutting down")
        for task in self.tasks:
            task.cancel()
        for part in (self.head, self.member, self.first, self.other, self.executor, self.ports):
            if part:
                part.close()
        if self.kv:
            await self.kv.close()
        if self.runner:
            try:
                await asyncio.wait_for(self.runner.cleanup(), SHUTDOWN_SECONDS)
            except TimeoutError:
                line("APIServer", "open connections were cut", level="WARNING")
            server_line("APIServer", "Application shutdown complete.")
        self.lease.release()
