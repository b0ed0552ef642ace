"""Family B: versions, images, packages."""

from __future__ import annotations

from sandbox.faults.model import Injection, Look, Node, fault, rule, tcp_probe


@fault("B10", "image-missing-offline")
def image_missing_offline(node: Node, port: int = 5000) -> Injection:
    """The registry can't be reached from the node."""
    site = node.sandbox.services
    match = ("-p", "tcp", "-d", site, "--dport", str(port), "-j", "REJECT", "--reject-with", "icmp-host-unreachable")
    return Injection([rule("OUTPUT", *match)], Look(tcp_probe(site, port), "No route to host"))
