"""Reads rendered scripts back into data, as a shell would, so that they can be compared with what the seeds set."""

from __future__ import annotations

import ast
import json
import re
import shlex
from typing import Any

#: Options that are given once for each of several things.
REPEATED = {"--kv-event-source"}


def words_of(text: str) -> list[list[str]]:
    """The commands of a script as lists of words; comments and blank lines are gone, joined lines are one command."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if shlex.split(line, comments=True)]


def read_script(text: str) -> dict[str, Any]:
    """``unset``, ``source``, ``env``, ``program``, ``flags``; ``guarded`` are variables set behind a test for a file,
    ``waits`` commands that have to succeed first, ``sweeps`` directories where leftovers go."""
    result: dict[str, Any] = {
        "unset": [],
        "source": [],
        "env": {},
        "guarded": [],
        "waits": [],
        "sweeps": [],
        "program": [],
        "flags": {},
    }
    inside = False
    for words in words_of(re.sub(r"(?s)\ncat > \S+ <<'EOF'\n.*?\nEOF\n", "\n", text)):
        if words[0] == "if":
            inside = True
        elif words[0] == "fi":
            inside = False
        elif words[0] == "until":
            result["waits"] += re.findall(r"\$\((\w+ \w+)", " ".join(words))
        elif words[0] == "find":
            result["sweeps"].append(words[1])
        elif words[0] == "unset":
            result["unset"] += words[1:]
        elif words[0] == ".":
            result["source"].append(words[1])
        elif words[0] == "export":
            name, _, value = words[1].partition("=")
            tail = "${" + name + ":+:${" + name + "}}"
            result["env"][name] = {"before": value.removesuffix(tail)} if value.endswith(tail) else value
            if inside:
                result["guarded"].append(name)
        elif words[0] == "exec":
            result["program"], result["flags"] = split_command(words[1:])
        else:
            assert inside or words[0] in ("echo", "exit", "sleep", "done", "mkdir", "xargs"), (
                f"unexpected command {words}"
            )
    return result


def split_command(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Program words, then flags with their values: None for a bare flag, a list for several values."""
    first = next((index for index, one in enumerate(words) if one.startswith("--")), len(words))
    flags: dict[str, Any] = {}
    for one in words[first:]:
        if one.startswith("--"):
            assert one not in flags or one in REPEATED, f"{one} is there twice"
            flags.setdefault(one, [])
            current = one
        else:
            flags[current].append(one)
    return words[:first], {flag: plain(values) for flag, values in flags.items()}


def plain(values: list[str]) -> Any:
    if not values:
        return None
    return normal(values[0]) if len(values) == 1 else [normal(value) for value in values]


def normal(value: Any) -> Any:
    """One value free of spelling: numbers as numbers, JSON parsed, booleans in one case."""
    if isinstance(value, list):
        return [normal(item) for item in value] if len(value) != 1 else normal(value[0])
    if isinstance(value, str):
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            return float(value)
        if value.startswith(("{", "[")):
            return json.loads(value)
        if value.lower() in ("true", "false"):
            return value.lower()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return value


def offline_program(text: str) -> dict[str, Any]:
    """``PROMPTS``, ``SAMPLING``, ``ENGINE`` of the Python program that a script writes, and the ``calls`` it makes."""
    match = re.search(r"(?s)\ncat > \S+\.py <<'EOF'\n(.*?\n)EOF\n", text)
    assert match
    tree = ast.parse(match.group(1))
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    return {**values, "calls": [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]}
