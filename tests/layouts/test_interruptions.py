"""What goes wrong around a launch: its controller is killed, another one comes, a node dies, the power fails."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import controllers
from tests.e2e.driver import ROOT
from tests.layouts.cluster import CLUSTER, INVENTORY, Site, until

PLACES = {
    "lay-01 prefill-0-head",
    "lay-01 prefill-1-head",
    "lay-01 router",
    "lay-02 decode-0-head",
    "lay-03 decode-0-headless-1",
}

#: Where the controller is killed: once it shows this, and after how many seconds more.
KILLS = {
    "while it reads the nodes": ("Read the nodes", 0.2),
    "while the generation is written": ("Write this host's scripts", 0.4),
    "while containers stop": ("Stop a container", 0.3),
    "while containers start": ("Run the processes of this host", 1.0),
    "while routers start": ("Run the processes of this host", 3.0),
    "while it watches": ("Watch every node", 0.5),
    # By chance, the same in every run.
    **{f"by chance, {seed}": ("Plan the launch", random.Random(seed).uniform(2, 16)) for seed in (1, 2, 3)},
}


class Controller:
    """A deploy.yml of its own, whose output is followed."""

    def __init__(self, site: Site, *arguments: str) -> None:
        environment = {**os.environ, **site.road.environment(), "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        self.process = subprocess.Popen(
            [program, "deploy.yml", "-i", str(INVENTORY), "-l", CLUSTER, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, words: str) -> None:
        """Read on until a line has these words."""
        assert self.process.stdout is not None
        shown = []
        for line in self.process.stdout:
            shown.append(line)
            if words in line:
                return
        pytest.fail(f"{words!r} did not come:\n{''.join(shown)}")


def power(verb: str, *nodes: str) -> None:
    """Take the power of nodes away (`power-off`) or give it back (`power-on`), all at once."""
    command = [sys.executable, "sandbox/cluster.py", verb, "--inventory", str(INVENTORY)]
    running = [subprocess.Popen([*command, node], cwd=ROOT) for node in nodes]
    assert [one.wait(timeout=300) for one in running] == [0] * len(nodes)


@pytest.fixture(scope="module", autouse=True)
def serving(site: Site) -> None:
    """The layout that all of these begin with."""
    run = site.launch(site.recipe("pd-2p1d"), tags="launch,check")
    assert run.rc == 0, run.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("when", KILLS)
def test_a_killed_controller_leaves_nothing_that_the_next_run_cannot_finish(site: Site, when: str) -> None:
    # Another value each time, so that there is something to do.
    number = 32 + list(KILLS).index(when)
    recipe = site.recipe("pd-2p1d", {"pools": {"decode": {"args": {"max-num-seqs": number}}}})
    words, seconds = KILLS[when]
    controller = Controller(site, "--tags", "launch", "-e", f"recipe={recipe}")
    controller.wait_for(words)
    time.sleep(seconds)
    controllers.kill(controller.process)
    run = site.launch(recipe, tags="launch,check")
    assert run.rc == 0, run.stdout
    assert set(site.running()) == PLACES
    assert site.status()[1] == set()
    script = site.road.node("lay-02").file(f"/etc/ascent/{CLUSTER}/current/decode-0-head.sh").content_string
    assert f"--max-num-seqs {number}" in script
    assert site.launch(recipe).changed == {}


@pytest.mark.thorough
def test_a_second_controller_is_told_who_is_at_work(site: Site) -> None:
    recipe = site.recipe("pd-2p1d", {"pools": {"decode": {"args": {"max-num-seqs": 31}}}})
    first = Controller(site, "--tags", "launch", "-e", f"recipe={recipe}")
    first.wait_for("Write this host's scripts")
    second = site.launch(recipe)
    assert second.rc != 0
    (told,) = [one for one in second.findings() if one["severity"] == "error"]
    assert told["id"] == "cluster-locked"
    assert f"process {first.process.pid} " in told["evidence"]
    assert "deploy.yml" in told["evidence"]
    assert first.process.communicate()[0]
    assert first.process.returncode == 0, "the first goes on undisturbed"


@pytest.mark.thorough
@pytest.mark.parametrize("moment", ["Write this host's scripts", "Run the processes of this host", "Watch every node"])
def test_a_node_that_dies_during_a_launch_is_named(site: Site, moment: str) -> None:
    number = 40 + len(moment)
    recipe = site.recipe("pd-2p1d", {"pools": {"decode": {"args": {"max-num-seqs": number}}}})
    controller = Controller(site, "--tags", "launch", "-e", f"recipe={recipe}")
    controller.wait_for(moment)
    power("power-off", "lay-03")
    before = time.monotonic()
    shown = controller.process.communicate(timeout=300)[0]
    took = time.monotonic() - before
    assert controller.process.returncode != 0
    assert "lay-03" in shown
    assert took < 150, f"it took {took:.0f} s to give up on a node without power"
    latest = (site.road.runs / "latest" / "launch.json").read_text()
    assert "lay-03" in latest
    power("power-on", "lay-03")
    run = site.launch(recipe, tags="launch,check")
    assert run.rc == 0, run.stdout
    assert set(site.running()) == PLACES


@pytest.mark.thorough
def test_after_a_loss_of_power_the_service_comes_back_by_itself(site: Site) -> None:
    run = site.launch(site.recipe("pd-2p1d"), tags="launch,check")
    assert run.rc == 0, run.stdout
    before = site.running()
    power("power-off", *site.road.addresses)
    power("power-on", *site.road.addresses)

    def serves() -> bool:
        return site.road.play("playbooks/status.yml").rc == 0

    until(serves, 300)
    after = site.running()
    assert set(after) == PLACES
    assert not set(after.values()) & set(before.values()), "everything was started again"
    run, found = site.status()
    assert found == {("host-started-again", host) for host in site.road.addresses}
    rows = json.loads((run.record / "processes.json").read_text())
    assert all(row["up"].endswith(" s") for row in rows), f"started minutes ago at most: {rows}"
    assert site.launch(site.recipe("pd-2p1d"), tags="launch,check").changed == {}


@pytest.mark.thorough
def test_a_generation_that_was_only_written_leaves_what_runs_alone(site: Site) -> None:
    run = site.launch(site.recipe("pd-2p1d"), tags="launch,check")
    assert run.rc == 0, run.stdout
    before = site.running()
    other = site.recipe("pd-2p1d", {"pools": {"decode": {"args": {"max-num-seqs": 77}}}})
    assert site.launch(other, tags="generation").rc == 0
    # Most of all the processes that the other one would have changed.
    run = site.launch(site.recipe("pd-2p1d"))
    assert run.rc == 0, run.stdout
    assert site.running() == before
    assert site.status()[1] == set()
    assert site.launch(site.recipe("pd-2p1d")).changed == {}


@pytest.mark.thorough
def test_what_the_container_engine_refuses_is_undone_where_wanted(site: Site) -> None:
    before = site.running()
    recipe = site.recipe("pd-2p1d", {"pools": {"prefill": {"container": {"cpuset_cpus": "4000"}}}})
    run = site.launch(recipe, launch_rollback_on_failure=True)
    assert run.rc != 0
    errors = [one for one in run.stage("launch")["findings"] if one["severity"] == "error"]
    found = {one["id"]: one for one in errors}
    assert set(found) == {"task-failed", "launch-rolled-back"}
    assert found["task-failed"]["host"] == "lay-01"
    assert "CPUs" in found["task-failed"]["evidence"]
    assert "[task-failed]" in found["launch-rolled-back"]["evidence"]
    after = site.running()
    assert set(after) == PLACES
    kept = "lay-02 decode-0-head", "lay-03 decode-0-headless-1"
    assert [after[place] for place in kept] == [before[place] for place in kept]
    assert site.launch(site.recipe("pd-2p1d")).changed == {}


@pytest.mark.thorough
def test_a_limit_that_leaves_out_what_would_change_is_refused(site: Site) -> None:
    before = site.running()
    recipe = site.recipe("pd-2p1d", {"pools": {"decode": {"args": {"max-num-seqs": 78}}}})
    run = site.launch(recipe, limit="lay-02")
    assert run.rc != 0
    (told,) = [one for one in run.findings() if one["severity"] == "error"]
    assert told["id"] == "limit-too-narrow"
    assert "lay-01, lay-03" in told["summary"]
    assert site.running() == before
    assert site.status()[1] == set()


@pytest.mark.thorough
def test_with_the_first_node_down_the_others_are_shown_and_can_be_stopped(site: Site) -> None:
    power("power-off", "lay-01")
    run, found = site.status()
    assert run.rc != 0
    assert ("host-unreadable", "lay-01") in found
    rows = {row["process"]: row for row in json.loads((run.record / "processes.json").read_text())}
    assert rows["decode-0-head"]["state"] == "running"
    assert rows["decode-0-head"]["health"] == "ok"
    assert rows["prefill-0-head"]["state"] == "unknown"
    run = site.road.play("playbooks/stop.yml")
    assert run.rc != 0
    told = {(one["id"], one["host"]) for one in run.stage("stop")["findings"]}
    assert ("host-unreadable", "lay-01") in told
    for host in ("lay-02", "lay-03"):
        assert site.road.node(host).check_output("docker ps --all --quiet --filter label=ascent.cluster=layouts") == ""
    power("power-on", "lay-01")
    assert site.road.play("playbooks/stop.yml").rc == 0
    assert site.running() == {}
