"""Settings of the scheduler, the KV cache and the API that come straight from the arguments."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import timing
from .cache import BlockPool
from .log import EngineError
from .scheduler import Limits

if TYPE_CHECKING:
    from .config import Settings

BLOCK_TOKENS = 128  # the plugin's block size where none is given
FULL_MODES = ("FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
GIB = 2**30


@dataclass(frozen=True)
class Serving:
    """How an engine serves. The names are those of the arguments, in short."""

    block_size: int = BLOCK_TOKENS
    caching: bool = True
    chunked: bool = True
    long_prompt: int = 0
    blocks_override: int | None = None
    kv_bytes: int | None = None
    graphs: str = "piecewise"
    prompt_details: bool = False
    request_id_headers: bool = False
    force_usage: bool = False
    track_load: bool = False
    log_stats: bool = True
    most_logprobs: int = 20
    auto_tools: bool = False
    tool_parser: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    refresh_certificate: bool = False
    recompute_lost: bool = False  # a request whose KV did not arrive is computed here instead of failing


def read(args: argparse.Namespace) -> Serving:
    """The settings that parsed arguments ask for; options that a release does not have are as by default."""
    given = vars(args).get
    mode = str((given("compilation_config") or {}).get("cudagraph_mode") or "").upper()
    graphs = "eager" if given("enforce_eager") or mode == "NONE" else "full" if mode in FULL_MODES else "piecewise"
    policy = (given("kv_transfer_config") or {}).get("kv_load_failure_policy")
    return Serving(
        block_size=given("block_size") or BLOCK_TOKENS,
        caching=given("enable_prefix_caching") is not False,
        chunked=given("enable_chunked_prefill") is not False,
        long_prompt=given("long_prefill_token_threshold") or 0,
        blocks_override=given("num_gpu_blocks_override"),
        kv_bytes=given("kv_cache_memory_bytes"),
        graphs=graphs,
        prompt_details=bool(given("enable_prompt_tokens_details")),
        request_id_headers=bool(given("enable_request_id_headers")),
        force_usage=bool(given("enable_force_include_usage")),
        track_load=bool(given("enable_server_load_tracking")),
        log_stats=not given("disable_log_stats"),
        most_logprobs=given("max_logprobs", 20),
        auto_tools=bool(given("enable_auto_tool_choice")),
        tool_parser=given("tool_call_parser"),
        certificate=given("ssl_certfile"),
        private_key=given("ssl_keyfile"),
        refresh_certificate=bool(given("enable_ssl_refresh")),
        recompute_lost=policy == "recompute",
    )


def api_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """The keys that clients may show: the option's, else that of VLLM_API_KEY."""
    return tuple(key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key)


def shape(config: Settings) -> timing.Shape:
    """The model's shape as far as its files tell it."""
    return timing.Shape.of(config.model.text_config, config.model.size)


def costs(config: Settings) -> timing.Costs:
    """Step times of one rank of this engine."""
    spread = config.world * (config.data if config.expert_parallel else 1)
    return timing.Costs(shape(config), config.world, spread, config.serving.graphs)


def limits(config: Settings) -> Limits:
    """What bounds a step of this engine."""
    serving = config.serving
    return Limits(
        config.max_num_seqs, config.max_num_batched_tokens, config.draft_tokens, serving.chunked, serving.long_prompt
    )


def kv_blocks(config: Settings, free_mb: float) -> int:
    """Blocks of a rank's KV cache in `free_mb` of each of its devices; EngineError when one sequence cannot fit.

    KV heads are divided over the tensor parallel devices, layers over the pipeline; latent KV is on every one of them.
    """
    serving, text_config = config.serving, config.model.text_config
    heads = int(text_config.get("num_key_value_heads") or config.tensor)
    latent = "kv_lora_rank" in text_config
    parts = config.pipeline * (1 if latent else min(config.tensor, heads))
    token = max(shape(config).kv_bytes / parts, 1024.0)
    free = serving.kv_bytes or free_mb * 2**20
    blocks = serving.blocks_override or int(free // (token * serving.block_size))
    needed = -(-config.max_model_len // serving.block_size)
    if blocks < needed:
        have = (blocks * serving.block_size * token) if serving.blocks_override else free
        raise EngineError(
            f"To serve at least one request with the models's max seq len ({config.max_model_len}), "
            f"({needed * serving.block_size * token / GIB:.2f} GiB KV cache is needed, which is larger than the "
            f"available KV cache memory ({have / GIB:.2f} GiB). Based on the available memory, the estimated maximum "
            f"model length is {blocks * serving.block_size}. Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine.",
            who=config.core(config.start_rank),
        )
    return blocks


def pool(config: Settings, blocks: int) -> BlockPool:
    """An empty KV cache of one rank."""
    return BlockPool(blocks, config.serving.block_size, config.serving.caching)


def capacity_lines(config: Settings, blocks: int) -> tuple[str, str]:
    """What the engine logs about the size of its KV cache."""
    tokens = blocks * config.serving.block_size
    most = tokens / config.max_model_len
    return (
        f"GPU KV cache size: {tokens:,} tokens",
        f"Maximum concurrency for {config.max_model_len:,} tokens per request: {most:.2f}x",
    )
