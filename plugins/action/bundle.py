"""Action plugin ``bundle``: makes, verifies and judges bundles for sites without internet. Contacts no host."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ascent import node
from ascent.errors import AscentError
from ascent.findings import failed, finding, message, sort_findings
from ascent.image_pulls import ARCHITECTURES
from ascent_controller import bundle, bundle_archive, bundle_build, bundle_files, facts, image_archive, loader

#: Variables that say where a role takes its artifacts from.
_SOURCES = (
    "npu_driver_source",
    "npu_driver_packages_archive",
    "cann_source",
    "container_engine_archive",
    "images_archive",
    "weights_archive",
    "engine_environment_wheels",
)


class ActionModule(ActionBase):
    """``state``: ``planned`` tells what has to be downloaded on nodes first, ``built`` makes the bundle, ``verified``
    compares it with its seal, ``fits`` judges whether it has what the plan needs on these nodes.
    """

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Findings of all states; ``planned`` adds ``downloads``, ``built`` adds ``path`` and ``seal``."""
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {
                "state": {"type": "str", "choices": ["planned", "built", "verified", "fits"], "required": True},
                "path": {"type": "path", "required": True},
                "archive": {"type": "path", "default": ""},
                "seal": {"type": "str", "default": ""},
                "reread": {"type": "bool", "default": False},
                "systems": {"type": "list", "elements": "dict", "default": []},
                "packages": {"type": "list", "elements": "str", "default": []},
                "pythons": {"type": "list", "elements": "str", "default": []},
                "machine": {"type": "str", "default": ""},
                "driver": {"type": "str", "default": ""},
                "driver_tools": {"type": "bool", "default": True},
                "cann": {"type": "str", "default": ""},
                "images": {"type": "bool", "default": True},
                "engine_python": {"type": "str", "default": ""},
                "weights": {"type": "str", "default": ""},
                "update": {"type": "bool", "default": False},
                "insecure_registries": {"type": "list", "elements": "str", "default": []},
            }
        )
        result.update({"changed": False, "findings": []})
        path = Path(bundle_archive.directory_of(given["path"])).resolve()
        try:
            if given["state"] == "verified":
                kept = bundle_files.Kept(bundle_files.Kept.default(path), trust=not given["reread"])
                told = self._unpack(Path(given["archive"]), path, kept, given["seal"])
                told = told or bundle_files.verify(path, kept, given["seal"])
                return self._told(result, told, f"{path} is whole: every file is as it was sealed")
            if given["state"] == "fits":
                return self._told(result, self._fit(path, task_vars or {}), f"{path} has what this run needs")
            return self._make(path, given, task_vars or {}, result)
        except AscentError as error:
            fix = "correct it and run again: it goes on from here"
            return self._told(result, [finding("bundle-failed", "error", str(error), stage="bundle", fix=fix)], "")

    @staticmethod
    def _told(result: dict[str, Any], findings: list[dict[str, Any]], well: str) -> dict[str, Any]:
        found = sort_findings(findings)
        return {**result, "findings": found, "failed": failed(found), "msg": message(found) or well}

    @staticmethod
    def _say(line: str) -> None:
        Display().display(f"    {line}")

    # -- using a bundle ------------------------------------------------------------------------------------------------

    def _unpack(self, archive: Path, path: Path, kept: bundle_files.Kept, seal: str) -> list[dict[str, Any]]:
        """A bundle that is one file becomes a directory on this machine, in a dry run too: only that can be read."""
        if not bundle_archive.is_archive(archive):
            return []
        try:
            return bundle_archive.unpack(archive.resolve(), path, kept, seal, self._say)
        except OSError as error:
            raise AscentError(f"{archive} can't be unpacked to {path}: {error.strerror or error}") from error

    def _fit(self, path: Path, task_vars: Mapping[str, Any]) -> list[dict[str, Any]]:
        description = bundle_build.Builder(path).description()
        if description is None:
            raise AscentError(f"{path / bundle.DESCRIPTION} can't be read")
        nodes = facts.nodes(dict(task_vars))
        plan = facts.plan(task_vars)
        told = bundle.fit_findings(plan, nodes, description, _lacking(path, bundle.images_wanted(plan)))
        values: dict[str, dict[str, str]] = {name: {} for name in _SOURCES}
        for host in nodes:
            for name in _SOURCES:
                try:
                    values[name][host] = str(task_vars["hostvars"][host].get(name) or "")
                except AnsibleUndefinedVariable:
                    # Made of what only the host's own tasks know: the role that takes it will tell.
                    continue
        return told + bundle.sources_outside(str(path), values)

    # -- making one ----------------------------------------------------------------------------------------------------

    def _make(
        self, path: Path, given: Mapping[str, Any], task_vars: Mapping[str, Any], result: dict[str, Any]
    ) -> dict[str, Any]:
        plan = facts.plan(task_vars)
        systems = [_system(one) for one in given["systems"]]
        driver = bool(given["driver"]) and any(host["vendor"] == "ascend" for host in plan["hosts"].values())
        tools = driver and given["driver_tools"]
        packages = {
            bundle.system_directory(one): sorted(
                {*_engine_packages(one), *(_driver_packages(one) if tools else ()), *given["packages"]}
            )
            for one in systems
            if not one.get("directory")
        }
        machine = given["machine"] or platform.machine()
        pythons = given["pythons"] or [f"{sys.version_info.major}.{sys.version_info.minor}"]
        parts, told = bundle.contents(
            plan,
            suite=bundle_build.suite_fingerprint(bundle_build.suite_files()),
            requirements=bundle_build.requirements_of(),
            constraints=(loader.ROOT / "constraints.txt").read_text(encoding="utf-8"),
            pythons=pythons,
            machine=machine,
            systems=systems,
            packages=packages,
            **{name: given[name] for name in ("driver", "cann", "images", "engine_python", "weights")},
        )
        downloads = {bundle.system_directory(one): one for one in systems if not one.get("directory")}
        builder = bundle_build.Builder(
            path,
            insecure=given["insecure_registries"],
            archives={name: str(path / bundle_build.WORK / "os" / f"{name}.tar") for name in downloads},
            say=self._say,
        )
        due = list(parts) if given["update"] else builder.due(parts)
        if given["state"] == "planned":
            result["directory"] = str(path)
            result["downloads"] = [
                {
                    "name": name,
                    "host": one["host"],
                    "manager": _vars(one)["_container_engine_manager"],
                    "release": one["version"],
                    "packages": packages[name],
                }
                for name, one in downloads.items()
                if given["update"] or not builder.has("os", parts["os"]["fingerprint"])
            ]
            return self._told(result, told, f"to be made: {', '.join(due) or 'nothing'}")
        archive = Path(given["path"]) if bundle_archive.is_archive(given["path"]) else None
        result["path"] = str(archive or path)
        whole = not due and builder.sealed()
        if whole and (archive is None or _carries(archive, _seal(path))):
            return self._told({**result, "seal": _seal(path)}, told, f"{archive or path} is as wanted")
        result["changed"] = True
        if self._task.diff or self._task.check_mode:
            result["diff"] = [{"before": "", "after": "".join(f"{name}: {bundle.PARTS[name]}\n" for name in due)}]
        if self._task.check_mode:
            return self._told(result, told, f"would make {', '.join(due) or 'the seal'}")
        about = {
            "recipe": plan["recipe"],
            "cluster": plan["cluster"],
            "machines": sorted({host["arch"] for host in plan["hosts"].values()}),
        }
        seal = _seal(path) if whole else builder.build(parts, about, update=given["update"])
        words = f"{path} is sealed: {bundle.SUMS} has sha256 {seal}"
        if archive is not None:
            digest = bundle_archive.pack(path, archive, self._say)
            words += f"; {archive} holds all of it: the file has sha256 {digest}"
        return self._told({**result, "seal": seal}, told, words)


