"""What a sandbox inventory asks for, as plain data: the nodes, their addresses and their accelerators.

A sandbox is a group under `clusters` with these variables, all read as they are written (no templates):

- `sandbox_subnet`: the network of the nodes, a /16 to /18 of 198.18.0.0/15 or of 100.64.0.0/10;
- `sandbox_services`: the address of the registry and of the package repository;
- `sandbox_profile`: a name in `sandbox/profiles/`;
- `sandbox_os`: the release of Debian, by default bookworm;
- `sandbox_driver`, `sandbox_firmware`: versions other than the profile's, or `none`: a server as it is delivered;
- `sandbox_clock_offset`: seconds that a node's clock is ahead;
- `sandbox_disks`: directories that are file systems of their own, with their sizes, such as `{/var/lib/docker: 8G}`;
- `sandbox_engine_images`: names under which the engine image is published in the registry;
- `sandbox_gateway_images`: names under which nginx is published there, for clusters with API keys or TLS;
- `sandbox_engine_ray`: true where that image has Ray, which is built for that;
- `sandbox_models`: weights each node already has, as `{id, config}` or just the id;
- `sandbox_hub_models`: weights the site's hub serves, as `{id, config, tags, shards, shard_bytes}` or just the id;
- `sandbox_packages`: a directory that the site serves below `/packages`, from the root of the checkout;
- `sandbox_real_images`: names under which the image of the real engine is published, which is built for that;
- `sandbox_tiny_models`: a directory on each node for the tiny models of the real engine;
- `sandbox_shares`: directories that are one file system on all nodes, as a mounted share is.

A host may have its own of those that say something of one node: profile, system, driver, clock and disks.

Each host needs `ansible_host`: node 198.18.0.X gives device d the addresses 198.18.X.(d+1) (RoCE) and 198.18.X.(d+129)
(vnic, where the profile has one).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROFILES = Path(__file__).resolve().parent.parent / "profiles"
# Networks that no site routes to its own machines: for benchmarks (RFC 2544) and of carriers (RFC 6598).
NETWORKS = (ipaddress.IPv4Network("198.18.0.0/15"), ipaddress.IPv4Network("100.64.0.0/10"))
VNIC_OFFSET = 128
# Releases of Debian that nodes may run: Python 3.11, 3.13 and 3.9.
SUITES = ("bookworm", "trixie", "bullseye")
DEFAULT_SUITE = SUITES[0]
SIZE = re.compile(r"([0-9]+)([MG])")


class SandboxError(Exception):
    """Something the user has to change; the message says what."""


@dataclass(frozen=True)
class Node:
    """One node: its name, its number in the network, its address and its hardware profile.

    `disks` gives directories that are file systems of their own their sizes in MB.
    """

    name: str
    index: int
    address: str
    profile: Mapping[str, Any]
    suite: str = DEFAULT_SUITE
    clock_offset_s: float = 0.0
    disks: Mapping[str, int] = field(default_factory=dict)

    @property
    def device_count(self) -> int:
        """How many devices the node has."""
        return int(self.profile["npus"] * self.profile["chips_per_npu"])


#: What a host may have for itself; the profile, which it may have, too, is never left out.
PER_HOST = ("sandbox_os", "sandbox_driver", "sandbox_firmware", "sandbox_clock_offset", "sandbox_disks")


@dataclass(frozen=True)
class Sandbox:
    """One cluster of nodes and the services of its site."""

    name: str
    subnet: ipaddress.IPv4Network
    services: str
    nodes: tuple[Node, ...]
    engine_images: tuple[str, ...] = ()
    gateway_images: tuple[str, ...] = ()
    engine_ray: bool = False
    models: tuple[Mapping[str, Any], ...] = field(default=())
    hub_models: tuple[Mapping[str, Any], ...] = field(default=())
    packages: str | None = None
    real_images: tuple[str, ...] = ()
    tiny_models: str | None = None
    shares: tuple[str, ...] = ()

    @property
    def gateway(self) -> str:
        """The address of the machine below in the network of the nodes."""
        return str(self.subnet.network_address + 1)

    @property
    def registry(self) -> str:
        """Where the registry listens, as image names start."""
        return f"{self.services}:5000"


def roce_address(subnet: ipaddress.IPv4Network, node_index: int, device: int) -> str:
    """The RoCE address of a device."""
    return str(subnet.network_address + (node_index << 8) + device + 1)


def vnic_address(subnet: ipaddress.IPv4Network, node_index: int, device: int) -> str:
    """The address of a device inside its super pod."""
    return str(subnet.network_address + (node_index << 8) + VNIC_OFFSET + device + 1)


def load_profile(name: str) -> dict[str, Any]:
    """A hardware profile by name. Raises SandboxError with the names there are."""
    path = PROFILES / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in PROFILES.glob("*.yml")))
        raise SandboxError(f"sandbox_profile {name!r} is not one of {known} (sandbox/profiles/)")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _subnet(variables: Mapping[str, Any], group: str) -> ipaddress.IPv4Network:
    try:
        subnet = ipaddress.IPv4Network(str(variables["sandbox_subnet"]))
    except ValueError as error:
        raise SandboxError(f"{group}: sandbox_subnet: {error}") from error
    if not 16 <= subnet.prefixlen <= 18 or not any(map(subnet.subnet_of, NETWORKS)):
        networks = " or ".join(map(str, NETWORKS))
        raise SandboxError(f"{group}: sandbox_subnet is {subnet}; it has to be a /16, /17 or /18 of {networks}")
    return subnet


def _node(name: str, variables: Mapping[str, Any], subnet: ipaddress.IPv4Network) -> Node:
    address = str(variables.get("ansible_host", ""))
    try:
        offset = int(ipaddress.IPv4Address(address)) - int(subnet.network_address)
    except ValueError as error:
        raise SandboxError(f"{name}: ansible_host is {address!r}, not an address of {subnet}") from error
    # A node's number is the third byte of its devices' addresses, so a smaller subnet has room for fewer nodes.
    last = min(254, subnet.num_addresses // 256 - 1)
    if not 3 <= offset <= last:
        low, high = subnet.network_address + 3, subnet.network_address + last
        raise SandboxError(f"{name}: ansible_host is {address}; a node of {subnet} is one of {low} to {high}")
    suite = str(variables.get("sandbox_os", DEFAULT_SUITE))
    if suite not in SUITES:
        raise SandboxError(f"{name}: sandbox_os {suite!r} is not one of {', '.join(SUITES)}")
    try:
        clock = float(variables.get("sandbox_clock_offset", 0))
    except (TypeError, ValueError):
        raise SandboxError(f"{name}: sandbox_clock_offset is a number of seconds, such as 90 or -2.5") from None
    disks = {path: _megabytes(name, path, size) for path, size in (variables.get("sandbox_disks") or {}).items()}
    return Node(name, offset, address, _profile(name, variables), suite, clock, disks)


def _profile(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The hardware profile of a host, with the versions that the host's variables give."""
    profile = load_profile(str(variables["sandbox_profile"]))
    for kind in ("driver", "firmware"):
        version = variables.get(f"sandbox_{kind}")
        if version is None:
            continue
        if not profile[kind]:
            raise SandboxError(f"{name}: sandbox_{kind} is set, but profile {profile['name']} has no {kind}")
        profile[kind] = None if str(version) == "none" else {**profile[kind], "version": str(version)}
    if profile["driver"]:
        profile["tool_version"] = profile["driver"]["version"]
    return profile


