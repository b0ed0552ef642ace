"""Files with positions: what the loader says about broken recipes, catalogues and inventories."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml

from ascent_controller import loader, planning
from tests.unit import planning_inputs as inputs


@pytest.fixture
def root(tmp_path):
    """A project folder with the shipped catalogue and recipes, free to be broken."""
    for name in ("recipes", "catalog"):
        shutil.copytree(loader.ROOT / name, tmp_path / name)
    return tmp_path


#: A recipe whose own file has pools and a router.
SPLIT = "qwen3-235b-a22b-w8a8-pd-1p1d-a3"


def broken(root, old, new, name=SPLIT):
    file = root / "recipes" / f"{name}.yml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    line = next(number for number, row in enumerate(file.read_text().splitlines(), 1) if new.splitlines()[-1] in row)
    return f"recipes/{name}.yml:{line}"


def test_everything_shipped_fits_its_schema():
    recipes = [path.stem for path in (loader.ROOT / "recipes").glob("*.yml")]
    assert len(recipes) >= 3
    for name in recipes:
        loaded = loader.load(name)
        assert loaded.findings == []
        assert loaded.recipe["name"] == name
        # Tiny models are made for tests of the real engine and stand in no catalogue.
        assert loaded.model is not None or name.startswith("tiny-")
        assert loaded.recipe["hardware"] in loaded.hardware
    assert {path.stem for path in (loader.ROOT / "catalog" / "hardware").glob("*.yml")} == set(loaded.hardware)
    for schema in ("recipes", "catalog/hardware", "catalog/models"):
        path = loader.ROOT / schema / "schema.json"
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_option_tables_of_the_release_are_loaded():
    loaded = loader.load(inputs.PD).options
    assert "--max-num-seqs" in [option["name"] for option in loaded["options"]]
    assert "enable_fused_mc2" in loaded["additional_config"]["keys"]


@pytest.mark.parametrize(
    ("old", "new", "summary", "allowed"),
    [
        ("    nodes: 2", "    node: 2", "pools.decode.node is not a key of a recipe; did you mean nodes?", "instances"),
        ("    nodes: 2", "    nodes: two", "pools.decode.nodes has a value that doesn't fit", "type integer"),
        ("    nodes: 2", "    nodes: 0", "pools.decode.nodes has a value that doesn't fit", "1 or more"),
        ("  kind: pd", "  kind: layerwise", "router.kind has a value that doesn't fit", "pd, pd-layerwise"),
        ("  HCCL_BUFFSIZE: 1024", "  HCCL_BUFFSIZE: true", "pools.decode.env.HCCL_BUFFSIZE has a value", "in quotes"),
        ("\npools:\n", "\npool:\n", "pool is not a key of a recipe; did you mean pools?", "pools"),
    ],
)
def test_broken_keys_are_named_with_line_and_allowed_values(root, old, new, summary, allowed):
    place = broken(root, old, new)
    found = loader.load(SPLIT, root).findings
    hit = next(item for item in found if item["summary"].startswith(summary))
    assert hit["id"] == "recipe-schema"
    assert hit["evidence"].startswith(place + ":")
    assert allowed in hit["evidence"].partition("allowed: ")[2]
    assert hit["fix"]


def test_broken_keys_do_not_hide_what_else_is_wrong(root):
    broken(root, "    nodes: 2", "    node: 2")
    broken(root, "  kind: pd", "  kind: pd-layerwise")
    hosts = inputs.hosts(3)
    hosts[1]["node_ip"] = hosts[0]["node_ip"]
    plan, found = planning.prepare(SPLIT, hosts, cluster="c", root=root)
    assert plan is None
    errors = {item["id"] for item in found if item["severity"] == "error"}
    assert {"recipe-schema", "router-matches-connector", "host-address-twice"} <= errors


def test_a_key_written_twice_is_an_error(root):
    place = broken(root, "      max-num-seqs: 24", "      max-num-seqs: 24\n      max-num-seqs: 7")
    found = loader.load(SPLIT, root).findings
    assert [(item["id"], item["severity"]) for item in found] == [("yaml-duplicate-key", "error")]
    assert found[0]["evidence"].startswith(f"{place}: pools.prefill.args.max-num-seqs")


def test_bad_yaml_names_its_line(root):
    place = broken(root, "      max-num-seqs: 24", "      max-num-seqs: [24")
    found = loader.load(SPLIT, root).findings
    assert [item["id"] for item in found] == ["yaml-syntax"]
    assert found[0]["evidence"].split(":")[0] == place.split(":")[0]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_that_is_no_recipe(root, text):
    (root / "recipes" / "odd.yml").write_text(text)
    found = loader.load("odd", root)
    assert found.recipe is None
    assert [item["id"] for item in found.findings] == ["recipe-schema"]


def test_on_is_a_word_not_a_boolean(root):
    broken(root, '  "on": prefill', "  on: prefill")
    loaded = loader.load(SPLIT, root)
    assert loaded.findings == []
    assert loaded.recipe["router"]["on"] == "prefill"


def test_a_recipe_may_be_a_path(tmp_path):
    file = tmp_path / "mine.yml"
    shutil.copy(loader.ROOT / "recipes" / f"{inputs.PD}.yml", file)
    loaded = loader.load(str(file))
    assert (loaded.findings, loaded.recipe["name"]) == ([], inputs.PD)
    assert loaded.positions["recipe:router.port"].startswith(f"{file}:")


@pytest.mark.parametrize("name", ["nothing-like-it", "recipes/none.yml"])
def test_an_unknown_recipe_lists_what_there_is(name):
    loaded = loader.load(name)
    assert loaded.recipe is None
    assert [item["id"] for item in loaded.findings] == ["recipe-unknown"]
    assert inputs.PD in loaded.findings[0]["evidence"]


def test_the_nearest_recipe_finds_the_other_mistakes():
    plan, found = planning.prepare("qwen3.5-397b-a17b-w8a8-pd-1p1d-a2", inputs.hosts(2), cluster="c")
    assert plan is None
    assert [item["id"] for item in found] == ["hosts-too-few", "recipe-unknown"]
    assert found[0]["cause"] == f"if recipe {inputs.PD} is meant"


def test_a_broken_catalogue_is_said(root):
    file = root / "catalog" / "hardware" / "atlas-800-a2.yml"
    file.write_text(file.read_text().replace("devices: 8", "devices: eight"))
    found = loader.load(inputs.PD, root).findings
    assert [item["id"] for item in found] == ["hardware-schema"]


INVENTORY = """
all:
  children:
    clusters:
      children:
        c1:
          vars: {recipe: some-recipe}
          hosts:
            node.one:
              node_ip: 192.0.2.1
            node-two: {node_ip: 192.0.2.2}
            node-two: {node_ip: 192.0.2.3}
