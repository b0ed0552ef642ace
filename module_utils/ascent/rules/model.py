"""Model, image and engine release: versions, precision, positions, options, memory."""

from __future__ import annotations

__all__ = ["CHECKS", "memory_of"]

from typing import Any, Dict, Iterator, Mapping, Optional, Set, Tuple

from .. import engines, memory
from ..mistakes import mistake
from .registry import Context, Mistake, Rule, Variant, check


@check(
    Rule(
        "image-matches-hardware",
        "error",
        "a hardware suffix in the image's tag is that of the pool's hardware",
        "operators are compiled for one kind of device",
        "vLLM-Ascend installation page, images",
        rows=("A1", "A3"),
        scope="vllm-ascend",
    ),
    Rule(
        "engine-fits-hardware",
        "error",
        "vllm-ascend runs on Ascend devices, vllm and dynamo on NVIDIA's; on hosts without accelerators vllm does, "
        "without Ray",
        "no such image has the other vendor's libraries, and vLLM's CPU backend has the executor mp alone",
        "vLLM-Ascend, vLLM (CPU) and Dynamo installation pages",
    ),
    Rule(
        "engine-version-unknown",
        "warning",
        "the engine's version is known: from the image's tag, or from engine.version",
        "rules and option tables that depend on it are silent otherwise",
        "Ascent",
    ),
)
def image_fits(context: Context) -> Iterator[Mistake]:
    image = str(context.engine.get("image", ""))
    platform = engines.image_platform(image) if context.ascend else None
    told: Set[Tuple[str, str]] = set()
    for pool, profile in [(one, profile) for one in context.pools for profile in context.profiles(one)]:
        if platform and profile["image_suffix"] != platform and ("image", "") not in told:
            told.add(("image", ""))
            wanted = profile["image_suffix"] or "no suffix"
            yield mistake(
                "image-matches-hardware",
                f"the image's tag says {platform}, and pool {pool['name']} runs on {profile['name']} ({wanted})",
                key="recipe:engine.image",
                value=image,
                allowed="a tag without a hardware suffix (the plan adds the right one)",
                fix=f"write the tag without {platform}",
            )
        vendor = profile.get("vendor", "ascend")
        fitting = {"ascend": ["vllm-ascend"], "nvidia": ["vllm", "dynamo"], "cpu": ["vllm"]}.get(vendor)
        if fitting and context.engine_name and context.engine_name not in fitting and ("vendor", vendor) not in told:
            told.add(("vendor", vendor))
            yield mistake(
                "engine-fits-hardware",
                f"{context.engine_name} doesn't run on {profile['name']} ({vendor})",
                key="recipe:engine.name",
                value=context.engine_name,
                allowed=", ".join(fitting),
                fix=f"set engine.name: {fitting[0]} with its image, or take other hardware",
            )
        if vendor == "cpu" and pool["executor"] == "ray":
            yield mistake(
                "engine-fits-hardware",
                f"pool {pool['name']} has the executor ray on hosts without accelerators",
                key=f"recipe:pools.{pool['name']}.executor",
                value="ray",
                allowed="mp, or left out",
                fix="leave executor out",
            )
    if image and context.version is None:
        yield mistake(
            "engine-version-unknown",
            f"the tag of {image} names no version",
            key="recipe:engine.version",
            allowed="the release inside the image, such as v0.21.0rc1",
            fix="set engine.version",
            severity="warning",
        )


@check(
    Rule(
        "model-engine-version",
        "error",
        "the engine is at least the first release that supports the model",
        "older ones don't know its architecture",
        "vLLM-Ascend tutorials and support matrix; catalog/models",
        rows=("P-VER2", "K2", "K3", "K7"),
        scope="models in the catalogue",
    ),
)
def engine_new_enough(context: Context) -> Iterator[Mistake]:
    least = ((context.model or {}).get("minimum_engine") or {}).get(context.engine_name)
    if least and context.at_least(least) is False:
        yield mistake(
            "model-engine-version",
            f"{context.model_id} needs {context.engine_name} {least}; the recipe has {context.version}",
            key="recipe:engine.image",
            value=context.engine.get("image"),
            allowed=f"{least} or later",
            fix=f"take an image of {least} or later",
        )


