"""What a rule is, and what a predicate gets to see.

A rule is data: id, what it asks for, why, where that is documented. A check is one predicate with the rules it reports:
``@check(RULE, ...)`` over a function of a `Context` that yields mistakes.
"""

from __future__ import annotations

__all__ = ["Check", "Context", "LiveRule", "Measurement", "Mistake", "Rule", "Variant", "check"]

import json
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .. import engines, layout
from ..quantities import whole_number
from ..spelling import merged, option_name

Mistake = Dict[str, Any]

#: Connectors of vLLM-Ascend that hand KV cache from a prefill to a decode worker directly (kv_transfer/__init__).
ASCEND_DIRECT = frozenset(
    ("MooncakeConnector", "MooncakeConnectorV1", "MooncakeHybridConnector", "MooncakeLayerwiseConnector")
)
#: Connectors that keep KV cache in a store which all engines reach.
STORES = frozenset(("AscendStoreConnector", "MooncakeConnectorStoreV1", "MooncakeStoreConnector"))


class Rule(NamedTuple):
    """``severity`` is the worst it reports; ``rows`` are rows of the seeds' acceptance list that it decides."""

    id: str
    severity: str
    demand: str
    reason: str
    source: str
    rows: Tuple[str, ...] = ()
    scope: str = "all"
    waivable: bool = True


class LiveRule(NamedTuple):
    """A condition that no file can tell: ``stage`` is the one that asks the hosts."""

    demand: str
    stage: str
    source: str
    rows: Tuple[str, ...] = ()


class Check(NamedTuple):
    """A predicate and the rules that it reports."""

    rules: Tuple[Rule, ...]
    run: Callable[[Context], Iterator[Mistake]]


def check(*rules: Rule) -> Callable[[Callable[[Context], Iterator[Mistake]]], Check]:
    """Decorator: the function decides these rules."""

    def declare(function: Callable[[Context], Iterator[Mistake]]) -> Check:
        return Check(rules, function)

    return declare


class Variant(NamedTuple):
    """One set of options and variables that processes of a pool run with: the pool's own, or one of its overrides.

    ``args`` has plain option names (no dashes in front, ``--no-x`` as x = false); ``places`` are the key paths at which
    they may have been written, nearest first, each with what was written there.
    """

    pool: Mapping[str, Any]
    args: Dict[str, Any]
    env: Dict[str, str]
    transfer: Dict[str, Any]
    places: Tuple[Tuple[str, Mapping[str, Any]], ...]

    @property
    def name(self) -> str:
        return str(self.pool["name"])

    def size(self, key: str) -> int:
        return int(self.pool.get(key) or 1)

    def number(self, option: str) -> Optional[int]:
        return whole_number(self.args.get(option))

    def config(self, option: str) -> Mapping[str, Any]:
        """A JSON option as a mapping; empty if it isn't set or isn't one."""
        value = self.args.get(option)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return {}
        return value if isinstance(value, Mapping) else {}

    def key(self, option: str) -> str:
        """The key path at which the option was written; the recipe's ``args`` if it was not."""
        for place, given in self.places:
            for written in given.get("args") or {}:
                if option_name(str(written)) in (option, "no-" + option):
                    return f"recipe:{place}args.{written}"
        return "recipe:args"

    def env_key(self, name: str) -> str:
        for place, given in self.places:
            if name in (given.get("env") or {}):
                return f"recipe:{place}env.{name}"
        return f"recipe:env.{name}"

    @property
    def connectors(self) -> List[Mapping[str, Any]]:
        """The connectors of the KV configuration, those inside a MultiConnector one by one."""
        if not self.transfer.get("connector"):
            return []
        inner = self.transfer.get("connectors")
        return [self.transfer] if not inner else [one for one in inner if isinstance(one, Mapping)]

    @property
    def connector_names(self) -> List[str]:
        return [str(one.get("connector")) for one in self.connectors]

    # -- switches of vLLM-Ascend, which moved from variables to additional-config --------------------------------------

    def switch(self, key: str, variable: str) -> Optional[Tuple[str, int]]:
        """Key path and value of a switch; additional-config wins over the variable, as in the engine."""
        config = self.config("additional-config")
        value = config.get(key)
        place = f"{self.key('additional-config')}.{key}"
        if value is None:
            if variable not in self.env:
                return None
            value, place = self.env[variable], self.env_key(variable)
        if str(value).lower() in ("true", "false"):
            return place, int(str(value).lower() == "true")
        number = whole_number(value)
        return None if number is None else (place, number)

    @property
    def flashcomm1(self) -> Optional[str]:
        """Key path of the switch that turns FlashComm1 on, if one does."""
        found = self.switch("enable_flashcomm1", "VLLM_ASCEND_ENABLE_FLASHCOMM1")
        return found[0] if found and found[1] else None

    @property
    def fused_mc2(self) -> Optional[Tuple[str, int]]:
        """Key path and value of fused MC2 where it is on."""
        found = self.switch("enable_fused_mc2", "VLLM_ASCEND_ENABLE_FUSED_MC2")
        return found if found and found[1] else None

    @property
    def speculative_tokens(self) -> int:
        return whole_number(self.config("speculative-config").get("num_speculative_tokens")) or 0

    @property
    def graph_mode(self) -> Optional[str]:
        mode = self.config("compilation-config").get("cudagraph_mode")
        return None if mode is None else str(mode)

    @property
    def capture_sizes(self) -> Optional[List[int]]:
        sizes = self.config("compilation-config").get(
            "cudagraph_capture_sizes", self.args.get("cudagraph-capture-sizes")
        )
        if not isinstance(sizes, (list, tuple)):
            return None
        return [number for number in map(whole_number, sizes) if number]

    @property
    def capture_key(self) -> str:
        if "cudagraph-capture-sizes" in self.args:
            return self.key("cudagraph-capture-sizes")
        return self.key("compilation-config") + ".cudagraph_capture_sizes"


