"""endpoint_health, functional_check and smoke_bench against a real HTTP server on loopback."""

from __future__ import annotations

import pytest

from ascent import behaviour, functional
from library import endpoint_health, functional_check, smoke_bench
from tests.openai_server import Behaviour, Server

WORDS = Behaviour.text
SKY = "The sky is blue because air scatters blue light more, because of Rayleigh."
LONG = [f"word{number}" for number in range(60)]
PROMPT = {"prompt": "The future of AI is", "max_tokens": 50, "temperature": 0}


@pytest.fixture
def serve():
    servers = []

    def start(**behaviour):
        servers.append(Server(Behaviour(**behaviour)))
        return servers[-1].__enter__()

    yield start
    for server in servers:
        server.__exit__()


def health(run_module, urls, **arguments):
    endpoints = [{"name": f"e{number}", "host": "a3-01", **url} for number, url in enumerate(urls)]
    return run_module(endpoint_health, {"endpoints": endpoints, **arguments}, check=True)


def test_healthy_endpoints_in_order_despite_proxy_variables(run_module, serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    url = serve().url
    result = health(
        run_module,
        [
            {"url": url + "/health", "models_url": url + "/v1/models", "version_url": url + "/version"},
            {"url": url + "/healthcheck"},
        ],
    )
    assert (result["changed"], result["healthy"]) == (False, True)
    first, second = result["endpoints"]
    assert (first["name"], first["status"], first["models"], first["version"]) == ("e0", 200, ["qwen3.5"], "0.21.0")
    assert second["ok"] is True


def test_each_kind_of_bad_endpoint_says_why(run_module, serve):
    stopped = serve(hang=True).url
    ended = Server(Behaviour())
    with ended:
        dead = ended.url
    busy = serve(status=503, headers={"Via": "1.1 proxy.example"}).url
    empty = serve(models=[]).url
    urls = [dead, stopped, busy, empty, "nonsense://x", "http://[::bad"]
    result = health(
        run_module, [{"url": url + "/health", "models_url": url + "/v1/models"} for url in urls], timeout=0.5
    )
    errors = [endpoint["error"] for endpoint in result["endpoints"]]
    assert result["healthy"] is False
    assert not any(endpoint["ok"] for endpoint in result["endpoints"])
    for error, words in zip(
        errors,
        [
            "connection refused",
            "within 0.5 s",
            "answered by a proxy",
            "serves no model",
            "not an http",
            "not a URL",
        ],
        strict=True,
    ):
        assert words in error
    assert "via: 1.1 proxy.example" in errors[2]


def ask(run_module, server, prompts=(PROMPT,), **arguments):
    return run_module(functional_check, {"url": server.url, "model": "qwen3.5", "prompts": list(prompts), **arguments})


def test_good_answers_have_no_findings(run_module, serve):
    server = serve(words_per_chunk=3)
    chat = {"kind": "chat", "prompt": "How is it?", "temperature": 0, "expect": ["BRIGHT"]}
    result = ask(run_module, server, [PROMPT, chat])
    assert result["findings"] == []
    first, second = result["answers"]
    assert first["streamed_text"] == first["text"] == server.behaviour.text
    assert first["again"] == server.behaviour.text
    assert (first["status"], first["chunks"], first["completion_tokens"]) == (200, 5, 15)
    assert second["kind"] == "chat"
    assert {**PROMPT, "model": "qwen3.5"} in server.requests
    assert [{"role": "user", "content": "How is it?"}] in [body.get("messages") for body in server.requests]
    assert result["metrics"]["functional_check_seconds"] >= 0


@pytest.mark.parametrize(
    ("given", "identity", "severity"),
    [
        ({"status": 500}, "functional-no-answer", "error"),
        ({"status": 503, "headers": {"Via": "1.1 proxy.example"}}, "D11", "error"),
        ({"text": ""}, "E13", "error"),
        ({"usage": False}, "E13", "error"),
        ({"text": "!" * 60}, "G01", "error"),
        ({"cut_stream": True}, "functional-no-answer", "error"),
        ({"streamed_text": "quite another text than before"}, "stream-differs", "error"),
        ({"streamed_text": "bright because people everywhere think otherwise"}, "stream-differs", "warning"),
        ({"streamed_text": WORDS.replace("everywhere ", "")}, "stream-differs", "error"),
        ({"streamed_text": WORDS.replace("everywhere", "everywhere everywhere")}, "stream-differs", "error"),
        ({"again_text": "gloomy because nobody learns anything about it"}, "answer-not-repeatable", "error"),
        ({"answers_as": "other"}, "served-name-wrong", "error"),
        ({"text": " ".join(LONG), "ignore_max_tokens": True}, "max-tokens-ignored", "error"),
        ({"text": "这是一个完全不同的语言的回答没有人问过它而且很长"}, "G01", "error"),
        ({"ignore_stop": True}, "stop-ignored", "error"),
        ({"template": False}, "chat-template-wrong", "error"),
        ({"chats": False}, "chat-refused", "warning"),
    ],
)
def test_each_kind_of_bad_answer_is_a_finding(run_module, serve, given, identity, severity):
    asked = {**PROMPT, "prompt": "The future of AI in our days is"}
    findings = ask(run_module, serve(**given), [asked])["findings"]
    assert {(item["id"], item["severity"]) for item in findings} == {(identity, severity)}
    assert all(item["evidence"] and item["cause"] and item["fix"] for item in findings)


def test_expected_word_that_is_missing_is_a_finding(run_module, serve):
    findings = ask(run_module, serve(), [{**PROMPT, "expect": ["Paris"]}])["findings"]
    assert findings[0]["id"] == "G01"
    assert "'Paris'" in findings[0]["evidence"]


def test_answers_that_part_late_are_one_warning(run_module, serve):
    """Rounding depends on the batch; what it does to plain answers it does to streams, so it is told once."""
    late = "bright because people everywhere think otherwise"
    prompt, chat = ask(run_module, serve(again_text=late, streamed_text=f"{late} now"))["findings"]
    for told in (prompt, chat):
        assert (told["id"], told["severity"]) == ("answer-not-repeatable", "warning")
    assert "from character 34 on" in told["summary"]


CHINESE = "这是一个完全不同的语言的回答没有人问过它而且很长"
ENGLISH = "Tell me at some length about the capital of France."


def test_where_no_two_answers_are_the_same_a_stream_is_none_either():
    def told(id, severity):
        return {"id": id, "severity": severity}

    late = [told("answer-not-repeatable", "warning"), told("stream-differs", "error")]
    assert functional.causes(late) == late
    early = [told("stream-differs", "error"), told("G01", "error"), told("answer-not-repeatable", "error")]
    assert functional.causes(early) == early[1:]


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ({"prompt": ENGLISH}, True),
        ({"prompt": ENGLISH, "expect": ["12"]}, True),
        ({"prompt": ENGLISH, "expect": ["语言"]}, False),
        ({"messages": [{"role": "user", "content": ENGLISH}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ENGLISH}, {"type": "image"}]}]}, True),
        ({"messages": [{"role": "user", "content": CHINESE}, {"role": "user", "content": ENGLISH}]}, False),
        ({"messages": [{"role": "system", "content": "请用中文"}, {"role": "user", "content": ENGLISH}]}, False),
        ({"messages": [{"role": "user", "content": CHINESE}]}, False),
        ({"messages": [{"role": "system", "content": ENGLISH}]}, False),
    ],
)
def test_an_answer_is_in_the_language_of_what_was_asked_last(prompt, wrong):
    answer = {"kind": "chat", "prompt": "x", "error": None, "model": "m", "finish": "stop", "again": None}
    answer |= {"text": CHINESE + "12", "streamed_text": CHINESE + "12", "completion_tokens": 9, "streamed_tokens": 9}
    told = functional.judge(prompt, answer, "m")
    assert {one["id"] for one in told} == ({"G01"} if wrong else set())
    assert not wrong or "asked in latin letters" in told[0]["summary"]


