"""The action plugin in real playbook runs: whole clusters under a limit, all mistakes at once, files on demand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PD = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3"


def inventory(**changes):
    hosts = {f"a3-0{i}": {"ansible_host": f"192.0.2.1{i}", "node_ip": f"192.0.2.1{i}"} for i in (1, 2, 3)}
    cluster = {"vars": {"recipe": PD, "arch": "aarch64", "nic": "enp1s0"}, "hosts": hosts, **changes}
    other = {"hosts": {"lonely": {"node_ip": "192.0.2.99"}}}
    return {"all": {"children": {"clusters": {"children": {"a3-cluster": cluster, "other": other}}}}}


def run(folder: Path, *arguments: str, hosts=None, play="playbooks/render.yml"):
    """One run of the playbook with an inventory whose addresses nobody has."""
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts or inventory(), sort_keys=False))
    (folder / "ansible.cfg").write_text(
        f"[defaults]\nlibrary = {ROOT}/library\naction_plugins = {ROOT}/plugins/action\n"
        f"filter_plugins = {ROOT}/plugins/filter\nmodule_utils = {ROOT}/module_utils\ninject_facts_as_vars = false\n"
        "force_valid_group_names = ignore\ngathering = explicit\nretry_files_enabled = false\n"
    )
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
    }
    command = ["ansible-playbook", "-i", str(folder / "hosts.yml"), str(ROOT / play), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_render_is_idempotent_honest_and_covers_the_cluster_under_a_limit(tmp_path):
    out = tmp_path / "out"
    dry = run(tmp_path, "-l", "a3-02", "-e", f"render_to={out}", "--check", "--diff")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "changed=1" in dry.stdout
    assert "+exec vllm serve" in dry.stdout
    assert not out.exists()
    first = run(tmp_path, "-l", "a3-02", "-e", f"render_to={out}")
    assert "changed=1" in first.stdout, first.stdout + first.stderr
    assert "decode-0-headless-1" in first.stdout
    assert sorted(path.name for path in out.iterdir()) == ["a3-01", "a3-02", "a3-03", "plan.json", "plan.svg"]
    assert os.access(out / "a3-01" / "router.sh", os.X_OK)
    plan = json.loads((out / "plan.json").read_text())
    assert plan["cluster"] == "a3-cluster"
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    # A script of ours that the plan no longer has goes away; a file of somebody else stays.
    stale = out / "a3-01" / "old.sh"
    stale.write_text("#!/bin/bash\n# ascent:generation\n")
    (out / "a3-01" / "mine.sh").write_text("#!/bin/bash\n")
    third = run(tmp_path, "-l", "a3-cluster", "-e", f"render_to={out}")
    assert "changed=1" in third.stdout
    assert not stale.exists()
    assert (out / "a3-01" / "mine.sh").exists()
    again = run(tmp_path, "-l", "a3-cluster", "-e", f"render_to={out}")
    assert "changed=0" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in files if path.is_file()} == {
        path: when for path, when in files.items() if path.is_file()
    }


def test_a_wrong_inventory_is_refused_with_all_mistakes(tmp_path):
    wrong = inventory()
    hosts = wrong["all"]["children"]["clusters"]["children"]["a3-cluster"]["hosts"]
    del hosts["a3-03"]
    hosts["a3-02"].update(node_ip="192.0.2.11", pool="decoding")
    wrong["all"]["children"]["clusters"]["children"]["a3-cluster"]["vars"]["recipe"] = PD.replace("1p1d", "2p1d")
    out = tmp_path / "out"
    done = run(tmp_path, "-l", "a3-cluster", "-e", f"render_to={out}", hosts=wrong)
    assert done.returncode != 0
    assert not out.exists()
    assert "unreachable=0" in done.stdout
    text = done.stdout.replace("\\n", "\n").replace('\\"', '"')
    lines = (tmp_path / "hosts.yml").read_text().splitlines()
    pool = next(number for number, line in enumerate(lines, 1) if "pool: decoding" in line)
    recipe = next(number for number, line in enumerate(lines, 1) if "recipe:" in line)
    for expected in (
        "4 to correct:",
        f"there is no recipe '{PD.replace('1p1d', '2p1d')}'; did you mean {PD}? [recipe-unknown]",
        f'hosts.yml:{recipe}: recipe = "{PD.replace("1p1d", "2p1d")}"; allowed: {PD}',
        "the pools need 3 hosts and the cluster has 2 (decode has 0 of 2) [hosts-too-few]",
        "a3-01 and a3-02 have the same node_ip 192.0.2.11 [host-address-twice]",
        f'hosts.yml:{pool}: a3-02.pool = "decoding"; allowed: prefill, decode',
        "fix: write pool: decode",
    ):
        assert expected in text


BROKEN = f"""\
name: mine
extends: {PD}
args:
  max-num-seq: 3
  dtype: bf16
  additional-config: {{enable_flashcom1: true}}
