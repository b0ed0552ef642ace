"""Two sandbox nodes with a guarded cluster, launched once and walked along by all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.lib import plan
from sandbox.lib.engine import Engine
from sandbox.lib.lifecycle import Cluster
from tests.security.guarded import ENGINE, FIRST, HUB, INVENTORY, ROOT, SECOND, Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes on which a prefill and a decode instance serve behind proxy and gateway, with keys and TLS."""
    work = tmp_path_factory.mktemp("guarded")
    cluster = Cluster(plan.from_inventory(INVENTORY), ROOT, Engine(), print)
    cluster.down()
    cluster.up()
    variables = {
        "ascent_api_keys": [FIRST, SECOND],
        "ascent_engine_key": ENGINE,
        "ascent_tls": "made",
        "ascent_tls_directory": str(work / "tls"),
        "weights_token": HUB,
    }
    made = Site(work, cluster, variables)
    launched = made.play("deploy.yml", "--tags", "preflight,provision,launch,check")
    assert launched.code == 0, launched.output[-6000:]
    yield made
    cluster.down()
