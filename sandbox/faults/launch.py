"""Family D: what a launch needs of the host, ports, processes, weights; Ray's ports and wrong weights with it."""

from __future__ import annotations

import base64
import struct
from typing import Literal

from sandbox.faults import programs
from sandbox.faults.model import (
    HCCN_CONF,
    HCCN_TOOL,
    Change,
    FaultError,
    Injection,
    Look,
    Node,
    container,
    fault,
    file_change,
    listener,
    process,
    rule,
    small_disk,
    tcp_probe,
)

POINTER = """\
version https://git-lfs.github.com/spec/v1
oid sha256:0000000000000000000000000000000000000000000000000000000000000000
size 4294967296
"""
LAST_SHARD = "model-00002-of-00002.safetensors"


def _bound(port: int, name: str) -> Injection:
    return Injection([listener(port, name)], Look("ss -ltnp", rf"LISTEN.*:{port}\s"))


def _dropped(node: Node, port: int) -> Injection:
    """TCP to a port of the node vanishes, from all other hosts; the node's own connections and pings work."""
    match = ("-i", "eth0", "-p", "tcp", "--dport", str(port), "-j", "DROP")
    return Injection([rule("INPUT", *match)], Look(tcp_probe(node.planned.address, port), "timed out", on="peer"))


@fault("D01", "api-port-in-use")
def api_port_in_use(node: Node, port: int = 8000) -> Injection:
    """A leftover process listens on the API port."""
    del node
    return _bound(port, "vllm_leftover")


@fault("D02", "rendezvous-port")
def rendezvous_port(node: Node, port: int = 29500) -> Injection:
    """A leftover process listens on a rendezvous port."""
    del node
    return _bound(port, "torch_leftover")


@fault("E02", "kv-port-overlap")
def kv_port_overlap(node: Node, port: int = 30000) -> Injection:
    """A port of the KV handshake is taken."""
    del node
    return _bound(port, "kv_leftover")


@fault("E01", "kv-port-reserved-range")
def kv_port_reserved_range(node: Node, port: int = 20000) -> Injection:
    """A port of the KV transport's window is taken."""
    del node
    return _bound(port, "kv_transport")


@fault("D03", "dp-rpc-unreachable")
def dp_rpc_unreachable(node: Node, port: int = 12321) -> Injection:
    """Other hosts can't reach the data-parallel RPC port of this head: their packets vanish."""
    return _dropped(node, port)


@fault("E06", "mooncake-client-init")
def store_master_unreachable(node: Node, port: int = 50088) -> Injection:
    """Other hosts can't reach the KV store's master on this node."""
    return _dropped(node, port)


@fault("F05", "ray-head-unreachable")
def ray_head_unreachable(node: Node, port: int = 6379) -> Injection:
    """Other hosts can't reach Ray's head on this node."""
    return _dropped(node, port)


@fault("D08", "gloo-loopback")
def gloo_loopback(node: Node) -> Injection:
    """The node's own name resolves to a loopback address."""
    name = node.planned.name
    change = file_change("/etc/hosts", sub=[rf"^\S+(\s+{name})$", r"127.0.1.1\g<1>"])
    return Injection([change], Look(f"getent ahostsv4 {name}", r"^127\.0\.1\.1\s"))


@fault("D10", "hostname-unresolved")
def hostname_unresolved(node: Node, peer: str = "") -> Injection:
    """The name of another node does not resolve: no entry in /etc/hosts, no name service that answers."""
    name = node.node(peer).name
    changes = [
        file_change("/etc/hosts", sub=[rf"^\S+\s+{name}\n", ""]),
        file_change("/etc/resolv.conf", sub=[r"^nameserver .*$", "nameserver 127.0.0.1"]),
    ]
    return Injection(changes, Look(f"ping -c 1 {name}", r"Name or service not known|failure in name resolution"))


