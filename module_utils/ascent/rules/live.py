"""Conditions that no file can tell, each with the stage that asks the hosts; and those that hold by construction."""

from __future__ import annotations

__all__ = ["BY_CONSTRUCTION", "LIVE", "UNDECIDED"]

from .registry import LiveRule

LIVE = (
    LiveRule(
        "every planned port is free on its host, and the kernel reserves it",
        "preflight",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, common issues",
        ("P-KV4", "P-DP2", "J10"),
    ),
    LiveRule("nic carries node_ip on every host", "preflight", "HCCL documentation", ("P-NET2",)),
    LiveRule(
        "devices are there, healthy and free of other processes; two configurations never hold them at once",
        "preflight",
        "Dynamo recipe Qwen3-32B; vLLM-Ascend tutorials",
        ("P-AB1", "P-DP6"),
    ),
    LiveRule(
        "the model's directory exists on every node, complete",
        "provision",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, model weight",
        ("P-MODEL2", "J10"),
    ),
    LiveRule(
        "driver and firmware are equal on all nodes and new enough for the image's CANN",
        "preflight",
        "CANN compatibility tables",
        ("P-VER1",),
    ),
    LiveRule(
        "all nodes run each image by the one digest that the generation locks",
        "provision",
        "vLLM-Ascend tutorials, installation",
        ("P-VER1",),
    ),
    LiveRule(
        "host memory holds the store's segments of all ranks, and containers have shared memory for their workers",
        "preflight",
        "vLLM-Ascend, KV pool guide",
        ("E4",),
    ),
    LiveRule("the image exists for the host's CPU architecture", "provision", "container registry"),
    LiveRule(
        "device links are up, network health is success, and devices of different nodes ping each other",
        "verify",
        "vLLM-Ascend installation page, verify multi-node communication",
        ("P-NET3", "J2", "J7"),
    ),
    LiveRule("the TLS switch is equal on all devices", "verify", "vLLM-Ascend, PD disaggregation guide"),
    LiveRule(
        "/etc/hccn.conf exists where KV cache travels between nodes",
        "verify",
        "vLLM-Ascend, PD disaggregation guide",
    ),
    LiveRule(
        "heads, store masters and Ray heads run before what joins them, and headless processes join within the timeout",
        "launch",
        "vLLM-Ascend tutorial Qwen3.5-397B-A17B, common issues",
        ("P-DP5", "J7", "J8", "J12"),
    ),
    LiveRule(
        "Ray shows the devices of all nodes before the server starts: its script waits, and says what it lacks",
        "launch",
        "vLLM-Ascend, Ray guide",
        ("C8", "J9"),
    ),
    LiveRule(
        "the endpoint answers under served_name, through the router where there is one",
        "check",
        "vLLM-Ascend tutorials, functional verification",
        ("P-MODEL1", "P-PX2", "J13"),
    ),
)

#: What a recipe can't get wrong, because the plan writes it; tests of planner and rendering hold it.
BY_CONSTRUCTION = (
    ("headless processes have no API port and no api-server-count; the first node has start rank 0", ("P-DP4",)),
    ("one engine_id, kv_port and pair of sizes for all processes of an instance", ("P-KV2", "P-KV3")),
    ("all engine processes run one release: one image, but for the suffix of the hardware", ("P-VER1",)),
    ("scripts unset proxy variables before engine and router start", ("D6", "B12")),
    ("chunked prefill may cut prompts: max-num-batched-tokens below the longest prompt is legal", ("P-TOK2",)),
)

#: Advice without a public threshold: nothing to decide, so it stays advice.
UNDECIDED = (
    ("FlashComm1 pays at high concurrency only: where steps can be large, compare with it off", ("P-FC2", "J4")),
    ("fused MC2 may cost throughput with several data parallel ranks and long steps: compare with 0", ("P-MC3", "J4")),
    ("hybrid models may not cache short prefixes", ("P-PC3",)),
)
