"""How the real engine's answers look: key sets, metrics. Read off vLLM 0.32.0 and 0.21.0; `NEWER` are the keys and
`NEWER_METRICS` the metrics that only one of the two has.
"""

from __future__ import annotations

MODEL_CARD = {"id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"}
PERMISSION = {
    "id",
    "object",
    "created",
    "allow_create_engine",
    "allow_sampling",
    "allow_logprobs",
    "allow_search_indices",
    "allow_view",
    "allow_fine_tuning",
    "organization",
    "group",
    "is_blocking",
}

_FRAME = {"id", "object", "created", "model", "choices"}
_CHOICE = {"index", "logprobs", "finish_reason", "stop_reason", "token_ids"}
COMPLETION = _FRAME | {"service_tier", "system_fingerprint", "usage", "kv_transfer_params"}
COMPLETION_CHOICE = _CHOICE | {"text", "prompt_logprobs", "prompt_token_ids", "routed_experts"}
CHAT = COMPLETION | {"prompt_logprobs", "prompt_token_ids", "prompt_text"}
CHAT_CHOICE = _CHOICE | {"message", "routed_experts"}
MESSAGE = {"role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"}
USAGE = {"prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"}
STREAM = _FRAME | {"usage", "system_fingerprint", "prompt_token_ids", "prompt_text"}
#: Keys that one of the releases has and the other lacks.
NEWER = {
    "completion_tokens_details",
    "ec_transfer_params",
    "metrics",
    "prompt_routed_experts",
    "tool_calls",
}

_ENGINE = {"engine", "model_name"}
_COUNTERS = (
    "external_prefix_cache_hits",
    "external_prefix_cache_queries",
    "generation_tokens",
    "mm_cache_hits",
    "mm_cache_queries",
    "num_preemptions",
    "prefix_cache_hits",
    "prefix_cache_queries",
    "prompt_tokens",
    "prompt_tokens_cached",
)
_GAUGES = ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
_HISTOGRAMS = (
    "e2e_request_latency_seconds",
    "inter_token_latency_seconds",
    "iteration_tokens_total",
    "request_decode_time_seconds",
    "request_generation_tokens",
    "request_inference_time_seconds",
    "request_max_num_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
    "request_prefill_kv_computed_tokens",
    "request_prefill_time_seconds",
    "request_prompt_tokens",
    "request_queue_time_seconds",
    "request_time_per_output_token_seconds",
    "time_to_first_token_seconds",
)
#: Type and label names of every metric, by its name on the page.
METRICS: dict[str, tuple[str, set[str]]] = {
    **{f"vllm:{name}_total": ("counter", _ENGINE) for name in _COUNTERS},
    **{f"vllm:{name}": ("gauge", _ENGINE) for name in _GAUGES},
    **{f"vllm:{name}": ("histogram", _ENGINE) for name in _HISTOGRAMS},
    "vllm:cache_config_info": ("gauge", set()),
    "vllm:engine_sleep_state": ("gauge", _ENGINE | {"sleep_state"}),
    "vllm:num_requests_waiting_by_reason": ("gauge", _ENGINE | {"reason"}),
    "vllm:prompt_tokens_by_source_total": ("counter", _ENGINE | {"source"}),
    "vllm:request_success_total": ("counter", _ENGINE | {"finished_reason"}),
}
#: Metrics whose labels are the engine's settings, which change with every release.
SETTINGS = {"vllm:cache_config_info"}
#: What every engine has from its start.
CORE = set(METRICS)
_NEWER: dict[str, tuple[str, set[str]]] = {
    "vllm:admission_rejections_total": ("counter", {"model_name", "reason"}),
    "vllm:estimated_flops_per_gpu_total": ("counter", _ENGINE),
    "vllm:estimated_read_bytes_per_gpu_total": ("counter", _ENGINE),
    "vllm:estimated_write_bytes_per_gpu_total": ("counter", _ENGINE),
    "vllm:prompt_tokens_cached_by_source_total": ("counter", _ENGINE | {"source"}),
    "vllm:request_num_preemptions": ("histogram", _ENGINE),
}
#: Only with the settings that they tell of: drafted tokens, a connector for KV cache.
_OPTIONAL: dict[str, tuple[str, set[str]]] = {
    "vllm:spec_decode_num_drafts_total": ("counter", _ENGINE),
    "vllm:spec_decode_num_draft_tokens_total": ("counter", _ENGINE),
    "vllm:spec_decode_num_accepted_tokens_total": ("counter", _ENGINE),
    "vllm:spec_decode_num_accepted_tokens_per_pos_total": ("counter", _ENGINE | {"position"}),
}
METRICS |= _NEWER | _OPTIONAL
#: Metrics of connectors, which have names of their own for each.
CONNECTOR_PREFIXES = ("vllm:nixl_", "vllm:kv_", "vllm:num_requests_kv_fetch_")