kv_transfer: {{kv_bufer_device: npu}}
router: {{kind: pd}}
pools:
  prefill:
    kv_port: 63000
    args: {{gpu-memory-utilization: "90%"}}
  decode:
    tensor_parallel: 3
    args:
      enable-prefix-caching: true
      compilation-config: {{cudagraph_mod: FULL_DECODE_ONLY}}
    env: {{HCCL_CONNECT_TIMEOUT: 12}}
"""


def test_a_broken_recipe_is_refused_with_every_mistake_at_its_place(tmp_path):
    (tmp_path / "mine.yml").write_text(BROKEN)
    done = run(tmp_path, "-l", "a3-cluster", "-e", "recipe=mine.yml", "-e", f"render_to={tmp_path / 'out'}")
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()
    text = done.stdout.replace("\\n", "\n").replace('\\"', '"')
    for line, key, value, allowed in (
        (4, "args.max-num-seq", "3", "--max-num-seqs"),
        (5, "args.dtype", '"bf16"', "auto, bfloat16, float, float16, float32, half"),
        (6, "args.additional-config.enable_flashcom1", "true", "enable_flashcomm1"),
        (7, "kv_transfer.kv_bufer_device", '"npu"', "kv_buffer_device"),
        (8, "router.kind", '"pd"', "pd-layerwise"),
        (12, "pools.prefill.args.gpu-memory-utilization", '"90%"', "a number"),
        (14, "pools.decode.tensor_parallel", "3", "sizes whose product is at most 16"),
        (16, "pools.decode.args.enable-prefix-caching", "true", "false (the engine's own default is true)"),
        (17, "pools.decode.args.compilation-config.cudagraph_mod", '"FULL_DECODE_ONLY"', "cudagraph_mode"),
        (18, "pools.decode.env.HCCL_CONNECT_TIMEOUT", '"12"', "a whole number of s from 120 to 7200"),
    ):
        assert f"mine.yml:{line}: {key} = {value}; allowed: {allowed}" in text
    assert text.count("fix: ") >= 10


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "this run covers 2 clusters (a3-cluster, other)"),
        (["-l", "other"], "cluster other has no recipe"),
        (["-l", "a3-cluster", "-e", "recipe=nothing-like-it"], "there is no recipe 'nothing-like-it'"),
    ],
)
def test_what_to_plan_has_to_be_clear(tmp_path, arguments, expected):
    done = run(tmp_path, *arguments, "-e", f"render_to={tmp_path / 'out'}")
    assert done.returncode != 0
    assert expected in done.stdout


DISCOVER = """
- hosts: a3-cluster
  gather_facts: false
  tasks:
    - launch_plan: {discover: allowed}
      register: first
    - debug: {msg: "plan is none {{ ansible_facts.ascent_plan is none }}, needs {{ first.needs_facts }}"}
      run_once: true
    - set_fact:
        cacheable: true
        ascent_node:
          system: {machine: aarch64}
          network: {addresses: [{nic: enp9s0, address: "{{ ansible_host }}", prefix: 24}]}
    - launch_plan:
    - debug: {msg: "{{ ansible_facts.ascent_plan.hosts | to_json }}"}
      run_once: true
