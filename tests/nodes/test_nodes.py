"""Nodes of every kind, booted: systems, clocks, disks, power, packages and collective tests between them.

Run by `make test-all`; it takes about two minutes from cached images and builds Debian 11 and 13 the first time.
"""

import platform
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from ascent import hccn_tool, npu_smi
from sandbox.lib import engine, packages, plan
from sandbox.lib.images import Builder
from sandbox.lib.lifecycle import Cluster

ROOT = Path(__file__).resolve().parents[2]
HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
HCCL_TEST = "/usr/local/Ascend/cann/tools/hccl_test/bin"
ASCEND = ("a3-01", "a3-02", "a2-limited", "trixie-910b4")


class Nodes:
    """The booted nodes, and commands on them."""

    def __init__(self, cluster):
        self.cluster = cluster

    def run(self, name, command, check=True, seconds=120):
        node = self.cluster.node(name)
        done = subprocess.run(self.cluster.ssh(node, command), capture_output=True, text=True, timeout=seconds)
        assert not check or done.returncode == 0, f"{name}: {command}: {done.stdout}{done.stderr}"
        return done

    def text(self, name, command):
        return self.run(name, command).stdout.strip()

    def put(self, name, path, target, mode="0755"):
        node = self.cluster.node(name)
        with path.open("rb") as file:
            command = f"cat > {target} && chmod {mode} {target}"
            subprocess.run(self.cluster.ssh(node, command), stdin=file, check=True, timeout=60)

    def wait(self, name, seconds=60):
        """Waits until a node that reboots has a boot id other than before."""
        deadline = time.monotonic() + seconds
        while self.run(name, "systemctl is-system-running", check=False).stdout.strip() != "running":
            assert time.monotonic() < deadline, f"{name} does not come back"
            time.sleep(0.5)

    def reboot(self, name):
        before = self.text(name, "cat /proc/sys/kernel/random/boot_id")
        self.run(name, "systemctl reboot", check=False)
        deadline = time.monotonic() + 60
        while self.run(name, "cat /proc/sys/kernel/random/boot_id", check=False).stdout.strip() in ("", before):
            assert time.monotonic() < deadline, f"{name} does not reboot"
            time.sleep(0.5)
        self.wait(name)


@pytest.fixture(scope="module")
def nodes():
    cluster = Cluster(plan.from_inventory(ROOT / "tests/nodes/inventory"), ROOT, engine.Engine(), print)
    with engine.exclusive(print):
        cluster.up()
    yield Nodes(cluster)
    with engine.exclusive(print):
        cluster.down()


@pytest.fixture(scope="module")
def run_files(nodes, tmp_path_factory):
    with engine.exclusive(print):
        programs = Builder(nodes.cluster.engine, print).hccl_test(["bookworm"])
    made = packages.for_profiles([plan.load_profile("a3")], canns=["8.5.0"], test_programs=programs)
    paths = packages.write(made, tmp_path_factory.mktemp("packages"), lambda _: None)
    return {path.name: path for path in paths}


@pytest.mark.parametrize(
    ("name", "version"), [("a3-01", (3, 11)), ("trixie-910b4", (3, 13)), ("bullseye-bare", (3, 9))]
)
def test_each_release_brings_its_python_and_a_container_engine_from_the_site(nodes, name, version):
    assert nodes.text(name, "python3 -c 'import sys; print(*sys.version_info[:2])'") == "{} {}".format(*version)
    client = "docker-cli" if name.startswith("trixie") else ""
    nodes.run(name, f"apt-get install -y -qq --no-install-recommends docker.io {client} >/dev/null 2>&1")
    assert nodes.text(name, "docker info --format '{{.Driver}}'") == "overlay2"


@pytest.mark.parametrize(("name", "count"), [("a3-01", 16), ("a2-limited", 8), ("trixie-910b4", 8)])
def test_every_device_has_a_file_a_row_and_an_address_that_answers_its_peers(nodes, name, count):
    assert len(npu_smi.parse_info(nodes.text(name, "npu-smi info"))["devices"]) == count
    assert nodes.text(name, "ls /dev/davinci[0-9]* | wc -l") == str(count)
    for device in range(count):
        address = hccn_tool.parse("ip", nodes.text(name, f"{HCCN_TOOL} -i {device} -ip -g"))["address"]
        nodes.run("a3-02" if name == "a3-01" else "a3-01", f"ping -c 1 -W 2 {address}")


def test_a_port_that_is_set_down_answers_nobody_until_it_is_set_up(nodes):
    address = hccn_tool.parse("ip", nodes.text("a3-02", f"{HCCN_TOOL} -i 9 -ip -g"))["address"]
    ping = f"{HCCN_TOOL} -i 1 -ping -g address {address} pkt 1"
    nodes.run("a3-02", f"{HCCN_TOOL} -i 9 -link -s down")
    assert nodes.run("a3-01", ping, check=False).returncode == 1
    nodes.run("a3-02", f"{HCCN_TOOL} -i 9 -link -s up")
    assert hccn_tool.parse("ping", nodes.text("a3-01", ping))["ok"] is True


