"""The npu_package module on a made-up host, with packages that are small shell scripts."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ascent import command, packages
from ascent.node import Node
from library import npu_package

OLD, NEW = "25.0.1", "25.5.2"
INFO = "Version={0}\npackage_version={0}\n"
# Does what an installer does, and notes how it was called.
SCRIPT = """\
echo "{component} $*" >>{root}/calls
case "$*" in *--check*) {check} ; exit 0 ;; esac
{body}
"""
INSTALL = """\
mkdir -p {root}/usr/local/Ascend/{component}
printf '{info}' >{root}/usr/local/Ascend/{component}/version.info
echo '[{component}] [INFO]package installed successfully! {words}'
exit {code}
"""


class Host:
    """A root directory, packages in it, and an engine with containers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages: list[dict[str, Any]] = []
        self.containers: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.write("/proc/sys/kernel/random/boot_id", "b1\n")
        self.write("/packages/.keep", "")

    def write(self, path: str, text: str) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def has(self, component: str, version: str) -> None:
        self.write(f"/usr/local/Ascend/{component}/version.info", INFO.format(version))

    def package(self, component: str, version: str, *, code: int = 2, body: str = "", check: str = "true") -> None:
        words = "Reboot needed" if code == 2 else "takes effect immediately"
        info = INFO.format(version).replace("\n", "\\n")
        known = {"root": self.root, "component": component, "info": info, "words": words, "code": code}
        text = SCRIPT.format(**known, body=(body or INSTALL).format(**known), check=check)
        name = f"{component}.run"
        self.write(f"/packages/{name}", text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.packages.append({"component": component, "version": version, "file": name, "sha256": digest})

    def run(self, argv: list[str], timeout: float) -> tuple[int, str, str]:
        if argv[0] == "docker":
            return self.docker(list(argv[1:]))
        return command.run(argv, timeout)

    def docker(self, words: list[str]) -> tuple[int, str, str]:
        running = [one for one in self.containers if one["Name"].lstrip("/") not in self.stopped]
        if words[0] == "ps":
            return 0, "".join(f"{one['Id']}\n" for one in running), ""
        if words[0] == "inspect":
            return 0, json.dumps([one for one in running if one["Id"] in words]), ""
        self.stopped += words[1:]
        for name in words[1:]:
            for pid in (self.root / "proc").glob("[0-9]*"):
                if name in (pid / "comm").read_text():
                    (pid / "fd/3").unlink()
        return 0, "", ""

    def container(self, name: str, cluster: str) -> None:
        number = f"{len(self.containers):064x}"
        labels = {"ascent.cluster": cluster, "ascent.process": f"{name}-head"} if cluster else {}
        devices = [{"PathOnHost": "/dev/davinci0"}]
        self.containers.append(
            {"Id": number, "Name": f"/{name}", "Config": {"Labels": labels}, "HostConfig": {"Devices": devices}}
        )

    def process(self, pid: int, name: str, container: int | None = None) -> None:
        self.write(f"/proc/{pid}/comm", f"{name}\n")
        self.write(
            f"/proc/{pid}/cgroup", f"0::/system.slice/docker-{container:064x}.scope\n" if container is not None else ""
        )
        (self.root / f"proc/{pid}/fd").mkdir()
        os.symlink("/dev/davinci3", self.root / f"proc/{pid}/fd/3")

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.root / packages.RECORD[1:]).read_text())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)

    def node(root: str, timeout: float) -> Node:
        return Node(str(tmp_path), made.run, timeout)

    monkeypatch.setattr(npu_package, "Node", node)
    return made


@pytest.fixture
def call(host: Host, run_module):
    def run(check: bool = False, **more: Any) -> dict[str, Any]:
        return run_module(
            npu_package, {"packages": host.packages, "directory": "/packages", "cluster": "c1", **more}, check=check
        )

    return run


def ids(result: dict[str, Any]) -> list[str]:
    return [item["id"] for item in result["findings"]]


def test_a_bare_host_gets_the_driver_first(host: Host, call) -> None:
    host.package("firmware", "7.8.0")
    host.package("driver", NEW, code=0)
    result = call()
    assert (result["changed"], result["reboot_required"], result["findings"]) == (True, True, [])
    assert host.calls == [
        "driver --check",
        "firmware --check",
        "driver --full --install-for-all --quiet",
        "firmware --full --quiet",
    ]
    assert [(step["component"], step["from"], step["version"]) for step in result["steps"]] == [
        ("driver", None, NEW),
        ("firmware", None, "7.8.0"),
    ]
    assert host.record["reboot"] == {"boot_id": "b1", "packages": {"firmware": "7.8.0"}}
    assert host.record["unfinished"] is None


def test_an_upgrade_begins_with_the_firmware_and_is_done_once(host: Host, call) -> None:
    host.has("driver", OLD)
    host.has("firmware", "7.7.0")
    host.package("driver", NEW)
    host.package("firmware", "7.8.0")
    call()
    assert host.calls[2:] == ["firmware --upgrade --quiet", "driver --upgrade --install-for-all --quiet"]
    assert host.record["reboot"]["packages"] == {"driver": NEW, "firmware": "7.8.0"}
    again = call()
    assert (again["changed"], again["steps"], again["diff"]) == (False, [], [])
    assert len(host.calls) == 4


def test_a_dry_run_says_what_and_where_and_starts_nothing(host: Host, call) -> None:
    host.has("driver", OLD)
    host.package("driver", NEW)
    (host.root / "packages/driver.run").unlink()
    result = call(check=True)
    assert result["changed"] is True
    assert result["diff"][0]["before"] == f"driver {OLD}\n"
    assert result["diff"][0]["after"].startswith(f"driver {NEW}\n")
    assert host.calls == []
    assert not (host.root / packages.RECORD[1:]).exists()


