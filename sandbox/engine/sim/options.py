"""Command line of `vllm serve`, built from the option table that was read out of the engine's sources."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parents[3] / "catalog/engine_options"
DEFAULT_RELEASE = "0.21.0"
# Options that the simulator reads and some releases lack, with what those releases do.
ABSENT = {
    "data_parallel_external_lb": False,
    "data_parallel_hybrid_lb": False,
    "decode_context_parallel_size": 1,
    "enable_request_id_headers": False,
    "grpc": False,
    "master_addr": "127.0.0.1",
    "master_port": 29501,
    "nnodes": 1,
    "node_rank": 0,
    "prefill_context_parallel_size": 1,
}
BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
JSON_TYPES = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}


def release_of(version: str) -> tuple[int, ...]:
    """Major and minor number of a version, such as (0, 21). ValueError when it has none."""
    match = re.match(r"v?(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"{version!r} is no version: wanted two numbers with a dot, such as 0.21.0")
    return int(match.group(1)), int(match.group(2))


def load_table(version: str = DEFAULT_RELEASE, folder: Path = TABLES) -> dict[str, Any]:
    """The options of a version: the table of the nearest release at or below it, or of the oldest one there is.

    A file that SIM_OPTIONS names comes before all.
    """
    if given := os.environ.get("SIM_OPTIONS"):
        return json.loads(Path(given).read_text(encoding="utf-8"))
    tables = {release_of(path.stem.removeprefix("vllm-")): path for path in folder.glob("vllm-[0-9]*.json")}
    fitting = [known for known in tables if known <= release_of(version)] or [min(tables)]
    return json.loads(tables[max(fitting)].read_text(encoding="utf-8"))


# These two functions carry the engine's own names, since argparse shows them in its messages.
def human_readable_int(text: str) -> int:
    """1k is 1000, 1K is 1024; plain digits are themselves."""
    text = text.strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text)
    if not match:
        return int(text)
    number, suffix = match.groups()
    if suffix in DECIMAL:
        return int(float(number) * DECIMAL[suffix])
    if "." in number:
        raise argparse.ArgumentTypeError(
            f"Decimals are not allowed with binary suffixes like {suffix}. "
            f"Did you mean to use {number}{suffix.lower()} instead?"
        )
    return int(number) * BINARY[suffix]


def human_readable_int_or_auto(text: str) -> int:
    """As `human_readable_int`; -1 and `auto` mean: as long as the model allows."""
    return -1 if text.strip().lower() in ("-1", "auto") else human_readable_int(text)


class ServeParser(argparse.ArgumentParser):
    """Takes underscores for dashes in option names and `--json-option.key value` for JSON, as the engine does."""

    def parse_args(self, args: list[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Exit with status 2 and the usage on anything the engine would not take."""
        return super().parse_args(_merge_dotted(_dashes(args)), namespace)


def _dashes(args: list[str]) -> list[str]:
    """Rewrite underscores in the option name itself, never in a value or behind the first dot."""
    return [
        re.sub(r"^--[^.=]*", lambda m: m.group(0).replace("_", "-"), arg) if arg.startswith("--") else arg
        for arg in args
    ]


def _merge_dotted(args: list[str]) -> list[str]:
    """Collect `--name.a.b value` into one JSON value behind `--name`."""
    kept: list[str] = []
    nested: dict[str, dict[str, Any]] = {}
    pending = iter(args)
    for arg in pending:
        name, equals, value = arg.partition("=")
        if not (name.startswith("-") and "." in name and not re.fullmatch(r"-[\d.]+", name)):
            kept.append(arg)
            continue
        text = value if equals else next(pending, "")
        option, *path = name.removesuffix("+").split(".")
        try:
            leaf: Any = text.split(",") if name.endswith("+") else json.loads(text)
        except json.JSONDecodeError:
            leaf = text
        target = nested.setdefault(option, {})
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = leaf
    for option, value in nested.items():
        kept += [option, json.dumps(value)]
    return kept


