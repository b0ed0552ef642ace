"""Everything that the vendor's tools tell of a node's devices, read in one go (docs/architecture.md, section 7).

The tool behind most of it serves one call at a time on a node, so all calls are made here, one after the other. What
could not be read is told as such and never left out: a verdict is only as good as what it was made from.
"""

from __future__ import annotations

__all__ = ["DEPTHS", "address", "lock_holders", "read", "read_counters"]

import json
import os
import re
import time
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import hccn_conf, npu_smi
from .errors import AscentError, ToolError
from .node import DEFAULT_ENGINE, Answer, Node, find_tool, hccn_ask, parsed, tool_text

#: Options of ``hccn_tool`` that are read of every device, by how deep the look is.
_QUICK = ("ip", "vnic", "link", "net_health", "tls", "netdetect", "gateway", "mtu")
_STANDARD = (*_QUICK, "speed", "fec", "lldp", "optical", "stat", "gateway_ping")
DEPTHS: Dict[str, Tuple[str, ...]] = {"quick": _QUICK, "standard": _STANDARD, "deep": (*_STANDARD, "link_stat")}

CONF = "/etc/hccn.conf"
SMI_PATHS = ("/usr/local/bin/npu-smi", "/usr/local/sbin/npu-smi")
HCCN_PATHS = ("/usr/local/Ascend/driver/tools/hccn_tool", "/usr/bin/hccn_tool")
# A tool that hung twice hangs again; each try would cost its whole time limit.
_MOST_TIMEOUTS = 2
_SHOWN_COMMAND = 120
#: The lock of the whole tool, where an optical module or a ping of its own may be busy as well.
_LOCKED = re.compile(r"hccn_tool is busy|get lock failed", re.I)
_PATIENCE = 3.0

_Npus = Optional[Mapping[str, Any]]


def address(npus: _Npus, device: int, plane: str) -> Optional[str]:
    """The address at which a device answers on a plane: ``vnic`` (A3, HCCS) or ``ip`` (RoCE). None when it has none."""
    entry = ((npus or {}).get("devices") or {}).get(str(device)) or {}
    found: Optional[str] = (entry.get(plane) or {}).get("address")
    return found


# -- the tool of the device network ------------------------------------------------------------------------------------


class _Hccn:
    """Asks ``hccn_tool`` about devices, keeps what it could not say, and stops asking one that says nothing at all."""

    def __init__(self, node: Node, tool: Optional[str], candidates: Sequence[str]) -> None:
        self.node = node
        self.tool = tool
        self.calls = 0
        self.unread: List[Dict[str, Any]] = []
        self.unsupported: List[str] = []
        self.holders: List[Dict[str, Any]] = []
        self._timeouts = 0
        self._given_up: Optional[str] = None
        if tool is None:
            self._given_up = f"hccn_tool is at none of {', '.join(candidates)}"
            self._miss(None, "hccn_tool", None, Answer(None, "missing", self._given_up))

    def ask(self, device: int, option: str, *arguments: str, name: str = "") -> Optional[Dict[str, Any]]:
        """The parsed answer, None where there is none. ``name`` is what the answer is kept as, else ``option``."""
        name = name or option
        if name in self.unsupported or self.tool is None:
            return None
        call = " ".join(["hccn_tool", "-i", str(device), f"-{option}", "-g", *arguments])
        if self._given_up:
            self._miss(device, call, name, Answer(None, "not-asked", self._given_up))
            return None
        self.calls += 1
        answer = hccn_ask(self.node, self.tool, device, option, *arguments)
        if answer.kind == "busy" and _LOCKED.search(answer.text or ""):
            # Some other call may be a long one. Who makes it is looked up while it lasts.
            self.holders = lock_holders(self.node) or self.holders
            time.sleep(_PATIENCE)
            answer = hccn_ask(self.node, self.tool, device, option, *arguments)
        if answer.kind == "unsupported":
            self.unsupported.append(name)
            return None
        if answer.kind is not None:
            self._judge(answer)
            self._miss(device, call, name, answer)
        return answer.value

    def _judge(self, answer: Answer) -> None:
        if answer.kind == "timeout":
            self._timeouts += 1
            self.holders = self.holders or lock_holders(self.node)
        locked = answer.kind == "busy" and _LOCKED.search(answer.text or "")
        if locked or answer.kind == "missing" or self._timeouts >= _MOST_TIMEOUTS:
            self._given_up = f"after: {answer.text}"

    def _miss(self, device: Optional[int], call: str, option: Optional[str], answer: Answer) -> None:
        self.unread.append(
            {"device": device, "what": call, "option": option, "kind": answer.kind, "text": answer.text or ""}
        )


