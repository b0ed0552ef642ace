"""The HTTP interface: OpenAI's completions and chat, health, metrics, version, tokens."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from . import text
from .config import Settings
from .frontend import FrontEnd
from .log import server_line
from .rank import Event, Request

SERVER = "ascent-engine-simulator"
Json = dict[str, Any]


class ApiError(Exception):
    """An answer in OpenAI's error form."""

    def __init__(self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Api:
    """Handlers of one server. `on_request` is called before each generation starts."""

    def __init__(self, config: Settings, front: FrontEnd, version: str, on_request: Callable[[], None]) -> None:
        self.config, self.front, self.version, self.on_request = config, front, version, on_request
        self.created = int(time.time())
        self.app = web.Application(middlewares=[self._frame], client_max_size=2**26)
        self.app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/reset_prefix_cache", self._health),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
            ]
        )

    @web.middleware
    async def _frame(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Errors as JSON, the API key, and the access log."""
        try:
            if self.config.api_keys and request.path.startswith("/v1") and not self._allowed(request):
                response: web.StreamResponse = web.json_response({"error": "Unauthorized"}, status=401)
            else:
                response = await handler(request)
        except ApiError as error:
            response = web.json_response(error.body, status=error.status)
        except web.HTTPException as error:
            response = web.json_response({"detail": error.reason}, status=error.status)
        if not response.prepared:
            response.headers["Server"] = SERVER
        server_line("APIServer", f'{request.remote} - "{request.method} {request.path} HTTP/1.1" {response.status}')
        return response

    def _allowed(self, request: web.Request) -> bool:
        return request.headers.get("Authorization", "").removeprefix("Bearer ") in self.config.api_keys

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version, "simulated": True})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.front.metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _models(self, _: web.Request) -> web.Response:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "vllm",
                "root": self.config.model_id,
                "parent": None,
                "max_model_len": self.config.max_model_len,
                "permission": [],
            }
            for name in self.config.served
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        prompt = chat_prompt(body["messages"]) if "messages" in body else body.get("prompt")
        if not isinstance(prompt, str):
            raise ApiError("`prompt` must be a string, or `messages` a list")
        found = text.pieces(prompt)
        answer: Json = {
            "count": len(found),
            "max_model_len": self.config.max_model_len,
            "tokens": [text.token_id(piece) for piece in found],
            "token_strs": found if body.get("return_token_strs") else None,
        }
        return web.json_response(answer)

    async def _body(self, request: web.Request) -> Json:
        try:
            body = await request.json()
        except ValueError as error:
            raise ApiError(f"JSON decode error: {error}") from None
        if not isinstance(body, dict):
            raise ApiError("Input should be a valid dictionary")
        model = body.get("model")
        if model is not None and model not in self.config.served:
            raise ApiError(f"The model `{model}` does not exist.", 404, "NotFoundError", "model")
        return body

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        prompts = body.get("prompt")
        if isinstance(prompts, str) or (isinstance(prompts, list) and prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        if not isinstance(prompts, list) or not prompts:
            raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
        name = f"cmpl-{request.headers.get('X-Request-Id') or uuid.uuid4().hex}"
        wanted = body.get("max_tokens")
        limit = 16 if wanted is None else wanted
        jobs = [
            self._job(f"{name}-{index}", prompt, body, limit)
            for index, prompt in enumerate(p for p in prompts for _ in range(int(body.get("n") or 1)))
        ]
        return await self._answer(
            request, body, CompletionShape(name, body.get("model") or self.config.served[0]), jobs
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ApiError("messages: List should have at least 1 item", param="messages")
        name = f"chatcmpl-{request.headers.get('X-Request-Id') or uuid.uuid4().hex}"
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        count = int(body.get("n") or 1)
        # vLLM gives a chat request with one choice no index behind its id.
        ids = [name] if count == 1 else [f"{name}-{index}" for index in range(count)]
        jobs = [self._job(one, chat_prompt(messages), body, limit) for one in ids]
        return await self._answer(request, body, ChatShape(name, body.get("model") or self.config.served[0]), jobs)

    def _job(self, request_id: str, prompt: Any, body: Json, limit: int | None) -> Request:
        """One checked generation."""
        words = " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)
        count = len(prompt) if isinstance(prompt, list) else len(text.pieces(words))
        longest = self.config.max_model_len
        wanted = 1 if limit is None else limit
        if not isinstance(wanted, int) or wanted < 1:
            raise ApiError(f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
        if count == 0:
            raise ApiError("The decoder prompt cannot be empty", param="prompt")
        if count + wanted > longest:
            raise ApiError(
                f"This model's maximum context length is {longest} tokens. However, you requested {wanted} output "
                f"tokens and your prompt contains {count} input tokens, for a total of {count + wanted} tokens. Please "
                "reduce the length of the input prompt or the number of requested output tokens.",
                param="input_tokens",
            )
        stop = body.get("stop") or []
        temperature = body.get("temperature")
        seed = text.seed_of(words, 1.0 if temperature is None else float(temperature), body.get("seed"))
        return Request(
            id=request_id,
            prompt=words,
            prompt_tokens=count,
            max_tokens=wanted if limit is not None else longest - count,
            min_tokens=int(body.get("min_tokens") or 0),
            stop=[stop] if isinstance(stop, str) else list(stop),
            ignore_eos=bool(body.get("ignore_eos")),
            seed=seed,
            kv=body.get("kv_transfer_params"),
        )

    async def _answer(self, request: web.Request, body: Json, shape: Shape, jobs: list[Request]) -> web.StreamResponse:
        self.on_request()
        usage = Usage(sum(job.prompt_tokens for job in jobs))
        events = self._events(request, jobs)
        if not body.get("stream"):
            parts = [""] * len(jobs)
            reasons: list[str | None] = [None] * len(jobs)
            kv: Json | None = None
            async for index, event in events:
                if event.error:
                    raise ApiError(event.error, 500, "InternalServerError")
                parts[index] += event.text
                reasons[index] = event.finish
                usage.completion += event.tokens
                kv = event.kv or kv
            return web.json_response(shape.whole(parts, reasons, usage) | {"kv_transfer_params": kv})
        options = body.get("stream_options") or {}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Server": SERVER})
        await response.prepare(request)
        for index in range(len(jobs)):
            if opening := shape.opening(index):
                await _send(response, opening)
        async for index, event in events:
            if event.error:
                await _send(response, ApiError(event.error, 500, "InternalServerError").body)
                break
            usage.completion += event.tokens
            chunk = shape.chunk(index, event)
            if options.get("continuous_usage_stats"):
                chunk["usage"] = usage.fields()
            if event.text or event.finish:
                await _send(response, chunk)
        if options.get("include_usage"):
            await _send(response, shape.frame("chunk") | {"choices": [], "usage": usage.fields()})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _events(self, request: web.Request, jobs: list[Request]) -> AsyncIterator[tuple[int, Event]]:
        """Events of all jobs until each has finished; a client that leaves takes its jobs with it."""
        stream: asyncio.Queue[Event] = asyncio.Queue()
        places = {job.id: index for index, job in enumerate(jobs)}
        for job in jobs:
            self.front.submit(job, stream)
        try:
            while places:
                event = await stream.get()
                if request.transport is None or request.transport.is_closing():
                    raise ConnectionResetError("client has gone")
                yield places[event.id], event
                if event.finish:
                    del places[event.id]
        finally:
            for request_id in places:
                self.front.abort(request_id)


class Usage:
    """Token counts of one HTTP request."""

    def __init__(self, prompt: int) -> None:
        self.prompt, self.completion = prompt, 0

    def fields(self) -> Json:
        """OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "prompt_tokens_details": None,
        }


