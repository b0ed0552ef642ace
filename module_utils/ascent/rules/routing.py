"""What clients talk to: proxies between prefill and decode, routers, cache-aware routing."""

from __future__ import annotations

__all__ = ["CHECKS"]

from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from .. import engines
from ..mistakes import mistake
from ..quantities import whole_number
from .registry import Context, Mistake, Rule, Variant, check

_PROXIES = "vLLM-Ascend examples, disaggregated_prefill_v1"
_EVENTS = "vLLM KVEventsConfig; vllm-router documentation"

#: Default block size of an engine, and of the routers and indexers that have to know it.
_ENGINE_BLOCKS = {"vllm-ascend": 128, "vllm": 16, "dynamo": 16}
_ROUTER_BLOCKS = {"vllm-router": 16}
_BLOCK_OPTIONS = ("kv-event-block-size", "kv-cache-block-size")


@check(
    Rule(
        "router-missing",
        "error",
        "prefill and decode have a router in front of them",
        "a request has to visit both sides, in the connector's order",
        _PROXIES,
        rows=("D1", "D2"),
    ),
    Rule(
        "router-without-sides",
        "error",
        "a proxy for prefill and decode has both behind it",
        "it sends every request to the two sides",
        _PROXIES,
    ),
    Rule(
        "router-matches-connector",
        "error",
        "the layerwise proxy goes with MooncakeLayerwiseConnector, the plain one with the other Mooncake connectors",
        "with the layerwise connector decode is asked first and calls prefill through the proxy",
        _PROXIES,
        rows=("P-PX4",),
        scope="vllm-ascend, Mooncake connectors between prefill and decode",
    ),
    Rule(
        "router-on-prefill",
        "warning",
        "a proxy runs on the prefill side",
        "the guides put it on the prefill master, whose load it shares least",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, request forwarding",
        rows=("P-PX3", "D3"),
        scope="proxies between prefill and decode",
    ),
)
def router_fits(context: Context) -> Iterator[Mistake]:
    router = context.recipe.get("router")
    between = sorted(name for name, one in engines.ROUTERS.items() if one.get("order"))
    if not router or router.get("kind") == "none":
        if context.disaggregated:
            yield mistake(
                "router-missing",
                "prefill and decode need a router in front of them",
                key="recipe:router",
                allowed="router: {kind: " + " or ".join(between) + "}",
                fix="add a router",
            )
        return
    kind: Optional[Mapping[str, Any]] = engines.ROUTERS.get(router.get("kind", ""))
    if kind is None or not kind.get("order"):
        return
    if context.pools and not context.disaggregated:
        yield mistake(
            "router-without-sides",
            f"a router of kind {router['kind']} stands between prefill and decode, and the pools have neither",
            key="recipe:router.kind",
            value=router["kind"],
            allowed="no router, one for equal instances, or pools with the roles prefill and decode and kv_transfer",
            fix="remove router, or give the pools their roles",
        )
        return
    names = {name for variant in context.variants for name in variant.connector_names}
    for name in sorted(names & set(engines.CONNECTORS)):
        order = engines.CONNECTORS[name]["order"]
        if kind["order"] != order:
            fitting = [one for one in between if engines.ROUTERS[one]["order"] == order]
            yield mistake(
                "router-matches-connector",
                f"{name} wants requests {order.replace('-', ' ')}, a router of kind {router['kind']} sends "
                f"them {kind['order'].replace('-', ' ')}",
                key="recipe:router.kind",
                value=router["kind"],
                allowed=", ".join(fitting),
                fix=f"set router.kind to {fitting[0]}, or take another connector",
            )
    on = next((pool for pool in context.pools if pool["name"] == router.get("on", context.pools[0]["name"])), None)
    if on is not None and on["role"] == "decode":
        prefill = [pool["name"] for pool in context.pools if pool["role"] == "prefill"]
        yield mistake(
            "router-on-prefill",
            f"the router runs beside decode pool {on['name']}",
            key="recipe:router.on",
            value=on["name"],
            allowed=", ".join(prefill),
            fix=f"set router.on to {(prefill or ['a prefill pool'])[0]}",
            severity="warning",
        )