def test_an_address_that_was_set_is_there_after_a_reboot(nodes):
    words = "-ip -s address 198.19.100.7 netmask 255.255.192.0"
    nodes.run("trixie-910b4", f"{HCCN_TOOL} -i 3 {words}")
    nodes.run("a3-01", "ping -c 1 -W 2 198.19.100.7")
    nodes.reboot("trixie-910b4")
    nodes.run("a3-01", "ping -c 1 -W 2 198.19.100.7")


def test_gpus_are_there_with_their_device_files(nodes):
    assert nodes.text("gpu-01", "nvidia-smi --query-gpu=name --format=csv,noheader").splitlines() == ["NVIDIA H200"] * 8
    nodes.run("gpu-01", "test -c /dev/nvidia7 && test -c /dev/nvidiactl")
    assert nodes.run("gpu-01", "npu-smi info", check=False).returncode == 127


def test_a_server_without_accelerator_has_no_tools(nodes):
    assert nodes.run("cpu-01", "npu-smi info", check=False).returncode == 127
    assert nodes.run("cpu-01", "nvidia-smi", check=False).returncode == 127
    assert nodes.text("cpu-01", "ls /dev | grep -cE 'davinci|nvidia' || true") == "0"


def test_a_clock_is_ahead_for_all_programs_and_can_be_set(nodes):
    def ahead(command):
        there = float(nodes.text("a2-limited", command))
        return there - time.time()

    for command in ("date +%s.%N", "python3 -c 'import time; print(time.time())'"):
        assert 110 < ahead(command) < 125
    shown = nodes.text("a2-limited", "timedatectl show --property=TimeUSec --value")
    assert nodes.text("a2-limited", f"date --date={shlex.quote(shown)} +%s")
    nodes.run("a2-limited", f"date --set=@{int(time.time())}")
    assert -10 < ahead("date +%s.%N") < 10
    nodes.run("a2-limited", "/usr/local/lib/sandbox/boot clock 120")
    assert 110 < ahead("date +%s.%N") < 125


def test_a_small_disk_fills_up_and_keeps_its_files_over_a_loss_of_power(nodes):
    done = nodes.run("a2-limited", "fallocate -l 100M /var/log/too-much", check=False)
    assert "No space left on device" in done.stderr
    nodes.run("a2-limited", "rm -f /var/log/too-much; echo kept > /var/lib/docker/mark; touch /root/mark")
    before = nodes.text("a2-limited", "cat /proc/sys/kernel/random/boot_id")
    node = nodes.cluster.node("a2-limited")
    nodes.cluster.power_off(node)
    row = next(row for row in nodes.cluster.status() if row["node"] == "a2-limited")
    assert (row["state"], row["ssh"]) == ("off", False)
    with pytest.raises(plan.SandboxError, match="off already"):
        nodes.cluster.power_off(node)
    nodes.cluster.power_on(node)
    assert nodes.text("a2-limited", "cat /var/lib/docker/mark; ls /root/mark") == "kept\n/root/mark"
    assert nodes.text("a2-limited", "cat /proc/sys/kernel/random/boot_id") != before
    assert nodes.text("a2-limited", "findmnt -n -o FSTYPE /var/log") == "ext4"


def test_a_driver_is_installed_on_a_bare_server_and_an_upgrade_is_live_after_a_reboot(nodes, run_files):
    name, machine = "bullseye-bare", platform.machine()
    assert nodes.run(name, "npu-smi info", check=False).returncode == 127
    for version in packages.DRIVERS:
        path = run_files[f"Atlas-A3-hdk-npu-driver_{version}_linux-{machine}.run"]
        nodes.put(name, path, f"/root/driver-{version}.run")
    old, new = packages.DRIVERS
    refused = nodes.run(name, f"/root/driver-{old}.run --full --quiet", check=False)
    assert (refused.returncode, "ERR_NO:0x0091" in refused.stdout) == (1, True)
    nodes.run(name, "useradd -m HwHiAiUser")
    nodes.run(name, f"/root/driver-{old}.run --full --install-for-all --quiet")
    assert npu_smi.parse_info(nodes.text(name, "npu-smi info"))["driver_version"] == old
    assert nodes.run(name, f"/root/driver-{new}.run --upgrade --quiet", check=False).returncode == 2
    assert npu_smi.parse_info(nodes.text(name, "npu-smi info"))["driver_version"] == old
    nodes.reboot(name)
    assert npu_smi.parse_info(nodes.text(name, "npu-smi info"))["driver_version"] == new
    nodes.run(name, "/usr/local/Ascend/driver/script/uninstall.sh --quiet")
    nodes.reboot(name)
    assert nodes.text(name, "ls /dev | grep -c davinci || true") == "0"


