"""KV cache between engines: connector configurations, KV events, and the store beside the engines."""

from __future__ import annotations

__all__ = ["STORE_FILE", "events_config", "store_file", "store_process", "transfer_config"]

import json
from typing import Any, Dict, List, Mapping, Sequence

from . import engines, layout, references
from .scene import Scene
from .spelling import option

#: Where an engine's script writes the store's configuration, inside the container.
STORE_FILE = "/etc/ascent/mooncake.json"

_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer", "serve": "kv_both"}

#: How a store client moves KV cache, by the vendor of its devices.
_STORE_PROTOCOLS = {"ascend": "ascend", "nvidia": "rdma", "cpu": "tcp"}

#: What a store client needs to be told; the recipe's `config` goes over it.
_STORE_DEFAULTS = {"metadata_server": "P2PHANDSHAKE", "device_name": "", "global_segment_size": "1GB"}


def transfer_config(scene: Scene, seat: layout.Seat, given: Mapping[str, Any]) -> Dict[str, Any]:
    """The connector's configuration of one engine; sizes are those of the whole instance on each side.

    ``given`` is the recipe's section with those of the pool and its overrides over it.
    """
    rest = dict(given)
    name = rest.pop("connector")
    inner = rest.pop("connectors", None) or []
    extra = dict(rest.pop("extra", None) or {})
    traits = engines.CONNECTOR_TRAITS.get(name, ())
    role = "kv_both" if "both" in traits else _ROLES[seat.pool["role"]]
    config: Dict[str, Any] = {"kv_connector": name, "kv_role": rest.pop("kv_role", role)}
    if "ports" in traits:
        config["kv_port"] = str(seat.ports["kv_port"])
    config.update(rest)
    if "sizes" in traits:
        extra.update(_sizes(scene.pools))
    if "lookup" in traits:
        extra.setdefault("lookup_rpc_port", str(seat.local_index))
    if inner:
        extra["connectors"] = [transfer_config(scene, seat, one) for one in inner]
    if extra:
        config["kv_connector_extra_config"] = extra
    return config


def _sizes(pools: Sequence[Mapping[str, Any]]) -> Dict[str, Dict[str, int]]:
    result: Dict[str, Dict[str, int]] = {}
    for pool in pools:
        if pool["role"] in ("prefill", "decode"):
            sizes = {"dp_size": pool["data_parallel"], "tp_size": pool["tensor_parallel"]}
            if pool["pipeline_parallel"] > 1:
                sizes["pp_size"] = pool["pipeline_parallel"]
            result[pool["role"]] = sizes
    return result


def events_config(seat: layout.Seat) -> Dict[str, Any]:
    """What --kv-events-config holds; the engine adds its data parallel rank to the endpoint's port by itself."""
    given = seat.pool["kv_events"]
    config: Dict[str, Any] = {"enable_kv_cache_events": True, "publisher": "zmq"}
    config["endpoint"] = f"tcp://*:{seat.ports['kv_events_port']}"
    config.update(given if isinstance(given, Mapping) else {})
    return config


def store_file(scene: Scene, host: str) -> str:
    """The configuration of the store's clients on one host, as JSON."""
    given = scene.recipe["kv_store"]
    protocol = _STORE_PROTOCOLS[scene.profile[host]["vendor"]]
    config: Dict[str, Any] = {**_STORE_DEFAULTS, "protocol": protocol}
    config["master_server_address"] = scene.values["kv_store_address"]
    config.update(references.resolve(given.get("config") or {}, scene.on_host(host)))
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def store_process(scene: Scene) -> Dict[str, Any]:
    """The master of the store: the engine's own image, so that both speak the same protocol."""
    given = scene.recipe["kv_store"]
    host = scene.first_host(given.get("on"))
    port, metrics = (
        given.get(key, default) for key, default in zip(("port", "metrics_port"), layout.DEFAULT_STORE_PORTS)
    )
    argv: List[List[str]] = [["mooncake_master"], ["--port", str(port)], ["--metrics_port", str(metrics)]]
    for key, value in scene.resolved(given.get("args") or {}, host).items():
        # The master's flags take a boolean as a value.
        argv += option(key, str(value).lower() if isinstance(value, bool) else value)
    return {
        "name": "kv-store",
        "kind": "kv-store",
        "role": "kv-store",
        "host": host,
        "ports": [
            {"name": "kv-store", "first": port, "count": 1},
            {"name": "metrics", "first": metrics, "count": 1},
        ],
        "source": scene.sources() if scene.same_image(given) else [],
        "env": scene.resolved(given.get("env") or {}, host),
        "argv": argv,
        "health": f"http://{scene.address(host)}:{metrics}/health",
        "image": given.get("image"),
    }
