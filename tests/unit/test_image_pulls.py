"""What a failed pull means, the names of images, and looking tags up, against a registry in memory."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ascent import image_pulls, image_server
from ascent.diagnosis import diagnose
from ascent_controller import signatures
from tests.unit.registry_server import Site, serve

LOCAL = {"RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"]}}


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as made:
        yield made


def test_the_examples_hold() -> None:
    assert doctest.testmod(image_pulls).failed == 0


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("no host of the cluster gives the image: 192.0.2.1: No space left on device", "B18"),
        ("failed to register layer: Error processing tar file: write /opt/x: no space left on device", "D16"),
        ("/var/lib/ascent/images: No space left on device", "D16"),
        ("filesystem layer verification failed for digest sha256:" + "0" * 64, "B15"),
        ("/srv/images/blobs/sha256/1: wanted 12 bytes, found 3", "B15"),
        ("/srv/images/blobs/sha256/1: the content is sha256:2", "B15"),
        ("/srv/images lacks the manifest sha256:0", "B15"),
        ("/srv/images: image sha256:0 lacks 3 of its parts, such as sha256:1", "B15"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "B07"),
        ("archive/tar: invalid tar header", "B11"),
        ("Get https://quay.io/v2/: dial tcp: lookup quay.io: no such host", "B10"),
        ("manifest for quay.io/a/b:v9 not found: manifest unknown", "B10"),
        ("pull access denied for a/b, repository does not exist or may require 'docker login'", "B10"),
    ],
)
def test_a_failure_has_a_name(message: str, fault: str) -> None:
    told = image_pulls.explain("quay.io/a/b:v1", message, "n1")
    assert (told["id"], told["severity"], told["host"], told["stage"]) == (fault, "error", "n1", "provision")
    assert told["evidence"] == message
    assert told["cause"]
    assert told["fix"]


def test_the_engines_own_words_have_the_catalogues_name() -> None:
    catalogue = signatures.load()
    for message in ("write /opt/x: No space left on device", "layer verification failed for digest sha256:0"):
        ids = {one["id"] for one in diagnose(f"filesystem {message}", catalogue)}
        assert image_pulls.explain("a", message)["id"] in ids


def test_the_own_repository_names_an_image_before_others() -> None:
    digest = "sha256:" + "a" * 64
    names = [f"b.io/e@{digest}", f"a.io/e@{digest}", f"debian@{digest}", f"a.io/e@sha256:{'0' * 64}"]
    assert image_pulls.held("b.io/e:v1", digest, names) == names[0]
    assert image_pulls.held("c.io/e:v1", digest, names) == f"a.io/e@{digest}"
    assert image_pulls.held("docker.io/library/debian:12", digest, names) == f"debian@{digest}"
    assert image_pulls.held("a.io/e:v1", "sha256:" + "1" * 64, names) is None


@pytest.mark.parametrize(
    ("entry", "host", "there"),
    [
        ("", "quay.io", True),
        ("quay.io", "quay.io", False),
        (".example.com", "r.example.com:5000", False),
        ("*.example.com,10.0.0.0/8", "10.1.2.3:5000", False),
        ("10.0.0.0/8", "11.1.2.3:5000", True),
        ("*", "quay.io", False),
    ],
)
def test_proxies_are_those_of_the_engine(entry: str, host: str, there: bool) -> None:
    information = {"HttpProxy": "http://p:3128", "HttpsProxy": "http://p:3129", "NoProxy": entry}
    wanted = {"http": "http://p:3128", "https": "http://p:3129"} if there else {}
    assert image_pulls.proxies(information, host, {}) == wanted


def test_a_hidden_password_comes_from_the_environment() -> None:
    information = {"HttpsProxy": "http://xxxxx:xxxxx@p:3128"}
    assert image_pulls.proxies(information, "quay.io", {"HTTPS_PROXY": "http://u:w@p:3128"}) == {
        "https": "http://u:w@p:3128"
    }
    assert image_pulls.proxies(information, "quay.io", {}) == {}


def test_tags_are_looked_up_without_a_pull(site: Site) -> None:
    index = site.index("v1", {"amd64": site.image("amd", [b"x" * 1000], "amd64"), "arm64": site.image("arm", [b"y"])})
    single = site.image("v2", [b"z" * 1000], "amd64")
    names = [f"{site.host}/a/b:{tag}" for tag in ("v1", "v2", "v9")]
    found, told = image_pulls.lookup(names, "x86_64", LOCAL, "/nowhere", "n1")
    assert found == {names[0]: index, names[1]: single}
    assert [(one["id"], one["host"]) for one in told] == [("B10", "n1")]
    assert "manifest unknown" in told[0]["evidence"]
    found, told = image_pulls.lookup(names[:2], "aarch64", LOCAL, "/nowhere", "n1")
    assert found == {names[0]: index}
    assert [(one["id"], "linux/amd64" in one["summary"]) for one in told] == [("B07", True)]
    assert max(size for path, size in site.log if "/blobs/" in path) < 500, "a configuration at most"


def test_a_lookup_logs_in_where_a_registry_wants_it(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {"r.example": {"auth": "dTpw"}}}))
    assert image_server.login_of({"host": "r.example", "config": str(config)}) == ("u", "p")
    assert image_server.login_of({"host": "r.example", "config": str(tmp_path / "none")}) is None
