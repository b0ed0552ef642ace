"""Family B: versions, images, packages."""

from __future__ import annotations

from sandbox.faults.model import Injection, Look, Node, engine_fault, fault, rule, tcp_probe

engine_fault(
    "B01", "cann-env-not-sourced", "config",
    "libhccl.so: cannot open shared object file: No such file or directory",
    r"libhccl\.so: cannot open", "CANN's libraries are not on the path",
)  # fmt: skip
engine_fault(
    "B02", "atb-missing", "config", "libatb.so: cannot open shared object file: No such file or directory",
    r"libatb\.so: cannot open", "NNAL's libraries are not on the path",
)  # fmt: skip
engine_fault(
    "B03", "abi-mismatch", "config",
    "/usr/local/lib/libvllm_ascend_kernels.so: undefined symbol: _ZN3atb9OperationD2Ev",
    r"undefined symbol: _ZN(3atb|3Mki|2ge)", "torch-npu, NNAL and CANN are of different releases",
)  # fmt: skip
engine_fault(
    "B04", "torch-npu-cann", "devices",
    "SetPrecisionMode failed, error code is 500001. EH9999: Inner Error!",
    r"500001.*EH9999", "torch-npu does not go with the CANN there is",
)  # fmt: skip
engine_fault(
    "B05", "vllm-plugin-mismatch", "config",
    "ImportError: cannot import name 'EngineCoreProc' from 'vllm.v1.engine.core' (unknown location)",
    r"cannot import name .* from 'vllm", "vllm and its Ascend plugin are of different releases",
)  # fmt: skip
engine_fault(
    "B06", "opp-mismatch", "devices",
    "E30006: Failed to verify the OPP. Runtime error 507033, the operator package is of another version.",
    r"E30006.*Failed to verify the OPP", "The operator package is of another version than CANN",
)  # fmt: skip
engine_fault(
    "B08", "image-a2-a3", "devices",
    "The socVersion Ascend910_9391 does not match the current device Ascend910B3.",
    r"socversion .* does not match the current device", "The image is for another generation of devices",
)  # fmt: skip
engine_fault(
    "B13", "fabric-mem-floor", "kv", "Register mem ret:207000. Failed to mount segment: INVALID_PARAMS",
    r"Register mem ret:207000.*INVALID_PARAMS", "Fabric memory needs a newer driver and CANN",
)  # fmt: skip
engine_fault(
    "B14", "glibc-or-py", "config",
    "/lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by libmooncake.so)",
    r"GLIBC_2\.\d+' not found", "A wheel was built on a newer system than the image's",
)  # fmt: skip


@fault("B10", "image-missing-offline")
def image_missing_offline(node: Node, port: int = 5000) -> Injection:
    """The registry can't be reached from the node."""
    site = node.sandbox.services
    match = ("-p", "tcp", "-d", site, "--dport", str(port), "-j", "REJECT", "--reject-with", "icmp-host-unreachable")
    return Injection([rule("OUTPUT", *match)], Look(tcp_probe(site, port), "No route to host"))
