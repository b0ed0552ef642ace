"""Every host has the image by the registry's digest."""

from __future__ import annotations

import json
import urllib.request

from tests.roles.helpers import changed

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def published() -> str:
    """The digest that the registry itself gives the tag."""
    url = "http://198.19.0.2:5000/v2/molecule/tiny/manifests/v1"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": MANIFEST}), timeout=10) as answer:
        return answer.headers["Docker-Content-Digest"]


def test_the_image_is_there_by_the_digest_of_the_registry(host) -> None:
    name = f"127.0.0.1:28950/198.19.0.2_5000/molecule/tiny@{published()}"
    (image,) = json.loads(host.check_output("docker image inspect %s", name))
    assert image["RepoDigests"] == [name], "handed on by the hosts, and pulled from nowhere else"
    assert image["RepoTags"] == ["198.19.0.2:5000/molecule/tiny:v1"]


def test_nothing_of_the_way_is_left(host) -> None:
    assert not host.file("/var/lib/ascent/images").exists
    assert not host.file("/run/ascent-images").exists
    assert host.run("systemctl is-active ascent-images").stdout.strip() == "inactive"
    assert not host.socket("tcp://28950").is_listening


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
