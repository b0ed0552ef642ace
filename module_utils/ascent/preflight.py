"""Whether a plan can work on the nodes as they are: every reason why not, before anything is touched. Pure.

Ids are those of the fault catalogue where one fits. On a node where containers of the cluster run, their ports, their
HBM and their processes are what they should be, and nothing of it is a finding.
"""

from __future__ import annotations

__all__ = ["PROVIDERS", "clock_offsets", "judge"]

import ipaddress
import json
import re
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from . import versions as version_files
from .engines import image_platform
from .errors import ParseError
from .findings import finding, sort_findings
from .generations import images_of

_STAGE = "preflight"
#: What later stages bring by themselves, with the ids that are no errors then.
PROVIDERS = {
    "driver": ("A01", "A05", "A07", "A08", "A10", "A20", "B09"),
    "weights": ("D17",),
    "container_engine": ("container-engine",),
    "tuning": ("ports-in-ephemeral-range",),
}
# An idle device keeps about 3 GB for itself; more than this is somebody's.
_IDLE_HBM_MB = 5 * 1024
_MIN_SHM_MB = 1024
_MIN_PYTHON = (3, 9)
_ENGINE_ROOT = "/var/lib/docker"
_ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}
_HEALTH_ORDER = ("OK", "UNKNOWN", "Warning", "Alarm", "Critical")
_SHOWN = 8

_Facts = Mapping[str, Any]
_Findings = List[Dict[str, Any]]


