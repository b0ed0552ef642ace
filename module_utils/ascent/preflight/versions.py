"""Whether driver, firmware, CANN, image and the engine's release fit each other, by the version table."""

from __future__ import annotations

__all__ = ["check", "install_advice", "of_plan"]

import json
import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from .. import versions as version_files
from ..engines import image_platform
from .common import Context, Facts, Findings, chips_are, error, images_of_engine, info, listed, part, warning
from .table import cann_of, compare, family_name, hdk_for, package, row_of, sources


def check(context: Context, host: str, node: Facts) -> Findings:
    """What stands against the versions on one host."""
    if not chips_are("ascend", context.plan["hosts"][host]):
        return []
    return [
        *_driver(context, host, node),
        *_firmware(context, host, node),
        *_unfinished(context, host, node),
        *_pending(host, node),
        *_features(context, host, node),
        *_host_cann(context, host, node),
        *_images(context, host, node),
    ]


def of_plan(context: Context) -> Findings:
    """What stands against the plan's own choice: a release without a row or an image, packages of two releases."""
    return _release(context) + _tags(context) + _packages(context)


def install_advice(context: Context, host: str, node: Optional[Facts]) -> str:
    """Which packages of driver and firmware to install on a host, by the vendor's file names; empty if not known."""
    family, cann = _wanted(context, host)
    if context.table is None or cann is None:
        return ""
    driver, firmware = hdk_for(context.table, family, cann)
    machine = str(part(node, "system").get("machine") or context.plan["hosts"][host].get("arch") or "")
    names = [
        package(context.table, family, component, version, machine)
        for component, version in (("driver", driver), ("firmware", firmware))
    ]
    known = [name for name in names if name]
    if not known:
        return ""
    return " and ".join(known) + ("" if len(known) > 1 else " and the firmware of the same release")


def _wanted(context: Context, host: str) -> Tuple[Optional[str], Optional[str]]:
    """The host's family, and the oldest CANN that the engine's release was published with for it."""
    row = row_of(context.table, context.plan["engine"])
    family = family_name(context.table, context.plan["hosts"][host]["hardware"])
    return family, None if row is None else min(cann_of(row, family), key=version_files.sort_key)


# -- the plan ----------------------------------------------------------------------------------------------------------


def _release(context: Context) -> Findings:
    engine = context.plan["engine"]
    if context.table is None or context.table.get("engine") != engine["name"] or row_of(context.table, engine):
        return []
    known = list(context.table["releases"])
    return [
        info(
            "release-unknown",
            None,
            f"{engine['name']} {engine['version'] or 'of an unnamed release'} is not in the version table:"
            " nothing is compared with it",
            f"{listed(images_of_engine(context.plan)) or 'packages of the recipe'}; known: {listed(known)}",
            "The release is newer than the table, a nightly build, or the site's own.",
            f"Add a row to catalog/versions/{engine['name']}.yml, with its source.",
        )
    ]


def _tags(context: Context) -> Findings:
    """Hosts whose hardware the release was never published for."""
    engine, row = context.plan["engine"], row_of(context.table, context.plan["engine"])
    if row is None or context.table is None or "images" not in row:
        return []
    without: Dict[str, List[str]] = {}
    for host, planned in context.plan["hosts"].items():
        family = family_name(context.table, planned["hardware"])
        if planned["devices"] and family is not None and family not in row["images"]["families"]:
            without.setdefault(family, []).append(host)
    return [
        warning(
            "image-unpublished",
            hosts[0] if len(hosts) == 1 else None,
            f"{engine['name']} {engine['version']} was not published for {family}, the hardware of {listed(hosts)}",
            f"published for {listed(row['images']['families'])}; source: {sources(context.table, row['source'])}",
            "The release came before the images for this hardware.",
            "Choose a release that has them, or an image of your own by its full name.",
        )
        for family, hosts in without.items()
    ]


#: Packages that a release's row names, as pip calls them.
_PACKAGES = {
    "vllm": "vllm",
    "torch": "torch",
    "torch-npu": "torch_npu",
    "triton-ascend": "triton_ascend",
    "mooncake-transfer-engine-npu": "mooncake",
}


