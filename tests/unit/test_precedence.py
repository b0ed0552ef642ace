"""Whose value counts: what an inventory sets anywhere goes before the suite's own group_vars/all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "npu_driver_source",
    "cann_source",
    "container_engine_archive",
    "images_archive",
    "engine_environment_wheels",
    "weights_archive",
    "ascent_registry_mirror",
    "ascent_cache_directory",
)


def variables(inventory: Path, playbooks: Path) -> dict[str, object]:
    """What Ansible gives to the inventory's host in a playbook of this folder."""
    program = str(Path(sys.executable).with_name("ansible-inventory"))
    done = subprocess.run(
        [program, "-i", str(inventory), "--host", "h1", "--playbook-dir", str(playbooks)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("playbooks", [ROOT, ROOT / "playbooks"], ids=["root", "playbooks"])
@pytest.mark.parametrize("place", ["group_vars/all.yml", "group_vars/clusters.yml", "group_vars/c1.yml", "hosts.yml"])
def test_what_an_inventory_sets_counts_wherever_it_sets_it(tmp_path: Path, place: str, playbooks: Path) -> None:
    mine = {name: f"/srv/{name}" for name in SOURCES}
    hosts: dict[str, Any] = {"all": {"children": {"clusters": {"children": {"c1": {"hosts": {"h1": {}}}}}}}}
    if place == "hosts.yml":
        hosts["all"]["vars"] = mine
    else:
        (tmp_path / "group_vars").mkdir()
        (tmp_path / place).write_text(yaml.safe_dump(mine))
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    found = variables(tmp_path, playbooks)
    assert {name: found[name] for name in SOURCES} == mine
    assert found["ascent_config_root"] == "/etc/ascent", "what it does not set is the suite's"


def test_a_group_goes_before_all_in_an_inventory(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text("cann_source: /srv/all\n")
    (tmp_path / "group_vars/c1.yml").write_text("cann_source: /srv/c1\n")
    (tmp_path / "hosts.yml").write_text("all: {children: {c1: {hosts: {h1: {}}}}}\n")
    assert variables(tmp_path, ROOT)["cann_source"] == "/srv/c1"
