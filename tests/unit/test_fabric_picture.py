from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from ascent.fabric import verdict
from ascent_controller import fabric_picture, report
from tests.unit.fabric_facts import Cluster


def matrix(bad=None, hosts=3, devices=4):
    cluster = Cluster("a3", hosts, devices)
    return verdict.matrix([pair for mesh in cluster.meshes(bad).values() for pair in mesh["pairs"]], "vnic")


def cells(drawing):
    root = ElementTree.fromstring(drawing)
    return {rect[0].text: rect.attrib for rect in root.iter("rect")}


def test_every_measured_pair_is_a_cell():
    drawn = cells(fabric_picture.heat_map(matrix()))
    assert len(drawn) == 3 * 2 * 4
    assert drawn["a3-01/0 to a3-02/0: 20.0 us"]["fill"] == "var(--bar)"


def test_slow_is_darker_and_lost_is_red():
    def bad(source, target):
        if (source, target[0]) == (("a3-01", 0), "a3-02"):
            return {"avg_us": 400.0}
        return {"received": 0, "avg_us": None} if (source, target[0]) == (("a3-01", 1), "a3-02") else {}

    drawn = cells(fabric_picture.heat_map(matrix(bad)))
    slow, usual = drawn["a3-01/0 to a3-02/0: 400.0 us"], drawn["a3-01/0 to a3-03/0: 20.0 us"]
    assert float(slow["fill-opacity"]) == 1.0 > float(usual["fill-opacity"])
    assert drawn["a3-01/1 to a3-02/1: no answer, 100 % lost"]["fill"] == "var(--bad)"


def test_many_devices_are_drawn_by_hosts_and_nothing_without_measurements():
    assert len(cells(fabric_picture.heat_map(matrix(hosts=9, devices=16)))) == 9 * 8
    assert fabric_picture.heat_map(verdict.matrix([], None)) == ""
    assert fabric_picture.asymmetric(verdict.matrix([], None)) == []


def test_pairs_that_differ_by_direction():
    one_way = lambda source, target: {"received": 1} if (source, target[0]) == (("a3-01", 0), "a3-02") else {}  # noqa: E731
    assert fabric_picture.asymmetric(matrix(one_way)) == [
        ("a3-01 device 0", "a3-02 device 0", "20.0 us, 66.67 % lost", "20.0 us")
    ]
    slow = lambda source, target: {"avg_us": 500.0} if source == ("a3-01", 0) else {}  # noqa: E731
    assert len(fabric_picture.asymmetric(matrix(slow))) == 2
    assert fabric_picture.asymmetric(matrix(lambda source, target: {"avg_us": 500.0})) == []


def test_the_report_shows_table_and_map(tmp_path):
    cluster = Cluster("a3", 2)
    composed = verdict.compose(cluster.plan, cluster.nodes, cluster.npus, cluster.meshes(), {})
    record = {key: composed[key] for key in ("table", "matrix", "parts", "verdict", "findings")}
    (tmp_path / "fabric.json").write_text(json.dumps(record))
    shown = report._fabric(tmp_path)
    assert re.search(r"<h2>Fabric</h2>.*<td>a3-02</td>.*<svg", shown, re.DOTALL)
    assert "Pairs that differ" not in shown
    assert report._fabric(tmp_path / "nowhere") == ""
