#!/usr/bin/env python3
"""Read the options of `vllm serve` out of a vLLM source tree, without running any of it.

    python catalog/engine_options/generate.py TREE VERSION ORIGIN > catalog/engine_options/vllm-0.21.json

TREE is a folder that holds `vllm/` (an unpacked source archive or wheel), VERSION the release it is, ORIGIN one
phrase that says where the tree came from. The engine builds its parser at run time from type hints of its
configuration classes; this script follows the same rules on the syntax tree, so nothing needs to be installed.

The result holds, for each option: `name`, `aliases`, `group`, `kind`, `optional` (the texts "None" and "" mean
null), `nargs`, `const`, `choices`, `default`, and for `kind: config` the name of its configuration class (also for
`kind: json` where the engine makes that class of it later).
`configs` holds the fields of those classes, as far as a JSON value can be checked against them: accepted JSON `types`,
`choices` where all values are listed, or `members` of an enumeration (in either case of letters).
Kinds: flag, boolean (with a --no- form), string, integer, number, human-integer (1k, 2M), human-integer-or-auto,
json, json-or-string, config.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

READ = ("vllm/config", "vllm/model_executor/layers/quantization/__init__.py", "vllm/engine/arg_utils.py",
        "vllm/entrypoints/openai/cli_args.py", "vllm/entrypoints/chat_utils.py", "vllm/entrypoints/constants.py",
        "vllm/model_executor/model_loader/__init__.py")  # fmt: skip
HUMAN = {
    "max_model_len": "human-integer-or-auto",
    "max_num_batched_tokens": "human-integer",
    "kv_cache_memory_bytes": "human-integer",
    "safetensors_prefetch_block_size": "human-integer",
}
PLAIN = {"str": "string", "int": "integer", "float": "number"}
UNKNOWN = object()


class Tree:
    """Names of the source tree: what a class, an alias or a constant was written as."""

    def __init__(self, root: Path) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.values: dict[str, ast.expr] = {}
        for entry in READ:
            path = root / entry
            for file in sorted(path.glob("*.py")) if path.is_dir() else [path] if path.exists() else []:
                self._index(ast.parse(file.read_text(encoding="utf-8")).body)

    def _index(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values.setdefault(node.targets[0].id, node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.values.setdefault(node.target.id, node.value)
            elif isinstance(node, ast.If):  # `if TYPE_CHECKING:` holds the real aliases
                self._index(node.body)

    def is_config(self, name: str) -> bool:
        """Whether a class is a (pydantic) data class, so that its option takes checked JSON."""
        decorators = self.classes[name].decorator_list if name in self.classes else []
        names = {ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in decorators}
        return bool(names & {"config", "dataclass"})

    def fields(self, name: str) -> dict[str, ast.AnnAssign]:
        """Annotated fields of a class, those of its base classes first."""
        found: dict[str, ast.AnnAssign] = {}
        node = self.classes[name]
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in self.classes:
                found.update(self.fields(base.id))
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                found[item.target.id] = item
        return found

    def hints(self, node: ast.expr) -> list[tuple[str, Any]]:
        """The alternatives of a type hint as (form, detail), aliases resolved and unions flattened."""
        if isinstance(node, ast.Constant):
            if node.value is None:
                return [("none", None)]
            return self.hints(ast.parse(str(node.value), mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self.hints(node.left) + self.hints(node.right)
        if isinstance(node, ast.Subscript):
            origin = ast.unparse(node.value)
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if origin == "Literal":
                return [("literal", self.literals(items))]
            if origin in ("Union", "Optional"):
                return [h for item in items for h in self.hints(item)] + [("none", None)] * (origin == "Optional")
            if origin in ("Annotated", "SkipValidation", "InitVar", "ClassVar"):
                return self.hints(items[0])
            return [(origin, items)] if origin in ("list", "tuple", "set", "dict") else [("other", origin)]
        name = ast.unparse(node)
        if name in ("list", "set", "dict", "tuple"):
            return [(name, [])]
        if name in (*PLAIN, "bool"):
            return [(name, None)]
        if self.is_config(name):
            return [("config", name)]
        if name in self.values and name not in self.classes and not isinstance(self.values[name], ast.Name | ast.Call):
            return self.hints(self.values[name])
        return [("other", name)]

    def literals(self, items: list[ast.expr]) -> list[Any]:
        """Values of a Literal; a Literal may name other Literals."""
        values: list[Any] = []
        for item in items:
            if isinstance(item, ast.Constant):
                values.append(item.value)
            elif isinstance(item, ast.Name) and item.id in self.values:
                values += next(detail for form, detail in self.hints(self.values[item.id]) if form == "literal")
        return list(dict.fromkeys(values))

    def default(self, node: ast.expr | None) -> Any:
        """A default as plain data; None where it is a configuration object, an enum or read from the environment."""
        if node is None:
            return None
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            named = {k.arg: k.value for k in node.keywords}
            if called in ("Field", "field"):
                if "default_factory" in named:
                    factory = named["default_factory"]
                    body = factory.body if isinstance(factory, ast.Lambda) else factory
                    empty = {"list": [], "dict": {}, "set": []}
                    return empty[body.id] if isinstance(body, ast.Name) and body.id in empty else self.default(body)
                return self.default(named.get("default") or (node.args[0] if node.args else None))
            if called == "get_field":
                owner, field = node.args
                return self.default(ast.Attribute(owner, ast.literal_eval(field)))
            return None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if self.is_config(node.value.id):
                field = self.fields(node.value.id).get(node.attr)
                return self.default(field.value) if field else None
            return None
        if isinstance(node, ast.Name) and node.id in self.values:
            return self.default(self.values[node.id])
        try:
            value = ast.literal_eval(node)
        except ValueError:
            return None
        return value if isinstance(value, str | int | float | bool | list | dict | None) else None

    def members(self, name: str) -> list[str]:
        """Member names of an Enum class; the engine takes them in upper or lower case."""
        node = self.classes.get(name)
        if node is None or not any("Enum" in ast.unparse(base) for base in node.bases):
            return []
        return [
            t.id for item in node.body if isinstance(item, ast.Assign) for t in item.targets if isinstance(t, ast.Name)
        ]

    def config_fields(self, name: str) -> dict[str, Any]:
        """What JSON a configuration class takes, field by field."""
        names = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "none": "null",
                 "dict": "object", "config": "object", "list": "array", "set": "array", "tuple": "array"}  # fmt: skip
        described = {}
        for field, node in self.fields(name).items():
            annotation = node.annotation
            hints = self.hints(annotation)
            entry: dict[str, Any] = {}
            if not any(form == "other" for form, _ in hints):
                kinds = {names[form] for form, _ in hints if form != "literal"}
                listed = [value for form, detail in hints if form == "literal" for value in detail]
                if listed and kinds <= {"null"}:
                    entry["choices"] = listed + [None] * ("null" in kinds)
                elif not listed:
                    entry["types"] = sorted(kinds)
            elif members := [m for form, detail in hints if form == "other" for m in self.members(detail)]:
                entry["members"] = members
            described[field] = entry
        return described


def kwargs_of_field(tree: Tree, field: str, node: ast.AnnAssign) -> dict[str, Any]:
    """What the engine derives from one field's type hint and default, by its own order of rules."""
    hints = tree.hints(node.annotation)
    forms = {form for form, _ in hints}
    option: dict[str, Any] = {"default": tree.default(node.value)}
    config = next((detail for form, detail in hints if form == "config"), None)
    if config:
        option |= {"kind": "config", "config": config}
    elif forms == {"bool", "str", "none"}:
        return option | {"kind": "string", "nargs": "?", "const": True}
    elif "bool" in forms:
        return option | {"kind": "boolean"}
    elif "literal" in forms:
        values = next(detail for form, detail in hints if form == "literal")
        option["kind"] = "integer" if isinstance(values[0], int) else "string"
        if "str" not in forms:
            option["choices"] = sorted(values)
    elif sequence := next((form for form in ("tuple", "list", "set") if form in forms), None):
        items = next(detail for form, detail in hints if form == sequence)
        element = tree.hints(items[0]) if items else [("str", None)]
        listed = next((detail for form, detail in element if form == "literal"), None)
        option["kind"] = PLAIN.get(element[0][0], "string") if len(element) == 1 else "string"
        ellipsis = any(isinstance(item, ast.Constant) and item.value is Ellipsis for item in items)
        option["nargs"] = "+" if sequence != "tuple" or ellipsis else len(items)
        if listed:
            option["choices"] = sorted(listed)
    elif "int" in forms:
        option["kind"] = HUMAN.get(field, "integer")
    elif "float" in forms:
        option["kind"] = "number"
    elif "dict" in forms:
        option["kind"] = "json-or-string" if forms & {"str", "other"} else "json"
    else:
        option["kind"] = "string"
    if "none" in forms:
        option["optional"] = True
        if "choices" in option:
            option["choices"].append("None")
    return option


