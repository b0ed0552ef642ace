"""The fabric gate on real nodes: a clean cluster passes, and each fault is named with its place, and nothing else."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ascent.collectives import COLLECTIVES
from ascent.npu import CONF
from sandbox.lib import engine
from sandbox.lib.images import Builder
from tests.fabric.conftest import INVENTORY, NODES, Gate

# Every rank of every node takes its turn on two cores, so a late packet or run may be told of as a warning.
NO_COLLECTIVES = ("-e", "fabric_collectives=never")


def errors(verdict: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Id and host of every error."""
    return sorted((one["id"], one["host"]) for one in verdict["findings"] if one["severity"] == "error")


def summary(verdict: dict[str, Any], id: str) -> str:
    """The words of the only finding with an id."""
    (found,) = [one["summary"] for one in verdict["findings"] if one["id"] == id]
    return str(found)


def test_a_clean_cluster_passes_and_leaves_nothing_behind(gate: Gate):
    verdict = gate.verify()
    assert errors(verdict) == []
    assert verdict["metrics"]["fabric_pairs"] == 2 * 3 * 4
    collectives = verdict["facts"]["collectives"]
    assert collectives["ran"]
    assert [run["phase"] for run in collectives["runs"] if run["outcome"] == "ok"].count("node") >= 3
    assert {len(run["hosts"]) for run in collectives["runs"]} == {1, 2, 3}
    pairs = {tuple(run["hosts"]) for run in collectives["runs"] if run["phase"] == "pairs"}
    assert pairs <= set(itertools.combinations(NODES, 2))
    told = verdict["facts"]["control_plane"]
    assert {tuple(sorted(one["tried"])) for one in told.values()} == {
        tuple(other for other in NODES if other != host) for host in NODES
    }
    assert all(entry["large"] for one in told.values() for entry in one["mtu"])
    for node in NODES:
        left = gate.shell(node, "grep -c ascent-collectives /root/.ssh/authorized_keys; ls /var/lib/ascent/mesh; true")
        assert [name for name in left.split() if name != "lock.json"] == ["0", "fabric.json"]
        assert gate.shell(node, "ls /run | grep -c ascent || true; pgrep -c orted || true").split() == ["0", "0"]


def test_faults_at_once_are_all_named_and_nothing_else(gate: Gate):
    gate.broken("m-01", "D03", "port=13389")
    gate.broken("m-02", "C01", "device=2", "every=50")
    gate.broken("m-03", "C27", "when=across")
    verdict = gate.verify()
    assert errors(verdict) == [("C27", "m-03"), ("D03", "m-01"), ("fabric-packet-loss", "m-02")]
    assert summary(verdict, "fabric-packet-loss").endswith(": m-02 device 2")
    assert "port 13389 (dp-rpc) of m-01 is not reached from m-02, m-03" in summary(verdict, "D03")


@pytest.mark.thorough
def test_a_pair_at_25_times_the_latency(gate: Gate):
    gate.broken("m-01", "G02", "device=1", "peer=m-03", "delay_us=5000")
    verdict = gate.verify(*NO_COLLECTIVES)
    assert errors(verdict) == []
    assert summary(verdict, "G02").endswith("m-01 device 1 to m-03 device 1")


@pytest.mark.thorough
def test_a_small_loss_on_one_device(gate: Gate):
    gate.broken("m-02", "C01", "device=0", "every=50")
    verdict = gate.verify(*NO_COLLECTIVES)
    assert errors(verdict) == [("fabric-packet-loss", "m-02")]
    assert summary(verdict, "fabric-packet-loss").endswith(": m-02 device 0")


@pytest.mark.thorough
def test_a_pair_that_works_one_way(gate: Gate):
    gate.broken("m-03", "C01", "device=3", "peer=m-01", "plane=roce")
    verdict = gate.verify(*NO_COLLECTIVES)
    assert errors(verdict) == [("fabric-one-way", None)]
    assert summary(verdict, "fabric-one-way").endswith("m-01 device 3 to m-03 device 3")


@pytest.mark.thorough
def test_a_filter_drops_the_rpc_port(gate: Gate):
    gate.broken("m-01", "D03", "port=13389")
    verdict = gate.verify(*NO_COLLECTIVES)
    assert errors(verdict) == [("D03", "m-01")]


@pytest.mark.thorough
@pytest.mark.parametrize("nic", ["eth9", "lo"])
def test_a_wrong_network_card(gate: Gate, nic: str):
    verdict = gate.verify(*NO_COLLECTIVES, hosts={"m-02": {"nic": nic, "node_ip": "198.19.64.12"}})
    assert set(errors(verdict)) == {("C07", "m-02")}
    assert all(nic in one["summary"] for one in verdict["findings"] if one["id"] == "C07")


