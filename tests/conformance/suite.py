"""One suite for everything that claims to be a vLLM server: the real engine, and the simulator of the sandbox.

Every check takes a `Deployment` and asserts. `CHECKS` are those for any deployment; those of `LAYOUTS` hold only for
deployments with the property they name. What a check may find different on an engine stands in `differences.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ascent import diagnosis
from ascent.launch_progress import PHASES, Progress
from ascent_controller import signatures
from tests.conformance import reference
from tests.conformance.deployment import Deployment, Json

Check = Callable[[Deployment], None]

FINISHED = {"length", "stop"}


def error_of(reply_text: Json, status: int, kind: str) -> Json:
    """The error of a body in OpenAI's form, checked for its keys and values."""
    assert set(reply_text) == {"error"}, reply_text
    error = reply_text["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert (error["code"], error["type"]) == (status, kind), error
    assert isinstance(error["message"], str), error
    assert error["message"], error
    return dict(error)


# -- answers -----------------------------------------------------------------------------------------------------------


def check_health(served: Deployment) -> None:
    """`/health` answers 200 with nothing to read."""
    reply = served.open("/health", url=served.answering)
    assert (reply.status, reply.text) == (200, "")


def check_ping(served: Deployment) -> None:
    """`/ping` is the same for platforms that probe it."""
    reply = served.open("/ping", url=served.answering)
    assert (reply.status, reply.text) == (200, "")


def check_version(served: Deployment) -> None:
    """`/version` names the release."""
    reply = served.open("/version", url=served.answering)
    assert reply.status == 200
    assert reply.json["version"].count(".") >= 2, reply.text


def check_models(served: Deployment) -> None:
    """`/v1/models` lists the served name with all the keys of the engine's card."""
    listed = served.open("/v1/models", url=served.answering).json
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card["id"] == served.model
    assert set(card) == reference.MODEL_CARD
    assert set(card["permission"][0]) == reference.PERMISSION
    assert (card["object"], card["owned_by"], card["parent"]) == ("model", "vllm", None)
    assert card["max_model_len"] == served.max_model_len


def check_completion(served: Deployment) -> None:
    """A completion has the engine's keys, as many tokens as were asked for, and usage that adds up."""
    body = served.complete("The future of AI is", ignore_eos=True)
    assert set(body) - reference.NEWER >= reference.COMPLETION
    assert not set(body) - reference.COMPLETION - reference.NEWER, set(body)
    (choice,) = body["choices"]
    assert not set(choice) - reference.COMPLETION_CHOICE - reference.NEWER, set(choice)
    assert set(choice) >= reference.COMPLETION_CHOICE
    assert (body["object"], body["model"], choice["index"]) == ("text_completion", served.model, 0)
    assert body["id"].startswith("cmpl-")
    assert choice["text"]
    assert choice["finish_reason"] == "length"
    usage = body["usage"]
    assert set(usage) - reference.NEWER == reference.USAGE
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def check_chat(served: Deployment) -> None:
    """A chat answer likewise, in a message of the assistant."""
    body = served.chat(ignore_eos=True)
    assert set(body) - reference.NEWER == reference.CHAT
    (choice,) = body["choices"]
    assert set(choice) - reference.NEWER == reference.CHAT_CHOICE
    assert set(choice["message"]) - reference.NEWER == reference.MESSAGE
    assert (body["object"], body["model"]) == ("chat.completion", served.model)
    assert body["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 8


def check_completion_stream(served: Deployment) -> None:
    """A stream has a chunk for every token, the reason in the last one, usage only where it was asked for."""
    chunks = served.stream("/v1/completions", {"prompt": "Say", "max_tokens": 6, "ignore_eos": True})
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert 1 < len(chunks) <= 6
    assert not any(chunk.get("usage") for chunk in chunks)
    for chunk in chunks:
        assert not set(chunk) - reference.STREAM - reference.NEWER, set(chunk)


def check_chat_stream(served: Deployment) -> None:
    """A chat stream opens with the role, and its deltas join to the answer that is given in one piece."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    chunks = served.stream("/v1/chat/completions", body)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    joined = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    whole = served.chat("Hello", max_tokens=6, temperature=0, ignore_eos=True)
    assert joined == whole["choices"][0]["message"]["content"]


def check_stream_usage(served: Deployment) -> None:
    """With `include_usage` a last chunk without choices brings the figures; continuous ones count up."""
    wanted = {"prompt": "Say", "max_tokens": 4, "ignore_eos": True}
    chunks = served.stream("/v1/completions", {**wanted, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert not any(chunk.get("usage") for chunk in chunks[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = served.stream("/v1/completions", {**wanted, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


# -- what was asked is what is done ------------------------------------------------------------------------------------


def check_max_tokens(served: Deployment) -> None:
    """`max_tokens` bounds the answer; 16 is what a completion gets without it."""
    for limit in (1, 5):
        assert served.complete(max_tokens=limit, ignore_eos=True)["usage"]["completion_tokens"] == limit
    assert served.complete(max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


def check_max_completion_tokens(served: Deployment) -> None:
    """A chat knows the limit by its newer name too."""
    body = served.chat(max_tokens=None, max_completion_tokens=3, ignore_eos=True)
    assert body["usage"]["completion_tokens"] == 3


def check_greedy(served: Deployment) -> None:
    """At temperature 0 equal prompts get equal answers, other prompts other ones."""
    first = served.complete("Once upon a time", temperature=0, max_tokens=12)["choices"][0]["text"]
    assert served.complete("Once upon a time", temperature=0, max_tokens=12)["choices"][0]["text"] == first
    assert served.complete("The list of ports", temperature=0, max_tokens=12)["choices"][0]["text"] != first


def check_seed(served: Deployment) -> None:
    """Sampling follows the seed."""
    texts = [
        served.complete("Once", temperature=1, seed=seed, max_tokens=12, ignore_eos=True)["choices"][0]["text"]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def check_stop(served: Deployment) -> None:
    """Generation ends before a stop string, with the reason `stop` and the string that did it."""
    asked = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    text = served.complete(**asked)["choices"][0]["text"]
    word = next(text[start : start + 3] for start in range(4, len(text) - 3) if text[start : start + 3].strip())
    (choice,) = served.complete(**asked, stop=[word])["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", word)
    assert choice["text"] == text[: text.index(word)]


def check_min_tokens(served: Deployment) -> None:
    """An answer has at least `min_tokens`."""
    assert served.complete(min_tokens=6, max_tokens=6)["usage"]["completion_tokens"] == 6


def check_several_choices(served: Deployment) -> None:
    """`n` choices are numbered and all counted."""
    body = served.complete(n=3, max_tokens=4, temperature=1, ignore_eos=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 12
    body = served.chat(n=2, max_tokens=4, temperature=1, ignore_eos=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]


def check_prompt_lists(served: Deployment) -> None:
    """A prompt is a text, token ids, or a list of either; every one gets its choice."""
    ids = served.open("/tokenize", {"model": served.model, "prompt": "The future"}, url=served.answering).json["tokens"]
    assert served.complete(ids)["usage"]["prompt_tokens"] == len(ids)
    body = served.complete(["One", "Two"], max_tokens=3, ignore_eos=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    body = served.complete([ids, ids], max_tokens=3, ignore_eos=True)
    assert body["usage"]["prompt_tokens"] == 2 * len(ids)
    text, numbers = (served.complete(p, temperature=0)["choices"][0]["text"] for p in ("The future", ids))
    assert text == numbers


def check_tokens(served: Deployment) -> None:
    """`/tokenize` and `/detokenize` are each other's inverse, and count as the usage does."""
    words = "The future of AI is bright."
    asked = {"model": served.model, "prompt": words}
    found = served.open("/tokenize", asked, url=served.answering).json
    assert set(found) == {"count", "max_model_len", "tokens", "token_strs"}
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == served.max_model_len
    back = served.open("/detokenize", {"model": served.model, "tokens": found["tokens"]}, url=served.answering).json
    assert back == {"prompt": words}
    assert served.complete(words)["usage"]["prompt_tokens"] == found["count"]
    with_words = served.open("/tokenize", {**asked, "return_token_strs": True}, url=served.answering).json
    assert len(with_words["token_strs"]) == found["count"]


def check_request_id(served: Deployment) -> None:
    """The caller's request id is in the answer's."""
    reply = served.open(
        "/v1/completions",
        {"model": served.model, "prompt": "Hello", "max_tokens": 1},
        url=served.answering,
        headers={"X-Request-Id": "conformance-7"},
    )
    assert reply.json["id"] == "cmpl-conformance-7"


def check_logprobs(served: Deployment) -> None:
    """`logprobs` of a completion come for every token, with as many alternatives as were asked for."""
    (choice,) = served.complete("Hello", max_tokens=3, temperature=0, logprobs=2, ignore_eos=True)["choices"]
    found = choice["logprobs"]
    assert set(found) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 3
    assert all(value <= 0 for value in found["token_logprobs"])
    assert all(len(alternatives) >= 2 for alternatives in found["top_logprobs"])
    assert "".join(found["tokens"]) == choice["text"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(served: Deployment, body: Json | bytes, status: int, kind: str, path: str = "/v1/completions") -> Json:
    """The error that an engine answers a body with."""
    reply = served.open(path, body, url=served.answering)
    assert reply.status == status, f"{reply.status}: {reply.text}"
    return error_of(reply.json, status, kind)


def check_unknown_model(served: Deployment) -> None:
    """Another model's name is not found."""
    error = refused(served, {"model": "no-such-model", "prompt": "x"}, 404, "NotFoundError")
    assert error["param"] == "model"
    assert "`no-such-model` does not exist" in error["message"]
    chat = {"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}
    refused(served, chat, 404, "NotFoundError", "/v1/chat/completions")


def check_missing_prompt(served: Deployment) -> None:
    """No prompt is a bad request that says so."""
    error = refused(served, {"model": served.model}, 400, "BadRequestError")
    assert "prompt" in error["message"]


def check_missing_messages(served: Deployment) -> None:
    """A chat without messages is of the wrong form."""
    error = refused(served, {"model": served.model}, 400, "Bad Request", "/v1/chat/completions")
    assert "messages" in error["message"]


def check_broken_json(served: Deployment) -> None:
    """A body that is no JSON is refused with the parser's words."""
    error = refused(served, b'{"model": ', 400, "Bad Request")
    assert "json_invalid" in error["message"]


def check_wrong_types(served: Deployment) -> None:
    """A value of the wrong type is named by where it stands."""
    error = refused(served, {"model": served.model, "prompt": "x", "max_tokens": "many"}, 400, "Bad Request")
    assert "max_tokens" in error["message"]


def check_impossible_values(served: Deployment) -> None:
    """Values that no sampling is possible with are refused, each by its name."""
    for name, value in (
        ("max_tokens", 0),
        ("temperature", -1),
        ("top_p", 0),
        ("n", 0),
        ("presence_penalty", 3),
        ("min_tokens", 99),
    ):
        error = refused(
            served, {"model": served.model, "prompt": "x", "max_tokens": 8, name: value}, 400, "BadRequestError"
        )
        assert name in error["message"], error


def check_context_length(served: Deployment) -> None:
    """What does not fit into the context is refused with both figures; what just fits is served."""
    longest = served.max_model_len
    error = refused(
        served, {"model": served.model, "prompt": [300] * (longest + 1), "max_tokens": 8}, 400, "BadRequestError"
    )
    assert str(longest) in error["message"], error
    assert "maximum context length" in error["message"], error
    error = refused(served, {"model": served.model, "prompt": "x", "max_tokens": longest + 1}, 400, "BadRequestError")
    assert str(longest) in error["message"], error
    body = served.complete([300] * (longest - 2), max_tokens=2, ignore_eos=True)
    assert body["usage"]["total_tokens"] == longest


def check_token_out_of_vocabulary(served: Deployment) -> None:
    """A token id that the model lacks is refused."""
    error = refused(served, {"model": served.model, "prompt": [10**7], "max_tokens": 1}, 400, "BadRequestError")
    assert "vocabulary" in error["message"], error


def check_stream_options_without_stream(served: Deployment) -> None:
    """Options of a stream need a stream."""
    body = {"model": served.model, "prompt": "x", "stream_options": {"include_usage": True}}
    error = refused(served, body, 400, "BadRequestError")
    assert "stream" in error["message"].lower(), error


def check_unknown_path(served: Deployment) -> None:
    """Paths and methods that do not exist."""
    assert served.open("/v1/nothing", url=served.answering).status == 404
    assert served.open("/v1/completions", url=served.answering).status == 405


# -- figures -----------------------------------------------------------------------------------------------------------


def check_metric_names(served: Deployment) -> None:
    """Metrics have the engine's names, types and labels, and those that Ascent and dashboards read are there."""
    found = {name: metric for name, metric in served.metrics().items() if name.startswith("vllm:")}
    for name in sorted(found):
        if name.startswith(reference.CONNECTOR_PREFIXES):
            continue
        assert name in reference.METRICS, f"{name} is no metric of vLLM"
        kind, labels = reference.METRICS[name]
        assert found[name].kind == kind, f"{name}: {found[name].kind}, not {kind}"
        if found[name].samples and name not in reference.SETTINGS:
            assert found[name].labels == labels, f"{name}: labels {found[name].labels}, not {labels}"
    missing = reference.CORE - found.keys()
    assert not missing, f"missing: {sorted(missing)}"


def check_metric_ranks(served: Deployment) -> None:
    """Every rank has its own samples from the start, under the label `engine`; the model is the served name."""
    found = served.metrics()["vllm:num_requests_running"]
    assert sorted(labels["engine"] for _, labels, _ in found.samples) == [str(rank) for rank in range(served.ranks)]
    assert {labels["model_name"] for _, labels, _ in found.samples} == {served.model}


def check_metric_counts(served: Deployment) -> None:
    """Counters follow requests: tokens of prompt and answer, and one finished request by its reason."""
    names = ("generation_tokens", "prompt_tokens", "request_success")
    before = {name: served.count(name) for name in names}
    usage = served.complete("Count these tokens", max_tokens=7, ignore_eos=True)["usage"]
    assert served.grows("generation_tokens", before["generation_tokens"], 7) == 7
    assert served.grows("prompt_tokens", before["prompt_tokens"], usage["prompt_tokens"]) == usage["prompt_tokens"]
    assert served.grows("request_success", before["request_success"], 1) == 1


# -- the start ---------------------------------------------------------------------------------------------------------


def check_log_phases(served: Deployment) -> None:
    """Each process's log leads the launch's progress through its phases, in order, as far as the process goes."""
    assert served.logs, "the deployment gives no logs"
    for name, log in served.logs().items():
        progress, seen = Progress(served.ranks), []
        for line in log.splitlines():
            if progress.feed(line) and progress.phase not in seen:
                seen.append(progress.phase)
        wanted = {"weights", "cache"} if "headless" in name else {"weights", "cache", "ready"}
        assert wanted <= set(seen), f"{name}: phases {seen}"
        assert seen == sorted(seen, key=PHASES.index), f"{name}: phases {seen}"


def check_log_faultless(served: Deployment) -> None:
    """A healthy engine writes nothing that the catalogue takes for a fault: a launch would be ended for it."""
    assert served.logs, "the deployment gives no logs"
    catalogue = signatures.load()
    for name, log in served.logs().items():
        found = diagnosis.diagnose(log, catalogue)
        assert not found, f"{name}: {[(item['id'], item['evidence'][:300]) for item in found]}"


def check_log_requests(served: Deployment) -> None:
    """The server logs each request with its client's address and port, method, path and status."""
    assert served.logs, "the deployment gives no logs"
    served.complete("Log this", max_tokens=1)
    lines = [line for log in served.logs().values() for line in log.splitlines()]
    said = re.compile(r'[\d.]+:\d+ - "POST /v1/completions HTTP/1\.1" 200 OK$')
    assert any(said.search(line.rstrip()) for line in lines)


CHECKS: tuple[Check, ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_") and callable(value)
)


# -- layouts -----------------------------------------------------------------------------------------------------------


def layout_key(served: Deployment) -> None:
    """With an API key, `/v1` asks for it and the rest does not."""
    asked = {"model": served.model, "prompt": "x", "max_tokens": 1}
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        reply = served.open("/v1/completions", asked, headers=headers)
        assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})
        assert served.open("/v1/models", headers=headers).status == 401
        assert served.open("/health", headers=headers).status == 200
    assert served.open("/v1/completions", asked).status == 200


def layout_ranks(served: Deployment) -> None:
    """Requests at once go to all data parallel ranks, in equal parts, as each rank's own counter tells."""
    ranks = [str(rank) for rank in range(served.ranks)]
    before = {rank: served.count("request_success", engine=rank) for rank in ranks}
    asked = 4 * served.ranks
    with ThreadPoolExecutor(asked) as pool:
        list(
            pool.map(lambda number: served.complete(f"Request {number}", max_tokens=24, ignore_eos=True), range(asked))
        )
    grown = Counter({rank: served.grows("request_success", before[rank], 1, engine=rank) for rank in ranks})
    assert sum(grown.values()) <= asked
    assert all(share >= asked / served.ranks / 2 for share in grown.values()), grown


def layout_transfer(served: Deployment) -> None:
    """The prompt's KV cache travels: decode's own counters say that it came from another engine."""
    name, source = "prompt_tokens_by_source", "external_kv_transfer"
    decode, prefill = served.engines["decode"], served.engines["prefill"]
    before, worked = served.count(name, decode, source=source), served.count("prompt_tokens", prefill)
    usage = served.complete("Carry these words. " * 40, max_tokens=8, ignore_eos=True)["usage"]
    assert usage["completion_tokens"] == 8
    served.grows("prompt_tokens", worked, usage["prompt_tokens"], prefill)
    brought = served.grows(name, before, 1, decode, source=source)
    # All but what the engine computes anew to get its first token: at most one block.
    assert usage["prompt_tokens"] - 128 <= brought <= usage["prompt_tokens"], (brought, usage)


def layout_transfer_same_answer(served: Deployment) -> None:
    """An answer after a transfer is the one that decode gives by itself."""
    body = {"model": served.model, "prompt": "Carry these words. " * 30, "max_tokens": 12, "temperature": 0}
    through = served.open("/v1/completions", body).json["choices"][0]["text"]
    alone = served.open("/v1/completions", body, url=served.engines["decode"]).json["choices"][0]["text"]
    assert through == alone


def layouts(served: Deployment) -> list[Check]:
    """The further checks that fit a deployment."""
    chosen: list[Check] = [layout_key] if served.api_key else []
    chosen += [layout_ranks] if served.ranks > 1 else []
    return chosen + ([layout_transfer, layout_transfer_same_answer] if served.routed else [])
