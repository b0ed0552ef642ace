"""Three servers of different states end equal. On the way everything goes wrong that can; nothing is ever half-done.

Each test stands on the ones before it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox.lib import packages, plan
from sandbox.lib.engine import Engine
from tests.e2e.driver import Road, Run
from tests.provision.conftest import CANN, DRIVER, FIRMWARE

TAGS = "--tags npu_driver,gpu_driver,reboot,cann"
STATE = "/usr/local/dcmi/state.json"
OPERATIONS = "/var/log/ascend_seclog/operation.log"


class Rack:
    """Runs of provision's driver part on the rack, and what its nodes say."""

    def __init__(self, road: Road, source: Path) -> None:
        self.road = road
        self.source = source

    def run(self, *more: str, source: Path | str | None = None) -> Run:
        return self.road.play("deploy.yml", TAGS, f"-e npu_driver_source={source or self.source}", *more)

    def versions(self, name: str) -> tuple[str, str, str]:
        """Driver and firmware on the disk, and the driver that is live."""
        files = "/usr/local/Ascend/{driver,firmware}/version.info"
        disk = self.road.node(name).run(f"bash -c 'grep -h ^package_version= {files}'").stdout.split()
        live = self.road.node(name).run("npu-smi info | grep -o 'Version: [^ |]*'").stdout.split()
        found = [line.partition("=")[2] for line in disk] + ["", ""]
        return found[0], found[1], live[-1] if live else ""

    def boots(self) -> dict[str, str]:
        return {
            name: node.check_output("cat /proc/sys/kernel/random/boot_id") for name, node in self.road.nodes().items()
        }

    def installs(self) -> dict[str, int]:
        """How many installers have ended on each node, well or not."""
        return {
            name: int(node.check_output("cat %s 2>/dev/null | wc -l", OPERATIONS))
            for name, node in self.road.nodes().items()
        }

    def state(self, name: str, **faults: Any) -> None:
        """Sets faults of a node's state file."""
        change = (
            "import json, sys; p = sys.argv[1]; s = json.load(open(p)); s['faults'].update(json.loads(sys.argv[2]));"
        )
        self.road.node(name).check_output(
            "python3 -c %s %s %s", change + "json.dump(s, open(p, 'w'))", STATE, json.dumps(faults)
        )


@pytest.fixture(scope="module")
def nodes(rack: Road, run_files: Path) -> Rack:
    return Rack(rack, run_files)


def told(run: Run) -> list[tuple[str, str]]:
    """Host and id of every error."""
    return sorted((item["host"], item["id"]) for item in run.findings() if item["severity"] == "error")


def errors(run: Run, host: str) -> dict[str, Any]:
    (found,) = [item for item in run.findings() if item["severity"] == "error" and item["host"] == host]
    return found


def fingerprint(node: Any) -> str:
    """What a dry run could disturb: packages, users, files of the driver, configuration."""
    return node.check_output(
        "(dpkg-query -W; ls -laR --time-style=full-iso /etc /usr/local /var/lib/ascent 2>/dev/null"
        " | grep -v -e resolv.conf -e mtab -e 'state.json' -e '\\.lock' -e 'dcmi') | sha256sum"
    )


OLD = ("25.0.1", "7.7.0.1.231", "25.0.1")
RIGHT = (DRIVER, FIRMWARE, DRIVER)


def test_a_dry_run_lists_it_all_and_touches_nothing(nodes: Rack) -> None:
    before = {name: fingerprint(node) for name, node in nodes.road.nodes().items()}
    run = nodes.run("--check", "--diff", f"-e cann_source={nodes.source}")
    assert run.rc == 0, run.stdout
    assert {name: fingerprint(node) for name, node in nodes.road.nodes().items()} == before
    assert set(run.changed) == {"bare", "old", "right"}, "the right one lacks CANN only"
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", run.stdout).splitlines()]
    for line in (
        "-driver not installed",
        "-firmware 7.7.0.1.231",
        "-driver 25.0.1",
        f"+driver {DRIVER}",
        f"+firmware {FIRMWARE}",
        "+reboot if an installer asks for it",
        f"+toolkit {CANN}",
    ):
        assert line in lines, run.stdout


