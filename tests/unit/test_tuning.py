"""ascent.tuning on a made-up host tree: what it plans, writes, reports and takes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import tuning
from ascent.errors import AscentError, InputError
from ascent.files import Tree

SEED = {
    "governor": "performance",
    "sysctl": {"vm.swappiness": 0, "kernel.numa_balancing": 0, "kernel.sched_migration_cost_ns": 50000},
    "debugfs": {"kernel.sched_migration_cost_ns": "/sys/kernel/debug/sched/migration_cost_ns"},
    "reserved_ports": ["23010-23025", "6884"],
}
DEBUGFS = "sys/kernel/debug/sched/migration_cost_ns"
SCHED = "proc/sys/kernel/sched_migration_cost_ns"


def put(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Four CPUs on powersave, a newer kernel (debugfs instead of the sysctl) and one port reserved by others."""
    put(tmp_path, "proc/sys/vm/swappiness", "60\n")
    put(tmp_path, "proc/sys/kernel/numa_balancing", "1\n")
    put(tmp_path, "proc/sys/net/ipv4/ip_local_reserved_ports", "8080\n")
    put(tmp_path, "proc/self/status", "Name:\tpython3\nCapEff:\t000001ffffffffff\n")
    put(tmp_path, DEBUGFS, "500000\n")
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        put(tmp_path, f"{folder}/scaling_governor", "powersave\n")
        put(tmp_path, f"{folder}/scaling_available_governors", "performance powersave\n")
    return tmp_path


def run(root: Path, **wish: object) -> dict:
    tree = Tree(str(root))
    checked = tuning.wanted(**wish)
    observed = tuning.observe(checked, tree)
    decided = tuning.plan(checked, observed)
    tuning.apply(decided, observed, tree)
    if decided["unit"] == "enable":
        put(root, tuning.UNIT_LINK.lstrip("/"), "")
    elif decided["unit"] == "disable":
        (root / tuning.UNIT_LINK.lstrip("/")).unlink()
        (root / tuning.UNIT_FILE.lstrip("/")).unlink()
    return decided


def snapshot(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text().strip() for path in root.rglob("*") if path.is_file()}


def test_the_seeds_knobs_are_set_live_and_for_the_next_boot(host: Path) -> None:
    run(host, **SEED)
    now = snapshot(host)
    assert now["proc/sys/vm/swappiness"] == "0"
    assert now["proc/sys/kernel/numa_balancing"] == "0"
    assert now[DEBUGFS] == "50000"
    assert now["proc/sys/net/ipv4/ip_local_reserved_ports"] == "6884,8080,23010-23025"
    assert {text for path, text in now.items() if path.endswith("scaling_governor")} == {"performance"}
    assert now["etc/sysctl.d/90-ascent.conf"].splitlines() == [
        "# Ansible managed",
        "# ascent:host_tuning",
        "kernel.numa_balancing = 0",
        "net.ipv4.ip_local_reserved_ports = 6884,8080,23010-23025",
        "vm.swappiness = 0",
    ]
    unit = now["etc/systemd/system/ascent-host-tuning.service"]
    assert "echo performance >" in unit
    assert "'echo 50000 > /sys/kernel/debug/sched/migration_cost_ns'" in unit


def test_an_older_kernel_gets_the_sysctl_and_not_debugfs(host: Path) -> None:
    put(host, SCHED, "500000\n")
    run(host, **SEED)
    now = snapshot(host)
    assert now[SCHED] == "50000"
    assert now[DEBUGFS] == "500000"
    assert "kernel.sched_migration_cost_ns = 50000" in now["etc/sysctl.d/90-ascent.conf"]
    assert "migration_cost" not in now["etc/systemd/system/ascent-host-tuning.service"]


def test_the_second_run_changes_nothing(host: Path) -> None:
    assert tuning.changes(run(host, **SEED))
    before = snapshot(host)
    assert not tuning.changes(run(host, **SEED))
    assert snapshot(host) == before


def test_undo_leaves_the_host_as_it_was(host: Path) -> None:
    before = snapshot(host)
    run(host, **SEED)
    run(host)
    assert snapshot(host) == before
    assert not tuning.changes(run(host))


def test_a_knob_no_longer_wanted_goes_back_and_the_others_stay(host: Path) -> None:
    run(host, **SEED)
    decided = run(host, governor="performance", sysctl={"kernel.numa_balancing": 0}, reserved_ports=["6884"])
    now = snapshot(host)
    assert now["proc/sys/vm/swappiness"] == "60"
    assert now[DEBUGFS] == "500000"
    assert now["proc/sys/kernel/numa_balancing"] == "0"
    assert decided["reserved"] == now["proc/sys/net/ipv4/ip_local_reserved_ports"] == "6884,8080"
    run(host)
    assert snapshot(host)["proc/sys/kernel/numa_balancing"] == "1"


def test_the_first_value_is_remembered_through_later_changes(host: Path) -> None:
    run(host, sysctl={"vm.swappiness": 10})
    run(host, sysctl={"vm.swappiness": 0})
    run(host)
    assert snapshot(host)["proc/sys/vm/swappiness"] == "60"


def test_drift_is_put_right(host: Path) -> None:
    run(host, **SEED)
    put(host, "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave\n")
    put(host, "etc/sysctl.d/90-ascent.conf", "vm.swappiness = 30\n")
    decided = run(host, **SEED)
    assert [write["path"] for write in decided["writes"]] == ["/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor"]
    assert list(decided["files"]) == [tuning.SYSCTL_FILE]


