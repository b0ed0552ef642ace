"""The modules that measure mesh, collectives and the hosts' network: thin, so their edges."""

from __future__ import annotations

import os

import pytest

from library import collective_test, control_plane, mpi_trust

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBCMYyNV3LfgBjoaMdUake7jLmQYHeVY31pIkrNQwYhh"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of a user, MPI and test programs of our own."""
    for name in ("mpirun", "all_reduce_test"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    entry = type("entry", (), {"pw_dir": str(tmp_path / "home"), "pw_uid": os.getuid(), "pw_gid": os.getgid()})
    monkeypatch.setattr(mpi_trust.pwd, "getpwnam", lambda name: entry)
    (tmp_path / "home").mkdir()
    return tmp_path


def trust(run_module, home, state, check=False, **more):
    given = {"state": state, "cluster": "c1", "directory": str(home / "run")}
    if state == "present":
        given.update(key=KEY, source="192.0.2.1", address="192.0.2.2", tests=[str(home / "bin")])
        given["programs"] = ["all_reduce_test", "sendrecv_test"]
    return run_module(mpi_trust, {**given, **more}, check=check)


def test_trust_comes_and_goes_without_a_trace(run_module, home):
    keys = home / "home" / ".ssh" / "authorized_keys"
    assert trust(run_module, home, "present", check=True)["changed"] is False
    assert not (home / "run").exists()
    told = trust(run_module, home, "present")["mpi"]
    assert (told["launcher"], told["programs"], told["missing"]) == ("openmpi", ["all_reduce_test"], [])
    assert keys.read_text().count("ascent-collectives-c1") == 1
    assert keys.stat().st_mode & 0o777 == 0o600
    assert trust(run_module, home, "absent", check=True)["changed"] is True
    assert trust(run_module, home, "absent")["changed"] is True
    assert not (home / "home" / ".ssh").exists()
    assert not (home / "run").exists()
    assert trust(run_module, home, "absent")["changed"] is False


def test_keys_of_others_stay_as_they_are(run_module, home):
    keys = home / "home" / ".ssh" / "authorized_keys"
    keys.parent.mkdir(mode=0o700)
    keys.write_text("ssh-rsa AAAA someone\n")
    keys.chmod(0o640)
    trust(run_module, home, "present")
    trust(run_module, home, "absent")
    assert (keys.read_text(), keys.stat().st_mode & 0o777) == ("ssh-rsa AAAA someone\n", 0o640)


def test_a_node_without_programs_is_told_of_and_left_alone(run_module, home):
    told = trust(run_module, home, "present", tests=["/nowhere"])
    assert (told["changed"], told["mpi"]["missing"]) == (False, ["the test programs"])
    assert not (home / "home" / ".ssh").exists()


def test_the_key_stays_where_it_is_made(run_module, home):
    told = trust(run_module, home, "key")
    assert told["public_key"].startswith("ssh-ed25519 ")
    assert (home / "run" / "key").stat().st_mode & 0o777 == 0o600
    assert trust(run_module, home, "key")["public_key"] != told["public_key"]
    assert "PRIVATE" not in str(told)


def test_a_collective_that_nobody_knows_is_refused(run_module, tmp_path):
    given = {"directory": str(tmp_path), "hosts": {}, "launcher": "openmpi", "path": "/bin", "tests": "/bin"}
    told = run_module(collective_test, {**given, "collectives": ["gossip"]})
    assert told["failed"] is True
    assert "gossip" in told["msg"]
    assert {"runs", "culprits", "seconds"} <= set(run_module(collective_test, given, check=True))


def test_the_control_plane_in_three_phases(run_module, tmp_path):
    given = {"host": "a", "address": "127.0.0.1", "nonce": "n", "pid_file": str(tmp_path / "run" / "pid")}
    told = run_module(control_plane, {**given, "state": "listening", "nics": {"lo": ["GLOO_SOCKET_IFNAME"]}})
    try:
        port = told["result"]["rendezvous"]["lo"]
        meeting = {"to": "a", "nic": "lo", "address": "127.0.0.1", "port": port, "source": "127.0.0.1"}
        told = run_module(control_plane, {**given, "state": "probed", "rendezvous": [meeting], "timeout": 5})
        assert [one["outcome"] for one in told["result"]["rendezvous"]] == ["answered"]
    finally:
        assert run_module(control_plane, {**given, "state": "stopped"})["changed"] is False
    assert not (tmp_path / "run" / "pid").exists()
