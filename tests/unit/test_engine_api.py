"""The simulated engine's HTTP interface, asked as public clients ask it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.engine_harness import Process, call, events, free_ports, get, make_machine, metric, post, serve

LENGTH = 1024
PROMPT = {"model": "tiny", "prompt": "The future of AI is", "max_tokens": 20, "temperature": 0}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me about bridges."}], "max_tokens": 20}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def start(tmp_path_factory: pytest.TempPathFactory, *arguments: str, **env: str) -> tuple[Process, str]:
    folder = tmp_path_factory.mktemp("engine")
    port = free_ports(1)
    root = make_machine(folder / "machine")
    process = Process(root, serve(port, "--max-model-len", str(LENGTH), *arguments), folder / "log", env)
    process.wait_for("Application startup complete")
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine with usual settings."""
    process, address = start(tmp_path_factory, "--served-model-name", "tiny", "second-name", SIM_SPEED="50")
    yield address
    process.process.kill()
    process.process.wait()


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine with everything switched on that is off by default."""
    drafts = json.dumps({"method": "mtp", "num_speculative_tokens": 3})
    process, address = start(
        tmp_path_factory, "--api-key", "first", "second", "--enable-prompt-tokens-details",
        "--enable-request-id-headers", "--enable-force-include-usage", "--enable-server-load-tracking",
        "--speculative-config", drafts, "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--block-size", "16", SIM_SPEED="50",
    )  # fmt: skip
    yield address
    process.process.kill()
    process.process.wait()


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def error(url: str, path: str, body: dict[str, Any]) -> tuple[int, str, str, str | None]:
    """(status, type, message, param) of a refusal."""
    status, answer = post(f"{url}{path}", body)
    found = answer["error"]
    assert found["code"] == status
    return status, found["type"], found["message"], found["param"]


# The openai package


def test_openai_completion(url):
    answer = client(url).completions.create(**PROMPT)
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("text_completion", "tiny", "length")
    assert answer.id.startswith("cmpl-")
    assert answer.system_fingerprint
    assert answer.system_fingerprint.startswith("vllm-0.21.0-")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 20, 25)
    stream = list(client(url).completions.create(**PROMPT, stream=True))
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    assert all(chunk.usage is None for chunk in stream)
    assert [chunk.choices[0].finish_reason for chunk in stream[-2:]] == [None, "length"]


def test_openai_chat_with_usage(url):
    whole = client(url).chat.completions.create(**CHAT, temperature=0)
    text = whole.choices[0].message.content
    assert text
    assert not text[0].isspace()
    stream = list(
        client(url).chat.completions.create(**CHAT, temperature=0, stream=True, stream_options={"include_usage": True})
    )
    first, *middle, last = stream
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == text
    assert last.choices == []
    assert last.usage
    assert whole.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 20
    assert len(middle) == 20, "a chunk for every step"


def test_openai_choices_stop_and_seed(url):
    answer = client(url).chat.completions.create(**CHAT, n=3, seed=1, temperature=1)
    again = client(url).chat.completions.create(**CHAT, n=3, seed=1, temperature=1)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert answer.usage
    assert answer.usage.completion_tokens == 60
    streamed: dict[int, str] = {}
    for chunk in client(url).chat.completions.create(**CHAT, n=3, seed=1, temperature=1, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[i] for i in range(3)] == texts
    word = (texts[0] or "").split()[3]
    stopped = client(url).chat.completions.create(**CHAT, seed=1, temperature=1, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert word not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].model_extra
    assert stopped.choices[0].model_extra["stop_reason"] == word


def test_openai_models_and_errors(url, special):
    cards = client(url).models.list().data
    assert [(card.id, card.owned_by) for card in cards] == [("tiny", "vllm"), ("second-name", "vllm")]
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
        client(url).chat.completions.create(**CHAT | {"model": "other"})
    with pytest.raises(openai.AuthenticationError):
        client(special, "wrong").models.list()
    assert client(special, "second").models.list().data
    tools: Any = [TOOL]
    with pytest.raises(openai.BadRequestError, match='"auto" tool choice requires --enable-auto-tool-choice'):
        client(url).chat.completions.create(**CHAT, tools=tools)
    with pytest.raises(openai.BadRequestError, match=r'tool_choice="required" requires --tool-call-parser'):
        client(url).chat.completions.create(**CHAT, tools=tools, tool_choice="required")
    plain = client(special, "first").chat.completions.create(**CHAT | {"model": "tiny"}, tools=tools)
    assert plain.choices[0].message.content


def test_openai_logprobs(url):
    answer = client(url).chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert len(logprobs.content) == 20
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in logprobs.content)
    assert "".join(one.token for one in logprobs.content) == answer.choices[0].message.content
    completion = client(url).completions.create(**PROMPT, logprobs=2, echo=True)
    found = completion.choices[0].logprobs
    assert found
    assert found.tokens
    assert len(found.tokens) == 25
    assert (found.token_logprobs or [0])[0] is None
    assert completion.choices[0].text.startswith(PROMPT["prompt"])
    status, kind, message, param = error(url, "/v1/completions", PROMPT | {"logprobs": 21})
    assert (status, kind, param) == (400, "BadRequestError", "logprobs")
    assert message.startswith("Requested sample logprobs of 21, which is greater than max allowed: 20")


# What benchmarks send


async def bench_request(session: aiohttp.ClientSession, url: str, prompt: str) -> tuple[list[str], dict[str, int]]:
    """One request as `vllm bench serve` sends and reads it: (texts of the chunks, usage)."""
    body = {"model": "tiny", "prompt": prompt, "repetition_penalty": 1.0, "max_tokens": 24, "logprobs": None}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "temperature": 0.0}
    texts, usage = [], {}
    async with session.post(f"{url}/v1/completions", json=body, headers={"Authorization": "Bearer None"}) as response:
        assert response.status == 200
        async for line in response.content:
            message = line.decode().strip().removeprefix("data: ")
            if message and message != "[DONE]":
                data = json.loads(message)
                if choices := data.get("choices"):
                    texts.append(choices[0]["text"])
                else:
                    usage = data["usage"]
    return texts, usage


def test_bench_serve_sequence(url):
    """Model from the list, a first request, then requests with prompts of random tokens, each read to the end."""

    async def run() -> list[tuple[list[str], dict[str, int]]]:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/v1/models") as answer:
                assert (await answer.json())["data"][0]["id"] == "tiny"
            await bench_request(session, url, "Hello")
            prompts = [post(f"{url}/detokenize", {"tokens": [n * 37 % 4000 for n in range(i, i + 200)]})[1]["prompt"]
                       for i in range(6)]  # fmt: skip
            return await asyncio.gather(*(bench_request(session, url, prompt) for prompt in prompts))

    for texts, usage in asyncio.run(run()):
        assert len(texts) == usage["completion_tokens"] == 24
        assert usage["prompt_tokens"] > 150
        assert usage["total_tokens"] == usage["prompt_tokens"] + 24


def test_aiperf_sequence(url):
    """Chats with typed content and ids of its own, min_tokens, and the metrics page at the end."""
    for number in range(3):
        content = [{"type": "text", "text": f"Question {number} about rivers"}]
        body = {"model": "tiny", "messages": [{"role": "user", "name": "n", "content": content}], "stream": True,
                "stream_options": {"include_usage": True}, "max_completion_tokens": 12, "min_tokens": 12,
                "ignore_eos": True}  # fmt: skip
        headers = {"X-Request-ID": f"run-{number}", "X-Correlation-ID": "c", "Accept": "text/event-stream"}
        streamed = events(post(f"{url}/v1/chat/completions", body, headers)[1])
        assert {chunk["id"] for chunk in streamed} == {f"chatcmpl-run-{number}"}
        assert streamed[-1]["usage"]["completion_tokens"] == 12
    families = {family.name: family.type for family in text_string_to_metric_families(get(f"{url}/metrics")[1])}
    assert "unknown" not in families.values()


# What the engine refuses, and how


BODY, VALUE = "Bad Request", "BadRequestError"  # the form of a body is wrong; a value is impossible
TOO_LONG = (
    "This model's maximum context length is 1024 tokens. However, you requested 20 output tokens and your prompt "
    "contains 1100 input tokens, for a total of 1120 tokens."
)
STREAM_OPTIONS = "Stream options can only be defined when `stream=True`."


@pytest.mark.parametrize(
    ("more", "kind", "message", "param"),
    [
        (
            {"max_tokens": 0},
            VALUE,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
            "max_tokens",
        ),
        ({"max_tokens": 2000}, VALUE, "max_tokens=2000 cannot be greater than max_model_len=", "max_tokens"),
        ({"prompt": list(range(1100))}, VALUE, TOO_LONG, "input_tokens"),
        ({"prompt": "word " * 1100}, VALUE, "at least 1005 input tokens, for a total of at least 1025", "input_tokens"),
        ({"prompt": "x" * 200_000}, VALUE, "contains 200000 characters (more than", "input_text"),
        ({"prompt": [5000]}, VALUE, "Token id 5000 is out of vocabulary", None),
        ({"prompt": ""}, BODY, "Either prompt or prompt_embeds must be provided and non-empty.", None),
        ({"prompt": {"a": 1}}, BODY, "Input should be a valid string", None),
        ({"max_tokens": "many"}, BODY, "unable to parse string as an integer", None),
        ({"temperature": -1}, VALUE, "temperature must be non-negative, got -1.0.", "temperature"),
        ({"top_p": 0}, VALUE, "top_p must be in (0, 1], got 0.0.", "top_p"),
        ({"n": 0}, VALUE, "n must be at least 1, got 0.", None),
        ({"n": 2}, VALUE, "n must be 1 when using greedy sampling, got 2.", None),
        ({"min_tokens": 21}, VALUE, "min_tokens must be less than or equal to max_tokens=20, got 21.", None),
        ({"stop": [""]}, VALUE, "stop cannot contain an empty string.", None),
        ({"stream_options": {"include_usage": True}}, BODY, STREAM_OPTIONS, "stream_options"),
        ({"logprobs": -1}, BODY, "`logprobs` must be a positive value.", "logprobs"),
    ],
)
def test_refused_completions(url, more, kind, message, param):
    status, found, text, name = error(url, "/v1/completions", PROMPT | more)
    assert (status, found, name) == (400, kind, param)
    assert message in text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "'loc': ('body', 'messages'), 'msg': 'Field required'"),
        ({"messages": "hello"}, "Input should be a valid list"),
        ({"messages": [{"content": "x"}]}, "('body', 'messages', 0, 'role')"),
        (CHAT | {"top_logprobs": 2}, "when using `top_logprobs`, `logprobs` must be set to true."),
        (CHAT | {"tools": []}, "`tools` must not be an empty array."),
        (CHAT | {"tool_choice": "auto"}, "When using `tool_choice`, `tools` must be set."),
        (CHAT | {"tools": [TOOL], "tool_choice": {"function": {"name": "x"}}}, "does not match any of the specified"),
        (CHAT | {"stream": "perhaps"}, "Input should be a valid boolean"),
    ],
)
def test_refused_chats(url, body, message):
    status, kind, text, _ = error(url, "/v1/chat/completions", body)
    assert (status, kind) == (400, "Bad Request")
    assert message in text


def test_what_is_not_simulated_says_so(url):
    wanted = {"response_format": {"type": "json_object"}}
    status, kind, message, _ = error(url, "/v1/chat/completions", CHAT | wanted)
    assert (status, kind) == (501, "NotImplementedError")
    assert "engine simulator has no structured outputs" in message


def test_bodies_that_are_no_json(url):
    def send(data: bytes, kind: str) -> tuple[int, Any]:
        return call(urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": kind}))

    assert "JSON decode error" in send(b"{", "application/json")[1]["error"]["message"]
    assert "Unsupported Media Type" in send(b"{}", "text/plain")[1]["error"]["message"]
    assert get(f"{url}/v1/nothing") == (
        404, {"error": {"message": "Not Found", "type": "Not Found", "param": None, "code": 404}},
    )  # fmt: skip
    assert get(f"{url}/v1/completions")[0] == 405


# Other pages


def test_tokens_agree_everywhere(url):
    text = "Counting tokens: naïve 12 & <|im_start|>."
    tokens = post(f"{url}/tokenize", {"model": "tiny", "prompt": text, "return_token_strs": True})[1]
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == LENGTH
    assert post(f"{url}/detokenize", {"model": "tiny", "tokens": tokens["tokens"]})[1] == {"prompt": text}
    before = metric(get(f"{url}/metrics")[1], "vllm:prompt_tokens_total")
    by_text, by_ids = (post(f"{url}/v1/completions", PROMPT | {"prompt": prompt})[1]
                       for prompt in (text, tokens["tokens"]))  # fmt: skip
    assert by_text["usage"] == by_ids["usage"]
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"]
    assert by_text["usage"]["prompt_tokens"] == tokens["count"]
    assert metric(get(f"{url}/metrics")[1], "vllm:prompt_tokens_total") - before == 2 * tokens["count"]
    chat = post(f"{url}/tokenize", {"model": "tiny", "messages": CHAT["messages"]})[1]["count"]
    assert chat == post(f"{url}/v1/chat/completions", CHAT)[1]["usage"]["prompt_tokens"]
    returned = post(f"{url}/v1/completions", PROMPT | {"return_token_ids": True})[1]["choices"][0]
    assert returned["prompt_token_ids"] == post(f"{url}/tokenize", PROMPT)[1]["tokens"]
    assert post(f"{url}/detokenize", {"tokens": returned["token_ids"]})[1]["prompt"] == returned["text"]


def test_small_pages(url):
    assert get(f"{url}/ping")[0] == get(f"{url}/health")[0] == post(f"{url}/ping", {})[0] == 200
    assert get(f"{url}/load")[1] == {"server_load": 0}
    assert get(f"{url}/version")[1] == {"version": "0.21.0", "simulated": True}
    card = get(f"{url}/v1/models")[1]["data"][0]
    assert (card["max_model_len"], card["permission"][0]["object"]) == (LENGTH, "model_permission")


def test_metrics_page(url):
    """Names, types and labels of the engine's page; every metric is there before it is used."""
    families = {family.name: family for family in text_string_to_metric_families(get(f"{url}/metrics")[1])}
    kinds = {
        "gauge": ["num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason",
                  "kv_cache_usage_perc", "engine_sleep_state", "cache_config_info"],
        "counter": ["prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
                    "external_prefix_cache_hits", "num_preemptions", "prompt_tokens", "prompt_tokens_cached",
                    "prompt_tokens_by_source", "generation_tokens", "request_success"],
        "histogram": ["request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
                      "request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens",
                      "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                      "request_time_per_output_token_seconds", "request_queue_time_seconds",
                      "request_inference_time_seconds", "request_prefill_time_seconds",
                      "request_decode_time_seconds", "request_prefill_kv_computed_tokens"],
    }  # fmt: skip
    for kind, names in kinds.items():
        for name in names:
            family = families[f"vllm:{name}"]
            assert family.type == kind
            assert family.documentation
            assert all(sample.labels["engine"] == "0" for sample in family.samples)
            if name != "cache_config_info":
                assert all(sample.labels["model_name"] == "tiny" for sample in family.samples)
    reasons = {sample.labels["finished_reason"] for sample in families["vllm:request_success"].samples}
    assert reasons >= {"stop", "length", "abort", "error"}
    assert families["http_requests"].type == "counter"


