"""The launch plan: a pure function of recipe, hardware profiles and hosts (docs/architecture.md, section 3).

Layouts are not a list of cases. Every pool deals its instances over its hosts, every instance puts its processes on
its nodes (`layout.seats`), and ranks, ports, addresses and sizes follow from that by arithmetic. This module gives the
seats their words and puts everything together; `kv`, `companions` and `scene` hold the parts.
"""

from __future__ import annotations

__all__ = [
    "CACHE",
    "DERIVED_ARGS",
    "DERIVED_ENV",
    "definition_of",
    "digest",
    "hccl_ports",
    "merged",
    "model_directory",
    "option_name",
    "plan",
]

import json
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import access, companions, engines, kv, layout, references
from .errors import InputError
from .mistakes import as_finding
from .scene import CACHE, STATE, Scene, model_directory
from .spelling import engine_option, json_text, merged, option_name, variable
from .text import digest

#: Engine options whose value follows from the plan. The recipe may repeat the right value, never another one.
DERIVED_ARGS = frozenset(
    (
        "data-parallel-address",
        "data-parallel-rank",
        "data-parallel-rpc-port",
        "data-parallel-size",
        "data-parallel-size-local",
        "data-parallel-start-rank",
        "decode-context-parallel-size",
        "disaggregation-mode",
        "distributed-executor-backend",
        "headless",
        "kv-transfer-config",
        "master-addr",
        "master-port",
        "nnodes",
        "node-rank",
        "pipeline-parallel-size",
        "port",
        "prefill-context-parallel-size",
        "served-model-name",
        "tensor-parallel-size",
    )
)

#: Variables whose value follows from the plan.
DERIVED_ENV = frozenset(
    (
        "ASCEND_RT_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "GLOO_SOCKET_IFNAME",
        "HCCL_IF_IP",
        "HCCL_SOCKET_IFNAME",
        "RAY_ADDRESS",
        "TP_SOCKET_IFNAME",
        "VLLM_HOST_IP",
        "VLLM_NIXL_SIDE_CHANNEL_HOST",
        "VLLM_NIXL_SIDE_CHANNEL_PORT",
    )
)

#: HCCL listens on this many ports of the host, from this one or from HCCL_IF_BASE_PORT.
HCCL_FIRST_PORT = 60000
HCCL_PORT_COUNT = 32

#: Ray's own workers listen in this range (`ray start --min-worker-port --max-worker-port`), clear of all our ports.
RAY_WORKER_PORTS = (10002, 10999)

#: Seconds until a Ray cluster must show the devices of all its nodes.
RAY_SECONDS = 600

#: Order in which processes start. Heads come before what joins them: a headless process that finds no head gives up
#: after a while, a head waits.
_ORDER = ("kv-store", "ray-head", "ray-worker", "head", "rank", "worker", "headless", "router", "frontend", "gateway")

DEFAULT_PROMPTS = [{"prompt": "The future of AI is", "max_tokens": 50, "temperature": 0}]
DEFAULT_SMOKE_BENCH = {"concurrency": 8, "requests": 32, "input_tokens": 128, "output_tokens": 64}


def hccl_ports(recipe: Mapping[str, Any], pool: Mapping[str, Any]) -> Tuple[int, int]:
    """First port and number of ports that HCCL may listen on beside the processes of a pool."""
    env = {**(recipe.get("env") or {}), **pool["env"]}
    return int(env.get("HCCL_IF_BASE_PORT") or HCCL_FIRST_PORT), HCCL_PORT_COUNT


def definition_of(process: Mapping[str, Any]) -> str:
    """sha256 over what makes a process what it is; not its name's place in the plan, nor what it starts after."""
    kept = {key: value for key, value in process.items() if key not in ("definition", "health", "starts_after")}
    if not kept.get("unit"):
        # Containers are what they were before there were units: an upgrade of the suite restarts nothing.
        kept.pop("unit", None)
    return digest(kept)


