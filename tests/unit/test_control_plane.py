"""The hosts' own network: what is tried, what real sockets tell, and what is said of it."""

from __future__ import annotations

import copy
import json
import os
import socket
import time
from contextlib import closing

import pytest

from ascent import control_plane
from ascent.fabric import control_plane as judging

A, B, C = "a", "b", "c"


def process(name, host, instance, kind="head", ports=(), env=()):
    return {
        "name": name, "host": host, "instance": instance, "kind": kind,
        "ports": [{"name": one, "first": first, "count": count} for one, first, count in ports],
        "env": [{"name": one, "value": value} for one, value in env],
    }  # fmt: skip


def plan_of(processes, instances, vendor="ascend"):
    hosts = sorted({one["host"] for one in processes})
    return {
        "hosts": {host: {"node_ip": f"192.0.2.{1 + index}", "vendor": vendor} for index, host in enumerate(hosts)},
        "instances": [{"name": name, "role": role, "hosts": members} for name, role, members in instances],
        "processes": processes,
    }


def pd_plan():
    return plan_of(
        [
            process("p-0", A, "p", ports=[("api", 8100, 1), ("kv", 23010, 2)]),
            process("d-0", B, "d", ports=[("api", 8200, 1), ("dp-rpc", 13389, 1), ("kv", 36010, 100)]),
            process("d-1", C, "d", kind="headless"),
            process("router", A, None, kind="router", ports=[("api", 8000, 1)]),
            process("kv-store", A, None, kind="kv-store", ports=[("kv-store", 50088, 1), ("metrics", 9003, 1)]),
        ],
        [("p", "prefill", [A]), ("d", "decode", [B, C])],
    )


def test_each_port_is_tried_from_the_hosts_that_use_it():
    uses = control_plane.uses(pd_plan())
    assert (C, B, 13389, "dp-rpc") in uses
    assert (A, B, 13389, "dp-rpc") not in uses
    assert (A, B, 8200, "api") in uses
    assert not [use for use in uses if use[2] in (8000, 9003)]
    assert {(source, port) for source, to, port, use in uses if use == "kv" and to == A} == {
        (source, port) for source in (B, C) for port in (23010, 23011)
    }
    # A long range is tried by its ends.
    assert {port for _, to, port, use in uses if use == "kv" and to == B} == {36010, 36109}
    assert {(source, to) for source, to, port, _ in uses if port == 50088} == {(B, A), (C, A)}
    assert {(source, to, port) for source, to, port, use in uses if use == "hccl"} == {
        (source, to, port) for source, to in ((B, C), (C, B)) for port in (60000, 60031)
    }
    assert control_plane.ports(pd_plan(), A) == [23010, 23011, 50088]


def test_hccl_ports_follow_their_variable_and_are_of_npus_only():
    two = [process("h", A, "s", env=[("HCCL_IF_BASE_PORT", "50000")]), process("w", B, "s", "headless")]
    uses = control_plane.uses(plan_of(two, [("s", "serve", [A, B])]))
    assert {port for _, to, port, _ in uses if to == A} == {50000, 50031}
    assert control_plane.uses(plan_of(two, [("s", "serve", [A, B])], vendor="nvidia")) == []


def test_network_cards_come_with_who_names_them():
    env = [("GLOO_SOCKET_IFNAME", "eth0"), ("TP_SOCKET_IFNAME", "eth0"), ("HCCL_SOCKET_IFNAME", "=eth0")]
    plan = plan_of([process("h", A, "s", env=env)], [("s", "serve", [A])])
    assert control_plane.wanted_nics(plan, A) == {
        "=eth0": ["HCCL_SOCKET_IFNAME"],
        "eth0": ["GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"],
    }


def test_a_card_is_found_by_name():
    lo = control_plane.interface("lo")
    assert (lo["name"], lo["address"]) == ("lo", "127.0.0.1")
    assert lo["mtu"] > 1000
    assert control_plane.interface("nosuch9") == {"name": None, "address": None, "mtu": None}
    for hccl in ("=lo", "l", "lo"):
        assert control_plane.interface(hccl, exact=False)["name"] == "lo"
    assert control_plane.interface("=l", exact=False)["name"] is None
    assert control_plane.interface("^lo", exact=False)["name"] != "lo"


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def listening(tmp_path):
    """Listeners on loopback, ended afterwards."""
    pid_file = str(tmp_path / "run" / "listeners")

    def listen(host, ports, nonce="n1", nics=None, seconds=30.0):
        return control_plane.listen(host, "127.0.0.1", nonce, ports, nics or {}, ["localhost"], pid_file, seconds)

    listen.pid_file = pid_file
    yield listen
    control_plane.stop(pid_file)


