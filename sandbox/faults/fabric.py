"""Family C: HCCL and the devices' network; with it what is wrong silently there (family G)."""

from __future__ import annotations

from typing import Literal

from sandbox.faults import programs
from sandbox.faults.model import (
    HCCN_CONF,
    HCCN_TOOL,
    STATE,
    Change,
    FaultError,
    Injection,
    Look,
    Node,
    fault,
    file_change,
    listener,
    process,
    rule,
)


def hccn(device: int, question: str) -> str:
    """A call of the vendor's tool about one device."""
    return f"{HCCN_TOOL} -i {device} {question}"


def _configured(device: int, **values: str) -> list[Change]:
    """Values of one device in hccn.conf; an empty one is written as such."""
    return [
        file_change(HCCN_CONF, sub=[rf"^{key}_{device}=.*$", f"{key}_{device}={value}"])
        for key, value in values.items()
    ]


@fault("C01", "link-timeout")
def link_timeout(
    node: Node, device: int = 0, plane: Literal["auto", "roce", "vnic"] = "auto", every: int = 1, peer: str = ""
) -> Injection:
    """Packets to a device are lost: all, every N-th, or only pings begun by one peer (peer=NODE)."""
    state = node.device(device)
    if plane == "auto":
        plane = "vnic" if state["vnic"] else "roce"
    if state[plane] is None:
        node.set(device, plane, "link", to="UP")  # says which kind of node has it
    address = str(state[plane]["address"])
    verb = "-hccs_ping" if plane == "vnic" else "-ping"
    match = ["-d", address]
    if peer:
        # Only what the peer begins is lost, so the pair works one way: an asymmetric pair.
        source = node.node(peer)
        their = node.vnic_of(source, device) if plane == "vnic" else node.roce_of(source, device)
        match = ["-s", their, *match, "-p", "icmp", "--icmp-type", "echo-request"]
        look = Look(
            hccn(device, f"{verb} -g address {address} pkt 1"), r" 0 received, 100\.00% packets? loss", on="peer"
        )
    else:
        lost = r"recv time out|recv msg fail"
        if every > 1:
            match += ["-m", "statistic", "--mode", "nth", "--every", str(every), "--packet", str(every - 1)]
        else:
            lost = r" 0 received, 100\.00% packets? loss"
        # The replies to the node's own pings come to the same address. Nobody is asked more often than the loss needs.
        target = _peer_address(node, device, plane)
        look = Look(hccn(device, f"{verb} -g address {target} pkt {every}"), lost)
    return Injection([rule("INPUT", *match, "-j", "DROP")], look)


def _peer_address(node: Node, device: int, plane: str) -> str:
    """An address of the same plane that answers: another device of this node, or the machine below."""
    for other in node.state["devices"]:
        if other["phy_id"] != device and other[plane] and other[plane]["address"] and other[plane]["link"] == "UP":
            return str(other[plane]["address"])
    return node.sandbox.gateway


@fault("C04", "host-port-bound")
def host_port_bound(node: Node, port: int = 60000) -> Injection:
    """A port of HCCL's host side is taken by a leftover process."""
    del node
    return Injection([listener(port, "hccl_leftover")], Look("ss -ltnp", rf"LISTEN.*:{port}\s"))


@fault("C06", "tls-mismatch")
def tls_mismatch(node: Node, device: int = 0) -> Injection:
    """A device has its TLS switch on, unlike the others."""
    change = node.set(device, "roce", "tls", "enabled", to=True)
    return Injection([change], Look(hccn(device, "-tls -g"), r"tls switch\[1\]"))


@fault("C09", "net-unhealthy")
def net_unhealthy(
    node: Node,
    device: int = 0,
    status: Literal["Socket fail", "Receive timeout", "Unreachable", "Time exceeded", "Fault"] = "Receive timeout",
    gateway: Literal["answers", "silent"] = "answers",
) -> Injection:
    """A port's network check fails; with gateway=silent its gateway does not answer it either."""
    change = node.set(device, "roce", "net_health", to=status)
    if gateway == "answers":
        return Injection([change], Look(hccn(device, "-net_health -g"), rf"net health status: {status}"))
    port = node.device(device)["roce"]
    lost = rule("OUTPUT", "-s", port["address"], "-d", port["gateway"], "-p", "icmp", "-j", "DROP")
    look = Look(hccn(device, f"-ping -g address {port['gateway']} pkt 1"), r" 0 received, 100\.00% packet loss")
    return Injection([change, lost], look)


