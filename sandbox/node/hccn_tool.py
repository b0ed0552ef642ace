#!/usr/bin/env python3
"""Emulated hccn_tool: answers from the node's state file, and pings for real from the device's own address.

Like the real tool it serves one call at a time per node; a second one finds it busy. What it sets is in force at once
and, where it is an address, kept in /etc/hccn.conf for the next start.
"""

from __future__ import annotations

import fcntl
import ipaddress
import math
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
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
# `pkt N` is a number of packets up to here, and the bytes of each beyond.
MOST_PACKETS = 1000
DEFAULT_PACKETS = 3
IP_HEADERS = 28


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
    return [
        "Chassis ID TLV",
        f"\tMAC: 02:00:5e:ff:{zlib.crc32(neighbour['system'].encode()) % 256:02x}:01",
        "Port ID TLV",
        f"\tIfname: {neighbour['interface']}",
        "Time to Live TLV",
        "\t120",
        "System Name TLV",
        f"\t{neighbour['system']}",
    ]


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


def optical(device: Device) -> list[str]:
    """`-optical -g`, as the releases before 25 print it."""
    module = present_module(device)
    lines = [
        ("present", "present" if module["present"] else "not present"),
        ("Vendor Name", module["vendor"]),
        ("Vendor SN", module["serial"]),
        ("temperature", f"{module['temperature_c']} C"),
        ("Vcc", f"{module['voltage_mv']:.2f} mV"),
    ]
    for name, lanes in (("Tx", module["tx_power_mw"]), ("Rx", module["rx_power_mw"])):
        lines += [(f"{name} Power{lane}", f"{power:.4f} mW") for lane, power in enumerate(lanes)]
    lines += [("Tx Los Flag", f"{module['tx_los']:#x}"), ("Rx Los Flag", f"{module['rx_los']:#x}")]
    return ["optical info:"] + [f"{key:<20} : {value}" for key, value in lines]


def optical_table(device: Device) -> list[str]:
    """`-optical -g`, as releases from 25 on print it: a row for each value, with its limits."""
    module = present_module(device)
    if not module["present"]:
        fail("Optical module is not present.", 20, stdout=True)
    rows = [
        ("Temperature", f"{module['temperature_c']} C", module["temperature_c"], (75, 70, -5, 0)),
        ("Vcc", f"{module['voltage_mv'] / 1e3:.2f} V", module["voltage_mv"] / 1e3, (3.63, 3.46, 2.97, 3.13)),
    ]
    for name, lanes in (("Tx", module["tx_power_mw"]), ("Rx", module["rx_power_mw"])):
        for lane, power in enumerate(lanes):
            decibels = 10 * math.log10(max(power, 1e-4))
            rows.append((f"{name} Power{lane}", f"{decibels:.2f} dBm", decibels, (4.0, 3.0, -7.0, -6.0)))
    line = "=" * 75
    columns = ("Items", "Value", "HighAlarm", "HighWarn", "LowAlarm", "LowWarn", "Status")
    shown = [columns]
    for name, text, value, (high_alarm, high_warn, low_alarm, low_warn) in rows:
        alarm, warning = not low_alarm <= value <= high_alarm, not low_warn <= value <= high_warn
        status = "alarm" if alarm else "warning" if warning else "normal"
        shown.append((name, text, *(f"{limit}" for limit in (high_alarm, high_warn, low_alarm, low_warn)), status))
    widths = (17, 13, 11, 11, 11, 11, 0)
    return [line, *("".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) for row in shown), line]


def present_module(device: Device) -> dict[str, Any]:
    """What is known of a device's optical module; ends the tool where nothing is."""
    module = device["roce"]["optical"]
    if module is None:
        fail("Optical module is not present.", 20, stdout=True)
    return module


def neighbours(device: Device) -> list[str]:
    """`-arp -g`: whom the kernel knows on the device's network."""
    lines = [f"Address resolution table of device {device['phy_id']}:", "Address          HWaddress          State"]
    shown = subprocess.run(["ip", "-4", "neighbour"], check=False, capture_output=True, text=True).stdout
    for line in shown.splitlines():
        words = line.split()
        if "lladdr" in words:
            lines.append(f"{words[0]:<16} {words[words.index('lladdr') + 1]:<18} {words[-1]}")
    return lines


def routes(device: Device) -> list[str]:
    """`-route -g`."""
    port, name = device["roce"], f"eth{device['phy_id']}"
    lines = ["Routing table:", "Destination      Gateway          Genmask          Iface"]
    if port["gateway"]:
        lines.append(f"{'default':<16} {port['gateway']:<16} {node_state.UNSET:<16} {name}")
    if port["address"]:
        network = ipaddress.IPv4Interface(f"{port['address']}/{port['netmask']}").network
        lines.append(f"{network.network_address!s:<16} {'*':<16} {port['netmask']:<16} {name}")
    return lines