@fault("D11", "proxy-env")
def proxy_env(node: Node, port: int = 3128) -> Injection:
    """Logins get proxy variables without the cluster in no_proxy, and the proxy answers 503."""
    lines = "".join(f"{name}=http://127.0.0.1:{port}\n" for name in ("http_proxy", "https_proxy", "HTTP_PROXY"))
    question = f"""import urllib.request
try:
    print(urllib.request.urlopen("http://{node.sandbox.services}/debian/Packages", timeout=5).status)
except OSError as error:
    print(error, error.headers["Via"])"""
    changes = [process("site-proxy", programs.PROXY, port), file_change("/etc/environment", append=lines)]
    return Injection(changes, Look(f"python3 -c '{question}'", r"503.*squid"))


@fault("D12", "firewall")
def firewall(node: Node) -> Injection:
    """A firewall is active and lets in ssh and pings only."""
    changes = [
        process("firewalld", programs.IDLE, "firewalld"),
        rule("INPUT", "-i", "eth0", "-p", "tcp", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"),
        rule("INPUT", "-i", "eth0", "-p", "tcp", "-m", "state", "--state", "ESTABLISHED", "-j", "ACCEPT"),
        rule("INPUT", "-i", "eth0", "-p", "tcp", "--dport", "22", "-j", "ACCEPT"),
    ]
    return Injection(changes, Look(tcp_probe(node.planned.address, 8000), "No route to host", on="peer"))


@fault("D13", "shm-small")
def shm_small(node: Node, mb: int = 64) -> Injection:
    """Shared memory has a container's default size."""
    del node
    return Injection([{"kind": "shm", "path": "/dev/shm", "mb": mb}], Look("df -P -m /dev/shm", rf"\s{mb}\s"))  # noqa: S108


@fault("D14", "memlock-nofile")
def memlock_nofile(node: Node, memlock_kb: int = 64, nofile: int = 512) -> Injection:
    """Logins have low limits for locked memory and open files."""
    del node
    text = "".join(
        f"{who} {kind} {what} {value}\n"
        for who in ("root", "*")
        for kind in ("soft", "hard")
        for what, value in (("memlock", memlock_kb), ("nofile", nofile))
    )
    change = file_change("/etc/security/limits.d/zz-site.conf", text=text)
    return Injection([change], Look("ulimit -l -n", rf"\s{memlock_kb}\n.*\s{nofile}\n"))


@fault("D15", "hugepages")
def hugepages(node: Node, device: int = 0, pages: int = 512) -> Injection:
    """Huge pages are reserved on the host, and a device has used up its own."""
    changes = [
        file_change("/proc/sys/vm/nr_hugepages", text=f"{pages}\n"),
        node.set(device, "hugepages", to=[pages, pages]),
    ]
    return Injection(changes, Look("sysctl vm.nr_hugepages; npu-smi info", rf"(?s)= {pages}\n.*{pages}\s*/ {pages}"))


@fault("D16", "disk-full")
def disk_full(node: Node, path: str = "/root/.cache", mb: int = 16) -> Injection:
    """A directory has only a few MB left; what is there stays, what is written meanwhile is gone after healing."""
    del node
    return Injection([small_disk(path, mb)], Look(f"df -P -m {path}", rf"\s{mb}\s+\d+\s+{mb}\s"))


@fault("D24", "clock-skew")
def clock_skew(node: Node, seconds: int = 90) -> Injection:
    """The node's clock is ahead of the others'."""
    ahead = base64.b64encode(struct.pack("=q", seconds * 10**9)).decode()
    question = f"""import email.utils, time, urllib.request
told = urllib.request.urlopen("http://{node.sandbox.services}/debian/Packages", timeout=5).headers["Date"]
off = time.time() - email.utils.parsedate_to_datetime(told).timestamp()
print("clock off" if abs(off) > 5 else "clock right")"""
    return Injection([file_change("/etc/sandbox/clock", bytes=ahead)], Look(f"python3 -c '{question}'", "clock off"))


def _shard(node: Node, model: str) -> str:
    return f"{model or node.model()}/{LAST_SHARD}"


def _weights(node: Node, model: str, **edit: object) -> list[Change]:
    return [file_change(_shard(node, model), **edit)]


@fault("D17", "weights-missing")
def weights_missing(node: Node, model: str = "") -> Injection:
    """A shard that the index names is not there."""
    look = Look(f"ls -l {_shard(node, model)}", "No such file or directory")
    return Injection(_weights(node, model, absent=True), look)


@fault("D18", "weights-pointer")
def weights_pointer(node: Node, model: str = "") -> Injection:
    """A shard is a large-file pointer instead of data."""
    look = Look(f"head -c 60 {_shard(node, model)}", "git-lfs")
    return Injection(_weights(node, model, text=POINTER), look)


@fault("D19", "weights-truncated")
def weights_truncated(node: Node, model: str = "") -> Injection:
    """A shard ends early."""
    question = (
        "import json, os, struct, sys; f = open(sys.argv[1], 'rb'); n = struct.unpack('<Q', f.read(8))[0]; "
        "h = json.loads(f.read(n)); e = max(v['data_offsets'][1] for k, v in h.items() if k[0] != '_'); "
        "print('short' if os.path.getsize(sys.argv[1]) < 8 + n + e else 'whole')"
    )
    look = Look(f'python3 -c "{question}" {_shard(node, model)}', "^short")
    return Injection(_weights(node, model, keep=0.8), look)


@fault("G03", "one-rank-other-weights")
def other_weights(node: Node, model: str = "") -> Injection:
    """One byte of a shard differs from the other nodes' copies."""
    return Injection(_weights(node, model, flip=-1), Look(f"sha256sum {_shard(node, model)}", None))


@fault("D26", "privileged-missing")
def manager_missing(node: Node) -> Injection:
    """The driver's manager device is not there, as in a container without it."""
    del node
    look = Look("ls -l /dev/davinci_manager", "No such file or directory")
    return Injection([file_change("/dev/davinci_manager", absent=True)], look)


@fault("D30", "hccn-conf-not-mounted")
def hccn_conf_missing(node: Node) -> Injection:
    """/etc/hccn.conf is not there."""
    del node
    return Injection([file_change(HCCN_CONF, absent=True)], Look(f"cat {HCCN_CONF}", "No such file or directory"))


@fault("D31", "npu-tools-not-mounted")
def tools_missing(node: Node, tool: Literal["npu-smi", "hccn_tool"] = "hccn_tool") -> Injection:
    """One of the vendor's tools is not there."""
    del node
    path = {"npu-smi": "/usr/local/bin/npu-smi", "hccn_tool": HCCN_TOOL}[tool]
    return Injection([file_change(path, absent=True)], Look(path, r"No such file or directory|command not found"))


@fault("D32", "container-name-conflict")
def container_name_conflict(node: Node, name: str = "leftover") -> Injection:
    """A container that is none of ours has a name that a launch wants."""
    _need_docker(node)
    look = Look(f"docker create --name {name} localhost/leftover:1 true", "Conflict. The container name")
    return Injection([container(name, "true", "create")], look)


@fault("D33", "restart-loop")
def restart_loop(node: Node, name: str = "leftover-loop") -> Injection:
    """A container starts, fails and starts again."""
    _need_docker(node)
    change = container(
        name, "echo first fatal line >&2; exit 1", "run", "--detach", "--restart=always", "--network=none"
    )
    look = Look(f"sleep 1; docker inspect --format '{{{{.RestartCount}}}}' {name}", r"^[1-9]")
    return Injection([change], look)


def _need_docker(node: Node) -> None:
    if not node.facts["docker"]:
        raise FaultError(f"{node.planned.name} has no container engine yet; `playbooks/provision.yml` installs it")
