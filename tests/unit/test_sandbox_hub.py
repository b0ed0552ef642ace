"""The site's own server: model hubs as their clients ask for them, package mirrors, and faults on request."""

import hashlib
import http.client
import json
import ssl
import struct
import threading
import urllib.request
from pathlib import Path

import pytest

from sandbox.images.services import hub
from sandbox.lib import engine, lifecycle, plan, site_files

MODEL = "tiny-org/Tiny-0.5B"
SHARD = "model-00002-of-00003.safetensors"
VARIABLES = {"sandbox_subnet": "198.18.0.0/18", "sandbox_services": "198.18.0.2", "sandbox_profile": "a3"}
HOSTS = {"a3-01": {"ansible_host": "198.18.0.11"}}
ENTRY = {"id": MODEL, "tags": ["v1.0"], "shards": 3, "shard_bytes": 32768, "config": {"model_type": "qwen3"}}


def sandbox(**changes):
    return plan.from_variables("c", {**VARIABLES, **changes}, HOSTS)


def write(root, files):
    for file in files:
        path = root / Path(file.path).relative_to("/srv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("srv")
    write(directory, site_files.site_files(sandbox(sandbox_hub_models=[ENTRY])))
    nested = directory / "hub" / MODEL / "main" / "assets" / "chat"
    nested.mkdir(parents=True)
    (nested / "template.jinja").write_text("{{ messages }}")
    packages = directory / "packages" / "24.1"
    packages.mkdir(parents=True)
    (packages / "Ascend-hdk_24.1 (arm).run").write_bytes(b"#!/bin/sh\n" * 1000)
    return directory


@pytest.fixture(scope="module")
def site(root):
    with hub.Site(root, "127.0.0.1") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def healthy(site):
    site.faults.set([])
    site.log.clear()


class Reply:
    def __init__(self, response):
        self.status, self.headers, self.reason = response.status, response.headers, None
        try:
            self.body = response.read()
        except http.client.IncompleteRead as error:
            self.body, self.reason = error.partial, "broken"

    @property
    def json(self):
        return json.loads(self.body)


def ask(site, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection(*site.server_address, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return Reply(connection.getresponse())
    finally:
        connection.close()


def stored(root, name=SHARD, revision="main"):
    return (root / "hub" / MODEL / revision / name).read_bytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def modelscope_file(name=SHARD, revision="master"):
    return f"/api/v1/models/{MODEL}/repo?Revision={revision}&FilePath={name}"


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_a_model_is_described_at_branch_tag_and_commit_alike(site):
    main = ask(site, f"/api/models/{MODEL}").json
    assert main["id"] == MODEL
    assert len(main["sha"]) == 40
    assert {"rfilename": SHARD} in main["siblings"]
    assert ask(site, f"/api/models/{MODEL}/revision/main").json == main
    assert ask(site, f"/api/models/{MODEL}/revision/{main['sha']}").json == main
    tagged = ask(site, f"/api/models/{MODEL}/revision/v1.0").json
    assert tagged["sha"] != main["sha"]
    refs = ask(site, f"/api/models/{MODEL}/refs").json
    assert [branch["targetCommit"] for branch in refs["branches"]] == [main["sha"]]
    assert [(tag["name"], tag["targetCommit"]) for tag in refs["tags"]] == [("v1.0", tagged["sha"])]


def test_the_tree_tells_sizes_and_the_checksums_git_and_lfs_use(site, root):
    tree = {row["path"]: row for row in ask(site, f"/api/models/{MODEL}/tree/main?recursive=true").json}
    config = stored(root, "config.json")
    assert tree["config.json"]["oid"] == hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    assert "lfs" not in tree["config.json"]
    assert tree[SHARD]["lfs"]["oid"] == sha256(stored(root))
    assert tree[SHARD]["size"] == tree[SHARD]["lfs"]["size"] == len(stored(root))
    assert tree["assets/chat"]["type"] == "directory"
    assert tree["assets/chat/template.jinja"]["type"] == "file"
    flat = {row["path"] for row in ask(site, f"/api/models/{MODEL}/tree/main").json}
    assert "assets" in flat
    assert "assets/chat" not in flat
    assert [row["path"] for row in ask(site, f"/api/models/{MODEL}/tree/main/assets").json] == ["assets/chat"]


def test_paths_info_leaves_out_what_is_not_there(site):
    body = json.dumps({"paths": ["config.json", "nothing"], "expand": False})
    rows = ask(site, f"/api/models/{MODEL}/paths-info/main", "POST", body).json
    assert [row["path"] for row in rows] == ["config.json"]


def test_a_small_file_comes_at_once_and_a_large_one_by_a_redirect_that_tells_its_checksum(site, root):
    small = ask(site, f"/{MODEL}/resolve/main/config.json")
    assert small.status == 200
    assert small.body == stored(root, "config.json")
    commit = small.headers["X-Repo-Commit"]
    for method in ("HEAD", "GET"):
        linked = ask(site, f"/{MODEL}/resolve/{commit}/{SHARD}", method)
        assert linked.status == 302
        assert linked.headers["X-Linked-Etag"] == f'"{sha256(stored(root))}"'
        assert linked.headers["X-Linked-Size"] == str(len(stored(root)))
        assert linked.headers["X-Repo-Commit"] == commit
    large = ask(site, linked.headers["Location"])
    assert large.body == stored(root)
    assert large.headers["ETag"] == linked.headers["X-Linked-Etag"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/nobody/nothing", "RepoNotFound"),
        (f"/api/models/{MODEL}/revision/v9", "RevisionNotFound"),
        (f"/{MODEL}/resolve/v9/config.json", "RevisionNotFound"),
        (f"/{MODEL}/resolve/main/nothing.json", "EntryNotFound"),
        (f"/{MODEL}/resolve/main/../v1.0/config.json", "EntryNotFound"),
    ],
)
def test_what_is_missing_is_named_as_hugging_face_does(site, path, code):
    reply = ask(site, path)
    assert reply.status == 404
    assert reply.headers["X-Error-Code"] == code


# -- ModelScope --------------------------------------------------------------------------------------------------------


def test_modelscope_lists_files_with_size_and_checksum(site, root):
    answer = ask(site, f"/api/v1/models/{MODEL}/repo/files?Revision=master&Recursive=True").json
    assert answer["Success"] is True
    rows = {row["Path"]: row for row in answer["Data"]["Files"]}
    assert (rows[SHARD]["Type"], rows[SHARD]["Size"]) == ("blob", len(stored(root)))
    assert rows[SHARD]["Sha256"] == sha256(stored(root))
    assert rows["assets"]["Type"] == "tree"
    inside = ask(site, f"/api/v1/models/{MODEL}/repo/files?Revision=master&Recursive=False&Root=assets/chat").json
    assert [row["Name"] for row in inside["Data"]["Files"]] == ["template.jinja"]


def test_modelscope_revisions_and_a_tag_s_own_files(site, root):
    revisions = ask(site, f"/api/v1/models/{MODEL}/revisions").json["Data"]["RevisionMap"]
    assert [branch["Revision"] for branch in revisions["Branches"]] == ["master"]
    assert [tag["Revision"] for tag in revisions["Tags"]] == ["v1.0"]
    assert ask(site, modelscope_file(revision="v1.0")).body == stored(root, revision="v1.0") != stored(root)


def test_a_model_modelscope_lacks_is_not_found(site):
    reply = ask(site, "/api/v1/models/nobody/nothing")
    assert (reply.status, reply.json["Success"]) == (404, False)
    assert MODEL in reply.json["Message"], "the models there are"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=100-", 100, None), ("bytes=-7", -7, None), ("bytes=5-99999999", 5, None)],
)
def test_a_part_of_a_file_can_be_asked_for(site, root, asked, first, last):
    whole = stored(root)
    start = first % len(whole)
    end = len(whole) - 1 if last is None else last
    reply = ask(site, modelscope_file(), Range=asked)
    assert reply.status == 206
    assert reply.body == whole[start : end + 1]
    assert reply.headers["Content-Range"] == f"bytes {start}-{end}/{len(whole)}"


def test_a_part_behind_the_end_is_refused_and_several_parts_are_the_whole(site, root):
    refused = ask(site, modelscope_file(), Range=f"bytes={len(stored(root))}-")
    assert (refused.status, refused.headers["Content-Range"]) == (416, f"bytes */{len(stored(root))}")
    assert ask(site, modelscope_file(), Range="bytes=0-1,4-5").status == 200
    changed = ask(site, modelscope_file(), Range="bytes=5-", If_Range='"another"')
    assert (changed.status, changed.body) == (200, stored(root)), "the rest of another file is of no use"


# -- modelers.cn -------------------------------------------------------------------------------------------------------


def test_modelers_tells_what_its_client_reads(site, root):
    info = ask(site, f"/api/v1/file/{MODEL}/info?ref=main&path={SHARD}").json["data"]
    commit = ask(site, f"/api/models/{MODEL}").json["sha"]
    assert (info["etag"], info["size"], info["branch_last_commit"]) == (sha256(stored(root)), len(stored(root)), commit)
    tree = ask(site, f"/api/v1/file/{MODEL}?ref=main&path=").json["data"]
    assert tree["last_commit"]["commit"]["commit_sha"] == commit
    assert {row["type"] for row in tree["tree"]} == {"dir", "file"}
    assert ask(site, f"/api/v1/model/{MODEL}?ref=main").json["data"]["owner"] == "tiny-org"
    assert ask(site, f"/api/v1/file/{MODEL}/main/media/{SHARD}", Range="bytes=9-").body == stored(root)[9:]


# -- packages ----------------------------------------------------------------------------------------------------------


def test_a_directory_of_packages_has_checksums_and_a_listing(site, root):
    package = next((root / "packages").rglob("*.run"))
    sums = ask(site, "/packages/SHA256SUMS").body.decode()
    assert sums == f"{sha256(package.read_bytes())}  24.1/{package.name}\n"
    assert ask(site, "/packages/24.1").headers["Location"] == "/packages/24.1/"
    link = ask(site, "/packages/24.1/").body.decode().split('href="')[1].split('"')[0]
    assert ask(site, f"/packages/24.1/{link}").body == package.read_bytes()


def test_a_package_can_be_resumed_and_is_not_sent_again_unchanged(site, root):
    package = next((root / "packages").rglob("*.run"))
    path = f"/packages/24.1/{package.name.replace(' ', '%20')}"
    whole = ask(site, path)
    part = ask(site, path, Range="bytes=10-", If_Range=whole.headers["ETag"])
    assert (part.status, part.body) == (206, package.read_bytes()[10:])
    assert ask(site, path, If_Modified_Since=whole.headers["Last-Modified"]).status == 304


@pytest.mark.parametrize("path", ["/../secret", "/packages/../../secret", "/%2e%2e/secret", "/packages/24.1/nothing"])
def test_nothing_outside_the_root_is_served(site, root, path):
    (root.parent / "secret").write_text("not for you")
    assert ask(site, path).status == 404


def test_other_methods_are_refused(site):
    assert ask(site, "/packages/24.1/", "POST", "{}").status == 405


# -- faults ------------------------------------------------------------------------------------------------------------


def spoil(site, *rules):
    reply = ask(site, "/_site/faults", "PUT", json.dumps(rules))
    assert reply.status == 200, reply.body


def test_a_truncated_file_is_short_while_its_listing_is_not(site, root):
    spoil(site, {"fault": "truncate", "match": f"{MODEL}/{SHARD}", "bytes": 1000})
    reply = ask(site, modelscope_file())
    assert (reply.body, reply.headers["Content-Length"]) == (stored(root)[:1000], "1000")
    rows = ask(site, f"/api/v1/models/{MODEL}/repo/files?Recursive=True").json["Data"]["Files"]
    assert next(row["Size"] for row in rows if row["Path"] == SHARD) == len(stored(root))
    other = SHARD.replace("00002-", "00001-")
    assert ask(site, modelscope_file(other)).body == stored(root, other), "only what the rule names"


def test_a_changed_byte_keeps_the_size_and_breaks_the_checksum_in_parts_too(site, root):
    spoil(site, {"fault": "checksum", "match": "*.safetensors", "bytes": 2000})
    whole, expected = ask(site, modelscope_file()).body, stored(root)
    assert [index for index in range(len(expected)) if whole[index] != expected[index]] == [2000]
    part = ask(site, modelscope_file(), Range="bytes=1990-2010").body
    assert (part[10], part[:10]) == (whole[2000], expected[1990:2000])


def test_a_broken_connection_can_be_resumed(site, root):
    spoil(site, {"fault": "break", "match": "*.safetensors", "bytes": 5000, "times": 1})
    broken = ask(site, modelscope_file())
    assert (broken.status, broken.reason, broken.body) == (200, "broken", stored(root)[:5000])
    rest = ask(site, modelscope_file(), Range=f"bytes={len(broken.body)}-")
    assert broken.body + rest.body == stored(root)
    lines = ask(site, "/_site/requests").json
    asked = [(line["range"], line["status"], line["bytes"]) for line in lines]
    assert asked == [(None, 200, 5000), ("bytes=5000-", 206, len(stored(root)) - 5000)]


def test_a_slow_file_takes_longer_than_a_whole_one(site, root):
    def seconds():
        started = hub.time.monotonic()
        assert ask(site, modelscope_file()).body == stored(root)
        return hub.time.monotonic() - started

    plain = seconds()
    spoil(site, {"fault": "slow", "match": "*.safetensors", "rate": len(stored(root)) * 4})
    assert seconds() > plain
    spoil(site, {"fault": "stall", "match": "*.safetensors", "bytes": 100, "seconds": 0.3})
    assert seconds() > 0.3


def test_a_service_that_is_down_comes_back_after_so_many_answers(site, root):
    spoil(site, {"fault": "unavailable", "match": "tiny-org/*", "seconds": 7, "times": 2})
    first = ask(site, f"/api/models/{MODEL}")
    assert (first.status, first.headers["Retry-After"]) == (503, "7")
    assert ask(site, modelscope_file()).status == 503
    assert ask(site, modelscope_file()).body == stored(root)
    spoil(site, {"fault": "unavailable", "match": "packages/*", "status": 500})
    package = next((root / "packages").rglob("*.run")).name.replace(" ", "%20")
    assert ask(site, f"/packages/24.1/{package}").status == 500


def test_rules_are_shown_with_what_is_left_of_them_and_removed(site):
    spoil(site, {"fault": "break", "times": 3})
    ask(site, modelscope_file())
    (rule,) = ask(site, "/_site/faults").json
    assert (rule["fault"], rule["times"]) == ("break", 2)
    ask(site, "/_site/faults", "DELETE")
    assert ask(site, "/_site/faults").json == []


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"fault": "trunkate"}], "truncate"),
        ([{"fault": "break", "byte": 1}], "unknown key byte"),
        ([{"match": "*"}], "`fault`"),
        ([{"fault": "slow", "rate": 0}], "stall"),
        ([{"fault": "break", "bytes": "5"}], "bytes is '5'"),
        ({"fault": "break"}, "JSON list"),
        ("nonsense", "JSON list"),
    ],
)
def test_a_wrong_rule_is_refused_in_words_and_changes_nothing(site, rules, words):
    spoil(site, {"fault": "break"})
    reply = ask(site, "/_site/faults", "PUT", json.dumps(rules))
    assert reply.status == 400
    assert words in reply.json["error"]
    assert [rule["fault"] for rule in ask(site, "/_site/faults").json] == ["break"]


