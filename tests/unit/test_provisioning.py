"""Image references, and the verdicts on driver, firmware, weights and image of a node."""

from __future__ import annotations

import pytest

from ascent_controller import provisioning

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("reference", "pinned"),
    [
        ("quay.io/ascend/vllm-ascend:v0.21.0rc1-a3", f"quay.io/ascend/vllm-ascend@{DIGEST}"),
        ("192.0.2.1:5000/ascend/vllm-ascend", f"192.0.2.1:5000/ascend/vllm-ascend@{DIGEST}"),
        ("192.0.2.1:5000/ascend/vllm-ascend:v1", f"192.0.2.1:5000/ascend/vllm-ascend@{DIGEST}"),
        ("debian:12", f"debian@{DIGEST}"),
        (f"quay.io/x/y:v1@{DIGEST}", f"quay.io/x/y@{DIGEST}"),
    ],
)
def test_a_reference_is_pinned_whatever_tag_or_port_it_has(reference: str, pinned: str) -> None:
    assert provisioning.at_digest(reference, DIGEST) == pinned
    assert provisioning.digest_of(pinned) == DIGEST


def test_the_digest_is_taken_from_the_repository_that_was_asked_for() -> None:
    image = {"RepoDigests": ["m.example/quay.io/a/b@sha256:mirror", "quay.io/a/b@sha256:origin"]}
    assert provisioning.resolved_digest(image, "quay.io/a/b:v1") == "sha256:origin"
    assert provisioning.resolved_digest(image, "m.example/quay.io/a/b:v1") == "sha256:mirror"
    assert provisioning.resolved_digest(image, "quay.io/other:v1") == ""
    assert (
        provisioning.resolved_digest({"RepoDigests": ["debian@sha256:d"]}, "docker.io/library/debian:12") == "sha256:d"
    )
    assert provisioning.resolved_digest({}, "debian") == ""


@pytest.mark.parametrize(
    ("architecture", "machine", "ids"),
    [("amd64", "x86_64", []), ("arm64", "aarch64", []), ("amd64", "aarch64", ["B07"]), ("arm64", "x86_64", ["B07"])],
)
def test_an_image_of_another_architecture_is_found(architecture: str, machine: str, ids: list[str]) -> None:
    told = provisioning.image_findings({"Architecture": architecture}, "a:1", machine, "n1")
    assert [item["id"] for item in told] == ids
    assert all(item["host"] == "n1" and machine in item["evidence"] for item in told)


PLAN = {
    "processes": [
        {"host": "a2-01", "container": {"image": "e:v1"}},
        {"host": "a3-01", "container": {"image": "e:v1-a3"}},
        {"host": "a3-01", "container": {"image": "router:v1"}},
        {"host": "a3-02", "container": {"image": "e:v1-a3"}},
    ]
}


def test_a_host_that_runs_an_image_looks_it_up() -> None:
    hosts = ["a2-01", "a3-01", "a3-02"]
    resolvers = provisioning.image_resolvers(PLAN, hosts)
    assert resolvers == {"e:v1": "a2-01", "e:v1-a3": "a3-01", "router:v1": "a3-01"}
    assert provisioning.image_resolvers(PLAN, hosts[2:])["e:v1-a3"] == "a3-02"
    mine = ["e:v1-a3", "router:v1", f"pinned@{DIGEST}"]
    assert provisioning.due(mine, {}, resolvers, "a3-01", "a2-01") == ["e:v1-a3", "router:v1"]
    assert provisioning.due(mine, {}, resolvers, "a3-02", "a2-01") == []
    assert provisioning.due(mine, {}, {}, "a2-01", "a2-01") == ["e:v1-a3", "router:v1"]
    locked = {"e:v1-a3": {"digest": DIGEST}, "router:v1": {"digest": None}}
    assert provisioning.due(mine, locked, resolvers, "a3-01", "a2-01") == ["router:v1"]
    assert provisioning.due(mine, locked, resolvers, "a3-01", "a2-01", update=True) == ["e:v1-a3", "router:v1"]


def test_what_one_host_found_holds_for_all_and_goes_over_the_lock() -> None:
    locked = {"e:v1": {"digest": "sha256:old"}, "router:v1": {"digest": "sha256:r"}}
    locks = provisioning.image_locks([f"p:v1@{DIGEST}", "new:v1"], locked, [None, {}, {"e:v1": "sha256:new"}])
    assert {name: one["name"] for name, one in locks.items()} == {
        f"p:v1@{DIGEST}": f"p@{DIGEST}",
        "new:v1": "new:v1",
        "e:v1": "e@sha256:new",
        "router:v1": "router@sha256:r",
    }
    assert provisioning.image_digests(locks)["new:v1"] is None


