"""Files of ``docker save`` as an image layout: one digest wherever it is made, and nothing in it goes unchecked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ascent.errors import AscentError
from ascent.image_store import DigestError
from ascent_controller import image_archive, saved_images

NAME = "quay.io/ascend/vllm-ascend:v0.18.0-a3"
LAYERS = [b"first layer" * 100, b"second layer" * 100]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def config(layers: list[bytes], architecture: str = "arm64") -> bytes:
    ids = [f"sha256:{sha(layer)}" for layer in layers]
    return json.dumps({"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": ids}}).encode()


def save(
    path: Path, *, layers: list[bytes] | None = None, old: bool = True, names: Any = (NAME,), **wrong: Any
) -> Path:
    """A file as engines write it: ``old`` has a folder for each layer, newer ones have blobs."""
    layers = LAYERS if layers is None else layers
    own = wrong.get("config", config(LAYERS))
    stored = wrong.get("stored", layers)
    if old:
        paths = [f"{number}/layer.tar" for number in range(len(stored))]
        config_path = f"{sha(config(LAYERS))}.json"
    else:
        paths = [f"blobs/sha256/{sha(layer)}" for layer in stored]
        config_path = f"blobs/sha256/{sha(config(LAYERS))}"
    listed = [{"Config": config_path, "RepoTags": list(names) or None, "Layers": paths}]
    members = {"manifest.json": json.dumps(listed).encode(), config_path: own, **dict(zip(paths, stored, strict=True))}
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def quiet(line: str) -> None:
    assert line


def test_an_image_is_found_by_its_name_with_all_its_parts(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    save(tmp_path / "saved/image.tar")
    layout = saved_images.layout_of(tmp_path / "saved", quiet, tmp_path / "cache")
    digest = image_archive.find(layout, NAME)
    assert image_archive.find(layout, f"mirror.example/{NAME}") == digest
    parts = image_archive.blobs(layout, digest, "arm64")
    image_archive.check(layout, parts)
    assert {f"sha256:{sha(content)}" for content in (*LAYERS, config(LAYERS))} <= set(parts)
    assert [one["architecture"] for one in image_archive.platforms(layout, digest)] == ["arm64"]
    with pytest.raises(AscentError, match="wanted was linux/amd64"):
        image_archive.blobs(layout, digest, "amd64")


def test_one_image_has_one_digest_however_it_was_saved(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.tar"), save(tmp_path / "b.tar.gz"), save(tmp_path / "c.tar", old=False)]
    made = [saved_images.layout_of(file, quiet, tmp_path / f"cache-{file.name}") for file in files]
    assert len({image_archive.find(layout, NAME) for layout in made}) == 1


def test_packed_layers_stay_packed_and_are_compared_unpacked(tmp_path: Path) -> None:
    stored = [gzip.compress(layer, mtime=0) for layer in LAYERS]
    layout = saved_images.layout_of(save(tmp_path / "a.tar", stored=stored, old=False), quiet, tmp_path / "cache")
    parts = image_archive.blobs(layout, image_archive.find(layout, NAME), "arm64")
    assert {f"sha256:{sha(layer)}" for layer in stored} <= set(parts)
    wrong = [gzip.compress(b"other", mtime=0), stored[1]]
    with pytest.raises(DigestError, match="wanted sha256:"):
        saved_images.layout_of(save(tmp_path / "b.tar", stored=wrong, old=False), quiet, tmp_path / "cache")


def test_a_layer_that_was_saved_once_is_found_through_its_link(tmp_path: Path) -> None:
    both = [LAYERS[0], LAYERS[0]]
    listed = [{"Config": f"{sha(config(both))}.json", "RepoTags": [NAME], "Layers": ["0/layer.tar", "1/layer.tar"]}]
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        for name, content in {
            "manifest.json": json.dumps(listed).encode(),
            f"{sha(config(both))}.json": config(both),
            "0/layer.tar": LAYERS[0],
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("1/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
        packed.addfile(link)
    layout = saved_images.layout_of(tmp_path / "a.tar", quiet, tmp_path / "cache")
    assert image_archive.blobs(layout, image_archive.find(layout, NAME), "arm64")


def test_it_is_made_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    said: list[str] = []
    file = save(tmp_path / "a.tar")
    layout = saved_images.layout_of(file, said.append, tmp_path / "cache")
    first = image_archive.find(layout, NAME)
    assert saved_images.layout_of(file, said.append, tmp_path / "cache") == layout
    assert len(said) == 1
    other = config([b"x"])
    listed = [{"Config": f"{sha(other)}.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as packed:
        for name, content in {
            "manifest.json": json.dumps(listed).encode(),
            f"{sha(other)}.json": other,
            "layer.tar": b"x",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    saved_images.layout_of(file, said.append, tmp_path / "cache")
    assert image_archive.find(layout, NAME) != first


def test_a_file_that_goes_takes_its_images_along(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    save(folder / "a.tar")
    other = save(folder / "b.tar", names=("other:v1",))
    layout = saved_images.layout_of(folder, quiet, tmp_path / "cache")
    assert set(image_archive.images(layout)) == {NAME, "other:v1"}
    other.unlink()
    saved_images.layout_of(folder, quiet, tmp_path / "cache")
    assert set(image_archive.images(layout)) == {NAME}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"config": config([b"other"])}, "configuration: wanted sha256:"),
        ({"stored": [LAYERS[0], b"changed"]}, "1/layer.tar: wanted sha256:"),
        ({"layers": LAYERS[:1]}, "wanted 2 layers, found 1"),
        ({"names": ()}, "save them by name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AscentError, match=message):
        saved_images.layout_of(save(tmp_path / "a.tar", **wrong), quiet, tmp_path / "cache")


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    file = save(tmp_path / "a.tar")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(AscentError, match=r"a\.tar"):
        saved_images.layout_of(file, quiet, tmp_path / "cache")


def test_any_other_tar_is_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.add(__file__, "something")
    with pytest.raises(AscentError, match=r"no manifest\.json"):
        saved_images.layout_of(tmp_path / "a.tar", quiet, tmp_path / "cache")


def test_an_image_layout_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    save(tmp_path / "a.tar")
    assert saved_images.layout_of(tmp_path, quiet, tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()
