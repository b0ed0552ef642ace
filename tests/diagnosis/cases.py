"""Faults of the catalogue as an operator meets them, each with the finding that the road has to end in. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DECODE = ("decode-0-head", "decode-0-headless-1")
ENGINES = ("prefill-0-head", *DECODE)


@dataclass(frozen=True)
class Case:
    """One fault.

    It is brought about by a change of the recipe (`recipe`: dotted keys), or on `node` by `sandbox/fault` with
    `arguments`. Before it, the containers of `stopped` processes are ended, so that the launch starts them.
    """

    fault: str
    stage: str  # the stage that has to name it
    finding: str  # the id it is named by
    host: str | None  # the host that it blames; None: the fault is nowhere, such as in a recipe, or between two hosts
    fix: str  # words of the repair
    node: str = ""
    arguments: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None
    stopped: tuple[str, ...] = ()
    removed: bool = False  # the stopped containers are removed, too
    options: tuple[str, ...] = ()  # further arguments of ansible-playbook
    quick: bool = False  # part of `make test`

    @property
    def name(self) -> str:
        """Names the case in tests and in the table."""
        return "-".join([self.fault, self.stage, *self.arguments])


def _plan(fault: str, finding: str, fix: str, recipe: dict[str, Any], host: str | None = None, **more: Any) -> Case:
    return Case(fault, "plan", finding, host, fix, recipe=recipe, **more)


def _node(stage: str, fault: str, finding: str, node: str, fix: str, *arguments: str, **more: Any) -> Case:
    host = more.pop("host", node)
    return Case(fault, stage, finding, host, fix, node, arguments, **more)


def _engine(fault: str, process: str, fix: str, *, finding: str = "", **more: Any) -> Case:
    """A fault that an engine dies of, in the launch that starts it."""
    node = {"prefill-0-head": "d-01", "decode-0-head": "d-02", "decode-0-headless-1": "d-03"}[process]
    return Case(fault, "launch", finding or fault, node, fix, node, (f"process={process}",), stopped=ENGINES, **more)


def _request(fault: str, process: str, fix: str, *, finding: str = "", **more: Any) -> Case:
    """A fault that comes with the first request, on engines that were started for it."""
    node = {"prefill-0-head": "d-01", "decode-0-head": "d-02", "decode-0-headless-1": "d-03"}[process]
    host = more.pop("host", node)
    return Case(fault, "check", finding or fault, host, fix, node, (f"process={process}",), stopped=ENGINES, **more)


#: How long a start may be silent in the case that hangs.
STALL = ("-e", "engine_stall_seconds=15")
FORCE = ("-e", "verify=force", "-e", "fabric_collectives=never")

CASES = (
    # Before any node is touched.
    _plan("D04", "devices-too-few", "lower tensor_parallel or data_parallel", {"pools.decode.data_parallel": 40}),
    _plan("E02", "port-clash", "move one of the two", {"router.port": 30060}, "d-01"),
    _plan("E01", "kv-port-in-transport-window", "set kv_port to 36001 or more", {"pools.decode.kv_port": 20500}),
    _plan("D20", "engine-option-unknown", "write max-num-seqs", {"pools.decode.args": {"max-num-seq": 8}}, quick=True),
    _plan("E09", "pd-tensor-parallel-ratio", "a multiple of the decode size", {"pools.prefill.tensor_parallel": 1}),
    _plan("C08", "timeout-range", "HCCL_CONNECT_TIMEOUT", {"pools.decode.env": {"HCCL_CONNECT_TIMEOUT": 5}}),
    _plan("C07", "derived-value-typed", "node_ip and nic", {"pools.decode.env": {"HCCL_SOCKET_IFNAME": "enp9s0"}}),
    _plan("D21", "memory-utilization", "set it to 0.9", {"pools.decode.args": {"gpu-memory-utilization": 1.5}}),
    # From one reading of every node.
    _node("preflight", "A01", "A01", "d-02", "lsmod", quick=True),
    _node("preflight", "A03", "A03", "d-03", "fuser -v /dev/davinci"),
    _node("preflight", "A05", "A05", "d-02", "ls /dev/davinci", "device=1"),
    _node("preflight", "A07", "A07", "d-02", "same release"),
    _node("preflight", "A09", "A09", "d-02", "npu-smi info -t health", "device=1"),
    _node("preflight", "A10", "A10", "d-03", "lspci -d 19e5:", "device=0"),
    _node("preflight", "A11", "A11", "d-02", "reset the device", "device=1", stopped=DECODE),
    _node("preflight", "A19", "A19", "d-03", "Install the driver again"),
    _node("preflight", "B09", "B09", "d-02", "Bring d-02 to driver"),
    _node("preflight", "C12", "C12", "d-02", "hccn_tool", "device=0", "peer=d-01", host=None),
    _node("preflight", "D01", "D01", "d-01", "ss -ltnp", "port=8010", stopped=("router",)),
    _node("preflight", "D02", "D02", "d-02", "ss -ltnp", "port=13389", stopped=DECODE),
    _node("preflight", "E01", "E01", "d-02", "ss -ltnp", "port=36201", stopped=DECODE),
    _node(
        "preflight",
        "D32",
        "D32",
        "d-01",
        "docker rename or docker rm",
        "name=ascent-diagnosis-router",
        stopped=("router",),
        removed=True,
    ),
    _node("preflight", "D30", "D30", "d-03", "hccn_tool"),
    # While the nodes get what they lack.
    Case("B10", "provision", "B10", "d-01", "tag", recipe={"engine.image": "quay.io/ascend/vllm-ascend:v0.23.0"}),
    # Measured between the nodes.
    _node("verify", "C01", "C01", "d-02", "hccn_tool -i DEVICE -link -g", "device=1", options=FORCE),
    _node("verify", "C06", "C06", "d-03", "-tls -s enable 0", "device=0", options=FORCE),
    _node("verify", "D03", "D03", "d-02", "nft list ruleset", "port=13389", options=FORCE, stopped=DECODE),
    # While the engines start.
    _engine("A12", "decode-0-headless-1", "one device for each local rank"),
    _engine("B01", "decode-0-headless-1", "set_env.sh"),
    _engine("B02", "decode-0-head", "nnal/atb/set_env.sh", quick=True),
    _engine("B03", "decode-0-headless-1", "one image as released"),
    _engine("C03", "decode-0-headless-1", "lists the ranks that came"),
    _engine("B04", "decode-0-head", "the released image of the recipe"),
    _engine("B05", "prefill-0-head", "the pair of one release row"),
    _engine("B06", "decode-0-headless-1", "Mount nothing of the host below /usr/local/Ascend"),
    _engine("B08", "prefill-0-head", "image suffix"),
    _engine("B13", "decode-0-head", "Upgrade the driver"),
    _engine("B14", "decode-0-headless-1", "inside the image"),
    _engine("C05", "decode-0-headless-1", "Stop the left-over process"),
    _engine("C18", "decode-0-head", "from one plan again"),
    _engine("C19", "decode-0-head", "Raise HCCL_BUFFSIZE"),
    _engine("C20", "prefill-0-head", "Lower HCCL_BUFFSIZE"),
    _engine("C21", "decode-0-headless-1", "RANK_TABLE_FILE"),
    _engine("D05", "decode-0-head", "VLLM_ENGINE_READY_TIMEOUT_S"),
    _engine("D06", "decode-0-headless-1", "last line of every rank", options=STALL),
    _engine("D20", "prefill-0-head", "args with the engine release's options"),
    _engine("D21", "decode-0-headless-1", "max-model-len"),
    _engine("D22", "decode-0-headless-1", "Lower gpu-memory-utilization"),
    _engine("D25", "decode-0-head", "Run as root"),
    _engine("D28", "decode-0-headless-1", "Read dmesg"),
    _engine("D29", "prefill-0-head", "enable_cpu_binding: false"),
    _engine("E04", "decode-0-head", "ASCEND_CONNECT_TIMEOUT"),
    _engine("E05", "decode-0-headless-1", "--tags verify"),
    _engine("E07", "prefill-0-head", "an image with Mooncake"),
    _engine("E08", "prefill-0-head", "Launch from the plan"),
    _node("launch", "D19", "D19", "d-03", "Copy the file again", stopped=ENGINES),
    # While it serves: with the first requests.
    _request("C02", "decode-0-head", "the rank that failed first", quick=True),
    _request("C17", "decode-0-headless-1", "--tags verify"),
    _request("D07", "prefill-0-head", "the worker that ended first"),
    _request("D27", "decode-0-headless-1", "npu-smi info -t health"),
    _request("E13", "decode-0-head", "each engine by itself", host=None),
    _request("G01", "decode-0-head", "--enforce-eager", host=None),
)
