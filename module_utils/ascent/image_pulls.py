"""Bringing images to a host: what their names are, what a failure means, and the run of one pull.

A host gets an image by its digest, from the registry itself or by the service of `ascent.image_server` on its own
loopback interface. The engine checks every byte of it either way, and knows the image by that digest afterwards.
"""

from __future__ import annotations

__all__ = [
    "ARCHITECTURES",
    "STATE",
    "Progress",
    "Pull",
    "architecture_finding",
    "explain",
    "held",
    "local_name",
    "lookup",
    "proxies",
    "source_of",
]

import contextlib
import ipaddress
import json
import os
import re
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import registry
from .engine_api import Engine, EngineError
from .findings import finding
from .image_server import LOOPBACK, client_of, login_of

#: ``uname -m`` to the architecture that an image of it carries.
ARCHITECTURES = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "amd64", "amd64": "amd64"}

#: Where a host tells how far its pull is, for whoever looks: ``{"reference", "bytes_done", "bytes", "phase"}``.
STATE = "/run/ascent/images.json"

#: What a failed pull says, and the fault that it is; the first that fits. `B10` is what is left.
_FAULTS = (
    ("B18", r"no host of the cluster gives the image"),
    ("D16", r"[Nn]o space left on device"),
    ("B15", r"wanted (sha256:|\d+ bytes)|verification failed for digest|the content is"),
    ("B15", r"lacks (the manifest|\d+ of)|is not in /"),
    ("B07", r"no matching manifest for|does not match the (specified|detected host) platform"),
    ("B11", r"invalid tar header"),
)

_MEANING = {
    "B18": (
        "can not be had from the hosts above in the cluster",
        "a firewall is closed for the port, or the host that fetches from the registry failed: see its own finding",
        "open images_port between the hosts, or set images_distribution to direct where all of them reach the registry",
    ),
    "D16": (
        "does not fit on the disk",
        "the engine's data directory, or the directory in which parts of images wait, is full",
        "free space (docker image prune -a, df -h), or give the engine another data-root; then deploy again",
    ),
    "B15": (
        "is not what its digest says",
        "the archive or the registry's storage is damaged, or a proxy altered the content",
        "write the image archive again, or have the registry's storage checked; then deploy again",
    ),
    "B07": (
        "is not for this host's architecture",
        "the tag, or the registry mirror behind it, lacks the image of this architecture",
        "name an image for this architecture in the recipe, or mirror the tag with all its architectures",
    ),
    "B11": (
        "can not be unpacked",
        "the content is cut short, or the engine is too old for its compression",
        "upgrade the container engine, or mirror the image with gzip layers",
    ),
    "B10": (
        "can not be had",
        "the tag is misspelt; the host does not reach the registry, or is not logged in to it; or the archive lacks it",
        "check the tag and the way to the registry; or set ascent_registry_mirror, or images_archive",
    ),
}


def explain(reference: str, message: str, host: Optional[str] = None) -> Dict[str, Any]:
    """The finding for a pull that failed with this message of the engine, the registry or the hosts above.

    >>> explain("a:1", "failed to register layer: write /x: no space left on device")["id"]
    'D16'
    """
    fault = next((fault for fault, pattern in _FAULTS if re.search(pattern, message)), "B10")
    what, cause, fix = _MEANING[fault]
    return finding(
        fault,
        "error",
        f"image {reference} {what}",
        host=host,
        stage="provision",
        evidence=message,
        cause=cause,
        fix=fix,
    )


def architecture_finding(
    reference: str, offered: Sequence[Mapping[str, Any]], machine: str, host: Optional[str] = None
) -> Optional[Dict[str, Any]]:
    """B07 when an image is not offered for a machine (``uname -m``); ``offered`` is as `registry.platforms` has it."""
    wanted = ARCHITECTURES.get(machine)
    if not wanted or registry.fitting(offered, wanted):
        return None
    found = ", ".join(sorted({f"{one['os']}/{one['architecture']}" for one in offered})) or "nothing"
    return finding(
        "B07",
        "error",
        f"image {reference} is for {found}, the host is {machine}",
        host=host,
        stage="provision",
        evidence=f"manifest and configuration of the image: {found}; uname -m: {machine}",
        cause="the tag, or the registry mirror behind it, holds other architectures only",
        fix=f"name an image for linux/{wanted} in the recipe, or mirror the tag with all its architectures",
    )


def local_name(reference: str, port: int) -> str:
    """The repository under which a host's own service has an image. A registry's port can't be in a path as it is.

    >>> local_name("198.51.100.7:5000/ascend/vllm-ascend:v1", 28950)
    '127.0.0.1:28950/198.51.100.7_5000/ascend/vllm-ascend'
    """
    parts = registry.split(reference)
    return f"{LOOPBACK}:{port}/{parts.host.replace(':', '_').lower()}/{parts.repository}"


