"""The task that brings weights, in real playbook runs: what it says without touching anything."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.images.services import hub
from tests.unit.playbook_runs import ROOT, play

MODEL = "a/b"
SECRET = "hf_" + "s3cret"
SHARD = b"\x02\0\0\0\0\0\0\0{}"
PLAYBOOK = """
- hosts: clusters
  gather_facts: false
  vars: {{weights_token: {secret}, ascent_stage: provision}}
  tasks:
    - name: Read the nodes
      tell:
        say: {{ansible_facts: {{ascent_node: {{weights: {weights}}}}}}}

    - name: Make sure that the weights are complete
      model_weights:
        model: a/b
        source: huggingface
        endpoint: {endpoint}
        proxy: none
        fetch: "{{{{ fetch | default(true) }}}}"
"""


@pytest.fixture
def asked() -> list[str | None]:
    return []


@pytest.fixture
def site(tmp_path: Path, asked: list[str | None], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "srv" / "hub" / MODEL / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(SHARD)
    serve = hub.Handler._serve

    def note(self: Any) -> None:
        asked.append(self.headers.get("Authorization"))
        serve(self)

    monkeypatch.setattr(hub.Handler, "do_GET", note)
    with hub.Site(tmp_path / "srv", "127.0.0.1") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def facts(place: Path, **changes: Any) -> str:
    lists = {"missing": [], "pointers": [], "truncated": [], "altered": []}
    judged = {"directory": str(place), "present": False, "complete": False, "bytes": 0, **lists}
    return json.dumps({**judged, "commit": None, "revision": None, **changes})


def run(tmp_path: Path, site: str, *arguments: str, **changes: Any) -> Any:
    place = tmp_path / "cache" / "models--a--b"
    text = PLAYBOOK.format(secret=SECRET, endpoint=site, weights=facts(place, **changes))
    extra = {"ANSIBLE_LIBRARY": f"{tmp_path}/library:{ROOT}/library", "ANSIBLE_MODULE_UTILS": f"{ROOT}/module_utils"}
    return play(tmp_path, text, *arguments, environment=extra)


def test_a_dry_run_says_what_would_come_and_shows_no_secret(tmp_path: Path, site: str, asked: list[str | None]) -> None:
    done = run(tmp_path, site, "--check", "--diff", "-vvv")
    assert done.rc == 0, done.output
    assert "2 files, 12 B from huggingface a/b" in done.output
    assert "n1, n2, n3" in done.output
    assert set(asked) == {f"Bearer {SECRET}"}, "the hub knows who asks"
    assert SECRET not in done.output
    records = [path for path in done.runs.rglob("*") if path.is_file()]
    assert records
    assert all(SECRET.encode() not in path.read_bytes() for path in records)
    assert not (tmp_path / "cache").exists()


def test_complete_weights_cost_no_question(tmp_path: Path, site: str, asked: list[str | None]) -> None:
    done = run(tmp_path, site, present=True, complete=True)
    assert done.rc == 0, done.output
    assert asked == []


def test_with_fetching_off_the_finding_says_how_to_fetch(tmp_path: Path, site: str, asked: list[str | None]) -> None:
    done = run(tmp_path, site, "-e", "fetch=false")
    assert done.rc != 0
    assert "D17" in done.output
    assert "weights_fetch=true" in " ".join(done.output.split())
    assert asked == []
