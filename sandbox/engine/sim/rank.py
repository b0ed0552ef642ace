"""One data-parallel rank in real time: its scheduler, the time its steps take, and its KV transfers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import aiohttp

from . import serving, timing, tokenizer
from .config import Settings
from .kv import KvNode, TransferError
from .log import line
from .scheduler import Event, Request, Scheduler, Sequence, Writer, outside_id

METASERVER_TRIES = 3


class Rank:
    """Runs requests on `blocks` blocks of KV cache; every step's events and figures go to `emit`.

    `slow` is the factor by which its steps take longer than they should, `writes` tells what it writes badly.
    """

    def __init__(
        self,
        config: Settings,
        number: int,
        blocks: int,
        kv: KvNode | None,
        emit: Callable[[list[Event], dict[str, Any]], None],
        slow: float = 1.0,
        writes: Callable[[], str] = str,
    ) -> None:
        self.writes = writes
        self.config, self.number, self.kv, self.emit, self.slow = config, number, kv, emit, slow
        self.tokenizer = tokenizer.load(config.model.directory)
        self.costs = serving.costs(config)
        self.scheduler = Scheduler(number, serving.limits(config), serving.pool(config, blocks), time.monotonic)
        self.receiving: dict[str, asyncio.Task[None]] = {}
        self.sending: set[asyncio.Task[None]] = set()
        self.wake = asyncio.Event()
        if kv:
            kv.released[number] = self._released

    def add(self, request: Request) -> None:
        """Queue a request; one whose prompt another instance computes waits for its KV first."""
        request.kind = self.writes() or request.kind
        sequence = Sequence(request, Writer(request, self.tokenizer), time.monotonic())
        params = request.kv or {}
        if self.kv and params.get("do_remote_prefill") and (params.get("metaserver") or params.get("remote_host")):
            self.receiving[request.id] = asyncio.create_task(self._receive(sequence))
        else:
            self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self.wake.set()

    def _released(self, request_id: str) -> None:
        self.scheduler.release(request_id)
        self.wake.set()
        self.emit([], self.stats())

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it is."""
        if task := self.receiving.pop(request_id, None):
            task.cancel()
        self.scheduler.abort(request_id)
        self.wake.set()
        self.emit([], self.stats())

    def stats(self) -> dict[str, Any]:
        """Queue figures of this rank, and what it has counted since the last call."""
        scheduler = self.scheduler
        return {
            "rank": self.number,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "deferred": len(self.receiving),
            "usage": scheduler.pool.usage,
            "sent": self.kv.sent[self.number] if self.kv else 0,
            "received": self.kv.received[self.number] if self.kv else 0,
            "counts": asdict(scheduler.drain()),
        }

    async def run(self) -> None:
        """Step for ever; sleep while there is nothing to do."""
        due = 0.0
        while True:
            batch = self.scheduler.schedule()
            if batch is None:
                self.wake.clear()
                await self.wake.wait()
                continue
            # Steps follow each other without a gap, so what this program needs itself is not added to the model's time.
            due = max(due, time.monotonic()) + self.costs.step(batch) * self.slow / timing.speed()
            await asyncio.sleep(max(due - time.monotonic(), 0))
            events = [event for event in self.scheduler.complete(batch) if not self._hand_over(event, batch)]
            self.emit(events, self.stats())

    def _hand_over(self, event: Event, batch: Any) -> bool:
        """Keep or push the KV of a finished prefill; whether its event has to wait for that."""
        if not event.finish or not self.kv or event.id not in self.scheduler.held:
            return False
        request = next(w.sequence.request for w in batch.work if w.sequence.request.id == event.id)
        params = request.kv or {}
        if params.get("remote_host"):
            task = asyncio.create_task(self._push(event, params, request.prompt_tokens))
            self.sending.add(task)
            task.add_done_callback(self.sending.discard)
            return True
        event.kv = self.kv.hold(event.id, self.number, request.prompt_tokens, self.scheduler.held[event.id],
                                event.ids[-1])  # fmt: skip
        return False

    async def _receive(self, sequence: Sequence) -> None:
        """Get the prompt's KV from the prefill instance, then queue the request for decoding."""
        request, kv = sequence.request, self.kv
        if kv is None:
            raise ValueError("a rank without a KV connector cannot receive KV")
        params, outside = request.kv or {}, outside_id(request.id)
        asking: asyncio.Task[None] | None = None
        try:
            if url := params.get("metaserver"):
                announced, arrived = kv.expect(outside, self.number, request.prompt_tokens)
                asking = asyncio.create_task(self._ask(str(url), announced))
                await asyncio.wait_for(arrived, kv.abort_seconds)
            else:
                await kv.pull(self.number, params)
        except (TransferError, TimeoutError) as error:
            self._failed(request.id, error)
            if self.config.serving.recompute_lost:
                self._queue(sequence)
            else:
                self.emit([Event(request.id, self.number, finish="error")], self.stats())
        else:
            sequence.external = request.prompt_tokens
            self._queue(sequence)
        finally:
            if asking:
                asking.cancel()
            kv.expected.pop(outside, None)
            self.receiving.pop(request.id, None)

    async def _ask(self, url: str, announced: dict[str, Any]) -> None:
        """Tell the metaserver where the KV is wanted. A request that it does not take waits until it is given up."""
        for number in range(METASERVER_TRIES):
            try:
                async with aiohttp.ClientSession() as session, session.post(url, json=announced) as response:
                    await response.read()
                return
            except (aiohttp.ClientError, OSError) as error:
                self._error(f"Failed to connect to metaserver. url={url}, retry={number}.")
                last = error
        self._error(f"Access metaserver fail. error={last!r}.")

    async def _push(self, event: Event, params: dict[str, Any], tokens: int) -> None:
        """Send a layerwise prefill's KV; its answer goes out when the decode instance has it."""
        if self.kv is None:
            raise ValueError("a rank without a KV connector cannot send KV")
        try:
            await self.kv.push(self.number, params, tokens)
        except TransferError as error:
            self._failed(event.id, error)
            event.finish = "error"
        self._released(event.id)
        self.emit([event], self.stats())

    def _failed(self, request_id: str, error: Exception) -> None:
        self._error(f"Mooncake transfer failed for request. remote_request_id={request_id}, ret=-1.")
        self._error(f"Failed to transfer KV cache for request {request_id}: {str(error) or 'no answer in time'}")

    def _error(self, text: str) -> None:
        line(self.config.core(self.number), text, level="ERROR", source="mooncake_connector.py:779")
