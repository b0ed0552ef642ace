"""What the roles npu_driver, cann, gpu_driver and reboot decide on the controller: packages, reboots, their proof.

All functions but `listing` are pure; filters and action plugins hand them to the roles.
"""

from __future__ import annotations

__all__ = [
    "cann_verdict",
    "chip",
    "decide",
    "explained",
    "gpu_findings",
    "listing",
    "prerequisite_findings",
    "reboot_batches",
    "reboot_proof",
    "reboots",
    "url",
    "verdict",
]

import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ascent import diagnosis, generations, packages
from ascent.errors import AscentError, ParseError
from ascent.findings import finding
from ascent.versions import compare
from ascent_controller import signatures
from ascent_controller.loader import ROOT
from ascent_controller.provisioning import driver_findings

_LISTING = "SHA256SUMS"
#: Processes whose host answers for others, so that it is the last to go down.
_HEADS = frozenset(
    (
        "head",
        "ray-head",
        "router",
        "frontend",
        "gateway",
        "kv-store",
        "indexer",
        "tokenizer",
        "discovery",
        "metadata",
        "service",
    )
)


def url(source: str) -> bool:
    """Whether packages come from a mirror; else from a directory of the controller."""
    return source.startswith(("http://", "https://"))


def listing(source: str) -> dict[str, str]:
    """File name to SHA-256 of the packages in a directory of the controller, or in one behind a URL.

    Raises AscentError that says what was wanted where, for a directory or a mirror without a readable ``SHA256SUMS``.
    """
    place = f"{source.rstrip('/')}/{_LISTING}"
    try:
        if url(source):
            with urllib.request.urlopen(place, timeout=30) as answer:  # noqa: S310 - the scheme was looked at
                text = answer.read(1 << 20).decode("utf-8", "replace")
        else:
            text = Path(place).expanduser().read_text(encoding="utf-8")
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise AscentError(
            f"wanted the packages' {_LISTING} at {place}, found: {error}. Write it with: sha256sum *.run > {_LISTING}"
        ) from None
    return packages.parse_listing(text, place)


def chip(hardware: str) -> str:
    """How packages name the chips of a hardware profile, such as ``910b``; empty for a profile without packages."""
    path = ROOT / "catalog" / "hardware" / f"{hardware}.yml"
    if not path.is_file():
        return ""
    return str(yaml.safe_load(path.read_text(encoding="utf-8")).get("package_chip", ""))


