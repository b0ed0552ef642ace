from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import collectives
from ascent.collectives import Campaign, rounds, smallest_failing

names = st.integers(0, 20).map(lambda count: [f"n{number}" for number in range(count)])


@given(names)
def test_every_pair_once_and_no_host_twice_in_a_round(hosts):
    planned = rounds(hosts)
    assert Counter(frozenset(pair) for pairs in planned for pair in pairs) == Counter(
        frozenset(pair) for pair in itertools.combinations(hosts, 2)
    )
    for pairs in planned:
        assert max(Counter(host for pair in pairs for host in pair).values()) == 1
    if len(hosts) > 1:
        assert len(planned) == len(hosts) - 1 + len(hosts) % 2


@given(names, st.data())
def test_only_wanted_pairs_are_planned(hosts, data):
    every = list(itertools.combinations(hosts, 2))
    wanted = data.draw(st.sets(st.sampled_from(every))) if every else set()
    planned = rounds(hosts, wanted)
    assert Counter(frozenset(pair) for pairs in planned for pair in pairs) == Counter(map(frozenset, wanted))
    assert all(pairs for pairs in planned)


class Oracle:
    """Groups fail when they hold a bad host (and, for `partnered` ones, anybody else), or a bad pair."""

    def __init__(self, bad=(), partnered=(), pairs=()):
        self.bad, self.partnered, self.pairs = set(bad), set(partnered), [frozenset(pair) for pair in pairs]
        self.batches = []

    def fails(self, group):
        return bool(
            self.bad & set(group)
            or (len(group) > 1 and self.partnered & set(group))
            or any(pair <= set(group) for pair in self.pairs)
        )

    def __call__(self, groups):
        assert len({host for group in groups for host in group}) == sum(map(len, groups)), "hosts are shared"
        self.batches.append(list(groups))
        return [self.fails(group) for group in groups]


@given(st.integers(1, 16), st.data())
def test_any_faulty_hosts_are_named_and_nobody_else(count, data):
    hosts = [f"n{number}" for number in range(count)]
    guilty = data.draw(st.sets(st.sampled_from(hosts), min_size=1))
    alone = {host for host in guilty if data.draw(st.booleans())}
    innocent = set(hosts) - guilty
    oracle = Oracle(bad=alone, partnered=guilty - alone)
    if not oracle.fails(hosts):
        return
    found = smallest_failing(hosts, oracle)
    named = {host for group in found for host in group}
    assert all(guilty & set(group) for group in found)
    # Each of those that fail only with a partner may take one innocent host along, and one has to be left to clear it.
    if len(innocent) > len(guilty - alone):
        assert named == guilty
        assert all(len(group) == 1 for group in found)


@given(st.integers(4, 16), st.data())
def test_a_pair_that_does_not_get_on_is_named_as_a_pair(count, data):
    hosts = [f"n{number}" for number in range(count)]
    pair = tuple(sorted(data.draw(st.sets(st.sampled_from(hosts), min_size=2, max_size=2)), key=hosts.index))
    assert smallest_failing(hosts, Oracle(pairs=[pair])) == [pair]


@given(st.integers(2, 16), st.data())
def test_what_is_named_is_minimal(count, data):
    """For any monotone failure the named sets fail, and no part of one does."""
    hosts = [f"n{number}" for number in range(count)]
    causes = data.draw(st.sets(st.frozensets(st.sampled_from(hosts), min_size=1, max_size=4), min_size=1, max_size=3))

    def fails(groups):
        return [any(cause <= set(group) for cause in causes) for group in groups]

    found = smallest_failing(hosts, fails)
    assert found
    assert {host for group in found for host in group} <= {host for cause in causes for host in cause}


def test_bisecting_costs_few_measurements():
    hosts = [f"n{number}" for number in range(64)]
    oracle = Oracle(partnered=["n41"])
    assert smallest_failing(hosts, oracle) == [("n41",)]
    assert len(oracle.batches) <= 12


class Cluster:
    """Runs that take 100 us, more for slow hosts, and end badly where the oracle says so."""

    def __init__(self, outcome="timeout", slow=(), factor=10.0, **faults):
        self.oracle, self.outcome, self.slow, self.factor = Oracle(**faults), outcome, set(slow), factor
        self.asked = []

    def __call__(self, phase, collective, groups):
        assert len({host for group in groups for host in group}) == sum(map(len, groups))
        self.asked.append((phase, list(groups)))
        return [self.run(group) for group in groups]

    def run(self, group):
        if self.oracle.fails(group):
            return {"outcome": self.outcome, "rows": [], "seconds": 60, "retcode": None, "text": "no end"}
        us = 100.0 * (self.factor if self.slow & set(group) else 1)
        rows = [{"bytes": 8192, "us": us / 2, "gbs": 1.0, "check": "success"}]
        rows.append({"bytes": 1 << 26, "us": us, "gbs": 1e3 / us, "check": "success"})
        return {"outcome": "ok", "rows": rows, "seconds": 1, "retcode": None, "text": ""}


def blamed(hosts=8, measure=None, **options):
    campaign = Campaign([f"n{number}" for number in range(hosts)], measure, **options)
    campaign.run()
    return sorted((one["kind"], tuple(one["hosts"]), one["outcome"]) for one in campaign.culprits), campaign


