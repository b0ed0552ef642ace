"""What `node_info` reads of nodes on which a plan can work: the ground on which tests of preflight break one thing."""

from __future__ import annotations

from ascent import versions


def device(number, **values):
    return {
        "npu_id": number // 2,
        "chip_id": number % 2,
        "phy_id": number,
        "name": "Ascend910",
        "health": "OK",
        "hbm_used_mb": 3100,
        "hbm_total_mb": 65536,
        **values,
    }


def node(plan, host):
    """What node_info reads of a node that is ready."""
    planned = plan["hosts"][host]
    files = sorted(
        {file.split(":")[0] for one in plan["processes"] if one["host"] == host for file in one["container"]["devices"]}
    )
    return {
        "system": {
            "hostname": host,
            "os": {"id": "openEuler", "version": "22.03", "family": "rhel"},
            "kernel": "5.10.0-216.0.0.115.oe2203sp4.aarch64",
            "machine": "aarch64",
            "python": "3.9.9",
            "memory_mb": 2**20,
            "memory_available_mb": 2**19,
            "hugepages_mb": 0,
            "cgroup": {"memory_max_mb": None, "pids_max": None},
            "shm_mb": 1024,
            "proxies": {},
            "time": 1.0,
            "names": {name: [one["node_ip"]] for name, one in plan["hosts"].items()},
            "limits": {"login": None, "container_engine": {"nofile": 1048576, "memlock": None, "nproc": None}},
            "selinux": None,
            "filters": [],
        },
        "network": {
            "addresses": [
                {"nic": "lo", "address": "127.0.0.1", "prefix": 8},
                {"nic": planned["nic"], "address": planned["node_ip"], "prefix": 16},
            ],
            "nics": {planned["nic"]: {"mtu": 1500, "state": "up", "speed": 25000}},
            "listening": [22],
            "owners": {"22": 90},
            "ephemeral": [32768, 60999],
            "reserved": ",".join(planned["reserved_ports"]),
        },
        "disk": {
            "/var/lib/docker": {"free_mb": 10**6, "total_mb": 2 * 10**6, "device": 1},
            "/m": {"free_mb": 10**6, "total_mb": 2 * 10**6, "device": 2},
        },
        "npu": {
            "info": {"devices": [device(number) for number in range(16)], "processes": []},
            "error": None,
            "device_files": files,
            "driver": versions.parse_driver("Version=25.5.2\ncompatible_version_fw=[7.0.0,8.9.9]\n"),
            "firmware": versions.parse_firmware("Version=7.8.0.6.201\ncompatible_version_drv=[25.5,25.5.]\n"),
            "install": {"status": "complete"},
            "health": [],
            "user": {"name": "HwHiAiUser", "uid": 1000, "gid": 1000, "group_gid": 1000},
            "hccn": {},
            "hccn_error": None,
            "pci": {"d803": 16},
            "holders": {},
        },
        "container_engine": {
            "installed": True,
            "running": True,
            "version": "26.1.0",
            "containers": [],
            "data_root": "/var/lib/docker",
            "inspected": dict.fromkeys(plan["engine"]["images"]),
        },
        "processes": {"90": {"command": "sshd -D", "container": None}},
        "weights": {
            "directory": "/m",
            "present": True,
            "complete": True,
            "missing": [],
            "pointers": [],
            "truncated": [],
            "bytes": 1,
        },
        "state": {"current": None, "generations": [], "fabric": None},
    }
