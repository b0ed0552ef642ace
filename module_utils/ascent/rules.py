"""What can't work, decided from recipe, hardware, hosts and catalogue alone: all mistakes at once, with their places.

Each rule is one function that yields mistakes; `RULES` lists them in the order of reading: hosts first, then pools,
then ports, then the engine's own conditions. A recipe may waive a rule by its id with a reason; what it says is then
reported as information, so that the waiver shows.
"""

from __future__ import annotations

__all__ = ["RULES", "check"]

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import engines, layout, planner
from .findings import sort_findings
from .mistakes import as_finding, closest, mistake

Mistake = Dict[str, Any]

#: Rules without which there is no plan at all; a waiver can't help there.
_NOT_WAIVABLE = frozenset(
    (
        "hardware-unknown",
        "host-address-missing",
        "host-address-twice",
        "host-twice",
        "host-arch-missing",
        "host-nic-missing",
        "host-pool-unknown",
        "hosts-too-few",
        "hosts-too-many",
        "devices-too-few",
        "dp-ranks-tile",
        "derived-value-typed",
        "port-clash",
        "instance-shares-nodes",
        "kv-ports-overlap",
        "router-pool-unknown",
    )
)


class _Context(NamedTuple):
    recipe: Mapping[str, Any]
    hardware: Mapping[str, Mapping[str, Any]]
    hosts: Sequence[Mapping[str, Any]]
    pools: List[Dict[str, Any]]
    placement: layout.Placement
    plan: Optional[Mapping[str, Any]]
    model: Optional[Mapping[str, Any]]
    options: Optional[Sequence[str]]

    @property
    def engine(self) -> Mapping[str, Any]:
        engine: Mapping[str, Any] = self.recipe.get("engine") or {}
        return engine

    @property
    def version(self) -> Optional[str]:
        """The engine's version: as the recipe says, else as the image's tag says."""
        given = self.engine.get("version")
        return str(given) if given else engines.image_version(str(self.engine.get("image", "")))

    @property
    def disaggregated(self) -> bool:
        return bool(self.recipe.get("kv_transfer")) and any(pool["role"] != "serve" for pool in self.pools)

    def args(self, pool: Mapping[str, Any]) -> Dict[str, Any]:
        """The pool's engine options by their plain names; ``--no-x`` counts as x = false."""
        result: Dict[str, Any] = {}
        for key, value in planner.merged(self.recipe.get("args") or {}, pool["args"]).items():
            name = planner.option_name(key)
            if name.startswith("no-") and name[3:] in engines.NEGATABLE:
                result[name[3:]] = value is False
            else:
                result[name] = value
        return result

    def args_key(self, pool: Mapping[str, Any], name: str) -> str:
        """The key path at which the option ``name`` of this pool was written."""
        for place, given in ((f"pools.{pool['name']}.args", pool["args"]), ("args", self.recipe.get("args") or {})):
            for key in given:
                if planner.option_name(key) in (name, "no-" + name):
                    return f"recipe:{place}.{key}"
        return "recipe:args"


def check(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    plan: Optional[Mapping[str, Any]] = None,
    *,
    model: Optional[Mapping[str, Any]] = None,
    options: Optional[Sequence[str]] = None,
    positions: Optional[Mapping[str, str]] = None,
) -> List[Dict[str, Any]]:
    """All broken rules as findings, worst first.

    ``plan`` is the plan of these inputs if there is one: the rules that compare ports on hosts need it. ``model`` is
    the catalogue's entry of the recipe's model, ``options`` the option names that this engine release knows; rules that
    need what is None are silent. ``positions`` maps key paths to ``file:line``.
    """
    pools = layout.pools_of(recipe)
    context = _Context(recipe, hardware, hosts, pools, layout.place(pools, hosts), plan, model, options)
    waived: Mapping[str, str] = recipe.get("waive") or {}
    findings: List[Dict[str, Any]] = []
    fired = set()
    for rule in RULES:
        for item in rule(context):
            fired.add(item["rule"])
            reason = waived.get(item["rule"])
            if reason and item["rule"] not in _NOT_WAIVABLE:
                item = {**item, "severity": "info", "cause": f"waived by the recipe: {reason}"}
            findings.append(as_finding(item, positions))
    findings.extend(as_finding(item, positions) for item in _waivers(waived, fired, plan is not None))
    return sort_findings(findings)


# -- hosts -------------------------------------------------------------------------------------------------------------


