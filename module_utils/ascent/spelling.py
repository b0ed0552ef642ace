"""How values of a recipe become options, variables and mounts: the one place that knows the spelling.

>>> option("max-num-seqs", 64), option("enforce-eager", True)
([['--max-num-seqs', '64']], [['--enforce-eager']])
"""

from __future__ import annotations

__all__ = ["engine_option", "json_text", "merged", "mount", "option", "option_name", "variable"]

import json
from typing import Any, Dict, List, Mapping, Tuple

from . import engines


def option_name(key: str) -> str:
    """An option as vLLM's parser knows it: no leading dashes, dashes for underscores.

    >>> option_name("--max_model_len")
    'max-model-len'
    """
    return key.lstrip("-").replace("_", "-")


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Dict[str, Any]:
    """``second`` over ``first``: keys keep their place, new ones follow, and a null takes a key away.

    Two spellings of one option (``max_model_len``, ``max-model-len``) are the same key; the later spelling stays.
    """
    result: Dict[str, Tuple[str, Any]] = {option_name(key): (key, value) for key, value in first.items()}
    result.update({option_name(key): (key, value) for key, value in second.items()})
    return {key: value for key, value in result.values() if value is not None}


def json_text(value: Any) -> str:
    """A value as the JSON of one word."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def engine_option(key: str, value: Any) -> List[List[str]]:
    """One option of `vllm serve` as script lines.

    true is a bare flag, false its --no- form if it has one, a list several words where the option takes them; any
    other list and every mapping is JSON.
    """
    name = option_name(key)
    if value is False:
        return [["--no-" + name]] if name in engines.NEGATABLE else []
    if isinstance(value, list) and name not in engines.SEVERAL_WORDS:
        return [["--" + key.lstrip("-"), json_text(value)]]
    return option(key, value)


def option(key: str, value: Any) -> List[List[str]]:
    """One option of any other program: true is a bare flag, false nothing, a list several words, a mapping JSON."""
    flag = "--" + key.lstrip("-")
    if value is True:
        return [[flag]]
    if value is False:
        return []
    if isinstance(value, list):
        return [[flag, *(json_text(one) if isinstance(one, (dict, list)) else str(one) for one in value)]]
    if isinstance(value, dict):
        return [[flag, json_text(value)]]
    return [[flag, str(value)]]


def variable(name: str, value: Any) -> Dict[str, Any]:
    """``/path:$NAME`` puts a path before the old value; anything else is taken literally."""
    text = str(value)
    for old in ("$" + name, "${" + name + "}"):
        if text.endswith(":" + old) and len(text) > len(old) + 1:
            return {"name": name, "prepend": text[: -len(old) - 1]}
    return {"name": name, "value": text}


def mount(text: str) -> Dict[str, Any]:
    """``source[:target][:ro]``; the target is the same path unless given."""
    parts = text.split(":")
    read_only = len(parts) > 1 and parts[-1] in ("ro", "rw")
    mode = parts.pop() if read_only else "rw"
    return {"source": parts[0], "target": parts[1] if len(parts) > 1 else parts[0], "read_only": mode == "ro"}
