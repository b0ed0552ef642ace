"""What clients may ask: bodies of completions and chat requests, checked as the engine checks them.

Errors of a body's form have the type `Bad Request` and list what is wrong; values that the engine finds impossible
later have the type `BadRequestError` and one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import text
from .config import Settings
from .tokenizer import Tokenizer

Json = dict[str, Any]
MOST_CHOICES = 16384  # VLLM_MAX_N_SEQUENCES
INT64 = 2**63


class ApiError(Exception):
    """An answer in OpenAI's error form."""

    def __init__(self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def bad_value(message: str, param: str, value: Any) -> ApiError:
    """A value that the engine refuses, in its words."""
    return ApiError(f"{message} (parameter={param}, value={value})", param=param)


def not_simulated(what: str) -> ApiError:
    """Something that the real engine does and the simulator does not."""
    return ApiError(f"the sandbox's engine simulator has no {what}", 501, "NotImplementedError")


def invalid(entries: list[Json], param: str | None = None) -> ApiError:
    """A body of the wrong form; `entries` have `type`, `loc`, `msg` and `input`."""
    count = f"{len(entries)} validation error{'s' if len(entries) > 1 else ''}:\n"
    return ApiError(count + "\n".join(f"  {entry}" for entry in entries) + f" {entries}", 400, "Bad Request", param)


def refused(message: str, body: Json, param: str | None = None) -> ApiError:
    """A body whose parts do not go together."""
    words = f"Value error, {message}" + (f" (parameter={param})" if param else "")
    return invalid([{"type": "value_error", "loc": ("body",), "msg": words, "input": body}], param)


def _integer(value: Any) -> tuple[str, str] | int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value if isinstance(value, bool) else ("int_type", "Input should be a valid integer")
    if isinstance(value, float):
        whole = "Input should be a valid integer, got a number with a fractional part"
        return int(value) if value.is_integer() else ("int_from_float", whole)
    try:
        return int(value)
    except ValueError:
        return "int_parsing", "Input should be a valid integer, unable to parse string as an integer"


def _number(value: Any) -> tuple[str, str] | float:
    if not isinstance(value, int | float | str):
        return "float_type", "Input should be a valid number"
    try:
        return float(value)
    except ValueError:
        return "float_parsing", "Input should be a valid number, unable to parse string as a number"


def _boolean(value: Any) -> tuple[str, str] | bool:
    words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}
    known = words.get(str(value).lower()) if isinstance(value, bool | int | str) else None
    if known is not None:
        return known
    if isinstance(value, int | str):
        return "bool_parsing", "Input should be a valid boolean, unable to interpret input"
    return "bool_type", "Input should be a valid boolean"


def _string(value: Any) -> tuple[str, str] | str:
    return value if isinstance(value, str) else ("string_type", "Input should be a valid string")


def _object(value: Any) -> tuple[str, str] | Json:
    return value if isinstance(value, dict) else ("dict_type", "Input should be a valid dictionary")


def _strings(value: Any) -> tuple[str, str] | list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    return "list_type", "Input should be a valid list of strings"


def _integers(value: Any) -> tuple[str, str] | list[int]:
    whole = isinstance(value, list) and all(isinstance(part, int) for part in value)
    return value if whole else ("list_type", "Input should be a valid list of integers")


@dataclass(frozen=True)
class Field:
    """One key of a body: how to read it, its default, and whether `null` stands for that."""

    read: Callable[[Any], Any]
    default: Any = None
    nullable: bool = True


SAMPLING = {
    "model": Field(_string),
    "n": Field(_integer, 1),
    "stream": Field(_boolean, False),
    "stream_options": Field(_object),
    "temperature": Field(_number, 1.0),
    "top_p": Field(_number, 1.0),
    "top_k": Field(_integer, 0),
    "min_p": Field(_number, 0.0),
    "presence_penalty": Field(_number, 0.0),
    "frequency_penalty": Field(_number, 0.0),
    "repetition_penalty": Field(_number, 1.0),
    "seed": Field(_integer),
    "stop": Field(_strings, ()),
    "stop_token_ids": Field(_integers, ()),
    "include_stop_str_in_output": Field(_boolean, False, nullable=False),
    "ignore_eos": Field(_boolean, False, nullable=False),
    "min_tokens": Field(_integer, 0, nullable=False),
    "truncate_prompt_tokens": Field(_integer),
    "prompt_logprobs": Field(_integer),
    "return_token_ids": Field(_boolean, False),
    "return_tokens_as_token_ids": Field(_boolean, False),
    "request_id": Field(_string, None, nullable=False),
    "cache_salt": Field(_string, ""),
    "kv_transfer_params": Field(_object),
    "response_format": Field(_object),
    "structured_outputs": Field(_object),
    "use_beam_search": Field(_boolean, False, nullable=False),
}
COMPLETION = SAMPLING | {
    "max_tokens": Field(_integer, 16),
    "echo": Field(_boolean, False),
    "logprobs": Field(_integer),
}
CHAT = SAMPLING | {
    "max_tokens": Field(_integer),
    "max_completion_tokens": Field(_integer),
    "echo": Field(_boolean, False, nullable=False),
    "logprobs": Field(_boolean, False),
    "top_logprobs": Field(_integer, 0),
    "add_generation_prompt": Field(_boolean, True, nullable=False),
    "continue_final_message": Field(_boolean, False, nullable=False),
}


