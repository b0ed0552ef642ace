"""The `.run` packages of the sandbox: what is in them, and what their installers do to a node."""

import fcntl
import importlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from ascent import cann, versions
from ascent.files import Tree
from ascent.packages import parse_name
from sandbox.lib import node_files, packages, plan
from sandbox.node import driver_info

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "sandbox/node"))
A3 = plan.load_profile("a3")
# An account that every system has; the vendor's own is made by whoever installs.
USER = ("--install-username=daemon", "--install-usergroup=daemon")


def driver(version="25.2.0"):
    return packages.driver("A3", "x86_64", A3["driver"], version)


def firmware(version="7.7.0.6.236"):
    return packages.firmware("A3", A3["firmware"], version)


class Server:
    """A directory that takes the place of a node's root, and the installers run on it."""

    def __init__(self, directory, monkeypatch, profile="a3", installed=False):
        self.root, self.scratch, self.monkeypatch, self.packed = (
            directory / "root",
            directory / "packed",
            monkeypatch,
            0,
        )
        self.installer = importlib.import_module("sandbox.packages.installer")
        for name in ("etc", "run", "usr/local/bin", "usr/local/dcmi/leases"):
            (self.root / name).mkdir(parents=True)
        (self.root / "etc/os-release").write_text("VERSION_CODENAME=bookworm\n")
        variables = {"sandbox_subnet": "198.18.0.0/16", "sandbox_services": "198.18.0.2", "sandbox_profile": profile}
        if not installed:
            variables |= {"sandbox_driver": "none", "sandbox_firmware": "none"}
        sandbox = plan.from_variables("c", variables, {"n1": {"ansible_host": "198.18.0.11"}})
        for file in node_files.accelerator_files(node_files.state(sandbox, sandbox.nodes[0])):
            target = self.root / file.path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
        monkeypatch.setenv("ASCENT_SANDBOX_ROOT", str(self.root))
        monkeypatch.setenv("ASCENT_SANDBOX_STATE", str(self.root / "usr/local/dcmi/state.json"))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(self.installer, "load", self.load)
        monkeypatch.setattr(self.installer, "open_devices", list)
        monkeypatch.setattr(self.installer, "device_containers", list)

    def run(self, package, *words, answers=""):
        directory = self.scratch / str(self.packed)
        self.packed += 1
        packages.lay_out(package, directory)
        self.monkeypatch.setattr(self.installer, "HERE", directory)
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
        out = io.StringIO()
        with redirect_stdout(out):
            try:
                code = self.installer.main(list(words))
            except SystemExit as ended:
                code = ended.code
        return SimpleNamespace(code=code, out=out.getvalue())

    def load(self):
        """What a start does with the driver on the disk."""
        state = self.state
        importlib.import_module("boot").load_driver(state)
        self.change(**state)

    @property
    def state(self):
        return json.loads((self.root / "usr/local/dcmi/state.json").read_text())

    def change(self, **changes):
        (self.root / "usr/local/dcmi/state.json").write_text(json.dumps({**self.state, **changes}))

    def text(self, path):
        return (self.root / path).read_text()


@pytest.fixture
def bare(tmp_path, monkeypatch):
    return Server(tmp_path, monkeypatch)


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = Server(tmp_path, monkeypatch, installed=True)
    info = found.root / "etc/ascend_install.info"
    info.write_text(info.read_text().replace("HwHiAiUser", "daemon"))
    return found


def test_the_first_driver_is_live_at_once_and_leaves_what_facts_are_read_from(bare):
    done = bare.run(driver(), "--full", "--install-for-all", "--quiet", *USER)
    assert done.code == 0, done.out
    assert "\033[32mDriver package installed successfully! The new version takes effect immediately." in done.out
    assert bare.state["driver"]["version"] == bare.state["tool_version"] == "25.2.0"
    read = versions.parse_driver(bare.text("usr/local/Ascend/driver/version.info"))
    assert read["version"] == "25.2.0"
    info = versions.parse_install_info(bare.text("etc/ascend_install.info"))
    assert "Driver_Install_Status=complete" in bare.text("etc/ascend_install.info")
    assert info
    assert os.access(bare.root / "usr/local/bin/npu-smi", os.X_OK)
    assert os.access(bare.root / "usr/local/Ascend/driver/tools/hccn_tool", os.X_OK)
    log = bare.text("var/log/ascend_seclog/ascend_install.log")
    assert "installed successfully" in log
    assert "\033" not in log
    assert "success" in bare.text("var/log/ascend_seclog/operation.log")


def test_an_upgrade_is_on_the_disk_and_live_after_a_start(server):
    done = server.run(driver("26.0.1"), "--upgrade", "--quiet")
    assert done.code == 2, done.out
    assert "upgraded successfully! \033[0m\033[31mReboot needed" in done.out
    assert server.state["driver"]["version"] == "25.5.2"
    assert server.state["tool_version"] == "26.0.1"
    server.load()
    assert server.state["driver"]["version"] == "26.0.1"


