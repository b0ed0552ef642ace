"""How collectives are tried out on a cluster: which groups of nodes run when, and who is at fault when a group fails.

Pure: `Campaign` says which groups to measure next and a callback tells what came of it; `ascent.mpi_job` runs them.
"""

from __future__ import annotations

__all__ = ["COLLECTIVES", "Campaign", "Group", "rounds", "smallest_failing"]

import collections
import time
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

#: What can be run, by the names of the test programs without their ending.
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "sendrecv")

#: Hosts that run one test together.
Group = Tuple[str, ...]
#: Measures groups that share no host, at once; a run for each, see `docs/architecture.md`, ``ascent_collectives``.
Measure = Callable[[str, str, Sequence[Group]], Sequence[Dict[str, Any]]]


def rounds(hosts: Sequence[str], wanted: Optional[Iterable[Iterable[str]]] = None) -> List[List[Group]]:
    """Pairs of hosts in rounds: every wanted pair once, no host twice in a round.

    All pairs are wanted unless some are given. N hosts take N - 1 rounds when N is even, N when it is odd, and fewer
    where rounds have nothing wanted in them.

    >>> rounds(["a", "b", "c", "d"])
    [[('a', 'd'), ('b', 'c')], [('a', 'c'), ('b', 'd')], [('a', 'b'), ('c', 'd')]]
    """
    asked = None if wanted is None else {frozenset(pair) for pair in wanted}
    place = {host: number for number, host in enumerate(hosts)}
    ring: List[Optional[str]] = list(hosts)
    if len(ring) % 2:
        ring.append(None)
    result: List[List[Group]] = []
    for _ in range(len(ring) - 1):
        pairs: List[Group] = []
        for one, other in zip(ring[: len(ring) // 2], reversed(ring)):
            if one is not None and other is not None and (asked is None or frozenset((one, other)) in asked):
                pairs.append((one, other) if place[one] < place[other] else (other, one))
        if pairs:
            result.append(sorted(pairs, key=lambda pair: place[pair[0]]))
        # The circle method: the first stays, the others move on by one.
        ring[1:] = [ring[-1], *ring[1:-1]]
    return result


def smallest_failing(
    hosts: Sequence[str], fails: Callable[[Sequence[Group]], Sequence[bool]], good: Iterable[str] = ()
) -> List[Group]:
    """The smallest sets of hosts that fail on their own account, from a set that fails as a whole.

    ``fails`` measures groups that share no host, at once. ``good`` are further hosts that are known to work together.
    A host that fails with everybody is named alone, whether it fails by itself or only with a partner; two that work
    with others but not with each other are named together. Several faults are all found. What fails only with some
    is taken to fail with more.
    """
    known: Dict[FrozenSet[str], bool] = {}
    place = {host: number for number, host in enumerate([*hosts, *good])}

    def ask(groups: Sequence[Sequence[str]]) -> List[bool]:
        keys = [frozenset(group) for group in groups]
        new = [key for key in dict.fromkeys(keys) if key and key not in known]
        if new:
            answers = fails([tuple(sorted(key, key=place.__getitem__)) for key in new])
            known.update(zip(new, (bool(answer) for answer in answers)))
        return [known[key] if key else False for key in keys]

    def least(base: List[str], grown: bool, open_: List[str]) -> List[str]:
        """The fewest of ``open_`` that fail together with ``base``, which does not fail without them."""
        if grown and ask([base])[0]:
            return []
        if len(open_) == 1:
            return open_
        middle = len(open_) // 2
        second = least(base + open_[:middle], True, open_[middle:])
        first = least(base + second, bool(second), open_[:middle])
        return first + second

    def narrowed(failing: List[str]) -> List[str]:
        while len(failing) > 1:
            middle = len(failing) // 2
            halves = [failing[:middle], failing[middle:]]
            # Both at once: they share no host.
            broken = [half for half, answer in zip(halves, ask(halves)) if answer]
            if not broken:
                return least([], False, failing)
            failing = broken[0]
        return failing

    sets: List[List[str]] = []
    left = list(dict.fromkeys(hosts))
    known[frozenset(left)] = True
    while left and ask([left])[0]:
        found = narrowed(left)
        sets.append(sorted(found, key=place.__getitem__))
        left = [host for host in left if host not in found]
    partners = [*left, *(host for host in good if host not in hosts)]
    # A member that works with an innocent host is innocent as well, unless all of them do: then it is the set itself.
    named: List[Group] = []
    for members in sets:
        if len(members) == 1 or not partners:
            named.append(tuple(members))
            continue
        guilty: List[str] = []
        for start in range(0, len(members), len(partners)):
            part = members[start : start + len(partners)]
            answers = ask([(member, partner) for member, partner in zip(part, partners)])
            guilty += [member for member, answer in zip(part, answers) if answer]
        if len(partners) == 1 and len(guilty) == len(members):
            # Nothing has shown yet that the only partner works with anybody.
            named.append((*members, partners[0]))
        else:
            named += [(member,) for member in guilty] if guilty else [tuple(members)]
    return named


def _time(run: Mapping[str, Any]) -> Optional[float]:
    """Microseconds of the largest size, which is what bandwidth is judged by."""
    return float(run["rows"][-1]["us"]) if run["rows"] else None


class Campaign:
    """Collectives over growing groups: every host alone, pairs of hosts in rounds, then all of them together.

    A group that fails or is slow is brought down to the hosts that cause it; these are named, and left out of what
    follows, so that a second fault shows as well. ``ratio`` is the share of the best group's bandwidth below which a
    group of the same phase is slow, ``cluster_ratio`` the same between the whole cluster and the best pair (0: not
    judged). ``pair_rounds`` limits the rounds, 0 runs all. ``floors`` are the least GB/s of the largest size, by phase
    and collective. ``burn_in`` are the seconds for which all sound hosts are kept under load after that.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        measure: Measure,
        *,
        collectives: Sequence[str] = ("all_reduce",),
        ratio: float = 0.5,
        cluster_ratio: float = 0.0,
        pair_rounds: int = 2,
        floors: Optional[Mapping[str, Mapping[str, float]]] = None,
        pairs: Optional[Iterable[Iterable[str]]] = None,
        burn_in: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hosts = list(hosts)
        self.measure = measure
        self.collectives = list(collectives)
        self.ratio = ratio
        self.cluster_ratio = cluster_ratio
        self.pair_rounds = pair_rounds
        self.floors = floors or {}
        self.pairs = pairs
        self.burn_in = burn_in
        self.clock = clock
        self.runs: List[Dict[str, Any]] = []
        self.culprits: List[Dict[str, Any]] = []
        self._best: Dict[Tuple[str, str], float] = {}

    def run(self) -> None:
        """Works through all phases; `runs` and `culprits` hold what came of it."""
        for collective in self.collectives:
            fit = [host for host in self.hosts if not any(host in one["hosts"] for one in self.culprits)]
            self._alone(collective, fit)
            fit = self._fit(fit)
            if len(fit) > 1:
                self._in_pairs(collective, fit)
                fit = self._fit(fit)
            if len(fit) > 1 and (len(fit) > 2 or not self.runs or self.runs[-1]["phase"] != "pairs"):
                self._together(collective, fit)
        if self.burn_in:
            self._under_load()

    def _under_load(self) -> None:
        """All sound hosts together, one collective after the other, until the time is over.

        Heat, power and marginal links show after minutes only. Each run is measured by the best one of its kind; hosts
        that are found meanwhile are left out of the rest, so that it goes on for the others.
        """
        until = self.clock() + self.burn_in
        turn = 0
        while self.clock() < until:
            fit = [host for host in self.hosts if not any(host in one["hosts"] for one in self.culprits)]
            if not fit:
                return
            collective = self.collectives[turn % len(self.collectives)]
            turn += 1
            run = self._measured("burn-in", collective, [tuple(fit)])[0]
            for bad in self._judged("burn-in", collective, [run]):
                for group in smallest_failing(fit, self._fails(collective, bad, under_load=True)):
                    self._blame(group, bad)

    def _fit(self, hosts: Iterable[str]) -> List[str]:
        """Hosts that nothing stands against; of a bad pair the first one stays."""
        out: Set[str] = set()
        for one in self.culprits:
            out.update(one["hosts"] if one["kind"] == "node" else one["hosts"][1:])
        return [host for host in hosts if host not in out]

    def _measured(self, phase: str, collective: str, groups: Sequence[Group]) -> List[Dict[str, Any]]:
        runs = [dict(run) for run in self.measure(phase, collective, groups)]
        for group, run in zip(groups, runs):
            run.update(phase=phase, collective=collective, hosts=list(group))
        self.runs += runs
        return runs

    def _limit(self, phase: str, collective: str) -> Optional[float]:
        """The most microseconds a sound group of this phase takes over the largest size."""
        best = self._best.get((phase, collective))
        if phase == "cluster":
            pair = self._best.get(("pairs", collective))
            return pair / self.cluster_ratio if pair and self.cluster_ratio else None
        if phase == "burn-in":
            # The same hosts a while ago.
            known = [self._best.get((one, collective)) for one in ("burn-in", "cluster")]
            best = min((time for time in known if time), default=None)
        return best / self.ratio if best and self.ratio else None

    def _slow(self, phase: str, collective: str, run: Mapping[str, Any]) -> bool:
        time, limit = _time(run), self._limit(phase, collective)
        floor = self.floors.get(phase, {}).get(collective)
        too_low = bool(floor and run["rows"] and float(run["rows"][-1]["gbs"]) < float(floor))
        return run["outcome"] == "ok" and (too_low or bool(time and limit and time > limit))

    def _judged(self, phase: str, collective: str, runs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """Marks slow runs, each measured once more by itself first, and returns the bad ones."""
        times = [time for time in (_time(run) for run in runs if run["outcome"] == "ok") if time]
        if times:
            key = (phase, collective)
            self._best[key] = min([*times, *([self._best[key]] if key in self._best else [])])
        for run in runs:
            if self._slow(phase, collective, run):
                again = self._measured(phase, collective, [tuple(run["hosts"])])[0]
                if again["outcome"] != "ok" or self._slow(phase, collective, again):
                    run["outcome"] = "slow" if again["outcome"] == "ok" else again["outcome"]
                    again["outcome"] = run["outcome"]
        return [run for run in runs if run["outcome"] != "ok"]

    def _blame(self, hosts: Iterable[str], run: Mapping[str, Any]) -> None:
        names = list(hosts)
        kind = {1: "node", 2: "pair"}.get(len(names), "set")
        told = {key: run.get(key) for key in ("collective", "outcome", "text", "retcode", "problem", "at")}
        self.culprits.append({"hosts": names, "kind": kind, "phase": run["phase"], "runs": list(run["hosts"]), **told})

    def _alone(self, collective: str, hosts: Sequence[str]) -> None:
        runs = self._measured("node", collective, [(host,) for host in hosts])
        for run in self._judged("node", collective, runs):
            self._blame(run["hosts"], run)

    def _in_pairs(self, collective: str, hosts: Sequence[str]) -> None:
        planned = rounds(hosts, self.pairs)
        runs: List[Dict[str, Any]] = []
        for pairs in planned[: self.pair_rounds or None]:
            runs += self._measured("pairs", collective, pairs)
        bad = self._judged("pairs", collective, runs)

        def sound() -> Mapping[str, int]:
            return collections.Counter(host for run in runs if run["outcome"] == "ok" for host in run["hosts"])

        # Further rounds while a bad pair has no end yet that is known to work: they clear one of them.
        for pairs in planned[self.pair_rounds :] if self.pair_rounds else ():
            if not any(not any(sound().get(host) for host in run["hosts"]) for run in bad):
                break
            more = self._measured("pairs", collective, pairs)
            runs += more
            bad += self._judged("pairs", collective, more)
        for hosts_, run in self._explained(bad, sound(), collective, hosts):
            self._blame(hosts_, run)

    def _explained(
        self, bad: List[Dict[str, Any]], sound: Mapping[str, int], collective: str, hosts: Sequence[str]
    ) -> List[Tuple[Group, Dict[str, Any]]]:
        """Bad pairs brought down to hosts: one that works in another pair is innocent, and its partner is not.

        A pair whose both ends work elsewhere is at fault as a pair. Where neither does, each is tried with a host that
        works.
        """
        told: Dict[Group, Dict[str, Any]] = {}
        for run in bad:
            suspects = [host for host in run["hosts"] if not sound.get(host)]
            if len(suspects) == 1:
                told.setdefault((suspects[0],), run)
            elif not suspects:
                told.setdefault(tuple(run["hosts"]), run)
        named = {group[0] for group in told if len(group) == 1}
        open_ = [run for run in bad if not named & set(run["hosts"]) and tuple(run["hosts"]) not in told]
        partners = [host for host in hosts if sound.get(host)]
        for run in open_:
            if named & set(run["hosts"]):
                continue
            for group in smallest_failing(run["hosts"], self._fails(collective, run), partners):
                told.setdefault(group, run)
                named.update(group if len(group) == 1 else ())
        return list(told.items())

    def _fails(
        self, collective: str, run: Mapping[str, Any], under_load: bool = False
    ) -> Callable[[Sequence[Group]], List[bool]]:
        """Whether groups show what a bad run showed. Single hosts have been measured before, but not ``under_load``."""
        phases = {1: "node", 2: "pairs"}
        more = "burn-in" if under_load else "cluster"

        def fails(groups: Sequence[Group]) -> List[bool]:
            new = [group for group in groups if len(group) > 1 or under_load]
            answers: Dict[Group, bool] = dict.fromkeys(groups, False)
            if new:
                for group, one in zip(new, self._measured("bisect", collective, new)):
                    phase = phases.get(len(group), more)
                    slow = run["outcome"] == "slow" and self._slow(phase, collective, one)
                    if slow:
                        one["outcome"] = "slow"
                    answers[group] = slow or one["outcome"] != "ok"
            return [answers[group] for group in groups]

        return fails

    def _together(self, collective: str, hosts: Sequence[str]) -> None:
        run = self._measured("cluster", collective, [tuple(hosts)])[0]
        for bad in self._judged("cluster", collective, [run]):
            for group in smallest_failing(hosts, self._fails(collective, bad)):
                # All of them together: nobody in particular.
                self._blame(group, bad)