def _megabytes(name: str, path: str, size: Any) -> int:
    match = SIZE.fullmatch(str(size))
    if not match or not str(path).startswith("/") or path == "/":
        raise SandboxError(f"{name}: sandbox_disks has {path}: {size}; wanted is a directory and a size: /var/log: 64M")
    return int(match.group(1)) * (1024 if match.group(2) == "G" else 1)


def _model(entry: str | Mapping[str, Any]) -> Mapping[str, Any]:
    model = {"id": entry, "config": {}} if isinstance(entry, str) else {"config": {}, **entry}
    if str(model.get("id", "")).count("/") != 1:
        raise SandboxError(f"sandbox_models: {entry!r} has no id of the form organisation/name")
    return model


def _hub_model(entry: str | Mapping[str, Any]) -> Mapping[str, Any]:
    own = {"id": entry} if isinstance(entry, str) else dict(entry)
    model = {"config": {}, "tags": (), "shards": 4, "shard_bytes": 131072, **own}
    if unknown := sorted(set(model) - {"id", "config", "tags", "shards", "shard_bytes"}):
        raise SandboxError(f"sandbox_hub_models: {entry!r} has an unknown key {unknown[0]}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model.get("id", ""))):
        raise SandboxError(f"sandbox_hub_models: {entry!r} has no id of the form organisation/name")
    for name in ("shards", "shard_bytes"):
        if not isinstance(model[name], int) or model[name] < 1:
            raise SandboxError(
                f"sandbox_hub_models: {model['id']}: {name} is {model[name]!r}; it has to be a number from 1"
            )
    for tag in model["tags"]:
        if not re.fullmatch(r"[\w.-]+", str(tag)) or tag in ("main", "master"):
            raise SandboxError(f"sandbox_hub_models: {model['id']}: {tag!r} can't be a tag")
    return model


def _share(path: Any) -> str:
    if not re.fullmatch(r"(/[\w.-]+)+", str(path)):
        raise SandboxError(f"sandbox_shares has {path!r}; wanted is a directory, such as /mnt/models")
    return str(path)


def from_variables(group: str, variables: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]]) -> Sandbox:
    """A sandbox of a group's variables and of each host's own. Raises SandboxError naming what does not fit."""
    missing = [name for name in ("sandbox_subnet", "sandbox_services", "sandbox_profile") if name not in variables]
    if missing:
        raise SandboxError(f"{group}: {', '.join(missing)} not set; see docs/sandbox.md")
    subnet = _subnet(variables, group)
    nodes = tuple(_node(name, {**variables, **own}, subnet) for name, own in hosts.items())
    if not nodes:
        raise SandboxError(f"{group} has no hosts")
    services = str(variables["sandbox_services"])
    taken = [services, str(subnet.network_address + 1), *(node.address for node in nodes)]
    twice = sorted({address for address in taken if taken.count(address) > 1})
    if twice:
        raise SandboxError(f"{group}: {', '.join(twice)} is given to more than one of gateway, services and nodes")
    if ipaddress.IPv4Address(services) not in subnet:
        raise SandboxError(f"{group}: sandbox_services is {services}, outside {subnet}")
    return Sandbox(
        name=str(variables.get("sandbox_name", group)),
        subnet=subnet,
        services=services,
        nodes=nodes,
        engine_images=tuple(variables.get("sandbox_engine_images", ())),
        gateway_images=tuple(variables.get("sandbox_gateway_images", ())),
        engine_ray=bool(variables.get("sandbox_engine_ray", False)),
        models=tuple(_model(entry) for entry in variables.get("sandbox_models", ())),
        hub_models=tuple(_hub_model(entry) for entry in variables.get("sandbox_hub_models", ())),
        packages=variables.get("sandbox_packages"),
        real_images=tuple(variables.get("sandbox_real_images", ())),
        tiny_models=variables.get("sandbox_tiny_models"),
        shares=tuple(_share(path) for path in variables.get("sandbox_shares", ())),
    )


