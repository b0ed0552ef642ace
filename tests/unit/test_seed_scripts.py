"""Rendered scripts, proxy and containers against the seeds: equal but for the classes of docs/deviations.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascent_controller import planning, render
from tests.unit import seed_scripts as scripts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

EXPECTATIONS = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((HERE / "seed_expectations").glob("*.yml"))
}
ROUTER_DIRECTORY = "/vllm-workspace/vllm-ascend/examples/disaggregated_prefill_v1/"
PROXIES = {"ftp_proxy", "https_proxy", "http_proxy", "all_proxy"}

# A difference is (part, name, seed's value, rendered value); None means that this side doesn't have it at all, and a
# bare flag counts as True. A class says which differences it covers, given the process of the plan.
CLASSES = {
    "helper-variables": lambda d, p: (
        d[0] == "env" and d[1] in ("IP_ADDRESS", "MASTER_IP_ADDRESS", "NETWORK_CARD_NAME") and d[3] is None
    ),
    "host-ip-variable": lambda d, p: d[0] == "env" and d[1] == "VLLM_HOST_IP" and d[2] is None and d[3] == p["node_ip"],
    "model-source-variable": lambda d, p: d == ("env", "VLLM_USE_MODELSCOPE", None, "true"),
    "proxies-unset": lambda d, p: d[0] == "unset" and d[1].lower() in PROXIES and d[2] is None,
    "environment-scripts": lambda d, p: d[0] == "source" and d[1].endswith("/set_env.sh") and d[2] is None,
    "device-list": lambda d, p: (
        d[0] == "env"
        and d[1] == "ASCEND_RT_VISIBLE_DEVICES"
        and d[2] is None
        and d[3] == ",".join(map(str, p["devices"]))
    ),
    "headless-api-options": lambda d, p: (
        p["kind"] == "headless" and d[0] == "flag" and d[1] in ("--host", "--port") and d[3] is None
    ),
    "start-rank-explicit": lambda d, p: p["kind"] == "head" and d == ("flag", "--data-parallel-start-rank", None, 0.0),
    "defaults-explicit": lambda d, p: (
        d
        in (
            ("flag", "--data-parallel-size", None, 1.0),
            ("flag", "--host", None, "0.0.0.0"),
            *([("flag", "--port", None, 8000.0)] if p["kind"] == "head" else []),
        )
    ),
    "ray-variables": lambda d, p: (
        d[0] == "env"
        and p["kind"] in ("ray-head", "ray-worker", "head")
        and d[1] in ("HCCL_SOCKET_IFNAME", "RAY_ADDRESS")
        and d[2] is None
    ),
    "ray-options": lambda d, p: (
        p["kind"].startswith("ray-")
        and d[0] == "flag"
        and d[2] is None
        and d[1]
        in (
            "--port",
            "--include-dashboard",
            "--node-ip-address",
            "--node-manager-port",
            "--object-manager-port",
            "--min-worker-port",
            "--max-worker-port",
            "--resources",
            "--disable-usage-stats",
            "--block",
        )
    ),
    "ray-swept": lambda d, p: d[:2] == ("sweep", "/tmp/ray") and p["kind"].startswith("ray-"),
    "ray-proven": lambda d, p: d[:2] == ("wait", "ray status") and p["kind"] == "head",
    "client-address": lambda d, p: (
        p["kind"] == "job"
        and (
            (d[0] == "flag" and d[1] == "--host" and d[2] in (None, "0.0.0.0") and d[3] == p["node_ip"])
            or (d[0] == "flag" and d[1] == "--port" and d[2] is None and d[3] == 8000.0)
            or (d[:2] == ("model_args", "base_url") and d[3] == d[2].replace("127.0.0.1", p["node_ip"]))
        )
    ),
    "client-model": lambda d, p: (
        p["kind"] == "job"
        and (
            (d[0] == "flag" and d[1] == "--served-model-name" and d[2] is None and d[3].startswith("qwen3"))
            or (d[0] == "flag" and d[1] == "--model" and d[2] == "qwen3" and d[3] == "vllm-ascend/Qwen3-235B-A22B-w8a8")
            or d == ("flag", "--tokenizer", "vllm-ascend/Qwen3-235B-A22B-w8a8", None)
            or d == ("model_args", "tokenizer", None, "Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp")
        )
    ),
    "preload-guarded": lambda d, p: d == ("guarded", "LD_PRELOAD", None, True),
    "host-tuning": lambda d, p: d[0] == "host-command" and d[3] is None,
    "router-api-only": lambda d, p: (
        p["kind"] == "router"
        and d[0] == "flag"
        and (
            (d[1] == "--decoder-hosts" and d[2] == ["192.0.2.12", "192.0.2.13"] and d[3] == "192.0.2.12")
            or (d[1] == "--decoder-ports" and d[2] == [30050.0, 30050.0] and d[3] == 30050.0)
        )
    ),
    "router-path": lambda d, p: (
        p["kind"] == "router"
        and d[0] == "program"
        and d[3] in ([name, ROUTER_DIRECTORY + d[2][1]] for name in (d[2][0], "python3"))
    ),
    "router-address": lambda d, p: p["kind"] == "router" and d == ("flag", "--host", None, p["node_ip"]),
    "container-name": lambda d, p: d[:2] == ("container", "name") and d[3] == f"ascent-seeds-{p['name']}",
    "container-command": lambda d, p: (
        (d[:2] == ("container", "command") and d[3] == ["/bin/bash", f"/etc/ascent/{p['name']}.sh"])
        or (d[0] == "mount" and d[1].endswith(f"/{p['name']}.sh") and d[3] == "ro")
        or d == ("option", "-it", True, None)
    ),
    "container-devices": lambda d, p: (
        d[0] == "device" and re.fullmatch(r"davinci\d+", d[1]) and int(d[1][7:]) in p["devices"] and d[2] is None
    ),
    "container-image": lambda d, p: d[:2] == ("container", "image") and d[3].endswith("-a3"),
    "container-kv-mounts": lambda d, p: d == ("mount", "/etc/hccn.conf", None, "ro"),
    "container-tools": lambda d, p: d == ("mount", "/usr/local/Ascend/driver/tools/hccn_tool", None, "rw"),
    "container-cache": lambda d, p: d == ("mount", "/root/.cache", None, "rw"),
}


def rendered(stem: str) -> tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, Any]]:
    wanted = EXPECTATIONS[stem]
    hosts = [
        {"name": f"a3-0{number}", "node_ip": f"192.0.2.1{number}", "nic": f"enp{number}s0", "arch": "aarch64"}
        for number in range(1, len(wanted["hosts"]) + 1)
    ]
    plan, findings = planning.prepare(wanted["recipe"], hosts, cluster="seeds")
    assert plan is not None, findings
    return wanted, render.files(plan), plan


def resolve(value: Any, wanted: dict[str, Any], plan: dict[str, Any], host: str) -> Any:
    """The seeds' placeholders as values of the plan."""
    if isinstance(value, list):
        return [resolve(item, wanted, plan, host) for item in value]
    if value == "LOCAL":
        return plan["hosts"][host]["node_ip"]
    if value == "NIC":
        return plan["hosts"][host]["nic"]
    if isinstance(value, str) and value.split(":")[0] in wanted["hosts"]:
        name, *port = value.split(":")
        return ":".join([plan["hosts"][wanted["hosts"][name]]["node_ip"], *port])
    return value


