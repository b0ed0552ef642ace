"""The knobs are set after a reboot, by what the role left on the host, and what else the plan needs works."""

from __future__ import annotations

import json

import pytest
import testinfra

from tests.roles.helpers import INVENTORY, changed

WANTED = {
    "/proc/sys/kernel/numa_balancing": "0",
    "/proc/sys/net/ipv4/ip_local_reserved_ports": "6884,8000,23010-23025",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "/sys/kernel/debug/sched/migration_cost_ns": "50000",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always",
}
NODES = {"role-01": "198.19.0.11", "role-02": "198.19.0.12"}

# Answers on the ports of its arguments until it is stopped.
LISTEN = """
import socket, sys, time
sockets = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
time.sleep(60)
"""
# Prints which of the addresses ADDRESS:PORT take a connection.
CONNECT = """
import json, socket, sys
taken = []
for target in sys.argv[1:]:
    address, port = target.split(":")
    try:
        socket.create_connection((address, int(port)), 2).close()
        taken.append(target)
    except OSError:
        pass
print(json.dumps(taken))
"""


def read(host, path: str) -> str:
    return host.file(path).content_string.strip()


def name(host) -> str:
    return host.check_output("hostname")


def peer(host) -> str:
    return next(one for one in NODES if one != name(host))


@pytest.mark.parametrize("knob", WANTED)
def test_knobs_are_set(host, knob) -> None:
    assert read(host, knob) == WANTED[knob]


def test_a_file_that_is_read_later_wins_at_boot_as_the_finding_says(host) -> None:
    wins = {"role-01": "0", "role-02": "30"}
    assert read(host, "/proc/sys/vm/swappiness") == wins[name(host)]


def test_every_cpu_has_the_governor(host) -> None:
    governors = host.check_output("cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor").split()
    assert set(governors) == {"performance"}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/sysctl.d/90-ascent.conf",
        "/etc/security/limits.d/90-ascent.conf",
        "/etc/systemd/system/docker.service.d/90-ascent-limits.conf",
        "/etc/systemd/system/ascent-.service.d/90-ascent-limits.conf",
        "/etc/systemd/system/ascent-host-tuning.service",
    ],
)
def test_our_files_say_whose_they_are(host, path) -> None:
    lines = host.file(path).content_string.splitlines()
    assert lines[:2] == ["# Ansible managed", "# ascent:host_tuning"]


def test_the_unit_ran_and_is_enabled(host) -> None:
    unit = host.service("ascent-host-tuning")
    assert unit.is_enabled
    assert unit.is_running, host.check_output("journalctl -u ascent-host-tuning --no-pager")


def test_engines_outside_containers_and_logins_get_the_limit(host) -> None:
    ask = "sh -c 'ulimit -Hn; ulimit -Sn; ulimit -Hl; ulimit -Sl'"
    shown = f"systemd-run --wait --collect --pipe --quiet --unit ascent-limits-test {ask}"
    assert host.check_output(shown).split() == ["16384", "16384", "4096", "4096"]
    assert host.check_output("su - root -c 'ulimit -n; ulimit -l'").split() == ["16384", "4096"]


def test_the_boot_loader_isolates_the_cpus_from_the_next_boot_on(host) -> None:
    if name(host) == "role-01":
        booted = read(host, "/boot/grub/grub.cfg")
        assert booted.startswith("linux /vmlinuz root=/dev/vda ro quiet ")
        assert {"nohz_full=1", "rcu_nocbs=1"} <= set(booted.split())
        assert any(word.startswith("isolcpus=") and word.endswith("1") for word in booted.split())
    else:
        assert not host.file("/etc/default/grub.d/90-ascent.cfg").exists


def test_shared_memory_has_the_size_that_the_plan_asks_for(host) -> None:
    assert host.check_output("df -m --output=size /dev/shm").split()[1] == "1024"


def test_names_mean_the_same_on_every_node_and_the_own_one_no_loopback(host) -> None:
    for node, address in NODES.items():
        assert host.check_output("getent ahostsv4 %s", node).split()[0] == address
    assert host.check_output("getent ahostsv4 kunpeng-1").split()[0] == NODES["role-01"]
    assert host.check_output("getent ahostsv4 localhost").split()[0] == "127.0.0.1"


def test_the_time_service_has_the_sites_server(host) -> None:
    assert "server 198.19.0.2 iburst prefer" in read(host, "/etc/chrony/chrony.conf")
    assert host.service("chrony").is_enabled


def test_the_firewall_is_open_for_the_cluster_and_for_nothing_else(host) -> None:
    start = "systemd-run --collect --unit listener python3 -c %s 8000 23011 23099"
    host.check_output(start, LISTEN)
    try:
        other = testinfra.get_host(f"ansible://{peer(host)}", ansible_inventory=str(INVENTORY))
        *opened, closed = (f"{NODES[name(host)]}:{port}" for port in (8000, 23011, 23099))
        assert json.loads(other.check_output("python3 -c %s %s %s %s", CONNECT, *opened, closed)) == opened
        assert json.loads(host.check_output("python3 -c %s %s", CONNECT, closed)) == [closed], "it does listen there"
    finally:
        host.check_output("systemctl stop listener")


def test_a_dry_run_tells_of_the_later_file_and_changes_it_back() -> None:
    assert changed("converge.yml", "--check") == {"role-01": 0, "role-02": 1}