def test_prefix_cache_shows_in_metrics_and_usage(special):
    keys = {"Authorization": "Bearer first"}
    prompt = " ".join(f"number {number}" for number in range(40))
    pages, details = [], []
    for _ in range(2):
        answer = post(f"{special}/v1/completions", PROMPT | {"prompt": prompt}, keys)[1]
        details.append(answer["usage"]["prompt_tokens_details"])
        pages.append(get(f"{special}/metrics")[1])
    count = answer["usage"]["prompt_tokens"]
    hits = [metric(page, "vllm:prefix_cache_hits_total") for page in pages]
    queries = [metric(page, "vllm:prefix_cache_queries_total") for page in pages]
    assert queries[1] - queries[0] == count
    cached = hits[1] - hits[0]
    assert cached == (count - 1) // 16 * 16 > 0
    assert details == [None, {"cached_tokens": cached}]
    source = "vllm:prompt_tokens_by_source_total"
    assert (
        metric(pages[1], source, source="local_cache_hit") - metric(pages[0], source, source="local_cache_hit")
        == cached
    )
    salted = post(f"{special}/v1/completions", PROMPT | {"prompt": prompt, "cache_salt": "mine"}, keys)[1]
    assert salted["usage"]["prompt_tokens_details"] is None


def test_drafts_show_in_metrics(special):
    keys = {"Authorization": "Bearer first"}
    streamed = events(
        post(f"{special}/v1/completions", PROMPT | {"max_tokens": 60, "ignore_eos": True, "stream": True}, keys)[1]
    )
    assert len(streamed) - 1 < 45, "several tokens in a chunk"
    assert streamed[0]["usage"]["total_tokens"] > 0, "--enable-force-include-usage"
    assert streamed[-1]["usage"]["completion_tokens"] == 60
    page = get(f"{special}/metrics")[1]
    drafts, drafted, accepted = (metric(page, f"vllm:spec_decode_num_{name}_total")
                                 for name in ("drafts", "draft_tokens", "accepted_tokens"))  # fmt: skip
    assert 0 < accepted < drafted <= 3 * drafts
    each = [metric(page, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(at)) for at in range(3)]
    assert sum(each) == accepted
    assert each == sorted(each, reverse=True)


