"""The emulated node tools, run as programs on a state file; what they print has to satisfy Ascent's own parsers."""

import fcntl
import importlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from ascent import errors, hccn_tool, npu_smi, nvidia_smi
from sandbox.lib import node_files, plan

NODE = Path(__file__).resolve().parents[2] / "sandbox/node"
LOOPBACK = "127.0.0.1"
# The tools find each other beside themselves, as on a node.
sys.path.append(str(NODE))


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
        """The tool's answer, from within this process: hundreds of interpreters would take their time."""
        path = self.directory / "state.json"
        if self.state is not None:
            path.write_text(json.dumps(self.state))
        module, out, err = importlib.import_module(tool), io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("ASCENT_SANDBOX_STATE", str(path))
            patch.setenv("ASCENT_SANDBOX_ROOT", str(self.root))
            try:
                code = module.main([str(argument) for argument in arguments])
            except SystemExit as ended:
                code = ended.code
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    def reread(self):
        self.state = json.loads((self.directory / "state.json").read_text())

    def npu_smi(self, *arguments):
        return self.run("npu_smi", *arguments)

    def hccn(self, *arguments):
        return self.run("hccn_tool", *arguments)

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


@pytest.mark.parametrize("tool", ["npu_smi.py", "hccn_tool.py", "nvidia_smi.py"])
def test_a_tool_is_a_program_of_its_own(tmp_path, tool):
    state = make_state("gpu" if tool == "nvidia_smi.py" else "a3")
    (tmp_path / "state.json").write_text(json.dumps(state))
    words = {"npu_smi.py": ["info"], "hccn_tool.py": ["-i", "0", "-link", "-g"], "nvidia_smi.py": ["-L"]}[tool]
    environment = {**os.environ, "ASCENT_SANDBOX_STATE": str(tmp_path / "state.json")}
    done = subprocess.run([sys.executable, str(NODE / tool), *words], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


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


# -- setters of hccn_tool ----------------------------------------------------------------------------------------------


BEFORE = "address_0=192.0.2.9\nkey_0=kept\naddress_0=192.0.2.8\nnetmask_1=255.0.0.0\n"


def conf(tools):
    return (tools.root / "etc/hccn.conf").read_text()


def test_an_address_is_set_in_the_state_and_kept_in_the_file_with_all_else_in_it(a3):
    (a3.root / "etc/hccn.conf").write_text(
        "address_0=192.0.2.9\nkey_0=kept\naddress_0=192.0.2.8\nnetmask_1=255.0.0.0\n"
    )
    done = a3.hccn("-i", 0, "-ip", "-s", "address", "198.18.200.1", "netmask", "255.255.0.0")
    assert (done.returncode, done.stdout) == (0, "Cmd executed successfully!\n")
    assert conf(a3) == "address_0=198.18.200.1\nkey_0=kept\nnetmask_1=255.0.0.0\nnetmask_0=255.255.0.0\n"
    a3.reread()
    assert hccn_tool.parse("ip", a3.hccn("-i", 0, "-ip", "-g").stdout)["address"] == "198.18.200.1"


def test_what_the_file_says_comes_back_with_a_recovery_or_a_reset(a3):
    lines = [f"address_{number}=198.18.77.{number + 1}\nnetmask_{number}=255.255.0.0\n" for number in range(15)]
    (a3.root / "etc/hccn.conf").write_text("".join(lines) + "address_15=nonsense\n")
    done = a3.hccn("-a", "-cfg", "recovery")
    assert done.returncode == 1
    assert "dev:14 recovery success\ndev:15 recovery fail\n" in done.stdout
    a3.reread()
    assert a3.state["devices"][3]["roce"]["address"] == "198.18.77.4"
    assert a3.state["devices"][15]["roce"]["address"] == "198.18.11.16"
    a3.state["devices"][3]["roce"].update(address="", link="DOWN")
    assert a3.hccn("-i", 3, "-reset").returncode == 0
    a3.reread()
    assert (a3.state["devices"][3]["roce"]["address"], a3.state["devices"][3]["roce"]["link"]) == ("198.18.77.4", "UP")


def test_link_tls_detection_and_size_are_set_and_read_back(a3):
    for words in (
        ("-link", "-s", "down"),
        ("-link", "-s", "down"),
        ("-tls", "-s", "enable", "1"),
        ("-netdetect", "-s", "address", "198.18.0.7"),
        ("-gateway", "-s", "gateway", "198.18.0.9"),
        ("-mtu", "-s", "size", "1500"),
    ):
        assert a3.hccn("-i", 5, *words).returncode == 0
        a3.reread()
    read = {option: hccn_tool.parse(option, a3.hccn("-i", 5, f"-{option}", "-g").stdout) for option in GETTERS_READ}
    assert read["link"]["link"] == "DOWN"
    assert read["tls"]["enabled"] is True
    assert read["netdetect"]["address"] == "198.18.0.7"
    assert read["gateway"]["gateway"] == "198.18.0.9"
    assert read["mtu"]["mtu"] == 1500
    assert [state for _, state in read["link_stat"]["records"]] == ["DOWN"]
    assert "gateway_5=198.18.0.9\n" in conf(a3)
    assert "tls" not in conf(a3)


GETTERS_READ = ("link", "tls", "netdetect", "gateway", "mtu", "link_stat")


def test_certificates_have_to_be_there(a3, tmp_path):
    a3.state["devices"][0]["roce"]["tls"]["preconfigured"] = False
    assert a3.hccn("-i", 0, "-tls", "-s", "enable", "1").returncode == 1
    words = ["path", str(tmp_path), "pri", "p.pem", "pub", "c.pem", "ca1", "ca.pem"]
    assert a3.hccn("-i", 0, "-tls", "-s", *words).returncode == 1
    for name in ("p.pem", "c.pem", "ca.pem"):
        (tmp_path / name).touch()
    assert a3.hccn("-i", 0, "-tls", "-s", *words).returncode == 0
    a3.reread()
    assert a3.hccn("-i", 0, "-tls", "-s", "enable", "1").returncode == 0


# -- everything that is printed can be read ----------------------------------------------------------------------------

PROFILES = ["a2", "a3", "910b4", "dev-box", "310p", "950"]
RELEASES = {"22.0.4": 99, "24.1.0": 98, "25.5.2": 98, "26.0.rc1": 116}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_table_of_every_release_is_read_back(tmp_path, profile, release):
    tools = Tools(tmp_path, make_state(profile))
    tools.state["tool_version"] = release
    tools.state["devices"][-1].update(health="Critical", aicore_percent=97, hbm_used_mb=31234)
    tools.state["processes"] = [{"phy_id": 0, "pid": 4711, "name": "VLLM::Worker_TP0_with_a_long_name", "memory_mb": 9}]
    text = tools.npu_smi("info").stdout
    width = {"310p": 106, "950": 99}.get(profile, RELEASES[release])
    assert {len(line) for line in text.splitlines()} == {width}
    parsed = npu_smi.parse_info(text)
    assert (parsed["tool_version"], parsed["driver_version"]) == (release, tools.state["driver"]["version"])
    used = "memory_used_mb" if profile == "310p" else "hbm_used_mb"
    for shown, known in zip(parsed["devices"], tools.state["devices"], strict=True):
        same = {key: known[key] for key in ("npu_id", "chip_id", "health", "power_w", "aicore_percent", "bus_id")}
        assert {key: shown[key] for key in same} == same
        assert shown[used] == known["hbm_used_mb"]
        assert shown["phy_id"] == (known["phy_id"] if profile in ("a3", "310p") else None)
    assert [(row["pid"], row["memory_mb"]) for row in parsed["processes"]] == [(4711, 9)]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_other_answer_of_npu_smi_is_read_back(tmp_path, profile):
    tools = Tools(tmp_path, make_state(profile))
    devices = tools.state["devices"]
    numbers = {device["npu_id"] for device in devices}
    mapped = npu_smi.parse_mapping(tools.npu_smi("info", "-m").stdout)
    assert [(row["npu_id"], row["logic_id"]) for row in mapped] == [(d["npu_id"], d["logic_id"]) for d in devices]
    listed = npu_smi.parse_list(tools.npu_smi("info", "-l").stdout)
    assert {npu["npu_id"] for npu in listed["npus"]} == numbers
    last = devices[-1]
    place = ("-i", last["npu_id"], "-c", last["chip_id"])
    assert (
        npu_smi.parse_board(tools.npu_smi("info", "-t", "board", "-i", last["npu_id"]).stdout)["compatibility"] == "OK"
    )
    assert npu_smi.parse_board(tools.npu_smi("info", "-t", "board", *place).stdout)["chip_name"] == last["name"]
    assert npu_smi.parse_health(tools.npu_smi("info", "-t", "health", *place).stdout)["health"] == "OK"
    assert npu_smi.parse_usages(tools.npu_smi("info", "-t", "usages", *place).stdout)["aicore_usage_rate_percent"] == 0
    topology = tools.npu_smi("info", "-t", "topo")
    if profile == "310p":
        with pytest.raises(errors.ToolError):
            npu_smi.parse_topology(topology.stdout)
    else:
        assert len(npu_smi.parse_topology(topology.stdout)["links"]) == len(devices) * (len(devices) - 1) // 2


@pytest.mark.parametrize("driver", ["24.1.0", "25.5.2"])
@pytest.mark.parametrize("profile", ["a2", "a3", "950"])
def test_every_answer_of_hccn_tool_is_read_back(tmp_path, profile, driver):
    tools = Tools(tmp_path, make_state(profile))
    tools.state["driver"]["version"] = driver
    for option in hccn_tool.OPTIONS:
        if option in ("ping", "hccs_ping") or (option == "vnic" and profile != "a3"):
            continue
        done = tools.hccn("-i", 2, f"-{option}", "-g")
        assert done.returncode == 0, option
        assert hccn_tool.parse(option, done.stdout), option
    assert len(hccn_tool.parse("optical", tools.hccn("-i", 2, "-optical", "-g").stdout)["items"]) >= 10
    for option in ("arp", "route", "process", "duplex"):
        assert tools.hccn("-i", 2, f"-{option}", "-g").stdout


@pytest.mark.parametrize(
    ("driver", "change", "present"), [("24.1.0", {"present": False}, False), ("25.5.2", {"present": False}, False)]
)
def test_an_absent_module_is_read_as_absent(a2, driver, change, present):
    a2.state["driver"]["version"] = driver
    a2.state["devices"][1]["roce"]["optical"].update(change)
    assert hccn_tool.parse("optical", a2.hccn("-i", 1, "-optical", "-g").stdout)["present"] is present


def test_every_failure_is_read_as_one(a3):
    a3.state["devices"][0]["roce"].update(optical=None)
    for words in (("-nonsense", "-g"), ("-ping", "-g", "address", "x"), ("-link", "-s", "x")):
        done = a3.hccn("-i", 0, *words)
        with pytest.raises(errors.ToolError):
            hccn_tool.parse("link", done.stdout + done.stderr)
    a3.state["faults"]["hccn_busy"] = True
    assert hccn_tool.BUSY.search(a3.hccn("-i", 0, "-link", "-g").stdout)


def test_a_device_without_a_port_says_that_the_machine_does_not_support_it(tmp_path):
    tools = Tools(tmp_path, make_state("dev-box"))
    done = tools.hccn("-i", 0, "-ip", "-g")
    assert done.returncode == 21
    with pytest.raises(errors.ToolError):
        hccn_tool.parse("ip", done.stderr)


def test_without_a_loaded_driver_no_tool_answers(a3):
    a3.state["driver"] = None
    with pytest.raises(errors.ToolError) as told:
        npu_smi.parse_info(a3.npu_smi("info").stdout)
    assert told.value.ret == -8005
    assert a3.hccn("-i", 0, "-ip", "-g").returncode == 1


def test_a_reply_of_the_state_takes_the_place_of_the_tool_s_own(a3):
    reply = {"tool": "hccn_tool", "arguments": ["-i", "3", "-link"], "stdout": "link status: DOWN\n", "exit": 0}
    a3.state["faults"]["replies"] = [reply, {"tool": "npu-smi", "arguments": ["info", "-t", "topo"], "exit": 7}]
    assert hccn_tool.parse("link", a3.hccn("-i", 3, "-link", "-g").stdout)["link"] == "DOWN"
    assert hccn_tool.parse("link", a3.hccn("-i", 4, "-link", "-g").stdout)["link"] == "UP"
    assert a3.npu_smi("info", "-t", "topo").returncode == 7
    assert a3.npu_smi("info").returncode == 0


def test_an_installation_that_did_not_end_is_told_after_the_table(a3):
    (a3.root / "usr/local/lib/sandbox").mkdir(parents=True)
    (a3.root / "usr/local/lib/sandbox/boot").touch()
    text = a3.npu_smi("info").stdout
    assert "may not be completely installed" in text.splitlines()[-1]
    assert len(npu_smi.parse_info(text)["devices"]) == 16
    (a3.root / "etc/ascend_install.info").write_text("Driver_Install_Status=complete\n")
    assert "completely" not in a3.npu_smi("info").stdout


@raw_sockets
def test_large_packets_are_too_long_for_a_small_path(a2):
    a2.state["devices"][0]["roce"]["address"] = LOOPBACK
    words = ("-i", 0, "-ping", "-g", "address", LOOPBACK, "pkt")
    assert hccn_tool.parse("ping", a2.hccn(*words, 4000).stdout)["ok"] is True
    a2.state["faults"]["ping_max_bytes"] = 1500
    done = a2.hccn(*words, 4000)
    assert done.returncode == 1
    assert hccn_tool.parse("ping", done.stdout)["ok"] is False
    assert hccn_tool.parse("ping", a2.hccn(*words, 5).stdout)["received"] == 5


# -- nvidia-smi --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(tmp_path):
    tools = Tools(tmp_path, make_state("gpu"))
    tools.state["processes"] = [{"phy_id": 6, "pid": 99, "name": "VLLM::EngineCore", "memory_mb": 120000}]
    tools.state["devices"][6]["hbm_used_mb"] = 120000
    return tools


def test_the_gpu_table_is_of_one_width_and_names_all(gpu):
    lines = gpu.run("nvidia_smi").stdout.splitlines()
    assert {len(line) for line in lines[1:] if line} == {91}
    text = "\n".join(lines)
    assert text.count("NVIDIA H200") == 8
    assert "120000MiB / 143771MiB" in text
    assert "VLLM::EngineCore" in text


def test_gpus_are_listed_with_their_uuids(gpu):
    lines = gpu.run("nvidia_smi", "-L").stdout.splitlines()
    assert len(lines) == len(set(lines)) == 8
    assert lines[3] == f"GPU 3: NVIDIA H200 (UUID: {gpu.state['devices'][3]['uuid']})"


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("csv", "index, memory.used [MiB], utilization.gpu [%]\n6, 120000 MiB, 0 %\n"),
        ("csv,noheader", "6, 120000 MiB, 0 %\n"),
        ("csv,noheader,nounits", "6, 120000, 0\n"),
    ],
)
def test_gpus_are_queried(gpu, form, wanted):
    words = ("--query-gpu=index,memory.used,utilization.gpu", f"--format={form}", "-i", 6)
    assert gpu.run("nvidia_smi", *words).stdout == wanted


