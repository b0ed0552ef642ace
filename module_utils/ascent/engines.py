"""What Ascent knows of inference engines: versions, images, their flags that have a negative form, and helper programs.

Facts come from the vLLM-Ascend installation pages and release notes (version table) and from vLLM's own option parser.
"""

from __future__ import annotations

__all__ = [
    "CONNECTORS",
    "CONNECTOR_TRAITS",
    "ENVIRONMENTS",
    "IMPORTS",
    "NEGATABLE",
    "PROXY_VARIABLES",
    "ROUTERS",
    "SEVERAL_WORDS",
    "cache_target",
    "connector_traits",
    "environment",
    "image_at",
    "image_for",
    "image_platform",
    "image_version",
    "in_image",
    "jemalloc_paths",
    "mooncake_version",
    "pinned",
    "release_of",
    "source_scripts",
    "states_first_rank",
    "version_key",
]

import hashlib
import json
import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set, Tuple, Union

#: Proxy settings that would send requests between the nodes to a company proxy. Tools differ in the spelling they read.
PROXY_VARIABLES = (
    "ftp_proxy",
    "https_proxy",
    "http_proxy",
    "all_proxy",
    "FTP_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
)

#: Boolean options of `vllm serve` that exist in a `--no-` form too, as of vLLM 0.21 (a test holds them against
#: catalog/engine_options). An option outside this set is a plain switch: false leaves it out.
NEGATABLE = frozenset(
    (
        "allow-credentials",
        "allow-deprecated-quantization",
        "async-scheduling",
        "calculate-kv-scales",
        "cudagraph-metrics",
        "data-parallel-external-lb",
        "data-parallel-hybrid-lb",
        "disable-cascade-attn",
        "disable-chunked-mm-input",
        "disable-custom-all-reduce",
        "disable-fastapi-docs",
        "disable-hybrid-kv-cache-manager",
        "disable-nccl-for-dp-synchronization",
        "disable-sliding-window",
        "disable-uvicorn-access-log",
        "enable-auto-tool-choice",
        "enable-chunked-prefill",
        "enable-dbo",
        "enable-elastic-ep",
        "enable-ep-weight-filter",
        "enable-eplb",
        "enable-expert-parallel",
        "enable-flash-late-interaction",
        "enable-flashinfer-autotune",
        "enable-force-include-usage",
        "enable-layerwise-nvtx-tracing",
        "enable-log-deltas",
        "enable-log-outputs",
        "enable-log-requests",
        "enable-logging-iteration-details",
        "enable-lora",
        "enable-mamba-cache-stochastic-rounding",
        "enable-mfu-metrics",
        "enable-mm-embeds",
        "enable-offline-docs",
        "enable-prefix-caching",
        "enable-prompt-embeds",
        "enable-prompt-tokens-details",
        "enable-request-id-headers",
        "enable-return-routed-experts",
        "enable-server-load-tracking",
        "enable-sleep-mode",
        "enable-ssl-refresh",
        "enable-tokenizer-info-endpoint",
        "enable-tower-connector-lora",
        "enforce-eager",
        "exclude-tools-when-tool-choice-none",
        "fail-on-environ-validation",
        "fully-sharded-loras",
        "interleave-mm-strings",
        "kv-cache-metrics",
        "kv-sharing-fast-prefill",
        "language-model-only",
        "log-error-stack",
        "mm-encoder-only",
        "numa-bind",
        "ray-workers-use-nsight",
        "return-tokens-as-token-ids",
        "scheduler-reserve-full-isl",
        "skip-mm-profiling",
        "skip-tokenizer-init",
        "specialize-active-lora",
        "tokens-only",
        "trust-remote-code",
        "trust-request-chat-template",
        "use-tqdm-on-load",
    )
)

#: Options of `vllm serve` that take several words, as of vLLM 0.21 (held against catalog/engine_options too).
SEVERAL_WORDS = frozenset(
    (
        "allowed-media-domains",
        "api-key",
        "collect-detailed-traces",
        "cpu-offload-params",
        "cudagraph-capture-sizes",
        "ignore-patterns",
        "kv-cache-dtype-skip-layers",
        "logits-processors",
        "lora-modules",
        "lora-target-modules",
        "numa-bind-cpus",
        "numa-bind-nodes",
        "offload-params",
        "served-model-name",
    )
)

#: Where the virtual environments of engines outside containers lie on the nodes.
ENVIRONMENTS = "/opt/ascent/environments"

#: The modules of an engine whose import shows that it is whole: vLLM finds its plugin at run time only.
IMPORTS: Dict[str, List[str]] = {"vllm-ascend": ["vllm", "vllm_ascend"], "vllm": ["vllm"]}

_EXAMPLES = "/vllm-workspace/vllm-ascend/examples"