def test_hardware_that_can_reset_takes_the_new_version_at_once(server):
    server.change(installer={"hot_reset": True})
    assert server.run(driver("26.0.1"), "--full", "--quiet").code == 0
    assert server.state["driver"]["version"] == "26.0.1"


def test_firmware_takes_a_reboot_and_outlives_its_files(server):
    done = server.run(firmware(), "--full", "--quiet")
    assert done.code == 2
    assert "Firmware package installed successfully!" in done.out
    assert server.state["firmware"]["version"] == "7.8.0.6.201"
    server.load()
    assert server.state["firmware"]["version"] == "7.7.0.6.236"
    assert server.run(firmware(), "--uninstall", "--quiet").code == 0
    server.load()
    assert server.state["firmware"]["version"] == "7.7.0.6.236"


def test_firmware_before_any_driver_is_refused(bare):
    done = bare.run(firmware(), "--full", "--quiet", *USER)
    assert done.code == 1
    assert "install the driver package first" in done.out


def test_removing_the_driver_takes_its_tools_and_unloads_it_with_the_next_start(server):
    assert server.run(driver(), "--uninstall", "--quiet").code == 0
    assert not (server.root / "usr/local/bin/npu-smi").exists()
    assert "Driver" not in server.text("etc/ascend_install.info")
    assert server.state["driver"]["version"] == "25.5.2"
    server.load()
    assert server.state["driver"] is None
    done = server.run(driver(), "--uninstall", "--quiet")
    assert done.code == 1
    assert "ERR_NO:0x0080" in done.out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "0x0004"),
        (["--bogus"], "0x0004"),
        (["--full", "--docker"], "0x0004"),
        (["--full", "--quiet", "--install-username=daemon"], "0x0004"),
        (["--full", "--quiet", "--install-path="], "0x0003"),
        (["--full", "--quiet", "--install-path=relative", *USER], "0x0003"),
        (["--full", "--quiet", "--install-path=/no/such/parent", *USER], "0x0003"),
        (["--full", "--quiet", "--install-username=nobody-here", "--install-usergroup=daemon"], "0x0091"),
        (["--full", "--quiet", "--install-username=root", "--install-usergroup=root"], "0x0091"),
        (["--full", "--quiet", "--install-username=daemon", "--install-usergroup=sys"], "0x0096"),
    ],
)
def test_mistakes_end_with_the_vendor_s_codes(bare, words, code):
    done = bare.run(driver(), *words)
    assert done.code == 1
    assert f"ERR_NO:{code};ERR_DES:" in done.out
    assert bare.state["driver"] is None


def test_another_user_than_the_last_time_s_is_refused(server):
    words = ("--install-username=nobody", "--install-usergroup=nogroup")
    assert "ERR_NO:0x0095" in server.run(driver(), "--full", "--quiet", *words).out


