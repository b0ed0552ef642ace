from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import versions
from ascent.errors import ParseError

FILES = Path(__file__).parents[1] / "transcripts" / "files"


def read(name: str) -> str:
    return (FILES / name).read_text()


def test_versions_sort_as_the_vendors_mean_them():
    ordered = [
        "8.0.T6",
        "8.3.RC1",
        "8.3.RC2",
        "8.3",
        "8.5.1",
        "9.0.0",
        "9.2.0-beta.2",
        "9.2.0",
        "24.1.rc2",
        "24.1.0",
        "25.0.rc1",
        "25.0.rc1.1",
        "25.0.0",
        "25.0.0.post1",
        "25.0.1",
        "25.2.0",
        "25.5",
        "26.0.rc1",
    ]
    assert sorted(set(ordered), key=versions.sort_key) == ordered
    assert versions.compare("v0.21.0rc1", "0.21.0") == -1
    assert versions.compare("2.10.0.post4", "2.10.0.post2") == 1
    assert versions.compare("25.0", "25.0.0") == 0


@pytest.mark.parametrize("text", ["", "latest", "1.x", "25..0", "1.2.3.unknownword", "9" * 40])
def test_what_is_no_version_is_refused(text):
    with pytest.raises(ParseError):
        versions.sort_key(text)


def test_driver_and_firmware_files():
    driver = versions.parse_driver(read("driver-version.info"))
    assert (driver["version"], driver["hal_version"]) == ("25.2.0", "7.35.23")
    assert driver["firmware_range"] == ["7.0.0", "8.9.9"]
    old = versions.parse_driver(read("driver-version-old.info"))
    assert old["version"] == "23.0.3"
    firmware = versions.parse_firmware(read("firmware-version.info"))
    assert firmware["driver_prefixes"] == ["24.1.rc2", "25.0", "25.2"]
    assert versions.firmware_fits(driver, firmware) is True
    assert versions.firmware_fits(old, firmware) is False
    assert versions.firmware_fits({"version": "25.2.0"}, {"version": "7.1"}) is None


def test_package_version_wins_over_the_component_number():
    driver = versions.parse_driver("Version=7.5.0.1\npackage_version=24.1.rc2\n")
    assert (driver["version"], driver["component_version"]) == ("24.1.rc2", "7.5.0.1")


def test_prefix_is_a_whole_number_not_a_string_start():
    firmware = {"version": "7.1", "driver_prefixes": ["25.1"]}
    assert versions.firmware_fits({"version": "25.10.0"}, firmware) is False
    assert versions.firmware_fits({"version": "25.1.2"}, firmware) is True


def test_install_info_and_cann():
    install = versions.parse_install_info(read("ascend_install.info"))
    assert (install["path"], install["status"], install["user"]) == ("/usr/local/Ascend", "complete", "HwHiAiUser")
    assert versions.parse_install_info("UserName=x\n")["path"] is None
    cann = versions.parse_cann(read("ascend_toolkit_install.info"))
    assert (cann["version"], cann["arch"]) == ("8.3.RC2", "aarch64")


@pytest.mark.parametrize(
    "parser", [versions.parse_driver, versions.parse_firmware, versions.parse_cann, versions.parse_install_info]
)
def test_empty_and_broken_files_are_refused(parser):
    for text in ("", "no pairs here\n", "=x\n"):
        with pytest.raises(ParseError):
            parser(text)


PARSERS = [versions.parse_driver, versions.parse_firmware, versions.parse_cann, versions.parse_install_info]
LINE = st.tuples(
    st.sampled_from(["Version", "version", "package_version", "compatible_version_fw", "compatible_version_drv", "x"]),
    st.one_of(st.text(max_size=12), st.from_regex(r"[0-9.rc\[\],]{0,20}", fullmatch=True)),
)


@given(st.lists(LINE, max_size=5), st.sampled_from(PARSERS))
def test_version_files_are_total(lines, parser):
    try:
        result = parser("\n".join(f"{key}={value}" for key, value in lines))
    except ParseError:
        return
    assert isinstance(result, dict)