def test_another_package_manager_is_named(nodes: Rack) -> None:
    hold = (
        "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w');"
        "fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(600)"
    )
    nodes.road.node("old").check_output("systemd-run --unit upgrades python3 -c %s", hold)
    run = nodes.run("-e npu_driver_lock_timeout=1")
    nodes.road.node("old").check_output("systemctl stop upgrades")
    assert told(run) == [("old", "B16")], run.stdout
    assert "lock" in errors(run, "old")["evidence"]
    assert nodes.versions("old") == OLD
    assert sum(nodes.installs().values()) == 0


def test_a_damaged_package_is_named_before_anything_is_changed(nodes: Rack, tmp_path: Path) -> None:
    source = tmp_path / "packages"
    shutil.copytree(nodes.source, source)
    (firmware,) = source.glob("*firmware*")
    firmware.write_bytes(firmware.read_bytes()[:-1] + b"?")
    run = nodes.run(source=source)
    assert told(run) == [("bare", "A21"), ("old", "A21")], run.stdout
    assert nodes.versions("old") == OLD
    assert nodes.versions("bare") == ("", "", "")
    assert sum(nodes.installs().values()) == 0


def test_devices_in_use_are_named_with_their_user(nodes: Rack) -> None:
    node = nodes.road.node("old")
    hold = "import time; f = open('/dev/davinci3'); time.sleep(600)"
    node.check_output("systemd-run --unit leftover python3 -c %s", hold)
    pid = node.check_output("systemctl show --value --property MainPID leftover")
    run = nodes.run("-l old")
    node.check_output("systemctl stop leftover")
    assert told(run) == [("old", "A14")], run.stdout
    assert f"pid {pid} (python3)" in errors(run, "old")["evidence"]
    assert nodes.versions("old") == OLD


def test_an_installer_that_fails_in_the_middle_says_why_and_the_way_back(nodes: Rack) -> None:
    words = "driver build fail, /lib/modules/5.10.0-216/build: No such file or directory"
    nodes.state("old", installer={"code": None, "text": words, "after": "files"})
    run = nodes.run("-l old")
    nodes.state("old", installer=None)
    assert told(run) == [("old", "A15")], run.stdout
    finding = errors(run, "old")
    assert words in finding["evidence"]
    assert "put 7.7.0.1.231 back" in finding["fix"]
    record = json.loads(nodes.road.node("old").file("/var/lib/ascent/npu_package.json").content_string)
    assert record["unfinished"]["component"] == "firmware"


def test_the_first_host_that_does_not_come_back_is_the_last_that_goes(nodes: Rack) -> None:
    """The bare one and the old one are installed; the bare one goes first, and its sshd does not start again."""
    before = nodes.boots()
    nodes.road.node("bare").check_output("systemctl mask ssh.service ssh.socket")
    run = nodes.run("-e reboot_batch=1", "-e reboot_timeout=15")
    (container,) = [one["Name"] for one in Engine().containers("provision") if "bare" in one["Name"]]
    for command in (("systemctl", "unmask", "ssh.service", "ssh.socket"), ("systemctl", "start", "ssh")):
        Engine().run("exec", container.lstrip("/"), *command)
    assert told(run) == [("bare", "A22")], run.stdout
    assert "did not come back" in errors(run, "bare")["summary"]
    after = nodes.boots()
    assert {name for name in before if before[name] != after[name]} == {"bare"}
    assert nodes.versions("bare") == RIGHT
    assert nodes.versions("old")[:2] == RIGHT[:2], "installed, and waiting"


def test_a_version_that_is_not_active_after_the_reboot_is_named(nodes: Rack) -> None:
    before = nodes.boots()
    nodes.state("old", old_modules=True)
    run = nodes.run()
    assert told(run) == [("old", "A23")], run.stdout
    assert f"driver {DRIVER} is on the disk, 25.0.1 is live" in errors(run, "old")["evidence"]
    after = nodes.boots()
    assert {name for name in before if before[name] != after[name]} == {"old"}
    # Another reboot would not help either, so none is made.
    run = nodes.run()
    assert told(run) == [("old", "A23")], run.stdout
    assert nodes.boots() == after


