from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import mesh

clusters = st.dictionaries(
    st.sampled_from("abcdefg"), st.lists(st.integers(0, 15), unique=True, max_size=5), min_size=1
)


@given(clusters)
def test_every_device_is_pinged_once_by_every_other_node(devices):
    hosts = sorted(devices)
    lists = mesh.assignments(hosts, devices)
    for host in hosts:
        targets = [(entry["peer_host"], entry["peer_device"]) for entry in lists[host]]
        others = [(peer, device) for peer in hosts if peer != host for device in devices[peer]]
        assert sorted(targets) == (sorted(others) if devices[host] else [])
        assert {entry["device"] for entry in lists[host]} <= set(devices[host])


@given(clusters)
def test_full_mesh_has_every_pair_of_devices(devices):
    hosts = sorted(devices)
    lists = mesh.assignments(hosts, devices, "full")
    for host in hosts:
        pairs = {(entry["device"], entry["peer_host"], entry["peer_device"]) for entry in lists[host]}
        others = [(peer, device) for peer in hosts if peer != host for device in devices[peer]]
        assert pairs == {(own, *other) for own in devices[host] for other in others}


def test_nodes_aim_at_different_hosts_at_any_step():
    hosts = ["a", "b", "c", "d"]
    lists = mesh.assignments(hosts, dict.fromkeys(hosts, range(16)))
    for step in range(3 * 16):
        assert len({lists[host][step]["peer_host"] for host in hosts}) == 4
    assert [entry["device"] for entry in lists["a"][:16]] == [entry["peer_device"] for entry in lists["a"][:16]]


def test_unknown_mode_is_our_mistake():
    with pytest.raises(ValueError, match="diagonal"):
        mesh.assignments(["a"], {"a": [0]}, "diagonal")


def test_addresses_come_from_the_plane_that_is_used():
    node = {
        "npu": {
            "vnic": {"0": {"address": "192.0.2.9"}, "1": {"error": "busy"}},
            "hccn_live": None,
            "hccn": {"0": {"address": "198.51.100.7"}},
        }
    }
    assert mesh.address_of(node, 0, "vnic") == "192.0.2.9"
    assert mesh.address_of(node, 1, "vnic") is None
    assert mesh.address_of(node, 0, "ip") == "198.51.100.7"
    assert (
        mesh.address_of({"npu": {"hccn_live": {"0": {"address": None}}, "hccn": node["npu"]["hccn"]}}, 0, "ip") is None
    )
    assert mesh.address_of(None, 0, "ip") is None
    plan = {"hosts": {"a": {"devices": [0]}, "b": {"devices": [0]}, "router": {"devices": []}}}
    assert mesh.peers(plan, {"a": node, "b": None}) == {
        "a": [{"device": 0, "peer_host": "b", "peer_device": 0, "address": None}],
        "b": [{"device": 0, "peer_host": "a", "peer_device": 0, "address": "192.0.2.9"}],
    }
