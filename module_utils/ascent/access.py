"""Who may ask a cluster and how it is reached: API keys, TLS, and the gateway in front of routers that know neither.

The proxies of vLLM-Ascend never look at a client's key: they ask the engines with the one in their own OPENAI_API_KEY.
Behind them a key at the engines alone would guard nothing. So a router gets a gateway (nginx) in front of it, which
checks the keys, ends TLS, and lets through only what clients need. Where there is no router, vLLM does both itself.

Secrets reach a process as files that lie outside every generation, and plans hold only where (`process.secrets`).
"""

from __future__ import annotations

__all__ = [
    "LEAST_KEY",
    "MOUNT",
    "files_for",
    "fingerprints",
    "gateway_config",
    "is_key",
    "key_of",
    "origin",
    "secret_files",
    "secrets_entry",
    "server_keys",
]

import hashlib
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .shell import word

#: Where a container sees the files of its process.
MOUNT = "/run/ascent/secrets"

#: Characters of a key at least. What a bearer token may be made of is RFC 6750's.
LEAST_KEY = 16
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*\Z")

#: Files by what a process is, see `secret_files`.
_ENV, _CERTIFICATE, _PRIVATE_KEY, _KEYS, _BACKEND = "env", "tls.crt", "tls.key", "keys.conf", "backend.conf"

#: Paths that clients need. Whatever else a router offers, such as taking backends in and out, stays on its own host.
_OPEN_PATHS = "^/(v1/|metrics$|version$|tokenize$|detokenize$)"

_CONFIG = """\
# ascent:gateway
daemon off;
pid /run/ascent-gateway.pid;
error_log /dev/stderr warn;
worker_processes 2;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    server_tokens off;
    client_max_body_size 256m;
    client_body_temp_path /tmp/ascent-gateway-body;
    proxy_temp_path /tmp/ascent-gateway-proxy;
    fastcgi_temp_path /tmp/ascent-gateway-fastcgi;
    uwsgi_temp_path /tmp/ascent-gateway-uwsgi;
    scgi_temp_path /tmp/ascent-gateway-scgi;
    default_type application/json;
{keys}    server {{
        listen {listen};
{tls}        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        # Tokens are passed on as they come, and a long answer takes its time.
        proxy_buffering off;
        proxy_read_timeout 3600s;
        proxy_send_timeout 3600s;
        location = {health} {{
            proxy_pass http://{backend};
        }}
        location ~ {paths} {{
{guard}            proxy_pass http://{backend};
        }}
        location / {{
            return 404 '{{"error":"not offered to clients"}}';
        }}
    }}
}}
"""


def is_key(text: str) -> bool:
    """Whether a text can be a bearer token.

    >>> is_key("s3cret-s3cret-s3cret"), is_key("with space")
    (True, False)
    """
    return bool(_KEY.match(text))


def origin(url: str) -> str:
    """Scheme, address and port of a URL.

    >>> origin("https://192.0.2.1:8000/v1/models")
    'https://192.0.2.1:8000'
    """
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def secrets_entry(root: str, cluster: str, name: str, names: Sequence[str], *, contained: bool) -> Dict[str, Any]:
    """``process.secrets``: where the process finds its secret files, where the host keeps them, and which there are."""
    host = f"{root}/{cluster}/secrets/{name}"
    return {"directory": MOUNT if contained else host, "source": host, "files": list(names)}


def files_for(process: Mapping[str, Any], *, key: bool, tls: bool, gateway: bool) -> List[str]:
    """Names of the secret files that a process needs, by what it is.

    ``key``: the engines ask for one; ``tls``: clients are spoken to over TLS; ``gateway``: there is one.
    """
    kind = process["kind"]
    if kind == "gateway":
        return [*([_KEYS, _BACKEND] if key else []), *([_CERTIFICATE, _PRIVATE_KEY] if tls else [])]
    if kind in ("head", "rank"):
        return [*([_ENV] if key else []), *([_CERTIFICATE, _PRIVATE_KEY] if tls and not gateway else [])]
    asks = kind in ("router", "frontend") or (kind == "job" and not process["devices"])
    return [_ENV] if key and asks else []


