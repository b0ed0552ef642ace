"""Every layout on real nodes: launched, checked, launched again, changed, rolled back, drifted, stopped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.layouts.cluster import CLUSTER, Layout, Site

LAYOUTS = {
    "single": Layout(
        recipe="single",
        processes={"lay-01": ("serve-0-head",)},
        change={"args": {"max-num-seqs": 8}},
        restarts=frozenset({"lay-01 serve-0-head"}),
        shows="--max-num-seqs 8",
    ),
    "two-on-one": Layout(
        recipe="two-on-one",
        processes={"lay-01": ("serve-0-head", "serve-1-head")},
        change={"pools": {"serve": {"overrides": [{"instance": 1, "args": {"max-num-seqs": 24}}]}}},
        restarts=frozenset({"lay-01 serve-1-head"}),
        shows="--max-num-seqs 24",
        limits={"Privileged": False, "Memory": 2 * 2**30, "CpusetCpus": "0-1", "NetworkMode": "bridge"},
    ),
    "dp-headless": Layout(
        recipe="dp-headless",
        processes={"lay-01": ("serve-0-head",), "lay-02": ("serve-0-headless-1",)},
        # Of the head alone, but ranks know each other only from a common start.
        change={"pools": {"serve": {"overrides": [{"node": 0, "args": {"api-server-count": 2}}]}}},
        restarts=frozenset({"lay-01 serve-0-head", "lay-02 serve-0-headless-1"}),
        shows="--api-server-count 2",
    ),
    "ray": Layout(
        recipe="ray",
        processes={"lay-01": ("serve-0-head", "serve-0-ray-head"), "lay-02": ("serve-0-ray-worker-1",)},
        change={"args": {"max-num-seqs": 8}},
        restarts=frozenset({"lay-01 serve-0-head", "lay-01 serve-0-ray-head", "lay-02 serve-0-ray-worker-1"}),
        shows="--max-num-seqs 8",
        # Ray listens at all addresses, and these nodes have no firewall.
        told=frozenset({("ports-open", "lay-01"), ("ports-open", "lay-02")}),
    ),
    "pd-2p1d": Layout(
        recipe="pd-2p1d",
        processes={
            "lay-01": ("prefill-0-head", "prefill-1-head", "router"),
            "lay-02": ("decode-0-head",),
            "lay-03": ("decode-0-headless-1",),
        },
        change={"pools": {"prefill": {"overrides": [{"instance": 1, "args": {"max-num-seqs": 48}}]}}},
        restarts=frozenset({"lay-01 prefill-1-head"}),
        shows="--max-num-seqs 48",
    ),
    "units": Layout(
        recipe="units",
        processes={"lay-01": ("serve-0-head",), "lay-02": ("serve-0-headless-1",)},
        change={"args": {"max-num-seqs": 8}},
        restarts=frozenset({"lay-01 serve-0-head", "lay-02 serve-0-headless-1"}),
        shows="--max-num-seqs 8",
        units=True,
    ),
}

#: Walked in `make test`: containers on a bridge with ports of their own; the rest takes too long for it.
FAST = {"two-on-one"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in FAST else pytest.mark.thorough) for name in LAYOUTS],
)
def layout(request: pytest.FixtureRequest, site: Site) -> Layout:
    """A layout that serves and has passed its checks."""
    chosen = LAYOUTS[request.param]
    if chosen.units:
        given = site.packages()
        run = site.launch(site.recipe(chosen.recipe), tags="provision,launch,check", **given)
    else:
        run = site.launch(site.recipe(chosen.recipe), tags="launch,check")
    assert run.rc == 0, run.stdout
    return chosen


def start_times(site: Site, before: dict[str, str]) -> set[str]:
    """The places of which something started since ``before``."""
    return {place for place, start in site.running().items() if before.get(place) != start}


def test_what_the_plan_says_runs_and_nothing_else(site: Site, layout: Layout) -> None:
    assert set(site.running()) == layout.places
    for host, _, process in () if layout.units else (place.partition(" ") for place in layout.places):
        command = "docker inspect --format '{{json .HostConfig}}' %s"
        given = json.loads(site.road.node(host).check_output(command, f"ascent-{CLUSTER}-{process}"))
        assert {name: given[name] for name in layout.limits} == layout.limits


def test_a_second_launch_changes_nothing(site: Site, layout: Layout) -> None:
    before = site.running()
    run = site.launch(site.recipe(layout.recipe), tags="launch,check")
    assert run.rc == 0, run.stdout
    assert run.changed == {}
    assert site.running() == before


def test_one_argument_restarts_what_it_concerns_and_a_rollback_the_same(site: Site, layout: Layout) -> None:
    before = site.running()
    first = min(layout.restarts).partition(" ")
    good = site.manifest(first[0])
    run = site.launch(site.recipe(layout.recipe, layout.change))
    assert run.rc == 0, run.stdout
    assert start_times(site, before) == layout.restarts
    scripts = [
        site.road.node(host).file(f"/etc/ascent/{CLUSTER}/current/{process}.sh").content_string
        for host, _, process in (place.partition(" ") for place in layout.restarts)
    ]
    assert any(layout.shows in script for script in scripts)

    before = site.running()
    run = site.road.play("playbooks/rollback.yml")
    assert run.rc == 0, run.stdout
    assert start_times(site, before) == layout.restarts
    now = site.manifest(first[0])
    assert now["plan_hash"] == good["plan_hash"]
    assert now["number"] > good["number"]
    again = site.launch(site.recipe(layout.recipe))
    assert again.changed == {}, "the recipe is what the rollback went back to"


def test_status_tells_how_it_is(site: Site, layout: Layout) -> None:
    run, found = site.status()
    assert run.rc == 0, run.stdout
    assert found == layout.told
    rows = {row["process"]: row for row in json.loads((run.record / "processes.json").read_text())}
    assert {f"{row['host']} {name}" for name, row in rows.items()} == layout.places
    for name, row in rows.items():
        assert row["state"] == "running", name
        assert row["up"] != "-", f"{name}: how long it has run is not known"
        assert row["restarts"] == 0, name
        assert row["since"].startswith("generation "), name
    heads = [row for row in rows.values() if row["health"] != "-"]
    assert heads
    assert all(row["health"] == "ok" for row in heads)
    assert any(int(row["tokens out"]) > 0 for row in heads if row["tokens out"] != "-"), "the checks made tokens"


@pytest.mark.thorough
def test_what_was_changed_by_hand_is_told_and_put_right(site: Site, layout: Layout) -> None:
    place = min(layout.restarts)
    host, _, process = place.partition(" ")
    node = site.road.node(host)
    script = f"/etc/ascent/{CLUSTER}/generations/{site.manifest(host)['processes'][process]['since']}/{process}.sh"
    node.check_output("echo '# by hand' >> %s", script)
    if layout.units:
        unit = f"ascent-{CLUSTER}-{process}.service"
        node.check_output("sed -i s/^RestartSec=.*/RestartSec=77/ /etc/systemd/system/%s", unit)
        files = {one["evidence"].rpartition("/")[2] for one in site.status()[0].stage("status")["findings"]}
        assert files >= {f"{process}.sh", unit}
    else:
        replace(node, f"ascent-{CLUSTER}-{process}")
        assert {("drift-file", host), ("drift-image", host)} <= site.status()[1]
    run = site.launch(site.recipe(layout.recipe))
    assert run.rc == 0, run.stdout
    assert site.status()[1] == layout.told
    assert set(site.running()) == layout.places


def replace(node: Any, name: str) -> None:
    """What a hasty hand does: the same container from another image, which does nothing."""
    labels = node.check_output(
        "docker inspect --format '{{range $key, $value := .Config.Labels}}--label {{$key}}={{$value}} {{end}}' %s", name
    )
    node.check_output("docker commit %s by-hand:1", name)
    node.check_output("docker rm --force %s", name)
    node.check_output(f"docker run --detach --name {name} {labels} --entrypoint sleep by-hand:1 infinity")


def test_stop_ends_all_of_it_and_nothing_twice(site: Site, layout: Layout) -> None:
    run = site.road.play("playbooks/stop.yml")
    assert run.rc == 0, run.stdout
    assert site.running() == {}
    again = site.road.play("playbooks/stop.yml")
    assert again.rc == 0
    assert again.changed == {}