#: Beside faults of the sandbox: what is done to m-03, and what undoes it.
NAMES = ("sed -i 's/^198.19.64.11\\b/198.19.64.99/' /etc/hosts", "sed -i 's/^198.19.64.99\\b/198.19.64.11/' /etc/hosts")
LARGE = "INPUT --in-interface eth0 --protocol icmp --match length --length 1400:65535 --jump DROP"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("done", "undone", "id", "severity", "words"),
    [
        ("", "", "D08", "warning", "the own name of m-03, m-03, is 127.0.1.1 there"),
        ("", "", "D24", "error", "m-03 "),
        (*NAMES, "control-name-differs", "warning", "m-03 takes m-01 for 198.19.64.99, not 198.19.64.11"),
        (f"iptables -A {LARGE}", f"iptables -D {LARGE}", "control-mtu-path", "error", "between the hosts: m-03"),
    ],
    ids=["own-name", "clock", "name", "mtu"],
)
def test_a_fault_of_a_hosts_own_network(gate: Gate, done: str, undone: str, id: str, severity: str, words: str):
    if done:
        gate.shell("m-03", done)
    else:
        gate.broken("m-03", id)
    try:
        verdict = gate.verify(*NO_COLLECTIVES)
    finally:
        if undone:
            gate.shell("m-03", undone)
    told = [one for one in verdict["findings"] if one["severity"] != "info" and one["id"] != "G02"]
    assert [(one["id"], one["severity"], one["host"]) for one in told] == [(id, severity, "m-03")]
    assert words in told[0]["summary"]


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["alone", "across"])
def test_a_node_that_hangs_in_a_collective(gate: Gate, when: str):
    gate.broken("m-02", "C27", f"when={when}")
    verdict = gate.verify()
    assert errors(verdict) == [("C27", "m-02")]
    # Each run is ended when its time is up, and few are needed.
    assert sum(run["outcome"] == "timeout" for run in verdict["facts"]["collectives"]["runs"]) <= 3


@pytest.mark.thorough
def test_a_node_that_slows_a_collective_down(gate: Gate):
    gate.broken("m-03", "C28", "delay_us=1000000")
    # By comparison with the other nodes alone: a tenth of the best one's bandwidth is slow, and no floor is set.
    limits = {"seconds": 90, "connect_seconds": 12, "ratio": 0.1, "cluster_ratio": 0, "pair_rounds": 2, "iterations": 4}
    verdict = gate.verify("-e", json.dumps({"fabric_collectives_limits": {**limits, "floors": {}}}))
    assert errors(verdict) == [("C28", "m-03")]


@pytest.mark.thorough
def test_a_link_that_is_down_is_one_fault_to_all_parts(gate: Gate):
    gate.broken("m-01", "C10", "device=3")
    verdict = gate.verify()
    assert {host for _, host in errors(verdict)} == {"m-01"}
    assert all("device 3" in one["summary"] for one in verdict["findings"] if one["severity"] == "error")


@pytest.mark.thorough
def test_a_deep_look_runs_everything_and_keeps_the_nodes_under_load(gate: Gate):
    verdict = gate.verify("-e", "verify_depth=deep", "-e", "verify_burn_in_minutes=0.5", "-e", "fabric_torch=never")
    assert errors(verdict) == []
    runs = verdict["facts"]["collectives"]["runs"]
    assert {run["collective"] for run in runs if run["outcome"] == "ok"} == set(COLLECTIVES)
    assert verdict["metrics"]["burn_in"]["runs"] >= 1
    assert verdict["metrics"]["burn_in"]["seconds"] >= 20
    (first, *_rest) = [run for run in runs if run["phase"] == "burn-in"]
    assert (tuple(first["hosts"]), len(first["rows"])) == (NODES, 1)


@pytest.mark.thorough
def test_nodes_without_programs_or_image_are_told_of_and_stop_nothing(gate: Gate):
    verdict = gate.verify("-e", '{"fabric_collectives_programs": ["/nowhere"]}', "-e", "fabric_torch=force")
    assert errors(verdict) == []
    assert "nodes lack MPI or the test programs" in summary(verdict, "collectives-skipped")
    assert "the image is not on the node" in summary(verdict, "torch-skipped")
    for node in NODES:
        assert set(gate.shell(node, "ls /var/lib/ascent/mesh").split()) - {"lock.json"} == {"fabric.json"}


# -- with an image on the nodes; these come last, since others want none ----