@pytest.fixture(scope="module")
def pair(nodes, run_files):
    """Two servers with CANN and MPI, of which the first gets into the second."""
    toolkit = run_files[f"Ascend-cann-toolkit_8.5.0_linux-{platform.machine()}.run"]
    for name in ("a3-01", "a3-02"):
        nodes.run(name, "apt-get install -y -qq --no-install-recommends openmpi-bin >/dev/null 2>&1")
        nodes.put(name, toolkit, "/root/toolkit.run")
        nodes.run(name, "/root/toolkit.run --install --quiet")
    nodes.put("a3-01", nodes.cluster.key, "/root/.ssh/id_ed25519", "0600")
    nodes.put("a3-01", nodes.cluster.known_hosts, "/root/.ssh/known_hosts", "0600")
    hosts = "".join(f"{nodes.cluster.node(name).address} slots=16\\n" for name in ("a3-01", "a3-02"))
    nodes.run("a3-01", f"printf '{hosts}' > /root/hostfile")

    def test(program, words, seconds=60):
        ways = "--mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 -x HCCL_CONNECT_TIMEOUT=4"
        command = f"timeout {seconds} mpirun --allow-run-as-root --hostfile /root/hostfile -n 32 {ways}"
        return nodes.run("a3-01", f"{command} {HCCL_TEST}/{program} -p 16 {words}", check=False, seconds=seconds + 30)

    return test


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("all_reduce_test", "-b 8K -e 64K -f 2 -d fp32 -o sum"),
        ("all_reduce_test", "-b 8K -e 8K -d bfp16 -o prod -n 2 -w 0"),
        ("all_gather_test", "-b 8K -e 16K -f 2 -d int8"),
        ("reduce_scatter_test", "-b 8K -e 8K -d int32"),
        ("alltoall_test", "-b 8K -e 8K -d fp16"),
        ("broadcast_test", "-b 8K -e 8K -r 17"),
        ("scatter_test", "-b 8K -e 8K"),
    ],
)
def test_collectives_move_data_between_two_servers_and_check_it(pair, program, words):
    done = pair(program, words)
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.count("|") == 3]
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows[0] == ["data_size(Bytes):", "aveg_time(us):", "alg_bandwidth(GB/s):", "check_result:"]
    assert rows[1:]
    assert all(row[3] == "success" and float(row[1]) > 0 for row in rows[1:])


def test_a_result_that_could_overflow_is_not_judged(pair):
    done = pair("all_reduce_test", "-b 8K -e 8K -d int8 -o prod -n 1 -w 0")
    assert (done.returncode, "NULL" in done.stdout, "No verification" in done.stdout) == (0, True, True)


@pytest.mark.parametrize(
    ("spoil", "heal", "code"),
    [
        ("-link -s down", "-link -s up", 19),
        ("-tls -s enable 1", "-tls -s enable 0", 9),
    ],
)
def test_a_fabric_that_is_not_whole_stops_a_collective_test(nodes, pair, spoil, heal, code):
    nodes.run("a3-02", f"{HCCN_TOOL} -i 5 {spoil}")
    try:
        done = pair("all_reduce_test", "-b 8K -e 8K")
    finally:
        nodes.run("a3-02", f"{HCCN_TOOL} -i 5 {heal}")
    assert done.returncode != 0
    assert f"retcode: {code}" in done.stdout
    assert "success" not in done.stdout


def test_a_process_that_was_left_over_on_a_device_is_told_by_its_code(nodes, pair):
    address = hccn_tool.parse("ip", nodes.text("a3-02", f"{HCCN_TOOL} -i 2 -ip -g"))["address"]
    program = f"import socket, time; s = socket.create_server(('{address}', 16666)); time.sleep(60)"
    unit = f'systemd-run --quiet --unit=leftover python3 -c "{program}"'
    nodes.run("a3-02", unit)
    try:
        done = pair("all_reduce_test", "-b 8K -e 8K")
    finally:
        nodes.run("a3-02", "systemctl stop leftover")
    assert "retcode: 7" in done.stdout
    assert done.returncode != 0


def test_a_packet_filter_between_the_servers_is_felt(nodes, pair):
    peer = nodes.cluster.node("a3-01").address
    rule = f"-p tcp -s {peer} --dport 1024:65535 -m conntrack --ctstate NEW -j DROP"
    nodes.run("a3-02", f"iptables -I INPUT {rule}")
    try:
        done = pair("all_reduce_test", "-b 8K -e 8K", seconds=15)
    finally:
        nodes.run("a3-02", f"iptables -D INPUT {rule}")
    assert done.returncode != 0
    assert "success" not in done.stdout
