"""Public clients of the API against the engine simulator: the `openai` package and AIPerf."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import TOKENIZER, Site, environment

# Everything an answer is asked for, as the package's own objects have it; one JSON document at the end.
OPENAI = """
import asyncio, json, sys
import openai

url = sys.argv[1] + "/v1"
client = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
said = [{"role": "user", "content": "What is 7 + 5?"}]
common = {"model": "tiny", "temperature": 0}
out = {"models": [model.id for model in client.models.list()]}

whole = client.completions.create(prompt="The future of AI is", max_tokens=12, **common)
out["completion"] = [whole.choices[0].text, whole.choices[0].finish_reason, whole.usage.completion_tokens]
parts = list(client.completions.create(
    prompt="The future of AI is", max_tokens=12, stream=True, stream_options={"include_usage": True}, **common))
out["streamed"] = ["".join(part.choices[0].text for part in parts if part.choices), parts[-1].usage.completion_tokens]

chat = client.chat.completions.create(messages=said, max_completion_tokens=12, **common)
out["chat"] = [chat.choices[0].message.content, chat.choices[0].message.role, chat.usage.total_tokens]
with client.chat.completions.stream(messages=said, max_tokens=4096 - 64, **common) as stream:
    seen = [event.type for event in stream]
    out["chat stream"] = [stream.get_final_completion().choices[0].message.content, seen[-1]]

several = client.completions.create(prompt=["Say one", "Say two"], n=2, max_tokens=4, model="tiny")
out["several"] = [choice.index for choice in several.choices]
likely = client.completions.create(prompt="Hello", max_tokens=3, logprobs=2, **common).choices[0].logprobs
out["logprobs"] = [len(likely.token_logprobs), len(likely.top_logprobs[0])] if likely else None

def refused(**request):
    try:
        client.completions.create(**{"model": "tiny", "prompt": "Hello", **request})
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.body["message"]]

out["refused"] = {
    "model": refused(model="other"), "length": refused(max_tokens=5000), "temperature": refused(temperature=-1),
    "top_p": refused(top_p=2), "n": refused(n=0), "type": refused(max_tokens="many"),
    "stream_options": refused(stream_options={"include_usage": True}),
}

async def many():
    client = openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0)
    asked = [client.completions.create(prompt=f"Say {each}", max_tokens=16, extra_body={"ignore_eos": True}, **common)
             for each in range(32)]
    return [answer.usage.completion_tokens for answer in await asyncio.gather(*asked)]

out["many"] = asyncio.run(many())
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def answers(simulator: str) -> dict[str, Any]:
    """What one run of the package's client got."""
    run = subprocess.run(
        [str(environment("openai") / "python"), "-c", OPENAI, simulator],
        env={"PATH": "", "no_proxy": "*"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_openai_reads_whole_answers_and_streams_alike(answers: dict[str, Any]) -> None:
    assert answers["models"] == ["tiny"]
    text, reason, tokens = answers["completion"]
    assert (reason, tokens) == ("length", 12)
    assert answers["streamed"] == [text, 12]
    content, role, total = answers["chat"]
    assert (content.startswith("12"), role, total > 12) == (True, "assistant", True)
    streamed, last = answers["chat stream"]
    assert streamed.startswith("12")
    assert last == "content.done"
    assert answers["several"] == [0, 1, 2, 3]
    assert answers["many"] == [16] * 32


def test_openai_gets_log_probabilities(answers: dict[str, Any]) -> None:
    assert answers["logprobs"] == [3, 2]


@pytest.mark.parametrize(
    ("case", "kind", "word"),
    [
        ("model", "NotFoundError", "other"),
        ("length", "BadRequestError", "4096"),
        ("temperature", "BadRequestError", "temperature"),
        ("top_p", "BadRequestError", "top_p"),
        ("n", "BadRequestError", "n "),
        ("type", "BadRequestError", "integer"),
        ("stream_options", "BadRequestError", "stream"),
    ],
)
def test_openai_raises_its_own_errors(answers: dict[str, Any], case: str, kind: str, word: str) -> None:
    assert answers["refused"][case] is not None, "it was answered instead"
    name, status, message = answers["refused"][case]
    assert (name, status) == (kind, 404 if kind == "NotFoundError" else 400)
    assert word in message


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_aiperf_measures(simulator: str, site: Site, settings: dict[str, str], tmp_path: Path, endpoint: str) -> None:
    """Its tokenizer comes from the site's hub by its id."""
    arguments = ["--model", "tiny", "--url", simulator, "--endpoint-type", endpoint, "--streaming"]
    arguments += ["--tokenizer", TOKENIZER, "--concurrency", "8", "--request-count", "32"]
    arguments += ["--synthetic-input-tokens-mean", "128", "--synthetic-input-tokens-stddev", "0"]
    arguments += ["--output-tokens-mean", "32", "--output-tokens-stddev", "0", "--extra-inputs", "ignore_eos:true"]
    arguments += ["--artifact-dir", str(tmp_path / "out"), "--ui", "none", "--max-workers", "1"]
    run = subprocess.run(
        [str(environment("aiperf") / "aiperf"), "profile", *arguments],
        env=settings | {"HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())

    def mean(name: str) -> float:
        return report[name]["avg"]

    assert (mean("request_count"), report.get("error_request_count")) == (32, None)
    # It counts with the model's tokenizer and asks the server for exactly so many tokens.
    assert mean("usage_completion_tokens") == 32
    assert mean("output_sequence_length") == pytest.approx(32, rel=0.2)
    if endpoint == "completions":
        assert mean("usage_prompt_tokens") == pytest.approx(128, rel=0.02)
    assert 0 < mean("inter_token_latency") < mean("time_to_first_token") < mean("request_latency")
    metrics = json.loads((tmp_path / "out" / "server_metrics_export.json").read_text())["metrics"]
    assert {"vllm:num_requests_running", "vllm:time_to_first_token_seconds"} <= set(metrics)