@check(
    Rule(
        "quantization-matches-weights",
        "error",
        "quantized weights have --quantization ascend, others have none",
        "without it the engine reads the int8 weights as they stand; with it, it looks for scales that aren't there",
        "vLLM-Ascend tutorials, parameters",
        rows=("P-QU1", "C2"),
        scope="vllm-ascend, models in the catalogue",
    ),
)
def quantization_fits(context: Context) -> Iterator[Mistake]:
    precision = (context.model or {}).get("precision")
    if precision is None or not context.ascend:
        return
    for variant in context.variants:
        given = variant.args.get("quantization")
        quantized = precision not in ("bf16", "fp16")
        if quantized and given != "ascend":
            yield mistake(
                "quantization-matches-weights",
                f"the weights are {precision}, and pool {variant.name} doesn't say so to the engine",
                key=variant.key("quantization"),
                **({} if given is None else {"value": given}),
                allowed="ascend",
                fix="set args.quantization: ascend",
            )
        elif not quantized and given is not None:
            yield mistake(
                "quantization-matches-weights",
                f"the weights are {precision}, and pool {variant.name} asks for quantization {given!r}",
                key=variant.key("quantization"),
                value=given,
                allowed="left out",
                fix="remove quantization, or take the quantized model",
            )


@check(
    Rule(
        "positions-exceeded",
        "error",
        "max-model-len is within the model's positions, or rope scaling stretches them far enough",
        "beyond them the engine refuses the length, or answers turn to noise",
        "vLLM-Ascend tutorial Qwen3-235B-A22B, notice; model cards",
        rows=("P-ROPE", "C5"),
        scope="models in the catalogue",
    ),
    Rule(
        "rope-spelling",
        "error",
        "rope scaling is spelled as the release reads it: hf-overrides with rope_parameters from vLLM 0.12.0 on, "
        "--rope-scaling before",
        "the other spelling is unknown, or is read without effect",
        "vLLM-Ascend tutorial Qwen3-235B-A22B, notice",
        rows=("P-ROPE", "C6", "K5"),
        scope="vllm-ascend and vllm",
    ),
    Rule(
        "rope-unneeded",
        "warning",
        "rope scaling is left out where max-model-len is within the model's positions",
        "it costs accuracy on short texts",
        "model cards of Qwen3",
        rows=("P-ROPE", "C6"),
        scope="models in the catalogue",
    ),
)
def positions_suffice(context: Context) -> Iterator[Mistake]:
    native = (context.model or {}).get("native_context")
    told: Set[str] = set()
    for variant in context.variants:
        found = _rope(variant)
        for item in _rope_mistakes(context, variant, found, native):
            mark = item["rule"] + item["key"] + item["value"]
            if mark not in told:
                told.add(mark)
                yield item


def _rope(variant: Variant) -> Optional[Tuple[str, str, Mapping[str, Any]]]:
    """Key path, spelling (``rope-scaling``, ``rope_parameters``, ``rope_scaling`` inside hf-overrides) and values."""
    direct = variant.config("rope-scaling")
    if direct:
        return variant.key("rope-scaling"), "rope-scaling", direct
    overrides = variant.config("hf-overrides")
    for name in ("rope_parameters", "rope_scaling"):
        values = overrides.get(name)
        if isinstance(values, Mapping):
            return f"{variant.key('hf-overrides')}.{name}", name, values
    return None


