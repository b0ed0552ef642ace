"""Engines in model time: requests run through the schedulers with a clock that only the steps move.

Nothing sleeps and nothing depends on the machine, so the same workload always gives the same figures.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .cache import BlockPool
from .scheduler import Batch, Event, Limits, Request, Scheduler, Sequence, Writer
from .timing import Costs


class Clock:
    """Model time in seconds, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something at a time, in order of asking where times are equal."""
        heapq.heappush(self.due, (seconds, next(self.order), call))

    def run(self) -> None:
        """Go on until nothing is due."""
        while self.due:
            self.now, _, call = heapq.heappop(self.due)
            call()


class Plain(Writer):
    """An answer of which only the length is of interest: it ends at `max_tokens`."""

    def __init__(self, request: Request, token: int = 0) -> None:
        self.request, self.produced, self.token = request, 0, token

    def write(self, count: int) -> tuple[str, list[int], str | None, str | int | None]:
        """Up to `count` tokens, all the same one."""
        count = min(count, self.request.max_tokens - self.produced)
        self.produced += count
        finish = "length" if self.produced >= self.request.max_tokens else None
        return "", [self.token] * count, finish, None


@dataclass
class Result:
    """Times of one request, seconds of model time, and what it got."""

    sent: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    cached: int = 0
    queued: float = 0.0

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.first - self.sent

    @property
    def tpot(self) -> float:
        """Seconds for each further token."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else 0.0


class VirtualRank:
    """One rank that steps whenever it has something to do."""

    def __init__(
        self, clock: Clock, number: int, limits: Limits, pool: BlockPool, costs: Costs, emit: Callable[[Event], None]
    ) -> None:
        self.clock, self.costs, self.emit = clock, costs, emit
        self.scheduler = Scheduler(number, limits, pool, lambda: clock.now)
        self.busy = False

    @property
    def load(self) -> int:
        """Requests it has."""
        return len(self.scheduler.waiting) + len(self.scheduler.running)

    def add(self, request: Request, writer: Writer, external: int = 0) -> None:
        """Queue a request, `external` tokens of whose prompt another instance has computed."""
        sequence = Sequence(request, writer, self.clock.now)
        sequence.external = external
        self.scheduler.add(sequence)
        if not self.busy:
            self._step()

    def _step(self) -> None:
        batch = self.scheduler.schedule()
        self.busy = batch is not None
        if batch:
            self.clock.at(self.clock.now + self.costs.step(batch), lambda: self._done(batch))

    def _done(self, batch: Batch) -> None:
        for event in self.scheduler.complete(batch):
            self.emit(event)
        self._step()


@dataclass(frozen=True)
class Instance:
    """How one engine is set up: its ranks and what bounds them. `blocks` of 128 tokens are the KV cache of a rank."""

    ranks: int
    limits: Limits
    costs: Costs
    blocks: int = 10**6
    block_size: int = 128
    caching: bool = False


@dataclass
class Job:
    """One request of a workload: earliest time of sending, prompt, length of the answer."""

    prompt: list[int]
    tokens: int
    at: float = 0.0


class Deployment:
    """Engines behind a router, with a client that keeps at most `concurrency` requests under way.

    `decode` engines take over where `prefill` engines stop, after `transfer` seconds; without them every engine does
    both. `route` picks the engine of a request by its number; by default the one with the fewest requests.
    """

    def __init__(
        self,
        engines: list[Instance],
        decode: Iterable[Instance] = (),
        transfer: float = 0.0,
        route: Callable[[int], int] | None = None,
    ) -> None:
        self.clock, self.transfer, self.route = Clock(), transfer, route
        self.engines = [self._ranks(engine) for engine in engines]
        self.decode = [rank for engine in decode for rank in self._ranks(engine)]
        self.results: dict[str, Result] = {}
        self.jobs: dict[str, Job] = {}
        self.waiting: deque[Job] = deque()
        self.handed_over: set[str] = set()

    def _ranks(self, engine: Instance) -> list[VirtualRank]:
        return [
            VirtualRank(
                self.clock,
                number,
                engine.limits,
                BlockPool(engine.blocks, engine.block_size, engine.caching),
                engine.costs,
                self._event,
            )
            for number in range(engine.ranks)
        ]

    def run(self, jobs: Iterable[Job], concurrency: int) -> list[Result]:
        """Run a workload to its end; results in the order of sending."""
        self.waiting = deque(jobs)
        for _ in range(min(concurrency, len(self.waiting))):
            self._next()
        self.clock.run()
        return list(self.results.values())

    def _next(self) -> None:
        if self.waiting:
            job = self.waiting.popleft()
            self.clock.at(max(job.at, self.clock.now), lambda: self._send(job))

    def _send(self, job: Job) -> None:
        name = str(len(self.results))
        self.jobs[name], self.results[name] = job, Result(self.clock.now)
        loads = [sum(rank.load for rank in engine) for engine in self.engines]
        engine = self.engines[self.route(int(name)) if self.route else loads.index(min(loads))]
        request = Request(name, job.prompt, 1 if self.decode else job.tokens, seed=int(name))
        rank = min(engine, key=lambda r: r.load)
        rank.add(request, Plain(request))

    def _event(self, event: Event) -> None:
        result, job = self.results[event.id], self.jobs[event.id]
        if event.first and not result.first:
            result.cached, result.queued = event.cached, event.queued
        if self.decode and event.id not in self.handed_over:
            # The token of the prefill engine is not the client's: the decode engine writes the first one itself.
            self.clock.at(self.clock.now + self.transfer, lambda: self._hand_over(event.id, job))
            return
        result.first = result.first or self.clock.now
        result.last, result.tokens = self.clock.now, result.tokens + len(event.ids)
        if event.finish:
            self._next()

    def _hand_over(self, name: str, job: Job) -> None:
        self.handed_over.add(name)
        request = Request(name, job.prompt, job.tokens, seed=int(name))
        rank = min(self.decode, key=lambda r: r.load)
        rank.add(request, Plain(request), external=len(job.prompt))
