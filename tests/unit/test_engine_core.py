"""The simulated engine's core in model time: tokenizer, answers, KV cache, scheduler, and how it responds to load."""

from __future__ import annotations

import importlib
import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sandbox.engine.sim import text, timing, tokenizer
from sandbox.engine.sim.cache import BlockPool, hash_blocks
from sandbox.engine.sim.scheduler import Event, Limits, Request, Scheduler, Sequence, Writer
from sandbox.engine.sim.timing import Costs, Shape
from sandbox.engine.sim.virtual import Deployment, Instance, Job, Plain, Result
from tests.unit.engine_harness import ROOT

TOKENS = tokenizer.load()
DENSE = {
    "num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 25600, "vocab_size": 151936,
}  # fmt: skip


def write(prompt: str, tokens: int) -> str:
    seed = text.seed_of(prompt, 0, None)
    answer = text.answer(TOKENS, seed, text.fact(prompt))
    return TOKENS.decode(number for number, _ in itertools.islice(answer, tokens))


# Tokens and text


@pytest.mark.parametrize(
    "sample",
    [
        "The future of AI is",
        "naïve café — 12345 x_y\n\n  foo()\tbar  ",
        "汉字 and 😀",
        "",
        "<|im_start|>user\nHi<|im_end|>\n",
    ],
)
def test_tokens_are_the_text_again(sample):
    assert TOKENS.decode(TOKENS.encode(sample)) == sample


def test_marks_are_one_token_and_have_no_text_in_an_answer():
    ids = TOKENS.encode("<|im_start|>a<|im_end|>")
    assert len(ids) == 3
    assert TOKENS.decode(ids, special=False) == "a"


def test_characters_wait_for_their_last_byte():
    decoder = tokenizer.Decoder(TOKENS)
    parts = [decoder.feed(number) for number in TOKENS.encode("a😀b")]
    assert "".join(parts) == "a😀b"
    assert "\ufffd" not in "".join(parts)
    assert "" in parts
    assert decoder.feed(TOKENS.encode("é")[1]) == "\ufffd", "a byte that begins nothing"


def test_random_ids_are_text():
    rng = random.Random(1)
    ids = [rng.randrange(TOKENS.size - 3) for _ in range(500)]
    assert len(TOKENS.encode(TOKENS.decode(ids))) > 250
    with pytest.raises(ValueError, match="Token id 99999 is out of vocabulary"):
        TOKENS.decode([99999])


def test_a_model_brings_its_own_tokenizer(tmp_path):
    data = json.loads(tokenizer.BUILT_IN.read_text())
    data["model"]["merges"], data["added_tokens"] = [], []
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert len(tokenizer.load(tmp_path).encode("hello")) == 5
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    assert tokenizer.load(tmp_path / "other").size == TOKENS.size


def test_answers_are_words_that_depend_on_the_prompt():
    first, second = write("The future of AI is", 400), write("Tell me about bridges", 400)
    assert first == write("The future of AI is", 400)
    assert first != second
    plain = [word.strip(".,") for word in first.split()]
    assert all(word.isalpha() for word in plain[:-1])
    threes = list(zip(plain, plain[1:], plain[2:], strict=False))
    assert len(set(threes)) > 0.9 * len(threes), "no phrase is repeated much"
    assert len(first.split()) > 250, "not much more than a token a word"


def test_facts():
    assert write("What is 12 + 30?", 4).startswith(" 42.")
    assert write("Name the capital of France.", 4).startswith(" Paris.")


def request(count: int = 4, tokens: int = 8, name: str = "r", **more: object) -> Request:
    return Request(name, list(range(count)), tokens, seed=text.seed_of(name, 0, None), **more)


