"""Captured graphs, FlashComm1, fused MC2 and other switches of the NPU engine."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Iterator, List

from ..mistakes import mistake
from .registry import Context, Mistake, Rule, Variant, check

_DENSE = "vLLM-Ascend tutorial Qwen3-Dense, key optimization points"
_MOE = "vLLM-Ascend tutorial Qwen3-235B-A22B"
_GRAPH = "vLLM-Ascend, graph mode guide"
_SCOPE = "vllm-ascend"

#: Steps of a dense model up to this many tokens don't use FlashComm1.
FLASHCOMM1_TOKENS = 1000

#: Graph modes of vLLM (CUDAGraphMode), and those that vLLM-Ascend's guides name.
MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
ASCEND_MODES = ("NONE", "PIECEWISE", "FULL_DECODE_ONLY")


@check(
    Rule(
        "capture-sizes-tensor-parallel",
        "error",
        "with FlashComm1 every capture size is a multiple of tensor_parallel",
        "others are dropped, and with none left the engine ends; tokens are split evenly over the group",
        _DENSE,
        rows=("P-CG1",),
        scope=_SCOPE + ", FlashComm1",
    ),
    Rule(
        "capture-sizes-speculative",
        "warning",
        "with full graphs and predicted tokens, capture sizes are multiples of one more than those tokens",
        "a decode step of one request has that many tokens, so other sizes never fit exactly",
        _GRAPH,
        scope=_SCOPE + ", FULL_DECODE_ONLY with speculative-config",
    ),
    Rule(
        "capture-sizes-concurrency",
        "warning",
        "capture sizes that are given include the benchmark's concurrency of one rank",
        "a batch between two sizes is padded to the larger one, which distorts what is measured",
        _DENSE,
        rows=("P-CG2", "H19"),
    ),
)
def capture_sizes(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        sizes = variant.capture_sizes
        if sizes is None:
            continue
        if context.ascend and variant.flashcomm1:
            yield from _multiples(
                variant,
                sizes,
                variant.size("tensor_parallel"),
                "capture-sizes-tensor-parallel",
                "of tensor_parallel, which FlashComm1 needs: the engine drops the others",
                "error" if all(size % variant.size("tensor_parallel") for size in sizes) else "warning",
            )
        step = variant.speculative_tokens + 1
        if context.ascend and step > 1 and variant.graph_mode == "FULL_DECODE_ONLY":
            yield from _multiples(
                variant,
                sizes,
                step,
                "capture-sizes-speculative",
                f"of {step}: {step - 1} predicted tokens and one more for each request",
                "warning",
            )
        ranks = variant.size("data_parallel") * variant.size("instances")
        for measured in context.measurements:
            if measured.concurrency and variant.pool["role"] != "prefill":
                here = -(-measured.concurrency // ranks)
                if here * step not in sizes and here not in sizes:
                    yield mistake(
                        "capture-sizes-concurrency",
                        f"{here} requests a rank at concurrency {measured.concurrency} is not a capture size of pool "
                        f"{variant.name}",
                        key=variant.capture_key,
                        value=sizes,
                        allowed=f"a list with {here * step}",
                        fix=f"add {here * step}, or leave the list to the engine",
                        severity="warning",
                    )


def _multiples(variant: Variant, sizes: List[int], step: int, rule: str, why: str, severity: str) -> Iterator[Mistake]:
    wrong = [size for size in sizes if size % step]
    if wrong:
        kept = [size for size in sizes if size % step == 0]
        yield mistake(
            rule,
            f"capture sizes {', '.join(map(str, wrong))} of pool {variant.name} are no multiples {why}",
            key=variant.capture_key,
            value=sizes,
            allowed=f"multiples of {step}" + (f", such as {kept}" if kept else ""),
            fix=f"write multiples of {step}",
            severity=severity,
        )


@check(
    Rule(
        "graph-mode",
        "error",
        "cudagraph_mode is one that the engine knows; on NPUs PIECEWISE or FULL_DECODE_ONLY",
        "an unknown mode ends the engine; the guides support these two and recommend FULL_DECODE_ONLY",
        _MOE + "; vLLM CompilationConfig",
        rows=("P-CG3", "C34"),
    ),
)
def graph_mode(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        mode = variant.graph_mode
        fitting = ASCEND_MODES if context.ascend else MODES
        if mode is not None and mode.upper() not in fitting:
            known = mode.upper() in MODES
            yield mistake(
                "graph-mode",
                f"pool {variant.name} asks for graph mode {mode}" + (", which NPU guides don't name" if known else ""),
                key=variant.key("compilation-config") + ".cudagraph_mode",
                value=mode,
                allowed=", ".join(fitting),
                fix="set cudagraph_mode: FULL_DECODE_ONLY",
                severity="warning" if known else "error",
            )


@check(
    Rule(
        "flashcomm1-sizes",
        "error",
        "FlashComm1 has tensor_parallel above 1, and expert parallelism where the model has experts",
        "it splits tokens over the tensor parallel group; with experts only the expert parallel path does so",
        _MOE + "; vLLM-Ascend, sequence parallelism guide",
        rows=("P-FC1", "C38"),
        scope=_SCOPE + ", FlashComm1",
    ),
    Rule(
        "flashcomm1-release",
        "warning",
        "FlashComm1 is left out from v0.27 on",
        "the release only says that the switch is deprecated, and doesn't read it",
        "vLLM-Ascend sources, AscendConfig on main",
        rows=("J4",),
        scope=_SCOPE + ", FlashComm1",
    ),
    Rule(
        "flashcomm1-idle",
        "warning",
        "FlashComm1 of a dense model meets steps of more than 1000 tokens",
        "smaller steps don't use it, since splitting the communication only pays for large ones: at low concurrency "
        "compare with it off",
        _DENSE + ", FlashComm_v1; vLLM-Ascend sources, set_ascend_forward_context",
        rows=("P-FC2", "J4"),
        scope=_SCOPE + ", FlashComm1, dense models",
    ),
    Rule(
        "switch-given-twice",
        "warning",
        "a switch stands in env or in additional-config, not in both",
        "additional-config wins, so the variable misleads its reader",
        "vLLM-Ascend pull request 9064",
        scope=_SCOPE,
    ),
)
def flashcomm1(context: Context) -> Iterator[Mistake]:
    if not context.ascend:
        return
    moe = (context.model or {}).get("kind") == "moe"
    for variant in context.variants:
        key = variant.flashcomm1
        if key:
            lacks = []
            if variant.size("tensor_parallel") == 1:
                lacks.append("tensor_parallel is 1")
            if moe and variant.args.get("enable-expert-parallel") is not True:
                lacks.append("expert parallelism is off")
            if lacks:
                yield mistake(
                    "flashcomm1-sizes",
                    f"FlashComm1 is on in pool {variant.name}, and {' and '.join(lacks)}",
                    key=key,
                    value=True,
                    allowed="tensor_parallel of 2 or more" + (", enable-expert-parallel: true" if moe else ""),
                    fix="turn FlashComm1 off, or change the sizes",
                )
        tokens = variant.number("max-num-batched-tokens")
        if key and (context.model or {}).get("kind") == "dense" and tokens and tokens <= FLASHCOMM1_TOKENS:
            yield mistake(
                "flashcomm1-idle",
                f"FlashComm1 is on in pool {variant.name}, whose steps have at most {tokens} tokens",
                key=key,
                value=True,
                allowed=f"off, or max-num-batched-tokens above {FLASHCOMM1_TOKENS}",
                fix="turn FlashComm1 off in this pool",
                severity="warning",
            )
        if key and context.at_least("0.27.0rc0"):
            yield mistake(
                "flashcomm1-release",
                f"vllm-ascend {context.version} doesn't read FlashComm1 any more",
                key=key,
                value=True,
                allowed="left out",
                fix="remove it",
                severity="warning",
            )
        config = variant.config("additional-config")
        for name, variable in (
            ("enable_flashcomm1", "VLLM_ASCEND_ENABLE_FLASHCOMM1"),
            ("enable_fused_mc2", "VLLM_ASCEND_ENABLE_FUSED_MC2"),
            ("enable_mlapo", "VLLM_ASCEND_ENABLE_MLAPO"),
        ):
            if name in config and variable in variant.env:
                yield mistake(
                    "switch-given-twice",
                    f"pool {variant.name} has {variable} in env and {name} in additional-config",
                    key=variant.env_key(variable),
                    value=variant.env[variable],
                    allowed="one of the two",
                    fix=f"remove {variable}",
                    severity="warning",
                )


@check(
    Rule(
        "fused-mc2-hardware",
        "error",
        "fused MC2 runs W8A8 weights on A3",
        "the fused operators exist for that combination only",
        _MOE,
        rows=("P-MC1", "I13"),
        scope=_SCOPE + ", fused MC2 on",
    ),
    Rule(
        "fused-mc2-value",
        "error",
        "fused MC2 is 0, 1 or 2 up to v0.23, and 0 or 1 from v0.24 on",
        "newer releases assert it, and older ones know no other operator",
        _MOE + "; vLLM-Ascend sources, AscendConfig and fused_moe of v0.13 to v0.26",
        rows=("P-MC2",),
        scope=_SCOPE,
    ),
    Rule(
        "fused-mc2-experts",
        "warning",
        "fused MC2 of value 1 has at most 32 expert parallel ranks, on a model with experts",
        "the older operator reaches no further; larger groups take value 2",
        _MOE + ", PD deployment with 32 ranks",
        rows=("P-MC2",),
        scope=_SCOPE + ", fused MC2 on",
    ),
    Rule(
        "fused-mc2-hierarchy",
        "error",
        "fused MC2 and enable_mc2_hierarchy_comm aren't both on",
        "the fused operators don't reach over nodes by RoCE: the engine ends",
        "vLLM-Ascend sources, NPUPlatform of v0.18 and later",
        scope=_SCOPE + ", fused MC2 on",
    ),
    Rule(
        "fused-mc2-shared-expert",
        "warning",
        "fused MC2 and multistream_overlap_shared_expert aren't both on",
        "fused MC2 switches the overlap off",
        "vLLM-Ascend, additional-config",
        scope=_SCOPE,
    ),
)
def fused_mc2(context: Context) -> Iterator[Mistake]:
    if not context.ascend:
        return
    precision = (context.model or {}).get("precision")
    for variant in context.variants:
        found = variant.fused_mc2
        if found is None:
            continue
        key, value = found
        lacks = []
        if precision is not None and precision != "w8a8":
            lacks.append(f"the weights are {precision}")
        other = [one["name"] for one in context.profiles(variant.pool) if one.get("image_suffix") != "-a3"]
        if other:
            lacks.append(f"the hardware is {' and '.join(other)}")
        if lacks:
            yield mistake(
                "fused-mc2-hardware",
                f"fused MC2 is on in pool {variant.name}, and {' and '.join(lacks)}",
                key=key,
                value=value,
                allowed="0 (or w8a8 weights on A3)",
                fix="turn it off",
            )
        most = 1 if context.at_least("0.24.0rc1") else 2
        if not 0 <= value <= most:
            yield mistake(
                "fused-mc2-value",
                f"fused MC2 is {value} in pool {variant.name}",
                key=key,
                value=value,
                allowed="0 or 1" if most == 1 else "0, 1 or 2",
                fix="set it to 1, or to 0 to turn it off",
            )
        ranks = variant.size("tensor_parallel") * variant.size("data_parallel")
        if value == 1 and ranks > 32 and not context.at_least("0.24.0rc1"):
            yield mistake(
                "fused-mc2-experts",
                f"fused MC2 is 1 in pool {variant.name}, whose experts lie on {ranks} ranks",
                key=key,
                value=value,
                allowed="1 up to 32 ranks",
                fix="turn it off, or lower data_parallel",
                severity="warning",
            )
        if variant.config("additional-config").get("enable_mc2_hierarchy_comm") is True:
            yield mistake(
                "fused-mc2-hierarchy",
                f"pool {variant.name} turns on fused MC2 and enable_mc2_hierarchy_comm",
                key=key,
                value=value,
                allowed="0 with enable_mc2_hierarchy_comm",
                fix="turn fused MC2 off, or remove enable_mc2_hierarchy_comm",
            )
        if variant.config("additional-config").get("multistream_overlap_shared_expert") is True and value == 1:
            yield mistake(
                "fused-mc2-shared-expert",
                f"pool {variant.name} turns on fused MC2 and the overlap of shared experts",
                key=key,
                value=value,
                allowed="one of the two",
                fix="remove multistream_overlap_shared_expert, or turn fused MC2 off",
                severity="warning",
            )


@check(
    Rule(
        "expert-parallel-model",
        "error",
        "expert parallelism is for models with experts",
        "the engine ends: number of experts must be greater than 0",
        "vLLM ModelConfig",
        scope="models in the catalogue",
    ),
    Rule(
        "expert-parallel-mixed",
        "error",
        "experts are either spread over ranks or split by tensor parallelism, not both",
        "no layer supports the mix",
        _MOE,
        rows=("P-EP1",),
        scope=_SCOPE,
    ),
)
def expert_parallel(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        on = variant.args.get("enable-expert-parallel") is True
        if on and (context.model or {}).get("kind") == "dense":
            yield mistake(
                "expert-parallel-model",
                f"pool {variant.name} asks for expert parallelism, and {context.model_id} is dense",
                key=variant.key("enable-expert-parallel"),
                value=True,
                allowed="left out",
                fix="remove enable-expert-parallel",
            )
        size = variant.config("additional-config").get("expert_tensor_parallel_size")
        if on and isinstance(size, int) and size > 1:
            yield mistake(
                "expert-parallel-mixed",
                f"pool {variant.name} spreads experts over ranks and splits them {size} ways",
                key=variant.key("additional-config") + ".expert_tensor_parallel_size",
                value=size,
                allowed="left out with enable-expert-parallel",
                fix="remove expert_tensor_parallel_size, or enable-expert-parallel",
            )


@check(
    Rule(
        "prefill-mc2-tokens",
        "warning",
        "with enable_prefill_mc2, max-num-batched-tokens is at most 512 for each tensor parallel rank",
        "longer steps exceed what the operator's buffers hold",
        "vLLM-Ascend, additional-config",
        scope=_SCOPE,
    ),
)
def prefill_mc2(context: Context) -> Iterator[Mistake]:
    for variant in context.variants:
        tokens = variant.number("max-num-batched-tokens")
        most = variant.size("tensor_parallel") * 512
        on = variant.config("additional-config").get("enable_prefill_mc2") is True
        if context.ascend and on and tokens and tokens > most:
            yield mistake(
                "prefill-mc2-tokens",
                f"pool {variant.name} takes {tokens} tokens a step with enable_prefill_mc2",
                key=variant.key("max-num-batched-tokens"),
                value=tokens,
                allowed=f"{most} or less",
                fix=f"set max-num-batched-tokens: {most}, or remove enable_prefill_mc2",
                severity="warning",
            )


CHECKS = (capture_sizes, graph_mode, flashcomm1, fused_mc2, expert_parallel, prefill_mc2)
