"""Reads recipes, catalogue and inventory files, and remembers the file and line of every key.

Everything that is wrong with a file comes back as findings; nothing here raises for bad input.
"""

from __future__ import annotations

__all__ = ["ROOT", "Document", "Inputs", "load", "merged", "option_table", "read_inventory", "read_yaml"]

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from ascent.engines import release_of
from ascent.findings import finding
from ascent.mistakes import as_finding, closest, mistake

#: The project's root: catalogue and recipes are found from here, wherever Ansible was started.
ROOT = Path(__file__).resolve().parents[3]


class _Loader(yaml.SafeLoader):
    """YAML as the core schema has it: only true and false are booleans, so a key may be called ``on``."""


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:bool"]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)


@dataclass
class Document:
    """One YAML file: its data, ``file:line`` by dotted key path, and what was wrong with it."""

    data: Any = None
    positions: dict[str, str] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Inputs:
    """All that planner and rules need from files.

    ``recipe`` is None when there is none to plan from. ``guessed`` says that no recipe has the name asked for and this
    is the one that looks most like it: good for finding the other mistakes, not for a plan.
    """

    recipe: dict[str, Any] | None = None
    guessed: str | None = None
    hardware: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    positions: dict[str, str] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)


def load(recipe: str, root: Path = ROOT, positions: Mapping[str, str] | None = None) -> Inputs:
    """Recipe by name or path, with the hardware profiles, the model's facts and the engine's option table.

    Keys of the recipe that break its schema are reported and taken out, so that the rules can go on and find the rest.
    ``positions`` are those of the inventory (`read_inventory`); the result has them and the recipe's own.
    """
    inputs = Inputs(positions=dict(positions or {}))
    for path in sorted((root / "catalog" / "hardware").glob("*.yml")):
        document = read_yaml(path, root)
        inputs.findings += document.findings + _check_schema(document, "hardware", _schema(root, "catalog/hardware"))
        if isinstance(document.data, dict) and "name" in document.data:
            inputs.hardware[document.data["name"]] = document.data
    path_of_recipe = _find_recipe(recipe, root, inputs)
    if path_of_recipe is None:
        return inputs
    document = _recipe(path_of_recipe, root, ())
    inputs.findings += document.findings
    if not isinstance(document.data, dict):
        return inputs
    inputs.positions |= {f"recipe:{key}": place for key, place in document.positions.items()}
    inputs.positions["recipe:"] = f"{_shown(path_of_recipe, root)}:1"
    inputs.findings += _check_schema(document, "recipe", _complete(root))
    inputs.recipe = document.data
    inputs.model, wrong = _model_facts(document.data, root)
    inputs.findings += wrong
    inputs.options = option_table(document.data.get("engine") or {}, root)
    return inputs


def read_yaml(path: Path, root: Path = ROOT) -> Document:
    """One YAML file with positions. A duplicate key and a syntax error are findings, not exceptions."""
    document = Document()
    shown = _shown(path, root)
    loader = None
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            document.findings += list(_walk(node, "", shown, document.positions))
            document.data = loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        document.findings.append(
            finding("file-unreadable", "error", f"{shown} can't be read: {error}", evidence=shown, fix="check the file")
        )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{shown}:{mark.line + 1}" if mark else shown
        problem = getattr(error, "problem", None) or "not valid YAML"
        document.findings.append(
            finding("yaml-syntax", "error", f"{place}: {problem}", evidence=place, fix="correct the YAML at this line")
        )
    finally:
        if loader is not None:
            loader.dispose()
    return document


