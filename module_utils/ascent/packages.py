"""Self-extracting packages of driver, firmware and CANN: their names, which one is wanted, and what an installer said.

Words used here: a *package* is ``{"component", "version", "file", "sha256", "pinned"}`` (pinned: this version and no
newer one), a *step* is a package with ``"from"`` (the version on the disk, or None), ``"action"`` (install or upgrade)
and ``"why"``. The *record* is the file in which a node keeps what our own installations left unfinished or waiting for
a reboot. Names, exit codes and words are those of Huawei's packages.
"""

from __future__ import annotations

__all__ = [
    "CANN",
    "HARDWARE",
    "RECORD",
    "arguments",
    "cause",
    "due",
    "installed",
    "not_active",
    "outcome",
    "parse_listing",
    "parse_name",
    "read_record",
    "reboot_reasons",
    "select",
    "way_back",
    "write_record",
]

import json
import re
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import cann as cann_tree
from . import versions
from .errors import ParseError
from .files import Tree
from .text import clean_lines

HARDWARE = ("driver", "firmware")
#: In the order in which they are installed: the later ones go on top of the toolkit.
CANN = ("toolkit", "kernels", "nnal")
RECORD = "/var/lib/ascent/npu_package.json"

_INFO = "/etc/ascend_install.info"
_VERSION = r"(?P<version>[0-9][0-9A-Za-z.\-]*)"
_MACHINE = r"(?:_linux[-_](?P<machine>aarch64|arm64|x86_64|x86-64))"
_CHIP = r"(?P<chip>[A-Za-z0-9]+)"
_NAMES = (
    ("driver", rf"(?:Ascend-hdk-|Atlas-){_CHIP}(?:-hdk)?-npu-driver_{_VERSION}{_MACHINE}"),
    ("firmware", rf"(?:Ascend-hdk-|Atlas-){_CHIP}(?:-hdk)?-npu-firmware_{_VERSION}{_MACHINE}?"),
    ("toolkit", rf"Ascend-cann(?:-toolkit)?_{_VERSION}{_MACHINE}"),
    ("nnal", rf"Ascend-cann-nnal_{_VERSION}{_MACHINE}"),
    ("kernels", rf"Ascend-cann-kernels-{_CHIP}_{_VERSION}(?:{_MACHINE}|_linux)"),
    ("kernels", rf"Atlas-{_CHIP}-cann-kernels_{_VERSION}{_MACHINE}"),
    ("kernels", rf"Ascend-cann-{_CHIP}-ops_{_VERSION}{_MACHINE}"),
)
_MACHINES = {"arm64": "aarch64", "x86-64": "x86_64", "amd64": "x86_64"}
_SUCCESS = re.compile(r"(?:install|upgrad)\w* success|package .*\bfinished!", re.I)
_REBOOT = re.compile(r"reboot (?:is )?(?:needed|required|now)", re.I)
_ERROR = re.compile(r"\[ERROR\]|ERR_NO:|^Error in .*checksums", re.I)
_LOG_HEAD = re.compile(r"^(?:\[[A-Za-z]+\]\s*)?(?:\[[0-9: .-]+\]\s*)?(?:\[[A-Z]+\]\s*)?")


def parse_name(name: str) -> Optional[Dict[str, Any]]:
    """What a file's name tells: ``{"component", "version", "chip", "machine"}``; None for a file that is none of these.

    >>> parse_name("Atlas-A3-hdk-npu-driver_25.3.rc1.2_linux-aarch64.run")
    {'component': 'driver', 'version': '25.3.rc1.2', 'chip': 'A3', 'machine': 'aarch64'}
    >>> parse_name("Ascend-cann-toolkit_8.5.0_linux-x86-64.run")["machine"], parse_name("notes.txt")
    ('x86_64', None)
    """
    for component, pattern in _NAMES:
        match = re.match(pattern + r"\.run\Z", name)
        if match:
            found = match.groupdict()
            try:
                versions.sort_key(found["version"])
            except ParseError:
                return None
            machine = found.get("machine")
            return {
                "component": component,
                "version": found["version"],
                "chip": found.get("chip"),
                "machine": _MACHINES.get(machine, machine) if machine else None,
            }
    return None


