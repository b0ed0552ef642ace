"""Engines outside containers: their environment in the plan, their units, and the import check."""

from __future__ import annotations

import copy
import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascent import engine_imports, engines, generations, scene, serving, units
from ascent_controller import judges, planning, render

RECIPE = "qwen3-235b-a22b-dp2"
HOSTS = [
    {"name": f"a3-0{number}", "node_ip": f"192.0.2.{number}", "nic": "eth0", "arch": "aarch64"} for number in (1, 2)
]
PACKAGES = ["vllm==0.11.0", "vllm-ascend==0.11.0rc2"]


def recipe_file(tmp_path: Path, **engine: Any) -> str:
    own = {"name": "vllm-ascend", "runtime": "environment", "image": None, "environment": {"packages": PACKAGES}}
    content = {"extends": RECIPE, "name": "outside", "engine": {**own, **engine}}
    file = tmp_path / "outside.yml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    made, findings = planning.prepare(recipe_file(tmp_path), HOSTS, cluster="a3-cluster")
    assert made is not None, findings
    return made


@pytest.mark.parametrize("module", [units, engine_imports, engines, scene])
def test_the_examples_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_processes_are_units_in_one_environment(plan: dict[str, Any]) -> None:
    place = plan["engine"]["environment"]["path"]
    assert place.startswith("/opt/ascent/environments/")
    assert plan["engine"]["version"] == "0.11.0rc2"
    assert plan["engine"]["image"] is None
    assert plan["engine"]["imports"] == ["vllm", "vllm_ascend"]
    assert plan["processes"]
    for process in plan["processes"]:
        assert process["container"] is None
        assert process["unit"]["name"] == f"ascent-a3-cluster-{process['name']}.service"
        assert process["env"][:2] == [
            {"name": "VIRTUAL_ENV", "value": place},
            {"name": "PATH", "prepend": f"{place}/bin"},
        ]
    assert generations.images_of(plan) == []
    for host in plan["hosts"].values():
        assert "/dev/davinci0" in host["files"]
        assert host["directories"] == ["/root/.cache"]


def test_the_same_recipe_in_containers_has_no_units() -> None:
    made, _ = planning.prepare(RECIPE, HOSTS, cluster="a3-cluster")
    assert made is not None
    assert made["engine"]["environment"] is None
    assert {process["unit"] for process in made["processes"]} == {None}


def test_other_packages_are_another_environment(tmp_path: Path, plan: dict[str, Any]) -> None:
    newer = {"packages": ["vllm==0.12.0", "vllm-ascend==0.12.0"]}
    made, _ = planning.prepare(recipe_file(tmp_path, environment=newer), HOSTS, cluster="a3-cluster")
    assert made is not None
    assert made["engine"]["environment"]["path"] != plan["engine"]["environment"]["path"]
    before = {one["name"]: one["definition"] for one in plan["processes"]}
    assert all(one["definition"] != before[one["name"]] for one in made["processes"])


def test_clients_are_told_where_the_cache_is_when_it_is_elsewhere(tmp_path: Path) -> None:
    made, _ = planning.prepare(recipe_file(tmp_path), HOSTS, cluster="a3-cluster", cache="/data/models")
    assert made is not None
    env = {entry["name"]: entry.get("value") for entry in made["processes"][0]["env"]}
    assert env["XDG_CACHE_HOME"] == "/data/models"
    assert made["model"]["directory"].startswith(env["MODELSCOPE_CACHE"])


def test_a_service_with_an_image_of_its_own_stays_in_a_container(tmp_path: Path) -> None:
    file = Path(recipe_file(tmp_path))
    content = yaml.safe_load(file.read_text())
    content["services"] = {"watch": {"kind": "service", "image": "registry.example.org/x:1", "command": ["watch"]}}
    file.write_text(yaml.safe_dump(content))
    made, findings = planning.prepare(str(file), HOSTS, cluster="a3-cluster")
    assert made is not None, findings
    kinds = {one["kind"]: (one["container"] is None, one["unit"] is None) for one in made["processes"]}
    assert kinds["service"] == (False, True)
    assert kinds["head"] == (True, False)
    assert generations.images_of(made) == ["registry.example.org/x:1"]


