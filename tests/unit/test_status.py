"""What `playbooks/status.yml` says of a launched cluster."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest

from ascent import containers, generations, metrics, status

IMAGE = "quay.io/ascend/vllm-ascend:v1"
PLAN = {
    "cluster": "c",
    "recipe": "r",
    "hosts": {"n1": {}, "n2": {}},
    "instances": [{"name": "serve-0", "processes": ["serve-0-head", "serve-0-headless-1"]}],
    "processes": [
        {
            "name": name,
            "host": host,
            "kind": kind,
            "instance": "serve-0",
            "container": {
                "name": f"ascent-c-{name}",
                "image": IMAGE,
                "script": f"/etc/ascent/{name}.sh",
                "command": ["/bin/bash", f"/etc/ascent/{name}.sh"],
                "network": "host",
                "ipc": None,
                "privileged": False,
                "restart_policy": "unless-stopped",
                "devices": ["/dev/davinci0", "/dev/davinci_manager"],
                "mounts": [
                    {"source": "/usr/local/dcmi/", "target": "/usr/local/dcmi/", "read_only": False},
                    {"source": "/etc/hccn.conf", "target": "/etc/hccn.conf", "read_only": True},
                ],
                "capabilities": ["IPC_LOCK"],
                "memory": "2g",
            },
            "ports": [{"name": "api", "first": 8000, "count": 1}] if kind == "head" else [],
        }
        for name, host, kind in (("serve-0-head", "n1", "head"), ("serve-0-headless-1", "n2", "headless"))
    ],
}
FILES = {"n1": {"serve-0-head.sh": "aa"}, "n2": {"serve-0-headless-1.sh": "bb"}}
UP = [
    {
        "name": "serve-0",
        "host": "n1",
        "url": "http://192.0.2.1:8000/health",
        "ok": True,
        "status": 200,
        "error": None,
        "counters": {"requests": 7, "generation_tokens": 70},
    }
]


IMAGE_ENV = ["PATH=/usr/bin", "OMP_NUM_THREADS=1"]


def inspected(name: str) -> dict[str, Any]:
    """What Docker 20.10 tells of a container that the launch has just made."""
    mounts = [
        ("bind", f"/etc/ascent/c/generations/1/{name}.sh", f"/etc/ascent/{name}.sh", False),
        ("bind", "/etc/hccn.conf", "/etc/hccn.conf", False),
        ("bind", "/usr/local/dcmi", "/usr/local/dcmi", True),
        ("volume", "/var/lib/docker/volumes/x/_data", "/data", True),
    ]
    devices = ("/dev/davinci_manager", "/dev/davinci0")
    return {
        "Config": {"Cmd": ["/bin/bash", f"/etc/ascent/{name}.sh"], "Entrypoint": None, "Env": list(IMAGE_ENV)},
        "HostConfig": {
            "Privileged": False,
            "NetworkMode": "host",
            "IpcMode": "private",
            "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
            "Devices": [{"PathOnHost": one, "PathInContainer": one, "CgroupPermissions": "rwm"} for one in devices],
            "CapAdd": ["CAP_IPC_LOCK"],
            "Memory": 2147483648,
            "CpusetCpus": "",
            "CpusetMems": "",
        },
        "Mounts": [{"Type": kind, "Source": a, "Destination": b, "RW": rw} for kind, a, b, rw in mounts],
    }


IMAGE_ENTRY = {"Id": "sha256:i", "Config": {"Env": IMAGE_ENV, "Entrypoint": None}}


def node(name: str, digest: str) -> dict[str, Any]:
    """A node on which one process has run unchanged since generation 1; 2 is current."""
    return {
        "system": {"time": 1767229200.0, "booted": 1767225500.0, "boot_id": "b2"},
        "container_engine": {
            "running": True,
            "containers": [
                {
                    "name": f"ascent-c-{name}",
                    "state": "running",
                    "exit_code": 0,
                    "restarts": 0,
                    "image": "quay.io/ascend/vllm-ascend@sha256:1",
                    "labels": {"ascent.process": name, "ascent.generation": "1", "ascent.definition": "d"},
                    "started_at": "2026-01-01T00:00:00.5Z",
                    "made": containers.made(inspected(name), IMAGE_ENTRY),
                }
            ],
        },
        "state": {
            "current": 2,
            "generations": [
                {"number": 2, "plan_hash": "h", "boot_id": "b2", "processes": {name: {"definition": "d", "since": 1}}}
            ],
            "files": {"2/plan.json": "pp", f"2/{name}.sh": digest, f"1/{name}.sh": digest},
            "plan_hash": "h",
            "loose": [],
        },
    }


@pytest.fixture
def nodes() -> dict[str, Any]:
    return {"n1": node("serve-0-head", "aa"), "n2": node("serve-0-headless-1", "bb")}


def judge(nodes: dict[str, Any], endpoints: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return status.judge(PLAN, nodes, UP if endpoints is None else endpoints, FILES, {IMAGE: "sha256:1"})


def test_a_sound_cluster_is_a_table_without_findings(nodes: dict[str, Any]) -> None:
    told = judge(nodes)
    assert told["findings"] == []
    head, headless = told["table"]["rows"]
    assert head == ["serve-0-head", "n1", "generation 1", "running", "ok", "1 h 0 min", 0, 7, 70]
    assert headless[3:6] == ["running", "-", "1 h 0 min"]


def change(nodes: dict[str, Any], what: str) -> None:
    state, container = nodes["n2"]["state"], nodes["n2"]["container_engine"]["containers"][0]
    if what == "edited":
        state["files"]["1/serve-0-headless-1.sh"] = "other"
    elif what == "gone":
        state["files"]["1/serve-0-headless-1.sh"] = None
    elif what == "added":
        state["files"]["2/mine.sh"] = "cc"
    elif what == "image":
        container["image"] = "somebody/else:latest"
    elif what == "replaced":
        container["labels"]["ascent.definition"] = "other"
    elif what == "left over":
        nodes["n2"]["container_engine"]["containers"].append(
            {**copy.deepcopy(container), "name": "old", "labels": {"ascent.process": "decode-9"}}
        )
    elif what == "plan edited":
        state["plan_hash"] = "other"
    elif what == "plan gone":
        state["plan_hash"] = None
        del state["files"]["2/plan.json"]
    elif what == "loose":
        state["loose"] = ["1/serve-0-headless-1.sh"]


@pytest.mark.parametrize(
    ("what", "id", "words"),
    [
        ("edited", "drift-file", "serve-0-headless-1.sh on n2 was edited by hand"),
        ("gone", "drift-file", "serve-0-headless-1.sh on n2 is gone"),
        ("added", "drift-file", "mine.sh on n2 is none of ours"),
        ("image", "drift-image", "runs another image"),
        ("replaced", "drift-container", "does not run what its generation says"),
        ("left over", "drift-container", "container old on n2 belongs to no process"),
        ("plan edited", "drift-file", "plan.json on n2 was edited by hand"),
        ("plan gone", "drift-file", "plan.json on n2 is gone"),
        ("loose", "drift-file", "others than root may write 1 of the generation's files on n2"),
    ],
)
def test_what_was_changed_by_hand_is_named(nodes: dict[str, Any], what: str, id: str, words: str) -> None:
    change(nodes, what)
    told = judge(nodes)
    (found,) = told["findings"]
    assert (found["id"], found["severity"], found["host"], found["stage"]) == (id, "warning", "n2", "status")
    assert words in found["summary"]
    assert "--tags launch" in found["fix"]
    assert told["metrics"]["status"]["drift"] == 1


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        (
            "Config",
            {"Cmd": ["sleep", "infinity"]},
            "command sleep infinity, not /bin/bash /etc/ascent/",
        ),
        ("Config", {"Env": [*IMAGE_ENV, "HF_TOKEN=secret"]}, "variable HF_TOKEN added"),
        ("Config", {"Entrypoint": ["/bin/sh", "-c"]}, "an entrypoint of its own: /bin/sh -c"),
        ("HostConfig", {"Privileged": True}, "privileged"),
        ("HostConfig", {"NetworkMode": "default"}, "network bridge, not host"),
        ("HostConfig", {"IpcMode": "host"}, "IPC host, not its own"),
        ("HostConfig", {"RestartPolicy": {"Name": ""}}, "restart policy no, not unless-stopped"),
        ("HostConfig", {"Memory": 1073741824}, "memory 1073741824, not 2147483648"),
        ("HostConfig", {"CpusetCpus": "0-3"}, "cores 0-3, not unlimited"),
        ("HostConfig", {"Devices": None}, "device /dev/davinci0 missing; device /dev/davinci_manager missing"),
        ("HostConfig", {"CapAdd": ["SYS_ADMIN", "IPC_LOCK"]}, "capability SYS_ADMIN added"),
        (
            "Mounts",
            {"Type": "bind", "Source": "/tmp/mine.sh", "Destination": "/etc/ascent/serve-0-headless-1.sh", "RW": True},
            "mount /tmp/mine.sh:/etc/ascent/serve-0-headless-1.sh added; "
            "mount /etc/ascent/c/generations/1/serve-0-headless-1.sh:/etc/ascent/serve-0-headless-1.sh:ro missing",
        ),
    ],
)
def test_a_container_with_our_labels_that_was_made_otherwise_is_told(
    nodes: dict[str, Any], part: str, changes: dict[str, Any], words: str
) -> None:
    told = inspected("serve-0-headless-1")
    if part == "Mounts":
        told["Mounts"][0] = changes
    else:
        told[part].update(changes)
    nodes["n2"]["container_engine"]["containers"][0]["made"] = containers.made(told, IMAGE_ENTRY)
    (found,) = judge(nodes)["findings"]
    assert (found["id"], found["host"]) == ("drift-container", "n2")
    assert found["evidence"].startswith(f"container ascent-c-serve-0-headless-1: {words}")
    assert "secret" not in str(found)
    assert found["fix"].startswith("docker rm --force ascent-c-serve-0-headless-1 on n2, then ansible-playbook")


def _privileged(one: dict[str, Any]) -> None:
    one["made"]["privileged"] = True


def _of_another_image(one: dict[str, Any]) -> None:
    one["image"] = "by-hand:1"


def _with_another_command(one: dict[str, Any]) -> None:
    one["made"]["command"] = ["sleep", "infinity"]


@pytest.mark.parametrize("change", [_privileged, _of_another_image, _with_another_command])
def test_a_container_in_the_place_of_ours_ends_its_instance_at_the_next_launch(
    nodes: dict[str, Any], change: Any
) -> None:
    decision = {"number": 2, "processes": {one["name"]: {"definition": "d"} for one in PLAN["processes"]}}
    digests = {IMAGE: "sha256:1"}
    assert containers.replaced(PLAN, decision, nodes, digests) == []
    (one,) = nodes["n2"]["container_engine"]["containers"]
    change(one)
    edited = containers.replaced(PLAN, decision, nodes, digests)
    assert edited == ["serve-0-headless-1"]
    both = [process["name"] for process in PLAN["processes"]]
    assert generations.to_stop(PLAN, decision, nodes) == [], "its labels say that it is right"
    assert generations.to_stop(PLAN, decision, nodes, edited) == both
    # One that is to be made anew in any case is as it was made.
    one["labels"]["ascent.definition"] = "older"
    assert containers.replaced(PLAN, decision, nodes, digests) == []


def test_what_the_engine_does_not_tell_is_no_drift(nodes: dict[str, Any]) -> None:
    """An image that is gone, and facts that an older release has read."""
    made = containers.made(inspected("serve-0-head"), None)
    assert (made["env"], made["entrypoint"]) == (None, None)
    nodes["n1"]["container_engine"]["containers"][0]["made"] = made
    del nodes["n2"]["container_engine"]["containers"][0]["made"]
    del nodes["n2"]["state"]["plan_hash"], nodes["n2"]["state"]["loose"]
    assert judge(nodes)["findings"] == []


def test_only_what_was_changed_by_hand_counts_as_drift(nodes: dict[str, Any]) -> None:
    nodes["n1"]["state"]["generations"][0]["boot_id"] = "b1"
    told = judge(nodes)
    assert len(told["findings"]) == 1
    assert told["metrics"]["status"]["drift"] == 0


def test_the_examples_hold() -> None:
    assert doctest.testmod(containers).failed == 0


def test_what_does_not_serve_is_an_error(nodes: dict[str, Any]) -> None:
    nodes["n2"]["container_engine"]["containers"][0]["state"] = "exited"
    down = [{**UP[0], "ok": False, "status": None, "error": "connection refused", "counters": None}]
    told = judge(nodes, down)
    assert {one["host"] for one in told["findings"] if one["severity"] == "error"} == {"n1", "n2"}
    assert [row[3:5] for row in told["table"]["rows"]] == [["running", "no answer"], ["exited", "-"]]


def test_a_node_that_can_not_be_read_is_a_row_too(nodes: dict[str, Any]) -> None:
    told = judge({**nodes, "n2": None})
    assert told["table"]["rows"][1][3] == "unknown"
    assert [one["id"] for one in told["findings"]] == ["host-unreadable"]


def test_counters_of_all_ranks_are_added() -> None:
    page = (
        '# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total{engine="0",model_name="a} b"} 10.0\n'
        'vllm:generation_tokens_total{engine="1",model_name="a} b"} 5\nvllm:generation_tokens_created 1.7e9\n'
        "vllm:request_success_total NaN\nbroken line {\n"
    )
    assert metrics.totals(page, metrics.COUNTERS.values()) == {"vllm:generation_tokens_total": 15.0}


@pytest.fixture
def routed(nodes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A plan whose head stands behind a router on the same host, and the nodes on which both listen everywhere."""
    plan = copy.deepcopy(PLAN)
    router = {"name": "router", "host": "n1", "kind": "router", "role": "router", "instance": None}
    port = {"name": "api", "first": 9000, "count": 1}
    plan["processes"].append({**copy.deepcopy(plan["processes"][0]), **router, "ports": [port]})
    plan["processes"][0]["ports"].append({"name": "kv", "first": 20000, "count": 4})
    plan["endpoint"] = {"url": "http://192.0.2.1:9000", "process": "router"}
    nodes["n1"]["network"] = {"everywhere": [22, 8000, 9000, 20001, 20002]}
    return plan, nodes