def parse_listing(text: str, source: str = "SHA256SUMS") -> Dict[str, str]:
    """File name to SHA-256 of a ``SHA256SUMS``; ParseError for a line of another shape. Names in folders are left out.

    >>> parse_listing("%s  ./a.run" % ("0" * 64)) == {"a.run": "0" * 64}
    True
    """
    listing: Dict[str, str] = {}
    for number, line in clean_lines(text):
        match = re.match(r"([0-9A-Fa-f]{64})\s+[ *]?(?:\./)?(\S.*)\Z", line)
        if not match:
            raise ParseError(source, "expected 64 hexadecimal digits and a file name", number, line)
        if "/" not in match.group(2):
            listing[match.group(2)] = match.group(1).lower()
    return listing


def select(
    listing: Mapping[str, str],
    components: Iterable[str],
    chip: str,
    machine: str,
    wanted: Optional[Mapping[str, str]] = None,
) -> Tuple[List[Dict[str, Any]], List[Dict[str, str]]]:
    """The package of each component for a chip (``910b``, ``A3``) and a machine (``uname -m``), and what is lacking.

    ``wanted`` pins versions by component; without a pin the newest counts, and CANN's parts follow its toolkit. What is
    lacking is
    ``{"component", "wanted", "found"}`` in words.
    """
    machine = _MACHINES.get(machine, machine)
    named = [{**about, "file": name} for name in sorted(listing) for about in (parse_name(name),) if about]
    chosen: List[Dict[str, Any]] = []
    lacking: List[Dict[str, str]] = []
    for component in components:
        pin = (wanted or {}).get(component) or ""
        toolkit = next((str(one["version"]) for one in chosen if one["component"] == "toolkit"), "")
        release = pin or (toolkit if component in CANN else "")
        of_kind = [one for one in named if one["component"] == component]
        fitting = [
            one
            for one in of_kind
            if one["machine"] in (None, machine)
            and (one["chip"] is None or one["chip"].lower() == chip.lower())
            and (not release or versions.compare(str(one["version"]), release) == 0)
        ]
        if not fitting:
            what = [component, release and f"version {release}", chip and f"for {chip}", f"on {machine}"]
            lacking.append(
                {
                    "component": component,
                    "wanted": " ".join(word for word in what if word),
                    "found": ", ".join(str(one["file"]) for one in of_kind) or f"no {component} package at all",
                }
            )
            continue
        best = max(fitting, key=lambda one: versions.sort_key(str(one["version"])))
        chosen.append(
            {
                "component": component,
                "version": best["version"],
                "file": best["file"],
                "sha256": listing[str(best["file"])],
                "pinned": bool(pin),
            }
        )
    return chosen, lacking


# -- what a node has ---------------------------------------------------------------------------------------------------


def installed(tree: Tree, machine: str) -> Dict[str, Optional[str]]:
    """The version of each component that lies on the disk, None where there is none or its file can't be read."""
    found: Dict[str, Optional[str]] = dict.fromkeys(HARDWARE + CANN)
    try:
        info = versions.parse_install_info(tree.read(_INFO) or "")
    except ParseError:
        info = {}
    base = str(info.get("path") or cann_tree.BASE)
    for component, where, read in (
        ("driver", base, versions.parse_driver),
        ("firmware", str(info.get("firmware_path") or base), versions.parse_firmware),
    ):
        text = tree.read(f"{where}/{component}/version.info")
        if text is not None:
            try:
                found[component] = str(read(text)["version"])
            except ParseError:
                found[component] = None
    toolkit = cann_tree.find(tree, machine)
    if toolkit:
        found["toolkit"] = str(toolkit["version"])
        found["kernels"] = toolkit["kernels"]
        found["nnal"] = toolkit["nnal"]["version"] if toolkit["nnal"] else None
    return found