"""


def test_positions_in_an_inventory_file_and_beside_it(tmp_path):
    file = tmp_path / "hosts.yml"
    file.write_text(INVENTORY)
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars" / "node-two.yml").write_text("---\nnic: eth0\n")
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text("key: !vault |\n  abc\nother: 1\n")
    positions, found = loader.read_inventory([str(file)], ["node.one", "node-two"], "some-recipe", tmp_path)
    assert positions["inventory:recipe"] == "hosts.yml:7"
    assert positions["host:node.one.node_ip"] == "hosts.yml:10"
    assert positions["host:node-two.nic"] == "host_vars/node-two.yml:2"
    assert [item["id"] for item in found] == ["yaml-duplicate-key"]
    assert "hosts.yml:12" in found[0]["evidence"]


def test_positions_in_an_ini_inventory(tmp_path):
    (tmp_path / "hosts").write_text("[c1]\nn1 node_ip=192.0.2.1 pool=decode\nn2\n")
    positions, _ = loader.read_inventory([str(tmp_path)], ["n1", "n2"], "x", tmp_path)
    assert positions == {
        "host:n1": "hosts:2",
        "host:n1.node_ip": "hosts:2",
        "host:n1.pool": "hosts:2",
        "host:n2": "hosts:3",
    }


FACTS = {
    "system": {"machine": "aarch64"},
    "network": {
        "addresses": [
            {"nic": "lo", "address": "127.0.0.1", "prefix": 8},
            {"nic": "eth0", "address": "192.0.2.1", "prefix": 24},
            {"nic": "eth1", "address": "198.51.100.1", "prefix": 24},
            {"nic": "eth1", "address": "fe80::1", "prefix": 64},
        ]
    },
}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ({"ansible_host": "192.0.2.1"}, {"node_ip": "192.0.2.1", "nic": "eth0", "arch": "aarch64"}),
        ({"node_ip": "198.51.100.1"}, {"node_ip": "198.51.100.1", "nic": "eth1", "arch": "aarch64"}),
        ({"ansible_host": "a.name"}, {"arch": "aarch64"}),
        ({"node_ip": "192.0.2.9", "arch": "x86_64", "nic": "bond0"}, {}),
    ],
)
def test_facts_fill_only_what_is_missing(host, expected):
    assert planning.complete_host(host, FACTS) == {**host, **expected}
    assert planning.complete_host(host, None) == host


def extending(root, text, name="variant"):
    (root / "recipes" / f"{name}.yml").write_text(text)
    return loader.load(name, root)


def test_a_recipe_extends_another_key_by_key(root):
    (root / "recipes" / "presets").mkdir(exist_ok=True)
    (root / "recipes" / "presets" / "tight.yml").write_text(
        "name: tight\nargs: {max-num-seqs: 4, compilation-config: {cudagraph_mode: PIECEWISE}}\n"
    )
    text = f"""