@pytest.mark.parametrize("hosts", [2, 3, 4, 8, 9])
def test_a_sound_cluster_has_no_culprits(hosts):
    found, campaign = blamed(hosts, Cluster())
    assert found == []
    phases = [run["phase"] for run in campaign.runs]
    assert phases.count("node") == hosts
    assert phases.count("cluster") == (1 if hosts > 2 else 0)


@pytest.mark.parametrize("hosts", [3, 4, 8, 9])
@pytest.mark.parametrize("host", ["n0", "n1", "n2"])
@pytest.mark.parametrize("fault", ["bad", "partnered"])
def test_a_hanging_host_is_named_alone(hosts, host, fault):
    found, campaign = blamed(hosts, Cluster(**{fault: [host]}))
    assert found == [("node", (host,), "timeout")]
    # Each costs the whole limit.
    assert sum(run["outcome"] == "timeout" for run in campaign.runs) <= 3


def test_of_two_hosts_neither_can_be_cleared():
    assert blamed(2, Cluster(partnered=["n1"]))[0] == [("pair", ("n0", "n1"), "timeout")]


@pytest.mark.parametrize("first", [{"bad": ["n1"]}, {"partnered": ["n1"]}])
def test_two_faults_are_both_named(first):
    measure = Cluster(**first, slow=["n6"])
    assert blamed(8, measure)[0] == [("node", ("n1",), "timeout"), ("node", ("n6",), "slow")]
    assert blamed(8, Cluster(partnered=["n1", "n5"]))[0] == [
        ("node", ("n1",), "timeout"),
        ("node", ("n5",), "timeout"),
    ]


def test_two_hosts_that_do_not_get_on_are_a_pair():
    found, campaign = blamed(8, Cluster(pairs=[("n2", "n5")]))
    assert found == [("pair", ("n2", "n5"), "timeout")]
    assert all(run["outcome"] == "ok" for run in campaign.runs if len(run["hosts"]) == 1)


def test_a_slow_host_is_measured_again_before_it_is_named():
    found, campaign = blamed(4, Cluster(slow=["n3"]))
    assert found == [("node", ("n3",), "slow")]
    assert [run["phase"] for run in campaign.runs if run["hosts"] == ["n3"]] == ["node", "node"]
    assert blamed(4, Cluster(slow=["n3"], factor=1.5))[0] == []


def test_a_late_run_that_is_fine_by_itself_is_no_finding():
    class Once(Cluster):
        def run(self, group):
            told = super().run(group)
            if group == ("n1",) and not self.oracle.batches:
                self.oracle.batches.append("late")
                told["rows"][-1]["us"] = 1e6
            return told

    assert blamed(4, Once())[0] == []


def test_a_floor_holds_even_where_all_are_alike():
    found, _ = blamed(3, Cluster(), floors={"node": {"all_reduce": 50.0}})
    assert [kind for kind, *_ in found] == ["node"] * 3


def test_all_rounds_on_demand():
    _, campaign = blamed(8, Cluster(), pair_rounds=0)
    assert sum(run["phase"] == "pairs" for run in campaign.runs) == 28
    assert set(collectives.COLLECTIVES) >= {"all_reduce", "sendrecv"}


class Clock:
    """Minutes that pass with each run of a burn-in, and at its start a host that gets slow or hangs after so many."""

    def __init__(self, measure, host=None, after=3, **fault):
        self.measure, self.host, self.after, self.fault, self.now, self.loaded = measure, host, after, fault, 0.0, 0

    def __call__(self, phase, collective, groups):
        if phase == "burn-in":
            self.now += 60.0
            self.loaded += 1
        if self.host and self.loaded > self.after:
            self.measure.slow |= {self.host} if self.fault.get("slow") else set()
            self.measure.oracle.bad |= set() if self.fault.get("slow") else {self.host}
        return self.measure(phase, collective, groups)


def burnt(hosts, **fault):
    measure = Clock(Cluster(), **fault)
    options = {"burn_in": 600, "clock": lambda: measure.now, "collectives": ("all_reduce", "alltoall")}
    found, campaign = blamed(hosts, measure, **options)
    return found, [run for run in campaign.runs if run["phase"] == "burn-in"], campaign


@pytest.mark.parametrize("hosts", [1, 2, 5])
def test_a_burn_in_lasts_its_time_with_all_collectives_in_turn(hosts):
    found, runs, _ = burnt(hosts)
    assert found == []
    assert [run["collective"] for run in runs] == ["all_reduce", "alltoall"] * 5
    assert all(len(run["hosts"]) == hosts for run in runs)


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
@pytest.mark.parametrize("slow", [True, False])
def test_a_host_that_gives_way_under_load_is_named_and_the_others_go_on(hosts, slow):
    found, runs, campaign = burnt(hosts, host="n0", slow=slow)
    assert found == [("node", ("n0",), "slow" if slow else "timeout")]
    assert {one["phase"] for one in campaign.culprits} == {"burn-in"}
    rest = [run for run in runs if "n0" not in run["hosts"]]
    assert all(run["outcome"] == "ok" and len(run["hosts"]) == hosts - 1 for run in rest)
    assert bool(rest) == (hosts > 1)


def test_a_burn_in_leaves_out_what_was_found_before():
    found, runs, _ = burnt(4, host="n2", after=-1)
    assert found == [("node", ("n2",), "timeout")]
    assert {tuple(run["hosts"]) for run in runs} == {("n0", "n1", "n3")}