def test_root_is_needed(bare, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "ERR_NO:0x0093" in bare.run(driver(), "--full", "--quiet").out


def test_a_second_installer_is_refused(bare):
    with (bare.root / "run/ascend_install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "ERR_NO:0x0094" in bare.run(driver(), "--full", "--quiet", *USER).out


def test_an_all_in_one_package_stops_it_with_the_status_of_success(bare):
    (bare.root / "etc/HiAI_install.info").touch()
    done = bare.run(driver(), "--full", "--quiet", *USER)
    assert (done.code, "ERR_NO:0x0094" in done.out) == (0, True)


def test_devices_in_use_stop_it_unless_forced(server):
    server.change(processes=[{"phy_id": 0, "pid": 7, "name": "python", "memory_mb": 1}])
    done = server.run(driver(), "--full", "--quiet")
    assert done.code == 1
    assert "davinci nodes are occupied by some processes" in done.out
    assert "process 7 python" in server.text("var/log/ascend_seclog/ascend_install.log")
    assert server.run(driver(), "--full", "--quiet", "--force").code == 2


def test_a_fault_of_the_state_ends_it(server):
    faults = {**server.state["faults"], "installer": {"code": None, "text": "Dkms install failed"}}
    server.change(faults=faults)
    done = server.run(driver(), "--full", "--quiet")
    assert (done.code, "[ERROR]Dkms install failed" in done.out) == (1, True)


def test_a_fault_may_come_when_the_files_are_on_the_disk(server):
    fault = {"code": None, "text": "Dkms install failed", "after": "files"}
    server.change(faults={**server.state["faults"], "installer": fault})
    assert server.run(driver(), "--check").code == 0
    done = server.run(driver(), "--upgrade", "--quiet")
    assert (done.code, "[ERROR]Dkms install failed" in done.out) == (1, True)
    assert server.text("usr/local/Ascend/driver/version.info").startswith("Version=25.2.0\n")
    assert "Driver_Install_Status" not in server.text("etc/ascend_install.info")


def test_it_asks_before_it_overwrites_and_takes_no_for_an_answer(server):
    assert server.run(driver(), "--full", answers="n\n").code == 0
    assert server.text("usr/local/Ascend/driver/version.info").startswith("Version=25.5.2\n")
    done = server.run(driver(), "--full", answers="what\ny\n")
    assert done.code == 2
    assert "ERR_NO:0x0002" in done.out
    assert server.text("usr/local/Ascend/driver/version.info").startswith("Version=25.2.0\n")


def test_check_compares_with_the_other_package(server):
    assert server.run(driver(), "--check").code == 0
    old = packages.firmware("A3", {"compatible_drivers": ["23.0.0"]}, "6.4.12.1.241")
    done = server.run(old, "--check")
    assert done.code == 1
    assert "not compatible" in done.out


def test_version_and_help(server):
    assert "driver version :25.2.0" in server.run(driver(), "--version").out
    assert "--install-usergroup" in server.run(driver(), "--help").out


@pytest.mark.parametrize(
    ("version", "home"), [("8.3.RC2", "ascend-toolkit/8.3.RC2/x86_64-linux"), ("8.5.0", "cann-8.5.0")]
)
def test_cann_lies_where_its_release_puts_it(bare, version, home):
    base = bare.root / "usr/local/Ascend"
    base.mkdir(parents=True)
    programs = {"bin-bookworm-x86_64/all_reduce_test": b"#!/bin/true\n"}
    toolkit = packages.toolkit("x86_64", version, programs)
    assert bare.run(packages.kernels("A3", "x86_64", version), "--install", "--quiet").code == 1
    assert bare.run(toolkit, "--install", answers="n\n").code == 0
    assert not (base / home).exists()
    done = bare.run(toolkit, "--install", "--quiet")
    assert done.code == 0, done.out
    assert "Ascend-cann-toolkit install success" in done.out
    assert (base / "ascend-toolkit/latest").resolve() == (base / home.removesuffix("/x86_64-linux")).resolve()
    assert versions.parse_cann((base / home / "ascend_toolkit_install.info").read_text())["version"] == version
    for package in (packages.kernels("A3", "x86_64", version), packages.nnal("x86_64", version)):
        assert bare.run(package, "--install", "--quiet").code == 0
        named = parse_name(package.name)
        assert (named["version"], named["machine"]) == (version, "x86_64")
    found = cann.find(Tree(str(bare.root)), "x86_64")
    assert (found["version"], found["kernels"], found["nnal"]["version"]) == (version, version, version)
    script = "cann-8.5.0/set_env.sh" if home.startswith("cann-") else "ascend-toolkit/set_env.sh"
    assert found["environment"] == f"/usr/local/Ascend/{script}"
    assert (base / "nnal/atb/latest/atb/cxx_abi_1/lib/libatb.so").exists()
    assert bare.run(toolkit, "--uninstall", "--quiet").code == 0
    assert not (base / home).exists()
    assert not (base / "ascend-toolkit/latest").is_symlink()
    assert bare.run(toolkit, "--uninstall", "--quiet").code == 1


def test_what_is_written_of_a_package_is_read_back():
    for kind, write, read in (
        ("driver", driver_info.driver_text, driver_info.driver_package),
        ("firmware", driver_info.firmware_text, driver_info.firmware_package),
    ):
        assert read(write(A3[kind])) == A3[kind]


def test_every_profile_gets_its_packages_once():
    profiles = [plan.load_profile(name) for name in ("a3", "a3", "a2", "910b4", "gpu", "cpu")]
    made = packages.for_profiles(
        profiles, arch="aarch64", drivers=["25.5.2"], firmwares=["7.8.0.6.201"], canns=["8.5.0"]
    )
    assert sorted(package.name for package in made) == [
        "Ascend-cann-910b-ops_8.5.0_linux-aarch64.run",
        "Ascend-cann-A3-ops_8.5.0_linux-aarch64.run",
        "Ascend-cann-nnal_8.5.0_linux-aarch64.run",
        "Ascend-cann-toolkit_8.5.0_linux-aarch64.run",
        "Ascend-hdk-910b-npu-driver_25.5.2_linux-aarch64.run",
        "Ascend-hdk-910b-npu-firmware_7.8.0.6.201.run",
        "Atlas-A3-hdk-npu-driver_25.5.2_linux-aarch64.run",
        "Atlas-A3-hdk-npu-firmware_7.8.0.6.201.run",
    ]


def test_an_unknown_makeself_is_refused():
    with pytest.raises(plan.SandboxError, match="not of a known makeself"):
        packages.header("#!/bin/sh\n")


def test_a_package_is_one_file_that_hands_its_options_on_and_knows_when_it_is_broken(tmp_path):
    description = {"kind": "probe", "version": "1", "label": "probe"}
    probe = packages.Package("probe.run", description, [node_files.File("/usr/local/Ascend/x", b"content")])
    (path,) = packages.write([probe], tmp_path, lambda _: None)
    shown = subprocess.run(["sh", path, "--list"], capture_output=True, text=True, check=True).stdout
    assert {"./installer.py", "./package.json", "./files/x"} <= set(shown.split())
    # The package names no kind that the installer knows, so it ends before it could do anything.
    done = subprocess.run(["sh", path, "--quiet", "--bogus"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Unrecognized flag" not in done.stdout + done.stderr
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    done = subprocess.run(["sh", path, "--full"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "checksum" in (done.stdout + done.stderr).lower()
