"""How answers of the two generating endpoints look: whole, and in chunks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from .config import Settings
from .protocol import Generation
from .scheduler import Event
from .tokenizer import Tokenizer

Json = dict[str, Any]


def fingerprint(config: Settings, version: str) -> str:
    """`system_fingerprint`: version, sizes above 1, and a hash of what members of a group share."""
    sizes = (("tp", config.tensor), ("pp", config.pipeline), ("dp", config.data))
    parts = [f"vllm-{version}", *(f"{name}{size}" for name, size in sizes if size > 1)]
    if config.expert_parallel:
        parts.append("ep")
    return "-".join([*parts, sha256(repr(sorted(config.fingerprint().items())).encode()).hexdigest()[:8]])


@dataclass
class Usage:
    """Token counts of one HTTP request. `cached` prompt tokens are None where they are not told."""

    prompt: int
    completion: int = 0
    cached: int | None = None

    def fields(self, completion: int | None = None) -> Json:
        """OpenAI's `usage` object."""
        written = self.completion if completion is None else completion
        details = {"cached_tokens": self.cached} if self.cached else None
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + written,
            "completion_tokens": written,
            "prompt_tokens_details": details,
        }


@dataclass
class Choice:
    """One answer as it grows. `index` is its place in the HTTP answer, `prompt` the tokens it answers to."""

    index: int
    prompt: list[int]
    prompt_text: str
    text: str = ""
    ids: list[int] | None = None
    finish: str | None = None
    stop: str | int | None = None
    opened: bool = False

    def take(self, event: Event) -> None:
        """Add what one step wrote."""
        self.text += event.text
        self.ids = (self.ids or []) + event.ids
        self.finish, self.stop = event.finish, event.stop


class Shape:
    """The form of one endpoint's answers. `name` is the request's id, `model` what the client calls it."""

    whole_object: str
    chunk_object: str

    def __init__(self, name: str, model: str, asked: Generation, tokenizer: Tokenizer, print_: str) -> None:
        self.name, self.model, self.asked, self.tokenizer, self.print = name, model, asked, tokenizer, print_
        self.created = int(time.time())

    def choice(self, choice: Choice) -> Json:
        """One choice of a whole answer."""
        raise NotImplementedError

    def opening(self, _choice: Choice) -> Json | None:
        """The chunk before a choice's first token, where there is one."""
        return None

    def delta(self, choice: Choice, event: Event) -> Json:
        """What one step added to a choice."""
        raise NotImplementedError

    def whole(self, choices: list[Choice], usage: Usage, kv: Json | None) -> Json:
        """An answer in one piece."""
        raise NotImplementedError

    def chunk(self, choice: Json | None, usage: Json | None = None, last: bool = False) -> Json:
        """One streamed chunk; the fingerprint is on the `last` one of each choice and on the usage."""
        found: Json = {"id": self.name, "object": self.chunk_object, "created": self.created, "model": self.model,
                       "choices": [choice] if choice else []}  # fmt: skip
        if usage:
            found["usage"] = usage
        if last:
            found["system_fingerprint"] = self.print
        return found

    def _alternatives(self, number: int, at: int, count: int) -> list[tuple[int, float]]:
        """The token and others with their logarithms of probability: made up, and the same every time."""
        size = self.tokenizer.size
        chosen = -((number * 7919 + at * 104729) % 997) / 1000
        others = [((number * 31 + 17 * rank + 1) % size, chosen - 0.7 * rank - 0.5) for rank in range(1, count)]
        return [(number, chosen), *others]

    def _token(self, number: int) -> str:
        if self.asked.values["return_tokens_as_token_ids"]:
            return f"token_id:{number}"
        return self.tokenizer.decode([number])