def decide(
    npu: Mapping[str, Any] | None,
    host: str,
    *,
    source: str,
    components: Sequence[str],
    chip: str,
    machine: str,
    wanted: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a host lacks: ``{"due": [steps], "wanted": [packages], "findings"}``, from its facts ``ascent_node.npu``.

    ``files`` is the source's listing, read when left out; ``wanted`` pins versions by component.
    """
    npu = npu or {}
    try:
        known = listing(source) if files is None else files
    except AscentError as error:
        told = finding(
            "B19",
            "error",
            f"the packages of {source} can't be told",
            host=host,
            stage="provision",
            evidence=str(error),
            fix="Correct the path or URL, and write SHA256SUMS beside the packages.",
        )
        return {"due": [], "wanted": [], "findings": [told]}
    chosen, lacking = packages.select(known, components, chip, machine, wanted)
    findings = [
        finding(
            "B19",
            "error",
            f"{source} has no {one['wanted']}",
            host=host,
            stage="provision",
            evidence=f"found there: {one['found']}",
            fix="Put the package into the source with its line in SHA256SUMS, or name a version that is there.",
        )
        for one in lacking
    ]
    present = _present(npu)
    record = npu.get("packages") or {}
    status = (npu.get("install") or {}).get("status")
    if status is None and npu.get("incomplete"):
        status = ""
    due = [] if lacking else packages.due(chosen, present, record, status)
    toolkit = next((one for one in chosen if one["component"] == "toolkit"), None)
    if toolkit and not toolkit["pinned"] and _newer(present["toolkit"] or "", toolkit["version"]):
        # Its parts belong to a toolkit of their own release.
        due = [step for step in due if step["component"] not in packages.CANN]
    for one in chosen:
        before = present.get(one["component"])
        if before and one not in [_package(step) for step in due] and _newer(before, one["version"]):
            findings.append(
                finding(
                    "package-older",
                    "info",
                    f"{one['component']} {before} is newer than {one['version']} and stays",
                    host=host,
                    stage="provision",
                    evidence=f"newest of {source}: {one['file']}",
                    fix="Name the version to go back to it.",
                )
            )
    return {"due": due, "wanted": chosen, "findings": findings}


def _package(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: step[key] for key in ("component", "version", "file", "sha256", "pinned")}


def _present(npu: Mapping[str, Any]) -> dict[str, str | None]:
    """Versions on the disk by component, from the facts."""
    cann: Mapping[str, Any] = npu.get("cann") or {}
    return {
        "driver": (npu.get("driver") or {}).get("version"),
        "firmware": (npu.get("firmware") or {}).get("version"),
        "toolkit": cann.get("version"),
        "kernels": cann.get("kernels"),
        "nnal": (cann.get("nnal") or {}).get("version"),
    }


def _newer(left: str, right: str) -> bool:
    try:
        return compare(left, right) > 0
    except ParseError:
        return False


def verdict(
    node: Mapping[str, Any] | None,
    host: str,
    *,
    decision: Mapping[str, Any] | None = None,
    drain: bool = False,
    driver_minimum: str = "",
    firmware_minimum: str = "",
) -> list[dict[str, Any]]:
    """What stands against the driver of a host (facts ``ascent_node``). Nothing that an installation (``decision``), or
    the reboot that comes after it, is about to repair counts.
    """
    node = node or {}
    npu = node.get("npu") or {}
    boot_id = (node.get("system") or {}).get("boot_id")
    told = list(decision["findings"]) if decision else []
    if decision and decision["due"]:
        return told
    reasons = packages.reboot_reasons(npu, boot_id)
    if reasons and (decision is None or (_serving(node) and not drain)):
        told.append(_pending(host, reasons, _serving(node), managed=decision is not None))
    if reasons and decision is not None:
        return told
    return told + _verdict_after(npu, host, boot_id, driver_minimum, firmware_minimum)


def _pending(host: str, reasons: Sequence[str], serving: Sequence[str], *, managed: bool) -> dict[str, Any]:
    if managed:
        why = f"{', '.join(serving)} would be stopped by it"
        fix = "Let the run stop them and reboot: -e npu_driver_drain=true."
    else:
        why = "npu_driver_source is empty, so nothing is installed or rebooted for the driver"
        fix = "Reboot this host alone, then deploy again."
    return finding(
        "A02",
        "warning",
        f"{host} waits for a reboot",
        host=host,
        stage="provision",
        evidence="; ".join(reasons),
        cause=why,
        fix=fix,
    )


def _verdict_after(
    npu: Mapping[str, Any],
    host: str,
    boot_id: str | None,
    driver_minimum: str = "",
    firmware_minimum: str = "",
    stale: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """`driver_findings`, and what is not live although it was installed and the host rebooted (``A23``)."""
    stale = stale or packages.not_active(npu, boot_id)
    told = driver_findings(npu, host, driver_minimum=driver_minimum, firmware_minimum=firmware_minimum)
    if stale:
        told.append(
            finding(
                "A23",
                "error",
                f"the new version is not active on {host} after its reboot",
                host=host,
                stage="provision",
                evidence="; ".join(stale),
                cause="The kernel still loads the old driver's modules, or the devices did not take the firmware.",
                fix="See dmesg, lsmod and dkms status for the driver's modules, and the initramfs; install the "
                "headers of the running kernel and the package once more, then reboot.",
            )
        )
    return told


def cann_verdict(
    node: Mapping[str, Any] | None, host: str, decision: Mapping[str, Any], components: Sequence[str]
) -> list[dict[str, Any]]:
    """What stands against CANN on a host (facts ``ascent_node``), beside what an installation is about to bring."""
    told = list(decision["findings"])
    cann = ((node or {}).get("npu") or {}).get("cann")
    if decision["due"] or not cann:
        return told
    machine = str(((node or {}).get("system") or {}).get("machine") or "")
    scripts = [("toolkit", cann)] + ([("nnal", cann.get("nnal") or {})] if "nnal" in components else [])
    for name, part in scripts:
        if part and not part.get("environment"):
            told.append(
                finding(
                    "B01",
                    "error",
                    f"CANN's {name} {part.get('version')} has no environment script",
                    host=host,
                    stage="provision",
                    evidence=f"no set_env.sh at {part.get('path')} or above it",
                    cause="The installation is not whole, or its folder was moved.",
                    fix=f"Remove {part.get('path')} and deploy again.",
                )
            )
    if machine and cann.get("arch") and cann["arch"] != machine:
        told.append(
            finding(
                "B07",
                "error",
                f"CANN {cann['version']} is for {cann['arch']}, the host is {machine}",
                host=host,
                stage="provision",
                evidence=f"{cann['path']}: arch={cann['arch']}",
                cause="The package of another architecture was installed.",
                fix=f"Remove {cann['path']} and deploy again with the package for {machine}.",
            )
        )
    return told


# -- failures in words -------------------------------------------------------------------------------------------------


def explained(
    findings: Iterable[Mapping[str, Any]], text: str, catalogue: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Findings of a failure (``A24``), named after the cause that the catalogue knows in ``text``.

    ``text`` is what the installer or package manager said. What happened and the way back stay as they were told.
    """
    known = diagnosis.diagnose(text, signatures.load() if catalogue is None else catalogue)
    first = next((one for one in known if one["severity"] == "error" and one["id"] != "A24"), None)
    told = []
    for item in findings:
        if first is not None and item["id"] == "A24":
            item = {
                **item,
                "id": first["id"],
                "cause": f"{first['summary']}: {first['cause']}",
                "fix": f"{first['fix']} {item['fix']}",
            }
        told.append(dict(item))
    return told


def prerequisite_findings(result: Mapping[str, Any] | None, host: str, kernel: str) -> list[dict[str, Any]]:
    """Why the distribution's packages could not be installed, from the task's result; nothing from an empty one."""
    if not result:
        return []
    words = [str(result.get(key) or "") for key in ("msg", "stderr", "stdout")]
    failure = finding(
        "A24",
        "error",
        "the distribution's packages for building the driver could not be installed",
        host=host,
        stage="provision",
        evidence=words[0][:400],
        fix=f"Make gcc, make, dkms and the headers of {kernel} available, or name the packages in "
        "npu_driver_packages. Nothing of the driver was installed.",
    )
    return explained([failure], "\n".join(words))


# -- reboots -----------------------------------------------------------------------------------------------------------


def reboots(plan: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]], *, drain: bool = False) -> list[str]:
    """The plan's hosts that are to be rebooted, in its order; ``facts`` has every host's ``ansible_facts``.

    A host that serves is left alone unless ``drain``; `verdict` says so.
    """
    asking = []
    for host in plan["hosts"]:
        node = (facts.get(host) or {}).get("ascent_node") or {}
        reasons = packages.reboot_reasons(node.get("npu"), (node.get("system") or {}).get("boot_id"))
        if reasons and (drain or not _serving(node)):
            asking.append(host)
    return asking


