"""Family E: prefill and decode, KV pool; with it the answers that are wrong (family G).

Ports and the master's reachability are in `launch`.
"""

from __future__ import annotations

from sandbox.faults.model import engine_fault

engine_fault(
    "E04", "kv-connect-timeout", "kv",
    "Connect timeout to: 198.51.100.7:20000, consider ASCEND_CONNECT_TIMEOUT. status 103902",
    r"Connect timeout to: .*ASCEND_CONNECT_TIMEOUT", "A KV link is not made in time",
)  # fmt: skip
engine_fault(
    "E05", "kv-connect-failed", "kv", "Failed to connect to target 198.51.100.7:20000, status 103900",
    r"Failed to connect to (target|segment).*103900", "A KV link is refused",
)  # fmt: skip
engine_fault(
    "E07", "mooncake-lib", "config", "No module named 'mooncake'",
    r"No module named 'mooncake'", "The KV transport's library is not in the image",
)  # fmt: skip
engine_fault(
    "E08", "config-path-unset", "kv", "The environment variable 'MOONCAKE_CONFIG_PATH' is not set.",
    r"MOONCAKE_CONFIG_PATH' is not set", "The KV store's configuration is not named",
)  # fmt: skip
engine_fault(
    "E11", "batch-put-failed", "request", "HcclBatchPut, hccl_result = 9. Failed to put 64 keys",
    r"HcclBatchPut, hccl_result = \d", "The KV pool's data path fails",
)  # fmt: skip
engine_fault(
    "E13", "proxy-200-empty", "request", "empty",
    r'"text": ?""', "Answers are empty, with status 200",
)  # fmt: skip
engine_fault(
    "G01", "garbage-output", "request", "garbage",
    r'"text": ?"(?!.*Paris)[^"]', "Answers make no sense, with status 200",
)  # fmt: skip
