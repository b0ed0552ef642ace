"""The hosts' own network as the engines will use it: ports, names, packet sizes, and the network cards of the plan.

In two phases, so that it does not matter how many hosts work at a time: `listen` raises listeners on every port of the
plan that nothing holds yet and leaves them to a process of their own; then `probe` tries, from every host, what its
processes will reach. The listeners end when they are told to, or by themselves after a while.
"""

from __future__ import annotations

__all__ = ["Listeners", "interface", "listen", "ports", "probe", "stop", "uses", "wanted_nics"]

import contextlib
import errno
import fcntl
import ipaddress
import os
import selectors
import signal
import socket
import struct
import time
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

#: Where HCCL's own host ports begin unless HCCL_IF_BASE_PORT says something else, and how many there are.
HCCL_PORTS = (60000, 32)
#: The plan's variables that name a network card, exactly (True) or by HCCL's rules (False).
NIC_VARIABLES = {"GLOO_SOCKET_IFNAME": True, "TP_SOCKET_IFNAME": True, "HCCL_SOCKET_IFNAME": False}
# Of a longer range the first and the last port stand for all.
_ALL_OF = 32
_BANNER = "ascent {nonce} {host}\n"
_LARGEST_BANNER = 512
_SIOCGIFADDR = 0x8915
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_HEADERS = 28
_SMALL = 56

#: ``(from, to, port, name of the use)``
Use = Tuple[str, str, int, str]


# -- what the plan uses ------------------------------------------------------------------------------------------------


def _numbers(port: Mapping[str, Any]) -> List[int]:
    first, count = int(port["first"]), int(port["count"])
    return [first + index for index in range(count)] if count <= _ALL_OF else [first, first + count - 1]


def _environment(process: Mapping[str, Any]) -> Dict[str, str]:
    return {one["name"]: str(one["value"]) for one in process["env"] if "value" in one}


def uses(plan: Mapping[str, Any]) -> List[Use]:
    """Which host reaches which port of which other host, from the plan's processes; sorted, each once.

    An instance's own ports (``dp-rpc``, ``master``, Ray's) are its hosts', those of KV transfer the other side's, APIs
    the routers', and all others every host's that runs an engine. HCCL's host ports are tried by their first and last.
    """
    instances = {one["name"]: one for one in plan["instances"]}
    engines = sorted({process["host"] for process in plan["processes"] if process["instance"]})
    routers = sorted(
        {process["host"] for process in plan["processes"] if process["kind"] in ("router", "frontend", "indexer")}
    )
    found: Set[Use] = set()

    def users(process: Mapping[str, Any], name: str) -> Iterable[str]:
        own = instances.get(process["instance"] or "")
        if own and name in ("dp-rpc", "master", "ray", "ray-node", "ray-workers"):
            return list(own["hosts"])
        if own and name in ("kv", "side-channel"):
            other = {"prefill": "decode", "decode": "prefill"}.get(own["role"])
            return [host for one in plan["instances"] if one["role"] == other for host in one["hosts"]]
        if name in ("api", "kv-events", "system") and own:
            return routers
        if name == "api" or name == "metrics":
            return []
        return engines

    for process in plan["processes"]:
        for port in process["ports"]:
            for source in users(process, port["name"]):
                found.update((source, process["host"], number, port["name"]) for number in _numbers(port))
    for one in plan["instances"]:
        for process in plan["processes"]:
            if process["instance"] == one["name"] and plan["hosts"][process["host"]]["vendor"] == "ascend":
                first = int(_environment(process).get("HCCL_IF_BASE_PORT", HCCL_PORTS[0]))
                for number in (first, first + HCCL_PORTS[1] - 1):
                    found.update((source, process["host"], number, "hccl") for source in one["hosts"])
    return sorted(use for use in found if use[0] != use[1])


def ports(plan: Mapping[str, Any], host: str) -> List[int]:
    """The ports that have to be there on a host while others try them."""
    return sorted({port for _, target, port, _ in uses(plan) if target == host})


def wanted_nics(plan: Mapping[str, Any], host: str) -> Dict[str, List[str]]:
    """``{network card: [variables that name it]}`` of a host's processes; HCCL's signs and prefixes stay."""
    found: Dict[str, List[str]] = {}
    for process in plan["processes"]:
        if process["host"] != host:
            continue
        values = _environment(process)
        for variable in NIC_VARIABLES:
            for name in values.get(variable, "").split(","):
                if name and variable not in found.setdefault(name, []):
                    found[name].append(variable)
    return {name: sorted(variables) for name, variables in sorted(found.items())}


