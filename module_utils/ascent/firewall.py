"""Openings in a host's packet filter: what the plan needs, what is open already, and the commands for the difference.

Two managers are driven, each by its own program: ufw and firewalld. Rules of ours are told apart by a comment (ufw) or
by what an earlier run noted (firewalld has no comments). A filter without a manager is only reported: a rule that we
added to it would be lost, or stand before the site's own, at the next load of the site's file.
"""

from __future__ import annotations

__all__ = ["COMMENT", "apart", "check", "covering", "manager", "openings", "steps", "text"]

import contextlib
import ipaddress
import re
import shlex
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .errors import ToolError
from .files import Tree

COMMENT = "ascent:host_tuning"
#: iptables' multiport, which ufw uses, takes this many ports a rule; a range counts as two.
_MULTIPORT = 15

Runner = Callable[[Sequence[str]], Tuple[int, str, str]]
#: (network, ports): the network as CIDR, the ports as ``8000`` or ``8000-8010``, one or a range.
Opening = Tuple[str, str]


def covering(addresses: Iterable[str]) -> List[str]:
    """Addresses and networks as the fewest networks that hold exactly them. What `check` refuses is a ValueError.

    >>> covering(["192.0.2.10", "192.0.2.11", "192.0.2.20", "198.51.100.0/24"])
    ['192.0.2.10/31', '192.0.2.20/32', '198.51.100.0/24']
    """
    found = [ipaddress.ip_network(address) for address in addresses]
    merged: List[str] = []
    for version in (4, 6):
        networks: List[Any] = [network for network in found if network.version == version]
        merged += [str(network) for network in ipaddress.collapse_addresses(networks)]
    return merged


def check(networks: Iterable[str]) -> List[str]:
    """What is wrong with networks, in words."""
    wrong = []
    for network in networks:
        with contextlib.suppress(ValueError):
            ipaddress.ip_network(network)
            continue
        wrong.append(f"{network!r} is neither an address nor a network such as 192.0.2.0/24")
    return wrong


def openings(sources: Iterable[str], ports: Iterable[str]) -> Set[Opening]:
    """Every network of ``sources`` to every port or range of ``ports``."""
    networks = covering(sources)
    return {(network, port) for network in networks for port in ports}


def text(opening: Opening) -> str:
    """An opening in words, as diffs show it."""
    return f"tcp {opening[1]} from {opening[0]}"


def manager(tree: Tree, runs: Callable[[str], bool]) -> Optional[str]:
    """``ufw`` or ``firewalld`` where it filters now; ``runs`` tells whether a systemd service has processes."""
    if re.search(r"^\s*ENABLED\s*=\s*[\"']?yes", tree.read("/etc/ufw/ufw.conf") or "", re.M | re.I):
        return "ufw"
    return "firewalld" if runs("firewalld") else None


def steps(
    which: str, wanted: Set[Opening], noted: Mapping[str, Any], nic: str, run: Runner
) -> Tuple[List[Dict[str, Any]], Dict[str, Any], Set[Opening]]:
    """``(commands, note, opened)``: what to run for exactly ``wanted`` to be open, what to note, and what is new.

    ``noted`` is the note of the last run. Each command is ``{"argv", "before", "after"}``, the last two as lines of a
    diff. ToolError when the manager does not answer.
    """
    if which == "ufw":
        return _ufw(wanted, run)
    return _firewalld(wanted, noted, nic, run)


# -- ufw ---------------------------------------------------------------------------------------------------------------


def _ufw(wanted: Set[Opening], run: Runner) -> Tuple[List[Dict[str, Any]], Dict[str, Any], Set[Opening]]:
    present = _ufw_present(_answer(run, ["ufw", "show", "added"]))
    rules = {(network, group) for network in {one for one, _ in wanted} for group in _groups(wanted, network)}
    commands = []
    for network, ports in sorted(present - rules):
        argv = ["ufw", "--force", "delete", "allow", *_ufw_rule(network, ports)]
        commands.append({"argv": argv, "before": f"ufw: tcp {ports} from {network}", "after": ""})
    for network, ports in sorted(rules - present):
        argv = ["ufw", "allow", *_ufw_rule(network, ports), "comment", COMMENT]
        commands.append({"argv": argv, "before": "", "after": f"ufw: tcp {ports} from {network}"})
    return commands, {"manager": "ufw"} if rules else {}, set(rules - present)


def _ufw_rule(network: str, ports: str) -> List[str]:
    return ["proto", "tcp", "from", network, "to", "any", "port", ports]


