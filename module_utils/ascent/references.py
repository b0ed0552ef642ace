"""Plan values that a recipe may refer to: ``{{ plan.node_ip }}`` in options, variables, commands and files.

The set is small and closed. A reference that isn't in it, or that has no value where it stands, is a mistake; nothing
else inside double braces is touched.
"""

from __future__ import annotations

__all__ = ["LISTS", "UnknownReferenceError", "documented", "known", "names", "resolve", "resolve_words"]

import re
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

_REFERENCE = re.compile(r"\{\{\s*plan\.([A-Za-z0-9_.-]*)\s*\}\}")

#: Known wherever a process is described.
_ANYWHERE = {
    "node_ip": "address of the host that this process runs on",
    "nic": "network interface of that host",
    "arch": "its CPU architecture",
    "host": "its name in the inventory",
    "host_index": "its number in the cluster, from 0",
    "cluster": "name of the cluster",
    "model": "what the engine serves: the directory if the recipe gives one, else the model's id",
    "model_directory": "directory of the weights on the hosts",
    "served_name": "the name that clients use",
    "endpoint_url": "where clients connect, such as http://192.0.2.11:8000",
    "endpoint_ip": "its address",
    "endpoint_port": "its port",
    "api_urls": "URLs of all engine endpoints, separated by commas; as a whole word of a command one word each",
    "prefill_urls": "the same of prefill instances",
    "decode_urls": "the same of decode instances",
    "kv_event_sources": "URL=EVENTS of all instances that publish KV events, like api_urls",
    "kv_store_ip": "address of the KV store's master",
    "kv_store_address": "address:port of the KV store's master",
    "service.NAME": "address:port of a service, by its name",
}

#: Known for processes of the engines only.
_ENGINES = {
    "head_ip": "address of the instance's first host",
    "pool": "name of the pool",
    "instance": "name of the instance, such as decode-0",
    "instance_index": "its number in the pool, from 0",
    "node_index": "number of the node in the instance, from 0",
    "local_index": "number of the instance among those of its host, from 0",
    "rank": "first data parallel rank of the process",
    "port": "API port of the process",
    "rpc_port": "port that coordinates data parallel ranks",
    "kv_port": "first KV port of the instance",
    "kv_events_port": "KV events port of the instance",
    "side_channel_port": "NIXL's port of the process",
}

#: References whose value is a list: joined by commas inside a text, one word each where they stand alone.
LISTS = frozenset(("api_urls", "prefill_urls", "decode_urls", "kv_event_sources"))


class UnknownReferenceError(KeyError):
    """A reference that has no value here; ``args[0]`` is its name."""


def documented() -> Iterator[Tuple[str, str, str]]:
    """Name, where it may stand, and meaning of every reference."""
    for key, meaning in _ANYWHERE.items():
        yield key, "anywhere", meaning
    for key, meaning in _ENGINES.items():
        yield key, "pools: args, env, kv_transfer; recipe: args, env, kv_transfer", meaning


def known(*, engine: bool, services: Sequence[str] = ()) -> List[str]:
    """All names that have a value: for an engine's process, or for any other."""
    result = [key for key in _ANYWHERE if "." not in key]
    result += [f"service.{name}" for name in services]
    return result + (list(_ENGINES) if engine else [])


def names(value: Any) -> List[str]:
    """The references inside a value, however deep, in order."""
    if isinstance(value, str):
        return _REFERENCE.findall(value)
    if isinstance(value, Mapping):
        return [name for one in value.values() for name in names(one)]
    if isinstance(value, (list, tuple)):
        return [name for one in value for name in names(one)]
    return []


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """``value`` with every reference in its texts replaced; raises UnknownReferenceError.

    >>> resolve({"a": ["tcp://{{ plan.node_ip }}:1"]}, {"node_ip": "192.0.2.1"})
    {'a': ['tcp://192.0.2.1:1']}
    """
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _text(values, match.group(1)), value) if "{{" in value else value
    if isinstance(value, Mapping):
        return {key: resolve(one, values) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolve(one, values) for one in value]
    return value


def resolve_words(words: Sequence[str], values: Mapping[str, Any]) -> List[str]:
    """Words of a command; a word that is just a reference to a list becomes one word for each entry."""
    result: List[str] = []
    for word in words:
        match = _REFERENCE.fullmatch(word.strip())
        if match and match.group(1) in LISTS:
            result += [str(one) for one in _value(values, match.group(1))]
        else:
            result.append(str(resolve(word, values)))
    return result


def _value(values: Mapping[str, Any], name: str) -> Any:
    found: Dict[str, Any] = dict(values) if not isinstance(values, dict) else values
    if found.get(name) is None:
        raise UnknownReferenceError(name)
    return found[name]


def _text(values: Mapping[str, Any], name: str) -> str:
    value = _value(values, name)
    return ",".join(str(one) for one in value) if isinstance(value, list) else str(value)
