"""The `/metrics` page under the engine's names, filled from what the front end sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .config import Settings
from .scheduler import Event, Request
from .stats_log import StatsLog

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
               640, 2560)  # fmt: skip
TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES = (1, 2, 5, 10, 20)
LABELS = ("model_name", "engine")
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
FINISHES = ("stop", "length", "abort", "error", "repetition")
# Attribute, name without its prefix, HELP, further label: values of it that are shown from the start.
GAUGES = (
    ("running", "num_requests_running", "Number of requests in model execution batches."),
    ("waiting", "num_requests_waiting", "Number of requests waiting to be processed."),
    ("usage", "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."),
)
COUNTERS = (
    ("queries", "prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."),
    ("hits", "prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens."),
    ("external_queries", "external_prefix_cache_queries",
     "External prefix cache queries from KV connector cross-instance cache sharing, in number of queried tokens."),
    ("external_hits", "external_prefix_cache_hits",
     "External prefix cache hits from KV connector cross-instance cache sharing, in number of cached tokens."),
    ("mm_queries", "mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
    ("mm_hits", "mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
    ("preemptions", "num_preemptions", "Cumulative number of preemption from the engine."),
    ("prompt", "prompt_tokens", "Number of prefill tokens processed."),
    ("prompt_cached", "prompt_tokens_cached", "Number of cached prompt tokens (local + external)."),
    ("generation", "generation_tokens", "Number of generation tokens processed."),
)  # fmt: skip
DRAFT_COUNTERS = (
    ("drafts", "spec_decode_num_drafts", "Number of spec decoding drafts."),
    ("drafted", "spec_decode_num_draft_tokens", "Number of draft tokens."),
    ("accepted", "spec_decode_num_accepted_tokens", "Number of accepted tokens."),
)
HISTOGRAMS = (
    ("step_tokens", "iteration_tokens_total", "Histogram of number of tokens per engine_step.", STEP),
    ("choices", "request_params_n", "Histogram of the n request parameter.", CHOICES),
    ("first_token", "time_to_first_token_seconds", "Histogram of time to first token in seconds.", FIRST_TOKEN),
    ("inter_token", "inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", TOKEN),
    ("per_token", "request_time_per_output_token_seconds",
     "Histogram of time_per_output_token_seconds per request.", TOKEN),
    ("end_to_end", "e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", LATENCY),
    ("queue_time", "request_queue_time_seconds",
     "Histogram of time spent in WAITING phase for request.", LATENCY),
    ("inference_time", "request_inference_time_seconds",
     "Histogram of time spent in RUNNING phase for request.", LATENCY),
    ("prefill_time", "request_prefill_time_seconds",
     "Histogram of time spent in PREFILL phase for request.", LATENCY),
    ("decode_time", "request_decode_time_seconds",
     "Histogram of time spent in DECODE phase for request.", LATENCY),
)  # fmt: skip
LENGTH_HISTOGRAMS = (  # buckets 1, 2, 5, 10 … up to the longest sequence
    ("prompt_length", "request_prompt_tokens", "Number of prefill tokens processed."),
    ("answer_length", "request_generation_tokens", "Number of generation tokens processed."),
    ("computed_length", "request_prefill_kv_computed_tokens",
     "Histogram of new KV tokens computed during prefill (excluding cached tokens)."),
    ("most_answer", "request_max_num_generation_tokens",
     "Histogram of maximum number of requested generation tokens."),
    ("max_tokens", "request_params_max_tokens", "Histogram of the max_tokens request parameter."),
)  # fmt: skip


@dataclass
class Record:
    """Times and counts of one request; times are seconds of the monotonic clock."""

    rank: int
    request: Request
    arrived: float = field(default_factory=time.monotonic)
    queued: float = 0.0
    saved: int = 0  # prompt tokens that were not computed
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


def length_buckets(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … up to a length."""
    steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return [step for step in steps if step <= most] or [1]


