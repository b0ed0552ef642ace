"""Where weights come from: what a source has of a model, and under which address each file is.

A source is a plain dict::

    {"kind": "modelscope" | "huggingface" | "modelers" | "http" | "directory" | "rsync" | "handed",
     "endpoint": base address, or the directory of ``directory``,
     "id": "ORG/NAME", "revision": branch, tag or commit; "" for the hub's own branch,
     "files": [FILE, ...], only for ``handed``: what somebody else brings, piece by piece}

The hubs are spoken to directly: their clients differ in what they check, and one compares no checksums. ``http``,
``directory`` and ``rsync`` hold ORG/NAME trees with a ``SHA256SUMS`` in each.

FILE is ``{"path", "size", "sha256", "git_id", "revision"}``: bytes, and the checksum that the source tells; a hub knows
small files by their git object id alone. ``revision`` is the file's commit where the source tells one, else "".
"""

from __future__ import annotations

__all__ = [
    "ENDPOINTS",
    "KINDS",
    "LISTING",
    "SourceError",
    "describe",
    "file_url",
    "headers",
    "listing",
    "read_sums",
    "wanted",
]

import fnmatch
import hashlib
import json
import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple
from urllib.parse import quote, urlencode, urljoin

from .errors import AscentError

#: Where each public hub answers.
ENDPOINTS = {
    "modelscope": "https://modelscope.cn",
    "huggingface": "https://huggingface.co",
    "modelers": "https://modelers.cn",
}
#: The hub's own branch.
BRANCHES = {"modelscope": "master", "huggingface": "main", "modelers": "main"}
KINDS = (*ENDPOINTS, "http", "directory", "rsync", "handed")
#: Names and checksums of a tree's files, as ``sha256sum`` writes them.
LISTING = "SHA256SUMS"
# What the hubs' clients leave out, too.
_IGNORED = (".gitattributes", ".gitignore", LISTING)
# A listing of more pages than this is no model.
_MAX_PAGES = 1000

#: Asks an address: (body, headers with lower-case names). ``method`` is GET or HEAD.
Ask = Callable[..., Tuple[bytes, Mapping[str, str]]]


class SourceError(AscentError):
    """A source does not give what it should.

    ``kind``: ``unreachable`` (no answer, or a failure of the server's own), ``refused`` (no such model or revision, or
    no right to it), ``invalid`` (an answer that makes no sense), ``checksum``, ``short`` (a file ends before its size),
    ``space``, ``write`` (this host's own disk), ``peer`` (another node that was to give files), ``tool``.
    """

    def __init__(self, kind: str, message: str, fix: str = "") -> None:
        self.kind = kind
        self.fix = fix
        super().__init__(message)


def describe(source: Mapping[str, Any]) -> str:
    """A source in words, without secrets.

    >>> describe({"kind": "modelscope", "endpoint": "http://u:p@192.0.2.1", "id": "a/b", "revision": "v1"})
    'modelscope a/b at v1 (http://192.0.2.1)'
    """
    place = re.sub(r"//[^/@]*@", "//", str(source.get("endpoint") or ""))
    revision = f" at {source['revision']}" if source.get("revision") else ""
    if source["kind"] in ENDPOINTS:
        return f"{source['kind']} {source['id']}{revision} ({place or ENDPOINTS[source['kind']]})"
    if source["kind"] == "handed":
        return f"{place or 'the controller'}, {source['id']}"
    return f"{place.rstrip('/')}/{source['id']}"


def endpoint(source: Mapping[str, Any]) -> str:
    """The base address, without a slash at its end."""
    return str(source.get("endpoint") or ENDPOINTS.get(source["kind"], "")).rstrip("/")


def headers(source: Mapping[str, Any], token: str) -> Dict[str, str]:
    """What a request carries for a private model."""
    if not token:
        return {}
    if source["kind"] == "modelscope":
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    return {"Authorization": f"Bearer {token}"}


def _revision(source: Mapping[str, Any]) -> str:
    return str(source.get("revision") or BRANCHES.get(source["kind"], ""))


