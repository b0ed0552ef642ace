"""Clusters that are provisioned: any test module of this folder may boot one of an inventory of its own.

`cluster_of` is what the modules share; the fixtures below are those of the rack in `inventory/`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.lib import packages, plan
from tests.e2e.driver import ROOT, Road, sandbox

INVENTORY = Path(__file__).parent / "inventory"
DRIVER, FIRMWARE, CANN = "25.5.2", "7.8.0.6.201", "8.5.0"


@contextmanager
def cluster_of(inventory: Path, cluster: str, work: Path) -> Iterator[Road]:
    """Boots the nodes of an inventory's only cluster afresh, and takes them down in the end."""
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    sandbox("down", inventory)
    sandbox("up", inventory)
    try:
        yield Road(work, set(), inventory, cluster)
    finally:
        sandbox("down", inventory)


@pytest.fixture(scope="session")
def run_files() -> Path:
    """A directory with driver, firmware and CANN for the rack, and their SHA256SUMS; the site serves it, too."""
    directory = ROOT / str(plan.from_inventory(INVENTORY).packages)
    shutil.rmtree(directory, ignore_errors=True)
    profile = [plan.load_profile("a3")]
    made = packages.for_profiles(profile, drivers=[DRIVER], firmwares=[FIRMWARE], canns=[CANN])
    packages.write(made, directory, print)
    return directory


@pytest.fixture(scope="session")
def rack(run_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """A bare node, an old one and a right one."""
    with cluster_of(INVENTORY, "rack", tmp_path_factory.mktemp("rack")) as road:
        yield road