@pytest.mark.parametrize("count", [1, 7])
def test_stop_strings_never_leak(count):
    whole = Writer(request(tokens=60, ignore_eos=True), TOKENS).write(60)[0]
    stop = whole[40:46]
    writer = Writer(request(tokens=60, stop=[stop]), TOKENS)
    sent, finish, word = "", None, None
    while finish is None:
        fresh, _, finish, word = writer.write(count)
        sent += fresh
    assert (finish, word) == ("stop", stop)
    assert sent == whole[: whole.index(stop)]
    kept = Writer(request(tokens=60, stop=[stop], include_stop=True), TOKENS).write(60)
    assert kept[0] == whole[: whole.index(stop) + len(stop)]


def test_end_of_text_and_limits():
    def run(**fields: object) -> tuple[list[int], str, str | None]:
        writer, ids, sent, finish = Writer(request(tokens=2000, **fields), TOKENS), [], "", None
        while finish is None:
            fresh, more, finish, _ = writer.write(50)
            ids, sent = ids + more, sent + fresh
        return ids, sent, finish

    natural, words, reason = run()
    assert reason == "stop"
    assert 30 < len(natural) < 400
    assert natural[-1] == TOKENS.eos
    assert TOKENS.decode(natural, special=False) == words
    assert TOKENS.encode(words) == natural[:-1], "usage is what /tokenize counts, and the end"
    longer, _, reason = run(ignore_eos=True)
    assert (len(longer), reason) == (2000, "length")
    assert len(run(min_tokens=len(natural) + 1)[0]) > len(natural)
    assert run(stop_ids=[natural[10]])[0][-1] == natural[10]
    assert run(kind="empty")[:2] == ([TOKENS.eos], "")
    garbage = run(kind="garbage", ignore_eos=True)[1]
    assert sum(map(str.isalpha, garbage)) < 0.9 * len(garbage)


# KV cache


def test_blocks_are_known_by_all_that_came_before():
    one, other = hash_blocks(range(8), 4, b""), hash_blocks([9, *range(1, 8)], 4, b"")
    assert len(one) == 2
    assert not set(one) & set(other)
    assert hash_blocks([4, 5, 6, 7], 4, one[0]) == one[1:]
    assert hash_blocks(range(8), 4, b"", "salt")[0] != one[0]


def test_least_recently_used_blocks_go_first():
    pool = BlockPool(4, 4, caching=True)
    hashes = hash_blocks(range(16), 4, b"")
    first = pool.take(4)
    assert pool.take(1) is None
    for block, value in zip(first, hashes, strict=True):
        pool.remember(block, value)
    pool.release(first)
    assert (pool.free, pool.usage, pool.lookup(hashes)) == (4, 0.0, first)
    pool.take(1)
    assert pool.lookup(hashes) == first[:3], "the end of a prefix is given up before its start"
    pool.share(first[:1])
    assert pool.free == 2
    assert not pool.reset(), "a block is in use"


# Scheduler


def run(limits: Limits, requests: list[Request], pool: BlockPool | None = None) -> tuple[list[list[Event]], list[int]]:
    """Events of each step, and how many requests ran in it."""
    now = itertools.count()
    scheduler = Scheduler(0, limits, pool or BlockPool(1000, 4, caching=False), lambda: float(next(now)))
    for one in requests:
        scheduler.add(Sequence(one, Plain(one), 0.0))
    steps, running = [], []
    while batch := scheduler.schedule():
        running.append(len(scheduler.running))
        steps.append(scheduler.complete(batch))
        assert sum(work.tokens for work in batch.work) <= limits.tokens
    assert not scheduler.waiting
    assert scheduler.pool.usage == 0.0
    return steps, running


def test_scheduler_keeps_its_limits():
    requests = [request(40, 5, f"r{i}") for i in range(5)]
    steps, running = run(Limits(2, 16), requests)
    assert max(running) == 2
    first = next(i for i, step in enumerate(steps) if step)
    assert first == 2, "40 prompt tokens in chunks of 16 are whole in the third step"
    totals = {r.id: sum(len(e.ids) for step in steps for e in step if e.id == r.id) for r in requests}
    assert set(totals.values()) == {5}