# -- network cards -----------------------------------------------------------------------------------------------------


def interface(name: str, exact: bool = True) -> Dict[str, Any]:
    """``{"name", "address", "mtu"}`` of a network card by name, nulls where there is none.

    Without ``exact`` a name is what HCCL takes: a prefix, ``=name`` exactly, ``^name`` anything else.
    """
    known = sorted(each for _, each in socket.if_nameindex())
    if not exact:
        without = name.lstrip("^=")
        if name.startswith("^"):
            fits = [each for each in known if (each != without if "=" in name[:2] else not each.startswith(without))]
            fits.sort(key=lambda each: each == "lo")
        else:
            fits = [each for each in known if (each == without if name.startswith("=") else each.startswith(without))]
        name = fits[0] if fits else name
    if name not in known:
        return {"name": None, "address": None, "mtu": None}
    address: Optional[str] = None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        address = socket.inet_ntoa(answer[20:24])
    mtu: Optional[int] = None
    with contextlib.suppress(OSError, ValueError), open(f"/sys/class/net/{name}/mtu", encoding="ascii") as stream:
        mtu = int(stream.read())
    return {"name": name, "address": address, "mtu": mtu}


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- listeners ---------------------------------------------------------------------------------------------------------


class Listeners:
    """Sockets that answer every connection with who they are, in a process that outlives the caller."""

    def __init__(self, host: str, nonce: str) -> None:
        self.banner = _BANNER.format(nonce=nonce, host=host).encode()
        self.sockets: List[socket.socket] = []

    def open(self, address: str, port: int) -> int:
        """Listens on a port, 0 for any, and returns its number. Raises OSError where that can't be had."""
        listener = socket.socket(_family(address), socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self.sockets.append(listener)
        return int(listener.getsockname()[1])

    def try_open(self, address: str, port: int) -> int:
        """`open`, with the error's number instead of an exception; 0 when the port is open."""
        try:
            self.open(address, port)
        except OSError as error:
            return error.errno or errno.EINVAL
        return 0

    def serve(self, seconds: float) -> None:
        """Answers until the time is up."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for listener in self.sockets:
                selector.register(listener, selectors.EVENT_READ)
            while True:
                left = until - time.monotonic()
                if left <= 0:
                    return
                for key, _ in selector.select(left):
                    # The caller may be gone again; the banner fits into any socket's buffer.
                    with contextlib.suppress(OSError):
                        connection, _peer = key.fileobj.accept()  # type: ignore[union-attr]
                        with connection:
                            connection.sendall(self.banner)

    def detach(self, pid_file: str, seconds: float) -> None:
        """Leaves the sockets to a process of their own, which `stop` ends, or its time."""
        os.makedirs(os.path.dirname(pid_file), mode=0o750, exist_ok=True)
        if os.fork():
            for listener in self.sockets:
                listener.close()
            # The grandchild writes its number before the child ends.
            os.wait()
            return
        try:
            os.setsid()
            lock = os.open(pid_file, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reading, writing = os.pipe()
            if os.fork():
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)

            # Whoever sees that the file is gone, or gets its lock, may take the ports.
            def let_go(*_signal: object) -> None:
                for listener in self.sockets:
                    listener.close()
                if _signal:
                    os._exit(0)

            signal.signal(signal.SIGTERM, let_go)
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nowhere, stream)
            keep = {lock, writing, *(listener.fileno() for listener in self.sockets)}
            for number in range(3, 1024):
                if number not in keep:
                    with contextlib.suppress(OSError):
                        os.close(number)
            os.write(writing, b".")
            os.close(writing)
            self.serve(seconds)
            let_go()
            os.unlink(pid_file)
        finally:
            os._exit(0)


def _resolved(name: str) -> List[str]:
    try:
        return sorted({str(one[4][0]) for one in socket.getaddrinfo(name, None, socket.AF_INET)})
    except OSError:
        return []


def stop(pid_file: str) -> bool:
    """Ends the listeners that `Listeners.detach` left; False when there were none."""
    try:
        with open(pid_file, "r+", encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.kill(int(stream.read()), signal.SIGTERM)
                fcntl.flock(stream, fcntl.LOCK_EX)
            os.unlink(pid_file)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    return True


def listen(
    host: str,
    address: str,
    nonce: str,
    wanted: Sequence[int],
    nics: Mapping[str, Sequence[str]],
    names: Sequence[str],
    pid_file: str,
    seconds: float,
) -> Dict[str, Any]:
    """Raises this host's listeners: ``{"nics", "names", "held", "unbound", "rendezvous": {NIC: port}}``.

    ``wanted`` are ports at ``address``, ``nics`` come from `wanted_nics`; each card that is there gets a listener on
    its own address and any port. A port that something holds is ``held``; others that can't be had are ``unbound``.
    """
    stop(pid_file)
    listeners = Listeners(host, nonce)
    held: List[int] = []
    unbound: Dict[str, str] = {}
    for port in wanted:
        number = listeners.try_open(address, port)
        if number == errno.EADDRINUSE:
            held.append(port)
        elif number:
            unbound[str(port)] = os.strerror(number)
    cards: Dict[str, Dict[str, Any]] = {}
    rendezvous: Dict[str, int] = {}
    for name, variables in nics.items():
        cards[name] = {**interface(name, any(NIC_VARIABLES[one] for one in variables)), "for": list(variables)}
        if cards[name]["address"]:
            with contextlib.suppress(OSError):
                rendezvous[name] = listeners.open(cards[name]["address"], 0)
    resolved = {name: _resolved(name) for name in [socket.gethostname(), *names]}
    if listeners.sockets:
        listeners.detach(pid_file, seconds)
    return {"nics": cards, "names": resolved, "held": held, "unbound": unbound, "rendezvous": rendezvous}


# -- probes ------------------------------------------------------------------------------------------------------------


def _outcome(number: int) -> Tuple[str, str]:
    """What an error number of a connection says."""
    kind = {
        errno.ECONNREFUSED: "refused",
        errno.ECONNRESET: "refused",
        errno.ETIMEDOUT: "timeout",
        errno.EHOSTUNREACH: "unreachable",
        errno.ENETUNREACH: "unreachable",
    }.get(number, "failed")
    return kind, os.strerror(number)


def _connect_all(targets: Sequence[Dict[str, Any]], nonce: str, timeout: float, at_once: int = 256) -> None:
    """Fills ``outcome`` and ``text`` of every target in; ``{"to", "address", "port", "source", "ours"}``.

    Where ``ours``, the banner has to be that of the host that was meant: another one's is a ``stranger``.
    """
    waiting = list(targets)
    with selectors.DefaultSelector() as selector:
        open_: Dict[socket.socket, Tuple[Dict[str, Any], float, bytearray]] = {}

        def done(connection: socket.socket, outcome: str, text: str) -> None:
            target, _, _ = open_.pop(connection)
            selector.unregister(connection)
            connection.close()
            target.update(outcome=outcome, text=text)

        while waiting or open_:
            while waiting and len(open_) < at_once:
                target = waiting.pop(0)
                connection = socket.socket(_family(target["address"]), socket.SOCK_STREAM)
                connection.setblocking(False)
                try:
                    if target.get("source"):
                        connection.bind((target["source"], 0))
                    code = connection.connect_ex((target["address"], target["port"]))
                except OSError as error:
                    code = error.errno or errno.EINVAL
                if code not in (0, errno.EINPROGRESS):
                    connection.close()
                    kind, text = _outcome(code)
                    target.update(outcome=kind, text=text)
                    continue
                selector.register(connection, selectors.EVENT_WRITE)
                open_[connection] = (target, time.monotonic() + timeout, bytearray())
            until = min((entry[1] for entry in open_.values()), default=time.monotonic())
            for key, _ in selector.select(max(0.0, until - time.monotonic())) if open_ else ():
                connection = key.fileobj  # type: ignore[assignment]
                target, _, got = open_[connection]
                if key.events & selectors.EVENT_WRITE:
                    number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if number:
                        done(connection, *_outcome(number))
                    elif not target["ours"]:
                        done(connection, "answered", "")
                    else:
                        selector.modify(connection, selectors.EVENT_READ)
                    continue
                try:
                    data = connection.recv(_LARGEST_BANNER)
                except OSError as error:
                    done(connection, *_outcome(error.errno or 0))
                    continue
                got += data
                if data and b"\n" not in got and len(got) < _LARGEST_BANNER:
                    continue
                if bytes(got) == _BANNER.format(nonce=nonce, host=target["to"]).encode():
                    done(connection, "answered", "")
                else:
                    done(connection, "stranger", f"answered by {got.decode('utf-8', 'replace').strip() or 'nobody'}")
            now = time.monotonic()
            for connection in [one for one, entry in open_.items() if entry[1] <= now]:
                done(connection, "timeout", f"no answer within {timeout:g} s")


def _checksum(packet: bytes) -> int:
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    return int(~(total + (total >> 16)) & 0xFFFF)


def _pings(peers: Mapping[str, str], source: str, sizes: Sequence[int], timeout: float) -> Iterator[Tuple[str, int]]:
    """``(host, size)`` of every unfragmented ping that came back, out of one of each size to each peer, tried twice."""
    identifier = os.getpid() & 0xFFFF
    numbers = {(host, size): index for index, (host, size) in enumerate((h, s) for h in peers for s in sizes)}
    back: Set[int] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
        connection.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        connection.bind((source, 0))
        for _attempt in range(2):
            for (host, size), number in numbers.items():
                if number in back:
                    continue
                payload = bytes(size)
                head = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identifier, number)
                packet = struct.pack("!BBHHH", _ECHO_REQUEST, 0, _checksum(head + payload), identifier, number)
                with contextlib.suppress(OSError):  # too long for the own card already, or no way there
                    connection.sendto(packet + payload, (peers[host], 0))
            until = time.monotonic() + timeout
            while len(back) < len(numbers):
                left = until - time.monotonic()
                connection.settimeout(max(left, 0.001))
                try:
                    datagram = connection.recv(65535)
                except OSError:
                    datagram = b""
                icmp = datagram[(datagram[0] & 0x0F) * 4 :] if datagram else b""
                if len(icmp) >= 8:
                    kind, _, _, theirs, number = struct.unpack("!BBHHH", icmp[:8])
                    if (kind, theirs) == (_ECHO_REPLY, identifier):
                        back.add(number)
                if left <= 0:
                    break
    for key, number in numbers.items():
        if number in back:
            yield key


def _mtu(peers: Mapping[str, str], source: str, mtu: int, timeout: float) -> List[Dict[str, Any]]:
    """Whether small and full-sized packets reach each peer in one piece; nothing where the address is IPv6."""
    if ipaddress.ip_address(source).version != 4:
        return []
    large = (mtu - _HEADERS) // 2 * 2
    back = set(_pings(peers, source, [_SMALL, large], timeout))
    return [
        {"to": host, "address": address, "bytes": mtu, "small": (host, _SMALL) in back, "large": (host, large) in back}
        for host, address in peers.items()
    ]


def probe(
    host: str,
    address: str,
    nonce: str,
    targets: Sequence[Mapping[str, Any]],
    rendezvous: Sequence[Mapping[str, Any]],
    peers: Mapping[str, str],
    mtu: Optional[int],
    timeout: float = 3.0,
) -> Dict[str, Any]:
    """What this host reaches: ``{"tcp", "tried", "mtu", "rendezvous"}`` of ``ascent_control_plane``.

    ``targets`` are ``{"to", "address", "port", "use", "ours"}``, ``rendezvous`` ``{"to", "nic", "address", "port",
    "source"}``, ``peers`` maps hosts to addresses for the packet sizes, ``mtu`` is that of this host's card.
    """
    tcp = [{**one, "source": None} for one in targets]
    cards = [{**one, "ours": True} for one in rendezvous]
    _connect_all([*tcp, *cards], nonce, timeout)
    # A packet may be lost once.
    late = [one for one in [*tcp, *cards] if one["outcome"] == "timeout"]
    _connect_all(late, nonce, timeout)
    tried: Dict[str, int] = {}
    for one in tcp:
        tried[one["to"]] = tried.get(one["to"], 0) + 1
    keys = ("to", "address", "port", "use", "outcome", "text")
    return {
        "host": host,
        "tried": tried,
        "tcp": [{key: one[key] for key in keys} for one in tcp if one["outcome"] != "answered"],
        "rendezvous": [{key: one[key] for key in ("to", "nic", "address", "port", "outcome", "text")} for one in cards],
        "mtu": _mtu(peers, address, mtu, timeout) if mtu and peers else [],
    }
