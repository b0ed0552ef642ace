"""Driver, firmware and CANN packages: which is wanted, in which order, and what an installer meant."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from ascent import cann, device_users, packages
from ascent.errors import ParseError
from ascent.files import Tree

SUM = "0" * 64
DRIVER, FIRMWARE = "Ascend-hdk-910b-npu-driver_{}_linux-{}.run", "Ascend-hdk-910b-npu-firmware_{}.run"


def files(root: Path, texts: dict[str, str]) -> Tree:
    for path, text in texts.items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(text)
    return Tree(str(root))


@pytest.mark.parametrize("module", [packages, device_users])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (DRIVER.format("25.0.rc1.1", "aarch64"), ("driver", "25.0.rc1.1", "910b", "aarch64")),
        (DRIVER.format("25.3.rc1", "x86-64"), ("driver", "25.3.rc1", "910b", "x86_64")),
        (FIRMWARE.format("7.7.0.1.231"), ("firmware", "7.7.0.1.231", "910b", None)),
        ("Atlas-A3-hdk-npu-driver_26.0.RC1_linux-aarch64.run", ("driver", "26.0.RC1", "A3", "aarch64")),
        ("Atlas-A3-hdk-npu-firmware_9.0.0.0.205.run", ("firmware", "9.0.0.0.205", "A3", None)),
        ("Ascend-hdk-A3-npu-driver_25.5.2_linux-x86_64.run", ("driver", "25.5.2", "A3", "x86_64")),
        ("Ascend-cann-toolkit_8.3.RC2_linux-aarch64.run", ("toolkit", "8.3.RC2", None, "aarch64")),
        ("Ascend-cann_9.0.0_linux-x86_64.run", ("toolkit", "9.0.0", None, "x86_64")),
        ("Ascend-cann-kernels-910b_8.1.RC1_linux.run", ("kernels", "8.1.RC1", "910b", None)),
        ("Atlas-A3-cann-kernels_8.2.RC1_linux-aarch64.run", ("kernels", "8.2.RC1", "A3", "aarch64")),
        ("Ascend-cann-A3-ops_9.1.0-beta.1_linux-aarch64.run", ("kernels", "9.1.0-beta.1", "A3", "aarch64")),
        ("Ascend-cann-nnal_8.5.0_linux-aarch64.run", ("nnal", "8.5.0", None, "aarch64")),
        ("Ascend-hdk-910b-npu-driver_latest_linux-aarch64.run", None),
        ("Ascend-hdk-910b-mcu_25.50.10.run", None),
        ("SHA256SUMS", None),
    ],
)
def test_names_of_the_vendor(name, expected):
    found = packages.parse_name(name)
    assert (found and tuple(found[key] for key in ("component", "version", "chip", "machine"))) == expected


def test_listing():
    assert packages.parse_listing(f"{SUM} *a.run\n{SUM}  below/b.run\n\n") == {"a.run": SUM}
    with pytest.raises(ParseError, match="line 1"):
        packages.parse_listing("a.run\n")


LISTING = dict.fromkeys(
    [
        DRIVER.format("25.2.0", "aarch64"),
        DRIVER.format("25.5.0", "x86_64"),
        DRIVER.format("25.5.rc1", "aarch64"),
        DRIVER.format("25.5.0", "aarch64"),
        "Atlas-A3-hdk-npu-driver_26.0.0_linux-aarch64.run",
        FIRMWARE.format("7.8.0.5.216"),
        "Ascend-cann-toolkit_8.5.0_linux-aarch64.run",
        "Ascend-cann-nnal_8.5.0_linux-aarch64.run",
        "Ascend-cann-nnal_9.0.0_linux-aarch64.run",
        "notes.txt",
    ],
    SUM,
)


def test_the_newest_for_chip_and_machine():
    chosen, lacking = packages.select(LISTING, packages.HARDWARE, "910B", "arm64")
    assert [one["file"] for one in chosen] == [DRIVER.format("25.5.0", "aarch64"), FIRMWARE.format("7.8.0.5.216")]
    assert lacking == []
    assert not any(one["pinned"] for one in chosen)


def test_a_pinned_version_or_what_is_lacking():
    ((driver,), _) = packages.select(LISTING, ["driver"], "910b", "aarch64", {"driver": "25.2"})
    assert (driver["version"], driver["pinned"]) == ("25.2.0", True)
    chosen, (lack,) = packages.select(LISTING, ["driver"], "910b", "aarch64", {"driver": "24.1"})
    assert chosen == []
    assert lack["wanted"] == "driver version 24.1 for 910b on aarch64"
    assert DRIVER.format("25.2.0", "aarch64") in lack["found"]
    assert packages.select({}, ["nnal"], "A3", "aarch64")[1][0]["found"] == "no nnal package at all"


def test_parts_of_cann_follow_the_toolkit():
    chosen, (lack,) = packages.select(LISTING, packages.CANN, "910b", "aarch64")
    assert [(one["component"], one["version"]) for one in chosen] == [("toolkit", "8.5.0"), ("nnal", "8.5.0")]
    assert lack["wanted"] == "kernels version 8.5.0 for 910b on aarch64"


def wanted(**versions):
    return [
        {"component": name, "version": version, "file": f"{name}.run", "sha256": SUM, "pinned": False}
        for name, version in versions.items()
    ]


NOTHING = {"unfinished": None, "reboot": None, "installed": {}}
BOTH = wanted(driver="25.5.2", firmware="7.8.0.6.201")


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ({}, [("driver", "install"), ("firmware", "install")]),
        ({"firmware": "7.7.0.1.231"}, [("driver", "install"), ("firmware", "upgrade")]),
        ({"driver": "25.0.1", "firmware": "7.7.0.1.231"}, [("firmware", "upgrade"), ("driver", "upgrade")]),
        ({"driver": "25.5.2", "firmware": "7.7.0.1.231"}, [("firmware", "upgrade")]),
        ({"driver": "25.5.2", "firmware": "7.8.0.6.201"}, []),
        ({"driver": "26.0", "firmware": "7.8.0.6.201"}, []),
    ],
)
def test_order_of_the_vendor(present, expected):
    steps = packages.due(BOTH, present, NOTHING)
    assert [(step["component"], step["action"]) for step in steps] == expected


def test_a_newer_version_gives_way_to_a_pinned_one():
    pinned = [{**BOTH[0], "pinned": True}]
    (step,) = packages.due(pinned, {"driver": "26.0"}, NOTHING)
    assert (step["from"], step["version"]) == ("26.0", "25.5.2")


def test_a_package_whose_files_carry_another_number_is_installed_once():
    record = {**NOTHING, "installed": {"driver": {"sha256": SUM, "version": "25.5.0"}}}
    assert packages.due(wanted(driver="25.5.0.b061"), {"driver": "25.5.0"}, record) == []
    assert packages.due(wanted(driver="25.5.0.b061"), {"driver": "25.4.0"}, record) != []


def test_what_broke_off_is_installed_again():
    present = {"driver": "25.5.2", "firmware": "7.8.0.6.201"}
    broken = {**NOTHING, "unfinished": {"component": "driver", "version": "25.5.2", "since": "2026-01-01T00:00:00Z"}}
    (step,) = packages.due(BOTH, present, broken)
    assert step["why"] == "the installation of 25.5.2 broke off on 2026-01-01T00:00:00Z"
    (step,) = packages.due(BOTH, present, NOTHING, "")
    assert "Driver_Install_Status is empty" in step["why"]
    assert packages.due(BOTH, present, NOTHING, None) == packages.due(BOTH, present, NOTHING, "complete") == []


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, "Driver package installed successfully! The new version takes effect immediately.", "live"),
        (2, "\x1b[32mDriver package upgraded successfully! \x1b[0m\x1b[31mReboot needed for it! \x1b[0m", "reboot"),
        (0, "Driver package installed successfully! Reboot needed for installation to take effect!", "reboot"),
        (2, "Driver package install finished!\nKernel modules can not be removed, reboot needed", "reboot"),
        (0, "[INFO]Ascend-cann-toolkit install success", "live"),
        (2, "Error in SHA256 checksums: 1 is different from 2", "failed"),
        (0, "ERR_NO:0x0094;ERR_DES: An all-in-one RUN package is found", "failed"),
        (1, "Driver package installed successfully!", "failed"),
        (0, "", "failed"),
        (124, "", "failed"),
    ],
)
def test_exit_codes_and_words(code, output, expected):
    assert packages.outcome(code, output) == expected


def test_cause_is_the_installer_s_own():
    output = "[Driver] [2026-01-01 10:00:00] [INFO]Start\n[Driver] [x] [ERROR]\x1b[31mno space\x1b[0m"
    assert packages.cause(output, "").endswith("no space")
    log = "[Driver] [2026-01-01 10:00:00] [ERROR]driver build fail\n"
    assert packages.cause("Verifying archive\n", log) == "driver build fail"
    assert packages.cause("", "") == "the installer said nothing"
    assert packages.cause("one\ntwo\n", "") == "two"


@pytest.mark.parametrize(
    ("present", "status", "words"),
    [
        ("25.0.1", "complete", "25.0.1 is still in place"),
        ("25.0.1", None, "25.0.1 is still in place"),
        ("25.0.1", "", "put 25.0.1 back"),
        ("25.5.2", "complete", "put 25.0.1 back"),
        (None, None, "put 25.0.1 back"),
    ],
)
def test_way_back_from_an_upgrade(present, status, words):
    step = {**BOTH[0], "from": "25.0.1", "action": "upgrade"}
    assert words in packages.way_back(step, present, status, "/usr/local/Ascend")


def test_way_back_from_a_first_installation():
    step = {**BOTH[0], "from": None, "action": "install"}
    assert "nothing of driver is on the disk" in packages.way_back(step, None, None, "/a")
    assert "/a/driver/script/uninstall.sh" in packages.way_back(step, "25.5.2", "", "/a")


def npu(**changes):
    facts = {
        "driver": {"version": "25.5.2", "component_version": "25.5.2"},
        "firmware": {"version": "7.8.0.6.201", "package_version": "7.8.0.6.201"},
        "live": {"driver": "25.5.2", "firmware": "7.8.0.6.201"},
        "packages": NOTHING,
    }
    return {**facts, **changes}


def test_reasons_for_a_reboot():
    assert packages.reboot_reasons(npu(), "b1") == packages.reboot_reasons(None, "b1") == []
    stale = npu(live={"driver": "25.0.1", "firmware": "7.8.0.6.201"})
    assert packages.reboot_reasons(stale, "b1") == ["driver 25.5.2 is on the disk, 25.0.1 is live"]
    assert packages.not_active(stale, "b1") == []
    ours = {"driver": {"sha256": SUM, "version": "25.5.2"}}
    record = {**NOTHING, "reboot": {"boot_id": "b1", "packages": {"driver": "25.5.2"}}, "installed": ours}
    assert packages.reboot_reasons(npu(packages=record), "b1") == ["driver 25.5.2 was installed"]
    assert packages.reboot_reasons(npu(packages=record), "b2") == []


def test_a_reboot_that_did_not_help_is_no_reason_for_another():
    ours = {"driver": {"sha256": SUM, "version": "25.5.2"}}
    record = {**NOTHING, "reboot": {"boot_id": "b1", "packages": {"driver": "25.5.2"}}, "installed": ours}
    stale = npu(live={"driver": "25.0.1", "firmware": None}, packages=record)
    assert packages.reboot_reasons(stale, "b2") == []
    assert packages.not_active(stale, "b2") == ["driver 25.5.2 is on the disk, 25.0.1 is live"]


def test_the_record_outlives_what_can_not_be_read(tmp_path):
    tree = files(tmp_path, {packages.RECORD: "{half"})
    assert packages.read_record(tree) == NOTHING
    packages.write_record(tree, {**NOTHING, "unfinished": {"component": "driver"}})
    assert packages.read_record(tree)["unfinished"] == {"component": "driver"}


# -- CANN --------------------------------------------------------------------------------------------------------------

BASE = "/usr/local/Ascend"


def info(version, arch="aarch64"):
    return f"package_name=Ascend-cann-toolkit\nversion={version}\narch={arch}\nos=linux\npath=x\n"


def test_no_cann(tmp_path):
    assert cann.find(Tree(str(tmp_path)), "aarch64") is None
    assert set(packages.installed(Tree(str(tmp_path)), "aarch64").values()) == {None}


def test_cann_of_the_old_layout(tmp_path):
    tree = files(
        tmp_path,
        {
            f"{BASE}/ascend-toolkit/8.3.RC2/aarch64-linux/ascend_toolkit_install.info": info("8.3.RC2"),
            f"{BASE}/ascend-toolkit/8.3.RC2/opp_kernel/version.info": "Version=8.3.T5.0.B028\nversion_dir=8.3.RC2\n",
            f"{BASE}/ascend-toolkit/set_env.sh": "",
            f"{BASE}/nnal/atb/8.3.RC2/version.info": "",
            f"{BASE}/nnal/atb/set_env.sh": "",
        },
    )
    (tmp_path / BASE[1:] / "ascend-toolkit/latest").symlink_to("8.3.RC2")
    (tmp_path / BASE[1:] / "nnal/atb/latest").symlink_to("8.3.RC2")
    assert cann.find(tree, "aarch64") == {
        "version": "8.3.RC2",
        "arch": "aarch64",
        "path": f"{BASE}/ascend-toolkit/8.3.RC2/aarch64-linux",
        "environment": f"{BASE}/ascend-toolkit/set_env.sh",
        "kernels": "8.3.RC2",
        "nnal": {
            "version": "8.3.RC2",
            "path": f"{BASE}/nnal/atb/8.3.RC2",
            "environment": f"{BASE}/nnal/atb/set_env.sh",
        },
    }
    assert packages.installed(tree, "aarch64")["nnal"] == "8.3.RC2"


def test_cann_of_the_new_layout_beside_an_old_link(tmp_path):
    tree = files(
        tmp_path,
        {
            f"{BASE}/ascend-toolkit/8.3.RC2/aarch64-linux/ascend_toolkit_install.info": info("8.3.RC2"),
            f"{BASE}/ascend-toolkit/set_env.sh": "",
            f"{BASE}/cann-8.5.0/aarch64-linux/ascend_toolkit_install.info": info("8.5.0"),
            f"{BASE}/cann-8.5.0/aarch64-linux/ascend_ops_install.info": "package_name=x\nversion=8.5.0\n",
            f"{BASE}/cann-8.5.0/set_env.sh": "",
        },
    )
    (tmp_path / BASE[1:] / "ascend-toolkit/latest").symlink_to("8.3.RC2")
    found = cann.find(tree, "aarch64")
    assert (found["version"], found["path"]) == ("8.5.0", f"{BASE}/cann-8.5.0/aarch64-linux")
    assert (found["environment"], found["kernels"]) == (f"{BASE}/cann-8.5.0/set_env.sh", "8.5.0")
    assert found["nnal"] is None


def test_an_environment_that_is_not_there_is_not_guessed(tmp_path):
    tree = files(tmp_path, {f"{BASE}/cann/ascend_toolkit_install.info": info("8.5.0", "x86_64")})
    found = cann.find(tree, "aarch64")
    assert (found["environment"], found["arch"], found["kernels"]) == (None, "x86_64", None)