def merged(base: Mapping[str, Any], own: Mapping[str, Any], *, options: bool = False) -> dict[str, Any]:
    """``own`` over ``base``: mappings key by key, keeping order; null removes a key; anything else replaces.

    Directly inside ``args`` and ``env`` (``options``) null stays: there it takes the option away in the plan.

    >>> merged({"a": 1, "b": {"x": 1, "y": 2}}, {"b": {"x": None}, "c": [3]})
    {'a': 1, 'b': {'y': 2}, 'c': [3]}
    """
    result = dict(base)
    for key, value in own.items():
        if isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value, options=key in ("args", "env"))
        elif value is None and not options:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def _recipe(path: Path, root: Path, below: tuple[Path, ...]) -> Document:
    """One recipe with what it extends merged in. ``below`` are the files that led here, to see a circle."""
    document = read_yaml(path, root)
    file = _shown(path, root)
    if not isinstance(document.data, dict):
        if not document.findings:
            document.findings.append(
                finding(
                    "recipe-schema",
                    "error",
                    f"{file} is not a recipe: it holds no keys",
                    evidence=f"{file}:1: the file; allowed: a mapping with name, model, engine, hardware and pools",
                    fix="start from one of the files in recipes/",
                )
            )
        return document
    own = document.data
    if "extends" in own:
        # What is null removes something of the base; it is not a value that the schema could judge.
        document.data = merged({}, own)
    document.findings += _check_schema(document, "recipe", _schema(root, "recipes/schema.json"), prune=True)
    names = document.data.pop("extends", [])
    if not names:
        return document
    data: dict[str, Any] = {}
    positions: dict[str, str] = {}
    for name in [names] if isinstance(names, str) else names:
        base = _base(name, path, root, (*below, path.resolve()), document)
        if base is not None and isinstance(base.data, dict):
            document.findings += base.findings
            # A name, a summary and figures belong to the recipe that they were written for.
            data = merged(data, {key: value for key, value in base.data.items() if key not in _OWN})
            positions |= base.positions
    document.data = merged(data, merged(_nulls(own), document.data))
    document.positions = {**positions, **document.positions}
    return document


#: Keys of a recipe that those which extend it don't get.
_OWN = ("name", "summary", "reference")


def _nulls(own: Mapping[str, Any]) -> dict[str, Any]:
    """Only the nulls of a mapping, at their places."""
    result: dict[str, Any] = {}
    for key, value in own.items():
        if value is None:
            result[key] = None
        elif isinstance(value, Mapping) and (below := _nulls(value)):
            result[key] = below
    return result


def _base(name: str, path: Path, root: Path, below: tuple[Path, ...], document: Document) -> Document | None:
    """The recipe or preset that ``path`` extends by this name; one that leads nowhere or in a circle is a finding."""
    folders = [root / "recipes", root / "recipes" / "presets"]
    known = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yml"))}
    target = known.get(name) if "/" not in name else None
    if target is None and name.endswith((".yml", ".yaml")) and (path.parent / name).is_file():
        target = path.parent / name
    positions = {f"recipe:{key}": place for key, place in document.positions.items()}
    if target is None:
        near = closest(name, known, 1)
        item = mistake(
            "recipe-extends-unknown",
            f"there is no recipe or preset {name!r} to extend" + (f"; did you mean {near[0]}?" if near else ""),
            key="recipe:extends",
            value=name,
            allowed=", ".join(sorted(known)) + ", or the path of a .yml file",
            fix=f"write {near[0]}" if near else "take one of the names",
        )
    elif target.resolve() in below:
        item = mistake(
            "recipe-extends-circle",
            f"{name} extends itself: " + " -> ".join(one.stem for one in [*below, target]),
            key="recipe:extends",
            value=name,
            allowed="a recipe or preset that doesn't lead back here",
            fix="take extends out of one of them",
        )
    else:
        return _recipe(target, root, below)
    document.findings.append(as_finding(item, positions))
    return None


