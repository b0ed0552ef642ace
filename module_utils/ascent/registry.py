"""Container images by name and by content: references, manifests, and reading them from a registry.

What the container engine does for a pull, for those who need the bytes themselves: the host that fetches an image for
its cluster, and the controller that packs images for a site without a network. All is checked against its digest.

Facts are those of the OCI distribution and image specifications, and of Docker's own client: which file names a site's
logins, where its certificates lie, and that a registry may be declared insecure.

>>> split("quay.io/ascend/vllm-ascend:v0.21.0rc1-a3")
Reference(host='quay.io', repository='ascend/vllm-ascend', tag='v0.21.0rc1-a3', digest='')
>>> split("debian").repository
'library/debian'
"""

from __future__ import annotations

__all__ = [
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "Client",
    "Endpoint",
    "Reference",
    "RegistryError",
    "children",
    "credentials",
    "digest_of_bytes",
    "endpoints",
    "fitting",
    "is_digest",
    "media_type",
    "platforms",
    "split",
]

import base64
import hashlib
import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .errors import AscentError

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

#: More than this is no manifest, nor an image's configuration: registries themselves stop at 4 MB.
SMALL = 8 << 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"


class RegistryError(AscentError):
    """A registry that can't be reached, or refuses. ``code`` is HTTP's, 0 where there was no answer at all."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Reference(NamedTuple):
    """An image's name in its parts; ``tag`` and ``digest`` (with ``sha256:``) are empty where it has none."""

    host: str
    repository: str
    tag: str
    digest: str


class Endpoint(NamedTuple):
    """Where a registry answers: ``url`` without a path, and whether its certificate is checked."""

    url: str
    verify: bool


def split(reference: str) -> Reference:
    """The parts of an image reference, as the engine understands it: Docker Hub and ``latest`` where left out."""
    name, _, digest = reference.partition("@")
    head, slash, rest = name.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost"):
        head, rest = _HUB, name
    if head == f"index.{_HUB}":
        head = _HUB
    last = rest.rpartition("/")[2]
    tag = last.partition(":")[2]
    repository = rest[: len(rest) - len(tag) - 1] if tag else rest
    if head == _HUB and "/" not in repository:
        repository = f"library/{repository}"
    if digest and not is_digest(digest):
        raise AscentError(f"image {reference}: wanted a digest of the form sha256:<64 hex digits>, found {digest}")
    return Reference(head, repository, tag or ("" if digest else "latest"), digest)


def is_digest(text: str) -> bool:
    """Whether a text is a sha256 digest. Other algorithms are allowed by the specification, and used by nobody.

    >>> is_digest("sha256:" + "0" * 64), is_digest("v1")
    (True, False)
    """
    return bool(_DIGEST.match(text))


def digest_of_bytes(content: bytes) -> str:
    """The digest under which a registry knows some content."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def media_type(manifest: Mapping[str, Any]) -> str:
    """The type of a parsed manifest. OCI's need not name theirs: then the keys tell."""
    named = manifest.get("mediaType")
    if isinstance(named, str) and named:
        return named
    return INDEX_TYPES[0] if "manifests" in manifest else MANIFEST_TYPES[0]


