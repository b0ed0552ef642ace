"""Which generation a run works on, and which processes it leaves alone."""

from __future__ import annotations

import pytest

from ascent import generations

IMAGE = "quay.io/ascend/vllm-ascend:v0.21.0rc1-a3"


def plan(plan_hash: str = "h1", **definitions: str) -> dict:
    definitions = definitions or {"prefill-0-head": "p", "decode-0-head": "d"}
    hosts = {"prefill-0-head": "a3-01", "decode-0-head": "a3-02"}
    return {
        "hash": plan_hash,
        "recipe": "r",
        "engine": {"image": IMAGE},
        "processes": [
            {"name": name, "host": hosts[name], "definition": text, "container": {"image": IMAGE}}
            for name, text in definitions.items()
        ],
    }


def decide(a_plan: dict, digest: str | None, states: dict) -> dict:
    return generations.decide(a_plan, {IMAGE: digest}, states)


def after(a_plan: dict, digest: str | None, states: dict) -> dict:
    """The hosts' state once a run with this plan is through."""
    decision = decide(a_plan, digest, states)
    new = {}
    for host in ("a3-01", "a3-02"):
        entry = generations.manifest(a_plan, {IMAGE: digest}, decision, host, states.get(host), "2026-01-31T12:00:00Z")
        old = [e for e in (states.get(host) or {"generations": []})["generations"] if e["number"] != entry["number"]]
        new[host] = {"current": entry["number"], "generations": [*old, entry]}
    return new


NOTHING = {"a3-01": {"current": None, "generations": []}, "a3-02": {"current": None, "generations": []}}


def test_the_first_generation_is_number_one() -> None:
    decision = decide(plan(), "sha256:1", NOTHING)
    assert (decision["number"], decision["new"]) == (1, True)
    assert {entry["since"] for entry in decision["processes"].values()} == {1}


def test_the_same_plan_keeps_its_generation() -> None:
    states = after(plan(), "sha256:1", NOTHING)
    assert decide(plan(), "sha256:1", states)["number"] == 1
    assert after(plan(), "sha256:1", states) == states


def test_only_a_changed_process_gets_a_new_since() -> None:
    states = after(plan(), "sha256:1", NOTHING)
    decision = decide(plan("h2", **{"prefill-0-head": "p", "decode-0-head": "other"}), "sha256:1", states)
    assert decision["number"] == 2
    assert decision["processes"]["prefill-0-head"]["since"] == 1
    assert decision["processes"]["decode-0-head"]["since"] == 2


def test_going_back_to_an_older_definition_is_a_change() -> None:
    states = after(plan(), "sha256:1", NOTHING)
    states = after(plan("h2", **{"prefill-0-head": "p", "decode-0-head": "other"}), "sha256:1", states)
    decision = decide(plan(), "sha256:1", states)
    assert decision["number"] == 3
    assert decision["processes"]["decode-0-head"]["since"] == 3
    assert decision["processes"]["prefill-0-head"]["since"] == 1


def test_another_digest_changes_every_process() -> None:
    states = after(plan(), "sha256:1", NOTHING)
    decision = decide(plan(), "sha256:2", states)
    assert decision["number"] == 2
    assert {entry["since"] for entry in decision["processes"].values()} == {2}


def test_an_interrupted_run_is_taken_up_again() -> None:
    whole = after(plan(), "sha256:1", NOTHING)
    half = {"a3-01": whole["a3-01"], "a3-02": NOTHING["a3-02"]}
    decision = decide(plan(), "sha256:1", half)
    assert decision["number"] == 1
    assert after(plan(), "sha256:1", half)["a3-02"]["current"] == 1


@pytest.mark.parametrize(("image", "digest"), [(IMAGE, "sha256:2"), ("other:tag", None)])
def test_the_newest_lock_of_an_image_is_found(image: str, digest: str | None) -> None:
    states = after(plan("h2"), "sha256:2", after(plan(), "sha256:1", NOTHING))
    assert generations.locked_digest(image, [*states.values(), None]) == digest


def test_each_image_of_a_plan_is_locked_and_changes_its_own_processes() -> None:
    both = plan()
    both["processes"][1]["container"]["image"] = "example.org/router:v1"
    both["jobs"] = [{"host": "a3-01", "devices": [], "container": {"image": "example.org/client:v1"}}]
    assert generations.images_of(both) == ["example.org/router:v1", IMAGE]
    assert generations.images_of(both, "a3-01") == [IMAGE]
    both["jobs"][0]["devices"] = [0]
    assert generations.images_of(both, "a3-01") == ["example.org/client:v1", IMAGE]
    both["jobs"] = []
    digests = {IMAGE: "sha256:1", "example.org/router:v1": "sha256:r", "example.org/other:v1": "sha256:o"}
    decision = generations.decide(both, digests, NOTHING)
    entry = generations.manifest(both, digests, decision, "a3-01", None, "2026-01-31T12:00:00Z")
    assert (entry["image"], entry["digest"]) == (IMAGE, "sha256:1")
    assert entry["images"] == {IMAGE: "sha256:1", "example.org/router:v1": "sha256:r"}
    states = {host: {"current": 1, "generations": [{**entry, "processes": decision["processes"]}]} for host in NOTHING}
    assert generations.locked_digest("example.org/router:v1", states.values()) == "sha256:r"
    again = generations.decide(both, {**digests, "example.org/router:v1": "sha256:s"}, states)
    assert {name: one["since"] for name, one in again["processes"].items()} == {"prefill-0-head": 1, "decode-0-head": 2}


def container(process: str, definition: str, state: str = "running") -> dict:
    return {"state": state, "labels": {"ascent.process": process, "ascent.definition": definition}}


@pytest.mark.parametrize(
    ("containers", "stop"),
    [
        ([container("head", "h"), container("headless", "l")], []),
        ([container("head", "h", "exited"), container("headless", "l")], ["headless"]),
        ([container("head", "older"), container("headless", "l")], ["head", "headless"]),
        ([container("head", "h")], ["head"]),
        ([container("head", "h", "restarting"), container("headless", "l")], ["head", "headless"]),
        ([], []),
    ],
)
def test_an_instance_starts_as_a_whole(containers: list, stop: list) -> None:
    a_plan = {"instances": [{"processes": ["head", "headless"]}, {"processes": ["other"]}]}
    decision = {"processes": {name: {"definition": name[0]} for name in ("head", "other")}}
    decision["processes"]["headless"] = {"definition": "l"}
    nodes = {"a3-01": {"container_engine": {"containers": [*containers, container("other", "o")]}}, "a3-02": None}
    assert generations.to_stop(a_plan, decision, nodes) == stop
