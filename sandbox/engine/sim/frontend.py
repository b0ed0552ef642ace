"""The front end of an engine: which rank gets a request, and the way back of its answer."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from .config import Settings
from .dp import Head
from .metrics import Metrics, Record
from .rank import Rank
from .scheduler import Event, Request


class FrontEnd:
    """Balances requests over the ranks it can reach and gives each its stream of events."""

    def __init__(self, config: Settings, ranks: range, metrics: Metrics, blocks: int = 0) -> None:
        self.config, self.metrics = config, metrics
        self.load = dict.fromkeys(ranks, 0)
        self.local: dict[int, Rank] = {}
        self.head: Head | None = None
        self.streams: dict[str, tuple[asyncio.Queue[Event], Record]] = {}
        self.turn = itertools.count()
        metrics.prepare(ranks, blocks)

    def submit(
        self, request: Request, stream: asyncio.Queue[Event], wanted: int | None = None, choices: int = 1
    ) -> None:
        """Start a request on the least loaded rank, or on the one that the client wants; its events go to `stream`.

        `choices` is what the client asked for at once. ValueError for a rank that is not there.
        """
        turn = next(self.turn)
        rank = min(self.load, key=lambda r: (self.load[r], (r - turn) % len(self.load)))
        if wanted is not None:
            if not 0 <= wanted < len(self.load):
                raise ValueError(f"data_parallel_rank {wanted} is out of range [0, {len(self.load)}).")
            rank = list(self.load)[wanted]
        self.load[rank] += 1
        self.streams[request.id] = (stream, Record(rank, request))
        self.metrics.submitted(rank, choices)
        if rank in self.local:
            self.local[rank].add(request)
        elif self.head:
            self.head.add(rank, request)

    def abort(self, request_id: str) -> None:
        """End a request whose client has gone."""
        if request_id not in self.streams:
            return
        rank = self._forget(request_id)
        if rank in self.local:
            self.local[rank].abort(request_id)
        elif self.head:
            self.head.abort(rank, request_id)

    def reset_prefix_cache(self) -> None:
        """Forget the prefixes that the local ranks have cached and that nobody uses."""
        for rank in self.local.values():
            rank.scheduler.pool.reset()

    def _forget(self, request_id: str) -> int:
        _, record = self.streams.pop(request_id)
        self.load[record.rank] -= 1
        return record.rank

    def receive(self, events: list[Event], stats: dict[str, Any]) -> None:
        """Events of one step of one rank, local or remote."""
        self.metrics.stats(stats)
        for event in events:
            if event.id not in self.streams:
                continue
            stream, record = self.streams[event.id]
            self.metrics.event(record, event)
            stream.put_nowait(event)
            if event.finish:
                self._forget(event.id)
