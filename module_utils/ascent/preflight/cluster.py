"""What only shows between nodes: versions and settings that differ, names twice, clocks that are apart."""

from __future__ import annotations

__all__ = ["check", "clock_offsets"]

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ..errors import ParseError
from ..versions import sort_key
from . import hccn
from .common import SHOWN, Context, Facts, Findings, chips_are, error, images_of_engine, listed, part, warning

#: Vendors' devices that a kind is compared between; None for all hosts.
_Kind = Tuple[str, Optional[str], bool, Optional[str], Callable[[Facts], Any]]


def _os(node: Facts) -> Optional[str]:
    os = part(node, "system", "os")
    return f"{os['id']} {os.get('version') or ''}".strip() if os.get("id") else None


#: Name, vendor, whether a difference stops the run, who repairs it, and the value of a node.
_KINDS: Tuple[_Kind, ...] = (
    ("driver", "ascend", True, "driver", lambda node: part(node, "npu", "driver").get("version")),
    ("firmware", "ascend", True, "driver", lambda node: part(node, "npu", "firmware").get("version")),
    ("CANN", "ascend", True, "cann", lambda node: part(node, "npu", "cann").get("version")),
    ("driver", "nvidia", True, None, lambda node: part(node, "gpu").get("driver")),
    ("weights", None, True, "weights", lambda node: part(node, "weights").get("commit")),
    ("operating system", None, False, None, _os),
    ("kernel", None, False, None, lambda node: part(node, "system").get("kernel")),
    ("Python", None, False, None, lambda node: part(node, "system").get("python")),
    ("container engine", None, False, None, lambda node: part(node, "container_engine").get("version")),
)


def check(context: Context) -> Findings:
    """What stands against the nodes as a whole."""
    return [
        *_drift(context),
        *_image_drift(context),
        *_mtu(context),
        *_host_names(context),
        *_service_users(context),
        *hccn.duplicates(context),
        *_clocks(context.offsets, context.clock_skew_seconds),
    ]


# -- versions ----------------------------------------------------------------------------------------------------------


def _by_value(context: Context, hosts: List[str], value: Callable[[Facts], Any]) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for host in hosts:
        node = context.nodes.get(host)
        if node is not None and value(node) is not None:
            found.setdefault(str(value(node)), []).append(host)
    return found


def _order(version: str) -> Any:
    try:
        return (1, sort_key(version), "")
    except ParseError:
        return (0, (), version)


def _peers(context: Context, vendor: Optional[str]) -> Dict[str, List[str]]:
    """Hosts that are to be equal, by hardware; those that lend no devices to the plan stand by themselves."""
    groups: Dict[str, List[str]] = {}
    for host, planned in context.plan["hosts"].items():
        if vendor is None or chips_are(vendor, planned):
            groups.setdefault(planned["hardware"], []).append(host)
    return groups


def _odd(values: Mapping[str, List[str]]) -> Tuple[str, List[str]]:
    """The commonest value, of equally common ones the newest, and the hosts that have another."""
    common = max(sorted(values), key=lambda value: (len(values[value]), _order(value)))
    return common, [host for value, hosts in sorted(values.items()) if value != common for host in hosts]


def _drift(context: Context) -> Findings:
    """Versions that differ between nodes of one hardware; the rarer ones are named as those to change."""
    found = []
    for kind, vendor, stops, repair, value in _KINDS:
        for hosts in _peers(context, vendor).values():
            values = _by_value(context, hosts, value)
            if len(values) < 2:
                continue
            common, others = _odd(values)
            tell = error if stops else warning
            found.append(
                tell(
                    "B09",
                    others[0] if len(others) == 1 else None,
                    f"{kind} versions differ between nodes: {listed(others)} not at {common}",
                    "; ".join(f"{version}: {listed(names)}" for version, names in sorted(values.items())),
                    "An upgrade reached a part of the nodes only.",
                    f"Bring {listed(others)} to {kind} {common}.",
                    repair,
                )
            )
    return found


def _image_drift(context: Context) -> Findings:
    """Nodes on which one tag is another image: the engine's release differs without any name saying so."""
    found = []
    for reference in images_of_engine(context.plan):

        def identity(node: Facts, reference: str = reference) -> Optional[str]:
            image = part(node, "container_engine", "inspected").get(reference) or {}
            return f"{image['id'][:19]} ({image.get('architecture')})" if image.get("id") else None

        values = _by_value(context, list(context.plan["hosts"]), identity)
        architectures = {value.rpartition(" ")[2] for value in values}
        if len(values) > len(architectures):
            common, others = _odd(values)
            found.append(
                error(
                    "B09",
                    others[0] if len(others) == 1 else None,
                    f"image {reference} is another one on {listed(others)}",
                    "; ".join(f"{value}: {listed(names)}" for value, names in sorted(values.items())),
                    "The tag was moved between two pulls, or loaded from another archive.",
                    f"Bring {listed(others)} to {common}: pull the tag again.",
                    "images",
                )
            )
    return found