def _serving(node: Mapping[str, Any]) -> list[str]:
    return [str(one["name"]) for one in generations.running_of(node) if one.get("state") == "running"]


def reboot_batches(plan: Mapping[str, Any], hosts: Iterable[str], size: int | str) -> list[list[str]]:
    """The hosts in batches, in the order in which they go down.

    ``size`` is a number of hosts or a share of those that ask (``"25%"``), at least one. Hosts that answer for others
    (head, router, KV store) come last. Two hosts of one instance share a batch only if it is the only one of its pool,
    as the first of them takes that pool down anyway. Raises AscentError for a size that is neither.
    """
    heads = {process["host"] for process in plan["processes"] if process["kind"] in _HEADS}
    pools: dict[str, set[str]] = {}
    for instance in plan["instances"]:
        pools.setdefault(instance["pool"], set()).add(instance["name"])
    of_host: dict[str, set[str]] = {}
    for instance in plan["instances"]:
        if len(pools[instance["pool"]]) > 1:
            for host in instance["hosts"]:
                of_host.setdefault(host, set()).add(instance["name"])
    asking = list(hosts)
    limit = _limit(size, len(asking))
    batches: list[list[str]] = []
    for group in ([h for h in asking if h not in heads], [h for h in asking if h in heads]):
        waiting = group
        while waiting:
            batch: list[str] = []
            taken: set[str] = set()
            for host in waiting:
                mine = of_host.get(host, set())
                if len(batch) < limit and not mine & taken:
                    batch.append(host)
                    taken |= mine
            batches.append(batch)
            waiting = [host for host in waiting if host not in batch]
    return batches