def test_all_end_equal_and_the_second_run_changes_nothing(nodes: Rack) -> None:
    """The operator repairs the old modules and reboots by hand; from then on nothing is left to do."""
    before = nodes.boots()
    nodes.state("old", old_modules=False)
    nodes.road.node("old").run("systemctl reboot")
    while not _back(nodes, before["old"]):
        time.sleep(0.5)
    installs = nodes.installs()
    run = nodes.run()
    assert run.rc == 0, run.stdout
    assert run.changed == {}
    assert [name for name in run.rounds if "npu_driver" in name] == ["npu_driver : Judge driver and firmware"]
    assert nodes.installs() == installs
    assert {nodes.versions(name) for name in nodes.road.addresses} == {RIGHT}
    assert nodes.installs()["right"] == 0, "the right one was never touched"


def _back(nodes: Rack, before: str) -> bool:
    try:
        return nodes.road.node("old").check_output("cat /proc/sys/kernel/random/boot_id") != before
    except RuntimeError:  # its sshd is not there, or not yet
        return False


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with the next pair."""
    directory = tmp_path_factory.mktemp("newer")
    profile = [plan.load_profile("a3")]
    made = packages.for_profiles(profile, drivers=["25.5.3"], firmwares=["7.8.0.7.100"], canns=[])
    packages.write(made, directory, print)
    return directory


# A container of one program of the node's own, as an engine's is labelled and given devices.
ENGINE = """
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq docker.io >/dev/null
parts=$(ldd /bin/sleep | grep -o '/[^ ]*')
tar --create --dereference --absolute-names /bin/sleep $parts | docker import - localhost/engine:1
docker run --detach --name ascent-decode --network none --device /dev/davinci0 --restart unless-stopped \\
  --label ascent.cluster=rack --label ascent.process=decode-0-headless-1 localhost/engine:1 /bin/sleep infinity
"""


def test_a_serving_host_is_named_and_left_alone(nodes: Rack, newer: Path) -> None:
    node = nodes.road.node("right")
    node.check_output("bash -e -o pipefail -c %s", ENGINE)
    run = nodes.run("-l right", source=newer)
    assert told(run) == [("right", "A14")], run.stdout
    assert "container ascent-decode (decode-0-headless-1 of rack)" in errors(run, "right")["evidence"]
    assert "npu_driver_drain" in errors(run, "right")["fix"]
    assert node.check_output("docker inspect --format '{{.State.Status}}' ascent-decode") == "running"
    assert nodes.versions("right") == RIGHT


def test_an_upgrade_drains_reboots_and_proves_all_of_it(nodes: Rack, newer: Path) -> None:
    """The node without a head goes first, then one after the other those with one."""
    before = nodes.boots()
    run = nodes.run("-e reboot_batch=50%", "-e npu_driver_drain=true", source=newer)
    assert run.rc == 0, run.stdout
    after = nodes.boots()
    assert all(before[name] != after[name] for name in before)
    assert {nodes.versions(name) for name in before} == {("25.5.3", "7.8.0.7.100", "25.5.3")}
    batches = [name for name in run.rounds if name.startswith("reboot : ")]
    assert batches == [f"reboot : Reboot and prove {name}" for name in ("right", "bare", "old")]
    state = nodes.road.node("right").check_output("docker inspect --format '{{.State.Status}}' ascent-decode")
    assert state == "exited", "the launch starts it again"


def test_cann_comes_from_the_mirror_and_its_environment_is_found(nodes: Rack) -> None:
    mirror = f"http://{plan.from_inventory(nodes.road.inventory).services}/packages"
    more = ("--tags cann", f"-e cann_source={mirror}")
    run = nodes.road.play("deploy.yml", *more)
    assert run.rc == 0, run.stdout
    assert set(run.changed) == set(nodes.road.addresses)
    for node in nodes.road.nodes().values():
        assert node.check_output(
            "bash -c '. /usr/local/Ascend/cann-%s/set_env.sh && echo $ASCEND_TOOLKIT_HOME'", CANN
        ).endswith("/cann")
        assert not node.file("/var/lib/ascent/packages").exists
    run = nodes.road.play("deploy.yml", *more)
    assert (run.rc, run.changed) == (0, {}), run.stdout
