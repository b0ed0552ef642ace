"""A Ray cluster of two nodes: its devices are proven, it shows no dashboard, and it leaves no sessions behind."""

from __future__ import annotations

import pytest

from tests.layouts.cluster import CLUSTER, NODES, Site

HEAD = f"ascent-{CLUSTER}-serve-0-ray-head"
SESSIONS = f"ls -d /var/lib/ascent/{CLUSTER}/serve-0/ray/session_2*"


@pytest.mark.thorough
def test_ray_has_all_devices_one_version_and_nothing_left_over(site: Site) -> None:
    assert site.launch(site.recipe("ray"), tags="launch,check").rc == 0
    node = site.road.node("lay-01")
    shown = node.check_output("docker exec %s ray status --address=%s:6379", HEAD, NODES["lay-01"])
    assert "/16.0 NPU" in shown, shown
    versions = {
        site.road.node(host).check_output("docker exec %s ray --version", f"ascent-{CLUSTER}-serve-0-{process}")
        for host, process in (("lay-01", "ray-head"), ("lay-02", "ray-worker-1"))
    }
    assert len(versions) == 1
    assert ":8265" not in node.check_output("ss -ltn"), "the dashboard is off"
    for number in (7, 9):
        run = site.launch(site.recipe("ray", {"args": {"max-num-seqs": number}}))
        assert run.rc == 0, run.stdout
    for host in ("lay-01", "lay-02"):
        # The present one, and the one before, whose logs tell why it ended.
        assert len(site.road.node(host).check_output(SESSIONS).split()) == 2
