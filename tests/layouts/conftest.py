"""The cluster of this folder's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.driver import ROOT, Road, sandbox
from tests.layouts.cluster import CLUSTER, INVENTORY, Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three bare nodes, fresh for this session, with a container engine and the engine's image; gone after it."""
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    sandbox("down", INVENTORY)
    sandbox("up", INVENTORY)
    made = Site(Road(tmp_path_factory.mktemp("site"), set(), INVENTORY, CLUSTER))
    run = made.launch(made.recipe("pd-2p1d"), tags="provision,tune")
    assert run.rc == 0, run.stdout
    yield made
    sandbox("down", INVENTORY)
