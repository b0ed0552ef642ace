"""The launch plan: a pure function of recipe, hardware profiles and hosts (docs/architecture.md, section 3).

Layouts are not a list of cases. Every pool deals its instances over its hosts, every instance puts one process on each
of its nodes, and ranks, ports, addresses and sizes follow from that by arithmetic.
"""

from __future__ import annotations

__all__ = ["DERIVED_ARGS", "DERIVED_ENV", "definition_of", "digest", "merged", "model_directory", "option_name", "plan"]

import hashlib
import json
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import engines, layout
from .errors import InputError
from .mistakes import as_finding

#: Engine options whose value follows from the plan. The recipe may repeat the right value, never another one.
DERIVED_ARGS = frozenset(
    (
        "data-parallel-address",
        "data-parallel-rank",
        "data-parallel-rpc-port",
        "data-parallel-size",
        "data-parallel-size-local",
        "data-parallel-start-rank",
        "distributed-executor-backend",
        "headless",
        "kv-transfer-config",
        "pipeline-parallel-size",
        "port",
        "served-model-name",
        "tensor-parallel-size",
    )
)

#: Variables whose value follows from the plan.
DERIVED_ENV = frozenset(
    (
        "ASCEND_RT_VISIBLE_DEVICES",
        "GLOO_SOCKET_IFNAME",
        "HCCL_IF_IP",
        "HCCL_SOCKET_IFNAME",
        "TP_SOCKET_IFNAME",
        "VLLM_HOST_IP",
    )
)

#: HCCL listens on this many ports of the host, from this one or from HCCL_IF_BASE_PORT.
HCCL_FIRST_PORT = 60000
HCCL_PORT_COUNT = 32

#: Where the clients of model hubs keep what they fetch, inside the container.
CACHE = "/root/.cache"

DEFAULT_PROMPTS = [{"prompt": "The future of AI is", "max_tokens": 50, "temperature": 0}]
DEFAULT_SMOKE_BENCH = {"concurrency": 8, "requests": 32, "input_tokens": 128, "output_tokens": 64}


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


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


def hccl_ports(recipe: Mapping[str, Any], pool: Mapping[str, Any]) -> Tuple[int, int]:
    """First port and number of ports that HCCL may listen on beside the processes of a pool."""
    env = {**(recipe.get("env") or {}), **pool["env"]}
    return int(env.get("HCCL_IF_BASE_PORT") or HCCL_FIRST_PORT), HCCL_PORT_COUNT


def model_directory(model: Mapping[str, Any], cache: str = CACHE) -> Optional[str]:
    """Where the weights lie on every host.

    ``path`` if the recipe gives one, else the place where the source's own client keeps them below ``cache``.
    """
    if model.get("path"):
        return str(model["path"])
    if model.get("source", "modelscope") == "modelscope":
        # ModelScope's client writes a dot in a model's name as three underscores.
        return cache.rstrip("/") + "/modelscope/hub/models/" + str(model["id"]).replace(".", "___")
    if model.get("source") == "huggingface":
        return cache.rstrip("/") + "/huggingface/hub/models--" + str(model["id"]).replace("/", "--")
    return None


def definition_of(process: Mapping[str, Any]) -> str:
    """sha256 over what makes a process what it is; not its name's place in the plan, nor what it starts after."""
    kept = {key: value for key, value in process.items() if key not in ("definition", "health", "starts_after")}
    return digest(kept)


def plan(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    *,
    cluster: str = "cluster",
    mirror: str = "",
    cache: str = CACHE,
) -> Dict[str, Any]:
    """The launch plan.

    ``recipe`` has the shape of recipes/schema.json. ``hardware`` maps profile names to profiles
    (catalog/hardware). ``hosts`` are dicts with ``name``, ``node_ip``, ``nic``, ``arch`` and optionally ``hardware``
    and ``pool``, in inventory order. ``mirror`` is a registry prefix for every image; ``cache`` is the hosts'
    directory of downloaded weights, which containers see as `CACHE`.

    Raises InputError when the pools can't be laid out on the hosts; `rules.check` says all that is wrong beyond that.
    """
    pools = layout.pools_of(recipe)
    placement = layout.place(pools, hosts)
    wrong = [*layout.unsound(recipe, hardware, hosts, pools), *placement.mistakes]
    if wrong:
        raise InputError([as_finding(item) for item in wrong])
    return _Builder(recipe, hardware, hosts, pools, placement, cluster, mirror, cache).build()