"""


def test_what_the_inventory_leaves_out_comes_from_the_nodes(tmp_path):
    hosts = {f"a3-0{i}": {"ansible_host": f"192.0.2.1{i}"} for i in (1, 2, 3)}
    (tmp_path / "play.yml").write_text(DISCOVER)
    given = inventory(vars={"recipe": PD}, hosts=hosts)
    done = run(tmp_path, hosts=given, play=str(tmp_path / "play.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plan is none True, needs True" in done.stdout
    text = done.stdout.replace('\\"', '"')
    assert '"node_ip": "192.0.2.13", "nic": "enp9s0", "arch": "aarch64"' in text


def test_without_discovery_missing_values_are_mistakes(tmp_path):
    hosts = {f"a3-0{i}": {"ansible_host": f"192.0.2.1{i}"} for i in (1, 2, 3)}
    given = inventory(vars={"recipe": PD}, hosts=hosts)
    done = run(tmp_path, "-l", "a3-cluster", "-e", f"render_to={tmp_path / 'out'}", hosts=given)
    assert done.returncode != 0
    for name in hosts:
        assert f"{name} has no node_ip" in done.stdout
        assert f"{name} has no nic" in done.stdout


def test_render_needs_no_inventory_and_says_what_changes_where(tmp_path):
    out = tmp_path / "out"
    recipe = tmp_path / "mine.yml"
    text = f"name: mine\nextends: {ROOT}/recipes/{PD}.yml\n"
    recipe.write_text(text.replace(f"{ROOT}/recipes/{PD}.yml", PD))
    nobody = {"all": {"hosts": {}}}
    arguments = ["-e", f"recipe={recipe}", "-e", f"render_to={out}"]
    first = run(tmp_path, *arguments, "-e", "render_hosts=3", hosts=nobody)
    assert first.returncode == 0, first.stdout + first.stderr
    assert sorted(path.name for path in out.iterdir()) == ["node-01", "node-02", "node-03", "plan.json", "plan.svg"]
    assert "192.0.2.1" in (out / "node-01" / "prefill-0-head.sh").read_text()
    assert "memory of one device of pool decode: weights 397e9 * 1 B" in first.stdout
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    recipe.write_text(recipe.read_text() + "pools: {decode: {args: {max-num-seqs: 31}}}\n")
    dry = run(tmp_path, *arguments, "-e", "render_hosts=3", "--check", hosts=nobody)
    assert "node-02: decode-0-head changed: --max-num-seqs 32 -> 31" in dry.stdout
    assert "node-03: decode-0-headless-1 changed: --max-num-seqs 32 -> 31" in dry.stdout
    assert "node-01: " not in dry.stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    mixed = run(tmp_path, *arguments, "-e", '{"render_hosts": {"atlas-800-a2": 2, "atlas-800-a3": 1}}', hosts=nobody)
    assert mixed.returncode != 0
    assert "pool prefill needs 16 devices a node" in mixed.stdout
    wrong = run(tmp_path, *arguments, "-e", "render_hosts=few", hosts=nobody)
    assert "'few' is no number of hosts" in wrong.stdout


def test_hardware_of_the_command_line_goes_before_the_inventorys(tmp_path):
    """Seed 002: the deployment of A3 is that of A2, with another image."""
    host = {"ansible_host": "192.0.2.11", "node_ip": "192.0.2.11", "hardware": "atlas-800-a3"}
    variables = {"recipe": "qwen3-32b-w8a8-a3", "arch": "aarch64", "nic": "enp1s0"}
    given = inventory(vars=variables, hosts={"one": host})
    texts = {}
    for hardware in ("atlas-800-a3", "atlas-800-a2"):
        out = tmp_path / hardware
        done = run(tmp_path, "-l", "one", "-e", f"render_to={out}", "-e", f"hardware={hardware}", hosts=given)
        assert done.returncode == 0, done.stdout + done.stderr
        texts[hardware] = {
            path.name: re.sub("definition [0-9a-f]+", "", path.read_text()) for path in (out / "one").iterdir()
        }
    there, here = texts.values()
    assert "vllm-ascend:v0.11.0rc2-a3 " in there["serve-0-head.docker.sh"]
    assert {name: text.replace("v0.11.0rc2-a3", "v0.11.0rc2") for name, text in there.items()} == here


def test_hardware_that_is_too_small_is_named_with_its_sizes(tmp_path):
    arguments = ["-e", "recipe=qwen3.5-397b-a17b-w8a8-128k-a3", "-e", f"render_to={tmp_path / 'out'}"]
    nobody = {"all": {"hosts": {}}}
    done = run(tmp_path, *arguments, "-e", "render_hosts=1", "-e", "hardware=atlas-800-a2", hosts=nobody)
    assert done.returncode != 0
    assert "pool serve needs 16 devices a node (tensor 16 * data 1 a node), there are 8" in done.stdout
    assert not (tmp_path / "out").exists()