def test_a_prompt_is_not_cut_where_chunks_are_off():
    whole, _ = run(Limits(8, 48, chunked=False), [request(40, 3, "a"), request(40, 3, "b")])
    assert [e.id for e in whole[0]] == ["a"]
    assert {e.id for e in whole[1]} == {"a", "b"}


def test_preemption_when_blocks_run_out():
    """Four requests that each grow to 10 blocks, on 24: the last ones give way, and everyone gets their answer."""
    pool = BlockPool(24, 4, caching=True)
    requests = [request(8, 32, f"r{i}") for i in range(4)]
    scheduler = Scheduler(0, Limits(8, 64), pool, lambda: 0.0)
    for one in requests:
        one.prompt = [int(one.id[1]) * 100 + n for n in range(8)]
        scheduler.add(Sequence(one, Plain(one), 0.0))
    done: dict[str, int] = {}
    while batch := scheduler.schedule():
        for event in scheduler.complete(batch):
            done[event.id] = done.get(event.id, 0) + len(event.ids)
    assert done == {r.id: 32 for r in requests}
    assert scheduler.drain().preemptions > 0
    assert pool.usage == 0.0


def test_prefixes_are_found_again():
    pool = BlockPool(100, 4, caching=True)
    shared = list(range(20))
    first, second = Request("a", [*shared, 1, 2], 3), Request("b", [*shared, 7, 8], 3)
    events = [e for one in (first, second) for step in run(Limits(8, 64), [one], pool)[0] for e in step if e.first]
    assert [e.cached for e in events] == [0, 20]
    again = run(Limits(8, 64), [Request("c", shared, 3)], pool)[0][0][0]
    assert again.cached == 16, "at least one token is computed, so the last full block is not taken"
    salted = run(Limits(8, 64), [Request("d", shared, 3, salt="x")], pool)[0][0][0]
    assert salted.cached == 0


def test_an_answer_is_a_prefix_of_the_next_turn():
    pool = BlockPool(100, 4, caching=True)
    turn = Request("a", list(range(6)), 11)
    run(Limits(8, 64), [turn], pool)
    follow = run(Limits(8, 64), [Request("b", [*range(6), *[0] * 11, 5, 6], 2)], pool)[0][0][0]
    assert follow.cached == 16


def test_draft_tokens_bring_several_a_step():
    one = request(4, 60)
    plain, drafted = (run(Limits(8, 64, draft), [one])[0] for draft in (0, 3))
    assert len(drafted) < 0.6 * len(plain)
    assert sum(len(e.ids) for step in drafted for e in step) == 60


def test_kv_for_another_instance_is_kept_until_it_is_released():
    pool = BlockPool(10, 4, caching=False)
    scheduler = Scheduler(0, Limits(8, 64), pool, lambda: 0.0)
    asked = Request("a", list(range(16)), 1, kv={"do_remote_decode": True})
    scheduler.add(Sequence(asked, Plain(asked), 0.0))
    batch = scheduler.schedule()
    assert batch
    assert scheduler.complete(batch)[0].finish == "length"
    assert pool.usage == 0.4
    scheduler.release("a")
    assert pool.usage == 0.0


def test_aborted_requests_leave_nothing():
    pool = BlockPool(100, 4, caching=True)
    scheduler = Scheduler(0, Limits(1, 64), pool, lambda: 0.0)
    for name in "ab":
        one = request(40, 50, name)
        scheduler.add(Sequence(one, Plain(one), 0.0))
    batch = scheduler.schedule()
    assert batch
    for name in "ab":
        scheduler.abort(name)
    assert scheduler.complete(batch) == []
    assert scheduler.schedule() is None
    assert pool.usage == 0.0


