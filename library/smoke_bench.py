#!/usr/bin/python
"""Thin module around ascent.bench."""

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_bench
short_description: Load an endpoint briefly and report latency and throughput
description:
  - Sends streamed completions with real concurrency after a warm-up, and reports TTFT, TPOT, ITL, E2E (mean, p50, p90,
    p99, in milliseconds), tokens per second and goodput. Tokens are counted by the engine's own usage figures.
  - The load is small but real, so it also runs in check mode only if O(run_in_check_mode) says so.
options:
  url:
    description: Base URL of the endpoint, without a path.
    type: str
    required: true
  model:
    description: Name under which the model is served.
    type: str
    required: true
  concurrency: {description: Requests under way at a time, type: int, default: 8}
  requests: {description: Requests that count, type: int, default: 32}
  input_tokens: {description: Length of a prompt in words of about one token each, type: int, default: 128}
  output_tokens: {description: Tokens asked for, type: int, default: 64}
  warmup: {description: Requests before the measurement; by default as many as run at a time, type: int}
  seed:
    description: The same seed makes prompts of the same words, in an order of each run's own so that no cache helps.
    type: int
    default: 0
  timeout: {description: Seconds for one request, type: float, default: 600}
  slo:
    description: Limits for goodput, any of C(ttft_ms), C(tpot_ms), C(e2e_ms).
    type: dict
    default: {}
  simulated_url:
    description: Version pages of the engines; one that calls itself simulated marks the result.
    type: list
    elements: str
    default: []
  reference:
    description: Reference figures of the recipe, to be compared where the conditions are the same.
    type: dict
    default: {}
  tolerance:
    description: Share by which a figure may be worse than the reference or the last run before that is a warning.
    type: float
    default: 0.15
  last:
    description: Result of the last good run, to be compared; empty when there is none.
    type: dict
    default: {}
  before:
    description: Result of the service that this one replaces, to be compared as well; empty when there is none.
    type: dict
    default: {}
  drop:
    description: Share by which output tokens a second may fall against O(before), else O(last); more is an error.
    type: float
  accept:
    description: Whether this run becomes the last good one even if it is slower.
    type: bool
    default: false
  setting:
    description: C(hardware) and C(image) that serve. Runs on other hardware are not compared.
    type: dict
    default: {}
  engines:
    description:
      - Servers behind the endpoint as for M(functional_check). Ranks that had more than their share, or took longer for
        their tokens than the others, are then told.
    type: list
    elements: dict
    default: []
  judged:
    description: Whether there are findings at all; false only measures.
    type: bool
    default: true
  run_in_check_mode:
    description: Whether check mode sends the load as well.
    type: bool
    default: false
extends_documentation_fragment: [asking]
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Measure the endpoint
  smoke_bench:
    url: http://192.0.2.11:8010
    model: qwen3.5
    concurrency: 8
    requests: 32
    slo: {ttft_ms: 2000, tpot_ms: 50}
    simulated_url: [http://192.0.2.12:30050/version]
"""

RETURN = r"""
result:
  description: Conditions and figures; null in check mode.
  returned: always
  type: dict
record:
  description: The result under the name that it has in the run record; empty in check mode.
  returned: always
  type: dict
keep:
  description:
    - What to remember, both without the times of single requests. C(result) is the next run's O(last), this run or the
      same as before, and C(latest) is this run. Null in check mode.
  returned: always
  type: dict
table:
  description: The figures as rows of text, header first.
  returned: always
  type: list
  elements: list
findings:
  description: Failed requests (error), a fall by more than O(drop) (error), other comparisons and uneven ranks.
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.ascent import bench, client
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Measure, judge, return."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "concurrency": {"type": "int", "default": 8},
            "requests": {"type": "int", "default": 32},
            "input_tokens": {"type": "int", "default": 128},
            "output_tokens": {"type": "int", "default": 64},
            "warmup": {"type": "int"},
            "seed": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 600},
            "slo": {"type": "dict", "default": {}},
            "simulated_url": {"type": "list", "elements": "str", "default": []},
            "reference": {"type": "dict", "default": {}},
            "tolerance": {"type": "float", "default": bench.TOLERANCE},
            "last": {"type": "dict", "default": {}},
            "before": {"type": "dict", "default": {}},
            "drop": {"type": "float"},
            "accept": {"type": "bool", "default": False},
            "setting": {"type": "dict", "default": {}},
            "engines": {"type": "list", "elements": "dict", "default": []},
            "judged": {"type": "bool", "default": True},
            "run_in_check_mode": {"type": "bool", "default": False},
            **client.OPTIONS,
        },
        supports_check_mode=True,
    )
    given = module.params
    client.use(given["keys"], given["tls"], given["api_key"])
    for name in ("concurrency", "requests", "input_tokens", "output_tokens"):
        if given[name] < 1:
            module.fail_json(msg=f"{name} is {given[name]}; wanted 1 or more")
    unknown = sorted(set(given["slo"]) - {"ttft_ms", "tpot_ms", "e2e_ms"})
    if unknown:
        module.fail_json(msg=f"slo has {', '.join(unknown)}; wanted ttft_ms, tpot_ms or e2e_ms")
    if module.check_mode and not given["run_in_check_mode"]:
        module.exit_json(changed=False, result=None, keep=None, table=[], findings=[], record={})
    result = bench.run(
        given["url"],
        given["model"],
        concurrency=given["concurrency"],
        requests=given["requests"],
        input_tokens=given["input_tokens"],
        output_tokens=given["output_tokens"],
        warmup=given["warmup"],
        seed=given["seed"],
        timeout=given["timeout"],
        slo={name: float(limit) for name, limit in given["slo"].items()},
        simulated_urls=given["simulated_url"],
        engines=given["engines"],
        setting=given["setting"],
    )
    findings = result.pop("findings") + bench.judge(result)
    findings += bench.compare(given["reference"], result, given["tolerance"])
    findings += bench.beside(given["last"], given["before"], result, tolerance=given["tolerance"], drop=given["drop"])
    keep = bench.keep(given["last"], result, tolerance=given["tolerance"], accept=given["accept"])
    if not given["judged"]:
        module.exit_json(changed=False, result=result, keep=keep, table=[], findings=[], record={})
    module.exit_json(
        changed=False,
        result=result,
        keep=keep,
        table=bench.table(result),
        findings=findings,
        record={"smoke_bench.json": result},
    )


if __name__ == "__main__":
    main()
