"""KV cache stores: block hashes, nested connectors, the store's own settings."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Iterator, List, Mapping, Set, Tuple

from ..mistakes import mistake
from ..quantities import whole_number
from .registry import ASCEND_DIRECT, STORES, Context, Mistake, Rule, check

_GUIDE = "vLLM-Ascend, KV pool guide"


@check(
    Rule(
        "hash-seed",
        "error",
        "PYTHONHASHSEED is set, and equal in all pools, where block hashes are compared between processes",
        "Python salts hashes differently in each process unless told, so the same tokens would never be found again",
        _GUIDE + "; vLLM documentation, KV events",
        rows=("E4",),
        scope="KV store or cache-aware routing",
    ),
)
def hash_seed(context: Context) -> Iterator[Mistake]:
    if not (context.stored or context.routed_by_cache):
        return
    seeds = {
        pool["name"]: context.env_of(pool["name"]).get("PYTHONHASHSEED")
        for pool in context.pools
        if pool["role"] != "offline" and (context.stored or pool.get("kv_events"))
    }
    # The plan fills it in; before there is a plan only what the recipe gives can be compared.
    if context.plan is None:
        seeds = {name: seed for name, seed in seeds.items() if seed is not None}
    first = next((seed for seed in seeds.values() if seed is not None), None)
    for name, seed in seeds.items():
        if seed is None or seed != first or not seed.isdigit():
            yield mistake(
                "hash-seed",
                f"pool {name} has PYTHONHASHSEED {seed if seed is not None else 'not set'}",
                key=next(one.env_key("PYTHONHASHSEED") for one in context.variants if one.name == name),
                **({} if seed is None else {"value": seed}),
                allowed=first if first is not None and first.isdigit() else "0 (any number, the same everywhere)",
                fix="remove it: the plan sets 0 everywhere",
            )


@check(
    Rule(
        "multi-connector-order",
        "error",
        "a MultiConnector has connectors, the direct one before the store",
        "it loads from the first that has the blocks and saves to all of them",
        _GUIDE + "; vLLM MultiConnector",
        rows=("E4",),
        scope="MultiConnector",
    ),
    Rule(
        "kv-load-failure-policy",
        "error",
        "kv_load_failure_policy stands at the top of kv_transfer and isn't recompute for hybrid models",
        "inner connectors don't read it; a hybrid model's state can't be recomputed from the middle",
        _GUIDE,
        scope="vllm-ascend",
    ),
)
def connectors_nested(context: Context) -> Iterator[Mistake]:
    told: Set[str] = set()
    for variant in context.variants:
        transfer = variant.transfer
        names = variant.connector_names
        if transfer.get("connector") == "MultiConnector":
            direct = [index for index, name in enumerate(names) if name in ASCEND_DIRECT]
            stores = [index for index, name in enumerate(names) if name in STORES]
            wrong = not transfer.get("connectors") or bool(direct and stores and min(stores) < max(direct))
            if wrong and "order" not in told:
                told.add("order")
                yield mistake(
                    "multi-connector-order",
                    "the store stands before the direct connector"
                    if transfer.get("connectors")
                    else "MultiConnector has no connectors",
                    key="recipe:kv_transfer.connectors",
                    value=names,
                    allowed="[MooncakeConnectorV1, AscendStoreConnector], for example",
                    fix="list the direct connector first, the store after it",
                )
        inner = [one for one in variant.connectors if one is not transfer and "kv_load_failure_policy" in one]
        policy = transfer.get("kv_load_failure_policy")
        if (inner or (policy == "recompute" and context.hybrid)) and "policy" not in told:
            told.add("policy")
            yield mistake(
                "kv-load-failure-policy",
                "kv_load_failure_policy is set on an inner connector"
                if inner
                else "kv_load_failure_policy is recompute, and the model is hybrid",
                key="recipe:kv_transfer.connectors" if inner else "recipe:kv_transfer.kv_load_failure_policy",
                value=inner[0]["kv_load_failure_policy"] if inner else policy,
                allowed="at the top of kv_transfer" if inner else "fail",
                fix="move it up to kv_transfer" if inner else "set kv_load_failure_policy: fail",
            )


@check(
    Rule(
        "store-lease",
        "error",
        "the store's lease outlasts the engines' connect and transfer timeouts",
        "a block may be evicted while it is being read",
        _GUIDE + " (default_kv_lease_ttl above ASCEND_CONNECT_TIMEOUT and ASCEND_TRANSFER_TIMEOUT)",
        scope="vllm-ascend with a Mooncake store",
    ),
    Rule(
        "store-image-differs",
        "warning",
        "the store's master runs the engines' image",
        "master and clients speak a protocol that changes between Mooncake releases",
        "InferNex deployment of Qwen3-32B; " + _GUIDE,
        scope="vllm-ascend with a Mooncake store",
    ),
    Rule(
        "store-segment-size",
        "error",
        "global_segment_size is a whole number of GiB",
        "device memory is registered in pieces of 1 GiB",
        _GUIDE,
        scope="vllm-ascend with a Mooncake store",
    ),
)
def store_sound(context: Context) -> Iterator[Mistake]:
    store = context.recipe.get("kv_store")
    if not isinstance(store, Mapping) or not context.ascend:
        return
    lease = next(
        (whole_number(value) for key, value in (store.get("args") or {}).items() if _same(key, "default_kv_lease_ttl")),
        None,
    )
    waits: List[Tuple[int, str]] = []
    for variant in context.variants:
        for name in ("ASCEND_CONNECT_TIMEOUT", "ASCEND_TRANSFER_TIMEOUT"):
            value = whole_number(variant.env.get(name))
            if value is not None:
                waits.append((value, name))
    if lease is not None and waits and lease <= max(waits)[0]:
        yield mistake(
            "store-lease",
            f"the store's lease is {lease} ms, and {max(waits)[1]} is {max(waits)[0]} ms",
            key="recipe:kv_store.args.default_kv_lease_ttl",
            value=lease,
            allowed=f"more than {max(waits)[0]}",
            fix=f"set default_kv_lease_ttl: {max(waits)[0] + 1000}",
        )
    if store.get("image") and store["image"] != context.engine.get("image"):
        yield mistake(
            "store-image-differs",
            "the store's master has an image of its own",
            key="recipe:kv_store.image",
            value=store["image"],
            allowed=f"left out, or {context.engine.get('image')}",
            fix="remove image: the engine's is taken",
            severity="warning",
        )
    size = (store.get("config") or {}).get("global_segment_size")
    if size is not None and not _whole_gib(size):
        yield mistake(
            "store-segment-size",
            f"global_segment_size {size} is not a whole number of GiB",
            key="recipe:kv_store.config.global_segment_size",
            value=size,
            allowed='a multiple of 1073741824, or a text such as "40GB"',
            fix="round it to whole GiB",
        )


def _same(key: str, name: str) -> bool:
    return str(key).lstrip("-").replace("-", "_") == name


def _whole_gib(size: Any) -> bool:
    text = str(size).strip().upper()
    for unit in ("GIB", "GB", "G"):
        if text.endswith(unit):
            return text[: -len(unit)].strip().isdigit()
    return text.isdigit() and int(text) > 0 and int(text) % 2**30 == 0


CHECKS = (hash_seed, connectors_nested, store_sound)