def _lacking(path: Path, wanted: Iterable[tuple[str, str]]) -> list[str]:
    """What the bundle's archive says of images that it has not."""
    told = []
    for reference, machine in wanted:
        try:
            digest = image_archive.find(path / "images", reference)
            image_archive.blobs(path / "images", digest, ARCHITECTURES.get(machine, machine))
        except AscentError as error:
            told.append(str(error))
    return told


def _carries(archive: Path, seal: str) -> bool:
    """Whether there is an archive of the bundle with this seal."""
    try:
        return archive.is_file() and bundle_archive.seal_of(archive) == seal
    except AscentError:
        return False


def _seal(path: Path) -> str:
    return bundle.parse_sums((path / bundle.SEAL).read_text(encoding="utf-8"))[bundle.SUMS]


def _system(given: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of bundle_systems, checked."""
    unknown = sorted(set(given) - {"id", "version", "machine", "directory", "host"})
    lacking = sorted({"id", "version", "machine"} - set(given))
    if unknown or lacking or ("directory" in given) == ("host" in given):
        raise AnsibleActionFail(
            f"bundle_systems: {dict(given)} is no system; wanted: id, version and machine as in "
            "/etc/os-release and `uname -m`, and either directory (its packages) or host (who downloads them)"
        )
    return {key: str(value) for key, value in given.items()}


def _vars(system: Mapping[str, Any]) -> dict[str, Any]:
    """What the role container_engine knows of a release, found as the role finds it."""
    family = node.os_family(system["id"], ())
    names = (f"{system['id']}-{system['version'].partition('.')[0]}", system["id"], f"family-{family}")
    return _role_vars("container_engine", names, system)


def _role_vars(role: str, names: Iterable[str], system: Mapping[str, Any]) -> dict[str, Any]:
    """The first of these files among the role's variables."""
    folder = loader.ROOT / "roles" / role / "vars"
    for name in names:
        if (folder / f"{name}.yml").is_file():
            found: dict[str, Any] = yaml.safe_load((folder / f"{name}.yml").read_text(encoding="utf-8"))
            return found
    raise AnsibleActionFail(f"bundle_systems: the packages of {system['id']} are not known; give a directory with them")


def _engine_packages(system: Mapping[str, Any]) -> list[str]:
    if system.get("directory"):
        return []
    known = _vars(system)
    return [*known["_container_engine_distribution"], *known["_container_engine_client"]]


def _driver_packages(system: Mapping[str, Any]) -> list[str]:
    """What building the driver takes there, as the role npu_driver finds it; the headers of the kernel that runs."""
    family = node.os_family(system["id"], ())
    known = _role_vars("npu_driver", ("debian",) if family == "debian" else (system["id"].lower(), str(family)), system)
    kernel = re.compile(r"\{\{ *_npu_driver_system\.kernel *\}\}")
    return [*(kernel.sub("{kernel}", name) for name in known["_npu_driver_headers"]), *known["_npu_driver_tools"]]
