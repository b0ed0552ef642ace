"""What a bundle for sites without internet holds, whether its seal holds, and whether it fits a run. All pure.

A bundle is a directory: parts as folders and files, ``bundle.json`` that describes them, ``SHA256SUMS`` over every
file, and ``SEAL`` with the checksum of ``SHA256SUMS``. Both lists are in the form of sha256sum(1), so that they can be
checked with nothing but that program. Hundreds of GB of weights can then be copied, resumed and looked into with any
tool. Where one file is easier to carry, `bundle_archive` makes one of the directory.
"""

from __future__ import annotations

__all__ = [
    "DESCRIPTION",
    "PARTS",
    "SEAL",
    "SUMS",
    "choose_packages",
    "contents",
    "differences",
    "fit_findings",
    "images_wanted",
    "own_findings",
    "parse_sums",
    "seal_findings",
    "sources_outside",
    "sums_text",
    "system_directory",
    "wheel_platforms",
]

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ascent.findings import finding
from ascent.generations import images_of

DESCRIPTION = "bundle.json"
SUMS = "SHA256SUMS"
SEAL = "SEAL"

#: Parts in the order in which they are made: folder or file below the bundle, and what it is for.
PARTS = {
    "suite": "suite.tar.gz: this checkout",
    "setup": "setup: makes a controller of a machine without internet",
    "wheels": "wheels/PYTHON: what the controller's Python needs, Ansible's collections among it",
    "os": "os/ID-VERSION-MACHINE: packages for the nodes, one folder for each release",
    "driver": "driver: driver and firmware packages",
    "cann": "cann: CANN packages",
    "images": "images: container images, as an OCI image layout",
    "engine_wheels": "engine_wheels/MACHINE: the engine, where it runs outside containers",
    "weights": "weights/ORG/NAME: the model",
}

_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)\Z")
_MACHINES = ("aarch64", "x86_64")
_SHOWN = 12


# -- what belongs in ---------------------------------------------------------------------------------------------------


