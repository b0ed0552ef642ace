"""Keys, TLS, bound addresses and file modes on real nodes, and a search for secrets in all that a run leaves."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.guarded import CLUSTER, ENGINE, FIRST, GATEWAY, HUB, OTHER_ENGINE, ROOT, SECOND, THIRD, Site

HEAD = "100.76.0.11"
PREFILL, DECODE = "http://100.76.0.11:8100", "http://100.76.0.12:8200"
PLANTED = (FIRST, SECOND, THIRD, ENGINE, OTHER_ENGINE, HUB)

# Everything below our directories with its mode, and what any user may read or write of it.
WALK = """
import json, os, stat
found = {}
for top in ("/etc/ascent", "/var/lib/ascent", "/var/log/ascent"):
    for folder, names, files in os.walk(top):
        for name in [".", *files]:
            path = os.path.normpath(os.path.join(folder, name))
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                found[path] = [stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid]
print(json.dumps(found))
"""

# Where a node tells a secret: the process list, the container engine, logs, and files outside the directory of secrets.
# It comes by stdin, so that the secrets that it looks for are on no command line.
SEARCH = """
import json, os, re, subprocess
secrets = [secret.encode() for secret in SECRETS]
def said(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
texts = {"ps": said("ps", "-eww", "-o", "args")}
for line in said("journalctl", "--no-pager", "--quiet").splitlines():
    words = line.decode("utf-8", "replace").split(None, 4)
    writer = "journal of " + re.sub("[^a-zA-Z_.-].*", "", words[-1])
    texts[writer] = texts.get(writer, b"") + line
for name in said("docker", "ps", "-aq").decode().split():
    texts["inspect " + name] = said("docker", "inspect", name)
    texts["log " + name] = said("docker", "logs", name)
for top in ("/etc", "/var/lib/ascent", "/var/log", "/tmp", "/var/tmp", "/root", "/srv", "/run"):
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if not re.search("/ascent/[^/]+/secrets", os.path.join(folder, name))
                    and not os.path.ismount(os.path.join(folder, name))]
        for name in files:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path):
                    with open(path, "rb") as stream:
                        texts[path] = stream.read()
            except OSError:
                pass  # a file of the moment, or a name space