class Measurement(NamedTuple):
    """One benchmark that the recipe asks for; what it doesn't say is None."""

    key: str
    concurrency: Optional[int]
    input_tokens: Optional[int]
    output_tokens: Optional[int]
    dataset: Optional[str]
    model: Optional[str]
    shares_prefixes: bool
    #: Whether published figures are compared with it.
    compared: bool = False

    @property
    def name(self) -> str:
        """The key path without its file."""
        return self.key.partition(":")[2]


class Context(NamedTuple):
    """The inputs of all predicates."""

    recipe: Mapping[str, Any]
    hardware: Mapping[str, Mapping[str, Any]]
    hosts: Sequence[Mapping[str, Any]]
    pools: List[Dict[str, Any]]
    placement: layout.Placement
    plan: Optional[Mapping[str, Any]]
    model: Optional[Mapping[str, Any]]
    options: Optional[Mapping[str, Any]]
    variants: List[Variant]

    @classmethod
    def of(
        cls,
        recipe: Mapping[str, Any],
        hardware: Mapping[str, Mapping[str, Any]],
        hosts: Sequence[Mapping[str, Any]],
        plan: Optional[Mapping[str, Any]],
        model: Optional[Mapping[str, Any]],
        options: Optional[Mapping[str, Any]],
    ) -> Context:
        pools = layout.pools_of(recipe)
        variants = [variant for pool in pools for variant in _variants(recipe, pool)]
        return cls(recipe, hardware, hosts, pools, layout.place(pools, hosts), plan, model, options, variants)

    @property
    def engine(self) -> Mapping[str, Any]:
        engine: Mapping[str, Any] = self.recipe.get("engine") or {}
        return engine

    @property
    def engine_name(self) -> str:
        return str(self.engine.get("name", ""))

    @property
    def ascend(self) -> bool:
        return self.engine_name == "vllm-ascend"

    @property
    def version(self) -> Optional[str]:
        """The engine's version: as the recipe says, else as image or package do."""
        return engines.release_of(self.engine)

    def at_least(self, version: str) -> Optional[bool]:
        """Whether the engine is this version or later; None if its version isn't known."""
        have = engines.version_key(self.version) if self.version else None
        return None if have is None else have >= (engines.version_key(version) or ())

    def vllm_at_least(self, version: str) -> Optional[bool]:
        """The same of the vLLM inside: vLLM-Ascend carries the one of its own number, Dynamo numbers differently."""
        return self.at_least(version + ("rc0" if self.ascend else "")) if self.engine_name != "dynamo" else None

    @property
    def split(self) -> bool:
        """Whether pools are prefill and decode."""
        return any(pool["role"] in ("prefill", "decode") for pool in self.pools)

    @property
    def disaggregated(self) -> bool:
        return bool(self.recipe.get("kv_transfer")) and self.split

    @property
    def direct(self) -> bool:
        """Whether KV cache goes from prefill to decode through one of vLLM-Ascend's own connectors."""
        return self.ascend and self.split and any(ASCEND_DIRECT & set(one.connector_names) for one in self.variants)

    @property
    def stored(self) -> bool:
        """Whether engines share a KV cache store."""
        return bool(self.recipe.get("kv_store")) or any(STORES & set(one.connector_names) for one in self.variants)

    @property
    def routed_by_cache(self) -> bool:
        """Whether the router looks up block hashes that engines publish."""
        return str((self.recipe.get("router") or {}).get("policy", "")) == "kv-aware"

    def profiles(self, pool: Mapping[str, Any]) -> List[Mapping[str, Any]]:
        """Hardware that the pool runs on: what its hosts say of themselves, else what the recipe says."""
        here = set(self.placement.hosts.get(pool["name"], ()))
        kinds = [host.get("hardware") or pool["hardware"] for host in self.hosts if host["name"] in here]
        names = dict.fromkeys(kinds or [pool["hardware"]])
        return [self.hardware[name] for name in names if name in self.hardware]

    @property
    def model_id(self) -> str:
        return str((self.recipe.get("model") or {}).get("id", ""))

    @property
    def served_name(self) -> str:
        return str((self.recipe.get("model") or {}).get("served_name") or self.model_id)

    @property
    def figures(self) -> Mapping[str, Any]:
        figures: Mapping[str, Any] = (self.model or {}).get("figures") or {}
        return figures

    @property
    def hybrid(self) -> bool:
        return (self.model or {}).get("attention") == "hybrid"

    @property
    def measurements(self) -> List[Measurement]:
        """Every benchmark of the recipe: ``checks.smoke_bench`` and jobs of client tools."""
        found = []
        smoke = (self.recipe.get("checks") or {}).get("smoke_bench")
        if isinstance(smoke, Mapping):
            found.append(_measurement("recipe:checks.smoke_bench", smoke))
        compared = {row.get("job") for row in (self.recipe.get("reference") or {}).values() if isinstance(row, Mapping)}
        for name, job in (self.recipe.get("jobs") or {}).items():
            if job.get("tool") in ("vllm-bench", "aiperf"):
                one = _measurement(f"recipe:jobs.{name}.args", job.get("args") or {})
                found.append(one._replace(compared=name in compared))
        return found

    def env_of(self, pool: str) -> Dict[str, str]:
        """Variables that processes of a pool are planned with, derived ones too; the recipe's own without a plan."""
        for process in (self.plan or {}).get("processes", []):
            if process.get("pool") == pool and process.get("devices"):
                return {one["name"]: str(one["value"]) for one in process["env"] if "value" in one}
        return next((one.env for one in self.variants if one.name == pool), {})


