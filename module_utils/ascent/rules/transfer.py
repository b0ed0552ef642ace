"""KV cache between engines: prefill and decode, and the connectors between them."""

from __future__ import annotations

__all__ = ["CHECKS"]

import json
from typing import Any, Dict, Iterator, Mapping, Set, Tuple

from .. import engines
from ..mistakes import mistake
from ..quantities import whole_number
from .registry import ASCEND_DIRECT, STORES, Context, Mistake, Rule, Variant, check

_SCOPE = "vllm-ascend, Mooncake connectors between prefill and decode"
_TUTORIAL = "vLLM-Ascend tutorial Qwen3.5-397B-A17B, PD deployment"

#: Connectors that exist only in vLLM-Ascend, and those that need NVIDIA's libraries.
_ASCEND_ONLY = ASCEND_DIRECT - {"MooncakeConnector"} | {"AscendStoreConnector", "MooncakeConnectorStoreV1"}
_NVIDIA_ONLY = frozenset(("NixlConnector", "P2pNcclConnector", "MooncakeStoreConnector"))
#: First and last minor release of vLLM-Ascend that is known to lack a connector, and what there is instead.
_LACKING = {
    "AscendStoreConnector": ((0, 0), (0, 11), "MooncakeConnectorStoreV1"),
    "MooncakeHybridConnector": ((0, 0), (0, 18), "MooncakeConnectorV1"),
    "RecomputeCPUOffloadConnector": ((0, 0), (0, 22), "SimpleCPUOffloadConnector"),
    "LLMDataDistCMgrConnector": ((0, 13), (9, 0), "MooncakeConnectorV1"),
    "LMCacheAscendConnector": ((0, 27), (9, 0), "AscendStoreConnector"),
}


@check(
    Rule(
        "pd-incomplete",
        "error",
        "prefill and decode pools come together, and with kv_transfer",
        "a prefill node without decode, or without a way to hand over its KV cache, serves nobody",
        "vLLM documentation, Disaggregated Prefilling",
    ),
    Rule(
        "pd-connectors-differ",
        "error",
        "prefill and decode pools use the same connector",
        "two connectors don't speak with each other: decode waits for KV cache in a form that nobody sends",
        "vLLM documentation, Disaggregated Prefilling; vLLM KVTransferConfig",
        rows=("P-KV1",),
        scope="prefill and decode; beside it either side may have a store of its own",
    ),
    Rule(
        "pd-sizes-differ",
        "error",
        "pools of one role have equal sizes",
        "the connector knows one tensor, pipeline and data parallel size a role",
        _TUTORIAL,
        rows=("P-KV2",),
        scope=_SCOPE,
    ),
    Rule(
        "pd-tensor-parallel-ratio",
        "error",
        "prefill's tensor_parallel is a multiple of decode's; equal for hybrid models",
        "the connectors map every decode worker to a whole number of prefill workers; a fixed state can't be split",
        "vLLM-Ascend, kv_transfer, assertions of the Mooncake connectors",
        scope=_SCOPE,
    ),
    Rule(
        "pd-decode-pipeline",
        "error",
        "decode pools have pipeline_parallel 1, and prefill_context_parallel 1",
        "the connectors deliver to the tensor parallel ranks of one stage",
        "vLLM-Ascend, kv_transfer, assertions of the Mooncake connectors",
        scope=_SCOPE,
    ),
)
def sides_agree(context: Context) -> Iterator[Mistake]:
    split = {pool["role"] for pool in context.pools} & {"prefill", "decode"}
    if split and not context.recipe.get("kv_transfer"):
        yield mistake(
            "pd-incomplete",
            "pools with the role prefill or decode need kv_transfer",
            key="recipe:kv_transfer",
            allowed="a connector: " + ", ".join(sorted(engines.CONNECTORS)),
            fix="add kv_transfer: {connector: ...}, or give the pools the role serve",
        )
    if len(split) == 1:
        there = next(iter(split))
        other = "decode" if there == "prefill" else "prefill"
        yield mistake(
            "pd-incomplete",
            f"there is a {there} pool and no {other} pool",
            key="recipe:pools",
            value=[pool["name"] for pool in context.pools],
            allowed="at least one pool of each of the two roles",
            fix=f"add a pool with role: {other}",
        )
    yield from _connectors_match(context)
    if not context.direct:
        return
    for role in sorted(split):
        alike = [pool for pool in context.pools if pool["role"] == role]
        for pool in alike[1:]:
            for key in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
                if pool[key] != alike[0][key]:
                    yield mistake(
                        "pd-sizes-differ",
                        f"{role} pools {alike[0]['name']} and {pool['name']} differ in {key}",
                        key=f"recipe:pools.{pool['name']}.{key}",
                        value=pool[key],
                        allowed=str(alike[0][key]),
                        fix="give all pools of one role the same sizes: the connector knows one size a role",
                    )
    decoders = [pool for pool in context.pools if pool["role"] == "decode"]
    for source in (pool for pool in context.pools if pool["role"] == "prefill"):
        for target in decoders:
            yield from _ratio(context, source, target)
    for target in decoders:
        for key in ("pipeline_parallel", "prefill_context_parallel"):
            if (target.get(key) or 1) > 1:
                yield mistake(
                    "pd-decode-pipeline",
                    f"decode pool {target['name']} has {key} {target[key]}",
                    key=f"recipe:pools.{target['name']}.{key}",
                    value=target[key],
                    allowed="1",
                    fix=f"leave {key} out of the decode pool",
                )


