"""Hardware profiles and model families: schemas, arithmetic, and the seeds' requirement rows."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from ascent import engines, rules
from ascent_controller import loader
from ascent_controller.loader import ROOT
from tests.unit import planning_inputs

HARDWARE = sorted((ROOT / "catalog" / "hardware").glob("*.yml"))
MODELS = sorted((ROOT / "catalog" / "models").glob("*.yml"))
# Rows of the acceptance list that the model catalogue states.
ROWS = {f"A{number}" for number in range(30, 42)} | {f"L{number}" for number in range(1, 5)}


def data(path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def profiles() -> dict[str, dict[str, Any]]:
    return {path.stem: data(path) for path in HARDWARE}


def variants() -> list[dict[str, Any]]:
    """Each variant with what its family says under it, as the loader hands it to the rules."""
    result = []
    for path in MODELS:
        family = data(path)
        common = {key: value for key, value in family.items() if key != "variants"}
        result += [{**common, **variant, "own_rows": variant.get("rows", [])} for variant in family["variants"]]
    return result


def by_id(item: dict[str, Any]) -> str:
    return item["id"]


@pytest.mark.parametrize("path", [*HARDWARE, *MODELS], ids=lambda path: path.stem)
def test_entries_fit_their_schema(path):
    schema = json.loads((path.parent / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data(path))
    assert data(path)["name"] == path.stem


@pytest.mark.parametrize(
    ("folder", "key", "value"),
    [
        ("hardware", "devices", 0),
        ("hardware", "device_file", "/dev/davinci"),
        ("hardware", "fabric", {"address": "ip"}),
        ("hardware", "hbm", 1),
        ("models", "kind", "sparse"),
        ("models", "minimum_engine", {"vllm": "0.8"}),
        ("models", "figures", {"parameters": 1}),
        ("models", "variants", []),
        ("models", "variants", [{"id": "org/any", "precision": "bf16"}]),
        ("models", "variants", [{"id": "org/any", "precision": "bf16", "weights": {"local": ["org/any"]}}]),
        ("models", "variants", [{"id": "org/any", "precision": "bf16", "weights": {"modelscope": ["any"]}}]),
    ],
)
def test_schemas_refuse_what_does_not_fit(folder, key, value):
    entry = data(sorted((ROOT / "catalog" / folder).glob("*.yml"))[0])
    schema = json.loads((ROOT / "catalog" / folder / "schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**entry, key: value})


def test_the_servers_of_the_seeds_are_there():
    sizes = {
        name: (one["devices"], one.get("hbm_mb", 0) // 1024, one["image_suffix"]) for name, one in profiles().items()
    }
    assert sizes == {
        "atlas-800-a2": (8, 64, ""),
        "atlas-800-a2-32g": (8, 32, ""),
        "atlas-800-a2-910b4-1": (8, 64, ""),
        "atlas-800-a3": (16, 64, "-a3"),
        "cpu": (2, 0, ""),
        "dev-box": (1, 64, ""),
        "h200": (8, 140, ""),
    }


@pytest.mark.parametrize("name", sorted(profiles()))
def test_devices_get_into_containers_one_way(name):
    profile = profiles()[name]
    assert bool(profile["device_file"]) + bool(profile.get("gpus")) + (profile["vendor"] == "cpu") == 1
    assert profile["devices"] % profile["devices_per_npu"] == 0
    if profile["vendor"] == "ascend":
        assert profile["management_devices"] == ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"]
        tools = set(profile["tools"].values())
        assert tools <= set(profile["mounts"]), "a tool that checks use is mounted where the engine can call it too"
        assert ("fabric" in profile) == ("fabric" in profile["tools"])


def test_suffixes_are_ones_that_images_have():
    for profile in profiles().values():
        if profile["image_suffix"]:
            assert engines.image_platform("quay.io/ascend/vllm-ascend:v0.21.0rc1" + profile["image_suffix"])


def test_every_row_of_the_acceptance_list_is_stated_once():
    rows = [row for path in MODELS for row in data(path).get("rows", [])]
    rows += [row for one in variants() for row in one["own_rows"]]
    assert sorted(rows) == sorted(ROWS)


# The seeds' own tables: row, model, precision, devices by hardware, and where the seed links to the weights.
REQUIRED = [
    ("A30", "Qwen/Qwen3-0.6B", "bf16", {"a3": 2, "a2": 1}, "modelers"),
    ("A31", "Qwen/Qwen3-1.7B", "bf16", {"a3": 2, "a2": 1}, "modelers"),
    ("A32", "Qwen/Qwen3-4B", "bf16", {"a3": 2, "a2": 1}, "modelers"),
    ("A33", "Qwen/Qwen3-8B", "bf16", {"a3": 2, "a2": 1}, "modelers"),
    ("A34", "Qwen/Qwen3-14B", "bf16", {"a3": 2, "a2": 2}, "modelers"),
    ("A35", "Qwen/Qwen3-32B", "bf16", {"a3": 4, "a2": 4, "a2-32g": 4}, "modelers"),
    ("A36", "vllm-ascend/Qwen3-32B-W8A8", "w8a8", {"a3": 4, "a2": 4}, "modelscope"),
    ("A37", "Qwen/Qwen3-235B-A22B", "bf16", {"a3": 16, "a2": 8, "a2-32g": 16}, "modelers"),
    ("A38", "vllm-ascend/Qwen3-235B-A22B-w8a8", "w8a8", {"a3": 16, "a2": 8, "a2-32g": 16}, "modelscope"),
    ("A39", "Qwen/Qwen3.5-397B-A17B", "bf16", {"a3": 32, "a2": 32}, "modelscope"),
    ("A40", "Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp", "w8a8", {"a3": 16, "a2": 16}, "modelscope"),
    ("A41", "Qwen/Qwen3-32B", "bf16", {"a3": 4, "a2": 4, "a2-32g": 4}, "huggingface"),
]


@pytest.mark.parametrize(("row", "name", "precision", "devices", "source"), REQUIRED, ids=lambda value: str(value)[:20])
def test_a_requirement_row_is_stated_as_the_seed_states_it(row, name, precision, devices, source):
    (model,) = [one for one in variants() if row in one["own_rows"]]
    assert (model["id"], model["precision"]) == (name, precision)
    assert model["devices"] == {f"atlas-800-{short}": count for short, count in devices.items()}
    assert source in model["weights"]


@pytest.mark.parametrize(
    ("hardware", "name", "asked"),
    [(f"atlas-800-{kind}", name, count) for _, name, _, devices, _ in REQUIRED for kind, count in devices.items()],
)
def test_one_device_less_than_recommended_is_a_warning(hardware, name, asked):
    """An A3 card is two devices of an A2 card's size: what the seed asks for on A2 is enough on A3."""
    (model,) = [one for one in variants() if one["id"] == name]
    if hardware == "atlas-800-a3":
        asked = min(asked, model["devices"]["atlas-800-a2"])
    assert not warned(model, hardware, asked)
    assert asked == 1 or warned(model, hardware, asked - 1) == [f"{asked} or more devices of {hardware}"]