def _rope_mistakes(
    context: Context, variant: Variant, found: Optional[Tuple[str, str, Mapping[str, Any]]], native: Optional[int]
) -> Iterator[Mistake]:
    length = variant.number("max-model-len")
    new = context.vllm_at_least("0.12.0")
    if found is not None and new is not None:
        key, spelling, values = found
        if (new and spelling == "rope-scaling") or (not new and spelling == "rope_parameters"):
            wanted = "hf-overrides: {rope_parameters: ...}" if new else "rope-scaling: ..."
            yield mistake(
                "rope-spelling",
                f"{context.engine_name} {context.version} doesn't read rope scaling from {spelling}",
                key=key,
                value=dict(values),
                allowed=wanted,
                fix=f"write {wanted} with the same values",
            )
    if native is None or length is None:
        return
    scaling = (context.model or {}).get("rope_scaling") or {}
    if found is None and length > native:
        example = f", such as {dict(scaling)}" if scaling else ""
        spelled = "rope-scaling" if new is False else "hf-overrides: {rope_parameters: ...}"
        yield mistake(
            "positions-exceeded",
            f"max-model-len {length} of pool {variant.name} exceeds the model's {native} positions",
            key=variant.key("max-model-len"),
            value=length,
            allowed=f"{native} or less, or rope scaling{example}",
            fix=f"lower max-model-len, or add {spelled}",
        )
    elif found is not None:
        key, _, values = found
        reach = _reach(values)
        if length <= native:
            yield mistake(
                "rope-unneeded",
                f"pool {variant.name} scales positions, and {length} tokens fit the model's {native} without",
                key=key,
                value=dict(values),
                allowed="left out",
                fix="remove it, or raise max-model-len",
                severity="warning",
            )
        elif reach is not None and length > max(reach, native) * 1.05:
            yield mistake(
                "positions-exceeded",
                f"rope scaling reaches {reach} positions, and max-model-len of pool {variant.name} is {length}",
                key=key,
                value=dict(values),
                allowed=f"a factor of {-(-length // int(values['original_max_position_embeddings']))}",
                fix="raise the factor, or lower max-model-len",
            )


def _reach(values: Mapping[str, Any]) -> Optional[int]:
    """Positions after scaling. The guides' own 133000 goes a little beyond 4 * 32768, so callers allow five percent."""
    try:
        return int(float(values["factor"]) * int(values["original_max_position_embeddings"]))
    except (KeyError, TypeError, ValueError):
        return None


def memory_of(context: Context) -> Iterator[Tuple[Variant, Dict[str, Any]]]:
    """The memory estimate of every pool, with its overrides, on every kind of hardware that it runs on."""
    for variant in context.variants:
        for profile in context.profiles(variant.pool):
            yield variant, memory.estimate(variant.pool, variant.args, variant.env, profile, context.model)


@check(
    Rule(
        "memory-weights",
        "error",
        "the weights' share of one device fits into gpu-memory-utilization of its memory",
        "the engine runs out of memory while it loads them",
        "arithmetic of module_utils/ascent/memory.py; figures of catalog/models",
        rows=("P-OOM1", "P-OOM3", "J1", "L1"),
        scope="models with known figures",
    ),
    Rule(
        "memory-kv-cache",
        "warning",
        "what is left beside the weights holds the KV cache of one request of max-model-len",
        "the engine refuses to start, or one long request blocks all others",
        "arithmetic of module_utils/ascent/memory.py; vLLM-Ascend tutorial Qwen3-235B-A22B, parameters",
        rows=("P-OOM1", "I15", "J1", "J6"),
        scope="models with known figures",
    ),
)
def memory_suffices(context: Context) -> Iterator[Mistake]:
    told: Set[Tuple[str, str]] = set()
    for variant, found in memory_of(context):
        if not found["known"]:
            continue
        key, value = variant.key("max-model-len"), variant.number("max-model-len")
        if found["weights_bytes"] > found["budget_bytes"]:
            rule, summary = "memory-weights", f"the weights don't fit the devices of pool {variant.name}"
            key, value = f"recipe:pools.{variant.name}.tensor_parallel", variant.size("tensor_parallel")
            fix = "raise tensor_parallel or nodes, or take quantized weights"
        elif found["sequence_bytes"] is not None and found["sequence_bytes"] > found["kv_bytes"]:
            rule = "memory-kv-cache"
            summary = f"one request of max-model-len doesn't fit the KV cache of pool {variant.name}"
            fix = (
                "in this order: quantized weights, then lower max-model-len, max-num-seqs, max-num-batched-tokens; "
                "PYTORCH_NPU_ALLOC_CONF: expandable_segments:True saves what fragments take"
            )
        else:
            continue
        if (rule, variant.name) in told:
            continue
        told.add((rule, variant.name))
        yield mistake(
            rule,
            f"{summary}: {found['arithmetic']}",
            key=key,
            value=value,
            allowed=found["allowed"],
            fix=fix,
            severity="error" if rule == "memory-weights" else "warning",
        )


CHECKS = (image_fits, engine_new_enough, quantization_fits, positions_suffice, memory_suffices)