def _connectors_match(context: Context) -> Iterator[Mistake]:
    """The sides may add a store each, so only connectors that are none are compared."""
    first: Dict[str, Tuple[str, Set[str]]] = {}
    for variant in context.variants:
        role, names = variant.pool["role"], set(variant.connector_names) - STORES
        if role in ("prefill", "decode") and variant.connector_names:
            first.setdefault(role, (variant.name, names))
    if len(first) == 2 and first["prefill"][1] != first["decode"][1]:
        (source, left), (target, right) = first["prefill"], first["decode"]
        yield mistake(
            "pd-connectors-differ",
            f"{source} uses {', '.join(sorted(left)) or 'a store alone'}, {target} "
            f"{', '.join(sorted(right)) or 'a store alone'}",
            key=f"recipe:pools.{target}.kv_transfer.connector",
            value=sorted(right),
            allowed=", ".join(sorted(left)) or "a store alone",
            fix="put the connector into the recipe's kv_transfer, for both sides",
        )


def _ratio(context: Context, source: Mapping[str, Any], target: Mapping[str, Any]) -> Iterator[Mistake]:
    left, right = source["tensor_parallel"], target["tensor_parallel"]
    if left < right or left % right:
        yield mistake(
            "pd-tensor-parallel-ratio",
            f"tensor_parallel {left} of {source['name']} is not a multiple of {right} of {target['name']}",
            key=f"recipe:pools.{target['name']}.tensor_parallel",
            value=right,
            allowed=", ".join(str(size) for size in range(1, left + 1) if left % size == 0),
            fix="make the prefill size a multiple of the decode size",
        )
    elif left != right and context.hybrid:
        yield mistake(
            "pd-tensor-parallel-ratio",
            f"the model is hybrid, and tensor_parallel is {left} in {source['name']}, {right} in {target['name']}",
            key=f"recipe:pools.{target['name']}.tensor_parallel",
            value=right,
            allowed=str(left),
            fix="give both sides the same tensor_parallel",
        )


