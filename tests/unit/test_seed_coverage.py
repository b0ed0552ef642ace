"""docs/reference/seed-coverage.md names every row of the acceptance list, and nothing that does not exist."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ascent import planner, rules
from ascent_controller import planning, render
from ascent_controller.loader import ROOT
from tests.unit import planning_inputs as inputs
from tests.unit import seed_scripts as scripts

PAGE = (ROOT / "docs" / "reference" / "seed-coverage.md").read_text(encoding="utf-8")
RULES_PAGE = (ROOT / "docs" / "reference" / "rules.md").read_text(encoding="utf-8")

PREDICATES = (
    "CG1 CG2 CG3 CG4 QU1 EP1 FC1 FC2 MC1 MC2 MC3 ROPE SEQ1 SEQ2 TOK1 TOK2 DP1 DP2 DP3 DP4 DP5 DP6 DEV1 NET1 NET2 NET3 "
    "KV1 KV2 KV3 KV4 KV5 PC1 PC2 PC3 PX1 PX2 PX3 PX4 MT1 OOM1 OOM2 OOM3 LEN1 RT1 DEP1 VER1 VER2 MODEL1 MODEL2 AB1"
)


def numbered(letter: str, *ranges: tuple[int, int]) -> list[str]:
    return [f"{letter}{number}" for first, last in ranges for number in range(first, last + 1)]


ROWS = [
    *numbered("A", (1, 25), (30, 41)),
    *numbered("B", (1, 18)),
    *numbered("C", (1, 23), (30, 39)),
    *numbered("D", (1, 11)),
    *numbered("E", (1, 9)),
    *numbered("I", (1, 15)),
    *(f"P-{name}" for name in PREDICATES.split()),
    *numbered("J", (1, 13)),
    *numbered("K", (1, 8)),
    *numbered("L", (1, 6)),
]


def table() -> dict[str, str]:
    return dict(re.findall(r"^\| `seed:([A-Z0-9-]+)` \| (.*) \|$", PAGE, flags=re.MULTILINE))


def test_every_row_has_its_place_once():
    listed = re.findall(r"^\| `seed:([A-Z0-9-]+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(ROWS)
    assert all(len(cell.strip()) > 3 for row in table().values() for cell in row.split(" | "))


def test_rules_that_are_named_exist():
    named = set(re.findall(r"`rule:([a-z0-9-]+)`", PAGE))
    assert named
    assert named <= set(rules.ALL_RULES)


@pytest.mark.parametrize("row", [row for row in ROWS if row.startswith("P-")])
def test_predicates_name_the_rules_that_decide_them(row):
    decided = re.search(rf"^\| `seed:{row}` \| (.*) \|$", RULES_PAGE, flags=re.MULTILINE)
    assert decided, f"no rule, stage or advice claims {row}"
    assert set(re.findall(r"`rule:([a-z0-9-]+)`", table()[row])) == set(re.findall(r"`([a-z0-9-]+)`", decided.group(1)))


def test_files_and_tests_that_are_named_exist():
    for path, test in re.findall(r"`([A-Za-z0-9_./-]+/[A-Za-z0-9_./-]+?)(?:::([a-z0-9_]+))?`", PAGE):
        file = ROOT / path
        assert file.exists(), path
        if test:
            assert f"def {test}(" in file.read_text(encoding="utf-8"), f"{path}::{test}"


# Rows C30 to C39, with a value for each parameter. Those that follow from the plan are not typed but found in it.
PASSED: dict[str, Any] = {
    "max-model-len": 16384,
    "max-num-batched-tokens": 4096,
    "max-num-seqs": 64,
    "gpu-memory-utilization": 0.9,
    "seed": 1024,
    "host": "0.0.0.0",
    "trust-remote-code": True,
    "api-server-count": 2,
    "quantization": "ascend",
    "enable-expert-parallel": True,
    "async-scheduling": True,
    "enforce-eager": True,
    "block-size": 128,
    "enable-prefix-caching": True,
    "disable-hybrid-kv-cache-manager": False,
    "compilation-config": {"cudagraph_mode": "PIECEWISE", "cudagraph_capture_sizes": [8, 16]},
    "additional-config": {
        "pa_shape_list": [48],
        "weight_prefetch_config": {"enabled": True, "prefetch_ratio": {"mlp": {"gate_up": 1.0, "down": 1.0}}},
        "enable_cpu_binding": True,
        "enable_fused_mc2": 1,
        "enable_flashcomm1": True,
        "multistream_overlap_shared_expert": True,
        "recompute_scheduler_enable": True,
    },
    "speculative-config": {"method": "qwen3_5_mtp", "num_speculative_tokens": 3, "enforce_eager": True},
    "hf-overrides": {"rope_parameters": {"rope_type": "yarn", "factor": 4}},
    "rope_scaling": {"rope_type": "yarn", "factor": 4},
}
NEGATED = {"disable-hybrid-kv-cache-manager": "--no-disable-hybrid-kv-cache-manager"}
VARIABLES = {"VLLM_ASCEND_ENABLE_FLASHCOMM1": 1, "VLLM_ASCEND_ENABLE_FUSED_MC2": 2}
DERIVED = {
    "--tensor-parallel-size": 8.0,
    "--data-parallel-size": 2.0,
    "--data-parallel-size-local": 1.0,
    "--data-parallel-start-rank": 0.0,
    "--data-parallel-address": "192.0.2.1",
    "--data-parallel-rpc-port": 13389.0,
    "--served-model-name": "any",
    "--port": 8000.0,
    "--distributed-executor-backend": "mp",
}


@pytest.mark.parametrize("option", PASSED)
def test_every_parameter_of_the_seeds_can_be_set(option):
    recipe = {
        "name": "any",
        "model": {"id": "org/any", "served_name": "any"},
        "engine": {"name": "vllm-ascend", "image": "example.org/ascend/vllm-ascend:main"},
        "hardware": "atlas-800-a3",
        "env": VARIABLES,
        "args": {option: PASSED[option]},
        "pools": {"serve": {"nodes": 2, "tensor_parallel": 8, "data_parallel": 2, "executor": "mp"}},
    }
    plan = planner.plan(recipe, inputs.hardware(), planning.stand_ins(2), cluster="c")
    script = scripts.read_script(render.files(plan)["node-01"]["serve-0-head.sh"])
    flag = NEGATED.get(option, f"--{option}")
    value = PASSED[option]
    assert script["flags"][flag] == (None if isinstance(value, bool) else scripts.normal(value))
    assert {name: script["flags"][name] for name in DERIVED} == DERIVED
    assert {name: script["env"][name] for name in VARIABLES} == {name: str(one) for name, one in VARIABLES.items()}
    assert "--headless" in scripts.read_script(render.files(plan)["node-02"]["serve-0-headless-1.sh"])["flags"]
