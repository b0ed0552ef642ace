"""The road on three bare nodes, in the order an operator walks it. Each test stands on the ones before it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.lib import plan
from sandbox.lib.engine import Engine
from tests import controllers
from tests.e2e.driver import CLUSTER, INVENTORY, NODES, ROOT, Road, sandbox
from tests.e2e.host import machine, marks, remains_of_the_daemon, traces

SAME_ADDRESS = {"node_ip": "198.18.128.12", "ansible_host": "198.18.128.12"}
ENGINES = {"a3-01": ["prefill-0-head", "router"], "a3-02": ["decode-0-head"], "a3-03": ["decode-0-headless-1"]}


def recipe_with(directory: Path, decode_args: dict | None = None, decode_env: dict | None = None) -> Path:
    """The road's recipe with arguments or variables of its decode pool changed."""
    recipe = yaml.safe_load((ROOT / "recipes" / "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3.yml").read_text())
    recipe["name"] = "changed"
    recipe["pools"]["decode"]["args"].update(decode_args or {})
    recipe["pools"]["decode"].setdefault("env", {}).update(decode_env or {})
    path = directory / "changed.yml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def fingerprint(road: Road) -> dict[str, str]:
    """What a dry run could disturb on a node: packages, units, configuration, tuning, containers' data."""
    command = (
        "dpkg-query -W | sha256sum; ls -laR --time-style=full-iso /etc /var/lib/ascent /etc/ascent 2>/dev/null"
        " | grep -v -e resolv.conf -e mtab -e lock.json -e '^total' | sha256sum;"
        " systemctl list-unit-files --no-legend | sha256sum;"
        " cat /proc/sys/vm/swappiness /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    )
    return {name: node.check_output(command) for name, node in road.nodes().items()}


def containers(node: Any) -> dict[str, str]:
    """State of this cluster's containers by process name."""
    lines = node.check_output(
        "docker ps -a --filter label=ascent.cluster=%s --format '{{.Label \"ascent.process\"}} {{.State}}'", CLUSTER
    )
    return dict(line.split() for line in lines.splitlines())


def test_a_dry_run_on_bare_nodes_touches_nothing(road: Road) -> None:
    before = fingerprint(road)
    run = road.play("deploy.yml", "--check", "--diff")
    assert run.rc == 0, run.stdout
    assert fingerprint(road) == before
    assert set(run.changed) == set(NODES), "a bare node has much to change, and a dry run says so"


def test_deploy_serves(road: Road) -> None:
    run = road.play()
    assert run.rc == 0, run.stdout
    for stage in ("plan", "preflight", "provision", "tune", "verify", "launch", "check"):
        assert run.stage(stage)["ok"], stage
    bench = json.loads((run.record / "smoke_bench.json").read_text())
    assert bench["completed"] == 32
    assert bench["errors"] == 0
    assert bench["simulated"] is True
    report = (run.record / "report.html").read_text()
    assert "simulated" in report
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", report), "the report fetches nothing"


def test_every_node_runs_what_the_plan_says(road: Road) -> None:
    for name, node in road.nodes().items():
        assert containers(node) == dict.fromkeys(ENGINES[name], "running")
        assert node.service("docker").is_running
        assert node.service("docker").is_enabled


def test_scripts_are_marked_and_private(road: Road) -> None:
    for name, node in road.nodes().items():
        for process in ENGINES[name]:
            script = node.file(f"/etc/ascent/{CLUSTER}/current/{process}.sh")
            assert script.exists
            assert script.mode == 0o640
            assert "Ansible managed" in script.content_string
            assert "# ascent:generation" in script.content_string


def test_the_hosts_are_tuned_to_stay(road: Road) -> None:
    for node in road.nodes().values():
        assert node.file("/proc/sys/vm/swappiness").content_string.strip() == "0"
        assert node.file("/proc/sys/kernel/numa_balancing").content_string.strip() == "0"
        governor = node.file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        assert governor.content_string.strip() == "performance"
        assert "vm.swappiness" in node.file("/etc/sysctl.d/90-ascent.conf").content_string


def test_the_image_is_pulled_by_one_digest(road: Road) -> None:
    digests = set()
    for node in road.nodes().values():
        manifest = json.loads(node.file(f"/etc/ascent/{CLUSTER}/current/manifest.json").content_string)
        digests.add(manifest["digest"])
        images = node.check_output("docker ps --no-trunc --format '{{.Image}}'").splitlines()
        assert all(image.endswith("@" + manifest["digest"]) for image in images)
    assert len(digests) == 1


def test_prefill_hands_its_cache_to_decode(road: Road) -> None:
    plan = json.loads(road.node("a3-01").file(f"/etc/ascent/{CLUSTER}/current/plan.json").content_string)
    url = plan["endpoint"]["url"] + "/v1/completions"
    body = {"model": "qwen3.5", "prompt": "The future of AI is", "max_tokens": 50, "temperature": 0}
    ask = (
        "import sys, urllib.request as u;"
        "r = u.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'});"
        "print(u.build_opener(u.ProxyHandler({})).open(r, timeout=60).read().decode())"
    )
    answer = json.loads(road.node("a3-03").check_output("python3 -c %s %s %s", ask, url, json.dumps(body)))
    assert len(answer["choices"][0]["text"].split()) > 5


# Prints how many files of a model arrived whole, one of them in two parts after its connection broke.
FETCH = """
import hashlib, http.client, json, sys, urllib.request as u
site, model = sys.argv[1:]
ask = u.build_opener(u.ProxyHandler({})).open
fault = [{"fault": "break", "match": model + "/*.safetensors", "bytes": 1000, "times": 1}]
ask(u.Request(site + "/_site/faults", json.dumps(fault).encode(), method="PUT"))
files = json.load(ask(site + "/api/v1/models/" + model + "/repo/files?Recursive=True"))["Data"]["Files"]
for file in files:
    url, content = site + "/" + model + "/resolve/main/" + file["Path"], b""
    while len(content) < file["Size"]:
        try:
            content += ask(u.Request(url, headers={"Range": "bytes=%d-" % len(content)} if content else {})).read()
        except http.client.IncompleteRead as broken:
            content += broken.partial
    assert hashlib.sha256(content).hexdigest() == file["Sha256"], file["Path"]
ranges = [line["range"] for line in json.load(ask(site + "/_site/requests")) if line["status"] == 206]
print(len(files), ranges)
"""


def test_a_node_gets_sharded_weights_from_the_site_s_hub(road: Road) -> None:
    found = plan.from_inventory(INVENTORY)
    model = found.hub_models[0]["id"]
    said = road.node("a3-01").check_output("python3 -c %s %s %s", FETCH, f"http://{found.services}", model)
    assert said == "11 ['bytes=1000-']"


# Prints the names of the site's packages that arrive with the checksum they should have.
TAKE = """
import hashlib, sys, urllib.request as u
ask = u.build_opener(u.ProxyHandler({})).open
for line in ask(sys.argv[1] + "/packages/SHA256SUMS").read().decode().splitlines():
    digest, name = line.split("  ")
    if hashlib.sha256(ask(sys.argv[1] + "/packages/" + name).read()).hexdigest() == digest:
        print(name)
"""


def test_a_node_takes_packages_from_the_site(road: Road) -> None:
    found = plan.from_inventory(INVENTORY)
    packages = ROOT / str(found.packages)
    names = {path.relative_to(packages).as_posix() for path in packages.rglob("*") if path.is_file()}
    assert names
    assert set(road.node("a3-02").check_output("python3 -c %s %s", TAKE, f"http://{found.services}").split()) == names


def test_the_logs_of_all_nodes_come_in_one_archive(road: Road, tmp_path: Path) -> None:
    run = road.play("playbooks/logs.yml", "-e", f"logs_to={tmp_path}/logs.tar.gz")
    assert run.rc == 0, run.stdout
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        names = set(archive.getnames())
        log = archive.extractfile(f"a3-02/containers/ascent-{CLUSTER}-decode-0-head.log")
        assert log is not None
        assert b"Application startup complete" in log.read()
    assert {name.partition("/")[0] for name in names} == set(NODES)
    assert {f"{node}/npu-smi.txt" for node in NODES} <= names


def test_the_second_run_changes_nothing_in_few_rounds(road: Road) -> None:
    run = road.play()
    assert run.rc == 0, run.stdout
    assert run.changed == {}
    assert len(run.rounds) <= 15, run.rounds
    assert not (run.record / "smoke_bench.json").exists(), "an unchanged generation is not measured again"


def test_a_dry_run_on_a_finished_cluster_changes_nothing(road: Road) -> None:
    before = fingerprint(road)
    run = road.play("deploy.yml", "--check", "--diff")
    assert run.rc == 0, run.stdout
    assert run.changed == {}
    assert fingerprint(road) == before


def test_one_host_in_the_limit_plans_the_whole_cluster(road: Road) -> None:
    run = road.play("deploy.yml", "--tags", "launch", limit="a3-02")
    assert run.rc == 0, run.stdout
    assert run.changed == {}
    assert set(run.stats["processed"]) == {"a3-02"}


def test_an_operator_without_root_login_sees_the_same(road: Road) -> None:
    for node in road.nodes().values():
        node.check_output(
            "useradd --create-home keeper && cp -r /root/.ssh /home/keeper/ && chown -R keeper: /home/keeper"
            " && echo 'keeper ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/keeper"
        )
    run = road.play("deploy.yml", "-e", "ansible_user=keeper")
    assert run.rc == 0, run.stdout
    assert run.changed == {}


def test_a_stopped_decode_head_is_named(road: Road) -> None:
    node = road.node("a3-02")
    name = node.check_output("docker ps -q --filter label=ascent.process=decode-0-head")
    node.check_output("docker stop -t 1 %s", name)
    run = road.play("deploy.yml", "--tags", "check")
    assert run.rc != 0
    errors = [finding for finding in run.findings() if finding["severity"] == "error"]
    blamed = [finding for finding in errors if finding["host"] == "a3-02"]
    assert blamed, errors
    assert any("decode-0" in finding["summary"] for finding in blamed)
    assert any("--tags launch" in finding["fix"] for finding in blamed)


def test_status_fails_while_it_is_down(road: Road) -> None:
    run = road.play("playbooks/status.yml")
    assert run.rc != 0
    errors = [one for one in run.stage("status")["findings"] if one["severity"] == "error"]
    assert {one["host"] for one in errors} >= {"a3-02"}


def test_launch_brings_it_back(road: Road) -> None:
    run = road.play("deploy.yml", "--tags", "launch,check")
    assert run.rc == 0, run.stdout
    assert containers(road.node("a3-02")) == {"decode-0-head": "running"}


def test_a_killed_controller_leaves_nothing_that_a_second_run_cannot_finish(road: Road, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, decode_args={"max-num-seqs": 16})
    arguments = [
        *(str(Path(sys.executable).with_name("ansible-playbook")), "deploy.yml", "-i", str(INVENTORY)),
        *("-l", CLUSTER, "--tags", "launch", "-e", f"recipe={recipe}"),
    ]
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, **road.environment(), "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as controller:
        assert controller.stdout is not None
        for line in controller.stdout:
            if "Run the processes of this host" in line:
                break
        controllers.kill(controller)
    run = road.play("deploy.yml", "--tags", "launch,check", "-e", f"recipe={recipe}")
    assert run.rc == 0, run.stdout
    for name, node in road.nodes().items():
        assert containers(node) == dict.fromkeys(ENGINES[name], "running")
    again = road.play("deploy.yml", "--tags", "launch", "-e", f"recipe={recipe}")
    assert again.changed == {}


def test_a_crashing_rank_ends_the_launch_with_its_cause(road: Road, tmp_path: Path) -> None:
    # Rank 8 is the first of the second decode node. The simulator takes its orders from a variable of its own.
    recipe = recipe_with(tmp_path, decode_env={"SIM_FAIL": "weights@8:EI0006"})
    run = road.play("deploy.yml", "--tags", "launch", "-e", f"recipe={recipe}")
    assert run.rc != 0
    errors = [finding for finding in run.stage("launch")["findings"] if finding["severity"] == "error"]
    assert errors
    assert errors[0]["id"] == "C01", errors
    assert errors[0]["host"] == "a3-03"
    assert "EI0006" in errors[0]["evidence"]


def test_it_comes_back_from_a_bad_launch(road: Road) -> None:
    run = road.play("deploy.yml", "--tags", "launch,check")
    assert run.rc == 0, run.stdout


def kept(road: Road) -> dict[str, Any]:
    """The manifest of the current generation on the first decode node."""
    return json.loads(road.node("a3-02").file(f"/etc/ascent/{CLUSTER}/current/manifest.json").content_string)


def started(road: Road) -> dict[str, str]:
    """When each container was started, by host and process."""
    ask = "docker inspect --format '{{index .Config.Labels \"ascent.process\"}} {{.State.StartedAt}}' $(docker ps -q)"
    return {
        f"{name} {line.split()[0]}": line.split()[1]
        for name, node in road.nodes().items()
        for line in node.check_output(ask).splitlines()
    }


def test_status_tells_what_runs_and_what_was_changed_by_hand(road: Road) -> None:
    run = road.play("playbooks/status.yml")
    assert run.rc == 0, run.stdout
    assert run.changed == {}
    assert run.stage("status")["findings"] == []
    node, script = road.node("a3-02"), f"/etc/ascent/{CLUSTER}/current/decode-0-head.sh"
    plan, container = f"/etc/ascent/{CLUSTER}/current/plan.json", f"ascent-{CLUSTER}-decode-0-head"
    node.check_output("cp -a %s /root/kept && echo '# by hand' >> %s", script, script)
    node.check_output("cp -a %s /root/plan && sed -i s/unless-stopped/always/ %s", plan, plan)
    node.check_output("docker update --restart=no %s", container)
    found = road.play("playbooks/status.yml").stage("status")["findings"]
    assert {(one["id"], one["severity"], one["host"]) for one in found} == {
        ("drift-file", "warning", "a3-02"),
        ("drift-container", "warning", "a3-02"),
    }
    assert {one["evidence"].rpartition("/")[2] for one in found if one["id"] == "drift-file"} == {
        "decode-0-head.sh",
        "plan.json",
    }
    assert any("restart policy no, not unless-stopped" in one["evidence"] for one in found)
    node.check_output("mv /root/kept %s && mv /root/plan %s", script, plan)
    node.check_output("docker update --restart=unless-stopped %s", container)


def test_rollback_returns_to_the_generation_before(road: Road) -> None:
    before, running = kept(road), started(road)
    run = road.play("playbooks/rollback.yml")
    assert run.rc == 0, run.stdout
    after, now = kept(road), started(road)
    assert after["number"] == before["number"] + 1
    assert after["plan_hash"] != before["plan_hash"]
    assert {place for place in now if now[place] != running[place]} == {
        "a3-02 decode-0-head",
        "a3-03 decode-0-headless-1",
    }, "only what differs starts again"
    assert "--max-num-seqs 16" in road.node("a3-02").check_output(
        "cat /etc/ascent/%s/current/decode-0-head.sh", CLUSTER
    )
    again = road.play("playbooks/rollback.yml", "-e", f"rollback_to={after['number']}")
    assert again.changed == {}


def test_a_rollback_to_nowhere_is_refused(road: Road) -> None:
    run = road.play("playbooks/rollback.yml", "-e", "rollback_to=99")
    assert run.rc != 0
    (refused,) = [one for one in run.findings() if one["severity"] == "error"]
    assert refused["id"] == "generation-unknown"
    assert "passed the checks" in refused["summary"]


def test_a_failed_launch_goes_back_by_itself(road: Road, tmp_path: Path) -> None:
    run = road.play("deploy.yml", "--tags", "launch,check")
    assert run.rc == 0, run.stdout
    good = kept(road)
    recipe = recipe_with(tmp_path, decode_env={"SIM_FAIL": "weights@8:EI0006"})
    run = road.play("deploy.yml", "--tags", "launch", "-e", f"recipe={recipe}", "-e", "launch_rollback_on_failure=true")
    assert run.rc != 0, "it is not what was asked for"
    errors = [one for one in run.stage("launch")["findings"] if one["severity"] == "error"]
    assert [one["id"] for one in errors][:1] == ["C01"]
    assert "launch-rolled-back" in {one["id"] for one in errors}
    assert kept(road)["plan_hash"] == good["plan_hash"]
    assert road.play("deploy.yml", "--tags", "launch").changed == {}
    # The check remembers that the generation with the new number passed, once.
    assert road.play("deploy.yml", "--tags", "check").rc == 0
    assert road.play("deploy.yml", "--tags", "launch,check").changed == {}


# What is changed, what the findings have to name, and in which file they have to say it stands.
WRONG: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "an unknown recipe": ({"vars": {"recipe": "qwen3.5-397b-pd-1p1d"}}, ["recipe", "pd-1p1d-a3"], "a3-cluster.yml"),
    "too few hosts": ({"drop": "a3-03"}, ["decode", "hosts"], "pools"),
    "an address twice": ({"hosts": {"a3-03": SAME_ADDRESS}}, ["a3-02", "a3-03"], "hosts.yml"),
    "a pool that the recipe lacks": (
        {"hosts": {"a3-02": {"pool": "decoder"}}},
        ["decoder", "prefill", "decode"],
        "hosts.yml",
    ),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_wrong_inventory_is_refused_before_any_host_is_touched(road: Road, tmp_path: Path, case: str) -> None:
    change, words, place = WRONG[case]
    run = road.play("deploy.yml", inventory=wrong_inventory(tmp_path, change))
    assert run.rc != 0
    assert run.rounds == ["Plan the launch from inventory and recipe"]
    text = json.dumps([finding for finding in run.findings() if finding["severity"] == "error"])
    assert all(word in text for word in [*words, place]), text


def test_all_mistakes_of_an_inventory_are_reported_at_once(road: Road, tmp_path: Path) -> None:
    change = {"hosts": {"a3-02": {"pool": "decoder"}, "a3-03": SAME_ADDRESS}}
    run = road.play("deploy.yml", inventory=wrong_inventory(tmp_path, change))
    assert run.rc != 0
    ids = {finding["id"] for finding in run.findings() if finding["severity"] == "error"}
    assert {"host-pool-unknown", "host-address-twice"} <= ids


def test_stop_takes_the_service_down_and_nothing_else(road: Road) -> None:
    run = road.play("playbooks/stop.yml")
    assert run.rc == 0, run.stdout
    for node in road.nodes().values():
        assert containers(node) == {}
        assert node.file(f"/etc/ascent/{CLUSTER}/current").is_symlink
    assert road.play("playbooks/stop.yml").changed == {}


def test_launch_by_itself_finds_the_image_that_no_generation_locks(road: Road) -> None:
    for node in road.nodes().values():
        node.check_output("rm -r /etc/ascent/%s", CLUSTER)
    run = road.play("deploy.yml", "--tags", "launch")
    assert run.rc == 0, run.stdout
    again = road.play("deploy.yml", "--tags", "launch")
    assert again.changed == {}


def test_down_leaves_the_machine_as_it_was(road: Road) -> None:
    ours = plan.from_inventory(INVENTORY)
    known = marks(ours)
    assert machine(ours) != road.before, "a sandbox that is up shows"
    assert set(traces(known)) >= {"mounts", "cgroups", "links", "processes", "data"}
    sandbox("down")
    assert machine(ours) == road.before
    assert traces(known) == {}
    assert Engine().pid() or remains_of_the_daemon() == [], "it goes on only for another sandbox"


def wrong_inventory(directory: Path, change: dict[str, Any]) -> Path:
    """A copy of the test inventory with one thing changed."""
    copy = directory / "inventory"
    shutil.copytree(INVENTORY, copy)
    hosts, variables = copy / "hosts.yml", copy / "group_vars" / f"{CLUSTER}.yml"
    tree = yaml.safe_load(hosts.read_text())
    group = tree["all"]["children"]["clusters"]["children"][CLUSTER]
    for host, values in change.get("hosts", {}).items():
        group["hosts"][host].update(values)
    if "drop" in change:
        del group["hosts"][change["drop"]]
    hosts.write_text(yaml.safe_dump(tree, sort_keys=False))
    variables.write_text(yaml.safe_dump({**yaml.safe_load(variables.read_text()), **change.get("vars", {})}))
    return copy