@settings(max_examples=80, deadline=None)
@given(
    shapes=some.lists(
        some.tuples(some.integers(1, 40), some.integers(1, 30), some.integers(0, 3)), min_size=1, max_size=9
    ),
    blocks=some.integers(18, 40),
    tokens=some.integers(4, 50),
    draft=some.integers(0, 3),
    chunked=some.booleans(),
    aborted=some.integers(0, 20),
)
def test_whatever_comes_is_served_and_nothing_is_lost(shapes, blocks, tokens, draft, chunked, aborted):
    """Any mix of prompts (some share a prefix), any cache that holds the longest: blocks and tokens always add up."""
    pool = BlockPool(blocks, 4, caching=True)
    scheduler = Scheduler(0, Limits(4, tokens if chunked else 80, draft, chunked), pool, lambda: 0.0)
    asked = {}
    for number, (prompt, answer, family) in enumerate(shapes):
        one = Request(str(number), [family] * prompt, answer, seed=number * 7919)
        asked[one.id] = one
        scheduler.add(Sequence(one, Plain(one), 0.0))
    got = dict.fromkeys(asked, 0)
    firsts: dict[str, int] = dict.fromkeys(asked, 0)
    step = 0
    while batch := scheduler.schedule():
        step += 1
        assert step < 2000
        assert sum(work.tokens for work in batch.work) <= scheduler.limits.tokens
        assert len(scheduler.running) <= 4
        if step == aborted:
            victim = batch.work[0].sequence.request.id
            scheduler.abort(victim)
            asked.pop(victim)
        for event in scheduler.complete(batch):
            got[event.id] += len(event.ids)
            firsts[event.id] += event.first
            assert event.cached < len(asked[event.id].prompt)
        taken = [block for s in scheduler.running for block in s.blocks]
        assert set(taken) == set(pool.users)
        assert sum(pool.users.values()) == len(taken)
        assert len(pool.users) + pool.free == pool.total
        assert {pool.by_hash[value]: value for value in pool.by_hash} == pool.hash_of
    assert not scheduler.waiting
    assert not scheduler.running
    assert pool.usage == 0.0
    assert {name: got[name] for name in asked} == {name: one.max_tokens for name, one in asked.items()}
    assert all(firsts[name] == 1 for name in asked)


# Time: what a real engine responds to, in model time


def engine(ranks: int = 1, devices: int = 4, caching: bool = False, seqs: int = 64, draft: int = 0) -> Instance:
    shape = Shape.of(DENSE, 64e9)
    limits = Limits(seqs, 8192, draft)
    return Instance(ranks, limits, Costs(shape, devices, devices, "full"), blocks=20_000, caching=caching)


def measure(
    target: Instance | list[Instance], jobs: list[Job], concurrency: int = 8, **more: object
) -> tuple[float, float, float, list[Result]]:
    """(mean TTFT, mean TPOT, output tokens a second, results)."""
    engines = target if isinstance(target, list) else [target]
    results = Deployment(engines, **more).run(jobs, concurrency)
    assert [r.tokens for r in results] == [job.tokens for job in jobs]
    ttft, tpot = (sum(getattr(r, name) for r in results) / len(results) for name in ("ttft", "tpot"))
    return ttft, tpot, sum(r.tokens for r in results) / max(r.last for r in results), results


def jobs(count: int = 32, prompt: int = 1024, tokens: int = 64) -> list[Job]:
    return [Job([number] * prompt, tokens) for number in range(count)]


def test_the_same_workload_gives_the_same_figures():
    assert measure(engine(), jobs())[:3] == measure(engine(), jobs())[:3]


def test_load_lengthens_waiting_and_raises_throughput():
    figures = [measure(engine(), jobs(), concurrency) for concurrency in (1, 4, 16)]
    ttft, tpot, throughput = ([f[i] for f in figures] for i in range(3))
    assert ttft == sorted(ttft)
    assert tpot == sorted(tpot)
    assert throughput == sorted(throughput)
    assert throughput[2] < 16 * throughput[0], "no batch is free"
    queued = measure(engine(seqs=2), jobs(), 16)
    assert queued[0] > ttft[2], "requests wait where few run at once"
    assert sum(r.queued for r in queued[3]) > sum(r.queued for r in figures[2][3])