found = sorted({place for place, text in texts.items() for secret in secrets if secret in text})
engines = b"vllm serve" in texts["ps"] and any(b"ascent.definition" in text for text in texts.values())
print(json.dumps({"found": found, "texts": len(texts), "engines": engines}))
"""


def started(site: Site) -> dict[str, str]:
    return {name: one["Id"] + one["State"]["StartedAt"] for name, one in site.containers().items()}


# -- who is let in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_each_client_key_is_let_in_over_verified_tls(site: Site, key: str) -> None:
    status, text = site.complete(key)
    assert status == 200
    assert json.loads(text)["choices"][0]["text"].strip()


@pytest.mark.parametrize("key", [None, "wrong-key-of-some-length", ENGINE, FIRST.upper()])
def test_nobody_else_is_let_in(site: Site, key: str | None) -> None:
    assert site.complete(key)[0] == 401


@pytest.mark.parametrize("engine", [PREFILL, DECODE])
def test_engines_want_their_own_key(site: Site, engine: str) -> None:
    assert site.ask(f"{engine}/v1/models", ENGINE)[0] == 200
    for key in (None, FIRST):
        assert site.ask(f"{engine}/v1/models", key)[0] == 401


def test_health_needs_no_key_and_the_routers_own_paths_are_nobodys(site: Site) -> None:
    assert site.ask(f"{GATEWAY}/healthcheck")[0] == 200
    for path in ("/instances/add", "/instances/remove", "/reset_prefix_cache", "/"):
        assert site.ask(GATEWAY + path, FIRST)[0] == 404


def test_a_client_without_the_authority_turns_away(site: Site) -> None:
    done = subprocess.run(["curl", "--silent", "--noproxy", "*", f"{GATEWAY}/healthcheck"], check=False)
    assert done.returncode == 60, "curl's number for a certificate that it can't verify"
    plain = subprocess.run(
        ["curl", "--silent", "--noproxy", "*", "--write-out", "%{http_code}", f"http://{HEAD}:8000/v1/models"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert plain.stdout.endswith("400"), "a plain request at the port of TLS"


def test_the_router_is_reached_through_the_gateway_only(site: Site) -> None:
    listening = site.node("g-01", "ss -Hltn")
    places = {line.split()[3] for line in listening.splitlines()}
    assert "127.0.0.1:8001" in places
    assert {f"{HEAD}:8000", f"{HEAD}:8100"} <= places
    assert not any(place.startswith(("0.0.0.0:8", "*:8", "[::]:8")) for place in places)


# -- what lies on the nodes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["g-01", "g-02"])
def test_no_file_of_ours_is_for_everyone(site: Site, node: str) -> None:
    done = site.cluster.ssh(site.cluster.node(node), "python3", "-")
    told = subprocess.run(done, input=WALK, capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    assert len(found) > 10
    assert {path: oct(mode) for path, (mode, _, _) in found.items() if mode & 0o002} == {}
    readable = {path: oct(mode) for path, (mode, _, _) in found.items() if mode & 0o007}
    assert set(readable) <= {"/etc/ascent", "/var/lib/ascent"}, readable
    assert {path for path, (_, user, group) in found.items() if (user, group) != (0, 0)} == set()
    secret = {path: mode for path, (mode, _, _) in found.items() if f"/{CLUSTER}/secrets" in path}
    assert {mode for path, mode in secret.items() if path.endswith(("env", ".conf", ".key", ".crt"))} == {0o600}
    assert secret[f"/etc/ascent/{CLUSTER}/secrets"] == 0o700


def test_containers_have_no_privileges_and_no_key_in_what_docker_tells(site: Site) -> None:
    found = site.containers()
    assert set(found) == {"prefill-0-head", "decode-0-head", "router", "gateway"}
    for name, one in found.items():
        assert one["HostConfig"]["Privileged"] is False, name
        assert not one["HostConfig"]["CapAdd"], name
        mounts = [mount for mount in one["Mounts"] if mount["Destination"] == "/run/ascent/secrets"]
        assert [mount["RW"] for mount in mounts] == [False], name


# -- what changes a secret changes -------------------------------------------------------------------------------------


def test_a_second_launch_changes_nothing(site: Site) -> None:
    before = started(site)
    again = site.play("deploy.yml", "--tags", "launch,check")
    assert (again.code, again.changed) == (0, {}), again.output[-3000:]
    assert started(site) == before


def test_another_client_key_and_a_renewed_certificate_restart_nothing(site: Site) -> None:
    before, shown = started(site), ssl.get_server_certificate(("100.76.0.11", 8000))
    (site.authority / "tls.crt").unlink()
    site.variables["ascent_api_keys"] = [THIRD, SECOND]
    done = site.play("deploy.yml", "--tags", "launch,check")
    assert (done.code, done.changed) == (0, {"g-01": 1}), done.output[-3000:]
    assert started(site) == before
    assert [site.complete(key)[0] for key in (THIRD, SECOND, FIRST)] == [200, 200, 401]
    assert ssl.get_server_certificate(("100.76.0.11", 8000)) != shown


def test_another_engine_key_restarts_those_that_read_it(site: Site) -> None:
    before = started(site)
    site.variables["ascent_engine_key"] = OTHER_ENGINE
    wrong = site.play("playbooks/status.yml")
    assert wrong.code != 0
    assert {item["id"] for item in wrong.findings() if item["severity"] == "error"} == {"api-key-refused"}
    done = site.play("deploy.yml", "--tags", "launch,check")
    assert done.code == 0, done.output[-3000:]
    after = started(site)
    assert {name for name in before if before[name] != after[name]} == {"prefill-0-head", "decode-0-head", "router"}
    assert site.ask(f"{DECODE}/v1/models", ENGINE)[0] == 401
    assert site.ask(f"{DECODE}/v1/models", OTHER_ENGINE)[0] == 200


def test_status_of_a_sound_cluster_has_no_complaint(site: Site) -> None:
    done = site.play("playbooks/status.yml")
    assert done.code == 0, done.output[-3000:]
    assert [item for item in done.findings() if item["severity"] != "info"] == []


# -- what tells a secret -----------------------------------------------------------------------------------------------


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """All files below a folder; what is packed is unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive:
                    stream = archive.extractfile(member)
                    yield path / member.name, stream.read() if stream else b""
        else:
            yield path, path.read_bytes()


