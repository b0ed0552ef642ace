"""The model is whole on every host, the hub sent it once, and nothing of the copy goes on running."""

from __future__ import annotations

import json

import pytest

HUB = "http://198.19.0.2"
MODEL = "molecule/hub-0.5B"
DIRECTORY = "/root/.cache/modelscope/hub/models/molecule/hub-0___5B"
ASK = "import sys, urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open(sys.argv[1]).read().decode())"


def ask(host, path: str):
    return json.loads(host.check_output("python3 -c %s %s", ASK, HUB + path))


@pytest.fixture
def listed(host) -> dict:
    rows = ask(host, f"/api/v1/models/{MODEL}/repo/files?Recursive=True")["Data"]["Files"]
    return {row["Path"]: row for row in rows if row["Type"] == "blob"}


def test_every_file_is_the_hub_s(host, listed) -> None:
    names = sorted(listed)
    sums = host.check_output(f"cd {DIRECTORY} && sha256sum {' '.join(names)}").splitlines()
    assert {line.split()[1]: line.split()[0] for line in sums} == {name: listed[name]["Sha256"] for name in names}


def test_the_hub_sent_one_copy_to_one_host(host, listed) -> None:
    lines = [line for line in ask(host, "/_site/requests") if "FilePath=" in line["path"]]
    assert len({line["client"] for line in lines}) == 1
    assert sum(line["bytes"] for line in lines) == sum(row["Size"] for row in listed.values())


def test_modelscope_s_client_finds_its_own_notes(host) -> None:
    files = {name.rpartition("/")[2] for name in host.check_output("ls -A %s", DIRECTORY).split()}
    assert {".msc", ".mv", ".mdl", ".ascent-weights.json"} <= files
    assert host.file(DIRECTORY.replace("___", ".")).linked_to == DIRECTORY


def test_nothing_of_the_copy_is_left(host) -> None:
    assert host.run("ls -d /root/.cache/modelscope/hub/models/molecule/.??*").rc != 0
    assert host.run("ls /run/ascent/*.json /run/ascent/*.beat").rc != 0
    assert host.run("pgrep -f exec.sys.stdin").rc != 0