def _groups(wanted: Set[Opening], network: str) -> List[str]:
    """The ports of a network in ufw's spelling, as many a rule as it takes."""
    ports = sorted((port for one, port in wanted if one == network), key=lambda port: int(port.partition("-")[0]))
    groups: List[List[str]] = [[]]
    room = _MULTIPORT
    for port in ports:
        size = 2 if "-" in port else 1
        if size > room:
            groups.append([])
            room = _MULTIPORT
        groups[-1].append(port.replace("-", ":"))
        room -= size
    return [",".join(group) for group in groups if group]


def _ufw_present(shown: str) -> Set[Opening]:
    """Our rules in the answer of ``ufw show added``, which prints them as commands."""
    found = set()
    for line in shown.splitlines():
        if COMMENT not in line:
            continue
        words = shlex.split(line)
        values = dict(zip(words, words[1:]))
        if "from" in values and "port" in values:
            # ufw drops the prefix of a single address.
            network = str(ipaddress.ip_network(values["from"]))
            found.add((network, values["port"]))
    return found


# -- firewalld ---------------------------------------------------------------------------------------------------------


def _firewalld(
    wanted: Set[Opening], noted: Mapping[str, Any], nic: str, run: Runner
) -> Tuple[List[Dict[str, Any]], Dict[str, Any], Set[Opening]]:
    zone = _zone(nic, run)
    rules = {_rich(opening): opening for opening in wanted}
    commands: List[Dict[str, Any]] = []
    old_zone = str(noted.get("zone") or zone)
    ours = [str(rule) for rule in noted.get("rules") or ()]
    opened: Set[Opening] = set()
    # Permanent and live rules are two lists; a reload would bring them together, and drop what others set live only.
    for options in ([], ["--permanent"]):
        places = {place: _rules(place, options, run) for place in sorted({zone, old_zone})}
        stale = [rule for rule in ours if rule in places[old_zone] and (rule not in rules or old_zone != zone)]
        missing = [rule for rule in sorted(rules) if rule not in places[zone]]
        opened |= {rules[rule] for rule in missing}
        for verb, place, changed in (("--remove-rich-rule", old_zone, stale), ("--add-rich-rule", zone, missing)):
            if changed:
                told = "\n".join(f"firewalld {' '.join([*options, place])}: {rule}" for rule in changed)
                argv = ["firewall-cmd", *options, f"--zone={place}", *(f"{verb}={rule}" for rule in changed)]
                commands.append(
                    {"argv": argv, "before": told if verb[2] == "r" else "", "after": told if verb[2] == "a" else ""}
                )
    note = {"manager": "firewalld", "zone": zone, "rules": sorted(rules)} if rules else {}
    return commands, note, opened


def _zone(nic: str, run: Runner) -> str:
    if nic:
        code, out, _ = run(["firewall-cmd", f"--get-zone-of-interface={nic}"])
        if code == 0 and out.strip():
            return out.strip()
    return _answer(run, ["firewall-cmd", "--get-default-zone"]).strip()


def _rules(zone: str, options: Sequence[str], run: Runner) -> Set[str]:
    argv = ["firewall-cmd", *options, f"--zone={zone}", "--list-rich-rules"]
    return {line.strip() for line in _answer(run, argv).splitlines() if line.strip()}


def _rich(opening: Opening) -> str:
    """The rule in the order and quotes in which firewalld lists it, so that texts compare."""
    network, ports = opening
    family = f"ipv{ipaddress.ip_network(network).version}"
    single = network.removesuffix("/32").removesuffix("/128")
    return f'rule family="{family}" source address="{single}" port port="{ports}" protocol="tcp" accept'


# -- filters without a manager -----------------------------------------------------------------------------------------


def apart(run: Runner) -> Optional[str]:
    """A line that shows that incoming packets are filtered by rules no manager owns; None where none are."""
    code, out, _ = run(["nft", "list", "ruleset"])
    if code == 0:
        return _nft_filters(out)
    code, out, _ = run(["iptables", "-S", "INPUT"])
    found = re.search(r"^-P INPUT (?:DROP|REJECT)|^-A INPUT .*-j (?:DROP|REJECT).*$", out, re.M) if code == 0 else None
    return f"iptables: {found.group(0)}" if found else None


def _nft_filters(ruleset: str) -> Optional[str]:
    """The first line of a chain for incoming packets that ends any but invalid ones."""
    chain, incoming = "", False
    for line in (line.strip() for line in ruleset.splitlines()):
        if line.startswith("chain "):
            chain, incoming = line.split()[1], False
        elif re.search(r"\bhook input\b", line):
            incoming = True
        if incoming and re.search(r"\b(?:drop|reject)\b", line) and "invalid" not in line:
            return f"nft: chain {chain}: {line}"
    return None


def _answer(run: Runner, argv: Sequence[str]) -> str:
    code, out, err = run(argv)
    if code:
        raise ToolError(argv[0], f"{' '.join(argv[1:])} ended with {code}: {(err or out).strip()}", code)
    return out
