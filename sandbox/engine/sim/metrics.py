"""The `/metrics` page under the engine's names, filled from what the front end sees."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .rank import Event

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
LABELS = ("model_name", "engine")


@dataclass
class Record:
    """Times of one request, seconds of the monotonic clock."""

    rank: int
    prompt_tokens: int
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


class Metrics:
    """Counters of one front end; `engine` is the global rank."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self.running = self._gauge("num_requests_running", "Number of requests in model execution batches.")
        self.waiting = self._gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        self.usage = self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.prompt = self._counter("prompt_tokens", "Number of prefill tokens processed.")
        self.prompt_by_source = self._counter("prompt_tokens_by_source", "Number of prompt tokens by source.", "source")
        self.external_queries = self._counter("external_prefix_cache_queries", "Tokens asked of the KV connector.")
        self.external_hits = self._counter("external_prefix_cache_hits", "Tokens the KV connector brought.")
        self.generation = self._counter("generation_tokens", "Number of generation tokens processed.")
        self.success = self._counter("request_success", "Count of successfully processed requests.", "finished_reason")
        self.preemptions = self._counter("num_preemptions", "Cumulative number of preemption from the engine.")
        self.first_token = self._histogram("time_to_first_token_seconds", "Time to first token.", FIRST_TOKEN)
        self.inter_token = self._histogram("inter_token_latency_seconds", "Inter-token latency.", TOKEN)
        self.per_token = self._histogram("request_time_per_output_token_seconds", "Time per output token.", TOKEN)
        self.end_to_end = self._histogram("e2e_request_latency_seconds", "End to end latency.", LATENCY)
        self.queue_time = self._histogram("request_queue_time_seconds", "Time in the WAITING phase.", LATENCY)
        self.kv_bytes = Gauge(
            "sim:kv_transfer_bytes", "KV bytes a rank moved over TCP (the simulator's own figure).",
            (*LABELS, "direction"), registry=self.registry,
        )  # fmt: skip

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, LABELS, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vllm:{name}", text, (*LABELS, *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", text, LABELS, buckets=buckets, registry=self.registry)

    def prepare(self, ranks: range) -> None:
        """Show every rank from the start, with zeros."""
        for rank in ranks:
            for metric in vars(self).values():
                if isinstance(metric, Gauge | Counter | Histogram) and metric._labelnames == LABELS:
                    metric.labels(self.model, str(rank))

    def stats(self, stats: dict[str, Any]) -> None:
        """Queue figures of one rank after a step."""
        labels = (self.model, str(stats["rank"]))
        self.running.labels(*labels).set(stats["running"])
        self.waiting.labels(*labels).set(stats["waiting"])
        self.usage.labels(*labels).set(stats["usage"])
        self.kv_bytes.labels(*labels, "sent").set(stats["sent"])
        self.kv_bytes.labels(*labels, "received").set(stats["received"])

    def event(self, record: Record, event: Event) -> None:
        """One step of one request."""
        now = time.monotonic()
        labels = (self.model, str(event.rank))
        if event.scheduled:
            record.scheduled = now
            self.queue_time.labels(*labels).observe(now - record.arrived)
            self.prompt.labels(*labels).inc(record.prompt_tokens)
            local = record.prompt_tokens - event.external
            self.prompt_by_source.labels(*labels, "local_compute").inc(local)
            if event.external:
                self.prompt_by_source.labels(*labels, "external_kv_transfer").inc(event.external)
                self.external_queries.labels(*labels).inc(record.prompt_tokens)
                self.external_hits.labels(*labels).inc(event.external)
        if event.tokens:
            self.generation.labels(*labels).inc(event.tokens)
            if not record.first:
                record.first = now
                self.first_token.labels(*labels).observe(now - record.arrived)
            else:
                self.inter_token.labels(*labels).observe(now - record.last)
            record.last = now
            record.tokens += event.tokens
        if event.finish:
            self.end_to_end.labels(*labels).observe(now - record.arrived)
            if record.tokens > 1:
                self.per_token.labels(*labels).observe((record.last - record.first) / (record.tokens - 1))
            self.success.labels(*labels, event.finish).inc()

    def page(self) -> bytes:
        """Text exposition format."""
        return generate_latest(self.registry)
