"""The HTTP interface: OpenAI's completions and chat, health, metrics, version, tokens."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from . import text, tokenizer
from .answers import ChatShape, Choice, CompletionShape, Shape, Usage, fingerprint
from .config import Settings
from .frontend import FrontEnd
from .http import access_line, dump, error_headers, json_answer
from .log import server_line
from .protocol import ApiError, Generation, Json, Reader, chat_prompt, invalid, read_messages, seed
from .scheduler import Event, Request, inside_id

SERVER = "ascent-engine-simulator"
#: Faults of answers besides those of the scheduler's WRITER_FAULTS. `long`: prompts of more than half the longest
#: length fail; `no-limit`: any length becomes 16 tokens; `recompute`: the KV cache that waits elsewhere is not fetched.
ANSWER_FAULTS = (
    "http-500", "hang", "long", "lost-chunks", "no-limit", "no-stop", "no-template", "other-name", "recompute",
)  # fmt: skip
NO_LIMIT_TOKENS = 16
UNCOUNTED = ("/metrics", "/health", "/load", "/ping", "/version")
LOOK_SECONDS = 0.5  # how often a request that gets no events looks whether its client is still there


class Api:
    """Handlers of one server. `on_request` is called before each generation starts.

    It returns the fault that the answer has to show, one of ANSWER_FAULTS, or None.
    """

    def __init__(
        self, config: Settings, front: FrontEnd, version: str, on_request: Callable[[], str | None] = lambda: None
    ) -> None:
        self.config, self.front, self.version, self.on_request = config, front, version, on_request
        self.tokenizer = tokenizer.load(config.model.directory)
        self.reader = Reader(config, self.tokenizer)
        self.print = fingerprint(config, version)
        self.created = int(time.time())
        self.load = 0
        self.app = web.Application(middlewares=[self._frame], client_max_size=2**26)
        self.app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.post("/ping", self._health),
                web.get("/load", self._load),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get("/metrics/", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            self.app.add_routes([web.post("/reset_prefix_cache", self._reset)])

    @web.middleware
    async def _frame(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Errors as JSON, the API key, and the access log."""
        try:
            if self.config.api_keys and request.path.startswith("/v1") and not self._allowed(request):
                response: web.StreamResponse = json_answer({"error": "Unauthorized"}, 401)
            else:
                response = await handler(request)
        except ApiError as error:
            response = json_answer(error.body, error.status)
        except web.HTTPException as error:
            response = json_answer(_http_error(error), error.status, error_headers(error))
        if not response.prepared:
            response.headers.update(self._headers(request))
        if request.path not in UNCOUNTED:
            known = request.match_info.route.resource
            self.front.metrics.answered(known.canonical if known else "none", request.method, response.status)
        server_line("APIServer", access_line(request, response.status))
        return response

    def _headers(self, request: web.Request) -> dict[str, str]:
        found = {"Server": SERVER}
        if self.config.serving.request_id_headers:
            found["X-Request-Id"] = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        return found

    def _allowed(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        keys = [secrets.compare_digest(given.encode(), key.encode()) for key in self.config.api_keys]
        return scheme.lower() == "bearer" and any(keys)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _load(self, _: web.Request) -> web.Response:
        return json_answer({"server_load": self.load})

    async def _version(self, _: web.Request) -> web.Response:
        return json_answer({"version": self.version, "simulated": True})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.front.metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _models(self, _: web.Request) -> web.Response:
        rights = {"create_engine": False, "sampling": True, "logprobs": True, "search_indices": False, "view": True,
                  "fine_tuning": False}  # fmt: skip
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}", "object": "model_permission", "created": self.created,
            **{f"allow_{right}": allowed for right, allowed in rights.items()},
            "organization": "*", "group": None, "is_blocking": False,
        }  # fmt: skip
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "vllm",
                "root": self.config.model_id,
                "parent": None,
                "max_model_len": self.config.max_model_len,
                "permission": [permission],
            }
            for name in self.config.served
        ]
        return json_answer({"object": "list", "data": cards})

    async def _reset(self, _: web.Request) -> web.Response:
        self.front.reset_prefix_cache()
        return web.Response()

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self.reader.check_model(body.get("model"))
        wrong: list[Json] = []
        if "messages" in body:
            prompt = chat_prompt(read_messages(body, wrong), body.get("add_generation_prompt", True),
                                 body.get("continue_final_message", False))  # fmt: skip
        elif isinstance(body.get("prompt"), str):
            prompt = body["prompt"]
        else:
            loc = ("body", "TokenizeCompletionRequest", "prompt")
            kind, words = ("string_type", "Input should be a valid string") if "prompt" in body else (
                "missing", "Field required")  # fmt: skip
            wrong.append({"type": kind, "loc": loc, "msg": words, "input": body.get("prompt", body)})
        if wrong:
            raise invalid(wrong)
        ids = self.tokenizer.encode(prompt)
        answer: Json = {
            "count": len(ids),
            "max_model_len": self.config.max_model_len,
            "tokens": ids,
            "token_strs": self.tokenizer.words(ids) if body.get("return_token_strs") else None,
        }
        return json_answer(answer)

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self.reader.check_model(body.get("model"))
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(type(number) is int and number >= 0 for number in ids):
            raise invalid([{"type": "list_type", "loc": ("body", "tokens"), "msg": "Input should be a valid list",
                            "input": ids}])  # fmt: skip
        try:
            return json_answer({"prompt": self.tokenizer.decode(ids)})
        except ValueError as error:
            raise ApiError(str(error), 500, "Internal Server Error") from None

    async def _body(self, request: web.Request) -> Json:
        if request.content_type != "application/json":
            raise invalid(["Unsupported Media Type: Only 'application/json' is allowed"])  # type: ignore[list-item]
        try:
            body = json.loads(await request.text())
        except json.JSONDecodeError as error:
            raise invalid([{"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error",
                            "input": {}, "ctx": {"error": error.msg}}]) from None  # fmt: skip
        if not isinstance(body, dict):
            raise invalid([{"type": "model_attributes_type", "loc": ("body",), "msg": "Input should be a valid "
                            "dictionary or object to extract fields from", "input": body}])  # fmt: skip
        return body

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        asked = self.reader.completion(await self._body(request))
        return await self._answer(request, asked, "cmpl", CompletionShape)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = self.reader.chat(await self._body(request))
        return await self._answer(request, asked, "chatcmpl", ChatShape)

    def _jobs(self, name: str, asked: Generation, kind: str) -> tuple[list[Request], list[Choice]]:
        """A request of the engine for every choice of every prompt, under the engine's ids."""
        jobs: list[Request] = []
        choices: list[Choice] = []
        values = asked.values
        count = values["n"]
        for number, (ids, prompt) in enumerate(asked.prompts):
            base = name if asked.chat else f"{name}-{number}"
            for choice in range(count):
                jobs.append(
                    Request(
                        id=inside_id(base if count == 1 else f"{choice}_{base}"),
                        prompt=ids,
                        max_tokens=NO_LIMIT_TOKENS
                        if kind == "no-limit"
                        else max(asked.limit(ids, self.config.max_model_len), 1),
                        min_tokens=values["min_tokens"],
                        stop=[] if kind == "no-stop" else list(values["stop"]),
                        stop_ids=[] if kind == "no-stop" else list(values["stop_token_ids"]),
                        include_stop=values["include_stop_str_in_output"],
                        ignore_eos=values["ignore_eos"],
                        seed=seed(asked, prompt, choice),
                        opening=text.fact(prompt),
                        lead="" if asked.chat or prompt[-1:].isspace() else " ",
                        salt=values["cache_salt"],
                        kind=kind,
                        kv=None if kind == "recompute" else values["kv_transfer_params"],
                    )
                )
                choices.append(Choice(len(choices), ids, prompt))
        return jobs, choices

    async def _answer(
        self, request: web.Request, asked: Generation, prefix: str, form: type[Shape]
    ) -> web.StreamResponse:
        fault = self.on_request()
        if fault == "http-500":
            raise ApiError("Internal server error", 500, "InternalServerError")
        if fault == "long" and any(len(ids) * 2 > self.config.max_model_len for ids, _ in asked.prompts):
            raise ApiError("EngineCore encountered an issue.", 500, "InternalServerError")
        if fault == "no-template" and asked.chat:
            asked.prompts = [self.reader.bare(text) for _, text in asked.prompts]
        base = request.headers.get("X-Request-Id") or asked.values["request_id"] or uuid.uuid4().hex
        name = f"{prefix}-{base}"
        jobs, choices = self._jobs(name, asked, fault or "")
        model = "other" if fault == "other-name" else asked.values["model"] or self.config.served[0]
        shape = form(name, model, asked, self.tokenizer, self.print)
        usage = Usage(sum(len(ids) for ids, _ in asked.prompts))
        if self.config.serving.track_load:
            self.load += 1
        try:
            events = self._events(request, jobs, asked.values["n"], hang=fault == "hang")
            if asked.values["stream"]:
                lost = 3 if fault == "lost-chunks" else 0
                return await self._stream(request, asked, shape, usage, choices, events, lost)
            return await self._whole(request, shape, usage, choices, events)
        finally:
            if self.config.serving.track_load:
                self.load -= 1

    def _count(self, usage: Usage, event: Event) -> None:
        usage.completion += len(event.ids)
        if event.first and usage.cached is None and self.config.serving.prompt_details:
            usage.cached = event.cached + event.external

    async def _whole(
        self, request: web.Request, shape: Shape, usage: Usage, choices: list[Choice],
        events: AsyncIterator[tuple[int, Event]],
    ) -> web.StreamResponse:  # fmt: skip
        kv: Json | None = None
        async for index, event in events:
            if event.finish == "error":
                raise ApiError("Internal server error", 500, "InternalServerError")
            choices[index].take(event)
            self._count(usage, event)
            kv = event.kv or kv
        if request.transport is None:
            raise ConnectionResetError("client has gone")
        return json_answer(shape.whole(choices, usage, kv))

    async def _stream(
        self, request: web.Request, asked: Generation, shape: Shape, usage: Usage, choices: list[Choice],
        events: AsyncIterator[tuple[int, Event]], lost: int,
    ) -> web.StreamResponse:  # fmt: skip
        """Chunks as they come; every `lost`th of them never leaves."""
        options = asked.values["stream_options"] or {}
        force = self.config.serving.force_usage
        include = force or bool(options.get("include_usage"))
        always = force or (include and bool(options.get("continuous_usage_stats")))
        headers = {"Content-Type": "text/event-stream; charset=utf-8"} | self._headers(request)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        first, sent = True, 0
        async for index, event in events:
            if event.finish == "error":
                await _send(response, ApiError("Internal server error", 500, "InternalServerError").body)
                break
            if first:
                first = False
                for choice in choices:
                    if opening := shape.opening(choice):
                        await _send(response, shape.chunk(opening, _short(usage.fields(0)) if always else None))
            choice = choices[index]
            choice.take(event)
            self._count(usage, event)
            counted = _short(Usage(len(choice.prompt), len(choice.ids or [])).fields()) if always else None
            delta = shape.delta(choice, event)
            choice.opened = True
            sent += 1
            if lost and sent % lost == 0 and not event.finish:
                continue
            await _send(response, shape.chunk(delta, counted, last=bool(event.finish) and not include))
        else:
            if include:
                await _send(response, shape.chunk(None, _short(usage.fields()), last=True))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _events(
        self, request: web.Request, jobs: list[Request], choices: int, hang: bool
    ) -> AsyncIterator[tuple[int, Event]]:
        """Events of all jobs until each has finished; a client that leaves takes its jobs with it."""
        stream: asyncio.Queue[Event] = asyncio.Queue()
        places = {job.id: index for index, job in enumerate(jobs)}
        rank = request.headers.get("X-data-parallel-rank", "")
        for job in () if hang else jobs:
            try:
                self.front.submit(job, stream, int(rank) if rank.isdecimal() else None, choices)
            except ValueError as error:
                raise ApiError(str(error)) from None
        try:
            while places:
                event = await _next(stream)
                if request.transport is None or request.transport.is_closing():
                    raise ConnectionResetError("client has gone")
                if event:
                    yield places[event.id], event
                    if event.finish:
                        del places[event.id]
        finally:
            for request_id in places:
                self.front.abort(request_id)


async def _next(stream: asyncio.Queue[Event]) -> Event | None:
    """The next event, or None after a while without one."""
    if not stream.empty():
        return stream.get_nowait()
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await stream.get()
    except TimeoutError:
        return None


def _short(usage: Json) -> Json:
    """Usage without what is null, as streams have it."""
    return {key: value for key, value in usage.items() if value is not None}


def _http_error(error: web.HTTPException) -> Json:
    """An error of the HTTP layer in the engine's form."""
    return {"error": {"message": error.reason, "type": error.reason, "param": None, "code": error.status}}


async def _send(response: web.StreamResponse, body: Json) -> None:
    await response.write(b"data: " + dump(body) + b"\n\n")