@check(
    Rule(
        "router-backends",
        "error",
        "a proxy lists exactly the processes of its two sides that serve an API, each with its port",
        "a headless process answers no request, so every request dealt to it fails",
        _PROXIES + "; vLLM-Ascend tutorial Qwen3.5-397B-A17B",
        rows=("P-PX1", "P-PX2", "D4", "D5", "J13"),
        scope="proxies between prefill and decode",
        waivable=False,
    ),
    Rule(
        "router-host-concrete",
        "error",
        "the layerwise proxy listens on an address that decode nodes reach",
        "decode posts back to that very address; 0.0.0.0 means itself there",
        _PROXIES,
        scope="router kind pd-layerwise",
    ),
)
def backends_serve(context: Context) -> Iterator[Mistake]:
    router = context.recipe.get("router") or {}
    for name, value in (router.get("args") or {}).items():
        if str(name).lstrip("-") == "host" and router.get("kind") == "pd-layerwise" and value in ("0.0.0.0", "::", ""):  # noqa: S104
            yield mistake(
                "router-host-concrete",
                f"the layerwise proxy can't listen on {value}",
                key=f"recipe:router.args.{name}",
                value=value,
                allowed="left out: the plan has the host's node_ip",
                fix="remove host",
            )
    plan = context.plan
    if plan is None:
        return
    served: Dict[str, Set[str]] = {"prefill": set(), "decode": set()}
    for process in plan["processes"]:
        for port in process["ports"]:
            if port["name"] == "api" and process.get("role") in served and ["--headless"] not in process["argv"]:
                served[process["role"]].add(f"{plan['hosts'][process['host']]['node_ip']}:{port['first']}")
    for process in plan["processes"]:
        options = {line[0]: line[1:] for line in process["argv"] if line}
        for role, side in (("prefill", "prefiller"), ("decode", "decoder")):
            hosts, ports = options.get(f"--{side}-hosts"), options.get(f"--{side}-ports")
            if process["kind"] != "router" or hosts is None or ports is None:
                continue
            listed = [f"{host}:{port}" for host, port in zip(hosts, ports)]
            if len(hosts) != len(ports) or set(listed) != served[role] or len(set(listed)) != len(listed):
                yield mistake(
                    "router-backends",
                    f"the proxy lists {', '.join(listed)} for {role}",
                    key="recipe:router.args",
                    value=listed,
                    allowed=", ".join(sorted(served[role])),
                    fix=f"leave --{side}-hosts and --{side}-ports to the plan",
                    host=process["host"],
                )


@check(
    Rule(
        "served-name-tokenizer",
        "error",
        "served_name is the id that a cache-aware router loads its tokenizer by",
        "otherwise it can't turn prompts into blocks and silently balances load only",
        "InferNex, model names in KV-aware routing",
        rows=("P-RT1", "D11"),
        scope="cache-aware routing",
    ),
    Rule(
        "block-size-equal",
        "error",
        "block sizes are equal in engines, router and indexer, and on both sides of NIXL",
        "hashes of blocks of another size never match",
        _EVENTS,
        scope="cache-aware routing; NIXL",
    ),
    Rule(
        "kv-events-published",
        "error",
        "engines that a cache-aware router scores publish KV events and cache prefixes",
        "without them it knows nothing and falls back to load",
        _EVENTS,
        rows=("D8", "D9"),
        scope="cache-aware routing",
    ),
    Rule(
        "kv-events-endpoint",
        "error",
        "a KV events endpoint that is given binds on all addresses: tcp://*:PORT",
        "with a host in it the publisher connects instead of binding, and nobody listens",
        _EVENTS,
        scope="engines that publish KV events",
    ),
    Rule(
        "trace-block-size",
        "warning",
        "a trace's blocks are whole numbers of the engine's",
        "shared prefixes would be cut down to whole blocks, and fewer be found again",
        "AIPerf documentation, mooncake_trace (512 tokens a block)",
        rows=("H11",),
        scope="jobs that replay a Mooncake trace",
    ),
    Rule(
        "hash-algorithm-equal",
        "error",
        "all engines that are scored hash prefixes the same way",
        "the same tokens would have two names",
        _EVENTS,
        scope="cache-aware routing or KV store",
    ),
)
def cache_aware(context: Context) -> Iterator[Mistake]:
    # In a split, prompts are dealt to prefill: decode may have both off.
    scored = [one for one in context.variants if one.pool["role"] in ("serve", "prefill")]
    sizes = {f"pool {one.name}": (_block_size(context, one), one.key("block-size")) for one in context.variants}
    names = {name for one in context.variants for name in one.connector_names}
    if context.routed_by_cache:
        yield from _router_knows(context)
        sizes.update(_block_sizes_beside(context))
        for variant in scored:
            published = variant.pool.get("kv_events") or variant.config("kv-events-config").get(
                "enable_kv_cache_events"
            )
            for wrong, key, fix in (
                (not published, f"recipe:pools.{variant.name}.kv_events", "set kv_events: true"),
                (
                    variant.args.get("enable-prefix-caching") is False,
                    variant.key("enable-prefix-caching"),
                    "remove enable-prefix-caching: false",
                ),
            ):
                if wrong:
                    yield mistake(
                        "kv-events-published",
                        f"pool {variant.name} is scored by its cache and "
                        + ("publishes no KV events" if "kv_events" in key else "caches no prefixes"),
                        key=key,
                        value=False,
                        allowed="true",
                        fix=fix,
                    )
    for variant in context.variants:
        given = variant.pool.get("kv_events")
        endpoint = given.get("endpoint") if isinstance(given, Mapping) else None
        endpoint = endpoint or variant.config("kv-events-config").get("endpoint")
        if endpoint and not str(endpoint).startswith("tcp://*:"):
            yield mistake(
                "kv-events-endpoint",
                f"engines of pool {variant.name} would publish KV events at {endpoint}",
                key=f"recipe:pools.{variant.name}.kv_events.endpoint",
                value=endpoint,
                allowed="left out, or tcp://*:PORT",
                fix="remove endpoint: the plan numbers ports on each host",
            )
    yield from _trace_blocks(context, [(size, one) for one, (size, _) in sizes.items() if size])
    if context.routed_by_cache or "NixlConnector" in names:
        first = next(iter(sizes.values()), (None, ""))[0]
        for owner, (size, key) in sizes.items():
            if size != first:
                yield mistake(
                    "block-size-equal",
                    f"the block size of {owner} is {size}; {next(iter(sizes))} has {first}",
                    key=key,
                    value=size,
                    allowed=str(first),
                    fix=f"set it to {first} everywhere",
                )
    if context.routed_by_cache or context.stored:
        hashes = {str(one.args.get("prefix-caching-hash-algo", "sha256")): one for one in scored}
        if len(hashes) > 1:
            yield mistake(
                "hash-algorithm-equal",
                f"pools hash prefixes differently: {', '.join(sorted(hashes))}",
                key=list(hashes.values())[-1].key("prefix-caching-hash-algo"),
                value=sorted(hashes),
                allowed="one algorithm",
                fix="put prefix-caching-hash-algo into the recipe's args",
            )


