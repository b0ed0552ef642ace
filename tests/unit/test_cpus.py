"""CPU lists, bus ids and where a device's interrupts are."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import cpus
from ascent.errors import ParseError
from ascent.files import Tree


def test_examples() -> None:
    assert doctest.testmod(cpus).failed == 0


@given(st.sets(st.integers(0, 9999), max_size=40))
def test_lists_survive_the_kernels_form(wanted: set[int]) -> None:
    assert cpus.parse_cpus(cpus.format_cpus(wanted)) == wanted


@pytest.mark.parametrize("text", ["3-1", "a", "1,,2", "-1", "0-", "0x3"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="list of CPUs"):
        cpus.parse_cpus(text)


def test_a_device_without_msi_has_the_interrupt_of_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "irq").write_text("16\n")
    assert cpus.interrupts(Tree(str(tmp_path)), "0000:01:00.0") == [16]
    (folder / "irq").write_text("0\n")
    assert cpus.interrupts(Tree(str(tmp_path)), "0000:01:00.0") == []


def test_arguments_of_the_running_kernel_are_compared_whole() -> None:
    wanted = cpus.isolation_arguments("2-3")
    assert cpus.missing_arguments("quiet isolcpus=2-31 nohz_full=2-3", wanted) == ["isolcpus=2-3", "rcu_nocbs=2-3"]
