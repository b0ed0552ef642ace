"""What a fault is: an id of the catalogue, its arguments, the changes it makes on a node, and where it shows.

A fault is a function from a node and the fault's arguments to an `Injection`; its first line of documentation is what
`sandbox/fault --list` says of it, its parameters are the arguments of the command line:

    @fault("C09", "net-unhealthy")
    def net_unhealthy(node: Node, device: int = 0, status: str = "Fault") -> Injection:
        \"\"\"A port's network check fails.\"\"\"
        return Injection([node.set(device, "roce", "net_health", to=status)],
                         Look(f"hccn_tool -i {device} -net_health -g", f"net health status: {status}"))
"""

from __future__ import annotations

import difflib
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.faults import programs
from sandbox.lib.plan import Node as PlannedNode
from sandbox.lib.plan import Sandbox, SandboxError, roce_address, vnic_address

STATE = "/usr/local/dcmi/state.json"
HCCN_CONF = "/etc/hccn.conf"
HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
DRIVER_INFO = "/usr/local/Ascend/driver/version.info"
FIRMWARE_INFO = "/usr/local/Ascend/firmware/version.info"
INSTALL_INFO = "/etc/ascend_install.info"

Change = dict[str, Any]


class FaultError(SandboxError):
    """The fault can't be brought about as asked; the message says what to ask instead."""


@dataclass(frozen=True)
class Look:
    """Where a fault shows: a shell command of an operator's, and a regex over what it prints (both streams).

    `shows` None: the output merely differs from what it was. `on`: `node`, a `peer` of it, or the `engine`'s log, in
    which case the command is the simulator's process to start.
    """

    command: str
    shows: str | None
    on: str = "node"


@dataclass(frozen=True)
class Injection:
    """The changes of one fault with its arguments filled in, and where they show."""

    changes: Sequence[Change]
    look: Look


@dataclass(frozen=True)
class Node:
    """A node as its faults are written against it."""

    planned: PlannedNode
    sandbox: Sandbox
    facts: Mapping[str, Any]

    @property
    def state(self) -> Mapping[str, Any]:
        """The node's state file as it is now."""
        return self.facts["state"]

    @property
    def peer(self) -> PlannedNode:
        """The sandbox's next node after this one."""
        nodes = self.sandbox.nodes
        if len(nodes) < 2:
            raise FaultError(f"{self.planned.name} is the sandbox's only node; this fault needs a second one")
        return nodes[(nodes.index(self.planned) + 1) % len(nodes)]

    def node(self, name: str) -> PlannedNode:
        """Another node by name; the next one for an empty name."""
        if not name:
            return self.peer
        for each in self.sandbox.nodes:
            if each.name == name:
                return each
        raise FaultError(f"no node {name}; there are {', '.join(each.name for each in self.sandbox.nodes)}")

    def device(self, number: int) -> Mapping[str, Any]:
        """The state of a device by physical id."""
        for device in self.state["devices"]:
            if device["phy_id"] == number:
                return device
        known = ", ".join(str(device["phy_id"]) for device in self.state["devices"]) or "none"
        raise FaultError(f"{self.planned.name} has no device {number}; its devices are {known}")

    def chip(self, number: int) -> str:
        """How `npu-smi` is told of a device: `-i NPU -c CHIP`."""
        device = self.device(number)
        return f"-i {device['npu_id']} -c {device['chip_id']}"

    def set(self, number: int, *at: str, to: Any, moving: bool = False) -> Change:
        """A change of one device's state."""
        value: Any = self.device(number)
        for step in at:
            if not isinstance(value, Mapping) or step not in value:
                raise FaultError(
                    f"device {number} of {self.planned.name} ({self.state['profile']}) has no {'.'.join(at)}"
                )
            value = value[step]
        return json_change(STATE, ["devices", {"phy_id": number}, *at], to) | {"moving": moving}

    def set_node(self, *at: str, to: Any) -> Change:
        """A change of the node's own state: of a value that is there, or a new key of an object."""
        value: Any = self.state
        for step in at[:-1]:
            value = value.get(step) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or (at[-1] not in value and not at[-1].isdigit()):
            raise FaultError(f"the state of {self.planned.name} ({self.state['profile']}) has no {'.'.join(at)}")
        return json_change(STATE, list(at), to)

    def roce_of(self, node: PlannedNode, number: int) -> str:
        """The address a device of any node was given at the start."""
        return roce_address(self.sandbox.subnet, node.index, number)

    def vnic_of(self, node: PlannedNode, number: int) -> str:
        """The super pod address a device of any node was given at the start."""
        return vnic_address(self.sandbox.subnet, node.index, number)

    def model(self) -> str:
        """The directory of the first model that lies on the node."""
        if not self.facts["models"]:
            raise FaultError(f"{self.planned.name} has no weights; give the inventory sandbox_models")
        return str(self.facts["models"][0])


# -- changes ----------------------------------------------------------------------------------------------------------


def json_change(path: str, at: list[Any], value: Any) -> Change:
    """A value in a JSON file."""
    return {"kind": "json", "file": path, "at": at, "value": value}


