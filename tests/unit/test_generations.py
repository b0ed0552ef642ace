"""Which generation a run works on, and which processes it leaves alone."""

from __future__ import annotations

import pytest

from ascent import generations, planner
from ascent.errors import AscentError
from tests.unit import planning_inputs as inputs

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
    return generations.decide(a_plan, {IMAGE: digest}, {host: {"state": state} for host, state in states.items()})


def after(a_plan: dict, digest: str | None, states: dict) -> dict:
    """The hosts' state once a run with this plan is through."""
    decision = decide(a_plan, digest, states)
    nodes = {host: {"state": state, "system": {"boot_id": "b1"}} for host, state in states.items()}
    new = {}
    for host in ("a3-01", "a3-02"):
        entry = generations.manifest(a_plan, {IMAGE: digest}, decision, host, nodes.get(host), "2026-01-31T12:00:00Z")
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


def test_what_runs_goes_on_when_a_generation_between_was_only_written() -> None:
    ran = after(plan(), "sha256:1", NOTHING)
    runs = {host: entry for host in ran for entry in ran[host]["generations"][-1]["processes"].items()}
    states = after(plan("h2", **{"prefill-0-head": "p", "decode-0-head": "other"}), "sha256:1", ran)

    def sinces(generation: int) -> dict[str, int]:
        nodes = {
            host: {
                "state": states[host],
                "container_engine": {"containers": [container(name, one["definition"], generation=generation)]},
            }
            for host, (name, one) in runs.items()
        }
        decision = generations.decide(plan(), {IMAGE: "sha256:1"}, nodes)
        assert decision["number"] == 3
        return {name: one["since"] for name, one in decision["processes"].items()}

    assert sinces(1) == {"prefill-0-head": 1, "decode-0-head": 1}
    assert sinces(9) == {"prefill-0-head": 1, "decode-0-head": 3}, "no such generation is kept, so there is no script"


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


def test_a_manifest_keeps_the_boot_in_which_it_was_written() -> None:
    first = after(plan(), "sha256:1", NOTHING)
    (entry,) = first["a3-01"]["generations"]
    assert entry["boot_id"] == "b1"
    node = {"state": first["a3-01"], "system": {"boot_id": "b2"}}
    decision = decide(plan(), "sha256:1", first)
    again = generations.manifest(plan(), {IMAGE: "sha256:1"}, decision, "a3-01", node, "2026-02-01T12:00:00Z")
    assert again == entry, "written again, it does not differ"


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
    assert entry["boot_id"] is None, "not known of a node that was not read"
    assert entry["images"] == {IMAGE: "sha256:1", "example.org/router:v1": "sha256:r"}
    states = {host: {"current": 1, "generations": [{**entry, "processes": decision["processes"]}]} for host in NOTHING}
    assert generations.locked_digest("example.org/router:v1", states.values()) == "sha256:r"
    nodes = {host: {"state": state} for host, state in states.items()}
    again = generations.decide(both, {**digests, "example.org/router:v1": "sha256:s"}, nodes)
    assert {name: one["since"] for name, one in again["processes"].items()} == {"prefill-0-head": 1, "decode-0-head": 2}


def container(process: str, definition: str, state: str = "running", generation: int = 1) -> dict:
    labels = {"ascent.process": process, "ascent.definition": definition, "ascent.generation": str(generation)}
    return {"state": state, "labels": labels}


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
    a_plan = {"instances": [{"processes": ["head", "headless"]}, {"processes": ["other"]}], "processes": []}
    decision = {"processes": {name: {"definition": name[0]} for name in ("head", "other")}}
    decision["processes"]["headless"] = {"definition": "l"}
    nodes = {"a3-01": {"container_engine": {"containers": [*containers, container("other", "o")]}}, "a3-02": None}
    assert generations.to_stop(a_plan, decision, nodes) == stop


def launched(recipe_name: str) -> tuple[dict, dict, dict]:
    """A real recipe's plan, what a first launch decides, and its hosts' facts once all of it runs."""
    recipe = inputs.recipe(recipe_name)
    a_plan = planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)))
    decision = generations.decide(a_plan, dict.fromkeys(generations.images_of(a_plan), "sha256:1"), {})
    nodes: dict = {host: {"container_engine": {"containers": []}} for host in a_plan["hosts"]}
    for process in a_plan["processes"]:
        one = container(process["name"], decision["processes"][process["name"]]["definition"])
        nodes[process["host"]]["container_engine"]["containers"].append(one)
    return a_plan, decision, nodes


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (inputs.PD, [["prefill-0-head", "decode-0-head", "decode-0-headless-1"], ["router"]]),
        (
            "qwen3.5-397b-a17b-w8a8-ray-a2",
            [["serve-0-ray-head"], ["serve-0-ray-worker-1", "serve-0-head"]],
        ),
        (
            "qwen3-32b-agg-mc-kv-910b4",
            [["kv-store", "redis"], ["serve-0-head", "serve-1-head"], ["router"]],
        ),
        ("qwen3-235b-a22b-dp2", [["serve-0-head", "serve-0-headless-1"]]),
    ],
)
def test_processes_start_in_waves_by_role(recipe: str, wanted: list) -> None:
    a_plan, decision, nodes = launched(recipe)
    found = generations.waves(a_plan, decision, dict.fromkeys(nodes))
    assert [sorted(wave) for wave in found] == [sorted(wave) for wave in wanted]
    assert generations.waves(a_plan, decision, nodes) == [[one["name"] for one in a_plan["processes"]]]


