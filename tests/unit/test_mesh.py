from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import mesh
from ascent.node import Node


def plan_of(devices, pairs=()):
    hosts = {
        host: {"devices": list(numbers), "fabric": {"address": "vnic", "ping": "hccs_ping"}}
        for host, numbers in devices.items()
    }
    return {"hosts": hosts, "device_pairs": list(pairs)}


def members(devices, hosts):
    return [{"host": host, "devices": list(devices[host])} for host in hosts]


def same(devices, hosts):
    return {"pattern": "same-position", "groups": [members(devices, hosts)]}


def across(devices, one, other):
    return {"pattern": "across", "groups": [members(devices, one), members(devices, other)]}


clusters = st.dictionaries(
    st.sampled_from("abcdefg"), st.lists(st.integers(0, 15), unique=True, min_size=1, max_size=5), min_size=1
)


@given(clusters)
def test_the_full_mesh_has_every_directed_pair_once(devices):
    plan = plan_of(devices)
    lists = mesh.schedule(list(plan["hosts"]), mesh.wanted(plan, "full"))
    ends = [(host, device) for host in devices for device in devices[host]]
    assert Counter(pair for pairs in lists.values() for pair in pairs) == Counter(
        pair for pair in itertools.permutations(ends, 2) if pair[0][0] != pair[1][0]
    )
    assert all(pair[0][0] == host for host, pairs in lists.items() for pair in pairs)


@given(clusters)
def test_every_planned_pair_is_there_in_both_directions_and_only_those(devices):
    hosts = sorted(devices)
    plan = plan_of(devices, [same(devices, hosts)])
    pairs = mesh.wanted(plan)
    assert pairs == {(other, one) for one, other in pairs}
    for one, other in itertools.combinations(hosts, 2):
        count = max(len(devices[one]), len(devices[other]))
        assert sum(pair[0][0] == one and pair[1][0] == other for pair in pairs) == count
        # Everybody's device takes part.
        assert {pair[0][1] for pair in pairs if pair[0][0] == one} == set(devices[one])


def test_prefill_meets_decode_and_nobody_else():
    devices = {"p1": [0, 1], "p2": [0, 1], "d1": [0, 1, 2]}
    pairs = mesh.wanted(plan_of(devices, [across(devices, ["p1", "p2"], ["d1"])]))
    assert len(pairs) == 2 * 4 * 3
    assert all({one[0][0], other[0][0]} != {"p"} for one, other in pairs)


def test_instances_on_hosts_of_their_own_need_no_mesh():
    assert mesh.wanted(plan_of({"a": [0], "b": [0]})) == set()


@given(st.integers(2, 9), st.integers(1, 8), st.sampled_from(["planned", "full"]))
def test_at_any_step_the_nodes_aim_at_different_hosts(hosts, devices, mode):
    names = [f"n{number}" for number in range(hosts)]
    numbers = dict.fromkeys(names, range(devices))
    plan = plan_of(numbers, [same(numbers, names)])
    lists = mesh.schedule(names, mesh.wanted(plan, mode))
    for step in range(max(map(len, lists.values()))):
        assert len({lists[host][step][1][0] for host in names}) == hosts


def test_nodes_that_share_their_only_peer_aim_at_its_devices_in_turn():
    devices = {"p": range(8), **{f"d{number}": range(8) for number in range(8)}}
    decode = [name for name in devices if name != "p"]
    lists = mesh.schedule(list(devices), mesh.wanted(plan_of(devices, [across(devices, ["p"], decode)])))
    for step in range(64):
        aims = Counter(lists[name][step][1] for name in decode)
        assert max(aims.values()) <= 2


@given(clusters.filter(lambda devices: len(devices) > 1))
def test_a_sample_has_one_pair_for_each_device(devices):
    hosts = sorted(devices)
    plan = plan_of(devices, [same(devices, hosts)])
    sample = mesh.wanted(plan, "sample")
    assert sample <= mesh.wanted(plan)
    assert sorted(pair[0] for pair in sample) == sorted((host, device) for host in hosts for device in devices[host])


def test_unknown_mode_is_our_mistake():
    with pytest.raises(ValueError, match="diagonal"):
        mesh.wanted(plan_of({"a": [0]}), "diagonal")


def address_of(host, device):
    return f"192.0.2.{16 * 'abcd'.index(host) + device}"


def test_each_device_sends_bursts_to_two_peers():
    devices = dict.fromkeys("abc", range(4))
    lists = mesh.peers(plan_of(devices, [same(devices, "abc")]), address_of)
    assert [entry for entry in lists["a"] if entry["witness"]] == []
    bursts = [(entry["device"], entry["peer_host"]) for entry in lists["a"] if entry["burst"]]
    assert sorted(bursts) == sorted(itertools.product(range(4), "bc"))
    assert lists["a"][0]["address"] == "192.0.2.16"


