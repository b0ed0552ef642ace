"""Bundles for sites without internet: what belongs in, the seal, making and resuming, and whether one fits a run."""

from __future__ import annotations

import copy
import doctest
import hashlib
import http.server
import importlib.util
import json
import os
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascent.errors import AscentError
from ascent_controller import bundle, bundle_build, bundle_files, image_archive, planning
from tests.unit import playbook_runs
from tests.unit.registry_server import Site, serve

HOSTS = [
    {"name": f"a3-0{number}", "node_ip": f"192.0.2.{number}", "nic": "eth0", "arch": "aarch64"} for number in (1, 2, 3)
]
RECIPE = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3"
DEBIAN = {"id": "debian", "version": "12", "machine": "aarch64"}
ASKED: dict[str, Any] = {
    "suite": "1",
    "requirements": ["ansible>=14"],
    "constraints": "ansible==14\n",
    "pythons": ["3.12"],
    "machine": "x86_64",
}


@pytest.fixture(scope="module")
def planned() -> dict[str, Any]:
    made, findings = planning.prepare(RECIPE, HOSTS, cluster="a3-cluster")
    assert made is not None, findings
    return made


@pytest.fixture
def plan(planned: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(planned)


def ids(findings: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in findings]


def test_the_examples_hold() -> None:
    assert doctest.testmod(bundle).failed == 0


# -- what belongs in ---------------------------------------------------------------------------------------------------


def test_a_bundle_holds_what_the_plan_needs(plan: dict[str, Any]) -> None:
    system = {**DEBIAN, "host": "a3-01"}
    parts, told = bundle.contents(
        plan,
        **ASKED,
        systems=[system],
        packages={"debian-12-aarch64": ["docker.io"]},
        driver="/srv/driver",
        cann="http://192.0.2.9/cann",
        weights="/srv/weights",
    )
    assert list(parts) == ["suite", "setup", "wheels", "os", "driver", "cann", "images", "weights"]
    assert parts["os"]["wanted"] == [{**system, "packages": ["docker.io"]}]
    assert parts["driver"]["wanted"] == {"source": "/srv/driver", "machines": ["aarch64"]}
    assert parts["weights"]["wanted"] == {"id": plan["model"]["id"], "source": "/srv/weights"}
    assert parts["images"]["wanted"] == [
        {"reference": image, "machine": "aarch64"} for image in plan["engine"]["images"]
    ]
    assert told == []


def test_what_a_bundle_will_lack_is_told_with_its_variable(plan: dict[str, Any]) -> None:
    parts, told = bundle.contents(plan, **ASKED, images=False)
    assert list(parts) == ["suite", "setup", "wheels"]
    assert {item["severity"] for item in told} == {"info"}
    fixes = " ".join(item["fix"] for item in told)
    for variable in ("bundle_systems", "npu_driver_source", "bundle_images", "bundle_weights"):
        assert variable in fixes


def test_every_architecture_of_the_hosts_is_asked_for(plan: dict[str, Any]) -> None:
    plan["hosts"]["a3-02"]["arch"] = "x86_64"
    parts, told = bundle.contents(plan, **ASKED, systems=[{**DEBIAN, "directory": "/srv/debs"}], driver="/srv/driver")
    assert {one["machine"] for one in parts["images"]["wanted"]} == {"aarch64", "x86_64"}
    assert parts["driver"]["wanted"]["machines"] == ["aarch64", "x86_64"]
    assert "the bundle has no operating system for x86_64" in [item["summary"] for item in told]


def test_hosts_without_npus_need_no_driver(plan: dict[str, Any]) -> None:
    for host in plan["hosts"].values():
        host["vendor"] = "cpu"
    _, told = bundle.contents(plan, **ASKED)
    assert "npu_driver_source" not in " ".join(item["fix"] for item in told)


@pytest.mark.parametrize("key", ["suite", "constraints", "machine"])
def test_a_part_is_made_again_only_when_its_own_inputs_change(plan: dict[str, Any], key: str) -> None:
    before, _ = bundle.contents(plan, **ASKED)
    after, _ = bundle.contents(plan, **{**ASKED, key: "another"})
    changed = {name for name in before if before[name]["fingerprint"] != after[name]["fingerprint"]}
    assert changed == ({"suite", "setup"} if key == "suite" else {"wheels"})


def test_the_suites_own_needs_are_read_from_its_files() -> None:
    needs = bundle_build.requirements_of()
    assert any(one.startswith("setuptools") for one in needs)
    assert any(one.startswith("ansible-core") for one in needs)
    assert not any(one.startswith("pytest") for one in needs)
    assert "community.docker" in bundle_build.collections_used()
    assert "ansible.builtin" not in bundle_build.collections_used()


# -- the seal ----------------------------------------------------------------------------------------------------------


def kept(tmp_path: Path, *, trust: bool = True) -> bundle_files.Kept:
    return bundle_files.Kept(tmp_path / "kept.json", trust=trust)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    for name, text in {"bundle.json": "{}", "wheels/a.whl": "a", "driver/b c.run": "b"}.items():
        bundle_files.write(directory / name, text)
    bundle_files.seal(directory, kept(tmp_path))
    return directory


def test_a_sealed_bundle_is_whole_for_sha256sum_too(sealed: Path, tmp_path: Path) -> None:
    assert bundle_files.verify(sealed, kept(tmp_path)) == []
    for file in (bundle.SEAL, bundle.SUMS):
        subprocess.run(["sha256sum", "--quiet", "--strict", "--check", file], cwd=sealed, check=True)


def damage_change(directory: Path) -> None:
    (directory / "wheels/a.whl").write_text("x")


def damage_same_size_and_time(directory: Path) -> None:
    path = directory / "wheels/a.whl"
    before = path.stat()
    path.write_text("x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def damage_missing(directory: Path) -> None:
    (directory / "driver/b c.run").unlink()


def damage_surplus(directory: Path) -> None:
    (directory / "driver/more.run").write_text("x")


def damage_link(directory: Path) -> None:
    (directory / "wheels/a.whl").rename(directory.parent / "a.whl")
    (directory / "wheels/a.whl").symlink_to(directory.parent / "a.whl")


def damage_linked_folder(directory: Path) -> None:
    (directory / "more").symlink_to("/etc")


def damage_list(directory: Path) -> None:
    path = directory / bundle.SUMS
    path.write_text(path.read_text().replace("driver/b c.run", "driver/other.run"))


@pytest.mark.parametrize(
    ("damage", "expected", "names"),
    [
        (damage_change, "bundle-changed", "wheels/a.whl"),
        (damage_same_size_and_time, "bundle-changed", "wheels/a.whl"),
        (damage_missing, "bundle-missing", "driver/b c.run"),
        (damage_surplus, "bundle-surplus", "driver/more.run"),
        (damage_link, "bundle-changed", "wheels/a.whl (a link)"),
        (damage_linked_folder, "bundle-surplus", "more"),
        (damage_list, "bundle-seal", bundle.SUMS),
        (lambda directory: (directory / bundle.SEAL).unlink(), "bundle-unsealed", bundle.SEAL),
        (lambda directory: (directory / bundle.SUMS).write_text(""), "bundle-seal", bundle.SUMS),
    ],
)
def test_each_damage_is_one_finding_that_names_the_file(
    sealed: Path, tmp_path: Path, damage: Callable[[Path], Any], expected: str, names: str
) -> None:
    assert bundle_files.verify(sealed, kept(tmp_path)) == []
    damage(sealed)
    found = bundle_files.verify(sealed, kept(tmp_path))
    assert ids(found) == [expected]
    assert found[0]["severity"] == "error"
    assert names in str(found[0]["evidence"])
    assert found[0]["fix"]


def test_all_damages_are_told_at_once(sealed: Path, tmp_path: Path) -> None:
    for damage in (damage_change, damage_missing, damage_surplus):
        damage(sealed)
    assert sorted(ids(bundle_files.verify(sealed, kept(tmp_path)))) == [
        "bundle-changed",
        "bundle-missing",
        "bundle-surplus",
    ]


def test_a_seal_that_came_another_way_is_compared(sealed: Path, tmp_path: Path) -> None:
    real = hashlib.sha256((sealed / bundle.SUMS).read_bytes()).hexdigest()
    assert bundle_files.verify(sealed, kept(tmp_path), f"sha256:{real}") == []
    assert ids(bundle_files.verify(sealed, kept(tmp_path), "0" * 64)) == ["bundle-seal"]


def test_unchanged_files_are_read_once(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = bundle_files.sha256
    monkeypatch.setattr(bundle_files, "sha256", lambda file: read.append(file.name) or real(file))
    assert bundle_files.verify(sealed, kept(tmp_path)) == []
    assert read == []
    assert bundle_files.verify(sealed, kept(tmp_path, trust=False)) == []
    assert sorted(read) == ["a.whl", "b c.run", "bundle.json"]


def test_a_place_without_a_bundle_says_so(tmp_path: Path) -> None:
    assert ids(bundle_files.verify(tmp_path / "nothing", kept(tmp_path))) == ["bundle-unsealed"]


# -- making ------------------------------------------------------------------------------------------------------------


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with Range, and breaks the first answer of a name that is to break off."""

    asked: list[tuple[str, str]]
    breaks: dict[str, int]
    place: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        content = Path(self.place + self.path).read_bytes()
        wanted = self.headers.get("Range", "")
        self.asked.append((self.path, wanted))
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        stop = self.breaks.pop(self.path, len(content))
        self.wfile.write(content[first:stop])


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, type[Files], Path]]:
    place = tmp_path / "mirror"
    place.mkdir()

    class Handler(Files):
        asked: list[tuple[str, str]] = []  # noqa: RUF012 - one list for the server's answers
        breaks: dict[str, int] = {}  # noqa: RUF012

    Handler.place = str(place)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler, place
    server.shutdown()
    thread.join()
    server.server_close()


def packages(place: Path, *, wrong: bool = False) -> dict[str, str]:
    """Driver packages of two architectures with their checksums; ``wrong`` spoils one of them."""
    names = (
        "Ascend-hdk-910b-npu-driver_25.2.0_linux-aarch64.run",
        "Ascend-hdk-910b-npu-driver_25.2.0_linux-x86_64.run",
    )
    place.mkdir(parents=True, exist_ok=True)
    sums = {}
    for name in (*names, "Ascend-hdk-910b-npu-firmware_7.7.0.6.236.run"):
        (place / name).write_bytes(name.encode() * 3000)
        sums[name] = hashlib.sha256((place / name).read_bytes()).hexdigest()
    if wrong:
        (place / names[0]).write_bytes(b"damaged")
    (place / "SHA256SUMS").write_text(bundle.sums_text(sums))
    return sums


def model(place: Path) -> Path:
    """A model of one shard that is whole."""
    place.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (place / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    (place / "config.json").write_text("{}")
    (place / ".lock").write_text("")
    return place


class Wheels(bundle_build.Builder):
    """A builder whose pip is a wheel of our own: the real one is asked by the sandbox's test."""

    pips = 0

    def _pip(self, target: Path, what: Any, python: str, machine: str) -> None:
        self.pips += 1
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target / "ansible-14-py3-none-any.whl", "w") as wheel:
            for name in bundle_build.collections_used():
                path = f"ansible_collections/{name.replace('.', '/')}/MANIFEST.json"
                wheel.writestr(zipfile.ZipInfo(path), json.dumps({"collection_info": {"version": "5.4.0"}}))


ABOUT = {"recipe": RECIPE, "cluster": "a3-cluster", "machines": ["aarch64"]}


@pytest.fixture
def made(plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A plan whose image a registry in memory has, and everything a bundle can hold."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    # The whole checkout is packed by the one test that looks at it.
    monkeypatch.setattr(bundle_build, "suite_files", lambda root: ["deploy.yml", "pyproject.toml"])
    with serve(Site()) as site:
        arm = site.image("arm", [b"base" * 5000, b"arm"])
        amd = site.image("amd", [b"base" * 5000, b"amd"], "amd64")
        site.index("v1", {"amd64": amd, "arm64": arm})
        reference = f"{site.host}/a/b:v1"
        for process in plan["processes"]:
            process["container"]["image"] = reference
        packages(tmp_path / "driver")
        (tmp_path / "debs").mkdir()
        (tmp_path / "debs" / "docker.io_1_arm64.deb").write_text("deb")
        (tmp_path / "debs" / "Packages").write_text("Package: docker.io\n")
        model(tmp_path / "weights" / plan["model"]["id"])
        parts, told = bundle.contents(
            plan,
            **ASKED,
            systems=[{**DEBIAN, "directory": str(tmp_path / "debs")}],
            driver=str(tmp_path / "driver"),
            weights=str(tmp_path / "weights"),
        )
        assert told == []
        yield {"plan": plan, "parts": parts, "site": site, "reference": reference, "path": tmp_path / "bundle"}


def builder(made: dict[str, Any]) -> Wheels:
    return Wheels(made["path"], insecure=["127.0.0.0/8"], say=lambda _: None)


def test_a_bundle_is_made_and_sealed(made: dict[str, Any], tmp_path: Path) -> None:
    one = builder(made)
    seal = one.build(made["parts"], ABOUT)
    path = made["path"]
    assert bundle_files.verify(path, kept(tmp_path), seal) == []
    names = set(bundle_files.listing(path))
    assert not [name for name in names if bundle_files.PARTIAL in name or bundle_build.WORK in name]
    assert {"suite.tar.gz", "setup", "wheels/3.12/ansible-14-py3-none-any.whl", "bundle.json"} <= names
    assert "os/debian-12-aarch64/docker.io_1_arm64.deb" in names
    run = sorted(name for name in names if name.startswith("driver/"))
    assert [name for name in run if "x86_64" in name] == []
    assert len(run) == 3
    assert sorted(bundle.parse_sums((path / "driver/SHA256SUMS").read_text())) == sorted(
        name.removeprefix("driver/") for name in run if name.endswith(".run")
    )
    weights = f"weights/{made['plan']['model']['id']}"
    assert {f"{weights}/model.safetensors", f"{weights}/config.json"} <= names
    assert f"{weights}/.lock" not in names
    digest = image_archive.find(path / "images", made["reference"])
    assert image_archive.blobs(path / "images", digest, "arm64")
    told = json.loads((path / "bundle.json").read_text())
    assert told["recipe"] == RECIPE
    assert told["parts"]["wheels"]["collections"]["community.docker"] == "5.4.0"
    assert os.access(path / "setup", os.X_OK)


def test_the_suite_in_a_bundle_is_this_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "bundle"
    parts = {"suite": {"wanted": {}, "fingerprint": "1"}}
    bundle_build.Builder(path).build(parts, ABOUT)
    with tarfile.open(path / "suite.tar.gz") as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "out", filter="data")
    first = hashlib.sha256((path / "suite.tar.gz").read_bytes()).hexdigest()
    assert "ascent/deploy.yml" in names
    assert not [name for name in names if "/.venv/" in name or "/.git/" in name]
    link = tmp_path / "out/ascent/playbooks/group_vars"
    assert link.is_symlink()
    assert (link / "all/ascent.yml").is_file()
    assert os.access(tmp_path / "out/ascent/tools/setup.sh", os.X_OK)
    bundle_build.Builder(path).build(parts, ABOUT, update=True)
    assert hashlib.sha256((path / "suite.tar.gz").read_bytes()).hexdigest() == first


def test_a_second_build_has_nothing_to_do(made: dict[str, Any]) -> None:
    builder(made).build(made["parts"], ABOUT)
    again = builder(made)
    assert again.due(made["parts"]) == []
    assert again.sealed()


def test_only_what_changed_is_made_again(made: dict[str, Any]) -> None:
    builder(made).build(made["parts"], ABOUT)
    sent, wheel = made["site"].sent(), made["path"] / "wheels/3.12/ansible-14-py3-none-any.whl"
    before = wheel.stat()
    parts, _ = bundle.contents(made["plan"], **{**ASKED, "suite": "2"})
    again = builder(made)
    assert again.due(parts) == ["suite", "setup", "os", "driver", "weights"]
    again.build(parts, ABOUT)
    assert again.pips == 0
    assert made["site"].sent() == sent
    assert wheel.stat() == before
    assert not (made["path"] / "weights").exists()
    assert again.sealed()


def test_an_interrupted_build_goes_on(made: dict[str, Any], tmp_path: Path) -> None:
    layer = "sha256:" + hashlib.sha256(b"base" * 5000).hexdigest()
    made["site"].breaks[layer] = 7000
    one = builder(made)
    with pytest.raises(AscentError, match="run it again"):
        one.build(made["parts"], ABOUT)
    assert ids(bundle_files.verify(made["path"], kept(tmp_path))) == ["bundle-unsealed"]
    sent, again = made["site"].sent(), builder(made)
    again.build(made["parts"], ABOUT)
    assert again.pips == 0, "wheels were finished before"
    assert made["site"].sent() - sent < 20000, "the layer was taken up where it broke"
    assert again.sealed()


@pytest.mark.parametrize("name", ["driver/SHA256SUMS", "wheels/3.12/ansible-14-py3-none-any.whl", "weights", "images"])
def test_damage_is_mended_and_never_sealed(made: dict[str, Any], name: str) -> None:
    seal = builder(made).build(made["parts"], ABOUT)
    path = made["path"] / name
    if path.is_dir():
        path = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    before = path.read_bytes()
    status = path.stat()
    path.write_bytes(b"x" * len(before))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = builder(made)
    assert not again.sealed()
    again.build(made["parts"], ABOUT)
    assert path.read_bytes() == before
    assert builder(made).sealed()
    assert seal


def test_a_file_of_no_part_is_never_sealed(made: dict[str, Any]) -> None:
    builder(made).build(made["parts"], ABOUT)
    (made["path"] / "notes.txt").write_text("x")
    with pytest.raises(AscentError, match=r"notes\.txt is no part of the bundle"):
        builder(made).build(made["parts"], ABOUT)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: packages(place / "driver", wrong=True), "it is damaged"),
        (lambda place: (place / "driver/SHA256SUMS").unlink(), "without checksums are not bundled"),
        (lambda place: next((place / "driver").glob("*aarch64.run")).unlink(), "which is not there"),
        (lambda place: (place / "driver/SHA256SUMS").write_text(""), "names no package for aarch64"),
        (lambda place: next((place / "weights").rglob("*.safetensors")).write_bytes(b"cut"), "no complete"),
        (lambda place: (place / "debs/docker.io_1_arm64.deb").unlink(), "has no packages"),
    ],
)
def test_a_bad_source_ends_the_build_with_its_name(
    made: dict[str, Any], tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(tmp_path)
    with pytest.raises(AscentError, match=message):
        builder(made).build(made["parts"], ABOUT)
    assert not (made["path"] / bundle.SEAL).exists()


def test_packages_come_over_http_and_are_resumed(
    made: dict[str, Any], mirror: tuple[str, type[Files], Path], tmp_path: Path
) -> None:
    url, server, place = mirror
    sums = packages(place)
    parts, _ = bundle.contents(made["plan"], **ASKED, driver=url)
    name = next(one for one in sums if "aarch64" in one)
    server.breaks[f"/{name}"] = 1000
    builder(made).build({"driver": parts["driver"]}, ABOUT)
    assert (made["path"] / "driver" / name).read_bytes() == (place / name).read_bytes()
    assert (f"/{name}", "bytes=1000-") in server.asked


def test_packages_that_are_not_what_the_mirror_lists_are_refused(
    made: dict[str, Any], mirror: tuple[str, type[Files], Path]
) -> None:
    url, _, place = mirror
    packages(place, wrong=True)
    parts, _ = bundle.contents(made["plan"], **ASKED, driver=url)
    with pytest.raises(AscentError, match=r"could not be fetched in \d tries: it has sha256"):
        builder(made).build({"driver": parts["driver"]}, ABOUT)


# -- using -------------------------------------------------------------------------------------------------------------


def node(*, installed: bool = False, version: str = "12", complete: bool = True) -> dict[str, Any]:
    return {
        "system": {"os": {"id": "debian", "version": version, "family": "debian"}, "machine": "aarch64"},
        "container_engine": {"installed": installed},
        "weights": {"complete": complete},
    }


DESCRIPTION: dict[str, Any] = {
    "recipe": RECIPE,
    "machines": ["aarch64"],
    "parts": {"os": {"systems": [DEBIAN]}, "weights": {"id": "Eco-Tech/Qwen3.5-397B-A17B-w8a8-mtp"}},
}


def test_a_fitting_bundle_has_nothing_against_it(plan: dict[str, Any]) -> None:
    nodes = {name: node(complete=False) for name in plan["hosts"]}
    assert bundle.fit_findings(plan, nodes, DESCRIPTION) == []


def test_a_release_without_packages_is_named_with_its_host(plan: dict[str, Any]) -> None:
    nodes = {"a3-01": node(), "a3-02": node(version="13"), "a3-03": node(version="13", installed=True)}
    told = bundle.fit_findings(plan, nodes, DESCRIPTION)
    assert [(item["id"], item["host"], item["severity"]) for item in told] == [("bundle-lacks", "a3-02", "error")]
    assert "debian-13-aarch64" in told[0]["summary"]


def test_a_bare_host_whose_driver_could_not_be_built_is_told(plan: dict[str, Any]) -> None:
    with_driver = {**DESCRIPTION, "parts": {**DESCRIPTION["parts"], "driver": {"packages": ["a.run"]}}}
    ready = {"npu": {"driver": {"version": "25.5.2"}}}
    nodes = {
        "a3-01": node(),
        "a3-02": {**node(version="13", installed=True), "npu": {"driver": None}},
        "a3-03": {**node(version="13", installed=True), **ready},
    }
    told = bundle.fit_findings(plan, nodes, with_driver)
    assert [(item["id"], item["host"], item["severity"]) for item in told] == [("bundle-lacks", "a3-02", "warning")]
    assert "a driver is built with" in told[0]["summary"]


def test_images_and_weights_that_are_not_in_are_told(plan: dict[str, Any]) -> None:
    bare = {"recipe": "other", "machines": ["aarch64"], "parts": {}}
    nodes = {name: node(installed=True, complete=name != "a3-02") for name in plan["hosts"]}
    told = bundle.fit_findings(plan, nodes, bare, ["images has no image x"])
    assert [(item["id"], item["severity"]) for item in told] == [("bundle-lacks", "error"), ("bundle-lacks", "warning")]
    assert "a3-02" in told[1]["evidence"]
    assert "other" in told[0]["evidence"]


def test_sources_beside_the_bundle_are_refused() -> None:
    values = {
        "npu_driver_source": {"a3-01": "/srv/bundle/driver", "a3-02": "http://192.0.2.9/driver"},
        "cann_source": {"a3-01": "", "a3-02": ""},
        "images_archive": {"a3-01": "/srv/bundle-old/images", "a3-02": "/srv/bundle/images"},
    }
    told = bundle.sources_outside("/srv/bundle", values)
    assert [item["summary"].split()[0] for item in told] == ["images_archive", "npu_driver_source"]
    assert "http://192.0.2.9/driver on a3-02" in told[1]["evidence"]


PLAY = """
- hosts: clusters
  gather_facts: false
  tasks:
    - bundle: {state: verified, path: "%s", seal: "%s"}
      run_once: true
"""


def test_a_run_stops_at_a_broken_seal(sealed: Path, tmp_path: Path) -> None:
    whole = playbook_runs.play(tmp_path, PLAY % (sealed, ""))
    assert whole.rc == 0, whole.output
    damage_change(sealed)
    broken = playbook_runs.play(tmp_path, PLAY % (sealed, ""))
    assert broken.rc != 0
    assert "bundle-changed" in broken.output
    assert "wheels/a.whl" in broken.output


SYSTEMS = [
    ("debian", "12"),
    ("ubuntu", "22.04"),
    ("openEuler", "22.03"),
    ("kylin", "V10"),
    ("rocky", "9.4"),
    ("centos", "8"),
]


@pytest.mark.parametrize(("name", "version"), SYSTEMS)
def test_what_a_driver_is_built_with_belongs_in(name: str, version: str) -> None:
    """By release; the headers are those of the kernel that runs where they are downloaded."""
    action = load_action()
    found = action._driver_packages({"id": name, "version": version})
    assert {"gcc", "make", "pciutils", "net-tools"} <= set(found)
    assert ("dkms" in found) == (name not in ("rocky", "centos")), "those have none"
    headers = [one for one in found if "{kernel}" in one]
    assert headers == (
        ["linux-headers-{kernel}"]
        if name in ("debian", "ubuntu")
        else ["kernel-devel-{kernel}", "kernel-headers-{kernel}"]
    )
    assert not any("{{" in one for one in found)


def load_action() -> Any:
    """The action plugin as a module; Ansible has no package for it."""
    path = playbook_runs.ROOT / "plugins/action/bundle.py"
    spec = importlib.util.spec_from_file_location("bundle_action", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_verifies_before_it_reads_any_node() -> None:
    play = yaml.safe_load((playbook_runs.ROOT / "playbooks/plan.yml").read_text())[0]
    known = ("launch_plan", "bundle", "cluster_lock", "node_info")
    order = [next((key for key in known if key in task), "") for task in play["tasks"]]
    assert order.index("bundle") < min(order.index("cluster_lock"), order.index("node_info"))