def holders(device: Device) -> list[str]:
    """`-process -g`: the processes that use the device."""
    rows = node_state.processes_of(device, node_state.read(), node_state.leases())
    return ["process info:"] + [f"pid:{row['pid']}, name:{row['name']}" for row in rows]


GETTERS: dict[str, Callable[[Device], list[str]]] = {
    "-ip": ip,
    "-link": lambda device: [f"link status: {device['roce']['link']}"],
    "-net_health": lambda device: [f"net health status: {health(device)}"],
    "-netdetect": lambda device: [f"netdetect address: {device['roce']['netdetect']}"],
    "-gateway": gateway,
    "-tls": tls,
    "-lldp": lldp,
    "-optical": optical,
    "-stat": statistics,
    "-link_stat": link_statistics,
    "-speed": speed,
    "-duplex": lambda device: [f"Duplex: {device['roce']['duplex']}"],
    "-fec": lambda device: [f"fec mode: {device['roce']['fec']}"],
    "-mtu": lambda device: [f"mtu:{device['roce']['mtu']}"],
    "-mac": lambda device: [f"mac addr: {device['roce']['mac']}"],
    "-arp": neighbours,
    "-route": routes,
    "-process": holders,
}


def health(device: Device) -> str:
    """The state of the port's own check: nothing is checked while no address to detect is set."""
    port = device["roce"]
    return "Init" if port["netdetect"] == node_state.UNSET else port["net_health"]


# -- setters -----------------------------------------------------------------------------------------------------------


def pairs(words: list[str], known: tuple[str, ...]) -> dict[str, str]:
    """`key value` pairs of a setter; ends the tool on anything else."""
    if not words or len(words) % 2:
        fail("The total count of input parameters is wrong!", 2)
    if set(words[::2]) - set(known):
        fail("Get unknown option!", 3)
    return dict(zip(words[::2], words[1::2]))


def address_of(text: str) -> str:
    """An IPv4 address as given; ends the tool on anything else."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        fail("Get invalid parameters!", 1)


def set_ip(port: dict[str, Any], words: list[str]) -> None:
    """`-ip -s address A netmask M`."""
    given = pairs(words, ("address", "netmask"))
    if set(given) != {"address", "netmask"}:
        fail("The total count of input parameters is wrong!", 2)
    try:
        ipaddress.IPv4Interface(f"{given['address']}/{given['netmask']}")
    except ValueError:
        fail("Get invalid parameters!", 1)
    port.update(given)


def set_gateway(port: dict[str, Any], words: list[str]) -> None:
    """`-gateway -s gateway A`; it has to be in the port's own network."""
    wanted = address_of(pairs(words, ("gateway",))["gateway"])
    if not port["address"]:
        fail("Get ipconf failed, because no ip was preset there!", 13)
    if ipaddress.IPv4Address(wanted) not in ipaddress.IPv4Interface(f"{port['address']}/{port['netmask']}").network:
        fail("Get invalid parameters!", 1)
    port["gateway"] = wanted


def set_netdetect(port: dict[str, Any], words: list[str]) -> None:
    """`-netdetect -s address A`."""
    port["netdetect"] = address_of(pairs(words, ("address",))["address"])


def set_link(port: dict[str, Any], words: list[str]) -> None:
    """`-link -s up|down`; a change is recorded."""
    if len(words) != 1 or words[0] not in ("up", "down"):
        fail("Get unknown option!", 3)
    if port["link"] != words[0].upper():
        port["link"] = words[0].upper()
        port["link_records"].insert(0, [int(time.time()), port["link"]])


def set_tls(port: dict[str, Any], words: list[str]) -> None:
    """`-tls -s enable 0|1`, or `-tls -s path DIR pri FILE pub FILE ca1 FILE ...`, whose files have to be there."""
    if words[:1] == ["enable"]:
        switch = pairs(words, ("enable",))["enable"]
        if switch not in ("0", "1"):
            fail("Get invalid parameters!", 1)
        if switch == "1" and not port["tls"]["preconfigured"]:
            fail("Command execute failed!", 1)
        port["tls"]["enabled"] = switch == "1"
        return
    given = pairs(words, ("path", "pri", "pub", *(f"ca{number}" for number in range(1, 16)), "crl"))
    directory = given.pop("path", "")
    if not {"pri", "pub", "ca1"} <= set(given) or not all(Path(directory, name).is_file() for name in given.values()):
        fail("Get invalid parameters!", 1)
    port["tls"]["preconfigured"] = True