#: Router kinds: the program, the path of its own health endpoint, how its policies are spelled, and for those between
#: prefill and decode the order in which it asks them.
ROUTERS: Dict[str, Dict[str, Any]] = {
    "pd-layerwise": {
        "program": ["python3", _EXAMPLES + "/disaggregated_prefill_v1/load_balance_proxy_layerwise_server_example.py"],
        "health": "/healthcheck",
        "order": "decode-first",
        "policies": {},
    },
    "pd": {
        "program": ["python3", _EXAMPLES + "/disaggregated_prefill_v1/load_balance_proxy_server_example.py"],
        "health": "/healthcheck",
        "order": "prefill-first",
        "policies": {},
    },
    "replicas": {
        "program": ["python3", _EXAMPLES + "/dynamic_bucket_load_balancer/hybrid_proxy_server.py"],
        "health": "/healthcheck",
        "order": None,
        "policies": {},
    },
    "vllm-router": {
        "program": ["vllm-router"],
        "health": "/health",
        "order": None,
        "policies": {
            "random": "random",
            "round-robin": "round_robin",
            "cache-aware": "cache_aware",
            "kv-aware": "kv_aware",
            "power-of-two": "power_of_two",
        },
    },
    "dynamo": {
        "program": ["python3", "-m", "dynamo.frontend"],
        "health": "/health",
        "order": None,
        "policies": {
            "random": "random",
            "round-robin": "round-robin",
            "kv-aware": "kv",
            "power-of-two": "power-of-two",
            "least-loaded": "least-loaded",
        },
    },
}

#: KV connectors of the PD layouts and the request order each needs: the layerwise one lets the decode side ask first.
CONNECTORS: Dict[str, Dict[str, Any]] = {
    "MooncakeConnectorV1": {"order": "prefill-first"},
    "MooncakeHybridConnector": {"order": "prefill-first"},
    "MooncakeLayerwiseConnector": {"order": "decode-first"},
}

#: What the plan fills into a connector's configuration. `ports`: kv_port, one port a worker; `sizes`: the sizes of both
#: sides; `lookup`: a lookup_rpc_port of its own (the name of a socket file) for every engine on a host; `both`: kv_role
#: is kv_both on either side; `side-channel`: NIXL's handshake port in the environment.
CONNECTOR_TRAITS: Dict[str, Tuple[str, ...]] = {
    "MooncakeConnectorV1": ("ports", "sizes"),
    "MooncakeHybridConnector": ("ports", "sizes"),
    "MooncakeLayerwiseConnector": ("ports", "sizes"),
    "AscendStoreConnector": ("lookup",),
    "MooncakeConnectorStoreV1": ("lookup",),
    "NixlConnector": ("both", "side-channel"),
}

#: First release of vLLM-Ascend whose image carries this Mooncake, newest first (matrix of the installation page).
_MOONCAKE = (("0.23.0rc1", "0.3.11.post1"), ("0.21.0rc1", "0.3.9"), ("0.19.1rc1", "0.3.8.post1"), ("0.18.0", "0.3.9"))

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:\.?rc(\d+))?(?:\.?post(\d+))?")
_TAG = re.compile(r"(?P<version>v?\d+\.\d+\.\d+(?:\.?rc\d+)?(?:\.?post\d+)?)(?P<rest>(?:-[a-z0-9]+)*)\Z")
_PLATFORMS = ("a3", "310p", "950dt")


def version_key(text: str) -> Optional[Tuple[int, ...]]:
    """A version as a tuple that compares in release order (rc before final before post); None if it isn't one.

    >>> version_key("v0.17.0rc1") < version_key("0.17.0") < version_key("v0.21.0rc1-a3")
    True
    """
    match = _VERSION.match(text)
    if match is None:
        return None
    major, minor, patch, candidate, post = match.groups()
    return (int(major), int(minor), int(patch), int(candidate) if candidate else 10**6, int(post) if post else 0)


def _split_image(image: str) -> Tuple[str, Optional[str], Optional[str]]:
    """Repository, tag and digest of an image reference; a colon in the registry's port is not a tag."""
    name, _, digest = image.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    return head + slash + last, tag if colon else None, digest or None


def image_version(image: str) -> Optional[str]:
    """The engine version that the image's tag names, such as ``v0.21.0rc1``; None for tags like ``nightly-main``."""
    tag = _split_image(image)[1]
    match = _TAG.match(tag) if tag else None
    return match.group("version") if match else None


def image_platform(image: str) -> Optional[str]:
    """The hardware suffix that the image's tag carries, such as ``-a3``; empty for none (A2), None if unknown."""
    tag = _split_image(image)[1]
    if tag is None:
        return None
    for name in _PLATFORMS:
        if name in tag.split("-")[1:]:
            return "-" + name
    return "" if _TAG.match(tag) else None


def image_for(image: str, suffix: str, mirror: str = "") -> str:
    """The full reference for hardware with this tag ``suffix``, taken from ``mirror`` if one is set.

    A tag that has a platform suffix already, or isn't a version, and a digest stay as they are. The suffix goes before
    the system's name: ``v0.18.0-a3-openeuler``.

    >>> image_for("quay.io/ascend/vllm-ascend:v0.21.0rc1", "-a3", "m.example.org")
    'm.example.org/quay.io/ascend/vllm-ascend:v0.21.0rc1-a3'
    """
    repository, tag, digest = _split_image(image)
    if tag and digest is None and image_platform(image) == "":
        match = _TAG.match(tag)
        if match is not None:
            tag = match.group("version") + suffix + match.group("rest")
    reference = repository + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    return f"{mirror.rstrip('/')}/{reference}" if mirror else reference


