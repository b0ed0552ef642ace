#!/usr/bin/env python3
"""Emulated lspci: the accelerators that the node's state says are on its bus, and none of the machine below.

Knows `-n`, `-nn`, `-D`, `-d [VENDOR]:[DEVICE]` and `-s ADDRESS`. A device that fell off the driver is still on the bus.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

sys.path.append("/usr/local/dcmi")

import node_state

# By vendor: number and name of the class, name of the vendor, revision.
VENDORS = {
    "19e5": ("1200", "Processing accelerators", "Huawei Technologies Co., Ltd.", "20"),
    "10de": ("0302", "3D controller", "NVIDIA Corporation", "a1"),
}


def fail(text: str) -> NoReturn:
    """Ends with a message."""
    sys.stderr.write(f"lspci: {text}\n")
    sys.exit(1)


def row(card: dict[str, Any], options: dict[str, str]) -> str:
    """One device as the options ask for it."""
    number, title, vendor, revision = VENDORS[card["vendor"]]
    address = card["bus_id"].lower()
    address = address if "-D" in options else address[5:]
    ids = f"{card['vendor']}:{card['device']}"
    if "-n" in options:
        return f"{address} {number}: {ids} (rev {revision})"
    if "-nn" in options:
        return f"{address} {title} [{number}]: {vendor} Device [{ids}] (rev {revision})"
    return f"{address} {title}: {vendor} Device {card['device']} (rev {revision})"


def chosen(card: dict[str, Any], options: dict[str, str]) -> bool:
    """Whether `-d` and `-s` leave a device."""
    vendor, _, device = options.get("-d", ":").lower().partition(":")
    address = card["bus_id"].lower()
    return (
        vendor in ("", card["vendor"])
        and device.split(":")[0] in ("", card["device"])
        and options.get("-s", address).lower() in (address, address[5:])
    )


def main(arguments: list[str]) -> int:
    """Runs one command line and returns the exit code."""
    options, words = {}, list(arguments)
    while words:
        word = words.pop(0)
        if word in ("-n", "-nn", "-D"):
            options[word] = ""
        elif word in ("-d", "-s"):
            if not words:
                fail(f"option requires an argument -- '{word[1:]}'")
            options[word] = words.pop(0)
        else:
            fail(f"the sandbox's lspci does not know {word}")
    for card in node_state.read()["pci"]:
        if chosen(card, options):
            print(row(card, options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