def _hosts_unique(context: _Context) -> Iterator[Mistake]:
    seen: Dict[Tuple[str, str], str] = {}
    names = set()
    for host in context.hosts:
        if host["name"] in names:
            yield mistake(
                "host-twice",
                f"host {host['name']} is in the cluster twice",
                key=f"host:{host['name']}",
                value=host["name"],
                allowed="each host once",
                fix="remove one of the two",
                host=host["name"],
            )
        names.add(host["name"])
        for variable in ("node_ip", "ansible_host"):
            address = host.get(variable)
            if not address:
                continue
            other = seen.setdefault((variable, str(address)), host["name"])
            if other != host["name"]:
                yield mistake(
                    "host-address-twice",
                    f"{other} and {host['name']} have the same {variable} {address}",
                    key=f"host:{host['name']}.{variable}",
                    value=address,
                    allowed=f"an address that no other host has ({other} has this one)",
                    fix=f"correct {variable} of {host['name']} or of {other}",
                    host=host["name"],
                )


def _layout_sound(context: _Context) -> Iterator[Mistake]:
    yield from layout.unsound(context.recipe, context.hardware, context.hosts, context.pools)


def _hosts_fill_pools(context: _Context) -> Iterator[Mistake]:
    yield from context.placement.mistakes
    if context.pools and not any(item["rule"] == "hosts-too-few" for item in context.placement.mistakes):
        for name in context.placement.spare:
            yield mistake(
                "host-spare",
                f"no pool needs {name}: it is prepared and checked, and runs nothing",
                key=f"host:{name}",
                value=name,
                allowed="as many hosts as the pools need",
                fix="take it out of the cluster's group, or raise nodes or instances of a pool",
                severity="warning",
                host=name,
            )


# -- sizes -------------------------------------------------------------------------------------------------------------


def _devices_suffice(context: _Context) -> Iterator[Mistake]:
    for pool in context.pools:
        asked = pool["devices"] * pool["instances_per_node"]
        told = set()
        here = set(context.placement.hosts[pool["name"]])
        kinds = [host.get("hardware") for host in context.hosts if host["name"] in here]
        for kind in kinds or [None]:
            profile = context.hardware.get(kind or pool["hardware"] or "")
            if profile is None or asked <= profile["devices"] or profile["name"] in told:
                continue
            told.add(profile["name"])
            sizes = f"tensor {pool['tensor_parallel']} * data {pool['local']} a node"
            if pool["pipeline_parallel"] > 1:
                sizes += f" * pipeline {pool['pipeline_parallel']}"
            if pool["instances_per_node"] > 1:
                sizes += f" * {pool['instances_per_node']} instances"
            yield mistake(
                "devices-too-few",
                f"pool {pool['name']} needs {asked} devices a node ({sizes}), there are {profile['devices']}",
                key=f"recipe:pools.{pool['name']}.tensor_parallel",
                value=pool["tensor_parallel"],
                allowed=f"sizes whose product is at most {profile['devices']}",
                fix="lower tensor_parallel or data_parallel, or raise nodes",
            )


def _model_fits(context: _Context) -> Iterator[Mistake]:
    """The seeds' requirement tables: recommended numbers, so a warning."""
    needs = (context.model or {}).get("devices", {})
    for pool in context.pools:
        least = needs.get(pool["hardware"])
        have = pool["devices"] * pool["nodes"]
        if least and have < least:
            yield mistake(
                "model-devices",
                f"an instance of pool {pool['name']} has {have} devices; the model is recommended {least} of this kind",
                key=f"recipe:pools.{pool['name']}",
                value=have,
                allowed=f"{least} or more devices of {pool['hardware']} for one instance",
                fix="raise tensor_parallel, data_parallel or nodes, or take a quantized model",
                severity="warning",
            )