def lock_holders(node: Node) -> List[Dict[str, Any]]:
    """Processes that hold a lock on a file of ``hccn_tool``'s, or that are one: ``[{"pid", "command", "file"}]``.

    The file is known where the process has it open under a name with "hccn" in it (``/etc/hccn.conf``, a lock file).
    """
    locked: Dict[int, List[int]] = {}
    pattern = r"^[0-9]+:\s+(?:FLOCK|POSIX|OFDLCK)\s+\S+\s+\S+\s+([0-9]+)\s+[0-9A-Fa-f]+:[0-9A-Fa-f]+:([0-9]+)\s"
    for pid, inode in re.findall(pattern, node.text("/proc/locks") or "", re.M):
        locked.setdefault(int(pid), []).append(int(inode))
    own = os.getpid()
    found = []
    for name in node.names("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        words = (node.text(f"/proc/{name}/cmdline") or "").split("\0")
        file = _open_file(node, name, locked.get(int(name), []))
        if file or any(os.path.basename(word) == "hccn_tool" for word in words[:2]):
            command = " ".join(word for word in words if word)[:_SHOWN_COMMAND]
            comm = (node.text(f"/proc/{name}/comm") or "").strip()
            found.append(
                {"pid": int(name), "command": command if comm in command else f"{comm}: {command}", "file": file}
            )
    # Who holds a file's lock is the answer; other calls of the tool count only where nobody does.
    return [one for one in found if one["file"]] or found


def _open_file(node: Node, pid: str, inodes: Iterable[int]) -> Optional[str]:
    """The file with "hccn" in its name that this process has open and locked."""
    wanted = set(inodes)
    for descriptor in node.names(f"/proc/{pid}/fd") if wanted else ():
        path = node.path(f"/proc/{pid}/fd/{descriptor}")
        try:
            if os.stat(path).st_ino in wanted and "hccn" in os.readlink(path):
                return os.readlink(path)
        except OSError:
            continue
    return None


# -- the device tool ---------------------------------------------------------------------------------------------------


class _Smi:
    """Asks ``npu-smi``, and keeps what it could not say."""

    def __init__(self, node: Node, tool: Optional[str], candidates: Sequence[str]) -> None:
        self.node = node
        self.tool = tool
        self.calls = 0
        self.unread: List[Dict[str, Any]] = []
        if tool is None:
            self._miss("missing", "npu-smi", f"npu-smi is at none of {', '.join(candidates)}")

    def ask(self, parser: Any, *words: str) -> Any:
        """The parsed answer to ``npu-smi info WORDS``, None where there is none."""
        if self.tool is None:
            return None
        self.calls += 1
        text, error = tool_text(self.node, self.tool, "info", *words)
        kind = "timeout" if error and "no answer within" in error else "refused"
        if text is not None:
            try:
                return parser(text)
            except ToolError as failure:
                error = str(failure)
            except AscentError as failure:
                kind, error = "unclear", str(failure)
        self._miss(kind, " ".join(["npu-smi", "info", *words]), error or "")
        return None

    def optional(self, parser: Any, *words: str) -> Any:
        """As `ask`, for what not every product has: an answer that is none is no miss."""
        missed = len(self.unread)
        value = self.ask(parser, *words)
        del self.unread[missed:]
        return value

    def _miss(self, kind: str, call: str, text: str) -> None:
        self.unread.append({"device": None, "what": call, "option": None, "kind": kind, "text": text})


def _identities(smi: _Smi, wanted: Sequence[int]) -> Dict[str, Dict[str, Any]]:
    """What ``npu-smi`` knows of the wanted devices, by device number."""
    info = smi.ask(npu_smi.parse_info)
    found: Dict[str, Dict[str, Any]] = {}
    if info is None:
        return found
    mapping = {(row["npu_id"], row["chip_id"]): row for row in smi.optional(npu_smi.parse_mapping, "-m") or ()}
    boards: Dict[int, Any] = {}
    for position, device in enumerate(info["devices"]):
        npu, chip = device["npu_id"], device["chip_id"]
        row = mapping.get((npu, chip)) or {}
        number = next(
            one for one in (device["phy_id"], row.get("phy_id"), row.get("logic_id"), position) if one is not None
        )
        if number not in wanted:
            continue
        if npu not in boards:
            boards[npu] = smi.ask(npu_smi.parse_board, "-t", "board", "-i", str(npu)) or {}
        place = ("-i", str(npu), "-c", str(chip))
        detail = {} if device["health"] == "OK" else smi.ask(npu_smi.parse_health, "-t", "health", *place) or {}
        a3 = device["phy_id"] is not None and device["hbm_total_mb"] is not None
        found[str(number)] = {
            **{key: device[key] for key in _IDENTITY},
            "logic_id": row.get("logic_id"),
            "error_codes": detail.get("error_codes", []),
            "processes": [
                {key: process[key] for key in ("pid", "name", "memory_mb")}
                for process in info["processes"]
                if (process["npu_id"], process["chip_id"]) == (npu, chip)
            ],
            "driver_version": boards[npu].get("software_version") or info["driver_version"],
            "firmware_version": boards[npu].get("firmware_version"),
            "compatibility": boards[npu].get("compatibility"),
            "super_pod": smi.optional(npu_smi.parse_super_pod, "-t", "spod-info", *place) if a3 else None,
        }
    missing = [number for number in wanted if str(number) not in found]
    if missing and not info["complete"]:
        smi.unread.append(
            {
                "device": None,
                "what": "npu-smi info",
                "option": None,
                "kind": "unclear",
                "text": f"the table breaks off: {len(info['devices'])} devices, and no end of the process part",
            }
        )
    return found


_IDENTITY = ("npu_id", "chip_id", "bus_id", "name", "health", "temperature_c", "hbm_used_mb", "hbm_total_mb")


# -- the configuration file, as host and containers see it -------------------------------------------------------------


def _conf(text: Optional[str]) -> Dict[str, Any]:
    devices, error = parsed(hccn_conf.parse, text)
    return {"present": text is not None, "devices": devices, "error": error}


def _containers(node: Node, program: str, cluster: str, image: Optional[str], present: bool) -> List[Dict[str, Any]]:
    """The file in every running container of the cluster that mounts it; without any, in a short one of the image.

    A container keeps seeing the file that it was started with when the host's is replaced by another.
    """
    # A label's value may hold anything but a comma; the format has one container on a line.
    code, out, _err = node.run(program, "ps", "-q", "--filter", f"label=ascent.cluster={cluster}")
    ids = out.split() if code == 0 else []
    seen = []
    mounted = []
    if ids:
        code, out, _err = node.run(program, "inspect", *ids)
        try:
            mounted = [
                (str(one["Name"]).lstrip("/"), str(one["Id"]))
                for one in json.loads(out)
                if any(mount.get("Destination") == CONF for mount in one.get("Mounts") or ())
            ]
        except (AttributeError, KeyError, TypeError, ValueError):
            mounted = []
    for name, identity in sorted(mounted):
        code, out, err = node.run(program, "exec", identity, "cat", CONF)
        seen.append({"name": name, "how": "exec", **_seen(code, out, err)})
    if seen or ids or not image or not present:
        return seen
    code, _out, _err = node.run(program, "image", "inspect", "--format", "{{.Id}}", image)
    if code:
        return []
    # --mount refuses a file that is not there, where --volume would make a directory of that name on the host.
    mount = f"type=bind,source={CONF},target={CONF},readonly"
    arguments = ("run", "--rm", "--network", "none", "--mount", mount, "--entrypoint", "cat", image, CONF)
    code, out, err = node.run(program, *arguments)
    return [{"name": image, "how": "run", **_seen(code, out, err)}]


def _seen(code: int, out: str, err: str) -> Dict[str, Any]:
    if code:
        return {"present": False, "devices": None, "error": err.strip()[-300:] or f"cat {CONF} ended with {code}"}
    return _conf(out)


# -- all of it ---------------------------------------------------------------------------------------------------------


def read(
    node: Node,
    devices: Sequence[int],
    depth: str = "standard",
    *,
    cluster: str = "",
    image: Optional[str] = None,
    npu_smi_paths: Sequence[str] = SMI_PATHS,
    hccn_tool_paths: Sequence[str] = HCCN_PATHS,
    container_program: str = DEFAULT_ENGINE,
) -> Dict[str, Any]:
    """The ``ascent_npus`` fact of a node for these device numbers; ``depth`` is one of `DEPTHS`.

    ``image`` is what the configuration file is looked at from while no container of the cluster runs; None: not at all.
    """
    started = time.time()
    smi = _Smi(node, find_tool(node, npu_smi_paths), npu_smi_paths)
    hccn = _Hccn(node, find_tool(node, hccn_tool_paths), hccn_tool_paths)
    identities = _identities(smi, devices)
    blank: Dict[str, Any] = dict.fromkeys(
        (*_IDENTITY, "logic_id", "driver_version", "firmware_version", "compatibility", "super_pod")
    )
    found = {}
    for device in devices:
        entry = {**blank, "error_codes": [], "processes": [], **identities.get(str(device), {})}
        for option in DEPTHS["deep"]:
            entry[option] = None
        for option in DEPTHS[depth]:
            entry[option] = _option(hccn, device, option, entry)
        found[str(device)] = entry
    host = _conf(node.text(CONF))
    return {
        "npu_smi": smi.tool,
        "hccn_tool": hccn.tool,
        "depth": depth,
        "devices": found,
        "topology": smi.optional(npu_smi.parse_topology, "-t", "topo"),
        "conf": host,
        "containers": _containers(node, container_program, cluster, image, host["present"]) if cluster else [],
        "holders": hccn.holders,
        "unsupported": hccn.unsupported,
        "unread": smi.unread + hccn.unread,
        "calls": smi.calls + hccn.calls,
        "seconds": round(time.time() - started, 3),
        "at": started,
    }


def _option(hccn: _Hccn, device: int, option: str, entry: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """One option of one device. The gateway is pinged where there is one and the link is up."""
    if option != "gateway_ping":
        return hccn.ask(device, option)
    gateway = (entry.get("gateway") or {}).get("gateway")
    own = (entry.get("ip") or {}).get("address")
    if not gateway or not own or (entry.get("link") or {}).get("link") != "UP":
        return None
    return hccn.ask(device, "ping", "address", str(gateway), "pkt", "2", name=option)


def read_counters(node: Node, devices: Sequence[int], *, hccn_tool_paths: Sequence[str] = HCCN_PATHS) -> Dict[str, Any]:
    """The ``ascent_npu_counters`` fact, ``{"at", "devices": {"0": {name: count}}}``, without devices that gave none."""
    hccn = _Hccn(node, find_tool(node, hccn_tool_paths), hccn_tool_paths)
    started = time.time()
    answers = {str(device): hccn.ask(device, "stat") for device in devices}
    return {"at": started, "devices": {device: answer["counters"] for device, answer in answers.items() if answer}}
