"""What a healthy cluster tells of its fabric, for tests that then break one thing of it."""

from __future__ import annotations

import copy
from typing import Any

COUNTERS = {"mac_rx_bad_pkt_num": 0, "roce_new_pkt_rty_num": 0, "mac_rx_pfc_pkt_num": 7, "mac_rx_total_pkt_num": 900}


class Cluster:
    """A plan, and `ascent_node`, `ascent_npus`, the second counters and `ascent_mesh` of its hosts.

    Device d of host h has RoCE address 203.0.113.(32h + d + 1) and, on A3, vnic address 192.0.2.(32h + d).
    """

    def __init__(self, generation: str = "a3", hosts: int = 3, devices: int = 4, *, kv_transfer: bool = False) -> None:
        self.names = [f"{generation}-{number + 1:02}" for number in range(hosts)]
        self.numbers = list(range(devices))
        self.plane = "vnic" if generation == "a3" else "ip"
        self.plan: dict[str, Any] = {
            "hash": "plan-1",
            "cluster": "c1",
            "hosts": {},
            "processes": [],
            "device_pairs": [],
        }
        self.nodes: dict[str, Any] = {}
        self.npus: dict[str, Any] = {}
        mounts = [{"source": "/etc/hccn.conf", "target": "/etc/hccn.conf", "read_only": True}] if kv_transfer else []
        for index, host in enumerate(self.names):
            address = f"198.51.100.{index + 11}"
            self.plan["hosts"][host] = {
                "node_ip": address,
                "nic": "eth0",
                "hardware": generation,
                "vendor": "ascend",
                "devices": self.numbers,
                "fabric": {"address": self.plane, "ping": "hccs_ping" if self.plane == "vnic" else "ping"},
            }
            env = [
                {"name": "HCCL_IF_IP", "value": address},
                *({"name": f"{word}_SOCKET_IFNAME", "value": "eth0"} for word in ("HCCL", "GLOO", "TP")),
            ]
            self.plan["processes"].append(
                {"name": f"engine-{index}", "host": host, "env": env, "container": {"image": "e:1", "mounts": mounts}}
            )
            self.nodes[host] = {
                "system": {"boot_id": f"boot-{index}", "time": 1000.0 + index},
                "network": {
                    "error": None,
                    "hcas": [],
                    "addresses": [
                        {"nic": "lo", "address": "127.0.0.1", "prefix": 8},
                        {"nic": "eth0", "address": address, "prefix": 24},
                    ],
                },
                "npu": {"hccn": {}, "driver": {"version": "25.5.2"}, "firmware": {"version": "7.8.0.6.201"}},
                "state": {"fabric": None},
            }
            self.npus[host] = self._facts(index, generation)
        members = [{"host": host, "devices": self.numbers} for host in self.names]
        self.plan["device_pairs"] = [
            {"reason": "collective", "pattern": "same-position", "instances": ["engine"], "groups": [members]}
        ]

    def _facts(self, index: int, generation: str) -> dict[str, Any]:
        conf = {}
        devices = {}
        for number in self.numbers:
            conf[str(number)] = {
                "address": f"203.0.113.{32 * index + number + 1}",
                "netmask": "255.255.255.0",
                "gateway": "203.0.113.254",
            }
            devices[str(number)] = self._device(index, number, generation, conf[str(number)])
        return {
            "npu_smi": "/usr/local/bin/npu-smi",
            "hccn_tool": "/usr/local/Ascend/driver/tools/hccn_tool",
            "depth": "standard",
            "devices": devices,
            "topology": {"links": {"0-1": "HCCS"}, "cpu_affinity": {}},
            "conf": {"present": True, "devices": conf, "error": None},
            "containers": [],
            "holders": [],
            "unsupported": [] if generation == "a3" else ["vnic"],
            "unread": [],
            "calls": 60,
            "seconds": 3.0,
            "at": 2000.0,
        }

    @staticmethod
    def _device(index: int, number: int, generation: str, conf: dict[str, str]) -> dict[str, Any]:
        a3 = generation == "a3"
        vnic = {"address": f"192.0.2.{32 * index + number}", "netmask": "255.255.0.0", "link": "UP"}
        power = {name: {"value": 0.9, "unit": "mW", "text": "0.9 mW"} for name in ("Tx Power0", "Rx Power0")}
        return {
            "npu_id": number, "chip_id": 0, "logic_id": number, "bus_id": "0000:C1:00.0", "name": "Ascend910",
            "health": "OK", "error_codes": [], "temperature_c": 40, "hbm_used_mb": 3000, "hbm_total_mb": 65536,
            "processes": [], "driver_version": "25.5.2", "firmware_version": "7.8.0.6.201", "compatibility": "OK",
            "super_pod": {"sdid": 100 * index + number, "size": 48, "id": 1, "server_index": index} if a3 else None,
            "ip": {"address": conf["address"], "netmask": conf["netmask"]},
            "vnic": vnic if a3 else None,
            "link": {"link": "UP"},
            "net_health": {"status": "Success", "ok": True},
            "netdetect": {"address": "203.0.113.254"},
            "gateway": {"gateway": conf["gateway"], "interface": f"eth{number}"},
            "gateway_ping": {"target": "203.0.113.254", "sent": 1, "received": 1, "loss_percent": 0.0, "ok": True},
            "tls": {"device": number, "enabled": False, "preconfigured": True, "alarm_days": 60},
            "mtu": {"mtu": 4096}, "speed": {"mbps": 200000}, "fec": {"mode": "rs"},
            "lldp": {"interfaces": [f"400GE1/0/{number + 1}:1"], "systems": ["leaf-1"]},
            "optical": {"present": True, "items": power},
            "stat": {"counters": dict(COUNTERS)},
            "link_stat": None,
        }  # fmt: skip

    def device(self, host: int, number: int) -> dict[str, Any]:
        """The facts of one device, to be broken."""
        return self.npus[self.names[host]]["devices"][str(number)]

    def conf(self, host: int, number: int) -> dict[str, str]:
        """The lines of one device in a host's configuration file."""
        return self.npus[self.names[host]]["conf"]["devices"][str(number)]

    def counters(self) -> dict[str, Any]:
        """A second reading in which nothing grew but what always does."""
        result: dict[str, Any] = {}
        for host, facts in self.npus.items():
            second = {}
            for number, device in facts["devices"].items():
                second[number] = copy.deepcopy((device["stat"] or {}).get("counters") or {})
                if "mac_rx_total_pkt_num" in second[number]:
                    second[number]["mac_rx_total_pkt_num"] += 50
                    second[number]["mac_rx_pfc_pkt_num"] += 5
            result[host] = {"at": 2030.0, "devices": second}
        return result

    def meshes(self, bad: Any = None) -> dict[str, Any]:
        """Every device with its counterparts on the other hosts; `bad(source, target)` gives what is not good."""
        result: dict[str, Any] = {}
        for host in self.names:
            pairs = []
            for peer in self.names:
                for number in self.numbers if peer != host else ():
                    entry = self.npus[peer]["devices"][str(number)]
                    pair = {
                        "from": [host, number], "to": [peer, number],
                        "address": (entry[self.plane] or {}).get("address"),
                        "sent": 3, "received": 3, "min_us": 18.0, "avg_us": 20.0, "max_us": 25.0, "error": None,
                    }  # fmt: skip
                    pairs.append({**pair, **((bad((host, number), (peer, number)) if bad else None) or {})})
            result[host] = {"plane": self.plane, "packets": 3, "seconds": 1.0, "pairs": pairs}
        return result