@pytest.mark.parametrize("hardware", ["atlas-800-a2-910b4-1", "dev-box"])
def test_equal_devices_are_asked_for_in_equal_numbers(hardware):
    (model,) = [one for one in variants() if one["id"] == "Qwen/Qwen3-14B"]
    assert warned(model, hardware, 1) == [f"2 or more devices of {hardware}"]
    assert not warned(model, "h200", 1), "no guide says anything of other devices"
    assert not warned(model, "atlas-800-a2-32g", 1)


def warned(model: dict[str, Any], hardware: str, devices: int) -> list[str]:
    """What `model-devices` asks for, when one instance has so many devices."""
    recipe = {
        "name": "any",
        "model": {"id": model["id"]},
        "engine": {"name": "vllm-ascend", "image": "example.org/ascend/vllm-ascend:v0.21.0rc1"},
        "hardware": hardware,
        # One device a node, so that any number of them can be had.
        "pools": {"serve": {"nodes": devices, "tensor_parallel": 1, "data_parallel": devices}},
    }
    found = rules.check(recipe, profiles(), planning_inputs.hosts(devices), model=model)
    told = [item["evidence"] for item in found if item["id"] == "model-devices"]
    return [re.search(r"(\d+ or more devices of \S+)", evidence).group(1) for evidence in told]


# What all three families have in the engine's support matrix.
FEATURES = {
    *("bf16", "w8a8", "chunked-prefill", "prefix-caching", "async-scheduling", "aclgraph"),
    *("tensor-parallel", "data-parallel"),
}