def read_record(tree: Tree) -> Dict[str, Any]:
    """The record: ``{"unfinished", "reboot", "installed"}``. What can't be read counts as nothing.

    ``unfinished`` is the step that was begun and did not end well, or None. ``reboot`` is ``{"boot_id", "packages"}``,
    the boot in which packages (component to version) were installed that wait for the next one, or None. ``installed``
    maps a component to ``{"sha256", "version"}``: the package installed last, and the version it put on the disk.
    """
    empty: Dict[str, Any] = {"unfinished": None, "reboot": None, "installed": {}}
    try:
        record = json.loads(tree.read(RECORD) or "{}")
    except ValueError:
        return empty
    return {**empty, **record} if isinstance(record, dict) else empty


def write_record(tree: Tree, record: Mapping[str, Any]) -> None:
    """Keeps the record, in one step and over a loss of power."""
    tree.write_file(RECORD, json.dumps({"schema": 1, **record}, indent=1, sort_keys=True) + "\n")


def due(
    wanted: Sequence[Mapping[str, Any]],
    present: Mapping[str, Optional[str]],
    record: Mapping[str, Any],
    status: Optional[str] = None,
) -> List[Dict[str, Any]]:
    """The steps from what is present to what is wanted, in the vendor's order; none where all is there.

    A server without a driver gets the driver first, as firmware is written through it; an upgrade begins with the
    firmware. ``status`` is ``Driver_Install_Status`` of the node: anything but ``complete`` or None (older drivers do
    not write it) means that the last installation broke off, and that the package is installed once more.
    """
    steps = []
    broken = record.get("unfinished") or {}
    for package in wanted:
        component = str(package["component"])
        before = present.get(component)
        why = ""
        if broken.get("component") == component:
            why = f"the installation of {broken.get('version')} broke off on {broken.get('since')}"
        elif component == "driver" and before and status not in (None, "complete"):
            why = f"Driver_Install_Status is {status or 'empty'}: the last installation broke off"
        elif before is None:
            why = "not installed"
        elif _wanted_instead(package, before, (record.get("installed") or {}).get(component)):
            why = f"{before} is installed"
        if why:
            steps.append({**package, "from": before, "action": "upgrade" if before else "install", "why": why})
    order = ("driver", "firmware") if present.get("driver") is None else ("firmware", "driver")
    return sorted(steps, key=lambda step: (order + CANN).index(str(step["component"])))


def _wanted_instead(package: Mapping[str, Any], before: str, last: Optional[Mapping[str, Any]]) -> bool:
    """Whether a package has to replace the version that is there. A newer one gives way to a pinned version only."""
    # Some packages put another number on the disk than they carry in their name.
    if last and last.get("sha256") == package["sha256"] and last.get("version") == before:
        return False
    try:
        order = versions.compare(str(package["version"]), before)
    except ParseError:
        return True
    return order > 0 or (order < 0 and bool(package.get("pinned")))


def reboot_reasons(npu: Optional[Mapping[str, Any]], boot_id: Optional[str]) -> List[str]:
    """Why a node has to be rebooted, by its facts ``ascent_node.npu``; nothing where it need not be.

    Either our own installation waits for it since this very boot, or what is live differs from what lies on the disk. A
    reboot that has not helped is no reason for another one: that is `not_active`.
    """
    npu = npu or {}
    waiting = (npu.get("packages") or {}).get("reboot") or {}
    if waiting and waiting.get("boot_id") == boot_id:
        return [f"{name} {version} was installed" for name, version in sorted(waiting.get("packages", {}).items())]
    return [] if not_active(npu, boot_id) else [_words(*one) for one in _differences(npu)]


