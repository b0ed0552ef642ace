"""One data-parallel rank: its queue, its scheduler and the requests it runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from . import text, timing
from .config import Settings
from .kv import BLOCK_TOKENS, KvNode, TransferError
from .log import line

CACHE_TOKENS = 262_144  # KV capacity of one rank, in tokens; only the usage figure depends on it


@dataclass
class Request:
    """A generation to run. Plain values only: it also travels to other nodes as JSON."""

    id: str
    prompt: str
    prompt_tokens: int
    max_tokens: int
    min_tokens: int = 0
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False
    seed: int = 0
    kv: dict[str, Any] | None = None


@dataclass
class Event:
    """What happened to a request in one step. `external` counts prompt tokens whose KV came from another instance."""

    id: str
    rank: int
    text: str = ""
    tokens: int = 0
    finish: str | None = None
    kv: dict[str, Any] | None = None
    error: str | None = None
    scheduled: bool = False
    external: int = 0


class Running:
    """A request with its progress: prompt tokens computed, answer written so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.computed = 0
        self.external = 0
        self.produced = 0
        self.announced = False
        self.source = text.answer(request.prompt, request.seed)
        self.written = ""
        self.sent = 0
        # A stop string may arrive in parts: this many characters wait until it is clear that they are none.
        self.holdback = max((len(s) for s in request.stop), default=1) - 1

    def extend(self, count: int) -> tuple[str, int, str | None]:
        """Write up to `count` tokens: (text to send, tokens written, finish reason or None)."""
        finish, tokens = None, 0
        for piece, could_end in self.source:
            self.written += piece
            self.produced += 1
            tokens += 1
            stops = [at for s in self.request.stop if (at := self.written.find(s, max(self.sent - len(s), 0))) >= 0]
            if stops and self.produced >= self.request.min_tokens:
                self.written, finish = self.written[: min(stops)], "stop"
            elif could_end and not self.request.ignore_eos and self.produced >= self.request.min_tokens:
                finish = "stop"
            if finish is None and self.produced >= self.request.max_tokens:
                finish = "length"
            if finish or tokens == count:
                break
        end = len(self.written) if finish else max(len(self.written) - self.holdback, self.sent)
        fresh, self.sent = self.written[self.sent : end], max(end, self.sent)
        return fresh, tokens, finish