def listing(source: Mapping[str, Any], ask: Ask) -> Dict[str, Any]:
    """``{"commit", "revision", "files": [FILE, ...]}`` of a source that answers to HTTP; files in the order of paths.

    ``commit`` names the content: the hub's commit where it tells one for the whole, else a digest over the files.
    Raises SourceError.
    """
    read = {"modelscope": _modelscope, "huggingface": _huggingface, "modelers": _modelers, "http": _tree}[
        source["kind"]
    ]
    commit, files = read(source, ask)
    return finished(files, commit, _revision(source))


def finished(files: Iterable[Mapping[str, Any]], commit: str = "", revision: str = "") -> Dict[str, Any]:
    """A listing of ``files``, checked and in order. Raises SourceError for a path that leaves the directory."""
    listed = sorted((dict(one) for one in files), key=lambda one: str(one["path"]))
    for one in listed:
        parts = str(one["path"]).split("/")
        if not all(parts) or ".." in parts or "." in parts or "\0" in one["path"] or not isinstance(one["size"], int):
            raise SourceError("invalid", f"the source lists {one['path']!r} with size {one['size']!r}")
    if not re.fullmatch("[0-9a-f]{40}", commit):
        text = "".join(f"{one['path']}\n{one['size']}\n{one['sha256'] or one['git_id']}\n" for one in listed)
        commit = hashlib.sha256(text.encode()).hexdigest()[:40]
    return {"commit": commit, "revision": revision, "files": listed}


def wanted(found: Mapping[str, Any], exclude: Iterable[str]) -> Dict[str, Any]:
    """A listing without the files that match one of the patterns ``exclude`` (``*`` matches slashes, too)."""
    patterns = list(exclude)
    kept = [one for one in found["files"] if not any(fnmatch.fnmatchcase(one["path"], each) for each in patterns)]
    return {**found, "files": kept}


def file_url(source: Mapping[str, Any], found: Mapping[str, Any], path: str) -> str:
    """Where a file of a listing is."""
    base, model, kind = endpoint(source), source["id"], source["kind"]
    if kind == "modelscope":
        query = urlencode({"Revision": _revision(source), "FilePath": path})
        return f"{base}/api/v1/models/{model}/repo?{query}"
    if kind == "huggingface":
        return f"{base}/{model}/resolve/{quote(found['commit'], safe='')}/{quote(path)}"
    if kind == "modelers":
        return f"{base}/api/v1/file/{model}/{quote(_revision(source), safe='')}/media/{quote(path)}"
    return f"{base}/{model}/{quote(path)}"


def _file(path: Any, size: Any, sha256: Any = None, git_id: Any = None, revision: Any = "") -> Dict[str, Any]:
    return {
        "path": str(path),
        "size": size,
        "sha256": str(sha256).lower() if sha256 else None,
        "git_id": str(git_id) if git_id else None,
        "revision": str(revision or ""),
    }


def _json(ask: Ask, url: str) -> Tuple[Any, Mapping[str, str]]:
    body, told = ask(url)
    try:
        return json.loads(body), told
    except ValueError:
        raise SourceError(
            "invalid",
            f"{url} answers with something else than JSON: {body[:80]!r}",
            "look at the address and the proxy",
        ) from None


def _modelscope(source: Mapping[str, Any], ask: Ask) -> Tuple[str, List[Dict[str, Any]]]:
    query = urlencode({"Revision": _revision(source), "Recursive": "True"})
    url = f"{endpoint(source)}/api/v1/models/{source['id']}/repo/files?{query}"
    answer, _ = _json(ask, url)
    try:
        rows = [row for row in answer["Data"]["Files"] if row["Type"] != "tree"]
        return "", [
            _file(row["Path"], row["Size"], row.get("Sha256"), None, row.get("Revision") or row.get("CommitId"))
            for row in rows
            if row["Path"] not in _IGNORED
        ]
    except (KeyError, TypeError):
        raise SourceError("invalid", f"{url} does not list files: {str(answer)[:200]}") from None


