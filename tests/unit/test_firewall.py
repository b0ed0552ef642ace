"""Openings in ufw and firewalld: what is opened, what is closed again, and filters that are only told of."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from ascent import firewall, tuning
from ascent.errors import ToolError
from ascent.files import Tree

SOURCES = ["192.0.2.10", "192.0.2.11", "192.0.2.20"]


class Ufw:
    """Keeps rules as ufw does, and prints them as ``ufw show added`` does."""

    def __init__(self) -> None:
        self.rules: list[str] = ["allow 22/tcp", "allow from 192.0.2.0/24 to any port 443 proto tcp"]

    def __call__(self, argv: Sequence[str]) -> tuple[int, str, str]:
        if argv[:3] == ["ufw", "show", "added"]:
            return 0, "\n".join(["Added user rules:", *(f"ufw {rule}" for rule in self.rules)]) + "\n", ""
        words = [word for word in argv[1:] if word not in ("--force", "delete")]
        values = dict(itertools.pairwise(words))
        source = values["from"].removesuffix("/32")
        rule = f"allow from {source} to any port {values['port']} proto tcp"
        if "delete" in argv:
            self.rules = [one for one in self.rules if not one.startswith(rule)]
        else:
            self.rules.append(f"{rule} comment {shlex.quote(values['comment'])}")
        return 0, "Rule added\n", ""


class Firewalld:
    """Two lists of rich rules for each zone, live and permanent."""

    def __init__(self) -> None:
        self.rules: dict[tuple[bool, str], list[str]] = {}

    def __call__(self, argv: Sequence[str]) -> tuple[int, str, str]:
        words = list(argv[1:])
        if words[0].startswith("--get-zone-of-interface"):
            return (0, "internal\n", "") if words[0].endswith("=eth0") else (2, "no zone\n", "")
        if words[0] == "--get-default-zone":
            return 0, "public\n", ""
        zone = next(word.partition("=")[2] for word in words if word.startswith("--zone="))
        rules = self.rules.setdefault(("--permanent" in words, zone), ['rule service name="dns" accept'])
        for word in words:
            if word.startswith("--add-rich-rule="):
                rules.append(word.partition("=")[2])
            elif word.startswith("--remove-rich-rule="):
                rules.remove(word.partition("=")[2])
        return (0, "\n".join(rules) + "\n", "") if "--list-rich-rules" in words else (0, "success\n", "")


def settle(which: str, wanted: set[firewall.Opening], noted: dict, run: firewall.Runner, nic: str = "eth0") -> dict:
    """Plan and run; a second plan has nothing left to do."""
    commands, note, _ = firewall.steps(which, wanted, noted, nic, run)
    for command in commands:
        assert run(command["argv"])[0] == 0
    again, same, opened = firewall.steps(which, wanted, note, nic, run)
    assert (again, same, opened) == ([], note, set())
    return note


def test_networks_hold_exactly_the_addresses() -> None:
    assert firewall.covering(SOURCES) == ["192.0.2.10/31", "192.0.2.20/32"]
    assert firewall.covering(["2001:db8::1", "192.0.2.1"]) == ["192.0.2.1/32", "2001:db8::1/128"]


def test_ufw_opens_for_the_cluster_alone_and_closes_again() -> None:
    ufw = Ufw()
    before = list(ufw.rules)
    wanted = firewall.openings(SOURCES, ["6884", "23010-23025"])
    note = settle("ufw", wanted, {}, ufw)
    assert ufw.rules[2:] == [
        "allow from 192.0.2.10/31 to any port 6884,23010:23025 proto tcp comment ascent:host_tuning",
        "allow from 192.0.2.20 to any port 6884,23010:23025 proto tcp comment ascent:host_tuning",
    ]
    note = settle("ufw", firewall.openings(SOURCES[:1], ["6884"]), note, ufw)
    assert ufw.rules[2:] == ["allow from 192.0.2.10 to any port 6884 proto tcp comment ascent:host_tuning"]
    assert settle("ufw", set(), note, ufw) == {}
    assert ufw.rules == before


def test_ufw_takes_fifteen_ports_a_rule() -> None:
    ufw = Ufw()
    settle("ufw", firewall.openings(["192.0.2.1"], [f"{port}-{port + 5}" for port in range(1000, 1100, 10)]), {}, ufw)
    counts = [rule.split(" port ")[1].split()[0].count(",") + 1 for rule in ufw.rules[2:]]
    assert counts == [7, 3]


def test_firewalld_opens_the_zone_of_the_interface_live_and_permanently() -> None:
    firewalld = Firewalld()
    note = settle("firewalld", firewall.openings(["192.0.2.20"], ["6884"]), {}, firewalld)
    rule = 'rule family="ipv4" source address="192.0.2.20" port port="6884" protocol="tcp" accept'
    assert firewalld.rules[False, "internal"][1:] == firewalld.rules[True, "internal"][1:] == [rule]
    assert note["zone"] == "internal"
    # The interface has moved to the default zone since.
    note = settle("firewalld", firewall.openings(["192.0.2.20"], ["6884"]), note, firewalld, nic="eth1")
    assert firewalld.rules[True, "internal"] == ['rule service name="dns" accept']
    assert firewalld.rules[False, "public"][1:] == [rule]
    assert settle("firewalld", set(), note, firewalld, nic="eth1") == {}
    assert all(rules == ['rule service name="dns" accept'] for rules in firewalld.rules.values())


def test_a_manager_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(ToolError, match="ufw: show added ended with 1: ERROR: problem running"):
        firewall.steps("ufw", set(), {}, "", lambda argv: (1, "", "ERROR: problem running"))


def test_the_manager_is_the_one_that_filters_now(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path))
    config = tmp_path / "etc/ufw/ufw.conf"
    config.parent.mkdir(parents=True)
    config.write_text("# /etc/ufw/ufw.conf\nENABLED=no\n")
    assert firewall.manager(tree, lambda service: False) is None
    assert firewall.manager(tree, lambda service: service == "firewalld") == "firewalld"
    config.write_text("ENABLED=yes\nLOGLEVEL=low\n")
    assert firewall.manager(tree, lambda service: False) == "ufw"


NFT = """table inet filter {
	chain input {
		type filter hook input priority filter; policy POLICY;
		ct state invalid drop
		tcp dport { 22, 443 } accept
RULE
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"""


@pytest.mark.parametrize(
    ("policy", "rule", "shown"),
    [
        ("accept", "", None),
        ("drop", "", "nft: chain input: type filter hook input priority filter; policy drop;"),
        ("accept", "\t\ttcp dport 1024-65535 reject", "nft: chain input: tcp dport 1024-65535 reject"),
    ],
)
def test_nft_rules_of_nobody_are_told(policy: str, rule: str, shown: str | None) -> None:
    text = NFT.replace("POLICY", policy).replace("RULE", rule)
    assert firewall.apart(lambda argv: (0, text, "") if argv[0] == "nft" else (1, "", "")) == shown


@pytest.mark.parametrize(
    ("out", "shown"),
    [
        ("-P INPUT ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\n", None),
        ("-P INPUT DROP\n", "iptables: -P INPUT DROP"),
        (
            "-P INPUT ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\n",
            "iptables: -A INPUT -j REJECT --reject-with icmp-host-prohibited",
        ),
    ],
)
def test_iptables_is_asked_where_nft_is_not(out: str, shown: str | None) -> None:
    assert firewall.apart(lambda argv: (0, out, "") if argv[0] == "iptables" else (127, "", "")) == shown


def host(tmp_path: Path, active: bool) -> Tree:
    for path, text in {
        "etc/ufw/ufw.conf": f"ENABLED={'yes' if active else 'no'}\n",
        "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return Tree(str(tmp_path))


PLAN = {"sources": SOURCES[:2], "ports": ["6884", "60000-60031"], "clients": ["10.0.0.0/8"], "client_ports": ["8010"]}


def test_peers_reach_the_ports_of_the_plan_and_those_the_kernel_picks_and_clients_the_endpoint(tmp_path: Path) -> None:
    tree, ufw = host(tmp_path, active=True), Ufw()
    wish = tuning.wanted(firewall=PLAN)
    observed = tuning.observe(wish, tree, ufw)
    decided = tuning.plan(wish, observed)
    tuning.apply(decided, observed, tree, ufw)
    assert [rule.split(" proto")[0] for rule in ufw.rules[2:]] == [
        "allow from 10.0.0.0/8 to any port 8010",
        "allow from 192.0.2.10/31 to any port 6884,32768:60999",
    ]
    assert not tuning.changes(tuning.plan(wish, tuning.observe(wish, tree, ufw)))
    observed = tuning.observe(tuning.NOTHING, tree, ufw)
    tuning.apply(tuning.plan(tuning.NOTHING, observed, undo=True), observed, tree, ufw)
    assert len(ufw.rules) == 2


def test_the_firewall_alone_leaves_the_rest_of_the_tuning(tmp_path: Path) -> None:
    tree, ufw = host(tmp_path, active=True), Ufw()
    knob = tmp_path / "proc/sys/vm/swappiness"
    knob.parent.mkdir(parents=True)
    knob.write_text("60\n")
    tuned = tuning.wanted(sysctl={"vm.swappiness": 0})
    observed = tuning.observe(tuned, tree, ufw)
    tuning.apply(tuning.plan(tuned, observed), observed, tree, ufw)
    before = tree.read(tuning.STATE_FILE)
    for plan in (PLAN, None):
        observed = tuning.observe(tuning.wanted(firewall=plan), tree, ufw)
        tuning.apply(tuning.plan_firewall(observed), observed, tree, ufw)
        assert len(ufw.rules) == (4 if plan else 2)
        assert knob.read_text() == "0\n"
    assert tree.read(tuning.STATE_FILE) == before
    assert "vm.swappiness = 0" in str(tree.read(tuning.SYSCTL_FILE))


def test_without_named_clients_the_endpoint_is_told_to_be_closed_to_them(tmp_path: Path) -> None:
    wish = tuning.wanted(firewall={**PLAN, "clients": []})
    decided = tuning.plan(wish, tuning.observe(wish, host(tmp_path, active=True), Ufw()))
    assert [(item["id"], item["severity"]) for item in decided["findings"]] == [("D12", "info")]


def test_where_no_firewall_runs_nothing_is_opened_and_a_stray_filter_is_told(tmp_path: Path) -> None:
    wish = tuning.wanted(firewall=PLAN)
    tree = host(tmp_path, active=False)
    quiet = tuning.plan(wish, tuning.observe(wish, tree, lambda argv: (127, "", "not found")))
    assert not tuning.changes(quiet)
    assert not quiet["findings"]
    stray = tuning.observe(
        wish, tree, lambda argv: (0, "-P INPUT DROP\n", "") if argv[0] == "iptables" else (127, "", "")
    )
    assert [(item["id"], item["severity"]) for item in tuning.plan(wish, stray)["findings"]] == [("D12", "warning")]
