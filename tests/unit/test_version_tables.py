"""catalog/versions: the tables fit their schema, name their sources, and hold what the seeds and the profiles say."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from ascent import engines, versions
from ascent_controller.loader import ROOT

FOLDER = ROOT / "catalog" / "versions"
TABLES = sorted(FOLDER.glob("*.yml"))
SCHEMA = json.loads((FOLDER / "schema.json").read_text())
ASCEND = yaml.safe_load((FOLDER / "vllm-ascend.yml").read_text())
DYNAMO = yaml.safe_load((FOLDER / "dynamo.yml").read_text())


def profiles() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "catalog" / "hardware").glob("*.yml")}


def rows(value: Any, key: str = ""):
    """Every mapping below that names a source, with the key it stands under."""
    if isinstance(value, dict):
        if any(name.endswith("source") for name in value):
            yield key, value
        for name, one in value.items():
            yield from rows(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from rows(one, key)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_fit_their_schema_and_name_their_sources(path):
    table = yaml.safe_load(path.read_text())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(table)
    assert table["engine"] == path.stem
    cited = {one for _, row in rows(table) for name, value in row.items() if name.endswith("source") for one in value}
    assert cited == set(table["sources"])


def spoiled(table: dict[str, Any], *keys: Any, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(table)
    place = result
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return result


@pytest.mark.parametrize(
    "broken",
    [
        spoiled(ASCEND, "releases", "v0.23.0", "source", value=None),
        spoiled(ASCEND, "releases", "v0.23.0", "cann", value=[]),
        spoiled(ASCEND, "releases", "v0.23.0", "torch", value="any"),
        spoiled(ASCEND, "releases", "latest", value=ASCEND["releases"]["v0.23.0"]),
        spoiled(ASCEND, "drivers", 0, "source", value=None),
        spoiled(ASCEND, "drivers", 0, "minimum", value="25"),
        spoiled(ASCEND, "families", "a2", "packages", "driver", value="driver.run"),
        spoiled(ASCEND, "families", "a2", "systems", 0, "machines", value=["arm64"]),
        spoiled(ASCEND, "features", "fabric-memory", "when", value={"value": "1"}),
        spoiled(ASCEND, "pairs", 0, "families", value=[]),
        spoiled(DYNAMO, "releases", "1.3.1", "cann", value="9.0.0"),
        spoiled(DYNAMO, "drivers", 0, "floor", value=None),
    ],
)
def test_the_schema_refuses_what_does_not_fit(broken):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(broken)


def figures(value: Any):
    """Every text that the schema calls a version."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in ("sources", "systems", "suffixes", "hardware", "when", "source", "packages", "families"):
                yield from figures(one)
    elif isinstance(value, list):
        for one in value:
            yield from figures(one)
    elif isinstance(value, str) and re.match(r"v?[0-9]", value):
        yield value


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_version_compares(path):
    table = yaml.safe_load(path.read_text())
    found = [*figures(table["releases"]), *figures(table["drivers"]), *table["releases"]]
    assert len(found) > 10
    for text in found:
        assert versions.sort_key(text)
    assert list(table["releases"]) == sorted(table["releases"], key=versions.sort_key, reverse=True)


def test_lists_are_in_order_and_a_newer_cann_asks_for_no_less():
    listed, floors = [], []
    for entry in ASCEND["drivers"]:
        assert entry["listed"] == sorted(entry["listed"], key=versions.sort_key)
        listed += entry["listed"][:1]
        floors += [entry["floor"]] if entry["floor"] else []
        assert not entry["floor"] or versions.sort_key(entry["floor"]) <= versions.sort_key(entry["listed"][0])
    assert listed == sorted(listed, key=versions.sort_key)
    assert floors == sorted(floors, key=versions.sort_key)
    assert floors, "a table without any minimum could refuse no driver"
    canns = [entry["cann"] for entry in ASCEND["drivers"]]
    assert canns == sorted(canns, key=versions.sort_key)


def test_every_ascend_profile_belongs_to_one_family_with_its_suffix():
    by_hardware = [name for family in ASCEND["families"].values() for name in family["hardware"]]
    ascend = {name: profile for name, profile in profiles().items() if profile["vendor"] == "ascend"}
    assert sorted(by_hardware) == sorted(ascend)
    for family in ASCEND["families"].values():
        for name in family["hardware"]:
            assert ascend[name]["image_suffix"] in family["suffixes"]
    for row in ASCEND["releases"].values():
        assert set(row["images"]["families"]) | set(row.get("cann_by_family", {})) <= set(ASCEND["families"])
    for entry in [*ASCEND["pairs"], *ASCEND["features"].values()]:
        assert set(entry["families"]) <= set(ASCEND["families"])


def test_releases_that_recipes_use_have_a_row():
    for path in sorted((ROOT / "recipes").glob("*.yml")):
        engine = yaml.safe_load(path.read_text()).get("engine") or {}
        table = {"vllm-ascend": ASCEND, "dynamo": DYNAMO}.get(engine.get("name"))
        version = engines.image_version(engine.get("image") or "")
        if table is not None and engine.get("image"):
            assert version in table["releases"], (path.name, version)


def test_the_rows_that_the_seeds_state():
    seed = ASCEND["releases"]["v0.13.0rc1"]
    assert (seed["vllm"], seed["cann"], seed["torch_npu"], seed["triton_ascend"]) == (
        "0.13.0",
        ["8.3.RC2"],
        "2.8.0",
        "3.2.0",
    )
    assert next(one["used"] for one in ASCEND["drivers"] if one["cann"] == "8.3.RC2") == "25.3.RC1"
    assert ASCEND["releases"]["v0.21.0rc1"]["cann"] == ["9.0.0"]
