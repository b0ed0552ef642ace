"""What modules that ask servers have in common: `ascent.client.OPTIONS`."""

from __future__ import annotations


class ModuleDocFragment:
    """Options by which a module is told keys and certificates."""

    DOCUMENTATION = r"""
options:
  api_key:
    description: Bearer token, if the servers want one.
    type: str
  keys:
    description: Bearer tokens by origin, such as C(https://192.0.2.1:8000), for servers that want different ones.
    type: dict
    default: {}
  tls:
    description: Whom to trust; C(ca) has certificates in PEM, C(name) is looked for in the server's.
    type: dict
    default: {}
"""
