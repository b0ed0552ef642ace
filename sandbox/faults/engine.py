"""Faults of all families that the next engine on the node dies of, or shows in its answers.

The simulator reads from the node what it has to do and knows the words of each (`sandbox/engine/sim/signatures.py`).
"""

from __future__ import annotations

from sandbox.faults.model import Injection, Look, Node, fault, json_change

ENGINE_FAULTS = "/usr/local/dcmi/engine-faults.json"

# Id, name, the phase of the start in which it comes (or the request), what it shows, what it is.
LIST = (
    ("A12", "set-device-bad-id", "devices", r"EL0003.*Failed to open device",
     "The engine's visible devices are not those of its container"),
    ("B01", "cann-env-not-sourced", "config", r"libhccl\.so: cannot open", "CANN's libraries are not on the path"),
    ("B02", "atb-missing", "config", r"libatb\.so: cannot open", "NNAL's libraries are not on the path"),
    ("B03", "abi-mismatch", "config", r"undefined symbol: _ZN(3atb|3Mki|2ge)",
     "torch-npu, NNAL and CANN are of different releases"),
    ("B04", "torch-npu-cann", "devices", r"SetPrecisionMode.*500001", "torch-npu does not go with the CANN there is"),
    ("B05", "vllm-plugin-mismatch", "config", r"ImportError: cannot import name .* from 'vllm",
     "vllm and its Ascend plugin are of different releases"),
    ("B06", "opp-mismatch", "devices", r"E30006.*Failed to verify the OPP",
     "The operator package is of another version than CANN"),
    ("B08", "image-a2-a3", "devices", r"socversion .* does not match the current device",
     "The image is for another generation of devices"),
    ("B12", "ray-version-drift", "devices", r"Version mismatch: The cluster was started with",
     "Ray or Python of another version than the cluster's head"),
    ("B13", "fabric-mem-floor", "kv", r"Register mem ret:207000", "Fabric memory needs a newer driver and CANN"),
    ("B14", "glibc-or-py", "config", r"GLIBC_2\.\d+' not found",
     "A wheel was built on a newer system than the image's"),
    ("C02", "notify-timeout", "request", r"EI0002.*notify wait", "A peer crashed or diverged while the engine ran"),
    ("C03", "ranks-missing", "hccl", r"EI0015.*topo exchange server get socket timeout",
     "Not all ranks came to the collective's rendezvous"),
    ("C05", "device-port-bound", "hccl", r"socket type\[[01]\].*port\[16666\]",
     "Two processes want the same NPU's port"),
    ("C07", "wrong-socket-ifname", "hccl", r"EI0001.*get host ip fail by socket Ifname",
     "The configured interface does not exist on the node"),
    ("C08", "bad-env-value", "hccl", r"EI0001.*Value .* for environment variable",
     "A variable of HCCL has a value outside its range"),
    ("C17", "sdma-error", "request", r"EI0012.*fftsplus sdma error", "A copy between devices failed"),
    ("C18", "args-inconsistent", "hccl", r"EI0005.*CMD information .* check fail",
     "Ranks run with different settings of HCCL"),
    ("C19", "buffsize-small", "graph", r"HCCL_BUFFSIZE(_EP)? is too SMALL.*= (\d+)MB, HCCL_BUFFSIZE=(\d+)MB",
     "The collectives' buffer is too small for MoE"),
    ("C20", "buffsize-big", "hccl", r"EI0011.*buffer allocation",
     "The collectives' buffers do not fit beside the model"),
    ("C21", "rank-table", "hccl", r"EI0014.*is not a valid real path", "The rank table is not there or not valid"),
    ("D05", "start-timeout", "graph", r"Timed out waiting for engines?.*initial message",
     "The engine was not ready in time"),
    ("D07", "engine-dies-api-lives", "request", r"EngineDeadError", "An engine process dies while it serves"),
    ("D20", "config-model-mismatch", "weights", r"KeyError: .*(weight_scale|rope)",
     "The weights do not fit the engine's flags"),
    ("D21", "kv-does-not-fit", "memory", r"No available memory for the cache blocks",
     "No memory is left for the KV cache"),
    ("D22", "oom-own", "memory", r"NPU out of memory.*60\.30 GiB reserved",
     "The engine itself uses up the device's memory"),
    ("D25", "nonroot-passwd", "config", r"getpwuid\(\): uid not found",
     "The engine's user has no name in its container"),
    ("D27", "aicore-timeout", "request", r"507014", "A kernel does not end on a device"),
    ("D28", "host-oom-kill", "weights", r"exit 137", "The host runs out of memory and the kernel kills the engine"),
    ("D29", "cpu-binding", "devices", r"taskset: failed", "Binding the engine to processors fails"),
    ("E04", "kv-connect-timeout", "kv", r"Connect timeout to: .*ASCEND_CONNECT_TIMEOUT",
     "A KV link is not made in time"),
    ("E05", "kv-connect-failed", "kv", r"Failed to connect to (target|segment).*103900", "A KV link is refused"),
    ("E07", "mooncake-lib", "config", r"No module named 'mooncake'", "The KV transport's library is not in the image"),
    ("E08", "config-path-unset", "kv", r"MOONCAKE_CONFIG_PATH' is not set",
     "The KV store's configuration is not named"),
    ("E09", "parallel-mismatch", "kv", r"kv_connector_extra_config.*does not match",
     "Prefill and decode are told different sizes of each other"),
    ("E11", "batch-put-failed", "request", r"HcclBatchPut, hccl_result = \d", "The KV pool's data path fails"),
    ("F01", "no-npu-resource", "devices", r"Current node has no NPU available", "Ray knows of no NPU on the node"),
    ("F02", "ray-node-ip", "devices", r"should have a unique IP address", "Two nodes join Ray with one address"),
    ("F03", "ray-visible-devices", "devices", r"RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES",
     "Ray has overwritten the visible devices"),
    ("F04", "ray-placement-stuck", "devices", r"Waiting for creating a placement group",
     "Ray never gets the devices that the engine asks for"),
    ("F07", "ray-stale-session", "devices", r"session_name .* does not match",
     "Files of an older Ray cluster are left"),
)  # fmt: skip


def register(id: str, name: str, phase: str, shows: str, summary: str, kind: str = "") -> None:
    """Registers one. `kind` is what the simulator is told; without one, the fault's name."""

    def inject(node: Node, process: str = "*", phase: str = phase, rank: int = -1) -> Injection:
        del node
        place = phase if rank < 0 else f"{phase}@{rank}"
        order = f"{place}:{kind or name}"
        return Injection([json_change(ENGINE_FAULTS, [process], order)], Look(process, shows, on="engine"))

    inject.__doc__ = summary
    fault(id, name)(inject)


for row in LIST:
    register(*row)
# The engine stands still, or goes on and answers wrongly: words of its own have none of these.
register("D06", "start-stalled", "hccl", r"No available shared memory broadcast block",
         "The engine's start stops making progress", "hang")  # fmt: skip
register("E13", "proxy-200-empty", "request", r'"text": ?""', "Answers are empty, with status 200", "empty")
register("G01", "garbage-output", "request", r'"text": ?"(?!.*Paris)[^"]', "Answers make no sense, with status 200",
         "garbage")  # fmt: skip
