"""Inputs for planner tests: the shipped profiles, hosts in documentation addresses, and random recipes that fit."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import yaml
from hypothesis import strategies as st

from ascent import layout
from ascent_controller import loader
from ascent_controller.loader import ROOT


@functools.cache
def _hardware() -> dict[str, dict[str, Any]]:
    paths = sorted((ROOT / "catalog" / "hardware").glob("*.yml"))
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def hardware() -> dict[str, dict[str, Any]]:
    return copy.deepcopy(_hardware())


@functools.cache
def _recipe(name: str) -> dict[str, Any]:
    inputs = loader.load(name)
    assert inputs.recipe is not None, inputs.findings
    return inputs.recipe


def recipe(name: str) -> dict[str, Any]:
    """A shipped recipe with what it extends merged in."""
    return copy.deepcopy(_recipe(name))


PD = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3"


def hosts(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"n{i:03}", "node_ip": f"198.18.{i // 250}.{i % 250 + 1}", "nic": f"enp{i}s0", "arch": "aarch64"}
        for i in range(count)
    ]


def hosts_needed(given: dict[str, Any]) -> int:
    return sum(pool["hosts_needed"] for pool in layout.pools_of(given))


@functools.cache
def _layouts() -> dict[str, dict[str, Any]]:
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text()
    found = {}
    for title, text in re.findall(r"\n([^\n]+):\n\n```yaml\n(.*?)```", page.partition("## Layouts")[2], re.DOTALL):
        found[title] = {**_BASE, **yaml.safe_load(text)}
    assert len(found) > 10
    return found


_BASE = {
    "name": "example",
    "model": {"id": "org/model", "served_name": "org/model"},
    "engine": {"name": "vllm-ascend", "image": "example.org/ascend/vllm-ascend:v0.21.0rc1"},
    "hardware": "atlas-800-a3",
}


def layouts() -> dict[str, dict[str, Any]]:
    """The examples of the recipe page, by the sentence before them, made whole."""
    return copy.deepcopy(_layouts())


def _sizes(draw: st.DrawFn, devices: int, *, ray: bool) -> dict[str, Any]:
    """Sizes of a pool whose part of a node takes at most so many devices."""
    shape = draw(st.sampled_from(["ranks", "ranks", "external", "spanning", *(["ray"] if ray else [])]))
    nodes = draw(st.integers(1, 4))
    if shape in ("spanning", "ray"):
        nodes = draw(st.sampled_from([2, 4]))
        tensor = draw(st.sampled_from([size for size in (2, 4, 8, 16) if nodes <= size <= devices * nodes]))
        pipeline = draw(st.sampled_from([1, 2])) if 2 * tensor <= devices * nodes else 1
        executor = "ray" if shape == "ray" else draw(st.sampled_from(["mp", None]))
        sizes = {"nodes": nodes, "tensor_parallel": tensor, "pipeline_parallel": pipeline}
        return {**sizes, **({"executor": executor} if executor else {})}
    tensor = draw(st.sampled_from([size for size in (1, 2, 4, 8) if size <= devices]))
    context = draw(st.sampled_from([1, 2])) if 2 * tensor <= devices else 1
    local = draw(st.integers(1, devices // tensor // context))
    return {
        "nodes": nodes,
        "tensor_parallel": tensor,
        "prefill_context_parallel": context,
        "decode_context_parallel": draw(st.sampled_from([1, tensor])),
        "data_parallel": local * nodes,
        "data_parallel_mode": "external" if shape == "external" else "internal",
    }


#: The option that overrides of random pools set, and no pool does.
OVERRIDDEN = "max-log-len"


@st.composite
def _overrides(draw: st.DrawFn, sizes: dict[str, Any], instances: int) -> list[dict[str, Any]]:
    """At most one override, of some of the pool's processes."""
    limits = {"instance": instances, "node": sizes["nodes"]}
    if sizes.get("data_parallel_mode") == "external":
        limits["rank"] = sizes["data_parallel"]
    chosen = draw(st.lists(st.sampled_from(sorted(limits)), unique=True, max_size=2))
    where = {key: draw(st.integers(0, limits[key] - 1)) for key in chosen}
    return [{**where, "args": {OVERRIDDEN: 7}}] if where else []


