"""The fabric gate on GPU servers: nccl-tests over real MPI, and the names of network cards and RDMA devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.lib import engine
from tests.fabric.conftest import Gate, booted, installed
from tests.fabric.test_gate import NO_COLLECTIVES, errors, summary

INVENTORY = Path(__file__).parent / "gpu"
NODES = ("g-01", "g-02")

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Two GPU servers, fresh for these tests, and gone after them."""
    cluster = booted(INVENTORY)
    installed(cluster, "nccl")
    yield Gate(cluster, tmp_path_factory.mktemp("gpu"), INVENTORY, "fabric-gpu")
    with engine.exclusive():
        cluster.down()


@pytest.fixture
def gpu(gpus: Gate) -> Iterator[Gate]:
    """The servers, without faults after the test."""
    yield gpus
    for node in NODES:
        gpus.control.heal(node)


def test_nccl_tests_run_on_every_server_and_over_both(gpu: Gate):
    verdict = gpu.verify()
    assert errors(verdict) == []
    collectives = verdict["facts"]["collectives"]
    assert (collectives["ran"], collectives["tool"]) == (True, "nccl-tests")
    runs = {(run["phase"], tuple(run["hosts"])): run for run in collectives["runs"] if run["outcome"] == "ok"}
    assert {("node", ("g-01",)), ("node", ("g-02",)), ("pairs", NODES)} <= set(runs)
    assert [row["bytes"] for row in runs["pairs", NODES]["rows"]] == [8192, 65536, 524288]
    assert all(row["check"] == "success" for run in runs.values() for row in run["rows"])
    assert set(verdict["metrics"]["collectives"]) == {"all_reduce"}
    # No NPUs: nothing of theirs is read, and nothing is missed.
    assert verdict["facts"]["npus"] == {"g-01": None, "g-02": None}


@pytest.mark.parametrize(("when", "named"), [("alone", "does not end: g-02"), ("across", "the pair g-01 and g-02")])
def test_a_server_that_hangs_is_named_as_far_as_two_can_tell(gpu: Gate, when: str, named: str):
    gpu.broken("g-02", "C27", f"when={when}")
    verdict = gpu.verify()
    assert [name for name, _host in errors(verdict)] == ["C27"]
    assert named in summary(verdict, "C27")


def test_a_name_of_an_rdma_device_that_is_not_there(gpu: Gate, tmp_path: Path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(INVENTORY.with_name("gpu.recipe.yml").read_text() + 'env: {NCCL_IB_HCA: "mlx5_0:1"}\n')
    verdict = gpu.verify(*NO_COLLECTIVES, "-e", f"recipe={recipe}")
    assert set(errors(verdict)) == {("nccl-hca-missing", "g-01"), ("nccl-hca-missing", "g-02")}


def test_a_name_of_a_network_card_that_is_not_there(gpu: Gate):
    verdict = gpu.verify(*NO_COLLECTIVES, hosts={"g-02": {"nic": "ibs0", "node_ip": "100.65.0.12"}})
    assert set(errors(verdict)) == {("C07", "g-02")}