def _packages(context: Context) -> Findings:
    """Pinned packages of an engine outside containers, and its Python, against the release's row."""
    engine, row = context.plan["engine"], row_of(context.table, context.plan["engine"])
    environment = engine.get("environment") or {}
    if row is None or context.table is None or not environment.get("packages"):
        return []
    wrong = []
    for text in environment["packages"]:
        match = re.match(r"([A-Za-z0-9._-]+)==([0-9][^;\s]*)", str(text).strip())
        key = _PACKAGES.get(re.sub(r"[-_.]+", "-", match.group(1)).lower()) if match else None
        if match and key and row.get(key) and compare(match.group(2), row[key]):
            wrong.append(f"{match.group(1)} {match.group(2)}, the release has {row[key]}")
    python = re.search(r"python(3\.[0-9]+)\Z", str(environment.get("python") or ""))
    if python and row.get("python"):
        low, high = row["python"]
        if compare(python.group(1), low) == -1 or compare(python.group(1), high) == 1:
            wrong.append(f"Python {python.group(1)}, the release runs on {low} to {high}")
    if not wrong:
        return []
    return [
        error(
            "B05",
            None,
            f"packages of the recipe do not fit {engine['name']} {engine['version']}: {'; '.join(wrong)}",
            f"{listed(environment['packages'])}; source: {sources(context.table, row['source'])}",
            "Packages of two releases were put together.",
            "Take the versions of one row of the release's table.",
        )
    ]


# -- driver and firmware -----------------------------------------------------------------------------------------------


def _asked(context: Context, cann: str) -> List[Tuple[str, str, str]]:
    """``(kind, driver, source)`` that a CANN release asks for; kind is ``floor`` or ``listed``.

    A newer CANN asks for no less than an older one, so entries up to this one all hold.
    """
    if context.table is None:
        return []
    asked = []
    known = [one for one in context.table["drivers"] if (compare(one["cann"], cann) or 0) <= 0]
    for kind, figures in (
        ("floor", [(one["floor"], one) for one in known if one["floor"]]),
        ("listed", [(one["listed"][0], one) for one in known if one["listed"]]),
    ):
        if figures:
            figure, entry = max(figures, key=lambda pair: version_files.sort_key(pair[0]))
            asked.append((kind, figure, f"{sources(context.table, entry['source'])} (CANN {entry['cann']})"))
    return asked


def _driver(context: Context, host: str, node: Facts) -> Findings:
    driver = part(node, "npu", "driver")
    _, cann = _wanted(context, host)
    if not driver or cann is None:
        return []
    engine = context.plan["engine"]
    for kind, asked, source in _asked(context, cann):
        if compare(driver["version"], asked) != -1:
            continue
        packages = install_advice(context, host, node)
        tell = error if kind == "floor" else warning
        why = (
            "is the oldest that the vendor has as compatible"
            if kind == "floor"
            else "is the oldest that the vendor lists for it"
        )
        return [
            tell(
                "A08",
                host,
                f"driver {driver['version']} of {host} and CANN {cann} of {engine['name']} {engine['version']}"
                f" do not fit: {asked} {why}",
                f"source: {source}",
                "The image's CANN is newer than the host's driver.",
                f"Install {packages or f'driver {asked} or newer and its firmware'} on all nodes, or use an image with"
                " an older CANN.",
                "driver",
            )
        ]
    return []


def _firmware(context: Context, host: str, node: Facts) -> Findings:
    npu = part(node, "npu")
    driver, firmware = npu.get("driver"), npu.get("firmware")
    if not driver or not firmware or version_files.firmware_fits(driver, firmware) is not False:
        return []
    bounds = driver.get("firmware_range") or ["?", "?"]
    family, _ = _wanted(context, host)
    named = None
    if context.table is not None:
        pairs = {one["driver"].lower(): one["firmware"] for one in context.table["pairs"] if family in one["families"]}
        named = package(context.table, family, "firmware", pairs.get(str(driver["version"]).lower()), "")
    return [
        error(
            "A07",
            host,
            f"firmware {firmware['version']} and driver {driver['version']} of {host} do not fit",
            f"driver takes firmware {bounds[0]} to {bounds[1]}; firmware takes drivers"
            f" {listed(firmware.get('driver_prefixes') or ['any'])}",
            "Only one of the two was upgraded.",
            f"Install {named or 'the firmware of the same release'} beside this driver, or both of one release, in the"
            " vendor's order, and reboot.",
            "driver",
        )
    ]


