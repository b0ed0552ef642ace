"""What the provisioning roles decide on the controller: image digests, and whether driver and weights will do.

All functions are pure; the filters in plugins/filter/ascent_provisioning.py hand them to the roles.
"""

from __future__ import annotations

__all__ = [
    "at_digest",
    "digest_of",
    "driver_findings",
    "due",
    "image_digests",
    "image_findings",
    "image_locks",
    "image_resolvers",
    "lock",
    "pulled_findings",
    "repository",
    "resolved_digest",
    "resolved_digests",
    "weights_findings",
]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ascent.errors import ParseError
from ascent.findings import finding
from ascent.generations import images_of
from ascent.hubs import ENDPOINTS
from ascent.versions import compare, firmware_fits

#: ``uname -m`` to the architecture that an image of it carries.
ARCHITECTURES = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "amd64", "amd64": "amd64"}


def repository(reference: str) -> str:
    """The repository of an image reference, without tag and digest, as the engine prints it.

    >>> repository("docker.io/library/debian:12"), repository("192.0.2.1:5000/ascend/vllm-ascend:v1")
    ('debian', '192.0.2.1:5000/ascend/vllm-ascend')
    """
    name = reference.split("@", 1)[0]
    head, slash, last = name.rpartition("/")
    name = head + slash + last.split(":", 1)[0]
    for prefix in ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def digest_of(reference: str) -> str:
    """The digest that a reference carries itself; empty for one by tag.

    >>> digest_of("quay.io/ascend/vllm-ascend@sha256:abc"), digest_of("quay.io/ascend/vllm-ascend:v1")
    ('sha256:abc', '')
    """
    return reference.partition("@")[2]


def at_digest(reference: str, digest: str) -> str:
    """The same image by digest.

    >>> at_digest("quay.io/ascend/vllm-ascend:v1", "sha256:abc")
    'quay.io/ascend/vllm-ascend@sha256:abc'
    """
    return f"{reference.split('@', 1)[0].removesuffix(_tag(reference))}@{digest}"


def resolved_digest(image: Mapping[str, Any], reference: str) -> str:
    """The digest of an inspected image in ``reference``'s repository; empty when it never came from there."""
    wanted = repository(reference)
    for entry in image.get("RepoDigests") or []:
        if repository(entry) == wanted:
            return digest_of(entry)
    return ""


def lock(reference: str, digest: str | None) -> dict[str, str | None]:
    """An image by its digest; without one the name is the reference.

    >>> lock("quay.io/ascend/vllm-ascend:v1", "sha256:abc")["name"]
    'quay.io/ascend/vllm-ascend@sha256:abc'
    """
    return {
        "reference": reference,
        "digest": digest or None,
        "name": at_digest(reference, digest) if digest else reference,
    }


def image_resolvers(plan: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, str]:
    """Who looks each image's tag up for all: the first of ``hosts`` that runs it, so that it fits the hardware."""
    return {image: next((one for one in hosts if image in images_of(plan, one)), hosts[0]) for image in images_of(plan)}


def due(
    references: Iterable[str],
    locked: Mapping[str, Mapping[str, Any]],
    resolvers: Mapping[str, str],
    host: str,
    first: str,
    *,
    update: bool = False,
) -> list[str]:
    """The references that ``host`` has to look up: those without a digest, or all tags in an ``update``.

    ``first`` looks up what ``resolvers`` gives to nobody.
    """
    return [
        reference
        for reference in references
        if not digest_of(reference)
        and (update or not (locked.get(reference) or {}).get("digest"))
        and resolvers.get(reference, first) == host
    ]


def image_locks(
    references: Iterable[str], locked: Mapping[str, Mapping[str, Any]], found: Iterable[Mapping[str, str] | None]
) -> dict[str, dict[str, str | None]]:
    """All images by reference, each by the digest it carries, or what hosts have just ``found``, or the locked one."""
    fresh = {reference: digest for one in found for reference, digest in (one or {}).items()}
    known = {reference: (one or {}).get("digest") for reference, one in locked.items()}
    names = sorted({*references, *known, *fresh})
    return {one: lock(one, digest_of(one) or fresh.get(one) or known.get(one)) for one in names}


