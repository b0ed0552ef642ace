"""Options of the engine: names, values and JSON keys, held against the tables of real releases."""

from __future__ import annotations

__all__ = ["CHECKS"]

import json
import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from .. import engines, references
from ..mistakes import closest, mistake
from ..spelling import option_name
from .registry import Context, Mistake, Rule, check

_TABLE = "catalog/engine_options, read from the engine's own parser"
_SCOPE = "releases with an option table; a warning where the nearest table is of an older release"

_INTEGER = re.compile(r"[+-]?\d+\Z")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?\Z", re.IGNORECASE)
_HUMAN = re.compile(r"\d+(\.\d+)?[kmgt]\Z|\d+[kKmMgGtT]?\Z")

#: What a value of each kind looks like, in words.
_WORDS = {
    "flag": "true or false",
    "boolean": "true or false",
    "string": "one text",
    "integer": "a whole number",
    "number": "a number",
    "human-integer": "a whole number, also as 32k (thousands) or 32K (1024s)",
    "human-integer-or-auto": "a whole number, also as 32k (thousands) or 32K (1024s), or auto",
    "json": "a mapping or a list",
    "json-or-string": "a mapping, or one text",
    "config": "a mapping",
}

#: Where the plan writes a configuration itself: keys of the recipe's section that aren't the engine's.
_OWN_KEYS = {
    "kv_transfer": frozenset(("connector", "connectors", "extra")),
    "kv_events": frozenset(()),
}
#: Keys of those sections that the plan fills in; `derived-value-typed` refuses them.
_FILLED_IN = frozenset(("kv_connector", "kv_connector_extra_config", "kv_port"))


class _Place(NamedTuple):
    """Where options are given: a key path below the recipe, and what stands there."""

    path: str
    given: Mapping[str, Any]


def _places(context: Context, section: str) -> List[_Place]:
    """The recipe's section of that name, those of its pools and of their overrides."""
    found: List[Tuple[str, Any]] = [(section, context.recipe.get(section))]
    for name, pool in (context.recipe.get("pools") or {}).items():
        found.append((f"pools.{name}.{section}", (pool or {}).get(section)))
        for index, override in enumerate((pool or {}).get("overrides") or []):
            found.append((f"pools.{name}.overrides.{index}.{section}", (override or {}).get(section)))
    return [_Place(path, given) for path, given in found if isinstance(given, Mapping)]


class _Table:
    """One option table, by plain option names."""

    def __init__(self, context: Context) -> None:
        table: Mapping[str, Any] = context.options or {}
        self.version = str(table.get("version") or "")
        self.ascend = context.ascend
        self.options: Dict[str, Mapping[str, Any]] = {}
        self.short: Dict[str, str] = {}
        for option in table.get("options") or []:
            name = str(option["name"]).lstrip("-")
            self.options[name] = option
            for alias in option.get("aliases") or []:
                if alias.startswith("--"):
                    self.options[alias.lstrip("-")] = option
                else:
                    self.short[alias.lstrip("-")] = name
        self.configs: Mapping[str, Mapping[str, Any]] = table.get("configs") or {}
        self.quantizations: Sequence[str] = table.get("quantizations") or []
        mine = engines.version_key(str(context.version or ""))
        #: Whether the table is of the very release; options of an older one may have been added to since.
        self.exact = mine is not None and mine[:2] == (engines.version_key(self.version) or ())[:2]

    @property
    def severity(self) -> str:
        return "error" if self.exact else "warning"

    @property
    def release(self) -> str:
        """How to call the table in a sentence."""
        return "this engine release" if self.exact else f"vLLM {self.version}, the nearest release that is known,"

    def plain(self, key: str) -> str:
        """An option's name without dashes in front and without a ``no-`` that is only its negative form."""
        name = option_name(key)
        positive = name[3:]
        negated = name.startswith("no-") and name not in self.options
        return (
            positive if negated and (self.options.get(positive) or {"kind": "boolean"})["kind"] == "boolean" else name
        )

    def choices(self, option: Mapping[str, Any]) -> Optional[List[Any]]:
        if option.get("choices"):
            return list(option["choices"])
        if option["name"] == "--quantization" and self.quantizations:
            return [*self.quantizations, *(["ascend"] if self.ascend else [])]
        return None


