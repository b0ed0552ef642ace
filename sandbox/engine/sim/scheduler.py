"""What one rank computes in each step: continuous batching, chunked prefill, prefix cache, preemption, drafted tokens.

No clock and no task of its own: `schedule` says what the next step computes, `complete` takes its result. Whoever
calls them lets the time pass in between, in real time (`rank`) or in model time (`virtual`).

A step serves running requests first, one token each (and the drafted ones), the rest of the token budget goes to
prompts, in chunks where they do not fit. When blocks run out, the request that came last is preempted: it gives its
blocks back and starts anew later, from whatever the prefix cache still has.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import text
from .cache import BlockPool, hash_blocks
from .tokenizer import Decoder, Tokenizer

#: Faults of answers that the writing rank itself shows.
WRITER_FAULTS = ("empty", "foreign", "garbage", "loop", "unsteady")
ACCEPT = 0.7  # chance that a drafted token is right, given that the one before it was


@dataclass
class Request:
    """A generation to run. Plain values only: it also travels to other nodes as JSON.

    `prompt` are token ids; `opening` and `lead` say how the answer begins (see `text.answer`); `kind` is the fault
    that the answer shows, one of WRITER_FAULTS. `salt` keeps prefixes of different users apart.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    min_tokens: int = 0
    stop: list[str] = field(default_factory=list)
    stop_ids: list[int] = field(default_factory=list)
    include_stop: bool = False
    ignore_eos: bool = False
    seed: int = 0
    opening: str = ""
    lead: str = " "
    salt: str = ""
    kind: str = ""
    kv: dict[str, Any] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt)


def inside_id(name: str) -> str:
    """A request's id within the engine, which adds eight characters of its own so that none comes twice."""
    return f"{name}-{secrets.token_hex(4)}"


def outside_id(name: str) -> str:
    """The id that others know, of one within the engine."""
    return name[:-9]


@dataclass
class Event:
    """What happened to a request in one step.

    `ids` are the tokens it wrote. The first event of a request has `first` and says how long it `queued` (seconds) and
    how many prompt tokens were not computed here: `cached` by this rank's prefix cache, `external` from another
    instance. `stop` is the stop string or token that ended it.
    """

    id: str
    rank: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    stop: str | int | None = None
    kv: dict[str, Any] | None = None
    error: str | None = None
    first: bool = False
    queued: float = 0.0
    cached: int = 0
    external: int = 0


@dataclass
class Counts:
    """What a rank has counted since it was last asked."""

    queries: int = 0
    hits: int = 0
    external_queries: int = 0
    external_hits: int = 0
    preemptions: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: list[int] = field(default_factory=list)  # of each draft position
    step_tokens: list[int] = field(default_factory=list)  # of each step


class Writer:
    """The answer of one request: its tokens, and the text of them that may be sent."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request, self.eos = request, tokenizer.eos
        self.produced = 0
        self.source = self._source(tokenizer)
        self.decoder = Decoder(tokenizer)
        self.written, self.sent = "", 0
        # A stop string may arrive in parts: this many characters wait until it is clear that they are none.
        self.holdback = 0 if request.include_stop else max((len(s) for s in request.stop), default=1) - 1

    def _source(self, tokenizer: Tokenizer) -> Iterator[tuple[int, bool]]:
        request = self.request
        if request.kind == "garbage":
            return text.garbage(tokenizer, request.seed)
        if request.kind == "loop":
            return text.loop(tokenizer, request.seed, request.lead)
        if request.kind == "foreign":
            return text.foreign(tokenizer, request.seed)
        seed = secrets.randbits(32) if request.kind == "unsteady" else request.seed
        answer = text.answer(tokenizer, seed, request.opening, request.lead)
        if request.kind == "empty":
            return ((number, True) for number, _ in answer)
        return answer

    def write(self, count: int) -> tuple[str, list[int], str | None, str | int | None]:
        """Up to `count` tokens: (text to send, token ids, finish reason or None, what stopped it)."""
        request = self.request
        ids: list[int] = []
        finish: str | None = None
        stop: str | int | None = None
        while finish is None and len(ids) < count:
            number, could_end = next(self.source)
            free = self.produced >= request.min_tokens
            if could_end and free and not request.ignore_eos and self.eos is not None:
                number, finish = self.eos, "stop"
            self.produced += 1
            ids.append(number)
            if finish is None:
                self.written += self.decoder.feed(number)
                finish, stop = self._stopped(number) if self.produced >= request.min_tokens else (None, None)
            if finish is None and self.produced >= request.max_tokens:
                finish = "length"
        end = len(self.written) if finish else max(len(self.written) - self.holdback, self.sent)
        fresh, self.sent = self.written[self.sent : end], max(end, self.sent)
        return fresh, ids, finish, stop

    def _stopped(self, number: int) -> tuple[str | None, str | int | None]:
        request = self.request
        if number in request.stop_ids:
            return "stop", number
        found = [(at, s) for s in request.stop if (at := self.written.find(s, max(self.sent - len(s), 0))) >= 0]
        if not found:
            return None, None
        at, word = min(found)
        self.written = self.written[: at + len(word) if request.include_stop else at]
        return "stop", word


class Sequence:
    """A request on its way through the scheduler."""

    def __init__(self, request: Request, writer: Writer, arrived: float) -> None:
        self.request, self.writer, self.arrived = request, writer, arrived
        self.tokens = list(request.prompt)
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        self.remembered = 0  # full blocks that later requests can find
        self.computed = 0  # tokens whose KV is in the cache
        self.cached = 0  # prompt tokens that the prefix cache had
        self.external = 0  # prompt tokens whose KV another instance sent
        self.scheduled: float | None = None
        self.announced = False
        self.preempted = False

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be written: 1 while it decodes."""
        return len(self.tokens) - self.computed


