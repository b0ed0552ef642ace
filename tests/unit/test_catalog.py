"""Hardware profiles and model families: schemas, arithmetic, and the seeds' requirement rows."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from ascent import engines
from ascent_controller import loader
from ascent_controller.loader import ROOT

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
        result += [{**common, **variant} for variant in family["variants"]]
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
    if "same_sizing_as" in profile:
        other = profiles()[profile["same_sizing_as"]]
        assert (other["hbm_mb"], other["devices_per_npu"]) == (profile["hbm_mb"], profile["devices_per_npu"])


def test_suffixes_are_ones_that_images_have():
    for profile in profiles().values():
        if profile["image_suffix"]:
            assert engines.image_platform("quay.io/ascend/vllm-ascend:v0.21.0rc1" + profile["image_suffix"])


def test_every_requirement_row_is_stated_once():
    rows = [row for path in MODELS for row in data(path).get("rows", [])]
    rows += [row for path in MODELS for variant in data(path)["variants"] for row in variant.get("rows", [])]
    assert sorted(rows) == sorted(ROWS)


def test_names_of_models_are_unique():
    names = [name for one in variants() for name in (one["id"], *one.get("aliases", []))]
    assert len(names) == len(set(names))


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


def test_the_loader_finds_a_model_by_any_of_its_names():
    found = [
        loader._model_facts({"model": {"id": name}}, ROOT)
        for name in ("Qwen/Qwen3-235B-A22B", "vllm-ascend/Qwen3-235B-A22B", "vllm-ascend/Qwen3-235B-A22B-w8a8", "x/y")
    ]
    assert [findings for _, findings in found] == [[], [], [], []]
    assert [model and model["precision"] for model, _ in found] == ["bf16", "bf16", "w8a8", None]
    assert found[1][0]["figures"]["kv_heads"] == 4