# -- network, names, users ---------------------------------------------------------------------------------------------


def _mtu(context: Context) -> Findings:
    """Packets of the largest size have to pass between the planned interfaces."""

    def mtu(host: str) -> Any:
        nic = context.plan["hosts"][host].get("nic")
        return (part(context.nodes.get(host), "network", "nics").get(nic) or {}).get("mtu")

    values: Dict[str, List[str]] = {}
    for host in context.plan["hosts"]:
        if mtu(host) is not None:
            values.setdefault(str(mtu(host)), []).append(host)
    if len(values) < 2:
        return []
    common, others = _odd(values)
    return [
        warning(
            "mtu-differs",
            others[0] if len(others) == 1 else None,
            f"the planned interface of {listed(others)} has another MTU than {common}",
            "; ".join(f"{value}: {listed(hosts)}" for value, hosts in sorted(values.items())),
            "Jumbo frames were switched on for a part of the nodes; large packets are lost between them.",
            f"ip link set NIC mtu {common}, and the same in the network's configuration.",
        )
    ]


def _host_names(context: Context) -> Findings:
    """Two hosts that call themselves the same: Ray, MPI and logs take them for one."""
    values = _by_value(context, list(context.plan["hosts"]), lambda node: part(node, "system").get("hostname"))
    return [
        warning(
            "D10",
            None,
            f"{listed(hosts)} all call themselves {name}",
            "hostname of each",
            "The hosts were made from one image, and nobody gave them names.",
            "hostnamectl set-hostname NAME on each of them.",
        )
        for name, hosts in sorted(values.items())
        if len(hosts) > 1
    ]


def _service_users(context: Context) -> Findings:
    """The owner of the devices has to have the same ids everywhere: shared directories and images know one."""

    def ids(node: Facts) -> Optional[str]:
        user = part(node, "npu").get("user")
        if not user or user["uid"] is None:
            return None
        return f"{user['name']} {user['uid']}:{user['group_gid'] if user['group_gid'] is not None else user['gid']}"

    hosts = [host for hosts in _peers(context, "ascend").values() for host in hosts]
    values = _by_value(context, hosts, ids)
    if len(values) < 2:
        return []
    common, others = _odd(values)
    return [
        warning(
            "user-ids-differ",
            others[0] if len(others) == 1 else None,
            f"user and group of the devices have other ids on {listed(others)} than {common}",
            "; ".join(f"{value}: {listed(names)}" for value, names in sorted(values.items())),
            "The accounts were made by hand, with the next free id of each host.",
            "usermod -u UID and groupmod -g GID with the ids of the other nodes, then reinstall the driver.",
        )
    ]


# -- clocks ------------------------------------------------------------------------------------------------------------


def clock_offsets(samples: Mapping[str, Mapping[str, float]]) -> Dict[str, Dict[str, float]]:
    """``{host: {"offset", "uncertainty"}}`` in seconds from ``{host: {"before", "after", "first", "last"}}``.

    ``before`` and ``after`` are the controller's clock around a reading, ``first`` and ``last`` the host's at its
    beginning and end: the offset lies between ``last - after`` and ``first - before``, however long the reading took.
    """
    return {
        host: {
            "offset": (one["first"] - one["before"] + one["last"] - one["after"]) / 2,
            "uncertainty": max(0.0, (one["after"] - one["before"] - (one["last"] - one["first"])) / 2),
        }
        for host, one in samples.items()
    }


def _clocks(offsets: Optional[Mapping[str, Mapping[str, float]]], limit: float) -> Findings:
    """The two clocks furthest apart, if they are so for sure."""
    if not offsets or len(offsets) < 2:
        return []
    # What a slow connection adds must not look like a wrong clock: an offset counts from its near end.
    late = max(offsets, key=lambda host: offsets[host]["offset"] - offsets[host]["uncertainty"])
    early = min(offsets, key=lambda host: offsets[host]["offset"] + offsets[host]["uncertainty"])
    low = offsets[early]["offset"] + offsets[early]["uncertainty"]
    skew = offsets[late]["offset"] - offsets[late]["uncertainty"] - low
    if skew <= limit:
        return []
    return [
        warning(
            "D24",
            None,
            f"clocks of {late} and {early} are at least {skew:.1f} s apart",
            "; ".join(f"{host}: {one['offset']:+.2f} s" for host, one in sorted(offsets.items())[:SHOWN]),
            "No time service runs on one of them.",
            "Enable chrony on all nodes with the same server: logs, certificates and tokens go by the clock.",
            "time_service",
        )
    ]
