"""Judges what `ascent.npu` read of all nodes' devices, with the pings as evidence where a tool's word is not enough."""

from __future__ import annotations

__all__ = ["judge"]

import collections
import datetime
import re
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .. import versions
from ..bench import percentile
from ..errors import AscentError
from . import addresses, hosts, switches
from .common import Device, Findings, fabric_devices, found, majority, names

#: Beside its address, what has to be known of a device's port; of other options a missing answer is a warning.
_ESSENTIAL = ("link",)
#: What each state of the network check means, and what to do. Success is the good one.
_HEALTH = {
    "Socket fail": (
        "the check could not open its socket on the device",
        "Reset the device: hccn_tool -i DEVICE -reset.",
    ),
    "Receive timeout": ("the detect address does not answer", "Check the address, the VLAN and the switch port."),
    "Unreachable": ("no way to the detect address", "Check gateway and netmask: -gateway -g, -ip -g."),
    "Time exceeded": ("packets to the detect address go in circles", "Check the switches' routes."),
    "Fault": ("the port is at fault", "Check -link -g and -optical -g; reseat or replace module and cable."),
    "Init": ("no detect address is set", "hccn_tool -i DEVICE -netdetect -s address GATEWAY."),
    "Thread error": ("the check's thread died on the device", "Reset the device: hccn_tool -i DEVICE -reset."),
    "Detect ip set": ("the detect address was just set", "Verify again in a minute."),
    "Unknown": ("the device does not know its state", "Verify again; then reset the device."),
}
_HARMLESS = ("Init", "Detect ip set", "Unknown")
#: Counters that only grow when something goes wrong. Pauses (PFC) are part of normal traffic under load.
_ERROR_COUNTER = re.compile(
    r"bad|err|fcs|crc|rty|retry|retrans|timeout|drop|discard|unexpected|out_of_order|undersize|oversize", re.I
)
_NOT_AN_ERROR = re.compile(r"pause|pfc", re.I)
#: A lane with less than this part of the cluster's usual power is about to fail, where the module tells no limits.
_WEAK_LIGHT = 0.25
_FLAPS = 4
_SHOWN = 6

_Plan = Mapping[str, Any]
_Npus = Mapping[str, Optional[Mapping[str, Any]]]
_Counters = Mapping[str, Optional[Mapping[str, Any]]]


class _View:
    """The devices of the plan that were looked at, and what was read of them."""

    def __init__(self, plan: _Plan, npus: _Npus, pairs: Sequence[Mapping[str, Any]]) -> None:
        self.plan = plan
        self.npus = npus
        self.devices = [device for device in fabric_devices(plan) if npus.get(device[0])]
        self.hosts = sorted({host for host, _number in self.devices})
        self.matters = "error" if addresses.roce_matters(plan, npus) else "warning"
        good: Set[Device] = set()
        bad: Set[Device] = set()
        for pair in pairs:
            ends = {(pair["from"][0], pair["from"][1]), (pair["to"][0], pair["to"][1])}
            (good if pair["received"] == pair["sent"] > 0 else bad).update(ends)
        self.working, self.failing = good, bad

    def facts(self, host: str) -> Mapping[str, Any]:
        """All that was read of a host."""
        return self.npus.get(host) or {}

    def entry(self, device: Device) -> Mapping[str, Any]:
        """What was read of a device."""
        found: Mapping[str, Any] = (self.facts(device[0]).get("devices") or {}).get(str(device[1])) or {}
        return found

    def value(self, device: Device, option: str, key: str) -> Any:
        """One figure of one option, None where it was not read."""
        return (self.entry(device).get(option) or {}).get(key)

    def plane(self, host: str) -> str:
        """The option that gives the addresses by which devices of this host are reached."""
        return str(self.plan["hosts"][host]["fabric"]["address"])


