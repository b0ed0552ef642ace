"""The emulated node tools, run as programs on a state file; what they print has to satisfy Ascent's own parsers."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ascent import hccn_tool, npu_smi
from sandbox.lib import node_files, plan

NODE = Path(__file__).resolve().parents[2] / "sandbox/node"
LOOPBACK = "127.0.0.1"


def make_state(profile="a3"):
    variables = {"sandbox_subnet": "198.18.0.0/16", "sandbox_services": "198.18.0.2", "sandbox_profile": profile}
    sandbox = plan.from_variables("c", variables, {"n1": {"ansible_host": "198.18.0.11"}})
    return node_files.state(sandbox, sandbox.nodes[0])


class Tools:
    """Runs the tools on one state."""

    def __init__(self, directory, state):
        self.directory, self.state = directory, state
        (directory / "leases").mkdir()
        self.root = directory / "root"
        (self.root / "etc").mkdir(parents=True)

    def run(self, tool, *arguments):
        path = self.directory / "state.json"
        if self.state is not None:
            path.write_text(json.dumps(self.state))
        environment = {**os.environ, "ASCENT_SANDBOX_STATE": str(path), "ASCENT_SANDBOX_ROOT": str(self.root)}
        command = [sys.executable, str(NODE / tool), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)

    def npu_smi(self, *arguments):
        return self.run("npu_smi.py", *arguments)

    def hccn(self, *arguments):
        return self.run("hccn_tool.py", *arguments)

    def lease(self, name, content):
        file = (self.directory / "leases" / name).open("w")
        json.dump(content, file)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


@pytest.fixture
def a3(tmp_path):
    return Tools(tmp_path, make_state("a3"))


@pytest.fixture
def a2(tmp_path):
    return Tools(tmp_path, make_state("a2"))


# -- npu-smi -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["a2", "a3", "910b4"])
def test_the_info_table_says_what_the_state_says(tmp_path, profile):
    tools = Tools(tmp_path, make_state(profile))
    tools.state["devices"][5].update(health="Warning", temperature_c=71, hbm_used_mb=12345)
    done = tools.npu_smi("info")
    assert done.returncode == 0
    assert {len(line) for line in done.stdout.splitlines()} == {98}
    parsed = npu_smi.parse_info(done.stdout)
    assert parsed["driver_version"] == "25.5.2"
    assert len(parsed["devices"]) == len(tools.state["devices"])
    for shown, known in zip(parsed["devices"], tools.state["devices"], strict=True):
        assert shown["npu_id"] == known["npu_id"]
        assert shown["chip_id"] == known["chip_id"]
        assert shown["name"] == known["name"]
        assert shown["health"] == known["health"]
        assert shown["bus_id"] == known["bus_id"]
        assert shown["power_w"] == known["power_w"]
        assert shown["temperature_c"] == known["temperature_c"]
        assert (shown["hbm_used_mb"], shown["hbm_total_mb"]) == (known["hbm_used_mb"], known["hbm_total_mb"])
        if profile == "a3":
            assert shown["phy_id"] == known["phy_id"]
    assert parsed["processes"] == []


def test_live_leases_are_processes_and_used_memory_and_stale_ones_are_not(a3):
    held = a3.lease("one.json", {"pid": 7, "name": "VLLMWorker_TP0", "devices": {"3": 40000, "4": 100}})
    a3.lease("gone.json", {"pid": 8, "name": "old", "devices": {"3": 9999}}).close()
    a3.state["processes"] = [{"phy_id": 3, "pid": 71, "name": "", "memory_mb": 71}]
    parsed = npu_smi.parse_info(a3.npu_smi("info").stdout)
    rows = {(row["npu_id"], row["chip_id"], row["name"]): (row["pid"], row["memory_mb"]) for row in parsed["processes"]}
    # The lock's holder as /proc/locks has it, which is this test, not the pid written into the lease.
    assert rows[1, 1, "VLLMWorker_TP0"] == (os.getpid(), 40000)
    assert rows[2, 0, "VLLMWorker_TP0"] == (os.getpid(), 100)
    assert len(rows) == 3
    used = {device["phy_id"]: device["hbm_used_mb"] for device in parsed["devices"]}
    assert used[3] == a3.state["devices"][3]["hbm_used_mb"] + 40000
    assert used[5] == a3.state["devices"][5]["hbm_used_mb"]
    held.close()
    assert len(npu_smi.parse_info(a3.npu_smi("info").stdout)["processes"]) == 1


def test_a_lease_that_is_being_written_is_passed_over(a3):
    with a3.lease("half.json", "{") as half:
        half.seek(0)
        half.write('{"pid": 7, "na')
        half.flush()
        done = a3.npu_smi("info")
    assert done.returncode == 0
    assert npu_smi.parse_info(done.stdout)["processes"] == []


def test_leases_never_exceed_the_memory_there_is(a3):
    with a3.lease("big.json", {"pid": 7, "name": "big", "devices": {"0": 10**6}}):
        parsed = npu_smi.parse_info(a3.npu_smi("info").stdout)
    assert parsed["devices"][0]["hbm_used_mb"] == 65536


@pytest.mark.parametrize(
    ("ret", "code", "words"), [(-8005, 187, "module initialize"), (-8020, 172, "model initialized")]
)
def test_a_start_up_failure_hits_every_sub_command(a3, ret, code, words):
    a3.state["faults"]["npu_smi_ret"] = ret
    for arguments in (["info"], ["info", "-l"], ["info", "-t", "topo"]):
        done = a3.npu_smi(*arguments)
        assert done.returncode == code
        assert words in done.stdout
        assert f"ret is {ret}" in done.stdout


def test_without_a_state_file_the_driver_is_not_loaded(tmp_path):
    done = Tools(tmp_path, None).npu_smi("info")
    assert (done.returncode, done.stdout) == (187, "dcmi module initialize failed. ret is -8005\n")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["info", "-x"], ["info", "-t", "nope", "-i", "0"]])
def test_an_unknown_option_says_so(a3, arguments):
    done = a3.npu_smi(*arguments)
    assert done.returncode != 0
    assert done.stdout.startswith("Command or option is not found.")


def test_mapping_and_list(a3):
    rows = npu_smi.parse_mapping(a3.npu_smi("info", "-m").stdout)
    assert [row["phy_id"] for row in rows] == list(range(16))
    assert a3.npu_smi("info", "-l").stdout.count("Chip Count") == 8
    assert "Total Count                    : 8" in a3.npu_smi("info", "-l").stdout


def test_health_shows_codes_and_a_bad_state_without_one_answers_ok(a3):
    errors = [{"code": "80E01801", "text": "HBM error"}, {"code": "80E18402", "text": "second"}]
    a3.state["devices"][2].update(health="Alarm", error_codes=errors)
    a3.state["devices"][3].update(health="Alarm", error_codes=[])
    shown = npu_smi.parse_health(a3.npu_smi("info", "-t", "health", "-i", 1, "-c", 0).stdout)
    assert shown["health"] == "Alarm"
    assert shown["error_codes"] == ["80E01801", "80E18402"]
    assert npu_smi.parse_health(a3.npu_smi("info", "-t", "health", "-i", 1, "-c", 1).stdout)["health"] == "OK"


@pytest.mark.parametrize(
    ("driver", "firmware", "verdict"),
    [("25.5.2", "7.8.0.6.201", "OK"), ("22.0.4", "7.8.0.6.201", "NOK"), ("25.5.2", "9.0.0.0.205", "NOK")],
)
def test_the_board_judges_driver_and_firmware(a3, driver, firmware, verdict):
    a3.state["driver"]["version"], a3.state["firmware"]["version"] = driver, firmware
    text = a3.npu_smi("info", "-t", "board", "-i", 0).stdout
    assert f"Compatibility                  : {verdict}\n" in text
    assert f"Software Version               : {driver}\n" in text


def test_topology_joins_the_dies_of_a_module(a3):
    links = npu_smi.parse_topology(a3.npu_smi("info", "-t", "topo").stdout)["links"]
    assert (links["0-1"], links["0-2"]) == ("SIO", "HCCS_SW")


def test_usages_and_ecc_are_integers_of_the_state(a3):
    a3.state["devices"][0].update(hbm_used_mb=32768, ecc_double_bit=2)
    assert npu_smi.parse_usages(a3.npu_smi("info", "-t", "usages", "-i", 0, "-c", 0).stdout)
    assert "HBM Usage Rate(%)              : 50\n" in a3.npu_smi("info", "-t", "usages", "-i", 0, "-c", 0).stdout
    ecc = a3.npu_smi("info", "-t", "ecc", "-i", 0, "-c", 0).stdout
    assert "HBM Double Bit Error Count" in ecc
    assert sum(int(line.split(":")[1]) for line in ecc.splitlines() if "HBM Double Bit Error Count" in line) == 2


# -- hccn_tool ---------------------------------------------------------------------------------------------------------


def test_addresses_links_and_switches(a3):
    a3.state["devices"][7]["roce"].update(link="DOWN", net_health="Socket fail")
    a3.state["devices"][7]["roce"]["tls"]["enabled"] = True
    assert hccn_tool.parse("ip", a3.hccn("-i", 7, "-ip", "-g").stdout)["address"] == "198.18.11.8"
    assert hccn_tool.parse("vnic", a3.hccn("-i", 7, "-vnic", "-g").stdout)["address"] == "198.18.11.136"
    assert hccn_tool.parse("link", a3.hccn("-i", 7, "-link", "-g").stdout)["link"] == "DOWN"
    assert hccn_tool.parse("net_health", a3.hccn("-i", 7, "-net_health", "-g").stdout)["ok"] is False
    assert hccn_tool.parse("tls", a3.hccn("-i", 7, "-tls", "-g").stdout)["enabled"] is True
    assert hccn_tool.parse("gateway", a3.hccn("-i", 7, "-gateway", "-g").stdout)["gateway"] == "198.18.0.1"
    assert hccn_tool.parse("netdetect", a3.hccn("-i", 7, "-netdetect", "-g").stdout)["address"] == "198.18.0.1"
    assert hccn_tool.parse("lldp", a3.hccn("-i", 7, "-lldp", "-g").stdout)["interfaces"]
    assert hccn_tool.parse("fec", a3.hccn("-i", 7, "-fec", "-g").stdout)["mode"]


def test_counters_and_link_changes(a3):
    a3.state["devices"][0]["roce"]["counters"]["mac_rx_bad_pkt_num"] = 12
    a3.state["devices"][0]["roce"]["link_records"] = [[1700000100, "UP"], [1700000000, "DOWN"]]
    counters = hccn_tool.parse("stat", a3.hccn("-i", 0, "-stat", "-g").stdout)["counters"]
    assert counters["mac_rx_bad_pkt_num"] == 12
    records = hccn_tool.parse("link_stat", a3.hccn("-i", 0, "-link_stat", "-g").stdout)
    assert [state for _, state in records["records"]] == ["UP", "DOWN"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-i", "99", "-ip", "-g"], 4, "not exist"),
        (["-i", "x", "-ip", "-g"], 4, "invalid device id"),
        (["-i", "0", "-nonsense", "-g"], 3, "invalid major cmd"),
        (["-i", "0", "-ip"], 2, "total count"),
        (["-i", "0", "-link", "-s", "sideways"], 3, "unknown option"),
        (["-i", "0", "-mac", "-s", "x"], 3, "unknown option"),
        (["-i", "0", "-ip", "-s"], 2, "total count"),
        (["-i", "0", "-ip", "-s", "address", "192.0.2.1", "netmask", "x"], 1, "invalid parameters"),
        (["-i", "0", "-gateway", "-s", "gateway", "192.0.2.1"], 1, "invalid parameters"),
        (["-i", "0", "-ping", "-g", "address", "nowhere"], 1, "invalid parameters"),
    ],
)
def test_mistakes_end_as_in_the_real_tool(a3, arguments, code, words):
    done = a3.hccn(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_an_address_that_was_never_set(a3):
    a3.state["devices"][0]["roce"].update(address="", gateway="")
    assert a3.hccn("-i", 0, "-ip", "-g").returncode == 13
    assert a3.hccn("-i", 0, "-gateway", "-g").returncode == 2


def test_a2_has_no_super_pod(a2):
    done = a2.hccn("-i", 0, "-hccs_ping", "-g", "address", LOOPBACK)
    assert (done.returncode, done.stdout) == (13, "The command is not supported on this product.\n")


def test_a_second_call_finds_the_tool_busy(a3):
    a3.hccn("-i", 0, "-ip", "-g")
    with (a3.directory / "hccn_tool.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = a3.hccn("-i", 0, "-ip", "-g")
    assert (done.returncode, done.stdout) == (11, "hccn_tool is busy, please try again.\n")
    assert a3.hccn("-i", 0, "-ip", "-g").returncode == 0


raw_sockets = pytest.mark.skipif(os.geteuid() != 0, reason="ICMP takes root")


@raw_sockets
def test_ping_is_a_real_round_trip(a2):
    a2.state["devices"][0]["roce"]["address"] = LOOPBACK
    done = a2.hccn("-i", 0, "-ping", "-g", "address", "127.0.0.2", "pkt", 4)
    assert done.returncode == 0, done.stderr
    shown = hccn_tool.parse("ping", done.stdout)
    assert (shown["sent"], shown["received"], shown["ok"]) == (4, 4, True)


@raw_sockets
def test_a_lost_packet_fails_ping_but_not_the_exit_code_of_hccs_ping(a3):
    device = a3.state["devices"][0]
    device["roce"]["address"] = device["vnic"]["address"] = LOOPBACK
    a3.state["faults"]["ping_drop_nth"] = {"0": 2}
    ping = a3.hccn("-i", 0, "-ping", "-g", "address", LOOPBACK)
    assert ping.returncode == 1
    assert hccn_tool.parse("ping", ping.stdout)["loss_percent"] == pytest.approx(33.33)
    hccs = a3.hccn("-i", 0, "-hccs_ping", "-g", "address", LOOPBACK, "pkt", 2)
    assert hccs.returncode == 0
    shown = hccn_tool.parse("hccs_ping", hccs.stdout)
    assert (shown["sent"], shown["received"], shown["ok"]) == (2, 1, False)


@raw_sockets
def test_a_device_whose_address_is_not_on_this_machine_reaches_nobody(a3):
    assert a3.hccn("-i", 0, "-ping", "-g", "address", LOOPBACK).returncode == 1
    hccs = a3.hccn("-i", 0, "-hccs_ping", "-g", "address", LOOPBACK)
    assert hccs.returncode == 0
    assert hccn_tool.parse("hccs_ping", hccs.stdout)["received"] == 0


def test_a_link_that_is_down_sends_nothing(a3):
    a3.state["devices"][0]["roce"]["link"] = a3.state["devices"][0]["vnic"]["link"] = "DOWN"
    assert a3.hccn("-i", 0, "-ping", "-g", "address", LOOPBACK).returncode == 22
    assert "This pkt send fail!" in a3.hccn("-i", 0, "-hccs_ping", "-g", "address", LOOPBACK).stdout