def _config_reader(name: str, fields: dict[str, Any]) -> Any:
    """A type function that refuses JSON which the configuration class would refuse."""

    def read(text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(f"1 validation error for {name}\n  Invalid JSON: {error}") from error
        if not isinstance(value, dict):
            raise argparse.ArgumentTypeError(f"1 validation error for {name}\n  Input should be an object")
        problems = wrong_fields(value, fields)
        if name == "KVTransferConfig" and value.get("kv_connector") and value.get("kv_role") is None:
            problems.append(
                "  Value error, Please specify kv_role when kv_connector is set, "
                "supported roles are ('kv_producer', 'kv_both', 'kv_consumer')"
            )
        if problems:
            raise argparse.ArgumentTypeError(validation_error(name, problems))
        return value

    return read


def wrong_fields(value: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """What a configuration class says of each key or value that it does not take."""
    return [problem for key, given in value.items() if (problem := _field_problem(key, given, fields))]


def validation_error(name: str, problems: list[str]) -> str:
    """The message of a configuration class that refuses what it was given."""
    return "\n".join([f"{len(problems)} validation error{'s' * (len(problems) > 1)} for {name}", *problems])


def _field_problem(key: str, given: Any, fields: dict[str, Any]) -> str | None:
    if key not in fields:
        return f"{key}\n  Unexpected keyword argument [type=unexpected_keyword_argument, input_value={given!r}]"
    rule = fields[key]
    if "choices" in rule and given not in rule["choices"]:
        listed = ", ".join(repr(choice) for choice in rule["choices"] if choice is not None)
        return f"{key}\n  Input should be {listed} [type=literal_error, input_value={given!r}]"
    if "members" in rule and not (isinstance(given, str) and given.upper() in rule["members"]):
        return f"{key}\n  Value error, Invalid {key}: {given!r}. Valid options: {', '.join(rule['members'])}"
    if "types" in rule and not _has_type(given, rule["types"]):
        return f"{key}\n  Input should be a valid {' or '.join(rule['types'])} [input_value={given!r}]"
    return None


def _has_type(given: Any, types: list[str]) -> bool:
    """JSON typing with the engine's leniency: digits in a string are a number, true is no number."""
    for name in types:
        if name in ("integer", "number") and isinstance(given, bool):
            continue
        if isinstance(given, JSON_TYPES[name]):
            return True
        if name == "integer" and isinstance(given, str) and re.fullmatch(r"[+-]?\d+", given.strip()):
            return True
        if name == "number" and isinstance(given, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", given.strip()):
            return True
    return False


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"Value {text} cannot be converted to <function loads>.") from error


def _json_or_string(text: str) -> Any:
    """Text in braces has to be JSON, anything else is passed on as it is."""
    return _json(text) if re.fullmatch(r"(?s)\s*{.*}\s*", text) else text


def _optional(read: Any) -> Any:
    def reader(text: str) -> Any:
        if text in ("", "None"):
            return None
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"Value {text} cannot be converted to {read}.") from error

    return reader


def _reader(option: dict[str, Any], configs: dict[str, Any]) -> Any:
    if option["kind"] == "config":
        read = _config_reader(option["config"], configs[option["config"]])
    else:
        read = {
            "string": str,
            "integer": int,
            "number": float,
            "human-integer": human_readable_int,
            "human-integer-or-auto": human_readable_int_or_auto,
            "json": _json,
            "json-or-string": _json_or_string,
        }[option["kind"]]
    return _optional(read) if option.get("optional") else read


def make_parser(table: dict[str, Any], version: str) -> ServeParser:
    """The parser of the `vllm` command with its `serve` subcommand."""
    parser = ServeParser(prog="vllm", description="vLLM CLI (simulated engine of the Ascent sandbox)")
    parser.add_argument("-v", "--version", action="version", version=version)
    commands = parser.add_subparsers(dest="subparser", metavar="{serve}")
    serve = commands.add_parser("serve", usage="vllm serve [model_tag] [options]")
    serve.add_argument("model_tag", nargs="?")
    for option in table["options"]:
        names = [*option["aliases"], option["name"]]
        dest = option["name"].lstrip("-").replace("-", "_")
        if option["kind"] == "flag":
            serve.add_argument(*names, dest=dest, action="store_true")
        elif option["kind"] == "boolean":
            serve.add_argument(*names, dest=dest, action=argparse.BooleanOptionalAction, default=option["default"])
        else:
            extra = {key: option[key] for key in ("nargs", "const", "choices") if key in option} | {"dest": dest}
            if "choices" in extra and option.get("optional"):
                extra["choices"] = [None if choice == "None" else choice for choice in extra["choices"]]
            if option.get("append"):
                extra["action"] = "append"
            serve.add_argument(*names, type=_reader(option, table["configs"]), default=option["default"], **extra)
    known = {option["name"].lstrip("-").replace("-", "_") for option in table["options"]}
    serve.set_defaults(**{name: value for name, value in ABSENT.items() if name not in known})
    return parser


def deprecated(table: dict[str, Any], args: list[str]) -> list[str]:
    """Names among the arguments that the release takes for the last time, as they are given."""
    old = {
        name
        for option in table["options"]
        if option.get("deprecated")
        for name in (option["name"], *option["aliases"], "--no-" + option["name"][2:])
    }
    return [name for name in dict.fromkeys(arg.partition("=")[0] for arg in _dashes(args)) if name in old]