class Shape:
    """How answers of one endpoint look."""

    objects: dict[str, str]

    def __init__(self, name: str, model: str) -> None:
        self.name, self.model, self.created = name, model, int(time.time())

    def frame(self, form: str) -> Json:
        """The fields every object has; `form` is `whole` or `chunk`."""
        return {"id": self.name, "object": self.objects[form], "created": self.created, "model": self.model}

    def whole(self, parts: list[str], reasons: list[str | None], usage: Usage) -> Json:
        """An answer in one piece."""
        choices = [self.choice(i, part, reasons[i]) for i, part in enumerate(parts)]
        return self.frame("whole") | {"choices": choices, "usage": usage.fields()}

    def choice(self, index: int, words: str, reason: str | None) -> Json:
        """One choice of a whole answer."""
        raise NotImplementedError

    def opening(self, _index: int) -> Json | None:
        """The chunk before the first token, where there is one."""
        return None

    def chunk(self, index: int, event: Event) -> Json:
        """One streamed chunk."""
        raise NotImplementedError


class CompletionShape(Shape):
    """`/v1/completions`."""

    objects = {"whole": "text_completion", "chunk": "text_completion"}  # noqa: RUF012 -- a constant of the class

    def choice(self, index: int, words: str, reason: str | None) -> Json:
        """Text of one prompt."""
        return {"index": index, "text": words, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    def chunk(self, index: int, event: Event) -> Json:
        """The text one step added."""
        return self.frame("chunk") | {"choices": [self.choice(index, event.text, event.finish)]}


class ChatShape(Shape):
    """`/v1/chat/completions`."""

    objects = {"whole": "chat.completion", "chunk": "chat.completion.chunk"}  # noqa: RUF012 -- a constant of the class

    def __init__(self, name: str, model: str) -> None:
        super().__init__(name, model)
        self.started: set[int] = set()

    def choice(self, index: int, words: str, reason: str | None) -> Json:
        """The assistant's message."""
        message = {"role": "assistant", "content": words.lstrip(), "reasoning": None, "tool_calls": []}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    def opening(self, index: int) -> Json:
        """The role comes in a chunk of its own."""
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def chunk(self, index: int, event: Event) -> Json:
        """The text one step added; the message starts without the space that starts a completion."""
        words = event.text if index in self.started else event.text.lstrip()
        if words:
            self.started.add(index)
        return self._delta(index, {"content": words}, event.finish)

    def _delta(self, index: int, delta: Json, reason: str | None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self.frame("chunk") | {"choices": [choice]}


def chat_prompt(messages: list[Json]) -> str:
    """Messages in the ChatML layout; parts that are not text count as one mark each."""
    lines = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "<|media|>") for part in content)
        lines.append(f"<|im_start|>{message.get('role')}\n{content}<|im_end|>\n")
    return "".join(lines) + "<|im_start|>assistant\n"


async def _send(response: web.StreamResponse, body: Json) -> None:
    await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