def test_what_facts_ask_of_gpus_is_read(gpu):
    words = (f"--query-gpu={','.join(nvidia_smi.FIELDS)}", "--format=csv,noheader,nounits")
    read = nvidia_smi.parse_query(gpu.run("nvidia_smi", *words).stdout)
    assert read["driver"] == gpu.state["driver"]["version"]
    assert [one["uuid"] for one in read["devices"]] == [device["uuid"] for device in gpu.state["devices"]]
    assert read["devices"][6]["memory_used_mb"] == 120000


def test_processes_on_gpus_are_queried_with_leases(gpu):
    with gpu.lease("one.json", {"pid": 7, "name": "VLLM::Worker_TP0", "devices": {"1": 4000}}):
        words = ("--query-compute-apps=gpu_uuid,pid,used_gpu_memory", "--format=csv,noheader,nounits")
        rows = gpu.run("nvidia_smi", *words).stdout.splitlines()
    assert f"{gpu.state['devices'][1]['uuid']}, {os.getpid()}, 4000" in rows
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("words", "code"), [(["--query-gpu=nothing", "--format=csv"], 2), (["-i", "9"], 6), (["--frobnicate"], 2)]
)
def test_mistakes_end_nvidia_smi(gpu, words, code):
    assert gpu.run("nvidia_smi", *words).returncode == code


