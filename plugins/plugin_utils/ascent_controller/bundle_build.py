"""Makes the parts of a bundle. Each part is finished or taken up again; what a part no longer wants goes."""

from __future__ import annotations

__all__ = ["Builder", "collections_used", "release_of", "requirements_of", "suite_files", "suite_fingerprint"]

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ascent import registry, weights
from ascent.errors import AscentError
from ascent.image_pulls import ARCHITECTURES
from ascent_controller import bundle, bundle_files, image_archive, loader

#: What a part that is being made says of itself, beside the bundle until it is sealed.
WORK = ".building"
#: Folders of a checkout that are no part of the suite where git can't tell, and those with a dot that are.
_NOT_SUITE = ("runs", "__pycache__", "artifacts")
_DOTTED = (".ci", ".config")
_COLLECTION = re.compile(r"^\s*-?\s*(?:ansible\.builtin\.)?([a-z_]+\.[a-z_]+)\.[a-z_0-9]+:", re.M)


# -- the suite ---------------------------------------------------------------------------------------------------------


def suite_files(root: Path = loader.ROOT) -> list[str]:
    """The files of this checkout by relative path: those git keeps or would keep, else all but what runs make."""
    done = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if done.returncode == 0 and done.stdout:
        names = os.fsdecode(done.stdout).split("\0")
    else:
        names = [name for name in bundle_files.listing(root) if not any(map(_is_made, Path(name).parts[:-1]))]
    return sorted(name for name in set(names) if name and (root / name).exists())


def _is_made(folder: str) -> bool:
    """Whether a folder holds what runs and tools make."""
    return folder in _NOT_SUITE or (folder.startswith(".") and folder not in _DOTTED)


def suite_fingerprint(names: Sequence[str], root: Path = loader.ROOT) -> str:
    """A checksum over names and contents."""
    total = hashlib.sha256()
    for name in names:
        path = root / name
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def requirements_of(root: Path = loader.ROOT) -> list[str]:
    """What the suite needs to be installed and run: its build system's packages and its own dependencies."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return [*project["build-system"]["requires"], *project["project"]["dependencies"], "pip", "wheel"]


def collections_used(root: Path = loader.ROOT) -> list[str]:
    """Collections whose modules playbooks and roles call, but for Ansible's own."""
    files = [*root.glob("*.yml"), *root.glob("playbooks/*.yml"), *root.glob("roles/*/tasks/*.yml")]
    found = {name for file in files for name in _COLLECTION.findall(file.read_text(encoding="utf-8"))}
    return sorted(found - {"ansible.builtin"})


def release_of(root: Path = loader.ROOT) -> str:
    """How git calls this checkout; empty where there is no git."""
    done = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


# -- the parts ---------------------------------------------------------------------------------------------------------