def contents(
    plan: Mapping[str, Any],
    *,
    suite: str,
    requirements: Sequence[str],
    constraints: str,
    pythons: Sequence[str],
    machine: str,
    systems: Sequence[Mapping[str, Any]] = (),
    packages: Mapping[str, Sequence[str]] | None = None,
    driver: str = "",
    cann: str = "",
    images: bool = True,
    engine_python: str = "",
    weights: str = "",
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The parts of a bundle for ``plan``, in order, and findings about what it will lack.

    ``suite`` is the checkout's fingerprint; ``requirements``, ``constraints``, ``pythons`` (``3.12``) and ``machine``
    (of the new controller) make the wheels. ``systems`` are the releases on the nodes, ``{"id", "version", "machine"}``
    with ``directory`` (packages that the site has) or ``host`` (whose package manager downloads them); ``packages`` has
    by release what is wanted there. ``engine_python`` is the hosts' Python for an engine outside containers.
    ``driver``, ``cann`` and ``weights`` are directories, the first two URLs as well.

    Each part is ``{"wanted": …, "fingerprint"}``: equal fingerprints mean that a part made earlier can stay.
    """
    told: list[dict[str, Any]] = []
    machines = sorted({host["arch"] for host in plan["hosts"].values()})
    wanted: dict[str, Any] = {
        "suite": {"suite": suite},
        "setup": {"suite": suite},
        "wheels": {
            "requirements": sorted(requirements),
            "constraints": hashlib.sha256(constraints.encode()).hexdigest(),
            "pythons": sorted(pythons),
            "machine": machine,
        },
    }
    if systems:
        wanted["os"] = [
            {**dict(system), "packages": sorted((packages or {}).get(system_directory(system), ()))}
            for system in systems
        ]
        told += [
            _lacks("os", f"no operating system for {lacking}", f"add one with machine: {lacking}")
            for lacking in sorted(set(machines) - {system["machine"] for system in systems})
        ]
    else:
        told.append(
            _lacks(
                "os",
                "no packages of the nodes' operating systems",
                "pass bundle_systems, unless every node has its container engine already",
            )
        )
    ascend = any(host["vendor"] == "ascend" for host in plan["hosts"].values())
    for part, source, variable, what in (
        ("driver", driver, "npu_driver_source", "no driver and firmware packages"),
        ("cann", cann, "cann_source", ""),
    ):
        if source:
            wanted[part] = {"source": source, "machines": machines}
        elif ascend and what:
            told.append(_lacks(part, what, f"set {variable}, unless every node has them already"))
    environment = plan["engine"]["environment"]
    if environment and engine_python:
        packages_of_engine = [*environment["packages"], "pip"]
        wanted["engine_wheels"] = {"packages": packages_of_engine, "python": engine_python, "machines": machines}
    elif environment:
        told.append(_lacks("engine_wheels", "no wheels of the engine", "set bundle_engine_python, such as 3.11"))
    references = images_wanted(plan)
    if references and images:
        wanted["images"] = [{"reference": reference, "machine": of_host} for reference, of_host in references]
    elif references:
        told.append(_lacks("images", "no container images", "leave bundle_images out, or have a registry at the site"))
    if weights:
        wanted["weights"] = {"id": plan["model"]["id"], "source": weights}
    else:
        missing = f"no weights of {plan['model']['id']}"
        told.append(_lacks("weights", missing, "set bundle_weights, or bring them apart"))
    parts = {
        name: {"wanted": wanted[name], "fingerprint": _fingerprint(wanted[name])} for name in PARTS if name in wanted
    }
    return parts, told


def images_wanted(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every image with every architecture of the hosts that run it."""
    pairs = {
        (reference, host["arch"]) for name, host in plan["hosts"].items() for reference in images_of(plan, host=name)
    }
    return sorted(pairs)


def _fingerprint(wanted: Any) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def _lacks(part: str, what: str, fix: str) -> dict[str, Any]:
    return finding(
        "bundle-without", "info", f"the bundle has {what}", stage="bundle", evidence=f"part {part}: nothing", fix=fix
    )


def system_directory(system: Mapping[str, Any]) -> str:
    """The folder of one release below ``os``.

    >>> system_directory({"id": "debian", "version": "12", "machine": "x86_64"})
    'debian-12-x86_64'
    """
    return f"{system['id']}-{system['version']}-{system['machine']}"


def wheel_platforms(machine: str) -> list[str]:
    """The platforms whose wheels a Linux of the last years on ``machine`` takes, newest first (PEP 600)."""
    return [
        *(f"manylinux_2_{minor}_{machine}" for minor in (34, 31, 28, 27, 26, 24, 17)),
        *((f"manylinux_2_12_{machine}", f"manylinux_2_5_{machine}") if machine == "x86_64" else ()),
        f"manylinux2014_{machine}",
        f"linux_{machine}",
    ]


def choose_packages(names: Iterable[str], machines: Iterable[str]) -> list[str]:
    """Those ``.run`` packages that are for one of ``machines``; a name without a machine is for all.

    >>> choose_packages(["driver_1_linux-aarch64.run", "driver_1_linux-x86_64.run", "firmware_1.run"], ["aarch64"])
    ['driver_1_linux-aarch64.run', 'firmware_1.run']
    """
    others = set(_MACHINES) - set(machines)
    return sorted(name for name in names if name.endswith(".run") and not any(other in name for other in others))


# -- the seal ----------------------------------------------------------------------------------------------------------


def sums_text(sums: Mapping[str, str]) -> str:
    """Checksums by relative path as sha256sum(1) prints them, in order."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))


def parse_sums(text: str) -> dict[str, str]:
    """Checksums by path. A line that is none is left out, so that a cut file shows as missing and surplus entries."""
    found = {}
    for line in text.splitlines():
        match = _SUM.match(line)
        if match:
            found[match.group(2).removeprefix("./")] = match.group(1)
    return found


def own_findings(path: str, sums: str | None, seal: str | None, expected: str = "") -> list[dict[str, Any]]:
    """Whether there is a bundle whose own list is sealed. ``sums`` and ``seal`` are texts, None where not there.

    ``expected`` is the seal that the builder printed, where it came another way than the bundle.
    """
    if sums is None or seal is None:
        missing = ", ".join(name for name, text in ((SUMS, sums), (SEAL, seal)) if text is None)
        return [
            _bad(
                "bundle-unsealed",
                f"{path} is not a sealed bundle",
                f"{missing} is not there",
                "the path is wrong, the bundle was not finished, or its copy was interrupted",
                "finish it with playbooks/bundle.yml, or copy it again (rsync -a --partial); unpack it if it is packed",
            )
        ]
    told = []
    real = hashlib.sha256(sums.encode()).hexdigest()
    sealed = parse_sums(seal).get(SUMS, "")
    if sealed != real:
        told.append(
            _bad(
                "bundle-seal",
                f"the seal of {path} is broken",
                f"{SUMS} has sha256 {real}, {SEAL} says {sealed or 'nothing'}",
                "the list of files was changed after sealing, or came from another bundle",
                "copy the bundle again from where it was made; don't use this one",
            )
        )
    if expected and expected.removeprefix("sha256:") != real:
        told.append(
            _bad(
                "bundle-seal",
                f"{path} is not the bundle that was named",
                f"{SUMS} has sha256 {real}, bundle_seal is {expected}",
                "another bundle lies there, or it was sealed again",
                "copy the right bundle, or correct bundle_seal",
            )
        )
    return told


def differences(
    sums: Mapping[str, str], found: Mapping[str, str | None], *, hashed: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Files that are missing, that are not what was sealed, and that were not sealed; arguments as `seal_findings`."""
    missing = sorted(set(sums) - set(found))
    changed = sorted(
        name for name in set(sums) & set(found) if found[name] is not None or hashed.get(name) != sums[name]
    )
    surplus = sorted(set(found) - set(sums) - {SUMS, SEAL})
    return missing, changed, surplus


def seal_findings(
    path: str, sums: Mapping[str, str], found: Mapping[str, str | None], *, hashed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What differs between the sealed list and the files that are there.

    ``found`` has every path below the bundle with its kind: None for a file, else what it is instead (``a link``).
    ``hashed`` has the checksums of the files.
    """
    told = []
    missing, changed, surplus = differences(sums, found, hashed=hashed)
    if missing:
        told.append(
            _bad(
                "bundle-missing",
                f"files of the bundle are missing: {len(missing)}",
                f"{path}: {_some(missing)}",
                "the copy was interrupted, or a file was removed",
                "copy the bundle again (rsync -a --partial)",
            )
        )
    if changed:
        names = [f"{name} ({found[name]})" if found[name] else name for name in changed]
        told.append(
            _bad(
                "bundle-changed",
                f"files of the bundle are not what was sealed: {len(changed)}",
                f"{path}: {_some(names)}",
                "a copy that stopped early, a broken disk, or a change after sealing",
                "copy these files again from where the bundle was made",
            )
        )
    if surplus:
        told.append(
            _bad(
                "bundle-surplus",
                f"files are in the bundle that were not sealed: {len(surplus)}",
                f"{path}: {_some(surplus)}",
                "something was added after sealing",
                "move them out of the bundle; a bundle is made anew to hold more",
            )
        )
    return told


def _bad(id: str, summary: str, evidence: str, cause: str, fix: str, host: str | None = None) -> dict[str, Any]:
    return finding(id, "error", summary, host=host, stage="plan", evidence=evidence, cause=cause, fix=fix)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# -- whether it fits ---------------------------------------------------------------------------------------------------


def fit_findings(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any] | None],
    description: Mapping[str, Any],
    lacking: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What this plan on these nodes needs that the bundle has not; ``nodes`` are the ``ascent_node`` facts, ``lacking``
    says of the images of `images_wanted` what the archive lacks.

    Nothing is asked for that a node has already: a container engine that runs, or weights that are complete.
    """
    parts = description["parts"]
    made = f"made for recipe {description['recipe']} on {', '.join(description['machines'])}"
    remake = f"make the bundle again with -e recipe={plan['recipe']}"
    told = []
    if lacking:
        told.append(
            _bad("bundle-lacks", "the bundle lacks images of this plan", f"{'; '.join(lacking)}; {made}", "", remake)
        )
    systems = {system_directory(one) for one in (parts.get("os") or {}).get("systems", ())}
    for host, node in sorted(nodes.items()):
        if node is None:
            continue
        system = {**node["system"]["os"], "machine": node["system"]["machine"]}
        if system_directory(system) in systems:
            continue
        bare = plan["hosts"][host]["vendor"] == "ascend" and not (node.get("npu") or {}).get("driver")
        if "driver" in parts and bare:
            told.append(
                finding(
                    "bundle-lacks",
                    "warning",
                    f"the bundle has nothing for {system_directory(system)} that a driver is built with",
                    host=host,
                    stage="plan",
                    evidence=f"{host} has no driver; packages are for {', '.join(sorted(systems)) or 'no release'}",
                    fix=f"install gcc, make and kernel headers, or add the release to bundle_systems and {remake}",
                )
            )
        if not (node.get("container_engine") or {}).get("installed"):
            told.append(
                _bad(
                    "bundle-lacks",
                    f"the bundle has no packages for {system_directory(system)}",
                    f"{host} has no container engine; the bundle has {', '.join(sorted(systems)) or 'no packages'}",
                    "",
                    f"add the release to bundle_systems and {remake}",
                    host,
                )
            )
    bare = sorted(host for host, node in nodes.items() if ((node or {}).get("weights") or {}).get("complete") is False)
    if bare and (parts.get("weights") or {}).get("id") != plan["model"]["id"]:
        told.append(
            finding(
                "bundle-lacks",
                "warning",
                f"the bundle has no weights of {plan['model']['id']}",
                stage="plan",
                evidence=f"not complete on {', '.join(bare)}; {made}",
                fix="copy them to the nodes, or make the bundle with bundle_weights",
            )
        )
    return told


def sources_outside(path: str, variables: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Sources that are not the bundle's though the run is to use it alone: by variable, the value on each host."""
    told = []
    for name, values in sorted(variables.items()):
        outside = {host: value for host, value in values.items() if value and not f"{value}/".startswith(f"{path}/")}
        if outside:
            told.append(
                _bad(
                    "bundle-not-alone",
                    f"{name} names a source outside the bundle",
                    f"{name}: {_some(sorted(set(outside.values())))} on {_some(sorted(outside))}; bundle: {path}",
                    "the inventory sets it, which goes before what the bundle gives",
                    f"take {name} out of the inventory or the command line while bundle is given",
                )
            )
    return told
