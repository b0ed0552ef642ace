"""Weights from a source to several hosts, each of which is a directory here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ascent import weights
from ascent_controller import weights_spread
from sandbox.images.services import hub
from sandbox.lib import plan, site_files
from tests.unit.weights_hosts import MODEL, PLACE, Cluster

SHARD_BYTES = 3 << 20
SHARDS = 3
ENTRY = {"id": MODEL, "tags": ["v1.0"], "shards": SHARDS, "shard_bytes": SHARD_BYTES}
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def srv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("srv")
    variables = {"sandbox_subnet": "198.18.0.0/18", "sandbox_services": "198.18.0.2", "sandbox_profile": "a3"}
    boxed = plan.from_variables(
        "c", {**variables, "sandbox_hub_models": [ENTRY]}, {"n": {"ansible_host": "198.18.0.11"}}
    )
    for file in site_files.site_files(boxed):
        path = root / Path(file.path).relative_to("/srv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    return root


@pytest.fixture
def site(srv: Path) -> Iterator[hub.Site]:
    with hub.Site(srv, "127.0.0.1") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def address(site: hub.Site) -> str:
    return f"http://127.0.0.1:{site.server_address[1]}"


def spoil(site: hub.Site, *rules: dict) -> None:
    site.faults.set(list(rules))


def files(srv: Path, revision: str = "main") -> dict[str, bytes]:
    folder = srv / "hub" / MODEL / revision
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sent(site: hub.Site, name: str = ".safetensors") -> int:
    """Bytes of bodies that the hub sent for files whose name ends so."""
    return sum(line["bytes"] for line in site.log if urllib.request.unquote(line["path"]).endswith(name))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    made: list[Cluster] = []

    def boot(count: int, processes: bool = False) -> Cluster:
        made.append(Cluster(tmp_path / f"cluster-{len(made)}", count, processes))
        return made[-1]

    yield boot
    for one in made:
        for host in one.hosts:
            for lock in Path(one.roots[host], "run/ascent").glob("*.lock"):
                text = lock.read_text().split()
                assert not text or not Path(f"/proc/{text[0]}").exists(), "a job was left behind"


def whole(folder: Path, expected: dict[str, bytes]) -> None:
    for name, content in expected.items():
        assert (folder / name).read_bytes() == content, name
    assert weights.inspect(str(folder))["complete"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("modelscope", PLACE),
        ("huggingface", "/root/.cache/huggingface/hub/models--tiny-org--Tiny-0.5B"),
        ("modelers", "/data/tiny"),
    ],
)
def test_one_copy_comes_from_the_hub_and_all_hosts_have_it(
    site: hub.Site, srv: Path, cluster: Any, source: str, place: str
) -> None:
    made = cluster(4)
    done = made.fetch(place, source, endpoint=address(site))
    assert done.found == []
    expected = files(srv)
    for host in made.hosts:
        whole(Path(weights.content(str(made.path(host, place)))), expected)
        assert not list(made.path(host, place).parent.rglob("*.ascent-partial*"))
        assert weights.read_record(weights.content(str(made.path(host, place))))
    assert sent(site) == sum(len(content) for name, content in expected.items() if name.endswith(".safetensors"))
    told = done.metrics()["hosts"]
    assert told["n1"]["from"].startswith(f"{source} {MODEL}")
    assert {told[host]["from"] for host in made.hosts[1:]} == {"peers"}
    assert weights_spread.due(done.model, made.facts(place)) == []


def test_a_host_that_has_the_model_gives_it_and_the_hub_is_not_asked(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(3)
    place = made.path("n2")
    place.mkdir(parents=True)
    for name, content in files(srv).items():
        (place / name).write_bytes(content)
    site.log.clear()
    done = made.fetch(endpoint="http://127.0.0.1:9")
    assert done.found == []
    assert len(site.log) == 0
    for host in made.hosts:
        whole(made.path(host), files(srv))


def test_a_broken_connection_is_resumed(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    spoil(site, {"fault": "break", "match": f"*{SHARD}", "bytes": 1 << 20, "times": 1})
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))
    assert sent(site, SHARD) == len(files(srv)[SHARD]), "no byte came twice"


def test_a_hub_that_is_down_for_a_moment_is_asked_again(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    spoil(site, {"fault": "unavailable", "match": "*", "times": 2})
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))


@pytest.mark.parametrize(
    ("fault", "id", "words"),
    [
        ({"fault": "checksum", "match": f"*{SHARD}", "bytes": 1000}, "D34", ["SHA-256", SHARD, "fetched twice"]),
        ({"fault": "truncate", "match": f"*{SHARD}", "bytes": 1000}, "D19", [SHARD, "ends after 1000 of"]),
        ({"fault": "unavailable", "match": "*", "status": 500}, "D35", ["500"]),
    ],
)
def test_what_the_hub_does_wrong_is_named_and_nothing_is_shown(
    site: hub.Site, cluster: Any, fault: dict, id: str, words: list[str]
) -> None:
    made = cluster(3)
    spoil(site, fault)
    done = made.fetch(endpoint=address(site))
    assert [item["id"] for item in done.found] == [id], done.found
    assert done.found[0]["host"] == "n1"
    assert all(word in done.found[0]["evidence"] for word in words), done.found
    assert done.found[0]["fix"]
    for host in made.hosts:
        assert not made.path(host).exists()
        assert weights.inspect(str(made.path(host)))["present"] is False


def test_after_a_wrong_file_only_that_file_comes_again(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    spoil(site, {"fault": "checksum", "match": f"*{SHARD}", "bytes": 1000})
    assert made.fetch(endpoint=address(site), parallel=1).found
    spoil(site)
    site.log.clear()
    assert made.fetch(endpoint=address(site)).found == []
    assert sent(site, "model-00001-of-00003.safetensors") == 0
    whole(made.path("n1"), files(srv))


def test_a_hub_out_of_reach_is_named(cluster: Any) -> None:
    done = cluster(2).fetch(endpoint="http://127.0.0.1:9", attempts=1)
    assert [(item["id"], item["host"]) for item in done.found] == [("D35", "n1")]
    assert "weights_endpoint" in done.found[0]["fix"]


def test_a_model_or_a_revision_that_is_not_there_is_named(site: hub.Site, cluster: Any) -> None:
    done = cluster(1).fetch(endpoint=address(site), revision="v9")
    assert [item["id"] for item in done.found] == ["D36"]
    assert "404" in done.found[0]["evidence"]


def test_a_truncated_shard_on_the_host_gets_its_end_only(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    made.fetch(endpoint=address(site))
    os.truncate(made.path("n1") / SHARD, 2 << 20)
    assert weights_spread.due({"revision": None}, made.facts()) == ["n1"]
    site.log.clear()
    assert made.fetch(endpoint=address(site)).found == []
    assert sent(site) == len(files(srv)[SHARD]) - (2 << 20)
    whole(made.path("n1"), files(srv))


def test_a_file_changed_behind_the_record_is_noticed_and_comes_again(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    made.fetch(endpoint=address(site))
    path = made.path("n1") / SHARD
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")
    assert made.facts()["n1"]["altered"] == [SHARD]
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))


def test_a_restored_backup_needs_no_network(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    made.fetch(endpoint=address(site))
    os.utime(made.path("n1") / SHARD)
    site.log.clear()
    assert made.fetch(endpoint="http://127.0.0.1:9").found == []
    assert len(site.log) == 0
    whole(made.path("n1"), files(srv))


def test_a_mount_of_its_own_is_filled_with_what_shows_the_model_last(
    site: hub.Site, srv: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster(1)
    place = made.path("n1")
    place.mkdir(parents=True)
    (place / "note.txt").write_text("mine")
    (place / SHARD).write_bytes(files(srv)[SHARD][:1000])
    ismount, moved, replace = os.path.ismount, [], os.replace
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(place) or ismount(path))
    monkeypatch.setattr(os, "replace", lambda old, new: (moved.append(Path(new)), replace(old, new))[1])
    assert made.fetch(endpoint=address(site)).found == []
    whole(place, files(srv))
    assert sent(site, SHARD) == len(files(srv)[SHARD]) - 1000
    assert (place / "note.txt").read_text() == "mine"
    shown = [path.name for path in moved if path.parent == place]
    assert shown[-3:] == ["config.json", "model.safetensors.index.json", ".ascent-weights.json"]
    assert not list(place.glob(".ascent-partial*"))


def test_a_disk_that_fills_up_on_the_way_is_told(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    partial = made.path("n1").with_name(".Tiny-0___5B.ascent-partial")
    partial.mkdir(parents=True)
    (partial / f"{SHARD}.part").symlink_to("/dev/full")
    done = made.fetch(endpoint=address(site))
    assert [item["id"] for item in done.found] == ["D16"]
    assert "No space left" in done.found[0]["evidence"]
    assert not made.path("n1").exists()
    (partial / f"{SHARD}.part").unlink()
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))


def test_a_place_that_can_not_be_written_is_told(site: hub.Site, cluster: Any) -> None:
    made = cluster(1)
    parent = made.path("n1").parent.parent
    parent.mkdir(parents=True)
    (parent / "tiny-org").write_text("a file")
    done = made.fetch(endpoint=address(site))
    assert [item["id"] for item in done.found] == ["D37"]
    assert "Not a directory" in done.found[0]["evidence"]
    assert sent(site) == 0


def test_a_file_that_somebody_edited_is_kept_aside(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1)
    made.fetch(endpoint=address(site))
    (made.path("n1") / "config.json").write_text('{"edited": true}')
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))
    assert (made.path("n1") / "config.json.before-ascent").read_text() == '{"edited": true}'


def test_another_revision_replaces_what_differs(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(2)
    made.fetch(endpoint=address(site))
    model = {"revision": "v1.0"}
    assert weights_spread.due(model, made.facts()) == made.hosts
    assert made.fetch(endpoint=address(site), revision="v1.0").found == []
    for host in made.hosts:
        whole(made.path(host), files(srv, "v1.0"))
    assert weights_spread.due(model, made.facts()) == []


def test_hosts_of_one_file_system_write_it_once(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(3)
    share = made.folder / "share"
    share.mkdir()
    for host in ("n1", "n3"):
        parent = made.path(host, "/share").parent
        parent.mkdir(parents=True, exist_ok=True)
        (parent / "share").symlink_to(share)
    # n2 has a disk of its own.
    done = made.fetch("/share/tiny", endpoint=address(site))
    assert done.found == []
    assert set(done.states) == {"n1", "n2"}, "n3 sees what n1 writes"
    for host in made.hosts:
        whole(made.path(host, "/share/tiny"), files(srv))
    assert sorted(path.name for path in share.iterdir()) == ["tiny"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_controller_that_is_killed_leaves_no_job_and_the_next_run_goes_on(
    site: hub.Site, srv: Path, cluster: Any
) -> None:
    made = cluster(1, processes=True)
    spoil(site, {"fault": "slow", "match": "*.safetensors", "rate": 1 << 20})
    killed = made.spread(endpoint=address(site), patience=1, parallel=1)
    killed._start(["n1"], killed.source, False)
    wait_for(lambda: sent(site) > 1 << 20)
    # Nobody asks for its state any more.
    wait_for(lambda: not killed.ask("n1", "look")["weights"]["present"] and _idle(made, "n1"))
    before = sent(site)
    spoil(site)
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))
    total = sum(len(content) for name, content in files(srv).items() if name.endswith(".safetensors"))
    # What was on its way when the job ended may come again.
    assert total <= sent(site) < total + (1 << 20), before


def _idle(made: Cluster, host: str) -> bool:
    state = json.loads(next(Path(made.roots[host], "run/ascent").glob("*.json")).read_text() or "{}")
    return state.get("phase") == "stopped" and not Path(f"/proc/{state['pid']}").exists()


def test_a_job_that_is_killed_is_told_of_and_the_next_run_goes_on(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(1, processes=True)
    spoil(site, {"fault": "slow", "match": "*.safetensors", "rate": 1 << 20})
    one = made.spread(endpoint=address(site))
    runs = threading.Thread(target=one.run, args=(one.source,))
    runs.start()
    wait_for(lambda: sent(site) > 1 << 20)
    lock = next(Path(made.roots["n1"], "run/ascent").glob("*.lock"))
    os.kill(int(lock.read_text().split()[0]), signal.SIGKILL)
    runs.join()
    assert [item["id"] for item in one.found] == ["D37"]
    spoil(site)
    assert made.fetch(endpoint=address(site)).found == []
    whole(made.path("n1"), files(srv))


def sums(folder: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def tree(srv: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tree" / MODEL
    folder.mkdir(parents=True)
    for name, content in files(srv).items():
        (folder / name).write_bytes(content)
    sums(folder)
    return tmp_path / "tree"


@pytest.mark.parametrize("spread", [True, False])
def test_a_directory_of_the_controller_is_given_to_one_host_and_spread(
    srv: Path, tree: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, spread: bool
) -> None:
    monkeypatch.setattr(weights_spread, "_CHUNK", 1 << 20)
    made = cluster(3)
    done = made.fetch(archive=str(tree), source="local", spread=spread)
    assert done.found == []
    assert [state["source"] == "peers" for state in done.states.values()] == [False, spread, spread]
    for host in made.hosts:
        whole(made.path(host), files(srv))


def test_a_directory_of_the_controller_with_a_damaged_file_is_refused(tree: Path, cluster: Any) -> None:
    path = tree / MODEL / SHARD
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    made = cluster(2)
    done = made.fetch(archive=str(tree))
    assert [(item["id"], item["host"]) for item in done.found] == [("D34", "n1")]
    assert not made.path("n1").exists()


@pytest.mark.parametrize("kind", ["http", "directory"])
def test_a_mirror_holds_trees_with_checksums(srv: Path, tree: Path, tmp_path: Path, cluster: Any, kind: str) -> None:
    made = cluster(2)
    with hub.Site(tmp_path, "127.0.0.1") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"{address(server)}/tree" if kind == "http" else str(tree)
        assert made.fetch(mirror=mirror).found == []
        server.shutdown()
    for host in made.hosts:
        whole(made.path(host), files(srv))


def test_rsync_brings_a_tree_and_the_end_of_a_broken_copy(srv: Path, tree: Path, cluster: Any) -> None:
    made = cluster(2)
    # What an earlier run left of two files: the right beginning of one, something else of the other.
    partial = made.path("n1").with_name(".Tiny-0___5B.ascent-partial")
    partial.mkdir(parents=True)
    (partial / f"{SHARD}.part").write_bytes(files(srv)[SHARD][: 1 << 20])
    (partial / "config.json.part").write_bytes(b"x")
    one = made.spread(source="local")
    one.run({"kind": "rsync", "endpoint": str(tree), "id": MODEL, "revision": ""})
    assert one.found == []
    for host in made.hosts:
        whole(made.path(host), files(srv))
    assert one.metrics()["hosts"]["n1"]["resumed"] == (1 << 20) + 1
    shutil.rmtree(made.path("n1"))
    again = made.spread(source="local")
    again.settings = dataclasses.replace(again.settings, spread=False)
    again.run({"kind": "rsync", "endpoint": str(tree), "id": "tiny-org/Missing", "revision": ""})
    assert [item["id"] for item in again.found] == ["D36"]


def test_a_mirror_without_checksums_says_how_to_make_them(srv: Path, tree: Path, cluster: Any) -> None:
    (tree / MODEL / "SHA256SUMS").unlink()
    done = cluster(1).fetch(mirror=str(tree))
    assert [item["id"] for item in done.found] == ["D36"]
    assert "sha256sum" in done.found[0]["fix"]


def test_what_would_be_fetched_is_told_without_writing_anything(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(2)
    one = made.spread(endpoint=address(site))
    would = one.predict(one.source)
    total = sum(len(content) for content in files(srv).values())
    assert (would["files"], would["bytes"], would["hosts"]) == (len(files(srv)), total, made.hosts)
    assert sent(site) == 0
    assert not any(Path(root).iterdir() for root in made.roots.values() if any(Path(root).iterdir()))


def test_a_token_reaches_the_hub_and_no_file_nor_other_host(site: hub.Site, cluster: Any) -> None:
    seen: list[str | None] = []
    serve = hub.Handler._serve

    def note(self: Any) -> None:
        seen.append(self.headers.get("Authorization"))
        serve(self)

    secret = "hf_" + "s3cret"
    made = cluster(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub.Handler, "do_GET", note)
        done = made.fetch(endpoint=address(site), token=secret)
    assert done.found == []
    assert set(seen) == {f"Bearer {secret}"}
    for path in made.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert secret not in repr(done.settings) + "".join(made.lines)


def test_nodes_are_processes_of_their_own(site: hub.Site, srv: Path, cluster: Any) -> None:
    made = cluster(2, processes=True)
    done = made.fetch(endpoint=address(site))
    assert done.found == []
    for host in made.hosts:
        whole(made.path(host), files(srv))
    assert {host: state["phase"] for host, state in done.states.items()} == {"n1": "done", "n2": "done"}


def test_progress_tells_share_rate_and_time_left(site: hub.Site, cluster: Any) -> None:
    made = cluster(1)
    spoil(site, {"fault": "slow", "match": "*.safetensors", "rate": 1 << 20})
    assert made.fetch(endpoint=address(site)).found == []
    lines = "\n".join(made.lines)
    assert f"weights of {MODEL} from modelscope {MODEL}" in lines
    assert " % of 9.4 MB" in lines
    assert "MB/s" in lines
    assert " left" in lines


def test_hosts_with_different_weights_are_told() -> None:
    model = {"id": MODEL, "directory": PLACE}
    one = {"complete": True, "bytes": 100, "commit": "a"}
    assert weights_spread.differing(model, {"n1": one, "n2": {**one, "commit": None}, "n3": None}) == []
    (found,) = weights_spread.differing(model, {"n1": one, "n2": {**one, "commit": "b"}})
    assert (found["id"], found["severity"]) == ("weights-differ", "warning")
    (found,) = weights_spread.differing(model, {"n1": one, "n2": {**one, "bytes": 99}, "n3": one})
    assert (found["severity"], found["evidence"]) == ("error", "n1, n3: bytes 100; n2: bytes 99")


def test_who_copies_from_whom_is_a_tree_with_a_bound() -> None:
    chains = weights_spread.ancestors([f"n{number}" for number in range(64)], 2)
    parents = [chain[0] for chain in chains.values() if chain]
    assert max(map(parents.count, parents)) == 2
    assert max(map(len, chains.values())) == 6
    assert all(chain[-1] == "n0" for chain in chains.values() if chain)