def judge(
    plan: _Plan,
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    npus: _Npus,
    *,
    counters: Optional[_Counters] = None,
    pairs: Sequence[Mapping[str, Any]] = (),
) -> Dict[str, Any]:
    """``{"findings", "metrics", "explained", "mute"}``.

    ``nodes`` and ``npus`` map a host to its ``ascent_node`` and ``ascent_npus`` or None, ``counters`` to the second
    reading; ``pairs`` are those of all ``ascent_mesh``. ``explained`` are devices whose failed pings are a consequence
    of a finding here, ``mute`` hosts whose tool does not work, so that their own pings say nothing.
    """
    view = _View(plan, npus, pairs)
    findings: Findings = [
        found(
            "fabric-not-read",
            "error",
            f"nothing is known of the devices of {host}",
            host=host,
            evidence="no result of npu_info",
            cause="The host could not be reached, or was outside the limit of this run.",
            fix="Read the host's own error above; run without a limit for a verdict on the whole.",
        )
        for host in sorted({host for host, _number in fabric_devices(plan)} - set(view.hosts))
    ]
    unread, mute, lost = _unread(view)
    findings += unread
    told, explained, unfit = addresses.judge(plan, npus)
    findings += told
    down, dead = _links(view)
    findings += down
    findings += _health(view, unfit)
    for part in (_tls, _mtu, _speed, _fec, _optical, _flapping, _firmware, _pods, _topology):
        findings += part(view)
    findings += switches.judge({device: view.entry(device).get("lldp") for device in view.devices})
    findings += _growing(view, counters or {})
    findings += hosts.judge(plan, nodes)
    calls = {host: view.facts(host).get("calls") for host in view.hosts}
    seconds = [float(view.facts(host).get("seconds") or 0) for host in view.hosts]
    return {
        "findings": findings,
        "metrics": {"npu_calls": calls, "npu_seconds": max(seconds, default=0.0)},
        "explained": sorted(explained | dead | lost),
        "mute": mute,
    }


# -- what could not be read --------------------------------------------------------------------------------------------


def _unread(view: _View) -> Tuple[Findings, List[str], Set[Device]]:
    """Findings on tools that gave no answer, hosts where none did, and devices that are gone."""
    findings: Findings = []
    mute: List[str] = []
    gone: Set[Device] = set()
    for host in view.hosts:
        facts = view.facts(host)
        wrong_plane = view.plane(host) in facts.get("unsupported", ())
        if wrong_plane:
            findings.append(_wrong_plane(host, view.plane(host)))
        entries = list(facts.get("unread") or ())
        lost = _lost(view, host, entries)
        if lost:
            gone |= set(lost)
            findings.append(_card_lost(host, lost))
            numbers = {number for _host, number in lost}
            entries = [one for one in entries if one["device"] not in numbers]
        groups: Dict[Tuple[str, str, str], List[Mapping[str, Any]]] = collections.defaultdict(list)
        for one in entries:
            tool = "npu-smi" if one["what"].startswith("npu-smi") else "hccn_tool"
            if one["kind"] != "not-asked":
                groups[tool, one["kind"], _plain(one["text"])].append(one)
        for (tool, kind, _text), group in sorted(groups.items()):
            findings.append(_no_answer(view, host, tool, kind, group))
            if tool == "hccn_tool" and (kind == "missing" or any(one["kind"] == "not-asked" for one in entries)):
                mute.append(host)
    return findings, sorted(set(mute)), gone


def _plain(text: str) -> str:
    """A text without what differs from call to call, so that equal failures are told once."""
    return re.sub(r"line [0-9]+|-i [0-9]+|'[^']*'", "…", text)


def _wrong_plane(host: str, plane: str) -> Dict[str, Any]:
    wanted, other = ("A3", "A2") if plane == "vnic" else ("A2", "A3")
    return found(
        "E15",
        "error",
        f"{host} is planned as an {wanted}, but its devices have no {plane} addresses",
        host=host,
        evidence=f"hccn_tool -{plane} -g: not supported on this product",
        cause="The inventory or the recipe names the hardware of another generation.",
        fix=f"Set hardware of {host} to its own profile; servers with -{'ip' if plane == 'vnic' else 'vnic'} alone "
        f"are {other}.",
    )


def _lost(view: _View, host: str, entries: Sequence[Mapping[str, Any]]) -> List[Device]:
    """Devices that npu-smi does not list although it lists others."""
    if any(one["what"] == "npu-smi info" for one in entries):
        return []
    own = [device for device in view.devices if device[0] == host]
    listed = [device for device in own if view.entry(device).get("npu_id") is not None]
    return [device for device in own if device not in listed] if listed else []


