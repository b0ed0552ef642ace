"""What an endpoint does with a request beside answering it: stop strings, chat templates, prompts of full length."""

from __future__ import annotations

__all__ = ["check", "judge_length", "judge_stop", "judge_template", "stop_word"]

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .client import ClientError, Response, request
from .findings import finding
from .functional import body_of

_STAGE = "check"
# A sentence whose repetitions are the same tokens each time, so that a prompt's length can be told beforehand.
_SENTENCE = " The record says that all is well and that nothing of it is missing."
_PROBE = "Say in a few words what the record says."
_FEW, _MORE = 2, 10
_ANSWER = 8
# Of a full prompt, what is left for the answer, and for tokens that the estimate does not know.
_ROOM = 32
_LONG_TIMEOUT = 600.0


def stop_word(text: str) -> Optional[str]:
    """A word inside an answer that does not come before, so that an answer that stops there differs from a whole one.

    >>> stop_word("It is as it was yesterday.")
    'was'
    """
    words = [(match.group(), match.start()) for match in re.finditer(r"[^\W\d_]{3,}", text)]
    found = [word for word, start in words if start > 0 and text.index(word) == start and text[:start].strip()]
    return found[0] if found else None


def _post(url: str, body: Mapping[str, Any], timeout: float) -> Tuple[Optional[Response], str]:
    """An answer, or why there is none."""
    try:
        return request("POST", url, body, timeout=timeout), ""
    except ClientError as error:
        return None, str(error)


def _prompt_tokens(response: Optional[Response]) -> Optional[int]:
    """A prompt's tokens as an answer tells them; None where it doesn't."""
    if response is None or response.status != 200:
        return None
    try:
        return int(response.json()["usage"]["prompt_tokens"])
    except (ClientError, KeyError, TypeError, ValueError):
        return None


