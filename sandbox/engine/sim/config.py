"""From parsed arguments to one checked engine configuration, refused with the engine's own reasons."""

from __future__ import annotations

import argparse
import os
import socket
import uuid
from dataclasses import dataclass
from typing import Any

from . import serving, weights
from .environment import USABLE
from .log import EngineError, line
from .options import validation_error, wrong_fields

PULL_CONNECTORS = ("MooncakeConnectorV1", "MooncakeHybridConnector")
LAYERWISE_CONNECTOR = "MooncakeLayerwiseConnector"
OTHER_CONNECTORS = (
    "AscendStoreConnector",
    "MooncakeConnectorStoreV1",
    "UCMConnector",
    "OffloadingConnector",
    "SimpleCPUOffloadConnector",
    "RecomputeCPUOffloadConnector",
    "SfaRemoteD2HConnector",
)
DEFAULT_MAX_NUM_SEQS = 256  # the engine's default for an API server on a device without a class of its own
DEFAULT_BATCHED_TOKENS = 2048


@dataclass(frozen=True)
class KvTransfer:
    """The prefill/decode connector of this instance. `sizes` are (dp, tp) of both sides, as the arguments gave them."""

    connector: str
    role: str
    port: int
    engine_id: str
    sizes: dict[str, tuple[int, int]]

    @property
    def side(self) -> str:
        """`prefill`, `decode` or `both`."""
        return {"kv_producer": "prefill", "kv_consumer": "decode"}.get(self.role, "both")

    @property
    def layerwise(self) -> bool:
        """Whether prefill pushes layer by layer (decode is asked first)."""
        return self.connector == LAYERWISE_CONNECTOR


@dataclass(frozen=True)
class Settings:
    """One engine process as the simulator runs it. Ranks are global data-parallel ranks."""

    model: weights.Model
    model_id: str
    served: tuple[str, ...]
    host: str | None
    port: int
    tensor: int
    pipeline: int
    prefill_context: int
    data: int
    data_local: int
    start_rank: int
    mode: str  # internal | hybrid | external
    headless: bool
    address: str
    rpc_port: int
    api_servers: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    draft_tokens: int
    eager: bool
    expert_parallel: bool
    memory_utilization: float
    kv: KvTransfer | None
    host_ip: str
    api_keys: tuple[str, ...]
    serving: serving.Serving
    nodes: int = 1  # that one data-parallel rank spans, with the executor mp
    node: int = 0  # which of them this process is; only the first one serves
    master: tuple[str, int] = ("127.0.0.1", 29501)  # where the nodes of a rank meet
    ray: bool = False  # whether workers run in a Ray cluster instead of in this process
    events_port: int | None = None  # of rank 0's KV events; each rank has the next one

    @property
    def world(self) -> int:
        """Devices of one data-parallel rank."""
        return self.tensor * self.pipeline * self.prefill_context

    @property
    def local_world(self) -> int:
        """Devices of one data-parallel rank in this process."""
        return self.world // self.nodes

    @property
    def ranks(self) -> range:
        """Global ranks that run in this process."""
        return range(self.start_rank, self.start_rank + self.data_local)

    @property
    def is_head(self) -> bool:
        """Whether this process holds rank 0, where the others report."""
        return self.start_rank == 0 and not self.headless

    def core(self, rank: int) -> str:
        """Log name of a rank's engine core."""
        return f"EngineCore_DP{rank}" if self.data > 1 else "EngineCore"

    def worker(self, rank: int, number: int = 0) -> str:
        """Log name of the worker of a rank's device."""
        parts = [f"DP{rank}"] * (self.data > 1) + [f"TP{number}"] * (self.world > 1)
        return "_".join(["Worker", *parts])

    def fingerprint(self) -> dict[str, Any]:
        """What all members of one data-parallel group must agree on."""
        return {
            "model": self.model_id,
            "data_parallel_size": self.data,
            "tensor_parallel_size": self.tensor,
            "pipeline_parallel_size": self.pipeline,
            "prefill_context_parallel_size": self.prefill_context,
            "enable_expert_parallel": self.expert_parallel,
            "max_model_len": self.max_model_len,
            "kv_connector": self.kv.connector if self.kv else None,
        }