def held(reference: str, digest: str, names: Iterable[str]) -> Optional[str]:
    """The name by digest under which a host has an image; None where it has not.

    ``names`` are all names by digest of the host's images. The reference's own repository comes first, then the others
    in alphabetical order: an image is what its digest says, wherever it came from.
    """
    own = registry.split(reference)
    fitting = sorted(name for name in names if name.endswith(f"@{digest}"))
    for name in fitting:
        if registry.split(name)[:2] == own[:2]:
            return name
    return fitting[0] if fitting else None


def proxies(information: Mapping[str, Any], host: str, environment: Mapping[str, str]) -> Dict[str, str]:
    """The proxies that the engine takes for a registry, as urllib wants them.

    ``information`` is the engine's own. It hides a proxy's password: the process's environment has to give that proxy.
    """
    name = host.rpartition(":")[0] or host
    for entry in re.split(r"[,\s]+", str(information.get("NoProxy") or "")):
        if entry and _matches(entry, name, host):
            return {}
    found = {}
    for scheme, key in (("http", "HttpProxy"), ("https", "HttpsProxy")):
        value = str(information.get(key) or "")
        if "xxxxx" in value:
            value = environment.get(f"{scheme}_proxy") or environment.get(f"{scheme.upper()}_PROXY") or ""
        if value:
            found[scheme] = value
    return found


def _matches(entry: str, name: str, host: str) -> bool:
    if entry in ("*", name, host):
        return True
    try:
        return ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return name.endswith("." + entry.lstrip(".*"))


def source_of(reference: str, information: Mapping[str, Any], config: str) -> Dict[str, Any]:
    """Where an image comes from, as `image_server.client_of` takes it; ``config`` is the path of Docker's logins."""
    parts = registry.split(reference)
    return {
        "host": parts.host,
        "repository": parts.repository,
        "settings": information.get("RegistryConfig") or {},
        "proxies": proxies(information, parts.host, os.environ),
        "config": config,
    }


def lookup(
    references: Iterable[str], machine: str, information: Mapping[str, Any], config: str, host: Optional[str] = None
) -> Tuple[Dict[str, str], List[Dict[str, Any]]]:
    """Ask the registries what tags mean today: digest by reference, and a finding for each that can't be had or used.

    Nothing is pulled: a manifest and a configuration tell for what an image is.
    """
    found: Dict[str, str] = {}
    findings: List[Dict[str, Any]] = []
    for reference in references:
        parts = registry.split(reference)
        client = client_of(source_of(reference, information, config))
        digest, offered, error = _offered(client, parts)
        problem = explain(reference, error, host) if error else architecture_finding(reference, offered, machine, host)
        if problem:
            findings.append(problem)
        else:
            found[reference] = digest
    return found, findings


def _offered(client: registry.Client, parts: registry.Reference) -> Tuple[str, List[Dict[str, Any]], str]:
    try:
        content, digest = client.manifest(parts.repository, parts.digest or parts.tag)
        manifest = json.loads(content)
        offered = registry.platforms(manifest, digest, lambda blob: client.small_blob(parts.repository, blob))
    except registry.RegistryError as error:
        return "", [], str(error)
    except (KeyError, TypeError, ValueError):
        return "", [], f"{client.host}: the manifest of {parts.repository} is of a kind that is not known"
    return digest, offered, ""