def test_ports_that_others_reserve_later_survive_our_changes(host: Path) -> None:
    run(host, reserved_ports=["7000-7001"])
    put(host, "proc/sys/net/ipv4/ip_local_reserved_ports", "7000-7001,8080,9000\n")
    run(host, reserved_ports=["7001"])
    assert snapshot(host)["proc/sys/net/ipv4/ip_local_reserved_ports"] == "7001,8080,9000"
    run(host)
    assert snapshot(host)["proc/sys/net/ipv4/ip_local_reserved_ports"] == "8080,9000"


def test_a_kernel_without_the_knobs_is_told_and_not_failed(tmp_path: Path) -> None:
    put(tmp_path, "proc/sys/vm/swappiness", "60\n")
    decided = run(tmp_path, **SEED)
    assert {item["id"] for item in decided["findings"]} == {"tuning-knob-absent", "tuning-governor-absent"}
    assert {item["severity"] for item in decided["findings"]} == {"info"}
    assert snapshot(tmp_path)["etc/sysctl.d/90-ascent.conf"].splitlines()[2:] == ["vm.swappiness = 0"]
    assert not (tmp_path / tuning.UNIT_FILE.lstrip("/")).exists()


def test_a_governor_that_is_not_offered_is_a_warning_and_is_not_written(host: Path) -> None:
    decided = run(host, governor="schedutil")
    assert [item["id"] for item in decided["findings"]] == ["tuning-governor-refused"]
    assert "performance powersave" in decided["findings"][0]["evidence"]
    assert not tuning.changes(decided)


def test_limits_cover_root_and_everyone(host: Path) -> None:
    run(host, limits={"nofile": 1048576, "memlock": "unlimited"})
    assert snapshot(host)["etc/security/limits.d/90-ascent.conf"].splitlines()[2:] == [
        "* - memlock unlimited",
        "root - memlock unlimited",
        "* - nofile 1048576",
        "root - nofile 1048576",
    ]


def test_limits_that_would_lock_everybody_out_are_not_written(host: Path) -> None:
    put(host, "proc/self/status", "CapEff:\t00000000a80425fb\n")
    decided = run(host, limits={"nofile": 1048576})
    assert [item["id"] for item in decided["findings"]] == ["tuning-limits-refused"]
    assert not decided["files"]


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        tuning.wanted(
            governor="a b",
            sysctl={"vm.swappiness": False, "../etc/passwd": 1, tuning.RESERVED_PORTS: "1", "kernel.x": "$(reboot)"},
            debugfs={"kernel.x": "/etc/passwd"},
            reserved_ports=["9-8", "70000"],
            limits={"nofile": "many"},
        )
    text = str(caught.value)
    for part in (
        "'a b'",
        "vm.swappiness",
        "../etc",
        "reserved_ports",
        "reboot",
        "/etc/passwd",
        "'9-8'",
        "'70000'",
        "many",
    ):
        assert part in text
    assert len(caught.value.findings) == 9


def test_a_damaged_memory_of_the_old_values_stops_the_run(host: Path) -> None:
    run(host, **SEED)
    put(host, tuning.STATE_FILE.lstrip("/"), json.dumps({"schema": 1}))
    with pytest.raises(AscentError, match=tuning.STATE_FILE):
        run(host, **SEED)


def test_a_knob_that_does_not_take_its_value_is_named(host: Path) -> None:
    class Clamping(Tree):
        def write_knob(self, path: str, value: str) -> None:
            super().write_knob(path, "1" if path.endswith("swappiness") else value)

    checked = tuning.wanted(sysctl={"vm.swappiness": 0})
    tree = Clamping(str(host))
    observed = tuning.observe(checked, tree)
    with pytest.raises(AscentError, match=r"vm\.swappiness: wrote '0' but .* reads back '1'"):
        tuning.apply(tuning.plan(checked, observed), observed, tree)


def test_a_knob_that_refuses_the_write_is_named_and_can_still_be_undone(host: Path) -> None:
    class Refusing(Tree):
        def write_knob(self, path: str, value: str) -> None:
            if path.endswith("swappiness"):
                raise PermissionError(13, "Permission denied")
            super().write_knob(path, value)

    before = snapshot(host)
    checked = tuning.wanted(**SEED)
    tree = Refusing(str(host))
    observed = tuning.observe(checked, tree)
    with pytest.raises(AscentError, match=r"vm\.swappiness: wanted '0', found '60'"):
        tuning.apply(tuning.plan(checked, observed), observed, tree)
    assert snapshot(host) != before
    run(host)
    assert snapshot(host) == before


def test_the_diff_shows_the_live_values_and_the_files_and_counts_cpus(host: Path) -> None:
    tree = Tree(str(host))
    checked = tuning.wanted(**SEED)
    observed = tuning.observe(checked, tree)
    parts = tuning.diff(tuning.plan(checked, observed), observed)
    assert [part["after_header"] for part in parts] == ["live", tuning.SYSCTL_FILE, tuning.UNIT_FILE]
    assert "governor of 4 CPUs = powersave\n" in parts[0]["before"]
    assert "vm.swappiness = 60\n" in parts[0]["before"]
    assert "vm.swappiness = 0\n" in parts[0]["after"]


@given(st.sets(st.integers(1, 65535), max_size=50))
def test_ports_survive_the_kernels_list_form(ports: set[int]) -> None:
    text = tuning.format_ports(ports)
    assert tuning.parse_ports(text) == ports
    assert tuning.format_ports(tuning.parse_ports(text)) == text


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vm.swappiness", "/proc/sys/vm/swappiness"),
        ("net.ipv4.conf.eth0/100.rp_filter", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
    ],
)
def test_sysctl_names_map_to_files_as_in_sysctl_8(name: str, path: str) -> None:
    assert tuning.sysctl_path(name) == path