def test_limits_of_the_recipe_hold_outside_containers_too(tmp_path: Path, plan: dict[str, Any]) -> None:
    file = Path(recipe_file(tmp_path))
    content = yaml.safe_load(file.read_text())
    content["container"] = {"memory": "512g", "cpuset_cpus": "0-95,192", "ulimits": {"memlock": -1, "core": "0:-1"}}
    content["pools"] = {"serve": {"container": {"cpuset_mems": "0,1", "restart_policy": "on-failure"}}}
    file.write_text(yaml.safe_dump(content))
    made, findings = planning.prepare(str(file), HOSTS, cluster="a3-cluster")
    assert made is not None, findings
    before = {one["name"]: one for one in plan["processes"]}
    for process in made["processes"]:
        old = before[process["name"]]
        assert process["definition"] != old["definition"]
        assert not {"memory", "cpuset_cpus", "cpuset_mems"} & set(old["unit"]), "nothing restarts for what is not given"
        lines = units.text(process["unit"], "/x.sh", LABELS, managed="by Ascent", stop_seconds=30).splitlines()
        service = lines[lines.index("[Service]") : lines.index("[Install]")]
        assert set(service) >= {
            "MemoryMax=512G",
            "CPUAffinity=0-95,192",
            "AllowedCPUs=0-95,192",
            "NUMAPolicy=bind",
            "NUMAMask=0,1",
            "AllowedMemoryNodes=0,1",
            "LimitCORE=0:infinity",
            "LimitMEMLOCK=infinity",
            "LimitNOFILE=1048576",
            "Restart=on-failure",
        }
        bare = units.text(old["unit"], "/x.sh", LABELS, managed="by Ascent", stop_seconds=30)
        assert not [word for word in ("MemoryMax", "CPUAffinity", "Allowed", "NUMA") if word in bare]
        assert "Restart=always" in bare