def probe(targets, nonce="n1", rendezvous=(), **more):
    return control_plane.probe("a", "127.0.0.1", nonce, targets, rendezvous, {}, None, timeout=1.0, **more)


def target(port, to="b", ours=True):
    return {"to": to, "address": "127.0.0.1", "port": port, "use": "dp-rpc", "ours": ours}


def test_listeners_answer_and_end(listening):
    ports = sorted({free_port() for _ in range(3)})
    told = listening("b", ports)
    assert (told["held"], told["unbound"], told["names"]["localhost"]) == ([], {}, ["127.0.0.1"])
    answer = probe([target(port) for port in ports])
    assert (answer["tcp"], answer["tried"]) == ([], {"b": len(ports)})
    assert control_plane.stop(listening.pid_file) is True
    assert control_plane.stop(listening.pid_file) is False
    assert [one["outcome"] for one in probe([target(ports[0])])["tcp"]] == ["refused"]


def test_listeners_end_by_themselves_and_make_room_for_new_ones(listening):
    port = free_port()
    listening("b", [port], seconds=0.2)
    until = time.monotonic() + 10
    while os.path.exists(listening.pid_file) and time.monotonic() < until:
        time.sleep(0.05)
    assert listening("b", [port])["held"] == []
    # Listeners of a run that was cut off are no one else's.
    assert listening("b", [port], nonce="n2")["held"] == []
    assert probe([target(port)], nonce="n2")["tcp"] == []


def test_who_answers_for_another_is_a_stranger(listening):
    port = free_port()
    listening("b", [port])
    assert [one["outcome"] for one in probe([target(port, to="c")])["tcp"]] == ["stranger"]
    assert [one["outcome"] for one in probe([target(port)], nonce="n2")["tcp"]] == ["stranger"]
    assert "answered by ascent n1 b" in probe([target(port, to="c")])["tcp"][0]["text"]


def test_a_port_that_is_held_answers_by_itself(listening):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert listening("b", [port])["held"] == [port]
        assert probe([target(port, ours=False)])["tcp"] == []
        # Nobody takes part in our banner there.
        assert [one["outcome"] for one in probe([target(port)])["tcp"]] == ["timeout"]


def test_ranks_meet_over_a_named_card(listening):
    told = listening("b", [], nics={"lo": ["GLOO_SOCKET_IFNAME"], "nosuch9": ["TP_SOCKET_IFNAME"]})
    assert told["nics"]["nosuch9"]["name"] is None
    meeting = {"to": "b", "nic": "lo", "address": "127.0.0.1", "port": told["rendezvous"]["lo"], "source": "127.0.0.1"}
    assert [one["outcome"] for one in probe([], rendezvous=[meeting])["rendezvous"]] == ["answered"]
    away = {**meeting, "source": "192.0.2.77"}
    assert [one["outcome"] for one in probe([], rendezvous=[away])["rendezvous"]] == ["failed"]


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets are root's")
def test_full_packets_pass_on_loopback_in_one_piece():
    told = control_plane.probe("a", "127.0.0.1", "n", [], [], {"b": "127.0.0.1"}, 1500, timeout=1.0)
    assert told["mtu"] == [{"to": "b", "address": "127.0.0.1", "bytes": 1500, "small": True, "large": True}]
    json.dumps(told)


# -- judging -----------------------------------------------------------------------------------------------------------


def measured(hosts=(A, B, C)):
    """What a sound cluster tells."""
    plan = {"hosts": {host: {"node_ip": f"192.0.2.{1 + index}"} for index, host in enumerate(hosts)}}
    told = {}
    for host in hosts:
        others = [other for other in hosts if other != host]
        own = plan["hosts"][host]["node_ip"]
        told[host] = {
            "host": host,
            "nics": {"eth0": {"name": "eth0", "address": own, "mtu": 1500, "for": ["GLOO_SOCKET_IFNAME"]}},
            "names": {f"{host}.site": [own], **{other: [plan["hosts"][other]["node_ip"]] for other in others}},
            "held": [],
            "unbound": {},
            "tried": dict.fromkeys(others, 3),
            "tcp": [],
            "mtu": [
                {"to": other, "address": plan["hosts"][other]["node_ip"], "bytes": 1500, "small": True, "large": True}
                for other in others
            ],
            "rendezvous": [
                {"to": other, "nic": "eth0", "address": plan["hosts"][other]["node_ip"], "port": 4000,
                 "outcome": "answered", "text": ""}
                for other in others
            ],
        }  # fmt: skip
    return plan, told


def lost(to, port, use="dp-rpc", outcome="timeout"):
    return {"to": to, "address": "192.0.2.1", "port": port, "use": use, "outcome": outcome, "text": "no answer"}