def set_mtu(port: dict[str, Any], words: list[str]) -> None:
    """`-mtu -s size N`."""
    size = pairs(words, ("size", "value"))
    number = next(iter(size.values()))
    if not number.isdigit() or not 68 <= int(number) <= 9702:
        fail("Get invalid parameters!", 1)
    port["mtu"] = int(number)


SETTERS: dict[str, Callable[[dict[str, Any], list[str]], None]] = {
    "-ip": set_ip,
    "-gateway": set_gateway,
    "-netdetect": set_netdetect,
    "-link": set_link,
    "-tls": set_tls,
    "-mtu": set_mtu,
}
KEPT = {"-ip": ("address", "netmask"), "-gateway": ("gateway",), "-netdetect": ("netdetect",), "-mtu": ("mtu",)}


def keep(device: Device, keys: tuple[str, ...]) -> None:
    """Writes values of a port into /etc/hccn.conf; other lines stay as they are."""
    path = node_state.on_node("etc/hccn.conf")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for key in keys:
        name, text = f"{key}_{device['phy_id']}", f"{key}_{device['phy_id']}={device['roce'][key]}"
        places = [index for index, line in enumerate(lines) if line.partition("=")[0].strip() == name]
        for index in places[:1]:
            lines[index] = text
        lines = [line for index, line in enumerate(lines) if index not in places[1:]]
        if not places:
            lines.append(text)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    path.chmod(0o644)


def take_effect() -> None:
    """Makes the node's addresses follow the state; in a container there are none of its own."""
    boot = node_state.on_node("usr/local/lib/sandbox/boot")
    if boot.exists() and subprocess.run([str(boot), "addresses"], check=False).returncode:
        fail("Command execute failed!", 1)


def set_value(number: int, major: str, words: list[str]) -> int:
    """`-OBJECT -s ...`: changes the state, the configuration file and the node's addresses."""
    if major not in SETTERS:
        fail("Get unknown option!", 3)
    with node_state.changed() as state:
        device = next(each for each in state["devices"] if each["phy_id"] == number)
        SETTERS[major](device["roce"], words)
    if major in KEPT:
        keep(device, KEPT[major])
    take_effect()
    print("Cmd executed successfully!")
    return 0


def reset(number: int) -> int:
    """`-reset`: the port starts anew: its link comes up, its addresses are those of /etc/hccn.conf."""
    configured = node_state.configuration()
    with node_state.changed() as state:
        device = next(each for each in state["devices"] if each["phy_id"] == number)
        node_state.configure(device, configured)
        now = int(time.time())
        device["roce"]["link_records"][:0] = [[now, "UP"], [now, "DOWN"]]
        device["roce"]["link"] = "UP"
    take_effect()
    print("Cmd executed successfully!")
    return 0


def recover() -> int:
    """`-a -cfg recovery`: gives all ports the addresses of /etc/hccn.conf."""
    configured = node_state.configuration()
    failed = False
    with node_state.changed() as state:
        for device in state["devices"]:
            if device["roce"]:
                fits = node_state.configure(device, configured)
                failed = failed or not fits
                print(f"dev:{device['phy_id']} recovery {'success' if fits else 'fail'}")
    take_effect()
    if failed:
        sys.stdout.flush()
        fail("Command execute failed!", 1)
    print("Cmd executed successfully!")
    return 0


# -- pings -------------------------------------------------------------------------------------------------------------


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
        datagram, sender = connection.recvfrom(65535)
        icmp = datagram[(datagram[0] & 0x0F) * 4 :]
        if sender[0] != target or len(icmp) < 8:
            continue
        kind, _, _, their_identifier, their_sequence = struct.unpack("!BBHHH", icmp[:8])
        if (kind, their_identifier, their_sequence) == (ECHO_REPLY, identifier, sequence):
            return time.monotonic() - started


def round_trips(device: Device, state: State, source: str, target: str, count: int, size: int) -> list[float | None]:
    """The round trips of `count` pings from `source`, each in seconds or None. Raises OSError when none can be sent.

    The state's faults lose some of them, or make those to a peer take longer.
    """
    number, faults = str(device["phy_id"]), state["faults"]
    drop_nth = faults["ping_drop_nth"].get(number)
    delay = faults["ping_delay_us"].get(number, {}).get(target, 0) / 1e6
    identifier = os.getpid() & 0xFFFF
    results: list[float | None] = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
        connection.bind((source, 0))
        for sequence in range(count):
            if drop_nth and (sequence + 1) % drop_nth == 0:
                results.append(None)
                continue
            seconds = echo(connection, target, identifier, sequence, size)
            if seconds is not None:
                time.sleep(delay)
                seconds += delay
            results.append(seconds)
    return results


