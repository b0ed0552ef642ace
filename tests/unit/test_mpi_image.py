"""Collective tests in the engine's image: what is there, and how it is started."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from ascent import command, hccl_test, mpi_image, mpi_job, mpi_trust
from ascent_controller.loader import ROOT

PROGRAMS = ["all_reduce_test", "sendrecv_test"]
TABLE = "data_size(Bytes): | aveg_time(us): | alg_bandwidth(GB/s): | check_result:\n8192 | 41.20 | 0.19884 | success\n"


@pytest.fixture
def image(tmp_path):
    """A folder that stands for an image's file system, and what the probe says of it."""
    launcher = tmp_path / "mpi" / "mpirun"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\necho\necho 'Report bugs'\n")
    launcher.chmod(0o755)
    tests = tmp_path / "hccl_test" / "bin"
    tests.mkdir(parents=True)
    (tests / "all_reduce_test").write_text("")
    (tests / "all_reduce_test").chmod(0o755)

    def ask(environment=(), launchers=(launcher.parent,), places=("/nowhere", tests)):
        argv = mpi_image.probe(
            "docker", "engine:1", [*map(str, environment)], [*map(str, launchers)], [*map(str, places)], PROGRAMS
        )
        assert argv[:7] == ["docker", "run", "--rm", "--network", "none", "--entrypoint", "/bin/bash"]
        done = subprocess.run(["/bin/bash", *argv[8:]], capture_output=True, text=True, check=True)
        return mpi_image.found(done.stdout, PROGRAMS)

    ask.root = tmp_path
    return ask


def test_an_image_with_mpi_and_programs(image):
    told = image()
    assert told["launcher"] == "openmpi"
    assert (told["path"], told["tests"]) == (str(image.root / "mpi"), str(image.root / "hccl_test" / "bin"))
    assert told["programs"] == ["all_reduce_test"]
    assert [word for word in told["missing"] if "ssh" not in word] == []


def test_what_an_image_lacks_is_said(image):
    assert "the test programs (in the image)" in image(places=("/nowhere",))["missing"]
    none = mpi_image.found("CANN's own words\nascent path \nascent ssh \n", PROGRAMS)
    assert none["missing"] == ["mpirun (in the image)", "ssh (in the image)", "the test programs (in the image)"]
    assert (none["launcher"], none["path"], none["tests"], none["programs"]) == (None, None, None, [])


def test_sourced_scripts_may_print_and_set_the_search_path(image):
    script = image.root / "set_env.sh"
    script.write_text(f"echo ascent path /elsewhere/mpirun; export PATH={image.root}/mpi:$PATH\n")
    assert image(environment=(script, "/not/there.sh"), launchers=())["path"] == str(image.root / "mpi")


def test_any_output_is_read():
    for text in ("", "\n", "ascent", "ascent program x", "ascent version"):
        assert mpi_image.found(text, PROGRAMS)["missing"]


SHELL = mpi_image.wrapped(
    "/usr/bin/docker", "engine:1", "a3", "/var/lib/x", ["--net=host", "--device", "/dev/davinci0"]
)


def test_a_shell_in_the_image_sees_the_runs_key_and_the_engines_devices():
    line = " ".join(SHELL)
    assert line == (
        "/usr/bin/docker run --rm --label ascent-collectives=a3 --net=host --device /dev/davinci0"
        " -v /var/lib/x:/var/lib/x:ro --entrypoint /bin/bash engine:1"
    )


def test_the_daemon_starts_in_the_image(tmp_path):
    fake = tmp_path / "docker"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    program = tmp_path / "agent"
    program.write_text(mpi_trust.agent(sys.executable, ["/set_env.sh"], "/mpi/bin", [str(fake), *SHELL[1:]]))
    environment = {"SSH_ORIGINAL_COMMAND": "orted -mca x y", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[: len(SHELL) - 1] == SHELL[1:]
    assert words[len(SHELL)].startswith("if test -r /set_env.sh; then . /set_env.sh; fi")
    assert words[-4:] == ["orted", "-mca", "x", "y"]


def test_the_launcher_runs_in_a_container_of_its_own_that_ends_with_it(monkeypatch):
    lines, removed = [], []

    def job(argv, limit, environment):
        lines.append(argv)
        return (0, TABLE) if len(lines) == 1 else (command.TIMED_OUT, "")

    monkeypatch.setattr(command, "run", lambda argv, timeout: removed.append(argv) or (0, "", ""))
    hosts = {name: {"address": f"192.0.2.{number}", "devices": [0]} for number, name in enumerate("ab")}
    started = mpi_job.Launcher(
        hosts, "openmpi", "/t", job=job, shell=SHELL, script="cd /; ", agent="/d/ssh", sizes=(8192, 8192)
    )
    assert started.run("all_reduce", ("a", "b"))["outcome"] == "ok"
    (line,) = lines
    name = line[line.index("--name") + 1]
    assert line[:2] == SHELL[:2]
    assert line[line.index("engine:1") + 1 :][:4] == ["-c", 'cd /; exec "$@"', "mpirun", "mpirun"]
    # A daemon in the background would end its container.
    assert "--leave-session-attached" in line
    assert removed == []
    assert started.run("all_reduce", ("a", "b"))["outcome"] == "timeout"
    assert removed == [["/usr/bin/docker", "rm", "--force", name]]


def test_on_a_host_daemons_go_to_the_background():
    assert "--leave-session-attached" not in hccl_test.mpirun("openmpi", "/t/p", ["192.0.2.1"], 1, agent="/d/ssh")


def test_the_container_gets_what_all_engines_of_a_host_get():
    import importlib.util

    spec = importlib.util.spec_from_file_location("ascent_filters", ROOT / "plugins" / "filter" / "ascent.py")
    filters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filters)
    base = {
        "image": "engine:1", "network": "bridge", "publish": [8000], "ipc": "host", "shm_size": None,
        "privileged": False, "capabilities": [], "ulimits": {}, "gpus": None,
    }  # fmt: skip
    mount = {"source": "/usr/local/dcmi", "target": "/usr/local/dcmi", "read_only": False}
    processes = [
        {"host": "a", "devices": [n], "container": {**base, "devices": [f"/dev/davinci{n}"], "mounts": [mount]}}
        for n in (0, 1)
    ]
    plan = {"processes": [*processes, {"host": "b", "devices": [0], "container": None}]}
    told = filters.ascent_test_container(plan, "a")
    assert told == {
        "image": "engine:1",
        "options": [
            "--net=host", "--ipc=host", "--device", "/dev/davinci0", "--device", "/dev/davinci1",
            "-v", "/usr/local/dcmi:/usr/local/dcmi",
        ],
    }  # fmt: skip
    assert filters.ascent_test_container(plan, "b") == {"image": None, "options": []}
    # What a task file is given has to be plain words.
    assert yaml.safe_load(json.dumps(told)) == told