class _Builder:
    """Holds the inputs of one plan while its parts are put together."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        hardware: Mapping[str, Mapping[str, Any]],
        hosts: Sequence[Mapping[str, Any]],
        pools: Sequence[Mapping[str, Any]],
        placement: layout.Placement,
        cluster: str,
        mirror: str,
        cache: str,
    ) -> None:
        self.recipe = recipe
        self.hosts = {host["name"]: host for host in hosts}
        self.pools = pools
        self.placement = placement
        self.cluster = cluster
        self.mirror = mirror
        self.cache = cache
        self.engine = recipe["engine"]["name"]
        self.transfer = recipe.get("kv_transfer")
        self.several = sum(pool["instances"] for pool in pools) > 1
        self.pool_of = {name: pool for pool in pools for name in placement.hosts[pool["name"]]}
        self.profile = {
            name: hardware[host.get("hardware") or self.pool_of.get(name, recipe)["hardware"]]
            for name, host in self.hosts.items()
        }
        self.used: Dict[str, int] = dict.fromkeys(self.hosts, 0)

    def build(self) -> Dict[str, Any]:
        instances = []
        processes: List[Dict[str, Any]] = []
        for pool in self.pools:
            for index in range(pool["instances"]):
                members = self._instance(pool, index)
                head = members[0]
                processes.extend(members)
                address = self.hosts[head["host"]]["node_ip"]
                port = _port(head, "api")
                instances.append(
                    {
                        "name": head["instance"],
                        "pool": pool["name"],
                        "role": pool["role"],
                        "hosts": [member["host"] for member in members],
                        "processes": [member["name"] for member in members],
                        "endpoint": {"address": address, "port": port, "url": f"http://{address}:{port}"},
                    }
                )
        # Heads first: a headless process that finds no head gives up after a while, a head waits.
        processes.sort(key=lambda process: process["kind"] != "head")
        endpoint = {"url": instances[0]["endpoint"]["url"], "process": instances[0]["processes"][0]}
        if self.recipe.get("router"):
            router = self._router(instances)
            processes.append(router)
            address = self.hosts[router["host"]]["node_ip"]
            endpoint = {"url": f"http://{address}:{_port(router, 'api')}", "process": router["name"]}
        for process in processes:
            process["definition"] = definition_of(process)
        images = sorted({process["container"]["image"] for process in processes})
        model = self.recipe["model"]
        checks = dict(self.recipe.get("checks") or {})
        checks.setdefault("prompts", DEFAULT_PROMPTS)
        checks["smoke_bench"] = {**DEFAULT_SMOKE_BENCH, **(checks.get("smoke_bench") or {})}
        result = {
            "schema": 1,
            "cluster": self.cluster,
            "recipe": self.recipe["name"],
            "summary": self.recipe.get("summary", ""),
            "model": {
                "id": model["id"],
                "source": model.get("source", "modelscope"),
                "served_name": model.get("served_name", model["id"]),
                "directory": model_directory(model, self.cache),
            },
            "engine": {
                "name": self.engine,
                "version": self.recipe["engine"].get("version")
                or engines.image_version(self.recipe["engine"]["image"]),
                "image": processes[0]["container"]["image"],
                "images": images,
            },
            "hosts": self._hosts(processes),
            "instances": instances,
            "processes": processes,
            "endpoint": endpoint,
            "device_pairs": self._device_pairs(instances, processes),
            "checks": checks,
            "bench": self.recipe.get("bench") or {},
            "reference": self.recipe.get("reference") or {},
            "waived": [{"rule": rule, "reason": why} for rule, why in (self.recipe.get("waive") or {}).items()],
        }
        # Through JSON and back: what callers see is what plan.json holds (no tuples, no shared lists, string keys).
        copied: Dict[str, Any] = json.loads(json.dumps(result))
        copied["hash"] = digest(copied)
        return copied

    # -- hosts ---------------------------------------------------------------------------------------------------------

    def _hosts(self, processes: Sequence[Mapping[str, Any]]) -> Dict[str, Dict[str, Any]]:
        mine: Dict[str, List[Mapping[str, Any]]] = {name: [] for name in self.hosts}
        for process in processes:
            mine[process["host"]].append(process)
        return {name: self._host(name, here) for name, here in mine.items()}

    def _host(self, name: str, mine: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
        host = self.hosts[name]
        pool = self.pool_of.get(name)
        ports = [(port["first"], port["count"]) for process in mine for port in process["ports"]]
        if pool and any(process["devices"] for process in mine):
            ports.append(hccl_ports(self.recipe, pool))
        if self.transfer and pool:
            # The whole span of every instance here, not only this node's part: releases differ in which rank a worker
            # counts from, and a reserved port costs nothing.
            ports.append((pool["kv_port"], pool["span"] * pool["instances_per_node"]))
        return {
            "node_ip": host["node_ip"],
            "nic": host.get("nic"),
            "arch": host.get("arch"),
            "hardware": self.profile[name]["name"],
            "pool": pool["name"] if pool else None,
            "devices": sorted(device for process in mine for device in process["devices"]),
            "reserved_ports": _ranges(ports),
            "fabric": self.profile[name].get("fabric"),
        }

    # -- engine processes ----------------------------------------------------------------------------------------------

    def _instance(self, pool: Mapping[str, Any], index: int) -> List[Dict[str, Any]]:
        """The processes of one instance, head first."""
        slot = index % pool["instances_per_node"]
        block = index // pool["instances_per_node"] * pool["nodes"]
        names = self.placement.hosts[pool["name"]][block : block + pool["nodes"]]
        instance = f"{pool['name']}-{index}"
        members: List[Dict[str, Any]] = []
        for node, name in enumerate(names):
            head = node == 0
            first = self.used[name]
            self.used[name] += pool["devices"]
            parallel = {
                "tensor": pool["tensor_parallel"],
                "pipeline": pool["pipeline_parallel"],
                "data": pool["data_parallel"],
                "data_local": pool["local"],
                "start_rank": node * pool["local"],
                "address": self.hosts[names[0]]["node_ip"],
                "rpc_port": pool["rpc_port"] + slot,
            }
            members.append(
                self._engine(
                    pool,
                    slot,
                    {
                        "name": f"{instance}-head" if head else f"{instance}-headless-{node}",
                        "kind": "head" if head else "headless",
                        "role": pool["role"],
                        "pool": pool["name"],
                        "instance": instance,
                        "host": name,
                        "devices": list(range(first, first + pool["devices"])),
                        "parallel": parallel,
                        "starts_after": [] if head else [members[0]["name"]],
                    },
                )
            )
        return members

    def _controls_ranks(self, pool: Mapping[str, Any]) -> bool:
        """Whether the control plane of data parallelism is spelled out.

        Needed where ranks live on several nodes, and where a second instance could otherwise meet the engine's default
        port; a lone instance on one node needs only the number of ranks.
        """
        return bool(pool["data_parallel"] > 1 and (pool["nodes"] > 1 or self.several or pool["rpc_port_given"]))

    def _engine(self, pool: Mapping[str, Any], slot: int, process: Dict[str, Any]) -> Dict[str, Any]:
        host = self.hosts[process["host"]]
        head = process["kind"] == "head"
        parallel = process["parallel"]
        ports = []
        if head:
            ports.append({"name": "api", "first": pool["port"] + slot, "count": 1})
            if self._controls_ranks(pool):
                ports.append({"name": "dp-rpc", "first": parallel["rpc_port"], "count": 1})
        kv_port = pool["kv_port"] + slot * pool["span"]
        if self.transfer:
            ranks = pool["tensor_parallel"] * pool["pipeline_parallel"]
            first = kv_port + parallel["start_rank"] * ranks
            ports.append({"name": "kv", "first": first, "count": parallel["data_local"] * ranks})
        process["ports"] = ports
        args = merged(self.recipe.get("args") or {}, pool["args"])
        process.update(
            {
                "unset": list(engines.PROXY_VARIABLES),
                "source": self._sources(),
                "env": self._env(pool, process, host),
                "argv": self._argv(pool, process, host, args, kv_port),
                "container": self._container(process),
                "health": f"http://{host['node_ip']}:{pool['port'] + slot}/health" if head else None,
            }
        )
        return process

    def _sources(self) -> List[str]:
        given = self.recipe["engine"].get("source")
        return list(given) if given is not None else engines.source_scripts(self.engine)

    def _env(
        self, pool: Mapping[str, Any], process: Mapping[str, Any], host: Mapping[str, Any]
    ) -> List[Dict[str, Any]]:
        """Derived variables, then the recipe's, then the pool's."""
        env: Dict[str, Any] = {}
        if pool["nodes"] > 1 or self.transfer:
            env["HCCL_IF_IP"] = host["node_ip"]
            for name in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME"):
                env[name] = host["nic"]
            env["VLLM_HOST_IP"] = host["node_ip"]
        visible = self.profile[process["host"]].get("visible_devices")
        if visible:
            env[visible] = ",".join(str(device) for device in process["devices"])
        if self.recipe["model"].get("source", "modelscope") == "modelscope" and not self.recipe["model"].get("path"):
            env["VLLM_USE_MODELSCOPE"] = "True"
        given = {**(self.recipe.get("env") or {}), **pool["env"]}
        env.update({name: value for name, value in given.items() if name not in DERIVED_ENV})
        entries = [_variable(name, value) for name, value in env.items() if value is not None]
        if pool.get("jemalloc", self.recipe.get("jemalloc")):
            path = engines.jemalloc_path(self.recipe["engine"]["image"], host["arch"])
            entries.append({"name": "LD_PRELOAD", "prepend": path, "if_exists": path})
        return entries

    def _argv(
        self,
        pool: Mapping[str, Any],
        process: Mapping[str, Any],
        host: Mapping[str, Any],
        args: Mapping[str, Any],
        kv_port: int,
    ) -> List[List[str]]:
        model = self.recipe["model"]
        parallel = process["parallel"]
        head = process["kind"] == "head"
        given = {option_name(key): value for key, value in args.items()}
        argv = [["vllm", "serve", str(model.get("path") or model["id"])]]
        if head:
            argv.append(["--host", str(given.get("host", host["node_ip"]))])
            argv.append(["--port", str(_port(process, "api"))])
        else:
            argv.append(["--headless"])
        argv.append(["--served-model-name", str(model.get("served_name", model["id"]))])
        argv.append(["--tensor-parallel-size", str(parallel["tensor"])])
        if parallel["pipeline"] > 1:
            argv.append(["--pipeline-parallel-size", str(parallel["pipeline"])])
        argv.append(["--data-parallel-size", str(parallel["data"])])
        servers = given.get("api-server-count")
        if self._controls_ranks(pool):
            argv.append(["--data-parallel-size-local", str(parallel["data_local"])])
            if pool["nodes"] > 1:
                argv.append(["--data-parallel-start-rank", str(parallel["start_rank"])])
            argv.append(["--data-parallel-address", parallel["address"]])
            argv.append(["--data-parallel-rpc-port", str(parallel["rpc_port"])])
            servers = 1 if servers is None else servers
        if head and servers is not None:
            argv.append(["--api-server-count", str(servers)])
        if pool["executor"]:
            argv.append(["--distributed-executor-backend", pool["executor"]])
        done = DERIVED_ARGS | {"host", "api-server-count"}
        for key, value in args.items():
            if option_name(key) not in done:
                argv.extend(_option(key, value))
        if self.transfer:
            argv.append(["--kv-transfer-config", _json(self._kv_transfer(pool, kv_port))])
        return argv

    def _kv_transfer(self, pool: Mapping[str, Any], kv_port: int) -> Dict[str, Any]:
        """The connector's configuration of one instance; sizes are those of the whole instance on each side."""
        assert self.transfer is not None
        given = {**self.transfer, **pool["kv_transfer"]}
        config: Dict[str, Any] = {"kv_connector": given.pop("connector")}
        extra = dict(given.pop("extra", {}))
        roles = {"prefill": "kv_producer", "decode": "kv_consumer", "serve": "kv_both"}
        config["kv_role"] = given.pop("kv_role", roles[pool["role"]])
        config["kv_port"] = str(kv_port)
        config.update(given)
        for side in self.pools:
            if side["role"] != "serve":
                sizes = {"dp_size": side["data_parallel"], "tp_size": side["tensor_parallel"]}
                if side["pipeline_parallel"] > 1:
                    sizes["pp_size"] = side["pipeline_parallel"]
                extra[side["role"]] = sizes
        if extra:
            config["kv_connector_extra_config"] = extra
        return config

    # -- router --------------------------------------------------------------------------------------------------------

    def _router(self, instances: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
        """The proxy: on the head host of the first instance of its pool, knowing only endpoints that serve an API."""
        router = self.recipe["router"]
        kind = engines.ROUTERS[router["kind"]]
        home = next(one for one in instances if one["pool"] == router.get("on", instances[0]["pool"]))
        host = home["hosts"][0]
        address = self.hosts[host]["node_ip"]
        port = router.get("port", layout.DEFAULT_ROUTER_PORT)
        argv: List[List[str]] = [list(kind["program"])]
        for role, side in (("prefill", "prefiller"), ("decode", "decoder")):
            ends = [one["endpoint"] for one in instances if one["role"] == role]
            argv.append([f"--{side}-hosts", *(end["address"] for end in ends)])
            argv.append([f"--{side}-ports", *(str(end["port"]) for end in ends)])
        argv.append(["--host", address])
        argv.append(["--port", str(port)])
        for key, value in (router.get("args") or {}).items():
            argv.extend(_option(key, value))
        process: Dict[str, Any] = {
            "name": "router",
            "kind": "router",
            "role": "router",
            "pool": None,
            "instance": None,
            "host": host,
            "devices": [],
            "parallel": None,
            "ports": [{"name": "api", "first": port, "count": 1}],
            "unset": list(engines.PROXY_VARIABLES),
            "source": self._sources(),
            "env": [],
            "argv": argv,
            "health": f"http://{address}:{port}{kind['health']}",
            "starts_after": [one["processes"][0] for one in instances],
        }
        process["container"] = self._container(process)
        return process

    # -- containers ----------------------------------------------------------------------------------------------------

    def _container(self, process: Mapping[str, Any]) -> Dict[str, Any]:
        profile = self.profile[process["host"]]
        given = self.recipe.get("container") or {}
        devices: List[str] = []
        if process["devices"]:
            numbers = list(process["devices"])
            if numbers[0] != 0:
                # The runtime numbers what it sees from 0, while ASCEND_RT_VISIBLE_DEVICES holds the node's own numbers.
                # A process that starts further up is therefore given the whole node and picks by that variable.
                numbers = list(range(profile["devices"]))
            devices = [profile["device_file"].format(index=number) for number in numbers]
            devices += profile["management_devices"]
        mounts = [_mount(text) for text in profile["mounts"]]
        mounts.append({"source": self.cache, "target": CACHE, "read_only": False})
        if self.transfer:
            mounts += [_mount(text) for text in profile.get("kv_transfer_mounts", [])]
        path = self.recipe["model"].get("path")
        if path and not any(_inside(path, mount["target"]) for mount in mounts):
            mounts.append({"source": path, "target": path, "read_only": False})
        mounts += [_mount(text) for text in given.get("mounts", [])]
        script = f"/etc/ascent/{process['name']}.sh"
        return {
            "name": f"ascent-{self.cluster}-{process['name']}",
            "image": engines.image_for(self.recipe["engine"]["image"], profile["image_suffix"], self.mirror),
            "network": given.get("network", "host"),
            "shm_size": given.get("shm_size", "1g"),
            "devices": devices,
            "mounts": mounts,
            "privileged": bool(given.get("privileged", False)),
            "restart_policy": given.get("restart_policy", "unless-stopped"),
            "script": script,
            "command": ["/bin/bash", script],
        }

    # -- what the fabric check wants to know ---------------------------------------------------------------------------

    def _device_pairs(
        self, instances: Sequence[Mapping[str, Any]], processes: Sequence[Mapping[str, Any]]
    ) -> List[Dict[str, Any]]:
        by_name = {process["name"]: process for process in processes}

        def members(*chosen: Mapping[str, Any]) -> List[Dict[str, Any]]:
            return [
                {"host": by_name[name]["host"], "devices": by_name[name]["devices"]}
                for instance in chosen
                for name in instance["processes"]
            ]

        pairs = [
            {"reason": "collective", "pattern": "same-position", "instances": [one["name"]], "groups": [members(one)]}
            for one in instances
            if len(one["hosts"]) > 1
        ]
        sides = {role: [one for one in instances if one["role"] == role] for role in ("prefill", "decode")}
        if self.transfer and all(sides.values()):
            # Any prefill instance may serve any decode instance, so one entry says it for all of them.
            names = [one["name"] for side in sides.values() for one in side]
            groups = [members(*side) for side in sides.values()]
            pairs.append({"reason": "kv-transfer", "pattern": "across", "instances": names, "groups": groups})
        return pairs


def _port(process: Mapping[str, Any], name: str) -> int:
    return next(int(port["first"]) for port in process["ports"] if port["name"] == name)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _option(key: str, value: Any) -> List[List[str]]:
    """One option as script lines: true is a bare flag, false its --no- form if it has one, lists and mappings JSON."""
    flag = "--" + key.lstrip("-")
    if value is True:
        return [[flag]]
    if value is False:
        return [["--no-" + option_name(key)]] if option_name(key) in engines.NEGATABLE else []
    if isinstance(value, (dict, list)):
        return [[flag, _json(value)]]
    return [[flag, str(value)]]


def _variable(name: str, value: Any) -> Dict[str, Any]:
    """``/path:$NAME`` puts a path before the old value; anything else is taken literally."""
    text = str(value)
    for old in ("$" + name, "${" + name + "}"):
        if text.endswith(":" + old) and len(text) > len(old) + 1:
            return {"name": name, "prepend": text[: -len(old) - 1]}
    return {"name": name, "value": text}


def _mount(text: str) -> Dict[str, Any]:
    """``source[:target][:ro]``; the target is the same path unless given."""
    parts = text.split(":")
    read_only = len(parts) > 1 and parts[-1] in ("ro", "rw")
    mode = parts.pop() if read_only else "rw"
    return {"source": parts[0], "target": parts[1] if len(parts) > 1 else parts[0], "read_only": mode == "ro"}


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def _ranges(ports: Iterable[Tuple[int, int]]) -> List[str]:
    """Ports as the kernel's ip_local_reserved_ports writes them: sorted, touching ranges joined."""
    merged_ranges: List[List[int]] = []
    for first, count in sorted(ports):
        last = first + count - 1
        if merged_ranges and first <= merged_ranges[-1][1] + 1:
            merged_ranges[-1][1] = max(merged_ranges[-1][1], last)
        else:
            merged_ranges.append([first, last])
    return [str(first) if first == last else f"{first}-{last}" for first, last in merged_ranges]