@st.composite
def pool(draw: st.DrawFn, role: str, base: int, kind: str = "atlas-800-a3", share: int = 1) -> dict[str, Any]:
    """A pool on hardware of this kind, of whose devices it takes one of ``share`` parts, with a thousand ports."""
    profile = _hardware()[kind]
    devices = profile["devices"] // share
    per_node = draw(st.integers(1, min(3, devices)))
    sizes = _sizes(draw, devices // per_node, ray=profile["vendor"] != "cpu")
    instances = draw(st.integers(1, 3))
    return {
        "role": role,
        **sizes,
        "hardware": kind,
        "instances": instances,
        "instances_per_node": per_node if sizes["nodes"] == 1 else 1,
        "overrides": draw(_overrides(sizes, instances)),
        "port": base,
        "rpc_port": base + 100,
        "master_port": base + 110,
        "kv_port": base + 200,
        "kv_events_port": base + 500,
        "side_channel_port": base + 700,
    }


CONNECTORS = st.sampled_from(
    [
        {"connector": "MooncakeConnectorV1"},
        {"connector": "NixlConnector"},
        {
            "connector": "MultiConnector",
            "connectors": [{"connector": "MooncakeConnectorV1"}, {"connector": "AscendStoreConnector"}],
        },
    ]
)


#: Engines with the hardware that they run on.
ENGINES = {
    "vllm-ascend": ["atlas-800-a3", "atlas-800-a2"],
    "vllm": ["h200", "cpu"],
}


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Recipes of every layout: serve pools with or without a router, or prefill and decode pools behind one.

    Pools of one recipe may have different hardware, unless they share their nodes.
    """
    given = recipe(PD)
    engine = draw(st.sampled_from(["vllm-ascend", "vllm-ascend", "vllm"]))
    given["engine"] = {"name": engine, "image": "example.org/team/engine:v0.21.0rc1"}
    kinds = st.sampled_from(ENGINES[engine])
    given["env"] = draw(
        st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{2,8}", fullmatch=True), st.text(max_size=8), max_size=3)
    )
    if draw(st.booleans()):
        given["pools"] = {
            "first": draw(pool("prefill", 2000, draw(kinds))),
            **({"more": draw(pool("prefill", 4000, draw(kinds)))} if draw(st.booleans()) else {}),
            "last": draw(pool("decode", 20000, draw(kinds))),
        }
        given["kv_transfer"] = draw(CONNECTORS)
        given["router"] = {"kind": "pd", "port": 19000, "on": "last"}
    elif draw(st.booleans()):
        # Two pools on the same nodes: half the devices each.
        kind = draw(kinds)
        given["pools"] = {"first": draw(pool("serve", 2000, kind, 2)), "last": draw(pool("serve", 4000, kind, 2))}
        first, last = given["pools"].values()
        groups = first["instances"] if first["nodes"] > 1 else -(-first["instances"] // first["instances_per_node"])
        if last["nodes"] <= first["nodes"] * groups:
            last.update(share_nodes_with="first", instances=1, overrides=[], ray_port=6579)
            if "ray" in (first.get("executor"), last.get("executor")):
                del last["share_nodes_with"]  # two Rays on a node would share their workers' ports
        del given["kv_transfer"]
        given["router"] = {"kind": "replicas", "port": 19000}
    else:
        given["pools"] = {"all": draw(pool("serve", 2000, draw(kinds)))}
        del given["kv_transfer"], given["router"]
    if draw(st.booleans()):
        given["kv_events"] = draw(st.sampled_from([True, {"topic": "kv-events"}]))
        given["kv_store"] = {"kind": "mooncake", "on": list(given["pools"])[-1]}
    return given