def _huggingface(source: Mapping[str, Any], ask: Ask) -> Tuple[str, List[Dict[str, Any]]]:
    base, revision = f"{endpoint(source)}/api/models/{source['id']}", quote(_revision(source), safe="")
    info, _ = _json(ask, f"{base}/revision/{revision}")
    try:
        commit = str(info["sha"])
        files = []
        url: Optional[str] = f"{base}/tree/{commit}?recursive=true"
        for _ in range(_MAX_PAGES):
            rows, told = _json(ask, str(url))
            for row in rows:
                if row["type"] == "file" and row["path"] not in _IGNORED:
                    large = row.get("lfs") or {}
                    files.append(
                        _file(
                            row["path"], large.get("size", row["size"]), large.get("oid"), None if large else row["oid"]
                        )
                    )
            more = re.search(r'<([^>]+)>;\s*rel="next"', told.get("link", ""))
            if not more:
                return commit, files
            url = urljoin(str(url), more.group(1))
    except (KeyError, TypeError):
        raise SourceError("invalid", f"{base} does not list files as Hugging Face does") from None
    raise SourceError("invalid", f"{base} lists more than {_MAX_PAGES} pages of files")


def _modelers(source: Mapping[str, Any], ask: Ask) -> Tuple[str, List[Dict[str, Any]]]:
    base, files, commit = f"{endpoint(source)}/api/v1/file/{source['id']}", [], ""
    folders = [""]
    try:
        for folder in folders:
            if len(folders) > _MAX_PAGES:
                raise SourceError("invalid", f"{base} lists more than {_MAX_PAGES} folders")
            answer, _ = _json(ask, f"{base}?{urlencode({'ref': _revision(source), 'path': folder})}")
            data = answer["data"]
            last = ((data.get("last_commit") or {}).get("commit") or {}).get("commit_sha")
            commit = commit or str(last or "")
            for row in data["tree"]:
                if row["type"] == "dir":
                    folders.append(str(row["path"]))
                elif row["path"] not in _IGNORED:
                    large = bool(row.get("is_lfs"))
                    etag = row.get("etag")
                    files.append(_file(row["path"], row["size"], etag if large else None, None if large else etag))
    except (AttributeError, KeyError, TypeError):
        raise SourceError("invalid", f"{base} does not list files as modelers.cn does") from None
    return commit, files


def read_sums(text: str, where: str) -> Dict[str, str]:
    """SHA-256 by path, from what ``sha256sum`` writes. Raises SourceError for a line of another shape.

    >>> read_sums("0" * 64 + "  ./config.json", "here") == {"config.json": "0" * 64}
    True
    """
    sums = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line.rstrip("\r"))
        if not match:
            raise SourceError(
                "invalid", f"{where}, line {number}: a checksum and a path are wanted, found {line[:80]!r}"
            )
        if match.group(2) not in _IGNORED:
            sums[match.group(2)] = match.group(1).lower()
    if not sums:
        raise SourceError("invalid", f"{where} names no files")
    return sums


def _tree(source: Mapping[str, Any], ask: Ask) -> Tuple[str, List[Dict[str, Any]]]:
    base = f"{endpoint(source)}/{source['id']}"
    where = f"{base}/{LISTING}"
    try:
        body, _ = ask(where)
    except SourceError as error:
        if error.kind == "refused":
            raise SourceError(
                "refused",
                f"{where} is not there: {error}",
                f"put the model there and write its checksums: find . -type f ! -name {LISTING} -exec sha256sum {{}} + "
                f"> {LISTING}",
            ) from None
        raise
    files = []
    for path, digest in read_sums(body.decode("utf-8", "replace"), where).items():
        _, told = ask(f"{base}/{quote(path)}", method="HEAD")
        try:
            files.append(_file(path, int(told["content-length"]), digest))
        except (KeyError, ValueError):
            raise SourceError("invalid", f"{base}/{path}: the server does not tell its size") from None
    return "", files