def file_change(path: str, **edit: Any) -> Change:
    """A file: absent=True, text=, bytes= (base64), append=, sub=[regex, by], keep=share, flip=offset, mode=."""
    return {"kind": "file", "path": path, **edit}


def rule(chain: str, *match: str) -> Change:
    """A packet filter rule before all others."""
    return {"kind": "rule", "chain": chain, "match": list(match)}


def process(unit: str, program: str, *arguments: object) -> Change:
    """One of `programs`, as a unit of its own."""
    return {"kind": "process", "unit": unit, "argv": ["/usr/bin/python3", "-c", program, *map(str, arguments)]}


def listener(port: int, name: str) -> Change:
    """A process called `name` that holds a TCP port of all addresses."""
    return process(f"leftover-{port}", programs.LISTEN, name[:15], port)


def small_disk(path: str, mb: int) -> Change:
    """A directory with only so many MB left."""
    return {"kind": "disk", "path": path, "mb": mb}


def container(name: str, script: str, *how: str) -> Change:
    """A container of a tiny image that runs a shell script; `how` is docker's verb and options."""
    return {"kind": "container", "name": name, "script": script, "how": list(how)}


def tcp_probe(address: str, port: int) -> str:
    """A shell command that says how a TCP connection goes: `connected`, or the error's words."""
    return (
        f"timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port} && echo connected' 2>&1; "
        'test $? -ne 124 || echo "timed out"'
    )


# -- the register -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One fault of the register."""

    id: str
    name: str
    summary: str
    parameters: Mapping[str, inspect.Parameter]
    types: Mapping[str, Any]
    function: Callable[..., Injection]

    def usage(self) -> str:
        """The arguments with their defaults: `device=0 code=80E01801`."""
        return " ".join(f"{name}={parameter.default}" for name, parameter in self.parameters.items())

    def arguments(self, given: Iterable[str]) -> dict[str, Any]:
        """`key=value` words as typed arguments, defaults filled in. Raises FaultError with what the fault takes."""
        result: dict[str, Any] = {name: parameter.default for name, parameter in self.parameters.items()}
        for word in given:
            key, separator, text = word.partition("=")
            if not separator or key not in self.parameters:
                takes = self.usage() or "no arguments"
                raise FaultError(f"{self.id} {self.name} does not take {word!r}; it takes {takes}")
            kind = self.types[key]
            allowed = typing.get_args(kind)
            try:
                value = int(text) if kind is int else text
            except ValueError:
                raise FaultError(f"{self.id} {self.name}: {key} is a whole number, not {text!r}") from None
            if allowed and value not in allowed:
                raise FaultError(f"{self.id} {self.name}: {key} is one of {', '.join(allowed)}, not {text!r}")
            result[key] = value
        return result

    def on(self, node: Node, arguments: Mapping[str, Any]) -> Injection:
        """The fault on one node."""
        return self.function(node, **arguments)


FAULTS: dict[str, Fault] = {}


def fault(id: str, name: str) -> Callable[[Callable[..., Injection]], Callable[..., Injection]]:
    """Registers a function as the fault `id` of the catalogue."""

    def register(function: Callable[..., Injection]) -> Callable[..., Injection]:
        if id in FAULTS:
            raise ValueError(f"fault {id} is defined twice")
        parameters = dict(list(inspect.signature(function).parameters.items())[1:])
        summary = (inspect.getdoc(function) or "").splitlines()[0].rstrip(".")
        FAULTS[id] = Fault(id, name, summary, parameters, typing.get_type_hints(function), function)
        return function

    return register


def find(text: str) -> Fault:
    """A fault by id, or by id and name (`A11-hbm-leftover`), or by name. Raises FaultError with the nearest names."""
    wanted = text.strip().lower()
    for each in FAULTS.values():
        if wanted in (each.id.lower(), each.name, f"{each.id}-{each.name}".lower()):
            return each
    names = [
        name for each in FAULTS.values() for name in (each.id.lower(), f"{each.id}-{each.name}".lower(), each.name)
    ]
    near = []
    for name in difflib.get_close_matches(wanted, names, n=6, cutoff=0.5):
        match = next(
            each for each in FAULTS.values() if name in (each.id.lower(), each.name) or name.endswith(each.name)
        )
        if f"{match.id}-{match.name}" not in near:
            near.append(f"{match.id}-{match.name}")
    hint = f"the nearest are {', '.join(near[:3])}" if near else "sandbox/fault --list shows all"
    raise FaultError(f"no fault {text!r}; {hint}")


def key(fault: Fault, arguments: Mapping[str, Any]) -> str:
    """What a fault with its arguments is called on a node: `C10 device=3`."""
    return " ".join([fault.id, *(f"{name}={value}" for name, value in sorted(arguments.items()))])


def as_request(fault: Fault, arguments: Mapping[str, Any], injection: Injection) -> str:
    """The agent's request that brings the fault about."""
    told = {"id": fault.id, "name": fault.name, "arguments": dict(arguments)}
    return json.dumps({"do": "inject", "key": key(fault, arguments), "fault": told, "changes": list(injection.changes)})
