"""Where weights lie while they come, and how they appear under their name all at once.

Files gather in a directory beside the model's (below it where it is a file system of its own, or a model of Hugging
Face's cache). A record there has what was compared with its checksum, so that a later run goes on where this one ended.
When all is right, one rename shows the model. Readers never find half of one under its name.
"""

from __future__ import annotations

__all__ = ["Store"]

import io
import os
import pickle
import shutil
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from . import weights
from .downloads import PART, local, verify
from .hubs import SourceError

_PARTIAL = "ascent-partial"
#: Ends the name of a small file that was there and differs from the source's.
KEPT = ".before-ascent"
# What shows a model to its readers; it comes last where files are moved one by one.
_LAST = ("config.json", weights.INDEX, weights.RECORD)
_MSC, _MV, _MDL = ".msc", ".mv", ".mdl"


class _Plain(pickle.Unpickler):
    """Reads containers and texts, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        """Refused."""
        raise pickle.UnpicklingError(f"{module}.{name} has no place here")


def _notes(directory: str) -> Dict[str, str]:
    """Revision by path, from what ModelScope's client noted beside the files it fetched."""
    try:
        with open(os.path.join(directory, _MSC), "rb") as stream:
            rows = _Plain(io.BytesIO(stream.read())).load()
        return {str(row["Path"]): str(row["Revision"]) for row in rows}
    except (OSError, pickle.UnpicklingError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError):
        return {}


