"""Every fault looks on a real node as the catalogue says, to an operator's own tools, and heals without a trace."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from sandbox.faults.control import FAULTS, FaultError, find
from sandbox.lib import engine
from tests.sandbox.conftest import INVENTORY, ROOT, Site

# What `make test` has time for: one fault of each kind of change, and those that the stages' own tests lean on.
QUICK = {
    "A01", "A04", "A05", "A11", "A17", "A19", "B10", "C01", "C10", "C16", "C25", "D01", "D03",
    "D08", "D11", "D12", "D13", "D16", "D19", "D24", "G05",
}  # fmt: skip
NEED_DOCKER = {"D32", "D33"}
NEED_PACKAGE = {"A15", "A16", "A17", "A18"}
ENGINE = {each for each, fault in FAULTS.items() if "phase" in fault.parameters}
# Further arguments that make another fault of one: (id, arguments, node).
VARIANTS = [
    ("A11", ["owner=process", "device=7", "mb=20000"], "a3-01"),
    ("C01", ["plane=roce", "device=2"], "a2-01"),
    ("C01", ["every=5"], "a3-01"),
    ("C01", ["peer=a2-01", "plane=roce"], "a3-01"),
    ("C10", ["device=6"], "a2-01"),
    ("C11", ["where=conf", "device=1"], "a3-01"),
    ("C11", ["where=live", "device=1"], "a2-01"),
    ("C12", ["where=conf"], "a2-01"),
    ("C09", ["device=5", "status=Unreachable", "gateway=silent"], "a2-01"),
    ("C25", ["holder=unknown"], "a2-01"),
    ("G04", ["device=2", "option=link"], "a2-01"),
    ("G02", ["peer=a2-01", "device=3"], "a3-01"),
    ("D31", ["tool=npu-smi"], "a3-01"),
    ("A07", [], "a2-01"),
]


def case(id: str, arguments: list[str], node: str) -> object:
    quick = id in QUICK and not arguments and node == "a3-01"
    name = "-".join([f"{id}-{FAULTS[id].name}", *arguments, *([node] if node != "a3-01" else [])])
    return pytest.param(id, arguments, node, id=name, marks=[] if quick else [pytest.mark.thorough])


CASES = [case(each, [], "a3-01") for each in sorted(FAULTS) if each not in ENGINE] + [
    case(*variant) for variant in VARIANTS
]


@pytest.mark.parametrize(("id", "arguments", "node"), CASES)
def test_a_fault_looks_as_the_catalogue_says(site: Site, id: str, arguments: list[str], node: str):
    if id in NEED_DOCKER:
        site.need_docker(node)
    if id in NEED_PACKAGE:
        site.need_package(node)
    fault = find(id)
    before, there = site.healthy(node)
    look = fault.on(there, fault.arguments(arguments)).look
    healthy = site.look(there, look)
    name, changed, _ = site.control.inject(node, fault, arguments)
    try:
        seen = site.look(there, look)
    finally:
        healed = site.control.heal(node, fault)
    assert changed
    assert healed == ([name], [])
    if look.shows is None:
        assert seen != healthy
    else:
        assert re.search(look.shows, seen), seen
        assert not re.search(look.shows, healthy), healthy
    assert site.snapshot(node) == before
    after = site.look(there, look)
    assert after == healthy if look.shows is None else not re.search(look.shows, after)


@pytest.mark.thorough
@pytest.mark.parametrize("id", sorted(ENGINE))
def test_an_engine_fault_ends_the_next_start(site: Site, healthy_engine_log: str, id: str):
    fault = find(id)
    before, there = site.healthy("a3-01")
    _, _, injection = site.control.inject("a3-01", fault)
    try:
        log = site.look(there, injection.look)
    finally:
        site.control.heal("a3-01", fault)
    assert re.search(injection.look.shows or "", log, re.IGNORECASE), log
    assert not re.search(injection.look.shows or "", healthy_engine_log, re.IGNORECASE)
    assert site.snapshot("a3-01") == before


def test_several_faults_at_once_and_any_order_of_healing(whole: Site):
    before = whole.snapshot("a3-01")
    given = {"C10": ["device=3"], "A09": ["device=3"], "C12": ["device=3"], "C11": ["device=3", "where=both"]}
    for each, arguments in given.items():
        assert whole.control.inject("a3-01", find(each), arguments)[1]
    # The same again changes nothing; the same on another device is another fault.
    assert not whole.control.inject("a3-01", find("C10"), ["device=3"])[1]
    assert whole.control.inject("a3-01", find("C10"), ["device=4"])[1]
    assert len(whole.control.active("a3-01")) == 5
    ask = "/usr/local/Ascend/driver/tools/hccn_tool -i 3 -ip -g; grep address_3= /etc/hccn.conf"
    assert "no ip was preset" in whole.shell("a3-01", ask)
    # The older of two faults on one address goes; the newer one stays.
    whole.control.heal("a3-01", find("C12"))
    assert "no ip was preset" in whole.shell("a3-01", ask)
    whole.control.heal("a3-01", find("C11"))
    assert "ipaddr:198.19.139.4\n" in whole.shell("a3-01", ask)
    assert whole.control.heal("a3-01", find("C10"))[0] == ["C10 device=4", "C10 device=3"]
    whole.control.heal("a3-01")
    assert whole.snapshot("a3-01") == before


def test_what_can_not_be_done_changes_nothing(whole: Site):
    before = whole.snapshot("a2-01")
    refused = {
        "G04": ([], "device 0 of a2-01 .a2. has no vnic.link"),
        "C10": (["device=8"], "has no device 8; its devices are 0, 1, 2"),
        "D17": (["model=/nowhere"], "/nowhere/model-00002-of-00002.safetensors does not exist"),
        "D16": (["path=/nowhere"], "/nowhere is no directory"),
    }
    for each, (arguments, words) in refused.items():
        with pytest.raises(FaultError, match=words):
            whole.control.inject("a2-01", find(each), arguments)
    whole.control.inject("a2-01", find("A09"))
    with pytest.raises(FaultError, match=r"A09 .* has changed .*; heal it first"):
        whole.control.inject("a2-01", find("A10"))
    whole.control.heal("a2-01")
    assert whole.snapshot("a2-01") == before


def test_a_repair_is_left_alone(whole: Site):
    info = "/etc/ascend_install.info"
    text = whole.shell("a2-01", f"cat {info}", check=True)
    whole.control.inject("a2-01", find("A19"))
    whole.shell("a2-01", f"echo Driver_Install_Type=full >{info}", check=True)
    healed, notes = whole.control.heal("a2-01", find("A19"))
    assert healed == ["A19"]
    assert notes == [f"{info} was changed by something else since: left as it is"]
    assert whole.shell("a2-01", f"cat {info}") == "Driver_Install_Type=full\n"
    whole.shell("a2-01", f"cat >{info} <<'END'\n{text}END", check=True)


def test_a_fault_outlives_its_controller_and_a_reboot(whole: Site):
    """The journal is on the node: a new controller heals what an old one did, also what a reboot has ended already."""
    before = whole.snapshot("a2-01")
    for each in ("C10", "D03", "D01", "D13"):
        whole.control.inject("a2-01", find(each))
    container = whole.cluster.container("a2-01")
    whole.cluster.engine.run("restart", container)
    with engine.exclusive():
        whole.cluster.up()
    assert set(whole.control.active("a2-01")) == {"C10 device=0", "D03 port=12321", "D01 port=8000", "D13 mb=64"}
    assert "link status: DOWN" in whole.shell("a2-01", "/usr/local/Ascend/driver/tools/hccn_tool -i 0 -link -g")
    # Bringing one about again makes it whole again.
    assert whole.control.inject("a2-01", find("D01"))[1]
    assert ":8000" in whole.shell("a2-01", "ss -ltn")
    command = [sys.executable, "sandbox/heal", "a2-01", "--inventory", str(INVENTORY)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "a2-01: C10 device=0 is healed" in told
    after = whole.snapshot("a2-01")
    assert json.dumps(after["rules"]) == json.dumps(before["rules"])
    assert (after["listening"], after["addresses"]) == (before["listening"], before["addresses"])
    assert whole.control.active("a2-01") == {}


def test_the_commands(whole: Site):
    def call(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"sandbox/{verb}", *words, "--inventory", str(INVENTORY)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    told = call("fault", "a3-01", "A11-hbm-leftover", "device=5")
    assert told.returncode == 0, told.stderr
    assert "a3-01: A11 device=5 mb=30000 owner=gone (hbm-leftover) is there" in told.stdout
    assert "it shows on a3-01: npu-smi info" in told.stdout
    assert list(json.loads(call("fault", "a3-01", "--json").stdout)) == ["A11 device=5 mb=30000 owner=gone"]
    assert call("heal", "a3-01", "hbm-leftover").stdout == "a3-01: A11 device=5 mb=30000 owner=gone is healed\n"
    assert call("heal", "a3-01").stdout == "a3-01: nothing to heal\n"
    wrong = call("fault", "b3-01", "A11")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "no node b3-01; there are a3-01, a2-01" in wrong.stderr
