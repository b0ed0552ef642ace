"""What all parts of the planner look at: the inputs, the seats, the plan values that texts may refer to, containers."""

from __future__ import annotations

__all__ = ["CACHE", "STATE", "Scene", "model_directory", "weights_argument"]

import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Union

from . import access, engines, layout, references
from .spelling import merged, mount

#: Where the clients of model hubs keep what they fetch on the hosts, unless told otherwise.
CACHE = "/root/.cache"

#: State of a cluster on its hosts, below this directory.
STATE = "/var/lib/ascent"


# Where models of modelers.cn lie below the cache directory; its own client's cache is of no use to engines.
_MODELERS = "modelers"
#: What bounds a process's share of its host, in a container or a unit; a process has none but those that are given.
_HOST_SHARE = ("memory", "cpuset_cpus", "cpuset_mems")


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
        place = cache.rstrip("/") + "/huggingface/hub/models--" + str(model["id"]).replace("/", "--")
        revision = str(model.get("revision") or "")
        # A commit names its files; a branch or tag is looked up in the cache itself.
        return f"{place}/snapshots/{revision}" if re.fullmatch("[0-9a-f]{40}", revision) else place
    if model.get("source") == "modelers":
        return f"{cache.rstrip('/')}/{_MODELERS}/{model['id']}"
    return None


def weights_argument(model: Mapping[str, Any], engine: str) -> str:
    """What an engine is told to load: a directory as it sees it, or the name by which it looks in the hub's cache.

    Engines know nothing of modelers.cn, so that its models are served by path.
    """
    if model.get("path"):
        return str(model["path"])
    if model.get("source") == "modelers":
        return f"{engines.cache_target(engine)}/{_MODELERS}/{model['id']}"
    return str(model["id"])