def read_fields(body: Json, fields: dict[str, Field], wrong: list[Json]) -> Json:
    """The values of the known keys; what has the wrong type goes to `wrong`."""
    values = {}
    for key, entry in fields.items():
        if key not in body or (body[key] is None and entry.nullable):
            values[key] = entry.default
            continue
        value = entry.read(body[key])
        if isinstance(value, tuple):
            wrong.append({"type": value[0], "loc": ("body", key), "msg": value[1], "input": body[key]})
        values[key] = value
    return values


@dataclass
class Generation:
    """A checked request. Every prompt is token ids, with the text it came from."""

    values: Json
    prompts: list[tuple[list[int], str]]
    max_tokens: int | None
    limit_name: str
    chat: bool

    @property
    def most_logprobs(self) -> int | None:
        """How many alternatives are wanted with each token; None: no logprobs."""
        if self.chat:
            return (self.values["top_logprobs"] or 0) if self.values["logprobs"] else None
        return self.values["logprobs"]

    def limit(self, prompt: list[int], longest: int) -> int:
        """Most tokens of the answer to a prompt."""
        room = longest - len(prompt)
        return room if self.max_tokens is None else min(self.max_tokens, room)


class Reader:
    """Reads the bodies of one server's requests."""

    def __init__(self, config: Settings, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    def check_model(self, name: str | None) -> None:
        """404 for a model that is not served; no name means the one that is."""
        if name and name not in self.config.served:
            raise ApiError(f"The model `{name}` does not exist.", 404, "NotFoundError", "model")

    def completion(self, body: Json) -> Generation:
        """A `/v1/completions` body."""
        self._form(body)
        if body.get("prompt") in (None, "") and not body.get("prompt_embeds"):
            raise refused("Either prompt or prompt_embeds must be provided and non-empty.", body)
        if (count := body.get("logprobs")) is not None and isinstance(count, int) and count < 0:
            raise refused("`logprobs` must be a positive value.", body, "logprobs")
        wrong: list[Json] = []
        values = read_fields(body, COMPLETION, wrong)
        prompt = body.get("prompt")
        if prompt is not None and not _is_prompt(prompt):
            wrong.append({"type": "string_type", "loc": ("body", "prompt", "str"),
                          "msg": "Input should be a valid string", "input": prompt})  # fmt: skip
        if wrong:
            raise invalid(wrong)
        self.check_model(values["model"])
        if body.get("prompt_embeds"):
            raise ApiError("You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        given = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt or [])
        limit = values["max_tokens"]
        found = Generation(values, [], limit, "max_tokens", False)
        found.prompts = [self._prompt(one, found) for one in given]
        self._sampling(found)
        return found

    def chat(self, body: Json) -> Generation:
        """A `/v1/chat/completions` body."""
        self._form(body)
        top = body.get("top_logprobs")
        if isinstance(top, int) and (top > 0 or top == -1) and not body.get("logprobs"):
            raise refused("when using `top_logprobs`, `logprobs` must be set to true.", body, "top_logprobs")
        self._tools_form(body)
        if body.get("continue_final_message") and body.get("add_generation_prompt"):
            raise refused("Cannot set both `continue_final_message` and `add_generation_prompt` to True.", body)
        wrong: list[Json] = []
        values = read_fields(body, CHAT, wrong)
        messages = read_messages(body, wrong)
        if wrong:
            raise invalid(wrong)
        self.check_model(values["model"])
        self._tools(body)
        if not messages:
            raise ApiError("list object has no element 0")  # what chat templates make of it
        name = "max_tokens" if values["max_completion_tokens"] is None else "max_completion_tokens"
        found = Generation(values, [], values[name], name, True)
        prompt = chat_prompt(messages, values["add_generation_prompt"], values["continue_final_message"])
        found.prompts = [self._prompt(prompt, found)]
        self._sampling(found)
        return found

    def bare(self, prompt: str) -> tuple[list[int], str]:
        """A rendered chat as an engine sees it whose template is lost: the contents alone."""
        words = re.sub(r"<\|im_start\|>\w*\n|<\|im_end\|>\n?", "", prompt)
        return self.tokenizer.encode(words), words

    def _form(self, body: Json) -> None:
        """Rules that both kinds of bodies share and that are checked before anything else."""
        if body.get("stream_options") and not body.get("stream"):
            raise refused("Stream options can only be defined when `stream=True`.", body, "stream_options")
        wanted = body.get("response_format")
        if isinstance(wanted, dict) and wanted.get("type") == "json_schema" and wanted.get("json_schema") is None:
            raise refused("When response_format type is 'json_schema', the 'json_schema' field must be provided.", body,
                          "response_format")  # fmt: skip
        if "cache_salt" in body and body["cache_salt"] is not None and (
            not isinstance(body["cache_salt"], str) or not body["cache_salt"]
        ):  # fmt: skip
            raise refused("Parameter 'cache_salt' must be a non-empty string if provided.", body)

    def _tools_form(self, body: Json) -> None:
        if body.get("tools") == []:
            raise refused("`tools` must not be an empty array. Either provide at least one tool or omit the field "
                          "entirely.", body)  # fmt: skip
        choice = body.get("tool_choice")
        if choice in (None, "none"):
            return
        if not body.get("tools"):
            raise refused("When using `tool_choice`, `tools` must be set.", body)
        if choice not in ("auto", "required") and not isinstance(choice, dict):
            raise refused(f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" '
                          "are supported.", body)  # fmt: skip
        if isinstance(choice, dict):
            name = (choice.get("function") or {}).get("name")
            if name not in [tool.get("function", {}).get("name") for tool in body["tools"] if isinstance(tool, dict)]:
                raise refused("The tool specified in `tool_choice` does not match any of the specified `tools`", body)

    def _tools(self, body: Json) -> None:
        """Tools need a parser for the model's way of calling them."""
        serving = self.config.serving
        choice = body.get("tool_choice", "auto" if body.get("tools") else None)
        if choice in (None, "none"):
            return
        if choice == "auto" and not (serving.auto_tools and serving.tool_parser):
            raise ApiError('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
        if choice != "auto":
            if not serving.tool_parser:
                raise ApiError(f'tool_choice="{choice}" requires --tool-call-parser to be set')
            raise not_simulated(f"tool calls: it can't answer tool_choice {json.dumps(choice)}")

    def _prompt(self, given: str | list[int], found: Generation) -> tuple[list[int], str]:
        """A prompt's tokens, within the model's context."""
        longest, wanted = self.config.max_model_len, max(found.max_tokens or 0, 0)
        if wanted > longest:
            raise bad_value(
                f"{found.limit_name}={wanted} cannot be greater than max_model_len=max_total_tokens={longest}. Please "
                "request fewer output tokens.", found.limit_name, wanted,
            )  # fmt: skip
        room = longest - wanted
        cut = found.values["truncate_prompt_tokens"]
        if cut is not None and cut > room:
            raise bad_value(
                f"truncate_prompt_tokens={cut} cannot be greater than max_model_len - {found.limit_name} = {room}. "
                "Please request a smaller truncation size.", "truncate_prompt_tokens", cut,
            )  # fmt: skip
        if isinstance(given, str):
            self._characters(given, wanted, room, cut)
            ids = self.tokenizer.encode(given)
        else:
            ids = list(given)
        if cut is not None:
            ids = ids[: room if cut < 0 else cut]
        if len(ids) > room:
            # The engine cuts a text while it tokenizes it, one token after the limit, so it knows no exact count.
            count, least = (room + 1, "at least ") if isinstance(given, str) else (len(ids), "")
            raise bad_value(
                f"This model's maximum context length is {longest} tokens. However, you requested {wanted} output "
                f"tokens and your prompt contains {least}{count} input tokens, for a total of {least}{count + wanted} "
                "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
                "input_tokens", count,
            )  # fmt: skip
        if not ids:
            raise ApiError("The decoder prompt cannot be empty")
        if (largest := max(ids)) >= self.tokenizer.size and not isinstance(given, str):
            raise ApiError(f"Token id {largest} is out of vocabulary")
        return ids, given if isinstance(given, str) else self.tokenizer.decode(ids)

    def _characters(self, given: str, wanted: int, room: int, cut: int | None) -> None:
        most = room * self.tokenizer.longest
        if cut is None and len(given) > most:
            raise bad_value(
                f"This model's maximum context length is {self.config.max_model_len} tokens. However, you requested "
                f"{wanted} output tokens and your prompt contains {len(given)} characters (more than {most} "
                f"characters, which is the upper bound for {room} input tokens). Please reduce the length of the "
                "input prompt or the number of requested output tokens.", "input_text", len(given),
            )  # fmt: skip

    def _sampling(self, found: Generation) -> None:
        """Values that no sampling is possible with, in the order in which the engine looks at them."""
        values = found.values
        if found.max_tokens is not None and found.max_tokens < 1 and not (values["echo"] and found.max_tokens == 0):
            raise bad_value(f"max_tokens must be at least 1, got {found.max_tokens}.", "max_tokens", found.max_tokens)
        if values["n"] < 1:
            raise ApiError(f"n must be at least 1, got {values['n']}.")
        if values["n"] > MOST_CHOICES:
            raise ApiError(
                f"n must be at most {MOST_CHOICES}, got {values['n']}. To increase this limit, set the "
                "VLLM_MAX_N_SEQUENCES environment variable."
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= values[name] <= 2:
                raise ApiError(f"{name} must be in [-2, 2], got {values[name]}.")
        if values["repetition_penalty"] <= 0:
            raise ApiError(f"repetition_penalty must be greater than zero, got {values['repetition_penalty']}.")
        if values["temperature"] < 0:
            raise bad_value(f"temperature must be non-negative, got {values['temperature']}.", "temperature",
                            values["temperature"])  # fmt: skip
        if not 0 < values["top_p"] <= 1:
            raise bad_value(f"top_p must be in (0, 1], got {values['top_p']}.", "top_p", values["top_p"])
        if values["top_k"] < -1:
            raise ApiError(f"top_k must be 0 (disable), or at least 1, got {values['top_k']}.")
        if not 0 <= values["min_p"] <= 1:
            raise ApiError(f"min_p must be in [0, 1], got {values['min_p']}.")
        if values["min_tokens"] < 0:
            raise ApiError(f"min_tokens must be greater than or equal to 0, got {values['min_tokens']}.")
        most = min((found.limit(ids, self.config.max_model_len) for ids, _ in found.prompts), default=0)
        if values["min_tokens"] > most:
            raise ApiError(f"min_tokens must be less than or equal to max_tokens={most}, got {values['min_tokens']}.")
        if any(not word for word in values["stop"]):
            raise ApiError("stop cannot contain an empty string.")
        if values["temperature"] == 0 and values["n"] > 1:
            raise ApiError(f"n must be 1 when using greedy sampling, got {values['n']}.")
        logprobs = found.most_logprobs
        if logprobs is not None and logprobs > self.config.serving.most_logprobs >= 0:
            raise bad_value(
                f"Requested sample logprobs of {logprobs}, which is greater than max allowed: "
                f"{self.config.serving.most_logprobs}", "logprobs", logprobs,
            )  # fmt: skip
        if values["prompt_logprobs"] is not None:
            raise not_simulated("prompt_logprobs")
        if values["use_beam_search"]:
            raise not_simulated("beam search")
        wanted = (values["response_format"] or {}).get("type", "text")
        if wanted != "text" or values["structured_outputs"]:
            raise not_simulated("structured outputs")


def seed(found: Generation, prompt: str, choice: int) -> int:
    """Where the answer of one choice starts."""
    given = found.values["seed"]
    return text.seed_of(prompt, found.values["temperature"], None if given is None else given + choice)


def _is_prompt(given: Any) -> bool:
    """Text, token ids, or a list of either."""

    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(type(one) is int and 0 <= one < INT64 for one in value)

    return isinstance(given, str) or ids(given) or (
        isinstance(given, list) and (all(isinstance(one, str) for one in given) or all(map(ids, given)))
    )  # fmt: skip


def read_messages(body: Json, wrong: list[Json]) -> list[Json]:
    """The messages of a chat; what has the wrong form goes to `wrong`."""
    if "messages" not in body:
        wrong.append({"type": "missing", "loc": ("body", "messages"), "msg": "Field required", "input": body})
        return []
    messages = body["messages"]
    if not isinstance(messages, list):
        wrong.append({"type": "list_type", "loc": ("body", "messages"), "msg": "Input should be a valid list",
                      "input": messages})  # fmt: skip
        return []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            wrong.append({"type": "missing", "loc": ("body", "messages", number, "role"), "msg": "Field required",
                          "input": message})  # fmt: skip
    return messages


def chat_prompt(messages: list[Json], answer: bool = True, unfinished: bool = False) -> str:
    """Messages in the ChatML layout; parts that are not text count as one mark each."""
    lines = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "<|endoftext|>") for part in content if isinstance(part, dict))
        lines.append(f"<|im_start|>{message.get('role')}\n{content}<|im_end|>\n")
    if unfinished and lines:
        return "".join(lines).removesuffix("<|im_end|>\n")
    return "".join(lines) + ("<|im_start|>assistant\n" if answer else "")