@check(
    Rule(
        "kv-role-fits",
        "error",
        "kv_role is kv_producer on prefill and kv_consumer on decode",
        "with the roles swapped both sides wait for KV cache that nobody sends",
        _TUTORIAL,
        rows=("P-KV1", "E3"),
        scope=_SCOPE,
    ),
    Rule(
        "engine-id-unique",
        "error",
        "no two instances have the same engine_id, and all processes of one have the same",
        "peers tell instances apart by it; equal ids fail an assertion at the first transfer",
        "vLLM KVTransferConfig; vLLM-Ascend, kv_transfer",
        rows=("P-KV3",),
    ),
)
def roles_and_ids(context: Context) -> Iterator[Mistake]:
    wanted = {"prefill": "kv_producer", "decode": "kv_consumer"}
    if context.direct:
        for variant in context.variants:
            role = variant.pool["role"]
            given = variant.transfer.get("kv_role")
            if given is not None and role in wanted and given != wanted[role]:
                yield mistake(
                    "kv-role-fits",
                    f"pool {variant.name} has the role {role} and kv_role {given}",
                    key=f"recipe:pools.{variant.name}.kv_transfer.kv_role",
                    value=given,
                    allowed=wanted[role],
                    fix="remove kv_role: the plan fills it in",
                )
    # External data parallelism: every rank is an engine of its own, and vLLM adds the rank to the id it is given.
    given_ids: Dict[str, Set[str]] = {}
    pool_of: Dict[str, str] = {}
    for process, config in _planned_configs(context):
        instance = str(process.get("instance"))
        pool_of[instance] = str(process["pool"])
        given_ids.setdefault(instance, set()).add(str(config.get("engine_id", "")))
    owners: Dict[str, str] = {}
    for instance, values in given_ids.items():
        wrong = f"processes of {instance} have different engine_id values" if len(values) > 1 else ""
        for identity in sorted(values - {""}):
            other = owners.setdefault(identity, instance)
            if other != instance:
                wrong = f"{other} and {instance} both have engine_id {identity}"
        if wrong:
            yield mistake(
                "engine-id-unique",
                wrong,
                key=f"recipe:pools.{pool_of[instance]}.kv_transfer.engine_id",
                value=", ".join(sorted(value or "not set" for value in values)),
                allowed="left out, or one value an instance (an override of each instance)",
                fix="remove engine_id: the engine makes one",
            )


