"""The key of a run of collectives: what it lets in, and that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ascent import mpi_trust

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBCMYyNV3LfgBjoaMdUake7jLmQYHeVY31pIkrNQwYhh"
OTHERS = "# mine\nssh-rsa AAAA someone@site\n"


def test_one_line_from_one_address_for_one_program():
    text = mpi_trust.authorize(OTHERS, "c1", KEY, "192.0.2.1", "/var/lib/ascent/c1/collectives/agent")
    line = text[len(OTHERS) :]
    assert text.startswith(OTHERS)
    assert line == (
        f'from="192.0.2.1",restrict,command="/var/lib/ascent/c1/collectives/agent" {KEY} ascent-collectives-c1\n'
    )
    # Again, or with another key, it stays one line; another cluster's is its own.
    assert mpi_trust.authorize(text, "c1", KEY, "192.0.2.1", "/var/lib/ascent/c1/collectives/agent") == text
    both = mpi_trust.authorize(text, "c10", KEY, "192.0.2.1", "/a")
    assert mpi_trust.revoke(both, "c10") == text
    assert mpi_trust.revoke(text, "c1") == OTHERS


def test_a_file_without_an_end_of_line_keeps_its_last_key():
    text = mpi_trust.authorize("ssh-rsa AAAA a", "c1", KEY, "192.0.2.1", "/a")
    assert text.splitlines()[0] == "ssh-rsa AAAA a"
    assert mpi_trust.revoke(text, "c1") == "ssh-rsa AAAA a\n"


@pytest.mark.parametrize(
    ("key", "source", "program"),
    [
        (KEY + '\ncommand="x"', "192.0.2.1", "/a"),
        (KEY, '192.0.2.1",command="x', "/a"),
        (KEY, "192.0.2.1", '/a" x'),
        (KEY, "192.0.2.1", "a"),
    ],
)
def test_nothing_breaks_out_of_its_place(key, source, program):
    with pytest.raises(ValueError, match="is no"):
        mpi_trust.authorize("", "c1", key, source, program)


@pytest.fixture
def agent(tmp_path):
    """Asks the program behind the key for something; a daemon of ours shows how it was called."""
    for name in ("orted", "sh-evil"):
        path = tmp_path / name
        path.write_text('#!/bin/sh\necho "$0 $MARK"\nfor each; do echo "<$each>"; done\n')
        path.chmod(0o755)
    script = tmp_path / "set_env.sh"
    script.write_text("export MARK=sourced\necho noise\n")
    program = tmp_path / "agent"
    program.write_text(mpi_trust.agent(sys.executable, [str(script), "/nowhere/set_env.sh"], str(tmp_path)))
    program.chmod(0o755)

    def ask(command):
        environment = {"PATH": os.environ["PATH"], "SSH_ORIGINAL_COMMAND": command}
        return subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)

    return ask


def test_the_daemon_starts_with_the_environment_and_its_words(agent, tmp_path):
    told = agent(' orted -mca orte_hnp_uri "81.0;tcp://192.0.2.1:51623" --mca plm_rsh_agent "/d/ssh" -mca x "a b"')
    assert told.stdout.splitlines() == [
        f"{tmp_path}/orted sourced", "<-mca>", "<orte_hnp_uri>", "<81.0;tcp://192.0.2.1:51623>", "<--mca>",
        "<plm_rsh_agent>", "</d/ssh>", "<-mca>", "<x>", "<a b>",
    ]  # fmt: skip
    prefixed = (
        'PATH=/opt/bin:$PATH ; export PATH ; LD_LIBRARY_PATH=/opt/lib:$L ; export L ; /opt/bin/orted -mca ess "env"'
    )
    assert agent(prefixed).stdout.splitlines()[1:] == ["<-mca>", "<ess>", "<env>"]


@pytest.mark.parametrize(
    "command", ["", "sh", "sh-evil", "id; sh-evil", "orted; id", "A=1 sh-evil", "orted-x", "scp -t /etc"]
)
def test_nothing_else_starts(agent, command):
    told = agent(command)
    assert (told.returncode, told.stdout) == (1, "")
    assert "refused" in told.stderr


def test_shell_words_of_a_daemon_are_only_words(agent):
    told = agent("orted $(id) `id` && id | id > /tmp/x")
    assert told.stdout.splitlines()[1:] == ["<$(id)>", "<`id`>", "<&&>", "<id>", "<|>", "<id>", "<>>", "</tmp/x>"]


def test_host_keys_and_ports():
    hosts = {
        "a": {"address": "192.0.2.1", "port": 22, "host_keys": ["ssh-ed25519 AAAA", "ssh-rsa BBBB"]},
        "b": {"address": "192.0.2.2", "port": 2222, "host_keys": ["ssh-ed25519 CCCC"]},
    }
    assert mpi_trust.known_hosts(hosts).splitlines() == [
        "192.0.2.1 ssh-ed25519 AAAA", "192.0.2.1 ssh-rsa BBBB", "[192.0.2.2]:2222 ssh-ed25519 CCCC",
    ]  # fmt: skip
    wrapper = mpi_trust.ssh_wrapper("/d", {"192.0.2.1": 22, "192.0.2.2": 2222}, "root")
    assert "192.0.2.2) port=2222" in wrapper
    assert "192.0.2.1)" not in wrapper
    assert subprocess.run(["sh", "-n"], input=wrapper, text=True, check=False).returncode == 0