def from_inventory(path: Path, cluster: str | None = None) -> Sandbox:
    """The sandbox of an inventory: its group `cluster`, or the only group under `clusters` that is a sandbox."""
    # Ansible's own reader, so that group_vars and host_vars mean here what they mean to the playbooks.
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.vars.manager import VariableManager

    if not path.exists():
        raise SandboxError(f"inventory {path} does not exist")
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(path)])
    manager = VariableManager(loader=loader, inventory=inventory)
    parent = inventory.groups.get("clusters")
    found: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {}
    for group in parent.child_groups if parent else ():
        hosts = {str(host.name): dict(manager.get_vars(host=host)) for host in group.get_hosts()}
        if hosts and any("sandbox_subnet" in variables for variables in hosts.values()):
            found[str(group.name)] = (next(iter(hosts.values())), hosts)
    if cluster is None and len(found) == 1:
        cluster = next(iter(found))
    if cluster not in found:
        names = ", ".join(found) or "none"
        wanted = f"{cluster} is no sandbox" if cluster else "name one with --cluster"
        raise SandboxError(f"{path}: sandbox clusters are: {names}; {wanted}")
    variables, hosts = found[cluster]
    # Each host's own variables have the group's in them already; what the first has for itself is not the others'.
    shared = {key: value for key, value in variables.items() if key not in PER_HOST}
    return from_variables(cluster, shared, hosts)