def findings(change=None, nodes=None):
    plan, told = measured()
    told = copy.deepcopy(told)
    if change:
        change(told)
    return judging.judge(plan, nodes or {}, told)["findings"]


def only(found):
    assert len(found) == 1, found
    assert all(found[0][key] for key in ("summary", "evidence", "cause", "fix"))
    assert found[0]["stage"] == "verify"
    return found[0]


def test_a_sound_network_is_clean():
    assert findings() == []


def test_a_blocked_port_is_named_with_its_host_and_users():
    def change(told):
        for host in (B, C):
            told[host]["tcp"].append(lost(A, 13389))

    found = only(findings(change))
    assert (found["id"], found["host"]) == ("D03", A)
    assert "port 13389 (dp-rpc) of a is not reached from b, c" in found["summary"]


def test_a_host_that_is_cut_off_is_one_finding():
    def change(told):
        for host in (B, C):
            told[host]["tcp"] = [lost(A, port, "hccl") for port in (1, 2, 3)]
            told[host]["rendezvous"][0]["outcome"] = "timeout"
            told[host]["mtu"][0].update(small=False, large=False)

    found = only(findings(change))
    assert (found["id"], found["host"]) == ("control-host-cut-off", A)


def test_two_faults_are_two_findings():
    def change(told):
        told[B]["tcp"] = [lost(A, 13389)]
        told[A]["tcp"] = [lost(C, 60000, "hccl", "refused"), lost(C, 60031, "hccl", "refused")]

    found = findings(change)
    assert [(one["id"], one["host"]) for one in found] == [("D03", A), ("control-port-blocked", C)]
    assert "60000, 60031" in found[1]["summary"]


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"name": None, "address": None, "mtu": None}, "does not exist on b"),
        ({"name": "eth1", "address": None, "mtu": 1500}, "has no IPv4 address on b"),
        ({"name": "lo", "address": "127.0.0.1", "mtu": 65536}, "127.0.0.1, not the host's 192.0.2.2 on b"),
    ],
)
def test_a_wrong_card_is_named_and_its_failed_meetings_are_not(card, words):
    def change(told):
        told[B]["nics"] = {"eth1": {**card, "for": ["GLOO_SOCKET_IFNAME"]}}
        for host in (A, C):
            for meeting in told[host]["rendezvous"]:
                if meeting["to"] == B:
                    meeting.update(outcome="refused", text="refused")

    found = only(findings(change))
    assert (found["id"], found["host"]) == ("C07", B)
    assert words in found["summary"]


def test_a_filter_of_the_ports_that_the_system_picks():
    def change(told):
        for host in (A, B):
            for meeting in told[host]["rendezvous"]:
                if meeting["to"] == C:
                    meeting.update(outcome="timeout", text="no answer")
        for meeting in told[C]["rendezvous"]:
            meeting.update(outcome="timeout", text="no answer")

    found = only(findings(change))
    assert (found["id"], found["host"]) == ("control-rendezvous", C)


def test_packets_of_full_size_that_are_lost():
    def change(told):
        for entry in told[B]["mtu"]:
            entry["large"] = False
        for host in (A, C):
            for entry in told[host]["mtu"]:
                entry["large"] = entry["to"] != B

    found = only(findings(change))
    assert (found["id"], found["host"]) == ("control-mtu-path", B)


def test_no_answer_to_any_ping_says_nothing_of_sizes():
    def change(told):
        for entry in told[B]["mtu"]:
            entry.update(small=False, large=False)

    assert findings(change) == []


def test_names():
    def change(told):
        told[A]["names"]["a.site"] = ["127.0.1.1"]
        told[B]["names"][C] = ["192.0.2.99"]

    found = findings(change)
    assert [(one["id"], one["host"], one["severity"]) for one in found] == [
        ("D08", A, "warning"), ("control-name-differs", B, "warning"),
    ]  # fmt: skip


def test_clocks_that_are_apart_for_sure():
    def nodes(offset, around=0.1):
        return {
            host: {
                "clock": {
                    "before": 1000 - around,
                    "after": 1000 + around,
                    **dict.fromkeys(("first", "last"), 1000.0 + (offset if host == C else 0)),
                }
            }
            for host in (A, B, C)
        }

    found = only(findings(nodes=nodes(5.0)))
    assert (found["id"], found["host"]) == ("D24", C)
    assert findings(nodes=nodes(5.0, around=10)) == []


def test_a_host_that_told_nothing_and_a_port_that_can_not_be_had():
    found = only(findings(lambda told: told.update({B: None})))
    assert (found["id"], found["host"]) == ("control-not-measured", B)
    found = only(findings(lambda told: told[B]["unbound"].update({"8000": "Cannot assign requested address"})))
    assert (found["id"], found["host"]) == ("control-port-unbound", B)
