"""Role variables checked once, on the controller, before any host is touched.

Ansible's own check of a role's argument specification is a task per role and host. Here all roles and all hosts are
checked in one pass over what inventory and command line set, and a name that no role knows is found as well.
"""

from __future__ import annotations

__all__ = ["check", "load"]

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ascent.findings import finding

Options = Mapping[str, Mapping[str, Any]]


def load(roles: Path) -> dict[str, Options]:
    """Role name to the options that an inventory may set, from every ``meta/argument_specs.yml`` under ``roles``.

    Those of ``main``, and those of other entry points that have a default: what is required there, the caller gives.
    """
    found: dict[str, Options] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        options = dict(specs.pop("main").get("options") or {})
        for other in specs.values():
            options.update({name: one for name, one in (other.get("options") or {}).items() if "default" in one})
        found[path.parts[-3]] = options
    return found


def check(roles: Mapping[str, Options], variables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings for values of the wrong type or choice and for misspelt names.

    ``variables`` maps each host to what inventory and command line set for it. A mistake in a group is one
    finding, with all its hosts in the evidence.
    """
    mistakes: dict[tuple[str, str, str, str], list[str]] = {}
    for host, values in variables.items():
        for name in values:
            role = max((role for role in roles if name.startswith(f"{role}_")), key=len, default=None)
            if role is None:
                continue
            try:
                value = values[name]
            except AnsibleUndefinedVariable:
                # A value made of facts can only be told once there are facts; the role's module then checks it.
                continue
            for mistake in _mistakes(role, roles[role], name, value):
                mistakes.setdefault((name, repr(value), *mistake), []).append(host)
    return [
        finding(
            "role-argument",
            "error",
            f"{name}: {problem}",
            host=hosts[0] if len(hosts) == 1 else None,
            stage="plan",
            evidence=f"{name}: {value} on {', '.join(hosts)}",
            cause="The value does not fit what the role declares in its meta/argument_specs.yml.",
            fix=fix,
        )
        for (name, value, problem, fix), hosts in mistakes.items()
    ]


def _mistakes(role: str, options: Options, name: str, value: Any) -> list[tuple[str, str]]:
    """(problem, fix) pairs for one variable that belongs to ``role`` by its prefix."""
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(options)) or 'none'}"
        return [(f"role {role} has no such variable", f"Correct the name in the inventory; {hint}")]
    result = ArgumentSpecValidator({name: dict(options[name])}).validate({name: value})
    return [(message, f"Correct the value of {name}; see roles/{role}/README.md.") for message in result.error_messages]