def _complete(root: Path) -> dict[str, Any]:
    """The schema of what a recipe must have in the end, with the meaning of every missing key."""
    schema = _schema(root, "recipes/schema.json")

    def part(needs: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
        full = schema["$defs"][full["$ref"].rpartition("/")[2]] if "$ref" in full else full
        described = {key: {"description": one.get("description", "")} for key, one in full["properties"].items()}
        for key in needs.get("required", []):
            reference = full["properties"][key].get("$ref")
            if reference:
                meaning = schema["$defs"][reference.rpartition("/")[2]].get("description", "")
                described[key] = {"description": meaning}
        for key, inner in needs.get("properties", {}).items():
            if "additionalProperties" in inner:
                each = part(inner["additionalProperties"], full["properties"][key]["additionalProperties"])
                described[key] = {**described[key], "additionalProperties": each}
            else:
                described[key] = {**described[key], **part(inner, full["properties"][key])}
        return {"required": needs.get("required", []), "properties": described}

    return part(schema["$defs"]["complete"], schema)


def read_inventory(
    sources: Iterable[str], hosts: Iterable[str], recipe: str, root: Path = ROOT
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Where the inventory's files say what: ``file:line`` by key, and a finding for every key written twice.

    Keys are ``host:a3-01`` and ``host:a3-01.node_ip``, and ``inventory:recipe`` for the line that names this recipe.
    Values in group_vars and host_vars beside the inventory are found too. Ansible has read the files before, so
    anything else that is wrong with them is not repeated here.
    """
    wanted = set(hosts)
    positions: dict[str, str] = {}
    findings: list[dict[str, Any]] = []
    for file in _inventory_files(sources):
        if file.suffix not in (".yml", ".yaml"):
            _ini_positions(file, wanted, positions, root)
            continue
        document = read_yaml(file, root)
        findings += [item for item in document.findings if item["id"] == "yaml-duplicate-key"]
        if file.parent.name == "host_vars" and file.stem in wanted:
            for key, place in document.positions.items():
                positions.setdefault(f"host:{file.stem}.{key}", place)
        for key, place in document.positions.items():
            for match in re.finditer(r"(?:^|\.)hosts\.", key):
                rest = key[match.end() :]
                if any(rest == host or rest.startswith(host + ".") for host in wanted):
                    positions.setdefault("host:" + rest, place)
            if re.search(r"(?:^|\.)recipe\Z", key) and _value_at(document.data, key) == recipe:
                positions.setdefault("inventory:recipe", place)
    return positions, findings


def _inventory_files(sources: Iterable[str]) -> list[Path]:
    """The files of an inventory, with those of group_vars and host_vars beside it; executables are left alone."""
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        folders = [path] if path.is_dir() else [path.parent / "group_vars", path.parent / "host_vars"]
        found += [path] if path.is_file() else []
        found += sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    return [file for file in dict.fromkeys(found) if file.suffix in (".yml", ".yaml", ".ini", "")]


def _value_at(data: Any, key: str) -> Any:
    """The value at a dotted path whose parts may hold dots themselves; None if the file could not be read."""
    if not key:
        return data
    if not isinstance(data, dict):
        return None
    for name, value in data.items():
        if key == str(name) or key.startswith(f"{name}."):
            return _value_at(value, key[len(str(name)) + 1 :])
    return None


def _ini_positions(file: Path, wanted: set[str], positions: dict[str, str], root: Path) -> None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and words[0] in wanted:
            place = f"{_shown(file, root)}:{number}"
            positions.setdefault(f"host:{words[0]}", place)
            for word in words[1:]:
                positions.setdefault(f"host:{words[0]}.{word.partition('=')[0]}", place)


def _walk(node: yaml.Node, path: str, shown: str, positions: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Record every key's line below ``node``; yield a finding for every key that is written twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            here = f"{path}.{key}" if path else key
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                yield finding(
                    "yaml-duplicate-key",
                    "error",
                    f"{here} is written twice; YAML would silently keep the second",
                    evidence=f"{shown}:{line}: {here}; allowed: once (first at line {seen[key]})",
                    fix=f"remove one of the two at lines {seen[key]} and {line}",
                )
            seen.setdefault(key, line)
            positions[here] = f"{shown}:{line}"
            yield from _walk(value_node, here, shown, positions)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = f"{path}.{index}" if path else str(index)
            positions[here] = f"{shown}:{item.start_mark.line + 1}"
            yield from _walk(item, here, shown, positions)


def _shown(path: Path, root: Path) -> str:
    """The path as an operator would type it: relative to the project where it lies inside."""
    try:
        return str(path.resolve().relative_to(root.resolve()))
    except ValueError:
        return str(path)


def _find_recipe(recipe: str, root: Path, inputs: Inputs) -> Path | None:
    """A name without a slash is looked up in recipes/; anything else is a path."""
    known = sorted(path.stem for path in (root / "recipes").glob("*.yml"))
    if recipe in known:
        return root / "recipes" / f"{recipe}.yml"
    path = Path(recipe)
    if path.suffix in (".yml", ".yaml") and path.is_file():
        return path
    if (root / "recipes" / "presets" / f"{recipe}.yml").is_file():
        inputs.findings.append(
            as_finding(
                mistake(
                    "recipe-unknown",
                    f"{recipe} is a preset: it has values for recipes, and no model or image of its own",
                    key="inventory:recipe",
                    value=recipe,
                    allowed="a recipe, or the path of a .yml file",
                    fix=f"write a recipe with extends: {recipe}, a model, an engine and the hardware",
                ),
                inputs.positions,
            )
        )
        return None
    near = closest(recipe, known)
    inputs.findings.append(
        as_finding(
            mistake(
                "recipe-unknown",
                f"there is no recipe {recipe!r}" + (f"; did you mean {near[0]}?" if near else ""),
                key="inventory:recipe",
                value=recipe,
                allowed=", ".join(near or known) + ", or the path of a .yml file",
                fix=f"set recipe: {near[0]}" if near else "set recipe to one of the names, or to a file",
            ),
            inputs.positions,
        )
    )
    if not near:
        return None
    inputs.guessed = near[0]
    return root / "recipes" / f"{near[0]}.yml"


@functools.cache
def _schema(root: Path, name: str) -> Mapping[str, Any]:
    path = root / name
    if path.is_dir():
        path = path / "schema.json"
    schema: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _check_schema(
    document: Document, kind: str, schema: Mapping[str, Any], *, prune: bool = False
) -> list[dict[str, Any]]:
    """One finding per broken key, with its position; ``prune`` takes the broken keys out of the data."""
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(document.data), key=lambda error: [str(part) for part in error.absolute_path])
    positions = {f"{kind}:{key}": place for key, place in document.positions.items()}
    findings = []
    cuts: list[list[Any]] = []
    for error in errors:
        path = list(error.absolute_path)
        for item, cut in _mistakes_of(error, path, kind):
            findings.append(as_finding(item, positions))
            cuts.append(cut)
    if prune:
        # Deepest and last first, so that a cut in a list does not move the next one.
        for cut in sorted(cuts, key=lambda cut: (len(cut), str(cut)), reverse=True):
            _cut(document.data, cut)
    return findings


def _mistakes_of(
    error: jsonschema.ValidationError, path: list[Any], kind: str
) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """A schema error in the operator's words: unknown keys, missing keys, wrong values."""
    rule = f"{kind}-schema"
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    instance: Any = error.instance
    wanted: Any = error.validator_value
    dotted = ".".join(str(part) for part in path)
    if error.validator == "additionalProperties":
        known = list(schema.get("properties", {}))
        for key in sorted(set(instance) - set(known), key=str):
            near = closest(str(key), known, 1)
            here = f"{dotted}.{key}" if dotted else str(key)
            yield (
                mistake(
                    rule,
                    f"{here} is not a key of a {kind}" + (f"; did you mean {near[0]}?" if near else ""),
                    key=f"{kind}:{here}",
                    value=instance[key],
                    allowed=", ".join(known),
                    fix=f"write {near[0]}" if near else "remove it, or move it to args or env if the engine knows it",
                ),
                [*path, key],
            )
    elif error.validator == "required":
        for key in wanted:
            if key not in instance:
                here = f"{dotted}.{key}" if dotted else key
                meaning = schema.get("properties", {}).get(key, {}).get("description", "a value")
                yield (
                    mistake(
                        rule, f"{here} is missing", key=f"{kind}:{here}", allowed=meaning, fix=f"add {key}: to the file"
                    ),
                    [*path, key],
                )
    else:
        meaning = schema.get("description", "")
        allowed = {
            "enum": lambda: ", ".join(str(value) for value in wanted),
            "type": lambda: f"type {wanted}",
            "minimum": lambda: f"{wanted} or more",
            "maximum": lambda: f"{wanted} or less",
            "pattern": lambda: f"text that matches {wanted}",
            "minProperties": lambda: f"{wanted} or more keys",
        }.get(str(error.validator), lambda: error.message)()
        yield (
            mistake(
                rule,
                f"{dotted or 'the file'} has a value that doesn't fit",
                key=f"{kind}:{dotted}",
                value=instance,
                allowed=allowed + (f" ({meaning})" if meaning else ""),
                fix="correct the value",
            ),
            path,
        )


def _cut(data: Any, path: list[Any]) -> None:
    for part in path[:-1]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return
    if path and isinstance(data, (dict, list)):
        try:
            del data[path[-1]]
        except (KeyError, IndexError, TypeError):
            return


def model(id: str, root: Path = ROOT) -> dict[str, Any] | None:
    """What the catalogue knows of a model by any of its names; None if nothing."""
    return _model_facts({"model": {"id": id}}, root)[0]


def _model_facts(recipe: Mapping[str, Any], root: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What the catalogue knows of the recipe's model: the family's facts with the variant's over them.

    A recipe may call it by any name that one of its sources has it under.
    """
    wanted = (recipe.get("model") or {}).get("id")
    findings: list[dict[str, Any]] = []
    found: dict[str, Any] | None = None
    for path in sorted((root / "catalog" / "models").glob("*.yml")):
        document = read_yaml(path, root)
        broken = document.findings + _check_schema(document, "model", _schema(root, "catalog/models"))
        findings += broken
        if broken or not isinstance(document.data, dict):
            continue
        for variant in document.data["variants"]:
            if any(wanted in names for names in variant["weights"].values()):
                family = {key: value for key, value in document.data.items() if key != "variants"}
                found = {**family, **variant}
    return found, findings


def option_table(engine: Mapping[str, Any], root: Path = ROOT) -> dict[str, Any] | None:
    """What the catalogue knows of the options of an engine's release (catalog/engine_options/); None if nothing.

    ``engine`` is the recipe's section. The result is the table of the nearest vLLM release at or below this one, with
    its keys ``version``, ``options``, ``configs`` and ``quantizations``, all missing if there is no such table. For
    vllm-ascend, ``additional_config`` is added: ``keys`` that this release reads, ``exact`` (whether that is known of
    this very release), ``releases`` and ``sections`` as in the file.
    """
    if engine.get("name") not in ("vllm-ascend", "vllm"):
        return None
    # vLLM-Ascend releases carry the vLLM of the same number; candidates and patches of it share its options.
    release = _minor(release_of(engine) or "")
    folder = root / "catalog" / "engine_options"
    found: dict[str, Any] = {}
    if release is not None:
        tables = {_minor(path.stem.removeprefix("vllm-")): path for path in folder.glob("vllm-[0-9]*.json")}
        fitting = [known for known in tables if known is not None and known <= release]
        if fitting:
            found = json.loads(tables[max(fitting)].read_text(encoding="utf-8"))
    keys = folder / "vllm-ascend.json"
    if engine["name"] == "vllm-ascend" and keys.is_file():
        found["additional_config"] = _plugin_keys(json.loads(keys.read_text(encoding="utf-8")), release)
    return found or None


def _plugin_keys(table: Mapping[str, Any], release: tuple[int, ...] | None) -> dict[str, Any]:
    """Keys of one release: its own, or those of its neighbours on both sides, or all of them if it isn't known."""
    releases: dict[tuple[int, ...], list[str]] = {_minor(name) or (): keys for name, keys in table["releases"].items()}
    if release is None:
        near = list(releases)
    elif release in releases:
        near = [release]
    else:
        near = [max((one for one in releases if one < release), default=min(releases))]
        near.append(min((one for one in releases if one > release), default=near[0]))
    return {
        "keys": sorted({key for one in near for key in releases[one]}),
        "exact": release is not None and min(releases) <= release <= max(releases),
        "releases": table["releases"],
        "sections": table["sections"],
    }


def _minor(version: str) -> tuple[int, ...] | None:
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(match.group(1)), int(match.group(2))) if match else None
