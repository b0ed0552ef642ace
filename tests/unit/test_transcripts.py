"""Every shape of a tool's output in `tests/transcripts` gives what `expected.yml` says, or is refused in its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ascent import hccn_conf, hccn_tool, npu_smi
from ascent.errors import ParseError, ToolError

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
EXPECTED = yaml.safe_load((TRANSCRIPTS / "expected.yml").read_text())
#: Files of other readers, which have tests of their own.
OTHERS = {"ascend_install.info", "ascend_toolkit_install.info", "driver-version.info", "driver-version-old.info"}
OTHERS |= {"firmware-version.info"}


def text_of(name: str) -> str:
    return (TRANSCRIPTS / name).read_bytes().decode()


def parse(name: str, text: str) -> Any:
    parser = EXPECTED[name]["parser"]
    if name.startswith("hccn_tool/"):
        return hccn_tool.parse(parser, text)
    return hccn_conf.parse(text) if parser == "conf" else getattr(npu_smi, f"parse_{parser}")(text)


def look(value: Any, path: str) -> Any:
    """`devices.0.name` of a value; `#` is the length of what is before it."""
    while path:
        if path == "#":
            return len(value)
        if isinstance(value, list):
            step, _, path = path.partition(".")
            value = value[int(step)]
        else:
            # Names of counters and lanes may hold dots and blanks: the longest one that is there counts.
            step = max((key for key in value if path == key or path.startswith(f"{key}.")), key=len)
            value, path = value[step], path[len(step) + 1 :]
    return value


def test_every_shape_is_expected():
    files = {str(path.relative_to(TRANSCRIPTS)) for path in TRANSCRIPTS.rglob("*.*") if path.is_file()}
    assert files - {"README.md", "expected.yml"} - {f"files/{name}" for name in OTHERS} == set(EXPECTED)
    assert len(EXPECTED) >= 60


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_shape(name):
    wanted = EXPECTED[name]
    assert ("gives" in wanted) is not ("fails" in wanted)
    if "fails" in wanted:
        kind, _, words = wanted["fails"].partition(": ")
        with pytest.raises({"ParseError": ParseError, "ToolError": ToolError}[kind]) as error:
            parse(name, text_of(name))
        assert any(word in str(error.value) for word in words.split("|"))
        return
    value = parse(name, text_of(name))
    assert {path: look(value, path) for path in wanted["gives"]} == wanted["gives"]


# -- never a wrong value quietly ---------------------------------------------------------------------------------------

GOOD = sorted(name for name, wanted in EXPECTED.items() if "gives" in wanted and not name.startswith("files/"))
#: An empty text is an answer of its own for these: no address set, no neighbour.
EMPTY_IS_AN_ANSWER = {"ip", "lldp"}
# What follows from the whole text, not from one line of it.
DERIVED = {"complete", "ok", "rtt_ms", "rtt_min_ms", "rtt_max_ms", "present"}


def agrees(part: Any, whole: Any) -> bool:
    """Whether nothing in `part` differs from `whole`; it may know less: absent keys, None, shorter lists."""
    if part is None:
        return True
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and agrees(value, whole[key]) for key, value in part.items() if key not in DERIVED)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(agrees(one, other) for one, other in zip(part, whole, strict=False))
    return part == whole


def refused_or_agrees(name: str, text: str) -> bool:
    try:
        part = parse(name, text)
    except (ParseError, ToolError):
        return True
    if not text.strip() and EXPECTED[name]["parser"] in EMPTY_IS_AN_ANSWER:
        return True
    return agrees(part, parse(name, text_of(name)))


@pytest.mark.parametrize("name", GOOD)
def test_a_text_that_breaks_off_anywhere_is_refused_or_says_nothing_wrong(name):
    text = text_of(name)
    # Long tables repeat themselves: three hundred places are enough of them.
    for end in range(0, len(text), max(1, len(text) // 300)):
        assert refused_or_agrees(name, text[:end]), text[:end][-60:]


@pytest.mark.parametrize("name", GOOD)
def test_a_line_that_is_lost_or_comes_twice_is_refused_or_says_nothing_wrong(name):
    lines = text_of(name).splitlines(keepends=True)
    for index in range(len(lines)):
        lost = "".join(lines[:index] + lines[index + 1 :])
        twice = "".join(lines[: index + 1] + lines[index:])
        # Lists get shorter or keep their order when a row is lost, so only a doubled one is held against the whole.
        assert refused_or_agrees(name, twice) or _repeats_a_record(name), lines[index]
        try:
            parse(name, lost)
        except (ParseError, ToolError):
            continue


def _repeats_a_record(name: str) -> bool:
    """Rows that may truly be equal, and do no harm: link records, processes, lines of free text."""
    return EXPECTED[name]["parser"] in ("link_stat", "info", "health", "lldp", "mapping")


@settings(max_examples=300)
@given(st.sampled_from(GOOD), st.sampled_from(GOOD), st.data())
def test_two_answers_run_together_are_refused_or_agree(one, other, data):
    """As after a retry whose first answer was kept: the second half belongs to another call."""
    first, second = text_of(one), text_of(other)
    cut = data.draw(st.integers(0, len(second)))
    try:
        value = parse(one, first + second[cut:])
    except (ParseError, ToolError):
        return
    whole = parse(one, first)
    for key in (
        "address",
        "netmask",
        "link",
        "status",
        "enabled",
        "mtu",
        "mbps",
        "mode",
        "sent",
        "received",
        "gateway",
    ):
        if isinstance(value, dict) and key in value and whole.get(key) is not None:
            assert value[key] == whole[key]


NOISE = [
    "",
    "\x1b[0m",
    "\r",
    "DrvMngGetConsoleLogLevel failed. (ret=4)",
    "|",
    "||",
    "=====",
    "9" * 5000,
    "٣",
    "{n}: {n}",
]


@settings(max_examples=400)
@given(st.sampled_from(sorted(EXPECTED)), st.integers(0, 40), st.one_of(st.sampled_from(NOISE), st.text(max_size=30)))
@example("npu-smi/a3-98.txt", 0, "DrvMngGetConsoleLogLevel failed. (ret=4)")
def test_a_foreign_line_anywhere_is_never_a_crash(name, place, line):
    lines = text_of(name).split("\n")
    lines.insert(min(place, len(lines)), line)
    try:
        parse(name, "\n".join(lines))
    except (ParseError, ToolError):
        return


@settings(max_examples=400)
@given(st.sampled_from([*hccn_tool.OPTIONS, *(name for name in npu_smi.__all__)]), st.text())
def test_any_text_is_read_or_refused(parser, text):
    try:
        value = hccn_tool.parse(parser, text) if parser in hccn_tool.OPTIONS else getattr(npu_smi, parser)(text)
    except (ParseError, ToolError):
        return
    assert isinstance(value, (dict, list))
