"""Every process of the plan runs in a container of its own, also after one was lost; none is left over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.roles.helpers import changed, tree

PROCESS = {"role-01": "serve-0-head", "role-02": "serve-0-headless-1"}
ROOT = "/etc/ascent/molecule"


@pytest.fixture(scope="module")
def own(host) -> str:
    """The process of the plan that this host runs."""
    return PROCESS[host.check_output("hostname")]


@pytest.fixture(scope="module")
def container(host, own) -> dict[str, Any]:
    """Its container."""
    return json.loads(host.check_output("docker inspect %s", f"ascent-molecule-{own}"))[0]


@pytest.fixture(scope="module")
def generation(host) -> dict[str, Any]:
    """Manifest and plan of the current generation."""
    files = tree(host, f"{ROOT}/generations/1")
    return {name: json.loads(files[f"{name}.json"].text) for name in ("manifest", "plan")}


def test_the_plans_process_runs_and_no_other(host, own) -> None:
    mine = "--filter label=ascent.cluster=molecule"
    listed = host.check_output(f"docker ps --all {mine} --format '{{{{.Names}}}} {{{{.State}}}}'")
    assert listed.splitlines() == [f"ascent-molecule-{own} running"]


def test_labels_say_what_it_is(container, generation, own) -> None:
    labels = {name: value for name, value in container["Config"]["Labels"].items() if name.startswith("ascent.")}
    assert labels == {
        "ascent.cluster": "molecule",
        "ascent.process": own,
        "ascent.generation": "1",
        "ascent.definition": generation["manifest"]["processes"][own]["definition"],
    }


def test_it_runs_the_image_by_the_locked_digest(container, generation) -> None:
    # A host that got the image from another one has it under that one's name; the digest is the same everywhere.
    assert container["Config"]["Image"].endswith(f"/ascend/vllm-ascend@{generation['manifest']['digest']}")


def test_it_comes_back_after_a_boot_and_keeps_its_log_small(container) -> None:
    settings = container["HostConfig"]
    assert settings["RestartPolicy"]["Name"] == "unless-stopped"
    assert settings["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "100m", "max-file": "5"}}


def test_it_has_the_devices_and_the_network_of_the_plan(container) -> None:
    settings = container["HostConfig"]
    devices = {device["PathOnHost"] for device in settings["Devices"]}
    managers = {"/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"}
    assert devices == {f"/dev/davinci{number}" for number in range(8)} | managers
    assert settings["NetworkMode"] == "host"
    assert settings["Privileged"] is False
    assert settings["ShmSize"] == 1 << 30


def test_it_mounts_what_the_plan_says_and_its_script(container, generation, own) -> None:
    mounts = {mount["Destination"].rstrip("/"): mount for mount in container["Mounts"]}
    (process,) = (one for one in generation["plan"]["processes"] if one["name"] == own)
    planned = {mount["target"].rstrip("/") for mount in process["container"]["mounts"]}
    assert "/root/.cache" in planned
    assert set(mounts) == planned | {f"/etc/ascent/{own}.sh"}
    script = mounts[f"/etc/ascent/{own}.sh"]
    assert (script["Source"], script["RW"]) == (f"{ROOT}/generations/1/{own}.sh", False)
    assert container["Config"]["Cmd"] == ["/bin/bash", f"/etc/ascent/{own}.sh"]


def test_the_ranks_started_together(host, own, container) -> None:
    """The rank that was removed took its peer along: a rank that outlives its peers never gets well."""
    log = host.check_output("docker logs --since %s %s 2>&1", container["State"]["StartedAt"], container["Name"][1:])
    assert container["RestartCount"] <= 1, log
    if own == "serve-0-head":
        assert "Application startup complete." in log
        assert host.check_output("python3 -c %s", HEALTH) == "200"


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}


HEALTH = """
import urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open("http://198.19.0.11:8000/health", timeout=10).status)
"""