class Store:
    """The place of one model on this host. ``directory`` is where the plan wants it."""

    def __init__(self, directory: str) -> None:
        form = weights.layout(directory)
        self.directory = directory
        self.kind, self.commit = form["kind"], form["commit"]
        # A link at the model's name is followed: what it points to is replaced, not the link.
        self.top = os.path.realpath(form["top"])
        inside = self.kind == "huggingface" or os.path.ismount(self.top)
        parent, name = os.path.split(self.top)
        self.staging = os.path.join(self.top, f".{_PARTIAL}") if inside else os.path.join(parent, f".{name}.{_PARTIAL}")
        self.record: Dict[str, Any] = {"files": {}}

    # -- what is there -------------------------------------------------------------------------------------------------

    def inspect(self) -> Dict[str, Any]:
        """`weights.inspect` of the directory."""
        return weights.inspect(self.directory)

    def has(self, revision: str) -> bool:
        """Whether the model is here, complete, and of that revision where the record knows one."""
        if not self.inspect()["complete"]:
            return False
        record = weights.read_record(weights.content(self.directory))
        return not (record and revision) or revision in (record.get("revision"), record.get("commit"))

    def heal(self, check: Callable[[], Any]) -> None:
        """Where files only look altered since they were verified (a restored backup), note their time again."""
        judged = self.inspect()
        place = weights.content(self.directory)
        record = weights.read_record(place)
        if not record or any(judged[key] for key in ("missing", "pointers", "truncated")):
            return
        for name in judged["altered"]:
            full, known = os.path.join(place, name), record["files"][name]
            wrong, _ = verify(full, {**known, "path": name}, check)
            if not wrong:
                known["mtime"] = os.stat(full).st_mtime_ns
        if judged["altered"]:
            weights.write_record(place, {key: value for key, value in record.items() if key != "schema"})

    def listing(self, digest: Callable[[str, int], str]) -> Dict[str, Any]:
        """A listing of the complete model that is here; ``digest(path, size)`` gives checksums that no record knows."""
        place = weights.content(self.directory)
        record = weights.read_record(place)
        noted = _notes(place)
        known = record["files"] if record else {}
        files = []
        for path in sorted(known or _walk(place)):
            full = os.path.join(place, path)
            size = os.stat(full).st_size
            blob = os.path.basename(os.path.realpath(full)) if os.path.islink(full) else ""
            one = known.get(path) or {}
            files.append(
                {
                    "path": path,
                    "size": size,
                    "sha256": one.get("sha256") or digest(full, size),
                    "git_id": one.get("git_id") or (blob if len(blob) == 40 else None),
                    "revision": one.get("revision") or noted.get(path, ""),
                }
            )
        commit = os.path.basename(place) if self.kind == "huggingface" else ""
        found = {"revision": "", "commit": commit, "source": "", **(record or {}), "files": files}
        return {key: found[key] for key in ("commit", "revision", "source", "files")}

    def path(self, path: str) -> Optional[str]:
        """Where a verified file is now; None when it isn't here yet."""
        for place in (self.staging, weights.content(self.directory)):
            full = os.path.join(place, path)
            if os.path.isfile(full):
                return full
        return None

    # -- coming --------------------------------------------------------------------------------------------------------

    def prepare(self, found: Mapping[str, Any]) -> None:
        """Make the place, and take in what is there already of the listing's files. Raises SourceError."""
        try:
            if not os.path.lexists(self.staging):
                if os.path.isdir(self.top) and not self.staging.startswith(self.top + "/"):
                    os.rename(self.top, self.staging)
                else:
                    os.makedirs(self.staging)
            self._adopt(found)
        except OSError as error:
            raise local(error, self.staging) from None
        self.record = weights.read_record(self.staging) or {"files": {}}

    def _adopt(self, found: Mapping[str, Any]) -> None:
        place = os.path.join(self.top, "snapshots", self.commit or found["commit"])
        for one in found["files"]:
            target = os.path.join(self.staging, one["path"])
            if os.path.lexists(target):
                continue
            if self.kind == "huggingface":
                sources = [os.path.realpath(os.path.join(place, one["path"]))]
                sources += [os.path.join(self.top, "blobs", name) for name in (one["sha256"], one["git_id"]) if name]
            else:
                sources = [os.path.join(self.top, one["path"])]
            for source in sources:
                if os.path.isfile(source):
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    if self.kind == "huggingface":
                        # Another revision may use the same content: it stays there, too.
                        os.link(source, target)
                    else:
                        os.rename(source, target)
                    break
        if self.kind == "huggingface" and os.path.isdir(place):
            taken = weights.read_record(place)
            if taken and not os.path.exists(os.path.join(self.staging, weights.RECORD)):
                weights.write_record(self.staging, taken)
            # Its files are taken; what is left are links, and the snapshot is made anew.
            shutil.rmtree(place)

    def target(self, path: str) -> str:
        """Where a file of the listing is to come."""
        return os.path.join(self.staging, path)

    def missing(self, found: Mapping[str, Any]) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
        """(files that have to be compared with their checksum, files that have to come), by what is here.

        A file that is too short is what a broken copy left: it becomes the beginning of the new one.
        """
        check, fetch = [], []
        for one in found["files"]:
            full, known = self.target(one["path"]), self.record["files"].get(one["path"])
            size = os.path.getsize(full) if os.path.isfile(full) else -1
            if size == one["size"] and known and weights.same(full, known) and _equal(known, one):
                one["sha256"] = known["sha256"]
            elif size == one["size"]:
                check.append(one)
            else:
                if size >= 0:
                    self.drop(one, beginning=size < one["size"])
                fetch.append(one)
        return check, fetch

    def drop(self, file: Mapping[str, Any], *, beginning: bool = False) -> None:
        """Take a wrong file away. Small ones are kept aside: somebody may have changed them on purpose."""
        full = self.target(file["path"])
        try:
            if not file["path"].endswith(".safetensors"):
                os.replace(full, full + KEPT)
            elif beginning and not os.path.exists(full + PART):
                os.rename(full, full + PART)
            else:
                os.unlink(full)
        except OSError as error:
            raise local(error, full) from None

    def have(self, file: Mapping[str, Any]) -> int:
        """Bytes of a file that are here, whole or not."""
        full = self.target(file["path"])
        for path in (full, full + PART):
            if os.path.isfile(path):
                return min(os.path.getsize(path), int(file["size"]))
        return 0

    def compare(self, file: Dict[str, Any], check: Callable[[], Any]) -> bool:
        """Whether a file that is here has the right checksum; noted when it has, taken away when not."""
        wrong, sha256 = verify(self.target(file["path"]), file, check)
        if wrong:
            self.drop(file)
            return False
        self.note(file, sha256)
        return True

    def note(self, file: Dict[str, Any], sha256: str) -> None:
        """Note that a file was compared with its checksum."""
        full = self.target(file["path"])
        status = os.stat(full)
        file["sha256"] = sha256
        self.record["files"][file["path"]] = {
            "size": status.st_size,
            "mtime": status.st_mtime_ns,
            "sha256": sha256,
            "git_id": file["git_id"],
            "revision": file["revision"],
        }
        try:
            weights.write_record(self.staging, self.record)
        except OSError as error:
            raise local(error, self.staging) from None

    def space(self) -> Tuple[int, int, str]:
        """(bytes that are free, bytes of them that stay free, the file system's directory)."""
        status = os.statvfs(self.staging)
        place = self.staging
        while not os.path.ismount(place):
            place = os.path.dirname(place)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize // 100, place

    # -- shown ---------------------------------------------------------------------------------------------------------

    def publish(self, found: Mapping[str, Any], source: str, model: str) -> None:
        """Show the model under its name. Every file of the listing is here and right. Raises SourceError."""
        listed = {one["path"] for one in found["files"]}
        files = {path: known for path, known in self.record["files"].items() if path in listed}
        self.record = {"source": source, "revision": found["revision"], "commit": found["commit"], "files": files}
        try:
            for path in _walk(self.staging, hidden=True):
                if path.endswith(PART):
                    os.unlink(os.path.join(self.staging, path))
            weights.write_record(self.staging, self.record)
            judged = weights.inspect(self.staging)
            if not judged["complete"]:
                names = [name for key in ("missing", "pointers", "truncated", "altered") for name in judged[key]]
                raise SourceError(
                    "invalid",
                    f"{source} is not a complete model: {', '.join(names[:8])}",
                    "name another source or revision; its index asks for files that it does not have in full",
                )
            if self.kind == "huggingface":
                self._publish_snapshot(found)
            else:
                if self.kind == "modelscope":
                    self._write_notes(found, model)
                self._publish_plain()
        except OSError as error:
            raise local(error, self.top) from None

    def _publish_plain(self) -> None:
        if not os.path.lexists(self.top):
            os.rename(self.staging, self.top)
        else:
            paths = sorted(_walk(self.staging, hidden=True), key=lambda path: (path in _LAST, _order(path), path))
            for path in paths:
                os.makedirs(os.path.dirname(os.path.join(self.top, path)), exist_ok=True)
                os.replace(os.path.join(self.staging, path), os.path.join(self.top, path))
            shutil.rmtree(self.staging)

    def _write_notes(self, found: Mapping[str, Any], model: str) -> None:
        """What ModelScope's client wants to find beside the files, or it fetches them all again."""
        rows = [{"Path": one["path"], "Revision": one["revision"]} for one in found["files"]]
        for name, value in ((_MSC, rows), (_MDL, {"id": model})):
            with open(os.path.join(self.staging, name), "wb") as binary:
                pickle.dump(value, binary)
        with open(os.path.join(self.staging, _MV), "w", encoding="utf-8") as text:
            text.write(f"Revision:{found['revision'] or 'master'},CreatedAt:{int(time.time())}")
        owner, name = model.split("/")
        plain = os.path.join(os.path.dirname(os.path.dirname(self.top)), owner, name)
        if os.path.basename(self.top) != name and not os.path.lexists(plain):
            os.symlink(self.top, plain, target_is_directory=True)

    def _publish_snapshot(self, found: Mapping[str, Any]) -> None:
        commit = self.commit or found["commit"]
        blobs = os.path.join(self.top, "blobs")
        shown = os.path.join(self.staging, f".snapshot-{commit}")
        shutil.rmtree(shown, ignore_errors=True)
        os.makedirs(blobs, exist_ok=True)
        os.makedirs(shown)
        placed: Dict[str, str] = {}
        for one in found["files"]:
            name = one["git_id"] or one["sha256"]
            if name in placed:
                # The same content under two names is one blob, and has one time.
                self.record["files"][one["path"]]["mtime"] = self.record["files"][placed[name]]["mtime"]
            else:
                os.replace(self.target(one["path"]), os.path.join(blobs, name))
            placed.setdefault(name, one["path"])
            link = os.path.join(shown, one["path"])
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink("/".join([".."] * (2 + one["path"].count("/")) + ["blobs", name]), link)
        weights.write_record(shown, self.record)
        os.makedirs(os.path.join(self.top, "snapshots"), exist_ok=True)
        os.rename(shown, os.path.join(self.top, "snapshots", commit))
        if not self.commit:
            place = os.path.join(self.top, "refs", found["revision"] or "main")
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place + ".new", "w", encoding="utf-8") as stream:
                stream.write(commit)
            os.replace(place + ".new", place)
        shutil.rmtree(self.staging)


def _order(path: str) -> int:
    return _LAST.index(path) if path in _LAST else 0


def _equal(known: Mapping[str, Any], file: Mapping[str, Any]) -> bool:
    """Whether what was verified is what the source has now."""
    if file["sha256"]:
        return bool(known["sha256"] == file["sha256"])
    return bool(file["git_id"] is None or known.get("git_id") == file["git_id"])


def _walk(directory: str, *, hidden: bool = False) -> List[str]:
    """Paths of all files below, in order; without hidden ones of our own and of clients unless asked for."""
    found = []
    for folder, folders, names in os.walk(directory):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = [name for name in names if not name.startswith(".") and not name.endswith(KEPT)]
        found += [os.path.relpath(os.path.join(folder, name), directory) for name in names]
    return sorted(found)
