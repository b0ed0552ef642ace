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
    "parsed",
    "tool_text",
]

import json
import os
import re
import socket
import sys
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import command, hccn_conf, hccn_tool, npu_smi, versions, weights
from .errors import AscentError, ToolError

#: What can be asked for. ``health`` costs a tool call per device and is not read unless asked for.
SUBSETS = ("system", "network", "disk", "npu", "health", "container_engine", "weights", "state")
DEFAULT_SUBSETS = ("system", "network", "disk", "npu", "container_engine", "weights", "state")
SYSCTLS = ("vm.swappiness", "kernel.numa_balancing", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports")
DEFAULT_ENGINE = "docker"
#: What stages leave behind on a node for later runs: the fabric verdict and the last benchmark.
KEPT = ("fabric", "smoke_bench")
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_DOCKER_PROXIES = {
    "httpProxy": "http_proxy",
    "httpsProxy": "https_proxy",
    "ftpProxy": "ftp_proxy",
    "noProxy": "no_proxy",
}
_TCP_LISTEN = "0A"
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


def _os(node: Node) -> Dict[str, Optional[str]]:
    release = _assignments(node.text("/etc/os-release"))
    identity = release.get("ID", "")
    likes = [identity, *release.get("ID_LIKE", "").split()]
    family: Optional[str] = next((name for name in ("debian", "rhel", "suse") if name in likes), None)
    if family is None:
        # openEuler and Kylin build on RPM without saying that they are like any other.
        family = {"ubuntu": "debian", "openeuler": "rhel", "kylin": "rhel", "fedora": "rhel"}.get(identity.lower())
    return {"id": identity or None, "version": release.get("VERSION_ID"), "family": family}


def _meminfo(node: Node) -> Dict[str, int]:
    return {
        key: int(value)
        for key, value in re.findall(r"^(\w+):\s+([0-9]{1,15}) kB", node.text("/proc/meminfo") or "", re.M)
    }


def _space(node: Node, path: str) -> Optional[Dict[str, int]]:
    """Free and total MB of the file system that holds, or would hold, a path."""
    place = node.path(path)
    while not os.path.exists(place) and place not in ("/", ""):
        place = os.path.dirname(place)
    try:
        stat = os.statvfs(place)
    except OSError:
        return None
    return {"free_mb": stat.f_bavail * stat.f_frsize // _MB, "total_mb": stat.f_blocks * stat.f_frsize // _MB}


def _sysctls(node: Node, names: Iterable[str]) -> Dict[str, Optional[str]]:
    values: Dict[str, Optional[str]] = {}
    for name in names:
        text = node.text("/proc/sys/" + name.replace(".", "/"))
        values[name] = None if text is None else " ".join(text.split())
    return values


def _system(node: Node, sysctls: Iterable[str]) -> Dict[str, Any]:
    memory = _meminfo(node)
    shm = _space(node, "/dev/shm")  # noqa: S108 - measured, not written to
    boot_id = node.text("/proc/sys/kernel/random/boot_id")
    name = os.uname()
    return {
        "hostname": socket.gethostname(),
        "os": _os(node),
        "kernel": name.release,
        "machine": name.machine,
        "boot_id": boot_id.strip() if boot_id else None,
        "time": time.time(),
        "memory_mb": memory["MemTotal"] // 1024 if "MemTotal" in memory else None,
        "memory_available_mb": memory["MemAvailable"] // 1024 if "MemAvailable" in memory else None,
        "shm_mb": shm["total_mb"] if shm else None,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "proxies": _proxies(node),
        "sysctls": _sysctls(node, sysctls),
    }


# -- network -----------------------------------------------------------------------------------------------------------


def _addresses(text: str) -> List[Dict[str, Any]]:
    """Addresses in the output of ``ip -o addr show``."""
    found = re.findall(r"^\d+:\s+(\S+)\s+inet6?\s+([0-9A-Fa-f:.]+)/([0-9]{1,3})\b", text, re.M)
    return [{"nic": nic, "address": address, "prefix": int(prefix)} for nic, address, prefix in found]


def _listening(*tables: Optional[str]) -> List[int]:
    """Ports in state LISTEN in the texts of /proc/net/tcp and tcp6."""
    ports = set()
    for table in tables:
        for line in (table or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _TCP_LISTEN:
                ports.add(int(words[1].rsplit(":", 1)[1], 16))
    return sorted(ports)


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


def _network(node: Node) -> Dict[str, Any]:
    code, out, err = node.run("ip", "-o", "addr", "show")
    ephemeral = (node.text("/proc/sys/net/ipv4/ip_local_port_range") or "").split()
    return {
        "addresses": _addresses(out) if code == 0 else [],
        "error": None if code == 0 else err.strip() or f"ip ended with {code}",
        "hcas": _adapters(node),
        "listening": _listening(node.text("/proc/net/tcp"), node.text("/proc/net/tcp6")),
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


def _info(node: Node, tool: str) -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    text, error = tool_text(node, tool, "info")
    if text is None:
        return None, error
    return parsed(npu_smi.parse_info, text)


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


def _npu(node: Node, subsets: Iterable[str], smi_paths: Sequence[str], hccn_paths: Sequence[str]) -> Dict[str, Any]:
    tool = find_tool(node, smi_paths)
    info, error = _info(node, tool) if tool else (None, f"npu-smi is at none of {', '.join(smi_paths)}")
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
    result: Dict[str, Any] = {
        "tool": tool,
        "info": info,
        "error": "; ".join(errors) or None,
        "device_files": [f"/dev/{name}" for name in names],
        "driver": driver,
        "firmware": firmware,
        "install": install,
        "hccn": conf,
        "hccn_tool": find_tool(node, hccn_paths),
        "health": [],
    }
    if tool and info:
        suspects = info["devices"] if "health" in subsets else [one for one in info["devices"] if one["health"] != "OK"]
        result["health"] = _health(node, tool, suspects)
    return result


# -- container engine --------------------------------------------------------------------------------------------------


def _container(data: Mapping[str, Any]) -> Dict[str, Any]:
    """One entry of ``docker inspect``, cut down to what judging needs."""
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
        "started_at": state.get("StartedAt"),
        "restarts": data.get("RestartCount"),
    }


def _container_engine(node: Node, program: str, cluster: str) -> Dict[str, Any]:
    result: Dict[str, Any] = {"installed": False, "running": False, "version": None, "containers": [], "error": None}
    code, out, err = node.run(program, "version", "--format", "{{.Server.Version}}")
    if code == command.MISSING:
        return {**result, "error": err.strip()}
    result["installed"] = True
    if code:
        return {**result, "error": err.strip() or f"{program} version ended with {code}"}
    result.update(running=True, version=out.strip() or None)
    code, out, err = node.run(
        program, "ps", "-a", "--no-trunc", "--filter", f"label=ascent.cluster={cluster}", "--format", "{{json .}}"
    )
    if code:
        return {**result, "error": err.strip() or f"{program} ps ended with {code}"}
    try:
        ids = [json.loads(line)["ID"] for line in out.splitlines() if line.strip()]
        if ids:
            code, out, err = node.run(program, "inspect", *ids)
            # A container that went away since is named on stderr; those that are left are printed all the same.
            result["containers"] = sorted((_container(data) for data in json.loads(out)), key=lambda one: one["name"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        result["error"] = f"{program} printed what could not be read: {error}"
    return result


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
        "generations": generations,
        **kept,
        "error": "; ".join(errors) or None,
    }


def gather(
    node: Node,
    cluster: str,
    subsets: Iterable[str] = DEFAULT_SUBSETS,
    *,
    weights_directory: Optional[str] = None,
    disk_paths: Sequence[str] = ("/", "/var/lib/docker"),
    sysctls: Sequence[str] = SYSCTLS,
    npu_smi_paths: Sequence[str] = ("/usr/local/bin/npu-smi", "/usr/local/sbin/npu-smi"),
    hccn_tool_paths: Sequence[str] = ("/usr/local/Ascend/driver/tools/hccn_tool", "/usr/bin/hccn_tool"),
    container_program: str = DEFAULT_ENGINE,
) -> Dict[str, Any]:
    """The ``ascent_node`` fact; a part that was not asked for is None. ``weights`` needs its directory as well.

    ``health`` adds to ``npu`` and brings it along.
    """
    wanted = set(subsets)
    facts: Dict[str, Any] = dict.fromkeys(("system", "network", "disk", "npu", "container_engine", "weights", "state"))
    if "system" in wanted:
        facts["system"] = _system(node, sysctls)
    if "network" in wanted:
        facts["network"] = _network(node)
    if "disk" in wanted:
        facts["disk"] = {path: _space(node, path) for path in disk_paths}
    if wanted & {"npu", "health"}:
        facts["npu"] = _npu(node, wanted, npu_smi_paths, hccn_tool_paths)
    if "container_engine" in wanted:
        facts["container_engine"] = _container_engine(node, container_program, cluster)
    if "weights" in wanted and weights_directory:
        facts["weights"] = {**weights.inspect(node.path(weights_directory)), "directory": weights_directory}
    if "state" in wanted:
        facts["state"] = _state(node, cluster)
    return facts