#: The engine's image as the plan has it, from the site's mirror, and where our image has the test programs.
_SITE = yaml.safe_load((INVENTORY / "group_vars" / "mesh.yml").read_text())
ENGINE = f"{_SITE['ascent_registry_mirror']}/quay.io/ascend/vllm-ascend:v0.11.0rc2"
INSIDE = "/build/bin"


@pytest.fixture(scope="module")
def engine_image(site: Gate) -> Iterator[None]:
    """On every node, under the name of the engine's image, one with MPI and the test programs."""
    own = site.cluster.engine
    with engine.exclusive():
        tag = Builder(own, print).hccl_test_image()
    install = "apt-get install -y -qq --no-install-recommends docker.io >/dev/null </dev/null"
    loading = []
    for node in site.cluster.sandbox.nodes:
        words = site.cluster.ssh(node, f"{install} && docker load --quiet && docker tag {tag} {ENGINE}")
        saving = subprocess.Popen(own.command("save", tag), stdout=subprocess.PIPE)
        loading.append(subprocess.Popen(words, stdin=saving.stdout, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=900) for process in loading] == [0] * len(loading)
    yield
    for node in NODES:
        site.shell(node, f"docker rmi --force {ENGINE} {tag}")


@pytest.mark.thorough
@pytest.mark.usefixtures("engine_image")
def test_collectives_in_the_engines_image(gate: Gate):
    inside = ("-e", json.dumps({"fabric_collectives_programs": [INSIDE]}))
    clean = gate.verify(*inside)
    assert errors(clean) == []
    collectives = clean["facts"]["collectives"]
    assert (collectives["ran"], collectives["where"]) == (True, "image")
    assert {len(run["hosts"]) for run in collectives["runs"] if run["outcome"] == "ok"} == {1, 2, 3}
    gate.broken("m-02", "C27", "when=across")
    assert errors(gate.verify(*inside)) == [("C27", "m-02")]
    for node in NODES:
        assert gate.shell(node, "docker ps -aq; pgrep -c orted || true").split() == ["0"]
        assert set(gate.shell(node, "ls /var/lib/ascent/mesh").split()) <= {"lock.json", "fabric.json"}


#: How a container comes to see something else than the host has, and back to what the host has had before.
BLIND = f"mv {CONF} /root/kept; docker run {{container}}; rmdir {CONF}; mv /root/kept {CONF}"
EDIT = f"sed -i s/^address_2=.*/address_2=192.0.2.77/ {CONF}"
STALE = f"cp {CONF} /root/kept; {EDIT}; docker run {{container}}; mv /root/kept {CONF}"


@pytest.mark.thorough
@pytest.mark.usefixtures("engine_image")
@pytest.mark.parametrize(
    ("how", "id", "words"),
    [
        (BLIND, "D30", f"container engine on m-02 does not see {CONF}"),
        (STALE, "hccn-conf-stale", f"container engine on m-02 sees an older {CONF}: devices 2"),
    ],
    ids=["blind", "stale"],
)
def test_a_container_that_sees_other_addresses(gate: Gate, how: str, id: str, words: str):
    container = f"--detach --name engine --label ascent.cluster=mesh -v {CONF}:{CONF}:ro {ENGINE} sleep 600"
    try:
        gate.shell("m-02", how.format(container=container))
        verdict = gate.verify(*NO_COLLECTIVES)
    finally:
        gate.shell("m-02", "docker rm --force engine")
    assert errors(verdict) == [(id, "m-02")]
    assert summary(verdict, id) == words


@pytest.mark.thorough
@pytest.mark.usefixtures("engine_image")
def test_a_cluster_that_serves_keeps_its_devices_unless_forced(gate: Gate):
    name = "ascent-mesh-serve-0-headless-1"
    kept = "cat /var/lib/ascent/mesh/fabric.json"
    try:
        gate.shell("m-02", f"docker run --detach --name {name} --label ascent.cluster=mesh {ENGINE} sleep 600")
        left = gate.verify()
        part = json.loads(gate.shell("m-01", kept))
        forced = gate.verify("-e", "fabric_collectives=force")
    finally:
        gate.shell("m-02", f"docker rm --force {name}")
    assert errors(left) == errors(forced) == []
    assert summary(left, "collectives-skipped") == f"no collectives were run: the cluster is serving ({name} on m-02)"
    assert (left["facts"]["collectives"], part["left_out"]) == (None, ["collectives"])
    assert forced["facts"]["collectives"]["ran"]
    assert json.loads(gate.shell("m-01", kept))["left_out"] == []
