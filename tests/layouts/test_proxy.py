"""The plain proxy of vllm-ascend: health through it, and instances that come and go by its admin requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.layouts.cluster import NODES, Site, until

PROXY = f"http://{NODES['lay-01']}:8010"
PREFILL = [f"{NODES['lay-01']}:30060", f"{NODES['lay-01']}:30061"]

_ASK = """
import json, sys, urllib.request as u
url, body = sys.argv[1:]
request = u.Request(url, body.encode() or None, {"Content-Type": "application/json"})
print(u.build_opener(u.ProxyHandler({})).open(request, timeout=60).read().decode())
"""


def ask(site: Site, path: str, body: dict[str, Any] | None = None, base: str = PROXY) -> str:
    """What a node of the cluster is answered."""
    return site.road.node("lay-03").check_output(
        "python3 -c %s %s %s", _ASK, base + path, json.dumps(body) if body else ""
    )


def prefilled(site: Site) -> list[float]:
    """How many tokens each prefill instance has taken in."""
    found = []
    for address in PREFILL:
        page = ask(site, "/metrics", base=f"http://{address}")
        lines = [line for line in page.splitlines() if line.startswith("vllm:prompt_tokens_total{")]
        found.append(sum(float(line.split()[-1]) for line in lines))
    return found


def complete(site: Site, number: int) -> None:
    body = {"model": "qwen3.5", "prompt": f"The future of AI, take {number}, is", "max_tokens": 8, "temperature": 0}
    answer = json.loads(ask(site, "/v1/completions", body))
    assert answer["choices"][0]["text"].strip()


@pytest.mark.thorough
def test_instances_come_and_go(site: Site) -> None:
    run = site.launch(site.recipe("pd-2p1d"), tags="launch,check")
    assert run.rc == 0, run.stdout
    health = json.loads(ask(site, "/healthcheck"))
    assert (health["prefill_instances"], health["decode_instances"]) == (2, 1)

    ask(site, "/instances/remove", {"type": "prefill", "instances": PREFILL[1]})
    assert json.loads(ask(site, "/healthcheck"))["prefill_instances"] == 1
    before = prefilled(site)
    for number in range(4):
        complete(site, number)
    after = prefilled(site)
    assert after[0] > before[0]
    assert after[1] == before[1], "what was taken out gets nothing"
    told = site.road.play("deploy.yml", "--tags", "check", "-e", f"recipe={site.recipe('pd-2p1d')}")
    assert ("instance-idle", "lay-01") in {(one["id"], one["host"]) for one in told.findings()}

    ask(site, "/instances/add", {"type": "prefill", "instances": PREFILL[1]})
    # The proxy looks every ten seconds for those that wait to be added, and takes in who answers.
    until(lambda: json.loads(ask(site, "/healthcheck"))["prefill_instances"] == 2, 30)
    # Of idle instances it asks the first: only requests that come together, as those of the checks, reach both.
    checked = site.road.play("deploy.yml", "--tags", "check", "-e", f"recipe={site.recipe('pd-2p1d')}")
    assert checked.rc == 0, checked.stdout
    assert prefilled(site)[1] > after[1]