def ping_target(arguments: list[str], state: State) -> tuple[str, int, int | None]:
    """The peer's address, the number of packets, and the bytes of each where the command line gives them."""
    address, count, size, index = "", DEFAULT_PACKETS, None, 0
    while index < len(arguments):
        word, value = arguments[index], arguments[index + 1] if index + 1 < len(arguments) else ""
        if word == "address":
            address = value
        elif word == "sdid" and value.isdigit():
            address = next((d["vnic"]["address"] for d in state["devices"] if d["sdid"] == int(value)), "")
        elif word == "pkt" and value.isdigit() and 1 <= int(value) <= MOST_PACKETS:
            count = int(value)
        elif word == "pkt" and value.isdigit() and int(value) > MOST_PACKETS:
            size = int(value)
        else:
            fail("Get unknown option!", 3)
        index += 2
    try:
        socket.inet_aton(address)
    except OSError:
        fail("Get invalid parameters!", 1)
    return address, count, size


def ping(device: Device, state: State, arguments: list[str]) -> int:
    """`-ping -g address PEER [pkt N]`: over RoCE, in milliseconds. Any lost packet makes the tool fail."""
    target, count, size = ping_target(arguments, state)
    port = device["roce"]
    if port["link"] != "UP":
        fail("Execute failed: Link status is down.", 22)
    if not port["address"]:
        fail("Get ipconf failed, because no ip was preset there!", 13)
    print(f"device {device['phy_id']} PING {target}")
    limits = [port["mtu"], state["faults"]["ping_max_bytes"] or port["mtu"]]
    try:
        if size and size + IP_HEADERS > min(limits):
            print("Message too long")
            results: list[float | None] = [None] * count
        else:
            results = round_trips(device, state, port["address"], target, count, (size or ROCE_PAYLOAD) // 2 * 2)
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
    target, count, size = ping_target(arguments, state)
    print(f"device {device['phy_id']} PING {target}\n")
    sent = port["link"] == "UP" and bool(port["address"])
    results: list[float | None] = [None] * count
    if sent:
        try:
            results = round_trips(device, state, port["address"], target, count, (size or HCCS_PAYLOAD) // 2 * 2)
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


def query(device: Device, state: State, major: str, rest: list[str]) -> int:
    """`-OBJECT -g`."""
    if major == "-hccs_ping":
        return hccs_ping(device, state, rest)
    if major == "-vnic":
        lines = vnic(device)
    elif device["roce"] is None:
        fail("The VM does not support this command.", 21)
    elif major == "-ping":
        return ping(device, state, rest)
    elif rest:
        fail("The total count of input parameters is wrong!", 2)
    elif major == "-optical" and int(re.match(r"[0-9]*", state["driver"]["version"]).group() or 0) >= 25:
        lines = optical_table(device)
    else:
        lines = GETTERS[major](device)
    for line in lines:
        print(line)
    return 0


def main(arguments: list[str]) -> int:
    """Runs one command line and returns the exit code."""
    all_devices = arguments[:1] == ["-a"]
    if len(arguments) < (3 if all_devices or arguments[2:3] == ["-reset"] else 4):
        fail("The total count of input parameters is wrong!", 2)
    if not all_devices and arguments[0] != "-i":
        fail("The total count of input parameters is wrong!", 2)
    if not all_devices and not arguments[1].isdigit():
        fail("Get invalid device id.", 4)
    try:
        with (node_state.state_path().parent / "hccn_tool.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return answer(arguments, node_state.read())
    except BlockingIOError:
        fail("hccn_tool is busy, please try again.", 11, stdout=True)
    except PermissionError:
        fail("permission denied: pls check this cmd run permission.", 12)
    except (node_state.StateError, FileNotFoundError):
        fail("Command execute failed!", 1)


def answer(arguments: list[str], state: State) -> int:
    """Does what a command line asks for, with the tool's lock held."""
    node_state.answer_for("hccn_tool", arguments, state)
    if state["faults"]["hccn_busy"]:
        fail("hccn_tool is busy, please try again.", 11, stdout=True)
    if state["driver"] is None:
        fail("Command execute failed!", 1)
    if arguments[0] == "-a":
        return recover() if arguments[1:] == ["-cfg", "recovery"] else fail("Get unknown option!", 3)
    device = next((each for each in state["devices"] if each["phy_id"] == int(arguments[1])), None)
    if device is None:
        fail("The device is not exist!", 4)
    major, action, rest = arguments[2], arguments[3:4], arguments[4:]
    if major not in GETTERS and major not in ("-ping", "-hccs_ping", "-vnic", "-reset"):
        fail("Get invalid major cmd.", 3)
    if major == "-reset" or action == ["-s"]:
        if device["roce"] is None:
            fail("The VM does not support this command.", 21)
        return reset(device["phy_id"]) if major == "-reset" else set_value(device["phy_id"], major, rest)
    if action != ["-g"]:
        fail("Get unknown option!", 3)
    return query(device, state, major, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