def class_kwargs(tree: Tree, name: str) -> dict[str, dict[str, Any]]:
    return {field: kwargs_of_field(tree, field, node) for field, node in tree.fields(name).items()}


def method(tree: Tree, owner: str, name: str) -> list[ast.stmt]:
    return next(n for n in tree.classes[owner].body if isinstance(n, ast.FunctionDef) and n.name == name).body


def explicit(keywords: list[ast.keyword]) -> dict[str, Any]:
    """Options spelled out in the call itself."""
    option: dict[str, Any] = {"kind": "string", "default": None}
    for keyword in keywords:
        text = ast.unparse(keyword.value)
        if keyword.arg == "action":
            option["kind"] = {"'store_true'": "flag", "argparse.BooleanOptionalAction": "boolean"}[text]
        elif keyword.arg == "type":
            option["kind"] = PLAIN[text]
        elif keyword.arg == "default":
            value = keyword.value
            option["default"] = ast.literal_eval(value) if isinstance(value, ast.Constant) else False
        elif keyword.arg in ("choices", "nargs"):
            option[keyword.arg] = ast.literal_eval(keyword.value)
    if option["kind"] == "flag":
        option["default"] = False
    return option


def engine_options(tree: Tree) -> list[dict[str, Any]]:
    """Follow the `add_argument` calls of EngineArgs and AsyncEngineArgs."""
    options: list[dict[str, Any]] = []
    known: dict[str, dict[str, dict[str, Any]]] = {}
    owner: dict[str, str] = {}

    def lookup(node: ast.expr) -> dict[str, Any]:
        if isinstance(node, ast.Subscript):
            return dict(known[ast.unparse(node.value)][ast.literal_eval(node.slice)])
        if isinstance(node, ast.Dict):
            merged: dict[str, Any] = {}
            for key, value in zip(node.keys, node.values, strict=True):
                merged |= lookup(value) if key is None else {ast.literal_eval(key): ast.literal_eval(value)}
            return merged
        # The engine lowers the text of --moe-backend before it compares, so its choices stay as they are.
        return dict(known["kernel_kwargs"]["moe_backend"])

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If):
                walk(node.body)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                target, call = ast.unparse(node.targets[0]), node.value
                if ast.unparse(call.func) == "get_kwargs":
                    known[target] = class_kwargs(tree, ast.unparse(call.args[0]))
                elif ast.unparse(call.func) == "parser.add_argument_group":
                    owner[target] = next(ast.literal_eval(k.value) for k in call.keywords if k.arg == "title")
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                call = node.value
                group, _, verb = ast.unparse(call.func).rpartition(".")
                if verb != "add_argument":
                    continue
                flags = [ast.literal_eval(a) for a in call.args]
                spread = next((k.value for k in call.keywords if k.arg is None), None)
                option = lookup(spread) if spread is not None else explicit(call.keywords)
                options.append(named(flags, owner.get(group, "Other"), option))

    walk(method(tree, "EngineArgs", "add_cli_args"))
    walk(method(tree, "AsyncEngineArgs", "add_cli_args"))
    for option in options:
        if option["name"] == "--speculative-config":  # parsed as JSON now, checked when the engine's config is made
            option |= {"kind": "json", "config": "SpeculativeConfig"}
    return options