def settings(args: argparse.Namespace, table: dict[str, Any]) -> Settings:
    """Check what the engine checks before it starts anything; EngineError carries its message."""
    model_id = args.model_tag or args.model
    _check_serve(args, table)
    _infer_from_nodes(args)
    mode, start, local = _data_parallel(args)
    nodes = _nodes_of_a_rank(args, local)
    model = weights.read(model_id)
    if mode == "external" and args.data_parallel_size > 1 and not model.is_moe:
        raise EngineError(
            "Non-MoE models do not support external data parallel mode. For external load balancing, launch "
            "independent vLLM instances without --data-parallel-* arguments."
        )
    _check_quantization(args.quantization, table)
    _check_speculation(args.speculative_config, table)
    length = _model_length(args, model)
    batched = args.max_num_batched_tokens or max(DEFAULT_BATCHED_TOKENS, args.max_num_seqs or 0)
    sequences = args.max_num_seqs or min(DEFAULT_MAX_NUM_SEQS, batched)
    if batched < sequences:
        raise EngineError(
            f"max_num_batched_tokens ({batched}) must be greater than or equal to max_num_seqs ({sequences})."
        )
    if batched < length and args.enable_chunked_prefill is False:
        raise EngineError(
            f"max_num_batched_tokens ({batched}) is smaller than max_model_len ({length}). This effectively limits "
            "the maximum sequence length to max_num_batched_tokens and makes vLLM reject longer sequences. "
            "Please increase max_num_batched_tokens or decrease max_model_len."
        )
    kv = _kv_transfer(args, model)
    _check_ascend(args, kv)
    served = args.served_model_name or [model_id]
    return Settings(
        model=model,
        model_id=model_id,
        served=tuple(served),
        host=args.host,
        port=args.port,
        tensor=args.tensor_parallel_size,
        pipeline=args.pipeline_parallel_size,
        prefill_context=args.prefill_context_parallel_size,
        data=args.data_parallel_size,
        data_local=local,
        start_rank=start,
        mode=mode,
        headless=args.headless,
        address=args.data_parallel_address or args.master_addr,
        rpc_port=args.data_parallel_rpc_port or 29550,
        api_servers=_api_servers(args, mode, local),
        max_num_seqs=sequences,
        max_num_batched_tokens=batched,
        max_model_len=length,
        draft_tokens=int((args.speculative_config or {}).get("num_speculative_tokens", 0)),
        eager=bool(args.enforce_eager),
        expert_parallel=bool(args.enable_expert_parallel),
        memory_utilization=args.gpu_memory_utilization,
        kv=kv,
        host_ip=host_ip(),
        api_keys=serving.api_keys(args),
        serving=serving.read(args),
        nodes=nodes,
        node=args.node_rank % nodes,
        master=(args.master_addr, args.master_port),
        ray=args.distributed_executor_backend == "ray",
        events_port=_events_port(args.kv_events_config),
    )


def host_ip() -> str:
    """Address of the node as the engine finds it: VLLM_HOST_IP, else the address of the default route."""
    if given := os.environ.get("VLLM_HOST_IP"):
        return given
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation address; choosing a route sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _check_serve(args: argparse.Namespace, table: dict[str, Any]) -> None:
    """What the serve command refuses before it looks at the model."""
    # Releases whose default is 1 can't tell it from one that is given.
    usual = next((option["default"] for option in table["options"] if option["name"] == "--api-server-count"), None)
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        raise EngineError("Error: --enable-auto-tool-choice requires --tool-call-parser", kind="TypeError")
    if args.headless and (args.api_server_count or 0) > (usual or 0):
        raise EngineError(
            f"--api-server-count={args.api_server_count} cannot be used with --headless "
            "(no API servers are started in headless mode)."
        )
    external = args.data_parallel_external_lb or args.data_parallel_rank is not None
    if external and (args.data_parallel_hybrid_lb or args.data_parallel_start_rank is not None):
        raise EngineError(
            "Cannot use both external and hybrid data parallel load balancing modes. External LB is enabled via "
            "--data-parallel-external-lb or --data-parallel-rank. Hybrid LB is enabled via "
            "--data-parallel-hybrid-lb or --data-parallel-start-rank. Use one mode or the other."
        )
    if args.config or args.grpc:
        raise EngineError("the sandbox's engine simulator has no --config and no --grpc", kind="NotImplementedError")
    if args.nnodes > 1 and args.distributed_executor_backend not in (None, "mp"):
        raise EngineError("nnodes > 1 can only be set when distributed executor backend is mp.")

    if args.distributed_executor_backend == "ray" and (args.kv_transfer_config or args.data_parallel_size > 1):
        raise EngineError(
            "the sandbox's engine simulator runs a Ray executor only without data parallelism and KV transfer",
            kind="NotImplementedError",
        )


