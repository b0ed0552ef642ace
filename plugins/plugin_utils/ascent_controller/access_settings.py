"""What the inventory says of API keys and TLS (docs/security.md), whether it can work, and the texts that follow."""

from __future__ import annotations

__all__ = ["MODES", "Settings", "judge", "material", "read"]

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ascent import access
from ascent.findings import finding
from ascent_controller import certificates

#: Values of ``ascent_tls``: no TLS, the operator's certificate, or one by an authority made for the cluster.
MODES = ("off", "own", "made")

#: Days before its end from which a certificate is told.
WARN_DAYS = 30

_STAGE = "plan"


class Templar(Protocol):
    """What Ansible's templar does here."""

    def template(self, value: Any) -> Any:
        """The value with its templates filled in."""


class Loader(Protocol):
    """What Ansible's data loader does here: it opens files that ansible-vault has encrypted, too."""

    def get_text_file_contents(self, path: str) -> str:
        """The text of a file."""


@dataclass(frozen=True)
class Settings:
    """The site's variables ``ascent_api_keys``, ``ascent_engine_key`` and ``ascent_tls*``."""

    client_keys: tuple[str, ...] = ()
    engine_key: str = ""
    tls: str = "off"
    certificate: str = ""
    private_key: str = ""
    name: str = ""
    names: tuple[str, ...] = ()
    directory: str = ""
    image: str = ""
    root: str = "/etc/ascent"

    def __repr__(self) -> str:
        """Without the keys: an object may end up in a traceback."""
        return f"Settings(tls={self.tls!r}, {len(self.client_keys)} keys)"

    def guard(self) -> dict[str, Any]:
        """The part that plans are made of, without secrets (`planner.plan`)."""
        return {
            "api_key": bool(self.client_keys or self.engine_key),
            "tls": self.tls in MODES and self.tls != "off",
            "name": self.name or None,
            "root": self.root,
            "image": self.image,
        }


def read(templar: Templar, variables: Mapping[str, Any]) -> Settings:
    """The settings that hold for a host's variables."""

    def text(name: str) -> str:
        value = templar.template(variables.get(name))
        # YAML reads a bare `off` as false.
        return "off" if value is False else str(value or "").strip()

    def several(name: str) -> tuple[str, ...]:
        value = templar.template(variables.get(name)) or []
        return tuple(str(one).strip() for one in ([value] if isinstance(value, str) else value) if one)

    return Settings(
        client_keys=several("ascent_api_keys"),
        engine_key=text("ascent_engine_key"),
        tls=text("ascent_tls") or "off",
        certificate=text("ascent_tls_certificate"),
        private_key=text("ascent_tls_private_key"),
        name=text("ascent_tls_name"),
        names=several("ascent_tls_names"),
        directory=text("ascent_tls_directory"),
        image=text("ascent_gateway_image"),
        root=text("ascent_config_root") or "/etc/ascent",
    )


def certificate_names(settings: Settings, plan: Mapping[str, Any]) -> list[str]:
    """Names and addresses that a certificate made for the cluster has."""
    ends = [end["address"] for one in plan["instances"] for end in one["endpoints"]]
    if (plan.get("access") or {}).get("by") == "gateway":
        ends = [access.origin(plan["endpoint"]["url"]).partition("://")[2].rpartition(":")[0]]
    return [name for name in dict.fromkeys((settings.name, *settings.names, *ends)) if name]


def directory(settings: Settings, cluster: str) -> Path:
    """Where the authority of a cluster lies on the controller."""
    return Path(settings.directory).expanduser() / cluster


def material(
    settings: Settings, plan: Mapping[str, Any], loader: Loader, now: float, *, write: bool
) -> tuple[str, str, bool]:
    """The endpoint's certificate and private key, and whether they were made, or would be without ``write``, just now.

    Both are empty where a dry run has none yet. OSError and ValueError when they can't be
    had; `judge` has told why before.
    """
    if settings.tls == "own":
        return _text(loader, settings.certificate), _text(loader, settings.private_key), False
    place = directory(settings, plan["cluster"])
    made = certificates.ensure(place, plan["cluster"], certificate_names(settings, plan), now, write=write)
    if made and not write:
        return "", "", True
    return _text(loader, str(place / "tls.crt")), _text(loader, str(place / "tls.key")), made


def _text(loader: Loader, path: str) -> str:
    try:
        return str(loader.get_text_file_contents(str(Path(path).expanduser())))
    except Exception as error:  # Ansible's own errors know nothing of OSError
        raise OSError(str(error)) from None


def judge(settings: Settings, plan: Mapping[str, Any] | None, loader: Loader, now: float) -> list[dict[str, Any]]:
    """Findings on the settings of a cluster; ``plan`` is None where there is none to compare with."""
    found = _keys(settings, plan)
    if settings.tls not in MODES:
        found.append(
            _error(
                "tls-mode-unknown",
                f"ascent_tls is {settings.tls!r}",
                f"allowed: {', '.join(MODES)}",
                "It says who makes the endpoint's certificate.",
                "Set ascent_tls to off, own or made.",
            )
        )
    elif settings.tls == "own":
        found += _own(settings, plan, loader, now)
    elif settings.tls == "made" and not settings.directory:
        found.append(
            _error(
                "certificate-unusable",
                "ascent_tls is made, and there is no directory for the authority",
                "ascent_tls_directory is empty",
                "The authority that signs the endpoint's certificate lies in a directory of the controller.",
                "Set ascent_tls_directory, or take the default away from the inventory.",
            )
        )
    return found