def test_without_a_driver_nvidia_smi_says_so(gpu):
    gpu.state["driver"] = None
    done = gpu.run("nvidia_smi")
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout


# -- lspci -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "vendor", "device", "count"),
    [("a2", "19e5", "d802", 8), ("a3", "19e5", "d803", 16), ("gpu", "10de", "2335", 8)],
)
def test_the_bus_shows_the_accelerators_and_nothing_of_the_machine_below(tmp_path, profile, vendor, device, count):
    tools = Tools(tmp_path, make_state(profile))
    lines = tools.run("lspci", "-n", "-d", f"{vendor}:").stdout.splitlines()
    assert len(lines) == count
    assert all(f" {vendor}:{device} " in line for line in lines)
    assert tools.run("lspci", "-nn", "-s", "81:00.0").stdout.count(f"[{vendor}:{device}]") == 1
    assert tools.run("lspci", "-d", "8086:").stdout == ""
    assert tools.run("lspci", "-v").returncode == 1


def test_a_device_that_the_driver_lost_is_still_on_the_bus(a2):
    a2.state["devices"].pop(3)
    assert len(a2.run("lspci", "-d", "19e5:").stdout.splitlines()) == 8
    assert len(npu_smi.parse_info(a2.npu_smi("info").stdout)["devices"]) == 7