def differences(part: str, seed: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, str, Any, Any]]:
    return [
        (part, name, seed.get(name), ours.get(name))
        for name in sorted({*seed, *ours})
        if seed.get(name) != ours.get(name)
    ]


def script_differences(stem: str, name: str) -> tuple[list[tuple[str, str, Any, Any]], dict[str, Any]]:
    wanted, files, plan = rendered(stem)
    expected = {**wanted["processes"], **wanted.get("jobs", {})}[name]
    process = next(one for one in [*plan["processes"], *plan["jobs"]] if one["name"] == name)
    host = wanted["hosts"][expected["host"]]
    assert process["host"] == host
    ours = scripts.read_script(files[host][f"{name}.sh"])

    def bare(flags: dict[str, Any]) -> dict[str, Any]:
        return {flag: True if value is None else value for flag, value in flags.items()}

    seed_flags = {
        flag: scripts.normal(resolve(value, wanted, plan, host))
        for flag, value in expected["flags"].items()
        if flag not in expected.get("absent", [])
    }
    seed_env = {key: scripts.normal(resolve(value, wanted, plan, host)) for key, value in expected["env"].items()}
    our_env = {key: scripts.normal(value) for key, value in ours["env"].items()}
    pairs = [
        dict(pair.split("=", 1) for pair in flags.pop("--model_args", "").split(",") if pair)
        for flags in (seed_flags, ours["flags"])
    ]
    found = differences("model_args", *pairs)
    found += differences("flag", bare(seed_flags), bare(ours["flags"]))
    found += differences("env", seed_env, our_env)
    found += differences("unset", dict.fromkeys(expected["unset"], True), dict.fromkeys(ours["unset"], True))
    found += differences("source", {}, dict.fromkeys(ours["source"], True))
    found += differences("guarded", {}, dict.fromkeys(ours["guarded"], True))
    found += differences("wait", {}, dict.fromkeys(ours["waits"], True))
    found += differences("sweep", {}, dict.fromkeys(ours["sweeps"], True))
    found += [("host-command", text, True, None) for text in expected.get("host_commands", [])]
    if expected["program"] != ours["program"]:
        found.append(("program", "program", expected["program"], ours["program"]))
    return found, {**process, "node_ip": plan["hosts"][host]["node_ip"]}


