"""Whether the endpoint answers: the recipe's prompts, plain, streamed and again, and what is wrong with the answers."""

from __future__ import annotations

__all__ = ["ask", "body_of", "causes", "check", "judge", "with_chat", "with_steady"]

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from . import access_check, answer_quality
from .client import ClientError, events, request
from .findings import finding

_PATHS = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}
# Keys of a prompt that are no option of the engine's.
_OURS = frozenset(("kind", "expect", "name", "optional", "prompt", "messages"))
_STAGE = "check"
_MAX_THREADS = 16
# Answers at temperature 0 may part ways late, where rounding depends on the batch. Not within so many characters.
_SAME_START = 12
_FEW = 50
# What a chat template is made of: in an answer it shows that the engine does not know where a turn ends.
_MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[/INST]", "</s>")


def _kind(prompt: Mapping[str, Any]) -> str:
    return str(prompt.get("kind") or ("chat" if "messages" in prompt else "completion"))


def body_of(prompt: Mapping[str, Any], model: str) -> Tuple[str, Dict[str, Any]]:
    """Path and body of a prompt: its own sampling values as they are, ``prompt`` turned into a message for a chat."""
    body = {key: value for key, value in prompt.items() if key not in _OURS}
    body["model"] = model
    if _kind(prompt) == "chat":
        body["messages"] = prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]
    else:
        body["prompt"] = prompt["prompt"]
    return _PATHS[_kind(prompt)], body