@check(
    Rule(
        "engine-option-unknown",
        "error",
        "every option exists in the engine's release",
        "the engine ends at start: unrecognized arguments",
        _TABLE,
        scope=_SCOPE,
    ),
    Rule(
        "engine-option-value",
        "error",
        "the value of an option, and of a key inside a JSON option, has the type and is one of the choices that the "
        "release takes",
        "the engine ends at start: invalid choice, or a validation error of its configuration",
        _TABLE,
        rows=("P-CG3",),
        scope=_SCOPE,
    ),
    Rule(
        "engine-option-key",
        "error",
        "every key inside a JSON option is one that the release's configuration class has",
        "the engine ends at start: unexpected keyword argument",
        _TABLE,
        rows=("C34", "C36"),
        scope=_SCOPE + "; compilation, speculative, KV transfer, KV events and all other closed configurations",
    ),
)
def options_fit(context: Context) -> Iterator[Mistake]:
    table = _Table(context)
    if not table.options:
        return
    for place in _places(context, "args"):
        for key, value in place.given.items():
            name = table.plain(str(key))
            option = table.options.get(name)
            path = f"recipe:{place.path}.{key}"
            if value is None:
                continue
            if option is None:
                yield _unknown(table, name, path, value)
            else:
                yield from _misfits(table, option, path, value)
    for section, config in (("kv_transfer", "KVTransferConfig"), ("kv_events", "KVEventsConfig")):
        for place in _places(context, section):
            yield from _section(table, section, config, place)


def _section(table: _Table, section: str, config: str, place: _Place) -> Iterator[Mistake]:
    own = _OWN_KEYS[section] | _FILLED_IN
    parts: List[Tuple[str, Mapping[str, Any]]] = [(place.path, place.given)]
    inner = place.given.get("connectors")
    for index, one in enumerate(inner if isinstance(inner, list) else []):
        if isinstance(one, Mapping):
            parts.append((f"{place.path}.connectors.{index}", one))
    for path, given in parts:
        kept = {key: value for key, value in given.items() if key not in own}
        yield from _fields(table, config, f"recipe:{path}", kept, section)