def _variants(recipe: Mapping[str, Any], pool: Mapping[str, Any]) -> Iterator[Variant]:
    """The pool's own options, then one set for each override that changes any."""
    common: List[Tuple[str, Mapping[str, Any]]] = [(f"pools.{pool['name']}.", pool), ("", recipe)]
    changed: List[List[Tuple[str, Mapping[str, Any]]]] = [[]]
    for index, override in enumerate(pool.get("overrides") or []):
        if any(override.get(key) for key in ("args", "env", "kv_transfer")):
            changed.append([(f"pools.{pool['name']}.overrides.{index}.", override)])
    for own in changed:
        places = own + common
        args: Dict[str, Any] = {}
        env: Dict[str, Any] = {}
        transfer: Dict[str, Any] = {}
        for _, given in reversed(places):
            args = merged(args, given.get("args") or {})
            env.update(given.get("env") or {})
            transfer.update(given.get("kv_transfer") or {})
        yield Variant(
            pool,
            dict(_plain(key, value) for key, value in args.items()),
            {name: str(value) for name, value in env.items() if value is not None},
            transfer,
            tuple(places),
        )


def _plain(key: str, value: Any) -> Tuple[str, Any]:
    name = option_name(key)
    if name.startswith("no-") and name[3:] in engines.NEGATABLE:
        return name[3:], value is False
    return name, value


#: How the clients spell what a benchmark asks for: vllm bench, AIPerf and the recipe's own keys.
_SPELLINGS = {
    "concurrency": ("concurrency", "max-concurrency"),
    "input_tokens": ("input-tokens", "random-input-len", "random-input", "synthetic-input-tokens-mean", "isl"),
    "output_tokens": ("output-tokens", "random-output-len", "random-output", "output-tokens-mean", "osl"),
}
_PREFIXES = ("random-prefix-len", "shared-system-prompt-length", "prefix-prompt-length", "num-prefix-prompts")


def _measurement(key: str, given: Mapping[str, Any]) -> Measurement:
    plain = {str(name).lstrip("-").replace("_", "-"): value for name, value in given.items()}

    def first(kind: str) -> Optional[int]:
        return next((whole_number(plain[name]) for name in _SPELLINGS[kind] if name in plain), None)

    dataset = plain.get("dataset-name", plain.get("dataset"))
    # Benchmarks of vLLM take the weights with --model and the name in requests with --served-model-name.
    model = plain.get("served-model-name", plain.get("model"))
    return Measurement(
        key,
        first("concurrency"),
        first("input_tokens"),
        first("output_tokens"),
        None if dataset is None else str(dataset),
        None if model is None else str(model),
        any(whole_number(plain.get(name)) for name in _PREFIXES),
    )