def _derived_untyped(context: _Context) -> Iterator[Mistake]:
    """Derived values may be repeated in args, env and KV sizes, but never contradicted."""
    for pool in context.pools:
        right: Dict[str, Any] = {
            "tensor-parallel-size": pool["tensor_parallel"],
            "pipeline-parallel-size": pool["pipeline_parallel"],
            "data-parallel-size": pool["data_parallel"],
            "data-parallel-size-local": pool["local"],
            "data-parallel-rpc-port": pool["rpc_port"],
            "port": pool["port"],
            "distributed-executor-backend": pool["executor"],
            "served-model-name": (context.recipe.get("model") or {}).get("served_name"),
        }
        given = planner.merged(context.recipe.get("args") or {}, pool["args"])
        for key, value in given.items():
            name = planner.option_name(key)
            if name in planner.DERIVED_ARGS and not (name in right and str(right[name]) == str(value)):
                wanted = right.get(name)
                yield mistake(
                    "derived-value-typed",
                    f"--{name} of pool {pool['name']} follows from the plan and can't be set to {value!r}",
                    key=context.args_key(pool, name),
                    value=value,
                    allowed=f"left out (the plan has {wanted})" if wanted is not None else "left out",
                    fix=f"remove {key}; change the pool's own keys (nodes, tensor_parallel, data_parallel, port, ...)",
                )
        for place, env in ((f"pools.{pool['name']}.env", pool["env"]), ("env", context.recipe.get("env") or {})):
            for name, value in env.items():
                if name in planner.DERIVED_ENV and value is not None and not _planned(context, pool, name, value):
                    yield mistake(
                        "derived-value-typed",
                        f"{name} follows from the host and can't be set for pool {pool['name']}",
                        key=f"recipe:{place}.{name}",
                        value=value,
                        allowed="left out",
                        fix=f"remove {name}; set node_ip and nic of the hosts in the inventory instead",
                    )
        transfer = {**(context.recipe.get("kv_transfer") or {}), **pool["kv_transfer"]}
        for key in ("kv_connector", "kv_connector_extra_config", "kv_port"):
            if key in transfer:
                instead = {
                    "kv_connector": "connector",
                    "kv_connector_extra_config": "extra",
                    "kv_port": "the pool's kv_port",
                }
                yield mistake(
                    "derived-value-typed",
                    f"{key} is written by the plan",
                    key=f"recipe:pools.{pool['name']}.kv_transfer.{key}"
                    if key in pool["kv_transfer"]
                    else f"recipe:kv_transfer.{key}",
                    value=transfer[key],
                    allowed="left out",
                    fix=f"use {instead[key]} instead",
                )
        extra = transfer.get("extra") or {}
        for side in context.pools:
            typed = extra.get(side["role"])
            if not isinstance(typed, Mapping):
                continue
            sizes = {
                "dp_size": side["data_parallel"],
                "tp_size": side["tensor_parallel"],
                "pp_size": side["pipeline_parallel"],
            }
            for key, size in sizes.items():
                if key in typed and typed[key] != size:
                    yield mistake(
                        "derived-value-typed",
                        f"kv_transfer says {key} {typed[key]} for {side['role']}; pool {side['name']} has {size}",
                        key=f"recipe:kv_transfer.extra.{side['role']}.{key}",
                        value=typed[key],
                        allowed=f"left out, or {size}",
                        fix="remove the sizes: the plan fills them in from the pools",
                    )


