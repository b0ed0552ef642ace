"""Processes beside the engines: the router or frontend, services, and jobs that run once."""

from __future__ import annotations

__all__ = ["dynamo_env", "dynamo_mounts", "gateway_process", "job_process", "router_process", "service_process"]

import json
import pprint
from typing import Any, Dict, List, Mapping

from . import access, engines, references
from .scene import STATE, Scene
from .spelling import merged, option, option_name

#: Where a job's own script lies inside the container.
_SCRIPTS = "/etc/ascent"

_OFFLINE = '''\
"""Offline inference: the prompts below, answered once."""

import gc

{accelerator}from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

PROMPTS = {prompts}
SAMPLING = {sampling}
ENGINE = {engine}


def main() -> None:
    llm = LLM(**ENGINE)
    for output in llm.generate(PROMPTS, SamplingParams(**SAMPLING)):
        print(f"Prompt: {{output.prompt!r}}, Generated text: {{output.outputs[0].text!r}}")
    # Whoever runs next on these devices finds their memory free.
    del llm
    destroy_model_parallel()
    destroy_distributed_environment()
    gc.collect()
{release}

# The engine starts worker processes that read this file again.
if __name__ == "__main__":
    main()
'''


#: Options that say where a router listens.
_LISTENS = frozenset(("host", "port", "http-host", "http-port"))

# -- router ------------------------------------------------------------------------------------------------------------


def router_process(scene: Scene) -> Dict[str, Any]:
    """The process that clients talk to, on the first host of its pool; it knows only endpoints that serve an API."""
    router = scene.recipe["router"]
    kind = engines.ROUTERS[router["kind"]]
    host = scene.first_host(router.get("on"))
    address, _, port = scene.router_place().rpartition(":")
    frontend = router["kind"] == "dynamo"
    program = references.resolve_words(router.get("command") or kind["program"], scene.on_host(host))
    argv: List[List[str]] = [program]
    given = scene.resolved(router.get("args") or {}, host)
    derived = _BACKENDS[router["kind"]](scene)
    policy = router.get("policy")
    if policy is not None:
        derived.append(["--router-mode" if frontend else "--policy", kind["policies"][policy]])
    derived += [
        ["--http-host" if frontend else "--host", address],
        ["--http-port" if frontend else "--port", port],
    ]
    if scene.gateway:
        # Nobody is to reach it but through the gateway, whatever the recipe says for a router without one.
        given = {key: value for key, value in given.items() if option_name(key) not in _LISTENS}
    typed = {option_name(key) for key in given}
    argv += [words for words in derived if option_name(words[0]) not in typed]
    for key, value in given.items():
        argv += option(key, value)
    env = {**(dynamo_env(scene) if frontend else {}), **scene.resolved(router.get("env") or {}, host)}
    ports = [{"name": "api", "first": int(port), "count": 1}]
    return {
        "name": "frontend" if frontend else "router",
        "kind": "frontend" if frontend else "router",
        "role": "router",
        "host": host,
        "ports": ports,
        "source": scene.sources() if scene.same_image(router) else [],
        "env": env,
        "argv": argv,
        "health": f"http://{address}:{port}{kind['health']}",
        "image": router.get("image"),
        "mounts": dynamo_mounts(scene) if frontend else [],
    }


def gateway_process(scene: Scene, router: Mapping[str, Any]) -> Dict[str, Any]:
    """The process that checks keys and ends TLS before the router, on its host and at the port that clients know."""
    address, port = scene.values["endpoint_ip"], scene.router_port()
    health = engines.ROUTERS[scene.recipe["router"]["kind"]]["health"]
    path = "/etc/ascent/gateway.conf"
    config = access.gateway_config(
        address=address, port=port, backend=scene.router_place(), health=health, key=scene.keyed, tls=scene.tls
    )
    return {
        "name": "gateway",
        "kind": "gateway",
        "role": "router",
        "host": router["host"],
        "ports": [{"name": "api", "first": port, "count": 1}],
        "source": [],
        "env": {},
        "files": {path: config},
        "argv": [["nginx", "-c", path]],
        "health": f"{scene.values['endpoint_url']}{health}",
        "image": scene.guard["image"],
        "options": {"network": "host"},
    }


def _sides(scene: Scene) -> List[List[str]]:
    """Hosts and ports of both sides, as the proxies between prefill and decode take them."""
    argv: List[List[str]] = []
    for role, side in (("prefill", "prefiller"), ("decode", "decoder")):
        ends = [seat for seat in scene.seats if seat.pool["role"] == role and scene.serves_api(seat)]
        argv.append([f"--{side}-hosts", *(scene.address(seat.host) for seat in ends)])
        argv.append([f"--{side}-ports", *(str(seat.ports["port"]) for seat in ends)])
    return argv


