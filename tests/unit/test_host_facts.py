"""Readers of host facts: names, users, limits, packet filter, interfaces, and who holds ports, devices and images."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from ascent import command, holders, host_facts, node

MB = 1024 * 1024
TCP = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7001 1 0 100\n"
    "   1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 7002 1 0 100\n"
)
ID = "c" * 64


def put(root: Path, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(text)


def host(root: Path, answers=None) -> node.Node:
    def run(argv, timeout):
        line = " ".join(argv)
        return next((one for words, one in (answers or {}).items() if words in line), (command.MISSING, "", "none"))

    return node.Node(str(root), run, environment={})


def process(
    root: Path, pid: int, *, command_line: str, opens=(), container: str | None = None, comm: str = "x"
) -> None:
    put(
        root,
        {
            f"/proc/{pid}/cmdline": command_line.replace(" ", "\0") + "\0",
            f"/proc/{pid}/comm": comm + "\n",
            f"/proc/{pid}/cgroup": f"0::/system.slice/docker-{container}.scope\n" if container else "0::/user.slice\n",
            f"/proc/{pid}/limits": "Limit                     Soft Limit           Hard Limit           Units\n"
            "Max open files            1024                 4096                 files\n"
            "Max locked memory         unlimited            unlimited            bytes\n",
        },
    )
    (root / f"proc/{pid}/fd").mkdir(parents=True)
    for number, target in enumerate(opens):
        os.symlink(target, root / f"proc/{pid}/fd/{number}")


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_hosts_file_goes_before_the_name_service(tmp_path):
    put(tmp_path, {"/etc/hosts": "127.0.1.1 a1  # by the installer\n192.0.2.2\tA2.site a2\n#192.0.2.9 a3\n"})
    asked = []

    def resolve(name):
        asked.append(name)
        return {"a3": ["192.0.2.3"]}.get(name, [])

    found = host_facts.names(host(tmp_path), ["a1", "a2", "a3", "a4"], resolve)
    assert found == {"a1": ["127.0.1.1"], "a2": ["192.0.2.2"], "a3": ["192.0.2.3"], "a4": []}
    assert sorted(asked) == ["a3", "a4"]


def test_a_silent_name_service_is_not_waited_for(tmp_path):
    hang = threading.Event()
    found = host_facts.names(host(tmp_path), ["a1"], lambda name: [str(hang.wait(60))], 0.05)
    hang.set()
    assert found == {"a1": None}


# -- small readers -----------------------------------------------------------------------------------------------------


def test_interfaces_with_what_the_kernel_says_of_them(tmp_path):
    put(tmp_path, {"/sys/class/net/eth0/mtu": "9000\n", "/sys/class/net/eth0/operstate": "up\n"})
    put(tmp_path, {"/sys/class/net/lo/mtu": "65536\n", "/sys/class/net/lo/speed": "-1\n"})
    assert host_facts.nics(host(tmp_path)) == {
        "eth0": {"mtu": 9000, "state": "up", "speed": None},
        "lo": {"mtu": 65536, "state": None, "speed": None},
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"/etc/ufw/ufw.conf": "# ENABLED=yes\nENABLED=no\n"}, []),
        ({"/etc/ufw/ufw.conf": "ENABLED=yes\n"}, ["ufw"]),
        ({"/sys/fs/cgroup/system.slice/firewalld.service/cgroup.procs": "17\n"}, ["firewalld"]),
        ({"/sys/fs/cgroup/systemd/system.slice/firewalld.service/cgroup.procs": "17\n"}, ["firewalld"]),
        ({"/sys/fs/cgroup/system.slice/firewalld.service/cgroup.procs": ""}, []),
    ],
)
def test_active_managers_of_the_packet_filter(tmp_path, files, expected):
    put(tmp_path, files)
    assert host_facts.filters(host(tmp_path)) == expected


@pytest.mark.parametrize(("text", "expected"), [("1", "enforcing"), ("0\n", "permissive"), (None, None)])
def test_selinux(tmp_path, text, expected):
    if text is not None:
        put(tmp_path, {"/sys/fs/selinux/enforce": text})
    assert host_facts.selinux(host(tmp_path)) == expected


def test_the_service_user_and_its_group(tmp_path):
    assert host_facts.service_user(host(tmp_path), "HwHiAiUser") is None
    put(tmp_path, {"/etc/passwd": "root:x:0:0::/root:/bin/sh\nHwHiAiUser:x:1001:1002::/home/h:/bin/bash\n"})
    user = {"name": "HwHiAiUser", "uid": 1001, "gid": 1002, "group_gid": None}
    assert host_facts.service_user(host(tmp_path), "HwHiAiUser") == user
    put(tmp_path, {"/etc/group": "NotHwHiAiUser:x:7:\nHwHiAiUser:x:1002:\n"})
    assert host_facts.service_user(host(tmp_path), "HwHiAiUser") == {**user, "group_gid": 1002}


def test_limits_cgroups_and_huge_pages(tmp_path):
    assert host_facts.limits(None) is None
    text = "Max open files            512                  4096                 files\n"
    assert host_facts.limits(text) == {"nofile": 512, "memlock": None, "nproc": None}
    assert host_facts.cgroup(host(tmp_path)) == {"memory_max_mb": None, "pids_max": None}
    put(tmp_path, {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/system.slice/memory.max": f"{64 * MB}\n"})
    put(tmp_path, {"/sys/fs/cgroup/pids.max": "4096\n"})
    assert host_facts.cgroup(host(tmp_path)) == {"memory_max_mb": 64, "pids_max": 4096}
    assert host_facts.hugepages_mb({"Hugepagesize": 2048}, "HugePages_Total:     512\n") == 1024
    assert host_facts.hugepages_mb({}, None) == 0


def test_a_host_started_with_its_first_process(tmp_path):
    ticks = os.sysconf("SC_CLK_TCK")
    words = ["S", *["0"] * 18, str(600 * ticks), *["0"] * 30]
    put(tmp_path, {"/proc/1/stat": f"1 (systemd (x) y) {' '.join(words)}\n", "/proc/uptime": "1000.5 4000.0\n"})
    assert host_facts.booted(host(tmp_path), lambda: 5000.0) == 5000 - 400.5
    put(tmp_path, {"/proc/1/stat": "1 (systemd) S\n"})
    assert host_facts.booted(host(tmp_path)) is None


# -- holders -----------------------------------------------------------------------------------------------------------


def test_sockets_and_devices_lead_to_their_processes(tmp_path):
    put(tmp_path, {"/proc/net/tcp": TCP, "/proc/self/status": ""})
    process(tmp_path, 41, command_line="python3 -m http.server 8000", opens=["socket:[7001]", "/etc/passwd"])
    process(tmp_path, 42, command_line="vllm serve m", opens=["/dev/davinci3", "/dev/davinci_manager"], container=ID)
    process(tmp_path, 43, command_line="containerd", comm="containerd", opens=["socket:[7002]"])
    put(tmp_path, {"/proc/41/cgroup": "0::/system.slice/web.service\n"})
    reader = host(tmp_path, {"docker ps": (0, f"{ID} old-run\n", "")})
    sockets = holders.listening(reader.text("/proc/net/tcp"), None)
    assert sockets == {8000: [7001]}
    scan = holders.scan(reader, [7001], ["containerd"])
    assert scan == holders.Scan({7001: 41}, {3: [42]}, [42], {"containerd": 43})
    processes = holders.describe(reader, [41, 42, 99])
    assert processes["41"] == {"command": "python3 -m http.server 8000", "container": None, "unit": "web.service"}
    assert processes["99"] == {"command": None, "container": None, "unit": None}
    holders.container_names(reader, "docker", processes)
    assert processes["42"] == {"command": "vllm serve m", "container": "old-run", "unit": None}
    # Without an engine that answers, the start of the id has to do.
    processes["42"]["container"] = ID
    holders.container_names(host(tmp_path), "docker", processes)
    assert processes["42"]["container"] == ID[:12]
    # A name that is known already stays whole, and nobody is asked.
    processes["42"]["container"] = ID
    holders.container_names(host(tmp_path), "docker", processes, {ID: "ascent-a-cluster-serve-0-head"})
    assert processes["42"]["container"] == "ascent-a-cluster-serve-0-head"


def test_node_info_tells_owners_holders_limits_and_images(tmp_path):
    put(
        tmp_path,
        {
            "/proc/net/tcp": TCP,
            "/etc/docker/daemon.json": '{"data-root": "/data/docker"}',
            "/etc/ascent/c1/generations/1/manifest.json": json.dumps(
                {"number": 1, "images": {"quay.io/ascend/vllm-ascend:v0.21.0rc1-a3": "sha256:d1"}}
            ),
        },
    )
    (tmp_path / "data/docker").mkdir(parents=True)
    process(tmp_path, 41, command_line="python3 -m http.server 8000", opens=["socket:[7001]"])
    process(tmp_path, 42, command_line="vllm serve m", opens=["/dev/davinci3"])
    process(tmp_path, 43, command_line="containerd", comm="containerd")
    present = [
        {
            "Id": "sha256:i1",
            "RepoTags": [],
            "RepoDigests": ["quay.io/ascend/vllm-ascend@sha256:d1"],
            "Architecture": "arm64",
            "Size": 17,
            "Config": {
                "Env": ["SOC_VERSION=ascend910_9391", "PATH=/usr/local/Ascend/cann-9.0.0/bin:/usr/bin"],
                "Labels": {"org.opencontainers.image.version": "v0.21.0rc1-a3"},
            },
        },
        {
            "Id": "sha256:i2",
            "RepoTags": ["redis:8"],
            "RepoDigests": None,
            "Architecture": "arm64",
            "Size": 3,
            "Config": {"Env": None, "Labels": {"org.opencontainers.image.version": "22.04"}},
        },
    ]
    reader = host(
        tmp_path,
        {
            "docker version": (0, "26.1.0\n", ""),
            "docker ps": (0, "", ""),
            "docker image inspect": (1, json.dumps(present), "Error: No such image: example.org/none:1"),
            "lspci": (0, "c1:00.0 1200: 19e5:d803 (rev 20)\nc2:00.0 0200: 19e5:0222\nc3:00.0 1200: 19e5:d803\n", ""),
        },
    )
    references = ["quay.io/ascend/vllm-ascend:v0.21.0rc1-a3", "docker.io/library/redis:8", "example.org/none:1"]
    facts = node.gather(
        reader,
        "c1",
        images=references,
        peers=["localhost"],
        paths=["/etc/docker/daemon.json", "/mnt/share"],
        weights_directory="/models/m",
    )
    assert facts["absent"] == ["/mnt/share"]
    assert facts["network"]["owners"] == {"8000": 41}
    assert facts["npu"]["holders"] == {"3": [42]}
    assert facts["npu"]["pci"] == {"d803": 2}
    assert facts["processes"]["42"]["command"] == "vllm serve m"
    assert facts["system"]["limits"]["container_engine"]["nofile"] == 1024
    assert set(facts["disk"]) == {"/", "/data/docker", "/models/m"}
    assert facts["container_engine"]["data_root"] == "/data/docker"
    images = facts["container_engine"]["inspected"]
    assert images[references[0]] == {
        "id": "sha256:i1",
        "architecture": "arm64",
        "bytes": 17,
        "cann": "9.0.0",
        "engine": "v0.21.0rc1",
        "soc": "ascend910_9391",
    }
    # A distribution's own version is no release of the engine.
    assert images[references[1]]["engine"] is None
    assert images[references[2]] is None
    assert facts["clock"]["first"] <= facts["clock"]["last"]
    json.dumps(facts)


def test_images_of_an_engine_that_is_not_there_are_absent(tmp_path):
    facts = node.gather(host(tmp_path), "c1", ["container_engine"], images=["a:1"])
    assert facts["container_engine"]["inspected"] == {"a:1": None}
    put(tmp_path, {"/etc/docker/daemon.json": "{broken"})
    assert node.data_root(host(tmp_path)) == "/var/lib/docker"