def image_digests(images: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """Digest by reference, from what `image_locks` returns."""
    return {reference: one["digest"] for reference, one in images.items()}


def resolved_digests(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Digest by reference, from the results of a task that pulled one reference (``item``) after the other."""
    told = {str(one["item"]): resolved_digest(one.get("image") or {}, str(one["item"])) for one in results}
    return {reference: digest for reference, digest in told.items() if digest}


def pulled_findings(results: Iterable[Mapping[str, Any]], machine: str, host: str) -> list[dict[str, Any]]:
    """`image_findings` of all that a task has pulled."""
    return [
        item
        for one in results
        for item in image_findings(one.get("image") or {}, str(one.get("item", "")), machine, host)
    ]


def image_findings(image: Mapping[str, Any], reference: str, machine: str, host: str) -> list[dict[str, Any]]:
    """B07 when the inspected image is of another architecture than the host (``uname -m``)."""
    found = image.get("Architecture")
    expected = ARCHITECTURES.get(machine)
    if not found or not expected or found == expected:
        return []
    return [
        finding(
            "B07",
            "error",
            f"image {reference} is for {found}, the host is {machine}",
            host=host,
            stage="provision",
            evidence=f"docker image inspect: Architecture {found}; uname -m: {machine}",
            cause="the tag, or the registry mirror behind it, holds the image of one architecture only",
            fix=f"name an image for {expected} in the recipe, or mirror the tag with all its architectures",
        )
    ]


def driver_findings(
    npu: Mapping[str, Any] | None, host: str, *, driver_minimum: str = "", firmware_minimum: str = ""
) -> list[dict[str, Any]]:
    """Whether driver, firmware and npu-smi are there, new enough, and say that they fit (facts ``ascent_node.npu``)."""
    npu = npu or {}
    driver, firmware = npu.get("driver"), npu.get("firmware")
    told: list[dict[str, Any]] = []

    def tell(id: str, summary: str, evidence: str, cause: str, fix: str) -> None:
        told.append(
            finding(id, "error", summary, host=host, stage="provision", evidence=evidence, cause=cause, fix=fix)
        )

    error = str(npu.get("error") or "")
    install = "install the driver and firmware packages of the hardware, reboot, and deploy again"
    for name, facts in (("driver", driver), ("firmware", firmware)):
        if not facts:
            path = f"/usr/local/Ascend/{name}/version.info"
            tell("A01", f"no NPU {name} is installed", error or f"{path} is not there", f"{name} absent", install)
    if not npu.get("tool"):
        tell("A01", "npu-smi is not there", error or "looked in /usr/local/bin and /usr/local/sbin", "", install)
    elif not npu.get("info"):
        tell(
            "A01",
            "npu-smi does not list the devices",
            error or "npu-smi info printed nothing",
            "the driver is not loaded, or the kernel was updated without rebuilding it",
            "reinstall or rebuild the driver for the running kernel, then reboot",
        )
    for fault, name, facts, minimum in (
        ("A08", "driver", driver, driver_minimum),
        ("A07", "firmware", firmware, firmware_minimum),
    ):
        if facts and minimum and _older(str(facts["version"]), minimum):
            tell(
                fault,
                f"NPU {name} {facts['version']} is older than {minimum}",
                f"/usr/local/Ascend/{name}/version.info: {facts['version']}",
                f"the engine image needs a newer {name}",
                f"upgrade the {name} to {minimum} or later, or take an older engine image",
            )
    if driver and firmware and firmware_fits(dict(driver), dict(firmware)) is False:
        tell(
            "A07",
            f"NPU firmware {firmware['version']} and driver {driver['version']} do not fit",
            f"driver takes firmware {driver.get('firmware_range')}; firmware takes {firmware.get('driver_prefixes')}",
            "only one of the two was upgraded",
            "upgrade both from one release, in the order its notes give, then reboot",
        )
    return told


def weights_findings(
    weights: Mapping[str, Any] | None, host: str, *, model: str, source: str = "", fetch: bool = False
) -> list[dict[str, Any]]:
    """D17 to D19 when the model's directory is absent or incomplete, D34 when files are not those that were verified.

    ``weights`` is the fact ``ascent_node.weights``. ``fetch``: the role has tried to fetch it already.
    """
    if not weights:
        return []
    directory = weights["directory"]
    advice = _fetch(model, source, directory, offer=not fetch)

    def problem(id: str, summary: str, names: Iterable[str], cause: str) -> dict[str, Any]:
        return finding(
            id, "error", summary, host=host, stage="provision", evidence=_some(names), cause=cause, fix=advice
        )

    if not weights.get("present"):
        return [problem("D17", f"{directory} is absent or empty", [directory], "never fetched, or not mounted")]
    told = []
    for fault, key, what, cause in (
        ("D17", "missing", "are missing", "the copy was not finished"),
        ("D18", "pointers", "are placeholders without data", "cloned without the large files"),
        ("D19", "truncated", "are cut short", "the copy was interrupted"),
        ("D34", "altered", "are not those that were verified", "somebody wrote them again, or restored a backup"),
    ):
        names = list(weights.get(key) or [])
        if names:
            told.append(problem(fault, f"{len(names)} files of {model} {what} in {directory}", names, cause))
    return told


def _tag(reference: str) -> str:
    """The tag with its colon; empty when there is none. The colon of a registry's port is not one."""
    last = reference.split("@", 1)[0].rpartition("/")[2]
    return ":" + last.split(":", 1)[1] if ":" in last else ""


def _older(version: str, minimum: str) -> bool:
    try:
        return compare(version, minimum) < 0
    except ParseError:
        # A version that nobody can order is a question for a person; the fact itself is in the report.
        return False


def _fetch(model: str, source: str, directory: str, *, offer: bool) -> str:
    # Hugging Face's client makes models--ORG--NAME and what is below it in its cache directory.
    cache, _, below = directory.partition("/models--")
    commit = below.partition("/snapshots/")[2]
    revision = f" --revision {commit}" if commit else ""
    commands = {
        "modelscope": f"modelscope download --model {model} --local_dir {directory}",
        "huggingface": f"hf download {model}{revision} --cache-dir {cache}",
    }
    role = "ansible-playbook deploy.yml --tags provision -e weights_fetch=true"
    if source in commands:
        first = f"fetch it: {role}; or on this host: " if offer else "fetch it on this host: "
        return f"{first}{commands[source]}; or copy it from a host that has it (rsync -a)"
    if source in ENDPOINTS and offer:
        return f"fetch it: {role}; or put the complete model into {directory}"
    return (
        f"put the complete model into {directory}, for instance by rsync -a from a host that has it; or say where it "
        "is: weights_mirror, weights_archive"
    )


def _some(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")
