"""What the sandbox decides without a daemon: programs, wreckage, the addresses a node answers at, its private knobs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.lib import engine, images, node_files, plan
from sandbox.node import boot


def make_state(profile):
    variables = {"sandbox_subnet": "198.18.0.0/16", "sandbox_services": "198.18.0.2", "sandbox_profile": profile}
    sandbox = plan.from_variables("c", variables, {"n1": {"ansible_host": "198.18.0.11"}})
    return node_files.state(sandbox, sandbox.nodes[0])


def test_a_missing_daemon_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(plan.SandboxError, match=r"apt-get install docker\.io debootstrap"):
        engine.find_daemon()


def test_the_client_beside_the_daemon_is_preferred_to_the_one_on_the_path(tmp_path, monkeypatch):
    for name in ("dockerd", "docker"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: str(tmp_path / "dockerd"))
    assert engine.find_daemon() == (tmp_path / "dockerd", tmp_path / "docker")


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine.cache_directory() == tmp_path / "ascent-sandbox"


def test_only_root_may_start_the_daemon(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "find_daemon", lambda: (Path("/nowhere/dockerd"), Path("/nowhere/docker")))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(plan.SandboxError, match="sudo"):
        engine.Engine().start()


def test_a_pid_file_of_another_program_is_not_the_daemon(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "find_daemon", lambda: (Path("/nowhere/dockerd"), Path("/nowhere/docker")))
    found = engine.Engine()
    found.root.mkdir()
    found.pidfile.write_text(str(os.getpid()))
    assert found.pid() is None


def test_wreckage_is_found_by_argument_with_its_children_and_nothing_else(tmp_path):
    prefix = f"{tmp_path}/exec/"
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    )
    with (
        subprocess.Popen([sys.executable, "-c", code, f"{prefix}socket"], stdout=subprocess.PIPE, text=True) as shim,
        subprocess.Popen(["sleep", "60"]) as bystander,
    ):
        try:
            child = int(shim.stdout.readline())
            assert engine.wreckage(prefix) == {shim.pid, child}
        finally:
            os.kill(child, 9)
            shim.kill()
            bystander.kill()
    deadline = time.monotonic() + 10
    while engine.wreckage(prefix) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.wreckage(prefix) == set()


@pytest.mark.parametrize(("profile", "count"), [("a2", 8), ("a3", 32)])
def test_a_healthy_node_answers_at_every_device_address(profile, count):
    addresses = boot.wanted_addresses(make_state(profile))
    assert len(addresses) == count
    assert "198.18.11.1/32" in addresses


def test_a_port_that_is_down_or_has_no_address_answers_at_none():
    state = make_state("a3")
    state["devices"][0]["roce"]["link"] = "DOWN"
    state["devices"][1]["roce"]["address"] = ""
    addresses = boot.wanted_addresses(state)
    assert len(addresses) == 30
    assert not {"198.18.11.1/32", "198.18.11.2/32"} & addresses
    assert "198.18.11.129/32" in addresses


def test_knobs_are_copied_with_their_values_and_live_ones_are_left_to_a_mount(tmp_path):
    source, target = tmp_path / "proc", tmp_path / "copy"
    (source / "deep").mkdir(parents=True)
    (source / "swappiness").write_text("60\n")
    (source / "deep" / "knob").write_text("1\n")
    (source / "live").write_text("7\n")
    (source / "link").symlink_to("swappiness")
    assert boot.copy_tree(source, target, {"live", "absent"}) == ["live"]
    assert (target / "swappiness").read_text() == "60\n"
    assert (target / "deep" / "knob").read_text() == "1\n"
    assert (target / "live").read_text() == ""
    assert (target / "link").is_symlink()


def test_a_knob_that_can_only_be_written_is_copied_empty(tmp_path):
    # A directory stands for any file that opens with an error.
    assert boot.knob_value(tmp_path) == b""


def test_a_node_that_cannot_be_covered_does_not_start(monkeypatch, capsys):
    def fail():
        raise boot.BootError("/proc/sys/vm belongs to the machine below and can be written")

    monkeypatch.setattr(boot, "start", fail)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("became systemd all the same"))
    assert boot.main([]) == 1
    assert "not started: /proc/sys/vm belongs to the machine below" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/sys/vm/swappiness").exists(), reason="needs Linux")
def test_the_proof_refuses_a_machine_whose_knobs_are_not_covered(monkeypatch, tmp_path):
    monkeypatch.setattr(boot, "PRIVATE", tmp_path)
    with pytest.raises(boot.BootError, match="/proc/sys"):
        boot.assert_covered()


def test_the_mirror_can_be_chosen(monkeypatch):
    monkeypatch.setenv("ASCENT_SANDBOX_DEBIAN_MIRROR", "http://mirror.example/debian")
    monkeypatch.setenv("ASCENT_SANDBOX_DEBIAN_MIRROR_BULLSEYE", "http://archive.example/debian")
    assert images.mirror("bookworm") == "http://mirror.example/debian"
    assert images.mirror("bullseye") == "http://archive.example/debian"


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("a2", {"davinci0", "davinci7", "davinci_manager", "devmm_svm", "hisi_hdc"}),
        ("gpu", {"nvidia0", "nvidia7", "nvidiactl", "nvidia-uvm"}),
    ],
)
def test_a_node_has_the_device_files_of_its_hardware(profile, names):
    state = make_state(profile)
    assert names <= set(boot.device_names(state))
    assert boot.device_names({**state, "driver": None}) == []
    assert boot.device_names(make_state("cpu")) == []


def test_a_start_makes_live_what_is_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("ASCENT_SANDBOX_ROOT", str(tmp_path))
    state = make_state("a2")
    for file in node_files.accelerator_files({**state, "driver": {**state["driver"], "version": "26.0.1"}}):
        target = tmp_path / file.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
    (tmp_path / "etc/hccn.conf").write_text("address_0=198.18.9.9\nnetmask_0=255.255.0.0\n")
    boot.load_driver(state)
    assert state["driver"]["version"] == state["tool_version"] == "26.0.1"
    assert [device["roce"]["address"] for device in state["devices"]] == ["198.18.9.9"] + [""] * 7
    (tmp_path / "usr/local/Ascend/driver/version.info").unlink()
    boot.load_driver(state)
    assert state["driver"] is None
    assert state["firmware"]["version"] == "7.8.0.6.201"
    assert boot.wanted_addresses(state) == set()


def test_the_clock_of_a_node_is_a_number_of_nanoseconds_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(boot, "CLOCK", tmp_path / "clock")
    boot.CLOCK.write_bytes(bytes(8))
    assert boot.main(["clock", "-90.5"]) == 0
    assert boot.CLOCK.read_bytes() == (-90_500_000_000).to_bytes(8, sys.byteorder, signed=True)
    assert boot.main(["clock"]) == 0
    assert capsys.readouterr().out.split() == ["-90.5", "-90.5"]
    assert boot.main(["clock", "soon"]) == 1


@pytest.mark.parametrize(("unified", "arguments"), [(True, []), (False, ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"])])
def test_newer_systemd_is_told_of_older_control_groups(monkeypatch, unified, arguments):
    monkeypatch.setattr(Path, "exists", lambda _: unified)
    assert boot.system_arguments() == arguments


def test_inotify_instances_are_counted_by_what_descriptors_are(tmp_path):
    (tmp_path / "sys/fs/inotify").mkdir(parents=True)
    (tmp_path / "sys/fs/inotify/max_user_instances").write_text("128\n")
    for number, targets in {"7": ["anon_inode:inotify", "/dev/null"], "8": ["anon_inode:inotify"] * 2}.items():
        (tmp_path / number / "fd").mkdir(parents=True)
        for index, target in enumerate(targets):
            (tmp_path / number / "fd" / str(index)).symlink_to(target)
    assert engine.inotify_instances(tmp_path) == (3, 128)