def _unfinished(context: Context, host: str, node: Facts) -> Findings:
    status = part(node, "npu", "install").get("status")
    if not status or status == "complete":
        return []
    advice = install_advice(context, host, node)
    return [
        error(
            "A20",
            host,
            f"the driver's installation on {host} was not finished",
            f"Driver_Install_Status={status}",
            "The installer was interrupted.",
            f"Install the driver again{': ' + advice if advice else ''}.",
            "driver",
        )
    ]


def _pending(host: str, node: Facts) -> Findings:
    """A driver that was installed and does not run yet."""
    installed = str(part(node, "npu", "driver").get("version") or "")
    live = str(part(node, "npu", "live").get("driver") or "")
    # Old version files have a component's number in place of the release's.
    comparable = installed and live and not installed.startswith(("1.", "7.")) and compare(installed, live)
    if not comparable:
        return []
    return [
        warning(
            "A02",
            host,
            f"driver {installed} lies on the disk of {host}, and {live} runs",
            f"driver/version.info: {installed}; npu-smi info: {live}",
            "It was installed and the host was not rebooted since.",
            f"Reboot {host}; what runs now is not what the version checks went by.",
            "driver",
        )
    ]


# -- features ----------------------------------------------------------------------------------------------------------


def _variable(process: Facts, name: str) -> Optional[str]:
    values = [str(one["value"]) for one in process["env"] if one["name"] == name and "value" in one]
    return values[-1] if values else None


def _option(process: Facts, path: str) -> Optional[str]:
    """The value of an option, or of a key inside its JSON: ``compilation-config.cudagraph_mode``."""
    name, _, below = path.partition(".")
    for words in process["argv"]:
        if words[0] != f"--{name}" or len(words) < 2:
            continue
        value: Any = words[1]
        try:
            for key in below.split(".") if below else ():
                value = (json.loads(value) if isinstance(value, str) else value)[key]
        except (KeyError, TypeError, ValueError):
            return None
        return str(value)
    return None


def _on(feature: Facts, processes: Iterable[Facts]) -> List[str]:
    """Processes that turn a feature on."""
    when = feature["when"]
    if "variable" in when:
        return [one["name"] for one in processes if _variable(one, when["variable"]) == when["value"]]
    return [one["name"] for one in processes if _option(one, when["option"]) == when["value"]]


def _features(context: Context, host: str, node: Facts) -> Findings:
    """Features of the plan that ask for more than the release does."""
    driver = part(node, "npu", "driver").get("version")
    row = row_of(context.table, context.plan["engine"])
    family, cann = _wanted(context, host)
    if context.table is None or row is None or cann is None:
        return []
    mine = [one for one in context.plan["processes"] if one["host"] == host]
    found = []
    for name, feature in context.table["features"].items():
        processes = _on(feature, mine) if family in feature["families"] else []
        lacks = []
        if feature["cann"] and compare(max(cann_of(row, family), key=version_files.sort_key), feature["cann"]) == -1:
            lacks.append(f"CANN {feature['cann']}, the release has {cann}")
        if driver and feature["driver"] and compare(driver, feature["driver"]) == -1:
            lacks.append(f"driver {feature['driver']}, {host} has {driver}")
        other = feature.get("or")
        if other and driver and compare(driver, other["driver"]) != -1:
            lacks = lacks if compare(row["mooncake"] or "0", other["mooncake"]) == -1 else []
        if not processes or not lacks:
            continue
        tell = error if feature["level"] == "required" else warning
        when = feature["when"]
        found.append(
            tell(
                feature.get("finding", "feature-floor"),
                host,
                f"{name} of the recipe {'needs' if tell is error else 'wants'} {' and '.join(lacks)}",
                f"{when.get('variable') or when.get('option')}={when['value']} in {listed(processes)};"
                f" source: {sources(context.table, feature['source'])}",
                "The feature came with later releases of the host's software.",
                "Upgrade the driver and use a release with that CANN, or turn the feature off in the recipe.",
                "driver" if len(lacks) == 1 and lacks[0].startswith("driver") else None,
            )
        )
    return found


