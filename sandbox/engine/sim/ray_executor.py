"""The executor ray: workers of all ranks run as actors in a real Ray cluster, on the nodes that hold the devices.

The server takes one bundle of one NPU for each device, as the engine does, and has one actor on each node of the
placement group work for all devices there: see what is visible, take the HBM, read the weights. The server needs no
devices of its own, only the cluster at RAY_ADDRESS. An actor that ends takes the engine with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import weights
from .config import Settings, check_memory, host_ip
from .dp import dead_engine
from .environment import Lease, check_interfaces, hbm, visible_devices
from .log import EngineError, line
from .timing import timeout

DEVICE = "NPU"  # the name of the resource
GROUP_SECONDS = 1800.0  # how long a placement group may take
FIRST_NOTICE_SECONDS = 10.0  # the next one comes after twice the time
SOURCE = "ray_utils.py"


class NodeWorkers:
    """All workers of one engine on one node: the body of an actor."""

    def __init__(self) -> None:
        self.lease = Lease()

    def address(self) -> str:
        """Address of the node as its own environment has it."""
        return host_ip()

    def load(self, config: Settings, devices: int) -> dict[str, Any]:
        """Take the HBM of this many devices and read the weights: MB `left` for the KV cache, or an `error`."""
        who = config.worker(0)
        try:
            visible = visible_devices()
            if devices > len(visible):
                raise EngineError(
                    f"EL0003: Set device failed, invalid device id. Failed to open device, device id {len(visible)} "
                    f"of {devices}: RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES is not set where Ray was started",
                    kind="RuntimeError",
                    who=who,
                )
            check_interfaces(who)
            taken = visible[:devices]
            budget, left = check_memory(config, min(total for total, _ in hbm(taken).values()))
            self.lease.take(taken, budget, who)
            for shard in weights.read(config.model_id).shards:
                weights.load(shard, who)
        except EngineError as error:
            # An exception of a program that Ray does not know arrives as text; this way it arrives whole.
            return {"error": {"message": error.message, "kind": error.kind, "who": error.who, "lines": error.lines}}
        return {"left": left}

    def stay(self) -> None:
        """Hold what was taken until the actor ends."""
        threading.Event().wait()


@dataclass(frozen=True)
class Part:
    """What one node has of a placement group: its first bundle, and how many."""

    node: str
    bundle: int
    devices: int


def parts(bundles: Mapping[int, str]) -> list[Part]:
    """The nodes of a placement group in the order of their first bundles. `bundles` gives the node of each."""
    first: dict[str, int] = {}
    for bundle in sorted(bundles):
        first.setdefault(bundles[bundle], bundle)
    nodes = list(bundles.values())
    return [Part(node, bundle, nodes.count(node)) for node, bundle in first.items()]


def twice_addressed(addresses: Mapping[str, str]) -> str | None:
    """What is wrong where two nodes (ids) have one address (values); None where each has its own."""
    if len(set(addresses.values())) == len(addresses):
        return None
    return (
        f"Every node should have a unique IP address. Got {len(addresses)} nodes with node ids {sorted(addresses)} and "
        f"{len(set(addresses.values()))} unique IP addresses {sorted(set(addresses.values()))}. Please check your "
        "network configuration. If you set `VLLM_HOST_IP` environment variable, make sure it is unique for each node."
    )


class RayExecutor:
    """The workers of one engine in a Ray cluster. `failed` is called with the error when one of them ends."""

    def __init__(self, config: Settings, failed: Callable[[EngineError], None]) -> None:
        self.config, self.failed = config, failed
        self.actors: list[Any] = []
        self.watch: set[asyncio.Task[None]] = set()
        self.ray: Any = None

    def connect(self) -> None:
        """Join the cluster as a driver. EngineError when there is none, or no device on the server's own node."""
        try:
            import ray
        except ImportError as error:
            raise EngineError(
                f"Failed to import Ray: {error}.Please install Ray with `pip install ray`.", who="APIServer"
            ) from error
        self.ray = ray
        try:
            ray.init(address="auto", logging_level="WARNING", configure_logging=False, log_to_driver=True)
        except (ConnectionError, RuntimeError, OSError) as error:
            raise EngineError(str(error), kind=type(error).__name__, who="EngineCore") from error
        have = ray.cluster_resources().get(DEVICE, 0)
        line("EngineCore", f"Connected to Ray {ray.__version__}: {have:g} {DEVICE} in {len(ray.nodes())} nodes",
             source=SOURCE)  # fmt: skip

    async def place(self) -> list[Part]:
        """Reserve one bundle for each device. EngineError when the cluster cannot give them in time."""
        ray, config = self.ray, self.config
        wanted = config.world * config.data_local
        have = int(ray.cluster_resources().get(DEVICE, 0))
        if wanted > have:
            line("EngineCore", f"The number of required {DEVICE}s ({wanted}) exceeds the total number of available "
                 f"{DEVICE}s ({have}) in the placement group.", level="WARNING", source=SOURCE)  # fmt: skip
        here = ray._private.state.available_resources_per_node().get(ray.get_runtime_context().get_node_id(), {})
        if here.get(DEVICE, 0) < 1:
            raise EngineError(
                f"Current node has no {DEVICE} available. current_node_resource={here}. vLLM engine cannot start "
                f"without {DEVICE}. Make sure you have at least 1 {DEVICE} available in a node "
                f"current_node_id={ray.get_runtime_context().get_node_id()!r} current_ip={config.host_ip!r}.",
                who="EngineCore",
            )
        specs: list[dict[str, float]] = [{DEVICE: 1.0} for _ in range(wanted)]
        specs[0][f"node:{config.host_ip}"] = 0.001  # the first worker is beside the server
        group = ray.util.placement_group(specs, strategy="PACK")
        ready = group.ready()
        waited, notice = 0.0, FIRST_NOTICE_SECONDS
        while not (await asyncio.to_thread(ray.wait, [ready], timeout=timeout(notice)))[0]:
            waited += notice
            if waited >= GROUP_SECONDS:
                raise EngineError(
                    f"Cannot provide a placement group of {specs[:1]!r}… within {GROUP_SECONDS:.0f} seconds. See `ray "
                    "status` and `ray list nodes` to make sure the cluster has enough resources.",
                    who="EngineCore",
                )
            line("EngineCore", f"Waiting for creating a placement group of specs for {waited:.0f} seconds. "
                 f"specs={wanted} bundles of 1 {DEVICE}. Check `ray status` and `ray list nodes` to see if you have "
                 "enough resources, and make sure the IP addresses used by ray cluster are the same as VLLM_HOST_IP "
                 "environment variable specified in each node if you are running on a multi-node.",
                 source=SOURCE)  # fmt: skip
            notice = min(notice * 2, GROUP_SECONDS - waited)
        found = parts(ray.util.placement_group_table(group)["bundles_to_node_id"])
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        actor = ray.remote(NodeWorkers)
        self.actors = [
            actor.options(
                num_cpus=0,
                resources={DEVICE: 1},
                scheduling_strategy=strategy(placement_group=group, placement_group_bundle_index=part.bundle),
            ).remote()
            for part in found
        ]
        addresses = await self._all(one.address.remote() for one in self.actors)
        if wrong := twice_addressed({part.node: str(address) for part, address in zip(found, addresses, strict=True)}):
            raise EngineError(wrong, kind="RuntimeError", who="EngineCore")
        for part, address in zip(found, addresses, strict=True):
            line("EngineCore", f"{part.devices} workers on {address}", source="ray_executor.py")
        return found

    async def load(self, found: list[Part]) -> float:
        """Have every node load; MB that the poorest device has left for the KV cache."""
        results = await self._all(
            actor.load.remote(self.config, part.devices) for actor, part in zip(self.actors, found, strict=True)
        )
        for result in results:
            if wrong := result.get("error"):
                raise EngineError(wrong["message"], kind=wrong["kind"], who=wrong["who"], lines=tuple(wrong["lines"]))
        for part, actor in zip(found, self.actors, strict=True):
            task = asyncio.ensure_future(self._stay(part, actor))
            self.watch.add(task)
        return min(float(result["left"]) for result in results)

    async def _all(self, references: Any) -> list[Any]:
        try:
            return await asyncio.gather(*(asyncio.wrap_future(one.future()) for one in references))
        except self.ray.exceptions.RayError as error:
            raise dead_engine("EngineCore", f"RayWorkerProc died: {_first_line(error)}") from error

    async def _stay(self, part: Part, actor: Any) -> None:
        try:
            await asyncio.wrap_future(actor.stay.remote().future())
        except self.ray.exceptions.RayError as error:
            self.failed(dead_engine("EngineCore", f"RayWorkerWrapper on node {part.node} died unexpectedly: "
                                    f"{_first_line(error)}"))  # fmt: skip

    def close(self) -> None:
        """Leave the cluster; its actors end with their driver."""
        for task in self.watch:
            task.cancel()
        if self.ray and self.ray.is_initialized():
            self.ray.shutdown()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