def test_the_script_runs_as_it_stands(plan: dict[str, Any], tmp_path: Path) -> None:
    files = render.files(plan)["a3-01"]
    assert not [name for name in files if name.endswith(".docker.sh") and not name.startswith("quick")]
    name = next(one for one in files if one.startswith("serve-0-head"))
    text = files[name]
    assert "/usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh" in text
    # Where neither is there, it says so and ends as scripts do that lack their configuration.
    missing = text.replace("/usr/local/Ascend", str(tmp_path))
    done = subprocess.run(["bash", "-c", missing], capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "install CANN" in done.stderr
    # The first that is there is taken, and the environment's programs come first.
    place = plan["engine"]["environment"]["path"]
    for script in ("ascend-toolkit/set_env.sh", "nnal/atb/set_env.sh"):
        (tmp_path / script).parent.mkdir(parents=True)
        (tmp_path / script).write_text("export SEEN=$SEEN:toolkit\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").write_text('#!/bin/sh\necho "$SEEN $*"\n')
    (tmp_path / "bin/vllm").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", missing.replace(place, str(tmp_path))], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(":toolkit:toolkit serve vllm-ascend/Qwen3-235B-A22B")


# -- units -------------------------------------------------------------------------------------------------------------

LABELS = {"cluster": "a3", "process": "serve-0-head", "generation": 2, "definition": "abc"}
UNIT = {"name": "ascent-a3-serve-0-head.service", "limits": {"MEMLOCK": "infinity"}, "restart": "always"}


def unit_text(**labels: Any) -> str:
    return units.text(UNIT, "/etc/ascent/a3/50%$x.sh", {**LABELS, **labels}, managed="by Ascent", stop_seconds=30)


def test_a_unit_tells_whose_it_is_and_keeps_its_limits() -> None:
    text = unit_text()
    assert units.labels_of(text) == {
        "ascent.cluster": "a3",
        "ascent.process": "serve-0-head",
        "ascent.generation": "2",
        "ascent.definition": "abc",
    }
    for line in ("LimitMEMLOCK=infinity", "Restart=always", "TimeoutStopSec=30", "WantedBy=multi-user.target"):
        assert line in text.splitlines()
    assert "ExecStart=/bin/bash /etc/ascent/a3/50%%$$x.sh" in text.splitlines()
    assert units.labels_of("[Unit]\nDescription=of others\n") == {}


@pytest.mark.parametrize(
    ("show", "state", "code"),
    [
        ({"LoadState": "not-found"}, "missing", None),
        (
            {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "ExecMainStatus": "0"},
            "running",
            None,
        ),
        ({"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart"}, "restarting", None),
        (
            {"LoadState": "loaded", "ActiveState": "failed", "ExecMainCode": "1", "ExecMainStatus": "78"},
            "exited",
            78,
        ),
        (
            {"LoadState": "loaded", "ActiveState": "failed", "ExecMainCode": "2", "ExecMainStatus": "9"},
            "exited",
            137,
        ),
        ({"LoadState": "loaded", "ActiveState": "inactive", "ExecMainCode": "1", "ExecMainStatus": "0"}, "exited", 0),
    ],
)
def test_states_are_told_in_the_words_of_containers(show: dict[str, str], state: str, code: int | None) -> None:
    found = units.state_of(show)
    assert (found["state"], found["exit_code"]) == (state, code)


def test_what_systemctl_shows_of_several_units_is_kept_apart() -> None:
    output = "Id=a.service\nResult=oom-kill\nNRestarts=2\n\nId=b.service\nResult=success\nNRestarts=0\n"
    shown = units.parse_show(output)
    assert (units.state_of(shown["a.service"])["oom_killed"], units.state_of(shown["a.service"])["restarts"]) == (
        True,
        2,
    )
    assert units.state_of(shown["b.service"])["oom_killed"] is False


@pytest.mark.parametrize(
    ("change", "drop_ins", "told"),
    [
        (("", ""), ["/etc/systemd/system/ascent-.service.d/90-ascent.conf"], None),
        (("TimeoutStopSec=30", "TimeoutStopSec=90"), [], None),
        (("RestartSec=2", "RestartSec=9"), [], "/etc/systemd/system/{name}"),
        (("X-Ascent-Definition=", "X-Ascent-Definition=0"), [], None),
        (("", ""), ["/etc/systemd/system/{name}.d/override.conf"], "/etc/systemd/system/{name}.d/override.conf"),
    ],
)
def test_a_unit_that_was_edited_by_hand_is_told(
    plan: dict[str, Any], change: tuple[str, str], drop_ins: list[str], told: str | None
) -> None:
    process = plan["processes"][0]
    name, scripts = process["unit"]["name"], f"/etc/ascent/{plan['cluster']}/generations"
    labels = {"cluster": plan["cluster"], "process": process["name"], "generation": 3, "definition": "d"}
    script = f"{scripts}/3/{process['name']}.sh"
    text = units.text(process["unit"], script, labels, managed=render.MANAGED, stop_seconds=30).replace(*change)
    facts = {
        "name": name,
        "text": text,
        "labels": units.labels_of(text),
        "drop_ins": [x.format(name=name) for x in drop_ins],
    }
    state = {"current": 3, "generations": [], "files": {}}
    node = {"ascent_node": {"units": {"units": [{**facts, **units.state_of(None)}]}, "state": state}}
    found = judges.JUDGES["status"](plan, {process["host"]: node}, endpoints=[], digests={}, root="/etc/ascent")[
        "findings"
    ]
    paths = [one["evidence"] for one in found if one["id"] == "drift-file" and "/systemd/" in one["evidence"]]
    assert paths == ([told.format(name=name)] if told else [])


def there(text: str, state: str = "running", enabled: bool = True) -> dict[str, Any]:
    return {"text": text, "state": state, "enabled": enabled}


def steps(*arguments: Any) -> list[str]:
    return [f"{step['do']} {step['unit']}" for step in units.plan(*arguments)]


def test_a_unit_that_is_right_is_left_alone() -> None:
    assert steps([{"name": "a", "text": "x"}], {"a": there("x")}) == []


def test_units_are_ended_before_any_starts() -> None:
    wanted = [{"name": "a", "text": "new"}, {"name": "b", "text": "x"}, {"name": "c", "text": "x"}]
    found = {"a": there("old"), "b": there("x"), "old": there("x"), "c": there("x", "exited", enabled=False)}
    assert steps(wanted, found, ["b"]) == [
        "remove old",
        "stop a",
        "stop b",
        "write a",
        "start a",
        "start b",
        "enable c",
        "start c",
    ]


def test_more_time_to_stop_is_written_under_a_unit_that_goes_on() -> None:
    found = {"a": there("ExecStart=x\nTimeoutStopSec=30\n")}
    assert steps([{"name": "a", "text": "ExecStart=x\nTimeoutStopSec=90\n"}], found) == ["write a"]
    both = steps([{"name": "a", "text": "ExecStart=y\nTimeoutStopSec=90\n"}], found)
    assert both == ["stop a", "write a", "start a"]
    assert steps([{"name": "a", "text": "ExecStart=x\n"}], found) == ["stop a", "write a", "start a"]


def test_a_host_without_units_gets_them_written_enabled_and_started() -> None:
    assert steps([{"name": "a", "text": "x"}], {}) == ["write a", "enable a", "start a"]


def test_a_unit_of_a_dead_engine_is_found_with_its_journal(plan: dict[str, Any]) -> None:
    process = plan["processes"][0]
    labels = {"ascent.cluster": "a3-cluster", "ascent.process": process["name"]}
    unit = {"name": process["unit"]["name"], "labels": labels, "state": "exited", "exit_code": 1, "restarts": 0}
    nodes = {host: {"units": {"units": [unit]}, "container_engine": {"running": False}} for host in plan["hosts"]}
    told = serving.judge(plan, nodes, [])
    mine = next(item for item in told if item["id"] == "process-exited")
    assert f"journalctl -u {process['unit']['name']}" in mine["fix"]
    assert "container-engine" not in {item["id"] for item in told}
    missing = next(item for item in told if item["id"] == "process-missing")
    assert "has no unit" in missing["summary"]


def test_instances_of_units_start_together(plan: dict[str, Any]) -> None:
    decision = generations.decide(plan, {}, dict.fromkeys(plan["hosts"]))
    first, second = plan["processes"][:2]
    labels = {"ascent.process": first["name"], "ascent.definition": decision["processes"][first["name"]]["definition"]}
    nodes = {first["host"]: {"units": {"units": [{"labels": labels, "state": "running"}]}}, second["host"]: {}}
    assert generations.to_stop(plan, decision, nodes) == [first["name"]]


def test_a_unit_changed_by_hand_ends_all_of_its_instance(plan: dict[str, Any]) -> None:
    root, number = "/etc/ascent/a3-cluster", 1
    decision = generations.decide(plan, {}, dict.fromkeys(plan["hosts"]))
    nodes: dict[str, dict[str, Any]] = {host: {"units": {"units": []}} for host in plan["hosts"]}
    for process in plan["processes"]:
        labels = {
            "cluster": "a3-cluster",
            "process": process["name"],
            "generation": number,
            "definition": decision["processes"][process["name"]]["definition"],
        }
        script = f"{root}/generations/{number}/{process['name']}.sh"
        found = {
            "name": process["unit"]["name"],
            "text": units.text(process["unit"], script, labels, managed="# ours", stop_seconds=30),
            "labels": {f"ascent.{name}": str(value) for name, value in labels.items()},
            "drop_ins": [],
            "state": "running",
        }
        nodes[process["host"]]["units"]["units"].append(found)
    names = [process["name"] for process in plan["processes"]]
    assert units.rewritten(plan, nodes, root, managed="# ours") == []
    head = nodes[plan["processes"][0]["host"]]["units"]["units"][0]
    head["drop_ins"] = [f"{units.DIRECTORY}/{head['name']}.d/override.conf"]
    assert units.rewritten(plan, nodes, root, managed="# ours") == [], "a launch does not touch it"
    head["text"] = head["text"].replace("RestartSec=", "RestartSec=7")
    edited = units.rewritten(plan, nodes, root, managed="# ours")
    assert edited == names[:1]
    assert generations.to_stop(plan, decision, nodes) == []
    assert generations.to_stop(plan, decision, nodes, edited) == names


# -- the import check --------------------------------------------------------------------------------------------------


def test_the_import_is_made_where_the_process_runs(plan: dict[str, Any], tmp_path: Path) -> None:
    process = copy.deepcopy(plan["processes"][0])
    process["source"] = [[str(tmp_path / "none.sh"), str(tmp_path / "set_env.sh")]]
    (tmp_path / "set_env.sh").write_text(f"export PYTHONPATH={tmp_path}\n")
    (tmp_path / "vllm_plugin_of_tests.py").write_text("print('noise')\n")
    (tmp_path / "vllm_plugin_of_tests-1.2rc3.dist-info").mkdir()
    (tmp_path / "vllm_plugin_of_tests-1.2rc3.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-plugin-of-tests\nVersion: 1.2rc3\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    process["unit"]["environment"] = str(tmp_path)

    def result(*modules: str) -> dict[str, Any]:
        argv = engine_imports.command(process, modules)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return engine_imports.parse(done.returncode, done.stdout, done.stderr)

    assert result("vllm_plugin_of_tests") == {"versions": {"vllm_plugin_of_tests": "1.2rc3"}, "error": ""}
    broken = result("vllm_plugin_of_tests", "nothing_of_that_name")
    assert broken["versions"] is None
    assert "No module named 'nothing_of_that_name'" in broken["error"]
    contained = {**process, "unit": None, "container": {"name": "ascent-a3-serve-0-head"}}
    assert engine_imports.command(contained, ["vllm"])[:4] == ["docker", "exec", "ascent-a3-serve-0-head", "/bin/bash"]


def ok(version: str, plugin: str = "0.11.0rc2") -> dict[str, Any]:
    return {"versions": {"vllm": version, "vllm_ascend": plugin}, "error": ""}


ENGINE = {"name": "vllm-ascend", "version": "v0.11.0rc2"}


def test_equal_hosts_have_nothing_against_them() -> None:
    assert engine_imports.judge({"a": ok("0.11.0"), "b": ok("0.11.0"), "c": None}, ENGINE) == []


def test_the_odd_host_is_named_with_what_differs() -> None:
    told = engine_imports.judge({"a": ok("0.11.0"), "b": ok("0.11.0+x"), "c": ok("0.11.0")}, ENGINE)
    assert [(item["id"], item["host"]) for item in told] == [("engine-versions-differ", "b")]
    assert told[0]["evidence"] == "vllm 0.11.0+x (others 0.11.0)"


def test_an_engine_that_cant_be_imported_or_is_another_is_told() -> None:
    broken = {"versions": None, "error": "ImportError: libatb.so"}
    told = engine_imports.judge({"a": broken, "b": ok("0.10.0", "0.10.0rc1")}, ENGINE)
    assert [(item["id"], item["host"]) for item in told] == [("engine-import", "a"), ("engine-version", "b")]
    assert "libatb.so" in told[0]["evidence"]


@pytest.mark.parametrize("output", ["", "ascent-imports:{broken", "nothing of ours\n"])
def test_any_output_is_read(output: str) -> None:
    assert engine_imports.parse(1, output, "")["versions"] is None
    assert json.dumps(engine_imports.parse(1, output, ""))