class Progress:
    """How far the pull of an image is, from what the engine tells of its layers, in a file that others read.

    ``layers`` has their sizes by digest, compressed as they come. The file is gone when the pull has ended.
    """

    def __init__(self, reference: str, layers: Mapping[str, int], path: str = STATE) -> None:
        # The engine calls a layer by the first digits of its digest.
        self._sizes = {digest.partition(":")[2][:12]: size for digest, size in layers.items()}
        self._done: Dict[str, int] = {}
        self._reference, self._path, self._written = reference, path, 0.0

    def heed(self, told: Mapping[str, Any]) -> None:
        """Take in one thing that the engine told, and tell of it at most once a second."""
        layer, status = str(told.get("id") or ""), str(told.get("status") or "")
        if layer not in self._sizes:
            return
        if status == "Downloading":
            current = int((told.get("progressDetail") or {}).get("current") or 0)
            self._done[layer] = min(current, self._sizes[layer])
        elif status in ("Already exists", "Download complete", "Extracting", "Pull complete"):
            self._done[layer] = self._sizes[layer]
        now = time.monotonic()
        if now - self._written >= 1:
            self._written = now
            self._write()

    def state(self) -> Dict[str, Any]:
        """What the file says."""
        done, size = sum(self._done.values()), sum(self._sizes.values())
        phase = "fetch" if done < size else "unpack"
        return {"reference": self._reference, "bytes_done": done, "bytes": size, "phase": phase}

    def end(self) -> None:
        """Tell no more."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _write(self) -> None:
        # Nobody's pull fails because nobody can be told of it.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(f"{self._path}.new", "w", encoding="utf-8") as stream:
                json.dump(self.state(), stream)
            os.replace(f"{self._path}.new", self._path)


class Pull:
    """The images of one host: which it has, and bringing the others.

    ``wish`` are the arguments of the module ``image_pull``, ``information`` is what the engine tells of itself.
    """

    def __init__(self, engine: Engine, information: Mapping[str, Any], wish: Mapping[str, Any]) -> None:
        self.engine = engine
        self.information = information
        self.wish = wish
        #: The name of each image on this host, by reference.
        self.names: Dict[str, str] = {one["reference"]: self._name(one) for one in wish["images"] if one["digest"]}

    def look(self) -> List[Dict[str, Any]]:
        """The images that this host has not. The names of the others become known."""
        missing = []
        for image in self.wish["images"]:
            found = self._found(image) if image["digest"] else None
            if found:
                self.names[image["reference"]] = found
            else:
                missing.append(image)
        return missing

    def configuration(self, store: str) -> Dict[str, Any]:
        """What this host's service has to know (`image_server`)."""
        spread = [one for one in self.wish["images"] if one["spread"]]
        images = {}
        for image in spread:
            asks = not image["upstreams"] and not self.wish["archive"]
            images[self._path(image)] = {
                "upstreams": image["upstreams"],
                "registry": source_of(image["reference"], self.information, self.wish["config"]) if asks else None,
            }
        return {
            "store": store,
            "idle_s": 600,
            "port": self.wish["port"],
            "address": self.wish["address"],
            "allow": sorted({address for image in spread for address in image["below"]}),
            "images": images,
        }

    def bring(self, image: Mapping[str, Any], errors: Callable[[], List[str]]) -> Optional[Dict[str, Any]]:
        """Pull an image; the finding when that fails. ``errors`` tells what went wrong on the way here meanwhile."""
        reference, host = str(image["reference"]), self.wish["host"]
        client = self._client(image)
        parts = registry.split(self._name(image))
        _, offered, error = _offered(client, parts)
        if error and image["spread"]:
            return explain(reference, "; ".join([*errors(), error]), host)
        # The engine itself may have ways to a registry that this client has not, such as a helper that keeps logins.
        problem = None if error else architecture_finding(reference, offered, self.wish["machine"], host)
        if problem:
            return problem
        progress = Progress(reference, {} if error else self._layers(client, parts, offered))
        try:
            for told in self.engine.pull(self._repository(image), image["digest"], self._login(image)):
                progress.heed(told)
            own = registry.split(reference)
            if own.tag:
                self.engine.tag(self._name(image), _untagged(reference), own.tag)
            if error:
                pulled = self.engine.image(self._name(image)) or {}
                told = {"os": pulled.get("Os"), "architecture": pulled.get("Architecture"), "digest": image["digest"]}
                problem = architecture_finding(reference, [told], self.wish["machine"], host)
        except EngineError as failure:
            return explain(reference, "; ".join([*errors(), str(failure)]), host)
        finally:
            progress.end()
        return problem

    def _layers(
        self, client: registry.Client, parts: registry.Reference, offered: Sequence[Mapping[str, Any]]
    ) -> Dict[str, int]:
        """Sizes of an image's layers by digest; none where the registry does not tell: then there is no progress."""
        wanted = registry.fitting(offered, ARCHITECTURES.get(self.wish["machine"], self.wish["machine"]))
        try:
            manifest = json.loads(client.manifest(parts.repository, wanted or parts.digest)[0])
            return {str(one["digest"]): int(one["size"]) for one in registry.children(manifest)[1:]}
        except (registry.RegistryError, KeyError, TypeError, ValueError):
            return {}

    def _found(self, image: Mapping[str, Any]) -> Optional[str]:
        for name in (self._own(image), f"{local_name(image['reference'], self.wish['port'])}@{image['digest']}"):
            found = self.engine.image(name)
            if found:
                return held(image["reference"], image["digest"], found.get("RepoDigests") or []) or name
        return None

    def _own(self, image: Mapping[str, Any]) -> str:
        return f"{_untagged(image['reference'])}@{image['digest']}"

    def _repository(self, image: Mapping[str, Any]) -> str:
        if image["spread"]:
            return local_name(image["reference"], self.wish["port"])
        return _untagged(image["reference"])

    def _name(self, image: Mapping[str, Any]) -> str:
        return f"{self._repository(image)}@{image['digest']}"

    def _path(self, image: Mapping[str, Any]) -> str:
        return local_name(image["reference"], self.wish["port"]).partition("/")[2]

    def _client(self, image: Mapping[str, Any]) -> registry.Client:
        if image["spread"]:
            here = registry.Endpoint(f"http://{LOOPBACK}:{self.wish['port']}", False)
            return registry.Client("this host's own service", at=[here], proxies={}, timeout=180)
        return client_of(source_of(image["reference"], self.information, self.wish["config"]))

    def _login(self, image: Mapping[str, Any]) -> Optional[Dict[str, str]]:
        if image["spread"]:
            return None
        found = login_of(source_of(image["reference"], self.information, self.wish["config"]))
        return {"username": found[0], "password": found[1]} if found else None


def _untagged(reference: str) -> str:
    """A reference without tag and digest, otherwise as it is written."""
    name = reference.partition("@")[0]
    return name[: len(name) - len(tag) - 1] if (tag := name.rpartition("/")[2].partition(":")[2]) else name