def test_long_prompts_take_longer():
    times = [measure(engine(), jobs(8, prompt, 8), 1)[0] for prompt in (256, 1024, 4096, 16384)]
    assert times == sorted(times)
    assert times[3] > 4 * times[2], "attention looks back at everything"


def test_more_devices_and_more_ranks():
    narrow, wide = (measure(engine(devices=n), jobs(), 8) for n in (2, 8))
    assert wide[0] < narrow[0]
    assert wide[1] < narrow[1]
    one, four = (measure(engine(ranks=n), jobs(64), 32) for n in (1, 4))
    assert four[0] < one[0]
    assert four[2] > 1.5 * one[2]


def test_cached_prefixes_shorten_the_first_token():
    turns = [Job([7] * 4000 + [number] * 96, 16) for number in range(16)]
    cold, warm = (measure(engine(caching=on), turns, 2) for on in (False, True))
    assert warm[0] < 0.7 * cold[0]
    assert sum(r.cached for r in warm[3]) > 10 * 3900
    assert all(r.cached == 0 for r in cold[3])


def test_separate_prefill_keeps_decoding_steady():
    """Long prompts that arrive while others decode stall them in one engine, not in a decode instance of its own."""
    long = [Job([number] * 6000, 32, at=0.5 * number) for number in range(24)]
    together = measure([engine(), engine()], long, 12)
    apart = measure([engine()], long, 12, decode=[engine()], transfer=0.05)
    assert apart[1] < together[1]


def test_drafts_raise_throughput_of_a_few_requests():
    plain, drafted = (measure(engine(draft=n), jobs(), 2) for n in (0, 3))
    assert drafted[1] < 0.7 * plain[1]
    assert drafted[2] > 1.3 * plain[2]


def test_graphs_shorten_decoding():
    shape = Shape()
    batch = Scheduler(0, Limits(1, 8), BlockPool(4, 4, False), lambda: 0.0)
    one = request(1, 3)
    batch.add(Sequence(one, Plain(one), 0.0))
    first = batch.schedule()
    assert first
    batch.complete(first)
    step = batch.schedule()
    assert step
    times = [Costs(shape, graphs=graphs).step(step) for graphs in ("full", "piecewise", "eager")]
    assert times == sorted(times)
    assert times[0] < times[2]
    assert Costs(shape, graphs="full").step(first) == timing.LAUNCH["piecewise"], "prompts run in no full graph"


def test_a_mixture_of_experts_touches_few_of_them_with_one_request():
    experts = DENSE | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536}
    shape = Shape.of(experts, 235e9)
    assert 0.8 < shape.idle_share < 1
    lone, many = (measure(Instance(1, Limits(256, 8192), Costs(shape, 16, 16, "full")), jobs(n, 16), n)[1]
                  for n in (1, 64))  # fmt: skip
    assert many > 1.1 * lone


def test_the_table_in_the_docs_is_what_the_model_gives(monkeypatch):
    """The two quick rows of bench/engine_timing.py; the fitted figures meet their references."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("engine_timing")
    page = (ROOT / "docs" / "engine_simulator.md").read_text(encoding="utf-8")
    for name in ("H5", "H7"):
        figures = bench.simulate(bench.ROWS[name])
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} ")]
        for figure in figures:
            assert f" {figure:,.5g} simulated" in line, "print the table anew"
    ttft, itl, _ = bench.simulate(bench.ROWS["H5"])
    assert ttft == pytest.approx(bench.ROWS["H5"].ttft_ms, rel=0.02)
    assert itl == pytest.approx(bench.ROWS["H5"].tpot_ms, rel=0.02)
