#!/usr/bin/env python3
"""Emulated hccn_tool: answers from the node's state file, and pings for real from the device's own address.

Like the real tool it serves one call at a time per node; a second one finds it busy. It never changes the state.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Callable, NoReturn

sys.path.append("/usr/local/dcmi")

try:
    import node_state
except ImportError:
    sys.stderr.write("Command execute failed!\n")
    sys.exit(1)

State = dict[str, Any]
Device = dict[str, Any]

ECHO_REQUEST, ECHO_REPLY = 8, 0
PING_TIMEOUT_S = 1.0
ROCE_PAYLOAD, HCCS_PAYLOAD = 64, 32


def fail(text: str, code: int, stdout: bool = False) -> NoReturn:
    """Ends with the tool's words for an error, on stderr unless the real tool uses stdout for this one."""
    (sys.stdout if stdout else sys.stderr).write(text + "\n")
    sys.stdout.flush()
    sys.exit(code)


def ip(device: Device) -> list[str]:
    """`-ip -g`."""
    port = device["roce"]
    if not port["address"]:
        fail("Get ipconf failed, because no ip was preset there!", 13)
    return [f"ipaddr:{port['address']}", f"netmask:{port['netmask']}"]


def vnic(device: Device) -> list[str]:
    """`-vnic -g`, on A3."""
    port = device["vnic"]
    if port is None:
        fail("The command is not supported on this product.", 13, stdout=True)
    return [f"vnic link status: {port['link']}", f"vnic ipaddr: {port['address']}", f"vnic netmask: {port['netmask']}"]


def gateway(device: Device) -> list[str]:
    """`-gateway -g`."""
    address = device["roce"]["gateway"]
    if not address:
        fail("Get gateway failed, because no gateway was preset there!", 2)
    return [f"default gateway:{address}, Iface:eth{device['phy_id']}"]


def tls(device: Device) -> list[str]:
    """`-tls -g`."""
    switch = device["roce"]["tls"]
    return [
        f"dev_id:{device['phy_id']}, tls switch[{int(switch['enabled'])}](0:disable, 1:enable), "
        f"tls preconfigured[{int(switch['preconfigured'])}](0:non-preset, 1:preset), "
        f"tls alarm time threshold[{switch['alarm_days']}]days"
    ]


def lldp(device: Device) -> list[str]:
    """`-lldp -g`: nothing at all when no neighbour answers."""
    neighbour = device["roce"]["lldp"]
    if neighbour is None:
        return []
    return ["Port ID TLV", f"\tIfname: {neighbour['interface']}", "System Name TLV", f"\t{neighbour['system']}"]


def statistics(device: Device) -> list[str]:
    """`-stat -g`."""
    return ["packet statistics:"] + [f"{name}:{value}" for name, value in device["roce"]["counters"].items()]


def link_statistics(device: Device) -> list[str]:
    """`-link_stat -g`: link changes, newest first."""
    tag = f"[devid {device['phy_id']}]"
    records = device["roce"]["link_records"]
    ups = sum(1 for _, state in records if state == "UP")
    lines = [
        f"{tag}current time        : {time.ctime()}",
        f"{tag}link up count       : {ups}",
        f"{tag}link down count     : {len(records) - ups}",
        f"{tag}link change records :" + ("" if records else " NA"),
    ]
    return lines + [f"{tag}    {time.ctime(at)}    LINK {state}" for at, state in records]


def speed(device: Device) -> list[str]:
    """`-speed -g`; unknown while the link is down."""
    up = device["roce"]["link"] == "UP"
    return [f"Speed: {device['roce']['speed_mbps']} Mb/s" if up else "Speed: Unknown!"]


GETTERS: dict[str, Callable[[Device], list[str]]] = {
    "-ip": ip,
    "-vnic": vnic,
    "-link": lambda device: [f"link status: {device['roce']['link']}"],
    "-net_health": lambda device: [f"net health status: {device['roce']['net_health']}"],
    "-netdetect": lambda device: [f"netdetect address: {device['roce']['netdetect']}"],
    "-gateway": gateway,
    "-tls": tls,
    "-lldp": lldp,
    "-stat": statistics,
    "-link_stat": link_statistics,
    "-speed": speed,
    "-duplex": lambda _: ["Duplex: Full"],
    "-fec": lambda device: [f"fec mode: {device['roce']['fec']}"],
    "-mtu": lambda device: [f"mtu:{device['roce']['mtu']}"],
    "-mac": lambda device: [f"mac addr: {device['roce']['mac']}"],
}


def checksum(packet: bytes) -> int:
    """The Internet checksum of a packet of even length."""
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo(connection: socket.socket, target: str, identifier: int, sequence: int, size: int) -> float | None:
    """Sends one ICMP echo request and waits for its reply: the round trip in seconds, or None when none came."""
    payload = bytes(size)
    header = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, sequence)
    sum_ = checksum(header + payload)
    packet = struct.pack("!BBHHH", ECHO_REQUEST, 0, sum_, identifier, sequence) + payload
    started = time.monotonic()
    connection.sendto(packet, (target, 0))
    while True:
        left = PING_TIMEOUT_S - (time.monotonic() - started)
        if left <= 0 or not select.select([connection], [], [], left)[0]:
            return None
        datagram, sender = connection.recvfrom(2048)
        icmp = datagram[(datagram[0] & 0x0F) * 4 :]
        if sender[0] != target or len(icmp) < 8:
            continue
        kind, _, _, their_identifier, their_sequence = struct.unpack("!BBHHH", icmp[:8])
        if (kind, their_identifier, their_sequence) == (ECHO_REPLY, identifier, sequence):
            return time.monotonic() - started