@pytest.mark.parametrize(
    ("again", "severity"),
    [
        (SKY, None),
        ("The sky is blue because air scatters blue light more, and I hate cats now.", "warning"),
        ("The sky is blue", "warning"),
        ("The sea is deep and nobody knows how deep it is.", "error"),
        ("", "error"),
    ],
)
def test_how_early_two_answers_part_decides_how_bad_it_is(again, severity):
    answer = {"kind": "completion", "prompt": "Why is the sky blue?", "error": None, "model": "m", "finish": "stop"}
    answer |= {"text": SKY, "streamed_text": SKY, "completion_tokens": 16, "streamed_tokens": 16, "again": again}
    found = functional.judge({"prompt": "Why is the sky blue?", "temperature": 0}, answer, "m")
    assert [(one["id"], one["severity"]) for one in found] == (
        [("answer-not-repeatable", severity)] if severity else []
    )


def test_a_template_s_marks_in_a_chat_are_a_finding(run_module, serve):
    chat = {"kind": "chat", "prompt": "How is it?", "max_tokens": 50, "temperature": 0}
    findings = ask(run_module, serve(text=f"{WORDS}<|im_end|>"), [chat])["findings"]
    assert {item["id"] for item in findings} == {"chat-template-wrong"}


def test_chats_that_the_recipe_wants_may_not_be_refused(run_module, serve):
    chat = {"kind": "chat", "prompt": "How is it?", "temperature": 0}
    findings = ask(run_module, serve(chats=False), [PROMPT, chat])["findings"]
    assert ("functional-no-answer", "error") in {(item["id"], item["severity"]) for item in findings}