def secret_files(
    process: Mapping[str, Any],
    *,
    client_keys: Sequence[str],
    engine_key: str,
    certificate: str = "",
    private_key: str = "",
) -> Dict[str, str]:
    """The texts of a planned process's secret files by name, for its host's root alone."""
    kind = process["kind"]
    names = (process.get("secrets") or {}).get("files") or []
    # A client shows what the endpoint takes; all others stand behind it.
    shown = client_keys[0] if kind == "job" and client_keys else engine_key
    variable = "VLLM_API_KEY" if kind in ("head", "rank") else "OPENAI_API_KEY"
    texts = {
        _ENV: f"export {variable}={word(shown)}\n",
        _CERTIFICATE: certificate,
        _PRIVATE_KEY: private_key,
        # nginx compares plain texts of a map without regard to case, and patterns with it.
        _KEYS: "".join(f'"~^(?i:bearer) {_pattern(key)}$" 1;\n' for key in client_keys),
        _BACKEND: f'proxy_set_header Authorization "Bearer {engine_key}";\n',
    }
    return {name: texts[name] for name in names}


def _pattern(key: str) -> str:
    return re.sub(r"([.+])", r"\\\1", key)


def fingerprints(plan: Mapping[str, Any], engine_key: str) -> Dict[str, str]:
    """What tells by name that a process's key has changed; the key can't be had back from it.

    Only of processes that read their key once, when they start: certificates, and all that the gateway has, are read
    again without a restart. scrypt makes guessing dear, so that a weak key does not show in labels and manifests.
    """
    made: Dict[str, str] = {}
    found = {}
    for process in plan["processes"]:
        if _ENV not in ((process.get("secrets") or {}).get("files") or ()):
            continue
        if engine_key not in made:
            salt = f"ascent {plan['cluster']}".encode()
            made[engine_key] = hashlib.scrypt(engine_key.encode(), salt=salt, n=2**14, r=8, p=1, dklen=16).hex()
        found[process["name"]] = made[engine_key]
    return found


def gateway_config(
    *, address: str, port: int, backend: str, health: str, key: bool, tls: bool, directory: str = MOUNT
) -> str:
    """The configuration of nginx for a gateway at ``address:port`` before ``backend`` (the same); it has no secret."""
    guard = ""
    keys = ""
    if key:
        keys = (
            "    map $http_authorization $ascent_known {\n"
            "        default 0;\n"
            f"        include {directory}/{_KEYS};\n"
            "    }\n"
        )
        guard = (
            "            if ($ascent_known = 0) {\n"
            '                return 401 \'{"error":"Unauthorized"}\';\n'
            "            }\n"
            f"            include {directory}/{_BACKEND};\n"
        )
        # What a server sets for all is dropped by a location that sets a header of its own.
        guard += (
            '            proxy_set_header Connection "";\n'
            "            proxy_set_header Host $host;\n"
            "            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
            "            proxy_set_header X-Forwarded-Proto $scheme;\n"
        )
    ends = ""
    if tls:
        ends = (
            f"        ssl_certificate {directory}/{_CERTIFICATE};\n"
            f"        ssl_certificate_key {directory}/{_PRIVATE_KEY};\n"
            "        ssl_protocols TLSv1.2 TLSv1.3;\n"
            "        ssl_session_cache shared:ascent:8m;\n"
        )
    return _CONFIG.format(
        keys=keys,
        listen=f"{address}:{port}" + (" ssl" if tls else ""),
        tls=ends,
        health=health,
        backend=backend,
        paths=_OPEN_PATHS,
        guard=guard,
    )


def server_keys(plan: Mapping[str, Any], client_key: str, engine_key: str) -> Dict[str, str]:
    """The key to show to each server of a plan, by its origin; empty where none asks for one."""
    part = plan.get("access") or {}
    if not part.get("api_key"):
        return {}
    found = {origin(end["url"]): engine_key for one in plan["instances"] for end in one["endpoints"]}
    if plan["endpoint"]:
        found[origin(plan["endpoint"]["url"])] = client_key if part["by"] == "gateway" else engine_key
    return found


def key_of(url: str, keys: Mapping[str, str]) -> Optional[str]:
    """The key to show at a URL, out of `server_keys`."""
    return keys.get(origin(url))