def _unknown(table: _Table, name: str, path: str, value: Any) -> Mistake:
    near = [table.short[name]] if name in table.short else closest(name, table.options, 1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    return mistake(
        "engine-option-unknown",
        f"{table.release} has no option --{name}{hint}",
        key=path,
        value=value,
        allowed=f"--{near[0]}" if near else "an option of vllm serve (catalog/engine_options/)",
        fix=f"write {near[0]}" if near else "remove it, or take a release that has it",
        severity=table.severity,
    )


def _misfits(table: _Table, option: Mapping[str, Any], path: str, value: Any) -> Iterator[Mistake]:
    """What is wrong with the value of a known option."""
    if references.names(value):
        return
    name = str(option["name"])
    allowed = _allowed(table, option, value)
    if allowed:
        yield _wrong_value(table, name, path, value, allowed)
        return
    config = option.get("config")
    # An optional one takes these two words for nothing.
    if config in table.configs and value not in ("", "None"):
        given = json.loads(value) if isinstance(value, str) else value
        if isinstance(given, Mapping):
            yield from _fields(table, str(config), path, given, name)


def _wrong_value(table: _Table, name: str, path: str, value: Any, allowed: str) -> Mistake:
    near = closest(str(value), allowed.split(", "), 1) if ", " in allowed and isinstance(value, str) else []
    return mistake(
        "engine-option-value",
        f"{name} can't be {json.dumps(value, ensure_ascii=False, default=str)}"
        + (f"; did you mean {near[0]}?" if near else ""),
        key=path,
        value=value,
        allowed=allowed,
        fix=f"write {near[0]}" if near else f"write {allowed}" if len(allowed) < 60 else "take one of these",
        severity=table.severity,
    )


def _allowed(table: _Table, option: Mapping[str, Any], value: Any) -> str:
    """What the option takes, if the value is none of it; empty if it is."""
    kind, count = str(option["kind"]), option.get("nargs")
    choices = table.choices(option)
    words = ", ".join(str(choice) for choice in choices) if choices else _WORDS[kind]
    if kind in ("flag", "boolean"):
        return "" if isinstance(value, bool) else words
    if count == "?" and isinstance(value, bool):
        return ""
    if count in ("+", "*") or isinstance(count, int):
        several = value if isinstance(value, list) else [value]
        wrong = (not several and count != "*") or (isinstance(count, int) and len(several) != count)
        how_many = {"+": "one or more", "*": "any number"}.get(str(count), f"exactly {count}")
        if wrong or not all(_one_fits(option, kind, choices, one) for one in several):
            return f"a list of {how_many} of: {words}" if choices else f"a list, {how_many}: {words} each"
        return ""
    return "" if _one_fits(option, kind, choices, value) else words


def _one_fits(option: Mapping[str, Any], kind: str, choices: Optional[List[Any]], value: Any) -> bool:
    if option.get("optional") and value in ("", "None"):
        return True
    if choices is not None:
        return not isinstance(value, (bool, list, dict)) and str(value) in [str(choice) for choice in choices]
    text = isinstance(value, str)
    plain = text or (isinstance(value, (int, float)) and not isinstance(value, bool))
    if kind == "string":
        return plain
    if kind == "integer":
        return plain and bool(_INTEGER.match(str(value).strip()))
    if kind == "number":
        return plain and bool(_NUMBER.match(str(value).strip()))
    if kind in ("human-integer", "human-integer-or-auto"):
        word = str(value).strip()
        return plain and (bool(_HUMAN.match(word)) or (kind.endswith("auto") and word.lower() in ("auto", "-1")))
    parsed = _parsed(value) if text else value
    if kind == "json":
        return isinstance(parsed, (Mapping, list)) or (text and parsed is not None)
    if kind == "json-or-string":
        return isinstance(parsed, Mapping) or (text and not re.match(r"(?s)\s*{.*}\s*\Z", value))
    return isinstance(parsed, Mapping)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _fields(table: _Table, config: str, path: str, given: Mapping[str, Any], owner: str) -> Iterator[Mistake]:
    """Keys and values of one configuration class."""
    fields = table.configs.get(config)
    if not fields:
        return
    for key, value in given.items():
        # Names with an underscore in front are fields that the engine fills in by itself.
        known = [name for name in fields if not name.startswith("_")]
        if key not in known:
            near = closest(str(key), known, 1)
            yield mistake(
                "engine-option-key",
                f"{owner} of {table.release} has no key {key}" + (f"; did you mean {near[0]}?" if near else ""),
                key=f"{path}.{key}",
                value=value,
                allowed=near[0] if near else ", ".join(sorted(known)),
                fix=f"write {near[0]}" if near else "remove it, or take a release that has it",
                severity=table.severity,
            )
        # A graph mode is judged by `graph-mode`, which knows which of them NPUs have.
        elif key != "cudagraph_mode" and not references.names(value):
            allowed = _field_allowed(fields[key], value)
            if allowed:
                yield _wrong_value(table, f"{key} of {owner}", f"{path}.{key}", value, allowed)


def _field_allowed(field: Mapping[str, Any], value: Any) -> str:
    """What a field takes, if the value is none of it; as lenient as the engine's own validation."""
    if "choices" in field:
        named = [choice for choice in field["choices"] if choice is not None]
        return "" if value in field["choices"] and not isinstance(value, bool) else ", ".join(map(str, named))
    if "members" in field:
        numbered = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(field["members"])
        fits = numbered or (isinstance(value, str) and value.upper() in field["members"])
        return "" if fits else ", ".join(field["members"])
    types = field.get("types")
    return "" if types is None or any(_is(value, name) for name in types) else " or ".join(types)


def _is(value: Any, name: str) -> bool:
    if name == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, str) and bool(_INTEGER.match(value.strip())))
    if name == "number":
        return isinstance(value, (int, float)) or (isinstance(value, str) and bool(_NUMBER.match(value.strip())))
    kinds: Dict[str, Any] = {"string": str, "object": Mapping, "array": list, "null": type(None)}
    return isinstance(value, kinds[name])


