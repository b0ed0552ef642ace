"""What is served against what is asked of it: sequences, tokens, lengths, benchmarks."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Iterator, Mapping, Optional

from ..mistakes import mistake
from ..quantities import whole_number
from .registry import Context, Mistake, Rule, check

_MOE = "vLLM-Ascend tutorial Qwen3-235B-A22B"


@check(
    Rule(
        "sequences-concurrency",
        "warning",
        "max-num-seqs times all data parallel ranks is at least the benchmark's concurrency",
        "requests beyond it wait, and the waiting counts in TTFT",
        _MOE + ", parameters",
        rows=("P-SEQ1", "H17", "J6"),
    ),
    Rule(
        "scenario-length",
        "error",
        "input and output tokens of every benchmark and prompt fit max-model-len",
        "longer requests are refused or cut",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, parameters",
        rows=("P-LEN1",),
    ),
    Rule(
        "client-model-name",
        "error",
        "benchmarks name the model as it is served",
        "the server answers 404 to any other name",
        "vLLM documentation, OpenAI-compatible server",
        rows=("P-MODEL1",),
    ),
    Rule(
        "prefix-caching-workload",
        "warning",
        "prefix caching that is asked for meets reference benchmarks with shared prefixes",
        "with random prompts it only costs memory and look-ups",
        _MOE + ", note on random datasets",
        rows=("P-PC2", "H16"),
    ),
)
def benchmarks_fit(context: Context) -> Iterator[Mistake]:
    served = [one for one in context.variants if one.pool["role"] in ("serve", "prefill", "decode")]
    # In a split a request spends its time in decode; prefill holds it for the prompt only.
    busy = {one.name: one for one in served if one.pool["role"] != "prefill"}
    limits = [one.number("max-num-seqs") for one in busy.values()]
    room: Optional[int] = None
    if busy and all(limits):
        room = sum(
            (limit or 0) * one.size("data_parallel") * one.size("instances")
            for limit, one in zip(limits, busy.values())
        )
    lengths = [length for one in served for length in [one.number("max-model-len")] if length]
    shortest = min(lengths) if lengths else None
    first = served[0] if served else None
    for measured in context.measurements:
        if measured.concurrency and room and measured.concurrency > room and first is not None:
            yield mistake(
                "sequences-concurrency",
                f"{measured.name} sends {measured.concurrency} requests at once, and {room} are served at a time",
                key=measured.key,
                value=measured.concurrency,
                allowed=f"{room} or less (max-num-seqs * data_parallel * instances)",
                fix="raise max-num-seqs or data_parallel, or lower the concurrency",
                severity="warning",
            )
        total = (measured.input_tokens or 0) + (measured.output_tokens or 0)
        if shortest and total > shortest:
            yield mistake(
                "scenario-length",
                f"{measured.name} has {measured.input_tokens or 0} tokens in and {measured.output_tokens or 0} out; "
                f"max-model-len is {shortest}",
                key=measured.key,
                value=total,
                allowed=f"{shortest} or less",
                fix="raise max-model-len, or shorten the requests",
            )
        if measured.model is not None and measured.model != context.served_name and "{{" not in measured.model:
            yield mistake(
                "client-model-name",
                f"{measured.name} asks for model {measured.model}",
                key=measured.key,
                value=measured.model,
                allowed=context.served_name,
                fix="leave the model out: it is filled in",
            )
        if measured.compared and measured.dataset == "random" and not measured.shares_prefixes:
            for variant in served:
                if variant.args.get("enable-prefix-caching") is True:
                    yield mistake(
                        "prefix-caching-workload",
                        f"pool {variant.name} caches prefixes, and {measured.name} has random prompts",
                        key=variant.key("enable-prefix-caching"),
                        value=True,
                        allowed="false with random prompts",
                        fix="set enable-prefix-caching: false, or measure with shared prefixes",
                        severity="warning",
                    )
                    break
    prompts = (context.recipe.get("checks") or {}).get("prompts") or []
    for index, prompt in enumerate(prompts):
        tokens = whole_number(prompt.get("max_tokens"))
        if shortest and tokens and tokens >= shortest:
            yield mistake(
                "scenario-length",
                f"prompt {index + 1} asks for {tokens} tokens; max-model-len is {shortest}",
                key=f"recipe:checks.prompts.{index}.max_tokens",
                value=tokens,
                allowed=f"less than {shortest}",
                fix="lower max_tokens",
            )


@check(
    Rule(
        "batched-tokens-sequences",
        "error",
        "max-num-batched-tokens is at least max-num-seqs; in decode pools times one more than the predicted tokens",
        "one step carries at least one token of each running request",
        "vLLM SchedulerConfig; vLLM-Ascend tutorial Qwen3.5-397B-A17B (128 = 32 * 4)",
        rows=("P-SEQ2", "I14"),
    ),
    Rule(
        "batched-tokens-unchunked",
        "error",
        "without chunked prefill, max-num-batched-tokens is at least max-model-len",
        "a prompt has to fit one step",
        "vLLM SchedulerConfig",
        rows=("P-TOK2",),
    ),
)
def tokens_suffice(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        tokens, sequences = variant.number("max-num-batched-tokens"), variant.number("max-num-seqs")
        length = variant.number("max-model-len")
        if tokens and sequences:
            each = 1 + (variant.speculative_tokens if variant.pool["role"] == "decode" else 0)
            if tokens < sequences * each:
                yield mistake(
                    "batched-tokens-sequences",
                    f"{sequences} requests of {each} token(s) don't fit the {tokens} a step of pool {variant.name}",
                    key=variant.key("max-num-batched-tokens"),
                    value=tokens,
                    allowed=f"{sequences * each} or more",
                    fix=f"set max-num-batched-tokens: {sequences * each}, or lower max-num-seqs",
                    severity="error" if tokens < sequences else "warning",
                )
        if tokens and length and tokens < length and variant.args.get("enable-chunked-prefill") is False:
            yield mistake(
                "batched-tokens-unchunked",
                f"pool {variant.name} doesn't chunk prompts, and {tokens} tokens a step are less than {length}",
                key=variant.key("max-num-batched-tokens"),
                value=tokens,
                allowed=f"{length} or more",
                fix="remove enable-chunked-prefill: false, or raise max-num-batched-tokens",
            )


@check(
    Rule(
        "memory-utilization",
        "error",
        "gpu-memory-utilization lies above 0 and at most at 1; above 0.96 leaves no headroom",
        "what graphs, communication buffers and uneven experts take comes on top of it",
        _MOE + ", parameters",
        rows=("P-OOM2",),
    ),
    Rule(
        "speculative-weights",
        "error",
        "multi-token prediction has weights with layers for it",
        "the engine finds no such layers and ends",
        "vLLM SpeculativeConfig; catalog/models",
        rows=("I12", "C36"),
        scope="models in the catalogue",
    ),
    Rule(
        "speculative-tokens",
        "warning",
        "multi-token prediction starts with 3 tokens or fewer",
        "acceptance falls with each further token, and rejected ones cost a step",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, questions",
        rows=("P-MT1", "J5"),
    ),
)
def engine_values(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        given = variant.args.get("gpu-memory-utilization")
        try:
            share = None if given is None else float(given)
        except (TypeError, ValueError):
            share = -1.0
        if share is not None and not 0 < share <= 0.96:
            yield mistake(
                "memory-utilization",
                f"gpu-memory-utilization of pool {variant.name} is {given}",
                key=variant.key("gpu-memory-utilization"),
                value=given,
                allowed="0.9, or up to 0.96 with headroom",
                fix="set it to 0.9",
                severity="warning" if 0.96 < share <= 1 else "error",
            )
        speculative = variant.config("speculative-config")
        method = str(speculative.get("method", ""))
        if not method.endswith("mtp"):
            continue
        key = variant.key("speculative-config")
        if context.model is not None and not context.model.get("mtp"):
            yield mistake(
                "speculative-weights",
                f"pool {variant.name} predicts with {method}, and {context.model_id} has no layers for that",
                key=key + ".method",
                value=method,
                allowed="weights with MTP layers",
                fix="remove speculative-config, or take other weights",
            )
        if variant.speculative_tokens > 3:
            yield mistake(
                "speculative-tokens",
                f"pool {variant.name} predicts {variant.speculative_tokens} tokens ahead",
                key=key + ".num_speculative_tokens",
                value=variant.speculative_tokens,
                allowed="3 or fewer to start with",
                fix="set num_speculative_tokens: 3, measure, then change it",
                severity="warning",
            )


@check(
    Rule(
        "reference-job",
        "error",
        "reference figures name a job of the recipe",
        "a figure that nothing here measures can't be compared with",
        "DESIGN, recipes",
    ),
)
def references_are_measured(context: Context) -> Iterator[Mistake]:
    jobs = context.recipe.get("jobs") or {}
    for name, row in (context.recipe.get("reference") or {}).items():
        job = row.get("job") if isinstance(row, Mapping) else None
        if job is not None and job not in jobs:
            yield mistake(
                "reference-job",
                f"reference {name} is measured by job {job}, which the recipe does not have",
                key=f"recipe:reference.{name}.job",
                value=job,
                allowed=", ".join(jobs) or "no job: the recipe has none",
                fix="name one of the jobs, or add this one",
            )


CHECKS = (benchmarks_fit, tokens_suffice, engine_values, references_are_measured)