def test_a_damaged_package_stops_all_before_anything_is_changed(host: Host, call) -> None:
    host.package("driver", NEW)
    host.package("firmware", "7.8.0")
    with (host.root / "packages/firmware.run").open("a") as file:
        file.write("#\n")
    result = call()
    assert (result["failed"], ids(result), host.calls) == (True, ["A21"], [])
    assert "wanted" in result["findings"][0]["evidence"]
    (host.root / "packages/firmware.run").unlink()
    assert ids(call()) == ["A21"]


def test_a_package_that_refuses_the_host_in_its_own_check(host: Host, call) -> None:
    host.package("driver", NEW, check="echo '[Driver] [ERROR]ERR_NO:0x0091;ERR_DES:HwHiAiUser not exists!'; exit 1")
    result = call()
    assert (ids(result), host.calls) == (["A24"], ["driver --check"])
    assert "HwHiAiUser not exists!" in result["findings"][0]["evidence"]
    assert "HwHiAiUser" in result["installer"]["output"]


def test_that_both_do_not_go_with_what_they_replace_is_no_reason_to_stop(host: Host, call) -> None:
    host.has("driver", OLD)
    host.has("firmware", "7.7.0")
    refuse = "echo '[ERROR]firmware package and the installed driver are not compatible'; exit 1"
    host.package("driver", NEW)
    host.package("firmware", "7.8.0", check=refuse)
    assert call().get("failed", False) is False
    host.packages.pop()
    host.has("firmware", "7.7.0")
    host.package("firmware", "7.8.0", check=refuse)
    assert ids(call()) == ["A24"]


FAIL = """\
echo '[Driver] [ERROR]ERR_NO:0x0003;ERR_DES:something broke'
mkdir -p {root}/usr/local/Ascend/driver
printf '{info}' >{root}/usr/local/Ascend/driver/version.info
exit 1
"""


def test_an_installer_that_fails_in_the_middle_is_named_and_repeated(host: Host, call) -> None:
    host.has("driver", OLD)
    host.has("firmware", "7.7.0")
    host.package("firmware", "7.8.0")
    host.package("driver", NEW, body=FAIL)
    result = call()
    assert (result["failed"], result["changed"], ids(result)) == (True, True, ["A24"])
    told = result["findings"][0]
    assert told["cause"] == "ERR_NO:0x0003;ERR_DES:something broke"
    assert f"put {OLD} back" in told["fix"]
    assert "firmware 7.8.0 was installed before it" in told["fix"]
    assert host.record["unfinished"]["component"] == "driver"
    assert host.record["reboot"]["packages"] == {"firmware": "7.8.0"}
    host.packages.pop()
    host.package("driver", NEW)
    result = call()
    assert [step["why"].split(" on ")[0] for step in result["steps"]] == [f"the installation of {NEW} broke off"]
    assert host.record["unfinished"] is None


def test_an_installer_that_changes_nothing_and_says_success(host: Host, call) -> None:
    host.has("driver", OLD)
    host.package("driver", NEW, body="echo 'Driver package installed successfully!'\n")
    result = call()
    assert ids(result) == ["A24"]
    assert f"its files say {OLD} after it" in result["findings"][0]["evidence"]


def test_an_installer_that_does_not_end_is_given_up(host: Host, call) -> None:
    host.package("driver", NEW, body="sleep 60\n")
    assert "no end after 3 s" in call(timeout=3)["findings"][0]["cause"]


def test_a_pair_that_does_not_fit_is_told(host: Host, call) -> None:
    host.write("/usr/local/Ascend/firmware/version.info", "Version=6.0.0\n")
    host.package("driver", NEW, code=0, body=INSTALL.replace("{info}", "{info}compatible_version_fw=[7.0.0,8.9.9]\\n"))
    result = call()
    assert (ids(result), result["changed"]) == (["A07"], True)


def test_devices_in_use_are_named(host: Host, call) -> None:
    host.package("driver", NEW)
    host.container("decode-0", "c1")
    host.process(77, "VLLMWorker_TP0 of decode-0", container=0)
    host.process(78, "python")
    result = call()
    (told,) = result["findings"]
    assert (told["id"], result["changed"], host.calls) == ("A14", False, ["driver --check"])
    assert "pid 78 (python); " in told["evidence"]
    assert "pid 77 (VLLMWorker_TP0 of decode-0) in container decode-0 (decode-0-head of c1)" in told["evidence"]
    predicted = call(check=True)
    assert [(item["id"], item["severity"]) for item in predicted["findings"]] == [("A14", "warning")]


def test_draining_stops_this_cluster_s_containers_only(host: Host, call) -> None:
    host.package("driver", NEW)
    host.container("decode-0", "c1")
    host.container("other", "")
    result = call(drain=True)
    assert (host.stopped, result["drained"], ids(result)) == (["decode-0"], ["decode-0"], ["A14"])
    assert result["findings"][0]["evidence"] == "container other"
    host.containers.pop()
    result = call(drain=True)
    assert (result["findings"], [step["component"] for step in result["steps"]]) == ([], ["driver"])


def test_cann_is_installed_while_devices_are_in_use(host: Host, call) -> None:
    host.container("decode-0", "c1")
    body = (
        "mkdir -p {root}/usr/local/Ascend/cann-8.5.0\n"
        "printf 'version=8.5.0\\narch=x\\n' >{root}/usr/local/Ascend/cann-8.5.0/ascend_toolkit_install.info\n"
        "echo '[INFO]Ascend-cann-toolkit install success'\n"
    )
    host.package("toolkit", "8.5.0", body=body)
    result = call()
    assert (result["findings"], result["reboot_required"]) == ([], False)
    assert host.calls[-1] == "toolkit --install --quiet"
