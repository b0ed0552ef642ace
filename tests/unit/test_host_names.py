"""The cluster's names in a hosts file: what is written, what is taken from loopback, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent import files, host_names

NODES = [
    {"address": "192.0.2.11", "names": ["a3-01", "kunpeng-01"]},
    {"address": "192.0.2.12", "names": ["a3-02"]},
]
DEBIAN = "127.0.0.1\tlocalhost\n127.0.1.1\ta3-01.example.org a3-01\n\n::1 localhost ip6-localhost\n"


def mapped(text: str) -> dict[str, str]:
    """What a resolver makes of a hosts file: the first line of a name counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        for name in words[1:]:
            found.setdefault(name, words[0])
    return found


def test_every_name_means_its_node_and_none_loopback() -> None:
    names = mapped(host_names.named(DEBIAN, NODES))
    assert names == {
        "localhost": "127.0.0.1",
        "ip6-localhost": "::1",
        "a3-01": "192.0.2.11",
        "kunpeng-01": "192.0.2.11",
        "a3-02": "192.0.2.12",
    }


def test_the_block_is_equal_on_every_node() -> None:
    blocks = {text.split(files.BLOCK_BEGIN)[1] for text in (host_names.named(start, NODES) for start in (DEBIAN, ""))}
    assert len(blocks) == 1


def test_a_loopback_line_keeps_its_other_names() -> None:
    text = "127.0.0.1 localhost a3-01 build-host\n"
    assert mapped(host_names.named(text, NODES))["build-host"] == "127.0.0.1"
    assert host_names.restored(host_names.named(text, NODES)) == text


def test_the_names_of_a_changed_plan_replace_the_old_ones() -> None:
    text = host_names.named(host_names.named(DEBIAN, NODES), NODES[1:])
    assert "kunpeng-01" not in text
    assert mapped(text)["a3-01"] == "127.0.1.1"


def test_what_others_write_later_stays() -> None:
    text = host_names.named(DEBIAN, NODES) + "192.0.2.200 storage\n"
    assert host_names.named(text, NODES).count("192.0.2.200 storage") == 1
    assert host_names.restored(text) == DEBIAN + "192.0.2.200 storage\n"


def test_a_name_of_two_nodes_is_mapped_to_neither() -> None:
    twins = [
        {"address": "192.0.2.11", "names": ["one", "debian"]},
        {"address": "192.0.2.12", "names": ["two", "debian"]},
    ]
    assert host_names.duplicates(twins) == {"debian": ["192.0.2.11", "192.0.2.12"]}
    assert "debian" not in mapped(host_names.named("", twins))


@pytest.mark.parametrize(
    ("line", "clash"),
    [
        ("192.0.2.99 a3-02", True),
        ("192.0.2.12 a3-02", False),
        ("fe80::1 a3-02", False),
        ("# 192.0.2.99 a3-02", False),
        ("127.0.1.1 a3-02", False),
    ],
)
def test_lines_that_give_a_name_another_address_are_found(line: str, clash: bool) -> None:
    found = host_names.clashes(f"{line}\n", NODES)
    assert found == ([(line, "a3-02", "192.0.2.12")] if clash else [])


_NAMES = st.sampled_from(["a3-01", "a3-01.example.org", "kunpeng-01", "a3-02", "localhost", "other"])
_LINES = st.one_of(
    st.just(""),
    st.just("# a comment with a3-01"),
    st.builds(
        lambda address, names, space: address + space + " ".join(names),
        st.sampled_from(["127.0.0.1", "127.0.1.1", "::1", "192.0.2.11", "10.0.0.1"]),
        st.lists(_NAMES, min_size=1, max_size=4),
        st.sampled_from([" ", "\t", "   "]),
    ),
)


@given(st.lists(_LINES, max_size=8), st.permutations(NODES))
def test_writing_is_idempotent_and_taken_back_to_the_letter(lines: list[str], nodes: list[dict]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    written = host_names.named(text, nodes)
    assert host_names.named(written, nodes) == written
    assert host_names.restored(written) == text
    loopback = {name for name, address in mapped(written).items() if address.startswith("127.") or address == "::1"}
    assert not loopback & {"a3-01", "a3-02", "kunpeng-01"}