def _replicas(scene: Scene) -> List[List[str]]:
    ends = [seat for seat in scene.seats if scene.serves_api(seat)]
    return [
        ["--server-hosts", *(scene.address(seat.host) for seat in ends)],
        ["--server-ports", *(str(seat.ports["port"]) for seat in ends)],
    ]


def _vllm_router(scene: Scene) -> List[List[str]]:
    values = scene.values
    if values["prefill_urls"]:
        argv = [["--vllm-pd-disaggregation"]]
        argv += [["--prefill", url] for url in values["prefill_urls"]]
        argv += [["--decode", url] for url in values["decode_urls"]]
    else:
        argv = [["--worker-urls", *values["api_urls"]]]
    if scene.recipe["router"].get("policy") == "kv-aware" and values["kv_event_sources"]:
        argv += [["--kv-event-source", source] for source in values["kv_event_sources"]]
        size = block_size(scene)
        argv += [["--kv-event-block-size", str(size)]] if size else []
        argv.append(["--kv-event-model", values["model"]])
    return argv


def block_size(scene: Scene) -> Any:
    """The engines' block size, where the recipe gives one."""
    for pool in scene.pools:
        for key, value in merged(scene.recipe.get("args") or {}, pool["args"]).items():
            if option_name(key) == "block-size":
                return value
    return None


def _none(scene: Scene) -> List[List[str]]:  # noqa: ARG001 - one signature for all kinds
    """Dynamo's processes find each other by themselves."""
    return []


_BACKENDS = {
    "pd": _sides,
    "pd-layerwise": _sides,
    "replicas": _replicas,
    "vllm-router": _vllm_router,
    "dynamo": _none,
}


# -- Dynamo's discovery ------------------------------------------------------------------------------------------------