name: variant
extends: [{inputs.PD}, tight]
args: {{seed: null, max-num-seqs: 5, additional-config: {{enable_fused_mc2: null, more: [1]}}}}
pools:
  prefill: null
  decode: {{nodes: 1, data_parallel: 8, args: {{max-num-seqs: null}}}}
router: null
"""
    loaded = extending(root, text)
    base = loader.load(inputs.PD, root).recipe
    assert loaded.findings == []
    assert loaded.recipe["name"] == "variant"
    assert "summary" not in loaded.recipe
    assert list(loaded.recipe["args"])[: len(base["args"])] == list(base["args"])
    assert loaded.recipe["args"]["seed"] is None
    assert loaded.recipe["args"]["max-num-seqs"] == 5
    assert loaded.recipe["args"]["compilation-config"] == {"cudagraph_mode": "PIECEWISE"}
    kept = {"recompute_scheduler_enable": True, "enable_cpu_binding": True, "more": [1]}
    assert loaded.recipe["args"]["additional-config"] == kept
    assert "router" not in loaded.recipe
    assert list(loaded.recipe["pools"]) == ["decode"]
    assert loaded.recipe["pools"]["decode"] == {
        **base["pools"]["decode"],
        "nodes": 1,
        "data_parallel": 8,
        "args": {**base["pools"]["decode"]["args"], "max-num-seqs": None},
    }
    assert loaded.positions["recipe:pools.decode.nodes"] == "recipes/variant.yml:7"
    assert loaded.positions["recipe:pools.decode.port"].startswith(f"recipes/{inputs.PD}.yml:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: variant\nextends: variant\n", "recipe-extends-circle"),
        ("name: variant\nextends: qwen3-235b-a22b-dp3\n", "recipe-extends-unknown"),
    ],
)
def test_what_can_not_be_extended_is_said_with_its_line(root, text, expected):
    found = extending(root, text).findings
    assert found[0]["id"] == expected
    assert found[0]["evidence"].startswith("recipes/variant.yml:2: extends")


def test_a_circle_over_two_files_is_found(root):
    (root / "recipes" / "other.yml").write_text("name: other\nextends: variant\n")
    found = extending(root, "name: variant\nextends: other\n").findings
    assert [item["id"] for item in found if "circle" in item["id"]] == ["recipe-extends-circle"]
    assert "variant -> other -> variant" in found[0]["summary"]


def test_what_a_recipe_lacks_in_the_end_is_said(root):
    found = extending(root, "name: variant\nmodel: {source: local}\nkv_transfer: {extra: {}}\n").findings
    missing = {item["summary"] for item in found}
    assert missing == {
        f"{key} is missing" for key in ("engine", "hardware", "pools", "model.id", "kv_transfer.connector")
    }


def test_the_recipe_page_is_current():
    done = subprocess.run(
        [sys.executable, str(loader.ROOT / "tools" / "recipe_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_examples_of_the_recipe_page_fit_the_schema():
    page = (loader.ROOT / "docs" / "reference" / "recipe.md").read_text()
    schema = json.loads((loader.ROOT / "recipes" / "schema.json").read_text())
    examples = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    examples = [one for one in examples if one]
    assert len(examples) > 10
    for one in examples:
        jsonschema.validate({"name": "example", **one}, schema)


@pytest.mark.parametrize("title", inputs.layouts())
def test_the_layouts_of_the_recipe_page_break_no_rule(tmp_path, title):
    recipe = inputs.layouts()[title]
    file = tmp_path / "example.yml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    plan, found = planning.prepare(str(file), inputs.hosts(inputs.hosts_needed(recipe)), cluster="c")
    assert [item for item in found if item["severity"] == "error"] == []
    assert plan is not None
