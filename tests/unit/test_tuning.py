"""ascent.tuning on a made-up host tree: what it plans, writes, reports and takes back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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


class Programs:
    """Stands in for a host's programs: notes every call, does to the tree what systemctl and mount would do."""

    def __init__(self, root: Path, answers: dict[str, str] | None = None) -> None:
        self.root = root
        self.answers = answers or {}
        self.calls: list[str] = []

    def __call__(self, argv: Sequence[str]) -> tuple[int, str, str]:
        line = " ".join(argv)
        self.calls.append(line)
        if line == f"systemctl enable {tuning.UNIT}":
            put(self.root, tuning.UNIT_LINK.lstrip("/"), "")
        elif line == f"systemctl disable --now {tuning.UNIT}":
            (self.root / tuning.UNIT_LINK.lstrip("/")).unlink()
        elif argv[0] == "mount":
            put(self.root, "shm.size", argv[2].partition("size=")[2])
        for start, answer in self.answers.items():
            if line.startswith(start):
                return 0, answer, ""
        return (0, "", "") if argv[0] in ("systemctl", "mount", "update-grub", "grubby") else (127, "", "not found")


class Host(Tree):
    """A tree whose /dev/shm has the size that the last mount gave it."""

    def size_mb(self, path: str) -> int | None:
        text = (self.read("/shm.size") or "64M").rstrip("M")
        return 512 if text.endswith("%") else int(text)


def run(root: Path, programs: Programs | None = None, *, installed: Sequence[str] = (), **wish: object) -> dict:
    tree, programs = Host(str(root)), programs or Programs(root)
    checked = tuning.wanted(**wish)
    observed = tuning.observe(checked, tree, programs, "a3-01")
    before = len(programs.calls)
    decided = tuning.plan(checked, observed, installed=installed, undo=not wish)
    assert len(programs.calls) == before, "planning runs nothing"
    decided["refused"] = tuning.apply(decided, observed, tree, programs)
    decided["diff"] = tuning.diff(decided, observed)
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


LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 {0}                files
Max locked memory         8388608              {1}              bytes
"""


def test_limits_that_would_lock_everybody_out_are_not_written_and_lower_ones_are(host: Path) -> None:
    put(host, "proc/self/status", "CapEff:\t00000000a80425fb\n")
    put(host, "proc/1/limits", LIMITS.format(20000, 8388608))
    decided = run(host, limits={"nofile": 1048576, "memlock": "unlimited"})
    assert [item["id"] for item in decided["findings"]] == ["D14"]
    assert not decided["files"]
    assert not run(host, limits={"nofile": 16384, "memlock": 8192})["findings"]
    assert "* - nofile 16384" in snapshot(host)["etc/security/limits.d/90-ascent.conf"]


def test_units_that_start_engines_get_the_limits_in_systemds_units(host: Path) -> None:
    programs = Programs(host)
    run(host, programs, limits={"nofile": 65536, "memlock": 8192, "nproc": "unlimited", "maxlogins": 4})
    for unit in tuning.LIMITS_UNITS:
        lines = snapshot(host)[f"etc/systemd/system/{unit}.d/90-ascent-limits.conf"].splitlines()
        assert lines[2:] == ["[Service]", "LimitMEMLOCK=8388608", "LimitNOFILE=65536", "LimitNPROC=infinity"]
    assert programs.calls == ["systemctl daemon-reload"]
    run(host)
    assert not [path for path in snapshot(host) if "90-ascent" in path]


@pytest.mark.parametrize("serving", [True, False])
def test_a_running_container_engine_is_restarted_only_without_containers(host: Path, serving: bool) -> None:
    put(host, "proc/70/comm", "containerd\n")
    put(host, "proc/70/limits", LIMITS.format(524288, 8388608))
    if serving:
        put(host, "proc/71/comm", "containerd-shim\n")
    programs = Programs(host)
    decided = run(host, programs, limits={"memlock": "unlimited"})
    assert ("systemctl restart containerd.service" in programs.calls) is not serving
    told = [(item["id"], item["severity"]) for item in decided["findings"]]
    assert told == ([("D14", "warning")] if serving else [])
    put(host, "proc/70/limits", LIMITS.format(524288, "unlimited"))
    again = run(host, limits={"memlock": "unlimited"})
    assert not tuning.changes(again)
    assert not again["findings"]


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        tuning.wanted(
            governor="a b",
            sysctl={"vm.swappiness": False, "../etc/passwd": 1, tuning.RESERVED_PORTS: "1", "kernel.x": "$(reboot)"},
            debugfs={"kernel.x": "/etc/passwd"},
            reserved_ports=["9-8", "70000"],
            limits={"nofile": "many"},
            hugepages={"enabled": "[always]"},
            shm_mb=-1,
            hosts=[{"address": "a3-01", "names": ["a3-01"]}],
            firewall={"sources": ["192.0.2.0/33"], "ports": ["x"]},
            ntp_servers=["ntp.example.org", "a; b"],
            isolate_cpus="8-3",
            irq_devices=["0000:C1:00.0", "NA"],
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
        "[always]",
        "-1",
        "'a3-01' is no address",
        "192.0.2.0/33",
        "'x'",
        "'a; b'",
        "'8-3'",
        "'NA'",
    ):
        assert part in text
    assert len(caught.value.findings) == 17


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
    observed = tuning.observe(checked, tree, Programs(host))
    with pytest.raises(AscentError, match=r"vm\.swappiness: wrote '0' but .* reads back '1'"):
        tuning.apply(tuning.plan(checked, observed), observed, tree, Programs(host))


def test_a_knob_that_refuses_the_write_is_named_and_can_still_be_undone(host: Path) -> None:
    class Refusing(Tree):
        def write_knob(self, path: str, value: str) -> None:
            if path.endswith("swappiness"):
                raise PermissionError(13, "Permission denied")
            super().write_knob(path, value)

    before = snapshot(host)
    checked = tuning.wanted(**SEED)
    tree = Refusing(str(host))
    observed = tuning.observe(checked, tree, Programs(host))
    with pytest.raises(AscentError, match=r"vm\.swappiness: wanted '0', found '60'"):
        tuning.apply(tuning.plan(checked, observed), observed, tree, Programs(host))
    assert snapshot(host) != before
    run(host)
    assert snapshot(host) == before


def test_the_diff_shows_the_live_values_and_the_files_and_counts_cpus(host: Path) -> None:
    parts = run(host, **SEED)["diff"]
    assert [part["after_header"] for part in parts] == ["live", tuning.SYSCTL_FILE, tuning.UNIT_FILE]
    assert "governor of 4 CPUs = powersave\n" in parts[0]["before"]
    assert "vm.swappiness = 60\n" in parts[0]["before"]
    assert "vm.swappiness = 0\n" in parts[0]["after"]


THP = "sys/kernel/mm/transparent_hugepage"


def test_hugepages_are_told_by_the_word_in_brackets_and_set_again_at_boot(host: Path) -> None:
    put(host, f"{THP}/enabled", "always [madvise] never\n")
    put(host, f"{THP}/defrag", "always defer defer+madvise [madvise] never\n")
    wish = {"hugepages": {"enabled": "always", "defrag": "madvise"}}
    decided = run(host, **wish)
    assert [(write["from"], write["to"]) for write in decided["writes"]] == [("madvise", "always")]
    unit = snapshot(host)["etc/systemd/system/ascent-host-tuning.service"]
    assert "'echo always > /sys/kernel/mm/transparent_hugepage/enabled'" in unit
    assert "'echo madvise > /sys/kernel/mm/transparent_hugepage/defrag'" in unit
    put(host, f"{THP}/enabled", "[always] madvise never\n")
    assert not tuning.changes(run(host, **wish))
    run(host)
    assert snapshot(host)[f"{THP}/enabled"] == "madvise"


def test_a_kernel_that_lacks_a_word_or_hugepages_is_told(host: Path) -> None:
    put(host, f"{THP}/defrag", "[always] never\n")
    decided = run(host, hugepages={"enabled": "always", "defrag": "defer+madvise"})
    assert {(item["id"], item["severity"]) for item in decided["findings"]} == {
        ("tuning-knob-absent", "info"),
        ("tuning-hugepages-refused", "warning"),
    }
    assert not tuning.changes(decided)


def test_a_knob_of_the_profile_is_left_alone_by_null(host: Path) -> None:
    decided = run(host, sysctl={"vm.swappiness": None, "kernel.numa_balancing": 0}, limits={"nofile": None})
    assert [write["knob"] for write in decided["writes"]] == ["kernel.numa_balancing"]
    assert list(decided["files"]) == [tuning.SYSCTL_FILE]


def test_shared_memory_grows_to_what_is_asked_and_goes_back(host: Path) -> None:
    put(host, "proc/mounts", "tmpfs /dev/shm tmpfs rw,nosuid,nodev,size=65536k,inode64 0 0\n")
    put(host, "proc/meminfo", "MemTotal:  8388608 kB\n")
    programs = Programs(host)
    decided = run(host, programs, shm_mb=2048)
    assert "mount -o remount,size=2048M /dev/shm" in programs.calls
    assert "/dev/shm of 64 MB\n" in decided["diff"][0]["before"]
    assert "'mount -o remount,size=2048M /dev/shm'" in snapshot(host)["etc/systemd/system/ascent-host-tuning.service"]
    assert not tuning.changes(run(host, shm_mb=2048))
    programs = Programs(host)
    run(host, programs)
    assert "mount -o remount,size=65536k /dev/shm" in programs.calls
    assert not (host / tuning.UNIT_FILE.lstrip("/")).exists()


def test_shared_memory_that_is_enough_or_more_than_memory_stays(host: Path) -> None:
    put(host, "proc/meminfo", "MemTotal:  8388608 kB\n")
    assert not tuning.changes(run(host, shm_mb=64))
    decided = run(host, shm_mb=16384)
    assert not tuning.changes(decided)
    assert [(item["id"], item["severity"]) for item in decided["findings"]] == [("D13", "warning")]


def npu(host: Path, bus: str, node: int, **interrupts: str) -> None:
    folder = f"sys/bus/pci/devices/{bus}"
    put(host, f"{folder}/numa_node", f"{node}\n")
    for number, cpus in interrupts.items():
        put(host, f"{folder}/msi_irqs/{number.lstrip('i')}", "msix\n")
        put(host, f"proc/irq/{number.lstrip('i')}/smp_affinity_list", f"{cpus}\n")
        put(host, f"proc/irq/{number.lstrip('i')}/smp_affinity", "ffffffff\n")


def test_interrupts_go_to_the_numa_node_of_their_device_and_back(host: Path) -> None:
    npu(host, "0000:c1:00.0", 1, i100="0-47", i101="24-47")
    put(host, "sys/devices/system/node/node1/cpulist", "24-47\n")
    put(host, "proc/irq/default_smp_affinity", "ffff,ffffffff\n")
    npu(host, "0000:01:00.0", -1, i102="0-47")
    wish = {"irq_devices": ["0000:C1:00.0", "0000:01:00.0"]}
    decided = run(host, **wish)
    assert [(write["path"], write["to"]) for write in decided["writes"]] == [
        ("/proc/irq/100/smp_affinity_list", "24-47")
    ]
    assert [item["id"] for item in decided["findings"]] == ["tuning-interrupts-unplaced"]
    unit = snapshot(host)["etc/systemd/system/ascent-host-tuning.service"]
    assert "echo 24-47 > /proc/irq/$$irq/smp_affinity_list" in unit
    assert "0000:01:00.0" not in unit
    assert not tuning.changes(run(host, **wish))
    undone = run(host)
    assert {write["path"]: write["to"] for write in undone["writes"]} == {
        "/proc/irq/100/smp_affinity": "ffff,ffffffff",
        "/proc/irq/101/smp_affinity": "ffff,ffffffff",
        "/proc/irq/102/smp_affinity": "ffff,ffffffff",
    }
    assert not (host / tuning.STATE_FILE.lstrip("/")).exists()


def test_interrupts_that_the_kernel_keeps_are_told_and_not_tried_again_until_the_next_boot(host: Path) -> None:
    class Managed(Host):
        def write_knob(self, path: str, value: str) -> None:
            raise OSError(5, "Input/output error")

    npu(host, "0000:c1:00.0", 0, i100="0-47")
    put(host, "sys/devices/system/node/node0/cpulist", "0-23\n")
    put(host, "proc/sys/kernel/random/boot_id", "one\n")
    checked, tree = tuning.wanted(irq_devices=["0000:c1:00.0"]), Managed(str(host))
    observed = tuning.observe(checked, tree, Programs(host))
    assert tuning.apply(tuning.plan(checked, observed), observed, tree, Programs(host)) == [
        "/proc/irq/100/smp_affinity_list"
    ]
    again = tuning.plan(checked, tuning.observe(checked, tree, Programs(host)))
    assert not tuning.changes(again)
    assert [item["id"] for item in again["findings"]] == ["tuning-interrupts-refused"]
    put(host, "proc/sys/kernel/random/boot_id", "two\n")
    assert tuning.plan(checked, tuning.observe(checked, tree, Programs(host)))["writes"]


def test_isolated_cpus_go_into_grubs_own_folder_and_wait_for_a_boot(host: Path) -> None:
    put(host, "etc/default/grub", 'GRUB_CMDLINE_LINUX=""\n')
    put(host, "usr/sbin/update-grub", "")
    put(host, "usr/lib/systemd/system/irqbalance.service", "")
    put(host, "sys/devices/system/cpu/online", "0-3\n")
    put(host, "proc/cmdline", "quiet\n")
    programs = Programs(host)
    decided = run(host, programs, isolate_cpus="2,3")
    assert (
        "GRUB_CMDLINE_LINUX isolcpus=2-3 nohz_full=2-3 rcu_nocbs=2-3"
        in snapshot(host)["etc/default/grub.d/90-ascent.cfg"]
    )
    assert "IRQBALANCE_BANNED_CPULIST=2-3" in snapshot(host)[tuning.IRQBALANCE_FILE.lstrip("/")]
    assert programs.calls[-3:] == [
        "update-grub",
        "systemctl daemon-reload",
        "systemctl try-restart irqbalance.service",
    ]
    assert decided["reboot"] is True
    assert [item["id"] for item in decided["findings"]] == ["tuning-reboot-needed"]
    put(host, "proc/cmdline", "quiet isolcpus=2-3 nohz_full=2-3 rcu_nocbs=2-3\n")
    decided = run(host, isolate_cpus="2-3")
    assert not tuning.changes(decided)
    assert decided["reboot"] is False
    decided = run(host)
    assert decided["reboot"] is True
    assert "stay isolated" in decided["findings"][0]["summary"]
    assert not [path for path in snapshot(host) if "90-ascent" in path]


def test_isolated_cpus_are_told_to_grubby_once(host: Path) -> None:
    put(host, "usr/sbin/grubby", "")
    programs = Programs(host)
    arguments = "isolcpus=8-31 nohz_full=8-31 rcu_nocbs=8-31"
    run(host, programs, isolate_cpus="8-31")
    assert f"grubby --update-kernel=ALL --args={arguments}" in programs.calls
    assert not tuning.changes(run(host, isolate_cpus="8-31"))
    programs = Programs(host)
    run(host, programs)
    assert programs.calls == [f"grubby --update-kernel=ALL --remove-args={arguments}"]


def test_all_cpus_are_never_isolated_and_an_unknown_boot_loader_is_told(host: Path) -> None:
    put(host, "sys/devices/system/cpu/online", "0-3\n")
    with pytest.raises(InputError, match="some have to be left"):
        run(host, isolate_cpus="0-3")
    decided = run(host, isolate_cpus="2-3")
    assert {item["id"] for item in decided["findings"]} == {"tuning-boot-loader", "tuning-reboot-needed"}


def test_names_are_mapped_and_the_own_one_is_taken_from_loopback(host: Path) -> None:
    before = "127.0.0.1 localhost\n127.0.1.1\ta3-01.site a3-01\n192.0.2.99 a3-02\n"
    put(host, "etc/hosts", before)
    nodes = [{"address": f"192.0.2.{n}", "names": [f"a3-0{n}"]} for n in (1, 2)]
    decided = run(host, hosts=nodes)
    lines = snapshot(host)["etc/hosts"].splitlines()
    assert "192.0.2.1 a3-01" in lines
    assert not [line for line in lines if line.startswith("127.0.1.1")]
    assert [(item["id"], item["severity"]) for item in decided["findings"]] == [("D10", "warning")]
    assert "192.0.2.99 a3-02" in decided["findings"][0]["evidence"]
    assert not tuning.changes(run(host, hosts=nodes))
    run(host)
    assert (host / "etc/hosts").read_text() == before


def test_host_names_that_cannot_be_mapped_are_told(host: Path) -> None:
    put(host, "etc/hosts", "127.0.0.1 localhost\n")
    twins = [{"address": f"192.0.2.{n}", "names": [f"node{n}", "a3-01"]} for n in (1, 2)]
    decided = run(host, hosts=twins)
    assert [item["id"] for item in decided["findings"]] == ["D10"]
    assert "192.0.2.1, 192.0.2.2" in decided["findings"][0]["evidence"]
    assert not re.search(r"^\S+ .*a3-01", (host / "etc/hosts").read_text(), re.M)
    checked = tuning.wanted(hosts=twins)
    observed = tuning.observe(checked, Host(str(host)), Programs(host), "localhost.localdomain")
    assert [item["id"] for item in tuning.plan(checked, observed)["findings"]] == ["D08"]


def service(host: Path, name: str) -> None:
    put(host, f"sys/fs/cgroup/system.slice/{name}.service/cgroup.procs", "123\n")


def test_chrony_gets_the_sites_servers_and_loses_them_again(host: Path) -> None:
    put(host, "usr/sbin/chronyd", "")
    put(host, "etc/chrony/chrony.conf", "pool 2.debian.pool.ntp.org iburst\n")
    put(host, "etc/systemd/system/multi-user.target.wants/chrony.service", "")
    service(host, "chrony")
    programs = Programs(host)
    run(host, programs, ntp_servers=["192.0.2.123"])
    assert snapshot(host)["etc/chrony/chrony.conf"].splitlines()[0] == "pool 2.debian.pool.ntp.org iburst"
    assert "server 192.0.2.123 iburst prefer" in snapshot(host)["etc/chrony/chrony.conf"]
    assert programs.calls == ["systemctl restart chrony.service"]
    assert not tuning.changes(run(host, ntp_servers=["192.0.2.123"]))
    run(host)
    assert snapshot(host)["etc/chrony/chrony.conf"] == "pool 2.debian.pool.ntp.org iburst"


def test_timesyncd_is_started_and_enabled_with_the_sites_servers(host: Path) -> None:
    put(host, "usr/lib/systemd/systemd-timesyncd", "")
    programs = Programs(host)
    run(host, programs, ntp_servers=["ntp1.site", "ntp2.site"])
    assert snapshot(host)["etc/systemd/timesyncd.conf.d/90-ascent.conf"].endswith("NTP=ntp1.site ntp2.site")
    assert [call for call in programs.calls if "show" not in call] == [
        "systemctl restart systemd-timesyncd.service",
        "systemctl enable systemd-timesyncd.service",
    ]


def test_a_host_without_a_time_service_asks_for_chrony_and_remembers_that_it_came_for_us(host: Path) -> None:
    put(host, "usr/lib/systemd/systemd-timesyncd", "")
    put(host, "etc/systemd/system/systemd-timesyncd.service", "")  # what a link to /dev/null reads as: masked
    decided = run(host, ntp_servers=["192.0.2.123"])
    assert decided["packages"] == ["chrony"]
    assert not tuning.changes(decided)
    put(host, "usr/sbin/chronyd", "")
    put(host, "etc/chrony.conf", "")
    assert run(host, ntp_servers=["192.0.2.123"], installed=["chrony"])["packages"] == []
    assert run(host)["packages"] == ["chrony"]
    assert run(host)["packages"] == []


def test_the_sites_own_time_service_is_left_alone_and_told(host: Path) -> None:
    service(host, "ntpsec")
    decided = run(host, ntp_servers=["192.0.2.123"])
    assert not tuning.changes(decided)
    assert [item["id"] for item in decided["findings"]] == ["tuning-conflict"]
    assert decided["packages"] == []


@pytest.mark.parametrize(
    ("servers", "synchronised", "expected"),
    [
        ([], True, []),
        ([], None, []),
        ([], False, [("D24", "info")]),
        (["192.0.2.123"], False, [("D24", "warning")]),
        (["192.0.2.123"], True, []),
    ],
)
def test_a_clock_that_nothing_steers_is_told(host: Path, servers, synchronised, expected) -> None:
    put(host, "usr/lib/systemd/systemd-timesyncd", "")
    shown = {"systemctl show": "ConditionResult=no\nConditionTimestampMonotonic=77\n"}
    found = tuning.clock_findings(
        tuning.wanted(ntp_servers=servers), Host(str(host)), Programs(host, shown), synchronised
    )
    assert [(item["id"], item["severity"]) for item in found] == expected
    if servers and found:
        assert "a condition of its unit is not met" in found[0]["cause"]


def test_other_owners_of_our_knobs_are_named(host: Path) -> None:
    service(host, "tuned")
    service(host, "irqbalance")
    put(host, "etc/tuned/active_profile", "virtual-guest\n")
    put(host, "etc/systemd/system/multi-user.target.wants/cpupower.service", "")
    put(
        host,
        "etc/sysctl.d/99-site.conf",
        "# theirs\nvm/swappiness = 30\nkernel.numa_balancing=0\nvm.overcommit_memory=1\n",
    )
    put(host, "etc/sysctl.d/10-early.conf", "vm.swappiness = 40\n")
    put(host, "usr/lib/sysctl.d/99-site.conf", "vm.swappiness = 50\n")
    put(host, "etc/cloud/cloud.cfg.d/10_hosts.cfg", "manage_etc_hosts: true\n")
    decided = run(host, **SEED, hosts=[{"address": "192.0.2.1", "names": ["a3-01"]}])
    told = {item["summary"]: item["evidence"] for item in decided["findings"] if item["id"] == "tuning-conflict"}
    assert told == {
        "tuned runs and sets governor, sysctl as well": "tuned.service has processes; active profile virtual-guest",
        "cpupower.service is enabled and sets the governor at boot": (
            "/etc/systemd/system/multi-user.target.wants/cpupower.service"
        ),
        "other files set vm.swappiness at boot, after ours": "/etc/sysctl.d/99-site.conf: vm.swappiness = 30",
        "cloud-init writes /etc/hosts at boot": "/etc/cloud/cloud.cfg.d/10_hosts.cfg: manage_etc_hosts: true",
    }


@pytest.mark.parametrize(
    ("place", "package"), [("usr/lib/aarch64-linux-gnu", ""), ("usr/lib64", ""), ("", "libjemalloc2"), ("", "jemalloc")]
)
def test_jemalloc_is_found_or_the_package_named(host: Path, place: str, package: str) -> None:
    if place:
        put(host, f"{place}/libjemalloc.so.2", "")
    if package == "libjemalloc2":
        put(host, "etc/debian_version", "12.1\n")
    found = run(host, jemalloc=True)["findings"]
    assert [item["id"] for item in found] == ([] if place else ["D23"])
    assert all(f"Install {package}," in item["fix"] for item in found)


def test_the_state_of_an_earlier_release_is_taken_over(host: Path) -> None:
    put(host, "proc/sys/vm/swappiness", "0\n")
    put(
        host,
        tuning.STATE_FILE.lstrip("/"),
        json.dumps({"schema": 1, "knobs": {"/proc/sys/vm/swappiness": "60"}, "ports": ""}),
    )
    run(host, sysctl={"vm.swappiness": 0})
    run(host)
    assert snapshot(host)["proc/sys/vm/swappiness"] == "60"


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
