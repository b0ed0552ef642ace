"""Failures on demand: what SIM_FAIL may say, and that each signature is found by what reads real logs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ascent import diagnosis
from sandbox.engine.sim import faults, log
from sandbox.engine.sim.log import EngineError
from sandbox.engine.sim.signatures import ALIASES, SIGNATURES
from tests.unit.engine_harness import ROOT, free_ports, get, make_machine, post, serve
from tests.unit.engine_harness import Process as Engine

FILES = sorted((ROOT / "catalog/findings").glob("*.yml"))
DATA = [yaml.safe_load(path.read_text()) for path in FILES]
CATALOGUE = {"findings": [entry for data in DATA for entry in data.get("findings", [])]}
NAMES = {entry["name"]: entry["id"] for entry in CATALOGUE["findings"]}
CONFIG = SimpleNamespace(
    start_rank=8,
    ranks=range(8, 12),
    core=lambda rank: f"EngineCore_DP{rank}",
    worker=lambda rank: f"Worker_DP{rank}_TP0",
)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_every_signature_is_found_by_the_diagnosis(name, capsys):
    (fault,) = faults.parse(f"weights:{name}")
    log.failure(faults.error(CONFIG, fault))
    found = diagnosis.diagnose(capsys.readouterr().out, CATALOGUE)
    assert found, "no finding at all"
    assert found[0]["id"] == NAMES[name]


def test_names_ids_and_aliases_are_those_of_the_catalogue():
    assert set(SIGNATURES) <= set(NAMES)
    assert set(ALIASES.values()) <= set(SIGNATURES)
    for identity, name in faults.IDS.items():
        if name != "hang":
            assert NAMES[name] == identity
    assert set(SIGNATURES) == set(faults.IDS.values()) - {"hang"}


def test_orders_of_the_start_and_of_requests():
    given = "weights@8:EI0006;ready@9:slow=4;ready:leak=2/30;config:delay=1.5;request:http-500%3;kv:a; odd: text"
    crash, slow, leak, delay, answer, text = faults.parse(given)
    assert (crash.phase, crash.rank, crash.kind, crash.signature) == (
        "weights", 8, "link-timeout", SIGNATURES["link-timeout"],
    )  # fmt: skip
    assert (slow.rank, slow.amount, slow.signature) == (9, 4.0, None)
    assert (leak.amount, leak.most) == (2.0, 30)
    assert (delay.phase, delay.amount) == ("config", 1.5)
    assert (answer.kind, answer.every, answer.signature) == ("http-500", 3, None)
    assert text.kind == "a; odd: text"
    assert text.signature.message == "a; odd: text"
    every = faults.parse(given)
    assert faults.of(every, "weights", range(8)) == []
    assert faults.of(every, "weights", range(8, 16)) == [crash]
    assert [faults.slowness(every, rank) for rank in (8, 9)] == [1.0, 4.0]
    assert [bool(faults.for_request(every, range(8), number)) for number in range(1, 7)] == [False, False, True] * 2
    assert faults.parse("request:C02")[0].signature == SIGNATURES["notify-timeout"]
    assert faults.parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere:oom", "wanted PHASE"),
        ("weights", "wanted PHASE"),
        ("weights:", "wanted PHASE"),
        ("weights:slow=2", "slow belongs to ready"),
        ("request:delay=2", "delay belongs to a phase of the start"),
        ("weights:empty", "empty belongs to the phase request"),
    ],
)
def test_orders_that_say_nothing_are_refused(text, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        faults.parse(text)
    monkeypatch.setenv("SIM_FAIL", text)
    with pytest.raises(EngineError, match=message):
        faults.orders()


def test_a_leak_stops_where_it_may(monkeypatch):
    monkeypatch.setattr(faults, "MEGABYTE", 8)
    taken: list[float] = []

    async def wait(seconds: float) -> None:
        taken.append(seconds)

    async def run() -> None:
        monkeypatch.setattr(faults.asyncio, "sleep", wait)
        task = asyncio.ensure_future(faults.leak(faults.parse("ready:leak=4/12")[0]))
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        task.cancel()

    asyncio.run(run())
    assert len(taken) == 3


def test_an_engine_obeys(tmp_path: Path):
    """A fault that it lives with, one that kills the container as the kernel does, one that is a mistake."""
    root = make_machine(tmp_path / "machine")
    port = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    body = {"model": "tiny", "prompt": "a b c", "max_tokens": 2}
    orders = "kv:delay=0.2;request:http-500%2;ready:slow=2"
    engine = Engine(root, serve(port), tmp_path / "log", {"SIM_FAIL": orders})
    engine.wait_for("Application startup complete")
    assert [post(f"{url}/v1/completions", body)[0] for _ in range(4)] == [200, 500, 200, 500]
    assert get(f"{url}/health")[0] == 200
    assert engine.stop() == 0
    killed = Engine(root, serve(port), tmp_path / "killed", {"SIM_FAIL": "memory:D28"})
    assert killed.exit() == 137
    assert "Out of memory: Killed process" in killed.text()
    assert "Traceback" not in killed.text()
    wrong = Engine(root, serve(port), tmp_path / "wrong", {"SIM_FAIL": "wieghts:oom"})
    assert wrong.exit() == 1
    assert "SIM_FAIL has 'wieghts:oom', wanted PHASE" in wrong.text()