def dynamo_env(scene: Scene) -> Dict[str, Any]:
    """Where Dynamo's processes find each other: a discovery service, or a directory that the one host shares."""
    for name, service in (scene.recipe.get("services") or {}).items():
        if service["kind"] == "discovery" and service.get("ports"):
            return {"ETCD_ENDPOINTS": "http://" + scene.values[f"service.{name}"]}
    return {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": _discovery_directory(scene)}


def dynamo_mounts(scene: Scene) -> List[Dict[str, Any]]:
    """The directory of discovery, where there is no service for it."""
    services = (scene.recipe.get("services") or {}).values()
    if any(service["kind"] == "discovery" and service.get("ports") for service in services):
        return []
    path = _discovery_directory(scene)
    return [{"source": path, "target": path, "read_only": False}]


def _discovery_directory(scene: Scene) -> str:
    return f"{STATE}/{scene.cluster}/discovery"


# -- services ----------------------------------------------------------------------------------------------------------


def service_process(scene: Scene, name: str) -> Dict[str, Any]:
    """A process that the recipe describes itself."""
    given = scene.recipe["services"][name]
    host = scene.first_host(given.get("on"))
    values = scene.on_host(host)
    argv = [references.resolve_words(given["command"], values)]
    for key, value in references.resolve(given.get("args") or {}, values).items():
        argv += option(key, value)
    ports = [{"name": key, "first": port, "count": 1} for key, port in (given.get("ports") or {}).items()]
    health = given.get("health")
    return {
        "name": name,
        "kind": given["kind"],
        "role": given["kind"],
        "host": host,
        "ports": ports,
        "source": scene.sources() if given.get("source_environment") else [],
        "env": references.resolve(given.get("env") or {}, values),
        "files": references.resolve(given.get("files") or {}, values),
        "argv": argv,
        "health": f"http://{scene.address(host)}:{ports[0]['first']}{health}" if health and ports else None,
        "image": given.get("image"),
        "options": given.get("container") or {},
    }


# -- jobs --------------------------------------------------------------------------------------------------------------


def job_process(scene: Scene, name: str) -> Dict[str, Any]:
    """A program that runs once: a client of the endpoint, or inference without a server on its pool's devices."""
    given = scene.recipe["jobs"][name]
    pool = next(pool for pool in scene.pools if pool["name"] == given.get("on", scene.pools[0]["name"]))
    host = scene.first_host(pool["name"])
    values = scene.on_host(host)
    args = references.resolve(given.get("args") or {}, values)
    files = references.resolve(given.get("files") or {}, values)
    devices: List[int] = []
    env: Dict[str, Any] = {}
    program = references.resolve_words(given.get("command") or _PROGRAMS.get(given["tool"], []), values)
    argv: List[List[str]] = [program]
    if given["tool"] == "offline":
        path = f"{_SCRIPTS}/{name}.py"
        devices = list(range(pool["devices"]))
        env = merged(scene.recipe.get("env") or {}, pool["env"])
        visible = scene.profile[host].get("visible_devices")
        if visible:
            env = {visible: ",".join(str(device) for device in devices), **env}
        files = {**files, path: _offline_script(scene, pool, given, args)}
        argv = [[*(program or ["python3"]), path]]
    else:
        for key, value in _client_options(scene, given["tool"], args).items():
            argv += option(key, value)
    env = {**env, **references.resolve(given.get("env") or {}, values)}
    if scene.model.get("source", "modelscope") == "modelscope" and not scene.model.get("path"):
        env = {"VLLM_USE_MODELSCOPE": "True", **env}
    return {
        "name": name,
        "kind": "job",
        "role": "job",
        "pool": pool["name"],
        "host": host,
        "devices": devices,
        "ports": [],
        "source": scene.sources() if given.get("source_environment", scene.same_image(given)) else [],
        "env": references.resolve(env, values),
        "files": files,
        "argv": argv,
        "health": None,
        "image": given.get("image"),
        "options": {**pool["container"], **(given.get("container") or {})},
    }


_PROGRAMS = {
    "vllm-bench": ["vllm", "bench", "serve"],
    "aiperf": ["aiperf", "profile"],
    "ais-bench": ["ais_bench"],
    "lm-eval": ["lm_eval"],
}


def _client_options(scene: Scene, tool: str, args: Mapping[str, Any]) -> Dict[str, Any]:
    """Model and endpoint as the tool takes them, with the recipe's options over them."""
    values = scene.values
    derived: Dict[str, Any] = {}
    url = values.get("endpoint_url")
    if tool == "vllm-bench":
        derived = {"model": values["model"], "served-model-name": values["served_name"]}
        if url and "base-url" not in {option_name(key) for key in args}:
            derived.update({"host": values["endpoint_ip"], "port": values["endpoint_port"]})
    elif tool == "aiperf":
        derived = {"model": values["served_name"], **({"url": url} if url else {})}
    elif tool == "lm-eval":
        inner = {"model": values["served_name"], **({"base_url": f"{url}/v1/completions"} if url else {})}
        # It loads the tokenizer by the model's name otherwise, and the served name is none that a hub knows.
        inner.update({"tokenizer": values["model"]} if values["model"] != values["served_name"] else {})
        typed = args.get("model_args")
        inner.update(typed if isinstance(typed, Mapping) else {})
        text = typed if isinstance(typed, str) else ",".join(f"{key}={value}" for key, value in inner.items())
        derived = {"model": "local-completions", "model_args": text}
        args = {key: value for key, value in args.items() if key != "model_args"}
    return merged(derived, args)


def _offline_script(scene: Scene, pool: Mapping[str, Any], given: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    """A Python program around LLM with the pool's sizes and options, spelled as keyword arguments."""
    engine: Dict[str, Any] = {"model": scene.values["model"]}
    sizes = {
        "tensor_parallel_size": pool["tensor_parallel"],
        "pipeline_parallel_size": pool["pipeline_parallel"],
        "data_parallel_size": pool["data_parallel"],
        "prefill_context_parallel_size": pool["prefill_context_parallel"],
        "decode_context_parallel_size": pool["decode_context_parallel"],
    }
    engine.update({key: size for key, size in sizes.items() if size > 1 or key == "tensor_parallel_size"})
    if pool["executor"]:
        engine["distributed_executor_backend"] = pool["executor"]
    options = merged(merged(scene.recipe.get("args") or {}, pool["args"]), args)
    engine.update({option_name(key).replace("-", "_"): value for key, value in options.items()})

    def shown(value: Any) -> str:
        # Through JSON first: only plain values reach the program.
        return pprint.pformat(json.loads(json.dumps(value)), indent=4, width=100, sort_dicts=False)

    device = {"ascend": "npu", "nvidia": "cuda"}.get(scene.profile[scene.first_host(pool["name"])]["vendor"])
    return _OFFLINE.format(
        accelerator="import torch\n" if device else "",
        release=f"    torch.{device}.empty_cache()\n" if device else "",
        prompts=shown(given.get("prompts") or ["The future of AI is"]),
        sampling=shown(given.get("sampling") or {}),
        engine=shown(engine),
    )