@fault("C10", "link-down")
def link_down(node: Node, device: int = 0) -> Injection:
    """A port is down: its address no longer answers, and the link records say so."""
    records = node.device(device)["roce"]["link_records"]
    changes = [
        node.set(device, "roce", "link", to="DOWN"),
        node.set(device, "roce", "net_health", to="Fault"),
        node.set(device, "roce", "link_records", to=[[1767225600, "DOWN"], *records]),
    ]
    return Injection(changes, Look(hccn(device, "-link -g"), "link status: DOWN"))


@fault("C11", "npu-ip-missing")
def npu_ip_missing(node: Node, device: int = 0, where: Literal["both", "live", "conf"] = "both") -> Injection:
    """A device has no address: none live, none in hccn.conf, or neither."""
    changes = []
    look = Look(hccn(device, "-ip -g"), "no ip was preset")
    if where != "conf":
        changes.append(node.set(device, "roce", "address", to=""))
    else:
        look = Look(f"cat {HCCN_CONF}", rf"(?m)^address_{device}=$")
    if where != "live":
        changes += _configured(device, address="")
    return Injection(changes, look)


@fault("C12", "npu-ip-duplicate")
def npu_ip_duplicate(
    node: Node, device: int = 0, peer: str = "", where: Literal["both", "live", "conf"] = "both"
) -> Injection:
    """A device has the address of the same device of another node (live, in hccn.conf, or both)."""
    address = node.roce_of(node.node(peer), device)
    changes = []
    look = Look(hccn(device, "-ip -g"), rf"ipaddr:{address}\b")
    if where != "conf":
        changes.append(node.set(device, "roce", "address", to=address))
    else:
        look = Look(f"cat {HCCN_CONF}", rf"(?m)^address_{device}={address}$")
    if where != "live":
        changes += _configured(device, address=address)
    return Injection(changes, look)


@fault("C13", "subnet-or-gateway")
def subnet_or_gateway(node: Node, device: int = 0, netmask: str = "255.255.255.252", gateway: str = "") -> Injection:
    """A device has a netmask that leaves its peers outside, and no gateway."""
    changes = [node.set(device, "roce", "netmask", to=netmask), node.set(device, "roce", "gateway", to=gateway)]
    changes += _configured(device, netmask=netmask, gateway=gateway)
    return Injection(changes, Look(hccn(device, "-ip -g"), rf"netmask:{netmask}"))


@fault("C14", "rail-miswired")
def rail_miswired(node: Node, device: int = 0, other: int = 1) -> Injection:
    """The cables of two devices are swapped: each sees the other's switch port."""
    first, second = node.device(device)["roce"]["lldp"], node.device(other)["roce"]["lldp"]
    changes = [node.set(device, "roce", "lldp", to=second), node.set(other, "roce", "lldp", to=first)]
    return Injection(changes, Look(hccn(device, "-lldp -g"), rf"Ifname: {second['interface']}\n"))


@fault("C15", "mtu-mismatch")
def mtu_mismatch(node: Node, mtu: int = 1500) -> Injection:
    """The path between nodes takes small packets only: large pings are too long."""
    peer = node.roce_of(node.peer, 0)
    ping = hccn(0, f"-ping -g address {peer} pkt")
    look = Look(f"{ping} 1; {ping} 4000", r"(?s) 1 received.*Message too long")
    return Injection([node.set_node("faults", "ping_max_bytes", to=mtu)], look)


@fault("C16", "roce-retry")
def roce_retry(node: Node, device: int = 0, counter: str = "roce_new_pkt_rty_num", seconds: int = 1) -> Injection:
    """An error counter of a port goes up, a step every few seconds."""
    counters = node.device(device)["roce"]["counters"]
    first = node.set(device, "roce", "counters", counter, to=counters.get(counter, 0) + 17, moving=True)
    growing = process(f"counter-{device}", programs.COUNT_UP, STATE, device, counter, seconds)
    return Injection([first, growing], Look(hccn(device, "-stat -g"), rf"{counter}:[1-9]"))