@dataclass
class Work:
    """What one sequence computes in a step. `drafted` of its tokens are guesses."""

    sequence: Sequence
    tokens: int
    drafted: int = 0


@dataclass
class Batch:
    """One step. `context` are the tokens of KV that decoding sequences read, `pairs` what prompts look back at."""

    work: list[Work] = field(default_factory=list)
    prompt_tokens: int = 0
    sequences: int = 0
    drafted: int = 0
    context: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class Limits:
    """The engine's settings that bound a step."""

    sequences: int
    tokens: int
    draft: int = 0
    chunked: bool = True
    long_prompt: int = 0  # most tokens of one prompt in a step; 0: no such limit


class Scheduler:
    """The queue and the running batch of one rank. `now` gives the time in seconds."""

    def __init__(self, rank: int, limits: Limits, pool: BlockPool, now: Callable[[], float]) -> None:
        self.rank, self.limits, self.pool, self.now = rank, limits, pool, now
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.held: dict[str, list[int]] = {}
        self.counts = Counts(accepted=[0] * limits.draft)

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self.waiting.append(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a request and free its blocks."""
        for sequence in [s for s in (*self.running, *self.waiting) if s.request.id == request_id]:
            (self.running if sequence in self.running else self.waiting).remove(sequence)
            self._free(sequence)

    def release(self, request_id: str) -> None:
        """Free the blocks that a finished request kept for another instance."""
        self.pool.release(self.held.pop(request_id, []))

    def schedule(self) -> Batch | None:
        """The next step, or None when there is nothing that could run."""
        batch, budget = Batch(), self.limits.tokens
        preempted = False
        at = 0
        while at < len(self.running) and budget > 0:
            sequence = self.running[at]
            work = self._work(sequence, budget)
            while not self._grow(sequence, sequence.computed + work.tokens):
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    break
            else:
                budget -= work.tokens
                self._put(batch, work)
                at += 1
        while self.waiting and budget > 0 and not preempted and len(self.running) < self.limits.sequences:
            sequence = self.waiting[0]
            found = self._found(sequence)
            start = self._start(sequence, len(found))
            tokens = len(sequence.tokens) - start
            if tokens > budget and not self.limits.chunked:
                break
            tokens = min(tokens, budget, self.limits.long_prompt or tokens)
            needed = -(-(start + tokens) // self.pool.size) - len(found)
            if needed > self.pool.free - self.pool.idle_among(found):
                break
            self.waiting.popleft()
            self.pool.share(found)
            sequence.blocks, sequence.remembered = list(found), len(found)
            self._grow(sequence, start + tokens)
            self._admit(sequence, len(found) * self.pool.size, start)
            budget -= tokens
            self._put(batch, Work(sequence, tokens))
        return batch if batch.work else None

    def _work(self, sequence: Sequence, budget: int) -> Work:
        if sequence.missing > 1 or not sequence.announced:
            return Work(sequence, min(sequence.missing, budget, self.limits.long_prompt or budget))
        left = sequence.request.max_tokens - sequence.writer.produced
        drafted = max(min(self.limits.draft, budget - 1, left - 1), 0)
        return Work(sequence, 1 + drafted, drafted)

    def _found(self, sequence: Sequence) -> list[int]:
        if not self.pool.caching:
            return []
        size = self.pool.size
        if not sequence.hashes:
            sequence.hashes = hash_blocks(sequence.tokens, size, b"", sequence.request.salt)
        # One token has to be computed, or there would be nothing to write from.
        return self.pool.lookup(sequence.hashes[: (len(sequence.tokens) - 1) // size])

    def _start(self, sequence: Sequence, found: int) -> int:
        external = min(sequence.external, len(sequence.tokens) - 1)
        return max(found * self.pool.size, external)

    def _admit(self, sequence: Sequence, cached: int, start: int) -> None:
        sequence.computed = start
        if sequence.scheduled is None:
            sequence.scheduled = self.now()
            sequence.cached = cached
            sequence.external = max(sequence.external - cached, 0)
            if self.pool.caching:
                self.counts.queries += len(sequence.tokens)
                self.counts.hits += cached
            if sequence.external:
                self.counts.external_queries += len(sequence.tokens) - cached
                self.counts.external_hits += sequence.external
        self.running.append(sequence)

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        needed = -(-tokens // self.pool.size) - len(sequence.blocks)
        taken = self.pool.take(needed) if needed > 0 else []
        if taken is None:
            return False
        sequence.blocks += taken
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._free(sequence)
        sequence.computed = sequence.remembered = sequence.external = 0
        self.waiting.appendleft(sequence)
        self.counts.preemptions += 1

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _put(self, batch: Batch, work: Work) -> None:
        sequence = work.sequence
        batch.work.append(work)
        if sequence.announced and sequence.missing == 1:
            batch.sequences += 1
            batch.drafted += work.drafted
            batch.context += sequence.computed
        else:
            batch.prompt_tokens += work.tokens
            batch.pairs += work.tokens * (sequence.computed + work.tokens // 2)

    def complete(self, batch: Batch) -> list[Event]:
        """Results of a step: tokens for every sequence that has computed all it had."""
        events = []
        for work in batch.work:
            sequence = work.sequence
            if not sequence.blocks:
                continue  # aborted while the step took its time
            accepted = self._accepted(sequence, work.drafted)
            sequence.computed += work.tokens - work.drafted + accepted
            written = sequence.computed >= len(sequence.tokens)
            if written:
                events.append(self._write(sequence, 1 + accepted))
            self._remember(sequence)
            if written and events[-1].finish:
                self.running.remove(sequence)
                self._finish(sequence, events[-1])
        self.counts.step_tokens.append(batch.prompt_tokens + sum(len(event.ids) for event in events))
        return events

    def _accepted(self, sequence: Sequence, drafted: int) -> int:
        """How many drafted tokens are right: the same ones for the same request every time."""
        if not drafted:
            return 0
        count, at = 0, sequence.writer.produced
        while count < drafted and (sequence.request.seed * 31 + (at + count) * 7919) % 1000 < ACCEPT * 1000:
            self.counts.accepted[count] += 1
            count += 1
        self.counts.drafts += 1
        self.counts.drafted += drafted
        return count

    def _write(self, sequence: Sequence, count: int) -> Event:
        fresh, ids, finish, stop = sequence.writer.write(count)
        # Where an answer ends inside its accepted tokens the rest of them is not kept.
        sequence.computed -= count - len(ids)
        sequence.tokens += ids
        event = Event(sequence.request.id, self.rank, fresh, ids, finish, stop)
        if not sequence.announced:
            event.first, event.cached, event.external = True, sequence.cached, sequence.external
            event.queued = (sequence.scheduled or sequence.arrived) - sequence.arrived
            sequence.announced = True
        return event

    def _remember(self, sequence: Sequence) -> None:
        pool = self.pool
        full = sequence.computed // pool.size
        if not pool.caching or full <= sequence.remembered:
            return
        have = len(sequence.hashes)
        if have < full:
            parent = sequence.hashes[-1] if have else b""
            fresh = sequence.tokens[have * pool.size : full * pool.size]
            sequence.hashes += hash_blocks(fresh, pool.size, parent, sequence.request.salt)
        for at in range(sequence.remembered, full):
            pool.remember(sequence.blocks[at], sequence.hashes[at])
        sequence.remembered = full

    def _finish(self, sequence: Sequence, event: Event) -> None:
        wanted = (sequence.request.kv or {}).get("do_remote_decode")
        if wanted and event.finish == "length":
            self.held[sequence.request.id] = sequence.blocks
            sequence.blocks = []
        else:
            self._free(sequence)

    def drain(self) -> Counts:
        """The counts since the last call."""
        counts, self.counts = self.counts, Counts(accepted=[0] * self.limits.draft)
        return counts
