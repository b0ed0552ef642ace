"""The fabric gate on eight servers of eight devices: clean, and with three faults at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.lib import engine
from tests.fabric.conftest import Gate, booted, installed
from tests.fabric.test_gate import NO_COLLECTIVES, errors, summary

INVENTORY = Path(__file__).parent / "eight"
NODES = tuple(f"e-{number:02d}" for number in range(1, 9))

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Eight servers, fresh for these tests, and gone after them."""
    cluster = booted(INVENTORY)
    installed(cluster, "bin")
    yield Gate(cluster, tmp_path_factory.mktemp("eight"), INVENTORY, "fabric-eight")
    with engine.exclusive():
        cluster.down()


def test_a_clean_cluster_passes(eight: Gate):
    verdict = eight.verify()
    assert errors(verdict) == []
    # Every device of every server asks its seven counterparts.
    assert verdict["metrics"]["fabric_pairs"] == 8 * 8 * 7
    assert verdict["metrics"]["fabric_failed_pairs"] == 0
    meshes = verdict["facts"]["mesh"]
    for node in NODES:
        first = next(pair["to"][0] for pair in meshes[node]["pairs"] if not pair.get("witness"))
        # Each begins with the next one of the ring, so that nobody is asked by all at once.
        assert first == NODES[(NODES.index(node) + 1) % len(NODES)]
    runs = [run for run in verdict["facts"]["collectives"]["runs"] if run["outcome"] == "ok"]
    assert {run["hosts"][0] for run in runs if run["phase"] == "node"} == set(NODES)
    (together,) = [run for run in runs if run["phase"] == "cluster"]
    assert (tuple(together["hosts"]), together["devices"]) == (NODES, 8)


def test_faults_on_three_of_them_are_named_and_nothing_else(eight: Gate):
    try:
        eight.broken("e-02", "C12", "device=5", "peer=e-07")
        eight.broken("e-04", "C06", "device=1")
        eight.broken("e-08", "C10", "device=7")
        verdict = eight.verify(*NO_COLLECTIVES)
    finally:
        for node in ("e-02", "e-04", "e-08"):
            eight.control.heal(node)
    assert errors(verdict) == [("C06", "e-04"), ("C10", "e-08"), ("C12", "e-02")]
    assert summary(verdict, "C12").startswith("e-02 device 5 has the address of e-07 device 5")