def _planned_configs(context: Context) -> Iterator[Tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Engine processes of the plan with their --kv-transfer-config."""
    for process in (context.plan or {}).get("processes", []):
        for line in process["argv"]:
            if len(line) == 2 and line[0] == "--kv-transfer-config":
                try:
                    config = json.loads(line[1])
                except ValueError:
                    continue
                if isinstance(config, dict):
                    yield process, config


@check(
    Rule(
        "connector-fits-engine",
        "error",
        "the connector is one that this engine and version has",
        "an engine that doesn't know the name ends at start: Unsupported connector",
        "vLLM KVConnectorFactory; vLLM-Ascend sources, kv_transfer registrations of v0.11 to v0.26",
        rows=("E9",),
    ),
)
def connector_known(context: Context) -> Iterator[Mistake]:
    told: Set[str] = set()
    for variant in context.variants:
        for name in variant.connector_names:
            wrong = ""
            if context.ascend and name in _NVIDIA_ONLY:
                wrong = "needs libraries that Ascend images don't carry"
            elif not context.ascend and context.engine_name and name in _ASCEND_ONLY:
                wrong = "exists in vllm-ascend only"
            elif context.ascend and name in _LACKING:
                first, last, instead = _LACKING[name]
                mine = (engines.version_key(str(context.version or "")) or ())[:2]
                if mine and first <= mine <= last:
                    wrong = f"is not in {context.version}; {instead} is"
            if wrong and name not in told:
                told.add(name)
                fitting = sorted(engines.CONNECTORS) if context.ascend else ["NixlConnector", "MooncakeConnector"]
                yield mistake(
                    "connector-fits-engine",
                    f"{name} {wrong}",
                    key="recipe:kv_transfer.connector",
                    value=name,
                    allowed=", ".join(fitting),
                    fix=f"take {fitting[0]}, or another engine",
                )


@check(
    Rule(
        "prefix-caching-in-pd",
        "error",
        "prefix caching is off on both sides",
        "known limitation of decode nodes, vllm-ascend issue 7944; the engine's own default is on",
        "vllm-ascend issue 7944; " + _TUTORIAL,
        rows=("P-PC1", "J3"),
        scope=_SCOPE + " (not NIXL, not a store with kv_both)",
    ),
)
def prefix_caching_off(context: Context) -> Iterator[Mistake]:
    if not context.direct:
        return
    for variant in context.variants:
        if variant.pool["role"] not in ("prefill", "decode") or STORES & set(variant.connector_names):
            continue
        value = variant.args.get("enable-prefix-caching")
        if value is not False and ASCEND_DIRECT & set(variant.connector_names):
            yield mistake(
                "prefix-caching-in-pd",
                f"prefix caching is on in pool {variant.name}; with {variant.connector_names[0]} it has to be off",
                key=variant.key("enable-prefix-caching"),
                **({} if value is None else {"value": value}),
                allowed="false (the engine's own default is true)",
                fix="set args.enable-prefix-caching: false",
            )


@check(
    Rule(
        "recompute-scheduler",
        "error",
        "recompute_scheduler_enable stands in PD deployments only; from v0.23.0 on in decode pools only, with kv_role "
        "kv_consumer",
        "it sends a request back to prefill when decode lacks KV cache: outside PD the engine refuses it, and newer "
        "releases ignore it on prefill with a warning and refuse it with kv_both",
        "vLLM-Ascend sources, NPUPlatform of v0.18 to v0.26; " + _TUTORIAL,
        rows=("P-KV5", "E7"),
        scope="vllm-ascend",
    ),
    Rule(
        "finegrained-tensor-parallel",
        "error",
        "tensor parallel sizes of single modules divide data_parallel, on a model with experts; those of output "
        "projection and embedding come with the recompute scheduler, that of the language model head with "
        "tensor_parallel 1, and that of the output projection with graphs in a decode pool",
        "the engine asserts these when it starts, but for the head, which guides use with pure data parallelism only",
        "vLLM-Ascend sources, FinegrainedTPConfig of v0.13 to v0.26; guide on finegrained tensor parallelism",
        scope="vllm-ascend",
    ),
)
def recompute_scheduler(context: Context) -> Iterator[Mistake]:
    if not context.ascend:
        return
    for variant in context.variants:
        config = variant.config("additional-config")
        key = variant.key("additional-config")
        # From v0.25 on the switch has a section of its own, which wins; the old place is still read.
        section = config.get("scheduler_config")
        inner = section.get("recompute_scheduler_enable") if isinstance(section, Mapping) else None
        on = (config.get("recompute_scheduler_enable") if inner is None else inner) is True
        place = key + ("" if inner is None else ".scheduler_config") + ".recompute_scheduler_enable"
        if on and not context.disaggregated:
            yield mistake(
                "recompute-scheduler",
                f"recompute_scheduler_enable is on in pool {variant.name}, which is not split into prefill and decode",
                key=place,
                value=True,
                allowed="left out",
                fix="remove recompute_scheduler_enable",
            )
        elif on and variant.pool["role"] == "prefill" and context.at_least("0.23.0"):
            yield mistake(
                "recompute-scheduler",
                f"recompute_scheduler_enable has no effect on prefill pool {variant.name} from v0.23.0 on",
                key=place,
                value=True,
                allowed="only in decode pools",
                fix="move recompute_scheduler_enable to the decode pool's additional-config",
                severity="warning",
            )
        elif on and context.at_least("0.23.0") and variant.transfer.get("kv_role") == "kv_both":
            yield mistake(
                "recompute-scheduler",
                f"recompute_scheduler_enable is on in pool {variant.name}, whose kv_role is kv_both",
                key=place,
                value=True,
                allowed="only with kv_role kv_consumer",
                fix="remove kv_role (the plan sets kv_consumer), or recompute_scheduler_enable",
            )
        fine = config.get("finegrained_tp_config")
        if isinstance(fine, Mapping):
            yield from _modules_fit(context, variant, fine, f"{key}.finegrained_tp_config")
        for name in ("oproj_tensor_parallel_size", "embedding_tensor_parallel_size"):
            if isinstance(fine, Mapping) and (whole_number(fine.get(name)) or 0) > 1 and not on:
                yield mistake(
                    "finegrained-tensor-parallel",
                    f"pool {variant.name} sets {name} without the recompute scheduler",
                    key=f"{key}.finegrained_tp_config.{name}",
                    value=fine[name],
                    allowed="with recompute_scheduler_enable: true",
                    fix="add recompute_scheduler_enable: true to the decode pool, or remove the size",
                )
        head = whole_number(fine.get("lmhead_tensor_parallel_size")) if isinstance(fine, Mapping) else None
        if head and head > 1 and variant.size("tensor_parallel") > 1:
            yield mistake(
                "finegrained-tensor-parallel",
                f"pool {variant.name} splits the head {head} ways and has tensor_parallel "
                f"{variant.size('tensor_parallel')}",
                key=f"{key}.finegrained_tp_config.lmhead_tensor_parallel_size",
                value=head,
                allowed="left out with tensor_parallel above 1",
                fix="remove lmhead_tensor_parallel_size, or set tensor_parallel: 1 and raise data_parallel",
                severity="warning",
            )


def _modules_fit(context: Context, variant: Variant, fine: Mapping[str, Any], place: str) -> Iterator[Mistake]:
    """What the engine asserts of every module's tensor parallel size, whatever the module."""
    ranks = variant.size("data_parallel")
    for name, given in fine.items():
        size = whole_number(given) or 0
        if not str(name).endswith("_tensor_parallel_size") or size < 1:
            continue
        wrong = []
        if ranks % size:
            wrong.append(f"doesn't divide data_parallel {ranks}")
        if (context.model or {}).get("kind") == "dense":
            wrong.append("is for models with experts")
        if name == "oproj_tensor_parallel_size":
            if variant.args.get("enforce-eager") is True:
                wrong.append("needs captured graphs")
            if variant.pool["role"] != "decode":
                wrong.append("is for decode pools")
            if variant.size("tensor_parallel") > 1 and context.at_least("0.23.0"):
                wrong.append("needs tensor_parallel 1")
        if wrong:
            yield mistake(
                "finegrained-tensor-parallel",
                f"{name} {size} of pool {variant.name} {' and '.join(wrong)}",
                key=f"{place}.{name}",
                value=given,
                allowed=f"a divisor of data_parallel = {ranks}, on a model with experts",
                fix="correct the size, or remove it",
            )


@check(
    Rule(
        "hybrid-kv-cache-manager",
        "error",
        "hybrid models between prefill and decode keep the hybrid KV cache manager: "
        "disable-hybrid-kv-cache-manager is false",
        "vLLM turns it off when a connector is set, and such a model can't run without it",
        _TUTORIAL,
        rows=("P-PC3", "C33"),
        scope="vllm-ascend, hybrid models with KV transfer",
    ),
    Rule(
        "pd-speculative-tokens",
        "error",
        "hybrid models predict the same number of tokens on both sides",
        "the state that is handed over has one place for each predicted token",
        "vLLM-Ascend, kv_transfer",
        scope="vllm-ascend, Mooncake connectors, hybrid models",
    ),
)
def hybrid_transfer(context: Context) -> Iterator[Mistake]:
    if not context.hybrid or not context.direct:
        return
    tokens: Dict[str, Tuple[str, int]] = {}
    for variant in context.variants:
        if variant.pool["role"] not in ("prefill", "decode"):
            continue
        value = variant.args.get("disable-hybrid-kv-cache-manager")
        if value is not False:
            yield mistake(
                "hybrid-kv-cache-manager",
                f"pool {variant.name} runs a hybrid model without its KV cache manager",
                key=variant.key("disable-hybrid-kv-cache-manager"),
                **({} if value is None else {"value": value}),
                allowed="false",
                fix="set args.disable-hybrid-kv-cache-manager: false",
            )
        tokens[variant.pool["role"]] = (variant.key("speculative-config"), variant.speculative_tokens)
    if len(tokens) == 2 and tokens["prefill"][1] != tokens["decode"][1]:
        yield mistake(
            "pd-speculative-tokens",
            f"prefill predicts {tokens['prefill'][1]} tokens ahead and decode {tokens['decode'][1]}",
            key=tokens["decode"][0],
            value=tokens["decode"][1],
            allowed=str(tokens["prefill"][1]),
            fix="put speculative-config into the recipe's args, for both sides",
        )


@check(
    Rule(
        "pd-batched-tokens",
        "warning",
        "prefill's max-num-batched-tokens is larger than decode's",
        "prefill works on whole prompts, decode on one step of many requests",
        _TUTORIAL,
        rows=("P-TOK1",),
        scope="prefill and decode pools that set it",
    ),
    Rule(
        "pd-graphs",
        "warning",
        "prefill runs eagerly, decode with captured graphs",
        "prompts have no repeating shape; decode steps are short enough that dispatch would dominate",
        _TUTORIAL,
        rows=("P-CG4", "P-CG3"),
        scope=_SCOPE,
    ),
)
def sides_tuned(context: Context) -> Iterator[Mistake]:
    sides = [one for one in context.variants if one.pool["role"] in ("prefill", "decode")]
    least = [(one.number("max-num-batched-tokens"), one) for one in sides if one.pool["role"] == "prefill"]
    for variant in sides:
        tokens = variant.number("max-num-batched-tokens")
        if variant.pool["role"] == "decode" and tokens:
            smaller = [(value, one) for value, one in least if value and value <= tokens]
            if smaller:
                yield mistake(
                    "pd-batched-tokens",
                    f"prefill pool {smaller[0][1].name} takes {smaller[0][0]} tokens a step, decode pool "
                    f"{variant.name} {tokens}",
                    key=variant.key("max-num-batched-tokens"),
                    value=tokens,
                    allowed=f"less than {smaller[0][0]}",
                    fix="raise it in the prefill pool, or lower it in the decode pool",
                    severity="warning",
                )
        if not context.direct:
            continue
        eager = variant.args.get("enforce-eager") is True
        graphs = variant.graph_mode not in (None, "NONE")
        if variant.pool["role"] == "prefill" and (not eager or graphs):
            what = "captures graphs" if graphs and not eager else "doesn't run eagerly"
            yield mistake(
                "pd-graphs",
                f"prefill pool {variant.name} {what}",
                key=variant.key("compilation-config" if graphs else "enforce-eager"),
                value=variant.graph_mode if graphs else variant.args.get("enforce-eager"),
                allowed="enforce-eager: true, and no cudagraph_mode",
                fix="set enforce-eager: true in the prefill pool and keep compilation-config to the decode pool",
                severity="warning",
            )
        if variant.pool["role"] == "decode" and eager:
            yield mistake(
                "pd-graphs",
                f"decode pool {variant.name} runs eagerly",
                key=variant.key("enforce-eager"),
                value=True,
                allowed="left out, with compilation-config: {cudagraph_mode: FULL_DECODE_ONLY}",
                fix="move enforce-eager to the prefill pool",
                severity="warning",
            )


CHECKS = (
    sides_agree,
    roles_and_ids,
    connector_known,
    prefix_caching_off,
    recompute_scheduler,
    hybrid_transfer,
    sides_tuned,
)
