"""Fatal log lines of the engine and of what it is built on, by the name of the fault that they are the sign of.

The words are ours; the tokens that operators and tools look for (error codes, names of functions, variables and files)
are the real ones. Names are those of the findings in catalog/findings, where each has an entry; a test holds them
together.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALIASES", "SIGNATURES", "Signature"]


@dataclass(frozen=True)
class Signature:
    """How one fault looks. `message` is the exception's, of class `kind`; `lines` are logged before the traceback.

    `part` is the part of the engine that dies of it: `api`, `core` (one rank) or `worker` (one device). `status` is the
    exit status of the container: 1, or 128 and the number of the signal that kills it.
    """

    message: str
    kind: str = "RuntimeError"
    lines: tuple[str, ...] = ()
    part: str = "worker"
    status: int = 1


def _npu(code: str, text: str) -> str:
    """An error of the NPU runtime as torch_npu passes it on."""
    return f"operator() failed, error code is {code}\n{text}"


SIGNATURES: dict[str, Signature] = {
    # devices and driver
    "device-in-use": Signature("Initialize: aclInit failed, drvRetCode=87, the device is used by another process"),
    "driver-libs-not-mounted": Signature(
        "libascend_hal.so: cannot open shared object file: No such file or directory", "ImportError", part="api"
    ),
    "set-device-bad-id": Signature(
        _npu("107001", "EL0003: Set device failed, invalid device id. Failed to open device, device id 16")
    ),
    "privileged-missing": Signature("Can't get ascend_hal device count", part="api"),
    "hccn-conf-not-mounted": Signature("TransferEngine: can't open conf file /etc/hccn.conf, errno 2"),
    "npu-tools-not-mounted": Signature(
        "Command 'npu-smi info' returned non-zero exit status 127.",
        "subprocess.CalledProcessError",
        ("/bin/sh: 1: npu-smi: not found",),
        part="core",
    ),
    "aicore-timeout": Signature(
        _npu("507014", "EZ9903: rtKernelLaunchWithHandle failed: aicore execution timed out, stream 3")
    ),
    "oom-own": Signature(
        "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 61.28 GiB total capacity; 60.10 GiB already allocated; "
        "0.41 GiB free; 60.30 GiB reserved in total by PyTorch)"
    ),
    "hbm-leftover": Signature(
        "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 61.28 GiB total capacity; 9.10 GiB already allocated; "
        "0.41 GiB free; 9.30 GiB reserved in total by PyTorch)"
    ),
    # versions and packages
    "cann-env-not-sourced": Signature(
        "libhccl.so: cannot open shared object file: No such file or directory",
        "ImportError",
        ("Failed to infer device type",),
        part="api",
    ),
    "atb-missing": Signature(
        "libatb.so: cannot open shared object file: No such file or directory", "ImportError", part="api"
    ),
    "abi-mismatch": Signature(
        "libatb_ops.so: undefined symbol: _ZN3atb9OperationEv", "ImportError", part="api"
    ),
    "torch-npu-cann": Signature("SetPrecisionMode failed, error code is 500001\nEH9999: Inner Error!"),
    "vllm-plugin-mismatch": Signature(
        "cannot import name 'NewRequestData' from 'vllm.v1.core.sched.output'",
        "ImportError",
        ("Failed to load plugin ascend",),
        part="api",
    ),
    "opp-mismatch": Signature(_npu("507033", "E30006: Failed to verify the OPP path, versions differ")),
    "image-a2-a3": Signature("socversion Ascend910_9391 does not match the current device Ascend910B1"),
    "node-drift": Signature("EI0008: Version of CANN differs between rank 0 and rank 8"),
    "driver-too-old-for-cann": Signature(
        _npu("507008", "Driver Version: 24.1.rc2 is invalid or not supported yet")
    ),
    "fabric-mem-floor": Signature("Register mem ret:207000", lines=("Failed to mount segment: INVALID_PARAMS",)),
    "glibc-or-py": Signature(
        "/lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found", "ImportError", part="api"
    ),
    # collectives
    "link-timeout": Signature(
        "EI0006: Getting socket times out. Reason: 1. The remote does not initiate the connect request. "
        "wait socket establish timeout, hcclRet -> 9 [Communication_Error_Get_Socket]"
    ),
    "notify-timeout": Signature(
        _npu("107020", "EI0002: The wait execution of the Notify register times out. notify wait")
    ),
    "ranks-missing": Signature(
        "EI0015: topo exchange server get socket timeout! connected rankNum 8, need connect rankNum 16"
    ),
    "host-port-bound": Signature("EI0019: listen failed, socket type[2], port[60000], the port is in use"),
    "device-port-bound": Signature("listen failed, socket type[0], local ip[192.0.2.1], port[16666]"),
    "tls-mismatch": Signature('EI0016: the config "tls" of the two ends differs'),
    "wrong-socket-ifname": Signature("EI0001: get host ip fail by socket Ifname[enp67s0f0]"),
    "bad-env-value": Signature("EI0001: Value fast for environment variable HCCL_OP_EXPANSION_MODE is invalid"),
    "roce-retry": Signature("EI0013: error cqe status, remote 192.0.2.2", lines=("cqe error status[12]",)),
    "sdma-error": Signature("EI0012: fftsplus sdma error, stream 3"),
    "args-inconsistent": Signature("EI0005: CMD information cclbufferSize check fail"),
    "buffsize-small": Signature("HCCL_BUFFSIZE is too SMALL, the operator needs = 1024MB, HCCL_BUFFSIZE=200MB"),
    "buffsize-big": Signature("EI0011: HCCL buffer allocation failed, size 2147483648"),
    "rank-table": Signature("EI0014: /etc/ranktable.json is not a valid real path"),
    "gloo-loopback": Signature(
        "Gloo connectFullMesh failed with timeout, remote=[127.0.1.1]:40000",
        lines=("Unable to resolve hostname to a (local) address. Using the loopback address as fallback.",),
        part="core",
    ),
    "hostname-unresolved": Signature("[Errno -2] Name or service not known", "socket.gaierror", part="core"),
    # launch
    "api-port-in-use": Signature(
        "[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
        "OSError",
        part="api",
    ),
    "rendezvous-port": Signature(
        "The server socket has failed to listen on any local network address. port: 29500, EADDRINUSE",
        "torch.distributed.DistNetworkError",
    ),
    "start-timeout": Signature(
        "Timed out waiting for engines to send initial message on input socket.", "TimeoutError", part="api"
    ),
    "engine-dies-api-lives": Signature(
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "vllm.v1.engine.exceptions.EngineDeadError",
        part="api",
    ),
    "shm-small": Signature("", lines=("Bus error (core dumped)",), status=135),
    "memlock-nofile": Signature("[Errno 24] Too many open files", "OSError", part="core"),
    "hugepages": Signature("allocation of hugepages failed, not enough of them are free"),
    "disk-full": Signature("[Errno 28] No space left on device: '/root/.cache/vllm'", "OSError", part="core"),
    "weights-missing": Signature("Cannot find any model weights with `/models/m`", part="core"),
    "weights-pointer": Signature(
        "Error while deserializing header: HeaderTooLarge", "safetensors_rust.SafetensorError"
    ),
    "weights-truncated": Signature(
        "Error while deserializing header: MetadataIncompleteBuffer", "safetensors_rust.SafetensorError"
    ),
    "config-model-mismatch": Signature("'model.layers.0.mlp.experts.0.weight_scale'", "KeyError"),
    "kv-does-not-fit": Signature(
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine.",
        "ValueError",
        ("Available KV cache memory: -1.70 GiB",),
        part="core",
    ),
    "nonroot-passwd": Signature("'getpwuid(): uid not found: 4242'", "KeyError"),
    "host-oom-kill": Signature("", lines=("Out of memory: Killed process 4242 (VLLM::Worker_TP)",), status=137),
    "cpu-binding": Signature("taskset: failed to set pid 4242's affinity: Invalid argument"),
    # prefill and decode
    "kv-port-reserved-range": Signature(
        "Address already in use (addr='tcp://192.0.2.11:30000')",
        "zmq.error.ZMQError",
        ("KV Cache sending/receiving thread failed to start.",),
    ),
    "kv-connect-timeout": Signature(
        "Connect timeout to: 192.0.2.12:21000, see ASCEND_CONNECT_TIMEOUT, status 103902", part="worker"
    ),
    "kv-connect-failed": Signature("Failed to connect to segment 192.0.2.11:20012, status 103900"),
    "mooncake-client-init": Signature(
        "Initialize mooncake failed", lines=("Failed to create client after 20 retries",)
    ),
    "mooncake-lib": Signature("No module named 'mooncake'", "ModuleNotFoundError"),
    "config-path-unset": Signature("The environment variable 'MOONCAKE_CONFIG_PATH' is not set.", "ValueError"),
    "parallel-mismatch": Signature(
        "kv_connector_extra_config: decode tp_size 4 does not match the peer's 2", "AssertionError"
    ),
    "batch-put-failed": Signature("HcclBatchPut, hccl_result = 19", lines=("Failed to put 32 keys",)),
    # Ray
    "no-npu-resource": Signature(
        "Current node has no NPU available. current_node_resource={'CPU': 192.0}", "ValueError", part="core"
    ),
    "ray-node-ip": Signature("Every node should have a unique IP address. Got 2 nodes with 1 address.", part="core"),
    "ray-visible-devices": Signature(
        "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES is not set, device 8 is invalid", part="core"
    ),
    "ray-placement-stuck": Signature(
        "Cannot provide a placement group within 1800 seconds.",
        "ValueError",
        ("Waiting for creating a placement group of specs for 1800 seconds.",),
        part="core",
    ),
    "ray-head-unreachable": Signature(
        "Failed to connect to GCS at address 192.0.2.11:6379 within 5 seconds", "ConnectionError", part="core"
    ),
    "ray-version-drift": Signature("Version mismatch: The cluster was started with: Ray: 2.48.0", part="core"),
    "ray-stale-session": Signature(
        "session_name session_2026-08-01 does not match persisted value session_2026-07-30", "AssertionError",
        part="core",
    ),
}  # fmt: skip

# Error codes and short words for the names, as operators know them.
ALIASES = {
    "EI0001": "wrong-socket-ifname",
    "EI0002": "notify-timeout",
    "EI0006": "link-timeout",
    "EI0015": "ranks-missing",
    "oom": "oom-own",
    "aicore": "aicore-timeout",
    "kv-memory": "kv-does-not-fit",
    "hccn-conf": "hccn-conf-not-mounted",
}