# -- CANN on the host, and inside the image ----------------------------------------------------------------------------


def _outside(plan: Facts) -> bool:
    """Whether the plan's engines run on the hosts themselves instead of in containers."""
    return bool(plan["engine"].get("environment"))


def _host_cann(context: Context, host: str, node: Facts) -> Findings:
    """CANN of the host where engines run outside containers: there, right for the release, whole."""
    npu = part(node, "npu")
    if not _outside(context.plan) or "cann" not in npu:
        return []
    row = row_of(context.table, context.plan["engine"])
    family, _ = _wanted(context, host)
    cann, machine = npu["cann"], str(part(node, "system").get("machine") or "")
    wanted = cann_of(row, family) if row else []
    engine = f"{context.plan['engine']['name']} {context.plan['engine']['version']}"
    best = max(wanted, key=version_files.sort_key) if wanted else None
    names = [
        package(context.table, family, component, best, machine)
        for component in ("toolkit", "operators", "nnal")
        if context.table is not None
    ]
    fix = f"Install {listed(name for name in names if name) or 'toolkit, operators and nnal of one release'}."
    if not cann:
        words = f"wanted: CANN {listed(wanted) or 'of the release'}"
        return [
            error(
                "host-cann",
                host,
                f"{host} has no CANN, and {engine} runs outside containers",
                words,
                "Images bring CANN along; a host has to have its own.",
                fix,
                "cann",
            )
        ]
    lacks = []
    if wanted and all(compare(cann["version"], one) != 0 for one in wanted):
        lacks.append(f"CANN {cann['version']}, {engine} was published with {listed(wanted)}")
    if cann.get("arch") and machine and cann["arch"] != machine:
        lacks.append(f"CANN for {cann['arch']}, the host is {machine}")
    if not cann.get("kernels"):
        lacks.append("no operator package")
    if not cann.get("nnal"):
        lacks.append("no NNAL")
    if not cann.get("environment"):
        lacks.append("no set_env.sh")
    if not lacks:
        return []
    return [
        error(
            "host-cann",
            host,
            f"{host} has {'; '.join(lacks)}",
            f"toolkit {cann['version']} in {cann.get('path')}",
            "Parts of different releases were installed, or the installation was not finished.",
            fix,
            "cann",
        )
    ]


def _images(context: Context, host: str, node: Facts) -> Findings:
    """What an image that is there says of itself, against its own tag and the host's hardware."""
    engine, row = context.plan["engine"], row_of(context.table, context.plan["engine"])
    planned = context.plan["hosts"][host]
    family, _ = _wanted(context, host)
    families: Mapping[str, Any] = (context.table or {}).get("families") or {}
    found: Findings = []
    images: Dict[str, Any] = part(node, "container_engine").get("inspected") or {}
    for reference in images_of_engine(context.plan):
        image = images.get(reference)
        if not image or image_platform(reference) is None:
            continue
        soc = str(image.get("soc") or "").lower()
        built = next((name for name, one in families.items() if soc and soc.startswith(one["soc"])), None)
        if built and family and built != family:
            found.append(
                error(
                    "B08",
                    host,
                    f"{host} is an {family.upper()} server, the image on it is built for {built.upper()}",
                    f"image {reference}; its SOC_VERSION is {image['soc']}, {planned['hardware']} takes"
                    f" {families[family]['soc']}…",
                    "The image was tagged or loaded under the name of another flavour.",
                    "Pull the image again under its own tag; the suffix follows the hardware.",
                )
            )
        differs = []
        if row and image.get("cann") and all(compare(image["cann"], one) for one in cann_of(row, family)):
            differs.append(f"CANN {image['cann']}, the release has {listed(cann_of(row, family))}")
        if image.get("engine") and engine["version"] and compare(image["engine"], engine["version"]):
            differs.append(f"{engine['name']} {image['engine']}, the tag says {engine['version']}")
        if differs:
            found.append(
                warning(
                    "image-content",
                    host,
                    f"the image on {host} is not what its tag says: {'; '.join(differs)}",
                    f"image {reference}: variables and labels of {image['id']}",
                    "The tag was moved, or an image of the site's own has the name of a release.",
                    "Pull it again (images_update), or give the site's own image a name of its own.",
                )
            )
    return found
