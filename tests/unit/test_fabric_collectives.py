"""Whether collectives are run, and what is said of hosts that spoil them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ascent.fabric import collectives
from ascent_controller import signatures

HOSTS = ("a", "b", "c")


def plan_of(vendor="ascend", **more):
    hosts = {host: {"devices": [0, 1], "vendor": more.get(host, vendor)} for host in HOSTS}
    return {"hosts": {**hosts, "router": {"devices": [], "vendor": "cpu"}}}


def nodes(**running):
    return {
        host: {"container_engine": {"containers": [{"name": name, "state": state}]}}
        for host, (name, state) in running.items()
    }


def gate(plan=None, read=None, wanted="auto", depth="standard", hosts=HOSTS, tests=()):
    return collectives.gate(plan or plan_of(), read or {}, wanted, depth, hosts, tests)


def test_an_idle_cluster_is_tried_from_its_first_host():
    told = gate()
    assert (told["due"], told["starter"], told["hosts"], told["tool"]) == (True, "a", list(HOSTS), "hccl_test")
    assert told["programs"] == ["all_reduce_test"]
    assert gate(hosts=("b", "c", "router"))["starter"] == "b"


def test_depth_and_demand_say_which():
    assert gate(depth="quick")["due"] is False
    assert len(gate(depth="deep")["programs"]) == 5
    assert gate(depth="deep", tests=["sendrecv"])["programs"] == ["sendrecv_test"]
    assert gate(wanted="never")["due"] is False
    assert gate(plan_of("nvidia"))["programs"] == ["all_reduce_perf"]
    assert gate(plan_of("cpu"))["due"] is False


def test_a_serving_cluster_is_left_alone_unless_forced():
    read = nodes(b=("ascent-c-serve-0-head", "running"))
    told = gate(read=read)
    assert told["due"] is False
    assert told["findings"][0]["severity"] == "info"
    assert "serve-0-head on b" in told["findings"][0]["summary"]
    assert gate(read=read, wanted="force")["due"] is True
    assert gate(read=nodes(b=("ascent-c-serve-0-head", "exited")))["due"] is True
    # An engine outside containers uses the devices as well.
    unit = {"a": {"units": {"units": [{"name": "ascent-c-serve-0", "state": "running"}], "error": None}}}
    assert gate(read=unit)["due"] is False
    assert gate(read=unit)["busy"] == {"a": ["ascent-c-serve-0"]}


def test_two_vendors_do_not_talk():
    told = gate(plan_of(c="nvidia"))
    assert told["due"] is False
    assert "ascend, nvidia" in told["findings"][0]["summary"]


def culprit(hosts=("b",), outcome="timeout", **more):
    kind = {1: "node", 2: "pair"}.get(len(hosts), "set")
    base = {"retcode": None, "problem": None, "at": None, "text": "words", "runs": ["a", "b"]}
    base["phase"] = "pairs"
    return {"hosts": list(hosts), "kind": kind, "collective": "all_reduce", "outcome": outcome, **base, **more}


def judged(*culprits, runs=()):
    told = {"ran": True, "why": "", "missing": {}, "seconds": 9.0, "runs": list(runs), "culprits": list(culprits)}
    return collectives.judge({}, told)


@pytest.mark.parametrize(
    ("given", "id", "host", "words"),
    [
        (culprit(), "C27", "b", "does not end: b"),
        (culprit(("a", "b")), "C27", None, "the pair a and b"),
        (culprit(outcome="failed", retcode=7, at=["b", 3]), "C23", "b", "b device 3"),
        (culprit(("a", "b"), "failed", retcode=19, at=["b", 3]), "C10", "b", "b device 3"),
        (culprit(outcome="failed", retcode=9), "C01", "b", "in time: b"),
        (culprit(outcome="failed", problem="launcher"), "C24", "b", "daemon does not start: b"),
        (culprit(outcome="failed", problem="login"), "collectives-login", "b", "can not log in: b"),
        (culprit(outcome="wrong", at=["b", 1]), "collective-wrong-result", "b", "wrong data: b device 1"),
        (culprit(outcome="failed", problem="output"), "collective-failed", "b", "fails: b"),
        (culprit(("a", "b", "c")), "C27", None, "together a, b, c"),
    ],
)
def test_what_a_culprit_has(given, id, host, words):
    (found,) = judged(given)["findings"]
    assert (found["id"], found["host"], found["severity"]) == (id, host, "error")
    assert words in found["summary"]
    assert all(found[key] for key in ("evidence", "cause", "fix"))


def run(hosts, us, outcome="ok", phase="node"):
    rows = [{"bytes": 8192, "us": us / 2, "gbs": 0.5, "check": "success"}]
    rows.append({"bytes": 1 << 26, "us": us, "gbs": 1e3 / us, "check": "success"})
    return {"phase": phase, "collective": "all_reduce", "hosts": list(hosts), "outcome": outcome, "rows": rows}


def test_a_slow_host_is_told_with_the_best_ones_figures():
    told = judged(
        culprit(outcome="slow"), runs=[run("a", 100.0), run("b", 5000.0, "slow"), run("ac", 90.0, phase="pairs")]
    )
    (found,) = told["findings"]
    assert (found["id"], found["host"]) == ("C28", "b")
    assert "5 ms for 64 MiB (0.2 GB/s) where the best takes 0.1 ms" in found["evidence"]
    assert told["metrics"]["collectives"]["all_reduce"]["node"] == {"gbs": 10.0, "us": 50.0}


def test_a_culprit_of_the_burn_in_is_told_as_such():
    runs = [{**run("ab", us, outcome, "burn-in"), "seconds": 30.0} for us, outcome in ((100.0, "ok"), (900.0, "slow"))]
    told = judged(culprit(("b",), "slow", phase="burn-in"), runs=runs)
    (found,) = told["findings"]
    assert found["evidence"].startswith("all_reduce in the burn-in over a, b: the collective test is slow: 0.9 ms")
    burn_in = told["metrics"]["burn_in"]
    assert (burn_in["runs"], burn_in["seconds"]) == (2, 60.0)
    assert burn_in["gbs"]["all_reduce"]["most"] == 10.0
    assert told["metrics"]["collectives"] == {}


def test_collectives_without_a_program_are_told_beside_the_others():
    told = collectives.judge({}, {"ran": True, "runs": [], "culprits": [], "seconds": 1.0, "absent": ["sendrecv"]})
    (found,) = told["findings"]
    assert (found["id"], found["severity"]) == ("collectives-skipped", "info")
    assert found["summary"] == "collectives that were not run: sendrecv"


def test_what_could_not_be_run_is_said_and_stops_nothing():
    told = {
        "ran": False,
        "why": "nodes lack MPI",
        "missing": {"b": ["mpirun"]},
        "seconds": 0,
        "runs": [],
        "culprits": [],
    }
    (found,) = collectives.judge({}, told)["findings"]
    assert (found["severity"], found["evidence"]) == ("info", "b: mpirun")
    assert collectives.judge({}, None) == {"findings": [], "metrics": {}}


def trial(outcome="ok", rows=(), text=""):
    return {"serve-0-fabric": {"instance": "serve-0", "outcome": outcome, "rows": list(rows), "text": text}}


def test_collectives_of_the_engines_own_image():
    row = {"bytes": 8192, "us": 40.0, "gbs": 0.2, "check": "success"}
    sound = collectives.torch({"a": trial(rows=[row]), "b": trial(), "c": None})
    assert sound == {"findings": [], "metrics": {"torch_collective": {"serve-0": {"gbs": 0.2, "us": 40.0}}}}
    (found,) = collectives.torch({"a": trial(), "b": trial("failed", text="rank 1 ended with 1")})["findings"]
    assert (found["id"], found["host"]) == ("torch-collective", "b")
    assert "serve-0: b" in found["summary"]
    (found,) = collectives.torch({"a": trial("timeout", text="x"), "b": trial("absent", text="no torch")})["findings"]
    assert (found["id"], found["severity"]) == ("torch-skipped", "info")


def test_the_catalogue_has_every_finding_of_mesh_collectives_and_control_plane():
    root = Path(__file__).parents[2]
    used = set()
    for name in ("pairs", "collectives", "control_plane"):
        tree = ast.parse((root / "module_utils" / "ascent" / "fabric" / f"{name}.py").read_text())
        words = {one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        used |= {
            word for word in words if re.fullmatch(r"[A-G][0-9]{2}|(fabric|control|collectives?|torch)-[a-z-]+", word)
        }
    listed = {entry["id"]: entry["about"] for entry in signatures.checks(of="fabric")}
    assert used <= set(listed)
    own = {name for name, about in listed.items() if about in ("mesh", "collectives", "control plane")}
    assert own <= used