class Builder:
    """Makes one bundle at ``path``; ``archives`` has the packages that nodes have downloaded, by release."""

    def __init__(
        self,
        path: Path,
        *,
        root: Path = loader.ROOT,
        insecure: Sequence[str] = (),
        archives: Mapping[str, str] | None = None,
        say: bundle_files.Say = print,
    ) -> None:
        self.path = path
        self.root = root
        self.archives = archives or {}
        self.say = say
        self._insecure = list(insecure)
        self._told: dict[str, int] = {}
        self._kept = bundle_files.Kept(bundle_files.Kept.default(path))

    def description(self) -> dict[str, Any] | None:
        """What a finished bundle at this place says of itself."""
        try:
            found = json.loads((self.path / bundle.DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "parts" in found else None

    def due(self, parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The parts that have to be made, and those that have to go."""
        known = (self.description() or {}).get("parts") or {}
        there = {name: (one or {}).get("fingerprint") for name, one in known.items()}
        wanted = {name: part["fingerprint"] for name, part in parts.items()}
        return [name for name in bundle.PARTS if there.get(name) != wanted.get(name)]

    def has(self, name: str, fingerprint: str) -> bool:
        """Whether a part is there and finished."""
        return self._finished(name, fingerprint) is not None

    def sealed(self) -> bool:
        """Whether the bundle that is there is whole."""
        return not bundle_files.verify(self.path, self._kept)

    def build(self, parts: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any], *, update: bool = False) -> str:
        """Make what is missing, describe it and seal it; returns the seal. Interrupted, it goes on the next time."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._forget_damage()
        (self.path / bundle.SEAL).unlink(missing_ok=True)
        told: dict[str, Any] = {}
        for name, part in parts.items():
            made = None if update else self._finished(name, part["fingerprint"])
            if made is None:
                self.say(f"{name}: {bundle.PARTS[name].partition(': ')[2]}")
                self._begin(name, part["fingerprint"])
                made = getattr(self, f"_make_{name}")(part["wanted"])
                self._finish(name, part["fingerprint"], made)
            told[name] = {"fingerprint": part["fingerprint"], **made}
        for name in set(bundle.PARTS) - set(parts):
            self._drop(name)
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        description = {"schema": 1, **about, "created": created, "parts": told}
        bundle_files.write(
            self.path / bundle.DESCRIPTION, json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        )
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        for left in self.path.rglob(f"*{bundle_files.PARTIAL}"):
            left.unlink()
        self.say("seal: reading every file once")
        return bundle_files.seal(self.path, self._kept)

    # -- what was made before ------------------------------------------------------------------------------------------

    def _forget_damage(self) -> None:
        """Take what is not as it was sealed for not made; AscentError for files that belong to no part."""
        try:
            sums = bundle.parse_sums((self.path / bundle.SUMS).read_text(encoding="utf-8"))
        except OSError:
            return
        found = {
            name: kind
            for name, kind in bundle_files.listing(self.path).items()
            if not name.startswith(f"{WORK}/") and not name.endswith(bundle_files.PARTIAL)
        }
        plain = [name for name, kind in found.items() if kind is None and name in sums]
        missing, changed, surplus = bundle.differences(
            sums, found, hashed=bundle_files.hashes(self.path, plain, self._kept)
        )
        damaged: dict[str, list[str]] = {}
        for name in {*missing, *changed, *surplus} - {bundle.DESCRIPTION}:
            part = "suite" if name == "suite.tar.gz" else name.partition("/")[0]
            if part not in bundle.PARTS:
                raise AscentError(f"{self.path / name} is no part of the bundle; move it out of {self.path}")
            # What is being made again differs from the last seal anyway.
            if not self._state(part):
                damaged.setdefault(part, []).append(name)
        for part, names in damaged.items():
            self._write_state(part, {"fingerprint": "", "begun": True})
            for name in set(names) & set(changed):
                (self.path / name).unlink()

    def _state(self, name: str) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.path / WORK / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state

    def _finished(self, name: str, fingerprint: str) -> dict[str, Any] | None:
        """What a part that is finished says of itself; None when it has to be made."""
        state = self._state(name) or ((self.description() or {}).get("parts") or {}).get(name) or {}
        if state.get("fingerprint") != fingerprint or state.get("begun"):
            return None
        return {key: value for key, value in state.items() if key != "fingerprint"}

    def _begin(self, name: str, fingerprint: str) -> None:
        state = self._state(name) or ((self.description() or {}).get("parts") or {}).get(name) or {}
        # Files of another content would be sealed along; those that are found by their checksum are kept for reuse.
        if state.get("fingerprint") != fingerprint and name not in ("images", "weights"):
            self._drop(name)
        self._write_state(name, {"fingerprint": fingerprint, "begun": True})

    def _finish(self, name: str, fingerprint: str, made: Mapping[str, Any]) -> None:
        self._write_state(name, {"fingerprint": fingerprint, **made})

    def _write_state(self, name: str, state: Mapping[str, Any]) -> None:
        bundle_files.write(self.path / WORK / f"{name}.json", json.dumps(state))

    def _drop(self, name: str) -> None:
        place = self.path / ("suite.tar.gz" if name == "suite" else name)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    # -- one part each -------------------------------------------------------------------------------------------------

    def _make_suite(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The checkout as one archive, since runs leave files in it. The same checkout gives the same bytes."""
        raw = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for name in suite_files(self.root):
                member = archive.gettarinfo(str(self.root / name), arcname=f"ascent/{name}")
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                member.mtime = 0
                member.mode = 0o755 if member.mode & 0o100 else 0o644
                if member.isfile():
                    archive.addfile(member, io.BytesIO((self.root / name).read_bytes()))
                else:
                    archive.addfile(member)
        (self.path / "suite.tar.gz").write_bytes(raw.getvalue())
        return {"release": release_of(self.root)}

    def _make_setup(self, _: Mapping[str, Any]) -> dict[str, Any]:
        text = (self.root / "tools" / "bundle_setup.sh").read_text(encoding="utf-8")
        bundle_files.write(self.path / "setup", text, 0o755)
        return {}

    def _make_wheels(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        for python in wanted["pythons"]:
            self._pip(
                self.path / "wheels" / python,
                [*wanted["requirements"], "--constraint", str(self.root / "constraints.txt")],
                python,
                wanted["machine"],
            )
        collections = {}
        for name in collections_used(self.root):
            version = _collection_version(self.path / "wheels" / wanted["pythons"][0], name)
            if version is None:
                raise AscentError(f"collection {name} is in none of the wheels: the ansible package no longer has it")
            collections[name] = version
        return {"pythons": wanted["pythons"], "machine": wanted["machine"], "collections": collections}

    def _make_engine_wheels(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        for machine in wanted["machines"]:
            self._pip(self.path / "engine_wheels" / machine, wanted["packages"], wanted["python"], machine)
        return {"packages": wanted["packages"], "python": wanted["python"]}

    def _pip(self, target: Path, what: Sequence[str], python: str, machine: str) -> None:
        """Download wheels with this Python's pip, for any Python and machine."""
        target.mkdir(parents=True, exist_ok=True)
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        other = [] if (python, machine) == (own, os.uname().machine) else ["--python-version", python]
        if other:
            other += [word for name in bundle.wheel_platforms(machine) for word in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--only-binary=:all:", "--dest", str(target), *other, *what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AscentError(f"pip download for Python {python} on {machine} failed:\n{done.stderr.strip()}")

    def _make_os(self, wanted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        systems = []
        for system in wanted:
            name = bundle.system_directory(system)
            target = self.path / "os" / name
            if system.get("directory"):
                source = Path(system["directory"])
                files = sorted(bundle_files.listing(source))
                if not any(one.endswith((".deb", ".rpm")) for one in files):
                    raise AscentError(f"{source} has no packages for {name}")
                for one in files:
                    bundle_files.copy(source / one, target / one)
            else:
                archive = self.archives.get(name)
                if archive is None:
                    raise AscentError(f"no host has downloaded packages for {name}")
                target.mkdir(parents=True, exist_ok=True)
                with tarfile.open(archive) as opened:
                    opened.extractall(target, filter="data")
            count = len([one for one in bundle_files.listing(target) if one.endswith((".deb", ".rpm"))])
            systems.append({key: system[key] for key in ("id", "version", "machine", "packages")} | {"files": count})
        return {"systems": systems}

    def _make_driver(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        return self._packages("driver", wanted)

    def _make_cann(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        return self._packages("cann", wanted)

    def _packages(self, part: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """``.run`` packages of a directory or URL, checked by the ``SHA256SUMS`` that is there."""
        source = str(wanted["source"]).rstrip("/")
        remote = source.startswith(("http://", "https://"))
        place = f"{source}/{bundle.SUMS}"
        try:
            if remote:
                with urllib.request.urlopen(place, timeout=60) as answer:  # noqa: S310 - the operator's own URL
                    text = answer.read().decode("utf-8")
            else:
                text = Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, urllib.error.URLError) as error:
            raise AscentError(f"{place} can't be read ({error}): packages without checksums are not bundled") from error
        sums = bundle.parse_sums(text)
        chosen = bundle.choose_packages(sums, wanted["machines"])
        if not chosen:
            raise AscentError(f"{place} names no package for {', '.join(wanted['machines'])}")
        for name in chosen:
            target = self.path / part / name
            if remote:
                bundle_files.fetch(f"{source}/{name}", target, sums[name], say=self.say)
            else:
                try:
                    bundle_files.copy(Path(source) / name, target, sums[name])
                except FileNotFoundError as error:
                    raise AscentError(f"{place} names {name}, which is not there") from error
        bundle_files.write(self.path / part / bundle.SUMS, bundle.sums_text({name: sums[name] for name in chosen}))
        bundle_files.remove_others(self.path / part, [*chosen, bundle.SUMS])
        return {"packages": chosen}

    def _make_images(self, wanted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        layout = self.path / "images"
        # Names of images that are no longer wanted go with the index; blobs that are, stay.
        (layout / "index.json").unlink(missing_ok=True)
        machines: dict[str, list[str]] = {}
        for one in wanted:
            machines.setdefault(one["reference"], []).append(one["machine"])
        made, keep = [], {"oci-layout", "index.json"}
        for reference, names in sorted(machines.items()):
            unknown = sorted(set(names) - set(ARCHITECTURES))
            if unknown:
                raise AscentError(f"{reference}: no images are known for {', '.join(unknown)}")
            architectures = [ARCHITECTURES[name] for name in names]
            digest = image_archive.save(
                layout, reference, architectures, client=self._client(reference), progress=self._tell
            )
            for architecture in architectures:
                blobs = image_archive.blobs(layout, digest, architecture)
                keep |= {f"blobs/sha256/{blob.partition(':')[2]}" for blob in blobs}
            made.append({"reference": reference, "digest": digest, "machines": names})
        bundle_files.remove_others(layout, keep)
        return {"images": made}

    def _client(self, reference: str) -> registry.Client:
        """A registry as the nodes' engines are to ask it, with this user's own login."""
        host = registry.split(reference).host
        folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
        try:
            login = registry.credentials(host, json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            login = None
        networks = [one for one in self._insecure if "/" in one]
        names = {one: {"Secure": False} for one in self._insecure if "/" not in one}
        return registry.Client(host, settings={"InsecureRegistryCIDRs": networks, "IndexConfigs": names}, login=login)

    def _tell(self, digest: str, came: int, size: int) -> None:
        """A line for every so many bytes of a large blob."""
        step = 512 << 20
        if size > step and (came == size or came // step != self._told.get(digest, 0)):
            self._told[digest] = came // step
            self.say(f"images: {digest[7:19]} {came >> 20} of {size >> 20} MiB")

    def _make_weights(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        model = str(wanted["id"])
        source = Path(wanted["source"])
        source = source / model if (source / model).is_dir() else source
        state = weights.inspect(str(source))
        if not state["complete"]:
            wrong = {key: ", ".join(state[key][:3]) for key in ("missing", "pointers", "truncated") if state[key]}
            raise AscentError(f"{source} has no complete {model}: {wrong or 'nothing is there'}")
        target = self.path / "weights" / model
        names = []
        # Links are followed: a hub's cache has its files behind links.
        for parent, folders, files in os.walk(source, followlinks=True):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for file in sorted(files):
                if file.startswith(".") or file.endswith((".incomplete", bundle_files.PARTIAL)):
                    continue
                name = str((Path(parent) / file).relative_to(source))
                if bundle_files.copy(Path(parent) / file, target / name):
                    self.say(f"weights: {name}")
                names.append(f"{model}/{name}")
        # Where these are unpacked they are compared with these sums, without reading everything once more for them.
        own = [name.removeprefix(f"{model}/") for name in names]
        sums = bundle_files.hashes(target, own, self._kept)
        bundle_files.write(target / bundle.SUMS, bundle.sums_text(sums))
        bundle_files.remove_others(self.path / "weights", [*names, f"{model}/{bundle.SUMS}"])
        return {"id": model, "files": len(names)}


def _collection_version(wheels: Path, name: str) -> str | None:
    """The version of a collection inside the wheel of the ansible package."""
    path = f"ansible_collections/{name.replace('.', '/')}/MANIFEST.json"
    for wheel in sorted(wheels.glob("ansible-*.whl")):
        with zipfile.ZipFile(wheel) as opened:
            try:
                return str(json.loads(opened.read(path))["collection_info"]["version"])
            except (KeyError, ValueError):
                continue
    return None