class CompletionShape(Shape):
    """`/v1/completions`."""

    whole_object = chunk_object = "text_completion"

    def whole(self, choices: list[Choice], usage: Usage, kv: Json | None) -> Json:
        """All choices with all fields."""
        return {
            "id": self.name,
            "object": self.whole_object,
            "created": self.created,
            "prompt_routed_experts": None,
            "model": self.model,
            "choices": [self.choice(choice) for choice in choices],
            "service_tier": None,
            "system_fingerprint": self.print,
            "usage": usage.fields(),
            "kv_transfer_params": kv,
        }

    def choice(self, choice: Choice) -> Json:
        """Text of one prompt, after the prompt itself where an echo is wanted."""
        values, ids = self.asked.values, choice.ids or []
        if self.asked.max_tokens == 0:
            ids = []
        echoed = values["echo"]
        return {
            "index": choice.index,
            "text": (choice.prompt_text if echoed else "") + (choice.text if ids else ""),
            "logprobs": self._logprobs([*(choice.prompt if echoed else []), *ids], 0, echoed),
            "finish_reason": choice.finish,
            "stop_reason": choice.stop,
            "token_ids": ids if values["return_token_ids"] else None,
            "prompt_logprobs": None,
            "prompt_token_ids": choice.prompt if values["return_token_ids"] else None,
            "routed_experts": None,
        }

    def delta(self, choice: Choice, event: Event) -> Json:
        """Text and tokens of one step; an echo comes with the first."""
        values, echoed = self.asked.values, self.asked.values["echo"] and not choice.opened
        ids = [*(choice.prompt if echoed else []), *event.ids]
        return {
            "index": choice.index,
            "text": (choice.prompt_text if echoed else "") + event.text,
            "logprobs": self._logprobs(ids, len(choice.text) - len(event.text), echoed),
            "finish_reason": event.finish,
            "stop_reason": event.stop,
            "prompt_token_ids": choice.prompt if values["return_token_ids"] and not choice.opened else None,
            "token_ids": event.ids if values["return_token_ids"] else None,
        }

    def _logprobs(self, ids: list[int], offset: int, from_start: bool) -> Json | None:
        count = self.asked.most_logprobs
        if count is None:
            return None
        found: Json = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for at, number in enumerate(ids):
            word = self._token(number)
            known = None if from_start and at == 0 else self._alternatives(number, at, count)
            found["text_offset"].append(offset)
            found["tokens"].append(word)
            found["token_logprobs"].append(known[0][1] if known else None)
            found["top_logprobs"].append({self._token(n): value for n, value in known} if known else None)
            offset += len(word)
        return found


class ChatShape(Shape):
    """`/v1/chat/completions`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, choices: list[Choice], usage: Usage, kv: Json | None) -> Json:
        """All choices with all fields."""
        ids = choices[0].prompt if self.asked.values["return_token_ids"] else None
        return {
            "id": self.name,
            "object": self.whole_object,
            "created": self.created,
            "prompt_routed_experts": None,
            "model": self.model,
            "choices": [self.choice(choice) for choice in choices],
            "service_tier": None,
            "system_fingerprint": self.print,
            "usage": usage.fields(),
            "prompt_logprobs": None,
            "prompt_token_ids": ids,
            "prompt_text": None,
            "kv_transfer_params": kv,
        }

    def choice(self, choice: Choice) -> Json:
        """The assistant's message."""
        message: Json = {
            "role": "assistant",
            "content": choice.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": [],
            "reasoning": None,
        }
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.ids or []),
            "finish_reason": choice.finish,
            "stop_reason": choice.stop,
            "token_ids": choice.ids if self.asked.values["return_token_ids"] else None,
            "routed_experts": None,
        }

    def opening(self, choice: Choice) -> Json:
        """The role comes in a chunk of its own."""
        delta = {"role": "assistant", "content": ""}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, choice: Choice, event: Event) -> Json:
        """Text and tokens of one step."""
        found: Json = {
            "index": choice.index,
            "delta": {"content": event.text},
            "logprobs": self._logprobs(event.ids),
            "finish_reason": event.finish,
            "token_ids": event.ids if self.asked.values["return_token_ids"] else None,
        }
        return found | ({"stop_reason": event.stop} if event.finish else {})

    def _logprobs(self, ids: list[int]) -> Json | None:
        count = self.asked.most_logprobs
        if count is None:
            return None

        def entry(number: int, value: float) -> Json:
            word = self._token(number)
            return {"token": word, "logprob": value, "bytes": list(word.encode())}

        content = []
        for at, number in enumerate(ids):
            known = self._alternatives(number, at, count)
            content.append(entry(*known[0]) | {"top_logprobs": [entry(*one) for one in known[:count]]})
        return {"content": content}