def _error(identity: str, summary: str, evidence: str, cause: str, fix: str, severity: str = "error") -> dict[str, Any]:
    return finding(identity, severity, summary, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def _keys(settings: Settings, plan: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = []
    named = [(f"ascent_api_keys[{number}]", key) for number, key in enumerate(settings.client_keys)]
    named += [("ascent_engine_key", settings.engine_key)] if settings.engine_key else []
    for name, key in named:
        # Never the key itself: findings are shown and kept.
        wrong = []
        if len(key) < access.LEAST_KEY:
            wrong.append(f"{len(key)} characters; at least {access.LEAST_KEY}")
        if not access.is_key(key):
            wrong.append("characters beside letters, digits and . _ ~ + / - (= at its end)")
        if wrong:
            found.append(
                _error(
                    "api-key-unfit",
                    f"{name} is no key to guard anything with",
                    f"it has {'; and '.join(wrong)}",
                    "A short key can be guessed, and a bearer token is made of those characters (RFC 6750).",
                    "Make one: openssl rand -hex 24; encrypt it: ansible-vault encrypt_string --name ascent_api_key",
                )
            )
    if settings.client_keys and not settings.engine_key:
        found.append(
            _error(
                "api-key-unfit",
                "there are keys for clients, and none for the engines",
                "ascent_engine_key is empty",
                "Whoever reaches an engine's own port would need no key.",
                "Remove ascent_engine_key from the inventory: it is the first of ascent_api_keys then.",
            )
        )
    if settings.engine_key and not settings.client_keys:
        found.append(
            _error(
                "api-key-unfit",
                "there is a key for the engines, and none for clients",
                "ascent_api_keys is empty",
                "No client could show a key, and a gateway would let nobody in.",
                "Set ascent_api_key or ascent_api_keys, too.",
            )
        )
    if plan is None or not (part := plan.get("access")) or not part["api_key"]:
        return found
    others = sorted({key for key in settings.client_keys if key != settings.engine_key})
    if part["by"] == "engine" and others:
        found.append(
            _error(
                "api-keys-need-router",
                "there are several API keys, and no router before the engine",
                f"{len(settings.client_keys)} keys in ascent_api_keys; an engine by itself takes ascent_engine_key",
                "An engine reads one key from its environment; a list would have to stand in its command line.",
                "Leave one key in ascent_api_keys, or give the recipe a router: its gateway knows all of them.",
            )
        )
    if not part["tls"]:
        found.append(
            _error(
                "api-key-in-clear",
                "clients send their API key over the network in clear",
                "ascent_tls is off",
                "Whoever sees the traffic can use the key.",
                "Set ascent_tls to made or own, unless TLS ends at a balancer before this cluster.",
                severity="warning",
            )
        )
    return found


def _own(settings: Settings, plan: Mapping[str, Any] | None, loader: Loader, now: float) -> list[dict[str, Any]]:
    """What is wrong with the operator's certificate."""
    again = "Correct ascent_tls_certificate (with its chain) and ascent_tls_private_key; they are paths here."
    try:
        text, key = _text(loader, settings.certificate), _text(loader, settings.private_key)
        told = certificates.certificate(text)
        fits = certificates.private_key_fits(text, key)
    except (OSError, ValueError) as error:
        return [
            _error(
                "certificate-unusable",
                "the endpoint's certificate or its private key can't be used",
                f"{settings.certificate or 'ascent_tls_certificate is not set'}: {str(error)[:300]}",
                "Both are PEM files on this controller; the private key may be encrypted by ansible-vault.",
                again,
            )
        ]
    found = []
    if not fits:
        found.append(
            _error(
                "certificate-unusable",
                "the private key is not that of the certificate",
                f"{settings.certificate} and {settings.private_key}",
                "The first certificate of the file has to be the endpoint's, its chain comes after it.",
                again,
            )
        )
    days = (told.not_after - now) / 86400
    until = datetime.datetime.fromtimestamp(told.not_after, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if days <= WARN_DAYS or told.not_before > now:
        ended = days <= 0 or told.not_before > now
        found.append(
            _error(
                "certificate-expired" if ended else "certificate-expires",
                f"the endpoint's certificate {'does not hold now' if ended else f'ends in {int(days)} days'}",
                f"{settings.certificate}: until {until}",
                "Clients that check it turn away.",
                "Put the renewed files in their place, then run --tags launch: nothing but the terminator notices.",
                severity="error" if ended else "warning",
            )
        )
    if plan is not None and plan.get("endpoint"):
        asked = settings.name or access.origin(plan["endpoint"]["url"]).partition("://")[2].rpartition(":")[0]
        if not told.covers(asked):
            found.append(
                _error(
                    "certificate-name",
                    f"the endpoint's certificate is not for {asked}",
                    f"it is for {', '.join(sorted(told.names)) or 'no name'}",
                    "Clients compare the name they ask with those in the certificate.",
                    "Set ascent_tls_name to the name that clients use, or have the certificate made for this one.",
                )
            )
    return found