def children(manifest: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """What a parsed manifest stands on: an index's manifests, or an image's configuration and layers, as descriptors.

    Layers that have to come from elsewhere (``urls``, as Windows' own) are left out.
    """
    if "manifests" in manifest:
        return [dict(one) for one in manifest["manifests"]]
    return [dict(one) for one in [manifest["config"], *manifest["layers"]] if not one.get("urls")]


def platforms(manifest: Mapping[str, Any], digest: str, blob: Callable[[str], bytes]) -> List[Dict[str, Any]]:
    """The images behind a parsed manifest of this digest: ``{"os", "architecture", "digest"}`` each, in its order.

    An index names them (attestations are none). A single image tells in its configuration, which ``blob`` gives.
    """
    if "manifests" not in manifest:
        config = json.loads(blob(str(manifest["config"]["digest"])))
        return [
            {"os": str(config.get("os", "")), "architecture": str(config.get("architecture", "")), "digest": digest}
        ]
    return [
        {
            "os": str(one["platform"].get("os", "")),
            "architecture": str(one["platform"].get("architecture", "")),
            "digest": str(one["digest"]),
        }
        for one in manifest["manifests"]
        if (one.get("platform") or {}).get("os") not in (None, "unknown")
    ]


def fitting(offered: Sequence[Mapping[str, Any]], architecture: str) -> Optional[str]:
    """The manifest that a Linux host of this architecture takes, from `platforms`; None where there is none."""
    for one in offered:
        if one["os"] == "linux" and one["architecture"] == architecture:
            return str(one["digest"])
    return None


def credentials(host: str, config: Mapping[str, Any]) -> Optional[Tuple[str, str]]:
    """User and password for a registry from a parsed ``~/.docker/config.json``; None where it has none.

    >>> credentials("quay.io", {"auths": {"https://quay.io/v2/": {"auth": "YTpi"}}})
    ('a', 'b')
    """
    names = {host, f"index.{_HUB}"} if host == _HUB else {host}
    for key, entry in (config.get("auths") or {}).items():
        if urllib.parse.urlsplit(key if "//" in key else f"//{key}").netloc in names and entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return user, password.strip("\0")
    return None


def endpoints(host: str, settings: Mapping[str, Any], resolve: Callable[[str], List[str]]) -> List[Endpoint]:
    """Where the engine looks for images of ``host``, in its order.

    ``settings`` is ``RegistryConfig`` of the engine's own information; ``resolve`` gives the addresses of a name. An
    insecure registry is asked over TLS without a check first, then in the clear.
    """
    found = []
    if host == _HUB:
        for mirror in settings.get("Mirrors") or []:
            parts = urllib.parse.urlsplit(mirror)
            secure = _secure(parts.netloc, settings, resolve)
            found.append(Endpoint(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", secure))
        return [*found, Endpoint(f"https://{_HUB_HOST}", True)]
    if _secure(host, settings, resolve):
        return [Endpoint(f"https://{host}", True)]
    return [Endpoint(f"https://{host}", False), Endpoint(f"http://{host}", False)]


def addresses_of(host: str) -> List[str]:
    """The addresses of a name; none where it does not resolve."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None)})
    except OSError:
        return []


def _secure(host: str, settings: Mapping[str, Any], resolve: Callable[[str], List[str]]) -> bool:
    known = (settings.get("IndexConfigs") or {}).get(host)
    if known is not None:
        return bool(known.get("Secure", True))
    networks = [ipaddress.ip_network(text, strict=False) for text in settings.get("InsecureRegistryCIDRs") or []]
    name = host.rpartition(":")[0] if re.search(r":\d+\Z", host) else host
    name = name.strip("[]")
    try:
        addresses = [str(ipaddress.ip_address(name))]
    except ValueError:
        addresses = resolve(name)
    return not any(ipaddress.ip_address(one) in network for one in addresses for network in networks)


class Client:
    """Reads one registry. Nothing is asked before the first call; logins and tokens are kept for the next.

    ``settings`` is ``RegistryConfig`` of the engine's information (empty: TLS, checked), ``login`` what `credentials`
    found, ``proxies`` as urllib takes them, ``certificates`` a directory as ``/etc/docker/certs.d``. ``at`` are the
    endpoints where they are not the engine's.
    """

    def __init__(
        self,
        host: str,
        *,
        settings: Optional[Mapping[str, Any]] = None,
        login: Optional[Tuple[str, str]] = None,
        proxies: Optional[Mapping[str, str]] = None,
        at: Optional[Sequence[Endpoint]] = None,
        certificates: str = "/etc/docker/certs.d",
        timeout: float = 60,
    ) -> None:
        self.host = host
        self._endpoints = list(at) if at is not None else endpoints(host, settings or {}, addresses_of)
        self._login = login
        self._proxies = dict(proxies) if proxies is not None else None
        self._certificates = certificates
        self._timeout = timeout
        self._tokens: Dict[str, str] = {}

    def manifest(self, repository: str, reference: str) -> Tuple[bytes, str]:
        """A manifest by tag or digest: its bytes and their digest, which is the one asked for or RegistryError."""
        content = _read(self.open_manifest(repository, reference), f"{self.host}/{repository}")
        found = digest_of_bytes(content)
        if is_digest(reference) and found != reference:
            raise RegistryError(f"{self.host}/{repository}: wanted the manifest {reference}, was given {found}")
        return content, found

    def open_manifest(self, repository: str, reference: str, start: int = 0) -> Any:
        """An open answer with a manifest by tag or digest, as `blob` gives one."""
        headers = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
        if start:
            headers["Range"] = f"bytes={start}-"
        return self.open(f"/v2/{repository}/manifests/{reference}", repository, headers)

    def small_blob(self, repository: str, digest: str) -> bytes:
        """A blob that fits into memory (an image's configuration), checked against its digest."""
        content = _read(self.blob(repository, digest), f"{self.host}/{repository}")
        if digest_of_bytes(content) != digest:
            raise RegistryError(f"{self.host}/{repository}: wanted the blob {digest}, was given other content")
        return content

    def blob(self, repository: str, digest: str, start: int = 0) -> Any:
        """An open answer with a blob's bytes from ``start`` on; HTTP's code is 206 where those before are left out."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self.open(f"/v2/{repository}/blobs/{digest}", repository, headers)

    def open(self, path: str, repository: str, headers: Mapping[str, str]) -> Any:
        """GET of a path below the registry, with a token where it wants one. RegistryError names all that was asked."""
        failures: List[RegistryError] = []
        for endpoint in self._endpoints:
            answer, failure = self._try(endpoint, path, repository, headers)
            if failure is None:
                return answer
            failures.append(failure)
        told = "; ".join(str(one) for one in failures)
        raise RegistryError(f"{self.host}: {path}: {told}", max(one.code for one in failures))

    def _try(
        self, endpoint: Endpoint, path: str, repository: str, headers: Mapping[str, str]
    ) -> Tuple[Any, Optional[RegistryError]]:
        try:
            return self._ask(endpoint, path, repository, headers), None
        except urllib.error.HTTPError as error:
            return None, RegistryError(f"{endpoint.url}: {error.code} {_told(error)}", error.code)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            return None, RegistryError(f"{endpoint.url}: {reason}")

    def _ask(self, endpoint: Endpoint, path: str, repository: str, headers: Mapping[str, str]) -> Any:
        opener = self._opener(endpoint)
        for attempt in (1, 2):
            request = urllib.request.Request(endpoint.url + path, headers=dict(headers))  # noqa: S310 -- http and https only, see endpoints()
            token = self._tokens.get(repository)
            if token:
                # Not sent on to where the registry redirects: storage services refuse a second kind of login.
                request.add_unredirected_header("Authorization", token)
            try:
                return opener.open(request, timeout=self._timeout)
            except urllib.error.HTTPError as error:
                wanted = error.headers.get("WWW-Authenticate", "")
                if error.code != 401 or attempt == 2:
                    raise
                error.close()
                self._tokens[repository] = self._authorize(opener, wanted, repository)
        raise AssertionError("unreachable")

    def _authorize(self, opener: urllib.request.OpenerDirector, wanted: str, repository: str) -> str:
        scheme, _, rest = wanted.partition(" ")
        basic = ""
        if self._login:
            basic = "Basic " + base64.b64encode(":".join(self._login).encode()).decode()
        if scheme.lower() != "bearer":
            if not basic:
                raise RegistryError(
                    f"{self.host} wants a login; run `docker login {self.host}` on the host that pulls", 401
                )
            return basic
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        query = {"scope": fields.get("scope") or f"repository:{repository}:pull"}
        if fields.get("service"):
            query["service"] = fields["service"]
        url = f"{fields.get('realm', '')}?{urllib.parse.urlencode(query)}"
        if not url.startswith(("http://", "https://")):
            raise RegistryError(f"{self.host}: its login service {url} is no web address", 401)
        request = urllib.request.Request(url)  # noqa: S310 -- checked just above
        if basic:
            request.add_unredirected_header("Authorization", basic)
        with opener.open(request, timeout=self._timeout) as answer:
            told = json.loads(answer.read(SMALL))
        return f"Bearer {told.get('token') or told['access_token']}"

    def _opener(self, endpoint: Endpoint) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        name = urllib.parse.urlsplit(endpoint.url).netloc
        authority = os.path.join(self._certificates, name, "ca.crt")
        if os.path.exists(authority):
            context.load_verify_locations(authority)
        client = os.path.join(self._certificates, name, "client.cert")
        if os.path.exists(client):
            context.load_cert_chain(client, os.path.join(self._certificates, name, "client.key"))
        if not endpoint.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return urllib.request.build_opener(
            urllib.request.ProxyHandler(self._proxies), urllib.request.HTTPSHandler(context=context)
        )


def _read(answer: Any, what: str) -> bytes:
    """All of a small answer. RegistryError when the connection ends before it does."""
    try:
        with answer:
            return bytes(answer.read(SMALL))
    except (OSError, http.client.HTTPException) as error:
        raise RegistryError(f"{what}: the answer broke off: {error}") from None


def _told(error: urllib.error.HTTPError) -> str:
    """A registry's own words for a refusal, else HTTP's."""
    try:
        errors: Sequence[Mapping[str, Any]] = json.loads(error.read(SMALL))["errors"]
        return "; ".join(f"{one.get('code', '')}: {one.get('message', '')}" for one in errors)
    except (KeyError, TypeError, ValueError, OSError):
        return str(error.reason)
