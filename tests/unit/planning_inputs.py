"""Inputs for planner tests: the shipped profiles, hosts in documentation addresses, and random recipes that fit."""

from __future__ import annotations

import copy
import functools
from typing import Any

import yaml
from hypothesis import strategies as st

from ascent import layout
from ascent_controller.loader import ROOT


@functools.cache
def _hardware() -> dict[str, dict[str, Any]]:
    paths = sorted((ROOT / "catalog" / "hardware").glob("*.yml"))
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def hardware() -> dict[str, dict[str, Any]]:
    return copy.deepcopy(_hardware())


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yml").read_text())


PD = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3"


def hosts(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"n{i:03}", "node_ip": f"198.18.{i // 250}.{i % 250 + 1}", "nic": f"enp{i}s0", "arch": "aarch64"}
        for i in range(count)
    ]


def hosts_needed(given: dict[str, Any]) -> int:
    return sum(pool["hosts_needed"] for pool in layout.pools_of(given))


@st.composite
def pool(draw: st.DrawFn, role: str, base: int) -> dict[str, Any]:
    """A pool that fits 16 devices a node, with ports in a thousand of its own."""
    nodes = draw(st.integers(1, 4))
    per_node = draw(st.integers(1, 3)) if nodes == 1 else 1
    tensor = draw(st.sampled_from([1, 2, 4, 8]))
    local = draw(st.integers(1, max(1, 16 // per_node // tensor)))
    if tensor * local * per_node > 16:
        per_node = 1
    return {
        "role": role,
        "nodes": nodes,
        "instances": draw(st.integers(1, 3)),
        "instances_per_node": per_node,
        "tensor_parallel": tensor,
        "data_parallel": local * nodes,
        "port": base,
        "rpc_port": base + 100,
        "kv_port": base + 200,
    }


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Recipes with one serve pool, or with prefill and decode pools behind a router."""
    given = recipe(PD)
    given["env"] = draw(
        st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{2,8}", fullmatch=True), st.text(max_size=8), max_size=3)
    )
    if draw(st.booleans()):
        given["pools"] = {
            "first": draw(pool("prefill", 5000)),
            **({"more": draw(pool("prefill", 7000))} if draw(st.booleans()) else {}),
            "last": draw(pool("decode", 9000)),
        }
        given["router"]["on"] = "last"
    else:
        given["pools"] = {"all": draw(pool("serve", 5000))}
        del given["kv_transfer"], given["router"]
    return given
