"""The commands `sandbox/fault` and `sandbox/heal`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox.faults.control import FAULTS, Control, find
from sandbox.lib import engine, plan
from sandbox.lib.lifecycle import Cluster

CHECKOUT = Path(__file__).resolve().parents[2]


def _parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--inventory", "-i", type=Path, default=CHECKOUT / "inventories" / "sandbox")
    result.add_argument("--cluster", help="the group, when the inventory has several sandboxes")
    return result


def _control(arguments: argparse.Namespace) -> Control:
    sandbox = plan.from_inventory(arguments.inventory, arguments.cluster)
    return Control(Cluster(sandbox, CHECKOUT, engine.Engine(), print))


def _listed() -> list[dict[str, str]]:
    return [
        {"fault": f"{each.id}-{each.name}", "arguments": each.usage(), "summary": each.summary}
        for each in sorted(FAULTS.values(), key=lambda each: each.id)
    ]


def _show_list(as_json: bool) -> None:
    rows = _listed()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    width = max(len(row["fault"]) for row in rows)
    for row in rows:
        print(f"{row['fault']:<{width}}  {row['summary']}" + (f"  [{row['arguments']}]" if row["arguments"] else ""))


def _show_active(control: Control, node: str, as_json: bool) -> None:
    active = control.active(node)
    if as_json:
        print(json.dumps(active, indent=1))
        return
    for name, fault in active.items():
        print(f"{name}  ({fault['name']}, since {time.strftime('%H:%M:%S', time.localtime(fault['since']))})")
    if not active:
        print(f"{node} has no faults")


def _fault(words: Sequence[str] | None) -> int:
    parser = _parser("Brings a fault of the catalogue about on a sandbox node. See docs/sandbox_faults.md.")
    parser.add_argument("--list", action="store_true", help="show all faults with their arguments and defaults")
    parser.add_argument("--json", action="store_true", help="the same, or a node's faults, as JSON")
    parser.add_argument("node", nargs="?", help="alone: show the faults it has")
    parser.add_argument("fault", nargs="?", help="an id or a name: A11, A11-hbm-leftover, hbm-leftover")
    parser.add_argument("arguments", nargs="*", metavar="key=value")
    chosen = parser.parse_args(words)
    if chosen.list:
        _show_list(chosen.json)
        return 0
    if chosen.node is None:
        parser.error("name a node, or use --list")
    # An unknown name is refused before anything is asked of the node.
    fault = find(chosen.fault) if chosen.fault else None
    control = _control(chosen)
    if fault is None:
        _show_active(control, chosen.node, chosen.json)
        return 0
    name, changed, injection = control.inject(chosen.node, fault, chosen.arguments)
    print(f"{chosen.node}: {name} ({fault.name}) " + ("is there" if changed else "was there already"))
    look = injection.look
    if look.on == "engine":
        print(f"  it shows in the log of the next engine that starts there: {look.shows}")
    else:
        where = control.node(chosen.node).peer.name if look.on == "peer" else chosen.node
        print(f"  it shows on {where}: {look.command}")
    return 0


def _heal(words: Sequence[str] | None) -> int:
    parser = _parser("Heals a fault of a sandbox node, or all of them. See docs/sandbox_faults.md.")
    parser.add_argument("node")
    parser.add_argument("fault", nargs="?", help="an id or a name; without one, all faults of the node")
    chosen = parser.parse_args(words)
    fault = find(chosen.fault) if chosen.fault else None
    healed, notes = _control(chosen).heal(chosen.node, fault)
    for name in healed:
        print(f"{chosen.node}: {name} is healed")
    for note in notes:
        print(f"  {note}")
    if not healed:
        print(f"{chosen.node}: nothing to heal")
    return 0


def main(verb: str, words: Sequence[str] | None = None) -> int:
    """Runs `fault` or `heal` and returns the exit code; what the user has to change goes to stderr, with 1."""
    try:
        return {"fault": _fault, "heal": _heal}[verb](words)
    except plan.SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1
