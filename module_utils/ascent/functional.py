"""Whether the endpoint answers: the recipe's prompts, plain and streamed, and what is wrong with the answers."""

from __future__ import annotations

__all__ = ["ask", "check", "judge"]

import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from . import answer_quality
from .client import ClientError, events, request
from .findings import finding

_PATHS = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}
_STAGE = "check"


def _kind(prompt: Mapping[str, Any]) -> str:
    return str(prompt.get("kind") or ("chat" if "messages" in prompt else "completion"))


def _body(prompt: Mapping[str, Any], model: str) -> Dict[str, Any]:
    """The request of a prompt: its own sampling values as they are, ``prompt`` turned into a message for a chat."""
    body = {key: value for key, value in prompt.items() if key not in ("kind", "expect", "name", "prompt", "messages")}
    body["model"] = model
    if _kind(prompt) == "chat":
        body["messages"] = prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]
    else:
        body["prompt"] = prompt["prompt"]
    return body


def _text(choice: Mapping[str, Any]) -> str:
    """The words of a choice of any of the four shapes; a reasoning model's thoughts count as words."""
    part = choice.get("message") or choice.get("delta") or {}
    thoughts = part.get("reasoning_content") or part.get("reasoning") or ""
    return thoughts + (part.get("content") or choice.get("text") or "")


def ask(
    url: str, model: str, prompt: Mapping[str, Any], timeout: float, api_key: Optional[str] = None
) -> Dict[str, Any]:
    """One prompt, first plain and then streamed.

    Returns ``{kind, prompt, status, text, streamed_text, completion_tokens, streamed_tokens, chunks, seconds, error}``.
    """
    address = url.rstrip("/") + _PATHS[_kind(prompt)]
    body = _body(prompt, model)
    messages = prompt.get("messages")
    answer: Dict[str, Any] = {
        "kind": _kind(prompt),
        "prompt": prompt.get("prompt") if messages is None else str(messages[-1].get("content")),
        "status": None,
        "text": None,
        "streamed_text": None,
        "completion_tokens": None,
        "streamed_tokens": None,
        "chunks": 0,
        "seconds": None,
        "error": None,
    }
    try:
        response = request("POST", address, body, timeout=timeout, api_key=api_key)
        answer.update(status=response.status, seconds=round(response.seconds, 4))
        if response.status != 200:
            via = response.headers.get("via")
            answer["error"] = f"HTTP {response.status}{f' through proxy {via}' if via else ''}: {response.text[:300]}"
            return answer
        answer["text"], answer["completion_tokens"] = _whole(response.json())
        _stream(address, body, answer, timeout, api_key)
    except ClientError as error:
        answer["error"] = str(error)
    return answer


def _whole(data: Any) -> Tuple[Optional[str], Optional[int]]:
    try:
        return _text(data["choices"][0]), data.get("usage", {}).get("completion_tokens")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ClientError(f"answer without choices: {str(data)[:300]}", 200) from None


def _stream(
    address: str, body: Mapping[str, Any], answer: Dict[str, Any], timeout: float, api_key: Optional[str]
) -> None:
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    pieces: List[str] = []
    for _arrival, event in events(
        address, streamed, timeout=timeout, deadline=time.monotonic() + timeout, api_key=api_key
    ):
        piece = _text(event["choices"][0]) if event.get("choices") else ""
        if piece:
            pieces.append(piece)
        if event.get("usage"):
            answer["streamed_tokens"] = event["usage"].get("completion_tokens")
    answer.update(streamed_text="".join(pieces), chunks=len(pieces))


def judge(prompt: Mapping[str, Any], answer: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Findings on one answer of `ask`. Pure."""
    asked = f"{answer['kind']} {str(answer['prompt'])[:80]!r}"
    if answer["error"]:
        # A status of a proxy's own comes with its header and is another fault than the engine's refusal.
        return [
            finding(
                "D11" if "through proxy" in answer["error"] else "functional-no-answer",
                "error",
                f"the endpoint does not answer {asked}",
                stage=_STAGE,
                evidence=answer["error"],
                cause="The router or an engine behind it refuses or has died, although the endpoint listens.",
                fix="Read the container logs of the router and of the first engine it names.",
            )
        ]
    findings = []
    for way, text, tokens in (
        ("plain", answer["text"], answer["completion_tokens"]),
        ("streamed", answer["streamed_text"], answer["streamed_tokens"]),
    ):
        if not (text or "").strip() or not tokens:
            findings.append(
                finding(
                    "E13",
                    "error",
                    f"HTTP 200 without an answer to {asked} ({way})",
                    stage=_STAGE,
                    evidence=f"text {text!r}, completion tokens {tokens}",
                    cause="A decode process behind the router is gone, or the engine reports no usage.",
                    fix="Check each engine by itself, then the router's list of engines.",
                )
            )
            continue
        quality = answer_quality.judge(text)
        missing = [word for word in prompt.get("expect") or [] if word.lower() not in text.lower()]
        reasons = quality["reasons"] + [f"expected {word!r} in the answer" for word in missing]
        if reasons:
            findings.append(
                finding(
                    "G01",
                    "error",
                    f"the answer to {asked} is not sensible ({way}): {reasons[0]}",
                    stage=_STAGE,
                    evidence=f"{'; '.join(reasons)}. Answer: {text[:300]!r}",
                    cause="Wrong quantisation flag, a faulty operator or graph, a bad shard, or mixed KV blocks.",
                    fix="Repeat with --enforce-eager, then on one node; compare the weights' hashes between nodes.",
                )
            )
    greedy = prompt.get("temperature") == 0
    if not findings and greedy and answer["text"] != answer["streamed_text"]:
        findings.append(
            finding(
                "stream-differs",
                "warning",
                f"plain and streamed answers to {asked} differ at temperature 0",
                stage=_STAGE,
                evidence=f"plain {answer['text'][:200]!r}, streamed {answer['streamed_text'][:200]!r}",
                cause="Batch-dependent rounding can do this late in a text; lost or doubled chunks do it anywhere.",
                fix="Compare the texts: a gap or a difference in the first words points to the router or the KV path.",
            )
        )
    return findings


def check(
    url: str, model: str, prompts: Sequence[Mapping[str, Any]], timeout: float = 300, api_key: Optional[str] = None
) -> Dict[str, Any]:
    """All prompts, one after the other: ``{"answers": [...], "findings": [...]}``; ``timeout`` in seconds for each."""
    answers = [ask(url, model, prompt, timeout, api_key) for prompt in prompts]
    findings = [item for prompt, answer in zip(prompts, answers) for item in judge(prompt, answer)]
    return {"answers": answers, "findings": findings}