def holders(texts: Iterator[tuple[Any, bytes]]) -> list[tuple[str, str]]:
    return [(str(place), secret[:8]) for place, text in texts for secret in PLANTED if secret.encode() in text]


def search(site: Site, node: str, words: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        site.cluster.ssh(site.cluster.node(node), "python3", "-"),
        input=SEARCH.replace("SECRETS", repr(words)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def private_lines(site: Site) -> list[str]:
    """Lines of the private keys, which are secrets, too: the first two, what follows is the public half."""
    keys = [site.authority / "tls.key", site.authority / "ca.key"]
    lines = [[line for line in path.read_text().splitlines() if "-----" not in line] for path in keys]
    assert all(len(some) == 3 for some in lines), "PKCS 8 of a key on P-256: its number ends in the second line"
    return [line for some in lines for line in some[:2]]


def test_nothing_that_a_run_leaves_on_the_controller_tells_a_secret(site: Site) -> None:
    archive = site.work / "runs" / "logs.tar.gz"
    assert site.play("playbooks/logs.yml", "-e", f"logs_to={archive}").code == 0
    with tarfile.open(archive) as packed:
        assert len(packed.getnames()) > 10
    records = list(files(site.work / "runs"))
    assert any(path.name == "report.html" for path, _ in records)
    assert holders(iter(records)) == []
    outputs = [(f"output {number}", text.encode()) for number, text in enumerate(site.outputs)]
    assert len(outputs) > 3
    assert holders(iter(outputs)) == []
    everything = b"".join(text for _, text in [*records, *outputs])
    assert not [line for line in private_lines(site) if line.encode() in everything]


@pytest.mark.parametrize("node", ["g-01", "g-02"])
def test_nothing_on_a_node_tells_a_secret_but_the_files_made_for_it(site: Site, node: str) -> None:
    told = search(site, node, [*PLANTED, *private_lines(site)])
    assert told["engines"], "the process list and the container engine were looked at"
    assert told["texts"] > 100
    assert told["found"] == []


def test_the_search_finds_what_is_there(site: Site) -> None:
    """The same search over the one place where a secret is: it is not blind."""
    text = site.node("g-02", f"cat /etc/ascent/{CLUSTER}/secrets/decode-0-head/env")
    assert holders(iter([("env", text.encode())])) != []
    assert search(site, "g-02", ["VLLM_API_KEY", "vllm serve"])["found"] != []
    assert os.stat(site.authority / "ca.key").st_mode & 0o777 == 0o600


# -- a single engine ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_single_engine_checks_the_key_and_ends_tls_itself(site: Site) -> None:
    site.variables.update(recipe=str(ROOT / "tests/security/single.yml"), ascent_api_keys=[THIRD])
    site.variables["ascent_engine_key"] = THIRD
    done = site.play("deploy.yml", "--tags", "launch,check")
    assert done.code == 0, done.output[-4000:]
    url = "https://100.76.0.11:8300/v1/models"
    assert [site.ask(url, key)[0] for key in (THIRD, FIRST, None)] == [200, 401, 401]
    before = started(site)
    assert set(before) == {"serve-0-head", "serve-0-headless-1"}
    assert "/gateway" not in site.node("g-01", f"find /etc/ascent/{CLUSTER}/secrets")
    shown = ssl.get_server_certificate(("100.76.0.11", 8300))
    (site.authority / "tls.crt").unlink()
    done = site.play("deploy.yml", "--tags", "launch,check")
    assert done.code == 0, done.output[-4000:]
    assert started(site) == before
    assert ssl.get_server_certificate(("100.76.0.11", 8300)) != shown