def with_steady(prompts: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """The prompts, and where none of them is at temperature 0 the first one once more at that, with few tokens.

    What should be the same each time, and where an answer has to stop, only shows in answers that are not drawn by lot.
    """
    asked = [dict(prompt) for prompt in prompts]
    if asked and all(prompt.get("temperature") != 0 for prompt in asked):
        # What it expects may come later than so many tokens reach.
        steady = {key: value for key, value in asked[0].items() if key != "expect"}
        asked.append({**steady, "temperature": 0, "max_tokens": min(int(steady.get("max_tokens") or _FEW), _FEW)})
    return asked


def with_chat(prompts: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """The prompts, and where none of them is a chat one of them as a chat, which may be refused (``optional``).

    Most clients chat, and nothing but the endpoint knows whether its model has a chat template.
    """
    asked = [dict(prompt) for prompt in prompts]
    if asked and all(_kind(prompt) != "chat" for prompt in asked):
        chat = next((prompt for prompt in asked if prompt.get("temperature") == 0), asked[0])
        asked.append(
            {**{key: value for key, value in chat.items() if key != "expect"}, "kind": "chat", "optional": True}
        )
    return asked


def _text(choice: Mapping[str, Any]) -> str:
    """The words of a choice of any of the four shapes; a reasoning model's thoughts count as words."""
    part = choice.get("message") or choice.get("delta") or {}
    thoughts = part.get("reasoning_content") or part.get("reasoning") or ""
    return thoughts + (part.get("content") or choice.get("text") or "")


def ask(url: str, model: str, prompt: Mapping[str, Any], timeout: float) -> Dict[str, Any]:
    """One prompt: first plain, then streamed and, at temperature 0, plain once more beside it.

    Returns ``{kind, prompt, status, model, text, finish, prompt_tokens, completion_tokens, streamed_text,
    streamed_tokens, chunks, again, seconds, error}``; ``again`` is None where the prompt isn't asked twice.
    """
    path, body = body_of(prompt, model)
    address = url.rstrip("/") + path
    messages = prompt.get("messages")
    answer: Dict[str, Any] = {
        "kind": _kind(prompt),
        "prompt": prompt.get("prompt") if messages is None else str(messages[-1].get("content")),
        "status": None,
        "model": None,
        "text": None,
        "finish": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "streamed_text": None,
        "streamed_tokens": None,
        "chunks": 0,
        "again": None,
        "seconds": None,
        "error": None,
    }
    try:
        answer.update(_plain(address, body, timeout))
        with ThreadPoolExecutor(max_workers=2) as pool:
            streamed = pool.submit(_stream, address, body, timeout)
            again = pool.submit(_plain, address, body, timeout) if prompt.get("temperature") == 0 else None
        answer.update(streamed.result())
        answer["again"] = again.result()["text"] if again else None
    except ClientError as error:
        answer.update(error=str(error), status=answer["status"] or error.status)
    return answer


def _plain(address: str, body: Mapping[str, Any], timeout: float) -> Dict[str, Any]:
    response = request("POST", address, body, timeout=timeout)
    if response.status != 200:
        via = response.headers.get("via")
        through = f" through proxy {via}" if via else ""
        raise ClientError(f"HTTP {response.status}{through}: {response.text[:300]}", response.status)
    data = response.json()
    try:
        choice, usage = data["choices"][0], data.get("usage") or {}
        return {
            "status": 200,
            "seconds": round(response.seconds, 4),
            "model": data.get("model"),
            "text": _text(choice),
            "finish": choice.get("finish_reason"),
            "prompt_tokens": usage.get("prompt_tokens"),
            "completion_tokens": usage.get("completion_tokens"),
        }
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ClientError(f"answer without choices: {str(data)[:300]}", 200) from None


def _stream(address: str, body: Mapping[str, Any], timeout: float) -> Dict[str, Any]:
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    pieces: List[str] = []
    tokens = None
    for _arrival, event in events(address, streamed, timeout=timeout, deadline=time.monotonic() + timeout):
        try:
            piece = _text(event["choices"][0]) if event.get("choices") else ""
        except (AttributeError, TypeError):
            raise ClientError(f"event of an unknown shape: {str(event)[:300]}", 200) from None
        if piece:
            pieces.append(piece)
        if event.get("usage"):
            tokens = event["usage"].get("completion_tokens")
    return {"streamed_text": "".join(pieces), "streamed_tokens": tokens, "chunks": len(pieces)}


def _told(id: str, severity: str, summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    return finding(id, severity, summary, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def _unanswered(asked: str, answer: Mapping[str, Any], model: str) -> Dict[str, Any]:
    error = answer["error"]
    if answer["status"] == 404 and model in error:
        return _told(
            "served-name-wrong",
            "error",
            f"the endpoint does not serve {model!r}",
            error,
            "An engine was started with another --served-model-name, or the router leads to another cluster.",
            "Compare /v1/models of every engine with model.served_name of the recipe.",
        )
    # A status of a proxy's own comes with its header and is another fault than the engine's refusal.
    return _told(
        "D11" if "through proxy" in error else "functional-no-answer",
        "error",
        f"the endpoint does not answer {asked}",
        error,
        "The router or an engine behind it refuses or has died, although the endpoint listens.",
        "Read the container logs of the router and of the first engine it names.",
    )


def judge(prompt: Mapping[str, Any], answer: Mapping[str, Any], model: str) -> List[Dict[str, Any]]:
    """Findings on one answer of `ask`; ``model`` is the name that was asked for. Pure."""
    asked = f"{answer['kind']} {str(answer['prompt'])[:80]!r}"
    if answer["error"]:
        refused = access_check.refusal(answer["status"], f"the endpoint, asked {asked},", None, answer["error"])
        if refused and "through proxy" not in answer["error"]:
            return [refused]
        return [_unanswered(asked, answer, model)]
    findings = []
    for way, text, tokens in (
        ("plain", answer["text"], answer["completion_tokens"]),
        ("streamed", answer["streamed_text"], answer["streamed_tokens"]),
    ):
        if not (text or "").strip() or not tokens:
            findings.append(
                _told(
                    "E13",
                    "error",
                    f"HTTP 200 without an answer to {asked} ({way})",
                    f"text {text!r}, completion tokens {tokens}",
                    "A decode process behind the router is gone, or the engine reports no usage.",
                    "Check each engine by itself, then the router's list of engines.",
                )
            )
        else:
            findings += _sense(prompt, asked, way, text)
    if answer["model"] not in (None, model):
        findings.append(
            _told(
                "served-name-wrong",
                "error",
                f"asked for {model!r}, the endpoint answers as {answer['model']!r}",
                f"model of the answer to {asked}: {answer['model']!r}",
                "The router leads to an engine of another deployment, or one has several names in another order.",
                "Compare /v1/models of every engine with model.served_name of the recipe.",
            )
        )
    findings += _limits(prompt, asked, answer)
    return findings + ([] if findings else _sameness(prompt, asked, answer))


def _words(content: Any) -> str:
    """The text of a message's content, which may be a list of parts with pictures among them."""
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def _question(prompt: Mapping[str, Any]) -> str:
    """The text in whose language the answer should be; empty where a prompt may ask for another one.

    That is the last message of the user. What a prompt expects, and what else is said in a conversation, may be in
    another writing: then the answer may be as well.
    """
    messages = prompt.get("messages") or [{"role": "user", "content": prompt.get("prompt")}]
    asked = [_words(one.get("content")) for one in messages if one.get("role") == "user"][-1:]
    beside = [*(_words(one.get("content")) for one in messages), *(str(word) for word in prompt.get("expect") or [])]
    return asked[0] if asked and all(answer_quality.same_writing(text, asked[0]) for text in beside) else ""


def _sense(prompt: Mapping[str, Any], asked: str, way: str, text: str) -> List[Dict[str, Any]]:
    """Garbage, words that had to be there, and what is left of a chat template."""
    missing = [word for word in prompt.get("expect") or [] if word.lower() not in text.lower()]
    reasons = answer_quality.judge(text, _question(prompt))["reasons"]
    reasons = reasons + [f"expected {word!r} in the answer" for word in missing]
    if reasons:
        return [
            _told(
                "G01",
                "error",
                f"the answer to {asked} is not sensible ({way}): {reasons[0]}",
                f"{'; '.join(reasons)}. Answer: {text[:300]!r}",
                "Wrong quantisation flag, a faulty operator or graph, a bad shard, or mixed KV blocks.",
                "Repeat with --enforce-eager, then on one node; compare the weights' hashes between nodes.",
            )
        ]
    marks = [mark for mark in _MARKS if mark in text]
    if _kind(prompt) == "chat" and marks:
        return [
            _told(
                "chat-template-wrong",
                "error",
                f"the answer to {asked} holds parts of a chat template ({way})",
                f"{', '.join(marks)} in {text[:300]!r}",
                "The engine's chat template or end token is another model's, so turns do not end where they should.",
                "Compare tokenizer_config.json and generation_config.json with the source; take --chat-template away.",
            )
        ]
    return []


def _limits(prompt: Mapping[str, Any], asked: str, answer: Mapping[str, Any]) -> List[Dict[str, Any]]:
    wanted, tokens = prompt.get("max_tokens"), answer["completion_tokens"]
    # An answer that ends by itself may be shorter; one that ended for its length has exactly what was asked for.
    if not wanted or not tokens or tokens == wanted or (tokens < wanted and answer["finish"] != "length"):
        return []
    return [
        _told(
            "max-tokens-ignored",
            "error",
            f"{wanted} tokens were asked for with {asked}, and the answer has {tokens}",
            f"max_tokens {wanted}, completion tokens {tokens}, finish reason {answer['finish']}",
            "The router changes the request, as it does for the prefill side, or the engine has limits of its own.",
            "Ask an engine by itself: if that is right, it is the router; else read its --override-generation-config.",
        )
    ]


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common from their start on."""
    return next((at for at, (left, right) in enumerate(zip(one, other)) if left != right), min(len(one), len(other)))


def _same_start(one: str, other: str) -> bool:
    """Whether two texts begin alike, as far as the shorter of them goes; with one without a word nothing does."""
    length = min(_SAME_START, len(one), len(other))
    return bool(one.strip()) == bool(other.strip()) and one[:length] == other[:length]


def _within(part: str, whole: str) -> bool:
    """Whether ``part`` is what is left of ``whole`` after characters have been taken away."""
    rest = iter(whole)
    return all(character in rest for character in part)


def _sameness(prompt: Mapping[str, Any], asked: str, answer: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """What differs between answers that should be the same."""
    plain, streamed, again = answer["text"], answer["streamed_text"], answer["again"]
    if prompt.get("temperature") != 0 or again is None:
        return []
    if not _same_start(plain, again):
        return [
            _told(
                "answer-not-repeatable",
                "error",
                f"the same {asked} at temperature 0 gets two different answers",
                f"first {plain[:200]!r}, then {again[:200]!r}",
                "Two ranks or instances do not hold the same weights, or one of them computes wrongly.",
                "Ask each instance by itself, and compare the weights' hashes between nodes.",
            )
        ]
    if plain == again == streamed:
        return []
    # The same numbers of tokens and yet fewer or more characters: parts of the text were lost or came twice.
    torn = len(plain) != len(streamed) and (_within(streamed, plain) or _within(plain, streamed))
    if torn or not _same_start(plain, streamed):
        return [
            _told(
                "stream-differs",
                "error",
                f"the streamed answer to {asked} is not the plain one"
                + (": parts of it were lost or came twice" if torn else ""),
                f"plain {plain[:200]!r}, streamed {streamed[:200]!r}",
                "The router drops or doubles chunks, or streams take another way than plain requests.",
                "Ask an engine by itself: if that is right, it is the router or a proxy before it.",
            )
        ]
    # Whatever makes plain answers part ways late does the same to streams, so it is told once.
    name, other, what = (
        ("answer-not-repeatable", again, "two answers to the same {} at temperature 0 differ")
        if plain != again
        else ("stream-differs", streamed, "plain and streamed answers to {} differ at temperature 0")
    )
    at = _common(plain, other)
    return [
        _told(
            name,
            "warning",
            what.format(asked) + f" from character {at + 1} on",
            f"{_around(plain, at)!r} against {_around(other, at)!r}",
            "Rounding that depends on the batch does this late in a text; so does a rank whose weights are hardly off.",
            "Nothing, if clients can live with it; else repeat the check while nobody else asks.",
        )
    ]


def causes(findings: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Findings without what another one explains: where no two answers are the same, a stream is not either."""
    unsteady = any(one["id"] == "answer-not-repeatable" and one["severity"] == "error" for one in findings)
    return [one for one in findings if not (unsteady and one["id"] == "stream-differs")]


def _around(text: str, at: int) -> str:
    """A text's characters near a place."""
    return text[max(0, at - 60) : at + 140]


def check(url: str, model: str, prompts: Sequence[Mapping[str, Any]], timeout: float = 300) -> Dict[str, Any]:
    """All prompts at once: ``{"prompts", "answers", "findings"}``; ``timeout`` in seconds for each answer.

    ``prompts`` and ``answers`` go together, without those that were ``optional`` and refused.
    """
    if not prompts:
        return {"prompts": [], "answers": [], "findings": []}
    with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, len(prompts))) as pool:
        answers = list(pool.map(lambda prompt: ask(url, model, prompt, timeout), prompts))
    pairs = [
        (prompt, answer)
        for prompt, answer in zip(prompts, answers)
        if not (prompt.get("optional") and answer["error"] and answer["status"] != 200)
    ]
    return {
        "prompts": [prompt for prompt, _ in pairs],
        "answers": [answer for _, answer in pairs],
        "findings": causes([item for prompt, answer in pairs for item in judge(prompt, answer, model)]),
    }