def plan(
    recipe: Mapping[str, Any],
    hardware: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    *,
    cluster: str = "cluster",
    mirror: str = "",
    cache: str = CACHE,
    guard: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    """The launch plan.

    ``recipe`` has the shape of recipes/schema.json. ``hardware`` maps profile names to profiles
    (catalog/hardware). ``hosts`` are dicts with ``name``, ``node_ip``, ``nic``, ``arch`` and optionally ``hardware``
    and ``pool``, in inventory order. ``mirror`` is a registry prefix for every image; ``cache`` is the hosts'
    directory of downloaded weights, which containers see as `CACHE`. ``guard`` says how clients are let in, without any
    secret: ``{"api_key": bool, "tls": bool, "name": name in the certificate, "root": directory on the hosts,
    "image": the gateway's}``.

    Raises InputError when the pools can't be laid out on the hosts; `rules.check` says all that is wrong beyond that.
    """
    pools = layout.pools_of(recipe)
    placement = layout.place(pools, hosts)
    wrong = [*layout.unsound(recipe, hardware, hosts, pools), *placement.mistakes]
    if wrong:
        raise InputError([as_finding(item) for item in wrong])
    return _Builder(Scene(recipe, hardware, hosts, pools, placement, cluster, mirror, cache, guard or {})).build()


class _Builder:
    """Turns the seats of one scene into processes and puts the plan together."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.recipe = scene.recipe
        self.transfer: Optional[Mapping[str, Any]] = scene.recipe.get("kv_transfer")
        engine = scene.recipe["engine"]
        self.version: Optional[str] = engines.release_of(engine)
        self.several = sum(pool["instances"] for pool in scene.pools) > 1
        # The server of a Ray cluster has no devices of its own; it sees those of its node.
        self.seen = {seat.instance: seat.devices for seat in scene.seats if seat.kind == "ray-head"}
        self.ray_nodes: Dict[str, List[str]] = {}
        for seat in scene.seats:
            if seat.kind in ("ray-head", "ray-worker"):
                self.ray_nodes.setdefault(seat.instance, []).append(seat.host)

    def build(self) -> Dict[str, Any]:
        recipe, scene = self.recipe, self.scene
        processes = [self._engine(seat) for seat in scene.seats]
        instances = self._instances(processes)
        before, after = self._companions()
        needed = [process["name"] for process in before]
        for process in processes:
            process["starts_after"] = [*needed, *process["starts_after"]]
        processes = [*before, *processes, *after]
        entries = [process["name"] for process in processes if process["kind"] in ("head", "rank")]
        entries = entries or [one["processes"][0] for one in instances]
        router = None
        if (recipe.get("router") or {}).get("kind", "none") != "none":
            router = self._finished(companions.router_process(scene), [*needed, *entries])
            processes.append(router)
        if scene.gateway and router is not None:
            router = self._finished(companions.gateway_process(scene, router), [router["name"]])
            processes.append(router)
        services = {process["name"] for process in before}
        processes.sort(key=lambda one: -1 if one["name"] in services else _place(one["kind"]))
        jobs = [self._finished(companions.job_process(scene, name), []) for name in recipe.get("jobs") or {}]
        for process in [*processes, *jobs]:
            process["definition"] = definition_of(process)
        result = {
            "schema": 1,
            "cluster": scene.cluster,
            "recipe": recipe["name"],
            "summary": recipe.get("summary", ""),
            "model": {
                "id": scene.model["id"],
                "source": scene.model.get("source", "modelscope"),
                "revision": scene.model.get("revision"),
                "served_name": scene.served_name,
                "directory": model_directory(scene.model, scene.cache),
            },
            "engine": self._engine_facts(processes, jobs),
            "hosts": self._hosts(processes, jobs),
            "instances": instances,
            "processes": processes,
            "jobs": jobs,
            "endpoint": self._endpoint(instances, router),
            "device_pairs": self._device_pairs(instances, processes),
            "checks": self._checks(),
            "reference": recipe.get("reference") or {},
            "waived": [{"rule": rule, "reason": why} for rule, why in (recipe.get("waive") or {}).items()],
        }
        if scene.keyed or scene.tls:
            # A plan without either is what it was before there were any: an upgrade of the suite restarts nothing.
            result["access"] = {
                "api_key": scene.keyed,
                "tls": scene.tls,
                "name": scene.guard.get("name") or None,
                "by": "gateway" if scene.gateway else "engine",
            }
        # Through JSON and back: what callers see is what plan.json holds (no tuples, no shared lists, string keys).
        copied: Dict[str, Any] = json.loads(json.dumps(result))
        copied["hash"] = digest(copied)
        return copied

    def _engine_facts(
        self, processes: Sequence[Mapping[str, Any]], jobs: Sequence[Mapping[str, Any]]
    ) -> Dict[str, Any]:
        contained = [one for one in [*processes, *jobs] if one["container"]]
        own = [one for one in contained if one["kind"] in layout.EXECUTED or one["kind"] == "job"]
        image = None
        if self.scene.environment is None:
            image = own[0]["container"]["image"] if own else self.scene.image(next(iter(self.scene.hosts)))
        return {
            "name": self.scene.engine,
            "version": self.version,
            "image": image,
            "images": sorted({process["container"]["image"] for process in contained}),
            "environment": self.scene.environment,
            "imports": engines.IMPORTS.get(self.scene.engine, []),
        }

    def _checks(self) -> Dict[str, Any]:
        checks = dict(self.recipe.get("checks") or {})
        checks.setdefault("prompts", DEFAULT_PROMPTS)
        checks["smoke_bench"] = {**DEFAULT_SMOKE_BENCH, **(checks.get("smoke_bench") or {})}
        return checks

    def _instances(self, processes: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
        """One entry an instance; its first process is the one that answers, or that the others join."""
        result: Dict[str, Dict[str, Any]] = {}
        for seat, process in zip(self.scene.seats, processes):
            one = result.setdefault(
                seat.instance,
                {
                    "name": seat.instance,
                    "pool": seat.pool["name"],
                    "role": seat.pool["role"],
                    "hosts": [],
                    "processes": [],
                    "endpoint": None,
                    "endpoints": [],
                },
            )
            if seat.host not in one["hosts"]:
                one["hosts"].append(seat.host)
            one["processes"].append(process["name"])
            if self.scene.serves_api(seat):
                address, port = self.scene.address(seat.host), seat.ports["port"]
                one["endpoints"].append({"address": address, "port": port, "url": self.scene.url(seat)})
                one["endpoint"] = one["endpoints"][0]
        return list(result.values())

    def _endpoint(
        self, instances: Sequence[Mapping[str, Any]], router: Optional[Mapping[str, Any]]
    ) -> Optional[Dict[str, Any]]:
        """Where clients go; None where nothing serves (a recipe of jobs only)."""
        if router is not None:
            return {"url": self.scene.values["endpoint_url"], "process": router["name"]}
        if instances and instances[0]["endpoint"]:
            return {"url": instances[0]["endpoint"]["url"], "process": instances[0]["processes"][0]}
        return None

    # -- hosts ---------------------------------------------------------------------------------------------------------

    def _hosts(
        self, processes: Sequence[Mapping[str, Any]], jobs: Sequence[Mapping[str, Any]]
    ) -> Dict[str, Dict[str, Any]]:
        mine: Dict[str, List[Mapping[str, Any]]] = {name: [] for name in self.scene.hosts}
        for process in [*processes, *jobs]:
            mine[process["host"]].append(process)
        return {name: self._host(name, here) for name, here in mine.items()}

    def _host(self, name: str, mine: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
        scene = self.scene
        host, profile, pools = scene.hosts[name], scene.profile[name], scene.pools_of[name]
        ports = [(port["first"], port["count"]) for process in mine for port in process["ports"]]
        for pool in pools:
            if profile["vendor"] == "ascend" and any(process["devices"] for process in mine):
                ports.append(hccl_ports(self.recipe, pool))
            if self.transfer and "ports" in scene.traits(pool) and pool["role"] != "offline":
                # The whole span of every instance here, not only this node's part: releases differ in which rank a
                # worker counts from, and a reserved port costs nothing.
                ports.append((pool["kv_port"], pool["span"] * pool["instances_per_node"]))
        driver = {text.partition(":")[0] for text in [*profile["mounts"], *profile.get("kv_transfer_mounts", [])]}
        contained = [process["container"] for process in mine if process["container"]]
        # Those of secrets are made with their files, for root alone.
        own = {process["secrets"]["source"] for process in mine if process.get("secrets")}
        sources = {one["source"] for container in contained for one in container["mounts"]} - own
        files = {device for container in contained for device in container["devices"]} | (sources & driver)
        units = [process for process in mine if process.get("unit")]
        if units:
            sources.add(scene.cache)
            files.update(file for process in units for file in scene.device_files(profile, process["devices"]))
        return {
            "node_ip": host["node_ip"],
            "nic": host.get("nic"),
            "arch": host.get("arch"),
            "hardware": profile["name"],
            "vendor": profile["vendor"],
            "pool": pools[0]["name"] if pools else None,
            "pools": [pool["name"] for pool in pools],
            "devices": sorted({device for process in mine for device in process["devices"]}),
            "reserved_ports": _ranges(ports),
            "files": sorted(files),
            "directories": sorted(sources - driver),
            "fabric": profile.get("fabric"),
        }

    # -- engine processes ----------------------------------------------------------------------------------------------

    def _engine(self, seat: layout.Seat) -> Dict[str, Any]:
        scene, pool = self.scene, seat.pool
        host = scene.hosts[seat.host]
        args, env, transfer, options = self._given(seat)
        values = scene.of_seat(seat)
        args, env, transfer = (references.resolve(part, values) for part in (args, env, transfer))
        process: Dict[str, Any] = {
            "name": seat.name,
            "kind": scene.entry if seat.kind == "head" else seat.kind,
            "role": pool["role"],
            "pool": pool["name"],
            "instance": seat.instance,
            "host": seat.host,
            "devices": seat.devices,
            "parallel": self._parallel(seat),
            "ports": self._ports(seat),
            "unset": list(engines.PROXY_VARIABLES),
            "source": scene.sources(),
            "env": self._env(seat, host, env),
            "files": self._files(seat),
            "wait": None,
            "argv": self._ray_argv(seat) if seat.kind.startswith("ray-") else self._argv(seat, args, transfer),
            "health": self._health(seat),
            "starts_after": self._starts_after(seat),
        }
        mounts: List[Dict[str, Any]] = []
        ray = pool["executor"] == "ray" and pool["spans"]
        if ray:
            # The server reaches the node's Ray through its sockets in this directory.
            path = f"{STATE}/{scene.cluster}/{seat.instance}/ray"
            mounts.append({"source": path, "target": "/tmp/ray", "read_only": False})  # noqa: S108 - Ray's own place
            if seat.kind == "head":
                process["wait"] = self._ray_wait(seat)
            else:
                # One session a start; the last of before tells why it ended.
                process["sweep"] = {"directory": "/tmp/ray", "pattern": "session_2*", "keep": 1}  # noqa: S108
        if scene.engine == "dynamo":
            mounts += companions.dynamo_mounts(scene)
        devices = seat.devices or self.seen[seat.instance]
        # Ray starts many processes; whoever is the container's first has to reap those that are orphaned.
        init = ray and seat.kind != "head"
        scene.seat_in(process, options, devices=devices, mounts=mounts, ipc="host" if ray else None, init=init)
        return process

    def _given(self, seat: layout.Seat) -> Tuple[Dict[str, Any], Dict[str, Any], Dict[str, Any], Dict[str, Any]]:
        """Options, variables, KV configuration, and what its container has beside the recipe's.

        The recipe's, the pool's over them, its overrides over those.
        """
        pool = seat.pool
        args = merged(self.recipe.get("args") or {}, pool["args"])
        env = {**(self.recipe.get("env") or {}), **pool["env"]}
        transfer = {**(self.transfer or {}), **pool["kv_transfer"]}
        container = pool["container"]
        where = {"instance": seat.number, "node": seat.node, "rank": seat.start_rank}
        for override in pool["overrides"]:
            wanted = {key: layout.numbers(override.get(key)) for key in where}
            if all(chosen is None or where[key] in chosen for key, chosen in wanted.items()):
                args = merged(args, override.get("args") or {})
                env = {**env, **(override.get("env") or {})}
                transfer = {**transfer, **(override.get("kv_transfer") or {})}
                container = merged(container, override.get("container") or {})
        return args, env, transfer, container

    def _parallel(self, seat: layout.Seat) -> Dict[str, Any]:
        pool = seat.pool
        return {
            "tensor": pool["tensor_parallel"],
            "pipeline": pool["pipeline_parallel"],
            "data": pool["data_parallel"],
            "data_local": seat.local,
            "start_rank": seat.start_rank,
            "prefill_context": pool["prefill_context_parallel"],
            "decode_context": pool["decode_context_parallel"],
            "nodes": pool["nodes"],
            "node_rank": seat.node,
            "address": self.scene.address(seat.head),
            "rpc_port": seat.ports["rpc_port"],
        }

    def _controls_ranks(self, pool: Mapping[str, Any]) -> bool:
        """Whether the control plane of data parallelism is spelled out.

        Needed where ranks live on several nodes or have servers of their own, and where a second instance could
        otherwise meet the engine's default port; a lone instance on one node needs only the number of ranks.
        """
        return bool(
            pool["data_parallel"] > 1
            and (
                pool["nodes"] > 1 or self.several or pool["rpc_port_given"] or pool["data_parallel_mode"] == "external"
            )
        )

    def _ports(self, seat: layout.Seat) -> List[Dict[str, Any]]:
        """What the process listens on."""
        scene, pool, ports = self.scene, seat.pool, seat.ports
        entry = seat.kind in ("head", "rank")
        dynamo = scene.engine == "dynamo"
        result: List[Dict[str, Any]] = []

        def listens(name: str, first: int, count: int = 1) -> None:
            result.append({"name": name, "first": first, "count": count})

        if entry and not dynamo:
            listens("api", ports["port"])
        if entry and dynamo:
            listens("system", ports["system_port"])
            listens("request", ports["request_port"])
        if entry and seat.start_rank == 0 and self._controls_ranks(pool):
            listens("dp-rpc", ports["rpc_port"])
        if seat.kind == "head" and pool["spans"] and pool["executor"] != "ray":
            listens("master", ports["master_port"])
        if seat.kind in ("ray-head", "ray-worker"):
            if seat.kind == "ray-head":
                listens("ray", ports["ray_port"])
            listens("ray-node", ports["ray_port"] + 1, 2)
            listens("ray-workers", RAY_WORKER_PORTS[0], RAY_WORKER_PORTS[1] - RAY_WORKER_PORTS[0] + 1)
        traits = scene.traits(pool) if self.transfer else set()
        if "ports" in traits and seat.devices:
            # Workers count on over the whole instance: over the ranks of earlier nodes, or their parts of one rank.
            skipped = seat.node * pool["devices"] if pool["spans"] else seat.start_rank * pool["world"]
            listens("kv", ports["kv_port"] + skipped, len(seat.devices))
        if "side-channel" in traits and seat.devices:
            own = seat.kind == "rank"
            count = 1 if own else layout.side_channels(pool)
            listens("side-channel", ports["side_channel_port"] + (seat.start_rank if own else 0), count)
        if scene.publishes(pool) and seat.kind in ("head", "rank", "headless"):
            listens("kv-events", ports["kv_events_port"] + seat.start_rank, seat.local)
        return result

    def _health(self, seat: layout.Seat) -> Optional[str]:
        if seat.kind not in ("head", "rank"):
            return None
        if self.scene.engine == "dynamo":
            return f"http://{self.scene.address(seat.host)}:{seat.ports['system_port']}/health"
        return f"{self.scene.url(seat)}/health"

    def _starts_after(self, seat: layout.Seat) -> List[str]:
        instance, pool = seat.instance, seat.pool
        if seat.kind == "head" and pool["executor"] == "ray" and pool["spans"]:
            workers = [f"{instance}-ray-worker-{node}" for node in range(1, pool["nodes"])]
            return [f"{instance}-ray-head", *workers]
        if seat.kind == "ray-worker":
            return [f"{instance}-ray-head"]
        if seat.kind in ("headless", "worker"):
            return [f"{instance}-{self.scene.entry}"]
        if seat.kind == "rank" and seat.start_rank > 0:
            return [f"{instance}-rank-0"]
        return []

    def _files(self, seat: layout.Seat) -> List[Dict[str, str]]:
        if self.recipe.get("kv_store") and self.transfer:
            return [{"path": kv.STORE_FILE, "text": kv.store_file(self.scene, seat.host)}]
        return []

    def _env(self, seat: layout.Seat, host: Mapping[str, Any], given: Mapping[str, Any]) -> List[Dict[str, Any]]:
        """Derived variables, then defaults, then the recipe's, the pool's and the overrides'."""
        scene, pool = self.scene, seat.pool
        profile = scene.profile[seat.host]
        ascend = profile["vendor"] == "ascend"
        env: Dict[str, Any] = {}
        if pool["nodes"] > 1 or self.transfer:
            names = ["GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"]
            if ascend:
                env["HCCL_IF_IP"] = host["node_ip"]
                names.append("HCCL_SOCKET_IFNAME")
            env.update(dict.fromkeys(names, host["nic"]))
            env["VLLM_HOST_IP"] = host["node_ip"]
        visible = profile.get("visible_devices")
        if visible:
            devices = seat.devices or self.seen[seat.instance]
            env[visible] = ",".join(str(device) for device in devices)
        if pool["executor"] == "ray" and pool["spans"]:
            env["RAY_ADDRESS"] = f"{scene.address(seat.head)}:{seat.ports['ray_port']}"
            if visible:
                # The list above is the node's; Ray is not to cut it down for each of its workers.
                env[f"RAY_EXPERIMENTAL_NOSET_{visible}"] = "1"
            if seat.kind == "ray-head":
                del env["RAY_ADDRESS"]
        if self.transfer and "side-channel" in scene.traits(pool):
            env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = host["node_ip"]
            env["VLLM_NIXL_SIDE_CHANNEL_PORT"] = seat.ports["side_channel_port"]
        if scene.engine == "dynamo":
            env.update(companions.dynamo_env(scene))
            env["DYN_TCP_RPC_HOST"] = host["node_ip"]
            env["DYN_TCP_RPC_PORT"] = seat.ports["request_port"]
            env["DYN_SYSTEM_PORT"] = seat.ports["system_port"]
        if scene.model.get("source", "modelscope") == "modelscope" and not scene.model.get("path"):
            env["VLLM_USE_MODELSCOPE"] = "True"
        if self.recipe.get("kv_store") and self.transfer:
            env["MOONCAKE_CONFIG_PATH"] = kv.STORE_FILE
        if (self.recipe.get("kv_store") and self.transfer) or scene.publishes(pool):
            # Hashes of blocks must be the same in every process that compares them.
            env["PYTHONHASHSEED"] = "0"
        env.update({name: value for name, value in given.items() if name not in DERIVED_ENV})
        entries = [variable(name, value) for name, value in env.items() if value is not None]
        if pool.get("jemalloc", self.recipe.get("jemalloc")):
            paths = engines.jemalloc_paths(self.recipe["engine"].get("image"), host["arch"])
            entries += [{"name": "LD_PRELOAD", "prepend": path, "if_exists": path} for path in paths]
        return entries

    def _argv(self, seat: layout.Seat, args: Mapping[str, Any], transfer: Mapping[str, Any]) -> List[List[str]]:
        scene, pool, parallel = self.scene, seat.pool, self._parallel(seat)
        host = scene.hosts[seat.host]
        entry, dynamo = seat.kind in ("head", "rank"), scene.engine == "dynamo"
        given = {option_name(key): value for key, value in args.items()}
        if dynamo:
            argv = [["python3", "-m", "dynamo.vllm"], ["--model", scene.values["model"]]]
            if pool["role"] in ("prefill", "decode"):
                argv.append(["--disaggregation-mode", pool["role"]])
        else:
            argv = [["vllm", "serve", scene.values["model"]]]
            if entry:
                argv.append(["--host", self._listens_at(pool, given, host)])
                argv.append(["--port", str(seat.ports["port"])])
                if scene.engine_tls:
                    place = access.MOUNT
                    if scene.environment is not None:
                        place = f"{scene.guard['root']}/{scene.cluster}/secrets/{seat.name}"
                    argv.append(["--ssl-certfile", f"{place}/tls.crt"])
                    argv.append(["--ssl-keyfile", f"{place}/tls.key"])
                    # A renewed certificate is taken up without a restart.
                    argv.append(["--enable-ssl-refresh"])
        if not entry:
            argv.append(["--headless"])
        argv.append(["--served-model-name", scene.served_name])
        if scene.model.get("revision") and scene.values["model"] == scene.model["id"] and "revision" not in given:
            # By name the engine would look for the hub's own branch.
            argv.append(["--revision", str(scene.model["revision"])])
        argv.append(["--tensor-parallel-size", str(parallel["tensor"])])
        for key, name in (
            ("pipeline", "pipeline-parallel-size"),
            ("prefill_context", "prefill-context-parallel-size"),
            ("decode_context", "decode-context-parallel-size"),
        ):
            if parallel[key] > 1:
                argv.append([f"--{name}", str(parallel[key])])
        argv.append(["--data-parallel-size", str(parallel["data"])])
        if self._controls_ranks(pool):
            if pool["data_parallel_mode"] == "external":
                argv.append(["--data-parallel-rank", str(parallel["start_rank"])])
            else:
                argv.append(["--data-parallel-size-local", str(parallel["data_local"])])
                if parallel["start_rank"] or not entry or engines.states_first_rank(self.version):
                    argv.append(["--data-parallel-start-rank", str(parallel["start_rank"])])
            argv.append(["--data-parallel-address", parallel["address"]])
            argv.append(["--data-parallel-rpc-port", str(parallel["rpc_port"])])
        # One server per rank has one API process; a headless process has none.
        servers = given.get("api-server-count") if seat.kind == "head" else None
        if servers is not None:
            argv.append(["--api-server-count", str(servers)])
        executor = pool["executor"] or ("mp" if pool["spans"] else None)
        if executor:
            argv.append(["--distributed-executor-backend", executor])
        if pool["spans"] and executor == "mp":
            argv.append(["--nnodes", str(pool["nodes"])])
            argv.append(["--node-rank", str(seat.node)])
            argv.append(["--master-addr", parallel["address"]])
            argv.append(["--master-port", str(seat.ports["master_port"])])
        done = DERIVED_ARGS | {"host", "api-server-count"}
        for key, value in args.items():
            if option_name(key) not in done:
                argv.extend(engine_option(key, value))
        if self.transfer:
            argv.append(["--kv-transfer-config", json_text(kv.transfer_config(scene, seat, transfer))])
        if scene.publishes(pool):
            argv.append(["--kv-events-config", json_text(kv.events_config(seat))])
        return argv

    def _listens_at(self, pool: Mapping[str, Any], given: Mapping[str, Any], host: Mapping[str, Any]) -> str:
        """The address that an engine's API listens at: the recipe's, else the node's on the cluster's network.

        On a bridge network the container's own addresses are none that the node has.
        """
        bridged = {**self.scene.container_options, **pool["container"]}.get("network") == "bridge"
        everywhere = "0.0.0.0"  # noqa: S104 - where the recipe wants it
        bind = (self.recipe.get("security") or {}).get("bind")
        if bridged or bind == "any":
            return everywhere
        return str(host["node_ip"] if bind == "node" else given.get("host", host["node_ip"]))

    # -- Ray -----------------------------------------------------------------------------------------------------------

    def _ray_resource(self, seat: layout.Seat) -> str:
        return "NPU" if self.scene.profile[seat.host]["vendor"] == "ascend" else "GPU"

    def _ray_argv(self, seat: layout.Seat) -> List[List[str]]:
        """`ray start` in the foreground, with the node's part of the devices as its resource."""
        port = seat.ports["ray_port"]
        argv = [["ray", "start"]]
        if seat.kind == "ray-head":
            argv += [["--head"], ["--port", str(port)], ["--include-dashboard", "False"]]
        else:
            argv.append(["--address", f"{self.scene.address(seat.head)}:{port}"])
        argv.append(["--node-ip-address", self.scene.address(seat.host)])
        argv.append(["--node-manager-port", str(port + 1)])
        argv.append(["--object-manager-port", str(port + 2)])
        argv.append(["--min-worker-port", str(RAY_WORKER_PORTS[0])])
        argv.append(["--max-worker-port", str(RAY_WORKER_PORTS[1])])
        if self._ray_resource(seat) == "NPU":
            argv.append(["--resources", json_text({"NPU": len(seat.devices)})])
        else:
            argv.append(["--num-gpus", str(len(seat.devices))])
        return [*argv, ["--disable-usage-stats"], ["--block"]]

    def _ray_wait(self, seat: layout.Seat) -> Dict[str, Any]:
        """What the server's script waits for: the cluster shows the devices of all nodes."""
        total = seat.pool["devices"] * seat.pool["nodes"]
        address = f"{self.scene.address(seat.head)}:{seat.ports['ray_port']}"
        nodes = self.ray_nodes[seat.instance]
        parts = ", ".join(f"{seat.pool['devices']} of {host} ({self.scene.address(host)})" for host in nodes)
        return {
            "argv": ["ray", "status", f"--address={address}"],
            "shows": f"/{float(total)} {self._ray_resource(seat)}",
            "seconds": RAY_SECONDS,
            "for": f"{total} devices in the Ray cluster at {address}: {parts}",
        }

    # -- processes beside the engines ----------------------------------------------------------------------------------

    def _companions(self) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
        """Those that start before the engines, and those after."""
        before: List[Dict[str, Any]] = []
        after: List[Dict[str, Any]] = []
        if self.recipe.get("kv_store"):
            before.append(self._finished(kv.store_process(self.scene), []))
        for name, given in (self.recipe.get("services") or {}).items():
            late = given.get("starts", "before") == "after"
            (after if late else before).append(self._finished(companions.service_process(self.scene, name), []))
        return before, after

    def _finished(self, part: Dict[str, Any], starts_after: List[str]) -> Dict[str, Any]:
        """A process beside the engines with all the keys that a process has."""
        devices = part.get("devices", [])
        process: Dict[str, Any] = {
            "name": part["name"],
            "kind": part["kind"],
            "role": part["role"],
            "pool": part.get("pool"),
            "instance": None,
            "host": part["host"],
            "devices": devices,
            "parallel": None,
            "ports": part["ports"],
            "unset": list(engines.PROXY_VARIABLES),
            "source": part["source"],
            "env": [variable(name, value) for name, value in part["env"].items() if value is not None],
            "files": [{"path": path, "text": text} for path, text in part.get("files", {}).items()],
            "wait": None,
            "argv": part["argv"],
            "health": part["health"],
            "starts_after": starts_after,
        }
        self.scene.seat_in(
            process,
            part.get("options", {}),
            image=part["image"],
            devices=devices,
            mounts=part.get("mounts", ()),
            restart=part["kind"] != "job",
        )
        return process

    # -- what the fabric check wants to know ---------------------------------------------------------------------------

    def _device_pairs(
        self, instances: Sequence[Mapping[str, Any]], processes: Sequence[Mapping[str, Any]]
    ) -> List[Dict[str, Any]]:
        by_name = {process["name"]: process for process in processes}

        def members(*chosen: Mapping[str, Any]) -> List[Dict[str, Any]]:
            """Devices by host, in the order of the instances."""
            found: List[Dict[str, Any]] = []
            for instance in chosen:
                here: Dict[str, List[int]] = {}
                for name in instance["processes"]:
                    here.setdefault(by_name[name]["host"], []).extend(by_name[name]["devices"])
                found += [{"host": host, "devices": devices} for host, devices in here.items()]
            return found

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


def _place(kind: str) -> int:
    """Place in the order of starting; services that start late come just before the router."""
    return _ORDER.index(kind) if kind in _ORDER else _ORDER.index("router")


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
