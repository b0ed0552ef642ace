"""Images from an archive on the controller: their digests, and their parts onto the host that hands them on."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ascent import image_pulls
from ascent.errors import AscentError
from ascent.findings import finding, message
from ascent_controller import image_archive, saved_images
from ascent_controller.progress import Progress

#: More of a host's disk is left free than this, beside the parts.
_SPARE_MB = 64


class ActionModule(ActionBase):
    """``archive`` is a directory as `ascent_controller.image_archive` describes it, or files of ``docker save``
    (`ascent_controller.saved_images`).

    With ``references``: their digests, in ``digests``, as the module ``image_lookup`` returns them; ``machine`` is what
    the images have to be for. With ``images``, a list of ``{"reference", "digest", "machines"}``: the parts that hosts
    of those machines need are brought into ``store``; all are read and compared with their digests before.
    """

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Look up or copy; what is wrong with the archive is a finding."""
        result = super().run(tmp, task_vars)
        self._task_vars = task_vars or {}
        _, given = self.validate_argument_spec(
            {
                "archive": {"type": "path", "required": True},
                "references": {"type": "list", "elements": "str"},
                "machine": {"type": "str", "default": ""},
                "images": {"type": "list", "elements": "dict", "default": []},
                "store": {"type": "path"},
            }
        )
        self._host = str(self._task_vars.get("inventory_hostname", ""))
        found: dict[str, Any] = {"changed": False, "digests": {}, "findings": [], "copied_mb": 0}
        wanted = given["references"] or [str(image["reference"]) for image in given["images"]]
        try:
            given = {**given, "archive": str(saved_images.layout_of(given["archive"], self._say))}
        except (AscentError, OSError) as error:
            found["findings"].append(image_pulls.explain(", ".join(wanted), str(error), self._host))
        else:
            if given["references"] is not None:
                self._lookup(given, found)
            else:
                self._copy(given, found)
        if found["findings"]:
            found.update(changed=False, failed=True, msg=message(found["findings"]))
        return {**result, **found}

    @staticmethod
    def _say(line: str) -> None:
        Display().display(f"    {line}")

    def _lookup(self, given: dict[str, Any], found: dict[str, Any]) -> None:
        for reference in given["references"]:
            try:
                digest = image_archive.find(given["archive"], reference)
                offered = image_archive.platforms(given["archive"], digest)
            except (AscentError, OSError) as error:
                found["findings"].append(image_pulls.explain(reference, str(error), self._host))
                continue
            problem = image_pulls.architecture_finding(reference, offered, given["machine"], self._host)
            if problem:
                found["findings"].append(problem)
            else:
                found["digests"][reference] = digest

    def _copy(self, given: dict[str, Any], found: dict[str, Any]) -> None:
        parts: dict[str, int] = {}
        for image in given["images"]:
            try:
                if image["digest"] not in (held := image_archive.images(given["archive"])).values():
                    names = ", ".join(f"{name} as {digest}" for name, digest in sorted(held.items()))
                    raise AscentError(
                        f"{given['archive']} does not have {image['digest']}, which the generation has locked; "
                        f"it has {names or 'none'}; images_update=true takes what it has"
                    )
                for machine in image["machines"]:
                    architecture = image_pulls.ARCHITECTURES.get(machine, machine)
                    parts |= image_archive.blobs(given["archive"], image["digest"], architecture)
            except (AscentError, OSError) as error:
                found["findings"].append(image_pulls.explain(image["reference"], str(error), self._host))
        if found["findings"]:
            return
        seen = self._module({"store": given["store"], "parts": list(parts)})
        missing = seen.get("missing", [])
        found["changed"] = bool(missing)
        if seen.get("failed"):
            found.update(seen)
            return
        wanted_mb = sum(parts[digest] for digest in missing) >> 20
        if missing and seen["free_mb"] < wanted_mb + _SPARE_MB:
            found["findings"].append(self._full(given, wanted_mb, seen["free_mb"]))
            return
        if self._task.check_mode or not missing:
            return
        try:
            image_archive.check(given["archive"], missing)
        except (AscentError, OSError) as error:
            names = ", ".join(image["reference"] for image in given["images"])
            found["findings"].append(image_pulls.explain(names, str(error), self._host))
            return
        progress = Progress(f"images to {self._host}", sum(parts[digest] for digest in missing), self._say)
        for digest in missing:
            self._bring(given, digest, found)
            if found.get("failed"):
                return
            progress.add(parts[digest])
        found["copied_mb"] = wanted_mb

    def _bring(self, given: dict[str, Any], digest: str, found: dict[str, Any]) -> None:
        """One part. A copy that breaks off leaves nothing in the store; the next run copies what is missing then."""
        temporary = self._make_tmp_path()
        try:
            there = self._connection._shell.join_path(temporary, digest.partition(":")[2])
            self._transfer_file(image_archive.path(given["archive"], digest), there)
            self._fixup_perms2((temporary, there))
            done = self._module({"store": given["store"], "add": {digest: there}})
            if done.get("failed"):
                found.update(failed=True, msg=done["msg"])
        finally:
            self._remove_tmp_path(temporary)

    def _module(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return dict(self._execute_module("image_parts", module_args=arguments, task_vars=self._task_vars))

    def _full(self, given: dict[str, Any], wanted_mb: int, free_mb: int) -> dict[str, Any]:
        return finding(
            "D16",
            "error",
            f"the parts of the images do not fit into {given['store']}",
            host=self._host,
            stage="provision",
            evidence=f"they take {wanted_mb} MB, {free_mb} MB are free",
            cause="the disk is full, or images_store lies on a small one",
            fix="free space, or name a directory on a larger disk in images_store; then deploy again",
        )
