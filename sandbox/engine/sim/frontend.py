"""The front end of an engine: which rank gets a request, and the way back of its answer."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from .config import Settings
from .dp import Head
from .metrics import Metrics, Record
from .rank import Event, Rank, Request


class FrontEnd:
    """Balances requests over the ranks it can reach and gives each its stream of events."""

    def __init__(self, config: Settings, ranks: range, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.load = dict.fromkeys(ranks, 0)
        self.local: dict[int, Rank] = {}
        self.head: Head | None = None
        self.streams: dict[str, tuple[asyncio.Queue[Event], Record]] = {}
        self.turn = itertools.count()
        metrics.prepare(ranks)

    def submit(self, request: Request, stream: asyncio.Queue[Event]) -> None:
        """Start a request on the least loaded rank; its events go to `stream`."""
        turn = next(self.turn)
        rank = min(self.load, key=lambda r: (self.load[r], (r - turn) % len(self.load)))
        self.load[rank] += 1
        self.streams[request.id] = (stream, Record(rank, request.prompt_tokens))
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