def _told(id: str, severity: str, summary: str, evidence: str, cause: str, fix: str) -> Dict[str, Any]:
    return finding(id, severity, summary, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def _unproven(id: str, what: str, evidence: str, cause: str, fix: str) -> List[Dict[str, Any]]:
    """What could not be asked, as information: it is no fault, and no proof either."""
    return [_told(id, "info", f"it is not proven that {what}", evidence, cause, fix)]


def judge_stop(word: str, status: Optional[int], text: str, error: str) -> List[Dict[str, Any]]:
    """Findings on an answer that was to stop before ``word``. Pure."""
    if status != 200:
        summary, evidence = "a request with a stop string is refused", error
    elif word in text:
        summary, evidence = "a stop string is ignored", f"stop {word!r}, answer {text[:200]!r}"
    else:
        return []
    return [
        _told(
            "stop-ignored",
            "error",
            summary,
            evidence,
            "The router drops parts of a request, so agents and tools that rely on stop strings get too much.",
            "Ask an engine by itself: if that is right, it is the router.",
        )
    ]


def judge_template(
    plain: Optional[int], chat: Optional[int], status: Optional[int], error: str, wanted: bool
) -> List[Dict[str, Any]]:
    """Findings on one text asked as it is and as a chat: ``plain`` and ``chat`` are tokens of the two prompts.

    ``status`` and ``error`` are of the chat; ``wanted``: whether the recipe asks for chats. Pure.
    """
    if status != 200:
        return [
            _told(
                "chat-refused",
                "error" if wanted else "warning",
                "the endpoint completes texts and refuses chats",
                error,
                "The model has no chat template, or the router does not know that path.",
                "Give a template with --chat-template; nothing, if this is a base model that nobody chats with.",
            )
        ]
    if plain is None or chat is None:
        return _unproven(
            "chat-template-unproven",
            "chats reach the model through its chat template",
            f"prompt tokens as a text: {_or_none(plain)}, as a chat: {_or_none(chat)}",
            "The endpoint does not complete texts, or counts no prompt tokens, so the two can't be compared.",
            "Ask an engine by itself: if it has usage.prompt_tokens, the router takes it away.",
        )
    if chat > plain:
        return []
    return [
        _told(
            "chat-template-wrong",
            "error",
            "chats reach the model without its chat template",
            f"the same words are {plain} tokens as a text and {chat} as a chat: no roles, no turns",
            "The chat template renders nothing but the content; the model then goes on with the text of the user.",
            "Compare chat_template of tokenizer_config.json with the source; take --chat-template away.",
        )
    ]


def judge_length(wanted: int, counted: Optional[int], longest: int, status: Optional[int], text: str, error: str) \
        -> List[Dict[str, Any]]:  # fmt: skip
    """Findings on a prompt of about ``wanted`` tokens, which the engine counted as ``counted``. Pure."""
    if status == 200 and text.strip() and counted is not None and counted >= 0.9 * wanted:
        return []
    if status == 200 and text.strip() and counted is not None:
        what, evidence = "is cut short", f"{counted} of about {wanted} tokens counted"
    elif status == 200:
        what, evidence = "gets an empty answer", f"HTTP 200, text {text[:80]!r}, {counted} prompt tokens"
    else:
        what, evidence = "fails", error
    return [
        _told(
            "long-prompt-fails",
            "error",
            f"a prompt of about {wanted} tokens {what}, although the engines take {longest}",
            evidence,
            "The KV cache, a buffer of the transfer or a limit of the router is smaller than --max-model-len promises.",
            "Read the engines' logs of that minute; lower --max-model-len, or raise what they name.",
        )
    ]


def _unmeasured(evidence: str, cause: str, fix: str) -> List[Dict[str, Any]]:
    return _unproven("long-prompt-unproven", "a prompt of full length is answered", evidence, cause, fix)


def _or_none(tokens: Optional[int]) -> str:
    return "not counted" if tokens is None else str(tokens)


class _Asker:
    """One endpoint, and what is asked of it."""

    def __init__(self, url: str, model: str, timeout: float) -> None:
        self.url, self.model, self.timeout = url.rstrip("/"), model, timeout

    def stop(self, asked: Sequence[Tuple[Mapping[str, Any], Mapping[str, Any]]]) -> List[Dict[str, Any]]:
        """The first prompt at temperature 0 whose answer has a fit word, to stop there."""
        steady = [(prompt, answer["text"]) for prompt, answer in asked if prompt.get("temperature") == 0]
        prompt, word = next(
            ((prompt, word) for prompt, text in steady for word in [stop_word(text or "")] if word), (None, None)
        )
        if prompt is None or word is None:
            return _unproven(
                "stop-unproven",
                "stop strings stop an answer",
                "answers at temperature 0: " + ("; ".join(repr((text or "")[:80]) for _, text in steady) or "none"),
                "None of them has a word inside at which it could be told to stop.",
                "Give checks.prompts of the recipe one at temperature 0 that is answered with a sentence.",
            )
        path, body = body_of(prompt, self.model)
        response, error = _post(self.url + path, {**body, "stop": [word]}, self.timeout)
        return judge_stop(word, response.status if response else None, _answer(response), error or _refusal(response))

    def template(self, wanted: bool) -> List[Dict[str, Any]]:
        """The same words as a text and as a chat."""
        common = {"model": self.model, "max_tokens": 1, "temperature": 0}
        plain, _ = _post(f"{self.url}/v1/completions", {**common, "prompt": _PROBE}, self.timeout)
        messages = [{"role": "user", "content": _PROBE}]
        chat, error = _post(f"{self.url}/v1/chat/completions", {**common, "messages": messages}, self.timeout)
        return judge_template(
            _prompt_tokens(plain), _prompt_tokens(chat), chat.status if chat else None, error or _refusal(chat), wanted
        )

    def length(self, longest: Optional[int]) -> List[Dict[str, Any]]:
        """A prompt of nearly ``longest`` tokens, made by what two short ones count."""
        if not longest:
            return _unmeasured(
                "no engine names its --max-model-len",
                "The longest sequence is what the model's configuration says, which the plan does not know.",
                "Give max-model-len in args of the recipe.",
            )
        address, common = f"{self.url}/v1/completions", {"model": self.model, "max_tokens": 1, "temperature": 0}
        short = [
            _prompt_tokens(_post(address, {**common, "prompt": _SENTENCE * count}, self.timeout)[0])
            for count in (_FEW, _MORE)
        ]
        if short[0] is None or short[1] is None or short[1] <= short[0]:
            return _unmeasured(
                f"prompts of {_FEW} and {_MORE} sentences: {_or_none(short[0])} and {_or_none(short[1])} tokens",
                "The endpoint does not complete texts, or does not count prompt tokens as they are.",
                "Ask an engine by itself: if it has usage.prompt_tokens, the router takes it away.",
            )
        each = (short[1] - short[0]) / (_MORE - _FEW)
        count = int((longest - _ROOM - _ANSWER - (short[0] - each * _FEW)) / each)
        if count <= _MORE:
            return _unmeasured(
                f"the engines take {longest} tokens, and {_MORE} sentences are {short[1]}",
                "So short a sequence has no room for the sentences that a long prompt is made of.",
                "Nothing, if --max-model-len is meant to be so low.",
            )
        wanted = int(short[0] + each * (count - _FEW))
        body = {**common, "prompt": _SENTENCE * count, "max_tokens": _ANSWER}
        response, error = _post(address, body, max(self.timeout, _LONG_TIMEOUT))
        return judge_length(
            wanted,
            _prompt_tokens(response),
            longest,
            response.status if response else None,
            _answer(response),
            error or _refusal(response),
        )


def _answer(response: Optional[Response]) -> str:
    """The words of a plain answer; empty where it has none."""
    if response is None or response.status != 200:
        return ""
    try:
        choice = response.json()["choices"][0]
        message = choice.get("message") or {}
        return str(message.get("reasoning") or message.get("reasoning_content") or "") + str(
            message.get("content") or choice.get("text") or ""
        )
    except (AttributeError, ClientError, IndexError, KeyError, TypeError):
        return ""


def _refusal(response: Optional[Response]) -> str:
    return f"HTTP {response.status}: {response.text[:300]}" if response is not None else ""


def check(
    url: str,
    model: str,
    prompts: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    timeout: float = 300,
    longest: Optional[int] = None,
    long_prompt: bool = False,
) -> List[Dict[str, Any]]:
    """Findings; all is asked at once.

    ``answers`` are those of `functional.check` to ``prompts``. ``longest`` is the longest sequence in tokens that the
    engines take, None where that is not known; ``long_prompt`` says whether a prompt of that length is to be asked.
    What can't be asked is information, so that silence means that all of it was.
    """
    asker = _Asker(url, model, timeout)
    wanted = any(answer["kind"] == "chat" and not prompt.get("optional") for prompt, answer in zip(prompts, answers))
    with ThreadPoolExecutor(max_workers=3) as pool:
        asked = [pool.submit(asker.template, wanted), pool.submit(asker.stop, list(zip(prompts, answers)))]
        if long_prompt:
            asked.append(pool.submit(asker.length, longest))
        return [item for one in asked for item in one.result()]