class Rank:
    """Continuous batching: decodes first, then prompt chunks, within max_num_seqs and max_num_batched_tokens."""

    def __init__(
        self,
        config: Settings,
        number: int,
        kv: KvNode | None,
        emit: Callable[[list[Event], dict[str, Any]], None],
    ) -> None:
        self.config, self.number, self.kv, self.emit = config, number, kv, emit
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.receiving: dict[str, asyncio.Task[None]] = {}
        self.sending: set[asyncio.Task[None]] = set()
        self.wake = asyncio.Event()

    def add(self, request: Request) -> None:
        """Queue a request; one whose prompt another instance computes waits for its KV first."""
        state = Running(request)
        params = request.kv or {}
        if self.kv and params.get("do_remote_prefill") and (params.get("metaserver") or params.get("remote_host")):
            self.receiving[request.id] = asyncio.create_task(self._receive(state))
        else:
            self._queue(state)

    def _queue(self, state: Running) -> None:
        self.waiting.append(state)
        self.wake.set()

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it is."""
        if task := self.receiving.pop(request_id, None):
            task.cancel()
        self.waiting = deque(s for s in self.waiting if s.request.id != request_id)
        self.running = [s for s in self.running if s.request.id != request_id]

    async def _receive(self, state: Running) -> None:
        """Get the prompt's KV from the prefill instance, then queue the request for decoding."""
        request, kv = state.request, self.kv
        if kv is None:
            raise ValueError("a rank without a KV connector cannot receive KV")
        params = request.kv or {}
        try:
            if url := params.get("metaserver"):
                announced, arrived = kv.expect(request.id, self.number, request.prompt_tokens)
                await _post(url, announced)
                await asyncio.wait_for(arrived, kv.abort_seconds)
            else:
                await kv.pull(self.number, params)
        except (TransferError, TimeoutError) as error:
            line(
                self.config.core(self.number),
                f"Mooncake transfer failed for request {request.id}: {error}",
                level="ERROR",
            )
            self.emit([Event(request.id, self.number, finish="error", error=str(error))], self.stats())
        else:
            state.computed = state.external = request.prompt_tokens
            self._queue(state)
        finally:
            kv.expected.pop(request.id, None)
            self.receiving.pop(request.id, None)

    def stats(self) -> dict[str, Any]:
        """Queue figures of this rank for the metrics page."""
        used = sum(-(-(s.computed + s.produced) // BLOCK_TOKENS) * BLOCK_TOKENS for s in self.running)
        return {
            "rank": self.number,
            "running": len(self.running),
            "waiting": len(self.waiting) + len(self.receiving),
            "usage": min(used / CACHE_TOKENS, 1.0),
            "sent": self.kv.sent[self.number] if self.kv else 0,
            "received": self.kv.received[self.number] if self.kv else 0,
        }

    async def run(self) -> None:
        """Step for ever; sleep while there is nothing to do."""
        while True:
            if not (self.running or self.waiting):
                self.wake.clear()
                await self.wake.wait()
            await self._step()

    async def _step(self) -> None:
        config = self.config
        while self.waiting and len(self.running) < config.max_num_seqs:
            self.running.append(self.waiting.popleft())
        decoding = [s for s in self.running if s.computed >= s.request.prompt_tokens and s.produced]
        budget = max(config.max_num_batched_tokens - len(decoding) * (1 + config.draft_tokens), 1)
        prefill = 0
        completing: list[Running] = []
        for state in self.running:
            if state in decoding:
                continue
            # A request whose KV came from elsewhere still computes its last prompt token here.
            chunk = min(state.request.prompt_tokens - state.computed, budget - prefill)
            if chunk <= 0 and state.computed < state.request.prompt_tokens:
                continue
            state.computed += chunk
            prefill += chunk
            if state.computed >= state.request.prompt_tokens:
                completing.append(state)
        await timing.pause(timing.step_seconds(prefill, len(decoding), config.world, config.draft_tokens, config.eager))
        alive = set(map(id, self.running))  # requests may have been aborted while the step took its time
        events = [self._advance(s, 1) for s in completing if id(s) in alive]
        for state in decoding:
            if id(state) in alive:
                extra = timing.accepted(config.draft_tokens, state.request.seed, state.produced)
                events.append(self._advance(state, 1 + extra))
        finished = {event.id for event in events if event.finish}
        self.running = [s for s in self.running if s.request.id not in finished]
        ready = [event for event in events if not self._push_first(event)]
        self.emit(ready, self.stats())

    def _advance(self, state: Running, count: int) -> Event:
        fresh, tokens, finish = state.extend(count)
        event = Event(state.request.id, self.number, fresh, tokens, finish, scheduled=not state.announced)
        if event.scheduled:
            event.external = state.external
        state.announced = True
        params = state.request.kv or {}
        if finish and self.kv and params.get("do_remote_decode"):
            if params.get("remote_host"):
                event.kv = params | {"prompt_tokens": state.request.prompt_tokens}
            else:
                event.kv = self.kv.hold(state.request.id, self.number, state.request.prompt_tokens)
        return event

    def _push_first(self, event: Event) -> bool:
        """Start the push of a layerwise prefill; its answer goes out when the decode instance has the KV."""
        params = event.kv
        if self.kv is None or not params or not params.get("remote_host") or params.get("do_remote_prefill"):
            return False
        task = asyncio.create_task(self._push(event, params))
        self.sending.add(task)
        task.add_done_callback(self.sending.discard)
        return True

    async def _push(self, event: Event, params: dict[str, Any]) -> None:
        if self.kv is None:
            raise ValueError("a rank without a KV connector cannot send KV")
        try:
            await self.kv.push(self.number, params, params["prompt_tokens"])
            event.kv = None
        except TransferError as error:
            line(
                self.config.core(self.number),
                f"Mooncake transfer failed for request {event.id}: {error}",
                level="ERROR",
            )
            event.finish, event.error, event.kv = "error", str(error), None
        self.emit([event], self.stats())


async def _post(url: str, body: dict[str, Any]) -> None:
    """Tell the metaserver where the KV is wanted; TransferError when it does not take it."""
    try:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
            if response.status != 200:
                raise TransferError(f"metaserver {url} answered {response.status}: {await response.text()}")
    except (aiohttp.ClientError, OSError) as error:
        raise TransferError(f"metaserver {url} does not answer: {error!r}") from error