def container_differences(stem: str, name: str) -> tuple[list[tuple[str, str, Any, Any]], dict[str, Any]]:
    wanted, files, plan = rendered(stem)
    seed = wanted["containers"][name]
    process = next(one for one in [*plan["processes"], *plan["jobs"]] if one["name"] == name)
    command = next(
        words
        for words in scripts.words_of(files[process["host"]][f"{name}.docker.sh"])
        if words[:2] == ["docker", "run"]
    )
    ours: dict[str, Any] = {"devices": [], "mounts": {}, "options": {}}
    words = iter(command[2:])
    for word in words:
        if word == "--device":
            ours["devices"].append(next(words).removeprefix("/dev/"))
        elif word == "-v":
            source, target, *mode = next(words).split(":")
            assert source == target or source.startswith("$here/")
            ours["mounts"][target] = mode[0] if mode else "rw"
        elif word == "-p":
            ours["options"]["-p"] = next(words)
        elif word == "--name":
            ours["name"] = next(words)
        elif word.startswith("-"):
            flag, _, value = word.partition("=")
            ours["options"][flag] = value or True
        else:
            ours["image"], ours["command"] = word, list(words)
    found = differences("device", dict.fromkeys(seed["devices"], True), dict.fromkeys(ours["devices"], True))
    found += differences("mount", dict.fromkeys(seed["mounts"], "rw"), ours["mounts"])
    found += differences("option", seed["options"], ours["options"])
    keys = ("name", "image", "command")
    found += differences("container", {key: seed[key] for key in keys}, {key: ours[key] for key in keys})
    return found, {**process, "node_ip": plan["hosts"][process["host"]]["node_ip"]}


def classes_of(found: list[tuple[str, str, Any, Any]], process: dict[str, Any]) -> dict[tuple, list[str]]:
    return {
        (part, name, str(seed), str(ours)): [
            label for label, covers in CLASSES.items() if covers((part, name, seed, ours), process)
        ]
        for part, name, seed, ours in found
    }


SCRIPTS = [
    (stem, name) for stem, wanted in EXPECTATIONS.items() for name in [*wanted["processes"], *wanted.get("jobs", {})]
]
CONTAINERS = [(stem, name) for stem, wanted in EXPECTATIONS.items() for name in wanted.get("containers", {})]


@pytest.mark.parametrize(("stem", "name"), SCRIPTS)
def test_script_sets_what_the_seed_sets(stem, name):
    labels = classes_of(*script_differences(stem, name))
    assert {difference: found for difference, found in labels.items() if len(found) != 1} == {}


@pytest.mark.parametrize(("stem", "name"), CONTAINERS)
def test_container_is_run_as_the_seed_runs_it(stem, name):
    labels = classes_of(*container_differences(stem, name))
    assert {difference: found for difference, found in labels.items() if len(found) != 1} == {}


@pytest.mark.parametrize("stem", EXPECTATIONS)
def test_every_process_of_the_plan_is_in_the_seed(stem):
    wanted, _, plan = rendered(stem)
    assert {process["name"] for process in plan["processes"]} == set(wanted["processes"])


def test_offline_inference_is_the_seeds():
    wanted, files, plan = rendered("002-offline")
    expected = wanted["offline"]
    host = wanted["hosts"][expected["host"]]
    text = files[host]["offline.sh"]
    ours = scripts.offline_program(text)
    assert ours["PROMPTS"] == expected["prompts"]
    assert ours["SAMPLING"] == expected["sampling"]
    assert ours["ENGINE"] == expected["engine"]
    assert set(expected["calls"]) <= set(ours["calls"])
    assert scripts.read_script(text)["env"] == {"ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3"}
    assert plan["processes"] == []


def test_classes_are_those_of_the_page_and_all_occur():
    page = (ROOT / "docs" / "deviations.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \|", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(CLASSES)
    seen = set()
    for stem, name in SCRIPTS:
        seen.update(label for labels in classes_of(*script_differences(stem, name)).values() for label in labels)
    for stem, name in CONTAINERS:
        seen.update(label for labels in classes_of(*container_differences(stem, name)).values() for label in labels)
    assert seen == set(CLASSES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--max-num-seqs 32", "--max-num-seqs 33"),
        ("--trust-remote-code", "--trust-remote-codes"),
        ("export HCCL_BUFFSIZE=1536", "export HCCL_BUFFSIZE=1024"),
        ("export TASK_QUEUE_ENABLE=1\n", ""),
        ('"tp_size":2', '"tp_size":4'),
        ("192.0.2.12", "192.0.2.13"),
        ("unset http_proxy\n", ""),
        (
            '/site-packages"${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}"',
            '/site-packages/mooncake"${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}"',
        ),
    ],
)
def test_a_difference_of_no_class_is_caught(monkeypatch, old, new):
    original = render.files

    def changed(plan):
        files = original(plan)
        text = files["a3-02"]["decode-0-head.sh"]
        assert old in text
        files["a3-02"]["decode-0-head.sh"] = text.replace(old, new)
        return files

    monkeypatch.setattr(render, "files", changed)
    labels = classes_of(*script_differences("004-pd", "decode-0-head"))
    assert any(not found for found in labels.values())


def test_quotes_survive_the_comparison():
    program, flags = scripts.split_command(shlex.split("vllm serve M --a '{\"b\": 1}' --c 0.90 --d x y"))
    assert (program, flags) == (["vllm", "serve", "M"], {"--a": {"b": 1}, "--c": 0.9, "--d": ["x", "y"]})