def test_between_two_hosts_a_witness_tells_the_ends_apart():
    devices = dict.fromkeys("ab", range(4))
    lists = mesh.peers(plan_of(devices, [same(devices, "ab")]), address_of)
    witnesses = [(entry["device"], entry["peer_device"]) for entry in lists["a"] if entry["witness"]]
    assert all(one != other for one, other in witnesses)
    assert sorted(one for one, _ in witnesses) == sorted(other for _, other in witnesses) == [0, 1, 2, 3]
    assert len([entry for entry in lists["a"] if not entry["witness"]]) == 4


class Tool:
    """A tool whose pings take 20 us, but for those to an address in `strange`."""

    def __init__(self, strange=None, call=0.1, packet=0.001):
        self.strange = strange or {}
        self.calls = []
        self.now, self.call, self.packet = 0.0, call, packet

    def __call__(self, argv, timeout):
        device, target, count = argv[2], argv[6], int(argv[8])
        self.calls.append((int(device), target, count))
        answer = self.strange.get(target, lambda count: [20.0] * count)(count)
        self.now += self.call + self.packet * count
        if isinstance(answer, str):
            return 0, answer, ""
        lines = [f"device {device} PING {target}", ""]
        for number, micros in enumerate(answer):
            if micros is None:
                lines.append(f"This pkt check recv msg fail! seq {number}\n")
            else:
                lines.append(f"This pkt ping success!\nrecv seq {number}, time = {micros:.3f}us, L1 plane\n")
        got = sum(micros is not None for micros in answer)
        lines.append(f"{count} packets transmitted, {got} received, {100 * (count - got) / count:.2f}% packets loss")
        return 0, "\n".join([*lines, "Cmd executed successfully!", ""]), ""

    def measure(self, peers, **options):
        options = {"burst_packets": 0, **options}
        return mesh.measure(Node(runner=self), "tool", "hccs_ping", "a", peers, clock=lambda: self.now, **options)


def entries(count=4, **more):
    return [
        {"device": d, "peer_host": "b", "peer_device": d, "address": f"192.0.2.{d}", "burst": True, **more}
        for d in range(count)
    ]


def test_measured_pairs_have_the_contracts_shape():
    told = Tool().measure(entries(1))
    assert told["pairs"] == [
        {
            "from": ["a", 0], "to": ["b", 0], "address": "192.0.2.0", "sent": 3, "received": 3,
            "min_us": 20.0, "avg_us": 20.0, "max_us": 20.0, "error": None,
        }
    ]  # fmt: skip
    assert (told["plane"], told["packets"]) == ("vnic", 3)


def test_a_late_packet_is_asked_again_and_the_best_time_counts():
    late = iter([[900.0] * 3, [20.0, 20.0, 30.0]])
    tool = Tool({"192.0.2.2": lambda count: next(late)})
    told = tool.measure(entries())
    assert tool.calls.count((2, "192.0.2.2", 3)) == 2
    pair = told["pairs"][2]
    assert (pair["sent"], pair["min_us"], pair["max_us"]) == (6, 20.0, 900.0)


def test_a_small_loss_shows_in_the_burst():
    def every_fiftieth(count):
        return [None if (number + 1) % 50 == 0 else 20.0 for number in range(count)]

    told = Tool({"192.0.2.1": every_fiftieth}).measure(entries(), burst_packets=100)
    lost = {pair["to"][1]: pair["sent"] - pair["received"] for pair in told["pairs"]}
    assert lost == {0: 0, 1: 2, 2: 0, 3: 0}


def test_a_slow_tool_gets_smaller_bursts():
    tool = Tool(packet=1.0)
    told = tool.measure(entries(), burst_packets=100, burst_seconds=60)
    assert max(count for *_, count in tool.calls) < 20
    assert told["seconds"] < 60 + 4 * 3.1 + 14
    assert not [count for *_, count in Tool(packet=30.0).calls if count > 13]


def test_what_gives_no_figures_says_why():
    tool = Tool({"192.0.2.1": lambda count: "The command is not supported on this product.\n"})
    nobody = {"device": 0, "peer_host": "b", "peer_device": 9, "address": None}
    told = tool.measure([*entries(2), nobody])
    assert re.search("not supported", told["pairs"][1]["error"])
    assert told["pairs"][2]["error"] == "the peer device has no address"
    assert [(pair["sent"], pair["min_us"]) for pair in told["pairs"][1:]] == [(0, None)] * 2