@pytest.mark.parametrize(
    ("row", "family", "facts", "more_features"),
    [
        ("L1", "qwen3-dense", {"kind": "dense", "attention": "full", "mtp": False, "multimodal": False}, set()),
        ("L2", "qwen3-dense", {"kind": "dense", "served_as": "qwen3", "native_context": 40960}, set()),
        (
            "L3",
            "qwen3-235b-a22b",
            {"kind": "moe", "attention": "full", "served_as": "qwen3", "native_context": 40960},
            {"expert-parallel", "prefill-decode"},
        ),
        (
            "L4",
            "qwen3.5-397b-a17b",
            {"kind": "moe", "attention": "hybrid", "mtp": True, "multimodal": True, "served_as": "qwen3.5"},
            {"expert-parallel", "prefill-decode", "speculative-decoding"},
        ),
    ],
)
def test_a_family_is_described_as_the_seed_describes_it(row, family, facts, more_features):
    found = data(ROOT / "catalog" / "models" / f"{family}.yml")
    assert row in found["rows"]
    assert {"mtp": False, "multimodal": False, **found}.items() >= facts.items()
    assert set(found["features"]) == FEATURES | more_features


@pytest.mark.parametrize(
    ("row", "family", "first"),
    [
        ("K2", "qwen3-dense", "v0.8.4rc2"),
        ("K3", "qwen3-235b-a22b", "v0.8.4rc2"),
        ("K7", "qwen3.5-397b-a17b", "v0.17.0rc1"),
    ],
)
def test_the_first_release_of_a_family_is_the_seeds(row, family, first):
    assert data(ROOT / "catalog" / "models" / f"{family}.yml")["minimum_engine"]["vllm-ascend"] == first


def test_long_weights_need_no_scaling_and_short_ones_say_how():
    native = {one["id"]: one["native_context"] for one in variants() if one["name"] == "qwen3-235b-a22b"}
    assert native.pop("Qwen/Qwen3-235B-A22B-Instruct-2507") == 262144
    assert set(native.values()) == {40960}
    scaling = data(ROOT / "catalog" / "models" / "qwen3-235b-a22b.yml")["rope_scaling"]
    assert scaling == {
        "rope_type": "yarn", "rope_theta": 1000000, "factor": 4, "original_max_position_embeddings": 32768
    }  # fmt: skip


def test_names_of_models_are_unique():
    names = [name for one in variants() for name in {name for names in one["weights"].values() for name in names}]
    assert len(names) == len(set(names))
    assert all(any(one["id"] in names for names in one["weights"].values()) for one in variants())


@pytest.mark.parametrize("model", variants(), ids=by_id)
def test_figures_agree_with_each_other(model):
    figures = model["figures"]
    assert figures["embedding_parameters"] < figures["parameters"]
    assert figures["kv_layers"] <= figures["layers"]
    assert (figures["kv_layers"] < figures["layers"]) == (model["attention"] == "hybrid")
    assert figures["attention_heads"] % figures["kv_heads"] == 0
    assert ("expert_parameters" in figures) == (model["kind"] == "moe")
    if model["kind"] == "moe":
        assert figures["expert_parameters"] < figures["parameters"]
        assert figures["activated_parameters"] < figures["parameters"]
    # The number in the model's own name, as its publisher rounds it.
    named = float(re.search(r"-(\d+(?:\.\d+)?)B", model["id"]).group(1))
    assert abs(figures["parameters"] - named) / named < 0.06


@pytest.mark.parametrize("model", variants(), ids=by_id)
def test_asked_for_devices_hold_the_weights(model):
    """The tables of the seeds and the sizes of the models must not contradict each other."""
    assert set(model["devices"]) <= set(profiles())
    size = model["figures"]["parameters"] * (1 if model["precision"] == "w8a8" else 2) * 1e9
    for name, count in model["devices"].items():
        assert size < count * profiles()[name]["hbm_mb"] * 2**20, name


@pytest.mark.parametrize("model", variants(), ids=by_id)
def test_versions_are_versions(model):
    assert model["minimum_engine"]
    assert all(engines.version_key(version) for version in model["minimum_engine"].values())


@pytest.mark.parametrize(
    ("name", "id"),
    [(name, one["id"]) for one in variants() for names in one["weights"].values() for name in names] + [("x/y", None)],
)
def test_the_loader_finds_a_model_by_any_of_its_names(name, id):
    found, findings = loader._model_facts({"model": {"id": name}}, ROOT)
    assert findings == []
    assert (found and found["id"]) == id
    if found is not None:
        assert found["figures"]["kv_heads"], "what the family says is there too"