def _planned(context: _Context, pool: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether every process of the pool has exactly this value anyway."""
    mine = [one for one in (context.plan or {}).get("processes", []) if one["pool"] == pool["name"]]
    return bool(mine) and all({"name": name, "value": str(value)} in one["env"] for one in mine)


# -- ports -------------------------------------------------------------------------------------------------------------


def _ports_apart(context: _Context) -> Iterator[Mistake]:
    """No two processes of a host listen on the same port; the span of a KV port counts as a whole."""
    if context.plan is None:
        return
    by_host: Dict[str, List[Tuple[int, int, str, Mapping[str, Any]]]] = {}
    for process in context.plan["processes"]:
        for port in process["ports"]:
            by_host.setdefault(process["host"], []).append((port["first"], port["count"], port["name"], process))
    told = set()
    for host, entries in by_host.items():
        pool = next((one for one in context.pools if one["name"] == context.plan["hosts"][host]["pool"]), None)
        listed = list(entries)
        if pool is not None:
            listed.append((*planner.hccl_ports(context.recipe, pool), "HCCL", {}))
        for index, (first, count, name, process) in enumerate(entries):
            for other_first, other_count, other_name, other in listed[index + 1 :]:
                if first + count <= other_first or other_first + other_count <= first:
                    continue
                both = name == other_name == "kv"
                low = max(first, other_first)
                owner = f"{other['name']} ({other_name})" if other else f"HCCL (from {other_first})"
                mark = (process["name"], name, owner)
                if mark in told:
                    continue
                told.add(mark)
                key = _port_key(process, name)
                yield mistake(
                    "kv-ports-overlap" if both else "port-clash",
                    f"{process['name']} ({name}) and {owner} both want port {low} on {host}",
                    key=key,
                    value=first,
                    allowed=f"a port that leaves {other_first}-{other_first + other_count - 1} free"
                    if other_count > 1
                    else f"any port but {other_first}",
                    fix=f"move one of the two: {key.partition(':')[2]}"
                    + (f" or {_port_key(other, other_name).partition(':')[2]}" if other else ""),
                    host=host,
                )


def _port_key(process: Mapping[str, Any], name: str) -> str:
    if process["kind"] == "router":
        return "recipe:router.port"
    return f"recipe:pools.{process['pool']}.{ {'api': 'port', 'dp-rpc': 'rpc_port', 'kv': 'kv_port'}[name] }"


def _kv_clear_of_transport(context: _Context) -> Iterator[Mistake]:
    """Mooncake's direct transport draws its ports at random from a window that depends on its version."""
    if not context.disaggregated or context.engine.get("name") != "vllm-ascend":
        return
    mooncake = engines.mooncake_version("vllm-ascend", context.version)
    key = engines.version_key(mooncake) if mooncake else None
    narrow = key is not None and key >= (engines.version_key("0.3.8rc0") or ())
    for pool in context.pools:
        profile = context.hardware.get(pool["hardware"] or "")
        if profile is None:
            continue
        base = 20000
        first, last = pool["kv_port"], pool["kv_port"] + pool["span"] * pool["instances_per_node"] - 1
        actual = base + profile["devices"] * (100 if narrow else 1000)
        published = base + profile["devices"] * 1000
        if last < base or first > published:
            continue
        inside = first <= actual
        carries = f"Mooncake {mooncake}" if mooncake else "a Mooncake of unknown version"
        yield mistake(
            "kv-port-in-transport-window",
            f"KV ports {first}-{last} of pool {pool['name']} lie in the window from which the transport draws its own"
            if inside
            else f"KV ports {first}-{last} of pool {pool['name']} lie in the window that older transports draw from",
            key=f"recipe:pools.{pool['name']}.kv_port",
            value=first,
            allowed=f"{published + 1} or more (the image carries {carries}, which draws from {base}-{actual})",
            fix=f"set kv_port to {published + 1} or more, outside HCCL's 60000-60031, or waive the rule and say why",
            severity="error" if inside else "warning",
            cause="a drawn port that is taken ends in: ZMQError: Address already in use",
        )


# -- prefill and decode ------------------------------------------------------------------------------------------------


def _sides_agree(context: _Context) -> Iterator[Mistake]:
    split = {pool["role"] for pool in context.pools} & {"prefill", "decode"}
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
    if split and not context.recipe.get("kv_transfer"):
        yield mistake(
            "pd-incomplete",
            "pools with the role prefill or decode need kv_transfer",
            key="recipe:kv_transfer",
            allowed="a connector: " + ", ".join(sorted(engines.CONNECTORS)),
            fix="add kv_transfer: {connector: ...}, or give the pools the role serve",
        )
    if len(split) == 1:
        other = ({"prefill", "decode"} - split).pop()
        yield mistake(
            "pd-incomplete",
            f"there is a {split.pop()} pool and no {other} pool",
            key="recipe:pools",
            value=[pool["name"] for pool in context.pools],
            allowed="at least one pool of each of the two roles",
            fix=f"add a pool with role: {other}",
        )
    for source in context.pools:
        for target in context.pools:
            if source["role"] != "prefill" or target["role"] != "decode":
                continue
            left, right = source["tensor_parallel"], target["tensor_parallel"]
            if left < right or left % right:
                yield mistake(
                    "pd-tensor-parallel-ratio",
                    f"tensor_parallel {left} of {source['name']} is not a multiple of {right} of {target['name']}",
                    key=f"recipe:pools.{target['name']}.tensor_parallel",
                    value=right,
                    allowed=", ".join(str(size) for size in range(1, left + 1) if left % size == 0),
                    fix="make the prefill size a multiple of the decode size",
                    cause="the connectors map every decode rank to a whole number of prefill ranks",
                )
            if target["pipeline_parallel"] > 1:
                yield mistake(
                    "pd-decode-pipeline",
                    f"decode pool {target['name']} has pipeline_parallel {target['pipeline_parallel']}",
                    key=f"recipe:pools.{target['name']}.pipeline_parallel",
                    value=target["pipeline_parallel"],
                    allowed="1",
                    fix="leave pipeline_parallel out of the decode pool",
                )


def _router_fits(context: _Context) -> Iterator[Mistake]:
    router = context.recipe.get("router")
    if not router:
        if context.disaggregated:
            yield mistake(
                "router-missing",
                "prefill and decode need a router in front of them",
                key="recipe:router",
                allowed="router: {kind: " + " or ".join(sorted(engines.ROUTERS)) + "}",
                fix="add a router",
            )
        return
    if context.pools and not context.disaggregated:
        yield mistake(
            "router-without-sides",
            f"a router of kind {router['kind']} stands between prefill and decode, and the pools have neither",
            key="recipe:router.kind",
            value=router["kind"],
            allowed="no router, or pools with the roles prefill and decode and kv_transfer",
            fix="remove router, or give the pools their roles",
        )
    connector = (context.recipe.get("kv_transfer") or {}).get("connector")
    kind = engines.ROUTERS.get(router.get("kind", ""))
    known = engines.CONNECTORS.get(connector or "")
    if kind and known and kind["order"] != known["order"]:
        fitting = [name for name, one in engines.ROUTERS.items() if one["order"] == known["order"]]
        yield mistake(
            "router-matches-connector",
            f"{connector} wants requests {known['order'].replace('-', ' ')}, a router of kind {router['kind']} sends "
            f"them {kind['order'].replace('-', ' ')}",
            key="recipe:router.kind",
            value=router["kind"],
            allowed=", ".join(fitting),
            fix=f"set router.kind to {fitting[0]}, or take another connector",
        )


def _prefix_caching(context: _Context) -> Iterator[Mistake]:
    """vllm-ascend issue 7944: decode nodes misbehave with prefix caching; vLLM has it on by default."""
    if not context.disaggregated or context.engine.get("name") != "vllm-ascend":
        return
    connector = context.recipe["kv_transfer"].get("connector")
    if connector not in engines.CONNECTORS:
        return
    for pool in context.pools:
        value = context.args(pool).get("enable-prefix-caching")
        if value is not False:
            yield mistake(
                "prefix-caching-in-pd",
                f"prefix caching is on in pool {pool['name']}; with {connector} it has to be off",
                key=context.args_key(pool, "enable-prefix-caching"),
                **({} if value is None else {"value": value}),
                allowed="false (the engine's own default is true)",
                fix="set args.enable-prefix-caching: false",
                cause="known limitation of decode nodes, vllm-ascend issue 7944",
            )


def _recompute_scheduler(context: _Context) -> Iterator[Mistake]:
    """Sends a request back to prefill when decode lacks KV cache: it has a meaning between the two only."""
    version = engines.version_key(context.version or "")
    for pool in context.pools:
        config = context.args(pool).get("additional-config")
        if not isinstance(config, Mapping) or config.get("recompute_scheduler_enable") is not True:
            continue
        key = context.args_key(pool, "additional-config") + ".recompute_scheduler_enable"
        if not context.disaggregated:
            yield mistake(
                "recompute-scheduler",
                f"recompute_scheduler_enable is on in pool {pool['name']}, which is not split into prefill and decode",
                key=key,
                value=True,
                allowed="left out",
                fix="remove recompute_scheduler_enable",
            )
        elif pool["role"] == "prefill" and version is not None and version >= (engines.version_key("0.23.0") or ()):
            yield mistake(
                "recompute-scheduler",
                f"recompute_scheduler_enable has no effect on prefill pool {pool['name']} from v0.23.0 on",
                key=key,
                value=True,
                allowed="only in decode pools",
                fix="move recompute_scheduler_enable to the decode pool's additional-config",
                severity="warning",
            )


# -- engine and model --------------------------------------------------------------------------------------------------


def _image_fits(context: _Context) -> Iterator[Mistake]:
    platform = engines.image_platform(str(context.engine.get("image", "")))
    if not platform:
        return
    for pool in context.pools:
        profile = context.hardware.get(pool["hardware"] or "")
        if profile is not None and profile["image_suffix"] != platform:
            wanted = profile["image_suffix"] or "no suffix"
            yield mistake(
                "image-matches-hardware",
                f"the image's tag says {platform}, and pool {pool['name']} runs on {profile['name']} ({wanted})",
                key="recipe:engine.image",
                value=context.engine["image"],
                allowed="a tag without a hardware suffix (the plan adds the right one)",
                fix=f"write the tag without {platform}",
            )
            return


def _engine_new_enough(context: _Context) -> Iterator[Mistake]:
    least = (context.model or {}).get("minimum_engine", {}).get(context.engine.get("name", ""))
    have = engines.version_key(context.version) if context.version else None
    if least and have is not None and have < (engines.version_key(least) or ()):
        yield mistake(
            "model-engine-version",
            f"{context.recipe['model']['id']} needs {context.engine['name']} {least}; the recipe has {context.version}",
            key="recipe:engine.image",
            value=context.engine.get("image"),
            allowed=f"{least} or later",
            fix=f"take an image of {least} or later",
        )


def _quantization_fits(context: _Context) -> Iterator[Mistake]:
    precision = (context.model or {}).get("precision")
    if precision is None or context.engine.get("name") != "vllm-ascend":
        return
    for pool in context.pools:
        given = context.args(pool).get("quantization")
        quantized = precision not in ("bf16", "fp16")
        if quantized and given != "ascend":
            yield mistake(
                "quantization-matches-weights",
                f"the weights are {precision}, and pool {pool['name']} doesn't say so to the engine",
                key=context.args_key(pool, "quantization"),
                **({} if given is None else {"value": given}),
                allowed="ascend",
                fix="set args.quantization: ascend",
            )
        elif not quantized and given is not None:
            yield mistake(
                "quantization-matches-weights",
                f"the weights are {precision}, and pool {pool['name']} asks for quantization {given!r}",
                key=context.args_key(pool, "quantization"),
                value=given,
                allowed="left out",
                fix="remove quantization, or take the quantized model",
            )


def _options_known(context: _Context) -> Iterator[Mistake]:
    if context.options is None:
        return
    known = {name.lstrip("-") for name in context.options}
    places: List[Tuple[str, Mapping[str, Any]]] = [("args", context.recipe.get("args") or {})]
    places += [(f"pools.{pool['name']}.args", pool["args"]) for pool in context.pools]
    for place, args in places:
        for key, value in args.items():
            name = planner.option_name(key)
            plain = name[3:] if name.startswith("no-") and name[3:] in engines.NEGATABLE else name
            if plain in known or name in known:
                continue
            near = closest(plain, known, 1)
            yield mistake(
                "engine-option-unknown",
                f"this engine release has no option --{name}" + (f"; did you mean --{near[0]}?" if near else ""),
                key=f"recipe:{place}.{key}",
                value=value,
                allowed=f"--{near[0]}" if near else "an option of vllm serve (catalog/engine_options/)",
                fix=f"write {near[0]}" if near else "remove it, or take a release that has it",
            )


def _waivers(waived: Mapping[str, str], fired: set[str], complete: bool) -> Iterator[Mistake]:
    known = ALL_RULES
    for name in waived:
        if name not in known:
            near = closest(name, known, 1)
            yield mistake(
                "waive-unknown",
                f"the recipe waives {name!r}, which is not a rule" + (f"; did you mean {near[0]}?" if near else ""),
                key=f"recipe:waive.{name}",
                value=name,
                allowed=", ".join(sorted(known - _NOT_WAIVABLE)),
                fix=f"write {near[0]}" if near else "remove the waiver",
            )
        elif name in _NOT_WAIVABLE:
            yield mistake(
                "waive-impossible",
                f"{name} can't be waived: nothing would start",
                key=f"recipe:waive.{name}",
                value=name,
                allowed=", ".join(sorted(known - _NOT_WAIVABLE)),
                fix="remove the waiver and correct what the rule says",
            )
        elif complete and name not in fired:
            yield mistake(
                "waive-unneeded",
                f"the recipe waives {name}, which it doesn't break",
                key=f"recipe:waive.{name}",
                value=name,
                allowed="only rules that the recipe breaks",
                fix="remove the waiver",
                severity="warning",
            )


#: Every rule, in reading order.
RULES: Tuple[Callable[[_Context], Iterator[Mistake]], ...] = (
    _hosts_unique,
    _layout_sound,
    _hosts_fill_pools,
    _devices_suffice,
    _model_fits,
    _derived_untyped,
    _ports_apart,
    _kv_clear_of_transport,
    _sides_agree,
    _router_fits,
    _prefix_caching,
    _recompute_scheduler,
    _image_fits,
    _engine_new_enough,
    _quantization_fits,
    _options_known,
)

#: The ids that the rules above report.
ALL_RULES = _NOT_WAIVABLE | frozenset(
    (
        "engine-option-unknown",
        "host-spare",
        "image-matches-hardware",
        "kv-port-in-transport-window",
        "model-devices",
        "model-engine-version",
        "pd-decode-pipeline",
        "pd-incomplete",
        "pd-sizes-differ",
        "pd-tensor-parallel-ratio",
        "prefix-caching-in-pd",
        "quantization-matches-weights",
        "recompute-scheduler",
        "router-matches-connector",
        "router-missing",
        "router-without-sides",
    )
)
