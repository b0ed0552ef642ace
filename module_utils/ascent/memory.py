"""How much device memory an engine process needs, from public figures alone, with the arithmetic in words.

Everything counted is a lower bound: activations beyond one layer's hidden states, captured graphs and the runtime's
own memory have no public formula and are left out. So "doesn't fit" is certain, and "fits" is not.
"""

from __future__ import annotations

__all__ = ["estimate", "weights_bytes"]

from typing import Any, Dict, List, Mapping, Optional, Tuple

from .quantities import whole_number

#: Bytes of one number by precision.
_BYTES = {"bf16": 2, "fp16": 2, "w8a8": 1}
#: Bytes of one number of KV cache by --kv-cache-dtype; anything else is as the activations, two bytes.
_KV_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}
#: HCCL takes two buffers of HCCL_BUFFSIZE (MB, default 200) for each communication domain of a process.
_HCCL_BUFFER_MB = 200
_DEFAULT_UTILIZATION = 0.9


def estimate(
    pool: Mapping[str, Any],
    args: Mapping[str, Any],
    env: Mapping[str, str],
    profile: Mapping[str, Any],
    model: Optional[Mapping[str, Any]],
) -> Dict[str, Any]:
    """The estimate for one device of a pool. All sizes are in bytes.

    ``pool`` has the sizes as `layout.pools_of` gives them, ``args`` plain option names, ``profile`` is of
    catalog/hardware and ``model`` of catalog/models. Keys of the result:

    - ``known``: whether there are figures to reckon with; if not, only ``reason`` is there beside it;
    - ``weights_bytes``, ``overhead_bytes``, ``budget_bytes`` (memory * utilization), ``kv_bytes`` (what is left);
    - ``token_bytes`` and ``sequence_bytes``: KV cache of one token, and of one request of max-model-len (None if the
      model's KV figures or the length aren't known);
    - ``sequences``: how many such requests fit; ``full_bytes``: KV cache of max-num-seqs such requests;
    - ``arithmetic``: all of that in one line; ``allowed``: what would fit.
    """
    figures: Mapping[str, Any] = (model or {}).get("figures") or {}
    hbm = profile.get("hbm_mb")
    if not figures.get("parameters") or hbm is None:
        return {"known": False, "reason": "the catalogue has no figures of this model" if hbm else "no device memory"}
    sizes = {key: int(pool.get(key) or 1) for key in ("tensor_parallel", "pipeline_parallel", "data_parallel")}
    tensor, pipeline, data = sizes["tensor_parallel"], sizes["pipeline_parallel"], sizes["data_parallel"]
    prefill_cp, decode_cp = (int(pool.get(key) or 1) for key in ("prefill_context_parallel", "decode_context_parallel"))
    words: List[str] = []
    kind, precision = str((model or {}).get("kind")), str((model or {}).get("precision"))
    weights = _weights(figures, kind, precision, tensor, pipeline, data * prefill_cp, words)
    overhead = _overhead(args, env, figures, profile, (tensor, pipeline, data), words)
    share = _number(args.get("gpu-memory-utilization"), _DEFAULT_UTILIZATION)
    budget = int(hbm * 2**20 * share)
    left = budget - weights - overhead
    words.append(f"{_gib(hbm * 2**20)} * {share:g} = {_gib(budget)} usable, {_gib(left)} left for KV cache")
    result: Dict[str, Any] = {
        "known": True,
        "weights_bytes": weights,
        "overhead_bytes": overhead,
        "budget_bytes": budget,
        "kv_bytes": left,
        "token_bytes": None,
        "sequence_bytes": None,
        "sequences": None,
        "full_bytes": None,
    }
    token = _token(figures, args, tensor, pipeline, prefill_cp * decode_cp)
    length, sequences = whole_number(args.get("max-model-len")), whole_number(args.get("max-num-seqs"))
    if token is not None:
        result["token_bytes"] = token
        words.append(_token_words(figures, args, tensor, pipeline, prefill_cp * decode_cp, token))
        if length:
            result["sequence_bytes"] = token * length
            result["sequences"] = max(0, left // (token * length))
            words.append(f"one request of {length} tokens takes {_gib(token * length)}")
            if sequences:
                result["full_bytes"] = token * length * sequences
                words.append(f"{sequences} of them would take {_gib(token * length * sequences)}")
    result["arithmetic"] = "; ".join(words)
    if budget <= 0:
        result["allowed"] = "a gpu-memory-utilization above 0"
    elif weights > budget:
        devices = -(-weights * tensor * pipeline // budget)
        result["allowed"] = f"{_gib(budget)} or less a device: about {devices} devices for each copy of the weights"
    elif token:
        result["allowed"] = f"{max(0, left // token)} tokens or fewer"
    else:
        result["allowed"] = "any length that the engine finds room for"
    return result


def weights_bytes(model: Optional[Mapping[str, Any]]) -> Optional[int]:
    """What all weights of a model (of catalog/models) take on disk; None where the catalogue has no figures of it."""
    figures: Mapping[str, Any] = (model or {}).get("figures") or {}
    if not figures.get("parameters"):
        return None
    return _weights(figures, str((model or {}).get("kind")), str((model or {}).get("precision")), 1, 1, 1, [])


def _weights(
    figures: Mapping[str, Any], kind: str, precision: str, tensor: int, pipeline: int, copies: int, words: List[str]
) -> int:
    """Share of one device. Experts are spread over all ranks of all data parallel copies, the rest is in every copy."""
    each = _BYTES.get(precision, 2)
    total = round(figures["parameters"] * 10**9)
    embeddings = round((figures.get("embedding_parameters") or 0) * 10**9) if each == 1 else 0
    experts = round((figures.get("expert_parameters") or 0) * 10**9)
    if kind == "moe" and not experts:
        # Not known how many lie in experts: if all did, the share would be smallest.
        experts = total - embeddings
    shared = total - experts - embeddings
    ranks = tensor * pipeline
    size: int = (shared * each + embeddings * 2) // ranks + experts * each // (ranks * copies)
    text = f"weights {figures['parameters']:g}e9 * {each} B ({precision}"
    if embeddings:
        text += f", {embeddings / 1e9:g}e9 of them embeddings at 2 B"
    text += f") / {ranks} ranks"
    if experts and copies > 1:
        text += f" (experts, {experts / 1e9:g}e9, / {ranks * copies})"
    words.append(f"{text} = {_gib(size)} a device")
    return size


def _overhead(
    args: Mapping[str, Any],
    env: Mapping[str, str],
    figures: Mapping[str, Any],
    profile: Mapping[str, Any],
    sizes: Tuple[int, int, int],
    words: List[str],
) -> int:
    """Communication buffers, and the hidden states of one step (input and output of one layer, two bytes each)."""
    total = 0
    domains = sum(1 for size in sizes if size > 1)
    if profile.get("vendor", "ascend") == "ascend" and domains:
        buffer = whole_number(env.get("HCCL_BUFFSIZE")) or _HCCL_BUFFER_MB
        total += domains * 2 * buffer * 10**6
        words.append(f"{domains} communication domain(s) * 2 * {buffer} MB")
    tokens, hidden = whole_number(args.get("max-num-batched-tokens")), figures.get("hidden_size")
    if tokens and hidden:
        total += tokens * hidden * 2 * 2
        words.append(f"hidden states {tokens} * {hidden} * 2 * 2 B = {_gib(tokens * hidden * 4)}")
    return total


def _token(
    figures: Mapping[str, Any], args: Mapping[str, Any], tensor: int, pipeline: int, context: int
) -> Optional[int]:
    """KV cache of one token on one device: heads are dealt out to ranks, and at least one stays on each."""
    layers, heads, width = (int(figures.get(key) or 0) for key in ("kv_layers", "kv_heads", "head_dim"))
    if not (layers and heads and width):
        return None
    here = -(-layers // pipeline)
    size = 2 * here * max(1, heads // tensor) * width * _kv_bytes(args)
    return max(1, size // context)


def _token_words(
    figures: Mapping[str, Any], args: Mapping[str, Any], tensor: int, pipeline: int, context: int, token: int
) -> str:
    layers, heads = -(-figures["kv_layers"] // pipeline), max(1, figures["kv_heads"] // tensor)
    text = f"KV cache 2 * {layers} layers * {heads} heads * {figures['head_dim']} * {_kv_bytes(args)} B"
    if context > 1:
        text += f" / {context}"
    return f"{text} = {token} B a token"


def _kv_bytes(args: Mapping[str, Any]) -> int:
    return _KV_BYTES.get(str(args.get("kv-cache-dtype")), 2)


def _number(value: Any, default: float) -> float:
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError):
        return default


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