class Scene:
    """The inputs of one plan, with every process seated and every address known."""

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
        guard: Mapping[str, Any],
    ) -> None:
        self.recipe = recipe
        self.hosts = {host["name"]: host for host in hosts}
        self.pools = pools
        self.placement = placement
        self.cluster = cluster
        self.mirror = mirror
        self.cache = cache
        self.keyed, self.tls = bool(guard.get("api_key")), bool(guard.get("tls"))
        self.guard = guard
        self.routed = (recipe.get("router") or {}).get("kind", "none") != "none"
        #: Whether a gateway stands before the router, which takes the port that clients know.
        self.gateway = self.routed and (self.keyed or self.tls)
        self.engine = str(recipe["engine"]["name"])
        self.model = recipe["model"]
        self.served_name = str(self.model.get("served_name", self.model["id"]))
        self.environment = engines.environment(recipe["engine"])
        self.container_options: Mapping[str, Any] = recipe.get("container") or {}
        self.number = {name: index for index, name in enumerate(self.hosts)}
        #: The pools of every host; the first one is the pool that took the host.
        self.pools_of: Dict[str, List[Mapping[str, Any]]] = {name: [] for name in self.hosts}
        for pool in sorted(pools, key=lambda pool: pool["share_nodes_with"] is not None):
            for name in placement.hosts[pool["name"]]:
                self.pools_of[name].append(pool)
        self.profile = {name: hardware[self._hardware(host)] for name, host in self.hosts.items()}
        #: Last part of the name of an instance's first process: Dynamo's engines have no API of their own.
        self.entry = "worker" if self.engine == "dynamo" else "head"
        self.seats = layout.seats(pools, placement, self.entry)
        self.values = self._values()

    def _hardware(self, host: Mapping[str, Any]) -> str:
        mine = self.pools_of[host["name"]]
        return str(host.get("hardware") or (mine[0] if mine else self.recipe)["hardware"])

    # -- places --------------------------------------------------------------------------------------------------------

    def first_host(self, pool: Optional[str]) -> str:
        """The first host of a pool, or of the first pool."""
        return self.placement.hosts[pool or self.pools[0]["name"]][0]

    def address(self, host: str) -> str:
        return str(self.hosts[host]["node_ip"])

    def serves_api(self, seat: layout.Seat) -> bool:
        """Whether clients or a router can send requests to this process."""
        return seat.kind in ("head", "rank") and self.engine != "dynamo"

    @property
    def engine_tls(self) -> bool:
        """Whether engines end TLS themselves: where clients ask them, without a router between."""
        return self.tls and not self.routed

    def url(self, seat: layout.Seat) -> str:
        scheme = "https" if self.engine_tls else "http"
        return f"{scheme}://{self.address(seat.host)}:{seat.ports['port']}"

    def router_port(self) -> int:
        """The port that clients of the router know; a gateway takes it, and the router then has the next."""
        return int((self.recipe.get("router") or {}).get("port", layout.DEFAULT_ROUTER_PORT))

    def router_place(self) -> str:
        """Where the router itself listens, as ``address:port``; behind a gateway on its own host only, if it can.

        The layerwise proxy is called back by the decode side, and a bridge network has a loopback of its own.
        """
        router = self.recipe["router"]
        address = self.address(self.first_host(router.get("on")))
        if not self.gateway:
            return f"{address}:{self.router_port()}"
        called = router["kind"] == "pd-layerwise" or self.container_options.get("network") == "bridge"
        return f"{address if called else '127.0.0.1'}:{self.router_port() + 1}"

    def traits(self, pool: Mapping[str, Any]) -> Set[str]:
        """What the plan fills in for the connectors of a pool."""
        transfer = {**(self.recipe.get("kv_transfer") or {}), **pool["kv_transfer"]}
        return engines.connector_traits(transfer)

    def publishes(self, pool: Mapping[str, Any]) -> bool:
        """Whether the engines of a pool publish KV events."""
        return pool["kv_events"] is not None and pool["kv_events"] is not False

    def same_image(self, given: Mapping[str, Any]) -> bool:
        """Whether a process beside the engines runs in the engines' image."""
        return not given.get("image")

    # -- values that texts may refer to --------------------------------------------------------------------------------

    def _values(self) -> Dict[str, Any]:
        model = self.model
        urls: Dict[str, List[str]] = {"serve": [], "prefill": [], "decode": []}
        sources: Dict[str, List[str]] = {}
        entry: Dict[str, str] = {}
        first_url = None
        for seat in self.seats:
            if self.serves_api(seat):
                urls[seat.pool["role"]].append(self.url(seat))
                entry.setdefault(seat.instance, self.url(seat))
                first_url = first_url or self.url(seat)
            if self.publishes(seat.pool) and seat.kind in ("head", "rank", "headless"):
                key = self.url(seat) if seat.kind == "rank" else entry.get(seat.instance, "")
                ranks = range(seat.start_rank, seat.start_rank + seat.local)
                port = seat.ports["kv_events_port"]
                sources.setdefault(key, []).extend(f"tcp://{self.address(seat.host)}:{port + rank}" for rank in ranks)
        values: Dict[str, Any] = {
            "cluster": self.cluster,
            "model": weights_argument(model, self.engine),
            "model_directory": model_directory(model, self.cache),
            "served_name": self.served_name,
            "api_urls": [url for side in urls.values() for url in side],
            "prefill_urls": urls["prefill"],
            "decode_urls": urls["decode"],
            "kv_event_sources": [f"{url}={','.join(ends)}" for url, ends in sources.items() if url],
        }
        if self.routed:
            address = self.address(self.first_host(self.recipe["router"].get("on")))
            first_url = f"{'https' if self.tls else 'http'}://{address}:{self.router_port()}"
        if first_url is not None:
            values["endpoint_url"] = first_url
            values["endpoint_ip"], _, values["endpoint_port"] = first_url.partition("://")[2].rpartition(":")
        store = self.recipe.get("kv_store")
        if store:
            address = self.address(self.first_host(store.get("on")))
            values["kv_store_ip"] = address
            values["kv_store_address"] = f"{address}:{store.get('port', layout.DEFAULT_STORE_PORTS[0])}"
        for name, service in (self.recipe.get("services") or {}).items():
            if service.get("ports"):
                address = self.address(self.first_host(service.get("on")))
                values[f"service.{name}"] = f"{address}:{next(iter(service['ports'].values()))}"
        return values

    def on_host(self, name: str) -> Dict[str, Any]:
        """The values for a process beside the engines."""
        host = self.hosts[name]
        own = {"node_ip": host["node_ip"], "nic": host.get("nic"), "arch": host.get("arch"), "host": name}
        return {**self.values, **own, "host_index": self.number[name]}

    def of_seat(self, seat: layout.Seat) -> Dict[str, Any]:
        """The values for one engine process."""
        host = self.hosts[seat.host]
        return {
            **self.values,
            "node_ip": host["node_ip"],
            "nic": host.get("nic"),
            "arch": host.get("arch"),
            "host": seat.host,
            "host_index": self.number[seat.host],
            "head_ip": self.address(seat.head),
            "pool": seat.pool["name"],
            "instance": seat.instance,
            "instance_index": seat.number,
            "node_index": seat.node,
            "local_index": seat.local_index,
            "rank": seat.start_rank,
            "port": seat.ports["port"],
            "rpc_port": seat.ports["rpc_port"],
            "kv_port": seat.ports["kv_port"],
            "kv_events_port": seat.ports["kv_events_port"],
            "side_channel_port": seat.ports["side_channel_port"],
        }

    # -- containers ----------------------------------------------------------------------------------------------------

    def sources(self) -> List[Union[str, List[str]]]:
        """Scripts to source first inside the engines' image, or on the host."""
        given = self.recipe["engine"].get("source")
        if given is not None:
            return list(given)
        return engines.source_scripts(self.engine, host=self.environment is not None)

    def image(self, host: str, given: Optional[str] = None) -> str:
        """The full reference of an image here: the engine's own gets the hardware's suffix, every one the mirror."""
        if given:
            return engines.image_for(given, "", self.mirror)
        return engines.image_for(self.recipe["engine"]["image"], self.profile[host]["image_suffix"], self.mirror)

    def seat_in(
        self, process: Dict[str, Any], options: Mapping[str, Any], *, image: Optional[str] = None, **more: Any
    ) -> None:
        """Give a process its ``container``, or its ``unit`` where it belongs to an engine outside containers.

        What has an image of its own runs in it either way. ``more`` is what `container` takes.
        """
        if self.keyed or self.tls:
            contained = self.environment is None or image is not None
            # Dynamo's processes ask each other for no key, and their image's user could not read it.
            knows = self.engine != "dynamo" or process["kind"] in ("gateway", "job")
            names = access.files_for(process, key=self.keyed and knows, tls=self.tls, gateway=self.gateway)
            if names:
                entry = access.secrets_entry(
                    self.guard["root"], self.cluster, process["name"], names, contained=contained
                )
                process["secrets"] = entry
                seen = {"source": entry["source"], "target": entry["directory"], "read_only": True}
                more["mounts"] = [*more.get("mounts", ()), *([seen] if contained else [])]
        if self.environment is None or image is not None:
            process["unit"] = None
            process["container"] = self.container(process, options, image=image, **more)
            return
        more.pop("mounts", None)
        place = self.environment["path"]
        caches: List[Dict[str, Any]] = []
        if self.cache.rstrip("/") != CACHE:
            # In containers the directory is mounted to where clients look; here they are told.
            caches = [
                {"name": "XDG_CACHE_HOME", "value": self.cache},
                {"name": "MODELSCOPE_CACHE", "value": self.cache.rstrip("/") + "/modelscope/hub"},
            ]
        process["env"] = [
            {"name": "VIRTUAL_ENV", "value": place},
            {"name": "PATH", "prepend": place + "/bin"},
            *caches,
            *process["env"],
        ]
        # What the hardware asks of containers is none of a unit's concern; what the recipe says is.
        given = merged(self.container_options, options)
        restart = given.get("restart_policy", "always") if more.get("restart", True) else "no"
        limits = {name.upper(): _unit_limit(str(limit)) for name, limit in (given.get("ulimits") or {}).items()}
        process["container"] = None
        process["unit"] = {
            "name": f"ascent-{self.cluster}-{process['name']}.service",
            "environment": place,
            "limits": {"MEMLOCK": "infinity", "NOFILE": "1048576", "STACK": "67108864", **limits},
            # systemd starts at boot what nobody has disabled, so that is what unless-stopped comes to.
            "restart": "always" if restart == "unless-stopped" else restart,
            **{name: str(given[name]) for name in _HOST_SHARE if given.get(name)},
        }

    def container(
        self,
        process: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        image: Optional[str] = None,
        devices: Sequence[int] = (),
        mounts: Sequence[Mapping[str, Any]] = (),
        ipc: Optional[str] = None,
        restart: bool = True,
        init: bool = False,
    ) -> Dict[str, Any]:
        """The container of one process. ``options`` go over those of the recipe; ``devices`` are what it may open.

        ``init``: a small first process hands signals on and reaps what is left behind.
        """
        profile = self.profile[process["host"]]
        needs = profile.get("container") or {} if devices else {}
        given = merged(merged(needs, self.container_options), options)
        ipc = given.get("ipc", ipc)
        network = given.get("network", "host")
        script = f"/etc/ascent/{process['name']}.sh"
        ports = [port for entry in process["ports"] for port in range(entry["first"], entry["first"] + entry["count"])]
        return {
            "name": f"ascent-{self.cluster}-{process['name']}",
            "image": self.image(process["host"], image),
            "network": network,
            "publish": ports if network == "bridge" else [],
            "ipc": ipc,
            "shm_size": None if ipc == "host" else given.get("shm_size", "1g"),
            "devices": [*self.device_files(profile, devices), *given.get("devices", [])],
            "gpus": self._gpus(profile, devices),
            "mounts": self._mounts(profile, given, image=image, devices=devices, more=mounts),
            "privileged": bool(given.get("privileged", False)),
            "capabilities": list(given.get("capabilities", [])),
            "ulimits": {name: str(limit) for name, limit in (given.get("ulimits") or {}).items()},
            "restart_policy": given.get("restart_policy", "unless-stopped") if restart else "no",
            "script": script,
            "command": ["/bin/bash", script],
            # Only where they are given: a container is what it was before there were such limits.
            **({"init": True} if init else {}),
            **{name: str(given[name]) for name in _HOST_SHARE if given.get(name)},
        }

    @staticmethod
    def _gpus(profile: Mapping[str, Any], devices: Sequence[int]) -> Optional[str]:
        """What the container engine's --gpus takes: a process's own devices, or all where they need their numbers."""
        if not profile.get("gpus") or not devices:
            return None
        # As with device files: a process that starts further up is given the whole node and picks by the variable.
        whole = devices[0] != 0 or len(devices) == profile["devices"]
        return "all" if whole else "device=" + ",".join(str(device) for device in devices)

    def device_files(self, profile: Mapping[str, Any], devices: Sequence[int]) -> List[str]:
        """Device files of a process's devices; none where the runtime hands devices out by itself."""
        if not devices:
            return []
        files: List[str] = []
        if profile["device_file"]:
            # The runtime numbers what it sees from 0, while the variable that picks devices holds the node's own
            # numbers. A process that starts further up is given the whole node and picks by that variable.
            numbers = list(devices) if devices[0] == 0 else list(range(profile["devices"]))
            files = [str(profile["device_file"]).format(index=number) for number in numbers]
        files += profile["management_devices"]
        return files + list(profile.get("kv_transfer_devices", []) if self.recipe.get("kv_transfer") else [])

    def _mounts(
        self,
        profile: Mapping[str, Any],
        given: Mapping[str, Any],
        *,
        image: Optional[str],
        devices: Sequence[int],
        more: Sequence[Mapping[str, Any]],
    ) -> List[Dict[str, Any]]:
        driver = bool(devices) or image is None
        result: List[Dict[str, Any]] = [mount(text) for text in profile["mounts"]] if driver else []
        target = engines.cache_target(self.engine if image is None else "")
        result.append({"source": self.cache, "target": target, "read_only": False})
        if driver and self.recipe.get("kv_transfer"):
            result += [mount(text) for text in profile.get("kv_transfer_mounts", [])]
        path = self.model.get("path")
        if path and not any(_inside(path, one["target"]) for one in result):
            result.append({"source": path, "target": path, "read_only": False})
        result += [dict(one) for one in more]
        wanted = [mount(text) for text in [*self.container_options.get("mounts", []), *given.get("mounts", [])]]
        seen = {one["target"] for one in result}
        for one in wanted:
            if one["target"] not in seen:
                seen.add(one["target"])
                result.append(one)
        return result

    def resolved(self, value: Any, host: str) -> Any:
        """A value of a process beside the engines, with what it refers to filled in."""
        return references.resolve(value, self.on_host(host))


def _unit_limit(limit: str) -> str:
    """A limit of the container engine's, soft[:hard], as systemd spells it.

    >>> _unit_limit("-1"), _unit_limit("1024:-1")
    ('infinity', '1024:infinity')
    """
    return ":".join("infinity" if part == "-1" else part for part in limit.split(":"))


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")