def _limit(size: int | str, count: int) -> int:
    text = str(size).strip()
    share = text.endswith("%")
    number = text.removesuffix("%")
    if not number.isdecimal() or int(number) < 1:
        raise AscentError(f"wanted a number of hosts or a percentage from 1, found reboot_batch = {size!r}")
    return max(1, math.floor(count * int(number) / 100)) if share else int(number)


def reboot_proof(
    before: Mapping[str, Any],
    after: Mapping[str, Any] | None,
    host: str,
    *,
    error: str = "",
    devices: int | None = None,
) -> list[dict[str, Any]]:
    """Whether a reboot did what it was for: another boot id, all devices back, the versions of the disk live.

    ``before`` and ``after`` are facts ``ascent_node``; ``after`` is None for a host that did not come back, ``error``
    has what the connection said. ``devices`` is how many it has to have.
    """

    def tell(id: str, summary: str, evidence: str, cause: str, fix: str) -> dict[str, Any]:
        return finding(id, "error", summary, host=host, stage="provision", evidence=evidence, cause=cause, fix=fix)

    if after is None:
        return [
            tell(
                "A22",
                f"{host} was rebooted and did not come back",
                error,
                "The host hangs in its firmware or at boot, or its network or ssh did not start.",
                "Look at its console (BMC). No other host is rebooted until it is back; then deploy again.",
            )
        ]
    boots = [(facts.get("system") or {}).get("boot_id") for facts in (before, after)]
    if not boots[1] or boots[0] == boots[1]:
        return [
            tell(
                "A22",
                f"{host} answers, but was not rebooted",
                f"boot id {boots[1]} before and after",
                "The reboot was refused or has not begun.",
                "Look at systemctl list-jobs and the journal of the host, reboot it by hand, then deploy again.",
            )
        ]
    npu = after.get("npu") or {}
    told = []
    listed = len((npu.get("info") or {}).get("devices") or [])
    had = len(((before.get("npu") or {}).get("info") or {}).get("devices") or [])
    expected = max(devices or 0, had)
    if npu.get("info") and listed < expected:
        told.append(
            tell(
                "A10",
                f"{listed} of {expected} devices are back after the reboot of {host}",
                f"npu-smi info lists {listed}",
                "A chip dropped off the bus or did not start.",
                "Compare lspci -d 19e5: with npu-smi info; power the server off and on, else replace the card.",
            )
        )
    stale = packages.reboot_reasons(npu, boots[1])
    return told + _verdict_after(npu, host, boots[1], stale=stale)


# -- NVIDIA ------------------------------------------------------------------------------------------------------------


def gpu_findings(
    gpu: Mapping[str, Any] | None, host: str, *, minimum: str = "", devices: int = 0
) -> list[dict[str, Any]]:
    """Whether NVIDIA's driver is there, lists its devices and is new enough (facts ``ascent_node.gpu``)."""

    def tell(id: str, summary: str, evidence: str, cause: str, fix: str) -> dict[str, Any]:
        return finding(id, "error", summary, host=host, stage="provision", evidence=evidence, cause=cause, fix=fix)

    install = (
        "Install NVIDIA's data center driver for this kernel from the distribution or NVIDIA's repository, then reboot."
    )
    if not gpu or not gpu.get("driver"):
        return [
            tell(
                "A01",
                "no NVIDIA driver works on this host",
                str((gpu or {}).get("error") or "nvidia-smi is not there"),
                "The driver is absent, not loaded, or of another release than its library.",
                install,
            )
        ]
    told = []
    if minimum and _newer(minimum, str(gpu["driver"])):
        told.append(
            tell(
                "A08",
                f"NVIDIA driver {gpu['driver']} is older than {minimum}",
                f"nvidia-smi: driver_version {gpu['driver']}",
                "The engine image needs a newer driver.",
                f"Install driver {minimum} or later, or take an older engine image. Ascent installs no NVIDIA drivers.",
            )
        )
    if len(gpu["devices"]) < devices:
        told.append(
            tell(
                "A10",
                f"nvidia-smi lists {len(gpu['devices'])} of {devices} devices",
                ", ".join(f"{one['index']} {one['name']}" for one in gpu["devices"]),
                "A device dropped off the bus, or is not given to this host.",
                "Compare lspci -d 10de: with nvidia-smi -L; see dmesg for Xid lines; power the server off and on.",
            )
        )
    return told