class Metrics:
    """Counters of one front end. Every metric is labelled with the model and the engine, which is the global rank."""

    def __init__(self, config: Settings) -> None:
        self.config, self.model = config, config.served[0]
        self.registry = CollectorRegistry()
        self.single: dict[str, Any] = {}
        for key, name, text in GAUGES:
            self.single[key] = self._new(Gauge, name, text)
        for key, name, text in (*COUNTERS, *(DRAFT_COUNTERS if config.draft_tokens else ())):
            self.single[key] = self._new(Counter, name, text)
        for key, name, text, buckets in HISTOGRAMS:
            self.single[key] = self._new(Histogram, name, text, buckets=buckets)
        for key, name, text in LENGTH_HISTOGRAMS:
            self.single[key] = self._new(Histogram, name, text, buckets=length_buckets(config.max_model_len))
        self.by_reason = self._new(Gauge, "num_requests_waiting_by_reason", "Number of waiting requests by reason. "
                                   "Sum of all reasons equals vllm:num_requests_waiting.", "reason")  # fmt: skip
        self.sleep = self._new(Gauge, "engine_sleep_state", "Engine sleep state; awake = 0 means engine is sleeping; "
                               "awake = 1 means engine is awake.", "sleep_state")  # fmt: skip
        self.by_source = self._new(Counter, "prompt_tokens_by_source", "Number of prompt tokens by source.", "source")
        self.success = self._new(
            Counter, "request_success", "Count of successfully processed requests.", "finished_reason"
        )
        if config.draft_tokens:
            self.by_position = self._new(
                Counter, "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens per draft position.", "position"
            )
        self.kv_bytes = Gauge(
            "sim:kv_transfer_bytes", "KV bytes a rank moved over TCP (the simulator's own figure).",
            (*LABELS, "direction"), registry=self.registry,
        )  # fmt: skip
        self.http = Counter(
            "http_requests", "Total number of requests by method, status and handler.",
            ("handler", "method", "status"), registry=self.registry,
        )  # fmt: skip
        self.children: dict[tuple[Any, ...], Any] = {}
        self.log = StatsLog(config)

    def _new(self, kind: Any, name: str, text: str, *labels: str, **more: Any) -> Any:
        return kind(f"vllm:{name}", text, (*LABELS, *labels), registry=self.registry, **more)

    def _of(self, metric: Any, rank: int, *labels: str) -> Any:
        """A metric's child for a rank; looking it up is most of the work, so it is kept."""
        key = (metric, rank, *labels)
        if key not in self.children:
            self.children[key] = metric.labels(self.model, str(rank), *labels)
        return self.children[key]

    def prepare(self, ranks: range, blocks: int = 0) -> None:
        """Show every rank from the start, with zeros, and how its KV cache is set up."""
        for rank in ranks:
            for metric, values in self._labelled():
                for value in values:
                    self._of(metric, rank, value)
            for metric in self.single.values():
                self._of(metric, rank)
            self._of(self.sleep, rank, "awake").set(1)
        serving = self.config.serving
        facts = {
            "block_size": serving.block_size,
            "enable_prefix_caching": serving.caching,
            "gpu_memory_utilization": self.config.memory_utilization,
            "num_gpu_blocks": blocks,
        }
        info = Gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", (*facts, "engine"),
                     registry=self.registry)  # fmt: skip
        for rank in ranks:
            info.labels(*map(str, facts.values()), str(rank)).set(1)

    def _labelled(self) -> Iterator[tuple[Any, tuple[str, ...]]]:
        yield self.by_reason, ("capacity", "deferred")
        yield self.sleep, ("awake", "weights_offloaded", "discard_all")
        yield self.by_source, SOURCES
        yield self.success, FINISHES
        if self.config.draft_tokens:
            yield self.by_position, tuple(map(str, range(self.config.draft_tokens)))

    def stats(self, stats: dict[str, Any]) -> None:
        """Queue figures of one rank after a step, and what it counted."""
        rank, counts = stats["rank"], stats["counts"]
        self.log.stats(stats)
        for key in ("running", "usage"):
            self._of(self.single[key], rank).set(stats[key])
        self._of(self.single["waiting"], rank).set(stats["waiting"] + stats["deferred"])
        self._of(self.by_reason, rank, "capacity").set(stats["waiting"])
        self._of(self.by_reason, rank, "deferred").set(stats["deferred"])
        for direction in ("sent", "received"):
            if stats[direction]:
                self._of(self.kv_bytes, rank, direction).set(stats[direction])
        for key in ("queries", "hits", "external_queries", "external_hits", "preemptions", "drafts", "drafted"):
            if counts[key]:
                self._of(self.single[key], rank).inc(counts[key])
        for position, accepted in enumerate(counts["accepted"]):
            if accepted:
                self._of(self.single["accepted"], rank).inc(accepted)
                self._of(self.by_position, rank, str(position)).inc(accepted)
        for tokens in counts["step_tokens"]:
            self._of(self.single["step_tokens"], rank).observe(tokens)

    def submitted(self, rank: int, choices: int) -> None:
        """A request of a client with its number of choices."""
        self._of(self.single["choices"], rank).observe(choices)

    def event(self, record: Record, event: Event) -> None:
        """One step of one request."""
        now, single, rank = time.monotonic(), self.single, event.rank
        self.log.event(event, record.request.prompt_tokens)
        if event.first:
            self._first(record, event)
        if event.ids:
            self._of(single["generation"], rank).inc(len(event.ids))
            if not record.first:
                record.first = now
                self._of(single["first_token"], rank).observe(now - record.arrived)
            else:
                self._of(single["inter_token"], rank).observe(now - record.last)
            record.last = now
            record.tokens += len(event.ids)
        if event.finish:
            self._finish(record, event, now)

    def _first(self, record: Record, event: Event) -> None:
        prompt, rank = record.request.prompt_tokens, event.rank
        record.queued, record.saved = event.queued, event.cached + event.external
        self._of(self.single["prompt"], rank).inc(prompt)
        self._of(self.single["prompt_cached"], rank).inc(record.saved)
        for source, tokens in zip(SOURCES, (prompt - record.saved, event.cached, event.external), strict=True):
            self._of(self.by_source, rank, source).inc(tokens)

    def _finish(self, record: Record, event: Event, now: float) -> None:
        rank, single = event.rank, self.single
        self._of(self.success, rank, event.finish or "").inc()
        if not record.first:
            return  # failed before it wrote anything
        decode = record.last - record.first
        prefill = record.first - record.arrived - record.queued
        prompt = record.request.prompt_tokens
        for key, value in (
            ("end_to_end", now - record.arrived),
            ("queue_time", record.queued),
            ("prefill_time", prefill),
            ("decode_time", decode),
            ("inference_time", prefill + decode),
            ("per_token", decode / (record.tokens - 1) if record.tokens > 1 else 0),
            ("prompt_length", prompt),
            ("answer_length", record.tokens),
            ("most_answer", record.tokens),
            ("computed_length", prompt - record.saved),
            ("max_tokens", record.request.max_tokens),
        ):
            self._of(single[key], rank).observe(value)

    def answered(self, handler: str, method: str, status: int) -> None:
        """One HTTP request."""
        self.http.labels(handler, method, f"{status // 100}xx").inc()

    def page(self) -> bytes:
        """Text exposition format."""
        return generate_latest(self.registry)