def test_request_ids_keys_and_load(special):
    keys = {"Authorization": "Bearer second", "X-Request-Id": "mine"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(headers: dict[str, str]) -> Any:
        body = json.dumps(PROMPT).encode()
        kind = {"Content-Type": "application/json"}
        return opener.open(urllib.request.Request(f"{special}/v1/completions", body, kind | headers), timeout=20)

    with ask(keys) as answer:
        assert answer.headers.get_all("X-Request-Id") == ["mine"]
        assert json.loads(answer.read())["id"] == "cmpl-mine"
    for wrong in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}):
        assert post(f"{special}/v1/completions", PROMPT, wrong) == (401, {"error": "Unauthorized"})
    assert get(f"{special}/health")[0] == get(f"{special}/metrics")[0] == 200, "only /v1 asks for the key"
    assert post(f"{special}/v1/completions", PROMPT, keys | {"X-data-parallel-rank": "1"})[0] == 400


def test_a_client_that_leaves_frees_its_place(special):
    keys = {"Authorization": "Bearer first"}
    body = json.dumps(PROMPT | {"max_tokens": 900, "ignore_eos": True, "n": 2, "temperature": 1}).encode()
    request = urllib.request.Request(
        f"{special}/v1/completions", body, keys | {"Content-Type": "application/json", "X-data-parallel-rank": "0"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(TimeoutError):
        opener.open(request, timeout=0.1)
    deadline = time.monotonic() + 5
    while get(f"{special}/load")[1]["server_load"] and time.monotonic() < deadline:
        time.sleep(0.05)
    page = get(f"{special}/metrics")[1]
    assert metric(page, "vllm:num_requests_running") == 0
    assert metric(page, "vllm:kv_cache_usage_perc") == 0