def image_at(image: str, digest: str) -> str:
    """The same image by digest instead of by tag.

    >>> image_at("quay.io/ascend/vllm-ascend:v1", "sha256:abc")
    'quay.io/ascend/vllm-ascend@sha256:abc'
    """
    return f"{_split_image(image)[0]}@{digest}"


def environment(engine: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """The virtual environment that a recipe's engine runs in; None for one that runs in containers.

    ``path`` follows from interpreter and packages, so that two versions lie side by side and what a generation runs
    never changes under it.

    >>> engine = {"name": "vllm", "runtime": "environment", "environment": {"packages": ["vllm==0.21.0"]}}
    >>> environment(engine)["packages"], environment({"name": "vllm"})
    (['vllm==0.21.0'], None)
    """
    if engine.get("runtime", "container") != "environment":
        return None
    given = engine.get("environment") or {}
    python = str(given.get("python", "python3"))
    packages = [str(one) for one in given.get("packages", ())]
    key = hashlib.sha256(json.dumps([python, sorted(packages)]).encode()).hexdigest()[:12]
    return {
        "path": ENVIRONMENTS + "/" + key,
        "python": python,
        "packages": packages,
    }


def pinned(packages: Iterable[str], name: str) -> Optional[str]:
    """The version that a list of requirements pins a package to; None where it does not.

    >>> pinned(["vllm==0.21.0", "vllm_ascend == 0.21.0rc1"], "vllm-ascend")
    '0.21.0rc1'
    """
    for package in packages:
        found = re.fullmatch(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*==\s*([^\s;,*]+)\s*(?:;.*)?", package)
        if found and re.sub(r"[-_.]+", "-", found.group(1)).lower() == name:
            return found.group(2)
    return None


def release_of(engine: Mapping[str, Any]) -> Optional[str]:
    """The release of a recipe's engine: as it says, or as its image's tag or the package in its environment do."""
    if engine.get("version"):
        return str(engine["version"])
    own = environment(engine)
    if own is not None:
        return pinned(own["packages"], str(engine.get("name")))
    return image_version(str(engine.get("image") or ""))


def in_image(word: str) -> bool:
    """Whether a word of a command is a file that only vLLM-Ascend's image has."""
    return word.startswith(_EXAMPLES)


def cache_target(engine: str) -> str:
    """Where an engine's image, or any other, looks for downloaded weights: the cache directory of its user."""
    return "/home/dynamo/.cache" if engine == "dynamo" else "/root/.cache"


def connector_traits(transfer: Mapping[str, Any]) -> Set[str]:
    """`CONNECTOR_TRAITS` of a kv_transfer section, those of the connectors inside it included."""
    traits = set(CONNECTOR_TRAITS.get(str(transfer.get("connector")), ()))
    for inner in transfer.get("connectors") or []:
        traits |= connector_traits(inner)
    return traits


def jemalloc_paths(image: Optional[str], arch: str) -> List[str]:
    """Where jemalloc may be: one path by the image's system (openEuler in the tag, else Ubuntu) and CPU architecture.

    Without an image the engine runs on the host, whose system a plan does not know: then both.
    """
    debian, rpm = f"/usr/lib/{arch}-linux-gnu/libjemalloc.so.2", "/usr/lib64/libjemalloc.so.2"
    if image is None:
        return [debian, rpm]
    return [rpm] if "openeuler" in (_split_image(image)[1] or "") else [debian]


def mooncake_version(engine: str, version: Optional[str]) -> Optional[str]:
    """The Mooncake release inside a vLLM-Ascend image of this version; None if not known."""
    key = version_key(version) if engine == "vllm-ascend" and version else None
    if key is None:
        return None
    for first, mooncake in _MOONCAKE:
        if key >= (version_key(first) or ()):
            return mooncake
    return None


def states_first_rank(version: Optional[str]) -> bool:
    """Whether a node with an API may say that its first rank is 0, which is the default.

    Releases after 0.21 take any start rank there for hybrid load balancing, and then turn headless nodes away.
    """
    key = version_key(version) if version else None
    return key is None or key[:2] <= (0, 21)


def source_scripts(engine: str, *, host: bool = False) -> List[Union[str, List[str]]]:
    """Environment scripts to source first: vLLM-Ascend images do it in ~/.bashrc, for interactive shells only.

    On a ``host`` CANN may lie where releases before 8.5 put it, or later ones: the first that is there of a list.
    """
    if engine != "vllm-ascend":
        return []
    toolkit, atb = "/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/nnal/atb/set_env.sh"
    return [["/usr/local/Ascend/cann/set_env.sh", toolkit], atb] if host else [toolkit, atb]
