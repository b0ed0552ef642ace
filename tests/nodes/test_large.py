"""As many nodes as the sandbox promises for a machine of 24 GiB: they boot, and leave the memory to the engines."""

import re
from pathlib import Path

import pytest

from sandbox.lib import engine, plan
from sandbox.lib.lifecycle import Cluster

ROOT = Path(__file__).resolve().parents[2]
UNITS = {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
MOST_MB = 2048


@pytest.fixture(scope="module")
def cluster():
    variables = {"sandbox_subnet": "198.19.64.0/18", "sandbox_services": "198.19.64.2", "sandbox_profile": "a3"}
    hosts = {f"large-{number:02d}": {"ansible_host": f"198.19.64.{number + 10}"} for number in range(1, 17)}
    sandbox = plan.from_variables("large", variables, hosts)
    found = Cluster(sandbox, ROOT, engine.Engine(), print)
    with engine.exclusive(print):
        found.up()
    yield found
    with engine.exclusive(print):
        found.down()


def test_sixteen_nodes_are_up(cluster):
    rows = cluster.status()
    assert len(rows) == 16
    assert all(row["state"] == "running" and row["ssh"] for row in rows)


def test_they_take_less_than_two_gigabytes_before_engines_start(cluster):
    names = [cluster.container(node.name) for node in cluster.sandbox.nodes]
    shown = cluster.engine.run("stats", "--no-stream", "--format", "{{.MemUsage}}", *names).stdout
    used = [float(value) * UNITS[unit] for value, unit in re.findall(r"^([\d.]+)([KMG]iB)", shown, re.M)]
    assert len(used) == 16
    assert sum(used) < MOST_MB
