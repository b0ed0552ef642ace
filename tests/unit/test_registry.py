"""Image references, reading a registry, and archives of images, against a registry in memory."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ascent import registry
from ascent.errors import AscentError
from ascent.image_store import DigestError, Store
from ascent_controller import image_archive
from tests.unit.registry_server import Site, digest, serve

INSECURE = {"InsecureRegistryCIDRs": ["127.0.0.0/8"]}


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as made:
        yield made


def client(site: Site, **more: object) -> registry.Client:
    return registry.Client(site.host, settings=INSECURE, proxies={}, **more)  # type: ignore[arg-type]


def test_the_examples_hold() -> None:
    assert doctest.testmod(registry).failed == 0


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("debian", ("docker.io", "library/debian", "latest", "")),
        ("ascendai/cann:8.5", ("docker.io", "ascendai/cann", "8.5", "")),
        ("index.docker.io/a/b", ("docker.io", "a/b", "latest", "")),
        ("192.0.2.1:5000/quay.io/ascend/vllm-ascend:v1", ("192.0.2.1:5000", "quay.io/ascend/vllm-ascend", "v1", "")),
        ("localhost/x:1@sha256:" + "0" * 64, ("localhost", "x", "1", "sha256:" + "0" * 64)),
        ("quay.io/a/b@sha256:" + "f" * 64, ("quay.io", "a/b", "", "sha256:" + "f" * 64)),
    ],
)
def test_references_are_split_as_the_engine_does(reference: str, parts: tuple[str, ...]) -> None:
    assert registry.split(reference) == parts


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(AscentError, match="64 hex digits"):
        registry.split("quay.io/a/b@sha256:abc")


TEN = {"InsecureRegistryCIDRs": ["10.0.0.0/8"]}
SECURE = {**TEN, "IndexConfigs": {"r.example": {"Secure": True}}}


@pytest.mark.parametrize(
    ("host", "settings", "urls"),
    [
        ("quay.io", {}, [("https://quay.io", True)]),
        ("10.1.2.3:5000", TEN, [("https://10.1.2.3:5000", False), ("http://10.1.2.3:5000", False)]),
        ("r.example", TEN, [("https://r.example", False), ("http://r.example", False)]),
        ("r.example", SECURE, [("https://r.example", True)]),
        (
            "docker.io",
            {"Mirrors": ["https://m.example/"]},
            [("https://m.example", True), ("https://registry-1.docker.io", True)],
        ),
    ],
)
def test_registries_are_looked_for_where_the_engine_does(host: str, settings: dict, urls: list) -> None:
    assert registry.endpoints(host, settings, lambda name: ["10.9.9.9"] if name == "r.example" else []) == urls


@pytest.mark.parametrize("key", ["quay.io", "https://quay.io", "https://quay.io/v1/"])
def test_logins_are_read_from_dockers_file(key: str) -> None:
    assert registry.credentials("quay.io", {"auths": {key: {"auth": "dXNlcjpwOnc="}}}) == ("user", "p:w")
    assert registry.credentials("other.io", {"auths": {key: {"auth": "dXNlcjpwOnc="}}}) is None
    assert registry.credentials("quay.io", {"auths": {key: {}}}) is None


def test_an_image_is_saved_with_the_registrys_digest(site: Site, tmp_path: Path) -> None:
    site.token = "secret"
    arm = site.image("arm", [b"base" * 1000, b"arm"])
    amd = site.image("amd", [b"base" * 1000, b"amd"], "amd64")
    index = site.index("v1", {"amd64": amd, "arm64": arm})
    reference = f"{site.host}/a/b:v1"

    assert image_archive.save(tmp_path, reference, ["arm64"], client=client(site)) == index
    assert image_archive.images(tmp_path) == {reference: index}
    assert image_archive.find(tmp_path, f"mirror.example/{reference}") == index
    needed = image_archive.blobs(tmp_path, index, "arm64")
    assert digest(b"arm") in needed
    assert digest(b"amd") not in needed
    image_archive.check(tmp_path, needed)
    with pytest.raises(AscentError, match=f"lacks the manifest {amd}"):
        image_archive.blobs(tmp_path, index, "amd64")

    sent = site.sent()
    assert image_archive.save(tmp_path, reference, ["arm64"], client=client(site)) == index
    assert site.sent() == sent, "what is there is not fetched again"


def test_an_architecture_that_is_not_offered_is_named(site: Site, tmp_path: Path) -> None:
    site.image("v1", [b"x"], "amd64")
    with pytest.raises(AscentError, match="is for linux/amd64, wanted was linux/arm64"):
        image_archive.save(tmp_path, f"{site.host}/a/b:v1", ["arm64"], client=client(site))
    assert not (tmp_path / "index.json").exists()


def test_a_download_that_broke_off_goes_on(site: Site, tmp_path: Path) -> None:
    layer = bytes(range(256)) * 5000
    site.image("v1", [layer])
    site.breaks[digest(layer)] = 500_000
    reference = f"{site.host}/a/b:v1"
    with pytest.raises(AscentError, match="run it again"):
        image_archive.save(tmp_path, reference, ["arm64"], client=client(site))
    assert image_archive.save(tmp_path, reference, ["arm64"], client=client(site)) == site.tags["v1"]
    assert site.sent(digest(layer)) == len(layer), "each byte left the registry once"


def test_content_that_is_not_its_digests_is_refused(site: Site, tmp_path: Path) -> None:
    site.image("v1", [b"good"])
    site.blobs[digest(b"good")] = b"evil"
    with pytest.raises(DigestError, match="wanted sha256:"):
        image_archive.save(tmp_path, f"{site.host}/a/b:v1", ["arm64"], client=client(site))
    assert not list(tmp_path.rglob("*.part"))


def test_a_changed_archive_is_noticed(site: Site, tmp_path: Path) -> None:
    site.image("v1", [b"layer one", b"layer two"])
    image = image_archive.save(tmp_path, f"{site.host}/a/b:v1", ["arm64"], client=client(site))
    blob = Path(Store(str(tmp_path)).path(digest(b"layer one")))
    blob.write_bytes(b"layer ONE")
    needed = image_archive.blobs(tmp_path, image, "arm64")
    with pytest.raises(DigestError, match=blob.name):
        image_archive.check(tmp_path, needed)
    blob.write_bytes(b"cut")
    with pytest.raises(DigestError, match="wanted 9 bytes, found 3"):
        image_archive.blobs(tmp_path, image, "arm64")
    blob.unlink()
    with pytest.raises(AscentError, match="lacks 1 of its parts"):
        image_archive.blobs(tmp_path, image, "arm64")


@pytest.mark.parametrize("text", [None, "{", json.dumps({"manifests": 3})])
def test_a_directory_that_is_no_archive_is_said_so(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(AscentError, match="OCI image layout"):
        image_archive.images(tmp_path)


def test_a_refusal_has_the_registrys_own_words(site: Site) -> None:
    with pytest.raises(registry.RegistryError, match="MANIFEST_UNKNOWN: manifest unknown") as told:
        client(site).manifest("a/b", "nowhere")
    assert told.value.code == 404


def test_a_registry_that_is_not_there_is_named() -> None:
    with pytest.raises(registry.RegistryError, match="Connection refused") as told:
        registry.Client("127.0.0.1:1", settings=INSECURE, proxies={}).manifest("a/b", "v1")
    assert told.value.code == 0