def _trace_blocks(context: Context, sizes: List[Tuple[int, str]]) -> Iterator[Mistake]:
    for name, job in (context.recipe.get("jobs") or {}).items():
        args = {str(key).lstrip("-").replace("_", "-"): value for key, value in (job.get("args") or {}).items()}
        if args.get("custom-dataset-type") != "mooncake_trace":
            continue
        block = whole_number(args.get("prompt-input-tokens-block-size")) or 512
        wrong = [(size, owner) for size, owner in sizes if block % size]
        if wrong:
            yield mistake(
                "trace-block-size",
                f"blocks of the trace have {block} tokens, those of {wrong[0][1]} {wrong[0][0]}",
                key=f"recipe:jobs.{name}.args",
                value=block,
                allowed=f"a multiple of {wrong[0][0]}",
                fix="set block-size to a divisor of the trace's",
                severity="warning",
            )


def _block_size(context: Context, variant: Variant) -> Optional[int]:
    return variant.number("block-size") or _ENGINE_BLOCKS.get(context.engine_name)


def _block_sizes_beside(context: Context) -> Dict[str, Any]:
    """Block sizes that router and services are given; where the plan fills one in, it is the engines'."""
    found: Dict[str, Any] = {}
    router = context.recipe.get("router") or {}
    given: List[Any] = [("the router", "router.args", router.get("args") or {})]
    for name, service in (context.recipe.get("services") or {}).items():
        if service.get("kind") == "indexer":
            given.append((f"service {name}", f"services.{name}.args", service.get("args") or {}))
    for owner, place, args in given:
        for key, value in args.items():
            if str(key).lstrip("-").replace("_", "-") in (*_BLOCK_OPTIONS, "block-size"):
                found[owner] = (whole_number(value), f"recipe:{place}.{key}")
    return found


def _router_knows(context: Context) -> Iterator[Mistake]:
    router = context.recipe.get("router") or {}
    given = next(
        (
            (key, value)
            for key, value in (router.get("args") or {}).items()
            if str(key).lstrip("-").replace("_", "-") == "kv-event-model"
        ),
        None,
    )
    tokenizer = str(given[1]) if given else context.model_id
    if context.served_name != tokenizer:
        yield mistake(
            "served-name-tokenizer",
            f"clients call the model {context.served_name}, and the router tokenizes as {tokenizer}",
            key=f"recipe:router.args.{given[0]}" if given else "recipe:model.served_name",
            value=tokenizer if given else context.served_name,
            allowed=context.served_name if given else context.model_id,
            fix=f"serve the model as {tokenizer}: that name has to be loadable",
        )


@check(
    Rule(
        "router-option-removed",
        "error",
        "options of Dynamo's frontend exist in the image's release",
        "--router-reset-states ends the frontend with: Unknown arguments specified (from 1.6 on)",
        "Dynamo release 1.6.1, dynamo.frontend",
        scope="dynamo",
    ),
)
def frontend_options(context: Context) -> Iterator[Mistake]:
    if context.engine_name != "dynamo" or not context.at_least("1.6.0"):
        return
    for key, value in ((context.recipe.get("router") or {}).get("args") or {}).items():
        if str(key).lstrip("-").replace("_", "-") == "router-reset-states" and value:
            yield mistake(
                "router-option-removed",
                f"Dynamo {context.version} has no --router-reset-states",
                key=f"recipe:router.args.{key}",
                value=value,
                allowed="left out from 1.6 on",
                fix="remove it: the router keeps no state between runs any more",
            )


CHECKS = (router_fits, backends_serve, cache_aware, frontend_options)