def test_a_wave_of_what_runs_already_goes_along_with_the_one_before() -> None:
    a_plan, decision, nodes = launched(inputs.PD)
    (head,) = nodes[a_plan["instances"][1]["hosts"][0]]["container_engine"]["containers"]
    head["state"] = "exited"
    assert len(generations.waves(a_plan, decision, nodes)) == 1, "the router goes on"
    router = next(one for node in nodes.values() for one in generations.running_of(node) if "router" in str(one))
    router["state"] = "exited"
    assert generations.waves(a_plan, decision, nodes)[-1] == ["router"]


def test_with_a_new_store_of_kv_cache_all_engines_start_anew() -> None:
    a_plan, decision, nodes = launched("qwen3-32b-agg-mc-kv-910b4")
    assert generations.to_stop(a_plan, decision, nodes) == []
    store = next(one for one in a_plan["processes"] if one["kind"] == "kv-store")
    for one in nodes[store["host"]]["container_engine"]["containers"]:
        if one["labels"]["ascent.process"] == store["name"]:
            one["labels"]["ascent.definition"] = "older"
    assert generations.to_stop(a_plan, decision, nodes) == ["serve-0-head", "serve-1-head"]
    assert generations.waves(a_plan, decision, nodes)[0][0] == store["name"]


def test_a_limit_may_leave_out_only_what_stays_as_it_is() -> None:
    a_plan, decision, nodes = launched(inputs.PD)
    prefill, head, headless = (next(one["host"] for one in a_plan["processes"] if one["name"] == name) for name in (
        "prefill-0-head", "decode-0-head", "decode-0-headless-1"
    ))  # fmt: skip
    for node in nodes.values():
        node["state"] = {"current": decision["number"], "generations": []}
    assert generations.beyond(a_plan, decision, nodes, [prefill]) == {}
    new = {**decision, "number": decision["number"] + 1}
    assert set(generations.beyond(a_plan, new, nodes, [prefill])) == {head, headless}
    assert generations.beyond(a_plan, new, nodes, [prefill, head, headless]) == {}
    # A rank of decode has died: its peer on the other host has to start with it.
    (rank,) = nodes[headless]["container_engine"]["containers"]
    rank["state"] = "exited"
    assert generations.beyond(a_plan, decision, nodes, [headless]) == {head: "has to start decode-0-head anew"}
    assert set(generations.beyond(a_plan, decision, nodes, [head])) == {headless}
    assert generations.beyond(a_plan, decision, nodes, [prefill]) == {head: "has to start decode-0-head anew"}
    assert generations.beyond(a_plan, decision, nodes, [head, headless]) == {}
    # One that has an instance of its own may come back alone.
    rank["state"] = "running"
    next(iter(nodes[prefill]["container_engine"]["containers"]))["state"] = "exited"
    assert generations.beyond(a_plan, decision, nodes, [prefill]) == {}
    assert generations.beyond(a_plan, decision, nodes, [head]) == {}


def checked(states: dict, a_plan: dict, launched: int | None = None) -> dict:
    """The state after the check stage has passed."""
    remembered = generations.passed(a_plan, states.values(), launched)
    assert remembered is not None
    return {**states, "a3-01": {**states["a3-01"], "good": {"generations": remembered}}}


def history() -> dict:
    """Generation 1 and 2 passed, 3 did not."""
    states = checked(after(plan("h1"), "sha256:1", NOTHING), plan("h1"))
    states = {**after(plan("h2"), "sha256:1", states)}
    states["a3-01"]["good"] = {"generations": [{"number": 1, "plan_hash": "h1"}]}
    states = checked(states, plan("h2"))
    good = states["a3-01"]["good"]
    states = after(plan("h3"), "sha256:1", states)
    states["a3-01"]["good"] = good
    return states


def test_a_generation_that_passed_is_remembered_once() -> None:
    states = checked(after(plan(), "sha256:1", NOTHING), plan())
    assert generations.good(states.values()) == [{"number": 1, "plan_hash": "h1"}]
    assert generations.passed(plan(), states.values(), None) is None
    assert generations.passed(plan(), states.values(), 1) is None


def test_a_check_of_another_plan_than_the_running_one_is_no_proof() -> None:
    states = after(plan("h1"), "sha256:1", NOTHING)
    assert generations.passed(plan("h2"), states.values(), None) is None


def test_a_number_that_started_again_is_another_generation() -> None:
    states = after(plan("new"), "sha256:1", NOTHING)
    states["a3-01"]["good"] = {"generations": [{"number": 1, "plan_hash": "old"}]}
    assert generations.good(states.values()) == []


@pytest.mark.parametrize(("wanted", "number"), [("good", 2), ("current", 3), ("1", 1)])
def test_an_earlier_generation_is_chosen(wanted: str, number: int) -> None:
    assert generations.choose(wanted, history()) == number


def test_good_is_another_one_than_what_runs() -> None:
    states = history()
    states = {host: {**state, "current": 2} for host, state in states.items()}
    assert generations.choose("good", states) == 1


@pytest.mark.parametrize("wanted", ["good", "current", "7", "last"])
def test_what_is_not_there_is_refused_with_what_is(wanted: str) -> None:
    with pytest.raises(AscentError, match="kept: none"):
        generations.choose(wanted, NOTHING)


def test_what_never_passed_is_undone_and_what_passed_before_is_not() -> None:
    assert generations.choose("undo", history()) == 2
    states = {host: {**state, "current": 2} for host, state in history().items()}
    with pytest.raises(AscentError, match=r"generation 2 passed its checks.*rollback\.yml"):
        generations.choose("undo", states)


def test_a_rollback_of_a_rollback_has_nothing_to_go_to() -> None:
    states = after(plan("h1"), "sha256:1", NOTHING)
    states["a3-01"]["good"] = {"generations": [{"number": 1, "plan_hash": "h1"}]}
    with pytest.raises(AscentError, match="rollback_to"):
        generations.choose("good", states)
