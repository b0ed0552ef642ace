from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent import npu_smi
from ascent.errors import ParseError, ToolError

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts" / "npu-smi"
PARSERS = [
    npu_smi.parse_info,
    npu_smi.parse_mapping,
    npu_smi.parse_list,
    npu_smi.parse_board,
    npu_smi.parse_health,
    npu_smi.parse_usages,
    npu_smi.parse_topology,
]


def read(name: str) -> str:
    return (TRANSCRIPTS / f"{name}.txt").read_bytes().decode()


def test_a2_device_has_every_field():
    info = npu_smi.parse_info(read("a2-98"))
    assert (info["tool_version"], info["driver_version"]) == ("25.2.0", "25.2.0")
    assert len(info["devices"]) == 8
    assert info["devices"][0] == {
        "npu_id": 0,
        "chip_id": 0,
        "phy_id": None,
        "name": "910B3",
        "health": "OK",
        "bus_id": "0000:C1:00.0",
        "power_w": 91.0,
        "temperature_c": 38,
        "aicore_percent": 0,
        "memory_used_mb": 0,
        "memory_total_mb": 0,
        "hbm_used_mb": 3100,
        "hbm_total_mb": 65536,
    }
    assert info["processes"] == []


def test_sparse_ids_touching_slash_alarm_and_hidden_process_name():
    info = npu_smi.parse_info(read("a2-99"))
    assert [device["npu_id"] for device in info["devices"]] == [0, 1, 5, 3]
    assert (info["devices"][1]["health"], info["devices"][1]["hbm_used_mb"]) == ("Alarm", 61234)
    assert (info["tool_version"], info["driver_version"]) == ("22.0.2", "22.0.4")
    assert info["processes"] == [
        {"npu_id": 1, "chip_id": 0, "pid": 23456, "name": "VLLMWorker_TP", "memory_mb": 58001},
        {"npu_id": 5, "chip_id": 0, "pid": 23999, "name": None, "memory_mb": 71},
    ]


