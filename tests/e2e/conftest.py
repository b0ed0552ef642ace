"""The one cluster that all tests of this folder walk along."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sandbox.lib import plan
from tests.e2e.driver import INVENTORY, ROOT, Road, sandbox
from tests.e2e.host import machine


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """Three bare nodes, fresh for this session, and gone after it."""
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    sandbox("down")
    before = machine(plan.from_inventory(INVENTORY))
    sandbox("up")
    yield Road(tmp_path_factory.mktemp("road"), before)
    sandbox("down")
