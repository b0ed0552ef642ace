"""Reading a node's devices: with the emulated tools' shapes, and with tools that fail in every way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ascent import command, node, npu

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
BUSY = "hccn_tool is busy, please try again.\n"
ANSWERS = {
    "ip": "ipaddr:198.51.100.{n}\nnetmask:255.255.255.0\n",
    "vnic": "vnic link status: UP\nvnic ipaddr: 192.0.2.{n}\nvnic netmask: 255.255.0.0\n",
    "link": "link status: UP\n",
    "net_health": "net health status: Success\n",
    "tls": "dev_id:{n}, tls switch[0](0:disable, 1:enable), tls alarm time threshold[60]days\n",
    "netdetect": "netdetect address: 198.51.100.254\n",
    "gateway": "default gateway:198.51.100.254, Iface:eth{n}\n",
    "mtu": "mtu:4096\n",
    "speed": "Speed: 200000 Mb/s\n",
    "fec": "fec mode: rs FEC mode\n",
    "lldp": "",
    "optical": (TRANSCRIPTS / "hccn_tool/optical.txt").read_text(),
    "stat": "packet statistics:\nmac_rx_bad_pkt_num:{n}\n",
    "ping": "device {n} PING 198.51.100.254\nrecv seq=0,time=0.1ms\n"
    "1 packets transmitted, 1 received, 0.00% packet loss\n",
}
SPOD = "".join(
    f"\t{key} : {value}\n"
    for key, value in (("SDID", 7), ("Super Pod Size", 48), ("Super Pod ID", 1), ("Server Index", 0))
)
CONF = "address_0=198.51.100.0\nnetmask_0=255.255.255.0\n"


class Tools:
    """The node's programs; `replace` maps words of a call to another answer, the calls are kept."""

    def __init__(self, **replace):
        self.replace = {words.replace("_", " "): answer for words, answer in replace.items()}
        self.calls = []

    def __call__(self, argv, timeout):
        self.calls.append(list(argv))
        line = " ".join(argv)
        for words, answer in self.replace.items():
            if words in line:
                return answer(line) if callable(answer) else answer
        program = Path(argv[0]).name
        if program == "hccn_tool":
            return 0, ANSWERS[argv[3].lstrip("-")].replace("{n}", argv[2]), ""
        if program == "npu-smi":
            name = {"topo": "topo-a3", "board": "board", "health": "health-warning"}.get(
                argv[3] if len(argv) > 3 else ""
            )
            if "spod-info" in argv:
                return 0, SPOD, ""
            return (
                0,
                (TRANSCRIPTS / f"npu-smi/{name or ('mapping-a3' if '-m' in argv else 'a3-98')}.txt").read_text(),
                "",
            )
        return command.MISSING, "", f"{argv[0]}: not found"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads devices 0 and 1 of a node with these tools."""
    monkeypatch.setattr(npu.time, "sleep", lambda seconds: None)
    for path, text in {"usr/local/bin/npu-smi": "", "usr/bin/hccn_tool": "", "etc/hccn.conf": CONF}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def run(tools, depth="standard", **options):
        return npu.read(node.Node(str(tmp_path), tools, timeout=5), [0, 1], depth, **options)

    run.root = tmp_path
    return run


def test_everything_of_a_device(read):
    tools = Tools()
    facts = read(tools)
    assert facts["unread"] == []
    assert (facts["unsupported"], facts["holders"], facts["containers"]) == ([], [], [])
    device = facts["devices"]["1"]
    assert (device["npu_id"], device["chip_id"], device["logic_id"], device["hbm_total_mb"]) == (0, 1, 1, 65536)
    assert device["super_pod"] == {"sdid": 7, "size": 48, "id": 1, "server_index": 0}
    assert (device["ip"]["address"], device["vnic"]["address"]) == ("198.51.100.1", "192.0.2.1")
    assert (device["tls"]["enabled"], device["mtu"], device["link_stat"]) == (False, {"mtu": 4096}, None)
    assert device["gateway_ping"]["ok"] is True
    assert device["stat"]["counters"] == {"mac_rx_bad_pkt_num": 1}
    assert facts["conf"]["devices"] == {"0": {"address": "198.51.100.0", "netmask": "255.255.255.0"}}
    assert facts["topology"]["links"]["0-1"] == "SIO"
    assert facts["calls"] == len(tools.calls)
    assert npu.address(facts, 1, "vnic") == "192.0.2.1"
    assert npu.address(facts, 9, "vnic") is npu.address(None, 0, "ip") is None
    json.dumps(facts)


def test_a_quick_look_makes_fewer_calls(read):
    quick, deep = Tools(), Tools(**{"-link_stat": (0, (TRANSCRIPTS / "hccn_tool/link_stat.txt").read_text(), "")})
    assert read(quick, "quick")["devices"]["0"]["stat"] is None
    deep.replace = {"-link_stat": deep.replace["-link stat"]}
    assert read(deep, "deep")["devices"]["0"]["link_stat"]["up_count"] == 2
    assert len(quick.calls) + 2 * 7 == len(deep.calls)


def test_what_the_product_does_not_have_is_asked_once(read):
    tools = Tools(vnic=(13, "The command is not supported on this product.\n", ""))
    facts = read(tools)
    assert (facts["unsupported"], facts["unread"]) == (["vnic"], [])
    assert sum("-vnic" in call for call in tools.calls) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((0, "", "Command execute failed!\n"), "refused"),
        ((0, "link status: SIDEWAYS\n", ""), "unclear"),
        ((0, "", ""), "unclear"),
        ((command.TIMED_OUT, "", "hccn_tool: no answer within 5 s"), "timeout"),
    ],
)
def test_a_call_without_an_answer_is_told_with_its_device(read, answer, kind):
    facts = read(Tools(**{"-i_1_-link": answer}))
    (one,) = facts["unread"]
    assert (one["device"], one["option"], one["kind"]) == (1, "link", kind)
    assert one["what"] == "hccn_tool -i 1 -link -g"
    assert one["text"]
    assert (facts["devices"]["0"]["link"], facts["devices"]["1"]["link"]) == ({"link": "UP"}, None)
    # A link that is not known to be up is not pinged over.
    assert facts["devices"]["1"]["gateway_ping"] is None


def test_exit_code_zero_of_a_failure_is_told(read):
    (one,) = read(Tools(**{"-i_0_-fec": (0, "", "Command execute failed!\n")}))["unread"]
    assert one["text"].endswith("(exit 0)")


def test_a_locked_tool_is_given_up_and_its_holder_named(read):
    proc = read.root / "proc"
    (proc / "4711/fd").mkdir(parents=True)
    lock = read.root / "run/hccn_tool.lock"
    lock.parent.mkdir()
    lock.write_text("")
    (proc / "4711/fd/3").symlink_to(lock)
    (proc / "4711/cmdline").write_text("python3\0-c\0watch\0")
    (proc / "4711/comm").write_text("npu-agent\n")
    (proc / "12/fd").mkdir(parents=True)
    (proc / "12/cmdline").write_text("/usr/bin/hccn_tool\0-i\x000\0")
    (proc / "locks").write_text(
        f"1: FLOCK  ADVISORY  WRITE 4711 00:2d:{lock.stat().st_ino} 0 EOF\n2: POSIX  ADVISORY  READ 9 00:2d:5 0 EOF\n"
    )
    tools = Tools(hccn=(11, BUSY, ""))
    facts = read(tools)
    assert facts["holders"] == [{"pid": 4711, "command": "npu-agent: python3 -c watch", "file": str(lock)}]
    assert facts["unread"][0]["kind"] == "busy"
    assert {one["kind"] for one in facts["unread"][1:]} == {"not-asked"}
    assert sum("hccn_tool" in call[0] for call in tools.calls) == 6
    (proc / "locks").write_text("")
    assert [one["pid"] for one in read(Tools(hccn=(11, BUSY, "")))["holders"]] == [12]


def test_a_lock_that_is_let_go_is_no_finding(read):
    answers = iter([(11, BUSY, "")] * 4)
    facts = read(Tools(**{"-i_0_-ip": lambda line: next(answers, (0, ANSWERS["ip"].replace("{n}", "0"), ""))}))
    assert facts["unread"] == []
    assert facts["devices"]["0"]["ip"]["address"] == "198.51.100.0"


def test_a_busy_optical_module_is_not_a_locked_tool(read):
    facts = read(Tools(**{"-optical": (12, "I2c is busy. Please try again.\n", "")}))
    assert [one["kind"] for one in facts["unread"]] == ["busy", "busy"]
    assert facts["devices"]["1"]["stat"]


def test_a_tool_that_hangs_is_given_up_after_two_tries(read):
    tools = Tools(hccn=(command.TIMED_OUT, "", "no answer within 5 s"))
    kinds = [one["kind"] for one in read(tools)["unread"]]
    assert kinds[:3] == ["timeout", "timeout", "not-asked"]
    assert sum("hccn_tool" in call[0] for call in tools.calls) == 2


def test_missing_tools_are_told_once(read):
    for path in ("usr/local/bin/npu-smi", "usr/bin/hccn_tool"):
        (read.root / path).unlink()
    facts = read(Tools())
    assert (facts["npu_smi"], facts["hccn_tool"]) == (None, None)
    assert [(one["what"], one["kind"]) for one in facts["unread"]] == [("npu-smi", "missing"), ("hccn_tool", "missing")]
    assert facts["devices"]["0"]["npu_id"] is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [("dcmi module initialize failed. ret is -8005\n", "refused"), ("| 0 | what is this |\n", "unclear")],
)
def test_npu_smi_that_gives_nothing(read, text, kind):
    facts = read(Tools(**{"npu-smi_info": (187, text, "")}))
    assert [(one["what"], one["kind"]) for one in facts["unread"]] == [("npu-smi info", kind)]
    assert facts["devices"]["0"]["link"] == {"link": "UP"}


def test_a_table_that_breaks_off_is_told(read):
    whole = (TRANSCRIPTS / "npu-smi/a3-98.txt").read_text().splitlines()
    # Up to the end of the first device.
    cut = "\n".join(whole[:8]) + "\n"
    facts = read(Tools(**{"npu-smi_info": lambda line: (0, cut if line.endswith("info") else "", "")}))
    assert facts["devices"]["0"]["npu_id"] == 0
    assert "breaks off" in next(one["text"] for one in facts["unread"] if one["what"] == "npu-smi info")


def inspect(name, *targets):
    return {"Name": f"/{name}", "Id": name, "Mounts": [{"Destination": target} for target in targets]}


def test_the_file_as_running_containers_see_it(read):
    both = json.dumps(
        [inspect("engine-1", "/etc/hccn.conf"), inspect("router", "/data"), inspect("engine-0", "/etc/hccn.conf")]
    )
    tools = Tools(
        **{
            "docker_ps": (0, "a\nb\nc\n", ""),
            "docker_inspect": (0, both, ""),
            "exec_engine-0": (0, CONF, ""),
            "exec_engine-1": (1, "", "cat: /etc/hccn.conf: No such file or directory\n"),
        }
    )
    seen = read(tools, cluster="c1", image="engine:1")["containers"]
    assert [(one["name"], one["how"], one["present"]) for one in seen] == [
        ("engine-0", "exec", True),
        ("engine-1", "exec", False),
    ]
    assert "No such file" in seen[1]["error"]
    assert ["docker", "ps", "-q", "--filter", "label=ascent.cluster=c1"] in tools.calls


def test_the_file_as_the_image_sees_it_while_nothing_runs(read):
    answers = {"docker_ps": (0, "", ""), "image_inspect": (0, "sha256:1\n", ""), "docker_run": (0, CONF, "")}
    (seen,) = read(Tools(**answers), cluster="c1", image="engine:1")["containers"]
    assert (seen["name"], seen["how"], seen["devices"]["0"]["address"]) == ("engine:1", "run", "198.51.100.0")
    # Nothing is pulled, and no directory is made of a file that is not there.
    assert (
        read(Tools(**{**answers, "image_inspect": (1, "", "No such image")}), cluster="c1", image="x")["containers"]
        == []
    )
    (read.root / "etc/hccn.conf").unlink()
    assert read(Tools(**answers), cluster="c1", image="engine:1")["containers"] == []
    # A host without the container engine.
    assert read(Tools(), cluster="c1", image="engine:1")["containers"] == []


def test_the_second_reading_of_the_counters(read):
    tools = Tools(**{"-i_1_-stat": (1, "", "Command execute failed!\n")})
    counters = npu.read_counters(node.Node(str(read.root), tools), [0, 1])
    assert counters["devices"] == {"0": {"mac_rx_bad_pkt_num": 0}}
    assert len(tools.calls) == 2