#: How much a key looks like a known one, from 0 to 1, to be meant for it.
_ALIKE = 0.85

#: What a switch is called where a release doesn't read it from additional-config.
_VARIABLES = {
    "enable_balance_scheduling": "VLLM_ASCEND_BALANCE_SCHEDULING",
    "enable_flashcomm1": "VLLM_ASCEND_ENABLE_FLASHCOMM1",
    "enable_fused_mc2": "VLLM_ASCEND_ENABLE_FUSED_MC2",
    "enable_mlapo": "VLLM_ASCEND_ENABLE_MLAPO",
    "weight_nz_mode": "VLLM_ASCEND_ENABLE_NZ",
}


@check(
    Rule(
        "additional-config-key",
        "error",
        "every key of additional-config is one that the release of vLLM-Ascend reads",
        "the plugin takes any key and reads those it knows: what another one is meant to do doesn't happen",
        "catalog/engine_options/vllm-ascend.json, read from the releases' sources and configuration guides",
        rows=("C35", "C38", "B17"),
        scope="vllm-ascend; an error where the key is a misspelt one, a warning where only other releases read it, or "
        "none that is known",
    ),
)
def additional_config_known(context: Context) -> Iterator[Mistake]:
    known: Mapping[str, Any] = (context.options or {}).get("additional_config") or {}
    if not context.ascend or not known:
        return
    told: Set[str] = set()
    for variant in context.variants:
        place = variant.key("additional-config")
        for key, value in variant.config("additional-config").items():
            path = f"{place}.{key}"
            item = _key_mistake(known, context, str(key), path, value)
            if item is None and isinstance(value, Mapping):
                section = known["sections"].get(key) or []
                items = [_near_mistake(str(one), section, f"{path}.{one}", value[one]) for one in value]
            else:
                items = [item]
            for one in items:
                if one is not None and one["key"] not in told:
                    told.add(one["key"])
                    yield one


def _key_mistake(known: Mapping[str, Any], context: Context, key: str, path: str, value: Any) -> Optional[Mistake]:
    readers = [release for release, keys in known["releases"].items() if key in keys]
    if key in known["keys"]:
        return None
    release = f"vllm-ascend {context.version}" if context.version else "vllm-ascend"
    if readers:
        span = readers[0] if len(readers) == 1 else f"{readers[0]} to {readers[-1]}"
        variable = _VARIABLES.get(key)
        return mistake(
            "additional-config-key",
            f"{release} doesn't read {key} from additional-config; releases {span} do",
            key=path,
            value=value,
            allowed=f"{variable} in env" if variable else "left out",
            fix=f"set env.{variable} instead" if variable else "remove it, or take one of those releases",
            severity="warning",
        )
    misspelt = _near_mistake(key, list(known["keys"]), path, value)
    if misspelt is not None:
        return {**misspelt, "severity": "error" if known["exact"] else "warning"}
    return mistake(
        "additional-config-key",
        f"no release that is known reads {key} from additional-config",
        key=path,
        value=value,
        allowed=", ".join(sorted(known["keys"])),
        fix="remove it, or waive the rule if the image reads it",
        severity="warning",
    )


def _near_mistake(key: str, known: Sequence[str], path: str, value: Any) -> Optional[Mistake]:
    near = [] if key in known else closest(key, known, 1, _ALIKE)
    if not near:
        return None
    return mistake(
        "additional-config-key",
        f"{key} is not read; {near[0]} is",
        key=path,
        value=value,
        allowed=near[0],
        fix=f"write {near[0]}",
    )


CHECKS = (options_fit, additional_config_known)
