"""Variables of the engines: retired names, timeouts, allocator, library paths."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Set, Tuple

from ..mistakes import closest, mistake
from ..quantities import whole_number
from .registry import Context, Mistake, Rule, check

_DENSE = "vLLM-Ascend tutorial Qwen3-Dense"

#: Variables that the engine no longer reads, and what took their place.
RETIRED: Dict[str, str] = {
    "VLLM_ASCEND_ENABLE_PREFETCH_MLP": "weight_prefetch_config.enabled in additional-config",
    "VLLM_ASCEND_MLP_GATE_UP_PREFETCH_SIZE": "weight_prefetch_config.prefetch_ratio.mlp.gate_up in additional-config",
    "VLLM_ASCEND_MLP_DOWN_PREFETCH_SIZE": "weight_prefetch_config.prefetch_ratio.mlp.down in additional-config",
}
#: The same from a version of vLLM-Ascend on.
RETIRED_SINCE: Dict[str, Tuple[str, str]] = {
    "VLLM_ASCEND_EXTERNAL_DP_LB_ENABLED": ("0.11.0rc0", "data_parallel_mode: external in the pool"),
    "VLLM_DP_SIZE": ("0.11.0rc0", "data_parallel in the pool"),
    "VLLM_DP_RANK": ("0.11.0rc0", "data_parallel_mode: external in the pool"),
    "VLLM_DP_MASTER_IP": ("0.11.0rc0", "nothing: the plan fills the address in"),
    "VLLM_DP_MASTER_PORT": ("0.11.0rc0", "rpc_port in the pool"),
}

#: Timeouts: unit, lowest and highest sensible value.
TIMEOUTS: Dict[str, Tuple[str, int, int]] = {
    "VLLM_ENGINE_READY_TIMEOUT_S": ("s", 60, 86400),
    "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": ("s", 1, 86400),
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": ("s", 10, 86400),
    "VLLM_RPC_TIMEOUT": ("ms", 1000, 86400000),
    "HCCL_CONNECT_TIMEOUT": ("s", 120, 7200),
    "HCCL_EXEC_TIMEOUT": ("s", 0, 17340),
    "ASCEND_CONNECT_TIMEOUT": ("ms", 100, 3600000),
    "ASCEND_TRANSFER_TIMEOUT": ("ms", 100, 3600000),
}
#: Variables that guides of vLLM-Ascend set. Others are fine; one that is nearly one of these is a typing error.
KNOWN = frozenset(
    (
        *TIMEOUTS,
        *RETIRED,
        *RETIRED_SINCE,
        "ACL_OP_INIT_MODE",
        "ASCEND_BASE_PORT",
        "ASCEND_ENABLE_USE_FABRIC_MEM",
        "CPU_AFFINITY_CONF",
        "DYNAMIC_EPLB",
        "GLOO_SOCKET_IFNAME",
        "HCCL_BUFFSIZE",
        "HCCL_IF_BASE_PORT",
        "HCCL_IF_IP",
        "HCCL_INTRA_PCIE_ENABLE",
        "HCCL_INTRA_ROCE_ENABLE",
        "HCCL_LOGIC_SUPERPOD_ID",
        "HCCL_OP_EXPANSION_MODE",
        "HCCL_SOCKET_IFNAME",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "MOONCAKE_CONFIG_PATH",
        "MOONCAKE_GLOBAL_SEGMENT_SIZE",
        "MOONCAKE_MASTER",
        "OMP_NUM_THREADS",
        "OMP_PROC_BIND",
        "PYTHONHASHSEED",
        "PYTORCH_NPU_ALLOC_CONF",
        "TASK_QUEUE_ENABLE",
        "TP_SOCKET_IFNAME",
        "VLLM_ASCEND_BALANCE_SCHEDULING",
        "VLLM_ASCEND_ENABLE_FLASHCOMM1",
        "VLLM_ASCEND_ENABLE_FUSED_MC2",
        "VLLM_ASCEND_ENABLE_MLAPO",
        "VLLM_ASCEND_ENABLE_NZ",
        "VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE",
        "VLLM_HOST_IP",
        "VLLM_TORCH_PROFILER_WITH_STACK",
        "VLLM_USE_MODELSCOPE",
        "VLLM_USE_V1",
    )
)
#: Keys of kv_connector_extra_config that connectors of vLLM-Ascend read; others go to them too.
KNOWN_KEYS = frozenset(
    (
        "backend",
        "consumer_is_to_load",
        "consumer_is_to_put",
        "decode",
        "discard_partial_chunks",
        "load_async",
        "lookup_rpc_port",
        "mooncake_rpc_port",
        "prefill",
        "prefill_pp_layer_partition",
        "prefill_pp_size",
        "register_buffer",
        "save_decode_cache",
        "tls_config",
        "use_ascend_direct",
        "use_layerwise",
    )
)
#: How much two names look alike, from 0 to 1, for the one to be meant for the other.
_ALIKE = 0.93

#: The longest HCCL_EXEC_TIMEOUT that has an effect while the AI vector cores drive collectives.
AIV_CEILING = 1091


@check(
    Rule(
        "variable-retired",
        "error",
        "retired variables aren't set: the three of MLP weight prefetch, and the old ones of data parallelism",
        "the engine ignores them, so what they are meant to do doesn't happen",
        _DENSE + ", weight prefetching; vLLM documentation, Data Parallel Deployment",
        rows=("P-DEP1", "I8"),
        scope="vllm-ascend",
    ),
)
def nothing_retired(context: Context) -> Iterator[Mistake]:
    if not context.ascend:
        return
    told: Set[str] = set()
    for variant in context.variants:
        for name, value in variant.env.items():
            instead: Optional[str] = RETIRED.get(name)
            if name in RETIRED_SINCE and context.at_least(RETIRED_SINCE[name][0]):
                instead = RETIRED_SINCE[name][1]
            key = variant.env_key(name)
            if instead and key not in told:
                told.add(key)
                yield mistake(
                    "variable-retired",
                    f"{name} is retired",
                    key=key,
                    value=value,
                    allowed="left out",
                    fix=f"remove it; use {instead}",
                )


@check(
    Rule(
        "timeout-range",
        "error",
        "timeouts are whole numbers in their unit and range",
        "a typing error, or milliseconds for seconds, shows only when something hangs",
        "HCCL documentation (HCCL_CONNECT_TIMEOUT 120-7200 s, HCCL_EXEC_TIMEOUT, 1091 s in AIV mode); vLLM envs.py",
        rows=("B15", "E6"),
    ),
)
def timeouts_sane(context: Context) -> Iterator[Mistake]:
    told: Set[str] = set()
    for variant in context.variants:
        for name, (unit, low, high) in TIMEOUTS.items():
            if name not in variant.env or variant.env_key(name) in told:
                continue
            key = variant.env_key(name)
            value = whole_number(variant.env[name])
            aiv = name == "HCCL_EXEC_TIMEOUT" and variant.env.get("HCCL_OP_EXPANSION_MODE") == "AIV"
            top = AIV_CEILING if aiv else high
            if value is None or not low <= value <= top:
                told.add(key)
                yield mistake(
                    "timeout-range",
                    f"{name} is {variant.env[name]}" + (", and collectives run in AIV mode" if aiv else ""),
                    key=key,
                    value=variant.env[name],
                    allowed=f"a whole number of {unit} from {low} to {top}",
                    fix=f"set {name} to a value in that range",
                    severity="warning" if aiv and value is not None and low <= value <= high else "error",
                )


@check(
    Rule(
        "allocator-setting",
        "error",
        "PYTORCH_NPU_ALLOC_CONF is a list of key:value, with expandable_segments:True spelled so",
        "the allocator ends the process at an unknown key",
        "torch_npu documentation, PYTORCH_NPU_ALLOC_CONF",
        rows=("P-OOM1", "B6"),
        scope="vllm-ascend",
    ),
    Rule(
        "buffer-size",
        "error",
        "HCCL_BUFFSIZE is a whole number of MB from 1",
        "HCCL refuses anything else when the first group is made",
        "HCCL documentation, HCCL_BUFFSIZE",
        rows=("B10",),
        scope="vllm-ascend",
    ),
)
def values_spelled(context: Context) -> Iterator[Mistake]:
    if not context.ascend:
        return
    known = (
        "expandable_segments",
        "garbage_collection_threshold",
        "max_split_size_mb",
        "base_addr_aligned_kb",
        "page_size",
    )
    told: Set[str] = set()
    for variant in context.variants:
        conf = variant.env.get("PYTORCH_NPU_ALLOC_CONF")
        if conf is not None and variant.env_key("PYTORCH_NPU_ALLOC_CONF") not in told:
            for entry in conf.split(","):
                name, colon, value = entry.strip().partition(":")
                wrong = (
                    not colon or name not in known or (name == "expandable_segments" and value not in ("True", "False"))
                )
                if wrong:
                    key = variant.env_key("PYTORCH_NPU_ALLOC_CONF")
                    told.add(key)
                    near = closest(name, known, 1)
                    yield mistake(
                        "allocator-setting",
                        f"PYTORCH_NPU_ALLOC_CONF has {entry.strip()!r}",
                        key=key,
                        value=conf,
                        allowed=", ".join(known) + ", each with a colon and a value",
                        fix="write expandable_segments:True" if "expandable_segments" in near else "correct the entry",
                    )
        size = variant.env.get("HCCL_BUFFSIZE")
        if size is not None and not (size.isdigit() and int(size) > 0):
            key = variant.env_key("HCCL_BUFFSIZE")
            if key not in told:
                told.add(key)
                yield mistake(
                    "buffer-size",
                    f"HCCL_BUFFSIZE is {size}",
                    key=key,
                    value=size,
                    allowed="a whole number of MB, such as 200, 512 or 1024",
                    fix="write the number alone",
                )


@check(
    Rule(
        "name-misspelt",
        "warning",
        "no variable and no key of kv_transfer.extra is nearly one that the guides use",
        "an unknown name is ignored in silence, so what it is meant to do doesn't happen",
        "vLLM-Ascend tutorials, KV pool and PD disaggregation guides",
        scope="vllm-ascend",
    ),
)
def names_spelled(context: Context) -> Iterator[Mistake]:
    if not context.ascend:
        return
    for variant in context.variants:
        given: List[Tuple[str, str, Any, FrozenSet[str]]] = [
            (name, variant.env_key(name), value, KNOWN) for name, value in variant.env.items()
        ]
        for place, written in variant.places:
            extra = (written.get("kv_transfer") or {}).get("extra")
            for key, value in (extra if isinstance(extra, Mapping) else {}).items():
                given.append((str(key), f"recipe:{place}kv_transfer.extra.{key}", value, KNOWN_KEYS))
        for name, key, value, known in given:
            near = [] if name in known else closest(name, sorted(known), 1, _ALIKE)
            if near:
                yield mistake(
                    "name-misspelt",
                    f"{name} looks like {near[0]}",
                    key=key,
                    value=value,
                    allowed=near[0],
                    fix=f"write {near[0]}, or waive the rule if {name} is meant",
                    severity="warning",
                )


@check(
    Rule(
        "proxy-variables",
        "error",
        "engines and routers get no http, https, ftp or all proxy",
        "requests between the nodes would go to that proxy",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, PD deployment",
        rows=("B12", "D6"),
    ),
)
def no_proxies(context: Context) -> Iterator[Mistake]:
    router = context.recipe.get("router") or {}
    places = [(one.env_key(name), name, value) for one in context.variants for name, value in one.env.items()]
    places += [(f"recipe:router.env.{name}", name, value) for name, value in (router.get("env") or {}).items()]
    told: Set[str] = set()
    for key, name, value in places:
        if name.lower() in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy") and key not in told:
            told.add(key)
            yield mistake(
                "proxy-variables",
                f"{name} would send requests between the nodes to {value}",
                key=key,
                value=value,
                allowed="left out: scripts unset it",
                fix=f"remove {name}; downloads take their proxy from the host's container engine",
            )


CHECKS = (nothing_retired, timeouts_sane, values_spelled, names_spelled, no_proxies)
