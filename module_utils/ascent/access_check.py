"""Whether a cluster lets in whom it should and nobody else, as seen from outside."""

from __future__ import annotations

__all__ = ["REFUSED", "certificates", "refusal", "unguarded"]

import time
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .client import ClientError, request
from .findings import finding

#: Statuses of a server that wants another key.
REFUSED = (401, 403)

#: Days before its end from which a certificate is told.
WARN_DAYS = 30
_STAGE = "check"


def unguarded(keys: Mapping[str, str], url: str, timeout: float) -> List[Dict[str, Any]]:
    """Findings on servers that answer whoever shows no key, or a wrong one; each key's server is asked for its models.

    ``url`` is the endpoint's, which is named first. A server that does not answer at all is found by other checks.
    """
    found = []
    for place in sorted(keys, key=lambda one: (not url.startswith(one), one)):
        for wrong, how in (("", "without a key"), ("not-the-key-of-this-cluster", "with a wrong key")):
            try:
                answer = request("GET", f"{place}/v1/models", timeout=min(timeout, 30), api_key=wrong)
            except ClientError:
                break
            # A router may have no such page: what counts is that the request was let through to it.
            if answer.status not in REFUSED and answer.status < 500:
                found.append(
                    finding(
                        "api-key-not-asked",
                        "error",
                        f"{place} answers {how}",
                        stage=_STAGE,
                        evidence=f"GET {place}/v1/models: HTTP {answer.status} {how}",
                        cause="It was started without its key, or something else answers there.",
                        fix="Run --tags launch; then look which process listens there: ss -ltnp",
                    )
                )
                break
    return found


def refusal(status: Optional[int], what: str, host: Optional[str], evidence: str) -> Optional[Dict[str, Any]]:
    """The finding of a server that refused the key it was shown; None for any other status."""
    if status not in REFUSED:
        return None
    return finding(
        "api-key-refused",
        "error",
        f"{what} refuses the API key of the inventory",
        host=host,
        stage=_STAGE,
        evidence=evidence,
        cause="ascent_api_keys or ascent_engine_key was changed after the launch, or it was started with another key.",
        fix="Run --tags launch: it hands the keys out, and restarts only what reads another one.",
    )


def certificates(results: Sequence[Mapping[str, Any]], now: float) -> List[Dict[str, Any]]:
    """Findings on the certificates that `endpoint.check` met; ``now`` in seconds since the epoch."""
    found = []
    for one in results:
        end, error = one.get("certificate_end"), str(one.get("error") or "")
        if "certificate is not accepted" in error:
            ended = "expired" in error
            found.append(
                finding(
                    "certificate-expired" if ended else "certificate-refused",
                    "error",
                    f"the certificate of {one['name']} {'has ended' if ended else 'is not one that clients accept'}",
                    host=one.get("host"),
                    stage=_STAGE,
                    evidence=error,
                    cause="Clients that check it turn away."
                    if ended
                    else "It is for another name, or signed by an authority that ascent_tls_ca does not hold.",
                    fix="Put the renewed files in their place, then run --tags launch.",
                )
            )
        elif end is not None and end - now <= WARN_DAYS * 86400:
            until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
            found.append(
                finding(
                    "certificate-expires",
                    "warning",
                    f"the certificate of {one['name']} ends in {int((end - now) / 86400)} days",
                    host=one.get("host"),
                    stage=_STAGE,
                    evidence=f"{one['url']}: until {until}",
                    cause="Clients that check it will turn away from then on.",
                    fix="Put the renewed files in their place, then run --tags launch: no engine is restarted.",
                )
            )
    return found
