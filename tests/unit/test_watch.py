"""Watching a launch: progress lines, the follower on a node, the state machine, and the action plugin as a whole."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ascent import follower
from ascent.errors import AscentError
from ascent.launch_progress import Progress, parse
from ascent_controller import signatures, watch
from tests.unit.playbook_runs import play

CATALOGUE = signatures.load()
FAKE = Path(__file__).with_name("fake_docker.py")


# Progress lines


@pytest.mark.parametrize(
    ("line", "phase", "percent"),
    [
        (
            "(EngineCore_DP0 pid=9) INFO 01-31 12:00:00 Loading safetensors checkpoint shards:  50% Completed | 1/2",
            "weights",
            50,
        ),
        ("a 0%\r(Worker_TP1 pid=9) Loading safetensors checkpoint shards: 75% Completed", "weights", 75),
        ("Capturing CUDA graphs (decode, FULL):  33%|###   | 2/6", "graphs", 33),
        ("Graph capturing finished in 12 secs, took 0.32 GiB", "graphs", 100),
        ("Available KV cache memory: 12.30 GiB", "cache", None),
        ("(APIServer pid=1) INFO:     Waiting for application startup.", "api", None),
        ("(APIServer pid=1) INFO:     Application startup complete.", "ready", None),
        (
            "Launching 8 data parallel engine(s) in headless mode, with head node address tcp://192.0.2.12:6884.",
            "joining",
            None,
        ),
    ],
)
def test_lines_tell_phase_and_percent(line, phase, percent):
    found = parse(line)
    assert (found["phase"], found["percent"]) == (phase, percent)


def test_other_lines_tell_nothing():
    assert parse("INFO 01-31 12:00:00 [core.py:109] Initializing a V1 LLM engine") is None


def test_a_process_is_as_far_as_its_slowest_worker():
    progress = Progress(16)
    progress.feed("(EngineCore_DP0 pid=1) Loading safetensors checkpoint shards: 100% Completed")
    progress.feed("(EngineCore_DP1 pid=2) Loading safetensors checkpoint shards:  25% Completed")
    progress.feed("(EngineCore_DP0 pid=1) Capturing CUDA graphs: 50%|")
    assert progress.text() == "weights 25 %"
    assert not progress.feed("(EngineCore_DP1 pid=2) Loading safetensors checkpoint shards:  25% Completed")
    progress.feed("(APIServer pid=3) INFO:     Application startup complete.")
    assert progress.text() == "ready"


def test_a_bar_without_a_name_holds_nobody_back():
    progress = Progress()
    progress.feed("(Worker pid=2) INFO 01-31 12:00:00 [runner.py:68] Starting to load model /srv/models/m...")
    progress.feed("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0s/it]")
    assert progress.text() == "weights 50 %"
    progress.feed("(Worker pid=2) INFO 01-31 12:00:02 [loader.py:501] Loading weights took 2.00 seconds")
    assert progress.phase == "cache"


def test_remote_ranks_are_counted():
    progress = Progress(16)
    assert progress.feed("Waiting for 8 local, 8 remote core engine proc(s) to start.")
    assert progress.text() == "joining, 8 of 16 ranks"
    assert progress.feed("Waiting for 8 local, 0 remote core engine proc(s) to start.")
    assert progress.text() == "joining"


# The follower


def stamp(offset=0.0):
    now = time.time() + offset
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z"


class Node:
    """A node of fake containers, and a health address that can be switched."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "docker"
        self.home.mkdir(parents=True)
        (directory / "bin").mkdir()
        shutil.copy(FAKE, directory / "bin" / "docker")
        (directory / "bin" / "docker").write_text(FAKE.read_text().replace("/usr/bin/env python3", sys.executable))
        (directory / "bin" / "docker").chmod(0o755)
        self.environment = {
            "FAKE_DOCKER": str(self.home),
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
            "http_proxy": "http://127.0.0.1:9",
        }

    def container(self, name, state="running", code=0, restarts=0, started=0.0, oom=False, pid=0, created=None):
        value = {
            "Name": f"/{name}",
            "Id": name * 2,
            "RestartCount": restarts,
            "Created": stamp(started - 1 if created is None else created),
            "State": {"Status": state, "ExitCode": code, "OOMKilled": oom, "StartedAt": stamp(started), "Pid": pid},
        }
        temporary = self.home / f"{name}.tmp"
        temporary.write_text(json.dumps(value))
        temporary.replace(self.home / f"{name}.json")
        (self.home / f"{name}.log").touch()

    def say(self, name, *lines, at=0.0):
        with (self.home / f"{name}.log").open("a") as stream:
            for line in lines:
                stream.write(f"{stamp(at)} {line}\n")

    def once_seen(self, action):
        """Calls ``action`` soon after the containers' first state was read."""

        def wait():
            while not (self.home / "inspected").exists():
                time.sleep(0.02)
            time.sleep(0.3)
            action()

        threading.Thread(target=wait, daemon=True).start()

    def event(self, action):
        with (self.home / "events").open("a") as stream:
            stream.write(json.dumps({"Type": "container", "Action": action}) + "\n")

    def execute(self, source: bytes):
        done = subprocess.run(
            [sys.executable, "-"], input=source, capture_output=True, env=self.environment, timeout=30, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def ask(self, *names, health=(), wait=5.0, settle=0.3, since=None, known=False, **wanted):
        request = {
            "containers": [{"name": name, "since": since} for name in names],
            "units": [],
            "health": [
                {"name": name, "url": url, "known": known, "models": wanted.get("models")} for name, url in health
            ],
            "fatal": ["libatb", "EngineCore failed"],
            "wait": wait,
            "settle": settle,
            "fresh": 900,
            "tail": 100,
            "last": wanted.get("last", False),
            "begun": wanted.get("begun"),
            "back": wanted.get("back"),
            "clock": wanted.get("clock", False),
            "doing": wanted.get("doing", False),
        }
        code, out, err = self.execute(watch.program(request))
        assert code == 0, err.decode()
        lines = [line for line in out.decode().splitlines() if line.startswith(follower.MARK)]
        return json.loads(lines[0][len(follower.MARK) :])


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.fixture
def health():
    """An address that answers 503 until ``ready`` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.set()
            self.send_response(200 if server.ready.is_set() else 503)
            self.end_headers()
            self.wfile.write(server.bodies.get(self.path, b""))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ready, server.asked = threading.Event(), threading.Event()
    server.bodies = {}
    server.url = f"http://127.0.0.1:{server.server_port}/health"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_new_lines_come_after_a_moment(node):
    node.container("a")
    node.say("a", "first", "second", at=0.01)
    answer = node.ask("a")
    assert answer["reason"] == "lines"
    assert [line.partition(" ")[2] for line in answer["lines"]["a"]] == ["first", "second"]
    assert answer["containers"]["a"]["state"] == "running"


def test_known_lines_do_not_come_again(node):
    node.container("a", started=-5)
    node.say("a", "old", at=-4)
    node.say("a", "new", at=-3)
    first = node.ask("a")
    again = node.ask("a", since=first["lines"]["a"][0].partition(" ")[0])
    assert [line.partition(" ")[2] for line in again["lines"]["a"]] == ["new"]


def test_the_log_of_an_old_container_is_no_news(node):
    node.container("a", started=-3600)
    node.say("a", "libatb.so: cannot open", at=-3500)
    answer = node.ask("a", wait=0.6)
    assert (answer["reason"], answer["lines"]) == ("wait", {})


def test_a_fatal_line_answers_at_once_with_what_follows(node):
    node.container("a")
    node.say("a", "OSError: libatb.so: cannot open", "the end", at=0.01)
    answer = node.ask("a", wait=20, settle=15)
    assert answer["reason"] == "fatal"
    assert len(answer["lines"]["a"]) == 2


@pytest.mark.parametrize("state", ["exited", "restarting", "created", "missing"])
def test_a_container_that_does_not_run_answers_at_once(node, state):
    if state != "missing":
        node.container("a", state=state, code=1)
        node.say("a", "last words", at=0.01)
    node.container("b")
    answer = node.ask("a", "b", wait=20)
    assert answer["reason"] == "exit"
    assert answer["containers"]["a"]["state"] == state
    assert answer["containers"]["b"]["state"] == "running"
    assert [line.partition(" ")[2] for line in answer["lines"].get("a", [])] == ["last words"][: state != "missing"]


def test_an_end_while_it_follows_is_told(node):
    node.container("a")
    node.once_seen(lambda: (node.container("a", "exited", 1), node.event("die")))
    answer = node.ask("a", wait=20)
    assert (answer["reason"], answer["containers"]["a"]["exit_code"]) == ("exit", 1)


def test_a_restart_while_it_follows_is_told(node):
    node.container("a")
    node.once_seen(lambda: (node.container("a", restarts=1), node.event("start")))
    answer = node.ask("a", wait=20)
    assert (answer["reason"], answer["containers"]["a"]["restarts"]) == ("exit", 1)


def test_health_changes_are_told_past_any_proxy(node, health):
    node.container("a")
    threading.Timer(0.8, health.ready.set).start()
    answer = node.ask("a", health=[("p", health.url)], wait=20)
    assert answer["reason"] == "health"
    assert answer["health"]["p"] == {"ok": True, "detail": "HTTP 200", "says": None, "models": None}


def test_a_service_that_is_up_needs_no_log(node, health):
    node.container("a")
    health.ready.set()
    assert node.ask("a", health=[("p", health.url)])["reason"] == "health"
    assert "logs" not in (node.home / "calls").read_text()


def test_what_an_address_says_comes_with_its_health(node, health):
    node.container("a")
    health.ready.set()
    health.bodies = {
        "/health": b'{"status": "ok", "decode_instances": 2}',
        "/v1/models": b'{"object": "list", "data": [{"id": "tiny"}, {"id": "adapter"}]}',
    }
    told = node.ask("a", health=[("p", health.url)], models=health.url.replace("/health", "/v1/models"))["health"]["p"]
    assert told["says"] == {"status": "ok", "decode_instances": 2}
    assert told["models"] == ["tiny", "adapter"]
    health.bodies = {"/health": b"fine", "/v1/models": b'["tiny"]'}
    told = node.ask("a", health=[("p", health.url)], models=health.url.replace("/health", "/v1/models"))["health"]["p"]
    assert told == {"ok": True, "detail": "HTTP 200", "says": None, "models": None}


def test_the_clocks_that_stamp_lines_are_told_in_one_measure(node):
    node.container("a")
    before = time.time()
    (node.home / "clock").write_text("2026-08-22T18:00:00.250000000+08:00\n")
    told = node.ask("a", wait=0.1, clock=True)["clock"]
    assert told["docker"] == 1787392800.25
    assert before < told["system"] < time.time()
    assert node.ask("a", wait=0.1)["clock"] is None


def test_what_processes_are_doing_is_told_without_their_arguments(node):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--api-key=secret"]) as child:
        node.container("a", pid=child.pid)
        (told,) = node.ask("a", wait=0.1, doing=True)["doing"]["a"]
        child.kill()
    assert told["pid"] == child.pid
    assert "secret" not in json.dumps(told)
    assert told["state"] in "SRD"
    assert told["cpu"] >= 0
    assert told["read"] >= 0


def test_what_a_restarted_container_said_in_earlier_launches_is_history(node):
    node.container("a", restarts=3, started=-1, created=-3600)
    node.say("a", "OSError: libatb.so: cannot open", at=-3000)
    node.say("a", "ZMQError: Address already in use", at=-10)
    told = node.ask("a", begun=time.time() - 60)
    assert [line.partition(" ")[2] for line in told["lines"]["a"]] == ["ZMQError: Address already in use"]
    # Without a reading of the node, nobody knows where this launch begins.
    assert len(node.ask("a")["lines"]["a"]) == 2


def test_a_last_look_reads_what_is_there_and_follows_nothing(node):
    node.container("a")
    node.say("a", "first", "OSError: libatb.so: cannot open", at=0.01)
    node.container("b", "exited", 1)
    node.say("b", "the end", at=0.01)
    began = time.monotonic()
    told = node.ask("a", "b", wait=20, last=True)
    assert told["reason"] == "last"
    assert {name: len(lines) for name, lines in told["lines"].items()} == {"a": 2, "b": 1}
    assert "--follow" not in (node.home / "calls").read_text()
    assert time.monotonic() - began < 15


def test_docker_that_fails_is_an_error_and_nothing_is_left_behind(node, tmp_path):
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    assert "Cannot connect" in node.ask("a")["error"]


def test_the_follower_stands_alone_and_suits_old_pythons():
    import ast

    source = Path(follower.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.name.split(".")[0]
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Import)
        for name in statement.names
    } | {statement.module.split(".")[0] for statement in ast.walk(tree) if isinstance(statement, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


# The state machine


def process(name, host, kind="head", instance: str | None = "decode-0", data=16, health=True):
    return {
        "name": name,
        "kind": kind,
        "host": host,
        "instance": instance,
        "container": {"name": f"ascent-{name}"},
        "parallel": {"data": data},
        "health": f"http://192.0.2.1/{name}" if health and kind != "headless" else None,
    }


PLAN = {
    "processes": [
        process("prefill-0-head", "n1", instance="prefill-0"),
        process("decode-0-head", "n2"),
        process("decode-0-headless-1", "n3", kind="headless"),
    ]
}


def answer(host, *, lines=(), state="running", ok=False, restarts=0, code=0, oom=False, error=None):
    names = [item["name"] for item in PLAN["processes"] if item["host"] == host]
    return {
        "reason": "wait",
        "error": error,
        "containers": {
            f"ascent-{n}": {"state": state, "restarts": restarts, "exit_code": code, "oom": oom} for n in names
        },
        "lines": {f"ascent-{n}": list(lines) for n in names},
        "health": {n: {"ok": ok, "detail": "HTTP 200" if ok else "HTTP 503"} for n in names if "headless" not in n},
    }


def started(**options):
    state = watch.Watch(PLAN, CATALOGUE, 100.0, **options)
    for host in state.hosts:
        state.absorb(host, answer(host), 101.0)
    return state


def test_ready_when_all_heads_answer_and_headless_runs():
    state = started()
    assert state.verdict(101) is None
    state.absorb("n1", answer("n1", ok=True), 110.0)
    assert state.verdict(110) is None
    state.absorb("n2", answer("n2", ok=True), 120.0)
    assert state.verdict(120) == "ready"
    assert state.findings() == []
    assert state.progress(120).endswith("prefill-0: head ready   decode-0: head ready, headless-1 joined")
    metrics = state.metrics(120)
    assert metrics["ready_seconds"] == 20
    assert metrics["processes"]["prefill-0-head"]["ready_seconds"] == 10
    assert metrics["processes"]["decode-0-headless-1"]["ready_seconds"] == 20


def test_services_without_a_health_address_and_nodes_of_ray_are_ready_when_they_run():
    plan = {
        "processes": [
            {**process("etcd", "n1", kind="discovery", health=False), "instance": None, "parallel": None},
            process("serve-0-ray-head", "n1", kind="ray-head", instance="serve-0", health=False),
            process("serve-0-ray-worker-1", "n2", kind="ray-worker", instance="serve-0", health=False),
            process("serve-0-head", "n1", instance="serve-0"),
            process("router", "n1", kind="router", instance=None),
        ]
    }
    state = watch.Watch(plan, CATALOGUE, 100.0)

    def look(host, now, *, ok=(), state_of="running"):
        mine = [one["name"] for one in plan["processes"] if one["host"] == host]
        urls = [one["name"] for one in plan["processes"] if one["host"] == host and one["health"]]
        state.absorb(
            host,
            {
                "reason": "wait",
                "error": None,
                "containers": {f"ascent-{name}": {"state": state_of, "restarts": 0, "exit_code": 0} for name in mine},
                "lines": {},
                "health": {name: {"ok": name in ok, "detail": ""} for name in urls},
            },
            now,
        )

    look("n1", 101.0, ok=["router"])
    look("n2", 101.0)
    assert state.processes["etcd"].ready_at == 101.0
    assert state.processes["serve-0-ray-worker-1"].ready_at is None
    assert state.verdict(101.0) is None
    look("n1", 110.0, ok=["router", "serve-0-head"])
    assert state.verdict(110.0) == "ready"
    line = state.progress(110.0)
    assert "etcd: ready" in line
    assert "serve-0: ray-head joined, ray-worker-1 joined, head ready" in line
    look("n1", 111.0, ok=["router", "serve-0-head"], state_of="exited")
    assert state.verdict(124.0) == "failed"


def test_progress_names_only_what_moved():
    state = started()
    assert "decode-0: head started" in state.progress(101)
    assert state.progress(102) is None
    state.absorb(
        "n2", answer("n2", lines=["2026-01-01T00:00:01Z Loading safetensors checkpoint shards: 50% Completed"]), 103.0
    )
    assert " ".join(state.progress(103).split()) == "3.0 s of 30:00 min decode-0: head weights 50 %"


def test_progress_tells_what_endpoints_say():
    state = started()
    state.progress(101)
    router = {"ok": True, "detail": "HTTP 200", "says": {"status": "ok", "prefill_instances": 1, "decode_instances": 2}}
    state.absorb("n1", {**answer("n1"), "health": {"prefill-0-head": router}}, 102.0)
    served = {"ok": True, "detail": "HTTP 200", "says": None, "models": ["qwen3"]}
    state.absorb("n2", {**answer("n2"), "health": {"decode-0-head": served}}, 102.0)
    line = state.progress(102)
    assert "prefill-0: head ready, sees 1 prefill and 2 decode" in line
    assert "decode-0: head ready, serves qwen3" in line
    asked = {one["name"]: one["models"] for host in state.hosts for one in state.request(host, 103.0)["health"]}
    # Only an engine's own health address has a list of models beside it.
    assert set(asked.values()) == {None}


def test_the_first_exit_ends_it_after_a_moment_for_the_others():
    state = started()
    lines = ["2026-01-01T00:00:05Z [EI0006] wait socket establish timeout", "2026-01-01T00:00:06Z bye"]
    state.absorb("n3", answer("n3", state="exited", code=1, lines=lines), 110.0)
    assert state.verdict(110.5) is None
    echo = ["2026-01-01T00:00:09Z Engine core initialization failed"]
    state.absorb("n2", answer("n2", state="exited", code=1, lines=echo), 111.0)
    assert state.verdict(123) == "failed"
    found = state.findings()
    assert [(item["id"], item["host"]) for item in found] == [("C01", "n3"), ("process-exited", "n2")]
    assert "EI0006" in found[0]["evidence"]
    assert found[0]["evidence"].endswith("bye")
    assert found[0]["fix"]


def test_a_failure_is_over_when_every_host_has_handed_in_its_lines():
    state = started()
    ends(state, "n2", ["2026-01-01T00:00:09Z [EI0006] wait socket establish timeout"], 110.0)
    for host in ("n1", "n2"):
        state.absorb(host, {**answer(host), "reason": "last"}, 110.5)
    assert state.verdict(110.5) is None
    # The line that explains it is the last to arrive, and one that came before does not count twice.
    cause = ["2026-01-01T00:00:05Z libatb.so: cannot open shared object file"]
    for _ in range(2):
        state.absorb("n3", {**answer("n3", lines=cause), "reason": "last"}, 111.0)
    assert state.verdict(111.0) == "failed"
    assert state.findings()[0]["id"] == "B02"
    assert len(state.processes["decode-0-headless-1"].lines) == 1


def test_the_log_of_a_process_that_ended_is_waited_for_on_a_slow_node():
    state = started()
    state.absorb("n3", answer("n3", restarts=1), 110.0)
    assert state.verdict(115.0) is None
    cause = ["2026-01-01T00:00:05Z libatb.so: cannot open shared object file"]
    state.absorb("n3", {**answer("n3", lines=cause), "reason": "last"}, 118.0)
    assert state.verdict(118.0) == "failed"
    assert [item["id"] for item in state.findings()] == ["B02"]
    silent = started()
    silent.absorb("n3", answer("n3", restarts=1), 110.0)
    assert silent.verdict(122.0) == "failed", "but not for ever"


def test_a_fatal_line_ends_it_while_the_container_still_runs():
    state = started()
    state.absorb("n1", answer("n1", lines=["2026-01-01T00:00:05Z zmq.error.ZMQError: Address already in use"]), 110.0)
    assert state.verdict(115) == "failed"
    assert [item["id"] for item in state.findings()] == ["E01"]


def test_a_wrapper_alone_is_told_without_a_cause():
    state = started()
    state.absorb("n1", answer("n1", lines=["2026-01-01T00:00:05Z EngineCore failed to start."]), 110.0)
    assert state.verdict(115) == "failed"
    assert [(item["id"], item["host"]) for item in state.findings()] == [("start-failed", "n1")]


def test_exit_code_and_oom_speak_when_the_log_is_silent():
    state = started()
    state.absorb("n1", answer("n1", state="exited", code=0, oom=True), 110.0)
    assert [item["id"] for item in state.findings()][:1] == ["D28"]


def test_a_kill_from_outside_is_not_called_lack_of_memory():
    state = started()
    state.absorb("n1", answer("n1", state="exited", code=137), 110.0)
    found = state.findings()
    assert [item["id"] for item in found] == ["process-exited"]
    assert "Exit code 137 can mean" in found[0]["cause"]


def ends(state, host, lines, now, ended=None, wall=None, clock=None):
    """A host's answer whose containers ended, with the time of its clocks."""
    told = answer(host, state="exited", code=1, lines=lines)
    for container in told["containers"].values():
        container["ended"] = ended
    state.absorb(host, {**told, "clock": clock}, now, wall)


def test_the_first_cause_is_found_though_clocks_differ():
    # n3 failed 20 s before n2, and its container engine's clock is 90 s ahead. 1767225600 is 2026-01-01T00:00:00Z.
    lines = {
        "n2": ["2026-01-01T00:00:30Z [EI0006] wait socket establish timeout"],
        "n3": ["2026-01-01T00:01:40Z zmq.error.ZMQError: Address already in use"],
    }
    for clocks, first in (({"n3": 90.0}, "E01"), ({}, "C01")):
        state = started()
        for host in ("n2", "n3"):
            told = 1767225640.0 + clocks.get(host, 0.0)
            ends(state, host, lines[host], 110.0, wall=1767225640.0, clock={"system": 1767225640.0, "docker": told})
        found = state.findings()
        assert found[0]["id"] == first
        assert [(item["host"], item["severity"]) for item in found if item["id"] == "D24"] == (
            [("n3", "warning")] if clocks else []
        )


def test_figures_tell_when_things_last_went_on_and_when_processes_ended():
    state = started()
    state.absorb("n1", answer("n1", lines=["2026-01-01T00:00:01Z Loading safetensors checkpoint shards: 50%"]), 107.0)
    told = answer("n3", state="exited", code=1)
    told["containers"]["ascent-decode-0-headless-1"]["ended"] = 1767225609.5
    state.absorb("n3", {**told, "clock": {"system": 0.0, "docker": 1767225610.5}}, 110.0, 1767225600.5)
    figures = state.metrics(112.0)
    assert (figures["seconds"], figures["progress_seconds"], figures["ready_seconds"]) == (12.0, 7.0, None)
    assert figures["processes"]["decode-0-headless-1"]["ended"] == 1767225599.5, "by the controller's clock"
    assert figures["processes"]["decode-0-head"]["ended"] is None


def test_a_plan_of_jobs_alone_has_nothing_to_wait_for():
    state = watch.Watch({"processes": []}, CATALOGUE, 100.0)
    assert watch.run(state, {}, show=pytest.fail, clock=lambda: 102.0) == "ready"
    figures = state.metrics(102.0)
    assert (figures["ready_seconds"], figures["progress_seconds"], figures["processes"]) == (2.0, 0.0, {})
    assert (state.findings(), state.logs()) == ([], {})


def test_a_silent_end_before_the_first_telling_line_comes_first():
    state = started()
    echo = ["2026-01-01T00:00:09Z [EI0006] wait socket establish timeout"]
    ends(state, "n2", echo, 110.0, ended=1767225609.5)
    ends(state, "n3", [], 110.2, ended=1767225605.0)
    assert [(item["id"], item["host"]) for item in state.findings()] == [("process-exited", "n3"), ("C01", "n2")]


def test_who_lost_its_group_says_so():
    state = started()
    ends(state, "n3", ["2026-01-01T00:00:05Z libatb.so: cannot open shared object file"], 110.0, ended=1767225605.0)
    lost = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
    ends(state, "n2", [f"2026-01-01T00:00:06Z {lost}"], 110.2, ended=1767225606.0)
    found = state.findings()
    assert [(item["id"], item["host"]) for item in found] == [("B02", "n3"), ("process-exited", "n2")]
    assert "first finding" in found[1]["cause"]


def test_what_was_overcome_on_the_way_is_no_finding():
    state = started()
    lines = [
        "2026-01-01T00:00:01Z Waiting for 8 local, 8 remote core engine proc(s) to connect.",
        "2026-01-01T00:00:02Z go on",
    ]
    state.absorb("n2", answer("n2", lines=lines), 102.0)
    state.absorb("n1", answer("n1", state="exited", code=1), 110.0)
    (found,) = state.findings()
    assert found["id"] == "process-exited"
    assert found["cause"] == "Not known: it wrote nothing into its log."


def test_what_is_overcome_elsewhere_explains_a_process_that_ended_with_it():
    state = started()
    binding = [f"{stamp(1)} INFO starting", f"{stamp(2)} RuntimeError: taskset: failed to set pid 1's affinity"]
    state.absorb("n1", answer("n1", lines=binding, state="exited", code=1), 103)
    state.verdict(200)
    (told,) = state.findings()
    assert (told["id"], told["host"]) == ("D29", "n1")
    assert "prefill-0-head, line 2" in told["evidence"]
    # Its policy may have started it again before anybody looked; the first to be seen is then another of its group.
    state = started()
    state.absorb("n1", answer("n1", lines=binding, restarts=1), 103)
    state.absorb("n3", answer("n3", lines=[f"{stamp(3)} lost the front-end"], state="exited", code=1), 103)
    state.verdict(200)
    assert [(one["id"], one["host"]) for one in state.findings()] == [("D29", "n1"), ("process-exited", "n3")]
    # Said on the way and overcome, it is not what the process ended of.
    state = started()
    overcome = [f"{stamp(1)} taskset: failed to set pid 1's affinity", f"{stamp(2)} INFO going on without"]
    state.absorb(
        "n1", answer("n1", lines=[*overcome, f"{stamp(3)} ValueError: no such thing"], state="exited", code=1), 103
    )
    state.verdict(200)
    assert state.findings()[0]["id"] == "process-exited"


def test_a_failure_nobody_knows_says_so_and_shows_the_lines_that_tell_most():
    state = started()
    lines = [
        "2026-01-01T00:00:01Z (Worker_TP0 pid=9) INFO 01-01 00:00:01 loading",
        "2026-01-01T00:00:02Z (Worker_TP0 pid=9) Traceback (most recent call last):",
        "2026-01-01T00:00:02Z (Worker_TP0 pid=9) GearError: the gear box has no gear 5",
        "2026-01-01T00:00:03Z (Worker_TP1 pid=10) GearError: the gear box has no gear 6",
        "2026-01-01T00:00:03Z (EngineCore_DP0 pid=8) ERROR EngineCore failed to start.",
        *(f"2026-01-01T00:00:04Z (APIServer pid=1) INFO step {number} of shutting down" for number in range(20)),
    ]
    state.absorb("n1", answer("n1", state="exited", code=1, lines=lines), 110.0)
    (found,) = state.findings()
    assert (found["id"], found["host"]) == ("process-exited", "n1")
    assert "no gear 5" in found["evidence"]
    assert "no gear 6" not in found["evidence"], "the same in another number"
    assert "shutting down" not in found["evidence"]
    assert found["cause"].startswith("Not known: no entry of the catalogue")


def test_a_restart_by_policy_is_a_failure():
    state = started()
    state.absorb("n1", answer("n1", restarts=1), 110.0)
    assert state.verdict(123) == "failed"
    assert [item["id"] for item in state.findings()] == ["process-restarted"]


def test_an_old_restart_of_a_service_that_answers_is_history():
    state = watch.Watch(PLAN, CATALOGUE, 100.0)
    state.absorb("n3", answer("n3", restarts=2), 100.2)
    for host in ("n1", "n2"):
        state.absorb(host, answer(host, ok=True, restarts=1), 100.5)
    assert state.verdict(100.5) == "ready"


def test_an_old_restart_of_a_service_that_does_not_answer_is_a_failure():
    state = watch.Watch(PLAN, CATALOGUE, 100.0)
    for host in state.hosts:
        state.absorb(host, answer(host, restarts=int(host == "n3")), 100.5)
    assert [state.verdict(now) for now in (101, 103, 116)] == [None, None, "failed"]
    assert [(item["id"], item["host"]) for item in state.findings()] == [("process-restarted", "n3")]


def test_the_time_limit_names_who_is_behind():
    state = started(timeout=60)
    state.absorb("n1", answer("n1", ok=True), 110.0)
    state.absorb(
        "n2",
        answer("n2", lines=["2026-01-01T00:00:01Z Waiting for 8 local, 8 remote core engine proc(s) to connect."]),
        150.0,
    )
    assert state.verdict(159) is None
    assert state.verdict(160) == "failed"
    found = state.findings()
    assert [item["id"] for item in found] == ["D03", "D05"], "what kept it from going on comes first"
    assert "8 of 16 ranks" in found[1]["evidence"]
    assert "prefill" not in found[1]["evidence"]


def test_a_stall_names_the_silent_one():
    state = started(stall=30)
    for now in (110.0, 125.0, 140.0):
        notice = f"2026-01-01T00:00:{now - 100:02.0f}Z No available shared memory broadcast block found in 60 seconds."
        state.absorb("n2", answer("n2", lines=[notice]), now)
    state.absorb("n2", answer("n2", lines=["2026-01-01T00:01:00Z something else"]), 109.0)
    assert state.verdict(130) is None
    assert state.verdict(140) == "failed"
    assert [(item["id"], item["host"]) for item in state.findings()][:1] == [("D06", "n1")]


def test_a_stall_tells_what_every_rank_was_doing():
    state = started(stall=90)
    lines = [
        "2026-01-01T00:00:01Z (EngineCore_DP0 pid=5) INFO 01-01 00:00:01 HCCL waits for rank 8",
        "2026-01-01T00:00:01Z (EngineCore_DP1 pid=6) INFO 01-01 00:00:01 HCCL waits for rank 9",
        "2026-01-01T00:00:01Z (Worker_TP0 pid=7) Loading safetensors checkpoint shards: 25% Completed",
    ]
    state.absorb("n2", answer("n2", lines=lines), 110.0)
    assert not state.request("n2", 120.0)["doing"]
    assert state.request("n2", 141.0)["doing"]

    def doing(cpu, read):
        common = {"state": "R", "waits": "0", "read": 0}
        rank = {"pid": 7, "title": "VLLM::Worker_TP0", "cpu": 5.0, "read": read, "state": "S", "waits": "futex_wait"}
        return {"ascent-decode-0-head": [{"pid": 5, "title": "VLLM::EngineCore_DP0", "cpu": cpu, **common}, rank]}

    state.absorb("n2", {**answer("n2"), "doing": doing(10.0, 0)}, 141.0)
    state.absorb("n2", {**answer("n2"), "doing": doing(20.0, 4096)}, 151.0)
    assert state.verdict(199) is None
    assert state.verdict(200) == "failed"
    told = state.findings()[0]["evidence"]
    assert "EngineCore_DP0, EngineCore_DP1: last line: (EngineCore_DP1 pid=6)" in told
    assert "Worker_TP0: last line: (Worker_TP0 pid=7) Loading safetensors checkpoint shards: 25%" in told
    assert "VLLM::EngineCore_DP0 (pid 5): running, 100 % of a processor" in told
    assert "VLLM::Worker_TP0 (pid 7): sleeping, 0 % of a processor, waits in futex_wait" in told


def test_a_line_that_comes_again_is_no_progress():
    state = started(stall=30)
    for now in (110.0, 120.0, 130.0):
        again = (
            f"2026-01-01T00:00:{now - 100:02.0f}Z (APIServer pid=1) INFO 01-01 00:00:{now - 100:02.0f} [u.py:9] waiting"
        )
        state.absorb("n2", answer("n2", lines=[again]), now)
    assert state.verdict(139) is None
    assert state.verdict(140) == "failed"


@pytest.mark.parametrize(
    "line",
    [
        'INFO:     192.0.2.9:{port} - "GET /health HTTP/1.1" 200 OK',
        '(APIServer pid=1) INFO:     [2001:db8::9]:{port} - "GET /v1/models HTTP/1.1" 401 Unauthorized',
        '192.0.2.9 - - [01/Jan/2026:00:00:{port} +0000] "HEAD / HTTP/1.1" 200 0 "-" "curl/{port}"',
        '192.0.2.9:{port} - "POST /v1/completions HTTP/1.1" 500',
        "(APIServer pid=1) INFO 01-01 00:00:01 [loggers.py:259] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg"
        " generation throughput: 0.0 tokens/s, Running: 0 reqs, Waiting: 0 reqs, GPU KV cache usage: {port}.0%",
        '2026-01-01 00:00:00 ERROR http_request{{id="req-{port}"}}: vllm_router_rs::response: request'
        " failed with server error",
        "2026-01-01T00:00:{port}.123456Z  INFO vllm_router::core: waiting for 1 workers to become healthy",
    ],
)
def test_what_a_server_says_when_it_is_asked_is_no_progress(line):
    state = started(stall=30)
    for now in range(110, 131):
        lines = [f"2026-01-01T00:00:{now - 100:02.0f}Z {line.format(port=now - 100)}"]
        state.absorb("n2", answer("n2", lines=lines), float(now))
    # What is said again and again but for its time is new once.
    assert state.metrics(131.0)["progress_seconds"] == (10 if "workers" in line else 0)
    assert state.verdict(140) == "failed"
    assert state.findings()[0]["id"] == "D06"
    assert line.format(port=30) in state.logs()["decode-0-head"], "but it is kept and searched"


def test_requests_push_nothing_out_of_what_was_said_before():
    state = started(stall=30)
    for now in (110.0, 120.0, 130.0):
        second = f"2026-01-01T00:00:{now - 100:02.0f}"
        port = int(now) * 200
        asked = [f'{second}.{n:03d}Z INFO: 192.0.2.9:{port + n} - "GET /health HTTP/1.1" 200' for n in range(150)]
        again = f"{second}.9Z (APIServer pid=1) waiting"
        state.absorb("n2", answer("n2", lines=[*asked, again]), now)
    assert state.verdict(140) == "failed"


def test_what_serves_already_keeps_nothing_alive():
    state = started(stall=30)
    state.absorb("n1", answer("n1", ok=True), 110.0)
    for now in (120.0, 130.0, 139.0):
        lines = [f"2026-01-01T00:00:{now - 100:02.0f}Z INFO request {now} of somebody"]
        state.absorb("n1", answer("n1", ok=True, lines=lines), now)
    # That a process became ready counts for who waited for it.
    assert state.verdict(139.5) is None
    assert state.verdict(140) == "failed"
    assert [(item["id"], item["host"]) for item in state.findings()] == [("D06", "n2")]
    assert state.metrics(140)["progress_seconds"] == 10


def test_bytes_read_from_storage_are_progress_without_a_line():
    state = started(stall=30)
    for now, read in ((110.0, 0), (120.0, 5 * 2**20), (130.0, 9 * 2**20)):
        one = {"pid": 7, "title": "python3", "cpu": 0.0, "read": read, "state": "D", "waits": ""}
        state.absorb("n2", {**answer("n2"), "doing": {"ascent-decode-0-head": [one]}}, now)
    assert state.verdict(159) is None
    assert state.verdict(160) == "failed"


def test_a_lost_host_is_forgiven_a_few_times():
    state = started()
    for now in (110, 111, 112):
        state.lost("n2", "ssh: timeout", now)
    assert state.verdict(120) is None
    state.absorb("n2", answer("n2"), 121.0)
    for now in (130, 131, 132):
        state.absorb("n2", answer("n2", error="docker: no daemon"), now)
    assert state.verdict(140) is None
    state.lost("n2", "ssh: timeout", 141)
    assert state.verdict(145) == "failed"
    assert [(item["id"], item["host"]) for item in state.findings()] == [("host-not-followed", "n2")]


def test_hosts_without_a_connection_are_refused():
    with pytest.raises(AscentError, match="n2, n3"):
        watch.run(watch.Watch(PLAN, CATALOGUE, 0.0), {"n1": lambda source: (0, b"", b"")}, print)


# The whole way: action plugin, local connections, follower, fake docker

PLAYBOOK = """
- name: Launch
  hosts: clusters
  vars: {ascent_stage: launch, ascent_plan: %s}
  tasks:
    - name: Watch every node until the service is up
      watch_launch: {timeout: 30}
      run_once: true
"""


def deployed(directory, url):
    """A plan with one process on each of two hosts, its containers running on one fake node."""
    node = Node(directory)
    plan = {
        "processes": [
            process("decode-0-head", "n1") | {"health": url},
            process("decode-0-headless-1", "n2", kind="headless"),
        ]
    }
    for item in plan["processes"]:
        node.container(item["container"]["name"])
    return node, PLAYBOOK % json.dumps(plan)


def test_watching_a_launch_that_succeeds(tmp_path, health):
    node, playbook = deployed(tmp_path, health.url)
    node.say("ascent-decode-0-head", "Loading safetensors checkpoint shards: 50% Completed", at=0.01)

    def come_up():
        # Some looks after the watch has begun, however long the machine takes to begin it.
        health.asked.wait(60)
        time.sleep(5)
        health.ready.set()

    threading.Thread(target=come_up, daemon=True).start()
    outcome = play(tmp_path, playbook, environment=node.environment)
    assert outcome.rc == 0, outcome.output
    assert "decode-0: head weights 50 %" in outcome.output
    assert "headless-1 joined" in outcome.output
    launch = json.loads((outcome.latest / "launch.json").read_text())
    assert launch["metrics"]["launch"]["ready_seconds"] > 0
    assert "shards" in (outcome.latest / "logs" / "decode-0-head.log").read_text()


def test_watching_a_launch_that_fails(tmp_path, health):
    node, playbook = deployed(tmp_path, health.url)
    name = "ascent-decode-0-headless-1"
    node.say(name, "OSError: libatb.so: cannot open shared object file", at=0.01)
    node.container(name, "exited", code=1)
    outcome = play(tmp_path, playbook, environment=node.environment)
    assert outcome.rc == 2, outcome.output
    launch = json.loads((outcome.latest / "launch.json").read_text())
    assert [(item["id"], item["host"]) for item in launch["findings"]] == [("B02", "n2")]
    assert "libatb" in (outcome.latest / "logs" / "decode-0-headless-1.log").read_text()
    assert "B02" in outcome.output


def test_check_mode_watches_nothing(tmp_path, health):
    node, playbook = deployed(tmp_path, health.url)
    outcome = play(tmp_path, playbook, "--check", environment=node.environment)
    assert outcome.rc == 0, outcome.output
    assert not (node.home / "calls").exists()


def test_secrets_that_an_engine_tells_are_hidden_as_they_come():
    state = watch.Watch(PLAN, CATALOGUE, 0.0)
    name = next(iter(state.processes))
    process = state.processes[name]
    state._line(
        process, "2026-01-01T00:00:00Z INFO non-default args: {'api_key': ['k3y-of-the-engine'], 'port': 1}", 1.0
    )
    assert "k3y-of-the-engine" not in "".join(state.logs().values())
    assert "'port': 1" in process.lines[-1]


def test_threads_of_the_watch_say_nothing_themselves(tmp_path, health):
    """One that is cut off while it hands a line of -vvv on would lock out all later results of the run."""
    health.ready.set()
    node, playbook = deployed(tmp_path, health.url)
    outcome = play(tmp_path, playbook, "-vvv", environment=node.environment)
    assert outcome.rc == 0, outcome.output
    assert "task path:" in outcome.output, "it is as talkative as was asked"
    assert "ESTABLISH" not in outcome.output
    assert "EXEC" not in outcome.output


# Looking back


def test_logs_are_read_back_to_a_moment_or_to_the_last_start(node):
    node.container("a", started=-3600)
    node.say("a", "an hour ago", at=-3000)
    node.say("a", "EngineCore failed", at=-60)
    node.container("b", started=-30)
    node.say("b", "of the start before", at=-60)
    node.say("b", "of this one", at=-20)
    node.container("c", started=-30, restarts=2)
    node.say("c", "why it was restarted", at=-60)
    told = node.ask("a", "b", "c", last=True, back=time.time() - 900)["lines"]
    said = {name: [line.partition(" ")[2] for line in lines] for name, lines in told.items()}
    assert said == {"a": ["EngineCore failed"], "b": ["of this one"], "c": ["why it was restarted"]}


def test_a_search_tells_the_first_cause_and_who_gave_no_answer(node):
    for name in ("ascent-prefill-0-head", "ascent-decode-0-head"):
        node.container(name, started=-3600)
    node.say("ascent-decode-0-head", "RuntimeError: EI0002: The wait execution of the Notify register times out", at=-9)
    node.say("ascent-prefill-0-head", "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered", at=-5)
    state = watch.Watch(PLAN, CATALOGUE, 0.0, begun=dict.fromkeys(("n1", "n2", "n3"), time.time()))
    lost = lambda source: (255, b"", b"ssh: no route to host")  # noqa: E731
    unread = watch.search(state, {"n1": node.execute, "n2": node.execute, "n3": lost}, 900)
    assert list(unread) == ["n3"]
    assert "no route" in unread["n3"]
    told = state.told("check")
    assert [(one["id"], one["host"], one["stage"]) for one in told] == [("C02", "n2", "check"), ("D07", "n1", "check")]


SEARCH = """
- name: Check
  hosts: clusters
  vars: {ascent_stage: check}
  tasks:
    - name: Know the plan
      ansible.builtin.set_fact: {ascent_plan: %s, ascent_node: {clock: {last: %d}}, cacheable: true}
    - name: Search
      search_logs: {stage: check}
      run_once: true
"""


def test_searching_on_nodes_fails_for_nothing_it_finds(tmp_path, health):
    node, _ = deployed(tmp_path, health.url)
    node.say("ascent-decode-0-headless-1", "error code is 507014, aicore execution timed out", at=0.01)
    plan = json.dumps({**PLAN, "hosts": {}, "processes": [process("decode-0-headless-1", "n2", kind="headless")]})
    outcome = play(tmp_path, SEARCH % (plan, time.time()), environment=node.environment)
    assert outcome.rc == 0, outcome.output
    check = json.loads((outcome.latest / "check.json").read_text())
    assert [(item["id"], item["host"]) for item in check["findings"]] == [("D27", "n2")]
    assert "507014" in (outcome.latest / "logs" / "decode-0-headless-1.log").read_text()