def open_ports(plan: dict[str, Any], nodes: dict[str, Any]) -> list[dict[str, Any]]:
    told = status.judge(plan, nodes, UP, FILES, {IMAGE: "sha256:1"})["findings"]
    return [item for item in told if item["id"] == "ports-open"]


def test_ports_that_everyone_reaches_are_listed_but_not_the_one_that_is_meant(routed: Any) -> None:
    plan, nodes = routed
    (told,) = open_ports(plan, nodes)
    assert (told["severity"], told["host"]) == ("warning", "n1")
    assert told["evidence"] == "8000 (api of serve-0-head), 20001-20002 (kv of serve-0-head)"


def test_a_firewall_stands_before_them(routed: Any) -> None:
    plan, nodes = routed
    nodes["n1"]["system"]["filters"] = ["ufw"]
    assert open_ports(plan, nodes) == []


def test_ports_of_engines_among_themselves_are_no_warning(routed: Any) -> None:
    plan, nodes = routed
    nodes["n1"]["network"]["everywhere"] = [9000, 20001]
    assert [item["severity"] for item in open_ports(plan, nodes)] == ["info"]


def test_without_a_router_the_api_is_meant_to_be_reached(nodes: dict[str, Any]) -> None:
    nodes["n1"]["network"] = {"everywhere": [8000]}
    assert open_ports({**PLAN, "endpoint": None}, nodes) == []


def test_a_host_that_was_started_again_says_what_came_back(nodes: dict[str, Any]) -> None:
    nodes["n1"]["state"]["generations"][0]["boot_id"] = "b1"
    (told,) = judge(nodes)["findings"]
    assert (told["id"], told["severity"], told["host"]) == ("host-started-again", "info", "n1")
    assert "1 of its 1 processes came back" in told["summary"]
    assert told["evidence"].startswith("it started 1 h 1 min ago, boot b2; generation 2 was written in boot b1")
    assert told["fix"] == "Nothing to do."
    nodes["n1"]["container_engine"]["containers"][0]["state"] = "exited"
    told = next(one for one in judge(nodes)["findings"] if one["id"] == "host-started-again")
    assert "0 of its 1 processes" in told["summary"]
    assert "--tags launch,check" in told["fix"]
    # A generation of a release that kept no boot says nothing.
    del nodes["n1"]["state"]["generations"][0]["boot_id"]
    assert "host-started-again" not in {one["id"] for one in judge(nodes)["findings"]}
