#!/usr/bin/python
"""Thin module around ascent.functional."""

from __future__ import annotations

DOCUMENTATION = r"""
module: functional_check
short_description: Send the recipe's prompts to an endpoint and judge the answers
description:
  - Each prompt is sent plain and streamed. Wanted are status 200, text, counted tokens, language that is no noise, the
    expected words, and at temperature 0 the same text both ways.
  - Bad answers are findings, not a failure of the module. Proxy variables are never used.
options:
  url:
    description: Base URL of the endpoint, without a path.
    type: str
    required: true
  model:
    description: Name under which the model is served.
    type: str
    required: true
  prompts:
    description:
      - What to ask. C(prompt) or C(messages), C(kind) (C(completion) or C(chat); by default C(chat) for C(messages)),
        C(expect) (words that have to be in the answer), and anything else as the engine's own sampling options.
    type: list
    elements: dict
    required: true
  engines:
    description:
      - Servers behind the endpoint, each with C(name), C(host), C(role) (C(serve), C(prefill) or C(decode)),
        C(metrics_url), C(entry), C(ranks), C(prefix_caching), C(speculative) and C(max_model_len). Requests are then
        sent at once, to each C(entry) by itself, and the engines' own counters have to show that every rank took part,
        that prefill handed its KV cache over, and that prefix cache and speculation work where they are on.
    type: list
    elements: dict
    default: []
  timeout:
    description: Seconds for one answer.
    type: float
    default: 300
  api_key:
    description: Bearer token, if the endpoint wants one.
    type: str
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Ask the endpoint
  functional_check:
    url: http://192.0.2.11:8010
    model: qwen3.5
    prompts:
      - {prompt: The future of AI is, max_tokens: 50, temperature: 0}
      - {kind: chat, prompt: What is the capital of France?, max_tokens: 50, temperature: 0, expect: [Paris]}
"""

RETURN = r"""
answers:
  description:
    - Of each C(kind), C(prompt), C(status), C(text), C(streamed_text), C(completion_tokens), C(streamed_tokens),
      C(chunks), C(seconds) and C(error).
  returned: always
  type: list
  elements: dict
traffic:
  description: By how much each engine's counters grew, by metric; empty without O(engines).
  returned: always
  type: dict
metrics:
  description: The same for the run record.
  returned: always
  type: dict
findings:
  description: What is wrong with the answers (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.ascent import functional, traffic
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Ask, judge, return."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "prompts": {"type": "list", "elements": "dict", "required": True},
            "engines": {"type": "list", "elements": "dict", "default": []},
            "timeout": {"type": "float", "default": 300},
            "api_key": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    for number, prompt in enumerate(given["prompts"], 1):
        if not prompt.get("prompt") and not prompt.get("messages"):
            module.fail_json(msg=f"prompt {number}: wanted 'prompt' or 'messages', found {sorted(prompt)}")
        if prompt.get("kind", "chat") not in ("chat", "completion"):
            module.fail_json(msg=f"prompt {number}: kind is {prompt['kind']!r}; wanted completion or chat")
        if prompt.get("kind") == "completion" and not prompt.get("prompt"):
            module.fail_json(msg=f"prompt {number}: a completion takes 'prompt', not 'messages'")
    result = functional.check(given["url"], given["model"], given["prompts"], given["timeout"], given["api_key"])
    shares = {"findings": [], "traffic": {}}
    if given["engines"] and not any(item["severity"] == "error" for item in result["findings"]):
        shares = traffic.check(given["url"], given["model"], given["engines"], given["timeout"], given["api_key"])
    module.exit_json(
        changed=False,
        answers=result["answers"],
        findings=result["findings"] + shares["findings"],
        traffic=shares["traffic"],
        metrics={"traffic": shares["traffic"]},
    )


if __name__ == "__main__":
    main()