def _infer_from_nodes(args: argparse.Namespace) -> None:
    """Fill in what follows from --nnodes and --node-rank for data parallelism, by the engine's rules."""
    if args.nnodes <= 1:
        return
    within = args.tensor_parallel_size * args.pipeline_parallel_size
    world = within * args.data_parallel_size
    if world % args.nnodes:
        raise EngineError(f"world_size={world} must be divisible by nnodes={args.nnodes}.", kind="AssertionError")
    if args.node_rank >= args.nnodes:
        raise EngineError(f"node_rank={args.node_rank} must be less than nnodes={args.nnodes}.", kind="AssertionError")
    local_world = world // args.nnodes
    rank = args.node_rank * local_world // within
    if args.data_parallel_size > 1 and args.data_parallel_external_lb:
        args.data_parallel_rank = rank
    elif args.data_parallel_size_local is None:
        args.data_parallel_size_local = max(local_world // within, 1)
        args.data_parallel_start_rank = args.data_parallel_start_rank or rank


def _nodes_of_a_rank(args: argparse.Namespace, local: int) -> int:
    """Over how many nodes one data-parallel rank goes."""
    nodes = args.nnodes // (args.data_parallel_size // local) if args.nnodes > 1 else 1
    if nodes > 1 and (args.data_parallel_size > 1 or args.kv_transfer_config):
        raise EngineError(
            "the sandbox's engine simulator spans a rank over nodes only without data parallelism and KV transfer",
            kind="NotImplementedError",
        )
    if nodes > 1 and args.node_rank and not args.headless:
        raise EngineError(
            f"node_rank={args.node_rank} runs workers only and has to be --headless", kind="AssertionError"
        )
    return max(nodes, 1)


def _events_port(given: dict[str, Any] | None) -> int | None:
    """The TCP port of rank 0's KV events; None where none are published, or not by a port."""
    if not given or not given.get("enable_kv_cache_events") or given.get("publisher", "zmq") != "zmq":
        return None
    endpoint = str(given.get("endpoint", "tcp://*:5557"))
    scheme, _, port = endpoint.rpartition(":")
    return int(port) if scheme.startswith("tcp:") and port.isdecimal() else None


def _data_parallel(args: argparse.Namespace) -> tuple[str, int, int]:
    """(load-balancing mode, first local rank, local ranks), inferred by the engine's rules."""
    size = args.data_parallel_size
    if args.data_parallel_external_lb or args.data_parallel_rank is not None:
        rank = args.data_parallel_rank
        if rank is None:
            raise EngineError(
                "data_parallel_rank or node_rank must be specified if data_parallel_external_lb is enable.",
                kind="AssertionError",
            )
        if args.data_parallel_size_local not in (None, 1):
            raise EngineError(
                "data_parallel_size_local must be 1 or None when data_parallel_rank is set", kind="AssertionError"
            )
        mode, start, local = "external", rank, 1
        if size <= 1:
            raise EngineError("data_parallel_external_lb can only be set when data_parallel_size > 1")
    elif args.data_parallel_size_local is not None:
        local = args.data_parallel_size_local
        start = args.data_parallel_start_rank or 0
        hybrid = bool(args.data_parallel_hybrid_lb or (start and not args.headless)) and local != size
        mode = ("external" if local == 1 else "hybrid") if hybrid else "internal"
    else:
        mode, start, local = "internal", args.data_parallel_start_rank or 0, size
    if local > size:
        raise EngineError(f"data_parallel_size_local ({local}) must be <= data_parallel_size ({size})")
    if local <= 0:
        raise EngineError("data_parallel_size_local must be > 0 in headless mode")
    if not 0 <= start < size:
        raise EngineError(f"data_parallel_rank ({start}) must be in the range [0, {size})")
    if start + local > size:
        raise EngineError(
            f"data_parallel_start_rank ({start}) + data_parallel_size_local ({local}) must be <= "
            f"data_parallel_size ({size})"
        )
    if args.tensor_parallel_size % args.decode_context_parallel_size:
        raise EngineError(
            f"tp_size={args.tensor_parallel_size} must be divisible by dcp_size={args.decode_context_parallel_size}."
        )
    return mode, start, local


def _api_servers(args: argparse.Namespace, mode: str, local: int) -> int:
    if args.headless:
        return 0
    if args.api_server_count is not None:
        return int(args.api_server_count)
    return {"external": 1, "hybrid": local}.get(mode, args.data_parallel_size)


def check_devices(config: Settings, devices: list[int]) -> list[int]:
    """The devices of the local ranks, in rank order; EngineError when there are too few."""
    needed = config.local_world * config.data_local
    if needed <= len(devices):
        return devices[:needed]
    if config.local_world > len(devices):
        raise EngineError(
            f"World size ({config.local_world}) is larger than the number of available NPUs ({len(devices)}) in this "
            "node. If this is intentional and you are using:\n- ray, set '--distributed-executor-backend ray'.\n"
            "- multiprocessing, set '--nnodes' appropriately."
        )
    first = len(devices) // config.world
    base = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    raise EngineError(
        f"Error setting ASCEND_RT_VISIBLE_DEVICES: local range: [{first * config.world}, "
        f'{(first + 1) * config.world}) base value: "{base}"',
        kind="Exception",
    )


def check_memory(config: Settings, total: int) -> tuple[int, float]:
    """MB of HBM taken on each device with `total` MB, and those left for the KV cache; EngineError when none are.

    Weights are spread over the devices of one rank, and over all ranks too when experts are parallel.
    """
    budget = int(total * USABLE * config.memory_utilization)
    spread = config.world * (config.data if config.expert_parallel else 1)
    left = budget - config.model.size / 2**20 / spread
    if left <= 0:
        raise EngineError(
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
            "the engine.",
            who=config.core(config.start_rank),
            lines=(f"Available KV cache memory: {left / 1024:.2f} GiB",),
        )
    return budget, left


def _check_quantization(name: str | None, table: dict[str, Any]) -> None:
    known = ["ascend", *table["quantizations"]]
    if name is not None and name not in known:
        raise EngineError(f"Unknown quantization method: {name}. Must be one of {known}.")


def _check_speculation(given: Any, table: dict[str, Any]) -> None:
    """The engine makes its configuration of this option late, so a mistake in it is no mistake of the command line."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise EngineError("1 validation error for SpeculativeConfig\n  Input should be a dictionary")
    if problems := wrong_fields(given, table["configs"]["SpeculativeConfig"]):
        raise EngineError(validation_error("SpeculativeConfig", problems), kind="pydantic_core.ValidationError")


def _model_length(args: argparse.Namespace, model: weights.Model) -> int:
    """Longest sequence in tokens: asked for, else the model's own, stretched where rope scaling is given."""
    overrides = args.hf_overrides
    if not isinstance(overrides, dict):
        raise EngineError("1 validation error for ModelConfig\nhf_overrides\n  Input should be a valid dictionary")
    if not isinstance(args.additional_config, dict):
        raise EngineError("1 validation error for VllmConfig\nadditional_config\n  Input should be a valid dictionary")
    rope = overrides.get("rope_parameters") or overrides.get("rope_scaling") or {}
    derived = overrides.get("max_position_embeddings") or model.context
    if rope.get("rope_type") == "yarn":
        derived = int(rope["factor"] * rope["original_max_position_embeddings"])
    wanted = args.max_model_len
    if wanted in (None, -1):
        return int(derived or 8192)
    if derived and wanted > derived and not os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        raise EngineError(
            f"User-specified max_model_len ({wanted}) is greater than the derived max_model_len "
            f"(max_position_embeddings={derived} or model_max_length=None in model's config.json). "
            "To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
        )
    return int(wanted)


def _kv_transfer(args: argparse.Namespace, model: weights.Model) -> KvTransfer | None:
    """The prefill/decode connector, also inside a MultiConnector; None when there is none."""
    given = args.kv_transfer_config
    if not given or not given.get("kv_connector"):
        return None
    nested = [given]
    if given["kv_connector"] == "MultiConnector":
        nested = (given.get("kv_connector_extra_config") or {}).get("connectors", [])
    found = None
    for entry in nested:
        name = entry.get("kv_connector")
        if name in (*PULL_CONNECTORS, LAYERWISE_CONNECTOR):
            found = entry
        elif name == "NixlConnector":  # vLLM has it, but no image of vLLM-Ascend has its library
            raise EngineError("NIXL is not available", kind="RuntimeError", who="EngineCore")
        elif name not in OTHER_CONNECTORS:
            raise EngineError(f"Unsupported connector type: {name}")
    if found is None:
        return None
    extra = found.get("kv_connector_extra_config") or {}
    sizes = {}
    for side in ("prefill", "decode"):
        if side in extra:
            sizes[side] = (int(extra[side]["dp_size"]), int(extra[side]["tp_size"]))
        elif found["kv_connector"] != LAYERWISE_CONNECTOR:
            raise EngineError(
                f"kv_connector_extra_config must hold `{side}` with dp_size and tp_size", kind="AssertionError"
            )
    kv = KvTransfer(
        connector=found["kv_connector"],
        role=found.get("kv_role") or given["kv_role"],
        port=int(found.get("kv_port", 14579)),
        engine_id=str(found.get("engine_id") or given.get("engine_id") or uuid.uuid4()),
        sizes=sizes,
    )
    _check_kv(args, kv, model)
    return kv


def _check_kv(args: argparse.Namespace, kv: KvTransfer, model: weights.Model) -> None:
    own = (args.data_parallel_size, args.tensor_parallel_size)
    if kv.side in kv.sizes and kv.sizes[kv.side] != own:
        raise EngineError(
            f"kv_connector_extra_config says {kv.side} dp_size={kv.sizes[kv.side][0]} tp_size={kv.sizes[kv.side][1]}, "
            f"but this {kv.side} instance runs data_parallel_size={own[0]} tensor_parallel_size={own[1]}",
            kind="AssertionError",
        )
    if len(kv.sizes) == 2:
        prefill, decode = kv.sizes["prefill"][1], kv.sizes["decode"][1]
        if prefill < decode:
            raise EngineError(
                f"prefill_tp_size: {prefill} must be greater than or equal to the decode_tp_size: {decode}"
            )
        if prefill % decode and "kv_lora_rank" not in model.text_config:
            raise EngineError(
                f"prefill_tp_size: {prefill} must be divisible by the decode_tp_size: {decode}", kind="AssertionError"
            )
    if args.pipeline_parallel_size > 1 and args.prefill_context_parallel_size > 1:
        raise EngineError("pipeline and prefill context parallel sizes cannot both be above 1", kind="AssertionError")
    if kv.side == "decode" and args.pipeline_parallel_size > 1:
        raise EngineError("decode instances must have pipeline_parallel_size 1", kind="AssertionError")
    span = own[0] * own[1] * args.pipeline_parallel_size * args.prefill_context_parallel_size
    if kv.port + span - 1 > 65535:
        raise EngineError(f"kv_port {kv.port} and {span} ranks go beyond port 65535", kind="OverflowError")


def _check_ascend(args: argparse.Namespace, kv: KvTransfer | None) -> None:
    """Rules of the Ascend plugin about its additional configuration."""
    if args.additional_config.get("recompute_scheduler_enable"):
        if kv is None or kv.side == "both":
            raise EngineError("recompute_scheduler_enable is only supported on the decode side of PD disaggregation.")
        if kv.side == "prefill":
            line("APIServer", "recompute_scheduler_enable has no effect on a prefill instance.", level="WARNING")