def named(flags: list[str], group: str, option: dict[str, Any]) -> dict[str, Any]:
    long = next(flag for flag in flags if flag.startswith("--"))
    return {"name": long, "aliases": [f for f in flags if f != long], "group": group, **option}


def frontend_options(tree: Tree) -> list[dict[str, Any]]:
    """Fields of FrontendArgs, with the engine's own exceptions to the rules."""
    options = []
    for field, option in class_kwargs(tree, "FrontendArgs").items():
        if field in ("allowed_origins", "allowed_methods", "allowed_headers", "default_chat_template_kwargs"):
            option["kind"] = "json"
            option.pop("nargs", None)
        elif field == "middleware":
            option = {"kind": "string", "append": True, "default": []}
        elif field == "lora_modules":
            option |= {"kind": "string", "nargs": "+"}
        options.append(named([f"--{field.replace('_', '-')}"], "Frontend", option))
    return options


def serve_options(root: Path) -> list[dict[str, Any]]:
    """Options that `make_arg_parser` adds itself."""
    module = ast.parse((root / "vllm/entrypoints/openai/cli_args.py").read_text(encoding="utf-8"))
    body = next(n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "make_arg_parser").body
    options = []
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            flags = [ast.literal_eval(a) for a in node.value.args]
            if flags[0].startswith("-"):
                options.append(named(flags, "Serve", explicit(node.value.keywords)))
    return options


def main() -> None:
    """Write the table to standard output."""
    if len(sys.argv) != 4:
        sys.exit("usage: generate.py TREE VERSION ORIGIN")
    root, version, origin = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    tree = Tree(root)
    options = serve_options(root) + frontend_options(tree) + engine_options(tree)
    configs = sorted({o["config"] for o in options if "config" in o})
    table = {
        "schema": 1,
        "engine": "vllm",
        "version": version,
        "origin": origin,
        "quantizations": tree.literals([ast.Name("QuantizationMethods")]),
        "options": sorted(options, key=lambda o: o["name"]),
        "configs": {name: tree.config_fields(name) for name in configs},
    }
    print(json.dumps(table, indent=1, sort_keys=False))


if __name__ == "__main__":
    main()