def test_results_of_a_loop_are_read_one_by_one() -> None:
    results = [
        {"item": "q.io/e:v1", "image": {"RepoDigests": ["q.io/e@sha256:1"], "Architecture": "arm64"}},
        {"item": "q.io/r:v1", "image": {"RepoDigests": [], "Architecture": "amd64"}},
        {"item": "q.io/skipped:v1", "skipped": True},
    ]
    assert provisioning.resolved_digests(results) == {"q.io/e:v1": "sha256:1"}
    told = provisioning.pulled_findings(results, "aarch64", "n1")
    assert [(item["id"], "q.io/r:v1" in item["summary"]) for item in told] == [("B07", True)]


def npu(**changes: object) -> dict:
    facts = {
        "tool": "/usr/local/bin/npu-smi",
        "info": {"devices": [{}]},
        "error": None,
        "driver": {"version": "25.2.0", "firmware_range": ["7.0.0", "8.9.9"]},
        "firmware": {"version": "7.7.0.3.220", "driver_prefixes": ["25.2"]},
    }
    return {**facts, **changes}


def test_a_good_node_has_no_findings() -> None:
    assert provisioning.driver_findings(npu(), "n1", driver_minimum="25.0.rc1", firmware_minimum="7.1") == []


@pytest.mark.parametrize(
    ("facts", "minimums", "expected"),
    [
        (npu(driver=None), {}, [("A01", "no NPU driver is installed")]),
        (npu(firmware=None), {}, [("A01", "no NPU firmware is installed")]),
        (npu(tool=None, info=None), {}, [("A01", "npu-smi is not there")]),
        (npu(info=None, error="ret is -8005"), {}, [("A01", "npu-smi does not list the devices")]),
        (npu(), {"driver_minimum": "26.0"}, [("A08", "NPU driver 25.2.0 is older than 26.0")]),
        (npu(), {"firmware_minimum": "7.8"}, [("A07", "NPU firmware 7.7.0.3.220 is older than 7.8")]),
        (
            npu(firmware={"version": "9.0.0", "driver_prefixes": None}),
            {},
            [("A07", "NPU firmware 9.0.0 and driver 25.2.0 do not fit")],
        ),
    ],
)
def test_what_is_wrong_with_the_driver_is_named(facts: dict, minimums: dict, expected: list) -> None:
    told = provisioning.driver_findings(facts, "n1", **minimums)
    assert [(item["id"], item["summary"]) for item in told] == expected
    assert all(item["fix"] and item["severity"] == "error" for item in told)


def test_a_bare_host_names_all_that_is_absent() -> None:
    told = provisioning.driver_findings(None, "n1")
    assert [item["summary"] for item in told] == [
        "no NPU driver is installed",
        "no NPU firmware is installed",
        "npu-smi is not there",
    ]


WHOLE = {
    "directory": "/m",
    "present": True,
    "complete": True,
    "missing": [],
    "pointers": [],
    "truncated": [],
    "altered": [],
    "bytes": 1,
}


def test_complete_weights_or_none_asked_for_have_no_findings() -> None:
    assert provisioning.weights_findings(WHOLE, "n1", model="a/b") == []
    assert provisioning.weights_findings(None, "n1", model="a/b") == []


def test_absent_weights_say_how_to_fetch_them() -> None:
    facts = {**WHOLE, "present": False, "complete": False}
    (told,) = provisioning.weights_findings(facts, "n1", model="a/b", source="modelscope")
    assert told["id"] == "D17"
    assert "modelscope download --model a/b --local_dir /m" in told["fix"]
    assert "--tags provision -e weights_fetch=true" in told["fix"]
    (tried,) = provisioning.weights_findings(facts, "n1", model="a/b", source="modelscope", fetch=True)
    assert "weights_fetch" not in tried["fix"], "that was done"
    (local,) = provisioning.weights_findings(facts, "n1", model="a/b", source="local")
    assert "weights_archive" in local["fix"]


def test_hugging_face_weights_are_fetched_into_the_cache_by_their_commit() -> None:
    place = "/root/.cache/huggingface/hub/models--a--b"
    for directory, options in ((place, ""), (f"{place}/snapshots/{'0' * 40}", f" --revision {'0' * 40}")):
        facts = {**WHOLE, "directory": directory, "present": False, "complete": False}
        (told,) = provisioning.weights_findings(facts, "n1", model="a/b", source="huggingface")
        assert f"hf download a/b{options} --cache-dir /root/.cache/huggingface/hub;" in told["fix"]


def test_every_kind_of_broken_shard_is_told_with_its_files() -> None:
    missing = [f"model-{number:05d}-of-00020.safetensors" for number in range(1, 11)]
    broken = {"pointers": ["p.safetensors"], "truncated": ["t.safetensors"], "altered": ["config.json"]}
    told = provisioning.weights_findings({**WHOLE, "missing": missing, **broken}, "n1", model="a/b")
    assert [item["id"] for item in told] == ["D17", "D18", "D19", "D34"]
    assert told[0]["summary"] == "10 files of a/b are missing in /m"
    assert told[0]["evidence"].endswith("and 2 more")
    assert "p.safetensors" in told[1]["evidence"]
