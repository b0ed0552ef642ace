"""The one cluster that all tests of this folder walk along."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.driver import ROOT, Road, machine, sandbox


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """Three bare nodes, fresh for this session, and gone after it."""
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    sandbox("down")
    before = machine()
    sandbox("up")
    yield Road(tmp_path_factory.mktemp("road"), before)
    sandbox("down")