# -- over TLS ----------------------------------------------------------------------------------------------------------


def test_the_same_over_tls_for_clients_that_know_nothing_else(site, root, tmp_path):
    certificate, key = hub.make_certificate(tmp_path, ["127.0.0.1"])
    again = hub.make_certificate(tmp_path, ["127.0.0.1"])
    assert again == (certificate, key)
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with hub.Site(root, "127.0.0.1", shared=site) as secure:
        secure.use_tls(certificate, key)
        threading.Thread(target=secure.serve_forever, daemon=True).start()
        spoil(site, {"fault": "truncate", "bytes": 10})
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"https://127.0.0.1:{secure.server_address[1]}{modelscope_file()}", timeout=20) as reply:
            assert reply.read() == stored(root)[:10]
        secure.shutdown()


# -- what the inventory says -------------------------------------------------------------------------------------------


def test_the_hub_s_weights_are_whole_sharded_and_the_same_each_time():
    files = site_files.hub_files(sandbox(sandbox_hub_models=[ENTRY]).hub_models[0])
    assert files == site_files.hub_files(sandbox(sandbox_hub_models=[ENTRY]).hub_models[0])
    contents = {file.path.removeprefix(f"/srv/hub/{MODEL}/"): file.content for file in files}
    index = json.loads(contents["main/model.safetensors.index.json"])
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in shards:
        content = contents[f"main/{name}"]
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        assert len(content) == 8 + length + max(ends)
        assert len(content) == pytest.approx(32768, rel=0.05)
        assert contents[f"v1.0/{name}"] != content
        assert len(set(zip(content[8 + length :: 64], content[9 + length :: 64], strict=False))) > 100, "not all alike"
    assert json.loads(contents["main/config.json"])["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("nameless", "organisation/name"),
        ({"id": "a/b/../c"}, "organisation/name"),
        ({"id": "a/b", "size": 1}, "unknown key size"),
        ({"id": "a/b", "shards": 0}, "shards is 0"),
        ({"id": "a/b", "tags": ["main"]}, "'main' can't be a tag"),
        ({"id": "a/b", "tags": ["../x"]}, "can't be a tag"),
    ],
)
def test_a_wrong_model_of_the_hub_is_refused_by_name(entry, words):
    with pytest.raises(plan.SandboxError, match=words):
        sandbox(sandbox_hub_models=[entry])


def test_packages_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "find_daemon", lambda: (Path("/nowhere/dockerd"), Path("/nowhere/docker")))
    cluster = lifecycle.Cluster(sandbox(sandbox_packages="packages"), tmp_path, engine.Engine(), print)
    with pytest.raises(plan.SandboxError, match=f"{tmp_path}/packages is not a directory"):
        cluster.packages_options()
    (tmp_path / "packages").mkdir()
    assert cluster.packages_options() == [f"--volume={tmp_path}/packages:/srv/packages:ro"]