def _card_lost(host: str, lost: Sequence[Device]) -> Dict[str, Any]:
    return found(
        "A10",
        "error",
        f"devices that the driver no longer shows: {names(lost)}",
        host=host,
        evidence="planned, and not in the table of npu-smi info",
        cause="The chip dropped off the bus.",
        fix="Compare lspci -d 19e5: with npu-smi info; power-cycle the server, then replace the card.",
    )


def _no_answer(view: _View, host: str, tool: str, kind: str, group: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """One finding for all calls of a tool that failed in the same way."""
    devices = [(host, int(one["device"])) for one in group if one["device"] is not None]
    options = sorted({str(one["option"]) for one in group if one["option"]})
    where = f": {names(devices)}" if devices else f" on {host}"
    first = group[0]
    more = f"; {len(group)} calls in all" if len(group) > 1 else ""
    evidence = f"{first['what']}: {first['text']}{more}"
    grave = tool == "hccn_tool" and (not options or bool({*_ESSENTIAL, view.plane(host)} & set(options)))
    if tool == "npu-smi":
        grave = first["what"] == "npu-smi info"
    severity = "error" if grave or kind in ("missing", "busy", "timeout") else "warning"
    call = f"{tool} -i DEVICE -{options[0].replace('gateway_ping', 'ping')} -g" if options else first["what"]
    driver = _driver_answer(host, first["text"]) if tool == "npu-smi" else None
    if driver:
        return driver
    if kind == "missing":
        return found(
            "D31",
            "error",
            f"{tool} is missing on {host}",
            host=host,
            evidence=evidence,
            cause="The driver is not installed, only in part, or somewhere else.",
            fix="Install the driver (--tags provision), or name the tool's path.",
        )
    if kind == "busy":
        holders = view.facts(host).get("holders") or []
        told = [f"process {one['pid']} ({one['command']})" for one in holders]
        return found(
            "C25",
            "error",
            f"hccn_tool on {host} is locked by {' and '.join(told) if told else 'a process that could not be found'}",
            host=host,
            evidence=evidence + "".join(f"; {one['file']} is locked by {one['pid']}" for one in holders if one["file"]),
            cause="Another call of the tool, such as a monitoring agent's, holds its lock and does not end.",
            fix=f"See what it is and end it: ps -fp {holders[0]['pid']}; then verify again."
            if holders
            else "Look for it with pgrep -a hccn_tool and fuser -v /etc/hccn.conf, in containers too; verify again.",
        )
    if kind == "timeout":
        return found(
            "npu-tool-hangs",
            "error",
            f"{tool} does not answer{where}",
            devices=devices,
            host=host,
            evidence=evidence,
            cause="The driver or a device hangs, or another call of the tool does.",
            fix="dmesg | tail, then ps aux | grep hccn_tool; reset the device or reboot the node.",
        )
    if kind == "refused":
        silent = "(exit 0)" in first["text"]
        return found(
            "G04" if silent else "npu-tool-refused",
            severity,
            f"{tool} {'fails without an exit code' if silent else 'refuses'}{where} "
            f"({', '.join(options) or first['what']})",
            devices=devices,
            host=host,
            evidence=evidence,
            cause="The tool says in words that it failed"
            + (
                " and ends as if it had not: scripts that look at the exit code alone take this for good."
                if silent
                else "."
            ),
            fix=f"Run it by hand: {call}; the words name the cause.",
        )
    return found(
        "npu-answer-unclear",
        severity,
        f"{tool} answers in a shape that is not known{where} ({', '.join(options) or first['what']})",
        devices=devices,
        host=host,
        evidence=evidence,
        cause="A release of the tool that prints otherwise, or an output that was cut off. Nothing was concluded "
        "from it.",
        fix=f"Run {call} and send its output with a report, so that this shape becomes known.",
    )


def _driver_answer(host: str, text: str) -> Optional[Dict[str, Any]]:
    """The finding for what the driver's library says when it does not start, None for other words."""
    if "-8005" in text:
        return found(
            "A01",
            "error",
            f"npu-smi can't reach the driver on {host}",
            host=host,
            evidence=f"npu-smi info: {text}",
            cause="The driver is not loaded, or waits for a reboot after an upgrade.",
            fix="lsmod | grep -e drv -e davinci; dmesg | tail; reboot, or install the driver (--tags provision).",
        )
    if "-8020" in text:
        return found(
            "A03",
            "error",
            f"the devices of {host} are held by another container or process",
            host=host,
            evidence=f"npu-smi info: {text}",
            cause="Somebody has the devices for himself.",
            fix="fuser -v /dev/davinci* and docker ps tell who; stop it.",
        )
    return None


# -- link, TLS, health -------------------------------------------------------------------------------------------------


def _links(view: _View) -> Tuple[Findings, Set[Device]]:
    """Links that are down. On A3 the tool's DOWN may be false: HCCS pings, and the other ports of the host, decide."""
    findings: Findings = []
    dead: Set[Device] = set()
    false: List[Device] = []
    for host in view.hosts:
        own = [device for device in view.devices if device[0] == host and view.value(device, "link", "link")]
        down = [device for device in own if view.value(device, "link", "link") == "DOWN"]
        hccs = view.plane(host) == "vnic"
        nics = [device for device in view.devices if device[0] == host and view.value(device, "vnic", "link") == "DOWN"]
        if hccs and nics:
            dead |= set(nics)
            findings.append(
                _down(nics, "error", "the HCCS (vnic) link", "hccn_tool -vnic -g: vnic link status: DOWN", view)
            )
        if not down:
            continue
        if hccs and len(down) == len(own) and not any(device in view.failing for device in down):
            false += down
            continue
        if not hccs:
            dead |= set(down)
        findings.append(
            _down(
                down,
                "error" if not hccs else view.matters,
                "the RoCE link",
                "hccn_tool -link -g: link status: DOWN",
                view,
            )
        )
    if false:
        answered = [device for device in false if device in view.working]
        findings.append(
            found(
                "G05",
                "warning",
                f"all RoCE links of a host are reported down although nothing else is wrong: {names(false)}",
                devices=false,
                evidence="link status: DOWN for every device of the host; "
                + (
                    f"hccs_ping passes for {len(answered)} of {len(false)} devices"
                    if answered
                    else "no ping says otherwise"
                ),
                cause="On A3 the tool reports ports that are not used over RoCE as down.",
                fix="Nothing, unless traffic between super pods, or KV transfer over RoCE, is wanted: then check "
                "the ports.",
            )
        )
    return findings, dead


def _down(devices: Sequence[Device], severity: str, what: str, evidence: str, view: _View) -> Dict[str, Any]:
    ports = [
        f"device {number} at switch port {port}"
        for host, number in devices
        for port in (view.value((host, number), "lldp", "interfaces") or ())[:1]
    ]
    dark = [device for device in devices if view.value(device, "optical", "present") is False]
    light = [
        f"device {number}: {name} {item['text']}"
        for host, number in devices
        for name, item in (view.value((host, number), "optical", "items") or {}).items()
        if name.lower().startswith("rx") and (_is_power(name) or _light(name, item, {}, {}))
    ]
    return found(
        "C10",
        severity,
        f"{what} is down: {names(devices)}",
        devices=devices,
        evidence=evidence
        + (f"; no optical module: {names(dark)}" if dark else "")
        + "".join(f"; {one}" for one in (*ports[:_SHOWN], *light[:_SHOWN])),
        cause="Optical module, cable or switch port; or somebody took it down with hccn_tool -link -s down.",
        fix="hccn_tool -i DEVICE -optical -g and -link_stat -g; reseat or replace; then hccn_tool -i DEVICE -link "
        "-s up.",
    )


def _tls(view: _View) -> Findings:
    switched: Dict[bool, List[Device]] = collections.defaultdict(list)
    for device in view.devices:
        enabled = view.value(device, "tls", "enabled")
        if enabled is not None:
            switched[bool(enabled)].append(device)
    if len(switched) < 2:
        return []
    # Off is how cards are delivered, so where both are equally many, those that are on were changed.
    rare = min(switched, key=lambda enabled: (len(switched[enabled]), not enabled))
    return [
        found(
            "C06",
            "error",
            f"TLS of the device network is {'on' if rare else 'off'}, unlike elsewhere: {names(switched[rare])}",
            devices=switched[rare],
            evidence=f"hccn_tool -tls -g: on for {len(switched[True])} devices, off for {len(switched[False])}",
            cause="A card was replaced, or a node was set up on its own. Collectives between them time out "
            "(EI0006, EI0016).",
            fix=f"Set the same everywhere: hccn_tool -i DEVICE -tls -s enable {int(not rare)}"
            + (" (or certificates on all)." if rare else " after giving it the certificates of the others."),
        )
    ]


def _health(view: _View, unfit: Collection[Device]) -> Findings:
    """The port's own network check, and the gateway's answer to a ping, of devices whose addresses are in order."""
    findings: Findings = []
    states: Dict[Tuple[str, str], List[Device]] = collections.defaultdict(list)
    silent: List[Device] = []
    answering = set()
    for device in view.devices:
        # A link that is down explains both, as does an address that is another's or in the wrong network.
        if device in unfit or view.value(device, "link", "link") == "DOWN":
            continue
        ping = view.entry(device).get("gateway_ping")
        if ping is not None:
            gateway = view.value(device, "gateway", "gateway")
            if ping["ok"] or ping["received"]:
                answering.add(gateway)
            else:
                silent.append(device)
                continue
        state = view.value(device, "net_health", "status")
        if state is not None and state != "Success":
            states[device[0], state].append(device)
    for host in sorted({host for host, _number in silent}):
        own = [device for device in silent if device[0] == host]
        gateways = sorted({str(view.value(device, "gateway", "gateway")) for device in own})
        answers = [gateway for gateway in gateways if gateway in answering]
        findings.append(
            found(
                "gateway-unreachable",
                view.matters if answers else "warning",
                f"the gateway does not answer: {names(own)}",
                host=host,
                evidence=f"hccn_tool -ping -g address {', '.join(gateways)}: no packet back"
                + ("; it answers other devices" if answers else "; it answers no device")
                + "".join(
                    f"; net health status: {state}"
                    for state in sorted(
                        {str(view.value(device, "net_health", "status")) for device in own} - {"None", "Success"}
                    )
                ),
                cause="The switch port is in another VLAN, the gateway's address is wrong, or the gateway answers "
                "no pings.",
                fix="Compare hccn_tool -i DEVICE -gateway -g and -lldp -g with a device that reaches it; check the "
                "port's VLAN.",
            )
        )
    for (host, state), devices in sorted(states.items()):
        meaning, fix = _HEALTH.get(state, _HEALTH["Unknown"])
        failing = [device for device in devices if device in view.failing]
        on_hccs = view.plane(host) == "vnic"
        grave = state not in _HARMLESS
        if on_hccs and not grave and not failing:
            continue
        findings.append(
            found(
                "C09",
                view.matters if grave and (failing or not on_hccs) else "warning",
                f"network health is {state}: {names(devices)}",
                host=host,
                evidence=f"hccn_tool -net_health -g: net health status: {state}; {meaning}"
                + (f"; pings fail for {names(failing)}" if failing else ""),
                cause="The port's own check of its detect address fails: switch port, VLAN, gateway, or no detect "
                "address.",
                fix=fix,
            )
        )
    return findings


# -- settings that have to be equal ------------------------------------------------------------------------------------


def _odd(view: _View, option: str, key: str) -> Tuple[Any, Dict[Any, List[Device]]]:
    """The value that most devices have, and the devices by other values; None and all of them without such a value."""
    values: Dict[Any, List[Device]] = collections.defaultdict(list)
    for device in view.devices:
        value = view.value(device, option, key)
        if value is not None:
            values[value].append(device)
    usual = majority(value for value, devices in values.items() for _device in devices)
    return usual, {value: devices for value, devices in values.items() if value != usual} if len(values) > 1 else {}


def _unequal(
    view: _View, option: str, key: str, id: str, severity: str, what: str, unit: str, cause: str, fix: str
) -> Findings:
    usual, odd = _odd(view, option, key)
    if not odd:
        return []
    devices = [device for some in odd.values() for device in some]
    values = ", ".join(
        f"{value}{unit} ({names(some)})" for value, some in sorted(odd.items(), key=lambda one: str(one[0]))
    )
    return [
        found(
            id,
            severity,
            f"{what} differs: {names(devices)}",
            devices=devices,
            evidence=f"{values}; the others {usual}{unit}" if usual is not None else values,
            cause=cause,
            fix=fix,
        )
    ]


def _mtu(view: _View) -> Findings:
    return _unequal(
        view, "mtu", "mtu", "C15", view.matters, "the MTU of the device network", "",
        "Set on a part of the devices. Small pings pass and large messages are lost.",
        "hccn_tool -i DEVICE -mtu -s size SIZE, the same everywhere and not above the switch's.",
    )  # fmt: skip


def _fec(view: _View) -> Findings:
    return _unequal(
        view, "fec", "mode", "fec-differs", "warning", "the FEC mode", "",
        "Ports of one kind with different error correction: some run without it, or with what the switch does not "
        "expect.",
        "hccn_tool -i DEVICE -fec -s encoding MODE, as the switch port has it.",
    )  # fmt: skip


def _speed(view: _View) -> Findings:
    usual, odd = _odd(view, "speed", "mbps")
    slow = {value: devices for value, devices in odd.items() if usual is None or value < usual}
    devices = [device for some in slow.values() for device in some]
    if not devices:
        return []
    return [
        found(
            "G02",
            "warning",
            f"ports run slower than the others: {names(devices)}",
            devices=devices,
            evidence="; ".join(f"{value / 1000:g} Gb/s: {names(some)}" for value, some in sorted(slow.items()))
            + (f"; the others {usual / 1000:g} Gb/s" if usual else ""),
            cause="The port came up at a lower rate: module, cable or the switch port's setting.",
            fix="hccn_tool -i DEVICE -speed -g and -optical -g; reseat or replace, and compare the switch port.",
        )
    ]


def _firmware(view: _View) -> Findings:
    """Versions that are live: of one node with itself, and of the nodes among each other."""
    findings: Findings = []
    unfit = [device for device in view.devices if view.entry(device).get("compatibility") == "NOK"]
    for host in sorted({host for host, _number in unfit}):
        own = [device for device in unfit if device[0] == host]
        entry = view.entry(own[0])
        findings.append(
            found(
                "A07",
                "error",
                f"firmware and driver do not fit: {names(own)}",
                host=host,
                evidence=f"npu-smi info -t board: Compatibility NOK, firmware {entry['firmware_version']}, "
                f"driver {entry['driver_version']}",
                cause="Only one of the two was upgraded.",
                fix="Install firmware and driver of one release, in the vendor's order, and reboot.",
            )
        )
    known = {host for host, _number in unfit}
    for key, what in (("firmware_version", "firmware"), ("driver_version", "driver")):
        values: Dict[str, List[Device]] = collections.defaultdict(list)
        for device in view.devices:
            value = view.entry(device).get(key)
            # What does not fit on its own node is no measure for the others.
            if value and device[0] not in known:
                values[str(value)].append(device)
        usual = majority(value for value, some in values.items() for _one in some) or _newest(values)
        for value, some in sorted(values.items()):
            if value == usual:
                continue
            findings.append(
                found(
                    "B09",
                    "error",
                    f"{what} {value} is {_age(value, str(usual))} than elsewhere: {names(some)}",
                    devices=some,
                    evidence=f"npu-smi info -t board: {what} {value}; the others {usual}",
                    cause="An upgrade reached a part of the nodes or cards only, or a card was replaced.",
                    fix=f"Bring them to {what} {usual} (--tags provision), and reboot.",
                )
            )
    return findings


def _newest(values: Iterable[str]) -> Optional[str]:
    best: Optional[str] = None
    for value in sorted(values):
        if best is None or _age(value, best) == "newer":
            best = value
    return best


def _age(value: str, usual: str) -> str:
    try:
        return "older" if versions.compare(value, usual) < 0 else "newer"
    except AscentError:
        return "other"


def _pods(view: _View) -> Findings:
    """Identities in a super pod, which have to be unique."""
    owners: Dict[Tuple[int, int], List[Device]] = collections.defaultdict(list)
    for device in view.devices:
        pod = view.entry(device).get("super_pod")
        if pod:
            owners[pod["id"], pod["sdid"]].append(device)
    return [
        found(
            "C22",
            "error",
            f"devices of super pod {pod} have the same identity: {names(some)}",
            devices=some,
            evidence=f"npu-smi info -t spod-info: SDID {sdid}",
            cause="The pod is misconfigured. HCCL refuses it (same superDeviceId).",
            fix="Correct the pod's configuration in the server's management, and reboot.",
        )
        for (pod, sdid), some in sorted(owners.items())
        if len(some) > 1
    ]


def _topology(view: _View) -> Findings:
    """Links inside a node, which have to be the same on nodes of the same hardware."""
    groups: Dict[Any, Dict[str, Mapping[str, str]]] = collections.defaultdict(dict)
    for host in view.hosts:
        links = (view.facts(host).get("topology") or {}).get("links")
        if links:
            groups[view.plan["hosts"][host].get("hardware")][host] = links
    findings: Findings = []
    for group in groups.values():
        joined = sorted({pair for links in group.values() for pair in links})
        common = {pair: majority(links.get(pair) for links in group.values()) for pair in joined}
        for host, links in sorted(group.items()):
            odd = {
                pair: (link, common[pair])
                for pair, link in links.items()
                if common[pair] not in (None, link) and len(group) > 2
            }
            if odd:
                findings.append(
                    found(
                        "npu-topology-differs",
                        "warning",
                        f"devices inside {host} are joined otherwise than on the other nodes: "
                        f"{', '.join(list(odd)[:_SHOWN])}",
                        host=host,
                        evidence="; ".join(
                            f"{pair} {link}, elsewhere {usual}" for pair, (link, usual) in list(odd.items())[:_SHOWN]
                        ),
                        cause="A link between two devices failed, or the server is built otherwise.",
                        fix="npu-smi info -t topo; power-cycle the server, then have the board looked at.",
                    )
                )
    return findings


# -- light, flapping, counters -----------------------------------------------------------------------------------------


def _optical(view: _View) -> Findings:
    """Optical power against the module's own limits, or, where it tells none, against what is usual in this cluster."""
    lanes: Dict[Tuple[str, str], List[float]] = collections.defaultdict(list)
    for device in view.devices:
        for name, item in (view.value(device, "optical", "items") or {}).items():
            if _is_power(name) and item["value"] is not None and item["unit"]:
                lanes[name[:2].lower(), item["unit"]].append(float(item["value"]))
    reasons: Dict[Device, List[str]] = {}
    dark: Set[Device] = set()
    for device in view.devices:
        # What a port shows that is down is told with the link.
        if view.value(device, "link", "link") == "DOWN":
            continue
        items = view.value(device, "optical", "items") or {}
        told = []
        for name, item in items.items():
            verdict = _light(name, item, items, lanes)
            if verdict:
                told.append(f"{name} {item['text']} ({verdict})")
                if verdict == "alarm":
                    dark.add(device)
        if told:
            reasons[device] = told
    findings: Findings = []
    for host in sorted({host for host, _number in reasons}):
        own = [device for device in reasons if device[0] == host]
        findings.append(
            found(
                "optical-power",
                view.matters if dark & set(own) else "warning",
                f"optical module out of its range: {names(own)}",
                host=host,
                evidence="; ".join(f"device {one[1]}: {', '.join(reasons[one])}" for one in own[:_SHOWN]),
                cause="A dirty or ageing module, a bent fibre, or the far end sends too little light. Packets are "
                "lost or will be.",
                fix="Clean and reseat module and fibre; swap the module with a good one to tell which end it is. "
                "Watch with "
                "hccn_tool -i DEVICE -optical -g.",
            )
        )
    return findings


def _is_power(name: str) -> bool:
    return bool(re.match(r"[TR]x ?Power ?[0-9]*\Z", name, re.I))


def _light(
    name: str,
    item: Mapping[str, Any],
    items: Mapping[str, Mapping[str, Any]],
    lanes: Mapping[Tuple[str, str], Sequence[float]],
) -> str:
    """``alarm`` or ``warning`` with its reason, "" where the figure is good or nothing can be said."""
    status = str(item.get("status", "")).lower()
    if status in ("alarm", "warning"):
        return status
    if re.search(r"\blos flag\b", name, re.I):
        flag = str(item.get("text", "")).lower()
        return "alarm" if re.match(r"0x[0-9a-f]+\Z", flag) and int(flag, 16) else ""
    if not _is_power(name) or item["value"] is None or status:
        return ""
    kind, value = name[:2], float(item["value"])
    limits = {
        word: other["value"]
        for word in ("High", "Low")
        for key, other in items.items()
        if re.match(rf"{kind} ?Power {word} Thres", key, re.I)
        and other["value"] is not None
        and other["unit"] == item["unit"]
    }
    if limits:
        return "alarm" if not limits.get("Low", value) <= value <= limits.get("High", value) else ""
    usual = percentile(list(lanes.get((kind.lower(), str(item["unit"])), ())), 50)
    if item["unit"] == "mW" and usual and value < _WEAK_LIGHT * usual:
        return f"warning: usual here is {usual:g} mW"
    return ""


def _flapping(view: _View) -> Findings:
    """Links that went down and up again within the last day of their records."""
    flapping: Dict[Device, int] = {}
    for device in view.devices:
        moments = [_moment(text) for text, _state in view.value(device, "link_stat", "records") or ()]
        # The tool's own clock and time zone, as those of the records.
        now = _moment(view.value(device, "link_stat", "now") or "")
        day = datetime.timedelta(days=1)
        recent = [moment for moment in moments if now and moment and datetime.timedelta(0) <= now - moment < day]
        if len(recent) >= _FLAPS:
            flapping[device] = len(recent)
    if not flapping:
        return []
    return [
        found(
            "link-flapping",
            "warning",
            f"links go down and up again: {names(flapping)}",
            devices=list(flapping),
            evidence="; ".join(
                f"{names([one])}: {count} changes in a day" for one, count in list(flapping.items())[:_SHOWN]
            ),
            cause="A loose or dirty module or cable, or a switch port that restarts.",
            fix="hccn_tool -i DEVICE -link_stat -g and -optical -g; reseat or replace.",
        )
    ]


def _moment(text: str) -> Optional[datetime.datetime]:
    """The time of a link record, in the node's own time zone; None for what is no time."""
    try:
        return datetime.datetime.strptime(text, "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return None


def _growing(view: _View, again: _Counters) -> Findings:
    """Error counters that grew between the two readings, that is under the traffic of this very run."""
    findings: Findings = []
    for host in view.hosts:
        second = (again.get(host) or {}).get("devices") or {}
        grown: Dict[Device, List[str]] = {}
        for device in (one for one in view.devices if one[0] == host):
            before = view.value(device, "stat", "counters") or {}
            after = second.get(str(device[1])) or {}
            steps = [
                f"{name} +{after[name] - before[name]}"
                for name in sorted(set(before) & set(after))
                if _ERROR_COUNTER.search(name)
                and not _NOT_AN_ERROR.search(name)
                and before[name] is not None
                and after[name] is not None
                and after[name] > before[name]
            ]
            if steps:
                grown[device] = steps
        if not grown:
            continue
        seconds = float((again.get(host) or {}).get("at") or 0) - float(view.facts(host).get("at") or 0)
        findings.append(
            found(
                "C16",
                "warning",
                f"error counters are growing: {names(grown)}",
                host=host,
                evidence="; ".join(
                    f"device {one[1]}: {', '.join(steps[:4])}" for one, steps in list(grown.items())[:_SHOWN]
                )
                + f"; within {seconds:.0f} s",
                cause="Packets are damaged or lost and sent again: a dirty link, congestion without working flow "
                "control, or "
                "a peer that is at fault.",
                fix="hccn_tool -i DEVICE -stat -g twice; -optical -g; compare PFC and DSCP of the switch with "
                "HCCL_RDMA_TC and "
                "HCCL_RDMA_SL.",
            )
        )
    return findings