@pytest.mark.parametrize("name", ["a3-98", "a3-116"])
def test_a3_has_sixteen_dies_with_phy_ids(name):
    devices = npu_smi.parse_info(read(name))["devices"]
    assert [device["phy_id"] for device in devices] == list(range(16))
    assert [(device["npu_id"], device["chip_id"]) for device in devices[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert devices[1]["power_w"] is None
    assert devices[0]["hbm_total_mb"] == 65536


def test_fifth_process_cell_of_26_is_not_taken_for_another_column():
    assert npu_smi.parse_info(read("a2-116-five-cells"))["processes"] == [
        {"npu_id": 0, "chip_id": 0, "pid": 4711, "name": "VLLMWorker_TP", "memory_mb": 40000}
    ]


def test_310p_has_memory_but_no_hbm():
    device = npu_smi.parse_info(read("310p-94"))["devices"][1]
    assert (device["npu_id"], device["phy_id"], device["power_w"]) == (2144, 1, None)
    assert (device["memory_used_mb"], device["memory_total_mb"], device["hbm_total_mb"]) == (1850, 44280, None)


def test_950_has_no_chip_numbers():
    info = npu_smi.parse_info(read("950"))
    assert [device["hbm_total_mb"] for device in info["devices"]] == [131072, 131072]
    assert info["processes"][0]["npu_id"] == 1


@pytest.mark.parametrize("name", ["a2-crlf", "a2-ansi-prompt", "a2-warning-footer", "a2-no-header"])
def test_decoration_changes_nothing(name):
    devices = npu_smi.parse_info(read(name))["devices"]
    assert [(device["npu_id"], device["health"]) for device in devices] == [(0, "OK"), (1, "OK")]


@pytest.mark.parametrize(("name", "ret"), [("error-8005", -8005), ("error-8020", -8020), ("error-option", None)])
@pytest.mark.parametrize("parser", PARSERS)
def test_tool_failure_is_a_tool_error(parser, name, ret):
    with pytest.raises(ToolError) as error:
        parser(read(name))
    assert error.value.ret == ret


def test_device_cut_in_half_names_its_line():
    lines = read("a2-98").split("\n")
    with pytest.raises(ParseError) as error:
        npu_smi.parse_info("\n".join(lines[:7]))
    assert error.value.line_number == 7
    assert "910B3" in error.value.line


def test_line_cut_in_the_middle_is_refused():
    text = read("a2-98")
    with pytest.raises(ParseError):
        npu_smi.parse_info(text[: text.index("65536") + 2])


def test_more_memory_used_than_there_is_is_refused():
    with pytest.raises(ParseError, match="99999 used of 65536"):
        npu_smi.parse_info(read("a2-98").replace("3100 / 65536", "99999/ 65536", 1))


def test_mapping_skips_the_management_chip_and_keeps_blanks_in_names():
    assert npu_smi.parse_mapping(read("mapping-a2")) == [
        {"npu_id": 0, "chip_id": 0, "logic_id": 0, "phy_id": None, "slot_id": None, "name": "Ascend 910B4"},
        {"npu_id": 3, "chip_id": 0, "logic_id": 1, "phy_id": None, "slot_id": None, "name": "Ascend 910B4"},
    ]
    assert [row["phy_id"] for row in npu_smi.parse_mapping(read("mapping-a3"))] == [0, 1, 2, 3]


def test_list_board_usages():
    listed = npu_smi.parse_list(read("list"))
    assert (listed["total"], [npu["npu_id"] for npu in listed["npus"]]) == (2, [0, 3])
    assert npu_smi.parse_list(read("list-none")) == {"total": 0, "npus": []}
    with pytest.raises(ParseError, match="3 but 2"):
        npu_smi.parse_list(read("list").replace("Total Count                    : 2", "Total Count : 3"))
    board = npu_smi.parse_board(read("board"))
    assert (board["software_version"], board["firmware_version"]) == ("25.2.0", "7.7.0.6.236")
    assert (board["compatibility"], board["product_name"], board["chip_count"]) == ("OK", None, 1)
    usages = npu_smi.parse_usages(read("usages"))
    assert (usages["hbm_capacity_mb"], usages["hbm_usage_rate_percent"]) == (65536, 5)
    assert usages["ctrlcpu_usage_rate_percent"] is None


def test_health_codes_and_continuation_lines():
    assert npu_smi.parse_health(read("health-warning")) == {
        "health": "Warning",
        "error_codes": ["80E01801", "80E01802"],
        "error_information": ["first thing", "second thing"],
    }
    assert npu_smi.parse_health(read("health-ok")) == {"health": "OK", "error_codes": [], "error_information": []}


def test_topology_with_and_without_affinity():
    a2 = npu_smi.parse_topology(read("topo-a2"))
    assert a2["links"] == dict.fromkeys(["0-1", "0-2", "0-3", "1-2", "1-3", "2-3"], "HCCS")
    assert a2["cpu_affinity"] == {"0": "0-23", "1": "0-23", "2": "24-47", "3": "24-47"}
    a3 = npu_smi.parse_topology(read("topo-a3"))
    assert (a3["links"]["0-1"], a3["links"]["0-2"], a3["cpu_affinity"]) == ("SIO", "HCCS", {})
    with pytest.raises(ParseError, match="one row for each"):
        npu_smi.parse_topology(read("topo-a2").split("\tNPU3       HCCS")[0])


ALL_TEXTS = [path.read_bytes().decode() for path in sorted(TRANSCRIPTS.glob("*.txt"))]


@st.composite
def mangled(draw):
    """A transcript with a piece cut out, doubled or replaced: what a broken terminal or a new release would print."""
    text = draw(st.sampled_from(ALL_TEXTS))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 200)))
    junk = draw(
        st.one_of(st.text(max_size=20), st.sampled_from(["|", "||", "9" * 5000, "\x1b[", "-", " : ", "٣", "\n"]))
    )
    return text[:start] + junk + text[end:]


@settings(max_examples=300)
@given(st.one_of(st.text(), mangled()), st.sampled_from(PARSERS))
def test_parsers_are_total(text, parser):
    try:
        result = parser(text)
    except (ParseError, ToolError):
        return
    assert isinstance(result, (dict, list))


@settings(max_examples=100)
@given(st.data())
def test_a_table_cut_at_any_place_never_invents_a_device(data):
    text = read("a3-98")
    whole = npu_smi.parse_info(text)["devices"]
    cut = text[: data.draw(st.integers(0, len(text)))]
    try:
        devices = npu_smi.parse_info(cut)["devices"]
    except (ParseError, ToolError):
        return
    assert devices == whole[: len(devices)]
