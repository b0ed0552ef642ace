"""What one node is and has, read in one go and without changing anything (docs/architecture.md, section 4).

Every reader works on a `Node`, that is a root directory and a way to run programs, and gives null and an error text
for what can't be read: a missing tool is a fact about the node, and judging it is left to `ascent.preflight`.
"""

from __future__ import annotations

__all__ = [
    "DEFAULT_SUBSETS",
    "SUBSETS",
    "SYSCTLS",
    "Answer",
    "Node",
    "find_tool",
    "gather",
    "hccn_ask",
    "hccn_call",
    "os_family",
    "parsed",
    "tool_text",
]

import hashlib
import json
import os
import re
import socket
import sys
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import (
    cann,
    command,
    containers,
    hccn_conf,
    hccn_tool,
    holders,
    host_facts,
    npu_smi,
    nvidia_smi,
    packages,
    units,
    versions,
    weights,
)
from .engines import image_at
from .errors import AscentError, ToolError
from .files import Tree
from .generations import content_hash

#: What can be asked for. ``health`` costs a tool call per device and is not read unless asked for.
SUBSETS = ("system", "network", "disk", "npu", "health", "container_engine", "units", "weights", "state")
DEFAULT_SUBSETS = ("system", "network", "disk", "npu", "container_engine", "units", "weights", "state")
SYSCTLS = ("vm.swappiness", "kernel.numa_balancing", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports")
DEFAULT_ENGINE = "docker"
#: Owns the device files, unless the driver was installed for somebody else.
SERVICE_USER = "HwHiAiUser"
#: What stages leave behind on a node for later runs: the fabric verdict, the last benchmark, generations that passed.
KEPT = ("fabric", "smoke_bench", "good")
#: Programs whose limits containers inherit, the nearest first.
_ENGINE_PROGRAMS = ("containerd", "dockerd")
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_DOCKER_PROXIES = {
    "httpProxy": "http_proxy",
    "httpsProxy": "https_proxy",
    "ftpProxy": "ftp_proxy",
    "noProxy": "no_proxy",
}
_NVIDIA_SMI = ("/usr/bin/nvidia-smi", "/usr/local/bin/nvidia-smi")
#: PCI device ids of the vendor's accelerators; its network cards have others.
_CHIPS = ("d500", "d801", "d802", "d803")
_MANAGEMENT_DEVICES = ("davinci_manager", "devmm_svm", "hisi_hdc")
_MB = 1024 * 1024
_BUSY_ATTEMPTS = 3
_NO_ANSWER = {command.MISSING: "missing", command.NO_PERMISSION: "missing", command.TIMED_OUT: "timeout"}

Runner = Callable[[Sequence[str], float], Tuple[int, str, str]]


class Node:
    """Access to one node: files below ``root`` and programs by ``runner``, so that tests can stand in for both."""

    def __init__(
        self,
        root: str = "/",
        runner: Runner = command.run,
        timeout: float = 30,
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.root = root
        self.runner = runner
        self.timeout = timeout
        self.environment = os.environ if environment is None else environment

    def path(self, path: str) -> str:
        """Where a path of the node really is."""
        return os.path.join(self.root, path.lstrip("/"))

    def text(self, path: str) -> Optional[str]:
        """A file's text, None when it can't be read."""
        try:
            with open(self.path(path), encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except OSError:
            return None

    def sha256(self, path: str) -> Optional[str]:
        """A file's checksum, None when it can't be read."""
        try:
            with open(self.path(path), "rb") as stream:
                return hashlib.sha256(stream.read()).hexdigest()
        except OSError:
            return None

    def is_loose(self, path: str) -> bool:
        """Whether a file may be written by another user than who reads it here and root."""
        try:
            found = os.stat(self.path(path))
        except OSError:
            return False
        return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & 0o022)

    def names(self, path: str) -> List[str]:
        """Names in a directory, sorted; none when it can't be read."""
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def run(self, *argv: str) -> Tuple[int, str, str]:
        """A program's code, output and errors."""
        return self.runner(argv, self.timeout)


# -- system ------------------------------------------------------------------------------------------------------------


def _assignments(text: Optional[str]) -> Dict[str, str]:
    """``KEY=value`` lines with or without quotes and ``export``."""
    pairs = re.findall(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$", text or "", re.M)
    return {key: value.strip().strip("\"'") for key, value in pairs}


def _without_password(value: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", value)


def _proxies(node: Node) -> Dict[str, str]:
    """Proxy settings of the login environment and of the container client, which hands its own to every container."""
    found: Dict[str, str] = {}
    try:
        config = json.loads(node.text("/root/.docker/config.json") or "{}")
        for name, value in config["proxies"]["default"].items():
            if name in _DOCKER_PROXIES:
                found[_DOCKER_PROXIES[name]] = str(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # no proxies there, or a file that the container client would not take either
    for source in (_assignments(node.text("/etc/environment")), node.environment):
        found.update({name: value for name, value in source.items() if name.lower() in _PROXIES and value})
    return {name: _without_password(value) for name, value in sorted(found.items())}


#: Distributions with RPM packages by their ID, apart from ``rhel`` itself.
_RPM = frozenset(("almalinux", "centos", "euleros", "fedora", "kylin", "ol", "openeuler", "rocky"))


def os_family(identity: str, likes: Iterable[str]) -> Optional[str]:
    """``debian``, ``rhel`` or ``suse`` by the ID and ID_LIKE of ``/etc/os-release``; None where neither is known."""
    names = [identity, *likes]
    family: Optional[str] = next((name for name in ("debian", "rhel", "suse") if name in names), None)
    if family is None:
        # openEuler and Kylin are RPM systems and don't say that they are like any other; of some only the ID is known.
        family = "debian" if identity.lower() == "ubuntu" else "rhel" if identity.lower() in _RPM else None
    return family


def _os(node: Node) -> Dict[str, Optional[str]]:
    release = _assignments(node.text("/etc/os-release"))
    identity = release.get("ID", "")
    family = os_family(identity, release.get("ID_LIKE", "").split())
    return {"id": identity or None, "version": release.get("VERSION_ID"), "family": family}


def _meminfo(node: Node) -> Dict[str, int]:
    return {
        key: int(value)
        for key, value in re.findall(r"^(\w+):\s+([0-9]{1,15}) kB", node.text("/proc/meminfo") or "", re.M)
    }


def _space(node: Node, path: str) -> Optional[Dict[str, int]]:
    """Free and total MB of the file system that holds, or would hold, a path; ``device`` is equal on the same one."""
    place = node.path(path)
    while not os.path.exists(place) and place not in ("/", ""):
        place = os.path.dirname(place)
    try:
        stat = os.statvfs(place)
        device = os.stat(place).st_dev
    except OSError:
        return None
    return {
        "free_mb": stat.f_bavail * stat.f_frsize // _MB,
        "total_mb": stat.f_blocks * stat.f_frsize // _MB,
        "device": device,
    }


def _sysctls(node: Node, names: Iterable[str]) -> Dict[str, Optional[str]]:
    values: Dict[str, Optional[str]] = {}
    for name in names:
        text = node.text("/proc/sys/" + name.replace(".", "/"))
        values[name] = None if text is None else " ".join(text.split())
    return values


def _limits(node: Node, scan: holders.Scan) -> Dict[str, Any]:
    """Limits of a login, and those that containers take over from the container engine."""
    engine = next((scan.programs[name] for name in _ENGINE_PROGRAMS if name in scan.programs), None)
    return {
        "login": host_facts.limits(node.text("/proc/self/limits")),
        "container_engine": host_facts.limits(node.text(f"/proc/{engine}/limits")) if engine else None,
    }


def _system(node: Node, sysctls: Iterable[str], peers: Sequence[str], scan: holders.Scan) -> Dict[str, Any]:
    memory = _meminfo(node)
    own = socket.gethostname()
    shm = _space(node, "/dev/shm")  # noqa: S108 - measured, not written to
    boot_id = node.text("/proc/sys/kernel/random/boot_id")
    name = os.uname()
    return {
        "hostname": own,
        "os": _os(node),
        "kernel": name.release,
        "machine": name.machine,
        "boot_id": boot_id.strip() if boot_id else None,
        "time": time.time(),
        "booted": host_facts.booted(node),
        "memory_mb": memory["MemTotal"] // 1024 if "MemTotal" in memory else None,
        "memory_available_mb": memory["MemAvailable"] // 1024 if "MemAvailable" in memory else None,
        "hugepages_mb": host_facts.hugepages_mb(memory, node.text("/proc/meminfo")),
        "cgroup": host_facts.cgroup(node),
        "shm_mb": shm["total_mb"] if shm else None,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "proxies": _proxies(node),
        "sysctls": _sysctls(node, sysctls),
        "names": host_facts.names(node, (own, *peers)) if peers else None,
        "limits": _limits(node, scan),
        "selinux": host_facts.selinux(node),
        "filters": host_facts.filters(node),
    }


# -- network -----------------------------------------------------------------------------------------------------------


def _addresses(text: str) -> List[Dict[str, Any]]:
    """Addresses in the output of ``ip -o addr show``."""
    found = re.findall(r"^\d+:\s+(\S+)\s+inet6?\s+([0-9A-Fa-f:.]+)/([0-9]{1,3})\b", text, re.M)
    return [{"nic": nic, "address": address, "prefix": int(prefix)} for nic, address, prefix in found]


def _adapters(node: Node) -> List[Dict[str, Any]]:
    """RDMA devices with their network interfaces and the state of their ports, from /sys/class/infiniband."""
    base = "/sys/class/infiniband"
    found = []
    for name in node.names(base):
        ports = []
        for number in node.names(f"{base}/{name}/ports"):
            # "4: ACTIVE"
            state = (node.text(f"{base}/{name}/ports/{number}/state") or "").split(":")[-1].strip()
            layer = (node.text(f"{base}/{name}/ports/{number}/link_layer") or "").strip()
            ports.append({"number": int(number), "state": state or None, "link_layer": layer or None})
        found.append({"name": name, "nics": node.names(f"{base}/{name}/device/net"), "ports": ports})
    return found


def _network(node: Node, sockets: Mapping[int, Iterable[int]], scan: holders.Scan) -> Dict[str, Any]:
    code, out, err = node.run("ip", "-o", "addr", "show")
    ephemeral = (node.text("/proc/sys/net/ipv4/ip_local_port_range") or "").split()
    return {
        "addresses": _addresses(out) if code == 0 else [],
        "nics": host_facts.nics(node),
        "error": None if code == 0 else err.strip() or f"ip ended with {code}",
        "hcas": _adapters(node),
        "listening": sorted(sockets),
        "everywhere": holders.everywhere(node.text("/proc/net/tcp"), node.text("/proc/net/tcp6")),
        "owners": {
            str(port): scan.sockets[inode]
            for port, inodes in sorted(sockets.items())
            for inode in inodes
            if inode in scan.sockets
        },
        "ephemeral": [int(port) for port in ephemeral] if len(ephemeral) == 2 else None,
        "reserved": (node.text("/proc/sys/net/ipv4/ip_local_reserved_ports") or "").strip(),
    }


# -- accelerators ------------------------------------------------------------------------------------------------------


def parsed(parser: Callable[[str], Any], text: Optional[str]) -> Tuple[Any, Optional[str]]:
    """``(value, None)`` or ``(None, why not)``; a file that is absent has neither."""
    if text is None:
        return None, None
    try:
        return parser(text), None
    except AscentError as error:
        return None, str(error)


def tool_text(node: Node, *argv: str) -> Tuple[Optional[str], Optional[str]]:
    """``(output, None)`` or ``(None, error)``. The exit code counts only without output: these tools lie both ways."""
    code, out, err = node.run(*argv)
    if out.strip() or code == 0:
        return out, None
    return None, err.strip() or f"{' '.join(argv)} ended with {code} and no output"


def _info(node: Node, tool: str) -> Tuple[Optional[Dict[str, Any]], Optional[str], bool]:
    """The table, or why there is none, and whether the tool says that the driver is installed in part only."""
    text, error = tool_text(node, tool, "info")
    if text is None:
        return None, error, False
    return (*parsed(npu_smi.parse_info, text), packages.incomplete(text))


def _live(node: Node, tool: str, info: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """What runs now, and need not be what lies on the disk: ``{driver, firmware, compatibility}`` of the first NPU."""
    if not info["devices"]:
        return None
    text, _ = tool_text(node, tool, "info", "-t", "board", "-i", str(info["devices"][0]["npu_id"]))
    board, _ = parsed(npu_smi.parse_board, text)
    board = board or {}
    return {
        "driver": info["driver_version"] or board.get("software_version"),
        "firmware": board.get("firmware_version"),
        "compatibility": board.get("compatibility"),
    }


def _health(node: Node, tool: str, devices: Iterable[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """The detail form for each given device: it has the error codes that the table lacks."""
    details = []
    for device in devices:
        place = {"npu_id": device["npu_id"], "chip_id": device["chip_id"]}
        argv = (tool, "info", "-t", "health", "-i", str(device["npu_id"]), "-c", str(device["chip_id"]))
        text, error = tool_text(node, *argv)
        detail, parse_error = parsed(npu_smi.parse_health, text)
        details.append({**place, **(detail or {"health": None}), "error": error or parse_error})
    return details


class Answer(NamedTuple):
    """What a call of ``hccn_tool`` came to: a value, or ``kind`` and ``text`` of why there is none.

    ``kind`` is ``missing`` (no such program), ``timeout``, ``busy`` (its lock stayed taken), ``refused`` (it said that
    it failed), ``unsupported`` (this product or release has no such thing) or ``unclear`` (no parser knows the shape).
    """

    value: Optional[Dict[str, Any]]
    kind: Optional[str] = None
    text: Optional[str] = None


def hccn_ask(node: Node, tool: str, device: int, option: str, *arguments: str) -> Answer:
    """One call of ``hccn_tool``; a busy tool is asked again.

    Calls on a node have to be made one after the other: the tool locks itself node-wide.
    """
    answer = Answer(None)
    for attempt in range(_BUSY_ATTEMPTS):
        if attempt:
            time.sleep(0.2 * attempt)
        code, out, err = node.run(tool, "-i", str(device), f"-{option}", "-g", *arguments)
        # Answers and refusals come on either stream, so both are read; a missing tool leaves only the code.
        if code in _NO_ANSWER and not out.strip():
            return Answer(None, _NO_ANSWER[code], err.strip() or f"{tool} ended with {code}")
        try:
            return Answer(hccn_tool.parse(option, out if not err.strip() else f"{out.rstrip()}\n{err}"))
        except ToolError as failure:
            text = f"{failure} (exit {code})"
            answer = Answer(None, "unsupported" if hccn_tool.UNSUPPORTED.search(text) else "refused", text)
        except AscentError as failure:
            answer = Answer(None, "unclear", f"{failure} (exit {code})")
        if not hccn_tool.BUSY.search(answer.text or ""):
            return answer
    return Answer(None, "busy", answer.text)


def hccn_call(
    node: Node, tool: str, device: int, option: str, *arguments: str
) -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    """`hccn_ask` as ``(value, None)`` or ``(None, error)``."""
    answer = hccn_ask(node, tool, device, option, *arguments)
    return answer.value, answer.text


def find_tool(node: Node, candidates: Iterable[str]) -> Optional[str]:
    """The first of these programs that is there."""
    return next((path for path in candidates if path and os.path.exists(node.path(path))), None)


def _pci(node: Node) -> Optional[Dict[str, int]]:
    """Chips that the kernel sees on the bus, by PCI device id; None where ``lspci`` does not tell."""
    code, out, _ = node.run("lspci", "-n", "-d", "19e5:")
    if code:
        return None
    ids = [name for name in re.findall(r"\b19e5:([0-9a-f]{4})\b", out.lower()) if name in _CHIPS]
    return {name: ids.count(name) for name in sorted(set(ids))}


def _npu(node: Node, subsets: Iterable[str], smi_paths: Sequence[str], hccn_paths: Sequence[str]) -> Dict[str, Any]:
    tool = find_tool(node, smi_paths)
    nowhere = f"npu-smi is at none of {', '.join(smi_paths)}"
    info, error, incomplete = _info(node, tool) if tool else (None, nowhere, False)
    names = [name for name in node.names("/dev") if re.match(r"davinci[0-9]+\Z", name)]
    names.sort(key=lambda name: int(name[len("davinci") :]))
    names += [name for name in _MANAGEMENT_DEVICES if os.path.exists(node.path(f"/dev/{name}"))]
    install, install_error = parsed(versions.parse_install_info, node.text("/etc/ascend_install.info"))
    base = (install or {}).get("path") or "/usr/local/Ascend"
    firmware_base = (install or {}).get("firmware_path") or base
    driver, driver_error = parsed(versions.parse_driver, node.text(f"{base}/driver/version.info"))
    firmware, firmware_error = parsed(versions.parse_firmware, node.text(f"{firmware_base}/firmware/version.info"))
    conf, conf_error = parsed(hccn_conf.parse, node.text("/etc/hccn.conf"))
    errors = [text for text in (error, install_error, driver_error, firmware_error, conf_error) if text]
    user = (install or {}).get("user") or SERVICE_USER
    result: Dict[str, Any] = {
        "tool": tool,
        "info": info,
        "error": "; ".join(errors) or None,
        "device_files": [f"/dev/{name}" for name in names],
        "driver": driver,
        "firmware": firmware,
        "install": install,
        "user": host_facts.service_user(node, user),
        "hccn": conf,
        "hccn_error": conf_error,
        "pci": _pci(node),
        "hccn_tool": find_tool(node, hccn_paths),
        "health": [],
        "incomplete": incomplete,
        "live": None,
        "packages": packages.read_record(Tree(node.root)),
        "cann": cann.find(Tree(node.root), os.uname().machine),
    }
    if tool and info:
        result["live"] = _live(node, tool, info)
        suspects = info["devices"] if "health" in subsets else [one for one in info["devices"] if one["health"] != "OK"]
        result["health"] = _health(node, tool, suspects)
    return result


def _gpu(node: Node) -> Optional[Dict[str, Any]]:
    """NVIDIA's devices; None on a host without their tool and without a loaded driver."""
    tool = find_tool(node, _NVIDIA_SMI)
    if tool is None:
        loaded = node.text("/proc/driver/nvidia/version") is not None
        return {"tool": None, "driver": None, "devices": [], "error": "nvidia-smi is not there"} if loaded else None
    code, out, err = node.run(tool, f"--query-gpu={','.join(nvidia_smi.FIELDS)}", "--format=csv,noheader,nounits")
    if code:
        return {
            "tool": tool,
            "driver": None,
            "devices": [],
            "error": (out.strip() or err.strip() or f"ended with {code}"),
        }
    query, error = parsed(nvidia_smi.parse_query, out)
    return {"tool": tool, "driver": None, "devices": [], **(query or {}), "error": error}


# -- container engine --------------------------------------------------------------------------------------------------


def _published(data: Mapping[str, Any]) -> List[int]:
    """The host's ports that lead into a container."""
    bindings = (data.get("HostConfig") or {}).get("PortBindings") or {}
    ports = (str(one.get("HostPort")) for some in bindings.values() for one in some or ())
    return sorted({int(port) for port in ports if port.isdigit()})


def _container(data: Mapping[str, Any], image: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """One entry of ``docker inspect``, cut down to what judging needs; ``image`` is the entry of its image."""
    state = data.get("State") or {}
    config = data.get("Config") or {}
    return {
        "name": str(data.get("Name", "")).lstrip("/"),
        "id": str(data.get("Id", "")),
        "state": state.get("Status"),
        "exit_code": state.get("ExitCode"),
        "oom_killed": state.get("OOMKilled"),
        "image": config.get("Image"),
        "image_id": data.get("Image"),
        "labels": config.get("Labels") or {},
        "published": _published(data),
        "started_at": state.get("StartedAt"),
        "restarts": data.get("RestartCount"),
        "made": containers.made(data, image),
    }


def _container_engine(node: Node, program: str, cluster: str) -> Dict[str, Any]:
    result: Dict[str, Any] = {
        "installed": False,
        "running": False,
        "version": None,
        "images": [],
        "containers": [],
        "others": [],
        "missing_python": host_facts.missing_python(),
        "error": None,
    }
    code, out, err = node.run(program, "version", "--format", "{{.Server.Version}}")
    if code == command.MISSING:
        return {**result, "error": err.strip()}
    result["installed"] = True
    if code:
        return {**result, "error": err.strip() or f"{program} version ended with {code}"}
    result.update(running=True, version=out.strip() or None)
    code, out, err = node.run(program, "images", "--digests", "--no-trunc", "--format", "{{.Repository}}@{{.Digest}}")
    if code:
        return {**result, "error": err.strip() or f"{program} images ended with {code}"}
    # An image without a name, or of which no registry told a digest, has <none> in its place.
    result["images"] = sorted(
        {line.strip() for line in out.splitlines() if "@sha256:" in line and "<none>" not in line}
    )
    code, out, err = node.run(program, "ps", "-a", "--no-trunc", "--format", "{{json .}}")
    if code:
        return {**result, "error": err.strip() or f"{program} ps ended with {code}"}
    try:
        listed = [json.loads(line) for line in out.splitlines() if line.strip()]
        ours = [f"ascent.cluster={cluster}" in one["Labels"].split(",") for one in listed]
        ids = [one["ID"] for one, is_ours in zip(listed, ours) if is_ours]
        # In the same call, since it takes both: what a container has beyond its image.
        images = sorted({one["Image"] for one, is_ours in zip(listed, ours) if is_ours and one.get("Image")})
        result["others"] = sorted(one["Names"] for one, is_ours in zip(listed, ours) if not is_ours)
        if ids:
            code, out, err = node.run(program, "inspect", *ids, *images)
            # What went away since is named on stderr; what is left is printed all the same.
            told = json.loads(out)
            by_id = {one["Id"]: one for one in told if "State" not in one}
            result["containers"] = sorted(
                (_container(one, by_id.get(one.get("Image"))) for one in told if "State" in one),
                key=lambda one: one["name"],
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        result["error"] = f"{program} printed what could not be read: {error}"
    return result


def data_root(node: Node) -> str:
    """Where the container engine keeps images: its own setting, else Docker's default."""
    try:
        configured = json.loads(node.text("/etc/docker/daemon.json") or "{}").get("data-root")
    except (AttributeError, ValueError):
        configured = None  # a file that the engine would not take either; the role container_engine says so
    return str(configured or "/var/lib/docker")


def _short(name: str) -> str:
    """An image's name as the engine prints it: Docker Hub's goes without its registry."""
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _image(data: Mapping[str, Any]) -> Dict[str, Any]:
    """One entry of ``docker image inspect``; what the image says of its content is taken from variables and labels.

    Many images say nothing. ``org.opencontainers.image.version`` may be the distribution's, which has no ``v``.
    """
    config = data.get("Config") or {}
    env = dict(line.partition("=")[::2] for line in config.get("Env") or ())
    labels = config.get("Labels") or {}
    path = re.search(r"/Ascend/(?:ascend-toolkit/|cann-)([0-9]+\.[0-9][0-9A-Za-z.-]*)", " ".join(env.values()))
    label = re.match(r"v[0-9][0-9a-z.]*", str(labels.get("org.opencontainers.image.version") or ""))
    return {
        "id": data.get("Id"),
        "architecture": data.get("Architecture"),
        "bytes": data.get("Size"),
        "cann": env.get("CANN_VERSION") or (path.group(1) if path else None),
        "engine": env.get("VLLM_ASCEND_VERSION") or (label.group(0) if label else None),
        "soc": env.get("SOC_VERSION"),
    }


def _images(
    node: Node, program: str, references: Iterable[str], generations: Iterable[Mapping[str, Any]]
) -> Dict[str, Optional[Dict[str, Any]]]:
    """What is there of these images, by tag or by the digest that a generation locked; None for one that is not."""
    names = {reference: {_short(reference)} for reference in references}
    for entry in generations:
        for reference, locked in (entry.get("images") or {}).items():
            if reference in names and locked:
                names[reference].add(_short(image_at(reference, locked)))
    if not names:
        return {}
    _, out, _ = node.run(program, "image", "inspect", *sorted({one for some in names.values() for one in some}))
    try:
        present = json.loads(out or "[]")
        by_name = {name: one for one in present for name in [*(one["RepoTags"] or ()), *(one["RepoDigests"] or ())]}
    except (KeyError, TypeError, ValueError):
        by_name = {}
    found: Dict[str, Optional[Dict[str, Any]]] = {}
    for reference, some in names.items():
        data = next((by_name[name] for name in sorted(some) if name in by_name), None)
        found[reference] = _image(data) if data else None
    return found


# -- engines outside containers ----------------------------------------------------------------------------------------


def _units(node: Node, cluster: str) -> Dict[str, Any]:
    """Units of this cluster, with the keys that its containers have. No program is asked where there are none."""
    labels, texts = {}, {}
    for name in node.names(units.DIRECTORY):
        if name.startswith("ascent-") and name.endswith(".service"):
            text = node.text(f"{units.DIRECTORY}/{name}") or ""
            found = units.labels_of(text)
            if found.get("ascent.cluster") == cluster:
                labels[name], texts[name] = found, text
    if not labels:
        return {"units": [], "error": None}
    code, out, err = node.run("systemctl", "show", "--property=" + ",".join(units.PROPERTIES), *labels)
    if code:
        return {"units": [], "error": err.strip() or f"systemctl show ended with {code}"}
    shown = units.parse_show(out)
    clocks = (time.clock_gettime(time.CLOCK_MONOTONIC), time.time())
    return {
        "units": [
            {
                "name": name,
                "image": None,
                "image_id": None,
                "labels": own,
                "text": texts[name],
                "drop_ins": (shown.get(name) or {}).get("DropInPaths", "").split(),
                **units.state_of(shown.get(name), clocks),
            }
            for name, own in sorted(labels.items())
        ],
        "error": None,
    }


# -- state of earlier runs ---------------------------------------------------------------------------------------------


def _json_file(node: Node, path: str) -> Tuple[Any, Optional[str]]:
    text = node.text(path)
    if text is None:
        return None, None
    try:
        return json.loads(text), None
    except ValueError as error:
        return None, f"{path}: {error}"


def _state(node: Node, cluster: str) -> Dict[str, Any]:
    base = f"/etc/ascent/{cluster}"
    errors = []
    generations = []
    for name in sorted((name for name in node.names(f"{base}/generations") if name.isdigit()), key=int):
        manifest, error = _json_file(node, f"{base}/generations/{name}/manifest.json")
        if isinstance(manifest, dict):
            generations.append(manifest)
        elif error:
            errors.append(error)
    try:
        target = os.path.basename(os.readlink(node.path(f"{base}/current")).rstrip("/"))
    except OSError:
        target = ""
    kept = {}
    for name in KEPT:
        kept[name], error = _json_file(node, f"/var/lib/ascent/{cluster}/{name}.json")
        if error:
            errors.append(error)
    return {
        "current": int(target) if re.match(r"[0-9]{1,9}\Z", target) else None,
        **_files(node, base, target, generations),
        "plan_hash": _plan_hash(node, f"{base}/generations/{target}/plan.json") if target else None,
        "generations": generations,
        "secrets": node.names(f"{base}/secrets"),
        **kept,
        "error": "; ".join(errors) or None,
    }


def _files(node: Node, base: str, current: str, generations: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """``files``: checksums of the current generation's, and of the scripts that containers mount from earlier ones.

    ``loose``: those of them that somebody else than root may write.
    """
    manifest = next((entry for entry in generations if str(entry.get("number")) == current), {})
    mounted = [f"{entry['since']}/{name}.sh" for name, entry in (manifest.get("processes") or {}).items()]
    places = [f"{current}/{name}" for name in node.names(f"{base}/generations/{current}")] if current else []
    every = sorted({*places, *mounted})
    return {
        "files": {place: node.sha256(f"{base}/generations/{place}") for place in every},
        "loose": [place for place in every if node.is_loose(f"{base}/generations/{place}")],
    }


def _plan_hash(node: Node, path: str) -> Optional[str]:
    """The hash that a plan's content has, whatever it says of itself; None for what is no plan."""
    plan, _ = _json_file(node, path)
    return content_hash(plan) if isinstance(plan, dict) else None


def _processes(
    node: Node, program: str, facts: Mapping[str, Any], scan: holders.Scan
) -> Dict[str, Dict[str, Optional[str]]]:
    """Who holds ports and devices, by pid: command, and the name of its container."""
    pids = [*scan.sockets.values(), *(pid for some in scan.devices.values() for pid in some)]
    pids += [one["pid"] for one in ((facts["npu"] or {}).get("info") or {}).get("processes", ())]
    found = holders.describe(node, pids)
    ours = {one["id"]: one["name"] for one in (facts["container_engine"] or {}).get("containers", ())}
    holders.container_names(node, program, found, ours)
    return found


def gather(
    node: Node,
    cluster: str,
    subsets: Iterable[str] = DEFAULT_SUBSETS,
    *,
    weights_directory: Optional[str] = None,
    images: Sequence[str] = (),
    peers: Sequence[str] = (),
    paths: Sequence[str] = (),
    disk_paths: Sequence[str] = ("/",),
    sysctls: Sequence[str] = SYSCTLS,
    npu_smi_paths: Sequence[str] = ("/usr/local/bin/npu-smi", "/usr/local/sbin/npu-smi"),
    hccn_tool_paths: Sequence[str] = ("/usr/local/Ascend/driver/tools/hccn_tool", "/usr/bin/hccn_tool"),
    container_program: str = DEFAULT_ENGINE,
) -> Dict[str, Any]:
    """The ``ascent_node`` fact; a part that was not asked for is None. ``weights`` needs its directory as well.

    ``health`` adds to ``npu`` and brings it along. ``images`` are looked up in the container engine's store,
    ``peers`` by name; of ``paths``, ``absent`` has those that are not there. Beside ``disk_paths``, the file systems of
    images and weights are measured. ``clock`` is this host's time at the beginning and the end of the reading.
    """
    first = time.time()
    wanted = set(subsets)
    parts = (
        *("system", "network", "disk", "npu", "gpu", "container_engine", "units", "weights", "state"),
        *("processes", "absent"),
    )
    facts: Dict[str, Any] = dict.fromkeys(parts)
    sockets: Dict[int, List[int]] = {}
    scan = holders.Scan({}, {}, [], {})
    if wanted & {"system", "network", "npu"}:
        sockets = holders.listening(node.text("/proc/net/tcp"), node.text("/proc/net/tcp6"))
        scan = holders.scan(node, (inode for some in sockets.values() for inode in some), _ENGINE_PROGRAMS)
    if "system" in wanted:
        facts["system"] = _system(node, sysctls, peers, scan)
    if "network" in wanted:
        facts["network"] = _network(node, sockets, scan)
    if "disk" in wanted:
        store, models = data_root(node), [weights_directory] if weights_directory else []
        facts["disk"] = {path: _space(node, path) for path in (*disk_paths, store, *models)}
    if wanted & {"npu", "health"}:
        facts["npu"] = _npu(node, wanted, npu_smi_paths, hccn_tool_paths)
        facts["npu"]["holders"] = {str(number): pids for number, pids in sorted(scan.devices.items())}
        facts["gpu"] = _gpu(node)
    if "state" in wanted:
        facts["state"] = _state(node, cluster)
    if "container_engine" in wanted:
        facts["container_engine"] = _container_engine(node, container_program, cluster)
        facts["container_engine"]["data_root"] = data_root(node)
        generations = (facts["state"] or {}).get("generations", ())
        running = facts["container_engine"]["running"]
        facts["container_engine"]["inspected"] = (
            _images(node, container_program, images, generations) if running else dict.fromkeys(images)
        )
    if "units" in wanted:
        facts["units"] = _units(node, cluster)
    if "weights" in wanted and weights_directory:
        facts["weights"] = {**weights.inspect(node.path(weights_directory)), "directory": weights_directory}
    if scan.sockets or scan.devices or facts["npu"]:
        facts["processes"] = _processes(node, container_program, facts, scan)
    if paths:
        facts["absent"] = [path for path in paths if not os.path.exists(node.path(path))]
    facts["clock"] = {"first": first, "last": time.time()}
    return facts