@pytest.mark.parametrize(("longest", "wanted"), [(None, []), (300, ["long-prompt-fails"])])
def test_a_prompt_of_full_length_is_asked_where_it_is_wanted(run_module, serve, longest, wanted):
    server = serve(longest=longest)
    engine = {"name": "e", "host": "n1", "role": "serve", "ranks": 1, "max_model_len": 500}
    engine |= {"metrics_url": f"{server.url}/metrics", "prefix_caching": False, "speculative": False}
    result = ask(run_module, server, engines=[engine], long_prompt=True)
    assert [item["id"] for item in result["findings"] if item["severity"] == "error"] == wanted
    longest_asked = max(len(str(body.get("prompt")).split()) for body in server.requests)
    assert 440 <= longest_asked <= 500
    server.requests.clear()
    ask(run_module, server, engines=[engine])
    assert max(len(str(body.get("prompt")).split()) for body in server.requests) < 300


ENGINE = {"name": "e", "host": "n1", "role": "serve", "ranks": 1, "prefix_caching": False, "speculative": False}


@pytest.mark.parametrize(
    ("text", "longest", "wanted", "why"),
    [
        (WORDS, 500, [], ""),
        ("42 7", 500, ["stop-unproven"], "'42 7'"),
        (WORDS, None, ["long-prompt-unproven"], "no engine names its --max-model-len"),
        (WORDS, 60, ["long-prompt-unproven"], "the engines take 60 tokens"),
    ],
)
def test_what_could_not_be_asked_is_told(run_module, serve, text, longest, wanted, why):
    server = serve(text=text)
    engine = {**ENGINE, "max_model_len": longest, "metrics_url": f"{server.url}/metrics"}
    found = ask(run_module, server, engines=[engine], long_prompt=True)["findings"]
    told = [one for one in found if one["id"].endswith("-unproven")]
    assert [one["id"] for one in told] == wanted
    for one in told:
        assert one["severity"] == "info"
        assert why in one["evidence"]
        assert one["cause"]
        assert one["fix"]


@pytest.mark.parametrize(("plain", "chat"), [(None, 9), (4, None), (None, None)])
def test_a_template_needs_both_counts_to_be_judged(plain, chat):
    (told,) = behaviour.judge_template(plain, chat, 200, "", True)
    assert (told["id"], told["severity"]) == ("chat-template-unproven", "info")
    assert "not counted" in told["evidence"]


def test_an_endpoint_that_counts_no_prompt_tokens_proves_neither_template_nor_length(serve):
    server = serve(usage=False)
    answer = {"kind": "completion", "text": WORDS}
    found = behaviour.check(server.url, "m", [PROMPT], [answer], 5, 500, True)
    assert [one["id"] for one in found] == ["chat-template-unproven", "long-prompt-unproven"]


def test_beside_wrong_answers_nothing_is_said_of_what_they_could_not_prove(run_module, serve):
    assert {one["id"] for one in ask(run_module, serve(text="!" * 60))["findings"]} == {"G01"}


