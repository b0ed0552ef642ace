"""The engine's line of throughput and load, once every ten seconds for each rank that does something."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

from .config import Settings
from .log import line
from .scheduler import Event


@dataclass
class Activity:
    """What one rank did since its last line, and how it stands."""

    since: float
    prompt: int = 0
    written: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: list[int] = field(default_factory=list)
    preemptions: int = 0
    queries: int = 0
    hits: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    busy: bool = False

    def rest(self, now: float) -> None:
        """Start the next interval."""
        self.busy = bool(self.prompt or self.written)
        self.since, self.prompt, self.written, self.drafts, self.drafted, self.preemptions = now, 0, 0, 0, 0, 0
        self.accepted = [0] * len(self.accepted)


class StatsLog:
    """Gathers events and figures and writes the lines; several API servers write none, as none sees everything.

    The timer runs only while there is something to tell: an engine without requests is never woken by it.
    """

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.interval = float(os.environ.get("VLLM_LOG_STATS_INTERVAL", "10"))
        self.on = config.serving.log_stats and config.api_servers == 1
        self.ranks: dict[int, Activity] = {}
        self.timer: asyncio.TimerHandle | None = None
        if config.serving.log_stats and config.api_servers > 1:
            line("ApiServer_0", "AsyncLLM created with api_server_count more than 1; disabling stats logging to avoid "
                 "incomplete stats.", level="WARNING", source="loggers.py:1250")  # fmt: skip

    def _of(self, rank: int) -> Activity:
        if rank not in self.ranks:
            self.ranks[rank] = Activity(time.monotonic(), accepted=[0] * self.config.draft_tokens)
        return self.ranks[rank]

    def stats(self, stats: dict[str, Any]) -> None:
        """Figures of one rank after a step."""
        if not self.on:
            return
        activity, counts = self._of(stats["rank"]), stats["counts"]
        activity.last = stats
        for name in ("queries", "hits", "preemptions", "drafts", "drafted"):
            setattr(activity, name, getattr(activity, name) + counts[name])
        activity.accepted = [a + b for a, b in zip(activity.accepted, counts["accepted"], strict=True)]

    def event(self, event: Event, prompt: int) -> None:
        """One step of one request with a prompt of so many tokens."""
        if not self.on:
            return
        activity = self._of(event.rank)
        activity.written += len(event.ids)
        activity.prompt += prompt if event.first else 0
        if self.timer is None:
            now = time.monotonic()
            for quiet in self.ranks.values():
                quiet.since = now
            self.timer = asyncio.get_running_loop().call_later(self.interval, self._tick)

    def _tick(self) -> None:
        now, told = time.monotonic(), False
        for rank, activity in sorted(self.ranks.items()):
            if activity.prompt or activity.written or activity.busy:
                self._tell(rank, activity, now - activity.since)
                told = True
            activity.rest(now)
        self.timer = asyncio.get_running_loop().call_later(self.interval, self._tick) if told else None

    def _tell(self, rank: int, activity: Activity, seconds: float) -> None:
        last = activity.last
        hit = 100 * activity.hits / activity.queries if activity.queries else 0.0
        parts = [
            f"Avg prompt throughput: {activity.prompt / seconds:.1f} tokens/s",
            f"Avg generation throughput: {activity.written / seconds:.1f} tokens/s",
            f"Running: {last.get('running', 0)} reqs",
            f"Waiting: {last.get('waiting', 0) + last.get('deferred', 0)} reqs",
            *([f"Deferred: {last['deferred']} reqs"] if last.get("deferred") else []),
            *([f"Preemptions: {activity.preemptions}"] if activity.preemptions else []),
            f"GPU KV cache usage: {100 * last.get('usage', 0.0):.1f}%",
            f"Prefix cache hit rate: {hit:.1f}%",
        ]
        line("APIServer", f"Engine {rank:03d}: {', '.join(parts)}", source="loggers.py:259")
        if activity.drafts:
            accepted = sum(activity.accepted)
            rates = ", ".join(f"{count / activity.drafts:.3f}" for count in activity.accepted)
            line(
                "APIServer",
                f"SpecDecoding metrics: Mean acceptance length: {1 + accepted / activity.drafts:.2f}, "
                f"Accepted throughput: {accepted / seconds:.2f} tokens/s, "
                f"Drafted throughput: {activity.drafted / seconds:.2f} tokens/s, Accepted: {accepted} tokens, "
                f"Drafted: {activity.drafted} tokens, Per-position acceptance rate: {rates}, "
                f"Avg Draft acceptance rate: {100 * accepted / activity.drafted:.1f}%",
                source="metrics.py:101",
            )