def not_active(npu: Optional[Mapping[str, Any]], boot_id: Optional[str]) -> List[str]:
    """What our own installation put on the disk and is not live although the node was rebooted since."""
    npu = npu or {}
    record = npu.get("packages") or {}
    waiting = record.get("reboot") or {}
    if not waiting or waiting.get("boot_id") == boot_id:
        return []
    last = record.get("installed") or {}
    return [
        _words(component, disk, now)
        for component, disk, now in _differences(npu)
        if component in waiting.get("packages", {}) and (last.get(component) or {}).get("version") == disk
    ]


def _words(component: str, disk: str, now: str) -> str:
    return f"{component} {disk} is on the disk, {now} is live"


def _differences(npu: Mapping[str, Any]) -> List[Tuple[str, str, str]]:
    """Component, version on the disk and live version, where the two differ."""
    found = []
    live = npu.get("live") or {}
    for component in HARDWARE:
        disk, now = npu.get(component) or {}, live.get(component)
        numbers = {str(disk.get(key)).lower() for key in ("version", "component_version", "package_version")}
        if disk and now and str(now).lower() not in numbers:
            found.append((component, str(disk["version"]), str(now)))
    return found


# -- what an installer is told, and what it says -----------------------------------------------------------------------


def arguments(step: Mapping[str, Any]) -> List[str]:
    """The options of a step's installer. Without ``--quiet`` it would wait for an answer for ever."""
    if step["component"] in CANN:
        return ["--install", "--quiet"]
    mode = "--upgrade" if step["action"] == "upgrade" else "--full"
    # Firmware has no files that users could not read.
    return [mode, *(["--install-for-all"] if step["component"] == "driver" else []), "--quiet"]


def outcome(code: int, output: str) -> str:
    r"""``live``, ``reboot`` or ``failed``. The code alone does not do: a damaged archive ends with 2, and a server on
    which an all-in-one package lies ends with 0. Both lack the line that tells of success.

    >>> outcome(2, "[Driver] [INFO]\x1b[32mDriver package installed successfully! \x1b[0mReboot needed for it!")
    'reboot'
    >>> outcome(2, "Error in SHA256 checksums: a is different from b")
    'failed'
    """
    lines = [line for _, line in clean_lines(output)]
    if code not in (0, 2) or not any(_SUCCESS.search(line) for line in lines):
        return "failed"
    if any("ERR_NO:" in line for line in lines):
        return "failed"
    return "reboot" if code == 2 or any(_REBOOT.search(line) for line in lines) else "live"


def cause(output: str, log: str) -> str:
    """The error in an installer's own words: of its output, else of the new part of its log, else the last line.

    >>> cause("[Driver] [2026-01-01 10:00:00] [ERROR]ERR_NO:0x0091;ERR_DES:HwHiAiUser not exists!", "")
    'ERR_NO:0x0091;ERR_DES:HwHiAiUser not exists!'
    """
    for text in (output, log):
        errors = [_LOG_HEAD.sub("", line) for _, line in clean_lines(text) if _ERROR.search(line)]
        if errors:
            return "; ".join(dict.fromkeys(errors))
    last = [_LOG_HEAD.sub("", line) for _, line in clean_lines(output or log)][-1:]
    return last[0] if last else "the installer said nothing"


def way_back(step: Mapping[str, Any], present: Optional[str], status: Optional[str], path: str) -> str:
    """What to do after a step that failed; ``present`` and ``status`` are what the node says of itself since."""
    component, before = step["component"], step["from"]
    again = "correct the cause and deploy again"
    whole = present == before and (component != "driver" or status in (None, "complete"))
    if before and whole:
        return f"{component} {before} is still in place, so nothing has to be put back: {again}."
    if not before and present is None:
        return f"nothing of {component} is on the disk: {again}."
    if component in CANN:
        return f"{again}: the package is installed over what is there. To remove it: bash {step['file']} --uninstall."
    script = f"{path}/{component}/script/uninstall.sh"
    back = (
        f"or put {before} back with its own package (--full --quiet)"
        if before
        else f"or remove what is there: {script}"
    )
    return f"the disk holds a part of {component} {step['version']}: {again}, which installs it once more, {back}."
