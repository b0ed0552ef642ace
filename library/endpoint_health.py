#!/usr/bin/python
"""Thin module around ascent.endpoint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: endpoint_health
short_description: Ask endpoints whether they are up, all at once
description:
  - Requests each endpoint's health page and, where wanted, its list of models. Proxy variables are never used.
  - An endpoint that does not answer is a result, not a failure of the module.
options:
  endpoints:
    description: What to ask. The results keep this order.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the endpoint, type: str, required: true}
      host: {description: Host that runs it, type: str}
      url: {description: Health page; 200 means up, type: str, required: true}
      models_url: {description: Page that has to list at least one model, type: str}
      version_url: {description: Page that names the engine's version; it may be absent, type: str}
      metrics_url: {description: Page with the engine's counters; it may be absent, type: str}
  timeout:
    description: Seconds to wait for one answer.
    type: float
    default: 10
extends_documentation_fragment: [asking]
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Look at the endpoints
  endpoint_health:
    endpoints:
      - name: decode-0
        host: a3-02
        url: http://192.0.2.12:30050/health
        models_url: http://192.0.2.12:30050/v1/models
"""

RETURN = r"""
endpoints:
  description:
    - Of each endpoint C(name), C(host), C(url), C(ok), C(status), C(seconds), C(error), C(models), C(version), and
      C(counters) with C(prompt_tokens), C(generation_tokens) and C(requests) since the engine's start.
  returned: always
  type: list
  elements: dict
healthy:
  description: Whether all of them are up.
  returned: always
  type: bool
"""

import time

from ansible.module_utils.ascent import access_check, client, endpoint
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Ask and return."""
    module = AnsibleModule(
        argument_spec={
            "endpoints": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "host": {"type": "str"},
                    "url": {"type": "str", "required": True},
                    "models_url": {"type": "str"},
                    "version_url": {"type": "str"},
                    "metrics_url": {"type": "str"},
                },
            },
            "timeout": {"type": "float", "default": 10},
            **client.OPTIONS,
        },
        supports_check_mode=True,
    )
    given = module.params
    client.use(given["keys"], given["tls"], given["api_key"])
    results = endpoint.check_all(given["endpoints"], given["timeout"])
    module.exit_json(
        changed=False,
        endpoints=results,
        healthy=all(result["ok"] for result in results),
        findings=access_check.certificates(results, time.time()),
    )


if __name__ == "__main__":
    main()
