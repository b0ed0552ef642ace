#!/usr/bin/env python3
"""Boots a cluster of servers with emulated accelerators on this machine, from an inventory. See docs/sandbox.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from sandbox.lib import engine, packages, plan  # noqa: E402 -- the path has to be set first
from sandbox.lib.images import Builder  # noqa: E402
from sandbox.lib.lifecycle import Cluster  # noqa: E402
from sandbox.real import image as real_image  # noqa: E402

STARTED = time.monotonic()


def say(text: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def table(rows: list[dict[str, object]]) -> str:
    """Rows of the same keys as aligned columns with a header."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--inventory", "-i", type=Path, default=CHECKOUT / "inventories" / "sandbox")
    common.add_argument("--cluster", help="the group, when the inventory has several sandboxes")
    result = argparse.ArgumentParser(description=__doc__)
    verbs = result.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("up", parents=[common], help="boot the sandbox, or repair what is missing of it")
    verbs.add_parser("down", parents=[common], help="remove the sandbox; images stay cached")
    status = verbs.add_parser("status", parents=[common], help="show the nodes; exit 0 when all are up, 1 when not")
    status.add_argument("--json", action="store_true", help="the same as JSON")
    shell = verbs.add_parser("shell", parents=[common], help="open a shell on a node, or run a command there")
    shell.add_argument("node")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    for verb, text in (("power-off", "take a node's power away"), ("power-on", "give it back and wait for the node")):
        power = verbs.add_parser(verb, parents=[common], help=text)
        power.add_argument("node")
    packing = verbs.add_parser("packages", parents=[common], help="write driver, firmware and CANN packages")
    packing.add_argument("directory", type=Path)
    packing.add_argument("--arch", default=platform.machine(), help="the processor in their names")
    packing.add_argument("--driver", nargs="*", default=packages.DRIVERS, metavar="VERSION")
    packing.add_argument("--firmware", nargs="*", default=packages.FIRMWARES, metavar="VERSION")
    packing.add_argument("--cann", nargs="*", default=packages.CANNS, metavar="VERSION")
    packing.add_argument("--without-hccl-test", action="store_true", help="no test programs; nothing is compiled")
    building = verbs.add_parser("build", help="build the images and start nothing")
    building.add_argument("--os", nargs="*", choices=plan.SUITES, default=[plan.DEFAULT_SUITE], help="Debian releases")
    building.add_argument("--real", action="store_true", help="the image of the real engine too")
    return result


@contextlib.contextmanager
def builder() -> Iterator[Builder]:
    """A builder of images on the daemon, which runs only for that unless a sandbox is up."""
    docker = engine.Engine()
    with engine.exclusive(say):
        started = docker.start()
        try:
            if started:
                docker.remove()
            yield Builder(docker, say)
        finally:
            if started:
                docker.stop()


def build(suites: list[str], real: bool) -> int:
    """Builds all images, and where it is wanted that of the real engine."""
    with builder() as images:
        made = images.build(suites)
        if real:
            made = replace(made, real=real_image.build(images.engine, say, made.base))
        print("\n".join(made.names()))
    return 0


def pack(arguments: argparse.Namespace) -> int:
    """Writes the packages that the servers of an inventory take."""
    sandbox = plan.from_inventory(arguments.inventory, arguments.cluster)
    programs: dict[str, bytes] = {}
    if not arguments.without_hccl_test:
        with builder() as images:
            programs = images.hccl_test({node.suite for node in sandbox.nodes})
    made = packages.for_profiles(
        [plan.load_profile(node.profile["name"]) for node in sandbox.nodes],
        arch=arguments.arch,
        drivers=arguments.driver,
        firmwares=arguments.firmware,
        canns=arguments.cann,
        test_programs=programs,
    )
    for path in packages.write(made, arguments.directory, say):
        print(path)
    return 0


def main() -> int:
    """Runs one verb and returns the exit code."""
    arguments = parser().parse_args()
    if arguments.verb == "build":
        return build(arguments.os, arguments.real)
    if arguments.verb == "packages":
        return pack(arguments)
    sandbox = plan.from_inventory(arguments.inventory, arguments.cluster)
    cluster = Cluster(sandbox, CHECKOUT, engine.Engine(), say)
    if arguments.verb == "up":
        with engine.exclusive(say):
            cluster.up()
    elif arguments.verb == "down":
        with engine.exclusive(say):
            cluster.down()
    elif arguments.verb in ("power-off", "power-on"):
        act = cluster.power_off if arguments.verb == "power-off" else cluster.power_on
        act(cluster.node(arguments.node))
    elif arguments.verb == "shell":
        node = cluster.node(arguments.node)
        command = cluster.ssh(node, *arguments.command, options=() if arguments.command else ("-t",))
        os.execvp(command[0], command)  # noqa: S606 -- becomes ssh
    else:
        rows = cluster.status()
        up = all(row["state"] == "running" and row["ssh"] for row in rows)
        print(json.dumps({"name": sandbox.name, "up": up, "nodes": rows}, indent=1) if arguments.json else table(rows))
        return 0 if up else 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except plan.SandboxError as error:
        sys.exit(f"sandbox: {error}")
    except KeyboardInterrupt:
        sys.exit("sandbox: interrupted; `up` goes on from here, `down` removes what there is")