@fault("C22", "duplicate-sdid")
def duplicate_sdid(node: Node, device: int = 0, other: int = 1) -> Injection:
    """Two devices of a super pod have the same identity."""
    sdid = node.device(other)["sdid"]
    if sdid is None:
        raise FaultError(f"{node.planned.name} belongs to no super pod; this fault needs an A3")
    look = Look(f"npu-smi info -t spod-info {node.chip(device)}", rf"SDID\s+: {sdid}\n")
    return Injection([node.set(device, "sdid", to=sdid)], look)


@fault("C25", "hccn-busy")
def hccn_busy(node: Node, holder: Literal["unknown", "process"] = "process") -> Injection:
    """The vendor's tool is busy: another call holds its lock and does not end."""
    look = Look(hccn(0, "-ip -g"), "hccn_tool is busy")
    if holder == "unknown":
        return Injection([node.set_node("faults", "hccn_busy", to=True)], look)
    return Injection(
        [process("stuck-hccn-tool", programs.HOLD_LOCK, "hccn_tool", "/usr/local/dcmi/hccn_tool.lock")], look
    )


@fault("C27", "collective-hang")
def collective_hang(node: Node, when: Literal["alone", "across"] = "across") -> Injection:
    """An operator of a collective never ends on this node, by itself or only together with other nodes."""
    look = Look(f"grep -o '\"collective_hang\": [^,]*' {STATE}", f'"{when}"')
    return Injection([node.set_node("faults", "collective_hang", to=when)], look)


@fault("C28", "collective-slow")
def collective_slow(node: Node, delay_us: int = 50000) -> Injection:
    """Every operator of a collective takes longer on this node, and all others wait for it."""
    look = Look(f"grep -o '\"collective_delay_us\": [0-9]*' {STATE}", rf": {delay_us}\b")
    return Injection([node.set_node("faults", "collective_delay_us", to=delay_us)], look)


@fault("G02", "slow-but-up")
def slow_but_up(node: Node, device: int = 0, mbps: int = 100000, peer: str = "", delay_us: int = 2000) -> Injection:
    """A port came up at a lower speed; or pings to the same device of one peer (peer=NODE) take longer."""
    if not peer:
        look = Look(hccn(device, "-speed -g"), rf"Speed: {mbps} Mb/s")
        return Injection([node.set(device, "roce", "speed_mbps", to=mbps)], look)
    other = node.node(peer)
    delays = {address(other, device): delay_us for address in (node.roce_of, node.vnic_of)}
    ping = hccn(device, f"-ping -g address {node.roce_of(other, device)}")
    look = Look(ping, rf"seq=0,time={delay_us // 1000}\.\d+ms")
    return Injection([node.set_node("faults", "ping_delay_us", str(device), to=delays)], look)


@fault("G04", "exit-zero-error")
def exit_zero_error(node: Node, device: int = 0, option: str = "") -> Injection:
    """A tool says that all packets are lost (A3 only), or that a question failed (option=link), with status 0."""
    if option:
        failing = {
            "tool": "hccn_tool",
            "arguments": ["-i", str(device), f"-{option}", "-g"],
            "stdout": "Command execute failed!\n",
            "exit": 0,
        }
        replies = [*node.state["faults"]["replies"], failing]
        look = Look(hccn(device, f"-{option} -g") + " && echo status 0", r"Command execute failed!\nstatus 0")
        return Injection([node.set_node("faults", "replies", to=replies)], look)
    change = node.set(device, "vnic", "link", to="DOWN")
    command = hccn(device, f"-hccs_ping -g address {_peer_address(node, device, 'vnic')} pkt 1") + " && echo status 0"
    return Injection([change], Look(command, r"(?s)100\.00% packets loss.*status 0"))


@fault("G05", "false-link-down")
def false_link_down(node: Node) -> Injection:
    """All RoCE links of an A3 node show DOWN while its devices reach each other (A3 only)."""
    changes = []
    for device in node.state["devices"]:
        node.set(device["phy_id"], "vnic", "link", to="UP")  # says which kind of node has it
        changes.append(node.set(device["phy_id"], "roce", "link", to="DOWN"))
        changes.append(node.set(device["phy_id"], "roce", "net_health", to="Init"))
    ping = hccn(0, f"-hccs_ping -g address {node.device(1)['vnic']['address']} pkt 1")
    return Injection(changes, Look(f"{hccn(0, '-link -g')}; {ping}", r"(?s)link status: DOWN.* 0\.00% packets loss"))
