from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent import hccn_conf, hccn_tool
from ascent.errors import ParseError, ToolError

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"


def read(name: str) -> str:
    return (TRANSCRIPTS / "hccn_tool" / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("ip", "ip", {"address": "198.51.100.7", "netmask": "255.255.255.0"}),
        ("-ip", "ip-one-line", {"address": "198.51.100.7", "netmask": "255.255.255.0"}),
        ("ip", "ip-none", {"address": None, "netmask": None}),
        ("vnic", "vnic", {"address": "192.0.2.9", "netmask": "255.255.255.0", "link": "UP"}),
        ("link", "link-up", {"link": "UP"}),
        ("link", "link-down", {"link": "DOWN"}),
        ("net_health", "net_health-success", {"status": "Success", "ok": True}),
        ("net_health", "net_health-socket-failed", {"status": "Socket fail", "ok": False}),
        ("netdetect", "netdetect", {"address": "198.51.100.1"}),
        ("netdetect", "netdetect-unset", {"address": None}),
        ("gateway", "gateway", {"gateway": "198.51.100.1", "interface": "eth0"}),
        ("gateway", "gateway-none", {"gateway": None, "interface": None}),
        ("tls", "tls", {"device": 0, "enabled": True, "preconfigured": True, "alarm_days": 60}),
        ("fec", "fec", {"mode": "rs"}),
        ("lldp", "lldp", {"interfaces": ["400GE1/0/7:1"], "systems": ["leaf-01"]}),
        (
            "ping",
            "ping-ok",
            {
                "target": "198.51.100.7",
                "sent": 3,
                "received": 3,
                "loss_percent": 0.0,
                "ok": True,
                "rtt_ms": 0.12,
                "rtt_min_ms": 0.1,
                "rtt_max_ms": 0.14,
            },
        ),
        (
            "ping",
            "ping-loss",
            {
                "target": "198.51.100.7",
                "sent": 3,
                "received": 2,
                "loss_percent": 33.33,
                "ok": False,
                "rtt_ms": 0.12,
                "rtt_min_ms": 0.12,
                "rtt_max_ms": 0.12,
            },
        ),
        (
            "hccs_ping",
            "hccs_ping-ok",
            {
                "target": "192.0.2.9",
                "sent": 3,
                "received": 3,
                "loss_percent": 0.0,
                "ok": True,
                "rtt_ms": 0.021045,
                "rtt_min_ms": 0.021045,
                "rtt_max_ms": 0.021045,
            },
        ),
        (
            "hccs_ping",
            "hccs_ping-lost",
            {
                "target": "192.0.2.9",
                "sent": 3,
                "received": 0,
                "loss_percent": 100.0,
                "ok": False,
                "rtt_ms": None,
                "rtt_min_ms": None,
                "rtt_max_ms": None,
            },
        ),
    ],
)
def test_known_shapes(option, name, expected):
    assert hccn_tool.parse(option, read(name)) == expected


def test_old_drivers_print_nothing_where_no_address_is_set():
    assert hccn_tool.parse("ip", "") == {"address": None, "netmask": None}
    with pytest.raises(ParseError):
        hccn_tool.parse("link", "")


def test_counters_and_link_changes():
    assert hccn_tool.parse("stat", read("stat"))["counters"]["mac_rx_bad_pkt_num"] == 3
    link_stat = hccn_tool.parse("link_stat", read("link_stat"))
    assert link_stat["up_count"] == 2
    assert [state for _time, state in link_stat["records"]] == ["UP", "DOWN"]


def test_optical_old_new_and_absent():
    old = hccn_tool.parse("optical", read("optical"))
    assert old["present"] is True
    assert old["items"]["Tx Power0"] == {"value": 1.0523, "unit": "mW", "text": "1.0523 mW"}
    new = hccn_tool.parse("optical", read("optical-table"))["items"]["Temperature"]
    assert (new["value"], new["unit"], new["high_alarm"], new["status"]) == (45.0, "C", "75", "normal")
    assert hccn_tool.parse("optical", read("optical-absent")) == {"present": False, "items": {}}


@pytest.mark.parametrize("option", hccn_tool.OPTIONS)
@pytest.mark.parametrize("name", ["busy", "unsupported"])
def test_refusals_with_exit_code_zero_are_tool_errors(option, name):
    with pytest.raises(ToolError) as error:
        hccn_tool.parse(option, read(name))
    assert bool(hccn_tool.BUSY.search(str(error.value))) is (name == "busy")


def test_contradicting_packet_figures_are_refused():
    with pytest.raises(ParseError, match="contradict"):
        hccn_tool.parse("ping", "3 packets transmitted, 2 received, 0.00% packet loss")
    with pytest.raises(ParseError, match="no parser for option"):
        hccn_tool.parse("ipp", "")


TEXTS = [path.read_text() for path in sorted((TRANSCRIPTS / "hccn_tool").glob("*.txt"))]


@st.composite
def mangled(draw):
    text = draw(st.sampled_from(TEXTS))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, len(text)))
    junk = draw(st.one_of(st.text(max_size=20), st.sampled_from(["9" * 5000, ":", "[", "1.2.3", "::1%eth0", "\n"])))
    return text[:start] + junk + text[end:]


@settings(max_examples=400)
@given(st.sampled_from([*hccn_tool.OPTIONS, "nonsense"]), st.one_of(st.text(), mangled()))
def test_parse_is_total(option, text):
    with contextlib.suppress(ParseError, ToolError):
        assert isinstance(hccn_tool.parse(option, text), dict)


def test_hccn_conf():
    devices = hccn_conf.parse((TRANSCRIPTS / "files" / "hccn.conf").read_text())
    assert sorted(devices) == [str(number) for number in range(8)]
    assert devices["0"]["address"] == "198.51.100.10"
    assert devices["0"]["arp"].startswith("-i eth0")
    assert devices["1"]["IPv6address"] == "2001:db8::1"
    assert hccn_conf.parse("") == {}
    assert hccn_conf.parse("address_0=192.0.2.1\naddress_0=192.0.2.2\nlogging=1\n# note\n") == {
        "0": {"address": "192.0.2.2"}
    }
    with pytest.raises(ParseError, match="line 2"):
        hccn_conf.parse("address_0=192.0.2.1\naddress_1 192.0.2.2\n")


@given(st.text())
def test_hccn_conf_is_total(text):
    with contextlib.suppress(ParseError):
        assert isinstance(hccn_conf.parse(text), dict)
