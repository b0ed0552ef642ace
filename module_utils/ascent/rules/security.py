"""Secrets and open doors: what has no place in a recipe, and who may reach an engine past its router."""

from __future__ import annotations

__all__ = ["CHECKS"]

import re
from typing import Any, Dict, Iterator, Mapping, Set, Tuple

from ..mistakes import mistake
from ..spelling import option_name
from .registry import Context, Mistake, Rule, check

#: Options of engines and clients that take a secret.
SECRET_OPTIONS = frozenset(("api-key", "hf-token", "token"))
_SECRET_NAME = re.compile(
    r"(?:\A|_)(?:TOKEN|API_?KEY|PASSWORD|PASSWD|SECRET|SECRET_KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)\Z", re.IGNORECASE
)
#: Addresses that mean all of a host's.
EVERYWHERE = frozenset(("0.0.0.0", "::", "[::]", "*"))  # noqa: S104 - found, not bound


def _given(recipe: Mapping[str, Any]) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Key paths and values of all parts of a recipe that hold ``args`` or ``env``."""
    yield "", recipe
    for section in ("pools", "services", "jobs"):
        for name, part in (recipe.get(section) or {}).items():
            yield f"{section}.{name}.", part or {}
            for number, override in enumerate((part or {}).get("overrides") or []):
                yield f"{section}.{name}.overrides.{number}.", override or {}
    for section in ("router", "kv_store"):
        yield f"{section}.", recipe.get(section) or {}


@check(
    Rule(
        "secret-in-recipe",
        "error",
        "recipes hold no keys, tokens or passwords",
        "a recipe is shared and kept: what it holds stands in plans, scripts, reports and process lists",
        "Ascent, docs/security.md",
        waivable=False,
    )
)
def no_secrets(context: Context) -> Iterator[Mistake]:
    for place, part in _given(context.recipe):
        for key in part.get("args") or {}:
            if option_name(str(key)) in SECRET_OPTIONS and not isinstance((part["args"])[key], Mapping):
                yield _secret(f"{place}args.{key}", f"option {key}")
        for name, value in (part.get("env") or {}).items():
            if value is not None and _SECRET_NAME.search(str(name)):
                yield _secret(f"{place}env.{name}", f"variable {name}")


def _secret(path: str, what: str) -> Mistake:
    # The value itself is not told: findings are shown and kept.
    return mistake(
        "secret-in-recipe",
        f"{what} carries a secret",
        key=f"recipe:{path}",
        value="***",
        allowed="nothing; keys belong into the inventory, encrypted by ansible-vault",
        fix="remove it; set ascent_api_key for the API, weights_token for a hub, in the inventory",
    )


@check(
    Rule(
        "engine-open",
        "warning",
        "engines behind a router listen at their node's address on the cluster's network only",
        "whoever reaches any other address of the node asks the engine past the router",
        "vLLM documentation, Security: network exposure",
        scope="layouts with a router, host network",
    ),
    Rule(
        "bind-contradicts",
        "error",
        "security.bind and an engine's own host option agree",
        "one of the two would be ignored",
        "Ascent",
        waivable=False,
    ),
)
def engines_bound(context: Context) -> Iterator[Mistake]:
    bind = (context.recipe.get("security") or {}).get("bind")
    routed = (context.recipe.get("router") or {}).get("kind", "none") != "none"
    told: Set[str] = set()
    for variant in context.variants:
        typed = variant.args.get("host")
        key = variant.key("host") if typed is not None else "recipe:security.bind"
        container: Dict[str, Any] = {**(context.recipe.get("container") or {}), **(variant.pool.get("container") or {})}
        if key in told or container.get("network") == "bridge":
            continue
        if bind and typed is not None and (bind == "any") != (str(typed) in EVERYWHERE):
            told.add(key)
            yield mistake(
                "bind-contradicts",
                f"security.bind is {bind}, and host is {typed}",
                key=key,
                value=typed,
                allowed="left out" if bind == "node" else "0.0.0.0, or left out",
                fix="remove host from args: security.bind says it for all engines",
            )
        elif routed and (bind == "any" or (typed is not None and str(typed) in EVERYWHERE)):
            told.add(key)
            yield mistake(
                "engine-open",
                f"engines of pool {variant.name} listen at all addresses of their nodes, behind a router",
                key=key,
                value=bind if typed is None else typed,
                allowed="left out, which is the node's own address; or security: {bind: node}",
                fix="remove host from args, and set security.bind: node",
                severity="warning",
            )


CHECKS = (no_secrets, engines_bound)