def _error(id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    return finding(id, "error", summary, host=host, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def _warning(id: str, host: Optional[str], summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    return finding(id, "warning", summary, host=host, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def _list(values: Iterable[Any]) -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def _part(node: _Facts, *keys: str) -> Dict[str, Any]:
    """A part of the facts, empty where it was not read."""
    found: Any = node
    for key in keys:
        found = (found or {}).get(key)
    return found or {}


def _running(node: _Facts) -> bool:
    """Whether containers of this cluster run on the node."""
    return any(one.get("state") == "running" for one in _part(node, "container_engine").get("containers", ()))


# -- host --------------------------------------------------------------------------------------------------------------


def _host(plan: _Facts, host: str, node: _Facts, image_gb: float, memory_gb: float) -> _Findings:
    """Architecture, Python, memory, disk and container engine."""
    found = []
    system = _part(node, "system")
    python = system.get("python")
    if python and tuple(int(part) for part in re.findall(r"[0-9]+", python)[:2]) < _MIN_PYTHON:
        found.append(
            _error(
                "python-too-old",
                host,
                f"{host} runs Ascent's modules on Python {python}",
                "wanted 3.9 or newer",
                "The interpreter is that of an old distribution.",
                "Install a newer Python beside it and name it in ansible_python_interpreter.",
            )
        )
    memory = system.get("memory_mb")
    if memory is not None and memory < memory_gb * 1024:
        found.append(
            _error(
                "D28",
                host,
                f"{host} has {memory / 1024:.1f} GiB of memory, {memory_gb:g} GiB are wanted",
                f"MemTotal {memory} MB",
                "Weights and pinned buffers pass through the host's memory.",
                "Use a larger host, or lower the wanted memory if the model is small.",
            )
        )
    disk = _part(node, "disk").get(_ENGINE_ROOT)
    seen = {image for one in _part(node, "state").get("generations", ()) for image in one.get("images") or ()}
    if disk and set(images_of(plan, host)) - seen and disk["free_mb"] < image_gb * 1024:
        found.append(
            _error(
                "D16",
                host,
                f"{host} has {disk['free_mb'] / 1024:.1f} GiB free for images, {image_gb:g} GiB are wanted",
                f"{_ENGINE_ROOT}: {disk['free_mb']} of {disk['total_mb']} MB free",
                "Old images, layers or logs fill the file system.",
                "docker system df, docker image prune; or move the engine's data directory.",
            )
        )
    engine = node.get("container_engine")
    if engine is not None and not engine.get("running"):
        state = "does not run" if engine.get("installed") else "is not installed"
        found.append(
            _error(
                "container-engine",
                host,
                f"the container engine {state} on {host}",
                str(engine.get("error") or "docker version gave nothing"),
                "It was never installed or its service has failed.",
                "Run the provision stage, or: systemctl status docker",
            )
        )
    return found


def _architectures(plan: _Facts, nodes: Mapping[str, Optional[_Facts]]) -> _Findings:
    """Hosts whose arch the inventory gives otherwise than they say. The inventory counts: it is given on purpose.

    An image that is really of another architecture than its host is refused by the stage that pulls it (B07).
    """
    differ = []
    for host, planned in plan["hosts"].items():
        machine = _part(nodes.get(host) or {}, "system").get("machine")
        arch = planned.get("arch")
        if machine and arch and _ARCHITECTURES.get(arch, arch) != _ARCHITECTURES.get(machine, machine):
            differ.append(f"{host}: arch {arch}, uname -m {machine}")
    if not differ:
        return []
    return [
        finding(
            "arch-differs",
            "info",
            f"the inventory's arch counts for {len(differ)} hosts that say otherwise",
            stage=_STAGE,
            evidence=_list(differ),
            cause="The inventory's arch is wrong, or it is meant to differ, as for a rehearsal on other machines.",
            fix="Leave arch out of the inventory to take what the hosts say.",
        )
    ]


def _shm_mb(text: Any) -> Optional[float]:
    """``--shm-size`` as the container engine takes it, in MB; None when it can't be read."""
    match = re.match(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([bkmgt]?)b?\Z", str(text).strip().lower())
    if not match:
        return None
    return (
        float(match.group(1)) * {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}[match.group(2)] / 2**20
    )


def _store_memory(plan: _Facts, host: str, node: _Facts) -> _Findings:
    """Host memory against what clients of a KV store take of it: a segment and a buffer for every rank."""
    memory = _part(node, "system").get("memory_mb")
    wanted, told = 0.0, []
    for process in plan["processes"]:
        texts = [one["text"] for one in process["files"] if one["path"].rpartition("/")[2] == "mooncake.json"]
        if process["host"] != host or not texts or not process["devices"]:
            continue
        config = json.loads(texts[0])
        each = sum(_shm_mb(config.get(key, 0)) or 0 for key in ("global_segment_size", "local_buffer_size"))
        wanted += each * len(process["devices"])
        told.append(f"{process['name']}: {len(process['devices'])} ranks of {each / 1024:g} GiB")
    if memory is None or wanted <= memory:
        return []
    return [
        _error(
            "store-memory",
            host,
            f"the KV store takes {wanted / 1024:.1f} GiB of {host}, which has {memory / 1024:.1f} GiB of memory",
            "; ".join(told[:_SHOWN]),
            "Every rank gives the store a segment of host memory, and keeps a buffer.",
            "Lower kv_store.config.global_segment_size in the recipe, or run fewer ranks on the host.",
        )
    ]


def _shared_memory(plan: _Facts) -> _Findings:
    """Containers whose shared memory is too small for the workers' messages."""
    small = [
        process["name"]
        for process in plan["processes"]
        if process["devices"] and (_shm_mb(process["container"].get("shm_size", "1g")) or _MIN_SHM_MB) < _MIN_SHM_MB
    ]
    if not small:
        return []
    return [
        _error(
            "D13",
            None,
            f"less than 1 GiB of shared memory: {_list(small)}",
            "; ".join(
                f"{one['name']}: {one['container']['shm_size']}" for one in plan["processes"] if one["name"] in small
            ),
            "The workers of an engine exchange messages through /dev/shm; a small one ends them with a bus error.",
            "Set container.shm_size to 1g or more in the recipe.",
        )
    ]


# -- network -----------------------------------------------------------------------------------------------------------


def _interfaces(plan: _Facts, host: str, node: _Facts) -> _Findings:
    """The planned address has to be on the planned interface."""
    addresses = _part(node, "network").get("addresses")
    planned = plan["hosts"][host]
    if not addresses or not planned.get("node_ip"):
        return []
    owners = [one["nic"] for one in addresses if one["address"] == planned["node_ip"]]
    if owners and planned.get("nic") in (None, *owners):
        return []
    names = sorted({one["nic"] for one in addresses})
    told = f"{planned['node_ip']} is on {_list(owners)}" if owners else f"no interface has {planned['node_ip']}"
    return [
        _error(
            "C07",
            host,
            f"{planned['nic'] or 'no interface'} of {host} does not carry {planned['node_ip']}",
            f"{told}; interfaces: {_list(names)}",
            "The interface's name or the address was copied from another server.",
            f"Correct nic and node_ip of {host} in the inventory, or leave them out to have them found.",
        )
    ]


def _planned_ports(plan: _Facts, host: str) -> Dict[int, Tuple[str, str]]:
    """``{port: (process, name of the port)}`` of what this plan listens on."""
    ports = {}
    for process in plan["processes"]:
        if process["host"] == host:
            for port in process["ports"]:
                for number in range(int(port["first"]), int(port["first"]) + int(port["count"])):
                    ports[number] = (process["name"], str(port["name"]))
    return ports


def _ranges(text: Iterable[str]) -> List[Tuple[int, int]]:
    """Port ranges out of ``23010-23025`` and ``6884``."""
    found = re.findall(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ",".join(text))
    return [(int(first), int(last or first)) for first, last in found]


def _ports(plan: _Facts, host: str, node: _Facts) -> _Findings:
    """Ports that somebody else listens on, and ports that the kernel may hand out to anybody."""
    found: _Findings = []
    network = _part(node, "network")
    planned = _planned_ports(plan, host)
    if not _running(node):
        taken = sorted(set(planned) & set(network.get("listening", ())))
        by_fault: Dict[str, List[int]] = {}
        for port in taken:
            kind = planned[port][1]
            by_fault.setdefault({"dp-rpc": "D02", "kv": "E01"}.get(kind, "D01"), []).append(port)
        found += [
            _error(
                fault,
                host,
                f"somebody already listens on {'ports' if len(ports) > 1 else 'port'} {_list(ports)} of {host}",
                "; ".join(f"{port} is {planned[port][1]} of {planned[port][0]}" for port in ports[:_SHOWN]),
                "An instance from before, or another service on this host.",
                f"ss -ltnp on {host} names the owner; stop it, or give the pool another port in the recipe.",
            )
            for fault, ports in sorted(by_fault.items())
        ]
    ephemeral = network.get("ephemeral")
    if ephemeral:
        reserved = _ranges([network.get("reserved") or ""])
        wanted = [(port, port) for port in planned] + _ranges(plan["hosts"][host].get("reserved_ports", ()))
        loose: Set[int] = set()
        for first, last in wanted:
            inside = range(max(first, ephemeral[0]), min(last, ephemeral[1]) + 1)
            loose |= {port for port in inside if not any(low <= port <= high for low, high in reserved)}
        if loose:
            found.append(
                _warning(
                    "ports-in-ephemeral-range",
                    host,
                    f"{len(loose)} ports of the plan on {host} may be handed out by the kernel before they are bound",
                    f"{_list(sorted(loose))}; ip_local_port_range {ephemeral[0]}-{ephemeral[1]}",
                    "The ports lie in the ephemeral range and are not reserved.",
                    "Run the tune stage, which adds them to net.ipv4.ip_local_reserved_ports.",
                )
            )
    return found


def _covered(address: str, no_proxy: str) -> bool:
    """Whether a ``no_proxy`` value keeps an address from the proxy, going by the forms that most clients know."""
    for word in re.split(r"[,\s]+", no_proxy.strip()):
        if word in ("*", address):
            return True
        try:
            if "/" in word and ipaddress.ip_address(address) in ipaddress.ip_network(word, strict=False):
                return True
        except ValueError:
            continue
    return False


def _proxies(plan: _Facts, host: str, node: _Facts) -> _Findings:
    """Proxy variables that would catch requests to the cluster's own addresses."""
    proxies = _part(node, "system", "proxies")
    used = sorted(name for name in proxies if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
    no_proxy = ",".join(value for name, value in proxies.items() if name.lower() == "no_proxy")
    addresses = [one["node_ip"] for one in plan["hosts"].values() if one.get("node_ip")]
    caught = [address for address in addresses if not _covered(address, no_proxy)]
    if not used or not caught:
        return []
    return [
        _warning(
            "D11",
            host,
            f"{_list(used)} of {host} catches requests to the cluster's own addresses",
            f"{used[0]}={proxies[used[0]]}; not in no_proxy: {_list(caught)}",
            "The site's proxy is set for logins or for all containers, without an exception for the cluster.",
            f"Add {','.join(caught)} to no_proxy and NO_PROXY on {host}.",
        )
    ]


# -- devices -----------------------------------------------------------------------------------------------------------


def _has_npus(host: _Facts) -> bool:
    """Whether the devices of a host of the plan are NPUs, which npu-smi lists and a driver of their own runs."""
    return bool(host["vendor"] == "ascend")


def _device_number(device: _Facts, position: int) -> int:
    """The N of ``/dev/davinciN``: the Phy-ID where the table has one, else the position."""
    return int(position if device["phy_id"] is None else device["phy_id"])


def _tool_failure(host: str, error: str) -> Dict[str, Any]:
    occupied = "-8020" in error
    return _error(
        "A03" if occupied else "A01",
        host,
        f"npu-smi of {host} {'finds the devices in use' if occupied else 'does not work'}",
        error,
        "Another container or process owns the devices." if occupied else "The driver is not installed or not loaded.",
        "Find the owner with `fuser -v /dev/davinci*` and stop it."
        if occupied
        else "Run the provision stage; if the driver is installed, `lsmod | grep drv_pcie_host`, and reboot.",
    )


def _devices(plan: _Facts, host: str, node: _Facts) -> _Findings:
    """Missing, lost, unhealthy and occupied devices, and an image for another hardware."""
    planned = plan["hosts"][host]["devices"]
    npu = node.get("npu")
    if not planned or npu is None or not _has_npus(plan["hosts"][host]):
        return []
    if npu.get("info") is None:
        return [_tool_failure(host, str(npu.get("error") or "npu-smi printed nothing"))]
    found = []
    table = {_device_number(one, position): one for position, one in enumerate(npu["info"]["devices"])}
    files = set(npu.get("device_files", ()))
    wanted = {
        str(file["source"] if isinstance(file, Mapping) else file).split(":", 1)[0]
        for process in plan["processes"]
        if process["host"] == host
        for file in process["container"].get("devices", ())
    }
    absent_files = sorted(wanted - files)
    if absent_files:
        found.append(
            _error(
                "A05",
                host,
                f"{host} lacks device files of the plan: {_list(absent_files)}",
                f"there are {_list(sorted(files)) or 'none'}",
                "The hardware profile has more devices than this host, or a chip is lost.",
                "Compare `ls /dev/davinci*` and `npu-smi info -m` with the hardware profile of this host.",
            )
        )
    lost = sorted(set(planned) - set(table))
    if lost:
        found.append(
            _error(
                "A10",
                host,
                f"{host} has {len(table)} devices, the plan uses {len(planned)}",
                f"missing in npu-smi info: {_list(lost)}",
                "A chip has dropped off the bus, or the hardware profile is another one.",
                "`lspci -d 19e5:` counts the chips the kernel sees; power cycle the host, or replace the card.",
            )
        )
    mine = {number: table[number] for number in planned if number in table}
    found += _unhealthy(host, npu, mine)
    if not _running(node):
        found += _occupied(host, npu["info"], mine)
    flavour = image_platform(plan["engine"]["image"])
    is_a3 = any(one["phy_id"] is not None and one["hbm_total_mb"] for one in table.values())
    if flavour in ("", "-a3") and any(one["hbm_total_mb"] for one in table.values()) and is_a3 != (flavour == "-a3"):
        found.append(
            _error(
                "B08",
                host,
                f"{host} is an {'A3' if is_a3 else 'A2'} server, the image is built for {'A3' if flavour else 'A2'}",
                f"image {plan['engine']['image']}; npu-smi prints {'a' if is_a3 else 'no'} Phy-ID column",
                "The hardware named for this host is not what it is.",
                "Correct hardware in the inventory; the image's suffix follows it.",
            )
        )
    return found


def _unhealthy(host: str, npu: _Facts, mine: Mapping[int, _Facts]) -> _Findings:
    """Devices whose table or detail form is not OK: the worse of the two counts, since the detail form may forget."""
    details = {(one["npu_id"], one["chip_id"]): one for one in npu.get("health") or ()}
    bad = {}
    for number, device in mine.items():
        detail = details.get((device["npu_id"], device["chip_id"])) or {}
        words = [device["health"], detail.get("health") or "OK"]
        worst = max(words, key=lambda word: _HEALTH_ORDER.index(word) if word in _HEALTH_ORDER else 1)
        if worst != "OK" or detail.get("error_codes"):
            codes = " ".join(detail.get("error_codes") or ()) or "no code"
            bad[number] = f"device {number}: {worst}, {codes}"
    if not bad:
        return []
    return [
        _error(
            "A09",
            host,
            f"unhealthy devices on {host}: {_list(bad)}",
            "; ".join(list(bad.values())[:_SHOWN]),
            "Memory errors, temperature, or a link.",
            "npu-smi info -t health -i NPU -c CHIP; look the code up, reset or replace the card.",
        )
    ]


def _occupied(host: str, info: _Facts, mine: Mapping[int, _Facts]) -> _Findings:
    """Devices of an idle node that somebody else uses, or whose memory somebody left behind."""
    owners: Dict[int, List[_Facts]] = {}
    for number, device in mine.items():
        place = (device["npu_id"], device["chip_id"])
        users = [one for one in info["processes"] if (one["npu_id"], one["chip_id"]) == place]
        if users:
            owners[number] = users
    found = []
    if owners:
        found.append(
            _error(
                "A03",
                host,
                f"devices of {host} are in use: {_list(owners)}",
                "; ".join(
                    f"device {number}: pid {_list(one['pid'] for one in users)} ({users[0]['name'] or 'hidden name'})"
                    for number, users in list(owners.items())[:_SHOWN]
                ),
                "A process or container that is not of this cluster runs there.",
                "Stop it; `docker ps` and `ps -fp PID` on the host name it.",
            )
        )
    left = {
        number: device["hbm_used_mb"]
        for number, device in mine.items()
        if number not in owners and (device["hbm_used_mb"] or 0) > _IDLE_HBM_MB
    }
    if left:
        found.append(
            _error(
                "A11",
                host,
                f"memory of devices {_list(left)} on {host} is in use, but no process shows",
                "; ".join(f"device {number}: {used} MB" for number, used in list(left.items())[:_SHOWN]),
                "A worker that was killed, or a container whose processes are hidden here.",
                "`fuser -v /dev/davinci*` on the host; stop what it finds; reset the device as a last resort.",
            )
        )
    return found


# -- versions ----------------------------------------------------------------------------------------------------------


def _compare(left: str, right: str) -> Optional[int]:
    """`versions.compare`, None when one of the two is no version."""
    try:
        return version_files.compare(left, right)
    except ParseError:
        return None


def _wanted_drivers(engine: _Facts, catalogue: Optional[_Facts]) -> List[Tuple[str, str, str]]:
    """``(kind, driver version, source)`` that the engine's release asks for; kind is ``floor`` or ``recommended``."""
    row = ((catalogue or {}).get("releases") or {}).get(engine.get("version"))
    if not catalogue or not row or catalogue.get("engine") != engine.get("name"):
        return []
    oldest = min(row["cann"], key=version_files.sort_key)
    wanted = []
    for kind in ("floor", "recommended"):
        # A newer CANN asks for no less than an older one, so entries up to this release's CANN all hold.
        known = [one for one in catalogue["drivers"] if one.get(kind) and (_compare(one["cann"], oldest) or 0) <= 0]
        if known:
            newest = max(known, key=lambda one: version_files.sort_key(one[kind]))
            wanted.append((kind, str(newest[kind]), f"{newest['source']} (CANN {newest['cann']})"))
    return wanted


def _versions(plan: _Facts, host: str, node: _Facts, catalogue: Optional[_Facts]) -> _Findings:
    """The driver against the engine's release, the firmware against the driver, and an installation left half done."""
    npu = _part(node, "npu")
    driver, firmware = npu.get("driver"), npu.get("firmware")
    if not plan["hosts"][host]["devices"] or not _has_npus(plan["hosts"][host]):
        return []
    found = []
    if driver:
        for kind, wanted, source in _wanted_drivers(plan["engine"], catalogue):
            if _compare(driver["version"], wanted) == -1:
                say = _error if kind == "floor" else _warning
                found.append(
                    say(
                        "A08",
                        host,
                        f"driver {driver['version']} of {host} is older than {wanted},"
                        f" {'the oldest that works' if kind == 'floor' else 'which is recommended'}",
                        f"engine {plan['engine']['version']}; source: {source}",
                        "The image's CANN is newer than the host's driver.",
                        "Upgrade driver and firmware on all nodes, or use an image with an older CANN.",
                    )
                )
                break
    if driver and firmware and version_files.firmware_fits(driver, firmware) is False:
        bounds = driver.get("firmware_range") or ["?", "?"]
        found.append(
            _error(
                "A07",
                host,
                f"firmware {firmware['version']} and driver {driver['version']} of {host} do not fit",
                f"driver takes firmware {bounds[0]} to {bounds[1]}; firmware takes drivers"
                f" {_list(firmware.get('driver_prefixes') or ['any'])}",
                "Only one of the two was upgraded.",
                "Install firmware and driver of one release, in the vendor's order, and reboot.",
            )
        )
    status = _part(npu, "install").get("status")
    if status and status != "complete":
        found.append(
            _error(
                "A20",
                host,
                f"the driver's installation on {host} was not finished",
                f"Driver_Install_Status={status}",
                "The installer was interrupted.",
                "Install the driver again.",
            )
        )
    return found


def _drift(plan: _Facts, nodes: Mapping[str, Optional[_Facts]]) -> _Findings:
    """Versions that differ between the nodes with devices; the rarer ones are named as those to change."""
    found = []
    for kind in ("driver", "firmware"):
        hosts: Dict[str, List[str]] = {}
        for name, host in plan["hosts"].items():
            version = _part(nodes.get(name) or {}, "npu", kind).get("version")
            if version and host["devices"]:
                hosts.setdefault(version, []).append(name)
        if len(hosts) > 1:
            # The commonest version is kept; of equally common ones the newest, as far as they compare.
            common = max(sorted(hosts), key=lambda version: (len(hosts[version]), version))
            others = [name for version, names in sorted(hosts.items()) if version != common for name in names]
            found.append(
                _error(
                    "B09",
                    others[0] if len(others) == 1 else None,
                    f"{kind} versions differ between nodes: {_list(others)} not at {common}",
                    "; ".join(f"{version}: {_list(names)}" for version, names in sorted(hosts.items())),
                    "An upgrade reached a part of the nodes only.",
                    f"Bring {_list(others)} to {kind} {common}.",
                )
            )
    return found


# -- weights and clocks ------------------------------------------------------------------------------------------------


def _weights(host: str, node: _Facts) -> _Findings:
    """Weights that are absent, unfinished, or only pointers to the real files."""
    weights = node.get("weights")
    if not weights:
        return []
    found = []
    where = f"{weights['directory']} on {host}"
    if not weights["present"] or weights["missing"]:
        missing = _list(weights["missing"]) if weights["present"] else "the directory is absent or empty"
        found.append(
            _error(
                "D17",
                host,
                f"the model's weights are not complete in {where}",
                missing,
                "The copy has not finished, or the shared directory is not mounted.",
                "Copy the model again, or mount the shared directory at the same path on every node.",
            )
        )
    if weights.get("pointers"):
        found.append(
            _error(
                "D18",
                host,
                f"files in {where} are pointers, not weights",
                _list(weights["pointers"]),
                "The repository was cloned without its large files.",
                "Fetch the large files: git lfs pull, or download with the model hub's own client.",
            )
        )
    if weights.get("truncated"):
        found.append(
            _error(
                "D19",
                host,
                f"weight files in {where} are cut off",
                _list(weights["truncated"]),
                "A copy was interrupted; each file's header says that more should follow.",
                "Copy those files again.",
            )
        )
    return found


def clock_offsets(samples: Mapping[str, Mapping[str, float]]) -> Dict[str, Dict[str, float]]:
    """``{host: {"offset", "uncertainty"}}`` in seconds from ``{host: {"before", "after", "time"}}``.

    ``before`` and ``after`` are the controller's clock around the reading of ``time`` on the host.
    """
    return {
        host: {
            "offset": one["time"] - (one["before"] + one["after"]) / 2,
            "uncertainty": (one["after"] - one["before"]) / 2,
        }
        for host, one in samples.items()
    }


def _clocks(offsets: Optional[Mapping[str, Mapping[str, float]]], limit: float) -> _Findings:
    """The two clocks furthest apart, if they are so for sure."""
    if not offsets or len(offsets) < 2:
        return []
    # What a slow connection adds must not look like a wrong clock: an offset counts from its near end.
    late = max(offsets, key=lambda host: offsets[host]["offset"] - offsets[host]["uncertainty"])
    early = min(offsets, key=lambda host: offsets[host]["offset"] + offsets[host]["uncertainty"])
    low = offsets[early]["offset"] + offsets[early]["uncertainty"]
    skew = offsets[late]["offset"] - offsets[late]["uncertainty"] - low
    if skew <= limit:
        return []
    return [
        _warning(
            "D24",
            None,
            f"clocks of {late} and {early} are at least {skew:.1f} s apart",
            "; ".join(f"{host}: {one['offset']:+.2f} s" for host, one in sorted(offsets.items())[:_SHOWN]),
            "No time service runs on one of them.",
            "Enable chrony on all nodes with the same server: logs, certificates and tokens go by the clock.",
        )
    ]


# -- all ---------------------------------------------------------------------------------------------------------------


def _soften(found: _Findings, provides: Collection[str]) -> _Findings:
    """Findings that a later stage of this run mends are told, but stop nothing."""
    unknown = sorted(set(provides) - set(PROVIDERS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(PROVIDERS)}")
    mended = {fault: name for name in provides for fault in PROVIDERS[name]}
    return [
        {**item, "severity": "info", "fix": f"Nothing: a later stage brings the {mended[item['id']]}."}
        if item["id"] in mended
        else item
        for item in found
    ]


def judge(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    versions: Optional[Mapping[str, Any]] = None,
    *,
    offsets: Optional[Mapping[str, Mapping[str, float]]] = None,
    image_gb: float = 30,
    memory_gb: float = 8,
    clock_skew_seconds: float = 1.0,
    provides: Sequence[str] = (),
) -> List[Dict[str, Any]]:
    """All findings of the plan against its nodes, worst first.

    ``nodes`` maps each host of the plan to its ``ascent_node`` fact, None when it could not be read. ``versions`` is
    the content of ``catalog/versions/<engine>.yml``. ``offsets`` come from `clock_offsets`. ``image_gb`` is the free
    space in GiB that an image needs which no generation of the node had yet. ``provides`` names what a later stage
    brings (keys of `PROVIDERS`); what it mends is then ``info``. ValueError for an unknown name there.
    """
    found = _shared_memory(plan) + _architectures(plan, nodes)
    for host in plan["hosts"]:
        node = nodes.get(host)
        if node is None:
            found.append(
                _error(
                    "host-unreadable",
                    host,
                    f"{host} could not be read",
                    "no facts from node_info",
                    "The host is down, or its ssh access does not work.",
                    f"ansible {host} -m ping; a plan needs all of its hosts, also under -l.",
                )
            )
            continue
        found += _host(plan, host, node, image_gb, memory_gb)
        found += _store_memory(plan, host, node)
        found += _interfaces(plan, host, node)
        found += _ports(plan, host, node)
        found += _proxies(plan, host, node)
        found += _devices(plan, host, node)
        found += _versions(plan, host, node, versions)
        found += _weights(host, node)
    found += _drift(plan, nodes)
    found += _clocks(offsets, clock_skew_seconds)
    return sort_findings(_soften(found, provides))
