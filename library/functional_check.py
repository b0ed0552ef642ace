#!/usr/bin/python
"""Thin module around ascent.functional."""

from __future__ import annotations

DOCUMENTATION = r"""
module: functional_check
short_description: Send the recipe's prompts to an endpoint and judge the answers
description:
  - Each prompt is sent plain, streamed and, at temperature 0, plain again. Wanted are status 200, text, counted tokens,
    the served name, as many tokens as were asked for, language that is no noise and is the question's, the expected
    words, and at temperature 0 the same text each time.
  - Then a stop string has to stop, a chat has to come through the model's template, and where it is wanted a prompt of
    nearly the longest length has to be answered. What can't be asked of this endpoint is told as information.
  - Where no prompt is at temperature 0, the first one is asked at that once more, with few tokens. Where none is a
    chat, one is asked as a chat too; a model without a chat template may refuse that.
  - With O(engines), requests go to all at once and to every rank by itself. The whole takes as long as about four of
    the recipe's prompts.
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
        C(metrics_url), C(entry), C(ranks), C(hosts) (of the ranks, in their order), C(prefix_caching), C(speculative)
        and C(max_model_len). Requests are then sent at once, to each C(entry) by itself, and the engines' own counters
        have to show that every rank took part, that prefill handed its KV cache over, and that prefix cache and
        speculation work where they are on. Then each rank is asked by itself, and all have to begin their answer alike.
    type: list
    elements: dict
    default: []
  long_prompt:
    description:
      - Whether a prompt of nearly the longest length that all O(engines) take is asked as well. Its answer may take ten
        minutes, whatever O(timeout) says.
    type: bool
    default: false
  timeout:
    description: Seconds for one answer.
    type: float
    default: 300
extends_documentation_fragment: [asking]
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
    - Of each C(kind), C(prompt), C(status), C(model), C(text), C(finish), C(prompt_tokens), C(completion_tokens),
      C(streamed_text), C(streamed_tokens), C(chunks), C(again), C(seconds) and C(error).
  returned: always
  type: list
  elements: dict
traffic:
  description: By how much each engine's counters grew, by metric; empty without O(engines).
  returned: always
  type: dict
metrics:
  description: The same for the run record, with the seconds that all of it took.
  returned: always
  type: dict
findings:
  description: What is wrong with the answers (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
"""

import time

from ansible.module_utils.ascent import access_check, behaviour, client, functional, traffic
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Ask, judge, return."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "prompts": {"type": "list", "elements": "dict", "required": True},
            "engines": {"type": "list", "elements": "dict", "default": []},
            "long_prompt": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 300},
            **client.OPTIONS,
        },
        supports_check_mode=True,
    )
    given = module.params
    client.use(given["keys"], given["tls"], given["api_key"])
    for number, prompt in enumerate(given["prompts"], 1):
        if not prompt.get("prompt") and not prompt.get("messages"):
            module.fail_json(msg=f"prompt {number}: wanted 'prompt' or 'messages', found {sorted(prompt)}")
        if prompt.get("kind", "chat") not in ("chat", "completion"):
            module.fail_json(msg=f"prompt {number}: kind is {prompt['kind']!r}; wanted completion or chat")
        if prompt.get("kind") == "completion" and not prompt.get("prompt"):
            module.fail_json(msg=f"prompt {number}: a completion takes 'prompt', not 'messages'")
    started = time.monotonic()
    asked = (given["url"], given["model"])
    prompts = functional.with_chat(functional.with_steady(given["prompts"]))
    result = functional.check(*asked, prompts, given["timeout"])
    findings, shares = result["findings"], {}
    # What fails at its first step has no second one to judge.
    if all(answer["text"] for answer in result["answers"]):
        longest = min((int(one["max_model_len"]) for one in given["engines"] if one["max_model_len"]), default=None)
        made = behaviour.check(
            *asked, result["prompts"], result["answers"], given["timeout"], longest, given["long_prompt"]
        )
        # Where answers are wrong, what they could not prove is no news.
        wrong = any(item["severity"] == "error" for item in findings)
        findings = findings + [item for item in made if item["severity"] != "info" or not wrong]
    if given["engines"] and not any(item["severity"] == "error" for item in findings):
        first = next((one for one in given["prompts"] if one.get("prompt")), None)
        told = traffic.check(*asked, given["engines"], given["timeout"], first)
        findings, shares = findings + told["findings"], told["traffic"]
    findings = findings + access_check.unguarded(given["keys"], given["url"], given["timeout"])
    module.exit_json(
        changed=False,
        answers=result["answers"],
        findings=findings,
        traffic=shares,
        metrics={"traffic": shares, "functional_check_seconds": round(time.monotonic() - started, 2)},
    )


if __name__ == "__main__":
    main()