def round_trips(source: str, target: str, count: int, size: int, drop_nth: int | None) -> list[float | None]:
    """The round trips of `count` pings from `source`, each in seconds or None. Raises OSError when none can be sent."""
    identifier = os.getpid() & 0xFFFF
    results: list[float | None] = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
        connection.bind((source, 0))
        for sequence in range(count):
            if drop_nth and (sequence + 1) % drop_nth == 0:
                results.append(None)
            else:
                results.append(echo(connection, target, identifier, sequence, size))
    return results


def ping_target(arguments: list[str], state: State) -> tuple[str, int]:
    """The peer's address and the number of packets that the command line asks for."""
    address, count, index = "", 3, 0
    while index < len(arguments):
        word, value = arguments[index], arguments[index + 1] if index + 1 < len(arguments) else ""
        if word == "address":
            address = value
        elif word == "sdid" and value.isdigit():
            address = next((d["vnic"]["address"] for d in state["devices"] if d["sdid"] == int(value)), "")
        elif word == "pkt" and value.isdigit() and 1 <= int(value) <= 1000:
            count = int(value)
        else:
            fail("Get unknown option!", 3)
        index += 2
    try:
        socket.inet_aton(address)
    except OSError:
        fail("Get invalid parameters!", 1)
    return address, count


def ping(device: Device, state: State, arguments: list[str]) -> int:
    """`-ping -g address PEER [pkt N]`: over RoCE, in milliseconds. Any lost packet makes the tool fail."""
    target, count = ping_target(arguments, state)
    port = device["roce"]
    if port["link"] != "UP":
        fail("Execute failed: Link status is down.", 22)
    if not port["address"]:
        fail("Get ipconf failed, because no ip was preset there!", 13)
    print(f"device {device['phy_id']} PING {target}")
    drop = state["faults"]["ping_drop_nth"].get(str(device["phy_id"]))
    try:
        results = round_trips(port["address"], target, count, ROCE_PAYLOAD, drop)
    except OSError:
        print("Destination Host Unreachable")
        results = [None] * count
    for sequence, seconds in enumerate(results):
        late = f"recv time out seq={sequence}"
        print(late if seconds is None else f"recv seq={sequence},time={seconds * 1e3:.6f}ms")
    received = sum(1 for seconds in results if seconds is not None)
    lost = 100 * (count - received) / count
    print(f"{count} packets transmitted, {received} received, {lost:.2f}% packet loss")
    if received != count:
        sys.stdout.flush()
        fail("Command execute failed!", 1)
    return 0


def hccs_ping(device: Device, state: State, arguments: list[str]) -> int:
    """`-hccs_ping -g address PEER [pkt N]`: over the super pod's links, in microseconds. Exits 0 even with all lost."""
    port = device["vnic"]
    if port is None:
        fail("The command is not supported on this product.", 13, stdout=True)
    target, count = ping_target(arguments, state)
    print(f"device {device['phy_id']} PING {target}\n")
    drop = state["faults"]["ping_drop_nth"].get(str(device["phy_id"]))
    sent = port["link"] == "UP" and bool(port["address"])
    results: list[float | None] = [None] * count
    if sent:
        try:
            results = round_trips(port["address"], target, count, HCCS_PAYLOAD, drop)
        except OSError:
            sent = False
    for sequence, seconds in enumerate(results):
        if seconds is not None:
            print("This pkt ping success!")
            print(f"recv seq {sequence}, time = {seconds * 1e6:.3f}us, L1 plane check result = 0x0\n")
        else:
            print(("This pkt check recv msg fail!" if sent else "This pkt send fail!") + f" seq {sequence}\n")
    times = sorted(seconds * 1e6 for seconds in results if seconds is not None)
    lost = 100 * (count - len(times)) / count
    print(f"{count} packets transmitted, {len(times)} received, {lost:.2f}% packets loss")
    if times:
        print(f"max time {times[-1]:.3f}us")
        print(f"min time {times[0]:.3f}us")
        print(f"average time {sum(times) / len(times):.3f}us")
        print(f"TP95 time {times[min(len(times) - 1, int(0.95 * len(times)))]:.3f}us")
    print("Cmd executed successfully!")
    return 0


def main(arguments: list[str]) -> int:
    """Runs one command line and returns the exit code."""
    if len(arguments) < 4 or arguments[0] != "-i":
        fail("The total count of input parameters is wrong!", 2)
    if not arguments[1].isdigit():
        fail("Get invalid device id.", 4)
    major, rest = arguments[2], arguments[3:]
    try:
        state = node_state.read()
        lock = os.open(node_state.state_path().parent / "hccn_tool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (node_state.StateError, OSError):
        fail("Command execute failed!", 1)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail("hccn_tool is busy, please try again.", 11, stdout=True)
    if state["faults"]["hccn_busy"]:
        fail("hccn_tool is busy, please try again.", 11, stdout=True)
    device = next((each for each in state["devices"] if each["phy_id"] == int(arguments[1])), None)
    if device is None:
        fail("The device is not exist!", 4)
    if major not in GETTERS and major not in ("-ping", "-hccs_ping"):
        fail("Get invalid major cmd.", 3)
    if rest[0] != "-g":
        fail("Get unknown option!", 3)
    if major == "-ping":
        return ping(device, state, rest[1:])
    if major == "-hccs_ping":
        return hccs_ping(device, state, rest[1:])
    if len(rest) > 1:
        fail("The total count of input parameters is wrong!", 2)
    for line in GETTERS[major](device):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