def test_a_recipe_whose_prompts_are_drawn_by_lot_is_asked_once_more_without(run_module, serve):
    server = serve()
    warm = {**PROMPT, "temperature": 0.6, "max_tokens": 512, "expect": ["bright"]}
    result = ask(run_module, server, [warm])
    assert result["findings"] == []
    assert [answer["kind"] for answer in result["answers"]] == ["completion", "completion", "chat"]
    assert {**PROMPT, "model": "qwen3.5", "max_tokens": 50} in server.requests
    assert any(body.get("stop") for body in server.requests)
    assert ask(run_module, serve(again_text="gloomy and so on"), [warm])["findings"][0]["id"] == "answer-not-repeatable"


def test_a_chat_is_asked_where_the_recipe_names_none(run_module, serve):
    server = serve()
    result = ask(run_module, server, [{**PROMPT, "expect": ["bright"]}])
    assert result["findings"] == []
    assert [(one["kind"], one["text"]) for one in result["answers"]] == [("completion", WORDS), ("chat", WORDS)]
    chat = {"max_tokens": 50, "temperature": 0, "model": "qwen3.5"}
    assert {**chat, "messages": [{"role": "user", "content": PROMPT["prompt"]}]} in server.requests
    base = ask(run_module, serve(chats=False), [PROMPT])
    assert [answer["kind"] for answer in base["answers"]] == ["completion"], "a base model may refuse"
    assert [(one["id"], one["severity"]) for one in base["findings"]] == [("chat-refused", "warning")]


def test_proxy_variables_do_not_reach_a_request(run_module, serve, monkeypatch):
    """A proxy that answers everything well: were it asked, the dead endpoint would pass."""
    server, proxy = Server(Behaviour()), serve()
    with server:
        dead = server.url
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    result = run_module(functional_check, {"url": dead, "model": "qwen3.5", "prompts": [PROMPT]})
    assert [item["id"] for item in result["findings"]] == ["functional-no-answer"]
    assert proxy.requests == []


@pytest.mark.parametrize("prompt", [{}, {"prompt": "x", "kind": "song"}, {"kind": "completion", "messages": [{}]}])
def test_bad_prompts_fail_by_number(run_module, prompt):
    result = run_module(functional_check, {"url": "http://127.0.0.1:9", "model": "m", "prompts": [prompt]})
    assert result["failed"] is True
    assert result["msg"].startswith("prompt 1:")


def test_smoke_bench_measures_and_compares(run_module, serve):
    server = serve()
    result = run_module(
        smoke_bench,
        {
            "url": server.url,
            "model": "qwen3.5",
            "concurrency": 2,
            "requests": 4,
            "slo": {"ttft_ms": 60000},
            "reference": {"load": {"conditions": {"concurrency": 2}, "figures": {"output_throughput": 1000}}},
            "simulated_url": [server.url + "/version"],
            "setting": {"hardware": "atlas-800-a3"},
        },
    )
    assert (result["changed"], result["result"]["completed"], result["result"]["simulated"]) == (False, 4, False)
    assert result["result"]["goodput"] == result["result"]["request_throughput"]
    assert [item["id"] for item in result["findings"]] == ["bench-reference"]
    assert result["table"][0] == ["", "mean", "p50", "p90", "p99"]
    assert len(server.requests) == 6
    assert result["keep"]["latest"] == result["keep"]["result"]
    assert result["keep"]["result"]["conditions"] == result["result"]["conditions"]
    assert result["result"]["conditions"]["hardware"] == "atlas-800-a3"
    assert "requests" not in result["keep"]["result"]


def test_smoke_bench_sends_nothing_in_check_mode(run_module, serve):
    server = serve()
    result = run_module(smoke_bench, {"url": server.url, "model": "m"}, check=True)
    assert (result["changed"], result["result"], server.requests) == (False, None, [])


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"slo": {"itl": 3}}, {"requests": -1}])
def test_smoke_bench_refuses_bad_arguments(run_module, bad):
    assert run_module(smoke_bench, {"url": "http://127.0.0.1:9", "model": "m", **bad})["failed"] is True


def test_failed_requests_are_a_finding_of_the_bench(run_module, serve):
    result = run_module(
        smoke_bench,
        {"url": serve(fail_every=2).url, "model": "m", "concurrency": 1, "requests": 4, "warmup": 0},
    )
    assert (result["result"]["completed"], result["result"]["errors"]) == (2, 2)
    assert [(item["id"], item["severity"]) for item in result["findings"]] == [("bench-errors", "error")]
